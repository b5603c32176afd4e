//! A dense feed-forward and a mixture of experts beside each other (Gemma 4 26B), each between norms of its
//! own. The router reads the residual stream itself, with another norm.

use super::build::TensorLoader;
use super::decoder::Branch;
use super::experts::Experts;
use super::feed_forward::{Dense, DenseParts};
use super::projection::{Named, Projector};
use crate::config::BesideConfig;
use crate::error::Result;
use crate::kernels::{Norm, Rows};
use crate::weights::WeightTensor;
use crate::weights::names::Part;

pub(super) struct Beside {
    dense: Dense,
    after_dense: Norm,
    before_experts: Norm,
    experts: Experts,
    after_experts: Norm,
    /// Of what the router reads.
    router: Norm,
}

impl Beside {
    pub fn load(loader: &TensorLoader, layer: usize, c: &BesideConfig) -> Result<Beside> {
        let hidden = loader.config.hidden;
        let norm = |part| loader.norm(part, Some(layer), hidden);
        // The normed stream is multiplied by a stored vector and by the root of its width's inverse.
        let scale = loader.scales(Part::RouterScale, layer, hidden)?;
        let root = (hidden as f32).powf(-0.5);
        let scales = scale.to_f32().iter().map(|scale| scale * root).collect();
        let weight = loader.ops.vector(&WeightTensor::floats(&scale.name, vec![hidden], scales), 0.0)?;
        Ok(Beside {
            dense: Dense::load(loader, layer, &c.dense, DenseParts::MLP)?,
            after_dense: norm(Part::DensePostNorm)?,
            before_experts: norm(Part::ExpertsNorm)?,
            experts: Experts::load(loader, layer, &c.experts)?,
            after_experts: norm(Part::ExpertsPostNorm)?,
            router: Norm { weight, ..loader.plain_norm(hidden)? },
        })
    }

    /// The sum of both, `[rows, hidden]`. `x`: the residual stream; `normed`: what the dense one reads.
    pub fn forward(
        &self,
        project: &Projector<'_>,
        normed: &Rows,
        x: &Rows,
        rows: Option<&[u32]>,
    ) -> Result<Branch<'_>> {
        let ops = project.ops;
        let Branch { rows: inner, projection } = self.dense.forward(project, normed, rows)?;
        let inner = projection
            .map_or(Ok(None), |down| project.linear(down, &inner, rows).map(Some))?
            .unwrap_or(inner);
        let dense = ops.norm(&self.after_dense, &inner)?;
        let read = ops.norm(&self.before_experts, x)?;
        let experts = self.experts.mixed(project, &read, &ops.norm(&self.router, x)?, rows)?;
        Ok(Branch { rows: ops.norm_add(&self.after_experts, &experts, dense)?, projection: None })
    }

    pub fn projections(&self) -> Vec<Named<'_>> {
        [self.dense.projections(), self.experts.projections()].concat()
    }
}
