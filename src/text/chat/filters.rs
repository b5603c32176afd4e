//! Jinja2's filters and functions that chat templates use, and those that Hugging Face adds.

use std::cmp::Ordering;

use minijinja::value::{Kwargs, Rest};
use minijinja::{Environment, Error, State, Value};

use super::json::{Style, dumps};
use super::limits::{RANGE, charge, fail};
use super::methods::{Args, capitalize, is_space, length, lines, pairs, replace, strip, to_string};
use super::operators::{compare, equal};
use super::values::{self, Dict, Num, SeqKind, dict, list, text};

type Outcome = Result<Value, Error>;
type Filter = fn(&Value, &Args) -> Outcome;

pub fn register(env: &mut Environment<'_>) {
    for (name, filter) in FILTERS {
        env.add_filter(*name, move |value: &Value, rest: Rest<Value>, named: Kwargs| {
            let args = Args::new(&rest, named);
            let found = filter(value, &args)?;
            args.done().map(|()| found)
        });
    }
    env.add_filter("map", map);
    for (name, attribute, keep) in [
        ("select", false, true),
        ("reject", false, false),
        ("selectattr", true, true),
        ("rejectattr", true, false),
    ] {
        let filter = move |state: &mut State, all: Rest<Value>| select(state, &all, attribute, keep);
        env.add_filter(name, filter);
    }
    for name in ["cycler", "joiner", "lipsum"] {
        let refused = format!("{name}() is not taken: no chat template needs it");
        env.add_function(name, move |_: Rest<Value>| -> Outcome { Err(fail(refused.clone())) });
    }
    env.add_function("range", |all: Rest<i64>| range(&all));
    env.add_function("dict", |rest: Rest<Value>, named: Kwargs| {
        let mut all = match rest.first().map(|value| value.downcast_object_ref::<Dict>()) {
            None => Vec::new(),
            Some(Some(dict)) => dict.pairs.clone(),
            Some(None) => return Err(fail("dict() takes a dict and names")),
        };
        all.extend(by_name(&named)?);
        dict(all)
    });
    env.add_function("namespace", |named: Kwargs| {
        let pairs = by_name(&named)?;
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

fn by_name(named: &Kwargs) -> Result<Vec<(Value, Value)>, Error> {
    named.args().map(|name| Ok((Value::from(name), named.peek(name)?))).collect()
}

fn range(all: &[i64]) -> Outcome {
    let (start, stop, step) = match *all {
        [stop] => (0, stop, 1),
        [start, stop] => (start, stop, 1),
        [start, stop, step] => (start, stop, step),
        _ => return Err(fail("range() takes one to three integers")),
    };
    let far = i128::from(stop) - i128::from(start);
    let far = if step < 0 { -far } else { far };
    let size = i128::from(step.unsigned_abs());
    if size == 0 {
        return Err(fail("range() arg 3 must not be zero"));
    }
    let count = (far.max(0) + size - 1) / size;
    if count > RANGE {
        return Err(fail("Range too big. The sandbox blocks ranges larger than MAX_RANGE (100000)."));
    }
    let items = (0..count as i64).map(|i| Value::from(start.wrapping_add(i.wrapping_mul(step))));
    values::seq(items.collect(), SeqKind::View)
}

const FILTERS: &[(&str, Filter)] = &[
    ("capitalize", |v, _| Ok(Value::from(capitalize(&text(v)?)))),
    ("count", |v, _| Ok(Value::from(length(v)?))),
    ("d", default),
    ("default", default),
    ("dictsort", |v, _| {
        let given = v.downcast_object_ref::<Dict>().ok_or_else(|| fail("dictsort needs a mapping"))?;
        list(sorted(pairs(given)?, Some("0"), false, false)?)
    }),
    ("first", |v, _| Ok(values::items(v)?.first().cloned().unwrap_or(Value::UNDEFINED))),
    ("format", format),
    ("indent", indent),
    ("int", int),
    ("items", |v, _| match v.downcast_object_ref::<Dict>() {
        Some(dict) => list(pairs(dict)?),
        None if v.is_undefined() => list(Vec::new()),
        None => Err(fail("Can only get item pairs from a mapping.")),
    }),
    ("join", join),
    ("last", |v, _| Ok(values::items(v)?.last().cloned().unwrap_or(Value::UNDEFINED))),
    ("length", |v, _| Ok(Value::from(length(v)?))),
    ("list", |v, _| list(values::items(v)?)),
    ("lower", |v, _| Ok(Value::from(text(v)?.to_lowercase()))),
    ("replace", |v, a| {
        let (old, new) = (a.get(0, "old").unwrap_or_default(), a.get(1, "new").unwrap_or_default());
        replace(&text(v)?, &text(&old)?, &text(&new)?, a.int(2, "count")?.unwrap_or(-1)).map(Value::from)
    }),
    ("reverse", |v, _| match v.as_str() {
        Some(text) => Ok(Value::from(text.chars().rev().collect::<String>())),
        None => list(values::items(v)?.into_iter().rev().collect()),
    }),
    ("safe", |v, _| to_string(v)),
    ("sort", |v, a| {
        let (by, case) = (a.string(2, "attribute")?, a.flag(1, "case_sensitive"));
        list(sorted(values::items(v)?, by.as_deref(), case, a.flag(0, "reverse"))?)
    }),
    ("string", |v, _| to_string(v)),
    ("title", |v, _| Ok(Value::from(title(&text(v)?)))),
    ("tojson", tojson),
    ("trim", |v, a| Ok(Value::from(strip(&text(v)?, a.string(0, "chars")?.as_deref(), true, true)))),
    ("unique", unique),
    ("upper", |v, _| Ok(Value::from(text(v)?.to_uppercase()))),
];

fn default(v: &Value, a: &Args) -> Outcome {
    let (other, boolean) = (a.get(0, "default_value"), a.flag(1, "boolean"));
    let replaced = v.is_undefined() || (boolean && !v.is_true());
    Ok(if replaced { other.unwrap_or_else(|| Value::from("")) } else { v.clone() })
}

/// `"%s" | format(x)`, and no other conversion.
fn format(v: &Value, a: &Args) -> Outcome {
    let pattern = text(v)?;
    let mut parts = pattern.split('%');
    let mut out = parts.next().unwrap_or_default().to_owned();
    for (index, part) in parts.enumerate() {
        let (Some(rest), Some(value)) = (part.strip_prefix('s'), a.get(index, "")) else {
            return Err(fail("format takes %s and a value for each, and no other conversion"));
        };
        out.push_str(&text(&value)?);
        out.push_str(rest);
    }
    charge(out.len())?;
    Ok(Value::from(out))
}

/// `int()` of a number or of its text, else the default.
fn int(v: &Value, a: &Args) -> Outcome {
    let default = a.get(0, "default").unwrap_or_else(|| Value::from(0));
    let text = v.as_str().map(|text| text.trim().replace('_', ""));
    let number = match text {
        None => Num::of(v),
        Some(text) => text.parse().map(Num::Int).ok().or_else(|| text.parse().map(Num::Float).ok()),
    };
    Ok(match number {
        Some(Num::Float(f)) if f.is_finite() => Num::Int(f as i128).value(),
        Some(Num::Int(i)) => Num::Int(i).value(),
        _ => default,
    })
}

/// `a.b.0` of an item.
fn attribute(value: &Value, path: &str) -> Outcome {
    path.split('.').try_fold(value.clone(), |value, name| match name.parse::<usize>() {
        Ok(index) => value.get_item(&Value::from(index)),
        Err(_) => value.get_attr(name),
    })
}

/// `map("filter", …)`, or `map(attribute=…, default=…)`.
fn map(state: &mut State<'_, '_>, value: &Value, rest: Rest<Value>, named: Kwargs) -> Outcome {
    let items = values::items(value)?;
    let args = Args::new(&rest, named);
    // The positional ones are the filter's and its arguments.
    let (path, default) = (args.string(usize::MAX, "attribute")?, args.get(usize::MAX, "default"));
    args.done()?;
    let mut out = Vec::with_capacity(items.len());
    for item in items {
        out.push(match (&path, rest.split_first()) {
            (Some(path), None) => {
                let found = attribute(&item, path)?;
                default.clone().filter(|_| found.is_undefined()).unwrap_or(found)
            }
            (None, Some((filter, more))) => {
                let filter = filter.as_str().ok_or_else(|| fail("map takes the name of a filter"))?;
                let args: Vec<Value> = std::iter::once(item).chain(more.iter().cloned()).collect();
                state.apply_filter(filter, &args)?
            }
            _ => return Err(fail("map takes the name of a filter, or attribute=")),
        });
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
        let tested = path.map_or_else(|| Ok(item.clone()), |path| attribute(&item, path))?;
        let passes = match rest.split_first() {
            None => tested.is_true(),
            Some((name, more)) => {
                let args: Vec<Value> = std::iter::once(tested).chain(more.iter().cloned()).collect();
                state.perform_test(name.as_str().unwrap_or_default(), &args)?
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
    let key =
        |item: &Value| Ok(folded(&by.map_or_else(|| Ok(item.clone()), |by| attribute(item, by))?, case));
    let keys: Result<Vec<Value>, Error> = items.iter().map(key).collect();
    let mut keyed: Vec<_> = keys?.into_iter().zip(items).collect();
    let mut error = None;
    keyed.sort_by(|(a, _), (b, _)| match compare(a, b) {
        Ok(order) if reverse => order.unwrap_or(Ordering::Equal).reverse(),
        Ok(order) => order.unwrap_or(Ordering::Equal),
        Err(e) => {
            error = Some(e);
            Ordering::Equal
        }
    });
    match error {
        Some(error) => Err(error),
        None => Ok(keyed.into_iter().map(|(_, item)| item).collect()),
    }
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

/// A text that stands for itself, or a number of spaces.
fn spaces(width: &Value) -> Result<String, Error> {
    if width.as_str().is_some() {
        return text(width);
    }
    let count = width.as_usize().ok_or_else(|| fail("a width must be a number or a text"))?;
    charge(count)?;
    Ok(" ".repeat(count))
}

fn indent(v: &Value, a: &Args) -> Outcome {
    let level = spaces(&a.get(0, "width").unwrap_or_else(|| Value::from(4)))?;
    let (start, blank) = (a.flag(1, "first"), a.flag(2, "blank"));
    // Jinja2 adds a newline first, so that an empty last line counts.
    let body = text(v)? + "\n";
    let lines = lines(&body);
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
        start = is_space(c) || "-({[<".contains(c);
    }
    out
}

fn tojson(v: &Value, a: &Args) -> Outcome {
    let indent = a.get(1, "indent").filter(|value| !value.is_none());
    let indent = indent.map(|value| spaces(&value)).transpose()?;
    let mut style = Style {
        ascii: a.flag(0, "ensure_ascii"),
        item: if indent.is_some() { "," } else { ", " }.to_owned(),
        key: ": ".to_owned(),
        sort: a.flag(3, "sort_keys"),
        indent,
    };
    if let Some(separators) = a.get(2, "separators").filter(|value| !value.is_none()) {
        let [item, key] = &values::items(&separators)?[..] else {
            return Err(fail("separators are a pair of texts"));
        };
        (style.item, style.key) = (text(item)?, text(key)?);
    }
    dumps(v, &style).map(Value::from)
}
