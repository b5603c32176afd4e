//! What one sequence holds of each paged group: the pages of its positions, less those behind the window.

use super::layout::PagedGroup;
use super::pages::Lease;
use crate::step::{BEHIND, pages_for};

/// Leases of one sequence, one a paged group.
///
/// Like a [`Lease`], it must be given back: see [`Holding::into_leases`].
#[derive(Debug, Default)]
pub struct Holding {
    groups: Vec<GroupPages>,
}

/// Pages `first ..` of a sequence.
#[derive(Debug, Default)]
struct GroupPages {
    first: usize,
    lease: Lease,
}

impl Holding {
    /// Nothing yet, of so many groups.
    pub fn new(groups: usize) -> Self {
        Holding { groups: (0..groups).map(|_| GroupPages::default()).collect() }
    }

    /// Whether it holds no page of any group.
    pub fn is_empty(&self) -> bool {
        self.groups.iter().all(|group| group.lease.is_empty())
    }

    /// Page `index` of the sequence in `group`, if it is held.
    pub fn page(&self, group: usize, index: usize) -> Option<u32> {
        let it = self.groups.get(group)?;
        it.lease.pages().get(index.checked_sub(it.first)?).copied()
    }

    /// The first page that is not held yet.
    pub fn end(&self, group: usize) -> usize {
        self.groups.get(group).map_or(0, |it| it.first + it.lease.len())
    }

    /// The first page that every group lacks or will get next.
    pub fn shortest(&self) -> usize {
        (0..self.groups.len()).map(|group| self.end(group)).min().unwrap_or(0)
    }

    /// Pages of a group.
    pub fn len(&self, group: usize) -> usize {
        self.groups.get(group).map_or(0, |it| it.lease.len())
    }

    /// Adds pages behind those that are there.
    pub fn append(&mut self, group: usize, lease: Lease) {
        self.groups[group].lease.append(lease);
    }

    /// Puts one page at `index`, which is held (what was there is returned) or is the next one.
    pub fn place(&mut self, group: usize, index: usize, page: Lease) -> Lease {
        let it = &mut self.groups[group];
        match index.checked_sub(it.first) {
            Some(at) if at < it.lease.len() => it.lease.replace(at, page),
            Some(at) if at == it.lease.len() => {
                it.lease.append(page);
                Lease::default()
            }
            _ => page,
        }
    }

    /// Splits off what lies before page `first` of a group.
    pub fn split_before(&mut self, group: usize, first: usize) -> Lease {
        let it = &mut self.groups[group];
        let count = first.saturating_sub(it.first).min(it.lease.len());
        it.first += count;
        if it.lease.len() == count {
            it.first = it.first.max(first);
        }
        it.lease.split_first(count)
    }

    /// Splits off pages `from ..` of a group.
    pub fn split_from(&mut self, group: usize, from: usize) -> Lease {
        let it = &mut self.groups[group];
        it.lease.split_last((it.first + it.lease.len()).saturating_sub(from))
    }

    /// The first `pages` entries of a group's page table.
    pub fn table(&self, group: usize, pages: usize) -> Vec<u32> {
        let Some(it) = self.groups.get(group) else { return Vec::new() };
        let behind = it.first.min(pages);
        let mut table = Vec::with_capacity(pages);
        table.resize(behind, BEHIND);
        table.extend(it.lease.pages().iter().take(pages - behind));
        table
    }

    /// The same pages up to page `before`, each lease copied by `share`, which takes how many of its pages.
    pub fn copy_with(&self, before: usize, mut share: impl FnMut(&Lease, usize) -> Lease) -> Holding {
        let mut copy = |it: &GroupPages| GroupPages {
            first: it.first,
            lease: share(&it.lease, before.saturating_sub(it.first)),
        };
        Holding { groups: self.groups.iter().map(&mut copy).collect() }
    }

    /// The leases, one a group.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.groups.iter().map(|it| &it.lease)
    }

    /// All of it, to be given back.
    pub fn into_leases(self) -> impl Iterator<Item = Lease> {
        self.groups.into_iter().map(|it| it.lease)
    }

    /// Pages that are missing for a sequence of `len` positions of which `computed` are computed, when the
    /// next step computes at most `rows`: all of them where there is no window, else those of the next step.
    pub fn lacking(&self, groups: &[PagedGroup], computed: usize, len: usize, rows: usize) -> usize {
        (0..groups.len()).map(|group| self.lacking_of(group, groups, computed, len, rows)).sum()
    }

    /// See [`Holding::lacking`], of one group.
    pub fn lacking_of(
        &self,
        group: usize,
        groups: &[PagedGroup],
        computed: usize,
        len: usize,
        rows: usize,
    ) -> usize {
        let end = match groups[group].window {
            None => len,
            Some(_) => len.min(computed.saturating_add(rows)),
        };
        pages_for(end).saturating_sub(self.end(group))
    }
}
