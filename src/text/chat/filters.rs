//! Jinja2's filters and tests, and the functions that Hugging Face adds.

use std::cmp::Ordering;

use minijinja::formatting::FormatStyle;
use minijinja::value::{Kwargs, Rest};
use minijinja::{Environment, Error, State, Value};

mod checks;

use super::json::{Style, dumps};
use super::limits::{RANGE, charge, fail};
use super::methods::{Args, capitalize, length, lines, pad, replace, strip, to_string};
use super::operators::{compare, equal, formatted};
use super::values::{self, Dict, Num, SeqKind, dict, list, text, tuple};

type Outcome = Result<Value, Error>;
type Filter = fn(&Value, &Args) -> Outcome;

pub fn register(env: &mut Environment<'_>) {
    for (name, filter) in FILTERS {
        env.add_filter(format!("f_{name}"), move |all: Rest<Value>, named: Kwargs| match all.split_first() {
            Some((value, rest)) => filter(value, &Args::new(rest, named)),
            None => Err(fail("a filter misses its value")),
        });
    }
    for (name, test) in checks::TESTS {
        env.add_test(format!("t_{name}"), move |all: Rest<Value>, named: Kwargs| match all.split_first() {
            Some((value, rest)) => test(value, &Args::new(rest, named)),
            None => Err(fail("a test misses its value")),
        });
    }
    env.add_filter("f_map", map);
    for (name, attribute, keep) in [
        ("select", false, true),
        ("reject", false, false),
        ("selectattr", true, true),
        ("rejectattr", true, false),
    ] {
        let filter = move |state: &mut State, all: Rest<Value>| select(state, &all, attribute, keep);
        env.add_filter(format!("f_{name}"), filter);
    }
    env.add_filter("o_call", super::methods::call);
    functions(env);
}

fn functions(env: &mut Environment<'_>) {
    env.add_function("cycler", |items: Rest<Value>| minijinja_contrib::globals::cycler(items.to_vec()));
    env.add_function("joiner", minijinja_contrib::globals::joiner);
    env.add_function("range", |all: Rest<i64>| range(&all));
    env.add_function("dict", |all: Rest<Value>, named: Kwargs| {
        let args = Args::new(&all, named);
        let mut pairs = match args.positional.first() {
            None => Vec::new(),
            Some(value) => match value.downcast_object_ref::<Dict>() {
                Some(dict) => dict.pairs.clone(),
                None => values::items(value)?.iter().map(pair).collect::<Result<_, _>>()?,
            },
        };
        if let Some(named) = &args.named {
            pairs.extend(named.args().filter_map(|name| Some((Value::from(name), named.peek(name).ok()?))));
        }
        dict(pairs)
    });
    env.add_function("namespace", |all: Rest<Value>, named: Kwargs| {
        let args = Args::new(&all, named);
        let mut pairs: Vec<(Value, Value)> = Vec::new();
        if let Some(given) = args.positional.first().and_then(|v| v.downcast_object_ref::<Dict>()) {
            pairs.extend(given.pairs.iter().cloned());
        }
        if let Some(named) = &args.named {
            pairs.extend(named.args().filter_map(|name| Some((Value::from(name), named.peek(name).ok()?))));
        }
        charge(256)?;
        for (name, value) in &pairs {
            values::storable(value)?;
            if name.as_str().is_some_and(|name| name.starts_with('_')) {
                return Err(fail(format!("a namespace cannot hold '{name}'")));
            }
        }
        minijinja::functions::namespace(Some(Value::from_pairs(pairs).into()))
    });
}

fn pair(value: &Value) -> Result<(Value, Value), Error> {
    match &values::items(value)?[..] {
        [key, value] => Ok((key.clone(), value.clone())),
        _ => Err(fail("dict() takes pairs")),
    }
}

fn range(all: &[i64]) -> Outcome {
    let (start, stop, step) = match *all {
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step] => (start, stop, step),
        _ => return Err(fail("range() takes one to three integers")),
    };
    let (low, high, size) = if step > 0 { (start, stop, step) } else { (stop, start, step.saturating_neg()) };
    if size == 0 {
        return Err(fail("range() arg 3 must not be zero"));
    }
    let count = (i128::from(high) - i128::from(low)).max(0).div_euclid(i128::from(size))
        + i128::from((i128::from(high) - i128::from(low)).max(0).rem_euclid(i128::from(size)) != 0);
    if count > RANGE {
        return Err(fail("Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000)."));
    }
    let items = (0..count as i64).map(|i| Value::from(start.wrapping_add(i.wrapping_mul(step))));
    values::seq(items.collect(), SeqKind::Range(start, stop, step))
}

const FILTERS: &[(&str, Filter)] = &[
    ("abs", |v, _| match Num::of(v) {
        Some(Num::Int(i)) => Ok(Num::Int(i.saturating_abs()).value()),
        Some(Num::Float(f)) => Ok(Value::from(f.abs())),
        None => Err(fail(format!("bad operand type for abs(): '{}'", values::type_name(v)))),
    }),
    ("attr", |v, a| v.get_attr(&a.string(0, "name")?.unwrap_or_default())),
    ("batch", batch),
    ("capitalize", |v, _| Ok(Value::from(capitalize(&text(v)?)))),
    ("center", |v, a| {
        let width = a.get(0, "width").unwrap_or_else(|| Value::from(80));
        pad(&text(v)?, "center", &Args { positional: vec![width], named: None })
    }),
    ("count", |v, _| Ok(Value::from(length(v)?))),
    ("d", default),
    ("default", default),
    ("dictsort", dictsort),
    ("e", escape),
    ("escape", escape),
    ("first", |v, _| Ok(values::items(v)?.first().cloned().unwrap_or(Value::UNDEFINED))),
    ("float", |v, a| {
        Ok(number(v).map_or_else(
            || a.get(0, "default").unwrap_or_else(|| Value::from(0.0)),
            |n| Value::from(n.float()),
        ))
    }),
    ("forceescape", escape),
    ("format", |v, a| {
        let mut args = a.positional.clone();
        if let Some(named) = &a.named {
            args.push(Value::from_pairs(
                named.args().filter_map(|n| Some((n.to_owned(), named.peek::<Value>(n).ok()?))),
            ));
        }
        formatted(FormatStyle::Printf, &text(v)?, &args)
    }),
    ("groupby", groupby),
    ("indent", indent),
    ("int", |v, a| {
        Ok(match number(v) {
            Some(Num::Float(f)) if f.is_finite() => Num::Int(f as i128).value(),
            Some(Num::Int(i)) => Num::Int(i).value(),
            _ => a.get(0, "default").unwrap_or_else(|| Value::from(0)),
        })
    }),
    ("items", |v, _| match v.downcast_object_ref::<Dict>() {
        Some(dict) => list(
            dict.pairs.iter().map(|(k, v)| tuple(vec![k.clone(), v.clone()])).collect::<Result<_, _>>()?,
        ),
        None if v.is_undefined() => list(Vec::new()),
        None => Err(fail("Can only get item pairs from a mapping.")),
    }),
    ("join", join),
    ("last", |v, _| Ok(values::items(v)?.last().cloned().unwrap_or(Value::UNDEFINED))),
    ("length", |v, _| Ok(Value::from(length(v)?))),
    ("list", |v, _| list(values::items(v)?)),
    ("lower", |v, _| Ok(Value::from(text(v)?.to_lowercase()))),
    ("max", |v, a| extreme(v, a, Ordering::Greater)),
    ("min", |v, a| extreme(v, a, Ordering::Less)),
    ("pprint", |v, _| {
        let mut out = String::new();
        values::repr(v, &mut out)?;
        Ok(Value::from(out))
    }),
    ("replace", |v, a| {
        let (old, new) = (a.get(0, "old").unwrap_or_default(), a.get(1, "new").unwrap_or_default());
        replace(&text(v)?, &text(&old)?, &text(&new)?, a.int(2, "count")?.unwrap_or(-1)).map(Value::from)
    }),
    ("reverse", |v, _| match v.as_str() {
        Some(text) => Ok(Value::from(text.chars().rev().collect::<String>())),
        None => list(values::items(v)?.into_iter().rev().collect()),
    }),
    ("round", round),
    ("safe", |v, _| to_string(v)),
    ("slice", slices),
    ("sort", |v, a| {
        list(sorted(
            values::items(v)?,
            a.string(2, "attribute")?.as_deref(),
            a.flag(1, "case_sensitive"),
            a.flag(0, "reverse"),
        )?)
    }),
    ("string", |v, _| to_string(v)),
    ("striptags", |v, _| Ok(Value::from(text(v)?))),
    ("sum", sum),
    ("title", |v, _| Ok(Value::from(title(&text(v)?)))),
    ("tojson", tojson),
    ("trim", |v, a| Ok(Value::from(strip(&text(v)?, a.string(0, "chars")?.as_deref(), true, true)))),
    ("truncate", truncate),
    ("unique", unique),
    ("upper", |v, _| Ok(Value::from(text(v)?.to_uppercase()))),
    ("wordcount", |v, _| {
        Ok(Value::from(
            text(v)?.split(|c: char| !(c.is_alphanumeric() || c == '_')).filter(|w| !w.is_empty()).count(),
        ))
    }),
];

/// `int()` and `float()` of a number or of its text.
fn number(value: &Value) -> Option<Num> {
    let Some(text) = value.as_str() else { return Num::of(value) };
    let text = text.trim().replace('_', "");
    text.parse().map(Num::Int).ok().or_else(|| text.parse().map(Num::Float).ok())
}

fn default(v: &Value, a: &Args) -> Outcome {
    let replace = v.is_undefined() || (a.flag(1, "boolean") && !v.is_true());
    Ok(if replace { a.get(0, "default_value").unwrap_or_else(|| Value::from("")) } else { v.clone() })
}

/// `a.b.0` of an item.
fn attribute(value: &Value, path: &str) -> Outcome {
    path.split('.').try_fold(value.clone(), |value, name| match name.parse::<usize>() {
        Ok(index) => value.get_item(&Value::from(index)),
        Err(_) => value.get_attr(name),
    })
}

fn map(state: &mut State<'_, '_>, all: Rest<Value>, named: Kwargs) -> Outcome {
    let Some((value, rest)) = all.split_first() else { return Err(fail("map misses its value")) };
    let args = Args::new(rest, named);
    let items = values::items(value)?;
    if let (true, Some(path)) = (args.positional.is_empty(), args.get(9, "attribute")) {
        let default = args.get(9, "default");
        let each = items.iter().map(|item| {
            let found = match path.as_str() {
                Some(path) => attribute(item, path)?,
                None => item.get_item(&path)?,
            };
            Ok(match (&default, found.is_undefined()) {
                (Some(default), true) => default.clone(),
                _ => found,
            })
        });
        return list(each.collect::<Result<_, Error>>()?);
    }
    let Some(name) = rest.first().and_then(Value::as_str) else {
        return Err(fail("map requires a filter argument"));
    };
    let name = format!("f_{name}");
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        let args: Vec<Value> = std::iter::once(item).chain(rest.iter().skip(1).cloned()).collect();
        out.push(state.apply_filter(&name, &args)?);
    }
    list(out)
}

fn select(state: &mut State<'_, '_>, all: &[Value], by_attribute: bool, keep: bool) -> Outcome {
    let Some((value, mut rest)) = all.split_first() else { return Err(fail("select misses its value")) };
    let mut path = None;
    if by_attribute {
        let Some((name, more)) = rest.split_first() else {
            return Err(fail("Missing parameter for attribute name"));
        };
        (path, rest) = (name.as_str(), more);
    }
    let mut out = Vec::new();
    for item in values::items(value)? {
        let tested = match path {
            Some(path) => attribute(&item, path)?,
            None => item.clone(),
        };
        let passes = match rest.split_first() {
            None => tested.is_true(),
            Some((name, more)) => {
                let args: Vec<Value> = std::iter::once(tested).chain(more.iter().cloned()).collect();
                state.perform_test(&format!("t_{}", name.as_str().unwrap_or_default()), &args)?
            }
        };
        if passes == keep {
            out.push(item);
        }
    }
    list(out)
}

/// Lower case of a text, for comparisons that ignore it.
fn folded(value: &Value, case: bool) -> Value {
    match value.as_str() {
        Some(text) if !case => Value::from(text.to_lowercase()),
        _ => value.clone(),
    }
}

fn sorted(items: Vec<Value>, by: Option<&str>, case: bool, reverse: bool) -> Result<Vec<Value>, Error> {
    let mut keyed = Vec::with_capacity(items.len());
    for item in items {
        let mut key = Vec::new();
        for path in by.into_iter().flat_map(|by| by.split(',')) {
            key.push(folded(&attribute(&item, path)?, case));
        }
        if by.is_none() {
            key.push(folded(&item, case));
        }
        keyed.push((key, item));
    }
    let mut error = None;
    keyed.sort_by(|(a, _), (b, _)| {
        for (a, b) in a.iter().zip(b) {
            match compare(a, b) {
                Ok(Some(Ordering::Equal)) | Ok(None) => {}
                Ok(Some(order)) => return if reverse { order.reverse() } else { order },
                Err(e) => error = Some(e),
            }
        }
        Ordering::Equal
    });
    match error {
        Some(error) => Err(error),
        None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
    }
}

fn dictsort(v: &Value, a: &Args) -> Outcome {
    let Some(given) = v.downcast_object_ref::<Dict>() else { return Err(fail("dictsort needs a mapping")) };
    let by = if a.string(1, "by")?.as_deref() == Some("value") { "1" } else { "0" };
    let pairs =
        given.pairs.iter().map(|(k, v)| tuple(vec![k.clone(), v.clone()])).collect::<Result<_, _>>()?;
    list(sorted(pairs, Some(by), a.flag(0, "case_sensitive"), a.flag(2, "reverse"))?)
}

fn extreme(v: &Value, a: &Args, wanted: Ordering) -> Outcome {
    let items = sorted(
        values::items(v)?,
        a.string(1, "attribute")?.as_deref(),
        a.flag(0, "case_sensitive"),
        wanted == Ordering::Greater,
    )?;
    Ok(items.into_iter().next().unwrap_or(Value::UNDEFINED))
}

fn unique(v: &Value, a: &Args) -> Outcome {
    let (case, by) = (a.flag(0, "case_sensitive"), a.string(1, "attribute")?);
    let (mut seen, mut out): (Vec<Value>, Vec<Value>) = Default::default();
    for item in values::items(v)? {
        let key = folded(&by.as_deref().map_or_else(|| Ok(item.clone()), |by| attribute(&item, by))?, case);
        let known =
            seen.iter().try_fold(false, |known, other| Ok::<_, Error>(known || equal(other, &key)?))?;
        if !known {
            seen.push(key);
            out.push(item);
        }
    }
    list(out)
}

fn groupby(v: &Value, a: &Args) -> Outcome {
    let by = a.string(0, "attribute")?.ok_or_else(|| fail("groupby misses its attribute"))?;
    let mut groups: Vec<(Value, Vec<Value>)> = Vec::new();
    for item in sorted(values::items(v)?, Some(&by), false, false)? {
        let key = attribute(&item, &by)?;
        match groups.last_mut() {
            Some((last, items)) if equal(&folded(last, false), &folded(&key, false))? => items.push(item),
            _ => groups.push((key, vec![item])),
        }
    }
    list(groups.into_iter().map(|(key, items)| tuple(vec![key, list(items)?])).collect::<Result<_, _>>()?)
}

fn sum(v: &Value, a: &Args) -> Outcome {
    let by = a.string(0, "attribute")?;
    let mut total = a.get(1, "start").as_ref().and_then(Num::of).unwrap_or(Num::Int(0));
    for item in values::items(v)? {
        let item = by.as_deref().map_or_else(|| Ok(item.clone()), |by| attribute(&item, by))?;
        total = match (total, Num::of(&item)) {
            (Num::Int(x), Some(Num::Int(y))) => Num::Int(x.saturating_add(y)),
            (x, Some(y)) => Num::Float(x.float() + y.float()),
            _ => return Err(fail(format!("sum cannot add '{}'", values::type_name(&item)))),
        };
    }
    Ok(total.value())
}

fn join(v: &Value, a: &Args) -> Outcome {
    let separator = a.get(0, "d").map_or_else(|| Ok(String::new()), |d| text(&d))?;
    let path = a.string(1, "attribute")?;
    let mut out = String::new();
    for (i, item) in values::items(v)?.iter().enumerate() {
        let part = match &path {
            Some(path) => text(&attribute(item, path)?)?,
            None => text(item)?,
        };
        charge(separator.len())?;
        if i > 0 {
            out.push_str(&separator);
        }
        out.push_str(&part);
    }
    Ok(Value::from(out))
}

fn indent(v: &Value, a: &Args) -> Outcome {
    let level = match a.get(0, "width") {
        Some(width) if width.as_str().is_some() => text(&width)?,
        Some(width) => {
            let n = width.as_usize().ok_or_else(|| fail("the width of indent must be a number"))?;
            charge(n)?;
            " ".repeat(n)
        }
        None => "    ".to_owned(),
    };
    let (start, blank) = (a.flag(1, "first"), a.flag(2, "blank"));
    // Jinja2 adds a newline first, so that an empty last line counts.
    let body = text(v)? + "\n";
    let lines = lines(&body, false);
    charge(lines.len().saturating_mul(level.len() + 1).saturating_add(body.len()))?;
    let mut out = String::new();
    for (i, line) in lines.iter().enumerate() {
        if i > 0 {
            out.push('\n');
        }
        if (i == 0 && start) || (i > 0 && (blank || !line.is_empty())) {
            out.push_str(&level);
        }
        out.push_str(line);
    }
    Ok(Value::from(out))
}

fn round(v: &Value, a: &Args) -> Outcome {
    let given = Num::of(v).ok_or_else(|| fail("round needs a number"))?;
    let number = given.float();
    let digits = a.int(0, "precision")?.unwrap_or(0).clamp(-300, 300) as i32;
    let method = a.string(1, "method")?.unwrap_or_else(|| "common".to_owned());
    let scale = 10f64.powi(digits);
    let value = match method.as_str() {
        "ceil" => (number * scale).ceil() / scale,
        "floor" => (number * scale).floor() / scale,
        "common" if digits >= 0 && given.int().is_some() => return Ok(given.value()),
        // Printing rounds the exact binary value, half to even: what Python's round() does.
        "common" if digits >= 0 => format!("{number:.*}", digits as usize).parse().unwrap_or(number),
        "common" => (number * scale).round_ties_even() / scale,
        _ => return Err(fail("method must be common, ceil or floor")),
    };
    Ok(Value::from(value))
}

fn batch(v: &Value, a: &Args) -> Outcome {
    let size = a.int(0, "linecount")?.and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    let size = size.ok_or_else(|| fail("batch needs a size"))?;
    let mut rows: Vec<Vec<Value>> = values::items(v)?.chunks(size).map(<[Value]>::to_vec).collect();
    if let (Some(fill), Some(last)) = (a.get(1, "fill_with"), rows.last_mut()) {
        charge(size.saturating_mul(24))?;
        last.resize(size, fill);
    }
    list(rows.into_iter().map(list).collect::<Result<_, _>>()?)
}

fn slices(v: &Value, a: &Args) -> Outcome {
    let count = a.int(0, "slices")?.and_then(|n| usize::try_from(n).ok()).filter(|&n| n > 0);
    let count = count.ok_or_else(|| fail("slice needs a number of slices"))?;
    charge(count.saturating_mul(48))?;
    let items = values::items(v)?;
    let (each, more) = (items.len() / count, items.len() % count);
    let (mut rest, mut out) = (&items[..], Vec::new());
    for i in 0..count {
        let (row, tail) = rest.split_at(each + (i < more) as usize);
        rest = tail;
        let mut row = row.to_vec();
        if let (Some(fill), true) = (a.get(1, "fill_with"), more > 0 && i >= more) {
            row.push(fill);
        }
        out.push(list(row)?);
    }
    list(out)
}

fn truncate(v: &Value, a: &Args) -> Outcome {
    let body = text(v)?;
    let size = usize::try_from(a.int(0, "length")?.unwrap_or(255)).unwrap_or(0);
    let end = a.string(2, "end")?.unwrap_or_else(|| "...".to_owned());
    let leeway = usize::try_from(a.int(3, "leeway")?.unwrap_or(5)).unwrap_or(0);
    if body.chars().count() <= size.saturating_add(leeway) {
        return Ok(Value::from(body));
    }
    let cut: String = body.chars().take(size.saturating_sub(end.chars().count())).collect();
    let cut = if a.flag(1, "killwords") {
        cut.as_str()
    } else {
        cut.rsplit_once(' ').map_or(cut.as_str(), |(head, _)| head)
    };
    Ok(Value::from(format!("{cut}{end}")))
}

/// Jinja2's own `title`: words start after space, `-` and brackets only (unlike `str.title`).
fn title(text: &str) -> String {
    let mut start = true;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if start {
            out.extend(c.to_uppercase())
        } else {
            out.extend(c.to_lowercase())
        }
        start = super::methods::is_space(c) || "-({[<".contains(c);
    }
    out
}

fn escape(v: &Value, _: &Args) -> Outcome {
    let body = text(v)?;
    charge(body.len().saturating_mul(5))?;
    Ok(Value::from(
        body.replace('&', "&amp;")
            .replace('<', "&lt;")
            .replace('>', "&gt;")
            .replace('\'', "&#39;")
            .replace('"', "&#34;"),
    ))
}

fn tojson(v: &Value, a: &Args) -> Outcome {
    let indent = match a.get(1, "indent") {
        None => None,
        Some(value) if value.is_none() => None,
        Some(value) if value.as_str().is_some() => Some(text(&value)?),
        Some(value) => {
            let n = usize::try_from(value.as_i64().unwrap_or(0)).unwrap_or(0);
            charge(n)?;
            Some(" ".repeat(n))
        }
    };
    let mut style = Style {
        ascii: a.flag(0, "ensure_ascii"),
        item: if indent.is_some() { "," } else { ", " }.to_owned(),
        key: ": ".to_owned(),
        sort: a.flag(3, "sort_keys"),
        indent,
    };
    if let Some(separators) = a.get(2, "separators").filter(|value| !value.is_none()) {
        let (item, key) = pair(&separators)?;
        (style.item, style.key) = (text(&item)?, text(&key)?);
    }
    dumps(v, &style).map(Value::from)
}
