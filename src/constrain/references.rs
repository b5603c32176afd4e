//! Where a `$ref` leads: JSON Schema 2020-12, core, sections 8.2 and 8.5; pointers by RFC 6901, section 6.

use std::collections::HashMap;

use serde_json::Value;

use super::rewrite::{Children, children};
use crate::error::{Error, Result, quoted};

/// A schema with the resource it belongs to: what its own references are relative to.
#[derive(Clone, Copy)]
pub(super) struct Place<'a> {
    pub schema: &'a Value,
    resource: &'a Value,
}

impl<'a> Place<'a> {
    /// A schema below this one.
    pub fn inner(self, schema: &'a Value) -> Self {
        let resource = if identifier(schema).is_some() { schema } else { self.resource };
        Place { schema, resource }
    }
}

/// The resources and anchors of one document.
pub(super) struct References<'a> {
    root: &'a Value,
    /// Resources by their absolute identifiers, and these by the resources' addresses.
    by_uri: HashMap<String, &'a Value>,
    uris: HashMap<*const Value, String>,
    /// By resource and name.
    anchors: HashMap<(*const Value, &'a str), &'a Value>,
}

impl<'a> References<'a> {
    /// Recursive along the schema, whose depth was checked.
    pub fn new(root: &'a Value) -> Self {
        let mut found = References {
            root,
            by_uri: HashMap::new(),
            uris: HashMap::from([(std::ptr::from_ref(root), String::new())]),
            anchors: HashMap::new(),
        };
        found.collect(found.start());
        found
    }

    pub fn start(&self) -> Place<'a> {
        Place { schema: self.root, resource: self.root }
    }

    fn collect(&mut self, place: Place<'a>) {
        let Value::Object(members) = place.schema else { return };
        if let Some(name) = identifier(place.schema) {
            let base = self.uris.get(&std::ptr::from_ref(place.resource)).cloned().unwrap_or_default();
            let parent = if std::ptr::eq(place.schema, place.resource) { "" } else { base.as_str() };
            let uri = joined(parent, name);
            self.by_uri.insert(uri.clone(), place.schema);
            self.uris.insert(std::ptr::from_ref(place.schema), uri);
        }
        for keyword in ["$anchor", "$dynamicAnchor"] {
            if let Some(name) = members.get(keyword).and_then(Value::as_str) {
                self.anchors.insert((std::ptr::from_ref(place.resource), name), place.schema);
            }
        }
        // Drafts 4 to 7 write an anchor as an identifier that is a fragment.
        if let Some(name) =
            ["$id", "id"].iter().find_map(|key| members.get(*key)?.as_str()?.strip_prefix('#'))
        {
            self.anchors.insert((std::ptr::from_ref(place.resource), name), place.schema);
        }
        for (keyword, member) in members {
            let inner: Vec<&Value> = match (children(keyword), member) {
                (Children::One, _) => vec![member],
                (Children::Named, Value::Object(named)) => named.values().collect(),
                (Children::Listed | Children::OneOrListed, Value::Array(listed)) => listed.iter().collect(),
                (Children::OneOrListed, _) => vec![member],
                _ => Vec::new(),
            };
            for schema in inner {
                // The parent is known before the child.
                let base = self.uris.get(&std::ptr::from_ref(place.resource)).cloned().unwrap_or_default();
                let inner = place.inner(schema);
                self.uris.entry(std::ptr::from_ref(inner.resource)).or_insert(base);
                self.collect(inner);
            }
        }
    }

    /// The schema that a reference names.
    ///
    /// # Errors
    /// Constraint if it leads nowhere, or out of the document.
    pub fn target(&self, from: Place<'a>, reference: &str) -> Result<Place<'a>> {
        let (uri, fragment) = reference.split_once('#').unwrap_or((reference, ""));
        let resource = match uri {
            "" => Some(from.resource),
            uri => {
                let base = self.uris.get(&std::ptr::from_ref(from.resource)).map_or("", String::as_str);
                self.by_uri.get(&joined(base, uri)).or_else(|| self.by_uri.get(uri)).copied()
            }
        };
        let Some(resource) = resource else {
            return Err(Error::constraint(format!(
                "the $ref {} leads to another document, and none is fetched; put its schema under $defs \
                 and refer to it as #/$defs/Name",
                quoted(reference)
            )));
        };
        let start = Place { schema: resource, resource };
        let found = match fragment {
            "" => Some(start),
            _ if fragment.starts_with('/') => {
                pointed(start, &decoded(fragment)).or_else(|| pointed(start, fragment))
            }
            _ => {
                let name = decoded(fragment);
                let schema = self.anchors.get(&(std::ptr::from_ref(resource), name.as_str()));
                schema.map(|schema| start.inner(schema))
            }
        };
        found.ok_or_else(|| {
            Error::constraint(format!(
                "{} leads nowhere; a $ref must be a path in the same schema, like #/$defs/Name",
                quoted(reference)
            ))
        })
    }
}

/// The identifier of a resource of its own.
fn identifier(schema: &Value) -> Option<&str> {
    let members = schema.as_object()?;
    let name = members.get("$id").or_else(|| members.get("id"))?.as_str()?;
    let name = name.strip_suffix('#').unwrap_or(name);
    (!name.is_empty() && !name.starts_with('#')).then_some(name)
}

/// Follows a pointer, step by step.
fn pointed<'a>(start: Place<'a>, pointer: &str) -> Option<Place<'a>> {
    pointer.split('/').skip(1).try_fold(start, |place, step| {
        let step = step.replace("~1", "/").replace("~0", "~");
        let inner = match place.schema {
            Value::Object(members) => members.get(&step)?,
            Value::Array(items) => {
                let is_index =
                    step == "0" || (!step.starts_with('0') && step.bytes().all(|byte| byte.is_ascii_digit()));
                items.get(step.parse::<usize>().ok().filter(|_| is_index)?)?
            }
            _ => return None,
        };
        Some(place.inner(inner))
    })
}

/// Percent-decoded (RFC 3986, section 2.1). What is no UTF-8 then stays as it is.
fn decoded(text: &str) -> String {
    let bytes = text.as_bytes();
    let (mut out, mut at) = (Vec::with_capacity(bytes.len()), 0);
    while let Some(&byte) = bytes.get(at) {
        let hex = (byte == b'%').then(|| text.get(at + 1..at + 3)).flatten();
        match hex.and_then(|hex| u8::from_str_radix(hex, 16).ok()) {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8(out).unwrap_or_else(|_| text.into())
}

/// A reference against the identifier of its resource: RFC 3986, section 5.2, without dot segments.
fn joined(base: &str, reference: &str) -> String {
    let scheme = reference.split_once(':').map(|(scheme, _)| scheme);
    if scheme.is_some_and(|scheme| !scheme.is_empty() && !scheme.contains('/')) || base.is_empty() {
        return reference.into();
    }
    let authority = base.find("://").map_or(0, |at| at + 3);
    if reference.starts_with('/') {
        let end = base[authority..].find('/').map_or(base.len(), |at| authority + at);
        return format!("{}{reference}", &base[..end]);
    }
    match base[authority..].rfind('/') {
        Some(at) => format!("{}{reference}", &base[..=authority + at]),
        None => format!("{base}/{reference}"),
    }
}
