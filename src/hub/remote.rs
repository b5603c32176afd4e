//! One repository on the hub: asking again when it is worth it, and saying what is wrong when it is not.
//!
//! HTTP interface: <https://huggingface.co/docs/hub/api>, and `X-Error-Code` as `huggingface_hub` reads it.

use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;

use super::cache::is_commit;
use super::disk::{TICK, cancelled};
use super::env::Env;
use super::files::is_safe_name;
use super::http::{Fault, Head, Http, Method, Reply};
use super::progress::Progress;
use crate::error::{Error, Result};

/// Tries of one request that brings nothing. The waits between them double: 3.75 s together.
const MAX_TRIES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// What a server may ask us to wait; longer, and the person should decide.
const MAX_WAIT: Duration = Duration::from_secs(20);
/// The list of a repository's files, at most.
const MAX_LIST_BYTES: usize = 64 << 20;

/// Why the hub did not give what was asked for, as far as a caller may go on by itself.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Why {
    /// There is no such repository, revision or file, or not for us.
    Missing,
    /// Nobody answered, or only with "later".
    Unreachable,
    Other,
}

#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) why: Why,
    pub(super) error: Error,
}

impl From<Refusal> for Error {
    fn from(refusal: Refusal) -> Error {
        refusal.error
    }
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Refusal {
        Refusal { why: Why::Other, error }
    }
}

/// Counts the tries of one thing, and waits between them.
pub(super) struct Tries(u32);

impl Tries {
    pub(super) fn new() -> Tries {
        Tries(0)
    }

    /// Something arrived: a connection that breaks every hundred megabytes still gets there.
    pub(super) fn reset(&mut self) {
        self.0 = 0;
    }

    /// Waits before the next try; false when that was the last one.
    pub(super) fn wait(&mut self, asked: Option<Duration>, progress: &dyn Progress) -> bool {
        self.0 += 1;
        if self.0 >= MAX_TRIES || asked.is_some_and(|wait| wait > MAX_WAIT) {
            return false;
        }
        let until = Instant::now() + asked.unwrap_or(FIRST_WAIT * 2u32.pow(self.0 - 1));
        while Instant::now() < until && !progress.cancelled() {
            thread::sleep(TICK.min(until.saturating_duration_since(Instant::now())));
        }
        true
    }
}

/// Whether the same request may get another answer in a moment.
pub(super) fn is_passing(status: u16) -> bool {
    matches!(status, 408 | 425 | 429 | 500..=599)
}

pub(super) fn retry_after(head: &Head) -> Option<Duration> {
    head.header("retry-after")?.trim().parse().ok().map(Duration::from_secs)
}

/// A repository's files at one commit.
pub(super) struct Listing {
    pub(super) commit: String,
    pub(super) files: Vec<String>,
}

pub(super) struct Remote<'a> {
    pub(super) http: Http,
    endpoint: String,
    pub(super) repo: &'a str,
    cache: &'a Path,
    pub(super) progress: &'a dyn Progress,
}

impl<'a> Remote<'a> {
    pub(super) fn new(
        env: &Env,
        repo: &'a str,
        cache: &'a Path,
        progress: &'a dyn Progress,
    ) -> Result<Remote<'a>> {
        Ok(Remote { http: Http::new(env)?, endpoint: env.endpoint()?, repo, cache, progress })
    }

    pub(super) fn file_url(&self, revision: &str, name: &str) -> String {
        format!("{}/{}/resolve/{}/{}", self.endpoint, self.repo, escape(revision, ""), escape(name, "/"))
    }

    /// The files of a revision.
    pub(super) fn list(&self, revision: &str) -> Result<Listing, Refusal> {
        let url = format!("{}/api/models/{}/revision/{}", self.endpoint, self.repo, escape(revision, ""));
        let mut tries = Tries::new();
        loop {
            let mut reply = self.send(Method::Get, &url, revision, None)?;
            match self.read_small(&mut reply) {
                Ok(bytes) => return Ok(parse_listing(&bytes, self.repo)?),
                Err(Fault::Transient(_)) if tries.wait(None, self.progress) => {}
                Err(fault) => return Err(self.fault(fault, None)),
            }
        }
    }

    fn read_small(&self, reply: &mut Reply) -> Result<Vec<u8>, Fault> {
        let mut bytes = Vec::new();
        while let Some(piece) = reply.next(self.progress)? {
            bytes.extend_from_slice(&piece);
            if bytes.len() > MAX_LIST_BYTES {
                return Err(Fault::Permanent("the list of files is longer than 64 MiB".into()));
            }
        }
        Ok(bytes)
    }

    /// Sends until there is an answer other than "later". The answer is good (below 400), else it is refused.
    pub(super) fn send(
        &self,
        method: Method,
        url: &str,
        revision: &str,
        file: Option<&str>,
    ) -> Result<Reply, Refusal> {
        let mut tries = Tries::new();
        loop {
            match self.http.send(method, url, None, self.progress) {
                Ok(reply) if reply.head.status < 400 => return Ok(reply),
                Ok(reply) => {
                    let wait = retry_after(&reply.head);
                    if !is_passing(reply.head.status) || !tries.wait(wait, self.progress) {
                        return Err(self.refuse(&reply.head, revision, file));
                    }
                }
                Err(Fault::Transient(_)) if tries.wait(None, self.progress) => {}
                Err(fault) => return Err(self.fault(fault, file)),
            }
        }
    }

    /// What is being asked for, at the front of every message.
    pub(super) fn what(&self, file: Option<&str>) -> String {
        match file {
            Some(file) => format!("{}, file {file}", self.repo),
            None => self.repo.to_string(),
        }
    }

    pub(super) fn fault(&self, fault: Fault, file: Option<&str>) -> Refusal {
        let what = self.what(file);
        let reason = match fault {
            Fault::Cancelled => return cancelled(&format!("the download of {what}")).into(),
            Fault::Transient(reason) | Fault::Permanent(reason) => reason,
        };
        let error = Error::hub(format!(
            "{what}: {} cannot be reached: {reason}. Behind a proxy set HTTPS_PROXY, for a mirror set HF_ENDPOINT; \
             HF_HUB_OFFLINE=1 uses only what is in {}",
            self.endpoint,
            self.cache.display()
        ));
        Refusal { why: Why::Unreachable, error }
    }

    /// An answer of 400 and more, in words.
    pub(super) fn refuse(&self, head: &Head, revision: &str, file: Option<&str>) -> Refusal {
        let status = head.status;
        let code = head.header("x-error-code").unwrap_or_default();
        let why = match (status, code) {
            (401 | 403 | 404, _) | (_, "RepoNotFound" | "RevisionNotFound" | "EntryNotFound") => Why::Missing,
            _ if is_passing(status) => Why::Unreachable,
            _ => Why::Other,
        };
        let mut text = format!("{}: {}", self.what(file), self.reason(status, code, revision, file));
        if let Some(said) = head.header("x-error-message").map(printable).filter(|said| !said.is_empty()) {
            text += &format!(" (the hub says: {said})");
        }
        Refusal { why, error: Error::hub(text) }
    }

    fn reason(&self, status: u16, code: &str, revision: &str, file: Option<&str>) -> String {
        let page = format!("{}/{}", self.endpoint, self.repo);
        let token = match self.http.has_token() {
            true => "the token that was sent has no access (is it of the right account, may it read this?)",
            false => "no token was sent: set HF_TOKEN, or run `hf auth login`",
        };
        match (status, code) {
            (_, "GatedRepo") => format!("the model is gated: accept its terms at {page}; {token}"),
            (404, "EntryNotFound") => {
                format!("revision {revision:?} has no such file; see {page}/tree/{revision}")
            }
            (404, "RevisionNotFound") => format!("there is no revision {revision:?}; see {page}"),
            (404, "") if file.is_some() => {
                format!("there is no such file or revision ({revision:?}); see {page}")
            }
            (401, _) | (404, _) => {
                format!(
                    "there is no such repository, or it is private or gated; check the name at {page}; {token}"
                )
            }
            (403, _) => format!("access is refused; the model may be gated, see {page}; {token}"),
            (429, _) => format!("too many requests (429); wait a little. {token}", token = self.quota_hint()),
            (500..=599, _) => format!(
                "the hub failed (status {status}) {MAX_TRIES} times; try again later, or set HF_HUB_OFFLINE=1 to use \
                 only what is in {}",
                self.cache.display()
            ),
            _ => format!("the hub answers with status {status}"),
        }
    }

    fn quota_hint(&self) -> &'static str {
        if self.http.has_token() { "" } else { "With a token (HF_TOKEN) the limit is higher" }
    }
}

fn parse_listing(bytes: &[u8], repo: &str) -> Result<Listing> {
    let bad = |why: &str| Error::hub(format!("{repo}: the hub's list of files {why}; is HF_ENDPOINT a hub?"));
    let json: Value = serde_json::from_slice(bytes).map_err(|_| bad("is not JSON"))?;
    let commit = json.get("sha").and_then(Value::as_str).filter(|sha| is_commit(sha));
    let commit = commit.ok_or_else(|| bad("names no commit"))?.to_string();
    let files = json.get("siblings").and_then(Value::as_array).ok_or_else(|| bad("has no files"))?;
    let names = files.iter().filter_map(|file| file.get("rfilename").and_then(Value::as_str));
    // Names that leave the folder, and hidden files, are as if they were not there.
    Ok(Listing { commit, files: names.filter(|name| is_safe_name(name)).map(str::to_string).collect() })
}

/// Percent-encodes for a URL path; letters, digits, `-._~` and what is in `keep` stay.
fn escape(text: &str, keep: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || keep.as_bytes().contains(&byte) {
            out.push(char::from(byte));
        } else {
            out += &format!("%{byte:02X}");
        }
    }
    out
}

/// A server's words, short and with nothing that a terminal would obey.
fn printable(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(300).collect::<String>().trim().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn listings() {
        let sha = "a".repeat(40);
        let good = format!(
            r#"{{"sha":"{sha}","siblings":[{{"rfilename":"a.gguf"}},{{"rfilename":"../b.gguf"}},{{"rfilename":".x"}},{{}}]}}"#
        );
        let listing = parse_listing(good.as_bytes(), "o/n").unwrap();
        assert_eq!((listing.commit, listing.files), (sha.clone(), vec!["a.gguf".to_string()]));
        let no_files = format!(r#"{{"sha":"{sha}"}}"#);
        for (text, word) in
            [("<html>", "JSON"), (r#"{"sha":"../../x"}"#, "commit"), (no_files.as_str(), "no files")]
        {
            let message = parse_listing(text.as_bytes(), "o/n").err().unwrap().message().to_string();
            assert!(message.contains(word), "{text}: {message}");
        }
    }

    #[test]
    fn text_is_made_harmless() {
        assert_eq!(escape("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(escape("a b/ü?#.gguf", "/"), "a%20b/%C3%BC%3F%23.gguf");
        assert_eq!(printable("\u{1b}[31mred\r\n"), "[31mred");
    }
}
