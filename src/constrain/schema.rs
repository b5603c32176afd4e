//! From what a user wrote to what the library compiles: checked against the limits first.
//!
//! The library bounds its own work by fuel in most places; what is checked here is where it does not:
//! recursion along nesting and references, alternatives that multiply under `allOf`, pairs of
//! `patternProperties`.

use std::collections::HashMap;

use llguidance::api::TopLevelGrammar;
use serde_json::{Map, Value};

use super::exact::Exact;
use super::limits::Limits;
use super::rewrite::rewritten;
use super::{Constraint, literals};
use crate::error::{Error, Result};

/// Levels of nesting that all definitions have together: the deepest recursion of the library.
const LEVELS: usize = 8_000;

/// The constraint as one text, by which it is remembered. Two constraints with the same key are the same.
///
/// # Errors
/// Constraint if it is over the limits that can be told without recursion.
pub(super) fn key(constraint: &Constraint, limits: &Limits) -> Result<String> {
    let text = match constraint {
        Constraint::JsonSchema(schema) => {
            walk(schema, limits)?;
            schema.to_string()
        }
        Constraint::Regex(text) | Constraint::Lark(text) => text.clone(),
        Constraint::Choices(choices) => {
            check_choices(choices, limits)?;
            // Lengths before texts, so that no two lists share a key.
            choices.iter().map(|choice| format!("{}:{choice}", choice.len())).collect()
        }
    };
    at_most(constraint.name(), "bytes", text.len(), limits.source_bytes)?;
    Ok(format!("{} {text}", constraint.name()))
}

/// The constraint as the library reads it, and the numbers to be put into what it compiles. Recursive: run it
/// where there is stack.
///
/// # Errors
/// Constraint that says what is wrong.
pub(super) fn source(constraint: &Constraint, limits: &Limits) -> Result<(TopLevelGrammar, Vec<Exact>)> {
    let mut exact = Vec::new();
    let source = match constraint {
        Constraint::JsonSchema(schema) => {
            TopLevelGrammar::from_json_schema(on_one_line(readable(schema, limits, &mut exact)?)?)
        }
        Constraint::Regex(text) => TopLevelGrammar::from_regex(without_anchors(text)?),
        Constraint::Lark(text) => TopLevelGrammar::from_lark(literals::with_schemas(text, |schema| {
            walk(schema, limits)?;
            readable(schema, limits, &mut exact)
        })?),
        Constraint::Choices(choices) => {
            let choices: Vec<String> = choices.iter().map(|choice| regex::escape(choice)).collect();
            TopLevelGrammar::from_regex(&choices.join("|"))
        }
    };
    Ok((source, exact))
}

/// A schema whose size was checked, rewritten, and with what it multiplies out to checked.
fn readable(schema: &Value, limits: &Limits, exact: &mut Vec<Exact>) -> Result<Value> {
    let written = rewritten(schema, exact)?;
    let mut forms = Forms { root: &written, limits, known: HashMap::new(), levels: 0 };
    forms.of(&written, 0)?;
    Ok(written)
}

fn at_most(place: &str, what: &str, found: usize, most: usize) -> Result<()> {
    if found <= most {
        return Ok(());
    }
    Err(Error::constraint(format!("{place}: {found} {what} are too many; at most {most} are taken")))
}

fn check_choices(choices: &[String], limits: &Limits) -> Result<()> {
    if choices.is_empty() || choices.iter().any(String::is_empty) {
        return Err(Error::constraint("choices: give at least one text, and no empty one"));
    }
    at_most("choices", "texts", choices.len(), limits.choices)
}

/// Size, depth and the lengths of lists. Iterative, because the depth is not known yet; children are told
/// apart by keyword only roughly, so a property that is called `enum` counts as one.
fn walk(schema: &Value, limits: &Limits) -> Result<()> {
    if !schema.is_object() && !schema.is_boolean() {
        return Err(Error::constraint("json_schema: a schema is an object (or true or false)"));
    }
    let mut open = vec![(schema, 1)];
    let (mut values, mut bytes) = (0, 0);
    while let Some((value, depth)) = open.pop() {
        at_most("json_schema", "levels of nesting", depth, limits.depth)?;
        values += 1;
        match value {
            Value::Array(items) => {
                values += items.len();
                open.extend(items.iter().map(|item| (item, depth + 1)));
            }
            Value::Object(members) => {
                values += members.len();
                bytes += members.keys().map(String::len).sum::<usize>();
                check_lengths(members, limits)?;
                open.extend(members.values().map(|member| (member, depth + 1)));
            }
            Value::String(text) => bytes += text.len(),
            _ => {}
        }
        at_most("json_schema", "values", values, limits.values)?;
        at_most("json_schema", "bytes", bytes, limits.source_bytes)?;
    }
    Ok(())
}

fn check_lengths(members: &Map<String, Value>, limits: &Limits) -> Result<()> {
    if let Some(Value::Array(texts)) = members.get("enum") {
        at_most("json_schema: enum", "values", texts.len(), limits.choices)?;
    }
    if let Some(Value::Object(patterns)) = members.get("patternProperties") {
        at_most("json_schema: patternProperties", "patterns", patterns.len(), limits.patterns)?;
    }
    Ok(())
}

/// Counts the forms that each place of a schema may take, and the levels of everything it refers to.
struct Forms<'a> {
    root: &'a Value,
    limits: &'a Limits,
    /// By reference; 1 while it is being counted, so that a schema that contains itself ends.
    known: HashMap<&'a str, usize>,
    levels: usize,
}

impl<'a> Forms<'a> {
    /// The forms of one place. `allOf` and what stands beside each other multiply; alternatives add up.
    fn of(&mut self, value: &'a Value, depth: usize) -> Result<usize> {
        self.levels = self.levels.max(depth);
        at_most("json_schema", "levels of nesting, references followed,", depth, LEVELS)?;
        let mut forms: usize = 1;
        match value {
            Value::Array(items) => {
                for item in items {
                    self.of(item, depth + 1)?;
                }
            }
            Value::Object(members) => {
                for (keyword, member) in members {
                    forms = forms.saturating_mul(self.of_keyword(keyword, member, depth + 1)?);
                }
            }
            _ => {}
        }
        at_most("json_schema: anyOf, oneOf and allOf", "combinations", forms, self.limits.alternatives)?;
        Ok(forms)
    }

    fn of_keyword(&mut self, keyword: &str, member: &'a Value, depth: usize) -> Result<usize> {
        match (keyword, member) {
            ("anyOf" | "oneOf", Value::Array(options)) => options
                .iter()
                .try_fold(0, |sum: usize, option| Ok(sum.saturating_add(self.of(option, depth)?))),
            ("allOf", Value::Array(parts)) => {
                parts.iter().try_fold(1, |all: usize, part| Ok(all.saturating_mul(self.of(part, depth)?)))
            }
            ("$ref", Value::String(reference)) => self.of_reference(reference, depth),
            ("enum" | "const" | "default" | "examples", _) => Ok(1),
            _ => self.of(member, depth).map(|_| 1),
        }
    }

    fn of_reference(&mut self, reference: &'a str, depth: usize) -> Result<usize> {
        if let Some(&forms) = self.known.get(reference) {
            return Ok(forms);
        }
        // All are paths by now, and lead somewhere.
        let target = reference.strip_prefix('#').and_then(|pointer| self.root.pointer(pointer));
        let Some(target) = target else { return Ok(1) };
        self.known.insert(reference, 1);
        let forms = self.of(target, depth + 1)?;
        self.known.insert(reference, forms);
        Ok(forms)
    }
}

/// The schema with the layout of `json.dumps`, unless it brings its own.
fn on_one_line(mut schema: Value) -> Result<Value> {
    match &mut schema {
        Value::Object(members) if !members.contains_key("x-guidance") => {
            let layout = serde_json::json!({"whitespace_flexible": false, "item_separator": ", ", "key_separator": ": "});
            members.insert("x-guidance".into(), layout);
        }
        Value::Bool(true) => return on_one_line(Value::Object(Map::new())),
        Value::Bool(false) => {
            return Err(Error::constraint("json_schema: nothing satisfies the schema false"));
        }
        _ => {}
    }
    Ok(schema)
}

/// The expression without `^` before and `$` behind the whole of it.
///
/// # Errors
/// Constraint for a lone backslash at the end, which the library would drop.
fn without_anchors(text: &str) -> Result<&str> {
    let mut escaped = false;
    let (mut depth, mut class, mut divided, mut last_is_plain) = (0_usize, false, false, true);
    for letter in text.chars() {
        last_is_plain = !escaped;
        if std::mem::take(&mut escaped) {
            continue;
        }
        match letter {
            '\\' => escaped = true,
            '[' => class = true,
            ']' => class = false,
            '(' if !class => depth += 1,
            ')' if !class => depth = depth.saturating_sub(1),
            '|' if !class && depth == 0 => divided = true,
            _ => {}
        }
    }
    if escaped {
        return Err(Error::constraint("regex: it ends in a lone backslash; write \\\\ for a backslash"));
    }
    if divided {
        return Ok(text);
    }
    let text = text.strip_prefix('^').unwrap_or(text);
    Ok(text.strip_suffix('$').filter(|_| last_is_plain).unwrap_or(text))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn anchors_around_the_whole_expression_mean_nothing() {
        for (text, want) in [
            ("abc", "abc"),
            ("^abc$", "abc"),
            (r"^abc\$", r"abc\$"),
            (r"^abc\\$", r"abc\\"),
            ("^(a|b)$", "(a|b)"),
            ("^[(|]$", "[(|]"),
            ("^a|b$", "^a|b$"),
            ("$", ""),
            ("", ""),
        ] {
            assert_eq!(without_anchors(text).unwrap(), want, "{text}");
        }
        assert!(without_anchors(r"a\").is_err());
    }
}
