//! Weights and a blueprint -> [`Decoder`]: every tensor's shape is checked, fused projections are split and
//! permuted rows go home here, at the door, so that nothing further in has to know.

use std::cell::Cell;
use std::ops::Range;

use super::decoder::{Decoder, LayerWeights};
use super::feed_forward::FeedForward;
use super::mixer::{LayerCounts, Mixer};
use super::packed::PackedMatrices;
use super::per_layer::{PerLayer, PerLayerInputs};
use crate::config::{Config, NormKind, Presence};
use crate::error::{Error, Result};
use crate::kernels::{Linear, Matrix, Norm, Ops, Vector};
use crate::weights::names::{Names, Part, left_alone};
use crate::weights::quantize::{made, quantize};
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
        Decoder::build_from(&PackedMatrices::default(), config, weights, ops, context_length, to, after_layer)
    }

    /// As [`Decoder::build`]; the matrices that are `packed` has are taken from there.
    pub(super) fn build_from(
        packed: &PackedMatrices,
        config: Config,
        weights: &Weights,
        ops: Ops,
        context_length: usize,
        to: Option<WeightType>,
        after_layer: &mut dyn FnMut() -> Result<()>,
    ) -> Result<Decoder> {
        let names = Names::of(weights, config.post_norms(), config.names);
        let quantized = Cell::new(0);
        let loader = TensorLoader { names, weights, config: &config, ops: &ops, to, packed, quantized };
        let (mut layers, mut counts) = (Vec::with_capacity(config.layers.len()), LayerCounts::default());
        for index in 0..config.layers.len() {
            layers.push(loader.layer(index, &mut counts)?);
            after_layer()?;
        }
        let width = config.layers.iter().find_map(|layer| layer.per_layer).map(|per_layer| per_layer.width);
        let per_layer = width.map(|width| PerLayerInputs::load(&loader, width)).transpose()?;
        let (embed, head) = loader.embed_and_head()?;
        let headless = !config.tied && head.is_none();
        let final_norm = loader.norm(Part::FinalNorm, None, config.hidden)?;
        let embed_norm = config.embed_norm.then(|| loader.plain_norm(config.hidden)).transpose()?;
        let frequencies = config.ropes.iter().map(|rope| rope.frequencies(context_length)).collect();
        let weight = loader.matrix(Part::Embed, embed.into(), None)?;
        let embed = Linear { weight, scale: 1.0, bias: None, outlier: outlier(Part::Embed) };
        let drafts = config.layers.len()..config.layers.len() + config.draft_layers;
        weights.check_made()?;
        let left_alone = left_alone(weights, config.wrapper.is_some(), drafts)?;
        let quantized = loader.quantized.get();
        Ok(Decoder {
            embed,
            per_layer,
            layers,
            final_norm,
            embed_norm,
            head,
            headless,
            frequencies,
            ops,
            config,
            left_alone,
            quantized,
        })
    }
}

/// What the tensors pass through on their way in.
pub(super) struct TensorLoader<'a> {
    pub names: Names,
    pub weights: &'a Weights,
    pub config: &'a Config,
    pub ops: &'a Ops,
    to: Option<WeightType>,
    packed: &'a PackedMatrices,
    /// Matrices that were quantized so far.
    quantized: Cell<usize>,
}

impl TensorLoader<'_> {
    fn layer(&self, index: usize, counts: &mut LayerCounts) -> Result<LayerWeights> {
        let (hidden, at) = (self.config.hidden, Some(index));
        let layer = &self.config.layers[index];
        let norm = |there: bool, part| there.then(|| self.norm(part, at, hidden)).transpose();
        Ok(LayerWeights {
            before_mixer: norm(layer.norms.before_mixer, Part::AttnNorm)?,
            mixer: layer.mixer.as_ref().map(|mixer| Mixer::load(self, index, mixer, counts)).transpose()?,
            after_mixer: norm(layer.norms.after_mixer, Part::AttnPostNorm)?,
            before_ffn: norm(
                layer.norms.before_ffn,
                // A feed-forward alone has the norm of its layer.
                if layer.mixer.is_some() { Part::MlpNorm } else { Part::AttnNorm },
            )?,
            ffn: layer.ffn.as_ref().map(|ffn| FeedForward::load(self, index, ffn)).transpose()?,
            after_ffn: norm(layer.norms.after_ffn, Part::MlpPostNorm)?,
            residual_scale: layer.residual_scale,
            per_layer: layer.per_layer.as_ref().map(|c| PerLayer::load(self, index, c)).transpose()?,
            output_scale: self
                .is_stored(layer.output_scale, Part::OutputScale, at, "weight")
                .then(|| self.number(Part::OutputScale, index))
                .transpose()?,
        })
    }

    /// The embedding, and the head where that is another matrix. A stored head counts, whatever the
    /// configuration says of tying; in a tied file it may be the only one of the two that is stored. A base
    /// model may have neither.
    fn embed_and_head(&self) -> Result<(WeightTensor, Option<Linear>)> {
        let shape = [self.config.vocab, self.config.hidden];
        let (tied, has_head) = (self.config.tied, self.has(Part::Head, None));
        let alone = tied && has_head && !self.has(Part::Embed, None);
        let embed = self.tensor(if alone { Part::Head } else { Part::Embed }, None, &shape)?;
        let bias = self.bias(self.config.head_bias, Part::Head, None, self.config.vocab)?;
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
        for tensor in head.iter().chain([&embed]).filter(|_| tied) {
            tensor.data.ready()?;
        }
        let own = head.filter(|head| !tied || head.dtype != embed.dtype || head.data[..] != embed.data[..]);
        let head = match (own, bias) {
            (None, None) => None,
            (own, bias) => {
                Some(self.projection(Part::Head, own.unwrap_or_else(|| embed.clone()), bias, None)?)
            }
        };
        Ok((embed, head))
    }

    /// A projection `[rows, columns]` of a layer.
    pub fn linear(
        &self,
        part: Part,
        layer: usize,
        [rows, columns]: [usize; 2],
        bias: Presence,
    ) -> Result<Linear> {
        self.heads(part, layer, [rows, columns], bias, None)
    }

    /// As [`TensorLoader::linear`]; `heads`: q or k, whose interleaved rows go back to halves.
    pub fn heads(
        &self,
        part: Part,
        layer: usize,
        [rows, columns]: [usize; 2],
        bias: Presence,
        heads: Option<usize>,
    ) -> Result<Linear> {
        let at = Some(layer);
        let weight = self.tensor(part, at, &[rows, columns])?;
        self.projection(part, weight, self.bias(bias, part, at, rows)?, heads)
    }

    /// Projections of the same rows out of one matrix, whose rows are theirs in this order; each with the
    /// heads that interleaved rows go back to.
    pub fn split<const N: usize>(
        &self,
        part: Part,
        layer: usize,
        pieces: [(usize, Option<usize>); N],
        bias: Presence,
    ) -> Result<[Linear; N]> {
        let rows = pieces.iter().map(|(rows, _)| rows).sum();
        let weight = self.tensor(part, Some(layer), &[rows, self.config.hidden])?;
        let bias = self.bias(bias, part, Some(layer), rows)?;
        let mut start = 0;
        let cut = |(rows, heads): (usize, Option<usize>)| {
            let range = start..start + rows;
            start = range.end;
            let bias = bias.as_ref().map(|bias| self.slice_rows(bias, range.clone())).transpose()?;
            self.projection(part, self.slice_rows(&weight, range)?, bias, heads)
        };
        let linears = pieces.into_iter().map(cut).collect::<Result<Vec<_>>>()?;
        linears.try_into().map_err(|_| Error::internal("as many projections as pieces"))
    }

    /// A projection from its tensors; `heads`: q or k, whose interleaved rows go back to halves.
    pub fn projection(
        &self,
        part: Part,
        weight: impl Into<Pending>,
        bias: Option<WeightTensor>,
        heads: Option<usize>,
    ) -> Result<Linear> {
        let weight = weight.into();
        let scale = self.scale(part, &weight)?;
        self.scaled(part, weight, bias, heads, scale)
    }

    /// What the product with a weight is multiplied by.
    fn scale(&self, part: Part, weight: &Pending) -> Result<f32> {
        match self.names {
            Names::Gguf { .. } => self.stored_scale(&weight.name),
            Names::Transformers { .. } => Ok(self.weight_scale(part)[0]),
        }
    }

    /// As [`TensorLoader::scale`], of expert `index` of `count`, whose weight may be cut out of a stack: that
    /// has a number for each beside it. `taken`: those of the projection down are a part of their own, and
    /// read as that.
    pub fn expert_scale(
        &self,
        part: Part,
        weight: &Pending,
        (index, count): (usize, usize),
        taken: bool,
    ) -> Result<f32> {
        let name = scale_name(&weight.name);
        let there = self.names.is_gguf() && self.weights.contains(&name);
        if !there || !name.ends_with("_exps.scale") {
            return self.scale(part, weight);
        }
        if taken && part == Part::DownExperts {
            return Ok(1.0);
        }
        match self.checked(&name, &[count])?.to_f32().get(index) {
            Some(factor) if factor.is_finite() => Ok(*factor),
            _ => Err(Error::model_file(format!("the tensor {name} must be finite numbers"))),
        }
    }

    /// As [`TensorLoader::projection`], of which the product is multiplied by `scale`.
    pub fn scaled(
        &self,
        part: Part,
        weight: impl Into<Pending>,
        bias: Option<WeightTensor>,
        heads: Option<usize>,
        scale: f32,
    ) -> Result<Linear> {
        let heads = heads.filter(|_| self.config.interleaved_qk);
        let bias = match (heads, bias) {
            (Some(heads), Some(bias)) => Some(self.deinterleave(&bias, heads)?),
            (_, bias) => bias,
        };
        let bias = bias.map(|bias| self.ops.vector(&bias, 0.0)).transpose()?;
        let weight = self.matrix(part, weight.into(), heads)?;
        Ok(Linear { weight, scale, bias, outlier: outlier(part) })
    }

    /// A matrix as it is computed with: from a packed file, or made. Interleaved rows of `heads` go back to
    /// halves.
    fn matrix(&self, part: Part, weight: Pending, heads: Option<usize>) -> Result<Matrix> {
        let to = self.to.filter(|_| !stays_exact(part)).map(|to| at_least_6_bits_outside(part, to));
        let quantized = match (to, weight.shape.get(1)) {
            (Some(to), Some(k)) if !weight.dtype.has_integer_codes() => made(to, *k),
            _ => None,
        };
        self.quantized.set(self.quantized.get() + usize::from(quantized.is_some()));
        let dtype = quantized.unwrap_or(weight.dtype);
        if let Some(matrix) = self.packed.take(self.ops, &weight.name, dtype, &weight.shape) {
            return Ok(matrix);
        }
        let mut weight = weight.make();
        weight.data.ready()?;
        if let Some(heads) = heads {
            weight = self.deinterleave(&weight, heads)?;
        }
        if let Some(to) = to {
            weight = quantize(&weight, to, self.ops.threads())?;
        }
        let matrix = self.ops.matrix(&weight)?;
        self.packed.add(&matrix);
        Ok(matrix)
    }

    pub fn norm(&self, part: Part, layer: Option<usize>, width: usize) -> Result<Norm> {
        let norm = match part {
            Part::FinalNorm => self.config.final_norm,
            Part::AttnPostNorm | Part::MlpPostNorm => self.config.post_norm,
            _ => self.config.norm,
        };
        let weight = self.ops.vector(&self.tensor(part, layer, &[width])?, norm.offset)?;
        let bias = match norm.bias {
            true => {
                let name = self.name(part, layer, "bias");
                Some(self.ops.vector(&self.checked(&name, &[width])?, 0.0)?)
            }
            false => None,
        };
        Ok(Norm { kind: norm.kind, eps: norm.eps, weight, bias })
    }

    /// A norm without bias whose weights differ from head to head: each head's is a tensor, in GGUF all are
    /// one.
    pub fn norm_of_heads(&self, part: Part, layer: usize, heads: usize, head_dim: usize) -> Result<Norm> {
        let weights = match self.names.is_gguf() {
            true => self.numbers(part, layer, "weight", heads * head_dim)?,
            false => {
                let of_head = |head| self.tensor(part.of_head(head), Some(layer), &[head_dim]);
                let tensors = (0..heads).map(of_head).collect::<Result<Vec<_>>>()?;
                tensors.iter().flat_map(WeightTensor::to_f32).collect()
            }
        };
        let (norm, weight) = (self.config.norm, self.vector_of(part, layer, &weights)?);
        Ok(Norm { kind: norm.kind, eps: norm.eps, weight, bias: None })
    }

    /// The numbers of a vector of scales.
    pub fn scales(&self, part: Part, layer: usize, width: usize) -> Result<WeightTensor> {
        self.checked(&self.name(part, Some(layer), "scale"), &[width])
    }

    /// An RMS norm without weights.
    pub fn plain_norm(&self, width: usize) -> Result<Norm> {
        let ones = WeightTensor::floats("ones", vec![width], vec![1.0; width]);
        let (weight, eps) = (self.ops.vector(&ones, 0.0)?, self.config.norm.eps);
        Ok(Norm { kind: NormKind::Rms, eps, weight, bias: None })
    }

    /// One finite number, stored with or without a dimension.
    pub fn number(&self, part: Part, layer: usize) -> Result<f32> {
        let name = self.name(part, Some(layer), "weight");
        let tensor = self.weights.get(&name)?;
        match tensor.to_f32()[..] {
            [number] if tensor.shape.len() <= 1 && number.is_finite() => Ok(number),
            _ => Err(Error::model_file(format!(
                "{}: the tensor {name} must be one finite number",
                self.weights.file_of(&name).display()
            ))),
        }
    }

    pub fn name(&self, part: Part, layer: Option<usize>, kind: &str) -> String {
        self.names.name(self.weights, part, layer, kind)
    }

    pub fn has(&self, part: Part, layer: Option<usize>) -> bool {
        self.weights.contains(&self.name(part, layer, "weight"))
    }

    /// Whether a tensor is to be read; one that must be there and is not fails when it is.
    pub fn is_stored(&self, presence: Presence, part: Part, layer: Option<usize>, kind: &str) -> bool {
        match presence {
            Presence::Never => false,
            Presence::Always => true,
            Presence::IfStored => self.weights.contains(&self.name(part, layer, kind)),
        }
    }

    pub fn bias(
        &self,
        presence: Presence,
        part: Part,
        layer: Option<usize>,
        rows: usize,
    ) -> Result<Option<WeightTensor>> {
        self.bias_of(presence, part, layer, &[rows])
    }

    /// As [`TensorLoader::bias`], of any shape.
    pub fn bias_of(
        &self,
        presence: Presence,
        part: Part,
        layer: Option<usize>,
        shape: &[usize],
    ) -> Result<Option<WeightTensor>> {
        if !self.is_stored(presence, part, layer, "bias") {
            return Ok(None);
        }
        let bias = self.checked(&self.name(part, layer, "bias"), shape)?;
        Ok(Some(times(bias, self.weight_scale(part)[1])))
    }

    /// What the configuration multiplies a product and its bias by.
    fn weight_scale(&self, part: Part) -> [f32; 2] {
        let scales = self.config.weight_scales.iter().find(|(scaled, _)| *scaled == part);
        scales.map_or([1.0; 2], |(_, scales)| *scales)
    }

    /// Plain bytes, which only safetensors have.
    pub fn bytes(&self, name: &str, shape: &[usize]) -> Result<Bytes> {
        let (stored, bytes) = self.weights.bytes(name)?;
        match stored == shape {
            true => Ok(bytes),
            false => Err(self.mismatch(name, stored, shape)),
        }
    }

    /// A matrix or vector.
    pub fn tensor(&self, part: Part, layer: Option<usize>, shape: &[usize]) -> Result<WeightTensor> {
        let name = self.name(part, layer, "weight");
        self.checked(&name, shape).map_err(|error| match self.weights.contains(&name) {
            true => error,
            false => error.context(self.names.all(part, layer).join(" or ")),
        })
    }

    /// The numbers of a vector of `len`, whatever its shape: GGUF has some as columns or by group.
    pub fn numbers(&self, part: Part, layer: usize, kind: &str, len: usize) -> Result<Vec<f32>> {
        let name = self.name(part, Some(layer), kind);
        let shape = self.weights.shape(&name).map(<[usize]>::to_vec);
        let flat = shape.filter(|shape| shape.iter().product::<usize>() == len && shape.len() <= 2);
        Ok(self.checked(&name, &flat.unwrap_or_else(|| vec![len]))?.to_f32())
    }

    /// A vector of these numbers.
    pub fn vector_of(&self, part: Part, layer: usize, numbers: &[f32]) -> Result<Vector> {
        let bytes = numbers.iter().flat_map(|number| number.to_le_bytes()).collect();
        let (name, data) = (self.name(part, Some(layer), "weight"), Bytes::from_vec(bytes));
        let tensor = WeightTensor { name, dtype: WeightType::F32, shape: vec![numbers.len()], data };
        self.ops.vector(&tensor, 0.0)
    }

    /// The number that llama.cpp multiplies the product of a weight by: `blk.N.attn_q.scale` and its kind.
    fn stored_scale(&self, weight: &str) -> Result<f32> {
        let name = scale_name(weight);
        // A vector beside a router or experts is a part of its own.
        if self.weights.shape(&name).is_none_or(|shape| shape.iter().product::<usize>() != 1) {
            return Ok(1.0);
        }
        match self.weights.get(&name)?.to_f32().first() {
            Some(factor) if factor.is_finite() => Ok(*factor),
            _ => Err(Error::model_file(format!("the tensor {name} must be one finite number"))),
        }
    }

    fn checked(&self, name: &str, shape: &[usize]) -> Result<WeightTensor> {
        let tensor = self.weights.get(name)?;
        match tensor.shape == shape {
            true => Ok(tensor),
            false => Err(self.mismatch(name, &tensor.shape, shape)),
        }
    }

    fn mismatch(&self, name: &str, stored: &[usize], shape: &[usize]) -> Error {
        Error::model_file(format!(
            "{}: the tensor {name} has shape {stored:?} where the configuration asks for {shape:?}; \
             the configuration and the weights do not belong together",
            self.weights.file_of(name).display(),
        ))
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

    pub fn slice_rows(&self, tensor: &WeightTensor, rows: Range<usize>) -> Result<WeightTensor> {
        let width = self.row_bytes(tensor)?;
        let mut shape = tensor.shape.clone();
        shape[0] = rows.len();
        let data = tensor.data.slice(rows.start * width..rows.end * width)?;
        Ok(WeightTensor { name: tensor.name.clone(), dtype: tensor.dtype, shape, data })
    }

    /// Some rows, in the order given.
    pub fn select_rows(&self, tensor: &WeightTensor, rows: &[usize]) -> Result<WeightTensor> {
        let width = self.row_bytes(tensor)?;
        let mut shape = tensor.shape.clone();
        shape[0] = rows.len();
        tensor.data.ready()?;
        let mut data = Vec::with_capacity(rows.len() * width);
        rows.iter().for_each(|row| data.extend_from_slice(&tensor.data[row * width..(row + 1) * width]));
        Ok(WeightTensor { shape, data: Bytes::from_vec(data), ..tensor.clone() })
    }

    /// The rows of each head that turn from pairs (0, 0', 1, 1', …) to halves (0, 1, …, 0', 1', …): a RoPE
    /// that turns neighbours has them so (that of some families, and llama.cpp's converter makes it so of
    /// Llama's); ours turns i with i + dims/2.
    fn deinterleave(&self, tensor: &WeightTensor, heads: usize) -> Result<WeightTensor> {
        self.select_rows(tensor, &head_rows(self.config, tensor.shape[0], heads))
    }
}

/// A matrix that is made when it is needed: one that a packed file has never is.
pub(super) struct Pending {
    name: String,
    dtype: WeightType,
    shape: Vec<usize>,
    make: Box<dyn FnOnce() -> WeightTensor>,
}

impl Pending {
    /// `make` must give a matrix of this name, type and shape.
    pub fn new(
        name: &str,
        dtype: WeightType,
        shape: [usize; 2],
        make: impl FnOnce() -> WeightTensor + 'static,
    ) -> Pending {
        Pending { name: name.to_owned(), dtype, shape: shape.to_vec(), make: Box::new(make) }
    }

    fn make(self) -> WeightTensor {
        (self.make)()
    }
}

impl From<WeightTensor> for Pending {
    fn from(tensor: WeightTensor) -> Pending {
        let (name, shape) = (tensor.name.clone(), tensor.shape.clone());
        Pending { name, dtype: tensor.dtype, shape, make: Box::new(|| tensor) }
    }
}

/// What llama.cpp calls the number that the product with a weight is multiplied by.
fn scale_name(weight: &str) -> String {
    format!("{}.scale", weight.trim_end_matches(".weight"))
}

/// What is not quantized at load. A router is small, and decides what is computed; so do the few rows that
/// make a recurrent state's decays and strengths, whose errors add up in it.
fn stays_exact(part: Part) -> bool {
    matches!(part, Part::Router | Part::DeltaAlpha | Part::DeltaBeta | Part::SsmDt)
}

/// Embedding and head stay at 6 bits or more: all else passes through them, and at fewer the answers suffer
/// first there.
fn at_least_6_bits_outside(part: Part, to: WeightType) -> WeightType {
    let bits = 8 * to.block_bytes() / to.block_len();
    let outer = matches!(part, Part::Embed | Part::Head) && bits < 6;
    if outer { WeightType::Q6K } else { to }
}

/// Where each row of a matrix of heads stands in one whose heads have the dimensions that turn in pairs.
pub fn head_rows(config: &Config, rows: usize, heads: usize) -> Vec<usize> {
    let head = rows / heads;
    // All layers that turn do so by as many dimensions; where they do not, the order changes no score.
    let turned = config.ropes.first().map_or(head, |rope| rope.dims.min(head));
    let half = turned / 2;
    let from = |row: usize| {
        let (base, i) = (row / head * head, row % head);
        if i < turned { base + 2 * (i % half) + i / half } else { row }
    };
    (0..rows).map(from).collect()
}

/// A tensor times a number, as floats if that is not 1: small ones, whose products know no scale.
pub(super) fn times(tensor: WeightTensor, factor: f32) -> WeightTensor {
    if factor == 1.0 {
        return tensor;
    }
    let scaled = tensor.to_f32().into_iter().map(|number| number * factor).collect();
    WeightTensor::floats(&tensor.name, tensor.shape, scaled)
}

/// Which activations are outliers ([`Linear::outlier`]). Measured on SmolLM2-135M Q4_1 and Gemma 3 270M
/// Q4_K_M: how far the next token's probabilities move from those of exact activations. The head's come
/// first, and cost a prompt nothing: only rows that are sampled pass through it. Of the others, those of the
/// output projection are the fewest.
fn outlier(part: Part) -> f32 {
    match part {
        Part::Embed | Part::Head => 4.0,
        Part::Q | Part::K | Part::V | Part::Qkv | Part::O => 5.0,
        _ => 6.0,
    }
}
