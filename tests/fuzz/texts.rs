//! Chat templates: programs of strangers, run over conversations.

use std::sync::LazyLock;

use serde_json::{Map, Value, json};
use tallow::error::ErrorKind;
use tallow::text::chat::{ChatTemplate, RenderRequest, TemplateTokens};

use super::parts::Part;
use super::rules::taken;
use super::{Outcome, Target, golden};

pub const TEMPLATE: Target = Target { name: "template", parts: &[Part::Text(WORDS)], seeds, run: template };

#[rustfmt::skip]
const WORDS: &[&str] = &[
    "{{ ", " }}", "{% ", " %}", "{%- ", " -%}", "{# ", " #}", "{% for m in messages %}", "{% endfor %}", "{% if ",
    "{% elif ", "{% else %}", "{% endif %}", "{% set x = ", "{% macro f(a) %}", "{% endmacro %}", "{{ f(1) }}",
    "{% set ns = namespace(a=1) %}", "ns.a", "messages", "m.content", "m['role']", "tools", "loop.index0",
    "loop.last", "range(99999)", "(", ")", "[", "]", "[::-1]", "[1:]", "{", "}", "'a'", "\"", "~", " + ", " - ",
    " * ", " // ", " % ", " ** ", "9999999999999999999", "1e308", "-1", "0.1", "none", "true", " and ", " or ",
    "not ", " in ", " is defined", " is string", " is mapping", "|tojson(indent=4)", "|trim", "|length",
    "|join(',')", "|items", "|list", "|map(attribute='role')", "|selectattr('role', 'equalto', 'user')",
    "|replace('a', 'bb')", ".split('a')", ".strip()", ".upper()", ".join(", ".items()", ".get('x')",
    ".format(", "|indent(9)", "|string", "|int", "|float", "|first", "|last", "|sort", "|unique", "|batch(2)",
    "|default('x')", "raise_exception('x')", "strftime_now('%d %b %Y')", "{% generation %}",
    "{% endgeneration %}", "{% break %}", "{% continue %}", "{% raw %}", "{% endraw %}", "{% filter upper %}",
    "{% endfilter %}", "{% call f(1) %}", "{% endcall %}", "'a' * 9999999", " if ", " else ", "é", "\n",
];

/// Conversations as people write them, with the tools that they name.
static CONVERSATIONS: LazyLock<Vec<(Vec<Value>, Option<Value>)>> = LazyLock::new(|| {
    let user = |text: &str| json!({"role": "user", "content": text});
    let tools = json!([{"type": "function", "function": {"name": "f", "description": "d", "parameters":
        {"type": "object", "properties": {"x": {"type": "integer"}}, "required": ["x"]}}}]);
    let call = json!({"role": "assistant", "content": null, "tool_calls": [{"id": "1", "type": "function",
        "function": {"name": "f", "arguments": {"x": 1}}}]});
    let result = json!({"role": "tool", "tool_call_id": "1", "name": "f", "content": "2"});
    let parts =
        json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
    let system = json!({"role": "system", "content": "S <|im_end|>"});
    let answer = json!({"role": "assistant", "content": "b"});
    vec![
        (vec![user("a <|im_end|> é")], None),
        (vec![system, user("a"), answer, user("c")], None),
        (vec![user("a"), call, result], Some(tools)),
        (vec![parts], None),
    ]
});

fn template(input: &[u8]) -> Outcome {
    let source = String::from_utf8_lossy(input);
    let tokens = TemplateTokens { bos: Some("<s>".into()), eos: Some("</s>".into()), ..Default::default() };
    let template = ChatTemplate::new(&source, tokens);
    let is_taken = taken(&template, &[ErrorKind::Template, ErrorKind::UnsupportedModel])?;
    let Ok(template) = template else { return Ok(is_taken) };
    template.shows_calls();
    let (messages, tools) = &CONVERSATIONS[input.len() % CONVERSATIONS.len()];
    let rendered = template.render(&RenderRequest {
        tools: tools.as_ref(),
        add_generation_prompt: input.len().is_multiple_of(2),
        control_tokens: &["<|im_end|>"],
        ..RenderRequest::new(messages, &Map::new())
    });
    taken(&rendered, &[ErrorKind::Template, ErrorKind::InvalidRequest])?;
    match rendered {
        // What stays text must be where it is said to be.
        Ok(rendered) if rendered.literals.iter().any(|range| rendered.text.get(range.clone()).is_none()) => {
            Err(format!("{rendered:?}"))
        }
        _ => Ok(true),
    }
}

/// What of Jinja our goldens have, and a template as models bring it.
fn seeds() -> Vec<Vec<u8>> {
    let micro: Value = serde_json::from_slice(&golden("chat/micro.json")).unwrap();
    let rows = micro["rows"].as_array().unwrap().iter();
    let mut seeds: Vec<Vec<u8>> = rows.map(|row| row["template"].as_str().unwrap().into()).collect();
    seeds.push(WHOLE.into());
    seeds
}

const WHOLE: &str = "{{ bos_token }}{%- if messages[0]['role'] == 'system' %}{% set system = \
    messages[0]['content'] %}{% set rest = messages[1:] %}{% else %}{% set system = '' %}{% set rest = messages \
    %}{% endif %}{% if tools %}{% for tool in tools %}{{ tool | tojson(indent=2) }}{% endfor %}{% endif %}{% for \
    message in rest %}{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles \
    must alternate') }}{% endif %}{% if message.tool_calls is defined %}{% for call in message.tool_calls %}{{ \
    call.function.name ~ '(' ~ call.function.arguments | tojson ~ ')' }}{% endfor %}{% elif message.content is \
    string %}{{ '<|im_start|>' + message['role'] + '\\n' + message['content'] | trim + '<|im_end|>' }}{% else %}{% \
    for part in message.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}{% if add_generation_prompt \
    %}{{ '<|im_start|>assistant\\n' }}{% endif %}";
