//! Messages before a template sees them: checked, freed of OpenAI's null fields and older spellings, and
//! brought into the shape that templates expect.

use serde_json::{Map, Value as Json, json};

use crate::error::{Error, Result};

/// Checks that messages are objects with a `role`, and `content` that is a text, null or a list of text
/// parts. The error names the message by its index and the field.
pub fn check_messages(messages: &[Json]) -> Result<()> {
    for (i, message) in messages.iter().enumerate() {
        let at = format!("messages[{i}]");
        let Some(message) = message.as_object() else {
            return Err(wrong(&at, "an object with \"role\" and \"content\"", message));
        };
        match message.get("role") {
            Some(Json::String(_)) => {}
            Some(role) => return Err(wrong(&format!("{at}.role"), "a string", role)),
            None => {
                return Err(Error::invalid(format!(
                    "{at}.role is missing; give \"user\", \"assistant\" or \"system\""
                )));
            }
        }
        check_content(&at, message.get("content"))?;
        check_calls(&at, message.get("tool_calls"))?;
        if message.get("audio").is_some_and(|audio| !audio.is_null()) {
            return Err(Error::invalid(format!(
                "{at}.audio: this model reads text only; give a text instead"
            )));
        }
    }
    Ok(())
}

fn wrong(at: &str, expected: &str, found: &Json) -> Error {
    let kind = match found {
        Json::Null => "null",
        Json::Bool(_) => "a boolean",
        Json::Number(_) => "a number",
        Json::String(_) => "a string",
        Json::Array(_) => "a list",
        Json::Object(_) => "an object",
    };
    Error::invalid(format!("{at} must be {expected}, not {kind}"))
}

fn check_content(at: &str, content: Option<&Json>) -> Result<()> {
    let parts = match content {
        None | Some(Json::Null | Json::String(_)) => return Ok(()),
        Some(Json::Array(parts)) => parts,
        Some(other) => {
            return Err(wrong(&format!("{at}.content"), "a string, null or a list of parts", other));
        }
    };
    for (j, part) in parts.iter().enumerate() {
        let at = format!("{at}.content[{j}]");
        let Some(part) = part.as_object() else {
            return Err(wrong(&at, "an object {\"type\": \"text\", \"text\": ...}", part));
        };
        let field = match part.get("type").and_then(Json::as_str) {
            Some(kind) => text_field(kind).ok_or_else(|| {
                Error::invalid(format!("{at}.type is {kind:?}; this model reads text only"))
            })?,
            None => return Err(Error::invalid(format!("{at}.type must be \"text\""))),
        };
        match part.get(field) {
            Some(Json::String(_)) => {}
            other => return Err(wrong(&format!("{at}.{field}"), "a string", other.unwrap_or(&Json::Null))),
        }
    }
    Ok(())
}

/// Where a part of this type has its text: those of OpenAI's chat completions, and of its responses.
fn text_field(kind: &str) -> Option<&'static str> {
    match kind {
        "text" | "input_text" | "output_text" => Some("text"),
        "refusal" => Some("refusal"),
        _ => None,
    }
}

fn check_calls(at: &str, calls: Option<&Json>) -> Result<()> {
    let calls = match calls {
        None | Some(Json::Null) => return Ok(()),
        Some(Json::Array(calls)) => calls,
        Some(other) => return Err(wrong(&format!("{at}.tool_calls"), "a list", other)),
    };
    for (j, call) in calls.iter().enumerate() {
        if !call.is_object() {
            return Err(wrong(&format!("{at}.tool_calls[{j}]"), "an object", call));
        }
    }
    Ok(())
}

/// Messages as OpenAI's API means them, in the one spelling that templates know. Its clients dump every
/// field, and templates ask `'tool_calls' in message`: a null field is no field, and an empty list of calls
/// no call. A refusal is the text of its message; `function_call` and the role "function" are the old names
/// of calls.
///
/// They are messages that [`check_messages`] takes.
pub fn plain(messages: &[Json]) -> Vec<Json> {
    let plain = messages.iter().map(|message| match message {
        Json::Object(message) => Json::Object(plain_message(message.clone())),
        other => other.clone(),
    });
    plain.collect()
}

fn plain_message(mut message: Map<String, Json>) -> Map<String, Json> {
    message.retain(|name, value| name == "content" || !value.is_null());
    if message.get("tool_calls").and_then(Json::as_array).is_some_and(Vec::is_empty) {
        message.shift_remove("tool_calls");
    }
    if let Some(function) = message.shift_remove("function_call")
        && !message.contains_key("tool_calls")
    {
        message.insert("tool_calls".to_owned(), json!([{"type": "function", "function": function}]));
    }
    if message.get("role").and_then(Json::as_str) == Some("function") {
        message.insert("role".to_owned(), Json::from("tool"));
    }
    for part in message.get_mut("content").and_then(Json::as_array_mut).into_iter().flatten() {
        plain_part(part);
    }
    if let Some(refusal) = message.shift_remove("refusal") {
        let content = message.get("content").filter(|content| !is_empty(content));
        let text = match (content, refusal.as_str()) {
            (Some(Json::String(text)), Some(refusal)) => Json::from(format!("{text}\n{refusal}")),
            (Some(content), _) => content.clone(),
            (None, _) => refusal,
        };
        message.insert("content".to_owned(), text);
    }
    for call in message.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten() {
        plain_call(call);
    }
    message
}

fn is_empty(content: &Json) -> bool {
    content.is_null() || content.as_str() == Some("") || content.as_array().is_some_and(Vec::is_empty)
}

fn plain_part(part: &mut Json) {
    let Some(part) = part.as_object_mut() else { return };
    let kind = part.get("type").and_then(Json::as_str).unwrap_or_default();
    if kind == "text" {
        return;
    }
    if let Some(text) = text_field(kind).and_then(|field| part.shift_remove(field)) {
        part.insert("type".to_owned(), Json::from("text"));
        part.insert("text".to_owned(), text);
    }
}

/// Arguments that are JSON text become the object they say, for templates print them with `tojson`.
fn plain_call(call: &mut Json) {
    let Some(call) = call.as_object_mut() else { return };
    call.retain(|name, value| name == "arguments" || !value.is_null());
    if let Some(function) = call.get_mut("function").and_then(Json::as_object_mut) {
        function.retain(|name, value| name == "arguments" || !value.is_null());
        plain_arguments(function);
    }
    plain_arguments(call);
}

fn plain_arguments(function: &mut Map<String, Json>) {
    let Some(arguments) = function.get_mut("arguments") else { return };
    let said = match &*arguments {
        Json::Null => Some(Json::Object(Map::new())),
        Json::String(text) if text.trim().is_empty() => Some(Json::Object(Map::new())),
        Json::String(text) => serde_json::from_str(text).ok().filter(Json::is_object),
        _ => None,
    };
    if let Some(said) = said {
        *arguments = said;
    }
}

/// The text of a `content`: parts are joined by line breaks.
pub fn text_of(content: Option<&Json>) -> String {
    match content {
        Some(Json::String(text)) => text.clone(),
        Some(Json::Array(parts)) => {
            let texts: Vec<_> = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
            texts.join("\n")
        }
        _ => String::new(),
    }
}

pub fn role(message: &Json) -> &str {
    message.get("role").and_then(Json::as_str).unwrap_or_default()
}

pub fn calls(message: &Json) -> &[Json] {
    message.get("tool_calls").and_then(Json::as_array).map_or(&[], Vec::as_slice)
}

/// What the template at hand needs.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The template reads lists of parts; otherwise their texts are joined by newlines.
    pub parts: bool,
    /// The template knows the role "developer"; otherwise it becomes "system".
    pub developer: bool,
    /// The template can do with a `content` of null beside calls; otherwise it becomes "".
    pub null: bool,
}

/// Plain messages as the template gets them. Besides [`Shape`]: a message's reasoning has each of the names
/// that templates read, as transformers does it.
pub fn shaped(messages: &[Json], shape: Shape) -> Vec<Json> {
    let shaped = messages.iter().map(|message| {
        let Some(fields) = message.as_object() else { return message.clone() };
        let mut fields = with_reasoning(fields);
        let content = fields.get("content");
        if !shape.parts && content.is_some_and(Json::is_array) {
            let text = text_of(content);
            fields.insert("content".to_owned(), Json::String(text));
        }
        let no_text = fields.get("content").is_none_or(Json::is_null);
        if no_text && (calls(message).is_empty() || !shape.null) {
            fields.insert("content".to_owned(), Json::from(""));
        }
        if !shape.developer && role(message) == "developer" {
            fields.insert("role".to_owned(), Json::from("system"));
        }
        Json::Object(fields)
    });
    shaped.collect()
}

/// The names under which templates read a thought.
pub const REASONING: [&str; 3] = ["reasoning_content", "thinking", "reasoning"];

fn with_reasoning(message: &Map<String, Json>) -> Map<String, Json> {
    let Some(text) = REASONING.iter().find_map(|name| message.get(*name).filter(|v| !v.is_null())) else {
        return message.clone();
    };
    // `thinking` comes first: transformers' order, seen by templates that print a whole message.
    let mut named = Map::new();
    named.insert("thinking".to_owned(), text.clone());
    named.extend(message.iter().map(|(name, value)| (name.clone(), value.clone())));
    named.insert("reasoning_content".to_owned(), text.clone());
    named
}
