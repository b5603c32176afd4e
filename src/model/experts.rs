//! A mixture of experts: the router's choice, the experts' matrices, one each, packed from whatever the
//! checkpoint has ([`stored`]), and what every position passes beside them.

mod stored;

use super::build::{Pending, TensorLoader};
use super::decoder::Branch;
use super::feed_forward::{Dense, DenseParts};
use super::projection::{Named, Projector};
use crate::config::{Activation, ExpertsConfig, GateFunction, Presence, Routing, SharedExpert};
use crate::error::{Context, Result};
use crate::kernels::{Assignments, Expert, ExpertTerms, Linear, Rows, Term, Vector};
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
        let expert = |(index, tensors): (usize, Result<stored::Tensors>)| {
            let projection = |part, (weight, bias): (Pending, Option<WeightTensor>)| {
                let scale = loader.expert_scale(part, &weight, (index, c.count), scales.is_some())?;
                loader.scaled(part, weight, bias, None, scale)
            };
            let stored::Tensors { gate, up, down } = tensors?;
            Ok(Expert {
                gate: gate.map(|gate| projection(Part::GateExperts, gate)).transpose()?,
                up: projection(Part::UpExperts, up)?,
                down: projection(Part::DownExperts, down)?,
            })
        };
        let experts = stored::find(loader, layer, c)?.enumerate().map(expert).collect::<Result<_>>()?;
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
    /// `rows`: which rows of the step `x` are, if not all.
    pub fn forward(&self, project: &Projector<'_>, x: &Rows, rows: Option<&[u32]>) -> Result<Branch<'_>> {
        Ok(Branch { rows: self.mixed(project, x, x, rows)?, projection: None })
    }

    /// The same; `routed`: what the router reads.
    pub fn mixed(
        &self,
        project: &Projector<'_>,
        x: &Rows,
        routed: &Rows,
        rows: Option<&[u32]>,
    ) -> Result<Rows> {
        let ops = project.ops;
        let logits = project.linear((Part::Router, &self.router), routed, rows)?;
        let mut assignments = ops.route(logits, &self.routing, self.correction.as_ref())?;
        if let Some(scales) = &self.scales {
            assignments.scale(scales.values());
        }
        let terms = expert_terms(project, &assignments, rows);
        let experts = |x: &Rows| ops.experts(&self.experts, self.activation, x, &assignments, &terms);
        let sum = match &self.latent {
            Some(Latent { into, out }) => {
                let narrow = experts(&project.linear((Part::LatentIn, into), x, rows)?)?;
                project.linear((Part::LatentOut, out), &narrow, rows)?
            }
            None => experts(x)?,
        };
        match &self.shared {
            Some(shared) => shared.add(project, x, sum, rows),
            None => Ok(sum),
        }
    }

    pub fn projections(&self) -> Vec<Named<'_>> {
        let experts = self.experts.iter().enumerate().flat_map(|(at, it)| {
            let gate = it.gate.iter().map(move |gate| (Part::ExpertGate(at), gate));
            gate.chain([(Part::ExpertUp(at), &it.up), (Part::ExpertDown(at), &it.down)])
        });
        let latent = self.latent.iter();
        let latent = latent.flat_map(|it| [(Part::LatentIn, &it.into), (Part::LatentOut, &it.out)]);
        let shared = self.shared.iter().flat_map(|it| {
            let gate = it.gate.iter().map(|gate| (Part::SharedExpertGate, gate));
            it.dense.projections().into_iter().chain(gate)
        });
        std::iter::once((Part::Router, &self.router)).chain(experts).chain(latent).chain(shared).collect()
    }
}

/// What adapters add to the experts' products. `rows`: which rows of the step were assigned, if not all.
fn expert_terms<'a>(project: &Projector<'a>, a: &Assignments, rows: Option<&[u32]>) -> ExpertTerms<'a> {
    let mut terms = ExpertTerms::default();
    if project.deltas.is_none() {
        return terms;
    }
    for (expert, pairs) in a.experts() {
        let own = &a.rows()[pairs.clone()];
        let of_step: Vec<u32> = own.iter().map(|&row| rows.map_or(row, |rows| rows[row as usize])).collect();
        let of = |part| {
            let terms = project.terms(part, Some(&of_step)).into_iter();
            terms
                .map(|term| Term { rows: term.rows.start + pairs.start..term.rows.end + pairs.start, ..term })
        };
        terms.gate.extend(of(Part::ExpertGate(*expert)));
        terms.up.extend(of(Part::ExpertUp(*expert)));
        terms.down.extend(of(Part::ExpertDown(*expert)));
    }
    terms
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
    fn add(&self, project: &Projector<'_>, x: &Rows, to: Rows, wanted: Option<&[u32]>) -> Result<Rows> {
        let Branch { rows, projection } = self.dense.forward(project, x, wanted)?;
        let Some(down) = projection else { return Ok(to) };
        let Some(gate) = &self.gate else { return project.linear_add(down, &rows, to, wanted) };
        let rows = project.linear(down, &rows, wanted)?;
        let gate = project.linear((Part::SharedExpertGate, gate), x, wanted)?;
        let rows = project.ops.output_gate(rows, gate, GateFunction::Sigmoid)?;
        project.ops.add(&rows, 1.0, to)
    }
}
