//! Names for what a model computes with: one from all that is small and samples of the rest, and one from
//! every byte, when something that outlives the process is kept under it.
//!
//! # Which changes show
//!
//! The fingerprint takes the options, the files beside the weights and each file's header whole, every tensor
//! of less than a MiB whole (norms, biases, and all of a small model), and [`SAMPLES`] places of each other
//! tensor. A fine-tune, a merged adapter or another quantization changes nearly every number of the tensors
//! that it touches, and shows. A few changed rows of a large embedding need not. So whatever is looked up in
//! a file of another process, a saved prefix or an answer in DSPy's cache, goes by [`Identity::exact`]: a
//! SHA-256 of all bytes ([`file_hash`]), which costs seconds for a large model, once.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::thread;

use sha2::{Digest, Sha256};

use super::file_hash::{self, Stamp};
use crate::error::{Error, Result};
use crate::hub::Progress;
use crate::weights::Weights;

/// A SHA-256.
pub(super) type Sum = [u8; 32];

/// Up to this, a part of a file is taken whole.
const WHOLE: usize = 1 << 20;
/// Places of a larger part, evenly spread from its first byte to its last, and the bytes of each (a page of
/// memory).
const SAMPLES: usize = 8;
const SAMPLE_BYTES: usize = 4096;

/// What a model is known by. Computed when it is asked for: to hash a small model whole takes a third of the
/// time that loading it does.
pub struct Identity {
    /// Options and the files beside the weights.
    around: Sum,
    /// The mapped files, until they have been hashed.
    weights: Mutex<Option<Arc<Weights>>>,
    /// The files of the weights as they were when they were loaded.
    files: Vec<(PathBuf, Stamp)>,
    threads: usize,
    sum: OnceLock<(Sum, String)>,
    exact: OnceLock<String>,
}

impl Identity {
    /// Of weights as they are loaded: `companions` are the files beside them that decide about answers too
    /// (each with what it is), `options` says how they are computed with.
    ///
    /// # Errors
    /// `ModelFile` if a file cannot be read.
    pub fn new(
        weights: Arc<Weights>,
        companions: &[(String, PathBuf)],
        options: &str,
        threads: usize,
    ) -> Result<Identity> {
        let mut around = Sha256::new();
        around.update(Sha256::digest(options));
        for (part, (name, _)) in
            each(companions, threads, |(_, path)| file_hash::whole(path))?.iter().zip(companions)
        {
            around.update(Sha256::digest(name));
            around.update(part);
        }
        let stamped = |path: &Path| Ok((path.to_path_buf(), Stamp::of(path)?));
        let files = weights.files().map(stamped).collect::<Result<_>>()?;
        Ok(Identity {
            around: around.finalize().into(),
            weights: Mutex::new(Some(weights)),
            files,
            threads,
            sum: OnceLock::new(),
            exact: OnceLock::new(),
        })
    }

    /// 16 hexadecimal digits; see the module for what shows in them. If a file has changed since it was
    /// loaded, nobody can tell any more what was: then they are like no other's.
    pub fn fingerprint(&self) -> &str {
        &self.sum().1
    }

    fn sum(&self) -> &(Sum, String) {
        // Not `get_or_init`: a child that was forked meanwhile would wait for a thread that it does not have.
        if self.sum.get().is_none() {
            let mapped = self.weights.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let sum = mapped.and_then(|weights| self.hashed(&weights).ok()).unwrap_or_else(unlike_any);
            if self.sum.set((sum, hex(&sum, 16))).is_ok() {
                self.weights.lock().unwrap_or_else(PoisonError::into_inner).take();
            }
        }
        self.sum.get_or_init(|| {
            let sum = unlike_any();
            (sum, hex(&sum, 16))
        })
    }

    /// The files as they are mapped. One that was cut short must not be touched: that would end the process.
    fn hashed(&self, weights: &Weights) -> Result<Sum> {
        self.check_files()?;
        let mut sum = Sha256::new_with_prefix(self.around);
        let mut parts = Vec::new();
        for (_, bytes, borders) in weights.extents() {
            sum.update(bytes.len().to_le_bytes());
            parts.extend(borders.windows(2).filter_map(|at| bytes.get(*at.first()?..*at.last()?)));
        }
        for part in each(&parts, self.threads, |part| Ok(sampled(part)))? {
            sum.update(part);
        }
        self.check_files()?;
        Ok(sum.finalize().into())
    }

    /// # Errors
    /// `ModelFile` if a file has changed or gone since it was loaded.
    pub fn check_files(&self) -> Result<()> {
        for (path, loaded) in &self.files {
            if !loaded.is_still(&Stamp::of(path)?) {
                return Err(Error::model_file(format!("{} has changed since it was loaded", path.display())));
            }
        }
        Ok(())
    }

    /// 32 hexadecimal digits over all bytes: equal only for the same weights, to the last bit. Reads the
    /// files the first time, unless some process has done so before and they have not changed since.
    ///
    /// # Errors
    /// `ModelFile` if a file has changed or gone since it was loaded, `Cancelled` when the progress says so.
    pub fn exact(&self, progress: &dyn Progress) -> Result<&str> {
        // Not `get_or_init`: a child that was forked meanwhile would wait for a thread that it does not have.
        if let Some(exact) = self.exact.get() {
            return Ok(exact);
        }
        let mut sum = Sha256::new_with_prefix(self.sum().0);
        for (path, loaded) in &self.files {
            sum.update(file_hash::remembered(path, loaded, self.threads, progress)?);
        }
        let _ = self.exact.set(hex(&sum.finalize(), 32));
        self.exact.get().map(String::as_str).ok_or_else(|| Error::internal("a hash was not kept"))
    }
}

/// A name that nothing else has.
fn unlike_any() -> Sum {
    let mut sum = Sum::default();
    if getrandom::fill(&mut sum).is_err() {
        let now = std::time::SystemTime::now();
        sum = Sha256::digest(format!("{now:?} {} {:p}", std::process::id(), &sum)).into();
    }
    sum
}

fn sampled(part: &[u8]) -> Sum {
    if part.len() <= WHOLE {
        return Sha256::digest(part).into();
    }
    let mut sum = Sha256::new();
    let last = part.len() - SAMPLE_BYTES;
    for i in 0..SAMPLES - 1 {
        let from = last / (SAMPLES - 1) * i;
        sum.update(part.get(from..from + SAMPLE_BYTES).unwrap_or_default());
    }
    sum.update(part.get(last..).unwrap_or_default());
    sum.finalize().into()
}

/// What `work` makes of each item, in their order, on up to `threads` threads; the first error ends it.
pub(super) fn each<T: Sync>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T) -> Result<Sum> + Sync,
) -> Result<Vec<Sum>> {
    let next = AtomicUsize::new(0);
    let run = || -> Result<Vec<(usize, Sum)>> {
        let mut done = Vec::new();
        loop {
            let at = next.fetch_add(1, Ordering::Relaxed);
            let Some(item) = items.get(at) else { return Ok(done) };
            let sum = work(item).inspect_err(|_| next.store(items.len(), Ordering::Relaxed))?;
            done.push((at, sum));
        }
    };
    let mut done = thread::scope(|scope| {
        // Where no thread can be had, this one does it all.
        let others = (1..threads.min(items.len()))
            .filter_map(|_| thread::Builder::new().name("tallow-hash".into()).spawn_scoped(scope, run).ok());
        let others: Vec<_> = others.collect();
        let mut done = run()?;
        for other in others {
            done.extend(other.join().map_err(|_| Error::internal("hashing panicked"))??);
        }
        Ok::<_, Error>(done)
    })?;
    done.sort_unstable_by_key(|(at, _)| *at);
    Ok(done.into_iter().map(|(_, sum)| sum).collect())
}

pub(super) fn hex(sum: &[u8], digits: usize) -> String {
    sum.iter().take(digits / 2).map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::hub::NoProgress;
    use crate::weights::safetensors;

    /// A norm of 64 numbers, a matrix of 6 MiB, and a file of another kind beside them.
    fn checkpoint(folder: &Path) -> (PathBuf, PathBuf, usize) {
        let header = r#"{"big":{"dtype":"F32","shape":[1536,1024],"data_offsets":[0,6291456]},
            "norm":{"dtype":"F32","shape":[64],"data_offsets":[6291456,6291712]}}"#;
        let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
        bytes.extend(header.as_bytes());
        let data = bytes.len();
        bytes.extend((0..6291712u32).map(|i| (i.wrapping_mul(2654435761) >> 24) as u8));
        let (weights, beside) = (folder.join("model.safetensors"), folder.join("config.json"));
        std::fs::write(&weights, bytes).unwrap();
        std::fs::write(&beside, "{}").unwrap();
        (weights, beside, data)
    }

    fn identity(weights: &Path, beside: &Path, options: &str, threads: usize) -> Identity {
        Identity::new(
            Arc::new(safetensors::open(weights).unwrap()),
            &[("config.json".to_string(), beside.to_path_buf())],
            options,
            threads,
        )
        .unwrap()
    }

    #[test]
    fn what_changes_an_answer_changes_a_name() {
        let folder = tempfile::tempdir().unwrap();
        let (weights, beside, data) = checkpoint(folder.path());
        let names = |options: &str, threads: usize| {
            let identity = identity(&weights, &beside, options, threads);
            (identity.fingerprint().to_string(), identity.exact(&NoProgress).unwrap().to_string())
        };
        let sound = names("a", 1);
        assert_eq!((sound.0.len(), sound.1.len()), (16, 32));
        assert_eq!(names("a", 3), sound, "threads do not count");
        assert_ne!(names("b", 1).0, sound.0);
        let flipped = |at: usize| {
            let mut bytes = std::fs::read(&weights).unwrap();
            bytes[at] ^= 1;
            std::fs::write(&weights, &bytes).unwrap();
            let names = names("a", 2);
            bytes[at] ^= 1;
            std::fs::write(&weights, &bytes).unwrap();
            names
        };
        for (what, at, sampled) in [
            ("one weight of a norm", data + 6291456 + 17, true),
            ("the last weight of a norm", data + 6291712 - 1, true),
            ("the first byte of a large tensor", data, true),
            ("the last byte of a large tensor", data + 6291456 - 1, true),
            ("between the samples of a large tensor", data + SAMPLE_BYTES + 100_000, false),
        ] {
            let (fingerprint, exact) = flipped(at);
            assert_eq!(fingerprint != sound.0, sampled, "{what}");
            assert_ne!(exact, sound.1, "{what}");
        }
        std::fs::write(&beside, "{ }").unwrap();
        let other = names("a", 1);
        assert!(other.0 != sound.0 && other.1 != sound.1);
    }

    #[test]
    fn a_file_that_changed_after_loading_has_no_exact_name() {
        let folder = tempfile::tempdir().unwrap();
        let (weights, beside, _) = checkpoint(folder.path());
        let loaded = identity(&weights, &beside, "", 1);
        std::fs::remove_file(&weights).unwrap();
        let gone = loaded.exact(&NoProgress).unwrap_err();
        assert!(gone.message().contains("model.safetensors"), "{gone}");
        std::fs::write(&weights, "another").unwrap();
        let changed = loaded.exact(&NoProgress).unwrap_err();
        assert!(changed.message().contains("changed since it was loaded"), "{changed}");
    }

    #[test]
    fn the_first_error_ends_the_work() {
        let items: Vec<usize> = (0..100).collect();
        let fail =
            |item: &usize| if *item == 3 { Err(Error::internal("three")) } else { Ok([*item as u8; 32]) };
        assert_eq!(each(&items, 4, fail).unwrap_err().message(), "three");
        let sums = each(&items, 4, |item| Ok([*item as u8; 32])).unwrap();
        assert!(sums.iter().zip(&items).all(|(sum, item)| sum[0] == *item as u8) && sums.len() == 100);
        assert!(each(&[] as &[usize], 4, fail).unwrap().is_empty());
    }
}
