//! Rotations, as GGUF has them: keys, and tensors of divisors.

use super::Reader;
use crate::config::rope::{Rope, Scaling, yarn_attention};
use crate::error::{Error, Result, quoted};

impl Reader<'_> {
    pub(super) fn ropes(&self, head_dim: usize, context: usize) -> Result<Vec<Rope>> {
        let theta = self.f32("rope.freq_base")?.unwrap_or(10_000.0) as f64;
        let dims = self.usize("rope.dimension_count")?.unwrap_or(head_dim);
        let mut ropes = vec![Rope { theta, dims, scaling: self.scaling(context)? }];
        if let Some(local) = self.architecture.local_theta {
            let local = self.f32("rope.freq_base_swa")?.or(local).map_or(theta, f64::from);
            let dims = self.usize("rope.dimension_count_swa")?.unwrap_or(dims);
            ropes.push(Rope::plain(local, dims));
        }
        Ok(ropes)
    }

    pub(super) fn scaling(&self, context: usize) -> Result<Scaling> {
        if self.weights.contains("rope_freqs.weight") {
            return Ok(Scaling::Divisors(self.divisors("rope_freqs.weight")?));
        }
        let original = self.usize("rope.scaling.original_context_length")?.unwrap_or(context);
        let attention = self.f32("rope.scaling.attn_factor")?.unwrap_or(1.0) as f64;
        if self.weights.contains("rope_factors_long.weight") {
            return Ok(Scaling::LongRope {
                short: self.divisors("rope_factors_short.weight")?,
                long: self.divisors("rope_factors_long.weight")?,
                original,
                attention,
            });
        }
        let factor = match self.f32("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.f32("rope.scale_linear")?,
        };
        let kind = self.metadata.str(&self.key("rope.scaling.type"))?;
        match (kind, factor) {
            (None, Some(factor)) | (Some("linear"), Some(factor)) if factor != 1.0 && factor != 0.0 => {
                Ok(Scaling::Linear { factor: factor as f64 })
            }
            (None | Some("none" | "linear"), _) => Ok(Scaling::None),
            (Some("yarn"), Some(factor)) => Ok(Scaling::Yarn {
                factor: factor as f64,
                original: original as f64,
                beta_fast: self.f32("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0) as f64,
                beta_slow: self.f32("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0) as f64,
                attention: self.yarn_attention(factor as f64)? * attention,
                truncate: self.architecture.yarn_truncates,
            }),
            (Some("yarn"), None) => Err(self.missing("rope.scaling.factor")),
            (Some(other), _) => {
                let (key, other) = (self.key("rope.scaling.type"), quoted(other));
                Err(Error::unsupported(format!("{key} {other} is not supported")))
            }
        }
    }

    /// llama.cpp takes `mscale` for 1, and reads `mscale_all_dim` for this architecture (Ministral 3); with
    /// latent attention it takes both to be the same, so that they cancel here.
    fn yarn_attention(&self, factor: f64) -> Result<f64> {
        let all = self.f32("rope.scaling.yarn_log_multiplier")?.filter(|all| *all != 0.0);
        let mscale = yarn_attention(factor, 1.0);
        Ok(match all {
            Some(_) if self.family.latent.is_some() => 1.0,
            Some(all) if self.family.query_scale => mscale / yarn_attention(factor, all.into()),
            _ => mscale,
        })
    }

    pub(super) fn divisors(&self, name: &str) -> Result<Vec<f32>> {
        let tensor = self.weights.get(name)?;
        if tensor.shape.len() != 1 {
            return Err(Error::model_file(format!("the tensor {name} must be a vector")));
        }
        Ok(tensor.to_f32())
    }
}
