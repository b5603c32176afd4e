//! Operations on one element at a time.

use super::isa::{Isa, tiered};
use super::math;
use super::simd::{LANES, Simd};
use crate::config::GateFunction;

/// A function of one element.
#[derive(Clone, Copy)]
pub(super) enum Unary {
    Scale(f32),
    /// `cap * tanh(x / cap)`
    SoftCap(f32),
    /// `1 / (1 + e^-x)`
    Sigmoid,
}

tiered! {
    /// `x = f(x)`
    pub(super) fn unary(f: Unary, x: &mut [f32]) = unary_body;
}
tiered! {
    /// `to = to + scale * x`, of equal lengths.
    pub(super) fn add(scale: f32, x: &[f32], to: &mut [f32]) = add_body;
}

tiered! {
    /// `x = x * by`, of equal lengths.
    pub(super) fn mul(by: &[f32], x: &mut [f32]) = mul_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn mul_body<S: Simd>(by: &[f32], x: &mut [f32]) {
    for (by, x) in by.chunks(LANES).zip(x.chunks_mut(LANES)) {
        // SAFETY: the caller's promise.
        unsafe { S::store_some(x, S::mul(S::load_some(x), S::load_some(by))) };
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn add_body<S: Simd>(scale: f32, x: &[f32], to: &mut [f32]) {
    for (x, to) in x.chunks(LANES).zip(to.chunks_mut(LANES)) {
        // SAFETY: the caller's promise.
        unsafe {
            let scaled = S::mul(S::load_some(x), S::splat(scale));
            S::store_some(to, S::add(S::load_some(to), scaled));
        }
    }
}

tiered! {
    /// `x = x * y`, of equal lengths.
    pub(super) fn multiply(y: &[f32], x: &mut [f32]) = multiply_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn multiply_body<S: Simd>(y: &[f32], x: &mut [f32]) {
    for (y, x) in y.chunks(LANES).zip(x.chunks_mut(LANES)) {
        // SAFETY: the caller's promise.
        unsafe { S::store_some(x, S::mul(S::load_some(x), S::load_some(y))) };
    }
}

/// The values of a gate. Few, so that the logarithm of softplus is the standard library's.
pub(super) fn open(isa: Isa, function: GateFunction, gate: &mut [f32]) {
    match function {
        GateFunction::Sigmoid => unary(isa, Unary::Sigmoid, gate),
        GateFunction::Softplus => {
            gate.iter_mut().for_each(|x| *x = x.max(0.0) + (-x.abs()).exp().ln_1p());
        }
    }
}

/// Rows of `x` times a gate of so many values that each serves as many neighbours.
pub(super) fn let_through(isa: Isa, gate: &[f32], x: &mut [f32]) {
    let width = x.len().checked_div(gate.len()).unwrap_or(0);
    if width == 1 {
        return multiply(isa, gate, x);
    }
    for (factor, x) in gate.iter().zip(x.chunks_exact_mut(width.max(1))) {
        unary(isa, Unary::Scale(*factor), x);
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn unary_body<S: Simd>(f: Unary, x: &mut [f32]) {
    for x in x.chunks_mut(LANES) {
        // SAFETY: the caller's promise.
        unsafe {
            let value = S::load_some(x);
            let value = match f {
                Unary::Scale(factor) => S::mul(value, S::splat(factor)),
                Unary::SoftCap(cap) => S::mul(S::splat(cap), math::tanh::<S>(S::div(value, S::splat(cap)))),
                Unary::Sigmoid => {
                    let one = S::splat(1.0);
                    S::div(one, S::add(one, math::exp::<S>(S::mul(value, S::splat(-1.0)))))
                }
            };
            S::store_some(x, value);
        }
    }
}
