//! Weights and a blueprint -> [`Decoder`]: every tensor's shape is checked, fused projections are split and
//! permuted rows go home here, at the door, so that nothing further in has to know.

use std::ops::Range;

use super::decoder::{Decoder, LayerWeights};
use crate::config::{Block, Config};
use crate::error::{Error, Result};
use crate::kernels::{Linear, Norm, Ops};
use crate::weights::names::{Names, Part};
use crate::weights::quantize::quantize;
use crate::weights::{Bytes, WeightTensor, WeightType, Weights};

impl Decoder {
    /// Builds the decoder of `config` from `weights`, for contexts up to `context_length`.
    /// `to`: quantize the matrices while loading. `after_layer` may end it.
    pub fn build(
        config: Config,
        weights: &Weights,
        ops: Ops,
        context_length: usize,
        to: Option<WeightType>,
        after_layer: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Decoder> {
        let door = Door { names: Names::of(weights), weights, config: &config, ops: &ops, to };
        let mut layers = Vec::with_capacity(config.layers.len());
        for index in 0..config.layers.len() {
            layers.push(door.layer(index)?);
            after_layer()?;
        }
        let embed = door.tensor(Part::Embed, None, &[config.vocab, config.hidden])?;
        let head = if config.tied { None } else { door.head()? };
        let final_norm = door.norm(Part::FinalNorm, None, config.hidden)?;
        let frequencies = config.ropes.iter().map(|rope| rope.frequencies(context_length)).collect();
        let weight = ops.matrix(&door.quantized(embed, Part::Embed)?)?;
        let embed = Linear { weight, bias: None, outlier: outlier(Part::Embed) };
        Ok(Decoder { embed, layers, final_norm, head, frequencies, ops, config })
    }
}

/// What the tensors pass through on their way in.
struct Door<'a> {
    names: Names,
    weights: &'a Weights,
    config: &'a Config,
    ops: &'a Ops,
    to: Option<WeightType>,
}

impl Door<'_> {
    fn layer(&self, index: usize) -> Result<LayerWeights> {
        let c = self.config;
        let at = Some(index);
        let (q, k, v) = self.qkv(index)?;
        let (gate, up) = self.gate_up(index)?;
        let mlp_norm = match c.block {
            Block::Parallel => None,
            Block::Sequential => Some(self.norm(Part::MlpNorm, at, c.hidden)?),
        };
        Ok(LayerWeights {
            attn_norm: self.norm(Part::AttnNorm, at, c.hidden)?,
            q,
            k,
            v,
            o: self.linear(Part::O, at, c.hidden, c.heads * c.head_dim)?,
            q_norm: self.optional_norm(Part::QNorm, at, c.head_dim)?,
            k_norm: self.optional_norm(Part::KNorm, at, c.head_dim)?,
            attn_post_norm: self.optional_norm(Part::AttnPostNorm, at, c.hidden)?,
            mlp_norm,
            gate,
            up,
            down: self.linear(Part::Down, at, c.hidden, c.intermediate)?,
            mlp_post_norm: self.optional_norm(Part::MlpPostNorm, at, c.hidden)?,
        })
    }

    /// q, k and v, from three matrices or from one.
    fn qkv(&self, index: usize) -> Result<(Linear, Linear, Linear)> {
        let (c, at) = (self.config, Some(index));
        let (wide, narrow) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        if self.has(Part::Qkv, at) {
            let rows = wide + 2 * narrow;
            let weight = self.tensor(Part::Qkv, at, &[rows, c.hidden])?;
            let bias = self.bias(Part::Qkv, at, rows)?;
            let cut = |range: Range<usize>, heads| {
                let bias = bias.as_ref().map(|bias| self.slice_rows(bias, range.clone())).transpose()?;
                self.turned(Part::Qkv, self.slice_rows(&weight, range)?, bias, heads)
            };
            let q = cut(0..wide, Some(c.heads))?;
            let k = cut(wide..wide + narrow, Some(c.kv_heads))?;
            return Ok((q, k, cut(wide + narrow..rows, None)?));
        }
        let one = |part, rows, heads| {
            self.turned(part, self.tensor(part, at, &[rows, c.hidden])?, self.bias(part, at, rows)?, heads)
        };
        Ok((
            one(Part::Q, wide, Some(c.heads))?,
            one(Part::K, narrow, Some(c.kv_heads))?,
            one(Part::V, narrow, None)?,
        ))
    }

    /// gate (unless the MLP is plain) and up, from two matrices or from one.
    fn gate_up(&self, index: usize) -> Result<(Option<Linear>, Linear)> {
        let (c, at) = (self.config, Some(index));
        let inner = c.intermediate;
        let doubled = self
            .weights
            .shape(&self.names.name(self.weights, Part::Up, at, "weight"))
            .is_some_and(|shape| shape.first() == Some(&(2 * inner)));
        let fused = match (self.has(Part::GateUp, at), doubled && !self.has(Part::Gate, at)) {
            (true, _) => Some(Part::GateUp),
            (_, true) => Some(Part::Up),
            _ => None,
        };
        let Some(part) = fused else {
            let gate = match self.has(Part::Gate, at) {
                true => Some(self.linear(Part::Gate, at, inner, c.hidden)?),
                false => None,
            };
            return Ok((gate, self.linear(Part::Up, at, inner, c.hidden)?));
        };
        let weight = self.tensor(part, at, &[2 * inner, c.hidden])?;
        let bias = self.bias(part, at, 2 * inner)?;
        let cut = |range: Range<usize>| {
            let bias = bias.as_ref().map(|bias| self.slice_rows(bias, range.clone())).transpose()?;
            self.turned(part, self.slice_rows(&weight, range)?, bias, None)
        };
        Ok((Some(cut(0..inner)?), cut(inner..2 * inner)?))
    }

    fn head(&self) -> Result<Option<Linear>> {
        if !self.has(Part::Head, None) {
            return Ok(None);
        }
        self.linear(Part::Head, None, self.config.vocab, self.config.hidden).map(Some)
    }

    fn linear(&self, part: Part, layer: Option<usize>, rows: usize, columns: usize) -> Result<Linear> {
        self.turned(part, self.tensor(part, layer, &[rows, columns])?, self.bias(part, layer, rows)?, None)
    }

    /// A projection from its tensors; `heads`: q or k, whose interleaved rows go back to halves.
    fn turned(
        &self,
        part: Part,
        weight: WeightTensor,
        bias: Option<WeightTensor>,
        heads: Option<usize>,
    ) -> Result<Linear> {
        let heads = heads.filter(|_| self.config.interleaved_qk);
        let (weight, bias) = match heads {
            Some(heads) => (
                self.deinterleave(&weight, heads)?,
                bias.map(|bias| self.deinterleave(&bias, heads)).transpose()?,
            ),
            None => (weight, bias),
        };
        let bias = bias.map(|bias| self.ops.vector(&bias, 0.0)).transpose()?;
        Ok(Linear { weight: self.ops.matrix(&self.quantized(weight, part)?)?, bias, outlier: outlier(part) })
    }

    /// Quantized, if that was asked for. Embedding and head stay at 6 bits or more: all else passes through them,
    /// and at fewer the answers suffer first there.
    fn quantized(&self, weight: WeightTensor, part: Part) -> Result<WeightTensor> {
        let Some(to) = self.to else { return Ok(weight) };
        let bits = 8 * to.block_bytes() / to.block_len();
        let outer = matches!(part, Part::Embed | Part::Head) && bits < 6;
        quantize(&weight, if outer { WeightType::Q6K } else { to }, self.ops.threads())
    }

    fn optional_norm(&self, part: Part, layer: Option<usize>, width: usize) -> Result<Option<Norm>> {
        self.has(part, layer).then(|| self.norm(part, layer, width)).transpose()
    }

    fn norm(&self, part: Part, layer: Option<usize>, width: usize) -> Result<Norm> {
        let norm = self.config.norm;
        let weight = self.ops.vector(&self.tensor(part, layer, &[width])?, norm.offset)?;
        let bias = self.bias(part, layer, width)?.map(|bias| self.ops.vector(&bias, 0.0)).transpose()?;
        Ok(Norm { kind: norm.kind, eps: norm.eps, weight, bias })
    }

    fn has(&self, part: Part, layer: Option<usize>) -> bool {
        self.weights.contains(&self.names.name(self.weights, part, layer, "weight"))
    }

    fn bias(&self, part: Part, layer: Option<usize>, rows: usize) -> Result<Option<WeightTensor>> {
        let name = self.names.name(self.weights, part, layer, "bias");
        self.weights.contains(&name).then(|| self.checked(&name, &[rows])).transpose()
    }

    fn tensor(&self, part: Part, layer: Option<usize>, shape: &[usize]) -> Result<WeightTensor> {
        self.checked(&self.names.name(self.weights, part, layer, "weight"), shape)
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<WeightTensor> {
        let tensor = self.weights.get(name)?;
        if tensor.shape != shape {
            return Err(Error::model_file(format!(
                "{}: the tensor {name} has shape {:?} where the configuration asks for {shape:?}; \
                 the configuration and the weights do not belong together",
                self.weights.file_of(name).display(),
                tensor.shape
            )));
        }
        Ok(tensor)
    }

    /// Bytes of one row (of one element, in a vector).
    fn row_bytes(&self, tensor: &WeightTensor) -> Result<usize> {
        let columns = tensor.shape.get(1).copied().unwrap_or(1);
        tensor.dtype.row_bytes(columns).ok_or_else(|| {
            Error::model_file(format!(
                "{}: rows of the tensor {} do not fill whole blocks of {}",
                self.weights.file_of(&tensor.name).display(),
                tensor.name,
                tensor.dtype
            ))
        })
    }

    fn slice_rows(&self, tensor: &WeightTensor, rows: Range<usize>) -> Result<WeightTensor> {
        let width = self.row_bytes(tensor)?;
        let mut shape = tensor.shape.clone();
        shape[0] = rows.len();
        let data = tensor.data.slice(rows.start * width..rows.end * width)?;
        Ok(WeightTensor { name: tensor.name.clone(), dtype: tensor.dtype, shape, data })
    }

    /// Rows of each head from pairs (0, 0', 1, 1', …) to halves (0, 1, …, 0', 1', …): llama.cpp's converter pairs
    /// dimension i with its partner for a RoPE that turns neighbours, ours turns i with i + head_dim/2.
    fn deinterleave(&self, tensor: &WeightTensor, heads: usize) -> Result<WeightTensor> {
        let width = self.row_bytes(tensor)?;
        let rows = tensor.shape[0];
        let head = rows / heads;
        let half = head / 2;
        let mut data = Vec::with_capacity(tensor.data.len());
        for row in 0..rows {
            let (base, i) = (row / head * head, row % head);
            let from = base + 2 * (i % half) + i / half;
            data.extend_from_slice(&tensor.data[from * width..(from + 1) * width]);
        }
        Ok(WeightTensor { data: Bytes::from_vec(data), ..tensor.clone() })
    }
}

/// Which activations are outliers ([`Linear::outlier`]). Measured on SmolLM2-135M Q4_1 and Gemma 3 270M Q4_K_M: how far the
/// next token's probabilities move from those of exact activations. The head's come first, and cost a prompt nothing: only rows
/// that are sampled pass through it. Of the others, those of the output projection are the fewest.
fn outlier(part: Part) -> f32 {
    match part {
        Part::Embed | Part::Head => 4.0,
        Part::Q | Part::K | Part::V | Part::Qkv | Part::O => 5.0,
        _ => 6.0,
    }
}
