//! What the graph hands to [`Ops`](super::Ops): weights, and the parameters of an operation.

use std::sync::Arc;

use super::low_rank::Term;
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

/// A projection: `y = scale * x W^T + b`, W `[out, in]` as checkpoints store it. What adapters attach to.
#[derive(Clone, Debug)]
pub struct Linear {
    pub weight: Matrix,
    /// 1 as a rule. Taken into the weights it would round those of 16 bits again, and could not be taken into
    /// blocks.
    pub scale: f32,
    pub bias: Option<Vector>,
    /// On the CPU, quantized weights are multiplied by activations of 8 bits; numbers above this many root
    /// mean squares of their row are multiplied as floats. (Projections of the same rows share the quantized
    /// rows: the first that is computed decides.)
    pub outlier: f32,
}

/// A projection of some rows, with what adapters add to some of them before the epilogue (an activation, a
/// gate, a sum).
#[derive(Clone, Copy)]
pub struct Projection<'a> {
    pub linear: &'a Linear,
    /// In ascending order of rows, which no two have in common; rows without a term are those of the base.
    pub terms: &'a [Term<'a>],
}

impl<'a> From<&'a Linear> for Projection<'a> {
    fn from(linear: &'a Linear) -> Self {
        Projection { linear, terms: &[] }
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
pub struct CausalConv {
    pub form: ConvForm,
    /// Positions that a row sees, its own among them.
    pub kernel: usize,
    /// `[kernel, width]`: the oldest position first, the row's own last.
    pub taps: Vector,
    /// `[width]`
    pub bias: Option<Vector>,
}

/// What a convolution reads and gives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConvForm {
    /// Of rows `[3 * width]` of B, C and x: `C * conv(B * x)` (LFM2).
    Gated,
    /// Of rows x `[width]`: `silu(conv(x))`.
    Silu,
}

impl CausalConv {
    /// Channels.
    pub fn width(&self) -> usize {
        self.taps.len() / self.kernel.max(1)
    }

    /// Numbers of a row that it reads.
    pub fn row_dim(&self) -> usize {
        match self.form {
            ConvForm::Gated => 3 * self.width(),
            ConvForm::Silu => self.width(),
        }
    }

    /// Numbers of the state of one sequence: the inputs of the positions before the next one.
    pub fn state_len(&self) -> usize {
        self.kernel.saturating_sub(1) * self.width()
    }
}

/// A scan over the positions of a sequence, whose state is a matrix S `[key_dim, value_dim]` for each head.
/// With `t = softplus(dt + dt_bias)`, a row's decay is `exp(t a)`.
#[derive(Clone, Debug)]
pub struct Scan {
    pub rule: ScanRule,
    /// Heads of keys and queries; divides `heads`.
    pub groups: usize,
    pub heads: usize,
    /// Head h has the key of group `h % groups`, as llama.cpp's converter orders the heads of Gated DeltaNet;
    /// else of group `h / (heads / groups)`.
    pub tiled: bool,
    /// Length of a key (Mamba-2's state size).
    pub key_dim: usize,
    /// Length of a value (Mamba-2's head size).
    pub value_dim: usize,
    /// `[heads]`: `-exp(A_log)`.
    pub a: Vector,
    /// `[heads]`
    pub dt_bias: Vector,
}

/// What a row does to the state, and how it is laid out.
#[derive(Clone, Debug)]
pub enum ScanRule {
    /// Gated DeltaNet (Yang et al. 2024), rows of q, k, v: keys and queries are normed to length 1 and
    /// queries multiplied by `key_dim^-0.5`; `S = decay S; S += k (sigmoid(beta) (v - S^T k))^T; o = S^T q`.
    Delta,
    /// Mamba-2 (Dao and Gu 2024), rows of x, B, C: `S = decay S + B (t x)^T; o = S^T C + skip x`.
    Mamba2 {
        /// t is held within these (`time_step_limit`).
        dt_limits: [f32; 2],
        /// `[heads]`: D.
        skip: Vector,
    },
}

impl Scan {
    /// Numbers of a row of its output.
    pub fn width(&self) -> usize {
        self.heads.saturating_mul(self.value_dim)
    }

    /// Numbers of a row that it reads.
    pub fn row_dim(&self) -> usize {
        self.groups.saturating_mul(self.key_dim).saturating_mul(2).saturating_add(self.width())
    }

    /// Numbers of the state of one sequence.
    pub fn state_len(&self) -> usize {
        self.width().saturating_mul(self.key_dim)
    }

    /// The group whose key a head has.
    pub(super) fn group_of(&self, head: usize) -> usize {
        match self.tiled {
            true => head % self.groups,
            false => head / (self.heads / self.groups),
        }
    }

    /// Where a row's queries, keys and values begin.
    pub(super) fn offsets(&self) -> [usize; 3] {
        let keys = self.groups * self.key_dim;
        match self.rule {
            ScanRule::Delta => [0, keys, 2 * keys],
            ScanRule::Mamba2 { .. } => [self.width() + keys, self.width(), 0],
        }
    }
}

/// The rows of a step that a [`Scan`] walks.
pub struct ScanRows<'a> {
    /// `[rows, row_dim]`: q, k, v of Gated DeltaNet; x, B, C of Mamba-2.
    pub x: Rows,
    /// `[rows, heads]`
    pub dt: &'a Rows,
    /// `[rows, heads]`, of Gated DeltaNet.
    pub beta: Option<&'a Rows>,
}

/// A norm and a gate: RMS norm of groups of a row, times `silu(gate)`.
#[derive(Clone, Debug)]
pub struct GatedNorm {
    /// Its weights are those of one group, for all groups, or of the whole row.
    pub norm: Norm,
    pub groups: usize,
    /// The gate comes before the norm: `norm(x * silu(gate))` (Mamba-2) instead of `norm(x) * silu(gate)`
    /// (Gated DeltaNet).
    pub gate_first: bool,
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
