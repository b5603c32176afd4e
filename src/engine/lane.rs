//! A lane: one row of positions that is being computed, with the pages that it lies in.
//!
//! ```text
//! 0          first        computed          len
//! |-- another's --|-- ours, computed --|-- gap --|      tokens[..] holds [first, len)
//! |-- in the prefix tree: `kept` pages --|              (only lanes with first = 0)
//! ```
//! Most requests have one lane, from position 0. A scored candidate is a lane that begins where the prompt
//! ends, in pages of which the first are shared.
//!
//! A lane takes from the prefix tree whatever pages of its gap are there ([`Lane::adopt`]), before it begins and
//! between any two steps, and gives it each page that it fills ([`Lane::keep`]). So lanes with a common prefix
//! need no bookkeeping among each other: one computes a page ([`Lane::next_page`] tells which), the others
//! stand still for that step and find it in the tree.

use std::ops::Range;

use super::draft::Draft;
use super::pooling::Rows;
use super::schedule::Gap;
use crate::cache::pages::Lease;
use crate::cache::prefix::{Chunk, Node, PrefixCache, ROOT};
use crate::step::{PAGE, Step, pages_for};

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
    /// Tokens that may follow, to be checked in the next step.
    pub draft: Option<Draft>,
    /// Pages of the lease that are in the prefix tree, and the node of the last of them.
    kept: usize,
    node: Node,
}

/// What is wanted of the rows of a lane.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// The logits of the row that closes the gap.
    Last,
    /// The logits of every row from this position on.
    From(usize),
    /// The logits of every row.
    Every,
    /// Hidden states.
    Hidden(Rows),
}

/// Where the wanted rows of a lane stand in the output of the step.
pub(super) struct Taken {
    pub rows: usize,
    pub logits: Range<usize>,
    pub hidden: Range<usize>,
}

impl Lane {
    pub fn new(first: usize, tokens: Vec<u32>, lease: Lease, want: Want, part: usize) -> Self {
        Lane { first, tokens, computed: first, lease, want, part, draft: None, kept: 0, node: ROOT }
    }

    pub fn len(&self) -> usize {
        self.first + self.tokens.len()
    }

    pub fn gap(&self) -> Gap {
        Gap { tokens: self.len() - self.computed, every: self.want == Want::Every, ..Gap::default() }
    }

    /// Pages that are missing for its gap.
    pub fn short(&self) -> usize {
        pages_for(self.len()).saturating_sub(self.lease.len())
    }

    /// Takes the pages of its gap that are in the tree; returns how many positions it has gained. The last
    /// position is always left to compute: its row is what is wanted.
    pub fn adopt(&mut self, cache: &mut PrefixCache) -> usize {
        let before = self.computed;
        while let Some(chunk) = self.next_chunk(cache)
            && let Some((page, node)) = cache.find(self.node, &chunk)
        {
            if self.kept < self.lease.len() {
                let own = self.lease.replace(self.kept, page);
                cache.release(own);
            } else {
                self.lease.append(page);
            }
            self.kept += 1;
            self.node = node;
            self.computed = self.kept * PAGE;
        }
        self.computed - before
    }

    /// The page that it will fill next, if that is one that others could need as well.
    pub fn next_page(&self, cache: &PrefixCache) -> Option<(Node, Chunk)> {
        Some((self.node, self.next_chunk(cache)?))
    }

    /// The tokens of the first page that is not in the tree, if it need not compute each row itself and
    /// knows all of them and one more.
    fn next_chunk(&self, cache: &PrefixCache) -> Option<Chunk> {
        // From here on each row is to be computed.
        let wanted = match self.want {
            Want::Last | Want::Hidden(Rows::Last) => self.tokens.len().saturating_sub(1),
            Want::From(position) => position,
            Want::Every | Want::Hidden(_) => 0,
        };
        let begin = self.kept * PAGE;
        if self.first > 0 || !cache.enabled() || begin + PAGE > wanted {
            return None;
        }
        self.tokens[begin..begin + PAGE].try_into().ok()
    }

    /// Gives the tree the pages that are full now.
    pub fn keep(&mut self, cache: &mut PrefixCache) {
        if self.first > 0 || !cache.enabled() {
            return;
        }
        while (self.kept + 1) * PAGE <= self.computed {
            let begin = self.kept * PAGE;
            let Ok(chunk) = Chunk::try_from(&self.tokens[begin..begin + PAGE]) else { return };
            self.node = cache.insert(self.node, &chunk, &mut self.lease, self.kept);
            self.kept += 1;
        }
    }

    /// Gives all pages back: everything is to be computed, or found, again.
    pub fn release(&mut self, cache: &mut PrefixCache) {
        cache.release(std::mem::take(&mut self.lease));
        (self.computed, self.kept, self.node) = (self.first, 0, ROOT);
    }

    /// Appends the next `rows` rows to the step, and those of the draft.
    pub fn put(&self, rows: usize, step: &mut Step) -> Taken {
        let end = self.computed + rows;
        let closes = end == self.len();
        let draft = self.draft.as_ref().map_or(&[][..], |draft| &draft.tokens);
        let tokens = [&self.tokens[self.computed - self.first..end - self.first], draft].concat();
        let pages = self.lease.pages()[..pages_for(end + draft.len())].to_vec();
        let (logits, hidden) = (step.logits.len(), step.hidden.len());
        let span = step.push(&tokens, self.computed, pages);
        let span = span.start as u32..span.end as u32;
        match self.want {
            Want::Every => step.logits.extend(span),
            Want::From(position) => {
                step.logits.extend(span.start + position.saturating_sub(self.computed) as u32..span.end);
            }
            Want::Last if closes => step.logits.extend(span.end - 1 - draft.len() as u32..span.end),
            Want::Hidden(Rows::All) => step.hidden.extend(span),
            Want::Hidden(Rows::Last) if closes => step.hidden.push(span.end - 1),
            Want::Hidden(Rows::First) if self.computed == 0 => step.hidden.push(span.start),
            Want::Last | Want::Hidden(_) => {}
        }
        Taken { rows, logits: logits..step.logits.len(), hidden: hidden..step.hidden.len() }
    }
}
