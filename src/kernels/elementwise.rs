//! Operations on one element at a time: sums, scales, soft caps and activations.
//!
//! Long inputs are cut into pieces for the pool; where the cuts fall changes nothing.

use super::Activation;
use super::isa::{Isa, Tier, tiered};
use super::math;
use super::pool::{Pool, Shares};
use crate::error::Result;

/// Elements of a piece: 32 KiB, some microseconds of work.
const PIECE: usize = 8192;

/// A function of one element.
#[derive(Clone, Copy)]
pub(super) enum Unary {
    Scale(f32),
    SoftCap(f32),
    Act(Activation),
}

/// A function of two elements.
#[derive(Clone, Copy)]
pub(super) enum Binary {
    Add,
    /// `act(a) * b`
    Gated(Activation),
}

/// `out = f(x)`.
pub(super) fn unary(pool: &Pool, isa: Isa, f: Unary, x: &[f32], out: &mut [f32]) -> Result<()> {
    let len = x.len().min(out.len());
    let out = Shares::new(out);
    pool.run(len.div_ceil(PIECE), &|piece| {
        let range = piece * PIECE..len.min((piece + 1) * PIECE);
        // SAFETY: pieces do not overlap.
        unary_piece(isa, f, &x[range.clone()], unsafe { out.part(range) });
    })
}

/// `out = f(a, b)`.
pub(super) fn binary(pool: &Pool, isa: Isa, f: Binary, a: &[f32], b: &[f32], out: &mut [f32]) -> Result<()> {
    let len = a.len().min(b.len()).min(out.len());
    let out = Shares::new(out);
    pool.run(len.div_ceil(PIECE), &|piece| {
        let range = piece * PIECE..len.min((piece + 1) * PIECE);
        // SAFETY: pieces do not overlap.
        binary_piece(isa, f, &a[range.clone()], &b[range.clone()], unsafe { out.part(range) });
    })
}

tiered! { fn unary_piece(f: Unary, x: &[f32], out: &mut [f32]) = unary_body; }
tiered! { fn binary_piece(f: Binary, a: &[f32], b: &[f32], out: &mut [f32]) = binary_body; }

#[inline(always)]
fn unary_body<T: Tier>(f: Unary, x: &[f32], out: &mut [f32]) {
    match f {
        Unary::Scale(factor) => map(x, out, |x| x * factor),
        Unary::SoftCap(cap) => map(x, out, |x| cap * math::tanh(x / cap)),
        Unary::Act(Activation::Silu) => map(x, out, math::silu),
        Unary::Act(Activation::Gelu) => map(x, out, math::gelu),
        Unary::Act(Activation::GeluTanh) => map(x, out, math::gelu_tanh),
        Unary::Act(Activation::Relu) => map(x, out, math::relu),
    }
}

#[inline(always)]
fn binary_body<T: Tier>(f: Binary, a: &[f32], b: &[f32], out: &mut [f32]) {
    match f {
        Binary::Add => zip(a, b, out, |a, b| a + b),
        Binary::Gated(Activation::Silu) => zip(a, b, out, |a, b| math::silu(a) * b),
        Binary::Gated(Activation::Gelu) => zip(a, b, out, |a, b| math::gelu(a) * b),
        Binary::Gated(Activation::GeluTanh) => zip(a, b, out, |a, b| math::gelu_tanh(a) * b),
        Binary::Gated(Activation::Relu) => zip(a, b, out, |a, b| math::relu(a) * b),
    }
}

#[inline(always)]
fn map(x: &[f32], out: &mut [f32], f: impl Fn(f32) -> f32) {
    for (out, x) in out.iter_mut().zip(x) {
        *out = f(*x);
    }
}

#[inline(always)]
fn zip(a: &[f32], b: &[f32], out: &mut [f32], f: impl Fn(f32, f32) -> f32) {
    for ((out, a), b) in out.iter_mut().zip(a).zip(b) {
        *out = f(*a, *b);
    }
}
