//! One run: steps, looks at the rows that are held out, checkpoints, and when it ends.

use std::path::PathBuf;
use std::time::Instant;

use super::batches::{Split, free_tokens, groups};
use super::checkpoint::{Best, State, Store};
use super::control::{Control, Progress};
use super::optimizer::clip;
use super::options::TrainOptions;
use super::params::{Gradients, LoraParams};
use super::schedule::Schedule;
use super::step::{Example, StepLoss, Trainer};
use crate::error::{Error, Result};

/// Rows that are computed together at most: what a batch has beyond is another micro-step.
const MICRO_ROWS: usize = 2048;
/// Looks at the held-out rows in an epoch.
const LOOKS: usize = 3;
/// Looks without a gain after which a run ends.
const MOST_STALE: usize = 3;

/// What computes losses and gradients: a [`Trainer`], or a function in tests.
pub trait Compute {
    /// See [`Trainer::forward_backward`].
    ///
    /// # Errors
    /// `Cancelled`.
    fn forward_backward(
        &mut self,
        params: &LoraParams,
        examples: &[Example],
        weight: f32,
        gradients: &mut Gradients,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<StepLoss>;

    /// See [`Trainer::evaluate`].
    ///
    /// # Errors
    /// `Cancelled`.
    fn evaluate(
        &mut self,
        params: &LoraParams,
        examples: &[Example],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<StepLoss>;
}

impl Compute for Trainer {
    fn forward_backward(
        &mut self,
        params: &LoraParams,
        examples: &[Example],
        weight: f32,
        gradients: &mut Gradients,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<StepLoss> {
        Trainer::forward_backward(self, params, examples, weight, gradients, cancelled)
    }

    fn evaluate(
        &mut self,
        params: &LoraParams,
        examples: &[Example],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<StepLoss> {
        Trainer::evaluate(self, params, examples, cancelled)
    }
}

/// What came of a run.
#[derive(Clone, Debug)]
pub struct Trained {
    pub params: LoraParams,
    /// Steps that were done, and the one whose factors these are.
    pub steps: usize,
    pub best_step: usize,
    /// Of the rows that were held out, if any were.
    pub eval_loss: Option<f64>,
    /// What is worth knowing of how it went.
    pub notes: Vec<String>,
    /// The folder that holds the adapter, if one was asked for.
    pub output: Option<PathBuf>,
}

/// A run that is ready to begin.
pub struct Run<'a> {
    options: &'a TrainOptions,
    examples: &'a [Example],
    control: &'a Control,
    store: Option<&'a Store<'a>>,
    split: Split,
    /// Of each example and trained token whether it is free; empty if all or none are.
    free: Vec<Vec<bool>>,
    rate: f64,
    steps: usize,
    schedule: Schedule,
    began: Instant,
    /// Rows and tokens since it began.
    rows: usize,
    tokens: usize,
}

impl<'a> Run<'a> {
    /// `rate` is the highest learning rate.
    pub fn new(
        options: &'a TrainOptions,
        rate: f64,
        examples: &'a [Example],
        control: &'a Control,
        store: Option<&'a Store<'a>>,
    ) -> Run<'a> {
        let split = Split::new(examples.len(), options.eval, options.seed);
        let all = split.steps(options.batch).saturating_mul(options.epochs);
        let steps = options.max_steps.map_or(all, |most| most.min(all));
        let mut free = free_tokens(examples);
        let flags = || free.iter().flatten();
        if flags().all(|free| *free) || !flags().any(|free| *free) {
            free.clear();
        }
        Run {
            options,
            examples,
            control,
            store,
            split,
            free,
            rate,
            steps,
            schedule: Schedule::new(options.schedule, options.warmup, steps),
            began: Instant::now(),
            rows: 0,
            tokens: 0,
        }
    }

    /// Goes on from `state` to the end.
    ///
    /// # Errors
    /// `Cancelled`; `InvalidRequest` if the loss is no number any more; `ModelFile` if a checkpoint cannot be
    /// written; what the steps say.
    pub fn go(&mut self, compute: &mut dyn Compute, mut state: State) -> Result<Trained> {
        let first = state.done;
        let mut gradients = Gradients::zeros(&state.params);
        while state.done < self.steps && state.ended.is_none() {
            if self.control.yield_turn() {
                self.control.check()?;
            }
            let learning_rate = self.rate * self.schedule.factor(state.done);
            let loss = self.step(compute, &mut state, &mut gradients, learning_rate)?;
            let eval_loss = match self.is_look(state.done) {
                true => self.look(compute, &mut state)?,
                false => None,
            };
            self.control.tell(self.progress(&loss, eval_loss, learning_rate, state.done, first));
        }
        if let Some(store) = self.store {
            store.finish(&state)?;
        }
        Ok(self.trained(state))
    }

    /// One step of the optimizer over a batch.
    fn step(
        &mut self,
        compute: &mut dyn Compute,
        state: &mut State,
        gradients: &mut Gradients,
        learning_rate: f64,
    ) -> Result<Loss> {
        let batch = self.split.batch(state.done, self.options.batch, self.options.seed);
        gradients.clear();
        let trained: usize = batch.iter().map(|at| self.trained_tokens(*at)).sum();
        let weight = 1.0 / trained.max(1) as f32;
        let mut loss = Loss::default();
        self.rows += batch.len();
        for group in groups(self.examples, batch, MICRO_ROWS) {
            let examples = self.chosen(&group);
            let cancelled = || self.control.yield_turn();
            let found = compute.forward_backward(&state.params, &examples, weight, gradients, &cancelled)?;
            self.tokens += examples.iter().map(|example| example.ids.len()).sum::<usize>();
            loss.add(&found, &group, &self.free);
        }
        loss.norm = clip(gradients, self.options.max_grad_norm);
        if !loss.sum.is_finite() || !loss.norm.is_finite() {
            return Err(self.diverged(state, loss.mean(), learning_rate));
        }
        state.adam.step(&mut state.params, gradients, learning_rate);
        state.done += 1;
        Ok(loss)
    }

    fn diverged(&self, state: &State, loss: f64, learning_rate: f64) -> Error {
        let kept = match self.store.map(Store::newest) {
            Some(Some(path)) => format!("; the last good checkpoint is {}", path.display()),
            _ => String::new(),
        };
        Error::invalid(format!(
            "the loss of step {} of {} is {loss} (learning rate {learning_rate:.2e}), so the training ended{kept}; \
             lower learning_rate",
            state.done + 1,
            self.steps,
        ))
    }

    fn trained_tokens(&self, at: usize) -> usize {
        self.examples.get(at).map_or(0, |example| example.targets.iter().map(ExactSizeIterator::len).sum())
    }

    fn chosen(&self, numbers: &[usize]) -> Vec<Example> {
        numbers.iter().filter_map(|at| self.examples.get(*at).cloned()).collect()
    }

    /// Whether the held-out rows are looked at, and a checkpoint is written, after `done` steps.
    fn is_look(&self, done: usize) -> bool {
        let epoch = self.split.steps(self.options.batch).max(1);
        let within = (done.saturating_sub(1)) % epoch;
        LOOKS * (within + 1) / epoch > LOOKS * within / epoch || done == self.steps
    }

    /// Looks at the held-out rows, keeps the best factors, and writes a checkpoint.
    fn look(&mut self, compute: &mut dyn Compute, state: &mut State) -> Result<Option<f64>> {
        let mut loss = Loss::default();
        for group in groups(self.examples, self.split.held_out.clone(), MICRO_ROWS) {
            let examples = self.chosen(&group);
            loss.add(
                &compute.evaluate(&state.params, &examples, &|| self.control.yield_turn())?,
                &group,
                &[],
            );
        }
        let eval_loss = (!self.split.held_out.is_empty()).then(|| loss.mean());
        if let Some(found) = eval_loss {
            if !found.is_finite() {
                return Err(self.diverged(state, found, self.rate));
            }
            if state.best.as_ref().is_none_or(|best| found < best.loss) {
                state.best = Some(Best { loss: found, done: state.done, params: state.params.clone() });
                state.stale = 0;
            } else {
                state.stale += 1;
                if state.stale >= MOST_STALE && state.done < self.steps {
                    state.ended = Some(format!(
                        "ended after {} of {} steps: the loss of the held-out rows fell no more",
                        state.done, self.steps
                    ));
                }
            }
        }
        if let Some(store) = self.store {
            store.save(state)?;
        }
        Ok(eval_loss)
    }

    fn progress(
        &self,
        loss: &Loss,
        eval_loss: Option<f64>,
        learning_rate: f64,
        done: usize,
        first: usize,
    ) -> Progress {
        let seconds = self.began.elapsed().as_secs_f64().max(1e-9);
        let steps_here = done.saturating_sub(first).max(1) as f64;
        Progress {
            step: done,
            steps: self.steps,
            epoch: done as f64 / self.split.steps(self.options.batch).max(1) as f64,
            loss: loss.mean(),
            free_loss: loss.free_mean(),
            eval_loss,
            learning_rate,
            grad_norm: loss.norm,
            rows_per_second: self.rows as f64 / seconds,
            tokens_per_second: self.tokens as f64 / seconds,
            eta: seconds / steps_here * self.steps.saturating_sub(done) as f64,
        }
    }

    fn trained(&self, state: State) -> Trained {
        let mut notes: Vec<String> = state.ended.iter().cloned().collect();
        let (eval_loss, best_step) = match &state.best {
            Some(best) => (Some(best.loss), best.done),
            None => (None, state.done),
        };
        if best_step != state.done {
            notes.push(format!(
                "these are the factors of step {best_step}, which were best on the held-out rows"
            ));
        }
        if self.options.eval > 0.0 && self.split.held_out.is_empty() {
            notes.push(format!("{} rows are too few to hold some out", self.examples.len()));
        }
        let params = state.best.map_or(state.params, |best| best.params);
        let output = self.store.map(|store| store.folder().to_path_buf());
        Trained { params, steps: state.done, best_step, eval_loss, notes, output }
    }
}

/// The losses of a step.
#[derive(Default)]
struct Loss {
    sum: f64,
    tokens: usize,
    free_sum: f64,
    free_tokens: usize,
    norm: f64,
}

impl Loss {
    /// Adds those of a group of examples; `free` is of all examples, or empty.
    fn add(&mut self, found: &StepLoss, group: &[usize], free: &[Vec<bool>]) {
        self.sum += found.sum;
        self.tokens += found.tokens;
        for (at, losses) in group.iter().zip(&found.losses) {
            let flags = free.get(*at).into_iter().flatten();
            let of_free = losses.iter().zip(flags).filter(|(_, free)| **free);
            for (loss, _) in of_free {
                self.free_sum += f64::from(*loss);
                self.free_tokens += 1;
            }
        }
    }

    fn mean(&self) -> f64 {
        self.sum / self.tokens.max(1) as f64
    }

    fn free_mean(&self) -> Option<f64> {
        (self.free_tokens > 0).then(|| self.free_sum / self.free_tokens as f64)
    }
}
