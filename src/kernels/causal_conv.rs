//! Causal depthwise convolutions over a few positions on the CPU: LFM2's, `y = C * (bias + conv(B * x))`, and
//! that before a recurrent scan, `y = silu(bias + conv(x))`.
//!
//! A row needs the inputs of the `kernel - 1` positions before it: of rows of the same step, or of the state,
//! which is just these. Products `B * x` are recomputed for each row rather than kept, so rows depend on
//! nothing that another task computes. The sum over the taps goes from the oldest position to the row's own,
//! whatever the step.

use std::ops::Range;

use super::CheckedStep;
use super::isa::{Isa, tiered};
use super::math;
use super::simd::{LANES, Simd};
use super::types::{CausalConv, ConvForm};
use crate::step::{Span, StateWrite};

/// One call: the rows `[rows, dim]`, and the state before each span.
pub(super) struct Rows<'a> {
    x: &'a [f32],
    conv: &'a CausalConv,
    step: &'a CheckedStep<'a>,
    /// Per span `[kernel - 1, width]`, the oldest position first.
    before: Vec<f32>,
}

impl<'a> Rows<'a> {
    /// `states`: `[slots, state_len]`; this convolution's part of a state is the first.
    pub(super) fn new(
        x: &'a [f32],
        conv: &'a CausalConv,
        step: &'a CheckedStep<'a>,
        states: &[f32],
        state_len: usize,
    ) -> Self {
        let len = conv.state_len();
        let mut before = vec![0.0; step.spans.len() * len];
        for (span, before) in step.spans.iter().zip(before.chunks_exact_mut(len.max(1))) {
            if let Some(slot) = span.state.read {
                before.copy_from_slice(&states[slot as usize * state_len..][..len]);
            }
        }
        Rows { x, conv, step, before }
    }

    /// `y` of some rows of the step, `[rows, width]`.
    pub(super) fn compute(&self, isa: Isa, rows: Range<usize>, out: &mut [f32]) {
        let (width, dim) = (self.conv.width(), self.conv.row_dim());
        let mut number = self.step.spans.partition_point(|span| span.rows.end <= rows.start);
        for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
            while self.step.spans[number].rows.end <= row {
                number += 1;
            }
            // Positions of its own span that it sees beside its own, and of the state where these are few.
            let at = row - self.step.spans[number].rows.start;
            let own = at.min(self.conv.kernel - 1);
            let kept = &self.state(number)[own * width..];
            let x = &self.x[(row - own) * dim..(row + 1) * dim];
            convolve(isa, self.conv, kept, x, out);
        }
    }

    fn state(&self, span: usize) -> &[f32] {
        let len = self.conv.state_len();
        &self.before[span * len..(span + 1) * len]
    }

    /// The input of the convolution at row `at` of a span; of the state where `at` has wrapped below 0.
    fn input(&self, number: usize, at: usize, out: &mut [f32]) {
        let (width, dim) = (self.conv.width(), self.conv.row_dim());
        let Span { rows, .. } = &self.step.spans[number];
        if at >= rows.len() {
            let kept = (self.conv.kernel - 1).wrapping_add(at);
            return out.copy_from_slice(&self.state(number)[kept * width..][..width]);
        }
        let row = &self.x[(rows.start + at) * dim..][..dim];
        match self.conv.form {
            ConvForm::Gated => {
                for ((out, gate), x) in out.iter_mut().zip(&row[..width]).zip(&row[2 * width..]) {
                    *out = gate * x;
                }
            }
            ConvForm::Silu => out.copy_from_slice(row),
        }
    }

    /// Writes the states that the step asks for.
    pub(super) fn leave(&self, states: &mut [f32], state_len: usize) {
        let (width, len, kernel) = (self.conv.width(), self.conv.state_len(), self.conv.kernel);
        for (number, span) in self.step.spans.iter().enumerate() {
            for &StateWrite { rows, slot } in &span.state.writes {
                let state = &mut states[slot as usize * state_len..][..len];
                for (kept, out) in state.chunks_exact_mut(width).enumerate() {
                    self.input(number, (rows + kept + 1).wrapping_sub(kernel), out);
                }
            }
        }
    }
}

tiered! {
    /// One row: `kept`, the positions of the state that it sees, `[.., width]`, and `x`, those of its span
    /// and itself, `[.., dim]`; together the kernel's.
    fn convolve(conv: &CausalConv, kept: &[f32], x: &[f32], out: &mut [f32]) = convolve_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn convolve_body<S: Simd>(conv: &CausalConv, kept: &[f32], x: &[f32], out: &mut [f32]) {
    let (width, dim) = (conv.width(), conv.row_dim());
    let row = &x[x.len() - dim..];
    let mut at = 0;
    while at < width {
        let end = width.min(at + LANES);
        // SAFETY: the caller's promise.
        unsafe {
            let mut sum = match &conv.bias {
                Some(bias) => S::load_some(&bias.values[at..end]),
                None => S::zero(),
            };
            let mut taps = conv.taps.values.chunks_exact(width);
            for (kept, tap) in kept.chunks_exact(width).zip(taps.by_ref()) {
                sum = S::fma(S::load_some(&tap[at..end]), S::load_some(&kept[at..end]), sum);
            }
            for (x, tap) in x.chunks_exact(dim).zip(taps) {
                let input = match conv.form {
                    ConvForm::Gated => {
                        let gate = S::load_some(&x[at..end]);
                        S::mul(gate, S::load_some(&x[2 * width + at..2 * width + end]))
                    }
                    ConvForm::Silu => S::load_some(&x[at..end]),
                };
                sum = S::fma(S::load_some(&tap[at..end]), input, sum);
            }
            let y = match conv.form {
                ConvForm::Gated => S::mul(sum, S::load_some(&row[width + at..width + end])),
                ConvForm::Silu => math::silu::<S>(sum),
            };
            S::store_some(&mut out[at..end], y);
        }
        at = end;
    }
}
