//! `_core.Training`: a run that trains an adapter, read by polling.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use pyo3::prelude::*;
use pyo3::types::PyDict;

use super::adapter::PyAdapter;
use super::convert::invalid;
use super::door;
use super::errors::to_python;
use crate::error::{Error, Result};
use crate::lm::Lm;
use crate::lora::Adapter;
use crate::train::{Decay, Event, Example, Precision, Progress, TrainOptions, Trained, Training};

/// Rows of a training set: their ids, and which of these are trained, as (begin, end).
pub type Examples = Vec<(Vec<u32>, Vec<(usize, usize)>)>;

#[pyclass(frozen, name = "Training", module = "tallow._core")]
pub struct PyTraining {
    training: Training,
    lm: Lm,
    name: Option<String>,
    /// Made when the end is first read.
    adapter: Mutex<Option<Adapter>>,
}

impl PyTraining {
    /// Starts a run over rows as (ids, ranges of trained ids).
    pub fn start(py: Python<'_>, lm: &Lm, examples: Examples, options: &Bound<'_, PyDict>) -> PyResult<Self> {
        let name = get(options, "name")?;
        let options = read_options(options)?;
        let example = |(ids, targets): (Vec<u32>, Vec<(usize, usize)>)| Example {
            ids: ids.into(),
            targets: targets.into_iter().map(|(begin, end)| begin..end).collect(),
        };
        let examples = examples.into_iter().map(example).collect();
        let training = door::detached(py, || lm.train(examples, options))?;
        Ok(PyTraining { training, lm: lm.clone(), name, adapter: Mutex::new(None) })
    }

    /// The adapter of a run that has ended, registered once.
    fn adapter(&self, trained: &Trained) -> Result<Adapter> {
        let mut made = self.adapter.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(adapter) = &*made {
            return Ok(adapter.clone());
        }
        let adapter = self.lm.take_trained(trained, self.name.as_deref())?;
        Ok(made.insert(adapter).clone())
    }
}

#[pymethods]
impl PyTraining {
    /// What comes next, waited for at most `timeout` seconds; None if nothing did. The last, with "finished",
    /// is told again and again.
    fn poll<'py>(&self, py: Python<'py>, timeout: f64) -> PyResult<Option<Bound<'py, PyDict>>> {
        let until = Instant::now() + seconds(timeout);
        let event = door::wait(py, |patience| {
            let left = until.saturating_duration_since(Instant::now());
            let event = self.training.poll(left.min(patience))?;
            Ok((event.is_some() || Instant::now() >= until).then_some(event))
        })?;
        match event {
            None => Ok(None),
            Some(Event::Step(progress)) => step(py, &progress).map(Some),
            Some(Event::Finished(result)) => {
                let dict = PyDict::new(py);
                dict.set_item("finished", true)?;
                let adapter = door::guarded(|| {
                    let trained = result?;
                    let adapter = py.detach(|| self.adapter(&trained))?;
                    Ok((trained, adapter))
                });
                match adapter {
                    Err(error) => dict.set_item("error", to_python(py, &error))?,
                    Ok((trained, adapter)) => {
                        dict.set_item("adapter", PyAdapter(adapter))?;
                        dict.set_item("notes", &trained.notes)?;
                        dict.set_item("steps", trained.steps)?;
                        dict.set_item("best_step", trained.best_step)?;
                        dict.set_item("eval_loss", trained.eval_loss)?;
                    }
                }
                Ok(Some(dict))
            }
        }
    }

    /// Ends the run soon.
    fn cancel(&self) {
        self.training.cancel();
    }

    /// Waits at most `timeout` seconds until it has ended; says whether it has.
    fn wait(&self, py: Python<'_>, timeout: f64) -> bool {
        py.detach(|| self.training.wait(seconds(timeout)))
    }

    #[getter]
    fn finished(&self) -> bool {
        self.training.is_finished()
    }
}

fn seconds(timeout: f64) -> Duration {
    Duration::try_from_secs_f64(timeout.clamp(0.0, 3600.0)).unwrap_or_default()
}

fn step<'py>(py: Python<'py>, progress: &Progress) -> PyResult<Bound<'py, PyDict>> {
    let dict = PyDict::new(py);
    dict.set_item("step", progress.step)?;
    dict.set_item("steps", progress.steps)?;
    dict.set_item("epoch", progress.epoch)?;
    dict.set_item("loss", progress.loss)?;
    dict.set_item("free_loss", progress.free_loss)?;
    dict.set_item("eval_loss", progress.eval_loss)?;
    dict.set_item("learning_rate", progress.learning_rate)?;
    dict.set_item("grad_norm", progress.grad_norm)?;
    dict.set_item("tokens_per_second", progress.tokens_per_second)?;
    dict.set_item("rows_per_second", progress.rows_per_second)?;
    dict.set_item("eta", progress.eta)?;
    Ok(dict)
}

/// An option that is there, or `None`.
fn get<'py, T>(options: &Bound<'py, PyDict>, name: &str) -> PyResult<Option<T>>
where
    T: for<'a> FromPyObject<'a, 'py>,
{
    let Some(value) = options.get_item(name)?.filter(|value| !value.is_none()) else { return Ok(None) };
    let wrong = |_| invalid(Some(options.py()), format!("{name} has a type that it cannot have"));
    value.extract().map(Some).map_err(wrong)
}

fn read_options(options: &Bound<'_, PyDict>) -> PyResult<TrainOptions> {
    let default = TrainOptions::default();
    let of = |error: Error| to_python(options.py(), &error);
    Ok(TrainOptions {
        rank: get(options, "rank")?.unwrap_or(default.rank),
        alpha: get(options, "alpha")?.unwrap_or(default.alpha),
        targets: get(options, "targets")?.unwrap_or_default(),
        epochs: get(options, "epochs")?.unwrap_or(default.epochs),
        learning_rate: get(options, "learning_rate")?,
        batch: get(options, "batch")?.unwrap_or(default.batch),
        eval: get(options, "eval")?.unwrap_or(default.eval),
        seed: get(options, "seed")?.unwrap_or(default.seed),
        output: get(options, "output")?,
        precision: precision(get(options, "precision")?).map_err(of)?,
        train_memory: get(options, "train_memory")?,
        max_steps: get(options, "max_steps")?,
        warmup: get(options, "warmup")?.unwrap_or(default.warmup),
        schedule: schedule(get(options, "schedule")?).map_err(of)?,
        weight_decay: get(options, "weight_decay")?.unwrap_or(default.weight_decay),
        max_grad_norm: get(options, "max_grad_norm")?.unwrap_or(default.max_grad_norm),
        resume: get(options, "resume")?,
        threads: get(options, "threads")?,
    })
}

fn precision(name: Option<String>) -> Result<Precision> {
    match name.as_deref() {
        None | Some("bfloat16") => Ok(Precision::BFloat16),
        Some("float32") => Ok(Precision::Float32),
        Some(other) => Err(Error::invalid(format!("precision is {other:?}; it is bfloat16 or float32"))),
    }
}

fn schedule(name: Option<String>) -> Result<Decay> {
    match name.as_deref() {
        None | Some("linear") => Ok(Decay::Linear),
        Some("constant") => Ok(Decay::Constant),
        Some(other) => Err(Error::invalid(format!("schedule is {other:?}; it is linear or constant"))),
    }
}
