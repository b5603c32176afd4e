//! `_core.Generation`: one running request, read whole, chunk by chunk, or by polling.

use std::sync::{Condvar, Mutex, PoisonError};
use std::thread::ThreadId;
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::{PyDict, PyEllipsis, PyList};
use pyo3::{PyTraverseError, PyVisit};

use super::door;
use super::errors::to_python;
use super::sampler::Callables;
use crate::engine::{Canceller, Chunk, Finish, Generation, Poll};
use crate::error::{Error, Result};

/// One request. Dropping it, or `cancel()`, ends it at the next step.
#[pyclass(frozen, name = "Generation", module = "tallow._core")]
pub struct PyGeneration {
    reader: Reader,
    /// Beside the reader, which is lent out while a filter runs: a filter may end its own stream.
    canceller: Canceller,
    filters: Callables,
    /// A forked child may find the generation lent to a thread that it does not have.
    process: u32,
}

/// A generation that one thread at a time may read.
struct Reader {
    place: Mutex<Place>,
    back: Condvar,
}

enum Place {
    Here(Box<Generation>),
    Lent(ThreadId),
}

/// A generation that goes back where it was.
struct Lent<'a> {
    reader: &'a Reader,
    generation: Option<Box<Generation>>,
}

/// The longest that one wait for another reader takes; then the caller looks and waits again.
const LONGEST: Duration = Duration::from_secs(3600);

impl Reader {
    /// The generation; `None` if another thread reads it for longer than `timeout`.
    fn borrow(&self, timeout: Duration) -> Result<Option<Lent<'_>>> {
        let own = std::thread::current().id();
        let place = self.place.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(*place, Place::Lent(thread) if thread == own) {
            return Err(Error::invalid(
                "a filter cannot read the answer that waits for it; it gets the tokens so far",
            ));
        }
        let lent = |place: &mut Place| matches!(place, Place::Lent(_));
        let waited = self.back.wait_timeout_while(place, timeout.min(LONGEST), lent);
        let (mut place, _) = waited.unwrap_or_else(PoisonError::into_inner);
        Ok(match std::mem::replace(&mut *place, Place::Lent(own)) {
            Place::Here(generation) => Some(Lent { reader: self, generation: Some(generation) }),
            other => {
                *place = other;
                None
            }
        })
    }
}

impl Lent<'_> {
    fn next(&mut self, timeout: Duration) -> Poll {
        self.generation.as_mut().map_or(Poll::Ended, |generation| generation.next(timeout))
    }
}

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        if let Some(generation) = self.generation.take() {
            *self.reader.place.lock().unwrap_or_else(PoisonError::into_inner) = Place::Here(generation);
            self.reader.back.notify_one();
        }
    }
}

/// A chunk as Python reads it.
fn dict<'py>(py: Python<'py>, chunk: Chunk) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    let logprobs = chunk.tokens.iter().zip(chunk.logprobs).map(|(id, l)| (*id, l.logprob, l.top));
    dict.set_item("logprobs", PyList::new(py, logprobs.collect::<Vec<_>>())?)?;
    dict.set_item("text", chunk.text)?;
    dict.set_item("tokens", chunk.tokens)?;
    if let Some(Finish { reason, usage, timings, .. }) = chunk.finish {
        dict.set_item("finish_reason", reason.name())?;
        dict.set_item("usage", (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens))?;
        let timings = [timings.queue, timings.prefill, timings.decode, timings.first_token];
        dict.set_item("timings", timings.map(|time| time.as_secs_f64()))?;
    }
    Ok(dict)
}

impl PyGeneration {
    pub fn new(generation: Generation, filters: Callables) -> Self {
        let canceller = generation.canceller();
        let reader = Reader { place: Mutex::new(Place::Here(Box::new(generation))), back: Condvar::new() };
        PyGeneration { reader, canceller, filters, process: std::process::id() }
    }

    /// Collects events into a chunk until there is something to show, or all if it is to be `whole`, or
    /// nothing comes within `timeout`. `Ok(None)`: nothing yet, what there is stays in `chunk`.
    /// `Ok(Some(false))`: it ended before.
    fn advance(&self, chunk: &mut Chunk, timeout: Duration, whole: bool) -> Result<Option<bool>> {
        if self.process != std::process::id() {
            return Err(Error::invalid(
                "this generation belongs to the process that was forked; ask again in this one",
            ));
        }
        // One limit for all events together: tokens come faster than a tick, and the caller must see Ctrl-C.
        let until = Instant::now().checked_add(timeout);
        let left = || until.map_or(Duration::MAX, |until| until.saturating_duration_since(Instant::now()));
        // Who polls waits for another reader's look, for its news may have gone to that one; not for its
        // filters.
        let turn = left().max(door::TICK);
        let Some(mut generation) = self.reader.borrow(turn)? else { return Ok(None) };
        loop {
            match generation.next(left()) {
                Poll::Event(event) => {
                    let shown = chunk.absorb(event)?;
                    if chunk.finish.is_some() || (shown && !whole) {
                        return Ok(Some(true));
                    }
                    if left().is_zero() {
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
        let mut chunk = Chunk::default();
        let there = door::wait(py, |tick| self.advance(&mut chunk, tick, true))?;
        if !there {
            return Err(to_python(py, &Error::invalid("this generation was already read to its end")));
        }
        dict(py, chunk)
    }

    /// Waits for the next chunk; None after the last.
    fn next<'py>(&self, py: Python<'py>) -> PyResult<Option<Bound<'py, PyDict>>> {
        let mut chunk = Chunk::default();
        let there = door::wait(py, |tick| self.advance(&mut chunk, tick, false))?;
        there.then(|| dict(py, chunk)).transpose()
    }

    /// The next chunk if it is there, Ellipsis if not yet, None after the last.
    fn poll<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let mut chunk = Chunk::default();
        match door::detached(py, || self.advance(&mut chunk, Duration::ZERO, false))? {
            Some(true) => Ok(dict(py, chunk)?.into_any()),
            Some(false) => Ok(py.None().into_bound(py)),
            // Tokens whose text is still held back are shown now rather than kept here.
            None if !chunk.tokens.is_empty() => Ok(dict(py, chunk)?.into_any()),
            None => Ok(PyEllipsis::get(py).to_owned().into_any()),
        }
    }

    /// Ends the request at the next step.
    fn cancel(&self) {
        self.canceller.cancel();
    }

    /// Whether filters written in Python run while it is read.
    #[getter]
    fn has_filters(&self) -> bool {
        !self.filters.is_empty()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        self.filters.traverse(&visit)
    }
}
