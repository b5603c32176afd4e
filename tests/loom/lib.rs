//! The dispatch of `src/kernels/pool` in every order of its steps that the memory model allows (up to a
//! number of preemptions), by loom. Each test fails if a Release or Acquire of the dispatch that it passes
//! becomes Relaxed.

#![cfg(test)]

#[path = "../../src/kernels/pool/dispatch.rs"]
mod dispatch;
mod sync;

use dispatch::Dispatch;
use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

/// What the tasks of a job use: on the caller's stack, as the closures of `Pool::run` are.
struct Context {
    /// Read by tasks. Written by the caller before and after: loom sees a task that uses a job whose caller
    /// has left.
    value: UnsafeCell<usize>,
    /// Written by tasks, each its own; read by the caller afterwards.
    results: [UnsafeCell<usize>; 3],
}

#[derive(Clone, Copy)]
struct Job {
    context: *const Context,
    tasks: usize,
}

// SAFETY: tasks read `value` and write their own result; that the caller does neither meanwhile is what is
// tested.
unsafe impl Send for Job {}
// SAFETY: as above.
unsafe impl Sync for Job {}

impl dispatch::Job for Job {
    type Span = ();

    fn tasks(&self) -> usize {
        self.tasks
    }

    fn call(&self, task: usize) {
        // SAFETY: the context lives until `run` returns.
        let context = unsafe { &*self.context };
        // SAFETY: loom checks that nobody writes.
        let value = context.value.with(|value| unsafe { *value });
        // SAFETY: loom checks that nobody else reads or writes.
        context.results[task].with_mut(|result| unsafe { *result = value + task });
    }

    fn span(&self) {}
    fn wait_span() {}
}

/// Runs jobs of so many tasks, one after another, beside so many workers.
fn check(workers: usize, jobs: &'static [usize], preemptions: usize) {
    let mut model = loom::model::Builder::new();
    model.preemption_bound = Some(preemptions);
    model.check(move || {
        let dispatch = Arc::new(Dispatch::<Job>::new(workers));
        let serve = |worker| {
            let dispatch = dispatch.clone();
            thread::spawn(move || dispatch.serve(worker))
        };
        let threads: Vec<_> = (0..workers).map(serve).collect();
        let unpark = |worker: usize| threads[worker].thread().unpark();
        let mut reported = 0;
        for (number, &tasks) in jobs.iter().enumerate() {
            let context = Context {
                value: UnsafeCell::new(10 * number),
                results: [(); 3].map(|()| UnsafeCell::new(usize::MAX)),
            };
            // SAFETY: this is the only caller; the context lives until the end of the turn.
            unsafe { dispatch.run(Job { context: &context, tasks }, &mut reported, unpark) };
            // SAFETY: loom checks that no task is running any more.
            context.value.with_mut(|value| unsafe { *value = usize::MAX });
            for (task, result) in context.results[..tasks].iter().enumerate() {
                // SAFETY: as above.
                assert_eq!(result.with(|result| unsafe { *result }), 10 * number + task);
            }
        }
        dispatch.close(unpark);
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    });
}

#[test]
fn a_worker_takes_tasks_of_two_jobs() {
    check(1, &[2, 2], 3);
}

#[test]
fn two_workers_share_a_job() {
    check(2, &[3], 2);
}

#[test]
fn a_pool_closes_while_its_workers_park() {
    check(2, &[], 4);
}
