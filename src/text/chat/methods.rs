//! The methods of Python's `str`, `dict` and `list` that templates call.
//!
//! Those that change their object (`append`, `pop`, `update`) are refused, as Jinja2's immutable sandbox does.
//! Functions that look at the ends of a text look through marks (see `literals`).

use minijinja::formatting::FormatStyle;
use minijinja::value::{Kwargs, Rest, ValueKind};
use minijinja::{Error, ErrorKind, State, Value};

use super::limits::{charge, fail, is_mark, unmarked};
use super::operators::{equal, formatted};
use super::values::{self, Dict, Seq, SeqKind, list, text, tuple};

type Outcome = Result<Value, Error>;

/// Positional and named arguments of a call.
pub struct Args {
    pub positional: Vec<Value>,
    pub named: Option<Kwargs>,
}

impl Args {
    pub fn new(positional: &[Value], named: Kwargs) -> Args {
        Args { positional: positional.to_vec(), named: Some(named) }
    }

    /// As the interpreter passes them: named ones last, as one value.
    fn raw(&self) -> Vec<Value> {
        let named = self.named.as_ref().filter(|named| named.args().next().is_some());
        let named = named
            .map(|named| named.args().filter_map(|n| Some((n.to_owned(), named.peek::<Value>(n).ok()?))));
        self.positional
            .iter()
            .cloned()
            .chain(named.map(|pairs| Value::from(pairs.collect::<Kwargs>())))
            .collect()
    }

    pub fn get(&self, index: usize, name: &str) -> Option<Value> {
        let named = || self.named.as_ref().and_then(|named| named.get::<Option<Value>>(name).ok().flatten());
        self.positional.get(index).cloned().or_else(named)
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

    fn need(&self, index: usize, method: &str) -> Result<String, Error> {
        self.string(index, method)?.ok_or_else(|| fail(format!("{method}() misses an argument")))
    }
}

/// `value.method(args)`.
pub fn call(state: &mut State<'_, '_>, args: Rest<Value>, named: Kwargs) -> Outcome {
    let [value, name, rest @ ..] = &args[..] else { return Err(fail("a call misses its object")) };
    let args = Args::new(rest, named);
    let method = name.as_str().unwrap_or_default();
    let found = match value.kind() {
        ValueKind::String => string(value.as_str().unwrap_or_default(), method, &args)?,
        ValueKind::Undefined => {
            return Err(Error::new(
                ErrorKind::UndefinedError,
                format!("the value on which '{method}' is called is undefined"),
            ));
        }
        _ => match (value.downcast_object_ref::<Dict>(), value.downcast_object_ref::<Seq>()) {
            (Some(dict), _) => match mapping(dict, method, &args)? {
                // `d.f()` where the dict itself holds something callable.
                None if dict.get_str(method).is_some() => {
                    return Err(fail(format!("'{method}' is not callable")));
                }
                found => found,
            },
            (_, Some(seq)) => sequence(seq, method, &args)?,
            _ if value.as_object().is_some() => Some(value.call_method(state, method, &args.raw())?),
            _ => None,
        },
    };
    found.ok_or_else(|| {
        let what = values::type_name(value);
        match method {
            "append" | "extend" | "insert" | "pop" | "popitem" | "remove" | "clear" | "sort" | "reverse"
            | "update" | "setdefault" => {
                fail(format!("access to attribute '{method}' of '{what}' object is unsafe."))
            }
            _ => Error::new(ErrorKind::UnknownMethod, format!("'{what} object' has no attribute '{method}'")),
        }
    })
}

fn mapping(dict: &Dict, method: &str, args: &Args) -> Result<Option<Value>, Error> {
    let pairs = dict.pairs.iter();
    Ok(Some(match method {
        "get" => {
            let key = args.positional.first().ok_or_else(|| fail("get() misses its key"))?;
            dict.get(key)
                .cloned()
                .or_else(|| args.positional.get(1).cloned())
                .unwrap_or_else(|| Value::from(()))
        }
        "items" => {
            let pairs = pairs.map(|(k, v)| tuple(vec![k.clone(), v.clone()])).collect::<Result<_, _>>()?;
            values::seq(pairs, SeqKind::View("dict_items"))?
        }
        "keys" => values::seq(pairs.map(|(k, _)| k.clone()).collect(), SeqKind::View("dict_keys"))?,
        "values" => values::seq(pairs.map(|(_, v)| v.clone()).collect(), SeqKind::View("dict_values"))?,
        "copy" => values::dict(dict.pairs.clone())?,
        _ => return Ok(None),
    }))
}

fn sequence(seq: &Seq, method: &str, args: &Args) -> Result<Option<Value>, Error> {
    let Some(what) = args.positional.first() else {
        return if method == "copy" { values::seq(seq.items.clone(), seq.kind).map(Some) } else { Ok(None) };
    };
    let mut at = Vec::new();
    for (i, item) in seq.items.iter().enumerate() {
        if equal(item, what)? {
            at.push(i);
        }
    }
    match method {
        "count" => Ok(Some(Value::from(at.len()))),
        "index" => {
            at.first().map(|&i| Some(Value::from(i))).ok_or_else(|| fail("the value is not in the list"))
        }
        _ => Ok(None),
    }
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
    let end =
        |left, right| Ok(Some(Value::from(strip(text, args.string(0, "chars")?.as_deref(), left, right))));
    Ok(Some(match method {
        "strip" => return end(true, true),
        "lstrip" => return end(true, false),
        "rstrip" => return end(false, true),
        "split" => split(text, args, false)?,
        "rsplit" => split(text, args, true)?,
        "startswith" => Value::from(fixed(text, args, |text, part| text.starts_with(part))?),
        "endswith" => Value::from(fixed(text, args, |text, part| text.ends_with(part))?),
        "replace" => Value::from(replace(
            text,
            &args.need(0, method)?,
            &args.need(1, method)?,
            args.int(2, "count")?.unwrap_or(-1),
        )?),
        "join" => join(text, args)?,
        "format" => formatted(FormatStyle::StrFormat, text, &args.raw())?,
        "splitlines" => list(lines(text, args.flag(0, "keepends")).into_iter().map(Value::from).collect())?,
        "partition" | "rpartition" => partition(text, &args.need(0, method)?, method == "rpartition")?,
        "removeprefix" => {
            let prefix = args.need(0, method)?;
            Value::from(text.strip_prefix(&prefix).unwrap_or(text))
        }
        "removesuffix" => {
            let suffix = args.need(0, method)?;
            Value::from(text.strip_suffix(&suffix).unwrap_or(text))
        }
        "find" | "index" | "rfind" | "rindex" | "count" => search(text, method, &args.need(0, method)?)?,
        "center" | "ljust" | "rjust" | "zfill" => pad(text, method, args)?,
        "expandtabs" => Value::from(replace(text, "\t", "        ", -1)?),
        _ => return case(text, method),
    }))
}

/// Methods of the text alone.
fn case(text: &str, method: &str) -> Result<Option<Value>, Error> {
    let clean = unmarked(text);
    let every = |is: fn(char) -> bool| !clean.is_empty() && clean.chars().all(is);
    let upper = clean.chars().any(char::is_uppercase);
    let lower = clean.chars().any(char::is_lowercase);
    Ok(Some(match method {
        "upper" => Value::from(text.to_uppercase()),
        "lower" | "casefold" => Value::from(text.to_lowercase()),
        "title" => Value::from(title(text)),
        "capitalize" => Value::from(capitalize(text)),
        "swapcase" => Value::from(
            text.chars()
                .map(|c| {
                    if c.is_uppercase() { c.to_lowercase().to_string() } else { c.to_uppercase().to_string() }
                })
                .collect::<String>(),
        ),
        "isspace" => Value::from(every(is_space)),
        "isdigit" | "isdecimal" => Value::from(every(|c| c.is_ascii_digit())),
        "isnumeric" => Value::from(every(char::is_numeric)),
        "isalpha" => Value::from(every(char::is_alphabetic)),
        "isalnum" => Value::from(every(char::is_alphanumeric)),
        "isascii" => Value::from(clean.is_ascii()),
        "islower" => Value::from(lower && !upper),
        "isupper" => Value::from(upper && !lower),
        _ => return Ok(None),
    }))
}

/// `startswith` and `endswith` take one text or a tuple of them.
fn fixed(text: &str, args: &Args, test: fn(&str, &str) -> bool) -> Result<bool, Error> {
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
            return Ok(true);
        }
    }
    Ok(false)
}

pub fn replace(text: &str, old: &str, new: &str, count: i64) -> Result<String, Error> {
    let limit = usize::try_from(count).unwrap_or(usize::MAX);
    let found = if old.is_empty() { text.chars().count() + 1 } else { text.matches(old).count() };
    charge(text.len().saturating_add(found.min(limit).saturating_mul(new.len())))?;
    Ok(text.replacen(old, new, limit))
}

fn join(separator: &str, args: &Args) -> Outcome {
    let items = values::items(args.positional.first().ok_or_else(|| fail("join() misses its argument"))?)?;
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
    let limit =
        usize::try_from(args.int(1, "maxsplit")?.unwrap_or(-1)).map_or(usize::MAX, |n| n.saturating_add(1));
    let mut parts: Vec<&str> = match args.string(0, "sep")?.as_deref() {
        Some("") => return Err(fail("empty separator")),
        Some(separator) if right => text.rsplitn(limit, separator).collect(),
        Some(separator) => text.splitn(limit, separator).collect(),
        None => words(text, limit, right),
    };
    if right {
        parts.reverse();
    }
    charge(parts.len().saturating_mul(72))?;
    list(parts.into_iter().map(Value::from).collect())
}

/// `split()` on runs of space: none at the ends, and the last piece of a limited split keeps what follows.
fn words(text: &str, limit: usize, right: bool) -> Vec<&str> {
    let (mut out, mut rest) = (Vec::new(), text);
    loop {
        rest = if right { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        if rest.is_empty() {
            return out;
        }
        let cut = if right { rest.rfind(is_space) } else { rest.find(is_space) };
        let Some(cut) = cut.filter(|_| out.len() + 1 < limit) else {
            out.push(rest);
            return out;
        };
        let space = rest.get(cut..).and_then(|s| s.chars().next()).map_or(1, char::len_utf8);
        let (low, high) = (rest.get(..cut).unwrap_or(""), rest.get(cut + space..).unwrap_or(""));
        out.push(if right { high } else { low });
        rest = if right { low } else { high };
    }
}

pub fn lines(text: &str, keep: bool) -> Vec<&str> {
    let breaks = |c: char| {
        matches!(c, '\n' | '\r' | '\x0b' | '\x0c' | '\x1c'..='\x1e' | '\u{85}' | '\u{2028}' | '\u{2029}')
    };
    let (mut out, mut rest) = (Vec::new(), text);
    while !rest.is_empty() {
        let Some(at) = rest.find(breaks) else {
            out.push(rest);
            break;
        };
        let tail = rest.get(at..).unwrap_or("");
        let width = if tail.starts_with("\r\n") { 2 } else { tail.chars().next().map_or(1, char::len_utf8) };
        out.push(rest.get(..if keep { at + width } else { at }).unwrap_or(""));
        rest = rest.get(at + width..).unwrap_or("");
    }
    out
}

fn partition(text: &str, separator: &str, right: bool) -> Outcome {
    let found = if right { text.rsplit_once(separator) } else { text.split_once(separator) };
    let parts = match found {
        Some((before, after)) => [before, separator, after],
        None if right => ["", "", text],
        None => [text, "", ""],
    };
    tuple(parts.into_iter().map(Value::from).collect())
}

fn search(text: &str, method: &str, what: &str) -> Outcome {
    let text = unmarked(text);
    if method == "count" {
        return Ok(Value::from(text.matches(what).count()));
    }
    let found = if method.starts_with('r') { text.rfind(what) } else { text.find(what) };
    match found {
        Some(at) => Ok(Value::from(text.get(..at).unwrap_or("").chars().count())),
        None if method.ends_with("find") => Ok(Value::from(-1)),
        None => Err(fail("substring not found")),
    }
}

pub fn pad(text: &str, method: &str, args: &Args) -> Outcome {
    let default = if method == "zfill" { "0" } else { " " };
    let fill = args.string(1, "fillchar")?.unwrap_or_else(|| default.to_owned());
    let width = usize::try_from(args.int(0, "width")?.unwrap_or(0)).unwrap_or(0);
    let len = unmarked(text).chars().count();
    let missing = width.saturating_sub(len);
    charge(missing.saturating_mul(fill.len()))?;
    let left = match method {
        "ljust" => 0,
        "rjust" | "zfill" => missing,
        // Python gives the odd space to the left when the width is odd.
        _ => missing / 2 + (missing & width & 1),
    };
    let (sign, body) = match text.strip_prefix(['-', '+']) {
        Some(body) if method == "zfill" => text.split_at(text.len() - body.len()),
        _ => ("", text),
    };
    Ok(Value::from(format!("{sign}{}{body}{}", fill.repeat(left), fill.repeat(missing - left))))
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
