//! Python's values: ordered dicts, lists and tuples that know their depth, and how Python prints them.
//!
//! The depth is checked when a container is made, so that no walk (printing, comparing, dropping) can
//! overflow the stack.

use std::collections::HashMap;
use std::fmt::Write;
use std::sync::Arc;

use minijinja::value::{Enumerator, Object, ObjectRepr, ValueKind};
use minijinja::{Error, Value};

use super::limits::{DEPTH, charge, fail, is_mark, unmarked};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SeqKind {
    List,
    Tuple,
    /// A range, or what `items()`, `keys()` and `values()` give: to loop over, and no list when it is
    /// printed.
    View,
}

#[derive(Debug)]
pub struct Seq {
    pub items: Vec<Value>,
    pub kind: SeqKind,
    depth: u16,
}

impl Object for Seq {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let index = Num::of(key)?.int()?;
        let index = if index < 0 { index + self.items.len() as i128 } else { index };
        self.items.get(usize::try_from(index).ok()?).cloned()
    }
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.items.len())
    }
}

/// Above this many keys a dict keeps an index.
const SCAN: usize = 12;

#[derive(Debug)]
pub struct Dict {
    pub pairs: Vec<(Value, Value)>,
    index: HashMap<Arc<str>, usize>,
    depth: u16,
}

impl Dict {
    pub fn get(&self, key: &Value) -> Option<&Value> {
        match key.as_str() {
            Some(key) => self.get_str(key),
            None => self.pairs.iter().find(|(k, _)| scalar_eq(k, key)).map(|(_, v)| v),
        }
    }

    pub fn get_str(&self, key: &str) -> Option<&Value> {
        if self.index.is_empty() {
            return self.pairs.iter().find(|(k, _)| k.as_str() == Some(key)).map(|(_, v)| v);
        }
        self.index.get(key).and_then(|&i| self.pairs.get(i)).map(|(_, v)| v)
    }
}

impl Object for Dict {
    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        self.get(key).cloned()
    }
    fn get_value_by_str(self: &Arc<Self>, key: &str) -> Option<Value> {
        self.get_str(key).cloned()
    }
    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.pairs.iter().map(|(k, _)| k.clone()).collect())
    }
}

fn depth_of(value: &Value) -> Result<u16, Error> {
    let Some(object) = value.as_object() else { return Ok(0) };
    if let Some(seq) = object.downcast_ref::<Seq>() {
        return Ok(seq.depth);
    }
    match object.downcast_ref::<Dict>() {
        Some(dict) => Ok(dict.depth),
        // Namespaces, macros and loops hold other values: kept in a container they could be chained
        // deeper than the stack, and no chat template does it.
        None => Err(fail("a list, dict or namespace of a chat template can hold only data")),
    }
}

/// Fails unless `value` may be kept in a container.
pub fn storable(value: &Value) -> Result<u16, Error> {
    let depth = depth_of(value)?;
    if depth >= DEPTH { Err(fail("the template nests lists too deep")) } else { Ok(depth + 1) }
}

fn deepest<'a>(values: impl Iterator<Item = &'a Value>) -> Result<u16, Error> {
    values.into_iter().try_fold(1, |deepest, value| Ok(deepest.max(storable(value)?)))
}

pub fn seq(items: Vec<Value>, kind: SeqKind) -> Result<Value, Error> {
    charge(items.len().saturating_mul(24).saturating_add(24))?;
    let depth = deepest(items.iter())?;
    Ok(Value::from_object(Seq { items, kind, depth }))
}

pub fn list(items: Vec<Value>) -> Result<Value, Error> {
    seq(items, SeqKind::List)
}

pub fn tuple(items: Vec<Value>) -> Result<Value, Error> {
    seq(items, SeqKind::Tuple)
}

/// Of equal keys the last value counts, at the place of the first, as in Python.
pub fn dict(pairs: Vec<(Value, Value)>) -> Result<Value, Error> {
    charge(pairs.len().saturating_mul(96).saturating_add(64))?;
    let depth = deepest(pairs.iter().map(|(_, value)| value))?;
    let mut kept: Vec<(Value, Value)> = Vec::with_capacity(pairs.len());
    let mut index = HashMap::new();
    let indexed = pairs.len() > SCAN;
    for (key, value) in pairs {
        let found = match key.to_str() {
            Some(text) if indexed => {
                let next = kept.len();
                Some(*index.entry(text).or_insert(next)).filter(|&i| i < next)
            }
            _ => kept.iter().position(|(k, _)| scalar_eq(k, &key)),
        };
        match found.and_then(|i| kept.get_mut(i)) {
            Some(pair) => pair.1 = value,
            None => kept.push((key, value)),
        }
    }
    Ok(Value::from_object(Dict { pairs: kept, index, depth }))
}

fn scalar_eq(a: &Value, b: &Value) -> bool {
    match (Num::of(a), Num::of(b)) {
        (Some(a), Some(b)) => a.float() == b.float(),
        (None, None) => a == b,
        _ => false,
    }
}

/// A constant of the interpreter's as one of ours. Arguments by name stay what they are.
pub fn adopted(value: &Value) -> Result<Value, Error> {
    let each = || value.try_iter()?.map(|item| adopted(&item)).collect::<Result<Vec<_>, Error>>();
    match value.kind() {
        ValueKind::Seq if value.is_tuple() => tuple(each()?),
        ValueKind::Seq | ValueKind::Iterable => list(each()?),
        ValueKind::Map if !value.is_kwargs() => {
            let pairs = each()?.into_iter().map(|key| Ok((key.clone(), adopted(&value.get_item(&key)?)?)));
            dict(pairs.collect::<Result<_, Error>>()?)
        }
        _ => Ok(value.clone()),
    }
}

/// JSON to Python's values; `text` may change every string (see `literals`).
pub fn from_json(json: &serde_json::Value, text: &dyn Fn(&str) -> String) -> Result<Value, Error> {
    use serde_json::Value as Json;
    Ok(match json {
        Json::Null => Value::from(()),
        Json::Bool(b) => Value::from(*b),
        Json::Number(n) => match (n.as_i64(), n.as_u64()) {
            (Some(i), _) => Value::from(i),
            (_, Some(u)) => Value::from(u),
            _ => Value::from(n.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(s) => Value::from(text(s)),
        Json::Array(items) => {
            list(items.iter().map(|item| from_json(item, text)).collect::<Result<_, _>>()?)?
        }
        Json::Object(map) => dict(
            map.iter()
                .map(|(k, v)| Ok((Value::from(text(k)), from_json(v, text)?)))
                .collect::<Result<_, Error>>()?,
        )?,
    })
}

/// A number as Python's arithmetic sees it; `True` is 1.
#[derive(Clone, Copy)]
pub enum Num {
    Int(i128),
    Float(f64),
}

impl Num {
    pub fn of(value: &Value) -> Option<Num> {
        match value.kind() {
            ValueKind::Bool => Some(Num::Int(value.is_true() as i128)),
            ValueKind::Number if value.is_integer() => i128::try_from(value.clone()).ok().map(Num::Int),
            ValueKind::Number => f64::try_from(value.clone()).ok().map(Num::Float),
            _ => None,
        }
    }
    pub fn int(self) -> Option<i128> {
        if let Num::Int(i) = self { Some(i) } else { None }
    }
    pub fn float(self) -> f64 {
        match self {
            Num::Int(i) => i as f64,
            Num::Float(f) => f,
        }
    }
    pub fn value(self) -> Value {
        match self {
            Num::Int(i) => i64::try_from(i).map_or_else(|_| Value::from(i), Value::from),
            Num::Float(f) => Value::from(f),
        }
    }
}

/// The values of an iterable: a list's items, a dict's keys, a string's characters.
pub fn items(value: &Value) -> Result<Vec<Value>, Error> {
    if let Some(seq) = value.downcast_object_ref::<Seq>() {
        charge(seq.items.len() * 24)?;
        return Ok(seq.items.clone());
    }
    if let Some(text) = value.as_str() {
        let text = unmarked(text);
        charge(text.len().saturating_mul(96))?;
        return Ok(text.chars().map(|c| Value::from(c.to_string())).collect());
    }
    if value.is_undefined() {
        return Ok(Vec::new());
    }
    if value.as_object().is_none() {
        return Err(fail(format!("'{}' object is not iterable", type_name(value))));
    }
    charge(value.len().unwrap_or(0).saturating_mul(24))?;
    Ok(value.try_iter()?.collect())
}

pub fn type_name(value: &Value) -> &'static str {
    match value.kind() {
        ValueKind::Undefined => "Undefined",
        ValueKind::None => "NoneType",
        ValueKind::Bool => "bool",
        ValueKind::Number if value.is_integer() => "int",
        ValueKind::Number => "float",
        ValueKind::String => "str",
        ValueKind::Seq => match value.downcast_object_ref::<Seq>().map(|seq| seq.kind) {
            Some(SeqKind::Tuple) => "tuple",
            Some(SeqKind::View) => "range or dict view",
            _ => "list",
        },
        ValueKind::Map => "dict",
        _ => "object",
    }
}

/// Python's `str(value)`.
pub fn text(value: &Value) -> Result<String, Error> {
    if let Some(text) = value.as_str() {
        charge(text.len())?;
        return Ok(text.to_owned());
    }
    let mut out = String::new();
    if !value.is_undefined() {
        repr(value, &mut out)?;
    }
    Ok(out)
}

/// Python's `repr(value)`.
pub fn repr(value: &Value, out: &mut String) -> Result<(), Error> {
    charge(32)?;
    match value.kind() {
        ValueKind::Undefined => out.push_str("Undefined"),
        ValueKind::None => out.push_str("None"),
        ValueKind::Bool => out.push_str(if value.is_true() { "True" } else { "False" }),
        ValueKind::Number => match Num::of(value) {
            Some(Num::Float(f)) => out.push_str(&float(f)),
            _ => write!(out, "{value}").map_err(|e| fail(e.to_string()))?,
        },
        ValueKind::String => quote(value.as_str().unwrap_or_default(), out)?,
        _ => match (value.downcast_object_ref::<Seq>(), value.downcast_object_ref::<Dict>()) {
            (Some(seq), _) => repr_seq(seq, out)?,
            (_, Some(dict)) => repr_dict(dict, out)?,
            _ => return Err(fail("only data can be printed, and no namespace, function or macro")),
        },
    }
    Ok(())
}

fn repr_seq(seq: &Seq, out: &mut String) -> Result<(), Error> {
    let (open, close) = match seq.kind {
        SeqKind::List => ('[', "]"),
        SeqKind::Tuple if seq.items.len() == 1 => ('(', ",)"),
        SeqKind::Tuple => ('(', ")"),
        SeqKind::View => {
            return Err(fail("a range or a view of a dict cannot be printed; put | list behind it"));
        }
    };
    out.push(open);
    for (i, item) in seq.items.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        repr(item, out)?;
    }
    out.push_str(close);
    Ok(())
}

fn repr_dict(dict: &Dict, out: &mut String) -> Result<(), Error> {
    out.push('{');
    for (i, (key, value)) in dict.pairs.iter().enumerate() {
        if i > 0 {
            out.push_str(", ");
        }
        repr(key, out)?;
        out.push_str(": ");
        repr(value, out)?;
    }
    out.push('}');
    Ok(())
}

fn quote(text: &str, out: &mut String) -> Result<(), Error> {
    charge(text.len())?;
    let quote = if text.contains('\'') && !text.contains('"') { '"' } else { '\'' };
    out.push(quote);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\\' => out.push_str("\\\\"),
            c if c == quote => out.extend(['\\', c]),
            c if is_mark(c) => out.push(c),
            c if unprintable(c) => {
                let code = c as u32;
                let _ = match code {
                    0..=0xff => write!(out, "\\x{code:02x}"),
                    0x100..=0xffff => write!(out, "\\u{code:04x}"),
                    _ => write!(out, "\\U{code:08x}"),
                };
            }
            c => out.push(c),
        }
    }
    out.push(quote);
    Ok(())
}

/// Controls, format characters and spaces other than ' ' are escaped by Python; the common ones stand here.
fn unprintable(c: char) -> bool {
    c.is_control()
        || (c.is_whitespace() && c != ' ')
        || matches!(c as u32, 0xad | 0x200b..=0x200f | 0x202a..=0x202e | 0x2060..=0x206f | 0xfeff)
        || matches!(c as u32, 0xe000..=0xf8ff | 0xfdd0..=0xfdef | 0xfff0..=0xfffb | 0xe0000..=0x10ffff)
        || (c as u32) & 0xfffe == 0xfffe
}

/// Python's shortest float that reads back: exponents below 1e-4 and from 1e16.
pub fn float(f: f64) -> String {
    if !f.is_finite() {
        return if f.is_nan() {
            "nan"
        } else if f > 0.0 {
            "inf"
        } else {
            "-inf"
        }
        .to_owned();
    }
    let size = f.abs();
    if size != 0.0 && !(1e-4..1e16).contains(&size) {
        let text = format!("{f:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = match exponent.strip_prefix('-') {
            Some(exponent) => ('-', exponent),
            None => ('+', exponent),
        };
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{f:?}")
}
