//! From the gradient of what came out of a tape to those of its factors and of what went in: operations in
//! reverse order, each of which adds to the gradients of what it read.

use std::collections::HashMap;
use std::sync::Arc;

use super::super::backend::Backend;
use super::super::cpu::{Angles, packed};
use super::super::elementwise;
use super::super::matmul::{self, Matmul};
use super::super::rope;
use super::super::rows::{Block, Rows};
use super::super::types::{Linear, Norm, RopeTable};
use super::attention::{self, InputGradients, Inputs, Outputs};
use super::derivatives::{self, NormRows};
use super::through;
use super::{Factors, Node, Operation, Place, Projected, Recorder, Tape, TapeBackend, Value, place};
use crate::config::NormKind;
use crate::error::Result;
use crate::kernels::misuse;

/// Where the gradients of a projection's factors are added to: `[rank, in]` and `[out, rank]`.
pub type FactorGradients<'a> = (&'a mut Vec<f32>, &'a mut Vec<f32>);

/// What is known of gradients while a tape is walked back.
struct Walk<'a, 'b> {
    backend: &'a TapeBackend,
    /// What is still to be walked.
    tape: Tape,
    /// The value that was made again last, and of which node: projections of the same rows follow each other.
    derived: Option<(usize, Value)>,
    /// Of each node that something has been said of.
    gradients: Vec<Option<Block>>,
    factors: HashMap<Place, FactorGradients<'b>>,
}

impl Recorder {
    /// The gradient of the first node of a tape by that of its last, `None` if none reaches it; gradients of
    /// factors are added to `factors`, of the projections that are named there.
    ///
    /// # Errors
    /// `Internal` when the tape is another recorder's, or factors of its projections are missing.
    pub fn backward(
        &self,
        mut tape: Tape,
        gradient: Value,
        factors: Vec<(&Linear, FactorGradients<'_>)>,
    ) -> Result<Option<Value>> {
        let mut places = HashMap::new();
        for (linear, gradients) in factors {
            places.insert(place(&linear.weight)?, gradients);
        }
        if gradient.dims() != tape.dims {
            return Err(misuse("a gradient of another shape"));
        }
        let Some(id) = tape.last else { return Ok(None) };
        if !self.0.is_exact() {
            self.0.restore(&mut tape)?;
        }
        let gradients = std::iter::repeat_with(|| None).take(tape.nodes).collect();
        let mut walk = Walk { backend: &self.0, tape, derived: None, gradients, factors: places };
        let gradient = match Arc::try_unwrap(gradient.0) {
            Ok(rows) => rows.into_block()?,
            Err(shared) => self.0.copy(&shared)?.into_block()?,
        };
        walk.add(id, gradient)?;
        while let Some(entry) = walk.tape.entries.pop() {
            // What nothing was said of changes nothing.
            if let Some(dy) = walk.gradients.get_mut(entry.out).and_then(Option::take) {
                walk.step(entry.operation, entry.value, dy)?;
            }
        }
        let first = walk.gradients.first_mut().and_then(Option::take);
        Ok(first.map(|block| Value(Arc::new(block.into()))))
    }
}

impl TapeBackend {
    /// `dx = dy W` of a projection, or what it adds to `before`.
    pub(super) fn through(&self, place: Place, dy: &Block, before: Option<Block>) -> Result<Block> {
        let linear = self.linears.get(&place).ok_or_else(|| misuse("a matrix that no gradient passes"))?;
        let w = packed(&linear.weight)?;
        let add = before.is_some();
        let mut dx = before.unwrap_or_else(|| self.cpu.recycler.block(dy.rows, w.k));
        let (pool, isa, to) = (&self.cpu.pool, self.cpu.isa, (dx.floats_mut(), add));
        through::through(pool, isa, (w, linear.scale), dy.floats(), to)?;
        Ok(dx)
    }
}

impl Walk<'_, '_> {
    /// Adds to the gradient of a node.
    fn add(&mut self, id: usize, dx: Block) -> Result<()> {
        let slot = self.gradients.get_mut(id).ok_or_else(|| misuse("a node of another tape"))?;
        let Some(mut sum) = slot.take() else {
            *slot = Some(dx);
            return Ok(());
        };
        self.backend.add_to(&mut sum, 1.0, &dx)?;
        self.gradients[id] = Some(sum);
        Ok(())
    }

    fn step(&mut self, operation: Operation, value: Option<Value>, dy: Block) -> Result<()> {
        let backend = self.backend;
        match operation {
            Operation::Linear { x, projected } => self.linear(&x, &projected, dy),
            Operation::Gated { gate, up, act } => {
                let (mut g, mut u) = (backend.copy(&gate.value.0)?, backend.copy(&up.value.0)?);
                backend.each_pair((&mut g, &mut u), &dy, |dy, g, u| {
                    derivatives::gated(backend.cpu.isa, act, dy, g, u);
                })?;
                self.add_if(gate.id, g)?;
                self.add_if(up.id, u)
            }
            Operation::Activated { x, act } => {
                let mut dx = backend.copy(&x.value.0)?.into_block()?;
                let dim = dx.dim;
                backend.cpu.each_rows("activation backward", dim, dx.floats_mut(), |rows, dx| {
                    let dy = &dy.floats()[rows.start * dim..rows.end * dim];
                    derivatives::activated(backend.cpu.isa, act, dy, dx);
                })?;
                self.add_if(x.id, dx.into())
            }
            Operation::Norm { x, norm, to, .. } => {
                let group = norm.weight.len();
                self.norm(&x, &norm, group, &dy)?;
                self.add_if(to, dy.into())
            }
            Operation::Heads { x, head_dim, norm, table } => {
                let dy = match table {
                    Some(table) => backend.turned_back(dy, head_dim, &table)?,
                    None => dy,
                };
                match norm {
                    Some(norm) => self.norm(&x, &norm, head_dim, &dy),
                    None => self.add_if(x.id, dy.into()),
                }
            }
            Operation::Add { x, scale, to } => {
                if let Some(x) = x {
                    let scaled = match (scale, to) {
                        (1.0, None) => return self.add(x, dy),
                        (1.0, Some(_)) => backend.copied(&dy)?,
                        _ => backend.scaled(&dy, scale)?,
                    };
                    self.add(x, scaled)?;
                }
                self.add_if(to, dy.into())
            }
            Operation::ScaleRows { x, factors } => {
                let dx = backend.cpu.scale_rows(&dy.into(), &factors)?;
                self.add_if(Some(x), dx)
            }
            Operation::SelectRows { x, of, rows } => {
                let mut dx = backend.cpu.recycler.block(of, dy.dim);
                let (dim, out) = (dy.dim, dx.floats_mut());
                out.fill(0.0);
                for (&row, dy) in rows.iter().zip(dy.floats().chunks_exact(dim)) {
                    let out = &mut out[row as usize * dim..][..dim];
                    out.iter_mut().zip(dy).for_each(|(out, dy)| *out += dy);
                }
                self.add(x, dx)
            }
            Operation::Attention { q, k, v, spans, a, lse } => {
                let out = value.ok_or_else(|| misuse("attention without its output"))?;
                let new = |node: &Node| {
                    let (rows, dim) = node.value.dims();
                    backend.cpu.recycler.block(rows, dim)
                };
                let (mut dq, mut dk, mut dv) = (new(&q), new(&k), new(&v));
                let x = Inputs {
                    spans: &spans,
                    a: &a,
                    q: q.value.floats()?,
                    k: k.value.floats()?,
                    v: v.value.floats()?,
                };
                let y = Outputs { out: out.floats()?, lse: &lse, gradient: dy.floats() };
                let to = InputGradients { q: dq.floats_mut(), k: dk.floats_mut(), v: dv.floats_mut() };
                attention::backward(&backend.cpu.pool, backend.cpu.isa, x, y, to)?;
                self.add_if(q.id, dq.into())?;
                self.add_if(k.id, dk.into())?;
                self.add_if(v.id, dv.into())
            }
        }
    }

    fn add_if(&mut self, id: Option<usize>, dx: Rows) -> Result<()> {
        match id {
            Some(id) => self.add(id, dx.into_block()?),
            None => Ok(()),
        }
    }

    /// `dx = dy W`, and the same of the factors: `dz = s dy B`, `dB = s dy^T z`, `dA = dz^T x`, `dx += dz A`.
    fn linear(&mut self, x: &Node, projected: &Projected, dy: Block) -> Result<()> {
        let backend = self.backend;
        let mut dx = match x.id {
            None => None,
            Some(id) => {
                let before = self.gradients.get_mut(id).and_then(Option::take);
                Some((id, backend.through(projected.place, &dy, before)?))
            }
        };
        if let Some(z) = &projected.z {
            let factors = backend.factors_of(projected.place);
            let factors = factors.ok_or_else(|| misuse("factors that a tape was made with are gone"))?;
            let gradients = self.factors.get_mut(&projected.place);
            let scale = factors.scale * projected.scale;
            let value =
                match x.id.map(|id| derived(backend, &self.tape, &mut self.derived, id)).transpose()? {
                    Some(Some(value)) => value,
                    _ => x.value.clone(),
                };
            let dz = backend.factor_gradients(&factors, scale, (&value, z), dy.floats(), gradients)?;
            if let Some((_, dx)) = &mut dx {
                let product = Matmul {
                    m: dx.rows,
                    n: dx.dim,
                    k: factors.rank,
                    a: &dz,
                    a_steps: (factors.width, 1),
                    b: &factors.a,
                    b_step: dx.dim,
                    scale: 1.0,
                    add: true,
                };
                let (pool, isa) = (&backend.cpu.pool, backend.cpu.isa);
                matmul::parallel(pool, isa, "factor a backward", product, dx.floats_mut())?;
            }
        }
        match dx {
            Some((id, dx)) => self.add(id, dx),
            None => Ok(()),
        }
    }

    /// Adds the gradient of what passed a norm of groups.
    fn norm(&mut self, x: &Node, norm: &Norm, group: usize, dy: &Block) -> Result<()> {
        let Some(id) = x.id else { return Ok(()) };
        let backend = self.backend;
        let before = self.gradients.get_mut(id).and_then(Option::take);
        let add = before.is_some();
        let (x, dim) = (x.value.floats()?, dy.dim);
        let mut dx = before.unwrap_or_else(|| backend.cpu.recycler.block(dy.rows, dim));
        backend.cpu.each_rows("norm backward", dim, dx.floats_mut(), |rows, dx| {
            let part = rows.start * dim..rows.end * dim;
            let rows = NormRows {
                rms: norm.kind == NormKind::Rms,
                eps: norm.eps as f32,
                weight: norm.weight.values(),
                group,
                x: &x[part.clone()],
                dy: &dy.floats()[part],
                add,
            };
            derivatives::norm(backend.cpu.isa, rows, dx);
        })?;
        self.add(id, dx)
    }
}

/// The value of a node that the tape can make again, if it is one.
fn derived(
    backend: &TapeBackend,
    tape: &Tape,
    last: &mut Option<(usize, Value)>,
    id: usize,
) -> Result<Option<Value>> {
    if let Some((_, value)) = last.as_ref().filter(|(of, _)| *of == id) {
        return Ok(Some(value.clone()));
    }
    let rows = match tape.made(id).map(|entry| &entry.operation) {
        Some(Operation::Gated { gate, up, act }) => backend.gate_value(&gate.value, &up.value, *act)?,
        Some(Operation::Activated { x, act }) => backend.activation_value(&x.value, *act)?,
        Some(Operation::Norm { x, norm, added: false, .. }) => backend.cpu.norm(norm, &x.value.0, None)?,
        _ => return Ok(None),
    };
    let value = Value(Arc::new(rows));
    *last = Some((id, value.clone()));
    Ok(Some(value))
}

impl TapeBackend {
    /// `sum += scale * x`
    fn add_to(&self, sum: &mut Block, scale: f32, x: &Block) -> Result<()> {
        let dim = sum.dim;
        self.cpu.each_rows("add gradients", dim, sum.floats_mut(), |rows, sum| {
            let x = &x.floats()[rows.start * dim..rows.end * dim];
            elementwise::add(self.cpu.isa, scale, x, sum);
        })
    }

    fn copied(&self, x: &Block) -> Result<Block> {
        let mut out = self.cpu.recycler.block(x.rows, x.dim);
        let dim = x.dim;
        self.cpu.each_rows("copy", dim, out.floats_mut(), |rows, out| {
            out.copy_from_slice(&x.floats()[rows.start * dim..rows.end * dim]);
        })?;
        Ok(out)
    }

    fn scaled(&self, x: &Block, scale: f32) -> Result<Block> {
        let mut out = self.copied(x)?;
        let dim = out.dim;
        self.cpu.each_rows("scale", dim, out.floats_mut(), |_, out| {
            elementwise::unary(self.cpu.isa, elementwise::Unary::Scale(scale), out);
        })?;
        Ok(out)
    }

    /// Runs `f` on the same parts of three rows.
    fn each_pair(
        &self,
        (a, b): (&mut Rows, &mut Rows),
        dy: &Block,
        f: impl Fn(&[f32], &mut [f32], &mut [f32]) + Sync,
    ) -> Result<()> {
        let dim = dy.dim;
        let b = super::DisjointSlices::new(b.block_mut()?.floats_mut());
        self.cpu.each_rows("gate backward", dim, a.block_mut()?.floats_mut(), |rows, a| {
            let part = rows.start * dim..rows.end * dim;
            // SAFETY: the same rows as those of `a`, which no two tasks have in common.
            let b = unsafe { b.slice_mut(part.clone()) };
            f(&dy.floats()[part], a, b);
        })
    }

    /// Gradients of rotated heads: the same angles, backwards. The table's factor stays what it is.
    fn turned_back(&self, mut dy: Block, head_dim: usize, table: &RopeTable) -> Result<Block> {
        let Angles { cos, sin } = table.data.get("a rope table")?;
        let (dim, half) = (dy.dim, table.half);
        let backwards: Vec<f32> = sin.iter().map(|sin| -sin).collect();
        self.cpu.each_rows("heads backward", dim, dy.floats_mut(), |rows, dy| {
            let angles = rows.start * half..rows.end * half;
            rope::rotate(self.cpu.isa, dy, dim, head_dim, half, &cos[angles.clone()], &backwards[angles]);
        })?;
        Ok(dy)
    }

    /// Adds the gradients of factors; returns `dz` `[rows, width]`.
    fn factor_gradients(
        &self,
        factors: &Factors,
        scale: f32,
        (x, z): (&Value, &[f32]),
        dy: &[f32],
        gradients: Option<&mut (&mut Vec<f32>, &mut Vec<f32>)>,
    ) -> Result<Vec<f32>> {
        let (pool, isa) = (&self.cpu.pool, self.cpu.isa);
        let Factors { width, rank, .. } = *factors;
        let (rows, outputs) = (z.len() / width, factors.b.len() / width);
        let mut dz = vec![0.0; rows * width];
        let product = Matmul {
            m: rows,
            n: width,
            k: outputs,
            a: dy,
            a_steps: (outputs, 1),
            b: &factors.b,
            b_step: width,
            scale,
            add: false,
        };
        matmul::parallel(pool, isa, "factor b backward", product, &mut dz)?;
        let Some((da, db)) = gradients else { return Ok(dz) };
        let mut padded = vec![0.0; outputs * width];
        let product = Matmul {
            m: outputs,
            n: width,
            k: rows,
            a: dy,
            a_steps: (1, outputs),
            b: z,
            b_step: width,
            scale,
            add: false,
        };
        matmul::parallel(pool, isa, "gradient b", product, &mut padded)?;
        for (sum, row) in db.chunks_exact_mut(rank).zip(padded.chunks_exact(width)) {
            sum.iter_mut().zip(row).for_each(|(sum, it)| *sum += it);
        }
        let inputs = factors.a.len() / rank;
        let product = Matmul {
            m: rank,
            n: inputs,
            k: rows,
            a: &dz,
            a_steps: (1, width),
            b: x.floats()?,
            b_step: inputs,
            scale: 1.0,
            add: true,
        };
        matmul::parallel(pool, isa, "gradient a", product, da)?;
        Ok(dz)
    }
}
