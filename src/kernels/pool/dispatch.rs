//! How a job gets from its caller to the workers and back: no lock that anybody waits for, no system call
//! while workers are awake.
//!
//! A job is written into a slot, and the number of tasks that nobody has taken yet (`remaining`) is set
//! beside it, in the same cache line; workers watch that number. Who counts it down by one has taken a task.
//! When there is none left, a worker adds the number of tasks it did to `done`, and the caller waits for the
//! sum. Whoever waits spins; a worker that has had nothing to do for a while parks until it is woken.
//!
//! **Why no worker touches a job whose caller has returned.** Taking a task is the only way into a job, and
//! it can be taken only while `remaining` is above zero. The caller of the job leaves when `done` has grown
//! by the number of tasks that others took, so between the taking of a task and the report of it the job is
//! there: only there does a worker read the slot, always after it has the task and never from before. A
//! worker that comes late finds zero and has nothing, or finds the next job's tasks, takes one, and reads the
//! next job from the slot. So it does not matter how much time passed while it looked, and there is no
//! generation to compare: a count that has come back to the same value (ABA) is a count that may be taken
//! from. In terms of memory: `remaining` is set with Release after the slot was written, and taken from with
//! Acquire; `done` grows with Release after the last use of the job, and is read with Acquire before the
//! caller leaves.
//!
//! This file is compiled twice: here, and over loom's primitives in `tests/loom` (`make loom`), which runs it
//! in every order of its steps.

use std::mem::MaybeUninit;

use super::sync::{AtomicBool, AtomicUsize, Ordering, Spin, UnsafeCell, park};

/// Tasks `0..tasks`, which any thread may run.
pub(super) trait Job: Copy {
    /// Held while tasks run, or while their end is waited for: a span of a trace.
    type Span;

    fn tasks(&self) -> usize;
    /// Runs a task. It does not unwind.
    fn call(&self, task: usize);
    fn span(&self) -> Self::Span;
    fn wait_span() -> Self::Span;
}

/// What callers and workers share.
pub(super) struct Dispatch<J> {
    slot: CachePadded<JobSlot<J>>,
    /// Tasks that workers have reported, ever; it wraps.
    done: CachePadded<AtomicUsize>,
    parked: CachePadded<ParkedWorkers>,
}

/// What workers watch. All of it in one cache line: who takes a task has the job with it.
struct JobSlot<J> {
    /// Tasks of the job that nobody has taken.
    remaining: AtomicUsize,
    /// Written by the caller when nobody holds a task, read by those who hold one.
    job: UnsafeCell<MaybeUninit<J>>,
}

// SAFETY: of its fields only `job` is not `Sync`; `publish` and `job` say when it may be used. A job is read
// by many threads at once, of which each has its own copy.
unsafe impl<J: Send + Sync> Sync for JobSlot<J> {}

/// Workers that wait to be woken.
struct ParkedWorkers {
    closing: AtomicBool,
    /// How many are `true` in the next, or will be in a moment.
    count: AtomicUsize,
    workers: Vec<AtomicBool>,
}

/// A value that shares its cache line with no other: 128 bytes, as Apple's are, and as Intel fetches them.
#[repr(align(128))]
struct CachePadded<T>(T);

impl<J: Job> Dispatch<J> {
    pub(super) fn new(workers: usize) -> Self {
        let slot = JobSlot { remaining: AtomicUsize::new(0), job: UnsafeCell::new(MaybeUninit::uninit()) };
        let workers = (0..workers).map(|_| AtomicBool::new(false)).collect();
        let parked = ParkedWorkers { closing: AtomicBool::new(false), count: AtomicUsize::new(0), workers };
        let done = AtomicUsize::new(0);
        Dispatch { slot: CachePadded(slot), done: CachePadded(done), parked: CachePadded(parked) }
    }

    /// Publishes the job without its first task, does that and others, and waits for what workers took.
    /// `reported` is what [`done`](Dispatch::done) was after the last job.
    ///
    /// # Safety
    /// One caller at a time, with the same `reported`. What the job refers to lives until this returns.
    pub(super) unsafe fn run(&self, job: J, reported: &mut usize, unpark: impl Fn(usize)) {
        let CachePadded(slot) = &self.slot;
        // SAFETY: there is one caller, and those before it have waited as is done below, so that nobody holds
        // a task.
        unsafe { slot.publish(job) };
        self.parked.0.wake(job.tasks() - 1, unpark);
        let own = slot.work(&job, job.tasks());
        *reported = reported.wrapping_add(job.tasks() - own);
        if self.done.0.load(Ordering::Acquire) != *reported {
            let _span = J::wait_span();
            let mut wait = Spin::default();
            while self.done.0.load(Ordering::Acquire) != *reported {
                wait.spin();
            }
        }
    }

    /// The life of worker `me`, until [`close`](Dispatch::close).
    pub(super) fn serve(&self, me: usize) {
        let (CachePadded(slot), CachePadded(parked)) = (&self.slot, &self.parked);
        parked.park(me, slot);
        let mut wait = Spin::default();
        while !parked.closing.load(Ordering::Acquire) {
            if let Some(left) = slot.take() {
                // SAFETY: we hold a task, until `done` says that we do not.
                let job = unsafe { slot.job() };
                let own = slot.work(&job, left);
                self.done.0.fetch_add(own, Ordering::Release);
                wait = Spin::default();
            } else if wait.spin() {
                parked.park(me, slot);
                wait = Spin::default();
            }
        }
    }

    /// Ends all workers.
    pub(super) fn close(&self, unpark: impl Fn(usize)) {
        self.parked.0.closing.store(true, Ordering::Release);
        self.parked.0.wake(usize::MAX, unpark);
    }
}

impl<J: Job> JobSlot<J> {
    /// Offers all tasks of the job but the first, which its caller has.
    ///
    /// # Safety
    /// Nobody holds a task of an earlier job or publishes another, and what the job refers to lives until all
    /// tasks are reported.
    unsafe fn publish(&self, job: J) {
        // SAFETY: nobody reads it, as nobody holds a task.
        self.job.with_mut(|slot| unsafe { slot.write(MaybeUninit::new(job)) });
        self.remaining.store(job.tasks() - 1, Ordering::Release);
    }

    /// Takes a task, if there is one; returns how many were left with it.
    #[inline]
    fn take(&self) -> Option<usize> {
        self.remaining.fetch_update(Ordering::Acquire, Ordering::Relaxed, |left| left.checked_sub(1)).ok()
    }

    /// The job that a task was taken of.
    ///
    /// # Safety
    /// The thread has a task of it that it has not reported, and uses the job no longer than that.
    unsafe fn job(&self) -> J {
        // SAFETY: it was written before the task could be taken, and stays so until the task is reported.
        self.job.with(|job| unsafe { (*job).assume_init() })
    }

    /// Does the task that was the first of `left`, and then what else can be taken. Returns how many it did.
    fn work(&self, job: &J, mut left: usize) -> usize {
        let _span = job.span();
        let mut own = 0;
        loop {
            job.call(job.tasks() - left);
            own += 1;
            // After the last one there is no need to look, which would fetch the line from another core.
            match (left > 1).then(|| self.take()).flatten() {
                Some(more) => left = more,
                None => return own,
            }
        }
    }
}

impl ParkedWorkers {
    /// Parks worker `me` until it is woken.
    fn park<J>(&self, me: usize, slot: &JobSlot<J>) {
        let parked = &self.workers[me];
        self.count.fetch_add(1, Ordering::Relaxed);
        // If this comes after the wake of `close`, it sees `closing` below (a swap reads the latest value,
        // and what was before it); if before, the wake comes after it and takes it back.
        parked.swap(true, Ordering::AcqRel);
        if slot.remaining.load(Ordering::Relaxed) > 0 || self.closing.load(Ordering::Acquire) {
            self.release(parked);
        }
        while parked.load(Ordering::Acquire) {
            park();
        }
    }

    /// Wakes up to `most` workers. Whoever parks at this very moment is missed: that costs one job a worker,
    /// but does not stop it, and saves the caller a fence.
    #[inline]
    fn wake(&self, most: usize, unpark: impl Fn(usize)) {
        if self.count.load(Ordering::Relaxed) == 0 && most < usize::MAX {
            return;
        }
        let all = self.workers.iter().enumerate();
        all.filter(|(_, parked)| self.release(parked)).take(most).for_each(|(worker, _)| unpark(worker));
    }

    /// Counts a worker as awake; false if it was.
    fn release(&self, parked: &AtomicBool) -> bool {
        let was = parked.swap(false, Ordering::AcqRel);
        if was {
            self.count.fetch_sub(1, Ordering::Relaxed);
        }
        was
    }
}
