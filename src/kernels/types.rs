//! What the graph hands to [`Ops`](super::Ops): weights, and the parameters of an operation.

use std::sync::Arc;

use super::opaque::Opaque;
use super::rows::Rows;
use crate::config::NormKind;
use crate::weights::WeightTensor;

/// What attention needs to know of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention<'a> {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Scores are `scale * q.k`.
    pub scale: f32,
    /// A query sees its own position and those before it; `false`: all of its sequence, also those after it.
    pub causal: bool,
    /// A query sees positions less than this far away, itself among them (before it, and behind it where not
    /// `causal`); `None` sees all.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
    /// One more logit for each query head, whatever the position: its share of the softmax goes nowhere.
    pub sinks: Option<&'a [f32]>,
}

/// A weight matrix `[n, k]` where the backend wants it. A clone shares the memory.
#[derive(Clone, Debug)]
pub struct Matrix {
    pub(super) name: Arc<str>,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) stored: Stored,
}

/// What a backend made of a weight matrix.
#[derive(Clone, Debug)]
pub(super) struct Stored {
    /// How the weights are stored, in words.
    pub(super) format: &'static str,
    /// Bytes that they take in the checkpoint.
    pub(super) bytes: usize,
    pub(super) data: Opaque,
}

impl Matrix {
    /// The tensor's name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the weights are stored, and how many bytes they take in the checkpoint.
    pub fn stored(&self) -> (&'static str, usize) {
        (self.stored.format, self.stored.bytes)
    }

    /// Output features (or vocabulary).
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }
}

/// A matrix `[n, k]` that stays where it was loaded from, in the map of its file as a rule, and whose rows
/// are read when they are asked for: a table of which a step needs a few rows. It holds a share of the map,
/// which lives as long.
#[derive(Clone, Debug)]
pub struct MappedMatrix {
    pub(super) tensor: WeightTensor,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) row_bytes: usize,
}

impl MappedMatrix {
    /// Bytes that it takes in the checkpoint.
    pub fn bytes(&self) -> usize {
        self.tensor.data.len()
    }
}

/// A one-dimensional weight, f32: a bias, or the weights of a norm.
#[derive(Clone, Debug)]
pub struct Vector {
    pub(super) values: Arc<[f32]>,
    /// The same where the backend wants it, if that is elsewhere.
    pub(super) device: Option<Opaque>,
}

impl Vector {
    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    pub fn values(&self) -> &[f32] {
        &self.values
    }
}

/// A projection: `y = x W^T + b`, W `[out, in]` as checkpoints store it. What adapters attach to.
#[derive(Clone, Debug)]
pub struct Linear {
    pub weight: Matrix,
    pub bias: Option<Vector>,
    /// On the CPU, quantized weights are multiplied by activations of 8 bits; numbers above this many root
    /// mean squares of their row are multiplied as floats. (Projections of the same rows share the quantized
    /// rows: the first that is computed decides.)
    pub outlier: f32,
}

/// A projection of some rows, with what is added to each row of its output before the epilogue (an
/// activation, a gate, a sum): where the delta of an adapter enters.
#[derive(Clone, Copy)]
pub struct Projection<'a> {
    pub linear: &'a Linear,
    /// `[rows, out]`
    pub row_bias: Option<&'a Rows>,
}

impl<'a> From<&'a Linear> for Projection<'a> {
    fn from(linear: &'a Linear) -> Self {
        Projection { linear, row_bias: None }
    }
}

/// A norm over groups of `weight.len()` values; the offset of Gemma's `1 + w` is already in the weight.
#[derive(Clone, Debug)]
pub struct Norm {
    pub kind: NormKind,
    pub eps: f64,
    pub weight: Vector,
    pub bias: Option<Vector>,
}

/// A causal depthwise convolution over a few positions.
#[derive(Clone, Debug)]
pub struct ShortConv {
    /// Positions that a row sees, its own among them.
    pub kernel: usize,
    /// `[kernel, width]`: the oldest position first, the row's own last.
    pub taps: Vector,
    /// `[width]`
    pub bias: Option<Vector>,
}

impl ShortConv {
    /// Channels.
    pub fn width(&self) -> usize {
        self.taps.len() / self.kernel.max(1)
    }

    /// Numbers of the state of one sequence: the inputs of the positions before the next one.
    pub fn state_len(&self) -> usize {
        self.kernel.saturating_sub(1) * self.width()
    }
}

/// Cosines and sines of the rows of one step, each `[rows, half]`.
#[derive(Clone, Debug)]
pub struct RopeTable {
    pub(super) rows: usize,
    pub(super) half: usize,
    pub(super) data: Opaque,
}

impl RopeTable {
    /// Rotated dimensions of each head: twice the number of frequencies.
    pub fn rotated(&self) -> usize {
        2 * self.half
    }
}
