//! The kernels against three judges: f64 arithmetic, candle's own operations, and themselves (alone or in a
//! batch, on other threads, tiers of instructions, pages and chunks the bits must be the same).

mod attention;
mod experts;
mod misuse;
mod products;
mod recurrent;
mod rows;
#[cfg(target_os = "linux")]
mod speed;
mod support;
mod together;
