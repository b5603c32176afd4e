//! A name becomes files on disk.
//!
//! [`locate`] takes what a user writes ([`Source`] lists the forms) and gives a path to load: a GGUF file, a
//! safetensors file, or a folder with `config.json`, safetensors and tokenizer. It reads no model.
//!
//! Three things hold for every form. What is in a cache is used without asking the network. Nothing becomes
//! visible before it is whole and its hash, where one is known, is right, whatever is killed meanwhile. And
//! nothing that was downloaded is run: pickles and Python files are never fetched.

mod cache;
mod disk;
mod download;
mod env;
mod files;
#[cfg(feature = "hub")]
mod http;
#[cfg(not(feature = "hub"))]
#[path = "http_disabled.rs"]
mod http;
mod progress;
mod remote;
mod repo;
mod source;

use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub(crate) use disk::Lock;
pub use env::Env;
pub(crate) use files::is_safe_name;
pub(crate) use progress::Bar;
pub use progress::{NoProgress, Progress};
pub use source::Source;

use self::repo::Wanted;
use crate::error::{Error, Result};

/// How to look for a model.
#[derive(Clone)]
pub struct HubOptions {
    /// Branch, tag or commit of a hub repository; `main` where it is `None`.
    pub revision: Option<String>,
    /// Whether the network is forbidden. `None`: what `HF_HUB_OFFLINE` and `TRANSFORMERS_OFFLINE` say.
    pub offline: Option<bool>,
    pub progress: Arc<dyn Progress>,
}

impl Default for HubOptions {
    fn default() -> Self {
        HubOptions { revision: None, offline: None, progress: Arc::new(NoProgress) }
    }
}

/// A model on disk.
#[derive(Clone, Debug, PartialEq)]
pub struct Located {
    /// A `.gguf` file (the first, where it is split), a `.safetensors` file, or a folder.
    pub path: PathBuf,
    /// How to call the model: `org/name`, or the name of the file or folder.
    pub name: String,
    /// The commit of the repository.
    pub revision: Option<String>,
    /// SHA-256 of the file at `path`, where it is known without reading it.
    pub sha256: Option<String>,
}

/// Finds the files of a model, and fetches what is missing. A `source` that is no UTF-8 is a path.
///
/// Errors: `ModelFile` for a path that is not there, `Hub` for a name that cannot be turned into files,
/// `UnsupportedModel` for a repository without weights that can be read, `InvalidRequest` for a wrong
/// argument, `Cancelled` when the progress says so.
pub fn locate(source: impl AsRef<OsStr>, options: &HubOptions) -> Result<Located> {
    locate_in(&Env::Process, source, options)
}

/// [`locate`] with an environment of the caller's choice.
pub fn locate_in(env: &Env, source: impl AsRef<OsStr>, options: &HubOptions) -> Result<Located> {
    let source = source.as_ref();
    let parsed = Source::parse(source, env)?;
    if options.revision.is_some() && !matches!(parsed, Source::Hub { .. }) {
        return Err(Error::invalid(format!(
            "revision is for models of the Hugging Face hub, and {source:?} is not one"
        )));
    }
    match parsed {
        Source::Path(path) => locate_path(&path),
        Source::Hub { repo, file } => repo::locate(&repo, Wanted::Model(file.as_deref()), options, env),
    }
}

/// Finds the folder or file of an adapter, and fetches what is missing: a path, "org/name", or a GGUF file of
/// a repository, "org/name/file.gguf".
///
/// # Errors
/// As [`locate`]; `UnsupportedModel` for a repository without an adapter that can be read.
pub fn locate_adapter(source: impl AsRef<OsStr>, options: &HubOptions) -> Result<PathBuf> {
    locate_adapter_in(&Env::Process, source, options)
}

/// [`locate_adapter`] with an environment of the caller's choice.
///
/// # Errors
/// As [`locate_adapter`].
pub fn locate_adapter_in(env: &Env, source: impl AsRef<OsStr>, options: &HubOptions) -> Result<PathBuf> {
    let source = source.as_ref();
    match Source::parse(source, env)? {
        Source::Path(_) if options.revision.is_some() => Err(Error::invalid(format!(
            "revision is for adapters of the Hugging Face hub, and {source:?} is not one"
        ))),
        Source::Path(path) => Ok(path),
        Source::Hub { repo, file } => {
            let wanted = file.as_deref().map_or(Wanted::Adapter, |file| Wanted::Model(Some(file)));
            Ok(repo::locate(&repo, wanted, options, env)?.path)
        }
    }
}

/// How a source is named from any working folder (a path is made absolute), and whether it is on the hub,
/// where it may be pinned to a revision.
///
/// # Errors
/// As [`locate`], for a text that names nothing.
pub fn anywhere(source: &OsStr) -> Result<(OsString, bool)> {
    match Source::parse(source, &Env::Process)? {
        Source::Path(path) => match std::path::absolute(&path) {
            Ok(path) => Ok((path.into_os_string(), false)),
            Err(error) => Err(Error::model_file(format!("{}: {error}", path.display()))),
        },
        Source::Hub { .. } => Ok((source.to_os_string(), true)),
    }
}

fn locate_path(path: &Path) -> Result<Located> {
    files::check_file(path)?;
    let found = if path.is_dir() { files::resolve_folder(path)? } else { path.to_path_buf() };
    // `.` and `..` have no name of their own.
    let named = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
    let name = match path.is_dir() {
        true => named.file_name(),
        // Not the canonical one: a link in a cache points to a file that is named after its hash.
        false => path.file_stem(),
    };
    let name = name.map(|name| name.to_string_lossy().into_owned()).unwrap_or_else(|| "model".into());
    Ok(Located { path: found, name, revision: None, sha256: None })
}

/// Why the network may not be asked, in words; `None` where it may.
fn offline_reason(options: &HubOptions, env: &Env) -> Option<String> {
    match options.offline {
        Some(true) => Some("offline=True forbids the network".to_string()),
        Some(false) => None,
        None => env.offline().map(|name| format!("{name} forbids the network")),
    }
}
