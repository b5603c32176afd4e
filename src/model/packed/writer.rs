//! The thread that writes packed weights: some seconds after the load, so that it takes nothing from the
//! first answer, and at a quarter of its speed, so that it takes little from the next ones. When the process
//! is about to end it hurries ([`finish`]).

use std::io;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering::SeqCst};
use std::thread;
use std::time::{Duration, Instant};

use super::file::{self, Named, Origin};
use super::store::Store;
use super::{Packed, Stamp, State};
use crate::small_file::staged;

/// How long after the load it begins.
const DELAY: Duration = Duration::from_secs(2);
/// It rests so many times as long as it works.
const REST: u32 = 3;
const TICK: Duration = Duration::from_millis(20);

/// Threads that write, and the process that they are of: a forked child has none of them.
static WRITERS: AtomicUsize = AtomicUsize::new(0);
static PROCESS: AtomicU32 = AtomicU32::new(0);
/// The process ends: no more rests; and then: no more writing.
static HURRY: AtomicBool = AtomicBool::new(false);
static STOP: AtomicBool = AtomicBool::new(false);

/// What is to be written.
pub(super) struct Job {
    pub store: Store,
    pub path: PathBuf,
    pub origin: Origin,
    /// The files of the weights as they were when they were opened.
    pub stamps: Vec<(PathBuf, Stamp)>,
    pub panels: Vec<Named>,
}

/// Begins to write, if that can be.
pub(super) fn start(job: Job) -> State {
    if let Err(why) = job.store.prepare() {
        return State::new(Packed::NotKept(why));
    }
    let state = State::new(Packed::BeingKept);
    if PROCESS.swap(std::process::id(), SeqCst) != std::process::id() {
        WRITERS.store(0, SeqCst);
    }
    WRITERS.fetch_add(1, SeqCst);
    let told = state.clone();
    let run = move || {
        told.set(job.run().map_or_else(Packed::NotKept, |()| Packed::Kept));
        drop(job);
        WRITERS.fetch_sub(1, SeqCst);
    };
    if let Err(error) = thread::Builder::new().name("tallow-packed".into()).spawn(run) {
        WRITERS.fetch_sub(1, SeqCst);
        state.set(Packed::NotKept(error.to_string()));
    }
    state
}

/// Waits for what is being written, and for at most `patience`; what is not done by then is given up. For the
/// end of a process.
pub fn finish(patience: Duration) {
    HURRY.store(true, SeqCst);
    let writing = || WRITERS.load(SeqCst) > 0 && PROCESS.load(SeqCst) == std::process::id();
    let wait = |patience: Duration| {
        let began = Instant::now();
        while writing() && began.elapsed() < patience {
            thread::sleep(Duration::from_millis(2));
        }
    };
    wait(patience);
    // It takes its half-written file with it.
    STOP.store(true, SeqCst);
    wait(Duration::from_secs(1));
    STOP.store(false, SeqCst);
    HURRY.store(false, SeqCst);
}

/// Rests for so long, unless the process ends.
fn rest(time: Duration) {
    let began = Instant::now();
    while !HURRY.load(SeqCst) {
        match time.checked_sub(began.elapsed()) {
            Some(left) if !left.is_zero() => thread::sleep(left.min(TICK)),
            _ => return,
        }
    }
}

impl Job {
    fn run(&self) -> Result<(), String> {
        rest(DELAY);
        let _lock = loop {
            match self.store.try_lock().map_err(|error| error.to_string())? {
                Some(lock) => break lock,
                None if STOP.load(SeqCst) => return Err("the process ended".into()),
                None => thread::sleep(TICK),
            }
        };
        // Another process may have written it meanwhile.
        if file::origin(&self.path).is_ok_and(|origin| origin == self.origin) {
            return Ok(());
        }
        let bytes: usize = self.panels.iter().map(|(.., panels)| panels.len()).sum();
        self.store.make_room(&self.path, bytes as u64)?;
        let staged = staged(&self.path);
        let written = self.write(&staged).map_err(|error| match error.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "the disk is full".to_owned(),
            _ => error.to_string(),
        });
        let placed = written.and_then(|()| {
            self.check_files()?;
            std::fs::rename(&staged, &self.path).map_err(|error| error.to_string())
        });
        if placed.is_err() {
            let _ = std::fs::remove_file(&staged);
        }
        placed
    }

    fn write(&self, staged: &std::path::Path) -> io::Result<()> {
        let mut began = Instant::now();
        file::write(staged, &self.origin, &self.panels, &mut || {
            if STOP.load(SeqCst) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "the process ended"));
            }
            rest(began.elapsed() * REST);
            began = Instant::now();
            Ok(())
        })
    }

    /// What was packed must be what the files hold: their stamps are those of the maps that it came from, and
    /// nothing has written to them so shortly that their times do not show it.
    fn check_files(&self) -> Result<(), String> {
        for (path, stamp) in &self.stamps {
            let now = Stamp::of(path).map_err(|error| error.message().to_owned())?;
            if now != *stamp || !now.is_settled() {
                return Err(format!("{} has just changed", path.display()));
            }
        }
        Ok(())
    }
}
