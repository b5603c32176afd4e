//! Layers: which mixer and which feed-forward each has, windows and position encodings.

use serde_json::Value;

use super::Reader;
use crate::config::family::{Bidirectional, Has, NoRope, NormPlaces, Window};
use crate::config::{AttentionConfig, FeedForwardConfig, LayerConfig, Presence, ShortConvConfig};
use crate::error::{Error, Result, quoted};

impl Reader<'_> {
    /// The layers; `attention` as all of them have it that have one.
    pub(super) fn layers(
        &self,
        layers: usize,
        local_rope: bool,
        attention: AttentionConfig,
    ) -> Result<Vec<LayerConfig>> {
        let window = self.window_size()?;
        let sliding = self.sliding(layers, window)?;
        let bare = self.no_rope(layers, &sliding, window)?;
        if sliding.contains(&true) && window.is_none() {
            return Err(Error::model_file(
                "layer_types has sliding_attention, and there is no sliding_window (sliding_window, use_sliding_window)",
            ));
        }
        let seats = self.seats(layers)?;
        let ffns = self.feed_forwards(layers)?;
        let norms = self.norm_places()?.norms(self.block()?);
        let heads = self.heads_by_layer(layers, attention.heads)?;
        let by_layer = self.ropes_by_layer(layers)?;
        let rope = |i: usize| match &by_layer {
            Some(of_layer) => of_layer[i],
            None => (!bare[i]).then_some(usize::from(sliding[i] && local_rope)),
        };
        let attention = |i: usize| AttentionConfig {
            window: window.filter(|_| sliding[i]),
            rope: rope(i),
            heads: heads[i],
            ..attention
        };
        let residual_scale = self.multiplier(self.family.multipliers.residual)?.unwrap_or(1.0);
        let layer = |(i, ffn): (usize, FeedForwardConfig)| {
            let (mixer, ffn) = seats[i].fill(attention(i), ffn);
            LayerConfig {
                norms: norms.of(mixer.is_some(), ffn.is_some()),
                mixer,
                ffn,
                residual_scale,
                per_layer: None,
                output_scale: Presence::Never,
            }
        };
        Ok(ffns.into_iter().enumerate().map(layer).collect())
    }

    /// The query heads of each layer.
    fn heads_by_layer(&self, layers: usize, heads: usize) -> Result<Vec<usize>> {
        let Some(key) = self.family.heads_by_layer else { return Ok(vec![heads; layers]) };
        let Some(list) = self.f.array(key)? else { return Ok(vec![heads; layers]) };
        let numbers: Option<Vec<usize>> =
            list.iter().map(|n| n.as_u64().and_then(|n| usize::try_from(n).ok())).collect();
        match numbers.filter(|numbers| numbers.len() == layers) {
            Some(numbers) => Ok(numbers),
            None => Err(Error::model_file(format!(
                "{key} must have a whole number for each of {layers} layers; it has {} entries",
                list.len()
            ))),
        }
    }

    /// Where norms stand.
    fn norm_places(&self) -> Result<NormPlaces> {
        let t = &self.family.tensors;
        match t.norms_after_key.map(|key| self.f.bool(key)).transpose()?.flatten() {
            Some(false) => Ok(NormPlaces::Before),
            _ => Ok(t.norms),
        }
    }

    /// The layers that are short convolutions.
    pub(super) fn short_conv(&self, layers: usize) -> Result<Vec<Option<ShortConvConfig>>> {
        let Some(defaults) = &self.family.short_conv else { return Ok(vec![None; layers]) };
        let conv = ShortConvConfig {
            kernel: self.size("conv_L_cache", defaults.kernel)?,
            bias: self.has(Has::Key("conv_bias", false))?,
        };
        let is_conv = match self.f.array("layer_types")? {
            Some(kinds) => {
                let windowed = self.family.window != Window::Never;
                layer_types(kinds, layers, "conv", if windowed { &["sliding_attention"] } else { &[] })?
            }
            None if self.family.window == Window::TypedTwoOfFour => {
                (0..layers).map(|i| !i.is_multiple_of(2) || i == 0).collect()
            }
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
    pub(super) fn window_size(&self) -> Result<Option<usize>> {
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
    pub(super) fn halves_window(&self) -> bool {
        let stated = self.f.0.get("use_bidirectional_attention");
        self.family.bidirectional == Bidirectional::Read && stated == Some(&Value::Bool(true))
    }

    /// Which layers look through the window.
    pub(super) fn sliding(&self, layers: usize, window: Option<usize>) -> Result<Vec<bool>> {
        let typed = !matches!(self.family.window, Window::Never | Window::All | Window::AllSwitched);
        if typed && let Some(kinds) = self.f.array("layer_types")? {
            let others: &[&str] = if self.family.short_conv.is_some() { &["conv"] } else { &[] };
            let mut sliding = layer_types(kinds, layers, "sliding_attention", others)?;
            if let (Window::TypedLastFull, Some(last)) = (self.family.window, sliding.last_mut()) {
                *last = false;
            }
            return Ok(sliding);
        }
        let each = |sliding: &dyn Fn(usize) -> bool| (0..layers).map(sliding).collect();
        Ok(match self.family.window {
            Window::Never => vec![false; layers],
            Window::All | Window::AllSwitched | Window::TypedAll => vec![window.is_some(); layers],
            Window::Typed => vec![false; layers],
            Window::TypedAllButFirstOfFour => each(&|i| i % 4 != 0),
            Window::TypedAlternating => each(&|i| i % 2 == 0),
            Window::TypedTwoOfFour => each(&|i| i % 4 == 0 && i > 0),
            Window::TypedFromLast(n) => each(&|i| !(layers - 1 - i).is_multiple_of(n)),
            Window::TypedPeriod { switched: true, .. } if window.is_none() => vec![false; layers],
            Window::TypedPeriod { n, pattern, .. } => self.periodic(layers, n, pattern)?,
            Window::TypedLastFull => each(&|i| (i + 1) % 6 != 0 && i + 1 < layers),
            Window::TypedFrom(default) => {
                let first = self.f.usize("max_window_layers")?.unwrap_or(default);
                each(&|i| window.is_some() && i >= first)
            }
            Window::TypedNoRope => {
                let on = self.f.bool("use_sliding_window")?.unwrap_or(false) && window.is_some();
                let bare = self.no_rope(layers, &[], window)?;
                each(&|i| on && bare[i])
            }
        })
    }

    /// The layers whose entry in a list is 0; without the list each `n`-th, counted back from the last.
    fn zeros(&self, key: &str, n: usize, layers: usize) -> Result<Vec<bool>> {
        let Some(list) = self.f.array(key)? else {
            return Ok((0..layers).map(|i| (layers - 1 - i).is_multiple_of(n)).collect());
        };
        let numbers: Option<Vec<f64>> = list.iter().map(Value::as_f64).collect();
        match numbers.filter(|numbers| numbers.len() == layers) {
            Some(numbers) => Ok(numbers.iter().map(|number| *number == 0.0).collect()),
            None => Err(Error::model_file(format!(
                "{key} must have a number for each of {layers} layers; it has {} entries",
                list.len()
            ))),
        }
    }

    /// All layers but each `n`-th have the window, if `sliding_window_pattern` does not say otherwise.
    fn periodic(&self, layers: usize, n: usize, pattern: bool) -> Result<Vec<bool>> {
        let key = "sliding_window_pattern";
        let stated = self.f.0.get(key).filter(|_| pattern);
        if let Some(letters) = stated.and_then(Value::as_str) {
            return letters_pattern(key, letters, layers);
        }
        match stated.map_or(Ok(None), |_| self.f.usize(key))?.unwrap_or(n) {
            0 => Err(Error::model_file(format!("{key} is 0; it must be at least 1"))),
            n => Ok((0..layers).map(|i| (i + 1) % n != 0).collect()),
        }
    }

    /// The layers without position encoding; `sliding`: those with a window, of this width.
    pub(super) fn no_rope(
        &self,
        layers: usize,
        sliding: &[bool],
        window: Option<usize>,
    ) -> Result<Vec<bool>> {
        let default = match self.family.no_rope {
            NoRope::Never => return Ok(vec![false; layers]),
            NoRope::Always => return Ok(vec![true; layers]),
            NoRope::Full => return Ok(sliding.iter().map(|sliding| !sliding || window.is_none()).collect()),
            NoRope::FullBesideWindow => {
                return Ok(sliding.iter().map(|sliding| !sliding && window.is_some()).collect());
            }
            NoRope::Zeros(key, n) => return self.zeros(key, n, layers),
            NoRope::Unless(key, value) => return Ok(vec![self.f.str(key)? != Some(value); layers]),
            NoRope::Interval(default) => default,
        };
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

/// A window for each "L" of a text such as "LLLG" that is repeated.
fn letters_pattern(key: &str, letters: &str, layers: usize) -> Result<Vec<bool>> {
    if letters.is_empty() || letters.chars().any(|letter| !matches!(letter, 'L' | 'G')) {
        let letters = quoted(letters);
        return Err(Error::model_file(format!(
            "{key} is {letters}; it must be a number, or letters L and G"
        )));
    }
    Ok(letters.chars().cycle().take(layers).map(|letter| letter == 'L').collect())
}

/// Which layers are of the kind `wanted`; the rest must be "full_attention", or one of the `others`.
pub(super) fn layer_types(
    kinds: &[Value],
    layers: usize,
    wanted: &str,
    others: &[&str],
) -> Result<Vec<bool>> {
    if kinds.len() != layers {
        return Err(Error::model_file(format!(
            "layer_types has {} entries for {layers} layers",
            kinds.len()
        )));
    }
    let is_wanted = |kind: &Value| match kind.as_str() {
        Some("full_attention" | "attention") => Ok(false),
        Some(kind) if kind == wanted => Ok(true),
        Some(kind) if others.contains(&kind) => Ok(false),
        _ => {
            let kind = quoted(&kind.to_string());
            Err(Error::unsupported(format!("layer_types has {kind}, which is not supported")))
        }
    };
    kinds.iter().map(is_wanted).collect()
}
