//! The engine's side of a request's channel: what goes out, and whether anybody still wants it.
//!
//! A [`Client`] is one caller. An [`Audience`] is all who get the same answer: usually one, and more when equal
//! requests came while the first was in work.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Instant;

use super::handle::Notify;
use super::request::{Event, Finish, Timings};
use crate::error::{Error, Result};
use crate::sample::{History, Logits, Sampler};

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
pub(super) struct Client {
    pub id: u64,
    pub channel: Sender<Message>,
    pub cancelled: Arc<AtomicBool>,
    pub submitted: Instant,
    pub deadline: Option<Instant>,
    pub notify: Option<Notify>,
    pub outbox: Vec<Message>,
}

impl Client {
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
pub(super) struct Audience {
    /// By their ids, in whose order they came.
    clients: BTreeMap<u64, Client>,
    /// What was said so far, for those who come later; `None` if nobody can.
    said: Option<Vec<Event>>,
    /// Clients that have gone, until their last event is sent.
    leaving: Vec<Client>,
}

impl Audience {
    pub fn new(client: Client, can_grow: bool) -> Self {
        let clients = BTreeMap::from([(client.id, client)]);
        Audience { clients, said: can_grow.then(Vec::new), leaving: Vec::new() }
    }

    pub fn len(&self) -> usize {
        self.clients.len()
    }

    pub fn clients(&self) -> impl Iterator<Item = &Client> {
        self.clients.values()
    }

    /// One more, who hears what was said so far.
    pub fn join(&mut self, mut client: Client) {
        for event in self.said.iter().flatten() {
            client.push(event.clone());
        }
        self.clients.insert(client.id, client);
    }

    pub fn push(&mut self, event: Event) {
        let mut clients = self.clients.values_mut();
        let Some(last) = clients.next_back() else { return };
        clients.for_each(|client| client.push(event.clone()));
        if let Some(said) = &mut self.said {
            said.push(event.clone());
        }
        last.push(event);
    }

    /// The end. Whoever came later computed nothing of the prompt, and waited only since then: `timings`
    /// tells from when a client asked what it took.
    pub fn finish(&mut self, finish: Finish, timings: impl Fn(Instant) -> Timings) {
        for (number, client) in self.clients.values_mut().enumerate() {
            let mut own = finish.clone();
            own.timings = timings(client.submitted);
            if number > 0 {
                own.usage.cached_tokens = own.usage.prompt_tokens;
            }
            client.push(Event::Done(own));
        }
    }

    /// Filters are the caller's own code, so a sequence that has some has one caller.
    pub fn ask(&mut self, call: FilterCall) {
        if let Some(client) = self.clients.values_mut().next() {
            client.ask(call);
        }
    }

    /// Sees a client off if its time is over or it no longer wants the answer. True: it went.
    pub fn reap(&mut self, id: u64, now: Instant) -> bool {
        let Some(error) = self.clients.get(&id).and_then(|client| client.over(now)) else { return false };
        if let Some(mut client) = self.clients.remove(&id) {
            client.push(Event::Error(error));
            self.leaving.push(client);
        }
        true
    }

    pub fn into_clients(self) -> impl Iterator<Item = Client> {
        self.clients.into_values()
    }

    pub fn flush(&mut self) {
        for mut client in self.leaving.drain(..) {
            client.flush();
        }
        for client in self.clients.values_mut() {
            client.flush();
        }
    }
}
