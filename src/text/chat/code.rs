//! A template compiled by minijinja, with every operator turned into a call of ours.
//!
//! minijinja reads Jinja2's language, but its fuel counts instructions and not what one of them does: a
//! string that is doubled forty times, `'a' in` sixteen megabytes, or a list compared with itself a million
//! times stay within any fuel. No hook of its public interface sees operators. So its compiler's output is
//! taken (`minijinja::machinery`), and each instruction that builds, copies or searches values is replaced by
//! the call of a filter of the same name (`operators`), which charges what it does before it does it, and
//! follows Python where minijinja does not. The names are no identifiers, so no template can write them.
//!
//! `machinery` has no stable interface, hence the exact version in Cargo.toml, and a `match` without a
//! wildcard: an update that adds an instruction does not compile before someone has read what it does.

use std::collections::{BTreeMap, BTreeSet};

use minijinja::machinery::{CodeGenerator, Instruction, Instructions, Span, Token, Tokenizer, parse};
use minijinja::syntax::SyntaxConfig;
use minijinja::{AutoEscape, Environment, Error as Fault, Value, machinery};

use super::limits::SOURCE_BYTES;
use super::values;
use crate::error::{Error, PARAGRAPH, Result, shortened};

/// Operators, names and brackets in one tag, for the compiler recurses over them; and `elif` within `elif`.
const LINKS: usize = 500;
const BRANCHES: usize = 150;

/// The number 1, and a function that gives back its argument: see [`Scan::operator`].
pub const ONE: &str = "__one";
pub const SAME: &str = "__same";

self_cell::self_cell!(
    /// The text that minijinja compiled, and what it made of it.
    pub struct Code {
        owner: String,
        #[covariant]
        dependent: Compiled,
    }
);

struct Compiled<'a> {
    instructions: Instructions<'a>,
}

impl Code {
    /// # Errors
    /// `Template` with the line for what is no Jinja2, and for what chat templates have no use for.
    pub fn compiled(source: &str) -> Result<Code> {
        Code::try_new(prepared(source)?, |text| {
            let tree = parse(text, "chat", syntax()).map_err(|e| unread(&e))?;
            let mut generator = CodeGenerator::new("chat", text);
            generator.compile_stmt(&tree);
            Ok(Compiled { instructions: guarded(&generator.finish().0, text)? })
        })
    }

    /// Runs it.
    pub fn run(&self, env: &Environment<'static>, context: Value) -> std::result::Result<String, Fault> {
        let (mut text, blocks) = (String::new(), BTreeMap::new());
        let mut out = machinery::make_string_output(&mut text);
        let instructions = &self.borrow_dependent().instructions;
        machinery::eval(env, instructions, context, &blocks, &mut out, AutoEscape::None)?;
        Ok(text)
    }

    /// The names that it reads from outside: those that minijinja finds, and names that are read before they
    /// are set, which it takes for set (`{% set x = x | default(1) %}`).
    pub fn variables(&self, env: &Environment<'static>) -> std::result::Result<BTreeSet<String>, Fault> {
        let mut env = env.clone();
        env.set_syntax(syntax());
        let mut found: BTreeSet<String> =
            env.template_from_str(self.borrow_owner())?.undeclared_variables(false).into_iter().collect();
        let (mut early, mut set, mut macros) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
        let code = &self.borrow_dependent().instructions;
        for instruction in (0..).map_while(|at| code.get(at)) {
            match instruction {
                Instruction::Lookup(name) if !set.contains(name) => {
                    early.insert(*name);
                }
                Instruction::StoreLocal(name) => {
                    set.insert(*name);
                }
                Instruction::BuildMacro(name, ..) => {
                    macros.insert(*name);
                }
                _ => {}
            }
        }
        found.extend(
            early.iter().filter(|n| set.contains(*n) && !macros.contains(*n)).map(|n| (*n).to_owned()),
        );
        found.retain(|name| !env.globals().any(|(global, _)| global == name));
        Ok(found)
    }
}

fn syntax() -> SyntaxConfig {
    let mut builder = SyntaxConfig::builder();
    builder.trim_blocks(true).lstrip_blocks(true);
    builder.build().unwrap_or_default()
}

fn malformed(line: Option<usize>, what: &dyn std::fmt::Display) -> Error {
    let line = line.map_or_else(String::new, |line| format!(" at line {line}"));
    Error::template(format!("the chat template is malformed{line}: {}", shortened(what, PARAGRAPH)))
}

fn unread(e: &Fault) -> Error {
    malformed(e.line(), &e.detail().map_or_else(|| e.kind().to_string(), str::to_owned))
}

/// The source as minijinja takes it: line ends as Jinja2 reads them, and [`Scan`]'s changes, which keep every
/// line where it is.
fn prepared(source: &str) -> Result<String> {
    if source.len() > SOURCE_BYTES {
        return Err(Error::template(format!(
            "the chat template has {} bytes; the limit is {SOURCE_BYTES}",
            source.len()
        )));
    }
    let source = source.replace("\r\n", "\n").replace('\r', "\n");
    let mut scan = Scan::default();
    let mut tokens = Tokenizer::new(&source, "chat", false, syntax());
    let mut next = || tokens.next_token().map_err(|e| unread(&e));
    let mut ahead = next()?;
    while let Some((token, span)) = ahead {
        ahead = next()?;
        let raw = source.get(span.start_offset as usize..span.end_offset as usize).unwrap_or_default();
        scan.token(&token, raw, ahead.as_ref(), span)?;
    }
    let (mut out, mut from) = (String::with_capacity(source.len()), 0);
    scan.edits.sort_by_key(|(at, ..)| *at);
    scan.edits.dedup();
    for (at, end, text) in scan.edits {
        out.push_str(source.get(from..at).unwrap_or_default());
        out.push_str(text);
        from = end;
    }
    out.push_str(source.get(from..).unwrap_or_default());
    Ok(out)
}

/// One look at the tokens before they are parsed.
#[derive(Default)]
struct Scan {
    /// From, to, and what stands there instead.
    edits: Vec<(usize, usize, &'static str)>,
    /// Tokens of this tag so far, and the word it starts with.
    count: usize,
    tag: String,
    /// Whether a value ends here that may be a constant.
    constant: bool,
    /// Where it stands, if it is one token.
    literal: Option<Span>,
    /// Names that a `with` has set.
    with: Vec<String>,
    /// Branches of each open `if`.
    branches: Vec<usize>,
}

const TAGS: &str = "if elif else endif for endfor break continue set endset macro endmacro call endcall \
                    filter endfilter with endwith generation endgeneration raw";

impl Scan {
    fn token(
        &mut self,
        token: &Token<'_>,
        raw: &str,
        ahead: Option<&(Token<'_>, Span)>,
        span: Span,
    ) -> Result<()> {
        let next = ahead.map(|(token, _)| token);
        let err = |what: &str| Err(malformed(Some(usize::from(span.start_line)), &what));
        self.count += 1;
        match token {
            Token::VariableStart | Token::BlockStart => {
                (self.count, self.tag) = (0, String::new());
                self.with.clear();
                if let (Token::BlockStart, Some(Token::Ident(tag))) = (token, next) {
                    self.tag = (*tag).to_owned();
                    return self.block(&err);
                }
            }
            Token::Ident(name) if self.count == 1 && self.tag == *name => match *name {
                "generation" => self.edit(span, "with"),
                "endgeneration" => self.edit(span, "endwith"),
                _ => {}
            },
            // Jinja2 evaluates all values first, minijinja one after the other.
            Token::Ident(name) if self.tag == "with" && matches!(next, Some(Token::Assign)) => {
                self.with.push((*name).to_owned());
            }
            Token::Ident(name)
                if self.with.split_last().is_some_and(|(_, set)| set.iter().any(|s| s == name)) =>
            {
                return err(&format!("'{name}' is set and read in one with; give it a with of its own"));
            }
            Token::Mul
            | Token::Plus
            | Token::Tilde
            | Token::Lt
            | Token::Lte
            | Token::Gt
            | Token::Gte
            | Token::Ident("in")
                if self.constant =>
            {
                self.operator(token, ahead, span);
            }
            // minijinja leaves them as they are.
            Token::String(_) if escapes(raw) => {
                return err(
                    "of the escapes in a text, \\a, \\v, \\U, \\N and one at the end of a line are not read",
                );
            }
            _ => {}
        }
        if self.count > LINKS && !matches!(token, Token::TemplateData(_)) {
            return err("an expression is too long");
        }
        self.literal = literal(token).then_some(span);
        self.constant =
            literal(token) || matches!(token, Token::ParenClose | Token::BracketClose | Token::BraceClose);
        Ok(())
    }

    fn wrapped(&mut self, literal: Option<Span>) {
        let Some(span) = literal else { return };
        self.edits.push((span.start_offset as usize, span.start_offset as usize, "__same("));
        self.edits.push((span.end_offset as usize, span.end_offset as usize, ")"));
    }

    fn edit(&mut self, span: Span, text: &'static str) {
        self.edits.push((span.start_offset as usize, span.end_offset as usize, text));
    }

    /// minijinja computes what stands between constants when it compiles, by its own rules, and up to a
    /// hundred megabytes for each `'a' * 99999999`. A call or a variable between them keeps it from that.
    fn operator(&mut self, token: &Token<'_>, ahead: Option<&(Token<'_>, Span)>, span: Span) {
        match ahead {
            Some((token, next)) if literal(token) => self.wrapped(Some(*next)),
            Some((Token::Ident(_), _)) => {}
            _ if matches!(token, Token::Mul) => self.edit(span, "* __one *"),
            _ => self.wrapped(self.literal),
        }
    }

    fn block(&mut self, err: &dyn Fn(&str) -> Result<()>) -> Result<()> {
        match self.tag.as_str() {
            "if" => self.branches.push(1),
            "elif" => *self.branches.last_mut().unwrap_or(&mut 0) += 1,
            "endif" => drop(self.branches.pop()),
            tag if !TAGS.split_whitespace().any(|known| known == tag) => {
                return err(&format!("unknown tag '{tag}'"));
            }
            _ => {}
        }
        if self.branches.iter().sum::<usize>() > BRANCHES { err("too many elif") } else { Ok(()) }
    }
}

fn literal(token: &Token<'_>) -> bool {
    match token {
        Token::Ident(name) => ["none", "None", "true", "True", "false", "False"].contains(name),
        token => matches!(
            token,
            Token::Str(_) | Token::String(_) | Token::Int(_) | Token::Int128(_) | Token::Float(_)
        ),
    }
}

fn escapes(raw: &str) -> bool {
    let plain = raw.replace("\\\\", "");
    ["\\a", "\\v", "\\U", "\\N", "\\\n"].iter().any(|escape| plain.contains(escape))
}

/// No place in the interpreter's cache of filters: the compiler gave those out.
const UNCACHED: u8 = !0;

fn call(name: &'static str, arguments: u16) -> Instruction<'static> {
    Instruction::ApplyFilter(name, Some(arguments), UNCACHED)
}

/// The instructions with our calls, and the jumps set to where their targets went.
fn guarded<'a>(code: &Instructions<'a>, source: &'a str) -> Result<Instructions<'a>> {
    let (mut out, mut places) = (Instructions::new("chat", source), Vec::new());
    let mut next = 0;
    for at in 0.. {
        places.push(next);
        let Some(instruction) = code.get(at) else { break };
        for instruction in replaced(instruction).map_err(|what| malformed(code.get_line(at), &what))? {
            next = 1 + match (code.get_span(at), code.get_line(at)) {
                (Some(span), _) => out.add_with_span(instruction, span),
                (None, line) => {
                    out.add_with_line(instruction, line.and_then(|l| l.try_into().ok()).unwrap_or(0))
                }
            };
        }
    }
    for at in 0..next {
        if let Some(
            Instruction::Iterate(target)
            | Instruction::Jump(target)
            | Instruction::JumpIfFalse(target)
            | Instruction::JumpIfFalseOrPop(target)
            | Instruction::JumpIfTrueOrPop(target)
            | Instruction::BuildMacro(_, target, _),
        ) = out.get_mut(at)
        {
            *target = places.get(*target as usize).copied().unwrap_or(next);
        }
    }
    Ok(out)
}

/// Methods of a dict, which Jinja2 prefers to its keys where a name follows a dot.
const METHODS: [&str; 8] = ["items", "keys", "values", "get", "pop", "update", "copy", "clear"];

/// What runs in place of an instruction.
fn replaced<'a>(instruction: &Instruction<'a>) -> std::result::Result<Vec<Instruction<'a>>, String> {
    use Instruction as I;
    let built = |name: &'static str, count: usize| match u16::try_from(count) {
        Ok(count) => Ok(vec![call(name, count)]),
        Err(_) => Err("a list of more than 65535 items".to_owned()),
    };
    let kept = || Ok(vec![instruction.clone()]);
    let refused = |what: &str| Err(format!("{what}, which no chat template needs"));
    match instruction {
        // As an output, so that it is charged: a loop may write it often.
        I::EmitRaw(text) => Ok(vec![I::LoadConst(Value::from(*text)), I::Emit]),
        I::LoadConst(value) => Ok(vec![I::LoadConst(values::adopted(value).map_err(|e| e.to_string())?)]),
        I::GetItem => Ok(vec![call("[]", 2)]),
        I::GetAttr(name) if METHODS.contains(name) => {
            Ok(vec![I::LoadConst(Value::from(*name)), call(".", 2)])
        }
        I::Slice => Ok(vec![call("[:]", 4)]),
        I::BuildMap(pairs) => built("{}", pairs * 2),
        I::BuildList(Some(items)) => built("list[]", *items),
        I::BuildList(None) => Ok(vec![I::ApplyFilter("list[]", None, UNCACHED)]),
        I::BuildTuple(Some(items)) => built("tuple()", *items),
        I::Add => Ok(vec![call("+", 2)]),
        I::Mul => Ok(vec![call("*", 2)]),
        I::StringConcat => Ok(vec![call("~", 2)]),
        I::Eq => Ok(vec![call("==", 2)]),
        I::Ne => Ok(vec![call("!=", 2)]),
        I::Gt => Ok(vec![call(">", 2)]),
        I::Gte => Ok(vec![call(">=", 2)]),
        I::Lt => Ok(vec![call("<", 2)]),
        I::Lte => Ok(vec![call("<=", 2)]),
        I::In => Ok(vec![call("in:", 2)]),
        I::PushLoop(_) => Ok(vec![call("for:", 1), instruction.clone()]),
        // The value lies under the namespace.
        I::SetAttr(_) => Ok(vec![I::Swap, call("set=", 1), I::Swap, instruction.clone()]),
        // Divides by the number of its arguments.
        I::CallMethod("cycle", Some(1)) => refused("cycle() without arguments"),
        // Compares by the interpreter's rules, at whatever cost.
        I::CallMethod("changed", Some(2)) => Ok(vec![call("scalar:", 1), instruction.clone()]),
        I::CallMethod("changed", _) => refused("changed() of more than one value"),
        I::CompareAndPreserve(_) => refused("a chain of comparisons"),
        I::BuildTuple(None) | I::UnpackLists(_) => refused("a call with *"),
        I::PushAutoEscape | I::PopAutoEscape => refused("autoescape"),
        I::FastSuper | I::CallBlock(_) | I::LoadBlocks | I::Include(_) | I::ExportLocals => {
            refused("more than one template")
        }
        // Numbers alone, or nothing that grows.
        I::Sub | I::Div | I::IntDiv | I::Rem | I::Pow | I::Neg | I::Not => kept(),
        I::StoreLocal(_) | I::Lookup(_) | I::GetAttr(_) | I::UnpackList(_) => kept(),
        I::BuildKwargs(_) | I::MergeKwargs(_) => kept(),
        // Filters, tests, functions and methods are ours or charge what they make; output is charged when it
        // is formatted.
        I::ApplyFilter(..)
        | I::PerformTest(..)
        | I::CallFunction(..)
        | I::CallMethod(..)
        | I::CallObject(_) => kept(),
        I::Emit | I::BeginCapture(_) | I::EndCapture => kept(),
        I::PushWith | I::Iterate(_) | I::PushDidNotIterate | I::PopFrame | I::PopLoopFrame => kept(),
        I::Jump(_) | I::JumpIfFalse(_) | I::JumpIfFalseOrPop(_) | I::JumpIfTrueOrPop(_) => kept(),
        I::DupTop | I::DiscardTop | I::Swap | I::FastRecurse => kept(),
        I::BuildMacro(..) | I::Return | I::IsUndefined | I::Enclose(_) | I::GetClosure => kept(),
    }
}
