//! Where the time goes: what each thread did and when, as a file that <https://ui.perfetto.dev> opens.
//!
//! `TALLOW_TRACE=FILE` turns it on, `%p` in FILE is the process's number (for programs that start others with
//! the same environment), and `TALLOW_TRACE_MB` is how large the file may grow. Code marks what it does with
//! [`span`]; the engine calls [`flush`] when a step is over.
//!
//! A span goes into a buffer of its own thread, and [`flush`] writes them all down. The format is the array
//! of complete events ("X") of Chrome's trace-event format, times in microseconds with three decimals:
//! <https://docs.google.com/document/d/1CvAClvFfyA5R-PhYUmn5OOQtYMH4h6I0nSsKchNAySU>. The bracket that closes
//! the array is written after every batch, and the next batch begins on top of it: the file is valid JSON
//! whenever nobody is writing, also after a crash. (A pipe gets no bracket; Perfetto does without.)
//!
//! Off, a span costs one relaxed load. On, it costs two looks at the clock and a lock that nobody else wants;
//! what [`flush`] costs is a span itself, so that it is not taken for the engine's time. Nothing that goes
//! wrong here is an error of the engine: it is said once on stderr, and the trace ends.

use std::cell::OnceCell;
use std::ffi::OsString;
use std::fs::File;
use std::io::{Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Instant;

/// Spans that a thread keeps before it writes them itself. A decoded token makes some hundreds.
const BATCH: usize = 4096;

/// What `TALLOW_TRACE_MB` is if it is not set: some 15,000 decoded tokens, and all that a browser can show.
const LIMIT_MB: u64 = 512;

/// What ends the array.
const CLOSE: &[u8] = b"\n]\n";

const UNKNOWN: u8 = 0;
const OFF: u8 = 1;
const ON: u8 = 2;

/// `UNKNOWN` until the first question.
static STATE: AtomicU8 = AtomicU8::new(UNKNOWN);
static TRACE: OnceLock<Option<Trace>> = OnceLock::new();

thread_local! {
    static TRACK: OnceCell<Arc<Track>> = const { OnceCell::new() };
}

/// A named number beside a span: `("rows", 512)`.
pub type Argument = (&'static str, u64);

/// Records the time from its making to its drop, on the thread that drops it.
#[must_use = "a span ends when it is dropped: `let _span = ...`"]
pub struct Span(Option<Begun>);

struct Begun {
    name: &'static str,
    at: Instant,
    arguments: Box<[Argument]>,
}

/// A span that is over; nanoseconds since the trace began.
struct Event {
    name: &'static str,
    begin: u64,
    length: u64,
    arguments: Box<[Argument]>,
}

/// What one thread did and nobody has written yet.
struct Track {
    id: usize,
    events: Mutex<Vec<Event>>,
}

struct Trace {
    begin: Instant,
    pid: u32,
    writer: Mutex<Writer>,
}

struct Writer {
    name: OsString,
    file: File,
    /// Where the next event goes: the closing bracket is behind it.
    end: u64,
    limit: u64,
    /// False: a pipe.
    seekable: bool,
    /// Text that is not written yet.
    text: Vec<u8>,
    tracks: Vec<Arc<Track>>,
    threads: usize,
}

/// Whether a trace is written.
#[inline(always)]
pub fn on() -> bool {
    match STATE.load(Ordering::Relaxed) {
        OFF => false,
        ON => true,
        _ => start(),
    }
}

/// A span from here to where the guard is dropped.
#[inline(always)]
pub fn span(name: &'static str) -> Span {
    span_with(name, &[])
}

/// [`span`] with numbers that tell more of it, such as how many rows a step has.
#[inline(always)]
pub fn span_with(name: &'static str, arguments: &[Argument]) -> Span {
    match on() {
        false => Span(None),
        true => begin(name, arguments),
    }
}

/// Writes what all threads have recorded. Spans that are not over are written when they are.
pub fn flush() {
    if STATE.load(Ordering::Relaxed) == ON
        && let Some(Some(trace)) = TRACE.get()
    {
        let _span = span("write the trace");
        trace.flush();
    }
}

/// Reads the environment, once; whoever comes at the same time waits.
#[cold]
fn start() -> bool {
    TRACE.get_or_init(|| {
        let trace = std::env::var_os("TALLOW_TRACE").filter(|name| !name.is_empty()).and_then(Trace::create);
        STATE.store(if trace.is_some() { ON } else { OFF }, Ordering::Relaxed);
        trace
    });
    STATE.load(Ordering::Relaxed) == ON
}

#[cold]
fn begin(name: &'static str, arguments: &[Argument]) -> Span {
    Span(Some(Begun { name, arguments: arguments.into(), at: Instant::now() }))
}

impl Drop for Span {
    #[inline(always)]
    fn drop(&mut self) {
        if let Some(begun) = self.0.take() {
            begun.end();
        }
    }
}

impl Begun {
    #[cold]
    fn end(self) {
        let Some(Some(trace)) = TRACE.get() else { return };
        let length = self.at.elapsed();
        let event = Event {
            name: self.name,
            begin: nanoseconds(self.at.saturating_duration_since(trace.begin)),
            length: nanoseconds(length),
            arguments: self.arguments,
        };
        // A thread that is ending has no track any more, and its last span is lost.
        let full = TRACK.try_with(|track| {
            let mut events = lock(&track.get_or_init(|| trace.track()).events);
            events.push(event);
            events.len() >= BATCH
        });
        if full == Ok(true) {
            flush();
        }
    }
}

fn nanoseconds(time: std::time::Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Trace {
    /// None, and a word on stderr, if there can be no such file.
    fn create(name: OsString) -> Option<Trace> {
        let pid = std::process::id();
        let name = match name.to_str() {
            Some(text) => text.replace("%p", &pid.to_string()).into(),
            None => name,
        };
        match Writer::create(name.clone(), limit(), pid) {
            Ok(writer) => Some(Trace { begin: Instant::now(), pid, writer: Mutex::new(writer) }),
            Err(error) => {
                warn(&format!(
                    "TALLOW_TRACE: {} cannot be written ({error}); there is no trace",
                    name.display()
                ));
                None
            }
        }
    }

    /// A track for the thread that asks.
    fn track(&self) -> Arc<Track> {
        lock(&self.writer).track(self.pid, std::thread::current().name())
    }

    fn flush(&self) {
        // A forked child has the file and its parent's place in it, and must not touch either. Asked before
        // any lock, since the child's copy of one may be held for ever.
        if self.pid != std::process::id() {
            return STATE.store(OFF, Ordering::Relaxed);
        }
        let mut writer = lock(&self.writer);
        writer.collect(self.pid);
        if let Err(why) = writer.write() {
            STATE.store(OFF, Ordering::Relaxed);
            writer.tracks.clear();
            warn(&format!("the trace {} ends here: {why}", writer.name.display()));
        }
    }
}

/// Bytes that the file may have.
fn limit() -> u64 {
    let Some(text) = std::env::var_os("TALLOW_TRACE_MB") else { return LIMIT_MB << 20 };
    let megabytes = text.to_str().and_then(|text| text.trim().parse().ok()).unwrap_or_else(|| {
        warn(&format!("TALLOW_TRACE_MB={} is no whole number; it is {LIMIT_MB}", text.display()));
        LIMIT_MB
    });
    megabytes.saturating_mul(1 << 20)
}

/// A line on stderr; that it cannot be written either is nobody's business.
fn warn(message: &str) {
    let _ = writeln!(std::io::stderr(), "tallow: {message}");
}

impl Writer {
    fn create(name: OsString, limit: u64, pid: u32) -> std::io::Result<Writer> {
        let mut file = File::create(&name)?;
        let seekable = file.seek(SeekFrom::Start(0)).is_ok();
        let mut text = b"[\n".to_vec();
        metadata(&mut text, "process_name", (pid, 0), "tallow");
        let mut writer = Writer { name, file, end: 0, limit, seekable, text, tracks: Vec::new(), threads: 0 };
        writer.write().map_err(std::io::Error::other)?;
        Ok(writer)
    }

    fn track(&mut self, pid: u32, name: Option<&str>) -> Arc<Track> {
        self.threads += 1;
        let track = Arc::new(Track { id: self.threads, events: Mutex::default() });
        self.text.extend_from_slice(b",\n");
        metadata(&mut self.text, "thread_name", (pid, track.id), name.unwrap_or("a thread without a name"));
        self.tracks.push(track.clone());
        track
    }

    /// Takes what the threads have recorded, and forgets the threads that are gone.
    fn collect(&mut self, pid: u32) {
        let Writer { tracks, text, .. } = self;
        tracks.retain(|track| {
            // Asked first: if the thread is gone, there is nothing to come after what we take.
            let alive = Arc::strong_count(track) > 1;
            let events = std::mem::take(&mut *lock(&track.events));
            events.iter().for_each(|event| event.put(text, pid, track.id));
            alive
        });
    }

    /// Writes the text behind the last event, and closes the array, in one piece.
    fn write(&mut self) -> std::result::Result<(), String> {
        let end = self.end + self.text.len() as u64;
        if end + CLOSE.len() as u64 > self.limit {
            let limit = self.limit >> 20;
            return Err(format!("it has reached {limit} MB (TALLOW_TRACE_MB says how large it may be)"));
        }
        let mut place = Ok(self.end);
        if self.seekable {
            self.text.extend_from_slice(CLOSE);
            place = self.file.seek(SeekFrom::Start(self.end));
        }
        place.and_then(|_| self.file.write_all(&self.text)).map_err(|error| error.to_string())?;
        self.text.clear();
        self.end = end;
        Ok(())
    }
}

impl Event {
    fn put(&self, text: &mut Vec<u8>, pid: u32, thread: usize) {
        text.extend_from_slice(b",\n{\"name\":");
        string(text, self.name);
        let (from, from_rest) = (self.begin / 1000, self.begin % 1000);
        let (long, long_rest) = (self.length / 1000, self.length % 1000);
        put(text, format_args!(",\"ph\":\"X\",\"pid\":{pid},\"tid\":{thread}"));
        put(text, format_args!(",\"ts\":{from}.{from_rest:03},\"dur\":{long}.{long_rest:03}"));
        for (index, (name, value)) in self.arguments.iter().enumerate() {
            text.extend_from_slice(if index == 0 { b",\"args\":{" } else { b"," });
            string(text, name);
            put(text, format_args!(":{value}"));
        }
        text.extend_from_slice(if self.arguments.is_empty() { b"}" } else { b"}}" });
    }
}

/// What a process or a thread is called.
fn metadata(text: &mut Vec<u8>, what: &str, (pid, thread): (u32, usize), name: &str) {
    put(
        text,
        format_args!(
            "{{\"name\":\"{what}\",\"ph\":\"M\",\"pid\":{pid},\"tid\":{thread},\"args\":{{\"name\":"
        ),
    );
    string(text, name);
    text.extend_from_slice(b"}}");
}

fn string(text: &mut Vec<u8>, value: &str) {
    // Neither this nor the next can fail: what is written to is a vector.
    let _ = serde_json::to_writer(text, value);
}

fn put(text: &mut Vec<u8>, what: std::fmt::Arguments<'_>) {
    let _ = text.write_fmt(what);
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::path::Path;
    use std::process::{Command, Output};

    use serde_json::Value;

    use super::*;

    /// Runs the ignored test `name` of this module in a process and with an environment of its own.
    fn child(name: &str, file: &Path, variables: &[(&str, &str)]) -> Output {
        let mut command = Command::new(std::env::current_exe().unwrap());
        command.args(["--ignored", "--exact", &format!("trace::tests::{name}")]);
        command.env_remove("TALLOW_TRACE_MB").env("TALLOW_TRACE", file);
        command.envs(variables.iter().copied()).output().unwrap()
    }

    /// The events of a trace, which must be valid JSON.
    fn events(file: &Path) -> Vec<Value> {
        let text = std::fs::read_to_string(file).unwrap();
        serde_json::from_str(&text)
            .unwrap_or_else(|error| panic!("{error}: ...{}", &text[text.len() - 200..]))
    }

    fn named<'a>(events: &'a [Value], name: &str) -> Vec<&'a Value> {
        events.iter().filter(|event| event["name"] == name).collect()
    }

    /// `(begin, end)` in microseconds.
    fn times(event: &Value) -> (f64, f64) {
        let begin = event["ts"].as_f64().unwrap();
        (begin, begin + event["dur"].as_f64().unwrap())
    }

    #[test]
    #[ignore = "is run by other tests, with TALLOW_TRACE"]
    fn work_on_two_threads() {
        let outer = span_with("step \"0\"", &[("rows", 3), ("sequences", 2)]);
        drop(span("plan"));
        std::thread::Builder::new()
            .name("second".into())
            .spawn(|| drop(span("matmul")))
            .unwrap()
            .join()
            .unwrap();
        flush();
        // What is written may be read at any time.
        if let Some(file) = std::env::var_os("TALLOW_TRACE").filter(|_| on()) {
            assert_eq!(named(&events(Path::new(&file)), "plan").len(), 1);
        }
        drop(span("sample"));
        drop(outer);
        flush();
    }

    #[test]
    #[ignore = "is run by other tests, with TALLOW_TRACE"]
    fn work_without_end() {
        for _ in 0..50_000 {
            drop(span("again"));
        }
        flush();
        assert!(!on());
    }

    #[test]
    fn spans_are_named_and_nested_on_their_threads() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let output = child("work_on_two_threads", file.path(), &[]);
        assert!(output.status.success(), "{output:?}");
        let events = events(file.path());
        let one = |name| match named(&events, name)[..] {
            [event] => event,
            ref found => panic!("{name}: {found:?}"),
        };
        let outer = one("step \"0\"");
        assert_eq!(outer["args"], serde_json::json!({ "rows": 3, "sequences": 2 }));
        let (begin, end) = times(outer);
        // name, on the thread of the step
        for (name, same) in [("plan", true), ("matmul", false), ("sample", true)] {
            let (from, to) = times(one(name));
            assert!(
                begin <= from && from <= to && to <= end + 0.001,
                "{name}: {from}..{to} of {begin}..{end}"
            );
            assert_eq!(one(name)["tid"] == outer["tid"], same, "{name}");
            assert_eq!(one(name)["ph"], "X", "{name}");
        }
        assert!(times(one("plan")).1 <= times(one("sample")).0);
        let threads = named(&events, "thread_name");
        let second = threads.iter().find(|it| it["tid"] == one("matmul")["tid"]).unwrap();
        assert_eq!((threads.len(), &second["args"]["name"]), (2, &Value::from("second")));
    }

    #[test]
    fn what_goes_wrong_is_said_once_and_is_no_error() {
        let folder = tempfile::tempdir().unwrap();
        let file = |name: &str| folder.path().join(name);
        // test, file, megabytes, words on stderr
        let rows = [
            ("work_on_two_threads", "", "512", ""),
            ("work_on_two_threads", "no/such/folder", "512", "cannot be written"),
            ("work_on_two_threads", "a", "many", "TALLOW_TRACE_MB=many is no whole number"),
            ("work_without_end", "b", "1", "it has reached 1 MB"),
        ];
        for (test, name, megabytes, words) in rows {
            let path = if name.is_empty() { Path::new("").into() } else { file(name) };
            let output = child(test, &path, &[("TALLOW_TRACE_MB", megabytes)]);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{name}: {output:?}");
            assert_eq!(said.lines().count(), usize::from(!words.is_empty()), "{name}: {said}");
            assert!(said.contains(words), "{name}: {said}");
        }
        let length = std::fs::metadata(file("b")).unwrap().len();
        assert!((500_000..=1 << 20).contains(&length), "{length}");
        assert!(named(&events(&file("b")), "again").len() > 5_000);
    }

    #[test]
    fn a_name_may_hold_the_number_of_the_process() {
        let folder = tempfile::tempdir().unwrap();
        let output = child("work_without_end", &folder.path().join("%p.json"), &[("TALLOW_TRACE_MB", "1")]);
        assert!(output.status.success(), "{output:?}");
        let names: Vec<_> =
            std::fs::read_dir(folder.path()).unwrap().map(|it| it.unwrap().file_name()).collect();
        let number = names[0].to_str().and_then(|name| name.strip_suffix(".json"));
        assert!(names.len() == 1 && number.is_some_and(|it| it.parse::<u32>().is_ok()), "{names:?}");
    }
}
