//! What a template may spend.
//!
//! A template comes with the model, so it is untrusted code. The interpreter's fuel bounds its steps and the
//! budget here bounds its bytes: every string and list that an operator, filter or method makes is charged
//! BEFORE it is allocated. One render runs on one thread from start to end, so the account is thread-local.

use std::cell::Cell;

use minijinja::{Error, ErrorKind};

/// Steps of the interpreter.
pub const FUEL: u64 = 1_500_000;
/// Bytes of a template's source.
pub const SOURCE_BYTES: usize = 1 << 20;
/// Bytes of the rendered prompt.
pub const OUTPUT_BYTES: usize = 16 << 20;
/// Bytes of all that a render makes on its way, and of its output. A text that is built up piece by piece is
/// charged whole with each piece, so that long conversations need it.
pub const WORK_BYTES: usize = 64 << 20;
/// Bytes of what is made at once: no more than may be its output. (One text of 40 MB took 80 to be written.)
const ONE_PIECE: usize = OUTPUT_BYTES;
/// Nested calls of macros. Small, because a caller's thread may have a small stack.
pub const RECURSION: usize = 64;
/// Lists in lists in lists.
pub const DEPTH: u16 = 120;
/// Items of a `range`, as in Jinja2's sandbox.
pub const RANGE: i128 = 100_000;

thread_local! {
    static LEFT: Cell<usize> = const { Cell::new(WORK_BYTES) };
    static MARKS: Cell<Option<[char; 2]>> = const { Cell::new(None) };
}

/// Opens the account of one render. `marks` surround control tokens in the messages, if there are any.
pub fn begin(marks: Option<[char; 2]>) {
    LEFT.set(WORK_BYTES);
    MARKS.set(marks);
}

/// Takes `bytes` from the account, or fails.
pub fn charge(bytes: usize) -> Result<(), Error> {
    if bytes > ONE_PIECE {
        return Err(fail("the template makes a text or list of more than 16 MB"));
    }
    match LEFT.get().checked_sub(bytes) {
        Some(left) => {
            LEFT.set(left);
            Ok(())
        }
        None => Err(fail("the template makes more than 64 MB of text and lists")),
    }
}

/// Whether `c` is a mark, which string functions must look through.
pub fn is_mark(c: char) -> bool {
    MARKS.get().is_some_and(|marks| marks.contains(&c))
}

/// `text` without marks.
pub fn unmarked(text: &str) -> std::borrow::Cow<'_, str> {
    match MARKS.get() {
        Some(marks) if text.contains(marks) => text.replace(marks, "").into(),
        _ => text.into(),
    }
}

pub fn fail(message: impl Into<String>) -> Error {
    Error::new(ErrorKind::InvalidOperation, message.into())
}
