//! Latent attention: the widths of its latents and of the parts of a head.

use super::Reader;
use crate::config::fields::Fields;
use crate::config::rope::yarn_attention;
use crate::config::{LatentConfig, LayerConfig, MixerConfig};
use crate::error::{Error, Result, quoted};

/// The epsilon of the norms of latents, whatever the file says of the others.
pub(in crate::config) const EPS: f64 = 1e-6;

impl Reader<'_> {
    /// The layers with latent attention, if the family has it.
    pub(super) fn with_latents(&self, mut layers: Vec<LayerConfig>) -> Result<Vec<LayerConfig>> {
        let Some(defaults) = &self.family.latent else { return Ok(layers) };
        let (nope_dim, rope_dim) =
            (self.size("qk_nope_head_dim", defaults.nope_dim)?, self.rope_dim()?.unwrap_or(0));
        self.refuse_other_choices()?;
        let q_rank = self.stated_or("q_lora_rank", self.f.usize("q_lora_rank")?, defaults.q_rank);
        let interleaved = match defaults.interleave_key {
            Some(key) => self.f.bool(key)?.unwrap_or(true),
            None => true,
        };
        let heads = self.size("num_attention_heads", self.family.sizes.heads)?;
        let kv_heads = self.f.usize("num_key_value_heads")?;
        let kv_heads = self.stated_or("num_key_value_heads", kv_heads, self.family.sizes.kv_heads);
        if let Some(kv_heads) = kv_heads.filter(|kv_heads| heads.checked_div(*kv_heads) != Some(1)) {
            return Err(Error::model_file(format!(
                "num_key_value_heads is {kv_heads}, and each of {heads} heads (num_attention_heads) has keys and \
                 values of its own where these are made of a latent"
            )));
        }
        let latent = LatentConfig {
            heads,
            q_rank,
            rank: self.size("kv_lora_rank", defaults.rank)?,
            nope_dim,
            rope_dim,
            value_dim: self.size("v_head_dim", defaults.value_dim)?,
            scale: ((nope_dim + rope_dim) as f64).powf(-0.5) as f32 * self.sharpened()?,
            rope: 0,
            interleaved,
            bias: self.has(self.family.tensors.o_bias)?,
            eps: EPS,
        };
        layers.iter_mut().for_each(|layer| layer.mixer = Some(MixerConfig::Latent(latent)));
        Ok(layers)
    }

    /// Of the ways that DeepSeek V2's class has to choose experts one is run: the greatest of all. To choose
    /// among those of the best groups is the same where there is one group.
    fn refuse_other_choices(&self) -> Result<()> {
        let method = self.f.str("topk_method")?.unwrap_or("greedy");
        let grouped = self.family.experts.as_ref().is_some_and(|experts| experts.groups.is_some());
        let one_group = method == "group_limited_greedy" && self.f.usize("n_group")? == Some(1);
        match grouped || one_group || method == "greedy" {
            true => Ok(()),
            false => Err(Error::unsupported(format!("topk_method {} is not supported", quoted(method)))),
        }
    }

    /// Dimensions of a head that turn.
    pub(super) fn rope_dim(&self) -> Result<Option<usize>> {
        let Some(defaults) = &self.family.latent else { return Ok(None) };
        self.size("qk_rope_head_dim", defaults.rope_dim).map(Some)
    }

    /// What a stretch with `mscale_all_dim` multiplies the scores by (YaRN).
    fn sharpened(&self) -> Result<f32> {
        let scaling = self.f.object("rope_scaling")?.filter(|object| !object.is_empty());
        let Some(object) = scaling.or(self.f.object("rope_parameters")?) else { return Ok(1.0) };
        let f = Fields(object);
        let kind = f.str("rope_type")?.or(f.str("type")?).unwrap_or("default");
        match (f.f64("mscale_all_dim")?.filter(|all| *all != 0.0), f.f64("factor")?) {
            (Some(all), Some(factor)) if kind != "default" => Ok(yarn_attention(factor, all).powi(2) as f32),
            _ => Ok(1.0),
        }
    }
}
