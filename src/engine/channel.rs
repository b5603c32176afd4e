//! Both ends of the wire between callers and the engine's thread: what is asked ([`Command`]), what goes out
//! ([`Message`]), whether anybody still wants it, and what both sides know ([`Shared`]).
//!
//! A [`Subscriber`] is one caller. [`Subscribers`] are all who get the same answer: usually one, and more
//! when equal requests came while the first was in work.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::Sender;
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

use super::request::{Bounds, Event, Finish, Request, Timings};
use super::stats::Stats;
use crate::cache::prefix_file::Prefix;
use crate::error::{Error, ErrorKind, Result};
use crate::lora::AdapterLease;
use crate::sample::{History, Logits, Sampler};

/// Called on the engine thread after events of a request were queued; with `true` if the caller must look now
/// (the end, or filters to run), with `false` if there are only tokens. It must be quick and must not block
/// (never wait for an interpreter's lock in it): wake a loop, write to a pipe, set a flag.
pub type Notify = Arc<dyn Fn(bool) + Send + Sync>;

/// What handles ask of the thread.
pub(super) enum Command {
    Submit(Box<Request>, Subscriber),
    /// The caller's filters have run.
    Filtered(u64, Box<Result<Logits>>),
    /// The pages of these tokens, to be kept.
    Import(Prefix, Option<AdapterLease>, Sender<Result<()>>),
    /// A caller no longer wants its answer.
    Cancel(u64),
    Close,
}

/// What the handles and the thread both know.
pub(super) struct Shared {
    pub process: u32,
    pub bounds: Bounds,
    /// Requests submitted and not begun.
    pub waiting: AtomicUsize,
    /// Why the engine has stopped, once it has.
    pub stopped: OnceLock<Error>,
    pub stats: Mutex<Stats>,
}

impl Shared {
    /// Notes why the engine stops, unless that is known; returns why.
    pub fn stop(&self, error: Error) -> Error {
        self.stopped.get_or_init(|| error).clone()
    }

    pub fn publish(&self, stats: &Stats) {
        *self.stats() = stats.clone();
    }

    pub fn stats(&self) -> MutexGuard<'_, Stats> {
        self.stats.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub fn forked(&self) -> bool {
        std::process::id() != self.process
    }

    pub fn check_process(&self) -> Result<()> {
        if self.forked() {
            return Err(Error::invalid(
                "this process was forked after the model was loaded, and a fork has no engine of its own; \
                 load the model in the child, or start children with the method \"spawn\"",
            ));
        }
        Ok(())
    }
}

/// What travels to the caller.
pub(super) enum Message {
    Event(Event),
    Filter(FilterCall),
}

/// Filters that the user wrote, to be run by the caller: they may be Python, slow, or raise, and the engine
/// thread serves everybody. The reply is the edited logits.
pub(super) struct FilterCall {
    pub sampler: Sampler,
    pub logits: Logits,
    /// Prompt and answer so far.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
}

impl FilterCall {
    /// Runs the filters, in order, and returns the edited logits.
    pub fn run(mut self) -> Result<Logits> {
        let history = History { tokens: &self.tokens, prompt_len: self.prompt_len };
        self.sampler.run_filters(&mut self.logits, &history)?;
        Ok(self.logits)
    }
}

/// The caller of one request, as the engine sees it.
///
/// Messages are gathered in an outbox and sent at the end of the step, after the pages of what ended are
/// back and the statistics are written: whoever reads `Done` finds both as they should be.
pub(super) struct Subscriber {
    pub id: u64,
    pub channel: Sender<Message>,
    pub cancelled: Arc<AtomicBool>,
    pub submitted: Instant,
    pub deadline: Option<Instant>,
    pub notify: Option<Notify>,
    pub outbox: Vec<Message>,
}

impl Subscriber {
    pub fn push(&mut self, event: Event) {
        self.outbox.push(Message::Event(event));
    }

    pub fn ask(&mut self, call: FilterCall) {
        self.outbox.push(Message::Filter(call));
    }

    /// Why the request must end now, if it must.
    pub fn over(&self, now: Instant) -> Option<Error> {
        if self.cancelled.load(Ordering::Relaxed) {
            return Some(Error::cancelled("the request was cancelled"));
        }
        match self.deadline {
            Some(deadline) if deadline <= now => {
                Some(Error::timeout("the deadline of the request passed before it ended"))
            }
            _ => None,
        }
    }

    /// Sends what was gathered. A caller that has gone is no error: it cancelled when it went.
    pub fn flush(&mut self) {
        if self.outbox.is_empty() {
            return;
        }
        let mut must_look = false;
        for message in self.outbox.drain(..) {
            must_look |= !matches!(message, Message::Event(Event::Token(_) | Event::Run(_)));
            let _ = self.channel.send(message);
        }
        let Some(notify) = &self.notify else { return };
        // The caller's own code: a panic in it must not reach the others.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| notify(must_look))).is_err() {
            self.notify = None;
        }
    }
}

/// The callers of one sequence.
pub(super) struct Subscribers {
    /// By their ids, in whose order they came.
    subscribers: BTreeMap<u64, Subscriber>,
    /// What was said so far, for those who come later; `None` if nobody can.
    said: Option<Vec<Event>>,
    /// Clients that have gone, until their last event is sent.
    leaving: Vec<Subscriber>,
}

impl Subscribers {
    pub fn new(subscriber: Subscriber, can_grow: bool) -> Self {
        let subscribers = BTreeMap::from([(subscriber.id, subscriber)]);
        Subscribers { subscribers, said: can_grow.then(Vec::new), leaving: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.subscribers.len()
    }

    pub fn subscribers(&self) -> impl Iterator<Item = &Subscriber> {
        self.subscribers.values()
    }

    /// One more, who hears what was said so far.
    pub fn join(&mut self, mut subscriber: Subscriber) {
        for event in self.said.iter().flatten() {
            subscriber.push(event.clone());
        }
        self.subscribers.insert(subscriber.id, subscriber);
    }

    pub fn push(&mut self, event: Event) {
        let mut subscribers = self.subscribers.values_mut();
        let Some(last) = subscribers.next_back() else { return };
        subscribers.for_each(|subscriber| subscriber.push(event.clone()));
        if let Some(said) = &mut self.said {
            said.push(event.clone());
        }
        last.push(event);
    }

    /// The end. Whoever came later computed nothing of the prompt, and waited only since then: `timings`
    /// tells from when a subscriber asked what it took.
    pub fn finish(&mut self, finish: Finish, timings: impl Fn(Instant) -> Timings) {
        for (number, subscriber) in self.subscribers.values_mut().enumerate() {
            let mut own = finish.clone();
            own.timings = timings(subscriber.submitted);
            if number > 0 {
                own.usage.cached_tokens = own.usage.prompt_tokens;
            }
            subscriber.push(Event::Done(own));
        }
    }

    /// Filters are the caller's own code, so a sequence that has some has one caller.
    pub fn ask(&mut self, call: FilterCall) {
        if let Some(subscriber) = self.subscribers.values_mut().next() {
            subscriber.ask(call);
        }
    }

    /// Sees a subscriber off if its time is over or it no longer wants the answer. Returns why it
    /// went, if it did.
    pub fn reap(&mut self, id: u64, now: Instant) -> Option<ErrorKind> {
        let error = self.subscribers.get(&id).and_then(|subscriber| subscriber.over(now))?;
        let kind = error.kind();
        if let Some(mut subscriber) = self.subscribers.remove(&id) {
            subscriber.push(Event::Error(error));
            self.leaving.push(subscriber);
        }
        Some(kind)
    }

    pub fn into_subscribers(self) -> impl Iterator<Item = Subscriber> {
        self.subscribers.into_values()
    }

    pub fn flush(&mut self) {
        for mut subscriber in self.leaving.drain(..) {
            subscriber.flush();
        }
        for subscriber in self.subscribers.values_mut() {
            subscriber.flush();
        }
    }
}
