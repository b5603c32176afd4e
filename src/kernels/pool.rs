//! The worker pool: an explicit number of threads, one job at a time.
//!
//! [`Pool::run`] hands out the numbers `0..tasks` to whoever is free, the caller among them, and returns when
//! all are done. Which thread takes which number is left to chance, so tasks must not care. Workers spin for
//! a moment after a job, since the next one is mostly microseconds away, and then sleep.
//!
//! What could go wrong, and what happens:
//! * a task panics: the panic is caught, the other tasks still run, `run` returns an `Internal` error;
//! * a task calls `run`: its tasks run inline, on the thread that asks;
//! * the process forked: the child has none of the workers (and whatever the locks were, they stay), so a
//!   pool that finds itself under another process id runs everything inline and touches neither;
//! * a worker is late (a busy machine): nobody waits for a worker that has not taken a task.

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use crate::error::{Error, Result};

/// Rounds of waiting before a thread sleeps: some tens of microseconds.
const SPINS: u32 = 4000;

thread_local! {
    /// Whether this thread is inside a task.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One caller at a time.
    turn: Mutex<()>,
    pid: u32,
}

struct Shared {
    state: Mutex<State>,
    /// There is a job, or the pool closes.
    wake: Condvar,
    /// The last worker has left a job.
    done: Condvar,
    /// Counts jobs, for those who spin.
    jobs: AtomicUsize,
    /// Workers inside the job; changes under the lock, is read without it by the spinning caller.
    active: AtomicUsize,
}

#[derive(Default)]
struct State {
    job: Option<JobRef>,
    closing: bool,
}

/// What a job is: the closure, the next task, how many there are, and whether one panicked.
struct Job<'a> {
    call: &'a (dyn Fn(usize) + Sync),
    next: AtomicUsize,
    tasks: usize,
    panicked: AtomicBool,
}

/// A job on the stack of the caller, who does not leave before all who took this have let it go.
#[derive(Clone, Copy)]
struct JobRef(*const Job<'static>);

// SAFETY: a `Job` is `Sync` (its closure is), and the pointer is followed only while `run` waits.
unsafe impl Send for JobRef {}

impl Pool {
    /// A pool of `threads` threads: the caller and `threads - 1` workers.
    ///
    /// # Errors
    /// `InvalidRequest` when `threads` is 0; `Device` when the system starts no more threads.
    pub(super) fn new(threads: usize) -> Result<Pool> {
        if threads == 0 {
            return Err(Error::invalid("threads must be at least 1"));
        }
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            wake: Condvar::new(),
            done: Condvar::new(),
            jobs: AtomicUsize::new(0),
            active: AtomicUsize::new(0),
        });
        let mut pool = Pool { shared, workers: Vec::new(), turn: Mutex::new(()), pid: std::process::id() };
        for index in 1..threads {
            let shared = pool.shared.clone();
            let thread = std::thread::Builder::new().name(format!("tallow-{index}"));
            // On failure `pool` is dropped, which ends the workers that were started.
            let worker = thread.spawn(move || shared.work()).map_err(|error| {
                Error::device(format!("thread {index} of {threads} cannot be started: {error}"))
                    .with_source(error)
            })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` with each of `0..tasks`, on several threads at once.
    ///
    /// # Errors
    /// `Internal` when a task panicked.
    pub(super) fn run(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        let job = Job { call: task, next: AtomicUsize::new(0), tasks, panicked: AtomicBool::new(false) };
        let alone = self.workers.is_empty() || tasks <= 1 || BUSY.get() || std::process::id() != self.pid;
        match alone {
            true => job.work(),
            false => self.share(&job),
        }
        match job.panicked.into_inner() {
            true => Err(Error::internal("a CPU kernel panicked; please report it")),
            false => Ok(()),
        }
    }

    /// Publishes the job, works on it, takes it back, and waits for those who are still in it.
    fn share(&self, job: &Job<'_>) {
        let _turn = lock(&self.turn);
        // SAFETY: only the lifetime is changed. No worker takes the job after `job = None` below, and
        // `active == 0` says that those who took it have let it go; neither line can be skipped, as
        // `Job::work` catches panics.
        let job_ref = JobRef(std::ptr::from_ref(job).cast());
        lock(&self.shared.state).job = Some(job_ref);
        self.shared.jobs.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
        job.work();
        lock(&self.shared.state).job = None;
        self.shared.wait_until_idle();
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if std::process::id() != self.pid {
            // After a fork these threads are not there to be joined.
            std::mem::take(&mut self.workers).into_iter().for_each(std::mem::forget);
            return;
        }
        lock(&self.shared.state).closing = true;
        self.shared.jobs.fetch_add(1, Ordering::Release);
        self.shared.wake.notify_all();
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
    }
}

impl Shared {
    /// The life of a worker.
    fn work(&self) {
        let mut seen = 0;
        loop {
            seen = self.wait_for_job(seen);
            let job = {
                let state = lock(&self.state);
                if state.closing {
                    return;
                }
                let Some(job) = state.job else { continue };
                self.active.fetch_add(1, Ordering::AcqRel);
                job
            };
            // SAFETY: taken under the lock and counted in `active`: the caller of `run` waits for us.
            unsafe { &*job.0 }.work();
            let _state = lock(&self.state);
            if self.active.fetch_sub(1, Ordering::AcqRel) == 1 {
                self.done.notify_all();
            }
        }
    }

    /// Spins, then sleeps, until the job counter is no longer `seen`; returns what it is.
    fn wait_for_job(&self, seen: usize) -> usize {
        for _ in 0..SPINS {
            let jobs = self.jobs.load(Ordering::Acquire);
            if jobs != seen {
                return jobs;
            }
            std::hint::spin_loop();
        }
        let mut state = lock(&self.state);
        loop {
            let jobs = self.jobs.load(Ordering::Acquire);
            if jobs != seen {
                return jobs;
            }
            // The counter may change between the test and the sleep only if `share` is past its lock: it
            // then notifies before we sleep. `job` tells.
            if state.job.is_some() || state.closing {
                return jobs;
            }
            state = self.wake.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn wait_until_idle(&self) {
        for _ in 0..SPINS {
            if self.active.load(Ordering::Acquire) == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let mut state = lock(&self.state);
        while self.active.load(Ordering::Acquire) != 0 {
            state = self.done.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Job<'_> {
    /// Takes tasks until there are none.
    fn work(&self) {
        let outer = BUSY.replace(true);
        loop {
            let task = self.next.fetch_add(1, Ordering::Relaxed);
            if task >= self.tasks {
                break;
            }
            if catch_unwind(AssertUnwindSafe(|| (self.call)(task))).is_err() {
                self.panicked.store(true, Ordering::Relaxed);
            }
        }
        BUSY.set(outer);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A slice that tasks write to in disjoint parts.
pub(super) struct Shares<'a> {
    start: *mut f32,
    len: usize,
    _slice: std::marker::PhantomData<&'a mut [f32]>,
}

// SAFETY: it is written through `part` and `set` alone, whose callers promise to share no element.
unsafe impl Sync for Shares<'_> {}

impl<'a> Shares<'a> {
    pub(super) fn new(slice: &'a mut [f32]) -> Self {
        Shares { start: slice.as_mut_ptr(), len: slice.len(), _slice: std::marker::PhantomData }
    }

    /// # Safety
    /// No two tasks ask for the same element.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, range: std::ops::Range<usize>) -> &mut [f32] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the line above, and not shared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// # Safety
    /// No two tasks set the same element, and nobody holds a [`Self::part`] with it.
    #[inline(always)]
    pub(super) unsafe fn set(&self, index: usize, value: f32) {
        assert!(index < self.len);
        // SAFETY: in bounds by the line above, and not shared by the caller's promise.
        unsafe { *self.start.add(index) = value }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    fn count_one(count: &AtomicUsize) {
        count.fetch_add(1, Ordering::Relaxed);
    }

    #[test]
    fn every_task_runs_once_whoever_takes_it() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            for tasks in [0, 1, 2, 7, 100] {
                let counts: Vec<_> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                for _ in 0..50 {
                    pool.run(tasks, &|i| count_one(&counts[i])).unwrap();
                }
                let wrong = counts.iter().filter(|c| c.load(Ordering::Relaxed) != 50).count();
                assert_eq!(wrong, 0, "{threads} threads, {tasks} tasks");
            }
        }
    }

    #[test]
    fn a_panic_is_an_error_and_the_pool_lives_on() {
        let pool = Pool::new(3).unwrap();
        let done = AtomicUsize::new(0);
        let error = pool
            .run(20, &|i| {
                assert!(i != 7, "on purpose");
                done.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap_err();
        assert_eq!((error.kind(), done.load(Ordering::Relaxed)), (ErrorKind::Internal, 19));
        pool.run(20, &|_| count_one(&done)).unwrap();
        assert_eq!(done.load(Ordering::Relaxed), 39);
    }

    #[test]
    fn nested_and_concurrent_callers_do_not_wait_for_each_other_for_ever() {
        let pool = Pool::new(3).unwrap();
        let count = AtomicUsize::new(0);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..100 {
                        pool.run(4, &|_| {
                            pool.run(3, &|_| count_one(&count)).unwrap();
                        })
                        .unwrap();
                    }
                });
            }
        });
        assert_eq!(count.load(Ordering::Relaxed), 4 * 100 * 4 * 3);
    }

    #[test]
    fn sleeping_workers_wake_up() {
        let pool = Pool::new(2).unwrap();
        for _ in 0..5 {
            std::thread::sleep(std::time::Duration::from_millis(5));
            let count = AtomicUsize::new(0);
            pool.run(64, &|_| count_one(&count)).unwrap();
            assert_eq!(count.load(Ordering::Relaxed), 64);
        }
        assert_eq!(Pool::new(0).err().map(|e| e.kind()), Some(ErrorKind::InvalidRequest));
    }
}
