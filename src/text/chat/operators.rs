//! Python's operators, in place of the interpreter's (see `code`): each charges what it does, refuses what
//! Python refuses, and looks through marks (see `literals`).

use std::cmp::Ordering;

use minijinja::value::Rest;
use minijinja::{Environment, Error, ErrorKind, Value};

use super::limits::{charge, fail, unmarked};
use super::values::{self, Dict, Num, Seq, SeqKind};

type Outcome = Result<Value, Error>;
type Binary = fn(&Value, &Value) -> Outcome;

pub fn register(env: &mut Environment<'_>) {
    let binary: [(&str, Binary); 12] = [
        ("+", add),
        ("*", mul),
        ("~", cat),
        ("[]", item),
        (".", attribute),
        ("in:", |a, b| contains(b, a).map(Value::from)),
        ("==", |a, b| Ok(equal(a, b)?.into())),
        ("!=", |a, b| Ok((!equal(a, b)?).into())),
        ("<", |a, b| Ok((compare(a, b)? == Some(Ordering::Less)).into())),
        ("<=", |a, b| Ok(matches!(compare(a, b)?, Some(Ordering::Less | Ordering::Equal)).into())),
        (">", |a, b| Ok((compare(a, b)? == Some(Ordering::Greater)).into())),
        (">=", |a, b| Ok(matches!(compare(a, b)?, Some(Ordering::Greater | Ordering::Equal)).into())),
    ];
    for (name, op) in binary {
        env.add_filter(name, move |a: &Value, b: &Value| op(a, b));
    }
    env.add_filter("[:]", slice);
    env.add_filter("list[]", |items: Rest<Value>| values::list(items.to_vec()));
    env.add_filter("tuple()", |items: Rest<Value>| values::tuple(items.to_vec()));
    env.add_filter("{}", |flat: Rest<Value>| {
        let pairs = flat.chunks(2).filter_map(|pair| Some((pair.first()?.clone(), pair.get(1)?.clone())));
        let pairs: Vec<_> = pairs.collect();
        if pairs.iter().any(|(key, _)| key.as_object().is_some()) {
            return Err(fail("the keys of a dict must be texts, numbers, booleans or None"));
        }
        values::dict(pairs)
    });
    env.add_filter("set=", |a: &Value| values::storable(a).map(|_| a.clone()));
    env.add_filter("scalar:", |a: &Value| match a.as_object() {
        Some(_) => Err(fail("loop.changed() takes a text, a number, a boolean or None")),
        None => charge(a.as_str().map_or(16, str::len)).map(|()| a.clone()),
    });
    env.add_filter("for:", |a: &Value| {
        if a.downcast_object_ref::<Seq>().is_some() { Ok(a.clone()) } else { values::list(values::items(a)?) }
    });
}

fn unsupported(op: &str, a: &Value, b: &Value) -> Error {
    if a.is_undefined() || b.is_undefined() {
        return Error::new(ErrorKind::UndefinedError, format!("an operand of {op} is undefined"));
    }
    let (a, b) = (values::type_name(a), values::type_name(b));
    fail(format!("unsupported operand type(s) for {op}: '{a}' and '{b}'"))
}

fn numbers(
    op: &str,
    a: &Value,
    b: &Value,
    int: fn(i128, i128) -> Option<i128>,
    float: fn(f64, f64) -> f64,
) -> Outcome {
    match (Num::of(a), Num::of(b)) {
        (Some(Num::Int(x)), Some(Num::Int(y))) => {
            let result = int(x, y).ok_or_else(|| fail(format!("the result of {op} is out of range")))?;
            Ok(Num::Int(result).value())
        }
        (Some(x), Some(y)) => Ok(Value::from(float(x.float(), y.float()))),
        _ => Err(unsupported(op, a, b)),
    }
}

fn add(a: &Value, b: &Value) -> Outcome {
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        charge(x.len() + y.len())?;
        return Ok(Value::from([x, y].concat()));
    }
    match (a.downcast_object_ref::<Seq>(), b.downcast_object_ref::<Seq>()) {
        (Some(x), Some(y)) if x.kind == y.kind && x.kind != SeqKind::View => {
            charge((x.items.len() + y.items.len()) * 24)?;
            values::seq([&x.items[..], &y.items[..]].concat(), x.kind)
        }
        _ => numbers("+", a, b, i128::checked_add, |x, y| x + y),
    }
}

fn mul(a: &Value, b: &Value) -> Outcome {
    let times = |v: &Value| {
        let times = Num::of(v).and_then(Num::int)?;
        Some(usize::try_from(times.max(0)).unwrap_or(usize::MAX))
    };
    let (what, n) = if Num::of(a).is_some() { (b, times(a)) } else { (a, times(b)) };
    match (what.as_str(), what.downcast_object_ref::<Seq>(), n) {
        (Some(text), _, Some(n)) => {
            charge(text.len().saturating_mul(n))?;
            Ok(Value::from(text.repeat(n)))
        }
        (_, Some(seq), Some(n)) if seq.kind != SeqKind::View => {
            charge(seq.items.len().saturating_mul(n).saturating_mul(24))?;
            values::seq(std::iter::repeat_n(&seq.items, n).flatten().cloned().collect(), seq.kind)
        }
        _ => numbers("*", a, b, i128::checked_mul, |x, y| x * y),
    }
}

fn cat(a: &Value, b: &Value) -> Outcome {
    let (mut left, right) = (values::text(a)?, values::text(b)?);
    charge(left.len() + right.len())?;
    left.push_str(&right);
    Ok(Value::from(left))
}

fn item(a: &Value, key: &Value) -> Outcome {
    if let Some(text) = a.as_str() {
        charge(text.len())?;
        let Some(index) = Num::of(key).and_then(Num::int) else { return Ok(Value::UNDEFINED) };
        let text = unmarked(text);
        let from = if index < 0 {
            text.chars().rev().nth((-index - 1) as usize)
        } else {
            text.chars().nth(index as usize)
        };
        return Ok(from.map_or(Value::UNDEFINED, |c| Value::from(c.to_string())));
    }
    match a.downcast_object_ref::<Seq>() {
        Some(Seq { kind: SeqKind::View, .. }) => {
            Err(fail("a range or a view of a dict has no index; put | list behind it"))
        }
        _ => a.get_item(key),
    }
}

/// An attribute that has the name of a dict's method.
fn attribute(a: &Value, name: &Value) -> Outcome {
    match a.downcast_object_ref::<Dict>() {
        Some(_) => Err(fail(format!("'.{name}' is a method of a dict; for its key write ['{name}']"))),
        None => a.get_attr(name.as_str().unwrap_or_default()),
    }
}

/// Python's `==`. Lists, tuples and dicts compare by their items, numbers by value.
pub fn equal(a: &Value, b: &Value) -> Result<bool, Error> {
    charge(16)?;
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        charge(x.len().min(y.len()) / 16)?;
        return Ok(x == y || unmarked(x) == unmarked(y));
    }
    if let (Some(x), Some(y)) = (Num::of(a), Num::of(b)) {
        return Ok(match (x, y) {
            (Num::Int(x), Num::Int(y)) => x == y,
            _ => x.float() == y.float(),
        });
    }
    if let (Some(x), Some(y)) = (a.downcast_object_ref::<Seq>(), b.downcast_object_ref::<Seq>()) {
        if x.kind != y.kind || x.items.len() != y.items.len() {
            return Ok(false);
        }
        for (x, y) in x.items.iter().zip(&y.items) {
            if !equal(x, y)? {
                return Ok(false);
            }
        }
        return Ok(true);
    }
    if let (Some(x), Some(y)) = (a.downcast_object_ref::<Dict>(), b.downcast_object_ref::<Dict>()) {
        if x.pairs.len() != y.pairs.len() {
            return Ok(false);
        }
        for (key, value) in &x.pairs {
            match y.get(key) {
                Some(other) if equal(value, other)? => {}
                _ => return Ok(false),
            }
        }
        return Ok(true);
    }
    Ok(a.kind() == b.kind() && (a.is_none() || a.is_undefined()))
}

/// Python's `<`; `None` for NaN; an error for what Python does not order.
pub fn compare(a: &Value, b: &Value) -> Result<Option<Ordering>, Error> {
    charge(16)?;
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
        charge(x.len().min(y.len()) / 16)?;
        return Ok(Some(unmarked(x).cmp(&unmarked(y))));
    }
    if let (Some(x), Some(y)) = (Num::of(a), Num::of(b)) {
        return Ok(match (x, y) {
            (Num::Int(x), Num::Int(y)) => Some(x.cmp(&y)),
            _ => x.float().partial_cmp(&y.float()),
        });
    }
    match (a.downcast_object_ref::<Seq>(), b.downcast_object_ref::<Seq>()) {
        (Some(x), Some(y)) if x.kind == y.kind => {
            for (x, y) in x.items.iter().zip(&y.items) {
                if !equal(x, y)? {
                    return compare(x, y);
                }
            }
            Ok(Some(x.items.len().cmp(&y.items.len())))
        }
        _ => Err(unsupported("<", a, b)),
    }
}

/// `part in whole`.
pub fn contains(whole: &Value, part: &Value) -> Result<bool, Error> {
    if let Some(text) = whole.as_str() {
        charge(text.len() / 8)?;
        return match part.as_str() {
            Some(part) => Ok(unmarked(text).contains(&*unmarked(part))),
            None => Err(fail(format!(
                "'in <string>' requires string as left operand, not {}",
                values::type_name(part)
            ))),
        };
    }
    if let Some(dict) = whole.downcast_object_ref::<Dict>() {
        return Ok(dict.get(part).is_some());
    }
    if let Some(seq) = whole.downcast_object_ref::<Seq>() {
        for item in &seq.items {
            if equal(item, part)? {
                return Ok(true);
            }
        }
        return Ok(false);
    }
    if whole.is_undefined() {
        Ok(false)
    } else {
        Err(fail(format!("argument of type '{}' is not iterable", values::type_name(whole))))
    }
}

/// `value[start:stop:step]` with Python's clamping.
fn slice(value: &Value, start: &Value, stop: &Value, step: &Value) -> Outcome {
    let bound = |v: &Value| match v.is_none() {
        true => Ok(None),
        false => Num::of(v)
            .and_then(Num::int)
            .map(Some)
            .ok_or_else(|| fail("slice indices must be integers or None")),
    };
    let (start, stop, step) = (bound(start)?, bound(stop)?, bound(step)?.unwrap_or(1));
    if step == 0 {
        return Err(fail("slice step cannot be zero"));
    }
    if let Some(text) = value.as_str() {
        charge(text.len().saturating_mul(5))?;
        let chars: Vec<char> = text.chars().collect();
        return Ok(Value::from(
            indices(chars.len(), start, stop, step).filter_map(|i| chars.get(i)).collect::<String>(),
        ));
    }
    match value.downcast_object_ref::<Seq>() {
        Some(seq) if seq.kind != SeqKind::View => {
            charge(seq.items.len() * 24)?;
            values::seq(
                indices(seq.items.len(), start, stop, step)
                    .filter_map(|i| seq.items.get(i).cloned())
                    .collect(),
                seq.kind,
            )
        }
        _ if value.is_undefined() => {
            Err(Error::new(ErrorKind::UndefinedError, "a sliced value is undefined"))
        }
        _ => Err(fail(format!("'{}' cannot be sliced", values::type_name(value)))),
    }
}

fn indices(len: usize, start: Option<i128>, stop: Option<i128>, step: i128) -> impl Iterator<Item = usize> {
    let len = len as i128;
    let (low, high) = if step > 0 { (0, len) } else { (-1, len - 1) };
    let clamp = |bound: i128| (if bound < 0 { bound.saturating_add(len) } else { bound }).clamp(low, high);
    let start = start.map_or(if step > 0 { low } else { high }, clamp);
    let stop = stop.map_or(if step > 0 { high } else { low }, clamp);
    let inside = move |i: &i128| if step > 0 { *i < stop } else { *i > stop };
    std::iter::successors(Some(start), move |i| i.checked_add(step)).take_while(inside).map(|i| i as usize)
}
