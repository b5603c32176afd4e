//! The blueprint of a decoder: plain data, read once from `config.json` ([`hf`]) or GGUF metadata ([`gguf`]).
//!
//! A family is a way to fill in a [`Config`] (the rows of `family`); the Decoder reads the Config and has never heard
//! of families. Which tensors there must be stands here too ([`Tensors`]): a file that holds more, or less, was made
//! for another model, and reading it as this one would give other numbers without a word.

mod family;
pub mod fields;
pub mod generation;
pub mod gguf;
pub mod hf;
pub mod json;
pub mod modules;
pub mod quantization;
pub mod rope;

use crate::error::{Error, Result};
pub use rope::{Rope, Scaling};

/// Everything the Decoder must know that its tensors do not tell.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    /// `model_type` or `general.architecture`, for messages and for the eyes.
    pub family: String,
    /// Width of the residual stream.
    pub hidden: usize,
    /// Width inside the MLP.
    pub intermediate: usize,
    /// Rows of the embedding.
    pub vocab: usize,
    /// Query heads.
    pub heads: usize,
    /// Key and value heads; divides `heads`.
    pub kv_heads: usize,
    /// Width of one head.
    pub head_dim: usize,
    /// Positions that the model was made for; it is loaded for as many unless the caller says otherwise.
    pub context: usize,
    /// Positions that it can be loaded for: `context`, or more where a scaling of RoPE reaches further.
    pub longest: usize,
    pub norm: Norm,
    pub activation: Activation,
    pub block: Block,
    /// What the scores are multiplied by, usually `head_dim^-0.5`.
    pub attention_scale: f32,
    /// Scores become `cap * tanh(scores / cap)` (Gemma 2).
    pub attention_cap: Option<f32>,
    /// The same for the logits.
    pub logit_cap: Option<f32>,
    /// What embeddings are multiplied by (Gemma: `sqrt(hidden)`).
    pub embed_scale: Option<f32>,
    /// The rotations in use; layers name them by index.
    pub ropes: Vec<Rope>,
    /// One entry a layer.
    pub layers: Vec<Layer>,
    /// The head is the embedding if none is stored; a stored one is the head, whatever this says. Without it there must
    /// be one.
    pub tied: bool,
    pub tensors: Tensors,
    /// The `model_type` of the model of pictures or sound that this text model was taken out of.
    pub wrapper: Option<&'static str>,
    /// A position sees only itself and those before it; `false`: every position sees all of the text, as in encoders
    /// (`use_bidirectional_attention`, `is_causal: false`, GGUF `attention.causal` false).
    pub causal: bool,
    /// q/k rows come in interleaved pairs (GGUF of the Llama family) and go back to halves at the door.
    pub interleaved_qk: bool,
}

/// Which tensors the layers have beyond the matrices that all have.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tensors {
    pub qkv_bias: Presence,
    pub o_bias: Presence,
    /// Of gate, up and down.
    pub mlp_bias: Presence,
    pub head_bias: Presence,
    /// Norms of each query and key head.
    pub qk_norm: Presence,
    /// The MLP is gated.
    pub gate: bool,
    /// Norms after attention and MLP too, before their output joins the residual stream.
    pub post_norms: bool,
    /// q, k and v in one matrix, gate and up in another.
    pub fused: Presence,
}

/// Whether a tensor is read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Presence {
    /// Nothing reads it; if it is stored, the file is refused.
    Never,
    /// It must be stored.
    Always,
    IfStored,
}

/// What may differ from layer to layer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Layer {
    /// A position sees those less than this far away, itself included: before it, and behind it as well where
    /// attention is not causal. `None`: all.
    pub window: Option<usize>,
    /// Index into [`Config::ropes`]; `None`: no position encoding in this layer (SmolLM3).
    pub rope: Option<usize>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Norm {
    pub kind: NormKind,
    pub eps: f64,
    /// Added to the stored weight: 1 for Gemma's safetensors, 0 otherwise (GGUF stores `1 + w` already).
    pub offset: f32,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NormKind {
    Rms,
    Layer,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Block {
    /// Attention, then the MLP, each on its own normed input (norms after them too where the tensors exist).
    Sequential,
    /// Both read the same normed input (Phi-1.5, Phi-2).
    Parallel,
}

/// The MLP's nonlinearity.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Activation {
    /// `x * sigmoid(x)`.
    Silu,
    /// `x * Phi(x)`, by the error function.
    Gelu,
    /// The tanh approximation of GELU (`gelu_new`, `gelu_pytorch_tanh`).
    GeluTanh,
    Relu,
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
            ("MLP size (intermediate_size, feed_forward_length)", self.intermediate, MAX_WIDTH),
            ("vocabulary size (vocab_size, rows of token_embd.weight)", self.vocab, MAX_VOCAB),
            ("number of attention heads (num_attention_heads, head_count)", self.heads, MAX_WIDTH),
            ("number of key/value heads (num_key_value_heads, head_count_kv)", self.kv_heads, MAX_WIDTH),
            ("head size (head_dim, key_length)", self.head_dim, 4096),
            ("context length (max_position_embeddings, context_length)", self.context, MAX_CONTEXT),
            ("context length with RoPE scaling (rope_scaling, factor)", self.longest, MAX_CONTEXT),
            ("number of layers (num_hidden_layers, block_count)", self.layers.len(), MAX_LAYERS),
        ];
        for (name, value, max) in sizes {
            if value == 0 || value > max {
                return Err(Error::model_file(format!("the {name} is {value}; it must be in 1..={max}")));
            }
        }
        if !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::model_file(format!(
                "{} attention heads cannot share {} key/value heads (num_key_value_heads, head_count_kv) evenly",
                self.heads, self.kv_heads
            )));
        }
        self.validate_numbers()?;
        Ok(self)
    }

    fn validate_numbers(&self) -> Result<()> {
        let numbers = [
            ("norm epsilon (rms_norm_eps, layer_norm_eps, layer_norm_rms_epsilon)", Some(self.norm.eps)),
            ("attention scale (query_pre_attn_scalar, attention.scale)", Some(self.attention_scale as f64)),
            ("attention soft-cap (attn_logit_softcapping)", self.attention_cap.map(f64::from)),
            ("logit soft-cap (final_logit_softcapping)", self.logit_cap.map(f64::from)),
            ("embedding scale", self.embed_scale.map(f64::from)),
        ];
        for (name, value) in numbers {
            if let Some(value) = value
                && !(value.is_finite() && value > 0.0)
            {
                return Err(Error::model_file(format!(
                    "the {name} is {value}; it must be positive and finite"
                )));
            }
        }
        for layer in &self.layers {
            if layer.window == Some(0) {
                return Err(Error::model_file(
                    "the sliding window (sliding_window) is 0; it must be at least 1",
                ));
            }
        }
        self.ropes.iter().try_for_each(|rope| rope.validate(self.head_dim))
    }
}
