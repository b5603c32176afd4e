//! `tokenizer.json`, through Hugging Face's `tokenizers` crate.
//!
//! The crate normalizes, splits and merges. Finding the added tokens is done here: the crate can only read
//! all special tokens or none, and a prompt needs those of the template and not those that a user wrote.
//! Decoding is done here as well, from a table of bytes: [`Spelling`] reads from the file's decoder how its
//! tokens are written. Tokens that stand only in the files beside it are added by [`declared`].
//!
//! The file says what a text becomes. transformers 5 builds some tokenizers anew from a file's vocabulary and
//! merges alone (`LlamaTokenizer`, `GemmaTokenizer`, `GPTNeoXTokenizer` among its classes), with the
//! splitting that the class knows; those classes are not imitated.
//!
//! `clean_up_tokenization_spaces` has no effect: it takes spaces before punctuation out of the text that is
//! shown, which transformers itself does for BPE no longer because it destroys what the model wrote.
//!
//! The crate panics, loading or encoding, at contradictions in the file (a post-processor's token that is not
//! defined, a prefix longer than a token, a pattern that matches nothing), too many kinds of them to look for
//! each beforehand: every way into it goes through [`guarded`].
//!
//! Nothing in these files is executed, and no file is read but `tokenizer.json` and the three of [`Beside`].

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde_json::Value;
use tokenizers::models::ModelWrapper;
use tokenizers::normalizer::Range as TextRange;
use tokenizers::{
    AddedToken, Encoding, Model, NormalizedString, Normalizer, OffsetReferential, OffsetType,
    PreTokenizedString, PreTokenizer, Token,
};

use super::added::{Allow, TokenTrie};
use super::ends;
use super::vocab::{Kind, Vocab};
use super::{Affixes, Backend, Tokenizer};
use crate::error::{Context, Error, PARAGRAPH, Result, quoted, shortened};
use crate::small_file::read_text;
use declared::Beside;
use spelling::Spelling;

mod declared;
mod spelling;

const TOKENIZER: &str = "tokenizer.json";

/// The largest published ones have some 35 MB.
const TOKENIZER_LIMIT: u64 = 256 << 20;

/// Ids that no token has take five bytes each, so one token with a huge id would cost gigabytes. Real
/// vocabularies have holes of some hundred ids (rows kept free for new tokens); an id is believed up to twice
/// the number of tokens and this many more, which is some hundred KiB for the smallest file.
const LARGEST_HOLE: u64 = 1 << 16;

/// The tokenizer of a `tokenizer.json`.
pub(super) struct Json {
    tokenizer: tokenizers::Tokenizer,
    added: HashMap<u32, AddedToken>,
    /// Added tokens that are looked for in the text as it is, and those looked for in the normalized text.
    as_written: TokenTrie,
    normalized: TokenTrie,
}

/// What this program reads of the file besides the crate: the ids that the added tokens say they have, and
/// what the normalizer makes the crate allocate.
#[derive(Deserialize)]
struct Declared {
    #[serde(default)]
    added_tokens: Vec<DeclaredToken>,
    #[serde(default)]
    normalizer: Value,
}

#[derive(Deserialize)]
struct DeclaredToken {
    id: u32,
    content: String,
}

/// Runs what calls into the crate; its panic is the file's fault. The panic hook has written about it to
/// stderr by then: a hook is the whole process's, so it is not ours to change.
fn guarded<T>(file: impl Display, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::model_file(format!("{file} contradicts itself: the tokenizer that it describes fails")))
    })
}

/// The file that [`load`] reads of a folder.
pub(super) fn path_in(dir: &Path) -> PathBuf {
    dir.join(TOKENIZER)
}

pub(super) fn is_in(dir: &Path) -> bool {
    path_in(dir).is_file()
}

/// Reads the tokenizer of a folder.
pub(super) fn load(dir: &Path) -> Result<Tokenizer> {
    let path = path_in(dir);
    guarded(path.display(), || read(dir, &path))
}

fn read(dir: &Path, path: &Path) -> Result<Tokenizer> {
    let text = read_text(path, TOKENIZER_LIMIT)?.ok_or_else(|| {
        Error::model_file(format!("{} is missing; the folder needs a {TOKENIZER}", path.display()))
    })?;
    let malformed = |error: tokenizers::Error| {
        let error = shortened(error, PARAGRAPH);
        Error::model_file(format!("{} is not a tokenizer that can be read: {error}", path.display()))
    };
    let declared: Declared = serde_json::from_str(&text).map_err(|error| malformed(error.into()))?;
    check_charsmaps(&declared.normalizer).context(path.display())?;
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(&text).map_err(malformed)?;
    drop(text);
    check_declared(&tokenizer, &declared).context(path.display())?;
    switch_off_dropout(&mut tokenizer);
    // what a training script left switched on would cut prompts silently
    tokenizer.with_truncation(None).map_err(malformed)?;
    tokenizer.with_padding(None);
    let beside = Beside::read(dir)?;
    declared::complete(&mut tokenizer, &beside).context(dir.display())?;
    assemble(tokenizer, &beside).context(path.display())
}

/// The crate numbers the added tokens by their order, whatever ids they say they have, and only logs where
/// the two differ; the model was trained with what is said.
fn check_declared(tokenizer: &tokenizers::Tokenizer, declared: &Declared) -> Result<()> {
    // an empty one is never found in a text, and has no id
    for DeclaredToken { id, content } in
        declared.added_tokens.iter().filter(|token| !token.content.is_empty())
    {
        let given = tokenizer.token_to_id(content);
        if given != Some(*id) {
            return Err(Error::model_file(format!(
                "added_tokens says that {} has the id {id}, and by the vocabulary and its place in the list it \
                 has {}; give the added tokens the ids that follow the vocabulary's, in order",
                quoted(content),
                given.map_or("none".into(), |given| given.to_string())
            )));
        }
    }
    Ok(())
}

/// A `precompiled_charsmap` begins with the length of its trie. The crate believes it and takes memory for as
/// much, so it is held against the text first.
fn check_charsmaps(normalizer: &Value) -> Result<()> {
    match normalizer {
        Value::Array(items) => items.iter().try_for_each(check_charsmaps),
        Value::Object(members) => {
            let map = members.get("precompiled_charsmap").and_then(Value::as_str);
            if map.is_some_and(|map| trie_bytes(map).is_some_and(|bytes| bytes > map.len() / 4 * 3)) {
                return Err(Error::model_file("the normalizer's precompiled_charsmap is cut short"));
            }
            members.values().try_for_each(check_charsmaps)
        }
        _ => Ok(()),
    }
}

/// The length at the beginning of a map in base64: a u32, little-endian, in the first six digits. `None`
/// where the crate refuses the text by itself.
fn trie_bytes(map: &str) -> Option<usize> {
    let digit = |byte: u8| match byte {
        b'A'..=b'Z' => Some(byte - b'A'),
        b'a'..=b'z' => Some(byte - b'a' + 26),
        b'0'..=b'9' => Some(byte - b'0' + 52),
        b'+' => Some(62),
        b'/' => Some(63),
        _ => None,
    };
    let digits = map.as_bytes().first_chunk::<6>()?;
    let bits = digits.iter().try_fold(0u64, |bits, byte| Some((bits << 6) | u64::from(digit(*byte)?)))?;
    let bytes = (bits >> 4).to_be_bytes();
    Some(u32::from_le_bytes([bytes[4], bytes[5], bytes[6], bytes[7]]) as usize)
}

/// BPE dropout leaves merges out at random, for training: the same prompt would have other tokens each time.
fn switch_off_dropout(tokenizer: &mut tokenizers::Tokenizer) {
    if let ModelWrapper::BPE(model) = tokenizer.get_model()
        && model.dropout.is_some()
    {
        let mut model = model.clone();
        model.dropout = None;
        tokenizer.with_model(model);
    }
}

fn assemble(tokenizer: tokenizers::Tokenizer, beside: &Beside) -> Result<Tokenizer> {
    let spelling = Spelling::of(&tokenizer)?;
    let added: HashMap<u32, AddedToken> = tokenizer.get_added_tokens_decoder().into_iter().collect();
    let mut vocab = read_vocab(&tokenizer, &added, &spelling)?;
    let token = |name: &str| tokenizer.token_to_id(beside.token(name)?);
    let affixes = affixes(&tokenizer)?;
    let bos = token("bos_token").or(affixes.prefix.first().copied());
    let eos = token("eos_token");
    let ends = ends::find(&mut vocab, &[eos], |kind, _| kind == Kind::UserDefined);
    let (space, joined) = (spelling.space, spelling.joined);
    let backend = Backend::Json(Box::new(Json::new(tokenizer, added)?));
    Ok(Tokenizer { vocab, backend, bos, affixes, ends, space, joined })
}

/// What the post-processor puts around a single text; nothing without one. `add_bos_token` and
/// `add_eos_token` of `tokenizer_config.json` are from before there were post-processors, and transformers 5
/// ignores them here.
fn affixes(tokenizer: &tokenizers::Tokenizer) -> Result<Affixes> {
    // what contradicts itself for every text must be found now and not with the first prompt; one letter may
    // well have no token
    drop(tokenizer.encode_fast("a", false));
    // a text of one token, which no vocabulary has
    const TEXT: u32 = u32::MAX;
    let text = Token::new(TEXT, "a".into(), (0, 1));
    let ids = tokenizer.post_process(Encoding::from_tokens(vec![text], 0), None, true).map_err(failed)?;
    if let Some(id) = ids.get_ids().iter().find(|id| **id != TEXT && tokenizer.id_to_token(**id).is_none()) {
        return Err(Error::model_file(format!(
            "the post-processor writes token {id}, which is not in the vocabulary"
        )));
    }
    match ids.get_ids().split(|id| *id == TEXT).collect::<Vec<_>>().as_slice() {
        [prefix, suffix] => Ok(Affixes { prefix: prefix.to_vec(), suffix: suffix.to_vec() }),
        parts => Err(Error::unsupported(format!(
            "the post-processor writes a text {} times; once is supported",
            parts.len().saturating_sub(1)
        ))),
    }
}

fn read_vocab(
    tokenizer: &tokenizers::Tokenizer,
    added: &HashMap<u32, AddedToken>,
    spelling: &Spelling,
) -> Result<Vocab> {
    let mut tokens: Vec<(u32, String)> =
        tokenizer.get_vocab(true).into_iter().map(|(text, id)| (id, text)).collect();
    tokens.sort_unstable();
    let most = 2 * tokens.len() as u64 + LARGEST_HOLE;
    if let Some((id, text)) = tokens.last().filter(|(id, _)| u64::from(*id) >= most) {
        return Err(Error::model_file(format!(
            "the token {} has the id {id}, far beyond the number of tokens, {}",
            quoted(text),
            tokens.len()
        )));
    }
    let mut vocab = Vocab::default();
    let mut bytes = Vec::new();
    for (id, text) in &tokens {
        while vocab.len() < *id as usize {
            vocab.push(&[], Kind::Unused)?;
        }
        if vocab.len() > *id as usize {
            continue; // an added token shares the id of a token of the model, and stands for it
        }
        let kind = match added.get(id) {
            Some(token) if token.special => Kind::Control,
            Some(_) => Kind::UserDefined,
            None => Kind::Normal,
        };
        match added.get(id) {
            Some(token) if token.special => vocab.push(token.content.as_bytes(), kind)?,
            Some(token) => {
                spelling.decode_added(&normalized(tokenizer, token)?, &mut bytes);
                vocab.push(&bytes, kind)?;
            }
            None => {
                spelling.decode(text, &mut bytes);
                vocab.push(&bytes, kind)?;
            }
        }
    }
    Ok(vocab)
}

/// The text by which an added token is found, and which the decoder is given for it.
fn normalized(tokenizer: &tokenizers::Tokenizer, token: &AddedToken) -> Result<String> {
    let mut text = NormalizedString::from(token.content.as_str());
    if let Some(normalizer) = tokenizer.get_normalizer().filter(|_| token.normalized) {
        normalizer.normalize(&mut text).map_err(failed)?;
    }
    Ok(text.get().to_owned())
}

impl Json {
    fn new(tokenizer: tokenizers::Tokenizer, added: HashMap<u32, AddedToken>) -> Result<Self> {
        let mut written = Vec::new();
        let mut found_later = Vec::new();
        for (id, token) in &added {
            let list = if token.normalized { &mut found_later } else { &mut written };
            list.push((normalized(&tokenizer, token)?, *id));
        }
        let trie = |mut tokens: Vec<(String, u32)>| {
            tokens.sort_unstable_by_key(|(_, id)| *id);
            TokenTrie::new(tokens.iter().map(|(text, id)| (text.as_bytes(), *id)))
        };
        Ok(Json { tokenizer, added, as_written: trie(written), normalized: trie(found_later) })
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
    }

    /// A token as the file writes it.
    pub fn written(&self, id: u32) -> Option<String> {
        self.added.get(&id).map(|token| token.content.clone()).or_else(|| self.tokenizer.id_to_token(id))
    }

    /// The tokens of a text; `control` says where control tokens may be read.
    pub fn encode(
        &self,
        vocab: &Vocab,
        text: &str,
        control: impl Fn(&Range<usize>) -> bool,
    ) -> Result<Vec<u32>> {
        guarded(TOKENIZER, || self.tokens(vocab, text, &control).map_err(failed))
    }

    fn tokens(
        &self,
        vocab: &Vocab,
        text: &str,
        control: &impl Fn(&Range<usize>) -> bool,
    ) -> tokenizers::Result<Vec<u32>> {
        let mut pieces = PreTokenizedString::from(text);
        let allowed = |piece: &NormalizedString, range: &Range<usize>, id| {
            let special = vocab.kind(id).is_some_and(Kind::is_special);
            !special || original_range(piece, range).is_some_and(|range| control(&range))
        };
        pieces.split(|_, piece| {
            let allow = |range: &Range<usize>, id| allowed(&piece, range, id);
            self.cut(&self.as_written, &piece, allow)
        })?;
        pieces.split(|_, mut piece| {
            if let Some(normalizer) = self.tokenizer.get_normalizer() {
                normalizer.normalize(&mut piece)?;
            }
            let allow = |range: &Range<usize>, id| allowed(&piece, range, id);
            self.cut(&self.normalized, &piece, allow)
        })?;
        if let Some(splitter) = self.tokenizer.get_pre_tokenizer() {
            splitter.pre_tokenize(&mut pieces)?;
        }
        pieces.tokenize(|piece| self.tokenizer.get_model().tokenize(piece.get()))?;
        let splits = pieces.get_splits(OffsetReferential::Original, OffsetType::None);
        Ok(splits
            .iter()
            .filter_map(|(_, _, tokens)| tokens.as_ref())
            .flatten()
            .map(|token| token.id)
            .collect())
    }

    /// Cuts a piece of the text at the added tokens in it.
    fn cut(
        &self,
        trie: &TokenTrie,
        piece: &NormalizedString,
        allow: impl Allow,
    ) -> tokenizers::Result<Vec<(NormalizedString, Option<Vec<Token>>)>> {
        let text = piece.get();
        let whole_word = |range: &Range<usize>, id: u32| {
            let single = self.added.get(&id).is_some_and(|token| token.single_word);
            !single || stands_alone(text, range)
        };
        let found = trie
            .leftmost(text.as_bytes(), |range: &Range<usize>, id| allow(range, id) && whole_word(range, id));
        let slice = |range: Range<usize>| {
            piece.slice(TextRange::Normalized(range)).ok_or("an added token cuts through a character")
        };
        let mut cuts = Vec::with_capacity(found.len() * 2 + 1);
        let mut done = 0;
        for token in found {
            // white space that the token before has swallowed is gone
            let range = self.widened(text, &token.range, token.id, done);
            if done < range.start {
                cuts.push((slice(done..range.start)?, None));
            }
            done = range.end;
            let token = Token::new(token.id, String::new(), (0, range.len()));
            cuts.push((slice(range)?, Some(vec![token])));
        }
        if done < text.len() {
            cuts.push((slice(done..text.len())?, None));
        }
        Ok(cuts)
    }

    /// The range of a token with the white space that it swallows on either side.
    fn widened(&self, text: &str, range: &Range<usize>, id: u32, done: usize) -> Range<usize> {
        let (mut start, mut end) = (range.start.max(done), range.end.max(done));
        let Some(token) = self.added.get(&id) else { return start..end };
        if token.lstrip {
            start = done + text.get(done..start).unwrap_or_default().trim_end().len();
        }
        if token.rstrip {
            let rest = text.get(end..).unwrap_or_default();
            end += rest.len() - rest.trim_start().len();
        }
        start..end
    }
}

/// Where a range of a normalized piece lies in the original text.
fn original_range(piece: &NormalizedString, range: &Range<usize>) -> Option<Range<usize>> {
    let (start, end) = piece.slice(TextRange::Normalized(range.clone()))?.offsets_original();
    Some(start..end)
}

/// Whether no letter, digit or underscore touches a range.
fn stands_alone(text: &str, range: &Range<usize>) -> bool {
    let word = |char: Option<char>| char.is_some_and(|char| char.is_alphanumeric() || char == '_');
    let before = text.get(..range.start).and_then(|text| text.chars().next_back());
    let after = text.get(range.end..).and_then(|text| text.chars().next());
    !word(before) && !word(after)
}

fn failed(error: tokenizers::Error) -> Error {
    Error::invalid(format!("the tokenizer failed: {}", shortened(error, PARAGRAPH)))
}
