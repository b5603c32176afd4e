//! A hash of all bytes of a file, remembered on disk for as long as the file stays what it is.
//!
//! It is the SHA-256 over the SHA-256 of every [`CHUNK`], so that several threads share the work; it is no
//! `sha256sum`. What was computed lies in the user's cache (`TALLOW_CACHE`, else `~/.cache/tallow`) as
//! `hashes/NAME.json`, NAME being a hash of the file's path; a hash there counts only if size, times, inode
//! and device are the same. A cache that cannot be read or written costs nothing but the time to compute it
//! again.

use std::fs::{File, Metadata};
use std::io::{Read, Seek, SeekFrom};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::fingerprint::{Sum, each, hex};
use crate::error::{Error, Result};
use crate::hub::{Bar, Env, Progress};
use crate::small_file::{read_text, write_whole};

/// What one thread hashes at a time.
const CHUNK: u64 = 8 << 20;
const BUFFER: usize = 256 << 10;
/// Clocks of file systems tick this coarsely (FAT): a file that was written so shortly before may be written
/// again without another time, so its hash is not kept.
const TICK: Duration = Duration::from_secs(2);
const LONGEST_ENTRY: u64 = 4096;
/// Hashes that are kept; with one more, all are given up, for those of files that are gone are never asked
/// for again.
const MOST_ENTRIES: usize = 1000;

/// What tells that a file is the one that it was.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct Stamp {
    size: u64,
    modified: Option<SystemTime>,
    device: u64,
    inode: u64,
    /// Seconds and nanoseconds of the last change of content, name or rights, which no program can set.
    changed: (i64, i64),
}

impl Stamp {
    pub(super) fn of(path: &Path) -> Result<Stamp> {
        std::fs::metadata(path).map(|data| Stamp::from(&data)).map_err(|error| unreadable(path, error))
    }

    /// The same content as far as one can see; other names and rights do not count.
    pub(super) fn is_still(&self, now: &Stamp) -> bool {
        Stamp { changed: self.changed, ..now.clone() } == *self
    }

    pub(super) fn is_settled(&self) -> bool {
        self.modified.and_then(|time| time.elapsed().ok()).is_some_and(|age| age > TICK)
    }
}

impl From<&Metadata> for Stamp {
    fn from(data: &Metadata) -> Stamp {
        #[cfg(unix)]
        let (device, inode, changed) = {
            use std::os::unix::fs::MetadataExt;
            (data.dev(), data.ino(), (data.ctime(), data.ctime_nsec()))
        };
        #[cfg(not(unix))]
        let (device, inode, changed) = (0, 0, (0, 0));
        Stamp { size: data.len(), modified: data.modified().ok(), device, inode, changed }
    }
}

/// The SHA-256 of a small file.
pub(super) fn whole(path: &Path) -> Result<Sum> {
    let mut sum = Sha256::new();
    let mut file = File::open(path).map_err(|error| unreadable(path, error))?;
    std::io::copy(&mut file, &mut sum).map_err(|error| unreadable(path, error))?;
    Ok(sum.finalize().into())
}

/// The hash of a file that was `loaded`, from the cache if it is there.
///
/// # Errors
/// `ModelFile` if the file has changed since or cannot be read, `Cancelled` when the progress says so.
pub(super) fn remembered(
    path: &Path,
    loaded: &Stamp,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Sum> {
    let entry = Env::Process.own_cache().ok().map(|cache| Entry::new(&cache, path));
    remembered_in(entry.as_ref(), path, loaded, threads, progress)
}

fn remembered_in(
    entry: Option<&Entry>,
    path: &Path,
    loaded: &Stamp,
    threads: usize,
    progress: &dyn Progress,
) -> Result<Sum> {
    let stamp = unchanged(path, loaded)?;
    if let Some(sum) = entry.and_then(|entry| entry.find(&stamp)) {
        return Ok(sum);
    }
    let sum = computed(path, stamp.size, threads, progress)?;
    // Not if it was written to meanwhile.
    let after = unchanged(path, loaded)?;
    if let Some(entry) = entry.filter(|_| after == stamp && after.is_settled()) {
        entry.keep(&stamp, &sum);
    }
    Ok(sum)
}

fn unchanged(path: &Path, loaded: &Stamp) -> Result<Stamp> {
    let now = Stamp::of(path)?;
    match loaded.is_still(&now) {
        true => Ok(now),
        false => Err(Error::model_file(format!(
            "{} has changed since it was loaded; load the model again",
            path.display()
        ))),
    }
}

fn computed(path: &Path, size: u64, threads: usize, progress: &dyn Progress) -> Result<Sum> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let bar = Mutex::new(Bar::start(progress, &format!("hashing {name}"), Some(size)));
    let starts: Vec<u64> = (0..size.div_ceil(CHUNK)).map(|i| i * CHUNK).collect();
    let chunk = |start: &u64| {
        if progress.cancelled() {
            return Err(Error::cancelled("hashing the model was cancelled"));
        }
        let length = CHUNK.min(size - start);
        let sum = chunk_sum(path, *start, length).map_err(|error| unreadable(path, error))?;
        bar.lock().unwrap_or_else(PoisonError::into_inner).advance(length);
        Ok(sum)
    };
    let sums = each(&starts, threads, chunk)?;
    Ok(sums.iter().fold(Sha256::new(), |sum, chunk| sum.chain_update(chunk)).finalize().into())
}

/// Read, not mapped: a file that is cut short meanwhile is an error then, and no signal.
fn chunk_sum(path: &Path, start: u64, length: u64) -> std::io::Result<Sum> {
    let mut file = File::open(path)?;
    file.seek(SeekFrom::Start(start))?;
    let mut file = file.take(length);
    let (mut sum, mut buffer) = (Sha256::new(), vec![0; BUFFER]);
    loop {
        match file.read(&mut buffer)? {
            0 => return Ok(sum.finalize().into()),
            read => sum.update(buffer.get(..read).unwrap_or_default()),
        }
    }
}

/// Where a file's hash is kept.
struct Entry(PathBuf);

#[derive(Serialize, Deserialize)]
struct Kept {
    stamp: Stamp,
    sum: Sum,
}

impl Entry {
    fn new(cache: &Path, path: &Path) -> Entry {
        let path = path.canonicalize().unwrap_or_else(|_| path.to_path_buf());
        let name = hex(&Sha256::digest(path.as_os_str().as_encoded_bytes()), 32);
        Entry(cache.join("hashes").join(format!("{name}.json")))
    }

    fn find(&self, stamp: &Stamp) -> Option<Sum> {
        let text = read_text(&self.0, LONGEST_ENTRY).ok()??;
        let kept: Kept = serde_json::from_str(&text).ok()?;
        (kept.stamp == *stamp).then_some(kept.sum)
    }

    fn keep(&self, stamp: &Stamp, sum: &Sum) {
        let kept = Kept { stamp: stamp.clone(), sum: *sum };
        if let (Some(folder), Ok(text)) = (self.0.parent(), serde_json::to_vec(&kept)) {
            if std::fs::read_dir(folder).is_ok_and(|entries| entries.count() > MOST_ENTRIES) {
                let _ = std::fs::remove_dir_all(folder);
            }
            // A home that cannot be written to is no error: the next process computes it again.
            let _ = std::fs::create_dir_all(folder).and_then(|()| write_whole(&self.0, &text));
        }
    }
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    Error::model_file(format!("cannot read {}: {error}", path.display())).with_source(error)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU64, Ordering};

    use super::*;
    use crate::error::ErrorKind;
    use crate::hub::NoProgress;

    /// Counts what is hashed, and stops it where it should.
    struct Watch {
        hashed: AtomicU64,
        stop: bool,
    }

    impl Progress for Watch {
        fn start(&self, _: &str, _: Option<u64>) {}
        fn advance(&self, bytes: u64) {
            self.hashed.fetch_add(bytes, Ordering::Relaxed);
        }
        fn finish(&self) {}
        fn cancelled(&self) -> bool {
            self.stop
        }
    }

    struct Bench {
        folder: tempfile::TempDir,
        path: PathBuf,
    }

    impl Bench {
        /// A file of a little more than one chunk, old enough for its hash to be kept.
        fn new() -> Bench {
            let folder = tempfile::tempdir().unwrap();
            let path = folder.path().join("model.gguf");
            let bench = Bench { folder, path };
            bench.write(0);
            bench
        }

        fn write(&self, first: u8) {
            let mut bytes = vec![7; CHUNK as usize + 5];
            bytes[0] = first;
            std::fs::write(&self.path, bytes).unwrap();
            self.age(3600);
        }

        fn age(&self, seconds: u64) {
            let file = File::options().write(true).open(&self.path).unwrap();
            file.set_modified(SystemTime::now() - Duration::from_secs(seconds)).unwrap();
        }

        fn entry(&self) -> Entry {
            Entry::new(&self.folder.path().join("cache"), &self.path)
        }

        /// The hash, and how many bytes had to be read for it.
        fn sum(&self) -> (Sum, u64) {
            let watch = Watch { hashed: AtomicU64::new(0), stop: false };
            let loaded = Stamp::of(&self.path).unwrap();
            let sum = remembered_in(Some(&self.entry()), &self.path, &loaded, 2, &watch).unwrap();
            (sum, watch.hashed.into_inner())
        }
    }

    const SIZE: u64 = CHUNK + 5;

    #[test]
    fn a_hash_is_computed_once_for_a_file() {
        let bench = Bench::new();
        let (first, read) = bench.sum();
        let wanted =
            [Sha256::digest([vec![0], vec![7; CHUNK as usize - 1]].concat()), Sha256::digest([7; 5])];
        assert_eq!((first, read), (Sha256::digest(wanted.concat()).into(), SIZE));
        assert_eq!(bench.sum(), (first, 0), "kept");
        bench.write(1);
        let (second, read) = bench.sum();
        assert!(second != first && read == SIZE, "a file that was written to");
        bench.age(7200);
        assert_eq!(bench.sum(), (second, SIZE), "another time");
        bench.age(0);
        assert_eq!((bench.sum().1, bench.sum().1), (SIZE, SIZE), "too young to be sure");
    }

    #[test]
    fn a_damaged_or_missing_cache_costs_time_and_nothing_else() {
        let bench = Bench::new();
        let (sum, _) = bench.sum();
        let entry = bench.entry().0;
        let whole = std::fs::read(&entry).unwrap();
        for damaged in [&b""[..], b"{}", b"\xff", &whole[..whole.len() - 2], &[b' '; 5000]] {
            std::fs::write(&entry, damaged).unwrap();
            assert_eq!(bench.sum(), (sum, SIZE));
        }
        // Where the folder should be there is a file: nothing can be written.
        std::fs::remove_dir_all(entry.parent().unwrap()).unwrap();
        std::fs::write(entry.parent().unwrap(), "").unwrap();
        assert_eq!((bench.sum(), bench.sum()), ((sum, SIZE), (sum, SIZE)));
        let loaded = Stamp::of(&bench.path).unwrap();
        assert_eq!(remembered_in(None, &bench.path, &loaded, 1, &NoProgress).unwrap(), sum);
    }

    #[test]
    fn it_can_be_stopped() {
        let bench = Bench::new();
        let watch = Watch { hashed: AtomicU64::new(0), stop: true };
        let loaded = Stamp::of(&bench.path).unwrap();
        let error = remembered_in(Some(&bench.entry()), &bench.path, &loaded, 2, &watch).unwrap_err();
        assert_eq!((error.kind(), watch.hashed.into_inner()), (ErrorKind::Cancelled, 0));
        assert!(!bench.entry().0.exists());
    }
}
