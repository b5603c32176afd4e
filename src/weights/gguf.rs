//! GGUF: llama.cpp's model file. Header, metadata, tensor table, then the tensors at aligned offsets.
//!
//! [`Gguf::open`] maps the file, reads everything before the tensors once into plain data, and checks each
//! tensor against the file: its type, its size, that it lies inside and that no two overlap. Versions 2 and
//! 3, little endian. The format is described in `docs/gguf.md` of ggml-org/ggml.
//!
//! A large model may come as parts, `NAME-00001-of-00003.gguf` and so on. Opening the first part opens them
//! all; the metadata of the first is the model's.

mod metadata;
mod reader;
mod split;

use std::ops::Range;
use std::path::Path;

pub use self::metadata::{Array, Metadata, StrArray, Value};
use self::reader::Reader;
use super::bytes::Bytes;
use super::dtype::{WeightType, ggml_type_name};
use super::{Entry, Stored, Weights};
use crate::error::{Context, Error, Result, quoted};

pub(super) const MAGIC: [u8; 4] = *b"GGUF";

const ALIGNMENT_KEY: &str = "general.alignment";
/// What an absent key means.
pub(super) const DEFAULT_ALIGNMENT: u64 = 32;
const ALIGNMENTS: std::ops::RangeInclusive<u64> = 8..=65_536;
const MAX_DIMS: u32 = 4;
/// The id of f64, which is no [`WeightType`]: it becomes f32.
pub(super) const F64: u32 = 28;
/// The fewest bytes of a tensor's entry: an empty name, no dimensions, type and offset.
const LEAST_TENSOR: usize = 8 + 4 + 4 + 8;

/// A GGUF file: what it says about the model, and its tensors.
#[derive(Debug)]
pub struct Gguf {
    pub metadata: Metadata,
    pub weights: Weights,
}

impl Gguf {
    /// Opens a GGUF file, with its other parts if it is the first of several.
    ///
    /// # Errors
    /// `ModelFile` when the file is missing, damaged, cut short, or not the first part of a split model, or
    /// when another part is missing; `UnsupportedModel` for version 1 and big-endian files.
    pub fn open(path: &Path) -> Result<Gguf> {
        Gguf::from_bytes(Bytes::map_file(path)?, path)
    }

    /// As [`Gguf::open`], for the bytes of a file that is in memory; `path` is for messages, and where other
    /// parts would be looked for.
    pub fn from_bytes(bytes: Bytes, path: &Path) -> Result<Gguf> {
        let first = Part::read(&bytes).context(path.display())?;
        let mut weights = Weights::new(path);
        let mut others = split::other_parts(path, &first.metadata).context(path.display())?;
        let announced = first.metadata.u64(split::TENSORS_KEY).context(path.display())?;
        let metadata = first.add_to(&mut weights, path, bytes)?;
        for (index, path) in others.drain(..) {
            let bytes = Bytes::map_file(&path)
                .context("a part of the model is missing; put all parts into one folder")?;
            let part = Part::read(&bytes).context(path.display())?;
            split::check_part(&part.metadata, &metadata, index).context(path.display())?;
            part.add_to(&mut weights, &path, bytes)?;
        }
        match announced {
            Some(count) if count != weights.len() as u64 => Err(Error::model_file(format!(
                "{}: the parts hold {} tensors together and {count} are announced",
                path.display(),
                weights.len()
            ))),
            _ => Ok(Gguf { metadata, weights }),
        }
    }
}

/// The metadata of a file as it is encoded: each key with the bytes of key and value.
///
/// # Errors
/// As [`Gguf::open`].
pub fn encoded_pairs(bytes: &[u8]) -> Result<Vec<(&str, &[u8])>> {
    let mut reader = Reader::new(bytes);
    check_version(&mut reader)?;
    reader.u64("the number of tensors")?;
    let count = reader.u64("the number of metadata keys")?;
    metadata::encoded(&mut reader, count, bytes)
}

/// One file, read and checked.
struct Part {
    metadata: Metadata,
    tensors: Vec<(String, Tensor)>,
}

/// A tensor's entry in the table, with its place in the file.
struct Tensor {
    stored: Stored,
    shape: Vec<usize>,
    range: Range<usize>,
}

impl Part {
    fn read(bytes: &[u8]) -> Result<Part> {
        let mut reader = Reader::new(bytes);
        check_version(&mut reader)?;
        let tensor_count = reader.u64("the number of tensors")?;
        let pair_count = reader.u64("the number of metadata keys")?;
        let metadata = metadata::read(&mut reader, pair_count)?;
        let alignment = alignment(&metadata)?;
        let mut tensors = read_tensors(&mut reader, tensor_count)?;
        place_tensors(&mut tensors, reader.position(), alignment, bytes.len())?;
        Ok(Part { metadata, tensors })
    }

    fn add_to(self, weights: &mut Weights, path: &Path, bytes: Bytes) -> Result<Metadata> {
        let file = weights.add_file(path, bytes);
        for (name, Tensor { stored, shape, range }) in self.tensors {
            weights.insert(name, Entry::new(stored, shape, file, range)).context(path.display())?;
        }
        Ok(self.metadata)
    }
}

fn check_version(reader: &mut Reader) -> Result<()> {
    if reader.array::<4>("the magic number")? != MAGIC {
        return Err(Error::model_file("this is not a GGUF file: it does not begin with \"GGUF\""));
    }
    match reader.u32("the version")? {
        2 | 3 => Ok(()),
        1 => Err(Error::unsupported(
            "GGUF version 1 is not read (it was replaced in 2023); convert the model anew with a current llama.cpp",
        )),
        version if (1..=3).contains(&version.swap_bytes()) => Err(Error::unsupported(
            "this GGUF file is big endian, which is not read; use the little-endian file of the model",
        )),
        version => {
            Err(Error::unsupported(format!("GGUF version {version} is not read; versions 2 and 3 are")))
        }
    }
}

fn alignment(metadata: &Metadata) -> Result<u64> {
    let alignment = metadata.u64(ALIGNMENT_KEY)?.unwrap_or(DEFAULT_ALIGNMENT);
    if !alignment.is_power_of_two() || !ALIGNMENTS.contains(&alignment) {
        return Err(Error::model_file(format!(
            "{ALIGNMENT_KEY} is {alignment}; it must be a power of two from {} to {}",
            ALIGNMENTS.start(),
            ALIGNMENTS.end()
        )));
    }
    Ok(alignment)
}

/// The tensor table. Ranges count from the start of the data still: [`place_tensors`] moves them.
fn read_tensors(reader: &mut Reader, count: u64) -> Result<Vec<(String, Tensor)>> {
    let most = (reader.left() / LEAST_TENSOR) as u64;
    if count > most {
        return Err(reader.error(format!("{count} tensors are announced and at most {most} fit")));
    }
    let mut tensors = Vec::new();
    for _ in 0..count {
        let name = reader.name("a tensor's name")?;
        let tensor =
            read_tensor(reader).map_err(|error| error.context(format!("tensor {}", quoted(name))))?;
        tensors.push((name.to_owned(), tensor));
    }
    Ok(tensors)
}

fn read_tensor(reader: &mut Reader) -> Result<Tensor> {
    let dims = reader.u32("the number of dimensions")?;
    if dims > MAX_DIMS {
        return Err(reader.error(format!("it has {dims} dimensions; at most {MAX_DIMS} are allowed")));
    }
    let mut shape = Vec::with_capacity(MAX_DIMS as usize);
    for _ in 0..dims {
        let dim = reader.u64("a dimension")?;
        let dim = usize::try_from(dim).ok().filter(|dim| *dim > 0);
        shape.push(dim.ok_or_else(|| reader.error("a dimension is zero or too large".into()))?);
    }
    // Innermost first in the file, outermost first everywhere here.
    shape.reverse();
    let type_id = reader.u32("the type")?;
    let offset = reader.u64("the offset")?;
    let start =
        usize::try_from(offset).map_err(|_| reader.error(format!("the offset {offset} is too large")))?;
    let (stored, size) = match WeightType::from_ggml(type_id) {
        Some(dtype) => (Stored::Read(dtype), data_bytes(dtype, &shape)?),
        None if type_id == F64 => {
            let size = data_bytes(WeightType::F32, &shape)?.checked_mul(2);
            (Stored::F64, size.ok_or_else(|| reader.error("its size is too large".into()))?)
        }
        // Its size is not known, so it takes no room in the checks and can never be asked for.
        None => (Stored::Other(describe_type(type_id)), 0),
    };
    let end = start.checked_add(size).ok_or_else(|| reader.error("its end is too large".into()))?;
    Ok(Tensor { stored, shape, range: start..end })
}

fn describe_type(id: u32) -> String {
    format!("{} (GGUF type {id})", ggml_type_name(id).unwrap_or("an unknown type"))
}

/// The bytes of a tensor, if its size is possible at all.
fn data_bytes(dtype: WeightType, shape: &[usize]) -> Result<usize> {
    let (k, outer) = shape.split_last().map_or((1, &[][..]), |(k, outer)| (*k, outer));
    if !k.is_multiple_of(dtype.block_len()) {
        return Err(Error::model_file(format!(
            "its rows have {k} weights, which are not whole blocks of {} ({dtype})",
            dtype.block_len()
        )));
    }
    let size =
        dtype.row_bytes(k).and_then(|row| outer.iter().try_fold(row, |size, dim| size.checked_mul(*dim)));
    size.ok_or_else(|| Error::model_file(format!("its shape {shape:?} is larger than any memory")))
}

/// Moves the ranges to where the data starts, and checks that all lie in the file and apart.
fn place_tensors(
    tensors: &mut [(String, Tensor)],
    header: usize,
    alignment: u64,
    file_len: usize,
) -> Result<()> {
    // The data starts at the next aligned byte; a file without tensors may end before it.
    let align = alignment as usize;
    let start = header.next_multiple_of(align);
    for (name, tensor) in tensors.iter_mut() {
        let range = &tensor.range;
        if !range.start.is_multiple_of(align) {
            let message =
                format!("the tensor {} begins at {}, not a multiple of {align}", quoted(name), range.start);
            return Err(Error::model_file(message));
        }
        let end = range.end.checked_add(start).filter(|end| *end <= file_len);
        tensor.range = match end {
            Some(end) => start + range.start..end,
            None => {
                return Err(Error::model_file(format!(
                    "the file is cut short: the tensor {} ends {} bytes after the header and the file {} \
                     bytes after it; download it again",
                    quoted(name),
                    range.end,
                    file_len.saturating_sub(start)
                )));
            }
        };
    }
    check_apart(tensors)
}

fn check_apart(tensors: &[(String, Tensor)]) -> Result<()> {
    let mut order: Vec<_> = tensors.iter().filter(|(_, tensor)| !tensor.range.is_empty()).collect();
    order.sort_by_key(|(_, tensor)| tensor.range.start);
    for pair in order.windows(2) {
        if let [(a, first), (b, second)] = pair
            && second.range.start < first.range.end
        {
            return Err(Error::model_file(format!("the tensors {} and {} overlap", quoted(a), quoted(b))));
        }
    }
    Ok(())
}
