//! What an engine has done so far, in numbers that a person reads, or a server that counts.
//!
//! Counters only grow. What stands now is a gauge: `running`, `waiting` and the pages.

use std::time::Duration;

use crate::error::ErrorKind;

/// A snapshot.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Stats {
    /// Requests submitted, refused ones not counted.
    pub requests: u64,
    /// Requests that ended well.
    pub completed: u64,
    /// Requests that ended with an error, late ones included.
    pub failed: u64,
    /// Requests that nobody wanted any more: dropped streams, cancelled tasks, those of a closed engine.
    pub cancelled: u64,
    /// Requests in work now.
    pub running: usize,
    /// Requests in the queue now: those that were not begun, and those that were preempted.
    pub waiting: usize,
    /// Prompt tokens of the requests that were begun.
    pub prompt_tokens: u64,
    /// Tokens generated.
    pub completion_tokens: u64,
    /// Prompt tokens whose pages were found, and so not computed.
    pub cached_tokens: u64,
    /// Rows computed, of prompts and answers together.
    pub computed_tokens: u64,
    /// Tokens that were guessed and checked.
    pub drafted: u64,
    /// Those that were right: tokens that needed no step of their own.
    pub accepted: u64,
    /// Of the drafted ones: those of a draft model.
    pub model_drafted: u64,
    /// Of the accepted ones: those of a draft model.
    pub model_accepted: u64,
    /// Steps of a draft model.
    pub draft_steps: u64,
    /// Forward passes.
    pub steps: u64,
    /// Sequences of the largest step.
    pub largest_batch: usize,
    /// Sequences over all steps; divided by `steps` it is the mean batch.
    pub batched: u64,
    /// Steps by how many sequences they had.
    pub sequences_per_step: Histogram<7>,
    /// Steps by how many rows they had.
    pub rows_per_step: Histogram<13>,
    /// Requests that were answered by one in work that asked for the same.
    pub shared: u64,
    /// Times that a request was preempted for want of pages.
    pub preempted: u64,
    /// Pages of the KV cache.
    pub pages: usize,
    /// Those that nobody uses and that hold nothing.
    pub free_pages: usize,
    /// Those that nobody uses now and that hold what was computed before.
    pub cached_pages: usize,
    /// Pages that have ever been written to.
    pub touched_pages: usize,
    /// Slots for recurrent state that have ever been written to.
    pub touched_slots: usize,
    /// Pages of a draft model's cache that have ever been written to.
    pub touched_draft_pages: usize,
    /// Time spent in steps (forward passes and sampling).
    pub busy: Duration,
    /// Of that: what a draft model took.
    pub drafting: Duration,
    /// Of that: what grammars took, in answers that have ended.
    pub grammars: Duration,
    /// Tokens that grammars decided, and that were never sampled, in answers that have ended.
    pub forced: u64,
}

/// How often a number was up to 1, 2, 4, 8 and so on; the last range holds all that is larger as well.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Histogram<const N: usize>([u64; N]);

impl<const N: usize> Default for Histogram<N> {
    fn default() -> Self {
        Histogram([0; N])
    }
}

impl<const N: usize> Histogram<N> {
    pub(super) fn count(&mut self, number: usize) {
        let range = number.max(1).next_power_of_two().trailing_zeros() as usize;
        self.0[range.min(N - 1)] += 1;
    }

    /// The upper end of each range, and how often a number fell into it.
    pub fn counts(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().enumerate().map(|(power, count)| (1 << power, *count))
    }
}

impl Stats {
    /// Counts requests of `callers` that ended with an error of this kind.
    pub(super) fn count_error(&mut self, kind: ErrorKind, callers: u64) {
        match kind {
            ErrorKind::Cancelled => self.cancelled += callers,
            _ => self.failed += callers,
        }
    }

    /// Pages that requests in work hold.
    pub fn leased_pages(&self) -> usize {
        self.pages - self.free_pages - self.cached_pages
    }

    /// Requests that have ended, in whatever way.
    pub fn ended(&self) -> u64 {
        self.completed + self.failed + self.cancelled
    }

    /// Sequences in a step, on average.
    pub fn mean_batch(&self) -> f64 {
        if self.steps == 0 { 0.0 } else { self.batched as f64 / self.steps as f64 }
    }

    /// Tokens generated in a second of work, over all requests together.
    pub fn tokens_per_second(&self) -> f64 {
        let busy = self.busy.as_secs_f64();
        if busy > 0.0 { self.completion_tokens as f64 / busy } else { 0.0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_number_falls_into_the_range_that_ends_at_it_or_above() {
        let mut histogram = Histogram::<4>::default();
        for number in [1, 2, 3, 4, 5, 8, 9, 1000] {
            histogram.count(number);
        }
        assert_eq!(histogram.counts().collect::<Vec<_>>(), [(1, 1), (2, 1), (4, 2), (8, 4)]);
    }
}
