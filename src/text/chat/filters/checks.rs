//! Jinja2's tests: `x is defined`, `select("string")`, `selectattr("role", "==", "user")`.

use std::cmp::Ordering;

use minijinja::value::ValueKind;
use minijinja::{Error, Value};

use super::FILTERS;
use crate::text::chat::limits::fail;
use crate::text::chat::methods::Args;
use crate::text::chat::operators::{compare, contains, equal};
use crate::text::chat::values::{Dict, Num, Seq, SeqKind, text};

type Test = fn(&Value, &Args) -> Result<bool, Error>;

pub(super) const TESTS: &[(&str, Test)] = &[
    ("defined", |v, _| Ok(!v.is_undefined())),
    ("undefined", |v, _| Ok(v.is_undefined())),
    ("none", |v, _| Ok(v.is_none())),
    ("boolean", |v, _| Ok(v.kind() == ValueKind::Bool)),
    ("true", |v, _| Ok(v.kind() == ValueKind::Bool && v.is_true())),
    ("false", |v, _| Ok(v.kind() == ValueKind::Bool && !v.is_true())),
    ("integer", |v, _| Ok(v.kind() == ValueKind::Number && v.is_integer())),
    ("float", |v, _| Ok(v.kind() == ValueKind::Number && !v.is_integer())),
    ("number", |v, _| Ok(matches!(v.kind(), ValueKind::Number | ValueKind::Bool))),
    ("string", |v, _| Ok(v.kind() == ValueKind::String)),
    ("mapping", |v, _| Ok(v.downcast_object_ref::<Dict>().is_some())),
    ("sequence", |v, _| {
        Ok(v.is_undefined()
            || v.as_str().is_some()
            || v.downcast_object_ref::<Dict>().is_some()
            || v.downcast_object_ref::<Seq>().is_some_and(|s| !matches!(s.kind, SeqKind::View(_))))
    }),
    ("iterable", |v, _| {
        Ok(v.is_undefined()
            || v.as_str().is_some()
            || v.downcast_object_ref::<Dict>().is_some()
            || v.downcast_object_ref::<Seq>().is_some())
    }),
    ("callable", |v, _| Ok(v.kind() == ValueKind::Plain)),
    ("odd", |v, _| int(v).map(|i| i.rem_euclid(2) == 1)),
    ("even", |v, _| int(v).map(|i| i.rem_euclid(2) == 0)),
    ("divisibleby", |v, a| match int(&first(a))? {
        0 => Err(fail("integer modulo by zero")),
        n => Ok(int(v)?.checked_rem(n) == Some(0)),
    }),
    ("lower", |v, _| {
        text(v).map(|t| t.chars().any(char::is_lowercase) && !t.chars().any(char::is_uppercase))
    }),
    ("upper", |v, _| {
        text(v).map(|t| t.chars().any(char::is_uppercase) && !t.chars().any(char::is_lowercase))
    }),
    ("sameas", |v, a| {
        let other = first(a);
        Ok(v.kind() == other.kind()
            && (v.as_object().is_none() || v.len() == other.len())
            && equal(v, &other)?)
    }),
    ("escaped", |_, _| Ok(false)),
    ("filter", |v, _| Ok(FILTERS.iter().any(|(name, _)| Some(*name) == v.as_str()))),
    ("test", |v, _| Ok(TESTS.iter().any(|(name, _)| Some(*name) == v.as_str()))),
    ("in", |v, a| contains(&first(a), v)),
    ("==", |v, a| equal(v, &first(a))),
    ("eq", |v, a| equal(v, &first(a))),
    ("equalto", |v, a| equal(v, &first(a))),
    ("!=", |v, a| equal(v, &first(a)).map(|e| !e)),
    ("ne", |v, a| equal(v, &first(a)).map(|e| !e)),
    ("<", less),
    ("lt", less),
    ("lessthan", less),
    (">", more),
    ("gt", more),
    ("greaterthan", more),
    ("<=", |v, a| more(v, a).map(|m| !m)),
    ("le", |v, a| more(v, a).map(|m| !m)),
    (">=", |v, a| less(v, a).map(|l| !l)),
    ("ge", |v, a| less(v, a).map(|l| !l)),
];

fn first(args: &Args) -> Value {
    args.positional.first().cloned().unwrap_or(Value::UNDEFINED)
}

fn less(v: &Value, a: &Args) -> Result<bool, Error> {
    Ok(compare(v, &first(a))? == Some(Ordering::Less))
}

fn more(v: &Value, a: &Args) -> Result<bool, Error> {
    Ok(compare(v, &first(a))? == Some(Ordering::Greater))
}

fn int(value: &Value) -> Result<i128, Error> {
    Num::of(value).and_then(Num::int).ok_or_else(|| fail("this test needs an integer"))
}
