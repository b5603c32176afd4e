//! Python's values as JSON and back: messages, tools, template arguments, configurations.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyDict, PyFloat, PyInt, PyList, PyString, PyTuple};
use serde_json::{Map, Number, Value};

use super::errors::to_python;
use crate::error::Error;

/// A conversation is not nested deeper than this; a self-containing list is.
const MAX_DEPTH: usize = 64;

/// Reads None, bool, int, float, str, list, tuple and dict. `name` is how errors call the value.
pub fn json(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Value> {
    at_depth(value, name, 0)
}

/// A dict (or None) as an object.
pub fn object(value: Option<&Bound<'_, PyAny>>, name: &str) -> PyResult<Map<String, Value>> {
    match value.filter(|value| !value.is_none()).map(|value| json(value, name)).transpose()? {
        None => Ok(Map::new()),
        Some(Value::Object(map)) => Ok(map),
        Some(_) => Err(invalid(value.map(|v| v.py()), format!("{name} must be a dict"))),
    }
}

fn at_depth(value: &Bound<'_, PyAny>, name: &str, depth: usize) -> PyResult<Value> {
    if depth > MAX_DEPTH {
        return Err(invalid(Some(value.py()), format!("{name} is nested deeper than {MAX_DEPTH} levels")));
    }
    if value.is_none() {
        return Ok(Value::Null);
    }
    if let Ok(flag) = value.cast::<PyBool>() {
        return Ok(Value::Bool(flag.is_true()));
    }
    if let Ok(text) = value.cast::<PyString>() {
        return string(text, name).map(Value::String);
    }
    if value.cast::<PyInt>().is_ok() {
        return integer(value, name);
    }
    if let Ok(float) = value.cast::<PyFloat>() {
        let number = Number::from_f64(float.value());
        let refused =
            || invalid(Some(value.py()), format!("{name} is {}, which JSON does not have", float.value()));
        return number.map(Value::Number).ok_or_else(refused);
    }
    if let Ok(dict) = value.cast::<PyDict>() {
        return entries(dict, name, depth);
    }
    if value.cast::<PyList>().is_ok() || value.cast::<PyTuple>().is_ok() {
        let items = value.try_iter()?.enumerate();
        let read = |(i, item): (usize, PyResult<Bound<'_, PyAny>>)| {
            at_depth(&item?, &format!("{name}[{i}]"), depth + 1)
        };
        return items.map(read).collect::<PyResult<Vec<_>>>().map(Value::Array);
    }
    let kind = value.get_type().name()?.to_string();
    Err(invalid(
        Some(value.py()),
        format!("{name} is of type {kind}; use str, int, float, bool, None, list or dict"),
    ))
}

/// A text that a tokenizer can read: Python's may hold half of a UTF-16 pair alone.
pub fn string(text: &Bound<'_, PyString>, name: &str) -> PyResult<String> {
    match text.to_cow() {
        Ok(text) => Ok(text.into_owned()),
        Err(_) => Err(invalid(
            Some(text.py()),
            format!(
                "{name} holds a lone surrogate, which no tokenizer can read; repair it with \
                 text.encode('utf-8', 'replace').decode()"
            ),
        )),
    }
}

fn entries(dict: &Bound<'_, PyDict>, name: &str, depth: usize) -> PyResult<Value> {
    let mut map = Map::new();
    for (key, item) in dict.iter() {
        let key = match key.cast::<PyString>() {
            Ok(key) => string(key, &format!("a key of {name}"))?,
            Err(_) => {
                let message =
                    format!("{name} has a key that is not a string: {}", key.repr()?.to_string_lossy());
                return Err(invalid(Some(dict.py()), message));
            }
        };
        let item = at_depth(&item, &format!("{name}[{key:?}]"), depth + 1)?;
        map.insert(key, item);
    }
    Ok(Value::Object(map))
}

fn integer(value: &Bound<'_, PyAny>, name: &str) -> PyResult<Value> {
    if let Ok(number) = value.extract::<i64>() {
        return Ok(number.into());
    }
    let wide = value.extract::<u64>();
    wide.map(Value::from).map_err(|_| invalid(Some(value.py()), format!("{name} is too large a number")))
}

/// JSON as Python's own values.
pub fn python<'py>(py: Python<'py>, value: &Value) -> PyResult<Bound<'py, PyAny>> {
    Ok(match value {
        Value::Null => py.None().into_bound(py),
        Value::Bool(flag) => PyBool::new(py, *flag).to_owned().into_any(),
        Value::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(n), _) => n.into_pyobject(py)?.into_any(),
            (_, Some(n)) => n.into_pyobject(py)?.into_any(),
            _ => PyFloat::new(py, number.as_f64().unwrap_or(f64::NAN)).into_any(),
        },
        Value::String(text) => PyString::new(py, text).into_any(),
        Value::Array(items) => {
            let items = items.iter().map(|item| python(py, item)).collect::<PyResult<Vec<_>>>()?;
            PyList::new(py, items)?.into_any()
        }
        Value::Object(map) => {
            let dict = PyDict::new(py);
            for (key, item) in map {
                dict.set_item(key, python(py, item)?)?;
            }
            dict.into_any()
        }
    })
}

/// An `InvalidRequestError`.
pub fn invalid(py: Option<Python<'_>>, message: String) -> PyErr {
    let error = Error::invalid(message);
    match py {
        Some(py) => to_python(py, &error),
        None => Python::attach(|py| to_python(py, &error)),
    }
}
