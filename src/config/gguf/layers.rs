//! Layers, as GGUF has them: flags, patterns and key heads of each.

use super::Reader;
use crate::config::family::NoRope;
use crate::config::{
    Activation, AttentionConfig, DenseConfig, FeedForwardConfig, LayerConfig, Presence, ShortConvConfig,
    Xielu,
};
use crate::error::{Error, Result};
use crate::weights::gguf::Value;

impl Reader<'_> {
    /// The layers; `attention` as all of them have it that have one.
    pub(super) fn layers(
        &self,
        layers: usize,
        local_rope: bool,
        causal: bool,
        attention: AttentionConfig,
    ) -> Result<Vec<LayerConfig>> {
        let absent = self.architecture.window_layers.filter(|(count, _)| *count == layers);
        let window = self.usize("attention.sliding_window")?.or(absent.map(|(_, window)| window));
        let window = window.filter(|w| *w > 0);
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
        let turns = self.turns()?;
        let patterned = self.rope_pattern(layers)?;
        let heads = self.heads(layers)?;
        let bare = |i: usize| match self.family.no_rope {
            NoRope::Interval(n) => (i + 1).is_multiple_of(n),
            NoRope::Zeros(..) => !sliding[i],
            NoRope::Full => !sliding[i] || window.is_none(),
            NoRope::FullBesideWindow => !sliding[i] && window.is_some(),
            NoRope::Always => true,
            NoRope::Never | NoRope::Unless(..) => !turns || patterned.as_ref().is_some_and(|flags| !flags[i]),
        };
        let seats = self.seats(layers)?;
        let residual_scale = self.multiplier(self.family.multipliers.residual)?.unwrap_or(1.0);
        let ffns = self.feed_forwards(layers)?;
        let xielu = self.xielu(layers)?;
        let norms = self.family.tensors.norms.norms(self.block());
        let attention = |i: usize| {
            let window = window.filter(|_| sliding[i]);
            let rope = (!bare(i)).then_some(usize::from(window.is_some() && local_rope));
            AttentionConfig { window, rope, heads: heads[i], ..attention }
        };
        let ffn = |i: usize| match (ffns[i], &xielu) {
            (FeedForwardConfig::Dense(dense), Some(xielu)) => {
                FeedForwardConfig::Dense(DenseConfig { activation: Activation::Xielu(xielu[i]), ..dense })
            }
            (ffn, _) => ffn,
        };
        let layer = |i: usize| {
            let (mixer, ffn) = seats[i].fill(attention(i), ffn(i));
            LayerConfig {
                norms: norms.of(mixer.is_some(), ffn.is_some()),
                mixer,
                ffn,
                residual_scale,
                per_layer: None,
                output_scale: Presence::Never,
            }
        };
        Ok((0..layers).map(layer).collect())
    }

    /// Which layers turn, where the family has a base for each (Granite swash).
    fn rope_pattern(&self, layers: usize) -> Result<Option<Vec<bool>>> {
        let key = self.key("attention.rope_pattern");
        match self.metadata.get(&key) {
            Some(_) if self.family.rope.layer_bases => self.window_flags(&key, layers).map(Some),
            _ => Ok(None),
        }
    }

    /// Whether there are position encodings at all.
    fn turns(&self) -> Result<bool> {
        let Some(absent) = self.architecture.rope_switch else { return Ok(true) };
        let stated = self.metadata.bool(&self.key("rope.scaling.finetuned"))?;
        Ok(stated.unwrap_or(absent))
    }

    /// The parameters of xIELU in each layer, which are stored as they are learned.
    fn xielu(&self, layers: usize) -> Result<Option<Vec<Xielu>>> {
        if !self.family.tensors.xielu {
            return Ok(None);
        }
        let of_layers = |name: &str| -> Result<Vec<f32>> {
            let key = format!("xielu.{name}");
            let list = match self.metadata.get(&key) {
                None => return Err(Error::model_file(format!("the metadata key {key:?} is missing"))),
                Some(Value::Array(_)) => self.metadata.f32s(&key)?.unwrap_or_default().to_vec(),
                Some(_) => vec![self.metadata.f32(&key)?.unwrap_or_default(); layers],
            };
            match list.len() == layers && list.iter().all(|number| number.is_finite()) {
                true => Ok(list),
                false => Err(Error::model_file(format!(
                    "{key} has {} entries for {layers} layers (block_count), or one that is not finite",
                    list.len()
                ))),
            }
        };
        let (p, n) = (of_layers("alpha_p")?, of_layers("alpha_n")?);
        let (beta, eps) = (of_layers("beta")?, of_layers("eps")?);
        Ok(Some((0..layers).map(|i| Xielu::of_stored(p[i], n[i], beta[i], eps[i])).collect()))
    }

    /// The layers that are short convolutions: those without key heads.
    pub(super) fn short_conv(&self, layers: usize) -> Result<Vec<Option<ShortConvConfig>>> {
        if self.family.short_conv.is_none() {
            return Ok(vec![None; layers]);
        }
        let conv = ShortConvConfig { kernel: self.require("shortconv.l_cache")?, bias: Presence::IfStored };
        let heads = self.kv_heads(layers)?.unwrap_or_else(|| vec![1; layers]);
        Ok(heads.into_iter().map(|n| (n == 0).then_some(conv)).collect())
    }

    /// Which layers have the window, if there is one: `attention.sliding_window_pattern` has a flag a layer,
    /// or a number n: each n-th layer is full.
    pub(super) fn sliding(&self, layers: usize) -> Result<Vec<bool>> {
        let key = self.key("attention.sliding_window_pattern");
        let period = match self.metadata.get(&key) {
            Some(Value::Array(_)) => return self.window_flags(&key, layers),
            Some(_) => self.metadata.usize(&key)?,
            None => self.architecture.window_period,
        };
        match period {
            Some(0) => Err(Error::model_file(format!("{key} is 0; it must be at least 1"))),
            Some(n) => {
                let full = if self.architecture.full_first { 0 } else { n - 1 };
                Ok((0..layers).map(|i| i % n != full).collect())
            }
            None => Ok(vec![true; layers]),
        }
    }

    pub(super) fn window_flags(&self, key: &str, layers: usize) -> Result<Vec<bool>> {
        match self.metadata.bools(key)? {
            Some(flags) if flags.len() == layers => Ok(flags.to_vec()),
            flags => Err(Error::model_file(format!(
                "{key} has {} entries for {layers} layers (block_count)",
                flags.map_or(0, <[bool]>::len)
            ))),
        }
    }
}
