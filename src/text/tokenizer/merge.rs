//! Greedy pair merging, the loop that SentencePiece-BPE and byte-level BPE share.
//!
//! A text is a chain of [`Symbol`]s. Of all neighbours that may merge, the pair with the highest priority
//! does (of equals the leftmost), until none may. [`Pairs`] says what may merge: by the bytes and a score for
//! SentencePiece, by two ids and a rank for BPE. A heap holds the candidates; one that a neighbour's merge
//! has made stale is noticed by its length when it is popped, so n characters cost O(n log n), however long
//! the text is.

use std::collections::BinaryHeap;

use super::vocab::NO_ID;

/// A stretch of the text on its way to being a token.
#[derive(Clone, Copy)]
pub(super) struct Symbol {
    pub start: u32,
    /// In bytes; 0 once it has become part of its left neighbour.
    pub len: u32,
    /// The token it is now, or [`NO_ID`].
    pub id: u32,
    prev: u32,
    next: u32,
}

impl Symbol {
    pub fn bytes<'t>(&self, text: &'t [u8]) -> &'t [u8] {
        text.get(self.start as usize..(self.start + self.len) as usize).unwrap_or_default()
    }
}

/// What a pair of neighbours becomes.
pub(super) struct Pair {
    /// Higher merges first.
    pub priority: u32,
    pub id: u32,
}

pub(super) trait Pairs {
    /// `None` when the two may not merge. `right` follows `left` immediately.
    fn pair(&self, text: &[u8], left: &Symbol, right: &Symbol) -> Option<Pair>;
}

/// A possible merge. `order` is the priority, then the lower position.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Candidate {
    order: u64,
    right: u32,
    len: u32,
    id: u32,
}

const NONE: u32 = u32::MAX;

/// The chain and the heap, kept between words so that they are allocated once.
#[derive(Default)]
pub(super) struct Merger {
    symbols: Vec<Symbol>,
    heap: BinaryHeap<Candidate>,
}

impl Merger {
    pub fn clear(&mut self) {
        self.symbols.clear();
    }

    /// Adds the next `len` bytes as one symbol.
    pub fn push(&mut self, len: usize, id: Option<u32>) {
        let place = self.symbols.len() as u32;
        let start = self.symbols.last().map_or(0, |symbol| symbol.start + symbol.len);
        if let Some(before) = self.symbols.last_mut() {
            before.next = place;
        }
        let prev = place.checked_sub(1).unwrap_or(NONE);
        self.symbols.push(Symbol { start, len: len as u32, id: id.unwrap_or(NO_ID), prev, next: NONE });
    }

    /// Merges until nothing may merge. The texts are shorter than 4 GiB (checked where they come in).
    pub fn merge(&mut self, text: &[u8], pairs: &impl Pairs) {
        let mut first = std::mem::take(&mut self.heap).into_vec();
        first.clear();
        first.extend(
            (1..self.symbols.len() as u32).filter_map(|right| self.candidate(text, pairs, right - 1, right)),
        );
        self.heap = BinaryHeap::from(first);
        while let Some(best) = self.heap.pop() {
            let left_place = NONE - best.order as u32;
            let (Some(&left), Some(&right)) = (self.get(left_place), self.get(best.right)) else { continue };
            if left.len == 0 || right.len == 0 || left.len + right.len != best.len {
                continue;
            }
            self.join(left_place, best);
            let candidates = [
                self.candidate(text, pairs, left.prev, left_place),
                self.candidate(text, pairs, left_place, right.next),
            ];
            self.heap.extend(candidates.into_iter().flatten());
        }
    }

    /// What is left, in order.
    pub fn symbols(&self) -> impl Iterator<Item = &Symbol> {
        self.symbols.iter().filter(|symbol| symbol.len > 0)
    }

    fn get(&self, place: u32) -> Option<&Symbol> {
        self.symbols.get(place as usize)
    }

    fn candidate(
        &self,
        text: &[u8],
        pairs: &impl Pairs,
        left_place: u32,
        right_place: u32,
    ) -> Option<Candidate> {
        let (left, right) = (self.get(left_place)?, self.get(right_place)?);
        let pair = pairs.pair(text, left, right)?;
        let order = u64::from(pair.priority) << 32 | u64::from(NONE - left_place);
        Some(Candidate { order, right: right_place, len: left.len + right.len, id: pair.id })
    }

    /// Makes the right symbol a part of the left one and takes it out of the chain.
    fn join(&mut self, left: u32, merge: Candidate) {
        let Some(right) = self.symbols.get_mut(merge.right as usize) else { return };
        right.len = 0;
        let next = right.next;
        if let Some(symbol) = self.symbols.get_mut(left as usize) {
            (symbol.len, symbol.id, symbol.next) = (merge.len, merge.id, next);
        }
        if let Some(after) = self.symbols.get_mut(next as usize) {
            after.prev = left;
        }
    }
}
