//! Merges partial softmaxes, as flash-decoding does: each is scaled by `e^(its maximum - the maximum of
//! all)`. A sink joins at the very end, as one more score with no value, so that it does not matter how the
//! others were split.

use super::{Attention, Partial, Task};
use crate::kernels::disjoint::DisjointSlices;
use crate::kernels::isa::tiered;
use crate::kernels::math;
use crate::kernels::simd::{LANES, Simd};

tiered! {
    /// Merges one more KV block in; those before it are in `so_far`.
    pub(super) fn merge(so_far: &mut Partial<'_>, here: &Partial<'_>) = merge_body;
}

tiered! {
    /// Divides by the sums and writes the task's queries to `out`, `[rows, heads * head_dim]`.
    ///
    /// # Safety
    /// No other task has these queries.
    pub(super) fn finish(
        a: &Attention<'_>,
        task: &Task<'_>,
        partial: &Partial<'_>,
        out: &DisjointSlices<'_, f32>,
    ) = [unsafe] finish_body;
}

/// `e^(own - max)`; 1 for the maximum itself, even if that is infinite.
#[inline(always)]
unsafe fn share<S: Simd>(own: f32, max: f32) -> S::F {
    // SAFETY: the caller has the tier's instructions.
    unsafe {
        match own < max {
            true => math::exp::<S>(S::splat(own - max)),
            false => S::splat(1.0),
        }
    }
}

/// A sum of weights, which are relative to the score `max`, with that of a sink. A sink so far above all
/// scores that its weight is infinite leaves nothing of them.
#[inline(always)]
unsafe fn with_sink<S: Simd>(sum: S::F, max: f32, sink: f32) -> S::F {
    // SAFETY: the caller has the tier's instructions.
    unsafe { S::add(sum, math::exp::<S>(S::splat(sink - max))) }
}

#[inline(always)]
unsafe fn merge_body<S: Simd>(so_far: &mut Partial<'_>, here: &Partial<'_>) {
    let queries = so_far.max.len();
    let padded = so_far.mixed.len() / queries;
    assert!(here.mixed.len() == queries * padded && padded.is_multiple_of(LANES));
    for i in 0..queries {
        let (before, now) = (so_far.max[i], here.max[i]);
        let max = if before > now { before } else { now };
        so_far.max[i] = max;
        // SAFETY: the caller has the tier's instructions; rows of `padded` floats, whole vectors, lie in
        // both.
        unsafe {
            let (old, new) = (share::<S>(before, max), share::<S>(now, max));
            let sum = S::mul(S::splat(so_far.sums[i]), old);
            let sum = S::fma(S::splat(here.sums[i]), new, sum);
            S::store_some(&mut so_far.sums[i..i + 1], sum);
            let (to, from) = (so_far.mixed.as_mut_ptr().add(i * padded), here.mixed.as_ptr().add(i * padded));
            let mut d = 0;
            while d < padded {
                let scaled = S::mul(S::load(to.add(d)), old);
                S::store(to.add(d), S::fma(S::load(from.add(d)), new, scaled));
                d += LANES;
            }
        }
    }
}

#[inline(always)]
unsafe fn finish_body<S: Simd>(
    a: &Attention<'_>,
    task: &Task<'_>,
    partial: &Partial<'_>,
    out: &DisjointSlices<'_, f32>,
) {
    let queries = partial.max.len();
    let padded = partial.mixed.len() / queries;
    for i in 0..queries {
        let place = task.place(a, i);
        let start = place * a.head_dim;
        // SAFETY: this query of this head belongs to this task alone.
        let out = unsafe { out.slice_mut(start..start + a.head_dim) };
        // SAFETY: as in `merge_body`.
        unsafe {
            let mut sum = S::splat(partial.sums[i]);
            if let Some(sinks) = a.sinks {
                sum = with_sink::<S>(sum, partial.max[i], sinks[place % a.heads]);
            }
            let from = partial.mixed.as_ptr().add(i * padded);
            let mut d = 0;
            while d < a.head_dim {
                // A zero that was summed up with others may be a negative one, alone it is not: made
                // positive.
                let value = S::add(S::div(S::load(from.add(d)), sum), S::zero());
                S::store_some(&mut out[d..], value);
                d += LANES;
            }
        }
    }
}
