//! Causal depthwise convolutions out of checkpoints.

use super::build::TensorLoader;
use crate::config::Presence;
use crate::error::Result;
use crate::kernels::{CausalConv, ConvForm, Vector};
use crate::weights::names::Part;

/// A convolution of `width` channels over `kernel` positions; its taps are those of `torch.nn.Conv1d`, the
/// last of them the position's own. `scales`: what the input of each channel is multiplied by, or none.
pub(super) fn causal_conv(
    loader: &TensorLoader,
    (part, layer): (Part, usize),
    form: ConvForm,
    [width, kernel]: [usize; 2],
    bias: Presence,
    scales: &[f32],
) -> Result<CausalConv> {
    let bias = loader.bias(bias, part, Some(layer), width)?;
    Ok(CausalConv {
        form,
        kernel,
        taps: taps(loader, part, layer, [width, kernel], scales)?,
        bias: bias.map(|bias| loader.ops.vector(&bias, 0.0)).transpose()?,
    })
}

/// The filters tap by tap, `[kernel, width]`. transformers stores them as `[width, 1, kernel]`, GGUF as
/// `[width, kernel]`.
fn taps(
    loader: &TensorLoader,
    part: Part,
    layer: usize,
    [width, kernel]: [usize; 2],
    scales: &[f32],
) -> Result<Vector> {
    let name = loader.name(part, Some(layer), "weight");
    let grouped = loader.weights.shape(&name).is_some_and(|shape| shape.len() == 3);
    let shape: &[usize] = if grouped { &[width, 1, kernel] } else { &[width, kernel] };
    let mut by_channel = loader.tensor(part, Some(layer), shape)?.to_f32();
    for (taps, scale) in by_channel.chunks_exact_mut(kernel).zip(scales) {
        taps.iter_mut().for_each(|tap| *tap *= scale);
    }
    let of_tap = |tap| by_channel.iter().skip(tap).step_by(kernel);
    let taps: Vec<f32> = (0..kernel).flat_map(of_tap).copied().collect();
    loader.vector_of(part, layer, &taps)
}
