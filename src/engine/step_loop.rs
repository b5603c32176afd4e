//! The engine thread: hear what is asked, let in what fits, compute one step, tell what came of it.
//!
//! ```text
//! listen   commands from handles; blocks while there is nothing to compute
//! reap     what was cancelled or is late ends
//! admit    the queue's head begins when its pages are free (strictly in order, so nobody starves)
//! step     plan rows, run the network, each sequence absorbs its part
//! sweep    pages of what ended go back; statistics; then the events go out
//! ```
//! One thread owns the network and all state, so there is no lock in here. A failing request ends alone; a
//! failing forward pass ends the requests that were in it; a panic ends them all, and the engine with them.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Instant;

use super::client::Client;
use super::handle::Shared;
use super::lane::Taken;
use super::network::{Network, StepOutput};
use super::schedule::{Gap, StepLimits, plan};
use super::sequence::{Ended, Part, Sequence};
use super::stats::Stats;
use crate::cache::pages::Pages;
use crate::error::{Error, Result};
use crate::sample::Logits;
use crate::step::Step;

/// What handles ask of the thread.
pub(super) enum Command {
    Submit(Box<Sequence>),
    /// The caller's filters have run.
    Filtered(u64, Box<Result<Logits>>),
    /// Something was cancelled: look.
    Wake,
    Close,
}

pub(super) struct Engine {
    network: Box<dyn Network>,
    pages: Pages,
    limits: StepLimits,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
    /// Requests with no pages yet, in the order of arrival.
    waiting: VecDeque<Sequence>,
    /// Requests in work, in the order of arrival.
    running: Vec<Sequence>,
    /// Clients of requests that have ended, until their last events are sent.
    leaving: Vec<Client>,
    stats: Stats,
    scratch: Logits,
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
    limits: StepLimits,
    commands: Receiver<Command>,
    shared: Arc<Shared>,
) {
    let pages = Pages::new(network.pages());
    let stats = Stats { pages: pages.total(), free_pages: pages.total(), ..Stats::default() };
    let mut engine = Engine {
        network,
        pages,
        limits,
        commands,
        shared,
        waiting: VecDeque::new(),
        running: Vec::new(),
        leaving: Vec::new(),
        stats,
        scratch: Logits::default(),
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
                Ok(Command::Submit(sequence)) => {
                    self.stats.requests += 1;
                    self.waiting.push_back(*sequence);
                }
                Ok(Command::Filtered(id, logits)) => self.resume(id, *logits),
            }
        }
    }

    /// The next command, or `Empty` when the nearest deadline has come.
    fn await_command(&mut self) -> std::result::Result<Command, TryRecvError> {
        let all = self.running.iter().chain(&self.waiting);
        match all.filter_map(|sequence| sequence.client.deadline).min() {
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
        // A request that has ended in the meantime is not found, and that is all right.
        let Some(sequence) = self.running.iter_mut().find(|it| it.client.id == id) else { return };
        let before = sequence.usage.completion_tokens;
        let scratch = &mut self.scratch;
        guard(sequence, |it| it.resume(logits?, scratch));
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
        self.flush();
    }

    /// Ends what was cancelled or is late, in work or in the queue.
    fn reap(&mut self, now: Instant) {
        for sequence in self.running.iter_mut().chain(&mut self.waiting) {
            if let Some(error) = sequence.client.over(now) {
                sequence.fail(error);
            }
        }
        let ended = self.waiting.iter().filter(|it| it.ended.is_some()).count();
        if ended == 0 {
            return;
        }
        self.shared.waiting.fetch_sub(ended, Ordering::Relaxed);
        let (ended, waiting) = self.waiting.drain(..).partition(|it| it.ended.is_some());
        self.waiting = waiting;
        for sequence in Vec::from(ended) {
            self.leave(sequence);
        }
    }

    /// Strictly in order: the head waits for its pages and nobody passes it.
    fn admit(&mut self) {
        while self.running.len() < self.limits.sequences
            && let Some(head) = self.waiting.front()
            && let Some(lease) = self.pages.lease(head.reserve)
        {
            let Some(mut sequence) = self.waiting.pop_front() else { break };
            self.shared.waiting.fetch_sub(1, Ordering::Relaxed);
            self.stats.prompt_tokens += sequence.usage.prompt_tokens as u64;
            sequence.begin(lease);
            self.running.push(sequence);
        }
    }

    /// One forward pass; false if there was nothing to compute.
    fn step(&mut self) -> bool {
        let (step, seats) = self.gather();
        if seats.is_empty() {
            return false;
        }
        self.stats.steps += 1;
        self.stats.computed_tokens += step.rows() as u64;
        self.stats.batched += seats.len() as u64;
        self.stats.largest_batch = self.stats.largest_batch.max(seats.len());
        match self.forward(&step) {
            Ok(output) => self.deliver(&seats, &output),
            Err(error) => {
                for seat in &seats {
                    self.running[seat.sequence].fail(error.clone());
                }
            }
        }
        for sequence in &mut self.running {
            let (most, pages, network) = (self.limits.sequences, &mut self.pages, &mut *self.network);
            guard(sequence, |it| it.tend(most, pages, network));
        }
        true
    }

    /// Plans the step and writes its rows down.
    fn gather(&self) -> (Step, Vec<Seat>) {
        let places: Vec<(usize, usize)> = (self.running.iter().enumerate())
            .flat_map(|(sequence, it)| (0..it.lanes.len()).map(move |lane| (sequence, lane)))
            .collect();
        let gap = |&(sequence, lane): &(usize, usize)| match self.running[sequence].ended {
            None => self.running[sequence].lanes[lane].gap(),
            Some(_) => Gap { tokens: 0, every: false },
        };
        let rows = plan(&places.iter().map(gap).collect::<Vec<_>>(), &self.limits);
        let (mut step, mut seats) = (Step::default(), Vec::new());
        for ((sequence, lane), rows) in places.into_iter().zip(rows) {
            if rows > 0 {
                let taken = self.running[sequence].lanes[lane].put(rows, &mut step);
                seats.push(Seat { sequence, lane, taken });
            }
        }
        (step, seats)
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

    fn deliver(&mut self, seats: &[Seat], output: &StepOutput) {
        let (vocab, hidden) = (self.network.vocab_size(), self.network.hidden_size());
        for Seat { sequence, lane, taken } in seats {
            let part = Part {
                rows: taken.rows,
                logits: &output.logits[taken.logits.start * vocab..taken.logits.end * vocab],
                vocab,
                states: &output.hidden[taken.hidden.start * hidden..taken.hidden.end * hidden],
                hidden,
            };
            let sequence = &mut self.running[*sequence];
            let before = sequence.usage.completion_tokens;
            let scratch = &mut self.scratch;
            guard(sequence, |it| it.absorb(*lane, &part, scratch));
            self.stats.completion_tokens += (sequence.usage.completion_tokens - before) as u64;
        }
    }

    /// Pages of what has ended go back.
    fn sweep(&mut self) {
        if self.running.iter().any(|it| it.ended.is_some()) {
            let (ended, running) = self.running.drain(..).partition(|it| it.ended.is_some());
            self.running = running;
            let ended: Vec<Sequence> = ended;
            for sequence in ended {
                self.leave(sequence);
            }
        }
        if cfg!(debug_assertions) {
            self.check_pages();
        }
    }

    fn leave(&mut self, mut sequence: Sequence) {
        match sequence.ended {
            Some(Ended::Well) => self.stats.completed += 1,
            _ => self.stats.failed += 1,
        }
        sequence.release(&mut self.pages);
        self.leaving.push(sequence.client);
    }

    fn publish(&mut self) {
        self.stats.running = self.running.len();
        self.stats.free_pages = self.pages.free();
        self.shared.publish(&self.stats);
    }

    fn flush(&mut self) {
        for sequence in &mut self.running {
            sequence.client.flush();
        }
        for mut client in self.leaving.drain(..) {
            client.flush();
        }
    }

    /// A page that nobody holds and that is not free is lost for good, one that two hold mixes two answers:
    /// rather stop.
    fn check_pages(&self) {
        if let Err(defect) = self.pages.check_integrity(self.running.iter().flat_map(|it| it.leases())) {
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
                sequence.release(&mut self.pages);
            }
            self.stats.failed += 1;
            self.leaving.push(sequence.client);
        }
        self.publish();
        self.flush();
    }
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
