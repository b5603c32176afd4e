//! The door between the worlds: the GIL is released on the way in, and nothing but results and exceptions
//! comes out.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use pyo3::prelude::*;

use super::errors::to_python;
use crate::error::{Error, Result};

/// How long Rust waits between two looks for Ctrl-C.
pub const TICK: Duration = Duration::from_millis(20);

/// Runs `work` with the GIL released.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(|| guarded(work)).map_err(|error| to_python(py, &error))
}

/// Calls `look` with the GIL released, again and again until it has something; Ctrl-C ends the waiting. `look`
/// gets the time that it may wait.
pub fn wait<T: Send>(
    py: Python<'_>,
    mut look: impl FnMut(Duration) -> Result<Option<T>> + Send,
) -> PyResult<T> {
    loop {
        if let Some(found) = detached(py, || look(TICK))? {
            return Ok(found);
        }
        py.check_signals()?;
    }
}

/// A panic is a defect, but the process is the user's: it becomes an error.
pub fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Error::internal(reason(&*panic))))
}

fn reason(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().map(|s| s.to_string());
    text.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_else(|| "a panic".into())
}
