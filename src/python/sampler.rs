//! `_core.Sampler`, and filters written in Python. What is done for each field is made of the table of
//! [`fields`](crate::sample::fields).

// In what pyo3 writes for `__eq__`; the lint sees it because a macro of ours stands around it.
#![allow(unsafe_op_in_unsafe_fn)]

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use numpy::{PyArray1, PyArrayMethods};
use pyo3::exceptions::{PyRuntimeError, PyTypeError};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyTuple};
use pyo3::{PyTraverseError, PyVisit};

use super::convert::invalid;
use super::errors::{Raised, to_python};
use crate::error::{Error, Result};
use crate::sample::fields::for_each_field;
use crate::sample::{FIELDS, Filter, History, Logits, Sampler, SamplerFields};

/// How a token is picked. Immutable; `replace` makes a changed copy. A temperature that is not given is 1;
/// what else is not given is off.
#[pyclass(frozen, name = "Sampler", module = "tallow._core")]
pub struct PySampler {
    /// Its filters have no callables: see [`Callables`].
    sampler: Sampler,
    filters: Vec<Py<PyAny>>,
}

/// The callables of a request's filters. Whoever can be asked by Python's collector for what it holds, a
/// sampler or a generation, owns them; the engine only has their numbers. Held by the engine, a method of an
/// object that has its own stream would be kept for ever.
#[derive(Clone)]
pub struct Callables(Arc<Vec<Py<PyAny>>>);

impl Callables {
    /// Those that were given, or else the sampler's.
    pub fn new(py: Python<'_>, given: Option<Vec<Py<PyAny>>>, sampler: Option<&PySampler>) -> Self {
        let own = || sampler.map(|sampler| sampler.filters.iter().map(|it| it.clone_ref(py)).collect());
        Callables(Arc::new(given.or_else(own).unwrap_or_default()))
    }

    /// What calls them, as long as these here are not dropped.
    pub fn as_filters(&self, py: Python<'_>) -> Vec<Arc<dyn Filter>> {
        as_filters(py, &self.0, &Arc::downgrade(&self.0))
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn traverse(&self, visit: &PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        self.0.iter().try_for_each(|callable| visit.call(callable))
    }
}

fn as_filters(py: Python<'_>, callables: &[Py<PyAny>], owner: &Weak<Vec<Py<PyAny>>>) -> Vec<Arc<dyn Filter>> {
    let wrap = |(number, callable): (usize, &Py<PyAny>)| {
        let name = name_of(callable.bind(py));
        Arc::new(PyFilter { owner: owner.clone(), number, name }) as Arc<dyn Filter>
    };
    callables.iter().enumerate().map(wrap).collect()
}

/// Reads fields from a dict of keyword arguments; `None` means "not given". The filters come apart.
pub fn read_fields(dict: &Bound<'_, PyDict>) -> PyResult<(SamplerFields, Option<Vec<Py<PyAny>>>)> {
    let mut fields = SamplerFields::default();
    let mut callables = None;
    for (key, value) in dict.iter() {
        let key: String = key.extract()?;
        if !value.is_none() {
            read_field(&mut fields, &mut callables, &key, &value)?;
        }
    }
    Ok((fields, callables))
}

/// Reads a field's value by the field's kind.
macro_rules! read {
    (number, $fields:ident.$name:ident, $value:ident, $callables:ident) => {
        $fields.$name = Some(extract($value, stringify!($name), "a number")?)
    };
    (count, $fields:ident.$name:ident, $value:ident, $callables:ident) => {
        $fields.$name = Some(extract($value, stringify!($name), "a whole number of 1 or more")?)
    };
    (bias, $fields:ident.$name:ident, $value:ident, $callables:ident) => {
        $fields.$name = Some(bias($value)?)
    };
    (filters, $fields:ident.$name:ident, $value:ident, $callables:ident) => {
        *$callables = Some(filters($value)?)
    };
}

/// A field's value for Python, by the field's kind.
macro_rules! shown {
    (filters, $fields:expr, $name:ident, $callables:expr, $py:ident) => {
        PyTuple::new($py, $callables.iter().map(|callable| callable.bind($py)))?.into_any()
    };
    ($kind:ident, $fields:expr, $name:ident, $callables:expr, $py:ident) => {
        $fields.$name.clone().into_pyobject($py)?
    };
}

macro_rules! by_name {
    ($($(#[$doc:meta])* $name:ident: $kind:ident $(($off:literal, $range:ident))?;)*) => {
        fn read_field(
            fields: &mut SamplerFields,
            callables: &mut Option<Vec<Py<PyAny>>>,
            name: &str,
            value: &Bound<'_, PyAny>,
        ) -> PyResult<()> {
            match name {
                $(stringify!($name) => read!($kind, fields.$name, value, callables),)*
                _ => return Err(unknown(value.py(), name)),
            }
            Ok(())
        }

        /// The fields as Python has them, in their order; those that are not given are None.
        pub fn dict<'py>(
            py: Python<'py>,
            fields: &SamplerFields,
            callables: &[Py<PyAny>],
        ) -> PyResult<Bound<'py, PyDict>> {
            let dict = PyDict::new(py);
            $(dict.set_item(stringify!($name), shown!($kind, fields, $name, callables, py))?;)*
            Ok(dict)
        }

        #[pymethods]
        impl PySampler {
            #[new]
            #[pyo3(signature = ($($name=None),*))]
            #[allow(clippy::too_many_arguments)] // keyword arguments of Python, all optional
            fn new(py: Python<'_>, $($name: Option<Bound<'_, PyAny>>),*) -> PyResult<Self> {
                let dict = PyDict::new(py);
                $(dict.set_item(stringify!($name), $name)?;)*
                PySampler::made(&dict)
            }

            $(
                $(#[$doc])*
                #[getter]
                fn $name<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
                    Ok(shown!($kind, self.sampler.fields(), $name, self.filters, py))
                }
            )*

            /// A sampler with some fields replaced; `None` switches a field off.
            #[pyo3(signature = (**fields))]
            fn replace(&self, py: Python<'_>, fields: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
                self.replaced(py, fields)
            }

            fn __eq__(&self, py: Python<'_>, other: &Bound<'_, PyAny>) -> PyResult<bool> {
                self.equals(py, other)
            }

            fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
                self.hashed(py)
            }

            fn __repr__(&self) -> String {
                format!("{}", self.sampler)
            }

            /// No `__clear__`: as a tuple it cannot be changed, so there is something else in every cycle
            /// that can.
            fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
                self.filters.iter().try_for_each(|callable| visit.call(callable))
            }

            fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
                let values = slf.get().dict(slf.py())?.values();
                Ok((slf.get_type().into_any(), values.to_tuple()))
            }
        }
    };
}

for_each_field!(by_name);

fn unknown(py: Python<'_>, name: &str) -> PyErr {
    let known = FIELDS.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
    invalid(Some(py), format!("{name:?} is not a field of a sampler; there are {known}"))
}

fn extract<'py, T>(value: &Bound<'py, PyAny>, name: &str, wanted: &str) -> PyResult<T>
where
    T: for<'a> FromPyObject<'a, 'py>,
{
    let wrong = |shown: String| invalid(Some(value.py()), format!("{name} must be {wanted}, not {shown}"));
    if value.is_instance_of::<pyo3::types::PyBool>() {
        return Err(wrong(value.to_string()));
    }
    value.extract().map_err(|_| wrong(value.repr().map_or_else(|_| "that".into(), |r| r.to_string())))
}

fn bias(value: &Bound<'_, PyAny>) -> PyResult<BTreeMap<u32, f64>> {
    let wrong = || invalid(Some(value.py()), "logit_bias must map token ids to numbers".into());
    let items = value.call_method0("items").map_err(|_| wrong())?;
    let mut map = BTreeMap::new();
    for item in items.try_iter()? {
        let (id, bias) = item?.extract::<(Bound<'_, PyAny>, f64)>().map_err(|_| wrong())?;
        // JSON has only strings for keys, and OpenAI's clients send them.
        let id = id.extract::<u32>().ok().or_else(|| id.extract::<String>().ok()?.parse().ok());
        map.insert(id.ok_or_else(wrong)?, bias);
    }
    Ok(map)
}

fn filters(value: &Bound<'_, PyAny>) -> PyResult<Vec<Py<PyAny>>> {
    let wrong = || {
        invalid(Some(value.py()), "filters must be a sequence of callables (logits, tokens) -> None".into())
    };
    let items = value.try_iter().map_err(|_| wrong())?;
    items
        .map(|item| {
            let item = item?;
            item.is_callable().then(|| item.unbind()).ok_or_else(wrong)
        })
        .collect()
}

impl PySampler {
    /// `over` replaces this sampler's fields.
    pub fn with(&self, py: Python<'_>, over: SamplerFields) -> PyResult<Sampler> {
        self.sampler.with(over).map_err(|error| to_python(py, &error))
    }

    fn from_dict(dict: &Bound<'_, PyDict>) -> PyResult<Self> {
        let (mut fields, filters) = read_fields(dict)?;
        let filters = filters.unwrap_or_default();
        fields.filters = Some(as_filters(dict.py(), &filters, &Weak::new()));
        let sampler = Sampler::new(fields).map_err(|error| to_python(dict.py(), &error))?;
        Ok(PySampler { sampler, filters })
    }

    fn dict<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        dict(py, self.sampler.fields(), &self.filters)
    }

    fn made(dict: &Bound<'_, PyDict>) -> PyResult<Self> {
        if dict.get_item("temperature")?.is_none_or(|value| value.is_none()) {
            dict.set_item("temperature", 1.0)?;
        }
        PySampler::from_dict(dict)
    }

    fn replaced(&self, py: Python<'_>, fields: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let dict = self.dict(py)?;
        for (key, value) in fields.into_iter().flatten() {
            dict.set_item(key, value)?;
        }
        PySampler::from_dict(&dict)
    }

    fn equals(&self, py: Python<'_>, other: &Bound<'_, PyAny>) -> PyResult<bool> {
        match other.cast::<PySampler>() {
            Ok(other) => self.dict(py)?.eq(other.get().dict(py)?),
            Err(_) => Ok(false),
        }
    }

    fn hashed(&self, py: Python<'_>) -> PyResult<isize> {
        let dict = self.dict(py)?;
        let bias = dict.get_item("logit_bias")?;
        let bias = bias.filter(|bias| !bias.is_none()).map(|bias| bias.str()).transpose()?;
        dict.set_item("logit_bias", bias)?;
        PyTuple::new(py, dict.values())?.hash()
    }
}

/// A filter written in Python: gets the logits as a numpy array to edit in place, and the tokens so far.
struct PyFilter {
    owner: Weak<Vec<Py<PyAny>>>,
    /// Of the callable, among those of its owner.
    number: usize,
    name: String,
}

fn name_of(callable: &Bound<'_, PyAny>) -> String {
    let name = callable.getattr("__name__").and_then(|name| name.extract());
    name.unwrap_or_else(|_| "filter".to_string())
}

impl PyFilter {
    fn call(&self, py: Python<'_>, logits: &mut [f32], tokens: &[u32]) -> PyResult<()> {
        let row = PyArray1::from_slice(py, logits);
        // The generation that owns it is being read, or this would not run.
        let callables = self.owner.upgrade().unwrap_or_default();
        let gone = || PyRuntimeError::new_err("the filter is gone");
        let callable = callables.get(self.number).ok_or_else(gone)?.bind(py);
        let result = callable.call1((&row, PyArray1::from_slice(py, tokens)))?;
        if !result.is_none() {
            return Err(PyTypeError::new_err(format!(
                "the filter {} must edit the logits in place and return None; it returned a {}",
                self.name,
                result.get_type().name()?
            )));
        }
        logits.copy_from_slice(row.readonly().as_slice()?);
        Ok(())
    }
}

/// Filters that run now, and whether the interpreter ends.
static RUNNING: AtomicUsize = AtomicUsize::new(0);
static ENDING: AtomicBool = AtomicBool::new(false);

/// To be called when the interpreter begins to end: no filter is called from now on, and those that run get
/// `seconds` to return. Python ends a daemon thread that is in Python code by unwinding its stack, and with
/// our frames on it that would abort the process (CPython before 3.14).
#[pyfunction]
pub fn end_filters(py: Python<'_>, seconds: f64) {
    ENDING.store(true, SeqCst);
    let until = Instant::now() + Duration::try_from_secs_f64(seconds).unwrap_or_default();
    py.detach(|| {
        while RUNNING.load(SeqCst) > 0 && Instant::now() < until {
            std::thread::sleep(Duration::from_millis(1));
        }
    });
}

/// One more running filter, until it is dropped.
struct Running;

impl Running {
    fn begin() -> Result<Self> {
        RUNNING.fetch_add(1, SeqCst);
        let running = Running;
        match ENDING.load(SeqCst) {
            true => Err(Error::cancelled("the interpreter ends, so no filter is called any more")),
            false => Ok(running),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        RUNNING.fetch_sub(1, SeqCst);
    }
}

impl Filter for PyFilter {
    fn filter(&self, logits: &mut Logits, history: &History) -> Result<()> {
        let _running = Running::begin()?;
        Python::attach(|py| self.call(py, logits.values_mut(), history.tokens)).map_err(|raised| {
            Error::invalid(format!("the filter {} raised {raised}", self.name)).with_source(Raised(raised))
        })
    }

    fn name(&self) -> &str {
        &self.name
    }
}
