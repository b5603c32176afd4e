//! Cross entropy of trained tokens, and the gradient of their logits and of what the head read.

use super::super::backend::Backend;
use super::super::disjoint::DisjointSlices;
use super::super::types::Linear;
use super::derivatives::{self, SoftmaxRow};
use super::{Recorder, place};
use crate::error::Result;
use crate::kernels::misuse;

/// The tokens that a row of logits predicts: one, or several where texts part.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RowTargets(pub Vec<u32>);

impl Recorder {
    /// The losses of the targets of each row; the logits `[rows, vocab]` become the gradient of their sum
    /// times `weight`, before the soft cap that they passed.
    ///
    /// # Errors
    /// `Internal` when there are not as many rows, or a target is no token.
    pub fn cross_entropy(
        &self,
        logits: &mut [f32],
        rows: &[RowTargets],
        cap: Option<f32>,
        weight: f32,
    ) -> Result<Vec<Vec<f32>>> {
        let vocab = logits.len().checked_div(rows.len()).unwrap_or(0);
        let inside = |row: &RowTargets| row.0.iter().all(|&target| (target as usize) < vocab);
        if vocab * rows.len() != logits.len() || !rows.iter().all(inside) {
            return Err(misuse(format!("{} logits for {} rows of targets", logits.len(), rows.len())));
        }
        let mut losses: Vec<Vec<f32>> = vec![Vec::new(); rows.len()];
        let (all, out) = (DisjointSlices::new(logits), DisjointSlices::new(&mut losses));
        let isa = self.0.cpu.isa;
        self.0.cpu.pool.run("cross entropy", rows.len(), &|row| {
            // SAFETY: each row is one task's own.
            let (logits, out) =
                unsafe { (all.slice_mut(row * vocab..(row + 1) * vocab), out.slice_mut(row..row + 1)) };
            let mut stats = (0.0, 0.0);
            derivatives::softmax_stats(isa, logits, &mut stats);
            let (greatest, sum) = stats;
            let targets = &rows[row].0;
            let loss = |&target: &u32| (sum.ln() - f64::from(logits[target as usize] - greatest)) as f32;
            out[0] = targets.iter().map(loss).collect();
            // What is taken from each target is computed before its logit is gone.
            let slope = |&target: &u32| {
                let t = cap.map_or(0.0, |cap| logits[target as usize] / cap);
                weight * (1.0 - t * t)
            };
            let taken: Vec<f32> = targets.iter().map(slope).collect();
            let factor = (f64::from(weight) * targets.len() as f64 / sum) as f32;
            derivatives::softmax_gradient(isa, SoftmaxRow { greatest, factor, cap }, logits);
            targets.iter().zip(taken).for_each(|(&target, taken)| logits[target as usize] -= taken);
        })?;
        Ok(losses)
    }

    /// The gradient of the rows that a projection read, `[rows, in]`, by that of what came out.
    ///
    /// # Errors
    /// `Internal` when the recorder was made without it.
    pub fn through(&self, linear: &Linear, gradient: Vec<f32>) -> Result<Vec<f32>> {
        let cpu = &self.0.cpu;
        let dy = cpu.rows(gradient, linear.weight.n)?.into_block()?;
        Ok(self.0.through(place(&linear.weight)?, &dy, None)?.into_vec())
    }
}
