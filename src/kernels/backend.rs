//! What computes: one trait between the facade [`Ops`](super::Ops), which checks arguments, and the machine.
//!
//! A further backend (another GPU library, say) is one new file that implements [`Backend`], and one
//! constructor beside [`Ops::cpu`](super::Ops::cpu) and [`Ops::candle`](super::Ops::candle). No data type has
//! to learn of it: what it makes of weights, tables and activations is [`Opaque`] to all others. The test
//! below adds such a backend.

use std::ops::Range;

use candle_core::{DType, Device};

use super::experts::{Assignments, Expert, ExpertTerms};
use super::misuse;
use super::opaque::Opaque;
use super::pack::Panels;
use super::types::{Attention, CausalConv, GatedNorm, Matrix, Norm, Projection, RopeTable, Scan, Stored};
use super::{Activation, CheckedStep, KvCache, KvFormat, KvLayout, Rows, ScanRows};
use crate::cache::storage::{LayerKv, LayerState};
use crate::config::GateFunction;
use crate::error::Result;
use crate::weights::{Bytes, WeightTensor, WeightType};

/// The operations of a forward pass. What they compute is documented at the methods of [`Ops`](super::Ops),
/// which has checked shapes, indices and the step before it calls them; rows may be none.
pub(super) trait Backend: Send + Sync {
    fn device(&self) -> &Device;
    /// The type of activations.
    fn dtype(&self) -> DType;
    /// What computes, in words.
    fn describe(&self) -> String;
    /// Threads of the host that compute.
    fn threads(&self) -> usize {
        1
    }

    /// A weight `[n, k]` whose rows have `row_bytes`.
    fn matrix(&self, w: &WeightTensor, n: usize, k: usize, row_bytes: usize) -> Result<Stored>;
    /// The number of the layout that [`panels`](Backend::panels) are in, where weights become panels.
    fn panel_layout(&self) -> Option<u32> {
        None
    }
    /// What a matrix was packed into.
    fn panels(&self, _: &Matrix) -> Option<Panels> {
        None
    }
    /// A matrix `[n, k]` of panels that were kept.
    fn kept(&self, _: WeightType, _: [usize; 2], _: Bytes) -> Result<Stored> {
        Err(misuse("there are no panels here"))
    }
    /// Values of a vector where this backend reads them; `None` if that is the host's memory.
    fn vector(&self, values: &[f32]) -> Result<Option<Opaque>>;
    fn rows(&self, values: Vec<f32>, dim: usize) -> Result<Rows>;
    fn floats(&self, x: Rows) -> Result<Vec<f32>>;
    /// Takes a vector of [`floats`](Backend::floats) back.
    fn recycle(&self, _: Vec<f32>) {}
    /// Gives memory back that is only kept for the next step.
    fn trim(&self) {}
    /// Calls `task` with each of `0..tasks`; one after another unless the backend has threads.
    fn parallel_for(&self, _: &'static str, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        (0..tasks).for_each(task);
        Ok(())
    }

    fn embed(&self, m: &Matrix, ids: &[u32], scale: Option<f32>) -> Result<Rows>;
    /// As many results as there are projections.
    fn linears(&self, linears: &[Projection<'_>], x: &Rows) -> Result<Vec<Rows>>;
    fn linear_add(&self, linear: Projection<'_>, x: &Rows, to: Rows) -> Result<Rows>;
    fn gated(&self, gate: Projection<'_>, up: Projection<'_>, x: &Rows, act: Activation) -> Result<Rows>;
    fn activated(&self, up: Projection<'_>, x: &Rows, act: Activation) -> Result<Rows>;
    fn experts(
        &self,
        experts: &[Expert],
        act: Activation,
        x: &Rows,
        a: &Assignments,
        terms: &ExpertTerms<'_>,
    ) -> Result<Rows>;
    /// `norm(x)`, or `to + norm(x)`.
    fn norm(&self, norm: &Norm, x: &Rows, to: Option<Rows>) -> Result<Rows>;
    /// `x * y`, element by element; `y` are as many columns of `by`, from `start` on.
    fn mul(&self, x: Rows, by: &Rows, start: usize) -> Result<Rows>;
    /// `x` times the function of `gate`, each of whose numbers is for as many neighbours in a row.
    fn output_gate(&self, x: Rows, gate: Rows, function: GateFunction) -> Result<Rows>;
    /// Of each group of `width` columns those in `range`.
    fn columns(&self, x: &Rows, width: usize, range: Range<usize>) -> Result<Rows>;
    /// Each of `groups` groups of the columns of each part, side by side.
    fn joined(&self, parts: &[&Rows], groups: usize) -> Result<Rows>;
    /// `to + scale * x`.
    fn add(&self, x: &Rows, scale: f32, to: Rows) -> Result<Rows>;
    /// Each row times a factor of its own.
    fn scale_rows(&self, x: &Rows, factors: &[f32]) -> Result<Rows>;
    fn rope_table(&self, inv_freq: &[f32], scale: f32, positions: &[u32]) -> Result<Opaque>;
    fn heads(&self, x: Rows, head_dim: usize, norm: Option<&Norm>, table: Option<&RopeTable>)
    -> Result<Rows>;
    fn soft_cap(&self, x: Rows, cap: f32) -> Result<Rows>;
    fn select_rows(&self, x: &Rows, rows: &[u32]) -> Result<Rows>;

    fn kv_format(&self) -> KvFormat;
    fn is_exact(&self) -> bool;
    fn kv_cache(&self, layout: &KvLayout, pages: usize) -> Result<KvCache>;
    /// Keys and values of the rows into rows `slots` of the cache (`page * PAGE + position % PAGE`).
    fn kv_write(&self, kv: &LayerKv, k: &Rows, v: &Rows, slots: &[u32]) -> Result<()>;
    /// `group`: which page table of a span is that of this layer.
    fn attention(
        &self,
        q: &Rows,
        kv: &LayerKv,
        group: usize,
        step: &CheckedStep<'_>,
        a: &Attention<'_>,
    ) -> Result<Rows>;
    /// The convolution's part of a state is the first.
    fn causal_conv(
        &self,
        x: &Rows,
        conv: &CausalConv,
        state: &LayerState,
        step: &CheckedStep<'_>,
    ) -> Result<Rows>;
    /// The scan's part of a state is the last.
    fn scan(
        &self,
        rows: ScanRows<'_>,
        scan: &Scan,
        state: &LayerState,
        step: &CheckedStep<'_>,
    ) -> Result<Rows>;
    fn gated_norm(&self, x: Rows, gate: &Rows, norm: &GatedNorm) -> Result<Rows>;
}

#[cfg(test)]
mod tests;
