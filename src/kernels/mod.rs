//! The seam between the graph and the machine: everything a forward pass computes.
//!
//! [`Ops`] is chosen once, when a model is built, and the graph names no device. It checks arguments, so that
//! whatever computes may trust shapes and indices, and hands them to a [`Backend`](backend::Backend):
//!
//! * [`cpu`]: kernels of our own over packed weights, on a worker pool with an explicit number of threads.
//!   The same row gives the same bits alone or among hundreds, on any number of threads and on any tier of
//!   instructions; every reduction has one fixed order.
//! * [`candle`]: candle's operations, for CUDA and Metal, and on the CPU as a second opinion in tests.
//!
//! Operations are as large as the graph lets them be: a product's epilogue (a bias, a sum, a gate) is part of
//! it. Activations are [`Rows`] `[rows, dim]`, one row a token of the [`Step`]; f32 on the CPU.
//!
//! From the bottom up, and no module uses one that is named later: [`opaque`], [`simd`] and [`isa`] (tiers of
//! instructions), [`math`], [`disjoint`] and [`pool`] (threads), [`layouts`], [`unpack`], [`floats`] and
//! [`pack`] (weights in memory), [`quantize`] and [`rows`] (activations), [`low_rank`] (what adapters add),
//! [`types`] (what the graph holds), [`levels`], [`panels`], [`tile`], [`amx`], [`skinny`], [`blocked`],
//! [`epilogue`] and [`gemm`] (products), [`probe`] (how fast they are at this moment), [`attention`],
//! [`norm`], [`rope`], [`elementwise`], [`experts`], [`checked_step`], [`causal_conv`], [`scan`],
//! [`matmul`], [`backend`], [`cpu`], [`candle`], [`check`], [`tape`] (what computes and remembers, for
//! gradients).

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports))]
mod amx;
mod attention;
mod backend;
mod blocked;
mod candle;
mod causal_conv;
mod check;
mod checked_step;
mod cpu;
mod disjoint;
mod elementwise;
mod epilogue;
mod experts;
mod floats;
mod gemm;
mod isa;
mod layouts;
mod levels;
mod low_rank;
mod math;
mod matmul;
mod norm;
mod opaque;
mod pack;
mod panels;
mod pool;
mod probe;
mod quantize;
mod rope;
mod rows;
mod scan;
mod simd;
mod skinny;
mod tape;
mod tile;
mod types;
mod unpack;

use std::ops::Range;
use std::sync::Arc;

use candle_core::{DType, Device};

use self::backend::Backend;
use self::candle::CandleBackend;
pub use self::checked_step::CheckedStep;
use self::cpu::CpuBackend;
use self::disjoint::DisjointSlices;
pub use self::experts::{Assignments, Expert, ExpertTerms};
pub use self::isa::Isa;
pub use self::low_rank::{LowRank, Term};
pub use self::pack::Panels;
pub use self::probe::tile_rate;
pub use self::rows::Rows;
pub use self::tape::{FactorGradients, Factors, Precision, Recorder, RowTargets, SpanRows, Tape, Value};
pub use self::types::{
    Attention, CausalConv, ConvForm, GatedNorm, Linear, MappedMatrix, Matrix, Norm, Projection, RopeTable,
    Scan, ScanRows, ScanRule, Vector,
};
pub use crate::cache::storage::{KvCache, KvFormat, KvLayout, KvShape, KvType};
pub use crate::config::Activation;
use crate::config::{GateFunction, Routing};
use crate::error::{Error, Result};
use crate::step::Step;
use crate::weights::{Bytes, WeightTensor, WeightType, blocks};

/// The machine, as the graph sees it. A clone shares the worker pool.
#[derive(Clone)]
pub struct Ops(Arc<dyn Backend>);

impl Ops {
    /// Our own kernels on the CPU, with `threads` threads (the calling one is among them); keys and values as
    /// `kv` says.
    ///
    /// The widest instructions that the machine has are used, but AMX; the environment variable `TALLOW_ISA`
    /// (`amx`, `avx512bf16`, `avx512`, `avxvnni`, `avx2`, `scalar`) forces others.
    ///
    /// # Errors
    /// `Device` when `TALLOW_ISA` names what this machine has not, its AMX computes something else than AMX
    /// does, or a thread cannot be started; `InvalidRequest` when `threads` is 0.
    pub fn cpu(threads: usize, kv: KvType) -> Result<Ops> {
        Self::cpu_as(threads, kv, kv == KvType::F32)
    }

    /// As [`Ops::cpu`]; `exact`: activations are taken to 15 bits, whatever keys and values are kept in.
    ///
    /// # Errors
    /// As [`Ops::cpu`].
    pub fn cpu_as(threads: usize, kv: KvType, exact: bool) -> Result<Ops> {
        Ok(Self::of(CpuBackend::new(threads, kv, exact, Isa::from_env()?)?))
    }

    /// As [`Ops::cpu`], with the tier of instructions named.
    ///
    /// # Errors
    /// As [`Ops::cpu`].
    pub fn cpu_with(threads: usize, kv: KvType, isa: Isa) -> Result<Ops> {
        Ok(Self::of(CpuBackend::new(threads, kv, kv == KvType::F32, isa)?))
    }

    /// candle's operations, on any device. Activations and the KV cache are of type `dtype`; norms, softmax
    /// and rotations are computed in f32.
    pub fn candle(device: Device, dtype: DType) -> Ops {
        Self::of(CandleBackend::new(device, dtype))
    }

    fn of(backend: impl Backend + 'static) -> Ops {
        Ops(Arc::new(backend))
    }

    pub fn device(&self) -> &Device {
        self.0.device()
    }

    /// The type of activations.
    pub fn dtype(&self) -> DType {
        self.0.dtype()
    }

    /// Threads that compute: 1 when another device does.
    pub fn threads(&self) -> usize {
        self.0.threads()
    }

    /// What computes, in words: `cpu avx512, 4 threads`.
    pub fn describe(&self) -> String {
        self.0.describe()
    }

    /// A weight matrix `[n, k]`. The CPU backend packs it, and gives the pages of a mapped file back.
    ///
    /// # Errors
    /// `ModelFile` naming the tensor when it is not two-dimensional or its bytes do not fit its shape;
    /// `OutOfMemory` when it cannot be packed.
    pub fn matrix(&self, w: &WeightTensor) -> Result<Matrix> {
        let (n, k, row_bytes) = check::matrix(w)?;
        let stored = self.0.matrix(w, n, k, row_bytes).map_err(|e| e.context(&w.name))?;
        Ok(Matrix { name: w.name.as_str().into(), n, k, stored })
    }

    /// The number of the layout of the panels that matrices become; `None` where they do not become any. It
    /// is the same for all tiers of instructions.
    pub fn panel_layout(&self) -> Option<u32> {
        self.0.panel_layout()
    }

    /// The panels of a matrix, which can be kept and given to [`kept_matrix`](Ops::kept_matrix).
    pub fn panels(&self, m: &Matrix) -> Option<Panels> {
        self.0.panels(m)
    }

    /// A weight matrix `[n, k]` of panels of this layout. They are shared, not copied.
    ///
    /// # Errors
    /// `ModelFile` when `panels` are not as long as those of that matrix.
    pub fn kept_matrix(
        &self,
        name: &str,
        dtype: WeightType,
        shape: [usize; 2],
        panels: Bytes,
    ) -> Result<Matrix> {
        let stored = self.0.kept(dtype, shape, panels).map_err(|e| e.context(name))?;
        Ok(Matrix { name: name.into(), n: shape[0], k: shape[1], stored })
    }

    /// A weight matrix `[n, k]` that is not copied: see [`MappedMatrix`].
    ///
    /// # Errors
    /// `ModelFile` naming the tensor when it is not two-dimensional or its bytes do not fit its shape.
    pub fn mapped_matrix(&self, w: &WeightTensor) -> Result<MappedMatrix> {
        let (n, k, row_bytes) = check::matrix(w)?;
        Ok(MappedMatrix { tensor: w.clone(), n, k, row_bytes })
    }

    /// A one-dimensional weight as f32, with `add` added to every element (Gemma's `1 + w`).
    ///
    /// # Errors
    /// `ModelFile` naming the tensor when it is not one-dimensional.
    pub fn vector(&self, w: &WeightTensor, add: f32) -> Result<Vector> {
        let mut values = check::vector(w)?;
        values.iter_mut().for_each(|value| *value += add);
        let device = self.0.vector(&values)?;
        Ok(Vector { values: values.into(), device })
    }

    /// Activations of `dim` columns from numbers in row-major order.
    pub fn rows(&self, values: Vec<f32>, dim: usize) -> Result<Rows> {
        check::whole_rows(values.len(), dim)?;
        self.0.rows(values, dim)
    }

    /// All elements, as f32, in row-major order.
    pub fn into_vec(&self, x: Rows) -> Result<Vec<f32>> {
        self.0.floats(x)
    }

    /// Takes back what [`into_vec`](Ops::into_vec) gave: fresh memory for the logits of a batch costs more
    /// than half as much as computing them (32 rows of a vocabulary of 262,144).
    pub fn recycle(&self, values: Vec<f32>) {
        self.0.recycle(values);
    }

    /// Nothing is computed now: memory that is only kept for the next step goes.
    pub fn trim(&self) {
        self.0.trim();
    }

    /// Calls `task` with each of `0..tasks`, on the threads that compute. `what` is its name in a trace.
    ///
    /// # Errors
    /// `Internal` when a task panicked.
    pub fn parallel_for(
        &self,
        what: &'static str,
        tasks: usize,
        task: &(dyn Fn(usize) + Sync),
    ) -> Result<()> {
        self.0.parallel_for(what, tasks, task)
    }

    /// Rows `ids` of an embedding matrix, times `scale`: `[ids, k]`.
    pub fn embed(&self, m: &Matrix, ids: &[u32], scale: Option<f32>) -> Result<Rows> {
        check::ids(m.name(), m.n, ids)?;
        self.0.embed(m, ids, scale)
    }

    /// Rows `ids` of a matrix that is not in memory, times `scale`: `[ids, k]`.
    pub fn mapped_rows(&self, m: &MappedMatrix, ids: &[u32], scale: f32) -> Result<Rows> {
        check::ids(&m.tensor.name, m.n, ids)?;
        let mut values = vec![0.0; ids.len() * m.k];
        let rows = DisjointSlices::new(&mut values);
        self.parallel_for("mapped rows", ids.len(), &|row| {
            // SAFETY: each row is one task's own.
            let out = unsafe { rows.slice_mut(row * m.k..(row + 1) * m.k) };
            let start = ids[row] as usize * m.row_bytes;
            blocks::dequantize_row(m.tensor.dtype, &m.tensor.data[start..start + m.row_bytes], out);
            out.iter_mut().for_each(|value| *value *= scale);
        })?;
        self.rows(values, m.k)
    }

    /// `x * W^T (+ bias)`: `[rows, k] -> [rows, n]`.
    pub fn linear<'a>(&self, projection: impl Into<Projection<'a>>, x: &Rows) -> Result<Rows> {
        let [y] = self.linears([projection], x)?;
        Ok(y)
    }

    /// Several projections of the same rows.
    pub fn linears<'a, const N: usize>(
        &self,
        projections: [impl Into<Projection<'a>>; N],
        x: &Rows,
    ) -> Result<[Rows; N]> {
        let projections = projections.map(Into::into);
        projections.iter().try_for_each(|projection| check::projection(projection, x))?;
        let outputs = self.0.linears(&projections, x)?;
        outputs.try_into().map_err(|_| misuse("as many results as projections"))
    }

    /// `to + x * W^T (+ bias)`.
    pub fn linear_add<'a>(&self, projection: impl Into<Projection<'a>>, x: &Rows, to: Rows) -> Result<Rows> {
        let projection = projection.into();
        check::projection(&projection, x)?;
        check::shape("a sum", &to, x.dims().0, projection.linear.weight.n)?;
        self.0.linear_add(projection, x, to)
    }

    /// `act(x G^T) * (x U^T)`, with biases.
    pub fn gated<'a>(
        &self,
        gate: impl Into<Projection<'a>>,
        up: impl Into<Projection<'a>>,
        x: &Rows,
        act: Activation,
    ) -> Result<Rows> {
        let (gate, up) = (gate.into(), up.into());
        check::projection(&gate, x)?;
        check::projection(&up, x)?;
        if gate.linear.weight.n != up.linear.weight.n {
            return Err(misuse("gate and up have other widths"));
        }
        self.0.gated(gate, up, x, act)
    }

    /// `act(x U^T)`, with bias.
    pub fn activated<'a>(&self, up: impl Into<Projection<'a>>, x: &Rows, act: Activation) -> Result<Rows> {
        let up = up.into();
        check::projection(&up, x)?;
        self.0.activated(up, x, act)
    }

    /// Which experts each row passes, by its router logits `[rows, experts]`, and with what weights.
    /// `correction`: what is added to the scores for the choice alone, one for each expert.
    pub fn route(&self, logits: Rows, routing: &Routing, correction: Option<&Vector>) -> Result<Assignments> {
        let experts = logits.dims().1;
        let logits = self.into_vec(logits)?;
        let assignments = Assignments::new(&logits, experts, routing, correction.map(Vector::values));
        self.recycle(logits);
        assignments
    }

    /// For each row of `x`, the sum over its experts of `weight * down(act(gate(x)) * up(x))`, or of `weight
    /// * down(act(up(x)))`, added in the order of the experts' numbers: `[rows, hidden]`.
    pub fn experts(
        &self,
        experts: &[Expert],
        act: Activation,
        x: &Rows,
        a: &Assignments,
        terms: &ExpertTerms<'_>,
    ) -> Result<Rows> {
        check::experts(experts, x, a, terms)?;
        self.0.experts(experts, act, x, a, terms)
    }

    /// A norm over groups of its width: the whole row, or each head of it. RMS: `x / sqrt(mean(x^2) + eps) *
    /// w`; layer: `(x - mean) / sqrt(var + eps) * w (+ b)`.
    pub fn norm(&self, norm: &Norm, x: &Rows) -> Result<Rows> {
        check::norm(norm, x)?;
        self.0.norm(norm, x, None)
    }

    /// `to + norm(x)`.
    pub fn norm_add(&self, norm: &Norm, x: &Rows, to: Rows) -> Result<Rows> {
        check::norm(norm, x)?;
        check::shape("a sum", &to, x.dims().0, x.dims().1)?;
        self.0.norm(norm, x, Some(to))
    }

    /// Of each group of `width` columns of `x` those in `range`: `[rows, groups * range.len()]`.
    pub fn columns(&self, x: &Rows, width: usize, range: Range<usize>) -> Result<Rows> {
        check::columns_of_groups(x, width, &range)?;
        self.0.columns(x, width, range)
    }

    /// Rows side by side, group by group: the first group of each part, then the second of each.
    pub fn joined(&self, parts: &[&Rows], groups: usize) -> Result<Rows> {
        check::joined(parts, groups)?;
        self.0.joined(parts, groups)
    }

    /// `x * y`, element by element, where `y` are as many columns of `by`, from `start` on.
    pub fn mul(&self, x: Rows, by: &Rows, start: usize) -> Result<Rows> {
        check::columns(&x, by, start)?;
        self.0.mul(x, by, start)
    }

    /// `x` `[rows, dim]` times the function of `gate` `[rows, width]`; `width` divides `dim`, and each number
    /// of the gate is for `dim / width` neighbours: one for each head, or for each element.
    pub fn output_gate(&self, x: Rows, gate: Rows, function: GateFunction) -> Result<Rows> {
        check::gate(&gate, &x)?;
        self.0.output_gate(x, gate, function)
    }

    /// `to + scale * x`.
    pub fn add(&self, x: &Rows, scale: f32, to: Rows) -> Result<Rows> {
        check::shape("a sum", &to, x.dims().0, x.dims().1)?;
        self.0.add(x, scale, to)
    }

    /// Each row of `x` times a factor of its own.
    pub fn scale_rows(&self, x: &Rows, factors: &[f32]) -> Result<Rows> {
        check::shape("rows with factors", x, factors.len(), x.dims().1)?;
        self.0.scale_rows(x, factors)
    }

    /// Cosines and sines for one step: angles are the f32 products `position * inv_freq`, as transformers
    /// computes them, and both are multiplied by `scale` (the attention factor of YaRN and LongRope).
    pub fn rope_table(&self, inv_freq: &[f32], scale: f32, positions: &[u32]) -> Result<RopeTable> {
        let data = self.0.rope_table(inv_freq, scale, positions)?;
        Ok(RopeTable { rows: positions.len(), half: inv_freq.len(), data })
    }

    /// Heads of `x` `[rows, heads * head_dim]`: each through the norm, then its first `table.rotated()`
    /// dimensions rotated, dimension `i` with `i + rotated / 2`. The rest passes through.
    pub fn heads(
        &self,
        x: Rows,
        head_dim: usize,
        norm: Option<&Norm>,
        table: Option<&RopeTable>,
    ) -> Result<Rows> {
        check::heads(&x, head_dim, norm, table)?;
        self.0.heads(x, head_dim, norm, table.filter(|table| table.half > 0))
    }

    /// `cap * tanh(x / cap)`.
    pub fn soft_cap(&self, x: Rows, cap: f32) -> Result<Rows> {
        self.0.soft_cap(x, cap)
    }

    /// Rows of `x` by index, in the order given.
    pub fn select_rows(&self, x: &Rows, rows: &[u32]) -> Result<Rows> {
        check::rows(x, rows)?;
        self.0.select_rows(x, rows)
    }

    /// An empty cache of `pages` pages.
    ///
    /// # Errors
    /// `OutOfMemory`, with the size that was asked for.
    pub fn kv_cache(&self, layout: &KvLayout, pages: usize) -> Result<KvCache> {
        self.0.kv_cache(layout, pages)
    }

    /// The step as the operations on this cache take it.
    ///
    /// # Errors
    /// `Internal` when its spans, positions or pages are not those of a step over this cache.
    pub fn checked_step<'a>(&self, step: &'a Step, cache: &KvCache) -> Result<CheckedStep<'a>> {
        CheckedStep::new(step, cache)
    }

    /// What such a cache is made of.
    pub fn kv_format(&self) -> KvFormat {
        self.0.kv_format()
    }

    /// Whether it computes in f32, or on the CPU with activations at 15 bits.
    pub fn is_exact(&self) -> bool {
        self.0.is_exact()
    }

    /// Puts the keys and values `[rows, kv_heads * head_dim]` of this step into its pages.
    pub fn kv_write(
        &self,
        cache: &KvCache,
        layer: usize,
        k: &Rows,
        v: &Rows,
        step: &CheckedStep<'_>,
    ) -> Result<()> {
        step.belongs_to(cache)?;
        let kv = cache.layer(layer)?;
        check::shape("keys", k, step.rows(), kv.shape.width())?;
        check::shape("values", v, step.rows(), kv.shape.width())?;
        self.0.kv_write(kv, k, v, step.slots(cache.group(layer)?)?)
    }

    /// Attention of the queries `[rows, heads * head_dim]` over their own sequence's pages, which already
    /// hold the keys and values of this step. Query heads share key heads in groups. Where it is not causal,
    /// the whole sequence must be written.
    pub fn attention(
        &self,
        q: &Rows,
        cache: &KvCache,
        layer: usize,
        step: &CheckedStep<'_>,
        a: &Attention<'_>,
    ) -> Result<Rows> {
        step.belongs_to(cache)?;
        let (kv, group) = (cache.layer(layer)?, cache.group(layer)?);
        check::attention(q, kv.shape, step, a)?;
        check::window(cache.layout().windows()[group], a)?;
        self.0.attention(q, kv, group, step, a)
    }

    /// A causal depthwise convolution over rows `[rows, row_dim]`: `[rows, width]`. It goes on from the state
    /// of each span, in the states of recurrent layer `layer`, and leaves those that the step names; its part
    /// of a layer's state is the first.
    pub fn causal_conv(
        &self,
        x: &Rows,
        conv: &CausalConv,
        cache: &KvCache,
        layer: usize,
        step: &CheckedStep<'_>,
    ) -> Result<Rows> {
        step.belongs_to(cache)?;
        let state = cache.state(layer)?;
        check::causal_conv(x, conv, state, step)?;
        self.0.causal_conv(x, conv, state, step)
    }

    /// The scan of Gated DeltaNet or Mamba-2 over rows `[rows, row_dim]`: `[rows, heads * value_dim]`. States
    /// as in [`causal_conv`](Ops::causal_conv); its part of a layer's state is the last.
    pub fn scan(
        &self,
        rows: ScanRows<'_>,
        scan: &Scan,
        cache: &KvCache,
        layer: usize,
        step: &CheckedStep<'_>,
    ) -> Result<Rows> {
        step.belongs_to(cache)?;
        let state = cache.state(layer)?;
        check::scan(&rows, scan, state, step)?;
        self.0.scan(rows, scan, state, step)
    }

    /// RMS norm of groups of each row, and a gate as wide as the row.
    pub fn gated_norm(&self, x: Rows, gate: &Rows, norm: &GatedNorm) -> Result<Rows> {
        check::gated_norm(&x, gate, norm)?;
        self.0.gated_norm(x, gate, norm)
    }

    /// Copies page `from` over page `to`, in every column.
    pub fn copy_page(&self, cache: &KvCache, from: u32, to: u32) -> Result<()> {
        for page in [from, to] {
            check::page(page, cache)?;
        }
        cache.copy_page(from, to)
    }
}

impl std::fmt::Debug for Ops {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Ops({})", self.describe())
    }
}

/// A shape that the graph got wrong. Files and users cannot cause it: their numbers are checked before.
fn misuse(message: impl Into<String>) -> Error {
    Error::internal(message)
}
