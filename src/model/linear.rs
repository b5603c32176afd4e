//! A projection and its bias: what adapters attach to, and what no model code looks into.

use candle_core::Tensor;

use crate::error::Result;
use crate::kernels::{Matrix, Ops};

/// `y = x W^T + b`, W `[out, in]` as checkpoints store it.
pub struct Linear {
    pub weight: Matrix,
    pub bias: Option<Tensor>,
}

impl Linear {
    /// `[rows, in]` -> `[rows, out]`.
    pub fn forward(&self, ops: &Ops, x: &Tensor) -> Result<Tensor> {
        ops.linear(&self.weight, x, self.bias.as_ref())
    }
}
