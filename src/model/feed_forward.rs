//! The seats of the feed-forwards: what looks at one position alone. A new one is a variant of
//! [`FeedForwardConfig`] and of [`FeedForward`], and, if it is larger than the dense one, a file beside this
//! one.

use super::beside::Beside;
use super::build::TensorLoader;
use super::decoder::Branch;
use super::experts::Experts;
use super::projection::{Named, Projector};
use crate::config::{Activation, DenseConfig, FeedForwardConfig, Presence, Xielu};
use crate::error::Result;
use crate::kernels::{Linear, Rows};
use crate::weights::names::Part;

pub(super) enum FeedForward {
    Dense(Box<Dense>),
    Experts(Box<Experts>),
    Beside(Box<Beside>),
}

impl FeedForward {
    pub fn load(loader: &TensorLoader, layer: usize, config: &FeedForwardConfig) -> Result<FeedForward> {
        match config {
            FeedForwardConfig::Dense(config) => {
                Ok(FeedForward::Dense(Box::new(Dense::load(loader, layer, config, DenseParts::MLP)?)))
            }
            FeedForwardConfig::Experts(config) => {
                Ok(FeedForward::Experts(Box::new(Experts::load(loader, layer, config)?)))
            }
            FeedForwardConfig::Beside(config) => {
                Ok(FeedForward::Beside(Box::new(Beside::load(loader, layer, config)?)))
            }
        }
    }

    /// `x`: the normed rows, `[rows, hidden]`, and `residual` those before the norm; `rows`: which of the
    /// step they are, if not all.
    pub fn forward(
        &self,
        project: &Projector<'_>,
        x: &Rows,
        residual: &Rows,
        rows: Option<&[u32]>,
    ) -> Result<Branch<'_>> {
        match self {
            FeedForward::Dense(dense) => dense.forward(project, x, rows),
            FeedForward::Experts(experts) => experts.forward(project, x, rows),
            FeedForward::Beside(beside) => beside.forward(project, x, residual, rows),
        }
    }

    /// What no gradient passes yet, if something is.
    pub fn untrainable(&self) -> Option<&'static str> {
        match self {
            FeedForward::Dense(dense) if dense.activation == Activation::ClampedSwiglu => {
                Some("clamped gates")
            }
            FeedForward::Dense(_) => None,
            FeedForward::Experts(_) | FeedForward::Beside(_) => Some("experts"),
        }
    }

    pub fn projections(&self) -> Vec<Named<'_>> {
        match self {
            FeedForward::Dense(dense) => dense.projections(),
            FeedForward::Experts(experts) => experts.projections(),
            FeedForward::Beside(beside) => beside.projections(),
        }
    }
}

/// `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))`.
pub(super) struct Dense {
    parts: DenseParts,
    activation: Activation,
    gate: Option<Linear>,
    up: Linear,
    down: Linear,
}

/// The names of its matrices.
#[derive(Clone, Copy)]
pub(super) struct DenseParts {
    gate: Part,
    up: Part,
    gate_up: Part,
    down: Part,
}

impl DenseParts {
    pub const MLP: DenseParts =
        DenseParts { gate: Part::Gate, up: Part::Up, gate_up: Part::GateUp, down: Part::Down };
    /// Of the expert that every position passes.
    pub const SHARED: DenseParts = DenseParts {
        gate: Part::SharedGate,
        up: Part::SharedUp,
        gate_up: Part::SharedGateUp,
        down: Part::SharedDown,
    };
}

impl Dense {
    pub fn load(loader: &TensorLoader, layer: usize, c: &DenseConfig, parts: DenseParts) -> Result<Dense> {
        let shape = [c.intermediate, loader.config.hidden];
        let (gate, up) = match fused_gate_up(loader, layer, c, parts) {
            Some(part) => {
                let [gate, up] =
                    loader.split(part, layer, [(c.intermediate, None), (c.intermediate, None)], c.bias)?;
                (Some(gate), up)
            }
            None => {
                let gate = c.gate.then(|| loader.linear(parts.gate, layer, shape, c.bias)).transpose()?;
                (gate, loader.linear(parts.up, layer, shape, c.bias)?)
            }
        };
        let down = loader.linear(parts.down, layer, [shape[1], shape[0]], c.bias)?;
        Ok(Dense { parts, activation: activation(loader, layer, c)?, gate, up, down })
    }

    /// `[rows, intermediate]`, before the down projection.
    pub fn forward(&self, project: &Projector<'_>, x: &Rows, rows: Option<&[u32]>) -> Result<Branch<'_>> {
        let rows = match &self.gate {
            Some(gate) => {
                project.gated((self.parts.gate, gate), (self.parts.up, &self.up), x, self.activation, rows)?
            }
            None => project.activated((self.parts.up, &self.up), x, self.activation, rows)?,
        };
        Ok(Branch { rows, projection: Some((self.parts.down, &self.down)) })
    }

    pub fn projections(&self) -> Vec<Named<'_>> {
        let gate = self.gate.iter().map(|gate| (self.parts.gate, gate));
        gate.chain([(self.parts.up, &self.up), (self.parts.down, &self.down)]).collect()
    }
}

/// With the parameters that the layer has of its own.
fn activation(loader: &TensorLoader, layer: usize, c: &DenseConfig) -> Result<Activation> {
    if !c.stored_xielu {
        return Ok(c.activation);
    }
    let number = |part| loader.number(part, layer);
    let [alpha_p, alpha_n] = [number(Part::XieluAlphaP)?, number(Part::XieluAlphaN)?];
    let [beta, eps] = [number(Part::XieluBeta)?, number(Part::XieluEps)?];
    Ok(Activation::Xielu(Xielu::of_stored(alpha_p, alpha_n, beta, eps)))
}

/// The part that holds gate and up in one matrix, if one does. Phi-3's GGUF files call it `ffn_up`: of twice
/// the height, with no gate beside it.
fn fused_gate_up(loader: &TensorLoader, layer: usize, c: &DenseConfig, parts: DenseParts) -> Option<Part> {
    let at = Some(layer);
    if !c.gate || c.fused == Presence::Never {
        return None;
    }
    if loader.is_stored(c.fused, parts.gate_up, at, "weight") {
        return Some(parts.gate_up);
    }
    let up = loader.weights.shape(&loader.name(parts.up, at, "weight"));
    let doubled = up.is_some_and(|shape| shape.first() == Some(&(2 * c.intermediate)));
    (doubled && !loader.has(parts.gate, at)).then_some(parts.up)
}
