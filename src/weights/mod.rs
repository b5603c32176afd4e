//! Weights: from a file on disk to named tensors that are still in the file's own format.
//!
//! [`Weights`] maps a tensor's name to its bytes; it comes from a GGUF file ([`gguf`]) or from safetensors
//! ([`safetensors`]). Nothing is converted or copied here: a [`WeightTensor`] is a slice of the mapped file
//! with a type and a shape (f64 alone becomes f32 here, and several tensors of a quantizer one matrix:
//! [`quantized`]). [`blocks`] says what the bytes mean, [`quantize`] makes smaller ones at load.
//!
//! The readers trust nothing: every count is held against the bytes that are left before memory is asked
//! for, every size is computed with checks, and every failure is an error that names the file. One tensor of
//! a type that is not read does not spoil a file: only asking for it is an error.

pub mod blocks;
pub mod bytes;
pub mod dtype;
pub mod gguf;
pub mod names;
mod packed;
pub mod quantize;
pub mod quantized;
pub mod safetensors;
pub mod write;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

pub use self::bytes::Bytes;
pub use self::dtype::WeightType;
pub use self::gguf::{Gguf, Metadata};
use self::packed::Beside;
use self::quantized::Quantization;
use self::write::StoredType;
use crate::error::{Context, Error, Result, quoted};

/// One tensor, as it is stored.
#[derive(Clone, Debug)]
pub struct WeightTensor {
    pub name: String,
    pub dtype: WeightType,
    /// Row-major, outermost first, as Hugging Face and numpy write it; a linear layer is `[out, in]`.
    /// GGUF files write it the other way round: it is turned when read.
    pub shape: Vec<usize>,
    /// Rows one after another, each [`WeightType::row_bytes`] of the last dimension; as many as the shape
    /// says. Not aligned: safetensors may begin a tensor at any byte.
    pub data: Bytes,
}

impl WeightTensor {
    /// One of f32 that is in memory.
    pub fn floats(name: &str, shape: Vec<usize>, values: Vec<f32>) -> Self {
        let data = Bytes::from_vec(values.iter().flat_map(|value| value.to_le_bytes()).collect());
        WeightTensor { name: name.to_owned(), dtype: WeightType::F32, shape, data }
    }

    /// How many weights it holds.
    pub fn elements(&self) -> usize {
        self.shape.iter().product()
    }

    /// All its weights as f32, in row-major order. For small tensors (norms, biases) and for tests: a large
    /// one takes four bytes a weight.
    pub fn to_f32(&self) -> Vec<f32> {
        let mut values = vec![0.0; self.elements()];
        blocks::dequantize_row(self.dtype, &self.data, &mut values);
        values
    }
}

/// How a checkpoint is stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    Gguf,
    /// A `.safetensors` file, an index of such files, or a folder with either.
    Safetensors,
}

/// Says what a file holds by its first bytes, never by its name. A folder is looked into for safetensors.
///
/// # Errors
/// `ModelFile` when it cannot be read or is no model at all (a Git LFS pointer, a web page);
/// `UnsupportedModel` for formats that are not read, above all pickle, which can run any code when loaded.
pub fn detect(path: &Path) -> Result<Format> {
    let file = if path.is_dir() { safetensors::in_folder(path)? } else { path.to_path_buf() };
    match sniff(&Bytes::map_file(&file)?).context(file.display())? {
        Content::Gguf => Ok(Format::Gguf),
        Content::Safetensors | Content::Index => Ok(Format::Safetensors),
    }
}

impl Weights {
    /// Opens a checkpoint of either format (for GGUF without its metadata: see [`Gguf::open`]).
    pub fn open(path: &Path) -> Result<Weights> {
        match detect(path)? {
            Format::Gguf => Ok(Gguf::open(path)?.weights),
            Format::Safetensors => safetensors::open(path),
        }
    }
}

/// What a file holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Content {
    Gguf,
    Safetensors,
    /// JSON, which is then the index of safetensors shards.
    Index,
}

fn sniff(bytes: &[u8]) -> Result<Content> {
    if bytes.starts_with(&gguf::MAGIC) {
        return Ok(Content::Gguf);
    }
    // A length below 2^32 and the brace of the JSON header. Before pickle: a length may begin like one.
    if bytes.get(4..9) == Some(b"\0\0\0\0{".as_slice()) {
        return Ok(Content::Safetensors);
    }
    let text = bytes.trim_ascii_start();
    if text.starts_with(b"{") {
        return Ok(Content::Index);
    }
    let legacy_ggml = [&b"tjgg"[..], b"lmgg", b"fmgg"];
    Err(match bytes {
        [] => Error::model_file("the file is empty; download it again"),
        _ if bytes.starts_with(b"PK\x03\x04") || matches!(bytes, [0x80, 2..=5, ..]) => refuse_pickle(),
        _ if legacy_ggml.iter().any(|magic| bytes.starts_with(magic)) => {
            Error::unsupported("this is a ggml file from before GGUF; use a GGUF file of the model")
        }
        _ if bytes.starts_with(b"version https://git-lfs") => Error::model_file(
            "this is a Git LFS pointer, not the model; fetch the file itself with `git lfs pull` or from the hub",
        ),
        _ if text.starts_with(b"<") => Error::model_file(
            "this is a web page, not a model; the download was answered with an error or a login",
        ),
        _ => Error::model_file("this is neither a GGUF nor a safetensors file"),
    })
}

fn refuse_pickle() -> Error {
    Error::unsupported(
        "this is a PyTorch pickle or zip file; loading one can run any code, so it is never loaded: \
         use the safetensors files of the model",
    )
}

/// What helps with a quantized checkpoint that is not run.
const REMEDY: &str = "which is not run yet: use the original model or a GGUF file of it";

/// f64 as f32, in half of the memory.
fn narrowed(bytes: &[u8]) -> Result<Vec<u8>> {
    let mut narrowed = Vec::with_capacity(bytes.len() / 2);
    for wide in bytes.as_chunks().0 {
        let wide = f64::from_le_bytes(*wide);
        let narrow = wide as f32;
        if narrow.is_infinite() && wide.is_finite() {
            return Err(Error::model_file(format!(
                "holds {wide:e}, which is beyond what is computed with (f32)"
            )));
        }
        narrowed.extend_from_slice(&narrow.to_le_bytes());
    }
    Ok(narrowed)
}

/// The tensors of a checkpoint by name, over one file or several.
#[derive(Debug)]
pub struct Weights {
    source: PathBuf,
    files: Vec<(PathBuf, Bytes)>,
    tensors: BTreeMap<String, Entry>,
    /// What headers say of tensors beside their types, by their names, as JSON (torchao).
    said: BTreeMap<String, String>,
    /// How the tensors were taken together that are one matrix.
    quantization: Option<Quantization>,
    /// Where the tensors that were taken together begin and end, by file.
    joined_borders: Vec<(usize, [usize; 2])>,
}

/// Where a tensor is. Readers check an entry before they insert it.
#[derive(Debug)]
struct Entry {
    stored: Stored,
    shape: Vec<usize>,
    /// Index into [`Weights::files`].
    file: usize,
    /// Byte range in that file.
    range: std::ops::Range<usize>,
    /// Whether it was asked for: what nobody asks for was meant for another model.
    read: AtomicBool,
}

impl Entry {
    fn new(stored: Stored, shape: Vec<usize>, file: usize, range: std::ops::Range<usize>) -> Self {
        Entry { stored, shape, file, range, read: AtomicBool::new(false) }
    }
}

#[derive(Debug)]
enum Stored {
    Read(WeightType),
    /// Little-endian f64, which becomes f32 when it is asked for: nothing here computes with more.
    F64,
    /// A type that is not read: its name, and its id where the format has one.
    Other(String),
    /// Several tensors that are one matrix; the entry has no bytes of its own.
    Joined(Arc<quantized::Matrix>),
}

impl Weights {
    fn new(source: &Path) -> Self {
        Weights {
            source: source.to_path_buf(),
            files: Vec::new(),
            tensors: BTreeMap::new(),
            said: BTreeMap::new(),
            quantization: None,
            joined_borders: Vec::new(),
        }
    }

    /// Adds a file and returns its index for [`Entry::file`].
    fn add_file(&mut self, path: &Path, bytes: Bytes) -> usize {
        self.files.push((path.to_path_buf(), bytes));
        self.files.len() - 1
    }

    /// Adds a tensor; a name may come only once.
    fn insert(&mut self, name: String, entry: Entry) -> Result<()> {
        if self.tensors.contains_key(&name) {
            return Err(Error::model_file(format!("the tensor {} is there twice", quoted(&name))));
        }
        self.tensors.insert(name, entry);
        Ok(())
    }

    /// The names of all tensors, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// How many tensors there are.
    pub fn len(&self) -> usize {
        self.tensors.len()
    }

    pub fn is_empty(&self) -> bool {
        self.tensors.is_empty()
    }

    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// A tensor by name; shares the file's memory, but for f64, which becomes f32.
    ///
    /// # Errors
    /// `ModelFile` naming the file and the tensor when there is none of that name, or when an f64 is beyond
    /// f32. `UnsupportedModel` naming the type when it is stored in a format that is not read, and the format
    /// of a quantized checkpoint where other tensors beside it tell.
    pub fn get(&self, name: &str) -> Result<WeightTensor> {
        let entry = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let (path, bytes) = self.files.get(entry.file).ok_or_else(|| self.missing(name))?;
        entry.read.store(true, Ordering::Relaxed);
        let data = || bytes.slice(entry.range.clone()).context(path.display());
        let (dtype, data) = match &entry.stored {
            Stored::Read(dtype) => (*dtype, data()?),
            Stored::F64 => {
                let narrowed =
                    narrowed(&data()?).context(format!("{}: the tensor {name:?}", path.display()))?;
                (WeightType::F32, Bytes::from_vec(narrowed))
            }
            Stored::Other(stored) => return Err(self.unsupported(name, stored).context(path.display())),
            Stored::Joined(matrix) => {
                let tensor = matrix.tensor().context(path.display())?;
                return Ok(WeightTensor { shape: entry.shape.clone(), ..tensor });
            }
        };
        Ok(WeightTensor { name: name.to_owned(), dtype, shape: entry.shape.clone(), data })
    }

    /// Says that a tensor is known to change nothing: it is not among those that nobody has asked for.
    pub fn pass_over(&self, name: &str) {
        if let Some(entry) = self.tensors.get(name) {
            entry.read.store(true, Ordering::Relaxed);
        }
    }

    /// The shape and the bytes of a tensor of plain bytes (U8), which hold weights in a way that the tensor
    /// itself does not tell.
    ///
    /// # Errors
    /// As [`Weights::get`]; `ModelFile` when it is of another type.
    pub fn bytes(&self, name: &str) -> Result<(&[usize], Bytes)> {
        let entry = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let (path, bytes) = self.files.get(entry.file).ok_or_else(|| self.missing(name))?;
        entry.read.store(true, Ordering::Relaxed);
        let whole = entry.shape.iter().try_fold(1usize, |all, dim| all.checked_mul(*dim));
        match &entry.stored {
            Stored::Other(stored) if stored == "U8" && whole == Some(entry.range.len()) => {
                Ok((&entry.shape, bytes.slice(entry.range.clone()).context(path.display())?))
            }
            _ => Err(Error::model_file(format!(
                "{}: the tensor {name:?} must hold plain bytes (U8)",
                path.display()
            ))),
        }
    }

    /// How a tensor is stored, its shape, and its bytes as they are; also of one whose type is not read, if
    /// its size is known.
    ///
    /// # Errors
    /// `ModelFile` when there is none of that name; `UnsupportedModel` naming a type whose size is not known.
    pub fn as_stored(&self, name: &str) -> Result<(StoredType, &[usize], Bytes)> {
        let entry = self.tensors.get(name).ok_or_else(|| self.missing(name))?;
        let (path, bytes) = self.files.get(entry.file).ok_or_else(|| self.missing(name))?;
        let dtype = match &entry.stored {
            Stored::Read(dtype) => StoredType::Weights(*dtype),
            Stored::F64 => StoredType::Other("F64".into()),
            Stored::Other(stored) if entry.range.is_empty() && !entry.shape.contains(&0) => {
                return Err(self.unsupported(name, stored).context(path.display()));
            }
            Stored::Other(stored) => StoredType::Other(stored.clone()),
            Stored::Joined(_) => {
                return Err(self.unsupported(name, "several tensors").context(path.display()));
            }
        };
        Ok((dtype, &entry.shape, bytes.slice(entry.range.clone()).context(path.display())?))
    }

    fn missing(&self, name: &str) -> Error {
        let source = self.source.display();
        match self.beside(name) {
            None => Error::model_file(format!("{source}: there is no tensor {name:?}")),
            Some(Beside { name: there, format: None }) => Error::model_file(format!(
                "{source}: there is no tensor {name:?}; {} is there instead",
                quoted(there)
            )),
            Some(Beside { name: there, format: Some(format) }) => Error::unsupported(format!(
                "{source}: there is no tensor {name:?}; {} is there instead: {format}, {REMEDY}",
                quoted(there)
            )),
        }
    }

    fn unsupported(&self, name: &str, stored: &str) -> Error {
        Error::unsupported(match self.beside(name) {
            Some(Beside { name: there, format: Some(format) }) => format!(
                "the tensor {name:?} is stored as {stored}, with {} beside it: {format}, {REMEDY}",
                quoted(there)
            ),
            _ => format!(
                "the tensor {name:?} is stored as {stored}, which is not read; use a file with another \
                 quantization"
            ),
        })
    }

    /// The names of the tensors that nobody has asked for, sorted.
    pub fn unread(&self) -> impl Iterator<Item = &str> {
        let unread = self.tensors.iter().filter(|(_, entry)| !entry.read.load(Ordering::Relaxed));
        unread.map(|(name, _)| name.as_str())
    }

    /// The shape of a tensor, outermost dimension first; also of one whose type is not read.
    pub fn shape(&self, name: &str) -> Option<&[usize]> {
        self.tensors.get(name).map(|entry| entry.shape.as_slice())
    }

    /// The file that holds a tensor, for messages; what was opened if there is no such tensor.
    pub fn file_of(&self, name: &str) -> &Path {
        let file = self.tensors.get(name).and_then(|entry| self.files.get(entry.file));
        file.map_or(&self.source, |(path, _)| path)
    }

    /// What was opened: the file, the index, or the folder.
    pub fn source(&self) -> &Path {
        &self.source
    }

    /// The files that hold the tensors.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(path, _)| path.as_path())
    }

    /// Each file with its map.
    pub fn maps(&self) -> impl Iterator<Item = (&Path, &Bytes)> {
        self.files.iter().map(|(path, bytes)| (path.as_path(), bytes))
    }

    /// Each file with its bytes, and where its tensors begin and end: ascending, with 0 and the file's
    /// length.
    pub fn extents(&self) -> Vec<(&Path, &[u8], Vec<usize>)> {
        let mut extents: Vec<_> =
            self.files.iter().map(|(path, bytes)| (path.as_path(), &**bytes, vec![0, bytes.len()])).collect();
        let of_tensors =
            self.tensors.values().map(|entry| (entry.file, [entry.range.start, entry.range.end]));
        for (file, ends) in of_tensors.chain(self.joined_borders.iter().copied()) {
            if let Some((_, _, borders)) = extents.get_mut(file) {
                borders.extend(ends);
            }
        }
        for (_, bytes, borders) in &mut extents {
            borders.retain(|border| *border <= bytes.len());
            borders.sort_unstable();
            borders.dedup();
        }
        extents
    }

    /// Bytes of all tensors, as stored.
    pub fn total_bytes(&self) -> u64 {
        let bytes = |entry: &Entry| match &entry.stored {
            Stored::Joined(matrix) => matrix.bytes() as u64,
            _ => entry.range.len() as u64,
        };
        self.tensors.values().map(bytes).sum()
    }
}
