//! A request in work: its lanes, what is done with their rows, its client and its clock.
//!
//! A life: queued with no pages; begun with a lease of all the pages that it can need; its lanes are put
//! into steps and it absorbs what comes out; when it has ended, well or not, its pages are released and its
//! last event is sent. Nothing in here knows other sequences.

use std::time::Instant;

use super::client::Client;
use super::decode::{Decode, Next};
use super::lane::{Lane, Want};
use super::network::Network;
use super::request::{Bounds, Embed, Event, Finish, FinishReason, Pooling, Request, Task, Timings, Usage};
use super::score::Score;
use crate::cache::pages::{Lease, Pages};
use crate::error::{Error, Result};
use crate::sample::Logits;
use crate::step::pages_for;

pub(super) struct Sequence {
    pub client: Client,
    pub lanes: Vec<Lane>,
    work: Work,
    pub usage: Usage,
    clock: Clock,
    /// Pages to lease before it begins.
    pub reserve: usize,
    /// Whether its last event is in the outbox.
    pub ended: Option<Ended>,
}

/// How a sequence ended.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Ended {
    Well,
    Badly,
}

/// What a step computed for one lane.
pub(super) struct Part<'a> {
    pub rows: usize,
    /// `[_, vocab]`: the logits that the lane wanted.
    pub logits: &'a [f32],
    pub vocab: usize,
    /// `[_, hidden]`: the states that the lane wanted.
    pub states: &'a [f32],
    pub hidden: usize,
}

enum Work {
    Decode(Box<Decode>),
    Rows,
    Pool { embed: Embed, sum: Vec<f64> },
    Score(Score),
}

struct Clock {
    submitted: Instant,
    begun: Option<Instant>,
    prefilled: Option<Instant>,
}

impl Sequence {
    /// `request` was checked against `bounds`.
    pub fn new(request: Request, client: Client, bounds: &Bounds) -> Self {
        let reserve = request.pages_needed(bounds);
        let usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
        let (work, want) = match request.task {
            Task::Generate(task) => {
                (Work::Decode(Box::new(Decode::new(*task, bounds.context_length))), Want::Last)
            }
            Task::Logits => (Work::Rows, Want::Every),
            Task::Embed(embed) => (Work::Pool { embed, sum: Vec::new() }, Want::Hidden(embed.pooling)),
            Task::Score { candidates } => {
                (Work::Score(Score::new(candidates, request.prompt.len())), Want::Last)
            }
        };
        let lanes = vec![Lane::new(0, request.prompt, Lease::default(), want, 0)];
        let clock = Clock { submitted: Instant::now(), begun: None, prefilled: None };
        Sequence { client, lanes, work, usage, clock, reserve, ended: None }
    }

    /// Gives it the pages that it asked for.
    pub fn begin(&mut self, mut lease: Lease) {
        self.clock.begun = Some(Instant::now());
        if let Work::Score(score) = &mut self.work {
            score.room = lease.split_last(lease.len() - pages_for(self.usage.prompt_tokens));
        }
        self.lanes[0].lease = lease;
    }

    /// Every lease that it holds.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        let score = match &self.work {
            Work::Score(score) => [Some(&score.prompt), Some(&score.room)],
            _ => [None, None],
        };
        self.lanes.iter().map(|lane| &lane.lease).chain(score.into_iter().flatten())
    }

    /// Gives all pages back.
    pub fn release(&mut self, pages: &mut Pages) {
        for lane in self.lanes.drain(..) {
            pages.release(lane.lease);
        }
        if let Work::Score(score) = &mut self.work {
            pages.release(std::mem::take(&mut score.prompt));
            pages.release(std::mem::take(&mut score.room));
        }
    }

    /// Takes in what a step computed for one of its lanes. `scratch` is a row that all may use in turn.
    pub fn absorb(&mut self, lane: usize, part: &Part, scratch: &mut Logits) -> Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        let it = &mut self.lanes[lane];
        it.computed += part.rows;
        let closed = it.gap().tokens == 0;
        if closed && self.clock.prefilled.is_none() {
            self.clock.prefilled = Some(Instant::now());
        }
        match &mut self.work {
            Work::Decode(decode) if closed => {
                let next = decode.advance(&it.tokens, part.logits, scratch, &mut self.client)?;
                self.follow(next);
            }
            Work::Decode(_) => {}
            Work::Rows => {
                self.client.push(Event::Rows(part.logits.to_vec()));
                if closed {
                    self.finish(FinishReason::Stop, String::new());
                }
            }
            Work::Pool { embed, sum } => {
                add_rows(sum, part.states, part.hidden);
                if closed {
                    let vector = pooled(sum, *embed, self.usage.prompt_tokens);
                    self.client.push(Event::Rows(vector));
                    self.finish(FinishReason::Stop, String::new());
                }
            }
            Work::Score(score) if it.first > 0 => score.absorb(it.part, part.logits, part.vocab)?,
            Work::Score(score) if closed => {
                let prompt = std::mem::take(&mut it.lease);
                self.lanes.clear();
                score.begin(prompt, part.logits)?;
            }
            Work::Score(_) => {}
        }
        Ok(())
    }

    /// Goes on with logits that the caller's filters have edited.
    pub fn resume(&mut self, logits: Logits, scratch: &mut Logits) -> Result<()> {
        let (Work::Decode(decode), Some(lane)) = (&mut self.work, self.lanes.first()) else {
            return Err(Error::internal("filtered logits came for a request that generates nothing"));
        };
        let next = decode.resume(&lane.tokens, logits, scratch, &mut self.client)?;
        self.follow(next);
        Ok(())
    }

    fn follow(&mut self, next: Next) {
        if let Work::Decode(decode) = &self.work {
            self.usage.completion_tokens = decode.count;
        }
        match next {
            Next::Parked => {}
            Next::Token(id) => self.lanes[0].tokens.push(id),
            Next::End(reason, text) => self.finish(reason, text),
        }
    }

    /// What is to do between steps: candidates fork and retire.
    pub fn tend(&mut self, most: usize, pages: &mut Pages, network: &mut dyn Network) -> Result<()> {
        let Work::Score(score) = &mut self.work else { return Ok(()) };
        if self.ended.is_some() {
            return Ok(());
        }
        if let Some(scores) = score.tend(&mut self.lanes, most, pages, network)? {
            self.usage.completion_tokens = score.tokens();
            self.client.push(Event::Scores(scores));
            self.finish(FinishReason::Stop, String::new());
        }
        Ok(())
    }

    fn finish(&mut self, reason: FinishReason, text: String) {
        let finish = Finish { reason, text, usage: self.usage, timings: self.clock.timings() };
        self.client.push(Event::Done(finish));
        self.ended = Some(Ended::Well);
    }

    /// Ends it with an error, unless it has ended.
    pub fn fail(&mut self, error: Error) {
        if self.ended.is_none() {
            self.client.push(Event::Error(error));
            self.ended = Some(Ended::Badly);
        }
    }
}

impl Clock {
    fn timings(&self) -> Timings {
        let now = Instant::now();
        let begun = self.begun.unwrap_or(now);
        let prefilled = self.prefilled.unwrap_or(now);
        Timings {
            queue: begun.saturating_duration_since(self.submitted),
            prefill: prefilled.saturating_duration_since(begun),
            decode: now.saturating_duration_since(prefilled),
        }
    }
}

/// Adds rows in the order of their positions and in f64, so that chunks do not change the sum.
fn add_rows(sum: &mut Vec<f64>, rows: &[f32], hidden: usize) {
    sum.resize(hidden, 0.0);
    for row in rows.chunks_exact(hidden.max(1)) {
        for (sum, &value) in sum.iter_mut().zip(row) {
            *sum += f64::from(value);
        }
    }
}

fn pooled(sum: &[f64], embed: Embed, prompt: usize) -> Vec<f32> {
    let mut scale = if embed.pooling == Pooling::Mean { 1.0 / prompt as f64 } else { 1.0 };
    if embed.normalize {
        let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
        scale = if length > 0.0 { 1.0 / length } else { 0.0 };
    }
    sum.iter().map(|value| (value * scale) as f32).collect()
}
