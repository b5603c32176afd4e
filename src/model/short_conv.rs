//! LFM2's gated short convolution: `in_proj` makes B, C and x of each position, `y = C * conv(B * x)`, and
//! `out_proj` follows. `conv` is causal and depthwise; its taps are those of `torch.nn.Conv1d`, the last of
//! them the position's own.

use super::build::TensorLoader;
use super::causal_conv::causal_conv;
use super::decoder::Branch;
use super::mixer::MixerInput;
use super::projection::{Named, Projector};
use crate::config::ShortConvConfig;
use crate::error::Result;
use crate::kernels::{CausalConv, ConvForm, Linear};
use crate::weights::names::Part;

pub(super) struct ShortConv {
    /// `[3 * hidden, hidden]`: the rows of B, of C, of x.
    in_proj: Linear,
    conv: CausalConv,
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
        let at = (Part::Conv, layer);
        let conv = causal_conv(loader, at, ConvForm::Gated, [hidden, c.kernel], c.bias, &[])?;
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

    pub fn projections(&self) -> Vec<Named<'_>> {
        vec![(Part::ConvIn, &self.in_proj), (Part::ConvOut, &self.out_proj)]
    }
}
