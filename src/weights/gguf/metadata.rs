//! The key-value part of a GGUF file, as plain data.
//!
//! [`Metadata`] holds [`Value`]s by key. Its typed getters all answer `Result<Option<_>>`: `None` when the
//! key is absent (most keys are optional), an error naming the key when it is there with another type. They
//! are lenient about the *width* of numbers, because writers are: a count may be any integer type.
//!
//! Vocabularies hold a quarter of a million strings, so arrays keep their native element type and strings
//! lie in one arena ([`StrArray`]): a vocabulary takes about the memory that it takes in the file.
//!
//! Text that is not UTF-8 does not spoil a file: it is read with replacement characters, and only asking for
//! an array with such strings through [`Metadata::strs`] is an error, since tokens must not be altered
//! silently.

use std::borrow::Cow;
use std::collections::BTreeMap;

use super::reader::Reader;
use crate::error::{Error, Result, quoted};

/// How deep arrays may be nested. Nothing known nests at all; the bound keeps the recursion small.
const MAX_DEPTH: usize = 64;

/// The fewest bytes that a key-value pair takes: an empty key, its type, one byte.
const LEAST_PAIR: usize = 8 + 4 + 1;

/// One metadata value. Integers and floats of any width are widened; [`Array`]s are not.
#[derive(Clone, Debug, PartialEq)]
pub enum Value {
    Uint(u64),
    Int(i64),
    Float(f64),
    Bool(bool),
    Str(String),
    Array(Array),
}

/// A metadata array in its own element type.
#[derive(Clone, Debug, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    Strs(StrArray),
    Arrays(Vec<Array>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

/// Many strings in one allocation; what a `Vec<String>` would be at a third of the memory.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StrArray {
    text: String,
    /// Where each string ends in `text`.
    ends: Vec<usize>,
    /// The first string that was not UTF-8 and holds replacement characters now.
    lossy: Option<usize>,
}

impl StrArray {
    pub fn len(&self) -> usize {
        self.ends.len()
    }

    pub fn is_empty(&self) -> bool {
        self.ends.is_empty()
    }

    pub fn get(&self, index: usize) -> Option<&str> {
        let end = *self.ends.get(index)?;
        let start = index.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.text.get(start..end)
    }

    pub fn iter(&self) -> impl ExactSizeIterator<Item = &str> + Clone {
        (0..self.len()).map(|index| self.get(index).unwrap_or_default())
    }

    pub fn push(&mut self, text: &str) {
        self.text.push_str(text);
        self.ends.push(self.text.len());
    }

    fn push_bytes(&mut self, bytes: &[u8]) {
        let text = String::from_utf8_lossy(bytes);
        if matches!(text, Cow::Owned(_)) {
            self.lossy.get_or_insert(self.len());
        }
        self.push(&text);
    }
}

impl<S: AsRef<str>> FromIterator<S> for StrArray {
    fn from_iter<I: IntoIterator<Item = S>>(strings: I) -> Self {
        let mut array = StrArray::default();
        strings.into_iter().for_each(|text| array.push(text.as_ref()));
        array
    }
}

impl Value {
    /// What it is, for messages.
    fn kind(&self) -> &'static str {
        match self {
            Value::Uint(_) | Value::Int(_) => "an integer",
            Value::Float(_) => "a float",
            Value::Bool(_) => "a boolean",
            Value::Str(_) => "a string",
            Value::Array(Array::Strs(_)) => "an array of strings",
            Value::Array(Array::F32(_) | Array::F64(_)) => "an array of floats",
            Value::Array(Array::Bool(_)) => "an array of booleans",
            Value::Array(Array::Arrays(_)) => "an array of arrays",
            Value::Array(_) => "an array of integers",
        }
    }
}

/// The metadata of a GGUF file. Keys are sorted when iterated.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Metadata {
    pairs: BTreeMap<String, Value>,
}

/// So that tests (and readers of other formats) can write metadata down.
impl<K: Into<String>> FromIterator<(K, Value)> for Metadata {
    fn from_iter<I: IntoIterator<Item = (K, Value)>>(pairs: I) -> Self {
        Metadata { pairs: pairs.into_iter().map(|(key, value)| (key.into(), value)).collect() }
    }
}

impl Metadata {
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.pairs.get(key)
    }

    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.pairs.iter().map(|(key, value)| (key.as_str(), value))
    }

    pub fn len(&self) -> usize {
        self.pairs.len()
    }

    pub fn is_empty(&self) -> bool {
        self.pairs.is_empty()
    }

    /// A value read by `read`, which answers `None` when it is not the `wanted` thing.
    fn typed<'a, T>(
        &'a self,
        key: &str,
        wanted: &str,
        read: impl FnOnce(&'a Value) -> Option<T>,
    ) -> Result<Option<T>> {
        let Some(value) = self.pairs.get(key) else { return Ok(None) };
        let wrong = || {
            let kind = value.kind();
            Error::model_file(format!("the metadata key {key:?} should hold {wanted} and holds {kind}"))
        };
        read(value).map(Some).ok_or_else(wrong)
    }

    pub fn str(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |value| match value {
            Value::Str(text) => Some(text.as_str()),
            _ => None,
        })
    }

    pub fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a boolean", |value| match value {
            Value::Bool(value) => Some(*value),
            _ => None,
        })
    }

    /// Any integer type, not negative.
    pub fn u64(&self, key: &str) -> Result<Option<u64>> {
        self.typed(key, "an integer of 0 or more", |value| match value {
            Value::Uint(value) => Some(*value),
            Value::Int(value) => u64::try_from(*value).ok(),
            _ => None,
        })
    }

    /// As [`Metadata::u64`], for ids and small counts.
    pub fn u32(&self, key: &str) -> Result<Option<u32>> {
        match self.u64(key)?.map(u32::try_from) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => Err(Error::model_file(format!("the metadata key {key:?} is larger than 2^32"))),
        }
    }

    /// As [`Metadata::u64`], for sizes.
    pub fn usize(&self, key: &str) -> Result<Option<usize>> {
        match self.u64(key)?.map(usize::try_from) {
            None => Ok(None),
            Some(Ok(value)) => Ok(Some(value)),
            Some(Err(_)) => Err(Error::model_file(format!("the metadata key {key:?} is too large"))),
        }
    }

    /// A float of either width, or an integer.
    pub fn f32(&self, key: &str) -> Result<Option<f32>> {
        self.typed(key, "a number", |value| match value {
            Value::Float(value) => Some(*value as f32),
            Value::Uint(value) => Some(*value as f32),
            Value::Int(value) => Some(*value as f32),
            _ => None,
        })
    }

    /// An array of strings. An error also when one of them is not UTF-8.
    pub fn strs(&self, key: &str) -> Result<Option<&StrArray>> {
        let array = self.typed(key, "an array of strings", |value| match value {
            Value::Array(Array::Strs(array)) => Some(array),
            _ => None,
        })?;
        match array.and_then(|array| array.lossy) {
            Some(index) => {
                let what = format!("the metadata key {key:?}: the string with index {index} is not UTF-8");
                Err(Error::model_file(what))
            }
            None => Ok(array),
        }
    }

    /// An array of floats; f64 is narrowed.
    pub fn f32s(&self, key: &str) -> Result<Option<Cow<'_, [f32]>>> {
        self.typed(key, "an array of floats", |value| match value {
            Value::Array(Array::F32(array)) => Some(Cow::Borrowed(array.as_slice())),
            Value::Array(Array::F64(array)) => Some(array.iter().map(|value| *value as f32).collect()),
            _ => None,
        })
    }

    /// An array of any integer type whose values all fit.
    pub fn i32s(&self, key: &str) -> Result<Option<Cow<'_, [i32]>>> {
        self.typed(key, "an array of 32-bit integers", |value| match value {
            Value::Array(Array::I32(array)) => Some(Cow::Borrowed(array.as_slice())),
            Value::Array(array) => array.integers()?.map(|value| i32::try_from(value).ok()).collect(),
            _ => None,
        })
    }

    /// An array of any integer type, none negative.
    pub fn u64s(&self, key: &str) -> Result<Option<Vec<u64>>> {
        self.typed(key, "an array of integers of 0 or more", |value| match value {
            Value::Array(array) => array.integers()?.map(|value| u64::try_from(value).ok()).collect(),
            _ => None,
        })
    }

    pub fn bools(&self, key: &str) -> Result<Option<&[bool]>> {
        self.typed(key, "an array of booleans", |value| match value {
            Value::Array(Array::Bool(array)) => Some(array.as_slice()),
            _ => None,
        })
    }
}

impl Array {
    /// Its elements if they are integers; wide enough for every one.
    fn integers(&self) -> Option<Box<dyn Iterator<Item = i128> + '_>> {
        fn wide<T: Copy + Into<i128>>(values: &[T]) -> Option<Box<dyn Iterator<Item = i128> + '_>> {
            Some(Box::new(values.iter().map(|value| (*value).into())))
        }
        match self {
            Array::U8(values) => wide(values),
            Array::I8(values) => wide(values),
            Array::U16(values) => wide(values),
            Array::I16(values) => wide(values),
            Array::U32(values) => wide(values),
            Array::I32(values) => wide(values),
            Array::U64(values) => wide(values),
            Array::I64(values) => wide(values),
            Array::F32(_) | Array::F64(_) | Array::Bool(_) | Array::Strs(_) | Array::Arrays(_) => None,
        }
    }
}

/// Reads `count` pairs.
pub(super) fn read(reader: &mut Reader, count: u64) -> Result<Metadata> {
    let most = (reader.left() / LEAST_PAIR) as u64;
    if count > most {
        return Err(reader.error(format!("{count} metadata keys are announced and at most {most} fit")));
    }
    let mut metadata = Metadata::default();
    for _ in 0..count {
        let key = reader.name("a metadata key")?;
        let kind = reader.u32("a metadata type")?;
        let value = read_value(reader, kind)
            .map_err(|error| error.context(format!("metadata key {}", quoted(key))))?;
        if metadata.pairs.insert(key.to_owned(), value).is_some() {
            return Err(reader.error(format!("the metadata key {} is there twice", quoted(key))));
        }
    }
    Ok(metadata)
}

/// Each of `count` pairs as it stands in `bytes`, which the reader reads.
pub(super) fn encoded<'a>(
    reader: &mut Reader<'a>,
    count: u64,
    bytes: &'a [u8],
) -> Result<Vec<(&'a str, &'a [u8])>> {
    let mut pairs = Vec::new();
    for _ in 0..count {
        let start = reader.position();
        let key = reader.name("a metadata key")?;
        let kind = reader.u32("a metadata type")?;
        read_value(reader, kind)?;
        pairs.push((key, bytes.get(start..reader.position()).unwrap_or_default()));
    }
    Ok(pairs)
}

fn unknown_type(reader: &Reader, kind: u32) -> Error {
    reader.error(format!("{kind} is not a metadata value type (they are 0 to 12)"))
}

/// One value of the type with id `kind`.
fn read_value(reader: &mut Reader, kind: u32) -> Result<Value> {
    let what = "a value";
    Ok(match kind {
        0 => Value::Uint(u8::from_le_bytes(reader.array(what)?).into()),
        1 => Value::Int(i8::from_le_bytes(reader.array(what)?).into()),
        2 => Value::Uint(u16::from_le_bytes(reader.array(what)?).into()),
        3 => Value::Int(i16::from_le_bytes(reader.array(what)?).into()),
        4 => Value::Uint(reader.u32(what)?.into()),
        5 => Value::Int(i32::from_le_bytes(reader.array(what)?).into()),
        6 => Value::Float(f32::from_le_bytes(reader.array(what)?).into()),
        7 => Value::Bool(u8::from_le_bytes(reader.array(what)?) != 0),
        8 => Value::Str(String::from_utf8_lossy(reader.string("a string")?).into_owned()),
        9 => Value::Array(read_array(reader, MAX_DEPTH)?),
        10 => Value::Uint(reader.u64(what)?),
        11 => Value::Int(i64::from_le_bytes(reader.array(what)?)),
        12 => Value::Float(f64::from_le_bytes(reader.array(what)?)),
        _ => return Err(unknown_type(reader, kind)),
    })
}

/// An array: its element type, its length, its elements. `depth` more levels are allowed.
fn read_array(reader: &mut Reader, depth: usize) -> Result<Array> {
    let Some(depth) = depth.checked_sub(1) else {
        return Err(reader.error(format!("arrays are nested more than {MAX_DEPTH} deep")));
    };
    Ok(match reader.u32("an array's type")? {
        0 => Array::U8(numbers(reader, u8::from_le_bytes)?),
        1 => Array::I8(numbers(reader, i8::from_le_bytes)?),
        2 => Array::U16(numbers(reader, u16::from_le_bytes)?),
        3 => Array::I16(numbers(reader, i16::from_le_bytes)?),
        4 => Array::U32(numbers(reader, u32::from_le_bytes)?),
        5 => Array::I32(numbers(reader, i32::from_le_bytes)?),
        6 => Array::F32(numbers(reader, f32::from_le_bytes)?),
        7 => Array::Bool(numbers(reader, |[byte]: [u8; 1]| byte != 0)?),
        8 => Array::Strs(strings(reader)?),
        9 => {
            let count = reader.count(4 + 8, "an array's length")?;
            Array::Arrays((0..count).map(|_| read_array(reader, depth)).collect::<Result<_>>()?)
        }
        10 => Array::U64(numbers(reader, u64::from_le_bytes)?),
        11 => Array::I64(numbers(reader, i64::from_le_bytes)?),
        12 => Array::F64(numbers(reader, f64::from_le_bytes)?),
        kind => return Err(unknown_type(reader, kind)),
    })
}

fn numbers<const N: usize, T>(reader: &mut Reader, from: impl Fn([u8; N]) -> T) -> Result<Vec<T>> {
    let count = reader.count(N, "an array's length")?;
    let bytes = reader.take((count * N) as u64, "an array")?;
    Ok(bytes.as_chunks::<N>().0.iter().map(|chunk| from(*chunk)).collect())
}

fn strings(reader: &mut Reader) -> Result<StrArray> {
    let count = reader.count(8, "an array's length")?;
    let mut array = StrArray { ends: Vec::with_capacity(count), ..StrArray::default() };
    for _ in 0..count {
        array.push_bytes(reader.string("a string of an array")?);
    }
    array.text.shrink_to_fit();
    Ok(array)
}
