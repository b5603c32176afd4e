//! A step that was checked against a cache, once: what the kernels trust.
//!
//! The pages of every span were walked twice a layer before, 2 x layers times a step for the same integers.

use std::borrow::Cow;
use std::ops::{Deref, Range};

use super::{KvCache, misuse};
use crate::error::Result;
use crate::step::{PAGE, Span, StateTable, Step};

/// A [`Step`] whose spans cover its rows in order, whose positions are consecutive in each span, and whose
/// pages and positions all lie in the cache that it was checked against.
#[derive(Debug)]
pub struct CheckedStep<'a> {
    step: Cow<'a, Step>,
    /// Per group, the row of the cache that each row of the step is written to: `page * PAGE + slot`.
    slots: Vec<Vec<u32>>,
    /// Pages of the cache.
    pages: usize,
}

impl Deref for CheckedStep<'_> {
    type Target = Step;

    fn deref(&self) -> &Step {
        &self.step
    }
}

impl<'a> CheckedStep<'a> {
    /// # Errors
    /// `Internal` that says which span is wrong, and in what.
    pub(super) fn new(step: &'a Step, cache: &KvCache) -> Result<Self> {
        check(step, cache)?;
        let slots = (0..cache.layout().windows().len()).map(|group| slots(step, group)).collect();
        Ok(CheckedStep { step: Cow::Borrowed(step), slots, pages: cache.pages() })
    }

    /// The same step with `rows` (ascending) alone, see [`Step::only`]. What held for all rows holds for
    /// some.
    pub fn only(&self, rows: &[u32]) -> CheckedStep<'static> {
        let step = self.step.only(rows);
        let pick = |slots: &Vec<u32>| {
            rows.iter().filter_map(|&row| slots.get(row as usize).copied()).collect::<Vec<_>>()
        };
        let slots = self.slots.iter().map(pick).collect();
        CheckedStep { step: Cow::Owned(step), slots, pages: self.pages }
    }

    /// Where the rows of the step are written to in the pages of a group.
    ///
    /// # Errors
    /// `Internal` when the step was checked against a cache without such a group.
    pub(super) fn slots(&self, group: usize) -> Result<&[u32]> {
        self.slots.get(group).map(Vec::as_slice).ok_or_else(foreign)
    }

    /// That `cache` is like the one that the step was checked against.
    pub(super) fn belongs_to(&self, cache: &KvCache) -> Result<()> {
        match cache.pages() == self.pages && cache.layout().windows().len() == self.slots.len() {
            true => Ok(()),
            false => Err(foreign()),
        }
    }
}

fn foreign() -> crate::error::Error {
    misuse("a step was checked against another cache than the one that it is used with")
}

/// Spans cover the rows in order, positions are consecutive, and every page exists.
fn check(step: &Step, cache: &KvCache) -> Result<()> {
    let mut next = 0;
    for (index, span) in step.spans.iter().enumerate() {
        let bad = |what: &str| Err(misuse(format!("span {index} of a step: {what}")));
        let Range { start, end } = span.rows;
        let Some(positions) = step.positions.get(start..end).filter(|_| start == next && start < end) else {
            return bad("its rows do not follow the span before it");
        };
        if positions.windows(2).any(|pair| pair[0].checked_add(1) != Some(pair[1])) {
            return bad("its positions are not consecutive");
        }
        let last = positions.last().map_or(0, |&p| p as usize);
        if last >= span.len {
            return bad(&format!("its length {} does not cover position {last}", span.len));
        }
        let windows = cache.layout().windows();
        if span.pages.len() != windows.len() {
            return bad(&format!("{} page tables for {} groups", span.pages.len(), windows.len()));
        }
        for table in &span.pages {
            if (span.len - 1) / PAGE >= table.len() {
                return bad(&format!("{} pages do not cover position {}", table.len(), span.len - 1));
            }
            // Those behind the window too: a kernel may load what it then takes as unseen.
            if let Some(page) = table.iter().find(|&&page| page as usize >= cache.pages()) {
                return bad(&format!("page {page} of a cache of {} pages", cache.pages()));
            }
        }
        check_state(span, cache).or_else(|what| bad(&what))?;
        next = end;
    }
    check_writes(step)?;
    match next == step.rows() && step.positions.len() == step.rows() {
        true => Ok(()),
        false => Err(misuse(format!("the spans of a step cover {next} of {} rows", step.rows()))),
    }
}

/// Slots exist, and states are written in the order of rows that there are.
fn check_state(span: &Span, cache: &KvCache) -> std::result::Result<(), String> {
    let StateTable { read, writes } = &span.state;
    let mut slots = read.iter().copied().chain(writes.iter().map(|write| write.slot));
    if let Some(slot) = slots.find(|&slot| slot as usize >= cache.slots()) {
        return Err(format!("slot {slot} of {}", cache.slots()));
    }
    let inside = writes.iter().all(|write| (1..=span.rows.len()).contains(&write.rows));
    match inside && writes.is_sorted_by_key(|write| write.rows) {
        true => Ok(()),
        false => Err(format!("states are written as {writes:?}")),
    }
}

/// No two spans write to one slot: what stood there would be left to chance.
fn check_writes(step: &Step) -> Result<()> {
    let of = |(number, span): (usize, &Span)| {
        span.state.writes.iter().map(move |write| (write.slot, number)).collect::<Vec<_>>()
    };
    let mut writes: Vec<(u32, usize)> = step.spans.iter().enumerate().flat_map(of).collect();
    writes.sort_unstable();
    match writes.windows(2).find(|pair| pair[0].0 == pair[1].0 && pair[0].1 != pair[1].1) {
        Some(pair) => Err(misuse(format!("spans {} and {} write to one slot", pair[0].1, pair[1].1))),
        None => Ok(()),
    }
}

/// The cache row of every row of a checked step in a group.
fn slots(step: &Step, group: usize) -> Vec<u32> {
    let slots = step.spans.iter().flat_map(|span| {
        let position = |row| step.positions.get(row).map_or(0, |&p| p as usize);
        span.rows.clone().map(move |row| span.slot(group, position(row)) as u32)
    });
    slots.collect()
}
