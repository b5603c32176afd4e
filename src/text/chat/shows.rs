//! Whether a template shows all of a conversation, and what is done where it does not.
//!
//! Many templates were written for less than people say: Gemma 1 and 2 and Mistral 7B refuse a system
//! message, others ask for the roles that they know and drop every other message without a word. So a
//! conversation of the same shape, whose texts are short marks, is rendered first; a mark that does not come
//! out was dropped. What is found out is kept by shape (roles, fields, arguments; see [`shape`]), so a
//! request whose like was rendered before costs nothing more.
//!
//! Where a template does not take the messages as they are, their text is put where it does take it, as the
//! templates of other families do: system messages before the text of the user's turn that follows them, with
//! a blank line between (Gemma 3), and turns of one role in a row become one (the roles of most templates
//! alternate). The prompt then says so in its notes.

use serde_json::{Map, Value as Json, json};

use super::RenderRequest;
use super::messages::{REASONING, calls, role, text_of};
use super::program::Program;
use crate::error::{Error, Result};

/// Between two texts that become one.
const BETWEEN: &str = "\n\n";

/// Characters of a field that is no text of the conversation (a template may ask for its value).
const MAX_FIELD: usize = 64;

/// What was found out about a shape.
pub enum Verdict {
    /// All is shown, after this repair.
    Shows { repair: Repair, notes: Vec<String> },
    /// The template renders the conversation without this message.
    Drops(usize),
    /// It fails on marks as well; the messages themselves will tell why.
    Fails,
}

/// Which system messages become a part of the user's turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum System {
    /// None.
    Kept,
    /// Those in the middle; the ones at the start become one.
    First,
    /// All.
    Folded,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Repair {
    system: System,
    /// Turns of one role in a row become one.
    join: bool,
}

impl Repair {
    const NONE: Repair = Repair { system: System::Kept, join: false };

    /// Those that make a difference, the smallest first.
    fn all(messages: &[Json]) -> Vec<Repair> {
        let first = messages.first().is_some_and(is_system);
        let several = messages.iter().skip(usize::from(first)).any(is_system);
        // A template may hold the word "developer" and not know the role.
        let developer = messages.iter().any(|message| role(message) == "developer");
        let mut systems = vec![System::Kept];
        systems.extend((several || developer).then_some(System::First));
        systems.extend((first || several).then_some(System::Folded));
        let mut all: Vec<Repair> =
            systems.iter().map(|system| Repair { system: *system, join: false }).collect();
        let joins = |repair: &&Repair| {
            let turns = repair.apply(messages);
            turns.windows(2).any(|pair| matches!(pair, [a, b] if can_join(a, b)))
        };
        let joined: Vec<Repair> = all.iter().filter(joins).map(|r| Repair { join: true, ..*r }).collect();
        all.extend(joined);
        all
    }

    pub fn apply(self, messages: &[Json]) -> Vec<Json> {
        let folded = match self.system {
            System::Kept => messages.to_vec(),
            System::First => {
                let leading = messages.iter().take_while(|message| is_system(message)).count();
                let (head, rest) = messages.split_at(leading);
                let head = texts(head).map(|text| json!({"role": "system", "content": text}));
                head.into_iter().chain(folded(rest)).collect()
            }
            System::Folded => folded(messages),
        };
        if self.join { joined(folded) } else { folded }
    }

    fn notes(self) -> impl Iterator<Item = String> {
        let system = match self.system {
            System::Kept => None,
            System::First => Some(
                "the chat template takes one system message, at the start; the text of the others stands in \
                 the user's turns",
            ),
            System::Folded => Some(
                "the chat template takes no system message; its text stands before that of the user's turn",
            ),
        };
        let join =
            self.join.then_some("the chat template wants roles to alternate; turns in a row became one");
        system.into_iter().chain(join).map(str::to_owned)
    }
}

fn is_system(message: &Json) -> bool {
    matches!(role(message), "system" | "developer")
}

/// Texts of messages, those that have one, as one text.
fn texts(messages: &[Json]) -> Option<String> {
    let texts: Vec<_> =
        messages.iter().map(|m| text_of(m.get("content"))).filter(|t| !t.is_empty()).collect();
    (!texts.is_empty()).then(|| texts.join(BETWEEN))
}

/// System messages as a part of the user's turn behind them, else before them, else as a turn of the user.
fn folded(messages: &[Json]) -> Vec<Json> {
    let mut out: Vec<Json> = Vec::with_capacity(messages.len());
    let mut rest = messages;
    while let Some((message, tail)) = rest.split_first() {
        if !is_system(message) {
            out.push(message.clone());
            rest = tail;
            continue;
        }
        let (system, tail) = rest.split_at(rest.iter().take_while(|m| is_system(m)).count());
        rest = tail;
        let Some(text) = texts(system) else { continue };
        match (tail.first(), out.last_mut()) {
            (Some(next), _) if role(next) == "user" => {
                let mut next = next.clone();
                put_before(&text, &mut next);
                out.push(next);
                rest = tail.get(1..).unwrap_or_default();
            }
            (_, Some(last)) if role(last) == "user" => append(last, &json!({"content": text})),
            _ => out.push(json!({"role": "user", "content": text})),
        }
    }
    out
}

fn put_before(text: &str, message: &mut Json) {
    let Some(content) = message.get_mut("content") else { return };
    // In the first part itself: templates trim parts, and glue them together.
    let first = match content {
        Json::Array(parts) => parts.first_mut().and_then(|part| part.get_mut("text")),
        content => Some(content),
    };
    if let Some(first) = first {
        *first = match first.as_str() {
            None | Some("") => Json::from(text),
            Some(own) => Json::from(format!("{text}{BETWEEN}{own}")),
        };
    }
}

fn joined(messages: Vec<Json>) -> Vec<Json> {
    let mut out: Vec<Json> = Vec::with_capacity(messages.len());
    for message in messages {
        match out.last_mut() {
            Some(last) if can_join(last, &message) => append(last, &message),
            _ => out.push(message),
        }
    }
    out
}

fn can_join(a: &Json, b: &Json) -> bool {
    role(a) == role(b)
        && matches!(role(a), "user" | "assistant")
        && [a, b].iter().all(|m| calls(m).is_empty())
}

fn append(message: &mut Json, more: &Json) {
    let (own, more) = (message.get("content"), more.get("content"));
    let text = match (text_of(own), text_of(more)) {
        (own, more) if own.is_empty() || more.is_empty() => own + &more,
        (own, more) => own + BETWEEN + &more,
    };
    if let Some(fields) = message.as_object_mut() {
        fields.insert("content".to_owned(), Json::from(text));
    }
}

/// Something that must come out of the template.
struct Mark {
    message: usize,
    call: bool,
    text: String,
}

/// The conversation with a short mark for every text and every name of a call. What the template might look
/// at (roles, the length of ids, which fields there are) stays.
fn marked(messages: &[Json]) -> (Vec<Json>, Vec<Mark>) {
    let (mut marks, mut ids) = (Vec::new(), Vec::new());
    let mut out = messages.to_vec();
    for (index, message) in out.iter_mut().enumerate() {
        let Some(fields) = message.as_object_mut() else { continue };
        let mut mark = |part: usize, call: bool| {
            let text = format!("zq{index}{}{part}qz", if call { 'c' } else { 't' });
            marks.push(Mark { message: index, call, text: text.clone() });
            Json::from(text)
        };
        for (name, value) in fields.iter_mut() {
            match (name.as_str(), value) {
                ("content", Json::Array(parts)) => {
                    for (at, text) in parts.iter_mut().filter_map(|p| p.get_mut("text")).enumerate() {
                        *text = blank(text).unwrap_or_else(|| mark(at, false));
                    }
                }
                ("content", text @ Json::String(_)) => {
                    *text = blank(text).unwrap_or_else(|| mark(0, false));
                }
                ("tool_calls", Json::Array(calls)) => {
                    for (at, call) in calls.iter_mut().enumerate() {
                        mark_call(call, mark(at, true), &mut ids);
                    }
                }
                ("tool_call_id", id) => *id = same_length(id, &mut ids),
                ("role" | "name" | "content", _) => {}
                (name, Json::String(text)) if REASONING.contains(&name) => *text = blank_or(text, "r"),
                (_, Json::String(text)) => *text = text.chars().take(MAX_FIELD).collect(),
                _ => {}
            }
        }
    }
    (out, marks)
}

fn blank_or(text: &str, other: &str) -> String {
    if text.trim().is_empty() { String::new() } else { other.to_owned() }
}

/// A text of nothing but space stays nothing.
fn blank(text: &Json) -> Option<Json> {
    text.as_str().is_none_or(|text| text.trim().is_empty()).then(|| Json::from(""))
}

fn mark_call(call: &mut Json, name: Json, ids: &mut Vec<Json>) {
    if let Some(id) = call.get_mut("id") {
        *id = same_length(id, ids);
    }
    let function = if call.get("function").is_some() { call.get_mut("function") } else { Some(call) };
    if let Some(function) = function.and_then(Json::as_object_mut) {
        function.insert("name".to_owned(), name);
        function.insert("arguments".to_owned(), json!({"a": 1}));
    }
}

/// Another id of the same length (Mistral's templates count it), the same for the same one.
fn same_length(id: &Json, ids: &mut Vec<Json>) -> Json {
    let Some(text) = id.as_str() else { return id.clone() };
    let number = ids.iter().position(|known| known == id).unwrap_or_else(|| {
        ids.push(id.clone());
        ids.len() - 1
    });
    Json::from(format!("{number:0>width$}", width = text.chars().count()))
}

/// What a verdict holds for: equal for two requests only if their marked conversations and arguments are.
fn shape(marked: &[Json], request: &RenderRequest<'_>) -> String {
    let tools = request.tools.is_some();
    json!([marked, tools, request.documents.is_some(), request.add_generation_prompt, request.arguments])
        .to_string()
}

/// What is to be done with plain messages, and what is to be told.
///
/// # Errors
/// `Template` for a message that the template drops without a word.
pub fn repair(
    program: &Program,
    messages: &[Json],
    request: &RenderRequest<'_>,
) -> Result<(Repair, Vec<String>)> {
    let (conversation, marks) = marked(messages);
    let found = || verdict(program, &conversation, &marks, request);
    match &*program.verdict(shape(&conversation, request), found) {
        Verdict::Shows { repair, notes } => Ok((*repair, notes.clone())),
        Verdict::Fails => Ok((Repair::NONE, Vec::new())),
        Verdict::Drops(at) => Err(Error::template(format!(
            "the chat template drops messages[{at}] (role {:?}) without a word: it is not in the prompt; \
             give its text in another turn, or load the model with a chat_template that shows it",
            messages.get(*at).map(role).unwrap_or_default()
        ))),
    }
}

/// Whether calls and their results come out as they are.
pub fn shows_calls(program: &Program) -> bool {
    let call = json!({"id": "000000000", "type": "function", "function": {"name": "f", "arguments": {}}});
    let messages = [
        json!({"role": "user", "content": "x"}),
        json!({"role": "assistant", "content": null, "tool_calls": [call]}),
        json!({"role": "tool", "tool_call_id": "000000000", "name": "f", "content": "x"}),
    ];
    let (conversation, marks) = marked(&messages);
    let arguments = Map::new();
    let request = RenderRequest::new(&[], &arguments);
    let text = program.run(&Json::Array(program.shaped(&conversation)), &request, None);
    text.is_ok_and(|text| missing(&text, &marks).is_ok_and(|beside| beside.is_empty()))
}

fn verdict(program: &Program, messages: &[Json], marks: &[Mark], request: &RenderRequest<'_>) -> Verdict {
    let mut drops = None;
    for repair in Repair::all(messages) {
        let given = Json::Array(program.shaped(&repair.apply(messages)));
        let Ok(text) = program.run(&given, request, None) else { continue };
        match missing(&text, marks) {
            Ok(beside) => {
                let beside = beside.into_iter().map(|at| {
                    format!(
                        "the chat template shows the calls of messages[{at}] and not the text beside them"
                    )
                });
                return Verdict::Shows { repair, notes: repair.notes().chain(beside).collect() };
            }
            Err(at) if repair == Repair::NONE => drops = Some(at),
            Err(_) => {}
        }
    }
    drops.map_or(Verdict::Fails, Verdict::Drops)
}

/// The messages whose text, but not whose calls, is missing; or the first that is missing.
fn missing(text: &str, marks: &[Mark]) -> Result<Vec<usize>, usize> {
    // A template may write names in capitals.
    let text = text.to_lowercase();
    let mut beside = Vec::new();
    for mark in marks.iter().filter(|mark| !text.contains(&mark.text)) {
        let has_calls = marks.iter().any(|other| other.call && other.message == mark.message);
        if mark.call || !has_calls {
            return Err(mark.message);
        }
        beside.push(mark.message);
    }
    beside.dedup();
    Ok(beside)
}
