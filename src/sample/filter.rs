//! The filters that narrow: temperature, top-k, top-p, min-p, typical.
//!
//! None of them empties the candidates: the likeliest token survives each, save under typical decoding,
//! whose set is another but never empty. A candidate at `-inf` counts as none.

use super::chain::{Filter, History};
use super::logits::{Logits, Work};
use super::{select, softmax};
use crate::error::Result;

/// Divides the logits by `.0`, which is over zero.
pub struct Temperature(pub f64);

impl Filter for Temperature {
    /// Works on differences to the largest logit, which becomes zero: so the least temperature turns the
    /// others to `-inf` at worst, and nothing into `+inf` or NaN.
    fn filter(&self, logits: &mut Logits, _: &History) -> Result<()> {
        let max = logits.check()?;
        let divisor = (self.0 as f32).clamp(f32::MIN_POSITIVE, f32::MAX);
        for value in logits.values_mut() {
            *value = (*value - max) / divisor;
        }
        Ok(())
    }

    fn name(&self) -> &str {
        "temperature"
    }
}

/// Keeps the `.0` largest logits: exactly as many, the lowest ids first among equals. (transformers keeps
/// all that are equal to the last; then `k` is no bound.)
pub struct TopK(pub usize);

impl Filter for TopK {
    fn filter(&self, logits: &mut Logits, _: &History) -> Result<()> {
        if self.0 < logits.len() {
            let mut buffer = std::mem::take(&mut logits.work.best);
            let cut = select::largest(logits.values(), self.0.max(1), &mut buffer);
            logits.work.best = buffer;
            logits.keep_best(None, cut.threshold, cut.ties);
        }
        Ok(())
    }

    fn name(&self) -> &str {
        "top_k"
    }
}

/// Keeps the smallest set of the likeliest tokens whose probabilities reach `.0`, at least one; among equals
/// the lowest ids first. (Holtzman et al. 2020, nucleus sampling.)
pub struct TopP(pub f64);

impl Filter for TopP {
    fn filter(&self, logits: &mut Logits, _: &History) -> Result<()> {
        let max = logits.check()?;
        let mut work = std::mem::take(&mut logits.work);
        let total = softmax::weights(logits.values(), max, &mut work.weights);
        work.keys.clear();
        let cut = select::smallest_set(&mut work, self.0 * total);
        logits.keep_best(Some(&work.weights), cut.threshold, cut.ties);
        logits.work = work;
        Ok(())
    }

    fn name(&self) -> &str {
        "top_p"
    }
}

/// Keeps tokens at least `.0` times as likely as the likeliest. (Nguyen et al. 2024.)
///
/// p(x) >= m p(best) means logit(x) >= logit(best) + ln m, so it needs no exponential and no sum.
pub struct MinP(pub f64);

impl Filter for MinP {
    fn filter(&self, logits: &mut Logits, _: &History) -> Result<()> {
        let max = logits.check()?;
        let threshold = (f64::from(max) + self.0.ln()) as f32;
        logits.keep_best(None, threshold.min(max), usize::MAX);
        Ok(())
    }

    fn name(&self) -> &str {
        "min_p"
    }
}

/// Keeps the smallest set that reaches mass `.0` of the tokens whose surprise -ln p is nearest to the entropy
/// of the distribution; among equals the lowest ids first. (Meister et al. 2022, locally typical sampling.)
pub struct Typical(pub f64);

impl Filter for Typical {
    fn filter(&self, logits: &mut Logits, _: &History) -> Result<()> {
        let max = logits.check()?;
        let mut work = std::mem::take(&mut logits.work);
        let total = softmax::weights(logits.values(), max, &mut work.weights);
        distances(logits.values(), max, total, &mut work);
        let cut = select::smallest_set(&mut work, self.0 * total);
        logits.keep_best(Some(&work.keys), cut.threshold, cut.ties);
        logits.work = work;
        Ok(())
    }

    fn name(&self) -> &str {
        "typical_p"
    }
}

/// Fills `work.keys` with how far each token's surprise is from the entropy, negated: larger is better.
///
/// With d = logit - max and Z the sum of e^d, the surprise is ln Z - d and the entropy is ln Z - E[d], so the
/// distance is |E[d] - d|. A token of weight zero is infinitely far.
fn distances(values: &[f32], max: f32, total: f64, work: &mut Work) {
    let Work { weights, keys, .. } = work;
    keys.clear();
    keys.extend(
        values.iter().zip(weights.iter()).map(
            |(&value, &weight)| {
                if weight > 0.0 { weight * (value - max) } else { 0.0 }
            },
        ),
    );
    let mean = (softmax::sum(keys) / total) as f32;
    keys.clear();
    keys.extend(values.iter().zip(weights.iter()).map(|(&value, &weight)| {
        if weight > 0.0 { -(mean - (value - max)).abs() } else { f32::NEG_INFINITY }
    }));
}
