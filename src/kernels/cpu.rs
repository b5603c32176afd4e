//! The CPU backend: buffers, threads, and which kernel runs over what.

mod experts;
mod low_rank;
mod recurrent;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device};

use super::backend::Backend;
use super::disjoint::DisjointSlices;
use super::elementwise::{self, Unary};
use super::epilogue::{Epilogue, Product};
use super::experts::{Assignments, Expert, ExpertTerms};
use super::gemm::{self, Input};
use super::isa::Isa;
use super::opaque::Opaque;
use super::pack::{self, Arena, Packed, Panels};
use super::pool::Pool;
use super::quantize::{self, Job, Precision, Quantized};
use super::rows::{Block, Recycler, Rows};
use super::types::{
    Attention, CausalConv, GatedNorm, Linear, Matrix, Norm, Projection, RopeTable, Scan, ScanRows, Stored,
};
use super::{Activation, CheckedStep, KvCache, KvFormat, KvLayout, KvType, attention, norm, rope};
use crate::cache::storage::{LayerKv, LayerState};
use crate::config::{GateFunction, NormKind};
use crate::error::Result;
use crate::weights::{Bytes, WeightTensor, WeightType};

/// Floats of a task of the operations that are no products: some microseconds of work.
const TASK_FLOATS: usize = 8192;

pub(super) struct CpuBackend {
    pub(super) pool: Pool,
    pub(super) isa: Isa,
    kv: KvType,
    /// Activations are taken to 15 bits.
    exact: bool,
    arena: Arena,
    pub(super) recycler: Arc<Recycler>,
}

/// What a [`RopeTable`] is here: cosines and sines, each `[rows, half]`.
pub(super) struct Angles {
    pub(super) cos: Vec<f32>,
    pub(super) sin: Vec<f32>,
}

impl CpuBackend {
    /// # Errors
    /// `InvalidRequest` when `threads` is 0; `Device` when a thread cannot be started, or AMX is asked for
    /// and computes something else than AMX does.
    pub(super) fn new(threads: usize, kv: KvType, exact: bool, isa: Isa) -> Result<Self> {
        #[cfg(target_arch = "x86_64")]
        super::amx::self_check(isa)?;
        let pool = Pool::new(threads)?;
        Ok(CpuBackend { pool, isa, kv, exact, arena: Arena::default(), recycler: Arc::default() })
    }

    /// Runs `f` on parts of `out`, whole rows of `dim`: the rows, and their elements.
    pub(super) fn each_rows(
        &self,
        name: &'static str,
        dim: usize,
        out: &mut [f32],
        f: impl Fn(Range<usize>, &mut [f32]) + Sync,
    ) -> Result<()> {
        let rows = out.len().checked_div(dim).unwrap_or(0);
        let task_rows = (TASK_FLOATS / dim.max(1)).max(1);
        let out = DisjointSlices::new(out);
        self.pool.run(name, rows.div_ceil(task_rows), &|index| {
            let rows = index * task_rows..rows.min((index + 1) * task_rows);
            // SAFETY: the rows of two tasks do not overlap, and each task runs once.
            f(rows.clone(), unsafe { out.slice_mut(rows.start * dim..rows.end * dim) });
        })
    }

    /// The rows as products take them: as bytes too, once, if one of the weights takes them.
    fn input<'a>(&self, x: &'a Block, weights: &[&Packed], outlier: f32) -> Result<Input<'a>> {
        let mut bytes = x.bytes.get();
        if bytes.is_none() && weights.iter().any(|w| self.takes_bytes(w.dtype)) {
            let made = self.quantize(x, outlier)?;
            bytes = Some(x.bytes.get_or_init(|| made));
        }
        Ok(Input { rows: x.rows, k: x.dim, floats: x.floats(), bytes })
    }

    /// Where two bytes a number are asked for, levels are floats.
    fn takes_bytes(&self, dtype: WeightType) -> bool {
        if self.exact { dtype.has_integer_codes() } else { dtype.takes_bytes() }
    }

    fn quantize(&self, x: &Block, outlier: f32) -> Result<Quantized> {
        let precision = if self.exact { Precision::Double } else { Precision::Above(outlier) };
        let dim = x.dim;
        let mut made = self.recycler.bytes();
        made.resize(x.rows, dim, precision);
        let to = made.slices();
        let task_rows = (TASK_FLOATS / dim).max(1);
        self.pool.run("quantize", x.rows.div_ceil(task_rows), &|index| {
            let rows = index * task_rows..x.rows.min((index + 1) * task_rows);
            let floats = &x.floats()[rows.start * dim..rows.end * dim];
            // SAFETY: the rows of two tasks do not overlap, and each task runs once.
            unsafe { quantize::quantize(self.isa, Job { x: floats, first: rows.start, to: &to, precision }) };
        })?;
        drop(to);
        Ok(made)
    }

    /// A product of one matrix, into a new block.
    fn product(
        &self,
        name: &'static str,
        projection: Projection<'_>,
        x: &Block,
        epilogue: Epilogue,
    ) -> Result<Block> {
        let mut block = self.recycler.block(x.rows, projection.linear.weight.n);
        let out = DisjointSlices::new(block.floats_mut());
        self.lists(name, x, &[projection], &|_| (0, epilogue, &out))?;
        Ok(block)
    }
}

/// Where the product of a projection goes: the number of its list, whose products are computed one after the
/// other over the same columns; what becomes of its sums; and the output.
type Place<'a> = (usize, Epilogue, &'a DisjointSlices<'a, f32>);

impl CpuBackend {
    /// Products of the same rows, with what adapters add to them. Lists come in order.
    fn lists<'a>(
        &self,
        name: &'static str,
        x: &Block,
        projections: &'a [Projection<'a>],
        place: &dyn Fn(usize) -> Place<'a>,
    ) -> Result<()> {
        let weights = projections.iter().map(|it| packed(&it.linear.weight)).collect::<Result<Vec<_>>>()?;
        let outlier = projections.iter().map(|it| it.linear.outlier).fold(f32::INFINITY, f32::min);
        let inner = self.inner(projections.iter().map(|it| it.terms).collect(), x)?;
        let terms = inner.as_ref().map(low_rank::Inner::terms).unwrap_or_default();
        let input = self.input(x, &weights, outlier)?;
        let mut lists: Vec<Vec<Product<'_>>> = Vec::with_capacity(projections.len());
        for (at, (projection, w)) in projections.iter().zip(&weights).enumerate() {
            let (list, epilogue, out) = place(at);
            let terms = terms.get(at).and_then(Option::as_deref);
            let product = Product { terms, ..product(projection.linear, w, epilogue, out) };
            match lists.get_mut(list) {
                Some(list) => list.push(product),
                None => lists.push(vec![product]),
            }
        }
        let lists: Vec<&[Product<'_>]> = lists.iter().map(Vec::as_slice).collect();
        gemm::products(&self.pool, self.isa, name, input, &lists)
    }
}

impl Backend for CpuBackend {
    fn device(&self) -> &Device {
        &Device::Cpu
    }

    fn dtype(&self) -> DType {
        DType::F32
    }

    fn threads(&self) -> usize {
        self.pool.threads()
    }

    fn describe(&self) -> String {
        let threads = self.threads();
        format!("cpu {}, {threads} {}", self.isa.name(), if threads == 1 { "thread" } else { "threads" })
    }

    fn matrix(&self, w: &WeightTensor, n: usize, k: usize, row_bytes: usize) -> Result<Stored> {
        let packed = pack::pack(&self.pool, &self.arena, w, n, k, row_bytes)?;
        Ok(Stored { format: packed.dtype.name(), bytes: w.data.len(), data: Opaque::new(packed) })
    }

    fn panel_layout(&self) -> Option<u32> {
        Some(pack::LAYOUT)
    }

    fn panels(&self, m: &Matrix) -> Option<Panels> {
        packed(m).ok().map(Panels::of)
    }

    fn kept(&self, dtype: WeightType, [n, k]: [usize; 2], panels: Bytes) -> Result<Stored> {
        let packed = pack::from_panels(dtype, n, k, panels)?;
        let bytes = n * dtype.row_bytes(k).unwrap_or_default();
        Ok(Stored { format: dtype.name(), bytes, data: Opaque::new(packed) })
    }

    fn vector(&self, _: &[f32]) -> Result<Option<Opaque>> {
        Ok(None)
    }

    fn rows(&self, values: Vec<f32>, dim: usize) -> Result<Rows> {
        Ok(self.recycler.filled(values, dim).into())
    }

    fn floats(&self, x: Rows) -> Result<Vec<f32>> {
        Ok(x.into_block()?.into_vec())
    }

    fn recycle(&self, values: Vec<f32>) {
        self.recycler.give_floats(values);
    }

    fn trim(&self) {
        self.recycler.trim();
    }

    fn parallel_for(&self, what: &'static str, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        self.pool.run(what, tasks, task)
    }

    fn embed(&self, m: &Matrix, ids: &[u32], scale: Option<f32>) -> Result<Rows> {
        let packed = packed(m)?;
        let mut out = self.recycler.block(ids.len(), m.k);
        self.each_rows("embed", m.k, out.floats_mut(), |rows, out| {
            for (&id, out) in ids[rows].iter().zip(out.chunks_exact_mut(m.k)) {
                packed.row(id as usize, out);
            }
            if let Some(scale) = scale {
                elementwise::unary(self.isa, Unary::Scale(scale), out);
            }
        })?;
        Ok(out.into())
    }

    fn linears(&self, linears: &[Projection<'_>], x: &Rows) -> Result<Vec<Rows>> {
        let x = x.block()?;
        if let &[linear] = linears {
            return Ok(vec![self.product("linear", linear, x, Epilogue::Store)?.into()]);
        }
        let block = |it: &Projection<'_>| self.recycler.block(x.rows, it.linear.weight.n);
        let mut outputs: Vec<Block> = linears.iter().map(block).collect();
        let slices: Vec<_> = outputs.iter_mut().map(|out| DisjointSlices::new(out.floats_mut())).collect();
        self.lists("linears", x, linears, &|at| (at, Epilogue::Store, &slices[at]))?;
        drop(slices);
        Ok(outputs.into_iter().map(Rows::from).collect())
    }

    fn linear_add(&self, projection: Projection<'_>, x: &Rows, to: Rows) -> Result<Rows> {
        let (x, mut to) = (x.block()?, to.into_block()?);
        let out = DisjointSlices::new(to.floats_mut());
        self.lists("linear add", x, &[projection], &|_| (0, Epilogue::Add, &out))?;
        Ok(to.into())
    }

    fn gated(&self, gate: Projection<'_>, up: Projection<'_>, x: &Rows, act: Activation) -> Result<Rows> {
        let x = x.block()?;
        let mut block = self.recycler.block(x.rows, gate.linear.weight.n);
        let out = DisjointSlices::new(block.floats_mut());
        let epilogues = [Epilogue::Store, Epilogue::Gate(act)];
        self.lists("gated", x, &[gate, up], &|at| (0, epilogues[at], &out))?;
        Ok(block.into())
    }

    fn activated(&self, up: Projection<'_>, x: &Rows, act: Activation) -> Result<Rows> {
        Ok(self.product("activated", up, x.block()?, Epilogue::Activate(act))?.into())
    }

    fn experts(
        &self,
        experts: &[Expert],
        act: Activation,
        x: &Rows,
        a: &Assignments,
        terms: &ExpertTerms<'_>,
    ) -> Result<Rows> {
        Ok(self.mixture(experts, act, x.block()?, a, terms)?.into())
    }

    fn norm(&self, norm: &Norm, x: &Rows, to: Option<Rows>) -> Result<Rows> {
        let x = x.block()?;
        let (add, dim) = (to.is_some(), x.dim);
        let mut out = match to {
            Some(to) => to.into_block()?,
            None => self.recycler.block(x.rows, dim),
        };
        self.each_rows("norm", dim, out.floats_mut(), |rows, out| {
            norm::norm(self.isa, of(norm), add, &x.floats()[rows.start * dim..rows.end * dim], out);
        })?;
        Ok(out.into())
    }

    fn output_gate(&self, x: Rows, gate: Rows, function: GateFunction) -> Result<Rows> {
        let mut x = x.into_block()?;
        self.gated_rows(&mut x, gate.block()?, function)?;
        Ok(x.into())
    }

    fn add(&self, x: &Rows, scale: f32, to: Rows) -> Result<Rows> {
        let (x, mut to) = (x.block()?, to.into_block()?);
        let dim = x.dim;
        self.each_rows("add", dim, to.floats_mut(), |rows, to| {
            elementwise::add(self.isa, scale, &x.floats()[rows.start * dim..rows.end * dim], to);
        })?;
        Ok(to.into())
    }

    fn columns(&self, x: &Rows, width: usize, range: Range<usize>) -> Result<Rows> {
        let x = x.block()?;
        let (part, dim) = (range.len(), x.dim / width * range.len());
        let mut out = self.recycler.block(x.rows, dim);
        self.each_rows("columns", dim, out.floats_mut(), |rows, out| {
            let groups = x.floats()[rows.start * x.dim..rows.end * x.dim].chunks_exact(width);
            for (group, out) in groups.zip(out.chunks_exact_mut(part)) {
                out.copy_from_slice(&group[range.clone()]);
            }
        })?;
        Ok(out.into())
    }

    fn joined(&self, parts: &[&Rows], groups: usize) -> Result<Rows> {
        let parts = parts.iter().map(|part| part.block()).collect::<Result<Vec<_>>>()?;
        let (rows, dim) =
            (parts.first().map_or(0, |part| part.rows), parts.iter().map(|part| part.dim).sum());
        let mut out = self.recycler.block(rows, dim);
        self.each_rows("joined", dim, out.floats_mut(), |rows, out| {
            for (row, out) in rows.zip(out.chunks_exact_mut(dim)) {
                let mut at = 0;
                for group in 0..groups {
                    for part in &parts {
                        let width = part.dim / groups;
                        let from = &part.floats()[row * part.dim + group * width..][..width];
                        out[at..at + width].copy_from_slice(from);
                        at += width;
                    }
                }
            }
        })?;
        Ok(out.into())
    }

    fn mul(&self, x: Rows, by: &Rows, start: usize) -> Result<Rows> {
        let (mut x, by) = (x.into_block()?, by.block()?);
        let dim = x.dim;
        self.each_rows("mul", dim, x.floats_mut(), |rows, x| {
            for (row, x) in rows.zip(x.chunks_exact_mut(dim)) {
                elementwise::mul(self.isa, &by.floats()[row * by.dim + start..][..dim], x);
            }
        })?;
        Ok(x.into())
    }

    fn scale_rows(&self, x: &Rows, factors: &[f32]) -> Result<Rows> {
        let (x, dim) = (x.block()?, x.dims().1);
        let mut out = self.recycler.block(x.rows, dim);
        self.each_rows("scale rows", dim, out.floats_mut(), |rows, out| {
            out.copy_from_slice(&x.floats()[rows.start * dim..rows.end * dim]);
            for (out, factor) in out.chunks_exact_mut(dim).zip(&factors[rows]) {
                elementwise::unary(self.isa, Unary::Scale(*factor), out);
            }
        })?;
        Ok(out.into())
    }

    fn rope_table(&self, inv_freq: &[f32], scale: f32, positions: &[u32]) -> Result<Opaque> {
        let half = inv_freq.len();
        let len = positions.len() * half;
        let mut angles = Angles { cos: vec![0.0; len], sin: vec![0.0; len] };
        let sin = DisjointSlices::new(&mut angles.sin);
        self.each_rows("rope table", half, &mut angles.cos, |rows, cos| {
            // SAFETY: the same rows as those of `cos`, which no two tasks have in common.
            let sin = unsafe { sin.slice_mut(rows.start * half..rows.end * half) };
            rope::fill(inv_freq, scale, &positions[rows], cos, sin);
        })?;
        Ok(Opaque::new(angles))
    }

    fn heads(
        &self,
        x: Rows,
        head_dim: usize,
        norm: Option<&Norm>,
        table: Option<&RopeTable>,
    ) -> Result<Rows> {
        let mut x = x.into_block()?;
        let angles = table.map(|table| table.data.get::<Angles>("a rope table")).transpose()?;
        let (dim, angles) = (x.dim, table.map(|table| table.half).zip(angles));
        self.each_rows("heads", dim, x.floats_mut(), |rows, x| {
            if let Some(norm) = norm {
                norm_groups(self.isa, of(norm), head_dim, x);
            }
            if let Some((half, Angles { cos, sin })) = angles {
                let angles = rows.start * half..rows.end * half;
                rope::rotate(self.isa, x, dim, head_dim, half, &cos[angles.clone()], &sin[angles]);
            }
        })?;
        Ok(x.into())
    }

    fn soft_cap(&self, x: Rows, cap: f32) -> Result<Rows> {
        let mut x = x.into_block()?;
        // Rows of logits are long, and would be too few tasks: each number counts as a row.
        self.each_rows("soft cap", 1, x.floats_mut(), |_, x| {
            elementwise::unary(self.isa, Unary::SoftCap(cap), x);
        })?;
        Ok(x.into())
    }

    fn select_rows(&self, x: &Rows, rows: &[u32]) -> Result<Rows> {
        let x = x.block()?;
        let mut out = self.recycler.block(rows.len(), x.dim);
        for (&row, out) in rows.iter().zip(out.floats_mut().chunks_exact_mut(x.dim)) {
            out.copy_from_slice(&x.floats()[row as usize * x.dim..][..x.dim]);
        }
        Ok(out.into())
    }

    fn kv_format(&self) -> KvFormat {
        KvFormat::Native(self.kv)
    }

    fn is_exact(&self) -> bool {
        self.exact
    }

    fn kv_cache(&self, layout: &KvLayout, pages: usize) -> Result<KvCache> {
        KvCache::native(layout, pages, self.kv)
    }

    fn kv_write(&self, kv: &LayerKv, k: &Rows, v: &Rows, slots: &[u32]) -> Result<()> {
        let (k, v) = (k.block()?.floats(), v.block()?.floats());
        attention::write(&self.pool, self.isa, kv.native()?, slots, k, v)
    }

    fn attention(
        &self,
        q: &Rows,
        kv: &LayerKv,
        group: usize,
        step: &CheckedStep<'_>,
        a: &Attention<'_>,
    ) -> Result<Rows> {
        let q = q.block()?;
        let mut out = self.recycler.block(q.rows, q.dim);
        let queries = attention::Queries { q: q.floats(), step, group };
        attention::attention(&self.pool, self.isa, queries, kv.native()?, a, out.floats_mut())?;
        Ok(out.into())
    }

    fn causal_conv(
        &self,
        x: &Rows,
        conv: &CausalConv,
        state: &LayerState,
        step: &CheckedStep<'_>,
    ) -> Result<Rows> {
        Ok(self.convolved(x.block()?, conv, state, step)?.into())
    }

    fn scan(
        &self,
        rows: ScanRows<'_>,
        scan: &Scan,
        state: &LayerState,
        step: &CheckedStep<'_>,
    ) -> Result<Rows> {
        Ok(self.scanned(rows, scan, state, step)?.into())
    }

    fn gated_norm(&self, x: Rows, gate: &Rows, norm: &GatedNorm) -> Result<Rows> {
        let mut x = x.into_block()?;
        self.norm_and_gate(&mut x, gate.block()?, norm)?;
        Ok(x.into())
    }
}

pub(super) fn packed(m: &Matrix) -> Result<&Packed> {
    m.stored.data.get(m.name())
}

fn product<'a>(
    linear: &'a Linear,
    w: &'a Packed,
    epilogue: Epilogue,
    out: &'a DisjointSlices<'a, f32>,
) -> Product<'a> {
    let bias = linear.bias.as_ref().map(|bias| &*bias.values);
    Product { w, scale: linear.scale, bias, terms: None, epilogue, out }
}

/// The norm of each group of `len` in whole rows `x`; its weights are those of one group, for all groups, or
/// of the whole row (then it has no bias).
fn norm_groups(isa: Isa, norm: norm::Norm<'_>, len: usize, x: &mut [f32]) {
    if norm.weight.len() == len {
        return norm::norm_in_place(isa, norm, x);
    }
    for (x, weight) in x.chunks_exact_mut(len).zip(norm.weight.chunks_exact(len).cycle()) {
        norm::norm_in_place(isa, norm::Norm { weight, ..norm }, x);
    }
}

fn of(norm: &Norm) -> norm::Norm<'_> {
    norm::Norm {
        rms: norm.kind == NormKind::Rms,
        weight: &norm.weight.values,
        bias: norm.bias.as_ref().map(|bias| &*bias.values),
        eps: norm.eps as f32,
    }
}
