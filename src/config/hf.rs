//! `config.json` as the Hugging Face hub has it -> [`Config`], as the family's class in transformers 5.24
//! reads it.
//!
//! What an absent key means, and which keys are read at all, stands in [`family`](super::family). Two
//! spellings of RoPE are in the wild: `rope_theta` with `rope_scaling` (and Gemma 3's
//! `rope_local_base_freq`), and transformers 5's `rope_parameters`, one object or one a layer type. A file
//! may have both: people add `rope_scaling` to a new file as a model card advises. Then `rope_scaling` counts
//! whole (in Gemma 3 for the layers without a window).

use serde_json::{Map, Value};

use super::family::{Bidirectional, Family, Has, ShortConv, Text, Window, Wrapper};
use super::fields::{Fields, missing, object};
use super::rope::{longrope_attention, yarn_attention};
use super::{
    Activation, AttentionConfig, Block, Config, Denominator, DenseConfig, ExpertsConfig, FeedForwardConfig,
    LayerConfig, LayerNorms, MAX_LAYERS, MixerConfig, Norm, Presence, Rope, Scaling, ShortConvConfig,
};
use crate::error::{Context, Error, Result, quoted};

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
    Reader { family, f: Fields(object) }.config(wrapper)
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
        let n_layers = self.size("num_hidden_layers", sizes.layers)?;
        let context = self.size("max_position_embeddings", sizes.context)?;
        if n_layers > MAX_LAYERS {
            return Err(Error::model_file(format!("num_hidden_layers must be at most {MAX_LAYERS}")));
        }
        let attention = self.attention(hidden)?;
        let ropes = self.ropes(attention.head_dim, context)?;
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
            block: family.block,
            logit_cap: self.cap("final_logit_softcapping", family.logit_cap)?,
            embed_scale: family.scaled_embedding.then(|| (hidden as f32).sqrt()),
            layers: self.layers(n_layers, ropes.len() > 1, attention)?,
            ropes,
            tied,
            head_bias: self.has(family.tensors.head_bias)?,
            wrapper: wrapper.map(|(wrapper, _)| wrapper.model_type),
            causal: self.causal()?,
            interleaved_qk: false,
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
        let empty = |value: &Value| value.as_object().is_some_and(Map::is_empty);
        match self.f.0.get("per_layer_config") {
            None | Some(Value::Null) => {}
            Some(value) if empty(value) => {}
            Some(_) => {
                return Err(Error::unsupported(
                    "per_layer_config gives layers settings of their own, which is not supported",
                ));
            }
        }
        let stated = |key: &&&str| self.f.0.get(**key).is_some_and(|value| !value.is_null());
        match self.family.refused.iter().find(stated) {
            Some(key) => {
                Err(Error::unsupported(format!("{key} in a {} is not supported", self.family.name())))
            }
            None => Ok(()),
        }
    }

    /// `is_causal` is read by the masks of all classes, `use_bidirectional_attention` by Gemma's.
    fn causal(&self) -> Result<bool> {
        let causal = self.f.bool("is_causal")?.unwrap_or(true);
        let key = "use_bidirectional_attention";
        match (self.family.bidirectional, self.f.0.get(key)) {
            (Bidirectional::NotRead, _) | (_, None | Some(Value::Null | Value::Bool(false))) => Ok(causal),
            (Bidirectional::Read, Some(Value::Bool(true))) => Ok(false),
            (Bidirectional::Read, Some(_)) => self.f.bool(key).map(|_| causal),
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
        })
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
            Some(other) => Err(Error::unsupported(format!("{key} {} is not supported", quoted(other)))),
        }
    }

    fn attention_scale(&self, head_dim: usize) -> Result<f32> {
        let scalar = match self.family.scalar {
            Some(default) => self.f.f64("query_pre_attn_scalar")?.unwrap_or(default),
            None => head_dim as f64,
        };
        Ok((1.0 / scalar.sqrt()) as f32)
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
        let older = self.family.short_conv.is_some().then_some("tie_embedding");
        let stated = match older.map(|key| self.f.bool(key)).transpose()?.flatten() {
            Some(tied) => Some(tied),
            None => self.f.bool("tie_word_embeddings")?,
        };
        Ok(stated.unwrap_or(self.family.tied))
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
            qkv_bias: self.has(t.qkv_bias)?,
            o_bias: self.has(t.o_bias)?,
            fused: fused(t.fused),
            sinks: Presence::Never,
            gate: None,
        })
    }

    fn dense(&self) -> Result<DenseConfig> {
        let (family, t) = (self.family, &self.family.tensors);
        let stated = self.size("intermediate_size", family.sizes.intermediate)?;
        Ok(DenseConfig {
            intermediate: match &family.short_conv {
                Some(defaults) => self.adjusted_width(stated, defaults)?,
                None => stated,
            },
            activation: self.activation()?,
            gate: t.gate,
            bias: self.has(t.mlp_bias)?,
            fused: fused(t.fused),
        })
    }

    /// The width that LFM2's class makes of its `intermediate_size` (`block_ff_dim` in older files).
    fn adjusted_width(&self, stated: usize, defaults: &ShortConv) -> Result<usize> {
        let width = self.f.usize("block_ff_dim")?.unwrap_or(stated);
        if !self.f.bool("block_auto_adjust_ff_dim")?.unwrap_or(true) {
            return Ok(width);
        }
        let width = (width as f64 * 2.0 / 3.0) as usize;
        let factor = self.f.f64("block_ffn_dim_multiplier")?;
        let Some(factor) = self.stated_or("block_ffn_dim_multiplier", factor, Some(1.0)) else {
            return Ok(width);
        };
        let multiple = self.size("block_multiple_of", defaults.multiple_of)?;
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

/// Layers: which mixer each has, windows and position encodings.
impl Reader<'_> {
    /// The layers; `attention` as all of them have it that have one.
    fn layers(
        &self,
        layers: usize,
        local_rope: bool,
        attention: AttentionConfig,
    ) -> Result<Vec<LayerConfig>> {
        let bare = self.no_rope(layers)?;
        let window = self.window_size()?;
        let sliding = self.sliding(layers, window, &bare)?;
        if sliding.contains(&true) && window.is_none() {
            return Err(Error::model_file(
                "layer_types has sliding_attention, and there is no sliding_window (sliding_window, use_sliding_window)",
            ));
        }
        let conv = self.short_conv(layers)?;
        let ffns = self.feed_forwards(layers)?;
        let post = self.family.tensors.post_norms;
        let norms = LayerNorms {
            before_mixer: true,
            after_mixer: post,
            before_ffn: self.family.block == Block::Sequential,
            after_ffn: post,
        };
        let mixer = |i: usize| match conv[i] {
            Some(conv) => MixerConfig::ShortConv(conv),
            None => MixerConfig::Attention(AttentionConfig {
                window: window.filter(|_| sliding[i]),
                rope: (!bare[i]).then_some(usize::from(sliding[i] && local_rope)),
                ..attention
            }),
        };
        let layer = |(i, ffn)| LayerConfig { mixer: mixer(i), ffn, norms, residual_scale: 1.0 };
        Ok(ffns.into_iter().enumerate().map(layer).collect())
    }

    /// The feed-forward of each layer.
    fn feed_forwards(&self, layers: usize) -> Result<Vec<FeedForwardConfig>> {
        let dense = FeedForwardConfig::Dense(self.dense()?);
        let Some(defaults) = &self.family.experts else { return Ok(vec![dense; layers]) };
        let [first, second] = defaults.count_keys;
        let count = match self.f.states(first) {
            true => self.size(first, defaults.count)?,
            false => self.size(second, defaults.count)?,
        };
        let (key, default) = defaults.width.unwrap_or(("intermediate_size", self.family.sizes.intermediate));
        let (width, top_k) = (self.size(key, default)?, self.size("num_experts_per_tok", defaults.top_k)?);
        let mut experts = ExpertsConfig::plain(count, width, self.activation()?, top_k);
        let normalized = self.has(defaults.normalize)? == Presence::Always;
        experts.routing.normalize = normalized.then_some(Denominator::SUM);
        let experts = FeedForwardConfig::Experts(experts);
        if !defaults.sparse_step {
            return Ok(vec![experts; layers]);
        }
        let step = self.size("decoder_sparse_step", 1)?;
        if step == 0 {
            return Err(Error::model_file("decoder_sparse_step is 0; it must be at least 1"));
        }
        let only = self.f.array("mlp_only_layers")?.map_or(&[][..], |list| list.as_slice());
        let is_dense = |i: usize| {
            count == 0 || !(i + 1).is_multiple_of(step) || only.iter().any(|n| n.as_u64() == Some(i as u64))
        };
        Ok((0..layers).map(|i| if is_dense(i) { dense } else { experts }).collect())
    }

    /// The layers that are short convolutions.
    fn short_conv(&self, layers: usize) -> Result<Vec<Option<ShortConvConfig>>> {
        let Some(defaults) = &self.family.short_conv else { return Ok(vec![None; layers]) };
        let conv = ShortConvConfig {
            kernel: self.size("conv_L_cache", defaults.kernel)?,
            bias: self.has(Has::Key("conv_bias", false))?,
        };
        let is_conv = match self.f.array("layer_types")? {
            Some(kinds) => layer_types(kinds, layers, "conv")?,
            None => match self.f.array("full_attn_idxs")? {
                Some(list) => {
                    (0..layers).map(|i| !list.iter().any(|n| n.as_u64() == Some(i as u64))).collect()
                }
                None => vec![false; layers],
            },
        };
        Ok(is_conv.into_iter().map(|is_conv| is_conv.then_some(conv)).collect())
    }

    /// `sliding_window`, if the class looks at it and nothing switches it off.
    fn window_size(&self) -> Result<Option<usize>> {
        let stated = match self.family.window {
            Window::Never => return Ok(None),
            _ => self.f.usize("sliding_window")?,
        };
        let window = self.stated_or("sliding_window", stated, self.family.window_size);
        let on = match self.family.window {
            Window::TypedFrom(_) | Window::AllSwitched => self.f.bool("use_sliding_window")?.unwrap_or(false),
            _ => true,
        };
        let window = window.filter(|_| on);
        let window = if self.halves_window() { window.map(|window| window / 2 + 1) } else { window };
        // The masks of `is_causal: false` reach as far to each side as a causal one back, the last position
        // included.
        let one_more = self.f.bool("is_causal")? == Some(false);
        Ok(if one_more { window.map(|window| window.saturating_add(1)) } else { window })
    }

    /// Gemma 3's class halves the window for attention in both directions; it then counts to each side.
    fn halves_window(&self) -> bool {
        let stated = self.f.0.get("use_bidirectional_attention");
        self.family.bidirectional == Bidirectional::Read && stated == Some(&Value::Bool(true))
    }

    /// Which layers look through the window.
    fn sliding(&self, layers: usize, window: Option<usize>, bare: &[bool]) -> Result<Vec<bool>> {
        let typed = !matches!(self.family.window, Window::Never | Window::All | Window::AllSwitched);
        if typed && let Some(kinds) = self.f.array("layer_types")? {
            return layer_types(kinds, layers, "sliding_attention");
        }
        let each = |sliding: &dyn Fn(usize) -> bool| (0..layers).map(sliding).collect();
        Ok(match self.family.window {
            Window::Never => vec![false; layers],
            Window::All | Window::AllSwitched | Window::TypedAll => vec![window.is_some(); layers],
            Window::TypedAlternating => each(&|i| i % 2 == 0),
            Window::TypedPattern => {
                let pattern = self.f.usize("sliding_window_pattern")?.unwrap_or(6);
                if pattern == 0 {
                    return Err(Error::model_file("sliding_window_pattern is 0; it must be at least 1"));
                }
                each(&|i| (i + 1) % pattern != 0)
            }
            Window::TypedFrom(default) => {
                let first = self.f.usize("max_window_layers")?.unwrap_or(default);
                each(&|i| window.is_some() && i >= first)
            }
            Window::TypedNoRope => {
                let on = self.f.bool("use_sliding_window")?.unwrap_or(false) && window.is_some();
                each(&|i| on && bare[i])
            }
        })
    }

    /// The layers without position encoding.
    fn no_rope(&self, layers: usize) -> Result<Vec<bool>> {
        let Some(default) = self.family.no_rope_interval else { return Ok(vec![false; layers]) };
        if let Some(list) = self.f.array("no_rope_layers")? {
            if list.len() < layers {
                return Err(Error::model_file(format!(
                    "no_rope_layers has {} entries for {layers} layers",
                    list.len()
                )));
            }
            return Ok(list.iter().take(layers).map(|entry| entry.as_u64() == Some(0)).collect());
        }
        let interval = self.f.usize("no_rope_layer_interval")?.unwrap_or(default);
        if interval == 0 {
            return Err(Error::model_file("no_rope_layer_interval is 0; it must be at least 1"));
        }
        Ok((0..layers).map(|i| (i + 1).is_multiple_of(interval)).collect())
    }
}

/// Which layers are of the kind `other`; the rest must be "full_attention".
fn layer_types(kinds: &[Value], layers: usize, other: &str) -> Result<Vec<bool>> {
    if kinds.len() != layers {
        return Err(Error::model_file(format!(
            "layer_types has {} entries for {layers} layers",
            kinds.len()
        )));
    }
    let is_other = |kind: &Value| match kind.as_str() {
        Some("full_attention") => Ok(false),
        Some(kind) if kind == other => Ok(true),
        _ => {
            let kind = quoted(&kind.to_string());
            Err(Error::unsupported(format!("layer_types has {kind}, which is not supported")))
        }
    };
    kinds.iter().map(is_other).collect()
}

/// Rotations.
impl Reader<'_> {
    /// The rotation of full layers and, where it differs, that of windowed ones.
    fn ropes(&self, head_dim: usize, context: usize) -> Result<Vec<Rope>> {
        let f = &self.f;
        let defaults = &self.family.rope;
        let parameters = f.object("rope_parameters")?;
        let scaling = f.object("rope_scaling")?.filter(|object| !object.is_empty());
        let theta = |key: &str, default: f64| f.f64(key).map(|theta| theta.unwrap_or(default));
        if let Some(local_theta) = defaults.local_theta {
            let nested = |kind: &str| -> Result<Object> {
                let object =
                    parameters.map_or(Ok(None), |p| Fields(p).object(kind)).context("rope_parameters")?;
                Ok(object.cloned().unwrap_or_default())
            };
            let mut full = nested("full_attention")?;
            full.extend(scaling.cloned().unwrap_or_default());
            let full = self.rope(&full, theta("rope_theta", defaults.theta)?, head_dim, context, None);
            let local = theta("rope_local_base_freq", local_theta)?;
            let sliding = self.rope(&nested("sliding_attention")?, local, head_dim, context, None);
            return Ok(vec![
                full.context("rope_parameters.full_attention (rope_scaling)")?,
                sliding.context("rope_parameters.sliding_attention")?,
            ]);
        }
        let empty = Object::new();
        let (key, object) = match (scaling, parameters) {
            (Some(scaling), _) => ("rope_scaling", scaling),
            (None, Some(parameters)) => ("rope_parameters", parameters),
            (None, None) => ("rope_theta", &empty),
        };
        if let Some(kind) =
            ["full_attention", "sliding_attention"].iter().find(|kind| object.contains_key(**kind))
        {
            return Err(Error::unsupported(format!(
                "{key} has {kind}: a rotation a layer type is not supported in a {}",
                self.family.name()
            )));
        }
        // A field at the top counts more than one inside, and Phi-3's class always has it.
        let original = f.usize("original_max_position_embeddings")?.or(defaults.original);
        let theta = theta("rope_theta", defaults.theta)?;
        Ok(vec![self.rope(object, theta, head_dim, context, original).context(key)?])
    }

    /// `original`: the length before the stretch, where something outside of `object` decides.
    fn rope(
        &self,
        object: &Object,
        theta: f64,
        head_dim: usize,
        context: usize,
        original: Option<usize>,
    ) -> Result<Rope> {
        let f = Fields(object);
        let kind = self.rope_kind(&f)?;
        let original = match original {
            Some(original) => original,
            None => f.usize("original_max_position_embeddings")?.unwrap_or(context),
        };
        Ok(Rope {
            theta: f.f64("rope_theta")?.unwrap_or(theta),
            dims: self.turned_dims(&f, kind, head_dim)?,
            scaling: scaling(&f, kind, original, context)?,
        })
    }

    fn rope_kind<'b>(&self, f: &Fields<'b>) -> Result<&'b str> {
        let kind = match f.str("rope_type")? {
            Some(kind) => kind,
            None => f.str("type")?.unwrap_or("default"),
        };
        let defaults = &self.family.rope;
        Ok(match kind {
            "mrope" if defaults.mrope => "default",
            "su" | "yarn" if defaults.longrope_only => "longrope",
            "default" | "longrope" => kind,
            other if defaults.longrope_only => {
                return Err(Error::unsupported(format!(
                    "rope_type {} is not supported in a {}, which has longrope alone",
                    quoted(other),
                    self.family.name()
                )));
            }
            _ => kind,
        })
    }

    /// How many dimensions of a head turn.
    fn turned_dims(&self, f: &Fields, kind: &str, head_dim: usize) -> Result<usize> {
        let key = "partial_rotary_factor";
        let stated = match f.f64(key)? {
            Some(partial) => Some(partial),
            None => self.f.f64(key)?,
        };
        let partial = match (self.family.rope.partial, stated) {
            (Some(default), stated) => stated.unwrap_or(default),
            // The class's own rotation does not read it; those of a scaling do, and transformers then fails.
            (None, Some(partial)) if kind != "default" && partial != 1.0 => {
                return Err(Error::unsupported(format!(
                    "{key} {partial} beside rope_type {kind} is not supported in a {}",
                    self.family.name()
                )));
            }
            (None, _) => 1.0,
        };
        if !(partial > 0.0 && partial <= 1.0) {
            return Err(Error::model_file(format!("{key} is {partial}; it must be in (0, 1]")));
        }
        Ok((head_dim as f64 * partial) as usize)
    }
}

fn scaling(f: &Fields, kind: &str, original: usize, context: usize) -> Result<Scaling> {
    let factor = f.f64("factor")?;
    let require = |key: &str| f.f64(key)?.ok_or_else(|| missing(key));
    let ratio = context as f64 / original as f64;
    Ok(match kind {
        "default" => Scaling::None,
        "linear" => Scaling::Linear { factor: require("factor")? },
        "dynamic" => Scaling::Dynamic { factor: require("factor")?, original: context },
        "llama3" => Scaling::Llama3 {
            factor: require("factor")?,
            low: require("low_freq_factor")?,
            high: require("high_freq_factor")?,
            original: original as f64,
        },
        // `null` means the ratio of the lengths.
        "yarn" if !f.states("factor") => return Err(missing("factor")),
        "yarn" => yarn(f, factor.unwrap_or(ratio), original)?,
        "longrope" => Scaling::LongRope {
            short: f.floats("short_factor")?.ok_or_else(|| missing("short_factor"))?,
            long: f.floats("long_factor")?.ok_or_else(|| missing("long_factor"))?,
            original,
            attention: f
                .f64("attention_factor")?
                .unwrap_or_else(|| longrope_attention(factor.unwrap_or(ratio), original as f64)),
        },
        other => return Err(Error::unsupported(format!("rope_type {} is not supported", quoted(other)))),
    })
}

fn yarn(f: &Fields, factor: f64, original: usize) -> Result<Scaling> {
    let attention = match (f.f64("attention_factor")?, f.f64("mscale")?, f.f64("mscale_all_dim")?) {
        (Some(attention), ..) => attention,
        (None, Some(m), Some(all)) if m != 0.0 && all != 0.0 => {
            yarn_attention(factor, m) / yarn_attention(factor, all)
        }
        _ => yarn_attention(factor, 1.0),
    };
    // Zero counts as absent, as in transformers.
    let beta =
        |key: &str, default: f64| f.f64(key).map(|beta| beta.filter(|beta| *beta != 0.0).unwrap_or(default));
    Ok(Scaling::Yarn {
        factor,
        original: original as f64,
        beta_fast: beta("beta_fast", 32.0)?,
        beta_slow: beta("beta_slow", 1.0)?,
        attention,
        truncate: f.bool("truncate")?.unwrap_or(true),
    })
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
            (
                &with(r#"{"model_type": "mistral", "num_key_value_heads": 2, "sliding_window": 0}"#),
                ErrorKind::ModelFile,
                "window",
            ),
            (
                &with(
                    r#"{"model_type": "ministral", "layer_types": ["sliding_attention", "full_attention"], "sliding_window": null}"#,
                ),
                ErrorKind::ModelFile,
                "sliding_window",
            ),
            (
                &with(r#"{"per_layer_config": {"1": {"head_dim": 8}}}"#),
                ErrorKind::UnsupportedModel,
                "per_layer_config",
            ),
            (
                &with(r#"{"model_type": "gemma2", "use_bidirectional_attention": true}"#),
                ErrorKind::UnsupportedModel,
                "use_bidirectional_attention",
            ),
            (
                &with(r#"{"rope_parameters": {"full_attention": {}, "sliding_attention": {}}}"#),
                ErrorKind::UnsupportedModel,
                "full_attention",
            ),
            (
                &with(r#"{"model_type": "phi3", "rope_scaling": {"type": "linear", "factor": 2.0}}"#),
                ErrorKind::UnsupportedModel,
                "linear",
            ),
            (
                &with(r#"{"rope_scaling": {"type": "yarn", "factor": 2.0}, "partial_rotary_factor": 0.5}"#),
                ErrorKind::UnsupportedModel,
                "partial_rotary_factor",
            ),
            (r#"{"model_type": "llava", "vision_config": {}}"#, ErrorKind::ModelFile, "text_config"),
            (
                r#"{"model_type": "llava", "text_config": {"model_type": "mamba"}}"#,
                ErrorKind::UnsupportedModel,
                "text_config: model_type \"mamba\"",
            ),
        ];
        for (text, kind, word) in cases {
            let error = parse(text).expect_err(text);
            assert_eq!(error.kind(), kind, "{text}: {error}");
            assert!(error.message().contains(word) && error.message().len() < 600, "{text}: {error}");
        }
    }

    #[test]
    fn both_spellings_of_rope_mean_the_same() {
        let classic = with(r#"{"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}}"#);
        let modern =
            with(r#"{"rope_parameters": {"rope_theta": 5e5, "rope_type": "linear", "factor": 2.0}}"#);
        assert_eq!(parse(&classic).unwrap(), parse(&modern).unwrap());
    }

    #[test]
    fn what_is_absent_is_the_class_default() {
        let gemma2 = parse(&with(r#"{"model_type": "gemma2"}"#)).unwrap();
        let attention = gemma2.attention().unwrap();
        assert_eq!((attention.soft_cap, gemma2.logit_cap), (Some(50.0), Some(30.0)));
        assert_eq!((attention.scale, attention.window), (0.0625, Some(4096)));
        let uncapped = parse(&with(r#"{"model_type": "gemma2", "attn_logit_softcapping": null}"#)).unwrap();
        assert_eq!(uncapped.attention().unwrap().soft_cap, None);
        // Absent means the class's 32 heads, and null as many as query heads.
        let qwen2 = with(r#"{"model_type": "qwen2", "num_attention_heads": 32}"#);
        assert_eq!(parse(&qwen2).unwrap().attention().unwrap().kv_heads, 32);
        let null = with(r#"{"model_type": "qwen2", "num_key_value_heads": null}"#);
        assert_eq!(parse(&null).unwrap().attention().unwrap().kv_heads, 4);
        let llava = r#"{"model_type": "llava", "text_config": {"vocab_size": 32064}}"#;
        let llava = parse(llava).unwrap();
        assert_eq!((llava.hidden, llava.vocab, llava.wrapper), (4096, 32064, Some("llava")));
    }

    #[test]
    fn a_stretch_says_how_far_it_reaches() {
        for (scaling, context, longest) in [
            (r#"{"type": "dynamic", "factor": 4.0}"#, 128, 512),
            (r#"{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 96}"#, 128, 384),
            (r#"{"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}"#, 128, 128),
            (r#"{"type": "linear", "factor": 4.0}"#, 128, 128),
        ] {
            let config = parse(&with(&format!("{{\"rope_scaling\": {scaling}}}"))).unwrap();
            assert_eq!((config.context, config.longest), (context, longest), "{scaling}");
        }
    }
}
