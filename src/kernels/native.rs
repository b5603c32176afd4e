//! The CPU side: takes candle tensors apart into slices, runs our kernels, and puts tensors together.
//!
//! Nothing here falls back to another device or type in silence: a tensor that is not f32 on the CPU is an
//! `Internal` error.

use std::ops::Range;

use candle_core::{CpuStorage, DType, Device, InplaceOp1, InplaceOp2, Layout, Storage, StorageRef, Tensor};

use super::elementwise::{Binary, Unary, binary, unary};
use super::isa::Isa;
use super::matmul::{self, Stored};
use super::norm::{Norm, norm};
use super::pool::Pool;
use super::{Activation, Attention, Matrix, MatrixData, RopeTable, attention, misuse, rope};
use crate::cache::storage::LayerKv;
use crate::error::Result;
use crate::step::{PAGE, Step};
use crate::weights::WeightTensor;

pub(super) struct Native {
    pool: Pool,
    isa: Isa,
    device: Device,
}

impl Native {
    pub(super) fn new(threads: usize, isa: Isa) -> Result<Self> {
        Ok(Native { pool: Pool::new(threads)?, isa, device: Device::Cpu })
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn dtype(&self) -> DType {
        DType::F32
    }

    pub(super) fn threads(&self) -> usize {
        self.pool.threads()
    }

    pub(super) fn describe(&self) -> String {
        let threads = self.threads();
        format!("cpu {}, {threads} {}", self.isa.name(), if threads == 1 { "thread" } else { "threads" })
    }

    pub(super) fn matrix(
        &self,
        w: &WeightTensor,
        _n: usize,
        _k: usize,
        row_bytes: usize,
    ) -> Result<MatrixData> {
        Ok(MatrixData::Rows { dtype: w.dtype, row_bytes, bytes: w.data.clone() })
    }

    pub(super) fn embed(&self, m: &Matrix, ids: &[u32]) -> Result<Tensor> {
        let mut out = vec![0.0; ids.len() * m.k];
        matmul::gather(self.isa, stored(m)?, ids, &mut out);
        tensor(out, (ids.len(), m.k))
    }

    pub(super) fn linear(&self, m: &Matrix, x: &Tensor, bias: Option<&Tensor>) -> Result<Tensor> {
        let rows = x.dim(0)?;
        let (x, bias) = (x.contiguous()?, bias.map(|bias| bias.contiguous()).transpose()?);
        let x = Floats::of(&x)?;
        let bias = bias.as_ref().map(Floats::of).transpose()?;
        let mut out = vec![0.0; rows * m.n];
        let bias = bias.as_ref().map(Floats::get);
        matmul::matmul(&self.pool, self.isa, stored(m)?, x.get(), bias, &mut out)?;
        tensor(out, (rows, m.n))
    }

    pub(super) fn rms_norm(&self, x: &Tensor, w: &Tensor, eps: f64) -> Result<Tensor> {
        let w = w.contiguous()?;
        let weight = Floats::of(&w)?;
        self.norm(x, Norm::Rms { weight: weight.get() }, eps)
    }

    pub(super) fn layer_norm(&self, x: &Tensor, w: &Tensor, b: Option<&Tensor>, eps: f64) -> Result<Tensor> {
        let (w, b) = (w.contiguous()?, b.map(|b| b.contiguous()).transpose()?);
        let weight = Floats::of(&w)?;
        let bias = b.as_ref().map(Floats::of).transpose()?;
        self.norm(x, Norm::Layer { weight: weight.get(), bias: bias.as_ref().map(Floats::get) }, eps)
    }

    fn norm(&self, x: &Tensor, kind: Norm<'_>, eps: f64) -> Result<Tensor> {
        self.map(x, |x, out| norm(&self.pool, self.isa, kind, eps as f32, x, out))
    }

    pub(super) fn rope(&self, x: &Tensor, head_dim: usize, table: &RopeTable) -> Result<Tensor> {
        let shape = rope::Shape { dim: x.dim(1)?, head_dim, half: table.rotated() / 2 };
        let (cos, sin) = (Floats::of(&table.cos)?, Floats::of(&table.sin)?);
        self.map(x, |x, out| rope::rotate(&self.pool, self.isa, shape, x, (cos.get(), sin.get()), out))
    }

    pub(super) fn gated(&self, gate: &Tensor, up: &Tensor, act: Activation) -> Result<Tensor> {
        self.zip(Binary::Gated(act), gate, up)
    }

    pub(super) fn activate(&self, x: &Tensor, act: Activation) -> Result<Tensor> {
        self.map(x, |x, out| unary(&self.pool, self.isa, Unary::Act(act), x, out))
    }

    pub(super) fn add(&self, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        self.zip(Binary::Add, a, b)
    }

    pub(super) fn scale(&self, x: &Tensor, factor: f32) -> Result<Tensor> {
        self.map(x, |x, out| unary(&self.pool, self.isa, Unary::Scale(factor), x, out))
    }

    pub(super) fn soft_cap(&self, x: &Tensor, cap: f32) -> Result<Tensor> {
        self.map(x, |x, out| unary(&self.pool, self.isa, Unary::SoftCap(cap), x, out))
    }

    /// A tensor of the same shape, from what `f` makes of the elements.
    fn map(&self, x: &Tensor, f: impl FnOnce(&[f32], &mut [f32]) -> Result<()>) -> Result<Tensor> {
        let x = x.contiguous()?;
        let floats = Floats::of(&x)?;
        let mut out = vec![0.0; floats.get().len()];
        f(floats.get(), &mut out)?;
        tensor(out, x.dims())
    }

    fn zip(&self, f: Binary, a: &Tensor, b: &Tensor) -> Result<Tensor> {
        let b = b.contiguous()?;
        let b = Floats::of(&b)?;
        self.map(a, |a, out| binary(&self.pool, self.isa, f, a, b.get(), out))
    }

    pub(super) fn select_rows(&self, x: &Tensor, rows: &[u32]) -> Result<Tensor> {
        let dim = x.dim(1)?;
        let x = x.contiguous()?;
        let x = Floats::of(&x)?;
        let mut out = Vec::with_capacity(rows.len() * dim);
        rows.iter().for_each(|&row| out.extend_from_slice(&x.get()[row as usize * dim..][..dim]));
        tensor(out, (rows.len(), dim))
    }

    pub(super) fn kv_write(&self, kv: &LayerKv, k: &Tensor, v: &Tensor, slots: &[u32]) -> Result<()> {
        let write = |keys| WriteKv { slots, width: kv.shape.width(), head_dim: kv.shape.head_dim, keys };
        kv.keys.inplace_op2(&k.contiguous()?, &write(true))?;
        Ok(kv.values.inplace_op2(&v.contiguous()?, &write(false))?)
    }

    pub(super) fn copy_page(&self, kv: &Tensor, from: usize, to: usize) -> Result<()> {
        let page = PAGE * kv.dim(1)?;
        Ok(kv.inplace_op1(&CopyWithin { from: from * page..(from + 1) * page, to: to * page })?)
    }

    pub(super) fn attention(&self, q: &Tensor, kv: &LayerKv, step: &Step, a: &Attention) -> Result<Tensor> {
        let (keys, values) = (Floats::of(&kv.keys)?, Floats::of(&kv.values)?);
        let kv = (keys.get(), values.get());
        self.map(q, |q, out| attention::attention(&self.pool, self.isa, q, kv, step, a, out))
    }
}

fn stored(m: &Matrix) -> Result<Stored<'_>> {
    match &m.data {
        MatrixData::Rows { dtype, row_bytes, bytes } => {
            Ok(Stored { dtype: *dtype, bytes, row_bytes: *row_bytes, n: m.n, k: m.k })
        }
        _ => Err(misuse(format!("{} was made by other Ops than those that use it", m.name()))),
    }
}

/// The elements of a contiguous f32 tensor on the CPU; holds its lock.
struct Floats<'a> {
    storage: StorageRef<'a>,
    range: Range<usize>,
}

impl<'a> Floats<'a> {
    fn of(x: &'a Tensor) -> Result<Self> {
        let (storage, layout) = x.storage_and_layout();
        let wrong =
            || misuse(format!("a {:?} tensor on {:?} came to the CPU kernels", x.dtype(), x.device()));
        let (from, to) = layout.contiguous_offsets().ok_or_else(|| misuse("a tensor is not contiguous"))?;
        match &*storage {
            Storage::Cpu(CpuStorage::F32(values)) if to <= values.len() => {}
            _ => return Err(wrong()),
        }
        Ok(Floats { storage, range: from..to })
    }

    fn get(&self) -> &[f32] {
        match &*self.storage {
            Storage::Cpu(CpuStorage::F32(values)) => &values[self.range.clone()],
            _ => &[], // `of` made sure
        }
    }
}

fn tensor(values: Vec<f32>, shape: impl Into<candle_core::Shape>) -> Result<Tensor> {
    Ok(Tensor::from_vec(values, shape.into(), &Device::Cpu)?)
}

/// The slice behind a contiguous f32 storage.
fn floats<'a>(storage: &'a CpuStorage, layout: &Layout) -> candle_core::Result<&'a [f32]> {
    let (from, to) = layout.contiguous_offsets().ok_or_else(|| candle_core::Error::msg("not contiguous"))?;
    storage.as_slice::<f32>()?.get(from..to).ok_or_else(|| candle_core::Error::msg("a layout out of bounds"))
}

fn floats_mut<'a>(storage: &'a mut CpuStorage, layout: &Layout) -> candle_core::Result<&'a mut [f32]> {
    match (storage, layout.contiguous_offsets()) {
        (CpuStorage::F32(values), Some((from, to))) if to <= values.len() => Ok(&mut values[from..to]),
        _ => Err(candle_core::Error::msg("the KV cache is not contiguous f32")),
    }
}

/// Puts rows into slots of the cache.
struct WriteKv<'a> {
    slots: &'a [u32],
    width: usize,
    head_dim: usize,
    /// Keys lie on their side.
    keys: bool,
}

impl InplaceOp2 for WriteKv<'_> {
    fn name(&self) -> &'static str {
        "kv_write"
    }

    fn cpu_fwd(
        &self,
        cache: &mut CpuStorage,
        cache_layout: &Layout,
        rows: &CpuStorage,
        rows_layout: &Layout,
    ) -> candle_core::Result<()> {
        let (cache, rows) = (floats_mut(cache, cache_layout)?, floats(rows, rows_layout)?);
        match self.keys {
            true => attention::write_keys(cache, rows, self.width, self.head_dim, self.slots),
            false => attention::write_values(cache, rows, self.width, self.slots),
        }
        Ok(())
    }
}

/// Copies a range of elements to another place in the same tensor.
struct CopyWithin {
    from: Range<usize>,
    to: usize,
}

impl InplaceOp1 for CopyWithin {
    fn name(&self) -> &'static str {
        "copy_page"
    }

    fn cpu_fwd(&self, storage: &mut CpuStorage, layout: &Layout) -> candle_core::Result<()> {
        floats_mut(storage, layout)?.copy_within(self.from.clone(), self.to);
        Ok(())
    }
}
