//! `x * W^T` over weights in the file's own format.
//!
//! A task is a panel of weight rows: they are turned into f32 in a scratch buffer that stays in the cache,
//! and every row of activations is multiplied with them in register tiles ([`lanes::dots`]). One row or
//! five hundred, the arithmetic of an output element is the same: dequantize, then one dot product in the
//! one order. With many rows the panel is as large as half the second-level cache lets it be; with few, as
//! the first.
//!
//! What is left for later: integer dot products (VNNI, AMX), which need another order of summation.

use std::cell::RefCell;

use super::isa::{Isa, Tier, tiered};
use super::lanes;
use super::pool::{Pool, Shares};
use crate::error::Result;
use crate::weights::WeightType;
use crate::weights::blocks::{self, large, small};

/// A matrix `[n, k]` as stored: `n` rows of `row_bytes`.
#[derive(Clone, Copy)]
pub(super) struct Stored<'a> {
    pub(super) dtype: WeightType,
    pub(super) bytes: &'a [u8],
    pub(super) row_bytes: usize,
    pub(super) n: usize,
    pub(super) k: usize,
}

impl Stored<'_> {
    fn row(&self, row: usize) -> &[u8] {
        &self.bytes[row * self.row_bytes..][..self.row_bytes]
    }
}

/// Activations `[rows, k]`, and where row `i`, column `j` of the product goes: `out[i * n + j]`.
#[derive(Clone, Copy)]
struct Product<'a> {
    x: &'a [f32],
    rows: usize,
    k: usize,
    n: usize,
    bias: Option<&'a [f32]>,
    out: &'a Shares<'a>,
}

thread_local! {
    /// Dequantized weight rows of the panel at hand.
    static PANEL: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// `out = x * w^T (+ bias)`; `x` is `[rows, k]`, `out` is `[rows, n]`.
pub(super) fn matmul(
    pool: &Pool,
    isa: Isa,
    w: Stored<'_>,
    x: &[f32],
    bias: Option<&[f32]>,
    out: &mut [f32],
) -> Result<()> {
    let rows = x.len() / w.k;
    assert_eq!((x.len(), out.len()), (rows * w.k, rows * w.n));
    assert!(bias.is_none_or(|bias| bias.len() == w.n));
    let out = Shares::new(out);
    let product = Product { x, rows, k: w.k, n: w.n, bias, out: &out };
    let panel = panel_rows(rows, w.n, w.k, pool.threads());
    pool.run(w.n.div_ceil(panel), &|index| {
        let columns = index * panel..w.n.min((index + 1) * panel);
        PANEL.with_borrow_mut(|scratch| {
            scratch.resize(panel * w.k, 0.0);
            for (row, scratch) in columns.clone().zip(scratch.chunks_exact_mut(w.k)) {
                dequantize(isa, w.dtype, w.row(row), scratch);
            }
            multiply(isa, &product, columns, scratch);
        });
    })
}

/// Weight rows of a task, a multiple of 8. Sizes are floats of scratch; nothing but speed depends on them.
fn panel_rows(rows: usize, n: usize, k: usize, threads: usize) -> usize {
    let scratch = if rows < 8 { 8 * 1024 } else { 48 * 1024 };
    let most = (scratch / k).clamp(8, 64);
    // At least four tasks a thread, so that one late thread does not hold up the others for long.
    let fair = n.div_ceil(4 * threads);
    most.min(fair).next_multiple_of(8).min(64)
}

/// Rows of a matrix as f32: `out[i] = w[ids[i]]`.
pub(super) fn gather(isa: Isa, w: Stored<'_>, ids: &[u32], out: &mut [f32]) {
    for (&id, out) in ids.iter().zip(out.chunks_exact_mut(w.k)) {
        dequantize(isa, w.dtype, w.row(id as usize), out);
    }
}

tiered! { fn dequantize(dtype: WeightType, bytes: &[u8], out: &mut [f32]) = dequantize_body; }
tiered! { fn multiply(p: &Product<'_>, columns: std::ops::Range<usize>, panel: &[f32]) = multiply_body; }

/// Each block by one function, called by its name: handed over as a value, it would be compiled apart from
/// its caller, without the tier's instructions, and be called for each block (ten times slower). The
/// empty `asm` keeps the compiler from vectorizing over blocks instead of inside one: it then gathers and
/// scatters single numbers, which costs three times as much. (A `black_box` does too, but hides from the
/// compiler that input and output do not overlap.)
macro_rules! blocks {
    ($bytes:expr, $out:expr, $block:path) => {
        for (bytes, out) in $bytes.as_chunks().0.iter().zip($out.as_chunks_mut().0) {
            // SAFETY: no instruction at all.
            unsafe { std::arch::asm!("", options(nomem, nostack, preserves_flags)) };
            $block(bytes, out);
        }
    };
}

#[inline(always)]
fn dequantize_body<T: Tier>(dtype: WeightType, bytes: &[u8], out: &mut [f32]) {
    match dtype {
        WeightType::F32 => blocks::f32_row(bytes, out),
        WeightType::F16 => blocks::f16_row(bytes, out),
        WeightType::BF16 => blocks::bf16_row(bytes, out),
        WeightType::Q4_0 => blocks!(bytes, out, small::q4_0),
        WeightType::Q4_1 => blocks!(bytes, out, small::q4_1),
        WeightType::Q5_0 => blocks!(bytes, out, small::q5_0),
        WeightType::Q5_1 => blocks!(bytes, out, small::q5_1),
        WeightType::Q8_0 => blocks!(bytes, out, small::q8_0),
        WeightType::Iq4Nl => blocks!(bytes, out, small::iq4_nl),
        WeightType::Q2K => blocks!(bytes, out, large::q2_k),
        WeightType::Q3K => blocks!(bytes, out, large::q3_k),
        WeightType::Q4K => blocks!(bytes, out, large::q4_k),
        WeightType::Q5K => blocks!(bytes, out, large::q5_k),
        WeightType::Q6K => blocks!(bytes, out, large::q6_k),
        WeightType::Iq4Xs => blocks!(bytes, out, large::iq4_xs),
    }
}

/// All rows times the panel's columns, in tiles.
#[inline(always)]
fn multiply_body<T: Tier>(p: &Product<'_>, columns: std::ops::Range<usize>, panel: &[f32]) {
    assert!(panel.len() >= columns.len() * p.k && p.x.len() >= p.rows * p.k);
    if T::WIDE {
        if p.rows == 1 {
            return strip::<1, 8>(p, 0, &columns, panel);
        }
        tiles::<4, 4>(p, &columns, panel);
    } else {
        tiles::<2, 2>(p, &columns, panel);
    }
}

/// Tiles of `M` rows, then single rows.
#[inline(always)]
fn tiles<const M: usize, const N: usize>(p: &Product<'_>, columns: &std::ops::Range<usize>, panel: &[f32]) {
    let mut row = 0;
    while row + M <= p.rows {
        strip::<M, N>(p, row, columns, panel);
        row += M;
    }
    while row < p.rows {
        strip::<1, N>(p, row, columns, panel);
        row += 1;
    }
}

/// `M` rows from `row` on, times the panel: `N` columns at a time, then single ones.
#[inline(always)]
fn strip<const M: usize, const N: usize>(
    p: &Product<'_>,
    row: usize,
    columns: &std::ops::Range<usize>,
    panel: &[f32],
) {
    let mut column = 0;
    while column + N <= columns.len() {
        tile::<M, N>(p, row, columns.start, column, panel);
        column += N;
    }
    while column < columns.len() {
        tile::<M, 1>(p, row, columns.start, column, panel);
        column += 1;
    }
}

#[inline(always)]
fn tile<const M: usize, const N: usize>(
    p: &Product<'_>,
    row: usize,
    start: usize,
    column: usize,
    panel: &[f32],
) {
    debug_assert!(row + M <= p.rows && (column + N) * p.k <= panel.len());
    // SAFETY: rows `row..row + M` of `x` and `column..column + N` of the panel are there, `k` floats each.
    let values = unsafe {
        let a = std::array::from_fn(|i| p.x.as_ptr().add((row + i) * p.k));
        let b = std::array::from_fn(|j| panel.as_ptr().add((column + j) * p.k));
        lanes::dots::<M, N>(a, b, p.k)
    };
    for (i, values) in values.iter().enumerate() {
        for (j, value) in values.iter().enumerate() {
            let n = start + column + j;
            let value = p.bias.map_or(*value, |bias| *value + bias[n]);
            // SAFETY: this column belongs to this task alone.
            unsafe { p.out.set((row + i) * p.n + n, value) };
        }
    }
}
