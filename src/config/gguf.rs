//! GGUF metadata -> [`Config`]. Key names: ggml's `docs/gguf.md`; what a key's absence means, and what
//! llama.cpp writes into no key at all (the pattern of windowed layers, Gemma 3's local base), follows
//! llama.cpp.

mod by_layer;
mod experts;
mod latent;
mod layers;
mod recurrent;
mod rope;
pub mod write;

use super::family::{Family, Gating, Gguf, Multiplier};
use super::{
    AttentionConfig, Block, Config, DenseConfig, GateScope, Norm, NormKind, OutputGate, Presence, QueryScale,
};
use crate::error::{Error, Result};
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
        let draft_layers = self.usize("nextn_predict_layers")?.unwrap_or(0);
        let blocks = self.require("block_count")?;
        let Some(layers) = blocks.checked_sub(draft_layers) else {
            let key = self.key("nextn_predict_layers");
            return Err(Error::model_file(format!(
                "{key} is {draft_layers}, of {blocks} layers (block_count)"
            )));
        };
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
            post_norm: self.post_norm()?,
            final_norm: self.norm()?,
            embed_norm: family.embed_norm,
            block: self.block(),
            logit_cap: self.cap("final_logit_softcapping", family.logit_cap, a.caps.1)?,
            embed_scale: match family.scaled_embedding {
                true => Some((hidden as f32).sqrt()),
                false => self.multiplier(family.multipliers.embedding)?,
            },
            logit_scale: self.multiplier(family.multipliers.logits)?.unwrap_or(1.0),
            layers: self.with_latents(self.by_layer(self.layers(
                layers,
                ropes.len() > 1,
                causal,
                attention,
            )?)?)?,
            draft_layers,
            weight_scales: Vec::new(),
            ropes,
            tied: !a.own_head,
            head_bias: family.tensors.head_bias.in_gguf(),
            wrapper: None,
            causal,
            interleaved_qk: a.interleaved_qk,
            interleaved_in_transformers: family.rope.interleaved,
            experts_alternate_in_transformers: family.experts_alternate(),
            names: &[],
        }
        .validate()
    }

    /// Attention as all layers have it that have one, but for window and rotation.
    fn attention(&self, hidden: usize, layers: usize) -> Result<AttentionConfig> {
        let (family, t) = (self.family, &self.family.tensors);
        let heads = self.heads(layers)?.into_iter().next().unwrap_or_default();
        if heads == 0 {
            let key = self.key("attention.head_count");
            return Err(Error::model_file(format!("{key} is 0; it must be at least 1")));
        }
        let head_dim = self.usize("attention.key_length")?.unwrap_or(hidden / heads);
        if let Some(value) = self.usize("attention.value_length")?
            && value != head_dim
            && family.latent.is_none()
        {
            return Err(Error::unsupported(format!(
                "keys of {head_dim} and values of {value} dimensions a head (attention.key_length, attention.value_length) are not supported"
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
            qk_norm: if t.plain_qk_norm { Presence::IfStored } else { t.qk_norm.in_gguf() },
            qk_norm_scope: t.qk_norm_scope,
            plain_qk_norm: t.plain_qk_norm,
            qk_norm_after_rope: t.qk_norm_after_rope,
            query_scale: self.query_scale()?,
            qkv_bias: t.qkv_bias.bias_in_gguf(),
            o_bias: t.o_bias.bias_in_gguf(),
            fused: Presence::IfStored,
            value_projection: Presence::Always,
            value_norm: false,
            shared_kv: None,
            sinks: if t.sinks { Presence::Always } else { Presence::Never },
            gate: self.output_gate(heads)?,
        })
    }

    /// Query heads of each layer.
    pub(super) fn heads(&self, layers: usize) -> Result<Vec<usize>> {
        let name = "attention.head_count";
        let key = self.key(name);
        match self.metadata.get(&key) {
            Some(Value::Array(_)) if self.family.heads_by_layer.is_some() => {}
            _ => return Ok(vec![self.require(name)?; layers]),
        }
        let list = self.metadata.u64s(&key)?.unwrap_or_default();
        if list.len() != layers {
            return Err(Error::model_file(format!(
                "{key} has {} entries for {layers} layers (block_count)",
                list.len()
            )));
        }
        Ok(list.iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).collect())
    }

    /// Key heads of each layer, if they are stated. A layer of LFM2 with none is a short convolution;
    /// elsewhere all have as many.
    fn kv_heads(&self, layers: usize) -> Result<Option<Vec<usize>>> {
        let name = "attention.head_count_kv";
        if self.family.by_layer.is_some()
            && let Some(list) = self.numbers(name, layers)?
        {
            return Ok(Some(list));
        }
        if self.family.short_conv.is_none() && self.family.recurrent.is_none() {
            return Ok(self.usize(name)?.map(|n| vec![n; layers]));
        }
        self.of_layers(name, layers)
    }

    /// A number for each layer, or the same for all; those that are not 0 must be alike.
    fn of_layers(&self, name: &str, layers: usize) -> Result<Option<Vec<usize>>> {
        let key = self.key(name);
        let mut list = match self.metadata.get(&key) {
            Some(Value::Array(_)) => self.metadata.u64s(&key)?.unwrap_or_default().to_vec(),
            _ => return Ok(self.usize(name)?.map(|n| vec![n; layers])),
        };
        // Layers of a draft head stand behind the others.
        let blocks = layers + self.usize("nextn_predict_layers")?.unwrap_or(0);
        if list.len() != blocks {
            return Err(Error::model_file(format!(
                "{key} has {} entries for {blocks} layers (block_count)",
                list.len()
            )));
        }
        list.truncate(layers);
        let mut stated = list.iter().filter(|n| **n > 0);
        let first = stated.next();
        if stated.any(|n| Some(n) != first) {
            return Err(self.differs(&key));
        }
        Ok(Some(list.iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).collect()))
    }

    fn dense(&self) -> Result<DenseConfig> {
        let t = &self.family.tensors;
        Ok(DenseConfig {
            intermediate: self.dense_width()?,
            activation: self.family.activation,
            stored_xielu: false,
            gate: t.gate,
            bias: t.mlp_bias.bias_in_gguf(),
            fused: Presence::IfStored,
        })
    }

    /// The width of the feed-forward; where layers may differ, that of the first.
    pub(super) fn width(&self) -> Result<usize> {
        let key = self.key("feed_forward_length");
        if self.family.by_layer.is_some()
            && let Some(Value::Array(_)) = self.metadata.get(&key)
        {
            let first = self.metadata.u64s(&key)?.and_then(|list| list.first().copied());
            return Ok(first.and_then(|first| usize::try_from(first).ok()).unwrap_or(0));
        }
        self.require("feed_forward_length")
    }

    /// The gate before the output projection, which the tensor tells the scope of.
    fn output_gate(&self, heads: usize) -> Result<Option<OutputGate>> {
        let gate = match self.family.gating {
            Gating::Never => return Ok(None),
            Gating::Always(gate) | Gating::Switched(_, gate) | Gating::Scoped(_, gate) => gate,
        };
        let rows = self.weights.shape("blk.0.attn_gate.weight").and_then(|shape| shape.first());
        let scope = if rows.is_some_and(|rows| *rows != heads) { GateScope::Element } else { gate.scope };
        Ok(Some(OutputGate { scope, ..gate }))
    }

    /// A soft-cap, if the family has it; elsewhere llama.cpp does not read the key.
    fn cap(&self, key: &str, family: Option<Option<f64>>, default: Option<f32>) -> Result<Option<f32>> {
        match family {
            Some(_) => Ok(self.f32(key)?.or(default)),
            None => Ok(None),
        }
    }

    /// A number that something is multiplied by; llama.cpp takes 0 for none.
    pub(super) fn multiplier(&self, multiplier: Option<Multiplier>) -> Result<Option<f32>> {
        let Some(Multiplier { gguf, divides, .. }) = multiplier.filter(|it| !it.gguf.is_empty()) else {
            return Ok(None);
        };
        let value = self.f32(gguf)?.filter(|value| *value != 0.0);
        Ok(value.map(|value| if divides { 1.0 / value } else { value }))
    }

    /// Where the block may be parallel, it is if there is no norm before the feed-forward.
    pub(super) fn block(&self) -> Block {
        match self.family.parallel_key {
            Some(_) if !self.weights.contains("blk.0.ffn_norm.weight") => Block::Parallel,
            _ => self.family.block,
        }
    }

    fn query_scale(&self) -> Result<Option<QueryScale>> {
        let beta = self.f32("attention.temperature_scale")?.filter(|beta| *beta != 0.0);
        let Some(beta) = beta.filter(|_| self.family.query_scale) else { return Ok(None) };
        let original = self.require("rope.scaling.original_context_length")?;
        Ok(Some(QueryScale { beta, original: original as f32 }))
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
        Ok(Norm { kind, eps, offset: 0.0, bias: kind == NormKind::Layer && self.family.norm_bias })
    }

    /// No key tells its epsilon, where it is another.
    fn post_norm(&self) -> Result<Norm> {
        let norm = self.norm()?;
        Ok(self.family.post_eps.map_or(norm, |(_, eps)| Norm { eps, ..norm }))
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
