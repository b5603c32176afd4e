//! Weights and a blueprint -> [`Decoder`]: every tensor's shape is checked, fused projections are split and
//! permuted rows go home here, at the door, so that nothing further in has to know.

use std::ops::Range;

use super::decoder::{Decoder, LayerWeights};
use crate::config::{Block, Config, NormKind, Presence};
use crate::error::{Error, Result};
use crate::kernels::{Linear, Norm, Ops};
use crate::weights::names::{Names, Part, left_alone};
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
        let names = Names::of(weights, config.tensors.post_norms);
        let loader = TensorLoader { names, weights, config: &config, ops: &ops, to };
        let mut layers = Vec::with_capacity(config.layers.len());
        for index in 0..config.layers.len() {
            layers.push(loader.layer(index)?);
            after_layer()?;
        }
        let (embed, head) = loader.embed_and_head()?;
        let headless = !config.tied && head.is_none();
        let final_norm = loader.norm(Part::FinalNorm, None, config.hidden)?;
        let frequencies = config.ropes.iter().map(|rope| rope.frequencies(context_length)).collect();
        let weight = ops.matrix(&loader.quantized(embed, Part::Embed)?)?;
        let embed = Linear { weight, bias: None, outlier: outlier(Part::Embed) };
        let left_alone = left_alone(weights, config.wrapper.is_some())?;
        Ok(Decoder { embed, layers, final_norm, head, headless, frequencies, ops, config, left_alone })
    }
}

/// What the tensors pass through on their way in.
struct TensorLoader<'a> {
    names: Names,
    weights: &'a Weights,
    config: &'a Config,
    ops: &'a Ops,
    to: Option<WeightType>,
}

impl TensorLoader<'_> {
    fn layer(&self, index: usize) -> Result<LayerWeights> {
        let c = self.config;
        let (at, t) = (Some(index), &c.tensors);
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
            q_norm: self.head_norm(Part::QNorm, at)?,
            k_norm: self.head_norm(Part::KNorm, at)?,
            attn_post_norm: t.post_norms.then(|| self.norm(Part::AttnPostNorm, at, c.hidden)).transpose()?,
            mlp_norm,
            gate,
            up,
            down: self.linear(Part::Down, at, c.hidden, c.intermediate)?,
            mlp_post_norm: t.post_norms.then(|| self.norm(Part::MlpPostNorm, at, c.hidden)).transpose()?,
        })
    }

    /// q, k and v, from three matrices or from one.
    fn qkv(&self, index: usize) -> Result<(Linear, Linear, Linear)> {
        let (c, at) = (self.config, Some(index));
        let (wide, narrow) = (c.heads * c.head_dim, c.kv_heads * c.head_dim);
        if self.is_stored(c.tensors.fused, Part::Qkv, at, "weight") {
            let rows = wide + 2 * narrow;
            let weight = self.tensor(Part::Qkv, at, &[rows, c.hidden])?;
            let bias = self.bias(Part::Qkv, at, rows)?;
            let cut = |range: Range<usize>, heads| {
                let bias = bias.as_ref().map(|bias| self.slice_rows(bias, range.clone())).transpose()?;
                self.projection(Part::Qkv, self.slice_rows(&weight, range)?, bias, heads)
            };
            let q = cut(0..wide, Some(c.heads))?;
            let k = cut(wide..wide + narrow, Some(c.kv_heads))?;
            return Ok((q, k, cut(wide + narrow..rows, None)?));
        }
        let one = |part, rows, heads| {
            self.projection(
                part,
                self.tensor(part, at, &[rows, c.hidden])?,
                self.bias(part, at, rows)?,
                heads,
            )
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
        let Some(part) = self.fused_gate_up(at) else {
            let gate = match c.tensors.gate {
                true => Some(self.linear(Part::Gate, at, inner, c.hidden)?),
                false => None,
            };
            return Ok((gate, self.linear(Part::Up, at, inner, c.hidden)?));
        };
        let weight = self.tensor(part, at, &[2 * inner, c.hidden])?;
        let bias = self.bias(part, at, 2 * inner)?;
        let cut = |range: Range<usize>| {
            let bias = bias.as_ref().map(|bias| self.slice_rows(bias, range.clone())).transpose()?;
            self.projection(part, self.slice_rows(&weight, range)?, bias, None)
        };
        Ok((Some(cut(0..inner)?), cut(inner..2 * inner)?))
    }

    /// The part that holds gate and up in one matrix, if one does. Phi-3's GGUF files call it `ffn_up`: of twice the
    /// height, with no gate beside it.
    fn fused_gate_up(&self, at: Option<usize>) -> Option<Part> {
        let fused = self.config.tensors.fused;
        if !self.config.tensors.gate || fused == Presence::Never {
            return None;
        }
        if self.is_stored(fused, Part::GateUp, at, "weight") {
            return Some(Part::GateUp);
        }
        let up = self.weights.shape(&self.name(Part::Up, at, "weight"));
        let doubled = up.is_some_and(|shape| shape.first() == Some(&(2 * self.config.intermediate)));
        (doubled && !self.has(Part::Gate, at)).then_some(Part::Up)
    }

    /// The embedding, and the head where that is another matrix. A stored head counts, whatever the configuration says of
    /// tying; in a tied file it may be the only one of the two that is stored. A base model may have neither.
    fn embed_and_head(&self) -> Result<(WeightTensor, Option<Linear>)> {
        let shape = [self.config.vocab, self.config.hidden];
        let (tied, has_head) = (self.config.tied, self.has(Part::Head, None));
        let alone = tied && has_head && !self.has(Part::Embed, None);
        let embed = self.tensor(if alone { Part::Head } else { Part::Embed }, None, &shape)?;
        let bias = self.bias(Part::Head, None, self.config.vocab)?;
        let head = match has_head && !alone {
            true => Some(self.tensor(Part::Head, None, &shape)?),
            false if tied => None,
            false if self.names.is_headless() => return Ok((embed, None)),
            false => {
                let missing = "tie_word_embeddings is false (where the key is absent, by the family's default), so that \
                               the head must be stored";
                return Err(self.tensor(Part::Head, None, &shape).map_or_else(
                    |e| e.context(missing),
                    |_| Error::internal("a head was found that is not stored"),
                ));
            }
        };
        // A head that is the embedding is not kept twice.
        let own = head.filter(|head| !tied || head.dtype != embed.dtype || head.data[..] != embed.data[..]);
        let head = match (own, bias) {
            (None, None) => None,
            (own, bias) => {
                Some(self.projection(Part::Head, own.unwrap_or_else(|| embed.clone()), bias, None)?)
            }
        };
        Ok((embed, head))
    }

    fn linear(&self, part: Part, layer: Option<usize>, rows: usize, columns: usize) -> Result<Linear> {
        self.projection(
            part,
            self.tensor(part, layer, &[rows, columns])?,
            self.bias(part, layer, rows)?,
            None,
        )
    }

    /// A projection from its tensors; `heads`: q or k, whose interleaved rows go back to halves.
    fn projection(
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

    /// The norm of each query's or key's head, where there is one.
    fn head_norm(&self, part: Part, layer: Option<usize>) -> Result<Option<Norm>> {
        let stored = self.is_stored(self.config.tensors.qk_norm, part, layer, "weight");
        stored.then(|| self.norm(part, layer, self.config.head_dim)).transpose()
    }

    fn norm(&self, part: Part, layer: Option<usize>, width: usize) -> Result<Norm> {
        let norm = self.config.norm;
        let weight = self.ops.vector(&self.tensor(part, layer, &[width])?, norm.offset)?;
        let bias = match norm.kind {
            NormKind::Layer => {
                let name = self.name(part, layer, "bias");
                Some(self.ops.vector(&self.checked(&name, &[width])?, 0.0)?)
            }
            NormKind::Rms => None,
        };
        Ok(Norm { kind: norm.kind, eps: norm.eps, weight, bias })
    }

    fn name(&self, part: Part, layer: Option<usize>, kind: &str) -> String {
        self.names.name(self.weights, part, layer, kind)
    }

    fn has(&self, part: Part, layer: Option<usize>) -> bool {
        self.weights.contains(&self.name(part, layer, "weight"))
    }

    /// Whether a tensor is to be read; one that must be there and is not fails when it is.
    fn is_stored(&self, presence: Presence, part: Part, layer: Option<usize>, kind: &str) -> bool {
        match presence {
            Presence::Never => false,
            Presence::Always => true,
            Presence::IfStored => self.weights.contains(&self.name(part, layer, kind)),
        }
    }

    fn bias(&self, part: Part, layer: Option<usize>, rows: usize) -> Result<Option<WeightTensor>> {
        let t = &self.config.tensors;
        let presence = match part {
            Part::Q | Part::K | Part::V | Part::Qkv => t.qkv_bias,
            Part::O => t.o_bias,
            Part::Gate | Part::Up | Part::GateUp | Part::Down => t.mlp_bias,
            Part::Head => t.head_bias,
            _ => Presence::Never,
        };
        let stored = self.is_stored(presence, part, layer, "bias");
        stored.then(|| self.checked(&self.name(part, layer, "bias"), &[rows])).transpose()
    }

    /// A matrix or vector; multiplied by the scale that GGUF may have beside it.
    fn tensor(&self, part: Part, layer: Option<usize>, shape: &[usize]) -> Result<WeightTensor> {
        let name = self.name(part, layer, "weight");
        let tensor = self.checked(&name, shape).map_err(|error| match self.weights.contains(&name) {
            true => error,
            false => error.context(self.names.all(part, layer).join(" or ")),
        })?;
        match self.names {
            Names::Gguf { .. } => self.scaled(tensor, &self.name(part, layer, "scale")),
            Names::Transformers { .. } => Ok(tensor),
        }
    }

    /// llama.cpp multiplies a product by `blk.N.attn_q.scale` and its kind, whatever the weight's type. Floats take the
    /// factor in; blocks could not without being rounded again.
    fn scaled(&self, tensor: WeightTensor, scale: &str) -> Result<WeightTensor> {
        if !self.weights.contains(scale) {
            return Ok(tensor);
        }
        let factor = match self.checked(scale, &[1])?.to_f32().first() {
            Some(factor) if factor.is_finite() => *factor,
            _ => return Err(Error::model_file(format!("the tensor {scale} must be one finite number"))),
        };
        if factor == 1.0 {
            return Ok(tensor);
        }
        if tensor.dtype.is_quantized() {
            return Err(Error::unsupported(format!(
                "{}: {scale} is {factor}, and a scale beside a weight stored as {} is not supported",
                self.weights.file_of(scale).display(),
                tensor.dtype
            )));
        }
        let scaled = tensor.to_f32().iter().flat_map(|w| (w * factor).to_le_bytes()).collect();
        Ok(WeightTensor { dtype: WeightType::F32, data: Bytes::from_vec(scaled), ..tensor })
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
