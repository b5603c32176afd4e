//! Frozen weights for the backward pass: `dx = dy W` is the product of `dy` with the packed transpose of W,
//! so that the kernels of forward products compute it.

use half::{bf16, f16};

use super::super::backend::Backend;
use super::super::cpu::{CpuBackend, packed};
use super::super::disjoint::DisjointSlices;
use super::super::types::Matrix;
use super::super::{check, misuse};
use crate::error::Result;
use crate::weights::{Bytes, WeightTensor, WeightType};

/// Rows of W that are turned together: a block of the transpose.
const BLOCK: usize = 32;

/// The transpose `[k, n]` of a matrix `[n, k]`, stored as `format` (F32, BF16 or Q8_0); as BF16 where its
/// rows are not whole blocks.
pub(super) fn transposed(cpu: &CpuBackend, matrix: &Matrix, format: WeightType) -> Result<Matrix> {
    let (n, k, from) = (matrix.n, matrix.k, packed(matrix)?);
    let format = if n.is_multiple_of(format.block_len()) { format } else { WeightType::BF16 };
    let encode = match format {
        WeightType::F32 => encode_f32,
        WeightType::BF16 => encode_bf16,
        WeightType::Q8_0 => encode_q8,
        other => return Err(misuse(format!("transposes are not made of {other}"))),
    };
    let row_bytes = format.row_bytes(n).ok_or_else(|| misuse("a transpose of no whole blocks"))?;
    let mut data = vec![0; k * row_bytes];
    let out = DisjointSlices::new(&mut data);
    let block_bytes = BLOCK / format.block_len() * format.block_bytes();
    cpu.pool.run("transpose", n.div_ceil(BLOCK), &|block| {
        let rows = block * BLOCK..n.min((block + 1) * BLOCK);
        let mut values = vec![0.0; rows.len() * k];
        for (row, values) in rows.clone().zip(values.chunks_exact_mut(k)) {
            from.row(row, values);
        }
        let mut column = [0.0; BLOCK];
        for at in 0..k {
            for (to, row) in column.iter_mut().zip(values.chunks_exact(k)) {
                *to = row[at];
            }
            let start = at * row_bytes + block * block_bytes;
            let len = if rows.len() == BLOCK { block_bytes } else { rows.len() * format.block_bytes() };
            // SAFETY: each block of each row is one task's own.
            let out = unsafe { out.slice_mut(start..start + len) };
            encode(&column[..rows.len()], out);
        }
    })?;
    let data = Bytes::from_vec(data);
    let tensor = WeightTensor { name: matrix.name.to_string(), dtype: format, shape: vec![k, n], data };
    let (rows, columns, row_bytes) = check::matrix(&tensor)?;
    let stored = cpu.matrix(&tensor, rows, columns, row_bytes)?;
    Ok(Matrix { name: matrix.name.clone(), n: k, k: n, stored })
}

fn encode_f32(values: &[f32], out: &mut [u8]) {
    for (value, out) in values.iter().zip(out.chunks_exact_mut(4)) {
        out.copy_from_slice(&value.to_le_bytes());
    }
}

fn encode_bf16(values: &[f32], out: &mut [u8]) {
    for (value, out) in values.iter().zip(out.chunks_exact_mut(2)) {
        out.copy_from_slice(&bf16::from_f32(*value).to_le_bytes());
    }
}

/// A block of Q8_0: a half float, and 32 bytes that it is multiplied by.
fn encode_q8(values: &[f32], out: &mut [u8]) {
    let amax = values.iter().fold(0.0f32, |most, value| most.max(value.abs()));
    let scale = amax / 127.0;
    let inverse = if scale > 0.0 { 1.0 / scale } else { 0.0 };
    let (head, codes) = out.split_at_mut(2);
    head.copy_from_slice(&f16::from_f32(scale).to_le_bytes());
    for (value, code) in values.iter().zip(codes) {
        *code = (value * inverse).round() as i8 as u8;
    }
}
