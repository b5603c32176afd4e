//! One micro-step: the loss of some examples, and its gradients.

use std::ops::Range;
use std::sync::Arc;

use super::layout::Layout;
use super::params::{Gradients, LoraModule, LoraParams};
use crate::error::{Error, Result};
use crate::kernels::{
    FactorGradients, Factors, KvCache, KvFormat, Linear, Ops, Precision, Recorder, Tape, Value,
};
use crate::memory;
use crate::model::decoder::Pass;
use crate::model::{Decoder, ProjectionId};

/// A text of which some tokens are trained.
#[derive(Clone, Debug)]
pub struct Example {
    pub ids: Arc<[u32]>,
    /// `ids[t]` for `t` in these ranges are trained: the row of `t - 1` predicts them. Ascending, and none
    /// begins at 0.
    pub targets: Vec<Range<usize>>,
}

#[derive(Clone, Debug)]
pub struct StepOptions {
    /// Of the trainer's own pool.
    pub threads: usize,
    pub precision: Precision,
    /// Bytes that may be kept of a step for its backward pass; what finds no room is computed again, a layer
    /// at a time. `None`: a quarter of what is free, and no more than 384 MiB.
    pub train_memory: Option<usize>,
}

/// What a step says of its loss.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepLoss {
    /// Of all trained tokens, in nats.
    pub sum: f64,
    /// How many are trained.
    pub tokens: usize,
    /// The loss of each trained token: of each example, in the order of its targets.
    pub losses: Vec<Vec<f32>>,
    /// Rows that were computed.
    pub tokens_computed: usize,
    /// Tokens of the examples.
    pub tokens_seen: usize,
}

/// Bytes that are kept of a step, at most, unless somebody says otherwise.
const KEPT: usize = 384 << 20;

/// Rows whose logits are computed together.
const HEAD_ROWS: usize = 64;

/// A model that gradients are computed through.
pub struct Trainer {
    decoder: Arc<Decoder>,
    recorder: Recorder,
    ops: Ops,
    cache: KvCache,
    budget: usize,
}

/// What of a layer is there for the backward pass: its input, or all that it computed.
enum Kept {
    Input(Value),
    Tape(Tape),
}

/// What a step is computed for.
struct Wanted<'a> {
    weight: f32,
    grads: &'a mut Gradients,
}

impl Trainer {
    /// # Errors
    /// `UnsupportedModel` naming what in this model cannot be trained through yet.
    pub fn new(decoder: Arc<Decoder>, options: &StepOptions) -> Result<Self> {
        Self::check(&decoder)?;
        let linears: Vec<&Linear> = decoder.adaptable().map(|(_, linear)| linear).collect();
        let recorder = Recorder::new(options.threads, options.precision, &linears)?;
        let ops = recorder.ops();
        let cache = ops.kv_cache(&decoder.kv_layout(), 1)?;
        let budget = options.train_memory.unwrap_or_else(|| KEPT.min(memory::available() as usize / 4));
        Ok(Trainer { decoder, recorder, ops, cache, budget })
    }

    /// # Errors
    /// As [`new`](Trainer::new), before any work.
    pub fn check(decoder: &Decoder) -> Result<()> {
        if let Some(what) = decoder.untrainable() {
            return Err(Error::unsupported(format!("training through {what} is not built yet")));
        }
        if !matches!(decoder.ops().kv_format(), KvFormat::Native(_)) {
            return Err(Error::unsupported("training is built for the CPU alone; load with device=\"cpu\""));
        }
        Ok(())
    }

    /// The projections that can have factors: which, inputs, outputs.
    pub fn trainable(decoder: &Decoder) -> Vec<(ProjectionId, usize, usize)> {
        let all = decoder.adaptable().filter(|(id, _)| *id != ProjectionId::HEAD);
        all.map(|(id, linear)| (id, linear.weight.k(), linear.weight.n())).collect()
    }

    /// Adds the gradient of the summed loss of all trained tokens, times `weight`, to `grads`. What examples
    /// begin with alike is computed once.
    ///
    /// # Errors
    /// `Cancelled` when `cancelled` says so between two layers; `grads` are then undefined. `InvalidRequest`
    /// when targets or factors do not fit.
    pub fn forward_backward(
        &mut self,
        params: &LoraParams,
        examples: &[Example],
        weight: f32,
        grads: &mut Gradients,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<StepLoss> {
        let same = |(module, grads): (&LoraModule, &(Vec<f32>, Vec<f32>))| {
            (module.a.len(), module.b.len()) == (grads.0.len(), grads.1.len())
        };
        if params.modules.len() != grads.modules.len() || !params.modules.iter().zip(&grads.modules).all(same)
        {
            return Err(Error::internal("gradients of other factors"));
        }
        self.step(params, examples, Some(Wanted { weight, grads }), cancelled)
    }

    /// The loss alone.
    ///
    /// # Errors
    /// As [`forward_backward`](Trainer::forward_backward).
    pub fn evaluate(
        &mut self,
        params: &LoraParams,
        examples: &[Example],
        cancelled: &dyn Fn() -> bool,
    ) -> Result<StepLoss> {
        self.step(params, examples, None, cancelled)
    }

    fn step(
        &self,
        params: &LoraParams,
        examples: &[Example],
        wanted: Option<Wanted<'_>>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<StepLoss> {
        let layout = Layout::new(examples, self.cache.layout().windows().len())?;
        let mut loss = StepLoss {
            tokens: layout.places.iter().map(Vec::len).sum(),
            losses: vec![Vec::new(); examples.len()],
            tokens_computed: layout.step.rows(),
            tokens_seen: examples.iter().map(|example| example.ids.len()).sum(),
            ..StepLoss::default()
        };
        if layout.wanted.is_empty() {
            return Ok(loss);
        }
        self.set_factors(params)?;
        self.recorder.set_spans(layout.spans.clone(), layout.some.clone());
        let pass = self.decoder.pass(&self.ops, &layout.step, &self.cache, &layout.wanted, None)?;
        // No gradient is wanted below the first layer with factors.
        let layers = params.modules.iter().map(|module| module.id.layer);
        let first = layers.min().filter(|_| wanted.is_some()).unwrap_or(usize::MAX);
        let (kept, hidden) = self.forward(&pass, &layout.step.tokens, first, cancelled)?;
        let weight = wanted.as_ref().map(|wanted| wanted.weight);
        let last = self.recorder.begin(weight.is_some(), true, &hidden);
        let normed = self.decoder.last_norm(&self.ops, &last)?;
        let tape = self.recorder.end(&normed)?;
        let (losses, gradient) = self.head(&self.recorder.value(&normed)?, &layout, weight, cancelled)?;
        for (of_example, places) in loss.losses.iter_mut().zip(&layout.places) {
            of_example.extend(places.iter().map(|&(row, at)| losses[row][at]));
        }
        loss.sum = loss.losses.iter().flatten().map(|&loss| f64::from(loss)).sum();
        let (Some(Wanted { grads, .. }), Some(gradient)) = (wanted, gradient) else { return Ok(loss) };
        if let Some(gradient) = self.recorder.backward(tape, gradient, Vec::new())? {
            self.backward(&pass, params, (kept, first), gradient, grads, cancelled)?;
        }
        Ok(loss)
    }

    fn set_factors(&self, params: &LoraParams) -> Result<()> {
        self.recorder.clear_factors();
        for module in &params.modules {
            let LoraModule { id, inputs, outputs, rank, scale, a, b } = module;
            let fits = |linear: &Linear| (linear.weight.k(), linear.weight.n()) == (*inputs, *outputs);
            let whole = *rank > 0 && a.len() == rank * inputs && b.len() == rank * outputs;
            match self.linear(*id).filter(|linear| whole && fits(linear)) {
                Some(linear) => self.recorder.set_factors(linear, Factors::new(*rank, *scale, a, b))?,
                None => {
                    return Err(Error::invalid(format!("no projection has factors like those of {id:?}")));
                }
            }
        }
        Ok(())
    }

    fn linear(&self, id: ProjectionId) -> Option<&Linear> {
        let mut trainable = self.decoder.adaptable().filter(|(id, _)| *id != ProjectionId::HEAD);
        trainable.find(|(other, _)| *other == id).map(|(_, linear)| linear)
    }

    /// All layers; from `first` on something is kept of each.
    fn forward(
        &self,
        pass: &Pass<'_>,
        tokens: &[u32],
        first: usize,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(Vec<Kept>, Value)> {
        let mut x = self.recorder.value(&self.decoder.embedded(&self.ops, tokens, None)?)?;
        let (mut kept, mut room, mut fits) = (Vec::new(), self.budget, true);
        for layer in 0..self.decoder.config().layers.len() {
            stop_if(cancelled)?;
            let recording = layer >= first && fits;
            let input = self.recorder.begin(recording, layer > first, &x);
            let y = self.decoder.layer(pass, layer, input, None)?;
            let mut tape = self.recorder.end(&y)?;
            let next = self.recorder.value(&y)?;
            if layer >= first {
                let bytes = if recording { tape.bytes() } else { 0 };
                fits = recording && bytes <= room;
                room -= if fits { bytes } else { 0 };
                kept.push(if fits { Kept::Tape(tape) } else { Kept::Input(x) });
            }
            x = next;
        }
        Ok((kept, x))
    }

    /// The losses of the targets of each row, and the gradient of the rows if one is wanted.
    fn head(
        &self,
        hidden: &Value,
        layout: &Layout,
        weight: Option<f32>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(Vec<Vec<f32>>, Option<Value>)> {
        let config = self.decoder.config();
        let dim = hidden.dims().1;
        let floats = self.recorder.floats(hidden)?;
        let (mut losses, mut gradient) = (Vec::new(), Vec::new());
        for (x, targets) in floats.chunks(HEAD_ROWS * dim).zip(layout.targets.chunks(HEAD_ROWS)) {
            stop_if(cancelled)?;
            let x = self.ops.rows(x.to_vec(), dim)?;
            let mut logits = self.ops.into_vec(self.decoder.head_over(&self.ops, &x, None)?)?;
            let factor = weight.unwrap_or(0.0);
            losses.extend(self.recorder.cross_entropy(&mut logits, targets, config.logit_cap, factor)?);
            match weight {
                None => self.ops.recycle(logits),
                Some(_) => gradient.extend(self.recorder.through(self.decoder.head_linear(), logits)?),
            }
        }
        if weight.is_none() {
            return Ok((losses, None));
        }
        gradient.iter_mut().for_each(|value| *value *= config.logit_scale);
        Ok((losses, Some(self.recorder.constant(gradient, dim)?)))
    }

    /// Layers from the last to the first that has factors.
    fn backward(
        &self,
        pass: &Pass<'_>,
        params: &LoraParams,
        (kept, first): (Vec<Kept>, usize),
        mut gradient: Value,
        grads: &mut Gradients,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<()> {
        for (layer, kept) in (first..).zip(kept).collect::<Vec<_>>().into_iter().rev() {
            stop_if(cancelled)?;
            let tape = match kept {
                Kept::Tape(tape) => tape,
                Kept::Input(x) => {
                    let input = self.recorder.begin(true, layer > first, &x);
                    self.recorder.end(&self.decoder.layer(pass, layer, input, None)?)?
                }
            };
            let mut factors: Vec<(&Linear, FactorGradients<'_>)> = Vec::new();
            for (module, (a, b)) in params.modules.iter().zip(&mut grads.modules) {
                let linear = (module.id.layer == layer).then(|| self.linear(module.id)).flatten();
                factors.extend(linear.map(|linear| (linear, (a, b))));
            }
            match self.recorder.backward(tape, gradient, factors)? {
                Some(next) => gradient = next,
                None => break,
            }
        }
        Ok(())
    }
}

fn stop_if(cancelled: &dyn Fn() -> bool) -> Result<()> {
    match cancelled() {
        true => Err(Error::cancelled("training was cancelled")),
        false => Ok(()),
    }
}

#[cfg(test)]
mod tests;
