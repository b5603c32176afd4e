//! The CPU side: buffers, threads, and which kernel runs over what.

use std::sync::Arc;

use candle_core::{DType, Device};

use super::elementwise::{self, Unary};
use super::gemm::{self, Input, Product, Then};
use super::isa::Isa;
use super::pack::{self, Arena, Packed};
use super::pool::{Pool, Shares};
use super::quantize::{self, Job, Precision, Quantized};
use super::rows::{Block, Recycler};
use super::{
    Activation, Attention, CheckedStep, KvType, Linear, Matrix, MatrixData, Norm, RopeTable, attention,
    misuse, norm, rope,
};
use crate::cache::storage::LayerKv;
use crate::config::NormKind;
use crate::error::Result;
use crate::weights::WeightTensor;

/// Floats of a task of the operations that are no products: some microseconds of work.
const PIECE: usize = 8192;

pub(super) struct Native {
    pool: Pool,
    isa: Isa,
    kv: KvType,
    device: Device,
    arena: Arena,
    recycler: Arc<Recycler>,
}

impl Native {
    pub(super) fn new(threads: usize, kv: KvType, isa: Isa) -> Result<Self> {
        let pool = Pool::new(threads)?;
        Ok(Native { pool, isa, kv, device: Device::Cpu, arena: Arena::default(), recycler: Arc::default() })
    }

    pub(super) fn device(&self) -> &Device {
        &self.device
    }

    pub(super) fn dtype(&self) -> DType {
        DType::F32
    }

    pub(super) fn kv_type(&self) -> KvType {
        self.kv
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
        n: usize,
        k: usize,
        row_bytes: usize,
    ) -> Result<MatrixData> {
        let packed = pack::pack(&self.pool, &self.arena, w, n, k, row_bytes)?;
        Ok(MatrixData::Packed(Arc::new(packed), w.data.len()))
    }

    pub(super) fn rows(&self, values: Vec<f32>, dim: usize) -> Block {
        self.recycler.filled(values, dim)
    }

    pub(super) fn recycle(&self, values: Vec<f32>) {
        self.recycler.give_floats(values);
    }

    pub(super) fn trim(&self) {
        self.recycler.trim();
    }

    pub(super) fn spread(
        &self,
        what: &'static str,
        tasks: usize,
        task: &(dyn Fn(usize) + Sync),
    ) -> Result<()> {
        self.pool.run(what, tasks, task)
    }

    pub(super) fn embed(&self, m: &Matrix, ids: &[u32], scale: Option<f32>) -> Result<Block> {
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
        Ok(out)
    }

    /// Runs `f` on pieces of `out`, whole rows of `dim`: the rows, and their elements.
    fn each_rows(
        &self,
        name: &'static str,
        dim: usize,
        out: &mut [f32],
        f: impl Fn(std::ops::Range<usize>, &mut [f32]) + Sync,
    ) -> Result<()> {
        let rows = out.len().checked_div(dim).unwrap_or(0);
        let bundle = (PIECE / dim.max(1)).max(1);
        let out = Shares::new(out);
        self.pool.run(name, rows.div_ceil(bundle), &|index| {
            let rows = index * bundle..rows.min((index + 1) * bundle);
            // SAFETY: bundles do not overlap.
            f(rows.clone(), unsafe { out.part(rows.start * dim..rows.end * dim) });
        })
    }

    /// The rows as products take them: as bytes too, once, if one of the weights is quantized.
    fn input<'a>(&self, x: &'a Block, weights: &[&Packed], outlier: f32) -> Result<Input<'a>> {
        let mut bytes = x.bytes.get();
        if bytes.is_none() && weights.iter().any(|w| w.dtype.is_quantized()) {
            let made = self.quantize(x, outlier)?;
            bytes = Some(x.bytes.get_or_init(|| made));
        }
        Ok(Input { rows: x.rows, k: x.dim, floats: x.floats(), bytes })
    }

    fn quantize(&self, x: &Block, outlier: f32) -> Result<Quantized> {
        // Where keys and values are exact, so are activations: to 15 bits.
        let precision = match self.kv {
            KvType::F32 => Precision::Double,
            KvType::BF16 => Precision::Above(outlier),
        };
        let dim = x.dim;
        let mut made = self.recycler.bytes();
        made.resize(x.rows, dim, precision);
        let to = made.shares();
        let bundle = (PIECE / dim).max(1);
        self.pool.run("quantize", x.rows.div_ceil(bundle), &|index| {
            let rows = index * bundle..x.rows.min((index + 1) * bundle);
            let floats = &x.floats()[rows.start * dim..rows.end * dim];
            quantize::quantize(self.isa, Job { x: floats, first: rows.start, to: &to, precision });
        })?;
        drop(to);
        Ok(made)
    }

    pub(super) fn linears(&self, linears: &[&Linear], x: &Block) -> Result<Vec<Block>> {
        let weights = linears.iter().map(|linear| packed(&linear.weight)).collect::<Result<Vec<_>>>()?;
        let outlier = linears.iter().map(|linear| linear.outlier).fold(f32::INFINITY, f32::min);
        let input = self.input(x, &weights, outlier)?;
        let mut outputs: Vec<Block> = weights.iter().map(|w| self.recycler.block(x.rows, w.n)).collect();
        let shares: Vec<_> = outputs.iter_mut().map(|out| Shares::new(out.floats_mut())).collect();
        let products: Vec<_> = linears
            .iter()
            .zip(&weights)
            .zip(&shares)
            .map(|((linear, w), out)| [product(linear, w, Then::Set, out)])
            .collect();
        let lists: Vec<&[Product<'_>]> = products.iter().map(|one| one.as_slice()).collect();
        let name = if lists.len() > 1 { "linears" } else { "linear" };
        gemm::products(&self.pool, self.isa, name, input, &lists)?;
        drop(shares);
        Ok(outputs)
    }

    pub(super) fn linear_add(&self, linear: &Linear, x: &Block, mut to: Block) -> Result<Block> {
        let w = packed(&linear.weight)?;
        let input = self.input(x, &[w], linear.outlier)?;
        let out = Shares::new(to.floats_mut());
        gemm::products(&self.pool, self.isa, "linear add", input, &[&[product(linear, w, Then::Add, &out)]])?;
        Ok(to)
    }

    pub(super) fn gated(&self, gate: &Linear, up: &Linear, x: &Block, act: Activation) -> Result<Block> {
        let (g, u) = (packed(&gate.weight)?, packed(&up.weight)?);
        let input = self.input(x, &[g, u], gate.outlier.min(up.outlier))?;
        let mut block = self.recycler.block(x.rows, g.n);
        let out = Shares::new(block.floats_mut());
        let list = [product(gate, g, Then::Set, &out), product(up, u, Then::Gate(act), &out)];
        gemm::products(&self.pool, self.isa, "gated", input, &[&list])?;
        Ok(block)
    }

    pub(super) fn activated(&self, up: &Linear, x: &Block, act: Activation) -> Result<Block> {
        let w = packed(&up.weight)?;
        let input = self.input(x, &[w], up.outlier)?;
        let mut block = self.recycler.block(x.rows, w.n);
        let out = Shares::new(block.floats_mut());
        let list = [product(up, w, Then::Activate(act), &out)];
        gemm::products(&self.pool, self.isa, "activated", input, &[&list])?;
        Ok(block)
    }

    /// `norm(x)`, added to `to` if that is given.
    pub(super) fn norm(&self, norm: &Norm, x: &Block, to: Option<Block>) -> Result<Block> {
        let (add, dim) = (to.is_some(), x.dim);
        let mut out = to.unwrap_or_else(|| self.recycler.block(x.rows, dim));
        self.each_rows("norm", dim, out.floats_mut(), |rows, out| {
            norm::norm(self.isa, of(norm), add, &x.floats()[rows.start * dim..rows.end * dim], out);
        })?;
        Ok(out)
    }

    pub(super) fn rope_table(
        &self,
        frequencies: &[f32],
        scale: f32,
        positions: &[u32],
        cos: &mut [f32],
        sin: &mut [f32],
    ) -> Result<()> {
        let half = frequencies.len();
        let sin = Shares::new(sin);
        self.each_rows("rope table", half, cos, |rows, cos| {
            // SAFETY: the rows of `cos` and `sin` are the same, and bundles do not overlap.
            let sin = unsafe { sin.part(rows.start * half..rows.end * half) };
            rope::fill(frequencies, scale, &positions[rows], cos, sin);
        })
    }

    pub(super) fn heads(
        &self,
        mut x: Block,
        head_dim: usize,
        norm: Option<&Norm>,
        table: Option<&RopeTable>,
    ) -> Result<Block> {
        let dim = x.dim;
        self.each_rows("heads", dim, x.floats_mut(), |rows, x| {
            if let Some(norm) = norm {
                norm::norm_in_place(self.isa, of(norm), x);
            }
            if let Some(RopeTable { half, cos, sin, .. }) = table {
                let angles = rows.start * half..rows.end * half;
                rope::rotate(self.isa, x, dim, head_dim, *half, &cos[angles.clone()], &sin[angles]);
            }
        })?;
        Ok(x)
    }

    pub(super) fn soft_cap(&self, mut x: Block, cap: f32) -> Result<Block> {
        // Rows of logits are long: pieces of them, as if each number were a row.
        self.each_rows("soft cap", 1, x.floats_mut(), |_, x| {
            elementwise::unary(self.isa, Unary::SoftCap(cap), x);
        })?;
        Ok(x)
    }

    pub(super) fn select_rows(&self, x: &Block, rows: &[u32]) -> Block {
        let mut out = self.recycler.block(rows.len(), x.dim);
        for (&row, out) in rows.iter().zip(out.floats_mut().chunks_exact_mut(x.dim)) {
            out.copy_from_slice(&x.floats()[row as usize * x.dim..][..x.dim]);
        }
        out
    }

    pub(super) fn kv_write(&self, kv: &LayerKv, k: &Block, v: &Block, slots: &[u32]) -> Result<()> {
        attention::write(&self.pool, self.isa, kv.native()?, slots, k.floats(), v.floats())
    }

    pub(super) fn attention(
        &self,
        q: &Block,
        kv: &LayerKv,
        group: usize,
        step: &CheckedStep<'_>,
        a: &Attention,
    ) -> Result<Block> {
        let mut out = self.recycler.block(q.rows, q.dim);
        let rows = attention::Queries { q: q.floats(), step, group };
        attention::attention(&self.pool, self.isa, rows, kv.native()?, a, out.floats_mut())?;
        Ok(out)
    }
}

fn packed(m: &Matrix) -> Result<&Packed> {
    match &m.data {
        MatrixData::Packed(packed, _) => Ok(packed),
        _ => Err(misuse(format!("{} was made by other Ops than those that use it", m.name()))),
    }
}

fn product<'a>(linear: &'a Linear, w: &'a Packed, then: Then, out: &'a Shares<'a, f32>) -> Product<'a> {
    Product { w, bias: linear.bias.as_ref().map(|bias| &*bias.values), then, out }
}

fn of(norm: &Norm) -> norm::Norm<'_> {
    norm::Norm {
        rms: norm.kind == NormKind::Rms,
        weight: &norm.weight.values,
        bias: norm.bias.as_ref().map(|bias| &*bias.values),
        eps: norm.eps as f32,
    }
}
