//! Jinja2's tests that chat templates use: `x is defined`, `selectattr("role", "==", "user")`.

use std::cmp::Ordering;

use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, Value};

use super::limits::fail;
use super::operators::{compare, contains, equal};
use super::values::{Dict, Num, Seq, SeqKind};

type Alone = fn(&Value) -> Result<bool, Error>;
type Against = fn(&Value, &Value) -> Result<bool, Error>;

pub fn register(env: &mut Environment<'_>) {
    for (name, test) in ALONE {
        env.add_test(*name, move |value: &Value, more: Rest<Value>| match more.is_empty() {
            true => test(value),
            false => Err(fail(format!("the test '{name}' takes no argument"))),
        });
    }
    for (names, test) in AGAINST {
        for name in *names {
            env.add_test(*name, move |value: &Value, other: &Value| test(value, other));
        }
    }
}

const ALONE: &[(&str, Alone)] = &[
    ("defined", |v| Ok(!v.is_undefined())),
    ("undefined", |v| Ok(v.is_undefined())),
    ("none", |v| Ok(v.is_none())),
    ("boolean", |v| Ok(v.kind() == ValueKind::Bool)),
    ("true", |v| Ok(v.kind() == ValueKind::Bool && v.is_true())),
    ("false", |v| Ok(v.kind() == ValueKind::Bool && !v.is_true())),
    ("integer", |v| Ok(v.kind() == ValueKind::Number && v.is_integer())),
    ("float", |v| Ok(v.kind() == ValueKind::Number && !v.is_integer())),
    ("number", |v| Ok(matches!(v.kind(), ValueKind::Number | ValueKind::Bool))),
    ("string", |v| Ok(v.kind() == ValueKind::String)),
    ("mapping", |v| Ok(v.downcast_object_ref::<Dict>().is_some())),
    ("sequence", |v| match v.downcast_object_ref::<Seq>() {
        Some(Seq { kind: SeqKind::View, .. }) => {
            Err(fail("put | list behind a range or a view of a dict before it is tested"))
        }
        _ => walks(v),
    }),
    ("iterable", walks),
    ("odd", |v| int(v).map(|i| i.rem_euclid(2) == 1)),
    ("even", |v| int(v).map(|i| i.rem_euclid(2) == 0)),
];

const AGAINST: &[(&[&str], Against)] = &[
    (&["in"], |v, other| contains(other, v)),
    (&["==", "eq", "equalto"], equal),
    (&["!=", "ne"], |v, other| equal(v, other).map(|e| !e)),
    (&["<", "lt"], |v, other| Ok(compare(v, other)? == Some(Ordering::Less))),
    (&[">", "gt"], |v, other| Ok(compare(v, other)? == Some(Ordering::Greater))),
    (&["<=", "le"], |v, other| Ok(compare(v, other)?.is_some_and(Ordering::is_le))),
    (&[">=", "ge"], |v, other| Ok(compare(v, other)?.is_some_and(Ordering::is_ge))),
];

/// Texts, lists and dicts can be walked through, and so can what is undefined.
fn walks(v: &Value) -> Result<bool, Error> {
    Ok(v.is_undefined()
        || v.as_str().is_some()
        || v.downcast_object_ref::<Dict>().is_some()
        || v.downcast_object_ref::<Seq>().is_some())
}

fn int(value: &Value) -> Result<i128, Error> {
    Num::of(value).and_then(Num::int).ok_or_else(|| fail("this test needs an integer"))
}
