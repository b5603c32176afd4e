//! Loading from Python: the work runs on a thread of its own, so that the caller sees progress and Ctrl-C.

use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::door;
use super::errors::to_python;
use crate::convert::{ConvertOptions, Kind};
use crate::device::default_threads;
use crate::error::{Error, Result};
use crate::hub::{self, Env, HubOptions, Progress};
use crate::model::{self, KeptFile, LoadOptions, Model};

/// What the working thread tells.
enum Report<T> {
    Start(String, Option<u64>),
    Advance(u64),
    Finish,
    Done(Result<T>),
}

struct Reporter<T> {
    reports: Mutex<Sender<Report<T>>>,
    cancelled: Arc<AtomicBool>,
}

impl<T: Send> Reporter<T> {
    fn tell(&self, report: Report<T>) {
        let reports = self.reports.lock().unwrap_or_else(PoisonError::into_inner);
        // Nobody listens any more: then `cancelled` says so too.
        let _ = reports.send(report);
    }
}

impl<T: Send> Progress for Reporter<T> {
    fn start(&self, what: &str, total: Option<u64>) {
        self.tell(Report::Start(what.to_string(), total));
    }

    fn advance(&self, bytes: u64) {
        self.tell(Report::Advance(bytes));
    }

    fn finish(&self) {
        self.tell(Report::Finish);
    }

    fn cancelled(&self) -> bool {
        self.cancelled.load(Ordering::Relaxed)
    }
}

/// Sets the flag when the caller goes, for whatever reason.
struct CancelOnDrop(Arc<AtomicBool>);

impl Drop for CancelOnDrop {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Loads a model.
pub fn load(
    py: Python<'_>,
    source: OsString,
    options: LoadOptions,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<Arc<Model>> {
    watched(py, progress, move |progress| Model::load(&source, &LoadOptions { progress, ..options }))
}

/// Writes a model as a GGUF file.
#[pyfunction]
#[pyo3(signature = (source, path, kind, *, requantize=false, overwrite=false, threads=None, progress=None))]
#[allow(clippy::too_many_arguments)]
pub fn convert<'py>(
    py: Python<'py>,
    source: PathBuf,
    path: PathBuf,
    kind: &str,
    requantize: bool,
    overwrite: bool,
    threads: Option<usize>,
    progress: Option<Bound<'py, PyAny>>,
) -> PyResult<Bound<'py, PyDict>> {
    let kind = Kind::parse(kind).map_err(|error| to_python(py, &error))?;
    let threads = threads.unwrap_or_else(default_threads);
    let options = ConvertOptions { kind, requantize, overwrite, threads };
    let work =
        move |progress: Arc<dyn Progress>| crate::convert::convert(&source, &path, &options, &*progress);
    let report = watched(py, progress, work)?;
    let (dict, types) = (PyDict::new(py), PyDict::new(py));
    report.types.iter().try_for_each(|(name, count)| types.set_item(name, count))?;
    dict.set_item("path", report.path.to_string_lossy())?;
    dict.set_item("bytes", report.bytes)?;
    dict.set_item("types", types)?;
    dict.set_item("notes", report.notes)?;
    Ok(dict)
}

/// The name of every byte that the model computes with; `Model::content_hash`.
pub fn content_hash(
    py: Python<'_>,
    model: &Arc<Model>,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<String> {
    let model = model.clone();
    watched(py, progress, move |progress| model.content_hash(&*progress).map(str::to_string))
}

/// Runs `work` on a thread of its own and calls `progress(what, total, done)` here; if the caller is
/// interrupted, the work is told, and stops by itself soon after.
pub fn watched<T: Send + 'static>(
    py: Python<'_>,
    progress: Option<Bound<'_, PyAny>>,
    work: impl FnOnce(Arc<dyn Progress>) -> Result<T> + Send + 'static,
) -> PyResult<T> {
    let (reports, inbox) = mpsc::channel();
    let cancelled = Arc::new(AtomicBool::new(false));
    let _guard = CancelOnDrop(cancelled.clone());
    let reporter = Arc::new(Reporter { reports: Mutex::new(reports), cancelled });
    let run = move || {
        let done = door::guarded(|| work(reporter.clone()));
        reporter.tell(Report::Done(done));
    };
    thread::Builder::new()
        .name("tallow-load".into())
        .spawn(run)
        .map_err(|e| to_python(py, &Error::internal(format!("cannot start a thread: {e}"))))?;
    watch(py, &Mutex::new(inbox), progress)
}

fn watch<T: Send>(
    py: Python<'_>,
    inbox: &Mutex<Receiver<Report<T>>>,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<T> {
    let (mut what, mut total, mut done) = (String::new(), None, 0u64);
    let tell = |what: &str, total: Option<u64>, done: i64| match &progress {
        Some(progress) => progress.call1((what, total, done)).map(drop),
        None => Ok(()),
    };
    loop {
        let reports = door::wait(py, |patience| next_reports(inbox, patience))?;
        // Reports may come so fast that the waiting never looks.
        py.check_signals()?;
        let mut moved = false;
        for report in reports {
            match report {
                Report::Start(name, size) => {
                    (what, total, done) = (name, size, 0);
                    tell(&what, total, 0)?;
                }
                Report::Advance(bytes) => {
                    done += bytes;
                    moved = true;
                }
                Report::Finish => {
                    // Its last bytes before its end.
                    if std::mem::take(&mut moved) {
                        tell(&what, total, done as i64)?;
                    }
                    tell(&what, total, -1)?;
                }
                Report::Done(result) => return result.map_err(|error| to_python(py, &error)),
            }
        }
        if moved {
            tell(&what, total, done as i64)?;
        }
    }
}

/// Everything that is there by now, so that a fast transfer does not call Python for each block.
fn next_reports<T>(inbox: &Mutex<Receiver<Report<T>>>, patience: Duration) -> Result<Option<Vec<Report<T>>>> {
    let inbox = inbox.lock().unwrap_or_else(PoisonError::into_inner);
    match inbox.recv_timeout(patience) {
        Ok(first) => Ok(Some(std::iter::once(first).chain(inbox.try_iter()).collect())),
        Err(RecvTimeoutError::Timeout) => Ok(None),
        Err(RecvTimeoutError::Disconnected) => Err(Error::internal("the loading thread is gone")),
    }
}

/// Finds a model's files, and fetches what is missing: (path, name, revision).
#[pyfunction]
#[pyo3(signature = (source, *, revision=None, offline=None, progress=None))]
pub fn locate(
    py: Python<'_>,
    source: OsString,
    revision: Option<String>,
    offline: Option<bool>,
    progress: Option<Bound<'_, PyAny>>,
) -> PyResult<(PathBuf, String, Option<String>)> {
    let located = watched(py, progress, move |progress| {
        hub::locate(&source, &HubOptions { revision, offline, progress })
    })?;
    Ok((located.path, located.name, located.revision))
}

/// The folder of tallow's own cache.
#[pyfunction]
pub fn cache_folder(py: Python<'_>) -> PyResult<PathBuf> {
    Env::Process.own_cache().map_err(|error| to_python(py, &error))
}

/// The folder of the Hugging Face hub's cache.
#[pyfunction]
pub fn hub_cache_folder(py: Python<'_>) -> PyResult<PathBuf> {
    Env::Process.hub_cache().map_err(|error| to_python(py, &error))
}

/// The files of packed weights in tallow's own cache: (path, bytes, last use in seconds since 1970, what it
/// was packed from, what was quantized at load); the last two are None of a file that is broken.
#[pyfunction]
#[allow(clippy::type_complexity)] // a row, for Python
pub fn packed_files(
    py: Python<'_>,
) -> PyResult<Vec<(PathBuf, u64, Option<f64>, Option<String>, Option<String>)>> {
    let seconds = |time: SystemTime| time.duration_since(UNIX_EPOCH).ok().map(|since| since.as_secs_f64());
    let files = door::detached(py, model::kept_files)?;
    let row = |file: KeptFile| {
        (file.path, file.bytes, file.last_used.and_then(seconds), file.source, file.quantize)
    };
    Ok(files.into_iter().map(row).collect())
}

/// Waits for packed weights that are being written, for at most so many seconds, and gives up what is not
/// done by then.
#[pyfunction]
pub fn finish_packed(py: Python<'_>, seconds: f64) {
    py.detach(|| model::finish_packed(Duration::try_from_secs_f64(seconds).unwrap_or_default()));
}

/// The environment variable that forbids the network, if one does.
#[pyfunction]
pub fn offline_variable() -> Option<&'static str> {
    Env::Process.offline()
}

/// How a source is named from any working folder, and whether it is on the hub.
#[pyfunction]
pub fn anywhere(py: Python<'_>, source: OsString) -> PyResult<(OsString, bool)> {
    hub::anywhere(&source).map_err(|error| to_python(py, &error))
}
