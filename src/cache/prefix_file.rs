//! A prefix on disk: the tokens of whole pages and what was computed of them, as safetensors.
//!
//! | tensor | type | shape |
//! |---|---|---|
//! | `tokens` | U32 | `[pages * PAGE]` |
//! | `state` | U8 | `[bytes]`: what the engine needs to go on from there (`engine/prefix_io`), little-endian f32, or pages of bytes as they are |
//!
//! The metadata names the format, the computation that the numbers belong to (model, context, device: any
//! other one would give other numbers), and a SHA-256 of both tensors: answers computed from a damaged prefix
//! would be wrong without anybody noticing.

use std::collections::HashMap;
use std::path::Path;

use safetensors::tensor::{Dtype, SafeTensors, TensorView};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::small_file::staged;
use crate::step::PAGE;
use crate::weights::bytes::Bytes;

const FORMAT: &str = "tallow prefix 4";

/// What is in the file.
pub struct Prefix {
    /// A multiple of `PAGE`, at least one page.
    pub tokens: Vec<u32>,
    /// What was computed of them.
    pub bytes: Bytes,
}

impl Prefix {
    /// Writes the file; who reads it sees the old one or the whole new one.
    ///
    /// # Errors
    /// `ModelFile` if it cannot be written.
    pub fn write(&self, path: &Path, computation: &str) -> Result<()> {
        self.write_unless(path, computation, &|| false)
    }

    /// As [`write`](Self::write), unless `cancelled` says, before the file becomes visible, that nobody wants
    /// it.
    ///
    /// # Errors
    /// `Cancelled` then; there is no file, or the old one.
    pub fn write_unless(&self, path: &Path, computation: &str, cancelled: &dyn Fn() -> bool) -> Result<()> {
        let failed = |error: &dyn std::fmt::Display| {
            Error::model_file(format!("{}: the prefix cannot be written: {error}", path.display()))
        };
        let tokens: Vec<u8> = self.tokens.iter().flat_map(|token| token.to_le_bytes()).collect();
        let views = [
            ("tokens", TensorView::new(Dtype::U32, vec![self.tokens.len()], &tokens)),
            ("state", TensorView::new(Dtype::U8, vec![self.bytes.len()], &self.bytes)),
        ];
        let mut tensors = Vec::new();
        for (name, view) in views {
            tensors.push((name, view.map_err(|error| failed(&error))?));
        }
        let metadata = HashMap::from([
            ("format".to_string(), FORMAT.to_string()),
            ("computation".to_string(), computation.to_string()),
            ("sha256".to_string(), checksum(&tokens, &self.bytes)),
        ]);
        let staged = staged(path);
        let written = safetensors::serialize_to_file(tensors, Some(metadata), &staged);
        let wanted = || match cancelled() {
            true => Err(Error::cancelled("saving the prefix was cancelled")),
            false => Ok(()),
        };
        let outcome = written
            .map_err(|error| failed(&error))
            .and_then(|()| wanted())
            .and_then(|()| std::fs::rename(&staged, path).map_err(|error| failed(&error)));
        if outcome.is_err() {
            let _ = std::fs::remove_file(&staged);
        }
        outcome
    }

    /// Reads a file that belongs to this computation.
    ///
    /// # Errors
    /// `ModelFile` if it is missing, damaged, or belongs to another computation.
    pub fn read(path: &Path, computation: &str) -> Result<Prefix> {
        let bytes = Bytes::map_file(path)?;
        let refuse = |why: &str| Error::model_file(format!("{}: {why}", path.display()));
        let (_, header) = SafeTensors::read_metadata(&bytes)
            .map_err(|error| refuse("this is not a saved prefix, or it is damaged").with_source(error))?;
        let empty = HashMap::new();
        let entry =
            |key: &str| header.metadata().as_ref().unwrap_or(&empty).get(key).cloned().unwrap_or_default();
        if entry("format") != FORMAT {
            return Err(refuse("this is not a prefix that save_prefix of this version wrote"));
        }
        if entry("computation") != computation {
            return Err(refuse(&format!(
                "this prefix was computed by another model, or on another kind of machine ({:.100}, and here it \
                 is {computation}); save it again with this one",
                entry("computation")
            )));
        }
        let file = SafeTensors::deserialize(&bytes)
            .map_err(|error| refuse("the saved prefix is damaged").with_source(error))?;
        let tensor =
            |name: &str| file.tensor(name).map_err(|_| refuse(&format!("it has no tensor {name:?}")));
        let (tokens, state) = (tensor("tokens")?, tensor("state")?);
        let count = tokens.data().len() / 4 / PAGE;
        let sound = tokens.dtype() == Dtype::U32
            && state.dtype() == Dtype::U8
            && count > 0
            && tokens.shape() == [count * PAGE];
        if !sound || entry("sha256") != checksum(tokens.data(), state.data()) {
            return Err(refuse("the saved prefix is damaged; save it again"));
        }
        let read = |word: &[u8]| word.try_into().map_or(u32::MAX, u32::from_le_bytes);
        let tokens = tokens.data().chunks_exact(4).map(read).collect();
        let begin = state.data().as_ptr() as usize - bytes.as_ptr() as usize;
        let bytes = bytes.slice(begin..begin + state.data().len())?;
        Ok(Prefix { tokens, bytes })
    }
}

fn checksum(tokens: &[u8], state: &[u8]) -> String {
    let mut hash = Sha256::new();
    hash.update(tokens);
    hash.update(state);
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn what_was_written_is_read_and_nothing_else() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("prefix.safetensors");
        let tokens: Vec<u32> = (0..2 * PAGE as u32).collect();
        let pages: Vec<u8> = (0..2 * 24).collect();
        let prefix = Prefix { tokens: tokens.clone(), bytes: Bytes::from_vec(pages.clone()) };
        let cancelled = prefix.write_unless(&path, "a/cpu", &|| true).unwrap_err();
        assert_eq!(cancelled.kind(), ErrorKind::Cancelled);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0, "a cancelled prefix left a file");
        prefix.write(&path, "a/cpu").unwrap();
        let again = Prefix::read(&path, "a/cpu").unwrap();
        assert_eq!((again.tokens, &again.bytes[..]), (tokens, &pages[..]));
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);

        let whole = std::fs::read(&path).unwrap();
        let flipped = |at: usize| {
            let mut bytes = whole.clone();
            bytes[at] ^= 1;
            bytes
        };
        let end = whole.len();
        for (what, bytes, computation) in [
            ("another model", whole.clone(), "b/cpu"),
            ("a flipped bit in a page", flipped(end - 1), "a/cpu"),
            ("a flipped bit in the header", flipped(20), "a/cpu"),
            ("cut short", whole[..end - 1].to_vec(), "a/cpu"),
            ("a lying length", [&[255; 8][..], &whole[8..]].concat(), "a/cpu"),
            ("empty", vec![], "a/cpu"),
            ("text", b"hello, this is not a prefix".to_vec(), "a/cpu"),
        ] {
            std::fs::write(&path, bytes).unwrap();
            let error = Prefix::read(&path, computation).err().expect(what);
            assert_eq!(error.kind(), ErrorKind::ModelFile, "{what}: {error}");
            assert!(error.message().contains("prefix.safetensors"), "{what}: {error}");
        }
        let nowhere = folder.path().join("no/such/folder");
        assert_eq!(prefix.write(&nowhere, "a").unwrap_err().kind(), ErrorKind::ModelFile);
    }
}
