//! A prompt that ends with the last message's own text, for the model to go on from it.
//!
//! As transformers does it (`render_jinja_template`): a tag is put behind the text, and the rendered prompt
//! is cut where it comes out. A template that trims the message trims the tag's own space, too; then the text
//! before the cut is trimmed as well.

use serde_json::Value as Json;

use super::Rendered;
use super::messages::REASONING;
use super::methods::is_space;
use crate::error::{Error, Result};

const TAG: &str = "TALLOW_GOES_ON_HERE";

/// Puts the tag behind a field of the last message: "content", or one of its reasoning, which stands there
/// under several names.
pub fn tag(messages: &mut [Json], field: &str) -> Result<()> {
    let count = messages.len();
    let nothing = || {
        Error::invalid(format!(
            "continue_final_message: messages[{}] has no text in {field:?} to continue",
            count.saturating_sub(1)
        ))
    };
    let last = messages.last_mut().and_then(Json::as_object_mut).ok_or_else(nothing)?;
    let text = last.get(field).cloned().ok_or_else(nothing)?;
    let copies = |name: &str| name == field || (REASONING.contains(&field) && REASONING.contains(&name));
    let mut tagged = false;
    for (_, value) in last.iter_mut().filter(|(name, value)| copies(name) && **value == text) {
        let end = match value {
            Json::Array(parts) => parts.last_mut().and_then(|part| part.get_mut("text")),
            value => Some(value),
        };
        if let Some(end) = end
            && let Some(text) = end.as_str()
        {
            *end = Json::from(format!("{text}{TAG} "));
            tagged = true;
        }
    }
    if tagged { Ok(()) } else { Err(nothing()) }
}

/// Cuts a prompt at the tag.
pub fn cut(mut rendered: Rendered) -> Result<Rendered> {
    let Some(at) = rendered.text.rfind(TAG) else {
        return Err(Error::template(
            "continue_final_message: the chat template does not show the end of the last message, so there \
             is no place to continue",
        ));
    };
    let spaced = rendered.text.get(at + TAG.len()..).is_some_and(|rest| rest.starts_with(' '));
    let kept = rendered.text.get(..at).unwrap_or_default();
    let end = if spaced { at } else { kept.trim_end_matches(is_space).len() };
    rendered.text.truncate(end);
    rendered.literals.retain(|range| range.end <= end);
    Ok(rendered)
}
