//! How a transfer tells its length, and how it is told to stop.

/// Someone who watches a transfer. Called from one thread at a time, but from more than one thread over its
/// life.
pub trait Progress: Send + Sync {
    /// A transfer begins. `what` is for a person; `total` is in bytes, `None` where nobody knows it.
    fn start(&self, what: &str, total: Option<u64>);
    /// So many bytes more have arrived (or were there already when a transfer resumes).
    fn advance(&self, bytes: u64);
    /// The transfer that began last is over, well or badly. Each `start` has one `finish`.
    fn finish(&self);
    /// Whether to give up. Asked at least every 100 ms while anything is waited for.
    fn cancelled(&self) -> bool;
}

/// Nobody watches, nobody stops it.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoProgress;

impl Progress for NoProgress {
    fn start(&self, _what: &str, _total: Option<u64>) {}
    fn advance(&self, _bytes: u64) {}
    fn finish(&self) {}
    fn cancelled(&self) -> bool {
        false
    }
}

/// Pairs each `start` with its `finish`, on every way out of a function.
pub(crate) struct Bar<'a>(&'a dyn Progress);

impl<'a> Bar<'a> {
    pub(crate) fn start(progress: &'a dyn Progress, what: &str, total: Option<u64>) -> Self {
        progress.start(what, total);
        Bar(progress)
    }

    pub(crate) fn advance(&self, bytes: u64) {
        self.0.advance(bytes);
    }
}

impl Drop for Bar<'_> {
    fn drop(&mut self) {
        self.0.finish();
    }
}
