//! `_core.Adapter`: what changes a model, as one value.

use std::path::PathBuf;

use pyo3::prelude::*;

use crate::lora::{Adapter, hex};

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
