//! Writing to a shared cache: locks between processes, files that appear whole or not at all.

use std::fs::{self, File, OpenOptions, TryLockError};
use std::io;
use std::path::Path;
use std::thread;
use std::time::Duration;

use super::progress::{Bar, Progress};
use crate::error::{Error, Result};
use crate::small_file;

/// How long anything sleeps between two looks at `cancelled`.
pub(super) const TICK: Duration = Duration::from_millis(50);

/// An exclusive lock that other processes see (`flock`), given back on drop or when the process dies. The
/// file stays: removing it would let two processes hold "the" lock on two files of one name.
pub(crate) struct Lock(#[allow(dead_code)] File);

impl Lock {
    /// The lock, unless somebody has it now.
    pub(crate) fn try_take(path: &Path) -> io::Result<Option<Lock>> {
        let file = OpenOptions::new().create(true).truncate(false).write(true).open(path)?;
        match file.try_lock() {
            Ok(()) => Ok(Some(Lock(file))),
            Err(TryLockError::WouldBlock) => Ok(None),
            // Some network file systems have no locks. Without one, a file may be made twice where once would
            // do, but each still appears whole, by rename.
            Err(TryLockError::Error(error)) if error.kind() == io::ErrorKind::Unsupported => {
                Ok(Some(Lock(file)))
            }
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Waits for the lock. `what` says what the other process is doing.
    pub(super) fn wait(path: &Path, what: &str, progress: &dyn Progress) -> Result<Lock> {
        make_parent(path)?;
        let mut waiting = None;
        loop {
            let taken = Lock::try_take(path).map_err(|error| io_error("locking", path, error))?;
            if let Some(lock) = taken {
                return Ok(lock);
            }
            if progress.cancelled() {
                return Err(cancelled(what));
            }
            waiting.get_or_insert_with(|| {
                Bar::start(progress, &format!("{what} (another process does it)"), None)
            });
            thread::sleep(TICK);
        }
    }
}

/// Writes a small file, and its folder where there is none, so that a reader sees the old one or the new one.
pub(super) fn write_whole(path: &Path, bytes: &[u8]) -> Result<()> {
    make_parent(path)?;
    small_file::write_whole(path, bytes).map_err(|error| io_error("writing", path, error))
}

pub(super) fn make_parent(path: &Path) -> Result<()> {
    match path.parent() {
        Some(folder) => {
            fs::create_dir_all(folder).map_err(|error| io_error("making the folder", folder, error))
        }
        None => Ok(()),
    }
}

/// A failure of the file system as a failure to get a model: what, where, why, and what helps.
pub(super) fn io_error(doing: &str, path: &Path, error: io::Error) -> Error {
    let help = match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "; free some space, or set HF_HOME and TALLOW_CACHE to folders on a larger disk"
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; set HF_HOME and TALLOW_CACHE to folders that can be written"
        }
        _ => "",
    };
    Error::hub(format!("{doing} {}: {error}{help}", path.display())).with_source(error)
}

pub(super) fn cancelled(what: &str) -> Error {
    Error::cancelled(format!("{what} was cancelled"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;
    use crate::hub::progress::NoProgress;

    struct Stop;
    impl Progress for Stop {
        fn start(&self, _: &str, _: Option<u64>) {}
        fn advance(&self, _: u64) {}
        fn finish(&self) {}
        fn cancelled(&self) -> bool {
            true
        }
    }

    #[test]
    fn a_lock_is_held_once_and_its_wait_can_be_cancelled() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("deep/x.lock");
        let held = Lock::wait(&path, "x", &NoProgress).unwrap();
        let refused = Lock::wait(&path, "fetching x", &Stop).err().unwrap();
        assert_eq!((refused.kind(), refused.message()), (ErrorKind::Cancelled, "fetching x was cancelled"));
        drop(held);
        Lock::wait(&path, "x", &Stop).unwrap();
    }

    #[test]
    fn files_appear_whole() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a/b");
        write_whole(&path, b"1").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"1");
    }
}
