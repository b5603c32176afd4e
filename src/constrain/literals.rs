//! The texts that a grammar spells out: headers, tags, markers. Where an answer could go on for ever with
//! free text, one of them is what ends it, and no search byte by byte would stumble on it.

use serde_json::Value;

use crate::error::Result;

/// Shorter ones are found byte by byte as well.
const SHORTEST: usize = 3;
/// Beyond this, trying them all would take longer than it helps.
const MOST: usize = 128;

/// A piece of a grammar in Lark: as much as is needed to tell its texts from what only looks like one.
enum Piece<'a> {
    /// What stands between quotes.
    Text(&'a str),
    /// What stands between slashes.
    Expression(&'a str),
    /// What follows `%json`.
    Schema(&'a str),
    Other,
}

/// The first piece, and what follows it.
fn piece(rest: &str) -> Option<(Piece<'_>, &str)> {
    let first = rest.chars().next()?;
    Some(if let Some(after) = rest.strip_prefix("//") {
        (Piece::Other, after.split_once('\n').map_or("", |(_, next)| next))
    } else if let Some(after) = rest.strip_prefix("%json") {
        let next = after_object(after);
        (Piece::Schema(&after[..after.len() - next.len()]), next)
    } else if first == '"' {
        let (inside, after) = delimited(&rest[1..], '"');
        (Piece::Text(inside), after)
    } else if first == '/' {
        let (inside, after) = delimited(&rest[1..], '/');
        (Piece::Expression(inside), after)
    } else {
        (Piece::Other, &rest[first.len_utf8()..])
    })
}

/// The literals of a grammar in Lark, the longest first. JSON schemas in it have none: their strings are
/// content.
pub(super) fn of_lark(grammar: &str) -> Vec<Vec<u8>> {
    let mut found = Vec::new();
    let mut rest = grammar;
    while let Some((piece, next)) = piece(rest) {
        match piece {
            // As JSON writes it, which is how Lark does.
            Piece::Text(inside) => found.extend(serde_json::from_str::<String>(&format!("\"{inside}\""))),
            Piece::Expression(inside) => found.extend(runs(inside)),
            Piece::Schema(_) | Piece::Other => {}
        }
        rest = next;
    }
    sorted(found)
}

/// The grammar with each JSON schema in it rewritten. One that is no JSON stays, for the library to say so.
///
/// # Errors
/// Those of `rewrite`.
pub(super) fn with_schemas(
    grammar: &str,
    mut rewrite: impl FnMut(&Value) -> Result<Value>,
) -> Result<String> {
    let mut out = String::with_capacity(grammar.len());
    let mut rest = grammar;
    while let Some((piece, next)) = piece(rest) {
        let schema = match piece {
            Piece::Schema(text) => serde_json::from_str(text).ok(),
            _ => None,
        };
        match schema {
            Some(schema) => out.push_str(&format!("%json {}", rewrite(&schema)?)),
            None => out.push_str(&rest[..rest.len() - next.len()]),
        }
        rest = next;
    }
    Ok(out)
}

/// The literals of a regular expression, the longest first.
pub(super) fn of_regex(expression: &str) -> Vec<Vec<u8>> {
    sorted(runs(expression))
}

fn sorted(mut found: Vec<String>) -> Vec<Vec<u8>> {
    found.retain(|text| text.len() >= SHORTEST);
    found.sort_by(|a, b| b.len().cmp(&a.len()).then(a.cmp(b)));
    found.dedup();
    found.truncate(MOST);
    found.into_iter().map(String::into_bytes).collect()
}

/// Up to the next `end` that is not escaped, and what follows it.
fn delimited(text: &str, end: char) -> (&str, &str) {
    let mut escaped = false;
    for (at, letter) in text.char_indices() {
        match letter {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            _ if letter == end => return (&text[..at], &text[at + letter.len_utf8()..]),
            _ => {}
        }
    }
    (text, "")
}

/// What follows the object with which the text begins.
fn after_object(text: &str) -> &str {
    let mut values = serde_json::Deserializer::from_str(text).into_iter::<serde::de::IgnoredAny>();
    match values.next() {
        Some(Ok(_)) => &text[values.byte_offset()..],
        _ => "",
    }
}

/// The letters that stand one after the other in a regular expression and mean themselves.
fn runs(expression: &str) -> Vec<String> {
    let (mut found, mut run) = (Vec::new(), String::new());
    let mut letters = expression.chars().peekable();
    while let Some(letter) = letters.next() {
        let plain = match letter {
            '\\' => match letters.next() {
                Some('n') => Some('\n'),
                Some('t') => Some('\t'),
                Some(escaped) if !escaped.is_alphanumeric() => Some(escaped),
                _ => None,
            },
            '[' => {
                skip_class(&mut letters);
                None
            }
            '(' | ')' | '|' | '.' | '^' | '$' => None,
            '{' | '*' | '+' | '?' => {
                // The letter before it may come as often as it likes.
                run.pop();
                if letter == '{' {
                    letters.by_ref().find(|&letter| letter == '}');
                }
                None
            }
            other => Some(other),
        };
        match plain {
            Some(letter) => run.push(letter),
            None => found.push(std::mem::take(&mut run)),
        }
    }
    found.push(run);
    found
}

/// Goes behind the `]` of a class whose `[` was read.
fn skip_class(letters: &mut std::iter::Peekable<std::str::Chars>) {
    let mut depth = 1;
    while let Some(letter) = letters.next() {
        match letter {
            '\\' => drop(letters.next()),
            '[' => depth += 1,
            ']' => depth -= 1,
            _ => {}
        }
        if depth == 0 {
            return;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn texts(found: Vec<Vec<u8>>) -> Vec<String> {
        found.into_iter().map(|bytes| String::from_utf8(bytes).unwrap()).collect()
    }

    #[test]
    fn literals_are_what_is_spelt_out() {
        let lark = [
            (
                r#"start: "[[ ## a ## ]]\n" T "</think>" // a "comment" here"#,
                vec!["[[ ## a ## ]]\n", "</think>"],
            ),
            (r#"a: %json {"type": "object", "x": {"y": "}\""}} "<end>""#, vec!["<end>"]),
            (r#"T: /(?:[^\n\[]|\[x)+/ /\n{1,3}\[\[ \#\# b \#\# \]\]\n/"#, vec!["[[ ## b ## ]]\n"]),
            (r#"b: "say \"hi\"" "no" "an open one"#, vec!["an open one", "say \"hi\""]),
            (r"c: /ab*cd\/ef/ %json {broken", vec!["cd/ef"]),
            ("d: \"é\\u00e9é\" /ü+xyz[/", vec!["ééé", "xyz"]),
        ];
        for (grammar, expected) in lark {
            assert_eq!(texts(of_lark(grammar)), expected, "{grammar}");
        }
        assert_eq!(
            texts(of_regex(r"(yes|perhaps)\.[a-z]*, then (\d{3}) done")),
            [", then ", "perhaps", " done", "yes"]
        );
    }
}
