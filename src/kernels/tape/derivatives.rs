//! Derivatives of the operations that work on one row: norms, activations, gates, and the loss of a row of
//! logits.

use super::super::isa::tiered;
use super::super::math;
use super::super::simd::{LANES, Simd};
use crate::config::{Activation, Xielu};

/// Groups of rows that passed a norm, and the gradient of what came out.
#[derive(Clone, Copy)]
pub(super) struct NormRows<'a> {
    pub rms: bool,
    pub eps: f32,
    /// Of one group, or of several that follow each other.
    pub weight: &'a [f32],
    pub group: usize,
    pub x: &'a [f32],
    pub dy: &'a [f32],
    /// The gradient is added to what is there.
    pub add: bool,
}

tiered! {
    /// `dx = r (t - mean(t) - n mean(t n))` with `n = (x - mean(x)) r`, `t = dy w`, and r one over the root
    /// of the variance; of an RMS norm without both means.
    pub(super) fn norm(rows: NormRows<'_>, dx: &mut [f32]) = norm_body;
}
tiered! {
    /// Of `y = act(gate) * up`: `gate` becomes its gradient, and so does `up`.
    pub(super) fn gated(act: Activation, dy: &[f32], gate: &mut [f32], up: &mut [f32]) = gated_body;
}
tiered! {
    /// `out = act(gate) * up`.
    pub(super) fn gate(act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) = gate_body;
}
tiered! {
    /// `x = act(x)`.
    pub(super) fn activate(act: Activation, x: &mut [f32]) = activate_body;
}
tiered! {
    /// Of `y = act(x)`: `x` becomes its gradient.
    pub(super) fn activated(act: Activation, dy: &[f32], x: &mut [f32]) = activated_body;
}
tiered! {
    /// Of a row of logits: `stats` become the greatest and the sum of `exp(logit - greatest)`.
    pub(super) fn softmax_stats(logits: &[f32], stats: &mut (f32, f64)) = stats_body;
}
tiered! {
    /// A row of logits becomes `factor * softmax`, times the slope of the soft cap if there is one.
    pub(super) fn softmax_gradient(row: SoftmaxRow, logits: &mut [f32]) = softmax_body;
}

/// What makes the gradient of a row of logits.
#[derive(Clone, Copy)]
pub(super) struct SoftmaxRow {
    pub greatest: f32,
    /// Over the sum of exponentials.
    pub factor: f32,
    pub cap: Option<f32>,
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn norm_body<S: Simd>(rows: NormRows<'_>, dx: &mut [f32]) {
    let NormRows { rms, eps, weight, group, x, dy, add } = rows;
    let inverse = 1.0 / group as f32;
    let weights = weight.chunks_exact(group).cycle();
    let groups = x.chunks_exact(group).zip(dy.chunks_exact(group)).zip(dx.chunks_exact_mut(group));
    for (((x, dy), dx), weight) in groups.zip(weights) {
        let parts = |at: usize| at..group.min(at + LANES);
        // SAFETY: the caller has the tier's instructions; slices are as long as their ranges.
        unsafe {
            let mut mean = 0.0;
            if !rms {
                let mut sum = S::zero();
                for at in (0..group).step_by(LANES) {
                    sum = S::add(sum, S::load_some(&x[parts(at)]));
                }
                mean = S::reduce_sum(sum) * inverse;
            }
            // What is beside the last number counts for nothing: its weight is zero.
            let (mut squares, mut sum_t, mut sum_tx) = (S::zero(), S::zero(), S::zero());
            for at in (0..group).step_by(LANES) {
                let range = parts(at);
                let x = centred::<S>(&x[range.clone()], mean);
                let t = S::mul(S::load_some(&dy[range.clone()]), S::load_some(&weight[range]));
                squares = S::fma(x, x, squares);
                sum_t = S::add(sum_t, t);
                sum_tx = S::fma(t, x, sum_tx);
            }
            let r = 1.0 / (S::reduce_sum(squares) * inverse + eps).sqrt();
            let mean_t = if rms { 0.0 } else { S::reduce_sum(sum_t) * inverse };
            let slope = S::splat(-(S::reduce_sum(sum_tx) * inverse) * r * r);
            let (r, mean_t) = (S::splat(r), S::splat(mean_t));
            for at in (0..group).step_by(LANES) {
                let range = parts(at);
                let x = centred::<S>(&x[range.clone()], mean);
                let t = S::mul(S::load_some(&dy[range.clone()]), S::load_some(&weight[range.clone()]));
                let value = S::mul(r, S::fma(x, slope, S::sub(t, mean_t)));
                let out = &mut dx[range];
                let value = if add { S::add(S::load_some(out), value) } else { value };
                S::store_some(out, value);
            }
        }
    }
}

/// Numbers less their mean; zeros beside the last one.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn centred<S: Simd>(x: &[f32], mean: f32) -> S::F {
    // SAFETY: the caller's promise; sixteen floats.
    unsafe {
        if let Some(full) = x.first_chunk::<LANES>() {
            return S::sub(S::load(full.as_ptr()), S::splat(mean));
        }
        let mut lanes = [mean; LANES];
        lanes[..x.len()].copy_from_slice(x);
        S::sub(S::load(lanes.as_ptr()), S::splat(mean))
    }
}

/// The activation and its slope.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn slope<S: Simd>(act: Activation, x: S::F) -> (S::F, S::F) {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe {
        let (zero, one) = (S::zero(), S::splat(1.0));
        match act {
            Activation::Silu => {
                let s = math::sigmoid::<S>(x);
                let value = S::mul(x, s);
                (value, S::fma(value, S::sub(one, s), s))
            }
            Activation::Gelu => {
                let half = S::splat(0.5);
                let phi = math::erf::<S>(S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2)));
                let phi = S::fma(half, phi, half);
                let density = math::exp::<S>(S::mul(S::mul(x, x), S::splat(-0.5)));
                let density = S::mul(density, S::splat(0.398_942_3));
                (S::mul(x, phi), S::fma(x, density, phi))
            }
            Activation::GeluTanh => {
                // x sigmoid(w), w = 2 sqrt(2/pi) (x + 0.044715 x^3).
                const TWICE: f32 = 1.595_769;
                let square = S::mul(x, x);
                let w = S::mul(S::mul(x, S::splat(TWICE)), S::fma(square, S::splat(0.044_715), one));
                let s = math::sigmoid::<S>(w);
                let value = S::mul(x, s);
                let dw = S::mul(S::fma(square, S::splat(3.0 * 0.044_715), one), S::splat(TWICE));
                (value, S::fma(S::mul(value, S::sub(one, s)), dw, s))
            }
            Activation::Relu => (S::max(x, zero), S::select_lt(zero, x, one, zero)),
            Activation::Relu2 => {
                let x = S::max(x, zero);
                (S::mul(x, x), S::mul(S::splat(2.0), x))
            }
            Activation::Xielu(Xielu { p, n, beta, eps }) => {
                let beta = S::splat(beta);
                let above = S::fma(S::mul(S::splat(2.0 * p), x), one, beta);
                let power = math::exp::<S>(S::min(x, S::splat(eps)));
                let inner = S::select_lt(x, S::splat(eps), power, zero);
                let below = S::fma(S::splat(n), S::sub(inner, one), beta);
                (math::activate::<S>(act, x), S::select_lt(zero, x, above, below))
            }
            // A gate that also changes what it lets through; it is refused before.
            Activation::ClampedSwiglu => (zero, zero),
        }
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn gated_body<S: Simd>(act: Activation, dy: &[f32], gate: &mut [f32], up: &mut [f32]) {
    for ((dy, gate), up) in dy.chunks(LANES).zip(gate.chunks_mut(LANES)).zip(up.chunks_mut(LANES)) {
        // SAFETY: the caller's promise.
        unsafe {
            let (dy, u) = (S::load_some(dy), S::load_some(up));
            let (value, slope) = slope::<S>(act, S::load_some(gate));
            S::store_some(gate, S::mul(S::mul(dy, u), slope));
            S::store_some(up, S::mul(dy, value));
        }
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn gate_body<S: Simd>(act: Activation, gate: &[f32], up: &[f32], out: &mut [f32]) {
    for ((gate, up), out) in gate.chunks(LANES).zip(up.chunks(LANES)).zip(out.chunks_mut(LANES)) {
        // SAFETY: the caller's promise.
        unsafe { S::store_some(out, math::gated::<S>(act, S::load_some(gate), S::load_some(up))) };
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn activate_body<S: Simd>(act: Activation, x: &mut [f32]) {
    for x in x.chunks_mut(LANES) {
        // SAFETY: the caller's promise.
        unsafe { S::store_some(x, math::activate::<S>(act, S::load_some(x))) };
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn activated_body<S: Simd>(act: Activation, dy: &[f32], x: &mut [f32]) {
    for (dy, x) in dy.chunks(LANES).zip(x.chunks_mut(LANES)) {
        // SAFETY: the caller's promise.
        unsafe {
            let (_, slope) = slope::<S>(act, S::load_some(x));
            S::store_some(x, S::mul(S::load_some(dy), slope));
        }
    }
}

/// Vectors after which sums of exponentials go into f64.
const FLUSH: usize = 64;

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn stats_body<S: Simd>(logits: &[f32], stats: &mut (f32, f64)) {
    let (full, tail) = logits.as_chunks::<LANES>();
    // SAFETY: the caller has the tier's instructions; chunks are sixteen floats.
    unsafe {
        let mut most = S::splat(f32::NEG_INFINITY);
        for lanes in full {
            most = S::max(S::load(lanes.as_ptr()), most);
        }
        let greatest = tail.iter().fold(S::reduce_max(most), |most, &it| if it > most { it } else { most });
        let mut sum = 0.0f64;
        for some in full.chunks(FLUSH) {
            let mut part = S::zero();
            for lanes in some {
                part = S::add(part, math::exp::<S>(S::sub(S::load(lanes.as_ptr()), S::splat(greatest))));
            }
            sum += f64::from(S::reduce_sum(part));
        }
        let rest: f64 = tail.iter().map(|&logit| f64::from(logit - greatest).exp()).sum();
        *stats = (greatest, sum + rest);
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn softmax_body<S: Simd>(row: SoftmaxRow, logits: &mut [f32]) {
    let SoftmaxRow { greatest, factor, cap } = row;
    let inverse = cap.map(|cap| 1.0 / cap);
    for logits in logits.chunks_mut(LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let x = S::load_some(logits);
            let power = math::exp::<S>(S::sub(x, S::splat(greatest)));
            let mut value = S::mul(power, S::splat(factor));
            if let Some(inverse) = inverse {
                let t = S::mul(x, S::splat(inverse));
                value = S::mul(value, S::fma(S::mul(t, S::splat(-1.0)), t, S::splat(1.0)));
            }
            S::store_some(logits, value);
        }
    }
}

#[cfg(test)]
mod tests;
