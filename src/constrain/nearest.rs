//! The shortest way to the end of what the lexer has begun: a string, a number, a text with its delimiter.
//!
//! The lexer is an automaton whose states can be told apart, so a search in breadth over them is exact, and
//! quick where the end is near, however long the lexeme may become: `\S+@\S+` in up to a million characters
//! ends after three. Parser states cannot be told apart from outside; a walk over lexemes is the business of
//! [`super::closing`].

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use llguidance::derivre::StateID;
use llguidance::earley::{BiasComputer, Parser, ParserRecognizer};
use llguidance::toktrie::{Recognizer, SimpleVob, TokEnv, TokTrie};

/// States that one search looks at: those of texts and of the delimiter after them are some hundreds.
const MOST: usize = 1_000;
/// What a search has instead of the beginning of a token: not empty, or the library would remember the result
/// as the mask of this place.
const NO_MASK: &[u8] = &[0];

/// Bytes after which a lexeme may end, the nearest that there are; among equals those that come first in
/// `order`. Where one may end already, the byte with which the next one begins. `None` if no end is near, or
/// `goes_on` says that time is up.
pub(super) fn nearest(
    parser: &mut Parser,
    env: &TokEnv,
    order: &[u8],
    goes_on: &dyn Fn() -> bool,
) -> Option<Vec<u8>> {
    let mut nodes = vec![Node { before: 0, byte: 0 }];
    let mut seen = HashSet::new();
    let mut at = 0;
    while at < nodes.len() && nodes.len() < MOST && goes_on() {
        // A call a state: each has the library's fuel for a step.
        let path = path(&nodes, at);
        let step = Step { env, order, path: &path, found: Mutex::default(), seen: Mutex::new(seen) };
        parser.compute_bias(&step, NO_MASK);
        seen = step.seen.into_inner().unwrap_or_else(PoisonError::into_inner);
        match step.found.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Found { end: Some(byte), .. } => return Some([&path, &[byte][..]].concat()),
            Found { more, .. } => nodes.extend(more.into_iter().map(|byte| Node { before: at, byte })),
        }
        at += 1;
    }
    None
}

/// Gives the lexer the fuel for a step: what other calls left would otherwise decide what this one may do.
pub(super) fn refuel(parser: &mut Parser, env: &TokEnv) {
    parser.compute_bias(&Nothing(env), NO_MASK);
}

struct Node {
    before: usize,
    byte: u8,
}

fn path(nodes: &[Node], mut at: usize) -> Vec<u8> {
    let mut path = Vec::new();
    while at > 0 {
        path.push(nodes[at].byte);
        at = nodes[at].before;
    }
    path.reverse();
    path
}

#[derive(Default)]
struct Found {
    /// With this byte a lexeme may end, or the next one begins.
    end: Option<u8>,
    /// Bytes that lead to states not seen before.
    more: Vec<u8>,
}

/// One state of the search.
struct Step<'a> {
    env: &'a TokEnv,
    order: &'a [u8],
    path: &'a [u8],
    found: Mutex<Found>,
    seen: Mutex<HashSet<StateID>>,
}

impl Step<'_> {
    fn look(&self, lexer: &mut ParserRecognizer<'_>, found: &mut Found, seen: &mut HashSet<StateID>) {
        if !self.path.iter().all(|&byte| lexer.try_push_byte(byte)) {
            return;
        }
        let state = lexer.lexer_state();
        let next = |lexer: &mut ParserRecognizer<'_>, byte: u8| {
            lexer.lexer_mut().transition_start_state(state, Some(byte), &None)
        };
        // Where a lexeme may end, what ends it comes before what goes on with it.
        found.end =
            self.order.iter().copied().find(|&byte| next(lexer, byte).is_dead() && lexer.byte_allowed(byte));
        if found.end.is_some() {
            return;
        }
        for &byte in self.order {
            let to = next(lexer, byte);
            if to.is_dead() {
                continue;
            }
            let may_end = to.has_lowest_match() || !lexer.lexer_mut().try_lexeme_end(to).is_error();
            if may_end && lexer.byte_allowed(byte) {
                found.end = Some(byte);
                return;
            }
            if !to.has_lowest_match() && seen.insert(to) {
                found.more.push(byte);
            }
        }
    }
}

impl BiasComputer for Step<'_> {
    fn compute_bias(&self, lexer: &mut ParserRecognizer<'_>, _start: &[u8]) -> SimpleVob {
        let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        lexer.trie_started("nearest");
        self.look(lexer, &mut found, &mut seen);
        lexer.trie_finished();
        self.trie().alloc_token_set()
    }

    fn trie(&self) -> &TokTrie {
        self.env.tok_trie()
    }
}

struct Nothing<'a>(&'a TokEnv);

impl BiasComputer for Nothing<'_> {
    fn compute_bias(&self, _lexer: &mut ParserRecognizer<'_>, _start: &[u8]) -> SimpleVob {
        self.trie().alloc_token_set()
    }

    fn trie(&self) -> &TokTrie {
        self.0.tok_trie()
    }
}
