//! The rules that every input is held to.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tallow::error::{Error, ErrorKind, Result};

use super::{Outcome, Target, allocations};

/// Processor time of one input. Not of the clock: other programs must not make an input slow.
pub const MOST_TIME: Duration = Duration::from_secs(1);
/// Memory beside twice the input.
pub const MOST_MEMORY: usize = 64 << 20;
/// Characters of a message: it must not repeat what a file holds in megabytes.
const LONGEST_MESSAGE: usize = 2000;

/// What an input took.
#[derive(Clone, Copy, Debug, Default)]
pub struct Cost {
    pub time: Duration,
    pub memory: usize,
}

/// Whether an input is being tried.
static CHECKING: AtomicBool = AtomicBool::new(false);

/// From now on a panic of an input is told with the input alone, and not where it happens, too.
pub fn quiet() {
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if !CHECKING.load(Ordering::Relaxed) {
            hook(panic);
        }
    }));
}

/// Runs a target on an input: whether it was taken and what it cost, or which rule it broke.
pub fn check(target: &Target, input: &[u8]) -> std::result::Result<(bool, Cost), String> {
    let before = processor_time();
    CHECKING.store(true, Ordering::Relaxed);
    let attempt = || catch_unwind(AssertUnwindSafe(|| (target.run)(input)));
    let (outcome, memory) = allocations::peak(attempt);
    CHECKING.store(false, Ordering::Relaxed);
    let cost = Cost { time: processor_time().saturating_sub(before), memory };
    let taken = outcome.map_err(|panic| format!("a panic: {}", words(&*panic)))??;
    let most = 2 * input.len() + MOST_MEMORY;
    if cost.memory > most {
        return Err(format!("{} bytes of memory, and at most {most} are allowed", cost.memory));
    }
    if cost.time > MOST_TIME {
        return Err(format!("{:?} of work", cost.time));
    }
    Ok((taken, cost))
}

fn words(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("of no text").to_owned()
}

/// Whether something was taken. An error must be of one of these kinds, and short.
pub fn taken<T>(result: &Result<T>, kinds: &[ErrorKind]) -> Outcome {
    match result {
        Ok(_) => Ok(true),
        Err(error) if !kinds.contains(&error.kind()) => Err(format!("{error:?}")),
        Err(error) => short(error).map(|()| false),
    }
}

fn short(error: &Error) -> std::result::Result<(), String> {
    let beginning: String = error.message().chars().take(LONGEST_MESSAGE).collect();
    if beginning.len() < error.message().len() { Err(format!("a long message: {beginning}")) } else { Ok(()) }
}

/// What a damaged file of a model may be answered with.
pub const OF_FILES: &[ErrorKind] = &[ErrorKind::ModelFile, ErrorKind::UnsupportedModel];

/// The time that all threads of this process have worked.
#[cfg(unix)]
pub fn processor_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the call writes into `time` and nowhere else.
    let failed = unsafe { libc::clock_gettime(libc::CLOCK_PROCESS_CPUTIME_ID, &mut time) };
    assert_eq!(failed, 0);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

#[cfg(not(unix))]
pub fn processor_time() -> Duration {
    static START: std::sync::OnceLock<std::time::Instant> = std::sync::OnceLock::new();
    START.get_or_init(std::time::Instant::now).elapsed()
}
