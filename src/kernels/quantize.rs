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
