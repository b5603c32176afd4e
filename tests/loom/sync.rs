//! What `src/kernels/pool/sync.rs` is in the pool: here every step is one that loom may interrupt.

pub(super) use loom::cell::UnsafeCell;
pub(super) use loom::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(super) use loom::thread::park;

/// No clock: a wait lets others run, and is always long enough to park.
#[derive(Default)]
pub(super) struct Spin;

impl Spin {
    pub(super) fn spin(&mut self) -> bool {
        loom::thread::yield_now();
        true
    }
}
