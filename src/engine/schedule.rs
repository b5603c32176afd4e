//! Which sequence gets how many rows of the next step: integers in, a plan out.
//!
//! There is one rule and there are no phases. Every branch has a backlog, the tokens that it knows but has
//! not computed, and a step spends its budget so that backlogs close. A prompt is a wide backlog, the next
//! token of an answer a backlog of one; what comes back after a preemption or behind a shared prefix is a
//! backlog as well.
//!
//! The order in which the budget is spent:
//! 1. backlogs of one, oldest first: answers go on however long the prompts beside them are;
//! 2. wider backlogs, oldest first, each at most three quarters of what is left as long as others stand
//!    behind it: nobody waits for the whole of a long prompt, and among equals the oldest still ends first;
//! 3. what the others left goes to the wide backlogs again, oldest first.
//!
//! Branches are always given in the order of arrival, so the oldest always moves and none starves. What a
//! branch computes never depends on the plan (see `model`), only when.
//!
//! A text of a bidirectional model is not cut: it is taken where all of it fits into what is left, and the
//! oldest in any case, if need be alone in a step that is larger than the limits.
//!
//! Before the rows come the pages. A prompt has the pages for all that it knows when it begins; an answer
//! needs one more every `PAGE` tokens. When there is none, the youngest answer is preempted: its pages go to
//! whoever is older, it goes back to the head of the queue, and when its turn comes its backlog is everything
//! that it knows, less what is still in the prefix tree.

use crate::error::{Error, Result};

/// What one step may hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StepLimits {
    /// Rows, over all sequences.
    pub rows: usize,
    /// Sequences, in a step and in work.
    pub sequences: usize,
    /// Rows of tasks that want the logits of every row (each is a whole vocabulary of floats).
    pub logits: usize,
}

impl Default for StepLimits {
    fn default() -> Self {
        StepLimits { rows: 512, sequences: 64, logits: 64 }
    }
}

impl StepLimits {
    /// # Errors
    /// `InvalidRequest` if a limit is 0: nothing would ever move.
    pub fn check(&self) -> Result<()> {
        for (name, limit) in [("rows", self.rows), ("sequences", self.sequences), ("logits", self.logits)] {
            if limit == 0 {
                return Err(Error::invalid(format!("the step limit `{name}` is 0; it must be at least 1")));
            }
        }
        Ok(())
    }
}

/// What the scheduler knows of a branch.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Backlog {
    /// Tokens known and not computed; 0 for one that waits for something else.
    pub tokens: usize,
    /// Whether the logits of each of these rows are wanted.
    pub every: bool,
    /// All of it in one step or nothing: bidirectional attention sees keys of all its rows.
    pub whole: bool,
    /// Pages that it lacks for them.
    pub short: usize,
    /// Pages that are there for others if it is preempted; `None` if it cannot be.
    pub frees: Option<usize>,
}

/// What is to be done in a step.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    /// The rows that each branch gets, in the order of the backlogs.
    pub rows: Vec<usize>,
    /// Branches to be preempted before, the youngest first.
    pub preempt: Vec<usize>,
}

/// Spends a step. `available` are the pages that can be leased.
pub fn plan(backlogs: &[Backlog], limits: &StepLimits, available: usize) -> Plan {
    let Allotted { stands, preempt } = allot(backlogs, available);
    let mut budget = Budget { left: *limits, rows: vec![0; backlogs.len()], empty: true };
    let (short, wide): (Vec<_>, Vec<_>) = (backlogs.iter().enumerate())
        .filter(|&(branch, backlog)| backlog.tokens > 0 && !stands[branch])
        // What is not cut keeps its place: the oldest must find the step empty.
        .partition(|(_, backlog)| backlog.tokens == 1 && !backlog.whole);
    for (branch, backlog) in short {
        budget.spend(branch, backlog, 1);
    }
    for (place, &(branch, backlog)) in wide.iter().enumerate() {
        let behind = if place + 1 < wide.len() { budget.left.rows / 4 } else { 0 };
        budget.spend(branch, backlog, budget.left.rows - behind);
    }
    for (branch, backlog) in wide {
        budget.spend(branch, backlog, budget.left.rows);
    }
    Plan { rows: budget.rows, preempt }
}

struct Allotted {
    /// Branches that get no rows for want of pages.
    stands: Vec<bool>,
    preempt: Vec<usize>,
}

/// Who gets pages: the oldest first, from what is available and then from the youngest that can be preempted.
fn allot(backlogs: &[Backlog], mut available: usize) -> Allotted {
    let mut stands = vec![false; backlogs.len()];
    let mut preempt = Vec::new();
    for (branch, backlog) in
        backlogs.iter().enumerate().filter(|(_, backlog)| backlog.tokens > 0 && backlog.short > 0)
    {
        while available < backlog.short && !stands[branch] {
            let youngest = (branch..backlogs.len())
                .rev()
                .find_map(|it| Some((it, backlogs[it].frees?)).filter(|_| !stands[it]));
            match youngest {
                Some((it, frees)) => {
                    available += frees;
                    stands[it] = true;
                    preempt.push(it);
                }
                // Those that cannot be preempted are younger, need nothing more, and will end.
                None => stands[branch] = true,
            }
        }
        if !stands[branch] {
            available -= backlog.short;
        }
    }
    Allotted { stands, preempt }
}

struct Budget {
    left: StepLimits,
    rows: Vec<usize>,
    /// Nothing was given yet.
    empty: bool,
}

impl Budget {
    /// Gives `branch` at most `most` rows more.
    fn spend(&mut self, branch: usize, backlog: &Backlog, most: usize) {
        let already = self.rows[branch];
        if already == 0 && self.left.sequences == 0 {
            return;
        }
        let mut rows = (backlog.tokens - already).min(most).min(self.left.rows);
        if backlog.every {
            rows = rows.min(self.left.logits);
        }
        if backlog.whole {
            let fits =
                backlog.tokens <= self.left.rows && !(backlog.every && backlog.tokens > self.left.logits);
            rows = if already == 0 && (fits || self.empty) { backlog.tokens } else { 0 };
        }
        if backlog.every {
            self.left.logits = self.left.logits.saturating_sub(rows);
        }
        if already == 0 && rows > 0 {
            self.left.sequences -= 1;
            self.empty = false;
        }
        self.left.rows = self.left.rows.saturating_sub(rows);
        self.rows[branch] += rows;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tokens`, `*` if every row is wanted, `w` if they are not to be cut, `-n` if n pages are missing, `+n`
    /// if preempting it frees n.
    fn read(text: &str) -> Backlog {
        let number = |sign| Some(text.split_once(sign)?.1.split(['-', '+']).next()?.parse().unwrap());
        Backlog {
            tokens: text.split(['*', 'w', '-', '+']).next().unwrap().parse().unwrap(),
            every: text.contains('*'),
            whole: text.contains('w'),
            short: number('-').unwrap_or(0),
            frees: number('+'),
        }
    }

    /// Plans step after step until all backlogs are closed: the rows of each step, steps divided by `/`.
    fn trace(limits: &StepLimits, backlogs: &str) -> String {
        let mut backlogs: Vec<Backlog> = backlogs.split_whitespace().map(read).collect();
        let mut steps = Vec::new();
        while backlogs.iter().any(|backlog| backlog.tokens > 0) && steps.len() < 50 {
            let rows = plan(&backlogs, limits, 0).rows;
            for (backlog, rows) in backlogs.iter_mut().zip(&rows) {
                backlog.tokens -= rows;
            }
            let shown: Vec<String> = rows.iter().map(usize::to_string).collect();
            steps.push(shown.join(" "));
        }
        steps.join(" / ")
    }

    /// `rows sequences logits | backlogs (a * wants the logits of every row) -> rows of each step`
    const TRACES: &[&str] = &[
        // Alone: whole, in chunks, the next token, nothing to do.
        "8 4 4 | 5 -> 5",
        "8 4 4 | 20 -> 8 / 8 / 4",
        "8 4 4 | 1 -> 1",
        "8 4 4 | 0 -> ",
        // Answers first, wherever they stand; the prompt takes the rest.
        "8 4 4 | 1 20 1 -> 1 6 1 / 0 8 0 / 0 6 0",
        "8 4 4 | 20 1 -> 7 1 / 8 0 / 5 0",
        // Nobody waits for the whole of a long prompt.
        "8 4 4 | 20 2 -> 6 2 / 8 0 / 6 0",
        "8 4 4 | 20 20 2 -> 6 2 0 / 6 2 0 / 6 2 0 / 2 5 1 / 0 7 1 / 0 2 0",
        // What the others leave goes back to the oldest.
        "16 4 4 | 30 1 2 -> 13 1 2 / 16 0 0 / 1 0 0",
        // More answers than rows or places: oldest first.
        "2 4 4 | 1 1 1 -> 1 1 0 / 0 0 1",
        "8 2 4 | 1 1 1 -> 1 1 0 / 0 0 1",
        "8 2 4 | 9 1 3 -> 7 1 0 / 2 0 3",
        // A branch that waits is passed over and takes no place.
        "8 1 4 | 0 0 5 -> 0 0 5",
        // Logits of every row have a budget of their own.
        "8 4 4 | 10* -> 4 / 4 / 2",
        "8 4 4 | 10* 10 -> 4 4 / 4 4 / 2 2",
        "8 4 2 | 1* 1* 1* 1 -> 1 1 0 1 / 0 0 1 0",
        "1 1 1 | 2* 2 -> 1 0 / 1 0 / 0 1 / 0 1",
        // Whole or not at all: those that fit, in their order; one that never fits when it is the oldest.
        "8 4 4 | 5w -> 5",
        "8 4 4 | 5w 4w 3w -> 5 0 3 / 0 4 0",
        "8 4 4 | 5w 20w 3w 9w -> 5 0 3 0 / 0 20 0 0 / 0 0 0 9",
        "8 4 4 | 20w 1w -> 20 0 / 0 1",
        "8 2 4 | 1w 1w 2w -> 1 1 0 / 0 0 2",
        "8 4 4 | 3*w 2*w 9*w 1w -> 3 0 0 1 / 0 2 0 0 / 0 0 9 0",
    ];

    #[test]
    fn golden_traces() {
        let mut failed = Vec::new();
        for line in TRACES {
            let (limits, rest) = line.split_once('|').unwrap();
            let (backlogs, expected) = rest.split_once("->").unwrap();
            let limit: Vec<usize> = limits.split_whitespace().map(|it| it.parse().unwrap()).collect();
            let limits = StepLimits { rows: limit[0], sequences: limit[1], logits: limit[2] };
            let found = trace(&limits, backlogs);
            if found != expected.trim() {
                failed.push(format!("{line}\n    found: {found}"));
            }
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }

    /// `available pages | backlogs -> rows | who is preempted`
    const PAGES: &[&str] = &[
        // Enough for all; for one; the oldest first.
        "2 | 1-1+4 1-1+4 -> 1 1 |",
        "1 | 1-1+4 1+4 1-1+4 -> 1 1 0 | 2",
        "0 | 1-1+4 1-1+4 1+4 -> 1 1 0 | 2",
        // Who is preempted may have been about to need a page, or to wait for a caller; the youngest goes
        // first.
        "0 | 1-1+1 1-1+4 0+4 -> 1 1 0 | 2",
        "0 | 1-1+1 1-1+1 1-1+1 -> 1 0 0 | 2 1",
        "0 | 1-2+1 1+1 1+1 1 -> 1 0 0 1 | 2 1",
        // Nothing that is shared comes free: more must go.
        "0 | 1-1+4 1+1 1+0 -> 1 0 0 | 2 1",
        // The youngest goes itself rather than take from older ones.
        "0 | 1+4 1-1+4 -> 1 0 | 1",
        // What cannot be preempted is waited for.
        "0 | 1-1 9* -> 0 9 |",
        "1 | 1-2 1-1 9* -> 0 1 9 |",
        "0 | 1-1+2 9* 1+0 -> 0 9 0 | 2 0",
        // A branch that waits needs none.
        "0 | 0-3+1 1+4 -> 0 1 |",
    ];

    #[test]
    fn golden_pages() {
        let limits = StepLimits { rows: 64, sequences: 8, logits: 64 };
        let show = |list: &[usize]| list.iter().map(usize::to_string).collect::<Vec<_>>().join(" ");
        let mut failed = Vec::new();
        for line in PAGES {
            let (available, rest) = line.split_once('|').unwrap();
            let (backlogs, expected) = rest.split_once("->").unwrap();
            let backlogs: Vec<Backlog> = backlogs.split_whitespace().map(read).collect();
            let plan = plan(&backlogs, &limits, available.trim().parse().unwrap());
            let found = format!("{} | {}", show(&plan.rows), show(&plan.preempt));
            if found.trim() != expected.trim() {
                failed.push(format!("{line}\n    found: {found}"));
            }
        }
        assert!(failed.is_empty(), "{}", failed.join("\n"));
    }

    #[test]
    fn every_plan_keeps_the_limits_and_moves_the_oldest() {
        let mut state = 7u64;
        let mut below = |bound: usize| {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 33) as usize % bound
        };
        for round in 0..3000 {
            let limits = StepLimits { rows: 1 + below(9), sequences: 1 + below(4), logits: 1 + below(4) };
            let backlogs: Vec<Backlog> = (0..below(7))
                .map(|_| Backlog { tokens: below(12), every: below(3) == 0, ..Backlog::default() })
                .collect();
            let rows = plan(&backlogs, &limits, 0).rows;
            let every: usize =
                backlogs.iter().zip(&rows).filter(|(backlog, _)| backlog.every).map(|(_, rows)| rows).sum();
            let wanted: usize =
                backlogs.iter().filter(|backlog| !backlog.every).map(|backlog| backlog.tokens).sum();
            assert!(rows.iter().sum::<usize>() <= limits.rows, "{round}");
            assert!(rows.iter().filter(|&&rows| rows > 0).count() <= limits.sequences, "{round}");
            assert!(every <= limits.logits, "{round}");
            assert!(backlogs.iter().zip(&rows).all(|(backlog, &rows)| rows <= backlog.tokens), "{round}");
            let moved = rows.iter().sum::<usize>();
            assert!(
                moved > 0 || wanted == 0 && backlogs.iter().all(|backlog| backlog.tokens == 0),
                "{round}: stuck"
            );
        }
    }

    #[test]
    fn a_limit_of_zero_is_refused() {
        assert!(StepLimits::default().check().is_ok());
        assert!(StepLimits { rows: 0, ..Default::default() }.check().is_err());
    }
}
