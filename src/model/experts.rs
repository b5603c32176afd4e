//! A mixture of experts: the router's choice, the experts' matrices, one each, packed from whatever the
//! checkpoint has ([`stored`]), and what every position passes beside them.

mod stored;

use super::build::TensorLoader;
use super::decoder::Branch;
use super::feed_forward::{Dense, DenseParts};
use super::projection::Projector;
use crate::config::{Activation, ExpertsConfig, GateFunction, Presence, Routing, SharedExpert};
use crate::error::{Context, Result};
use crate::kernels::{Expert, Linear, Ops, Rows, Vector};
use crate::weights::WeightTensor;
use crate::weights::names::Part;

pub(super) struct Experts {
    /// `[experts, hidden]`
    router: Linear,
    /// Added to the scores of the experts for the choice.
    correction: Option<Vector>,
    /// What each expert's output is multiplied by.
    scales: Option<Vector>,
    experts: Vec<Expert>,
    activation: Activation,
    routing: Routing,
    latent: Option<Latent>,
    shared: Option<Shared>,
}

/// The projections around experts that read and write rows of another width.
struct Latent {
    into: Linear,
    out: Linear,
}

/// A feed-forward beside the experts.
struct Shared {
    dense: Dense,
    /// `[1, hidden]`: the sigmoid of what it makes is what the output is multiplied by.
    gate: Option<Linear>,
}

impl Experts {
    pub fn load(loader: &TensorLoader, layer: usize, c: &ExpertsConfig) -> Result<Experts> {
        let (hidden, at) = (loader.config.hidden, Some(layer));
        let stated = format!("there are {} experts in layer {layer} (num_experts, expert_count)", c.count);
        let router = loader.linear(Part::Router, layer, [c.count, hidden], c.router_bias).context(stated)?;
        // ERNIE 4.5 has it with a dimension more.
        let name = loader.name(Part::RouterCorrection, at, "bias");
        let wide = loader.weights.shape(&name).is_some_and(|shape| shape.len() == 2);
        let shape: &[usize] = if wide { &[1, c.count] } else { &[c.count] };
        let correction = loader.bias_of(c.routing.correction, Part::RouterCorrection, at, shape)?;
        let correction = correction.map(|bias| loader.ops.vector(&bias, 0.0)).transpose()?;
        let scales = loader.is_stored(c.scales, Part::ExpertScales, at, "scale");
        let scales = scales.then(|| loader.scales(Part::ExpertScales, layer, c.count)).transpose()?;
        let scales = scales.map(|scales| loader.ops.vector(&scales, 0.0)).transpose()?;
        let latent = c.latent.map(|width| Latent::load(loader, layer, width, c.latent_bias)).transpose()?;
        let shared = c.shared.as_ref().map(|shared| Shared::load(loader, layer, shared)).transpose()?;
        // All are found and have the right shape before the first is packed.
        let expert = |tensors: stored::Tensors| {
            let projection = |part, (weight, bias): (WeightTensor, Option<WeightTensor>)| {
                loader.projection(part, weight, bias, None)
            };
            let stored::Tensors { gate, up, down } = tensors;
            Ok(Expert {
                gate: gate.map(|gate| projection(Part::GateExperts, gate)).transpose()?,
                up: projection(Part::UpExperts, up)?,
                down: projection(Part::DownExperts, down)?,
            })
        };
        let experts =
            stored::find(loader, layer, c)?.map(|found| found.and_then(expert)).collect::<Result<_>>()?;
        Ok(Experts {
            router,
            correction,
            scales,
            experts,
            activation: c.activation,
            routing: c.routing,
            latent,
            shared,
        })
    }

    /// The weighted sum of the experts' outputs, and the shared expert's, `[rows, hidden]`.
    pub fn forward(&self, ops: &Ops, x: &Rows) -> Result<Branch<'_>> {
        Ok(Branch { rows: self.mixed(ops, x, x)?, projection: None })
    }

    /// The same; `routed`: what the router reads.
    pub fn mixed(&self, ops: &Ops, x: &Rows, routed: &Rows) -> Result<Rows> {
        let logits = ops.linear(&self.router, routed)?;
        let mut assignments = ops.route(logits, &self.routing, self.correction.as_ref())?;
        if let Some(scales) = &self.scales {
            assignments.scale(scales.values());
        }
        let experts = |x: &Rows| ops.experts(&self.experts, self.activation, x, &assignments);
        let rows = match &self.latent {
            Some(Latent { into, out }) => ops.linear(out, &experts(&ops.linear(into, x)?)?)?,
            None => experts(x)?,
        };
        match &self.shared {
            Some(shared) => shared.add(ops, x, rows),
            None => Ok(rows),
        }
    }

    pub fn projections(&self) -> Vec<&Linear> {
        let experts = self.experts.iter();
        let experts = experts.flat_map(|it| it.gate.iter().chain([&it.up, &it.down]));
        let latent = self.latent.iter().flat_map(|latent| [&latent.into, &latent.out]);
        let shared = self.shared.iter();
        let shared = shared.flat_map(|it| it.dense.projections().into_iter().chain(&it.gate));
        std::iter::once(&self.router).chain(experts).chain(latent).chain(shared).collect()
    }
}

impl Latent {
    fn load(loader: &TensorLoader, layer: usize, width: usize, bias: Presence) -> Result<Latent> {
        let hidden = loader.config.hidden;
        Ok(Latent {
            into: loader.linear(Part::LatentIn, layer, [width, hidden], bias)?,
            out: loader.linear(Part::LatentOut, layer, [hidden, width], bias)?,
        })
    }
}

impl Shared {
    fn load(loader: &TensorLoader, layer: usize, c: &SharedExpert) -> Result<Shared> {
        let (hidden, at) = (loader.config.hidden, Some(layer));
        let gate = loader.is_stored(c.gate, Part::SharedExpertGate, at, "weight").then(|| {
            // GGUF has it as a vector.
            let name = loader.name(Part::SharedExpertGate, at, "weight");
            let vector = loader.weights.shape(&name).is_some_and(|shape| shape.len() == 1);
            let shape: &[usize] = if vector { &[hidden] } else { &[1, hidden] };
            let tensor = loader.tensor(Part::SharedExpertGate, at, shape)?;
            let tensor = WeightTensor { shape: vec![1, hidden], ..tensor };
            loader.projection(Part::SharedExpertGate, tensor, None, None)
        });
        Ok(Shared {
            dense: Dense::load(loader, layer, &c.dense, DenseParts::SHARED)?,
            gate: gate.transpose()?,
        })
    }

    /// `to` and its output.
    fn add(&self, ops: &Ops, x: &Rows, to: Rows) -> Result<Rows> {
        // Adapters have no names for what stands here.
        let project = Projector { ops, layer: 0, deltas: None };
        let Branch { rows, projection } = self.dense.forward(&project, x, None)?;
        match (&self.gate, projection) {
            (None, Some((_, down))) => ops.linear_add(down, &rows, to),
            (gate, projection) => {
                let rows = projection.map_or(Ok(None), |(_, down)| ops.linear(down, &rows).map(Some))?;
                let Some(rows) = rows else { return Ok(to) };
                let rows = match gate {
                    Some(gate) => ops.output_gate(rows, ops.linear(gate, x)?, GateFunction::Sigmoid)?,
                    None => rows,
                };
                ops.add(&rows, 1.0, to)
            }
        }
    }
}
