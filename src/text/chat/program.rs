//! One compiled template: what it reads, what it can do, and running it.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use minijinja::{Environment, Value};
use serde_json::{Map, Value as Json, json};

use super::code::{self, Code};
use super::messages::{self, Shape};
use super::shows::Verdict;
use super::{RenderRequest, TemplateTokens};
use super::{checks, clock, filters, limits, literals, methods, operators, values};
use crate::error::{Error, PARAGRAPH, Result, shortened};

/// Bytes of the shapes of conversations that are remembered; a turn takes about sixty.
const MAX_SHAPES: usize = 4 << 20;

/// Characters of what a template raises that a message repeats.
const RAISED: usize = 1000;

/// What was found out, by shape.
#[derive(Default)]
struct Verdicts {
    known: HashMap<String, Arc<Verdict>>,
    bytes: usize,
}

pub struct Program {
    pub source: String,
    /// The variables that it reads from outside.
    pub variables: BTreeSet<String>,
    code: Code,
    env: Environment<'static>,
    tokens: TemplateTokens,
    parts: OnceLock<bool>,
    null: OnceLock<bool>,
    verdicts: Mutex<Verdicts>,
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

impl Program {
    pub fn new(source: &str, tokens: TemplateTokens) -> Result<Self> {
        let code = Code::compiled(source)?;
        let mut env = Environment::empty();
        env.set_fuel(Some(limits::FUEL));
        env.set_recursion_limit(limits::RECURSION);
        env.set_formatter(|out, _, value| {
            let text = values::text(value)?;
            out.write_str(&text).map_err(|e| limits::fail(e.to_string()))
        });
        operators::register(&mut env);
        filters::register(&mut env);
        checks::register(&mut env);
        env.set_unknown_method_callback(methods::call);
        env.add_global(code::ONE, 1);
        env.add_function(code::SAME, |value: Value| value);
        env.add_function("raise_exception", |message: Value| -> Result<Value, minijinja::Error> {
            let message = values::text(&message)?;
            Err(limits::fail(message.clone()).with_source(Raised(message)))
        });
        env.add_function("strftime_now", clock::strftime_now);
        let variables = code.variables(&env).map_err(|e| told(&e))?;
        Ok(Program {
            source: source.to_owned(),
            variables,
            code,
            env,
            tokens,
            parts: OnceLock::new(),
            null: OnceLock::new(),
            verdicts: Mutex::default(),
        })
    }

    pub fn reads(&self, variable: &str) -> bool {
        self.variables.contains(variable)
    }

    /// Messages as this template wants them; `parts` and `null` are found out when they first matter.
    pub fn shaped(&self, plain: &[Json]) -> Vec<Json> {
        let lists = plain.iter().any(|m| m.get("content").is_some_and(Json::is_array));
        let calls = plain.iter().any(|m| !messages::calls(m).is_empty());
        let shape = Shape {
            parts: lists && self.reads_parts(),
            developer: self.source.contains("developer"),
            null: !calls || self.takes_null(),
        };
        messages::shaped(plain, shape)
    }

    /// What was found out about conversations of this shape, or is found out now.
    pub fn verdict(&self, shape: String, find: impl FnOnce() -> Verdict) -> Arc<Verdict> {
        let lock = || self.verdicts.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(known) = lock().known.get(&shape) {
            return known.clone();
        }
        let found = Arc::new(find());
        let mut verdicts = lock();
        if verdicts.bytes + shape.len() > MAX_SHAPES {
            *verdicts = Verdicts::default();
        }
        verdicts.bytes += shape.len();
        verdicts.known.insert(shape, found.clone());
        found
    }

    /// What it makes of these messages alone.
    fn tried(&self, messages: Json) -> Result<String> {
        let arguments = Map::new();
        self.run(&messages, &RenderRequest::new(&[], &arguments), None)
    }

    /// Whether the template reads `content` that is a list of parts: tried once, with a needle.
    fn reads_parts(&self) -> bool {
        *self.parts.get_or_init(|| {
            let messages = json!([{"role": "user", "content": [{"type": "text", "text": "needle"}]}]);
            let text = self.tried(messages).unwrap_or_default();
            text.contains("needle") && !text.contains("'type'") && !text.contains("\"type\"")
        })
    }

    /// Whether `content` may be null beside calls, as OpenAI writes it: some templates add it to a text or
    /// print it as "None", and some know a call by it.
    fn takes_null(&self) -> bool {
        *self.null.get_or_init(|| {
            let tried = |content: Json| {
                let function = json!({"name": "needle", "arguments": {}});
                let call = json!({"id": "000000000", "type": "function", "function": function});
                let turn = json!({"role": "assistant", "content": content, "tool_calls": [call]});
                self.tried(json!([{"role": "user", "content": "x"}, turn])).ok()
            };
            let shows = |text: &String| text.contains("needle");
            let nulls = |text: &str| text.matches("None").count() + text.matches("null").count();
            match (tried(Json::Null).filter(shows), tried(Json::from("")).filter(shows)) {
                (Some(null), Some(empty)) => nulls(&null) <= nulls(&empty),
                (null, _) => null.is_some(),
            }
        })
    }

    pub fn run(
        &self,
        messages: &Json,
        request: &RenderRequest<'_>,
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
        context.extend(self.tokens.named().map(|(name, token)| (name.to_owned(), Value::from(token))));
        for (name, value) in request.arguments {
            let value = values::from_json(value, &str::to_owned).map_err(|e| told(&e))?;
            context.push((name.clone(), value));
        }
        let text = self.code.run(&self.env, Value::from_pairs(context)).map_err(|e| told(&e))?;
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
            let message = shortened(message, RAISED);
            return Error::template(format!("the chat template refused the messages: {message}"));
        }
        cause = current.source();
    }
    let what = match (error.kind(), error.detail()) {
        (minijinja::ErrorKind::OutOfFuel, _) => "it ran too long (more than 1.5 million steps)".to_owned(),
        (kind, Some(detail)) => format!("{kind}: {}", shortened(detail, PARAGRAPH)),
        (kind, None) => kind.to_string(),
    };
    match error.line() {
        Some(line) => Error::template(format!("the chat template failed at line {line}: {what}")),
        None => Error::template(format!("the chat template failed: {what}")),
    }
}
