//! Speculation without a second model: tokens guessed from the text that is there, checked in one step.
//!
//! Answers repeat what their prompts say: the markers of a format, names, quotations, code. [`NgramLookup`]
//! finds the last place where the text went on after the same few tokens, or follows a prediction that the
//! caller gave, and what stood there is appended to the next step as a draft. The step computes the logits of
//! every draft row; the sampler picks the token of each position as it would have anyway (its randomness is
//! keyed by the position), and as long as that is the drafted token the next row is valid too. The rest is
//! thrown away. So a draft changes when a token comes, never which.
//!
//! A draft row costs time, whether it is accepted or not, and how much depends on the machine and on the rows
//! that are in the step anyhow. [`Drafter`] measures both: how long steps of so many rows take, and how often
//! drafts are right. It drafts as far as a row is expected to save more than it costs, and an account makes
//! sure that what is lost on wrong expectations stays under [`ALLOWANCE`] of all time spent.

use std::collections::HashMap;
use std::time::Duration;

/// Share of the time of all steps that may be lost on drafts in the long run.
const ALLOWANCE: f64 = 0.02;
/// Tokens of a draft at most.
const MAX_DRAFT: usize = 12;
/// Steps of more rows are not drafted in: they compute prompts, or enough answers at once.
const MAX_ROWS: usize = 48;
/// Tokens that must agree before what followed is a guess, the better one first.
const ORDERS: [usize; 2] = [4, 2];
const LONGEST: usize = 4;

/// Where a guess comes from, by how much it is to be trusted: an index into [`Odds`].
pub(super) type Source = usize;
const PREDICTION: Source = ORDERS.len();
const SOURCES: usize = ORDERS.len() + 1;

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
    odds: [Odds; SOURCES],
}

impl NgramLookup {
    pub fn new(prediction: Vec<u32>) -> Self {
        let predicted = prediction.len();
        let cursor = (predicted > 0).then_some(0);
        let mut lookup = NgramLookup { predicted, cursor, ..NgramLookup::default() };
        lookup.read(&prediction);
        lookup
    }

    /// What may follow `tokens` (prompt and answer; the answer begins at `prompt_len`), with its source.
    fn guess(&mut self, tokens: &[u32], prompt_len: usize) -> Option<(Source, Guess<'_>)> {
        let seen = self.history.len() - self.predicted;
        self.follow_prediction(&tokens[seen.max(prompt_len).min(tokens.len())..]);
        self.read(&tokens[seen.min(tokens.len())..]);
        if let Some(cursor) = self.cursor {
            return Some((
                PREDICTION,
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

    /// The tokens that would be drafted, as far as anything is guessed.
    pub fn look(&mut self, tokens: &[u32], prompt_len: usize, most: usize) -> Vec<u32> {
        let guess = self.guess(tokens, prompt_len);
        guess.map_or(Vec::new(), |(_, guess)| {
            (0..most.min(MAX_DRAFT)).map_while(|at| guess.token(at)).collect()
        })
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

struct Guess<'a> {
    text: &'a [u32],
    from: usize,
    /// At the end of the text it goes on from `from`: a text that repeats itself goes on repeating.
    wraps: bool,
}

impl Guess<'_> {
    fn token(&self, at: usize) -> Option<u32> {
        let place = self.from + at;
        let wrapped = || self.from + at % (self.text.len() - self.from);
        self.text.get(if self.wraps && place >= self.text.len() { wrapped() } else { place }).copied()
    }
}

/// How often guesses are right, with older ones counting less.
#[derive(Clone, Copy, Debug, Default)]
struct Odds {
    tested: f64,
    right: f64,
}

impl Odds {
    /// The first `right` tokens of `drafted` were right; those after the first wrong one tell nothing.
    fn note(&mut self, drafted: usize, right: usize) {
        self.tested = self.tested * 0.95 + (right + usize::from(right < drafted)) as f64;
        self.right = self.right * 0.95 + right as f64;
    }
}

/// What drafts cost and bring, over all sequences of an engine.
pub(super) struct Drafter {
    pace: Pace,
    odds: [Odds; SOURCES],
    /// Seconds that may be lost now.
    credit: f64,
}

/// Drafts for one step, decided one sequence after the other.
pub(super) struct Drafting {
    /// Rows that are in the step so far.
    rows: usize,
    /// Seconds that a token is worth: its share of a step without drafts.
    worth: f64,
    /// Seconds spent in this step.
    spent: f64,
}

impl Drafter {
    pub fn new() -> Self {
        // Before anything is known: long matches are mostly right, short ones seldom.
        let prior = |right| Odds { tested: 4.0, right: right * 4.0 };
        Drafter { pace: Pace::default(), odds: [prior(0.6), prior(0.3), prior(0.8)], credit: 0.0 }
    }

    /// A step of `rows` rows, one for each of `answers` sequences, is planned. `None`: no drafts in it.
    pub fn begin(&self, rows: usize, answers: usize) -> Option<Drafting> {
        let worth = self.pace.expect(rows)? / answers as f64;
        (rows == answers && rows < MAX_ROWS).then_some(Drafting { rows, worth, spent: 0.0 })
    }

    /// The draft for one sequence, of `most` tokens at most.
    pub fn draft(
        &self,
        step: &mut Drafting,
        lookup: &mut NgramLookup,
        tokens: &[u32],
        prompt_len: usize,
        most: usize,
    ) -> Option<Draft> {
        let own = lookup.odds;
        let (source, guess) = lookup.guess(tokens, prompt_len)?;
        let (all, own) = (self.odds[source], own[source]);
        // What this sequence has shown counts as soon as there is some of it.
        let right = (own.right + 4.0 * all.right / all.tested) / (own.tested + 4.0);
        let mut draft = Draft { tokens: Vec::new(), source };
        let mut hope = 1.0;
        while draft.tokens.len() < most.min(MAX_DRAFT) && step.rows < MAX_ROWS {
            let Some(token) = guess.token(draft.tokens.len()) else { break };
            let cost = self.pace.row_after(step.rows)?;
            hope *= right;
            // When nothing is hoped for, one token now and then finds out whether that is still so.
            let explores = draft.tokens.is_empty() && self.credit > 8.0 * cost;
            if self.credit < step.spent + cost || hope * step.worth <= cost && !explores {
                break;
            }
            step.rows += 1;
            step.spent += cost;
            draft.tokens.push(token);
        }
        (!draft.tokens.is_empty()).then_some(draft)
    }

    /// `right` tokens of a draft were right, each of which is `worth` seconds.
    pub fn tell(&mut self, lookup: &mut NgramLookup, draft: &Draft, right: usize, worth: f64) {
        for odds in [&mut self.odds[draft.source], &mut lookup.odds[draft.source]] {
            odds.note(draft.tokens.len(), right);
        }
        self.credit += right as f64 * worth;
    }

    /// A step took so long.
    pub fn note(&mut self, rows: usize, took: Duration, drafting: Option<&Drafting>) {
        let took = took.as_secs_f64();
        self.pace.note(rows, took);
        self.credit += took * ALLOWANCE - drafting.map_or(0.0, |it| it.spent);
        // Gains of an hour ago pay for nothing.
        self.credit = self.credit.min(64.0 * self.pace.expect(1).unwrap_or(took));
    }
}

impl Drafting {
    pub fn worth(&self) -> f64 {
        self.worth
    }
}

/// Tokens that may follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Draft {
    pub tokens: Vec<u32>,
    source: Source,
}

/// How long steps take, by their rows.
struct Pace {
    /// Seconds of a step of so many rows; 0: not seen yet.
    seconds: [f64; MAX_ROWS + 1],
    /// The last one with more rows.
    wide: Option<(usize, f64)>,
}

impl Default for Pace {
    fn default() -> Self {
        Pace { seconds: [0.0; MAX_ROWS + 1], wide: None }
    }
}

impl Pace {
    fn note(&mut self, rows: usize, took: f64) {
        match self.seconds.get_mut(rows) {
            Some(seconds) if *seconds > 0.0 => *seconds += 0.2 * (took - *seconds),
            Some(seconds) => *seconds = took,
            None => self.wide = Some((rows, took)),
        }
    }

    /// Seconds of a step of `rows` rows, between the nearest ones that were seen. Above the last one every
    /// row costs as much as a row of that one, which is more than it will.
    fn expect(&self, rows: usize) -> Option<f64> {
        let seen = |rows: usize| Some((rows, self.seconds[rows])).filter(|(_, seconds)| *seconds > 0.0);
        let below = (1..=rows.min(MAX_ROWS)).rev().find_map(seen);
        let above = (rows..=MAX_ROWS).find_map(seen).or(self.wide.filter(|(wide, _)| *wide > rows));
        let at = rows as f64;
        match (below, above) {
            (Some((low, less)), Some((high, more))) if high > low => {
                Some(less + (more - less).max(0.0) * (at - low as f64) / (high - low) as f64)
            }
            (Some((low, seconds)), _) => Some(seconds * at / low as f64),
            (None, Some((high, seconds))) => Some(seconds * at / high as f64),
            (None, None) => None,
        }
    }

    /// Seconds that one row more than `rows` costs.
    fn row_after(&self, rows: usize) -> Option<f64> {
        // A noisy clock must not make a row free.
        Some((self.expect(rows + 1)? - self.expect(rows)?).max(0.01 * self.expect(1)?))
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

    /// Runs a machine where a step costs `fixed + row * rows` and guesses are right with probability `right`.
    /// Returns the time per token, relative to a machine that never drafts.
    fn simulate(fixed: f64, row: f64, right: f64, answers: usize) -> f64 {
        let mut state = 9u64;
        let mut chance = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f64 / (1 << 24) as f64
        };
        let mut drafter = Drafter::new();
        drafter.note(400, Duration::from_secs_f64(fixed + 400.0 * row), None);
        let (mut time, mut tokens) = (0.0, 0.0);
        // A text in which everything has been seen before.
        let text = ids(&"0123456789".repeat(8));
        let mut lookups: Vec<NgramLookup> = (0..answers).map(|_| NgramLookup::new(Vec::new())).collect();
        for _ in 0..3000 {
            let mut drafting = drafter.begin(answers, answers);
            let mut rows = answers;
            for lookup in &mut lookups {
                tokens += 1.0;
                let Some(step) = &mut drafting else { continue };
                if let Some(draft) = drafter.draft(step, lookup, &text, 10, 20) {
                    rows += draft.tokens.len();
                    let accepted = draft.tokens.iter().take_while(|_| chance() < right).count();
                    tokens += accepted as f64;
                    let worth = step.worth();
                    drafter.tell(lookup, &draft, accepted, worth);
                }
            }
            let took = (fixed + row * rows as f64) * (0.95 + 0.1 * chance());
            time += took;
            drafter.note(rows, Duration::from_secs_f64(took), drafting.as_ref());
        }
        time / tokens / ((fixed + row * answers as f64) / answers as f64)
    }

    #[test]
    fn drafts_pay_or_cost_next_to_nothing() {
        // fixed, row, right, answers at once, time against no drafts at most
        for (fixed, row, right, answers, most) in [
            (0.010, 0.002, 0.9, 1, 0.45),
            (0.010, 0.002, 0.6, 1, 0.80),
            (0.010, 0.002, 0.0, 1, 1.03),
            (0.010, 0.002, 0.2, 1, 1.03),
            (0.001, 0.010, 0.5, 1, 1.03),
            (0.001, 0.010, 0.0, 8, 1.03),
            (0.010, 0.002, 0.0, 8, 1.03),
            (0.010, 0.001, 0.9, 8, 0.85),
            (0.010, 0.002, 0.0, 32, 1.03),
            (0.010, 0.002, 0.5, 32, 1.03),
        ] {
            let found = simulate(fixed, row, right, answers);
            assert!(found <= most, "{fixed} {row} {right} {answers}: {found:.3}, not {most}");
        }
    }
}
