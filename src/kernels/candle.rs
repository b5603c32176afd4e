//! The candle backend: candle's operations, for CUDA and Metal, and as a second opinion on the CPU.
//!
//! Written to be short and to run on every device; nothing here is tuned. Activations have the type that was
//! asked for, and what is sensitive (norms, softmax, rotations, quantized products) is computed in f32. Where
//! candle-nn has one kernel for an operation (RMS norm, rotation, softmax) that is used; its layer norm is
//! not, because it takes the variance as `E[x^2] - E[x]^2`, which loses all digits where the mean is large
//! (see [`CandleBackend::normed`]).
//!
//! A tensor without elements is never made: CUDA refuses to launch a kernel for none. Rows without rows have
//! no tensor, and [`CandleBackend::map`] computes nothing of them.

mod experts;
mod recurrent;

use std::borrow::Cow;
use std::ops::Range;
use std::sync::Arc;

use candle_core::quantized::{GgmlDType, QMatMul, QStorage, QTensor};
use candle_core::{D, DType, Device, Module, Tensor};
use candle_nn::ops::{rms_norm, sigmoid, softmax_last_dim};
use candle_nn::rotary_emb::rope_thd;

use self::recurrent::states_before;
use super::backend::Backend;
use super::experts::{Assignments, Expert, ExpertTerms};
use super::low_rank::Term;
use super::opaque::Opaque;
use super::rows::Rows;
use super::types::{
    Attention, CausalConv, GatedNorm, Matrix, Norm, Projection, RopeTable, Scan, ScanRows, Stored, Vector,
};
use super::{Activation, CheckedStep, KvCache, KvFormat, KvLayout, misuse, rope};
use crate::cache::storage::{LayerKv, LayerState};
use crate::config::{GateFunction, NormKind, Xielu};
use crate::error::Result;
use crate::step::{Span, Step};
use crate::weights::{WeightTensor, WeightType};

pub(super) struct CandleBackend {
    device: Device,
    dtype: DType,
}

/// A weight matrix here.
enum Weights {
    /// A format that candle multiplies by.
    Quantized(Arc<QTensor>),
    /// Plain floats, of the backend's type.
    Dense(Tensor),
}

/// Activations here: `None` if there are no rows.
type Activations = Option<Tensor>;

/// A [`RopeTable`] here: cosines and sines `[rows, half]` in f32; `None` if there are no rows, or no angles.
type Angles = Option<(Tensor, Tensor)>;

/// What of a term of low rank is added where.
#[derive(Clone, Copy)]
enum LowRankPart {
    /// The product of low rank, and the gain.
    BeforeBias,
    Shift,
}

impl CandleBackend {
    pub(super) fn new(device: Device, dtype: DType) -> Self {
        CandleBackend { device, dtype }
    }

    /// On the CPU candle panics when a row of these is an odd number of blocks.
    fn refuses(&self, dtype: WeightType, k: usize) -> bool {
        use WeightType::{Q4_0, Q4_1, Q5_0, Q5_1, Q8_0};
        self.device.is_cpu() && matches!(dtype, Q4_0 | Q4_1 | Q5_0 | Q5_1 | Q8_0) && !k.is_multiple_of(64)
    }

    /// Rows of `dim` that `f` makes of `x`; none of none.
    fn map(&self, x: &Rows, dim: usize, f: impl FnOnce(&Tensor) -> Result<Tensor>) -> Result<Rows> {
        let x = x.get::<Activations>()?;
        self.pack(x.as_ref().map(f).transpose()?, dim)
    }

    fn pack(&self, x: Activations, dim: usize) -> Result<Rows> {
        let x = x.map(|x| x.to_dtype(self.dtype)).transpose()?;
        let rows = x.as_ref().map_or(Ok(0), |x| x.dim(0))?;
        Ok(Rows::device(rows, dim, x))
    }

    fn product<'a>(&self, projection: impl Into<Projection<'a>>, x: &Tensor) -> Result<Tensor> {
        let Projection { linear, terms } = projection.into();
        let y = match linear.weight.stored.data.get(linear.weight.name())? {
            Weights::Quantized(weights) => {
                let x = x.to_dtype(DType::F32)?.contiguous()?;
                QMatMul::from_arc(weights.clone())?.forward(&x)?
            }
            Weights::Dense(weights) => x.contiguous()?.matmul(&weights.t()?)?,
        };
        let y = match linear.scale {
            1.0 => y,
            scale => y.affine(scale.into(), 0.0)?,
        };
        let y = self.with_terms(terms, linear.scale, x, y, LowRankPart::BeforeBias)?;
        let y = match &linear.bias {
            Some(bias) => y.broadcast_add(&values(bias)?.to_dtype(y.dtype())?)?,
            None => y,
        };
        let y = self.with_terms(terms, linear.scale, x, y, LowRankPart::Shift)?;
        Ok(y.to_dtype(self.dtype)?)
    }

    /// `y` with what adapters make of their rows.
    fn with_terms(
        &self,
        terms: &[Term<'_>],
        scale: f32,
        x: &Tensor,
        y: Tensor,
        part: LowRankPart,
    ) -> Result<Tensor> {
        if terms.is_empty() {
            return Ok(y);
        }
        let (mut pieces, mut next, rows) = (Vec::new(), 0, y.dim(0)?);
        let tensor = |values: &[f32], shape: (usize, usize)| {
            Tensor::from_slice(values, shape, &self.device)?.to_dtype(y.dtype())
        };
        for Term { rows, low_rank } in terms.iter().filter(|term| !term.rows.is_empty()) {
            if rows.start > next {
                pieces.push(y.narrow(0, next, rows.start - next)?);
            }
            next = rows.end;
            let ((n, k), rank) = (low_rank.dims(), low_rank.rank());
            let mut own = y.narrow(0, rows.start, rows.len())?;
            let vector = |values: &[f32]| tensor(values, (1, n));
            match part {
                LowRankPart::BeforeBias => {
                    if rank > 0 {
                        let x = x.narrow(0, rows.start, rows.len())?.to_dtype(y.dtype())?.contiguous()?;
                        let z = x.matmul(&tensor(&low_rank.a(), (rank, k))?.t()?)?;
                        let sums = z.matmul(&tensor(&low_rank.b(), (n, rank))?.t()?)?;
                        own = (own + sums.affine(scale.into(), 0.0)?)?;
                    }
                    if let Some(gain) = low_rank.gain() {
                        own = own.broadcast_mul(&vector(gain)?)?;
                    }
                }
                LowRankPart::Shift => {
                    if let Some(shift) = low_rank.shift() {
                        own = own.broadcast_add(&vector(shift)?)?;
                    }
                }
            }
            pieces.push(own);
        }
        if next < rows {
            pieces.push(y.narrow(0, next, rows - next)?);
        }
        Ok(Tensor::cat(&pieces, 0)?)
    }

    /// A norm over groups of its width, in f32. Layer norm is RMS norm of what is left without the mean, and
    /// a bias.
    fn normed(&self, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        self.normed_groups(norm, norm.weight.len(), x)
    }

    /// The same over groups of `len`, of which `norm` has weights for one or for all of a row.
    fn normed_groups(&self, norm: &Norm, len: usize, x: &Tensor) -> Result<Tensor> {
        let mut groups = x.to_dtype(DType::F32)?.reshape(((), len))?;
        if norm.kind == NormKind::Layer {
            groups = groups.broadcast_sub(&groups.mean_keepdim(D::Minus1)?)?;
        }
        let (groups, eps) = (groups.contiguous()?, norm.eps as f32);
        let mut y = match norm.weight.len() == len {
            true => rms_norm(&groups, values(&norm.weight)?, eps)?,
            false => {
                let plain = rms_norm(&groups, &Tensor::ones(len, DType::F32, &self.device)?, eps)?;
                plain.reshape(((), norm.weight.len()))?.broadcast_mul(values(&norm.weight)?)?
            }
        };
        if let Some(bias) = &norm.bias {
            y = y.broadcast_add(values(bias)?)?;
        }
        Ok(y.reshape(x.shape())?.to_dtype(self.dtype)?)
    }

    /// candle's `rope_thd` takes `[batch, tokens, heads, dim]` and turns dimension `i` with `i + dim / 2`, as
    /// we do; it turns all dimensions, so that the rest of a partly rotated head goes around it.
    fn rotate(&self, x: &Tensor, head_dim: usize, (cos, sin): &(Tensor, Tensor)) -> Result<Tensor> {
        let ((rows, dim), rotated) = (x.dims2()?, 2 * cos.dim(1)?);
        let heads = x.to_dtype(DType::F32)?.reshape((1, rows, dim / head_dim, head_dim))?;
        let turned = rope_thd(&heads.narrow(D::Minus1, 0, rotated)?.contiguous()?, cos, sin)?;
        let heads = match rotated < head_dim {
            true => {
                let rest = heads.narrow(D::Minus1, rotated, head_dim - rotated)?;
                Tensor::cat(&[&turned, &rest], D::Minus1)?
            }
            false => turned,
        };
        Ok(heads.reshape((rows, dim))?.to_dtype(self.dtype)?)
    }

    fn activate(&self, x: &Tensor, act: Activation) -> Result<Tensor> {
        Ok(match act {
            Activation::Silu => x.silu()?,
            Activation::Gelu => x.gelu_erf()?,
            Activation::GeluTanh => x.gelu()?,
            Activation::Relu => x.relu()?,
            Activation::ClampedSwiglu => {
                let x = x.minimum(7.0)?;
                (&x * sigmoid(&(&x * 1.702)?)?)?
            }
            Activation::Relu2 => x.relu()?.sqr()?,
            Activation::Xielu(Xielu { p, n, beta, eps }) => {
                let linear = x.affine(beta.into(), 0.0)?;
                let above = x.relu()?.sqr()?.affine(p.into(), 0.0)?;
                let low = x.minimum(0f64)?;
                let below = ((low.minimum(f64::from(eps))?.exp()? - 1.0)? - &low)?.affine(n.into(), 0.0)?;
                // Above 0 the lower part is `e^eps - 1`, which is as good as nothing, but not nothing.
                let below = (below * x.le(0f64)?.to_dtype(x.dtype())?)?;
                ((above + below)? + linear)?
            }
        })
    }

    /// `act(gate) * up`, of what such a gate makes of `up`.
    fn gate(&self, gate: &Tensor, up: &Tensor, act: Activation) -> Result<Tensor> {
        let gate = self.activate(gate, act)?;
        Ok(match act {
            Activation::ClampedSwiglu => (gate * (up.clamp(-7f32, 7f32)? + 1.0)?)?,
            _ => (gate * up)?,
        })
    }

    /// One sequence: gathers its keys, and multiplies each key head with its group of query heads.
    fn attend(
        &self,
        q: &Tensor,
        kv: &LayerKv,
        group: usize,
        step: &Step,
        span: &Span,
        a: &Attention<'_>,
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
        let kv = kv.tensors()?;
        let slots: Vec<u32> = (begin..begin + len).map(|p| kv.row(span.slot(group, p)) as u32).collect();
        let slots = Tensor::from_vec(slots, len, &self.device)?;
        let gather = |kv: &Tensor| -> Result<Tensor> {
            let rows = kv.index_select(&slots, 0)?.to_dtype(DType::F32)?;
            Ok(rows.reshape((len, a.kv_heads, a.head_dim))?.transpose(0, 1)?.contiguous()?)
        };
        let q = q.narrow(0, span.rows.start, rows)?.to_dtype(DType::F32)?;
        let q = q.reshape((rows, a.kv_heads, shared, a.head_dim))?.transpose(0, 1)?.contiguous()?;
        let q = q.reshape((a.kv_heads, rows * shared, a.head_dim))?;
        let scores = q.matmul(&gather(&kv.keys)?.transpose(1, 2)?.contiguous()?)?;
        let mut scores = (scores * f64::from(a.scale))?;
        if let Some(cap) = a.soft_cap {
            scores = soft_capped(&scores, cap)?;
        }
        let scores = scores.reshape((a.kv_heads, rows, shared, len))?;
        let mask = Tensor::from_vec(mask(first, rows, begin, len, a), (1, rows, 1, len), &self.device)?;
        let mut scores = scores.broadcast_add(&mask)?;
        if let Some(sinks) = a.sinks {
            let sinks = Tensor::from_slice(sinks, (a.kv_heads, 1, shared, 1), &self.device)?;
            scores = Tensor::cat(&[&scores, &sinks.expand((a.kv_heads, rows, shared, 1))?], 3)?;
        }
        let weights = softmax_last_dim(&scores.contiguous()?)?.narrow(3, 0, len)?.contiguous()?;
        let mixed = weights.reshape((a.kv_heads, rows * shared, len))?.matmul(&gather(&kv.values)?)?;
        let mixed = mixed.reshape((a.kv_heads, rows, shared, a.head_dim))?.transpose(0, 1)?.contiguous()?;
        Ok(mixed.reshape((rows, a.heads * a.head_dim))?)
    }
}

impl Backend for CandleBackend {
    fn device(&self) -> &Device {
        &self.device
    }

    fn dtype(&self) -> DType {
        self.dtype
    }

    fn describe(&self) -> String {
        format!("{:?} {:?}", self.device.location(), self.dtype).to_lowercase()
    }

    fn matrix(&self, w: &WeightTensor, n: usize, k: usize, _: usize) -> Result<Stored> {
        if let Some(dtype) = candle_type(w.dtype).filter(|_| !self.refuses(w.dtype, k)) {
            let storage = QStorage::from_data(aligned(&w.data), &self.device, dtype)?;
            let weights = QTensor::new(storage, (n, k))?;
            let bytes = weights.storage_size_in_bytes();
            let data = Opaque::new(Weights::Quantized(Arc::new(weights)));
            return Ok(Stored { format: "quantized", bytes, data });
        }
        let dense = Tensor::from_vec(w.to_f32(), (n, k), &self.device)?.to_dtype(self.dtype)?;
        let (format, bytes) = (self.dtype.as_str(), n * k * self.dtype.size_in_bytes());
        Ok(Stored { format, bytes, data: Opaque::new(Weights::Dense(dense)) })
    }

    fn vector(&self, values: &[f32]) -> Result<Option<Opaque>> {
        Ok(Some(Opaque::new(Tensor::from_slice(values, values.len(), &self.device)?)))
    }

    fn rows(&self, values: Vec<f32>, dim: usize) -> Result<Rows> {
        let rows = values.len() / dim;
        let x = (rows > 0).then(|| Tensor::from_vec(values, (rows, dim), &self.device));
        self.pack(x.transpose()?, dim)
    }

    fn floats(&self, x: Rows) -> Result<Vec<f32>> {
        match x.get::<Activations>()? {
            Some(x) => Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?),
            None => Ok(Vec::new()),
        }
    }

    fn embed(&self, m: &Matrix, ids: &[u32], scale: Option<f32>) -> Result<Rows> {
        let weights = m.stored.data.get::<Weights>(m.name())?;
        if ids.is_empty() {
            return self.pack(None, m.k);
        }
        let ids = Tensor::new(ids, &self.device)?;
        let rows = match weights {
            Weights::Quantized(weights) => weights.embedding(&ids)?,
            Weights::Dense(weights) => weights.index_select(&ids, 0)?,
        };
        let rows = rows.to_dtype(self.dtype)?;
        let rows = match scale {
            Some(scale) => rows.affine(f64::from(scale), 0.0)?,
            None => rows,
        };
        self.pack(Some(rows), m.k)
    }

    fn linears(&self, linears: &[Projection<'_>], x: &Rows) -> Result<Vec<Rows>> {
        let one = |it: &Projection<'_>| self.map(x, it.linear.weight.n, |x| self.product(*it, x));
        linears.iter().map(one).collect()
    }

    fn linear_add(&self, projection: Projection<'_>, x: &Rows, to: Rows) -> Result<Rows> {
        self.map(x, projection.linear.weight.n, |x| added(&to, self.product(projection, x)?))
    }

    fn gated(&self, gate: Projection<'_>, up: Projection<'_>, x: &Rows, act: Activation) -> Result<Rows> {
        self.map(x, up.linear.weight.n, |x| self.gate(&self.product(gate, x)?, &self.product(up, x)?, act))
    }

    fn activated(&self, up: Projection<'_>, x: &Rows, act: Activation) -> Result<Rows> {
        self.map(x, up.linear.weight.n, |x| self.activate(&self.product(up, x)?, act))
    }

    fn experts(
        &self,
        experts: &[Expert],
        act: Activation,
        x: &Rows,
        a: &Assignments,
        terms: &ExpertTerms<'_>,
    ) -> Result<Rows> {
        self.map(x, x.dims().1, |x| self.mixture(experts, act, x, a, terms))
    }

    fn norm(&self, norm: &Norm, x: &Rows, to: Option<Rows>) -> Result<Rows> {
        self.map(x, x.dims().1, |x| {
            let y = self.normed(norm, x)?;
            match &to {
                Some(to) => added(to, y),
                None => Ok(y),
            }
        })
    }

    fn output_gate(&self, x: Rows, gate: Rows, function: GateFunction) -> Result<Rows> {
        let Some(gate) = gate.get::<Activations>()? else { return Ok(x) };
        self.map(&x, x.dims().1, |x| self.gate_rows(x, gate, function))
    }

    fn add(&self, x: &Rows, scale: f32, to: Rows) -> Result<Rows> {
        let Some(x) = x.get::<Activations>()? else { return Ok(to) };
        let scaled = x.affine(scale.into(), 0.0)?;
        self.map(&to, to.dims().1, |to| Ok((to + scaled)?))
    }

    fn columns(&self, x: &Rows, width: usize, range: Range<usize>) -> Result<Rows> {
        let (groups, part) = (x.dims().1 / width, range.len());
        self.map(x, groups * part, |x| {
            let rows = x.dim(0)?;
            let cut = x.reshape((rows, groups, width))?.narrow(2, range.start, part)?.contiguous()?;
            Ok(cut.reshape((rows, groups * part))?)
        })
    }

    fn joined(&self, parts: &[&Rows], groups: usize) -> Result<Rows> {
        let dim = parts.iter().map(|part| part.dims().1).sum();
        let tensors = parts.iter().map(|part| part.get::<Activations>()).collect::<Result<Vec<_>>>()?;
        let Some(tensors) = tensors.into_iter().map(Option::as_ref).collect::<Option<Vec<_>>>() else {
            return self.pack(None, dim);
        };
        let split = |x: &&Tensor| {
            let (rows, width) = x.dims2()?;
            x.reshape((rows, groups, width / groups))
        };
        let tensors = tensors.iter().map(split).collect::<candle_core::Result<Vec<_>>>()?;
        let rows = tensors.first().map_or(Ok(0), |x| x.dim(0))?;
        self.pack(Some(Tensor::cat(&tensors, 2)?.reshape((rows, dim))?), dim)
    }

    fn mul(&self, x: Rows, by: &Rows, start: usize) -> Result<Rows> {
        let Some(by) = by.get::<Activations>()? else { return Ok(x) };
        let dim = x.dims().1;
        self.map(&x, dim, |x| Ok((x * by.narrow(1, start, dim)?)?))
    }

    fn scale_rows(&self, x: &Rows, factors: &[f32]) -> Result<Rows> {
        self.map(x, x.dims().1, |x| {
            let factors =
                Tensor::from_slice(factors, (factors.len(), 1), &self.device)?.to_dtype(x.dtype())?;
            Ok(x.broadcast_mul(&factors)?)
        })
    }

    fn rope_table(&self, inv_freq: &[f32], scale: f32, positions: &[u32]) -> Result<Opaque> {
        let (rows, half) = (positions.len(), inv_freq.len());
        let (mut cos, mut sin) = (vec![0.0; rows * half], vec![0.0; rows * half]);
        if cos.is_empty() {
            return Ok(Opaque::new(Angles::None));
        }
        rope::fill(inv_freq, scale, positions, &mut cos, &mut sin);
        let tensor = |values| Tensor::from_vec(values, (rows, half), &self.device);
        Ok(Opaque::new(Angles::Some((tensor(cos)?, tensor(sin)?))))
    }

    fn heads(
        &self,
        x: Rows,
        head_dim: usize,
        norm: Option<&Norm>,
        table: Option<&RopeTable>,
    ) -> Result<Rows> {
        let angles = table.map(|table| table.data.get::<Angles>("a rope table")).transpose()?;
        self.map(&x, x.dims().1, |x| {
            let x = norm.map_or_else(|| Ok(x.clone()), |norm| self.normed_groups(norm, head_dim, x))?;
            match angles {
                Some(Some(angles)) => self.rotate(&x, head_dim, angles),
                _ => Ok(x),
            }
        })
    }

    fn soft_cap(&self, x: Rows, cap: f32) -> Result<Rows> {
        self.map(&x, x.dims().1, |x| soft_capped(x, cap))
    }

    fn select_rows(&self, x: &Rows, rows: &[u32]) -> Result<Rows> {
        let dim = x.dims().1;
        if rows.is_empty() {
            return self.pack(None, dim);
        }
        let rows = Tensor::new(rows, &self.device)?;
        self.map(x, dim, |x| Ok(x.contiguous()?.index_select(&rows, 0)?))
    }

    fn kv_format(&self) -> KvFormat {
        KvFormat::Tensors(self.dtype)
    }

    fn is_exact(&self) -> bool {
        self.dtype == DType::F32
    }

    fn kv_cache(&self, layout: &KvLayout, pages: usize) -> Result<KvCache> {
        KvCache::new(layout, pages, self.dtype, &self.device)
    }

    fn kv_write(&self, kv: &LayerKv, k: &Rows, v: &Rows, slots: &[u32]) -> Result<()> {
        let (Some(k), Some(v)) = (k.get::<Activations>()?, v.get::<Activations>()?) else { return Ok(()) };
        let shape = (slots.len(), kv.shape.width());
        let kv = kv.tensors()?;
        let rows: Vec<u32> = slots.iter().map(|&slot| kv.row(slot as usize) as u32).collect();
        let index = Tensor::new(rows, &self.device)?.unsqueeze(1)?.expand(shape)?.contiguous()?;
        for (cache, rows) in [(&kv.keys, k), (&kv.values, v)] {
            cache.scatter_set(&index, &rows.to_dtype(cache.dtype())?.contiguous()?, 0)?;
        }
        Ok(())
    }

    fn attention(
        &self,
        q: &Rows,
        kv: &LayerKv,
        group: usize,
        step: &CheckedStep<'_>,
        a: &Attention<'_>,
    ) -> Result<Rows> {
        self.map(q, q.dims().1, |q| {
            let attend = |span| self.attend(q, kv, group, step, span, a);
            let outputs = step.spans.iter().map(attend).collect::<Result<Vec<_>>>()?;
            Ok(Tensor::cat(&outputs, 0)?)
        })
    }

    fn causal_conv(
        &self,
        x: &Rows,
        conv: &CausalConv,
        state: &LayerState,
        step: &CheckedStep<'_>,
    ) -> Result<Rows> {
        self.map(x, conv.width(), |x| {
            let states = state.as_tensor()?;
            let spans = states_before(states, 0..conv.state_len(), step)?.into_iter();
            let outputs = spans.map(|(span, before)| self.convolve(x, conv, states, before, span));
            Ok(Tensor::cat(&outputs.collect::<Result<Vec<_>>>()?, 0)?)
        })
    }

    fn scan(
        &self,
        rows: ScanRows<'_>,
        scan: &Scan,
        state: &LayerState,
        step: &CheckedStep<'_>,
    ) -> Result<Rows> {
        let dt = rows.dt.get::<Activations>()?.as_ref();
        let beta = rows.beta.map(Rows::get::<Activations>).transpose()?.and_then(Option::as_ref);
        self.map(&rows.x, scan.width(), |x| {
            let inputs = self.scan_inputs(x, dt.unwrap_or(x), beta, scan)?;
            let states = state.as_tensor()?;
            let part = state.state_len() - scan.state_len()..state.state_len();
            let spans = states_before(states, part, step)?.into_iter();
            let scanned = spans.map(|(span, before)| self.scan_span(&inputs, scan, states, before, span));
            Ok(Tensor::cat(&scanned.collect::<Result<Vec<_>>>()?, 0)?)
        })
    }

    fn gated_norm(&self, x: Rows, gate: &Rows, norm: &GatedNorm) -> Result<Rows> {
        let Some(gate) = gate.get::<Activations>()? else { return Ok(x) };
        self.map(&x, x.dims().1, |x| self.norm_gate(x, gate, norm))
    }
}

/// A vector on the device.
fn values(vector: &Vector) -> Result<&Tensor> {
    let device = vector.device.as_ref();
    device.ok_or_else(|| misuse("a vector was made by other Ops than those that use it"))?.get("a vector")
}

/// `to + y`
fn added(to: &Rows, y: Tensor) -> Result<Tensor> {
    match to.get::<Activations>()? {
        Some(to) => Ok((to + y)?),
        None => Ok(y),
    }
}

fn soft_capped(x: &Tensor, cap: f32) -> Result<Tensor> {
    let cap = f64::from(cap);
    Ok(((x / cap)?.tanh()? * cap)?)
}

/// 0 where row `first + i` may look at key `begin + j`, else minus infinity.
fn mask(first: usize, rows: usize, begin: usize, len: usize, a: &Attention<'_>) -> Vec<f32> {
    let near = |query: usize, key: usize| a.window.is_none_or(|window| query.abs_diff(key) < window);
    let seen = |query: usize, key: usize| (key <= query || !a.causal) && near(query, key);
    let row = |i| (0..len).map(move |j| if seen(first + i, begin + j) { 0.0 } else { f32::NEG_INFINITY });
    (0..rows).flat_map(row).collect()
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
        // Floats are dense; the others candle does not know.
        _ => None,
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
