//! Hidden states become one vector: sums over the rows of a text, in the order of their positions and in f64,
//! so that chunks do not change them.
//!
//! The formulas are those of sentence-transformers' module `Pooling` over the rows `x_1 ... x_n` of one text.

use super::request::{Embed, Pooling};
use crate::error::{Error, Result};

/// Which rows of a text are wanted for an embedding.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Rows {
    All,
    First,
    Last,
}

impl Embed {
    /// The rows that it needs; one alone leaves the others' last layer uncomputed.
    pub(super) fn rows(&self) -> Rows {
        match *self.pooling {
            [Pooling::First] => Rows::First,
            [Pooling::Last] => Rows::Last,
            _ => Rows::All,
        }
    }
}

/// What was added up so far.
pub(super) struct Pool {
    embed: Embed,
    /// Rows so far.
    count: usize,
    /// `[modes, hidden]`
    sums: Vec<f64>,
}

impl Pool {
    pub fn new(embed: Embed) -> Self {
        Pool { embed, count: 0, sums: Vec::new() }
    }

    /// Adds rows `[_, hidden]`.
    pub fn add(&mut self, rows: &[f32], hidden: usize) {
        let width = hidden.max(1);
        self.sums.resize(width * self.embed.pooling.len(), 0.0);
        for row in rows.chunks_exact(width) {
            for (pooling, sums) in self.embed.pooling.iter().zip(self.sums.chunks_exact_mut(width)) {
                add_row(*pooling, self.count, sums, row);
            }
            self.count += 1;
        }
    }

    /// The vectors of all modes, one after the other: `[modes * hidden]`.
    ///
    /// # Errors
    /// `ModelFile` for a state with NaN or infinity in it: damaged weights, as a draw from such logits says.
    pub fn vector(&self) -> Result<Vec<f32>> {
        if !self.sums.iter().all(|value| value.is_finite()) {
            return Err(Error::model_file(
                "the model's hidden states hold NaN or infinity; its files may be damaged",
            ));
        }
        let width = self.sums.len() / self.embed.pooling.len().max(1);
        let mut vector = Vec::with_capacity(self.sums.len());
        for (pooling, sums) in self.embed.pooling.iter().zip(self.sums.chunks_exact(width.max(1))) {
            let scale = 1.0 / divisor(*pooling, self.count);
            vector.extend(sums.iter().map(|sum| sum * scale));
        }
        if self.embed.normalize {
            let length = vector.iter().map(|value| value * value).sum::<f64>().sqrt();
            let scale = if length > 0.0 { 1.0 / length } else { 0.0 };
            vector.iter_mut().for_each(|value| *value *= scale);
        }
        Ok(vector.into_iter().map(|value| value as f32).collect())
    }
}

/// Takes in one more row; `before` rows came before it.
fn add_row(pooling: Pooling, before: usize, sums: &mut [f64], row: &[f32]) {
    let weight = (before + 1) as f64;
    for (sum, &value) in sums.iter_mut().zip(row) {
        let value = f64::from(value);
        *sum = match pooling {
            Pooling::Mean | Pooling::MeanSqrt => *sum + value,
            Pooling::WeightedMean => *sum + weight * value,
            // NaN stays, whichever side it comes from.
            Pooling::Max if before > 0 && !(value > *sum || value.is_nan()) => *sum,
            Pooling::First if before > 0 => *sum,
            Pooling::Max | Pooling::First | Pooling::Last => value,
        };
    }
}

/// What the sums over `count` rows are divided by.
fn divisor(pooling: Pooling, count: usize) -> f64 {
    let count = count as f64;
    match pooling {
        Pooling::Mean => count,
        Pooling::MeanSqrt => count.sqrt(),
        Pooling::WeightedMean => count * (count + 1.0) / 2.0,
        Pooling::Max | Pooling::First | Pooling::Last => 1.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_mode_in_any_chunks() {
        let rows = [1.0, -8.0, 3.0, -2.0, 2.0, -5.0];
        let cases: &[(Pooling, [f32; 2])] = &[
            (Pooling::Mean, [2.0, -5.0]),
            (Pooling::MeanSqrt, [(6.0 / 3f64.sqrt()) as f32, (-15.0 / 3f64.sqrt()) as f32]),
            (Pooling::WeightedMean, [13.0 / 6.0, -27.0 / 6.0]),
            (Pooling::Max, [3.0, -2.0]),
            (Pooling::First, [1.0, -8.0]),
            (Pooling::Last, [2.0, -5.0]),
        ];
        let pooled = |modes: &[Pooling], cut: usize| {
            let mut pool = Pool::new(Embed { pooling: modes.into(), normalize: false });
            rows.chunks(2 * cut).for_each(|rows| pool.add(rows, 2));
            pool.vector().unwrap()
        };
        for (mode, wanted) in cases {
            for cut in 1..4 {
                assert_eq!(pooled(&[*mode], cut), wanted, "{mode:?} in chunks of {cut}");
            }
        }
        assert_eq!(pooled(&[Pooling::Last, Pooling::First], 2), [2.0, -5.0, 1.0, -8.0]);
    }
}
