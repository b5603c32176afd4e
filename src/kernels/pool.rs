//! The worker pool: an explicit number of threads, one job at a time.
//!
//! [`Pool::run`] hands out the numbers `0..tasks` to whoever is free, the caller among them, and returns when
//! all are done. Which thread takes which number is left to chance, so tasks must not care.
//!
//! A decoded token is some hundred jobs of a few microseconds, so what a job costs beside its tasks is what
//! two cores need to hear of each other and little more: no lock that anybody waits for, no system call. A
//! job is written into a slot, and the number of tasks that nobody has taken yet (`left`) is set beside it,
//! in the same cache line; workers watch that number. Who counts it down by one has taken a task. When there
//! is none left, a worker adds the number of tasks it did to `done`, and the caller waits for the sum.
//! Whoever waits spins, after [`SPIN`] gives way to other threads now and then; a worker that has had nothing
//! to do for [`PATIENCE`] sleeps until it is called by name. Measured with two threads on a Zen 5: 20 ns for
//! a job of empty tasks, 0.15 us if each thread does one; a mutex and a condition variable took 0.3 and 0.65
//! us.
//!
//! **Why no worker touches a job whose caller has returned.** Taking a task is the only way into a job, and
//! it can be taken only while `left` is above zero. The caller of the job leaves when `done` has grown by the
//! number of tasks that others took, so between the taking of a task and the report of it the job is there:
//! only there does a worker read the slot, always after it has the task and never from before. A worker that
//! comes late finds zero and has nothing, or finds the next job's tasks, takes one, and reads the next job
//! from the slot. So it does not matter how much time passed while it looked, and there is no
//! generation to compare: a count that has come back to the same value (ABA) is a count that may be taken
//! from. In terms of memory: `left` is set with Release after the slot was written, and taken from with
//! Acquire; `done` grows with Release after the last use of the job, and is read with Acquire before the
//! caller leaves.
//!
//! What could go wrong, and what happens:
//! * a task panics: the panic is caught, the other tasks still run, `run` returns an `Internal` error;
//! * a task calls `run`: its tasks run inline, on the thread that asks;
//! * several threads call `run`: they take turns;
//! * the process forked: the child has none of the workers (and whatever the locks were, they stay), so a
//!   pool that finds itself in a child runs everything inline and touches neither;
//! * a worker is late (a busy machine) or asleep: nobody waits for a worker that has not taken a task.

use std::cell::{Cell, UnsafeCell};
use std::mem::MaybeUninit;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use crate::error::{Error, Result};
use crate::trace;

/// How long a thread waits before it begins to give way to others. Most waits are shorter (the next job; the
/// sampling between two steps), and who gives way on a busy machine may be gone for milliseconds. In a longer
/// wait, the thread that is waited for may want this core.
const SPIN: Duration = Duration::from_micros(50);

/// How long a worker without work stays awake: several times what waking it costs (5 to 50 microseconds, most
/// of it in a virtual machine), and longer than an engine needs from one step to the next, so that decoding
/// calls nobody by name.
const PATIENCE: Duration = Duration::from_micros(200);

/// Rounds of waiting between two looks at the clock: 1 to 3 microseconds.
const ROUNDS: u32 = 64;

thread_local! {
    /// Whether this thread is inside a task of a job that is shared.
    static BUSY: Cell<bool> = const { Cell::new(false) };
}

pub(super) struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// One caller at a time. In it: the tasks that workers have reported since the pool was made.
    turn: Mutex<usize>,
    /// [`forks`] when the pool was made.
    forks: usize,
}

#[derive(Default)]
struct Shared {
    board: Line<Board>,
    /// Tasks that workers have reported, ever; it wraps.
    done: Line<AtomicUsize>,
    beds: Line<Beds>,
}

/// What workers watch. All of it in one cache line: who takes a task has the job with it.
struct Board {
    /// Tasks of the job that nobody has taken.
    left: AtomicUsize,
    /// Written by the caller whose turn it is when nobody holds a task, read by those who hold one.
    job: UnsafeCell<MaybeUninit<Job<'static>>>,
}

// SAFETY: of its fields only `job` is not `Sync`; `Board::publish` and `Board::job` say when it may be used.
unsafe impl Sync for Board {}

/// Who sleeps.
#[derive(Default)]
struct Beds {
    closing: AtomicBool,
    /// How many are `true` in the next, or will be in a moment.
    asleep: AtomicUsize,
    workers: Vec<AtomicBool>,
}

/// A value that shares its cache line with no other: 128 bytes, as Apple's are, and as Intel fetches them.
#[derive(Default)]
#[repr(align(128))]
struct Line<T>(T);

/// What a job is: the closure, how many tasks, whether one panicked, and its name in a trace.
#[derive(Clone, Copy)]
struct Job<'a> {
    call: &'a (dyn Fn(usize) + Sync),
    tasks: usize,
    panicked: &'a AtomicBool,
    what: &'static str,
}

impl Pool {
    /// A pool of `threads` threads: the caller and `threads - 1` workers.
    ///
    /// # Errors
    /// `InvalidRequest` when `threads` is 0; `Device` when the system starts no more threads.
    pub(super) fn new(threads: usize) -> Result<Pool> {
        if threads == 0 {
            return Err(Error::invalid("threads must be at least 1"));
        }
        let mut shared = Shared::default();
        shared.beds.0.workers.resize_with(threads - 1, AtomicBool::default);
        let mut pool =
            Pool { shared: Arc::new(shared), workers: Vec::new(), turn: Mutex::new(0), forks: forks() };
        for index in 1..threads {
            let shared = pool.shared.clone();
            let thread = std::thread::Builder::new().name(format!("tallow-{index}"));
            // On failure `pool` is dropped, which ends the workers that were started.
            let worker = thread.spawn(move || shared.live(index - 1)).map_err(|error| {
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

    /// Calls `task` with each of `0..tasks`, on several threads at once. `what` is its name in a trace.
    ///
    /// # Errors
    /// `Internal` when a task panicked.
    pub(super) fn run(&self, what: &'static str, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        let panicked = AtomicBool::new(false);
        let job = Job { call: task, tasks, panicked: &panicked, what };
        if tasks <= 1 || self.workers.is_empty() || BUSY.get() || self.forks != forks() {
            let _span = (tasks > 0).then(|| trace::span(what));
            (0..tasks).for_each(|task| job.call(task));
        } else {
            self.share(&job);
        }
        match panicked.into_inner() {
            true => Err(Error::internal(format!("the CPU kernel {what} panicked; please report it"))),
            false => Ok(()),
        }
    }

    /// Publishes the job without its first task, does that and others, and waits for what workers took.
    fn share(&self, job: &Job<'_>) {
        let Shared { board: Line(board), done: Line(done), beds: Line(beds) } = &*self.shared;
        let mut due = lock(&self.turn);
        // SAFETY: it is our turn, and all before us have waited as we do below. Nothing between here and
        // there unwinds, as `Job::call` catches panics.
        unsafe { board.publish(job) };
        if beds.asleep.load(Ordering::Relaxed) > 0 {
            self.wake(job.tasks - 1);
        }
        BUSY.set(true);
        let own = board.work(job, job.tasks);
        BUSY.set(false);
        *due = due.wrapping_add(job.tasks - own);
        if done.load(Ordering::Acquire) != *due {
            let _span = trace::span("wait");
            let mut wait = Wait::default();
            while done.load(Ordering::Acquire) != *due {
                wait.a_little();
            }
        }
    }

    /// Calls up to `most` workers that sleep. Whoever falls asleep at this very moment is missed: that costs
    /// one job a worker, but does not stop it, and saves the caller a fence.
    #[cold]
    fn wake(&self, most: usize) {
        let beds = &self.shared.beds.0;
        let all = self.workers.iter().zip(&beds.workers);
        for (worker, _) in all.filter(|(_, asleep)| beds.leave(asleep)).take(most) {
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
        self.shared.beds.0.closing.store(true, Ordering::Release);
        self.wake(usize::MAX);
        for worker in self.workers.drain(..) {
            let _ = worker.join();
        }
        // Where there was no engine, this is the end.
        trace::flush();
    }
}

impl Shared {
    /// The life of a worker.
    fn live(&self, me: usize) {
        let (Line(board), Line(beds)) = (&self.board, &self.beds);
        BUSY.set(true);
        beds.sleep(me, board);
        let mut wait = Wait::default();
        while !beds.closing.load(Ordering::Acquire) {
            if let Some(left) = board.take() {
                // SAFETY: we hold a task, until `done` says that we do not.
                let job = unsafe { board.job() };
                let own = board.work(&job, left);
                self.done.0.fetch_add(own, Ordering::Release);
                wait = Wait::default();
            } else if wait.a_little() > PATIENCE {
                beds.sleep(me, board);
                wait = Wait::default();
            }
        }
    }
}

impl Default for Board {
    fn default() -> Self {
        Board { left: AtomicUsize::new(0), job: UnsafeCell::new(MaybeUninit::uninit()) }
    }
}

impl Board {
    /// Offers all tasks of the job but the first, which its caller has.
    ///
    /// # Safety
    /// Nobody holds a task of an earlier job or publishes another, and the caller keeps the job alive until
    /// all tasks are reported.
    unsafe fn publish(&self, job: &Job<'_>) {
        // SAFETY: nobody reads it, as nobody holds a task. Only the lifetime is changed: it will be read by
        // those who hold one, for whom the caller waits.
        unsafe { *self.job.get() = MaybeUninit::new(std::mem::transmute::<Job<'_>, Job<'static>>(*job)) };
        self.left.store(job.tasks - 1, Ordering::Release);
    }

    /// Takes a task, if there is one; returns how many were left with it.
    #[inline]
    fn take(&self) -> Option<usize> {
        self.left.fetch_update(Ordering::Acquire, Ordering::Relaxed, |left| left.checked_sub(1)).ok()
    }

    /// The job that a task was taken of.
    ///
    /// # Safety
    /// The thread has a task of it that it has not reported, and uses the job no longer than that.
    unsafe fn job(&self) -> Job<'static> {
        // SAFETY: it was written before the task could be taken, and stays so until the task is reported.
        unsafe { (*self.job.get()).assume_init() }
    }

    /// Does the task that was the first of `left`, and then what else can be taken. Returns how many it did.
    fn work(&self, job: &Job<'_>, mut left: usize) -> usize {
        let _span = trace::span(job.what);
        let mut own = 0;
        loop {
            job.call(job.tasks - left);
            own += 1;
            // After the last one there is no need to look, which would fetch the line from another core.
            match (left > 1).then(|| self.take()).flatten() {
                Some(more) => left = more,
                None => return own,
            }
        }
    }
}

impl Beds {
    /// Sleeps until somebody calls.
    fn sleep(&self, me: usize, board: &Board) {
        let bed = &self.workers[me];
        self.asleep.fetch_add(1, Ordering::Relaxed);
        // If this comes after the call of a pool that closes, it sees `closing` below (a swap reads the
        // latest value, and what was before it); if before, the call comes after it and takes it back.
        bed.swap(true, Ordering::AcqRel);
        if board.left.load(Ordering::Relaxed) > 0 || self.closing.load(Ordering::Acquire) {
            self.leave(bed);
        }
        while bed.load(Ordering::Acquire) {
            std::thread::park();
        }
    }

    /// Takes somebody out of bed; false if nobody was in it.
    fn leave(&self, bed: &AtomicBool) -> bool {
        let was = bed.swap(false, Ordering::AcqRel);
        if was {
            self.asleep.fetch_sub(1, Ordering::Relaxed);
        }
        was
    }
}

impl Job<'_> {
    fn call(&self, task: usize) {
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| (self.call)(task))) {
            self.panicked.store(true, Ordering::Relaxed);
            // Its drop might panic as well.
            std::mem::forget(panic);
        }
    }
}

/// How to wait for another thread.
#[derive(Default)]
struct Wait {
    rounds: u32,
    /// The first look at the clock: most waits are over before it.
    since: Option<Instant>,
}

impl Wait {
    /// Waits a moment. Returns how long it has done so when it looks at the clock, else nothing.
    #[inline]
    fn a_little(&mut self) -> Duration {
        std::hint::spin_loop();
        self.rounds = self.rounds.wrapping_add(1);
        if !self.rounds.is_multiple_of(ROUNDS) {
            return Duration::ZERO;
        }
        let waited = self.since.get_or_insert_with(Instant::now).elapsed();
        if waited > SPIN {
            std::thread::yield_now();
        }
        waited
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

/// A slice that tasks write to in disjoint parts.
pub(super) struct Shares<'a, T> {
    start: *mut T,
    len: usize,
    _slice: std::marker::PhantomData<&'a mut [T]>,
}

// SAFETY: it is written through `part` and `set` alone, whose callers promise to share no element.
unsafe impl<T: Send> Sync for Shares<'_, T> {}

impl<'a, T> Shares<'a, T> {
    pub(super) fn new(slice: &'a mut [T]) -> Self {
        Shares { start: slice.as_mut_ptr(), len: slice.len(), _slice: std::marker::PhantomData }
    }

    /// # Safety
    /// No two tasks ask for the same element.
    #[allow(clippy::mut_from_ref)]
    pub(super) unsafe fn part(&self, range: std::ops::Range<usize>) -> &mut [T] {
        assert!(range.start <= range.end && range.end <= self.len);
        // SAFETY: in bounds by the line above, and not shared by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.start.add(range.start), range.len()) }
    }

    /// Where element `range.start` is, for whoever writes to some of the range's elements and not to all: a slice of
    /// it would overlap with those of other tasks.
    pub(super) fn pointer(&self, range: std::ops::Range<usize>) -> *mut T {
        assert!(range.start <= range.end && range.end <= self.len);
        self.start.wrapping_add(range.start)
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
                let shares = Shares::new(&mut written);
                let task = |i: usize| {
                    count_one(&counts[i]);
                    // SAFETY: every task has its own element.
                    unsafe { shares.part(i..i + 1)[0] = round };
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

    /// Pauses about as long as the patience of a worker: they meet jobs as they fall asleep.
    #[test]
    fn jobs_that_come_as_workers_fall_asleep() {
        let pool = Pool::new(3).unwrap();
        let count = AtomicUsize::new(0);
        for round in 0..300 {
            std::thread::sleep(PATIENCE / 2 + Duration::from_micros(round));
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
