//! The gated short convolution of LFM2 on the CPU: `y = C * (bias + conv(B * x))`, causal and depthwise.
//!
//! A row needs the products `B * x` of the `kernel - 1` positions before it: of rows of the same step, or of
//! the state, which is just these. They are recomputed for each row rather than kept, so rows depend on
//! nothing that another task computes. The sum over the taps goes from the oldest position to the row's own,
//! whatever the step.

use std::ops::Range;

use super::CheckedStep;
use super::types::ShortConv;
use crate::step::{Span, StateWrite};

/// One call: the rows `[rows, 3 * width]` of B, C and x, and the state before each span.
pub(super) struct Rows<'a> {
    x: &'a [f32],
    conv: &'a ShortConv,
    step: &'a CheckedStep<'a>,
    /// Per span `[kernel - 1, width]`, the oldest position first.
    before: Vec<f32>,
}

impl<'a> Rows<'a> {
    /// `states`: `[slots, (kernel - 1) * width]`.
    pub(super) fn new(x: &'a [f32], conv: &'a ShortConv, step: &'a CheckedStep<'a>, states: &[f32]) -> Self {
        let len = conv.state_len();
        let mut before = vec![0.0; step.spans.len() * len];
        for (span, before) in step.spans.iter().zip(before.chunks_exact_mut(len.max(1))) {
            if let Some(slot) = span.state.read {
                before.copy_from_slice(&states[slot as usize * len..][..len]);
            }
        }
        Rows { x, conv, step, before }
    }

    /// `y` of some rows of the step, `[rows, width]`.
    pub(super) fn compute(&self, rows: Range<usize>, out: &mut [f32]) {
        let (width, kernel) = (self.conv.width(), self.conv.kernel);
        let mut span = self.step.spans.partition_point(|span| span.rows.end <= rows.start);
        let mut product = vec![0.0; width];
        for (row, out) in rows.zip(out.chunks_exact_mut(width)) {
            while self.step.spans[span].rows.end <= row {
                span += 1;
            }
            match &self.conv.bias {
                Some(bias) => out.copy_from_slice(&bias.values),
                None => out.fill(0.0),
            }
            let at = row - self.step.spans[span].rows.start;
            for (tap, taps) in self.conv.taps.values.chunks_exact(width).enumerate() {
                self.product(span, (at + tap + 1).wrapping_sub(kernel), &mut product);
                for ((out, tap), product) in out.iter_mut().zip(taps).zip(&product) {
                    *out += tap * product;
                }
            }
            let gate = &self.x[row * 3 * width + width..][..width];
            out.iter_mut().zip(gate).for_each(|(out, gate)| *out *= gate);
        }
    }

    /// `B * x` of row `at` of a span; of the state where `at` has wrapped below 0.
    fn product(&self, span: usize, at: usize, out: &mut [f32]) {
        let width = self.conv.width();
        let Span { rows, .. } = &self.step.spans[span];
        if at >= rows.len() {
            let kept = (self.conv.kernel - 1).wrapping_add(at);
            let state = &self.before[span * self.conv.state_len()..][..self.conv.state_len()];
            return out.copy_from_slice(&state[kept * width..][..width]);
        }
        let row = &self.x[(rows.start + at) * 3 * width..][..3 * width];
        let (gate, x) = (&row[..width], &row[2 * width..]);
        for ((out, gate), x) in out.iter_mut().zip(gate).zip(x) {
            *out = gate * x;
        }
    }

    /// Writes the states that the step asks for.
    pub(super) fn leave(&self, states: &mut [f32]) {
        let (width, len, kernel) = (self.conv.width(), self.conv.state_len(), self.conv.kernel);
        for (number, span) in self.step.spans.iter().enumerate() {
            for &StateWrite { rows, slot } in &span.state.writes {
                let state = &mut states[slot as usize * len..][..len];
                for (kept, out) in state.chunks_exact_mut(width).enumerate() {
                    self.product(number, (rows + kept + 1).wrapping_sub(kernel), out);
                }
            }
        }
    }
}
