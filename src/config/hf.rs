//! `config.json` as the Hugging Face hub has it -> [`Config`].
//!
//! Two spellings of RoPE are in the wild: `rope_theta` with `rope_scaling` (and Gemma 3's
//! `rope_local_base_freq`), and transformers 5's `rope_parameters`, one object or one a layer type. Both are read.
//! Defaults of absent fields are the family's own defaults in transformers.

use serde_json::{Map, Value};

use super::fields::{Fields, missing, object};
use super::rope::{longrope_attention, yarn_attention};
use super::{Activation, Block, Config, Layer, Norm, NormKind, Rope, Scaling, windowed};
use crate::error::{Context, Error, Result, quoted};

/// What sets one family apart where its config leaves a field out or cannot say it.
struct Family {
    name: &'static str,
    norm: NormKind,
    offset: f32,
    eps: f64,
    theta: f64,
    /// Theta of the layers with a window, where they have their own.
    local_theta: Option<f64>,
    /// Share of a head that turns, unless the config tells.
    partial: f64,
    block: Block,
    activation: Activation,
    head_dim: Option<usize>,
    scaled_embedding: bool,
    tied: bool,
    /// What transformers assumes for fields that published configs of the family leave out.
    defaults: &'static [(&'static str, usize)],
    /// Which layers have the window, when the config has no `layer_types`.
    window: Window,
}

#[derive(Clone, Copy)]
enum Window {
    All,
    /// Even layers.
    Alternating,
    /// All but each n-th, n given by `sliding_window_pattern` (6).
    Pattern,
    /// From `max_window_layers` on, if `use_sliding_window`.
    Switched,
    /// Only where `layer_types` says so.
    Told,
}

const LLAMA: Family = Family {
    name: "llama",
    norm: NormKind::Rms,
    offset: 0.0,
    eps: 1e-6,
    theta: 10_000.0,
    local_theta: None,
    partial: 1.0,
    block: Block::Sequential,
    activation: Activation::Silu,
    head_dim: None,
    scaled_embedding: false,
    tied: false,
    defaults: &[],
    window: Window::Told,
};

const GEMMA: Family = Family {
    name: "gemma",
    offset: 1.0,
    activation: Activation::GeluTanh,
    head_dim: Some(256),
    scaled_embedding: true,
    tied: true,
    ..LLAMA
};

/// The families by `model_type`.
const FAMILIES: &[Family] = &[
    LLAMA,
    Family { name: "smollm3", theta: 2_000_000.0, tied: true, ..LLAMA },
    Family { name: "mistral", window: Window::All, ..LLAMA },
    Family { name: "qwen2", window: Window::Switched, ..LLAMA },
    Family { name: "qwen3", head_dim: Some(128), window: Window::Switched, ..LLAMA },
    Family {
        name: "phi",
        norm: NormKind::Layer,
        eps: 1e-5,
        partial: 0.5,
        block: Block::Parallel,
        activation: Activation::GeluTanh,
        ..LLAMA
    },
    Family { name: "phi3", eps: 1e-5, window: Window::All, ..LLAMA },
    GEMMA,
    Family { name: "gemma2", window: Window::Alternating, ..GEMMA },
    Family {
        name: "gemma3_text",
        theta: 1_000_000.0,
        local_theta: Some(10_000.0),
        window: Window::Pattern,
        defaults: &[
            ("num_attention_heads", 8),
            ("num_key_value_heads", 4),
            ("vocab_size", 262_208),
            ("max_position_embeddings", 131_072),
            ("sliding_window", 4096),
        ],
        ..GEMMA
    },
];

/// Reads the text of a `config.json`.
pub fn parse(text: &str) -> Result<Config> {
    let root = object(text)?;
    let fields = Fields(&root);
    match fields.str("model_type")? {
        // The multimodal wrapper: its language model stands inside.
        Some("gemma3") => {
            let inner = fields.object("text_config")?.ok_or_else(|| missing("text_config"))?;
            build(family("gemma3_text")?, Fields(inner))
        }
        Some(name) => build(family(name)?, fields),
        None => Err(missing("model_type")),
    }
}

impl Family {
    fn default(&self, key: &str) -> Option<usize> {
        self.defaults.iter().find(|(name, _)| *name == key).map(|(_, value)| *value)
    }
}

fn family(name: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|f| f.name == name).ok_or_else(|| {
        let known: Vec<_> = FAMILIES.iter().map(|f| f.name).collect();
        Error::unsupported(format!(
            "model_type {} is not supported; supported are {}",
            quoted(name),
            known.join(", ")
        ))
    })
}

fn build(family: &Family, f: Fields) -> Result<Config> {
    let require = |key| f.usize(key)?.or(family.default(key)).ok_or_else(|| missing(key));
    let hidden = require("hidden_size")?;
    let heads = require("num_attention_heads")?;
    let n_layers = require("num_hidden_layers")?;
    let context = require("max_position_embeddings")?;
    if heads == 0 || n_layers > super::MAX_LAYERS {
        return Err(Error::model_file(
            "num_attention_heads must be above 0 and num_hidden_layers at most 1024",
        ));
    }
    let head_dim = f.usize("head_dim")?.or(family.head_dim).unwrap_or(hidden / heads);
    let (ropes, windows) = (ropes(family, &f, head_dim, context)?, windows(family, &f, n_layers)?);
    let no_rope = no_rope(family, &f, n_layers)?;
    let (causal, windows) = bidirectional(family, &f, windows)?;
    let layers = windows
        .iter()
        .zip(no_rope)
        .map(|(&window, bare)| {
            let rope = if window.is_some() && ropes.len() > 1 { 1 } else { 0 };
            Layer { window, rope: (!bare).then_some(rope) }
        })
        .collect();
    let scalar = f.f64("query_pre_attn_scalar")?.unwrap_or(head_dim as f64);
    Config {
        family: family.name.to_string(),
        hidden,
        intermediate: require("intermediate_size")?,
        vocab: require("vocab_size")?,
        heads,
        kv_heads: f.usize("num_key_value_heads")?.or(family.default("num_key_value_heads")).unwrap_or(heads),
        head_dim,
        context: extended_context(&ropes, context),
        norm: norm(family, &f)?,
        activation: activation(family, &f)?,
        block: family.block,
        attention_scale: (1.0 / scalar.sqrt()) as f32,
        attention_cap: f.f64("attn_logit_softcapping")?.map(|x| x as f32),
        logit_cap: f.f64("final_logit_softcapping")?.map(|x| x as f32),
        embed_scale: family.scaled_embedding.then(|| (hidden as f32).sqrt()),
        ropes,
        layers,
        tied: f.bool("tie_word_embeddings")?.unwrap_or(family.tied),
        causal,
        interleaved_qk: false,
    }
    .validate()
}

/// Whether attention is causal, and what the windows then are. Gemma 3 halves its window
/// (`use_bidirectional_attention`); with `is_causal: false` it reaches as far to each side as it did back,
/// the last position included.
fn bidirectional(
    family: &Family,
    f: &Fields,
    mut windows: Vec<Option<usize>>,
) -> Result<(bool, Vec<Option<usize>>)> {
    let causal = f.bool("is_causal")?.unwrap_or(true);
    let halved = family.name == "gemma3_text" && f.bool("use_bidirectional_attention")?.unwrap_or(false);
    for window in windows.iter_mut().flatten() {
        *window = if halved { *window / 2 + 1 } else { *window };
        *window = if causal { *window } else { window.saturating_add(1) };
    }
    Ok((causal && !halved, windows))
}

fn norm(family: &Family, f: &Fields) -> Result<Norm> {
    let key = match family.norm {
        NormKind::Rms => "rms_norm_eps",
        NormKind::Layer => "layer_norm_eps",
    };
    Ok(Norm { kind: family.norm, eps: f.f64(key)?.unwrap_or(family.eps), offset: family.offset })
}

fn activation(family: &Family, f: &Fields) -> Result<Activation> {
    // Gemma was trained with the tanh form; its first configs say "gelu" in `hidden_act` and mean that.
    let key = if family.scaled_embedding { "hidden_activation" } else { "hidden_act" };
    match f.str(key)? {
        None => Ok(family.activation),
        Some("silu" | "swish") => Ok(Activation::Silu),
        Some("gelu") => Ok(Activation::Gelu),
        Some("gelu_new" | "gelu_pytorch_tanh" | "gelu_fast") => Ok(Activation::GeluTanh),
        Some("relu") => Ok(Activation::Relu),
        Some(other) => Err(Error::unsupported(format!("{key} {} is not supported", quoted(other)))),
    }
}

/// A dynamic stretch leaves `max_position_embeddings` at the trained length and promises `factor` times it.
fn extended_context(ropes: &[Rope], context: usize) -> usize {
    match ropes.first().map(|rope| &rope.scaling) {
        Some(Scaling::Dynamic { factor, original }) if factor.is_finite() && *factor > 1.0 => {
            (*original as f64 * factor) as usize
        }
        _ => context,
    }
}

/// The rotation of full layers and, where it differs, that of windowed ones.
fn ropes(family: &Family, f: &Fields, head_dim: usize, context: usize) -> Result<Vec<Rope>> {
    let partial = f.f64("partial_rotary_factor")?;
    let classic = Map::from_iter(
        [("rope_theta", f.0.get("rope_theta")), ("partial_rotary_factor", f.0.get("partial_rotary_factor"))]
            .into_iter()
            .filter_map(|(key, value)| Some((key.to_string(), value?.clone()))),
    );
    let parameters = f.object("rope_parameters")?;
    let nested = |kind: &str| -> Result<Option<&Map<String, Value>>> {
        parameters.map_or(Ok(None), |p| Fields(p).object(kind)).context("rope_parameters")
    };
    let one = |object: &Map<String, Value>, theta: f64| {
        let partial = partial.unwrap_or(family.partial);
        rope(family, &Fields(object), f, RopeDefaults { theta, partial, head_dim, context })
    };
    if let Some(full) = nested("full_attention")? {
        let mut ropes = vec![one(full, family.theta).context("rope_parameters.full_attention")?];
        if let Some(sliding) = nested("sliding_attention")? {
            let theta = family.local_theta.unwrap_or(family.theta);
            ropes.push(one(sliding, theta).context("rope_parameters.sliding_attention")?);
        }
        return Ok(ropes);
    }
    let theta = f.f64("rope_theta")?.unwrap_or(family.theta);
    let object = match parameters {
        Some(object) => object,
        None => f.object("rope_scaling")?.unwrap_or(&classic),
    };
    let mut ropes = vec![one(object, theta).context("rope_scaling")?];
    if let Some(local) = family.local_theta {
        let local = f.f64("rope_local_base_freq")?.unwrap_or(local);
        ropes.push(Rope::plain(local, ropes[0].dims));
    }
    Ok(ropes)
}

struct RopeDefaults {
    theta: f64,
    partial: f64,
    head_dim: usize,
    context: usize,
}

fn rope(family: &Family, f: &Fields, root: &Fields, defaults: RopeDefaults) -> Result<Rope> {
    let theta = f.f64("rope_theta")?.unwrap_or(defaults.theta);
    let partial = f.f64("partial_rotary_factor")?.unwrap_or(defaults.partial);
    if !(partial > 0.0 && partial <= 1.0) {
        return Err(Error::model_file(format!("partial_rotary_factor is {partial}; it must be in (0, 1]")));
    }
    let dims = (defaults.head_dim as f64 * partial) as usize;
    let kind = match f.str("rope_type")? {
        Some(kind) => Some(kind),
        None => f.str("type")?,
    };
    // Phi-3's first releases called LongRope "su" and "yarn".
    let kind = match (kind, family.name) {
        (Some("su" | "yarn"), "phi3") => Some("longrope"),
        (kind, _) => kind,
    };
    let original = match f.usize("original_max_position_embeddings")? {
        Some(original) => original,
        None => root.usize("original_max_position_embeddings")?.unwrap_or(defaults.context),
    };
    let factor = f.f64("factor")?;
    let ratio = defaults.context as f64 / original as f64;
    let scaling = match kind {
        None | Some("default") => Scaling::None,
        Some("linear") => Scaling::Linear { factor: factor.ok_or_else(|| missing("factor"))? },
        Some("dynamic") => {
            Scaling::Dynamic { factor: factor.ok_or_else(|| missing("factor"))?, original: defaults.context }
        }
        Some("llama3") => Scaling::Llama3 {
            factor: factor.ok_or_else(|| missing("factor"))?,
            low: f.f64("low_freq_factor")?.ok_or_else(|| missing("low_freq_factor"))?,
            high: f.f64("high_freq_factor")?.ok_or_else(|| missing("high_freq_factor"))?,
            original: original as f64,
        },
        Some("yarn") => yarn(f, factor.unwrap_or(ratio), original)?,
        Some("longrope" | "su") => Scaling::LongRope {
            short: f.floats("short_factor")?.ok_or_else(|| missing("short_factor"))?,
            long: f.floats("long_factor")?.ok_or_else(|| missing("long_factor"))?,
            original,
            attention: f
                .f64("attention_factor")?
                .unwrap_or_else(|| longrope_attention(factor.unwrap_or(ratio), original as f64)),
        },
        Some(other) => {
            return Err(Error::unsupported(format!("rope_type {} is not supported", quoted(other))));
        }
    };
    Ok(Rope { theta, dims, scaling })
}

fn yarn(f: &Fields, factor: f64, original: usize) -> Result<Scaling> {
    let attention = match (f.f64("attention_factor")?, f.f64("mscale")?, f.f64("mscale_all_dim")?) {
        (Some(attention), ..) => attention,
        (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => {
            yarn_attention(factor, m) / yarn_attention(factor, all)
        }
        _ => yarn_attention(factor, 1.0),
    };
    Ok(Scaling::Yarn {
        factor,
        original: original as f64,
        beta_fast: f.f64("beta_fast")?.unwrap_or(32.0),
        beta_slow: f.f64("beta_slow")?.unwrap_or(1.0),
        attention,
        truncate: f.bool("truncate")?.unwrap_or(true),
    })
}

/// Which layers look through the window.
fn windows(family: &Family, f: &Fields, layers: usize) -> Result<Vec<Option<usize>>> {
    let used = f.bool("use_sliding_window")?.unwrap_or(!matches!(family.window, Window::Switched));
    let window = f.usize("sliding_window")?.or(family.default("sliding_window")).filter(|_| used);
    if let Some(kinds) = f.array("layer_types")? {
        if kinds.len() != layers {
            return Err(Error::model_file(format!(
                "layer_types has {} entries for {layers} layers",
                kinds.len()
            )));
        }
        let mut sliding = Vec::with_capacity(layers);
        for kind in kinds {
            sliding.push(match kind.as_str() {
                Some("full_attention") => false,
                Some("sliding_attention") => true,
                _ => {
                    let kind = quoted(&kind.to_string());
                    return Err(Error::unsupported(format!(
                        "layer_types has {kind}, which is not supported"
                    )));
                }
            });
        }
        return Ok(windowed(|i| sliding[i], layers, window));
    }
    let pattern = match f.usize("sliding_window_pattern")? {
        Some(pattern) => pattern,
        None => f.usize("_sliding_window_pattern")?.unwrap_or(6),
    };
    let first = f.usize("max_window_layers")?.unwrap_or(28);
    Ok(match family.window {
        Window::All => windowed(|_| true, layers, window),
        Window::Alternating => windowed(|i| i % 2 == 0, layers, window),
        Window::Pattern => windowed(|i| (i + 1) % pattern.max(1) != 0, layers, window),
        Window::Switched => windowed(|i| i >= first, layers, window),
        Window::Told => vec![None; layers],
    })
}

/// SmolLM3: each n-th layer has no position encoding.
fn no_rope(family: &Family, f: &Fields, layers: usize) -> Result<Vec<bool>> {
    if family.name != "smollm3" {
        return Ok(vec![false; layers]);
    }
    if let Some(list) = f.array("no_rope_layers")? {
        if list.len() < layers {
            return Err(Error::model_file(format!(
                "no_rope_layers has {} entries for {layers} layers",
                list.len()
            )));
        }
        return Ok(list.iter().take(layers).map(|entry| entry.as_u64() == Some(0)).collect());
    }
    let interval = f.usize("no_rope_layer_interval")?.unwrap_or(4).max(1);
    Ok((0..layers).map(|i| (i + 1) % interval == 0).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    const TINY: &str = r#"{"model_type": "llama", "hidden_size": 64, "num_attention_heads": 4,
        "num_hidden_layers": 2, "max_position_embeddings": 128, "intermediate_size": 96, "vocab_size": 50}"#;

    /// Replaces or adds fields of the tiny config.
    fn with(changes: &str) -> String {
        let mut object: Map<String, Value> = serde_json::from_str(TINY).unwrap();
        object.extend(serde_json::from_str::<Map<String, Value>>(changes).unwrap());
        Value::Object(object).to_string()
    }

    #[test]
    fn errors_name_the_field() {
        let cases = [
            ("{}", ErrorKind::ModelFile, "model_type"),
            ("[1]", ErrorKind::ModelFile, "object"),
            ("{", ErrorKind::ModelFile, "JSON"),
            (&with(r#"{"model_type": "mamba"}"#), ErrorKind::UnsupportedModel, "mamba"),
            (
                &with(&format!("{{\"model_type\": {:?}}}", "x".repeat(5000))),
                ErrorKind::UnsupportedModel,
                "xxx\"…",
            ),
            (&with(r#"{"hidden_size": null}"#), ErrorKind::ModelFile, "hidden_size"),
            (&with(r#"{"hidden_size": -1}"#), ErrorKind::ModelFile, "hidden_size"),
            (&with(r#"{"vocab_size": "many"}"#), ErrorKind::ModelFile, "vocab_size"),
            (&with(r#"{"num_key_value_heads": 3}"#), ErrorKind::ModelFile, "key/value heads"),
            (&with(r#"{"num_attention_heads": 0}"#), ErrorKind::ModelFile, "num_attention_heads"),
            (&with(r#"{"num_hidden_layers": 1000000}"#), ErrorKind::ModelFile, "num_hidden_layers"),
            (&with(r#"{"hidden_act": "mish"}"#), ErrorKind::UnsupportedModel, "mish"),
            (&with(r#"{"rms_norm_eps": 0}"#), ErrorKind::ModelFile, "epsilon"),
            (&with(r#"{"rope_scaling": {"type": "linear"}}"#), ErrorKind::ModelFile, "factor"),
            (&with(r#"{"rope_scaling": {"rope_type": "spiral"}}"#), ErrorKind::UnsupportedModel, "spiral"),
            (&with(r#"{"rope_theta": 0}"#), ErrorKind::ModelFile, "RoPE base"),
            (
                &with(r#"{"model_type": "qwen2", "layer_types": ["full_attention"]}"#),
                ErrorKind::ModelFile,
                "layer_types",
            ),
            (&with(r#"{"model_type": "mistral", "sliding_window": 0}"#), ErrorKind::ModelFile, "window"),
        ];
        for (text, kind, word) in cases {
            let error = parse(text).expect_err(text);
            assert_eq!(error.kind(), kind, "{text}: {error}");
            assert!(error.message().contains(word) && error.message().len() < 300, "{text}: {error}");
        }
    }

    #[test]
    fn both_spellings_of_rope_mean_the_same() {
        let classic = with(r#"{"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}"#);
        let modern =
            with(r#"{"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}"#);
        assert_eq!(parse(&classic).unwrap(), parse(&modern).unwrap());
    }
}
