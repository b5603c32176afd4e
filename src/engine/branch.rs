//! A branch: one row of positions that is being computed, with the state that it lies in.
//!
//! ```text
//! 0          first        computed          len
//! |-- another's --|-- ours, computed --|-- backlog --|      tokens[..] holds [first, len)
//! |-- in the prefix tree: `place.depth` pages --|        (only branches with first = 0)
//! ```
//! Most requests have one branch, from position 0. A scored candidate is a branch that begins where the
//! prompt ends, in pages of which the first are shared.
//!
//! A branch takes from the prefix tree whatever it can go on from ([`Branch::adopt`]), before it begins and
//! between any two steps, and gives it each page that it fills ([`Branch::commit`]). So branches with a
//! common prefix need no bookkeeping among each other: one computes a page ([`Branch::path`] tells which),
//! the others stand still for that step and find it in the tree.
//!
//! Pages behind the window of a group go back as soon as they are ([`Branch::commit`]); those of windowed
//! groups are leased a step ahead, not for the whole prompt. Where the model has recurrent state, the branch
//! has a slot of its own, and leaves snapshots in the tree: at the end of its prompt, where requests part,
//! and every [`SNAPSHOT_PAGES`] pages.

use std::ops::Range;

use super::draft::Draft;
use super::pooling::Rows;
use super::schedule::Backlog;
use crate::cache::holding::Holding;
use crate::cache::layout::PagedGroup;
use crate::cache::pages::Lease;
use crate::cache::prefix::{Chunk, Key, Match, Place, PrefixCache, Slot};
use crate::lora::AdapterLease;
use crate::step::{PAGE, StateTable, StateWrite, Step, pages_for};

/// Pages from one regular snapshot of the recurrent state to the next: so much of a prompt is computed again
/// at most where its common part with another ended nowhere in particular.
pub const SNAPSHOT_PAGES: usize = 16;

pub(super) struct Branch {
    /// The position of `tokens[0]`; all before it were computed by another branch.
    pub first: usize,
    pub tokens: Vec<u32>,
    /// Positions whose keys and values are in the pages.
    pub computed: usize,
    pub holding: Holding,
    pub state: Recurrent,
    pub want: Want,
    /// The candidate that a scoring branch belongs to.
    pub part: usize,
    /// Tokens that may follow, to be checked in the next step.
    pub draft: Option<Draft>,
    /// The adapter that its rows pass.
    adapter: Option<AdapterLease>,
    /// How far its pages are in the prefix tree.
    place: Place,
}

/// The slots of a branch whose model has recurrent state.
#[derive(Debug, Default)]
pub(super) struct Recurrent {
    /// What the next step reads, where that is not its own slot: a snapshot, or the state of the prompt.
    before: Option<Slot>,
    /// What every step writes, and the next one reads.
    own: Option<Slot>,
    /// Snapshots of this step: the pages before each.
    snapshots: Vec<(usize, Slot)>,
    /// The states after each row of the draft.
    drafted: Vec<Slot>,
    /// Numbers of pages after which a snapshot is wanted, besides the regular ones.
    wanted: Vec<usize>,
}

/// What is wanted of the rows of a branch.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Want {
    /// The logits of the row that closes the backlog.
    Last,
    /// The logits of every row from this position on.
    From(usize),
    /// The logits of every row.
    Every,
    /// Hidden states.
    Hidden(Rows),
}

/// What tells prefixes of an adapter from those of others.
fn salt(adapter: Option<&AdapterLease>) -> u64 {
    adapter.map_or(0, AdapterLease::salt)
}

/// Where the wanted rows of a branch stand in the output of the step.
pub(super) struct Taken {
    pub rows: usize,
    pub logits: Range<usize>,
    pub hidden: Range<usize>,
}

impl Branch {
    pub fn new(
        first: usize,
        tokens: Vec<u32>,
        holding: Holding,
        want: Want,
        part: usize,
        adapter: Option<AdapterLease>,
    ) -> Self {
        let (state, place) = (Recurrent::default(), Place::root(salt(adapter.as_ref())));
        Branch { first, tokens, computed: first, holding, state, want, part, draft: None, adapter, place }
    }

    pub fn len(&self) -> usize {
        self.first + self.tokens.len()
    }

    pub fn backlog(&self) -> Backlog {
        Backlog { tokens: self.len() - self.computed, every: self.want == Want::Every, ..Backlog::default() }
    }

    /// Pages that are missing for its backlog, of which the next step computes at most `rows` positions.
    pub fn short(&self, groups: &[PagedGroup], rows: usize) -> usize {
        self.holding.lacking(groups, self.computed, self.len(), rows)
    }

    /// Pages that it will come to lack before all of its tokens are computed.
    pub fn outstanding(&self, groups: &[PagedGroup], rows: usize) -> usize {
        let of = |(group, it): (usize, &PagedGroup)| {
            let most = it.pages_at_most(self.len(), rows).saturating_sub(self.holding.len(group));
            most.min(pages_for(self.len()).saturating_sub(self.holding.end(group)))
        };
        groups.iter().enumerate().map(of).sum()
    }

    /// Shares out pages that were leased for what it lacks.
    pub fn provide(&mut self, mut lease: Lease, groups: &[PagedGroup], rows: usize) {
        let (computed, len) = (self.computed, self.len());
        for group in 0..groups.len() {
            let count = self.holding.lacking_of(group, groups, computed, len, rows);
            self.holding.append(group, lease.split_first(count));
        }
    }

    /// Takes what is in the tree of its backlog; returns how many positions it has gained. The last position
    /// is always left to compute: its row is what is wanted.
    pub fn adopt(&mut self, cache: &mut PrefixCache) -> usize {
        let before = self.computed;
        if let Some(found) = cache.match_prefix(self.place, self.chunks(cache.enabled())) {
            self.take(found, cache);
        }
        self.computed - before
    }

    fn take(&mut self, found: Match, cache: &mut PrefixCache) {
        self.place = found.place;
        self.computed = found.place.depth * PAGE;
        self.release_behind(cache);
        for (group, index, page) in found.pages {
            let own = self.holding.place(group, index, page);
            cache.release(own);
        }
        if let Some(unused) = std::mem::replace(&mut self.state.before, found.state) {
            cache.release_slot(unused);
        }
    }

    /// The pages on its way that others could need as well, by what the tree calls them: the next one that it
    /// computes is the first, the last is the first that the tree has not. (More than one only where the tree
    /// has pages that it cannot go on from.)
    pub fn path(&self, cache: &PrefixCache) -> Vec<Key> {
        cache.path(self.place, self.chunks(cache.enabled()))
    }

    /// Pages of it that are in the tree.
    pub fn depth(&self) -> usize {
        self.place.depth
    }

    pub fn adapter(&self) -> Option<&AdapterLease> {
        self.adapter.as_ref()
    }

    /// See [`AdapterLease::salt`]; 0 without one.
    pub fn salt(&self) -> u64 {
        self.place.salt
    }

    /// Whole pages that it has in common with another branch, of those that both could share.
    pub fn common_pages(&self, other: &Branch, cache: &PrefixCache) -> usize {
        let same = self.tokens.iter().zip(&other.tokens).take_while(|(a, b)| a == b).count();
        same.min(self.wanted()).min(other.wanted()) / PAGE * usize::from(cache.enabled())
    }

    /// A snapshot after so many pages would serve others.
    pub fn want_snapshot(&mut self, pages: usize) {
        if pages > self.place.depth && !self.state.wanted.contains(&pages) {
            self.state.wanted.push(pages);
        }
    }

    /// The end of the prompt, as far as it can be shared: others will begin there.
    pub fn want_snapshot_at_end(&mut self, cache: &PrefixCache) {
        if cache.has_state() && self.first == 0 {
            self.want_snapshot(self.wanted() / PAGE);
        }
    }

    /// The first position each row of which is to be computed.
    fn wanted(&self) -> usize {
        match self.want {
            Want::Last | Want::Hidden(Rows::Last) => self.tokens.len().saturating_sub(1),
            Want::From(position) => position,
            Want::Every | Want::Hidden(_) => 0,
        }
    }

    /// The tokens of the pages that it need not compute itself, from its place on: those of which it does not
    /// want each row, and it knows one token more.
    fn chunks(&self, enabled: bool) -> impl Iterator<Item = Chunk> {
        let pages = if enabled && self.first == 0 { self.wanted() / PAGE } else { 0 };
        (self.place.depth..pages).filter_map(|index| self.tokens[index * PAGE..][..PAGE].try_into().ok())
    }

    /// Leases the slots that a step of `rows` rows writes: its own, which must be there, and those of
    /// snapshots, as far as there are any.
    pub fn provide_state(&mut self, rows: usize, cache: &mut PrefixCache) -> bool {
        if !cache.has_state() {
            return true;
        }
        if self.state.own.is_none() {
            self.state.own = cache.lease_slot();
        }
        if self.first == 0 && cache.enabled() {
            for pages in self.computed / PAGE + 1..=(self.computed + rows) / PAGE {
                if pages.is_multiple_of(SNAPSHOT_PAGES) || self.state.wanted.contains(&pages) {
                    self.state.snapshots.extend(cache.lease_slot().map(|slot| (pages, slot)));
                }
            }
        }
        self.state.own.is_some()
    }

    /// Leases a slot for the state after each row of its draft, which becomes shorter if there are too few.
    pub fn provide_draft_state(&mut self, cache: &mut PrefixCache) {
        let Some(draft) = self.draft.as_mut().filter(|_| cache.has_state()) else { return };
        while self.state.drafted.len() < draft.tokens.len()
            && let Some(slot) = cache.lease_slot()
        {
            self.state.drafted.push(slot);
        }
        draft.tokens.truncate(self.state.drafted.len());
    }

    /// Takes the state after the last row of its draft that was right.
    pub fn settle_draft_state(&mut self, accepted: usize, cache: &mut PrefixCache) {
        if accepted > 0
            && let Some(slot) = self.state.drafted.get_mut(accepted - 1)
            && let Some(own) = &mut self.state.own
        {
            std::mem::swap(slot, own);
        }
        self.state.drafted.drain(..).for_each(|slot| cache.release_slot(slot));
    }

    /// A step has computed `rows` rows of it.
    pub fn advance(&mut self, rows: usize, cache: &mut PrefixCache) {
        self.computed += rows;
        if let Some(read) = self.state.before.take() {
            cache.release_slot(read);
        }
        self.commit(cache);
    }

    /// Gives the tree the pages that are full now, and back those that lie behind the windows.
    pub fn commit(&mut self, cache: &mut PrefixCache) {
        if self.first > 0 {
            return;
        }
        while cache.enabled() && (self.place.depth + 1) * PAGE <= self.computed {
            let begin = self.place.depth * PAGE;
            let Ok(chunk) = Chunk::try_from(&self.tokens[begin..begin + PAGE]) else { break };
            let pages = self.place.depth + 1;
            let at = self.state.snapshots.iter().position(|(after, _)| *after == pages);
            let snapshot = at.map(|at| self.state.snapshots.swap_remove(at).1);
            self.state.wanted.retain(|&wanted| wanted != pages);
            self.place = cache.insert(self.place, &chunk, &mut self.holding, snapshot);
        }
        self.release_behind(cache);
    }

    fn release_behind(&mut self, cache: &mut PrefixCache) {
        for group in 0..cache.groups().len() {
            let first = cache.groups()[group].first_needed(self.computed);
            let behind = self.holding.split_before(group, first);
            cache.release(behind);
        }
    }

    /// Gives everything back: all of it is to be computed, or found, again.
    pub fn release(&mut self, cache: &mut PrefixCache) {
        let nothing = Holding::new(cache.groups().len());
        cache.release_holding(std::mem::replace(&mut self.holding, nothing));
        std::mem::take(&mut self.state).into_slots().for_each(|slot| cache.release_slot(slot));
        (self.computed, self.place) = (self.first, Place::root(self.place.salt));
    }

    /// Appends the next `rows` rows to the step, and those of the draft.
    pub fn put(&self, rows: usize, step: &mut Step) -> Taken {
        let end = self.computed + rows;
        let closes = end == self.len();
        let draft = self.draft.as_ref().map_or(&[][..], |draft| &draft.tokens);
        let tokens = [&self.tokens[self.computed - self.first..end - self.first], draft].concat();
        let pages = pages_for(end + draft.len());
        let groups = self.holding.leases().count();
        let tables = (0..groups).map(|group| self.holding.table(group, pages)).collect();
        let (logits, hidden) = (step.logits.len(), step.hidden.len());
        let span = step.push_span(&tokens, self.computed, tables, self.state_table(rows));
        if let Some(last) = step.spans.last_mut() {
            last.adapter = self.adapter.as_ref().map(AdapterLease::slot);
        }
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

    fn state_table(&self, rows: usize) -> StateTable {
        let Recurrent { before, own, snapshots, drafted, .. } = &self.state;
        let read = before.as_ref().or(own.as_ref().filter(|_| self.computed > 0)).map(Slot::number);
        let write = |rows, slot: &Slot| StateWrite { rows, slot: slot.number() };
        let mut writes: Vec<_> =
            snapshots.iter().map(|(pages, slot)| write(pages * PAGE - self.computed, slot)).collect();
        writes.extend(own.iter().map(|slot| write(rows, slot)));
        writes.extend((rows + 1..).zip(drafted).map(|(rows, slot)| write(rows, slot)));
        writes.sort_by_key(|write| write.rows);
        StateTable { read, writes }
    }
}

impl Recurrent {
    /// That of a branch that goes on from another's state, with a slot of its own.
    pub fn of_fork(before: Option<Slot>, own: Option<Slot>) -> Self {
        Recurrent { before, own, ..Recurrent::default() }
    }

    /// All slots, to be looked at.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        let kept = self.snapshots.iter().map(|(_, slot)| slot);
        self.before.iter().chain(&self.own).chain(kept).chain(&self.drafted)
    }

    /// All slots, to be given back.
    pub fn into_slots(self) -> impl Iterator<Item = Slot> {
        let kept = self.snapshots.into_iter().map(|(_, slot)| slot);
        self.before.into_iter().chain(self.own).chain(kept).chain(self.drafted)
    }

    /// The state after what was computed, to be kept by another.
    pub fn take_own(&mut self) -> Option<Slot> {
        self.own.take()
    }

    /// The state after what was computed.
    pub fn own(&self) -> Option<&Slot> {
        self.own.as_ref()
    }
}
