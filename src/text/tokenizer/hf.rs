//! `tokenizer.json`, through Hugging Face's `tokenizers` crate.
//!
//! The crate normalizes, splits and merges. Finding the added tokens is done here: the crate can only read
//! all special tokens or none, and a prompt needs those of the template and not those that a user wrote.
//! Decoding is done here as well, from a table of bytes: [`Spelling`] reads from the file's decoder how its
//! tokens are written.
//!
//! The crate panics, loading or encoding, at contradictions in the file (a post-processor's token that is not
//! defined, a prefix longer than a token, a pattern that matches nothing), too many kinds of them to look for
//! each beforehand: every way into it goes through [`guarded`].
//!
//! Nothing in these files is executed, and no file is read but the three named in [`load`].

use std::collections::HashMap;
use std::fmt::Display;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

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
use super::vocab::{Kind, Vocab, decode_byte_level, named_byte};
use super::{Affixes, Backend, SpacePrefix, Tokenizer};
use crate::error::{Context, Error, PARAGRAPH, Result, quoted, shortened};

const TOKENIZER: &str = "tokenizer.json";
const CONFIG: &str = "tokenizer_config.json";
const SPECIALS: &str = "special_tokens_map.json";

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

/// What this program reads of the file besides the crate: the ids that the added tokens say they have.
#[derive(Deserialize)]
struct Declared {
    #[serde(default)]
    added_tokens: Vec<DeclaredToken>,
}

#[derive(Deserialize)]
struct DeclaredToken {
    id: u32,
    content: String,
}

/// Runs what calls into the crate; its panic is the file's fault. The panic hook has written about it to stderr
/// by then: a hook is the whole process's, so it is not ours to change.
fn guarded<T>(file: impl Display, work: impl FnOnce() -> Result<T>) -> Result<T> {
    catch_unwind(AssertUnwindSafe(work)).unwrap_or_else(|_| {
        Err(Error::model_file(format!("{file} contradicts itself: the tokenizer that it describes fails")))
    })
}

/// Reads the tokenizer of a folder.
pub(super) fn load(dir: &Path) -> Result<Tokenizer> {
    let path = dir.join(TOKENIZER);
    guarded(path.display(), || read(dir, &path))
}

fn read(dir: &Path, path: &Path) -> Result<Tokenizer> {
    let bytes = std::fs::read(path).map_err(|error| {
        Error::model_file(format!("{}: {error}; the folder needs a {TOKENIZER}", path.display()))
    })?;
    let malformed = |error: tokenizers::Error| {
        let error = shortened(error, PARAGRAPH);
        Error::model_file(format!("{} is not a tokenizer that can be read: {error}", path.display()))
    };
    let mut tokenizer = tokenizers::Tokenizer::from_bytes(&bytes).map_err(malformed)?;
    let declared: Declared = serde_json::from_slice(&bytes).map_err(|error| malformed(error.into()))?;
    drop(bytes);
    check_declared(&tokenizer, &declared).context(path.display())?;
    switch_off_dropout(&mut tokenizer);
    // what a training script left switched on would cut prompts silently
    tokenizer.with_truncation(None).map_err(malformed)?;
    tokenizer.with_padding(None);
    let config = optional_json(&dir.join(CONFIG))?;
    let specials = optional_json(&dir.join(SPECIALS))?;
    assemble(tokenizer, &config, &specials).context(path.display())
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

/// A JSON file that need not exist: `Null` then.
fn optional_json(path: &Path) -> Result<Value> {
    match std::fs::read(path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Value::Null),
        Err(error) => Err(Error::model_file(format!("{}: {error}", path.display()))),
        Ok(bytes) => serde_json::from_slice(&bytes)
            .map_err(|error| Error::model_file(format!("{} is not JSON: {error}", path.display()))),
    }
}

fn assemble(tokenizer: tokenizers::Tokenizer, config: &Value, specials: &Value) -> Result<Tokenizer> {
    let spelling = Spelling::of(&tokenizer)?;
    let added: HashMap<u32, AddedToken> = tokenizer.get_added_tokens_decoder().into_iter().collect();
    let mut vocab = read_vocab(&tokenizer, &added, &spelling)?;
    let token = |name: &str| {
        let text = token_text(&config[name]).or_else(|| token_text(&specials[name]))?;
        tokenizer.token_to_id(text)
    };
    let affixes = affixes(&tokenizer)?;
    let bos = token("bos_token").or(affixes.prefix.first().copied());
    let eos = token("eos_token");
    let ends = ends::find(&mut vocab, &[eos], |kind, _| kind == Kind::UserDefined);
    let space = spelling.space;
    let json = Json::new(tokenizer, added)?;
    Ok(Tokenizer { vocab, backend: Backend::Json(Box::new(json)), bos, affixes, ends, space })
}

/// A token in a configuration: its text, or an object with it.
fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or_else(|| value["content"].as_str())
}

/// What the post-processor puts around a single text; nothing without one. `add_bos_token` and `add_eos_token`
/// of `tokenizer_config.json` are from before there were post-processors, and transformers 5 ignores them here.
fn affixes(tokenizer: &tokenizers::Tokenizer) -> Result<Affixes> {
    // a text of one token, which no vocabulary has
    const TEXT: u32 = u32::MAX;
    let text = Token::new(TEXT, "a".into(), (0, 1));
    let ids = tokenizer.post_process(Encoding::from_tokens(vec![text], 0), None, true).map_err(failed)?;
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
            Some(token) => vocab.push(token.content.as_bytes(), kind)?,
            None => {
                spelling.decode(text, &mut bytes);
                vocab.push(&bytes, kind)?;
            }
        }
    }
    Ok(vocab)
}

impl Json {
    fn new(tokenizer: tokenizers::Tokenizer, added: HashMap<u32, AddedToken>) -> Result<Self> {
        let mut written = Vec::new();
        let mut normalized = Vec::new();
        for (id, token) in &added {
            let mut text = NormalizedString::from(token.content.as_str());
            if let Some(normalizer) = tokenizer.get_normalizer().filter(|_| token.normalized) {
                normalizer.normalize(&mut text).map_err(failed)?;
            }
            let list = if token.normalized { &mut normalized } else { &mut written };
            list.push((text.get().to_owned(), *id));
        }
        let trie = |mut tokens: Vec<(String, u32)>| {
            tokens.sort_unstable_by_key(|(_, id)| *id);
            TokenTrie::new(tokens.iter().map(|(text, id)| (text.as_bytes(), *id)))
        };
        Ok(Json { tokenizer, added, as_written: trie(written), normalized: trie(normalized) })
    }

    pub fn id(&self, token: &str) -> Option<u32> {
        self.tokenizer.token_to_id(token)
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

/// How the tokens of the model are written, read from the decoder.
struct Spelling {
    byte_level: bool,
    /// What is replaced in each token, in this order.
    replacements: Vec<(String, String)>,
    /// `<0xNN>` is a byte.
    named_bytes: bool,
    space: SpacePrefix,
}

impl Spelling {
    fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        let json = |part: serde_json::Result<Value>| part.map_err(|error| Error::internal(error.to_string()));
        let splitter = json(serde_json::to_value(tokenizer.get_pre_tokenizer()))?;
        let normalizer = json(serde_json::to_value(tokenizer.get_normalizer()))?;
        let mut decoder = json(serde_json::to_value(tokenizer.get_decoder()))?;
        if decoder.is_null() {
            // some files leave it out; the splitter knows the alphabet
            decoder = parts(&splitter)
                .into_iter()
                .find(|part| part["type"] == "ByteLevel")
                .cloned()
                .unwrap_or_default();
        }
        let mut spelling = Spelling {
            byte_level: false,
            replacements: Vec::new(),
            named_bytes: false,
            space: SpacePrefix::Never,
        };
        for part in parts(&decoder) {
            spelling.add(part)?;
        }
        if spelling.space == SpacePrefix::First && prefixes_every_piece(&splitter, &normalizer) {
            spelling.space = SpacePrefix::Every;
        }
        Ok(spelling)
    }

    /// Takes one step of the decoder.
    fn add(&mut self, part: &Value) -> Result<()> {
        match part["type"].as_str() {
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.named_bytes = true,
            Some("Fuse") => {}
            Some("Replace") if part["pattern"]["String"].is_string() => {
                let from = part["pattern"]["String"].as_str().unwrap_or_default();
                let to = part["content"].as_str().unwrap_or_default();
                self.replacements.push((from.to_owned(), to.to_owned()));
            }
            Some("Metaspace") => {
                let mark = part["replacement"].as_str().unwrap_or("▁");
                self.replacements.push((mark.to_owned(), " ".to_owned()));
                if part["prepend_scheme"] != "never" {
                    self.space = SpacePrefix::First;
                }
            }
            Some("Strip") if part["content"] == " " && part["stop"] == 0 => {
                if part["start"] != 0 {
                    self.space = SpacePrefix::First;
                }
            }
            other => {
                let name = quoted(other.unwrap_or("none"));
                return Err(Error::unsupported(format!(
                    "the tokenizer decodes by {name}; byte-level and SentencePiece tokenizers are supported"
                )));
            }
        }
        Ok(())
    }

    fn decode(&self, token: &str, bytes: &mut Vec<u8>) {
        bytes.clear();
        if self.byte_level {
            return decode_byte_level(token, bytes);
        }
        if let Some(byte) = named_byte(token).filter(|_| self.named_bytes) {
            return bytes.push(byte);
        }
        let mut text = std::borrow::Cow::Borrowed(token);
        for (from, to) in self.replacements.iter().filter(|(from, _)| !from.is_empty()) {
            if text.contains(from) {
                text = text.replace(from, to).into();
            }
        }
        bytes.extend_from_slice(text.as_bytes());
    }
}

/// The steps of a sequence, nested ones too; of anything else, itself.
fn parts(value: &Value) -> Vec<&Value> {
    let lists = ["decoders", "pretokenizers", "normalizers"];
    match lists.iter().find_map(|list| value[list].as_array()) {
        Some(list) => list.iter().flat_map(parts).collect(),
        None => vec![value],
    }
}

/// Whether the space goes before each stretch of plain text, and not before the whole text alone.
fn prefixes_every_piece(splitter: &Value, normalizer: &Value) -> bool {
    parts(normalizer).iter().any(|part| part["type"] == "Prepend")
        || parts(splitter)
            .iter()
            .any(|part| part["type"] == "Metaspace" && part["prepend_scheme"] == "always")
}
