//! What ARCHITECTURE.md claims of the source, held by reading it: the order of modules, a core without
//! Python, where `unsafe` may stand and that each has its reason, and sizes. Plain text, no parser: a rule
//! that needs one is too fine.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// Columns of a line, and lines of a file of the core without its tests.
const COLUMNS: usize = 110;
const LINES: usize = 620;

/// Uses against the order of the code map. To be removed with the reason: the table names `weights` and
/// `small_file` too late.
const UPWARD: [&str; 0] = [];

/// Files of the core that may still speak of Python. To be removed: data wheels are moving to the Python
/// side.
const PYTHON: [&str; 5] =
    ["src/hub/env.rs", "src/hub/mod.rs", "src/hub/pip.rs", "src/hub/wheel.rs", "src/model/load.rs"];

/// Where `unsafe` may stand.
const UNSAFE: [&str; 2] = ["src/kernels/", "src/weights/bytes.rs"];

/// A file: its path from the root, and its text.
struct File {
    path: String,
    text: String,
}

fn files(folders: &[&str], ending: &str) -> Vec<File> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let mut folders: Vec<PathBuf> = folders.iter().map(|folder| root.join(folder)).collect();
    let mut files = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() {
                folders.push(entry);
            } else if entry.to_string_lossy().ends_with(ending) {
                let path = entry.strip_prefix(root).unwrap().to_string_lossy().replace('\\', "/");
                files.push(File { path, text: std::fs::read_to_string(&entry).unwrap() });
            }
        }
    }
    files.sort_by(|a, b| a.path.cmp(&b.path));
    files
}

impl File {
    /// Whether the whole file is a test.
    fn is_test(&self) -> bool {
        !self.path.starts_with("src/") || self.path.ends_with("tests.rs")
    }

    /// The lines before the tests at its end, with their numbers.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        let end = self.text.find("\n#[cfg(test)]\nmod tests {").unwrap_or(self.text.len());
        (1..).zip(self.text[..end].lines())
    }

    /// The same without comments and strings.
    fn code(&self) -> impl Iterator<Item = (usize, String)> {
        self.lines().map(|(number, line)| (number, code(line)))
    }

    fn place(&self, line: usize) -> String {
        format!("{}:{line}", self.path)
    }
}

/// A line without its comment and without what stands in double quotes.
fn code(line: &str) -> String {
    let mut parts = line.split('"');
    let mut code = parts.next().unwrap_or_default().to_string();
    while !code.contains("//")
        && let (Some(_), Some(rest)) = (parts.next(), parts.next())
    {
        code += rest;
    }
    code.split("//").next().unwrap_or_default().to_string()
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
        for (line, code) in file.code() {
            for used in prefixes.iter().flat_map(|prefix| used(&code, prefix)) {
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
    let text =
        std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("ARCHITECTURE.md")).unwrap();
    let table = text.split("## Code map").nth(1).unwrap().lines().filter(|line| line.starts_with("| `"));
    let order: Vec<Vec<String>> = table.map(|row| names(row.split('|').nth(1).unwrap())).collect();
    let module = |path: &str| {
        let name = path.strip_prefix("src/")?.split('/').next()?.trim_end_matches(".rs");
        Some(name.to_string()).filter(|name| name != "lib")
    };
    let all = upward(&files(&["src"], ".rs"), module, &["crate::"], &order);
    let known = |wrong: &String| UPWARD.iter().any(|known| wrong.ends_with(known));
    let needed: BTreeSet<_> =
        UPWARD.iter().filter(|known| all.iter().any(|wrong| wrong.ends_with(**known))).collect();
    assert_eq!(needed.len(), UPWARD.len(), "an exception is not needed any more: only {needed:?} are");
    none(
        "against the order of ARCHITECTURE.md's code map",
        all.into_iter().filter(|wrong| !known(wrong)).collect(),
    );
}

#[test]
fn kernels_stand_in_the_order_that_they_say() {
    let files = files(&["src/kernels"], ".rs");
    let text = &files.iter().find(|file| file.path.ends_with("kernels/mod.rs")).unwrap().text;
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
    let (mut wrong, mut needed) = (Vec::new(), BTreeSet::new());
    for file in files(&["src"], ".rs") {
        if file.is_test() || file.path.starts_with("src/python/") || file.path == "src/lib.rs" {
            continue;
        }
        for (line, code) in file.code() {
            let python =
                |word: &str| ["python", "pyo3"].iter().any(|name| word.to_lowercase().contains(name));
            if !words(&code).any(python) {
                continue;
            }
            match PYTHON.contains(&file.path.as_str()) {
                true => drop(needed.insert(file.path.clone())),
                false => wrong.push(format!("{}: {}", file.place(line), code.trim())),
            }
        }
    }
    none("names of Python in the core", wrong);
    assert_eq!(needed.len(), PYTHON.len(), "an exception is not needed any more: only {needed:?} are");
}

/// Whether a comment that says why an unsafe line is sound stands right before its statement.
fn is_explained(lines: &[&str], at: usize) -> bool {
    // A statement or an arm may have begun some lines before.
    let ends = |line: &str| line.is_empty() || line.ends_with([';', '{', '}', ',']) || line.ends_with("*/");
    let mut above = lines[..at].iter().rev().map(|line| line.trim()).peekable();
    for _ in 0..3 {
        if above.next_if(|line| !line.starts_with("//") && !line.starts_with("#[") && !ends(line)).is_none() {
            break;
        }
    }
    above
        .take_while(|line| line.starts_with("//") || line.starts_with("#["))
        .any(|line| line.contains("// SAFETY:"))
}

#[test]
fn each_unsafe_has_its_reason_and_stands_where_it_may() {
    let mut wrong = Vec::new();
    for file in files(&["src", "tests", "benches"], ".rs") {
        let lines: Vec<&str> = file.text.lines().collect();
        for (at, line) in lines.iter().enumerate() {
            let code = code(line);
            if !words(&code).any(|word| word == "unsafe") {
                continue;
            }
            if !file.is_test() && !UNSAFE.iter().any(|allowed| file.path.starts_with(allowed)) {
                wrong.push(format!("{}: unsafe may not stand here", file.place(at + 1)));
            }
            let opens = code.contains("unsafe {") || code.contains("unsafe impl");
            if opens && !is_explained(&lines, at) {
                wrong.push(format!("{}: no `// SAFETY:` before it", file.place(at + 1)));
            }
        }
    }
    none("unsafe", wrong);
}

#[test]
fn lines_and_files_are_not_too_long() {
    let mut wrong = Vec::new();
    let rust = files(&["src", "tests", "benches"], ".rs");
    for file in rust.iter().filter(|file| !file.is_test()) {
        let lines = file.lines().count();
        if lines > LINES {
            wrong.push(format!("{}: {lines} lines without tests, of {LINES} at most", file.path));
        }
    }
    for file in rust.iter().chain(&files(&["python/tallow"], ".py")) {
        for (line, text) in (1..).zip(file.text.lines()) {
            let columns = text.chars().count();
            if columns > COLUMNS {
                wrong.push(format!("{}: {columns} columns, of {COLUMNS} at most", file.place(line)));
            }
        }
    }
    none("too long", wrong);
}

#[test]
fn the_rules_see_what_they_are_for() {
    let explained = |text: &str| is_explained(&text.lines().collect::<Vec<_>>(), text.lines().count() - 1);
    assert!(explained("// SAFETY: it is.\nunsafe { f() }"));
    assert!(explained("    // SAFETY: it is,\n    // and so on.\n    let a =\n        unsafe { f() };"));
    assert!(!explained("// Safe.\nunsafe { f() }"));
    assert!(!explained("// SAFETY: of another.\nf();\nunsafe { f() }"));
    assert_eq!(
        used("use crate::{config, model::Lm}; crate::text::x()", "crate::"),
        ["config", "model", "text"]
    );
    assert_eq!(code(r#"let a = "unsafe // no"; // unsafe"#).trim(), "let a = ;");
}
