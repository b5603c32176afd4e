//! `_core.Model`: a loaded model, its tokenizer and its template.

use std::ffi::OsString;
use std::sync::Arc;

use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyDict, PyFloat, PyInt};
use serde_json::json;

use super::engine::OwnedPrompt;
use super::errors::to_python;
use super::{convert, door, load, sampler};
use crate::config::LayerConfig;
use crate::lm::{AsPrompt, Lm};
use crate::model::{Chat, ChatPrompt, Embedding, LoadOptions, Model, Prompt};
use crate::sample::SamplerFields;
use crate::text::chat::{check_messages, plain};

#[pyclass(frozen, name = "Model", module = "tallow._core")]
pub struct PyModel(pub Arc<Model>);

#[pymethods]
impl PyModel {
    /// Loads a model; the same source with the same options shares its weights. `called`: name and revision
    /// of a source that Python has resolved to this path.
    #[staticmethod]
    #[pyo3(signature = (source, *, revision=None, offline=None, device="auto".to_string(),
        dtype="auto".to_string(), kv_type="auto".to_string(), quantize=None, context_length=None, threads=None,
        chat_template=None, packed_cache=true, progress=None, called=None))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of Python, all optional
    fn load(
        py: Python<'_>,
        source: OsString,
        revision: Option<String>,
        offline: Option<bool>,
        device: String,
        dtype: String,
        kv_type: String,
        quantize: Option<String>,
        context_length: Option<usize>,
        threads: Option<usize>,
        chat_template: Option<String>,
        packed_cache: bool,
        progress: Option<Bound<'_, PyAny>>,
        called: Option<(String, Option<String>)>,
    ) -> PyResult<Self> {
        let options = LoadOptions {
            revision,
            offline,
            device,
            dtype,
            kv_type,
            quantize,
            context_length,
            threads,
            chat_template,
            packed_cache,
            called,
            ..LoadOptions::default()
        };
        load::load(py, source, options, progress).map(PyModel)
    }

    /// Raises what is wrong with options, before a source is fetched for them. Nothing of Python runs inside
    /// of this: a daemon thread that the interpreter ends while it is in Python must not have Rust below it.
    #[staticmethod]
    #[pyo3(signature = (*, revision=None, offline=None, device="auto".to_string(), dtype="auto".to_string(),
        kv_type="auto".to_string(), quantize=None, context_length=None, threads=None, chat_template=None,
        packed_cache=true))]
    #[allow(clippy::too_many_arguments)] // as `load`
    fn check_options(
        py: Python<'_>,
        revision: Option<String>,
        offline: Option<bool>,
        device: String,
        dtype: String,
        kv_type: String,
        quantize: Option<String>,
        context_length: Option<usize>,
        threads: Option<usize>,
        chat_template: Option<String>,
        packed_cache: bool,
    ) -> PyResult<()> {
        let options = LoadOptions {
            revision,
            offline,
            device,
            dtype,
            kv_type,
            quantize,
            context_length,
            threads,
            chat_template,
            packed_cache,
            ..LoadOptions::default()
        };
        options.check().map_err(|error| to_python(py, &error))
    }

    /// Raises why `draft` cannot draft for this model, if it cannot.
    fn check_draft(&self, py: Python<'_>, draft: &Bound<'_, PyModel>) -> PyResult<()> {
        Lm::check_draft(&self.0, &draft.get().0).map_err(|error| to_python(py, &error))
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
    fn fingerprint(&self, py: Python<'_>) -> String {
        py.detach(|| self.0.fingerprint().to_string())
    }

    /// 32 hexadecimal digits over every byte of the files. The first time they are read for it.
    #[pyo3(signature = (progress=None))]
    fn content_hash(&self, py: Python<'_>, progress: Option<Bound<'_, PyAny>>) -> PyResult<String> {
        load::content_hash(py, &self.0, progress)
    }

    #[getter]
    fn config<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyAny>> {
        let c = self.0.config();
        let attention = c.attention();
        let experts = c.experts();
        let window = |layer: &LayerConfig| layer.attention().and_then(|attention| attention.window);
        let windows: Vec<_> = c.layers.iter().map(window).collect();
        let value = json!({
            "family": c.family,
            "hidden_size": c.hidden,
            "intermediate_size": c.dense().map(|dense| dense.intermediate),
            "num_experts": experts.map(|experts| experts.count),
            "num_experts_per_tok": experts.map(|experts| experts.routing.top_k),
            "moe_intermediate_size": experts.map(|experts| experts.intermediate),
            "num_layers": c.layers.len(),
            "num_heads": attention.map(|attention| attention.heads),
            "num_kv_heads": attention.map(|attention| attention.kv_heads),
            "head_dim": attention.map(|attention| attention.head_dim),
            "vocab_size": c.vocab,
            "max_context_length": c.longest,
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
    fn kv_type(&self) -> &'static str {
        self.0.placement().kv_name()
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

    /// What became of its packed weights.
    #[getter]
    fn packed(&self) -> String {
        self.0.packed().to_string()
    }

    /// Why a file of packed weights that was there is not used.
    #[getter]
    fn packed_again(&self) -> Option<&str> {
        self.0.packed_again()
    }

    #[getter]
    fn notes(&self) -> Vec<String> {
        self.0.notes().to_vec()
    }

    #[getter]
    fn tokenizer_source(&self) -> &'static str {
        self.0.tokenizer().source()
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

    /// Whether it was made for vectors: its files say how a text becomes one, or it cannot write.
    #[getter]
    fn is_embedder(&self) -> bool {
        !self.0.config().causal || self.0.embedding().is_ok_and(Embedding::is_described)
    }

    /// What the model's makers advise for sampling; empty: greedy.
    #[getter]
    fn generation<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let dict = sampler::dict(py, &SamplerFields::from(self.0.generation()), &[])?;
        let advised = PyDict::new(py);
        for (name, value) in dict {
            // Numbers alone are advised.
            if value.cast::<PyFloat>().is_ok() || value.cast::<PyInt>().is_ok() {
                advised.set_item(name, value)?;
            }
        }
        Ok(advised)
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

    /// The prompt that the chat template makes of messages. `name` is how errors call them.
    #[pyo3(signature = (messages, tools=None, arguments=None, name="messages"))]
    fn render(
        &self,
        py: Python<'_>,
        messages: &Bound<'_, PyAny>,
        tools: Option<&Bound<'_, PyAny>>,
        arguments: Option<&Bound<'_, PyAny>>,
        name: &str,
    ) -> PyResult<PyPrompt> {
        let messages = read_messages(messages, name)?;
        let tools = tools.filter(|tools| !tools.is_none());
        let tools = tools.map(|tools| convert::json(tools, "tools")).transpose()?;
        let arguments = convert::object(arguments, "template_arguments")?;
        let chat = Chat { messages, tools, arguments };
        let prompt = door::detached(py, || self.0.render(&chat))?;
        Ok(PyPrompt { model: self.0.clone(), prompt })
    }

    /// The ids of a prompt.
    fn prompt_ids(&self, py: Python<'_>, prompt: &Bound<'_, PyAny>) -> PyResult<Vec<u32>> {
        let prompt = OwnedPrompt::read(prompt)?;
        door::detached(py, || self.0.prompt_ids(&prompt.prompt()))
    }

    /// The ids of a text that is to become a vector.
    #[pyo3(signature = (text, prompt=None))]
    fn embedding_ids(&self, py: Python<'_>, text: &str, prompt: Option<&str>) -> PyResult<Vec<u32>> {
        door::detached(py, || self.0.embedding_ids(text, prompt))
    }

    /// The ids of a text where it continues a prompt.
    fn continuation_ids(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        text: String,
    ) -> PyResult<Vec<u32>> {
        let prompt = OwnedPrompt::read(prompt)?;
        door::detached(py, || {
            let prompt = prompt.prompt();
            let ids = self.0.prompt_ids(&prompt)?;
            Ok(self.0.continuation_ids(&prompt, &ids, &[text])?.concat())
        })
    }

    /// The variables that the chat template reads; None without one.
    #[getter]
    fn template_variables(&self) -> Option<Vec<&str>> {
        self.0.template().map(|template| template.variables().into_iter().collect())
    }

    /// Whether the chat template shows calls of tools and their results as they are.
    #[getter]
    fn shows_calls(&self, py: Python<'_>) -> PyResult<bool> {
        door::detached(py, || Ok(self.0.template().is_some_and(|template| template.shows_calls())))
    }
}

/// Messages in the one spelling that templates know: no null fields, no old names. `name` is how errors call
/// them.
#[pyfunction]
pub fn plain_messages<'py>(messages: &Bound<'py, PyAny>, name: &str) -> PyResult<Bound<'py, PyAny>> {
    let py = messages.py();
    let messages = read_messages(messages, name)?;
    check_messages(&messages).map_err(|error| to_python(py, &error))?;
    convert::python(py, &serde_json::Value::Array(plain(&messages)))
}

fn read_messages(messages: &Bound<'_, PyAny>, name: &str) -> PyResult<Vec<serde_json::Value>> {
    match convert::json(messages, name)? {
        serde_json::Value::Array(messages) => Ok(messages),
        _ => Err(convert::invalid(Some(messages.py()), format!("{name} must be a list of dicts"))),
    }
}

/// A conversation that a model has rendered: what the engine takes for a prompt.
#[pyclass(frozen, name = "Prompt", module = "tallow._core")]
pub struct PyPrompt {
    model: Arc<Model>,
    pub prompt: ChatPrompt,
}

#[pymethods]
impl PyPrompt {
    #[getter]
    fn text(&self) -> &str {
        self.prompt.text()
    }

    /// What the template could not take as it was, and what was done instead.
    #[getter]
    fn notes(&self) -> Vec<String> {
        self.prompt.notes().to_vec()
    }

    /// Tokens of the prompt.
    fn __len__(&self, py: Python<'_>) -> PyResult<usize> {
        door::detached(py, || self.model.prompt_ids(&Prompt::Rendered(&self.prompt)).map(|ids| ids.len()))
    }
}
