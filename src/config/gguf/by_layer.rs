//! What differs from layer to layer beyond mixers and windows, as GGUF has it (Gemma 4).

use super::Reader;
use crate::config::{BesideConfig, FeedForwardConfig, LayerConfig, MixerConfig, PerLayerConfig, Presence};
use crate::error::{Error, Result};
use crate::weights::gguf::Value;

impl Reader<'_> {
    /// The layers, with what each has of its own.
    pub(super) fn by_layer(&self, mut layers: Vec<LayerConfig>) -> Result<Vec<LayerConfig>> {
        if self.family.by_layer.is_none() {
            return Ok(layers);
        }
        let count = layers.len();
        let sliding = self.sliding(count)?;
        if sliding.contains(&true) {
            self.require("attention.sliding_window")?;
        }
        let local_dim = self.require("attention.key_length_swa")?;
        if let Some(value) = self.usize("attention.value_length_swa")?.filter(|value| *value != local_dim) {
            return Err(Error::unsupported(format!(
                "keys of {local_dim} and values of {value} dimensions a head (attention.key_length, attention.value_length) are not supported"
            )));
        }
        let kv_heads = self.numbers("attention.head_count_kv", count)?;
        let widths = self.numbers("feed_forward_length", count)?;
        let own = count.saturating_sub(self.usize("attention.shared_kv_layers")?.unwrap_or(0));
        let width = self.require("embedding_length_per_layer_input")?;
        let activation = self.family.activation;
        for (i, layer) in layers.iter_mut().enumerate() {
            if let Some(MixerConfig::Attention(attention)) = &mut layer.mixer {
                attention.head_dim = if sliding[i] { local_dim } else { attention.head_dim };
                attention.kv_heads = kv_heads.as_ref().map_or(attention.kv_heads, |list| list[i]);
                attention.scale = 1.0;
                attention.value_projection = Presence::IfStored;
                attention.value_norm = true;
                attention.shared_kv = (i >= own).then(|| self.source(&sliding, own, i)).transpose()?;
            }
            if let (
                Some(FeedForwardConfig::Dense(dense) | FeedForwardConfig::Beside(BesideConfig { dense, .. })),
                Some(widths),
            ) = (&mut layer.ffn, &widths)
            {
                dense.intermediate = widths[i];
            }
            layer.per_layer = (width > 0).then_some(PerLayerConfig { width, activation });
            layer.output_scale = Presence::IfStored;
        }
        Ok(layers)
    }

    /// The last of the first `own` layers that is of the same kind as layer `i`.
    fn source(&self, sliding: &[bool], own: usize, i: usize) -> Result<usize> {
        let source = sliding[..own].iter().rposition(|kind| *kind == sliding[i]);
        source.ok_or_else(|| {
            Error::model_file(format!(
                "{} leaves layer {i} no earlier layer of its kind whose keys and values it could use",
                self.key("attention.shared_kv_layers")
            ))
        })
    }

    /// A number for each layer, where the file gives one a layer.
    pub(super) fn numbers(&self, name: &str, layers: usize) -> Result<Option<Vec<usize>>> {
        let key = self.key(name);
        let Some(Value::Array(_)) = self.metadata.get(&key) else { return Ok(None) };
        let list = self.metadata.u64s(&key)?.unwrap_or_default();
        match list.len() == layers {
            true => Ok(Some(list.iter().map(|n| usize::try_from(*n).unwrap_or(usize::MAX)).collect())),
            false => Err(Error::model_file(format!(
                "{key} has {} entries for {layers} layers (block_count)",
                list.len()
            ))),
        }
    }
}
