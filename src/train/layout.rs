//! How examples become the rows of a step: what they begin with alike is there once.
//!
//! ```text
//!   a b c d e        rows: a b c | d e | d f g | h
//!   a b c d f g      spans:  0     -      -      -       each continues the one that it hangs on
//!   a b c h
//! ```
//!
//! Tokens without a loss behind the last trained one are no rows: nothing sees them. A shared row may predict
//! several tokens, where texts part.

use std::ops::Range;

use super::step::Example;
use crate::error::{Error, Result};
use crate::kernels::{RowTargets, SpanRows};
use crate::step::{StateTable, Step, pages_for};

/// A step over some examples.
#[derive(Debug, Default)]
pub(super) struct Layout {
    pub step: Step,
    /// Which rows see which: of all rows, and of those that predict something.
    pub spans: Vec<SpanRows>,
    pub some: Vec<SpanRows>,
    /// Rows that predict something, ascending, and what.
    pub wanted: Vec<u32>,
    pub targets: Vec<RowTargets>,
    /// Of each example and each of its targets: which of the wanted rows, and which of its targets.
    pub places: Vec<Vec<(usize, usize)>>,
}

impl Layout {
    /// `groups`: page tables that a span of the model has.
    ///
    /// # Errors
    /// `InvalidRequest` naming an example whose targets do not lie in it.
    pub fn new(examples: &[Example], groups: usize) -> Result<Layout> {
        examples.iter().enumerate().try_for_each(|(index, example)| check(index, example))?;
        let texts: Vec<&[u32]> = examples.iter().map(rows_of).collect();
        let mut order: Vec<usize> = (0..texts.len()).filter(|&at| !texts[at].is_empty()).collect();
        order.sort_by_key(|&at| texts[at]);
        let mut layout = Layout::default();
        let mut paths = vec![Vec::new(); texts.len()];
        layout.grow(&texts, &order, 0, &[], groups, &mut paths);
        layout.aim(examples, &paths);
        Ok(layout)
    }

    /// Rows for the texts of a group (sorted), which are alike up to `depth`, where the rows `path` end.
    fn grow(
        &mut self,
        texts: &[&[u32]],
        group: &[usize],
        depth: usize,
        path: &[Range<usize>],
        groups: usize,
        paths: &mut [Vec<Range<usize>>],
    ) {
        let (Some(&first), Some(&last)) = (group.first(), group.last()) else { return };
        // Sorted: what the first and the last have in common, all have.
        let common = texts[first].iter().zip(texts[last]).take_while(|(a, b)| a == b).count();
        let mut path = path.to_vec();
        if common > depth {
            path.push(self.push(&texts[first][depth..common], depth, &path, groups));
        }
        let ended = group.iter().take_while(|&&at| texts[at].len() == common).count();
        group[..ended].iter().for_each(|&at| paths[at] = path.clone());
        for branch in group[ended..].chunk_by(|&a, &b| texts[a][common] == texts[b][common]) {
            self.grow(texts, branch, common, &path, groups, paths);
        }
    }

    /// A span that continues those of `path`; its rows.
    fn push(&mut self, tokens: &[u32], at: usize, path: &[Range<usize>], groups: usize) -> Range<usize> {
        // There are no pages: keys are found by rows. One page stands for all, so that the step is whole.
        let pages = vec![vec![0; pages_for(at + tokens.len())]; groups];
        let rows = self.step.push_span(tokens, at, pages, StateTable::default());
        let keys = path.iter().cloned().chain([rows.clone()]).collect();
        let positions = (at..at + tokens.len()).collect();
        self.spans.push(SpanRows { queries: rows.clone(), positions, keys });
        rows
    }

    /// The rows that predict something.
    fn aim(&mut self, examples: &[Example], paths: &[Vec<Range<usize>>]) {
        let mut predicted: Vec<Vec<u32>> = vec![Vec::new(); self.step.rows()];
        let mut places = Vec::new();
        for (example, path) in examples.iter().zip(paths) {
            let rows: Vec<usize> = path.iter().cloned().flatten().collect();
            let mut of_example = Vec::new();
            for target in example.targets.iter().cloned().flatten() {
                let of_row = &mut predicted[rows[target - 1]];
                of_example.push((rows[target - 1], of_row.len()));
                of_row.push(example.ids[target]);
            }
            places.push(of_example);
        }
        let mut numbers = vec![0; predicted.len()];
        for (row, targets) in predicted.into_iter().enumerate().filter(|(_, targets)| !targets.is_empty()) {
            numbers[row] = self.wanted.len();
            self.wanted.push(row as u32);
            self.targets.push(RowTargets(targets));
        }
        places.iter_mut().flatten().for_each(|(row, _)| *row = numbers[*row]);
        self.places = places;
        self.some = self.spans.iter().filter_map(|span| self.part(span)).collect();
    }

    /// The wanted rows of a span, if it has some.
    fn part(&self, span: &SpanRows) -> Option<SpanRows> {
        let before = |end: usize| self.wanted.partition_point(|&row| (row as usize) < end);
        let queries = before(span.queries.start)..before(span.queries.end);
        let position = |&row: &u32| span.positions[row as usize - span.queries.start];
        let positions = self.wanted[queries.clone()].iter().map(position).collect();
        (!queries.is_empty()).then(|| SpanRows { queries, positions, keys: span.keys.clone() })
    }
}

fn check(index: usize, example: &Example) -> Result<()> {
    let mut end = 1;
    for range in &example.targets {
        if range.start < end || range.end < range.start || range.end > example.ids.len() {
            return Err(Error::invalid(format!(
                "example {index}: the targets {range:?} of {} tokens are not ascending, or not inside",
                example.ids.len()
            )));
        }
        end = range.end;
    }
    Ok(())
}

/// The tokens that a trained one sees.
fn rows_of(example: &Example) -> &[u32] {
    let last = example.targets.iter().rev().find(|range| !range.is_empty());
    &example.ids[..last.map_or(0, |range| range.end - 1)]
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init)]
mod tests {
    use super::*;
    use crate::step::Span;

    fn tokens(step: &Step) -> Vec<&[u32]> {
        step.spans.iter().map(|Span { rows, .. }| &step.tokens[rows.clone()]).collect()
    }

    fn example(ids: &[u32], targets: &[Range<usize>]) -> Example {
        Example { ids: ids.into(), targets: targets.to_vec() }
    }

    #[test]
    fn what_texts_begin_with_is_there_once() {
        let examples = [
            example(&[1, 2, 3, 4, 5, 9], &[5..6]),
            example(&[1, 2, 3, 8], &[3..4]),
            example(&[1, 2, 3, 4, 6, 7, 9], &[4..5, 6..7]),
            example(&[1, 2, 3], &[]),
            example(&[1, 2, 3, 8, 8, 8], &[3..4]),
        ];
        let layout = Layout::new(&examples, 2).unwrap();
        assert_eq!(tokens(&layout.step), [&[1, 2, 3][..], &[4], &[5], &[6, 7]]);
        assert_eq!(layout.step.positions, [0, 1, 2, 3, 4, 4, 5]);
        assert_eq!(layout.spans[3].keys, [0..3, 3..4, 5..7]);
        assert_eq!(layout.spans[3].positions, [4, 5]);
        // Row 2 predicts 8 twice, row 3 a 6, and the ends of the longer texts their last tokens.
        assert_eq!(layout.wanted, [2, 3, 4, 6]);
        let targets: Vec<&[u32]> = layout.targets.iter().map(|row| &row.0[..]).collect();
        assert_eq!(targets, [&[8, 8][..], &[6], &[9], &[9]]);
        assert_eq!(layout.places, [vec![(2, 0)], vec![(0, 0)], vec![(1, 0), (3, 0)], vec![], vec![(0, 1)]]);
        let some: Vec<_> =
            layout.some.iter().map(|span| (span.queries.clone(), &span.positions[..])).collect();
        assert_eq!(some, [(0..1, &[2][..]), (1..2, &[3]), (2..3, &[4]), (3..4, &[5])]);
    }

    #[test]
    fn targets_lie_inside() {
        for targets in [vec![0..1], vec![2..4], vec![2..3, 1..2], vec![1..usize::MAX]] {
            let error = Layout::new(&[example(&[1, 2, 3], &targets)], 1).unwrap_err();
            assert!(error.message().contains("example 0"), "{error}");
        }
        assert_eq!(Layout::new(&[], 1).unwrap().step.rows(), 0);
    }
}
