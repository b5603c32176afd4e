//! The one error type: what kind of failure, what happened and what to do, and what caused it.
//!
//! A kind is what a caller decides by (retry? shorten the prompt? pick another file?), so there are few.
//! The message is for a person: it names the file, field or argument, and the way out. Python's
//! exception classes are a table over [`ErrorKind`], tested in `python/errors.rs`.

use std::any::Any;
use std::fmt;
use std::sync::Arc;

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// What kind of failure it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum ErrorKind {
    /// A model file is missing, truncated, malformed, or disagrees with its own configuration.
    ModelFile,
    /// The file is sound, but it holds something that this program does not run.
    UnsupportedModel,
    /// A name could not be turned into files: network, permission, no such repository.
    Hub,
    /// The prompt (with what must be generated) is longer than the context.
    ContextLength,
    /// An argument is wrong.
    InvalidRequest,
    /// A grammar, schema or regular expression cannot be compiled or satisfied.
    Constraint,
    /// The chat template is missing, malformed, raised, or ran over its limits.
    Template,
    /// Memory that was asked for is not there.
    OutOfMemory,
    /// The device cannot be opened or failed.
    Device,
    /// The caller went away.
    Cancelled,
    /// The deadline of the request passed.
    Timeout,
    /// A defect of this program. Please report it.
    Internal,
}

/// A failure. One word wide, cheap to clone (it may be told to several waiting requests).
#[derive(Clone)]
pub struct Error(Arc<Inner>);

#[derive(Clone)]
struct Inner {
    kind: ErrorKind,
    message: String,
    counts: Option<(usize, usize)>,
    source: Option<Arc<dyn std::error::Error + Send + Sync>>,
}

impl Error {
    #[cold]
    pub fn new(kind: ErrorKind, message: impl Into<String>) -> Self {
        Error(Arc::new(Inner { kind, message: message.into(), counts: None, source: None }))
    }

    /// The prompt needs `needed` tokens and the context has `limit`.
    #[cold]
    pub fn context_length(needed: usize, limit: usize) -> Self {
        let message = format!(
            "the prompt has {needed} tokens and the context of this model holds {limit} \
             (at least one is needed for the answer); shorten the prompt, or load the model with a larger \
             context_length if it was made for one"
        );
        Error(Arc::new(Inner {
            kind: ErrorKind::ContextLength,
            message,
            counts: Some((needed, limit)),
            source: None,
        }))
    }

    /// A complete text has `needed` tokens, and `why` allows `limit`.
    #[cold]
    pub fn text_length(needed: usize, limit: usize, why: &str) -> Self {
        let message =
            format!("the text has {needed} tokens, and {why} allows {limit}; none is cut, so shorten it");
        Error(Arc::new(Inner {
            kind: ErrorKind::ContextLength,
            message,
            counts: Some((needed, limit)),
            source: None,
        }))
    }

    pub fn kind(&self) -> ErrorKind {
        self.0.kind
    }

    pub fn message(&self) -> &str {
        &self.0.message
    }

    /// For [`ErrorKind::ContextLength`]: the tokens of the prompt, and the limit.
    pub fn counts(&self) -> Option<(usize, usize)> {
        self.0.counts
    }

    /// Keeps the error that caused this one (the Python layer finds a callback's own exception here).
    pub fn with_source(self, source: impl std::error::Error + Send + Sync + 'static) -> Self {
        let mut inner = Arc::unwrap_or_clone(self.0);
        inner.source = Some(Arc::new(source));
        Error(Arc::new(inner))
    }

    /// Says what was being done when it failed: `context: message`.
    pub fn context(self, context: impl fmt::Display) -> Self {
        let mut inner = Arc::unwrap_or_clone(self.0);
        inner.message = format!("{context}: {}", inner.message);
        Error(Arc::new(inner))
    }

    pub fn source_ref(&self) -> Option<&(dyn std::error::Error + Send + Sync + 'static)> {
        self.0.source.as_deref()
    }
}

/// One constructor a kind, so that call sites read as sentences.
macro_rules! constructors {
    ($($name:ident => $kind:ident),* $(,)?) => {
        impl Error {
            $(
                #[cold]
                pub fn $name(message: impl Into<String>) -> Self {
                    Error::new(ErrorKind::$kind, message)
                }
            )*
        }
    };
}

constructors! {
    model_file => ModelFile,
    unsupported => UnsupportedModel,
    hub => Hub,
    invalid => InvalidRequest,
    constraint => Constraint,
    template => Template,
    out_of_memory => OutOfMemory,
    device => Device,
    cancelled => Cancelled,
    timeout => Timeout,
    internal => Internal,
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0.message)
    }
}

impl fmt::Debug for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.0.kind, self.0.message)?;
        match &self.0.source {
            Some(source) => write!(f, " (caused by: {source})"),
            None => Ok(()),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.0.source.as_deref().map(|source| source as &(dyn std::error::Error + 'static))
    }
}

/// A tensor operation failed after everything was validated: the device's failure, or our own defect.
impl From<candle_core::Error> for Error {
    fn from(error: candle_core::Error) -> Self {
        Error::internal(format!("a tensor operation failed: {error}"))
    }
}

/// `.context("reading x")` on results.
pub trait Context<T> {
    fn context(self, context: impl fmt::Display) -> Result<T>;
}

impl<T> Context<T> for Result<T> {
    fn context(self, context: impl fmt::Display) -> Result<T> {
        self.map_err(|error| error.context(context))
    }
}

/// The longest name or value of a file that a message repeats, in characters: a damaged file may hold
/// megabytes where a name should stand, and the longest names of real tensors have 80.
pub(crate) const LINE: usize = 100;
/// The longest message of a library that a message repeats: such texts may be in it.
pub(crate) const PARAGRAPH: usize = 300;

/// What a panic said.
pub(crate) fn panic_text(panic: &(dyn Any + Send)) -> &str {
    let text = panic.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("a panic without a message")
}

/// A text out of a file for a message: quoted, control characters escaped, no longer than a line.
pub(crate) fn quoted(text: &str) -> String {
    let (beginning, more) = cut(text, LINE);
    format!("{beginning:?}{more}")
}

/// The beginning of what is shown, and … if that is not all.
pub(crate) fn shortened(shown: impl fmt::Display, chars: usize) -> String {
    let shown = shown.to_string();
    let (beginning, more) = cut(&shown, chars);
    format!("{beginning}{more}")
}

fn cut(text: &str, chars: usize) -> (&str, &'static str) {
    match text.char_indices().nth(chars) {
        Some((end, _)) => (text.get(..end).unwrap_or_default(), "…"),
        None => (text, ""),
    }
}

/// Up to three candidates that a slip of the fingers away, nearest first.
pub(crate) fn nearest<'a>(wanted: &str, candidates: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let wanted = wanted.to_lowercase();
    let limit = (wanted.chars().count() / 3).max(2);
    let mut scored: Vec<(usize, &str)> = candidates
        .take(10_000)
        .map(|name| (distance(&wanted, &name.to_lowercase()), name))
        .filter(|(distance, _)| *distance <= limit)
        .collect();
    scored.sort();
    scored.into_iter().take(3).map(|(_, name)| name).collect()
}

/// Levenshtein distance in characters; a prefix counts as near, because people stop typing.
fn distance(a: &str, b: &str) -> usize {
    if a.len() >= 3 && b.starts_with(a) {
        return 1;
    }
    let b: Vec<char> = b.chars().take(256).collect();
    let mut row: Vec<usize> = (0..=b.len()).collect();
    for (i, ca) in a.chars().take(256).enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cb, cell) in b.iter().zip(row.iter_mut().skip(1)) {
            let best = (diagonal + usize::from(ca != *cb)).min(left + 1).min(*cell + 1);
            diagonal = *cell;
            *cell = best;
            left = best;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_cut_between_characters() {
        let row = |n: usize| "é".repeat(n);
        assert_eq!(quoted("a\"\n"), r#""a\"\n""#);
        assert_eq!(quoted(&row(LINE)), format!("\"{}\"", row(LINE)));
        assert_eq!(quoted(&row(LINE + 1)), format!("\"{}\"…", row(LINE)));
        assert_eq!((shortened(row(9), 9), shortened(row(5000), 9)), (row(9), row(9) + "…"));
    }
}
