//! Training of adapters: gradients through the frozen, packed weights of a model, and the run around them.
//!
//! [`params`] holds what is trained, [`step`] computes the loss of some examples and its gradients. A [`run`]
//! takes the examples in [`batches`], moves the parameters by the [`optimizer`] at the rate of the
//! [`schedule`], looks at the rows that are held out, and writes [`checkpoint`]s. It has a thread of its own;
//! its caller holds a [`Training`].
//!
//! The same seed, rows and options give the same bits, with any number of threads and also where a run was
//! interrupted and resumed.

pub mod adapter;
pub mod batches;
pub mod checkpoint;
pub mod control;
pub mod init;
mod layout;
pub mod optimizer;
pub mod options;
pub mod params;
pub mod run;
pub mod schedule;
pub mod step;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use self::checkpoint::{State, Store};
pub use self::control::{Control, Event, Progress};
pub use self::options::TrainOptions;
pub use self::params::{Gradients, LoraModule, LoraParams};
pub use self::run::{Compute, Trained};
pub use self::schedule::Decay;
pub use self::step::{Example, StepLoss, StepOptions, Trainer};
use crate::error::{Error, Result, panic_text};
pub use crate::kernels::Precision;
use crate::model::ProjectionId;

/// A run on its thread, as its caller sees it. Dropping it changes nothing: the run goes on.
pub struct Training {
    control: Arc<Control>,
    process: u32,
}

/// What a run is over.
pub struct Job {
    pub examples: Vec<Example>,
    pub options: TrainOptions,
    /// Names what the model computes with, for checkpoints.
    pub model: String,
    /// The projections that can be trained: which, inputs, outputs.
    pub trainable: Vec<(ProjectionId, usize, usize)>,
    /// Parameters of the model.
    pub parameters: usize,
    /// Ids are below this.
    pub vocabulary: usize,
    /// A number that no other living model has: runs of one model take turns.
    pub key: usize,
    /// Writes an adapter into a folder.
    pub write_adapter: Box<checkpoint::WriteAdapter>,
}

/// Makes what computes the steps, when it is the run's turn.
pub type MakeCompute = dyn FnOnce() -> Result<Box<dyn Compute>> + Send;

impl Training {
    /// Starts a run. `busy` says whether somebody else wants the processor.
    ///
    /// # Errors
    /// What is wrong with the options or the examples; `Internal` if no thread can be started.
    pub fn start(
        job: Job,
        make: Box<MakeCompute>,
        busy: Box<dyn Fn() -> bool + Send + Sync>,
    ) -> Result<Training> {
        job.options.check()?;
        job.options.modules(&job.trainable)?;
        job.options.resume.as_deref().map(checkpoint::run_folder).transpose()?;
        check_examples(&job.examples, job.vocabulary)?;
        let control = Arc::new(Control::new(busy));
        let place = control::Place::take(job.key);
        let its_own = control.clone();
        let run = move || {
            let result = catch_unwind(AssertUnwindSafe(|| {
                place.wait(&its_own)?;
                go(&job, &its_own, make)
            }));
            drop(place);
            its_own.finish(result.unwrap_or_else(|panic| Err(Error::internal(panic_text(&*panic)))));
        };
        std::thread::Builder::new()
            .name("tallow-train".into())
            .spawn(run)
            .map_err(|error| Error::internal("a thread cannot be started").with_source(error))?;
        Ok(Training { control, process: std::process::id() })
    }

    /// The next event, waited for at most `timeout`; `None` if nothing came. The end is told again and again.
    ///
    /// # Errors
    /// `InvalidRequest` in a forked child.
    pub fn poll(&self, timeout: Duration) -> Result<Option<Event>> {
        if self.process != std::process::id() {
            return Err(Error::invalid(
                "this training belongs to the process that was forked; train again in this one",
            ));
        }
        Ok(self.control.next(timeout))
    }

    /// Ends the run at its next look, which it does in well under a second.
    pub fn cancel(&self) {
        self.control.cancel();
    }

    /// Whether it has ended, in whatever way. In a forked child: yes.
    pub fn is_finished(&self) -> bool {
        self.process != std::process::id() || self.control.is_finished()
    }

    /// Waits until it has ended, at most `timeout`; says whether it has.
    pub fn wait(&self, timeout: Duration) -> bool {
        self.process != std::process::id() || self.control.wait(timeout)
    }
}

fn check_examples(examples: &[Example], vocabulary: usize) -> Result<()> {
    if examples.is_empty() {
        return Err(Error::invalid("there are no rows to train on; give at least one"));
    }
    for (at, Example { ids, targets }) in examples.iter().enumerate() {
        let mut from = 1;
        for range in targets {
            if range.start < from || range.end <= range.start || range.end > ids.len() {
                return Err(Error::invalid(format!(
                    "row {at}: {range:?} is no range of trained tokens in a text of {}",
                    ids.len()
                )));
            }
            from = range.end;
        }
        if let Some(id) = ids.iter().find(|id| **id as usize >= vocabulary) {
            return Err(Error::invalid(format!("row {at}: the vocabulary has no token {id}")));
        }
        if targets.is_empty() {
            return Err(Error::invalid(format!("row {at} has no tokens to train on")));
        }
    }
    Ok(())
}

fn go(job: &Job, control: &Control, make: Box<MakeCompute>) -> Result<Trained> {
    let Job { examples, options, .. } = job;
    let mut compute = make()?;
    let modules = options.modules(&job.trainable)?;
    let params = init::params(&modules, options.rank, options.scale(), options.seed);
    let rate = options.learning_rate.unwrap_or_else(|| options::learning_rate(job.parameters));
    let identity = checkpoint::identity(options, rate, &job.model, examples);
    let mut state = State::new(params, options.weight_decay);
    if let Some(folder) = &options.resume {
        state = checkpoint::resume(folder, &identity, state)?;
    }
    let own = options.resume.as_deref().map(checkpoint::run_folder).transpose()?;
    let output = options.output.as_deref().or(own.as_deref());
    let store = output.map(|folder| Store::new(folder, identity, &*job.write_adapter)).transpose()?;
    run::Run::new(options, rate, examples, control, store.as_ref()).go(&mut *compute, state)
}
