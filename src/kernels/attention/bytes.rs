//! The arithmetic of a KV block of bytes: dots of bytes, summed exactly in i32.
//!
//! A query is rotated as the keys are and gets a scale of its own. A score is the dot of its bytes with a
//! key's, times both scales. The weights of softmax take the scales of the values in, and become bytes by the
//! largest of the block. What is more than an eighth of their sum does not: such a weight would leave the
//! others few of the 127 steps, and is multiplied as a float, after the others, in the order of positions.
//! Whole numbers have one sum in any order, so bits depend on neither tiles nor tiers; positions that are not
//! seen have weight 0, and a byte, whatever lies there, is finite.

#![expect(clippy::needless_range_loop, reason = "iterators with closures stay calls in code for a tier")]

use super::kv_block::{Kernel, OUTLIERS, Parts, View, WIDE, where_seen};
use super::number::Number;
use super::{KV_BLOCK, Layer, Task};
use crate::cache::storage::int8::{self, LARGEST};
use crate::kernels::simd::{LANES, Simd};
use crate::step::PAGE;

/// Bytes of a group: four in each of 16 lanes.
const GROUP: usize = 4 * LANES;

/// Signs of the lanes of a butterfly over 1, 2, 4 and 8 lanes.
const SIGNS: [[f32; LANES]; 4] = signs();

const fn signs() -> [[f32; LANES]; 4] {
    let (mut signs, mut stage) = ([[1.0; LANES]; 4], 0);
    while stage < 4 {
        let mut l = 0;
        while l < LANES {
            if l >> stage & 1 == 1 {
                signs[stage][l] = -1.0;
            }
            l += 1;
        }
        stage += 1;
    }
    signs
}

/// [`int8::rotate`].
///
/// # Safety
/// The tier's instructions; `len` floats, a multiple of 16, may be written.
#[inline(always)]
pub(super) unsafe fn rotate<S: Simd>(row: *mut f32, len: usize) {
    let mut start = 0;
    while start < len {
        let block = 1 << (len - start).ilog2();
        // SAFETY: by the caller; the block lies within the row.
        unsafe { rotate_block::<S>(row.add(start), block) };
        start += block;
    }
}

#[inline(always)]
unsafe fn rotate_block<S: Simd>(row: *mut f32, block: usize) {
    // SAFETY: by the caller of `rotate`.
    unsafe {
        let mut d = 0;
        while d < block {
            let mut x = S::load(row.add(d));
            x = S::fma(x, S::load(SIGNS[0].as_ptr()), S::swapped::<1>(x));
            x = S::fma(x, S::load(SIGNS[1].as_ptr()), S::swapped::<2>(x));
            x = S::fma(x, S::load(SIGNS[2].as_ptr()), S::swapped::<4>(x));
            x = S::fma(x, S::load(SIGNS[3].as_ptr()), S::swapped::<8>(x));
            S::store(row.add(d), x);
            d += LANES;
        }
        let mut stride = LANES;
        while stride < block {
            let mut pair = 0;
            while pair < block {
                let mut d = pair;
                while d < pair + stride {
                    let (a, b) = (S::load(row.add(d)), S::load(row.add(d + stride)));
                    S::store(row.add(d), S::add(a, b));
                    S::store(row.add(d + stride), S::sub(a, b));
                    d += LANES;
                }
                pair += 2 * stride;
            }
            stride *= 2;
        }
        let (norm, mut d) = (S::splat(int8::norm(block)), 0);
        while d < block {
            S::store(row.add(d), S::mul(S::load(row.add(d)), norm));
            d += LANES;
        }
    }
}

/// The largest size in a row; NaN if one is not finite.
///
/// # Safety
/// The tier's instructions; `len` floats, a multiple of 16.
#[inline(always)]
pub(super) unsafe fn largest<S: Simd>(row: *const f32, len: usize) -> f32 {
    // SAFETY: by the caller.
    unsafe {
        let (mut largest, mut odd, mut d) = (S::zero(), S::zero(), 0);
        while d < len {
            let x = S::load(row.add(d));
            largest = S::max(S::abs(x), largest);
            // 0 times what is not finite is NaN.
            odd = S::fma(x, S::zero(), odd);
            d += LANES;
        }
        S::reduce_max(largest) + S::reduce_sum(odd)
    }
}

/// 16 numbers as whole ones in -127..=127.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
pub(super) unsafe fn byte_lanes<S: Simd>(x: S::F, inverse: S::F) -> S::I {
    // SAFETY: by the caller.
    unsafe {
        let x = S::min(S::mul(x, inverse), S::splat(LARGEST));
        S::round(S::max(x, S::splat(-LARGEST)))
    }
}

/// What keys and values are stored as: keys above zero by 128, values signed, scales behind them.
impl Kernel for u8 {
    #[inline(always)]
    fn tile<S: Simd>() -> (usize, usize) {
        // Sums of four queries by one page, their products and the keys with their signs take all registers
        // of AVX2.
        (WIDE, if S::QUERIES >= 4 { 4 } else { 1 })
    }

    /// Panels as a page of keys is laid out: `[count / 16, padded / 4, 16 queries, 4 bytes]`.
    #[inline(always)]
    unsafe fn load<S: Simd>(layer: &Layer<'_, u8>, task: &Task<'_>, parts: &Parts<u8>) {
        let (dim, padded) = (layer.a.head_dim, layer.pages.padded());
        for i in 0..task.queries() {
            let q = &layer.q[task.place(layer.a, i) * dim..][..dim];
            // SAFETY: the caller has the tier's instructions; a row has `padded` floats, a panel `padded`
            // groups of four bytes, and there is a state for each query.
            unsafe {
                let mut d = 0;
                while d < padded {
                    S::store(parts.row.add(d), S::load_some(&q[d.min(dim)..]));
                    d += LANES;
                }
                rotate::<S>(parts.row, padded);
                let largest = largest::<S>(parts.row, padded);
                let inverse = if largest > 0.0 { LARGEST / largest } else { 0.0 };
                let inverse = S::splat(if inverse.is_finite() { inverse } else { 0.0 });
                let panel = parts.q.add(i / LANES * LANES * padded + i % LANES * 4).cast::<i8>();
                let (mut sum, mut d) = (0, 0);
                while d < padded {
                    let mut lanes = [0i8; LANES];
                    S::store_i8(lanes.as_mut_ptr(), byte_lanes::<S>(S::load(parts.row.add(d)), inverse));
                    for l in 0..LANES {
                        sum += i32::from(lanes[l]);
                        *panel.add((d + l) / 4 * GROUP + l % 4) = lanes[l];
                    }
                    d += LANES;
                }
                let state = &mut *parts.states.add(i);
                state.scale = largest / LARGEST;
                state.start = if S::WIDE_IS_SIGNED { 0 } else { -i32::from(int8::KEY_OFFSET) * sum };
            }
        }
    }

    #[inline(always)]
    unsafe fn score<S: Simd, const M: usize, const P: usize>(
        view: &View<u8>,
        i: usize,
        page: usize,
        scale: f32,
    ) {
        // SAFETY: a block of keys has `padded / 4` groups, a panel of queries, too; scales stand behind the
        // values; a row of scores has all pages.
        unsafe {
            let q = view.parts.q.add(i / LANES * LANES * view.padded + i % LANES * 4);
            let (mut at, end) = (0, view.padded / 4 * GROUP);
            let mut acc = [[S::zero_i(); P]; M];
            for m in 0..M {
                acc[m] = [S::splat_i((*view.parts.states.add(i + m)).start); P];
            }
            while at < end {
                let mut key = [S::load_i(view.keys[page].add(at)); P];
                view.ahead::<S>(page, view.keys[page].add(at));
                for j in 1..P {
                    key[j] = S::load_i(view.keys[page + j].add(at));
                    view.ahead::<S>(page + j, view.keys[page + j].add(at));
                }
                for m in 0..M {
                    let x = S::load_4(q.add(at + m * 4));
                    for j in 0..P {
                        acc[m][j] = S::dot_wide(acc[m][j], key[j], x);
                    }
                }
                at += GROUP;
            }
            for j in 0..P {
                let scales = S::load_bf16(view.values[page + j].add(PAGE * view.padded));
                for m in 0..M {
                    let both = S::mul(scales, S::splat((*view.parts.states.add(i + m)).scale * scale));
                    let scores = view.parts.scores.add((i + m) * KV_BLOCK + (page + j) * PAGE);
                    S::store(scores, S::mul(S::to_f(acc[m][j]), both));
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn weigh<S: Simd>(view: &View<u8>, i: usize, (first, last): (usize, usize), max: f32) -> f32 {
        // SAFETY: a row of scores and one of weights have all pages of the block; there is a state for each
        // query, and scales stand behind the values.
        unsafe {
            let (scores, weights) =
                (view.parts.scores.add(i * KV_BLOCK), view.parts.weights.add(i * KV_BLOCK));
            let state = &mut *view.parts.states.add(i);
            state.outliers = 0;
            if view.sees[i].0 == view.sees[i].1 {
                state.weight_scale = 0.0;
                for page in first..last {
                    S::store_i8(weights.add(page * PAGE).cast(), S::zero_i());
                }
                return 0.0;
            }
            let (mut sum, mut all, max) = (S::zero(), S::zero(), S::splat(max));
            for page in first..last {
                // A page that other queries of the tile see is not at hand here.
                if !view.sees_some(i, page) {
                    S::store(scores.add(page * PAGE), S::zero());
                    continue;
                }
                let weight = <u16 as Number>::exp::<S>(S::sub(S::load(scores.add(page * PAGE)), max));
                sum = S::add(sum, weight);
                let scale = S::load_bf16(view.values[page].add(PAGE * (view.padded + 2)));
                let mut scaled = S::mul(weight, scale);
                if !view.sees_all(i, page) {
                    scaled = where_seen::<S, u8>(view, i, page, scaled, S::zero());
                }
                S::store(scores.add(page * PAGE), scaled);
                all = S::add(all, scaled);
            }
            let all = S::reduce_sum(all);
            let (limit, mut rest) = (S::splat(all / OUTLIERS as f32), S::zero());
            for page in first..last {
                let x = S::load(scores.add(page * PAGE));
                let mut above = S::lt_mask(limit, x);
                rest = S::max(S::select_lt(limit, x, S::zero(), x), rest);
                while above != 0 {
                    let position = page * PAGE + above.trailing_zeros() as usize;
                    above &= above - 1;
                    let at = state.outliers as usize;
                    if at < OUTLIERS {
                        state.weights[at] = *scores.add(position);
                        state.positions[at] = position as u32;
                        state.outliers += 1;
                        *scores.add(position) = 0.0;
                    }
                }
            }
            let rest = S::reduce_max(rest);
            // What is not finite shows in the sum.
            state.weight_scale = rest / LARGEST + all * 0.0;
            let inverse = LARGEST / rest;
            let inverse = S::splat(if inverse.is_finite() { inverse } else { 0.0 });
            for page in first..last {
                let bytes = byte_lanes::<S>(S::load(scores.add(page * PAGE)), inverse);
                S::store_i8(weights.add(page * PAGE).cast(), bytes);
            }
            S::reduce_sum(sum)
        }
    }

    #[inline(always)]
    unsafe fn mix<S: Simd, const M: usize, const D: usize>(
        view: &View<u8>,
        i: usize,
        d: usize,
        mixed: *mut f32,
    ) {
        let (first, last) = view.pages(i, M);
        // SAFETY: pages `first..last` are there, four times `padded / 16` groups of values each, as are their
        // weights; a row of mixed values has `padded` dimensions, and holds whole numbers until the last part
        // of a block is mixed in.
        unsafe {
            let mixed = mixed.add(i * view.padded + d);
            let mut acc = [[S::zero_i(); D]; M];
            if view.resume {
                for m in 0..M {
                    for j in 0..D {
                        acc[m][j] = S::load_i(mixed.add(m * view.padded + j * LANES).cast());
                    }
                }
            }
            for page in first..last {
                let mut values = view.values[page].add(4 * d);
                let mut weights = view.parts.weights.add(i * KV_BLOCK + page * PAGE);
                for _ in 0..PAGE / 4 {
                    let mut value = [S::load_i(values); D];
                    view.ahead::<S>(page, values);
                    for j in 1..D {
                        value[j] = S::load_i(values.add(j * GROUP));
                        view.ahead::<S>(page, values.add(j * GROUP));
                    }
                    for m in 0..M {
                        let weight = S::load_4(weights.add(m * KV_BLOCK));
                        for j in 0..D {
                            acc[m][j] = S::dot(acc[m][j], weight, value[j]);
                        }
                    }
                    values = values.add(4 * view.padded);
                    weights = weights.add(4);
                }
            }
            for m in 0..M {
                let mixed = mixed.add(m * view.padded);
                for j in 0..D {
                    match view.last {
                        true => {
                            let x = scaled::<S>(view, i + m, d + j * LANES, acc[m][j]);
                            S::store(mixed.add(j * LANES), x);
                        }
                        false => mixed.add(j * LANES).cast::<S::I>().write_unaligned(acc[m][j]),
                    }
                }
            }
        }
    }
}

/// The sums of query `i` in dimensions `d..d + 16` with their scale, and its outliers.
#[inline(always)]
unsafe fn scaled<S: Simd>(view: &View<u8>, i: usize, d: usize, sums: S::I) -> S::F {
    const { assert!(size_of::<S::I>() == GROUP) };
    // SAFETY: the caller has the tier's instructions; outliers lie in pages that the query sees.
    unsafe {
        let state = &*view.parts.states.add(i);
        let mut x = S::mul(S::to_f(sums), S::splat(state.weight_scale));
        for at in 0..state.outliers as usize {
            let position = state.positions[at] as usize;
            let (page, slot) = (position / PAGE, position % PAGE);
            let group = S::load_i(view.values[page].add(slot / 4 * 4 * view.padded + 4 * d));
            // Its bytes alone, as whole numbers.
            let value = S::dot(S::zero_i(), S::splat_i(1 << (slot % 4 * 8)), group);
            x = S::fma(S::to_f(value), S::splat(state.weights[at]), x);
        }
        x
    }
}
