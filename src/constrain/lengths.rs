//! A pattern beside a `maxLength`, as one expression.
//!
//! The library intersects the two, and then counts: each character makes another state of the whole pattern,
//! and telling whether it still leads anywhere takes as many steps as characters are left. At a length of
//! some hundreds that is more than a mask may cost, and at a million it never ends. So a long length is
//! shared out instead among the repetitions that would go on for ever: `\S+@\S+` in 254 characters is
//! `\S{1,127}@\S{1,126}`. All that it admits fits into the length; a text that gives one part nearly all of
//! it is given up for that.

use regex_syntax::hir::{Dot, Hir, HirKind, Look, Repetition};

/// Shorter lengths are counted exactly.
pub(super) const LONG: u64 = 64;

/// The pattern, searched for anywhere in a text as JSON schemas do, as one that matches whole texts of at
/// most `most` characters. `None` where the library is to say what is wrong, or has to count.
pub(super) fn shared_out(pattern: &str, most: u64) -> Option<Shared> {
    let parsed = regex_syntax::Parser::new().parse(&llguidance::regex_to_lark(pattern, "dw")).ok()?;
    let whole = whole(&parsed)?;
    if shortest(&whole) > most {
        return None;
    }
    let fitted = fitted(&whole, most)?;
    Some(Shared { pattern: format!("^(?:{fitted})$"), shortest: shortest(&fitted) })
}

/// A pattern that keeps to a length.
#[derive(Debug)]
pub(super) struct Shared {
    pub pattern: String,
    /// Characters of its shortest text.
    pub shortest: u64,
}

/// Without anchors, and with all that may stand before and after. `None` for anchors elsewhere.
fn whole(hir: &Hir) -> Option<Hir> {
    match hir.kind() {
        HirKind::Alternation(branches) => {
            Some(Hir::alternation(branches.iter().map(whole).collect::<Option<Vec<_>>>()?))
        }
        HirKind::Capture(capture) => whole(&capture.sub),
        HirKind::Concat(parts) => framed(parts),
        _ => framed(std::slice::from_ref(hir)),
    }
}

fn framed(parts: &[Hir]) -> Option<Hir> {
    let is = |part: Option<&Hir>, look: Look| part.is_some_and(|part| *part.kind() == HirKind::Look(look));
    let (starts, ends) = (is(parts.first(), Look::Start), is(parts.last(), Look::End));
    let inner =
        &parts[usize::from(starts)..parts.len() - usize::from(ends && parts.len() > usize::from(starts))];
    if inner.iter().any(|part| !part.properties().look_set().is_empty()) {
        return None;
    }
    let before = (!starts).then(anything);
    let after = (!ends).then(anything);
    Some(Hir::concat(before.into_iter().chain(inner.iter().cloned()).chain(after).collect()))
}

fn anything() -> Hir {
    repeated(Hir::dot(Dot::AnyChar), 0, None)
}

fn repeated(sub: Hir, min: u32, max: Option<u32>) -> Hir {
    Hir::repetition(Repetition { min, max, greedy: true, sub: Box::new(sub) })
}

/// Characters of the shortest text.
fn shortest(hir: &Hir) -> u64 {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => 0,
        HirKind::Literal(literal) => characters(&literal.0),
        HirKind::Class(_) => 1,
        HirKind::Repetition(repetition) => {
            u64::from(repetition.min).saturating_mul(shortest(&repetition.sub))
        }
        HirKind::Capture(capture) => shortest(&capture.sub),
        HirKind::Concat(parts) => parts.iter().map(shortest).fold(0, u64::saturating_add),
        HirKind::Alternation(branches) => branches.iter().map(shortest).min().unwrap_or(0),
    }
}

/// Characters of the longest text; `None` if there is none.
fn longest(hir: &Hir) -> Option<u64> {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => Some(0),
        HirKind::Literal(literal) => Some(characters(&literal.0)),
        HirKind::Class(_) => Some(1),
        HirKind::Repetition(repetition) => u64::from(repetition.max?).checked_mul(longest(&repetition.sub)?),
        HirKind::Capture(capture) => longest(&capture.sub),
        HirKind::Concat(parts) => parts.iter().try_fold(0_u64, |sum, part| sum.checked_add(longest(part)?)),
        HirKind::Alternation(branches) => {
            branches.iter().try_fold(0, |most: u64, branch| Some(most.max(longest(branch)?)))
        }
    }
}

fn characters(literal: &[u8]) -> u64 {
    String::from_utf8_lossy(literal).chars().count() as u64
}

/// The part of it whose texts have at most `most` characters, which is no less than its shortest.
fn fitted(hir: &Hir, most: u64) -> Option<Hir> {
    if longest(hir).is_some_and(|longest| longest <= most) {
        return Some(hir.clone());
    }
    match hir.kind() {
        HirKind::Capture(capture) => fitted(&capture.sub, most),
        HirKind::Alternation(branches) => {
            let fit = branches.iter().filter(|branch| shortest(branch) <= most);
            Some(Hir::alternation(fit.map(|branch| fitted(branch, most)).collect::<Option<Vec<_>>>()?))
        }
        HirKind::Concat(parts) => {
            let shares = shares(parts, most);
            let fitted = parts.iter().zip(shares).map(|(part, share)| fitted(part, share));
            Some(Hir::concat(fitted.collect::<Option<Vec<_>>>()?))
        }
        HirKind::Repetition(repetition) => fewer(repetition, most),
        _ => None,
    }
}

/// The characters that each part may have: what the short ones leave goes to the others.
fn shares(parts: &[Hir], most: u64) -> Vec<u64> {
    let least: Vec<u64> = parts.iter().map(shortest).collect();
    let mut left = most.saturating_sub(least.iter().sum());
    let wants = |at: usize| longest(&parts[at]).map_or(u64::MAX, |longest| longest - least[at]);
    let mut order: Vec<usize> = (0..parts.len()).filter(|&at| wants(at) > 0).collect();
    order.sort_by_key(|&at| wants(at));
    let mut shares = least.clone();
    for (served, &at) in order.iter().enumerate() {
        let share = wants(at).min(left / (order.len() - served) as u64);
        shares[at] += share;
        left -= share;
    }
    shares
}

/// So many times less often that it fits; of repetitions in repetitions each gets about the root.
fn fewer(repetition: &Repetition, most: u64) -> Option<Hir> {
    let (min, sub) = (u64::from(repetition.min), &*repetition.sub);
    let limit = repetition.max.map_or(u64::MAX, u64::from);
    if let Some(each) = longest(sub).filter(|&each| each > 0 && most / each >= min.max(1)) {
        let max = u32::try_from(limit.min(most / each)).ok()?;
        return Some(repeated(sub.clone(), repetition.min, Some(max)));
    }
    if min == 0 && shortest(sub) > most {
        return Some(Hir::empty());
    }
    let times = (most / shortest(sub).max(1)).isqrt().clamp(min.max(1), limit.max(1));
    let each = fitted(sub, most / times)?;
    let max = most / longest(&each)?.max(1);
    Some(repeated(each, repetition.min, Some(u32::try_from(limit.min(max)).ok()?)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_shared_out_matches_and_fits() {
        for (pattern, most, inside, outside) in [
            ("foo", 100, "a foo b", "fo"),
            (r"^\S+@\S+$", 254, "a@b", "a@"),
            (r"^[^@]+@[^@]+\.[^@]+$", 2083, "a@b.c", "a@b"),
            (r"^.*\.(jpg|png)$", 2083, ".jpg", "jpg"),
            (r"\d$", 200, "a1", "1a"),
            (r"^[a-z]+(-[a-z]+)*$", 500, "a-b-cd", "a-"),
            ("^a|b$", 300, "ab", "ca"),
            (r"^(https?://)?\w+(\.\w+){1,}(/\S*)*$", 2083, "a.b/c", "/c"),
        ] {
            let shared = shared_out(pattern, most).unwrap_or_else(|| panic!("{pattern}"));
            let parsed = regex_syntax::Parser::new().parse(&shared.pattern).unwrap();
            assert!(longest(&parsed).unwrap() <= most, "{pattern}: {}", shared.pattern);
            let (original, narrowed) =
                (regex::Regex::new(pattern).unwrap(), regex::Regex::new(&shared.pattern).unwrap());
            assert!(original.is_match(inside) && narrowed.is_match(inside), "{}", shared.pattern);
            assert!(!original.is_match(outside) && !narrowed.is_match(outside), "{}", shared.pattern);
        }
        for pattern in [r"a\b", "a^b", "(", "(?=a)"] {
            assert!(shared_out(pattern, 100).is_none(), "{pattern}");
        }
        assert!(shared_out("^a{70,}$", 65).is_none());
    }
}
