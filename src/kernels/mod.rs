//! The seam between the graph and the machine: everything a forward pass computes.
//!
//! [`Ops`] is chosen once, when a model is built, and the graph names no device. Two implementations stand
//! behind it:
//!
//! * *native* (CPU): kernels of our own over weights in the file's own format, on a worker pool with an
//!   explicit number of threads. The same row gives the same bits alone or among hundreds, on any number
//!   of threads and on any tier of instructions; every reduction has one fixed order (see `lanes`).
//! * *plain*: candle operations only, for CUDA and Metal, and on the CPU as a second opinion in tests.
//!
//! Activations are `[rows, dim]` tensors, one row a token of the [`Step`]; f32 on the CPU. Arguments are
//! checked here, for both sides alike, so that the kernels below may trust shapes and indices.

mod attention;
mod check;
mod elementwise;
mod isa;
mod lanes;
mod math;
mod matmul;
mod native;
mod norm;
mod plain;
mod pool;
mod rope;

use std::sync::Arc;

use candle_core::{DType, Device, Tensor};

pub use self::isa::Isa;
use self::native::Native;
use self::plain::Plain;
pub use crate::cache::storage::{KvCache, KvShape};
pub use crate::config::Activation;
use crate::error::{Error, Result};
use crate::step::Step;
use crate::weights::{Bytes, WeightTensor, WeightType};

/// What attention needs to know of a layer.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Attention {
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Scores are `scale * q.k`.
    pub scale: f32,
    /// A query sees this many last positions, itself among them; `None` sees all.
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
    /// Rows in the file's own format (native).
    Rows { dtype: WeightType, row_bytes: usize, bytes: Bytes },
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

    /// How the weights are stored, and how many bytes they take.
    pub fn stored(&self) -> (&'static str, usize) {
        match &self.data {
            MatrixData::Rows { dtype, bytes, .. } => (dtype.name(), bytes.len()),
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

/// Cosines and sines of the rows of one step.
#[derive(Clone, Debug)]
pub struct RopeTable {
    /// `[rows, rot / 2]`, f32.
    cos: Tensor,
    /// `[rows, rot / 2]`, f32.
    sin: Tensor,
}

impl RopeTable {
    /// Rotated dimensions of each head: twice the number of frequencies.
    pub fn rotated(&self) -> usize {
        2 * self.cos.dims().last().copied().unwrap_or(0)
    }

    fn rows(&self) -> usize {
        self.cos.dims().first().copied().unwrap_or(0)
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
    /// Our own kernels on the CPU, with `threads` threads (the calling one is among them).
    ///
    /// The widest instructions that the machine has are used; the environment variable `TALLOW_ISA`
    /// (`avx512`, `avx2`, `scalar`) forces others.
    ///
    /// # Errors
    /// `Device` when `TALLOW_ISA` names what this machine has not, or a thread cannot be started;
    /// `InvalidRequest` when `threads` is 0.
    pub fn native(threads: usize) -> Result<Ops> {
        Self::native_with(threads, Isa::from_env()?)
    }

    /// As [`Ops::native`], with the tier of instructions named.
    pub fn native_with(threads: usize, isa: Isa) -> Result<Ops> {
        Ok(Ops(Arc::new(Side::Native(Native::new(threads, isa)?))))
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

    /// A weight matrix `[n, k]`. Native keeps the bytes where they are (a mapped file stays mapped).
    ///
    /// # Errors
    /// `ModelFile` naming the tensor when it is not two-dimensional or its bytes do not fit its shape.
    pub fn matrix(&self, w: &WeightTensor) -> Result<Matrix> {
        let (n, k, row_bytes) = check::matrix(w)?;
        let data = side!(self, s => s.matrix(w, n, k, row_bytes)).map_err(|e| e.context(&w.name))?;
        Ok(Matrix { name: w.name.as_str().into(), n, k, data })
    }

    /// A one-dimensional weight as f32 on the device, with `add` added to every element (Gemma's `1 + w`).
    ///
    /// # Errors
    /// `ModelFile` naming the tensor when it is not one-dimensional.
    pub fn vector(&self, w: &WeightTensor, add: f32) -> Result<Tensor> {
        let mut values = check::vector(w)?;
        values.iter_mut().for_each(|value| *value += add);
        let len = values.len();
        Ok(Tensor::from_vec(values, len, self.device())?)
    }

    /// Rows `ids` of an embedding matrix: `[ids, k]`.
    pub fn embed(&self, m: &Matrix, ids: &[u32]) -> Result<Tensor> {
        check::ids(m, ids)?;
        side!(self, s => s.embed(m, ids))
    }

    /// `x * m^T (+ bias)`: `[rows, k] -> [rows, n]`. `bias` is f32 `[n]`.
    pub fn linear(&self, m: &Matrix, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        check::linear(m, x, bias)?;
        side!(self, s => s.linear(m, x, bias))
    }

    /// RMS norm over groups of `w.len()` elements: the whole row, or each head of it.
    /// `x / sqrt(mean(x^2) + eps) * w`.
    pub fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
        check::norm(x, w, None)?;
        side!(self, s => s.rms_norm(x, w, eps))
    }

    /// Layer norm over groups of `w.len()` elements: `(x - mean) / sqrt(var + eps) * w (+ b)`.
    pub fn layer_norm(&self, x: &Tensor, w: &Tensor, b: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        check::norm(x, w, b)?;
        side!(self, s => s.layer_norm(x, w, b, eps))
    }

    /// Cosines and sines for one step: angles are the f32 products `position * inv_freq`, as transformers
    /// computes them, and both are multiplied by `scale` (the attention factor of YaRN and LongRope).
    pub fn rope_table(&self, inv_freq: &[f32], scale: f32, positions: &[u32]) -> Result<RopeTable> {
        rope::table(inv_freq, scale, positions, self.device())
    }

    /// Rotates the first `table.rotated()` dimensions of every head of `x` `[rows, heads * head_dim]`;
    /// dimension `i` is paired with `i + rotated / 2`. The rest passes through.
    pub fn rope(&self, x: &Tensor, head_dim: usize, table: &RopeTable) -> Result<Tensor> {
        check::rope(x, head_dim, table)?;
        side!(self, s => s.rope(x, head_dim, table))
    }

    /// `act(gate) * up`.
    pub fn gated(&self, gate: &Tensor, up: &Tensor, act: Activation) -> Result<Tensor> {
        check::same_shape(gate, up)?;
        side!(self, s => s.gated(gate, up, act))
    }

    pub fn activate(&self, x: &Tensor, act: Activation) -> Result<Tensor> {
        side!(self, s => s.activate(x, act))
    }

    pub fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        check::same_shape(a, b)?;
        side!(self, s => s.add(a, b))
    }

    pub fn scale(&self, x: &Tensor, factor: f32) -> Result<Tensor> {
        side!(self, s => s.scale(x, factor))
    }

    /// `cap * tanh(x / cap)`.
    pub fn soft_cap(&self, x: &Tensor, cap: f32) -> Result<Tensor> {
        side!(self, s => s.soft_cap(x, cap))
    }

    /// Rows of `x` by index, in the order given.
    pub fn select_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        check::rows(x, rows)?;
        side!(self, s => s.select_rows(x, rows))
    }

    /// An empty cache of `pages` pages in each of these layers.
    ///
    /// # Errors
    /// `OutOfMemory`, with the size that was asked for.
    pub fn kv_cache(&self, layers: &[KvShape], pages: usize) -> Result<KvCache> {
        KvCache::new(layers, pages, self.dtype(), self.device())
    }

    /// Puts the keys and values `[rows, kv_heads * head_dim]` of this step into its pages.
    pub fn kv_write(&self, cache: &KvCache, layer: usize, k: &Tensor, v: &Tensor, step: &Step) -> Result<()> {
        check::step(step, cache)?;
        let kv = cache.layer(layer)?;
        check::shape("keys", k, step.rows(), kv.shape.width())?;
        check::shape("values", v, step.rows(), kv.shape.width())?;
        let slots = check::slots(step);
        side!(self, s => s.kv_write(kv, k, v, &slots))
    }

    /// Causal attention of the queries `[rows, heads * head_dim]` over their own sequence's pages, which
    /// already hold the keys and values of this step. Query heads share key heads in groups.
    pub fn attention(
        &self,
        q: &Tensor,
        cache: &KvCache,
        layer: usize,
        step: &Step,
        a: &Attention,
    ) -> Result<Tensor> {
        check::step(step, cache)?;
        let kv = cache.layer(layer)?;
        check::attention(q, kv.shape, step, a)?;
        side!(self, s => s.attention(q, kv, step, a))
    }

    /// Copies page `from` over page `to`, in every layer.
    pub fn copy_page(&self, cache: &KvCache, from: u32, to: u32) -> Result<()> {
        for page in [from, to] {
            check::page(page, cache)?;
        }
        if from == to {
            return Ok(());
        }
        for layer in 0..cache.layers() {
            let kv = cache.layer(layer)?;
            side!(self, s => s.copy_page(&kv.keys, from as usize, to as usize))?;
            side!(self, s => s.copy_page(&kv.values, from as usize, to as usize))?;
        }
        Ok(())
    }

    /// All elements, as f32, in row-major order.
    pub fn to_vec(&self, x: &Tensor) -> Result<Vec<f32>> {
        Ok(x.to_dtype(DType::F32)?.flatten_all()?.to_vec1()?)
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
