//! Feed-forwards: which layers have experts, and how these are chosen.

use serde_json::Value;

use super::Reader;
use super::recurrent::BlockKind;
use crate::config::family::{DenseLayers, Experts, Shared, SharedWidth};
use crate::config::{
    BesideConfig, Denominator, DenseConfig, ExpertGroups, ExpertsConfig, FeedForwardConfig, Presence,
    Routing, SharedExpert,
};
use crate::error::{Error, Result, quoted};

impl Reader<'_> {
    /// The feed-forward of each layer.
    pub(super) fn feed_forwards(&self, layers: usize) -> Result<Vec<FeedForwardConfig>> {
        let dense = FeedForwardConfig::Dense(self.dense()?);
        let Some(family) = &self.family.experts else { return Ok(vec![dense; layers]) };
        if let Some(key) = family.beside
            && !self.f.bool(key)?.unwrap_or(false)
        {
            return Ok(vec![dense; layers]);
        }
        let count = self.size(family.count_key, family.count)?;
        let is_dense = self.dense_layers(family, layers, count)?;
        if count == 0 && is_dense.iter().all(|is_dense| *is_dense) {
            return Ok(vec![dense; layers]);
        }
        let experts = self.experts(family, count)?;
        if family.beside.is_some() {
            let both = BesideConfig { dense: self.dense()?, experts };
            return Ok(vec![FeedForwardConfig::Beside(both); layers]);
        }
        let experts = FeedForwardConfig::Experts(experts);
        Ok(is_dense.into_iter().map(|is_dense| if is_dense { dense } else { experts }).collect())
    }

    fn experts(&self, family: &Experts, count: usize) -> Result<ExpertsConfig> {
        let (key, default) = family.width.unwrap_or(("intermediate_size", self.family.sizes.intermediate));
        let intermediate = self.size(key, default)?;
        Ok(ExpertsConfig {
            count,
            intermediate,
            activation: self.activation()?,
            gate: family.gate,
            bias: self.has(family.bias)?,
            router_bias: self.has(family.router_bias)?,
            routing: self.routing(family)?,
            stack: family.stack,
            shared: family.shared.as_ref().map_or(Ok(None), |shared| self.shared(shared, intermediate))?,
            latent: family.latent_key.map(|key| self.f.usize(key)).transpose()?.flatten(),
            latent_bias: self.has(self.family.tensors.mlp_bias)?,
            scales: if family.beside.is_some() { Presence::Always } else { Presence::Never },
        })
    }

    fn routing(&self, family: &Experts) -> Result<Routing> {
        let number = |key: Option<(&str, f64)>, absent: f32| match key {
            Some((key, default)) => Ok(self.f.f64(key)?.unwrap_or(default) as f32),
            None => Ok::<_, Error>(absent),
        };
        let at_least = number(family.at_least_key, family.denominator.at_least)?;
        let normalized = self.has(family.normalize)? == Presence::Always;
        let groups = family.groups.map(|(count, kept)| {
            Ok::<_, Error>(ExpertGroups {
                count: self.size("n_group", count)?,
                kept: self.size("topk_group", kept)?,
            })
        });
        let cap = family.cap_key.map(|key| self.f.f64(key)).transpose()?.flatten();
        Ok(Routing {
            top_k: self.size(family.top_k_key, family.top_k)?,
            soft_cap: cap.filter(|cap| *cap != 0.0).map(|cap| cap as f32),
            score: family.score,
            correction: self.has(family.correction)?,
            // One group is none.
            groups: groups.transpose()?.filter(|groups: &ExpertGroups| groups.count != 1),
            normalize: normalized.then_some(Denominator { at_least, ..family.denominator }),
            scale: number(family.scale_key, 1.0)?,
        })
    }

    /// The expert that every position passes, beside those that are `intermediate` wide.
    fn shared(&self, family: &Shared, intermediate: usize) -> Result<Option<SharedExpert>> {
        let width = match family.width {
            SharedWidth::Key(key, default) => self.size(key, default)?,
            SharedWidth::Experts(key, default) => self.size(key, default)?.saturating_mul(intermediate),
        };
        let fused = if family.fused { Presence::Always } else { Presence::Never };
        let dense = DenseConfig { intermediate: width, fused, ..self.dense()? };
        let gate = if family.gate { Presence::Always } else { Presence::Never };
        Ok((width > 0).then_some(SharedExpert { dense, gate }))
    }

    /// Which layers have no experts.
    fn dense_layers(&self, family: &Experts, layers: usize, count: usize) -> Result<Vec<bool>> {
        let each = |is_dense: &dyn Fn(usize) -> bool| (0..layers).map(is_dense).collect();
        match family.dense_layers {
            DenseLayers::Never => Ok(vec![false; layers]),
            DenseLayers::WithoutExperts => Ok(vec![count == 0; layers]),
            DenseLayers::Blocks => {
                Ok(self.blocks()?.iter().map(|block| *block == BlockKind::Dense).collect())
            }
            DenseLayers::First(key, default) => {
                let first = self.size(key, default)?;
                Ok(each(&|i| i < first))
            }
            DenseLayers::Typed(first) => match self.f.array("mlp_layer_types")? {
                Some(kinds) => mlp_layer_types(kinds, layers),
                None => Ok(each(&|i| i < first)),
            },
            DenseLayers::SparseStep => {
                let step = self.step("decoder_sparse_step")?;
                let only = self.f.array("mlp_only_layers")?.map_or(&[][..], |list| list.as_slice());
                let listed = |i: usize| only.iter().any(|n| n.as_u64() == Some(i as u64));
                Ok(each(&|i| count == 0 || !(i + 1).is_multiple_of(step) || listed(i)))
            }
            DenseLayers::Range => {
                let (step, first) =
                    (self.step("moe_layer_interval")?, self.size("moe_layer_start_index", 1)?);
                let key = "moe_layer_end_index";
                let last = match self.f.0.get(key).and_then(Value::as_i64) {
                    Some(-1) => usize::MAX,
                    _ => self.f.usize(key)?.unwrap_or(usize::MAX),
                };
                Ok(each(&|i| !((i + 1).is_multiple_of(step) && (first..=last).contains(&i))))
            }
        }
    }

    fn step(&self, key: &str) -> Result<usize> {
        match self.size(key, 1)? {
            0 => Err(Error::model_file(format!("{key} is 0; it must be at least 1"))),
            step => Ok(step),
        }
    }
}

/// "dense" or "sparse" for each layer.
fn mlp_layer_types(kinds: &[Value], layers: usize) -> Result<Vec<bool>> {
    if kinds.len() != layers {
        return Err(Error::model_file(format!(
            "mlp_layer_types has {} entries for {layers} layers",
            kinds.len()
        )));
    }
    let is_dense = |kind: &Value| match kind.as_str() {
        Some("dense") => Ok(true),
        Some("sparse") => Ok(false),
        _ => {
            let kind = quoted(&kind.to_string());
            Err(Error::unsupported(format!("mlp_layer_types has {kind}, which is not supported")))
        }
    };
    kinds.iter().map(is_dense).collect()
}
