//! The engine as its callers see it: a handle to submit to, and a [`Generation`] to read from.
//!
//! Both may be used from any thread. Nothing in here waits for another request: `submit` only puts the
//! request into the engine's queue, and [`Generation::next`] waits as long as it is told to.
//!
//! A forked child has the handle but not the engine's thread, and locks that were held in the parent at that
//! moment stay locked in it for ever. So every call looks at the process id first and refuses, and every
//! `drop` in a child leaves things alone.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, TryRecvError, channel};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::channel::{Command, FilterCall, Message, Notify, Shared, Subscriber};
use super::draft_model::DraftRunner;
use super::model_runner::ModelRunner;
use super::options::EngineOptions;
use super::request::{Bounds, Event, Request};
use super::stats::Stats;
use super::step_loop;
use crate::cache::prefix_file::Prefix;
use crate::error::{Error, Result, panic_text};
use crate::lora::AdapterLease;

/// A running engine. Clones are handles to the same one; when the last is dropped the engine closes.
///
/// That last drop, as [`EngineHandle::close`], waits for the engine's thread to end, which takes as long as
/// the step that is being computed: do not do it while holding a lock that a [`Notify`] wants.
#[derive(Clone)]
pub struct EngineHandle(Arc<Inner>);

struct Inner {
    commands: Arc<Sender<Command>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    shared: Arc<Shared>,
    next_id: AtomicU64,
    queue: usize,
}

impl EngineHandle {
    /// Starts the thread of an engine that owns `runner`.
    ///
    /// # Errors
    /// `InvalidRequest` for an option that is 0, `Internal` if no thread can be started.
    pub fn start(runner: Box<dyn ModelRunner>, options: EngineOptions) -> Result<EngineHandle> {
        Self::start_with(runner, None, options)
    }

    /// As [`start`](Self::start), with a model that drafts. It changes how fast answers come, and no bit of
    /// them.
    ///
    /// # Errors
    /// As [`start`](Self::start); `InvalidRequest` for a draft model with recurrent state.
    pub fn start_with(
        runner: Box<dyn ModelRunner>,
        draft: Option<DraftRunner>,
        options: EngineOptions,
    ) -> Result<EngineHandle> {
        options.limits.check()?;
        draft.as_ref().map_or(Ok(()), DraftRunner::check)?;
        let bounds = Bounds {
            vocab_size: runner.vocab_size(),
            context_length: options.context_length,
            layout: Arc::new(runner.layout().clone()),
            rows: options.limits.rows,
            causal: options.causal,
        };
        for (name, value) in [
            ("context_length", bounds.context_length),
            ("queue", options.queue),
            ("number of pages in the KV cache", bounds.layout.pages),
            ("vocabulary", bounds.vocab_size),
        ] {
            if value == 0 {
                return Err(Error::invalid(format!("the engine's {name} is 0; it must be at least 1")));
            }
        }
        let pages = bounds.layout.pages;
        let stats = Stats { pages, free_pages: pages, ..Stats::default() };
        let shared = Arc::new(Shared {
            process: std::process::id(),
            bounds,
            waiting: AtomicUsize::new(0),
            stopped: OnceLock::new(),
            stats: Mutex::new(stats),
        });
        let (commands, inbox) = channel();
        let commands = Arc::new(commands);
        let queue = options.queue;
        let its_own = shared.clone();
        let thread = std::thread::Builder::new()
            .name("tallow-engine".into())
            .spawn(move || step_loop::run(runner, draft, options, inbox, its_own))
            .map_err(|error| Error::internal("the engine's thread cannot be started").with_source(error))?;
        Ok(EngineHandle(Arc::new(Inner {
            commands,
            thread: Mutex::new(Some(thread)),
            shared,
            next_id: AtomicU64::new(0),
            queue,
        })))
    }

    /// Puts a request into the queue.
    ///
    /// # Errors
    /// What is wrong with the request (see [`Request::check`]); `OutOfMemory` if the queue is full, to be
    /// tried again later; `Cancelled` if the engine was closed; `Internal` if it has failed;
    /// `InvalidRequest` in a forked child.
    pub fn submit(&self, request: Request) -> Result<Generation> {
        self.submit_with(request, None)
    }

    /// As [`submit`](Self::submit), with a function to be called when there is something to read.
    pub fn submit_with(&self, request: Request, notify: Option<Notify>) -> Result<Generation> {
        let (mut reservation, generation) = self.reserve(notify)?;
        reservation.enter(request).inspect_err(|_| reservation.subscriber = None)?;
        Ok(generation)
    }

    /// The answer to a request that is still to be made, by another thread, say: it can be waited for, and
    /// cancelled.
    ///
    /// # Errors
    /// `Cancelled` if the engine was closed; `Internal` if it has failed; `InvalidRequest` in a forked child.
    pub fn reserve(&self, notify: Option<Notify>) -> Result<(Reservation, Generation)> {
        let Inner { shared, commands, next_id, .. } = &*self.0;
        shared.check_process()?;
        if let Some(error) = shared.stopped.get() {
            return Err(error.clone());
        }
        let (channel, events) = channel();
        let cancelled = Arc::new(AtomicBool::new(false));
        let subscriber = Subscriber {
            id: next_id.fetch_add(1, Ordering::Relaxed),
            channel,
            cancelled: cancelled.clone(),
            submitted: Instant::now(),
            deadline: None,
            notify,
            outbox: Vec::new(),
        };
        let canceller =
            Canceller { id: subscriber.id, commands: commands.clone(), shared: shared.clone(), cancelled };
        let reservation = Reservation { subscriber: Some(subscriber), engine: self.clone() };
        Ok((reservation, Generation { events: Some(events), canceller }))
    }

    /// Keeps a prefix whose pages [`Task::Pages`](super::Task::Pages) gave, here or in another process.
    ///
    /// # Errors
    /// `OutOfMemory` if there is no room for all of it; else as [`submit`](Self::submit).
    pub fn import(&self, prefix: Prefix, adapter: Option<AdapterLease>) -> Result<()> {
        self.ask(|reply| Command::Import(prefix, adapter, reply))
    }

    /// Sends a command and waits for its reply.
    fn ask<T>(&self, command: impl FnOnce(Sender<Result<T>>) -> Command) -> Result<T> {
        let Inner { shared, commands, .. } = &*self.0;
        shared.check_process()?;
        let (reply, answer) = channel();
        let _ = commands.send(command(reply));
        answer.recv().unwrap_or_else(|_| Err(shared.stop(Error::internal("the engine stopped"))))
    }

    /// What the engine has done so far. In a forked child: nothing.
    pub fn stats(&self) -> Stats {
        let shared = &self.0.shared;
        if shared.forked() {
            return Stats::default();
        }
        let mut stats = shared.stats().clone();
        // The engine's thread counts those that it has put back.
        stats.waiting += shared.waiting.load(Ordering::Relaxed);
        stats
    }

    /// Ends all requests with a `Cancelled` error and waits until the engine's thread has ended and its
    /// memory is free. Closing twice is the same as once.
    pub fn close(&self) {
        self.0.close();
    }

    /// Whether it was closed, or has failed: then [`submit`](Self::submit) tells why.
    pub fn is_closed(&self) -> bool {
        self.0.shared.stopped.get().is_some()
    }

    /// What requests are checked against.
    pub fn bounds(&self) -> Bounds {
        self.0.shared.bounds.clone()
    }
}

impl Inner {
    fn close(&self) {
        if self.shared.forked() {
            return;
        }
        self.shared.stop(Error::cancelled("the engine was closed"));
        let _ = self.commands.send(Command::Close);
        let thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner).take();
        // The last handle may be dropped by a notifier, which runs on the engine's own thread.
        if let Some(thread) = thread.filter(|it| it.thread().id() != std::thread::current().id()) {
            let _ = thread.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        if self.shared.forked() {
            // There is no such thread here: neither join nor detach it, and never drop the last sender.
            std::mem::forget(self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take());
            std::mem::forget(self.commands.clone());
            return;
        }
        self.close();
    }
}

/// A request that was announced and not made yet. Dropping it tells its caller that none will come.
pub struct Reservation {
    /// None once the request is in the queue, or refused.
    subscriber: Option<Subscriber>,
    engine: EngineHandle,
}

impl Reservation {
    /// Whether nobody wants the answer any more.
    pub fn is_cancelled(&self) -> bool {
        self.subscriber.as_ref().is_none_or(|subscriber| subscriber.cancelled.load(Ordering::Relaxed))
    }

    /// Puts the request into the queue; its caller is told if it is refused.
    pub fn submit(mut self, request: Request) {
        if let Err(error) = self.enter(request) {
            self.tell(error);
        }
    }

    /// Tells the caller why there is no request.
    pub fn refuse(mut self, error: Error) {
        self.tell(error);
    }

    fn enter(&mut self, request: Request) -> Result<()> {
        let Inner { shared, commands, queue, .. } = &*self.engine.0;
        if let Some(error) = shared.stopped.get() {
            return Err(error.clone());
        }
        request.check(&shared.bounds)?;
        let enter = |waiting| (waiting < *queue).then_some(waiting + 1);
        if shared.waiting.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enter).is_err() {
            return Err(Error::out_of_memory(format!(
                "the queue is full: {queue} requests are waiting; try again later, or send fewer at once"
            )));
        }
        let Some(mut subscriber) = self.subscriber.take() else { return Ok(()) };
        subscriber.deadline = request.deadline;
        let sent = commands.send(Command::Submit(Box::new(request), subscriber));
        sent.map_err(|_| shared.stop(Error::internal("the engine stopped")))
    }

    fn tell(&mut self, error: Error) {
        if let Some(mut subscriber) = self.subscriber.take() {
            subscriber.push(Event::Error(error));
            subscriber.flush();
        }
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.tell(Error::internal("the request was evicted while it was prepared"));
    }
}

/// The answer to one request, read as it comes. Dropping it ends the request at the next step.
///
/// The engine does not wait for its reader: what is not read yet is kept, and `max_tokens` bounds it.
pub struct Generation {
    /// None after the last event.
    events: Option<Receiver<Message>>,
    canceller: Canceller,
}

/// Ends a request, from any thread and while another one reads its answer.
#[derive(Clone)]
pub struct Canceller {
    id: u64,
    commands: Arc<Sender<Command>>,
    shared: Arc<Shared>,
    cancelled: Arc<AtomicBool>,
}

impl Canceller {
    /// Ends the request at the next step with a `Cancelled` error, if it has not ended before.
    pub fn cancel(&self) {
        if !self.shared.forked() && !self.cancelled.swap(true, Ordering::Relaxed) {
            let _ = self.commands.send(Command::Cancel(self.id));
        }
    }
}

impl Drop for Canceller {
    fn drop(&mut self) {
        if self.shared.forked() {
            std::mem::forget(self.commands.clone());
        }
    }
}

/// What [`Generation::next`] found.
#[derive(Clone, Debug)]
pub enum Poll {
    /// The next event.
    Event(Event),
    /// Nothing within the time that was given.
    Pending,
    /// `Done` or `Error` was already read.
    Ended,
}

impl Generation {
    /// Waits for the next event, at most `timeout` (zero: looks only). Filters that the user wrote run in
    /// here, on the caller's thread, and are not interrupted when the time is over.
    pub fn next(&mut self, timeout: Duration) -> Poll {
        let until = Instant::now().checked_add(timeout);
        loop {
            let Some(events) = &self.events else { return Poll::Ended };
            if let Err(error) = self.canceller.shared.check_process() {
                std::mem::forget(self.events.take());
                return Poll::Event(Event::Error(error));
            }
            match receive(events, until) {
                Ok(Message::Event(event)) => {
                    if matches!(event, Event::Done(_) | Event::Error(_)) {
                        self.events = None;
                    }
                    return Poll::Event(event);
                }
                Ok(Message::Filter(call)) => {
                    if let Some(raised) = self.filter(call) {
                        return raised;
                    }
                }
                Err(RecvTimeoutError::Timeout) => return Poll::Pending,
                Err(RecvTimeoutError::Disconnected) => {
                    self.events = None;
                    let lost = Error::internal("the engine stopped before the request ended");
                    let stopped = self.canceller.shared.stopped.get().cloned();
                    return Poll::Event(Event::Error(stopped.unwrap_or(lost)));
                }
            }
        }
    }

    /// Waits for the next event as long as it takes; `None` after the last.
    pub fn wait(&mut self) -> Option<Event> {
        loop {
            match self.next(Duration::MAX) {
                Poll::Event(event) => return Some(event),
                Poll::Pending => {}
                Poll::Ended => return None,
            }
        }
    }

    /// See [`Canceller::cancel`].
    pub fn cancel(&self) {
        self.canceller.cancel();
    }

    /// What ends the request while another thread reads.
    pub fn canceller(&self) -> Canceller {
        self.canceller.clone()
    }

    /// Runs the caller's filters and sends the engine what they made of the logits. What they raised the
    /// caller gets at once, also if they have ended the request before.
    fn filter(&mut self, call: FilterCall) -> Option<Poll> {
        let logits = catch_unwind(AssertUnwindSafe(|| call.run())).unwrap_or_else(|panic| {
            Err(Error::internal(format!("a filter panicked: {}", panic_text(&*panic))))
        });
        let raised = logits.as_ref().err().cloned();
        // If the engine has stopped, the channel of events tells why.
        let Canceller { id, commands, .. } = &self.canceller;
        let _ = commands.send(Command::Filtered(*id, Box::new(logits)));
        let raised = raised?;
        self.events = None;
        Some(Poll::Event(Event::Error(raised)))
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        if self.canceller.shared.forked() {
            std::mem::forget(self.events.take());
        } else if self.events.is_some() {
            self.cancel();
        }
    }
}

/// `None`: as long as it takes.
fn receive(events: &Receiver<Message>, until: Option<Instant>) -> Result<Message, RecvTimeoutError> {
    let Some(until) = until else { return events.recv().map_err(|_| RecvTimeoutError::Disconnected) };
    match events.try_recv() {
        Ok(message) => Ok(message),
        Err(TryRecvError::Disconnected) => Err(RecvTimeoutError::Disconnected),
        Err(TryRecvError::Empty) => {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() { Err(RecvTimeoutError::Timeout) } else { events.recv_timeout(left) }
        }
    }
}
