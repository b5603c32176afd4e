//! Jinja2's lexer: a template's source into text, output tags and statement tags.
//!
//! Whitespace control is settled here by Jinja2's rules (`trim_blocks` and `lstrip_blocks` are on, the last
//! newline is dropped, `-` and `+` in tags), so the interpreter behind never sees any.
//! Source of the rules: `jinja2/lexer.py`, `Lexer.tokeniter`.

use crate::error::{Error, Result};

use super::methods::is_space;

#[derive(Clone, Debug, PartialEq)]
pub enum Token {
    Name(String),
    Str(String),
    Number(String),
    Op(&'static str),
}

pub enum Piece {
    Text(String),
    Output(Vec<Token>),
    Statement(Vec<Token>),
}

/// Longest first, so that `//` is not two `/`.
const OPERATORS: [&str; 26] = [
    "//", "**", "==", "!=", ">=", "<=", "+", "-", "/", "*", "%", "~", "[", "]", "(", ")", "{", "}", ">", "<",
    "=", ".", ":", "|", ",", ";",
];

pub struct Lexer<'a> {
    source: &'a str,
    at: usize,
}

fn broken(source: &str, at: usize, what: &str) -> Error {
    let line = 1 + source.get(..at).unwrap_or(source).matches('\n').count();
    Error::template(format!("the chat template is malformed at line {line}: {what}"))
}

/// Splits a template. The number beside each piece is the line it starts on.
pub fn pieces(source: &str) -> Result<Vec<(usize, Piece)>> {
    let mut source = source.replace("\r\n", "\n").replace('\r', "\n");
    if source.ends_with('\n') {
        source.pop();
    }
    let mut lexer = Lexer { source: &source, at: 0 };
    let (mut out, mut line, mut counted) = (Vec::new(), 1, 0);
    while lexer.at < source.len() {
        let start = lexer.at;
        line += source.get(counted..start).unwrap_or("").matches('\n').count();
        counted = start;
        lexer.next(&mut |piece| out.push((line, piece)))?;
    }
    Ok(out)
}

impl<'a> Lexer<'a> {
    fn rest(&self) -> &'a str {
        self.source.get(self.at..).unwrap_or("")
    }

    fn err(&self, what: &str) -> Error {
        broken(self.source, self.at, what)
    }

    fn skip_space(&mut self) {
        let rest = self.rest();
        self.at += rest.len() - rest.trim_start_matches(is_space).len();
    }

    fn skip(&mut self, prefix: &str) -> bool {
        let found = self.rest().starts_with(prefix);
        if found {
            self.at += prefix.len();
        }
        found
    }

    /// Text up to the next tag, and that tag.
    fn next(&mut self, push: &mut dyn FnMut(Piece)) -> Result<()> {
        let rest = self.rest();
        let tag = rest
            .match_indices('{')
            .map(|(i, _)| i)
            .find(|&i| matches!(rest.as_bytes().get(i + 1), Some(b'{' | b'%' | b'#')));
        let Some(tag) = tag else {
            push(Piece::Text(rest.to_owned()));
            self.at = self.source.len();
            return Ok(());
        };
        let kind = rest.as_bytes().get(tag + 1).copied().unwrap_or(0);
        let starts_line = self.at == 0 || self.source.as_bytes().get(self.at - 1) == Some(&b'\n');
        let text = rest.get(..tag).unwrap_or("");
        self.at += tag + 2;
        let sign = self.sign();
        push(Piece::Text(before_tag(text, sign, kind, starts_line).to_owned()));
        match kind {
            b'#' => self.comment(),
            b'{' => {
                push(Piece::Output(self.tokens("}}")?));
                Ok(())
            }
            _ => self.statement(push),
        }
    }

    fn sign(&mut self) -> Option<u8> {
        let sign = self.rest().bytes().next().filter(|c| matches!(c, b'-' | b'+'));
        self.at += sign.is_some() as usize;
        sign
    }

    fn comment(&mut self) -> Result<()> {
        let Some(end) = self.rest().find("#}") else { return Err(self.err("a comment does not end")) };
        let sign = self.rest().as_bytes().get(end.wrapping_sub(1)).copied();
        self.at += end + 2;
        self.after_block(sign);
        Ok(())
    }

    /// `-%}` eats all space that follows, a plain `%}` one newline.
    fn after_block(&mut self, sign: Option<u8>) {
        match sign {
            Some(b'-') => self.skip_space(),
            Some(b'+') => {}
            _ => {
                self.skip("\n");
            }
        }
    }

    fn statement(&mut self, push: &mut dyn FnMut(Piece)) -> Result<()> {
        let here = self.at;
        self.skip_space();
        if self.skip("raw") {
            self.skip_space();
            let trim = self.skip("-");
            if self.skip("%}") {
                if trim {
                    self.skip_space();
                }
                return self.raw(push);
            }
        }
        self.at = here;
        push(Piece::Statement(self.tokens("%}")?));
        Ok(())
    }

    fn raw(&mut self, push: &mut dyn FnMut(Piece)) -> Result<()> {
        let start = self.at;
        let rest = self.rest();
        for (open, _) in rest.match_indices("{%") {
            self.at = start + open + 2;
            let sign = self.sign();
            self.skip_space();
            if !self.skip("endraw") {
                continue;
            }
            self.skip_space();
            let end = self.sign();
            if self.skip("%}") {
                let text = rest.get(..open).unwrap_or("");
                push(Piece::Text(before_tag(text, sign, b'%', false).to_owned()));
                self.after_block(end);
                return Ok(());
            }
        }
        Err(self.err("{% raw %} does not end"))
    }

    /// The tokens up to `close`, which does not count inside brackets.
    fn tokens(&mut self, close: &str) -> Result<Vec<Token>> {
        let (mut tokens, mut open) = (Vec::new(), Vec::new());
        loop {
            self.skip_space();
            if open.is_empty() {
                let here = self.at;
                let sign = self.sign();
                if self.skip(close) {
                    match (close, sign) {
                        ("%}", sign) => self.after_block(sign),
                        (_, Some(b'-')) => self.skip_space(),
                        _ => {}
                    }
                    return Ok(tokens);
                }
                self.at = here;
            }
            let token = self.token()?;
            match token {
                Token::Op(op @ ("(" | "[" | "{")) => open.push(op),
                Token::Op(op @ (")" | "]" | "}")) => {
                    let pair = [open.pop().unwrap_or(" "), op].concat();
                    if !["()", "[]", "{}"].contains(&pair.as_str()) {
                        return Err(self.err(&format!("unexpected '{op}'")));
                    }
                }
                _ => {}
            }
            tokens.push(token);
        }
    }

    fn token(&mut self) -> Result<Token> {
        let rest = self.rest();
        let Some(first) = rest.chars().next() else { return Err(self.err("a tag does not end")) };
        if first == '"' || first == '\'' {
            return self.string(first);
        }
        if first.is_ascii_digit() {
            return self.number();
        }
        if first.is_ascii_alphabetic() || first == '_' {
            let len = rest.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(rest.len());
            self.at += len;
            return Ok(Token::Name(rest.get(..len).unwrap_or("").to_owned()));
        }
        match OPERATORS.iter().find(|op| rest.starts_with(**op)) {
            Some(op) => {
                self.at += op.len();
                Ok(Token::Op(op))
            }
            None => Err(self.err(&format!("unexpected character {first:?}"))),
        }
    }

    fn string(&mut self, quote: char) -> Result<Token> {
        let body = self.rest().get(1..).unwrap_or("");
        let mut escaped = false;
        let end = body.char_indices().find(|&(_, c)| {
            let ends = c == quote && !escaped;
            escaped = c == '\\' && !escaped;
            ends
        });
        let Some((end, _)) = end else { return Err(self.err("a string does not end")) };
        self.at += end + 2;
        match unescape(body.get(..end).unwrap_or("")) {
            Some(text) => Ok(Token::Str(text)),
            None => Err(self.err("a string has a malformed escape")),
        }
    }

    /// Digits, `_` between them, a fraction, an exponent; `0x`, `0o`, `0b`.
    fn number(&mut self) -> Result<Token> {
        let rest = self.rest();
        let bytes = rest.as_bytes();
        let digit = |i: usize| bytes.get(i).is_some_and(u8::is_ascii_digit);
        let radix = match rest.get(..2) {
            Some("0x" | "0X") => 16,
            Some("0o" | "0O") => 8,
            Some("0b" | "0B") => 2,
            _ => 10,
        };
        if radix != 10 {
            let body: String = rest.chars().skip(2).take_while(|c| c.is_digit(radix) || *c == '_').collect();
            self.at += 2 + body.len();
            let value = i128::from_str_radix(&body.replace('_', ""), radix);
            return value.map(|v| Token::Number(v.to_string())).map_err(|_| self.err("a malformed number"));
        }
        let run = |mut i: usize| {
            while digit(i) || (bytes.get(i) == Some(&b'_') && digit(i + 1)) {
                i += 1;
            }
            i
        };
        let mut end = run(0);
        if bytes.get(end) == Some(&b'.') && digit(end + 1) {
            end = run(end + 1);
        }
        if matches!(bytes.get(end), Some(b'e' | b'E')) {
            let sign = matches!(bytes.get(end + 1), Some(b'+' | b'-')) as usize;
            if digit(end + 1 + sign) {
                end = run(end + 1 + sign);
            }
        }
        self.at += end;
        Ok(Token::Number(rest.get(..end).unwrap_or("").replace('_', "")))
    }
}

/// What is left of the text before a tag: `-` takes its trailing space; without `+`, a block or comment
/// takes the space between the start of its line and itself.
fn before_tag(text: &str, sign: Option<u8>, kind: u8, starts_line: bool) -> &str {
    if sign == Some(b'-') {
        return text.trim_end_matches(is_space);
    }
    if sign.is_none() && kind != b'{' {
        let line = text.rfind('\n').map_or(0, |i| i + 1);
        let indent = text.get(line..).unwrap_or("");
        if (line > 0 || starts_line) && indent.chars().all(is_space) {
            return text.get(..line).unwrap_or("");
        }
    }
    text
}

/// Python's string escapes (`\N{...}` is not known).
fn unescape(text: &str) -> Option<String> {
    let mut out = String::with_capacity(text.len());
    let mut chars = text.chars();
    while let Some(c) = chars.next() {
        if c != '\\' {
            out.push(c);
            continue;
        }
        match chars.next()? {
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'b' => out.push('\x08'),
            'f' => out.push('\x0c'),
            'v' => out.push('\x0b'),
            'a' => out.push('\x07'),
            '\n' => {}
            c @ ('\\' | '\'' | '"') => out.push(c),
            'x' => out.push(code(&mut chars, 2)?),
            'u' => out.push(code(&mut chars, 4)?),
            'U' => out.push(code(&mut chars, 8)?),
            c @ '0'..='7' => {
                let mut value = c.to_digit(8)?;
                for _ in 0..2 {
                    let Some(next) = chars.clone().next().and_then(|c| c.to_digit(8)) else { break };
                    value = value * 8 + next;
                    chars.next();
                }
                out.push(char::from_u32(value)?);
            }
            c => out.extend(['\\', c]),
        }
    }
    Some(out)
}

fn code(chars: &mut std::str::Chars<'_>, n: usize) -> Option<char> {
    let digits: String = chars.by_ref().take(n).collect();
    char::from_u32(u32::from_str_radix(&digits, 16).ok().filter(|_| digits.len() == n)?)
}
