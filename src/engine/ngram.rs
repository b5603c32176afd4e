//! Tokens guessed from the text that is there.
//!
//! Answers repeat what their prompts say: the markers of a format, names, quotations, code. [`NgramLookup`]
//! finds the last place where the text went on after the same few tokens, or follows a prediction that the
//! caller gave; what stood there is the guess.

use std::collections::HashMap;

/// Tokens that must agree before what followed is a guess, the better one first.
pub(super) const ORDERS: [usize; 2] = [4, 2];
const LONGEST: usize = 4;

/// The text of one sequence, to be searched.
#[derive(Default)]
pub(super) struct NgramLookup {
    /// The prediction, then the sequence as far as it was seen.
    history: Vec<u32>,
    predicted: usize,
    /// Per order: the place in `history` that last followed these tokens.
    followed: [HashMap<[u32; LONGEST], u32>; ORDERS.len()],
    /// Where the answer stands in the prediction, while it goes along with it.
    cursor: Option<usize>,
}

impl NgramLookup {
    pub fn new(prediction: Vec<u32>) -> Self {
        let predicted = prediction.len();
        let cursor = (predicted > 0).then_some(0);
        let mut lookup = NgramLookup { predicted, cursor, ..NgramLookup::default() };
        lookup.read(&prediction);
        lookup
    }

    /// What may follow `tokens` (prompt and answer; the answer begins at `prompt_len`), with the place in
    /// [`ORDERS`] of what it follows from; behind the last one stands the prediction.
    fn guess(&mut self, tokens: &[u32], prompt_len: usize) -> Option<(usize, Guess<'_>)> {
        let seen = self.history.len() - self.predicted;
        self.follow_prediction(&tokens[seen.max(prompt_len).min(tokens.len())..]);
        self.read(&tokens[seen.min(tokens.len())..]);
        if let Some(cursor) = self.cursor {
            return Some((
                ORDERS.len(),
                Guess { text: &self.history[..self.predicted], from: cursor, wraps: false },
            ));
        }
        let end = self.history.len();
        for (source, &order) in ORDERS.iter().enumerate().filter(|(_, order)| **order < end) {
            if let Some(&from) = self.followed[source].get(&key(&self.history[end - order..])) {
                return Some((source, Guess { text: &self.history, from: from as usize, wraps: true }));
            }
        }
        None
    }

    /// See [`guess`](Self::guess): the next `most` tokens, as far as any are guessed.
    pub fn look(&mut self, tokens: &[u32], prompt_len: usize, most: usize) -> Option<(usize, Vec<u32>)> {
        let (source, guess) = self.guess(tokens, prompt_len)?;
        Some((source, (0..most).map_while(|at| guess.token(at)).collect()))
    }

    fn follow_prediction(&mut self, new: &[u32]) {
        for token in new {
            self.cursor = match self.cursor {
                Some(at) if self.history[at] == *token && at + 1 < self.predicted => Some(at + 1),
                _ => None,
            };
        }
    }

    fn read(&mut self, new: &[u32]) {
        for &token in new {
            let place = self.history.len();
            for (followed, &order) in
                self.followed.iter_mut().zip(&ORDERS).filter(|(_, order)| **order <= place)
            {
                followed.insert(key(&self.history[place - order..]), place as u32);
            }
            self.history.push(token);
        }
    }
}

fn key(tokens: &[u32]) -> [u32; LONGEST] {
    let mut key = [u32::MAX; LONGEST];
    key[..tokens.len()].copy_from_slice(tokens);
    key
}

/// A text that may go on from here.
struct Guess<'a> {
    text: &'a [u32],
    from: usize,
    /// At the end of the text it goes on from `from`: a text that repeats itself goes on repeating.
    wraps: bool,
}

impl Guess<'_> {
    /// The token that may come `at` places from here; none beyond the end of the text.
    fn token(&self, at: usize) -> Option<u32> {
        let place = self.from + at;
        let wrapped = || self.from + at % (self.text.len() - self.from);
        self.text.get(if self.wraps && place >= self.text.len() { wrapped() } else { place }).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(text: &str) -> Vec<u32> {
        text.bytes().map(u32::from).collect()
    }

    /// `prediction | prompt | answer -> the next six tokens guessed`
    const GUESSES: &[(&str, &str, &str, &str)] = &[
        ("", "the cat sat. the c", "", "at sat"),
        ("", "the cat sat. the ", "d", "-"),
        // The last place counts, and a longer match before a shorter one.
        ("", "abc1 abc2 ab", "c", "2 abc2"),
        ("", "wxyz1 yz2 wxyz", "", "1 yz2 "),
        // A text that repeats itself goes on.
        ("", "x", "ababab", "ababab"),
        ("", "ab", "", "-"),
        ("", "abab", "", "ababab"),
        // A prediction is followed from its start, left when it is wrong, found again later.
        ("hello world", "q", "", "hello "),
        ("hello world", "q", "hel", "lo wor"),
        ("hello world", "q", "hexx wo", "rldqhe"),
        ("hello world", "q", "hey", "-"),
        ("he", "q", "he", "qheqhe"),
    ];

    #[test]
    fn golden_guesses() {
        for (prediction, prompt, answer, expected) in GUESSES {
            // All at once, and token by token.
            for stride in [1, 100] {
                let (tokens, prompt_len) = (ids(&format!("{prompt}{answer}")), prompt.len());
                let mut lookup = NgramLookup::new(ids(prediction));
                let mut end = prompt_len;
                while end < tokens.len() {
                    lookup.guess(&tokens[..end], prompt_len);
                    end += stride;
                }
                let found = match lookup.guess(&tokens, prompt_len) {
                    Some((_, guess)) => {
                        (0..6).map_while(|at| guess.token(at)).map(|id| id as u8 as char).collect()
                    }
                    None => "-".to_string(),
                };
                assert_eq!(found, *expected, "{prediction}|{prompt}|{answer}");
            }
        }
    }
}
