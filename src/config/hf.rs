//! `config.json` as the Hugging Face hub has it -> [`Config`], as the family's class in transformers 5.24
//! reads it.
//!
//! What an absent key means, and which keys are read at all, stands in [`family`](super::family). Two
//! spellings of RoPE are in the wild: `rope_theta` with `rope_scaling` (and Gemma 3's
//! `rope_local_base_freq`), and transformers 5's `rope_parameters`, one object or one a layer type. A file
//! may have both: people add `rope_scaling` to a new file as a model card advises. Then `rope_scaling` counts
//! whole (in Gemma 3 for the layers without a window).

mod by_layer;
mod experts;
mod latent;
mod layers;
mod recurrent;
mod rope;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use super::family::{Bidirectional, Family, Gating, Has, Multiplier, Text, Wrapper};
use super::fields::{Fields, missing, object};
use super::json::shown;
use super::{
    Activation, AttentionConfig, Block, Config, DenseConfig, GateScope, MAX_LAYERS, Norm, NormKind,
    OutputGate, Presence,
};
use crate::error::{Context, Error, Result, quoted};

pub(super) use self::latent::EPS as LATENT_EPS;

type Object = Map<String, Value>;

/// Reads the text of a `config.json`.
///
/// # Errors
/// `UnsupportedModel` for a family, or a key of its class, that is not run; `ModelFile` for what is missing,
/// has the wrong type or cannot be. Each names the key.
pub fn parse(text: &str) -> Result<Config> {
    parse_object(&object(text)?)
}

/// As [`parse`], for a file that is read already.
pub fn parse_object(root: &Object) -> Result<Config> {
    let fields = Fields(root);
    let name = fields.str("model_type")?.ok_or_else(|| missing("model_type"))?;
    match Wrapper::of_model_type(name) {
        Some(wrapper) => unwrapped(wrapper, root),
        None => build(Family::of_model_type(name)?, root, None),
    }
}

/// The text model of a wrapper.
fn unwrapped(wrapper: &'static Wrapper, root: &Object) -> Result<Config> {
    let outer = Fields(root);
    let inner = match outer.object("text_config")? {
        Some(inner) => inner,
        None if wrapper.flat => root,
        None => return Err(missing("text_config")),
    };
    let family = match wrapper.text {
        Text::Fixed(name) => Family::of_model_type(name)?,
        Text::Own(usual) => {
            let name = Fields(inner).str("model_type").context("text_config")?.unwrap_or(usual);
            Family::of_model_type(name).context("text_config")?
        }
    };
    let inner_tied = wrapper.inner_tied && Fields(inner).bool("tie_word_embeddings")? == Some(true);
    let tied = outer.bool("tie_word_embeddings")?.unwrap_or(wrapper.tied) || inner_tied;
    build(family, inner, Some((wrapper, tied))).context("text_config")
}

fn build(
    family: &'static Family,
    object: &Object,
    wrapper: Option<(&'static Wrapper, bool)>,
) -> Result<Config> {
    let renamed = renamed(family.aliases, object);
    Reader { family, f: Fields(renamed.as_ref().unwrap_or(object)) }.config(wrapper)
}

/// The object with the values of aliases under the keys that they are names of; `None` if it has none.
fn renamed(aliases: &[(&str, &str)], object: &Object) -> Option<Object> {
    let mut renamed = None;
    for (alias, key) in aliases {
        if let Some(value) = object.get(*alias) {
            renamed.get_or_insert_with(|| object.clone()).insert((*key).to_string(), value.clone());
        }
    }
    renamed
}

struct Reader<'a> {
    family: &'static Family,
    f: Fields<'a>,
}

impl Reader<'_> {
    fn config(&self, wrapper: Option<(&'static Wrapper, bool)>) -> Result<Config> {
        let family = self.family;
        self.refuse_what_no_decoder_here_does()?;
        let sizes = &family.sizes;
        let hidden = self.size("hidden_size", sizes.hidden)?;
        let n_layers = self.layer_count()?;
        let context = self.size("max_position_embeddings", sizes.context)?;
        if n_layers > MAX_LAYERS {
            return Err(Error::model_file(format!("num_hidden_layers must be at most {MAX_LAYERS}")));
        }
        let attention = self.attention(hidden)?;
        let head_dims = self.head_dims(&attention, n_layers)?;
        let ropes = self.ropes(head_dims, context)?;
        if family.latent.is_some() && ropes[0].dims != head_dims[0] {
            return Err(Error::unsupported(format!(
                "partial_rotary_factor lets {} of {} dimensions turn (qk_rope_head_dim), which is not supported in a {}",
                ropes[0].dims,
                head_dims[0],
                family.name()
            )));
        }
        let tied = match wrapper {
            Some((_, tied)) => tied,
            None => self.tied()?,
        };
        Config {
            family: family.name().to_string(),
            hidden,
            vocab: self.size("vocab_size", sizes.vocab)?,
            context,
            longest: ropes[0].reach(context),
            norm: self.norm()?,
            post_norm: self.post_norm()?,
            final_norm: self.final_norm()?,
            embed_norm: family.embed_norm,
            block: self.block()?,
            logit_cap: self.cap("final_logit_softcapping", family.logit_cap)?,
            embed_scale: match family.scaled_embedding {
                true => Some((hidden as f32).sqrt()),
                false => self.multiplier(family.multipliers.embedding)?,
            },
            logit_scale: self.multiplier(family.multipliers.logits)?.unwrap_or(1.0),
            layers: self.with_latents(
                self.by_layer(&attention, self.layers(n_layers, ropes.len() > 1, attention)?)?,
            )?,
            draft_layers: 0,
            weight_scales: self.weight_scales()?,
            ropes,
            tied,
            head_bias: self.has(family.tensors.head_bias)?,
            wrapper: wrapper.map(|(wrapper, _)| wrapper.model_type),
            causal: self.causal()?,
            interleaved_qk: family.rope.interleaved,
            interleaved_in_transformers: family.rope.interleaved,
            experts_alternate_in_transformers: family.experts_alternate(),
            names: family.names,
        }
        .validate()
    }

    /// A size that the class has as a plain integer: absent means the class's own, `null` is an error.
    fn size(&self, key: &str, default: usize) -> Result<usize> {
        match self.f.usize(key)? {
            Some(value) => Ok(value),
            None if self.f.states(key) => {
                Err(Error::model_file(format!("the field {key:?} must be a whole number, not null")))
            }
            None => Ok(default),
        }
    }

    /// A value where `null` says "none" and an absent key means the class's default.
    fn stated_or<T>(&self, key: &str, value: Option<T>, default: Option<T>) -> Option<T> {
        if self.f.states(key) { value } else { default }
    }

    /// Keys that change what any class of transformers computes, in ways that are not run here.
    fn refuse_what_no_decoder_here_does(&self) -> Result<()> {
        self.refuse_own_layers()?;
        let stated = |key: &&&str| {
            self.f.0.get(**key).is_some_and(|value| !matches!(value, Value::Null | Value::Bool(false)))
        };
        if let Some(key) = self.family.refused.iter().find(stated) {
            return Err(Error::unsupported(format!("{key} in a {} is not supported", self.family.name())));
        }
        for &(key, number) in self.family.fixed {
            if let Some(stated) = self.f.f64(key)?.filter(|stated| *stated != number) {
                return Err(Error::unsupported(format!(
                    "{key} {stated} in a {} is not supported; it is {number} in every published one",
                    self.family.name()
                )));
            }
        }
        Ok(())
    }

    /// `is_causal` is read by the masks of all classes, `use_bidirectional_attention` by Gemma's.
    fn causal(&self) -> Result<bool> {
        let causal = self.f.bool("is_causal")?.unwrap_or(true);
        let key = "use_bidirectional_attention";
        match (self.family.bidirectional, self.f.0.get(key)) {
            (Bidirectional::NotRead, _) | (_, None | Some(Value::Null | Value::Bool(false))) => Ok(causal),
            (Bidirectional::Read, Some(Value::Bool(true))) => Ok(false),
            (Bidirectional::Read, Some(_)) => self.f.bool(key).map(|_| causal),
            (Bidirectional::Pictures, Some(Value::String(of))) if of == "vision" => Ok(causal),
            (Bidirectional::Pictures, Some(value)) => Err(Error::unsupported(format!(
                "{key} {} in a {} is not supported",
                quoted(&value.to_string()),
                self.family.name()
            ))),
            (Bidirectional::Refused, Some(_)) => Err(Error::unsupported(format!(
                "{key} in a {} is not supported: transformers' own attention does not look at it there",
                self.family.name()
            ))),
        }
    }

    fn norm(&self) -> Result<Norm> {
        let family = self.family;
        Ok(Norm {
            kind: family.norm,
            eps: self.f.f64(family.eps_key)?.unwrap_or(family.eps),
            offset: family.norm_offset,
            bias: family.norm == NormKind::Layer && family.norm_bias,
        })
    }

    fn post_norm(&self) -> Result<Norm> {
        let norm = self.norm()?;
        match self.family.post_eps {
            Some((key, default)) => Ok(Norm { eps: self.f.f64(key)?.unwrap_or(default), ..norm }),
            None => Ok(norm),
        }
    }

    fn final_norm(&self) -> Result<Norm> {
        let norm = self.norm()?;
        Ok(if self.family.plain_final_norm { Norm { offset: 0.0, ..norm } } else { norm })
    }

    fn activation(&self) -> Result<Activation> {
        let Some(key) = self.family.activation_key else { return Ok(self.family.activation) };
        match self.f.str(key)? {
            None => Ok(self.family.activation),
            Some("silu" | "swish") => Ok(Activation::Silu),
            Some("gelu") if self.family.gelu_is_tanh => Ok(Activation::GeluTanh),
            Some("gelu" | "gelu_python") => Ok(Activation::Gelu),
            Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_python_tanh" | "gelu_fast" | "gelu_accurate") => {
                Ok(Activation::GeluTanh)
            }
            Some("relu") => Ok(Activation::Relu),
            Some("relu2") => Ok(Activation::Relu2),
            Some("xielu") if self.family.tensors.xielu => Ok(self.family.activation),
            Some(other) => Err(Error::unsupported(format!("{key} {} is not supported", quoted(other)))),
        }
    }

    /// A number that something is multiplied by; `None` where the class has no key for it.
    fn multiplier(&self, multiplier: Option<Multiplier>) -> Result<Option<f32>> {
        let Some(Multiplier { key, default, divides, .. }) = multiplier else { return Ok(None) };
        let value = self.f.f64(key)?.unwrap_or(default);
        Ok(Some(if divides { 1.0 / value } else { value } as f32))
    }

    fn block(&self) -> Result<Block> {
        match self.family.parallel_key.map(|key| self.f.bool(key)).transpose()?.flatten() {
            Some(true) => Ok(Block::Parallel),
            _ => Ok(self.family.block),
        }
    }

    fn attention_scale(&self, head_dim: usize) -> Result<f32> {
        if let Some(scale) = self.multiplier(self.family.multipliers.attention)? {
            return Ok(scale);
        }
        let scalar = match self.family.scalar {
            Some(default) => self.f.f64("query_pre_attn_scalar")?.unwrap_or(default),
            None => head_dim as f64,
        };
        let queries = self.multiplier(self.family.multipliers.queries)?.unwrap_or(1.0);
        Ok((f64::from(queries) / scalar.sqrt()) as f32)
    }

    /// A soft-cap; `default` is `None` where the class does not read the key.
    fn cap(&self, key: &str, default: Option<Option<f64>>) -> Result<Option<f32>> {
        let Some(default) = default else { return Ok(None) };
        Ok(self.stated_or(key, self.f.f64(key)?, default).map(|cap| cap as f32))
    }

    fn has(&self, has: Has) -> Result<Presence> {
        let stored = match has {
            Has::Never => false,
            Has::Always => true,
            Has::Key(key, default) => self.f.bool(key)?.unwrap_or(default),
        };
        Ok(if stored { Presence::Always } else { Presence::Never })
    }

    fn tied(&self) -> Result<bool> {
        Ok(!self.family.own_head && self.f.bool("tie_word_embeddings")?.unwrap_or(self.family.tied))
    }

    /// Attention as all layers have it that have one, but for window and rotation.
    fn attention(&self, hidden: usize) -> Result<AttentionConfig> {
        let (family, f) = (self.family, &self.f);
        let (sizes, t) = (&family.sizes, &family.tensors);
        let heads = self.size("num_attention_heads", sizes.heads)?;
        let kv_heads = self.stated_or("num_key_value_heads", f.usize("num_key_value_heads")?, sizes.kv_heads);
        let head_dim = self.stated_or("head_dim", f.usize("head_dim")?, sizes.head_dim);
        let head_dim = match head_dim.or_else(|| hidden.checked_div(heads)) {
            Some(head_dim) => head_dim,
            None => return Err(Error::model_file("num_attention_heads is 0; it must be at least 1")),
        };
        Ok(AttentionConfig {
            heads,
            kv_heads: kv_heads.unwrap_or(heads),
            head_dim,
            scale: self.attention_scale(head_dim)?,
            soft_cap: self.cap("attn_logit_softcapping", family.attention_cap)?,
            window: None,
            rope: None,
            qk_norm: self.has(t.qk_norm)?,
            qk_norm_scope: t.qk_norm_scope,
            plain_qk_norm: t.plain_qk_norm,
            qk_norm_after_rope: t.qk_norm_after_rope,
            query_scale: self.query_scale()?,
            qkv_bias: self.has(t.qkv_bias)?,
            o_bias: self.has(t.o_bias)?,
            fused: fused(t.fused_qkv),
            value_projection: Presence::Always,
            value_norm: false,
            shared_kv: None,
            sinks: if t.sinks { Presence::Always } else { Presence::Never },
            gate: self.output_gate()?,
        })
    }

    /// The gate between attention and its output projection.
    fn output_gate(&self) -> Result<Option<OutputGate>> {
        let element = |gate| Some(OutputGate { scope: GateScope::Element, ..gate });
        match self.family.gating {
            Gating::Never => Ok(None),
            Gating::Always(gate) => Ok(Some(gate)),
            Gating::Switched(key, gate) => Ok(self.f.bool(key)?.unwrap_or(true).then_some(gate)),
            Gating::Scoped(key, gate) => match self.f.0.get(key) {
                None | Some(Value::Bool(true)) => Ok(Some(gate)),
                // To the class all that is neither of those above is a gate an element.
                Some(Value::Bool(false)) => Ok(element(gate)),
                Some(Value::String(scope)) if scope == "per-head" => Ok(Some(gate)),
                Some(Value::String(scope)) if scope == "per-element" => Ok(element(gate)),
                Some(other) => Err(Error::unsupported(format!(
                    "{key} is {}, which is not supported: it must be true or false, \"per-head\" or \"per-element\"",
                    shown(other)
                ))),
            },
        }
    }

    fn dense(&self) -> Result<DenseConfig> {
        let (family, t) = (self.family, &self.family.tensors);
        let stated = self.size(family.intermediate_key, family.sizes.intermediate)?;
        Ok(DenseConfig {
            intermediate: match family.short_conv.as_ref().and_then(|conv| conv.multiple_of) {
                Some(multiple_of) => self.adjusted_width(stated, multiple_of)?,
                None => stated,
            },
            activation: self.activation()?,
            stored_xielu: matches!(self.activation()?, Activation::Xielu(_)),
            gate: t.gate,
            bias: self.has(t.mlp_bias)?,
            fused: fused(t.fused_gate_up),
        })
    }

    /// The width that LFM2's class makes of its `intermediate_size`.
    fn adjusted_width(&self, width: usize, multiple_of: usize) -> Result<usize> {
        if !self.f.bool("block_auto_adjust_ff_dim")?.unwrap_or(true) {
            return Ok(width);
        }
        let width = (width as f64 * 2.0 / 3.0) as usize;
        let factor = self.f.f64("block_ffn_dim_multiplier")?;
        let Some(factor) = self.stated_or("block_ffn_dim_multiplier", factor, Some(1.0)) else {
            return Ok(width);
        };
        let multiple = self.size("block_multiple_of", multiple_of)?;
        let rounded = ((factor * width as f64) as usize).checked_next_multiple_of(multiple);
        rounded.ok_or_else(|| {
            Error::model_file(format!(
                "block_multiple_of {multiple} and block_ffn_dim_multiplier {factor} give no width of the MLP"
            ))
        })
    }
}

fn fused(fused: bool) -> Presence {
    if fused { Presence::Always } else { Presence::Never }
}
