//! Chat templates: messages to the one text that the model was trained to read.
//!
//! A template is a Jinja2 program that comes with the model. [`ChatTemplate`] compiles it once and renders what
//! Hugging Face's `apply_chat_template` renders, byte for byte. It is also untrusted code and its input is
//! untrusted text, hence two more promises: it ends, within bounded time and memory (`limits`), and control
//! tokens written in a message are reported as [`Rendered::literals`], so that the tokenizer keeps them text.
//!
//! `lexer` and `rewrite` bring the source into a form where every operator is a call of ours; minijinja runs
//! that; `values`, `operators`, `methods`, `filters` and `json` are Python as a template sees it.

mod clock;
mod filters;
mod json;
mod lexer;
mod limits;
mod literals;
mod messages;
mod methods;
mod operators;
mod rewrite;
mod source;
mod values;

use std::ops::Range;
use std::sync::OnceLock;

use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json, json};

use crate::error::{Error, Result};

pub use messages::check_messages;
pub use source::TemplateTokens;

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
    /// More variables for the template, such as `enable_thinking`.
    pub arguments: &'a Map<String, Json>,
    /// What must stay text where a message, tool or document contains it.
    pub control_tokens: &'a [&'a str],
}

/// A prompt.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rendered {
    pub text: String,
    /// Byte ranges of `text`, ascending, that came from a message and look like control tokens.
    pub literals: Vec<Range<usize>>,
}

/// A compiled chat template.
pub struct ChatTemplate {
    /// The template, and the one for requests with tools.
    default: Program,
    tool_use: Option<Program>,
    tokens: TemplateTokens,
}

struct Program {
    source: String,
    env: Environment<'static>,
    developer: bool,
    parts: OnceLock<bool>,
}

/// What `raise_exception` was given; found again behind the interpreter's error.
#[derive(Debug)]
struct Raised(String);

impl std::fmt::Display for Raised {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for Raised {}

impl ChatTemplate {
    /// Compiles a template.
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self> {
        Ok(ChatTemplate { default: Program::new(source)?, tool_use: None, tokens })
    }

    /// Adds the template that is used when a request has tools.
    pub fn with_tool_use(mut self, source: &str) -> Result<Self> {
        self.tool_use = Some(Program::new(source)?);
        Ok(self)
    }

    /// The template as its makers wrote it; the one for requests with tools, if there are two.
    pub fn source(&self) -> &str {
        &self.tool_use.as_ref().unwrap_or(&self.default).source
    }

    /// The prompt for `request`. A template that raises gives [`crate::error::ErrorKind::Template`] with its own message.
    pub fn render(&self, request: &RenderRequest<'_>) -> Result<Rendered> {
        check_messages(request.messages)?;
        let program = match (&self.tool_use, request.tools) {
            (Some(program), Some(_)) => program,
            _ => &self.default,
        };
        let shape =
            messages::Shape { parts: program.reads_parts(&self.tokens), developer: program.developer };
        let messages = Json::Array(messages::shaped(request.messages, shape));
        let given = || [Some(&messages), request.tools, request.documents].into_iter().flatten();
        let text = program.run(&messages, request, &self.tokens, None)?;
        let found = literals::Tokens::new(request.control_tokens).found_in(given());
        if found.is_empty() {
            return Ok(Rendered { text, literals: Vec::new() });
        }
        if let Some(marks) = literals::free_marks(given())
            && let Ok(marked) = program.run(&messages, request, &self.tokens, Some((&found, marks)))
        {
            let (unmarked, literals) = found.unmark(&marked, marks);
            if unmarked == text {
                return Ok(Rendered { text, literals });
            }
        }
        let literals = found.everywhere(&text);
        Ok(Rendered { text, literals })
    }
}

impl Program {
    fn new(source: &str) -> Result<Self> {
        let rewritten = rewrite::rewrite(source)?;
        let mut env = Environment::empty();
        env.set_fuel(Some(limits::FUEL));
        env.set_recursion_limit(limits::RECURSION);
        env.set_formatter(|out, _, value| {
            let text = values::text(value)?;
            out.write_str(&text).map_err(|e| limits::fail(e.to_string()))
        });
        operators::register(&mut env);
        filters::register(&mut env);
        env.add_function("raise_exception", |message: Value| -> Result<Value, minijinja::Error> {
            let message = values::text(&message)?;
            Err(limits::fail(message.clone()).with_source(Raised(message)))
        });
        env.add_function("strftime_now", |format: &str| clock::strftime(format, &clock::now()));
        env.add_template_owned("chat", rewritten).map_err(|e| told(&e))?;
        Ok(Program {
            source: source.to_owned(),
            env,
            developer: source.contains("developer"),
            parts: OnceLock::new(),
        })
    }

    /// Whether the template reads `content` that is a list of parts: tried once, with a needle.
    fn reads_parts(&self, tokens: &TemplateTokens) -> bool {
        *self.parts.get_or_init(|| {
            let messages = json!([{"role": "user", "content": [{"type": "text", "text": "needle"}]}]);
            let request = RenderRequest {
                messages: &[],
                tools: None,
                documents: None,
                add_generation_prompt: false,
                arguments: &Map::new(),
                control_tokens: &[],
            };
            let text = self.run(&messages, &request, tokens, None).unwrap_or_default();
            text.contains("needle") && !text.contains("'type'") && !text.contains("\"type\"")
        })
    }

    fn run(
        &self,
        messages: &Json,
        request: &RenderRequest<'_>,
        tokens: &TemplateTokens,
        marking: Option<(&literals::Tokens<'_>, [char; 2])>,
    ) -> Result<String> {
        limits::begin(marking.map(|(_, marks)| marks));
        let mark = |text: &str| match marking {
            Some((tokens, marks)) => tokens.mark(text, marks),
            None => text.to_owned(),
        };
        let data =
            |json: Option<&Json>| values::from_json(json.unwrap_or(&Json::Null), &mark).map_err(|e| told(&e));
        let mut context = vec![
            ("messages".to_owned(), data(Some(messages))?),
            ("tools".to_owned(), data(request.tools)?),
            ("documents".to_owned(), data(request.documents)?),
            ("add_generation_prompt".to_owned(), Value::from(request.add_generation_prompt)),
        ];
        context.extend(tokens.named().map(|(name, token)| (name.to_owned(), Value::from(token))));
        for (name, value) in request.arguments {
            let value = values::from_json(value, &str::to_owned).map_err(|e| told(&e))?;
            context.push((name.clone(), value));
        }
        let template = self.env.get_template("chat").map_err(|e| told(&e))?;
        let text = template.render(Value::from_pairs(context)).map_err(|e| told(&e))?;
        match text.len() > limits::OUTPUT_BYTES {
            true => Err(Error::template("the chat template rendered more than 16 MB")),
            false => Ok(text),
        }
    }
}

/// The interpreter's error as ours.
fn told(error: &minijinja::Error) -> Error {
    let mut cause: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(current) = cause {
        if let Some(Raised(message)) = current.downcast_ref() {
            return Error::template(format!("the chat template refused the messages: {message}"));
        }
        cause = current.source();
    }
    let what = match (error.kind(), error.detail()) {
        (minijinja::ErrorKind::OutOfFuel, _) => "it ran too long (more than 1.5 million steps)".to_owned(),
        (kind, Some(detail)) => format!("{kind}: {detail}"),
        (kind, None) => kind.to_string(),
    };
    match error.line() {
        Some(line) => Error::template(format!("the chat template failed at line {line}: {what}")),
        None => Error::template(format!("the chat template failed: {what}")),
    }
}
