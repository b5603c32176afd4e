//! Log probabilities of tokens under the model itself: the softmax of the raw logits, before any filter.
//!
//! Raw, because they then say what the model believes, are the same for every sampler, and add up to the
//! likelihood of a text. Sums are in f64 and in one order, so they are the same bits however a row came
//! about.

use super::logits::model_fault;
use super::{select, softmax};
use crate::error::{Error, Result};

/// What the model thought of one token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenLogprob {
    /// ln p of the token that was picked.
    pub logprob: f32,
    /// The likeliest tokens and their ln p, best first, the lowest id first among equals.
    pub top: Vec<(u32, f32)>,
}

/// The log probability of `chosen` and of the `top` likeliest tokens under the raw `logits` of one position.
///
/// # Errors
/// ModelFile if a logit is NaN or `+inf`; Internal if `chosen` is not in the vocabulary.
pub fn token_logprobs(logits: &[f32], chosen: u32, top: usize) -> Result<TokenLogprob> {
    let normalizer = normalizer(logits)?;
    let logprob = logprob_at(logits, chosen, normalizer)?;
    Ok(TokenLogprob { logprob, top: likeliest(logits, top, normalizer) })
}

/// ln p of token `id` under the raw `logits` of one position, for scoring.
///
/// # Errors
/// As [`token_logprobs`].
pub fn log_softmax_at(logits: &[f32], id: u32) -> Result<f32> {
    logprob_at(logits, id, normalizer(logits)?)
}

/// ln of the sum of e^logit.
fn normalizer(logits: &[f32]) -> Result<f64> {
    let (max, sound) = softmax::max_and_sound(logits);
    if !sound || max == f32::NEG_INFINITY {
        return Err(model_fault("its logits are no distribution: NaN, inf, or all -inf".into()));
    }
    Ok(softmax::log_sum_exp(logits, max))
}

fn logprob_at(logits: &[f32], id: u32, normalizer: f64) -> Result<f32> {
    let logit = logits.get(id as usize).ok_or_else(|| {
        Error::internal(format!("token {id} is outside the vocabulary of {} tokens", logits.len()))
    })?;
    Ok(minus(*logit, normalizer))
}

fn minus(logit: f32, normalizer: f64) -> f32 {
    (f64::from(logit) - normalizer).min(0.0) as f32
}

fn likeliest(logits: &[f32], top: usize, normalizer: f64) -> Vec<(u32, f32)> {
    if top == 0 {
        return Vec::new();
    }
    let top = top.min(logits.len());
    let mut cut = select::largest(logits, top, &mut Vec::new());
    let mut best = Vec::with_capacity(top);
    for (id, &logit) in logits.iter().enumerate() {
        let tie = logit == cut.threshold && cut.ties > 0;
        if logit > cut.threshold || tie {
            cut.ties -= usize::from(tie);
            best.push((id as u32, logit));
        }
    }
    // Stable, and the ids ascend: equals stay in order of id.
    best.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap_or(std::cmp::Ordering::Equal));
    best.into_iter().map(|(id, logit)| (id, minus(logit, normalizer))).collect()
}
