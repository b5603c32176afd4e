//! The engine thread: hear what is asked, let in what fits, compute one step, tell what came of it.
//!
//! ```text
//! listen   commands from handles; blocks while there is nothing to compute
//! reap     what is late ends (what was cancelled has ended when its caller said so)
//! admit    the queue's head begins when its pages are there (strictly in order, so nobody starves)
//! plan     take from the prefix tree; who computes what; who is preempted for want of pages
//! step     run the model; each sequence absorbs its part and gives its full pages to the prefix tree
//! sweep    pages of what ended go back; statistics; then the events go out
//! ```
//! A cold burst: of the branches whose next page is the same one, the oldest computes it and the others stand
//! still in that step. After it they find the page in the tree, and so on to the end of what they share. If
//! the oldest goes away half-way, the next step simply has another oldest.
//!
//! Who waits for its caller's filter is *parked*: it takes no place in the step from others, and gives its
//! pages to the queue's head when that has too few. So streams that nobody reads keep nobody waiting.
//!
//! Nothing in a turn walks the queue: see [`Index`].
//!
//! One thread owns the runner and all state, so there is no lock in here. A failing request ends alone; a
//! failing forward pass ends the requests that were in it; a panic ends them all, and the engine with them.

mod drafting;

use std::collections::{BTreeMap, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::branch::Taken;
use super::channel::{Command, Shared, Subscribers};
use super::draft::{Drafter, Drafting};
use super::draft_model::{DraftModel, DraftRunner};
use super::index::Index;
use super::model_runner::{ModelRunner, StepOutput};
use super::options::EngineOptions;
use super::prefix_io;
use super::schedule::{Backlog, StepLimits, plan};
use super::scratch::Scratch;
use super::sequence::{Ended, Part, Sequence};
use super::stats::Stats;
use crate::cache::pages::Lease;
use crate::cache::prefix::{Key, PrefixCache};
use crate::error::{Error, ErrorKind, Result, panic_text};
use crate::sample::Logits;
use crate::step::Step;
use crate::trace;

pub(super) struct Engine {
    runner: Box<dyn ModelRunner>,
    cache: PrefixCache,
    limits: StepLimits,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    /// Requests with no pages, in the order of arrival: new ones, and before them those that were preempted.
    waiting: BTreeMap<u64, Sequence>,
    /// Those that were preempted and cannot begin again before their callers' filters have run.
    shelved: BTreeMap<u64, Sequence>,
    /// Requests in work, in the order of arrival.
    running: Vec<Sequence>,
    /// Callers of requests that have ended, until their last events are sent.
    leaving: Vec<Subscribers>,
    index: Index,
    /// Requests in the queue that have something to tell their callers.
    touched: Vec<u64>,
    /// None: no speculation.
    drafter: Option<Drafter>,
    draft_model: Option<DraftModel>,
    stats: Stats,
    scratch: Scratch,
}

/// Where a branch's rows went.
struct Scheduled {
    sequence: usize,
    branch: usize,
    taken: Taken,
}

/// The whole life of the thread.
pub(super) fn run(
    runner: Box<dyn ModelRunner>,
    draft: Option<DraftRunner>,
    options: EngineOptions,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
) {
    let (vocab, speculates) = (runner.vocab_size(), options.speculation);
    let draft = draft.filter(|_| speculates).map(|it| DraftModel::new(it, vocab, options.prefix_cache));
    let cache = PrefixCache::new(runner.layout(), options.prefix_cache && options.causal);
    let total = cache.pages().total();
    let stats = Stats { pages: total, free_pages: total, ..Stats::default() };
    let mut engine = Engine {
        runner,
        cache,
        limits: options.limits,
        commands,
        shared,
        waiting: BTreeMap::new(),
        shelved: BTreeMap::new(),
        running: Vec::new(),
        leaving: Vec::new(),
        index: Index::default(),
        touched: Vec::new(),
        drafter: speculates.then(|| Drafter::new(draft.is_some())),
        draft_model: draft,
        stats,
        scratch: Scratch::default(),
    };
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        while engine.listen() {
            engine.turn();
        }
    }));
    let error = match outcome {
        Ok(()) => engine.shared.stop(Error::cancelled("the engine was closed")),
        Err(panic) => engine.shared.stop(Error::internal(format!(
            "the engine stopped: {}; load the model again, and please report this",
            panic_text(&*panic)
        ))),
    };
    engine.end(error);
}

impl Engine {
    /// Obeys all commands that are there; blocks for one if there is nothing to compute. False: close.
    fn listen(&mut self) -> bool {
        let mut block =
            !self.running.iter().flat_map(|it| &it.branches).any(|branch| branch.backlog().tokens > 0);
        if self.running.is_empty() && self.waiting.is_empty() {
            self.check_pages();
            self.runner.idle();
            self.draft_model.iter_mut().for_each(|it| it.runner().idle());
        }
        loop {
            let command = if block { self.await_command() } else { self.commands.try_recv() };
            block = false;
            match command {
                Ok(Command::Close) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
                Ok(Command::Cancel(subscriber)) => self.reap(subscriber, Instant::now()),
                Ok(Command::Submit(request, subscriber)) => {
                    self.enqueue(Sequence::new(*request, subscriber, &self.shared.bounds));
                }
                Ok(Command::Filtered(id, logits)) => self.resume(id, *logits),
                // Whoever asked may have gone.
                Ok(Command::Import(prefix, adapter, reply)) => {
                    let salt = adapter.map_or(0, |adapter| adapter.salt());
                    let outcome = prefix_io::import(&prefix, salt, &mut self.cache, &mut *self.runner);
                    self.publish();
                    drop(reply.send(outcome));
                }
            }
        }
    }

    /// A new request goes to the end of the queue, or to one in work that asks for the same.
    fn enqueue(&mut self, mut sequence: Sequence) {
        self.stats.requests += 1;
        let subscriber = sequence.id;
        if let Some(twin) = self.twin(&sequence) {
            sequence.subscribers.subscribers().for_each(|subscriber| self.index.join(subscriber, twin));
            if let Some(twin) = self.find(twin) {
                twin.join(sequence);
            }
            self.touched.push(twin);
            self.stats.shared += 1;
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
        } else {
            sequence.open();
            self.index.enter(&sequence);
            self.touched.push(subscriber);
            self.waiting.insert(subscriber, sequence);
            self.leave_queue(subscriber);
        }
        // It may be late, or have been cancelled before it came.
        self.reap(subscriber, Instant::now());
    }

    /// One in work or in the queue that asks for the same.
    fn twin(&self, sequence: &Sequence) -> Option<u64> {
        let mut alike = self.index.alike(sequence.question).iter().copied();
        alike.find(|&id| self.look_up(id).is_some_and(|it| it.answers(sequence)))
    }

    fn look_up(&self, id: u64) -> Option<&Sequence> {
        match self.running.binary_search_by_key(&id, |it| it.id) {
            Ok(at) => self.running.get(at),
            Err(_) => self.waiting.get(&id).or_else(|| self.shelved.get(&id)),
        }
    }

    fn find(&mut self, id: u64) -> Option<&mut Sequence> {
        match self.running.binary_search_by_key(&id, |it| it.id) {
            Ok(at) => self.running.get_mut(at),
            Err(_) => self.waiting.get_mut(&id).or_else(|| self.shelved.get_mut(&id)),
        }
    }

    /// The next command, or `Empty` when the nearest deadline has come.
    fn await_command(&mut self) -> std::result::Result<Command, TryRecvError> {
        match self.index.next_deadline() {
            None => self.commands.recv().map_err(|_| TryRecvError::Disconnected),
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                self.commands.recv_timeout(left).map_err(|error| match error {
                    RecvTimeoutError::Timeout => TryRecvError::Empty,
                    RecvTimeoutError::Disconnected => TryRecvError::Disconnected,
                })
            }
        }
    }

    fn resume(&mut self, id: u64, logits: Result<Logits>) {
        if let Some(sequence) = self.shelved.remove(&id) {
            self.waiting.insert(id, sequence);
        }
        // A request that has ended in the meantime is not found, and that is all right.
        let place = self.running.binary_search_by_key(&id, |it| it.id).ok();
        let found = match place {
            Some(at) => self.running.get_mut(at),
            None => self.waiting.get_mut(&id),
        };
        let Some(sequence) = found else { return };
        let before = sequence.usage.completion_tokens;
        self.scratch.lend(|scratch| guard(sequence, |it| it.resume(logits?, scratch)));
        self.stats.completion_tokens += (sequence.usage.completion_tokens - before) as u64;
        self.touched.push(id);
        self.leave_queue(id);
    }

    fn turn(&mut self) {
        let begin = Instant::now();
        while let Some(subscriber) = self.index.late(begin) {
            self.reap(subscriber, begin);
        }
        self.admit();
        if self.step() {
            self.stats.busy += begin.elapsed();
        }
        self.sweep();
        // Before `listen` looks whether there is anything to compute: the pages that just came back may be
        // all that the queue's head was waiting for, and no command will come to tell.
        self.admit();
        self.publish();
        let emit = trace::span("emit");
        self.flush();
        drop(emit);
        trace::flush();
    }

    /// Sees a caller off that has cancelled or is late; the request that nobody wants any more ends.
    fn reap(&mut self, subscriber: u64, now: Instant) {
        let id = self.index.sequence_of(subscriber);
        let Some(sequence) = self.find(id) else { return };
        let deadline =
            sequence.subscribers.subscribers().find(|it| it.id == subscriber).and_then(|it| it.deadline);
        let Some(kind) = sequence.subscribers.reap(subscriber, now) else { return };
        if sequence.subscribers.len() == 0 {
            sequence.abandon();
        }
        self.stats.count_error(kind, 1);
        self.index.forget(subscriber, deadline);
        self.touched.push(id);
        self.leave_queue(id);
    }

    /// Takes a request out of the queue that has ended there.
    fn leave_queue(&mut self, id: u64) {
        let ended = [&mut self.waiting, &mut self.shelved].into_iter().find_map(|queue| {
            queue.get(&id)?.ended?;
            queue.remove(&id)
        });
        if let Some(sequence) = ended {
            match sequence.is_new() {
                true => drop(self.shared.waiting.fetch_sub(1, Ordering::Relaxed)),
                false => self.stats.waiting -= 1,
            }
            self.retire(sequence);
        }
    }

    /// Strictly in order: the head waits for its pages and nobody passes it. Who waits for its caller has no
    /// place in the step.
    fn admit(&mut self) {
        let mut seated = self.running.iter().filter(|it| !it.is_parked()).count();
        while seated < self.limits.sequences
            && let Some(mut head) = self.waiting.first_entry()
        {
            let new = head.get().is_new();
            // Those in work will each need a page of each group soon, and some more: who begins now must not
            // take the last ones.
            let outstanding: usize = self.running.iter().map(|it| it.outstanding(&self.cache)).sum();
            let spare = seated * self.cache.groups().len() + outstanding;
            if let Err(lacking) = head.get_mut().begin(&mut self.cache, spare) {
                if self.make_room(lacking, seated == 0) {
                    continue;
                }
                break;
            }
            let sequence = head.remove();
            if new {
                self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
                self.stats.prompt_tokens += sequence.usage.prompt_tokens as u64;
                self.stats.cached_tokens += sequence.usage.cached_tokens as u64;
                // What a grammar forces at the beginning is there before anything is computed.
                self.stats.completion_tokens += sequence.usage.completion_tokens as u64;
            } else {
                self.stats.waiting -= 1;
            }
            // Those in work stay in the order of arrival.
            let place = self.running.partition_point(|it| it.id < sequence.id);
            self.running.insert(place, sequence);
            seated += 1;
        }
    }

    /// Preempts those who wait for their callers, the youngest first, until `lacking` pages more can be
    /// leased. False: that does not suffice, and all stay, unless `alone`: then nobody else will ever give a
    /// page back.
    fn make_room(&mut self, lacking: usize, alone: bool) -> bool {
        let (mut freed, mut victims) = (0, Vec::new());
        for (at, it) in self.running.iter().enumerate().rev() {
            if freed < lacking && it.is_parked() && it.can_be_preempted() {
                let pages = it.leases().flat_map(Lease::pages);
                freed += pages.filter(|&&page| self.cache.pages().leases(page) == 1).count();
                victims.push(at);
            }
        }
        if victims.is_empty() || freed < lacking && !alone {
            return false;
        }
        for at in victims {
            let mut sequence = self.running.remove(at);
            sequence.preempt(&mut self.cache);
            self.shelve(sequence);
        }
        true
    }

    /// What was preempted waits for pages, or for its caller before.
    fn shelve(&mut self, sequence: Sequence) {
        self.stats.preempted += 1;
        self.stats.waiting += 1;
        self.touched.push(sequence.id);
        let queue = if sequence.is_parked() { &mut self.shelved } else { &mut self.waiting };
        queue.insert(sequence.id, sequence);
    }

    /// One forward pass; false if there was nothing to compute.
    fn step(&mut self) -> bool {
        let planned = trace::span("plan");
        let (step, scheduled, drafting) = self.gather();
        drop(planned);
        if scheduled.is_empty() {
            return false;
        }
        let begin = Instant::now();
        self.stats.steps += 1;
        self.stats.computed_tokens += step.rows() as u64;
        self.stats.batched += scheduled.len() as u64;
        self.stats.largest_batch = self.stats.largest_batch.max(scheduled.len());
        self.stats.sequences_per_step.count(scheduled.len());
        self.stats.rows_per_step.count(step.rows());
        let output = {
            let counts = [("rows", step.rows() as u64), ("sequences", scheduled.len() as u64)];
            let _span = trace::span_with("forward", &counts);
            self.forward(&step)
        };
        if let Some(drafter) = &mut self.drafter {
            let took = self.runner.step_time().unwrap_or_else(|| begin.elapsed());
            drafter.note(step.rows(), took, drafting.as_ref());
        }
        match output {
            Ok(output) => {
                let _span = trace::span("sample");
                self.deliver(&scheduled, &output);
                self.record_acceptance(&scheduled, drafting);
                self.runner.recycle(output);
            }
            Err(error) => {
                for scheduled in &scheduled {
                    self.running[scheduled.sequence].fail(error.clone());
                }
            }
        }
        for sequence in &mut self.running {
            let (most, cache, runner) = (self.limits.sequences, &mut self.cache, &mut *self.runner);
            guard(sequence, |it| it.advance_forks(most, cache, runner));
        }
        true
    }

    /// Plans the step, sees to the pages, and writes its rows down.
    fn gather(&mut self) -> (Step, Vec<Scheduled>, Option<Drafting>) {
        let (places, mut backlogs) = self.backlogs();
        let lacking: usize = backlogs.iter().map(|backlog| backlog.short).sum();
        if lacking > self.cache.available() {
            self.count_freed(&places, &mut backlogs);
        }
        let plan = plan(&backlogs, &self.limits, self.cache.available());
        // All pages come free before any is taken, so the order of the branches does not matter here.
        for &backlog in &plan.preempt {
            self.running[places[backlog].0].preempt(&mut self.cache);
        }
        let (mut step, mut scheduled) = (Step::default(), Vec::new());
        let mut chosen: Vec<_> = places.into_iter().zip(plan.rows).filter(|(_, rows)| *rows > 0).collect();
        chosen.retain(|&((sequence, branch), rows)| self.provide(sequence, branch, rows));
        let drafting = self.draft(&chosen);
        for ((sequence, branch), rows) in chosen {
            let taken = self.running[sequence].branches[branch].put(rows, &mut step);
            scheduled.push(Scheduled { sequence, branch, taken });
        }
        (step, scheduled, drafting)
    }

    /// Leases the pages that a branch lacks. The plan has counted them, so they are there; should it ever
    /// miscount, this request ends alone.
    fn provide(&mut self, sequence: usize, branch: usize, rows: usize) -> bool {
        let it = &mut self.running[sequence];
        let most = self.limits.rows;
        let short = it.branches[branch].short(self.cache.groups(), most);
        let Some(lease) = self.cache.lease(short) else {
            it.fail(Error::internal(format!("a step was planned with {short} pages that are not there")));
            return false;
        };
        it.branches[branch].provide(lease, self.cache.groups(), most);
        let there = it.branches[branch].provide_state(rows, &mut self.cache);
        if !there {
            it.fail(Error::internal("a step was planned without a slot for its state"));
        }
        there
    }

    /// The backlog of every branch, after each has taken what is in the prefix tree.
    fn backlogs(&mut self) -> (Vec<(usize, usize)>, Vec<Backlog>) {
        let (mut places, mut backlogs) = (Vec::new(), Vec::new());
        let (mut in_work, causal) = (HashMap::new(), self.shared.bounds.causal);
        for number in 0..self.running.len() {
            let sequence = &mut self.running[number];
            let before = sequence.usage.cached_tokens;
            sequence.adopt(&mut self.cache);
            self.stats.cached_tokens += (sequence.usage.cached_tokens - before) as u64;
            for at in 0..self.running[number].branches.len() {
                let branch = &self.running[number].branches[at];
                let short = branch.short(self.cache.groups(), self.limits.rows);
                let mut backlog = Backlog { short, whole: !causal, ..branch.backlog() };
                let over = self.running[number].ended.is_some();
                if over || backlog.tokens > 0 && self.another_computes((number, at), &mut in_work) {
                    backlog.tokens = 0;
                }
                places.push((number, at));
                backlogs.push(backlog);
            }
        }
        (places, backlogs)
    }

    /// Whether an older branch computes a page that this one needs, so that it finds it in the tree next
    /// time. If not, it computes its own next page, and younger ones find it here.
    fn another_computes(
        &mut self,
        (number, at): (usize, usize),
        in_work: &mut HashMap<Key, (usize, usize)>,
    ) -> bool {
        let branch = &self.running[number].branches[at];
        let path = branch.path(&self.cache);
        let Some(&next) = path.first() else { return false };
        let older = path.iter().find_map(|key| in_work.get(key)).copied();
        if self.cache.has_state() {
            // What it can go on from later are snapshots alone: where the two part, and where the tree ends.
            let (common, end) = match older {
                Some((other, its)) => {
                    (branch.common_pages(&self.running[other].branches[its], &self.cache), branch.depth())
                }
                None => (0, branch.depth() + path.len() - 1),
            };
            if let Some((other, its)) = older {
                self.running[other].branches[its].want_snapshot(common);
            }
            self.running[number].branches[at].want_snapshot(end);
        }
        if older.is_none() {
            in_work.insert(next, (number, at));
        }
        older.is_some()
    }

    /// What would come free by preempting branches; asked only when pages are scarce.
    fn count_freed(&self, places: &[(usize, usize)], backlogs: &mut [Backlog]) {
        for (&(sequence, branch), backlog) in places.iter().zip(backlogs) {
            let it = &self.running[sequence];
            if it.can_be_preempted() {
                let pages = it.branches[branch].holding.leases().flat_map(Lease::pages);
                backlog.frees = Some(pages.filter(|&&page| self.cache.pages().leases(page) == 1).count());
            }
        }
    }

    /// Runs the model and makes sure of the shapes that come back.
    fn forward(&mut self, step: &Step) -> Result<StepOutput> {
        let output = self.runner.forward(step)?;
        let logits = step.logits.len() * self.runner.vocab_size();
        let hidden = step.hidden.len() * self.runner.hidden_size();
        if output.logits.len() != logits || output.hidden.len() != hidden {
            return Err(Error::internal(format!(
                "a step gave {} logits and {} hidden values where {logits} and {hidden} were due",
                output.logits.len(),
                output.hidden.len()
            )));
        }
        Ok(output)
    }

    /// Gives each branch its part of what was computed, and goes on with the answers.
    fn deliver(&mut self, scheduled: &[Scheduled], output: &StepOutput) {
        let (vocab, hidden) = (self.runner.vocab_size(), self.runner.hidden_size());
        let mut answers = Vec::new();
        for Scheduled { sequence: number, branch, taken } in scheduled {
            let part = Part {
                rows: taken.rows,
                logits: &output.logits[taken.logits.start * vocab..taken.logits.end * vocab],
                vocab,
                states: &output.hidden[taken.hidden.start * hidden..taken.hidden.end * hidden],
                hidden,
            };
            let (cache, mut goes_on) = (&mut self.cache, false);
            guard(&mut self.running[*number], |it| {
                goes_on = it.absorb(*branch, &part, cache)?;
                Ok(())
            });
            if goes_on {
                answers.push((*number, part));
            }
        }
        self.extend(answers);
    }

    /// The next tokens of these sequences, in the order of their numbers. Each draws on its own, so all
    /// threads do: grammars, penalties and a vocabulary of exponentials would keep one of them busy for
    /// longer than the model.
    fn extend(&mut self, answers: Vec<(usize, Part)>) {
        let mut parts = answers.into_iter().peekable();
        let mut draws = Vec::with_capacity(parts.len());
        for (number, sequence) in self.running.iter_mut().enumerate() {
            if let Some((_, part)) = parts.next_if(|(at, _)| *at == number) {
                draws.push(Mutex::new((sequence, part)));
            }
        }
        let before: usize = draws.iter_mut().map(|draw| completed(draw)).sum();
        let scratch = &self.scratch;
        let outcome = self.runner.parallel_for(draws.len(), &|index| {
            let mut draw = draws[index].lock().unwrap_or_else(PoisonError::into_inner);
            let (sequence, part) = &mut *draw;
            scratch.lend(|row| guard(sequence, |it| it.extend(part, row)));
        });
        let after: usize = draws.iter_mut().map(|draw| completed(draw)).sum();
        self.stats.completion_tokens += (after - before) as u64;
        for draw in draws {
            let (sequence, _) = draw.into_inner().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = &outcome {
                sequence.fail(error.clone());
            }
            sequence.commit(&mut self.cache);
        }
    }

    /// Pages of what has ended go back; what was preempted goes to the head of the queue.
    fn sweep(&mut self) {
        if self.running.iter().any(|it| it.ended.is_some() || it.is_preempted()) {
            let (staying, going): (Vec<_>, Vec<_>) =
                self.running.drain(..).partition(|it| it.ended.is_none() && !it.is_preempted());
            self.running = staying;
            for sequence in going {
                self.draft_model.iter_mut().for_each(|it| it.forget(sequence.id));
                match sequence.ended {
                    Some(_) => self.retire(sequence),
                    None => self.shelve(sequence),
                }
            }
        }
        if cfg!(debug_assertions) {
            self.check_pages();
        }
    }

    fn retire(&mut self, mut sequence: Sequence) {
        self.index.leave(&sequence);
        let callers = sequence.subscribers.len() as u64;
        match sequence.ended {
            Some(Ended::Well) => self.stats.completed += callers,
            Some(Ended::Badly(kind)) => self.stats.count_error(kind, callers),
            None => {}
        }
        let (took, forced) = sequence.guided();
        self.stats.grammars += took;
        self.stats.forced += forced;
        if let Some(drafter) = self.drafter.as_mut().filter(|_| sequence.record().is_some()) {
            drafter.note_length(sequence.usage.completion_tokens);
        }
        sequence.release(&mut self.cache);
        self.leaving.push(sequence.subscribers);
    }

    fn publish(&mut self) {
        self.stats.running = self.running.len();
        self.stats.free_pages = self.cache.pages().free();
        self.stats.cached_pages = self.cache.pages().cached();
        self.stats.touched_pages = self.cache.pages().touched();
        self.stats.touched_slots = self.cache.slots().touched();
        self.stats.touched_draft_pages =
            self.draft_model.as_ref().map_or(0, |it| it.cache().pages().touched());
        self.shared.publish(&self.stats);
    }

    fn flush(&mut self) {
        for id in std::mem::take(&mut self.touched) {
            if let Some(sequence) = self.find(id) {
                sequence.subscribers.flush();
            }
        }
        self.running.iter_mut().for_each(|sequence| sequence.subscribers.flush());
        for mut subscribers in self.leaving.drain(..) {
            subscribers.flush();
        }
    }

    /// A page that nobody holds and that is not free is lost for good, one that two hold mixes two answers:
    /// rather stop.
    fn check_pages(&self) {
        // In the queue nobody holds a page, or the sums below are wrong.
        let live = self.running.iter().flat_map(|it| it.leases());
        let slots = self.running.iter().flat_map(|it| it.slots());
        let own = self.cache.check_integrity(live, slots);
        let drafts = self.draft_model.as_ref().map_or(Ok(()), DraftModel::check_integrity);
        if let Err(defect) = own.and(drafts) {
            panic!("the pages of the KV cache do not add up: {defect}");
        }
    }

    /// Tells everybody who still waits that it is over, those too whose request is still in the channel.
    fn end(&mut self, error: Error) {
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Submit(request, subscriber) = command {
                self.stats.requests += 1;
                let sequence = Sequence::new(*request, subscriber, &self.shared.bounds);
                self.waiting.insert(sequence.id, sequence);
            }
        }
        self.shared.waiting.store(0, Ordering::Relaxed);
        self.stats.waiting = 0;
        let queues = [&mut self.waiting, &mut self.shelved].map(std::mem::take);
        let queued = queues.into_iter().flat_map(BTreeMap::into_values);
        for mut sequence in self.running.drain(..).chain(queued) {
            sequence.fail(error.clone());
            // After a panic nothing is known of the pages, and nobody will ask for one again.
            if error.kind() != ErrorKind::Internal {
                sequence.release(&mut self.cache);
            }
            self.stats.count_error(error.kind(), sequence.subscribers.len() as u64);
            self.leaving.push(sequence.subscribers);
        }
        self.publish();
        self.flush();
    }
}

/// The tokens that a draw's sequence has generated.
fn completed(draw: &mut Mutex<(&mut Sequence, Part)>) -> usize {
    draw.get_mut().unwrap_or_else(PoisonError::into_inner).0.usage.completion_tokens
}

/// Runs what concerns one request: its error, or its panic, is its own.
fn guard(sequence: &mut Sequence, work: impl FnOnce(&mut Sequence) -> Result<()>) {
    let error = match catch_unwind(AssertUnwindSafe(|| work(sequence))) {
        Ok(Ok(())) => return,
        Ok(Err(error)) => error,
        Err(panic) => Error::internal(format!("the request failed: {}", panic_text(&*panic))),
    };
    sequence.fail(error);
}
