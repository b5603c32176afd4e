//! `_core.Generation`: one running request, read whole, chunk by chunk, or by polling.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyEllipsis, PyList};

use super::door;
use super::errors::to_python;
use crate::engine::{Event, Finish, Generation, Poll, TokenEvent};
use crate::error::{Error, Result};
use crate::sample::TokenLogprob;

/// One request. Dropping it, or `cancel()`, ends it at the next step.
#[pyclass(frozen, name = "Generation", module = "tallow._core")]
pub struct PyGeneration {
    generation: Arc<Mutex<Generation>>,
    /// A forked child may find the lock held by a thread that it does not have.
    process: u32,
}

/// Tokens that became text together; the last one also says how it ended.
#[derive(Default)]
struct Part {
    text: String,
    tokens: Vec<u32>,
    logprobs: Vec<(u32, TokenLogprob)>,
    finish: Option<Finish>,
}

impl Part {
    fn token(&mut self, event: TokenEvent) {
        self.text.push_str(&event.text);
        self.tokens.push(event.id);
        self.logprobs.extend(event.logprob.map(|logprob| (event.id, logprob)));
    }

    /// Takes an event in; true when there is something to show.
    fn event(&mut self, event: Event) -> Result<bool> {
        match event {
            Event::Token(token) => self.token(token),
            Event::Run(tokens) => tokens.into_iter().for_each(|token| self.token(token)),
            Event::Done(finish) => {
                self.text.push_str(&finish.text);
                self.finish = Some(finish);
            }
            Event::Error(error) => return Err(error),
            Event::Rows(_) | Event::Scores(_) => {
                return Err(Error::internal("a generation got another task's answer"));
            }
        }
        Ok(!self.text.is_empty() || self.finish.is_some())
    }

    fn dict<'py>(self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = PyDict::new(py);
        dict.set_item("text", self.text)?;
        dict.set_item("tokens", self.tokens)?;
        let logprobs: Vec<_> = self.logprobs.into_iter().map(|(id, l)| (id, l.logprob, l.top)).collect();
        dict.set_item("logprobs", PyList::new(py, logprobs)?)?;
        if let Some(finish) = self.finish {
            let (usage, timings) = (finish.usage, finish.timings);
            dict.set_item("finish_reason", finish.reason.name())?;
            dict.set_item("usage", (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens))?;
            let seconds = [timings.queue, timings.prefill, timings.decode].map(|t| t.as_secs_f64());
            dict.set_item("timings", (seconds[0], seconds[1], seconds[2]))?;
        }
        Ok(dict)
    }
}

impl PyGeneration {
    pub fn new(generation: Generation) -> Self {
        PyGeneration { generation: Arc::new(Mutex::new(generation)), process: std::process::id() }
    }

    /// None in a forked child.
    fn lock(&self) -> Option<MutexGuard<'_, Generation>> {
        let own = self.process == std::process::id();
        own.then(|| self.generation.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Collects events into a part until `full` says so or nothing comes within `timeout`.
    /// `Ok(None)`: nothing yet, what there is stays in `part`. `Ok(Some(false))`: it ended before.
    fn advance(&self, part: &mut Part, timeout: Duration, whole: bool) -> Result<Option<bool>> {
        let mut generation = self.lock().ok_or_else(|| {
            Error::invalid("this generation belongs to the process that was forked; ask again in this one")
        })?;
        // One limit for all events together: tokens come faster than a tick, and the caller must see Ctrl-C.
        let until = Instant::now() + timeout;
        loop {
            match generation.next(until.saturating_duration_since(Instant::now())) {
                Poll::Event(event) => {
                    let shown = part.event(event)?;
                    if part.finish.is_some() || (shown && !whole) {
                        return Ok(Some(true));
                    }
                    if Instant::now() >= until {
                        return Ok(None);
                    }
                }
                Poll::Pending => return Ok(None),
                Poll::Ended => return Ok(Some(false)),
            }
        }
    }
}

#[pymethods]
impl PyGeneration {
    /// Waits for the end; everything as one dict.
    fn collect<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let mut part = Part::default();
        let there = door::wait(py, |tick| self.advance(&mut part, tick, true))?;
        if !there {
            return Err(to_python(py, &Error::invalid("this generation was already read to its end")));
        }
        part.dict(py)
    }

    /// Waits for the next chunk; None after the last.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let mut part = Part::default();
        let there = door::wait(py, |tick| self.advance(&mut part, tick, false))?;
        there.then(|| part.dict(py)).transpose()
    }

    /// The next chunk if it is there, Ellipsis if not yet, None after the last.
    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let mut part = Part::default();
        match door::detached(py, || self.advance(&mut part, Duration::ZERO, false))? {
            Some(true) => Ok(part.dict(py)?.into_any()),
            Some(false) => Ok(py.None().into_bound(py)),
            // Tokens whose text is still held back are shown now rather than kept here.
            None if !part.tokens.is_empty() => Ok(part.dict(py)?.into_any()),
            None => Ok(PyEllipsis::get(py).to_owned().into_any()),
        }
    }

    /// Ends the request at the next step.
    fn cancel(&self, py: Python<'_>) -> PyResult<()> {
        door::detached(py, || {
            if let Some(generation) = self.lock() {
                generation.cancel();
            }
            Ok(())
        })
    }
}
