//! Shared read-only bytes: a range of a memory-mapped file, of a vector, or of one that is made when it is
//! first read.
//!
//! [`Bytes`] is what every weight tensor holds. Cloning and slicing cost a reference count, so a model of
//! many gigabytes is "loaded" as soon as its header is read; the pages come in when they are first touched,
//! and the operating system may drop them again. The file stays mapped until the last slice is gone.
//!
//! # If the file changes under the map
//!
//! A map shows the file as it is now, not as it was. Overwriting the file in place changes weights under a
//! running model, and cutting it short makes the next touch of a missing page kill the process (`SIGBUS`);
//! no program can turn that into an error at an acceptable price. Replacing a file the usual way (write a new
//! one, rename it over the old) is safe: the map keeps the old file alive. What is *parsed* (headers,
//! metadata, tokens) is copied out once and checked on the copy, so a later change cannot break an invariant
//! of safe code; only the numbers in the weights can change.

use std::fs::{File, Metadata};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::{Arc, OnceLock};

use crate::error::{Error, Result};

/// A range of shared, immutable bytes. Cheap to clone.
#[derive(Clone)]
pub struct Bytes {
    owner: Arc<Owner>,
    /// Always inside `owner`: the constructors and [`Bytes::slice`] are the only ones who set it.
    range: Range<usize>,
}

enum Owner {
    // Boxed: whoever holds bytes in memory has no use for its room.
    Map { map: memmap2::Mmap, data: Box<Metadata> },
    Vec(Vec<u8>),
    Made(Made),
}

/// Bytes whose number is known and that are made when they are first read.
struct Made {
    len: usize,
    bytes: OnceLock<Result<Vec<u8>>>,
    make: Box<dyn Fn() -> Result<Vec<u8>> + Send + Sync>,
}

impl Made {
    fn bytes(&self) -> &Result<Vec<u8>> {
        self.bytes.get_or_init(|| match (self.make)() {
            Ok(bytes) if bytes.len() != self.len => {
                Err(Error::internal(format!("{} bytes were made instead of {}", bytes.len(), self.len)))
            }
            made => made,
        })
    }
}

impl Owner {
    fn bytes(&self) -> &[u8] {
        match self {
            Owner::Map { map, .. } => map,
            Owner::Vec(vec) => vec,
            // Who reads what may fail asks `ready` first.
            Owner::Made(made) => made.bytes().as_deref().unwrap_or_default(),
        }
    }

    fn len(&self) -> usize {
        match self {
            Owner::Made(made) => made.len,
            other => other.bytes().len(),
        }
    }
}

impl Bytes {
    /// Maps a whole file, read-only.
    ///
    /// # Errors
    /// `ModelFile` when the path does not exist, is not a regular file (opening a pipe would wait for ever),
    /// or cannot be read or mapped.
    pub fn map_file(path: &Path) -> Result<Bytes> {
        let fail = |what: &str, error: std::io::Error| {
            Error::model_file(format!("{}: cannot {what} the file: {error}", path.display()))
                .with_source(error)
        };
        let meta = std::fs::metadata(path).map_err(|error| fail("find", error))?;
        if !meta.is_file() {
            return Err(Error::model_file(format!("{}: is not a regular file", path.display())));
        }
        let file = File::open(path).map_err(|error| fail("open", error))?;
        // Of what is mapped, and not of what has come into its place since it was found.
        let meta = file.metadata().map_err(|error| fail("find", error))?;
        if meta.len() == 0 {
            return Ok(Bytes::from_vec(Vec::new()));
        }
        // SAFETY: the map is private to this type and only ever read. That nobody cuts the file short or
        // writes into it meanwhile is a condition on the user, told in the module's documentation.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|error| fail("map", error))?;
        Ok(Bytes::whole(Owner::Map { map, data: Box::new(meta) }))
    }

    /// Takes bytes that are in memory already.
    pub fn from_vec(bytes: Vec<u8>) -> Bytes {
        Bytes::whole(Owner::Vec(bytes))
    }

    /// `len` bytes that `make` gives once they are read, which must be after [`Bytes::ready`].
    pub fn made(len: usize, make: impl Fn() -> Result<Vec<u8>> + Send + Sync + 'static) -> Bytes {
        Bytes::whole(Owner::Made(Made { len, bytes: OnceLock::new(), make: Box::new(make) }))
    }

    /// Makes what is made when it is first read.
    ///
    /// # Errors
    /// Those of its maker; without this call the bytes would read as none.
    pub fn ready(&self) -> Result<()> {
        match &*self.owner {
            Owner::Made(made) => made.bytes().as_ref().map(|_| ()).map_err(Error::clone),
            Owner::Map { .. } | Owner::Vec(_) => Ok(()),
        }
    }

    /// How many there are; makes none.
    pub fn len(&self) -> usize {
        self.range.len()
    }

    pub fn is_empty(&self) -> bool {
        self.range.is_empty()
    }

    fn whole(owner: Owner) -> Bytes {
        let range = 0..owner.len();
        Bytes { owner: Arc::new(owner), range }
    }

    /// A part of these bytes; `range` counts from their start.
    ///
    /// # Errors
    /// `ModelFile` when the range is reversed or reaches past the end.
    pub fn slice(&self, range: Range<usize>) -> Result<Bytes> {
        if range.start > range.end || range.end > self.len() {
            return Err(Error::model_file(format!(
                "bytes {}..{} were asked for, and there are {}",
                range.start,
                range.end,
                self.len()
            )));
        }
        let start = self.range.start + range.start;
        Ok(Bytes { owner: self.owner.clone(), range: start..start + range.len() })
    }

    /// What the system says of the mapped file, as it was when it was opened; `None` of bytes in memory.
    pub fn metadata(&self) -> Option<&Metadata> {
        match &*self.owner {
            Owner::Map { data, .. } => Some(data),
            Owner::Vec(_) | Owner::Made(_) => None,
        }
    }

    /// Says that these bytes are not needed soon: whole pages of a mapped file go back to the system, which
    /// reads them again if they are touched.
    pub fn release(&self) {
        #[cfg(unix)]
        if let Owner::Map { map, .. } = &*self.owner {
            const PAGE: usize = 4096;
            let from = self.range.start.next_multiple_of(PAGE);
            let to = self.range.end / PAGE * PAGE;
            if from < to {
                // SAFETY: the map is of a file and is never written to, so dropped pages come back as they
                // were.
                let _ = unsafe {
                    map.unchecked_advise_range(memmap2::UncheckedAdvice::DontNeed, from, to - from)
                };
            }
        }
    }

    /// Whether both are the same range of the same memory, which is how shared weights are told from equal
    /// ones.
    pub fn same(&self, other: &Bytes) -> bool {
        Arc::ptr_eq(&self.owner, &other.owner) && self.range == other.range
    }
}

impl Deref for Bytes {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.owner.bytes().get(self.range.clone()).unwrap_or_default()
    }
}

impl std::fmt::Debug for Bytes {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Bytes({})", self.len())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slices_of_slices_share_and_are_checked() {
        let all = Bytes::from_vec((0..10).collect());
        let part = all.slice(2..8).unwrap();
        assert_eq!(&*part.slice(1..3).unwrap(), &[3, 4]);
        assert!(part.slice(6..6).unwrap().is_empty());
        assert!(part.same(&all.slice(2..8).unwrap()) && !part.same(&all));
        #[allow(clippy::reversed_empty_ranges)]
        for range in [0..7, 7..7, 5..4, usize::MAX..usize::MAX] {
            assert!(part.slice(range.clone()).is_err(), "{range:?}");
        }
    }

    #[test]
    fn what_is_made_is_made_once_and_may_fail() {
        let count = Arc::new(std::sync::atomic::AtomicUsize::new(0));
        let counted = count.clone();
        let made = Bytes::made(4, move || {
            counted.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
            Ok(vec![1, 2, 3, 4])
        });
        let part = made.slice(1..3).unwrap();
        assert_eq!((made.len(), part.len(), count.load(std::sync::atomic::Ordering::Relaxed)), (4, 2, 0));
        made.ready().unwrap();
        assert_eq!((&*part, &*made), (&[2, 3][..], &[1, 2, 3, 4][..]));
        assert_eq!(count.load(std::sync::atomic::Ordering::Relaxed), 1);
        assert!(Bytes::made(3, || Ok(vec![1])).ready().is_err(), "fewer than promised");
        let failed = Bytes::made(3, || Err(Error::model_file("broken")));
        assert_eq!(failed.ready().unwrap_err().message(), "broken");
        assert!(failed[..].is_empty() && failed.len() == 3);
    }

    #[test]
    fn maps_files_and_names_what_it_cannot_map() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x");
        for content in [&b""[..], b"abc"] {
            std::fs::write(&path, content).unwrap();
            assert_eq!(&*Bytes::map_file(&path).unwrap(), content);
        }
        for path in [dir.path().join("absent"), dir.path().to_path_buf()] {
            let error = Bytes::map_file(&path).unwrap_err();
            assert!(error.message().contains(&path.display().to_string()), "{error}");
        }
    }
}
