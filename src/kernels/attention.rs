//! Attention over the paged cache of the CPU: causal, or bidirectional over the whole sequence.
//!
//! This is flash attention over KV blocks of 256 positions, counted from position 0. In a block a query gets
//! its scores, their maximum, weights `exp(score - maximum)`, their sum, and the sum of the values times the
//! weights ([`kv_block`]): a partial softmax. Those of its blocks are merged in order ([`merge`]). A [`Task`]
//! is a handful of queries that share a key head, so that every key and value that is loaded serves them all:
//! of one sequence, or of several that begin with the same pages. There are two ways to share the work, which
//! use the same functions and so come to the same bits:
//!
//! * enough tasks for the threads (prompts, batches): a task walks its KV blocks and merges as it goes;
//! * few tasks and long contexts (decoding): as in flash-decoding, the KV blocks of a long task are computed
//!   by any thread ([`Unit::Split`]), and merged at the end.
//!
//! What a query gets depends on its own position and on what it sees; not on its neighbours in the task, on
//! how a prompt was cut, on threads, nor on where the pages lie. Every sum has one order:
//!
//! * a score: pairs of dimensions, one after the other, for 16 keys (a page) at once (bytes: whole numbers);
//! * lane `l` of the sum of weights: the positions `l` modulo 16, then the lanes in halves;
//! * a weighted value: pairs of positions, one after the other. What a query does not see is taken as zero,
//!   whatever lies there: pages are handed on without being wiped.
//!
//! With pages of bytes, queries and weights become bytes, too ([`bytes`]). With bfloat16 pages they are
//! rounded to bfloat16 (the sum is that of the rounded weights), and products are summed in f32. Scratch is
//! as large as a task and a KV block, whatever the context.

mod bytes;
mod kv_block;
mod merge;
mod number;
mod pairs;
#[cfg(test)]
mod tests;
mod write;

use std::cell::RefCell;
use std::ops::Range;

use self::kv_block::{Kernel, KvBlock};
pub(super) use self::write::write;
use super::disjoint::DisjointSlices;
use super::isa::Isa;
use super::pool::Pool;
use super::types::Attention;
use crate::cache::storage::{NativeKv, Numbers, PageView};
use crate::error::Result;
use crate::step::{PAGE, Span, Step, first_seen};

/// Positions of a KV block.
const KV_BLOCK: usize = 256;
/// Pages of a KV block.
const KV_BLOCK_PAGES: usize = KV_BLOCK / PAGE;
/// Queries of a task, at most.
const TILE: usize = 32;

/// A layer's pages and a step's queries.
struct Layer<'a, N> {
    q: &'a [f32],
    pages: Pages<'a, N>,
    a: &'a Attention<'a>,
}

/// The keys and values of a layer.
#[derive(Clone, Copy)]
struct Pages<'a, N> {
    view: PageView,
    /// The memory of its column.
    numbers: &'a [N],
}

impl<'a, N> Pages<'a, N> {
    fn padded(&self) -> usize {
        self.view.padded()
    }

    /// Keys, then values of a head in a page, and the scales of bytes.
    fn head(&self, page: u32, head: usize) -> &'a [N] {
        &self.numbers[self.view.head(page as usize, head)]
    }

    /// As [`Pages::head`], if there is such a page.
    fn held(&self, page: u32, head: usize) -> Option<&'a [N]> {
        self.numbers.get(self.view.head(page as usize, head))
    }
}

impl<N: Kernel> Layer<'_, N> {
    /// Floats of what is partial for a task.
    fn partial_len(&self, task: &Task<'_>) -> usize {
        task.queries() * (self.pages.padded() + 2)
    }
}

/// The queries of a step over the pages of a group.
pub(super) struct Queries<'a> {
    /// `[rows, heads * head_dim]`
    pub q: &'a [f32],
    pub step: &'a Step,
    pub group: usize,
}

/// A row of the step.
#[derive(Clone, Copy)]
struct Row<'a> {
    row: usize,
    position: usize,
    pages: &'a [u32],
    /// Positions of its sequence.
    len: usize,
}

impl<'a> Row<'a> {
    /// The pages of its sequence from KV block `at` on.
    fn pages_from(&self, at: usize) -> &'a [u32] {
        self.pages.get(at * KV_BLOCK_PAGES..).unwrap_or(&[])
    }
}

/// Queries `from..to` of some rows (row by row, in a row the heads of the group) for one key head. Either the
/// rows follow each other in one sequence, or each is of a sequence of its own and they are in the order of
/// their positions.
#[derive(Clone, Copy)]
struct Task<'a> {
    rows: &'a [Row<'a>],
    /// The rows are of several sequences, one each.
    multi_sequence: bool,
    kv_head: usize,
    from: usize,
    to: usize,
}

impl Task<'_> {
    fn queries(&self) -> usize {
        self.to - self.from
    }

    /// Where the task's query `i` lies in `[rows, heads]`.
    #[inline(always)]
    fn place(&self, a: &Attention<'_>, i: usize) -> usize {
        let group = a.heads / a.kv_heads;
        let query = self.from + i;
        self.rows[query / group].row * a.heads + self.kv_head * group + query % group
    }

    /// The positions that the task's query `i` sees. Neither end lies before that of an earlier query.
    #[inline(always)]
    fn sees(&self, a: &Attention<'_>, i: usize) -> Range<usize> {
        let Row { position, len, .. } = self.rows[(self.from + i) / (a.heads / a.kv_heads)];
        let from = a.window.map_or(0, |window| (position + 1).saturating_sub(window));
        let to = match (a.causal, a.window) {
            (true, _) => position + 1,
            (false, None) => len,
            (false, Some(window)) => position.saturating_add(window).min(len),
        };
        from..to
    }

    /// The KV blocks that any of its queries sees.
    fn kv_blocks(&self, a: &Attention<'_>) -> Range<usize> {
        self.sees(a, 0).start / KV_BLOCK..self.sees(a, self.queries() - 1).end.div_ceil(KV_BLOCK)
    }

    /// Pages at the beginning of KV block `at` that all rows have, and see to their end.
    fn common_pages(&self, at: usize) -> usize {
        let Some(shortest) = self.rows.first() else { return 0 };
        let whole = (shortest.position + 1) / PAGE;
        let most = whole.saturating_sub(at * KV_BLOCK_PAGES).min(KV_BLOCK_PAGES);
        let first = shortest.pages_from(at).iter().take(most);
        let same = |row: &Row<'_>| first.clone().zip(row.pages_from(at)).take_while(|(a, b)| a == b).count();
        self.rows.iter().map(same).min().unwrap_or(0)
    }
}

/// The softmax of a task's queries over some positions, unfinished: the largest score and the sum of weights
/// of each query, and the sum of its weighted values (padded).
struct Partial<'a> {
    max: &'a mut [f32],
    sums: &'a mut [f32],
    mixed: &'a mut [f32],
}

impl<'a> Partial<'a> {
    fn new(floats: &'a mut [f32], queries: usize) -> Self {
        let (max, rest) = floats.split_at_mut(queries);
        let (sums, mixed) = rest.split_at_mut(queries);
        Partial { max, sums, mixed }
    }

    /// Nothing seen yet.
    fn clear(&mut self) {
        self.max.fill(f32::NEG_INFINITY);
        self.sums.fill(0.0);
        self.mixed.fill(0.0);
    }
}

thread_local! {
    /// What [`kv_block`] works in.
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
    /// The merged blocks so far, and the block at hand.
    static PARTIAL: RefCell<[Vec<f32>; 2]> = const { RefCell::new([Vec::new(), Vec::new()]) };
    /// The splits, until they are merged.
    static SPLIT: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `out` is `[rows, heads * head_dim]`; the step was checked against the cache, and `a` against its shape.
///
/// # Errors
/// `Internal` when a task panicked.
pub(super) fn attention(
    pool: &Pool,
    isa: Isa,
    queries: Queries<'_>,
    kv: &NativeKv,
    a: &Attention<'_>,
    out: &mut [f32],
) -> Result<()> {
    let Queries { q, step, group } = queries;
    let rows = rows(step, group, a, pool.threads());
    let view = kv.view();
    match &*kv.read() {
        Numbers::F32(memory) => {
            let pages = Pages { view, numbers: memory.numbers() };
            run(pool, isa, &Layer { q, pages, a }, rows, out)
        }
        Numbers::BF16(memory) => {
            let pages = Pages { view, numbers: memory.numbers() };
            run(pool, isa, &Layer { q, pages, a }, rows, out)
        }
        Numbers::I8(memory) => {
            let pages = Pages { view, numbers: memory.numbers() };
            run(pool, isa, &Layer { q, pages, a }, rows, out)
        }
    }
}

/// The rows of a step, and which of them are computed together.
type Together<'a> = (Vec<Row<'a>>, Vec<Range<usize>>);

fn run<N: Kernel>(
    pool: &Pool,
    isa: Isa,
    layer: &Layer<'_, N>,
    (rows, parts): Together<'_>,
    out: &mut [f32],
) -> Result<()> {
    let tasks = tasks(&rows, &parts, layer.a);
    let (units, len) = units(&tasks, layer, pool.threads());
    let out = DisjointSlices::new(out);
    SPLIT.with_borrow_mut(|partial| {
        let partial = room(partial, len);
        let shares = DisjointSlices::new(partial);
        pool.run("attention", units.len(), &|index| match units[index] {
            Unit::Whole(task) => walk(isa, layer, task, &out),
            Unit::Split { task, at, start } => {
                // SAFETY: every unit has its own part.
                let part = unsafe { shares.slice_mut(start..start + layer.partial_len(task)) };
                // Units are taken in turn.
                let next = match units.get(index + pool.threads()) {
                    Some(&Unit::Split { task, at, .. }) => Some((task, at)),
                    _ => None,
                };
                compute_alone(isa, layer, (task, at), next, &mut Partial::new(part, task.queries()));
            }
        })?;
        merge_splits(isa, layer, &units, partial, &out);
        Ok(())
    })
}

/// What one thread computes at a time.
#[derive(Clone, Copy)]
enum Unit<'a> {
    /// A task from its first KV block to its last.
    Whole(&'a Task<'a>),
    /// One KV block of a task, whose partial softmax goes to float `start` and following. Those of a task
    /// follow each other.
    Split { task: &'a Task<'a>, at: usize, start: usize },
}

/// Splits those tasks by KV blocks that are more than half of what a thread has to do; these come first. Also
/// returns how many floats their partial softmaxes take: at most twice as many tasks are split as there are
/// threads.
fn units<'a, N: Kernel>(
    tasks: &'a [Task<'a>],
    layer: &Layer<'_, N>,
    threads: usize,
) -> (Vec<Unit<'a>>, usize) {
    let work = |task: &Task<'_>| task.kv_blocks(layer.a).len() * task.queries();
    let all: usize = tasks.iter().map(work).sum();
    let is_split = |task: &&Task<'_>| threads > 1 && 2 * work(task) * threads > all;
    let (mut units, mut end) = (Vec::with_capacity(tasks.len()), 0);
    for task in tasks.iter().filter(|task| is_split(task)) {
        for at in task.kv_blocks(layer.a) {
            units.push(Unit::Split { task, at, start: end });
            end += layer.partial_len(task);
        }
    }
    units.extend(tasks.iter().filter(|task| !is_split(task)).map(Unit::Whole));
    (units, end)
}

/// The rows of a step, and which of them are computed together: those of one sequence; or, of answers that
/// get a token each, those that begin with the same pages, since whatever is loaded of these serves them all.
fn rows<'a>(step: &'a Step, group: usize, a: &Attention<'_>, threads: usize) -> Together<'a> {
    let all = |span: &'a Span| {
        let first = step.positions[span.rows.start] as usize;
        let row = move |at: usize| {
            let position = first + at - span.rows.start;
            Row { row: at, position, pages: &span.pages[group], len: span.len }
        };
        span.rows.clone().map(row)
    };
    let (single, more): (Vec<_>, Vec<_>) = step.spans.iter().partition(|span| span.rows.len() == 1);
    let (mut rows, mut parts) = (Vec::with_capacity(step.rows()), Vec::with_capacity(step.spans.len()));
    for span in more {
        parts.push(rows.len()..rows.len() + span.rows.len());
        rows.extend(all(span));
    }
    let start = rows.len();
    rows.extend(single.into_iter().flat_map(all));
    let sampled_pages = |row: &Row<'a>| sampled_pages(*row, a.window);
    rows[start..].sort_by(|a, b| sampled_pages(a).cmp(sampled_pages(b)).then(a.position.cmp(&b.position)));
    // Enough for all threads: tasks, or splits of them.
    let kv_blocks =
        |row: &Row<'_>| a.window.map_or(row.position, |window| window.min(row.position)) / KV_BLOCK;
    let splits = rows[start..].iter().map(kv_blocks).max().unwrap_or(0).max(1);
    let most = (rows.len() - start) * a.kv_heads * splits / (3 * threads);
    let most = most.min(TILE * a.kv_heads / a.heads).max(1);
    // A bidirectional sequence shares no pages, and what its rows see ends with it, not with the row.
    let related = |one: &Row<'a>, other: &Row<'a>| {
        let (one, other) = (sampled_pages(one).next(), sampled_pages(other).next());
        a.causal && one.is_some() && one == other
    };
    for relatives in rows[start..].chunk_by_mut(related) {
        let first = parts.last().map_or(0, |part: &Range<usize>| part.end);
        let mut count = relatives.len().div_ceil(most);
        if count > 1 && !a.kv_heads.is_multiple_of(threads) {
            count = count.next_multiple_of(threads);
        }
        let size = relatives.len().div_ceil(count);
        for (number, part) in relatives.chunks_mut(size).enumerate() {
            part.sort_by_key(|row| row.position);
            parts.push(first + number * size..first + number * size + part.len());
        }
    }
    (rows, parts)
}

/// Every eighth page of a row: sorted by these, sequences lie beside those that they share most of their
/// prefix with, since a page of the prefix tree has but one prefix.
fn sampled_pages<'a>(row: Row<'a>, window: Option<usize>) -> impl Iterator<Item = &'a u32> {
    // Pages behind the window are not held: their entries are alike in all tables.
    let first = first_seen(window, row.position).next_multiple_of(SAMPLE);
    row.pages.iter().skip(first + SAMPLE - 1).step_by(SAMPLE)
}

/// Pages between two samples, and the shortest shared prefix for which sequences are computed together.
const SAMPLE: usize = 8;

/// Cuts rows into tasks. Those of a key head follow each other, since they read the same pages; of those the
/// longest comes first, and the longest part of all, so that what is left to wait for at the end is short.
fn tasks<'a>(rows: &'a [Row<'a>], parts: &[Range<usize>], a: &Attention<'_>) -> Vec<Task<'a>> {
    let group = a.heads / a.kv_heads;
    let mut parts: Vec<_> = parts.iter().map(|part| &rows[part.clone()]).collect();
    parts.sort_by_key(|rows| std::cmp::Reverse(rows.last().map_or(0, |row| row.position)));
    let mut tasks = Vec::new();
    for rows in parts {
        let queries = rows.len() * group;
        let multi_sequence = rows.len() > 1 && !std::ptr::eq(rows[0].pages, rows[1].pages);
        for kv_head in 0..a.kv_heads {
            for from in (0..queries).step_by(TILE).rev() {
                tasks.push(Task { rows, multi_sequence, kv_head, from, to: queries.min(from + TILE) });
            }
        }
    }
    tasks
}

/// Computes a task from its first KV block to its last.
fn walk<N: Kernel>(isa: Isa, layer: &Layer<'_, N>, task: &Task<'_>, out: &DisjointSlices<'_, f32>) {
    let (queries, len) = (task.queries(), layer.partial_len(task));
    PARTIAL.with_borrow_mut(|[so_far, here]| {
        let mut so_far = Partial::new(room(so_far, len), queries);
        let mut here = Partial::new(room(here, len), queries);
        so_far.clear();
        SCRATCH.with_borrow_mut(|scratch| {
            kv_block::load_queries(isa, layer, task, scratch);
            for at in task.kv_blocks(layer.a) {
                let next = Some((task, at + 1));
                kv_block::attend(isa, layer, task, at, next, scratch, &mut here);
                merge::merge(isa, &mut so_far, &here);
            }
        });
        // SAFETY: each query of each head is in one task.
        unsafe { merge::finish(isa, layer.a, task, &so_far, out) };
    });
}

/// Computes one KV block of a task.
fn compute_alone<N: Kernel>(
    isa: Isa,
    layer: &Layer<'_, N>,
    (task, at): KvBlock<'_>,
    next: Option<KvBlock<'_>>,
    partial: &mut Partial<'_>,
) {
    SCRATCH.with_borrow_mut(|scratch| {
        kv_block::load_queries(isa, layer, task, scratch);
        kv_block::attend(isa, layer, task, at, next, scratch, partial);
    });
}

/// Merges the splits of each task that has some.
fn merge_splits<N: Kernel>(
    isa: Isa,
    layer: &Layer<'_, N>,
    units: &[Unit<'_>],
    partial: &mut [f32],
    out: &DisjointSlices<'_, f32>,
) {
    PARTIAL.with_borrow_mut(|[so_far, _]| {
        for unit in units {
            // The first split stands for its task.
            let &Unit::Split { task, at, start } = unit else { continue };
            let blocks = task.kv_blocks(layer.a);
            if at != blocks.start {
                continue;
            }
            let (queries, len) = (task.queries(), layer.partial_len(task));
            let mut so_far = Partial::new(room(so_far, len), queries);
            so_far.clear();
            for part in partial[start..start + blocks.len() * len].chunks_exact_mut(len) {
                merge::merge(isa, &mut so_far, &Partial::new(part, queries));
            }
            // SAFETY: as in `walk`.
            unsafe { merge::finish(isa, layer.a, task, &so_far, out) };
        }
    });
}

/// The first `len` floats, made if they are not there.
fn room(floats: &mut Vec<f32>, len: usize) -> &mut [f32] {
    if floats.len() < len {
        floats.resize(len, 0.0);
    }
    &mut floats[..len]
}
