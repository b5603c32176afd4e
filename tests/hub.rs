//! Names to files, against a hub on the loopback interface: no network.
//!
//! The hub here behaves like the real one in what matters: small files come directly, large ones by a
//! redirect to another host, which must not see the token; each test says what goes wrong with which request.
#![cfg(feature = "hub")]

use std::collections::BTreeMap;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};
use tallow::error::{Error, ErrorKind, Result};
use tallow::hub::{Env, HubOptions, Located, Progress, locate_adapter_in, locate_in};

const OLD: &str = "1111111111111111111111111111111111111111";
const NEW: &str = "2222222222222222222222222222222222222222";

// ---------------------------------------------------------------- the hub

/// What happens to a request instead of the right answer.
#[derive(Clone, Debug)]
enum Act {
    Status(u16, &'static str),
    /// The connection ends after so many bytes of the body.
    Cut(usize),
    /// So many bytes, then silence.
    Stall(usize),
    /// The right length, the wrong content.
    Garbage,
    /// As if there were no Range.
    IgnoreRange,
}

#[derive(Clone, Debug)]
struct Seen {
    line: String,
    token: bool,
    served: usize,
}

#[derive(Default)]
struct State {
    commit: String,
    files: BTreeMap<String, Vec<u8>>,
    /// A part of "METHOD /path", what happens, how many times.
    acts: Vec<(String, Act, usize)>,
    seen: Vec<Seen>,
}

struct Hub {
    state: Arc<Mutex<State>>,
    endpoint: String,
    folder: tempfile::TempDir,
}

impl Hub {
    fn new(files: Files) -> Hub {
        let mut state = State { commit: OLD.into(), ..State::default() };
        state.files = files.iter().map(|(name, bytes)| (name.to_string(), bytes.to_vec())).collect();
        let state = Arc::new(Mutex::new(state));
        let cdn = serve(state.clone(), None);
        let endpoint = serve(state.clone(), Some(cdn));
        Hub { state, endpoint, folder: tempfile::tempdir().unwrap() }
    }

    fn act(&self, part: &str, act: Act, times: usize) -> &Hub {
        self.state.lock().unwrap().acts.push((part.into(), act, times));
        self
    }

    fn seen(&self) -> Vec<Seen> {
        std::mem::take(&mut self.state.lock().unwrap().seen)
    }

    /// Bytes of bodies that left for requests that have this in their line.
    fn served(&self, part: &str) -> usize {
        let state = self.state.lock().unwrap();
        state.seen.iter().filter(|seen| seen.line.contains(part)).map(|seen| seen.served).sum()
    }

    fn cache(&self) -> PathBuf {
        self.folder.path().join("hub/models--org--name")
    }

    fn env(&self, more: &[(&str, &str)]) -> Env {
        let home = self.folder.path().to_str().unwrap();
        let cache = format!("{home}/hub");
        let own = format!("{home}/own");
        let fixed = [
            ("HOME", home),
            ("HF_HUB_CACHE", &cache),
            ("TALLOW_CACHE", &own),
            ("HF_ENDPOINT", &self.endpoint),
        ];
        Env::fixed(fixed.into_iter().chain(more.iter().copied()))
    }

    fn locate(&self, source: &str) -> Result<Located> {
        locate_in(&self.env(&[]), source, &HubOptions::default())
    }

    fn error(&self, source: &str) -> Error {
        self.locate(source).expect_err(source)
    }
}

/// Answers until the process ends; returns the address. With a `cdn`, large files are there.
fn serve(state: Arc<Mutex<State>>, cdn: Option<String>) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = format!("http://{}", listener.local_addr().unwrap());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let (state, cdn) = (state.clone(), cdn.clone());
            thread::spawn(move || answer(stream, &state, cdn.as_deref()));
        }
    });
    address
}

fn answer(mut stream: TcpStream, state: &Mutex<State>, cdn: Option<&str>) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut reader = BufReader::new(stream.try_clone().ok()?);
    let mut lines = Vec::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).ok()?;
        match line.trim_end() {
            "" => break,
            line => lines.push(line.to_string()),
        }
    }
    let request = lines.first()?.clone();
    let header = |name: &str| {
        let start = format!("{name}: ");
        lines
            .iter()
            .find(|line| line.to_lowercase().starts_with(&start))
            .map(|line| line[start.len()..].to_string())
    };
    let (method, path) = request.trim_end_matches(" HTTP/1.1").split_once(' ')?;
    let from = header("range")
        .and_then(|text| text.strip_prefix("bytes=")?.strip_suffix('-')?.parse::<usize>().ok());
    let act = {
        let mut state = state.lock().unwrap();
        let found =
            state.acts.iter_mut().find(|(part, _, times)| request.contains(part.as_str()) && *times > 0);
        found.map(|(_, act, times)| {
            *times -= 1;
            act.clone()
        })
    };
    let (head, body) = match &act {
        Some(Act::Status(status, code)) => {
            (format!("HTTP/1.1 {status} X\r\nX-Error-Code: {code}\r\n"), Vec::new())
        }
        _ => {
            let from = from.filter(|_| !matches!(act, Some(Act::IgnoreRange)));
            respond(&state.lock().unwrap(), path, from, cdn)
        }
    };
    let body = if matches!(act, Some(Act::Garbage)) { vec![b'!'; body.len()] } else { body };
    let sent = match act {
        _ if method == "HEAD" => 0,
        Some(Act::Cut(at) | Act::Stall(at)) => at.min(body.len()),
        _ => body.len(),
    };
    let token = header("authorization").is_some();
    state.lock().unwrap().seen.push(Seen { line: request.clone(), token, served: sent });
    write!(stream, "{head}Content-Length: {}\r\nConnection: close\r\n\r\n", body.len()).ok()?;
    stream.write_all(&body[..sent]).ok()?;
    if let Some(Act::Stall(_)) = act {
        thread::sleep(Duration::from_secs(3));
    }
    Some(())
}

/// The right answer: head (without a length) and body.
fn respond(state: &State, path: &str, from: Option<usize>, cdn: Option<&str>) -> (String, Vec<u8>) {
    let none = || ("HTTP/1.1 404 X\r\nX-Error-Code: EntryNotFound\r\n".to_string(), Vec::new());
    if path.starts_with("/api/models/org/name/revision/") {
        let names: Vec<_> = state.files.keys().map(|name| serde_json::json!({ "rfilename": name })).collect();
        let json = serde_json::json!({ "sha": state.commit, "siblings": names });
        return ("HTTP/1.1 200 OK\r\n".into(), json.to_string().into_bytes());
    }
    let name = match path
        .strip_prefix("/cdn/")
        .or_else(|| path.strip_prefix("/org/name/resolve/")?.split_once('/').map(|(_, name)| name))
    {
        Some(name) => name,
        None => return none(),
    };
    let Some(bytes) = state.files.get(name) else { return none() };
    let large = name.ends_with(".gguf") || name.ends_with(".safetensors");
    let mut head = format!("X-Repo-Commit: {}\r\n", state.commit);
    if let (true, Some(cdn)) = (large, cdn) {
        let size = bytes.len();
        head +=
            &format!("X-Linked-Etag: \"{}\"\r\nX-Linked-Size: {size}\r\nETag: \"other\"\r\n", sha256(bytes));
        return (format!("HTTP/1.1 302 Found\r\n{head}Location: {cdn}/cdn/{name}\r\n"), b"moved".to_vec());
    }
    head += &format!("ETag: W/\"e{}\"\r\n", &sha256(bytes)[..39]);
    match from {
        Some(from) if from < bytes.len() => {
            let (last, size) = (bytes.len() - 1, bytes.len());
            (
                format!("HTTP/1.1 206 X\r\n{head}Content-Range: bytes {from}-{last}/{size}\r\n"),
                bytes[from..].to_vec(),
            )
        }
        Some(_) => ("HTTP/1.1 416 X\r\n".into(), Vec::new()),
        None => (format!("HTTP/1.1 200 OK\r\n{head}"), bytes.clone()),
    }
}

fn sha256(bytes: &[u8]) -> String {
    format!("{:x}", Sha256::digest(bytes))
}

/// Content that is no repetition of itself, so that a wrong offset shows.
fn content(count: usize) -> Vec<u8> {
    let numbers = (0..count as u64 / 8).flat_map(|i| (i.wrapping_mul(0x9E37_79B9_7F4A_7C15)).to_le_bytes());
    b"GGUF".iter().copied().chain(numbers).collect()
}

/// Counts, and cancels once so many bytes have arrived.
struct Watch {
    bytes: AtomicU64,
    open: AtomicU64,
    limit: u64,
    now: AtomicBool,
}

impl Watch {
    fn stop_after(limit: u64) -> Arc<Watch> {
        Arc::new(Watch { bytes: 0.into(), open: 0.into(), limit, now: false.into() })
    }
}

impl Progress for Watch {
    fn start(&self, _: &str, _: Option<u64>) {
        self.open.fetch_add(1, Ordering::SeqCst);
    }
    fn advance(&self, bytes: u64) {
        self.bytes.fetch_add(bytes, Ordering::SeqCst);
    }
    fn finish(&self) {
        self.open.fetch_sub(1, Ordering::SeqCst);
    }
    fn cancelled(&self) -> bool {
        self.now.load(Ordering::SeqCst) || self.bytes.load(Ordering::SeqCst) > self.limit
    }
}

/// Names and contents.
type Files<'a> = &'a [(&'a str, &'a [u8])];

const SMALL: Files = &[
    ("config.json", b"{}"),
    ("tokenizer.json", b"{\"t\":1}"),
    ("tokenizer_config.json", b"{\"c\":1}"),
    ("1_Pooling/config.json", b"{\"p\":1}"),
    ("additional_chat_templates/rag.jinja", b"r"),
    ("pytorch_model.bin", b"pickle"),
    ("modeling.py", b"code"),
    (".gitattributes", b"x"),
];

fn safetensors() -> Hub {
    let hub = Hub::new(SMALL);
    hub.state.lock().unwrap().files.insert("model.safetensors".into(), content(300_000));
    hub
}

fn gguf(bytes: &[u8]) -> Hub {
    Hub::new(&[("m.Q4_0.gguf", bytes), ("README.md", b"hello")])
}

// ---------------------------------------------------------------- the hub's tests

#[test]
fn a_repository_is_fetched_once_and_lies_in_the_standard_layout() {
    let hub = safetensors();
    let env = hub.env(&[("HF_TOKEN", "secret")]);
    let found = locate_in(&env, "org/name", &HubOptions::default()).unwrap();
    assert_eq!((found.name.as_str(), found.revision.as_deref()), ("org/name", Some(OLD)));
    assert_eq!(found.path, hub.cache().join("snapshots").join(OLD));
    for (name, bytes) in &hub.state.lock().unwrap().files {
        let wanted = !name.ends_with(".bin") && !name.ends_with(".py") && !name.starts_with('.');
        assert_eq!(fs::read(found.path.join(name)).ok().as_ref(), wanted.then_some(bytes), "{name}");
    }
    assert_eq!(fs::read_to_string(hub.cache().join("refs/main")).unwrap(), OLD);
    assert!(hub.cache().join("blobs").join(sha256(&content(300_000))).is_file());
    let seen = hub.seen();
    assert!(seen.iter().any(|seen| seen.line.contains("/cdn/")), "{seen:?}");
    for seen in seen {
        assert_eq!(
            seen.token,
            !seen.line.contains("/cdn/"),
            "the token belongs to the hub only: {}",
            seen.line
        );
    }
    // From here on nothing is asked, also when main has moved, and nothing is written.
    hub.state.lock().unwrap().commit = NEW.into();
    let before = tree(hub.folder.path());
    for env in [hub.env(&[]), hub.env(&[("HF_HUB_OFFLINE", "1")])] {
        assert_eq!(locate_in(&env, "org/name", &HubOptions::default()).unwrap(), found);
    }
    assert!(hub.seen().is_empty());
    assert_eq!(tree(hub.folder.path()), before);
    // A revision asks for itself; the blobs that did not change are not fetched again.
    let options = HubOptions { revision: Some("refs/pr/7".into()), ..HubOptions::default() };
    assert_eq!(locate_in(&env, "org/name", &options).unwrap().revision.as_deref(), Some(NEW));
    assert_eq!(hub.served("/cdn/"), 0);
    assert!(hub.seen().iter().any(|seen| seen.line.contains("/revision/refs%2Fpr%2F7 ")));
}

#[test]
fn the_modules_of_an_embedding_model_come_with_it() {
    let modules = br#"[{"path": "", "type": "x.Transformer"}, {"path": "1_Pooling", "type": "x.Pooling"},
        {"path": "2_Dense", "type": "x.Dense"}, {"path": "../3_Dense", "type": "x.Dense"}]"#;
    let more: Files = &[
        ("modules.json", modules),
        ("config_sentence_transformers.json", b"{\"d\":1}"),
        ("2_Dense/config.json", b"{\"e\":1}"),
        ("2_Dense/model.safetensors", b"weights"),
        ("model.safetensors", b"more weights"),
        ("2_Dense/pytorch_model.bin", b"another pickle"),
        ("4_Other/config.json", b"{\"o\":1}"),
    ];
    let hub = Hub::new(&[SMALL, more].concat());
    let env = hub.env(&[]);
    let found = locate_in(&env, "org/name", &HubOptions::default()).unwrap();
    for (name, bytes) in more {
        let wanted = !name.ends_with(".bin") && !name.starts_with("4_");
        assert_eq!(fs::read(found.path.join(name)).ok().as_deref(), wanted.then_some(*bytes), "{name}");
    }
    // All of it is known to be there; where a module is missing, it is fetched.
    hub.seen();
    assert_eq!(locate_in(&env, "org/name", &HubOptions::default()).unwrap(), found);
    assert!(hub.seen().is_empty());
    fs::remove_file(found.path.join("2_Dense/model.safetensors")).unwrap();
    locate_in(&env, "org/name", &HubOptions::default()).unwrap();
    assert!(found.path.join("2_Dense/model.safetensors").is_file());
}

/// Every path below a folder.
fn tree(folder: &Path) -> Vec<PathBuf> {
    let mut all = Vec::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        all.push(entry.path());
        if entry.file_type().unwrap().is_dir() {
            all.extend(tree(&entry.path()));
        }
    }
    all.sort();
    all
}

#[test]
fn a_cut_connection_goes_on_where_it_was() {
    let bytes = content(900_000);
    let hub = gguf(&bytes);
    hub.act("GET /cdn/", Act::Cut(400_000), 1).act("GET /cdn/", Act::Cut(100_000), 1);
    hub.act("GET /cdn/", Act::Status(503, ""), 1);
    let found = hub.locate("org/name").unwrap();
    assert_eq!(fs::read(&found.path).unwrap(), bytes);
    assert_eq!(found.sha256.as_deref(), Some(sha256(&bytes).as_str()));
    assert_eq!(hub.served("/cdn/"), bytes.len(), "no byte came twice: {:?}", hub.seen());
}

#[test]
fn a_cancelled_download_is_continued_by_the_next() {
    let bytes = content(4 << 20);
    let hub = gguf(&bytes);
    hub.act("GET /cdn/", Act::Stall(2 << 20), 1);
    let watch = Watch::stop_after(1 << 20);
    let options = HubOptions { progress: watch.clone(), ..HubOptions::default() };
    let error = locate_in(&hub.env(&[]), "org/name", &options).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Cancelled, "{error:?}");
    assert_eq!(watch.open.load(Ordering::SeqCst), 0, "each start has a finish");
    let part = hub.cache().join("blobs").join(format!("{}.incomplete", sha256(&bytes)));
    let kept = fs::metadata(&part).unwrap().len() as usize;
    assert!(kept > 1 << 20 && kept < bytes.len(), "{kept}");
    hub.seen();
    assert_eq!(fs::read(hub.locate("org/name").unwrap().path).unwrap(), bytes);
    assert_eq!(hub.served("/cdn/"), bytes.len() - kept);
    assert!(!part.exists());
}

#[test]
fn cancelling_does_not_wait_for_a_silent_server() {
    let hub = gguf(&content(1 << 20));
    hub.act("GET /cdn/", Act::Stall(1000), 9);
    let watch = Watch::stop_after(u64::MAX);
    let options = HubOptions { progress: watch.clone(), ..HubOptions::default() };
    let env = hub.env(&[]);
    let job = thread::spawn(move || locate_in(&env, "org/name", &options));
    thread::sleep(Duration::from_millis(400));
    let start = Instant::now();
    watch.now.store(true, Ordering::SeqCst);
    assert_eq!(job.join().unwrap().unwrap_err().kind(), ErrorKind::Cancelled);
    assert!(start.elapsed() < Duration::from_secs(2), "{:?}", start.elapsed());
}

#[test]
fn what_a_killed_download_left_is_checked() {
    let bytes = content(200_000);
    let rows: [(&str, Vec<u8>); 4] = [
        ("a good half", bytes[..100_000].to_vec()),
        ("a bad half", vec![b'?'; 100_000]),
        ("all of it", bytes.clone()),
        ("too much", content(300_000)),
    ];
    for (what, left) in rows {
        for act in [Act::IgnoreRange, Act::Status(416, "")] {
            let hub = gguf(&bytes);
            hub.act("GET /cdn/", act, 1);
            let blobs = hub.cache().join("blobs");
            fs::create_dir_all(&blobs).unwrap();
            fs::write(blobs.join(format!("{}.incomplete", sha256(&bytes))), &left).unwrap();
            let found = hub.locate("org/name").expect(what);
            assert_eq!(fs::read(found.path).unwrap(), bytes, "{what}");
        }
    }
}

#[test]
fn content_with_the_wrong_hash_is_never_kept() {
    let bytes = content(200_000);
    let hub = gguf(&bytes);
    hub.act("GET /cdn/", Act::Garbage, 1);
    assert_eq!(fs::read(hub.locate("org/name").unwrap().path).unwrap(), bytes, "a second try is allowed");

    let hub = gguf(&bytes);
    hub.act("GET /cdn/", Act::Garbage, 9);
    let error = hub.error("org/name");
    assert_eq!(error.kind(), ErrorKind::Hub);
    for word in ["org/name", "m.Q4_0.gguf", "SHA-256", &sha256(&bytes)] {
        assert!(error.message().contains(word), "{error}");
    }
    assert!(!hub.cache().join("snapshots").exists() && !hub.cache().join("refs").exists());
    assert!(!hub.cache().join("blobs").join(sha256(&bytes)).exists());
}

#[test]
fn two_at_once_fetch_once() {
    let bytes = content(2 << 20);
    let hub = gguf(&bytes);
    thread::scope(|scope| {
        let jobs: Vec<_> = (0..4).map(|_| scope.spawn(|| hub.locate("org/name").unwrap().path)).collect();
        for job in jobs {
            assert_eq!(fs::read(job.join().unwrap()).unwrap(), bytes);
        }
    });
    assert_eq!(hub.served("/cdn/"), bytes.len());
}

#[test]
fn refusals_name_repository_file_cause_and_remedy() {
    let rows: &[(&str, Act, &str, &[&str])] = &[
        (
            "GET /api",
            Act::Status(401, "GatedRepo"),
            "org/name",
            &["org/name", "gated", "accept its terms", "HF_TOKEN"],
        ),
        (
            "GET /api",
            Act::Status(401, "RepoNotFound"),
            "org/name",
            &["no such repository", "private", "HF_TOKEN"],
        ),
        ("GET /api", Act::Status(404, "RevisionNotFound"), "org/name", &["no revision \"main\""]),
        ("GET /api", Act::Status(403, ""), "org/name", &["access is refused", "HF_TOKEN"]),
        ("GET /api", Act::Status(429, ""), "org/name", &["too many requests", "HF_TOKEN"]),
        ("GET /api", Act::Status(500, ""), "org/name", &["status 500", "5 times", "HF_HUB_OFFLINE"]),
        ("GET /api", Act::Garbage, "org/name", &["not JSON", "HF_ENDPOINT"]),
        ("HEAD /org", Act::Status(403, "GatedRepo"), "org/name", &["file m.Q4_0.gguf", "gated"]),
        ("GET /cdn", Act::Status(403, ""), "org/name", &["file m.Q4_0.gguf", "access is refused"]),
        ("GET /cdn", Act::Cut(0), "org/name", &["file m.Q4_0.gguf", "cannot be reached"]),
        ("none", Act::Garbage, "org/name/sub/no.gguf", &["file sub/no.gguf", "no such file", "/tree/main"]),
    ];
    thread::scope(|scope| {
        for (part, act, source, words) in rows {
            scope.spawn(move || {
                let hub = gguf(&content(5000));
                let error = hub.act(part, act.clone(), 99).error(source);
                assert_eq!(error.kind(), ErrorKind::Hub, "{part} {act:?}");
                let missing: Vec<_> = words.iter().filter(|word| !error.message().contains(**word)).collect();
                assert!(missing.is_empty(), "{part} {act:?}: {missing:?} not in: {error}");
            });
        }
    });
    // A token that is refused is another case than none.
    let hub = gguf(&content(5000));
    hub.act("GET /api", Act::Status(403, ""), 9);
    let env = hub.env(&[("HF_TOKEN", "secret")]);
    let error = locate_in(&env, "org/name", &HubOptions::default()).unwrap_err();
    assert!(
        error.message().contains("token that was sent") && !error.message().contains("secret"),
        "{error}"
    );
}

#[test]
fn passing_failures_are_waited_out() {
    for status in [429, 500, 502, 503, 504] {
        let hub = gguf(&content(5000));
        hub.act("GET /api", Act::Status(status, ""), 1).act("HEAD /org", Act::Status(status, ""), 1);
        hub.locate("org/name").expect("the third try works");
    }
}

#[test]
fn no_network() {
    let hub = safetensors();
    let offline = hub.env(&[("HF_HUB_OFFLINE", "1")]);
    let error = locate_in(&offline, "org/name", &HubOptions::default()).unwrap_err();
    for word in ["org/name", "HF_HUB_OFFLINE", "hf download org/name --revision main", "not in the cache"] {
        assert!(error.message().contains(word), "{error}");
    }
    // The caller's word goes before the environment's.
    let options = HubOptions { offline: Some(false), ..HubOptions::default() };
    locate_in(&offline, "org/name", &options).unwrap();
    hub.seen();
    // One optional file is unknown: a server that cannot be reached is no reason to fail.
    let absent = hub.cache().join(".no_exist").join(OLD).join("chat_template.jinja");
    fs::remove_file(&absent).unwrap();
    let nobody = hub.env(&[("HF_ENDPOINT", "http://127.0.0.1:9")]);
    locate_in(&nobody, "org/name", &HubOptions::default()).unwrap();
    // Nor is a cache that cannot be written (a file where the folder should be stops root as well).
    fs::remove_dir_all(hub.cache().join(".no_exist")).unwrap();
    fs::write(hub.cache().join(".no_exist"), b"").unwrap();
    hub.locate("org/name").unwrap();
    // Nor is a repository that is closed or gone meanwhile.
    hub.act("GET /api", Act::Status(403, "GatedRepo"), 1).act(
        "GET /api",
        Act::Status(404, "RepoNotFound"),
        2,
    );
    (0..2).for_each(|_| drop(hub.locate("org/name").unwrap()));
    // But a needed file that is missing is one, and the reason is told at once: nobody will listen in a
    // second either.
    fs::remove_file(hub.cache().join("snapshots").join(OLD).join("config.json")).unwrap();
    let start = Instant::now();
    let error = locate_in(&nobody, "org/name", &HubOptions::default()).unwrap_err();
    assert!(error.message().contains("refused") && error.message().contains("127.0.0.1:9"), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    let error = locate_in(&offline, "org/name", &HubOptions::default()).unwrap_err();
    assert!(error.message().contains("missing config.json"), "{error}");
    // With the network only that file is asked for.
    hub.locate("org/name").unwrap();
    assert_eq!(hub.served("/cdn/"), 0);
}

#[test]
fn ggufs_of_a_repository() {
    let (a, b) = (content(2000), content(3000));
    let files = [("sub/b.gguf", &*b), ("s-00001-of-00002.gguf", &a), ("s-00002-of-00002.gguf", &b)];
    let hub = Hub::new(&files);
    let error = hub.error("org/name");
    let words = "2 GGUF models; name one (org/name/FILE.gguf): s-00001-of-00002.gguf, sub/b.gguf";
    assert!(error.message().contains(words), "{error}");
    let found = hub.locate("org/name/sub/b.gguf").unwrap();
    assert_eq!((fs::read(&found.path).unwrap(), found.name.as_str()), (b.clone(), "org/name/sub/b.gguf"));
    // One that is cached does not make the choice for a repository with several.
    assert!(hub.error("org/name").message().contains("2 GGUF models"));
    let found = hub.locate("org/name/s-00001-of-00002.gguf").unwrap();
    assert_eq!(fs::read(found.path.with_file_name("s-00002-of-00002.gguf")).unwrap(), b);
    hub.seen();
    hub.locate("org/name/s-00001-of-00002.gguf").unwrap();
    assert!(hub.seen().is_empty());
}

#[test]
fn ggufs_in_capitals() {
    let hub = Hub::new(&[
        ("M-00001-of-00002.GGUF", b"first"),
        ("M-00002-of-00002.GGUF", b"second"),
        ("mmproj.GGUF", b"x"),
    ]);
    for source in ["org/name", "org/name/M-00001-of-00002.GGUF"] {
        let found = hub.locate(source).unwrap();
        assert_eq!(fs::read(&found.path).unwrap(), b"first", "{source}");
        assert_eq!(
            fs::read(found.path.with_file_name("M-00002-of-00002.GGUF")).unwrap(),
            b"second",
            "{source}"
        );
    }
}

#[test]
fn shards_come_from_the_index_and_stay_inside() {
    let index = |file: &str| format!(r#"{{"weight_map":{{"a":"x.safetensors","b":"{file}"}}}}"#).into_bytes();
    for (file, word) in
        [("y.safetensors", ""), ("../y.safetensors", "weight_map"), ("z.safetensors", "does not have")]
    {
        let hub = Hub::new(SMALL);
        let mut state = hub.state.lock().unwrap();
        state.files.insert("model.safetensors.index.json".into(), index(file));
        state.files.insert("x.safetensors".into(), content(100));
        state.files.insert("y.safetensors".into(), content(200));
        state.files.insert("../y.safetensors".into(), content(200));
        drop(state);
        match hub.locate("org/name") {
            Ok(found) => assert!(word.is_empty() && found.path.join("y.safetensors").is_file()),
            Err(error) => assert!(!word.is_empty() && error.message().contains(word), "{file}: {error}"),
        }
        let outside = tree(hub.folder.path())
            .into_iter()
            .filter(|path| !path.starts_with(hub.folder.path().join("hub")));
        assert_eq!(outside.count(), 0);
    }
}

#[test]
fn repositories_without_a_model_say_why() {
    let rows: &[(Files, &str)] = &[
        (&[("pytorch_model.bin", b"x"), ("config.json", b"{}")], "pickles"),
        (&[("adapter_model.safetensors", b"x")], "adapter"),
        (&[("adapter_model.bin", b"x"), ("adapter_config.json", b"{}")], "it is an adapter"),
        (&[("model.safetensors", b"x"), ("config.json", b"{}")], "no tokenizer.json"),
        (&[("../m.gguf", b"x")], "neither"),
    ];
    for (files, word) in rows {
        let error = Hub::new(files).error("org/name");
        assert!(error.kind() == ErrorKind::UnsupportedModel && error.message().contains(word), "{error:?}");
    }
}

#[test]
fn a_quantized_checkpoint_is_refused_before_its_weights_are_fetched() {
    let hub = safetensors();
    let config =
        br#"{"quantization_config": {"quant_method": "hqq", "bits": 4, "group_size": 128}, "x": NaN}"#;
    hub.state.lock().unwrap().files.insert("config.json".into(), config.to_vec());
    let error = hub.error("org/name");
    assert_eq!(error.kind(), ErrorKind::UnsupportedModel, "{error:?}");
    assert!(
        error.message().starts_with("org/name: ") && error.message().contains("is quantized with HQQ"),
        "{error}"
    );
    assert_eq!(hub.served("model.safetensors"), 0);
}

#[test]
fn an_adapter_is_two_files_of_a_repository() {
    let files = [
        ("README.md", &b"x"[..]),
        ("adapter_config.json", b"{}"),
        ("adapter_model.safetensors", b"numbers"),
        ("optimizer.pt", b"a pickle"),
    ];
    let hub = Hub::new(&files);
    let locate = || locate_adapter_in(&hub.env(&[]), "org/name", &HubOptions::default());
    let folder = locate().unwrap();
    assert_eq!(fs::read(folder.join("adapter_model.safetensors")).unwrap(), b"numbers");
    let fetched = |part: &str| hub.served(part);
    assert_eq!((fetched("optimizer.pt"), fetched("README.md")), (0, 0), "nothing else is fetched");
    hub.seen();
    assert_eq!(locate().unwrap(), folder);
    assert!(hub.seen().is_empty(), "what is in the cache is not asked for again");
    let offline = HubOptions { offline: Some(true), ..HubOptions::default() };
    let other = Hub::new(&[("adapter_config.json", b"{}"), ("adapter_model.bin", b"a pickle")]);
    let error = locate_adapter_in(&other.env(&[]), "org/name", &HubOptions::default()).unwrap_err();
    assert!(
        error.kind() == ErrorKind::UnsupportedModel && error.message().contains("is a pickle"),
        "{error:?}"
    );
    let error = locate_adapter_in(&other.env(&[]), "org/name", &offline).unwrap_err();
    assert!(error.message().contains("offline=True forbids"), "{error}");
    let pinned = HubOptions { revision: Some("main".into()), ..HubOptions::default() };
    let error = locate_adapter_in(&hub.env(&[]), &folder, &pinned).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
}

#[test]
fn arguments_are_checked() {
    let hub = gguf(&content(100));
    let rows = [("org/name", "../../x", "revision"), ("org/name", "", "revision")];
    for (source, revision, word) in rows {
        let options = HubOptions { revision: Some(revision.into()), ..HubOptions::default() };
        let error = locate_in(&hub.env(&[]), source, &options).unwrap_err();
        assert!(error.kind() == ErrorKind::InvalidRequest && error.message().contains(word), "{error:?}");
    }
    assert!(hub.seen().is_empty() && tree(hub.folder.path()).is_empty());
}

#[test]
fn paths() {
    let folder = tempfile::tempdir().unwrap();
    let make = |name: &str| {
        let path = folder.path().join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, b"x").unwrap();
    };
    for name in ["st/model.safetensors", "one/m.gguf", "two/a.gguf", "two/b.gguf", "none/x.txt"] {
        make(name);
    }
    let env = Env::fixed([("HOME", folder.path().to_str().unwrap())]);
    let of = |text: &str| match locate_in(&env, text, &HubOptions::default()) {
        Ok(found) => format!("{} {}", found.name, found.path.strip_prefix(folder.path()).unwrap().display()),
        Err(error) => format!("{:?}: {}", error.kind(), error.message()),
    };
    assert_eq!(of("~/st"), "st st");
    assert_eq!(of("~/one"), "one one/m.gguf");
    assert_eq!(of("~/one/m.gguf"), "m one/m.gguf");
    assert!(of("~/two").starts_with("ModelFile") && of("~/two").contains("a.gguf, b.gguf"));
    assert!(of("~/none").contains("neither"));
    assert!(of("~/one/n.gguf").contains("m.gguf"));
}
