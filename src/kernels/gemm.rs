//! `x * W^T` over packed weights: how the work is cut into tasks, and which kernel does a task.
//!
//! A row's sums run along `k` in one order, whatever the number of rows, the tile, the thread or the tier:
//!
//! * quantized weights: a dot product of bytes for each 32 (or 16) weights, see [`tile`](super::tile). With
//!   few rows ([`skinny`]) panels are unpacked in registers, and the weights are streamed once, which is all
//!   that decoding can do; more rows share unpacked panels ([`blocked`]);
//! * [`floats`]: fused steps in f32, in tiles of up to twelve rows;
//! * [`levels`] of a table: as whole numbers of two digits, where activations are bytes; else as floats.
//!
//! What happens to finished sums is the product's [`epilogue`].

use std::ops::Range;

use super::blocked::{self, Panels, Sink};
use super::epilogue::{self, Epilogue, Product};
use super::floats::{self, Sums};
use super::isa::{Isa, Tiles, tile_rows};
use super::layouts::{Layout, with_layout};
use super::levels;
use super::misuse;
use super::panels;
use super::pool::Pool;
use super::quantize::Quantized;
use super::simd::LANES;
use super::skinny;
use crate::error::Result;

/// Rows `[rows, k]` that are multiplied, as floats and as bytes.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) floats: &'a [f32],
    /// Must be there where a weight has whole numbers.
    pub(super) bytes: Option<&'a Quantized>,
}

/// Some rows, and the products that they pass: computed one after the other over the same columns, of which
/// all have as many.
pub(super) struct Group<'a> {
    pub(super) rows: Range<usize>,
    pub(super) list: &'a [Product<'a>],
}

/// Computes products of the same rows. Those of one list are computed one after the other over the same
/// columns (and have as many); lists are independent.
pub(super) fn products(
    pool: &Pool,
    isa: Isa,
    name: &'static str,
    x: Input<'_>,
    lists: &[&[Product<'_>]],
) -> Result<()> {
    let groups: Vec<_> = lists.iter().map(|list| Group { rows: 0..x.rows, list }).collect();
    grouped(pool, isa, name, x, &groups)
}

/// A grouped GEMM: as [`products`], but each list is for rows of its own, and all share the threads. No two
/// groups have a row and an output in common.
pub(super) fn grouped(
    pool: &Pool,
    isa: Isa,
    name: &'static str,
    x: Input<'_>,
    groups: &[Group<'_>],
) -> Result<()> {
    let all = || groups.iter().flat_map(|group| group.list);
    if all().any(|product| product.w.dtype.has_integer_codes()) && x.bytes.is_none() {
        return Err(misuse("quantized weights are multiplied with bytes, and there are none"));
    }
    let few = all().map(|p| skinny::max_rows(isa, p.w.dtype)).max().unwrap_or(0);
    let panels = groups.iter().map(columns).sum();
    let plans: Vec<_> = groups.iter().map(|group| Plan::of(group, panels, pool.threads(), few)).collect();
    pool.run(name, plans.iter().map(|plan| plan.tasks).sum(), &|mut index| {
        for (group, plan) in groups.iter().zip(&plans) {
            if index < plan.tasks {
                return plan.run(group, index, (isa, x), pool.threads());
            }
            index -= plan.tasks;
        }
    })
}

fn columns(group: &Group<'_>) -> usize {
    group.list.first().map_or(0, |p| p.w.panels())
}

/// How a group is cut into tasks.
struct Plan {
    split: Split,
    /// Parts of its rows.
    parts: usize,
    tasks: usize,
}

impl Plan {
    /// `panels`: of all groups.
    fn of(group: &Group<'_>, panels: usize, threads: usize, few: usize) -> Plan {
        let split = Split::of(panels, group.rows.len(), threads, few);
        let parts = group.rows.len().div_ceil(split.rows.max(1));
        let tasks = columns(group).div_ceil(split.panels) * parts;
        Plan { split, parts, tasks }
    }

    /// Task `index` of the group.
    fn run(&self, group: &Group<'_>, index: usize, (isa, x): (Isa, Input<'_>), threads: usize) {
        let Plan { split, parts, .. } = self;
        let (column_task, part, columns) = (index / parts, index % parts, columns(group));
        let start = group.rows.start + part * split.rows;
        let rows = start..group.rows.end.min(start + split.rows);
        let panels = column_task * split.panels..columns.min((column_task + 1) * split.panels);
        // What this thread is likely to do next, if all keep step; each part of the rows prefetches a share.
        let step = threads.div_ceil(*parts) * split.panels;
        let next = |panel: usize| (panel + step).min(columns);
        let next = next(panels.start)..next(panels.end);
        let task = Task { isa, x, rows, panels };
        match group.list {
            [gate, up] if task.rows.len() > skinny::max_rows(isa, gate.w.dtype) && is_pair(gate, up) => {
                let ahead = [gate, up].map(|of| share(of.w.bytes(next.clone()), part, *parts));
                multiply(&task, &[*gate, *up], &ahead);
            }
            list => {
                for (at, product) in list.iter().enumerate() {
                    let ahead = match list.get(at + 1) {
                        Some(other) => other.w.bytes(task.panels.clone()),
                        None => list[0].w.bytes(next.clone()),
                    };
                    multiply(&task, &[*product], &[share(ahead, part, *parts)]);
                }
            }
        }
    }
}

/// Whole cache lines: part `part` of about equal `parts`.
fn share(bytes: &[u8], part: usize, parts: usize) -> &[u8] {
    let start = |part: usize| (bytes.len() * part / parts).next_multiple_of(64).min(bytes.len());
    &bytes[start(part)..start(part + 1)]
}

/// The rows, and the panels of a product or two, that are computed together.
struct Task<'a> {
    isa: Isa,
    x: Input<'a>,
    rows: Range<usize>,
    panels: Range<usize>,
}

/// Whether these are a gate and what it lets through, in matrices alike: a column's sums of both are finished
/// together.
fn is_pair(gate: &Product<'_>, up: &Product<'_>) -> bool {
    let alike = gate.w.dtype == up.w.dtype && gate.w.n == up.w.n && gate.w.k == up.w.k;
    let gated = matches!((gate.epilogue, up.epilogue), (Epilogue::Store, Epilogue::Gate(_)))
        && std::ptr::eq(gate.out, up.out);
    alike && gated && gate.w.dtype.has_integer_codes()
}

/// Panels of a task of few rows, at most.
const MAX_PANELS: usize = 64;

/// What a task has: panels, and rows.
#[derive(Debug)]
struct Split {
    panels: usize,
    rows: usize,
}

impl Split {
    /// Few enough of both to share the work evenly. With few rows, as many panels in one piece as that
    /// allows, since memory is read faster so; with many, the panels that are worked on together, times rows
    /// whose sums stay in L2.
    fn of(panels: usize, rows: usize, threads: usize, few: usize) -> Split {
        if rows <= few {
            return Split { panels: (panels / (4 * threads)).clamp(1, MAX_PANELS), rows };
        }
        let column_tasks = panels.div_ceil(panels::PANELS).max(1);
        // Unpacking takes as long as three rows of a task. At the end, threads wait for half a task. Both
        // together are least where there are about this many parts; and tasks of fewer than 16 rows would
        // spend too much on unpacking.
        let best = ((rows * threads) as f32 / (6 * column_tasks) as f32).sqrt().round() as usize;
        let wanted =
            if threads == 1 { 1 } else { best.max((4 * threads).div_ceil(column_tasks)).min(rows / 16) };
        let parts = rows.div_ceil(panels::ROWS).max(wanted).max(1);
        let rows = rows.div_ceil(parts);
        // Whole tiles.
        let rows = rows.next_multiple_of(if rows > 48 { 48 } else { 6 });
        Split { panels: panels::PANELS, rows: rows.min(panels::ROWS) }
    }
}

/// Multiplies with a matrix, or with a [pair](is_pair).
fn multiply(task: &Task<'_>, products: &[Product<'_>], ahead: &[&[u8]]) {
    let Task { isa, x, ref rows, ref panels } = *task;
    for product in products {
        assert!(x.floats.len() >= x.rows * x.k && product.w.k == x.k && rows.end <= x.rows);
        assert!(product.bias.is_none_or(|bias| bias.len() == product.w.n));
        assert!(product.terms.is_none_or(|terms| terms.len() == x.rows));
    }
    let product = &products[0];
    let w = product.w;
    with_layout!(w.dtype, Q => {
        let Some(bytes) = x.bytes else { return }; // `products` made sure
        assert!(bytes.rows >= x.rows && bytes.k == x.k);
        assert!(x.k > 0 && w.panel_bytes == x.k / Q::TYPE.block_len() * Q::UNIT);
        if Q::FEW && rows.len() <= skinny::max_rows(isa, w.dtype) {
            let finish = |row, panel, sums: &[_]| {
                // SAFETY: no two tasks have a row and a panel in common.
                unsafe { epilogue::finish(isa, product, row, panels.start + panel, sums) };
            };
            let (panels, rows) = (w.bytes(panels.clone()), rows.clone());
            return skinny::multiply::<Q>(isa, panels, w.panel_bytes, bytes, rows, finish);
        }
        let mut matrices = [w.bytes(panels.clone()); 2];
        for (bytes, product) in matrices.iter_mut().zip(products) {
            *bytes = product.w.bytes(panels.clone());
        }
        let w = Panels { matrices: &matrices[..products.len()], panel_bytes: w.panel_bytes, ahead };
        let mut output = Output { isa, products, first_panel: panels.start };
        blocked::multiply::<Q>(isa, w, bytes, rows.clone(), &mut output);
    }, else {
        assert!(w.dtype.row_bytes(x.k).is_some_and(|row| w.panel_bytes == LANES * row));
        if let Some(bytes) = x.bytes.filter(|bytes| levels::takes(w.dtype, bytes)) {
            assert!(bytes.rows >= x.rows && bytes.k == x.k);
            let task = (rows.clone(), panels.clone());
            return tiles(isa, &levels::TILES, product, task, |panel, row, rows, sums| {
                // SAFETY: the panel has `k` weights of sixteen columns; the rows are there.
                unsafe { levels::multiply(isa, rows, w.dtype, panel, (bytes, row), sums) }
            });
        }
        let sizes = floats::tile_sizes(w.dtype);
        tiles(isa, sizes, product, (rows.clone(), panels.clone()), |panel, row, rows, sums| {
            let x_rows = x.floats[row * x.k..(row + rows) * x.k].as_ptr();
            // SAFETY: the panel has `k` vectors of sixteen weights; the rows are there.
            unsafe { floats::multiply(isa, rows, w.dtype, panel, x_rows, x.k, sums) }
        });
    });
}

/// Where the sums of [`blocked`] go: through the epilogue of a product, or of a [pair](is_pair).
struct Output<'a> {
    isa: Isa,
    products: &'a [Product<'a>],
    first_panel: usize,
}

impl Sink for Output<'_> {
    fn expect(&self, rows: Range<usize>, panels: Range<usize>) {
        let panels = self.first_panel + panels.start..self.first_panel + panels.end;
        epilogue::prefetch_output(self.isa, &self.products[0], rows, panels);
    }

    fn take(&mut self, row: usize, panel: usize, [sums, second]: [&[[f32; LANES]]; 2]) {
        let panel = self.first_panel + panel;
        // SAFETY: no two tasks have a row and a panel in common.
        unsafe {
            match self.products {
                [gate, up] => epilogue::finish_pair(self.isa, (gate, up), row, panel, (sums, second)),
                _ => epilogue::finish(self.isa, &self.products[0], row, panel, sums),
            }
        }
    }
}

/// The rows times the panels, tile by tile: a tile of rows stays in L1 while the panels pass.
fn tiles(
    isa: Isa,
    sizes: &Tiles,
    product: &Product<'_>,
    (rows, panels): (Range<usize>, Range<usize>),
    tile: impl Fn(*const u8, usize, usize, Sums),
) {
    let mut scratch = [[0.0; LANES]; floats::MOST];
    let bare = product.scale == 1.0 && product.bias.is_none() && product.terms.is_none();
    let plain = matches!(product.epilogue, Epilogue::Store) && bare;
    let n = product.w.n;
    let mut row = rows.start;
    while row < rows.end {
        let size = tile_rows(isa, sizes, rows.end - row);
        let bytes = product.w.bytes(panels.clone()).chunks_exact(product.w.panel_bytes);
        for (panel, bytes) in panels.clone().zip(bytes) {
            if plain && (panel + 1) * LANES <= n {
                let first = row * n + panel * LANES;
                // Sixteen columns of each row are there, and no other task writes to them.
                let out = product.out.pointer(first..first + (size - 1) * n + LANES);
                tile(bytes.as_ptr(), row, size, Sums { first: out, stride: n });
            } else {
                let sums = Sums { first: scratch.as_mut_ptr().cast(), stride: LANES };
                tile(bytes.as_ptr(), row, size, sums);
                // SAFETY: no two tasks have a row and a panel in common.
                unsafe { epilogue::finish(isa, product, row, panel, &scratch[..size]) };
            }
        }
        row += size;
    }
}

#[cfg(test)]
mod tests;
