//! The methods of Python's `str` and `dict` that chat templates call.
//!
//! Any other is an error that names it, and so is one that changes its object (`append`, `pop`, `update`), as
//! in Jinja2's immutable sandbox. Functions that look at the ends of a text look through marks (see
//! `literals`).

use std::cell::Cell;

use minijinja::value::{Kwargs, Rest, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};

use super::limits::{charge, fail, is_mark, unmarked};
use super::values::{self, Dict, Seq, SeqKind, list, text, tuple};

type Outcome = Result<Value, Error>;

/// Positional and named arguments of a call, and how many of the positional ones were asked for.
pub struct Args {
    positional: Vec<Value>,
    named: Kwargs,
    asked: Cell<usize>,
}

impl Args {
    pub fn new(positional: &[Value], named: Kwargs) -> Args {
        Args { positional: positional.to_vec(), named, asked: Cell::new(0) }
    }

    pub fn get(&self, index: usize, name: &str) -> Option<Value> {
        self.asked.set(self.asked.get().max(index.saturating_add(1)));
        let named = self.named.get::<Option<Value>>(name).ok().flatten();
        self.positional.get(index).cloned().or(named)
    }

    pub fn string(&self, index: usize, name: &str) -> Result<Option<String>, Error> {
        match self.get(index, name) {
            None => Ok(None),
            Some(value) if value.is_none() => Ok(None),
            Some(value) => match value.as_str() {
                Some(text) => Ok(Some(text.to_owned())),
                None => Err(fail(format!("'{name}' must be str, not {}", values::type_name(&value)))),
            },
        }
    }

    pub fn int(&self, index: usize, name: &str) -> Result<Option<i64>, Error> {
        match self.get(index, name) {
            None => Ok(None),
            Some(value) => {
                value.as_i64().map(Some).ok_or_else(|| fail(format!("'{name}' must be an integer")))
            }
        }
    }

    pub fn flag(&self, index: usize, name: &str) -> bool {
        self.get(index, name).is_some_and(|value| value.is_true())
    }

    fn need(&self, index: usize, name: &str) -> Result<String, Error> {
        self.string(index, name)?.ok_or_else(|| fail(format!("the argument '{name}' is missing")))
    }

    /// Nothing is taken in silence: fails if an argument was never asked for.
    pub fn done(&self) -> Result<(), Error> {
        if self.positional.len() > self.asked.get() {
            return Err(fail(format!(
                "{} arguments at most, not {}",
                self.asked.get(),
                self.positional.len()
            )));
        }
        self.named.assert_all_used()
    }
}

/// `value.method(args)` of what is no object of the interpreter's.
pub fn call(_: &mut State<'_, '_>, value: &Value, method: &str, args: &[Value]) -> Outcome {
    let (positional, named): (Rest<Value>, Kwargs) = from_args(args)?;
    let args = Args::new(&positional, named);
    let found = match (value.as_str(), value.downcast_object_ref::<Dict>()) {
        (Some(text), _) => string(text, method, &args)?,
        (_, Some(dict)) => mapping(dict, method, &args)?,
        _ if value.is_undefined() => {
            let what = format!("the value on which '{method}' is called is undefined");
            return Err(Error::new(ErrorKind::UndefinedError, what));
        }
        _ => None,
    };
    if found.is_some() {
        args.done()?;
    }
    found.ok_or_else(|| {
        let what = values::type_name(value);
        match (method, value.kind()) {
            (
                "append" | "extend" | "insert" | "pop" | "popitem" | "remove" | "clear" | "sort" | "reverse"
                | "update" | "setdefault",
                ValueKind::Seq | ValueKind::Map,
            ) => fail(format!("access to attribute '{method}' of '{what}' object is unsafe.")),
            _ => fail(format!("'{what}' objects have no method '{method}' that chat templates may call")),
        }
    })
}

fn mapping(dict: &Dict, method: &str, args: &Args) -> Result<Option<Value>, Error> {
    let view = |items: Vec<Value>| values::seq(items, SeqKind::View).map(Some);
    match method {
        "get" => {
            let key = args.get(0, "key").ok_or_else(|| fail("get() misses its key"))?;
            let default = args.get(1, "default").unwrap_or_else(|| Value::from(()));
            Ok(Some(dict.get(&key).cloned().unwrap_or(default)))
        }
        "items" => view(pairs(dict)?),
        "keys" => view(dict.pairs.iter().map(|(key, _)| key.clone()).collect()),
        "values" => view(dict.pairs.iter().map(|(_, value)| value.clone()).collect()),
        _ => Ok(None),
    }
}

/// Tuples of a key and its value.
pub fn pairs(dict: &Dict) -> Result<Vec<Value>, Error> {
    dict.pairs.iter().map(|(key, value)| tuple(vec![key.clone(), value.clone()])).collect()
}

/// What Python's `str.isspace` calls space.
pub fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\x1c'..='\x1f').contains(&c)
}

/// Strips both, the left or the right end; marks on the way stay.
pub fn strip(text: &str, chars: Option<&str>, left: bool, right: bool) -> String {
    let strips = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let (mut body, mut head, mut tail) = (text, String::new(), Vec::new());
    while let Some(c) = body.chars().next().filter(|&c| left && (is_mark(c) || strips(c))) {
        if is_mark(c) {
            head.push(c);
        }
        body = body.get(c.len_utf8()..).unwrap_or("");
    }
    while let Some(c) = body.chars().next_back().filter(|&c| right && (is_mark(c) || strips(c))) {
        if is_mark(c) {
            tail.push(c);
        }
        body = body.get(..body.len() - c.len_utf8()).unwrap_or("");
    }
    head.push_str(body);
    head.extend(tail.iter().rev());
    head
}

fn string(text: &str, method: &str, args: &Args) -> Result<Option<Value>, Error> {
    charge(text.len())?;
    let end = |left, right| Ok(Value::from(strip(text, args.string(0, "chars")?.as_deref(), left, right)));
    let found = match method {
        "strip" => end(true, true),
        "lstrip" => end(true, false),
        "rstrip" => end(false, true),
        "split" => split(text, args, false),
        "rsplit" => split(text, args, true),
        "startswith" => fixed(text, args, |text, part| text.starts_with(part)),
        "endswith" => fixed(text, args, |text, part| text.ends_with(part)),
        "replace" => {
            let count = args.int(2, "count")?.unwrap_or(-1);
            replace(text, &args.need(0, "old")?, &args.need(1, "new")?, count).map(Value::from)
        }
        "join" => join(text, args),
        "find" | "rfind" | "count" => search(text, method, &args.need(0, "sub")?),
        "splitlines" => list(lines(text).into_iter().map(Value::from).collect()),
        "upper" => Ok(Value::from(text.to_uppercase())),
        "lower" => Ok(Value::from(text.to_lowercase())),
        "title" => Ok(Value::from(title(text))),
        "capitalize" => Ok(Value::from(capitalize(text))),
        _ => return Ok(None),
    };
    found.map(Some)
}

/// `startswith` and `endswith` take one text or a tuple of them.
fn fixed(text: &str, args: &Args, test: fn(&str, &str) -> bool) -> Outcome {
    let text = unmarked(text);
    let what = args.get(0, "prefix").ok_or_else(|| fail("startswith() or endswith() misses its argument"))?;
    let parts = match what.downcast_object_ref::<Seq>() {
        Some(Seq { items, kind: SeqKind::Tuple, .. }) => items.clone(),
        _ => vec![what],
    };
    for part in parts {
        let part =
            part.as_str().ok_or_else(|| fail("startswith() and endswith() take a str or a tuple of str"))?;
        if test(&text, &unmarked(part)) {
            return Ok(Value::from(true));
        }
    }
    Ok(Value::from(false))
}

pub fn replace(text: &str, old: &str, new: &str, count: i64) -> Result<String, Error> {
    let limit = usize::try_from(count).unwrap_or(usize::MAX);
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    charge(text.len().saturating_add(found.min(limit).saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, limit))
}

fn join(separator: &str, args: &Args) -> Outcome {
    let items = values::items(&args.get(0, "iterable").ok_or_else(|| fail("join() misses its argument"))?)?;
    let mut out = String::new();
    for (i, item) in items.iter().enumerate() {
        let item = item.as_str().ok_or_else(|| {
            fail(format!("sequence item {i}: expected str instance, {} found", values::type_name(item)))
        })?;
        charge(separator.len() + item.len())?;
        if i > 0 {
            out.push_str(separator);
        }
        out.push_str(item);
    }
    Ok(Value::from(out))
}

fn split(text: &str, args: &Args, right: bool) -> Outcome {
    charge(text.len().saturating_mul(2))?;
    let limit = usize::try_from(args.int(1, "maxsplit")?.unwrap_or(-1)).map(|n| n.saturating_add(1));
    let mut parts: Vec<&str> = match (args.string(0, "sep")?.as_deref(), limit) {
        (Some(""), _) => return Err(fail("empty separator")),
        (Some(separator), Ok(limit)) if right => text.rsplitn(limit, separator).collect(),
        (Some(separator), limit) => text.splitn(limit.unwrap_or(usize::MAX), separator).collect(),
        (None, Err(_)) => text.split(is_space).filter(|word| !word.is_empty()).collect(),
        (None, Ok(_)) => return Err(fail("split() at spaces takes no limit")),
    };
    if right && limit.is_ok() {
        parts.reverse();
    }
    charge(parts.len().saturating_mul(72))?;
    list(parts.into_iter().map(Value::from).collect())
}

/// What Python's `str.splitlines` gives.
pub fn lines(text: &str) -> Vec<&str> {
    let breaks = |c: char| {
        matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let (mut out, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let Some(at) = rest.find(breaks) else {
            out.push(rest);
            break;
        };
        let (line, tail) = rest.split_at(at);
        let width = if tail.starts_with("\r\n") { 2 } else { tail.chars().next().map_or(1, char::len_utf8) };
        out.push(line);
        rest = tail.get(width..).unwrap_or("");
    }
    out
}

fn search(text: &str, method: &str, what: &str) -> Outcome {
    let text = unmarked(text);
    if method == "count" {
        return Ok(Value::from(text.matches(what).count()));
    }
    let found = if method.starts_with('r') { text.rfind(what) } else { text.find(what) };
    match found {
        Some(at) => Ok(Value::from(text.get(..at).unwrap_or("").chars().count())),
        None => Ok(Value::from(-1)),
    }
}

pub fn capitalize(text: &str) -> String {
    let mut chars = text.chars();
    match chars.next() {
        Some(first) => first.to_uppercase().chain(chars.as_str().to_lowercase().chars()).collect(),
        None => String::new(),
    }
}

/// `str.title`: a letter after a letter is small.
fn title(text: &str) -> String {
    let mut after = false;
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if after {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        after = c.is_alphabetic();
    }
    out
}

/// `value.length` for filters: characters of a text, items of a container.
pub fn length(value: &Value) -> Result<usize, Error> {
    match value.as_str() {
        Some(text) => Ok(unmarked(text).chars().count()),
        None if value.is_undefined() => Ok(0),
        None => value
            .as_object()
            .and_then(|_| value.len())
            .ok_or_else(|| fail(format!("object of type '{}' has no len()", values::type_name(value)))),
    }
}

/// Python's `str()` as a value.
pub fn to_string(value: &Value) -> Outcome {
    text(value).map(Value::from)
}
