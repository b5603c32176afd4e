//! A thread that makes requests of prompts, one after the other in the order in which they were given.
//!
//! A template, a tokenizer and a grammar may take milliseconds, and some seconds. A caller that must not
//! wait, as an event loop, gives the work away here. It is one thread, so that what was asked first stands
//! first in the queue.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, PoisonError};

use crate::error::{Error, Result};

type Job = Box<dyn FnOnce() + Send>;

/// The thread starts with the first job, and ends when this is dropped and all jobs are done.
#[derive(Default)]
pub struct Preparer(Mutex<Option<Sender<Job>>>);

impl Preparer {
    /// Returns at once. A job that panics ends alone; whoever waits for it learns that from what it drops.
    ///
    /// # Errors
    /// `Internal` if no thread can be started.
    pub fn give(&self, job: Job) -> Result<()> {
        let mut jobs = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let sender = match &*jobs {
            Some(sender) => sender,
            None => jobs.insert(start()?),
        };
        sender.send(job).map_err(|_| Error::internal("the thread that prepares requests is gone"))
    }
}

fn start() -> Result<Sender<Job>> {
    let (sender, inbox): (_, Receiver<Job>) = channel();
    std::thread::Builder::new()
        .name("tallow-prepare".into())
        .spawn(move || {
            for job in inbox {
                let _ = catch_unwind(AssertUnwindSafe(job));
            }
        })
        .map_err(|error| {
            Error::internal("the thread that prepares requests cannot start").with_source(error)
        })?;
    Ok(sender)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn jobs_run_in_order_and_a_panic_ends_one_alone() {
        let preparer = Preparer::default();
        let (done, seen) = channel();
        for number in 0..100 {
            let done = done.clone();
            let job = move || {
                assert!(number % 10 != 3, "a job of the tests panics");
                done.send(number).unwrap();
            };
            preparer.give(Box::new(job)).unwrap();
        }
        drop((preparer, done));
        assert_eq!(seen.iter().collect::<Vec<_>>(), (0..100).filter(|it| it % 10 != 3).collect::<Vec<_>>());
    }
}
