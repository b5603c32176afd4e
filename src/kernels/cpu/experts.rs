//! Mixture of experts on the CPU: the rows of each expert are gathered into one block, and the products of
//! all experts are shared among the threads at once. Only the weights of experts that some row passes are
//! read.

use super::low_rank::Inner;
use super::{CpuBackend, packed, product};
use crate::error::Result;
use crate::kernels::disjoint::DisjointSlices;
use crate::kernels::elementwise;
use crate::kernels::epilogue::{Epilogue, Product};
use crate::kernels::experts::{Assignments, Expert, ExpertTerms};
use crate::kernels::gemm::{self, Group, Input};
use crate::kernels::low_rank::RowTerm;
use crate::kernels::pack::Packed;
use crate::kernels::rows::Block;
use crate::kernels::{Activation, Linear};

impl CpuBackend {
    /// For each row, the outputs of its experts times their weights, added in the order of the experts.
    pub(super) fn mixture(
        &self,
        experts: &[Expert],
        act: Activation,
        x: &Block,
        a: &Assignments,
        terms: &ExpertTerms<'_>,
    ) -> Result<Block> {
        let mut y = self.recycler.block(x.rows, x.dim);
        if x.rows == 0 {
            return Ok(y);
        }
        let chosen: Vec<_> = a.experts().iter().map(|(at, pairs)| (&experts[*at], pairs.clone())).collect();
        let gates = weights(chosen.iter().filter_map(|(expert, _)| expert.gate.as_ref()))?;
        let ups = weights(chosen.iter().map(|(expert, _)| &expert.up))?;
        let downs = weights(chosen.iter().map(|(expert, _)| &expert.down))?;
        let outlier = |of: fn(&Expert) -> &Linear| {
            experts.iter().map(|expert| of(expert).outlier).fold(f32::INFINITY, f32::min)
        };

        // The rows are quantized once, whatever the number of their experts.
        let both: Vec<_> = gates.iter().chain(&ups).copied().collect();
        let first = outlier(|expert| expert.gate.as_ref().unwrap_or(&expert.up));
        let input = self.input(x, &both, first.min(outlier(|expert| &expert.up)))?;
        let x = self.gather(input, a.rows());
        let input = Input { rows: x.rows, k: x.dim, floats: x.floats(), bytes: x.bytes.get() };
        let reduced = self.inner(vec![&terms.gate, &terms.up], &x)?;
        let [gate_terms, up_terms] = terms_of(reduced.as_ref());
        let mut inner = self.recycler.block(x.rows, ups.first().map_or(0, |w| w.n));
        let out = DisjointSlices::new(inner.floats_mut());
        let gated = chosen.iter().zip(&ups).enumerate().map(|(at, ((expert, _), up))| {
            let mut list = Vec::with_capacity(2);
            if let Some((gate, w)) = expert.gate.as_ref().zip(gates.get(at)) {
                let terms = gate_terms.as_deref();
                list.push(Product { terms, ..product(gate, w, Epilogue::Store, &out) });
            }
            let last = if list.is_empty() { Epilogue::Activate(act) } else { Epilogue::Gate(act) };
            list.push(Product { terms: up_terms.as_deref(), ..product(&expert.up, up, last, &out) });
            list
        });
        let gated: Vec<_> = gated.collect();
        let groups = chosen.iter().zip(&gated).map(|((_, pairs), list)| Group { rows: pairs.clone(), list });
        gemm::grouped(&self.pool, self.isa, "experts gated", input, &groups.collect::<Vec<_>>())?;
        drop(gated);

        let reduced = self.inner(vec![&terms.down], &inner)?;
        let [down_terms] = terms_of(reduced.as_ref());
        let terms = down_terms.as_deref();
        let input = self.input(&inner, &downs, outlier(|expert| &expert.down))?;
        let mut outputs = self.recycler.block(x.rows, y.dim);
        let out = DisjointSlices::new(outputs.floats_mut());
        let lists: Vec<_> = chosen
            .iter()
            .zip(&downs)
            .map(|((expert, _), down)| {
                [Product { terms, ..product(&expert.down, down, Epilogue::Store, &out) }]
            })
            .collect();
        let groups = chosen.iter().zip(&lists).map(|((_, pairs), list)| Group { rows: pairs.clone(), list });
        gemm::grouped(&self.pool, self.isa, "experts down", input, &groups.collect::<Vec<_>>())?;
        drop(lists);

        let dim = y.dim;
        self.each_rows("experts sum", dim, y.floats_mut(), |rows, y| {
            for (row, y) in rows.zip(y.chunks_exact_mut(dim)) {
                y.fill(0.0);
                for &pair in a.pairs(row) {
                    let pair = pair as usize;
                    elementwise::add(self.isa, a.weights()[pair], &outputs.floats()[pair * dim..][..dim], y);
                }
            }
        })?;
        Ok(y)
    }

    /// Rows of an input by index, with their bytes.
    fn gather(&self, input: Input<'_>, rows: &[u32]) -> Block {
        let mut block = self.recycler.block(rows.len(), input.k);
        for (&row, out) in rows.iter().zip(block.floats_mut().chunks_exact_mut(input.k)) {
            out.copy_from_slice(&input.floats[row as usize * input.k..][..input.k]);
        }
        if let Some(bytes) = input.bytes {
            let mut gathered = self.recycler.bytes();
            gathered.gather(bytes, rows);
            // The cell is empty: the block is new.
            let _ = block.bytes.set(gathered);
        }
        block
    }
}

/// The terms of as many projections.
fn terms_of<'a, const N: usize>(reduced: Option<&'a Inner<'_>>) -> [Option<Vec<Option<RowTerm<'a>>>>; N] {
    let mut terms = reduced.map(Inner::terms).unwrap_or_default().into_iter();
    std::array::from_fn(|_| terms.next().flatten())
}

fn weights<'a>(linears: impl Iterator<Item = &'a Linear>) -> Result<Vec<&'a Packed>> {
    linears.map(|linear| packed(&linear.weight)).collect()
}
