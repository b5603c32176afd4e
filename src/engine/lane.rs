//! A lane: one row of positions that is being computed, with the pages that it lies in.
//!
//! ```text
//! 0          first        computed          len
//! |-- another's --|-- ours, computed --|-- gap --|      tokens[..] holds [first, len)
//! ```
//! Most requests have one lane, from position 0. A scored candidate is a lane that begins where the prompt
//! ends, in pages of which the first are shared. A prefix that is found in a cache will be the same case.

use std::ops::Range;

use super::request::Pooling;
use super::schedule::Gap;
use crate::cache::pages::Lease;
use crate::step::{Step, pages_for};

pub(super) struct Lane {
    /// The position of `tokens[0]`; all before it were computed by another lane.
    pub first: usize,
    pub tokens: Vec<u32>,
    /// Positions whose keys and values are in the pages.
    pub computed: usize,
    pub lease: Lease,
    pub want: Want,
    /// The candidate that a scoring lane belongs to.
    pub part: usize,
}

/// What is wanted of the rows of a lane.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// The logits of the row that closes the gap.
    Last,
    /// The logits of every row.
    Every,
    /// Hidden states.
    Hidden(Pooling),
}

/// Where the wanted rows of a lane stand in the output of the step.
pub(super) struct Taken {
    pub rows: usize,
    pub logits: Range<usize>,
    pub hidden: Range<usize>,
}

impl Lane {
    pub fn new(first: usize, tokens: Vec<u32>, lease: Lease, want: Want, part: usize) -> Self {
        Lane { first, tokens, computed: first, lease, want, part }
    }

    pub fn len(&self) -> usize {
        self.first + self.tokens.len()
    }

    pub fn gap(&self) -> Gap {
        Gap { tokens: self.len() - self.computed, every: self.want == Want::Every }
    }

    /// Appends the next `rows` rows to the step.
    pub fn put(&self, rows: usize, step: &mut Step) -> Taken {
        let end = self.computed + rows;
        let tokens = &self.tokens[self.computed - self.first..end - self.first];
        let pages = self.lease.pages()[..pages_for(end)].to_vec();
        let (logits, hidden) = (step.logits.len(), step.hidden.len());
        let span = step.push(tokens, self.computed, pages);
        let span = span.start as u32..span.end as u32;
        let closes = end == self.len();
        match self.want {
            Want::Every => step.logits.extend(span),
            Want::Last if closes => step.logits.push(span.end - 1),
            Want::Hidden(Pooling::Mean) => step.hidden.extend(span),
            Want::Hidden(Pooling::Last) if closes => step.hidden.push(span.end - 1),
            Want::Hidden(Pooling::First) if self.computed == 0 => step.hidden.push(span.start),
            Want::Last | Want::Hidden(_) => {}
        }
        Taken { rows, logits: logits..step.logits.len(), hidden: hidden..step.hidden.len() }
    }
}
