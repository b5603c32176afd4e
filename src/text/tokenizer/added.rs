//! Tokens that are found in the text as they are written, before anything is merged: control tokens such as
//! `<|im_end|>` and user-defined ones such as a run of newlines.
//!
//! A [`TokenTrie`] finds them; what overlaps is resolved in one of two ways. GGUF files mean llama.cpp's: the
//! longest token of the whole text first, then the next shorter in what is left
//! ([`TokenTrie::longest_first`]). `tokenizer.json` means the leftmost, and of those the longest
//! ([`TokenTrie::leftmost`]). They differ only where two tokens overlap without one containing the other.

use std::collections::{BTreeSet, HashMap};
use std::ops::Range;

use super::vocab::FoldState;

/// A token found in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub range: Range<usize>,
    pub id: u32,
}

pub(super) struct TokenTrie {
    /// (node, byte) -> node; 0 is the root.
    edges: HashMap<u64, u32, FoldState>,
    /// The token that ends in each node.
    tokens: Vec<Option<u32>>,
    /// Which bytes begin a token: most of a text is passed by with this table alone.
    starts: [bool; 256],
}

/// Whether a token may stand in a range of the text.
pub(super) trait Allow: Fn(&Range<usize>, u32) -> bool {}
impl<F: Fn(&Range<usize>, u32) -> bool> Allow for F {}

impl TokenTrie {
    /// Of two tokens with the same text, the first counts; empty ones are never found.
    pub fn new<'t>(tokens: impl Iterator<Item = (&'t [u8], u32)>) -> Self {
        let mut trie = TokenTrie { edges: HashMap::default(), tokens: vec![None], starts: [false; 256] };
        for (text, id) in tokens {
            let Some(first) = text.first() else { continue };
            if let Some(start) = trie.starts.get_mut(usize::from(*first)) {
                *start = true;
            }
            let mut node = 0;
            for byte in text {
                let fresh = trie.tokens.len() as u32;
                node = *trie.edges.entry(edge(node, *byte)).or_insert(fresh);
                if node == fresh {
                    trie.tokens.push(None);
                }
            }
            if let Some(token) = trie.tokens.get_mut(node as usize) {
                token.get_or_insert(id);
            }
        }
        trie
    }

    /// The tokens that begin at `start` and end by `end`, shortest first.
    fn at(&self, text: &[u8], start: usize, end: usize) -> impl Iterator<Item = Found> {
        let mut node = 0;
        let bytes = text.get(start..end).unwrap_or_default();
        bytes
            .iter()
            .map_while(move |byte| {
                node = *self.edges.get(&edge(node, *byte))?;
                Some(node)
            })
            .zip(start + 1..)
            .filter_map(move |(node, end)| {
                let id = (*self.tokens.get(node as usize)?)?;
                Some(Found { range: start..end, id })
            })
    }

    fn longest_at(&self, text: &[u8], start: usize, allow: &impl Allow) -> Option<Found> {
        let first = usize::from(*text.get(start)?);
        if !self.starts.get(first).copied().unwrap_or(false) {
            return None;
        }
        self.at(text, start, text.len()).filter(|found| allow(&found.range, found.id)).last()
    }

    /// The leftmost allowed tokens, of those with one beginning the longest, in order and apart.
    pub fn leftmost(&self, text: &[u8], allow: impl Allow) -> Vec<Found> {
        let mut all = Vec::new();
        let mut place = 0;
        while place < text.len() {
            match self.longest_at(text, place, &allow) {
                Some(found) => {
                    place = found.range.end;
                    all.push(found);
                }
                None => place += 1,
            }
        }
        all
    }

    /// The longest allowed tokens, of one length the leftmost, then the next shorter ones in what is left; in
    /// order of the text and apart.
    pub fn longest_first(&self, text: &[u8], allow: impl Allow) -> Vec<Found> {
        let mut all = Vec::new();
        let mut place = 0;
        while place < text.len() {
            let Some(first) = self.longest_at(text, place, &allow) else {
                place += 1;
                continue;
            };
            // a stretch of tokens that overlap one another; others cannot change what is found in it
            let mut end = first.range.end;
            let mut inside = place + 1;
            while inside < end {
                let more = self.longest_at(text, inside, &allow);
                end = end.max(more.map_or(0, |found| found.range.end));
                inside += 1;
            }
            if end == first.range.end {
                // it holds all the others
                all.push(first);
            } else {
                self.resolve(text, place..end, &allow, &mut all);
            }
            place = end;
        }
        all
    }

    fn resolve(&self, text: &[u8], stretch: Range<usize>, allow: &impl Allow, all: &mut Vec<Found>) {
        let tokens = stretch.clone().flat_map(|start| self.at(text, start, stretch.end));
        let lengths: BTreeSet<usize> = tokens.map(|found| found.range.len()).collect();
        let known = all.len();
        let mut gaps = vec![stretch];
        for len in lengths.into_iter().rev() {
            let mut left = Vec::new();
            for gap in gaps {
                let mut start = gap.start;
                let mut place = gap.start;
                while place + len <= gap.end {
                    let token = self.at(text, place, place + len).last();
                    match token.filter(|found| found.range.len() == len && allow(&found.range, found.id)) {
                        Some(found) => {
                            left.push(start..place);
                            place += len;
                            start = place;
                            all.push(found);
                        }
                        None => place += 1,
                    }
                }
                left.push(start..gap.end);
            }
            left.retain(|gap| !gap.is_empty());
            gaps = left;
        }
        if let Some(new) = all.get_mut(known..) {
            new.sort_unstable_by_key(|found| found.range.start);
        }
    }
}

fn edge(node: u32, byte: u8) -> u64 {
    u64::from(node) << 8 | u64::from(byte)
}

/// Byte ranges of a text in which control tokens are plain text.
pub(super) struct Literals(Vec<Range<usize>>);

impl Literals {
    /// The ranges may touch, overlap and come in any order.
    pub fn new(ranges: &[Range<usize>]) -> Self {
        let mut ranges: Vec<_> = ranges.iter().filter(|range| !range.is_empty()).cloned().collect();
        ranges.sort_unstable_by_key(|range| range.start);
        ranges.dedup_by(|next, before| {
            let touches = next.start <= before.end;
            if touches {
                before.end = before.end.max(next.end);
            }
            touches
        });
        Literals(ranges)
    }

    pub fn overlaps(&self, range: &Range<usize>) -> bool {
        let after = self.0.partition_point(|literal| literal.end <= range.start);
        self.0.get(after).is_some_and(|literal| literal.start < range.end)
    }
}

#[cfg(test)]
mod tests {
    use rand_chacha::ChaCha8Rng;
    use rand_chacha::rand_core::{Rng, SeedableRng};

    use super::*;

    fn spans(found: Vec<Found>) -> Vec<(usize, usize, u32)> {
        found.into_iter().map(|found| (found.range.start, found.range.end, found.id)).collect()
    }

    #[test]
    fn overlaps_are_resolved_in_both_ways() {
        let tokens = ["ab", "bcd", "\n", "\n\n", "\n\n\n", "<x>"];
        let trie = TokenTrie::new(tokens.iter().map(|token| token.as_bytes()).zip(0..));
        type Spans<'a> = &'a [(usize, usize, u32)];
        let cases: &[(&str, Spans, Spans)] = &[
            ("abcd", &[(1, 4, 1)], &[(0, 2, 0)]),
            ("abc", &[(0, 2, 0)], &[(0, 2, 0)]),
            ("\n\n\n\n\n", &[(0, 3, 4), (3, 5, 3)], &[(0, 3, 4), (3, 5, 3)]),
            ("a<x>\nb<x", &[(1, 4, 5), (4, 5, 2)], &[(1, 4, 5), (4, 5, 2)]),
            ("", &[], &[]),
        ];
        for (text, longest, leftmost) in cases {
            assert_eq!(spans(trie.longest_first(text.as_bytes(), |_, _| true)), *longest, "{text:?}");
            assert_eq!(spans(trie.leftmost(text.as_bytes(), |_, _| true)), *leftmost, "{text:?}");
        }
        assert_eq!(spans(trie.longest_first(b"abcd", |_, id| id != 1)), [(0, 2, 0)]);
    }

    #[test]
    fn longest_first_is_what_one_pass_a_token_gives() {
        let tokens = ["aa", "aba", "bab", "abab", "b"];
        let trie = TokenTrie::new(tokens.iter().map(|token| token.as_bytes()).zip(0..));
        let mut random = ChaCha8Rng::seed_from_u64(7);
        for _ in 0..2000 {
            let mut letter = || b"aabc"[random.next_u32() as usize % 4];
            let text: Vec<u8> = (0..12).map(|_| letter()).collect();
            let mut taken = [false; 12];
            let mut wanted = Vec::new();
            for id in [3, 1, 2, 0, 4] {
                let token = tokens[id].as_bytes();
                // of one length the leftmost, whichever token it is
                let peers: Vec<_> =
                    (0..tokens.len()).filter(|peer| tokens[*peer].len() == token.len()).collect();
                for start in 0..=text.len() - token.len() {
                    let range = start..start + token.len();
                    let peer = peers.iter().find(|peer| text[range.clone()] == *tokens[**peer].as_bytes());
                    if let Some(peer) = peer.filter(|_| !taken[range.clone()].contains(&true)) {
                        taken[range.clone()].fill(true);
                        wanted.push((start, range.end, *peer as u32));
                    }
                }
            }
            wanted.sort_unstable();
            assert_eq!(
                spans(trie.longest_first(&text, |_, _| true)),
                wanted,
                "{}",
                String::from_utf8_lossy(&text)
            );
        }
    }

    #[test]
    fn literals() {
        let literals = Literals::new(&[10..12, 2..4, 3..6, 8..8]);
        let cases =
            [(0..2, false), (1..3, true), (5..7, true), (6..10, false), (11..20, true), (12..13, false)];
        cases
            .iter()
            .for_each(|(range, overlaps)| assert_eq!(literals.overlaps(range), *overlaps, "{range:?}"));
    }
}
