//! The engine's side of a request's channel: what goes out, and whether anybody still wants it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::Sender;
use std::time::Instant;

use super::handle::Notify;
use super::request::Event;
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
            must_look |= !matches!(message, Message::Event(Event::Token(_)));
            let _ = self.channel.send(message);
        }
        let Some(notify) = &self.notify else { return };
        // The caller's own code: a panic in it must not reach the others.
        if std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| notify(must_look))).is_err() {
            self.notify = None;
        }
    }
}
