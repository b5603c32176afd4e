//! How asyncio learns of news without a thread for each request: many generations, one queue of keys.
//!
//! The engine's thread pushes a key and wakes whoever waits; it never takes the GIL. One thread of Python
//! waits here and wakes its event loops.

use std::collections::BTreeSet;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use pyo3::prelude::*;

use super::door;

/// Keys with news, each once however often it was pushed.
#[derive(Default)]
pub struct Queue {
    keys: Mutex<BTreeSet<u64>>,
    news: Condvar,
}

impl Queue {
    pub fn push(&self, key: u64) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).insert(key);
        self.news.notify_one();
    }

    fn take(&self, timeout: Duration) -> Vec<u64> {
        let keys = self.keys.lock().unwrap_or_else(PoisonError::into_inner);
        let (mut keys, _) = self
            .news
            .wait_timeout_while(keys, timeout, |keys| keys.is_empty())
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut *keys).into_iter().collect()
    }
}

#[pyclass(frozen, name = "Waker", module = "tallow._core")]
pub struct PyWaker(pub Arc<Queue>);

#[pymethods]
impl PyWaker {
    #[new]
    fn new() -> Self {
        PyWaker(Arc::default())
    }

    /// Waits at most `timeout` seconds for keys with news.
    fn wait(&self, py: Python<'_>, timeout: f64) -> PyResult<Vec<u64>> {
        let timeout = Duration::try_from_secs_f64(timeout.clamp(0.0, 3600.0)).unwrap_or_default();
        door::detached(py, || Ok(self.0.take(timeout)))
    }
}
