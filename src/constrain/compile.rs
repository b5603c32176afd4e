//! Constraints to grammars: checked, compiled on a thread of their own, remembered.
//!
//! Why a thread: the library recurses along the constraint, so it gets a stack that our limits on depth and
//! size cannot exhaust, whatever thread the user called from; and it cannot be interrupted, so the caller
//! stops waiting when the time is up, which is the thread's own time: neither waiting for a turn nor a busy
//! machine counts. What it still does then is bounded by fuel; no more than [`COMPILING`] such threads run at
//! once.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError, mpsc};
use std::time::{Duration, Instant};

use llguidance::ParserFactory;
use llguidance::api::ParserLimits;
use llguidance::toktrie::InferenceCapabilities;

use super::limits::Limits;
use super::matcher::Grammar;
use super::vocabulary::Vocabulary;
use super::{Constraint, exact, schema};
use crate::error::{Context, Error, PARAGRAPH, Result, panic_text, shortened};

/// Grammars that are compiled at once.
const COMPILING: usize = 2;
/// Kinds of tokens that strings mostly take whole; each gets a trie of its own, and a mask that is known to
/// hold all of one is not walked token by token. The first serves strings with a `maxLength`, the second all
/// others. The library's own list has two more, for white space and ten letters: on 262,144 tokens they cost
/// another 32 MiB and 0.2 s, and no mask was faster. With none, a mask in a string takes 3 ms there instead
/// of 3 us.
const SLICES: [&str; 2] = [r#"[^"\\\x00-\x1F\x7F]{1,30}"#, r#"[^"\\\x00-\x1F\x7F]+"#];
/// Address space, of which a compilation touches what it needs.
const STACK: usize = 256 << 20;

/// Makes grammars for one model and keeps the last ones. Cheap to clone; build one for a model.
#[derive(Clone)]
pub struct GrammarCompiler(Arc<Inner>);

struct Inner {
    vocabulary: Vocabulary,
    factory: Arc<ParserFactory>,
    limits: Limits,
    /// Used last comes last.
    cache: Mutex<Vec<(Arc<str>, Grammar)>>,
    slots: Arc<Slots>,
}

impl GrammarCompiler {
    /// Sorts the vocabulary for quick masks: tens of milliseconds and megabytes for large ones, so keep it.
    ///
    /// # Errors
    /// Internal if the library refuses the vocabulary.
    pub fn new(vocabulary: Vocabulary, limits: Limits) -> Result<Self> {
        let factory = guard("preparing grammars", || {
            let capabilities = InferenceCapabilities { ff_tokens: true, ..Default::default() };
            let slices: Vec<String> = SLICES.iter().map(|&slice| slice.into()).collect();
            let mut factory = ParserFactory::new(vocabulary.env(), capabilities, &slices)
                .map_err(|error| Error::internal(format!("the vocabulary cannot serve grammars: {error}")))?;
            factory.quiet();
            *factory.limits_mut() = parser_limits(&limits);
            Ok(factory)
        })?;
        let slots = Arc::new(Slots { free: Mutex::new(COMPILING), changed: Condvar::new() });
        let (factory, cache) = (Arc::new(factory), Mutex::default());
        Ok(GrammarCompiler(Arc::new(Inner { vocabulary, factory, limits, cache, slots })))
    }

    pub fn vocabulary(&self) -> &Vocabulary {
        &self.0.vocabulary
    }

    /// The grammar of a constraint, from the cache if it was asked for lately.
    ///
    /// # Errors
    /// Constraint, which says what is wrong: a schema, expression or grammar that is malformed, that nothing
    /// satisfies, that uses what is not supported, or that exceeds [`Limits`].
    pub fn compile(&self, constraint: &Constraint) -> Result<Grammar> {
        let inner = &*self.0;
        let key: Arc<str> = schema::key(constraint, &inner.limits)?.into();
        if let Some(grammar) = inner.remembered(&key) {
            return Ok(grammar);
        }
        let slot = inner.slots.take();
        // Several threads may have come with the same constraint; the first has compiled it meanwhile.
        if let Some(grammar) = inner.remembered(&key) {
            return Ok(grammar);
        }
        let grammar = self.compile_aside(constraint, slot)?;
        inner.remember(key, grammar.clone());
        Ok(grammar)
    }

    fn compile_aside(&self, constraint: &Constraint, slot: Slot) -> Result<Grammar> {
        let (sender, receiver) = mpsc::sync_channel(1);
        let (started, clock) = mpsc::sync_channel(1);
        let (inner, what) = (self.0.clone(), constraint.clone());
        let work = move || {
            started.send(Clock::start()).ok();
            let grammar = guard("compiling", || inner.compiled(&what).context(what.name()));
            // Nobody listens any more if the time was up.
            sender.send(grammar).ok();
            drop(slot);
        };
        let thread = std::thread::Builder::new().name("tallow-grammar".into()).stack_size(STACK);
        thread.spawn(work).map_err(|error| {
            Error::out_of_memory(format!("no thread to compile the grammar: {error}")).with_source(error)
        })?;
        let limits = &self.0.limits;
        let clock =
            clock.recv().map_err(|_| Error::internal("the thread that compiles a grammar has died"))?;
        while let Some(left) = limits.compile_time.checked_sub(clock.spent()).filter(|left| !left.is_zero()) {
            match receiver.recv_timeout(left) {
                Ok(grammar) => return grammar,
                Err(mpsc::RecvTimeoutError::Timeout) => {}
                Err(mpsc::RecvTimeoutError::Disconnected) => {
                    return Err(Error::internal("the thread that compiles a grammar has died"));
                }
            }
        }
        Err(too_long(constraint, limits))
    }
}

/// The time that one thread has worked. On a machine that is busy it stands still while others run, so what
/// is within the limit does not depend on them.
pub(super) struct Clock {
    start: Instant,
    /// Where the kernel tells the thread's own time; None where it does not, and time is time.
    thread: Option<PathBuf>,
}

impl Clock {
    /// For the thread that calls.
    fn start() -> Self {
        // A link to `PID/task/TID`, in Linux.
        let thread = std::fs::read_link("/proc/thread-self")
            .ok()
            .map(|path| Path::new("/proc").join(path).join("stat"));
        let thread = thread.filter(|path| ticks(path).is_some());
        Clock { start: Instant::now(), thread }
    }

    fn spent(&self) -> Duration {
        let ticks = self.thread.as_deref().and_then(ticks);
        ticks.map_or_else(|| self.start.elapsed(), |ticks| TICK * ticks)
    }
}

/// When work on a grammar must end.
#[derive(Clone)]
pub(super) struct Until {
    clock: Arc<Clock>,
    limit: Duration,
}

impl Until {
    pub fn is_over(&self) -> bool {
        // The system is asked for the thread's own time only where it may be.
        self.clock.start.elapsed() > self.limit && self.clock.spent() > self.limit
    }
}

/// What the kernel counts in (`USER_HZ`, proc_pid_stat(5)).
const TICK: Duration = Duration::from_millis(10);

/// A thread's time in user and kernel mode, the 14th and 15th field; the name before them may hold blanks.
fn ticks(stat: &Path) -> Option<u32> {
    let text = std::fs::read_to_string(stat).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace().skip(11);
    let mut next = || fields.next()?.parse::<u32>().ok();
    Some(next()?.saturating_add(next()?))
}

impl Inner {
    /// Recursive along the constraint, so where there is stack.
    fn compiled(&self, constraint: &Constraint) -> Result<Grammar> {
        let until = Until { clock: Clock::start().into(), limit: self.limits.compile_time };
        let (source, exact) = schema::source(constraint, &self.limits)?;
        let made = exact::compiled(source, &exact, self.vocabulary.env(), parser_limits(&self.limits))?;
        let parser = self.factory.create_parser_from_init_default(made);
        let mut parser = parser.map_err(|error| Error::constraint(tidy(&error)))?;
        parser.start_without_prompt();
        let grammar = Grammar::new(parser, self.vocabulary.clone(), constraint.literals())?;
        // Who asks for an answer looks for the shortest one first, and has no limit: of some expressions it
        // takes a second.
        if grammar.search_shortest(&until) { Ok(grammar) } else { Err(too_long(constraint, &self.limits)) }
    }

    fn remembered(&self, key: &str) -> Option<Grammar> {
        let mut cache = lock(&self.cache);
        let at = cache.iter().position(|(known, _)| &**known == key)?;
        let entry = cache.remove(at);
        // A grammar whose automaton is full or broken is compiled anew.
        if entry.1.is_worn() {
            return None;
        }
        let grammar = entry.1.clone();
        cache.push(entry);
        Some(grammar)
    }

    fn remember(&self, key: Arc<str>, grammar: Grammar) {
        let mut cache = lock(&self.cache);
        cache.retain(|(known, _)| *known != key);
        if cache.len() >= self.limits.cached.max(1) {
            cache.remove(0);
        }
        cache.push((key, grammar));
    }
}

/// Room for a few compilations.
struct Slots {
    free: Mutex<usize>,
    changed: Condvar,
}

struct Slot(Arc<Slots>);

impl Slots {
    /// Waits for one. Those who hold one give it back: fuel bounds what they do.
    fn take(self: &Arc<Self>) -> Slot {
        let free = self.changed.wait_while(lock(&self.free), |free| *free == 0);
        *free.unwrap_or_else(PoisonError::into_inner) -= 1;
        Slot(self.clone())
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        *lock(&self.0.free) += 1;
        self.0.changed.notify_one();
    }
}

/// Nothing that we keep behind a lock can be left half done.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn parser_limits(limits: &Limits) -> ParserLimits {
    ParserLimits {
        initial_lexer_fuel: limits.compile_fuel,
        max_grammar_size: limits.grammar_size,
        max_lexer_states: limits.lexer_states,
        step_lexer_fuel: limits.step_fuel,
        step_max_items: limits.step_items,
        verbose_errors: false,
        ..ParserLimits::default()
    }
}

fn too_long(constraint: &Constraint, limits: &Limits) -> Error {
    Error::constraint(format!(
        "{} was not compiled within {:?}; make it simpler: fewer alternatives, shorter repetitions, less nesting",
        constraint.name(),
        limits.compile_time
    ))
}

/// The one place where the library's panics end. It catches most of its own and makes errors of them; this is
/// for the rest.
///
/// # Errors
/// What `work` returns; Constraint if it panicked: another constraint is what helps.
pub(super) fn guard<T>(doing: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|panic| {
        let text = panic_text(&*panic);
        let text = shortened(text, PARAGRAPH);
        Err(Error::constraint(format!(
            "{doing}: a defect of llguidance: {text}; write the constraint in another way"
        )))
    })
}

/// An error of the library as one short text: no backtrace, no dump of its state.
pub(super) fn tidy(error: &impl std::fmt::Display) -> String {
    let text = error.to_string();
    let text = text.split("\n<").next().unwrap_or_default().trim();
    // The library's name for "no token is allowed".
    if text.is_empty() || text == "NoExtensionBias" {
        return "nothing satisfies it".into();
    }
    match text.strip_prefix("panic: ") {
        Some(panic) => shortened(format_args!("a defect of llguidance: {panic}"), PARAGRAPH),
        None => shortened(text, PARAGRAPH),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_clock_counts_the_work_of_its_thread_and_no_waiting() {
        let clock = Clock::start();
        std::thread::sleep(Duration::from_millis(120));
        assert!(clock.thread.is_none() || clock.spent() < Duration::from_millis(100));
        let begin = Instant::now();
        let mut sum = 0_u64;
        while clock.spent() < Duration::from_millis(40) {
            sum = std::hint::black_box(sum.wrapping_add(1));
            assert!(begin.elapsed() < Duration::from_secs(60), "the clock stands still at work");
        }
    }

    #[test]
    fn who_waits_for_a_slot_gets_one() {
        let slots = Arc::new(Slots { free: Mutex::new(COMPILING), changed: Condvar::new() });
        let taken: Vec<Slot> = (0..COMPILING).map(|_| slots.take()).collect();
        let waiting = std::thread::spawn({
            let slots = slots.clone();
            move || drop(slots.take())
        });
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        drop(taken);
        waiting.join().unwrap();
    }
}
