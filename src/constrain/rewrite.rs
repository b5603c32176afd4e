//! A JSON schema as people write it -> one that the library reads as it was meant.
//!
//! What the library would get wrong, or pass over without a word, is said otherwise here or refused by name:
//!
//! - references of every kind become `#/$defs/…` ([`super::references`]); the drafts' spellings become
//!   2020-12's;
//! - integers that f64 does not hold become expressions over their digits ([`super::exact`]);
//! - formats become patterns that their readers read ([`super::formats`]);
//! - a pattern beside a long `maxLength` becomes one expression ([`super::lengths`]);
//! - a keyword that cannot be enforced is refused, unless it says nothing (`uniqueItems: false`).

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::exact::Exact;
use super::references::{Place, References};
use super::{formats, integers, lengths};
use crate::error::{Error, PARAGRAPH, Result, quoted, shortened};

/// Where a keyword holds schemas.
pub(super) enum Children {
    None,
    One,
    Named,
    Listed,
    OneOrListed,
}

/// Which of a keyword's values are schemas, in any draft.
pub(super) fn children(keyword: &str) -> Children {
    match keyword {
        "properties" | "patternProperties" | "$defs" | "definitions" | "dependentSchemas" => Children::Named,
        "allOf" | "anyOf" | "oneOf" | "prefixItems" => Children::Listed,
        "items" => Children::OneOrListed,
        "additionalProperties"
        | "additionalItems"
        | "not"
        | "contains"
        | "propertyNames"
        | "if"
        | "then"
        | "else"
        | "unevaluatedItems"
        | "unevaluatedProperties"
        | "contentSchema" => Children::One,
        _ => Children::None,
    }
}

/// What the library's own option of that name takes back: keywords that it does not know are passed over.
const LENIENT: &str = "lenient";
/// Say nothing about a value. Definitions are reached by references alone.
const SILENT: [&str; 25] = [
    "$schema",
    "$id",
    "id",
    "$anchor",
    "$dynamicAnchor",
    "$recursiveAnchor",
    "$vocabulary",
    "$comment",
    "$defs",
    "definitions",
    "title",
    "description",
    "default",
    "readOnly",
    "writeOnly",
    "examples",
    "example",
    "deprecated",
    "contentMediaType",
    "contentEncoding",
    "contentSchema",
    "discriminator",
    "externalDocs",
    "xml",
    "x-guidance",
];
/// Assert something that no grammar here enforces.
const REFUSED: [&str; 16] = [
    "not",
    "if",
    "contains",
    "minContains",
    "maxContains",
    "propertyNames",
    "uniqueItems",
    "unevaluatedItems",
    "unevaluatedProperties",
    "dependentRequired",
    "dependentSchemas",
    "dependencies",
    "$dynamicRef",
    "$recursiveRef",
    "extends",
    "disallow",
];

/// Apply to the same value as what stands beside them.
const IN_PLACE: [&str; 6] = ["allOf", "anyOf", "oneOf", "$ref", "const", "enum"];
/// Stands for the smallest number above 0, which has hundreds of digits.
const NEXT_TO_ZERO: f64 = 1e-17;
const NUMERIC: [&str; 5] = ["minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"];

/// The schema for the library. Recursive along it, so its depth must have been checked.
///
/// # Errors
/// Constraint that names what cannot be enforced, or a reference that leads nowhere.
pub(super) fn rewritten(schema: &Value, exact: &mut Vec<Exact>) -> Result<Value> {
    let options = schema.get("x-guidance").cloned();
    let lenient = options.as_ref().and_then(|options| options.get(LENIENT)) == Some(&Value::Bool(true));
    let references = References::new(schema);
    let mut rewriter = Rewriter {
        references: &references,
        exact,
        names: HashMap::new(),
        waiting: Vec::new(),
        done: Map::new(),
        lenient,
    };
    let start = references.start();
    rewriter.names.insert((std::ptr::from_ref(schema), std::ptr::from_ref(schema)), "#".into());
    let mut written = rewriter.schema(start)?;
    while let Some((name, place)) = rewriter.waiting.pop() {
        let definition = rewriter.schema(place)?;
        rewriter.done.insert(name, definition);
    }
    let definitions = rewriter.done;
    if let Value::Object(members) = &mut written {
        if !definitions.is_empty() {
            members.insert("$defs".into(), Value::Object(definitions));
        }
        if let Some(options) = options {
            members.insert("x-guidance".into(), options);
        }
    }
    super::exact::check(&written)?;
    Ok(written)
}

/// The types that a schema names; an integer is a number.
fn types(schema: &Value) -> Option<Vec<&str>> {
    let named: Vec<&str> = match schema.get("type")? {
        Value::String(kind) => vec![kind],
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).collect(),
        _ => return None,
    };
    let nullable = (schema.get("nullable") == Some(&Value::Bool(true))).then_some("null");
    let named = named.into_iter().map(|kind| if kind == "integer" { "number" } else { kind });
    Some(named.chain(nullable).collect())
}

/// The values that a schema lists, where those are texts: numbers may be written in several ways.
fn listed(schema: &Value) -> Option<Vec<&Value>> {
    let values: Vec<&Value> = match (schema.get("const"), schema.get("enum")) {
        (Some(value), _) => vec![value],
        (None, Some(Value::Array(values))) => values.iter().collect(),
        _ => return None,
    };
    values.iter().all(|value| value.is_string()).then_some(values)
}

struct Rewriter<'a, 'b> {
    references: &'b References<'a>,
    exact: &'b mut Vec<Exact>,
    /// How the targets of references are called now.
    names: HashMap<(*const Value, *const Value), String>,
    waiting: Vec<(String, Place<'a>)>,
    done: Map<String, Value>,
    lenient: bool,
}

impl<'a> Rewriter<'a, '_> {
    fn schema(&mut self, place: Place<'a>) -> Result<Value> {
        let Value::Object(members) = place.schema else { return Ok(place.schema.clone()) };
        self.refuse(members)?;
        let mut out = Map::new();
        if let Some(reference) = members.get("$ref") {
            out.insert("$ref".into(), self.reference(place, reference)?);
            if self.ignores_siblings(members) {
                return Ok(Value::Object(out));
            }
        }
        for (keyword, member) in members {
            if keyword != "$ref" && !SILENT.contains(&keyword.as_str()) {
                let written = self.member(place, keyword, member)?;
                out.insert(self.spelled(place, members, keyword, member).into(), written);
            }
        }
        modern(&mut out);
        nullable(&mut out);
        narrow_range(&mut out);
        if let Some(exact) = self.exact_numbers(&mut out)? {
            return Ok(exact);
        }
        text(&mut out);
        Ok(Value::Object(out))
    }

    fn member(&mut self, place: Place<'a>, keyword: &str, member: &'a Value) -> Result<Value> {
        Ok(match (children(keyword), member) {
            (Children::Named, Value::Object(named)) => {
                let inner =
                    named.iter().map(|(name, schema)| Ok((name.clone(), self.schema(place.inner(schema))?)));
                Value::Object(inner.collect::<Result<_>>()?)
            }
            (Children::Listed | Children::OneOrListed, Value::Array(listed)) => Value::Array(
                listed.iter().map(|schema| self.schema(place.inner(schema))).collect::<Result<_>>()?,
            ),
            (Children::One | Children::OneOrListed, _) => self.schema(place.inner(member))?,
            _ => member.clone(),
        })
    }

    /// `oneOf` as `anyOf` where no two branches admit the same value. The library sees that of branches that
    /// stand there, not of references, which is how pydantic writes a union with a discriminator.
    fn spelled<'k>(
        &self,
        place: Place<'a>,
        beside: &Map<String, Value>,
        keyword: &'k str,
        member: &'a Value,
    ) -> &'k str {
        let Value::Array(branches) = member else { return keyword };
        if keyword != "oneOf" || beside.contains_key("anyOf") {
            return keyword;
        }
        let branches: Vec<_> = branches.iter().map(|branch| self.resolved(place.inner(branch))).collect();
        let apart = |at: usize, one: &Place<'a>| branches[..at].iter().all(|other| self.apart(*one, *other));
        if branches.iter().enumerate().all(|(at, one)| apart(at, one)) { "anyOf" } else { keyword }
    }

    /// What references lead to, if they lead somewhere in a few steps.
    fn resolved(&self, mut place: Place<'a>) -> Place<'a> {
        for _ in 0..8 {
            let Some(reference) = place.schema.get("$ref").and_then(Value::as_str) else { break };
            let Ok(target) = self.references.target(place, reference) else { break };
            place = target;
        }
        place
    }

    /// Whether no value satisfies both: by their types, by the values that they list, or by a property that
    /// both demand.
    fn apart(&self, one: Place<'a>, other: Place<'a>) -> bool {
        if let (Some(one), Some(other)) = (types(one.schema), types(other.schema))
            && one.iter().all(|kind| !other.contains(kind))
        {
            return true;
        }
        if let (Some(one), Some(other)) = (listed(one.schema), listed(other.schema)) {
            return one.iter().all(|value| !other.contains(value));
        }
        let demanded = |schema: &'a Value| schema.get("required").and_then(Value::as_array);
        let (Some(first), Some(second)) = (demanded(one.schema), demanded(other.schema)) else {
            return false;
        };
        let property = |place: Place<'a>, name: &str| {
            let schema = place.schema.get("properties")?.get(name)?;
            Some(self.resolved(place.inner(schema)))
        };
        first.iter().filter(|name| second.contains(name)).filter_map(Value::as_str).any(|name| {
            match (property(one, name), property(other, name)) {
                (Some(one), Some(other)) => match (listed(one.schema), listed(other.schema)) {
                    (Some(one), Some(other)) => one.iter().all(|value| !other.contains(value)),
                    _ => false,
                },
                _ => false,
            }
        }) && types(one.schema) == Some(vec!["object"])
            && types(other.schema) == Some(vec!["object"])
    }

    fn reference(&mut self, place: Place<'a>, reference: &Value) -> Result<Value> {
        let Some(text) = reference.as_str() else {
            let shown = shortened(reference, PARAGRAPH);
            return Err(Error::constraint(format!("a $ref is {shown}; it must be a text")));
        };
        let target = self.references.target(place, text)?;
        let key = (std::ptr::from_ref(target.schema), std::ptr::from_ref(self.references.start().schema));
        if let Some(name) = self.names.get(&key) {
            return Ok(name.as_str().into());
        }
        let name = format!("r{}", self.names.len());
        let path = format!("#/$defs/{name}");
        self.names.insert(key, path.clone());
        self.waiting.push((name, target));
        Ok(path.into())
    }

    /// Drafts before 2019-09 read nothing beside a `$ref`.
    fn ignores_siblings(&self, members: &Map<String, Value>) -> bool {
        let root = self.references.start().schema;
        let draft =
            members.get("$schema").or_else(|| root.get("$schema")).and_then(Value::as_str).unwrap_or("");
        ["draft-04", "draft-06", "draft-07"]
            .iter()
            .any(|old| draft.contains(&format!("json-schema.org/{old}/")))
    }

    fn refuse(&self, members: &Map<String, Value>) -> Result<()> {
        let asserts =
            |keyword: &str| members.get(keyword).is_some_and(|value| !says_nothing(keyword, value, members));
        match REFUSED.into_iter().find(|keyword| asserts(keyword)) {
            Some(keyword) if !self.lenient => Err(Error::constraint(format!(
                "the keyword {} cannot be enforced while an answer is written; leave it out, and check \
                 the answer for it",
                quoted(keyword)
            ))),
            _ => Ok(()),
        }
    }

    /// A schema of its own for numbers that f64 does not hold; `None` if it holds them all.
    fn exact_numbers(&mut self, out: &mut Map<String, Value>) -> Result<Option<Value>> {
        if let Some(members) = members_of(out).filter(|members| members.iter().any(holds_wide)) {
            let options = members.iter().filter(|value| has_type(value, out.get("type")));
            let options: Vec<Value> = options.map(|value| self.constant(value)).collect();
            let is_other = |key: &&String| !["const", "enum", "type"].contains(&key.as_str());
            if let Some(other) = out.keys().find(is_other) {
                return Err(Error::constraint(format!(
                    "an integer beyond 2^53 stands beside {}; leave that out, for the values say it all",
                    quoted(other)
                )));
            }
            return Ok(Some(if options.len() == 1 { options[0].clone() } else { json!({"anyOf": options}) }));
        }
        self.exact_range(out)
    }

    /// As above, for bounds. Of a `number` between them, the integers: f64 has nothing between those.
    fn exact_range(&mut self, out: &Map<String, Value>) -> Result<Option<Value>> {
        let bounds = integers::bounds(out);
        let kinds = kinds(out.get("type"));
        let (numeric, others): (Vec<&str>, Vec<&str>) =
            kinds.into_iter().partition(|kind| ["integer", "number"].contains(kind));
        if numeric.is_empty() || !integers::is_wide_range(&bounds) {
            return Ok(None);
        }
        if let Some(other) = IN_PLACE.iter().find(|keyword| out.contains_key(**keyword)) {
            return Err(Error::constraint(format!(
                "bounds beyond 2^53 stand beside {}; write them inside of it",
                quoted(other)
            )));
        }
        let Some(digits) = integers::between(bounds.0.as_ref(), bounds.1.as_ref()) else {
            return Err(Error::constraint("no integer lies between the bounds"));
        };
        let number = Exact::new(digits, out.get("multipleOf"))?.placed(self.exact, &mut self.done);
        if others.is_empty() {
            return Ok(Some(number));
        }
        let mut rest = out.clone();
        rest.retain(|keyword, _| !NUMERIC.contains(&keyword.as_str()));
        rest.insert("type".into(), json!(others));
        text(&mut rest);
        Ok(Some(json!({"anyOf": [number, rest]})))
    }

    /// A value as the schema that admits it alone.
    fn constant(&mut self, value: &Value) -> Value {
        match value {
            Value::Number(number) if integers::is_wide(value) => {
                Exact::constant(number).placed(self.exact, &mut self.done)
            }
            Value::Array(items) if holds_wide(value) => {
                let inner: Vec<Value> = items.iter().map(|item| self.constant(item)).collect();
                json!({"type": "array", "prefixItems": inner, "minItems": inner.len(), "maxItems": inner.len(), "items": false})
            }
            Value::Object(members) if holds_wide(value) => {
                let inner: Map<String, Value> =
                    members.iter().map(|(name, member)| (name.clone(), self.constant(member))).collect();
                let required: Vec<&String> = members.keys().collect();
                json!({"type": "object", "properties": inner, "required": required, "additionalProperties": false})
            }
            _ => json!({"const": value}),
        }
    }
}

/// Whether a keyword that is not enforced asserts nothing here.
fn says_nothing(keyword: &str, value: &Value, members: &Map<String, Value>) -> bool {
    let is_open = |value: &Value| *value == Value::Bool(true) || value.as_object().is_some_and(Map::is_empty);
    match keyword {
        "uniqueItems" => {
            *value == Value::Bool(false)
                || members.get("maxItems").and_then(Value::as_u64).is_some_and(|most| most < 2)
        }
        "not" => *value == Value::Bool(false),
        "unevaluatedItems" | "unevaluatedProperties" => is_open(value),
        "propertyNames" => is_open(value) || *value == json!({"type": "string"}),
        "if" => !members.contains_key("then") && !members.contains_key("else"),
        "minContains" | "maxContains" if !members.contains_key("contains") => true,
        "minContains" => *value == json!(0) && !members.contains_key("maxContains"),
        "contains" => members.get("minContains") == Some(&json!(0)) && !members.contains_key("maxContains"),
        "dependentRequired" | "dependentSchemas" | "dependencies" => {
            value.as_object().is_some_and(Map::is_empty)
        }
        _ => false,
    }
}

/// Older drafts' spellings in 2020-12's, and without what asserts nothing.
fn modern(out: &mut Map<String, Value>) {
    out.retain(|keyword, _| !REFUSED.contains(&keyword.as_str()) && keyword != "then" && keyword != "else");
    if matches!(out.get("items"), Some(Value::Array(_))) {
        if let Some(first) = out.shift_remove("items") {
            out.insert("prefixItems".into(), first);
        }
        if let Some(rest) = out.shift_remove("additionalItems") {
            out.insert("items".into(), rest);
        }
    }
    out.shift_remove("additionalItems");
}

/// OpenAPI 3.0 writes "or null" beside a type.
fn nullable(out: &mut Map<String, Value>) {
    if out.shift_remove("nullable") == Some(Value::Bool(true))
        && let Some(kind @ Value::String(_)) = out.get("type").cloned()
    {
        out.insert("type".into(), json!([kind, "null"]));
    }
}

/// The library lets a whole number pass that a bound excludes if the other bound is nearer than the next
/// whole number: "0" in (0, 0.5]. So the bound becomes the next number that f64 tells apart, which is
/// allowed.
fn narrow_range(out: &mut Map<String, Value>) {
    let least = |names: [&str; 2], sign: f64| {
        let found = names.into_iter().filter_map(|name| Some(out.get(name)?.as_f64()? * sign));
        found.min_by(f64::total_cmp)
    };
    // The upper side is the lower one of the negative numbers.
    for (strict, plain, others, sign) in [
        ("exclusiveMinimum", "minimum", ["maximum", "exclusiveMaximum"], 1.0),
        ("exclusiveMaximum", "maximum", ["minimum", "exclusiveMinimum"], -1.0),
    ] {
        let Some(bound) = out.get(strict).and_then(Value::as_f64).map(|bound| bound * sign) else { continue };
        let other = least(others, sign);
        if bound < 0.0 || bound.fract() != 0.0 || !other.is_some_and(|other| other < bound + 1.0) {
            continue;
        }
        let next = if bound == 0.0 { NEXT_TO_ZERO } else { bound.next_up() };
        let plainly = out.get(plain).and_then(Value::as_f64).map_or(next, |it| next.max(it * sign));
        out.shift_remove(strict);
        out.insert(plain.into(), (plainly * sign).into());
        return;
    }
}

/// The values that a schema lists.
fn members_of(out: &Map<String, Value>) -> Option<Vec<Value>> {
    match (out.get("const"), out.get("enum")) {
        (Some(value), None) => Some(vec![value.clone()]),
        (None, Some(Value::Array(values))) => Some(values.clone()),
        (Some(value), Some(Value::Array(values))) => {
            Some(values.iter().filter(|one| *one == value).cloned().collect())
        }
        _ => None,
    }
}

fn holds_wide(value: &Value) -> bool {
    match value {
        Value::Array(items) => items.iter().any(holds_wide),
        Value::Object(members) => members.values().any(holds_wide),
        _ => integers::is_wide(value),
    }
}

/// The types that a schema names; all of them if it names none.
fn kinds(kind: Option<&Value>) -> Vec<&str> {
    match kind {
        None => vec!["number", "string", "boolean", "null", "array", "object"],
        Some(Value::Array(kinds)) => kinds.iter().filter_map(Value::as_str).collect(),
        Some(kind) => kind.as_str().into_iter().collect(),
    }
}

fn has_type(value: &Value, kinds: Option<&Value>) -> bool {
    let is = |kind: &Value| match (kind.as_str(), value) {
        (Some("number"), Value::Number(_)) => true,
        (Some("integer"), Value::Number(number)) => {
            !number.is_f64() || number.as_f64().is_some_and(|float| float.fract() == 0.0)
        }
        (Some("string"), Value::String(_))
        | (Some("null"), Value::Null)
        | (Some("boolean"), Value::Bool(_)) => true,
        (Some("array"), Value::Array(_)) | (Some("object"), Value::Object(_)) => true,
        _ => false,
    };
    match kinds {
        None => true,
        Some(Value::Array(kinds)) => kinds.iter().any(is),
        Some(kind) => is(kind),
    }
}

/// Formats as patterns, and a pattern with a long `maxLength` as one.
fn text(out: &mut Map<String, Value>) {
    let format = out.get("format").and_then(Value::as_str).and_then(formats::expression);
    if let Some(expression) = format {
        out.shift_remove("format");
        let pattern = Value::from(format!("^(?:{expression})$"));
        if out.contains_key("pattern") {
            let more = json!({"type": "string", "pattern": pattern});
            match out.get_mut("allOf") {
                Some(Value::Array(parts)) => parts.push(more),
                _ => drop(out.insert("allOf".into(), json!([more]))),
            }
        } else {
            out.insert("pattern".into(), pattern);
        }
    }
    let most = out.get("maxLength").and_then(Value::as_u64).filter(|&most| most > lengths::LONG);
    let pattern = out.get("pattern").and_then(Value::as_str);
    if let (Some(most), Some(pattern)) = (most, pattern)
        && let Some(shared) = lengths::shared_out(pattern, most)
    {
        out.shift_remove("maxLength");
        if out.get("minLength").and_then(Value::as_u64).is_some_and(|least| least <= shared.shortest) {
            out.shift_remove("minLength");
        }
        out.insert("pattern".into(), shared.pattern.into());
    }
}
