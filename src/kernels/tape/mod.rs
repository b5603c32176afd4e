//! A backend that remembers: it computes by the CPU's kernels over the weights that the CPU's backend packed,
//! and keeps of each operation what its gradient needs.
//!
//! The graph does not know of it. Activations are nodes: a value in the host's memory and, if a gradient
//! reaches it, a number on the [`Tape`]. Adapters that are trained are not the graph's either: the backend
//! knows the matrices that have [`Factors`], and adds their products itself. What has no gradient here is an
//! error by name, and nothing is recorded while nobody wants a gradient.

mod attention;
mod backward;
mod derivatives;
mod factors;
mod half;
mod loss;
mod record;
mod through;

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use candle_core::{DType, Device};

pub use self::attention::SpanRows;
pub use self::backward::FactorGradients;
pub use self::factors::Factors;
pub use self::loss::RowTargets;
pub use self::record::Tape;
use self::record::{Entry, Projected};
use super::backend::Backend;
use super::cpu::{CpuBackend, packed};
use super::disjoint::DisjointSlices;
use super::experts::{Assignments, Expert, ExpertTerms};
use super::isa::Isa;
use super::matmul::{self, Matmul};
use super::opaque::Opaque;
use super::types::{
    Attention, CausalConv, GatedNorm, Linear, Matrix, Norm, Projection, RopeTable, Scan, ScanRows, Stored,
};
use super::{Activation, CheckedStep, KvCache, KvFormat, KvLayout, KvType, Ops, Rows, misuse};
use crate::cache::storage::{LayerKv, LayerState};
use crate::config::GateFunction;
use crate::error::{Error, Result};
use crate::weights::WeightTensor;

/// How exactly a step is computed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Precision {
    /// Forward as the model is served; what the backward pass needs is kept in bfloat16.
    #[default]
    BFloat16,
    /// All in f32; activations that meet quantized weights have 15 bits.
    Float32,
}

/// Rows in the host's memory, shared.
#[derive(Clone)]
pub struct Value(Arc<Rows>);

impl Value {
    fn floats(&self) -> Result<&[f32]> {
        Ok(self.0.block()?.floats())
    }

    /// `(rows, dim)`
    pub fn dims(&self) -> (usize, usize) {
        self.0.dims()
    }
}

/// An activation: its value, and its number on the tape if a gradient reaches it.
#[derive(Clone)]
struct Node {
    id: Option<usize>,
    value: Value,
}

/// Which matrix: where its panels lie.
type Place = usize;

fn place(matrix: &Matrix) -> Result<Place> {
    Ok(packed(matrix)?.bytes(0..0).as_ptr().addr())
}

/// One operation that was computed.
enum Operation {
    Linear {
        x: Node,
        projected: Projected,
    },
    Gated {
        gate: Node,
        up: Node,
        act: Activation,
    },
    Activated {
        x: Node,
        act: Activation,
    },
    /// `added`: to what `to` is, or to rows that want no gradient.
    Norm {
        x: Node,
        norm: Norm,
        added: bool,
        to: Option<usize>,
    },
    Heads {
        x: Node,
        head_dim: usize,
        norm: Option<Norm>,
        table: Option<RopeTable>,
    },
    Add {
        x: Option<usize>,
        scale: f32,
        to: Option<usize>,
    },
    ScaleRows {
        x: usize,
        factors: Vec<f32>,
    },
    SelectRows {
        x: usize,
        of: usize,
        rows: Vec<u32>,
    },
    Attention {
        q: Node,
        k: Node,
        v: Node,
        spans: Arc<[SpanRows]>,
        a: Attention<'static>,
        lse: Vec<f32>,
    },
}

impl Operation {
    /// The values that its gradient reads.
    fn values_mut(&mut self) -> [Option<&mut Value>; 3] {
        match self {
            Operation::Linear { x, .. }
            | Operation::Activated { x, .. }
            | Operation::Norm { x, .. }
            | Operation::Heads { x, .. } => [Some(&mut x.value), None, None],
            Operation::Gated { gate, up, .. } => [Some(&mut gate.value), Some(&mut up.value), None],
            Operation::Attention { q, k, v, .. } => [q, k, v].map(|it| Some(&mut it.value)),
            Operation::Add { .. } | Operation::ScaleRows { .. } | Operation::SelectRows { .. } => {
                [None, None, None]
            }
        }
    }
}

/// What changes while a step is computed.
#[derive(Default)]
struct State {
    recording: bool,
    tape: Tape,
    /// Keys and values that the next attention reads.
    kv: Option<(Node, Node)>,
    spans: Arc<[SpanRows]>,
    /// Of the rows that are wanted in the end.
    some: Arc<[SpanRows]>,
}

impl State {
    fn next(&mut self) -> usize {
        self.tape.nodes += 1;
        self.tape.nodes - 1
    }
}

struct TapeBackend {
    cpu: CpuBackend,
    linears: HashMap<Place, Linear>,
    factors: Mutex<HashMap<Place, Arc<Factors>>>,
    state: Mutex<State>,
}

/// The backend, for whoever walks a model forward and back.
#[derive(Clone)]
pub struct Recorder(Arc<TapeBackend>);

impl Recorder {
    /// With a pool of its own; gradients pass these projections.
    ///
    /// # Errors
    /// As [`Ops::cpu`]; `Internal` when the matrices are another backend's.
    pub fn new(threads: usize, precision: Precision, linears: &[&Linear]) -> Result<Recorder> {
        let kv = match precision {
            Precision::BFloat16 => KvType::BF16,
            Precision::Float32 => KvType::F32,
        };
        let cpu = CpuBackend::new(threads, kv, precision == Precision::Float32, Isa::from_env()?)?;
        let linears = linears.iter().map(|&linear| Ok((place(&linear.weight)?, linear.clone())));
        let linears = linears.collect::<Result<_>>()?;
        let (factors, state) = Default::default();
        Ok(Recorder(Arc::new(TapeBackend { cpu, linears, factors, state })))
    }

    /// Operations that record.
    pub fn ops(&self) -> Ops {
        Ops(self.0.clone())
    }

    /// Factors of a projection, in place of those that it had.
    ///
    /// # Errors
    /// `Internal` when the matrix is another backend's.
    pub fn set_factors(&self, linear: &Linear, factors: Factors) -> Result<()> {
        self.0.factors().insert(place(&linear.weight)?, Arc::new(factors));
        Ok(())
    }

    /// No projection has factors.
    pub fn clear_factors(&self) {
        self.0.factors().clear();
    }

    /// Which rows of the next steps see which: of all rows, and of those that are wanted in the end.
    pub fn set_spans(&self, all: Vec<SpanRows>, some: Vec<SpanRows>) {
        let mut state = self.0.state();
        (state.spans, state.some, state.kv) = (all.into(), some.into(), None);
    }

    /// Begins a tape with these rows as its first node, or nothing that is recorded. `wanted`: whether their
    /// gradient is.
    pub fn begin(&self, recording: bool, wanted: bool, x: &Value) -> Rows {
        let mut state = self.0.state();
        (state.recording, state.tape) = (recording, Tape::default());
        let first = state.next();
        node(Node { id: (recording && wanted).then_some(first), value: x.clone() })
    }

    /// What was recorded since, of which these rows came out.
    ///
    /// # Errors
    /// `Internal` when others made the rows; `OutOfMemory`.
    pub fn end(&self, out: &Rows) -> Result<Tape> {
        let mut state = self.0.state();
        state.recording = false;
        let mut tape = std::mem::take(&mut state.tape);
        drop(state);
        (tape.last, tape.dims) = (of(out)?.id, out.dims());
        if !self.0.is_exact() {
            self.0.halve(&mut tape)?;
        }
        Ok(tape)
    }

    /// The value of rows that these operations made.
    ///
    /// # Errors
    /// `Internal` when others made them.
    pub fn value(&self, x: &Rows) -> Result<Value> {
        Ok(x.get::<Node>()?.value.clone())
    }

    /// Rows of numbers.
    ///
    /// # Errors
    /// `Internal` when they are not whole rows.
    pub fn constant(&self, values: Vec<f32>, dim: usize) -> Result<Value> {
        super::check::whole_rows(values.len(), dim)?;
        Ok(Value(Arc::new(self.0.cpu.rows(values, dim)?)))
    }

    /// The numbers of some rows.
    ///
    /// # Errors
    /// `Internal` when they are in no memory of the host.
    pub fn floats<'a>(&self, x: &'a Value) -> Result<&'a [f32]> {
        x.floats()
    }
}

fn node(node: Node) -> Rows {
    let (rows, dim) = node.value.dims();
    Rows::device(rows, dim, node)
}

fn of(x: &Rows) -> Result<&Node> {
    x.get::<Node>()
}

fn refused<T>(what: &str) -> Result<T> {
    Err(Error::unsupported(format!("training through {what} is not built yet")))
}

impl TapeBackend {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn factors(&self) -> MutexGuard<'_, HashMap<Place, Arc<Factors>>> {
        self.factors.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn factors_of(&self, place: Place) -> Option<Arc<Factors>> {
        self.factors().get(&place).cloned()
    }

    /// Puts an operation on the tape, if a gradient reaches what comes out of it: the number of that.
    fn push(
        &self,
        wanted: bool,
        value: Option<&Value>,
        operation: impl FnOnce() -> Operation,
    ) -> Option<usize> {
        let mut state = self.state();
        if !wanted || !state.recording {
            return None;
        }
        let out = state.next();
        state.tape.entries.push(Entry { operation: operation(), out, value: value.cloned() });
        Some(out)
    }

    /// A node for what came out of an operation.
    fn record(&self, wanted: bool, out: Rows, operation: impl FnOnce() -> Operation) -> Rows {
        let value = Value(Arc::new(out));
        node(Node { id: self.push(wanted, None, operation), value })
    }

    /// The value of rows, to be changed: a copy where somebody else has it.
    fn take(&self, x: Rows) -> Result<Rows> {
        let value = of(&x)?.value.clone();
        drop(x);
        match Arc::try_unwrap(value.0) {
            Ok(rows) => Ok(rows),
            Err(shared) => self.copy(&shared),
        }
    }

    fn copy(&self, x: &Rows) -> Result<Rows> {
        let x = x.block()?;
        let mut out = self.cpu.recycler.block(x.rows, x.dim);
        let dim = x.dim;
        self.cpu.each_rows("copy", dim, out.floats_mut(), |rows, out| {
            out.copy_from_slice(&x.floats()[rows.start * dim..rows.end * dim]);
        })?;
        Ok(out.into())
    }

    /// `x A^T` of the factors of a matrix, `[rows, width]`, after `y += scale * (x A^T) B^T`.
    fn add_factors(
        &self,
        projection: &Projection<'_>,
        factors: &Factors,
        x: &Rows,
        y: &mut Rows,
    ) -> Result<Vec<f32>> {
        let (rows, inputs) = x.dims();
        let Factors { width, rank, scale, .. } = *factors;
        let (pool, isa) = (&self.cpu.pool, self.cpu.isa);
        let mut z = vec![0.0; rows * width];
        let down = Matmul {
            m: rows,
            n: width,
            k: inputs,
            a: x.block()?.floats(),
            a_steps: (inputs, 1),
            b: &factors.a_transposed,
            b_step: width,
            scale: 1.0,
            add: false,
        };
        matmul::parallel(pool, isa, "factor a", down, &mut z)?;
        let outputs = projection.linear.weight.n;
        let up = Matmul {
            m: rows,
            n: outputs,
            k: rank,
            a: &z,
            a_steps: (width, 1),
            b: &factors.b_transposed,
            b_step: outputs,
            scale: scale * projection.linear.scale,
            add: true,
        };
        matmul::parallel(pool, isa, "factor b", up, y.block_mut()?.floats_mut())?;
        Ok(z)
    }

    /// What a product leaves on the tape, after its factors have been added to `y`.
    fn projected(&self, projection: &Projection<'_>, x: &Rows, y: &mut Rows) -> Result<Projected> {
        if !projection.terms.is_empty() {
            return Err(misuse("adapters are served while others are trained"));
        }
        let place = place(&projection.linear.weight)?;
        let factors = self.factors_of(place);
        let z = factors.map(|factors| self.add_factors(projection, &factors, x, y)).transpose()?;
        Ok(Projected { place, scale: projection.linear.scale, z })
    }

    /// Projections of the same rows, each a node.
    fn projections(&self, linears: &[Projection<'_>], x: &Rows) -> Result<Vec<Rows>> {
        let x = of(x)?;
        let outputs = self.cpu.linears(linears, &x.value.0)?;
        let with_factors = |(projection, mut y): (&Projection<'_>, Rows)| {
            let projected = self.projected(projection, &x.value.0, &mut y)?;
            let id = self.push_product(x, projected);
            Ok(node(Node { id, value: Value(Arc::new(y)) }))
        };
        linears.iter().zip(outputs).map(with_factors).collect()
    }

    /// Puts a product on the tape. The rows that it reads are kept for the gradients of factors alone.
    fn push_product(&self, x: &Node, projected: Projected) -> Option<usize> {
        let factored = projected.z.is_some();
        let derived = x.id.is_some_and(|id| self.state().tape.is_derived(id));
        self.push(x.id.is_some() || factored, None, || {
            let value = if factored && !derived { x.value.clone() } else { self.nothing() };
            Operation::Linear { x: Node { id: x.id, value }, projected }
        })
    }

    /// `act(gate) * up`
    fn gate_value(&self, gate: &Value, up: &Value, act: Activation) -> Result<Rows> {
        let (rows, dim) = gate.dims();
        let mut out = self.cpu.recycler.block(rows, dim);
        let (gate, up) = (gate.floats()?, up.floats()?);
        self.cpu.each_rows("gate", dim, out.floats_mut(), |rows, out| {
            let part = rows.start * dim..rows.end * dim;
            derivatives::gate(self.cpu.isa, act, &gate[part.clone()], &up[part], out);
        })?;
        Ok(out.into())
    }

    /// `act(x)`
    fn activation_value(&self, x: &Value, act: Activation) -> Result<Rows> {
        let mut out = self.copy(&x.0)?.into_block()?;
        let dim = out.dim;
        self.cpu.each_rows("activation", dim, out.floats_mut(), |_, out| {
            derivatives::activate(self.cpu.isa, act, out);
        })?;
        Ok(out.into())
    }

    /// A value that nobody reads.
    fn nothing(&self) -> Value {
        Value(Arc::new(self.cpu.recycler.filled(Vec::new(), 1).into()))
    }
}

impl Backend for TapeBackend {
    fn device(&self) -> &Device {
        self.cpu.device()
    }

    fn dtype(&self) -> DType {
        self.cpu.dtype()
    }

    fn describe(&self) -> String {
        format!("{}, with gradients", self.cpu.describe())
    }

    fn threads(&self) -> usize {
        self.cpu.threads()
    }

    fn matrix(&self, w: &WeightTensor, n: usize, k: usize, row_bytes: usize) -> Result<Stored> {
        self.cpu.matrix(w, n, k, row_bytes)
    }

    fn vector(&self, values: &[f32]) -> Result<Option<Opaque>> {
        self.cpu.vector(values)
    }

    fn rows(&self, values: Vec<f32>, dim: usize) -> Result<Rows> {
        Ok(node(Node { id: None, value: Value(Arc::new(self.cpu.rows(values, dim)?)) }))
    }

    fn floats(&self, x: Rows) -> Result<Vec<f32>> {
        self.cpu.floats(self.take(x)?)
    }

    fn recycle(&self, values: Vec<f32>) {
        self.cpu.recycle(values);
    }

    fn trim(&self) {
        self.cpu.trim();
    }

    fn parallel_for(&self, what: &'static str, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        self.cpu.parallel_for(what, tasks, task)
    }

    fn embed(&self, m: &Matrix, ids: &[u32], scale: Option<f32>) -> Result<Rows> {
        Ok(node(Node { id: None, value: Value(Arc::new(self.cpu.embed(m, ids, scale)?)) }))
    }

    fn linears(&self, linears: &[Projection<'_>], x: &Rows) -> Result<Vec<Rows>> {
        self.projections(linears, x)
    }

    fn linear_add(&self, linear: Projection<'_>, x: &Rows, to: Rows) -> Result<Rows> {
        let (x, to_id) = (of(x)?, of(&to)?.id);
        let mut y = self.cpu.linear_add(linear, &x.value.0, self.take(to)?)?;
        let projected = self.projected(&linear, &x.value.0, &mut y)?;
        // The product and the sum are two operations; the first has no value of its own.
        let product = self.push_product(x, projected);
        let operation = || Operation::Add { x: product, scale: 1.0, to: to_id };
        Ok(self.record(product.is_some() || to_id.is_some(), y, operation))
    }

    fn gated(&self, gate: Projection<'_>, up: Projection<'_>, x: &Rows, act: Activation) -> Result<Rows> {
        if act == Activation::ClampedSwiglu {
            return refused("clamped gates");
        }
        let both = self.projections(&[gate, up], x)?;
        let (gate, up) = (of(&both[0])?, of(&both[1])?);
        let out = self.gate_value(&gate.value, &up.value, act)?;
        let operation = || Operation::Gated { gate: gate.clone(), up: up.clone(), act };
        Ok(self.record(gate.id.is_some() || up.id.is_some(), out, operation))
    }

    fn activated(&self, up: Projection<'_>, x: &Rows, act: Activation) -> Result<Rows> {
        if act == Activation::ClampedSwiglu {
            return refused("clamped gates");
        }
        let inner = self.projections(&[up], x)?;
        let inner = of(&inner[0])?;
        let out = self.activation_value(&inner.value, act)?;
        let operation = || Operation::Activated { x: inner.clone(), act };
        Ok(self.record(inner.id.is_some(), out, operation))
    }

    fn experts(
        &self,
        _: &[Expert],
        _: Activation,
        _: &Rows,
        _: &Assignments,
        _: &ExpertTerms<'_>,
    ) -> Result<Rows> {
        refused("experts")
    }

    fn norm(&self, norm: &Norm, x: &Rows, to: Option<Rows>) -> Result<Rows> {
        let x = of(x)?;
        let (added, to_id) = (to.is_some(), to.as_ref().map(of).transpose()?.and_then(|to| to.id));
        let to = to.map(|to| self.take(to)).transpose()?;
        let out = self.cpu.norm(norm, &x.value.0, to)?;
        let operation = || Operation::Norm { x: x.clone(), norm: norm.clone(), added, to: to_id };
        Ok(self.record(x.id.is_some() || to_id.is_some(), out, operation))
    }

    fn mul(&self, _: Rows, _: &Rows, _: usize) -> Result<Rows> {
        refused("per-layer inputs")
    }

    fn output_gate(&self, _: Rows, _: Rows, _: GateFunction) -> Result<Rows> {
        refused("gates of attention")
    }

    fn columns(&self, _: &Rows, _: usize, _: Range<usize>) -> Result<Rows> {
        refused("latent attention")
    }

    fn joined(&self, _: &[&Rows], _: usize) -> Result<Rows> {
        refused("latent attention")
    }

    fn add(&self, x: &Rows, scale: f32, to: Rows) -> Result<Rows> {
        let (x, to_id) = (of(x)?, of(&to)?.id);
        let out = self.cpu.add(&x.value.0, scale, self.take(to)?)?;
        let operation = || Operation::Add { x: x.id, scale, to: to_id };
        Ok(self.record(x.id.is_some() || to_id.is_some(), out, operation))
    }

    fn scale_rows(&self, x: &Rows, factors: &[f32]) -> Result<Rows> {
        let x = of(x)?;
        let out = self.cpu.scale_rows(&x.value.0, factors)?;
        let id = x.id.unwrap_or(0);
        Ok(self.record(x.id.is_some(), out, || Operation::ScaleRows { x: id, factors: factors.to_vec() }))
    }

    fn rope_table(&self, inv_freq: &[f32], scale: f32, positions: &[u32]) -> Result<Opaque> {
        self.cpu.rope_table(inv_freq, scale, positions)
    }

    fn heads(
        &self,
        x: Rows,
        head_dim: usize,
        norm: Option<&Norm>,
        table: Option<&RopeTable>,
    ) -> Result<Rows> {
        let mut before = of(&x)?.clone();
        if before.id.is_none() || norm.is_none() || !self.state().recording {
            before.value = self.nothing();
        }
        let out = self.cpu.heads(self.take(x)?, head_dim, norm, table)?;
        Ok(self.record(before.id.is_some(), out, || Operation::Heads {
            x: before.clone(),
            head_dim,
            norm: norm.cloned(),
            table: table.cloned(),
        }))
    }

    fn soft_cap(&self, x: Rows, cap: f32) -> Result<Rows> {
        if of(&x)?.id.is_some() {
            return refused("a soft cap that is not of logits");
        }
        let out = self.cpu.soft_cap(self.take(x)?, cap)?;
        Ok(node(Node { id: None, value: Value(Arc::new(out)) }))
    }

    fn select_rows(&self, x: &Rows, rows: &[u32]) -> Result<Rows> {
        let x = of(x)?;
        let out = self.cpu.select_rows(&x.value.0, rows)?;
        let (id, of) = (x.id.unwrap_or(0), x.value.dims().0);
        let operation = || Operation::SelectRows { x: id, of, rows: rows.to_vec() };
        Ok(self.record(x.id.is_some(), out, operation))
    }

    fn kv_format(&self) -> KvFormat {
        self.cpu.kv_format()
    }

    fn is_exact(&self) -> bool {
        self.cpu.is_exact()
    }

    fn kv_cache(&self, layout: &KvLayout, pages: usize) -> Result<KvCache> {
        self.cpu.kv_cache(layout, pages)
    }

    fn kv_write(&self, _: &LayerKv, k: &Rows, v: &Rows, _: &[u32]) -> Result<()> {
        self.state().kv = Some((of(k)?.clone(), of(v)?.clone()));
        Ok(())
    }

    fn attention(
        &self,
        q: &Rows,
        _: &LayerKv,
        _: usize,
        _: &CheckedStep<'_>,
        a: &Attention<'_>,
    ) -> Result<Rows> {
        if a.sinks.is_some() {
            return refused("attention sinks");
        }
        if !a.causal {
            return refused("attention in both directions");
        }
        let Attention { heads, kv_heads, head_dim, scale, causal, window, soft_cap, .. } = *a;
        let a = Attention { heads, kv_heads, head_dim, scale, causal, window, soft_cap, sinks: None };
        let q = of(q)?;
        let mut state = self.state();
        let Some((k, v)) = state.kv.take() else { return refused("keys and values of another layer") };
        let covers = |spans: &[SpanRows]| spans.last().map_or(0, |span| span.queries.end);
        let (rows, dim) = q.value.dims();
        let spans = [&state.spans, &state.some].into_iter().find(|spans| covers(spans) == rows).cloned();
        drop(state);
        let spans = spans.ok_or_else(|| misuse(format!("no spans of {rows} rows were set")))?;
        let mut out = self.cpu.recycler.block(rows, dim);
        let mut lse = vec![0.0; rows * heads];
        let x = attention::Inputs {
            spans: &spans,
            a: &a,
            q: q.value.floats()?,
            k: k.value.floats()?,
            v: v.value.floats()?,
        };
        attention::forward(&self.cpu.pool, self.cpu.isa, x, out.floats_mut(), &mut lse)?;
        let wanted = [q, &k, &v].iter().any(|it| it.id.is_some());
        let value = Value(Arc::new(out.into()));
        let operation = || Operation::Attention { q: q.clone(), k, v, spans, a, lse };
        Ok(node(Node { id: self.push(wanted, Some(&value), operation), value }))
    }

    fn causal_conv(&self, _: &Rows, _: &CausalConv, _: &LayerState, _: &CheckedStep<'_>) -> Result<Rows> {
        refused("convolutions")
    }

    fn scan(&self, _: ScanRows<'_>, _: &Scan, _: &LayerState, _: &CheckedStep<'_>) -> Result<Rows> {
        refused("recurrent layers")
    }

    fn gated_norm(&self, _: Rows, _: &Rows, _: &GatedNorm) -> Result<Rows> {
        refused("recurrent layers")
    }
}
