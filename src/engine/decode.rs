//! The work of `Generate`: logits in, tokens and text out.

use super::client::{Audience, FilterCall};
use super::draft::Lookup;
use super::request::{Event, FinishReason, Generate, TokenEvent};
use crate::error::{Error, Result};
use crate::sample::sampler::argmax;
use crate::sample::{History, Logits, token_logprobs};

/// An answer in the making.
pub(super) struct Decode {
    task: Generate,
    /// Tokens at which the context is full, prompt and answer together.
    context_length: usize,
    /// Tokens generated.
    pub count: usize,
    /// While the caller's filters run: the network's own logits, if log probabilities are wanted.
    parked: Option<Vec<f32>>,
    /// Where drafts come from.
    pub lookup: Lookup,
}

/// What follows from a row of logits.
pub(super) enum Next {
    /// The caller's filters have the logits; [`Decode::resume`] goes on.
    Parked,
    /// The answer goes on with this token.
    Token(u32),
    /// The answer has ended; this text was still held back.
    End(FinishReason, String),
}

impl Decode {
    pub fn new(mut task: Generate, context_length: usize) -> Self {
        let lookup = Lookup::new(std::mem::take(&mut task.prediction));
        Decode { task, context_length, count: 0, parked: None, lookup }
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
    /// matter who else is in the batch, nor how often this request was put off.
    pub fn advance(
        &mut self,
        tokens: &[u32],
        raw: &[f32],
        scratch: &mut Logits,
        audience: &mut Audience,
    ) -> Result<Next> {
        let sampler = &self.task.sampler;
        if sampler.is_argmax() {
            return self.accept(argmax(raw)?, tokens, raw, audience);
        }
        let prompt_len = tokens.len() - self.count;
        scratch.load(raw);
        sampler.prepare(scratch, &History { tokens, prompt_len })?;
        if sampler.needs_caller() {
            let (sampler, logits) = (sampler.clone(), std::mem::take(scratch));
            audience.ask(FilterCall { sampler, logits, tokens: tokens.to_vec(), prompt_len });
            self.parked = Some(if self.task.logprobs.is_some() { raw.to_vec() } else { Vec::new() });
            return Ok(Next::Parked);
        }
        let id = sampler.finish(scratch, self.task.seed, tokens.len() as u64)?;
        self.accept(id, tokens, raw, audience)
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
        audience: &mut Audience,
    ) -> Result<Next> {
        let Some(raw) = self.parked.take() else {
            return Err(Error::internal("filtered logits came for a request that waits for none"));
        };
        let id = self.task.sampler.finish(&mut logits, self.task.seed, tokens.len() as u64)?;
        // Its buffers serve the next row.
        *scratch = logits;
        self.accept(id, tokens, &raw, audience)
    }

    fn accept(&mut self, id: u32, tokens: &[u32], raw: &[f32], audience: &mut Audience) -> Result<Next> {
        self.count += 1;
        if self.task.stop_ids.contains(&id) {
            return Ok(Next::End(FinishReason::Stop, self.task.text.finish()));
        }
        let logprob = self.task.logprobs.map(|top| token_logprobs(raw, id, top)).transpose()?;
        let piece = self.task.text.push(id);
        audience.push(Event::Token(TokenEvent { id, text: piece.text, logprob }));
        if piece.stopped {
            return Ok(Next::End(FinishReason::Stop, String::new()));
        }
        if self.count == self.task.max_tokens || tokens.len() + 1 >= self.context_length {
            return Ok(Next::End(FinishReason::Length, self.task.text.finish()));
        }
        Ok(Next::Token(id))
    }
}
