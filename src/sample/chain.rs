//! What a filter is, what it may look at, and a row of them.

use std::sync::Arc;

use super::logits::Logits;
use crate::error::Result;

/// The tokens so far of one sequence.
#[derive(Clone, Copy, Debug, Default)]
pub struct History<'a> {
    /// Prompt, then answer.
    pub tokens: &'a [u32],
    /// How many of `tokens` are the prompt.
    pub prompt_len: usize,
}

impl<'a> History<'a> {
    /// The tokens of the answer so far.
    pub fn generated(&self) -> &'a [u32] {
        self.tokens.get(self.prompt_len..).unwrap_or(&[])
    }
}

/// One edit of the logits.
///
/// It must depend on nothing but its arguments: the same row and history give the same edit, whoever else
/// is in the batch.
pub trait Filter: Send + Sync {
    /// Edits `logits` in place: changes values (`-inf` forbids a token) or drops candidates.
    ///
    /// # Errors
    /// Whatever went wrong; the request fails with it, and no other request notices.
    fn filter(&self, logits: &mut Logits, history: &History) -> Result<()>;

    /// What messages call it.
    fn name(&self) -> &str;
}

/// Filters one after the other; a filter itself.
#[derive(Clone, Default)]
pub struct Chain(Vec<Arc<dyn Filter>>);

impl Chain {
    pub fn push(&mut self, filter: impl Filter + 'static) {
        self.0.push(Arc::new(filter));
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The names, in order.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.0.iter().map(|filter| filter.name())
    }
}

impl From<Vec<Arc<dyn Filter>>> for Chain {
    fn from(filters: Vec<Arc<dyn Filter>>) -> Self {
        Chain(filters)
    }
}

impl Filter for Chain {
    fn filter(&self, logits: &mut Logits, history: &History) -> Result<()> {
        self.0.iter().try_for_each(|filter| filter.filter(logits, history))
    }

    fn name(&self) -> &str {
        "chain"
    }
}
