//! Edits of single logits: bias by token, and penalties for tokens that were there before.

use std::collections::BTreeMap;

use super::chain::{Filter, History};
use super::logits::Logits;
use crate::error::{Error, Result};

/// Adds a number to the logits of named tokens.
///
/// As in OpenAI's API: -100 as good as forbids a token, +100 as good as forces it. `-inf` forbids it for
/// sure.
pub struct LogitBias(pub BTreeMap<u32, f64>);

impl Filter for LogitBias {
    /// # Errors
    /// InvalidRequest if a token is not in the vocabulary.
    fn filter(&self, logits: &mut Logits, _: &History) -> Result<()> {
        check_bias(&self.0, logits.vocab_size())?;
        for (&id, &bias) in &self.0 {
            if let Some(value) = logits.get_mut(id) {
                *value += bias as f32;
            }
        }
        Ok(())
    }

    fn name(&self) -> &str {
        "logit_bias"
    }
}

/// Refuses a bias on tokens that the vocabulary does not have, and one that leaves no token at all.
pub(super) fn check_bias(bias: &BTreeMap<u32, f64>, vocab_size: usize) -> Result<()> {
    match bias.keys().next_back() {
        Some(&id) if id as usize >= vocab_size => Err(Error::invalid(format!(
            "logit_bias names token {id}, but this model's vocabulary has {vocab_size} tokens, \
             0 to {}; take ids from this model's tokenize()",
            vocab_size.saturating_sub(1)
        ))),
        _ => Ok(()),
    }
}

/// Divides the positive logits of all tokens so far by `.0` and multiplies the negative ones: over 1 it makes
/// repeating less likely. Prompt and answer count, each token once. (Keskar et al. 2019, as in transformers.)
pub struct RepetitionPenalty(pub f64);

impl Filter for RepetitionPenalty {
    fn filter(&self, logits: &mut Logits, history: &History) -> Result<()> {
        let penalty = self.0 as f32;
        for_each_seen(logits, history.tokens, |value, _| {
            *value = if *value < 0.0 { *value * penalty } else { *value / penalty };
        });
        Ok(())
    }

    fn name(&self) -> &str {
        "repetition_penalty"
    }
}

/// Subtracts `count * frequency + presence` from the logit of each token of the answer so far, where `count`
/// is how often it is there. The prompt does not count. (OpenAI's definition.)
pub struct CountPenalty {
    pub frequency: f64,
    pub presence: f64,
}

impl Filter for CountPenalty {
    fn filter(&self, logits: &mut Logits, history: &History) -> Result<()> {
        for_each_seen(logits, history.generated(), |value, count| {
            *value -= (f64::from(count) * self.frequency + self.presence) as f32;
        });
        Ok(())
    }

    fn name(&self) -> &str {
        "frequency_penalty and presence_penalty"
    }
}

/// Calls `edit(logit, count)` once for each different token of `tokens`. Ids outside the vocabulary have no
/// logit and are passed over.
///
/// The table of counts is a buffer of the logits and is all zeros outside this function, so that the cost
/// follows the length of `tokens`, not the vocabulary; sorting a copy took several times as long.
fn for_each_seen(logits: &mut Logits, tokens: &[u32], mut edit: impl FnMut(&mut f32, u32)) {
    let mut counts = std::mem::take(&mut logits.work.counts);
    counts.resize(logits.vocab_size().max(counts.len()), 0);
    for &token in tokens {
        if let Some(count) = counts.get_mut(token as usize) {
            *count = count.saturating_add(1);
        }
    }
    for &token in tokens {
        let Some(count) = counts.get_mut(token as usize) else { continue };
        let count = std::mem::take(count);
        if count > 0
            && let Some(value) = logits.get_mut(token)
        {
            edit(value, count);
        }
    }
    logits.work.counts = counts;
}
