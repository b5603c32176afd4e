//! JSON as Python writes it: `config.json`, `generation_config.json`, `tokenizer_config.json` and their like.
//!
//! Python's `json` also writes and reads `Infinity`, `-Infinity` and `NaN`, and reads a number beyond f64
//! (`1e400`) as infinity. No JSON value holds these here, so they become what transformers 5 writes for them
//! by itself: `{"__float__": "Infinity"}` (`PreTrainedConfig._encode_special_floats`). Both spellings are the
//! same value from here on; where a number counts, [`Fields`](super::fields::Fields) refuses it by the
//! field's name, and elsewhere (the limits of a state-space model's time steps, say) it is in nobody's way.

use std::borrow::Cow;
use std::path::Path;

use serde_json::{Map, Value};

use crate::error::{Context, Error, LINE, Result, shortened};
use crate::small_file::{TEXT_LIMIT, read_text};

const TAG: &str = "__float__";
const SPECIAL: [&str; 3] = ["Infinity", "-Infinity", "NaN"];

/// A JSON text.
///
/// # Errors
/// `ModelFile` that says where it is no JSON.
pub fn value(text: &str) -> Result<Value> {
    let malformed = |error| Error::model_file(format!("not valid JSON: {error}"));
    serde_json::from_str(text).or_else(|error| match tagged(text) {
        Cow::Owned(text) => serde_json::from_str(&text).map_err(malformed),
        Cow::Borrowed(_) => Err(malformed(error)),
    })
}

/// A JSON text whose top level is an object.
pub fn object(text: &str) -> Result<Map<String, Value>> {
    match value(text)? {
        Value::Object(object) => Ok(object),
        _ => Err(Error::model_file("the top level must be an object")),
    }
}

/// A JSON file; `None` if there is none of that name.
///
/// # Errors
/// As [`read_text`] and [`value`], with the file's name.
pub fn read(path: &Path) -> Result<Option<Value>> {
    let text = read_text(path, TEXT_LIMIT)?;
    text.map(|text| value(&text)).transpose().context(path.display())
}

/// A JSON file whose top level is an object; `None` if there is none of that name.
pub fn read_object(path: &Path) -> Result<Option<Map<String, Value>>> {
    let text = read_text(path, TEXT_LIMIT)?;
    text.map(|text| object(&text)).transpose().context(path.display())
}

/// A value for a message, no longer than a line: infinities and NaN by their names.
pub(crate) fn shown(value: &Value) -> String {
    match special(value) {
        Some(name) => name.to_string(),
        None => shortened(value, LINE),
    }
}

/// `Infinity`, `-Infinity` or `NaN`, if it is one of these.
fn special(value: &Value) -> Option<&str> {
    let object = value.as_object().filter(|object| object.len() == 1)?;
    object.get(TAG)?.as_str().filter(|name| SPECIAL.contains(name))
}

/// The text with each bare special number as a tagged object; as it is, where there is none. What stands in
/// strings stays.
fn tagged(text: &str) -> Cow<'_, str> {
    let bytes = text.as_bytes();
    let (mut out, mut copied, mut at) = (String::new(), 0, 0);
    while let Some(byte) = bytes.get(at) {
        let end = match byte {
            b'"' => end_of_string(bytes, at),
            b'-' | b'0'..=b'9' | b'I' | b'N' => at + word_length(&bytes[at..]),
            _ => at + 1,
        };
        if let Some(name) = text.get(at..end).and_then(special_word) {
            out += text.get(copied..at).unwrap_or_default();
            out += &format!("{{\"{TAG}\":\"{name}\"}}");
            copied = end;
        }
        at = end;
    }
    match copied {
        0 => Cow::Borrowed(text),
        _ => Cow::Owned(out + text.get(copied..).unwrap_or_default()),
    }
}

/// Behind the closing quote of the string that begins at `start`.
fn end_of_string(bytes: &[u8], start: usize) -> usize {
    let mut at = start + 1;
    while let Some(byte) = bytes.get(at) {
        match byte {
            b'"' => return at + 1,
            b'\\' => at += 2,
            _ => at += 1,
        }
    }
    bytes.len()
}

/// At least 1.
fn word_length(bytes: &[u8]) -> usize {
    bytes.iter().take_while(|b| b.is_ascii_alphanumeric() || b"+-._".contains(b)).count().max(1)
}

fn special_word(word: &str) -> Option<&'static str> {
    if let Some(name) = SPECIAL.iter().find(|name| **name == word) {
        return Some(name);
    }
    // Rust reads more words than Python as infinities ("inf"); only digits make a number too large.
    let digits = word.bytes().all(|b| b.is_ascii_digit() || b"+-.eE".contains(&b));
    let number = word.parse::<f64>().ok().filter(|number| digits && number.is_infinite())?;
    Some(if number > 0.0 { "Infinity" } else { "-Infinity" })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The right side is what `json.dumps(json.loads(text))` of CPython 3.11 gives, infinities tagged.
    #[test]
    fn numbers_as_python_reads_them() {
        for (text, wanted) in [
            ("[Infinity, -Infinity]", r#"[{"__float__":"Infinity"},{"__float__":"-Infinity"}]"#),
            (r#"{"a": NaN}"#, r#"{"a":{"__float__":"NaN"}}"#),
            ("[1e400,-1E+999, 1e-400]", r#"[{"__float__":"Infinity"},{"__float__":"-Infinity"},0.0]"#),
            (
                r#"{"Infinity": "NaN, -Infinity", "a\"": NaN}"#,
                r#"{"Infinity":"NaN, -Infinity","a\"":{"__float__":"NaN"}}"#,
            ),
            (r#"["\\", NaN, "\\\"NaN"]"#, r#"["\\",{"__float__":"NaN"},"\\\"NaN"]"#),
            (r#"{"a": {"__float__": "Infinity"}}"#, r#"{"a":{"__float__":"Infinity"}}"#),
            ("[\"é模\u{1f600}\", Infinity]", "[\"é模\u{1f600}\",{\"__float__\":\"Infinity\"}]"),
            ("NaN", r#"{"__float__":"NaN"}"#),
        ] {
            assert_eq!(value(text).unwrap().to_string(), wanted, "{text}");
        }
    }

    #[test]
    fn what_python_refuses_is_refused() {
        for text in [
            "nan",
            "inf",
            "[infinity]",
            "+Infinity",
            "-NaN",
            "NaNs",
            "[Infinity1]",
            "- Infinity",
            "[1e400",
            "\"NaN",
            "1e400x",
            "[NaN,]",
            "{NaN: 1}",
            "\u{feff}{}",
            "--Infinity",
            "1-Infinity",
            "\"\\",
        ] {
            let error = value(text).expect_err(text);
            assert!(error.message().contains("not valid JSON"), "{text}: {error}");
        }
    }
}
