//! The prefix tree: pages found again by the tokens that lie in them.
//!
//! A node is one full page of positions. Its key is its parent and the page's own tokens (and, at the root, a
//! salt), so a node stands for everything from the first token of a sequence to the last of the page, and
//! what was computed there depends on exactly that. The path that a new prompt walks down is what it need not
//! compute. Nodes are whole pages, so an edge never has to be split; what two prompts share beyond the last
//! whole page is computed again, at most `PAGE - 1` tokens.
//!
//! What a node holds differs by the groups of the model ([`StateLayout`]):
//! * a paged group without a window: its page, always;
//! * a group with a window: its page, until it is evicted. A request that goes on from a node sees only the
//!   last pages of such a group, so an inner node is useful without it;
//! * recurrent state: a snapshot of the state after the node's last token, at some nodes.
//!
//! A prefix *matches* up to the deepest node from which every group can go on
//! ([`PrefixCache::match_prefix`]).
//!
//! [`PrefixCache`] holds the tree and the pages together, since one rule binds them: whoever holds a node's
//! page of a group without a window holds those of all its ancestors, and whoever holds a place in the tree
//! holds a page of its node ([`PagedGroup::first_needed`]). So a node all of whose pages are idle has no
//! descendants in use, everything that is cached can be evicted, and `free + cached` is what can be leased at
//! any moment.
//!
//! Eviction is LRU: over leaves (a node goes with all that it holds), over the windowed pages of inner nodes,
//! and, for slots, over snapshots.

use std::collections::{BTreeSet, HashMap};

use super::holding::Holding;
use super::layout::{PagedGroup, StateLayout};
use super::pages::{Lease, Pages};
use crate::step::PAGE;

/// The tokens of one page.
pub type Chunk = [u32; PAGE];

/// A node of the tree; [`ROOT`] is where every sequence begins. It stays valid as long as one of its pages is
/// held.
pub type Node = u32;

/// The node before the first page.
pub const ROOT: Node = 0;

/// A place in the tree: everything that was computed up to some border of pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    pub node: Node,
    /// Pages from the beginning to here.
    pub depth: usize,
    /// What else the numbers in the pages depend on (an adapter); 0: nothing. Equal tokens under another salt
    /// are another prefix.
    pub salt: u64,
}

impl Place {
    /// Where a sequence begins.
    pub fn root(salt: u64) -> Self {
        Place { node: ROOT, depth: 0, salt }
    }
}

/// One slot of recurrent state, leased.
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a slot that is dropped never comes back"]
pub struct Slot(Lease);

impl Slot {
    pub fn number(&self) -> u32 {
        self.0.pages().first().copied().unwrap_or(0)
    }
}

/// A prefix that is there, leased.
#[derive(Debug)]
#[must_use = "a match holds leases"]
pub struct Match {
    /// Where to go on.
    pub place: Place,
    /// Pages of the nodes between: group, number of the page in the sequence, page.
    pub pages: Vec<(usize, usize, Lease)>,
    /// The state at the new place, where the model has one.
    pub state: Option<Slot>,
}

/// Pages and slots, and which tokens lie in them.
#[derive(Debug)]
pub struct PrefixCache {
    groups: Vec<PagedGroup>,
    pages: Pages,
    slots: Pages,
    /// By number; the root has no page and is never a leaf. Unused entries are listed in `unused`.
    nodes: Vec<Entry>,
    unused: Vec<Node>,
    children: HashMap<Key, Node>,
    /// Nodes without children, those used the longest time ago first.
    leaves: BTreeSet<(u64, Node)>,
    /// Nodes with pages of windowed groups, those seen the longest time ago first.
    windowed: BTreeSet<(u64, Node)>,
    /// Nodes with a snapshot, in the same order.
    snapshots: BTreeSet<(u64, Node)>,
    clock: u64,
    enabled: bool,
}

/// A node by its parent and its page's tokens; the salt stands in the keys of the root's children alone.
pub type Key = (Node, u64, Chunk);

#[derive(Clone, Debug)]
struct Entry {
    key: Key,
    /// One a paged group; none: it was evicted, or never there.
    pages: Box<[Option<u32>]>,
    snapshot: Option<u32>,
    children: u32,
    /// The clock when it was last on a path; when its windowed pages and its snapshot were last used.
    used: u64,
    window_used: u64,
    snapshot_used: u64,
}

impl PrefixCache {
    /// All pages and slots free; with `enabled` false nothing is ever kept.
    pub fn new(layout: &StateLayout, enabled: bool) -> Self {
        let groups = layout.paged.clone();
        let root = Entry::new((ROOT, 0, [0; PAGE]), groups.len());
        PrefixCache {
            groups,
            pages: Pages::new(layout.pages),
            slots: Pages::new(layout.slots),
            nodes: vec![root],
            unused: Vec::new(),
            children: HashMap::new(),
            leaves: BTreeSet::new(),
            windowed: BTreeSet::new(),
            snapshots: BTreeSet::new(),
            clock: 0,
            enabled,
        }
    }

    /// The paged groups.
    pub fn groups(&self) -> &[PagedGroup] {
        &self.groups
    }

    /// The pages, to be looked at.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// The slots, to be looked at.
    pub fn slots(&self) -> &Pages {
        &self.slots
    }

    /// Whether sequences have a recurrent state.
    pub fn has_state(&self) -> bool {
        self.slots.total() > 0
    }

    /// Whether anything is kept at all.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Pages that could be leased now, one way or the other.
    pub fn available(&self) -> usize {
        self.pages.free() + self.pages.cached()
    }

    /// Slots that could be leased now.
    pub fn available_slots(&self) -> usize {
        self.slots.free() + self.slots.cached()
    }

    /// Takes `count` pages, evicting what is cached if need be: all of them or none.
    pub fn lease(&mut self, count: usize) -> Option<Lease> {
        if count > self.available() {
            return None;
        }
        while self.pages.free() < count && self.evict_page() {}
        self.pages.lease(count)
    }

    /// Takes a slot, evicting a snapshot if need be.
    pub fn lease_slot(&mut self) -> Option<Slot> {
        if self.slots.free() == 0 {
            let idle = |&&(_, node): &&(u64, Node)| {
                self.nodes[node as usize].snapshot.is_some_and(|slot| self.slots.leases(slot) == 0)
            };
            let &(_, node) = self.snapshots.iter().find(idle)?;
            self.forget_snapshot(node);
        }
        self.slots.lease(1).map(Slot)
    }

    /// A second lease of a slot, to read it.
    pub fn share_slot(&mut self, slot: &Slot) -> Slot {
        Slot(self.slots.share(&slot.0, 1))
    }

    /// See [`Pages::share`].
    pub fn share(&mut self, lease: &Lease, count: usize) -> Lease {
        self.pages.share(lease, count)
    }

    /// A second lease of pages `.. before` of a holding.
    pub fn share_holding(&mut self, holding: &Holding, before: usize) -> Holding {
        holding.copy_with(before, |lease, count| self.pages.share(lease, count))
    }

    /// Gives a lease back. What is kept stays cached.
    pub fn release(&mut self, lease: Lease) {
        self.pages.release(lease);
    }

    /// Gives all leases of a sequence back.
    pub fn release_holding(&mut self, holding: Holding) {
        holding.into_leases().for_each(|lease| self.pages.release(lease));
    }

    /// Gives a slot back.
    pub fn release_slot(&mut self, slot: Slot) {
        self.slots.release(slot.0);
    }

    /// The deepest place below `from`, along `chunks`, at which every group can go on: its pages and state,
    /// leased. The pages before `from` are the caller's.
    pub fn match_prefix(&mut self, from: Place, chunks: impl Iterator<Item = Chunk>) -> Option<Match> {
        let path = self.served(from, chunks);
        let &node = path.last()?;
        let place = Place { node, depth: from.depth + path.len(), ..from };
        let needed: Vec<usize> =
            self.groups.iter().map(|group| group.first_needed(place.depth * PAGE)).collect();
        let mut pages = Vec::with_capacity(path.len() * self.groups.len());
        for (index, &node) in (from.depth..).zip(&path) {
            self.touch(node);
            for group in (0..needed.len()).filter(|&group| index >= needed[group]) {
                let Some(page) = self.nodes[node as usize].pages[group] else { continue };
                if self.groups[group].window.is_some() {
                    self.touch_window(node);
                }
                pages.push((group, index, self.pages.lease_kept(page)));
            }
        }
        let snapshot = self.nodes[node as usize].snapshot;
        let state = snapshot.map(|slot| {
            self.touch_snapshot(node);
            Slot(self.slots.lease_kept(slot))
        });
        Some(Match { place, pages, state })
    }

    /// The nodes from `from` to the deepest place that serves every group.
    fn served(&self, from: Place, chunks: impl Iterator<Item = Chunk>) -> Vec<Node> {
        let (mut path, mut best, mut node) = (Vec::new(), 0, from.node);
        // Per group, the page after the last one that is missing.
        let mut unbroken = vec![0; self.groups.len()];
        for chunk in chunks {
            let Some(&next) = self.children.get(&key(node, from.salt, &chunk)) else { break };
            path.push(next);
            node = next;
            let (entry, depth) = (&self.nodes[next as usize], from.depth + path.len());
            let mut serves = !self.has_state() || entry.snapshot.is_some();
            for (group, page) in entry.pages.iter().enumerate() {
                if page.is_none() {
                    unbroken[group] = depth;
                }
                serves &= self.groups[group].first_needed(depth * PAGE) >= unbroken[group];
            }
            if serves {
                best = path.len();
            }
        }
        path.truncate(best);
        path
    }

    /// The keys of the pages along `chunks`, up to and with the first that the tree has not.
    pub fn path(&self, from: Place, chunks: impl Iterator<Item = Chunk>) -> Vec<Key> {
        let (mut node, mut keys) = (Some(from.node), Vec::new());
        for chunk in chunks {
            let Some(parent) = node else { break };
            keys.push(key(parent, from.salt, &chunk));
            node = self.children.get(&key(parent, from.salt, &chunk)).copied();
        }
        keys
    }

    /// Keeps what was computed: page `place.depth` of `holding`, in each group, holds `chunk` after
    /// everything before it, and `snapshot` the state after it. Where the tree has such a page already, it
    /// takes the place of this one, which is given back.
    pub fn insert(
        &mut self,
        place: Place,
        chunk: &Chunk,
        holding: &mut Holding,
        snapshot: Option<Slot>,
    ) -> Place {
        let key = key(place.node, place.salt, chunk);
        let node = match self.children.get(&key) {
            Some(&found) => found,
            None => self.add_node(key),
        };
        self.touch(node);
        for group in 0..self.groups.len() {
            let Some(own) = holding.page(group, place.depth) else { continue };
            match self.nodes[node as usize].pages[group] {
                Some(page) if page == own => {}
                Some(page) => {
                    let kept = self.pages.lease_kept(page);
                    let computed = holding.place(group, place.depth, kept);
                    self.pages.release(computed);
                }
                None => {
                    self.pages.keep(own);
                    self.nodes[node as usize].pages[group] = Some(own);
                }
            }
            if self.groups[group].window.is_some() {
                self.touch_window(node);
            }
        }
        if let Some(slot) = snapshot {
            self.keep_snapshot(node, slot);
        }
        Place { node, depth: place.depth + 1, ..place }
    }

    /// See [`Pages::check_integrity`]; and that the tree is one. `slots` must be all slots that are leased.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check_integrity<'a>(
        &self,
        live: impl IntoIterator<Item = &'a Lease>,
        slots: impl IntoIterator<Item = &'a Slot>,
    ) -> Result<(), String> {
        let entries = || self.children.values().map(|&node| &self.nodes[node as usize]);
        self.pages
            .check_integrity(live, entries().flat_map(|entry| entry.pages.iter().flatten().copied()))?;
        let kept = entries().filter_map(|entry| entry.snapshot);
        let slots = slots.into_iter().map(|slot| &slot.0);
        self.slots.check_integrity(slots, kept).map_err(|defect| format!("slots: {defect}"))?;
        self.check_nodes()
    }

    fn check_nodes(&self) -> Result<(), String> {
        let mut children = vec![0u32; self.nodes.len()];
        for (&key, &node) in &self.children {
            let entry = &self.nodes[node as usize];
            if entry.key != key {
                return Err(format!("node {node} is listed under another key than its own"));
            }
            let parent = &self.nodes[key.0 as usize];
            for (group, page) in entry.pages.iter().enumerate() {
                let held = |page: &Option<u32>| page.is_some_and(|page| self.pages.leases(page) > 0);
                let full = key.0 != ROOT && self.groups[group].window.is_none();
                if full && held(page) && !held(&parent.pages[group]) {
                    return Err(format!("node {node} is held and its parent {} is not", key.0));
                }
            }
            children[key.0 as usize] += 1;
        }
        for &node in self.children.values() {
            let entry = &self.nodes[node as usize];
            let leaf = self.leaves.contains(&(entry.used, node));
            let windowed = self.windowed.contains(&(entry.window_used, node));
            let snapshot = self.snapshots.contains(&(entry.snapshot_used, node));
            if entry.children != children[node as usize]
                || leaf != (entry.children == 0)
                || windowed != self.has_windowed(node)
                || snapshot != entry.snapshot.is_some()
                || leaf && entry.pages.iter().all(Option::is_none)
            {
                return Err(format!("node {node}: {entry:?}, leaf {leaf}, {windowed}, {snapshot}"));
            }
        }
        let (nodes, used) = (self.children.len(), self.nodes.len() - self.unused.len() - 1);
        let listed = [&self.leaves, &self.windowed, &self.snapshots].map(BTreeSet::len);
        if nodes != used || listed.iter().any(|&listed| listed > nodes) {
            return Err(format!("{nodes} nodes, {used} entries, listed {listed:?}"));
        }
        Ok(())
    }

    fn add_node(&mut self, key: Key) -> Node {
        let entry = Entry::new(key, self.groups.len());
        let node = match self.unused.pop() {
            Some(node) => {
                self.nodes[node as usize] = entry;
                node
            }
            None => {
                self.nodes.push(entry);
                self.nodes.len() as Node - 1
            }
        };
        self.children.insert(key, node);
        self.leaves.insert((0, node));
        let parent = &mut self.nodes[key.0 as usize];
        parent.children += 1;
        if key.0 != ROOT {
            self.leaves.remove(&(parent.used, key.0));
        }
        node
    }

    fn has_windowed(&self, node: Node) -> bool {
        let pages = self.nodes[node as usize].pages.iter().zip(&self.groups);
        pages.into_iter().any(|(page, group)| page.is_some() && group.window.is_some())
    }

    /// It was used now.
    fn touch(&mut self, node: Node) {
        self.clock += 1;
        let entry = &mut self.nodes[node as usize];
        if entry.children == 0 {
            self.leaves.remove(&(entry.used, node));
            self.leaves.insert((self.clock, node));
        }
        entry.used = self.clock;
    }

    fn touch_window(&mut self, node: Node) {
        let entry = &mut self.nodes[node as usize];
        self.windowed.remove(&(entry.window_used, node));
        entry.window_used = self.clock;
        self.windowed.insert((self.clock, node));
    }

    fn touch_snapshot(&mut self, node: Node) {
        let entry = &mut self.nodes[node as usize];
        self.snapshots.remove(&(entry.snapshot_used, node));
        entry.snapshot_used = self.clock;
        self.snapshots.insert((self.clock, node));
    }

    fn keep_snapshot(&mut self, node: Node, slot: Slot) {
        if self.nodes[node as usize].snapshot.is_none() {
            self.slots.keep(slot.number());
            self.nodes[node as usize].snapshot = Some(slot.number());
        }
        self.touch_snapshot(node);
        self.release_slot(slot);
    }

    fn forget_snapshot(&mut self, node: Node) {
        let entry = &mut self.nodes[node as usize];
        if let Some(slot) = entry.snapshot.take() {
            self.snapshots.remove(&(entry.snapshot_used, node));
            self.slots.forget(slot);
        }
    }

    /// Evicts the leaf or the windowed pages that were used the longest time ago; false: nothing is idle.
    fn evict_page(&mut self) -> bool {
        let idle_page = |page: &Option<u32>| page.is_some_and(|page| self.pages.leases(page) == 0);
        let idle = |&&(_, node): &&(u64, Node)| {
            self.nodes[node as usize].pages.iter().all(|page| page.is_none() || idle_page(page))
        };
        let behind = |&&(_, node): &&(u64, Node)| {
            let pages = self.nodes[node as usize].pages.iter().zip(&self.groups);
            pages.into_iter().any(|(page, group)| group.window.is_some() && idle_page(page))
        };
        let leaf = self.leaves.iter().find(idle).copied();
        let windowed = self.windowed.iter().find(behind).copied();
        match (leaf, windowed) {
            (Some((used, _)), Some((window_used, node))) if window_used < used => self.evict_window(node),
            (Some((_, node)), _) => self.remove_node(node),
            (None, Some((_, node))) => self.evict_window(node),
            (None, None) => return false,
        }
        true
    }

    /// Evicts the idle pages of windowed groups of a node.
    fn evict_window(&mut self, node: Node) {
        let entry = &mut self.nodes[node as usize];
        for (page, group) in entry.pages.iter_mut().zip(&self.groups) {
            if group.window.is_some()
                && let Some(number) = page.filter(|&page| self.pages.leases(page) == 0)
            {
                self.pages.forget(number);
                *page = None;
            }
        }
        let (leaf, window_used) = (entry.children == 0, entry.window_used);
        if !self.has_windowed(node) {
            self.windowed.remove(&(window_used, node));
        }
        if leaf && self.nodes[node as usize].pages.iter().all(Option::is_none) {
            self.remove_node(node);
        }
    }

    /// Removes a leaf, and those of its ancestors that are left with nothing.
    fn remove_node(&mut self, mut node: Node) {
        loop {
            self.forget_snapshot(node);
            let Entry { key, used, window_used, .. } = self.nodes[node as usize];
            self.leaves.remove(&(used, node));
            self.windowed.remove(&(window_used, node));
            self.children.remove(&key);
            self.unused.push(node);
            for page in std::mem::take(&mut self.nodes[node as usize].pages).iter().flatten() {
                self.pages.forget(*page);
            }
            let parent = key.0;
            let entry = &mut self.nodes[parent as usize];
            entry.children -= 1;
            if parent == ROOT || entry.children > 0 {
                return;
            }
            self.leaves.insert((entry.used, parent));
            if entry.pages.iter().any(Option::is_some) {
                return;
            }
            node = parent;
        }
    }
}

impl Entry {
    fn new(key: Key, groups: usize) -> Self {
        let pages = vec![None; groups].into();
        Entry { key, pages, snapshot: None, children: 0, used: 0, window_used: 0, snapshot_used: 0 }
    }
}

fn key(parent: Node, salt: u64, chunk: &Chunk) -> Key {
    (parent, if parent == ROOT { salt } else { 0 }, *chunk)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A walk like the engine's: finds what is there, leases the rest, "computes" and inserts it. The
    /// contents of every page are written down, and what is found must hold exactly the tokens asked for.
    struct World {
        cache: PrefixCache,
        contents: Vec<Vec<u32>>,
        live: Vec<Holding>,
    }

    impl World {
        fn new(total: usize) -> Self {
            let cache = PrefixCache::new(&StateLayout::plain(total), true);
            World { cache, contents: vec![vec![]; total], live: vec![] }
        }

        /// Pages found and pages computed; `None` if there is no room.
        fn enter(&mut self, chunks: &[u32]) -> Option<(usize, usize)> {
            let mut holding = Holding::new(1);
            let mut place = Place::root(0);
            let tokens = chunks.iter().map(|&token| [token; PAGE]);
            if let Some(found) = self.cache.match_prefix(place, tokens) {
                for (group, index, page) in found.pages {
                    let held = &self.contents[page.pages()[0] as usize];
                    assert_eq!(*held, chunks[..=index], "contents of a page");
                    self.cache.release(holding.place(group, index, page));
                }
                place = found.place;
            }
            let found = place.depth;
            let Some(rest) = self.cache.lease(chunks.len() - found) else {
                self.cache.release_holding(holding);
                return None;
            };
            holding.append(0, rest);
            for at in found..chunks.len() {
                let page = holding.page(0, at).unwrap();
                self.contents[page as usize] = chunks[..=at].to_vec();
                place = self.cache.insert(place, &[chunks[at]; PAGE], &mut holding, None);
            }
            self.live.push(holding);
            Some((found, chunks.len() - found))
        }

        fn leave(&mut self, at: usize) {
            self.cache.release_holding(self.live.remove(at));
        }

        fn check(&self) {
            self.cache.check_integrity(self.live.iter().flat_map(Holding::leases), []).unwrap();
        }
    }

    /// `+abc` enters pages a, b, c; `-0` ends the first that is in. `found/computed free cached` after each.
    const WALKS: &[(usize, &str, &str)] = &[
        (4, "+ab -0 +ab", "0/2 2 0, 2 2, 2/0 2 0"),
        (4, "+ab +ac +a", "0/2 2 0, 1/1 1 0, 1/0 1 0"),
        (4, "+a -0 +abcd", "0/1 3 0, 3 1, 1/3 0 0"),
        // Least recently used first, leaves first; in use is never evicted.
        (3, "+ab -0 +c -0 +de +a", "0/2 1 0, 1 2, 0/1 0 2, 0 3, 0/2 0 1, 0/1 0 0"),
        (3, "+ab -0 +c -0 +ab -0 +d +ab", "0/2 1 0, 1 2, 0/1 0 2, 0 3, 2/0 0 1, 0 3, 0/1 0 2, 2/0 0 0"),
        (2, "+ab +c -0 +c", "0/2 0 0, -, 0 2, 0/1 0 1"),
        (3, "+ab +abc -0 +d -0 +d", "0/2 1 0, 2/1 0 0, 0 0, -, 0 3, 0/1 0 2"),
        (0, "+a +", "-, 0/0 0 0"),
    ];

    #[test]
    fn golden_walks() {
        let mut failed = Vec::new();
        for (total, walk, expected) in WALKS {
            let mut world = World::new(*total);
            let mut shown = Vec::new();
            for step in walk.split_whitespace() {
                let outcome = match step.strip_prefix('+') {
                    Some(chunks) => match world.enter(&chunks.bytes().map(u32::from).collect::<Vec<_>>()) {
                        Some((found, computed)) => format!("{found}/{computed} "),
                        None => {
                            shown.push("-".to_string());
                            continue;
                        }
                    },
                    None => {
                        world.leave(step[1..].parse().unwrap());
                        String::new()
                    }
                };
                let pages = world.cache.pages();
                shown.push(format!("{outcome}{} {}", pages.free(), pages.cached()));
                world.check();
            }
            if shown.join(", ") != *expected {
                failed.push(format!("{total}: {walk}\n   found {}\n   not   {expected}", shown.join(", ")));
            }
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }

    #[test]
    fn random_walks_find_only_what_is_there() {
        let mut below = dice(3);
        for round in 0..60 {
            let mut world = World::new(1 + round % 9);
            let (mut found, mut computed) = (0, 0);
            for _ in 0..300 {
                if below(3) > 0 {
                    let chunks: Vec<u32> = (0..below(6)).map(|_| below(3) as u32).collect();
                    let entered = world.enter(&chunks);
                    found += entered.map_or(0, |it| it.0);
                    computed += entered.map_or(0, |it| it.1);
                } else if !world.live.is_empty() {
                    world.leave(below(world.live.len()));
                }
                world.check();
            }
            assert!(found > 5 && computed > 5, "{round}: {found} found, {computed} computed");
            while !world.live.is_empty() {
                world.leave(0);
            }
            let everything = world.cache.lease(world.cache.pages().total()).unwrap();
            world.cache.check_integrity([&everything], []).unwrap();
        }
    }

    /// One sequence at work in a cache with any groups: goes through its pages one by one as a lane does.
    struct Walker {
        chunks: Vec<u32>,
        holding: Holding,
        place: Place,
        state: Option<Slot>,
    }

    /// What was written: for each page its group and chunks, for each slot the chunks before it.
    struct Written {
        cache: PrefixCache,
        pages: Vec<(usize, Vec<u32>)>,
        slots: Vec<Vec<u32>>,
    }

    impl Written {
        fn new(windows: &[Option<usize>], pages: usize, slots: usize) -> Self {
            let paged = windows.iter().map(|&window| PagedGroup { window }).collect();
            let cache = PrefixCache::new(&StateLayout { paged, pages, slots }, true);
            Written { cache, pages: vec![(9, vec![]); pages], slots: vec![vec![]; slots] }
        }

        /// Begins where the tree can go on; what it gives must hold what it says.
        fn enter(&mut self, chunks: Vec<u32>) -> Walker {
            let groups = self.cache.groups().to_vec();
            let mut holding = Holding::new(groups.len());
            let tokens = chunks.iter().map(|&token| [token; PAGE]);
            let Some(found) = self.cache.match_prefix(Place::root(0), tokens) else {
                return Walker { chunks, holding, place: Place::root(0), state: None };
            };
            let depth = found.place.depth;
            for (group, it) in groups.iter().enumerate() {
                self.cache.release(holding.split_before(group, it.first_needed(depth * PAGE)));
            }
            for (group, index, page) in found.pages {
                assert_eq!(self.pages[page.pages()[0] as usize], (group, chunks[..=index].to_vec()));
                self.cache.release(holding.place(group, index, page));
            }
            for (group, it) in groups.iter().enumerate() {
                let held = (it.first_needed(depth * PAGE)..depth).all(|at| holding.page(group, at).is_some());
                assert!(held, "a match without what is seen from its end");
            }
            if let Some(slot) = &found.state {
                assert_eq!(self.slots[slot.number() as usize], chunks[..depth]);
            }
            assert_eq!(found.state.is_some(), self.cache.has_state());
            Walker { chunks, holding, place: found.place, state: found.state }
        }

        /// Computes one page more; false: there are no pages for it, or it is done.
        fn go_on(&mut self, walker: &mut Walker, snapshot: bool) -> bool {
            let (depth, groups) = (walker.place.depth, self.cache.groups().len());
            let Some(chunk) = walker.chunks.get(depth).map(|&token| [token; PAGE]) else { return false };
            let Some(mut pages) = self.cache.lease(groups) else { return false };
            let written = walker.chunks[..=depth].to_vec();
            for group in 0..groups {
                let page = pages.split_first(1);
                self.pages[page.pages()[0] as usize] = (group, written.clone());
                walker.holding.append(group, page);
            }
            let slot = if snapshot { self.cache.lease_slot() } else { None };
            if let Some(slot) = &slot {
                self.slots[slot.number() as usize] = written;
            }
            walker.place = self.cache.insert(walker.place, &chunk, &mut walker.holding, slot);
            for group in 0..groups {
                let first = self.cache.groups()[group].first_needed(walker.place.depth * PAGE);
                let behind = walker.holding.split_before(group, first);
                self.cache.release(behind);
            }
            true
        }

        fn leave(&mut self, walker: Walker) {
            self.cache.release_holding(walker.holding);
            walker.state.into_iter().for_each(|slot| self.cache.release_slot(slot));
        }
    }

    #[test]
    fn windows_give_pages_back_and_matches_end_where_all_groups_can_go_on() {
        let mut below = dice(11);
        for (windows, pages, slots) in [
            (vec![None, Some(20)], 18, 0),
            (vec![Some(33)], 9, 0),
            (vec![Some(1), Some(40)], 14, 0),
            (vec![None], 12, 4),
            (vec![None, Some(16), Some(50)], 26, 5),
        ] {
            let (mut found, mut evicted) = (0, 0);
            for _ in 0..20 {
                let mut written = Written::new(&windows, pages, slots);
                let mut walkers: Vec<Walker> = Vec::new();
                for _ in 0..300 {
                    match below(6) {
                        0 if walkers.len() < 3 => {
                            let chunks = (0..1 + below(7)).map(|_| below(2) as u32).collect();
                            walkers.push(written.enter(chunks));
                            found += walkers.last().map_or(0, |it| it.place.depth);
                        }
                        1 if !walkers.is_empty() => {
                            let walker = walkers.swap_remove(below(walkers.len()));
                            written.leave(walker);
                        }
                        _ if !walkers.is_empty() => {
                            let at = below(walkers.len());
                            let full = written.cache.pages().free() < windows.len();
                            evicted += usize::from(written.go_on(&mut walkers[at], below(3) == 0) && full);
                        }
                        _ => {}
                    }
                    let leases = walkers.iter().flat_map(|it| it.holding.leases());
                    written
                        .cache
                        .check_integrity(leases, walkers.iter().filter_map(|it| it.state.as_ref()))
                        .unwrap();
                    for walker in &walkers {
                        for (group, it) in written.cache.groups().iter().enumerate() {
                            let most = it.pages_at_most(walker.chunks.len() * PAGE, PAGE);
                            assert!(walker.holding.len(group) <= most, "{windows:?}");
                        }
                    }
                }
            }
            assert!(found > 50 && evicted > 50, "{windows:?}: {found} found, {evicted} evicted");
        }
    }

    /// A generator for tests, seeded.
    fn dice(seed: u64) -> impl FnMut(usize) -> usize {
        let mut state = seed;
        move |bound| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % bound
        }
    }

    #[test]
    fn who_computed_a_page_twice_gets_the_one_that_is_there() {
        let mut cache = PrefixCache::new(&StateLayout::plain(4), true);
        let (mut first, mut second) = (Holding::new(1), Holding::new(1));
        first.append(0, cache.lease(1).unwrap());
        second.append(0, cache.lease(1).unwrap());
        let root = Place::root(0);
        let place = cache.insert(root, &[7; PAGE], &mut first, None);
        assert_eq!(cache.insert(root, &[7; PAGE], &mut second, None), place);
        assert_eq!(first.page(0, 0), second.page(0, 0));
        assert_eq!(cache.available(), 3);
        cache.check_integrity(first.leases().chain(second.leases()), []).unwrap();
        cache.release_holding(first);
        cache.release_holding(second);
        assert_eq!((cache.pages().free(), cache.pages().cached()), (3, 1));
        // Under another salt it is another prefix.
        assert!(cache.match_prefix(Place::root(9), [[7; PAGE]].into_iter()).is_none());
        let found = cache.match_prefix(root, [[7; PAGE], [8; PAGE]].into_iter()).unwrap();
        assert_eq!(found.place, place);
        found.pages.into_iter().for_each(|(_, _, page)| cache.release(page));
    }
}
