//! Per-layer embeddings (Gemma 4 E2B, E4B): besides its embedding a token has a row in a table, with a part
//! for each layer, and each layer lets a gate decide what it takes of its part.
//!
//! The table is more than half of the file, and a step needs one row a token: it stays in the mapped file,
//! where rows are read when they are needed, and is neither packed nor quantized.

use super::build::TensorLoader;
use super::projection::Named;
use crate::config::{Activation, PerLayerConfig, Presence};
use crate::error::Result;
use crate::kernels::{Linear, MappedMatrix, Norm, Ops, Rows};
use crate::weights::WeightTensor;
use crate::weights::names::Part;

/// What makes the inputs of all layers.
pub(super) struct PerLayerInputs {
    /// `[vocab, layers * width]`
    table: MappedMatrix,
    /// What a row of it is multiplied by.
    scale: f32,
    /// `[layers * width, hidden]`, from the embedding of the token.
    projection: Linear,
    norm: Norm,
}

impl PerLayerInputs {
    pub fn load(loader: &TensorLoader, width: usize) -> Result<PerLayerInputs> {
        let (config, ops) = (loader.config, loader.ops);
        let all = config.layers.len() * width;
        let table = loader.tensor(Part::PerLayerEmbed, None, &[config.vocab, all])?;
        let projection = loader.tensor(Part::PerLayerModel, None, &[all, config.hidden])?;
        // Row and projection are added and divided by the root of 2, the one multiplied by the root of
        // `width`, the other divided by that of `hidden` before its norm: factors that its weights and its
        // epsilon take in.
        let half = 0.5f32.sqrt();
        let weight = loader.tensor(Part::PerLayerModelNorm, None, &[width])?;
        let weights = weight.to_f32().iter().map(|w| (w + config.norm.offset) * half).collect();
        let weight = ops.vector(&WeightTensor::floats(&weight.name, vec![width], weights), 0.0)?;
        let eps = config.norm.eps * config.hidden as f64;
        Ok(PerLayerInputs {
            table: ops.mapped_matrix(&table)?,
            scale: (width as f32).sqrt() * half,
            projection: loader.projection(Part::PerLayerModel, projection, None, None)?,
            norm: Norm { kind: config.norm.kind, eps, weight, bias: None },
        })
    }

    /// The inputs of all layers, `[rows, layers * width]`; `x`: the embeddings of the tokens.
    pub fn forward(&self, ops: &Ops, tokens: &[u32], x: &Rows) -> Result<Rows> {
        let rows = ops.mapped_rows(&self.table, tokens, self.scale)?;
        ops.norm_add(&self.norm, &ops.linear(&self.projection, x)?, rows)
    }

    /// Bytes of the table, which stay in the file.
    pub fn mapped_bytes(&self) -> usize {
        self.table.bytes()
    }

    pub fn projections(&self) -> Vec<Named<'_>> {
        vec![(Part::PerLayerModel, &self.projection)]
    }
}

/// One layer's part.
pub(super) struct PerLayer {
    activation: Activation,
    /// `[width, hidden]`
    gate: Linear,
    /// `[hidden, width]`
    projection: Linear,
    norm: Norm,
    /// Where its columns begin in the inputs of all layers.
    start: usize,
}

impl PerLayer {
    pub fn load(loader: &TensorLoader, layer: usize, c: &PerLayerConfig) -> Result<PerLayer> {
        let hidden = loader.config.hidden;
        Ok(PerLayer {
            activation: c.activation,
            gate: loader.linear(Part::PerLayerGate, layer, [c.width, hidden], Presence::Never)?,
            projection: loader.linear(Part::PerLayerProjection, layer, [hidden, c.width], Presence::Never)?,
            norm: loader.norm(Part::PerLayerNorm, Some(layer), hidden)?,
            start: layer * c.width,
        })
    }

    /// `x + norm(projection(activation(gate(x)) * input))`; `inputs`: those of all layers, for the rows of
    /// `x`.
    pub fn forward(&self, ops: &Ops, x: Rows, inputs: &Rows) -> Result<Rows> {
        let gated = ops.activated(&self.gate, &x, self.activation)?;
        let taken = ops.mul(gated, inputs, self.start)?;
        ops.norm_add(&self.norm, &ops.linear(&self.projection, &taken)?, x)
    }

    pub fn projections(&self) -> Vec<Named<'_>> {
        vec![(Part::PerLayerGate, &self.gate), (Part::PerLayerProjection, &self.projection)]
    }
}
