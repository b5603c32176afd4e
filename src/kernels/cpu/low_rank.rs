//! The first half of the terms of adapters, `z = A x`: before the products of the same rows, which take it up
//! in their epilogue.

use super::CpuBackend;
use crate::error::Result;
use crate::kernels::disjoint::DisjointSlices;
use crate::kernels::low_rank::{Dots, RowTerm, Term};
use crate::kernels::rows::Block;

/// Multiplications of a task: some microseconds of work. As many are done at once without waking threads.
const TASK: usize = 1 << 16;

/// `A x` of the terms of some projections of the same rows.
pub(super) struct Inner<'a> {
    terms: Vec<&'a [Term<'a>]>,
    rows: usize,
    z: Block,
}

impl CpuBackend {
    /// `terms`: those of each projection. `None` where none has one.
    pub(super) fn inner<'a>(&self, terms: Vec<&'a [Term<'a>]>, x: &Block) -> Result<Option<Inner<'a>>> {
        let (mut jobs, mut len, mut work) = (Vec::new(), 0, 0);
        if terms.iter().all(|terms| terms.is_empty()) {
            return Ok(None);
        }
        for term in terms.iter().copied().flatten() {
            let (rank, k) = (term.low_rank.rank(), x.dim);
            let rows_of_task = (TASK / (rank * k).max(1)).max(2);
            for start in term.rows.clone().step_by(rows_of_task) {
                let rows = start..term.rows.end.min(start + rows_of_task);
                let z = len..len + rows.len() * rank;
                (len, work) = (z.end, work + z.len() * k);
                jobs.push(Dots { low_rank: term.low_rank, rows, z });
            }
        }
        let mut z = self.recycler.block(1, len);
        let out = DisjointSlices::new(z.floats_mut());
        // SAFETY: no two jobs have a part of z in common, and each is done once.
        let run = |job: &Dots<'_>| job.run(self.isa, x.floats(), unsafe { out.slice_mut(job.z.clone()) });
        if work <= TASK {
            jobs.iter().for_each(run);
        } else {
            self.pool.run("low rank", jobs.len(), &|index| run(&jobs[index]))?;
        }
        Ok(Some(Inner { terms, rows: x.rows, z }))
    }
}

impl Inner<'_> {
    /// The terms of each projection, a place for each row; `None` where it has none.
    pub(super) fn terms(&self) -> Vec<Option<Vec<Option<RowTerm<'_>>>>> {
        let (mut at, floats) = (0, self.z.floats());
        let mut all = Vec::with_capacity(self.terms.len());
        for &terms in &self.terms {
            let mut rows = vec![None; self.rows];
            for term in terms {
                for row in &mut rows[term.rows.clone()] {
                    *row = Some(RowTerm { low_rank: term.low_rank, z: &floats[at..] });
                    at += term.low_rank.rank();
                }
            }
            all.push(Some(rows).filter(|_| !terms.is_empty()));
        }
        all
    }
}
