//! One KV block for the queries of a task: scores `QK^T`, weights, and the values weighted by them.
//!
//! Queries are taken in register tiles, each over the pages that any of its queries sees. Three passes over
//! the block: all scores, all weights, all weighted values. What is loaded in a pass (four pages of keys,
//! some dimensions of the values) stays in L1 for all queries.

#![expect(clippy::needless_range_loop, reason = "iterators with closures stay calls in code for a tier")]

use std::ops::Range;

use super::number::Number;
use super::{Attention, KV_BLOCK, KV_BLOCK_PAGES, Layer, Partial, TILE, Task};
use crate::kernels::isa::{Isa, tiered};
use crate::kernels::math;
use crate::kernels::simd::{LANES, Simd};
use crate::step::PAGE;

/// Queries of a register tile, at most; tiers with fewer registers take fewer.
const WIDE: usize = 4;
/// Floats of a cache line, to which scratch is aligned.
const LINE: usize = 16;
/// Numbers of a group: pairs in 16 lanes.
const GROUP: usize = 2 * LANES;

/// Bytes that are prefetched at a time.
const PREFETCH_BYTES: usize = 512;

/// The parts of a task's scratch: queries, scores and weights.
struct Parts<N> {
    /// Panels of 16 queries, laid out as a page of keys is: `[count / 16, padded / 2]` groups.
    q: *mut N,
    /// `[count, KV_BLOCK]`.
    scores: *mut f32,
    /// `[count, KV_BLOCK]`.
    weights: *mut N,
}

impl<N: Number> Parts<N> {
    fn new(scratch: &mut Vec<f32>, count: usize, padded: usize) -> Self {
        let panels = count.next_multiple_of(LANES) * padded;
        let len = LINE + panels + 2 * count * KV_BLOCK;
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        let skip = scratch.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let (q, rest) = scratch[skip..].split_at_mut(panels);
        let (scores, weights) = rest.split_at_mut(count * KV_BLOCK);
        assert!(weights.len() >= count * KV_BLOCK && size_of::<N>() <= size_of::<f32>());
        Parts { q: q.as_mut_ptr().cast(), scores: scores.as_mut_ptr(), weights: weights.as_mut_ptr().cast() }
    }
}

/// A KV block as some queries of a task see it. Pointers go to the pages and to scratch; all are good as long
/// as [`attend`] runs.
struct View<N> {
    /// Queries.
    count: usize,
    /// Dimensions of a head with the zeros behind them.
    padded: usize,
    /// Positions that each query of the task sees, counted from the block's first.
    sees: [(usize, usize); TILE],
    /// Which of them, and which pages, are looked at now; what was mixed before is gone on with.
    queries: Range<usize>,
    limits: Range<usize>,
    resume: bool,
    /// Blocks of the pages that any of these queries sees.
    keys: [*const N; KV_BLOCK_PAGES],
    values: [*const N; KV_BLOCK_PAGES],
    /// Parts of the pages that will be looked at next: memory delivers them while this computes.
    ahead: Vec<*const N>,
    parts: Parts<N>,
}

impl<N: Number> View<N> {
    fn new(layer: &Layer<'_, N>, task: &Task<'_>, at: usize, parts: Parts<N>) -> Self {
        let (count, padded) = (task.queries(), layer.pages.padded());
        let mut sees = [(0, 0); TILE];
        let base = at * KV_BLOCK;
        for (i, sees) in sees[..count].iter_mut().enumerate() {
            let seen = task.sees(layer.a, i);
            let to = seen.end.clamp(base, base + KV_BLOCK) - base;
            *sees = ((seen.start.clamp(base, base + KV_BLOCK) - base).min(to), to);
        }
        let null = [std::ptr::null(); KV_BLOCK_PAGES];
        let (queries, limits) = (0..count, 0..KV_BLOCK_PAGES);
        let (keys, values, ahead) = (null, null, Vec::new());
        View { count, padded, sees, queries, limits, resume: false, keys, values, ahead, parts }
    }

    /// Lists the pages that each row has of its own, to be prefetched.
    fn plan_prefetch<'a>(&mut self, layer: &Layer<'a, N>, task: &Task<'_>, at: usize, common: usize) {
        let group = layer.a.heads / layer.a.kv_heads;
        self.limits = common..KV_BLOCK_PAGES;
        for (number, row) in task.rows.iter().enumerate() {
            let (from, to) = self.pages(number * group, 1);
            for &id in row.pages_from(at).get(from..to).unwrap_or(&[]) {
                let (keys, values) = layer.pages.blocks(id, task.kv_head);
                let parts = |block: &'a [N]| block.chunks(PREFETCH_BYTES / size_of::<N>());
                self.ahead.extend(parts(keys).chain(parts(values)).map(<[N]>::as_ptr));
            }
        }
    }

    /// Prefetches parts of `ahead` into L2.
    ///
    /// # Safety
    /// The tier's instructions.
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, parts: Range<usize>) {
        for part in &self.ahead[parts] {
            let mut line = 0;
            while line < PREFETCH_BYTES {
                // SAFETY: the caller has the tier's instructions; a prefetch reads nothing.
                unsafe { S::prefetch_l2(part.cast::<u8>().wrapping_add(line)) };
                line += 64;
            }
        }
    }

    /// Looks at these queries alone, and at these pages of theirs in the block.
    fn look(
        &mut self,
        layer: &Layer<'_, N>,
        kv_head: usize,
        ids: &[u32],
        queries: Range<usize>,
        limits: Range<usize>,
    ) {
        (self.queries, self.limits) = (queries, limits);
        let (from, to) = self.pages(self.queries.start, self.queries.len());
        for page in from..to {
            let (keys, values) = layer.pages.blocks(ids[page], kv_head);
            (self.keys[page], self.values[page]) = (keys.as_ptr(), values.as_ptr());
        }
    }

    /// The pages that are looked at and that any of `rows` queries from `i` on sees. (Later queries see later
    /// positions.)
    #[inline(always)]
    fn pages(&self, i: usize, rows: usize) -> (usize, usize) {
        let (from, to) = (self.sees[i].0 / PAGE, self.sees[i + rows - 1].1.div_ceil(PAGE));
        let to = to.min(self.limits.end);
        (from.max(self.limits.start).min(to), to)
    }
}

/// Puts a task's queries into scratch, where [`attend`] finds them.
pub(super) fn load_queries<N: Number>(
    isa: Isa,
    layer: &Layer<'_, N>,
    task: &Task<'_>,
    scratch: &mut Vec<f32>,
) {
    let parts = Parts::new(scratch, task.queries(), layer.pages.padded());
    load(isa, layer, task, &parts);
}

/// The partial softmax of the task's queries over KV block `at`.
pub(super) fn attend<N: Number>(
    isa: Isa,
    layer: &Layer<'_, N>,
    task: &Task<'_>,
    at: usize,
    scratch: &mut Vec<f32>,
    partial: &mut Partial<'_>,
) {
    let parts = Parts::new(scratch, task.queries(), layer.pages.padded());
    let mut view = View::new(layer, task, at, parts);
    assert!(partial.mixed.len() == view.count * view.padded);
    let common = if task.multi_sequence { Some(task.common_pages(at)) } else { None };
    if let Some(common) = common.filter(|common| *common > 0) {
        view.plan_prefetch(layer, task, at, common);
    }
    each_part(layer, task, at, common, &mut view, |view| scores(isa, layer.a.scale, view));
    (view.queries, view.limits) = (0..view.count, 0..KV_BLOCK_PAGES);
    weights(isa, layer.a, &view, partial, common.is_some());
    each_part(layer, task, at, common, &mut view, |view| mixes(isa, view, partial));
}

/// Looks at the pages that all rows have in common, then at each row's own; or simply at all, in one
/// sequence.
fn each_part<N: Number>(
    layer: &Layer<'_, N>,
    task: &Task<'_>,
    at: usize,
    common: Option<usize>,
    view: &mut View<N>,
    mut f: impl FnMut(&View<N>),
) {
    let (all, limits) = (0..view.count, 0..KV_BLOCK_PAGES);
    view.resume = false;
    let Some(common) = common else {
        view.look(layer, task.kv_head, task.rows[0].pages_from(at), all, limits);
        return f(view);
    };
    if common > 0 {
        view.look(layer, task.kv_head, task.rows[0].pages_from(at), all, 0..common);
        f(view);
        view.resume = true;
    }
    let group = layer.a.heads / layer.a.kv_heads;
    for (number, row) in task.rows.iter().enumerate() {
        let own = number * group..(number + 1) * group;
        view.look(layer, task.kv_head, row.pages_from(at), own, common..KV_BLOCK_PAGES);
        f(view);
    }
}

tiered! {
    fn load<N: Number>(layer: &Layer<'_, N>, task: &Task<'_>, parts: &Parts<N>) = load_body;
}

/// Rounds the queries to the cache's type and turns them on their side, with zeros behind them.
#[inline(always)]
unsafe fn load_body<S: Simd, N: Number>(layer: &Layer<'_, N>, task: &Task<'_>, parts: &Parts<N>) {
    let (dim, padded) = (layer.a.head_dim, layer.pages.padded());
    for i in 0..task.queries() {
        let q = &layer.q[task.place(layer.a, i) * dim..][..dim];
        let mut d = 0;
        while d < padded {
            let mut lanes = [N::from_f32(0.0); LANES];
            // SAFETY: the caller has the tier's instructions; a panel has `padded / 2` groups of 32 numbers.
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

/// Calls `f::<S, N, rows>` with the constant for `rows`, which is 1 to 4.
macro_rules! by_rows {
    ($rows:expr, $f:ident::<$s:ident, $n:ident>($($arg:expr),*)) => {
        match $rows {
            1 => $f::<$s, $n, 1>($($arg),*),
            2 => $f::<$s, $n, 2>($($arg),*),
            3 => $f::<$s, $n, 3>($($arg),*),
            _ => $f::<$s, $n, 4>($($arg),*),
        }
    };
}

tiered! {
    /// All scores, four pages at a time.
    fn scores<N: Number>(scale: f32, view: &View<N>) = scores_body;
}

#[inline(always)]
unsafe fn scores_body<S: Simd, N: Number>(scale: f32, view: &View<N>) {
    let queries = view.queries.clone();
    let (mut page, last) = view.pages(queries.start, queries.len());
    // Prefetches are distributed over what is computed.
    let (mut done, all) = (0, if view.resume { 0 } else { view.ahead.len() });
    let share = all.div_ceil(((last - page).div_ceil(WIDE) * queries.len().div_ceil(WIDE)).max(1));
    while page < last {
        let mut i = queries.start;
        while i < queries.end {
            // Within a panel.
            let rows = WIDE.min(S::QUERIES).min(queries.end - i).min(LANES - i % LANES);
            // SAFETY: the caller has the tier's instructions; these queries are there.
            unsafe { by_rows!(rows, score::<S, N>(view, i, page, scale)) };
            // SAFETY: the caller has the tier's instructions.
            unsafe { view.prefetch::<S>(done..all.min(done + share)) };
            done = all.min(done + share);
            i += rows;
        }
        page += WIDE;
    }
}

/// Scores of `M` queries from `i` on against up to four pages from `page` on.
#[inline(always)]
unsafe fn score<S: Simd, N: Number, const M: usize>(view: &View<N>, i: usize, page: usize, scale: f32) {
    let (from, to) = view.pages(i, M);
    let (mut page, to) = (page.max(from), to.min(page + WIDE));
    // SAFETY: pages `from..to` are there, as are the queries.
    unsafe {
        while S::QUERIES >= 4 && page + 4 <= to {
            score_pages::<S, N, M, 4>(view, i, page, scale);
            page += 4;
        }
        while page + 2 <= to {
            score_pages::<S, N, M, 2>(view, i, page, scale);
            page += 2;
        }
        if page < to {
            score_pages::<S, N, M, 1>(view, i, page, scale);
        }
    }
}

#[inline(always)]
unsafe fn score_pages<S: Simd, N: Number, const M: usize, const P: usize>(
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
            for j in 1..P {
                key[j] = N::load::<S>(keys[j].add(at));
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

tiered! {
    /// All weights, with their sums and the max scores.
    fn weights<N: Number>(
        a: &Attention<'_>,
        view: &View<N>,
        partial: &mut Partial<'_>,
        multi_sequence: bool,
    ) = weights_body;
}

#[inline(always)]
unsafe fn weights_body<S: Simd, N: Number>(
    a: &Attention<'_>,
    view: &View<N>,
    partial: &mut Partial<'_>,
    multi_sequence: bool,
) {
    let step = WIDE.min(S::QUERIES);
    for i in 0..view.count {
        // The pages that are mixed with those of its register tile, where these have them in common.
        let tile = i / step * step;
        let mut pages = view.pages(tile, step.min(view.count - tile));
        if multi_sequence {
            pages.1 = view.pages(i, 1).1;
        }
        // SAFETY: the caller has the tier's instructions; this query is there.
        unsafe { softmax_row::<S, N>(a, view, i, pages, partial) };
    }
}

/// The numbers of the lanes.
const IOTA: [f32; LANES] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// Turns the scores of query `i` into weights, zero where it does not see.
#[inline(always)]
unsafe fn softmax_row<S: Simd, N: Number>(
    a: &Attention<'_>,
    view: &View<N>,
    i: usize,
    (first, last): (usize, usize),
    partial: &mut Partial<'_>,
) {
    let (from, to) = view.sees[i];
    // SAFETY: a row of scores and one of weights have all pages of the block.
    unsafe {
        let (scores, weights) = (view.parts.scores.add(i * KV_BLOCK), view.parts.weights.add(i * KV_BLOCK));
        if from == to {
            for page in first..last {
                N::store::<S>(weights.add(page * PAGE), S::zero());
            }
            partial.max[i] = f32::NEG_INFINITY;
            partial.sums[i] = 0.0;
            return;
        }
        let mut max = S::splat(f32::NEG_INFINITY);
        for page in first..last {
            let mut x = S::load(scores.add(page * PAGE));
            let whole = from <= page * PAGE && page * PAGE + PAGE <= to;
            if let Some(cap) = a.soft_cap {
                let cap = S::splat(cap);
                x = S::mul(cap, math::tanh::<S>(S::div(x, cap)));
            }
            if !whole {
                let position = S::add(S::load(IOTA.as_ptr()), S::splat((page * PAGE) as f32));
                x = S::select_lt(position, S::splat(to as f32), x, S::splat(f32::NEG_INFINITY));
                x = S::select_lt(position, S::splat(from as f32), S::splat(f32::NEG_INFINITY), x);
            }
            if !whole || a.soft_cap.is_some() {
                S::store(scores.add(page * PAGE), x);
            }
            max = S::max(max, x);
        }
        let max = S::reduce_max(max);
        partial.max[i] = max;
        let (mut sum, max) = (S::zero(), S::splat(max));
        for page in first..last {
            let weight = N::exp::<S>(S::sub(S::load(scores.add(page * PAGE)), max));
            sum = S::add(sum, N::store::<S>(weights.add(page * PAGE), weight));
        }
        partial.sums[i] = S::reduce_sum(sum);
    }
}

tiered! {
    /// All mixed values, four vectors of dimensions at a time.
    fn mixes<N: Number>(view: &View<N>, partial: &mut Partial<'_>) = mixes_body;
}

#[inline(always)]
unsafe fn mixes_body<S: Simd, N: Number>(view: &View<N>, partial: &mut Partial<'_>) {
    let mut d = 0;
    while d < view.padded {
        let mut i = view.queries.start;
        while i < view.queries.end {
            let rows = WIDE.min(S::QUERIES).min(view.queries.end - i);
            // SAFETY: the caller has the tier's instructions; these queries are there, as are their mixed
            // values.
            unsafe { by_rows!(rows, mix::<S, N>(view, i, d, partial.mixed.as_mut_ptr())) };
            i += rows;
        }
        d += WIDE * LANES;
    }
}

/// Mixes dimensions `d..d + 64` (as far as there are) of the values for `M` queries from `i` on.
#[inline(always)]
unsafe fn mix<S: Simd, N: Number, const M: usize>(view: &View<N>, i: usize, d: usize, mixed: *mut f32) {
    let (mut d, end) = (d, view.padded.min(d + WIDE * LANES));
    // SAFETY: `d` is a multiple of 16 below `padded`.
    unsafe {
        while S::QUERIES >= 4 && d + 4 * LANES <= end {
            mix_vectors::<S, N, M, 4>(view, i, d, mixed);
            d += 4 * LANES;
        }
        while d + 2 * LANES <= end {
            mix_vectors::<S, N, M, 2>(view, i, d, mixed);
            d += 2 * LANES;
        }
        if d < end {
            mix_vectors::<S, N, M, 1>(view, i, d, mixed);
        }
    }
}

#[inline(always)]
unsafe fn mix_vectors<S: Simd, N: Number, const M: usize, const D: usize>(
    view: &View<N>,
    i: usize,
    d: usize,
    mixed: *mut f32,
) {
    // What all of the queries see: outside of it a weight of zero is not enough, since zero times NaN is NaN.
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
            for j in 1..D {
                value[j] = N::load::<S>(values.add(j * GROUP));
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
