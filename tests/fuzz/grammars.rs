//! Constraints on answers: compiled, and a few tokens of an answer held against them.

use std::sync::LazyLock;
use std::time::Duration;

use tallow::constrain::{Constraint, GrammarCompiler, Limits, Matcher, Reserve, TokenMask, Vocabulary};
use tallow::error::{ErrorKind, Result};

use super::parts::Part;
use super::rules::taken;
use super::{Outcome, Target, schemas, small};

pub const SCHEMA: Target = Target { name: "schema", parts: &[Part::Json], seeds: schema_seeds, run: schema };

pub const REGEX: Target = Target {
    name: "regex",
    parts: &[Part::Text(REGEX_WORDS)],
    seeds: || REGEXES.iter().map(|text| text.as_bytes().to_vec()).collect(),
    run: |input| answer(input, Constraint::Regex(String::from_utf8_lossy(input).into_owned())),
};

pub const LARK: Target = Target {
    name: "lark",
    parts: &[Part::Text(LARK_WORDS)],
    seeds: || LARKS.iter().map(|text| text.as_bytes().to_vec()).collect(),
    run: |input| answer(input, Constraint::Lark(String::from_utf8_lossy(input).into_owned())),
};

/// Tokens of an answer that are tried.
const TOKENS: usize = 8;

fn schema(input: &[u8]) -> Outcome {
    match serde_json::from_slice(input) {
        Ok(schema) => answer(input, Constraint::JsonSchema(schema)),
        Err(_) => Ok(false),
    }
}

/// The shortest end of an answer, and one whose tokens the input chooses.
fn answer(input: &[u8], constraint: Constraint) -> Outcome {
    static COMPILER: LazyLock<GrammarCompiler> = LazyLock::new(compiler);
    let answered = COMPILER.compile(&constraint).and_then(|grammar| {
        Reserve::new(&grammar, usize::MAX)?;
        walk(&mut grammar.matcher()?, input)
    });
    taken(&answered, &[ErrorKind::Constraint])
}

/// The limit of time is an argument, and 2 s unless told otherwise.
fn compiler() -> GrammarCompiler {
    let limits = Limits { compile_time: Duration::from_millis(400), ..Limits::default() };
    let tokenizer = small::tokenizer();
    let (end, size) = (tokenizer.id(small::END).unwrap(), tokenizer.vocab_size());
    GrammarCompiler::new(Vocabulary::new(tokenizer, &[end], size).unwrap(), limits).unwrap()
}

fn walk(matcher: &mut Matcher, input: &[u8]) -> Result<()> {
    let mut mask = TokenMask::default();
    for at in 0..TOKENS {
        if matcher.is_done() {
            break;
        }
        matcher.mask(&mut mask)?;
        matcher.forced();
        let choice = input.get(at * 7 % input.len().max(1)).copied().unwrap_or_default() as usize;
        let Some(id) = mask.iter().nth(choice % mask.count().max(1)) else { break };
        matcher.accept(id)?;
        if matcher.may_stop()? && matcher.grammar().vocabulary().is_eos(id) {
            break;
        }
    }
    Ok(())
}

fn schema_seeds() -> Vec<Vec<u8>> {
    let mut seeds: Vec<_> = schemas::table().iter().map(|schema| schema.to_string().into_bytes()).collect();
    seeds.extend(SCHEMAS.iter().map(|text| text.as_bytes().to_vec()));
    seeds
}

/// Keywords that the table of schemas does not have.
const SCHEMAS: &[&str] = &[
    r#"{"type":"string","pattern":"^[a-z]{2,5}(-[0-9]+)?$","maxLength":9,"minLength":2}"#,
    r#"{"type":"string","format":"date-time"}"#,
    r#"{"type":"object","patternProperties":{"^a":{"type":"integer"},"^b":{"type":"null"}},
        "propertyNames":{"maxLength":3},"minProperties":1,"maxProperties":3}"#,
    r#"{"allOf":[{"type":"object","properties":{"a":{"const":1}}},{"required":["a"]}]}"#,
    r#"{"oneOf":[{"type":"integer","multipleOf":3},{"type":"string","enum":["x","y"]}],"title":"t"}"#,
    r#"{"type":"array","prefixItems":[{"type":"integer"},{"type":"string"}],"items":false,"minItems":1}"#,
    r##"{"definitions":{"a/b":{"anyOf":[{"$ref":"#/definitions/a~1b"},{"type":"null"}]}},"$ref":"#/definitions/a~1b"}"##,
    r#"{"type":"integer","minimum":-9007199254740993,"maximum":9007199254740993}"#,
    r#"{"not":{"type":"null"},"type":["null","boolean"],"x-guidance":{"whitespace_flexible":true}}"#,
    r#"{"if":{"properties":{"a":{"const":1}}},"then":{"required":["b"]},"dependentRequired":{"a":["b"]}}"#,
];

const REGEXES: &[&str] = &[
    r"\d{4}-\d\d-\d\d",
    r"^(foo|bar)+[^a-c]?$",
    r"(?i)a.{0,20}\p{Greek}[\w&&[^\d]]*",
    r"(a+)+b|(?:x{1,3}){2,}\.",
    r"[\x00-\x1f\u{1F600}-\u{1F64F}]|\bé\B",
    r"(?P<name>ab|cd)*?(?s:.)(?x: a b )",
];

#[rustfmt::skip]
const REGEX_WORDS: &[&str] = &[
    "(", ")", "(?:", "[", "]", "[^", "&&", "--", "{2}", "{0,999}", "{,3}", "{1000,}", "*", "+", "?", "*?", "|", ".",
    "^", "$", "\\d", "\\w", "\\p{L}", "\\P{Greek}", "\\x{10FFFF}", "\\u00e9", "\\b", "\\1", "(?i)", "(?s)", "(?x)",
    "(?=a)", "(?<n>", "\\", "a", "-", "é", "\n", "\\Q", "[[:alpha:]]", "(a|b)", "(a*)*",
];

const LARKS: &[&str] = &[
    "start: \"the answer is \" /[0-9]{1,3}/",
    "start: item (\",\" item)*\nitem: WORD | NUMBER\nWORD: /[a-z]+/\nNUMBER: /[0-9]+/\n%ignore /[ \\t]+/",
    "start: expr\nexpr: term ((\"+\"|\"-\") term)*\nterm: \"(\" expr \")\" | /[0-9]+/",
    "start: %json {\"type\":\"object\",\"properties\":{\"a\":{\"type\":\"integer\"}}}",
    "start: text end\ntext[stop=\"x\"]: /.*/\nend[max_tokens=3]: /[a-z]*/\n",
    "start: <|tool|> body{2,4}\nbody: \"a\"i | \"b\"~3 | [\"c\"]\n",
    "%llguidance {\"no_forcing\": true}\nstart: /a/ & /[ab]/ | ~/c/\n",
];

#[rustfmt::skip]
const LARK_WORDS: &[&str] = &[
    "start:", "a: ", "A: ", "start", "\n", "|", "(", ")", "[", "]", "*", "+", "?", "~3", "{2,9}", "{999}", "\"a\"",
    "'b'", "/[a-z]+/", "/(a|b)*/i", "<|tool|>", "<[1-5]>", "%ignore ", "%import common.NUMBER", "%json ",
    "{\"type\":\"string\"}", "%regex {", "%lark {", "}", "[stop=\"x\"]", "[max_tokens=3]", "[capture]",
    "[lazy]", "[suffix=\"y\"]", "[temperature=0.5]", "&", "~", "//c\n", "-> name", "!", "$", ".", "\\", "a::b",
];
