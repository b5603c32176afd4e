//! Who must be found without asking everybody: requests by what they ask, callers by their id, deadlines by
//! their time.
//!
//! A queue may hold a million requests, and each of them comes, goes and may be cancelled. Whatever walked
//! the queue for one of them would make the whole quadratic.

use std::collections::{BTreeSet, HashMap};
use std::time::Instant;

use super::channel::Subscriber;
use super::sequence::Sequence;

#[derive(Default)]
pub(super) struct Index {
    /// Sequences in work or in the queue that may be joined, by the hash of what they ask.
    questions: HashMap<u64, Vec<u64>>,
    /// The sequences of callers that joined one. Any other caller has the id of its sequence.
    joined: HashMap<u64, u64>,
    /// When which caller must be told that it is too late.
    deadlines: BTreeSet<(Instant, u64)>,
}

impl Index {
    /// A new sequence.
    pub fn enter(&mut self, sequence: &Sequence) {
        if let Some(question) = sequence.question {
            self.questions.entry(question).or_default().push(sequence.id);
        }
        sequence.subscribers.subscribers().for_each(|subscriber| self.expect(subscriber));
    }

    /// A subscriber that joins the sequence `id`.
    pub fn join(&mut self, subscriber: &Subscriber, id: u64) {
        self.joined.insert(subscriber.id, id);
        self.expect(subscriber);
    }

    fn expect(&mut self, subscriber: &Subscriber) {
        self.deadlines.extend(subscriber.deadline.map(|deadline| (deadline, subscriber.id)));
    }

    /// A subscriber that goes before its sequence ends.
    pub fn forget(&mut self, subscriber: u64, deadline: Option<Instant>) {
        self.joined.remove(&subscriber);
        if let Some(deadline) = deadline {
            self.deadlines.remove(&(deadline, subscriber));
        }
    }

    /// A sequence that has ended, and all who are still with it.
    pub fn leave(&mut self, sequence: &Sequence) {
        if let Some(question) = sequence.question
            && let Some(ids) = self.questions.get_mut(&question)
        {
            ids.retain(|&id| id != sequence.id);
            if ids.is_empty() {
                self.questions.remove(&question);
            }
        }
        for subscriber in sequence.subscribers.subscribers() {
            self.forget(subscriber.id, subscriber.deadline);
        }
    }

    /// Sequences that may ask the same.
    pub fn alike(&self, question: Option<u64>) -> &[u64] {
        question.and_then(|question| self.questions.get(&question)).map_or(&[], Vec::as_slice)
    }

    /// The sequence that a subscriber is with, or was.
    pub fn sequence_of(&self, subscriber: u64) -> u64 {
        self.joined.get(&subscriber).copied().unwrap_or(subscriber)
    }

    /// A subscriber whose deadline has passed. Whoever asks sees it off, and so it is not told again.
    pub fn late(&mut self, now: Instant) -> Option<u64> {
        let first = self.deadlines.first().copied().filter(|&(deadline, _)| deadline <= now)?;
        self.deadlines.remove(&first);
        Some(first.1)
    }

    /// The next time somebody must be told that it is too late.
    pub fn next_deadline(&self) -> Option<Instant> {
        self.deadlines.first().map(|&(deadline, _)| deadline)
    }
}
