//! `tojson` as Hugging Face defines it: Python's `json.dumps` with its spacing, order and numbers.

use std::fmt::Write;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::limits::{charge, fail, is_mark};
use super::values::{self, Dict, Num, Seq, SeqKind};

pub struct Style {
    pub ascii: bool,
    /// Text of one level; `None` is all on one line.
    pub indent: Option<String>,
    pub item: String,
    pub key: String,
    pub sort: bool,
}

pub fn dumps(value: &Value, style: &Style) -> Result<String, Error> {
    let mut out = String::new();
    write(value, style, 0, &mut out)?;
    Ok(out)
}

fn write(value: &Value, style: &Style, level: usize, out: &mut String) -> Result<(), Error> {
    charge(8)?;
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number => out.push_str(&number(value)),
        ValueKind::String => string(value.as_str().unwrap_or_default(), style.ascii, out)?,
        _ => match (value.downcast_object_ref::<Seq>(), value.downcast_object_ref::<Dict>()) {
            (Some(Seq { items, kind: SeqKind::List | SeqKind::Tuple, .. }), _) => {
                let mut each = items.iter();
                container(style, level, ['[', ']'], items.len(), out, |out| match each.next() {
                    Some(item) => write(item, style, level + 1, out),
                    None => Ok(()),
                })?
            }
            (_, Some(dict)) => object(dict, style, level, out)?,
            _ => {
                let name = values::type_name(value);
                return Err(fail(format!("Object of type {name} is not JSON serializable")));
            }
        },
    }
    Ok(())
}

fn number(value: &Value) -> String {
    match Num::of(value) {
        Some(Num::Float(f)) if f.is_nan() => "NaN".to_owned(),
        Some(Num::Float(f)) if f.is_infinite() => if f > 0.0 { "Infinity" } else { "-Infinity" }.to_owned(),
        Some(Num::Float(f)) => values::float(f),
        _ => value.to_string(),
    }
}

fn object(dict: &Dict, style: &Style, level: usize, out: &mut String) -> Result<(), Error> {
    let mut pairs: Vec<_> = dict.pairs.iter().collect();
    if style.sort {
        pairs.sort_by_key(|a| a.0.to_string());
    }
    let (count, mut each) = (pairs.len(), pairs.into_iter());
    container(style, level, ['{', '}'], count, out, |out| {
        let Some((key, value)) = each.next() else { return Ok(()) };
        match key.kind() {
            ValueKind::String => string(key.as_str().unwrap_or_default(), style.ascii, out)?,
            ValueKind::None => out.push_str("\"null\""),
            ValueKind::Bool => out.push_str(if key.is_true() { "\"true\"" } else { "\"false\"" }),
            ValueKind::Number => {
                let _ = write!(out, "\"{}\"", number(key));
            }
            _ => return Err(fail("keys must be str, int, float, bool or None")),
        }
        out.push_str(&style.key);
        write(value, style, level + 1, out)
    })
}

fn container(
    style: &Style,
    level: usize,
    [open, close]: [char; 2],
    count: usize,
    out: &mut String,
    mut item: impl FnMut(&mut String) -> Result<(), Error>,
) -> Result<(), Error> {
    out.push(open);
    for i in 0..count {
        if i > 0 {
            out.push_str(&style.item);
        }
        newline(style, level + 1, out)?;
        item(out)?;
    }
    if count > 0 {
        newline(style, level, out)?;
    }
    out.push(close);
    Ok(())
}

fn newline(style: &Style, level: usize, out: &mut String) -> Result<(), Error> {
    let Some(indent) = &style.indent else { return charge(style.item.len()) };
    charge(indent.len().saturating_mul(level).saturating_add(1 + style.item.len()))?;
    out.push('\n');
    (0..level).for_each(|_| out.push_str(indent));
    Ok(())
}

fn string(text: &str, ascii: bool, out: &mut String) -> Result<(), Error> {
    charge(text.len().saturating_mul(if ascii { 6 } else { 1 }))?;
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\x08' => out.push_str("\\b"),
            '\x0c' => out.push_str("\\f"),
            c if (c as u32) < 0x20 || (ascii && !c.is_ascii() && !is_mark(c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
    Ok(())
}
