//! Which tokens may come next, as bits; and the filter that applies them to logits.

use crate::error::{Error, Result};
use crate::sample::{Filter, History, Logits};

/// Bits a word.
const BITS: usize = u32::BITS as usize;

/// A set of tokens: one bit a token of the vocabulary. Keep one and have it filled for each step, so that a
/// step allocates nothing here.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TokenMask {
    words: Vec<u32>,
    vocab_size: usize,
}

impl TokenMask {
    /// The mask that allows nothing.
    pub fn new(vocab_size: usize) -> Self {
        TokenMask { words: vec![0; vocab_size.div_ceil(BITS)], vocab_size }
    }

    /// Tokens of the vocabulary, allowed or not.
    pub fn vocab_size(&self) -> usize {
        self.vocab_size
    }

    /// Whether a token may come. Ids outside of the vocabulary may not.
    pub fn allows(&self, id: u32) -> bool {
        let (word, bit) = (id as usize / BITS, id % u32::BITS);
        self.words.get(word).is_some_and(|word| word >> bit & 1 == 1)
    }

    /// How many may come.
    pub fn count(&self) -> usize {
        self.words.iter().map(|word| word.count_ones() as usize).sum()
    }

    /// The tokens that may come, ascending.
    pub fn iter(&self) -> impl Iterator<Item = u32> {
        self.words.iter().enumerate().flat_map(|(index, &word)| {
            let mut rest = word;
            std::iter::from_fn(move || {
                let bit = rest.trailing_zeros();
                // Clears the lowest bit; no bit is left when there was none.
                rest &= rest.checked_sub(1)?;
                Some(index as u32 * u32::BITS + bit)
            })
        })
    }

    /// The only token that may come, if it is one.
    pub fn single(&self) -> Option<u32> {
        let mut tokens = self.iter();
        let first = tokens.next()?;
        tokens.next().is_none().then_some(first)
    }

    /// Writes `-inf` over the logit of every token that may not come. `row` is one logit a token; what lies
    /// beyond the vocabulary is forbidden.
    pub fn apply(&self, row: &mut [f32]) {
        for (index, block) in row.chunks_mut(BITS).enumerate() {
            let word = self.words.get(index).copied().unwrap_or(0);
            if word == 0 {
                block.fill(f32::NEG_INFINITY);
            } else if word != u32::MAX {
                for (bit, value) in block.iter_mut().enumerate() {
                    *value = if word >> bit & 1 == 1 { *value } else { f32::NEG_INFINITY };
                }
            }
        }
    }

    /// Takes over bits that the library computed: word `i` holds the tokens from `32 i` on, lowest bit first.
    /// Bits beyond the vocabulary are dropped.
    pub(super) fn load(&mut self, words: &[u32], vocab_size: usize) {
        self.vocab_size = vocab_size;
        self.words.clear();
        self.words.extend_from_slice(words.get(..words.len().min(vocab_size.div_ceil(BITS))).unwrap_or(&[]));
        self.words.resize(vocab_size.div_ceil(BITS), 0);
        if let (Some(last), rest @ 1..) = (self.words.last_mut(), vocab_size % BITS) {
            *last &= (1 << rest) - 1;
        }
    }

    /// Only these tokens.
    pub(super) fn set_only(&mut self, ids: &[u32], vocab_size: usize) {
        self.load(&[], vocab_size);
        for &id in ids.iter().filter(|&&id| (id as usize) < vocab_size) {
            if let Some(word) = self.words.get_mut(id as usize / BITS) {
                *word |= 1 << (id % u32::BITS);
            }
        }
    }
}

/// The mask as a filter of [`Logits`].
///
/// It stands first, before bias and penalties: what is forbidden then costs the later filters nothing, and
/// `-inf` stays `-inf` under every bias and penalty. It is run once more after filters of the user, which see
/// the dense row and could write over a `-inf`. Log probabilities that are reported come from the model's own
/// row, never from this one.
pub struct Mask<'a>(pub &'a TokenMask);

impl Mask<'_> {
    /// Drops the candidates that may not come.
    ///
    /// # Errors
    /// Constraint if none is left over `-inf`: bias, a filter, or the model forbids all that the grammar
    /// allows.
    pub fn apply(&self, logits: &mut Logits) -> Result<()> {
        // A quarter is about where compacting costs as much as writing over the rest.
        if self.0.count() > logits.vocab_size() / 4 {
            self.0.apply(logits.dense_mut());
        } else {
            logits.select(self.0.iter());
        }
        if !logits.values().iter().any(|&value| value != f32::NEG_INFINITY) {
            return Err(Error::constraint(
                "the grammar and the sampler together leave no token: a logit_bias or a filter forbids every token \
                 that the grammar allows next; loosen one of the two",
            ));
        }
        Ok(())
    }
}

impl Filter for Mask<'_> {
    fn filter(&self, logits: &mut Logits, _: &History) -> Result<()> {
        self.apply(logits)
    }

    fn name(&self) -> &str {
        "grammar"
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bits_are_tokens() {
        for vocab_size in [1, 31, 32, 33, 64, 100] {
            for ids in
                [vec![], vec![0], vec![vocab_size as u32 - 1], (0..vocab_size as u32).step_by(3).collect()]
            {
                let mut mask = TokenMask::default();
                mask.load(&[u32::MAX; 9], vocab_size);
                assert_eq!(mask.count(), vocab_size, "no bit beyond the vocabulary");
                mask.set_only(&ids, vocab_size);
                assert_eq!(mask.iter().collect::<Vec<_>>(), ids, "{vocab_size}");
                assert_eq!((mask.count(), mask.single().is_some()), (ids.len(), ids.len() == 1));
                let mut row = vec![1.0; vocab_size + 7];
                mask.apply(&mut row);
                for (id, value) in row.iter().enumerate() {
                    assert_eq!(*value == 1.0, ids.contains(&(id as u32)), "{vocab_size} {id}");
                    assert_eq!(mask.allows(id as u32), ids.contains(&(id as u32)));
                }
            }
        }
    }

    #[test]
    fn the_filter_leaves_what_both_allow() {
        let mut mask = TokenMask::default();
        mask.set_only(&[1, 3], 4);
        let mut logits = Logits::new(&[9.0, 1.0, 8.0, f32::NEG_INFINITY]);
        Mask(&mask).apply(&mut logits).unwrap();
        let left = |logits: &Logits| logits.iter().filter(|(_, value)| value.is_finite()).collect::<Vec<_>>();
        assert_eq!(left(&logits), [(1, 1.0)]);
        let mut sparse = Logits::new(&[9.0, 1.0, 8.0, 7.0]);
        sparse.retain(|id, _| id != 1);
        Mask(&mask).apply(&mut sparse).unwrap();
        assert_eq!(left(&sparse), [(3, 7.0)]);
        let mut wide = Logits::new(&[2.0; 40]);
        Mask(&mask).apply(&mut wide).unwrap();
        assert_eq!(wide.iter().collect::<Vec<_>>(), [(1, 2.0), (3, 2.0)]);
        let mut none = Logits::new(&[9.0, f32::NEG_INFINITY, 8.0, f32::NEG_INFINITY]);
        let error = Mask(&mask).apply(&mut none).unwrap_err();
        assert_eq!(error.kind(), crate::ErrorKind::Constraint);
    }
}
