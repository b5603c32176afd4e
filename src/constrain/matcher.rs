//! A compiled grammar, and one answer that is held against it.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use llguidance::TokenParser;
use llguidance::api::StopReason;
use llguidance::earley::ParserError;

use super::compile::{Until, guard, tidy};
use super::mask::TokenMask;
use super::nearest;
use super::vocabulary::Vocabulary;
use crate::error::{Error, Result};

/// A compiled constraint. Immutable; a clone shares it, and all its answers share the automaton that grows
/// while they are written, so a second answer is masked faster than the first. Where it is full, an answer
/// goes on with one of its own: what others have written does not decide what this one may hold.
#[derive(Clone)]
pub struct Grammar(Arc<Inner>);

struct Inner {
    /// At the beginning; cloned for each answer.
    start: TokenParser,
    /// The same with an automaton that no answer has grown.
    fresh: TokenParser,
    vocabulary: Vocabulary,
    can_rollback: bool,
    /// Texts that the constraint spells out, the longest first.
    literals: Vec<Vec<u8>>,
    /// The shortest answer that was found; `None` inside if there is no end in view.
    shortest: OnceLock<Option<Vec<u32>>>,
    /// The shared automaton is full, or a panic left it unusable.
    worn: AtomicBool,
}

impl Grammar {
    /// Tries the first step, so that a grammar that nothing satisfies is an error now.
    pub(super) fn new(start: TokenParser, vocabulary: Vocabulary, literals: Vec<Vec<u8>>) -> Result<Self> {
        let fresh = start.deep_clone();
        let mut trial = start.clone();
        let mut can_rollback = true;
        if !trial.stopped() {
            let mask = trial.compute_mask().map_err(|error| Error::constraint(tidy(&error)))?;
            let first = mask.iter().find(|&id| !vocabulary.bytes(id).is_empty());
            let takes_back = |id| consume(&mut trial, id).is_ok() && trial.rollback(1).is_ok();
            can_rollback = first.is_none_or(takes_back);
        }
        let (shortest, worn) = (OnceLock::new(), AtomicBool::new(false));
        Ok(Grammar(Arc::new(Inner { start, fresh, vocabulary, can_rollback, literals, shortest, worn })))
    }

    /// Whether [`Matcher::rollback`] works: with all but Lark grammars with `stop=` or `max_tokens=`.
    pub fn can_rollback(&self) -> bool {
        self.0.can_rollback
    }

    /// Begins an answer.
    ///
    /// # Errors
    /// Constraint on a defect of the library.
    pub fn matcher(&self) -> Result<Matcher> {
        let inner = guard("beginning an answer", || Ok(self.0.start.clone()))?;
        let (taken, ended, is_alone, until) = (Vec::new(), false, false, None);
        Ok(Matcher { inner, grammar: self.clone(), taken, ended, is_alone, until })
    }

    /// Searches for [`Grammar::shortest`] where an answer asks for it; whether it was done before the end of
    /// the time.
    pub(super) fn search_shortest(&self, until: &Until) -> bool {
        if !self.can_rollback() {
            return true;
        }
        let search = |matcher: Matcher| Matcher { until: Some(until.clone()), ..matcher }.closing(usize::MAX);
        match self.matcher().and_then(search) {
            _ if until.is_over() => return false,
            Ok(found) => drop(self.0.shortest.set(found)),
            // Told where an answer is asked for.
            Err(_) => {}
        }
        true
    }

    /// The shortest answer that was found; `None` if no end is in view. Searched for once.
    ///
    /// # Errors
    /// As [`Matcher::closing`].
    pub fn shortest(&self) -> Result<Option<&[u32]>> {
        if let Some(known) = self.0.shortest.get() {
            return Ok(known.as_deref());
        }
        let found = self.matcher()?.closing(usize::MAX)?;
        Ok(self.0.shortest.get_or_init(|| found).as_deref())
    }

    pub fn vocabulary(&self) -> &Vocabulary {
        &self.0.vocabulary
    }

    pub(super) fn literals(&self) -> &[Vec<u8>] {
        &self.0.literals
    }

    pub(super) fn is_worn(&self) -> bool {
        self.0.worn.load(Ordering::Relaxed)
    }
}

/// The same compiled grammar. Two that were compiled apart are not equal, whatever their constraints.
impl PartialEq for Grammar {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

impl fmt::Debug for Grammar {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Grammar").field("vocabulary", &self.0.vocabulary).finish_non_exhaustive()
    }
}

/// Goes on with a token.
fn consume(parser: &mut TokenParser, id: u32) -> Result<(), String> {
    parser.consume_token(id).map_err(|error| tidy(&error))?;
    parser.check_stop().map_err(|error| tidy(&error)).map(drop)
}

/// One answer, held against a grammar. A clone goes its own way from here on.
///
/// An error is final, and only this answer's, except that [`Matcher::accept`] of a token that the grammar
/// does not take leaves the matcher as it was.
#[derive(Clone)]
pub struct Matcher {
    inner: TokenParser,
    grammar: Grammar,
    /// Tokens accepted, the end not included.
    taken: Vec<u32>,
    /// A token that ends the answer was accepted.
    ended: bool,
    /// It has an automaton of its own.
    is_alone: bool,
    /// After which nothing more is looked for.
    until: Option<Until>,
}

impl Matcher {
    pub fn grammar(&self) -> &Grammar {
        &self.grammar
    }

    /// Tokens accepted, the end included.
    pub fn len(&self) -> usize {
        self.taken.len() + usize::from(self.ended)
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Which tokens may come next. Where tokens are [forced](Matcher::forced), only the first of them; when
    /// the answer [is done](Matcher::is_done), only those that end it.
    ///
    /// # Errors
    /// Constraint if the grammar became too complex to follow, or leaves no token at all.
    pub fn mask(&mut self, mask: &mut TokenMask) -> Result<()> {
        let vocabulary = self.grammar.0.vocabulary.clone();
        if self.is_done() {
            mask.set_only(vocabulary.eos(), vocabulary.size());
            return Ok(());
        }
        let bits = self.call("finding the tokens that may come next", |inner| {
            inner.compute_mask().map_err(|error| tidy(&error))
        })?;
        mask.load(bits.as_slice(), vocabulary.size());
        Ok(())
    }

    /// Goes on with a token.
    ///
    /// # Errors
    /// Constraint if the grammar does not take it here; the matcher stays as it was. Constraint if the
    /// grammar became too complex to follow.
    pub fn accept(&mut self, id: u32) -> Result<()> {
        let is_eos = self.grammar.0.vocabulary.is_eos(id);
        if self.ended || (self.is_done() && !is_eos) {
            return Err(Error::constraint(format!("token {id} comes after the end of the answer")));
        }
        let taken = if is_eos {
            self.ended = self.may_stop()?;
            self.ended
        } else if self.grammar.0.vocabulary.bytes(id).is_empty() {
            false
        } else {
            self.call("going on with a token", |inner| {
                let takes = inner.validate_token(id).map_err(|error| tidy(&error))?;
                if takes { consume(inner, id).map(|()| true) } else { Ok(false) }
            })?
        };
        if !taken {
            return Err(Error::constraint(format!("the grammar does not take token {id} here")));
        }
        if !is_eos {
            self.taken.push(id);
        }
        Ok(())
    }

    /// The tokens that must follow; empty where there is a choice, also one of how to write the same text.
    /// They are written as the tokenizer writes text; the last characters are left out if a choice that
    /// follows could be written together with them.
    ///
    /// A failure shows in the next [`Matcher::mask`].
    pub fn forced(&mut self) -> Vec<u32> {
        if self.is_done() {
            return Vec::new();
        }
        self.call("finding forced tokens", |inner| Ok(inner.compute_ff_tokens())).unwrap_or_default()
    }

    /// Whether nothing can follow but the end, or it has come.
    pub fn is_done(&self) -> bool {
        self.ended || matches!(self.inner.stop_reason(), StopReason::NoExtension | StopReason::EndOfSentence)
    }

    /// Whether the answer may end here.
    ///
    /// # Errors
    /// Constraint if the grammar became too complex to follow.
    pub fn may_stop(&mut self) -> Result<bool> {
        if self.is_done() {
            return Ok(true);
        }
        self.call("looking for an end", |inner| Ok(inner.is_accepting()))
    }

    /// Takes back the last `count` tokens.
    ///
    /// # Errors
    /// InvalidRequest if there are fewer; Constraint for Lark grammars with `stop=` or `max_tokens=`, which
    /// cannot be taken back (do not draft with them: see [`Grammar::can_rollback`]).
    pub fn rollback(&mut self, count: usize) -> Result<()> {
        if count > self.len() {
            return Err(Error::invalid(format!("{count} tokens cannot be taken back of {}", self.len())));
        }
        if count > 0 {
            let inside = count - usize::from(self.ended);
            self.call("taking tokens back", |inner| inner.rollback(inside).map_err(|error| tidy(&error)))?;
            self.taken.truncate(self.taken.len() - inside);
            self.ended = false;
        }
        Ok(())
    }

    /// How many of the drafted tokens the grammar takes one after the other. Text may be written with other
    /// tokens than [`Matcher::forced`] gives. The matcher stays as it was.
    ///
    /// # Errors
    /// Constraint if the grammar became too complex to follow.
    pub fn validate(&mut self, draft: &[u32]) -> Result<usize> {
        if self.is_done() {
            let ends = draft.first().is_some_and(|&id| self.grammar.0.vocabulary.is_eos(id));
            return Ok(usize::from(ends && !self.ended));
        }
        // Unknown ids would end this answer with an error.
        let vocabulary = &self.grammar.0.vocabulary;
        let known = |&id: &u32| vocabulary.is_eos(id) || !vocabulary.bytes(id).is_empty();
        let known = draft.iter().position(|id| !known(id)).unwrap_or(draft.len());
        let draft = draft.get(..known).unwrap_or_default();
        self.call("checking a draft", |inner| inner.validate_tokens_raw(draft).map_err(|error| tidy(&error)))
    }

    /// Bytes that must follow; they include what [`Matcher::forced`] leaves out.
    pub(super) fn forced_bytes(&mut self) -> Result<Vec<u8>> {
        if self.is_done() {
            return Ok(Vec::new());
        }
        self.call("finding forced text", |inner| Ok(inner.force_bytes()))
    }

    /// The nearest bytes after which what is begun may end, bytes in this order: see [`nearest`]. `None` if
    /// none is near.
    pub(super) fn nearest(&mut self, order: &[u8]) -> Result<Option<Vec<u8>>> {
        let env = self.grammar.0.vocabulary.env().clone();
        let until = self.until.clone();
        let goes_on = || !until.as_ref().is_some_and(Until::is_over);
        self.call("looking for an end", |inner| {
            Ok(nearest::nearest(&mut inner.parser, &env, order, &goes_on))
        })
    }

    /// One call of the library. Should it fail for what the automaton has become, once more with a fresh one.
    fn call<T>(&mut self, doing: &str, work: impl Fn(&mut TokenParser) -> Result<T, String>) -> Result<T> {
        let result = self.tried(doing, &work);
        if result.is_ok() || self.is_alone || self.has_too_many_items() {
            return result;
        }
        // Too many states, or a broken lock: other answers of this grammar would meet the same.
        self.grammar.0.worn.store(true, Ordering::Relaxed);
        let Ok(fresh) = guard(doing, || self.again()) else { return result };
        (self.inner, self.is_alone) = (fresh, true);
        self.tried(doing, &work)
    }

    fn tried<T>(&mut self, doing: &str, work: &impl Fn(&mut TokenParser) -> Result<T, String>) -> Result<T> {
        if self.until.as_ref().is_some_and(Until::is_over) {
            return Err(Error::constraint(format!("{doing}: it takes too long")));
        }
        let env = self.grammar.0.vocabulary.env();
        guard(doing, || {
            nearest::refuel(&mut self.inner.parser, env);
            let found = work(&mut self.inner);
            let failed = self.inner.parser.get_error().map(|error| error.message());
            match (found, failed) {
                (Ok(found), None) => Ok(found),
                (Err(reason), _) | (_, Some(reason)) => Err(Error::constraint(format!(
                    "{doing}: {reason}; make the constraint simpler: fewer alternatives that begin alike, \
                     shorter repetitions"
                ))),
            }
        })
    }

    /// Whether the parser has failed rather than the automaton: it would again, whatever the automaton.
    fn has_too_many_items(&self) -> bool {
        let failed = guard("looking for an error", || {
            Ok(matches!(self.inner.parser.get_error(), Some(ParserError::ParserError(_))))
        });
        failed.unwrap_or(false)
    }

    /// This answer so far, with an automaton of its own.
    fn again(&self) -> Result<TokenParser> {
        let mut fresh = self.grammar.0.fresh.deep_clone();
        let env = self.grammar.0.vocabulary.env();
        for &id in &self.taken {
            nearest::refuel(&mut fresh.parser, env);
            consume(&mut fresh, id).map_err(Error::constraint)?;
        }
        Ok(fresh)
    }
}

impl fmt::Debug for Matcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Matcher")
            .field("len", &self.len())
            .field("ended", &self.ended)
            .finish_non_exhaustive()
    }
}
