//! Mixture of experts: which experts each row of a step passes, and the experts themselves.
//!
//! Rows and their experts make *pairs*, sorted by expert and then by row, so that the rows of an expert are
//! one block of a product. The outputs of a row's pairs are added in the order of their experts' numbers,
//! whatever else is in the step.

use std::ops::Range;

use super::{Linear, misuse};
use crate::config::{Routing, Score};
use crate::error::Result;

/// One expert, a gated feed-forward: `down(activation(gate(x)) * up(x))`.
#[derive(Clone, Debug)]
pub struct Expert {
    /// `[intermediate, hidden]`
    pub gate: Linear,
    pub up: Linear,
    /// `[hidden, intermediate]`
    pub down: Linear,
}

/// The pairs of a step.
#[derive(Clone, Debug, PartialEq)]
pub struct Assignments {
    /// Experts of each row.
    top_k: usize,
    /// The experts that some row passes, ascending, and their pairs.
    experts: Vec<(usize, Range<usize>)>,
    /// The row of each pair, ascending within an expert.
    rows: Vec<u32>,
    /// What the output of each pair is multiplied by.
    weights: Vec<f32>,
    /// The pairs of each row in the order of their experts: `[rows, top_k]`.
    of_row: Vec<u32>,
}

impl Assignments {
    /// The experts of rows of router logits, `[rows, experts]`.
    ///
    /// As in transformers, the scores (softmax or sigmoid of the logits, in f32) decide; of equal ones the
    /// expert with the lower number is chosen (what `torch.topk` chooses there is not defined). Renormalized
    /// weights are divided by their sum, which is added up from the largest score down.
    pub(super) fn new(logits: &[f32], experts: usize, routing: &Routing) -> Result<Assignments> {
        let top_k = routing.top_k;
        if top_k == 0 || top_k > experts || !logits.len().is_multiple_of(experts) {
            return Err(misuse(format!("{top_k} of {experts} experts for {} logits", logits.len())));
        }
        let rows = logits.len() / experts;
        // (expert, row, weight); a row's in the order of their scores.
        let mut pairs: Vec<(u32, u32, f32)> = Vec::with_capacity(rows * top_k);
        let (mut scores, mut order) = (vec![0.0; experts], Vec::with_capacity(experts));
        for (row, logits) in logits.chunks_exact(experts).enumerate() {
            score(routing.score, logits, &mut scores);
            order.clear();
            order.extend(0..experts as u32);
            let better =
                |a: &u32, b: &u32| scores[*b as usize].total_cmp(&scores[*a as usize]).then(a.cmp(b));
            if top_k < experts {
                order.select_nth_unstable_by(top_k - 1, better);
            }
            let chosen = &mut order[..top_k];
            chosen.sort_unstable_by(better);
            let sum = match routing.normalize {
                true => chosen.iter().map(|&expert| scores[expert as usize]).sum(),
                false => 1.0f32,
            };
            let weight = |expert: u32| scores[expert as usize] / sum * routing.scale;
            pairs.extend(chosen.iter().map(|&expert| (expert, row as u32, weight(expert))));
        }
        pairs.sort_unstable_by_key(|&(expert, row, _)| (expert, row));
        Ok(Self::of_pairs(&pairs, rows, top_k))
    }

    /// From pairs sorted by expert and row, `top_k` a row.
    fn of_pairs(pairs: &[(u32, u32, f32)], rows: usize, top_k: usize) -> Assignments {
        let mut experts: Vec<(usize, Range<usize>)> = Vec::new();
        let (mut of_row, mut found) = (vec![0; rows * top_k], vec![0; rows]);
        for (pair, &(expert, row, _)) in pairs.iter().enumerate() {
            match experts.last_mut() {
                Some((last, range)) if *last == expert as usize => range.end = pair + 1,
                _ => experts.push((expert as usize, pair..pair + 1)),
            }
            let row = row as usize;
            of_row[row * top_k + found[row]] = pair as u32;
            found[row] += 1;
        }
        Assignments {
            top_k,
            experts,
            rows: pairs.iter().map(|(_, row, _)| *row).collect(),
            weights: pairs.iter().map(|(.., weight)| *weight).collect(),
            of_row,
        }
    }

    /// Rows of the step.
    pub fn row_count(&self) -> usize {
        self.of_row.len() / self.top_k
    }

    /// The experts that some row passes, ascending, and their pairs.
    pub(super) fn experts(&self) -> &[(usize, Range<usize>)] {
        &self.experts
    }

    /// The row of each pair.
    pub(super) fn rows(&self) -> &[u32] {
        &self.rows
    }

    /// The weight of each pair.
    pub(super) fn weights(&self) -> &[f32] {
        &self.weights
    }

    /// The pairs of a row in the order of their experts.
    pub(super) fn pairs(&self, row: usize) -> &[u32] {
        &self.of_row[row * self.top_k..(row + 1) * self.top_k]
    }
}

/// Scores of a row of logits.
fn score(score: Score, logits: &[f32], scores: &mut [f32]) {
    match score {
        Score::Softmax => {
            let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let mut sum = 0.0;
            for (score, logit) in scores.iter_mut().zip(logits) {
                *score = (logit - max).exp();
                sum += *score;
            }
            scores.iter_mut().for_each(|score| *score /= sum);
        }
        Score::Sigmoid => {
            for (score, logit) in scores.iter_mut().zip(logits) {
                *score = 1.0 / (1.0 + (-logit).exp());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP2: Routing = Routing { top_k: 2, score: Score::Softmax, normalize: true, scale: 1.0 };

    #[test]
    fn pairs_are_sorted_by_expert_and_rows_know_theirs() {
        let ln = f32::ln;
        // Row 0 passes experts 3 and 1, row 1 experts 0 and 3, row 2 (all equal) the two with the lowest
        // numbers.
        let logits = [0.0, ln(3.0), 0.0, ln(5.0), ln(6.0), 0.0, 0.0, ln(2.0), 7.0, 7.0, 7.0, 7.0];
        let a = Assignments::new(&logits, 4, &TOP2).unwrap();
        assert_eq!(a.experts(), [(0, 0..2), (1, 2..4), (3, 4..6)]);
        assert_eq!(a.rows(), [1, 2, 0, 2, 0, 1]);
        let wanted = [0.75, 0.5, 3.0 / 8.0, 0.5, 5.0 / 8.0, 0.25];
        assert!(a.weights().iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{:?}", a.weights());
        assert_eq!((a.pairs(0), a.pairs(1), a.pairs(2)), (&[2, 4][..], &[0, 5][..], &[1, 3][..]));
        assert_eq!(a.row_count(), 3);
    }

    #[test]
    fn weights_are_as_the_routing_says() {
        let logits = [1.0, -2.0, 0.5];
        let exp: Vec<f32> = logits.iter().map(|x: &f32| x.exp()).collect();
        let sigmoid: Vec<f32> = exp.iter().map(|e| e / (1.0 + e)).collect();
        let all: f32 = exp.iter().sum();
        for (score, normalize, scale, wanted) in [
            (Score::Softmax, false, 1.0, [exp[0] / all, exp[2] / all]),
            (Score::Softmax, true, 2.0, [2.0 * exp[0] / (exp[0] + exp[2]), 2.0 * exp[2] / (exp[0] + exp[2])]),
            (Score::Sigmoid, false, 1.5, [1.5 * sigmoid[0], 1.5 * sigmoid[2]]),
        ] {
            let routing = Routing { top_k: 2, score, normalize, scale };
            let a = Assignments::new(&logits, 3, &routing).unwrap();
            assert_eq!(a.experts(), [(0, 0..1), (2, 1..2)]);
            assert!(a.weights().iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{routing:?}");
        }
    }

    #[test]
    fn what_cannot_be_routed_is_an_error_and_nothing_is_an_assignment() {
        for (top_k, experts, logits) in [(0, 4, 4), (5, 4, 4), (2, 3, 4)] {
            let routing = Routing { top_k, ..TOP2 };
            assert!(Assignments::new(&vec![0.0; logits], experts, &routing).is_err());
        }
        let none = Assignments::new(&[], 4, &TOP2).unwrap();
        assert_eq!((none.experts(), none.row_count()), (&[][..], 0));
        // What is not a number stays visible.
        let nan = Assignments::new(&[f32::NAN, 0.0, 1.0], 3, &TOP2).unwrap();
        assert!(nan.weights().iter().all(|weight| weight.is_nan()));
    }
}
