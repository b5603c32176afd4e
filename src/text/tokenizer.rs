//! Text to token ids and back, for the tokenizers that models come with.
//!
//! [`Tokenizer`] reads `tokenizer.json` ([`Tokenizer::from_hf`]) or the tables inside a GGUF file
//! ([`Tokenizer::from_gguf`]). Whatever the source, three rules hold:
//!
//! - **Control tokens are asked for.** `<|im_end|>` in plain text is ten characters; only with `special` is
//!   it the token that ends a turn, and [`Tokenizer::encode_with_literals`] says so range by range. No merge
//!   of plain text ever gives a control token. User-defined tokens (a run of newlines, `<table>`) are always
//!   read.
//! - **Tokens are bytes.** A token may end inside a character, so [`Tokenizer::token_bytes`] is what
//!   everything else is built on.
//! - **`decode` undoes `encode`.** A tokenizer that puts a space before a text loses it again in `decode`,
//!   and keeps it in [`Tokenizer::decode_continuation`], where the ids go on from a prompt.
//!
//! Nothing is added to what is encoded: BOS and EOS are the caller's business ([`Tokenizer::prefix`],
//! [`Tokenizer::suffix`]).

use std::ops::Range;
use std::path::Path;

use crate::error::{Context, Error, Result};
use crate::weights::gguf::Metadata;
use added::Literals;
use gguf::Tables;
use hf::Json;
use vocab::{Kind, Vocab};

mod added;
mod bpe;
mod ends;
mod gguf;
mod hf;
mod merge;
mod pretokenize;
mod spm;
mod vocab;
mod write;

pub use write::{Written, to_gguf};

/// A model's tokenizer. Immutable; share it in an `Arc`.
pub struct Tokenizer {
    vocab: Vocab,
    backend: Backend,
    bos: Option<u32>,
    affixes: Affixes,
    ends: Vec<u32>,
    space: SpacePrefix,
    /// Tokens are words: each brings the space before it.
    joined: bool,
}

/// The tokens that go around a single text.
#[derive(Debug, Default)]
struct Affixes {
    prefix: Vec<u32>,
    suffix: Vec<u32>,
}

enum Backend {
    Tables(Box<Tables>),
    Json(Box<Json>),
}

/// Where encoding puts a space that the text does not have, so that a first word is the same token as a later
/// one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SpacePrefix {
    Never,
    /// At the beginning of the text.
    First,
    /// There, and after each token that was found as it is written.
    Every,
}

impl Tokenizer {
    /// The tokenizer of a folder with a `tokenizer.json`. `tokenizer_config.json`, `special_tokens_map.json`
    /// and `added_tokens.json` beside it name special tokens and may add some, as in transformers 5.
    /// Truncation, padding and BPE dropout, which are for training, are switched off.
    ///
    /// # Errors
    /// `ModelFile` naming the file when it is missing, malformed or contradicts itself, or when its ids lie
    /// far apart; `UnsupportedModel` when it decodes in a way that cannot be told token by token, or writes a
    /// text more than once.
    pub fn from_hf(dir: &Path) -> Result<Tokenizer> {
        hf::load(dir)
    }

    /// The tokenizer inside a GGUF file: SentencePiece with scores (`tokenizer.ggml.model` "llama") or
    /// byte-level BPE ("gpt2") with a known `tokenizer.ggml.pre`.
    ///
    /// # Errors
    /// `UnsupportedModel` for other kinds and unknown rules; `ModelFile` when a table is missing or
    /// contradicts another.
    pub fn from_gguf(meta: &Metadata) -> Result<Tokenizer> {
        gguf::load(meta)
    }

    /// The tokenizer inside a GGUF file, or the `tokenizer.json` in the folder `beside` it where the file's
    /// own is of a kind that is not known, or missing. It must have the same tokens.
    ///
    /// # Errors
    /// As [`Tokenizer::from_gguf`] where there is no `tokenizer.json`, else as [`Tokenizer::from_hf`];
    /// `ModelFile` when it has other tokens.
    pub fn from_gguf_or_beside(meta: &Metadata, beside: &Path) -> Result<Tokenizer> {
        let own = gguf::load(meta);
        match &own {
            Err(error) if gguf::is_foreign(meta, error) && hf::is_in(beside) => {}
            _ => return own,
        }
        let tokenizer = hf::load(beside)?;
        if let Backend::Json(json) = &tokenizer.backend {
            gguf::check_same(meta, |id| json.written(id)).context(hf::path_in(beside).display())?;
        }
        Ok(tokenizer)
    }

    /// Where it was read: "GGUF" or "tokenizer.json".
    pub fn source(&self) -> &'static str {
        match self.backend {
            Backend::Tables(_) => "GGUF",
            Backend::Json(_) => "tokenizer.json",
        }
    }

    /// The tokens of a text, without BOS or EOS. With `special`, control tokens written in the text are read.
    ///
    /// # Errors
    /// `InvalidRequest` for a text of 4 GiB, and for a character that the tokenizer cannot write at all.
    /// `ModelFile` when a `tokenizer.json` contradicts itself in what only this text needs.
    pub fn encode(&self, text: &str, special: bool) -> Result<Vec<u32>> {
        self.encode_where(text, |_| special)
    }

    /// As [`Tokenizer::encode`] with `special`, except that a control token that overlaps one of the
    /// `literals` (byte ranges of the text, in any order) is plain text. A template's own control tokens are
    /// read, and those that a user wrote into a message are not.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn encode_with_literals(&self, text: &str, literals: &[Range<usize>]) -> Result<Vec<u32>> {
        let literals = Literals::new(literals);
        self.encode_where(text, |range| !literals.overlaps(range))
    }

    fn encode_where(&self, text: &str, control: impl Fn(&Range<usize>) -> bool) -> Result<Vec<u32>> {
        if u32::try_from(text.len()).is_err() {
            return Err(Error::invalid(format!(
                "a text of {} bytes cannot be tokenized at once",
                text.len()
            )));
        }
        match &self.backend {
            Backend::Tables(tables) => tables.encode(&self.vocab, text, control),
            Backend::Json(json) => json.encode(&self.vocab, text, control),
        }
    }

    /// What goes before a text: mostly BOS or nothing. The post-processor of `tokenizer.json` says it, and
    /// `tokenizer.ggml.add_bos_token` in a GGUF file.
    pub fn prefix(&self) -> &[u32] {
        &self.affixes.prefix
    }

    /// What goes after a text that is complete, such as one to be embedded: EOS or nothing. A prompt is to be
    /// continued, so it does not belong there.
    pub fn suffix(&self) -> &[u32] {
        &self.affixes.suffix
    }

    pub fn bos(&self) -> Option<u32> {
        self.bos
    }

    /// Every token that ends an answer, ascending. Empty when the tokenizer knows none.
    ///
    /// They are those that the file names (end of text, of turn, of message), and tokens known by their text:
    /// the list is in `tokenizer/ends.rs`.
    pub fn eos_ids(&self) -> &[u32] {
        &self.ends
    }

    /// One more than the highest id. The model's matrices may be larger.
    pub fn vocab_size(&self) -> usize {
        self.vocab.len()
    }

    /// The bytes that a token stands for; of a control token, how it is written. Empty for unknown ids.
    pub fn token_bytes(&self, id: u32) -> &[u8] {
        self.vocab.bytes(id)
    }

    /// Whether it is a control token (or the one for the unknown), which shows as no text.
    pub fn is_special(&self, id: u32) -> bool {
        self.vocab.kind(id).is_some_and(Kind::is_special)
    }

    /// The id of a token as its file writes it: `<|im_end|>`, `Ġhello`, `▁hello`, `<0x0A>`.
    pub fn id(&self, token: &str) -> Option<u32> {
        match &self.backend {
            Backend::Tables(tables) => tables.id(&self.vocab, token),
            Backend::Json(json) => json.id(token),
        }
    }

    /// The text of ids that are a whole text: what [`Tokenizer::encode`] was given. A space that encoding put
    /// before the text (with GGUF's SentencePiece also after each control token) is left out again.
    ///
    /// Control tokens are left out unless `special`. Bytes that are not UTF-8 become U+FFFD.
    pub fn decode(&self, ids: &[u32], special: bool) -> String {
        let mut bytes = Vec::with_capacity(ids.len() * 4);
        let mut prefixed = self.space != SpacePrefix::Never;
        for id in ids {
            let hidden = self.is_special(*id) && !special;
            let added =
                matches!(self.vocab.kind(*id), Some(Kind::Control | Kind::Unknown | Kind::UserDefined));
            let (space, token) = if hidden { (&b""[..], &b""[..]) } else { self.shown(*id) };
            let start = bytes.len();
            bytes.extend_from_slice(space);
            bytes.extend_from_slice(token);
            if prefixed && (self.joined || !added) && bytes.get(start) == Some(&b' ') {
                bytes.remove(start);
            }
            let nothing = space.is_empty() && token.is_empty();
            prefixed = self.space == SpacePrefix::Every && added || prefixed && nothing;
        }
        lossy(bytes)
    }

    /// The ids of a text that goes on from another, as an answer goes on from its prompt: as
    /// [`Tokenizer::encode`] without control tokens, and no space is put before it.
    pub fn encode_continuation(&self, text: &str) -> Result<Vec<u32>> {
        if self.space == SpacePrefix::Never {
            return self.encode(text, false);
        }
        // A line break takes the space; it merges with nothing but other line breaks.
        let (anchor, ids) = (self.encode("\n", false)?, self.encode(&format!("\n{text}"), false)?);
        match ids.strip_prefix(anchor.as_slice()) {
            Some(rest) => Ok(rest.to_vec()),
            None => self.encode(text, false),
        }
    }

    /// The text of ids that go on from others, as an answer goes on from its prompt: as
    /// [`Tokenizer::decode`], and every space stays.
    pub fn decode_continuation(&self, ids: &[u32], special: bool) -> String {
        let shown = ids.iter().filter(|id| special || !self.is_special(**id)).map(|id| self.shown(*id));
        lossy(shown.flat_map(|(space, token)| [space, token]).flatten().copied().collect())
    }

    /// What a token shows in a text: its bytes, and a space before them if they lack it.
    pub(super) fn shown(&self, id: u32) -> (&'static [u8], &[u8]) {
        let space: &[u8] = if self.joined && self.is_special(id) { b" " } else { b"" };
        (space, self.token_bytes(id))
    }

    /// Whether tokens are words, so that there is no text without spaces between them: a `tokenizer.json`
    /// without a decoder, or with WordPiece's.
    pub fn is_joined(&self) -> bool {
        self.joined
    }

    /// The control tokens with their texts, by id.
    pub fn special_tokens(&self) -> impl Iterator<Item = (u32, &str)> {
        let named = |id| Some((id, std::str::from_utf8(self.token_bytes(id)).ok()?));
        self.vocab.ids(Kind::is_special).filter_map(named).filter(|(_, text)| !text.is_empty())
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut this = f.debug_struct("Tokenizer");
        this.field("source", &self.source()).field("tokens", &self.vocab_size()).field("bos", &self.bos);
        this.field("affixes", &self.affixes).field("eos", &self.ends).finish()
    }
}

fn lossy(bytes: Vec<u8>) -> String {
    String::from_utf8(bytes).unwrap_or_else(|error| String::from_utf8_lossy(error.as_bytes()).into_owned())
}
