//! How the tokens of a `tokenizer.json` are written, read from its decoder.
//!
//! A decoder of the crate takes all tokens of a text at once. Here each token has bytes of its own, so that a
//! text can be shown as it is made and held to a grammar; a decoder that cannot be told so is refused.

use serde_json::Value;

use super::super::SpacePrefix;
use super::super::vocab::{decode_byte_level, named_byte};
use crate::error::{Error, Result, quoted};

pub(super) struct Spelling {
    byte_level: bool,
    /// What is done to each token, in this order.
    steps: Vec<Step>,
    /// `<0xNN>` is a byte.
    named_bytes: bool,
    /// From here on the decoder works on the whole text.
    fused: bool,
    pub space: SpacePrefix,
    pub joined: bool,
}

enum Step {
    Replace(String, String),
    /// Takes up to so many of a character away at both ends.
    Strip(char, usize, usize),
    /// A token goes on from the one before if it begins with the prefix; a space stands before any other.
    WordPiece(String, bool),
}

impl Spelling {
    pub fn of(tokenizer: &tokenizers::Tokenizer) -> Result<Self> {
        let json = |part: serde_json::Result<Value>| part.map_err(|error| Error::internal(error.to_string()));
        let splitter = json(serde_json::to_value(tokenizer.get_pre_tokenizer()))?;
        let mut decoder = json(serde_json::to_value(tokenizer.get_decoder()))?;
        let mut joined = false;
        if decoder.is_null() {
            // Some files leave it out, and the splitter knows the alphabet. Without that the tokens are
            // words.
            let byte_level = parts(&splitter).into_iter().find(|part| part["type"] == "ByteLevel");
            decoder = byte_level.cloned().unwrap_or_default();
            joined = decoder.is_null();
        }
        let mut spelling = Spelling {
            byte_level: false,
            steps: Vec::new(),
            named_bytes: false,
            fused: false,
            space: if joined { SpacePrefix::First } else { SpacePrefix::Never },
            joined,
        };
        let steps = if joined { vec![] } else { parts(&decoder) };
        steps.into_iter().try_for_each(|part| spelling.add(part))?;
        if spelling.byte_level && !spelling.steps.is_empty() {
            return Err(unsupported("ByteLevel together with other steps that change tokens"));
        }
        Ok(spelling)
    }

    /// Takes one step of the decoder.
    fn add(&mut self, part: &Value) -> Result<()> {
        let text = |name: &str| part[name].as_str().unwrap_or_default().to_owned();
        let count = |name: &str| part[name].as_u64().unwrap_or(0) as usize;
        match part["type"].as_str() {
            Some("ByteLevel") => self.byte_level = true,
            Some("ByteFallback") => self.named_bytes = true,
            Some("Fuse") => self.fused = true,
            Some("Replace") if part["pattern"]["String"].is_string() => {
                let from = part["pattern"]["String"].as_str().unwrap_or_default();
                if self.fused && from.chars().count() > 1 {
                    return Err(unsupported("a Replace of several characters after Fuse"));
                }
                self.steps.push(Step::Replace(from.to_owned(), text("content")));
            }
            Some("Metaspace") => {
                let mark = part["replacement"].as_str().unwrap_or("▁");
                self.steps.push(Step::Replace(mark.to_owned(), " ".to_owned()));
                if part["prepend_scheme"] != "never" {
                    self.space = SpacePrefix::First;
                }
            }
            Some("Strip") if !self.fused => {
                let content = text("content").chars().next().unwrap_or(' ');
                self.steps.push(Step::Strip(content, count("start"), count("stop")));
            }
            Some("Strip") if part["content"] == " " && count("start") <= 1 && count("stop") == 0 => {
                if count("start") == 1 {
                    self.space = SpacePrefix::First;
                }
            }
            Some("WordPiece") => {
                self.steps.push(Step::WordPiece(text("prefix"), part["cleanup"] == true));
                (self.space, self.joined) = (SpacePrefix::First, true);
            }
            other => return Err(unsupported(&quoted(other.unwrap_or("none")))),
        }
        Ok(())
    }

    /// The bytes of an added token. A byte-level decoder reads `é` in one as the byte 0xE9; it means itself.
    pub fn decode_added(&self, token: &str, bytes: &mut Vec<u8>) {
        match self.byte_level {
            true => {
                bytes.clear();
                bytes.extend_from_slice(token.as_bytes());
            }
            false => self.decode(token, bytes),
        }
    }

    /// The bytes that a token adds to a text that is not empty.
    pub fn decode(&self, token: &str, bytes: &mut Vec<u8>) {
        bytes.clear();
        if self.byte_level {
            return decode_byte_level(token, bytes);
        }
        if let Some(byte) = named_byte(token).filter(|_| self.named_bytes) {
            return bytes.push(byte);
        }
        let mut text = token.to_owned();
        for step in &self.steps {
            text = step.apply(text);
        }
        if self.joined && self.steps.is_empty() {
            bytes.push(b' ');
        }
        bytes.extend_from_slice(text.as_bytes());
    }
}

impl Step {
    fn apply(&self, text: String) -> String {
        match self {
            Step::Replace(from, to) if !from.is_empty() && text.contains(from) => text.replace(from, to),
            Step::Replace(..) => text,
            Step::Strip(content, start, stop) => {
                let ends = |chars: &mut dyn Iterator<Item = char>, most: usize| {
                    chars.take(most).take_while(|char| char == content).count() * content.len_utf8()
                };
                let begin = ends(&mut text.chars(), *start);
                let end = text.len() - ends(&mut text.chars().rev(), *stop);
                text.get(begin..end.max(begin)).unwrap_or_default().to_owned()
            }
            Step::WordPiece(prefix, cleanup) => {
                let text = match text.strip_prefix(prefix.as_str()) {
                    Some(rest) => rest.to_owned(),
                    None => format!(" {text}"),
                };
                if *cleanup { without_artifacts(text) } else { text }
            }
        }
    }
}

/// What the crate's WordPiece decoder makes of a token under `cleanup`: punctuation and the second parts of
/// English contractions follow without a space.
fn without_artifacts(text: String) -> String {
    const ARTIFACTS: [(&str, &str); 11] = [
        (" .", "."),
        (" ?", "?"),
        (" !", "!"),
        (" ,", ","),
        (" ' ", "'"),
        (" n't", "n't"),
        (" 'm", "'m"),
        (" do not", " don't"),
        (" 's", "'s"),
        (" 've", "'ve"),
        (" 're", "'re"),
    ];
    ARTIFACTS.iter().fold(text, |text, (from, to)| text.replace(from, to))
}

fn unsupported(what: &str) -> Error {
    Error::unsupported(format!(
        "the tokenizer decodes by {what}; byte-level, SentencePiece and WordPiece decoders and none are supported"
    ))
}

/// The steps of a sequence, nested ones too; of anything else, itself.
fn parts(value: &Value) -> Vec<&Value> {
    let lists = ["decoders", "pretokenizers", "normalizers"];
    match lists.iter().find_map(|list| value[list].as_array()) {
        Some(list) => list.iter().flat_map(parts).collect(),
        None => vec![value],
    }
}
