//! Feed-forwards, as GGUF has them: experts, and the layers before them that have none.

use super::Reader;
use crate::config::family::{DenseLayers, Experts, GgufExperts};
use crate::config::{
    BesideConfig, DenseConfig, ExpertGroups, ExpertStack, ExpertsConfig, FeedForwardConfig, Presence,
    Routing, Score, SharedExpert,
};
use crate::error::{Error, Result};

impl Reader<'_> {
    /// The feed-forward of each layer.
    pub(super) fn feed_forwards(&self, layers: usize) -> Result<Vec<FeedForwardConfig>> {
        let (Some(family), Some(gguf)) = (&self.family.experts, &self.architecture.experts) else {
            return Ok(vec![FeedForwardConfig::Dense(self.dense()?); layers]);
        };
        let experts = self.experts(family, gguf)?;
        if family.beside.is_some() {
            let both = BesideConfig { dense: self.dense()?, experts };
            return Ok(vec![FeedForwardConfig::Beside(both); layers]);
        }
        let experts = FeedForwardConfig::Experts(experts);
        let first = self.dense_layers(family)?;
        let step = match family.dense_layers {
            DenseLayers::Range => self.usize("interleave_moe_layer_step")?.unwrap_or(1),
            _ => 1,
        };
        if step == 0 {
            let key = self.key("interleave_moe_layer_step");
            return Err(Error::model_file(format!("{key} is 0; it must be at least 1")));
        }
        let is_dense = |i: usize| i < first || !(i + 1).is_multiple_of(step);
        let dense = (0..layers).any(is_dense).then(|| self.dense()).transpose()?;
        let of = |i| dense.filter(|_| is_dense(i)).map_or(experts, FeedForwardConfig::Dense);
        Ok((0..layers).map(of).collect())
    }

    /// Layers at the beginning that have no experts.
    fn dense_layers(&self, family: &Experts) -> Result<usize> {
        let key = "leading_dense_block_count";
        let stated = self.usize(key)?;
        match family.dense_layers {
            DenseLayers::Never
            | DenseLayers::SparseStep
            | DenseLayers::WithoutExperts
            | DenseLayers::Blocks => match stated {
                Some(count) if count > 0 => Err(self.other_experts(key)),
                _ => Ok(0),
            },
            _ => Ok(stated.unwrap_or(0)),
        }
    }

    fn experts(&self, family: &Experts, gguf: &GgufExperts) -> Result<ExpertsConfig> {
        let intermediate = match self.usize("expert_feed_forward_length")?.filter(|width| *width > 0) {
            Some(width) => width,
            None => self.require("feed_forward_length")?,
        };
        Ok(ExpertsConfig {
            count: self.require("expert_count")?,
            intermediate,
            activation: self.family.activation,
            gate: family.gate,
            bias: family.bias.in_gguf(),
            router_bias: family.router_bias.in_gguf(),
            routing: self.routing(family, gguf)?,
            stack: ExpertStack::Rows,
            shared: self.shared(family, intermediate)?,
            latent: match family.latent_key {
                Some(_) => self.usize("moe_latent_size")?.filter(|width| *width > 0),
                None => None,
            },
            latent_bias: Presence::Never,
            scales: if family.beside.is_some() { Presence::IfStored } else { Presence::Never },
        })
    }

    fn routing(&self, family: &Experts, gguf: &GgufExperts) -> Result<Routing> {
        let stated = self.metadata.bool(&self.key("expert_weights_norm"))?;
        let scale = self.f32("expert_weights_scale")?.filter(|scale| *scale != 0.0);
        let gating = self.usize("expert_gating_func")?.filter(|function| *function != 0);
        let [softmax, sigmoid, of_chosen] = [1, 2, 3];
        let score = match gating {
            _ if !self.architecture.any_score => family.score,
            Some(1) => Score::Softmax,
            // Files without the key are of DeepSeek V2, or of GLM-4.7-Flash, whose experts have corrections.
            None if !self.has_corrections(family)? => Score::Softmax,
            _ => Score::Sigmoid,
        };
        // A softmax over the chosen is that over all, renormalized.
        let function = match score {
            Score::Softmax => softmax,
            Score::Sigmoid => sigmoid,
            Score::Logit if gating == Some(softmax) => softmax,
            Score::Logit => of_chosen,
        };
        let other = [
            ("expert_gating_func", gating.is_some_and(|stated| stated != function)),
            ("expert_weights_norm", !gguf.keys && stated.is_some_and(|stated| stated != gguf.normalize)),
            ("expert_weights_scale", !gguf.keys && scale.is_some_and(|scale| scale != 1.0)),
        ];
        if let Some((key, _)) = other.iter().find(|(_, other)| *other) {
            return Err(self.other_experts(key));
        }
        let groups = match family.groups {
            Some(_) => self.usize("expert_group_count")?.filter(|count| *count > 1),
            None => None,
        };
        if groups.is_some() && score == Score::Softmax {
            // DeepSeek V2 takes the best of a group for its score.
            return Err(self.other_experts("expert_group_count"));
        }
        let groups = groups.map(|count| {
            let kept = self.usize("expert_group_used_count")?.unwrap_or(count);
            Ok::<_, Error>(ExpertGroups { count, kept })
        });
        let normalize = stated.filter(|_| gguf.keys).unwrap_or(gguf.normalize);
        Ok(Routing {
            top_k: self.require("expert_used_count")?,
            soft_cap: None,
            score,
            correction: match self.architecture.any_score {
                true => Presence::IfStored,
                false => family.correction.in_gguf(),
            },
            groups: groups.transpose()?,
            normalize: (normalize && score != Score::Logit).then_some(family.denominator),
            scale: scale.unwrap_or(1.0),
        })
    }

    /// Whether the first layer with experts has corrections of their scores.
    fn has_corrections(&self, family: &Experts) -> Result<bool> {
        let layer = self.dense_layers(family)?;
        Ok(self.weights.contains(&format!("blk.{layer}.exp_probs_b.bias")))
    }

    /// The expert that every position passes. Its tensors say how wide it is.
    fn shared(&self, family: &Experts, intermediate: usize) -> Result<Option<SharedExpert>> {
        let (count, width) = ("expert_shared_count", "expert_shared_feed_forward_length");
        let (count, width) = (self.usize(count)?, self.usize(width)?);
        let Some(shared) = &family.shared else {
            return match count.or(width) {
                Some(stated) if stated > 0 => Err(self.other_experts("expert_shared_count")),
                _ => Ok(None),
            };
        };
        let width = match width.filter(|width| *width > 0) {
            Some(width) => width,
            None => count.unwrap_or(0).saturating_mul(intermediate),
        };
        let t = &self.family.tensors;
        let dense = DenseConfig {
            intermediate: width,
            activation: self.family.activation,
            stored_xielu: false,
            gate: family.gate,
            bias: t.mlp_bias.bias_in_gguf(),
            fused: Presence::IfStored,
        };
        let gate = if shared.gate { Presence::Always } else { Presence::Never };
        Ok((width > 0).then_some(SharedExpert { dense, gate }))
    }

    fn other_experts(&self, key: &str) -> Error {
        Error::unsupported(format!(
            "{} asks for another mixture of experts than architecture {} has",
            self.key(key),
            self.architecture.architecture
        ))
    }
}
