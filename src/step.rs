//! The ragged batch: what one forward pass computes, spelled out in integers.
//!
//! A [`Step`] holds rows, one a token, of any number of sequences. Nothing is padded and no two sequences
//! need the same length: prefill, a chunk of it, one decoded token and a verified draft differ only in how
//! many rows their [`Span`] has. Everything a kernel must know stands here; there is no ambient context.

use std::ops::Range;

/// Positions in one page of the KV cache.
pub const PAGE: usize = 16;

/// One forward pass over rows of many sequences.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Step {
    /// The token of each row.
    pub tokens: Vec<u32>,
    /// The position of each row in its own sequence.
    pub positions: Vec<u32>,
    /// Which rows belong to which sequence; the spans cover all rows, in order.
    pub spans: Vec<Span>,
    /// Rows (ascending) whose logits are wanted. The head is computed for these alone.
    pub logits: Vec<u32>,
    /// Rows (ascending) whose final hidden state, after the last norm, is wanted.
    pub hidden: Vec<u32>,
}

/// The rows of one sequence in a [`Step`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Span {
    /// Rows of the step. Their positions are consecutive.
    pub rows: Range<usize>,
    /// The sequence's pages: position `p` lies in page `pages[p / PAGE]`, slot `p % PAGE`. They cover every
    /// position up to the last row's; those before the first row's are already written.
    pub pages: Vec<u32>,
}

impl Span {
    /// Where position `p` of this sequence lies in the cache: `page * PAGE + slot`.
    pub fn slot(&self, position: usize) -> usize {
        self.pages[position / PAGE] as usize * PAGE + position % PAGE
    }
}

impl Step {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Appends `tokens` as the rows of one sequence that start at `position`; returns their rows.
    pub fn push(&mut self, tokens: &[u32], position: usize, pages: Vec<u32>) -> Range<usize> {
        let rows = self.rows()..self.rows() + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((position..position + tokens.len()).map(|p| p as u32));
        self.spans.push(Span { rows: rows.clone(), pages });
        rows
    }
}

/// Pages that hold `positions` positions.
pub fn pages_for(positions: usize) -> usize {
    positions.div_ceil(PAGE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_follow_each_other_and_slots_follow_pages() {
        let mut step = Step::default();
        assert_eq!(step.push(&[7, 8, 9], 15, vec![4, 2]), 0..3);
        assert_eq!(step.push(&[1], 0, vec![3]), 3..4);
        assert_eq!(step.positions, [15, 16, 17, 0]);
        let slots: Vec<_> = (15..18).map(|p| step.spans[0].slot(p)).collect();
        assert_eq!(slots, [4 * PAGE + 15, 2 * PAGE, 2 * PAGE + 1]);
        assert_eq!(pages_for(0), 0);
        assert_eq!(pages_for(16), 1);
        assert_eq!(pages_for(17), 2);
    }
}
