//! The candidates for the next token: dense at first, sparse once a filter has dropped some.

use super::softmax;
use crate::error::{Error, Result};

/// Candidates and their logits.
///
/// Dense, it is one logit a token of the vocabulary. Sparse, it is `(id, logit)` pairs with ids ascending,
/// so "in order of id" is simply "in order" in both states. A token that is not a candidate, and one at
/// `-inf`, is never picked.
///
/// It keeps its buffers: [`Logits::load`] the next row into the same value, because a fresh megabyte a
/// token costs more in page faults than most filters cost in work.
#[derive(Clone, Default)]
pub struct Logits {
    vocab: usize,
    /// `None` while dense. Otherwise ascending, one for each of `values`.
    ids: Option<Vec<u32>>,
    values: Vec<f32>,
    /// The largest value, if it is known and all values are sound. Forgotten on every change.
    max: Option<f32>,
    /// The buffer of `ids` while dense.
    spare: Vec<u32>,
    pub(super) work: Work,
}

/// Buffers of the filters. They hold nothing between two calls, except that `counts` is all zeros.
#[derive(Clone, Default)]
pub(super) struct Work {
    pub weights: Vec<f32>,
    pub keys: Vec<f32>,
    pub best: Vec<f32>,
    pub items: Vec<u64>,
    pub counts: Vec<u32>,
}

impl Logits {
    /// A dense row over the whole vocabulary.
    pub fn new(row: &[f32]) -> Self {
        let mut logits = Logits::default();
        logits.load(row);
        logits
    }

    /// Replaces the content by a dense row, and keeps the buffers.
    pub fn load(&mut self, row: &[f32]) {
        self.vocab = row.len();
        self.max = None;
        self.values.clear();
        self.values.extend_from_slice(row);
        self.spare = self.ids.take().unwrap_or(std::mem::take(&mut self.spare));
    }

    /// Tokens in the vocabulary, candidates or not.
    pub fn vocab_size(&self) -> usize {
        self.vocab
    }

    /// The number of candidates.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// The logits of the candidates, in order of id.
    pub fn values(&self) -> &[f32] {
        &self.values
    }

    /// The same, to change them. The ids stay.
    pub fn values_mut(&mut self) -> &mut [f32] {
        self.max = None;
        &mut self.values
    }

    /// The token of candidate `index`.
    pub fn id(&self, index: usize) -> Option<u32> {
        match &self.ids {
            None => (index < self.values.len()).then_some(index as u32),
            Some(ids) => ids.get(index).copied(),
        }
    }

    /// `(id, logit)` of the candidates, in order of id.
    pub fn iter(&self) -> impl Iterator<Item = (u32, f32)> {
        self.values.iter().enumerate().filter_map(|(index, &value)| Some((self.id(index)?, value)))
    }

    /// The logit of a token, `None` if it is no candidate.
    pub fn get_mut(&mut self, id: u32) -> Option<&mut f32> {
        self.max = None;
        let index = match &self.ids {
            None => id as usize,
            Some(ids) => ids.binary_search(&id).ok()?,
        };
        self.values.get_mut(index)
    }

    /// One logit a token of the vocabulary; those that are no candidates come back at `-inf`.
    pub fn dense_mut(&mut self) -> &mut [f32] {
        self.max = None;
        if let Some(ids) = self.ids.take() {
            // Ids are unique, so writing from the back never overwrites a value that is still to be moved.
            let count = self.values.len();
            self.values.resize(self.vocab, f32::NEG_INFINITY);
            for (index, &id) in ids.iter().enumerate().take(count).rev() {
                let value = std::mem::replace(&mut self.values[index], f32::NEG_INFINITY);
                self.values[id as usize] = value;
            }
            self.spare = ids;
        }
        &mut self.values
    }

    /// Keeps the candidates that `keep` wants: a mask.
    pub fn retain(&mut self, mut keep: impl FnMut(u32, f32) -> bool) {
        self.max = None;
        let mut writer = Writer::new(self);
        for index in 0..writer.len() {
            let (id, value) = writer.get(index);
            if keep(id, value) {
                writer.put(id, value);
            }
        }
        writer.close();
    }

    /// Keeps the candidates among `ids`, which ascend. Costs what is kept, not the vocabulary.
    pub fn select(&mut self, ids: impl Iterator<Item = u32>) {
        let mut ids = ids.peekable();
        if self.ids.is_some() {
            // Both ascend, so one pass over each is enough.
            return self.retain(|id, _| {
                while ids.next_if(|&other| other < id).is_some() {}
                ids.next_if_eq(&id).is_some()
            });
        }
        self.max = None;
        let mut writer = Writer::new(self);
        let len = writer.len();
        for id in ids.take_while(|&id| (id as usize) < len) {
            let value = writer.values[id as usize];
            writer.put(id, value);
        }
        writer.close();
    }

    /// Keeps the candidates whose key is over `threshold`, and the first `ties` of those right at it: the
    /// ones with the lowest ids. `keys` has one entry a candidate; `None` means the logits are the keys.
    pub(super) fn keep_best(&mut self, keys: Option<&[f32]>, threshold: f32, mut ties: usize) {
        const BLOCK: usize = 32;
        // Other keys may rank the largest logit low.
        self.max = self.max.filter(|_| keys.is_none());
        let mut writer = Writer::new(self);
        for start in (0..writer.len()).step_by(BLOCK) {
            let range = start..writer.len().min(start + BLOCK);
            let mut block = [f32::NEG_INFINITY; BLOCK];
            let block = &mut block[..range.len()];
            block.copy_from_slice(&keys.unwrap_or(writer.values)[range]);
            // Most blocks of a large vocabulary hold no winner; this test of all 32 at once is vectorized.
            if !block.iter().fold(false, |any, &key| any | (key >= threshold)) {
                continue;
            }
            for (offset, &key) in block.iter().enumerate() {
                let tie = key == threshold && ties > 0;
                if key > threshold || tie {
                    ties -= usize::from(tie);
                    let (id, value) = writer.get(start + offset);
                    writer.put(id, value);
                }
            }
        }
        writer.close();
    }

    /// The largest logit, after edits.
    ///
    /// # Errors
    /// InvalidRequest if a logit is NaN or `+inf`, or none is over `-inf`.
    pub(super) fn check(&mut self) -> Result<f32> {
        self.max_or(request_fault)
    }

    /// The largest logit.
    ///
    /// # Errors
    /// What `blame` makes of the reason, if a logit is NaN or `+inf`, or none is over `-inf`.
    pub(super) fn max_or(&mut self, blame: impl Fn(String) -> Error) -> Result<f32> {
        if let Some(max) = self.max {
            return Ok(max);
        }
        let (max, sound) = softmax::max_and_sound(&self.values);
        if !sound {
            let at = self.values.iter().position(|&value| !softmax::is_sound(value)).unwrap_or(0);
            let (id, value) = (self.id(at).unwrap_or(0), self.values.get(at).copied().unwrap_or(f32::NAN));
            return Err(blame(format!("the logit of token {id} is {value}")));
        }
        if max == f32::NEG_INFINITY {
            return Err(blame("no token is left: the logit of every one is -inf".into()));
        }
        self.max = Some(max);
        Ok(max)
    }
}

/// The row came out of the model like this. A sound model gives numbers, so its file is to blame, or a number
/// format that is too narrow for it.
pub(super) fn model_fault(reason: String) -> Error {
    Error::model_file(format!(
        "the model's output cannot be sampled: {reason}; its weights or its configuration are damaged, or too \
         large for the dtype it was loaded with: get the files again, or load it with dtype=\"float32\""
    ))
}

/// The row was sound before the request's own edits.
pub(super) fn request_fault(reason: String) -> Error {
    Error::invalid(format!(
        "after logit_bias, penalties and filters nothing can be sampled: {reason}; \
         forbid tokens with -inf, and leave at least one"
    ))
}

/// Compacts candidates in place. What is written never overtakes what is read.
struct Writer<'a> {
    values: &'a mut Vec<f32>,
    old: Option<Vec<u32>>,
    ids: &'a mut Option<Vec<u32>>,
    spare: &'a mut Vec<u32>,
    new: Vec<u32>,
    len: usize,
}

impl<'a> Writer<'a> {
    fn new(logits: &'a mut Logits) -> Self {
        let Logits { values, ids, spare, .. } = logits;
        let mut new = std::mem::take(spare);
        new.clear();
        let len = values.len();
        Writer { values, old: ids.take(), ids, spare, new, len }
    }

    fn len(&self) -> usize {
        self.len
    }

    fn get(&self, index: usize) -> (u32, f32) {
        (self.old.as_ref().map_or(index as u32, |ids| ids[index]), self.values[index])
    }

    fn put(&mut self, id: u32, value: f32) {
        self.values[self.new.len()] = value;
        self.new.push(id);
    }

    fn close(self) {
        self.values.truncate(self.new.len());
        *self.spare = self.old.unwrap_or_default();
        *self.ids = Some(self.new);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUT: f32 = f32::NEG_INFINITY;

    #[test]
    fn sparse_and_dense_are_the_same_candidates() {
        let mut logits = Logits::new(&[3.0, 1.0, 2.0, 5.0, 4.0]);
        logits.retain(|id, _| id != 0 && id != 3);
        assert_eq!(logits.iter().collect::<Vec<_>>(), [(1, 1.0), (2, 2.0), (4, 4.0)]);
        logits.retain(|_, value| value > 1.0);
        assert_eq!(logits.iter().collect::<Vec<_>>(), [(2, 2.0), (4, 4.0)]);
        *logits.get_mut(4).unwrap() = 9.0;
        assert!(logits.get_mut(3).is_none());
        assert_eq!(logits.dense_mut(), [OUT, OUT, 2.0, OUT, 9.0]);
        assert_eq!((logits.len(), logits.vocab_size(), logits.id(4), logits.id(5)), (5, 5, Some(4), None));
        logits.load(&[1.0, 2.0]);
        assert_eq!(logits.iter().collect::<Vec<_>>(), [(0, 1.0), (1, 2.0)]);
    }

    #[test]
    fn dense_again_whatever_was_kept() {
        for kept in [vec![0, 1, 2], vec![0, 2, 4, 5], vec![5], vec![], (0..6).collect()] {
            let mut logits = Logits::new(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
            logits.retain(|id, _| kept.contains(&id));
            let want: Vec<f32> = (0..6).map(|id| if kept.contains(&id) { id as f32 } else { OUT }).collect();
            assert_eq!(logits.dense_mut(), want, "{kept:?}");
        }
    }

    #[test]
    fn selected_ids_are_what_is_kept() {
        for first in [vec![0, 1, 2, 3, 4, 5], vec![1, 3, 5], vec![]] {
            for second in [vec![], vec![0], vec![1, 4, 5], vec![3, 5, 6, 900]] {
                let mut logits = Logits::new(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
                logits.select(first.iter().copied());
                logits.select(second.iter().copied());
                let want = first.iter().filter(|id| second.contains(id)).map(|&id| (id, id as f32));
                assert_eq!(
                    logits.iter().collect::<Vec<_>>(),
                    want.collect::<Vec<_>>(),
                    "{first:?} {second:?}"
                );
                let mut dense = Logits::new(&[0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
                dense.select(second.iter().copied());
                let want = second.iter().filter(|&&id| id < 6).map(|&id| (id, id as f32));
                assert_eq!(dense.iter().collect::<Vec<_>>(), want.collect::<Vec<_>>(), "{second:?}");
            }
        }
    }

    #[test]
    fn the_best_are_kept_with_the_first_ties() {
        let row: Vec<f32> = (0..100).map(|i| (i % 10) as f32).collect();
        let mut logits = Logits::new(&row);
        logits.keep_best(None, 8.0, 3);
        let ids: Vec<u32> = logits.iter().map(|(id, _)| id).collect();
        assert_eq!(ids, [8, 9, 18, 19, 28, 29, 39, 49, 59, 69, 79, 89, 99]);
    }
}
