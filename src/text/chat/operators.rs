//! Python's operators. The rewritten template calls them as filters, so that each can be exact and charged.

use std::cmp::Ordering;

use minijinja::formatting::{FormatStyle, format};
use minijinja::value::{Rest, ValueKind};
use minijinja::{Environment, Error, ErrorKind, Value};

use super::limits::{charge, fail, unmarked};
use super::values::{self, Dict, Num, Seq, SeqKind};

type Outcome = Result<Value, Error>;
type Binary = fn(&Value, &Value) -> Outcome;

/// Registers the operators under names that no template can write.
pub fn register(env: &mut Environment<'_>) {
    let binary: [(&str, Binary); 15] = [
        ("add", add),
        ("sub", sub),
        ("mul", mul),
        ("div", div),
        ("floordiv", floordiv),
        ("mod", modulo),
        ("pow", pow),
        ("cat", cat),
        ("item", item),
        ("eq", |a, b| Ok(equal(a, b)?.into())),
        ("ne", |a, b| Ok((!equal(a, b)?).into())),
        ("lt", |a, b| Ok((compare(a, b)? == Some(Ordering::Less)).into())),
        ("le", |a, b| Ok(matches!(compare(a, b)?, Some(Ordering::Less | Ordering::Equal)).into())),
        ("gt", |a, b| Ok((compare(a, b)? == Some(Ordering::Greater)).into())),
        ("ge", |a, b| Ok(matches!(compare(a, b)?, Some(Ordering::Greater | Ordering::Equal)).into())),
    ];
    for (name, op) in binary {
        env.add_filter(format!("o_{name}"), move |a: &Value, b: &Value| op(a, b));
    }
    env.add_filter("o_in", |a: &Value, b: &Value| contains(b, a).map(Value::from));
    env.add_filter("o_neg", |a: &Value| {
        sub(&Value::from(0), a).map(|v| match Num::of(a) {
            Some(Num::Float(f)) => Value::from(-f),
            _ => v,
        })
    });
    env.add_filter("o_pos", |a: &Value| add(&Value::from(0), a));
    env.add_filter("o_slice", slice);
    env.add_filter("o_list", |items: Rest<Value>| values::list(items.iter().skip(1).cloned().collect()));
    // For `with a = 1, b = 2`: never kept, so it may hold anything.
    env.add_filter("o_pack", |items: Rest<Value>| Value::from(items.get(1..).unwrap_or_default().to_vec()));
    env.add_filter("o_tuple", |items: Rest<Value>| values::tuple(items.iter().skip(1).cloned().collect()));
    env.add_filter("o_dict", |flat: Rest<Value>| {
        let pairs = flat.get(1..).unwrap_or_default().chunks(2);
        let pairs: Vec<_> = pairs.filter_map(|p| Some((p.first()?.clone(), p.get(1)?.clone()))).collect();
        if pairs.iter().any(|(k, _)| {
            k.as_object().is_some_and(|o| o.downcast_ref::<Seq>().is_none_or(|s| s.kind != SeqKind::Tuple))
        }) {
            return Err(fail("unhashable type in the keys of a dict"));
        }
        values::dict(pairs)
    });
    env.add_filter("o_store", |a: &Value| values::storable(a).map(|_| a.clone()));
    env.add_filter("o_iter", |a: &Value| {
        if a.downcast_object_ref::<Seq>().is_some() { Ok(a.clone()) } else { values::list(values::items(a)?) }
    });
    env.add_filter("o_data", |a: &Value| charge(a.as_usize().unwrap_or(0)).map(|_| ""));
}

fn unsupported(op: &str, a: &Value, b: &Value) -> Error {
    if a.is_undefined() || b.is_undefined() {
        return Error::new(ErrorKind::UndefinedError, format!("an operand of {op} is undefined"));
    }
    fail(format!(
        "unsupported operand type(s) for {op}: '{}' and '{}'",
        values::type_name(a),
        values::type_name(b)
    ))
}

fn arithmetic(
    op: &str,
    a: &Value,
    b: &Value,
    int: fn(i128, i128) -> Option<i128>,
    float: fn(f64, f64) -> f64,
) -> Outcome {
    match (Num::of(a), Num::of(b)) {
        (Some(Num::Int(x)), Some(Num::Int(y))) => int(x, y)
            .map(|i| Num::Int(i).value())
            .ok_or_else(|| fail(format!("the result of {op} is out of range"))),
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
        (Some(x), Some(y)) if x.kind == y.kind => {
            charge((x.items.len() + y.items.len()) * 24)?;
            values::seq([&x.items[..], &y.items[..]].concat(), x.kind)
        }
        _ => arithmetic("+", a, b, i128::checked_add, |x, y| x + y),
    }
}

fn sub(a: &Value, b: &Value) -> Outcome {
    arithmetic("-", a, b, i128::checked_sub, |x, y| x - y)
}

fn mul(a: &Value, b: &Value) -> Outcome {
    let times =
        |v: &Value| Num::of(v).and_then(Num::int).map(|n| usize::try_from(n.max(0)).unwrap_or(usize::MAX));
    let (what, n) = if Num::of(a).is_some() { (b, times(a)) } else { (a, times(b)) };
    let Some(n) = n else { return arithmetic("*", a, b, i128::checked_mul, |x, y| x * y) };
    if let Some(text) = what.as_str() {
        charge(text.len().saturating_mul(n))?;
        return Ok(Value::from(text.repeat(n)));
    }
    if let Some(seq) = what.downcast_object_ref::<Seq>() {
        charge(seq.items.len().saturating_mul(n).saturating_mul(24))?;
        return values::seq(std::iter::repeat_n(&seq.items, n).flatten().cloned().collect(), seq.kind);
    }
    arithmetic("*", a, b, i128::checked_mul, |x, y| x * y)
}

fn nonzero(b: &Value) -> Result<(), Error> {
    if Num::of(b).is_some_and(|n| n.float() == 0.0) { Err(fail("division by zero")) } else { Ok(()) }
}

fn div(a: &Value, b: &Value) -> Outcome {
    match (Num::of(a), Num::of(b)) {
        (Some(x), Some(y)) => nonzero(b).map(|_| Value::from(x.float() / y.float())),
        _ => Err(unsupported("/", a, b)),
    }
}

fn floordiv(a: &Value, b: &Value) -> Outcome {
    nonzero(b)?;
    let int = |x: i128, y: i128| {
        let quotient = x.checked_div(y)?;
        if x.checked_rem(y)? != 0 && (x < 0) != (y < 0) { quotient.checked_sub(1) } else { Some(quotient) }
    };
    arithmetic("//", a, b, int, |x, y| (x / y).floor())
}

fn modulo(a: &Value, b: &Value) -> Outcome {
    if let Some(pattern) = a.as_str() {
        let args = match b.downcast_object_ref::<Seq>() {
            Some(Seq { items, kind: SeqKind::Tuple, .. }) => items.clone(),
            _ => vec![b.clone()],
        };
        return formatted(FormatStyle::Printf, pattern, &args);
    }
    nonzero(b)?;
    let int = |x: i128, y: i128| {
        let r = x.checked_rem(y)?;
        Some(if r != 0 && (r < 0) != (y < 0) { r + y } else { r })
    };
    arithmetic("%", a, b, int, |x, y| {
        let r = x % y;
        if r != 0.0 && (r < 0.0) != (y < 0.0) { r + y } else { r }
    })
}

/// `'%s' % x` and `'{}'.format(x)`. Widths are bounded before anything is padded.
pub fn formatted(style: FormatStyle, pattern: &str, args: &[Value]) -> Outcome {
    let wide = pattern.as_bytes().windows(5).any(|w| w.iter().all(u8::is_ascii_digit));
    if wide || pattern.contains('*') {
        return Err(fail("the width of a format is too large, or '*'"));
    }
    // Lists and dicts print as Python prints them; numbers keep their type for %d and {:.2f}.
    let args = args.iter().map(|arg| match arg.kind() {
        ValueKind::Number | ValueKind::String => Ok(arg.clone()),
        ValueKind::Map if arg.is_kwargs() => Ok(arg.clone()),
        ValueKind::Map if style == FormatStyle::Printf && pattern.contains("%(") => Ok(arg.clone()),
        _ => values::text(arg).map(Value::from),
    });
    let mut args = args.collect::<Result<Vec<_>, _>>()?;
    let plain;
    let pattern = match style == FormatStyle::Printf && pattern.contains('r') {
        true => {
            plain = without_repr(pattern, &mut args)?;
            &plain
        }
        false => pattern,
    };
    let longest = args.iter().filter_map(Value::as_str).map(str::len).max().unwrap_or(0).max(10_000);
    charge(pattern.len().saturating_add(pattern.matches(['%', '{']).count().saturating_mul(longest)))?;
    format(style, pattern, &args).map(Value::from)
}

/// `%r` as `%s` of Python's repr.
fn without_repr(pattern: &str, args: &mut [Value]) -> Result<String, Error> {
    let (mut out, mut rest, mut index) = (String::with_capacity(pattern.len()), pattern, 0);
    while let Some(at) = rest.find('%') {
        let spec = rest.get(at + 1..).unwrap_or("");
        let end = spec.find(|c: char| c.is_ascii_alphabetic() || c == '%').unwrap_or(spec.len());
        let letter = spec.get(end..).and_then(|s| s.chars().next());
        out.push_str(rest.get(..at + 1 + end).unwrap_or(""));
        if let (Some('r'), Some(arg)) = (letter, args.get_mut(index)) {
            let mut text = String::new();
            values::repr(arg, &mut text)?;
            *arg = Value::from(text);
        }
        out.extend(letter.map(|c| if c == 'r' { 's' } else { c }));
        index += (letter != Some('%')) as usize;
        rest = spec.get(end + letter.map_or(0, char::len_utf8)..).unwrap_or("");
    }
    out.push_str(rest);
    Ok(out)
}

fn pow(a: &Value, b: &Value) -> Outcome {
    match (Num::of(a), Num::of(b)) {
        (Some(Num::Int(x)), Some(Num::Int(y))) if y >= 0 => {
            let power = u32::try_from(y).ok().and_then(|y| x.checked_pow(y));
            power.map(|i| Num::Int(i).value()).ok_or_else(|| fail("the result of ** is out of range"))
        }
        (Some(x), Some(y)) => {
            if x.float() == 0.0 && y.float() < 0.0 {
                nonzero(a)?;
            }
            Ok(Value::from(x.float().powf(y.float())))
        }
        _ => Err(unsupported("**", a, b)),
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
        let Some(index) = Num::of(key).and_then(Num::int) else { return Ok(Value::UNDEFINED) };
        let text = unmarked(text);
        let from = if index < 0 {
            text.chars().rev().nth((-index - 1) as usize)
        } else {
            text.chars().nth(index as usize)
        };
        return Ok(from.map_or(Value::UNDEFINED, |c| Value::from(c.to_string())));
    }
    a.get_item(key)
}

/// Python's `==`. Lists, tuples and dicts compare by their items, numbers by value.
pub fn equal(a: &Value, b: &Value) -> Result<bool, Error> {
    charge(16)?;
    if let (Some(x), Some(y)) = (a.as_str(), b.as_str()) {
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
        charge(text.len() / 64)?;
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
        Some(seq) if !matches!(seq.kind, SeqKind::View(_)) => {
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
        _ => Ok(Value::UNDEFINED),
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
