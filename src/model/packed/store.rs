//! The folder of packed weights, its limit, and who goes when it is reached.
//!
//! `packed/NAME.panels` in the user's cache (`TALLOW_CACHE`, else `~/.cache/tallow`), NAME being a hash of
//! the model's path, of what is quantized at load and of versions. A file's time of modification is that of
//! its last use; the longest unused goes first.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::file;
use crate::error::{Error, Result};
use crate::hub::{Env, Lock};

const ENDING: &str = "panels";
/// What a writer that died has left is removed after so long.
const STALE: Duration = Duration::from_secs(3600);
/// Of the space that is free a file takes at most one in so many.
const FREE_SHARE: u64 = 4;
/// Quantizing at load takes ten times as long as packing.
const QUANTIZING: u64 = 8;

/// What the environment says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Limits {
    /// Bytes of all files.
    total: u64,
    /// Bytes of weights below which packing takes no time worth a file.
    least: u64,
}

impl Limits {
    /// # Errors
    /// `InvalidRequest` naming the variable that is no number.
    pub fn of(env: &Env) -> Result<Limits> {
        let number = |name: &str, unless: f64, unit: f64| {
            let Some(text) = env.get(name) else { return Ok((unless * unit) as u64) };
            let number =
                text.trim().parse::<f64>().ok().filter(|number| number.is_finite() && *number >= 0.0);
            number.map(|number| (number * unit) as u64).ok_or_else(|| {
                Error::invalid(format!("{name} is {text:?}; it must be a number, and 0 is allowed"))
            })
        };
        Ok(Limits {
            total: number("TALLOW_PACKED_CACHE_GB", 32.0, 1e9)?,
            least: number("TALLOW_PACKED_CACHE_LEAST_MB", 256.0, 1e6)?,
        })
    }
}

pub(super) struct Store {
    folder: PathBuf,
    limits: Limits,
}

impl Store {
    /// # Errors
    /// Why there is none.
    pub fn new(env: &Env, limits: Limits) -> Result<Store, String> {
        if limits.total == 0 {
            return Err("TALLOW_PACKED_CACHE_GB is 0".into());
        }
        let cache = env.own_cache().map_err(|error| error.message().to_owned())?;
        Ok(Store { folder: cache.join("packed"), limits })
    }

    /// # Errors
    /// That weights of so many bytes are packed too fast for it to be worth a file.
    pub fn check_size(&self, bytes: u64, quantizes: bool) -> Result<(), String> {
        match bytes.saturating_mul(if quantizes { QUANTIZING } else { 1 }) < self.limits.least {
            true => Err("so few weights are packed in no time".into()),
            false => Ok(()),
        }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.folder.join(name).with_extension(ENDING)
    }

    /// A cache that cannot be written to keeps its order.
    pub fn mark_used(&self, path: &Path) {
        let _ = File::open(path).and_then(|file| file.set_modified(SystemTime::now()));
    }

    /// Makes the folder, if it can be written to.
    ///
    /// # Errors
    /// Why nothing can be kept in it.
    pub fn prepare(&self) -> Result<(), String> {
        let fail = |error: std::io::Error| format!("{}: {error}", self.folder.display());
        fs::create_dir_all(&self.folder).map_err(fail)?;
        self.try_lock().map(drop).map_err(fail)
    }

    /// The right to write into the folder, if nobody else has it now.
    pub fn try_lock(&self) -> std::io::Result<Option<Lock>> {
        Lock::try_take(&self.folder.join("lock"))
    }

    /// Makes room for `bytes` in a file called `path`: the longest unused go, and what dead writers have
    /// left.
    ///
    /// # Errors
    /// Why there is none.
    pub fn make_room(&self, path: &Path, bytes: u64) -> Result<(), String> {
        self.sweep();
        let gigabytes = |bytes: u64| format!("{:.1} GB", bytes as f64 / 1e9);
        if bytes > self.limits.total {
            let (bytes, total) = (gigabytes(bytes), gigabytes(self.limits.total));
            return Err(format!("it has {bytes}, and TALLOW_PACKED_CACHE_GB allows {total}"));
        }
        let mut files = self.files();
        files.retain(|(other, ..)| other != path);
        files.sort_by_key(|(.., used)| *used);
        let mut held: u64 = files.iter().map(|(_, bytes, _)| bytes).sum();
        for (path, size, _) in files {
            if held + bytes <= self.limits.total {
                break;
            }
            if fs::remove_file(&path).is_ok() {
                held -= size;
            }
        }
        match free(&self.folder) {
            Some(free) if bytes > free / FREE_SHARE => Err(format!(
                "it has {}, and of {} that are free on the disk it may take a quarter",
                gigabytes(bytes),
                gigabytes(free)
            )),
            _ => Ok(()),
        }
    }

    fn sweep(&self) {
        let old = |path: &Path| {
            let modified = path.metadata().and_then(|data| data.modified()).ok();
            modified.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > STALE)
        };
        for path in self.paths("tmp").filter(|path| old(path)) {
            let _ = fs::remove_file(path);
        }
    }

    fn paths(&self, ending: &str) -> impl Iterator<Item = PathBuf> {
        let paths = fs::read_dir(&self.folder).into_iter().flatten().flatten().map(|entry| entry.path());
        let of_it = |path: &PathBuf| path.extension().is_some_and(|it| it == ending) && path.is_file();
        paths.filter(of_it).collect::<Vec<_>>().into_iter()
    }

    /// Path, bytes and last use of each.
    fn files(&self) -> Vec<(PathBuf, u64, Option<SystemTime>)> {
        let of = |path: PathBuf| {
            let data = path.metadata().ok()?;
            Some((path, data.len(), data.modified().ok()))
        };
        self.paths(ENDING).filter_map(of).collect()
    }
}

/// Bytes that this user may still write there; `None` where the system does not tell.
fn free(folder: &Path) -> Option<u64> {
    #[cfg(unix)]
    return rustix::fs::statvfs(folder).ok().map(|disk| disk.f_bavail.saturating_mul(disk.f_frsize));
    #[cfg(not(unix))]
    return None;
}

/// A file of packed weights in the user's cache.
#[derive(Clone, Debug)]
pub struct KeptFile {
    pub path: PathBuf,
    pub bytes: u64,
    pub last_used: Option<SystemTime>,
    /// The file or folder that it was packed from; `None` if this one is broken.
    pub source: Option<String>,
    /// What its weights were quantized to at load.
    pub quantize: Option<String>,
}

/// The files of packed weights in the user's cache, in no order.
///
/// # Errors
/// `Hub` when there is no cache to look into.
pub fn kept_files() -> Result<Vec<KeptFile>> {
    let limits = Limits { total: u64::MAX, least: 0 };
    let store = Store::new(&Env::Process, limits).map_err(Error::hub)?;
    let told = |(path, bytes, last_used): (PathBuf, u64, Option<SystemTime>)| {
        let origin = file::origin(&path).ok();
        let (source, quantize) = origin.map_or((None, None), |origin| (Some(origin.source), origin.quantize));
        KeptFile { path, bytes, last_used, source, quantize }
    };
    Ok(store.files().into_iter().map(told).collect())
}
