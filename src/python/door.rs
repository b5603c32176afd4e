//! The door between the worlds: the GIL is released on the way in, and nothing but results and exceptions
//! comes out.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::Duration;

use pyo3::prelude::*;

use super::errors::to_python;
use crate::error::{Error, Result, panic_text};

/// How long Rust waits between two looks for Ctrl-C.
pub const TICK: Duration = Duration::from_millis(20);

/// Runs `work` with the GIL released.
pub fn detached<T: Send>(py: Python<'_>, work: impl FnOnce() -> Result<T> + Send) -> PyResult<T> {
    py.detach(|| guarded(work)).map_err(|error| to_python(py, &error))
}

/// Calls `look` with the GIL released, again and again until it has something; Ctrl-C ends the waiting.
/// `look` gets the time that it may wait: a tick in the thread that would see Ctrl-C, and for ever in all
/// others, so that any number of them wait at no cost.
pub fn wait<T: Send>(
    py: Python<'_>,
    mut look: impl FnMut(Duration) -> Result<Option<T>> + Send,
) -> PyResult<T> {
    let patience = if sees_signals(py).unwrap_or(true) { TICK } else { Duration::MAX };
    loop {
        if let Some(found) = detached(py, || look(patience))? {
            return Ok(found);
        }
        py.check_signals()?;
    }
}

/// Whether this is the thread in which Python runs the handlers of signals, its main thread.
fn sees_signals(py: Python<'_>) -> PyResult<bool> {
    let threading = py.import("threading")?;
    let main = threading.call_method0("main_thread")?.getattr("ident")?;
    if threading.call_method0("get_ident")?.eq(main)? {
        return Ok(true);
    }
    // Before 3.13 `threading` takes whoever imports it first for the main thread, so the first thread of the
    // process is asked for as well.
    let native = || threading.call_method0("get_native_id")?.extract::<u32>();
    Ok(cfg!(target_os = "linux") && native()? == std::process::id())
}

/// A panic is a defect, but the process is the user's: it becomes an error.
pub fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| Err(Error::internal(panic_text(&*panic))))
}
