//! Chat templates: messages to the one text that the model was trained to read.
//!
//! A template is a Jinja2 program that comes with the model. [`ChatTemplate`] compiles it once and renders
//! what Hugging Face's `apply_chat_template` renders, byte for byte. It is also untrusted code and its input
//! is untrusted text, hence two more promises: it ends, within bounded time and memory (`limits`), and
//! control tokens written in a message are reported as [`Rendered::literals`], so that the tokenizer keeps
//! them text.
//!
//! Where a template does not take a conversation as people write it, [`ChatTemplate::render`] finds out
//! (`shows`), and helps or says so: no message, tool or argument is dropped without a word.
//!
//! minijinja compiles and runs it (`code`), with our operators in place of its own; `values`, `operators`,
//! `methods`, `filters`, `checks` and `json` are what of Python and Jinja2 published templates use. Anything
//! else is an error that names it, and never other text.

mod checks;
mod clock;
mod code;
mod continuing;
mod filters;
mod json;
mod limits;
mod literals;
mod messages;
mod methods;
mod operators;
mod program;
mod shows;
mod source;
mod values;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::OnceLock;

use serde_json::{Map, Value as Json};

use crate::error::{Context, Error, Result, nearest};
use program::Program;

pub use messages::{check_messages, plain};
pub use source::{Own, TemplateTokens};

/// What to render.
#[derive(Clone, Copy)]
pub struct RenderRequest<'a> {
    /// Objects with `role` and `content`, as [`check_messages`] wants them.
    pub messages: &'a [Json],
    /// A list of JSON schemas of functions.
    pub tools: Option<&'a Json>,
    /// A list of objects with `title` and `text`.
    pub documents: Option<&'a Json>,
    pub add_generation_prompt: bool,
    /// The field of the last message ("content") that the prompt ends with, for the model to continue it.
    pub continue_final_message: Option<&'a str>,
    /// More variables for the template, such as `enable_thinking`.
    pub arguments: &'a Map<String, Json>,
    /// What must stay text where a message, tool or document contains it.
    pub control_tokens: &'a [&'a str],
}

impl<'a> RenderRequest<'a> {
    /// Messages and variables, and nothing else.
    pub fn new(messages: &'a [Json], arguments: &'a Map<String, Json>) -> Self {
        RenderRequest {
            messages,
            tools: None,
            documents: None,
            add_generation_prompt: false,
            continue_final_message: None,
            arguments,
            control_tokens: &[],
        }
    }
}

/// A prompt.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// Byte ranges of `text`, ascending, that came from a message and look like control tokens.
    pub literals: Vec<Range<usize>>,
    /// What the template could not take as it was, and what was done instead.
    pub notes: Vec<String>,
}

/// The compiled chat templates of a model: one for most uses, and others by name.
pub struct ChatTemplate {
    default: Program,
    /// "tool_use" and "rag" are taken by themselves, see [`ChatTemplate::render`].
    named: BTreeMap<String, Program>,
    shows_calls: OnceLock<bool>,
}

/// Arguments that every template gets, whether it reads them or not.
const ALWAYS: [&str; 4] = ["bos_token", "eos_token", "unk_token", "pad_token"];

/// Arguments of transformers' `apply_chat_template` that are no template's, and where they belong here.
const OF_TRANSFORMERS: [(&str, &str); 10] = [
    ("chat_template", "a template is chosen when the model is loaded"),
    ("conversation", "the messages are an argument of their own"),
    ("tokenize", "the prompt is rendered as a text, and tokenized when an answer is asked for"),
    ("return_dict", "the prompt is a text"),
    ("return_tensors", "the prompt is a text"),
    ("return_assistant_tokens_mask", "nothing is trained here"),
    ("padding", "prompts of different lengths need no padding here"),
    ("truncation", "a prompt that is too long is an error, and never cut"),
    ("max_length", "a prompt that is too long is an error, and never cut"),
    ("tokenizer_kwargs", "the tokenizer takes no arguments here"),
];

impl ChatTemplate {
    /// Compiles a template.
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self> {
        let default = Program::new(source, tokens)?;
        Ok(ChatTemplate { default, named: BTreeMap::new(), shows_calls: OnceLock::new() })
    }

    /// Adds a template for another use.
    pub fn with_named(mut self, name: &str, source: &str, tokens: TemplateTokens) -> Result<Self> {
        let program = Program::new(source, tokens).context(name)?;
        self.named.insert(name.to_owned(), program);
        Ok(self)
    }

    /// All templates, by name; the one for everything is "default".
    pub fn sources(&self) -> impl Iterator<Item = (&str, &str)> {
        let named = self.named.iter().map(|(name, program)| (name.as_str(), program.source.as_str()));
        std::iter::once(("default", self.default.source.as_str())).chain(named)
    }

    /// The template as its makers wrote it; the one for requests with tools, if there are two.
    pub fn source(&self) -> &str {
        &self.named.get("tool_use").unwrap_or(&self.default).source
    }

    /// The variables that a request may set: what any of the templates reads from outside, functions left
    /// out.
    pub fn variables(&self) -> BTreeSet<&str> {
        let programs = std::iter::once(&self.default).chain(self.named.values());
        programs.flat_map(|program| program.variables.iter().map(String::as_str)).collect()
    }

    /// Whether the messages come into the prompt at all.
    pub fn reads_messages(&self) -> bool {
        self.default.reads("messages")
    }

    /// Whether calls of tools and their results are shown as they are. Tried once.
    pub fn shows_calls(&self) -> bool {
        *self.shows_calls.get_or_init(|| {
            let program = self.named.get("tool_use").unwrap_or(&self.default);
            shows::shows_calls(program)
        })
    }

    /// The prompt for `request`.
    ///
    /// The template "tool_use" is taken for a request with tools, as in transformers, and "rag" for one with
    /// documents if the default one does not read them. Messages may have OpenAI's null fields and older
    /// spellings; a system message that the template refuses or drops goes into the user's turn, and so on:
    /// see `notes` of the result.
    ///
    /// # Errors
    /// `Template` with the template's own message if it raises, for a template that reads no messages, and
    /// for a message that it drops without a word. `InvalidRequest` for malformed messages, and for tools,
    /// documents and arguments that it does not read.
    pub fn render(&self, request: &RenderRequest<'_>) -> Result<Rendered> {
        check_messages(request.messages)?;
        let program = self.program(request);
        self.check_read(program, request)?;
        let plain = messages::plain(request.messages);
        let (repair, notes) = shows::repair(program, &plain, request)?;
        let mut messages = program.shaped(&repair.apply(&plain));
        if let Some(field) = request.continue_final_message {
            if request.add_generation_prompt {
                return Err(Error::invalid(
                    "continue_final_message and add_generation_prompt exclude each other: the prompt ends \
                     inside of the last message or with the beginning of another",
                ));
            }
            continuing::tag(&mut messages, field)?;
        }
        let rendered = written(program, &Json::Array(messages), request)?;
        let rendered =
            if request.continue_final_message.is_some() { continuing::cut(rendered)? } else { rendered };
        Ok(Rendered { notes, ..rendered })
    }

    /// What the template itself makes of the messages, as they are: what transformers renders.
    ///
    /// # Errors
    /// As [`ChatTemplate::render`] if the template fails or the messages are malformed.
    pub fn render_as_given(&self, request: &RenderRequest<'_>) -> Result<Rendered> {
        check_messages(request.messages)?;
        let program = self.program(request);
        written(program, &Json::Array(program.shaped(&messages::plain(request.messages))), request)
    }

    fn program(&self, request: &RenderRequest<'_>) -> &Program {
        let tools = self.named.get("tool_use").filter(|_| request.tools.is_some());
        let rag = || {
            let program = self.named.get("rag").filter(|program| program.reads("documents"));
            program.filter(|_| request.documents.is_some() && !self.default.reads("documents"))
        };
        tools.or_else(rag).unwrap_or(&self.default)
    }

    /// Nothing is given that the template never looks at.
    fn check_read(&self, program: &Program, request: &RenderRequest<'_>) -> Result<()> {
        if !program.reads("messages") {
            let beginning: String = program.source.chars().take(40).collect();
            return Err(Error::template(format!(
                "the chat template reads no messages, so every conversation would become the same prompt; it \
                 begins {beginning:?}; load the model with a chat_template that is a Jinja template over \
                 `messages`"
            )));
        }
        let given = |list: Option<&Json>| list.and_then(Json::as_array).is_none_or(|list| !list.is_empty());
        for (name, list) in [("tools", request.tools), ("documents", request.documents)] {
            if list.is_some() && given(list) && !program.reads(name) {
                return Err(Error::invalid(format!(
                    "{name}: the chat template of this model never reads them; put them into a message"
                )));
            }
        }
        let variables = self.variables();
        for name in request.arguments.keys() {
            if !variables.contains(name.as_str()) && !ALWAYS.contains(&name.as_str()) {
                return Err(unread(name, &variables));
            }
        }
        Ok(())
    }
}

/// An argument that nothing reads, with a guess at what was meant.
fn unread(name: &str, variables: &BTreeSet<&str>) -> Error {
    if let Some((_, why)) = OF_TRANSFORMERS.iter().find(|(known, _)| *known == name) {
        return Error::invalid(format!("the chat template does not read {name:?}: {why}"));
    }
    let own = ["messages", "tools", "documents", "add_generation_prompt", "continue_final_message"];
    let others: BTreeSet<&str> = variables.iter().copied().filter(|v| !own.contains(v)).collect();
    let guess = match nearest(name, others.iter().copied().chain(own)).first() {
        Some(near) => format!("; did you mean {near:?}?"),
        None => ".".to_owned(),
    };
    let others: Vec<&str> =
        others.into_iter().filter(|variable| !ALWAYS.contains(variable)).take(20).collect();
    let reads = if others.is_empty() { "no arguments".to_owned() } else { others.join(", ") };
    Error::invalid(format!("the chat template does not read {name:?}{guess} It reads {reads}"))
}

/// Runs the template, and finds what must stay text in what it writes.
fn written(program: &Program, messages: &Json, request: &RenderRequest<'_>) -> Result<Rendered> {
    let given = || [Some(messages), request.tools, request.documents].into_iter().flatten();
    let text = program.run(messages, request, None)?;
    let found = literals::Tokens::new(request.control_tokens).found_in(given());
    if found.is_empty() {
        return Ok(Rendered { text, ..Rendered::default() });
    }
    if let Some(marks) = literals::free_marks(given())
        && let Ok(marked) = program.run(messages, request, Some((&found, marks)))
    {
        let (unmarked, literals) = found.unmark(&marked, marks);
        if unmarked == text {
            return Ok(Rendered { text, literals, ..Rendered::default() });
        }
    }
    let literals = found.everywhere(&text);
    Ok(Rendered { text, literals, ..Rendered::default() })
}
