//! A model of a hub repository: from the cache where it is there, else downloaded into it.
//!
//! **The cache goes first, without asking the network**, also for a revision that moves, such as `main`: a
//! model that loaded yesterday loads today, in the same state, with or without a network. A newer state is
//! asked for by its commit or tag (`revision=`), or by removing the model from the cache (`hf cache`).

use std::fs;
use std::path::{Path, PathBuf};

use super::cache::{Found, RepoCache, is_revision};
use super::disk::io_error;
use super::download::{fetch, is_sha256};
use super::env::Env;
use super::files::{self, ADAPTERS, CONFIG, INDEX, Kind, MODULES, OPTIONAL, TOKENIZER, WEIGHTS};
use super::progress::Progress;
use super::remote::{Listing, Refusal, Remote, Why};
use super::{HubOptions, Located};
use crate::config::{json, quantization};
use crate::error::{Context, Error, Result};

/// What is wanted of a repository.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Wanted<'a> {
    /// The model that it holds, or this file of it.
    Model(Option<&'a str>),
    Adapter,
}

pub(super) fn locate(repo: &str, wanted: Wanted<'_>, options: &HubOptions, env: &Env) -> Result<Located> {
    let revision = options.revision.as_deref().unwrap_or("main");
    if !is_revision(revision) {
        return Err(Error::invalid(format!(
            "revision {revision:?} is not the name of a branch, tag or commit"
        )));
    }
    let hub = env.hub_cache()?;
    let file = match wanted {
        Wanted::Model(file) => file,
        Wanted::Adapter => None,
    };
    let adapter = wanted == Wanted::Adapter;
    let wish = Wish { repo, file, adapter, revision, cache: RepoCache::new(&hub, repo), hub: &hub };
    let commit = wish.cache.commit(revision);
    let found = commit.as_deref().map(|commit| wish.find(commit)).transpose()?;
    match (commit, found, wish.offline(options, env)) {
        (Some(commit), Some(Found::Complete(path)), _) => Ok(wish.located(path, commit)),
        (Some(commit), Some(Found::Enough(path)), Some(_)) => Ok(wish.located(path, commit)),
        (_, found, Some(reason)) => Err(wish.not_cached(found, &reason)),
        (commit, found, None) => {
            match (wish.download(commit.as_deref(), env, &*options.progress), commit, found) {
                (Ok(located), _, _) => Ok(located),
                // Everything that is needed is here; only nobody can say whether there is more.
                (Err(refusal), Some(commit), Some(Found::Enough(path))) if refusal.why != Why::Other => {
                    Ok(wish.located(path, commit))
                }
                (Err(refusal), _, _) => Err(refusal.error),
            }
        }
    }
}

struct Wish<'a> {
    repo: &'a str,
    file: Option<&'a str>,
    adapter: bool,
    revision: &'a str,
    cache: RepoCache,
    hub: &'a Path,
}

impl Wish<'_> {
    fn find(&self, commit: &str) -> Result<Found> {
        match self.file {
            _ if self.adapter => Ok(self.find_adapter(commit)),
            Some(file) => Ok(self.cache.find_gguf(commit, file)),
            None => self.cache.find_model(commit),
        }
    }

    fn find_adapter(&self, commit: &str) -> Found {
        let is_here = |name: &&str| self.cache.file(commit, name).is_some();
        match ADAPTERS.iter().any(|files| files.iter().all(is_here)) {
            true => Found::Complete(self.cache.snapshot(commit)),
            false => Found::Missing(ADAPTERS[0].iter().map(|name| name.to_string()).collect()),
        }
    }

    fn located(&self, path: PathBuf, commit: String) -> Located {
        let name = match self.file {
            Some(file) => format!("{}/{file}", self.repo),
            None => self.repo.to_string(),
        };
        let blob = fs::read_link(&path).ok().and_then(|link| Some(link.file_name()?.to_str()?.to_string()));
        Located { path, name, revision: Some(commit), sha256: blob.filter(|blob| is_sha256(blob)) }
    }

    /// Why the network may not be asked, if so.
    fn offline(&self, options: &HubOptions, env: &Env) -> Option<String> {
        super::offline_reason(options, env)
    }

    fn not_cached(&self, found: Option<Found>, reason: &str) -> Error {
        let missing = match found {
            Some(Found::Missing(names)) if !names.is_empty() => names.join(", "),
            _ => "every file".to_string(),
        };
        let file = self.file.map(|file| format!(" {file}")).unwrap_or_default();
        Error::hub(format!(
            "{} (revision {:?}) is not in the cache {}: missing {missing}; and {reason}. With a network, run \
             `hf download {}{file} --revision {}`, or load it once",
            self.repo,
            self.revision,
            self.hub.display(),
            self.repo,
            self.revision
        ))
    }

    /// `cached` is the commit that the cache already has something of: it is completed rather than replaced.
    fn download(&self, cached: Option<&str>, env: &Env, progress: &dyn Progress) -> Result<Located, Refusal> {
        let remote = Remote::new(env, self.repo, self.hub, progress)?;
        let done = match cached {
            None => self.download_at(&remote, self.revision),
            Some(commit) => match self.download_at(&remote, commit) {
                // A commit that was squashed away: what the name means today is all there is.
                Err(refusal) if refusal.why == Why::Missing && commit != self.revision => {
                    self.download_at(&remote, self.revision)
                }
                done => done,
            },
        };
        let (path, commit) = done?;
        self.cache.set_commit(self.revision, &commit)?;
        Ok(self.located(path, commit))
    }

    fn download_at(&self, remote: &Remote, revision: &str) -> Result<(PathBuf, String), Refusal> {
        if let Some(file) = self.file {
            return self.download_gguf(remote, revision, file);
        }
        let listing = remote.list(revision)?;
        if self.adapter {
            return self.download_adapter(remote, &listing);
        }
        let names: Vec<&str> = listing.files.iter().map(String::as_str).collect();
        match files::kind(&names, self.repo, &format!("{}/FILE.gguf", self.repo))? {
            Kind::Safetensors { sharded } => self.download_safetensors(remote, &listing, sharded),
            Kind::Gguf(file) => {
                let done = self.download_gguf(remote, &listing.commit, file)?;
                for name in [WEIGHTS, INDEX] {
                    self.cache.set_absent(&listing.commit, name);
                }
                Ok(done)
            }
        }
    }

    fn download_adapter(&self, remote: &Remote, listing: &Listing) -> Result<(PathBuf, String), Refusal> {
        let has = |name: &&str| listing.files.iter().any(|file| file == name);
        let Some(files) = ADAPTERS.iter().find(|files| files.iter().all(has)) else {
            let pickled = listing.files.iter().any(|file| file == "adapter_model.bin");
            let hint = if pickled {
                "; its adapter_model.bin is a pickle, which runs code when it is read"
            } else {
                ""
            };
            return Err(Error::unsupported(format!(
                "{}: the repository holds no adapter: {}{hint}",
                self.repo,
                ADAPTERS.map(|files| files.join(" and ")).join(", or ")
            ))
            .into());
        };
        for name in files {
            self.ensure(remote, &listing.commit, name)?;
        }
        Ok((self.cache.snapshot(&listing.commit), listing.commit.clone()))
    }

    fn download_gguf(
        &self,
        remote: &Remote,
        revision: &str,
        file: &str,
    ) -> Result<(PathBuf, String), Refusal> {
        // The first part says which commit the name means; the others come from that one.
        let mut first: Option<(PathBuf, String)> = None;
        for part in files::gguf_parts(file) {
            let at = first.as_ref().map_or(revision, |(_, commit)| commit);
            let fetched = fetch(remote, &self.cache, at, &part)?;
            first.get_or_insert((fetched.path, fetched.commit));
        }
        first.ok_or_else(|| Error::internal("a GGUF model of no parts").into())
    }

    fn download_safetensors(
        &self,
        remote: &Remote,
        listing: &Listing,
        sharded: bool,
    ) -> Result<(PathBuf, String), Refusal> {
        let has = |name: &str| listing.files.iter().any(|file| file == name);
        for needed in [CONFIG, TOKENIZER] {
            // Said before gigabytes are fetched, not after.
            if !has(needed) {
                return Err(Error::unsupported(format!(
                    "{}: the repository has no {needed}, without which its weights cannot be used",
                    self.repo
                ))
                .into());
            }
        }
        let commit = &listing.commit;
        for name in OPTIONAL.iter().filter(|name| !has(name)) {
            self.cache.set_absent(commit, name);
        }
        for name in OPTIONAL.iter().chain(&[CONFIG, TOKENIZER]).filter(|name| has(name)) {
            self.ensure(remote, commit, name)?;
        }
        self.check_config(&self.cache.snapshot(commit).join(CONFIG))?;
        for name in listing.files.iter().filter(|name| files::is_named_template(name)) {
            self.ensure(remote, commit, name)?;
        }
        if has(MODULES) {
            let path = self.ensure(remote, commit, MODULES)?;
            let json = fs::read(&path).map_err(|error| io_error("reading", &path, error))?;
            for name in files::modules(&json) {
                match has(&name) {
                    true => drop(self.ensure(remote, commit, &name)?),
                    false => self.cache.set_absent(commit, &name),
                }
            }
        }
        for name in self.weights(remote, commit, sharded)? {
            if !has(&name) {
                return Err(Error::model_file(format!(
                    "{}, file {INDEX}: names {name}, which the repository does not have",
                    self.repo
                ))
                .into());
            }
            self.ensure(remote, commit, &name)?;
        }
        Ok((self.cache.snapshot(commit), commit.clone()))
    }

    /// A quantized checkpoint is refused before its weights are fetched. A configuration that cannot be read
    /// is the loader's to refuse.
    fn check_config(&self, path: &Path) -> Result<()> {
        match json::read_object(path) {
            Ok(Some(root)) => quantization::read(&root).map(drop).context(self.repo),
            _ => Ok(()),
        }
    }

    fn weights(&self, remote: &Remote, commit: &str, sharded: bool) -> Result<Vec<String>, Refusal> {
        if !sharded {
            return Ok(vec![WEIGHTS.to_string()]);
        }
        let path = self.ensure(remote, commit, INDEX)?;
        let bytes = fs::read(&path).map_err(|error| io_error("reading", &path, error))?;
        Ok(files::shards(&bytes, &format!("{}, file {INDEX}", self.repo))?)
    }

    fn ensure(&self, remote: &Remote, commit: &str, name: &str) -> Result<PathBuf, Refusal> {
        match self.cache.file(commit, name) {
            Some(path) => Ok(path),
            None => Ok(fetch(remote, &self.cache, commit, name)?.path),
        }
    }
}
