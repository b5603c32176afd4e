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
use crate::config::MAX_TAPS;
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
    pub(super) fn compute(&self, isa: Isa, rows: Range<usize>, mut out: &mut [f32]) {
        let (width, dim) = (self.conv.width(), self.conv.row_dim());
        let first = self.step.spans.partition_point(|span| span.rows.end <= rows.start);
        for (number, span) in self.step.spans.iter().enumerate().skip(first) {
            let part = rows.start.max(span.rows.start)..rows.end.min(span.rows.end);
            if part.is_empty() {
                break;
            }
            // Positions of its own span that the first row sees beside its own, and of the state where these
            // are few.
            let own = (part.start - span.rows.start).min(self.conv.kernel - 1);
            let kept = &self.state(number)[own * width..];
            let x = &self.x[(part.start - own) * dim..part.end * dim];
            let (these, others) = out.split_at_mut(part.len() * width);
            convolve(isa, self.conv, kept, x, these);
            out = others;
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
    /// Rows one after the other: `kept`, the positions of the state that the first one sees, `[.., width]`,
    /// and `x`, those of its span and all rows, `[.., dim]`.
    fn convolve(conv: &CausalConv, kept: &[f32], x: &[f32], out: &mut [f32]) = convolve_body;
}

/// Columns that are computed together, in vectors.
const VECTORS: usize = 2;
/// Rows that are computed together. Each is a stream of memory, and hardware prefetchers follow only so many.
/// (Column by column down all rows of a prompt, nearly every line was a cache miss.)
const ROWS: usize = 4;
/// Kernels up to this length have code of their own.
const EXACT: usize = 4;

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn convolve_body<S: Simd>(conv: &CausalConv, kept: &[f32], x: &[f32], out: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        match conv.kernel {
            2 => down_rows::<S, 2>(conv, kept, x, out),
            3 => down_rows::<S, 3>(conv, kept, x, out),
            4 => down_rows::<S, 4>(conv, kept, x, out),
            ..=8 => down_rows::<S, 8>(conv, kept, x, out),
            _ => down_rows::<S, MAX_TAPS>(conv, kept, x, out),
        }
    }
}

/// Kernels of `K` positions; of up to so many if `K` is above [`EXACT`].
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn down_rows<S: Simd, const K: usize>(conv: &CausalConv, kept: &[f32], x: &[f32], out: &mut [f32]) {
    let (width, dim) = (conv.width(), conv.row_dim());
    assert!(if K <= EXACT { conv.kernel == K } else { conv.kernel <= K });
    for (block, out) in out.chunks_mut(ROWS * width).enumerate() {
        let positions = Positions { conv, kept, x, first: block * ROWS, kept_rows: kept.len() / width, dim };
        for column in (0..width).step_by(VECTORS * LANES) {
            // SAFETY: the caller's promise.
            unsafe { some_columns::<S, K>(&positions, column, out) };
        }
    }
}

/// What rows from one on see: positions of the state, and then rows.
struct Positions<'a> {
    conv: &'a CausalConv,
    kept: &'a [f32],
    x: &'a [f32],
    first: usize,
    kept_rows: usize,
    dim: usize,
}

impl Positions<'_> {
    /// Some columns of the `at`th position that the first row sees.
    ///
    /// # Safety
    /// The tier's instructions.
    #[inline(always)]
    unsafe fn load<S: Simd>(&self, at: usize, column: usize, width: usize) -> [S::F; VECTORS] {
        let at = self.first + at;
        // SAFETY: the caller's promise.
        unsafe {
            match at.checked_sub(self.kept_rows) {
                None => vectors::<S>(&self.kept[at * width..][..width], column),
                Some(row) => input::<S>(self.conv.form, &self.x[row * self.dim..][..self.dim], column, width),
            }
        }
    }
}

/// Some columns of a few rows. The taps stay in registers, and so do the inputs that the next row sees again.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn some_columns<S: Simd, const K: usize>(positions: &Positions<'_>, column: usize, out: &mut [f32]) {
    let conv = positions.conv;
    let (width, kernel) = (conv.width(), if K <= EXACT { K } else { conv.kernel });
    // SAFETY: the caller's promise.
    unsafe {
        let (mut taps, mut window) = ([[S::zero(); VECTORS]; K], [[S::zero(); VECTORS]; K]);
        for (number, tap) in taps[K - kernel..].iter_mut().enumerate() {
            *tap = vectors::<S>(&conv.taps.values[number * width..][..width], column);
        }
        let bias = conv.bias.as_ref().map(|bias| vectors::<S>(&bias.values, column));
        for at in 0..kernel - 1 {
            push(&mut window, positions.load::<S>(at, column, width));
        }
        for row in 0..out.len() / width {
            push(&mut window, positions.load::<S>(row + kernel - 1, column, width));
            let own = positions.first + row + kernel - 1 - positions.kept_rows;
            let own = &positions.x[own * positions.dim..][..positions.dim];
            let out = &mut out[row * width..][..width];
            for vector in 0..VECTORS {
                let mut sum = bias.map_or(S::zero(), |bias| bias[vector]);
                for tap in 0..K {
                    if tap >= K - kernel {
                        sum = S::fma(taps[tap][vector], window[tap][vector], sum);
                    }
                }
                let at = (column + vector * LANES).min(width)..(column + (vector + 1) * LANES).min(width);
                let y = match conv.form {
                    ConvForm::Gated => S::mul(sum, S::load_some(&own[width..2 * width][at.clone()])),
                    ConvForm::Silu => math::silu::<S>(sum),
                };
                S::store_some(&mut out[at], y);
            }
        }
    }
}

/// Some columns of a row of `width`; zeros behind the last one.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn vectors<S: Simd>(row: &[f32], column: usize) -> [S::F; VECTORS] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut out = [S::zero(); VECTORS];
        for (vector, out) in out.iter_mut().enumerate() {
            let at = column + vector * LANES;
            *out = S::load_some(&row[at.min(row.len())..(at + LANES).min(row.len())]);
        }
        out
    }
}

/// What the convolution sees of some columns of a row.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn input<S: Simd>(form: ConvForm, row: &[f32], column: usize, width: usize) -> [S::F; VECTORS] {
    // SAFETY: the caller's promise.
    unsafe {
        match form {
            ConvForm::Silu => vectors::<S>(row, column),
            ConvForm::Gated => {
                let gate = vectors::<S>(&row[..width], column);
                let mut x = vectors::<S>(&row[2 * width..], column);
                for (x, gate) in x.iter_mut().zip(gate) {
                    *x = S::mul(gate, *x);
                }
                x
            }
        }
    }
}

/// The window goes on by a position.
#[inline(always)]
fn push<F: Copy, const K: usize>(window: &mut [[F; VECTORS]; K], next: [F; VECTORS]) {
    window.rotate_left(1);
    window[K - 1] = next;
}
