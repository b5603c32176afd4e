//! Products of the levels of a table (NF4, the FP4 of bitsandbytes) with bytes of activations.
//!
//! The levels are floats, but fourteen bits hold them: BNB_FP4's are whole 192nds, and NF4's are within 4e-5
//! of whole 8005ths. (The bytes that they are multiplied with are rounded a hundred times as much. Where
//! those are not good enough, in `dtype="float32"`, products are those of [`floats`](super::floats), as are
//! what outliers are multiplied with, and rows of an embedding.) Such a number has two digits of seven bits,
//! which two lookups of bytes find, where a float takes four, and steps to put it together:
//!
//! ```text
//! dot  = sum of (128 * high + low - zero) * byte     exact, in i32
//! acc += (dot * (scale_w / parts)) * scale_x         fused, in f32
//! acc += outlier * weight as a float                 fused, after all of the row
//! ```

use super::floats::{Block, BnbFp4, Float, Nf4, Sums};
use super::isa::{Isa, Tiles, tiled};
use super::layouts::{AHEAD, SUB};
use super::quantize::{META, Quantized, SUMS};
use super::simd::{LANES, Simd};
use crate::weights::WeightType;
use crate::weights::blocks::small::{BNB_FP4_LEVELS, NF4_LEVELS};

/// Levels as whole numbers of two digits.
struct Digits {
    high: [u8; 16],
    low: [u8; 16],
}

impl Digits {
    /// Of `level * parts + parts`, for levels between -1 and 1.
    const fn new(levels: &[f32; 16], parts: i32) -> Digits {
        let mut digits = Digits { high: [0; 16], low: [0; 16] };
        let mut i = 0;
        while i < 16 {
            let exact = levels[i] as f64 * parts as f64 + parts as f64;
            let whole = (exact + 0.5) as i32;
            assert!(0 <= whole && whole < 1 << 14);
            (digits.high[i], digits.low[i]) = ((whole >> 7) as u8, (whole & 127) as u8);
            i += 1;
        }
        digits
    }
}

trait Levels: Block {
    const PARTS: i32;
    const DIGITS: &'static Digits;
}

impl Levels for Nf4 {
    const PARTS: i32 = 8005;
    const DIGITS: &'static Digits = &const { Digits::new(&NF4_LEVELS, Self::PARTS) };
}

impl Levels for BnbFp4 {
    const PARTS: i32 = 192;
    const DIGITS: &'static Digits = &const { Digits::new(&BNB_FP4_LEVELS, Self::PARTS) };
}

/// Rows of a tile.
pub(super) const TILES: Tiles = Tiles { avx512: &[8, 4, 2, 1], avx2: &[2, 1] };

/// Whether a product of such weights with such rows is computed here: not with two bytes a number.
pub(super) fn takes(dtype: WeightType, x: &Quantized) -> bool {
    dtype.has_levels() && x.planes() == 1
}

tiled! {
    [8, 4, 2, 1] [2, 1]
    /// Sums of some rows of `x` from one on, for the sixteen columns of a panel.
    ///
    /// # Safety
    /// The panel has `x.k` weights of each column; the rows are there; `sums` may be written to.
    fn tile<L: Levels>(panel: *const u8, x: (&Quantized, usize), sums: Sums) = tile_body;
}

/// # Safety
/// As [`tile`].
pub(super) unsafe fn multiply(
    isa: Isa,
    rows: usize,
    dtype: WeightType,
    panel: *const u8,
    x: (&Quantized, usize),
    sums: Sums,
) {
    // SAFETY: the caller's promise.
    unsafe {
        match dtype {
            WeightType::BnbFp4 => tile::<BnbFp4>(isa, rows, panel, x, sums),
            _ => tile::<Nf4>(isa, rows, panel, x, sums),
        }
    }
}

/// # Safety
/// The tier's instructions, and as [`tile`].
#[inline(always)]
unsafe fn tile_body<S: Simd, L: Levels, const M: usize>(
    panel: *const u8,
    (x, first): (&Quantized, usize),
    sums: Sums,
) {
    // SAFETY: the caller has the tier's instructions, and promises units for `k` columns, rows, and room for
    // their sums. A prefetch reads nothing.
    unsafe {
        let mut acc = [S::zero(); M];
        let (mut at, mut unit) = (x.at(0, first, 0), panel);
        for _ in 0..x.k / SUB {
            let mut line = 0;
            while line < L::UNIT {
                S::prefetch_l1(unit.wrapping_add(AHEAD + line));
                line += 64;
            }
            let (mut high, mut low) = ([S::zero_i(); M], [S::zero_i(); M]);
            macro_rules! eights {
                ($($g:literal)*) => {$(
                    let codes = S::load_i(unit.add(4 * LANES * (1 + $g)));
                    let mask = S::splat_i(0x0f0f_0f0f);
                    let halves = [S::and(codes, mask), S::and(S::shr(codes, 4), mask)];
                    for (half, codes) in halves.into_iter().enumerate() {
                        let digits = [
                            S::lookup16(L::DIGITS.high.as_ptr(), codes),
                            S::lookup16(L::DIGITS.low.as_ptr(), codes),
                        ];
                        for i in 0..M {
                            let x = S::load_4(at.q.add(i * at.k + 8 * $g + 4 * half).cast());
                            high[i] = S::dot(high[i], digits[0], x);
                            low[i] = S::dot(low[i], digits[1], x);
                        }
                    }
                )*};
            }
            eights!(0 1 2 3);
            let scale = S::mul(L::scale::<S>(unit), S::splat(1.0 / L::PARTS as f32));
            for i in 0..M {
                // (`sums` are negative.)
                let zero = S::splat_i(*at.sums.add(i * at.blocks * SUMS) * L::PARTS);
                let dot = S::add_i(S::add_i(S::shl_32(high[i], 7), low[i]), zero);
                let value = S::mul(S::to_f(dot), scale);
                acc[i] = S::fma(value, S::splat(*at.meta.add(i * at.blocks * META)), acc[i]);
            }
            (at, unit) = (at.skip(1), unit.wrapping_add(L::UNIT));
        }
        for (i, mut acc) in acc.into_iter().enumerate() {
            for outlier in x.outliers(first + i, 0..x.k) {
                let weights = L::load::<S>(panel, outlier.at as usize);
                acc = S::fma(S::splat(outlier.value), weights, acc);
            }
            S::store(sums.first.add(i * sums.stride), acc);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digits_are_the_levels_but_for_what_is_said() {
        fn worst<L: Levels>(levels: &[f32; 16]) -> f64 {
            let whole =
                |i: usize| i32::from(L::DIGITS.high[i]) * 128 + i32::from(L::DIGITS.low[i]) - L::PARTS;
            let off = |i: usize| (f64::from(whole(i)) / f64::from(L::PARTS) - f64::from(levels[i])).abs();
            assert!(
                L::DIGITS.high.iter().chain(&L::DIGITS.low).all(|&digit| digit < 128),
                "what a dot takes"
            );
            (0..16).map(off).fold(0.0, f64::max)
        }
        assert!(worst::<Nf4>(&NF4_LEVELS) < 4e-5);
        // The rounding of thirds to f32.
        assert!(worst::<BnbFp4>(&BNB_FP4_LEVELS) < 4e-8);
    }
}
