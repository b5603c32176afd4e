//! One file from the hub into the cache: resumed, checked, and visible only when it is whole.
//!
//! The crate `hf-hub` 0.5 keeps a partial file too, but it appends to it whatever the server answers (a `200`
//! after a resume gives a corrupt file), checks no hash, and cannot be cancelled; so the transfer is ours.

use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::cache::{RepoCache, is_commit};
use super::disk::{self, Lock, io_error};
use super::http::{Fault, Head, Method};
use super::progress::Bar;
use super::remote::{Refusal, Remote, Tries, is_passing, retry_after};
use crate::error::{Error, Result};

/// A file that is in the cache now.
pub(super) struct Fetched {
    pub(super) path: PathBuf,
    /// The commit that it belongs to.
    pub(super) commit: String,
}

/// What the hub says of a file before it sends it.
struct Described {
    commit: String,
    /// Names the blob. For large files it is the SHA-256 of the content.
    etag: String,
    bytes: Option<u64>,
}

impl Described {
    fn sha256(&self) -> Option<&str> {
        is_sha256(&self.etag).then_some(self.etag.as_str())
    }
}

/// Gets `name` as it is at `revision`, from the network unless its blob is there already.
pub(super) fn fetch(
    remote: &Remote,
    cache: &RepoCache,
    revision: &str,
    name: &str,
) -> Result<Fetched, Refusal> {
    let url = remote.file_url(revision, name);
    let head = remote.send(Method::Head, &url, revision, Some(name))?.head;
    let described = describe(&head, revision).map_err(|error| error.context(remote.what(Some(name))))?;
    let what = format!("{name} ({})", remote.repo);
    let blob = cache.blob(&described.etag);
    if !blob.is_file() {
        let _lock = Lock::wait(&cache.lock(&described.etag), &format!("fetching {what}"), remote.progress)?;
        // Whoever had the lock may have brought it.
        if !blob.is_file() {
            let transfer = Transfer { remote, url: &url, revision, name, described: &described };
            transfer.run(&cache.incomplete(&described.etag), &blob)?;
        }
    }
    let path = cache.link(&described.commit, name, &described.etag)?;
    Ok(Fetched { path, commit: described.commit })
}

fn describe(head: &Head, revision: &str) -> Result<Described> {
    let bad = |field: &str| Error::hub(format!("the server sends no usable {field}; is HF_ENDPOINT a hub?"));
    let commit = match is_commit(revision) {
        true => revision,
        false => {
            head.header("x-repo-commit").filter(|text| is_commit(text)).ok_or_else(|| bad("X-Repo-Commit"))?
        }
    };
    let etag = head.header("x-linked-etag").or_else(|| head.header("etag")).unwrap_or_default();
    let etag = etag.strip_prefix("W/").unwrap_or(etag).trim_matches('"');
    // It becomes a file name.
    let plain = |b: u8| b.is_ascii_alphanumeric() || b == b'-' || b == b'_';
    if etag.is_empty() || etag.len() > 128 || !etag.bytes().all(plain) {
        return Err(bad("ETag"));
    }
    let length = match head.status {
        200..=299 => head.own_header("content-length"),
        // The length of a redirect is that of its own body.
        _ => None,
    };
    let bytes = head.header("x-linked-size").or(length).and_then(|text| text.parse().ok());
    Ok(Described { commit: commit.to_string(), etag: etag.to_string(), bytes })
}

pub(super) fn is_sha256(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// What one connection came to.
enum Attempt {
    Done,
    /// Worth another connection: why, and how long the server asks to wait.
    Again(String, Option<std::time::Duration>),
}

struct Transfer<'a> {
    remote: &'a Remote<'a>,
    url: &'a str,
    revision: &'a str,
    name: &'a str,
    described: &'a Described,
}

impl Transfer<'_> {
    fn run(&self, incomplete: &Path, blob: &Path) -> Result<(), Refusal> {
        // Only content that a hash will check is continued: half a file of yesterday may be another file.
        let keep = self.described.bytes.filter(|_| self.described.sha256().is_some());
        let mut partial = Partial::open(incomplete, keep)?;
        let mut spoiled = false;
        loop {
            self.fill(&mut partial)?;
            let hash = partial.hash();
            match self.described.sha256() {
                Some(expected) if expected != hash => {
                    partial.restart()?;
                    if spoiled {
                        return Err(self.wrong_hash(expected, &hash).into());
                    }
                    spoiled = true;
                }
                _ => break,
            }
        }
        partial.finish(blob)?;
        Ok(())
    }

    /// Connects until the file has its length.
    fn fill(&self, partial: &mut Partial) -> Result<(), Refusal> {
        let mut tries = Tries::new();
        loop {
            let before = partial.len;
            let (reason, wait) = match self.connect(partial)? {
                Attempt::Done => return Ok(()),
                Attempt::Again(reason, wait) => (reason, wait),
            };
            if partial.len > before {
                tries.reset();
            }
            if !tries.wait(wait, self.remote.progress) {
                return Err(self.remote.fault(Fault::Transient(reason), Some(self.name)));
            }
        }
    }

    fn connect(&self, partial: &mut Partial) -> Result<Attempt, Refusal> {
        if self.described.bytes == Some(partial.len) {
            return Ok(Attempt::Done);
        }
        let from = (partial.len > 0).then_some(partial.len);
        let progress = self.remote.progress;
        let mut reply = match self.remote.http.send(Method::Get, self.url, from, progress) {
            Ok(reply) => reply,
            Err(Fault::Transient(reason)) => return Ok(Attempt::Again(reason, None)),
            Err(fault) => return Err(self.remote.fault(fault, Some(self.name))),
        };
        match reply.head.status {
            206 if continues(&reply.head, partial.len, self.described.bytes) => {}
            200 => partial.restart()?,
            206 | 416 => {
                partial.restart()?;
                return Ok(Attempt::Again("the server cannot continue the file".into(), None));
            }
            status if is_passing(status) => {
                return Ok(Attempt::Again(format!("status {status}"), retry_after(&reply.head)));
            }
            _ => return Err(self.remote.refuse(&reply.head, self.revision, Some(self.name))),
        }
        self.receive(partial, &mut reply)
    }

    fn receive(&self, partial: &mut Partial, reply: &mut super::http::Reply) -> Result<Attempt, Refusal> {
        let limit = self.described.bytes;
        let bar = Bar::start(self.remote.progress, &format!("{} ({})", self.name, self.remote.repo), limit);
        bar.advance(partial.len);
        loop {
            let piece = match reply.next(self.remote.progress) {
                Ok(Some(piece)) => piece,
                Ok(None) if limit.is_none_or(|bytes| bytes == partial.len) => return Ok(Attempt::Done),
                Ok(None) => {
                    return Ok(Attempt::Again(
                        format!("the file broke off after {} bytes", partial.len),
                        None,
                    ));
                }
                Err(Fault::Transient(reason)) => return Ok(Attempt::Again(reason, None)),
                Err(fault) => return Err(self.remote.fault(fault, Some(self.name))),
            };
            if limit.is_some_and(|bytes| partial.len + piece.len() as u64 > bytes) {
                partial.restart()?;
                return Ok(Attempt::Again("the server sent more than the length it gave".into(), None));
            }
            partial.push(&piece)?;
            bar.advance(piece.len() as u64);
        }
    }

    fn wrong_hash(&self, expected: &str, found: &str) -> Error {
        Error::hub(format!(
            "{}: the content that arrived has SHA-256 {found}, twice, but the hub says {expected}; nothing was kept. \
             A proxy or mirror may be changing it",
            self.remote.what(Some(self.name))
        ))
    }
}

/// Whether a `206` begins where our file ends, and is of a file of the same length.
fn continues(head: &Head, from: u64, bytes: Option<u64>) -> bool {
    let range = head.own_header("content-range").and_then(|text| text.strip_prefix("bytes "));
    let Some((start, rest)) = range.and_then(|text| text.split_once('-')) else { return false };
    let total = rest.split_once('/').and_then(|(_, total)| total.parse::<u64>().ok());
    start.parse() == Ok(from) && (total.is_none() || total == bytes)
}

/// A file on its way, and the hash of what is in it.
struct Partial {
    path: PathBuf,
    file: File,
    hasher: Sha256,
    len: u64,
}

impl Partial {
    /// Opens what an earlier transfer left, if it may be continued up to `keep` bytes; else an empty file.
    fn open(path: &Path, keep: Option<u64>) -> Result<Partial> {
        disk::make_parent(path)?;
        let file = OpenOptions::new().read(true).write(true).create(true).truncate(keep.is_none()).open(path);
        let file = file.map_err(|error| io_error("opening", path, error))?;
        let mut partial = Partial { path: path.to_path_buf(), file, hasher: Sha256::new(), len: 0 };
        let mut buffer = vec![0; 1 << 20];
        while partial.len <= keep.unwrap_or(0) {
            match partial.file.read(&mut buffer) {
                Ok(0) => return Ok(partial),
                Ok(count) => {
                    partial.hasher.update(buffer.get(..count).unwrap_or_default());
                    partial.len += count as u64;
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(io_error("reading", path, error)),
            }
        }
        partial.restart()?;
        Ok(partial)
    }

    fn push(&mut self, bytes: &[u8]) -> Result<()> {
        self.file.write_all(bytes).map_err(|error| io_error("writing", &self.path, error))?;
        self.hasher.update(bytes);
        self.len += bytes.len() as u64;
        Ok(())
    }

    fn restart(&mut self) -> Result<()> {
        let emptied = self.file.set_len(0).and_then(|()| self.file.seek(SeekFrom::Start(0)));
        emptied.map_err(|error| io_error("emptying", &self.path, error))?;
        self.hasher = Sha256::new();
        self.len = 0;
        Ok(())
    }

    /// SHA-256 of the content so far, in hexadecimal.
    fn hash(&self) -> String {
        format!("{:x}", self.hasher.clone().finalize())
    }

    /// Puts the file in its place. On disk first: a name must never stand before its content.
    fn finish(self, blob: &Path) -> Result<()> {
        self.file.sync_all().map_err(|error| io_error("writing", &self.path, error))?;
        fs::rename(&self.path, blob).map_err(|error| io_error("placing the file", blob, error))
    }
}
