//! JSON schemas to walk through, and a plain check of a value against one.

use serde_json::{Value, json};

/// The keywords that the check knows.
pub fn table() -> Vec<Value> {
    let person = json!({
        "type": "object",
        "properties": {
            "name": {"type": "string", "minLength": 1, "maxLength": 8},
            "age": {"type": "integer", "minimum": 0, "maximum": 120},
            "tags": {"type": "array", "items": {"enum": ["red", "green", "blue"]}, "minItems": 1, "maxItems": 3},
            "nick": {"anyOf": [{"type": "string", "maxLength": 3}, {"type": "null"}]},
        },
        "required": ["name", "age", "tags"],
        "additionalProperties": false,
    });
    let tree = json!({
        "$defs": {"Node": {
            "type": "object",
            "properties": {
                "value": {"type": "number", "minimum": -1.5, "exclusiveMaximum": 2},
                "children": {"type": "array", "items": {"$ref": "#/$defs/Node"}, "maxItems": 2},
            },
            "required": ["value", "children"],
            "additionalProperties": false,
        }},
        "$ref": "#/$defs/Node",
    });
    vec![
        json!({"type": "boolean"}),
        json!({"const": {"fixed": [1, "é", null]}}),
        json!({"enum": ["abc", "ab", "cab", 12, true]}),
        json!({"type": "integer", "minimum": 100, "maximum": 9999}),
        // The shortest number near an excluded whole one is that number itself.
        json!({"type": "number", "exclusiveMinimum": 0, "maximum": 0.5}),
        json!({"type": "number", "exclusiveMinimum": 2, "exclusiveMaximum": 2.25}),
        json!({"type": "number", "minimum": -0.5, "exclusiveMaximum": 0}),
        json!({"type": "number", "minimum": -3.5, "exclusiveMaximum": -3}),
        json!({"type": "number", "exclusiveMinimum": 0}),
        json!({"type": ["integer", "null"], "exclusiveMinimum": 4, "exclusiveMaximum": 9}),
        json!({"type": "object", "additionalProperties": {"type": "integer", "minimum": 0, "maximum": 9}}),
        json!({"type": "array", "items": {"type": ["string", "boolean"], "maxLength": 5}, "maxItems": 4}),
        json!({"type": "object", "required": ["reasoning", "answer"], "additionalProperties": false,
               "properties": {"reasoning": {"type": "string"}, "answer": {"enum": ["yes", "no"]}}}),
        person,
        tree,
    ]
}

/// Whether `value` is what `schema` says. `root` holds the definitions.
pub fn holds(root: &Value, schema: &Value, value: &Value) -> bool {
    if let Some(reference) = schema.get("$ref") {
        return holds(root, root.pointer(&reference.as_str().unwrap()[1..]).unwrap(), value);
    }
    if let Some(options) = schema.get("anyOf") {
        return options.as_array().unwrap().iter().any(|option| holds(root, option, value));
    }
    let fixed = |key: &str, any: &dyn Fn(&Value) -> bool| schema.get(key).is_none_or(any);
    fixed("const", &|want| want == value)
        && fixed("enum", &|options| options.as_array().unwrap().contains(value))
        && fixed("type", &|types| match types {
            Value::Array(types) => types.iter().any(|name| is_type(name, value)),
            name => is_type(name, value),
        })
        && bounds(schema, value)
        && members(root, schema, value)
}

fn is_type(name: &Value, value: &Value) -> bool {
    match name.as_str().unwrap() {
        "object" => value.is_object(),
        "array" => value.is_array(),
        "string" => value.is_string(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        other => panic!("the check does not know the type {other}"),
    }
}

fn bounds(schema: &Value, value: &Value) -> bool {
    let number = |key: &str| schema.get(key).and_then(Value::as_f64);
    let size = match value {
        Value::String(text) => Some((text.chars().count() as f64, "minLength", "maxLength")),
        Value::Array(items) => Some((items.len() as f64, "minItems", "maxItems")),
        Value::Number(number) => number.as_f64().map(|number| (number, "minimum", "maximum")),
        _ => None,
    };
    size.is_none_or(|(size, least, most)| {
        number(least).is_none_or(|least| size >= least)
            && number(most).is_none_or(|most| size <= most)
            && (!value.is_number() || number("exclusiveMaximum").is_none_or(|end| size < end))
            && (!value.is_number() || number("exclusiveMinimum").is_none_or(|end| size > end))
    })
}

fn members(root: &Value, schema: &Value, value: &Value) -> bool {
    match value {
        Value::Array(items) => {
            schema.get("items").is_none_or(|each| items.iter().all(|item| holds(root, each, item)))
        }
        Value::Object(members) => {
            let required = schema.get("required").and_then(Value::as_array);
            let other = schema.get("additionalProperties").unwrap_or(&Value::Null);
            required.is_none_or(|names| names.iter().all(|name| members.contains_key(name.as_str().unwrap())))
                && members.iter().all(|(name, member)| {
                    let known = schema.get("properties").and_then(|properties| properties.get(name));
                    match (known, other) {
                        (Some(known), _) => holds(root, known, member),
                        (None, Value::Bool(allowed)) => *allowed,
                        (None, Value::Null) => true,
                        (None, other) => holds(root, other, member),
                    }
                })
        }
        _ => true,
    }
}
