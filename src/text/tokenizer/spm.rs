//! SentencePiece BPE, as in GGUF files of Llama 2, Mistral, Gemma and Phi-3 (with scores) and of Gemma 4
//! (with a list of merges).
//!
//! The merge order is llama.cpp's: of all neighbouring symbols whose bytes together are a token, the one with
//! the highest score merges, of equals the leftmost. (A Unigram/Viterbi model over the same scores, which
//! some programs use, gives other tokens.) What is no token in the end becomes its bytes, `<0xNN>`.

use std::borrow::Cow;

use super::bpe::Merges;
use super::merge::{Merger, Pair, Pairs, Symbol};
use super::vocab::{Kind, NO_ID, PieceIndex, Vocab, named_byte};
use crate::error::{Error, Result};

/// The character that SentencePiece writes for a space.
pub(super) const SPACE_MARK: char = '▁';

pub(super) struct Spm {
    index: PieceIndex,
    order: Order,
    /// Of each byte, its `<0xNN>` token or [`NO_ID`].
    bytes: [u32; 256],
    unknown: Option<u32>,
    /// A space goes before the text, and before the text after a control token: the default of the format.
    pub add_space_prefix: bool,
    /// Runs of spaces become one and those at the ends go, as SentencePiece does under this option.
    pub remove_extra_whitespaces: bool,
}

/// What merges first.
enum Order {
    /// Of each token, its score as an integer of the same order.
    Scores(Vec<u32>),
    Merges(Merges),
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
        let priorities = scores.iter().map(|score| ordered(*score)).collect();
        Self::of_order(vocab, unknown, |_| Ok(Order::Scores(priorities)))
    }

    /// One that goes by a list of merges. (llama.cpp cuts the text at line breaks before it merges, and takes
    /// a run of them for one token where there is such a token. The model's own tokenizer.json does not.)
    ///
    /// # Errors
    /// `ModelFile` when a merge is not two tokens whose union is a token.
    pub fn with_merges<'m>(
        vocab: &Vocab,
        merges: impl ExactSizeIterator<Item = &'m str>,
        unknown: Option<u32>,
    ) -> Result<Self> {
        let decode = |token: &str, bytes: &mut Vec<u8>| {
            bytes.clear();
            bytes.extend_from_slice(token.replace(SPACE_MARK, " ").as_bytes());
        };
        let order = |index: &PieceIndex| Ok(Order::Merges(Merges::new(vocab, index, merges, decode)?));
        let spm = Self::of_order(vocab, unknown, order)?;
        Ok(Spm { add_space_prefix: false, ..spm })
    }

    fn of_order(
        vocab: &Vocab,
        unknown: Option<u32>,
        order: impl FnOnce(&PieceIndex) -> Result<Order>,
    ) -> Result<Self> {
        let mut bytes = [NO_ID; 256];
        for id in vocab.ids(|kind| kind == Kind::Byte) {
            let place = vocab.bytes(id).first().and_then(|byte| bytes.get_mut(usize::from(*byte)));
            place.into_iter().for_each(|place| *place = id);
        }
        let index = PieceIndex::new(vocab, vocab.ids(Kind::is_piece));
        let order = order(&index)?;
        Ok(Spm { index, order, bytes, unknown, add_space_prefix: true, remove_extra_whitespaces: false })
    }

    /// A token by how the file writes it.
    pub fn id(&self, vocab: &Vocab, token: &str) -> Option<u32> {
        match named_byte(token).and_then(|byte| self.bytes.get(usize::from(byte))) {
            Some(id) => Some(*id).filter(|id| *id != NO_ID),
            None => self.index.get(vocab, token.replace(SPACE_MARK, " ").as_bytes()),
        }
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
        work.clear();
        for char in text.chars() {
            let mut buffer = [0; 4];
            let bytes = char.encode_utf8(&mut buffer).as_bytes();
            work.push(bytes.len(), self.index.get(vocab, bytes));
        }
        match &self.order {
            Order::Scores(priorities) => {
                work.merge(text.as_bytes(), &Scored { index: &self.index, priorities, vocab });
            }
            Order::Merges(merges) => work.merge(text.as_bytes(), merges),
        }
        ids.reserve(work.symbols().count());
        for symbol in work.symbols() {
            match symbol.id {
                NO_ID => self.spell(symbol.bytes(text.as_bytes()), ids)?,
                id => ids.push(id),
            }
        }
        Ok(())
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

    /// A character that is no token: its bytes, else the unknown token.
    fn spell(&self, char: &[u8], ids: &mut Vec<u32>) -> Result<()> {
        let byte_ids = char.iter().filter_map(|byte| self.bytes.get(usize::from(*byte)));
        if byte_ids.clone().all(|id| *id != NO_ID) {
            ids.extend(byte_ids);
            return Ok(());
        }
        let unknown = self.unknown.ok_or_else(|| {
            let char = String::from_utf8_lossy(char);
            Error::invalid(format!("the text holds {char:?}, for which this model's tokenizer has no token"))
        })?;
        ids.push(unknown);
        Ok(())
    }
}

/// The order of floats as the order of integers: the bits of negative ones are turned around. -0 is 0.
fn ordered(score: f32) -> u32 {
    let bits = (score + 0.0).to_bits();
    if bits >> 31 == 0 { bits | 1 << 31 } else { !bits }
}

struct Scored<'a> {
    index: &'a PieceIndex,
    priorities: &'a [u32],
    vocab: &'a Vocab,
}

impl Pairs for Scored<'_> {
    fn pair(&self, text: &[u8], left: &Symbol, right: &Symbol) -> Option<Pair> {
        let both = text.get(left.start as usize..(right.start + right.len) as usize)?;
        let id = self.index.get(self.vocab, both)?;
        Some(Pair { priority: *self.priorities.get(id as usize)?, id })
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
