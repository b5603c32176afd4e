//! The prefix tree: pages found again by the tokens that lie in them.
//!
//! A node is one full page. Its key is its parent and the page's own tokens, so a node stands for everything
//! from the first token of a sequence to the last of the page, and keys and values in a page depend on exactly
//! that. The path that a new prompt walks down is what it need not compute. Nodes are whole pages, so an edge
//! never has to be split; what two prompts share beyond the last whole page is computed again, at most
//! `PAGE - 1` tokens.
//!
//! [`PrefixCache`] holds the tree and the pages together, since one rule binds them: whoever holds a node's page
//! holds those of all its ancestors ([`PrefixCache::insert`] gives whoever computed a page that is there already
//! the one in the tree). So a page that nobody holds has no descendants in use, everything that is cached can be
//! given up, leaves first, and `free + cached` is what can be leased at any moment.
//!
//! Given up is what was used the longest time ago.

use std::collections::{BTreeSet, HashMap};

use super::pages::{Lease, Pages};
use crate::step::PAGE;

/// The tokens of one page.
pub type Chunk = [u32; PAGE];

/// A node of the tree; [`ROOT`] is where every sequence begins. It stays valid as long as its page is held.
pub type Node = u32;

/// The node before the first page.
pub const ROOT: Node = 0;

/// Pages, and which tokens lie in them.
#[derive(Debug)]
pub struct PrefixCache {
    pages: Pages,
    /// By number; the root has no page and is never a leaf. Unused entries are listed in `unused`.
    nodes: Vec<Entry>,
    unused: Vec<Node>,
    children: HashMap<(Node, Chunk), Node>,
    /// Nodes without children, those used the longest time ago first.
    leaves: BTreeSet<(u64, Node)>,
    clock: u64,
    enabled: bool,
}

#[derive(Clone, Debug)]
struct Entry {
    parent: Node,
    chunk: Chunk,
    page: u32,
    children: u32,
    /// The clock when it was last found or made.
    used: u64,
}

impl PrefixCache {
    /// `total` free pages; with `enabled` false nothing is ever kept.
    pub fn new(total: usize, enabled: bool) -> Self {
        let root = Entry { parent: ROOT, chunk: [0; PAGE], page: u32::MAX, children: 0, used: 0 };
        PrefixCache {
            pages: Pages::new(total),
            nodes: vec![root],
            unused: Vec::new(),
            children: HashMap::new(),
            leaves: BTreeSet::new(),
            clock: 0,
            enabled,
        }
    }

    /// The pages, to be looked at.
    pub fn pages(&self) -> &Pages {
        &self.pages
    }

    /// Whether anything is kept at all.
    pub fn enabled(&self) -> bool {
        self.enabled
    }

    /// Pages that could be leased now, one way or the other.
    pub fn available(&self) -> usize {
        self.pages.free() + self.pages.cached()
    }

    /// Takes `count` pages, giving up what was cached if need be: all of them or none.
    pub fn lease(&mut self, count: usize) -> Option<Lease> {
        if count > self.available() {
            return None;
        }
        let missing = count.saturating_sub(self.pages.free());
        self.give_up(missing);
        self.pages.lease(count)
    }

    /// See [`Pages::share`].
    pub fn share(&mut self, lease: &Lease, count: usize) -> Lease {
        self.pages.share(lease, count)
    }

    /// Gives a lease back. What is kept stays cached.
    pub fn release(&mut self, lease: Lease) {
        self.pages.release(lease);
    }

    /// The page that holds `chunk` after everything that `node` stands for, leased, and its node.
    pub fn find(&mut self, node: Node, chunk: &Chunk) -> Option<(Lease, Node)> {
        let found = *self.children.get(&(node, *chunk))?;
        self.touch(found);
        Some((self.pages.lease_kept(self.nodes[found as usize].page), found))
    }

    /// Keeps a page that was computed: `page` at place `at` of `lease` holds `chunk` after what `node` stands
    /// for. If the tree has such a page already, it takes the place of this one, which is given back.
    pub fn insert(&mut self, node: Node, chunk: &Chunk, lease: &mut Lease, at: usize) -> Node {
        if let Some((page, found)) = self.find(node, chunk) {
            let computed = lease.replace(at, page);
            self.pages.release(computed);
            return found;
        }
        let page = lease.pages()[at];
        self.pages.keep(page);
        self.clock += 1;
        let entry = Entry { parent: node, chunk: *chunk, page, children: 0, used: self.clock };
        let made = match self.unused.pop() {
            Some(made) => {
                self.nodes[made as usize] = entry;
                made
            }
            None => {
                self.nodes.push(entry);
                self.nodes.len() as Node - 1
            }
        };
        self.children.insert((node, *chunk), made);
        self.leaves.insert((self.clock, made));
        let parent = &mut self.nodes[node as usize];
        parent.children += 1;
        if node != ROOT {
            self.leaves.remove(&(parent.used, node));
        }
        made
    }

    /// See [`Pages::check_integrity`]; and that the tree is one.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check_integrity<'a>(&self, live: impl IntoIterator<Item = &'a Lease>) -> Result<(), String> {
        self.pages
            .check_integrity(live, self.children.values().map(|&node| self.nodes[node as usize].page))?;
        let mut children = vec![0u32; self.nodes.len()];
        for (&(parent, chunk), &node) in &self.children {
            let entry = &self.nodes[node as usize];
            if (entry.parent, entry.chunk) != (parent, chunk) {
                return Err(format!("node {node} is listed under another key than its own"));
            }
            if parent != ROOT && self.pages.leases(entry.page) > 0 && self.leases_of(parent) == 0 {
                return Err(format!("node {node} is held and its parent {parent} is not"));
            }
            children[parent as usize] += 1;
        }
        for &node in self.children.values() {
            let entry = &self.nodes[node as usize];
            let leaf = self.leaves.contains(&(entry.used, node));
            if entry.children != children[node as usize] || leaf != (entry.children == 0) {
                return Err(format!("node {node}: {} children, leaf {leaf}", entry.children));
            }
        }
        let (nodes, used) = (self.children.len(), self.nodes.len() - self.unused.len() - 1);
        if nodes != used || self.leaves.len() > nodes {
            return Err(format!("{nodes} nodes, {used} entries, {} leaves", self.leaves.len()));
        }
        Ok(())
    }

    fn leases_of(&self, node: Node) -> u32 {
        self.pages.leases(self.nodes[node as usize].page)
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

    /// Gives up `count` cached pages (or all there are).
    fn give_up(&mut self, count: usize) {
        for _ in 0..count {
            let idle = |&&(_, node): &&(u64, Node)| self.leases_of(node) == 0;
            let Some(&(used, node)) = self.leaves.iter().find(idle) else { return };
            self.leaves.remove(&(used, node));
            let Entry { parent, chunk, page, .. } = self.nodes[node as usize];
            self.children.remove(&(parent, chunk));
            self.unused.push(node);
            self.pages.forget(page);
            let parent_entry = &mut self.nodes[parent as usize];
            parent_entry.children -= 1;
            if parent != ROOT && parent_entry.children == 0 {
                self.leaves.insert((parent_entry.used, parent));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A walk like the engine's: finds what is there, leases the rest, "computes" and inserts it. The contents
    /// of every page are written down, and what is found must hold exactly the tokens asked for.
    struct World {
        cache: PrefixCache,
        contents: Vec<Vec<u32>>,
        live: Vec<Lease>,
    }

    impl World {
        fn new(total: usize) -> Self {
            World { cache: PrefixCache::new(total, true), contents: vec![vec![]; total], live: vec![] }
        }

        /// Pages found and pages computed; `None` if there is no room.
        fn enter(&mut self, chunks: &[u32]) -> Option<(usize, usize)> {
            let (mut lease, mut node, mut found) = (Lease::default(), ROOT, 0);
            while found < chunks.len()
                && let Some((page, next)) = self.cache.find(node, &[chunks[found]; PAGE])
            {
                assert_eq!(self.contents[page.pages()[0] as usize], chunks[..=found], "contents of a page");
                lease.append(page);
                (node, found) = (next, found + 1);
            }
            let Some(rest) = self.cache.lease(chunks.len() - found) else {
                self.cache.release(lease);
                return None;
            };
            lease.append(rest);
            for at in found..chunks.len() {
                self.contents[lease.pages()[at] as usize] = chunks[..=at].to_vec();
                node = self.cache.insert(node, &[chunks[at]; PAGE], &mut lease, at);
            }
            self.live.push(lease);
            Some((found, chunks.len() - found))
        }

        fn leave(&mut self, at: usize) {
            self.cache.release(self.live.remove(at));
        }

        fn check(&self) {
            self.cache.check_integrity(&self.live).unwrap();
        }
    }

    /// `+abc` enters pages a, b, c; `-0` ends the first that is in. `found/computed free cached` after each.
    const WALKS: &[(usize, &str, &str)] = &[
        (4, "+ab -0 +ab", "0/2 2 0, 2 2, 2/0 2 0"),
        (4, "+ab +ac +a", "0/2 2 0, 1/1 1 0, 1/0 1 0"),
        (4, "+a -0 +abcd", "0/1 3 0, 3 1, 1/3 0 0"),
        // Least recently used first, leaves first; in use is never given up.
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
        let mut state = 3u64;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % bound
        };
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
            world.live.push(everything);
            world.check();
        }
    }

    #[test]
    fn who_computed_a_page_twice_gets_the_one_that_is_there() {
        let mut cache = PrefixCache::new(4, true);
        let mut first = cache.lease(1).unwrap();
        let mut second = cache.lease(1).unwrap();
        let node = cache.insert(ROOT, &[7; PAGE], &mut first, 0);
        assert_eq!(cache.insert(ROOT, &[7; PAGE], &mut second, 0), node);
        assert_eq!(first, second);
        assert_eq!(cache.available(), 3);
        cache.check_integrity([&first, &second]).unwrap();
        cache.release(first);
        cache.release(second);
        assert_eq!((cache.pages().free(), cache.pages().cached()), (3, 1));
    }
}
