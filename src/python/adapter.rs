//! `_core.Adapter`: what changes a model, as one value.

use std::path::PathBuf;

use pyo3::prelude::*;
use pyo3::types::PyDict;

use crate::error::{Error, Result};
use crate::lora::{Adapter, MergeOptions, MergeReport, hex};
use crate::weights::{Format, WeightType};

/// An adapter that an engine has loaded.
#[pyclass(frozen, name = "Adapter", module = "tallow._core")]
pub struct PyAdapter(pub Adapter);

#[pymethods]
impl PyAdapter {
    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    #[getter]
    fn fingerprint(&self) -> String {
        self.0.fingerprint()
    }

    /// 64 hexadecimal digits over all that it changes.
    #[getter]
    fn hash(&self) -> String {
        hex(self.0.hash())
    }

    #[getter]
    fn scale(&self) -> f32 {
        self.0.scale()
    }

    #[getter]
    fn path(&self) -> Option<PathBuf> {
        self.0.path()
    }

    #[getter]
    fn format(&self) -> &'static str {
        self.0.format().name()
    }

    #[getter]
    fn base(&self) -> Option<&str> {
        self.0.base()
    }

    #[getter]
    fn notes(&self) -> Vec<String> {
        self.0.notes().to_vec()
    }

    #[getter]
    fn rank(&self) -> usize {
        self.0.rank()
    }

    #[getter]
    fn targets(&self) -> Vec<String> {
        self.0.targets().to_vec()
    }

    #[getter]
    fn bytes(&self) -> usize {
        self.0.bytes()
    }

    /// Whether it is in memory; one that is idle may have been dropped, and comes back when it is used.
    #[getter]
    fn loaded(&self) -> bool {
        self.0.is_loaded()
    }
}

/// How a merged model is written, as Python says it.
pub fn merge_options(dtype: Option<&str>, format: Option<&str>, force: bool) -> Result<MergeOptions> {
    let dtype = dtype.map(|name| match name {
        "float32" => Ok(WeightType::F32),
        "float16" => Ok(WeightType::F16),
        "bfloat16" => Ok(WeightType::BF16),
        other => {
            WeightType::parse(other).map_err(|error| error.context("dtype (or float16, bfloat16, float32)"))
        }
    });
    let format = format.map(|name| match name {
        "safetensors" => Ok(Format::Safetensors),
        "gguf" => Ok(Format::Gguf),
        other => Err(Error::invalid(format!("format is {other:?}; it must be \"safetensors\" or \"gguf\""))),
    });
    Ok(MergeOptions { dtype: dtype.transpose()?, format: format.transpose()?, force })
}

/// What was written, as a dict.
pub fn merge_report<'py>(py: Python<'py>, report: MergeReport) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("path", report.path)?;
    dict.set_item("size", report.bytes)?;
    let rows = report.tensors.into_iter().map(|it| (it.name, it.dtype, it.delta, it.lost));
    dict.set_item("tensors", rows.collect::<Vec<_>>())?;
    dict.set_item("notes", report.notes)?;
    Ok(dict)
}
