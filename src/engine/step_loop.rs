//! The engine thread: hear what is asked, let in what fits, compute one step, tell what came of it.
//!
//! ```text
//! listen   commands from handles; blocks while there is nothing to compute
//! reap     what was cancelled or is late ends
//! admit    the queue's head begins when its pages are there (strictly in order, so nobody starves)
//! plan     take from the prefix tree; who computes what; who is put off for want of pages
//! step     run the network; each sequence absorbs its part and gives its full pages to the prefix tree
//! sweep    pages of what ended go back; statistics; then the events go out
//! ```
//! A cold burst: of the lanes whose next page is the same one, the oldest computes it and the others stand
//! still in that step. After it they find the page in the tree, and so on to the end of what they share. If the
//! oldest goes away half-way, the next step simply has another oldest.
//!
//! One thread owns the network and all state, so there is no lock in here. A failing request ends alone; a
//! failing forward pass ends the requests that were in it; a panic ends them all, and the engine with them.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::client::Audience;
use super::draft::{Drafter, Drafting};
use super::handle::{EngineOptions, Shared};
use super::lane::Taken;
use super::network::{Network, StepOutput};
use super::schedule::{Gap, StepLimits, plan};
use super::scratch::Scratch;
use super::sequence::{Ended, Part, Sequence};
use super::stats::Stats;
use crate::cache::pages::Lease;
use crate::cache::prefix::{Chunk, PrefixCache, ROOT};
use crate::cache::prefix_file::Prefix;
use crate::error::{Error, Result};
use crate::sample::Logits;
use crate::step::{PAGE, Step};
use crate::trace;

/// What handles ask of the thread.
pub(super) enum Command {
    Submit(Box<Sequence>),
    /// The caller's filters have run.
    Filtered(u64, Box<Result<Logits>>),
    /// What lies in the pages of these tokens, whole pages from the start, which must all be cached.
    Export(Vec<u32>, Sender<Result<Vec<u8>>>),
    /// The pages of these tokens, to be kept.
    Import(Prefix, Sender<Result<()>>),
    /// Something was cancelled: look.
    Wake,
    Close,
}

pub(super) struct Engine {
    network: Box<dyn Network>,
    cache: PrefixCache,
    limits: StepLimits,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    /// Requests with no pages, in the order of arrival: new ones, and before them those that were put off.
    waiting: VecDeque<Sequence>,
    /// Requests in work, in the order of arrival.
    running: Vec<Sequence>,
    /// Callers of requests that have ended, until their last events are sent.
    leaving: Vec<Audience>,
    /// None: no speculation.
    drafter: Option<Drafter>,
    stats: Stats,
    scratch: Scratch,
}

/// Where a lane's rows went.
struct Seat {
    sequence: usize,
    lane: usize,
    taken: Taken,
}

/// The whole life of the thread.
pub(super) fn run(
    network: Box<dyn Network>,
    options: EngineOptions,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
) {
    let cache = PrefixCache::new(network.pages(), options.prefix_cache && options.causal);
    let total = cache.pages().total();
    let stats = Stats { pages: total, free_pages: total, ..Stats::default() };
    let mut engine = Engine {
        network,
        cache,
        limits: options.limits,
        commands,
        shared,
        waiting: VecDeque::new(),
        running: Vec::new(),
        leaving: Vec::new(),
        drafter: options.speculation.then(Drafter::new),
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
            panic_message(&*panic)
        ))),
    };
    engine.end(error);
}

impl Engine {
    /// Obeys all commands that are there; blocks for one if there is nothing to compute. False: close.
    fn listen(&mut self) -> bool {
        let mut block = !self.running.iter().flat_map(|it| &it.lanes).any(|lane| lane.gap().tokens > 0);
        if self.running.is_empty() && self.waiting.is_empty() {
            self.check_pages();
        }
        loop {
            let command = if block { self.await_command() } else { self.commands.try_recv() };
            block = false;
            match command {
                Ok(Command::Close) | Err(TryRecvError::Disconnected) => return false,
                Err(TryRecvError::Empty) => return true,
                Ok(Command::Wake) => {}
                Ok(Command::Submit(sequence)) => self.enqueue(*sequence),
                Ok(Command::Filtered(id, logits)) => self.resume(id, *logits),
                // Whoever asked may have gone.
                Ok(Command::Export(tokens, reply)) => drop(reply.send(self.export(&tokens))),
                Ok(Command::Import(prefix, reply)) => {
                    let outcome = self.import(&prefix);
                    self.publish();
                    drop(reply.send(outcome));
                }
            }
        }
    }

    /// A new request goes to the end of the queue, or to one in work that asks for the same.
    fn enqueue(&mut self, mut sequence: Sequence) {
        self.stats.requests += 1;
        let twin = self.running.iter_mut().chain(&mut self.waiting).find(|it| it.answers(&sequence));
        match twin {
            Some(twin) => {
                twin.join(sequence);
                self.stats.shared += 1;
                self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            }
            None => {
                sequence.open();
                self.waiting.push_back(sequence);
            }
        }
    }

    /// The next command, or `Empty` when the nearest deadline has come.
    fn await_command(&mut self) -> std::result::Result<Command, TryRecvError> {
        let all = self.running.iter().chain(&self.waiting);
        match all.filter_map(|sequence| sequence.audience.deadline()).min() {
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

    fn export(&mut self, tokens: &[u32]) -> Result<Vec<u8>> {
        let (mut node, mut bytes) = (ROOT, Vec::new());
        bytes
            .try_reserve_exact((tokens.len() / PAGE).saturating_mul(self.network.page_bytes()))
            .map_err(|_| Error::out_of_memory("there is no memory to copy the prefix to"))?;
        for chunk in chunks(tokens) {
            let Some((page, next)) = self.cache.find(node, &chunk) else {
                return Err(Error::out_of_memory(
                    "the pages of the prefix were given up before they could be saved; close other work, or \
                     raise kv_memory",
                ));
            };
            let read = self.network.read_page(page.pages()[0], &mut bytes);
            self.cache.release(page);
            read?;
            node = next;
        }
        Ok(bytes)
    }

    fn import(&mut self, prefix: &Prefix) -> Result<()> {
        let (mut node, mut held) = (ROOT, Lease::default());
        let mut outcome = Ok(());
        for (chunk, bytes) in chunks(&prefix.tokens).zip(prefix.pages.chunks_exact(self.network.page_bytes()))
        {
            if let Some((page, next)) = self.cache.find(node, &chunk) {
                held.append(page);
                node = next;
                continue;
            }
            let Some(page) = self.cache.lease(1) else {
                let pages = self.cache.pages().total();
                outcome = Err(Error::out_of_memory(format!(
                    "the prefix does not fit beside what is in work, into {pages} pages; raise kv_memory"
                )));
                break;
            };
            let written = self.network.write_page(page.pages()[0], bytes);
            held.append(page);
            if written.is_err() {
                outcome = written;
                break;
            }
            let last = held.len() - 1;
            node = self.cache.insert(node, &chunk, &mut held, last);
        }
        // Held until here, so that the last pages do not push out the first; cached from now on.
        self.cache.release(held);
        outcome
    }

    fn resume(&mut self, id: u64, logits: Result<Logits>) {
        // A request that has ended in the meantime is not found, and that is all right.
        let mut all = self.running.iter_mut().chain(&mut self.waiting);
        let Some(sequence) = all.find(|it| it.id == id) else { return };
        let before = sequence.usage.completion_tokens;
        self.scratch.lend(|scratch| guard(sequence, |it| it.resume(logits?, scratch)));
        self.stats.completion_tokens += (sequence.usage.completion_tokens - before) as u64;
    }

    fn turn(&mut self) {
        let begin = Instant::now();
        self.reap(begin);
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

    /// Ends what was cancelled or is late, in work or in the queue.
    fn reap(&mut self, now: Instant) {
        for sequence in self.running.iter_mut().chain(&mut self.waiting) {
            self.stats.failed += sequence.audience.reap(now) as u64;
            if sequence.audience.len() == 0 {
                sequence.abandon();
            }
        }
        if !self.waiting.iter().any(|it| it.ended.is_some()) {
            return;
        }
        let (ended, waiting): (Vec<_>, Vec<_>) = self.waiting.drain(..).partition(|it| it.ended.is_some());
        self.waiting = waiting.into();
        for sequence in ended {
            if sequence.is_new() {
                self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            }
            self.leave(sequence);
        }
    }

    /// Strictly in order: the head waits for its pages and nobody passes it, unless it waits for its caller.
    fn admit(&mut self) {
        while self.running.len() < self.limits.sequences
            && let Some(at) = self.waiting.iter().position(|it| !it.is_parked())
        {
            let new = self.waiting[at].is_new();
            // Those in work will each need a page soon: who begins now must not take the last ones.
            if !self.waiting[at].begin(&mut self.cache, self.running.len()) {
                break;
            }
            let Some(sequence) = self.waiting.remove(at) else { break };
            if new {
                self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
                self.stats.prompt_tokens += sequence.usage.prompt_tokens as u64;
                self.stats.cached_tokens += sequence.usage.cached_tokens as u64;
                // What a grammar forces at the beginning is there before anything is computed.
                self.stats.completion_tokens += sequence.usage.completion_tokens as u64;
            }
            // Those in work stay in the order of arrival.
            let place = self.running.partition_point(|it| it.id < sequence.id);
            self.running.insert(place, sequence);
        }
    }

    /// One forward pass; false if there was nothing to compute.
    fn step(&mut self) -> bool {
        let planned = trace::span("plan");
        let (step, seats, drafting) = self.gather();
        drop(planned);
        if seats.is_empty() {
            return false;
        }
        let begin = Instant::now();
        self.stats.steps += 1;
        self.stats.computed_tokens += step.rows() as u64;
        self.stats.batched += seats.len() as u64;
        self.stats.largest_batch = self.stats.largest_batch.max(seats.len());
        let output = {
            let counts = [("rows", step.rows() as u64), ("sequences", seats.len() as u64)];
            let _span = trace::span_with("forward", &counts);
            self.forward(&step)
        };
        if let Some(drafter) = &mut self.drafter {
            drafter.note(step.rows(), begin.elapsed(), drafting.as_ref());
        }
        match output {
            Ok(output) => {
                let _span = trace::span("sample");
                self.deliver(&seats, &output);
                self.settle(&seats, drafting);
                self.network.recycle(output);
            }
            Err(error) => {
                for seat in &seats {
                    self.running[seat.sequence].fail(error.clone());
                }
            }
        }
        for sequence in &mut self.running {
            let (most, cache, network) = (self.limits.sequences, &mut self.cache, &mut *self.network);
            guard(sequence, |it| it.tend(most, cache, network));
        }
        true
    }

    /// Plans the step, sees to the pages, and writes its rows down.
    fn gather(&mut self) -> (Step, Vec<Seat>, Option<Drafting>) {
        let (places, mut gaps) = self.gaps();
        let lacking: usize = gaps.iter().map(|gap| gap.short).sum();
        if lacking > self.cache.available() {
            self.weigh(&places, &mut gaps);
        }
        let plan = plan(&gaps, &self.limits, self.cache.available());
        // All pages come free before any is taken, so the order of the lanes does not matter here.
        for &gap in &plan.put_off {
            self.running[places[gap].0].put_off(&mut self.cache);
        }
        let (mut step, mut seats) = (Step::default(), Vec::new());
        let chosen: Vec<_> = places.into_iter().zip(plan.rows).filter(|(_, rows)| *rows > 0).collect();
        for &((sequence, lane), _) in &chosen {
            let it = &mut self.running[sequence].lanes[lane];
            // The plan has counted them, so they are there.
            if let Some(lease) = self.cache.lease(it.short()) {
                it.lease.append(lease);
            }
        }
        let drafting = self.draft(&chosen);
        for ((sequence, lane), rows) in chosen {
            let taken = self.running[sequence].lanes[lane].put(rows, &mut step);
            seats.push(Seat { sequence, lane, taken });
        }
        (step, seats, drafting)
    }

    /// Drafts for the answers of a step in which there is nothing else.
    fn draft(&mut self, chosen: &[((usize, usize), usize)]) -> Option<Drafting> {
        let drafter = self.drafter.as_ref()?;
        let rows = chosen.iter().map(|(_, rows)| rows).sum();
        let mut drafting = drafter.begin(rows, chosen.len())?;
        for &((sequence, _), _) in chosen {
            let drafted = self.running[sequence].draft(drafter, &mut drafting, &mut self.cache);
            self.stats.drafted += drafted as u64;
        }
        Some(drafting)
    }

    /// What came of the drafts.
    fn settle(&mut self, seats: &[Seat], drafting: Option<Drafting>) {
        let (Some(drafter), Some(drafting)) = (&mut self.drafter, drafting) else { return };
        for seat in seats {
            self.stats.accepted += self.running[seat.sequence].settle(drafter, drafting.worth()) as u64;
        }
    }

    /// The gap of every lane, after each has taken what is in the prefix tree.
    fn gaps(&mut self) -> (Vec<(usize, usize)>, Vec<Gap>) {
        let (mut places, mut gaps) = (Vec::new(), Vec::new());
        let (mut in_work, causal) = (HashSet::new(), self.shared.bounds.causal);
        for (number, sequence) in self.running.iter_mut().enumerate() {
            let before = sequence.usage.cached_tokens;
            sequence.adopt(&mut self.cache);
            self.stats.cached_tokens += (sequence.usage.cached_tokens - before) as u64;
            for (at, lane) in sequence.lanes.iter().enumerate() {
                let mut gap = Gap { short: lane.short(), whole: !causal, ..lane.gap() };
                let mut another_does =
                    || lane.next_page(&self.cache).is_some_and(|page| !in_work.insert(page));
                if sequence.ended.is_some() || gap.tokens > 0 && another_does() {
                    gap.tokens = 0;
                }
                places.push((number, at));
                gaps.push(gap);
            }
        }
        (places, gaps)
    }

    /// What would come free by putting lanes off; asked only when pages are scarce.
    fn weigh(&self, places: &[(usize, usize)], gaps: &mut [Gap]) {
        for (&(sequence, lane), gap) in places.iter().zip(gaps) {
            let it = &self.running[sequence];
            if it.can_be_put_off() {
                let pages = it.lanes[lane].lease.pages().iter();
                gap.frees = Some(pages.filter(|&&page| self.cache.pages().leases(page) == 1).count());
            }
        }
    }

    /// Runs the network and makes sure of the shapes that come back.
    fn forward(&mut self, step: &Step) -> Result<StepOutput> {
        let output = self.network.forward(step)?;
        let logits = step.logits.len() * self.network.vocab_size();
        let hidden = step.hidden.len() * self.network.hidden_size();
        if output.logits.len() != logits || output.hidden.len() != hidden {
            return Err(Error::internal(format!(
                "a step gave {} logits and {} hidden values where {logits} and {hidden} were due",
                output.logits.len(),
                output.hidden.len()
            )));
        }
        Ok(output)
    }

    /// Gives each lane its part of what was computed, and goes on with the answers.
    fn deliver(&mut self, seats: &[Seat], output: &StepOutput) {
        let (vocab, hidden) = (self.network.vocab_size(), self.network.hidden_size());
        let mut answers = Vec::new();
        for Seat { sequence: number, lane, taken } in seats {
            let part = Part {
                rows: taken.rows,
                logits: &output.logits[taken.logits.start * vocab..taken.logits.end * vocab],
                vocab,
                states: &output.hidden[taken.hidden.start * hidden..taken.hidden.end * hidden],
                hidden,
            };
            let (cache, mut goes_on) = (&mut self.cache, false);
            guard(&mut self.running[*number], |it| {
                goes_on = it.absorb(*lane, &part, cache)?;
                Ok(())
            });
            if goes_on {
                answers.push((*number, part));
            }
        }
        self.extend(answers);
    }

    /// The next tokens of these sequences, in the order of their numbers. Each draws on its own, so all threads do:
    /// grammars, penalties and a vocabulary of exponentials would keep one of them busy for longer than the network.
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
        let spread = self.network.spread(draws.len(), &|index| {
            let mut draw = draws[index].lock().unwrap_or_else(PoisonError::into_inner);
            let (sequence, part) = &mut *draw;
            scratch.lend(|row| guard(sequence, |it| it.extend(part, row)));
        });
        let after: usize = draws.iter_mut().map(|draw| completed(draw)).sum();
        self.stats.completion_tokens += (after - before) as u64;
        for draw in draws {
            let (sequence, _) = draw.into_inner().unwrap_or_else(PoisonError::into_inner);
            if let Err(error) = &spread {
                sequence.fail(error.clone());
            }
            sequence.keep(&mut self.cache);
        }
    }

    /// Pages of what has ended go back; what was put off goes to the head of the queue.
    fn sweep(&mut self) {
        if self.running.iter().any(|it| it.ended.is_some() || it.is_put_off()) {
            let (staying, going): (Vec<_>, Vec<_>) =
                self.running.drain(..).partition(|it| it.ended.is_none() && !it.is_put_off());
            self.running = staying;
            // The youngest first, so that the oldest is at the head in the end.
            for sequence in going.into_iter().rev() {
                if sequence.ended.is_some() {
                    self.leave(sequence);
                } else {
                    self.stats.put_off += 1;
                    self.waiting.push_front(sequence);
                }
            }
        }
        if cfg!(debug_assertions) {
            self.check_pages();
        }
    }

    fn leave(&mut self, mut sequence: Sequence) {
        let callers = sequence.audience.len() as u64;
        match sequence.ended {
            Some(Ended::Well) => self.stats.completed += callers,
            _ => self.stats.failed += callers,
        }
        let (took, forced) = sequence.guided();
        self.stats.grammars += took;
        self.stats.forced += forced;
        sequence.release(&mut self.cache);
        self.leaving.push(sequence.audience);
    }

    fn publish(&mut self) {
        self.stats.running = self.running.len();
        self.stats.free_pages = self.cache.pages().free();
        self.stats.cached_pages = self.cache.pages().cached();
        self.shared.publish(&self.stats);
    }

    fn flush(&mut self) {
        for sequence in self.running.iter_mut().chain(&mut self.waiting) {
            sequence.audience.flush();
        }
        for mut audience in self.leaving.drain(..) {
            audience.flush();
        }
    }

    /// A page that nobody holds and that is not free is lost for good, one that two hold mixes two answers:
    /// rather stop.
    fn check_pages(&self) {
        let live = self.running.iter().chain(&self.waiting).flat_map(|it| it.leases());
        if let Err(defect) = self.cache.check_integrity(live) {
            panic!("the pages of the KV cache do not add up: {defect}");
        }
    }

    /// Tells everybody who still waits that it is over, those too whose request is still in the channel.
    fn end(&mut self, error: Error) {
        while let Ok(command) = self.commands.try_recv() {
            if let Command::Submit(sequence) = command {
                self.stats.requests += 1;
                self.waiting.push_back(*sequence);
            }
        }
        self.shared.waiting.store(0, Ordering::Relaxed);
        let all: Vec<_> = self.running.drain(..).chain(self.waiting.drain(..)).collect();
        for mut sequence in all {
            sequence.fail(error.clone());
            // After a panic nothing is known of the pages, and nobody will ask for one again.
            if error.kind() != crate::error::ErrorKind::Internal {
                sequence.release(&mut self.cache);
            }
            self.stats.failed += sequence.audience.len() as u64;
            self.leaving.push(sequence.audience);
        }
        self.publish();
        self.flush();
    }
}

/// The whole pages of `tokens`.
fn chunks(tokens: &[u32]) -> impl Iterator<Item = Chunk> {
    tokens.chunks_exact(PAGE).filter_map(|chunk| chunk.try_into().ok())
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
        Err(panic) => Error::internal(format!("the request failed: {}", panic_message(&*panic))),
    };
    sequence.fail(error);
}

/// What a panic said.
pub(super) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    let said = panic.downcast_ref::<&str>().map(|said| said.to_string());
    let said = said.or_else(|| panic.downcast_ref::<String>().cloned());
    said.unwrap_or_else(|| "a panic without a message".into())
}
