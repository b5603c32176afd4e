//! A blueprint as GGUF metadata: the keys that llama.cpp's converter writes for dense families.
//!
//! What has no key, or a default of llama.cpp's that the model does not have, would be read as another model.
//! So [`check`] holds the blueprint that is read back from what was written against the original, number by
//! number, and names the first that is another.

use super::super::rope::Scaling;
use super::super::{Config, FeedForwardConfig, LayerConfig};
use crate::config::family::Family;
use crate::error::{Error, Result, quoted};
use crate::weights::WeightTensor;
use crate::weights::write::{gguf_bool, gguf_f32, gguf_str, gguf_u32};

/// The families that are written: `model_type` and llama.cpp's architecture.
const WRITTEN: &[(&str, &str)] = &[
    ("llama", "llama"),
    ("mistral", "llama"),
    ("qwen2", "qwen2"),
    ("qwen3", "qwen3"),
    ("gemma", "gemma"),
    ("gemma2", "gemma2"),
    ("gemma3_text", "gemma3"),
    ("smollm3", "smollm3"),
    ("granite", "granite"),
    ("olmo2", "olmo2"),
    ("arcee", "arcee"),
];

/// The architecture that a model of transformers is written as, and whether its q and k are interleaved
/// there.
///
/// # Errors
/// `UnsupportedModel` for a family that is not written, by name.
pub fn architecture(config: &Config) -> Result<(&'static str, bool)> {
    let found = WRITTEN.iter().find(|(model_type, _)| *model_type == config.family);
    let (_, name) = found.filter(|_| config.wrapper.is_none()).ok_or_else(|| {
        let known: Vec<_> = WRITTEN.iter().map(|(model_type, _)| *model_type).collect();
        let what = config.wrapper.unwrap_or(&config.family);
        Error::unsupported(format!(
            "a {} model is not written as GGUF here; {} are; llama.cpp's convert_hf_to_gguf.py may know it",
            quoted(what),
            known.join(", ")
        ))
    })?;
    Ok((name, Family::of_architecture(name, false)?.1.interleaved_qk))
}

/// The keys of the model itself, encoded, and the tensors that stand for keys (divisors of frequencies).
///
/// # Errors
/// As [`architecture`]; `UnsupportedModel` for what there is no key for.
pub fn pairs(config: &Config) -> Result<(Vec<Vec<u8>>, Vec<WeightTensor>)> {
    let (name, _) = architecture(config)?;
    let writer = Writer { name, config };
    let mut pairs = vec![gguf_str("general.architecture", name), gguf_str("general.type", "model")];
    pairs.extend(writer.sizes()?);
    pairs.extend(writer.factors());
    let (ropes, tensors) = writer.ropes()?;
    pairs.extend(ropes);
    Ok((pairs, tensors))
}

struct Writer<'a> {
    name: &'static str,
    config: &'a Config,
}

impl Writer<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.name)
    }

    fn number(&self, key: &str, value: usize) -> Result<Vec<u8>> {
        let value = u32::try_from(value).map_err(|_| Error::unsupported(format!("{key} is {value}")))?;
        Ok(gguf_u32(&self.key(key), value))
    }

    fn float(&self, key: &str, value: f32) -> Vec<u8> {
        gguf_f32(&self.key(key), value)
    }

    fn sizes(&self) -> Result<Vec<Vec<u8>>> {
        let c = self.config;
        let (Some(attention), Some(dense)) = (c.attention(), c.dense()) else {
            return Err(Error::unsupported(
                "a model without attention or dense feed-forwards is not written as GGUF",
            ));
        };
        let mut pairs = vec![
            self.number("context_length", c.context)?,
            self.number("embedding_length", c.hidden)?,
            self.number("block_count", c.layers.len())?,
            self.number("feed_forward_length", dense.intermediate)?,
            self.number("attention.head_count", attention.heads)?,
            self.number("attention.head_count_kv", attention.kv_heads)?,
            self.number("attention.key_length", attention.head_dim)?,
            self.number("attention.value_length", attention.head_dim)?,
            self.number("vocab_size", c.vocab)?,
            self.float("attention.layer_norm_rms_epsilon", c.norm.eps as f32),
        ];
        if let Some(window) = c.layers.iter().find_map(|layer| layer.attention()?.window) {
            pairs.push(self.number("attention.sliding_window", window)?);
        }
        if !c.causal {
            pairs.push(gguf_bool(&self.key("attention.causal"), false));
        }
        Ok(pairs)
    }

    /// Soft-caps and multipliers.
    fn factors(&self) -> Vec<Vec<u8>> {
        let c = self.config;
        let soft_cap = c.attention().and_then(|attention| attention.soft_cap);
        let caps = [("attn_logit_softcapping", soft_cap), ("final_logit_softcapping", c.logit_cap)];
        let mut pairs: Vec<_> =
            caps.into_iter().filter_map(|(key, cap)| Some(self.float(key, cap?))).collect();
        if self.name == "granite" {
            let scale = c.attention().map_or(1.0, |attention| attention.scale);
            let residual = c.layers.first().map_or(1.0, |layer| layer.residual_scale);
            pairs.push(self.float("attention.scale", scale));
            pairs.push(self.float("embedding_scale", c.embed_scale.unwrap_or(1.0)));
            pairs.push(self.float("residual_scale", residual));
            pairs.push(self.float("logit_scale", 1.0 / c.logit_scale));
        }
        pairs
    }

    fn ropes(&self) -> Result<(Vec<Vec<u8>>, Vec<WeightTensor>)> {
        let Some(rope) = self.config.ropes.first() else { return Ok((vec![], vec![])) };
        let mut pairs = vec![
            self.number("rope.dimension_count", rope.dims)?,
            self.float("rope.freq_base", rope.theta as f32),
        ];
        if let Some(local) = self.config.ropes.get(1) {
            pairs.push(self.float("rope.freq_base_swa", local.theta as f32));
        }
        let kind = |kind: &str| gguf_str(&self.key("rope.scaling.type"), kind);
        match &rope.scaling {
            Scaling::None => {}
            Scaling::Linear { factor } => {
                pairs.extend([kind("linear"), self.float("rope.scaling.factor", *factor as f32)]);
            }
            Scaling::Yarn { factor, original, beta_fast, beta_slow, .. } => {
                pairs.extend([
                    kind("yarn"),
                    self.float("rope.scaling.factor", *factor as f32),
                    self.number("rope.scaling.original_context_length", *original as usize)?,
                    self.float("rope.scaling.yarn_beta_fast", *beta_fast as f32),
                    self.float("rope.scaling.yarn_beta_slow", *beta_slow as f32),
                ]);
            }
            Scaling::Llama3 { .. } => {
                let plain = super::super::Rope { scaling: Scaling::None, ..rope.clone() };
                let (plain, scaled) = (plain.frequencies(0).0, rope.frequencies(0).0);
                let divisors: Vec<f32> =
                    plain.iter().zip(&scaled).map(|(plain, scaled)| plain / scaled).collect();
                let tensor = WeightTensor::floats("rope_freqs.weight", vec![divisors.len()], divisors);
                return Ok((pairs, vec![tensor]));
            }
            other => {
                let other = format!("{other:?}");
                let name = other.split([' ', '(']).next().unwrap_or_default();
                return Err(Error::unsupported(format!(
                    "a rotation scaled by the rule {name} is not written as GGUF here"
                )));
            }
        }
        Ok((pairs, vec![]))
    }
}

/// Whether the blueprint that was read back is the original.
///
/// # Errors
/// `UnsupportedModel` naming the first number that is another.
pub fn check(config: &Config, read: &Config) -> Result<()> {
    let (wanted, found) = (facts(config), facts(read));
    for ((name, wanted), (_, found)) in wanted.iter().zip(&found) {
        if wanted.len() != found.len() || wanted.iter().zip(found).any(|(a, b)| apart(*a, *b)) {
            return Err(Error::unsupported(format!(
                "GGUF has no way to say what this model has ({name}: {wanted:?}; what is written would be read as \
                 {found:?})"
            )));
        }
    }
    match wanted.len() == found.len() {
        true => Ok(()),
        false => Err(Error::unsupported("GGUF has no way to say how many layers this model has")),
    }
}

/// Keys of GGUF are f32, and a quotient of these is not exact.
fn apart(a: f64, b: f64) -> bool {
    (a - b).abs() > 3e-6 * a.abs().max(b.abs())
}

/// What is computed, as numbers; which tensors there are is seen in the tensors themselves.
fn facts(c: &Config) -> Vec<(String, Vec<f64>)> {
    let optional = |value: Option<f64>| value.map_or_else(Vec::new, |value| vec![value]);
    let mut facts = vec![
        ("width".to_string(), vec![c.hidden as f64]),
        ("vocabulary".into(), vec![c.vocab as f64]),
        ("context".into(), vec![c.context as f64]),
        ("norm epsilon".into(), vec![c.norm.eps, c.post_norm.eps, c.final_norm.eps]),
        ("kind of norm".into(), vec![f64::from(u8::from(c.norm.kind == super::NormKind::Rms))]),
        ("parallel block".into(), vec![f64::from(u8::from(c.block == super::Block::Parallel))]),
        ("logit soft-cap".into(), optional(c.logit_cap.map(f64::from))),
        ("embedding scale".into(), vec![c.embed_scale.map_or(1.0, f64::from)]),
        ("embedding norm".into(), vec![f64::from(u8::from(c.embed_norm))]),
        ("logit scale".into(), vec![c.logit_scale.into()]),
        ("causal".into(), vec![f64::from(u8::from(c.causal))]),
        ("scaled weights".into(), vec![c.weight_scales.len() as f64]),
    ];
    for (i, layer) in c.layers.iter().enumerate() {
        facts.extend(
            layer_facts(c, layer).into_iter().map(|(name, value)| (format!("layer {i}, {name}"), value)),
        );
    }
    facts
}

fn layer_facts(c: &Config, layer: &LayerConfig) -> Vec<(&'static str, Vec<f64>)> {
    let mut facts = vec![("residual scale", vec![f64::from(layer.residual_scale)])];
    let n = layer.norms;
    let flags = [n.before_mixer, n.after_mixer, n.before_ffn, n.after_ffn];
    facts.push(("norms", flags.iter().map(|flag| f64::from(u8::from(*flag))).collect()));
    if let Some(a) = layer.attention() {
        let rope = a.rope.and_then(|rope| c.ropes.get(rope)).map(|rope| rope.frequencies(c.context));
        let rope = rope.map_or_else(Vec::new, |(turns, scale)| turns.into_iter().chain([scale]).collect());
        facts.extend([
            ("heads", vec![a.heads as f64, a.kv_heads as f64, a.head_dim as f64]),
            ("attention scale", vec![a.scale.into()]),
            ("attention soft-cap", a.soft_cap.map_or_else(Vec::new, |cap| vec![cap.into()])),
            ("window", a.window.map_or_else(Vec::new, |window| vec![window as f64])),
            ("rotation", rope.into_iter().map(f64::from).collect()),
            (
                "norms of queries and keys",
                vec![f64::from(u8::from(a.plain_qk_norm)), f64::from(u8::from(a.qk_norm_after_rope))],
            ),
        ]);
    }
    if let Some(FeedForwardConfig::Dense(dense)) = &layer.ffn {
        let activation = format!("{:?}", dense.activation);
        facts.push(("feed-forward", vec![dense.intermediate as f64, f64::from(u8::from(dense.gate))]));
        facts.push(("activation", activation.bytes().map(f64::from).collect()));
    }
    facts
}
