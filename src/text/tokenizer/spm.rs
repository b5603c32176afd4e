//! SentencePiece BPE with scores, as in GGUF files of Llama 2, Mistral, Gemma and Phi-3.
//!
//! The merge order is llama.cpp's: of all neighbouring symbols whose bytes together are a token, the one with
//! the highest score merges, of equals the leftmost. (A Unigram/Viterbi model over the same scores, which
//! some programs use, gives other tokens.) What is no token in the end becomes its bytes, `<0xNN>`.

use std::borrow::Cow;

use super::merge::{Merger, Pair, Pairs, Symbol};
use super::vocab::{ByteTokens, Kind, PieceIndex, Vocab};
use crate::error::{Error, Result};

/// The character that SentencePiece writes for a space.
pub(super) const SPACE_MARK: char = '▁';

pub(super) struct Spm {
    index: PieceIndex,
    /// Of each token, its score as an integer of the same order.
    priorities: Vec<u32>,
    bytes: ByteTokens,
    /// A space goes before the text, and before the text after a control token: the default of the format.
    pub add_space_prefix: bool,
    /// Runs of spaces become one and those at the ends go, as SentencePiece does under this option.
    pub remove_extra_whitespaces: bool,
}

impl Spm {
    /// # Errors
    /// `ModelFile` when there are fewer scores than tokens, or one that is not a number.
    pub fn new(vocab: &Vocab, scores: &[f32], unknown: Option<u32>) -> Result<Self> {
        if scores.len() < vocab.len() {
            return Err(Error::model_file(format!(
                "tokenizer.ggml.scores has {} entries for {} tokens",
                scores.len(),
                vocab.len()
            )));
        }
        if let Some(id) = scores.iter().position(|score| score.is_nan()) {
            return Err(Error::model_file(format!(
                "tokenizer.ggml.scores: the score of token {id} is not a number"
            )));
        }
        let bytes = ByteTokens::new(vocab, unknown);
        let index = PieceIndex::new(vocab, vocab.ids(Kind::is_piece));
        let priorities = scores.iter().map(|score| ordered(*score)).collect();
        Ok(Spm { index, priorities, bytes, add_space_prefix: true, remove_extra_whitespaces: false })
    }

    /// A token by how the file writes it.
    pub fn id(&self, vocab: &Vocab, token: &str) -> Option<u32> {
        let found = self.bytes.named(token);
        found.or_else(|| self.index.get(vocab, token.replace(SPACE_MARK, " ").as_bytes()))
    }

    /// Adds the tokens of a stretch of plain text.
    ///
    /// # Errors
    /// `InvalidRequest` when a character has neither a token, nor bytes, nor a token for the unknown.
    pub fn encode(
        &self,
        vocab: &Vocab,
        text: &str,
        first: bool,
        work: &mut Merger,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        let text = self.normalize(text, first);
        work.start(&text, |character| self.index.get(vocab, character));
        work.merge(text.as_bytes(), &Scored { spm: self, vocab });
        self.bytes.finish(work.symbols(), text.as_bytes(), ids)
    }

    /// The format knows no difference between a space and its mark, so the mark is read as a space.
    fn normalize<'t>(&self, text: &'t str, first: bool) -> Cow<'t, str> {
        let mut text = Cow::Borrowed(text);
        if text.contains(SPACE_MARK) {
            text = Cow::Owned(text.replace(SPACE_MARK, " "));
        }
        if self.remove_extra_whitespaces {
            let words: Vec<&str> = text.split(' ').filter(|word| !word.is_empty()).collect();
            text = Cow::Owned(words.join(" "));
        }
        if self.add_space_prefix && first && !text.is_empty() {
            text = Cow::Owned(format!(" {text}"));
        }
        text
    }
}

/// The order of floats as the order of integers: the bits of negative ones are turned around. -0 is 0.
fn ordered(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

struct Scored<'a> {
    spm: &'a Spm,
    vocab: &'a Vocab,
}

impl Pairs for Scored<'_> {
    fn pair(&self, text: &[u8], left: &Symbol, right: &Symbol) -> Option<Pair> {
        let both = text.get(left.start as usize..(right.start + right.len) as usize)?;
        let id = self.spm.index.get(self.vocab, both)?;
        Some(Pair { priority: *self.spm.priorities.get(id as usize)?, id })
    }
}

#[cfg(test)]
mod tests {
    use super::ordered;

    #[test]
    fn scores_keep_their_order() {
        let scores = [f32::NEG_INFINITY, -1000.0, -1.5, -1e-30, 0.0, 1e-30, 2.0, f32::INFINITY];
        assert!(scores.map(ordered).is_sorted_by(|a, b| a < b));
        assert_eq!(ordered(-0.0), ordered(0.0));
    }
}
