//! The same operations by candle alone: for CUDA and Metal, and as a second opinion on the CPU.
//!
//! Written to be short and to run on every device; nothing here is tuned. Activations have the type that
//! was asked for, and what is sensitive (norms, softmax, rotations, quantized products) is done in f32.

use std::borrow::Cow;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{D, DType, Device, Module, Tensor};

use super::{Activation, Attention, CheckedStep, Linear, Matrix, MatrixData, Norm, RopeTable, misuse};
use crate::cache::storage::LayerKv;
use crate::config::NormKind;
use crate::error::Result;
use crate::step::{Span, Step};
use crate::weights::{WeightTensor, WeightType};

pub(super) struct Plain {
    device: Device,
    dtype: DType,
}

impl Plain {
    pub(super) fn new(device: Device, dtype: DType) -> Self {
        Plain { device, dtype }
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn dtype(&self) -> DType {
        self.dtype
    }

    pub(super) fn threads(&self) -> usize {
        1
    }

    pub(super) fn describe(&self) -> String {
        format!("{:?} {:?}", self.device.location(), self.dtype).to_lowercase()
    }

    pub(super) fn matrix(
        &self,
        w: &WeightTensor,
        n: usize,
        k: usize,
        _row_bytes: usize,
    ) -> Result<MatrixData> {
        if let Some(dtype) = candle_type(w.dtype).filter(|_| !self.refuses(w.dtype, k)) {
            let storage = QStorage::from_data(aligned(&w.data), &self.device, dtype)?;
            return Ok(MatrixData::Quantized(Arc::new(QTensor::new(storage, (n, k))?)));
        }
        let dense = Tensor::from_vec(w.to_f32(), (n, k), &self.device)?;
        Ok(MatrixData::Dense(dense.to_dtype(self.dtype)?))
    }

    /// On the CPU candle panics when a row of these is an odd number of blocks.
    fn refuses(&self, dtype: WeightType, k: usize) -> bool {
        use WeightType::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
        self.device.is_cpu() && matches!(dtype, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0) && !k.is_multiple_of(64)
    }

    pub(super) fn rows(&self, values: Vec<f32>, dim: usize) -> Result<Tensor> {
        let rows = values.len() / dim;
        Ok(Tensor::from_vec(values, (rows, dim), &self.device)?.to_dtype(self.dtype)?)
    }

    pub(super) fn embed(&self, m: &Matrix, ids: &[u32], scale: Option<f32>) -> Result<Tensor> {
        if ids.is_empty() {
            return Ok(Tensor::zeros((0, m.k), self.dtype, &self.device)?);
        }
        let ids = Tensor::new(ids, &self.device)?;
        let rows = match &m.data {
            MatrixData::Quantized(weights) => weights.embedding(&ids)?,
            MatrixData::Dense(weights) => weights.index_select(&ids, 0)?,
            MatrixData::Packed(..) => return Err(foreign(m)),
        };
        let rows = rows.to_dtype(self.dtype)?;
        match scale {
            Some(scale) => Ok(rows.affine(f64::from(scale), 0.0)?),
            None => Ok(rows),
        }
    }

    pub(super) fn linear(&self, linear: &Linear, x: &Tensor) -> Result<Tensor> {
        let m = &linear.weight;
        if x.dim(0)? == 0 {
            return Ok(Tensor::zeros((0, m.n), self.dtype, &self.device)?);
        }
        let y = match &m.data {
            MatrixData::Quantized(weights) => {
                let x = x.to_dtype(DType::F32)?.contiguous()?;
                QMatMul::from_arc(weights.clone())?.forward(&x)?
            }
            MatrixData::Dense(weights) => x.contiguous()?.matmul(&weights.t()?)?,
            MatrixData::Packed(..) => return Err(foreign(m)),
        };
        match &linear.bias {
            Some(bias) => Ok(y.broadcast_add(&bias.plain()?.to_dtype(y.dtype())?)?.to_dtype(self.dtype)?),
            None => Ok(y.to_dtype(self.dtype)?),
        }
    }

    pub(super) fn norm(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        let mut groups = grouped(x, norm.weight.len())?;
        if norm.kind == NormKind::Layer {
            groups = groups.broadcast_sub(&groups.mean_keepdim(D::Minus1)?)?;
        }
        let scale = (groups.sqr()?.mean_keepdim(D::Minus1)? + norm.eps)?.sqrt()?;
        let mut y = groups.broadcast_div(&scale)?.broadcast_mul(norm.weight.plain()?)?;
        if let Some(bias) = &norm.bias {
            y = y.broadcast_add(bias.plain()?)?;
        }
        Ok(y.reshape(x.shape())?.to_dtype(self.dtype)?)
    }

    pub(super) fn heads(
        &self,
        x: &Tensor,
        head_dim: usize,
        norm: Option<&Norm>,
        table: Option<&RopeTable>,
    ) -> Result<Tensor> {
        let x = norm.map_or_else(|| Ok(x.clone()), |norm| self.norm(norm, x))?;
        let Some(table) = table.filter(|table| table.half > 0) else { return Ok(x) };
        let foreign = || misuse("a rope table was made by other Ops than those that use it");
        self.rotate(&x, head_dim, table.half, table.tensors.as_ref().ok_or_else(foreign)?)
    }

    fn rotate(
        &self,
        x: &Tensor,
        head_dim: usize,
        half: usize,
        (cos, sin): &(Tensor, Tensor),
    ) -> Result<Tensor> {
        let (rows, dim) = x.dims2()?;
        let rotated = 2 * half;
        let heads = x.to_dtype(DType::F32)?.reshape((rows, dim / head_dim, head_dim))?;
        let (low, high) = (heads.narrow(2, 0, half)?, heads.narrow(2, half, half)?);
        let (cos, sin) = (cos.unsqueeze(1)?, sin.unsqueeze(1)?);
        let new_low = (low.broadcast_mul(&cos)? - high.broadcast_mul(&sin)?)?;
        let new_high = (high.broadcast_mul(&cos)? + low.broadcast_mul(&sin)?)?;
        let rest = heads.narrow(2, rotated, head_dim - rotated)?;
        let parts = if rotated < head_dim { vec![new_low, new_high, rest] } else { vec![new_low, new_high] };
        Ok(Tensor::cat(&parts, 2)?.reshape((rows, dim))?.to_dtype(self.dtype)?)
    }

    pub(super) fn gated(&self, gate: &Tensor, up: &Tensor, act: Activation) -> Result<Tensor> {
        Ok((self.activate(gate, act)? * up)?)
    }

    pub(super) fn activate(&self, x: &Tensor, act: Activation) -> Result<Tensor> {
        Ok(match act {
            Activation::Silu => x.silu()?,
            Activation::Gelu => x.gelu_erf()?,
            Activation::GeluTanh => x.gelu()?,
            Activation::Relu => x.relu()?,
        })
    }

    pub(super) fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        Ok((a + b)?)
    }

    pub(super) fn soft_cap(&self, x: &Tensor, cap: f32) -> Result<Tensor> {
        let cap = f64::from(cap);
        Ok(((x / cap)?.tanh()? * cap)?)
    }

    pub(super) fn select_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        if rows.is_empty() {
            return Ok(Tensor::zeros((0, x.dim(1)?), x.dtype(), &self.device)?);
        }
        Ok(x.contiguous()?.index_select(&Tensor::new(rows, &self.device)?, 0)?)
    }

    /// Rows of keys and values to rows `slots` of the cache.
    pub(super) fn kv_write(&self, kv: &LayerKv, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
        if slots.is_empty() {
            return Ok(());
        }
        let shape = (slots.len(), kv.shape.width());
        let index = Tensor::new(slots, &self.device)?.unsqueeze(1)?.expand(shape)?.contiguous()?;
        let kv = kv.tensors()?;
        for (cache, rows) in [(&kv.keys, k), (&kv.values, v)] {
            cache.scatter_set(&index, &rows.to_dtype(cache.dtype())?.contiguous()?, 0)?;
        }
        Ok(())
    }

    pub(super) fn attention(
        &self,
        q: &Tensor,
        kv: &LayerKv,
        group: usize,
        step: &CheckedStep<'_>,
        a: &Attention,
    ) -> Result<Tensor> {
        if step.spans.is_empty() {
            return Ok(q.clone());
        }
        let outputs: Result<Vec<_>> =
            step.spans.iter().map(|span| self.attend(q, kv, group, step, span, a)).collect();
        Ok(Tensor::cat(&outputs?, 0)?.to_dtype(self.dtype)?)
    }

    /// One sequence: gathers its keys, and multiplies each key head with its group of query heads.
    fn attend(
        &self,
        q: &Tensor,
        kv: &LayerKv,
        group: usize,
        step: &Step,
        span: &Span,
        a: &Attention,
    ) -> Result<Tensor> {
        let (rows, shared) = (span.rows.len(), a.heads / a.kv_heads);
        let first = step.positions.get(span.rows.start).map_or(0, |&p| p as usize);
        let begin = a.window.map_or(0, |window| (first + 1).saturating_sub(window));
        let end = match (a.causal, a.window) {
            (true, _) => first + rows,
            (false, None) => span.len,
            (false, Some(window)) => (first + rows - 1).saturating_add(window).min(span.len),
        };
        let len = end - begin;
        let slots: Vec<u32> = (begin..begin + len).map(|p| span.slot(group, p) as u32).collect();
        let slots = Tensor::from_vec(slots, len, &self.device)?;
        let gather = |kv: &Tensor| -> Result<Tensor> {
            let rows = kv.index_select(&slots, 0)?.to_dtype(DType::F32)?;
            Ok(rows.reshape((len, a.kv_heads, a.head_dim))?.transpose(0, 1)?.contiguous()?)
        };
        let q = q.narrow(0, span.rows.start, rows)?.to_dtype(DType::F32)?;
        let q = q.reshape((rows, a.kv_heads, shared, a.head_dim))?.transpose(0, 1)?.contiguous()?;
        let q = q.reshape((a.kv_heads, rows * shared, a.head_dim))?;
        let scores = q.matmul(&gather(&kv.tensors()?.keys)?.transpose(1, 2)?.contiguous()?)?;
        let mut scores = (scores * f64::from(a.scale))?;
        if let Some(cap) = a.soft_cap {
            scores = self.soft_cap(&scores, cap)?;
        }
        let scores = scores.reshape((a.kv_heads, rows, shared, len))?;
        let mask = Tensor::from_vec(mask(first, rows, begin, len, a), (1, rows, 1, len), &self.device)?;
        let weights = softmax(&scores.broadcast_add(&mask)?)?;
        let mixed =
            weights.reshape((a.kv_heads, rows * shared, len))?.matmul(&gather(&kv.tensors()?.values)?)?;
        let mixed = mixed.reshape((a.kv_heads, rows, shared, a.head_dim))?.transpose(0, 1)?.contiguous()?;
        Ok(mixed.reshape((rows, a.heads * a.head_dim))?)
    }
}

/// 0 where row `first + i` may look at key `begin + j`, else minus infinity.
fn mask(first: usize, rows: usize, begin: usize, len: usize, a: &Attention) -> Vec<f32> {
    let near = |query: usize, key: usize| a.window.is_none_or(|window| query.abs_diff(key) < window);
    let seen = |query: usize, key: usize| (key <= query || !a.causal) && near(query, key);
    let row = |i| (0..len).map(move |j| if seen(first + i, begin + j) { 0.0 } else { f32::NEG_INFINITY });
    (0..rows).flat_map(row).collect()
}

fn softmax(x: &Tensor) -> Result<Tensor> {
    let e = x.broadcast_sub(&x.max_keepdim(D::Minus1)?)?.exp()?;
    Ok(e.broadcast_div(&e.sum_keepdim(D::Minus1)?)?)
}

/// `[rows, g * group]` as `[rows, g, group]` in f32.
fn grouped(x: &Tensor, group: usize) -> Result<Tensor> {
    let (rows, dim) = x.dims2()?;
    Ok(x.to_dtype(DType::F32)?.reshape((rows, dim / group, group))?)
}

fn candle_type(dtype: WeightType) -> Option<GgmlDType> {
    match dtype {
        WeightType::Q4_0 => Some(GgmlDType::Q4_0),
        WeightType::Q4_1 => Some(GgmlDType::Q4_1),
        WeightType::Q5_0 => Some(GgmlDType::Q5_0),
        WeightType::Q5_1 => Some(GgmlDType::Q5_1),
        WeightType::Q8_0 => Some(GgmlDType::Q8_0),
        WeightType::Q2K => Some(GgmlDType::Q2K),
        WeightType::Q3K => Some(GgmlDType::Q3K),
        WeightType::Q4K => Some(GgmlDType::Q4K),
        WeightType::Q5K => Some(GgmlDType::Q5K),
        WeightType::Q6K => Some(GgmlDType::Q6K),
        // Floats are dense; IQ4 candle does not know.
        WeightType::F32 | WeightType::F16 | WeightType::BF16 | WeightType::Iq4Nl | WeightType::Iq4Xs => None,
    }
}

/// candle panics on blocks at odd addresses, and a file may put them there: those are copied first. The
/// allocator aligns every vector of some size to at least eight bytes, which is enough for any block.
fn aligned(data: &[u8]) -> Cow<'_, [u8]> {
    match (data.as_ptr() as usize).is_multiple_of(8) {
        true => Cow::Borrowed(data),
        false => Cow::Owned(data.to_vec()),
    }
}

fn foreign(m: &Matrix) -> crate::error::Error {
    misuse(format!("{} was made by other Ops than those that use it", m.name()))
}
