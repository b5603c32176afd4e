//! Causal attention over the paged cache.
//!
//! A task is a handful of queries of one sequence that share a key head. It computes their scores against
//! all keys that any of them sees, turns them into weights, and mixes the values, three plain passes over a
//! row of scores in scratch. What a query gets depends on its own position and on what it sees, in the
//! order of positions; not on its neighbours in the task, on chunks, nor on where the pages lie:
//!
//! * a score sums over the dimensions of the head, one after the other, for 16 keys (a page) at once;
//! * lane `l` of the softmax sum holds the positions `l` modulo 16;
//! * the mix adds the values position by position. A key that a query does not see has a weight of exactly
//!   zero, and adding zero times a value changes nothing.
//!
//! # Layout
//! Values lie as the graph made them, a row a position. Keys are turned on their side when they are
//! written: in the 16 rows of a page, head `h` has a block `[head_dim, 16]`, so that 16 keys are scored
//! with one broadcast and one multiply-add a dimension and nothing has to be summed across lanes.

use std::cell::RefCell;

use super::Attention;
use super::isa::{Isa, Tier, tiered};
use super::lanes::{self, LANES, Lanes, ZERO};
use super::math;
use super::pool::{Pool, Shares};
use crate::error::Result;
use crate::step::{PAGE, Span, Step};

// The lanes of a score are the slots of a page.
const _: () = assert!(PAGE == LANES);

/// Queries of a task, at most: enough to reuse every key and value that was loaded.
const TILE: usize = 16;

/// One layer's cache and a step's queries.
#[derive(Clone, Copy)]
struct Layer<'a> {
    q: &'a [f32],
    keys: &'a [f32],
    values: &'a [f32],
    a: Attention,
}

/// Queries `from..to` of a span (row by row, in a row the heads of the group) for one key head.
#[derive(Clone, Copy)]
struct Task<'a> {
    span: &'a Span,
    /// The position of the span's first row.
    first: usize,
    kv_head: usize,
    from: usize,
    to: usize,
}

impl Task<'_> {
    /// The row of the span and the head of query `query`.
    #[inline(always)]
    fn place(&self, a: &Attention, query: usize) -> (usize, usize) {
        let group = a.heads / a.kv_heads;
        (query / group, self.kv_head * group + query % group)
    }

    /// The positions that query `query` sees.
    #[inline(always)]
    fn sees(&self, a: &Attention, query: usize) -> std::ops::Range<usize> {
        let position = self.first + self.place(a, query).0;
        let from = a.window.map_or(0, |window| (position + 1).saturating_sub(window));
        from..position + 1
    }
}

thread_local! {
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `out` and `q` are `[rows, heads * head_dim]`; the step was checked against the cache.
pub(super) fn attention(
    pool: &Pool,
    isa: Isa,
    q: &[f32],
    (keys, values): (&[f32], &[f32]),
    step: &Step,
    a: &Attention,
    out: &mut [f32],
) -> Result<()> {
    let tasks = tasks(step, a, pool.threads());
    let layer = Layer { q, keys, values, a: *a };
    let out = Shares::new(out);
    pool.run(tasks.len(), &|index| {
        SCORES.with_borrow_mut(|scratch| attend(isa, layer, tasks[index], scratch, &out));
    })
}

/// Cuts a step into tasks: as large as is useful, as small as the threads need.
fn tasks<'a>(step: &'a Step, a: &Attention, threads: usize) -> Vec<Task<'a>> {
    let group = a.heads / a.kv_heads;
    let count = |tile: usize| -> usize {
        step.spans.iter().map(|span| (span.rows.len() * group).div_ceil(tile) * a.kv_heads).sum()
    };
    let mut tile = TILE;
    while threads > 1 && tile > 1 && count(tile) < 2 * threads {
        tile /= 2;
    }
    let mut tasks = Vec::with_capacity(count(tile));
    for span in &step.spans {
        let first = step.positions[span.rows.start] as usize;
        let queries = span.rows.len() * group;
        for kv_head in 0..a.kv_heads {
            let starts = (0..queries).step_by(tile);
            tasks.extend(starts.map(|from| Task {
                span,
                first,
                kv_head,
                from,
                to: queries.min(from + tile),
            }));
        }
    }
    tasks
}

tiered! {
    fn attend(layer: Layer<'_>, task: Task<'_>, scratch: &mut Vec<f32>, out: &Shares<'_>) = attend_body;
}

#[inline(always)]
fn attend_body<T: Tier>(layer: Layer<'_>, task: Task<'_>, scratch: &mut Vec<f32>, out: &Shares<'_>) {
    // Whole pages, from the first that the first query sees to the last that the last one sees.
    let begin = task.sees(&layer.a, task.from).start / PAGE;
    let end = task.sees(&layer.a, task.to - 1).end.div_ceil(PAGE);
    let width = (end - begin) * PAGE;
    scratch.resize((task.to - task.from) * width, 0.0);
    let mut query = task.from;
    for scores in Tiles::<T>::new(task.to - task.from) {
        match scores {
            4 => score::<4>(&layer, &task, query, begin..end, &mut scratch[(query - task.from) * width..]),
            2 => score::<2>(&layer, &task, query, begin..end, &mut scratch[(query - task.from) * width..]),
            _ => score::<1>(&layer, &task, query, begin..end, &mut scratch[(query - task.from) * width..]),
        }
        query += scores;
    }
    let mut norms = [0.0; TILE];
    for (query, scores) in (task.from..task.to).zip(scratch.chunks_exact_mut(width)) {
        norms[query - task.from] = weights(&layer.a, task.sees(&layer.a, query), begin * PAGE, scores);
    }
    query = task.from;
    for rows in Tiles::<T>::new(task.to - task.from) {
        let at = query - task.from;
        let mix = Mix { query, begin, width, weights: &scratch[at * width..], norms: &norms[at..], out };
        match rows {
            4 => mix_values::<4>(&layer, &task, &mix),
            2 => mix_values::<2>(&layer, &task, &mix),
            _ => mix_values::<1>(&layer, &task, &mix),
        }
        query += rows;
    }
}

/// Cuts a number of queries into register tiles of 4 (on wide tiers), 2 and 1.
struct Tiles<T> {
    left: usize,
    _tier: std::marker::PhantomData<T>,
}

impl<T: Tier> Tiles<T> {
    #[inline(always)]
    fn new(left: usize) -> Self {
        Tiles { left, _tier: std::marker::PhantomData }
    }
}

impl<T: Tier> Iterator for Tiles<T> {
    type Item = usize;

    #[inline(always)]
    fn next(&mut self) -> Option<usize> {
        let tile = match self.left {
            0 => return None,
            1 => 1,
            4.. if T::WIDE => 4,
            _ => 2,
        };
        self.left -= tile;
        Some(tile)
    }
}

/// Scores of `M` queries against the pages `pages`, into `M` rows of `scores`.
#[inline(always)]
fn score<const M: usize>(
    layer: &Layer<'_>,
    task: &Task<'_>,
    query: usize,
    pages: std::ops::Range<usize>,
    scores: &mut [f32],
) {
    let (a, dim) = (&layer.a, layer.a.head_dim);
    let width = pages.len() * PAGE;
    let q: [&[f32]; M] = std::array::from_fn(|i| {
        let (row, head) = task.place(a, query + i);
        &layer.q[((task.span.rows.start + row) * a.heads + head) * dim..][..dim]
    });
    let block = |page: usize| {
        let page = task.span.pages[page] as usize;
        &layer.keys[(page * a.kv_heads + task.kv_head) * dim * PAGE..][..dim * PAGE]
    };
    let mut put = |page: usize, acc: &[Lanes; M]| {
        for (i, acc) in acc.iter().enumerate() {
            let at = i * width + (page - pages.start) * PAGE;
            let lanes = acc.map(|sum| sum * a.scale);
            scores[at..at + LANES].copy_from_slice(&lanes);
        }
    };
    let mut page = pages.start;
    while page + 2 <= pages.end {
        let acc = dot_pages::<M, 2>(q, [block(page), block(page + 1)]);
        put(page, &acc.map(|[first, _]| first));
        put(page + 1, &acc.map(|[_, second]| second));
        page += 2;
    }
    if page < pages.end {
        put(page, &dot_pages::<M, 1>(q, [block(page)]).map(|[only]| only));
    }
}

/// Dot products of `M` queries with the 16 keys of each of `P` pages.
#[inline(always)]
fn dot_pages<const M: usize, const P: usize>(q: [&[f32]; M], pages: [&[f32]; P]) -> [[Lanes; P]; M] {
    let mut acc = [[ZERO; P]; M];
    let pages: [&[Lanes]; P] = pages.map(|page| page.as_chunks().0);
    let dim = q.iter().map(|q| q.len()).chain(pages.iter().map(|p| p.len())).min().unwrap_or(0);
    let (q, pages) = (q.map(|q| &q[..dim]), pages.map(|p| &p[..dim]));
    for d in 0..dim {
        for i in 0..M {
            for j in 0..P {
                lanes::fma_one(&mut acc[i][j], q[i][d], &pages[j][d]);
            }
        }
    }
    acc
}

/// Turns scores into `exp(score - max)`, zero where the query does not see, and returns one over their sum.
/// `scores[0]` belongs to position `base`, the first of a page.
#[inline(always)]
fn weights(a: &Attention, sees: std::ops::Range<usize>, base: usize, scores: &mut [f32]) -> f32 {
    let (from, to) = (sees.start - base, sees.end - base);
    if let Some(cap) = a.soft_cap {
        for score in &mut scores[from..to] {
            *score = cap * math::tanh(*score / cap);
        }
    }
    scores[..from].fill(f32::NEG_INFINITY);
    scores[to..].fill(f32::NEG_INFINITY);
    let pages = scores.as_chunks_mut::<LANES>().0;
    let mut greatest = [f32::NEG_INFINITY; LANES];
    for page in pages.iter() {
        for l in 0..LANES {
            greatest[l] = if page[l] > greatest[l] { page[l] } else { greatest[l] };
        }
    }
    let greatest = lanes::max(&greatest);
    let mut sum = ZERO;
    for page in pages {
        for l in 0..LANES {
            page[l] = math::exp(page[l] - greatest);
            sum[l] += page[l];
        }
    }
    1.0 / lanes::sum(&sum)
}

/// Where the mix of a few queries reads its weights and writes its results.
struct Mix<'a> {
    query: usize,
    /// The first page of the weights.
    begin: usize,
    /// Floats of a row of weights.
    width: usize,
    weights: &'a [f32],
    norms: &'a [f32],
    out: &'a Shares<'a>,
}

/// The weighted sums of the values for `M` queries, a block of dimensions at a time.
#[inline(always)]
fn mix_values<const M: usize>(layer: &Layer<'_>, task: &Task<'_>, mix: &Mix<'_>) {
    let dim = layer.a.head_dim;
    let mut at = 0;
    while at + 4 * LANES <= dim {
        mix_block::<M, 4>(layer, task, mix, at, 4 * LANES);
        at += 4 * LANES;
    }
    while at < dim {
        let len = LANES.min(dim - at);
        mix_block::<M, 1>(layer, task, mix, at, len);
        at += len;
    }
}

/// Dimensions `at..at + len` (`D` vectors of them, the last may be short) for `M` queries.
#[inline(always)]
fn mix_block<const M: usize, const D: usize>(
    layer: &Layer<'_>,
    task: &Task<'_>,
    mix: &Mix<'_>,
    at: usize,
    len: usize,
) {
    let a = &layer.a;
    let seen = task.sees(a, mix.query).start..task.sees(a, mix.query + M - 1).end;
    let rows: [&[f32]; M] = std::array::from_fn(|i| &mix.weights[i * mix.width..][..mix.width]);
    let mut acc = [[ZERO; D]; M];
    for page in seen.start / PAGE..seen.end.div_ceil(PAGE) {
        let slot = task.span.pages[page] as usize * PAGE;
        let positions = seen.start.max(page * PAGE)..seen.end.min((page + 1) * PAGE);
        for position in positions {
            let row = slot + position % PAGE;
            let value = &layer.values[(row * a.kv_heads + task.kv_head) * a.head_dim + at..][..len];
            let full = value.as_chunks::<LANES>().0;
            let value: [Lanes; D] = if len == D * LANES {
                std::array::from_fn(|d| full[d])
            } else {
                std::array::from_fn(|d| lanes::partial(&value[(d * LANES).min(len)..]))
            };
            for i in 0..M {
                let weight = rows[i][position - mix.begin * PAGE];
                for d in 0..D {
                    lanes::fma_one(&mut acc[i][d], weight, &value[d]);
                }
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        let (row, head) = task.place(a, mix.query + i);
        let start = ((task.span.rows.start + row) * a.heads + head) * a.head_dim + at;
        // SAFETY: these dimensions of this query belong to this task alone.
        let out = unsafe { mix.out.part(start..start + len) };
        for (out, value) in out.iter_mut().zip(acc.as_flattened()) {
            *out = value * mix.norms[i];
        }
    }
}

/// Puts keys `[rows, kv_heads * head_dim]` into the cache, on their side.
pub(super) fn write_keys(cache: &mut [f32], keys: &[f32], width: usize, head_dim: usize, slots: &[u32]) {
    for (&slot, row) in slots.iter().zip(keys.chunks_exact(width)) {
        let (page, slot) = (slot as usize / PAGE, slot as usize % PAGE);
        let page = &mut cache[page * PAGE * width..][..PAGE * width];
        for (head, key) in page.chunks_exact_mut(head_dim * PAGE).zip(row.chunks_exact(head_dim)) {
            for (lanes, &value) in head.chunks_exact_mut(PAGE).zip(key) {
                lanes[slot] = value;
            }
        }
    }
}

/// Puts values `[rows, kv_heads * head_dim]` into the cache, a row a slot.
pub(super) fn write_values(cache: &mut [f32], values: &[f32], width: usize, slots: &[u32]) {
    for (&slot, row) in slots.iter().zip(values.chunks_exact(width)) {
        cache[slot as usize * width..][..width].copy_from_slice(row);
    }
}
