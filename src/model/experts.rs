//! A mixture of experts: the router's choice, and the experts' matrices, one each, packed from whatever the
//! checkpoint has: one tensor an expert, or all experts of a layer in one.

use super::build::TensorLoader;
use super::decoder::Branch;
use crate::config::{Activation, ExpertsConfig, Presence, Routing};
use crate::error::{Context, Error, Result};
use crate::kernels::{Expert, Linear, Ops, Rows};
use crate::weights::WeightTensor;
use crate::weights::names::Part;

pub(super) struct Experts {
    /// `[experts, hidden]`
    router: Linear,
    experts: Vec<Expert>,
    activation: Activation,
    routing: Routing,
}

impl Experts {
    pub fn load(loader: &TensorLoader, layer: usize, c: &ExpertsConfig) -> Result<Experts> {
        let hidden = loader.config.hidden;
        let stated = format!("there are {} experts in layer {layer} (num_experts, expert_count)", c.count);
        let router =
            loader.linear(Part::Router, layer, [c.count, hidden], Presence::Never).context(stated)?;
        // All are found and have the right shape before the first is packed.
        let tensors = tensors(loader, layer, c)?;
        let expert = |[gate, up, down]: [WeightTensor; 3]| {
            Ok(Expert {
                gate: loader.projection(Part::GateExperts, gate, None, None)?,
                up: loader.projection(Part::UpExperts, up, None, None)?,
                down: loader.projection(Part::DownExperts, down, None, None)?,
            })
        };
        let experts = tensors.into_iter().map(expert).collect::<Result<_>>()?;
        Ok(Experts { router, experts, activation: c.activation, routing: c.routing })
    }

    /// The weighted sum of the experts' outputs, `[rows, hidden]`.
    pub fn forward(&self, ops: &Ops, x: &Rows) -> Result<Branch<'_>> {
        let assignments = ops.route(ops.linear(&self.router, x)?, &self.routing)?;
        let rows = ops.experts(&self.experts, self.activation, x, &assignments)?;
        Ok(Branch { rows, projection: None })
    }

    pub fn projections(&self) -> Vec<&Linear> {
        let experts = self.experts.iter().flat_map(|expert| [&expert.gate, &expert.up, &expert.down]);
        std::iter::once(&self.router).chain(experts).collect()
    }
}

/// gate, up and down of each expert.
fn tensors(loader: &TensorLoader, layer: usize, c: &ExpertsConfig) -> Result<Vec<[WeightTensor; 3]>> {
    let (hidden, inner, at) = (loader.config.hidden, c.intermediate, Some(layer));
    let stored = |part| loader.has(part, at);
    if ![Part::GateUpExperts, Part::GateExperts, Part::DownExperts].into_iter().any(stored) {
        let one = |part, rows, columns| loader.tensor(part, at, &[rows, columns]);
        let expert = |e| {
            Ok([
                one(Part::ExpertGate(e), inner, hidden)?,
                one(Part::ExpertUp(e), inner, hidden)?,
                one(Part::ExpertDown(e), hidden, inner)?,
            ])
        };
        refuse_more(loader, layer, c.count)?;
        return (0..c.count).map(expert).collect();
    }
    let stacked = |part, rows, columns| loader.tensor(part, at, &[c.count, rows, columns]);
    let down = stacked(Part::DownExperts, hidden, inner)?;
    let ([gate, up], [first, second]) = match stored(Part::GateUpExperts) {
        true => {
            let both = stacked(Part::GateUpExperts, 2 * inner, hidden)?;
            ([both.clone(), both], [0, inner])
        }
        false => {
            ([stacked(Part::GateExperts, inner, hidden)?, stacked(Part::UpExperts, inner, hidden)?], [0, 0])
        }
    };
    let cut = |stack: &WeightTensor, e: usize, from: usize, rows: usize| {
        let (height, columns) = (stack.shape[1], stack.shape[2]);
        let flat = WeightTensor { shape: vec![c.count * height, columns], ..stack.clone() };
        let start = e * height + from;
        loader.slice_rows(&flat, start..start + rows)
    };
    let expert =
        |e| Ok([cut(&gate, e, first, inner)?, cut(&up, e, second, inner)?, cut(&down, e, 0, hidden)?]);
    (0..c.count).map(expert).collect()
}

/// A file with more experts than its configuration says would be another model.
fn refuse_more(loader: &TensorLoader, layer: usize, count: usize) -> Result<()> {
    match loader.has(Part::ExpertGate(count), Some(layer)) {
        false => Ok(()),
        true => Err(Error::model_file(format!(
            "{}: layer {layer} has the tensor {}, and the configuration says that there are {count} experts \
             (num_experts, num_local_experts, expert_count)",
            loader.weights.source().display(),
            loader.name(Part::ExpertGate(count), Some(layer), "weight")
        ))),
    }
}
