//! The blueprint of a decoder: plain data, read once from `config.json` ([`hf`]) or GGUF metadata ([`gguf`]).
//!
//! A family is a way to fill in a [`Config`] (the rows of `family`); the Decoder reads the Config and has
//! never heard of families. What may differ from layer to layer stands in [`layer`]. Which tensors there must
//! be stands here too ([`Presence`]): a file that holds more, or less, was made for another model, and
//! reading it as this one would give other numbers without a word.

mod family;
pub mod fields;
pub mod generation;
pub mod gguf;
pub mod hf;
pub mod json;
pub mod layer;
pub mod modules;
pub mod quantization;
pub mod recurrent;
pub mod rope;

pub(crate) use self::family::{AdapterRows, ModuleNames, adapter_rows, module_names};
pub use self::family::{Supported, spellings, supported};
pub(crate) use self::layer::MAX_TAPS;
use self::layer::{positive, within};
use crate::error::Result;
use crate::weights::names::Part;
pub use layer::{
    AttentionConfig, BesideConfig, Denominator, DenseConfig, ExpertGroups, ExpertStack, ExpertsConfig,
    FeedForwardConfig, GateFunction, GateScope, GateSource, LatentConfig, LayerConfig, LayerNorms,
    MixerConfig, NormScope, OutputGate, PerLayerConfig, QueryScale, Routing, Score, SharedExpert,
    ShortConvConfig,
};
pub use recurrent::{DeltaNetConfig, Mamba2Config, Mamba2Norm};
pub use rope::{Rope, Scaling};

/// Everything the Decoder must know that its tensors do not tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `model_type` or `general.architecture`, for messages and for the eyes.
    pub family: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Positions that the model was made for; it is loaded for as many unless the caller says otherwise.
    pub context: usize,
    /// Positions that it can be loaded for: `context`, or more where a scaling of RoPE reaches further.
    pub longest: usize,
    /// Norms before mixers and feed-forwards, and of queries and keys.
    pub norm: Norm,
    /// Norms behind mixers and feed-forwards.
    pub post_norm: Norm,
    pub final_norm: Norm,
    pub block: Block,
    /// Logits become `cap * tanh(logits / cap)` (Gemma 2).
    pub logit_cap: Option<f32>,
    /// What embeddings are multiplied by (Gemma: `sqrt(hidden)`).
    pub embed_scale: Option<f32>,
    /// Embeddings are RMS-normed, with no weights (Muse Glimmer).
    pub embed_norm: bool,
    /// What logits are multiplied by, before they are capped.
    pub logit_scale: f32,
    /// The rotations in use; layers name them by index.
    pub ropes: Vec<Rope>,
    pub layers: Vec<LayerConfig>,
    /// The head is the embedding if none is stored; a stored one is the head, whatever this says. Without it
    /// there must be one.
    pub tied: bool,
    pub head_bias: Presence,
    /// The `model_type` of the model of pictures or sound that this text model was taken out of.
    pub wrapper: Option<&'static str>,
    /// Layers behind the last, of a draft head (multi-token prediction), which are not run.
    pub draft_layers: usize,
    /// What the weights of these parts, and their biases, are multiplied by when they are loaded (Falcon-H1).
    pub weight_scales: Vec<(Part, [f32; 2])>,
    /// A position sees only itself and those before it; `false`: every position sees all of the text, as in
    /// encoders (`use_bidirectional_attention`, `is_causal: false`, GGUF `attention.causal` false).
    pub causal: bool,
    /// The rows of q and k that turn come in interleaved pairs (GGUF of the Llama family, and families that
    /// turn neighbours), and go back to halves at the door.
    pub interleaved_qk: bool,
    /// Checkpoints of transformers have them so, and adapters of its modules with them.
    pub interleaved_in_transformers: bool,
    /// There the outputs of an expert's gate and up alternate in one matrix (gpt-oss).
    pub experts_alternate_in_transformers: bool,
    /// Spellings of this family's own tensors in checkpoints of transformers, instead of the usual ones.
    pub names: Spellings,
}

/// How a family calls parts of a decoder.
pub type Spellings = &'static [(Part, &'static [&'static str])];

/// Whether a tensor is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing reads it; if it is stored, the file is refused.
    Never,
    /// It must be stored.
    Always,
    IfStored,
}

/// One kind of norms.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    pub kind: NormKind,
    pub eps: f64,
    /// Added to the stored weight: 1 for Gemma's safetensors, 0 otherwise (GGUF stores `1 + w` already).
    pub offset: f32,
    /// A bias is stored beside the weight.
    pub bias: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    Rms,
    Layer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// The mixer, then the feed-forward, each on its own input.
    Sequential,
    /// Both read the same normed input (Phi-1.5, Phi-2).
    Parallel,
}

/// The MLP's nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq)]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`, by the error function.
    Gelu,
    /// The tanh approximation of GELU (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    Relu,
    /// gpt-oss: `g * sigmoid(1.702 g)` of `g = min(x, 7)`; what such a gate lets through is held to ±7, plus
    /// 1.
    ClampedSwiglu,
    /// `max(x, 0)^2`.
    Relu2,
    Xielu(Xielu),
}

/// The parameters of xIELU (arXiv 2411.13010): `p x^2 + beta x` above 0, else `n (e^min(x, eps) - 1 - x) +
/// beta x`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Xielu {
    pub p: f32,
    pub n: f32,
    pub beta: f32,
    pub eps: f32,
}

impl Xielu {
    /// From the parameters as they are learned and stored.
    pub fn of_stored(alpha_p: f32, alpha_n: f32, beta: f32, eps: f32) -> Self {
        let softplus = |x: f32| if x > 20.0 { x } else { x.exp().ln_1p() };
        Xielu { p: softplus(alpha_p), n: beta + softplus(alpha_n), beta, eps }
    }
}

/// How the rows of the last hidden state make one vector.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Pooling {
    /// The mean over all rows.
    Mean,
    /// The last row, which has seen the whole text.
    Last,
    /// The first row.
    First,
    /// The greatest value of each dimension.
    Max,
    /// The mean over all rows, row `i` (from 1) counted `i` times.
    WeightedMean,
    /// The sum over all rows, divided by the root of their number.
    MeanSqrt,
}

impl Pooling {
    /// All of them, with the names that users write.
    pub const NAMES: &[(&str, Pooling)] = &[
        ("mean", Pooling::Mean),
        ("last", Pooling::Last),
        ("cls", Pooling::First),
        ("max", Pooling::Max),
        ("weightedmean", Pooling::WeightedMean),
        ("mean_sqrt_len_tokens", Pooling::MeanSqrt),
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        Pooling::NAMES.iter().find(|(_, pooling)| *pooling == self).map_or("", |(name, _)| *name)
    }
}

/// Nothing that a file says may make us allocate or loop beyond these (a largest known model times ten).
const MAX_LAYERS: usize = 1024;
const MAX_WIDTH: usize = 1 << 20;
const MAX_VOCAB: usize = 1 << 23;
const MAX_CONTEXT: usize = 1 << 27;

impl Config {
    /// Refuses numbers that cannot be a model, naming the field as `config.json` and as GGUF has it; every
    /// constructor ends here.
    pub fn validate(self) -> Result<Self> {
        let sizes = [
            ("hidden size (hidden_size, embedding_length)", self.hidden, MAX_WIDTH),
            ("vocabulary size (vocab_size, rows of token_embd.weight)", self.vocab, MAX_VOCAB),
            ("context length (max_position_embeddings, context_length)", self.context, MAX_CONTEXT),
            ("context length with RoPE scaling (rope_scaling, factor)", self.longest, MAX_CONTEXT),
            ("number of layers (num_hidden_layers, block_count)", self.layers.len(), MAX_LAYERS),
        ];
        sizes.into_iter().try_for_each(|(name, value, max)| within(name, value, max))?;
        let numbers = [
            (
                "norm epsilon (rms_norm_eps, layer_norm_eps, layer_norm_rms_epsilon, layer_norm_epsilon)",
                Some(self.norm.eps),
            ),
            ("logit soft-cap (final_logit_softcapping)", self.logit_cap.map(f64::from)),
            ("embedding scale (embedding_multiplier, embedding_scale)", self.embed_scale.map(f64::from)),
            ("logit scale (logit_scale, logits_scaling)", Some(self.logit_scale.into())),
        ];
        let stated = numbers.into_iter().filter_map(|(name, value)| Some((name, value?)));
        stated.into_iter().try_for_each(|(name, value)| positive(name, value))?;
        self.layers.iter().try_for_each(|layer| layer.validate(&self.ropes))?;
        for (number, layer) in self.layers.iter().enumerate() {
            layer.attention().map_or(Ok(()), |attention| attention.validate_shared(number, &self.layers))?;
        }
        Ok(self)
    }

    /// Attention in the first layer that has it; others may have other heads (Gemma 4).
    pub fn attention(&self) -> Option<&AttentionConfig> {
        self.layers.iter().find_map(LayerConfig::attention)
    }

    /// The first dense feed-forward; others may be wider (Gemma 4 E2B).
    pub fn dense(&self) -> Option<&DenseConfig> {
        self.layers.iter().find_map(|layer| layer.ffn.as_ref()?.dense())
    }

    /// The first mixture of experts; the others are alike in every family so far.
    pub fn experts(&self) -> Option<&ExpertsConfig> {
        self.layers.iter().find_map(|layer| layer.ffn.as_ref()?.experts())
    }

    /// Whether the outputs of mixers and feed-forwards pass a norm before they join the residual stream: some
    /// names of tensors depend on it.
    pub fn post_norms(&self) -> bool {
        self.layers.iter().any(|layer| layer.norms.after_mixer)
    }
}
