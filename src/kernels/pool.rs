//! The worker pool: an explicit number of threads, one job at a time.
//!
//! [`Pool::run`] hands out the numbers `0..tasks` to whoever is free, the caller among them, and returns when
//! all are done. Which thread takes which number is left to chance, so tasks must not care.
//!
//! A decoded token is some hundred jobs of a few microseconds, so what a job costs beside its tasks is what
//! two cores need to hear of each other and little more: [`dispatch`] says how. Measured with two threads on
//! a Zen 5: 20 ns for a job of empty tasks, 0.15 us if each thread does one; a mutex and a condition variable
//! took 0.3 and 0.65 us. Workers spin for a while before they park, in [`sync`].
//!
//! What could go wrong, and what happens:
//! * a task panics: the panic is caught, the other tasks still run, `run` returns an `Internal` error;
//! * a task calls `run`: its tasks run inline, on the thread that asks;
//! * several threads call `run`: they take turns;
//! * the process forked: the child has none of the workers (and whatever the locks were, they stay), so a
//!   pool that finds itself in a child runs everything inline and touches neither;
//! * a worker is late (a busy machine) or parked: nobody waits for a worker that has not taken a task.

mod dispatch;
mod sync;

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use self::dispatch::Dispatch;
use crate::error::{Error, Result};
use crate::trace;

thread_local! {
    /// Whether this thread is inside a task of a job that is shared.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

pub(super) struct Pool {
    dispatch: Arc<Dispatch<Job<'static>>>,
    workers: Vec<JoinHandle<()>>,
    /// One caller at a time. In it: the tasks that workers have reported since the pool was made.
    turn: Mutex<usize>,
    /// [`forks`] when the pool was made.
    forks: usize,
}

/// What a job is: the closure, how many tasks, whether one panicked, and its name in a trace.
#[derive(Clone, Copy)]
struct Job<'a> {
    call: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    panicked: &'a AtomicBool,
    what: &'static str,
}

impl dispatch::Job for Job<'_> {
    type Span = trace::Span;

    fn tasks(&self) -> usize {
        self.tasks
    }

    fn call(&self, task: usize) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.call)(task))) {
            self.panicked.store(true, Ordering::Relaxed);
            // Its drop might panic as well.
            std::mem::forget(panic);
        }
    }

    fn span(&self) -> trace::Span {
        trace::span(self.what)
    }

    fn wait_span() -> trace::Span {
        trace::span("wait")
    }
}

impl Pool {
    /// A pool of `threads` threads: the caller and `threads - 1` workers.
    ///
    /// # Errors
    /// `InvalidRequest` when `threads` is 0; `Device` when the system starts no more threads.
    pub(super) fn new(threads: usize) -> Result<Pool> {
        let Some(workers) = threads.checked_sub(1) else {
            return Err(Error::invalid("threads must be at least 1"));
        };
        let dispatch = Arc::new(Dispatch::new(workers));
        let mut pool = Pool { dispatch, workers: Vec::new(), turn: Mutex::new(0), forks: forks() };
        for index in 0..workers {
            let dispatch = pool.dispatch.clone();
            let serve = move || {
                BUSY.set(true);
                dispatch.serve(index);
            };
            let thread = std::thread::Builder::new().name(format!("tallow-{}", index + 1));
            // On failure `pool` is dropped, which ends the workers that were started.
            let worker = thread.spawn(serve).map_err(|error| {
                Error::device(format!("thread {} of {threads} cannot be started: {error}", index + 1))
                    .with_source(error)
            })?;
            pool.workers.push(worker);
        }
        Ok(pool)
    }

    pub(super) fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Calls `task` with each of `0..tasks`, on several threads at once. `what` is its name in a trace.
    ///
    /// # Errors
    /// `Internal` when a task panicked.
    pub(super) fn run(&self, what: &'static str, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        let panicked = AtomicBool::new(false);
        let job = Job { call: task, tasks, panicked: &panicked, what };
        if tasks <= 1 || self.workers.is_empty() || BUSY.get() || self.forks != forks() {
            let _span = (tasks > 0).then(|| trace::span(what));
            (0..tasks).for_each(|task| dispatch::Job::call(&job, task));
        } else {
            self.share(job);
        }
        match panicked.into_inner() {
            true => Err(Error::internal(format!("the CPU kernel {what} panicked; please report it"))),
            false => Ok(()),
        }
    }

    /// Runs the job on all threads.
    fn share(&self, job: Job<'_>) {
        let mut reported = lock(&self.turn);
        // SAFETY: only the lifetime is changed. `run` returns once nobody uses the job any more, and does not
        // unwind.
        let job = unsafe { std::mem::transmute::<Job<'_>, Job<'static>>(job) };
        BUSY.set(true);
        // SAFETY: whoever holds the lock is the only caller, and the number in it belongs to this dispatch.
        unsafe { self.dispatch.run(job, &mut reported, |worker| self.unpark(worker)) };
        BUSY.set(false);
    }

    #[cold]
    fn unpark(&self, worker: usize) {
        if let Some(worker) = self.workers.get(worker) {
            worker.thread().unpark();
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        if self.forks != forks() {
            // After a fork these threads are not there to be joined.
            std::mem::take(&mut self.workers).into_iter().for_each(std::mem::forget);
            return;
        }
        self.dispatch.close(|worker| self.unpark(worker));
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
        // Where there was no engine, this is the end.
        trace::flush();
    }
}

/// How often this process has come out of a fork as the child, since the first question. (Comparing process
/// numbers is a system call for each job, as the C library remembers none.)
fn forks() -> usize {
    static FORKS: AtomicUsize = AtomicUsize::new(0);
    #[cfg(unix)]
    {
        static WATCH: std::sync::Once = std::sync::Once::new();
        extern "C" fn count() {
            FORKS.fetch_add(1, Ordering::Relaxed);
        }
        WATCH.call_once(|| {
            // SAFETY: the function only adds to an atomic, which a child may do at once. The only error is
            // that there is no memory for the entry; a child would then believe that it has workers.
            let _ = unsafe { libc::pthread_atfork(None, None, Some(count)) };
        });
    }
    FORKS.load(Ordering::Relaxed)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;
    use crate::error::ErrorKind;
    use crate::kernels::disjoint::DisjointSlices;

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
                    pool.run("test", tasks, &|i| count_one(&counts[i])).unwrap();
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
            .run("test", 20, &|i| {
                assert!(i != 7, "on purpose");
                done.fetch_add(1, Ordering::Relaxed);
            })
            .unwrap_err();
        assert_eq!((error.kind(), done.load(Ordering::Relaxed)), (ErrorKind::Internal, 19));
        pool.run("test", 20, &|_| count_one(&done)).unwrap();
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
                        pool.run("test", 4, &|_| {
                            pool.run("test", 3, &|_| count_one(&count)).unwrap();
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
        let together = std::sync::Barrier::new(2);
        for _ in 0..5 {
            std::thread::sleep(Duration::from_millis(5));
            // Each task waits for the other, so one thread alone would never come to the end.
            let meet = |_| {
                together.wait();
            };
            pool.run("test", 2, &meet).unwrap();
            let count = AtomicUsize::new(0);
            pool.run("test", 64, &|_| count_one(&count)).unwrap();
            assert_eq!(count.load(Ordering::Relaxed), 64);
        }
        assert_eq!(Pool::new(0).err().map(|e| e.kind()), Some(ErrorKind::InvalidRequest));
    }

    /// Jobs so small that threads come and go all the time, on more threads than there are cores.
    #[test]
    fn thousands_of_tiny_jobs_on_too_many_threads() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads).unwrap();
            let counts: [AtomicUsize; 5] = Default::default();
            for round in 0..20_000 {
                // What a task writes is here and in order when `run` returns, and later tasks touch it no
                // more.
                let mut written = [usize::MAX; 5];
                let tasks = 1 + round % 5;
                let shares = DisjointSlices::new(&mut written);
                let task = |i: usize| {
                    count_one(&counts[i]);
                    // SAFETY: every task has its own element.
                    unsafe { shares.slice_mut(i..i + 1)[0] = round };
                };
                pool.run("test", tasks, &task).unwrap();
                let (now, never) = written.split_at(tasks);
                assert!(now.iter().all(|&it| it == round), "{threads} threads, round {round}: {now:?}");
                assert!(
                    never.iter().all(|&it| it == usize::MAX),
                    "{threads} threads, round {round}: {never:?}"
                );
            }
            let counts = counts.map(AtomicUsize::into_inner);
            assert_eq!(counts, [20_000, 16_000, 12_000, 8_000, 4_000], "{threads} threads");
        }
    }

    /// Pauses about as long as workers stay awake: they meet jobs as they fall asleep.
    #[test]
    fn jobs_that_come_as_workers_fall_asleep() {
        let pool = Pool::new(3).unwrap();
        let count = AtomicUsize::new(0);
        for round in 0..300 {
            std::thread::sleep(sync::PARK_AFTER / 2 + Duration::from_micros(round));
            pool.run("test", 3, &|_| count_one(&count)).unwrap();
        }
        assert_eq!(count.load(Ordering::Relaxed), 900);
    }

    #[test]
    fn a_pool_of_sleepers_closes_at_once_and_so_does_one_at_work() {
        for round in 0..200 {
            let pool = Pool::new(4).unwrap();
            if round % 2 == 0 {
                pool.run("test", 4, &|_| std::hint::spin_loop()).unwrap();
            }
        }
    }

    #[cfg(unix)]
    #[test]
    fn a_forked_child_runs_alone() {
        let pool = Pool::new(3).unwrap();
        pool.run("test", 8, &|_| {}).unwrap();
        let this = std::thread::current().id();
        // Forked in the middle of a job: in the child this lock is held for ever.
        let turn = lock(&pool.turn);
        // SAFETY: the child calls nothing but `run`, which neither locks nor allocates there, and ends.
        let child = unsafe { libc::fork() };
        if child == 0 {
            // SAFETY: it ends the process if nothing else does.
            unsafe { libc::alarm(10) };
            let elsewhere = AtomicUsize::new(0);
            let outcome = pool.run("test", 8, &|_| {
                elsewhere.fetch_add(usize::from(std::thread::current().id() != this), Ordering::Relaxed);
            });
            // SAFETY: it ends the process.
            unsafe { libc::_exit(i32::from(outcome.is_err() || elsewhere.into_inner() > 0)) };
        }
        drop(turn);
        let mut status = -1;
        // SAFETY: a process number that we were given, and a place for the answer.
        assert_eq!(unsafe { libc::waitpid(child, &mut status, 0) }, child);
        assert_eq!(status, 0);
        pool.run("test", 8, &|_| {}).unwrap();
    }

    /// `cargo test --profile fast --lib round_trip -- --ignored --nocapture --test-threads=1`
    ///
    /// Empty tasks are mostly done by the caller before a worker has seen them: that is what a job costs its
    /// caller. In a meeting each task waits for the other: that is the way there and back.
    #[test]
    #[ignore = "prints a time"]
    fn round_trip() {
        let arrived = AtomicUsize::new(0);
        let meet = |_| {
            let both = (arrived.fetch_add(1, Ordering::AcqRel) & !1) + 2;
            while arrived.load(Ordering::Acquire) < both {
                std::hint::spin_loop();
            }
        };
        let empty = |_| {};
        let rows = [
            (1, 2, "empty", &empty as &(dyn Fn(usize) + Sync)),
            (2, 1, "empty", &empty),
            (2, 2, "empty", &empty),
            (2, 8, "empty", &empty),
            (2, 2, "meeting", &meet),
        ];
        for (threads, tasks, name, task) in rows {
            let pool = Pool::new(threads).unwrap();
            let mut batches: Vec<_> = (0..200)
                .map(|_| {
                    let begin = Instant::now();
                    (0..1000).for_each(|_| pool.run("test", tasks, task).unwrap());
                    begin.elapsed() / 1000
                })
                .collect();
            batches.sort();
            let (least, median) = (batches[0], batches[batches.len() / 2]);
            println!("{threads} threads, {tasks} {name} tasks: {median:?} a job (at least {least:?})");
        }
    }
}
