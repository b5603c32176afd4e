//! Operations on one element at a time.

use super::isa::tiered;
use super::math;
use super::simd::{LANES, Simd};
use crate::config::GateFunction;

/// A function of one element.
#[derive(Clone, Copy)]
pub(super) enum Unary {
    Scale(f32),
    /// `cap * tanh(x / cap)`
    SoftCap(f32),
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
    /// `x = x * f(gate)`, each number of `gate` for `width` of x.
    pub(super) fn gate(f: GateFunction, gate: &[f32], width: usize, x: &mut [f32]) = gate_body;
}

tiered! {
    /// `x = x * by`, of equal lengths.
    pub(super) fn mul(by: &[f32], x: &mut [f32]) = mul_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn gate_body<S: Simd>(f: GateFunction, gate: &[f32], width: usize, x: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        if width == 1 {
            for (gate, x) in gate.chunks(LANES).zip(x.chunks_mut(LANES)) {
                S::store_some(x, S::mul(S::load_some(x), opened::<S>(f, S::load_some(gate))));
            }
            return;
        }
        for (gate, x) in gate.iter().zip(x.chunks_exact_mut(width)) {
            let factor = opened::<S>(f, S::splat(*gate));
            for x in x.chunks_mut(LANES) {
                S::store_some(x, S::mul(S::load_some(x), factor));
            }
        }
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn opened<S: Simd>(f: GateFunction, gate: S::F) -> S::F {
    // SAFETY: the caller's promise.
    unsafe {
        match f {
            GateFunction::Sigmoid => math::sigmoid::<S>(gate),
            GateFunction::Silu => math::silu::<S>(gate),
            GateFunction::Softplus => math::softplus::<S>(gate),
        }
    }
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
            };
            S::store_some(x, value);
        }
    }
}
