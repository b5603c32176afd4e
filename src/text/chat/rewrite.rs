//! A template's source, rewritten so that every operator is a call.
//!
//! minijinja runs the template, but its `+`, `*`, `~`, `==`, slices and methods are not Python's, and nothing
//! bounds what they allocate (`'a' * 10**9`; a string doubled forty times). So expressions are parsed here with
//! Jinja2's grammar and precedence, and written again fully in parentheses, with `a + b` as `a|o_add(b)`: a
//! filter of ours, in a namespace that templates cannot reach (their own filters and tests get the prefixes
//! `f_` and `t_`). Statements keep their shape. Line breaks are kept, so that errors name the right line.
//! Source of the grammar: `jinja2/parser.py`.

mod expressions;

use crate::error::{Error, Result};

use super::lexer::{Piece, Token, pieces};
use super::limits::SOURCE_BYTES;

/// Text of this many bytes and more is charged when it is written (a loop may write it often).
const CHARGED_TEXT: usize = 64;
/// Links in the expressions of one tag, and blocks within blocks: the interpreter recurses over both.
const LINKS: usize = 500;
const BLOCKS: usize = 150;

/// A template in the interpreter's terms.
pub struct Rewritten {
    pub text: String,
    /// Names that a `set` or `with` reads and sets in one: `{% set x = x | default(1) %}`.
    pub read_by_own_set: Vec<String>,
}

pub fn rewrite(source: &str) -> Result<Rewritten> {
    if source.len() > SOURCE_BYTES {
        return Err(Error::template(format!(
            "the chat template has {} bytes; the limit is {SOURCE_BYTES}",
            source.len()
        )));
    }
    let mut out = String::with_capacity(source.len() * 2);
    let mut written = 1;
    let mut blocks = Blocks::default();
    let mut read_by_own_set = Vec::new();
    for (line, piece) in pieces(source)? {
        let mut parser =
            Parser { tokens: Vec::new(), at: 0, line, depth: 0, grown: 0, links: 0, own: Vec::new() };
        let gap = "\n".repeat(line.saturating_sub(written));
        let start = out.len();
        match piece {
            Piece::Text(text) if text.is_empty() => continue,
            Piece::Text(text) => out.push_str(&text_tag(&text)),
            Piece::Output(tokens) => {
                parser.tokens = tokens;
                let expr = parser.tuple(true)?;
                parser.end()?;
                out.push_str(&format!("{{{{ {gap}{expr} }}}}"));
            }
            Piece::Statement(tokens) => {
                parser.tokens = tokens;
                let statement = parser.statement()?;
                parser.end()?;
                if !blocks.enter(&statement) {
                    return Err(parser.err("blocks are nested too deep, or there are too many elif"));
                }
                out.push_str(&format!("{{% {gap}{statement} %}}"));
            }
        }
        written += out.get(start..).unwrap_or("").matches('\n').count();
        read_by_own_set.append(&mut parser.own);
    }
    Ok(Rewritten { text: out, read_by_own_set })
}

/// The open blocks; an `elif` is one more level inside its `if`.
#[derive(Default)]
struct Blocks {
    open: Vec<usize>,
    levels: usize,
}

impl Blocks {
    fn enter(&mut self, statement: &str) -> bool {
        let tag = statement.split([' ', '(']).next().unwrap_or("");
        let opens = matches!(tag, "if" | "for" | "macro" | "call" | "filter" | "with" | "block");
        if opens || (tag == "set" && !statement.contains(" = ")) {
            self.open.push(1);
            self.levels += 1;
        } else if tag.starts_with("end") {
            self.levels -= self.open.pop().unwrap_or(0);
        } else if let ("elif", Some(levels)) = (tag, self.open.last_mut()) {
            *levels += 1;
            self.levels += 1;
        }
        self.levels <= BLOCKS
    }
}

fn text_tag(text: &str) -> String {
    let charge = match text.len() {
        n if n >= CHARGED_TEXT => format!("{{{{ {n}|o_data }}}}"),
        _ => String::new(),
    };
    let brace = text.contains("{{") || text.contains("{%") || text.contains("{#") || text.ends_with('{');
    // The interpreter drops one newline at the very end of a source; a tag behind it keeps it.
    let plain = if brace { format!("{{{{ {} }}}}", quoted(text)) } else { text.to_owned() };
    format!("{charge}{plain}{}", if text.ends_with('\n') { "{{ '' }}" } else { "" })
}

fn quoted(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + 2);
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            c => out.push(c),
        }
    }
    out.push('"');
    out
}

struct Parser {
    tokens: Vec<Token>,
    at: usize,
    line: usize,
    depth: u16,
    /// Bytes that chained comparisons have doubled.
    grown: usize,
    /// Operators, filters and subscripts so far: each is a level of the interpreter's tree.
    links: usize,
    /// Names that are set to something that reads them.
    own: Vec<String>,
}

impl Parser {
    fn err(&self, what: &str) -> Error {
        Error::template(format!("the chat template is malformed at line {}: {what}", self.line))
    }

    fn peek(&self) -> Option<&Token> {
        self.tokens.get(self.at)
    }

    fn is_op(&self, op: &str) -> bool {
        matches!(self.peek(), Some(Token::Op(o)) if *o == op)
    }

    fn is_name(&self, name: &str) -> bool {
        matches!(self.peek(), Some(Token::Name(n)) if n == name)
    }

    fn op(&mut self, op: &str) -> bool {
        let found = self.is_op(op);
        self.at += found as usize;
        found
    }

    fn name(&mut self, name: &str) -> bool {
        let found = self.is_name(name);
        self.at += found as usize;
        found
    }

    fn expect(&mut self, op: &str) -> Result<()> {
        if self.op(op) { Ok(()) } else { Err(self.err(&format!("expected '{op}'"))) }
    }

    fn any_name(&mut self) -> Result<String> {
        match self.peek() {
            Some(Token::Name(name)) => {
                let name = name.clone();
                self.at += 1;
                Ok(name)
            }
            _ => Err(self.err("expected a name")),
        }
    }

    fn one_of(&mut self, ops: &[(&'static str, &'static str)]) -> Option<&'static str> {
        let (_, filter) = ops.iter().find(|(op, _)| self.is_op(op))?;
        self.at += 1;
        Some(filter)
    }

    fn end(&self) -> Result<()> {
        match self.peek() {
            None => Ok(()),
            Some(token) => Err(self.err(&format!("unexpected {}", shown(token)))),
        }
    }

    /// Counts a link of a chain such as `a + b + c` or `a|b|c`.
    fn link(&mut self) -> Result<()> {
        self.links += 1;
        if self.links > LINKS { Err(self.err("an expression is too long")) } else { Ok(()) }
    }

    // Statements.

    fn statement(&mut self) -> Result<String> {
        let tag = self.any_name()?;
        match tag.as_str() {
            "if" | "elif" => Ok(format!("{tag} {}", self.tuple(false)?)),
            "else" | "endif" | "endfor" | "endset" | "endmacro" | "endcall" | "endfilter" | "endwith"
            | "break" | "continue" => Ok(tag),
            "endblock" => {
                if self.peek().is_some() {
                    self.any_name()?;
                }
                Ok(tag)
            }
            // Marks the assistant's text for training; a scope of its own, otherwise nothing.
            "generation" => Ok("with".to_owned()),
            "endgeneration" => Ok("endwith".to_owned()),
            "for" => self.for_loop(),
            "set" => self.set(),
            "macro" => Ok(format!("macro {}{}", self.any_name()?, self.parameters()?)),
            "call" => {
                let parameters = if self.is_op("(") { self.parameters()? } else { String::new() };
                Ok(format!("call{parameters} {}", self.expr()?))
            }
            "filter" => {
                let mut chain = String::new();
                loop {
                    chain.push_str(&self.filter_name_and_arguments()?);
                    if !self.op("|") {
                        return Ok(format!("filter {chain}"));
                    }
                    chain.push('|');
                }
            }
            "with" => self.with(),
            "block" => Ok(format!("block {}", self.any_name()?)),
            other => Err(self.err(&format!("unknown tag '{other}'"))),
        }
    }

    fn for_loop(&mut self) -> Result<String> {
        let target = self.target()?;
        if !self.name("in") {
            return Err(self.err("expected 'in'"));
        }
        let over = self.tuple(false)?;
        let mut out = format!("for {target} in {over}|o_iter");
        if self.name("if") {
            out = format!("{out} if {}", self.expr()?);
        }
        if self.name("recursive") {
            out.push_str(" recursive");
        }
        Ok(out)
    }

    /// Names to assign to: `a`, `a, b`, `(a, (b, c))`, `ns.a`.
    fn target(&mut self) -> Result<String> {
        let mut out = String::new();
        loop {
            if self.op("(") {
                self.deeper()?;
                out.push_str(&format!("({})", self.target()?));
                self.depth -= 1;
                self.expect(")")?;
            } else {
                out.push_str(&self.any_name()?);
                while self.op(".") {
                    out.push('.');
                    out.push_str(&self.any_name()?);
                }
            }
            if !self.op(",") {
                return Ok(out);
            }
            out.push_str(", ");
            if self.is_op(")") || self.is_op("=") || self.is_name("in") {
                return Ok(out);
            }
        }
    }

    fn set(&mut self) -> Result<String> {
        let target = self.target()?;
        if self.op("=") {
            let from = self.at;
            let value = self.tuple(true)?;
            self.note_own(&target, from);
            let store = if target.contains('.') { "|o_store" } else { "" };
            return Ok(format!("set {target} = {value}{store}"));
        }
        let mut out = format!("set {target}");
        while self.op("|") {
            let filter = self.filter_name_and_arguments()?;
            out.push_str(&format!(" | {filter}"));
        }
        Ok(out)
    }

    /// Notes a name that the value it is set to, from that token on, reads.
    fn note_own(&mut self, name: &str, from: usize) {
        let value = self.tokens.get(from..self.at).unwrap_or_default();
        let reads = value.iter().enumerate().any(|(at, token)| {
            let attribute = at > 0 && matches!(value.get(at - 1), Some(Token::Op(".")));
            matches!(token, Token::Name(read) if read == name) && !attribute
        });
        if reads {
            self.own.push(name.to_owned());
        }
    }

    /// All values are evaluated before any name is set, hence one assignment to all names.
    fn with(&mut self) -> Result<String> {
        let (mut names, mut values) = (Vec::new(), Vec::new());
        while self.peek().is_some() {
            let name = self.any_name()?;
            self.expect("=")?;
            let from = self.at;
            values.push(self.expr()?);
            self.note_own(&name, from);
            names.push(name);
            if !self.op(",") {
                break;
            }
        }
        Ok(match (&names[..], &values[..]) {
            ([], _) => "with".to_owned(),
            ([name], [value]) => format!("with {name} = {value}"),
            _ => format!("with ({}) = none|o_pack({})", names.join(", "), values.join(", ")),
        })
    }

    fn parameters(&mut self) -> Result<String> {
        self.expect("(")?;
        let mut names = Vec::new();
        while !self.op(")") {
            let name = self.any_name()?;
            let default = if self.op("=") { format!(" = {}", self.expr()?) } else { String::new() };
            names.push(name + &default);
            if !self.op(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(format!("({})", names.join(", ")))
    }
}

fn shown(token: &Token) -> String {
    match token {
        Token::Name(text) | Token::Number(text) => format!("'{text}'"),
        Token::Str(text) => format!("{text:?}"),
        Token::Op(op) => format!("'{op}'"),
    }
}
