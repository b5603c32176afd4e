//! The tokenizer tables of a GGUF file.
//!
//! Keys as in ggml's gguf.md: `tokenizer.ggml.model`, `.pre`, `.tokens`, `.token_type`, `.scores`, `.merges`,
//! `.add_bos_token`, `.add_space_prefix` and the ids. Where a key is missing, llama.cpp's default for the
//! kind of tokenizer holds, except for `pre`: it goes on with a rule of its own there and warns of bad
//! quality, and a file is refused here.

use std::ops::Range;

use super::added::TokenTrie;
use super::bpe::Bpe;
use super::merge::Merger;
use super::pretokenize::Splitter;
use super::spm::{SPACE_MARK, Spm};
use super::vocab::{Kind, Vocab, decode_byte_level, is_byte_level, named_byte};
use super::{Affixes, Backend, SpacePrefix, Tokenizer, ends};
use crate::error::{Context, Error, ErrorKind, Result, quoted};
use crate::weights::gguf::Metadata;

/// Control tokens of Gemma 4 that its GGUF files call user-defined, so that llama.cpp shows them. They stay
/// what they are in its tokenizer.json: nobody writes one by writing its letters.
const SHOWN: &[&str] = &[
    "<|tool_call>",
    "<tool_call|>",
    "<|tool_response>",
    "<tool_response|>",
    "<|\"|>",
    "<|channel>",
    "<channel|>",
];

/// What there is to do about a tokenizer in a GGUF file that cannot be read.
pub(super) const REMEDY: &str = "put the tokenizer.json of the original model (and its tokenizer_config.json) beside the \
     GGUF file, and it is read instead";

/// What text becomes tokens by.
pub(super) struct Tables {
    merging: Merging,
    added: TokenTrie,
    /// Tokens that swallow the white space after them (Phi-3's: the line break after `<|user|>`).
    swallowing: Vec<u32>,
}

enum Merging {
    Spm(Spm),
    Bpe(Bpe),
}

/// How the tokens are written in the file, and what merges them.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Alphabet {
    /// As SentencePiece does, by scores.
    Spm,
    /// The same, by a list of merges (Gemma 4).
    SpmMerges,
    ByteLevel,
}

/// Reads the tokenizer of a GGUF file.
pub(super) fn load(meta: &Metadata) -> Result<Tokenizer> {
    let model = meta.str("tokenizer.ggml.model")?;
    let alphabet = match model {
        Some("llama") => Alphabet::Spm,
        Some("gemma4") => Alphabet::SpmMerges,
        Some("gpt2") => Alphabet::ByteLevel,
        Some(other) => {
            return Err(Error::unsupported(format!(
                "the tokenizer in this GGUF file is of the kind {}; \
                 \"llama\" and \"gemma4\" (SentencePiece) and \"gpt2\" (byte-level BPE) are supported; {REMEDY}",
                quoted(other)
            )));
        }
        None => {
            let what = "this GGUF file holds no tokenizer (there is no key tokenizer.ggml.model)";
            return Err(Error::model_file(format!("{what}; {REMEDY}")));
        }
    };
    assemble(meta, alphabet).context("reading the tokenizer in the GGUF file")
}

/// Whether [`load`] fails for want of knowledge, so that a `tokenizer.json` beside the file can help.
pub(super) fn is_foreign(meta: &Metadata, error: &Error) -> bool {
    let none = || meta.str("tokenizer.ggml.model").is_ok_and(|model| model.is_none());
    error.kind() == ErrorKind::UnsupportedModel || none()
}

/// Checks that a tokenizer has the tokens of a file, each with the same id; `written` is a token's text. The
/// file may have more: converters fill up to the rows of the embedding.
pub(super) fn check_same(meta: &Metadata, written: impl Fn(u32) -> Option<String>) -> Result<()> {
    let tokens = meta.strs("tokenizer.ggml.tokens")?;
    for (id, token) in (0u32..).zip(tokens.iter().flat_map(|tokens| tokens.iter())) {
        // converters write the spaces of user-defined tokens as spaces
        let plain = |text: &str| text.replace(SPACE_MARK, " ");
        match written(id) {
            Some(text) if plain(&text) != plain(token) => {
                return Err(Error::model_file(format!(
                    "token {id} is {} there and {} in the GGUF file: it is not this model's tokenizer",
                    quoted(&text),
                    quoted(token)
                )));
            }
            None if !token.starts_with("[PAD") => {
                return Err(Error::model_file(format!(
                    "it has no token {id}, which is {} in the GGUF file: it is not this model's tokenizer",
                    quoted(token)
                )));
            }
            _ => {}
        }
    }
    Ok(())
}

fn assemble(meta: &Metadata, alphabet: Alphabet) -> Result<Tokenizer> {
    let mut vocab = read_vocab(meta, alphabet)?;
    let default = |id: u32| (alphabet == Alphabet::Spm && (id as usize) < vocab.len()).then_some(id);
    let bos = named_id(meta, &vocab, "bos")?.or(default(1));
    let eos = named_id(meta, &vocab, "eos")?.or(default(2));
    let unknown = named_id(meta, &vocab, "unknown")?.or(default(0));
    let named = [eos, named_id(meta, &vocab, "eot")?, named_id(meta, &vocab, "eom")?];
    // a marker that merging makes is a piece of everyday text in this vocabulary
    let merges = meta.strs("tokenizer.ggml.merges")?;
    let merged = |text: &[u8]| merges.is_some_and(|merges| merges.iter().any(|merge| makes(merge, text)));
    let ends = ends::find(&mut vocab, &named, |_, text| !merged(text));

    let (merging, add_bos) = match alphabet {
        Alphabet::Spm | Alphabet::SpmMerges => (Merging::Spm(spm(meta, &vocab, alphabet, unknown)?), true),
        Alphabet::ByteLevel => {
            let bpe = bpe(meta, &vocab)?;
            let add_bos = bpe.splitter().add_bos();
            (Merging::Bpe(bpe), add_bos)
        }
    };
    // Some files of Gemma 4 say that there is none, by mistake (llama.cpp, pull request 21500).
    let prefix = match alphabet {
        Alphabet::SpmMerges => bos.into_iter().collect(),
        _ => affix(meta, "bos", bos, add_bos)?,
    };
    let affixes = Affixes { prefix, suffix: affix(meta, "eos", eos, false)? };
    let space = match &merging {
        Merging::Spm(spm) if spm.add_space_prefix => SpacePrefix::Every,
        _ => SpacePrefix::Never,
    };
    let found = vocab.ids(|kind| kind.is_special() || kind == Kind::UserDefined);
    let added = TokenTrie::new(found.map(|id| (vocab.bytes(id), id)));
    let swallowing = swallowing(meta, alphabet, &vocab)?;
    let backend = Backend::Tables(Box::new(Tables { merging, added, swallowing }));
    Ok(Tokenizer { vocab, backend, bos, affixes, ends, space, joined: false })
}

/// The token `name` where `tokenizer.ggml.add_{name}_token` is true.
fn affix(meta: &Metadata, name: &str, id: Option<u32>, default: bool) -> Result<Vec<u32>> {
    let key = format!("tokenizer.ggml.add_{name}_token");
    match (meta.bool(&key)?, id) {
        (Some(true), None) => {
            Err(Error::model_file(format!("{key} is true and there is no tokenizer.ggml.{name}_token_id")))
        }
        (said, id) => Ok(id.filter(|_| said.unwrap_or(default)).into_iter().collect()),
    }
}

fn read_vocab(meta: &Metadata, alphabet: Alphabet) -> Result<Vocab> {
    let tokens = meta.strs("tokenizer.ggml.tokens")?.filter(|tokens| !tokens.is_empty());
    let tokens = tokens.ok_or_else(|| Error::model_file("tokenizer.ggml.tokens is missing or empty"))?;
    let types = meta.i32s("tokenizer.ggml.token_type")?;
    if let Some(types) = types.as_ref().filter(|types| types.len() < tokens.len()) {
        let (has, needs) = (types.len(), tokens.len());
        return Err(Error::model_file(format!(
            "tokenizer.ggml.token_type has {has} entries for {needs} tokens"
        )));
    }
    let mut vocab = Vocab::default();
    let mut bytes = Vec::new();
    for (id, token) in tokens.iter().enumerate() {
        let number = types.as_ref().and_then(|types| types.get(id)).copied();
        let kind = match kind(number, token, alphabet) {
            Kind::UserDefined if alphabet == Alphabet::SpmMerges && SHOWN.contains(&token) => Kind::Control,
            Kind::Normal | Kind::Unused if alphabet == Alphabet::ByteLevel && !is_byte_level(token) => {
                Kind::Unreachable
            }
            kind => kind,
        };
        decode_token(token, kind, alphabet, &mut bytes);
        vocab.push(&bytes, kind)?;
    }
    Ok(vocab)
}

/// The kind of a token by the number in the file; without one, bytes are known by their form.
fn kind(number: Option<i32>, token: &str, alphabet: Alphabet) -> Kind {
    match number {
        Some(2) => Kind::Unknown,
        Some(3) => Kind::Control,
        Some(4) => Kind::UserDefined,
        Some(5) => Kind::Unused,
        Some(6) if named_byte(token).is_some() => Kind::Byte,
        None if alphabet != Alphabet::ByteLevel && named_byte(token).is_some() => Kind::Byte,
        _ => Kind::Normal,
    }
}

fn decode_token(token: &str, kind: Kind, alphabet: Alphabet, bytes: &mut Vec<u8>) {
    bytes.clear();
    match (kind, alphabet) {
        (Kind::Byte, _) => bytes.extend(named_byte(token)),
        (Kind::Normal | Kind::Unused, Alphabet::ByteLevel) => decode_byte_level(token, bytes),
        (Kind::Normal | Kind::Unused, _) if token.contains(SPACE_MARK) => {
            bytes.extend_from_slice(token.replace(SPACE_MARK, " ").as_bytes());
        }
        _ => bytes.extend_from_slice(token.as_bytes()),
    }
}

/// `tokenizer.ggml.{name}_token_id`.
fn named_id(meta: &Metadata, vocab: &Vocab, name: &str) -> Result<Option<u32>> {
    let key = format!("tokenizer.ggml.{name}_token_id");
    match meta.u32(&key)? {
        Some(id) if id as usize >= vocab.len() => {
            Err(Error::model_file(format!("{key} is {id}, and there are {} tokens", vocab.len())))
        }
        id => Ok(id),
    }
}

fn spm(meta: &Metadata, vocab: &Vocab, alphabet: Alphabet, unknown: Option<u32>) -> Result<Spm> {
    let missing = |key: &str| Error::model_file(format!("tokenizer.ggml.{key} is missing"));
    let mut spm = match alphabet {
        Alphabet::SpmMerges => {
            let merges = meta.strs("tokenizer.ggml.merges")?.ok_or_else(|| missing("merges"))?;
            Spm::with_merges(vocab, merges.iter(), unknown)?
        }
        _ => {
            let scores = meta.f32s("tokenizer.ggml.scores")?.ok_or_else(|| missing("scores"))?;
            Spm::new(vocab, &scores, unknown)?
        }
    };
    let stated = meta.bool("tokenizer.ggml.add_space_prefix")?;
    spm.add_space_prefix = stated.unwrap_or(spm.add_space_prefix);
    spm.remove_extra_whitespaces = meta.bool("tokenizer.ggml.remove_extra_whitespaces")?.unwrap_or(false);
    Ok(spm)
}

fn bpe(meta: &Metadata, vocab: &Vocab) -> Result<Bpe> {
    let rule = meta.str("tokenizer.ggml.pre")?.ok_or_else(|| {
        Error::unsupported(format!(
            "the file does not say how its tokenizer splits words (there is no tokenizer.ggml.pre; it was \
             converted before April 2024): convert the model again, or {REMEDY}"
        ))
    })?;
    let splitter = Splitter::named(rule)?;
    let merges = meta.strs("tokenizer.ggml.merges")?;
    let merges = merges.ok_or_else(|| Error::model_file("tokenizer.ggml.merges is missing"))?;
    Bpe::new(vocab, merges.iter(), splitter)
}

/// Whether the two sides of a merge together are a text.
fn makes(merge: &str, text: &[u8]) -> bool {
    merge.len() == text.len() + 1 && merge.bytes().filter(|byte| *byte != b' ').eq(text.iter().copied())
}

/// Phi-3 was trained with added tokens that swallow white space to their right, all but these; GGUF has no
/// field for it.
fn swallowing(meta: &Metadata, alphabet: Alphabet, vocab: &Vocab) -> Result<Vec<u32>> {
    const PLAIN: &[&[u8]] = &[b"<unk>", b"<s>", b"<|endoftext|>"];
    if alphabet != Alphabet::Spm || meta.str("general.architecture")? != Some("phi3") {
        return Ok(Vec::new());
    }
    let found = vocab.ids(|kind| kind.is_special() || kind == Kind::UserDefined);
    Ok(found.filter(|id| !PLAIN.contains(&vocab.bytes(*id))).collect())
}

impl Tables {
    /// The tokens of a text; `control` says where control tokens may be read.
    pub fn encode(
        &self,
        vocab: &Vocab,
        text: &str,
        control: impl Fn(&Range<usize>) -> bool,
    ) -> Result<Vec<u32>> {
        let user_defined = |id| vocab.kind(id) == Some(Kind::UserDefined);
        let found = self.added.longest_first(text.as_bytes(), |range, id| user_defined(id) || control(range));
        let mut ids = Vec::with_capacity(text.len() / 4 + found.len());
        let mut work = Merger::default();
        let mut done = 0;
        let mut first = true;
        for token in found {
            let before = text.get(done..token.range.start).unwrap_or_default();
            self.encode_plain(vocab, before, first, &mut work, &mut ids)?;
            ids.push(token.id);
            first = true;
            done = token.range.end;
            if self.swallowing.contains(&token.id) {
                let rest = text.get(done..).unwrap_or_default();
                done += rest.len() - rest.trim_start_matches([' ', '\t', '\n', '\x0b', '\x0c', '\r']).len();
            }
        }
        self.encode_plain(vocab, text.get(done..).unwrap_or_default(), first, &mut work, &mut ids)?;
        Ok(ids)
    }

    fn encode_plain(
        &self,
        vocab: &Vocab,
        text: &str,
        first: bool,
        work: &mut Merger,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        match &self.merging {
            _ if text.is_empty() => Ok(()),
            Merging::Spm(spm) => spm.encode(vocab, text, first, work, ids),
            Merging::Bpe(bpe) => {
                bpe.encode(vocab, text, work, ids);
                Ok(())
            }
        }
    }

    /// A token by how the file writes it.
    pub fn id(&self, vocab: &Vocab, token: &str) -> Option<u32> {
        let mut as_written = vocab.ids(|kind| !kind.is_piece() && kind != Kind::Byte);
        if let Some(id) = as_written.find(|id| vocab.bytes(*id) == token.as_bytes() && !token.is_empty()) {
            return Some(id);
        }
        match &self.merging {
            Merging::Spm(spm) => spm.id(vocab, token),
            Merging::Bpe(bpe) => bpe.id(vocab, token),
        }
    }
}
