//! safetensors: Hugging Face's weight file. A length, a JSON header, then the tensors without gaps.
//!
//! The `safetensors` crate reads and checks the header; the tensors are slices of our own map. Large models
//! come as shards with an index, `model.safetensors.index.json`, whose `weight_map` says which file holds
//! which tensor. The index comes from strangers, so a file it names must be a plain name in its own folder.
//!
//! Tensors begin wherever the header ends: their bytes need not be aligned to anything.

use std::collections::btree_map::Entry as Place;
use std::collections::{BTreeMap, HashMap};
use std::path::{Component, Path, PathBuf};

use safetensors::Dtype;
use safetensors::tensor::{Metadata, TensorInfo};
use serde::Deserialize;
use serde::de::{Deserializer, Error as _, MapAccess, Visitor};

use super::bytes::Bytes;
use super::dtype::WeightType;
use super::{Content, Entry, Stored, Weights, sniff};
use crate::error::{Context, Error, PARAGRAPH, Result, quoted, shortened};

const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";
const ADAPTER: &str = "adapter_model.safetensors";
const METADATA: &str = "__metadata__";
/// Bytes of the name of a file, on all systems at most.
const LONGEST_NAME: usize = 255;
/// The most that a header or an index may take, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;

/// Opens a `.safetensors` file, an index of shards, or a folder that holds either.
///
/// In a folder the index goes first, then `model.safetensors`, then the only `*.safetensors` there is.
///
/// # Errors
/// `ModelFile` when a file is missing, damaged, cut short, or does not hold what its index says;
/// `UnsupportedModel` when it is another format.
pub fn open(path: &Path) -> Result<Weights> {
    let file = if path.is_dir() { in_folder(path)? } else { path.to_path_buf() };
    let mut weights = from_bytes(Bytes::map_file(&file)?, &file)?;
    weights.source = path.to_path_buf();
    Ok(weights)
}

/// As [`open`], for the bytes of a file that is in memory; `path` is for messages, and where shards would be
/// looked for.
pub fn from_bytes(bytes: Bytes, path: &Path) -> Result<Weights> {
    let mut weights = Weights::new(path);
    match sniff(&bytes).context(path.display())? {
        Content::Safetensors => {
            let (tensors, said) = read_header(&bytes).context(path.display())?;
            add_file(&mut weights, path, bytes, tensors.into_iter())?;
            weights.said.extend(said);
        }
        Content::Index => add_shards(&mut weights, path, &bytes)?,
        Content::Gguf => {
            return Err(Error::unsupported(format!("{}: this is GGUF, not safetensors", path.display())));
        }
    }
    Ok(weights)
}

/// The file of a folder to begin with.
pub(super) fn in_folder(folder: &Path) -> Result<PathBuf> {
    for name in [INDEX, SINGLE] {
        let file = folder.join(name);
        if file.is_file() {
            return Ok(file);
        }
    }
    let fail = |error| Error::model_file(format!("{}: cannot list the folder: {error}", folder.display()));
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(fail)? {
        names.push(PathBuf::from(entry.map_err(fail)?.file_name()));
    }
    let ending = |ending: &str| {
        let mut found: Vec<_> =
            names.iter().filter(|name| name.extension().is_some_and(|found| found == ending)).collect();
        found.sort();
        found
    };
    let mut files = ending("safetensors");
    files.retain(|name| name.as_os_str() != ADAPTER);
    match files.as_slice() {
        [one] => Ok(folder.join(one)),
        [] if !ending("bin").is_empty() => Err(pickle(folder)),
        [] => Err(Error::model_file(format!(
            "{}: there is no safetensors file in this folder",
            folder.display()
        ))),
        [first, second, ..] => Err(Error::model_file(format!(
            "{}: there are several safetensors files ({}, {}, …) and no {INDEX}; name one of them",
            folder.display(),
            first.display(),
            second.display()
        ))),
    }
}

fn pickle(folder: &Path) -> Error {
    super::refuse_pickle().context(folder.display())
}

/// A tensor of a header: its name, type, shape and range in the file.
struct Tensor {
    name: String,
    stored: Stored,
    shape: Vec<usize>,
    range: std::ops::Range<usize>,
}

/// What a header says of tensors beside their types, by their names, as JSON.
type Said = HashMap<String, String>;

/// Reads the header and checks it against the file.
fn read_header(bytes: &[u8]) -> Result<(Vec<Tensor>, Said)> {
    let len = bytes.first_chunk().map(|len| u64::from_le_bytes(*len));
    let len = len.ok_or_else(|| Error::model_file("the file has no room for a safetensors header"))?;
    if len > MAX_HEADER {
        let message = format!("the safetensors header would have {len} bytes; the limit is {MAX_HEADER}");
        return Err(Error::model_file(message));
    }
    let start = 8 + len as usize;
    let Some(header) = bytes.get(8..start) else {
        return Err(Error::model_file(
            "the file is cut short within its safetensors header; download it again",
        ));
    };
    // `SafeTensors::read_metadata` would do this too, but it adds up the sizes of the file unchecked.
    let Header(header) = serde_json::from_slice(header).map_err(|error| {
        let at = culprit(header).map_or(String::new(), |name| format!(" at the tensor {}", quoted(&name)));
        let error = shortened(error, PARAGRAPH);
        Error::model_file(format!("the safetensors header is malformed{at}: {error}"))
    })?;
    let data_len = bytes.len() - start;
    if header.data_len() != data_len {
        return Err(Error::model_file(format!(
            "its tensors take {} bytes and the file holds {data_len} for them; download it again",
            header.data_len()
        )));
    }
    let place = |(name, info): (String, &safetensors::tensor::TensorInfo)| {
        // Without weights a tensor has no bytes, whatever its other dimensions; the crate checks all others.
        let rest = info.shape.iter().filter(|dim| **dim > 0);
        if rest.copied().try_fold(info.dtype.bitsize(), usize::checked_mul).is_none() {
            return Err(Error::model_file(format!(
                "the shape of the tensor {} is larger than any memory",
                quoted(&name)
            )));
        }
        let (from, to) = info.data_offsets;
        // Inside the file: the crate checks that ranges are in order without gaps, so all end by `data_len`.
        let range = start + from.min(data_len)..start + to.min(data_len);
        Ok(Tensor { name, stored: stored(info.dtype), shape: info.shape.clone(), range })
    };
    let said = header.metadata().iter().flatten().filter(|(_, text)| text.starts_with('{'));
    let said = said.map(|(name, text)| (name.clone(), text.clone())).collect();
    let tensors: Result<_> = header.tensors().into_iter().map(place).collect();
    Ok((tensors?, said))
}

/// The header as the crate checks it, and no name in it twice: the crate takes the last one of a name, and of
/// two tensors in the same range of bytes (`F16` and `BF16`, say) it would silently choose one.
struct Header(Metadata);

impl<'de> Deserialize<'de> for Header {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_map(HeaderVisitor).map(Header)
    }
}

struct HeaderVisitor;

impl<'de> Visitor<'de> for HeaderVisitor {
    type Value = Metadata;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("an object of tensors")
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Metadata, A::Error> {
        let mut tensors = BTreeMap::<String, TensorInfo>::new();
        let mut metadata = None;
        while let Some(name) = map.next_key::<String>()? {
            if name == METADATA {
                metadata = map.next_value::<Option<HashMap<String, String>>>()?;
                continue;
            }
            match tensors.entry(name) {
                Place::Vacant(place) => place.insert(map.next_value()?),
                Place::Occupied(place) => {
                    let name = quoted(place.key());
                    return Err(A::Error::custom(format!("the tensor {name} is there twice")));
                }
            };
        }
        let mut tensors: Vec<_> = tensors.into_iter().collect();
        tensors.sort_by_key(|(_, info)| info.data_offsets);
        Metadata::new(metadata, tensors).map_err(A::Error::custom)
    }
}

/// The tensor that makes a header malformed, which the crate does not name: the first that cannot be read, or
/// whose shape does not take the bytes that it claims.
fn culprit(header: &[u8]) -> Option<String> {
    let mut entries: BTreeMap<String, serde_json::Value> = serde_json::from_slice(header).ok()?;
    entries.remove(METADATA);
    let fits = |entry: serde_json::Value| {
        let info: TensorInfo = serde_json::from_value(entry).ok()?;
        let count = info.shape.iter().try_fold(1usize, |count, dim| count.checked_mul(*dim))?;
        let (from, to) = info.data_offsets;
        // Types of less than a byte must fill their bytes.
        (count.checked_mul(info.dtype.bitsize())? == to.checked_sub(from)?.checked_mul(8)?).then_some(())
    };
    entries.into_iter().find_map(|(name, entry)| fits(entry).is_none().then_some(name))
}

fn stored(dtype: Dtype) -> Stored {
    match dtype {
        Dtype::F32 => Stored::Read(WeightType::F32),
        Dtype::F16 => Stored::Read(WeightType::F16),
        Dtype::BF16 => Stored::Read(WeightType::BF16),
        Dtype::F64 => Stored::F64,
        other => Stored::Other(format!("{other:?}")),
    }
}

fn add_file(
    weights: &mut Weights,
    path: &Path,
    bytes: Bytes,
    tensors: impl Iterator<Item = Tensor>,
) -> Result<()> {
    let file = weights.add_file(path, bytes);
    for Tensor { name, stored, shape, range } in tensors {
        weights.insert(name, Entry::new(stored, shape, file, range)).context(path.display())?;
    }
    Ok(())
}

#[derive(Deserialize)]
struct Index {
    weight_map: BTreeMap<String, String>,
}

/// Opens every shard that the index names and takes from each the tensors that the index says it holds.
fn add_shards(weights: &mut Weights, path: &Path, bytes: &[u8]) -> Result<()> {
    if bytes.len() as u64 > MAX_HEADER {
        return Err(Error::model_file(format!("{}: the index is too large", path.display())));
    }
    let index: Index = serde_json::from_slice(bytes).map_err(|error| {
        let error = shortened(error, PARAGRAPH);
        Error::model_file(format!(
            "{}: this is JSON, but no index of a model's files ({error}); give the folder, or the file with the \
             weights",
            path.display()
        ))
    })?;
    let mut shards = BTreeMap::<&str, Vec<&str>>::new();
    for (tensor, shard) in &index.weight_map {
        check_name(shard).context(format!("{}: the shard of {}", path.display(), quoted(tensor)))?;
        shards.entry(shard).or_default().push(tensor);
    }
    for (shard, names) in shards {
        let shard = path.with_file_name(shard);
        let bytes = Bytes::map_file(&shard).context("a shard of the model is missing or unreadable")?;
        let (found, said) = read_shard(&bytes).context(shard.display())?;
        for (name, text) in said {
            if weights.said.insert(name.clone(), text.clone()).is_some_and(|other| other != text) {
                let message = format!("another shard says something else of {}", quoted(&name));
                return Err(Error::model_file(message).context(shard.display()));
            }
        }
        let mut found: BTreeMap<_, _> =
            found.into_iter().map(|tensor| (tensor.name.clone(), tensor)).collect();
        let mut wanted = Vec::with_capacity(names.len());
        for name in names {
            wanted.push(found.remove(name).ok_or_else(|| {
                Error::model_file(format!(
                    "{}: there is no tensor {}, which {INDEX} says is here",
                    shard.display(),
                    quoted(name)
                ))
            })?);
        }
        add_file(weights, &shard, bytes, wanted.into_iter())?;
    }
    Ok(())
}

fn read_shard(bytes: &[u8]) -> Result<(Vec<Tensor>, Said)> {
    match sniff(bytes)? {
        Content::Safetensors => read_header(bytes),
        Content::Index | Content::Gguf => Err(Error::model_file("this shard is not a safetensors file")),
    }
}

/// That a shard's name is the name of a file in the same folder, on any system.
fn check_name(name: &str) -> Result<()> {
    let mut components = Path::new(name).components();
    let plain = matches!((components.next(), components.next()), (Some(Component::Normal(_)), None));
    // A colon is a drive or a second stream on Windows.
    if !plain || name.contains(['/', '\\', ':', '\0']) {
        return Err(Error::model_file(format!(
            "{} is not a plain file name, and only those are opened",
            quoted(name)
        )));
    }
    if name.len() > LONGEST_NAME {
        let message = format!("{} is longer than the name of a file can be", quoted(name));
        return Err(Error::model_file(message));
    }
    Ok(())
}
