//! `_core.Engine`: a running engine over a model.

use std::collections::BTreeMap;
use std::ffi::OsString;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use numpy::{IntoPyArray, PyArray2, PyArrayMethods};
use pyo3::prelude::*;
use pyo3::types::{PyDict, PyString};

use super::adapter::{PyAdapter, merge_options, merge_report};
use super::convert::{invalid, json, string};
use super::errors::to_python;
use super::generation::PyGeneration;
use super::load::watched;
use super::model::{PyModel, PyPrompt};
use super::sampler::{Callables, PySampler, read_fields};
use super::train::{Examples, PyTraining};
use super::waker::PyWaker;
use super::{door, load};
use crate::constrain::Constraint;
use crate::engine::{Event, Generation, Notify, Poll, Pooling};
use crate::error::{Error, Result};
use crate::hub::{self, HubOptions};
use crate::lm::{AsPrompt, GenerateOptions, Lm, LmOptions};
use crate::model::Prompt;
use crate::sample::SamplerFields;

#[pyclass(frozen, name = "Engine", module = "tallow._core")]
pub struct PyEngine {
    lm: Lm,
}

/// A prompt, read from Python.
pub(super) enum OwnedPrompt {
    Text(String),
    Ids(Vec<u32>),
    Chat(Py<PyPrompt>),
}

impl OwnedPrompt {
    pub(super) fn read(prompt: &Bound<'_, PyAny>) -> PyResult<Self> {
        if let Ok(prompt) = prompt.cast::<PyPrompt>() {
            return Ok(OwnedPrompt::Chat(prompt.clone().unbind()));
        }
        if let Ok(text) = prompt.cast::<PyString>() {
            return string(text, "prompt").map(OwnedPrompt::Text);
        }
        let ids = prompt.extract::<Vec<u32>>();
        ids.map(OwnedPrompt::Ids).map_err(|_| {
            let message = "a prompt is a text, a list of token ids, or what Model.render made of messages";
            invalid(Some(prompt.py()), message.into())
        })
    }
}

impl<'a> From<&'a OwnedPrompt> for Prompt<'a> {
    fn from(prompt: &'a OwnedPrompt) -> Self {
        match prompt {
            OwnedPrompt::Text(text) => Prompt::Text(text),
            OwnedPrompt::Ids(ids) => Prompt::Ids(ids),
            OwnedPrompt::Chat(prompt) => Prompt::Rendered(&prompt.get().prompt),
        }
    }
}

#[pymethods]
impl PyEngine {
    #[new]
    #[pyo3(signature = (model, *, kv_memory=None, queue=None, prefix_cache=true, speculation=true,
        draft=None, adapter_memory=None, adapters_of=None))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of Python, all optional
    fn new(
        py: Python<'_>,
        model: &Bound<'_, PyModel>,
        kv_memory: Option<u64>,
        queue: Option<usize>,
        prefix_cache: bool,
        speculation: bool,
        draft: Option<&Bound<'_, PyModel>>,
        adapter_memory: Option<u64>,
        adapters_of: Option<&Bound<'_, PyEngine>>,
    ) -> PyResult<Self> {
        let model = model.get().0.clone();
        let adapters = adapters_of.map(|engine| engine.get().lm.adapters().clone());
        let draft = draft.map(|draft| draft.get().0.clone());
        let options =
            LmOptions { kv_memory, queue, prefix_cache, speculation, draft, adapter_memory, adapters };
        let lm = door::detached(py, || Lm::start(model, &options))?;
        Ok(PyEngine { lm })
    }

    /// Submits a prompt; the answer is read from the Generation.
    #[pyo3(signature = (prompt, *, max_tokens=None, sampler=None, fields=None,
        stop=vec![], seed=None, logprobs=None, timeout=None, prediction=None, constraint=None,
        shown_tokens=vec![], adapter=None, waker=None, key=0, every_token=false))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of Python, all optional
    fn generate(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        max_tokens: Option<usize>,
        sampler: Option<&Bound<'_, PySampler>>,
        fields: Option<&Bound<'_, PyDict>>,
        stop: Vec<String>,
        seed: Option<u64>,
        logprobs: Option<usize>,
        timeout: Option<f64>,
        prediction: Option<String>,
        constraint: Option<(String, Bound<'_, PyAny>)>,
        shown_tokens: Vec<u32>,
        adapter: Option<&Bound<'_, PyAdapter>>,
        waker: Option<&Bound<'_, PyWaker>>,
        key: u64,
        every_token: bool,
    ) -> PyResult<PyGeneration> {
        let prompt = OwnedPrompt::read(prompt)?;
        let (mut fields, filters) = match fields {
            Some(fields) => read_fields(fields)?,
            None => (SamplerFields::default(), None),
        };
        let filters = Callables::new(py, filters, sampler.map(|sampler| sampler.get()));
        fields.filters = Some(filters.as_filters(py));
        let sampler = match sampler {
            Some(sampler) => sampler.get().with(py, fields)?,
            None => self.lm.sampler(fields).map_err(|error| to_python(py, &error))?,
        };
        let timeout = timeout.map(|seconds| read_timeout(py, seconds)).transpose()?;
        let constraint = constraint.map(|(kind, value)| read_constraint(&kind, &value)).transpose()?;
        let options = GenerateOptions {
            max_tokens,
            sampler: Some(sampler),
            stop,
            seed,
            logprobs,
            timeout,
            prediction,
            constraint,
            shown_tokens,
            adapter: adapter.map(|adapter| adapter.get().0.clone()),
        };
        let notify = waker.map(|waker| {
            let queue = waker.get().0.clone();
            Arc::new(move |must_look: bool| {
                if must_look || every_token {
                    queue.push(key);
                }
            }) as Notify
        });
        let generation = door::detached(py, || match notify {
            // Whoever waits in an event loop must not wait in here.
            Some(notify) => self.lm.generate_later(prompt, options, notify),
            None => self.lm.generate(prompt.prompt(), &options),
        })?;
        Ok(PyGeneration::new(generation, filters))
    }

    /// Makes the grammar of a constraint, for requests to come; raises what is wrong with it.
    fn compile(&self, py: Python<'_>, constraint: (String, Bound<'_, PyAny>)) -> PyResult<()> {
        let constraint = read_constraint(&constraint.0, &constraint.1)?;
        door::detached(py, || self.lm.grammar(&constraint).map(drop))
    }

    /// Takes an adapter in from a folder, a file or the hub; a name is its from now on.
    #[pyo3(signature = (source, *, revision=None, name=None, scale=1.0, progress=None))]
    fn load_adapter(
        &self,
        py: Python<'_>,
        source: OsString,
        revision: Option<String>,
        name: Option<String>,
        scale: f32,
        progress: Option<Bound<'_, PyAny>>,
    ) -> PyResult<PyAdapter> {
        let lm = self.lm.clone();
        let load = move |progress| {
            let options = HubOptions { revision, offline: None, progress };
            lm.load_adapter(&hub::locate_adapter(&source, &options)?, name.as_deref(), scale)
        };
        watched(py, progress, load).map(PyAdapter)
    }

    /// Writes an adapter into a folder, as peft has it.
    fn save_adapter(&self, py: Python<'_>, adapter: &Bound<'_, PyAdapter>, folder: PathBuf) -> PyResult<()> {
        let adapter = adapter.get().0.clone();
        door::detached(py, || self.lm.save_adapter(&adapter, &folder))
    }

    /// Writes the model with an adapter merged into it.
    #[pyo3(signature = (path, adapter, *, dtype=None, format=None, force=false, progress=None))]
    #[allow(clippy::too_many_arguments)] // keyword arguments of Python, all optional
    fn save_merged<'py>(
        &self,
        py: Python<'py>,
        path: PathBuf,
        adapter: &Bound<'_, PyAdapter>,
        dtype: Option<&str>,
        format: Option<&str>,
        force: bool,
        progress: Option<Bound<'_, PyAny>>,
    ) -> PyResult<Bound<'py, PyDict>> {
        let options = merge_options(dtype, format, force).map_err(|error| to_python(py, &error))?;
        let (lm, adapter) = (self.lm.clone(), adapter.get().0.clone());
        let report =
            watched(py, progress, move |progress| lm.save_merged(&adapter, &path, &options, &*progress))?;
        merge_report(py, report)
    }

    /// The adapters that have names.
    fn adapters(&self, py: Python<'_>) -> PyResult<Vec<PyAdapter>> {
        door::detached(py, || Ok(self.lm.adapters().list().into_iter().map(PyAdapter).collect()))
    }

    /// The adapter of a name.
    fn adapter(&self, py: Python<'_>, name: &str) -> PyResult<PyAdapter> {
        door::detached(py, || self.lm.adapters().get(name)).map(PyAdapter)
    }

    /// Takes a name away; who holds the adapter may go on with it.
    fn unload_adapter(&self, py: Python<'_>, name: &str) -> PyResult<()> {
        door::detached(py, || self.lm.adapters().remove(name))
    }

    /// Starts to train an adapter on rows as (ids, ranges of trained ids).
    fn train(&self, py: Python<'_>, examples: Examples, options: &Bound<'_, PyDict>) -> PyResult<PyTraining> {
        PyTraining::start(py, &self.lm, examples, options)
    }

    /// The logits of every position: float32 `[len(ids), vocab]`.
    #[pyo3(signature = (ids, adapter=None))]
    fn logits<'py>(
        &self,
        py: Python<'py>,
        ids: Vec<u32>,
        adapter: Option<&Bound<'_, PyAdapter>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let rows = ids.len();
        let adapter = adapter.map(|adapter| &adapter.get().0);
        let generation = door::detached(py, || self.lm.logits(ids, adapter))?;
        let values = finished(py, generation)?.0;
        let vocab = self.lm.model().vocab_size();
        values.into_pyarray(py).reshape([rows, vocab])
    }

    /// One vector a text: float32 `[len(texts), dimensions]`.
    #[pyo3(signature = (texts, pooling, prompt=None, adapter=None))]
    fn embed<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<String>,
        pooling: &str,
        prompt: Option<String>,
        adapter: Option<&Bound<'_, PyAdapter>>,
    ) -> PyResult<Bound<'py, PyArray2<f32>>> {
        let pooling = read_pooling(py, pooling)?;
        let (model, adapter) = (self.lm.model(), adapter.map(|adapter| &adapter.get().0));
        let (width, submitted) = door::detached(py, || {
            let one = |text: &String| self.lm.embed(text, pooling, prompt.as_deref(), adapter);
            let submitted = texts.iter().map(one).collect::<Result<Vec<Generation>>>()?;
            Ok((model.embedding()?.width(pooling, model.config().hidden)?, submitted))
        })?;
        let mut pooled = Vec::with_capacity(submitted.len());
        for generation in submitted {
            pooled.push(finished(py, generation)?.0);
        }
        let values = door::detached(py, || {
            let vectors = pooled.into_iter().map(|rows| model.embedding()?.finish(rows));
            Ok(vectors.collect::<Result<Vec<_>>>()?.concat())
        })?;
        values.into_pyarray(py).reshape([texts.len(), width])
    }

    /// The ids of each candidate and their log probabilities after the prompt.
    #[pyo3(signature = (prompt, candidates, adapter=None))]
    fn score(
        &self,
        py: Python<'_>,
        prompt: &Bound<'_, PyAny>,
        candidates: Vec<String>,
        adapter: Option<&Bound<'_, PyAdapter>>,
    ) -> PyResult<Vec<(Vec<u32>, Vec<f32>)>> {
        let prompt = OwnedPrompt::read(prompt)?;
        let adapter = adapter.map(|adapter| &adapter.get().0);
        let (ids, generation) = door::detached(py, || self.lm.score(prompt.prompt(), &candidates, adapter))?;
        let scores = finished(py, generation)?.1;
        Ok(ids.into_iter().zip(scores).collect())
    }

    /// Saves what was computed of a prompt; returns the number of its tokens.
    #[pyo3(signature = (path, prompt, adapter=None))]
    fn save_prefix(
        &self,
        py: Python<'_>,
        path: PathBuf,
        prompt: &Bound<'_, PyAny>,
        adapter: Option<&Bound<'_, PyAdapter>>,
    ) -> PyResult<usize> {
        let prompt = OwnedPrompt::read(prompt)?;
        let adapter = adapter.map(|adapter| adapter.get().0.clone());
        // What takes long the first time, and what Ctrl-C ends.
        load::content_hash(py, self.lm.model(), None)?;
        let lm = self.lm.clone();
        watched(py, None, move |progress| {
            lm.save_prefix(prompt.prompt(), &path, adapter.as_ref(), &|| progress.cancelled())
        })
    }

    /// Takes up what `save_prefix` wrote; returns the number of its tokens.
    #[pyo3(signature = (path, adapter=None))]
    fn load_prefix(
        &self,
        py: Python<'_>,
        path: PathBuf,
        adapter: Option<&Bound<'_, PyAdapter>>,
    ) -> PyResult<usize> {
        let adapter = adapter.map(|adapter| adapter.get().0.clone());
        load::content_hash(py, self.lm.model(), None)?;
        let lm = self.lm.clone();
        watched(py, None, move |progress| lm.load_prefix(&path, adapter.as_ref(), &|| progress.cancelled()))
    }

    /// What the engine has done so far.
    fn stats<'py>(&self, py: Python<'py>) -> PyResult<Bound<'py, PyDict>> {
        let s = self.lm.stats();
        let dict = PyDict::new(py);
        let counts = [
            ("requests", s.requests),
            ("completed", s.completed),
            ("failed", s.failed),
            ("cancelled", s.cancelled),
            ("running", s.running as u64),
            ("waiting", s.waiting as u64),
            ("prompt_tokens", s.prompt_tokens),
            ("completion_tokens", s.completion_tokens),
            ("cached_tokens", s.cached_tokens),
            ("computed_tokens", s.computed_tokens),
            ("steps", s.steps),
            ("largest_batch", s.largest_batch as u64),
            ("batched", s.batched),
            ("pages", s.pages as u64),
            ("free_pages", s.free_pages as u64),
            ("cached_pages", s.cached_pages as u64),
            ("leased_pages", s.leased_pages() as u64),
            ("shared", s.shared),
            ("preempted", s.preempted),
            ("drafted", s.drafted),
            ("accepted", s.accepted),
            ("model_drafted", s.model_drafted),
            ("model_accepted", s.model_accepted),
            ("draft_steps", s.draft_steps),
            ("forced", s.forced),
        ];
        for (name, count) in counts {
            dict.set_item(name, count)?;
        }
        let by_size: BTreeMap<_, _> = s.sequences_per_step.counts().collect();
        dict.set_item("sequences_per_step", by_size)?;
        let by_size: BTreeMap<_, _> = s.rows_per_step.counts().collect();
        dict.set_item("rows_per_step", by_size)?;
        dict.set_item("busy_seconds", s.busy.as_secs_f64())?;
        dict.set_item("draft_seconds", s.drafting.as_secs_f64())?;
        dict.set_item("grammar_seconds", s.grammars.as_secs_f64())?;
        dict.set_item("mean_batch", s.mean_batch())?;
        dict.set_item("tokens_per_second", s.tokens_per_second())?;
        dict.set_item("kv_bytes", self.lm.kv_bytes())?;
        dict.set_item("touched_kv_bytes", self.lm.touched_kv_bytes())?;
        Ok(dict)
    }

    /// Ends the engine; requests in work raise Cancelled.
    fn close(&self, py: Python<'_>) -> PyResult<()> {
        door::detached(py, || {
            self.lm.close();
            Ok(())
        })
    }

    #[getter]
    fn closed(&self) -> bool {
        self.lm.is_closed()
    }
}

/// `kind` is the argument that the user wrote.
fn read_constraint(kind: &str, value: &Bound<'_, PyAny>) -> PyResult<Constraint> {
    Ok(match kind {
        "json_schema" => Constraint::JsonSchema(json(value, kind)?),
        "regex" => Constraint::Regex(value.extract()?),
        "grammar" => Constraint::Lark(value.extract()?),
        "choices" => Constraint::Choices(value.extract()?),
        _ => return Err(invalid(Some(value.py()), format!("there is no constraint {kind:?}"))),
    })
}

/// `None`: as the model's files say.
fn read_pooling(py: Python<'_>, name: &str) -> PyResult<Option<Pooling>> {
    if name == "auto" {
        return Ok(None);
    }
    let known = Pooling::NAMES.iter().find(|(known, _)| *known == name);
    known.map(|(_, pooling)| Some(*pooling)).ok_or_else(|| {
        let names: Vec<_> = Pooling::NAMES.iter().map(|(name, _)| *name).collect();
        invalid(Some(py), format!("pooling is {name:?}; use \"auto\" or one of {}", names.join(", ")))
    })
}

fn read_timeout(py: Python<'_>, seconds: f64) -> PyResult<Duration> {
    let message =
        || invalid(Some(py), format!("timeout is {seconds}; it must be a number of seconds above 0"));
    if seconds.is_nan() || seconds <= 0.0 {
        return Err(message());
    }
    // Longer than a duration can hold is for ever.
    Ok(Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX))
}

/// Rows and scores of a task that is not a text.
fn finished(py: Python<'_>, generation: Generation) -> PyResult<(Vec<f32>, Vec<Vec<f32>>)> {
    let generation = Mutex::new(generation);
    let (mut rows, mut scores) = (Vec::new(), Vec::new());
    door::wait(py, |tick| {
        let mut generation = generation.lock().unwrap_or_else(PoisonError::into_inner);
        match generation.next(tick) {
            Poll::Pending => Ok(None),
            Poll::Ended => Err(Error::internal("the task ended without an answer")),
            Poll::Event(Event::Rows(more)) => {
                rows.extend(more);
                Ok(None)
            }
            Poll::Event(Event::Scores(all)) => {
                scores = all;
                Ok(None)
            }
            Poll::Event(Event::Done(_)) => Ok(Some(())),
            Poll::Event(Event::Error(error)) => Err(error),
            Poll::Event(Event::Token(_) | Event::Run(_) | Event::Pages(_)) => {
                Err(Error::internal("the task gave another one's answer"))
            }
        }
    })?;
    Ok((rows, scores))
}
