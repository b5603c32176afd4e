//! The gradient of what a frozen product read, `dx = dy W`, straight from the packed weights.
//!
//! Panels have rows of W for lanes, and this product wants columns. So a task takes some columns, unpacks
//! them for a block of W's rows at a time, turned, and passes all rows of `dy` over them while they lie in
//! cache: for some hundred rows that is little beside the product. (Transposes that were packed beside the
//! weights took 2 bytes a weight, and were no faster without instructions for bfloat16.)

use std::cell::RefCell;
use std::ops::Range;

use super::super::disjoint::DisjointSlices;
use super::super::floats::{Float, with_float};
use super::super::isa::{Isa, tiered};
use super::super::layouts::{GROUPS, Layout, SUB, with_layout};
use super::super::matmul::{Matmul, Target, matmul};
use super::super::pack::Packed;
use super::super::pool::Pool;
use super::super::simd::{LANES, Simd};
use super::super::unpack;
use crate::error::Result;

/// Rows of W that are unpacked together.
const DEPTH: usize = 256;

/// Rows of `dy` that pass over what is unpacked while they lie in cache.
const ROWS: usize = 96;

/// Rows below which unpacking once more weighs more than a thread that waits.
const LEAST_ROWS: usize = 192;

/// Sixteen rows of W, 32 columns.
type Tile = [[f32; SUB]; LANES];

thread_local! {
    static UNPACKED: RefCell<Vec<Tile>> = const { RefCell::new(Vec::new()) };
}

/// `dx = scale * dy W`, or `dx += scale * dy W`, for W `[n, k]`, `dy` `[rows, n]`, `dx` `[rows, k]`.
///
/// # Errors
/// `Internal` when a worker panicked.
pub(super) fn through(
    pool: &Pool,
    isa: Isa,
    (w, scale): (&Packed, f32),
    dy: &[f32],
    (dx, add): (&mut [f32], bool),
) -> Result<()> {
    let rows = dy.len() / w.n.max(1);
    let (across, down) = cuts(rows, w.k, 8 * pool.threads());
    let to = DisjointSlices::new(dx);
    pool.run("through weights", across.1 * down.1, &|index| {
        let cut = |at: usize, (size, _): (usize, usize), end: usize| at * size..end.min((at + 1) * size);
        let columns = cut(index % across.1, across, w.k);
        let rows = cut(index / across.1, down, rows);
        let task = Task { isa, w, scale, dy, columns, rows, add };
        // SAFETY: tasks have no number of the product in common.
        unsafe { task.run(&to) };
    })
}

/// Columns of a task and how many such there are, and the same of rows, for about so many tasks.
fn cuts(rows: usize, columns: usize, tasks: usize) -> ((usize, usize), (usize, usize)) {
    let width = if columns.div_ceil(2 * SUB) * (rows / LEAST_ROWS).max(1) < tasks { SUB } else { 2 * SUB };
    let across = columns.div_ceil(width);
    let parts = tasks.div_ceil(across.max(1)).clamp(1, (rows / LEAST_ROWS).max(1));
    let height = rows.div_ceil(parts).max(1);
    ((width, across), (height, rows.div_ceil(height)))
}

struct Task<'a> {
    isa: Isa,
    w: &'a Packed,
    scale: f32,
    dy: &'a [f32],
    columns: Range<usize>,
    rows: Range<usize>,
    add: bool,
}

impl Task<'_> {
    /// # Safety
    /// Nobody else has these rows and columns of the target.
    unsafe fn run(&self, to: &DisjointSlices<'_, f32>) {
        let (n, k) = (self.w.n, self.w.k);
        UNPACKED.with_borrow_mut(|unpacked| {
            unpacked.resize(self.columns.len().div_ceil(SUB) * (DEPTH / LANES), [[0.0; SUB]; LANES]);
            for first in (0..n).step_by(DEPTH) {
                let depth = first..n.min(first + DEPTH);
                self.unpack(depth.clone(), unpacked);
                for row in self.rows.clone().step_by(ROWS) {
                    let m = ROWS.min(self.rows.end - row);
                    for (at, panel) in unpacked.chunks_exact(DEPTH / LANES).enumerate() {
                        let column = self.columns.start + at * SUB;
                        let product = Matmul {
                            m,
                            n: SUB.min(k - column),
                            k: depth.len(),
                            a: &self.dy[row * n + first..],
                            a_steps: (n, 1),
                            b: panel.as_flattened().as_flattened(),
                            b_step: SUB,
                            scale: self.scale,
                            add: self.add || first > 0,
                        };
                        let target = Target { to, start: row * k + column, step: k };
                        // SAFETY: the caller's promise.
                        unsafe { matmul(self.isa, product, target) };
                    }
                }
            }
        });
    }

    /// Some rows of the task's columns: 32 columns after the other, each `DEPTH` rows. What lies beyond the
    /// matrix is anything.
    fn unpack(&self, rows: Range<usize>, out: &mut [Tile]) {
        for panel in rows.start / LANES..rows.end.div_ceil(LANES) {
            let bytes = self.w.bytes(panel..panel + 1);
            let at = panel - rows.start / LANES;
            for (column, out) in self.columns.clone().step_by(SUB).zip(out.chunks_exact_mut(DEPTH / LANES)) {
                with_layout!(self.w.dtype,
                    Q => self.blocks::<Q>(bytes, column / SUB, &mut out[at]),
                    else self.floats(bytes, column, &mut out[at]));
            }
        }
    }

    fn blocks<Q: Layout>(&self, panel: &[u8], sub: usize, out: &mut Tile) {
        let unit = &panel[sub / Q::SUBS * Q::UNIT..][..Q::UNIT];
        quantized::<Q>(self.isa, unit, sub % Q::SUBS, out);
    }

    fn floats(&self, panel: &[u8], column: usize, out: &mut Tile) {
        let columns = column..self.w.k.min(column + SUB);
        with_float!(self.w.dtype, F => floats::<F>(self.isa, panel, columns, out));
    }
}

tiered! {
    /// Sub-block `sub` of a unit.
    fn quantized<Q: Layout>(unit: &[u8], sub: usize, out: &mut Tile) = quantized_body;
}
tiered! {
    /// Columns of a panel of floats, up to 32.
    fn floats<F: Float>(panel: &[u8], columns: Range<usize>, out: &mut Tile) = floats_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn quantized_body<S: Simd, Q: Layout>(unit: &[u8], sub: usize, out: &mut Tile) {
    assert!(unit.len() == Q::UNIT && sub < Q::SUBS);
    const { assert!(size_of::<S::I>() == 4 * LANES) };
    // SAFETY: the caller's promise, and a whole unit; arrays are as large as what is written to them.
    unsafe {
        let head = unpack::load_head::<S, Q>(unit.as_ptr());
        let sub = unit.as_ptr().add(Q::HEAD + sub * Q::SUB_BYTES);
        // [columns of a group, row]
        let mut codes = [[[0u8; 4]; LANES]; GROUPS];
        for (g, codes) in codes.iter_mut().enumerate() {
            let group = unpack::unpack::<S, Q>(sub, g);
            codes.as_mut_ptr().cast::<S::I>().write_unaligned(group);
        }
        for half in 0..2 {
            let of_scales = if Q::HALVES { half } else { 0 };
            let (scale, offset) = unpack::load_scales::<S, Q>(head, sub, of_scales);
            let (mut scales, mut offsets) = ([0.0; LANES], [0.0; LANES]);
            S::store(scales.as_mut_ptr(), scale);
            S::store(offsets.as_mut_ptr(), offset);
            for (r, out) in out.iter_mut().enumerate() {
                let mut row = [[0u8; 4]; 4];
                for (g, row) in row.iter_mut().enumerate() {
                    *row = codes[4 * half + g][r];
                }
                let row = S::load_u8(row.as_ptr().cast());
                let weights = S::fma(S::splat(scales[r]), row, S::splat(offsets[r]));
                S::store(out[LANES * half..].as_mut_ptr(), weights);
            }
        }
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn floats_body<S: Simd, F: Float>(panel: &[u8], columns: Range<usize>, out: &mut Tile) {
    assert!(columns.len() <= SUB && columns.end <= panel.len() / F::UNIT * F::LEN);
    for (at, column) in columns.enumerate() {
        let mut lanes = [0.0; LANES];
        // SAFETY: the caller's promise; the panel has the column's sixteen floats, by the line above.
        unsafe { S::store(lanes.as_mut_ptr(), F::load::<S>(panel.as_ptr(), column)) };
        for (out, value) in out.iter_mut().zip(lanes) {
            out[at] = value;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::super::pack::{Arena, pack};
    use super::*;
    use crate::weights::{Bytes, WeightTensor, WeightType};

    fn tensor(dtype: WeightType, n: usize, k: usize) -> (WeightTensor, usize) {
        let row_bytes = dtype.row_bytes(k).unwrap();
        // Bits that make small numbers of all floats and half floats.
        let byte = |at: usize| ((at as u32 + 1).wrapping_mul(2_654_435_761) >> 13) as u8 & 0x3b;
        let data = Bytes::from_vec((0..n * row_bytes).map(byte).collect());
        (WeightTensor { name: "w".into(), dtype, shape: vec![n, k], data }, row_bytes)
    }

    /// Every format and tier against the rows that embeddings read, in f64; more rows of W than a block, and
    /// rows and columns that are no whole tiles; on one thread and on three, which have the same bits.
    #[test]
    fn products_are_those_of_f64() {
        for dtype in WeightType::ALL {
            let quantized = dtype.block_len() > 1;
            for (rows, n, k) in [(3, 37, 256), (400, 300, 512), (2, 21, if quantized { 256 } else { 45 })] {
                let (tensor, row_bytes) = tensor(dtype, n, k);
                let w = pack(&Pool::new(1).unwrap(), &Arena::default(), &tensor, n, k, row_bytes).unwrap();
                let mut floats = vec![0.0; n * k];
                floats.chunks_exact_mut(k).enumerate().for_each(|(row, out)| w.row(row, out));
                let some = |len: usize| (0..len).map(|at| (at % 29) as f32 / 14.0 - 1.0).collect::<Vec<_>>();
                let (dy, start) = (some(rows * n), some(rows * k));
                for (isa, add) in Isa::available().into_iter().flat_map(|isa| [(isa, false), (isa, true)]) {
                    let [one, three] = [1, 3].map(|threads| {
                        let mut dx = start.clone();
                        through(&Pool::new(threads).unwrap(), isa, (&w, 0.5), &dy, (&mut dx, add)).unwrap();
                        dx
                    });
                    assert!(one == three, "threads change bits");
                    for row in (0..rows).step_by(67) {
                        for column in 0..k {
                            let term = |at: usize| {
                                let (dy, w) = (dy[row * n + at], floats[at * k + column]);
                                f64::from(dy) * f64::from(w)
                            };
                            let size: f64 = (0..n).map(|at| term(at).abs()).sum();
                            let before = if add { f64::from(start[row * k + column]) } else { 0.0 };
                            let wanted = 0.5 * (0..n).map(term).sum::<f64>() + before;
                            let off = (f64::from(one[row * k + column]) - wanted).abs();
                            assert!(off <= 3e-6 * (1.0 + size), "{dtype} on {}: {off} of {size}", isa.name());
                        }
                    }
                }
            }
        }
    }
}
