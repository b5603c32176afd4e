//! A slice that the tasks of a job write to at the same time, each its own part of it.

use std::marker::PhantomData;
use std::ops::Range;

/// A slice that tasks write to in disjoint parts.
pub(super) struct DisjointSlices<'a, T> {
    start: *mut T,
    len: usize,
    _slice: PhantomData<&'a mut [T]>,
}

// SAFETY: it is written through `part` and `set` alone, whose callers promise to share no element.
unsafe impl<T: Send> Sync for DisjointSlices<'_, T> {}

impl<'a, T> DisjointSlices<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        DisjointSlices { start: slice.as_mut_ptr(), len: slice.len(), _slice: PhantomData }
    }

    /// # Safety
    /// No two tasks ask for the same element.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn slice_mut(&self, range: Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the line above, and not shared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Where element `range.start` is, for whoever writes to some of the range's elements and not to all: a
    /// slice of it would overlap with those of other tasks.
    pub(super) fn pointer(&self, range: Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len);
        self.start.wrapping_add(range.start)
    }
}
