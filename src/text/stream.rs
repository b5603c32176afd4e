//! The text of one answer while it is being generated.
//!
//! [`TextStream`] takes token ids and gives text that is final: whole characters only, and nothing that could
//! still turn out to be the beginning of a stop string. It works on bytes: a token's bytes may end in the
//! middle of a character, and a stop string may begin in one token and end three tokens later.
//!
//! The alternative, decoding the last few tokens again at each step and comparing, costs a decode a token and
//! shows replacement characters for a moment; this costs O(1) a byte and stop string.

use std::sync::Arc;

use super::tokenizer::Tokenizer;

/// What one token adds to the text.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Piece {
    /// Text that is safe to show now; often empty.
    pub text: String,
    /// A stop string was met: the text ends before it.
    pub stopped: bool,
}

/// The text of one answer, token by token.
///
/// The answer continues a prompt, so nothing is stripped from its beginning: a first token ` Hello` gives `
/// Hello`. All texts together are [`Tokenizer::decode_continuation`] of all ids, cut before the stop string.
///
/// Of several stop strings the one that is complete first counts; of those complete with the same byte, the
/// longest. So the text does not depend on where the borders of tokens are.
pub struct TextStream {
    tokenizer: Arc<Tokenizer>,
    stops: Vec<Stop>,
    /// Control tokens that show.
    shown: Vec<u32>,
    /// The bytes of an unfinished character: at most three.
    unfinished: Vec<u8>,
    /// Text that is not given out yet.
    held: String,
    stopped: bool,
}

impl TextStream {
    /// Empty stop strings stop nothing.
    pub fn new(tokenizer: Arc<Tokenizer>, stops: Vec<String>) -> Self {
        let stops = stops.into_iter().filter(|stop| !stop.is_empty()).map(Stop::new).collect();
        let (shown, unfinished, held) = (Vec::new(), Vec::new(), String::new());
        TextStream { tokenizer, stops, shown, unfinished, held, stopped: false }
    }

    /// The same, and these control tokens show as they are written: the markers around calls and thoughts,
    /// for whoever reads the text.
    pub fn showing(mut self, ids: Vec<u32>) -> Self {
        self.shown = ids;
        self
    }

    /// Whether both make the same text of the same tokens, from the first one on.
    pub fn same_rules(&self, other: &TextStream) -> bool {
        let stops = |it: &TextStream| it.stops.iter().map(|stop| stop.bytes.clone()).collect::<Vec<_>>();
        let same = Arc::ptr_eq(&self.tokenizer, &other.tokenizer) && self.shown == other.shown;
        same && stops(self) == stops(other)
    }

    /// The text that a token makes final. Control tokens that do not show give none, and after a stop string
    /// there is none.
    pub fn push(&mut self, id: u32) -> Piece {
        let tokenizer = self.tokenizer.clone();
        if self.stopped || (tokenizer.is_special(id) && !self.shown.contains(&id)) {
            return Piece { text: String::new(), stopped: self.stopped };
        }
        let (space, token) = tokenizer.shown(id);
        self.push_bytes(&[space, token].concat())
    }

    /// The end of the answer: what was held back. An unfinished character becomes U+FFFD.
    pub fn finish(&mut self) -> String {
        if !self.unfinished.is_empty() {
            self.unfinished.clear();
            self.add("\u{fffd}");
        }
        std::mem::take(&mut self.held)
    }

    fn push_bytes(&mut self, bytes: &[u8]) -> Piece {
        let mut all = std::mem::take(&mut self.unfinished);
        all.extend_from_slice(bytes);
        let mut rest = all.as_slice();
        // the standard rule: each maximal beginning of a character that goes wrong is one U+FFFD
        while let Err(error) = std::str::from_utf8(rest) {
            let (valid, invalid) = rest.split_at(error.valid_up_to());
            self.add(std::str::from_utf8(valid).unwrap_or_default());
            let Some(len) = error.error_len() else {
                self.unfinished = invalid.to_vec();
                rest = &[];
                break;
            };
            self.add("\u{fffd}");
            rest = invalid.get(len..).unwrap_or_default();
        }
        self.add(std::str::from_utf8(rest).unwrap_or_default());
        self.release()
    }

    /// Adds text and looks for stop strings in it.
    fn add(&mut self, text: &str) {
        if self.stopped {
            return;
        }
        let before = self.held.len();
        self.held.push_str(text);
        for (byte, place) in text.bytes().zip(before + 1..) {
            let longest = self.stops.iter_mut().filter_map(|stop| stop.step(byte)).max();
            if let Some(len) = longest {
                // a stop string that began in text already given out cannot be: that text would be held
                self.held.truncate(place.saturating_sub(len));
                self.stopped = true;
                return;
            }
        }
    }

    /// Gives out all but what may be the beginning of a stop string.
    fn release(&mut self) -> Piece {
        let keep =
            if self.stopped { 0 } else { self.stops.iter().map(|stop| stop.matched).max().unwrap_or(0) };
        // a stop string begins with a whole character, so this is a border between two
        let rest = self.held.split_off(self.held.len().saturating_sub(keep));
        Piece { text: std::mem::replace(&mut self.held, rest), stopped: self.stopped }
    }
}

/// A stop string and how much of it the text ends with (Knuth, Morris and Pratt's automaton).
struct Stop {
    bytes: Vec<u8>,
    /// Of each length that is matched, the next shorter one that then matches as well.
    shorter: Vec<usize>,
    matched: usize,
}

impl Stop {
    fn new(text: String) -> Self {
        let bytes = text.into_bytes();
        let mut stop = Stop { shorter: vec![0; bytes.len() + 1], bytes: Vec::new(), matched: 0 };
        for (place, byte) in bytes.iter().enumerate() {
            // the automaton built so far runs over the string itself, one byte behind
            if place > 0 {
                stop.advance(*byte);
            }
            stop.bytes.push(*byte);
            if let Some(shorter) = stop.shorter.get_mut(place + 1) {
                *shorter = stop.matched;
            }
        }
        stop.matched = 0;
        stop
    }

    fn advance(&mut self, byte: u8) {
        while self.matched > 0 && self.bytes.get(self.matched) != Some(&byte) {
            self.matched = self.shorter.get(self.matched).copied().unwrap_or(0);
        }
        self.matched += usize::from(self.bytes.get(self.matched) == Some(&byte));
    }

    /// Takes the next byte of the text; its own length when the text now ends with the stop string.
    fn step(&mut self, byte: u8) -> Option<usize> {
        self.advance(byte);
        (self.matched == self.bytes.len()).then_some(self.matched)
    }
}
