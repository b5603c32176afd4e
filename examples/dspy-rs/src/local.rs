//! tallow as an `Adapter` of dspy-rs: ChatAdapter's prompt and parser, and between the two a model in this
//! process that is held to what the parser reads.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Result, bail};
use async_trait::async_trait;
use dspy_rs::adapter::Adapter;
use dspy_rs::{Chat, ChatAdapter, Example, LM, LmUsage, Message, MetaSignature, Prediction};
use rig::tool::ToolDyn;
use serde_json::{Map, Value, json};
use tallow::{Constraint, GenerateOptions, Lm, SamplerFields};

pub struct Local {
    lm: Lm,
}

impl Local {
    pub fn new(lm: Lm) -> Self {
        Local { lm }
    }
}

#[async_trait]
impl Adapter for Local {
    fn format(&self, signature: &dyn MetaSignature, inputs: Example) -> Chat {
        ChatAdapter.format(signature, inputs)
    }

    fn parse_response(&self, signature: &dyn MetaSignature, response: Message) -> HashMap<String, Value> {
        ChatAdapter.parse_response(signature, response)
    }

    async fn call(
        &self,
        lm: Arc<LM>,
        signature: &dyn MetaSignature,
        inputs: Example,
        tools: Vec<Arc<dyn ToolDyn>>,
    ) -> Result<Prediction> {
        if !tools.is_empty() {
            bail!("this adapter calls no tools; leave them out");
        }
        let sampling = SamplerFields { temperature: Some(lm.temperature.into()), ..Default::default() };
        let options = GenerateOptions {
            max_tokens: Some(lm.max_tokens as usize),
            sampler: Some(self.lm.sampler(sampling)?),
            constraint: Some(Constraint::lark(grammar(signature))),
            ..Default::default()
        };
        let messages =
            self.format(signature, inputs).messages.iter().map(Message::to_json).collect::<Vec<_>>();
        let answer = self.lm.stream(tallow::Chat::from(messages), options)?.completion().await?;
        let (prompt_tokens, completion_tokens) =
            (answer.usage.prompt_tokens as u64, answer.usage.completion_tokens as u64);
        let usage =
            LmUsage { prompt_tokens, completion_tokens, total_tokens: prompt_tokens + completion_tokens };
        Ok(Prediction::new(self.parse_response(signature, Message::assistant(answer.text)), usage))
    }
}

/// The answers that ChatAdapter reads: every output field under its header, JSON where it parses JSON. Its
/// parser unwraps, so whatever else came would be a panic.
fn grammar(signature: &dyn MetaSignature) -> String {
    let fields = signature.output_fields();
    let fields: Vec<(&String, &Value)> = fields.as_object().into_iter().flatten().collect();
    let header = |at: usize| match fields.get(at) {
        Some((name, _)) => format!("[[ ## {name} ## ]]\n"),
        None => "[[ ## completed ## ]]".to_string(),
    };
    let (mut start, mut rules) = (format!("start: {}", quoted(&header(0))), String::new());
    for (at, (_, field)) in fields.iter().enumerate() {
        start += &format!(" field_{at}");
        let end = format!("\n\n{}", header(at + 1));
        rules += &match schema(field) {
            Some(schema) => format!("field_{at}: json_{at} {}\njson_{at}: %json {schema}\n", quoted(&end)),
            // The parser cuts a text at any header, so there is none in it.
            None => format!("field_{at}[lazy]: /[^\\[\\s]([^\\[]|\\[[^\\[])*{}/\n", escaped(&end)),
        };
    }
    format!("{start}\n{rules}")
}

/// The schema of what the parser gives to serde_json; `None` for a text.
fn schema(field: &Value) -> Option<Value> {
    let kind = field["type"].as_str().unwrap_or("String");
    if let Some(schema) = field["schema"].as_object() {
        return Some(whole(schema));
    }
    let bits = kind[1..].parse::<u32>().unwrap_or(64).min(64);
    Some(match kind {
        "String" => return None,
        "bool" => json!({"type": "boolean"}),
        "f32" | "f64" => json!({"type": "number"}),
        "char" => json!({"type": "string", "minLength": 1, "maxLength": 1}),
        "str" => json!({"type": "string"}),
        unsigned if unsigned.starts_with('u') => {
            json!({"type": "integer", "minimum": 0, "maximum": u64::MAX >> (64 - bits)})
        }
        _ => {
            json!({"type": "integer", "minimum": i64::MIN >> (64 - bits), "maximum": i64::MAX >> (64 - bits)})
        }
    })
}

/// dspy-rs keeps of a struct's schema the properties alone.
fn whole(schema: &Map<String, Value>) -> Value {
    let is_schema = schema.get("type").is_some_and(|kind| kind.is_string() || kind.is_array())
        || ["$ref", "anyOf", "oneOf", "allOf", "enum", "const"].iter().any(|key| schema.contains_key(*key));
    match is_schema {
        true => json!(schema),
        false => {
            let required: Vec<&String> = schema.keys().collect();
            json!({"type": "object", "properties": schema, "required": required, "additionalProperties": false})
        }
    }
}

/// A text as Lark writes it.
fn quoted(text: &str) -> String {
    json!(text).to_string()
}

/// A text as a regular expression.
fn escaped(text: &str) -> String {
    text.chars()
        .map(|c| {
            if c == '\n' {
                "\\n".into()
            } else if "[]".contains(c) {
                format!("\\{c}")
            } else {
                c.to_string()
            }
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn integers_have_the_bounds_of_their_types() {
        let of = |kind: &str| schema(&json!({"type": kind, "schema": ""})).unwrap();
        assert_eq!(of("u8"), json!({"type": "integer", "minimum": 0, "maximum": 255}));
        assert_eq!(of("i8"), json!({"type": "integer", "minimum": -128, "maximum": 127}));
        assert_eq!(of("i64")["minimum"], json!(i64::MIN));
        assert_eq!(of("usize")["maximum"], json!(u64::MAX));
    }
}
