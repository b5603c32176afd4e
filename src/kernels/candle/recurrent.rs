//! Layers with recurrent state by candle's operations, one sequence and, of a scan, one row at a time.

use std::ops::Range;

use candle_core::{D, DType, Tensor};
use candle_nn::ops::{sigmoid, silu};

use super::{CandleBackend, values};
use crate::config::GateFunction;
use crate::error::Result;
use crate::kernels::CheckedStep;
use crate::kernels::types::{CausalConv, ConvForm, GatedNorm, Scan, ScanRule};
use crate::step::Span;

/// What a scan reads, of all rows of a step, in f32.
pub(super) struct Inputs {
    /// `[rows, heads, key_dim]`
    q: Tensor,
    k: Tensor,
    /// `[rows, heads, value_dim]`
    v: Tensor,
    /// `[rows, heads]`
    decay: Tensor,
    strength: Tensor,
}

impl CandleBackend {
    /// One sequence: the inputs of the convolution behind those of its state, each tap times a part of them.
    pub(super) fn convolve(
        &self,
        x: &Tensor,
        conv: &CausalConv,
        states: &Tensor,
        before: Option<Tensor>,
        span: &Span,
    ) -> Result<Tensor> {
        let (width, kept, rows) = (conv.width(), conv.kernel - 1, span.rows.len());
        let x = x.narrow(0, span.rows.start, rows)?.to_dtype(DType::F32)?;
        let part = |part: usize| x.narrow(1, part * width, width);
        let mut inputs = match conv.form {
            ConvForm::Gated => (part(0)? * part(2)?)?,
            ConvForm::Silu => x.clone(),
        };
        if kept > 0 {
            let before = match before {
                Some(before) => before.reshape((kept, width))?,
                None => Tensor::zeros((kept, width), DType::F32, &self.device)?,
            };
            inputs = Tensor::cat(&[&before, &inputs], 0)?;
        }
        let taps = values(&conv.taps)?.reshape((conv.kernel, width))?;
        let mut sum = Tensor::zeros((rows, width), DType::F32, &self.device)?;
        if let Some(bias) = &conv.bias {
            sum = sum.broadcast_add(values(bias)?)?;
        }
        for tap in 0..conv.kernel {
            sum = (sum + inputs.narrow(0, tap, rows)?.broadcast_mul(&taps.narrow(0, tap, 1)?)?)?;
        }
        for write in &span.state.writes {
            if kept > 0 {
                let state = inputs.narrow(0, write.rows, kept)?.reshape((1, kept * width))?;
                put(states, write.slot, 0, &state)?;
            }
        }
        match conv.form {
            ConvForm::Gated => Ok((sum * part(1)?)?),
            ConvForm::Silu => Ok(silu(&sum)?),
        }
    }

    /// What all rows of a step bring to a scan: keys and queries of each head, normed in Gated DeltaNet.
    pub(super) fn scan_inputs(
        &self,
        x: &Tensor,
        dt: &Tensor,
        beta: Option<&Tensor>,
        scan: &Scan,
    ) -> Result<Inputs> {
        let (rows, [q, k, v]) = (x.dim(0)?, scan.offsets());
        let (x, dt) = (x.to_dtype(DType::F32)?, dt.to_dtype(DType::F32)?);
        let grouped = |at: usize| -> Result<Tensor> {
            let (groups, dim) = (scan.groups, scan.key_dim);
            let x = x.narrow(1, at, groups * dim)?.reshape((rows, groups, 1, dim))?;
            let x = match scan.rule {
                ScanRule::Delta => {
                    let squares = x.sqr()?.sum_keepdim(D::Minus1)?;
                    x.broadcast_div(&(squares + 1e-6)?.sqrt()?)?
                }
                ScanRule::Mamba2 { .. } => x,
            };
            let shared = scan.heads / groups;
            let all = match scan.tiled {
                true => x.transpose(1, 2)?.expand((rows, shared, groups, dim))?,
                false => x.expand((rows, groups, shared, dim))?,
            };
            let all = all.contiguous()?;
            Ok(all.reshape((rows, scan.heads, dim))?)
        };
        let mut t = softplus(&dt.broadcast_add(values(&scan.dt_bias)?)?)?;
        let mut query_scale = 1.0;
        match &scan.rule {
            ScanRule::Delta => query_scale = (scan.key_dim as f64).powf(-0.5),
            ScanRule::Mamba2 { dt_limits: [least, most], .. } => {
                t = t.clamp(f64::from(*least), f64::from(*most))?;
            }
        }
        Ok(Inputs {
            q: (grouped(q)? * query_scale)?,
            k: grouped(k)?,
            v: x.narrow(1, v, scan.width())?.reshape((rows, scan.heads, scan.value_dim))?,
            decay: t.broadcast_mul(values(&scan.a)?)?.exp()?,
            strength: beta.map_or(Ok(t), |beta| sigmoid(&beta.to_dtype(DType::F32)?))?,
        })
    }

    /// One sequence: `[rows, heads * value_dim]`.
    pub(super) fn scan_span(
        &self,
        inputs: &Inputs,
        scan: &Scan,
        states: &Tensor,
        before: Option<Tensor>,
        span: &Span,
    ) -> Result<Tensor> {
        let (heads, shape) = (scan.heads, (scan.heads, scan.key_dim, scan.value_dim));
        let offset = states.dim(1)? - scan.state_len();
        let mut state = match before {
            Some(before) => before.reshape(shape)?,
            None => Tensor::zeros(shape, DType::F32, &self.device)?,
        };
        let mut outputs = Vec::with_capacity(span.rows.len());
        for (number, row) in span.rows.clone().enumerate() {
            let column = |x: &Tensor| x.get(row)?.reshape((heads, (), 1));
            let line = |x: &Tensor| x.get(row)?.reshape((heads, 1, ()));
            let (q, k, v) = (column(&inputs.q)?, column(&inputs.k)?, line(&inputs.v)?);
            state = state.broadcast_mul(&column(&inputs.decay)?)?;
            let new = match scan.rule {
                ScanRule::Delta => (&v - state.broadcast_mul(&k)?.sum_keepdim(1)?)?,
                ScanRule::Mamba2 { .. } => v.clone(),
            };
            let change = new.broadcast_mul(&column(&inputs.strength)?)?;
            state = (state + k.broadcast_mul(&change)?)?;
            let mut y = state.broadcast_mul(&q)?.sum_keepdim(1)?;
            if let ScanRule::Mamba2 { skip, .. } = &scan.rule {
                y = (y + v.broadcast_mul(&values(skip)?.reshape((heads, 1, 1))?)?)?;
            }
            outputs.push(y.reshape((1, scan.width()))?);
            for write in span.state.writes.iter().filter(|write| write.rows == number + 1) {
                put(states, write.slot, offset, &state.reshape((1, scan.state_len()))?)?;
            }
        }
        Ok(Tensor::cat(&outputs, 0)?)
    }

    /// `x * f(gate)`, each gate for as many columns.
    pub(super) fn gate_rows(&self, x: &Tensor, gate: &Tensor, f: GateFunction) -> Result<Tensor> {
        let gate = gate.to_dtype(DType::F32)?;
        let gate = match f {
            GateFunction::Sigmoid => sigmoid(&gate)?,
            GateFunction::Silu => silu(&gate)?,
            GateFunction::Softplus => softplus(&gate)?,
        };
        let (rows, gates) = gate.dims2()?;
        let heads = x.to_dtype(DType::F32)?.reshape((rows, gates, ()))?;
        Ok(heads.broadcast_mul(&gate.unsqueeze(2)?)?.reshape(x.shape())?)
    }

    pub(super) fn norm_gate(&self, x: &Tensor, gate: &Tensor, gated: &GatedNorm) -> Result<Tensor> {
        let (dim, x) = (x.dim(1)?, x.to_dtype(DType::F32)?);
        let x = if gated.gate_first { self.gate_rows(&x, gate, GateFunction::Silu)? } else { x };
        let y = self.normed_groups(&gated.norm, dim / gated.groups, &x)?;
        if gated.gate_first { Ok(y) } else { self.gate_rows(&y, gate, GateFunction::Silu) }
    }
}

/// `ln(1 + e^x)` that neither overflows nor loses small numbers.
fn softplus(x: &Tensor) -> Result<Tensor> {
    let small = x.abs()?.neg()?.exp()?;
    Ok((x.relu()? + ln_1p(&small)?)?)
}

/// `ln(1 + x)` of `x` in 0 to 1, by the series of `2 artanh(x / (2 + x))`: candle has a logarithm alone,
/// which knows nothing of an `x` that is lost beside 1.
fn ln_1p(x: &Tensor) -> Result<Tensor> {
    let z = (x / (x + 2.0)?)?;
    let square = z.sqr()?;
    let mut sum = (square.zeros_like()? + 1.0 / 15.0)?;
    for odd in [13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0] {
        sum = ((sum * &square)? + 1.0 / odd)?;
    }
    Ok(((z * sum)? * 2.0)?)
}

/// The spans of a step, and a part of the state that each begins with, before any is written.
pub(super) fn states_before<'a>(
    states: &Tensor,
    part: Range<usize>,
    step: &'a CheckedStep<'_>,
) -> Result<Vec<(&'a Span, Option<Tensor>)>> {
    let read = |slot: u32| -> Result<Tensor> {
        Ok(states.narrow(0, slot as usize, 1)?.narrow(1, part.start, part.len())?.copy()?)
    };
    let of = |span: &'a Span| Ok((span, span.state.read.filter(|_| !part.is_empty()).map(read).transpose()?));
    step.spans.iter().map(of).collect()
}

/// Writes `[1, len]` into a slot, from number `offset` on.
fn put(states: &Tensor, slot: u32, offset: usize, part: &Tensor) -> Result<()> {
    // Whole rows are what candle sets; the other part of the state stays as it is. A copy in any case: the
    // part may be of the very row that is written.
    let row = states.narrow(0, slot as usize, 1)?;
    let end = offset + part.dim(1)?;
    let rest = |from: usize, to: usize| row.narrow(1, from, to - from);
    let mut parts = Vec::with_capacity(3);
    if offset > 0 {
        parts.push(rest(0, offset)?);
    }
    parts.push(part.clone());
    if end < row.dim(1)? {
        parts.push(rest(end, row.dim(1)?)?);
    }
    states.slice_set(&Tensor::cat(&parts, 1)?.copy()?, 0, slot as usize)?;
    Ok(())
}
