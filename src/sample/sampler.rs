//! The sampler: validated fields, the two chains made of them, and the draw.

use std::fmt;
use std::sync::Arc;

use super::chain::{Chain, Filter, History};
use super::fields::SamplerFields;
use super::filter::{MinP, Temperature, TopK, TopP, Typical};
use super::logits::{Logits, model_fault, request_fault};
use super::penalties::{CountPenalty, LogitBias, RepetitionPenalty, check_bias};
use super::{rng, softmax};
use crate::error::{Context, Result};

/// How a token is picked. Immutable; a clone shares it.
///
/// In this order: logit bias, repetition penalty, frequency and presence penalty, the user's filters, top-k,
/// temperature, top-p, min-p, typical, then one draw. At temperature 0 the likeliest token after the
/// user's filters is taken, ties to the lowest id, and the narrowing filters have no say. Why this order
/// stands in the [module documentation](super).
///
/// ```
/// use tallow::sample::{History, Logits, Sampler, SamplerFields};
///
/// let sampler = Sampler::new(SamplerFields { top_k: Some(2), ..Default::default() })?;
/// let mut logits = Logits::new(&[0.1, 3.0, -1.0, 2.5]);
/// let token = sampler.sample(&mut logits, &History::default(), 42, 0)?;
/// assert!(token == 1 || token == 3);
/// # Ok::<(), tallow::error::Error>(())
/// ```
#[derive(Clone)]
pub struct Sampler(Arc<Inner>);

struct Inner {
    fields: SamplerFields,
    /// Before the user's filters.
    edits: Chain,
    /// After them; empty when greedy.
    narrowing: Chain,
}

impl Sampler {
    /// Checks every field and builds the chains.
    ///
    /// # Errors
    /// InvalidRequest that names the field and its range.
    pub fn new(fields: SamplerFields) -> Result<Self> {
        fields.validate()?;
        let (edits, narrowing) = (edits(&fields), narrowing(&fields));
        Ok(Sampler(Arc::new(Inner { fields, edits, narrowing })))
    }

    /// Always the likeliest token.
    pub fn greedy() -> Self {
        let fields = SamplerFields { temperature: Some(0.0), ..Default::default() };
        let (edits, narrowing) = (Chain::default(), Chain::default());
        Sampler(Arc::new(Inner { fields, edits, narrowing }))
    }

    /// This sampler with the fields that are given replaced. To switch one off, clone [`Sampler::fields`],
    /// set it to `None`, and make a new sampler.
    ///
    /// # Errors
    /// As [`Sampler::new`].
    pub fn with(&self, fields: SamplerFields) -> Result<Self> {
        Sampler::new(fields.or(&self.0.fields))
    }

    pub fn fields(&self) -> &SamplerFields {
        &self.0.fields
    }

    /// Whether the temperature is 0.
    pub fn is_greedy(&self) -> bool {
        self.0.fields.temperature == Some(0.0)
    }

    /// Whether the token is simply the largest raw logit: [`argmax`] alone gives it, with no copy of the row.
    pub fn is_argmax(&self) -> bool {
        self.is_greedy() && self.0.edits.is_empty() && self.user_filters().is_empty()
    }

    /// The user's own filters. If there are any, they belong on the thread of the caller.
    pub fn user_filters(&self) -> &[Arc<dyn Filter>] {
        self.0.fields.filters.as_deref().unwrap_or(&[])
    }

    /// Whether part of sampling must run on the thread of the caller.
    pub fn needs_caller(&self) -> bool {
        !self.user_filters().is_empty()
    }

    /// Refuses a vocabulary that this sampler names tokens outside of. Worth calling before any work.
    ///
    /// # Errors
    /// InvalidRequest that names the token and the size of the vocabulary.
    pub fn check_vocab(&self, vocab_size: usize) -> Result<()> {
        self.0.fields.logit_bias.as_ref().map_or(Ok(()), |bias| check_bias(bias, vocab_size))
    }

    /// Picks a token: [`prepare`](Self::prepare), [`run_filters`](Self::run_filters),
    /// [`finish`](Self::finish). `logits` comes in as the model's raw row and is used up.
    ///
    /// `position` is the index in the sequence of the token that is picked. With the same row, history, seed
    /// and position the token is the same.
    ///
    /// # Errors
    /// ModelFile if the model's logits are NaN, `+inf`, or all `-inf`; InvalidRequest if bias, penalties and
    /// filters leave such; what a user's filter raised.
    pub fn sample(&self, logits: &mut Logits, history: &History, seed: u64, position: u64) -> Result<u32> {
        self.prepare(logits, history, None)?;
        self.run_filters(logits, history)?;
        self.finish(logits, seed, position)
    }

    /// Checks the model's row, then everything before the user's filters: `first` (a grammar's mask: what it
    /// forbids then costs nothing further), bias and penalties.
    pub fn prepare(&self, logits: &mut Logits, history: &History, first: Option<&dyn Filter>) -> Result<()> {
        logits.max_or(model_fault)?;
        if let Some(first) = first {
            first.filter(logits, history)?;
        }
        self.0.edits.filter(logits, history)
    }

    /// The user's filters, one after the other, each on the dense row of the whole vocabulary.
    pub fn run_filters(&self, logits: &mut Logits, history: &History) -> Result<()> {
        for filter in self.user_filters() {
            logits.dense_mut();
            filter.filter(logits, history).context(format_args!("in the filter `{}`", filter.name()))?;
        }
        Ok(())
    }

    /// Everything after the user's filters, with the draw.
    pub fn finish(&self, logits: &mut Logits, seed: u64, position: u64) -> Result<u32> {
        self.narrow(logits)?;
        let max = logits.check()?;
        if self.is_greedy() {
            return pick(logits, softmax::argmax(logits.values(), max));
        }
        draw(logits, max, rng::uniform(seed, position))
    }

    /// [`finish`](Self::finish) without the draw: `logits` is left with the candidates, and the softmax of
    /// their values is the distribution that is drawn from. When greedy it changes nothing.
    pub fn narrow(&self, logits: &mut Logits) -> Result<()> {
        // First of all, so that no filter drops the NaN that another one left.
        logits.check()?;
        self.0.narrowing.filter(logits, &History::default())
    }
}

/// The greedy token of a raw row: the largest logit, the lowest id among equals.
///
/// # Errors
/// ModelFile if a logit is NaN or `+inf`, or all are `-inf`.
pub fn argmax(row: &[f32]) -> Result<u32> {
    let (max, sound) = softmax::max_and_sound(row);
    match softmax::argmax(row, max) {
        Some(id) if sound && max > f32::NEG_INFINITY => Ok(id as u32),
        // The slow way, for its message.
        _ => Logits::new(row).max_or(model_fault).and_then(|_| Err(model_fault("there is no logit".into()))),
    }
}

fn edits(fields: &SamplerFields) -> Chain {
    let mut chain = Chain::default();
    if let Some(bias) = fields.logit_bias.as_ref().filter(|bias| !bias.is_empty()) {
        chain.push(LogitBias(bias.clone()));
    }
    if let Some(penalty) = fields.repetition_penalty.filter(|&penalty| penalty != 1.0) {
        chain.push(RepetitionPenalty(penalty));
    }
    let frequency = fields.frequency_penalty.unwrap_or(0.0);
    let presence = fields.presence_penalty.unwrap_or(0.0);
    if frequency != 0.0 || presence != 0.0 {
        chain.push(CountPenalty { frequency, presence });
    }
    chain
}

fn narrowing(fields: &SamplerFields) -> Chain {
    let mut chain = Chain::default();
    let temperature = fields.temperature.unwrap_or(1.0);
    if temperature == 0.0 {
        return chain;
    }
    if let Some(k) = fields.top_k {
        chain.push(TopK(k));
    }
    if temperature != 1.0 {
        chain.push(Temperature(temperature));
    }
    if let Some(p) = fields.top_p.filter(|&p| p < 1.0) {
        chain.push(TopP(p));
    }
    if let Some(p) = fields.min_p.filter(|&p| p > 0.0) {
        chain.push(MinP(p));
    }
    if let Some(p) = fields.typical_p.filter(|&p| p < 1.0) {
        chain.push(Typical(p));
    }
    chain
}

/// Inverse of the cumulative distribution at `uniform`, over the candidates in order of id.
///
/// The sum goes by blocks: first the block in which the target falls, then the candidate in it. Both levels
/// have a fixed order. A candidate of weight zero is never the one at which a sum first passes the target.
fn draw(logits: &mut Logits, max: f32, uniform: f64) -> Result<u32> {
    const BLOCK: usize = 256;
    let mut weights = std::mem::take(&mut logits.work.weights);
    weights.clear();
    weights.extend(logits.values().iter().map(|&value| softmax::exp(value - max)));
    let blocks: Vec<f64> = weights.chunks(BLOCK).map(softmax::sum).collect();

    let mut target = uniform * blocks.iter().sum::<f64>();
    let crossed = blocks.iter().position(|&mass| {
        let reached = target < mass;
        target -= if reached { 0.0 } else { mass };
        reached
    });
    // Rounding may let a sum end a hair under its target: then it is the last one that could be drawn.
    let last = |weights: &[f32]| weights.iter().rposition(|&weight| weight > 0.0);
    let chosen = match crossed {
        None => last(&weights),
        Some(crossed) => {
            let start = crossed * BLOCK;
            let block = &weights[start..weights.len().min(start + BLOCK)];
            inverse(block, target).or_else(|| last(block)).map(|index| start + index)
        }
    };
    logits.work.weights = weights;
    pick(logits, chosen)
}

/// The index at which the running sum of `weights` first passes `target`.
fn inverse(weights: &[f32], target: f64) -> Option<usize> {
    let mut sum = 0.0;
    weights.iter().position(|&weight| {
        sum += f64::from(weight);
        sum > target
    })
}

fn pick(logits: &Logits, index: Option<usize>) -> Result<u32> {
    index.and_then(|index| logits.id(index)).ok_or_else(|| request_fault("no token is left".into()))
}

impl Default for Sampler {
    /// Temperature 1 and nothing else: the model's own distribution.
    fn default() -> Self {
        let (edits, narrowing) = (Chain::default(), Chain::default());
        Sampler(Arc::new(Inner { fields: SamplerFields::default(), edits, narrowing }))
    }
}

impl PartialEq for Sampler {
    fn eq(&self, other: &Self) -> bool {
        self.0.fields == other.0.fields
    }
}

impl fmt::Display for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Sampler({})", self.0.fields)
    }
}

impl fmt::Debug for Sampler {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
