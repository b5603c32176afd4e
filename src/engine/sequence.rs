//! A request in work: its lanes, what is done with their rows, its client and its clock.
//!
//! A life: queued with no pages; begun with the pages for all tokens that it knows, some of them found in the
//! prefix tree; its lanes are put into steps and it absorbs what comes out; it may be put off, and begins
//! again; when it has ended, well or not, its pages are released and its last event is sent. Nothing in here
//! knows other sequences.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use super::client::{Audience, Client};
use super::decode::{Decode, Next};
use super::draft::{Drafter, Drafting};
use super::lane::{Lane, Want};
use super::network::Network;
use super::pooling::{Pool, Rows};
use super::prefix_io;
use super::request::{Bounds, Event, Finish, FinishReason, Request, Task, Timings, Usage};
use super::score::Score;
use crate::cache::holding::Holding;
use crate::cache::pages::Lease;
use crate::cache::prefix::{PrefixCache, Slot};
use crate::error::{Error, Result};
use crate::sample::Logits;
use crate::step::PAGE;

/// Pages that must be there before a draft gets one.
const SPARE_PAGES: usize = 64;

pub(super) struct Sequence {
    /// Of its first caller, by which it is known.
    pub id: u64,
    pub audience: Audience,
    pub lanes: Vec<Lane>,
    work: Work,
    pub usage: Usage,
    clock: Clock,
    /// A hash of what it asks, if others who ask the same may be answered with it.
    pub question: Option<u64>,
    /// Pages to lease before it begins, besides those of its tokens.
    room: usize,
    /// Rows that a step computes at most.
    rows: usize,
    /// Positions that were computed or found before it was put off: they are not counted twice.
    reached: usize,
    /// Tokens of its last draft that were right.
    accepted: usize,
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
    Pool(Pool),
    Score(Score),
    /// Its pages are handed out as bytes once they are computed.
    Pages,
}

#[derive(Default)]
struct Clock {
    begun: Option<Instant>,
    prefilled: Option<Instant>,
}

impl Sequence {
    /// `request` was checked against `bounds`.
    pub fn new(request: Request, client: Client, bounds: &Bounds) -> Self {
        let room = match &request.task {
            Task::Score { .. } => {
                let prompt = bounds.layout.pages_at_most(request.prompt.len(), bounds.rows);
                request.pages_needed(bounds) - prompt
            }
            _ => 0,
        };
        let mut usage = Usage { prompt_tokens: request.prompt.len(), ..Usage::default() };
        let (work, want) = match request.task {
            Task::Generate(task) => {
                (Work::Decode(Box::new(Decode::new(*task, bounds.context_length))), Want::Last)
            }
            Task::Logits => (Work::Rows, Want::Every),
            Task::Embed(embed) => {
                let rows = embed.rows();
                (Work::Pool(Pool::new(embed)), Want::Hidden(rows))
            }
            Task::Pages => (Work::Pages, Want::Hidden(Rows::Last)),
            Task::Score { candidates, common } => {
                usage.prompt_tokens -= common;
                let beginning = request.prompt[usage.prompt_tokens..].to_vec();
                // The row before the first token tells it.
                let want = Want::From(usage.prompt_tokens - 1);
                (Work::Score(Score::new(candidates, beginning, request.prompt.len())), want)
            }
        };
        let holding = Holding::new(bounds.layout.paged.len());
        let lanes = vec![Lane::new(0, request.prompt, holding, want, 0, request.salt)];
        let question = match &work {
            Work::Decode(decode) if decode.can_be_shared() => Some(question(&lanes[0], decode)),
            _ => None,
        };
        let (id, audience) = (client.id, Audience::new(client, question.is_some()));
        Sequence {
            id,
            audience,
            lanes,
            work,
            usage,
            clock: Clock::default(),
            question,
            room,
            rows: bounds.rows,
            reached: 0,
            accepted: 0,
            ended: None,
        }
    }

    /// Appends what the answer must begin with, so that it is computed together with the prompt. For a sequence
    /// that has found no other to join: its audience hears of it at once.
    pub fn open(&mut self) {
        let Work::Decode(decode) = &mut self.work else { return };
        match decode.open(self.usage.prompt_tokens, &mut self.audience) {
            Ok(next) => self.follow(next),
            Err(error) => self.fail(error),
        }
    }

    /// Finds and leases the pages for everything that it knows, and `spare` more must be there.
    ///
    /// # Errors
    /// So many pages are lacking, and it holds none.
    pub fn begin(&mut self, cache: &mut PrefixCache, spare: usize) -> std::result::Result<(), usize> {
        let lane = &mut self.lanes[0];
        let found = lane.adopt(cache);
        let needed = lane.short(cache.groups(), self.rows) + self.room;
        let outstanding = lane.outstanding(cache.groups(), self.rows).max(needed - self.room) + self.room;
        let lacking = (outstanding + spare).saturating_sub(cache.available());
        // A candidate reads the prompt's state and writes its own.
        let slots = if matches!(self.work, Work::Score(_)) { 2 } else { 1 };
        let lease = match lacking == 0 && !(cache.has_state() && cache.available_slots() < slots) {
            true => cache.lease(needed),
            false => None,
        };
        let Some(mut lease) = lease else {
            lane.release(cache);
            return Err(lacking.max(1));
        };
        if let Work::Score(score) = &mut self.work {
            score.room = lease.split_last(self.room);
            score.spare = if cache.has_state() { cache.lease_slot() } else { None };
        }
        lane.provide(lease, cache.groups(), self.rows);
        lane.provide_state(0, cache);
        lane.want_snapshot_at_end(cache);
        self.count_found(found);
        self.clock.begun.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Takes over what others have computed of its gap since the last step.
    pub fn adopt(&mut self, cache: &mut PrefixCache) {
        if let [lane] = &mut self.lanes[..] {
            let found = lane.adopt(cache);
            self.count_found(found);
        }
    }

    fn count_found(&mut self, found: usize) {
        // What an answer begins with may be found as well, and is no part of the prompt.
        let computed = self.lanes.first().map_or(0, |lane| lane.computed.min(self.usage.prompt_tokens));
        self.usage.cached_tokens += found.min(computed.saturating_sub(self.reached));
        self.reached = self.reached.max(computed);
    }

    /// Pages that it will come to lack and that nobody younger may take, or it could never end: it cannot be
    /// preempted.
    pub fn outstanding(&self, cache: &PrefixCache) -> usize {
        if self.can_be_put_off() || self.ended.is_some() {
            return 0;
        }
        self.lanes.iter().map(|lane| lane.outstanding(cache.groups(), self.rows)).sum()
    }

    /// Whether it waits for its caller.
    pub fn is_parked(&self) -> bool {
        matches!(&self.work, Work::Decode(decode) if decode.is_parked())
    }

    /// Whether it can be put off and begin again: answers can, for they know all their tokens.
    pub fn can_be_put_off(&self) -> bool {
        matches!(self.work, Work::Decode(_)) && self.ended.is_none()
    }

    /// Gives all pages back; what was generated stays.
    pub fn put_off(&mut self, cache: &mut PrefixCache) {
        for lane in &mut self.lanes {
            self.reached = self.reached.max(lane.computed);
            lane.release(cache);
        }
    }

    /// Whether `other`, which has not begun, asks for the very answer that this one gives.
    pub fn answers(&self, other: &Sequence) -> bool {
        let (Work::Decode(ours), Work::Decode(its)) = (&self.work, &other.work) else { return false };
        let prompt = self.usage.prompt_tokens;
        self.ended.is_none()
            && prompt == other.usage.prompt_tokens
            && ours.can_be_shared()
            && ours.same_as(its)
            && self.lanes[0].salt() == other.lanes[0].salt()
            && self.lanes[0].tokens[..prompt] == other.lanes[0].tokens[..prompt]
    }

    /// The callers of `other` are this one's from now on.
    pub fn join(&mut self, other: Sequence) {
        other.audience.into_clients().for_each(|client| self.audience.join(client));
    }

    /// Every lease that it holds.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        let score = match &self.work {
            Work::Score(score) => Some(score.prompt.leases().chain([&score.room])),
            _ => None,
        };
        self.lanes.iter().flat_map(|lane| lane.holding.leases()).chain(score.into_iter().flatten())
    }

    /// Every slot that it holds.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        let score = match &self.work {
            Work::Score(score) => Some(score.slots()),
            _ => None,
        };
        self.lanes.iter().flat_map(|lane| lane.state.slots()).chain(score.into_iter().flatten())
    }

    /// Gives all pages back.
    pub fn release(&mut self, cache: &mut PrefixCache) {
        for mut lane in self.lanes.drain(..) {
            lane.release(cache);
        }
        if let Work::Score(score) = &mut self.work {
            score.release(cache);
        }
    }

    /// Takes in what a step computed for one of its lanes. True: an answer, which [`extend`](Self::extend) is to go on
    /// with.
    pub fn absorb(&mut self, lane: usize, part: &Part, cache: &mut PrefixCache) -> Result<bool> {
        if self.ended.is_some() {
            return Ok(false);
        }
        let it = &mut self.lanes[lane];
        it.advance(part.rows, cache);
        let closed = it.gap().tokens == 0;
        if closed && self.clock.prefilled.is_none() {
            self.clock.prefilled = Some(Instant::now());
        }
        match &mut self.work {
            Work::Decode(_) => return Ok(closed),
            // `tend` does the rest: it has the network.
            Work::Pages => {}
            Work::Rows => {
                self.audience.push(Event::Rows(part.logits.to_vec()));
                if closed {
                    self.finish(FinishReason::Stop, String::new());
                }
            }
            Work::Pool(pool) => {
                pool.add(part.states, part.hidden);
                if closed {
                    self.audience.push(Event::Rows(pool.vector()?));
                    self.finish(FinishReason::Stop, String::new());
                }
            }
            Work::Score(score) if it.first > 0 => score.absorb(it.part, part.logits, part.vocab)?,
            Work::Score(score) => {
                score.absorb_prompt(part.logits, part.vocab)?;
                if closed {
                    score.take_prompt(it, cache);
                    self.lanes.clear();
                }
            }
        }
        Ok(false)
    }

    /// The next token, and one more for each token of the draft that was right. `scratch` is a row to work in.
    pub fn extend(&mut self, part: &Part, scratch: &mut Logits) -> Result<()> {
        let drafted = self.lanes[0].draft.as_ref().map_or(Vec::new(), |draft| draft.tokens.clone());
        self.accepted = 0;
        while let Some(raw) = part.logits.chunks_exact(part.vocab).nth(self.accepted) {
            let (Work::Decode(decode), Some(lane)) = (&mut self.work, self.lanes.first_mut()) else { break };
            let next = decode.advance(&lane.tokens, raw, scratch, &mut self.audience)?;
            // As far as the tokens are those that were drafted, they are computed as well.
            let (new, right) = match &next {
                Next::Tokens(ids) => {
                    let drafted = drafted[self.accepted..].iter();
                    (ids.len(), ids.iter().zip(drafted).take_while(|(id, drafted)| id == drafted).count())
                }
                Next::Parked | Next::End(..) => (1, 0),
            };
            lane.computed += right;
            self.accepted += right;
            self.follow(next);
            if right < new {
                break;
            }
        }
        Ok(())
    }

    /// Gives the prefix tree the pages that are full now, after tokens were drawn.
    pub fn commit(&mut self, cache: &mut PrefixCache) {
        if let [lane] = &mut self.lanes[..] {
            lane.settle_draft_state(self.accepted, cache);
            lane.commit(cache);
        }
    }

    /// Puts a draft behind its one missing token, if that seems to pay; returns its length.
    pub fn draft(&mut self, drafter: &Drafter, step: &mut Drafting, cache: &mut PrefixCache) -> usize {
        let (Work::Decode(decode), [lane]) = (&mut self.work, &mut self.lanes[..]) else { return 0 };
        lane.draft = None;
        if lane.gap().tokens != 1 {
            return 0;
        }
        let mut most = decode.room_for_draft(lane.len());
        // Pages are taken for a draft only where there are plenty.
        let own = |lane: &Lane| (lane.holding.shortest() * PAGE).saturating_sub(lane.len());
        if most > own(lane)
            && cache.available() > SPARE_PAGES
            && let Some(mut more) = cache.lease(cache.groups().len())
        {
            (0..cache.groups().len()).for_each(|group| lane.holding.append(group, more.split_first(1)));
        }
        most = most.min(own(lane));
        if decode.is_guided() {
            let guess = decode.lookup.look(&lane.tokens, self.usage.prompt_tokens, most);
            most = decode.allowed(&guess);
        }
        lane.draft = drafter.draft(step, &mut decode.lookup, &lane.tokens, self.usage.prompt_tokens, most);
        lane.provide_draft_state(cache);
        lane.draft.as_ref().map_or(0, |draft| draft.tokens.len())
    }

    /// Tells the drafter how right its draft was; returns the number of accepted tokens.
    pub fn settle(&mut self, drafter: &mut Drafter, worth: f64) -> usize {
        let (Work::Decode(decode), Some(lane)) = (&mut self.work, self.lanes.first_mut()) else { return 0 };
        let Some(draft) = lane.draft.take() else { return 0 };
        drafter.tell(&mut decode.lookup, &draft, self.accepted, worth);
        self.accepted
    }

    /// Goes on with logits that the caller's filters have edited.
    pub fn resume(&mut self, logits: Logits, scratch: &mut Logits) -> Result<()> {
        let (Work::Decode(decode), Some(lane)) = (&mut self.work, self.lanes.first()) else {
            return Err(Error::internal("filtered logits came for a request that generates nothing"));
        };
        let next = decode.resume(&lane.tokens, logits, scratch, &mut self.audience)?;
        self.follow(next);
        Ok(())
    }

    fn follow(&mut self, next: Next) {
        if let Work::Decode(decode) = &self.work {
            self.usage.completion_tokens = decode.count;
        }
        match next {
            Next::Parked => {}
            Next::Tokens(ids) => self.lanes[0].tokens.extend(ids),
            Next::End(reason, text) => self.finish(reason, text),
        }
    }

    /// What is to do between steps: candidates fork and retire, and a saved prefix is read from its pages.
    pub fn tend(&mut self, most: usize, cache: &mut PrefixCache, network: &mut dyn Network) -> Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        match &mut self.work {
            Work::Score(score) => {
                if let Some(scores) = score.tend(&mut self.lanes, most, cache, network)? {
                    self.usage.completion_tokens = score.tokens();
                    self.audience.push(Event::Scores(scores));
                    self.finish(FinishReason::Stop, String::new());
                }
            }
            // Its lease holds them until here, so none was given up meanwhile.
            Work::Pages if self.lanes[0].gap().tokens == 0 => {
                let (lane, pages) = (&self.lanes[0], self.usage.prompt_tokens / PAGE);
                let bytes = prefix_io::export(&lane.holding, lane.state.own(), pages, network)?;
                self.audience.push(Event::Pages(bytes));
                self.finish(FinishReason::Stop, String::new());
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, reason: FinishReason, text: String) {
        let finish = Finish { reason, text, usage: self.usage, timings: Timings::default() };
        self.audience.finish(finish, |submitted| self.clock.timings(submitted));
        self.ended = Some(Ended::Well);
    }

    /// Nobody wants it any more.
    pub fn abandon(&mut self) {
        self.ended.get_or_insert(Ended::Badly);
    }

    /// The time that its grammar took, and the tokens that it decided.
    pub fn guided(&self) -> (Duration, u64) {
        match &self.work {
            Work::Decode(decode) => decode.guided(),
            _ => Default::default(),
        }
    }

    /// Whether it was never begun.
    pub fn is_new(&self) -> bool {
        self.clock.begun.is_none()
    }

    /// Whether its pages were taken.
    pub fn is_put_off(&self) -> bool {
        !self.is_new()
            && self.lanes.first().is_some_and(|lane| lane.holding.is_empty() && !lane.tokens.is_empty())
            && matches!(self.work, Work::Decode(_))
    }

    /// Ends it with an error, unless it has ended.
    pub fn fail(&mut self, error: Error) {
        if self.ended.is_none() {
            self.audience.push(Event::Error(error));
            self.ended = Some(Ended::Badly);
        }
    }
}

impl Clock {
    /// For a caller that asked at `submitted`, which may be later than the sequence began.
    fn timings(&self, submitted: Instant) -> Timings {
        let now = Instant::now();
        let begun = self.begun.unwrap_or(now).max(submitted);
        let prefilled = self.prefilled.unwrap_or(now).max(begun);
        Timings {
            queue: begun.saturating_duration_since(submitted),
            prefill: prefilled.saturating_duration_since(begun),
            decode: now.saturating_duration_since(prefilled),
        }
    }
}

/// Equal for requests that [`Sequence::answers`] might call the same.
fn question(lane: &Lane, decode: &Decode) -> u64 {
    let mut hash = DefaultHasher::new();
    (&lane.tokens, lane.salt()).hash(&mut hash);
    decode.hash_question(&mut hash);
    hash.finish()
}
