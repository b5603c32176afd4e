//! One KV block for the queries of a task: scores `QK^T`, weights, and the values weighted by them.
//!
//! Queries are taken in register tiles, each over the pages that any of its queries sees. Three passes over
//! the block: all scores, all weights, all weighted values. What is loaded in a pass (four pages of keys,
//! some dimensions of the values) stays in L1 for all queries.

#![expect(clippy::needless_range_loop, reason = "iterators with closures stay calls in code for a tier")]

use std::ops::Range;

use super::{Attention, KV_BLOCK, KV_BLOCK_PAGES, Layer, Partial, TILE, Task};
use crate::kernels::isa::{Isa, tiered};
use crate::kernels::math;
use crate::kernels::simd::{LANES, Simd};
use crate::step::PAGE;

/// Queries of a register tile, at most.
pub(super) const WIDE: usize = 4;
/// Floats of a cache line, to which scratch is aligned.
const LINE: usize = 16;

/// Bytes that are prefetched at a time.
const PREFETCH_BYTES: usize = 512;

/// The arithmetic of a KV block, by what keys and values are stored as: pairs of numbers that are summed in
/// f32 ([`pairs`](super::pairs)), or bytes that are summed in whole numbers ([`bytes`](super::bytes)).
///
/// # Safety
/// Methods ask for the tier's instructions, and for what the [`View`] says is there.
pub(super) trait Kernel: Copy + Send + Sync + 'static {
    /// Queries of a register tile (up to 4), and vectors of keys or values (1, 2 or 4).
    fn tile<S: Simd>() -> (usize, usize);
    /// Puts the task's queries into scratch as [`score`](Self::score) takes them.
    unsafe fn load<S: Simd>(layer: &Layer<'_, Self>, task: &Task<'_>, parts: &Parts<Self>);
    /// Scores of `M` queries from `i` on, in one panel of 16, against `P` pages from `page` on.
    unsafe fn score<S: Simd, const M: usize, const P: usize>(
        view: &View<Self>,
        i: usize,
        page: usize,
        scale: f32,
    );
    /// Turns the scores of query `i` in pages `first..last` into weights, relative to the score `max`, zero
    /// where it does not see; and returns their sum.
    unsafe fn weigh<S: Simd>(view: &View<Self>, i: usize, pages: (usize, usize), max: f32) -> f32;
    /// Mixes `D` vectors of dimensions from `d` on for `M` queries from `i` on.
    unsafe fn mix<S: Simd, const M: usize, const D: usize>(
        view: &View<Self>,
        i: usize,
        d: usize,
        mixed: *mut f32,
    );
}

/// What bytes need to know of a query, beside its bytes.
#[derive(Clone, Copy)]
#[repr(C)]
pub(super) struct QueryState {
    /// Of its bytes, and what its dots begin with.
    pub scale: f32,
    pub start: i32,
    /// Of its weights in the block.
    pub weight_scale: f32,
    /// Weights that are not among its bytes, and their positions in the block.
    pub outliers: u32,
    pub weights: [f32; OUTLIERS],
    pub positions: [u32; OUTLIERS],
}

/// There are fewer weights than this that are more than so much of their sum.
pub(super) const OUTLIERS: usize = 8;

/// The parts of a task's scratch: queries, scores and weights.
pub(super) struct Parts<N> {
    /// Panels of 16 queries: `[count / 16, padded, 16]`, in an order that [`Kernel::load`] knows.
    pub q: *mut N,
    /// `[count, KV_BLOCK]`.
    pub scores: *mut f32,
    /// `[count, KV_BLOCK]`.
    pub weights: *mut N,
    /// `[count]`.
    pub states: *mut QueryState,
    /// `[padded]`.
    pub row: *mut f32,
}

impl<N> Parts<N> {
    fn new(scratch: &mut Vec<f32>, count: usize, padded: usize) -> Self {
        const STATE: usize = size_of::<QueryState>() / size_of::<f32>();
        assert!(size_of::<N>() <= size_of::<f32>() && align_of::<QueryState>() <= align_of::<f32>());
        let panels = count.next_multiple_of(LANES) * padded;
        let len = LINE + panels + 2 * count * KV_BLOCK + padded + count * STATE;
        if scratch.len() < len {
            scratch.resize(len, 0.0);
        }
        let skip = scratch.as_ptr().align_offset(LINE * size_of::<f32>()).min(LINE);
        let (q, rest) = scratch[skip..].split_at_mut(panels);
        let (scores, rest) = rest.split_at_mut(count * KV_BLOCK);
        let (weights, rest) = rest.split_at_mut(count * KV_BLOCK);
        let (row, states) = rest.split_at_mut(padded);
        assert!(states.len() >= count * STATE);
        Parts {
            q: q.as_mut_ptr().cast(),
            scores: scores.as_mut_ptr(),
            weights: weights.as_mut_ptr().cast(),
            states: states.as_mut_ptr().cast(),
            row: row.as_mut_ptr(),
        }
    }
}

/// A task, and which of its KV blocks.
pub(super) type KvBlock<'a> = (&'a Task<'a>, usize);

/// From each page of a KV block to the page at its place in another one, in bytes; 0 where one is missing.
fn offsets<N: Kernel>(
    layer: &Layer<'_, N>,
    (here, at): KvBlock<'_>,
    (there, there_at): KvBlock<'_>,
) -> [isize; KV_BLOCK_PAGES] {
    let mut offsets = [0; KV_BLOCK_PAGES];
    let ids = here.rows[0].pages_from(at).iter().zip(there.rows[0].pages_from(there_at));
    for (offset, (&from, &to)) in offsets.iter_mut().zip(ids) {
        // Pages behind a window are not held: their entries may be no pages.
        let address = |id, task: &Task<'_>| Some(layer.pages.held(id, task.kv_head)?.as_ptr() as isize);
        if let (Some(from), Some(to)) = (address(from, here), address(to, there)) {
            *offset = to - from;
        }
    }
    offsets
}

/// A KV block as some queries of a task see it. Pointers go to the pages and to scratch; all are good as long
/// as [`attend`] runs.
pub(super) struct View<N> {
    /// Queries.
    count: usize,
    /// Dimensions of a head with the zeros behind them.
    pub padded: usize,
    /// Positions that each query of the task sees, counted from the block's first.
    pub sees: [(usize, usize); TILE],
    /// Which of them, and which pages, are looked at now; what was mixed before is gone on with, and whether
    /// more will follow.
    queries: Range<usize>,
    limits: Range<usize>,
    pub resume: bool,
    pub last: bool,
    /// Blocks of the pages that any of these queries sees.
    pub keys: [*const N; KV_BLOCK_PAGES],
    pub values: [*const N; KV_BLOCK_PAGES],
    /// [`offsets`] to the KV block that this thread computes next; 0 where that is not known.
    next: [isize; KV_BLOCK_PAGES],
    /// Parts of the pages that will be looked at next: memory delivers them while this computes.
    ahead: Vec<*const N>,
    pub parts: Parts<N>,
}

impl<N: Kernel> View<N> {
    fn new(
        layer: &Layer<'_, N>,
        task: &Task<'_>,
        at: usize,
        next: Option<KvBlock<'_>>,
        parts: Parts<N>,
    ) -> Self {
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
        let (resume, last) = (false, true);
        let next = next.filter(|_| !task.multi_sequence);
        let next = next.map_or([0; KV_BLOCK_PAGES], |next| offsets(layer, (task, at), next));
        View { count, padded, sees, queries, limits, resume, last, keys, values, next, ahead, parts }
    }

    /// Lists the pages that each row has of its own, to be prefetched.
    fn plan_prefetch(&mut self, layer: &Layer<'_, N>, task: &Task<'_>, at: usize, common: usize) {
        let group = layer.a.heads / layer.a.kv_heads;
        self.limits = common..KV_BLOCK_PAGES;
        for (number, row) in task.rows.iter().enumerate() {
            let (from, to) = self.pages(number * group, 1);
            for &id in row.pages_from(at).get(from..to).unwrap_or(&[]) {
                let parts = layer.pages.head(id, task.kv_head).chunks(PREFETCH_BYTES / size_of::<N>());
                self.ahead.extend(parts.map(<[N]>::as_ptr));
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
            let (keys, values) = layer.pages.head(ids[page], kv_head).split_at(PAGE * self.padded);
            assert!(values.len() >= keys.len());
            (self.keys[page], self.values[page]) = (keys.as_ptr(), values.as_ptr());
        }
    }

    /// The pages that are looked at and that any of `rows` queries from `i` on sees. (Later queries see later
    /// positions.)
    #[inline(always)]
    pub fn pages(&self, i: usize, rows: usize) -> (usize, usize) {
        let (from, to) = (self.sees[i].0 / PAGE, self.sees[i + rows - 1].1.div_ceil(PAGE));
        let to = to.min(self.limits.end);
        (from.max(self.limits.start).min(to), to)
    }
}

/// Puts a task's queries into scratch, where [`attend`] finds them.
pub(super) fn load_queries<N: Kernel>(
    isa: Isa,
    layer: &Layer<'_, N>,
    task: &Task<'_>,
    scratch: &mut Vec<f32>,
) {
    let parts = Parts::new(scratch, task.queries(), layer.pages.padded());
    load(isa, layer, task, &parts);
}

/// The partial softmax of the task's queries over KV block `at`.
pub(super) fn attend<N: Kernel>(
    isa: Isa,
    layer: &Layer<'_, N>,
    task: &Task<'_>,
    at: usize,
    next: Option<KvBlock<'_>>,
    scratch: &mut Vec<f32>,
    partial: &mut Partial<'_>,
) {
    let parts = Parts::new(scratch, task.queries(), layer.pages.padded());
    let mut view = View::new(layer, task, at, next, parts);
    assert!(partial.mixed.len() == view.count * view.padded);
    let common = if task.multi_sequence { Some(task.common_pages(at)) } else { None };
    if let Some(common) = common.filter(|common| *common > 0) {
        view.plan_prefetch(layer, task, at, common);
    }
    each_part(layer, task, at, common, &mut view, |view| {
        scores(isa, layer.a.scale, view);
        if view.last {
            // All pages of these queries are at hand now, also those in common.
            let limits = std::mem::replace(&mut view.limits, 0..KV_BLOCK_PAGES);
            weights(isa, layer.a, view, partial, common.is_some());
            view.limits = limits;
        }
    });
    each_part(layer, task, at, common, &mut view, |view| mixes(isa, view, partial));
}

/// Looks at the pages that all rows have in common, then at each row's own; or simply at all, in one
/// sequence.
fn each_part<N: Kernel>(
    layer: &Layer<'_, N>,
    task: &Task<'_>,
    at: usize,
    common: Option<usize>,
    view: &mut View<N>,
    mut f: impl FnMut(&mut View<N>),
) {
    let (all, limits) = (0..view.count, 0..KV_BLOCK_PAGES);
    (view.resume, view.last) = (false, true);
    let Some(common) = common else {
        view.look(layer, task.kv_head, task.rows[0].pages_from(at), all, limits);
        return f(view);
    };
    if common > 0 {
        view.look(layer, task.kv_head, task.rows[0].pages_from(at), all, 0..common);
        view.last = false;
        f(view);
        (view.resume, view.last) = (true, true);
    }
    let group = layer.a.heads / layer.a.kv_heads;
    for (number, row) in task.rows.iter().enumerate() {
        let own = number * group..(number + 1) * group;
        view.look(layer, task.kv_head, row.pages_from(at), own, common..KV_BLOCK_PAGES);
        f(view);
    }
}

tiered! {
    fn load<N: Kernel>(layer: &Layer<'_, N>, task: &Task<'_>, parts: &Parts<N>) = load_body;
}

#[inline(always)]
unsafe fn load_body<S: Simd, N: Kernel>(layer: &Layer<'_, N>, task: &Task<'_>, parts: &Parts<N>) {
    // SAFETY: the caller has the tier's instructions; the parts were made for the task.
    unsafe { N::load::<S>(layer, task, parts) }
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
    fn scores<N: Kernel>(scale: f32, view: &View<N>) = scores_body;
}

#[inline(always)]
unsafe fn scores_body<S: Simd, N: Kernel>(scale: f32, view: &View<N>) {
    let (queries, (most, _)) = (view.queries.clone(), N::tile::<S>());
    let (mut page, last) = view.pages(queries.start, queries.len());
    // Prefetches are distributed over what is computed.
    let (mut done, all) = (0, if view.resume { 0 } else { view.ahead.len() });
    let share = all.div_ceil(((last - page).div_ceil(WIDE) * queries.len().div_ceil(WIDE)).max(1));
    while page < last {
        let mut i = queries.start;
        while i < queries.end {
            // Within a panel.
            let rows = most.min(queries.end - i).min(LANES - i % LANES);
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
unsafe fn score<S: Simd, N: Kernel, const M: usize>(view: &View<N>, i: usize, page: usize, scale: f32) {
    let (_, most) = N::tile::<S>();
    let (from, to) = view.pages(i, M);
    let (mut page, to) = (page.max(from), to.min(page + WIDE));
    // SAFETY: pages `from..to` are there, as are the queries.
    unsafe {
        while most >= 4 && page + 4 <= to {
            N::score::<S, M, 4>(view, i, page, scale);
            page += 4;
        }
        while most >= 2 && page + 2 <= to {
            N::score::<S, M, 2>(view, i, page, scale);
            page += 2;
        }
        while page < to {
            N::score::<S, M, 1>(view, i, page, scale);
            page += 1;
        }
    }
}

tiered! {
    /// All weights of the queries, with their sums and the max scores.
    fn weights<N: Kernel>(
        a: &Attention<'_>,
        view: &View<N>,
        partial: &mut Partial<'_>,
        multi_sequence: bool,
    ) = weights_body;
}

#[inline(always)]
unsafe fn weights_body<S: Simd, N: Kernel>(
    a: &Attention<'_>,
    view: &View<N>,
    partial: &mut Partial<'_>,
    multi_sequence: bool,
) {
    let (step, _) = N::tile::<S>();
    for i in view.queries.clone() {
        // The pages that are mixed with those of its register tile, where these have them in common.
        let tile = i / step * step;
        let mut pages = view.pages(tile, step.min(view.count - tile));
        if multi_sequence {
            pages.1 = view.pages(i, 1).1;
        }
        // SAFETY: the caller has the tier's instructions; this query is there.
        unsafe {
            let max = max_score::<S, N>(a, view, i, pages);
            (partial.max[i], partial.sums[i]) = (max, N::weigh::<S>(view, i, pages, max));
        }
    }
}

/// The numbers of the lanes.
const IOTA: [f32; LANES] =
    [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0, 12.0, 13.0, 14.0, 15.0];

/// `x` where query `i` sees a position of the page, else `otherwise`.
#[inline(always)]
pub(super) unsafe fn where_seen<S: Simd, N>(
    view: &View<N>,
    i: usize,
    page: usize,
    x: S::F,
    otherwise: S::F,
) -> S::F {
    let (from, to) = view.sees[i];
    // SAFETY: the caller has the tier's instructions.
    unsafe {
        let position = S::add(S::load(IOTA.as_ptr()), S::splat((page * PAGE) as f32));
        let x = S::select_lt(position, S::splat(to as f32), x, otherwise);
        S::select_lt(position, S::splat(from as f32), otherwise, x)
    }
}

impl<N> View<N> {
    /// Prefetches the line of the next KV block that lies there as `here` lies in `page`: memory delivers it
    /// while this block is computed. What is loaded is mostly in L2 by then: without this, a row over 8,000
    /// positions spent most of its time on waiting for keys.
    ///
    /// # Safety
    /// The tier's instructions.
    #[inline(always)]
    pub unsafe fn ahead<S: Simd>(&self, page: usize, here: *const N) {
        // SAFETY: the caller has the tier's instructions; a prefetch reads nothing.
        unsafe { S::prefetch_l2(here.cast::<u8>().wrapping_offset(self.next[page])) };
    }

    /// Whether query `i` sees some of a page.
    #[inline(always)]
    pub fn sees_some(&self, i: usize, page: usize) -> bool {
        let (from, to) = self.sees[i];
        from < (page + 1) * PAGE && page * PAGE < to
    }

    /// Whether query `i` sees all of a page.
    #[inline(always)]
    pub fn sees_all(&self, i: usize, page: usize) -> bool {
        let (from, to) = self.sees[i];
        from <= page * PAGE && page * PAGE + PAGE <= to
    }
}

/// The largest score of query `i`; what it does not see is made -infinity, and a cap put on what it does.
#[inline(always)]
unsafe fn max_score<S: Simd, N: Kernel>(
    a: &Attention<'_>,
    view: &View<N>,
    i: usize,
    (first, last): (usize, usize),
) -> f32 {
    // SAFETY: a row of scores has all pages of the block.
    unsafe {
        let scores = view.parts.scores.add(i * KV_BLOCK);
        let mut max = S::splat(f32::NEG_INFINITY);
        if view.sees[i].0 == view.sees[i].1 {
            return f32::NEG_INFINITY;
        }
        for page in first..last {
            let mut x = S::load(scores.add(page * PAGE));
            let whole = view.sees_all(i, page);
            if let Some(cap) = a.soft_cap {
                let cap = S::splat(cap);
                x = S::mul(cap, math::tanh::<S>(S::div(x, cap)));
            }
            if !whole {
                x = where_seen::<S, N>(view, i, page, x, S::splat(f32::NEG_INFINITY));
            }
            if !whole || a.soft_cap.is_some() {
                S::store(scores.add(page * PAGE), x);
            }
            max = S::max(max, x);
        }
        S::reduce_max(max)
    }
}

tiered! {
    /// All mixed values, some vectors of dimensions at a time.
    fn mixes<N: Kernel>(view: &View<N>, partial: &mut Partial<'_>) = mixes_body;
}

#[inline(always)]
unsafe fn mixes_body<S: Simd, N: Kernel>(view: &View<N>, partial: &mut Partial<'_>) {
    let (most, _) = N::tile::<S>();
    let mut d = 0;
    while d < view.padded {
        let mut i = view.queries.start;
        while i < view.queries.end {
            let rows = most.min(view.queries.end - i);
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
unsafe fn mix<S: Simd, N: Kernel, const M: usize>(view: &View<N>, i: usize, d: usize, mixed: *mut f32) {
    let (_, most) = N::tile::<S>();
    let (mut d, end) = (d, view.padded.min(d + WIDE * LANES));
    // SAFETY: `d` is a multiple of 16 below `padded`.
    unsafe {
        while most >= 4 && d + 4 * LANES <= end {
            N::mix::<S, M, 4>(view, i, d, mixed);
            d += 4 * LANES;
        }
        while most >= 2 && d + 2 * LANES <= end {
            N::mix::<S, M, 2>(view, i, d, mixed);
            d += 2 * LANES;
        }
        while d < end {
            N::mix::<S, M, 1>(view, i, d, mixed);
            d += LANES;
        }
    }
}
