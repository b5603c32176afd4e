//! A `tokenizer.json` as the tokenizer tables of a GGUF file: the inverse of [`gguf`](super::gguf).
//!
//! What GGUF has no place for is refused. And since two programs that split words by other rules differ in
//! few texts, what was written is read back and held against the original: the bytes and the use of every
//! token, what goes around a text, and the tokens of some [`SAMPLES`].

use std::path::Path;

use serde_json::Value;

use super::pretokenize::rule_of;
use super::vocab::{Kind, named_byte};
use super::{Tokenizer, hf};
use crate::config::json;
use crate::error::{Context, Error, Result, quoted};
use crate::weights::Bytes;
use crate::weights::Gguf;
use crate::weights::write::{self, gguf_bool, gguf_f32s, gguf_i32s, gguf_str, gguf_strs, gguf_u32};

/// Texts that rules of splitting, spaces and bytes differ in.
const SAMPLES: &[&str] = &[
    "Hello world",
    " Hello  world,   again ",
    "It's 1234567 and they'LL say \"3.14159\".\n\n\tdef f(x):\n\t\treturn x**2  # done\r\n",
    "Größe, naïveté, Привет мир, 你好世界, こんにちは, العربية, हिन्दी",
    "\u{1f642}\u{1f680}, \u{200d}, ½, ①, ﬁ",
    "snake_case CamelCase http://example.org/?q=1&r=2 <b>x</b> {\"a\": [1, 2]} a/b\\c",
    "\n\n\n \n  \n",
];

/// One in another form of Unicode, which a normalizer changes.
const DECOMPOSED: &str = "Re\u{301}sume\u{301}, A\u{30a}se";

/// A tokenizer as GGUF has it.
pub struct Written {
    /// The keys of `tokenizer.ggml`, encoded.
    pub pairs: Vec<Vec<u8>>,
    /// What people should know.
    pub notes: Vec<String>,
}

/// The tokenizer of a folder as keys of GGUF, filled up to `rows` tokens; `eos`: the ids that end an answer,
/// as the model's other files say.
///
/// # Errors
/// As [`Tokenizer::from_hf`]; `UnsupportedModel` for what GGUF does not hold.
pub fn to_gguf(dir: &Path, rows: usize, eos: &[u32]) -> Result<Written> {
    let path = hf::path_in(dir);
    let own = Tokenizer::from_hf(dir)?;
    let file = json::read_object(&path)?.ok_or_else(|| Error::internal("no tokenizer.json"))?;
    let beside = json::read(&dir.join("tokenizer_config.json"))?.unwrap_or_default();
    let file = Source { own: &own, file: Value::Object(file), beside };
    let mut written = file.write(rows, eos).context(path.display())?;
    let normalizes = !file.file["normalizer"].is_null();
    let read = check(&own, &written.pairs, normalizes).context(path.display())?;
    let lost: Vec<_> = eos.iter().chain(own.eos_ids()).filter(|id| !read.eos_ids().contains(id)).collect();
    if !lost.is_empty() {
        written.notes.push(format!("the tokens {lost:?} end an answer too, which the file does not say"));
    }
    Ok(written)
}

struct Source<'a> {
    own: &'a Tokenizer,
    file: Value,
    beside: Value,
}

fn unsupported(what: impl std::fmt::Display) -> Error {
    Error::unsupported(format!("{what} has no place in a GGUF file that is written here"))
}

impl Source<'_> {
    fn write(&self, rows: usize, eos: &[u32]) -> Result<Written> {
        let model = &self.file["model"];
        if model["type"].as_str().is_some_and(|kind| kind != "BPE") || model["merges"].is_null() {
            return Err(unsupported(format_args!("a tokenizer of the kind {}", model["type"])));
        }
        let spm = model["byte_fallback"].as_bool() == Some(true);
        let tokens = self.tokens(rows.max(self.own.vocab_size()), spm)?;
        let mut pairs = match spm {
            true => self.sentencepiece(&tokens)?,
            false => self.byte_level()?,
        };
        pairs.push(gguf_strs("tokenizer.ggml.tokens", tokens.iter().map(|(text, _)| text.as_str())));
        let kinds: Vec<i32> = tokens.iter().map(|(_, kind)| *kind).collect();
        pairs.push(gguf_i32s("tokenizer.ggml.token_type", &kinds));
        pairs.extend(self.special(eos)?);
        let mut notes = Vec::new();
        if !spm && !self.file["normalizer"].is_null() {
            notes.push(format!(
                "the tokenizer normalizes texts ({}), for which GGUF has no key: a text that is not in that form has \
                 other tokens there",
                self.file["normalizer"]["type"].as_str().unwrap_or("some way")
            ));
        }
        Ok(Written { pairs, notes })
    }

    /// Text and kind (`tokenizer.ggml.token_type`) of each token; ids that have none are filled up.
    fn tokens(&self, count: usize, spm: bool) -> Result<Vec<(String, i32)>> {
        let mut tokens: Vec<_> = (0..count).map(|id| (format!("[PAD{id}]"), 5)).collect();
        let vocab = self.file["model"]["vocab"].as_object();
        for (text, id) in vocab.into_iter().flatten() {
            let byte = spm && named_byte(text).is_some();
            *place(&mut tokens, id)? = (text.clone(), if byte { 6 } else { 1 });
        }
        // Those that stand in the files beside it are among its own.
        for (id, token) in (0u32..).zip(&mut tokens) {
            let bytes = self.own.token_bytes(id);
            let kind = match self.own.vocab.kind(id) {
                Some(Kind::Unknown) => 2,
                Some(Kind::Control) => 3,
                Some(Kind::UserDefined) => 4,
                _ => continue,
            };
            let text = std::str::from_utf8(bytes).map_err(|_| unsupported("a special token of bytes"))?;
            *token = (text.to_owned(), kind);
        }
        Ok(tokens)
    }

    /// Byte-level BPE: the name of the rule that splits words, and the merges.
    fn byte_level(&self) -> Result<Vec<Vec<u8>>> {
        let whole_words = self.file["model"]["ignore_merges"].as_bool() == Some(true);
        let patterns = patterns(&self.file["pre_tokenizer"])?;
        let rule = rule_of(&patterns, whole_words).ok_or_else(|| {
            unsupported(format_args!(
                "its rule of splitting words ({}), which has no name,",
                patterns.join(", then ")
            ))
        })?;
        let merges = self.merges()?;
        Ok(vec![
            gguf_str("tokenizer.ggml.model", "gpt2"),
            gguf_str("tokenizer.ggml.pre", rule),
            gguf_strs("tokenizer.ggml.merges", merges.iter().map(String::as_str)),
        ])
    }

    fn merges(&self) -> Result<Vec<String>> {
        let list = self.file["model"]["merges"].as_array().map_or(&[][..], Vec::as_slice);
        let merge = |merge: &Value| match (merge.as_str(), merge[0].as_str(), merge[1].as_str()) {
            (Some(text), ..) => Ok(text.to_owned()),
            (None, Some(left), Some(right)) => Ok(format!("{left} {right}")),
            _ => Err(Error::model_file("a merge is no pair of texts")),
        };
        list.iter().map(merge).collect()
    }

    /// SentencePiece's way: a token's score says when it is merged, so the earlier its first merge the
    /// higher.
    fn sentencepiece(&self, tokens: &[(String, i32)]) -> Result<Vec<Vec<u8>>> {
        let mut ranks = std::collections::HashMap::new();
        for (rank, merge) in self.merges()?.into_iter().enumerate() {
            // The sides have no spaces: those are written as U+2581.
            ranks.entry(merge.replace(' ', "")).or_insert(rank);
        }
        let score = |(text, kind): &(String, i32)| match (kind, ranks.get(text)) {
            (1, Some(rank)) => -(*rank as f32),
            (1, None) => -(ranks.len() as f32),
            _ => 0.0,
        };
        let scores: Vec<f32> = tokens.iter().map(score).collect();
        let prefix = self.own.space != super::SpacePrefix::Never;
        Ok(vec![
            gguf_str("tokenizer.ggml.model", "llama"),
            gguf_str("tokenizer.ggml.pre", "default"),
            gguf_f32s("tokenizer.ggml.scores", &scores),
            gguf_bool("tokenizer.ggml.add_space_prefix", prefix),
        ])
    }

    /// Ids of tokens with a use, and what goes around a text.
    fn special(&self, eos: &[u32]) -> Result<Vec<Vec<u8>>> {
        let mut pairs = Vec::new();
        let named = |name: &str| {
            let token = &self.beside[format!("{name}_token")];
            self.own.id(token.as_str().or(token["content"].as_str())?)
        };
        let eos = named("eos").or(eos.first().copied());
        let ids =
            [("bos", self.own.bos()), ("eos", eos), ("unknown", named("unk")), ("padding", named("pad"))];
        for (name, id) in ids {
            pairs.extend(id.map(|id| gguf_u32(&format!("tokenizer.ggml.{name}_token_id"), id)));
        }
        for (name, affix, id) in [("bos", self.own.prefix(), self.own.bos()), ("eos", self.own.suffix(), eos)]
        {
            let added = match affix {
                [] => false,
                [one] if Some(*one) == id => true,
                _ => return Err(unsupported(format_args!("what it writes around a text ({affix:?})"))),
            };
            pairs.push(gguf_bool(&format!("tokenizer.ggml.add_{name}_token"), added));
        }
        Ok(pairs)
    }
}

/// The place of an id, which the file may say as anything.
fn place<'a>(tokens: &'a mut [(String, i32)], id: &Value) -> Result<&'a mut (String, i32)> {
    let at = id.as_u64().and_then(|id| usize::try_from(id).ok());
    at.and_then(|at| tokens.get_mut(at)).ok_or_else(|| Error::model_file(format!("a token has the id {id}")))
}

/// The patterns of a pre-tokenizer, one after the other, with GPT-2's for what says no more than its name.
fn patterns(rule: &Value) -> Result<Vec<String>> {
    let foreign = || unsupported(format_args!("its rule of splitting words ({})", rule["type"]));
    Ok(match rule["type"].as_str() {
        Some("Sequence") => {
            let all = rule["pretokenizers"].as_array().map_or(&[][..], Vec::as_slice);
            all.iter().map(patterns).collect::<Result<Vec<_>>>()?.concat()
        }
        Some("ByteLevel") if rule["add_prefix_space"].as_bool() == Some(true) => return Err(foreign()),
        Some("ByteLevel") => match rule["use_regex"].as_bool() {
            Some(false) => vec![],
            _ => vec![super::pretokenize::GPT2.to_owned()],
        },
        Some("Digits") if rule["individual_digits"].as_bool() == Some(true) => vec![r"\p{N}".to_owned()],
        Some("Split") if rule["behavior"].as_str() == Some("Isolated") => {
            let pattern = rule["pattern"]["Regex"].as_str().ok_or_else(foreign)?;
            vec![pattern.replace(r"\s+(?!\S)|", "")]
        }
        _ => return Err(foreign()),
    })
}

/// Whether the tables, read back, are this tokenizer.
fn check(own: &Tokenizer, pairs: &[Vec<u8>], normalizes: bool) -> Result<Tokenizer> {
    let header = write::gguf_header(pairs);
    let written =
        Tokenizer::from_gguf(&Gguf::from_bytes(Bytes::from_vec(header), Path::new("tokenizer"))?.metadata)?;
    // An id that has no token there is filled up.
    for id in (0u32..).take(own.vocab_size()).filter(|id| !own.token_bytes(*id).is_empty()) {
        if own.token_bytes(id) != written.token_bytes(id) || own.is_special(id) != written.is_special(id) {
            let text = String::from_utf8_lossy(own.token_bytes(id)).into_owned();
            return Err(unsupported(format_args!("its token {id} ({})", quoted(&text))));
        }
    }
    if (own.prefix(), own.suffix()) != (written.prefix(), written.suffix()) {
        return Err(unsupported("what it writes around a text"));
    }
    for text in SAMPLES.iter().chain((!normalizes).then_some(&DECOMPOSED)) {
        let encoded = |tokenizer: &Tokenizer| tokenizer.encode(text, false).ok();
        if encoded(own) != encoded(&written) {
            return Err(unsupported(format_args!("how it splits texts (such as {})", quoted(text))));
        }
    }
    Ok(written)
}
