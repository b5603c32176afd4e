//! Causal attention over the rows of one step, and its gradient.
//!
//! There is no cache: the keys of a span are rows of the step, those of the spans that it continues and then
//! its own, so that rows which several texts begin with are there once. A task is a span and a head; it
//! gathers its keys and values, and walks its queries in blocks whose scores lie in cache.
//!
//! ```text
//!   S = scale q k^T, capped, masked;  P = exp(S - lse);  o = P v
//!   dv = P^T do;  dP = do v^T;  dS = P (dP - rowsum(do o)) scale, times the cap's slope;  dq = dS k;  dk = dS^T q
//! ```
//!
//! Each task has room of its own for what it says of its keys; a last pass adds that up for every row in the
//! order of spans and heads, so that the bits do not depend on the threads.

use std::cell::RefCell;
use std::ops::Range;

use super::super::disjoint::DisjointSlices;
use super::super::isa::{Isa, tiered};
use super::super::math;
use super::super::matmul::{Matmul, Target, matmul};
use super::super::pool::Pool;
use super::super::simd::{LANES, Simd};
use super::super::types::Attention;
use crate::error::Result;

/// Which rows of a step see which.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SpanRows {
    /// Rows of the queries.
    pub queries: Range<usize>,
    /// The position of each.
    pub positions: Vec<usize>,
    /// Rows of the keys: those of position 0, 1, 2 and so on, in pieces.
    pub keys: Vec<Range<usize>>,
}

impl SpanRows {
    fn key_count(&self) -> usize {
        self.keys.iter().map(ExactSizeIterator::len).sum()
    }

    fn key_rows(&self) -> impl Iterator<Item = usize> {
        self.keys.iter().cloned().flatten()
    }
}

/// Queries `[rows, heads * head_dim]`, keys and values `[rows, kv_heads * head_dim]`.
#[derive(Clone, Copy)]
pub(super) struct Inputs<'a> {
    pub spans: &'a [SpanRows],
    pub a: &'a Attention<'static>,
    pub q: &'a [f32],
    pub k: &'a [f32],
    pub v: &'a [f32],
}

/// What came out, and the gradient of it.
#[derive(Clone, Copy)]
pub(super) struct Outputs<'a> {
    pub out: &'a [f32],
    /// The logarithm of the sum of exponentials, `[rows, heads]`.
    pub lse: &'a [f32],
    pub gradient: &'a [f32],
}

/// Gradients of queries, keys and values, all written.
pub(super) struct InputGradients<'a> {
    pub q: &'a mut [f32],
    pub k: &'a mut [f32],
    pub v: &'a mut [f32],
}

/// Queries whose scores are computed together.
const BLOCK: usize = 48;

thread_local! {
    static SCRATCH: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Calls `f` with `N` pieces of the thread's scratch, of undefined numbers.
fn with_scratch<const N: usize>(sizes: [usize; N], f: impl FnOnce([&mut [f32]; N])) {
    SCRATCH.with_borrow_mut(|scratch| {
        let len = sizes.iter().sum();
        if scratch.len() < len {
            *scratch = vec![0.0; len];
        }
        let mut rest = scratch.as_mut_slice();
        f(sizes.map(|size| {
            let (piece, more) = std::mem::take(&mut rest).split_at_mut(size);
            rest = more;
            piece
        }));
    });
}

/// One span and head.
struct Task<'a> {
    isa: Isa,
    span: &'a SpanRows,
    a: &'a Attention<'static>,
    head: usize,
    keys: usize,
    /// Keys in whole vectors.
    width: usize,
}

/// Some queries of a task, and the keys that one of them sees.
struct Block {
    /// Places among the span's queries.
    from: usize,
    len: usize,
    keys: Range<usize>,
    /// Of a row of scores: the keys in whole vectors.
    width: usize,
}

impl<'a> Task<'a> {
    fn new(isa: Isa, x: &Inputs<'a>, index: usize) -> Task<'a> {
        let span = &x.spans[index / x.a.heads];
        let keys = span.key_count();
        Task { isa, span, a: x.a, head: index % x.a.heads, keys, width: keys.next_multiple_of(LANES) }
    }

    fn blocks(&self) -> impl Iterator<Item = Block> {
        let positions = &self.span.positions;
        (0..positions.len()).step_by(BLOCK).map(|from| {
            let len = BLOCK.min(positions.len() - from);
            let first = self.visible(positions[from]).start / LANES * LANES;
            let keys = first..self.visible(positions[from + len - 1]).end;
            let width = keys.len().next_multiple_of(LANES);
            Block { from, len, keys, width }
        })
    }

    /// The keys that a position sees.
    fn visible(&self, position: usize) -> Range<usize> {
        let end = (position + 1).min(self.keys);
        let start = self.a.window.map_or(0, |window| (position + 1).saturating_sub(window));
        start.min(end)..end
    }

    /// Where a head's part of a query row begins.
    fn query(&self, at: usize) -> usize {
        (self.span.queries.start + at) * self.a.heads * self.a.head_dim + self.head * self.a.head_dim
    }

    fn row(&self) -> usize {
        self.a.heads * self.a.head_dim
    }

    /// The part of a row of keys or values that this head reads.
    fn key<'b>(&self, x: &'b [f32], row: usize) -> &'b [f32] {
        let dim = self.a.head_dim;
        let head = self.head / (self.a.heads / self.a.kv_heads);
        &x[(row * self.a.kv_heads + head) * dim..][..dim]
    }

    /// Keys or values, row by row.
    fn gather(&self, x: &[f32], out: &mut [f32]) {
        for (row, out) in self.span.key_rows().zip(out.chunks_exact_mut(self.a.head_dim)) {
            out.copy_from_slice(self.key(x, row));
        }
    }

    /// The same with keys as lanes, `[head_dim, width]`; zeros behind the last.
    fn gather_transposed(&self, x: &[f32], out: &mut [f32]) {
        let mut rows = self.span.key_rows();
        for start in (0..self.width).step_by(LANES) {
            let mut some: [&[f32]; LANES] = [&[]; LANES];
            let count = LANES.min(self.keys - start);
            some.iter_mut().zip(rows.by_ref().take(count)).for_each(|(to, row)| *to = self.key(x, row));
            for d in 0..self.a.head_dim {
                let out = &mut out[d * self.width + start..][..LANES];
                for (out, key) in out.iter_mut().zip(&some[..count]) {
                    *out = key[d];
                }
                out[count..].fill(0.0);
            }
        }
    }

    /// `scale * x k^T` of a block, `[block, block.width]`.
    fn scores(&self, block: &Block, x: &[f32], keys: &[f32], scale: f32, out: &mut [f32]) {
        let product = Matmul {
            m: block.len,
            n: block.width,
            k: self.a.head_dim,
            a: &x[self.query(block.from)..],
            a_steps: (self.row(), 1),
            b: &keys[block.keys.start..],
            b_step: self.width,
            scale,
            add: false,
        };
        let to = DisjointSlices::new(out);
        // SAFETY: the scratch is this thread's own.
        unsafe { matmul(self.isa, product, Target { to: &to, start: 0, step: block.width }) };
    }

    /// `+= scores^T x` of a block: for each of its keys a row.
    fn add_to_keys(&self, block: &Block, scores: &[f32], x: &[f32], out: &mut [f32]) {
        let dim = self.a.head_dim;
        let product = Matmul {
            m: block.keys.len(),
            n: dim,
            k: block.len,
            a: scores,
            a_steps: (1, block.width),
            b: &x[self.query(block.from)..],
            b_step: self.row(),
            scale: 1.0,
            add: true,
        };
        let to = DisjointSlices::new(out);
        let target = Target { to: &to, start: block.keys.start * dim, step: dim };
        // SAFETY: the slice is this task's own.
        unsafe { matmul(self.isa, product, target) };
    }

    /// `scores x` of a block, where `x` has a row for each key: into the head's part of rows of queries.
    ///
    /// # Safety
    /// Nobody else writes to this head of these rows.
    unsafe fn weighted(&self, block: &Block, scores: &[f32], x: &[f32], out: &DisjointSlices<'_, f32>) {
        let dim = self.a.head_dim;
        let product = Matmul {
            m: block.len,
            n: dim,
            k: block.keys.len(),
            a: scores,
            a_steps: (block.width, 1),
            b: &x[block.keys.start * dim..],
            b_step: dim,
            scale: 1.0,
            add: false,
        };
        let target = Target { to: out, start: self.query(block.from), step: self.row() };
        // SAFETY: the caller's promise.
        unsafe { matmul(self.isa, product, target) };
    }

    /// A row of scores of a block, and what of it its query sees.
    fn visible_in(&self, block: &Block, at: usize) -> Range<usize> {
        let seen = self.visible(self.span.positions[block.from + at]);
        seen.start - block.keys.start..seen.end - block.keys.start
    }
}

/// Writes `out` `[rows, heads * head_dim]` and the sums' logarithms `lse` `[rows, heads]`.
pub(super) fn forward(pool: &Pool, isa: Isa, x: Inputs<'_>, out: &mut [f32], lse: &mut [f32]) -> Result<()> {
    let (out, lse) = (DisjointSlices::new(out), DisjointSlices::new(lse));
    let heads = x.a.heads;
    pool.run("attention", x.spans.len() * heads, &|index| {
        let task = Task::new(isa, &x, index);
        let dim = x.a.head_dim;
        let sizes = [dim * task.width, task.keys * dim, BLOCK * task.width];
        with_scratch(sizes, |[keys, values, scores]| {
            task.gather_transposed(x.k, keys);
            task.gather(x.v, values);
            for block in task.blocks() {
                task.scores(&block, x.q, keys, x.a.scale, scores);
                let mut sums = [(0.0, 0.0); BLOCK];
                for (at, row) in scores.chunks_exact_mut(block.width).take(block.len).enumerate() {
                    let seen = task.visible_in(&block, at);
                    softmax(isa, x.a.soft_cap, seen, row, &mut sums[at]);
                }
                // SAFETY: each head of a row is one task's own.
                unsafe { task.weighted(&block, scores, values, &out) };
                for (at, (greatest, sum)) in sums.into_iter().enumerate().take(block.len) {
                    let start = task.query(block.from + at);
                    let row = (task.span.queries.start + block.from + at) * heads + task.head;
                    // SAFETY: as above.
                    unsafe {
                        out.slice_mut(start..start + dim).iter_mut().for_each(|out| *out /= sum);
                        lse.slice_mut(row..row + 1)[0] = greatest + sum.ln();
                    }
                }
            }
        });
    })
}

/// The gradients of queries, keys and values.
pub(super) fn backward(
    pool: &Pool,
    isa: Isa,
    x: Inputs<'_>,
    y: Outputs<'_>,
    to: InputGradients<'_>,
) -> Result<()> {
    let (heads, dim) = (x.a.heads, x.a.head_dim);
    let mut starts = Vec::with_capacity(x.spans.len());
    let mut len = 0;
    for span in x.spans {
        starts.push(len);
        len += heads * span.key_count() * dim;
    }
    let (mut k_parts, mut v_parts) = (vec![0.0; len], vec![0.0; len]);
    let (dq, k_out, v_out) =
        (DisjointSlices::new(to.q), DisjointSlices::new(&mut k_parts), DisjointSlices::new(&mut v_parts));
    pool.run("attention backward", x.spans.len() * heads, &|index| {
        let task = Task::new(isa, &x, index);
        let own = task.keys * dim;
        let start = starts[index / heads] + task.head * own;
        // SAFETY: each span and head has its own part.
        let (dk, dv) = unsafe { (k_out.slice_mut(start..start + own), v_out.slice_mut(start..start + own)) };
        let (wide, block) = (dim * task.width, BLOCK * task.width);
        with_scratch([wide, wide, own, block, block], |[kt, vt, keys, weights, slopes]| {
            task.gather_transposed(x.k, kt);
            task.gather_transposed(x.v, vt);
            task.gather(x.k, keys);
            for block in task.blocks() {
                task.scores(&block, x.q, kt, x.a.scale, weights);
                task.scores(&block, y.gradient, vt, 1.0, slopes);
                let rows = weights.chunks_exact_mut(block.width).zip(slopes.chunks_exact_mut(block.width));
                for (at, (weights, slopes)) in rows.take(block.len).enumerate() {
                    let start = task.query(block.from + at);
                    let row = (task.span.queries.start + block.from + at) * heads + task.head;
                    let job = ScoreRow {
                        cap: x.a.soft_cap,
                        scale: x.a.scale,
                        lse: y.lse[row],
                        out: &y.out[start..start + dim],
                        gradient: &y.gradient[start..start + dim],
                    };
                    score_slopes(isa, job, task.visible_in(&block, at), weights, slopes);
                }
                task.add_to_keys(&block, weights, y.gradient, dv);
                task.add_to_keys(&block, slopes, x.q, dk);
                // SAFETY: each head of a row is one task's own.
                unsafe { task.weighted(&block, slopes, keys, &dq) };
            }
        });
    })?;
    let parts = parts_of_rows(x.spans, &starts, to.k.len() / (x.a.kv_heads * dim), (heads, dim));
    for (from, out) in [(&k_parts, to.k), (&v_parts, to.v)] {
        add_up(pool, x.a, &parts, from, out)?;
    }
    Ok(())
}

/// Of each row of keys, where the spans that see it have put their parts: those of head 0, and from a head to
/// the next.
fn parts_of_rows(
    spans: &[SpanRows],
    starts: &[usize],
    rows: usize,
    (heads, dim): (usize, usize),
) -> Vec<Vec<(usize, usize)>> {
    let mut parts = vec![Vec::new(); rows];
    for (span, &start) in spans.iter().zip(starts) {
        let keys = span.key_count();
        debug_assert!(heads * keys * dim <= usize::MAX - start);
        for (at, row) in span.key_rows().enumerate() {
            parts[row].push((start + at * dim, keys * dim));
        }
    }
    parts
}

/// Sums for each row and key head, over spans and then heads, in order.
fn add_up(
    pool: &Pool,
    a: &Attention<'static>,
    parts: &[Vec<(usize, usize)>],
    from: &[f32],
    out: &mut [f32],
) -> Result<()> {
    const ROWS: usize = 16;
    let (dim, group) = (a.head_dim, a.heads / a.kv_heads);
    let width = a.kv_heads * dim;
    let out = DisjointSlices::new(out);
    pool.run("attention sums", parts.len().div_ceil(ROWS), &|task| {
        for (row, parts) in parts.iter().enumerate().skip(task * ROWS).take(ROWS) {
            // SAFETY: each row is one task's own.
            let out = unsafe { out.slice_mut(row * width..(row + 1) * width) };
            out.fill(0.0);
            for &(start, step) in parts {
                for head in 0..a.heads {
                    let to = &mut out[head / group * dim..][..dim];
                    let from = &from[start + head * step..][..dim];
                    to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
                }
            }
        }
    })
}

/// What the scores of one query need besides them.
#[derive(Clone, Copy)]
struct ScoreRow<'a> {
    cap: Option<f32>,
    scale: f32,
    lse: f32,
    out: &'a [f32],
    gradient: &'a [f32],
}

tiered! {
    /// A row of scores becomes `exp(score - greatest)`, zeros where the query does not see; `stats` are the
    /// greatest and the sum.
    fn softmax(cap: Option<f32>, seen: Range<usize>, row: &mut [f32], stats: &mut (f32, f32)) = softmax_body;
}
tiered! {
    /// A row of scores becomes its weights, and the gradients of the weights those of the scores.
    fn score_slopes(job: ScoreRow<'_>, seen: Range<usize>, weights: &mut [f32], slopes: &mut [f32])
        = slopes_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn softmax_body<S: Simd>(
    cap: Option<f32>,
    seen: Range<usize>,
    row: &mut [f32],
    stats: &mut (f32, f32),
) {
    let (vectors, _) = row.as_chunks_mut::<LANES>();
    // SAFETY: the caller has the tier's instructions; chunks are sixteen floats.
    unsafe {
        if let Some(cap) = cap {
            for lanes in vectors.iter_mut() {
                S::store(lanes.as_mut_ptr(), capped::<S>(cap, S::load(lanes.as_ptr())));
            }
        }
        hide(vectors, &seen, f32::NEG_INFINITY);
        let mut most = S::splat(f32::NEG_INFINITY);
        for lanes in vectors.iter() {
            most = S::max(S::load(lanes.as_ptr()), most);
        }
        let greatest = S::reduce_max(most);
        let mut sum = S::zero();
        for lanes in vectors.iter_mut() {
            let power = math::exp::<S>(S::sub(S::load(lanes.as_ptr()), S::splat(greatest)));
            sum = S::add(sum, power);
            S::store(lanes.as_mut_ptr(), power);
        }
        *stats = (greatest, S::reduce_sum(sum));
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn slopes_body<S: Simd>(
    job: ScoreRow<'_>,
    seen: Range<usize>,
    weights: &mut [f32],
    slopes: &mut [f32],
) {
    let ScoreRow { cap, scale, lse, out, gradient } = job;
    let (weights, slopes) = (weights.as_chunks_mut::<LANES>().0, slopes.as_chunks_mut::<LANES>().0);
    // SAFETY: the caller has the tier's instructions; chunks are sixteen floats.
    unsafe {
        let mut sum = S::zero();
        for (out, gradient) in out.chunks(LANES).zip(gradient.chunks(LANES)) {
            sum = S::fma(S::load_some(out), S::load_some(gradient), sum);
        }
        let (mean, lse) = (S::splat(S::reduce_sum(sum)), S::splat(lse));
        // Not of all: behind a window, scores may be far above those that are seen.
        hide(weights, &seen, f32::NEG_INFINITY);
        for (weights, slopes) in weights.iter_mut().zip(slopes.iter_mut()) {
            let mut score = S::load(weights.as_ptr());
            let mut factor = S::splat(scale);
            if let Some(cap) = cap {
                score = capped::<S>(cap, score);
                let t = S::mul(score, S::splat(1.0 / cap));
                factor = S::mul(factor, S::fma(S::mul(t, S::splat(-1.0)), t, S::splat(1.0)));
            }
            let weight = math::exp::<S>(S::sub(score, lse));
            let slope = S::mul(weight, S::sub(S::load(slopes.as_ptr()), mean));
            S::store(weights.as_mut_ptr(), weight);
            S::store(slopes.as_mut_ptr(), S::mul(slope, factor));
        }
        if cap.is_some() {
            // A hidden score was minus the cap and not minus infinity.
            hide(weights, &seen, 0.0);
            hide(slopes, &seen, 0.0);
        }
    }
}

/// `cap * tanh(x / cap)`
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn capped<S: Simd>(cap: f32, x: S::F) -> S::F {
    // SAFETY: the caller's promise.
    unsafe { S::mul(S::splat(cap), math::tanh::<S>(S::div(x, S::splat(cap)))) }
}

/// Numbers that are not `seen` become `value`.
#[inline(always)]
fn hide(vectors: &mut [[f32; LANES]], seen: &Range<usize>, value: f32) {
    let all = vectors.as_flattened_mut();
    all[..seen.start].fill(value);
    all[seen.end..].fill(value);
}

#[cfg(test)]
mod tests;
