//! What differs from layer to layer beyond mixers and windows: heads of the layers that see everything, keys
//! and values that layers share, per-layer embeddings (Gemma 4).
//!
//! Published files say the heads by two keys, `global_head_dim` and `num_global_key_value_heads`;
//! transformers 5.24 saves them as `per_layer_config`, an object a layer.

use serde_json::Value;

use super::{Object, Reader};
use crate::config::family::ByLayer;
use crate::config::fields::Fields;
use crate::config::{
    AttentionConfig, BesideConfig, FeedForwardConfig, LayerConfig, MixerConfig, PerLayerConfig, Presence,
};
use crate::error::{Context, Error, Result, quoted};

/// The keys of a layer's own object that are read.
const HEAD_DIM: &str = "head_dim";
const KV_HEADS: &str = "num_key_value_heads";

/// Head size and key heads.
type Heads = (usize, usize);

impl Reader<'_> {
    /// `per_layer_config` makes any model's layers differ, and is read for families that do.
    pub(super) fn refuse_own_layers(&self) -> Result<()> {
        let empty = |value: &Value| value.as_object().is_some_and(Object::is_empty);
        match self.f.0.get("per_layer_config") {
            None | Some(Value::Null) => Ok(()),
            Some(value) if empty(value) || self.family.by_layer.is_some() => Ok(()),
            Some(_) => Err(Error::unsupported(format!(
                "per_layer_config gives layers of a {} settings of their own, which is not supported",
                self.family.name()
            ))),
        }
    }

    /// The head size of the layers that see everything, and of those with a window.
    pub(super) fn head_dims(&self, attention: &AttentionConfig, layers: usize) -> Result<[usize; 2]> {
        let Some(by_layer) = &self.family.by_layer else {
            return Ok([self.rope_dim()?.unwrap_or(attention.head_dim); 2]);
        };
        let sliding = self.sliding(layers, self.window_size()?)?;
        let heads = self.heads(by_layer, attention, &sliding)?;
        let of_kind = |kind: bool| {
            let mut dims = sliding.iter().zip(&heads).filter(|(sliding, _)| **sliding == kind);
            dims.next().map_or(attention.head_dim, |(_, (head_dim, _))| *head_dim)
        };
        let dims = [of_kind(false), of_kind(true)];
        let other = (0..layers).find(|&i| heads[i].0 != dims[usize::from(sliding[i])]);
        match other {
            None => Ok(dims),
            Some(i) => Err(Error::unsupported(format!(
                "per_layer_config gives layer {i} another head size than other layers of its layer_types, which \
                 is not supported"
            ))),
        }
    }

    /// The layers, with what each has of its own.
    pub(super) fn by_layer(
        &self,
        attention: &AttentionConfig,
        mut layers: Vec<LayerConfig>,
    ) -> Result<Vec<LayerConfig>> {
        let Some(by_layer) = &self.family.by_layer else { return Ok(layers) };
        let sliding = self.sliding(layers.len(), self.window_size()?)?;
        let heads = self.heads(by_layer, attention, &sliding)?;
        let shared = self.shared_kv(&sliding)?;
        let wide = self.f.bool("use_double_wide_mlp")?.unwrap_or(false);
        let keys_are_values = self.f.bool("attention_k_eq_v")?.unwrap_or(false);
        let per_layer = self.per_layer(by_layer)?;
        for (i, layer) in layers.iter_mut().enumerate() {
            if let Some(MixerConfig::Attention(attention)) = &mut layer.mixer {
                (attention.head_dim, attention.kv_heads) = heads[i];
                attention.scale = 1.0;
                attention.value_norm = true;
                attention.shared_kv = shared[i];
                if keys_are_values && !sliding[i] {
                    attention.value_projection = Presence::Never;
                }
            }
            if let (
                Some(FeedForwardConfig::Dense(dense) | FeedForwardConfig::Beside(BesideConfig { dense, .. })),
                true,
            ) = (&mut layer.ffn, wide && shared[i].is_some())
            {
                dense.intermediate = dense.intermediate.saturating_mul(2);
            }
            layer.per_layer = per_layer;
            layer.output_scale = Presence::IfStored;
        }
        Ok(layers)
    }

    fn heads(&self, by_layer: &ByLayer, a: &AttentionConfig, sliding: &[bool]) -> Result<Vec<Heads>> {
        let plain = (a.head_dim, a.kv_heads);
        let key = "per_layer_config";
        if self.f.states(key) {
            let mut heads = vec![plain; sliding.len()];
            for (number, own) in self.f.object(key)?.into_iter().flatten() {
                let place = number.parse().ok().and_then(|number: usize| heads.get_mut(number));
                let place = place.ok_or_else(|| {
                    Error::model_file(format!("{key} has {} for {} layers", quoted(number), sliding.len()))
                })?;
                *place = own_heads(own, plain).context(quoted(number)).context(key)?;
            }
            return Ok(heads);
        }
        let kv_heads = match self.f.bool("attention_k_eq_v")?.unwrap_or(false) {
            true => self.f.usize("num_global_key_value_heads")?.unwrap_or(a.kv_heads),
            false => a.kv_heads,
        };
        let full = (self.size("global_head_dim", by_layer.global_head_dim)?, kv_heads);
        Ok(sliding.iter().map(|sliding| if *sliding { plain } else { full }).collect())
    }

    /// For each layer the one whose keys and values it uses: the last `num_kv_shared_layers` use those of the
    /// last layer of the same type that has some.
    fn shared_kv(&self, sliding: &[bool]) -> Result<Vec<Option<usize>>> {
        let key = "num_kv_shared_layers";
        let own = sliding.len().saturating_sub(self.size(key, 0)?);
        let source = |i: usize| sliding[..own].iter().rposition(|kind| *kind == sliding[i]);
        let shared = |i: usize| match source(i) {
            _ if i < own => Ok(None),
            Some(source) => Ok(Some(source)),
            None => Err(Error::model_file(format!(
                "{key} leaves layer {i} no earlier layer of its type whose keys and values it could use"
            ))),
        };
        (0..sliding.len()).map(shared).collect()
    }

    fn per_layer(&self, by_layer: &ByLayer) -> Result<Option<PerLayerConfig>> {
        let Some(default) = by_layer.per_layer_width else { return Ok(None) };
        let key = "hidden_size_per_layer_input";
        let width = self.stated_or(key, self.f.usize(key)?, Some(default)).filter(|width| *width > 0);
        let Some(width) = width else { return Ok(None) };
        let key = "vocab_size_per_layer_input";
        let (rows, vocab) = (self.size(key, 262_144)?, self.size("vocab_size", self.family.sizes.vocab)?);
        match rows == vocab {
            true => Ok(Some(PerLayerConfig { width, activation: self.activation()? })),
            false => Err(Error::unsupported(format!(
                "{key} is {rows} and vocab_size {vocab}; other numbers of tokens are not supported"
            ))),
        }
    }
}

fn own_heads(own: &Value, (head_dim, kv_heads): Heads) -> Result<Heads> {
    let Some(own) = own.as_object() else { return Err(Error::model_file("must be an object")) };
    let empty = |value: &Value| value.is_null() || value.as_array().is_some_and(Vec::is_empty);
    let known =
        |key: &str, value: &Value| key == HEAD_DIM || key == KV_HEADS || key == "skip" && empty(value);
    if let Some((key, _)) = own.iter().find(|(key, value)| !known(key, value)) {
        return Err(Error::unsupported(format!("{} in a layer of its own is not supported", quoted(key))));
    }
    let own = Fields(own);
    Ok((own.usize(HEAD_DIM)?.unwrap_or(head_dim), own.usize(KV_HEADS)?.unwrap_or(kv_heads)))
}
