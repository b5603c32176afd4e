//! Small files: texts that are read whole up to a limit, and files that appear whole or not at all.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use crate::error::{Error, Result};

/// The most that a configuration or a template takes: `tokenizer_config.json` lists thousands of added tokens
/// in some models, and a larger file is not what its name says.
pub const TEXT_LIMIT: u64 = 64 << 20;

/// The text of a file of at most `limit` bytes; `None` if there is none of that name.
///
/// # Errors
/// `ModelFile` naming the file if it is larger (not more than `limit` is ever asked for), no UTF-8, cannot be
/// read, or is no regular file (a pipe would be waited for for ever).
pub fn read_text(path: &Path, limit: u64) -> Result<Option<String>> {
    let refused = |why: String| Error::model_file(format!("{} {why}", path.display()));
    let failed = |error: io::Error| refused(format!("cannot be read: {error}")).with_source(error);
    let size = match path.metadata() {
        Err(e) if matches!(e.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
            return Ok(None);
        }
        Err(error) => return Err(failed(error)),
        Ok(data) if !data.is_file() => return Err(refused("is not a regular file".into())),
        Ok(data) => data.len(),
    };
    let too_large = |size: u64| refused(format!("has {size} bytes, and at most {limit} are read of it"));
    if size > limit {
        return Err(too_large(size));
    }
    // It may grow meanwhile.
    let mut bytes = Vec::new();
    File::open(path).and_then(|file| file.take(limit + 1).read_to_end(&mut bytes)).map_err(failed)?;
    if bytes.len() as u64 > limit {
        return Err(too_large(bytes.len() as u64));
    }
    String::from_utf8(bytes).map(Some).map_err(|error| refused("is not UTF-8 text".into()).with_source(error))
}

/// Writes a file so that a reader sees the old one or the new one, also after a crash.
pub fn write_whole(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let staged = staged(path);
    let written = File::create(&staged).and_then(|mut file| {
        file.write_all(bytes)?;
        file.sync_all()
    });
    let placed = written.and_then(|()| fs::rename(&staged, path));
    if placed.is_err() {
        let _ = fs::remove_file(&staged);
    }
    placed
}

/// A name beside `path` that no other process and no other thread uses.
pub fn staged(path: &Path) -> PathBuf {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut name = path.file_name().unwrap_or_default().to_os_string();
    name.push(format!(".{}-{}.tmp", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed)));
    path.with_file_name(name)
}

/// A file or folder that is being written, under a name that goes away with it unless it is done.
pub struct Staged(PathBuf);

impl Staged {
    /// What will be at `path`.
    pub fn of(path: &Path) -> Staged {
        Staged(staged(path))
    }

    /// Where it is meanwhile.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Gives it its name. A file that is there is replaced, a folder only if it is empty.
    pub fn place(self, path: &Path) -> io::Result<()> {
        // An empty folder may be there, which not every system replaces.
        let _ = fs::remove_dir(path);
        fs::rename(&self.0, path)
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        let _ = if self.0.is_dir() { fs::remove_dir_all(&self.0) } else { fs::remove_file(&self.0) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_read_whole_or_refused_by_name() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("x.json");
        assert_eq!(read_text(&path, 4).unwrap(), None);
        assert_eq!(read_text(&path.join("below"), 4).unwrap(), None);
        for (bytes, wanted) in [
            (&b"four"[..], Ok("four")),
            (b"", Ok("")),
            (b"fives", Err("has 5 bytes, and at most 4")),
            (b"\xff", Err("is not UTF-8")),
        ] {
            fs::write(&path, bytes).unwrap();
            match (read_text(&path, 4), wanted) {
                (Ok(text), Ok(wanted)) => assert_eq!(text.as_deref(), Some(wanted)),
                (Err(error), Err(words)) => {
                    assert!(error.message().contains(words) && error.message().contains("x.json"), "{error}");
                }
                (found, wanted) => panic!("{found:?} for {wanted:?}"),
            }
        }
        let refused = read_text(folder.path(), 4).unwrap_err();
        assert!(refused.message().contains("not a regular file"), "{refused}");
    }

    #[test]
    fn files_appear_whole_and_leave_nothing_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("b");
        write_whole(&path, b"1").unwrap();
        write_whole(&path, b"2").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"2");
        assert!(write_whole(folder.path(), b"3").is_err(), "a folder is in the way");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }
}
