//! Rotary position embedding: the table of a step, and the rotation.

use candle_core::{Device, Tensor};

use super::RopeTable;
use super::isa::{Isa, Tier, tiered};
use super::pool::{Pool, Shares};
use crate::error::Result;

/// See [`super::Ops::rope_table`]. Products in f32 and then the library's own sine: the angle of a far
/// position has few good bits, and this is the rounding that the reference implementation has too.
pub(super) fn table(inv_freq: &[f32], scale: f32, positions: &[u32], device: &Device) -> Result<RopeTable> {
    let shape = (positions.len(), inv_freq.len());
    let mut cos = Vec::with_capacity(shape.0 * shape.1);
    let mut sin = Vec::with_capacity(shape.0 * shape.1);
    for &position in positions {
        for &frequency in inv_freq {
            let (s, c) = (position as f32 * frequency).sin_cos();
            cos.push(c * scale);
            sin.push(s * scale);
        }
    }
    Ok(RopeTable { cos: Tensor::from_vec(cos, shape, device)?, sin: Tensor::from_vec(sin, shape, device)? })
}

/// Rows of `dim` floats in heads of `head_dim`; the table has `half` cosines and sines a row.
#[derive(Clone, Copy)]
pub(super) struct Shape {
    pub(super) dim: usize,
    pub(super) head_dim: usize,
    pub(super) half: usize,
}

/// Rotates every head of every row. Rows are tasks in bundles of about 8192 floats.
pub(super) fn rotate(
    pool: &Pool,
    isa: Isa,
    shape: Shape,
    x: &[f32],
    (cos, sin): (&[f32], &[f32]),
    out: &mut [f32],
) -> Result<()> {
    let rows = out.len().checked_div(shape.dim).unwrap_or(0);
    let bundle = (8192 / shape.dim.max(1)).max(1);
    let out = Shares::new(out);
    pool.run(rows.div_ceil(bundle), &|index| {
        let (from, to) = (index * bundle, rows.min((index + 1) * bundle));
        let (range, angles) = (from * shape.dim..to * shape.dim, from * shape.half..to * shape.half);
        // SAFETY: bundles do not overlap.
        let out = unsafe { out.part(range.clone()) };
        rotate_rows(isa, shape, &x[range], &cos[angles.clone()], &sin[angles], out);
    })
}

tiered! { fn rotate_rows(shape: Shape, x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) = rotate_body; }

#[inline(always)]
fn rotate_body<T: Tier>(shape: Shape, x: &[f32], cos: &[f32], sin: &[f32], out: &mut [f32]) {
    let Shape { dim, head_dim, half } = shape;
    for (row, (x, out)) in x.chunks_exact(dim).zip(out.chunks_exact_mut(dim)).enumerate() {
        let (cos, sin) = (&cos[row * half..][..half], &sin[row * half..][..half]);
        for (x, out) in x.chunks_exact(head_dim).zip(out.chunks_exact_mut(head_dim)) {
            let (low, rest) = x.split_at(half);
            let (high, rest) = rest.split_at(half);
            let (out_low, out_rest) = out.split_at_mut(half);
            let (out_high, out_rest) = out_rest.split_at_mut(half);
            for i in 0..half {
                out_low[i] = low[i] * cos[i] - high[i] * sin[i];
                out_high[i] = high[i] * cos[i] + low[i] * sin[i];
            }
            out_rest.copy_from_slice(rest);
        }
    }
}
