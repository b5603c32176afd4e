//! Activations as bytes: blocks of 32 with a scale each, and the sums that offsets of weights are multiplied by.
//!
//! `x ≈ scale * q`, `scale` a 127th of the block's greatest size. A block that holds infinity or NaN gets a NaN for
//! a scale, so that it stays visible in all that is computed from it.

use super::forms::SUB;
use super::isa::tiered;
use super::simd::{LANES, Simd};

/// Numbers kept for a block: its scale, and `scale * sum(q)` of all, the first and the last sixteen.
pub(super) const META: usize = 4;

/// Blocks of smaller numbers are zeros: a 127th of them has no inverse in f32.
const LEAST: f32 = 1e-36;

/// Rows of activations in bytes; `k` is a multiple of 32.
#[derive(Default)]
pub(super) struct Quantized {
    /// `[rows, k]`
    pub(super) q: Vec<i8>,
    /// `[rows, k / 32, META]`
    pub(super) meta: Vec<f32>,
    /// `sum(q)`, `[rows, k / 32]`
    pub(super) sums: Vec<i32>,
}

impl Quantized {
    /// Makes room for `rows` rows of `k`; what is in it is not defined.
    pub(super) fn resize(&mut self, rows: usize, k: usize) {
        self.q.resize(rows * k, 0);
        self.meta.resize(rows * k / SUB * META, 0.0);
        self.sums.resize(rows * k / SUB, 0);
    }
}

tiered! {
    /// Quantizes whole blocks: `q` has the length of `x`, `meta` and `sums` those that belong to it.
    pub(super) fn quantize(x: &[f32], q: &mut [i8], meta: &mut [f32], sums: &mut [i32]) = quantize_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn quantize_body<S: Simd>(x: &[f32], q: &mut [i8], meta: &mut [f32], sums: &mut [i32]) {
    let (x, q) = (x.as_chunks::<SUB>().0, q.as_chunks_mut::<SUB>().0);
    let meta = meta.as_chunks_mut::<META>().0;
    for (((x, q), meta), sum) in x.iter().zip(q).zip(meta).zip(sums) {
        // SAFETY: the arrays have two vectors of sixteen.
        unsafe {
            let (a, b) = (S::load(x.as_ptr()), S::load(x.as_ptr().add(LANES)));
            let greatest = S::greatest(S::max(S::abs(a), S::abs(b)));
            let zero = S::sum(S::add(S::mul(a, S::zero()), S::mul(b, S::zero()))); // or NaN
            let greatest = if greatest < LEAST { 0.0 } else { greatest };
            let scale = greatest / 127.0 + zero;
            let inverse = S::splat(if greatest > 0.0 { 127.0 / greatest } else { 0.0 });
            let (a, b) = (S::round(S::mul(a, inverse)), S::round(S::mul(b, inverse)));
            S::store_i8(q.as_mut_ptr(), a);
            S::store_i8(q.as_mut_ptr().add(LANES), b);
            // Whole numbers: exact in any order.
            let (low, high) = (S::sum(S::to_f(a)), S::sum(S::to_f(b)));
            *meta = [scale, scale * (low + high), scale * low, scale * high];
            *sum = (low + high) as i32;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::Isa;

    /// Scales, whole numbers, and the sums that are kept, of whole blocks.
    fn run(isa: Isa, x: &[f32]) -> Quantized {
        let mut out = Quantized::default();
        out.resize(1, x.len());
        quantize(isa, x, &mut out.q, &mut out.meta, &mut out.sums);
        out
    }

    /// Numbers without a pattern, between -size and size.
    fn floats(count: usize, size: f32) -> Vec<f32> {
        let number = |at: usize| ((at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32;
        (0..count).map(|at| (number(at) / (1u64 << 23) as f32 - 1.0) * size).collect()
    }

    #[test]
    fn numbers_are_within_half_a_step_and_sums_are_theirs() {
        for (isa, size) in Isa::available()
            .into_iter()
            .flat_map(|isa| [2.0 * LEAST, 1e-30, 1e-3, 1.0, 700.0, 3e38].map(|size| (isa, size)))
        {
            let x = floats(40 * SUB, size);
            let Quantized { q, meta, sums } = run(isa, &x);
            for (block, x) in x.chunks_exact(SUB).enumerate() {
                let (q, meta) = (&q[block * SUB..][..SUB], &meta[block * META..][..META]);
                let greatest = x.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                assert_eq!(meta[0], greatest / 127.0);
                assert_eq!(q.iter().map(|q| q.unsigned_abs()).max(), Some(127), "the greatest is 127");
                let step = f64::from(meta[0]);
                for (&x, &q) in x.iter().zip(q) {
                    let off = (f64::from(x) - step * f64::from(q)).abs();
                    assert!(off <= step * 0.50001, "{} at {size:e}: {x} became {q}", isa.name());
                }
                let sum = |q: &[i8]| q.iter().map(|&q| i32::from(q)).sum::<i32>();
                let (low, high) = (sum(&q[..16]), sum(&q[16..]));
                assert_eq!(sums[block], low + high);
                assert_eq!(meta[1..], [low + high, low, high].map(|sum| meta[0] * sum as f32));
            }
        }
    }

    #[test]
    fn halves_go_to_even() {
        let mut x = [0.0; SUB];
        x[..8].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -126.5]);
        for isa in Isa::available() {
            assert_eq!(run(isa, &x).q[..8], [127, 0, 2, 2, 0, -2, -2, -126], "{}", isa.name());
        }
    }

    /// Zeros, and blocks that are too small for a scale with an inverse: all of it is zero.
    #[test]
    fn nothing_is_zero() {
        for isa in Isa::available() {
            for size in [0.0, -0.0, 1e-45, 1e-41, 1e-38, 1e-37, 0.99 * LEAST] {
                let Quantized { q, meta, sums } = run(isa, &[size; SUB]);
                assert!(q.iter().all(|&q| q == 0), "{size:e} on {}: {q:?}", isa.name());
                assert!(meta.iter().all(|&x| x == 0.0) && sums == [0], "{size:e} on {}", isa.name());
            }
        }
    }

    #[test]
    fn what_is_not_finite_spoils_its_own_block_and_only_that() {
        for isa in Isa::available() {
            for (at, bad) in
                (0..SUB).flat_map(|at| [f32::INFINITY, f32::NEG_INFINITY, f32::NAN].map(|bad| (at, bad)))
            {
                let clean = floats(3 * SUB, 1.0);
                let mut x = clean.clone();
                x[SUB + at] = bad;
                let (found, wanted) = (run(isa, &x), run(isa, &clean));
                assert!(
                    found.meta[META..2 * META].iter().all(|x| x.is_nan()),
                    "{bad} at {at} on {}",
                    isa.name()
                );
                for block in [0, 2] {
                    let (q, meta) = (block * SUB..(block + 1) * SUB, block * META..(block + 1) * META);
                    assert!(
                        found.q[q.clone()] == wanted.q[q] && found.meta[meta.clone()] == wanted.meta[meta]
                    );
                }
            }
        }
    }

    /// The largest numbers there are: their sum is infinite, but they are not.
    #[test]
    fn what_is_finite_has_a_finite_scale() {
        let mut x = [0.0; SUB];
        (x[3], x[4], x[19], x[20]) = (f32::MAX, -f32::MAX, f32::MAX, -f32::MAX);
        for isa in Isa::available() {
            let Quantized { q, meta, .. } = run(isa, &x);
            assert_eq!((q[3], q[4], q[19], q[20]), (127, -127, 127, -127), "{}", isa.name());
            assert_eq!(meta, [f32::MAX / 127.0, 0.0, 0.0, 0.0], "{}", isa.name());
        }
    }
}
