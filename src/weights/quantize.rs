//! Quantization at load: from floats to smaller blocks.
//!
//! The rounding itself is candle's (`QTensor::quantize` on the CPU), which follows llama.cpp's reference
//! quantizers; blocks are independent, so a tensor goes through it in slabs and needs little memory beyond
//! its result.

use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};

use super::blocks::dequantize_row;
use super::{Bytes, WeightTensor, WeightType};
use crate::error::{Error, Result};

/// Weights that are f32 at one time: 4 MiB.
const SLAB: usize = 1 << 20;

/// The largest weight that is taken: the largest f16, for that is what a block's scale or minimum is.
const MAX_WEIGHT: f32 = 65_504.0;

/// Stores a matrix `[n, k]` in the smaller format `to`.
///
/// - A row must be whole blocks. Where `k` is a multiple of 32 but not of 256, the next larger format with
///   blocks of 32 stands in for a K-quant, as in llama.cpp: Q4_K becomes Q5_0, Q5_K Q5_1, Q6_K Q8_0, the
///   smaller ones Q4_1.
/// - Left as it is, sharing its bytes: a tensor that is not a matrix, one whose `k` is not a multiple of 32,
///   and one that is quantized already, which a second rounding would only harm.
///
/// Rows are shared among `threads`; blocks are independent, so the result is the same for any number.
///
/// # Errors
/// `InvalidRequest` when `to` cannot be made (it is none of [`WeightType::MADE`]); `ModelFile` when a weight
/// is not finite or beyond 65504.
pub fn quantize(tensor: &WeightTensor, to: WeightType, threads: usize) -> Result<WeightTensor> {
    target(to)?;
    let &[n, k] = tensor.shape.as_slice() else { return Ok(tensor.clone()) };
    let to = fitting(to, k);
    if n == 0 || k == 0 || !k.is_multiple_of(to.block_len()) || tensor.dtype.has_integer_codes() {
        return Ok(tensor.clone());
    }
    let size = to.row_bytes(k).and_then(|row| row.checked_mul(n));
    let (Some(size), Some(src_row)) = (size, tensor.dtype.row_bytes(k)) else {
        return Err(Error::model_file(format!("the tensor {:?} has an impossible shape", tensor.name)));
    };
    let share = n.div_ceil(threads.max(1)) * src_row;
    let mut data = Vec::with_capacity(size);
    std::thread::scope(|scope| {
        let work = |rows| move || quantize_share(tensor, k, rows, to);
        let shares: Vec<_> = tensor.data.chunks(share).map(|rows| scope.spawn(work(rows))).collect();
        for share in shares {
            let rows = share.join().map_err(|_| Error::internal("quantization panicked"))??;
            data.extend_from_slice(&rows);
        }
        Ok::<(), Error>(())
    })?;
    Ok(WeightTensor {
        name: tensor.name.clone(),
        dtype: to,
        shape: tensor.shape.clone(),
        data: Bytes::from_vec(data),
    })
}

/// What a matrix with rows of `k` becomes where `to` is asked for; `None`: it stays as it is.
pub fn made(to: WeightType, k: usize) -> Option<WeightType> {
    Some(fitting(to, k)).filter(|to| k > 0 && k.is_multiple_of(to.block_len()))
}

/// `to`, or what stands in for it in rows of `k` weights.
fn fitting(to: WeightType, k: usize) -> WeightType {
    if k.is_multiple_of(to.block_len()) {
        return to;
    }
    match to {
        WeightType::Q2K | WeightType::Q3K => WeightType::Q4_1,
        WeightType::Q4K => WeightType::Q5_0,
        WeightType::Q5K => WeightType::Q5_1,
        _ => WeightType::Q8_0,
    }
}

/// Quantizes some rows, a slab at a time.
fn quantize_share(tensor: &WeightTensor, k: usize, rows: &[u8], to: WeightType) -> Result<Vec<u8>> {
    let src_row = tensor.dtype.row_bytes(k).unwrap_or(1);
    let slab = (SLAB / k).max(1);
    let mut values = vec![0.0; slab.min(rows.len() / src_row) * k];
    let mut data = Vec::new();
    for src in rows.chunks(slab * src_row) {
        let values = &mut values[..src.len() / src_row * k];
        dequantize_row(tensor.dtype, src, values);
        check_values(&tensor.name, values)?;
        data.extend_from_slice(&quantize_rows(values, to)?);
    }
    Ok(data)
}

/// A weight that no block can hold would come back as infinity or NaN, and far from where it went wrong.
fn check_values(name: &str, values: &[f32]) -> Result<()> {
    if values.iter().all(|value| value.abs() <= MAX_WEIGHT) {
        return Ok(());
    }
    Err(Error::model_file(format!(
        "the tensor {name:?} holds a weight that is not finite or is beyond 65504, which no block can hold"
    )))
}

fn quantize_rows(values: &[f32], to: WeightType) -> Result<Vec<u8>> {
    let tensor = Tensor::from_slice(values, values.len(), &Device::Cpu)?;
    Ok(QTensor::quantize(&tensor, target(to)?)?.data()?.into_owned())
}

/// candle's name of a format that can be made.
fn target(to: WeightType) -> Result<GgmlDType> {
    Ok(match to {
        WeightType::Q4_0 => GgmlDType::Q4_0,
        WeightType::Q4_1 => GgmlDType::Q4_1,
        WeightType::Q5_0 => GgmlDType::Q5_0,
        WeightType::Q5_1 => GgmlDType::Q5_1,
        WeightType::Q8_0 => GgmlDType::Q8_0,
        WeightType::Q2K => GgmlDType::Q2K,
        WeightType::Q3K => GgmlDType::Q3K,
        WeightType::Q4K => GgmlDType::Q4K,
        WeightType::Q5K => GgmlDType::Q5K,
        WeightType::Q6K => GgmlDType::Q6K,
        _ => {
            return Err(Error::invalid(format!(
                "weights cannot be quantized to {} at load; use {}",
                to.name().to_ascii_lowercase(),
                WeightType::made_names()
            )));
        }
    })
}
