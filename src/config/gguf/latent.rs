//! Latent attention, as GGUF has it. Newer files say the sizes that the heads have in the cache, and those of
//! the model's own heads by keys of their own; older ones the latter alone.

use super::Reader;
use crate::config::hf::LATENT_EPS;
use crate::config::{LatentConfig, LayerConfig, MixerConfig, Presence};
use crate::error::{Error, Result};

impl Reader<'_> {
    /// The layers with latent attention, if the family has it.
    pub(super) fn with_latents(&self, mut layers: Vec<LayerConfig>) -> Result<Vec<LayerConfig>> {
        if self.family.latent.is_none() {
            return Ok(layers);
        }
        let either = |own: &str, older: &str| match self.usize(own)? {
            Some(width) => Ok(width),
            None => self.require(older),
        };
        let head = either("attention.key_length_mla", "attention.key_length")?;
        let rope_dim = self.require("rope.dimension_count")?;
        let nope_dim = head.checked_sub(rope_dim).ok_or_else(|| {
            let key = self.key("rope.dimension_count");
            Error::model_file(format!("{key} is {rope_dim}, and heads have {head} dimensions"))
        })?;
        if self.f32("rope.scaling.yarn_log_multiplier")?.is_some_and(|all| all != 0.0) {
            let key = self.key("rope.scaling.yarn_log_multiplier");
            return Err(Error::unsupported(format!("{key} with latent attention is not supported")));
        }
        let latent = LatentConfig {
            heads: self.require("attention.head_count")?,
            q_rank: self.usize("attention.q_lora_rank")?.filter(|rank| *rank > 0),
            rank: self.require("attention.kv_lora_rank")?,
            nope_dim,
            rope_dim,
            value_dim: either("attention.value_length_mla", "attention.value_length")?,
            scale: (head as f64).powf(-0.5) as f32,
            rope: 0,
            interleaved: true,
            bias: Presence::IfStored,
            eps: LATENT_EPS,
        };
        layers.iter_mut().for_each(|layer| layer.mixer = Some(MixerConfig::Latent(latent)));
        Ok(layers)
    }
}
