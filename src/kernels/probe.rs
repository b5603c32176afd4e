//! How fast the inner loop of products runs at this moment, for benchmarks on machines that others use, too.

use std::ops::Range;
use std::thread::Builder;
use std::time::{Duration, Instant};

use super::blocked::{self, Panels, Sink};
use super::isa::Isa;
use super::layouts::{Layout, Q4_1};
use super::panels::PANELS;
use super::quantize::{Precision, Quantized, quantized};
use super::simd::LANES;
use crate::error::{Error, Result};

/// The sizes of one pass: a task of a product whose panels stay in L1 and whose rows stay in L2.
const ROWS: usize = 48;
const K: usize = 576;

/// Byte operations a second (a product and its sum are two) that `threads` threads do together in the tile of
/// quantized products, each on numbers of its own, for about as long as `time`. What others do on the same
/// cores is seen here, where a loop over registers would not see it.
///
/// # Errors
/// `Device` when `TALLOW_ISA` names a tier that this machine has not, or a thread cannot be started.
pub fn tile_rate(threads: usize, time: Duration) -> Result<f64> {
    let isa = Isa::from_env()?;
    std::thread::scope(|scope| {
        let start = |_| Builder::new().spawn_scoped(scope, || rate_of_one(isa, time));
        let others = (1..threads).map(start).collect::<std::io::Result<Vec<_>>>();
        let others = others.map_err(|error| Error::device(format!("a thread cannot be started: {error}")))?;
        let own = rate_of_one(isa, time);
        Ok(own + others.into_iter().map(|other| other.join().unwrap_or(0.0)).sum::<f64>())
    })
}

fn rate_of_one(isa: Isa, time: Duration) -> f64 {
    let (panel_bytes, x) = (K / Q4_1::TYPE.block_len() * Q4_1::UNIT, rows(isa));
    // Zeros are as much work as any other weights.
    let (weights, mut passes) = (vec![0; PANELS * panel_bytes], 0usize);
    let began = Instant::now();
    while passes == 0 || began.elapsed() < time {
        let w = Panels { matrices: &[&weights], panel_bytes, ahead: &[] };
        blocked::multiply::<Q4_1>(isa, w, &x, 0..ROWS, &mut Nowhere);
        passes += 1;
    }
    (passes * 2 * ROWS * K * PANELS * LANES) as f64 / began.elapsed().as_secs_f64()
}

fn rows(isa: Isa) -> Quantized {
    let x: Vec<f32> = (0..ROWS * K).map(|at| (at % 17) as f32 - 8.0).collect();
    quantized(isa, &x, K, Precision::Above(f32::INFINITY))
}

/// Sums that nobody wants.
struct Nowhere;

impl Sink for Nowhere {
    fn expect(&self, _: Range<usize>, _: Range<usize>) {}
    fn take(&mut self, _: usize, _: usize, sums: [&[[f32; LANES]]; 2]) {
        std::hint::black_box(sums);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_had_of_any_number_of_threads() {
        for threads in [1, 2] {
            let rate = tile_rate(threads, Duration::from_millis(1)).unwrap();
            assert!(rate.is_finite() && rate > 1e6, "{threads}: {rate}");
        }
    }
}
