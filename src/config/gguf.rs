//! GGUF metadata -> [`Config`]. Key names: ggml's `docs/gguf.md`; what a key's absence means, and what
//! llama.cpp writes into no key at all (the pattern of windowed layers, Gemma 3's local base), follows
//! llama.cpp.

use super::family::{Family, Gguf};
use super::rope::yarn_attention;
use super::{
    AttentionConfig, Block, Config, Denominator, DenseConfig, ExpertsConfig, FeedForwardConfig, LayerConfig,
    LayerNorms, MixerConfig, Norm, NormKind, Presence, Rope, Scaling, ShortConvConfig,
};
use crate::error::{Error, Result, quoted};
use crate::weights::gguf::Value;
use crate::weights::{Metadata, Weights};

/// Reads the configuration of a GGUF model.
pub fn parse(metadata: &Metadata, weights: &Weights) -> Result<Config> {
    let name = metadata
        .str("general.architecture")?
        .ok_or_else(|| Error::model_file("the metadata key \"general.architecture\" is missing"))?;
    let experts = metadata.usize(&format!("{name}.expert_count"))?.is_some_and(|n| n > 0);
    let (family, architecture) = Family::of_architecture(name, experts)?;
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
        let layers = self.require("block_count")?;
        let context = self.require("context_length")?;
        if layers > super::MAX_LAYERS {
            return Err(Error::model_file(format!("block_count must be at most {}", super::MAX_LAYERS)));
        }
        let causal = self.metadata.bool(&self.key("attention.causal"))?.unwrap_or(a.causal);
        let attention = self.attention(hidden, layers)?;
        let ropes = self.ropes(attention.head_dim, context)?;
        Config {
            family: a.architecture.to_string(),
            hidden,
            vocab: self.vocab()?,
            context,
            longest: ropes[0].reach(context),
            norm: self.norm()?,
            block: family.block,
            logit_cap: self.cap("final_logit_softcapping", family.logit_cap, a.caps.1)?,
            embed_scale: family.scaled_embedding.then(|| (hidden as f32).sqrt()),
            layers: self.layers(layers, ropes.len() > 1, causal, attention)?,
            ropes,
            tied: !a.own_head,
            head_bias: family.tensors.head_bias.in_gguf(),
            wrapper: None,
            causal,
            interleaved_qk: a.interleaved_qk,
        }
        .validate()
    }

    /// Attention as all layers have it that have one, but for window and rotation.
    fn attention(&self, hidden: usize, layers: usize) -> Result<AttentionConfig> {
        let (family, t) = (self.family, &self.family.tensors);
        let heads = self.require("attention.head_count")?;
        if heads == 0 {
            let key = self.key("attention.head_count");
            return Err(Error::model_file(format!("{key} is 0; it must be at least 1")));
        }
        let head_dim = self.usize("attention.key_length")?.unwrap_or(hidden / heads);
        if let Some(value) = self.usize("attention.value_length")?
            && value != head_dim
        {
            return Err(Error::unsupported(format!(
                "keys of {head_dim} and values of {value} dimensions a head are not supported"
            )));
        }
        Ok(AttentionConfig {
            heads,
            kv_heads: self.kv_heads(layers)?.into_iter().flatten().find(|n| *n > 0).unwrap_or(heads),
            head_dim,
            scale: self.scale(hidden, heads, head_dim, layers)?,
            soft_cap: self.cap("attn_logit_softcapping", family.attention_cap, self.architecture.caps.0)?,
            window: None,
            rope: None,
            qk_norm: t.qk_norm.in_gguf(),
            qk_norm_scope: t.qk_norm_scope,
            qkv_bias: t.qkv_bias.bias_in_gguf(),
            o_bias: t.o_bias.bias_in_gguf(),
            fused: Presence::IfStored,
            sinks: Presence::Never,
            gate: None,
        })
    }

    /// Key heads of each layer, if they are stated. A layer of LFM2 with none is a short convolution;
    /// elsewhere all have as many.
    fn kv_heads(&self, layers: usize) -> Result<Option<Vec<usize>>> {
        let name = "attention.head_count_kv";
        if self.family.short_conv.is_none() {
            return Ok(self.usize(name)?.map(|n| vec![n; layers]));
        }
        let key = self.key(name);
        let list = match self.metadata.get(&key) {
            Some(Value::Array(_)) => self.metadata.u64s(&key)?.unwrap_or_default().to_vec(),
            _ => return Ok(self.usize(name)?.map(|n| vec![n; layers])),
        };
        if list.len() != layers {
            return Err(Error::model_file(format!(
                "{key} has {} entries for {layers} layers (block_count)",
                list.len()
            )));
        }
        let mut stated = list.iter().filter(|n| **n > 0);
        let first = stated.next();
        if stated.any(|n| Some(n) != first) {
            return Err(self.differs(&key));
        }
        Ok(Some(list.iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).collect()))
    }

    /// The feed-forward of all layers.
    fn feed_forward(&self) -> Result<FeedForwardConfig> {
        let Some(normalize) = self.architecture.experts else {
            return Ok(FeedForwardConfig::Dense(self.dense()?));
        };
        self.refuse_other_routing(normalize)?;
        let width = match self.usize("expert_feed_forward_length")?.filter(|width| *width > 0) {
            Some(width) => width,
            None => self.require("feed_forward_length")?,
        };
        let (count, top_k) = (self.require("expert_count")?, self.require("expert_used_count")?);
        let mut experts = ExpertsConfig::plain(count, width, self.family.activation, top_k);
        experts.routing.normalize = normalize.then_some(Denominator::SUM);
        Ok(FeedForwardConfig::Experts(experts))
    }

    /// llama.cpp reads these keys for other architectures, and routes those here as it always did.
    fn refuse_other_routing(&self, normalize: bool) -> Result<()> {
        let softmax = 1;
        let other = [
            (
                "expert_weights_norm",
                self.metadata.bool(&self.key("expert_weights_norm"))?.is_some_and(|n| n != normalize),
            ),
            ("expert_weights_scale", self.f32("expert_weights_scale")?.is_some_and(|n| n != 0.0 && n != 1.0)),
            ("expert_gating_func", self.usize("expert_gating_func")?.is_some_and(|n| n != 0 && n != softmax)),
            ("expert_shared_count", self.usize("expert_shared_count")?.is_some_and(|n| n > 0)),
            ("leading_dense_block_count", self.usize("leading_dense_block_count")?.is_some_and(|n| n > 0)),
        ];
        match other.iter().find(|(_, other)| *other) {
            Some((key, _)) => Err(Error::unsupported(format!(
                "{} asks for another mixture of experts than architecture {} has",
                self.key(key),
                self.architecture.architecture
            ))),
            None => Ok(()),
        }
    }

    fn dense(&self) -> Result<DenseConfig> {
        let t = &self.family.tensors;
        Ok(DenseConfig {
            intermediate: self.require("feed_forward_length")?,
            activation: self.family.activation,
            gate: t.gate,
            bias: t.mlp_bias.bias_in_gguf(),
            fused: Presence::IfStored,
        })
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

    /// The layers; `attention` as all of them have it that have one.
    fn layers(
        &self,
        layers: usize,
        local_rope: bool,
        causal: bool,
        attention: AttentionConfig,
    ) -> Result<Vec<LayerConfig>> {
        let window = self.usize("attention.sliding_window")?.filter(|w| *w > 0);
        let sliding = self.sliding(layers)?;
        if !causal && self.architecture.causal && window.is_some() && sliding.contains(&true) {
            return Err(Error::unsupported(format!(
                "{} beside a sliding window is not supported: how far it reaches forward is not said",
                self.key("attention.causal")
            )));
        }
        // An architecture that looks both ways has half of it on each side, the position itself not counted
        // (llama.cpp's symmetric window).
        let window = if causal { window } else { window.map(|window| window / 2 + 1) };
        let interval = self.family.no_rope_interval;
        let bare = |i: usize| interval.is_some_and(|n| (i + 1).is_multiple_of(n));
        let conv = self.short_conv(layers)?;
        let ffn = self.feed_forward()?;
        let post = self.family.tensors.post_norms;
        let norms = LayerNorms {
            before_mixer: true,
            after_mixer: post,
            before_ffn: self.family.block == Block::Sequential,
            after_ffn: post,
        };
        let mixer = |i: usize| match conv[i] {
            Some(conv) => MixerConfig::ShortConv(conv),
            None => {
                let window = window.filter(|_| sliding[i]);
                let rope = (!bare(i)).then_some(usize::from(window.is_some() && local_rope));
                MixerConfig::Attention(AttentionConfig { window, rope, ..attention })
            }
        };
        let layer = |i| LayerConfig { mixer: mixer(i), ffn, norms, residual_scale: 1.0 };
        Ok((0..layers).map(layer).collect())
    }

    /// The layers that are short convolutions: those without key heads.
    fn short_conv(&self, layers: usize) -> Result<Vec<Option<ShortConvConfig>>> {
        if self.family.short_conv.is_none() {
            return Ok(vec![None; layers]);
        }
        let conv = ShortConvConfig { kernel: self.require("shortconv.l_cache")?, bias: Presence::IfStored };
        let heads = self.kv_heads(layers)?.unwrap_or_else(|| vec![1; layers]);
        Ok(heads.into_iter().map(|n| (n == 0).then_some(conv)).collect())
    }

    /// Which layers have the window, if there is one: `attention.sliding_window_pattern` has a flag a layer,
    /// or a number n: each n-th layer is full.
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
            _ => Err(self.differs(&key)),
        }
    }

    fn differs(&self, key: &str) -> Error {
        Error::unsupported(format!("{key} differs from layer to layer, which is not supported"))
    }

    fn require(&self, key: &str) -> Result<usize> {
        self.usize(key)?.ok_or_else(|| self.missing(key))
    }

    fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.metadata.f32(&self.key(key))
    }
}
