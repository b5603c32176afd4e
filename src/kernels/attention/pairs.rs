//! The arithmetic of a KV block whose numbers come in pairs: f32 or bfloat16, products summed in f32.

#![expect(clippy::needless_range_loop, reason = "iterators with closures stay calls in code for a tier")]

use super::kv_block::{Kernel, Parts, View, WIDE};
use super::number::Number;
use super::{KV_BLOCK, Layer, Task};
use crate::kernels::simd::{LANES, Simd};
use crate::step::PAGE;

/// Numbers of a group: pairs in 16 lanes.
const GROUP: usize = 2 * LANES;

impl<N: Number> Kernel for N {
    #[inline(always)]
    fn tile<S: Simd>() -> (usize, usize) {
        (WIDE.min(S::QUERIES), S::QUERIES)
    }

    /// Rounds the queries to the cache's type and turns them on their side, with zeros behind them, laid out
    /// as a page of keys is: `[count / 16, padded / 2]` groups.
    #[inline(always)]
    unsafe fn load<S: Simd>(layer: &Layer<'_, N>, task: &Task<'_>, parts: &Parts<N>) {
        let (dim, padded) = (layer.a.head_dim, layer.pages.padded());
        for i in 0..task.queries() {
            let q = &layer.q[task.place(layer.a, i) * dim..][..dim];
            let mut d = 0;
            while d < padded {
                let mut lanes = [N::from_f32(0.0); LANES];
                // SAFETY: the caller has the tier's instructions; a panel has `padded / 2` groups of 32
                // numbers.
                unsafe {
                    N::store::<S>(lanes.as_mut_ptr(), S::load_some(&q[d.min(dim)..]));
                    let groups = parts.q.add(i / LANES * LANES * padded + d * LANES);
                    for l in 0..LANES {
                        *groups.add(l / 2 * GROUP + N::place(i % LANES, l % 2)) = lanes[l];
                    }
                }
                d += LANES;
            }
        }
    }

    #[inline(always)]
    unsafe fn score<S: Simd, const M: usize, const P: usize>(
        view: &View<N>,
        i: usize,
        page: usize,
        scale: f32,
    ) {
        // SAFETY: a block of keys has `padded / 2` groups, a panel of queries, too; a row of scores has all
        // pages.
        unsafe {
            let keys = &view.keys[page..page + P];
            // One counter for all pointers: the loop has no registers to spare.
            let q = view.parts.q.add(i / LANES * LANES * view.padded + N::place(i % LANES, 0));
            let (mut at, end) = (0, view.padded / 2 * GROUP);
            let mut acc = [[S::zero(); P]; M];
            while at < end {
                let mut key = [N::load::<S>(keys[0].add(at)); P];
                view.ahead::<S>(page, keys[0].add(at));
                for j in 1..P {
                    key[j] = N::load::<S>(keys[j].add(at));
                    view.ahead::<S>(page + j, keys[j].add(at));
                }
                for m in 0..M {
                    let x = N::splat_lane::<S>(q.add(at + N::place(m, 0)));
                    for j in 0..P {
                        acc[m][j] = N::dot::<S>(acc[m][j], x, key[j]);
                    }
                }
                at += GROUP;
            }
            let scores = view.parts.scores.add(i * KV_BLOCK + page * PAGE);
            for m in 0..M {
                for j in 0..P {
                    S::store(scores.add(m * KV_BLOCK + j * PAGE), S::mul(acc[m][j], S::splat(scale)));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh<S: Simd>(view: &View<N>, i: usize, (first, last): (usize, usize), max: f32) -> f32 {
        // SAFETY: a row of scores and one of weights have all pages of the block.
        unsafe {
            let (scores, weights) =
                (view.parts.scores.add(i * KV_BLOCK), view.parts.weights.add(i * KV_BLOCK));
            if view.sees[i].0 == view.sees[i].1 {
                for page in first..last {
                    N::store::<S>(weights.add(page * PAGE), S::zero());
                }
                return 0.0;
            }
            let (mut sum, max) = (S::zero(), S::splat(max));
            for page in first..last {
                let weight = N::exp::<S>(S::sub(S::load(scores.add(page * PAGE)), max));
                sum = S::add(sum, N::store::<S>(weights.add(page * PAGE), weight));
            }
            S::reduce_sum(sum)
        }
    }

    #[inline(always)]
    unsafe fn mix<S: Simd, const M: usize, const D: usize>(
        view: &View<N>,
        i: usize,
        d: usize,
        mixed: *mut f32,
    ) {
        // What all of the queries see: outside of it a weight of zero is not enough, since zero times NaN is
        // NaN.
        let (from, to) = (view.sees[i + M - 1].0.div_ceil(PAGE), view.sees[i].1 / PAGE);
        let (first, last) = view.pages(i, M);
        // SAFETY: pages `first..last` are there; a row of mixed values has `padded` dimensions.
        unsafe {
            let mut acc = [[S::zero(); D]; M];
            if view.resume {
                for m in 0..M {
                    for j in 0..D {
                        acc[m][j] = S::load(mixed.add((i + m) * view.padded + d + j * LANES));
                    }
                }
            }
            let mut page = first;
            while page < from.min(last) {
                mix_page::<S, N, M, D, true>(view, i, d, page, &mut acc);
                page += 1;
            }
            while page < to.min(last) {
                mix_page::<S, N, M, D, false>(view, i, d, page, &mut acc);
                page += 1;
            }
            while page < last {
                mix_page::<S, N, M, D, true>(view, i, d, page, &mut acc);
                page += 1;
            }
            for m in 0..M {
                for j in 0..D {
                    S::store(mixed.add((i + m) * view.padded + d + j * LANES), acc[m][j]);
                }
            }
        }
    }
}

/// Mixes one page in. `MASKED`: some of the queries do not see some of it.
#[inline(always)]
unsafe fn mix_page<S: Simd, N: Number, const M: usize, const D: usize, const MASKED: bool>(
    view: &View<N>,
    i: usize,
    d: usize,
    page: usize,
    acc: &mut [[S::F; D]; M],
) {
    // SAFETY: a block of values has 8 times `padded / 16` groups, a row of weights all pages.
    unsafe {
        let mut values = view.values[page].add(2 * d);
        let mut weights = view.parts.weights.add(i * KV_BLOCK + page * PAGE);
        let mut slot = 0;
        while slot < PAGE {
            let mut value = [N::load::<S>(values); D];
            view.ahead::<S>(page, values);
            for j in 1..D {
                value[j] = N::load::<S>(values.add(j * GROUP));
                view.ahead::<S>(page, values.add(j * GROUP));
            }
            for m in 0..M {
                let weight = N::splat::<S>(weights.add(m * KV_BLOCK));
                let ((from, to), at) = (view.sees[i + m], page * PAGE + slot);
                for j in 0..D {
                    let mut value = value[j];
                    if MASKED {
                        value = N::keep::<S>(value, from <= at && at < to, from <= at + 1 && at + 1 < to);
                    }
                    acc[m][j] = N::dot::<S>(acc[m][j], weight, value);
                }
            }
            values = values.add(2 * view.padded);
            weights = weights.add(2);
            slot += 2;
        }
    }
}
