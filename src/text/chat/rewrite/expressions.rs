//! Expressions, from the loosest binding to the tightest. Each method reads one level of Jinja2's grammar and
//! returns it rewritten, as text that needs no parentheses around it.

use super::{Parser, quoted, shown};
use crate::error::Result;
use crate::text::chat::lexer::Token;
use crate::text::chat::limits::{DEPTH, SOURCE_BYTES};

impl Parser {
    pub(super) fn deeper(&mut self) -> Result<()> {
        self.depth += 1;
        if self.depth > DEPTH / 4 { Err(self.err("expressions are nested too deep")) } else { Ok(()) }
    }

    pub(super) fn tuple(&mut self, conditional: bool) -> Result<String> {
        let first = if conditional { self.expr()? } else { self.or()? };
        if !self.is_op(",") {
            return Ok(first);
        }
        let mut items = vec![first];
        while self.op(",") {
            if self.peek().is_none() || self.is_op(")") || self.is_op("=") {
                break;
            }
            items.push(if conditional { self.expr()? } else { self.or()? });
        }
        Ok(format!("none|o_tuple({})", items.join(", ")))
    }

    pub(super) fn expr(&mut self) -> Result<String> {
        self.deeper()?;
        let mut value = self.or()?;
        while self.name("if") {
            let condition = self.or()?;
            value = match self.name("else") {
                true => format!("({value} if {condition} else {})", self.expr()?),
                false => format!("({value} if {condition})"),
            };
        }
        self.depth -= 1;
        Ok(value)
    }

    fn or(&mut self) -> Result<String> {
        let mut terms = vec![self.and()?];
        while self.name("or") {
            self.link()?;
            terms.push(self.and()?);
        }
        Ok(joined(terms, " or "))
    }

    fn and(&mut self) -> Result<String> {
        let mut terms = vec![self.not()?];
        while self.name("and") {
            self.link()?;
            terms.push(self.not()?);
        }
        Ok(joined(terms, " and "))
    }

    fn not(&mut self) -> Result<String> {
        if !self.name("not") {
            return self.comparison();
        }
        self.deeper()?;
        let value = self.not()?;
        self.depth -= 1;
        Ok(format!("(not {value})"))
    }

    fn comparison(&mut self) -> Result<String> {
        const OPS: [(&str, &str); 6] =
            [("==", "eq"), ("!=", "ne"), (">=", "ge"), ("<=", "le"), (">", "gt"), ("<", "lt")];
        let mut left = self.sum()?;
        let mut terms = Vec::new();
        loop {
            let not = self.is_name("not")
                && matches!(self.tokens.get(self.at + 1), Some(Token::Name(name)) if name == "in");
            self.at += not as usize;
            let op = if self.name("in") { Some("in") } else { self.one_of(&OPS) };
            let Some(op) = op else { break };
            self.link()?;
            let right = self.sum()?;
            let term = format!("{left}|o_{op}({right})");
            terms.push(if not { format!("(not {term})") } else { term });
            // `a < b < c` writes b twice.
            self.grown += if terms.len() > 1 { left.len() } else { 0 };
            if self.grown > SOURCE_BYTES {
                return Err(self.err("comparisons are chained too far"));
            }
            left = right;
        }
        Ok(if terms.is_empty() { left } else { joined(terms, " and ") })
    }

    fn chain(
        &mut self,
        ops: &[(&'static str, &'static str)],
        next: fn(&mut Self) -> Result<String>,
    ) -> Result<String> {
        let mut left = next(self)?;
        while let Some(op) = self.one_of(ops) {
            self.link()?;
            left.push_str(&format!("|o_{op}({})", next(self)?));
        }
        Ok(left)
    }

    fn sum(&mut self) -> Result<String> {
        self.chain(&[("+", "add"), ("-", "sub")], Self::concatenation)
    }

    fn concatenation(&mut self) -> Result<String> {
        self.chain(&[("~", "cat")], Self::product)
    }

    fn product(&mut self) -> Result<String> {
        self.chain(&[("*", "mul"), ("/", "div"), ("//", "floordiv"), ("%", "mod")], Self::power)
    }

    fn power(&mut self) -> Result<String> {
        self.chain(&[("**", "pow")], |p| p.unary(true))
    }

    fn unary(&mut self, filters: bool) -> Result<String> {
        let sign = self.one_of(&[("-", "neg"), ("+", "pos")]);
        let value = match sign {
            Some(sign) => {
                self.deeper()?;
                let value = self.unary(false)?;
                self.depth -= 1;
                format!("{value}|o_{sign}")
            }
            None => self.primary()?,
        };
        let value = self.postfix(value)?;
        if filters { self.filters(value) } else { Ok(value) }
    }

    fn primary(&mut self) -> Result<String> {
        let Some(token) = self.peek().cloned() else { return Err(self.err("expected an expression")) };
        self.at += 1;
        match token {
            Token::Name(name) => Ok(match name.as_str() {
                "True" | "true" => "true".to_owned(),
                "False" | "false" => "false".to_owned(),
                "None" | "none" => "none".to_owned(),
                "and" | "or" | "not" | "if" | "else" | "in" | "is" => {
                    return Err(self.err(&format!("unexpected '{name}'")));
                }
                _ => name,
            }),
            Token::Number(number) => Ok(number),
            Token::Str(mut text) => {
                while let Some(Token::Str(more)) = self.peek() {
                    text.push_str(more);
                    self.at += 1;
                }
                Ok(quoted(&text))
            }
            Token::Op("(") => {
                if self.op(")") {
                    return Ok("none|o_tuple".to_owned());
                }
                let inner = self.tuple(true)?;
                self.expect(")")?;
                Ok(format!("({inner})"))
            }
            Token::Op("[") => Ok(format!("none|o_list({})", self.items("]", false)?)),
            Token::Op("{") => Ok(format!("none|o_dict({})", self.items("}", true)?)),
            token => Err(self.err(&format!("unexpected {}", shown(&token)))),
        }
    }

    fn items(&mut self, close: &str, pairs: bool) -> Result<String> {
        let mut items = Vec::new();
        while !self.op(close) {
            items.push(self.expr()?);
            if pairs {
                self.expect(":")?;
                items.push(self.expr()?);
            }
            if !self.op(",") {
                self.expect(close)?;
                break;
            }
        }
        Ok(items.join(", "))
    }

    fn postfix(&mut self, mut value: String) -> Result<String> {
        loop {
            if self.is_op(".") || self.is_op("[") || self.is_op("(") {
                self.link()?;
            }
            if self.op(".") {
                value = self.attribute(value)?;
            } else if self.op("[") {
                value = self.subscript(value)?;
            } else if self.is_op("(") {
                let callee = if is_identifier(&value) { value } else { format!("({value})") };
                value = format!("{callee}({})", self.arguments()?);
            } else {
                return Ok(value);
            }
        }
    }

    fn attribute(&mut self, value: String) -> Result<String> {
        if let Some(Token::Number(index)) = self.peek().cloned() {
            self.at += 1;
            return Ok(format!("{value}|o_item({index})"));
        }
        let name = self.any_name()?;
        if self.is_op("(") {
            let arguments = self.arguments()?;
            let comma = if arguments.is_empty() { "" } else { ", " };
            return Ok(format!("{value}|o_call({}{comma}{arguments})", quoted(&name)));
        }
        let value = if value.ends_with(|c: char| c.is_ascii_digit()) { format!("({value})") } else { value };
        Ok(if value.contains('|') { format!("({value}).{name}") } else { format!("{value}.{name}") })
    }

    fn subscript(&mut self, value: String) -> Result<String> {
        let mut parts = [None, None, None];
        let mut part = 0;
        while !self.is_op("]") {
            if self.op(":") {
                part += 1;
                continue;
            }
            match parts.get_mut(part) {
                Some(slot @ None) => *slot = Some(self.tuple(true)?),
                _ => return Err(self.err("a malformed subscript")),
            }
        }
        self.expect("]")?;
        let [start, stop, step] = parts.map(|part| part.unwrap_or_else(|| "none".to_owned()));
        match part {
            0 => Ok(format!("{value}|o_item({start})")),
            _ => Ok(format!("{value}|o_slice({start}, {stop}, {step})")),
        }
    }

    fn arguments(&mut self) -> Result<String> {
        self.expect("(")?;
        let mut items = Vec::new();
        while !self.op(")") {
            let keyword =
                matches!(self.tokens.get(self.at..self.at + 2), Some([Token::Name(_), Token::Op("=")]));
            items.push(if self.op("**") {
                format!("**{}", self.expr()?)
            } else if self.op("*") {
                format!("*{}", self.expr()?)
            } else if keyword {
                let name = self.any_name()?;
                self.expect("=")?;
                format!("{name}={}", self.expr()?)
            } else {
                self.expr()?
            });
            if !self.op(",") {
                self.expect(")")?;
                break;
            }
        }
        Ok(items.join(", "))
    }

    pub(super) fn filter_name_and_arguments(&mut self) -> Result<String> {
        let name = self.any_name()?;
        let arguments = if self.is_op("(") { self.arguments()? } else { String::new() };
        Ok(format!("f_{name}({arguments})"))
    }

    fn filters(&mut self, mut value: String) -> Result<String> {
        loop {
            if self.is_op("|") || self.is_name("is") {
                self.link()?;
            }
            if self.op("|") {
                value = format!("{value}|{}", self.filter_name_and_arguments()?);
            } else if self.name("is") {
                value = self.test(value)?;
            } else if self.is_op("(") {
                value = format!("({value})({})", self.arguments()?);
            } else {
                return Ok(value);
            }
        }
    }

    fn test(&mut self, value: String) -> Result<String> {
        let not = if self.name("not") { "not " } else { "" };
        let name = self.any_name()?;
        let bare = match self.peek() {
            Some(Token::Name(name)) => {
                !matches!(name.as_str(), "else" | "or" | "and" | "is" | "if" | "in" | "not" | "recursive")
            }
            Some(Token::Str(_) | Token::Number(_) | Token::Op("[" | "{")) => true,
            _ => false,
        };
        let arguments = if self.is_op("(") {
            self.arguments()?
        } else if bare {
            let argument = self.primary()?;
            self.postfix(argument)?
        } else {
            String::new()
        };
        Ok(format!("({not}{value} is t_{name}({arguments}))"))
    }
}

fn joined(mut terms: Vec<String>, with: &str) -> String {
    match terms.len() {
        1 => terms.pop().unwrap_or_default(),
        _ => format!("({})", terms.join(with)),
    }
}

fn is_identifier(text: &str) -> bool {
    text.chars().all(|c| c.is_ascii_alphanumeric() || c == '_')
}
