//! RMS norm and layer norm over groups of a row; sums in sixteen lanes, folded once at the end.

use super::isa::tiered;
use super::simd::{LANES, Simd};

/// A norm with its weights; the length of a group is the weights'.
#[derive(Clone, Copy)]
pub(super) struct Norm<'a> {
    /// Root mean square, or layer norm.
    pub(super) rms: bool,
    pub(super) weight: &'a [f32],
    pub(super) bias: Option<&'a [f32]>,
    pub(super) eps: f32,
}

tiered! {
    /// `out = norm(x)`, or `out += norm(x)`.
    pub(super) fn norm(norm: Norm<'_>, add: bool, x: &[f32], out: &mut [f32]) = norm_body;
}
tiered! {
    /// `x = norm(x)`.
    pub(super) fn norm_in_place(norm: Norm<'_>, x: &mut [f32]) = in_place_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn norm_body<S: Simd>(norm: Norm<'_>, add: bool, x: &[f32], out: &mut [f32]) {
    let group = norm.weight.len();
    for (x, out) in x.chunks_exact(group).zip(out.chunks_exact_mut(group)) {
        // SAFETY: the caller's promise; both are groups.
        unsafe {
            let (mean, scale) = statistics::<S>(norm, x);
            apply::<S>(norm, mean, scale, x.as_ptr(), out, add);
        }
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn in_place_body<S: Simd>(norm: Norm<'_>, x: &mut [f32]) {
    for x in x.chunks_exact_mut(norm.weight.len()) {
        // SAFETY: the caller's promise; each element is read before it is written.
        unsafe {
            let (mean, scale) = statistics::<S>(norm, x);
            apply::<S>(norm, mean, scale, x.as_ptr(), x, false);
        }
    }
}

/// What is taken away (0 in RMS norm), and the factor.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn statistics<S: Simd>(norm: Norm<'_>, x: &[f32]) -> (f32, f32) {
    // SAFETY: the caller has the tier's instructions.
    unsafe {
        let len = x.len() as f32;
        let mean = if norm.rms { 0.0 } else { S::reduce_sum(sum::<S>(x)) / len };
        let squares = squares::<S>(x, mean);
        (mean, 1.0 / (S::reduce_sum(squares) / len + norm.eps).sqrt())
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn sum<S: Simd>(x: &[f32]) -> S::F {
    let (full, tail) = x.as_chunks::<LANES>();
    // SAFETY: the caller has the tier's instructions; each chunk is sixteen floats.
    unsafe {
        let mut acc = S::zero();
        for lanes in full {
            acc = S::add(acc, S::load(lanes.as_ptr()));
        }
        S::add(acc, S::load_some(tail))
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
pub(super) unsafe fn squares<S: Simd>(x: &[f32], mean: f32) -> S::F {
    let (full, tail) = x.as_chunks::<LANES>();
    // SAFETY: as in `sum`.
    unsafe {
        let mut acc = S::zero();
        for lanes in full {
            let x = S::sub(S::load(lanes.as_ptr()), S::splat(mean));
            acc = S::fma(x, x, acc);
        }
        if !tail.is_empty() {
            let mut lanes = [mean; LANES];
            lanes[..tail.len()].copy_from_slice(tail);
            let x = S::sub(S::load(lanes.as_ptr()), S::splat(mean));
            acc = S::fma(x, x, acc);
        }
        acc
    }
}

/// # Safety
/// The tier's instructions; `x` is as long as `out`, and may be it.
#[inline(always)]
unsafe fn apply<S: Simd>(norm: Norm<'_>, mean: f32, scale: f32, x: *const f32, out: &mut [f32], add: bool) {
    // SAFETY: the caller has the tier's instructions, and promises as many floats at `x` as `out` has. Each
    // part is read before it is written, so that both may be the same.
    unsafe {
        let (mean, scale) = (S::splat(mean), S::splat(scale));
        let mut at = 0;
        while at < out.len() {
            let end = out.len().min(at + LANES);
            let part = &mut out[at..end];
            let mut y = S::load_some(std::slice::from_raw_parts(x.add(at), part.len()));
            if !norm.rms {
                y = S::sub(y, mean);
            }
            y = S::mul(S::mul(y, scale), S::load_some(&norm.weight[at..end]));
            if let Some(bias) = norm.bias {
                y = S::add(y, S::load_some(&bias[at..end]));
            }
            if add {
                y = S::add(S::load_some(part), y);
            }
            S::store_some(part, y);
            at = end;
        }
    }
}
