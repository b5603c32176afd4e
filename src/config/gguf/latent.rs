//! Latent attention, as GGUF has it. Newer files say the sizes that the heads have in the cache, and those of
//! the model's own heads by keys of their own; older ones the latter alone.

use super::Reader;
use crate::config::hf::LATENT_EPS;
use crate::config::rope::yarn_attention;
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
        let latent = LatentConfig {
            heads: self.require("attention.head_count")?,
            q_rank: self.usize("attention.q_lora_rank")?.filter(|rank| *rank > 0),
            rank: self.require("attention.kv_lora_rank")?,
            nope_dim,
            rope_dim,
            value_dim: either("attention.value_length_mla", "attention.value_length")?,
            scale: ((head as f64).powf(-0.5) * self.sharpened()?) as f32,
            rope: 0,
            interleaved: true,
            bias: Presence::IfStored,
            eps: LATENT_EPS,
        };
        layers.iter_mut().for_each(|layer| layer.mixer = Some(MixerConfig::Latent(latent)));
        Ok(layers)
    }

    /// What YaRN multiplies the scores by. The key is a tenth of `mscale_all_dim` in this architecture alone,
    /// and the converter writes none for `mscale`, which llama.cpp takes to be the same
    /// ([`Reader::yarn_attention`]).
    fn sharpened(&self) -> Result<f64> {
        let key = "rope.scaling.yarn_log_multiplier";
        let (all, factor) = (self.f32(key)?.unwrap_or(0.0), self.f32("rope.scaling.factor")?);
        let Some(factor) = factor.filter(|factor| all != 0.0 && *factor != 1.0) else { return Ok(1.0) };
        match self.metadata.str(&self.key("rope.scaling.type"))? {
            Some("yarn") => match yarn_attention(factor.into(), 10.0 * f64::from(all)).powi(2) {
                scale if scale > 0.0 && scale < f64::from(f32::MAX) => Ok(scale),
                _ => Err(Error::model_file(format!(
                    "{} {factor} and {} {all} give no scale of the scores",
                    self.key("rope.scaling.factor"),
                    self.key(key)
                ))),
            },
            _ => Err(Error::unsupported(format!(
                "{} without a rope.scaling.type of yarn is not supported",
                self.key(key)
            ))),
        }
    }
}
