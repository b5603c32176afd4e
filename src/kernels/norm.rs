//! RMS norm and layer norm over groups of a row, sums in the order of [`lanes`](super::lanes).

use super::isa::{Isa, Tier, tiered};
use super::lanes::{self, LANES, Lanes};
use super::pool::{Pool, Shares};
use crate::error::Result;

/// Floats of a task.
const PIECE: usize = 8192;

/// Which norm, with its weights.
#[derive(Clone, Copy)]
pub(super) enum Norm<'a> {
    Rms { weight: &'a [f32] },
    Layer { weight: &'a [f32], bias: Option<&'a [f32]> },
}

impl Norm<'_> {
    fn group(&self) -> usize {
        match self {
            Norm::Rms { weight } | Norm::Layer { weight, .. } => weight.len(),
        }
    }
}

/// Normalizes every group of `norm`'s length in `x`, which is whole groups.
pub(super) fn norm(
    pool: &Pool,
    isa: Isa,
    norm: Norm<'_>,
    eps: f32,
    x: &[f32],
    out: &mut [f32],
) -> Result<()> {
    let piece = (PIECE / norm.group()).max(1) * norm.group();
    let len = x.len().min(out.len());
    let out = Shares::new(out);
    pool.run(len.div_ceil(piece), &|index| {
        let range = index * piece..len.min((index + 1) * piece);
        // SAFETY: pieces do not overlap.
        norm_piece(isa, norm, eps, &x[range.clone()], unsafe { out.part(range) });
    })
}

tiered! { fn norm_piece(norm: Norm<'_>, eps: f32, x: &[f32], out: &mut [f32]) = norm_body; }

#[inline(always)]
fn norm_body<T: Tier>(norm: Norm<'_>, eps: f32, x: &[f32], out: &mut [f32]) {
    let group = norm.group();
    for (x, out) in x.chunks_exact(group).zip(out.chunks_exact_mut(group)) {
        match norm {
            Norm::Rms { weight } => rms(x, weight, eps, out),
            Norm::Layer { weight, bias } => layer(x, weight, bias, eps, out),
        }
    }
}

#[inline(always)]
fn rms(x: &[f32], weight: &[f32], eps: f32, out: &mut [f32]) {
    let squares = lanes::accumulate(x, |acc, x| lanes::fma(acc, x, x));
    let scale = 1.0 / (lanes::sum(&squares) / x.len() as f32 + eps).sqrt();
    for ((out, x), weight) in out.iter_mut().zip(x).zip(weight) {
        *out = x * scale * weight;
    }
}

#[inline(always)]
fn layer(x: &[f32], weight: &[f32], bias: Option<&[f32]>, eps: f32, out: &mut [f32]) {
    let mean = lanes::sum(&lanes::accumulate(x, add)) / x.len() as f32;
    for (out, x) in out.iter_mut().zip(x) {
        *out = x - mean;
    }
    let squares = lanes::accumulate(out, |acc, x| lanes::fma(acc, x, x));
    let scale = 1.0 / (lanes::sum(&squares) / x.len() as f32 + eps).sqrt();
    match bias {
        Some(bias) => {
            for ((out, weight), bias) in out.iter_mut().zip(weight).zip(bias) {
                *out = *out * scale * weight + bias;
            }
        }
        None => {
            for (out, weight) in out.iter_mut().zip(weight) {
                *out = *out * scale * weight;
            }
        }
    }
}

#[inline(always)]
fn add(acc: &mut Lanes, x: &Lanes) {
    for l in 0..LANES {
        acc[l] += x[l];
    }
}
