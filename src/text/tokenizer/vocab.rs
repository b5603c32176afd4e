//! The tokens of a model as bytes: what each id stands for, what kind it is, and the way back from bytes.
//!
//! [`Vocab`] holds every token's bytes in one allocation (a `Vec<String>` of Gemma's 262144 tokens takes four
//! times the memory and most of the loading time). [`PieceIndex`] is a hash table of ids over those bytes: it
//! stores no keys. Both hold *decoded* bytes, so `Ġhello` and `▁hello` are ` hello` here: merging then runs
//! on the text as it is, and `token_bytes` is a slice.

use std::hash::{BuildHasher, Hasher, RandomState};

use crate::error::{Error, Result};

/// No token.
pub(super) const NO_ID: u32 = u32::MAX;

/// More tokens than any model has; a file with more is damaged.
const MAX_TOKENS: usize = 1 << 24;

/// What a token is for; the numbers of `tokenizer.ggml.token_type`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Normal,
    /// Stands for what has no token.
    Unknown,
    /// Steers the model (`<|im_end|>`); never produced from plain text.
    Control,
    /// Written in the text, and found there before anything else (`<table>`, a run of newlines).
    UserDefined,
    Unused,
    /// Nothing leads to it: it is not written in the alphabet of its byte-level vocabulary. Command R has a
    /// U+200D of this kind beside the one that merging gives.
    Unreachable,
    /// One byte, `<0xNN>`.
    Byte,
}

impl Kind {
    /// Produces no text.
    pub fn is_special(self) -> bool {
        matches!(self, Kind::Control | Kind::Unknown)
    }

    /// May come out of merging plain text. Control tokens must not: whoever can write text could steer.
    pub fn is_piece(self) -> bool {
        matches!(self, Kind::Normal | Kind::Unused)
    }
}

/// The bytes and the kind of every token.
#[derive(Default)]
pub(super) struct Vocab {
    bytes: Vec<u8>,
    /// Where each token ends in `bytes`.
    ends: Vec<u32>,
    kinds: Vec<Kind>,
}

impl Vocab {
    /// Adds the next token.
    ///
    /// # Errors
    /// `ModelFile` when there are more tokens or more bytes than any model has.
    pub fn push(&mut self, bytes: &[u8], kind: Kind) -> Result<()> {
        self.bytes.extend_from_slice(bytes);
        let end = u32::try_from(self.bytes.len()).ok().filter(|_| self.len() < MAX_TOKENS);
        let end = end.ok_or_else(|| Error::model_file("the vocabulary is larger than any model's"))?;
        self.ends.push(end);
        self.kinds.push(kind);
        Ok(())
    }

    pub fn len(&self) -> usize {
        self.kinds.len()
    }

    /// The bytes of a token; none for an id that is not in the vocabulary (a model's matrix may be padded).
    pub fn bytes(&self, id: u32) -> &[u8] {
        let id = id as usize;
        let Some(&end) = self.ends.get(id) else { return &[] };
        let start = id.checked_sub(1).and_then(|before| self.ends.get(before)).copied().unwrap_or(0);
        self.bytes.get(start as usize..end as usize).unwrap_or_default()
    }

    pub fn kind(&self, id: u32) -> Option<Kind> {
        self.kinds.get(id as usize).copied()
    }

    pub fn set_kind(&mut self, id: u32, kind: Kind) {
        if let Some(place) = self.kinds.get_mut(id as usize) {
            *place = kind;
        }
    }

    /// The tokens that `wanted` accepts, in order of their ids.
    pub fn ids(&self, wanted: impl Fn(Kind) -> bool) -> impl Iterator<Item = u32> {
        self.kinds.iter().zip(0u32..).filter(move |(kind, _)| wanted(**kind)).map(|(_, id)| id)
    }
}

/// From bytes to the id of a token, by open addressing with linear probing, at most half full.
pub(super) struct PieceIndex {
    slots: Vec<u32>,
    hasher: FoldState,
    /// The longest piece in bytes: anything longer is not looked up at all.
    longest: usize,
}

impl PieceIndex {
    /// Indexes the given tokens; of two with the same bytes the first is found.
    pub fn new(vocab: &Vocab, ids: impl Iterator<Item = u32>) -> Self {
        let size = (vocab.len() * 2).next_power_of_two().max(2);
        let mut index = PieceIndex { slots: vec![NO_ID; size], hasher: FoldState::default(), longest: 0 };
        for id in ids {
            let piece = vocab.bytes(id);
            if piece.is_empty() {
                continue;
            }
            index.longest = index.longest.max(piece.len());
            let slot = index.probe(vocab, piece);
            if let Some(place) = index.slots.get_mut(slot).filter(|place| **place == NO_ID) {
                *place = id;
            }
        }
        index
    }

    pub fn get(&self, vocab: &Vocab, piece: &[u8]) -> Option<u32> {
        if piece.len() > self.longest {
            return None;
        }
        self.slots.get(self.probe(vocab, piece)).copied().filter(|id| *id != NO_ID)
    }

    /// The slot that holds the piece, or the empty one where it would be.
    fn probe(&self, vocab: &Vocab, piece: &[u8]) -> usize {
        let mask = self.slots.len() - 1;
        let mut slot = self.hasher.bytes(piece) as usize & mask;
        while let Some(&id) = self.slots.get(slot) {
            if id == NO_ID || vocab.bytes(id) == piece {
                break;
            }
            slot = (slot + 1) & mask;
        }
        slot
    }
}

/// A multiply-and-fold hash with a seed of its own: a few nanoseconds where SipHash takes twenty, and no file
/// can be written so that its tokens collide.
#[derive(Clone)]
pub(super) struct FoldState(u64);

impl Default for FoldState {
    fn default() -> Self {
        FoldState(RandomState::new().hash_one(0u8))
    }
}

impl FoldState {
    pub fn bytes(&self, bytes: &[u8]) -> u64 {
        let mut chunks = bytes.chunks_exact(8);
        let mut state = fold(self.0 ^ bytes.len() as u64);
        for chunk in &mut chunks {
            state = fold(state ^ chunk.iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte)));
        }
        let rest = chunks.remainder().iter().rev().fold(0, |word, byte| word << 8 | u64::from(*byte));
        fold(state ^ rest)
    }
}

/// Both halves of a 64 x 64 bit product (the multiplier is 2^64 over the golden ratio, made odd).
fn fold(value: u64) -> u64 {
    let product = u128::from(value) * 0x9e37_79b9_7f4a_7c15;
    product as u64 ^ (product >> 64) as u64
}

/// [`FoldState`] for tables whose keys are integers.
pub(super) struct FoldHasher(u64);

impl BuildHasher for FoldState {
    type Hasher = FoldHasher;

    fn build_hasher(&self) -> FoldHasher {
        FoldHasher(self.0)
    }
}

impl Hasher for FoldHasher {
    fn write(&mut self, bytes: &[u8]) {
        self.0 = FoldState(self.0).bytes(bytes);
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = fold(self.0 ^ value);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// The byte that a character stands for in a byte-level vocabulary.
///
/// GPT-2 wrote its tokens as readable text: printable Latin-1 characters stand for themselves, and the other
/// 68 bytes, in order, for U+0100 and up (so a space is `Ġ`, a newline `Ċ`).
pub(super) fn byte_of_char(char: char) -> Option<u8> {
    match u32::from(char) {
        code @ (0x21..=0x7e | 0xa1..=0xac | 0xae..=0xff) => Some(code as u8),
        code @ 0x100..=0x120 => Some((code - 0x100) as u8),
        code @ 0x121..=0x142 => Some((code - 0x121 + 0x7f) as u8),
        0x143 => Some(0xad),
        _ => None,
    }
}

/// The bytes of a byte-level token into `bytes`; its plain UTF-8 when it is not written in that alphabet.
pub(super) fn decode_byte_level(token: &str, bytes: &mut Vec<u8>) {
    bytes.clear();
    for char in token.chars() {
        match byte_of_char(char) {
            Some(byte) => bytes.push(byte),
            None => {
                bytes.clear();
                return bytes.extend_from_slice(token.as_bytes());
            }
        }
    }
}

/// Whether a token is written in the byte-level alphabet.
pub(super) fn is_byte_level(token: &str) -> bool {
    token.chars().all(|char| byte_of_char(char).is_some())
}

/// The byte that `<0xNN>` names.
pub(super) fn named_byte(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    if digits.len() != 2 || digits.starts_with('+') {
        return None;
    }
    u8::from_str_radix(digits, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn byte_level_alphabet_is_a_bijection() {
        let mut seen = [0; 256];
        (0..0x200)
            .filter_map(char::from_u32)
            .filter_map(byte_of_char)
            .for_each(|b| seen[usize::from(b)] += 1);
        assert_eq!(seen, [1; 256]);
        for (char, byte) in [('Ġ', b' '), ('Ċ', b'\n'), ('ł', 0xa0), ('ġ', 0x7f), ('Ń', 0xad), ('a', b'a')]
        {
            assert_eq!(byte_of_char(char), Some(byte), "{char}");
        }
    }

    #[test]
    fn named_bytes() {
        let cases =
            [("<0x0A>", Some(10)), ("<0xff>", Some(255)), ("<0x+1>", None), ("<0x1>", None), ("0x41", None)];
        cases.iter().for_each(|(token, byte)| assert_eq!(named_byte(token), *byte, "{token}"));
    }

    #[test]
    fn index_finds_every_piece_and_nothing_else() {
        let mut vocab = Vocab::default();
        let pieces: Vec<String> = (0..5000).map(|n| format!("{n:x}")).collect();
        pieces.iter().for_each(|piece| vocab.push(piece.as_bytes(), Kind::Normal).unwrap());
        vocab.push(b"7", Kind::Normal).unwrap();
        let index = PieceIndex::new(&vocab, vocab.ids(Kind::is_piece));
        for (id, piece) in pieces.iter().enumerate() {
            assert_eq!(index.get(&vocab, piece.as_bytes()), Some(id as u32), "{piece}");
        }
        assert_eq!(index.get(&vocab, b"nothing"), None);
        assert_eq!(index.get(&vocab, b""), None);
        assert_eq!(vocab.bytes(5001), b"");
    }
}
