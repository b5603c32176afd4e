//! Mixture of experts by candle: expert by expert, ascending.

use std::ops::Range;

use candle_core::{DType, Tensor};

use super::CandleBackend;
use crate::error::Result;
use crate::kernels::experts::{Assignments, Expert, ExpertTerms};
use crate::kernels::low_rank::Term;
use crate::kernels::types::Projection;
use crate::kernels::{Activation, Linear};

impl CandleBackend {
    /// For each row, the outputs of its experts times their weights, added in the order of the experts.
    pub(super) fn mixture(
        &self,
        experts: &[Expert],
        act: Activation,
        x: &Tensor,
        a: &Assignments,
        terms: &ExpertTerms<'_>,
    ) -> Result<Tensor> {
        let mut y = Tensor::zeros(x.shape(), DType::F32, &self.device)?;
        for (at, pairs) in a.experts() {
            let expert = &experts[*at];
            let rows = Tensor::new(&a.rows()[pairs.clone()], &self.device)?;
            let weights = Tensor::from_slice(&a.weights()[pairs.clone()], (pairs.len(), 1), &self.device)?;
            let x = x.index_select(&rows, 0)?;
            let up = self.product(with_terms(&expert.up, &among(&terms.up, pairs)), &x)?;
            let inner = match &expert.gate {
                Some(gate) => {
                    let gate = self.product(with_terms(gate, &among(&terms.gate, pairs)), &x)?;
                    self.gate(&gate, &up, act)?
                }
                None => self.activate(&up, act)?,
            };
            let out = self
                .product(with_terms(&expert.down, &among(&terms.down, pairs)), &inner)?
                .to_dtype(DType::F32)?;
            y = y.index_add(&rows, &out.broadcast_mul(&weights)?, 0)?;
        }
        Ok(y)
    }
}

fn with_terms<'a>(linear: &'a Linear, terms: &'a [Term<'a>]) -> Projection<'a> {
    Projection { linear, terms }
}

/// The terms of some pairs, counted from the first of them.
fn among<'a>(terms: &[Term<'a>], pairs: &Range<usize>) -> Vec<Term<'a>> {
    let own = terms.iter().filter(|term| pairs.contains(&term.rows.start));
    let from_first = |term: &Term<'a>| Term {
        rows: term.rows.start - pairs.start..term.rows.end - pairs.start,
        low_rank: term.low_rank,
    };
    own.map(from_first).collect()
}
