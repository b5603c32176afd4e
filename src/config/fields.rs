//! Typed access to the JSON files that stand beside weights: what is absent, and what has the wrong type.

use serde_json::{Map, Value};

pub use super::json::object;
use super::json::shown;
use crate::error::{Error, Result};

/// The error for a field that must be there.
pub(super) fn missing(field: &str) -> Error {
    Error::model_file(format!("the field {field:?} is missing"))
}

/// Typed access to a JSON object; `null` is absent, a wrong type (an infinite number or NaN among them) is an
/// error that names the field.
pub(crate) struct Fields<'a>(pub(crate) &'a Map<String, Value>);

impl<'a> Fields<'a> {
    /// Whether the key is there at all, `null` included.
    pub(crate) fn states(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    fn get<T>(&self, key: &str, what: &str, read: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        match self.0.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(value) => read(value).map(Some).ok_or_else(|| {
                Error::model_file(format!("the field {key:?} must be {what}, not {}", shown(value)))
            }),
        }
    }

    pub(crate) fn usize(&self, key: &str) -> Result<Option<usize>> {
        self.get(key, "a whole number", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    pub(crate) fn f64(&self, key: &str) -> Result<Option<f64>> {
        self.get(key, "a finite number", Value::as_f64)
    }

    pub(crate) fn bool(&self, key: &str) -> Result<Option<bool>> {
        self.get(key, "true or false", Value::as_bool)
    }

    pub(crate) fn str(&self, key: &str) -> Result<Option<&'a str>> {
        self.get(key, "a string", Value::as_str)
    }

    pub(crate) fn object(&self, key: &str) -> Result<Option<&'a Map<String, Value>>> {
        self.get(key, "an object", Value::as_object)
    }

    pub(crate) fn array(&self, key: &str) -> Result<Option<&'a Vec<Value>>> {
        self.get(key, "a list", Value::as_array)
    }

    pub(crate) fn floats(&self, key: &str) -> Result<Option<Vec<f32>>> {
        self.get(key, "a list of finite numbers", |v| {
            v.as_array()?.iter().map(|x| x.as_f64().map(|x| x as f32)).collect()
        })
    }
}
