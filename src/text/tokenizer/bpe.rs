//! Byte-level BPE, as in GGUF files of Llama 3, SmolLM, Qwen, Phi-2/4 and Mistral's tekken.
//!
//! The text is cut into words by the pre-tokenizer; in each word the pair of neighbours that stands first in
//! the merge list merges, until no pair is in the list. Own code and not the `tokenizers` crate: it merges
//! ids in one table instead of strings in two, so a file's 48900 merges load in milliseconds.

use std::collections::HashMap;

use super::merge::{Merger, Pair, Pairs, Symbol};
use super::pretokenize::Splitter;
use super::vocab::{FoldState, Kind, NO_ID, PieceIndex, Vocab, decode_byte_level};
use crate::error::{Error, Result, quoted};

pub(super) struct Bpe {
    index: PieceIndex,
    merges: Merges,
    /// Of each byte, its token or [`NO_ID`].
    bytes: [u32; 256],
    splitter: Splitter,
}

impl Bpe {
    /// `merges` are lines of the merge list, the first merges first: two tokens with a space between them.
    ///
    /// # Errors
    /// `ModelFile` when a line has another form or names something that is not a token.
    pub fn new<'m>(
        vocab: &Vocab,
        merges: impl ExactSizeIterator<Item = &'m str>,
        splitter: Splitter,
    ) -> Result<Self> {
        let index = PieceIndex::new(vocab, vocab.ids(Kind::is_piece));
        let merges = Merges::new(vocab, &index, merges, decode_byte_level)?;
        let bytes = std::array::from_fn(|byte| index.get(vocab, &[byte as u8]).unwrap_or(NO_ID));
        Ok(Bpe { index, merges, bytes, splitter })
    }

    pub fn splitter(&self) -> &Splitter {
        &self.splitter
    }

    /// A token by how the file writes it.
    pub fn id(&self, vocab: &Vocab, token: &str) -> Option<u32> {
        let mut bytes = Vec::new();
        decode_byte_level(token, &mut bytes);
        self.index.get(vocab, &bytes)
    }

    /// Adds the tokens of a stretch of plain text. A byte without a token (SmolLM2 lacks a few control
    /// characters, and bytes that valid text never has) adds nothing, as everywhere else.
    pub fn encode(&self, vocab: &Vocab, text: &str, work: &mut Merger, ids: &mut Vec<u32>) {
        self.splitter.split(text, &mut |word| self.encode_word(vocab, word.as_bytes(), work, ids));
    }

    fn encode_word(&self, vocab: &Vocab, word: &[u8], work: &mut Merger, ids: &mut Vec<u32>) {
        if self.splitter.whole_words()
            && let Some(id) = self.index.get(vocab, word)
        {
            return ids.push(id);
        }
        work.clear();
        for byte in word {
            let id = self.bytes.get(usize::from(*byte)).copied();
            work.push(1, id.filter(|id| *id != NO_ID));
        }
        work.merge(word, &self.merges);
        ids.extend(work.symbols().map(|symbol| symbol.id).filter(|id| *id != NO_ID));
    }
}

/// (left, right) -> (rank, what they become)
pub(super) struct Merges(HashMap<u64, (u32, u32), FoldState>);

impl Merges {
    /// `decode`: from how the file writes a token to its bytes.
    ///
    /// # Errors
    /// As [`Bpe::new`].
    pub fn new<'m>(
        vocab: &Vocab,
        index: &PieceIndex,
        merges: impl ExactSizeIterator<Item = &'m str>,
        decode: impl Fn(&str, &mut Vec<u8>),
    ) -> Result<Self> {
        let mut table = HashMap::with_capacity_and_hasher(merges.len(), FoldState::default());
        let (mut first, mut second) = (Vec::new(), Vec::new());
        for (line, rank) in merges.zip(0u32..) {
            let pair = split_merge(line).and_then(|(left, right)| {
                decode(left, &mut first);
                decode(right, &mut second);
                let ids = (index.get(vocab, &first)?, index.get(vocab, &second)?);
                first.extend_from_slice(&second);
                Some((key(ids.0, ids.1), index.get(vocab, &first)?))
            });
            let (pair, id) = pair.ok_or_else(|| {
                let what = "is not two tokens whose union is a token";
                Error::model_file(format!("tokenizer.ggml.merges: entry {rank}, {}, {what}", quoted(line)))
            })?;
            table.entry(pair).or_insert((rank, id));
        }
        Ok(Merges(table))
    }
}

impl Pairs for Merges {
    fn pair(&self, _text: &[u8], left: &Symbol, right: &Symbol) -> Option<Pair> {
        let (rank, id) = *self.0.get(&key(left.id, right.id))?;
        Some(Pair { priority: u32::MAX - rank, id })
    }
}

fn key(left: u32, right: u32) -> u64 {
    u64::from(left) << 32 | u64::from(right)
}

/// The first space that is not the first character parts the two.
fn split_merge(line: &str) -> Option<(&str, &str)> {
    let second = line.chars().next()?.len_utf8();
    let space = second + line.get(second..)?.find(' ')?;
    Some((line.get(..space)?, line.get(space + 1..)?))
}
