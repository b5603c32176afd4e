//! What a model keeps of a sequence between steps, as the engine sees it: groups of state, in integers.
//!
//! A *paged* group is layers with keys and values: one page for every [`PAGE`](crate::step::PAGE) positions,
//! and where the layers have a window, only for those that a row still sees. All paged groups of a model
//! lease their pages from one pool, so memory moves freely between them (vLLM's hybrid KV cache manager does
//! the same); a model with many more layers of one kind than of the other gives them several groups, so that
//! pages are of one size (see [`KvLayout`](super::storage::KvLayout)).
//!
//! *Slots* are of a fixed size, whatever the length of the sequence: one slot holds the state of all
//! recurrent layers of a sequence (the inputs that a short convolution still needs, the state of a scan).
//! Slots have a pool of their own, and hold the snapshots in the prefix tree too.

use crate::step::{PAGE, first_seen, pages_for};

/// The groups of a model, and how much there is for them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StateLayout {
    /// At least one.
    pub paged: Vec<PagedGroup>,
    /// Pages in the pool of all paged groups.
    pub pages: usize,
    /// Slots for recurrent state; 0: the model has none.
    pub slots: usize,
}

/// A group of layers with keys and values.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PagedGroup {
    /// A row sees positions less than this far before it, itself among them; `None`: all.
    pub window: Option<usize>,
}

impl StateLayout {
    /// One group without a window and no state, with `pages` pages.
    pub fn plain(pages: usize) -> Self {
        StateLayout { paged: vec![PagedGroup::default()], pages, slots: 0 }
    }

    /// Whether the model has layers with a recurrent state.
    pub fn has_state(&self) -> bool {
        self.slots > 0
    }

    /// The longest sequence, up to `context` positions, that all pages together can hold.
    pub fn longest(&self, context: usize, rows: usize) -> usize {
        let fits = |len: usize| self.pages_at_most(len, rows) <= self.pages;
        let (mut fitting, mut end) = (0, context + 1);
        while end - fitting > 1 {
            let middle = fitting + (end - fitting) / 2;
            match fits(middle) {
                true => fitting = middle,
                false => end = middle,
            }
        }
        fitting
    }

    /// Pages that a sequence of `len` positions holds at most at any moment, when a step computes at most
    /// `rows` of them.
    pub fn pages_at_most(&self, len: usize, rows: usize) -> usize {
        self.paged.iter().map(|group| group.pages_at_most(len, rows)).sum()
    }
}

impl std::fmt::Display for StateLayout {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let windowed = self.paged.iter().filter(|group| group.window.is_some()).count();
        let full = self.paged.len() - windowed;
        let window = self.paged.iter().filter_map(|group| group.window).max().unwrap_or(0);
        match (full, windowed) {
            (full, 0) => write!(f, "{full} that see all positions")?,
            (0, windowed) => write!(f, "{windowed} with a window of {window} positions")?,
            (full, windowed) => {
                write!(f, "{full} that see all positions, {windowed} with a window of {window}")?;
            }
        }
        match self.has_state() {
            true => write!(f, ", and {} slots of recurrent state", self.slots),
            false => Ok(()),
        }
    }
}

impl PagedGroup {
    /// See [`StateLayout::pages_at_most`]. A window and a step may both begin and end in the middle of a
    /// page.
    pub fn pages_at_most(self, len: usize, rows: usize) -> usize {
        let all = pages_for(len);
        self.window.map_or(all, |window| all.min(pages_for(window.saturating_add(rows)).saturating_add(2)))
    }

    /// The page before which nothing is needed any more once `position` is the next one. Counted from the
    /// last border of a page, so that a request that goes on from that border finds all that it sees; the
    /// page before the border is always among them, so whoever holds a place in the prefix tree holds a page
    /// of it.
    pub fn first_needed(self, position: usize) -> usize {
        let border = position / PAGE;
        first_seen(self.window, border * PAGE).min(border.saturating_sub(1))
    }
}
