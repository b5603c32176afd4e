//! The work of `Generate`: logits in, tokens and text out.

use std::collections::VecDeque;
use std::hash::{Hash, Hasher};
use std::time::Duration;

use super::channel::{FilterCall, Subscribers};
use super::draft::Record;
use super::guide::{Foresight, Guide};
use super::ngram::NgramLookup;
use super::request::{Event, FinishReason, Generate, TokenEvent};
use crate::error::{Context, Error, Result};
use crate::sample::sampler::argmax;
use crate::sample::{Filter, History, Logits, token_logprobs};
use crate::trace;

/// An answer in the making.
pub(super) struct Decode {
    task: Generate,
    /// Tokens at which the context is full, prompt and answer together.
    context_length: usize,
    /// Tokens generated.
    pub count: usize,
    /// While the caller's filters run: the network's own logits, if log probabilities are wanted.
    parked: Option<Vec<f32>>,
    /// Where drafts come from, and how often they were right.
    pub lookup: NgramLookup,
    pub record: Record,
    /// The grammar that holds the answer.
    guide: Option<Guide>,
    /// Tokens that the grammar has decided and that were not appended yet, because each is to carry its log
    /// probability, which the row before it tells.
    decided: VecDeque<u32>,
}

/// What follows from a row of logits.
pub(super) enum Next {
    /// The caller's filters have the logits; [`Decode::resume`] goes on.
    Parked,
    /// The answer goes on with these tokens: the drawn one, and those that a grammar forces after it.
    Tokens(Vec<u32>),
    /// The answer has ended; this text was still held back.
    End(FinishReason, String),
}

impl Decode {
    pub fn new(mut task: Generate, context_length: usize) -> Self {
        let lookup = NgramLookup::new(std::mem::take(&mut task.prediction));
        let guide = task.guide.take();
        let (record, decided) = Default::default();
        Decode { task, context_length, count: 0, parked: None, lookup, record, guide, decided }
    }

    /// What the answer begins with before anything is computed: tokens that its grammar forces.
    pub fn open(&mut self, prompt_len: usize, subscribers: &mut Subscribers) -> Result<Next> {
        let opening = self.guide.as_mut().map(Guide::take_opening).unwrap_or_default();
        self.decided.extend(opening);
        if self.task.logprobs.is_some() {
            Ok(Next::Tokens(Vec::new()))
        } else {
            self.append(prompt_len, None, false, subscribers)
        }
    }

    /// Tokens that a draft may have after `len` tokens: the answer does not go on beyond them. None if the
    /// caller's filters must see every row before the next.
    pub fn room_for_draft(&self, len: usize) -> usize {
        if self.task.sampler.needs_caller() {
            return 0;
        }
        let left = self.task.max_tokens.saturating_sub(self.count + 1);
        left.min(self.context_length.saturating_sub(len + 1))
    }

    /// Picks the token that follows `tokens`, whose last row gave `raw`.
    ///
    /// The randomness is keyed by the seed and the token's own position, nothing else, so it does not
    /// matter who else is in the batch, nor how often this request was preempted.
    pub fn advance(
        &mut self,
        tokens: &[u32],
        raw: &[f32],
        scratch: &mut Logits,
        subscribers: &mut Subscribers,
    ) -> Result<Next> {
        let prompt_len = tokens.len() - self.count;
        if !self.decided.is_empty() {
            return self.append(prompt_len, Some(raw), false, subscribers);
        }
        let sampler = &self.task.sampler;
        let mask = {
            let _span = self.guide.is_some().then(|| trace::span("mask"));
            self.guide.as_mut().map(Guide::mask).transpose()?
        };
        if sampler.is_argmax() {
            let id = argmax(raw)?;
            // Mostly the likeliest token fits the form, and no row need be copied.
            if mask.as_ref().is_none_or(|mask| mask.0.allows(id)) {
                return self.accept(id, prompt_len, raw, subscribers);
            }
        }
        scratch.load(raw);
        let mask = mask.as_ref().map(|mask| mask as &dyn Filter);
        sampler.prepare(scratch, &History { tokens, prompt_len }, mask)?;
        if sampler.needs_caller() {
            let (sampler, logits) = (sampler.clone(), std::mem::take(scratch));
            subscribers.ask(FilterCall { sampler, logits, tokens: tokens.to_vec(), prompt_len });
            self.parked = Some(if self.task.logprobs.is_some() { raw.to_vec() } else { Vec::new() });
            return Ok(Next::Parked);
        }
        let id = self.draw(scratch, tokens.len())?;
        self.accept(id, prompt_len, raw, subscribers)
    }

    /// The grammar as a draft goes on with it. None where what comes next is decided already.
    pub fn foresee(&self) -> Option<Option<Foresight>> {
        self.decided.is_empty().then(|| self.guide.as_ref().map(Guide::foresee))
    }

    /// What it would append after `tokens` if `raw`, which another model says, were its own row: the token
    /// that it would draw, and what a grammar forces after it. Nothing where the answer would end.
    ///
    /// # Errors
    /// What it would fail with.
    pub fn propose(
        &self,
        foresight: Option<&mut Foresight>,
        tokens: &[u32],
        prompt_len: usize,
        raw: &[f32],
        scratch: &mut Logits,
    ) -> Result<Vec<u32>> {
        let (task, mut foresight) = (&self.task, foresight);
        let mask = foresight.as_deref_mut().map(Foresight::mask).transpose()?;
        let likeliest = if task.sampler.is_argmax() { Some(argmax(raw)?) } else { None };
        let id = match likeliest.filter(|&id| mask.as_ref().is_none_or(|mask| mask.0.allows(id))) {
            Some(id) => id,
            None => {
                scratch.load(raw);
                let mask = mask.as_ref().map(|mask| mask as &dyn Filter);
                task.sampler.prepare(scratch, &History { tokens, prompt_len }, mask)?;
                self.draw(scratch, tokens.len())?
            }
        };
        if task.stop_ids.contains(&id) {
            return Ok(Vec::new());
        }
        foresight.map_or_else(|| Ok(vec![id]), |foresight| foresight.follow(id))
    }

    fn draw(&self, logits: &mut Logits, position: usize) -> Result<u32> {
        let drawn = self.task.sampler.finish(logits, self.task.seed, position as u64);
        if self.guide.is_some() { drawn.context("among the tokens that the grammar allows") } else { drawn }
    }

    /// Whether the caller's filters have the logits.
    pub fn is_parked(&self) -> bool {
        self.parked.is_some()
    }

    /// Whether the answers to the same prompt are the same. `other` has not begun.
    pub fn same_as(&self, other: &Decode) -> bool {
        let (a, b) = (&self.task, &other.task);
        a.sampler == b.sampler
            && (a.seed == b.seed || a.sampler.is_greedy())
            && a.max_tokens == b.max_tokens
            && a.logprobs == b.logprobs
            && a.stop_ids == b.stop_ids
            && a.text.same_rules(&b.text)
            && match (&self.guide, &other.guide) {
                (None, None) => true,
                (Some(ours), Some(its)) => ours.same_as(its),
                _ => false,
            }
    }

    /// Feeds a hash with what [`same_as`](Self::same_as) compares, as far as that is cheap.
    pub fn hash_question(&self, hash: &mut impl Hasher) {
        let task = &self.task;
        let seed = if task.sampler.is_greedy() { 0 } else { task.seed };
        (seed, task.max_tokens, task.logprobs, &task.stop_ids, task.sampler.to_string()).hash(hash);
    }

    /// Whether equal requests may be answered by one: the caller's own filters may do what they like.
    pub fn can_be_shared(&self) -> bool {
        !self.task.sampler.needs_caller()
    }

    /// Goes on with logits that the caller's filters have edited.
    pub fn resume(
        &mut self,
        tokens: &[u32],
        mut logits: Logits,
        scratch: &mut Logits,
        subscribers: &mut Subscribers,
    ) -> Result<Next> {
        let Some(raw) = self.parked.take() else {
            return Err(Error::internal("filtered logits came for a request that waits for none"));
        };
        if let Some(guide) = &self.guide {
            // They had the dense row, and could write over what is forbidden.
            guide.last_mask().apply(&mut logits)?;
        }
        let id = self.draw(&mut logits, tokens.len())?;
        // Its buffers serve the next row.
        *scratch = logits;
        self.accept(id, tokens.len() - self.count, &raw, subscribers)
    }

    /// How many of these tokens the answer may go on with.
    pub fn allowed(&mut self, draft: &[u32]) -> usize {
        self.guide.as_mut().map_or(draft.len(), |guide| guide.allowed(draft))
    }

    /// The time that its grammar took, and the tokens that it decided.
    pub fn guided(&self) -> (Duration, u64) {
        self.guide.as_ref().map_or_else(Default::default, Guide::account)
    }

    /// Whether a grammar holds the answer.
    pub fn is_guided(&self) -> bool {
        self.guide.is_some()
    }

    /// The answer goes on with a token that was drawn.
    fn accept(
        &mut self,
        id: u32,
        prompt_len: usize,
        raw: &[f32],
        subscribers: &mut Subscribers,
    ) -> Result<Next> {
        if self.task.stop_ids.contains(&id) {
            self.count += 1;
            return Ok(Next::End(FinishReason::Stop, self.task.text.finish()));
        }
        let left = self.budget(prompt_len).saturating_sub(self.count + 1);
        match &mut self.guide {
            Some(guide) => self.decided.extend(guide.follow(id, left)?),
            None => self.decided.push_back(id),
        }
        self.append(prompt_len, Some(raw), true, subscribers)
    }

    /// Tokens that the answer may have.
    fn budget(&self, prompt_len: usize) -> usize {
        self.task.max_tokens.min(self.context_length.saturating_sub(prompt_len))
    }

    /// Appends what was decided: all of it, or as far as log probabilities can be told. The first of it may
    /// have been `drawn`; what is forced after it goes out as one run.
    fn append(
        &mut self,
        prompt_len: usize,
        raw: Option<&[f32]>,
        drawn: bool,
        subscribers: &mut Subscribers,
    ) -> Result<Next> {
        let (mut appended, mut run) = (Vec::new(), Vec::new());
        let mut stopped = false;
        while let Some(id) = self.decided.pop_front() {
            self.count += 1;
            let logprob = match (self.task.logprobs, raw) {
                (Some(top), Some(raw)) => Some(token_logprobs(raw, id, top)?),
                _ => None,
            };
            let told = logprob.is_some();
            let piece = self.task.text.push(id);
            let event = TokenEvent { id, text: piece.text, logprob };
            if drawn && appended.is_empty() {
                subscribers.push(Event::Token(event));
            } else {
                run.push(event);
            }
            appended.push(id);
            stopped = piece.stopped;
            if told || stopped {
                break;
            }
        }
        match run.len() {
            0 => {}
            1 => run.drain(..).for_each(|event| subscribers.push(Event::Token(event))),
            _ => subscribers.push(Event::Run(run)),
        }
        Ok(match self.ending(prompt_len) {
            _ if stopped => Next::End(FinishReason::Stop, String::new()),
            Some(reason) => Next::End(reason, self.task.text.finish()),
            None => Next::Tokens(appended),
        })
    }

    /// Why the answer ends here, if it does.
    fn ending(&self, prompt_len: usize) -> Option<FinishReason> {
        if self.decided.is_empty()
            && let Some(guide) = &self.guide
            && (guide.is_closed() || guide.is_done())
        {
            return Some(if guide.is_closed() { FinishReason::Length } else { FinishReason::Stop });
        }
        (self.count >= self.budget(prompt_len)).then_some(FinishReason::Length)
    }
}
