//! The primitives that [`dispatch`](super::dispatch) is written in. `tests/loom` puts loom's in their place.

pub(super) use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
pub(super) use std::thread::park;
use std::time::{Duration, Instant};

/// How long a thread spins before it begins to yield. Most waits are shorter (the next job; the sampling
/// between two steps), and who yields on a busy machine may be gone for milliseconds. In a longer wait, the
/// thread that is waited for may want this core.
const SPIN_LIMIT: Duration = Duration::from_micros(50);

/// How long a worker without work stays awake: several times what waking it costs (5 to 50 microseconds, most
/// of it in a virtual machine), and longer than an engine needs from one step to the next, so that decoding
/// wakes nobody.
pub(super) const PARK_AFTER: Duration = Duration::from_micros(200);

/// Rounds of waiting between two looks at the clock: 1 to 3 microseconds.
const ROUNDS: u32 = 64;

/// A wait for another thread.
#[derive(Default)]
pub(super) struct Spin {
    rounds: u32,
    /// The first look at the clock: most waits are over before it.
    since: Option<Instant>,
}

impl Spin {
    /// Waits a moment; whether it has done so for long enough to park.
    #[inline]
    pub(super) fn spin(&mut self) -> bool {
        std::hint::spin_loop();
        self.rounds = self.rounds.wrapping_add(1);
        if !self.rounds.is_multiple_of(ROUNDS) {
            return false;
        }
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited > SPIN_LIMIT {
            std::thread::yield_now();
        }
        waited > PARK_AFTER
    }
}

/// As [`std::cell::UnsafeCell`], with loom's interface: it sees who reads and who writes.
#[derive(Default)]
pub(super) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(super) fn new(value: T) -> Self {
        UnsafeCell(std::cell::UnsafeCell::new(value))
    }

    #[inline(always)]
    pub(super) fn with<R>(&self, f: impl FnOnce(*const T) -> R) -> R {
        f(self.0.get())
    }

    #[inline(always)]
    pub(super) fn with_mut<R>(&self, f: impl FnOnce(*mut T) -> R) -> R {
        f(self.0.get())
    }
}
