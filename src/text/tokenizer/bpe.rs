//! BPE by a list of merges: byte-level, as in GGUF files of Llama 3, SmolLM, Qwen, Phi-2/4 and Mistral's
//! tekken, and of characters, as in those of Gemma 4.
//!
//! Byte-level, the text is cut into words by the pre-tokenizer and merging starts from bytes. Of characters,
//! the text is one word, and a character that is no token in the end becomes its bytes, `<0xNN>`. The pair of
//! neighbours that stands first in the merge list merges, until no pair is in the list. Own code and not the `tokenizers` crate: it merges
//! ids in one table instead of strings in two, so a file's 48900 merges load in milliseconds.

use std::collections::HashMap;

use super::merge::{Merger, Pair, Pairs, Symbol};
use super::pretokenize::Splitter;
use super::spm::SPACE_MARK;
use super::vocab::{ByteTokens, FoldState, Kind, NO_ID, PieceIndex, Vocab, decode_byte_level};
use crate::error::{Error, Result, quoted};

pub(super) struct Bpe {
    index: PieceIndex,
    /// (left, right) -> (rank, what they become)
    merges: Merges,
    letters: Letters,
}

/// What merging starts from.
enum Letters {
    /// Of each byte, its token or [`NO_ID`]; the text is cut into words before.
    Bytes([u32; 256], Splitter),
    /// Characters, and what those without a token become.
    Characters(ByteTokens),
}

impl Bpe {
    /// `merges` are lines of the merge list, the first merges first: two tokens with a space between them.
    ///
    /// # Errors
    /// `ModelFile` when a line has another form or names something that is not a token.
    pub fn byte_level<'m>(
        vocab: &Vocab,
        merges: impl ExactSizeIterator<Item = &'m str>,
        splitter: Splitter,
    ) -> Result<Self> {
        let (index, merges) = read_merges(vocab, merges, decode_byte_level)?;
        let bytes = std::array::from_fn(|byte| index.get(vocab, &[byte as u8]).unwrap_or(NO_ID));
        Ok(Bpe { index, merges, letters: Letters::Bytes(bytes, splitter) })
    }

    /// As [`byte_level`](Self::byte_level), with a mark for each space in the lines.
    ///
    /// # Errors
    /// As [`byte_level`](Self::byte_level).
    pub fn of_characters<'m>(
        vocab: &Vocab,
        merges: impl ExactSizeIterator<Item = &'m str>,
        bytes: ByteTokens,
    ) -> Result<Self> {
        let (index, merges) = read_merges(vocab, merges, decode_spaces)?;
        Ok(Bpe { index, merges, letters: Letters::Characters(bytes) })
    }

    /// A token by how the file writes it.
    pub fn id(&self, vocab: &Vocab, token: &str) -> Option<u32> {
        let mut bytes = Vec::new();
        match &self.letters {
            Letters::Bytes(..) => decode_byte_level(token, &mut bytes),
            Letters::Characters(named) => match named.named(token) {
                None => decode_spaces(token, &mut bytes),
                found => return found,
            },
        }
        self.index.get(vocab, &bytes)
    }

    /// Adds the tokens of a stretch of plain text. Byte-level, a byte without a token (SmolLM2 lacks a few
    /// control characters, and bytes that valid text never has) adds nothing, as everywhere else.
    ///
    /// # Errors
    /// As [`ByteTokens::finish`].
    pub fn encode(&self, vocab: &Vocab, text: &str, work: &mut Merger, ids: &mut Vec<u32>) -> Result<()> {
        match &self.letters {
            Letters::Bytes(bytes, splitter) => {
                splitter.split(text, &mut |word| {
                    if splitter.whole_words()
                        && let Some(id) = self.index.get(vocab, word.as_bytes())
                    {
                        return ids.push(id);
                    }
                    self.merge_bytes(bytes, word.as_bytes(), work, ids);
                });
                Ok(())
            }
            Letters::Characters(bytes) if text.contains(SPACE_MARK) => {
                self.merge_characters(vocab, bytes, &text.replace(SPACE_MARK, " "), work, ids)
            }
            Letters::Characters(bytes) => self.merge_characters(vocab, bytes, text, work, ids),
        }
    }

    fn merge_bytes(&self, bytes: &[u32; 256], word: &[u8], work: &mut Merger, ids: &mut Vec<u32>) {
        work.clear();
        for byte in word {
            let id = bytes.get(usize::from(*byte)).copied();
            work.push(1, id.filter(|id| *id != NO_ID));
        }
        work.merge(word, self);
        ids.extend(work.symbols().map(|symbol| symbol.id).filter(|id| *id != NO_ID));
    }

    fn merge_characters(
        &self,
        vocab: &Vocab,
        bytes: &ByteTokens,
        text: &str,
        work: &mut Merger,
        ids: &mut Vec<u32>,
    ) -> Result<()> {
        work.start(text, |character| self.index.get(vocab, character));
        work.merge(text.as_bytes(), self);
        bytes.finish(work.symbols(), text.as_bytes(), ids)
    }
}

type Merges = HashMap<u64, (u32, u32), FoldState>;

/// The tokens that merging may give, and the merges, of lines whose tokens are written as `decode` reads them.
fn read_merges<'m>(
    vocab: &Vocab,
    merges: impl ExactSizeIterator<Item = &'m str>,
    decode: fn(&str, &mut Vec<u8>),
) -> Result<(PieceIndex, Merges)> {
    let index = PieceIndex::new(vocab, vocab.ids(Kind::is_piece));
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
    Ok((index, table))
}

/// A token with its spaces marked, as bytes.
pub(super) fn decode_spaces(token: &str, bytes: &mut Vec<u8>) {
    bytes.clear();
    bytes.extend_from_slice(token.replace(SPACE_MARK, " ").as_bytes());
}

impl Pairs for Bpe {
    fn pair(&self, _text: &[u8], left: &Symbol, right: &Symbol) -> Option<Pair> {
        let (rank, id) = *self.merges.get(&key(left.id, right.id))?;
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
