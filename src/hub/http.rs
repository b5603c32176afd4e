//! GET and HEAD that can be left at any moment.
//!
//! A blocking socket cannot be asked "are you still wanted?", so each request runs on a thread of its own and
//! hands over what arrives through a bounded channel; the caller waits on the channel in short ticks. Leaving
//! drops the channel, and the thread ends at its next piece or at the read timeout.
//!
//! Redirects are followed here and not by the HTTP library, for two reasons: the hub describes a file
//! (`X-Linked-Etag`, `X-Repo-Commit`) on the redirect itself, and the token must not travel to another host.

use std::io::Read;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::thread;
use std::time::Duration;

use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Proxy};

use super::disk::{TICK, io_error};
use super::env::Env;
use super::progress::Progress;
use crate::error::{Error, Result};

const CHUNK: usize = 256 << 10;
const MAX_HOPS: usize = 10;

/// Why there is no answer, or no more of it.
#[derive(Debug)]
pub(super) enum Fault {
    Cancelled,
    /// The connection failed; the same request may work in a moment.
    Transient(String),
    /// It will fail again: no such host, nobody listens, a bad certificate.
    Permanent(String),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Method {
    /// The headers only; redirects to another host are not followed but described.
    Head,
    Get,
}

/// What a server said before the body. Headers of every hop, the last ones last.
#[derive(Debug)]
pub(super) struct Head {
    pub(super) status: u16,
    headers: Vec<(String, String)>,
    /// Where the last hop's headers begin.
    own: usize,
}

impl Head {
    /// The header as the last hop that sent it said it; `name` in lower case.
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        self.headers.iter().rev().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// The header, if the last hop sent it: a length belongs to one body only.
    pub(super) fn own_header(&self, name: &str) -> Option<&str> {
        let own = self.headers.get(self.own..).unwrap_or_default();
        own.iter().find(|(key, _)| key == name).map(|(_, value)| value.as_str())
    }
}

pub(super) struct Reply {
    pub(super) head: Head,
    body: Receiver<Message>,
}

enum Message {
    Head(Head),
    Data(Vec<u8>),
    End,
    Fault(Fault),
}

/// The way to one hub: connections, certificates, proxy, token.
pub(super) struct Http {
    agent: Agent,
    token: Option<String>,
}

impl Http {
    pub(super) fn new(env: &Env) -> Result<Http> {
        let timeout = env.read_timeout();
        let mut config = Agent::config_builder()
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .user_agent(concat!("tallow/", env!("CARGO_PKG_VERSION")))
            .timeout_connect(Some(Duration::from_secs(10)))
            .timeout_recv_response(Some(timeout))
            .timeout_per_read(Some(timeout));
        if matches!(env, Env::Fixed(_)) {
            config = config.proxy(None::<Proxy>);
        }
        if let Some(path) = env.ca_bundle() {
            config = config.tls_config(TlsConfig::builder().root_certs(read_roots(&path)?).build());
        }
        Ok(Http { agent: config.build().into(), token: env.token() })
    }

    /// Whether a token goes along: what an error may advise depends on it.
    pub(super) fn has_token(&self) -> bool {
        self.token.is_some()
    }

    /// Sends one request, and waits for the head of its answer.
    pub(super) fn send(
        &self,
        method: Method,
        url: &str,
        from: Option<u64>,
        progress: &dyn Progress,
    ) -> Result<Reply, Fault> {
        let (sender, body) = sync_channel(4);
        let job = Job { agent: self.agent.clone(), token: self.token.clone(), method, from, sender };
        let url = url.to_string();
        let spawned = thread::Builder::new().name("tallow-http".into()).spawn(move || job.run(url));
        spawned.map_err(|error| Fault::Permanent(format!("no thread for the transfer: {error}")))?;
        match next(&body, progress)? {
            Message::Head(head) => Ok(Reply { head, body }),
            Message::Fault(fault) => Err(fault),
            Message::Data(_) | Message::End => Err(Fault::Transient("the answer had no head".into())),
        }
    }
}

impl Reply {
    /// The next piece of the body; `None` at its end.
    pub(super) fn next(&mut self, progress: &dyn Progress) -> Result<Option<Vec<u8>>, Fault> {
        match next(&self.body, progress)? {
            Message::Data(bytes) => Ok(Some(bytes)),
            Message::Fault(fault) => Err(fault),
            Message::End | Message::Head(_) => Ok(None),
        }
    }
}

fn next(body: &Receiver<Message>, progress: &dyn Progress) -> Result<Message, Fault> {
    loop {
        // Before each piece too: a fast network never lets the wait run out.
        if progress.cancelled() {
            return Err(Fault::Cancelled);
        }
        match body.recv_timeout(TICK) {
            Ok(message) => return Ok(message),
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => {
                return Err(Fault::Transient("the transfer broke off".into()));
            }
        }
    }
}

/// One request on its thread. Every send to the channel fails once nobody listens, which ends it.
struct Job {
    agent: Agent,
    token: Option<String>,
    method: Method,
    from: Option<u64>,
    sender: SyncSender<Message>,
}

impl Job {
    fn run(self, url: String) {
        let last = match self.follow(url) {
            Ok((head, body)) => {
                if self.sender.send(Message::Head(head)).is_err() {
                    return;
                }
                self.pump(body)
            }
            Err(fault) => Message::Fault(fault),
        };
        let _ = self.sender.send(last);
    }

    fn follow(&self, mut url: String) -> Result<(Head, ureq::Body), Fault> {
        let home = authority(&url).to_string();
        let mut headers = Vec::new();
        for _ in 0..MAX_HOPS {
            let response = self.hop(&url, authority(&url) == home)?;
            let status = response.status().as_u16();
            let own = headers.len();
            for (key, value) in response.headers() {
                headers
                    .push((key.as_str().to_string(), String::from_utf8_lossy(value.as_bytes()).into_owned()));
            }
            let location = response.headers().get("location").and_then(|value| value.to_str().ok());
            let target = match (status, location) {
                (301 | 302 | 303 | 307 | 308, Some(location)) => resolve(&url, location)?,
                _ => return Ok((Head { status, headers, own }, response.into_body())),
            };
            if self.method == Method::Head && authority(&target) != home {
                return Ok((Head { status, headers, own }, response.into_body()));
            }
            url = target;
        }
        Err(Fault::Permanent(format!("more than {MAX_HOPS} redirects")))
    }

    fn hop(&self, url: &str, at_home: bool) -> Result<ureq::http::Response<ureq::Body>, Fault> {
        let mut request = match self.method {
            Method::Head => self.agent.head(url),
            Method::Get => self.agent.get(url),
        };
        if let (Some(token), true) = (&self.token, at_home) {
            request = request.header("Authorization", format!("Bearer {token}"));
        }
        if let Some(from) = self.from {
            request = request.header("Range", format!("bytes={from}-"));
        }
        request.header("Accept-Encoding", "identity").call().map_err(fault)
    }

    fn pump(&self, body: ureq::Body) -> Message {
        let mut reader = body.into_with_config().limit(u64::MAX).reader();
        loop {
            let mut bytes = vec![0; CHUNK];
            match reader.read(&mut bytes) {
                Ok(0) => return Message::End,
                Ok(count) => {
                    bytes.truncate(count);
                    if self.sender.send(Message::Data(bytes)).is_err() {
                        return Message::End;
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Message::Fault(Fault::Transient(error.to_string())),
            }
        }
    }
}

fn fault(error: ureq::Error) -> Fault {
    use std::io::ErrorKind::ConnectionRefused;
    let text = error.to_string();
    match error {
        ureq::Error::HostNotFound => Fault::Permanent("no such host, or no network".into()),
        // The resolver's own words on Linux and macOS; "temporary failure" is another one, and may pass.
        _ if text.contains("not known") => Fault::Permanent(format!("no such host, or no network ({text})")),
        ureq::Error::Io(io) if io.kind() == ConnectionRefused => {
            Fault::Permanent("the connection was refused".into())
        }
        ureq::Error::Timeout(_) | ureq::Error::Io(_) | ureq::Error::ConnectionFailed => {
            Fault::Transient(text)
        }
        ureq::Error::Protocol(_) | ureq::Error::ConnectProxyFailed(_) => Fault::Transient(text),
        ureq::Error::Rustls(_) | ureq::Error::Tls(_) => Fault::Permanent(format!(
            "{text} (behind a proxy with its own certificates, set SSL_CERT_FILE to their file)"
        )),
        _ => Fault::Permanent(text),
    }
}

/// `https://host:port`: what must stay the same for the token to go along.
fn authority(url: &str) -> &str {
    let start = url.find("://").map_or(0, |at| at + 3);
    let end = url[start..].find(['/', '?', '#']).map_or(url.len(), |at| start + at);
    &url[..end]
}

/// The address that a `Location` means, seen from `url`.
fn resolve(url: &str, location: &str) -> Result<String, Fault> {
    if location.starts_with("https://") || (location.starts_with("http://") && url.starts_with("http://")) {
        return Ok(location.to_string());
    }
    if location.starts_with("//") {
        return Ok(format!("{}:{location}", url.split(':').next().unwrap_or("https")));
    }
    if location.starts_with('/') {
        return Ok(format!("{}{location}", authority(url)));
    }
    if location.contains("://") {
        return Err(Fault::Permanent(format!("a redirect from https to {location:?} is not followed")));
    }
    let folder =
        url.split(['?', '#']).next().unwrap_or(url).rsplit_once('/').map_or(url, |(folder, _)| folder);
    Ok(format!("{folder}/{location}"))
}

fn read_roots(path: &std::path::Path) -> Result<RootCerts> {
    let bytes = std::fs::read(path).map_err(|error| io_error("reading the certificates", path, error))?;
    let certificates: Vec<Certificate<'static>> = parse_pem(&bytes)
        .filter_map(|item| match item {
            Ok(PemItem::Certificate(certificate)) => Some(certificate),
            _ => None,
        })
        .collect();
    if certificates.is_empty() {
        return Err(Error::hub(format!(
            "{} (from REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE or SSL_CERT_FILE) holds no certificate",
            path.display()
        )));
    }
    Ok(RootCerts::new_with_certs(&certificates))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_resolve() {
        let rows = [
            ("https://h/a/b", "https://c/x", Some("https://c/x")),
            ("https://h:1/a/b?q", "/x?y", Some("https://h:1/x?y")),
            ("https://h/a/b", "x", Some("https://h/a/x")),
            ("http://h/a", "//c/x", Some("http://c/x")),
            ("http://h/a", "http://c/x", Some("http://c/x")),
            ("https://h/a", "http://c/x", None),
            ("https://h/a", "file:///etc/passwd", None),
        ];
        for (url, location, expected) in rows {
            assert_eq!(resolve(url, location).ok().as_deref(), expected, "{url} -> {location}");
        }
        assert_eq!(authority("http://h:8/a?b"), "http://h:8");
        assert_ne!(authority("http://h.evil/a"), authority("http://h/a"));
    }
}
