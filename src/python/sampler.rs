//! `_core.Sampler`, and filters written in Python.

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
use crate::sample::{Filter, History, Logits, Sampler, SamplerFields};

/// How a token is picked. Immutable.
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

const FIELDS: &[&str] = &[
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "typical_p",
    "repetition_penalty",
    "frequency_penalty",
    "presence_penalty",
    "logit_bias",
    "filters",
];

/// Reads fields from a dict of keyword arguments; `None` means "not given". The filters come apart.
pub fn read_fields(dict: &Bound<'_, PyDict>) -> PyResult<(SamplerFields, Option<Vec<Py<PyAny>>>)> {
    let mut fields = SamplerFields::default();
    let mut callables = None;
    for (key, value) in dict.iter() {
        let key: String = key.extract()?;
        if value.is_none() {
            continue;
        }
        match key.as_str() {
            "temperature" => fields.temperature = Some(number(&value, &key)?),
            "top_p" => fields.top_p = Some(number(&value, &key)?),
            "min_p" => fields.min_p = Some(number(&value, &key)?),
            "typical_p" => fields.typical_p = Some(number(&value, &key)?),
            "repetition_penalty" => fields.repetition_penalty = Some(number(&value, &key)?),
            "frequency_penalty" => fields.frequency_penalty = Some(number(&value, &key)?),
            "presence_penalty" => fields.presence_penalty = Some(number(&value, &key)?),
            "top_k" => fields.top_k = Some(extract(&value, &key, "a whole number of 1 or more")?),
            "logit_bias" => fields.logit_bias = Some(bias(&value)?),
            "filters" => callables = Some(filters(&value)?),
            _ => {
                let known = FIELDS.join(", ");
                return Err(invalid(
                    Some(value.py()),
                    format!("{key:?} is not a field of a sampler; there are {known}"),
                ));
            }
        }
    }
    Ok((fields, callables))
}

fn number(value: &Bound<'_, PyAny>, name: &str) -> PyResult<f64> {
    extract(value, name, "a number")
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
        let f = self.sampler.fields();
        let dict = PyDict::new(py);
        dict.set_item("temperature", f.temperature)?;
        dict.set_item("top_k", f.top_k)?;
        dict.set_item("top_p", f.top_p)?;
        dict.set_item("min_p", f.min_p)?;
        dict.set_item("typical_p", f.typical_p)?;
        dict.set_item("repetition_penalty", f.repetition_penalty)?;
        dict.set_item("frequency_penalty", f.frequency_penalty)?;
        dict.set_item("presence_penalty", f.presence_penalty)?;
        dict.set_item("logit_bias", f.logit_bias.clone())?;
        dict.set_item("filters", PyTuple::new(py, self.filters.iter().map(|f| f.bind(py)))?)?;
        Ok(dict)
    }
}

impl PySampler {
    /// A field by its name; `None` if it is not set.
    fn field<'py>(&self, py: Python<'py>, name: &str) -> PyResult<Bound<'py, PyAny>> {
        Ok(self.dict(py)?.get_item(name)?.unwrap_or_else(|| py.None().into_bound(py)))
    }
}

#[pymethods]
impl PySampler {
    #[new]
    #[pyo3(signature = (temperature=None, top_k=None, top_p=None, min_p=None, typical_p=None, repetition_penalty=None,
        frequency_penalty=None, presence_penalty=None, logit_bias=None, filters=None),
        text_signature = "(temperature=1.0, top_k=None, top_p=None, min_p=None, typical_p=None, \
            repetition_penalty=None, frequency_penalty=None, presence_penalty=None, logit_bias=None, filters=())")]
    #[allow(clippy::too_many_arguments)] // keyword arguments of Python, all optional
    fn new(
        py: Python<'_>,
        temperature: Option<Bound<'_, PyAny>>,
        top_k: Option<Bound<'_, PyAny>>,
        top_p: Option<Bound<'_, PyAny>>,
        min_p: Option<Bound<'_, PyAny>>,
        typical_p: Option<Bound<'_, PyAny>>,
        repetition_penalty: Option<Bound<'_, PyAny>>,
        frequency_penalty: Option<Bound<'_, PyAny>>,
        presence_penalty: Option<Bound<'_, PyAny>>,
        logit_bias: Option<Bound<'_, PyAny>>,
        filters: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Self> {
        let values = [
            temperature,
            top_k,
            top_p,
            min_p,
            typical_p,
            repetition_penalty,
            frequency_penalty,
            presence_penalty,
            logit_bias,
            filters,
        ];
        let dict = PyDict::new(py);
        for (name, value) in FIELDS.iter().zip(values) {
            dict.set_item(name, value)?;
        }
        if dict.get_item("temperature")?.is_none_or(|value| value.is_none()) {
            dict.set_item("temperature", 1.0)?;
        }
        PySampler::from_dict(&dict)
    }

    /// A sampler with some fields replaced; `None` switches a field off.
    #[pyo3(signature = (**fields))]
    fn replace(&self, py: Python<'_>, fields: Option<&Bound<'_, PyDict>>) -> PyResult<Self> {
        let dict = self.dict(py)?;
        for (key, value) in fields.into_iter().flatten() {
            dict.set_item(key, value)?;
        }
        PySampler::from_dict(&dict)
    }

    #[getter]
    fn temperature<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(py, "temperature")
    }

    #[getter]
    fn top_k<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(py, "top_k")
    }

    #[getter]
    fn top_p<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(py, "top_p")
    }

    #[getter]
    fn min_p<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(py, "min_p")
    }

    #[getter]
    fn typical_p<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(py, "typical_p")
    }

    #[getter]
    fn repetition_penalty<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(py, "repetition_penalty")
    }

    #[getter]
    fn frequency_penalty<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(py, "frequency_penalty")
    }

    #[getter]
    fn presence_penalty<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(py, "presence_penalty")
    }

    #[getter]
    fn logit_bias<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(py, "logit_bias")
    }

    #[getter]
    fn filters<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        self.field(py, "filters")
    }

    fn __eq__(&self, py: Python<'_>, other: &Bound<'_, PyAny>) -> PyResult<bool> {
        match other.cast::<PySampler>() {
            Ok(other) => self.dict(py)?.eq(other.get().dict(py)?),
            Err(_) => Ok(false),
        }
    }

    fn __hash__(&self, py: Python<'_>) -> PyResult<isize> {
        let dict = self.dict(py)?;
        let bias = dict.get_item("logit_bias")?;
        let bias = bias.filter(|bias| !bias.is_none()).map(|bias| bias.str()).transpose()?;
        dict.set_item("logit_bias", bias)?;
        PyTuple::new(py, dict.values())?.hash()
    }

    fn __repr__(&self) -> String {
        format!("{}", self.sampler)
    }

    /// No `__clear__`: as a tuple it cannot be changed, so there is something else in every cycle that can.
    fn __traverse__(&self, visit: PyVisit<'_>) -> std::result::Result<(), PyTraverseError> {
        self.filters.iter().try_for_each(|callable| visit.call(callable))
    }

    fn __reduce__<'py>(slf: &Bound<'py, Self>) -> PyResult<(Bound<'py, PyAny>, Bound<'py, PyTuple>)> {
        let values = slf.get().dict(slf.py())?.values();
        Ok((slf.get_type().into_any(), values.to_tuple()))
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
/// `seconds` to return. Python ends a daemon thread that is in Python code by unwinding its stack, and with our
/// frames on it that would abort the process (CPython before 3.14).
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
