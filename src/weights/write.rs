//! Files of weights that are written: safetensors, in parts where they are large, and GGUF.
//!
//! What a file holds is planned first, so that its header is known; then each tensor is asked for when its
//! turn comes, and never all of them are in memory.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use super::gguf::{DEFAULT_ALIGNMENT, F64, MAGIC};
use super::{WeightTensor, WeightType};
use crate::error::{Error, Result};

/// How the numbers of a tensor are stored.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StoredType {
    Weights(WeightType),
    /// Another one, by its name in safetensors: bytes that are handed on.
    Other(String),
}

impl StoredType {
    pub fn name(&self) -> &str {
        match self {
            StoredType::Weights(dtype) => dtype.name(),
            StoredType::Other(name) => name,
        }
    }

    fn ggml_id(&self) -> Result<u32> {
        match self {
            StoredType::Weights(dtype) => dtype.ggml_id().ok_or_else(|| {
                Error::unsupported(format!(
                    "{dtype} is a format of memory alone, which is not written as GGUF"
                ))
            }),
            StoredType::Other(name) if name == "F64" => Ok(F64),
            StoredType::Other(name) => Err(Error::unsupported(format!("{name} is not written as GGUF"))),
        }
    }
}

/// A tensor that will be written.
#[derive(Clone, Debug)]
pub struct Planned {
    pub name: String,
    pub dtype: StoredType,
    /// Outermost first.
    pub shape: Vec<usize>,
    pub bytes: u64,
}

impl Planned {
    /// One of weights, if its rows are whole blocks.
    pub fn of_weights(name: String, dtype: WeightType, shape: Vec<usize>) -> Result<Planned> {
        let (k, outer) = shape.split_last().map_or((1, &[][..]), |(k, outer)| (*k, outer));
        let row = dtype.row_bytes(k);
        let size = row.and_then(|row| outer.iter().try_fold(row, |size, dim| size.checked_mul(*dim)));
        let bytes = size.ok_or_else(|| Error::internal(format!("{name} cannot be stored as {dtype}")))?;
        Ok(Planned { name, dtype: StoredType::Weights(dtype), shape, bytes: bytes as u64 })
    }
}

/// Writes the bytes of one planned tensor.
pub type Fill<'a> = dyn FnMut(&Planned, &mut dyn Write) -> Result<()> + 'a;

/// Writes `model.safetensors` into a folder, or, where the tensors take more than `limit` bytes, parts of up
/// to that with their index.
///
/// # Errors
/// `ModelFile` naming the file where it cannot be written; what `fill` says.
pub fn safetensors(folder: &Path, tensors: &[Planned], limit: u64, fill: &mut Fill) -> Result<()> {
    let parts = parts(tensors, limit);
    let name = |part: usize| match parts.len() {
        1 => "model.safetensors".to_string(),
        count => format!("model-{:05}-of-{count:05}.safetensors", part + 1),
    };
    let mut map = Map::new();
    for (number, part) in parts.iter().enumerate() {
        part_of_safetensors(&folder.join(name(number)), part, fill)?;
        map.extend(part.iter().map(|tensor| (tensor.name.clone(), Value::from(name(number)))));
    }
    if parts.len() > 1 {
        let size: u64 = tensors.iter().map(|tensor| tensor.bytes).sum();
        let index = json!({"metadata": {"total_size": size}, "weight_map": map});
        let path = folder.join("model.safetensors.index.json");
        std::fs::write(&path, format!("{index:#}\n")).map_err(|error| unwritten(&path, error))?;
    }
    Ok(())
}

/// Neighbours together, each part of at least one tensor.
fn parts(tensors: &[Planned], limit: u64) -> Vec<Vec<&Planned>> {
    let (mut parts, mut size) = (vec![Vec::new()], 0u64);
    for tensor in tensors {
        if size > 0 && size.saturating_add(tensor.bytes) > limit {
            parts.push(Vec::new());
            size = 0;
        }
        size = size.saturating_add(tensor.bytes);
        if let Some(part) = parts.last_mut() {
            part.push(tensor);
        }
    }
    parts
}

fn part_of_safetensors(path: &Path, tensors: &[&Planned], fill: &mut Fill) -> Result<()> {
    // transformers asks for this key.
    let mut header = Map::from_iter([("__metadata__".to_string(), json!({"format": "pt"}))]);
    let mut at = 0u64;
    for tensor in tensors {
        let end = at + tensor.bytes;
        let entry = json!({"dtype": tensor.dtype.name(), "shape": tensor.shape, "data_offsets": [at, end]});
        header.insert(tensor.name.clone(), entry);
        at = end;
    }
    let mut text = Value::Object(header).to_string().into_bytes();
    text.resize(text.len().next_multiple_of(8), b' ');
    let mut file = Output::create(path)?;
    file.put(&(text.len() as u64).to_le_bytes())?;
    file.put(&text)?;
    for tensor in tensors {
        file.tensor(tensor, fill)?;
    }
    file.finish()
}

/// Writes a GGUF file. `pairs`: its metadata, each key with its value, encoded.
///
/// # Errors
/// As [`safetensors`]; `UnsupportedModel` for a type that GGUF has not.
pub fn gguf(path: &Path, pairs: &[Vec<u8>], tensors: &[Planned], fill: &mut Fill) -> Result<()> {
    let mut file = Output::create(path)?;
    file.put(&gguf_table(pairs, tensors)?)?;
    for tensor in tensors {
        file.align()?;
        file.tensor(tensor, fill)?;
    }
    file.align()?;
    file.finish()
}

/// A small GGUF file, in memory.
pub fn gguf_bytes(pairs: &[Vec<u8>], planned: &[Planned], tensors: &[WeightTensor]) -> Result<Vec<u8>> {
    let align = DEFAULT_ALIGNMENT as usize;
    let mut file = gguf_table(pairs, planned)?;
    for tensor in tensors {
        file.resize(file.len().next_multiple_of(align), 0);
        file.extend_from_slice(&tensor.data);
    }
    file.resize(file.len().next_multiple_of(align), 0);
    Ok(file)
}

/// A GGUF file up to the tensors' bytes.
fn gguf_table(pairs: &[Vec<u8>], tensors: &[Planned]) -> Result<Vec<u8>> {
    let mut header = gguf_start(pairs, tensors.len());
    let mut at = 0u64;
    for tensor in tensors {
        header.extend((tensor.name.len() as u64).to_le_bytes());
        header.extend(tensor.name.as_bytes());
        header.extend((tensor.shape.len() as u32).to_le_bytes());
        header.extend(tensor.shape.iter().rev().flat_map(|dim| (*dim as u64).to_le_bytes()));
        header.extend(tensor.dtype.ggml_id()?.to_le_bytes());
        header.extend(at.to_le_bytes());
        at = (at + tensor.bytes).next_multiple_of(DEFAULT_ALIGNMENT);
    }
    Ok(header)
}

/// The beginning of a GGUF file: how many tensors there are, and the metadata.
fn gguf_start(pairs: &[Vec<u8>], tensors: usize) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend(3u32.to_le_bytes());
    header.extend((tensors as u64).to_le_bytes());
    header.extend((pairs.len() as u64).to_le_bytes());
    header.extend(pairs.iter().flatten());
    header
}

/// A GGUF file of metadata alone.
pub fn gguf_header(pairs: &[Vec<u8>]) -> Vec<u8> {
    gguf_start(pairs, 0)
}

/// A key of GGUF with its value, encoded: the number of the value's type, and its bytes.
fn gguf_pair(key: &str, kind: u32, value: &[u8]) -> Vec<u8> {
    [&(key.len() as u64).to_le_bytes()[..], key.as_bytes(), &kind.to_le_bytes(), value].concat()
}

/// A key of GGUF with a number (u32), encoded.
pub fn gguf_u32(key: &str, value: u32) -> Vec<u8> {
    gguf_pair(key, 4, &value.to_le_bytes())
}

/// The same with a float (f32).
pub fn gguf_f32(key: &str, value: f32) -> Vec<u8> {
    gguf_pair(key, 6, &value.to_le_bytes())
}

pub fn gguf_bool(key: &str, value: bool) -> Vec<u8> {
    gguf_pair(key, 7, &[u8::from(value)])
}

pub fn gguf_str(key: &str, value: &str) -> Vec<u8> {
    gguf_pair(key, 8, &gguf_text(value))
}

/// A list of texts.
pub fn gguf_strs<'a>(key: &str, values: impl ExactSizeIterator<Item = &'a str>) -> Vec<u8> {
    let count = values.len();
    gguf_pair(key, 9, &gguf_list(8, count, values.flat_map(gguf_text)))
}

/// A list of whole numbers (i32).
pub fn gguf_i32s(key: &str, values: &[i32]) -> Vec<u8> {
    gguf_pair(key, 9, &gguf_list(5, values.len(), values.iter().flat_map(|value| value.to_le_bytes())))
}

/// A list of floats (f32).
pub fn gguf_f32s(key: &str, values: &[f32]) -> Vec<u8> {
    gguf_pair(key, 9, &gguf_list(6, values.len(), values.iter().flat_map(|value| value.to_le_bytes())))
}

fn gguf_text(text: &str) -> Vec<u8> {
    [&(text.len() as u64).to_le_bytes()[..], text.as_bytes()].concat()
}

fn gguf_list(kind: u32, count: usize, items: impl Iterator<Item = u8>) -> Vec<u8> {
    kind.to_le_bytes().into_iter().chain((count as u64).to_le_bytes()).chain(items).collect()
}

/// llama.cpp's numbers for files whose weights are mostly of one type.
const FILE_TYPES: [(&str, u32); 15] = [
    ("F32", 0),
    ("F16", 1),
    ("Q4_0", 2),
    ("Q4_1", 3),
    ("Q8_0", 7),
    ("Q5_0", 8),
    ("Q5_1", 9),
    ("Q2_K", 10),
    ("Q3_K", 12),
    ("Q4_K", 15),
    ("Q5_K", 17),
    ("Q6_K", 18),
    ("IQ4_NL", 25),
    ("IQ4_XS", 30),
    ("BF16", 32),
];

/// llama.cpp's number for a file of these tensors, if most weights are of a type that has one.
pub fn gguf_file_type<'a>(tensors: impl Iterator<Item = &'a Planned>) -> Option<u32> {
    let mut shares: Vec<(&str, usize)> = Vec::new();
    for planned in tensors {
        let (name, count) = (planned.dtype.name(), planned.shape.iter().product::<usize>());
        match shares.iter_mut().find(|(other, _)| *other == name) {
            Some((_, sum)) => *sum += count,
            None => shares.push((name, count)),
        }
    }
    let (most, _) = shares.into_iter().max_by_key(|(_, sum)| *sum)?;
    FILE_TYPES.iter().find(|(name, _)| *name == most).map(|(_, id)| *id)
}

/// A file that is being written, and how long it is so far.
struct Output {
    path: PathBuf,
    file: BufWriter<File>,
    len: u64,
}

impl Output {
    fn create(path: &Path) -> Result<Output> {
        let file = File::create(path).map_err(|error| unwritten(path, error))?;
        Ok(Output { path: path.to_path_buf(), file: BufWriter::with_capacity(1 << 20, file), len: 0 })
    }

    fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).map_err(|error| unwritten(&self.path, error))
    }

    fn align(&mut self) -> Result<()> {
        let gap = self.len.next_multiple_of(DEFAULT_ALIGNMENT) - self.len;
        self.put(&vec![0; gap as usize])
    }

    fn tensor(&mut self, tensor: &Planned, fill: &mut Fill) -> Result<()> {
        let start = self.len;
        fill(tensor, self).map_err(|error| error.context(self.path.display()))?;
        match self.len - start == tensor.bytes {
            true => Ok(()),
            false => Err(Error::internal(format!("{} was planned otherwise than written", tensor.name))),
        }
    }

    fn finish(mut self) -> Result<()> {
        let done = self.file.flush().and_then(|()| self.file.get_ref().sync_all());
        done.map_err(|error| unwritten(&self.path, error))
    }
}

impl Write for Output {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes)?;
        self.len += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

/// The error of a file that cannot be written.
pub fn unwritten(path: &Path, error: io::Error) -> Error {
    Error::model_file(format!("{} cannot be written: {error}", path.display())).with_source(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::{Gguf, Weights};

    fn tensors() -> Vec<Planned> {
        let of = |name: &str, dtype, shape: &[usize]| {
            Planned::of_weights(name.to_string(), dtype, shape.to_vec()).unwrap()
        };
        vec![
            of("a", WeightType::F16, &[3, 2]),
            of("b", WeightType::F32, &[5]),
            of("c", WeightType::BF16, &[2, 2, 3]),
        ]
    }

    /// Bytes that tell tensors and places apart.
    fn bytes(tensor: &Planned) -> Vec<u8> {
        (0..tensor.bytes as u8).map(|at| tensor.name.as_bytes()[0] ^ at).collect()
    }

    fn fill(tensor: &Planned, out: &mut dyn Write) -> Result<()> {
        out.write_all(&bytes(tensor)).map_err(|error| unwritten(Path::new("x"), error))
    }

    fn check(weights: &Weights) {
        for tensor in tensors() {
            let read = weights.get(&tensor.name).unwrap();
            assert_eq!(read.shape, tensor.shape);
            assert_eq!(StoredType::Weights(read.dtype), tensor.dtype);
            assert_eq!(read.data[..], bytes(&tensor), "{}", tensor.name);
        }
        assert_eq!(weights.len(), tensors().len());
    }

    #[test]
    fn safetensors_are_read_back_whole_and_in_parts() {
        for (limit, files) in [(u64::MAX, 1), (32, 3), (1, 4)] {
            let folder = tempfile::tempdir().unwrap();
            safetensors(folder.path(), &tensors(), limit, &mut fill).unwrap();
            check(&Weights::open(folder.path()).unwrap());
            assert_eq!(folder.path().read_dir().unwrap().count(), files, "{limit}");
        }
    }

    #[test]
    fn gguf_is_read_back() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("m.gguf");
        gguf(&path, &[gguf_u32("general.file_type", 7)], &tensors(), &mut fill).unwrap();
        let read = Gguf::open(&path).unwrap();
        check(&read.weights);
        assert_eq!(read.metadata.u32("general.file_type").unwrap(), Some(7));
    }

    #[test]
    fn a_tensor_of_another_length_than_planned_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        let short = &mut |_: &Planned, _: &mut dyn Write| Ok(());
        let error = safetensors(folder.path(), &tensors(), u64::MAX, short).unwrap_err();
        assert!(error.message().contains("planned"), "{error}");
    }
}
