//! GGUF metadata -> [`Config`]. Key names: ggml's `docs/gguf.md`; what a key's absence means, and what llama.cpp
//! writes into no key at all (the pattern of windowed layers, Gemma 3's local base), follows llama.cpp.

use super::family::{Family, Gguf};
use super::rope::yarn_attention;
use super::{Config, Layer, Norm, NormKind, Presence, Rope, Scaling, Tensors};
use crate::error::{Error, Result, quoted};
use crate::weights::gguf::Value;
use crate::weights::{Metadata, Weights};

/// Reads the configuration of a GGUF model.
pub fn parse(metadata: &Metadata, weights: &Weights) -> Result<Config> {
    let name = metadata
        .str("general.architecture")?
        .ok_or_else(|| Error::model_file("the metadata key \"general.architecture\" is missing"))?;
    let (family, architecture) = Family::of_architecture(name)?;
    Reader { family, architecture, metadata, weights }.config()
}

struct Reader<'a> {
    family: &'static Family,
    architecture: &'static Gguf,
    metadata: &'a Metadata,
    weights: &'a Weights,
}

impl Reader<'_> {
    fn config(&self) -> Result<Config> {
        let (family, a) = (self.family, self.architecture);
        let hidden = self.require("embedding_length")?;
        let heads = self.require("attention.head_count")?;
        let layers = self.require("block_count")?;
        let context = self.require("context_length")?;
        if heads == 0 || layers > super::MAX_LAYERS {
            return Err(Error::model_file("head_count must be above 0 and block_count at most 1024"));
        }
        if let Some(experts) = self.usize("expert_count")?.filter(|n| *n > 0) {
            let key = self.key("expert_count");
            return Err(Error::unsupported(format!(
                "{key} is {experts}: mixtures of experts are not supported yet"
            )));
        }
        let head_dim = self.usize("attention.key_length")?.unwrap_or(hidden / heads);
        if let Some(value) = self.usize("attention.value_length")?
            && value != head_dim
        {
            return Err(Error::unsupported(format!(
                "keys of {head_dim} and values of {value} dimensions a head are not supported"
            )));
        }
        let causal = self.metadata.bool(&self.key("attention.causal"))?.unwrap_or(a.causal);
        let ropes = self.ropes(head_dim, context)?;
        let (attention_cap, logit_cap) = a.caps;
        Config {
            family: a.architecture.to_string(),
            hidden,
            intermediate: self.require("feed_forward_length")?,
            vocab: self.vocab()?,
            heads,
            kv_heads: self.usize("attention.head_count_kv")?.unwrap_or(heads),
            head_dim,
            context,
            longest: ropes[0].reach(context),
            norm: self.norm()?,
            activation: family.activation,
            block: family.block,
            attention_scale: self.scale(hidden, heads, head_dim, layers)?,
            attention_cap: self.cap("attn_logit_softcapping", family.attention_cap, attention_cap)?,
            logit_cap: self.cap("final_logit_softcapping", family.logit_cap, logit_cap)?,
            embed_scale: family.scaled_embedding.then(|| (hidden as f32).sqrt()),
            layers: self.layers(layers, ropes.len() > 1, causal)?,
            ropes,
            tied: !a.own_head,
            tensors: self.tensors(),
            wrapper: None,
            causal,
            interleaved_qk: a.interleaved_qk,
        }
        .validate()
    }

    fn tensors(&self) -> Tensors {
        let t = &self.family.tensors;
        Tensors {
            qkv_bias: t.qkv_bias.bias_in_gguf(),
            o_bias: t.o_bias.bias_in_gguf(),
            mlp_bias: t.mlp_bias.bias_in_gguf(),
            head_bias: t.head_bias.in_gguf(),
            qk_norm: t.qk_norm.in_gguf(),
            gate: t.gate,
            post_norms: t.post_norms,
            fused: Presence::IfStored,
        }
    }

    /// A soft-cap, if the family has it; elsewhere llama.cpp does not read the key.
    fn cap(&self, key: &str, family: Option<Option<f64>>, default: Option<f32>) -> Result<Option<f32>> {
        match family {
            Some(_) => Ok(self.f32(key)?.or(default)),
            None => Ok(None),
        }
    }

    fn vocab(&self) -> Result<usize> {
        match self.weights.shape("token_embd.weight") {
            Some([rows, _]) => Ok(*rows),
            _ => Err(Error::model_file("the tensor token_embd.weight is missing or not a matrix")),
        }
    }

    fn norm(&self) -> Result<Norm> {
        let kind = self.family.norm;
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

    fn layers(&self, layers: usize, local_rope: bool, causal: bool) -> Result<Vec<Layer>> {
        let window = self.usize("attention.sliding_window")?.filter(|w| *w > 0);
        let sliding = self.sliding(layers)?;
        if !causal && self.architecture.causal && window.is_some() && sliding.contains(&true) {
            return Err(Error::unsupported(format!(
                "{} beside a sliding window is not supported: how far it reaches forward is not said",
                self.key("attention.causal")
            )));
        }
        // An architecture that looks both ways has half of it on each side, the position itself not counted (llama.cpp's
        // symmetric window).
        let window = if causal { window } else { window.map(|window| window / 2 + 1) };
        let interval = self.family.no_rope_interval;
        let bare = |i: usize| interval.is_some_and(|n| (i + 1).is_multiple_of(n));
        let layer = |i: usize| {
            let window = window.filter(|_| sliding[i]);
            Layer { window, rope: (!bare(i)).then_some(usize::from(window.is_some() && local_rope)) }
        };
        Ok((0..layers).map(layer).collect())
    }

    /// Which layers have the window, if there is one: `attention.sliding_window_pattern` has a flag a layer, or a number
    /// n: each n-th layer is full.
    fn sliding(&self, layers: usize) -> Result<Vec<bool>> {
        let key = self.key("attention.sliding_window_pattern");
        let period = match self.metadata.get(&key) {
            Some(Value::Array(_)) => return self.window_flags(&key, layers),
            Some(_) => self.metadata.usize(&key)?,
            None => self.architecture.window_period,
        };
        match period {
            Some(0) => Err(Error::model_file(format!("{key} is 0; it must be at least 1"))),
            Some(n) => Ok((0..layers).map(|i| (i + 1) % n != 0).collect()),
            None => Ok(vec![true; layers]),
        }
    }

    fn window_flags(&self, key: &str, layers: usize) -> Result<Vec<bool>> {
        match self.metadata.bools(key)? {
            Some(flags) if flags.len() == layers => Ok(flags.to_vec()),
            flags => Err(Error::model_file(format!(
                "{key} has {} entries for {layers} layers (block_count)",
                flags.map_or(0, <[bool]>::len)
            ))),
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
        format!("{}.{key}", self.architecture.architecture)
    }

    fn missing(&self, key: &str) -> Error {
        Error::model_file(format!("the metadata key {:?} is missing", self.key(key)))
    }

    /// A number; where a file gives one a layer, they must all be the same.
    fn usize(&self, key: &str) -> Result<Option<usize>> {
        let key = self.key(key);
        let Some(Value::Array(_)) = self.metadata.get(&key) else {
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
