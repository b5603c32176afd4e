//! Mixture of experts by candle: expert by expert, ascending.

use candle_core::{DType, Tensor};

use super::CandleBackend;
use crate::error::Result;
use crate::kernels::Activation;
use crate::kernels::experts::{Assignments, Expert};

impl CandleBackend {
    /// For each row, the outputs of its experts times their weights, added in the order of the experts.
    pub(super) fn mixture(
        &self,
        experts: &[Expert],
        act: Activation,
        x: &Tensor,
        a: &Assignments,
    ) -> Result<Tensor> {
        let mut y = Tensor::zeros(x.shape(), DType::F32, &self.device)?;
        for (at, pairs) in a.experts() {
            let expert = &experts[*at];
            let rows = Tensor::new(&a.rows()[pairs.clone()], &self.device)?;
            let weights = Tensor::from_slice(&a.weights()[pairs.clone()], (pairs.len(), 1), &self.device)?;
            let x = x.index_select(&rows, 0)?;
            let up = self.product(&expert.up, &x)?;
            let inner = match &expert.gate {
                Some(gate) => self.gate(&self.product(gate, &x)?, &up, act)?,
                None => self.activate(&up, act)?,
            };
            let out = self.product(&expert.down, &inner)?.to_dtype(DType::F32)?;
            y = y.index_add(&rows, &out.broadcast_mul(&weights)?, 0)?;
        }
        Ok(y)
    }
}
