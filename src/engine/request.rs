//! What is asked of the engine and what it answers: plain data, no tensors, no threads.
//!
//! A [`Request`] is a prompt and a [`Task`] over it; the answer is a stream of [`Event`]s that ends with
//! [`Event::Done`] or [`Event::Error`]. Everything that can be wrong with a request is found by
//! [`Request::check`] before any work is done, so the engine itself only meets requests that fit.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::guide::Guide;
use crate::cache::layout::StateLayout;
pub use crate::config::Pooling;
use crate::error::{Error, Result};
use crate::lora::AdapterLease;
use crate::sample::{Sampler, TokenLogprob};
use crate::step::pages_for;
use crate::text::stream::TextStream;

/// Alternatives that `logprobs` may ask for at each token, the bound that OpenAI's API has.
pub const MAX_TOP_LOGPROBS: usize = 20;

/// Tokens of a common beginning that are scored with the prompt: each row of logits is a whole vocabulary.
const MAX_COMMON: usize = 32;

/// One piece of work.
pub struct Request {
    /// The ids of the prompt; never empty.
    pub prompt: Vec<u32>,
    /// What to do with it.
    pub task: Task,
    /// When the request ends with a `Timeout` error, if it has not ended before.
    pub deadline: Option<Instant>,
    /// The adapter that its rows pass, if any. Requests share prefixes and answers only with those of the
    /// same.
    pub adapter: Option<AdapterLease>,
}

/// What to do with a prompt.
pub enum Task {
    /// Continue it: [`Event::Token`] for each token.
    Generate(Box<Generate>),
    /// The logits of every row of the prompt: [`Event::Rows`] as they are computed, in order, together
    /// `[prompt, vocab]`.
    Logits,
    /// The pooled hidden states: a single [`Event::Rows`] of `[pooling.len() * hidden]`.
    Embed(Embed),
    /// What lies in the whole pages of the prompt, to be saved: a single [`Event::Pages`].
    Pages,
    /// The log likelihood of each candidate after the prompt, which is computed once: [`Event::Scores`].
    Score {
        /// The ids of each candidate. One without tokens has no log probabilities, and that is its answer.
        candidates: Vec<Vec<u32>>,
        /// So many tokens at the end of the prompt are no prompt, but what all candidates begin with.
        common: usize,
    },
}

/// How a prompt is continued.
pub struct Generate {
    /// How a token is picked.
    pub sampler: Sampler,
    /// With the position of a token, all that its randomness depends on.
    pub seed: u64,
    /// Tokens to generate at most, the end token counted; at least 1. The context may end the answer sooner.
    pub max_tokens: usize,
    /// Tokens that end the answer. They are counted in `completion_tokens` but never shown.
    pub stop_ids: Arc<[u32]>,
    /// Turns tokens into text, and knows the stop strings.
    pub text: TextStream,
    /// `Some(k)`: each token carries its log probability and the `k` most likely tokens.
    pub logprobs: Option<usize>,
    /// What the answer may begin with or contain: guesses, which never change the answer.
    pub prediction: Vec<u32>,
    /// What the answer must be. Its tokens that end an answer are `stop_ids`.
    pub guide: Option<Guide>,
}

/// How hidden states become one vector.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Embed {
    /// What is made of the rows; of several, the vectors one after the other. Never empty.
    pub pooling: Arc<[Pooling]>,
    /// Divide by the Euclidean length, so that a dot product is a cosine.
    pub normalize: bool,
}

/// A part of the answer.
#[derive(Clone, Debug)]
pub enum Event {
    /// One more token.
    Token(TokenEvent),
    /// Tokens that a grammar forced one after the other: none was drawn, and all came at once.
    Run(Vec<TokenEvent>),
    /// Row-major rows: logits `[some, vocab]`, or the pooled hidden states.
    Rows(Vec<f32>),
    /// The bytes of whole pages and of the state after them, as `prefix_io` lays them out.
    Pages(Vec<u8>),
    /// The log probability of every token of every candidate, in the order of the request.
    Scores(Vec<Vec<f32>>),
    /// The request has ended well. Nothing follows.
    Done(Finish),
    /// The request has failed. Nothing follows.
    Error(Error),
}

/// A generated token.
#[derive(Clone, Debug, PartialEq)]
pub struct TokenEvent {
    /// Its id.
    pub id: u32,
    /// The text that can be shown because of it: empty while a character or a possible stop string is open.
    pub text: String,
    /// Present if the request asked for log probabilities.
    pub logprob: Option<TokenLogprob>,
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq)]
pub struct Finish {
    /// Why.
    pub reason: FinishReason,
    /// Text that was held back until the end and belongs to the answer, after that of the tokens.
    pub text: String,
    /// What was computed.
    pub usage: Usage,
    /// What it took.
    pub timings: Timings,
}

/// Why an answer ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum FinishReason {
    /// An end token, a stop string, or a task that has a natural end.
    Stop,
    /// `max_tokens` were generated, or the context is full.
    Length,
}

impl FinishReason {
    /// The name that OpenAI's API gives it.
    pub fn name(self) -> &'static str {
        match self {
            FinishReason::Stop => "stop",
            FinishReason::Length => "length",
        }
    }
}

/// Tokens of one request.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// Tokens of the prompt.
    pub prompt_tokens: usize,
    /// Tokens generated, the end token counted as OpenAI counts it; for scores those of all candidates.
    pub completion_tokens: usize,
    /// Tokens of the prompt that were not computed, because their pages were found.
    pub cached_tokens: usize,
}

/// Where the time of one request went.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Timings {
    /// From submission until the engine began.
    pub queue: Duration,
    /// From there until the prompt was computed.
    pub prefill: Duration,
    /// From there to the end.
    pub decode: Duration,
    /// From submission until the first token was there; to the end for a task that gives none.
    pub first_token: Duration,
}

impl Timings {
    /// From submission to the end.
    pub fn total(&self) -> Duration {
        self.queue + self.prefill + self.decode
    }
}

/// What requests are checked against.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Bounds {
    /// Rows of the embedding table.
    pub vocab_size: usize,
    /// Positions of one sequence.
    pub context_length: usize,
    /// The groups of state, and the pages of the whole cache.
    pub layout: Arc<StateLayout>,
    /// Rows that a step computes at most.
    pub rows: usize,
    /// Whether a position sees only those before it, so that a text can be continued.
    pub causal: bool,
}

impl Request {
    /// A request with no deadline.
    pub fn new(prompt: Vec<u32>, task: Task) -> Self {
        Request { prompt, task, deadline: None, adapter: None }
    }

    /// With an adapter.
    pub fn with(self, adapter: Option<AdapterLease>) -> Self {
        Request { adapter, ..self }
    }

    /// Scores candidates after a prompt. What all of them begin with is computed once, together with the
    /// prompt.
    pub fn score(mut prompt: Vec<u32>, mut candidates: Vec<Vec<u32>>) -> Self {
        let common = common_beginning(&candidates).min(MAX_COMMON);
        if let Some(first) = candidates.first() {
            prompt.extend_from_slice(&first[..common]);
        }
        candidates.iter_mut().for_each(|ids| drop(ids.drain(..common)));
        Request::new(prompt, Task::Score { candidates, common })
    }

    /// Finds what is wrong with the request before any work is done.
    ///
    /// # Errors
    /// `InvalidRequest` for an argument that can never be right (for this model), `ContextLength` (with both
    /// numbers) for a prompt that is too long, `OutOfMemory` for one that the whole cache could not hold.
    pub fn check(&self, bounds: &Bounds) -> Result<()> {
        if self.prompt.is_empty() {
            return Err(Error::invalid("the prompt has no tokens; give at least one"));
        }
        if let Task::Generate(_) | Task::Score { .. } = self.task
            && !bounds.causal
        {
            return Err(not_causal());
        }
        if let Task::Embed(Embed { pooling, .. }) = &self.task
            && pooling.is_empty()
        {
            return Err(Error::invalid("no pooling is given; name at least one"));
        }
        check_ids("prompt", &self.prompt, bounds.vocab_size)?;
        let room = match &self.task {
            Task::Generate(generate) => {
                check_generate(generate, bounds.vocab_size)?;
                1
            }
            Task::Logits | Task::Embed(_) | Task::Pages => 0,
            Task::Score { candidates, .. } => check_candidates(candidates, bounds)?,
        };
        let needed = self.prompt.len().saturating_add(room);
        if needed > bounds.context_length {
            return Err(match &self.task {
                Task::Generate(_) => Error::context_length(self.prompt.len(), bounds.context_length),
                Task::Score { .. } => {
                    Error::context_length(needed, bounds.context_length).context("with its longest candidate")
                }
                _ => Error::context_length(needed, bounds.context_length),
            });
        }
        let pages = self.pages_needed(bounds);
        if pages > bounds.layout.pages {
            return Err(Error::out_of_memory(format!(
                "the request may need {pages} pages of the KV cache and there are {}; lower max_tokens, \
                 shorten the prompt, or load the model with a larger KV cache",
                bounds.layout.pages
            )));
        }
        Ok(())
    }

    /// Pages that the request holds at most at any moment, so that it can always run to its end.
    pub(crate) fn pages_needed(&self, bounds: &Bounds) -> usize {
        let prompt = self.prompt.len();
        let pages = |len| bounds.layout.pages_at_most(len, bounds.rows);
        match &self.task {
            // The last token is never fed back, so it needs no place.
            Task::Generate(generate) => {
                pages(prompt.saturating_add(generate.max_tokens).min(bounds.context_length).saturating_sub(1))
            }
            Task::Logits | Task::Embed(_) | Task::Pages => pages(prompt),
            // Candidates fork all at once if a quarter of the other pages is room enough, else in waves.
            Task::Score { candidates, .. } => {
                let groups = bounds.layout.paged.len();
                let own = || candidates.iter().map(|ids| groups * fork_pages(prompt, ids.len()));
                let quarter = bounds.layout.pages.saturating_sub(pages(prompt)) / 4;
                pages(prompt) + own().max().unwrap_or(0).max(quarter).min(own().sum())
            }
        }
    }
}

/// What a bidirectional model says when it is to continue a text: each token would change all those before
/// it.
pub(crate) fn not_causal() -> Error {
    Error::invalid(
        "this is an embedding model, its attention is bidirectional, so it cannot continue a text; use embed",
    )
}

/// Pages of each group that a candidate of `len` tokens needs for itself when it forks from a prompt of
/// `prompt` tokens: the prompt's full pages are shared, its last partial page is copied, and the last token
/// is never fed.
pub(crate) fn fork_pages(prompt: usize, len: usize) -> usize {
    match len {
        0 | 1 => 0,
        _ => pages_for(prompt + len - 1) - prompt / crate::step::PAGE,
    }
}

/// Tokens that all of them begin with.
fn common_beginning(candidates: &[Vec<u32>]) -> usize {
    let Some((first, others)) = candidates.split_first() else { return 0 };
    others.iter().fold(first.len(), |common, ids| {
        first[..common].iter().zip(ids).take_while(|(ours, its)| ours == its).count()
    })
}

fn check_generate(generate: &Generate, vocab_size: usize) -> Result<()> {
    generate.sampler.check_vocab(vocab_size)?;
    check_ids("prediction", &generate.prediction, vocab_size)?;
    if generate.max_tokens == 0 {
        return Err(Error::invalid("max_tokens is 0; ask for at least one token"));
    }
    match generate.logprobs {
        Some(top) if top > MAX_TOP_LOGPROBS => Err(Error::invalid(format!(
            "logprobs is {top}; at most {MAX_TOP_LOGPROBS} alternatives are given"
        ))),
        _ => Ok(()),
    }
}

/// Checks the candidates and returns the length of the longest.
fn check_candidates(candidates: &[Vec<u32>], bounds: &Bounds) -> Result<usize> {
    if candidates.is_empty() {
        return Err(Error::invalid("candidates is empty; give at least one to score"));
    }
    for (number, ids) in candidates.iter().enumerate() {
        check_ids(&format!("candidate {number}"), ids, bounds.vocab_size)?;
    }
    Ok(candidates.iter().map(Vec::len).max().unwrap_or(0))
}

fn check_ids(what: &str, ids: &[u32], vocab_size: usize) -> Result<()> {
    match ids.iter().position(|&id| id as usize >= vocab_size) {
        Some(at) => Err(Error::invalid(format!(
            "token {} at place {at} of the {what} is not in the vocabulary of {vocab_size} tokens",
            ids[at]
        ))),
        None => Ok(()),
    }
}
