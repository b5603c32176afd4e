//! Messages before a template sees them: checked, and brought into the shape that templates expect.

use serde_json::{Map, Value as Json};

use crate::error::{Error, Result};

/// Checks that messages are objects with a `role`, and `content` that is a text, null or a list of text parts.
/// The error names the message by its index and the field.
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
        match part.get("type").and_then(Json::as_str) {
            Some("text") => {}
            Some(kind) => {
                return Err(Error::invalid(format!("{at}.type is {kind:?}; this model reads text only")));
            }
            None => return Err(Error::invalid(format!("{at}.type must be \"text\""))),
        }
        match part.get("text") {
            Some(Json::String(_)) => {}
            other => return Err(wrong(&format!("{at}.text"), "a string", other.unwrap_or(&Json::Null))),
        }
    }
    Ok(())
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

/// What the template at hand needs.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// The template reads lists of parts; otherwise their texts are joined by newlines.
    pub parts: bool,
    /// The template knows the role "developer"; otherwise it becomes "system".
    pub developer: bool,
}

/// Messages as the template gets them. Besides [`Shape`]: arguments of tool calls that are JSON text become
/// the object they say (templates print them with `tojson`), and a message's reasoning has each of the names
/// that templates read, as transformers does it.
pub fn shaped(messages: &[Json], shape: Shape) -> Vec<Json> {
    let shaped = messages.iter().map(|message| {
        let Some(message) = message.as_object() else { return message.clone() };
        let mut message = with_reasoning(message);
        if let (false, Some(Json::Array(parts))) = (shape.parts, message.get("content")) {
            let texts: Vec<_> = parts.iter().filter_map(|part| part.get("text")?.as_str()).collect();
            let text = texts.join("\n");
            message.insert("content".to_owned(), Json::String(text));
        }
        if !shape.developer && message.get("role").and_then(Json::as_str) == Some("developer") {
            message.insert("role".to_owned(), Json::from("system"));
        }
        for call in message.get_mut("tool_calls").and_then(Json::as_array_mut).into_iter().flatten() {
            parse_arguments(call);
        }
        Json::Object(message)
    });
    shaped.collect()
}

fn with_reasoning(message: &Map<String, Json>) -> Map<String, Json> {
    let names = ["reasoning_content", "thinking", "reasoning"];
    let Some(text) = names.iter().find_map(|name| message.get(*name).filter(|v| !v.is_null())) else {
        return message.clone();
    };
    // `thinking` comes first: transformers' order, seen by templates that print a whole message.
    let mut named = Map::new();
    named.insert("thinking".to_owned(), text.clone());
    named.extend(message.iter().map(|(name, value)| (name.clone(), value.clone())));
    named.insert("reasoning_content".to_owned(), text.clone());
    named
}

fn parse_arguments(call: &mut Json) {
    for path in ["/function/arguments", "/arguments"] {
        let Some(arguments) = call.pointer_mut(path) else { continue };
        let parsed = arguments.as_str().and_then(|text| serde_json::from_str::<Json>(text).ok());
        if let Some(parsed @ Json::Object(_)) = parsed {
            *arguments = parsed;
        }
    }
}
