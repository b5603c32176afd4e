//! LFM2's gated short convolution: `in_proj` makes B, C and x of each position, `y = C * conv(B * x)`, and `out_proj`
//! follows. `conv` is causal and depthwise; its taps are those of `torch.nn.Conv1d`, the last of them the position's own.

use super::build::TensorLoader;
use super::decoder::Branch;
use super::mixer::MixerInput;
use crate::config::ShortConvConfig;
use crate::error::{Error, Result};
use crate::kernels::{Linear, Ops, Vector};
use crate::weights::WeightTensor;
use crate::weights::names::Part;

#[expect(
    dead_code,
    reason = "the convolution needs a state beside the pages of the cache, which is on its way"
)]
pub(super) struct ShortConv {
    /// `[3 * hidden, hidden]`: the rows of B, of C, of x.
    in_proj: Linear,
    /// `[hidden, kernel]`: the filter of each channel.
    taps: Vector,
    /// `[hidden]`
    bias: Option<Vector>,
    out_proj: Linear,
}

impl ShortConv {
    pub fn load(loader: &TensorLoader, layer: usize, c: &ShortConvConfig) -> Result<ShortConv> {
        let hidden = loader.config.hidden;
        let bias = loader.bias(c.bias, Part::Conv, Some(layer), hidden)?;
        Ok(ShortConv {
            in_proj: loader.linear(Part::ConvIn, layer, [3 * hidden, hidden], c.bias)?,
            taps: taps(loader, layer, [hidden, c.kernel])?,
            bias: bias.map(|bias| loader.ops.vector(&bias, 0.0)).transpose()?,
            out_proj: loader.linear(Part::ConvOut, layer, [hidden, hidden], c.bias)?,
        })
    }

    pub fn forward(&self, _ops: &Ops, _input: &MixerInput) -> Result<Branch<'_>> {
        Err(Error::unsupported("short convolutions (LFM2) are not supported yet"))
    }

    pub fn projections(&self) -> Vec<&Linear> {
        vec![&self.in_proj, &self.out_proj]
    }
}

/// The filters, which transformers stores as `[hidden, 1, kernel]` and GGUF as `[hidden, kernel]`.
fn taps(loader: &TensorLoader, layer: usize, [hidden, kernel]: [usize; 2]) -> Result<Vector> {
    let name = loader.name(Part::Conv, Some(layer), "weight");
    let grouped = loader.weights.shape(&name).is_some_and(|shape| shape.len() == 3);
    let shape: &[usize] = if grouped { &[hidden, 1, kernel] } else { &[hidden, kernel] };
    let tensor = loader.tensor(Part::Conv, Some(layer), shape)?;
    loader.ops.vector(&WeightTensor { shape: vec![hidden * kernel], ..tensor }, 0.0)
}
