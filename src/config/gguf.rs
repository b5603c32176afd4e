//! GGUF metadata -> [`Config`]. Key names: ggml's `docs/gguf.md`; what a key's absence means, and what llama.cpp
//! writes into no key at all (the pattern of windowed layers, Gemma 3's local base), follows llama.cpp.

use super::rope::yarn_attention;
use super::{Activation, Block, Config, Layer, Norm, NormKind, Rope, Scaling, windowed};
use crate::error::{Error, Result, quoted};
use crate::weights::{Metadata, Weights};

/// What an architecture does not write into its metadata.
struct Architecture {
    name: &'static str,
    norm: NormKind,
    block: Block,
    activation: Activation,
    scaled_embedding: bool,
    /// Rows of q and k pair neighbours.
    interleaved_qk: bool,
    /// Which layers have the window.
    window: Window,
    /// Base of the layers with a window, if it is their own.
    local_theta: Option<f32>,
    /// Each n-th layer has no position encoding.
    no_rope_step: Option<usize>,
    attention_cap: Option<f32>,
    logit_cap: Option<f32>,
    /// This many layers: the model whose scores are scaled by `hidden / heads`, not by the head size.
    wide_scale_layers: Option<usize>,
}

#[derive(Clone, Copy)]
enum Window {
    All,
    /// All but each n-th.
    AllBut(usize),
}

const LLAMA: Architecture = Architecture {
    name: "llama",
    norm: NormKind::Rms,
    block: Block::Sequential,
    activation: Activation::Silu,
    scaled_embedding: false,
    interleaved_qk: true,
    window: Window::All,
    local_theta: None,
    no_rope_step: None,
    attention_cap: None,
    logit_cap: None,
    wide_scale_layers: None,
};

const QWEN2: Architecture = Architecture { name: "qwen2", interleaved_qk: false, ..LLAMA };

const GEMMA: Architecture =
    Architecture { name: "gemma", activation: Activation::GeluTanh, scaled_embedding: true, ..QWEN2 };

const ARCHITECTURES: &[Architecture] = &[
    LLAMA,
    Architecture { name: "smollm3", no_rope_step: Some(4), ..LLAMA },
    QWEN2,
    Architecture { name: "qwen3", ..QWEN2 },
    Architecture {
        name: "phi2",
        norm: NormKind::Layer,
        block: Block::Parallel,
        activation: Activation::GeluTanh,
        ..QWEN2
    },
    Architecture { name: "phi3", ..QWEN2 },
    GEMMA,
    Architecture {
        name: "gemma2",
        window: Window::AllBut(2),
        attention_cap: Some(50.0),
        logit_cap: Some(30.0),
        wide_scale_layers: Some(46),
        ..GEMMA
    },
    Architecture {
        name: "gemma3",
        window: Window::AllBut(6),
        local_theta: Some(10_000.0),
        wide_scale_layers: Some(62),
        ..GEMMA
    },
    // EmbeddingGemma: Gemma 3's layers, bidirectional.
    Architecture { name: "gemma-embedding", window: Window::AllBut(6), local_theta: Some(10_000.0), ..GEMMA },
];

/// Reads the configuration of a GGUF model.
pub fn parse(metadata: &Metadata, weights: &Weights) -> Result<Config> {
    let name = metadata
        .str("general.architecture")?
        .ok_or_else(|| Error::model_file("the metadata key \"general.architecture\" is missing"))?;
    let architecture = ARCHITECTURES.iter().find(|a| a.name == name).ok_or_else(|| {
        let known: Vec<_> = ARCHITECTURES.iter().map(|a| a.name).collect();
        Error::unsupported(format!(
            "architecture {} is not supported; supported are {}",
            quoted(name),
            known.join(", ")
        ))
    })?;
    Reader { architecture, metadata, weights }.config()
}

struct Reader<'a> {
    architecture: &'static Architecture,
    metadata: &'a Metadata,
    weights: &'a Weights,
}

impl Reader<'_> {
    fn config(&self) -> Result<Config> {
        let a = self.architecture;
        let hidden = self.require("embedding_length")?;
        let heads = self.require("attention.head_count")?;
        let layers = self.require("block_count")?;
        let context = self.require("context_length")?;
        if heads == 0 || layers > super::MAX_LAYERS {
            return Err(Error::model_file("head_count must be above 0 and block_count at most 1024"));
        }
        let head_dim = self.usize("attention.key_length")?.unwrap_or(hidden / heads);
        if let Some(value) = self.usize("attention.value_length")?
            && value != head_dim
        {
            return Err(Error::unsupported(format!(
                "keys of {head_dim} and values of {value} dimensions a head are not supported"
            )));
        }
        Config {
            family: a.name.to_string(),
            hidden,
            intermediate: self.require("feed_forward_length")?,
            vocab: self.vocab()?,
            heads,
            kv_heads: self.usize("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            context,
            norm: self.norm()?,
            activation: a.activation,
            block: a.block,
            attention_scale: self.scale(hidden, heads, head_dim, layers)?,
            attention_cap: self.f32("attn_logit_softcapping")?.or(a.attention_cap),
            logit_cap: self.f32("final_logit_softcapping")?.or(a.logit_cap),
            embed_scale: a.scaled_embedding.then(|| (hidden as f32).sqrt()),
            ropes: self.ropes(head_dim, context)?,
            layers: self.layers(layers)?,
            tied: false,
            causal: self.causal()?,
            interleaved_qk: a.interleaved_qk,
        }
        .validate()
    }

    fn vocab(&self) -> Result<usize> {
        match self.weights.shape("token_embd.weight") {
            Some([rows, _]) => Ok(*rows),
            _ => Err(Error::model_file("the tensor token_embd.weight is missing or not a matrix")),
        }
    }

    fn norm(&self) -> Result<Norm> {
        let kind = self.architecture.norm;
        let key = match kind {
            NormKind::Rms => "attention.layer_norm_rms_epsilon",
            NormKind::Layer => "attention.layer_norm_epsilon",
        };
        let eps = self.f32(key)?.ok_or_else(|| self.missing(key))? as f64;
        Ok(Norm { kind, eps, offset: 0.0 })
    }

    fn scale(&self, hidden: usize, heads: usize, head_dim: usize, layers: usize) -> Result<f32> {
        if let Some(scale) = self.f32("attention.scale")? {
            return Ok(scale);
        }
        let width = match self.architecture.wide_scale_layers == Some(layers) {
            true => hidden / heads,
            false => head_dim,
        };
        Ok((1.0 / (width as f64).sqrt()) as f32)
    }

    fn layers(&self, layers: usize) -> Result<Vec<Layer>> {
        let a = self.architecture;
        let window = self.usize("attention.sliding_window")?.filter(|w| *w > 0);
        // The whole window, of which a half lies to each side.
        let causal = self.causal()?;
        let window = window.map(|window| if causal { window } else { window / 2 + 1 });
        let windows = match (self.window_flags()?, a.window) {
            (Some(flags), _) if flags.len() == layers => windowed(|i| flags[i], layers, window),
            (Some(flags), _) => {
                return Err(Error::model_file(format!(
                    "attention.sliding_window_pattern has {} entries for {layers} layers",
                    flags.len()
                )));
            }
            (None, Window::All) => windowed(|_| true, layers, window),
            (None, Window::AllBut(n)) => windowed(|i| (i + 1) % n != 0, layers, window),
        };
        let bare = |i: usize| a.no_rope_step.is_some_and(|n| (i + 1).is_multiple_of(n));
        let local = |window: Option<usize>| window.is_some() && a.local_theta.is_some();
        Ok((0..layers)
            .map(|i| Layer { window: windows[i], rope: (!bare(i)).then_some(usize::from(local(windows[i]))) })
            .collect())
    }

    fn causal(&self) -> Result<bool> {
        let said = self.metadata.bool(&self.key("attention.causal"))?;
        Ok(said.unwrap_or(self.architecture.name != "gemma-embedding"))
    }

    /// Newer files say layer by layer which have the window.
    fn window_flags(&self) -> Result<Option<&[bool]>> {
        let key = self.key("attention.sliding_window_pattern");
        match self.metadata.get(&key) {
            Some(crate::weights::gguf::Value::Array(_)) => self.metadata.bools(&key),
            _ => Ok(None),
        }
    }

    fn ropes(&self, head_dim: usize, context: usize) -> Result<Vec<Rope>> {
        let theta = self.f32("rope.freq_base")?.unwrap_or(10_000.0) as f64;
        let dims = self.usize("rope.dimension_count")?.unwrap_or(head_dim);
        let mut ropes = vec![Rope { theta, dims, scaling: self.scaling(context)? }];
        if let Some(local) = self.architecture.local_theta {
            let local = self.f32("rope.freq_base_swa")?.unwrap_or(local);
            ropes.push(Rope::plain(local as f64, dims));
        }
        Ok(ropes)
    }

    fn scaling(&self, context: usize) -> Result<Scaling> {
        if self.weights.contains("rope_freqs.weight") {
            return Ok(Scaling::Divisors(self.divisors("rope_freqs.weight")?));
        }
        let original = self.usize("rope.scaling.original_context_length")?.unwrap_or(context);
        let attention = self.f32("rope.scaling.attn_factor")?.unwrap_or(1.0) as f64;
        if self.weights.contains("rope_factors_long.weight") {
            return Ok(Scaling::LongRope {
                short: self.divisors("rope_factors_short.weight")?,
                long: self.divisors("rope_factors_long.weight")?,
                original,
                attention,
            });
        }
        let factor = match self.f32("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.f32("rope.scale_linear")?,
        };
        let kind = self.metadata.str(&self.key("rope.scaling.type"))?;
        match (kind, factor) {
            (None, Some(factor)) | (Some("linear"), Some(factor)) if factor != 1.0 && factor != 0.0 => {
                Ok(Scaling::Linear { factor: factor as f64 })
            }
            (None | Some("none" | "linear"), _) => Ok(Scaling::None),
            (Some("yarn"), Some(factor)) => Ok(Scaling::Yarn {
                factor: factor as f64,
                original: original as f64,
                beta_fast: self.f32("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0) as f64,
                beta_slow: self.f32("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0) as f64,
                attention: yarn_attention(factor as f64, 1.0) * attention,
                truncate: true,
            }),
            (Some("yarn"), None) => Err(self.missing("rope.scaling.factor")),
            (Some(other), _) => {
                let (key, other) = (self.key("rope.scaling.type"), quoted(other));
                Err(Error::unsupported(format!("{key} {other} is not supported")))
            }
        }
    }

    fn divisors(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.weights.get(name)?;
        if tensor.shape.len() != 1 {
            return Err(Error::model_file(format!("the tensor {name} must be a vector")));
        }
        Ok(tensor.to_f32())
    }

    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.architecture.name)
    }

    fn missing(&self, key: &str) -> Error {
        Error::model_file(format!("the metadata key {:?} is missing", self.key(key)))
    }

    /// A number; where a file gives one a layer, they must all be the same.
    fn usize(&self, key: &str) -> Result<Option<usize>> {
        let key = self.key(key);
        let Some(crate::weights::gguf::Value::Array(_)) = self.metadata.get(&key) else {
            return self.metadata.usize(&key);
        };
        let list = self.metadata.u64s(&key)?.unwrap_or_default();
        match list.first() {
            Some(first) if list.iter().all(|n| n == first) => Ok(usize::try_from(*first).ok()),
            _ => {
                Err(Error::unsupported(format!("{key} differs from layer to layer, which is not supported")))
            }
        }
    }

    fn require(&self, key: &str) -> Result<usize> {
        self.usize(key)?.ok_or_else(|| self.missing(key))
    }

    fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.metadata.f32(&self.key(key))
    }
}
