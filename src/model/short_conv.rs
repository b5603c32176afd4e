//! LFM2's gated short convolution: `in_proj` makes B, C and x of each position, `y = C * conv(B * x)`, and
//! `out_proj` follows. `conv` is causal and depthwise; its taps are those of `torch.nn.Conv1d`, the last of
//! them the position's own.

use super::build::TensorLoader;
use super::decoder::Branch;
use super::mixer::MixerInput;
use super::projection::Projector;
use crate::config::ShortConvConfig;
use crate::error::Result;
use crate::kernels::{self, ConvForm, Linear, Vector};
use crate::weights::names::Part;
use crate::weights::{Bytes, WeightTensor, WeightType};

pub(super) struct ShortConv {
    /// `[3 * hidden, hidden]`: the rows of B, of C, of x.
    in_proj: Linear,
    conv: kernels::CausalConv,
    out_proj: Linear,
    /// Its place among the layers with recurrent state.
    state_layer: usize,
}

impl ShortConv {
    pub fn load(
        loader: &TensorLoader,
        layer: usize,
        c: &ShortConvConfig,
        state_layer: usize,
    ) -> Result<ShortConv> {
        let hidden = loader.config.hidden;
        let bias = loader.bias(c.bias, Part::Conv, Some(layer), hidden)?;
        let conv = kernels::CausalConv {
            form: ConvForm::Gated,
            kernel: c.kernel,
            taps: taps(loader, layer, [hidden, c.kernel])?,
            bias: bias.map(|bias| loader.ops.vector(&bias, 0.0)).transpose()?,
        };
        Ok(ShortConv {
            in_proj: loader.linear(Part::ConvIn, layer, [3 * hidden, hidden], c.bias)?,
            conv,
            out_proj: loader.linear(Part::ConvOut, layer, [hidden, hidden], c.bias)?,
            state_layer,
        })
    }

    /// `[rows, hidden]`, before the output projection. All rows pass, also those whose output nobody wants:
    /// the state is made of them.
    pub fn forward(&self, project: &Projector<'_>, input: &MixerInput) -> Result<Branch<'_>> {
        let ops = project.ops;
        let x = project.linear((Part::ConvIn, &self.in_proj), input.x, None)?;
        let rows = ops.causal_conv(&x, &self.conv, input.cache, self.state_layer, input.all.step)?;
        let rows = match input.queries.rows {
            Some(wanted) => ops.select_rows(&rows, wanted)?,
            None => rows,
        };
        Ok(Branch { rows, projection: Some((Part::ConvOut, &self.out_proj)) })
    }

    /// Numbers of the state of one sequence.
    pub fn state_len(&self) -> usize {
        self.conv.state_len()
    }

    pub fn projections(&self) -> Vec<&Linear> {
        vec![&self.in_proj, &self.out_proj]
    }
}

/// The filters tap by tap, `[kernel, hidden]`. transformers stores them as `[hidden, 1, kernel]`, GGUF as
/// `[hidden, kernel]`.
fn taps(loader: &TensorLoader, layer: usize, [hidden, kernel]: [usize; 2]) -> Result<Vector> {
    let name = loader.name(Part::Conv, Some(layer), "weight");
    let grouped = loader.weights.shape(&name).is_some_and(|shape| shape.len() == 3);
    let shape: &[usize] = if grouped { &[hidden, 1, kernel] } else { &[hidden, kernel] };
    let tensor = loader.tensor(Part::Conv, Some(layer), shape)?;
    let by_channel = tensor.to_f32();
    let of_tap = |tap| by_channel.iter().skip(tap).step_by(kernel);
    let bytes = (0..kernel).flat_map(of_tap).flat_map(|number| number.to_le_bytes()).collect();
    let shape = vec![hidden * kernel];
    let taps = WeightTensor { shape, dtype: WeightType::F32, data: Bytes::from_vec(bytes), ..tensor };
    loader.ops.vector(&taps, 0.0)
}
