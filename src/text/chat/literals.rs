//! Control tokens that stand in the messages stay text.
//!
//! Who writes `<|im_end|>` into a message must not end the turn. The prompt has to be exactly what the
//! template renders, so the text is not changed; instead the places of such tokens are found: the messages
//! are rendered a second time with a private mark (a Unicode noncharacter) on each side of every control
//! token in them. The marks travel through the template; comparisons, `in`, `strip` and lengths look through
//! them. Removed again, the text must be the first rendering byte for byte, and marked tokens are the
//! literals.
//!
//! Limits: a template that slices or rewrites a marked text may render otherwise with marks. Then the safe
//! reading holds: EVERY occurrence of a token that a message contains is a literal, the template's own too.
//! The same if the messages use up all 16 pairs of noncharacters.

use std::ops::Range;

use serde_json::Value as Json;

/// Finds the control tokens in a text, the longest first at each place.
pub struct Tokens<'a> {
    tokens: Vec<&'a str>,
}

impl<'a> Tokens<'a> {
    pub fn new(tokens: &[&'a str]) -> Self {
        let mut tokens: Vec<_> = tokens.iter().copied().filter(|token| !token.is_empty()).collect();
        tokens.sort_by_key(|token| std::cmp::Reverse(token.len()));
        tokens.dedup();
        Tokens { tokens }
    }

    fn at(&self, text: &str) -> Option<&'a str> {
        self.tokens.iter().copied().find(|token| text.starts_with(token))
    }

    /// Keeps those that occur in some string of `json` (keys too).
    pub fn found_in<'j>(&self, json: impl Iterator<Item = &'j Json>) -> Tokens<'a> {
        let mut found = vec![false; self.tokens.len()];
        for json in json {
            each_string(json, &mut |text| {
                for (token, found) in self.tokens.iter().zip(&mut found) {
                    *found = *found || text.contains(token);
                }
            });
        }
        Tokens {
            tokens: self.tokens.iter().zip(found).filter(|(_, found)| *found).map(|(t, _)| *t).collect(),
        }
    }

    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// `text` with a mark on each side of every token.
    pub fn mark(&self, text: &str, marks: [char; 2]) -> String {
        let mut out = String::with_capacity(text.len() + 8);
        let mut rest = text;
        while let Some(c) = rest.chars().next() {
            let len = match self.at(rest) {
                Some(token) => {
                    out.extend([marks[0]]);
                    out.push_str(token);
                    out.extend([marks[1]]);
                    token.len()
                }
                None => {
                    out.push(c);
                    c.len_utf8()
                }
            };
            rest = rest.get(len..).unwrap_or("");
        }
        out
    }

    /// The text without marks, and where a token stood between two.
    pub fn unmark(&self, marked: &str, marks: [char; 2]) -> (String, Vec<Range<usize>>) {
        let (mut out, mut literals) = (String::with_capacity(marked.len()), Vec::new());
        let mut rest = marked;
        while let Some(at) = rest.find(marks) {
            out.push_str(rest.get(..at).unwrap_or(""));
            let opens = rest.get(at..).is_some_and(|tail| tail.starts_with(marks[0]));
            rest = rest.get(at + marks[0].len_utf8()..).unwrap_or("");
            let token = self.tokens.iter().find(|token| {
                opens && rest.strip_prefix(**token).is_some_and(|tail| tail.starts_with(marks[1]))
            });
            if let Some(token) = token {
                literals.push(out.len()..out.len() + token.len());
                out.push_str(token);
                rest = rest.get(token.len()..).unwrap_or("");
            }
        }
        out.push_str(rest);
        (out, literals)
    }

    /// Every place of every token.
    pub fn everywhere(&self, text: &str) -> Vec<Range<usize>> {
        let mut places = Vec::new();
        let mut at = 0;
        while let Some(rest) = text.get(at..).filter(|rest| !rest.is_empty()) {
            match self.at(rest) {
                Some(token) => {
                    places.push(at..at + token.len());
                    at += token.len();
                }
                None => at += rest.chars().next().map_or(1, char::len_utf8),
            }
        }
        places
    }
}

fn each_string(json: &Json, visit: &mut dyn FnMut(&str)) {
    match json {
        Json::String(text) => visit(text),
        Json::Array(items) => items.iter().for_each(|item| each_string(item, visit)),
        Json::Object(map) => map.iter().for_each(|(key, value)| {
            visit(key);
            each_string(value, visit);
        }),
        _ => {}
    }
}

/// A pair of noncharacters that stands in no string of `json`.
pub fn free_marks<'j>(json: impl Iterator<Item = &'j Json>) -> Option<[char; 2]> {
    let mut used = [false; 32];
    for json in json {
        each_string(json, &mut |text| {
            for c in text.chars().filter(|c| ('\u{fdd0}'..='\u{fdef}').contains(c)) {
                if let Some(used) = used.get_mut((c as usize).wrapping_sub(0xfdd0)) {
                    *used = true;
                }
            }
        });
    }
    let free =
        (0..16u32).find(|i| used.get(*i as usize * 2..*i as usize * 2 + 2) == Some(&[false, false]))?;
    Some([char::from_u32(0xfdd0 + free * 2)?, char::from_u32(0xfdd1 + free * 2)?])
}
