//! A grammar at work on one answer.
//!
//! Before each draw it says which tokens may come ([`Guide::mask`]). After it ([`Guide::follow`]) it says
//! what is appended: the token, and whatever must follow it anyway, which is never sampled. If the token
//! would leave no room to end within the budget, what is appended is the end instead. So an answer keeps to
//! its form to the last character, however small its budget.

use std::time::{Duration, Instant};

use crate::constrain::{Grammar, Mask, Matcher, Reserve, TokenMask};
use crate::error::Result;

/// One answer, held to a grammar.
pub struct Guide {
    grammar: Grammar,
    matcher: Matcher,
    /// What is kept back of the budget. None: the grammar cannot take tokens back, or has no end in view.
    reserve: Option<Reserve>,
    mask: TokenMask,
    /// Tokens with which every answer begins.
    opening: Vec<u32>,
    /// The budget has ended the answer.
    closed: bool,
    /// Time spent, and tokens that were never sampled.
    took: Duration,
    decided: u64,
}

/// A grammar ahead of its answer: what it says if tokens come that nobody has drawn yet. The answer's own
/// guide hears nothing of it, nor of its errors.
pub struct Foresight {
    matcher: Matcher,
    mask: TokenMask,
}

impl Foresight {
    /// Which tokens may come next.
    ///
    /// # Errors
    /// As [`Guide::mask`].
    pub fn mask(&mut self) -> Result<Mask<'_>> {
        self.matcher.mask(&mut self.mask)?;
        Ok(Mask(&self.mask))
    }

    /// Goes on with `id`; returns it, with the tokens that must follow it.
    ///
    /// # Errors
    /// As [`Guide::follow`].
    pub fn follow(&mut self, id: u32) -> Result<Vec<u32>> {
        self.matcher.accept(id)?;
        let forced = self.matcher.forced();
        for &id in &forced {
            self.matcher.accept(id)?;
        }
        Ok([vec![id], forced].concat())
    }
}

impl Guide {
    /// For an answer of at most `budget` tokens. Compiles nothing; the first one of a grammar looks for its
    /// shortest answer, mostly in less than a millisecond.
    ///
    /// # Errors
    /// Constraint if no answer of this form fits into the budget.
    pub fn new(grammar: &Grammar, budget: usize) -> Result<Self> {
        let mut guide = Guide {
            grammar: grammar.clone(),
            matcher: grammar.matcher()?,
            reserve: Reserve::new(grammar, budget)?,
            mask: TokenMask::default(),
            opening: Vec::new(),
            closed: false,
            took: Duration::ZERO,
            decided: 0,
        };
        guide.opening = guide.forced(budget)?;
        guide.decided = guide.opening.len() as u64;
        Ok(guide)
    }

    /// Tokens with which every answer begins; given once.
    pub fn take_opening(&mut self) -> Vec<u32> {
        std::mem::take(&mut self.opening)
    }

    /// Which tokens may come next.
    ///
    /// # Errors
    /// Constraint if the grammar became too complex to follow.
    pub fn mask(&mut self) -> Result<Mask<'_>> {
        let begin = Instant::now();
        self.matcher.mask(&mut self.mask)?;
        self.took += begin.elapsed();
        Ok(Mask(&self.mask))
    }

    /// The mask that [`Guide::mask`] gave last.
    pub fn last_mask(&self) -> Mask<'_> {
        Mask(&self.mask)
    }

    /// What follows from the draw of `id`, which does not end the answer, when `left` more tokens are left
    /// after it: usually `id` and the tokens forced by it. Never more than `left + 1`.
    pub fn follow(&mut self, id: u32, left: usize) -> Result<Vec<u32>> {
        let begin = Instant::now();
        self.matcher.accept(id)?;
        let ids = match self.fits(&[id], left)? {
            true => [vec![id], self.forced(left)?].concat(),
            false => self.close()?,
        };
        self.took += begin.elapsed();
        self.decided += ids.len() as u64 - u64::from(!ids.is_empty());
        Ok(ids)
    }

    /// The time that was spent here, and the tokens that were never sampled.
    pub fn account(&self) -> (Duration, u64) {
        (self.took, self.decided)
    }

    /// Whether nothing can follow.
    pub fn is_done(&self) -> bool {
        self.matcher.is_done()
    }

    /// Whether the budget has ended the answer.
    pub fn is_closed(&self) -> bool {
        self.closed
    }

    /// A copy that goes ahead.
    pub fn foresee(&self) -> Foresight {
        Foresight { matcher: self.matcher.clone(), mask: TokenMask::default() }
    }

    /// How many of these tokens may follow.
    pub fn allowed(&mut self, draft: &[u32]) -> usize {
        // An error shows in the next mask.
        self.matcher.validate(draft).unwrap_or(0)
    }

    pub fn same_as(&self, other: &Guide) -> bool {
        self.grammar == other.grammar
    }

    /// Accepts what must follow now, or the end in its place if that is all there is room for.
    fn forced(&mut self, left: usize) -> Result<Vec<u32>> {
        let mut ids = self.matcher.forced();
        if self.reserve.is_none() {
            ids.truncate(left);
        }
        let Some(rest) = left.checked_sub(ids.len()) else { return self.close() };
        for &id in &ids {
            self.matcher.accept(id)?;
        }
        if ids.is_empty() || self.fits(&ids, rest)? { Ok(ids) } else { self.close() }
    }

    /// Whether there is an end within `left` tokens after `ids`, which were accepted. If not, they are taken
    /// back.
    fn fits(&mut self, ids: &[u32], left: usize) -> Result<bool> {
        match &mut self.reserve {
            Some(reserve) => reserve.follow(&mut self.matcher, ids, left),
            None => Ok(true),
        }
    }

    /// The end that was kept in reserve.
    fn close(&mut self) -> Result<Vec<u32>> {
        let closing = self.reserve.as_ref().map_or(Vec::new(), |reserve| reserve.closing().to_vec());
        for &id in &closing {
            self.matcher.accept(id)?;
        }
        self.closed = true;
        Ok(closing)
    }
}

impl std::fmt::Debug for Guide {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guide").field("matcher", &self.matcher).field("closed", &self.closed).finish()
    }
}
