//! The Hugging Face cache on disk, read and written as the `huggingface_hub` package does.
//!
//! ```text
//! hub/models--org--name/blobs/<etag>                the bytes, once
//!                       blobs/<etag>.incomplete     what has arrived so far
//!                       snapshots/<commit>/<file>   a link to a blob
//!                       refs/<revision>             the commit that a branch or tag meant last
//!                       .no_exist/<commit>/<file>   known not to be in the repository
//!     .locks/models--org--name/<etag>.lock
//! ```
//! Layout: <https://huggingface.co/docs/huggingface_hub/guides/manage-cache>. Sharing it means that a model
//! which transformers downloaded is not downloaded again, and a transfer that it left half done goes on here.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use super::disk::{self, io_error};
use super::files::{self, CONFIG, INDEX, Kind, MODULES, OPTIONAL, TOKENIZER, WEIGHTS};
use crate::error::{Context, Result};
use crate::small_file::staged;

/// One repository in the cache. Making it touches nothing on disk.
#[derive(Clone, Debug)]
pub(super) struct RepoCache {
    root: PathBuf,
    locks: PathBuf,
}

/// What a snapshot has of a model.
#[derive(Debug, PartialEq)]
pub(super) enum Found {
    /// Everything: this path is the model.
    Complete(PathBuf),
    /// Enough to run (`path`), but some file may exist in the repository that was never asked for.
    Enough(PathBuf),
    /// These files at least are missing.
    Missing(Vec<String>),
}

impl RepoCache {
    pub(super) fn new(hub: &Path, repo: &str) -> RepoCache {
        let folder = format!("models--{}", repo.replace('/', "--"));
        RepoCache { root: hub.join(&folder), locks: hub.join(".locks").join(folder) }
    }

    /// The commit that `revision` stands for, as far as the cache knows.
    pub(super) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return self.snapshot(revision).is_dir().then(|| revision.to_string());
        }
        let text = fs::read_to_string(self.root.join("refs").join(revision)).ok()?;
        let commit = text.trim();
        (is_commit(commit) && self.snapshot(commit).is_dir()).then(|| commit.to_string())
    }

    /// Remembers what `revision` means. Done last, when every file of it is there.
    pub(super) fn set_commit(&self, revision: &str, commit: &str) -> Result<()> {
        let path = self.root.join("refs").join(revision);
        let known = fs::read_to_string(&path).is_ok_and(|text| text.trim() == commit);
        if is_commit(revision) || known { Ok(()) } else { disk::write_whole(&path, commit.as_bytes()) }
    }

    pub(super) fn snapshot(&self, commit: &str) -> PathBuf {
        self.root.join("snapshots").join(commit)
    }

    /// The file of a snapshot, if its bytes are there (a link whose blob was deleted is not).
    pub(super) fn file(&self, commit: &str, name: &str) -> Option<PathBuf> {
        let path = self.snapshot(commit).join(name);
        path.is_file().then_some(path)
    }

    fn known(&self, commit: &str, name: &str) -> bool {
        self.file(commit, name).is_some() || self.root.join(".no_exist").join(commit).join(name).is_file()
    }

    /// Remembers that a commit has no such file, so that the next time nobody asks. A cache that cannot be
    /// written is no error: then somebody asks.
    pub(super) fn set_absent(&self, commit: &str, name: &str) {
        if !self.known(commit, name) {
            let _ = disk::write_whole(&self.root.join(".no_exist").join(commit).join(name), b"");
        }
    }

    pub(super) fn blob(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(etag)
    }

    pub(super) fn incomplete(&self, etag: &str) -> PathBuf {
        self.root.join("blobs").join(format!("{etag}.incomplete"))
    }

    pub(super) fn lock(&self, etag: &str) -> PathBuf {
        self.locks.join(format!("{etag}.lock"))
    }

    /// Makes the blob appear in the snapshot under its name: a relative link, or a copy where links cannot
    /// be.
    pub(super) fn link(&self, commit: &str, name: &str, etag: &str) -> Result<PathBuf> {
        let path = self.snapshot(commit).join(name);
        if path.is_file() {
            return Ok(path);
        }
        disk::make_parent(&path)?;
        let up = "../".repeat(2 + name.matches('/').count());
        let staged = staged(&path);
        let _ = fs::remove_file(&staged);
        let made = symlink(Path::new(&format!("{up}blobs/{etag}")), &staged)
            .or_else(|_| fs::hard_link(self.blob(etag), &staged))
            .or_else(|_| fs::copy(self.blob(etag), &staged).map(|_| ()))
            .and_then(|()| fs::rename(&staged, &path));
        made.map_err(|error| io_error("placing the file", &path, error))?;
        Ok(path)
    }

    /// What is there of one named GGUF file, with the rest of its split.
    pub(super) fn find_gguf(&self, commit: &str, name: &str) -> Found {
        let missing: Vec<String> =
            files::gguf_parts(name).into_iter().filter(|part| self.file(commit, part).is_none()).collect();
        if missing.is_empty() {
            Found::Complete(self.snapshot(commit).join(name))
        } else {
            Found::Missing(missing)
        }
    }

    /// What is there of the model of a repository, where no file was named.
    pub(super) fn find_model(&self, commit: &str) -> Result<Found> {
        let names = list(&self.snapshot(commit));
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        match files::kind(&names, "the cached snapshot", "org/name/file.gguf") {
            Ok(Kind::Safetensors { sharded }) => self.find_safetensors(commit, sharded),
            Ok(Kind::Gguf(name)) => {
                // One cached GGUF may be one of many in the repository. It is the only one for sure where an
                // earlier look at the list found no safetensors and went on to take it.
                let only = self.known(commit, WEIGHTS) && self.known(commit, INDEX);
                Ok(match self.find_gguf(commit, name) {
                    Found::Complete(path) if !only => Found::Enough(path),
                    found => found,
                })
            }
            Err(_) => Ok(Found::Missing(vec![WEIGHTS.to_string()])),
        }
    }

    fn find_safetensors(&self, commit: &str, sharded: bool) -> Result<Found> {
        let mut wanted = vec![CONFIG.to_string(), TOKENIZER.to_string()];
        if sharded {
            let path = self.snapshot(commit).join(INDEX);
            let bytes = fs::read(&path).map_err(|error| io_error("reading", &path, error))?;
            wanted.extend(files::shards(&bytes, INDEX).context(path.display())?);
        }
        wanted.retain(|name| !self.known(commit, name));
        if !wanted.is_empty() {
            return Ok(Found::Missing(wanted));
        }
        let path = self.snapshot(commit);
        let modules = fs::read(path.join(MODULES)).map(|json| files::modules(&json)).unwrap_or_default();
        let mut more = OPTIONAL.iter().copied().chain(modules.iter().map(String::as_str));
        let all = more.all(|name| self.known(commit, name));
        Ok(if all { Found::Complete(path) } else { Found::Enough(path) })
    }
}

/// A full commit hash; anything shorter is a name, which may move.
pub(super) fn is_commit(text: &str) -> bool {
    text.len() == 40 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

/// Whether this may be a revision: it becomes a part of a URL and of a path.
pub(super) fn is_revision(text: &str) -> bool {
    files::is_safe_name(text) && !text.starts_with('-') && !text.contains([' ', '~', '^'])
}

/// Files of a folder and its folders, with `/` between, three deep: no repository nests models deeper.
fn list(folder: &Path) -> Vec<String> {
    fn walk(folder: &Path, prefix: &str, depth: usize, names: &mut Vec<String>) {
        for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
            let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
            // `is_file` follows links: one whose blob is gone does not count.
            match entry.path() {
                path if path.is_file() => names.push(name),
                path if depth > 0 && path.is_dir() => walk(&path, &format!("{name}/"), depth - 1, names),
                _ => {}
            }
        }
    }
    let mut names = Vec::new();
    walk(folder, "", 2, &mut names);
    names
}

#[cfg(unix)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::unix::fs::symlink(target, link)
}

#[cfg(windows)]
fn symlink(target: &Path, link: &Path) -> io::Result<()> {
    std::os::windows::fs::symlink_file(target, link)
}

#[cfg(test)]
mod tests {
    use super::*;

    const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

    fn cached(names: &[&str]) -> (tempfile::TempDir, RepoCache) {
        let folder = tempfile::tempdir().unwrap();
        let cache = RepoCache::new(folder.path(), "org/name");
        for name in names {
            disk::write_whole(
                &cache.blob(&name.replace('/', "-")),
                b"{\"weight_map\":{\"a\":\"s.safetensors\"}}",
            )
            .unwrap();
            cache.link(COMMIT, name, &name.replace('/', "-")).unwrap();
        }
        (folder, cache)
    }

    #[test]
    fn snapshots_are_judged_by_what_they_hold() {
        let rows: &[(&[&str], &[&str], &str)] = &[
            (&[], &[], "missing model.safetensors"),
            (&[CONFIG], &[], "missing model.safetensors"),
            (&[WEIGHTS], &[], "missing config.json tokenizer.json"),
            (&[CONFIG, TOKENIZER, WEIGHTS], &[], "enough"),
            (&[CONFIG, TOKENIZER, WEIGHTS], OPTIONAL, "complete"),
            (&[CONFIG, WEIGHTS], &[TOKENIZER], "enough"),
            (&[CONFIG, TOKENIZER, INDEX], OPTIONAL, "missing s.safetensors"),
            (&[CONFIG, TOKENIZER, INDEX, "s.safetensors"], OPTIONAL, "complete"),
            (&["sub/a.gguf"], &[], "enough"),
            (&["a.gguf"], &[WEIGHTS, INDEX], "complete"),
            (&["a-00001-of-00002.gguf"], &[WEIGHTS, INDEX], "missing a-00002-of-00002.gguf"),
            (&["a.gguf", "b.gguf"], &[WEIGHTS, INDEX], "missing model.safetensors"),
        ];
        for (present, absent, expected) in rows {
            let (_folder, cache) = cached(present);
            absent.iter().for_each(|name| cache.set_absent(COMMIT, name));
            let found = match cache.find_model(COMMIT).unwrap() {
                Found::Complete(_) => "complete".to_string(),
                Found::Enough(_) => "enough".to_string(),
                Found::Missing(names) => format!("missing {}", names.join(" ")),
            };
            assert_eq!(found, *expected, "{present:?} without {absent:?}");
        }
    }

    #[test]
    fn references_and_links() {
        let (folder, cache) = cached(&["1_Pooling/config.json"]);
        assert_eq!(cache.commit("main"), None);
        cache.set_commit("main", COMMIT).unwrap();
        cache.set_commit("refs/pr/1", COMMIT).unwrap();
        for revision in ["main", "refs/pr/1", COMMIT] {
            assert_eq!(cache.commit(revision).as_deref(), Some(COMMIT), "{revision}");
        }
        disk::write_whole(&folder.path().join("models--org--name/refs/evil"), b"../../../x").unwrap();
        assert_eq!(cache.commit("evil"), None);
        let link = cache.file(COMMIT, "1_Pooling/config.json").unwrap();
        #[cfg(unix)]
        assert_eq!(fs::read_link(&link).unwrap(), Path::new("../../../blobs/1_Pooling-config.json"));
        fs::remove_file(cache.blob("1_Pooling-config.json")).unwrap();
        assert_eq!(cache.file(COMMIT, "1_Pooling/config.json"), None, "a dangling link is no file");
        for bad in ["../main", "/etc", "a b", "-x", "", "a~1"] {
            assert!(!is_revision(bad), "{bad:?}");
        }
    }
}
