//! A run and its caller: what the caller reads and stops, and whose turn it is.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::run::Trained;
use crate::error::{Error, Result};

/// How long one look at whether others are done lasts.
const LOOK: Duration = Duration::from_millis(5);
/// A run that computed for a while waits at most this many times as long for requests that never end.
const PATIENCE: u32 = 3;
/// And at most so long at once, so that a slow step earns no pause of minutes.
const LONGEST: Duration = Duration::from_secs(10);

/// What a step of a run tells.
#[derive(Clone, Debug, PartialEq)]
pub struct Progress {
    /// Steps that are done, and all there are.
    pub step: usize,
    pub steps: usize,
    /// Passes over the rows so far, with the part of the one in work.
    pub epoch: f64,
    /// The mean over the trained tokens of this step.
    pub loss: f64,
    /// The same over those that are free, if any is.
    pub free_loss: Option<f64>,
    /// The mean over the rows that are held out, where this step was followed by a look at them.
    pub eval_loss: Option<f64>,
    pub learning_rate: f64,
    /// The length of the gradient before it was clipped.
    pub grad_norm: f64,
    pub rows_per_second: f64,
    /// Tokens of the rows, also where rows share them and they were computed once.
    pub tokens_per_second: f64,
    /// Seconds to the end at this speed.
    pub eta: f64,
}

/// What is read of a run.
#[derive(Clone, Debug)]
pub enum Event {
    Step(Progress),
    /// The last; also what every later look gives.
    Finished(Result<Arc<Trained>>),
}

/// What a run and its caller share.
pub struct Control {
    cancelled: AtomicBool,
    news: Mutex<News>,
    changed: Condvar,
    /// Whether somebody else wants the processor now.
    busy: Box<dyn Fn() -> bool + Send + Sync>,
    pause: Mutex<Pause>,
}

#[derive(Default)]
struct News {
    steps: VecDeque<Progress>,
    finished: Option<Result<Arc<Trained>>>,
}

/// How long a run may still wait for others, and since when it computes.
struct Pause {
    since: Instant,
    left: Duration,
}

impl Control {
    pub fn new(busy: Box<dyn Fn() -> bool + Send + Sync>) -> Control {
        Control {
            cancelled: AtomicBool::new(false),
            news: Mutex::default(),
            changed: Condvar::new(),
            busy,
            pause: Mutex::new(Pause { since: Instant::now(), left: Duration::ZERO }),
        }
    }

    pub fn cancel(&self) {
        self.cancelled.store(true, Ordering::Relaxed);
    }

    pub fn is_cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }

    /// # Errors
    /// `Cancelled` if it is.
    pub fn check(&self) -> Result<()> {
        match self.is_cancelled() {
            true => Err(Error::cancelled("the training was cancelled")),
            false => Ok(()),
        }
    }

    /// Waits while others compute, in proportion to what this run has computed since it last waited: requests
    /// find the processor free, and requests without end leave the run a quarter of the time. Returns whether
    /// the run is cancelled.
    pub fn yield_turn(&self) -> bool {
        let mut pause = lock(&self.pause);
        let earned = pause.since.elapsed().saturating_mul(PATIENCE);
        pause.left = pause.left.saturating_add(earned).min(LONGEST);
        while !self.is_cancelled() && pause.left > Duration::ZERO && (self.busy)() {
            let began = Instant::now();
            std::thread::sleep(LOOK);
            pause.left = pause.left.saturating_sub(began.elapsed());
        }
        pause.since = Instant::now();
        self.is_cancelled()
    }

    pub(super) fn tell(&self, step: Progress) {
        lock(&self.news).steps.push_back(step);
        self.changed.notify_all();
    }

    pub(super) fn finish(&self, result: Result<Trained>) {
        lock(&self.news).finished = Some(result.map(Arc::new));
        self.changed.notify_all();
    }

    /// The next event, waited for at most `timeout`.
    pub fn next(&self, timeout: Duration) -> Option<Event> {
        let nothing = |news: &mut News| news.steps.is_empty() && news.finished.is_none();
        let news = lock(&self.news);
        // The longest wait that every system can count.
        let timeout = timeout.min(Duration::from_secs(3600));
        let (mut news, _) =
            self.changed.wait_timeout_while(news, timeout, nothing).unwrap_or_else(PoisonError::into_inner);
        news.steps.pop_front().map(Event::Step).or_else(|| news.finished.clone().map(Event::Finished))
    }

    /// Whether it has ended, however much of it is unread.
    pub fn is_finished(&self) -> bool {
        lock(&self.news).finished.is_some()
    }

    /// Waits until it has ended, at most `timeout`.
    pub fn wait(&self, timeout: Duration) -> bool {
        let news = lock(&self.news);
        let unfinished = |news: &mut News| news.finished.is_none();
        let waited = self.changed.wait_timeout_while(news, timeout, unfinished);
        waited.unwrap_or_else(PoisonError::into_inner).0.finished.is_some()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Runs in the order in which they came: (process, model, number). A forked child finds those of its parent.
static QUEUE: Mutex<Vec<(u32, usize, u64)>> = Mutex::new(Vec::new());

/// A place in the queue of a model's runs; dropping it lets the next one go.
pub(super) struct Place {
    entry: (u32, usize, u64),
}

impl Place {
    /// At the queue's end. `model` is a number that no other living model has.
    pub fn take(model: usize) -> Place {
        let mut queue = lock(&QUEUE);
        let number = queue.iter().map(|(.., number)| number + 1).max().unwrap_or(0);
        let entry = (std::process::id(), model, number);
        queue.push(entry);
        Place { entry }
    }

    /// Waits for its turn.
    ///
    /// # Errors
    /// `Cancelled`.
    pub fn wait(&self, control: &Control) -> Result<()> {
        loop {
            control.check()?;
            let (process, model, _) = self.entry;
            let first = lock(&QUEUE).iter().find(|(p, m, _)| (*p, *m) == (process, model)).copied();
            if first == Some(self.entry) {
                return Ok(());
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&QUEUE).retain(|entry| *entry != self.entry);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_run_waits_for_requests_but_not_for_ever() {
        let busy = Control::new(Box::new(|| true));
        busy.pause.lock().unwrap().since = Instant::now();
        std::thread::sleep(Duration::from_millis(20));
        let began = Instant::now();
        assert!(!busy.yield_turn());
        let waited = began.elapsed();
        assert!(waited >= Duration::from_millis(50), "{waited:?}");
        let began = Instant::now();
        busy.yield_turn();
        assert!(began.elapsed() < Duration::from_millis(50), "nothing was computed since");

        let idle = Control::new(Box::new(|| false));
        std::thread::sleep(Duration::from_millis(20));
        let began = Instant::now();
        assert!(!idle.yield_turn());
        assert!(began.elapsed() < Duration::from_millis(15));
        idle.cancel();
        assert!(idle.yield_turn());
    }

    #[test]
    fn runs_of_a_model_wait_for_each_other() {
        let control = Control::new(Box::new(|| false));
        let (first, second, other) = (Place::take(1 << 60), Place::take(1 << 60), Place::take(1 << 61));
        first.wait(&control).unwrap();
        other.wait(&control).unwrap();
        let ended = AtomicBool::new(false);
        std::thread::scope(|scope| {
            scope.spawn(|| {
                second.wait(&control).unwrap();
                assert!(ended.load(Ordering::Relaxed));
            });
            std::thread::sleep(Duration::from_millis(30));
            ended.store(true, Ordering::Relaxed);
            drop(first);
        });
        let third = Place::take(1 << 60);
        control.cancel();
        assert!(third.wait(&control).is_err());
    }

    #[test]
    fn the_end_is_read_last_and_again() {
        let control = Control::new(Box::new(|| false));
        assert!(control.next(Duration::ZERO).is_none());
        control.tell(Progress {
            step: 1,
            steps: 1,
            epoch: 1.0,
            loss: 0.0,
            free_loss: None,
            eval_loss: None,
            learning_rate: 0.0,
            grad_norm: 0.0,
            rows_per_second: 0.0,
            tokens_per_second: 0.0,
            eta: 0.0,
        });
        control.finish(Err(Error::cancelled("x")));
        assert!(control.is_finished() && control.wait(Duration::ZERO));
        assert!(matches!(control.next(Duration::ZERO), Some(Event::Step(step)) if step.step == 1));
        for _ in 0..2 {
            assert!(matches!(control.next(Duration::ZERO), Some(Event::Finished(Err(_)))));
        }
    }
}
