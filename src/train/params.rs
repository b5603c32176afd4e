//! What is trained: the low-rank factors of projections, and gradients of the same shapes.

use crate::model::ProjectionId;

/// The factors of one projection: `y += scale * (x A^T) B^T`.
#[derive(Clone, Debug, PartialEq)]
pub struct LoraModule {
    pub id: ProjectionId,
    pub inputs: usize,
    pub outputs: usize,
    pub rank: usize,
    pub scale: f32,
    /// `[rank, inputs]`
    pub a: Vec<f32>,
    /// `[outputs, rank]`
    pub b: Vec<f32>,
}

/// All that is trained.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct LoraParams {
    pub modules: Vec<LoraModule>,
}

/// What the loss says of each factor: of each module those of `a` and of `b`, in their shapes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Gradients {
    pub modules: Vec<(Vec<f32>, Vec<f32>)>,
}

impl Gradients {
    /// Zeros for these factors.
    pub fn zeros(params: &LoraParams) -> Gradients {
        let zeros = |module: &LoraModule| (vec![0.0; module.a.len()], vec![0.0; module.b.len()]);
        Gradients { modules: params.modules.iter().map(zeros).collect() }
    }

    /// Back to zeros.
    pub fn clear(&mut self) {
        for (a, b) in &mut self.modules {
            a.fill(0.0);
            b.fill(0.0);
        }
    }
}
