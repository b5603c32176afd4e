//! What ARCHITECTURE.md claims of the source, held by reading it: the order of modules, a core without
//! Python, where `unsafe` may stand and that each has its reason, and sizes. Of Rust's syntax only comments
//! and strings are known: a rule that needs more is too fine.

use std::path::{Path, PathBuf};

/// Columns of a line, and lines of a file of the core without its tests.
const COLUMNS: usize = 110;
const LINES: usize = 700;

/// Where `unsafe` may stand.
const UNSAFE: [&str; 2] = ["src/kernels/", "src/weights/bytes.rs"];

/// A file: its path from the root, and its lines.
struct File {
    path: String,
    lines: Vec<Line>,
}

/// A line as it is, its code without comments and strings, and whether it has (some of) a string.
struct Line {
    text: String,
    code: String,
    string: bool,
}

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn files(folders: &[&str], ending: &str) -> Vec<File> {
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root().join(folder)).collect();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.to_string_lossy().ends_with(ending) {
                let path = entry.strip_prefix(root()).unwrap().to_string_lossy().replace('\\', "/");
                files.push(File { path, lines: lines(&std::fs::read_to_string(&entry).unwrap()) });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

/// Tells code from comments and strings.
fn lines(text: &str) -> Vec<Line> {
    // What ends the string that is open: a quote, behind as many # as a raw string began with.
    let mut end: Option<String> = None;
    let of_line = |text: &str| {
        let (mut code, mut rest, mut string) = (String::new(), text, end.is_some());
        while let Some(next) = rest.chars().next() {
            let step = match &end {
                Some(quote) if rest.starts_with(quote.as_str()) => {
                    let len = quote.len();
                    end = None;
                    len
                }
                Some(quote) if quote == "\"" && next == '\\' => {
                    rest.chars().take(2).map(char::len_utf8).sum()
                }
                Some(_) => next.len_utf8(),
                None if rest.starts_with("//") => break,
                None => match opening(rest) {
                    Some((len, quote)) => {
                        (end, string) = (quote, true);
                        len
                    }
                    None => {
                        code.push(next);
                        next.len_utf8()
                    }
                },
            };
            rest = &rest[step..];
        }
        Line { text: text.to_string(), code, string }
    };
    text.lines().map(of_line).collect()
}

/// The literal that begins here, if one does: how long its beginning is, and what ends it; a character is
/// whole.
fn opening(rest: &str) -> Option<(usize, Option<String>)> {
    if rest.starts_with('"') {
        return Some((1, Some("\"".into())));
    }
    let hashes = rest.strip_prefix('r').map(|raw| raw.len() - raw.trim_start_matches('#').len());
    if let Some(hashes) = hashes.filter(|hashes| rest[1 + hashes..].starts_with('"')) {
        return Some((2 + hashes, Some(format!("\"{}", "#".repeat(hashes)))));
    }
    let quoted =
        ["'\"'", "'\\\"'", "'\\''", "'\\\\'", "'/'"].into_iter().find(|quoted| rest.starts_with(quoted));
    quoted.map(|quoted| (quoted.len(), None))
}

impl File {
    /// Whether the whole file is a test.
    fn is_test(&self) -> bool {
        !self.path.starts_with("src/") || self.path.ends_with("tests.rs")
    }

    /// The lines before the tests at its end, with their numbers.
    fn without_tests(&self) -> impl Iterator<Item = (usize, &Line)> {
        let is_tests = |pair: &[Line]| pair[0].text == "#[cfg(test)]" && pair[1].text == "mod tests {";
        let end = self.lines.windows(2).position(is_tests).unwrap_or(self.lines.len());
        (1..).zip(&self.lines[..end])
    }

    fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.path)
    }
}

fn words(code: &str) -> impl Iterator<Item = &str> {
    code.split(|c: char| !c.is_alphanumeric() && c != '_').filter(|word| !word.is_empty())
}

fn none(what: &str, wrong: Vec<String>) {
    assert!(wrong.is_empty(), "{what}:\n{}", wrong.join("\n"));
}

/// The names in backticks in some text, without paths and brackets: `config/` is config.
fn names(text: &str) -> Vec<String> {
    text.split('`').skip(1).step_by(2).map(|name| name.trim_end_matches('/').to_string()).collect()
}

/// The names that a line of code uses right behind `prefix`, also those of a list in braces.
fn used<'a>(code: &'a str, prefix: &str) -> Vec<&'a str> {
    let first = |text: &'a str| words(text).next().filter(|word| text.starts_with(word));
    let behind = |at: (usize, &str)| &code[at.0 + prefix.len()..];
    let uses = code.match_indices(prefix).map(behind).flat_map(|rest| match rest.strip_prefix('{') {
        Some(list) => list.split(',').map(str::trim_start).filter_map(first).collect::<Vec<_>>(),
        None => first(rest).into_iter().collect(),
    });
    uses.collect()
}

/// Uses of modules that stand below their user. `rank` says where a module stands.
fn upward(
    files: &[File],
    user: impl Fn(&str) -> Option<String>,
    prefixes: &[&str],
    order: &[Vec<String>],
) -> Vec<String> {
    let rank = |name: &str| order.iter().position(|row| row.iter().any(|other| other == name));
    let mut wrong = Vec::new();
    for file in files.iter().filter(|file| !file.is_test()) {
        let Some(user) = user(&file.path) else { continue };
        let Some(own) = rank(&user) else {
            wrong.push(format!("{}: {user} has no place in the order", file.path));
            continue;
        };
        for (line, Line { code, .. }) in file.without_tests() {
            for used in prefixes.iter().flat_map(|prefix| used(code, prefix)) {
                if rank(used).is_some_and(|other| other > own) {
                    wrong.push(format!("{} {user} -> {used}", file.place(line)));
                }
            }
        }
    }
    wrong
}

#[test]
fn no_module_uses_one_that_stands_below_it() {
    let text = std::fs::read_to_string(root().join("ARCHITECTURE.md")).unwrap();
    let table = text.split("## Code map").nth(1).unwrap().lines().filter(|line| line.starts_with("| `"));
    let order: Vec<Vec<String>> = table.map(|row| names(row.split('|').nth(1).unwrap())).collect();
    let module = |path: &str| {
        let name = path.strip_prefix("src/")?.split('/').next()?.trim_end_matches(".rs");
        Some(name.to_string()).filter(|name| name != "lib")
    };
    let wrong = upward(&files(&["src"], ".rs"), module, &["crate::"], &order);
    none("against the order of ARCHITECTURE.md's code map", wrong);
}

#[test]
fn kernels_stand_in_the_order_that_they_say() {
    let files = files(&["src/kernels"], ".rs");
    let text = std::fs::read_to_string(root().join("src/kernels/mod.rs")).unwrap();
    let order = text.split("//! From the bottom up").nth(1).unwrap().split("\n\n").next().unwrap();
    let order: Vec<Vec<String>> = names(order).into_iter().map(|name| vec![name]).collect();
    assert!(order.len() > 20, "{order:?}");
    let module = |path: &str| {
        let name = path.strip_prefix("src/kernels/")?.split('/').next()?.trim_end_matches(".rs");
        Some(name.to_string()).filter(|name| name != "mod")
    };
    let (own, below): (Vec<File>, Vec<File>) =
        files.into_iter().partition(|file| file.path.matches('/').count() == 2);
    none(
        "against the order of src/kernels/mod.rs",
        upward(&own, module, &["super::", "crate::kernels::"], &order),
    );
    none("against the order of src/kernels/mod.rs", upward(&below, module, &["crate::kernels::"], &order));
}

#[test]
fn the_core_has_never_heard_of_python() {
    let mut wrong = Vec::new();
    for file in files(&["src"], ".rs") {
        if file.is_test() || file.path.starts_with("src/python/") || file.path == "src/lib.rs" {
            continue;
        }
        let python = |word: &str| ["python", "pyo3"].iter().any(|name| word.to_lowercase().contains(name));
        let speaks = file.without_tests().filter(|(_, line)| words(&line.code).any(python));
        wrong.extend(speaks.map(|(number, line)| format!("{}: {}", file.place(number), line.text.trim())));
    }
    none("names of Python in the core", wrong);
}

/// Whether a comment that says why an unsafe line is sound stands right before its statement.
fn is_explained(lines: &[Line], at: usize) -> bool {
    // A statement or an arm may have begun some lines before.
    let ends = |line: &str| line.is_empty() || line.ends_with([';', '{', '}', ',']);
    let is_remark = |line: &&str| line.starts_with("//") || line.starts_with("#[");
    let mut above = lines[..at].iter().rev().map(|line| line.text.trim()).peekable();
    for _ in 0..3 {
        if above.next_if(|line| !is_remark(line) && !ends(line)).is_none() {
            break;
        }
    }
    above.take_while(is_remark).any(|line| line.contains("// SAFETY:"))
}

#[test]
fn each_unsafe_has_its_reason_and_stands_where_it_may() {
    let mut wrong = Vec::new();
    for file in files(&["src", "tests", "benches", "fuzz"], ".rs") {
        for (at, Line { code, .. }) in file.lines.iter().enumerate() {
            if !words(code).any(|word| word == "unsafe") {
                continue;
            }
            if !file.is_test() && !UNSAFE.iter().any(|allowed| file.path.starts_with(allowed)) {
                wrong.push(format!("{}: unsafe may not stand here", file.place(at + 1)));
            }
            let opens = code.contains("unsafe {") || code.contains("unsafe impl");
            if opens && !is_explained(&file.lines, at) {
                wrong.push(format!("{}: no `// SAFETY:` before it", file.place(at + 1)));
            }
        }
    }
    none("unsafe", wrong);
}

#[test]
fn lines_and_files_are_not_too_long() {
    let mut wrong = Vec::new();
    let rust = files(&["src", "tests", "benches", "fuzz"], ".rs");
    for file in rust.iter().filter(|file| !file.is_test()) {
        let lines = file.without_tests().count();
        if lines > LINES {
            wrong.push(format!("{}: {lines} lines without tests, of {LINES} at most", file.path));
        }
    }
    for file in rust.iter().chain(&files(&["python/tallow"], ".py")) {
        for (number, line) in (1..).zip(&file.lines) {
            // Strings and the rows of a table are not broken.
            let columns = line.text.chars().count();
            let is_row = line.text.trim_start().trim_start_matches(['/', '!']).starts_with(" |");
            if columns > COLUMNS && !line.string && !is_row {
                wrong.push(format!("{}: {columns} columns, of {COLUMNS} at most", file.place(number)));
            }
        }
    }
    none("too long (comments: `cargo +nightly fmt -- --config wrap_comments=true,comment_width=110`)", wrong);
}

#[test]
fn the_rules_see_what_they_are_for() {
    let explained = |text: &str| is_explained(&lines(text), text.lines().count() - 1);
    assert!(explained("// SAFETY: it is.\nunsafe { f() }"));
    assert!(explained("    // SAFETY: it is,\n    // and so on.\n    let a =\n        unsafe { f() };"));
    assert!(!explained("// Safe.\nunsafe { f() }"));
    assert!(!explained("// SAFETY: of another.\nf();\nunsafe { f() }"));
    let code = |text: &str| lines(text).iter().map(|line| line.code.trim().to_string()).collect::<Vec<_>>();
    assert_eq!(code("let a = \"unsafe // \\\" no\"; // unsafe"), ["let a = ;"]);
    assert_eq!(code("f('\"', r#\"a\"b\nc\"#, d) // e"), ["f(,", ", d)"]);
    assert_eq!(
        used("use crate::{config, model::Lm}; crate::text::x()", "crate::"),
        ["config", "model", "text"]
    );
}
