//! A tokenizer as grammars see it: a trie over the bytes of every token, and the tokens that end an answer.
//!
//! Grammars match bytes, so a token is no more than its bytes. Three kinds have none that a text could hold:
//!
//! - **Control tokens** (and whatever ends an answer) stand in the trie behind the byte 0xFF, which no UTF-8
//!   has. So no string, regular expression or schema can ever match `<|im_end|>`, written or as a token,
//!   unless a Lark grammar names the token itself.
//! - **Text tokens that begin with 0xFF** (the last of the 256 byte tokens) are left out: they would be taken
//!   for control tokens.
//! - **Ids that only the model's matrix has**, beyond the tokenizer's, are left out.
//!
//! The tokens that end an answer are allowed exactly where the grammar may stop. Forced text is tokenized by
//! the model's own tokenizer, so the model sees it written the way it learned.

use std::fmt;
use std::sync::Arc;

use llguidance::toktrie::{INVALID_TOKEN, TokEnv, TokRxInfo, TokTrie, TokenizerEnv};

use crate::error::{Error, Result};
use crate::text::tokenizer::Tokenizer;

/// The byte before control tokens: it is in no UTF-8 text.
const MARKER: u8 = TokTrie::SPECIAL_TOKEN_MARKER;
/// The most tokens of a vocabulary; real ones have a fourth of it.
const MOST_TOKENS: usize = 1 << 20;

/// The tokens of one model. Cheap to clone.
#[derive(Clone)]
pub struct Vocabulary(Arc<Inner>);

struct Inner {
    env: TokEnv,
    eos: Vec<u32>,
    /// The token of each byte, if there is one.
    byte_tokens: Vec<Option<u32>>,
    /// One more than the highest id: the width of the model's logits.
    size: usize,
}

impl Vocabulary {
    /// Builds the trie. `eos` are the ids that end an answer, `size` is the number of logits of a row.
    ///
    /// # Errors
    /// ModelFile if the tokenizer and the model have no tokens, or absurdly many. UnsupportedModel if its
    /// tokens are words: every one brings a space, so hardly any grammar has a first token.
    pub fn new(tokenizer: Arc<Tokenizer>, eos: &[u32], size: usize) -> Result<Self> {
        if tokenizer.is_joined() {
            return Err(Error::unsupported(
                "this model's tokens are words with a space before each, so its answers cannot be held to a \
                 grammar; ask without response_format, choices, regex or grammar",
            ));
        }
        if size == 0 || size > MOST_TOKENS || tokenizer.vocab_size() > MOST_TOKENS {
            return Err(Error::model_file(format!(
                "a vocabulary of {size} tokens cannot be held to a grammar; at most {MOST_TOKENS} can"
            )));
        }
        let mut eos: Vec<u32> = eos.iter().copied().filter(|&id| (id as usize) < size).collect();
        eos.sort_unstable();
        eos.dedup();
        let words: Vec<Vec<u8>> = (0..size as u32).map(|id| word(&tokenizer, &eos, id)).collect();
        let end = eos.first().copied().unwrap_or(INVALID_TOKEN);
        let trie = TokTrie::from(&TokRxInfo::new(size as u32, end), &words);
        let trie = if eos.len() > 1 { trie.with_eos_tokens(&eos) } else { trie };
        let byte_tokens = (0..MARKER).map(|byte| trie.token_id_at_bytes(&[byte])).collect();
        let env: TokEnv = Arc::new(Env { trie, tokenizer });
        Ok(Vocabulary(Arc::new(Inner { env, eos, byte_tokens, size })))
    }

    /// One more than the highest id.
    pub fn size(&self) -> usize {
        self.0.size
    }

    /// The tokens that end an answer, ascending.
    pub fn eos(&self) -> &[u32] {
        &self.0.eos
    }

    pub fn is_eos(&self, id: u32) -> bool {
        self.0.eos.binary_search(&id).is_ok()
    }

    /// The bytes that a token adds to the text; none for unknown ids and for those that end an answer. Of a
    /// control token, its written form behind the byte 0xFF.
    pub fn bytes(&self, id: u32) -> &[u8] {
        if (id as usize) < self.0.size && !self.is_eos(id) { self.0.env.tok_trie().token(id) } else { &[] }
    }

    /// The token that is this byte alone.
    pub(super) fn byte_token(&self, byte: u8) -> Option<u32> {
        self.0.byte_tokens.get(usize::from(byte)).copied().flatten()
    }

    pub(super) fn env(&self) -> &TokEnv {
        &self.0.env
    }
}

impl fmt::Debug for Vocabulary {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Vocabulary").field("size", &self.0.size).field("eos", &self.0.eos).finish()
    }
}

/// What the trie holds for a token.
fn word(tokenizer: &Tokenizer, eos: &[u32], id: u32) -> Vec<u8> {
    let bytes = tokenizer.token_bytes(id);
    if eos.binary_search(&id).is_ok() || (tokenizer.is_special(id) && !bytes.is_empty()) {
        return [&[MARKER], bytes].concat();
    }
    if bytes.first() == Some(&MARKER) { Vec::new() } else { bytes.to_vec() }
}

struct Env {
    trie: TokTrie,
    tokenizer: Arc<Tokenizer>,
}

impl TokenizerEnv for Env {
    fn tok_trie(&self) -> &TokTrie {
        &self.trie
    }

    /// Text as the model's tokenizer writes it where it goes on from other text. Bytes that are no UTF-8, and
    /// a text that the tokenizer refuses, become the longest tokens that fit.
    fn tokenize_bytes(&self, bytes: &[u8]) -> Vec<u32> {
        self.trie.tokenize_with_greedy_fallback(bytes, |text| {
            self.tokenizer
                .encode_continuation(text)
                .unwrap_or_else(|_| self.trie.greedy_tokenize(text.as_bytes()))
        })
    }
}
