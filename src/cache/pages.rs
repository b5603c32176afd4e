//! Who holds which page of the KV cache: integers only.
//!
//! [`Pages`] hands out [`Lease`]s. A lease is a value that is taken once and given back once: it cannot be
//! copied, and [`Pages::release`] consumes it. Several leases may hold the same page ([`Pages::share`]), so
//! each page has a count, and it is free again when the last of them is released.
//!
//! The invariant, after every operation: a page's count is the number of live leases that name it, and the
//! free list holds exactly the pages whose count is 0. [`Pages::check_integrity`] asserts it; the engine
//! calls it whenever it goes idle.

/// All pages of one cache.
#[derive(Debug)]
pub struct Pages {
    /// Leases that hold each page.
    counts: Vec<u32>,
    /// Pages with count 0; the next one to give out is last.
    free: Vec<u32>,
}

/// Pages held, in the order of the positions that lie in them.
///
/// Give it back with [`Pages::release`]; a lease that is merely dropped keeps its pages from everybody.
#[derive(Debug, Default, PartialEq, Eq)]
#[must_use = "a lease that is dropped never gives its pages back"]
pub struct Lease {
    pages: Vec<u32>,
}

impl Pages {
    /// `total` free pages, numbered from 0.
    pub fn new(total: usize) -> Self {
        let total = total.min(u32::MAX as usize) as u32;
        Pages { counts: vec![0; total as usize], free: (0..total).rev().collect() }
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.counts.len()
    }

    /// Pages that nobody holds.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Takes `count` free pages, all of them or none.
    pub fn lease(&mut self, count: usize) -> Option<Lease> {
        let rest = self.free.len().checked_sub(count)?;
        let pages: Vec<u32> = self.free.drain(rest..).rev().collect();
        for &page in &pages {
            self.counts[page as usize] = 1;
        }
        Some(Lease { pages })
    }

    /// A second lease of the first `count` pages of `lease` (all of them, if it has fewer).
    ///
    /// Shared pages are only read: whoever writes on takes pages of its own.
    pub fn share(&mut self, lease: &Lease, count: usize) -> Lease {
        let pages: Vec<u32> = lease.pages.iter().copied().take(count).collect();
        for &page in &pages {
            self.counts[page as usize] += 1;
        }
        Lease { pages }
    }

    /// Gives a lease back.
    pub fn release(&mut self, lease: Lease) {
        for page in lease.pages {
            let count = &mut self.counts[page as usize];
            debug_assert!(*count > 0, "page {page} was released more often than it was leased");
            *count = count.saturating_sub(1);
            if *count == 0 {
                self.free.push(page);
            }
        }
    }

    /// Checks that `live`, which must be all leases there are, and the free list account for every page.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check_integrity<'a>(&self, live: impl IntoIterator<Item = &'a Lease>) -> Result<(), String> {
        let mut held = vec![0u32; self.total()];
        for &page in live.into_iter().flat_map(|lease| &lease.pages) {
            held[page as usize] += 1;
        }
        if let Some(page) = (0..held.len()).find(|&page| held[page] != self.counts[page]) {
            return Err(format!("page {page}: {} leases, count {}", held[page], self.counts[page]));
        }
        let mut listed = vec![false; self.total()];
        for &page in &self.free {
            if held[page as usize] > 0 || std::mem::replace(&mut listed[page as usize], true) {
                return Err(format!("page {page} is in the free list twice, or held"));
            }
        }
        let leased = held.iter().filter(|&&count| count > 0).count();
        if self.free.len() + leased != self.total() {
            return Err(format!("{} free + {leased} leased, of {}", self.free.len(), self.total()));
        }
        Ok(())
    }
}

impl Lease {
    /// The pages, in the order of their positions.
    pub fn pages(&self) -> &[u32] {
        &self.pages
    }

    /// How many.
    pub fn len(&self) -> usize {
        self.pages.len()
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.pages.is_empty()
    }

    /// Adds the pages of `other` behind these.
    pub fn append(&mut self, other: Lease) {
        self.pages.extend(other.pages);
    }

    /// Splits the last `count` pages off (all of them, if it has fewer).
    pub fn split_last(&mut self, count: usize) -> Lease {
        let rest = self.pages.len().saturating_sub(count);
        Lease { pages: self.pages.split_off(rest) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A generator for tests: xorshift, seeded, the same everywhere.
    struct Dice(u64);

    impl Dice {
        fn below(&mut self, bound: usize) -> usize {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            (self.0 % bound as u64) as usize
        }
    }

    /// The naive model: for each live lease the pages that it must name. Free is what none of them names.
    #[derive(Default)]
    struct Model(Vec<Vec<u32>>);

    impl Model {
        fn free(&self, total: usize) -> usize {
            (0..total as u32).filter(|page| !self.0.iter().flatten().any(|held| held == page)).count()
        }
    }

    /// One random operation on both; the lists of leases run in parallel.
    fn operate(dice: &mut Dice, pages: &mut Pages, leases: &mut Vec<Lease>, model: &mut Model) {
        let free = model.free(pages.total());
        let any = dice.below(leases.len().max(1));
        let count = dice.below(5);
        match dice.below(5) {
            0 | 1 => match pages.lease(count) {
                Some(lease) => {
                    assert!(count <= free, "leased {count} of {free}");
                    for page in lease.pages() {
                        assert!(!model.0.iter().flatten().any(|held| held == page), "page {page} was held");
                    }
                    model.0.push(lease.pages().to_vec());
                    leases.push(lease);
                }
                None => assert!(count > free, "refused {count} of {free}"),
            },
            2 if !leases.is_empty() => {
                let shared = pages.share(&leases[any], count);
                model.0.push(model.0[any].iter().copied().take(count).collect());
                leases.push(shared);
            }
            3 if !leases.is_empty() => {
                let tail = leases[any].split_last(count);
                let rest = model.0[any].len().saturating_sub(count);
                let expected = model.0[any].split_off(rest);
                model.0.push(expected);
                leases.push(tail);
            }
            _ if !leases.is_empty() => {
                model.0.swap_remove(any);
                pages.release(leases.swap_remove(any));
            }
            _ => {}
        }
        let named: Vec<_> = leases.iter().map(|lease| lease.pages().to_vec()).collect();
        assert_eq!(named, model.0);
        assert_eq!(pages.free(), model.free(pages.total()));
        pages.check_integrity(leases.iter()).unwrap();
    }

    #[test]
    fn random_operations_agree_with_a_naive_model() {
        for seed in 1..=40u64 {
            let total = [0, 1, 3, 8][seed as usize % 4];
            let (mut dice, mut pages) = (Dice(seed), Pages::new(total));
            let (mut leases, mut model) = (Vec::new(), Model::default());
            for _ in 0..500 {
                operate(&mut dice, &mut pages, &mut leases, &mut model);
            }
            leases.drain(..).for_each(|lease| pages.release(lease));
            assert_eq!(pages.free(), total);
            pages.check_integrity([]).unwrap();
        }
    }

    #[test]
    fn integrity_tells_what_is_wrong() {
        let mut pages = Pages::new(4);
        let lease = pages.lease(3).unwrap();
        let shared = pages.share(&lease, 2);
        pages.check_integrity([&lease, &shared]).unwrap();
        assert!(pages.check_integrity([&lease]).unwrap_err().contains("page 0"));
        assert!(pages.check_integrity([]).is_err());
        pages.free.push(3);
        assert!(pages.check_integrity([&lease, &shared]).unwrap_err().contains("page 3"));
    }
}
