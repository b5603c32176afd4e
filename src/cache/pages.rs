//! Who holds which page of the KV cache: integers only.
//!
//! [`Pages`] hands out [`Lease`]s. A lease is a value that is taken once and given back once: it cannot be
//! copied, and [`Pages::release`] consumes it. Several leases may hold the same page ([`Pages::share`]), so
//! each page has a count.
//!
//! A page may also be *kept* ([`Pages::keep`]): somebody (the prefix tree) knows what lies in it. When the
//! last lease of a kept page is released it is not free but *cached*: nobody uses it, and it can be leased
//! again with its contents ([`Pages::lease_kept`]), until it is evicted ([`Pages::forget`]).
//!
//! The invariant, after every operation: a page's count is the number of live leases that name it, the free
//! list holds exactly the pages that are neither leased nor kept, and `free + cached + leased = total`.
//! [`Pages::check_integrity`] asserts it; the engine calls it whenever it goes idle.

/// All pages of one cache.
#[derive(Debug)]
pub struct Pages {
    /// Leases that hold each page.
    counts: Vec<u32>,
    /// Whether the contents of each page are known to somebody.
    kept: Vec<bool>,
    /// Pages that nobody holds or keeps; the next one to give out is last.
    free: Vec<u32>,
    /// Pages that are kept and held by no lease.
    cached: usize,
    /// The most pages that were not free at once.
    touched: usize,
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
        let (counts, kept) = (vec![0; total as usize], vec![false; total as usize]);
        Pages { counts, kept, free: (0..total).rev().collect(), cached: 0, touched: 0 }
    }

    /// Pages in all.
    pub fn total(&self) -> usize {
        self.counts.len()
    }

    /// Pages that nobody holds and that hold nothing worth keeping.
    pub fn free(&self) -> usize {
        self.free.len()
    }

    /// Pages that are kept and that no lease holds.
    pub fn cached(&self) -> usize {
        self.cached
    }

    /// Pages that have ever been held: a page that was given back is given out again before a fresh one.
    pub fn touched(&self) -> usize {
        self.touched
    }

    /// How many leases hold `page`.
    pub fn leases(&self, page: u32) -> u32 {
        self.counts[page as usize]
    }

    /// Takes `count` free pages, all of them or none.
    pub fn lease(&mut self, count: usize) -> Option<Lease> {
        let rest = self.free.len().checked_sub(count)?;
        let pages: Vec<u32> = self.free.drain(rest..).rev().collect();
        for &page in &pages {
            self.counts[page as usize] = 1;
        }
        self.touched = self.touched.max(self.total() - self.free());
        Some(Lease { pages })
    }

    /// A lease of one kept page, whether others hold it or not.
    pub fn lease_kept(&mut self, page: u32) -> Lease {
        debug_assert!(self.kept[page as usize], "page {page} is leased by its number and not kept");
        let count = &mut self.counts[page as usize];
        *count += 1;
        if *count == 1 {
            self.cached -= 1;
        }
        Lease { pages: vec![page] }
    }

    /// From now on somebody knows what lies in `page`, which a lease holds.
    pub fn keep(&mut self, page: u32) {
        debug_assert!(self.counts[page as usize] > 0, "page {page} is kept and nobody holds it");
        self.kept[page as usize] = true;
    }

    /// Nobody knows any more what lies in `page`.
    pub fn forget(&mut self, page: u32) {
        if std::mem::take(&mut self.kept[page as usize]) && self.counts[page as usize] == 0 {
            self.cached -= 1;
            self.free.push(page);
        }
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
            match (*count, self.kept[page as usize]) {
                (0, false) => self.free.push(page),
                (0, true) => self.cached += 1,
                _ => {}
            }
        }
    }

    /// Checks that `live`, which must be all leases there are, `kept`, which must be all pages that are kept,
    /// and the free list account for every page.
    ///
    /// # Errors
    /// What does not add up.
    pub fn check_integrity<'a>(
        &self,
        live: impl IntoIterator<Item = &'a Lease>,
        kept: impl IntoIterator<Item = u32>,
    ) -> Result<(), String> {
        let mut held = vec![0u32; self.total()];
        for &page in live.into_iter().flat_map(|lease| &lease.pages) {
            held[page as usize] += 1;
        }
        if let Some(page) = (0..held.len()).find(|&page| held[page] != self.counts[page]) {
            return Err(format!("page {page}: {} leases, count {}", held[page], self.counts[page]));
        }
        let mut known = vec![false; self.total()];
        for page in kept {
            if std::mem::replace(&mut known[page as usize], true) {
                return Err(format!("page {page} is kept twice"));
            }
        }
        if let Some(page) = (0..known.len()).find(|&page| known[page] != self.kept[page]) {
            return Err(format!("page {page}: kept is {}, must be {}", self.kept[page], known[page]));
        }
        let mut listed = vec![false; self.total()];
        for &page in &self.free {
            let at = page as usize;
            if held[at] > 0 || known[at] || std::mem::replace(&mut listed[at], true) {
                return Err(format!("page {page} is in the free list twice, or held, or kept"));
            }
        }
        let leased = held.iter().filter(|&&count| count > 0).count();
        let cached = (0..known.len()).filter(|&page| known[page] && held[page] == 0).count();
        if cached != self.cached || self.free.len() + cached + leased != self.total() {
            let (free, counted, total) = (self.free.len(), self.cached, self.total());
            return Err(format!("{free} free + {cached} ({counted}) cached + {leased} leased, of {total}"));
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

    /// Puts `page`, which is one page of another lease, at place `at`; returns what was there.
    pub fn replace(&mut self, at: usize, page: Lease) -> Lease {
        debug_assert!(page.len() == 1 && at < self.pages.len());
        match (self.pages.get_mut(at), page.pages.first()) {
            (Some(place), Some(&new)) => Lease { pages: vec![std::mem::replace(place, new)] },
            _ => page,
        }
    }

    /// Splits the first `count` pages off (all of them, if it has fewer).
    pub fn split_first(&mut self, count: usize) -> Lease {
        // Asked for every sequence in every step, mostly for nothing.
        if count == 0 {
            return Lease::default();
        }
        let rest = self.pages.split_off(count.min(self.pages.len()));
        Lease { pages: std::mem::replace(&mut self.pages, rest) }
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

    /// The naive model: for each live lease the pages that it must name, and the pages that are kept. Free is
    /// what none of them names.
    #[derive(Default)]
    struct Model {
        leases: Vec<Vec<u32>>,
        kept: Vec<u32>,
        /// All that were ever leased.
        touched: std::collections::BTreeSet<u32>,
    }

    impl Model {
        fn held(&self, page: u32) -> bool {
            self.leases.iter().flatten().any(|&held| held == page)
        }

        fn free(&self, total: usize) -> usize {
            (0..total as u32).filter(|&page| !self.held(page) && !self.kept.contains(&page)).count()
        }

        fn cached(&self) -> usize {
            self.kept.iter().filter(|&&page| !self.held(page)).count()
        }
    }

    /// One random operation on both; the lists of leases run in parallel.
    fn operate(dice: &mut Dice, pages: &mut Pages, leases: &mut Vec<Lease>, model: &mut Model) {
        let free = model.free(pages.total());
        let any = dice.below(leases.len().max(1));
        let count = dice.below(5);
        match dice.below(9) {
            0..=2 => match pages.lease(count) {
                Some(lease) => {
                    assert!(count <= free, "leased {count} of {free}");
                    assert!(
                        !lease.pages().iter().any(|&page| model.held(page) || model.kept.contains(&page))
                    );
                    model.leases.push(lease.pages().to_vec());
                    model.touched.extend(lease.pages());
                    leases.push(lease);
                }
                None => assert!(count > free, "refused {count} of {free}"),
            },
            3 if !leases.is_empty() => {
                let shared = pages.share(&leases[any], count);
                model.leases.push(model.leases[any].iter().copied().take(count).collect());
                leases.push(shared);
            }
            4 if !leases.is_empty() => {
                let tail = leases[any].split_last(count);
                let rest = model.leases[any].len().saturating_sub(count);
                let expected = model.leases[any].split_off(rest);
                model.leases.push(expected);
                leases.push(tail);
            }
            5 if !leases.is_empty() && !leases[any].is_empty() => {
                let page = leases[any].pages()[0];
                if !model.kept.contains(&page) {
                    pages.keep(page);
                    model.kept.push(page);
                }
            }
            6 if !model.kept.is_empty() => {
                let page = model.kept[dice.below(model.kept.len())];
                leases.push(pages.lease_kept(page));
                model.leases.push(vec![page]);
            }
            7 if !model.kept.is_empty() => {
                pages.forget(model.kept.swap_remove(dice.below(model.kept.len())));
            }
            _ if !leases.is_empty() => {
                model.leases.swap_remove(any);
                pages.release(leases.swap_remove(any));
            }
            _ => {}
        }
        let named: Vec<_> = leases.iter().map(|lease| lease.pages().to_vec()).collect();
        assert_eq!(named, model.leases);
        assert_eq!((pages.free(), pages.cached()), (model.free(pages.total()), model.cached()));
        assert_eq!(pages.touched(), model.touched.len());
        pages.check_integrity(leases.iter(), model.kept.iter().copied()).unwrap();
    }

    #[test]
    fn random_operations_agree_with_a_naive_model() {
        for seed in 1..=40u64 {
            let total = [0, 1, 3, 8][seed as usize % 4];
            let (mut dice, mut pages) = (Dice(seed), Pages::new(total));
            let (mut leases, mut model) = (Vec::new(), Model::default());
            for _ in 0..700 {
                operate(&mut dice, &mut pages, &mut leases, &mut model);
            }
            leases.drain(..).for_each(|lease| pages.release(lease));
            assert_eq!(pages.free() + pages.cached(), total);
            model.kept.drain(..).for_each(|page| pages.forget(page));
            assert_eq!(pages.free(), total);
            pages.check_integrity([], []).unwrap();
        }
    }

    #[test]
    fn integrity_tells_what_is_wrong() {
        let mut pages = Pages::new(4);
        let lease = pages.lease(3).unwrap();
        let shared = pages.share(&lease, 2);
        pages.check_integrity([&lease, &shared], []).unwrap();
        assert!(pages.check_integrity([&lease], []).unwrap_err().contains("page 0"));
        assert!(pages.check_integrity([&lease, &shared], [2]).unwrap_err().contains("page 2"));
        assert!(pages.check_integrity([], []).is_err());
        pages.free.push(3);
        assert!(pages.check_integrity([&lease, &shared], []).unwrap_err().contains("page 3"));
    }
}
