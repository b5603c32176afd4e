//! The way from an unfinished answer to an end.
//!
//! The library cannot tell how far the end is: its state is a set of parser items over a lexer of
//! derivatives, and neither knows a distance. Computing one would mean the shortest word of a context-free
//! grammar from a given set of items, over lexemes whose rest has to be measured as well; none of it is
//! reachable from outside. So the end is searched for, byte by byte, with the matcher itself as judge:
//!
//! - bytes that are forced are taken;
//! - where there is a choice, bytes that close things are tried first: brackets, then quotes, then a comma or
//!   a line break, then what continues;
//! - where the grammar spells texts out (headers, tags, markers), these are tried before any byte, the
//!   longest first, with up to two line breaks before them: in a free text nothing else leads to its end;
//! - among equals, those taken least so far come first, so a walk cannot circle in a loop of the grammar
//!   forever;
//! - a walk ends where the answer may stop. Several walks are made, each with another order; the shortest
//!   wins.
//!
//! What it finds is an end, not always the nearest: an upper bound, and that is enough to keep a promise. The
//! search costs some 200 us for an object of six fields, so [`Reserve`] keeps what it found as long as it
//! leads to an end, which is told in a few microseconds. A walk has a longest length, and a grammar in which
//! none finds an end (a repetition of a million, an object that must contain itself) is told as having none
//! in view.

use super::mask::TokenMask;
use super::matcher::{Grammar, Matcher};
use crate::error::{Error, Result};

/// Bytes in the order in which they are tried; those that are not named come after, by value.
const ORDERS: [&[u8]; 3] = [b"\"}])>\n,0123456789 :", b"}])>\"\n,0123456789 :", b"])}>;.'\"\n0123456789 :,"];
/// Bytes that open what must be closed again.
const OPENING: &[u8] = b"{[";
/// What may stand before a literal that ends a free text.
const LEADS: [&[u8]; 3] = [b"", b"\n", b"\n\n"];
/// Bytes that a walk may have, for each token that the caller has left.
const BYTES_PER_TOKEN: usize = 8;
/// The longest walk. Beyond it the answer is free to be cut off.
const LONGEST: usize = 4096;

impl Matcher {
    /// Tokens after which the answer may stop, at most `most`; empty if it may stop here. `None` if no such
    /// end was found, which does not say that there is none. See the [module](super) for what it is for.
    ///
    /// # Errors
    /// Constraint if the grammar became too complex to follow.
    pub fn closing(&mut self, most: usize) -> Result<Option<Vec<u32>>> {
        if self.may_stop()? {
            return Ok(Some(Vec::new()));
        }
        let room = most.saturating_mul(BYTES_PER_TOKEN).min(LONGEST);
        let found = match self.closing_by_literals(room)? {
            Some(found) => Some(found),
            None => self.closing_by_bytes(room)?,
        };
        let Some(bytes) = found else { return Ok(None) };
        let tokens = self.written(&bytes)?;
        Ok(Some(tokens).filter(|tokens| tokens.len() <= most))
    }

    fn closing_by_literals(&mut self, room: usize) -> Result<Option<Vec<u8>>> {
        match self.grammar().literals().is_empty() {
            true => Ok(None),
            false => Walk::new(self, ORDERS[0], false).with_literals().run(room),
        }
    }

    fn closing_by_bytes(&mut self, room: usize) -> Result<Option<Vec<u8>>> {
        let mut best: Option<Vec<u8>> = None;
        for order in ORDERS {
            let room = best.as_ref().map_or(room, |best| best.len().saturating_sub(1));
            best = Walk::new(self, order, false).run(room)?.or(best);
        }
        if best.is_some() {
            return Ok(best);
        }
        match Walk::new(self, ORDERS[0], true).run(room)? {
            Some(found) => Ok(Some(found)),
            // The nearest end of a lexeme may lead round a loop for ever: of `(/[0-9]/ ",")+ "CD"` another
            // digit is always nearer than the two letters.
            None => Walk { is_far: true, ..Walk::new(self, ORDERS[0], true) }.run(room),
        }
    }

    /// Whether these tokens lead to a place where the answer may stop.
    fn ends_with(&mut self, tokens: &[u32]) -> Result<bool> {
        if let Some(&end) = self.grammar().vocabulary().eos().first() {
            let draft = [tokens, &[end]].concat();
            return Ok(self.validate(&draft)? == draft.len());
        }
        let mut ahead = self.clone();
        for &id in tokens {
            if ahead.validate(&[id])? == 0 {
                return Ok(false);
            }
            ahead.accept(id)?;
        }
        ahead.may_stop()
    }

    /// The bytes as the tokenizer writes them; token by byte if the grammar takes only that.
    fn written(&mut self, bytes: &[u8]) -> Result<Vec<u32>> {
        let vocabulary = self.grammar().vocabulary().clone();
        let tokens = vocabulary.env().tokenize_bytes(bytes);
        if self.validate(&tokens)? == tokens.len() {
            return Ok(tokens);
        }
        Ok(bytes.iter().filter_map(|&byte| vocabulary.byte_token(byte)).collect())
    }
}

/// What an answer keeps back of its budget, so that it can close.
///
/// The rule is that after each token the closing fits into what is left. It holds at the beginning, or there
/// is no `Reserve`. A token (or a chunk of forced ones) that would break it is taken back, and the closing
/// from before it is appended instead: it fitted then, so it fits now.
#[derive(Clone, Debug)]
pub struct Reserve {
    closing: Vec<u32>,
}

impl Reserve {
    /// For an answer of at most `budget` tokens, from its beginning. `None` if the grammar cannot take tokens
    /// back, or has no end in view: then the answer runs unreserved.
    ///
    /// # Errors
    /// Constraint if the shortest answer that was found does not fit; else as [`Matcher::closing`].
    pub fn new(grammar: &Grammar, budget: usize) -> Result<Option<Self>> {
        if !grammar.can_rollback() {
            return Ok(None);
        }
        match grammar.shortest()? {
            Some(shortest) if shortest.len() > budget => Err(Error::constraint(format!(
                "the shortest answer that was found to fit the form has {} tokens, and there is room for {budget}; \
                 raise max_tokens, or shorten the prompt",
                shortest.len()
            ))),
            found => Ok(found.map(|shortest| Reserve { closing: shortest.to_vec() })),
        }
    }

    /// The tokens that end the answer from where it is.
    pub fn closing(&self) -> &[u32] {
        &self.closing
    }

    /// After `matcher` has accepted `ids` and may have `left` more: whether the answer can still close. If
    /// not, they are taken back, and [`Reserve::closing`] is what must follow instead, to the end.
    ///
    /// # Errors
    /// As [`Matcher::closing`] and [`Matcher::rollback`].
    pub fn follow(&mut self, matcher: &mut Matcher, ids: &[u32], left: usize) -> Result<bool> {
        if let Some(rest) = self.closing.strip_prefix(ids) {
            self.closing = rest.to_vec();
            return Ok(true);
        }
        if self.closing.len() <= left && matcher.ends_with(&self.closing)? {
            return Ok(true);
        }
        match matcher.closing(left)? {
            Some(closing) => {
                self.closing = closing;
                Ok(true)
            }
            None => {
                matcher.rollback(ids.len())?;
                Ok(false)
            }
        }
    }
}

/// The text with its last letter or digit changed.
fn misspelt(text: &[u8]) -> Vec<u8> {
    let mut text = text.to_vec();
    let at = text.iter().rposition(u8::is_ascii_alphanumeric).unwrap_or(text.len().saturating_sub(1));
    if let Some(byte) = text.get_mut(at) {
        *byte = if *byte == b'q' { b'x' } else { b'q' };
    }
    text
}

/// One walk to an end.
struct Walk {
    matcher: Matcher,
    order: Vec<u8>,
    /// How often each byte was chosen; `None` if that does not matter.
    taken: Option<[usize; 256]>,
    /// The grammar's literals, and how often each was chosen; none if they are not tried.
    literals: Vec<(usize, Vec<u8>)>,
    bytes: Vec<u8>,
    /// No end of what is begun was near, or none is looked for.
    is_far: bool,
}

impl Walk {
    fn new(from: &Matcher, first: &[u8], least_taken: bool) -> Self {
        let rest = (0..=u8::MAX).filter(|byte| !first.contains(byte));
        let vocabulary = from.grammar().vocabulary();
        let order =
            first.iter().copied().chain(rest).filter(|&byte| vocabulary.byte_token(byte).is_some()).collect();
        let (matcher, taken) = (from.clone(), least_taken.then_some([0; 256]));
        Walk { matcher, order, taken, literals: Vec::new(), bytes: Vec::new(), is_far: false }
    }

    fn with_literals(mut self) -> Self {
        self.literals = self.matcher.grammar().literals().iter().map(|text| (0, text.clone())).collect();
        self
    }

    /// The bytes of the walk, if it ends within `room` bytes.
    fn run(mut self, room: usize) -> Result<Option<Vec<u8>>> {
        while !self.matcher.may_stop()? {
            // What is forced without an end is too much to follow, and leads to none.
            let Ok(forced) = self.matcher.forced_bytes() else { return Ok(None) };
            let step = match forced.is_empty() {
                false => forced,
                true => match self.choose_literal()? {
                    Some(literal) => literal,
                    None => self.choose()?,
                },
            };
            if step.is_empty() || self.bytes.len() + step.len() > room {
                return Ok(None);
            }
            for byte in step {
                let Some(token) = self.matcher.grammar().vocabulary().byte_token(byte) else {
                    return Ok(None);
                };
                self.matcher.accept(token)?;
                self.bytes.push(byte);
            }
        }
        Ok(Some(self.bytes))
    }

    /// The literal that the grammar takes whole, of those chosen least so far the longest; with its lead.
    /// Where it would take other letters as well, as in a string, the literal is only content and leads
    /// nowhere.
    fn choose_literal(&mut self) -> Result<Option<Vec<u8>>> {
        self.literals.sort_by_key(|(taken, _)| *taken);
        for index in 0..self.literals.len() {
            for lead in LEADS {
                let text = [lead, &self.literals[index].1].concat();
                if self.takes(&text)? && !self.takes(&misspelt(&text))? {
                    self.literals[index].0 += 1;
                    return Ok(Some(text));
                }
            }
        }
        Ok(None)
    }

    fn takes(&mut self, text: &[u8]) -> Result<bool> {
        let vocabulary = self.matcher.grammar().vocabulary();
        let tokens: Option<Vec<u32>> = text.iter().map(|&byte| vocabulary.byte_token(byte)).collect();
        match tokens {
            Some(tokens) => Ok(self.matcher.validate(&tokens)? == tokens.len()),
            None => Ok(false),
        }
    }

    /// The nearest end of what is begun; where none is near, the first byte in the order that the grammar
    /// takes.
    fn choose(&mut self) -> Result<Vec<u8>> {
        if let Some(taken) = &self.taken {
            self.order.sort_by_key(|&byte| taken[usize::from(byte)]);
        }
        let near = if self.is_far { None } else { self.nearest()? };
        // Where no end is near, none will be from the next byte on, and looking costs as much again.
        self.is_far = near.is_none();
        let chosen = match near {
            Some(bytes) => bytes,
            None => self.choose_byte()?.into_iter().collect(),
        };
        if let Some(taken) = &mut self.taken {
            chosen.iter().for_each(|&byte| taken[usize::from(byte)] += 1);
        }
        Ok(chosen)
    }

    /// What opens something ends soon, and leads away from the end: it comes only where nothing else does.
    fn nearest(&mut self) -> Result<Option<Vec<u8>>> {
        let others: Vec<u8> = self.order.iter().copied().filter(|byte| !OPENING.contains(byte)).collect();
        match self.matcher.nearest(&others)? {
            Some(bytes) => Ok(Some(bytes)),
            None => self.matcher.nearest(&self.order),
        }
    }

    fn choose_byte(&mut self) -> Result<Option<u8>> {
        for index in 0..self.order.len() {
            let byte = self.order[index];
            let token = self.matcher.grammar().vocabulary().byte_token(byte);
            let Some(token) = token else { continue };
            if self.matcher.validate(&[token])? == 1 {
                return Ok(Some(byte));
            }
        }
        // A sound automaton has no dead end, so this one is full: asking for a mask notes that in the
        // grammar.
        self.matcher.mask(&mut TokenMask::default()).ok();
        Ok(None)
    }
}
