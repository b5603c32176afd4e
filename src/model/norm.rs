//! The two normalisations in use: root mean square, and LayerNorm with bias.

use candle_core::Tensor;

use crate::config::NormKind;
use crate::error::Result;
use crate::kernels::Ops;

/// Normalises groups of `weight.len()` values; the offset of Gemma's `1 + w` is already in the weight.
pub struct Norm {
    pub kind: NormKind,
    pub eps: f64,
    pub weight: Tensor,
    pub bias: Option<Tensor>,
}

impl Norm {
    /// `[rows, groups * width]` -> the same shape, each group of `width` on its own.
    pub fn forward(&self, ops: &Ops, x: &Tensor) -> Result<Tensor> {
        match self.kind {
            NormKind::Rms => ops.rms_norm(x, &self.weight, self.eps),
            NormKind::Layer => ops.layer_norm(x, &self.weight, self.bias.as_ref(), self.eps),
        }
    }
}
