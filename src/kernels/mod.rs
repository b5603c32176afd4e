//! The seam between the graph and the machine: everything a forward pass computes.
//!
//! [`Ops`] is chosen once, when a model is built, and the graph names no device. Two implementations stand
//! behind it:
//!
//! * *native* (CPU): kernels of our own over packed weights, on a worker pool with an explicit number of
//!   threads. The same row gives the same bits alone or among hundreds, on any number of threads and on any
//!   tier of instructions; every reduction has one fixed order.
//! * *plain*: candle operations only, for CUDA and Metal, and on the CPU as a second opinion in tests.
//!
//! Operations are as large as the graph lets them be: what a product's result goes through next (a bias, a sum,
//! a gate) is part of it. Activations are [`Rows`] `[rows, dim]`, one row a token of the [`Step`]; f32 on the CPU.
//! Arguments are checked here, for both sides alike, so that the kernels below may trust shapes and indices.
//!
//! From the bottom up: [`isa`] and [`simd`] (tiers of instructions), [`pool`] (threads), [`forms`] and [`pack`]
//! (weights in memory), [`quantize`], [`gemm`], [`tile`], [`stretch`] and [`amx`] (products), [`attention`], [`norm`], [`rope`], [`elementwise`].

#[cfg_attr(not(target_arch = "x86_64"), allow(dead_code, unused_imports))]
mod amx;
mod attention;
mod check;
mod checked_step;
mod elementwise;
mod few;
mod forms;
mod gemm;
mod isa;
mod math;
mod native;
mod norm;
mod pack;
mod plain;
mod pool;
mod quantize;
mod rope;
mod rows;
mod simd;
mod stretch;
mod tile;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

pub use self::checked_step::CheckedStep;
pub use self::isa::Isa;
use self::native::Native;
use self::plain::Plain;
use self::rows::Data;
pub use self::rows::Rows;
pub use crate::cache::storage::{KvCache, KvFormat, KvLayout, KvShape, KvType};
pub use crate::config::Activation;
use crate::config::NormKind;
use crate::error::{Error, Result};
use crate::step::Step;
use crate::weights::WeightTensor;

/// What attention needs to know of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Scores are `scale * q.k`.
    pub scale: f32,
    /// A query sees its own position and those before it; `false`: all of its sequence, also those after it.
    pub causal: bool,
    /// A query sees positions less than this far away, itself among them (before it, and behind it where not
    /// `causal`); `None` sees all.
    pub window: Option<usize>,
    /// Scores become `cap * tanh(score / cap)`.
    pub soft_cap: Option<f32>,
}

/// A weight matrix `[n, k]` where the kernels want it. A clone shares the memory.
#[derive(Clone, Debug)]
pub struct Matrix {
    name: Arc<str>,
    n: usize,
    k: usize,
    data: MatrixData,
}

#[derive(Clone, Debug)]
enum MatrixData {
    /// In panels (native), and the bytes that the checkpoint has for it.
    Packed(Arc<pack::Packed>, usize),
    /// A format that candle multiplies by (plain).
    Quantized(Arc<candle_core::quantized::QTensor>),
    /// Plain floats (plain).
    Dense(Tensor),
}

impl Matrix {
    /// The tensor's name in the checkpoint.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// How the weights are stored, and how many bytes they take in the checkpoint.
    pub fn stored(&self) -> (&'static str, usize) {
        match &self.data {
            MatrixData::Packed(packed, bytes) => (packed.dtype.name(), *bytes),
            MatrixData::Quantized(tensor) => ("quantized", tensor.storage_size_in_bytes()),
            MatrixData::Dense(tensor) => {
                (tensor.dtype().as_str(), tensor.elem_count() * tensor.dtype().size_in_bytes())
            }
        }
    }

    /// Output features (or vocabulary).
    pub fn n(&self) -> usize {
        self.n
    }

    /// Input features.
    pub fn k(&self) -> usize {
        self.k
    }
}

/// A one-dimensional weight, f32: a bias, or the weights of a norm.
#[derive(Clone, Debug)]
pub struct Vector {
    values: Arc<[f32]>,
    /// On the device (plain).
    tensor: Option<Tensor>,
}

impl Vector {
    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    fn plain(&self) -> Result<&Tensor> {
        self.tensor.as_ref().ok_or_else(|| misuse("a vector was made by other Ops than those that use it"))
    }
}

/// A projection: `y = x W^T + b`, W `[out, in]` as checkpoints store it. What adapters attach to.
#[derive(Clone, Debug)]
pub struct Linear {
    pub weight: Matrix,
    pub bias: Option<Vector>,
    /// On the CPU, quantized weights are multiplied by activations of 8 bits; numbers above this many root mean squares of their
    /// row are multiplied as floats. (Projections of the same rows share them: the first that is computed decides.)
    pub outlier: f32,
}

/// A norm over groups of `weight.len()` values; the offset of Gemma's `1 + w` is already in the weight.
#[derive(Clone, Debug)]
pub struct Norm {
    pub kind: NormKind,
    pub eps: f64,
    pub weight: Vector,
    pub bias: Option<Vector>,
}

/// Cosines and sines of the rows of one step, each `[rows, half]`.
#[derive(Clone, Debug)]
pub struct RopeTable {
    rows: usize,
    half: usize,
    cos: Vec<f32>,
    sin: Vec<f32>,
    /// The same on the device (plain).
    tensors: Option<(Tensor, Tensor)>,
}

impl RopeTable {
    /// Rotated dimensions of each head: twice the number of frequencies.
    pub fn rotated(&self) -> usize {
        2 * self.half
    }
}

/// The machine, as the graph sees it. A clone shares the worker pool.
#[derive(Clone)]
pub struct Ops(Arc<Side>);

enum Side {
    Native(Native),
    Plain(Plain),
}

/// Calls the same method of whichever side there is.
macro_rules! side {
    ($ops:expr, $side:ident => $call:expr) => {
        match &*$ops.0 {
            Side::Native($side) => $call,
            Side::Plain($side) => $call,
        }
    };
}

impl Ops {
    /// Our own kernels on the CPU, with `threads` threads (the calling one is among them); keys and values as
    /// `kv` says.
    ///
    /// The widest instructions that the machine has are used; the environment variable `TALLOW_ISA`
    /// (`amx`, `avx512bf16`, `avx512`, `avxvnni`, `avx2`, `scalar`) forces others.
    ///
    /// # Errors
    /// `Device` when `TALLOW_ISA` names what this machine has not, or a thread cannot be started;
    /// `InvalidRequest` when `threads` is 0.
    pub fn native(threads: usize, kv: KvType) -> Result<Ops> {
        Self::native_with(threads, kv, Isa::from_env()?)
    }

    /// As [`Ops::native`], with the tier of instructions named.
    pub fn native_with(threads: usize, kv: KvType, isa: Isa) -> Result<Ops> {
        Ok(Ops(Arc::new(Side::Native(Native::new(threads, kv, isa)?))))
    }

    /// candle operations alone, on any device. Activations and the KV cache are of type `dtype`; norms,
    /// softmax and rotations are computed in f32.
    pub fn plain(device: Device, dtype: DType) -> Ops {
        Ops(Arc::new(Side::Plain(Plain::new(device, dtype))))
    }

    pub fn device(&self) -> &Device {
        side!(self, s => s.device())
    }

    /// The type of activations.
    pub fn dtype(&self) -> DType {
        side!(self, s => s.dtype())
    }

    /// Threads that compute: 1 when another device does.
    pub fn threads(&self) -> usize {
        side!(self, s => s.threads())
    }

    /// What computes, in words: `cpu avx512, 4 threads`.
    pub fn describe(&self) -> String {
        side!(self, s => s.describe())
    }

    /// A weight matrix `[n, k]`. Native packs it, and gives the pages of a mapped file back.
    ///
    /// # Errors
    /// `ModelFile` naming the tensor when it is not two-dimensional or its bytes do not fit its shape;
    /// `OutOfMemory` when it cannot be packed.
    pub fn matrix(&self, w: &WeightTensor) -> Result<Matrix> {
        let (n, k, row_bytes) = check::matrix(w)?;
        let data = side!(self, s => s.matrix(w, n, k, row_bytes)).map_err(|e| e.context(&w.name))?;
        Ok(Matrix { name: w.name.as_str().into(), n, k, data })
    }

    /// A one-dimensional weight as f32, with `add` added to every element (Gemma's `1 + w`).
    ///
    /// # Errors
    /// `ModelFile` naming the tensor when it is not one-dimensional.
    pub fn vector(&self, w: &WeightTensor, add: f32) -> Result<Vector> {
        let mut values = check::vector(w)?;
        values.iter_mut().for_each(|value| *value += add);
        let tensor = match &*self.0 {
            Side::Native(_) => None,
            Side::Plain(plain) => Some(Tensor::from_slice(&values, values.len(), plain.device())?),
        };
        Ok(Vector { values: values.into(), tensor })
    }

    /// Activations of `dim` columns from numbers in row-major order.
    pub fn rows(&self, values: Vec<f32>, dim: usize) -> Result<Rows> {
        check::whole_rows(values.len(), dim)?;
        match &*self.0 {
            Side::Native(native) => Ok(native.rows(values, dim).into()),
            Side::Plain(plain) => Ok(plain.rows(values, dim)?.into()),
        }
    }

    /// All elements, as f32, in row-major order.
    pub fn into_vec(&self, x: Rows) -> Result<Vec<f32>> {
        match x.0 {
            Data::Native(block) => Ok(block.into_vec()),
            Data::Plain(tensor) => Ok(tensor.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?),
        }
    }

    /// Takes back what [`into_vec`](Ops::into_vec) gave: fresh memory for the logits of a batch costs more than half as
    /// much as computing them (32 rows of a vocabulary of 262,144).
    pub fn recycle(&self, values: Vec<f32>) {
        if let Side::Native(native) = &*self.0 {
            native.recycle(values);
        }
    }

    /// Nothing is computed now: memory that is only kept for the next step goes.
    pub fn trim(&self) {
        if let Side::Native(native) = &*self.0 {
            native.trim();
        }
    }

    /// Calls `task` with each of `0..tasks`, on the threads that compute. `what` is its name in a trace.
    ///
    /// # Errors
    /// `Internal` when a task panicked.
    pub fn spread(&self, what: &'static str, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        match &*self.0 {
            Side::Native(native) => native.spread(what, tasks, task),
            Side::Plain(_) => {
                (0..tasks).for_each(task);
                Ok(())
            }
        }
    }

    /// Rows `ids` of an embedding matrix, times `scale`: `[ids, k]`.
    pub fn embed(&self, m: &Matrix, ids: &[u32], scale: Option<f32>) -> Result<Rows> {
        check::ids(m, ids)?;
        match &*self.0 {
            Side::Native(native) => Ok(native.embed(m, ids, scale)?.into()),
            Side::Plain(plain) => Ok(plain.embed(m, ids, scale)?.into()),
        }
    }

    /// `x * W^T (+ bias)`: `[rows, k] -> [rows, n]`.
    pub fn linear(&self, linear: &Linear, x: &Rows) -> Result<Rows> {
        let [y] = self.linears([linear], x)?;
        Ok(y)
    }

    /// Several projections of the same rows.
    pub fn linears<const N: usize>(&self, linears: [&Linear; N], x: &Rows) -> Result<[Rows; N]> {
        linears.iter().try_for_each(|linear| check::linear(linear, x))?;
        let outputs: Vec<Rows> = match &*self.0 {
            Side::Native(native) => {
                native.linears(&linears, x.native()?)?.into_iter().map(Rows::from).collect()
            }
            Side::Plain(plain) => {
                let one = |linear: &&Linear| Ok(Rows::from(plain.linear(linear, x.plain()?)?));
                linears.iter().map(one).collect::<Result<_>>()?
            }
        };
        outputs.try_into().map_err(|_| misuse("as many results as projections"))
    }

    /// `to + x * W^T (+ bias)`.
    pub fn linear_add(&self, linear: &Linear, x: &Rows, to: Rows) -> Result<Rows> {
        check::linear(linear, x)?;
        check::shape("a sum", &to, x.dims().0, linear.weight.n)?;
        match &*self.0 {
            Side::Native(native) => Ok(native.linear_add(linear, x.native()?, to.into_native()?)?.into()),
            Side::Plain(plain) => Ok(plain.add(to.plain()?, &plain.linear(linear, x.plain()?)?)?.into()),
        }
    }

    /// `act(x G^T) * (x U^T)`, with biases.
    pub fn gated(&self, gate: &Linear, up: &Linear, x: &Rows, act: Activation) -> Result<Rows> {
        check::linear(gate, x)?;
        check::linear(up, x)?;
        if gate.weight.n != up.weight.n {
            return Err(misuse("gate and up have other widths"));
        }
        match &*self.0 {
            Side::Native(native) => Ok(native.gated(gate, up, x.native()?, act)?.into()),
            Side::Plain(plain) => {
                let x = x.plain()?;
                Ok(plain.gated(&plain.linear(gate, x)?, &plain.linear(up, x)?, act)?.into())
            }
        }
    }

    /// `act(x U^T)`, with bias.
    pub fn activated(&self, up: &Linear, x: &Rows, act: Activation) -> Result<Rows> {
        check::linear(up, x)?;
        match &*self.0 {
            Side::Native(native) => Ok(native.activated(up, x.native()?, act)?.into()),
            Side::Plain(plain) => Ok(plain.activate(&plain.linear(up, x.plain()?)?, act)?.into()),
        }
    }

    /// A norm over groups of its width: the whole row, or each head of it. RMS: `x / sqrt(mean(x^2) + eps) * w`;
    /// layer: `(x - mean) / sqrt(var + eps) * w (+ b)`.
    pub fn norm(&self, norm: &Norm, x: &Rows) -> Result<Rows> {
        check::norm(norm, x)?;
        match &*self.0 {
            Side::Native(native) => Ok(native.norm(norm, x.native()?, None)?.into()),
            Side::Plain(plain) => Ok(plain.norm(norm, x.plain()?)?.into()),
        }
    }

    /// `to + norm(x)`.
    pub fn norm_add(&self, norm: &Norm, x: &Rows, to: Rows) -> Result<Rows> {
        check::norm(norm, x)?;
        check::shape("a sum", &to, x.dims().0, x.dims().1)?;
        match &*self.0 {
            Side::Native(native) => Ok(native.norm(norm, x.native()?, Some(to.into_native()?))?.into()),
            Side::Plain(plain) => Ok(plain.add(to.plain()?, &plain.norm(norm, x.plain()?)?)?.into()),
        }
    }

    /// Cosines and sines for one step: angles are the f32 products `position * inv_freq`, as transformers
    /// computes them, and both are multiplied by `scale` (the attention factor of YaRN and LongRope).
    pub fn rope_table(&self, inv_freq: &[f32], scale: f32, positions: &[u32]) -> Result<RopeTable> {
        let (rows, half) = (positions.len(), inv_freq.len());
        let (mut cos, mut sin) = (vec![0.0; rows * half], vec![0.0; rows * half]);
        let tensors = match &*self.0 {
            _ if half == 0 => None,
            Side::Native(native) => {
                native.rope_table(inv_freq, scale, positions, &mut cos, &mut sin)?;
                None
            }
            Side::Plain(plain) => {
                rope::fill(inv_freq, scale, positions, &mut cos, &mut sin);
                let tensor = |values: &[f32]| Tensor::from_slice(values, (rows, half), plain.device());
                Some((tensor(&cos)?, tensor(&sin)?))
            }
        };
        Ok(RopeTable { rows, half, cos, sin, tensors })
    }

    /// Heads of `x` `[rows, heads * head_dim]`: each through the norm, then its first `table.rotated()` dimensions
    /// turned, dimension `i` with `i + rotated / 2`. The rest passes through.
    pub fn heads(
        &self,
        x: Rows,
        head_dim: usize,
        norm: Option<&Norm>,
        table: Option<&RopeTable>,
    ) -> Result<Rows> {
        check::heads(&x, head_dim, norm, table)?;
        match &*self.0 {
            Side::Native(native) => Ok(native.heads(x.into_native()?, head_dim, norm, table)?.into()),
            Side::Plain(plain) => Ok(plain.heads(x.plain()?, head_dim, norm, table)?.into()),
        }
    }

    /// `cap * tanh(x / cap)`.
    pub fn soft_cap(&self, x: Rows, cap: f32) -> Result<Rows> {
        match &*self.0 {
            Side::Native(native) => Ok(native.soft_cap(x.into_native()?, cap)?.into()),
            Side::Plain(plain) => Ok(plain.soft_cap(x.plain()?, cap)?.into()),
        }
    }

    /// Rows of `x` by index, in the order given.
    pub fn select_rows(&self, x: &Rows, rows: &[u32]) -> Result<Rows> {
        check::rows(x, rows)?;
        match &*self.0 {
            Side::Native(native) => Ok(native.select_rows(x.native()?, rows).into()),
            Side::Plain(plain) => Ok(plain.select_rows(x.plain()?, rows)?.into()),
        }
    }

    /// An empty cache of `pages` pages.
    ///
    /// # Errors
    /// `OutOfMemory`, with the size that was asked for.
    pub fn kv_cache(&self, layout: &KvLayout, pages: usize) -> Result<KvCache> {
        match self.kv_format() {
            KvFormat::Native(kind) => KvCache::native(layout, pages, kind),
            KvFormat::Tensors(dtype) => KvCache::new(layout, pages, dtype, self.device()),
        }
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
        match &*self.0 {
            Side::Native(native) => KvFormat::Native(native.kv_type()),
            Side::Plain(plain) => KvFormat::Tensors(plain.dtype()),
        }
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
        let slots = step.slots(cache.group(layer)?)?;
        match &*self.0 {
            Side::Native(native) => native.kv_write(kv, k.native()?, v.native()?, slots),
            Side::Plain(plain) => plain.kv_write(kv, k.plain()?, v.plain()?, slots),
        }
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
        a: &Attention,
    ) -> Result<Rows> {
        step.belongs_to(cache)?;
        let (kv, group) = (cache.layer(layer)?, cache.group(layer)?);
        check::attention(q, kv.shape, step, a)?;
        check::window(cache.layout().windows()[group], a)?;
        match &*self.0 {
            Side::Native(native) => Ok(native.attention(q.native()?, kv, group, step, a)?.into()),
            Side::Plain(plain) => Ok(plain.attention(q.plain()?, kv, group, step, a)?.into()),
        }
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
