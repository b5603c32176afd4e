//! Errors as exceptions: one class a kind, each also the built-in that it refines.

use pyo3::exceptions::{PyException, PyMemoryError, PyOSError, PyRuntimeError, PyTimeoutError, PyValueError};
use pyo3::prelude::*;
use pyo3::sync::PyOnceLock;
use pyo3::types::{PyDict, PyTuple, PyType};

use crate::error::{Error, ErrorKind};

/// Kind, class, documentation. [`BASE`] stands for kinds without a class of their own.
const TABLE: &[(ErrorKind, &str, &str)] = &[
    (
        ErrorKind::ModelFile,
        "ModelFileError",
        "A model file is missing, broken, or does not fit its configuration.",
    ),
    (
        ErrorKind::UnsupportedModel,
        "UnsupportedModelError",
        "The file is sound and holds something that is not run.",
    ),
    (ErrorKind::Hub, "HubError", "A name could not be turned into files."),
    (
        ErrorKind::ContextLength,
        "ContextLengthError",
        "The prompt does not fit the context: see prompt_tokens and limit.",
    ),
    (ErrorKind::InvalidRequest, "InvalidRequestError", "An argument is wrong; the message names it."),
    (ErrorKind::Constraint, "ConstraintError", "A grammar or schema cannot be compiled or satisfied."),
    (ErrorKind::Template, "TemplateError", "The chat template is missing, broken, or refuses the messages."),
    (ErrorKind::OutOfMemory, "OutOfMemoryError", "Memory that was asked for is not there."),
    (ErrorKind::Device, "DeviceError", "The device cannot be opened, or failed."),
    (ErrorKind::Cancelled, "Cancelled", "The request was cancelled, or its engine was closed."),
    (ErrorKind::Timeout, "Timeout", "The request did not end in time."),
];

const BASE: (&str, &str) = ("Error", "What every error of tallow is.");

/// The classes, in the order of [`TABLE`], the base last.
static CLASSES: PyOnceLock<Vec<Py<PyType>>> = PyOnceLock::new();

/// Adds the classes to the module.
pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    for class in classes(module.py())? {
        let class = class.bind(module.py());
        module.add(class.name()?, class)?;
    }
    Ok(())
}

fn classes(py: Python<'_>) -> PyResult<&Vec<Py<PyType>>> {
    CLASSES.get_or_try_init(py, || {
        let exception = PyTuple::new(py, [py.get_type::<PyException>()])?;
        let base = new_class(py, BASE.0, BASE.1, &exception)?;
        let mut classes = Vec::with_capacity(TABLE.len() + 1);
        for (kind, name, doc) in TABLE {
            let bases = PyTuple::new(py, [base.bind(py).as_any().clone(), builtin(py, *kind)])?;
            classes.push(new_class(py, name, doc, &bases)?);
        }
        classes.push(base);
        Ok(classes)
    })
}

/// `type(name, bases, dict)`, since pyo3 makes exceptions with one base only.
fn new_class(py: Python<'_>, name: &str, doc: &str, bases: &Bound<'_, PyTuple>) -> PyResult<Py<PyType>> {
    let dict = PyDict::new(py);
    // The classes live where users import them from, which is what tracebacks and pickles name.
    dict.set_item("__module__", "tallow")?;
    dict.set_item("__doc__", doc)?;
    let class = py.get_type::<PyType>().call1((name, bases, dict))?;
    Ok(class.cast_into::<PyType>()?.unbind())
}

/// The built-in that a class refines, for callers who have never heard of tallow.
fn builtin(py: Python<'_>, kind: ErrorKind) -> Bound<'_, PyAny> {
    match kind {
        ErrorKind::ModelFile | ErrorKind::Hub => py.get_type::<PyOSError>(),
        ErrorKind::OutOfMemory => py.get_type::<PyMemoryError>(),
        ErrorKind::Timeout => py.get_type::<PyTimeoutError>(),
        ErrorKind::Device | ErrorKind::Cancelled => py.get_type::<PyRuntimeError>(),
        _ => py.get_type::<PyValueError>(),
    }
    .into_any()
}

/// An exception of a Python callback on its way through Rust.
#[derive(Debug)]
pub struct Raised(pub PyErr);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.fmt(f)
    }
}

impl std::error::Error for Raised {}

/// The exception for an error: a callback's own, with its own traceback, or one of the table.
pub fn to_python(py: Python<'_>, error: &Error) -> PyErr {
    if let Some(Raised(raised)) = error.source_ref().and_then(|source| source.downcast_ref::<Raised>()) {
        return raised.clone_ref(py);
    }
    build(py, error).unwrap_or_else(|raised| raised)
}

fn build(py: Python<'_>, error: &Error) -> PyResult<PyErr> {
    let classes = classes(py)?;
    let index = TABLE.iter().position(|(kind, ..)| *kind == error.kind()).unwrap_or(TABLE.len());
    let class = classes[index].bind(py);
    let message = match error.kind() {
        ErrorKind::Internal => {
            format!("{}; this is a defect of tallow, please report it", error.message())
        }
        _ => error.message().to_string(),
    };
    let value = class.call1((message,))?;
    if let Some((needed, limit)) = error.counts() {
        value.setattr("prompt_tokens", needed)?;
        value.setattr("limit", limit)?;
    }
    Ok(PyErr::from_value(value))
}
