//! What drafts cost and bring: tokens that may follow, checked several in one step.
//!
//! The step computes the logits of every draft row; the sampler picks the token of each position as it would
//! have anyway (its randomness is keyed by the position), and as long as that is the drafted token the next
//! row is valid too. The rest is thrown away. So a draft changes when a token comes, never which.
//!
//! Guesses come from the text that is there ([`ngram`](super::ngram)) or from a second, smaller model
//! ([`draft_model`](super::draft_model)). A draft row costs time, whether it is accepted or not, and so does
//! the smaller model; how much depends on the machine and on the rows that are in the step anyhow.
//! [`Drafter`] measures it: how long steps of so many rows take, in both models, and how often drafts of each
//! source are right. It drafts as far as that is expected to bring more tokens a second, and an account
//! makes sure that what is lost on wrong expectations stays under [`ALLOWANCE`] of all time spent.

use std::time::Duration;

use super::ngram::ORDERS;

/// Share of the time of all steps that may be lost on drafts in the long run.
const ALLOWANCE: f64 = 0.02;
/// Tokens of a draft from the text at most.
pub(super) const LONGEST_GUESS: usize = 12;
/// Tokens that a draft model drafts at most: one after the other, each a step of it.
const DEEPEST: usize = 6;
/// Steps of more rows are not drafted in: they compute prompts, or enough answers at once.
const MAX_ROWS: usize = 48;
/// Steps of so many rows are tried once before it is believed that they do not pay: their prices have steps.
const TRIED: usize = 8;
/// One step in so many is drafted for in another way than the best one known, to see what it costs now.
const PROBE_EVERY: usize = 32;
/// A draft that is not expected to pay is tried for once there is so many times its price.
const RESERVE: f64 = 8.0;
/// Tokens whose time may be saved up, and lost again; and those that a draft model may lose to begin with.
const SAVED: f64 = 64.0;
const ADVANCE: f64 = 16.0;
/// What a step of a draft model costs before one was seen, in steps of the model.
const MODEL_STEP: f64 = 0.2;

/// Where a guess comes from, by how much it is to be trusted: an index into [`Record`]. The first ones are
/// those of [`NgramLookup::guess`](super::ngram::NgramLookup::guess).
pub(super) type Source = usize;
pub(super) const MODEL: Source = ORDERS.len() + 1;
const SOURCES: usize = ORDERS.len() + 2;

/// How often guesses of each source were right.
pub(super) type Record = [Odds; SOURCES];

/// How often guesses are right, with older ones counting less.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Odds {
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

/// Tokens that may follow.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Draft {
    pub tokens: Vec<u32>,
    pub source: Source,
}

/// A draft with what it is expected to cost and to save, in seconds.
pub(super) struct Offer {
    draft: Draft,
    cost: f64,
    pub gain: f64,
}

/// A sequence that a draft model may draft for.
#[derive(Clone, Copy, Debug)]
pub(super) struct Seat {
    /// How often its tokens are right.
    pub right: f64,
    /// Tokens that a draft may have.
    pub room: usize,
}

/// How many tokens a draft model is to draft for each of some sequences.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Depth {
    pub tokens: usize,
    /// Seconds that this costs, and those that it is expected to save on top, for all of them together.
    cost: f64,
    gain: f64,
    /// Tokens that they are expected to get in this step.
    comes: f64,
}

impl Depth {
    /// Seconds saved for one of `seats`.
    pub fn gain_of_one(&self, seats: usize) -> f64 {
        self.gain / seats.max(1) as f64
    }
}

/// What drafts cost and bring, over all sequences of an engine.
pub(super) struct Drafter {
    pace: Pace,
    /// That of the draft model.
    model: Option<Pace>,
    odds: Record,
    /// Seconds that may be lost now.
    credit: f64,
    /// Steps in which there could be drafts.
    turns: usize,
    /// Tokens that an answer has.
    length: f64,
}

/// Drafts for one step, decided one sequence after the other.
pub(super) struct Drafting {
    /// Rows that are in the step so far, and those without drafts.
    rows: usize,
    answers: usize,
    /// Seconds that a token is worth: its share of a step without drafts.
    worth: f64,
    /// Seconds spent in this step.
    spent: f64,
}

impl Drafter {
    /// `model`: there is a draft model.
    pub fn new(model: bool) -> Self {
        // Before anything is known: long matches are mostly right, short ones seldom.
        let prior = |right| Odds { tested: 4.0, right: right * 4.0 };
        Drafter {
            pace: Pace::default(),
            model: model.then(Pace::default),
            odds: [prior(0.6), prior(0.3), prior(0.8), prior(0.65)],
            // Who gives a draft model wants it tried: see `note`.
            credit: if model { f64::INFINITY } else { 0.0 },
            turns: 0,
            length: 64.0,
        }
    }

    /// A step of `rows` rows, one for each of `answers` sequences, is planned. `None`: no drafts in it.
    pub fn begin(&self, rows: usize, answers: usize) -> Option<Drafting> {
        let worth = self.pace.expect(rows)? / answers as f64;
        (rows == answers && rows < MAX_ROWS).then_some(Drafting { rows, answers, worth, spent: 0.0 })
    }

    /// How often a guess of this source is right in a sequence with this record: what it has shown itself
    /// counts as soon as there is some of it.
    pub fn right(&self, source: Source, own: &Record) -> f64 {
        let (all, own) = (self.odds[source], own[source]);
        (own.right + 4.0 * all.right / all.tested) / (own.tested + 4.0)
    }

    /// As much of `guess` for one sequence as is expected to pay, each token right so often.
    pub fn offer(&self, step: &Drafting, source: Source, right: f64, mut guess: Vec<u32>) -> Option<Offer> {
        let (mut count, mut cost, mut gain, mut hope) = (0, 0.0, 0.0, 1.0);
        while count < guess.len() && step.rows + count < MAX_ROWS {
            let row = self.pace.row_after(step.rows + count)?;
            hope *= right;
            // When nothing is hoped for, one token now and then finds out whether that is still so.
            let explores = count == 0 && self.credit > RESERVE * row;
            if self.credit < step.spent + cost + row || hope * step.worth <= row && !explores {
                break;
            }
            (count, cost, gain) = (count + 1, cost + row, gain + hope * step.worth - row);
        }
        guess.truncate(count);
        (count > 0).then_some(Offer { draft: Draft { tokens: guess, source }, cost, gain })
    }

    /// How far the draft model is to draft for all of `seats`, so that tokens come fastest; 0: not at all.
    /// `None` without a draft model.
    pub fn depth(&self, step: &Drafting, seats: &[Seat]) -> Option<Depth> {
        let base = self.pace.expect(step.answers)?;
        let model = self.model_step(seats.len())?;
        let at = |tokens: usize| -> Option<(f64, Depth)> {
            let rows = step.rows + seats.iter().map(|seat| seat.room.min(tokens)).sum::<usize>();
            let of_seat = |seat: &Seat| -> f64 {
                (1..=seat.room.min(tokens)).map(|drafted| seat.right.powi(drafted as i32)).sum()
            };
            let hope: f64 = seats.iter().map(of_seat).sum();
            let cost = model * tokens as f64 + self.pace.between(step.rows, rows)?;
            // Prices have steps, and nobody knows them who has not tried.
            let unknown = rows <= TRIED && !self.pace.has_seen(rows);
            let seconds = base + if unknown { model * tokens as f64 } else { cost };
            let depth =
                Depth { tokens, cost, gain: hope * step.worth - cost, comes: seats.len() as f64 + hope };
            (rows <= MAX_ROWS).then_some(((step.answers as f64 + hope) / seconds, depth))
        };
        let most = seats.iter().map(|seat| seat.room).max().unwrap_or(0).min(DEEPEST);
        let none = (step.answers as f64 / base, Depth::default());
        let better = |best: (f64, Depth), next: (f64, Depth)| if next.0 > best.0 { next } else { best };
        let best = (1..=most).map_while(at).fold(none, better).1;
        let probe = self.turns % PROBE_EVERY == PROBE_EVERY - 1;
        let chosen = match (best.tokens, self.turns / PROBE_EVERY % 3) {
            // Nothing is hoped for: see `offer`.
            (0, _) => at(1.min(most)).map(|(_, one)| one).filter(|one| self.credit > RESERVE * one.cost),
            (_, 0) if probe => None,
            (tokens, 1) if probe => at((tokens + 1).min(most)).map(|(_, depth)| depth),
            (tokens, _) if probe => at(tokens - 1).map(|(_, depth)| depth),
            _ => Some(best),
        };
        Some(chosen.filter(|depth| self.credit >= step.spent + depth.cost).unwrap_or_default())
    }

    /// Whether it pays that the draft model first computes `behind` tokens of a sequence that has answered
    /// with `count` tokens and may have `left` more.
    pub fn pays_to_catch_up(&self, depth: &Depth, behind: usize, count: usize, left: usize) -> bool {
        let Some(cost) = self.model_step(behind) else { return false };
        // It goes on as others did; when it is longer than those, for as long as it was.
        let expected = (self.length - count as f64).max(count as f64).min(left as f64);
        let saved = depth.gain / depth.comes.max(1.0) * expected;
        saved >= cost && self.credit >= cost || self.credit > RESERVE * cost
    }

    /// Seconds of a step of the draft model.
    fn model_step(&self, rows: usize) -> Option<f64> {
        let one = self.pace.expect(1)?;
        Some(self.model.as_ref()?.expect(rows).unwrap_or(MODEL_STEP * one))
    }

    /// A step of the draft model took so long.
    pub fn note_model(&mut self, step: &mut Drafting, rows: usize, took: Duration) {
        let took = took.as_secs_f64();
        step.spent += took;
        if let Some(model) = &mut self.model {
            model.note(rows, took);
        }
    }

    /// The draft of a draft model goes into the step.
    pub fn enter(&self, step: &mut Drafting, tokens: Vec<u32>) -> Option<Draft> {
        let rows = step.rows + tokens.len();
        step.spent += self.pace.between(step.rows, rows).unwrap_or(0.0);
        step.rows = rows;
        (!tokens.is_empty()).then_some(Draft { tokens, source: MODEL })
    }

    /// An answer had so many tokens.
    pub fn note_length(&mut self, tokens: usize) {
        self.length += 0.2 * (tokens as f64 - self.length);
    }

    /// `right` tokens of a draft were right, each of which is `worth` seconds.
    pub fn tell(&mut self, own: &mut Record, draft: &Draft, right: usize, worth: f64) {
        for odds in [&mut self.odds[draft.source], &mut own[draft.source]] {
            odds.note(draft.tokens.len(), right);
        }
        self.credit += right as f64 * worth;
    }

    /// A step took so long.
    pub fn note(&mut self, rows: usize, took: Duration, drafting: Option<&Drafting>) {
        let took = took.as_secs_f64();
        self.pace.note(rows, took);
        self.turns += usize::from(drafting.is_some());
        self.credit += took * ALLOWANCE - drafting.map_or(0.0, |it| it.spent);
        // Gains of an hour ago pay for nothing. (A prompt's step does not tell what one of a token costs.)
        if let Some(one) = self.pace.expect(1).filter(|_| self.pace.has_seen_narrow()) {
            let most = if self.credit.is_infinite() { ADVANCE } else { SAVED };
            self.credit = self.credit.min(most * one);
        }
    }
}

impl Drafting {
    pub fn worth(&self) -> f64 {
        self.worth
    }

    /// A draft from the text goes into the step.
    pub fn take(&mut self, offer: Offer) -> Draft {
        self.rows += offer.draft.tokens.len();
        self.spent += offer.cost;
        offer.draft
    }
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
        let wide = |fits: &dyn Fn(usize) -> bool| self.wide.filter(|(wide, _)| fits(*wide));
        let below = wide(&|wide| wide <= rows).or_else(|| (1..=rows.min(MAX_ROWS)).rev().find_map(seen));
        let above = (rows..=MAX_ROWS).find_map(seen).or(wide(&|wide| wide > rows));
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

    /// Whether there was a step of few rows.
    fn has_seen_narrow(&self) -> bool {
        self.seconds.iter().any(|seconds| *seconds > 0.0)
    }

    /// Whether there was a step of so many rows.
    fn has_seen(&self, rows: usize) -> bool {
        self.seconds.get(rows).is_some_and(|seconds| *seconds > 0.0)
    }

    /// Seconds that one row more than `rows` costs.
    fn row_after(&self, rows: usize) -> Option<f64> {
        self.between(rows, rows + 1)
    }

    /// Seconds that a step of `more` rows costs more than one of `rows`.
    fn between(&self, rows: usize, more: usize) -> Option<f64> {
        // A noisy clock must not make a row free.
        let least = 0.01 * self.expect(1)? * more.saturating_sub(rows) as f64;
        Some((self.expect(more)? - self.expect(rows)?).max(least))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Dice(u64);

    impl Dice {
        /// Between 0 and 1.
        fn chance(&mut self) -> f64 {
            self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (self.0 >> 40) as f64 / (1 << 24) as f64
        }
    }

    /// Runs a machine where a step costs `fixed + row * rows` and guesses are right with probability `right`.
    /// Returns the time per token, relative to a machine that never drafts.
    fn simulate(fixed: f64, row: f64, right: f64, answers: usize) -> f64 {
        let mut dice = Dice(9);
        let mut drafter = Drafter::new(false);
        drafter.note(400, Duration::from_secs_f64(fixed + 400.0 * row), None);
        let (mut time, mut tokens) = (0.0, 0.0);
        let mut records = vec![Record::default(); answers];
        for _ in 0..3000 {
            let mut drafting = drafter.begin(answers, answers);
            let mut rows = answers;
            for own in &mut records {
                tokens += 1.0;
                let Some(step) = &mut drafting else { continue };
                let hope = drafter.right(0, own);
                // A text in which everything has been seen before.
                if let Some(offer) = drafter.offer(step, 0, hope, vec![7; LONGEST_GUESS]) {
                    let draft = step.take(offer);
                    rows += draft.tokens.len();
                    let accepted = draft.tokens.iter().take_while(|_| dice.chance() < right).count();
                    tokens += accepted as f64;
                    let worth = step.worth();
                    drafter.tell(own, &draft, accepted, worth);
                }
            }
            let took = (fixed + row * rows as f64) * (0.95 + 0.1 * dice.chance());
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

    /// The same with a draft model, a step of which costs `model`; answers have `length` tokens, after
    /// prompts of 400.
    fn simulate_model(cost: (f64, f64), model: f64, right: f64, answers: usize, length: usize) -> f64 {
        let (fixed, row) = cost;
        let seconds = |rows: usize| Duration::from_secs_f64(fixed + row * rows as f64);
        let mut dice = Dice(9);
        let mut drafter = Drafter::new(true);
        let (mut time, mut without) = (0.0, 0.0);
        for _ in 0..4000 / length {
            drafter.note(400, seconds(400), None);
            time += seconds(400).as_secs_f64();
            let mut records = vec![Record::default(); answers];
            let (mut ready, mut count) = (vec![false; answers], vec![0; answers]);
            while count.iter().sum::<usize>() < length * answers {
                let mut step = drafter.begin(answers, answers).unwrap();
                let seat = |own| Seat { right: drafter.right(MODEL, own), room: 20 };
                let seats: Vec<_> = records.iter().map(seat).collect();
                let mut depth = drafter.depth(&step, &seats).unwrap();
                for (ready, count) in ready.iter_mut().zip(&count) {
                    if depth.tokens > 0 && !*ready {
                        if !drafter.pays_to_catch_up(&depth, 400, *count, 1000) {
                            depth.tokens = 0;
                            continue;
                        }
                        let took = Duration::from_secs_f64(model * 10.0);
                        drafter.note_model(&mut step, 400, took);
                        (*ready, time) = (true, time + took.as_secs_f64());
                    }
                }
                for _ in 0..depth.tokens {
                    drafter.note_model(&mut step, answers, Duration::from_secs_f64(model));
                    time += model;
                }
                let worth = step.worth();
                for (own, count) in records.iter_mut().zip(&mut count) {
                    *count += 1;
                    if let Some(draft) = drafter.enter(&mut step, vec![7; depth.tokens]) {
                        let accepted = draft.tokens.iter().take_while(|_| dice.chance() < right).count();
                        *count += accepted;
                        drafter.tell(own, &draft, accepted, worth);
                    }
                }
                let took = seconds(step.rows).as_secs_f64() * (0.95 + 0.1 * dice.chance());
                time += took;
                drafter.note(step.rows, Duration::from_secs_f64(took), Some(&step));
            }
            drafter.note_length(length);
            let all = count.iter().sum::<usize>() as f64;
            without += seconds(400).as_secs_f64() + all / answers as f64 * seconds(answers).as_secs_f64();
        }
        time / without
    }

    #[test]
    fn a_draft_model_pays_or_costs_next_to_nothing() {
        // fixed, row, a step of the draft model, right, answers at once, tokens of an answer, time against no
        // drafts at most
        for (fixed, row, model, right, answers, length, most) in [
            (0.043, 0.002, 0.005, 0.7, 1, 200, 0.66),
            (0.043, 0.002, 0.005, 0.9, 1, 200, 0.45),
            (0.043, 0.002, 0.005, 0.3, 1, 200, 1.03),
            (0.043, 0.002, 0.005, 0.0, 1, 200, 1.03),
            (0.043, 0.002, 0.005, 0.7, 4, 200, 0.90),
            (0.043, 0.002, 0.040, 0.9, 1, 200, 1.03),
            // Not enough is left of it to compute its prompt again.
            (0.043, 0.002, 0.020, 0.7, 1, 8, 1.03),
            (0.043, 0.020, 0.005, 0.5, 8, 200, 1.03),
            (0.043, 0.020, 0.005, 0.0, 8, 200, 1.03),
        ] {
            let found = simulate_model((fixed, row), model, right, answers, length);
            assert!(found <= most, "{fixed} {row} {model} {right} {answers}: {found:.3}, not {most}");
        }
    }
}
