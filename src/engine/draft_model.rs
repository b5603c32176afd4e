//! A second, smaller model that says what may come next.
//!
//! It has a cache of its own, and for each sequence that it drafts for a [`Branch`] in it: the tokens of that
//! sequence, and behind them those that it has drafted. It lags behind as every branch does, and catches up
//! when a draft is wanted; what was drafted and did not come is cut off again, and its positions are written
//! over. So it needs no news of what the sequence did meanwhile: it compares the tokens.
//!
//! It is never waited for: where it has no pages, or cannot read a token, there is no draft.

use std::collections::HashMap;

use super::branch::{Branch, Want};
use super::model_runner::{ModelRunner, StepOutput};
use crate::cache::holding::Holding;
use crate::cache::prefix::PrefixCache;
use crate::error::{Error, Result};
use crate::step::Step;

/// Tokens of prompts that it computes between two steps of the model at most.
pub(super) const CHUNK: usize = 256;

/// What computes the steps of a draft model.
pub struct DraftRunner {
    /// Its pages are its own.
    pub runner: Box<dyn ModelRunner>,
    /// Ids below this one are the same tokens in both models; others it never drafts.
    pub known: usize,
    /// Positions of one sequence. Where an answer goes on beyond them, it goes on without drafts.
    pub context_length: usize,
}

impl DraftRunner {
    /// # Errors
    /// `InvalidRequest` for a model with recurrent state, `known` tokens that it does not have, or nothing to
    /// compute with.
    pub(super) fn check(&self) -> Result<()> {
        let (layout, vocab) = (self.runner.layout(), self.runner.vocab_size());
        if layout.has_state() {
            return Err(Error::invalid(
                "a draft model with recurrent state cannot take back what it drafted; use one with attention \
                 alone",
            ));
        }
        if self.known == 0 || self.known > vocab || self.context_length == 0 || layout.pages == 0 {
            let (known, pages) = (self.known, layout.pages);
            return Err(Error::invalid(format!(
                "a draft model of {vocab} tokens ({known} known), {} positions and {pages} pages drafts nothing",
                self.context_length
            )));
        }
        Ok(())
    }
}

pub(super) struct DraftModel {
    runner: Box<dyn ModelRunner>,
    known: usize,
    context_length: usize,
    cache: PrefixCache,
    /// By the id of the sequence.
    sequences: HashMap<u64, DraftSequence>,
    /// A row as long as the vocabulary of the model that is drafted for.
    row: Vec<f32>,
}

/// What it knows of one sequence.
struct DraftSequence {
    branch: Branch,
    /// Tokens of `branch` that are the sequence's; those behind them are drafted.
    confirmed: usize,
}

impl DraftModel {
    /// For a model of `vocab` tokens.
    pub fn new(draft: DraftRunner, vocab: usize, prefix_cache: bool) -> Self {
        let DraftRunner { runner, known, context_length } = draft;
        let cache = PrefixCache::new(runner.layout(), prefix_cache);
        let row = vec![f32::NEG_INFINITY; vocab];
        DraftModel { runner, known: known.min(vocab), context_length, cache, sequences: HashMap::new(), row }
    }

    /// Whether a sequence of so many tokens fits, with one drafted.
    pub fn fits(&self, len: usize) -> bool {
        len < self.context_length
    }

    /// Brings what it knows of a sequence up to these tokens; returns how many of them it has to compute.
    /// `None` if it cannot read one.
    pub fn follow(&mut self, id: u64, tokens: &[u32]) -> Option<usize> {
        let groups = self.cache.groups().len();
        let sequence = self.sequences.entry(id).or_insert_with(|| DraftSequence::new(groups));
        let DraftSequence { branch, confirmed } = sequence;
        let new = tokens.get(*confirmed..)?;
        let same =
            branch.tokens[*confirmed..].iter().zip(new).take_while(|(drafted, came)| drafted == came).count();
        branch.tokens.truncate(*confirmed + same);
        // The last token is always computed: its row is what is wanted.
        branch.computed = branch.computed.min(branch.tokens.len()).min(tokens.len() - 1);
        branch.commit(&mut self.cache);
        *confirmed = branch.tokens.len();
        let vocab = self.runner.vocab_size() as u32;
        let unknown = tokens[*confirmed..].iter().any(|&token| token >= vocab);
        if unknown {
            return None;
        }
        branch.tokens.extend_from_slice(&tokens[*confirmed..]);
        *confirmed = tokens.len();
        branch.adopt(&mut self.cache);
        Some(branch.backlog().tokens)
    }

    /// Sees to the pages for all that a sequence has, at the price of what is kept of sequences that are not
    /// in `needed`. False: there are none.
    pub fn provide(&mut self, id: u64, needed: &[u64]) -> bool {
        let Some(sequence) = self.sequences.get(&id) else { return false };
        let short = sequence.branch.short(self.cache.groups(), CHUNK);
        while self.cache.available() < short
            && let Some(&idle) = self.sequences.keys().find(|other| **other != id && !needed.contains(other))
        {
            self.forget(idle);
        }
        let (Some(lease), Some(sequence)) = (self.cache.lease(short), self.sequences.get_mut(&id)) else {
            return false;
        };
        sequence.branch.provide(lease, self.cache.groups(), CHUNK);
        true
    }

    /// Computes the next rows of these sequences, so many of each. The logits are those of the sequences that
    /// it has then computed all of, in their order.
    ///
    /// # Errors
    /// As [`ModelRunner::forward`].
    pub fn forward(&mut self, rows: &[(u64, usize)]) -> Result<StepOutput> {
        let mut step = Step::default();
        for (id, rows) in rows {
            if let Some(sequence) = self.sequences.get(id) {
                sequence.branch.put(*rows, &mut step);
            }
        }
        let output = self.runner.forward(&step)?;
        if output.logits.len() != step.logits.len() * self.runner.vocab_size() {
            return Err(Error::internal("a draft model gave other logits than were due"));
        }
        for (id, rows) in rows {
            if let Some(sequence) = self.sequences.get_mut(id) {
                sequence.branch.computed += rows;
            }
        }
        Ok(output)
    }

    /// Takes row `at` of an output as one of the model that is drafted for: what it does not know is
    /// impossible.
    pub fn load(&mut self, output: &StepOutput, at: usize) {
        let from = at * self.runner.vocab_size();
        self.row[..self.known].copy_from_slice(&output.logits[from..from + self.known]);
    }

    /// The row that was loaded last.
    pub fn row(&self) -> &[f32] {
        &self.row
    }

    /// All tokens of a sequence, the drafted ones included.
    pub fn tokens(&self, id: u64) -> &[u32] {
        self.sequences.get(&id).map_or(&[], |sequence| &sequence.branch.tokens)
    }

    /// Those that were drafted.
    pub fn drafted(&self, id: u64) -> &[u32] {
        self.sequences.get(&id).map_or(&[], |sequence| &sequence.branch.tokens[sequence.confirmed..])
    }

    /// Appends tokens that may come.
    pub fn append(&mut self, id: u64, drafted: &[u32]) {
        if let Some(sequence) = self.sequences.get_mut(&id) {
            sequence.branch.tokens.extend_from_slice(drafted);
        }
    }

    /// Gives back what it holds of a sequence, if it holds something.
    pub fn forget(&mut self, id: u64) {
        if let Some(mut sequence) = self.sequences.remove(&id) {
            sequence.branch.release(&mut self.cache);
        }
    }

    /// Forgets all sequences but these.
    pub fn retain(&mut self, wanted: impl Fn(u64) -> bool) {
        let gone: Vec<u64> = self.sequences.keys().copied().filter(|&id| !wanted(id)).collect();
        gone.into_iter().for_each(|id| self.forget(id));
    }

    pub fn runner(&mut self) -> &mut dyn ModelRunner {
        &mut *self.runner
    }

    /// Its pages, to be looked at.
    pub fn cache(&self) -> &PrefixCache {
        &self.cache
    }

    /// See [`PrefixCache::check_integrity`].
    pub fn check_integrity(&self) -> Result<(), String> {
        let live = self.sequences.values().flat_map(|sequence| sequence.branch.holding.leases());
        self.cache.check_integrity(live, [])
    }
}

impl DraftSequence {
    fn new(groups: usize) -> Self {
        DraftSequence {
            branch: Branch::new(0, Vec::new(), Holding::new(groups), Want::Last, 0, None),
            confirmed: 0,
        }
    }
}
