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
    /// The sequence's page table, one a paged group of layers: position `p` lies in page `pages[group][p /
    /// PAGE]`, slot `p % PAGE`. Each covers every position below `len`; those before the first row's are
    /// already written. Pages that lie behind a group's window are [`BEHIND`]: they were given back, and no
    /// row of the span sees them.
    pub pages: Vec<Vec<u32>>,
    /// Where the layers with a recurrent state find and leave it; default where the model has none.
    pub state: StateTable,
    /// The number of the adapter that its rows have, if they have one (`lora::AdapterSlots`).
    pub adapter: Option<u32>,
    /// Positions that are written after this step. Bidirectional attention sees up to here, also from rows
    /// that lie further in front ([`Step::only`]).
    pub len: usize,
}

/// What stands in a page table for a page that is no longer held: any page there is, since nobody reads it.
pub const BEHIND: u32 = 0;

/// The state slots of one sequence in a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct StateTable {
    /// The state before the span's first row; `None`: zeros, the state before position 0.
    pub read: Option<u32>,
    /// The states to write down, in ascending order of rows. Everything is read before anything is written.
    pub writes: Vec<StateWrite>,
}

/// The state after the first `rows` rows of a span goes to `slot`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StateWrite {
    pub rows: usize,
    pub slot: u32,
}

impl Span {
    /// Where position `p` of this sequence lies in the cache of a group: `page * PAGE + slot`.
    pub fn slot(&self, group: usize, position: usize) -> usize {
        self.pages[group][position / PAGE] as usize * PAGE + position % PAGE
    }
}

/// The first page that a row at `position` sees, and that all later rows see: those before it can go.
pub fn first_seen(window: Option<usize>, position: usize) -> usize {
    window.map_or(0, |window| (position + 1).saturating_sub(window) / PAGE)
}

impl Step {
    /// The number of rows.
    pub fn rows(&self) -> usize {
        self.tokens.len()
    }

    /// Appends `tokens` as the rows of one sequence that start at `position`, for a model with one group of
    /// pages and no state; returns their rows.
    pub fn push(&mut self, tokens: &[u32], position: usize, pages: Vec<u32>) -> Range<usize> {
        self.push_span(tokens, position, vec![pages], StateTable::default())
    }

    /// Appends `tokens` as the rows of one sequence that start at `position`, with a page table for each
    /// group; returns their rows.
    pub fn push_span(
        &mut self,
        tokens: &[u32],
        position: usize,
        pages: Vec<Vec<u32>>,
        state: StateTable,
    ) -> Range<usize> {
        let rows = self.rows()..self.rows() + tokens.len();
        self.tokens.extend_from_slice(tokens);
        self.positions.extend((position..position + tokens.len()).map(|p| p as u32));
        let len = position + tokens.len();
        self.spans.push(Span { rows: rows.clone(), pages, state, adapter: None, len });
        rows
    }

    /// The same step with `rows` (ascending) alone: what attention reads for them is in the cache already. It
    /// writes no recurrent state.
    pub fn only(&self, rows: &[u32]) -> Step {
        let mut step = Step::default();
        let mut spans = self.spans.iter();
        let mut span = spans.next();
        for &row in rows {
            let at = row as usize;
            while span.is_some_and(|span| span.rows.end <= at) {
                span = spans.next();
            }
            let (Some(span), Some(&token), Some(&position)) =
                (span, self.tokens.get(at), self.positions.get(at))
            else {
                break;
            };
            let own = step.rows();
            step.tokens.push(token);
            step.positions.push(position);
            // A row that follows the one before it in the same sequence is of its span.
            let follows = at > span.rows.start && own > 0 && rows[own - 1] + 1 == row;
            match step.spans.last_mut().filter(|_| follows) {
                Some(last) => last.rows.end += 1,
                None => step.spans.push(Span {
                    rows: own..own + 1,
                    pages: span.pages.clone(),
                    state: StateTable::default(),
                    adapter: span.adapter,
                    len: span.len,
                }),
            }
        }
        step
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
        let slots: Vec<_> = (15..18).map(|p| step.spans[0].slot(0, p)).collect();
        assert_eq!(slots, [4 * PAGE + 15, 2 * PAGE, 2 * PAGE + 1]);
        // Rows 1 and 2 follow each other; row 3 is of another sequence.
        let some = step.only(&[1, 2, 3]);
        assert_eq!((&some.tokens[..], &some.positions[..]), (&[8, 9, 1][..], &[16, 17, 0][..]));
        let spans: Vec<_> = some.spans.iter().map(|span| (span.rows.clone(), &span.pages[0][..])).collect();
        assert_eq!(spans, [(0..2, &[4, 2][..]), (2..3, &[3][..])]);
        // The first row alone still knows how long its sequence is.
        assert_eq!(step.only(&[0]).spans[0].len, 18);
        let apart = step.only(&[0, 2]);
        assert_eq!(apart.positions, [15, 17]);
        assert_eq!(apart.spans.iter().map(|span| span.rows.clone()).collect::<Vec<_>>(), [0..1, 1..2]);
        assert_eq!(step.only(&[]), Step::default());
        let windows = [None, Some(1), Some(16), Some(17)].map(|window| first_seen(window, 32));
        assert_eq!(windows, [0, 2, 1, 1]);
        assert_eq!(pages_for(0), 0);
        assert_eq!(pages_for(16), 1);
        assert_eq!(pages_for(17), 2);
    }
}
