//! Mixture of experts: which experts each row of a step passes, and the experts themselves.
//!
//! Rows and their experts make *pairs*, sorted by expert and then by row, so that the rows of an expert are
//! one block of a product. The outputs of a row's pairs are added in the order of their experts' numbers,
//! whatever else is in the step.

use std::ops::Range;

use super::low_rank::Term;
use super::{Linear, misuse};
use crate::config::{Denominator, ExpertGroups, Routing, Score};
use crate::error::Result;

/// One expert: `down(activation(gate(x)) * up(x))`, or `down(activation(up(x)))`.
#[derive(Clone, Debug)]
pub struct Expert {
    /// `[intermediate, hidden]`; all experts of a layer have one, or none has.
    pub gate: Option<Linear>,
    /// `[intermediate, hidden]`
    pub up: Linear,
    /// `[hidden, intermediate]`
    pub down: Linear,
}

/// What adapters add to the products of experts. Rows are pairs, in their order.
#[derive(Debug, Default)]
pub struct ExpertTerms<'a> {
    pub gate: Vec<Term<'a>>,
    pub up: Vec<Term<'a>>,
    pub down: Vec<Term<'a>>,
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
    /// The experts of rows of router logits, `[rows, experts]`; `correction`: added to the scores of the
    /// experts for the choice.
    ///
    /// As in transformers, the scores (in f32) decide; of equal ones the expert with the lower number is
    /// chosen (what `torch.topk` chooses there is not defined). Renormalized weights are divided by their
    /// sum, which is added up from the best of the chosen down.
    pub(super) fn new(
        logits: &[f32],
        experts: usize,
        routing: &Routing,
        correction: Option<&[f32]>,
    ) -> Result<Assignments> {
        let top_k = routing.top_k;
        let corrected = correction.is_none_or(|correction| correction.len() == experts);
        let grouped = routing.groups.is_none_or(|ExpertGroups { count, kept }| {
            (1..=count).contains(&kept)
                && experts.is_multiple_of(count)
                && experts / count >= 2
                && kept * (experts / count) >= top_k
        });
        let whole = top_k > 0 && top_k <= experts && logits.len().is_multiple_of(experts);
        if !(whole && corrected && grouped) {
            return Err(misuse(format!("{top_k} of {experts} experts for {} logits", logits.len())));
        }
        let rows = logits.len() / experts;
        // (expert, row, weight); a row's from the best of the chosen down.
        let mut pairs: Vec<(u32, u32, f32)> = Vec::with_capacity(rows * top_k);
        let mut choice = Choice::new(routing, correction, experts);
        for (row, logits) in logits.chunks_exact(experts).enumerate() {
            pairs.extend(choice.of(logits).map(|(expert, weight)| (expert, row as u32, weight)));
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

    /// Multiplies the weights of each expert by a number of its own.
    pub fn scale(&mut self, scales: &[f32]) {
        for (expert, pairs) in &self.experts {
            let scale = scales.get(*expert).copied().unwrap_or(1.0);
            self.weights[pairs.clone()].iter_mut().for_each(|weight| *weight *= scale);
        }
    }

    /// Rows of the step.
    pub fn row_count(&self) -> usize {
        self.of_row.len() / self.top_k
    }

    /// The experts that some row passes, ascending, and their pairs.
    pub fn experts(&self) -> &[(usize, Range<usize>)] {
        &self.experts
    }

    /// The row of each pair.
    pub fn rows(&self) -> &[u32] {
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

/// Chooses the experts of one row after the other.
struct Choice<'a> {
    routing: &'a Routing,
    correction: Option<&'a [f32]>,
    /// Logits of the row, and what they become.
    logits: Vec<f32>,
    scores: Vec<f32>,
    /// What decides, where that is not the scores themselves.
    ranks: Vec<f32>,
    order: Vec<u32>,
    weights: Vec<f32>,
}

impl<'a> Choice<'a> {
    fn new(routing: &'a Routing, correction: Option<&'a [f32]>, experts: usize) -> Self {
        let (zeros, order) = (vec![0.0; experts], Vec::with_capacity(experts));
        let (logits, scores, ranks) = (zeros.clone(), zeros.clone(), zeros);
        Choice { routing, correction, logits, scores, ranks, order, weights: Vec::new() }
    }

    /// The experts of a row and their weights, from the best down.
    fn of(&mut self, logits: &[f32]) -> impl Iterator<Item = (u32, f32)> + '_ {
        self.logits.copy_from_slice(logits);
        if let Some(cap) = self.routing.soft_cap {
            self.logits.iter_mut().for_each(|logit| *logit = cap * (*logit / cap).tanh());
        }
        score(self.routing.score, &self.logits, &mut self.scores);
        self.rank();
        self.choose();
        self.weigh();
        self.order[..self.routing.top_k].iter().copied().zip(self.weights.iter().copied())
    }

    /// What decides: corrected scores, those of groups that are not kept at minus infinity.
    fn rank(&mut self) {
        self.ranks.copy_from_slice(&self.scores);
        if let Some(correction) = self.correction {
            self.ranks.iter_mut().zip(correction).for_each(|(rank, correction)| *rank += correction);
        }
        let Some(ExpertGroups { count, kept }) = self.routing.groups else { return };
        let size = self.ranks.len() / count;
        let of_group = |ranks: &[f32]| {
            let best = |(first, second): (f32, f32), &rank: &f32| match rank > first {
                true => (rank, first),
                false => (first, second.max(rank)),
            };
            let (first, second) = ranks.iter().fold((f32::NEG_INFINITY, f32::NEG_INFINITY), best);
            first + second
        };
        let groups: Vec<f32> = self.ranks.chunks_exact(size).map(of_group).collect();
        let mut order: Vec<u32> = (0..count as u32).collect();
        order.sort_unstable_by(|a, b| better(&groups, a, b));
        for &group in &order[kept..] {
            self.ranks[group as usize * size..][..size].fill(f32::NEG_INFINITY);
        }
    }

    /// The chosen go to the beginning of `order`, the best first.
    fn choose(&mut self) {
        let (top_k, ranks) = (self.routing.top_k, &self.ranks);
        self.order.clear();
        self.order.extend(0..ranks.len() as u32);
        if top_k < ranks.len() {
            self.order.select_nth_unstable_by(top_k - 1, |a, b| better(ranks, a, b));
        }
        self.order[..top_k].sort_unstable_by(|a, b| better(ranks, a, b));
    }

    fn weigh(&mut self) {
        let Routing { top_k, normalize, scale, .. } = *self.routing;
        let chosen = self.order[..top_k].iter().map(|&expert| self.scores[expert as usize]);
        self.weights.clear();
        self.weights.extend(chosen);
        if self.routing.score == Score::Logit {
            softmax(&mut self.weights);
        }
        if let Some(Denominator { plus, at_least }) = normalize {
            // A NaN stays.
            let sum = self.weights.iter().sum::<f32>() + plus;
            let sum = if sum < at_least { at_least } else { sum };
            self.weights.iter_mut().for_each(|weight| *weight /= sum);
        }
        self.weights.iter_mut().for_each(|weight| *weight *= scale);
    }
}

/// The greater number first; of equal ones the first.
fn better(numbers: &[f32], a: &u32, b: &u32) -> std::cmp::Ordering {
    numbers[*b as usize].total_cmp(&numbers[*a as usize]).then(a.cmp(b))
}

/// Scores of a row of logits.
fn score(score: Score, logits: &[f32], scores: &mut [f32]) {
    scores.copy_from_slice(logits);
    match score {
        Score::Softmax => softmax(scores),
        Score::Sigmoid => scores.iter_mut().for_each(|score| *score = 1.0 / (1.0 + (-*score).exp())),
        Score::Logit => {}
    }
}

fn softmax(x: &mut [f32]) {
    let max = x.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let mut sum = 0.0;
    for x in &mut *x {
        *x = (*x - max).exp();
        sum += *x;
    }
    x.iter_mut().for_each(|x| *x /= sum);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn top2() -> Routing {
        Routing { normalize: Some(Denominator::SUM), ..Routing::plain(2) }
    }

    #[test]
    fn pairs_are_sorted_by_expert_and_rows_know_theirs() {
        let ln = f32::ln;
        // Row 0 passes experts 3 and 1, row 1 experts 0 and 3, row 2 (all equal) the two with the lowest
        // numbers.
        let logits = [0.0, ln(3.0), 0.0, ln(5.0), ln(6.0), 0.0, 0.0, ln(2.0), 7.0, 7.0, 7.0, 7.0];
        let a = Assignments::new(&logits, 4, &top2(), None).unwrap();
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
        let capped = logits.map(|x: f32| (0.5 * (2.0 * x).tanh()).exp());
        let (all, two, capped_two) = (exp.iter().sum::<f32>(), exp[0] + exp[2], capped[0] + capped[2]);
        let both = sigmoid[0] + sigmoid[2];
        let plain = Routing::plain(2);
        let denominator = |plus, at_least| Some(Denominator { plus, at_least });
        for (routing, wanted) in [
            (plain, [exp[0] / all, exp[2] / all]),
            (Routing { scale: 2.0, ..top2() }, [2.0 * exp[0] / two, 2.0 * exp[2] / two]),
            (Routing { score: Score::Sigmoid, scale: 1.5, ..plain }, [1.5 * sigmoid[0], 1.5 * sigmoid[2]]),
            (Routing { score: Score::Logit, ..plain }, [exp[0] / two, exp[2] / two]),
            (
                Routing { score: Score::Logit, soft_cap: Some(0.5), ..plain },
                [capped[0] / capped_two, capped[2] / capped_two],
            ),
            (
                Routing { score: Score::Sigmoid, normalize: denominator(0.25, 0.0), ..plain },
                [sigmoid[0] / (both + 0.25), sigmoid[2] / (both + 0.25)],
            ),
            (
                Routing { score: Score::Sigmoid, normalize: denominator(0.0, 4.0), ..plain },
                [sigmoid[0] / 4.0, sigmoid[2] / 4.0],
            ),
        ] {
            let a = Assignments::new(&logits, 3, &routing, None).unwrap();
            assert_eq!(a.experts(), [(0, 0..1), (2, 1..2)]);
            assert!(a.weights().iter().zip(wanted).all(|(a, b)| (a - b).abs() < 1e-6), "{routing:?}");
        }
    }

    /// The correction decides who is chosen, and the scores what for.
    #[test]
    fn corrections_and_groups_decide_and_do_not_weigh() {
        let routing = Routing { score: Score::Sigmoid, ..Routing::plain(2) };
        let grouped = |count, kept| Routing { groups: Some(ExpertGroups { count, kept }), ..routing };
        let (logits, none) = ([3.0, -3.0, 2.0, 1.0, 1.5, 1.4], [0.0; 6]);
        let lifted = [0.0, 0.9, 0.0, 0.0, 0.0, 0.0];
        for (routing, correction, wanted) in [
            (routing, none, [0, 2]),
            (routing, lifted, [0, 1]),
            // Pairs: 0.953 + 0.047, 0.881 + 0.731, 0.818 + 0.802.
            (grouped(3, 1), none, [4, 5]),
            (grouped(3, 2), none, [2, 4]),
            (grouped(3, 1), lifted, [0, 1]),
            // Threes: the best two count, not all.
            (grouped(2, 1), none, [0, 2]),
        ] {
            let a = Assignments::new(&logits, 6, &routing, Some(&correction)).unwrap();
            let chosen: Vec<usize> = a.experts().iter().map(|(expert, _)| *expert).collect();
            assert_eq!(chosen, wanted, "{routing:?} {correction:?}");
            let weights = chosen.iter().map(|&expert| 1.0 / (1.0 + f32::exp(-logits[expert])));
            assert!(a.weights().iter().zip(weights).all(|(a, b)| (a - b).abs() < 1e-6), "{routing:?}");
        }
        for (count, kept) in [(4, 1), (6, 6), (3, 0), (3, 4)] {
            assert!(Assignments::new(&logits, 6, &grouped(count, kept), None).is_err(), "{count} {kept}");
        }
        assert!(Assignments::new(&logits, 6, &routing, Some(&none[1..])).is_err());
    }

    #[test]
    fn what_cannot_be_routed_is_an_error_and_nothing_is_an_assignment() {
        for (top_k, experts, logits) in [(0, 4, 4), (5, 4, 4), (2, 3, 4)] {
            let routing = Routing { top_k, ..top2() };
            assert!(Assignments::new(&vec![0.0; logits], experts, &routing, None).is_err());
        }
        let none = Assignments::new(&[], 4, &top2(), None).unwrap();
        assert_eq!((none.experts(), none.row_count()), (&[][..], 0));
        // What is not a number stays visible.
        let nan = Assignments::new(&[f32::NAN, 0.0, 1.0], 3, &top2(), None).unwrap();
        assert!(nan.weights().iter().all(|weight| weight.is_nan()));
    }
}
