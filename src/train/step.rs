//! One micro-step: the loss of some examples, and its gradients.

use std::ops::Range;
use std::sync::Arc;

use super::params::{Gradients, LoraParams};
use crate::error::{Error, Result};
use crate::model::{Decoder, ProjectionId};

/// A text of which some tokens are trained.
#[derive(Clone, Debug)]
pub struct Example {
    pub ids: Arc<[u32]>,
    /// `ids[t]` for `t` in these ranges are trained: the row of `t - 1` predicts them. Ascending, and none
    /// begins at 0.
    pub targets: Vec<Range<usize>>,
}

/// How exactly a step is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// As the model is served, forward; backward as fast as is exact enough.
    #[default]
    Fast,
    /// All in f32; activations that meet quantized weights have 15 bits.
    Float32,
}

#[derive(Clone, Debug)]
pub struct StepOptions {
    /// Of the trainer's own pool.
    pub threads: usize,
    pub precision: Precision,
    /// Bytes that may be kept of a step for its backward pass; what finds no room is computed again. `None`:
    /// a quarter of what is free.
    pub train_memory: Option<usize>,
}

/// What a step says of its loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepLoss {
    /// Of all trained tokens, in nats.
    pub sum: f64,
    /// How many are trained.
    pub tokens: usize,
    /// The loss of each trained token: of each example, in the order of its targets.
    pub losses: Vec<Vec<f32>>,
    /// Rows that were computed.
    pub tokens_computed: usize,
    /// Tokens of the examples.
    pub tokens_seen: usize,
}

/// A model that gradients are computed through.
pub struct Trainer {
    decoder: Arc<Decoder>,
}

impl Trainer {
    /// # Errors
    /// `UnsupportedModel` naming what in this model cannot be trained through yet.
    pub fn new(decoder: Arc<Decoder>, options: &StepOptions) -> Result<Self> {
        let _ = (&decoder, options);
        Err(Error::unsupported("training is not built yet"))
    }

    /// The projections that can have factors: which, inputs, outputs.
    pub fn trainable(&self) -> Vec<(ProjectionId, usize, usize)> {
        let _ = &self.decoder;
        Vec::new()
    }

    /// Adds the gradient of the summed loss of all trained tokens, times `weight`, to `grads`. What examples
    /// begin with alike is computed once.
    ///
    /// # Errors
    /// `Cancelled` when `cancelled` says so between two layers; `grads` are then undefined.
    pub fn forward_backward(
        &mut self,
        params: &LoraParams,
        examples: &[Example],
        weight: f32,
        grads: &mut Gradients,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<StepLoss> {
        let _ = (params, examples, weight, grads, cancelled);
        Err(Error::unsupported("training is not built yet"))
    }

    /// The loss alone.
    ///
    /// # Errors
    /// As [`forward_backward`](Trainer::forward_backward).
    pub fn evaluate(
        &mut self,
        params: &LoraParams,
        examples: &[Example],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<StepLoss> {
        let _ = (params, examples, cancelled);
        Err(Error::unsupported("training is not built yet"))
    }
}
