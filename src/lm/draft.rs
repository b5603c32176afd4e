//! Whether one model can draft for another, and what it gets for that.

use std::sync::Arc;

use super::LmOptions;
use crate::engine::{DecoderRunner, DraftRunner, StepLimits};
use crate::error::{Error, Result};
use crate::model::Model;

/// One part in so many of the memory for keys and values that a draft model may have.
const SHARE: u64 = 8;
/// Sequences of full length that its cache holds at most: with more at once drafts gain nothing.
const SEQUENCES: usize = 8;

/// A draft model with its part of the memory.
#[derive(Clone)]
pub(super) struct Draft {
    model: Arc<Model>,
    pages: usize,
    known: usize,
}

impl Draft {
    /// `draft` for `model`. Its pages are taken out of `budget`, in bytes.
    ///
    /// # Errors
    /// `InvalidRequest` saying why it cannot draft for it.
    pub fn of(model: &Model, draft: &Arc<Model>, options: &LmOptions, budget: &mut u64) -> Result<Self> {
        if !options.speculation {
            return Err(Error::invalid(format!(
                "draft is {:?}, and speculation is off: without it nothing is drafted; leave one of them out",
                draft.name()
            )));
        }
        let known = known_to_both(model, draft)?;
        let page = draft.decoder().page_bytes().max(1) as u64;
        let rows = StepLimits::default().rows;
        let longest = DecoderRunner::groups(draft.decoder()).pages_at_most(draft.context_length(), rows);
        let most = longest.saturating_mul(SEQUENCES).min(u32::MAX as usize) as u64;
        let pages = (*budget / SHARE / page).min(most);
        if pages == 0 {
            return Err(Error::out_of_memory(format!(
                "draft is {:?}, and of the {budget} bytes for keys and values it may have one part in {SHARE}, \
                 less than a page of {page} bytes; raise kv_memory",
                draft.name()
            )));
        }
        *budget -= pages * page;
        Ok(Draft { model: draft.clone(), pages: pages as usize, known })
    }

    /// # Errors
    /// `OutOfMemory` when there is no memory for its pages.
    pub fn runner(&self) -> Result<DraftRunner> {
        let runner = DecoderRunner::new(self.model.decoder().clone(), self.pages, 0)?;
        let context_length = self.model.context_length();
        Ok(DraftRunner { runner: Box::new(runner), known: self.known, context_length })
    }

    /// Pages of its cache.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Bytes of one of them.
    pub fn page_bytes(&self) -> usize {
        self.model.decoder().page_bytes()
    }
}

/// Ids below this one are the same tokens in both models.
///
/// # Errors
/// `InvalidRequest` saying why `draft` cannot draft for `model`.
pub(super) fn known_to_both(model: &Model, draft: &Model) -> Result<usize> {
    for (one, role) in [(draft, "drafts nothing"), (model, "needs no draft")] {
        if !one.config().causal || !one.decoder().has_head() {
            return Err(Error::invalid(format!(
                "draft is {:?} for {:?}: {:?} writes no text, so it {role}",
                draft.name(),
                model.name(),
                one.name()
            )));
        }
    }
    if draft.decoder().kv_layout().has_state() {
        return Err(Error::invalid(format!(
            "draft is {:?}: a model with recurrent state ({}) cannot take back what it drafted; use one with \
             attention alone",
            draft.name(),
            draft.config().family
        )));
    }
    common_ids(model, draft)
}

/// Ids below this one are the same tokens in both vocabularies. Behind them one may have tokens that the
/// other lacks: matrices are padded, and later members of a family have a few control tokens more.
///
/// # Errors
/// `InvalidRequest` naming both models and the first token that differs.
fn common_ids(model: &Model, draft: &Model) -> Result<usize> {
    let (ours, its) = (model.tokenizer(), draft.tokenizer());
    let most = ours.vocab_size().min(its.vocab_size()).min(model.vocab_size()).min(draft.vocab_size());
    let differs = (0..most).find(|&id| ours.token_bytes(id as u32) != its.token_bytes(id as u32));
    let Some(id) = differs else { return Ok(most) };
    let [one, other] = [ours, its].map(|tokenizer| tokenizer.token_bytes(id as u32));
    // Few of them in front of that: then these are two vocabularies, and not one with room at its end.
    if (is_padding(one) || is_padding(other)) && id > most / 2 {
        return Ok(id);
    }
    let text = |token| String::from_utf8_lossy(token).into_owned();
    Err(Error::invalid(format!(
        "draft is {:?}, which cannot draft for {:?}: token {id} is {:?} in the one and {:?} in the other; a \
         draft model must have the same vocabulary",
        draft.name(),
        model.name(),
        text(other),
        text(one)
    )))
}

/// Whether this stands where there is no token; GGUF files have a text there.
fn is_padding(token: &[u8]) -> bool {
    token.is_empty() || token.starts_with(b"[PAD")
}
