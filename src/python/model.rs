//! `_core.Model`: a loaded model, its tokenizer and its template.

use std::path::PathBuf;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict};
use serde_json::json;

use super::errors::to_python;
use super::{convert, door, load};
use crate::model::{Chat, LoadOptions, Model};

#[pyclass(frozen, name = "Model", module = "tallow._core")]
pub struct PyModel(pub Arc<Model>);

#[pymethods]
impl PyModel {
    /// Loads a model; the same source with the same options shares its weights.
    #[staticmethod]
    #[pyo3(signature = (source, *, revision=None, offline=None, device="auto".to_string(), dtype="auto".to_string(),
        quantize=None, context_length=None, threads=None, chat_template=None, progress=None, python=None))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of Python, all optional
    fn load(
        py: Python<'_>,
        source: String,
        revision: Option<String>,
        offline: Option<bool>,
        device: String,
        dtype: String,
        quantize: Option<String>,
        context_length: Option<usize>,
        threads: Option<usize>,
        chat_template: Option<String>,
        progress: Option<Bound<'_, PyAny>>,
        python: Option<PathBuf>,
    ) -> PyResult<Self> {
        let options = LoadOptions {
            revision,
            offline,
            device,
            dtype,
            quantize,
            context_length,
            threads,
            chat_template,
            python,
            ..LoadOptions::default()
        };
        load::load(py, source, options, progress).map(PyModel)
    }

    /// Two are equal if they share their weights.
    fn __eq__(&self, other: &Bound<'_, PyAny>) -> bool {
        other.cast::<PyModel>().is_ok_and(|other| Arc::ptr_eq(&self.0, &other.get().0))
    }

    fn __hash__(&self) -> usize {
        Arc::as_ptr(&self.0) as usize
    }

    #[getter]
    fn name(&self) -> &str {
        self.0.name()
    }

    #[getter]
    fn revision(&self) -> Option<&str> {
        self.0.revision()
    }

    #[getter]
    fn fingerprint(&self) -> &str {
        self.0.fingerprint()
    }

    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let c = self.0.config();
        let windows: Vec<_> = c.layers.iter().map(|layer| layer.window).collect();
        let value = json!({
            "family": c.family,
            "hidden_size": c.hidden,
            "intermediate_size": c.intermediate,
            "num_layers": c.layers.len(),
            "num_heads": c.heads,
            "num_kv_heads": c.kv_heads,
            "head_dim": c.head_dim,
            "vocab_size": c.vocab,
            "max_context_length": c.context,
            "rope_theta": c.ropes.first().map(|rope| rope.theta),
            "sliding_windows": windows,
        });
        convert::python(py, &value)
    }

    #[getter]
    fn device(&self) -> String {
        self.0.placement().name()
    }

    #[getter]
    fn dtype(&self) -> &'static str {
        self.0.placement().compute.name()
    }

    #[getter]
    fn context_length(&self) -> usize {
        self.0.context_length()
    }

    #[getter]
    fn vocab_size(&self) -> usize {
        self.0.vocab_size()
    }

    #[getter]
    fn weight_bytes(&self) -> u64 {
        self.0.weight_bytes()
    }

    #[getter]
    fn weight_types(&self) -> Vec<&'static str> {
        self.0.weight_types().to_vec()
    }

    #[getter]
    fn eos_ids(&self) -> Vec<u32> {
        self.0.eos_ids().to_vec()
    }

    #[getter]
    fn has_template(&self) -> bool {
        self.0.template().is_some()
    }

    /// The text of the template; None if the model has none.
    #[getter]
    fn chat_template(&self) -> Option<&str> {
        self.0.template().map(|template| template.source())
    }

    #[getter]
    fn pooling(&self, py: Python<'_>) -> PyResult<String> {
        let embedding = self.0.embedding().map_err(|error| to_python(py, &error))?;
        Ok(embedding.pooling().iter().map(|pooling| pooling.name()).collect::<Vec<_>>().join("+"))
    }

    /// What the model's makers advise for sampling; empty: greedy.
    #[getter]
    fn generation<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let g = self.0.generation();
        let dict = PyDict::new(py);
        let floats = [
            ("temperature", g.temperature),
            ("top_p", g.top_p),
            ("min_p", g.min_p),
            ("typical_p", g.typical_p),
            ("repetition_penalty", g.repetition_penalty),
        ];
        for (name, value) in floats {
            if let Some(value) = value {
                dict.set_item(name, value)?;
            }
        }
        if let Some(k) = g.top_k {
            dict.set_item("top_k", k)?;
        }
        Ok(dict)
    }

    #[pyo3(signature = (text, special=false))]
    fn tokenize(&self, py: Python<'_>, text: String, special: bool) -> PyResult<Vec<u32>> {
        door::detached(py, || self.0.tokenizer().encode(&text, special))
    }

    #[pyo3(signature = (ids, special=false))]
    fn detokenize(&self, py: Python<'_>, ids: Vec<u32>, special: bool) -> PyResult<String> {
        door::detached(py, || Ok(self.0.tokenizer().decode(&ids, special)))
    }

    fn token_bytes<'py>(&self, py: Python<'py>, id: u32) -> Bound<'py, PyBytes> {
        PyBytes::new(py, self.0.tokenizer().token_bytes(id))
    }

    fn render(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        tools: Option<&Bound<'_, PyAny>>,
        add_generation_prompt: bool,
        arguments: Option<&Bound<'_, PyAny>>,
    ) -> PyResult<String> {
        let owned = Conversation::read(messages, tools, arguments, add_generation_prompt)?;
        door::detached(py, || self.0.render(&owned.chat()).map(|rendered| rendered.text))
    }
}

/// A conversation, read from Python.
pub struct Conversation {
    messages: Vec<serde_json::Value>,
    tools: Option<serde_json::Value>,
    arguments: serde_json::Map<String, serde_json::Value>,
    add_generation_prompt: bool,
}

impl Conversation {
    pub fn read(
        messages: &Bound<'_, PyAny>,
        tools: Option<&Bound<'_, PyAny>>,
        arguments: Option<&Bound<'_, PyAny>>,
        add_generation_prompt: bool,
    ) -> PyResult<Self> {
        let serde_json::Value::Array(messages) = convert::json(messages, "messages")? else {
            return Err(convert::invalid(Some(messages.py()), "messages must be a list of dicts".into()));
        };
        let tools = tools.filter(|tools| !tools.is_none());
        Ok(Conversation {
            messages,
            tools: tools.map(|tools| convert::json(tools, "tools")).transpose()?,
            arguments: convert::object(arguments, "template arguments")?,
            add_generation_prompt,
        })
    }

    pub fn chat(&self) -> Chat<'_> {
        Chat {
            messages: &self.messages,
            tools: self.tools.as_ref(),
            add_generation_prompt: self.add_generation_prompt,
            arguments: &self.arguments,
        }
    }
}
