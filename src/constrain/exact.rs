//! Numbers that the library's JSON compiler cannot say, put into the grammar that it made.
//!
//! It computes numbers with f64 and has no keyword for an expression without quotes. So such a number is
//! written into the schema as a definition with one text, a mark that nobody writes, and in the compiled
//! grammar the lexeme of that mark gets the number's own expression. As a definition of its own it stays a
//! lexeme of its own: alternatives of literals would be merged into one.

use llguidance::api::{GrammarInit, ParserLimits, TopLevelGrammar};
use llguidance::derivre::{JsonQuoteOptions, RegexAst};
use llguidance::earley::lexerspec::{LexemeClass, LexerSpec};
use llguidance::toktrie::TokEnv;
use serde_json::{Map, Number, Value, json};

use super::compile::tidy;
use super::integers;
use crate::error::{Error, Result};

/// The beginning of every mark: a noncharacter, which no text in use holds.
const MARK: char = '\u{10FFFE}';
/// Definitions of that name hold marks.
const NAME: &str = "exact-";
/// Larger divisors overflow where the library computes remainders.
const LARGEST_STEP: u64 = u32::MAX as u64 / 10;

/// A number by its digits.
#[derive(Clone, Debug)]
pub(super) struct Exact {
    mark: String,
    digits: String,
    /// It is a multiple of this.
    step: Option<u32>,
}

impl Exact {
    pub fn constant(number: &Number) -> Self {
        Exact { mark: String::new(), digits: integers::constant(number), step: None }
    }

    /// # Errors
    /// Constraint for a step that is no integer, or too large to be followed.
    pub fn new(digits: String, step: Option<&Value>) -> Result<Self> {
        let read = |step: &Value| {
            let found = step.as_u64().filter(|&step| 0 < step && step <= LARGEST_STEP);
            found.and_then(|step| u32::try_from(step).ok()).ok_or_else(|| {
                Error::constraint(format!(
                    "multipleOf {step} beside bounds beyond 2^53 cannot be enforced; it must be an integer \
                     from 1 to {LARGEST_STEP}"
                ))
            })
        };
        Ok(Exact { mark: String::new(), digits, step: step.map(read).transpose()? })
    }

    /// Remembers it, and gives the reference that stands for it.
    pub fn placed(mut self, all: &mut Vec<Exact>, definitions: &mut Map<String, Value>) -> Value {
        let number = all.len();
        self.mark = format!("{MARK}{number}");
        definitions.insert(format!("{NAME}{number}"), json!({"const": self.mark}));
        all.push(self);
        json!({"$ref": format!("#/$defs/{NAME}{number}")})
    }

    fn expression(&self) -> RegexAst {
        let digits = RegexAst::Regex(self.digits.clone());
        let Some(step) = self.step else { return digits };
        let multiple = vec![RegexAst::Regex("-?".into()), RegexAst::MultipleOf(step, 0)];
        RegexAst::And(vec![digits, RegexAst::Concat(multiple)])
    }
}

/// Compiles a grammar with these numbers in it.
///
/// # Errors
/// Constraint as the library says; Internal if a mark was lost.
pub(super) fn compiled(
    source: TopLevelGrammar,
    exact: &[Exact],
    env: &TokEnv,
    limits: ParserLimits,
) -> Result<GrammarInit> {
    let source = GrammarInit::Serialized(source);
    if exact.is_empty() {
        return Ok(source);
    }
    let made = source.to_internal(Some(env.clone()), limits);
    let (grammar, mut lexer) = made.map_err(|error| Error::constraint(tidy(&error)))?;
    for one in exact {
        put(&mut lexer, one)?;
    }
    Ok(GrammarInit::Internal(grammar, lexer))
}

/// Gives the lexemes of a mark the number's expression.
fn put(lexer: &mut LexerSpec, one: &Exact) -> Result<()> {
    let own = lexer.current_class;
    let mark =
        RegexAst::JsonQuote(Box::new(RegexAst::Literal(one.mark.clone())), JsonQuoteOptions::regular());
    for class in classes(lexer) {
        let known = lexer.lexemes.len();
        lexer.current_class = class;
        // A lexeme that is there is found, and not added once more.
        let at = added(lexer, mark.clone())?;
        if at == known {
            lexer.lexemes.truncate(known);
            continue;
        }
        // A lexeme knows its own number, so the new one is made where it will stand, with no other to be
        // found.
        let mut other = lexer.clone();
        other.lexemes = vec![lexer.lexemes[at].clone(); at];
        added(&mut other, one.expression())?;
        lexer.regex_builder = other.regex_builder;
        if let Some(made) = other.lexemes.pop() {
            lexer.lexemes[at] = made;
        }
    }
    lexer.current_class = own;
    Ok(())
}

fn added(lexer: &mut LexerSpec, expression: RegexAst) -> Result<usize> {
    let index = lexer.add_greedy_lexeme(String::new(), expression, false, None, usize::MAX);
    index.map(|index| index.as_usize()).map_err(|error| Error::constraint(tidy(&error)))
}

fn classes(lexer: &LexerSpec) -> Vec<LexemeClass> {
    let mut found: Vec<LexemeClass> = Vec::new();
    for lexeme in &lexer.lexemes {
        if !found.contains(&lexeme.class()) {
            found.push(lexeme.class());
        }
    }
    found
}

/// Whether every number of its own stands alone: beside other assertions the library would intersect its
/// mark, as a text, with those.
///
/// # Errors
/// Constraint if one does not.
pub(super) fn check(schema: &Value) -> Result<()> {
    let definitions = schema.get("$defs").and_then(Value::as_object);
    let mut waiting = vec![schema];
    while let Some(value) = waiting.pop() {
        match value {
            Value::Array(items) => waiting.extend(items),
            Value::Object(members) => {
                let asserts =
                    members.keys().filter(|keyword| !["$defs", "x-guidance"].contains(&keyword.as_str()));
                let in_place = ["$ref", "anyOf", "oneOf", "allOf"];
                let is_alone = asserts.count() == 1 && !members.contains_key("allOf");
                let holds = |keyword: &str| {
                    members.get(keyword).is_some_and(|member| is_exact(member, definitions, 0))
                };
                if !is_alone && in_place.into_iter().any(holds) {
                    return Err(Error::constraint(
                        "an integer beyond 2^53 under $ref, anyOf, oneOf or allOf has other keywords beside \
                         it; write it without them",
                    ));
                }
                waiting.extend(members.values());
            }
            _ => {}
        }
    }
    Ok(())
}

/// How many references in place are followed; longer chains are no schema's.
const CHAIN: usize = 64;

/// Whether what applies in place holds a number of its own.
fn is_exact(value: &Value, definitions: Option<&Map<String, Value>>, depth: usize) -> bool {
    match value {
        Value::String(path) => {
            let name = path.strip_prefix("#/$defs/").unwrap_or("");
            let target = definitions.and_then(|all| all.get(name));
            name.starts_with(NAME)
                || (depth < CHAIN && target.is_some_and(|to| is_exact(to, definitions, depth + 1)))
        }
        Value::Array(options) => options.iter().any(|option| is_exact(option, definitions, depth)),
        Value::Object(members) => ["$ref", "anyOf", "oneOf", "allOf"]
            .into_iter()
            .any(|keyword| members.get(keyword).is_some_and(|inner| is_exact(inner, definitions, depth))),
        _ => false,
    }
}
