//! A request in work: its branches, what is done with their rows, its subscriber and its clock.
//!
//! A life: queued with no pages; begun with the pages for all tokens that it knows, some of them found in the
//! prefix tree; its branches are put into steps and it absorbs what comes out; it may be preempted, and
//! begins again; when it has ended, well or not, its pages are released and its last event is sent. Nothing
//! in here knows other sequences.

use std::hash::{DefaultHasher, Hash, Hasher};
use std::time::{Duration, Instant};

use super::branch::{Branch, Want};
use super::channel::{Subscriber, Subscribers};
use super::decode::{Decode, Next};
use super::draft::{Draft, Drafter, Drafting, LONGEST_GUESS, Offer, Record, Source};
use super::guide::Foresight;
use super::model_runner::ModelRunner;
use super::pooling::{Pool, Rows};
use super::prefix_io;
use super::request::{Bounds, Event, Finish, FinishReason, Request, Task, Timings, Usage};
use super::score::Score;
use crate::cache::holding::Holding;
use crate::cache::pages::Lease;
use crate::cache::prefix::{PrefixCache, Slot};
use crate::error::{Error, ErrorKind, Result};
use crate::sample::Logits;
use crate::step::PAGE;

/// Pages that must be there before a draft gets one.
const SPARE_PAGES: usize = 64;

pub(super) struct Sequence {
    /// Of its first caller, by which it is known.
    pub id: u64,
    pub subscribers: Subscribers,
    pub branches: Vec<Branch>,
    work: Work,
    pub usage: Usage,
    clock: Clock,
    /// A hash of what it asks, if others who ask the same may be answered with it.
    pub question: Option<u64>,
    /// Pages to lease before it begins, besides those of its tokens.
    room: usize,
    /// Rows that a step computes at most.
    rows: usize,
    /// Positions that were computed or found before it was preempted: they are not counted twice.
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
    Badly(ErrorKind),
}

/// What a step computed for one branch.
pub(super) struct Part<'a> {
    pub rows: usize,
    /// `[_, vocab]`: the logits that the branch wanted.
    pub logits: &'a [f32],
    pub vocab: usize,
    /// `[_, hidden]`: the states that the branch wanted.
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
    first_token: Option<Instant>,
}

impl Sequence {
    /// `request` was checked against `bounds`.
    pub fn new(request: Request, subscriber: Subscriber, bounds: &Bounds) -> Self {
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
        let branches = vec![Branch::new(0, request.prompt, holding, want, 0, request.adapter)];
        let question = match &work {
            Work::Decode(decode) if decode.can_be_shared() => Some(question(&branches[0], decode)),
            _ => None,
        };
        let (id, subscribers) = (subscriber.id, Subscribers::new(subscriber, question.is_some()));
        Sequence {
            id,
            subscribers,
            branches,
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

    /// Appends what the answer must begin with, so that it is computed together with the prompt. For a
    /// sequence that has found no other to join: its subscribers hear of it at once.
    pub fn open(&mut self) {
        let Work::Decode(decode) = &mut self.work else { return };
        match decode.open(self.usage.prompt_tokens, &mut self.subscribers) {
            Ok(next) => self.follow(next),
            Err(error) => self.fail(error),
        }
    }

    /// Finds and leases the pages for everything that it knows, and `spare` more must be there.
    ///
    /// # Errors
    /// So many pages are lacking, and it holds none.
    pub fn begin(&mut self, cache: &mut PrefixCache, spare: usize) -> std::result::Result<(), usize> {
        let branch = &mut self.branches[0];
        let found = branch.adopt(cache);
        let needed = branch.short(cache.groups(), self.rows) + self.room;
        let outstanding = branch.outstanding(cache.groups(), self.rows).max(needed - self.room) + self.room;
        let lacking = (outstanding + spare).saturating_sub(cache.available());
        // A candidate reads the prompt's state and writes its own.
        let slots = if matches!(self.work, Work::Score(_)) { 2 } else { 1 };
        let lease = match lacking == 0 && !(cache.has_state() && cache.available_slots() < slots) {
            true => cache.lease(needed),
            false => None,
        };
        let Some(mut lease) = lease else {
            branch.release(cache);
            return Err(lacking.max(1));
        };
        if let Work::Score(score) = &mut self.work {
            score.room = lease.split_last(self.room);
            score.spare = if cache.has_state() { cache.lease_slot() } else { None };
        }
        branch.provide(lease, cache.groups(), self.rows);
        branch.provide_state(0, cache);
        branch.want_snapshot_at_end(cache);
        self.count_found(found);
        self.clock.begun.get_or_insert_with(Instant::now);
        Ok(())
    }

    /// Takes over what others have computed of its backlog since the last step.
    pub fn adopt(&mut self, cache: &mut PrefixCache) {
        if let [branch] = &mut self.branches[..] {
            let found = branch.adopt(cache);
            self.count_found(found);
        }
    }

    fn count_found(&mut self, found: usize) {
        // What an answer begins with may be found as well, and is no part of the prompt.
        let computed =
            self.branches.first().map_or(0, |branch| branch.computed.min(self.usage.prompt_tokens));
        self.usage.cached_tokens += found.min(computed.saturating_sub(self.reached));
        self.reached = self.reached.max(computed);
    }

    /// Pages that it will come to lack and that nobody younger may take, or it could never end: it cannot be
    /// preempted.
    pub fn outstanding(&self, cache: &PrefixCache) -> usize {
        if self.can_be_preempted() || self.ended.is_some() {
            return 0;
        }
        self.branches.iter().map(|branch| branch.outstanding(cache.groups(), self.rows)).sum()
    }

    /// Whether it waits for its caller.
    pub fn is_parked(&self) -> bool {
        matches!(&self.work, Work::Decode(decode) if decode.is_parked())
    }

    /// Whether it can be preempted and begin again: answers can, for they know all their tokens.
    pub fn can_be_preempted(&self) -> bool {
        matches!(self.work, Work::Decode(_)) && self.ended.is_none()
    }

    /// Gives all pages back; what was generated stays.
    pub fn preempt(&mut self, cache: &mut PrefixCache) {
        for branch in &mut self.branches {
            self.reached = self.reached.max(branch.computed);
            branch.release(cache);
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
            && self.branches[0].salt() == other.branches[0].salt()
            && self.branches[0].tokens[..prompt] == other.branches[0].tokens[..prompt]
    }

    /// The callers of `other` are this one's from now on.
    pub fn join(&mut self, other: Sequence) {
        other.subscribers.into_subscribers().for_each(|subscriber| self.subscribers.join(subscriber));
    }

    /// Every lease that it holds.
    pub fn leases(&self) -> impl Iterator<Item = &Lease> {
        let score = match &self.work {
            Work::Score(score) => Some(score.prompt.leases().chain([&score.room])),
            _ => None,
        };
        self.branches.iter().flat_map(|branch| branch.holding.leases()).chain(score.into_iter().flatten())
    }

    /// Every slot that it holds.
    pub fn slots(&self) -> impl Iterator<Item = &Slot> {
        let score = match &self.work {
            Work::Score(score) => Some(score.slots()),
            _ => None,
        };
        self.branches.iter().flat_map(|branch| branch.state.slots()).chain(score.into_iter().flatten())
    }

    /// Gives all pages back.
    pub fn release(&mut self, cache: &mut PrefixCache) {
        for mut branch in self.branches.drain(..) {
            branch.release(cache);
        }
        if let Work::Score(score) = &mut self.work {
            score.release(cache);
        }
    }

    /// Takes in what a step computed for one of its branches. True: an answer, which [`extend`](Self::extend)
    /// is to go on with.
    pub fn absorb(&mut self, branch: usize, part: &Part, cache: &mut PrefixCache) -> Result<bool> {
        if self.ended.is_some() {
            return Ok(false);
        }
        let it = &mut self.branches[branch];
        it.advance(part.rows, cache);
        let closed = it.backlog().tokens == 0;
        if closed && self.clock.prefilled.is_none() {
            self.clock.prefilled = Some(Instant::now());
        }
        match &mut self.work {
            Work::Decode(_) => return Ok(closed),
            // `advance_forks` does the rest: it has the model's runner.
            Work::Pages => {}
            Work::Rows => {
                self.subscribers.push(Event::Rows(part.logits.to_vec()));
                if closed {
                    self.finish(FinishReason::Stop, String::new());
                }
            }
            Work::Pool(pool) => {
                pool.add(part.states, part.hidden);
                if closed {
                    self.subscribers.push(Event::Rows(pool.vector()?));
                    self.finish(FinishReason::Stop, String::new());
                }
            }
            Work::Score(score) if it.first > 0 => score.absorb(it.part, part.logits, part.vocab)?,
            Work::Score(score) => {
                score.absorb_prompt(part.logits, part.vocab)?;
                if closed {
                    score.take_prompt(it, cache);
                    self.branches.clear();
                }
            }
        }
        Ok(false)
    }

    /// The next token, and one more for each token of the draft that was right. `scratch` is a row to work
    /// in.
    pub fn extend(&mut self, part: &Part, scratch: &mut Logits) -> Result<()> {
        let drafted = self.branches[0].draft.as_ref().map_or(Vec::new(), |draft| draft.tokens.clone());
        self.accepted = 0;
        while let Some(raw) = part.logits.chunks_exact(part.vocab).nth(self.accepted) {
            let (Work::Decode(decode), Some(branch)) = (&mut self.work, self.branches.first_mut()) else {
                break;
            };
            let next = decode.advance(&branch.tokens, raw, scratch, &mut self.subscribers)?;
            // As far as the tokens are those that were drafted, they are computed as well.
            let (new, right) = match &next {
                Next::Tokens(ids) => {
                    let drafted = drafted[self.accepted..].iter();
                    (ids.len(), ids.iter().zip(drafted).take_while(|(id, drafted)| id == drafted).count())
                }
                Next::Parked | Next::End(..) => (1, 0),
            };
            branch.computed += right;
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
        if let [branch] = &mut self.branches[..] {
            branch.settle_draft_state(self.accepted, cache);
            branch.commit(cache);
        }
    }

    /// Tokens that a draft behind its one missing token may have, and those that the answer may have at all.
    /// A draft from before is gone.
    pub fn room_for_draft(&mut self, cache: &mut PrefixCache) -> (usize, usize) {
        let (Work::Decode(decode), [branch]) = (&self.work, &mut self.branches[..]) else { return (0, 0) };
        branch.draft = None;
        if branch.backlog().tokens != 1 {
            return (0, 0);
        }
        let left = decode.room_for_draft(branch.len());
        // Pages are taken for a draft only where there are plenty.
        let own = |branch: &Branch| (branch.holding.shortest() * PAGE).saturating_sub(branch.len());
        if left > own(branch)
            && cache.available() > SPARE_PAGES
            && let Some(mut more) = cache.lease(cache.groups().len())
        {
            (0..cache.groups().len()).for_each(|group| branch.holding.append(group, more.split_first(1)));
        }
        (left.min(own(branch)), left)
    }

    /// A draft of at most `most` tokens from its own text, as far as it seems to pay.
    pub fn draft_from_text(&mut self, drafter: &Drafter, step: &Drafting, most: usize) -> Option<Offer> {
        let (Work::Decode(decode), [branch]) = (&mut self.work, &mut self.branches[..]) else { return None };
        let prompt = self.usage.prompt_tokens;
        let (source, mut guess) = decode.lookup.look(&branch.tokens, prompt, most.min(LONGEST_GUESS))?;
        if decode.is_guided() {
            guess.truncate(decode.allowed(&guess));
        }
        drafter.offer(step, source, drafter.right(source, &decode.record), guess)
    }

    /// Puts a draft behind its one missing token; returns its length.
    pub fn take_draft(&mut self, draft: Draft, cache: &mut PrefixCache) -> usize {
        let [branch] = &mut self.branches[..] else { return 0 };
        branch.draft = Some(draft);
        branch.provide_draft_state(cache);
        branch.draft.as_ref().map_or(0, |draft| draft.tokens.len())
    }

    /// What a draft model needs to draft for it: its grammar, as a draft goes on with it. None where
    /// nothing is to be guessed.
    pub fn foresee(&self) -> Option<Option<Foresight>> {
        match &self.work {
            Work::Decode(decode) => decode.foresee(),
            _ => None,
        }
    }

    /// How often its drafts were right.
    pub fn record(&self) -> Option<&Record> {
        match &self.work {
            Work::Decode(decode) => Some(&decode.record),
            _ => None,
        }
    }

    /// See [`Decode::propose`].
    pub fn propose(
        &self,
        foresight: Option<&mut Foresight>,
        tokens: &[u32],
        raw: &[f32],
        scratch: &mut Logits,
    ) -> Result<Vec<u32>> {
        match &self.work {
            Work::Decode(decode) => decode.propose(foresight, tokens, self.usage.prompt_tokens, raw, scratch),
            _ => Ok(Vec::new()),
        }
    }

    /// Tells the drafter how right its draft was; returns where it came from, and the number of its tokens
    /// that were accepted.
    pub fn record_acceptance(&mut self, drafter: &mut Drafter, worth: f64) -> Option<(Source, usize)> {
        let (Work::Decode(decode), Some(branch)) = (&mut self.work, self.branches.first_mut()) else {
            return None;
        };
        let draft = branch.draft.take()?;
        drafter.tell(&mut decode.record, &draft, self.accepted, worth);
        Some((draft.source, self.accepted))
    }

    /// Goes on with logits that the caller's filters have edited.
    pub fn resume(&mut self, logits: Logits, scratch: &mut Logits) -> Result<()> {
        let (Work::Decode(decode), Some(branch)) = (&mut self.work, self.branches.first()) else {
            return Err(Error::internal("filtered logits came for a request that generates nothing"));
        };
        let next = decode.resume(&branch.tokens, logits, scratch, &mut self.subscribers)?;
        self.follow(next);
        Ok(())
    }

    fn follow(&mut self, next: Next) {
        if let Work::Decode(decode) = &self.work {
            self.usage.completion_tokens = decode.count;
            if decode.count > 0 {
                self.clock.first_token.get_or_insert_with(Instant::now);
            }
        }
        match next {
            Next::Parked => {}
            Next::Tokens(ids) => self.branches[0].tokens.extend(ids),
            Next::End(reason, text) => self.finish(reason, text),
        }
    }

    /// What is to do between steps: candidates fork and retire, and a saved prefix is read from its pages.
    pub fn advance_forks(
        &mut self,
        most: usize,
        cache: &mut PrefixCache,
        runner: &mut dyn ModelRunner,
    ) -> Result<()> {
        if self.ended.is_some() {
            return Ok(());
        }
        match &mut self.work {
            Work::Score(score) => {
                if let Some(scores) = score.advance_forks(&mut self.branches, most, cache, runner)? {
                    self.usage.completion_tokens = score.tokens();
                    self.subscribers.push(Event::Scores(scores));
                    self.finish(FinishReason::Stop, String::new());
                }
            }
            // Its lease holds them until here, so none was evicted meanwhile.
            Work::Pages if self.branches[0].backlog().tokens == 0 => {
                let (branch, pages) = (&self.branches[0], self.usage.prompt_tokens / PAGE);
                let bytes = prefix_io::export(&branch.holding, branch.state.own(), pages, runner)?;
                self.subscribers.push(Event::Pages(bytes));
                self.finish(FinishReason::Stop, String::new());
            }
            _ => {}
        }
        Ok(())
    }

    fn finish(&mut self, reason: FinishReason, text: String) {
        let finish = Finish { reason, text, usage: self.usage, timings: Timings::default() };
        self.subscribers.finish(finish, |submitted| self.clock.timings(submitted));
        self.ended = Some(Ended::Well);
    }

    /// Nobody wants it any more.
    pub fn abandon(&mut self) {
        self.ended.get_or_insert(Ended::Badly(ErrorKind::Cancelled));
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
    pub fn is_preempted(&self) -> bool {
        !self.is_new()
            && self
                .branches
                .first()
                .is_some_and(|branch| branch.holding.is_empty() && !branch.tokens.is_empty())
            && matches!(self.work, Work::Decode(_))
    }

    /// Ends it with an error, unless it has ended.
    pub fn fail(&mut self, error: Error) {
        if self.ended.is_none() {
            self.ended = Some(Ended::Badly(error.kind()));
            self.subscribers.push(Event::Error(error));
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
            first_token: self.first_token.unwrap_or(now).saturating_duration_since(submitted),
        }
    }
}

/// Equal for requests that [`Sequence::answers`] might call the same.
fn question(branch: &Branch, decode: &Decode) -> u64 {
    let mut hash = DefaultHasher::new();
    (&branch.tokens, branch.salt()).hash(&mut hash);
    decode.hash_question(&mut hash);
    hash.finish()
}
