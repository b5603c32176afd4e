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
    /// position below `len`; those before the first row's are already written.
    pub pages: Vec<u32>,
    /// Positions that are written after this step. Bidirectional attention sees up to here, also from rows
    /// that lie further in front ([`Step::only`]).
    pub len: usize,
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
        self.spans.push(Span { rows: rows.clone(), pages, len: position + tokens.len() });
        rows
    }

    /// The same step with `rows` (ascending) alone: what attention reads for them is in the cache already.
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
                None => step.spans.push(Span { rows: own..own + 1, ..span.clone() }),
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
        let slots: Vec<_> = (15..18).map(|p| step.spans[0].slot(p)).collect();
        assert_eq!(slots, [4 * PAGE + 15, 2 * PAGE, 2 * PAGE + 1]);
        // Rows 1 and 2 follow each other; row 3 is of another sequence.
        let some = step.only(&[1, 2, 3]);
        assert_eq!((&some.tokens[..], &some.positions[..]), (&[8, 9, 1][..], &[16, 17, 0][..]));
        let spans: Vec<_> = some.spans.iter().map(|span| (span.rows.clone(), &span.pages[..])).collect();
        assert_eq!(spans, [(0..2, &[4, 2][..]), (2..3, &[3][..])]);
        // The first row alone still knows how long its sequence is.
        assert_eq!(step.only(&[0]).spans[0].len, 18);
        let apart = step.only(&[0, 2]);
        assert_eq!(apart.positions, [15, 17]);
        assert_eq!(apart.spans.iter().map(|span| span.rows.clone()).collect::<Vec<_>>(), [0..1, 1..2]);
        assert_eq!(step.only(&[]), Step::default());
        assert_eq!(pages_for(0), 0);
        assert_eq!(pages_for(16), 1);
        assert_eq!(pages_for(17), 2);
    }
}
