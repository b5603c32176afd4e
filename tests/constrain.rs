//! Grammars against brute force, on a small vocabulary: masks, forced tokens, drafts, endings, limits.

mod common;
#[path = "common/random.rs"]
mod random;
#[path = "constrain/real.rs"]
mod real;
#[path = "constrain/schemas.rs"]
mod schemas;
#[path = "constrain/small.rs"]
mod small;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::{Duration, Instant};

use random::Random;
use regex::Regex;
use serde_json::{Value, json};
use small::{compile, compiler, text};
use tallow::constrain::{Constraint, GrammarCompiler, Matcher, Reserve, TokenMask, Vocabulary};
use tallow::error::ErrorKind;
use tallow::text::tokenizer::Tokenizer;

/// Every text over `letters` of at most `most` letters that the expression matches as a whole.
fn language(expression: &str, letters: &str, most: usize) -> BTreeSet<Vec<u8>> {
    let regex = Regex::new(&format!("^(?:{expression})$")).unwrap();
    let mut texts = vec![String::new()];
    let mut begin = 0;
    for _ in 0..most {
        let end = texts.len();
        for index in begin..end {
            for letter in letters.chars() {
                texts.push(format!("{}{letter}", texts[index]));
            }
        }
        begin = end;
    }
    texts.into_iter().filter(|text| regex.is_match(text)).map(String::into_bytes).collect()
}

/// At every text that can be reached, every token is tried.
fn agrees_with(language: &BTreeSet<Vec<u8>>, constraint: &Constraint, compiler: &GrammarCompiler) {
    let starts =
        |prefix: &[u8]| language.range(prefix.to_vec()..).next().is_some_and(|text| text.starts_with(prefix));
    let grammar = compile(compiler, constraint);
    let vocabulary = grammar.vocabulary().clone();
    let end = vocabulary.eos()[0];
    let mut open = vec![(grammar.matcher().unwrap(), Vec::new())];
    let (mut seen, mut mask) = (BTreeSet::new(), TokenMask::default());
    while let Some((mut matcher, so_far)) = open.pop() {
        matcher.mask(&mut mask).unwrap();
        let forced = matcher.forced();
        let forced_text = text(&vocabulary, &forced);
        let place = format!("{constraint:?} after {:?}", String::from_utf8_lossy(&so_far));
        let may_stop = language.contains(&so_far);
        assert_eq!(mask.allows(end), may_stop, "the end, {place}");
        assert_eq!(matcher.may_stop().unwrap(), may_stop, "{place}");
        for id in (0..vocabulary.size() as u32).filter(|&id| id != end) {
            let token = vocabulary.bytes(id);
            let next = [&so_far, token].concat();
            let fits = !token.is_empty() && starts(&next);
            assert_eq!(matcher.validate(&[id]).unwrap() == 1, fits, "token {token:?}, {place}");
            match forced.first() {
                None => assert_eq!(mask.allows(id), fits, "token {token:?}, {place}"),
                Some(&first) => {
                    assert_eq!(mask.allows(id), id == first, "forced {forced:?}, {place}");
                    let same = token.starts_with(&forced_text) || forced_text.starts_with(token);
                    assert!(!fits || same, "{token:?} beside forced {forced_text:?}, {place}");
                }
            }
            if fits && seen.insert(next.clone()) {
                let mut matcher = matcher.clone();
                matcher.accept(id).unwrap();
                open.push((matcher, next));
            } else if !fits {
                assert!(matcher.accept(id).is_err(), "{token:?}, {place}");
            }
        }
    }
    assert!(language.iter().all(|text| text.is_empty() || seen.contains(text)), "{constraint:?}");
}

#[test]
fn masks_are_what_brute_force_finds() {
    let compiler = compiler();
    for (expression, letters, most) in [
        ("abc", "abc", 3),
        ("(ab|a)b?c{0,2}", "abc", 5),
        ("[abc]{2,4}", "abc", 4),
        ("(true|null|tr)", "trueln", 4),
        ("1?2(00)?", "120", 4),
        ("é?[ab]", "éab", 2),
        ("(abcab|cab)", "abc", 5),
        ("x?", "x", 1),
    ] {
        let language = language(expression, letters, most);
        agrees_with(&language, &Constraint::Regex(expression.into()), &compiler);
        agrees_with(&language, &Constraint::Regex(format!("^({expression})$")), &compiler);
        agrees_with(&language, &Constraint::Lark(format!("start: /{expression}/")), &compiler);
    }
    for choices in
        [vec!["a"], vec!["a", "ab", "abc"], vec!["yes", "no", "no way"], vec!["(a|b)*", "a.c", "\n", "/\\"]]
    {
        let choices: Vec<String> = choices.into_iter().map(String::from).collect();
        let language = choices.iter().map(|choice| choice.clone().into_bytes()).collect();
        agrees_with(&language, &Constraint::Choices(choices), &compiler);
    }
}

/// Picks allowed tokens at random, closes after `budget`, and gives the tokens of the answer.
fn walk(matcher: &mut Matcher, random: &mut Random, budget: usize) -> Vec<u32> {
    let (mut mask, mut ids) = (TokenMask::default(), Vec::new());
    while !matcher.is_done() && ids.len() < budget {
        matcher.mask(&mut mask).unwrap();
        let allowed: Vec<u32> = mask.iter().collect();
        assert!(!allowed.is_empty());
        let id = allowed[random.below(allowed.len())];
        matcher.accept(id).unwrap();
        ids.push(id);
    }
    let closing = matcher.closing(200).unwrap().unwrap_or_else(|| panic!("no end from {ids:?}"));
    for id in closing {
        matcher.accept(id).unwrap();
        ids.push(id);
    }
    assert!(matcher.may_stop().unwrap());
    ids
}

#[test]
fn random_walks_always_parse_and_satisfy_the_schema() {
    let compiler = compiler();
    let mut random = Random::new(7);
    for schema in schemas::table() {
        let grammar = compile(&compiler, &Constraint::JsonSchema(schema.clone()));
        for round in 0..60 {
            let ids = walk(&mut grammar.matcher().unwrap(), &mut random, round);
            let text = String::from_utf8(text(grammar.vocabulary(), &ids)).expect("UTF-8");
            let value: Value = serde_json::from_str(&text).unwrap_or_else(|error| panic!("{text}: {error}"));
            assert!(schemas::holds(&schema, &schema, &value), "{schema}\n{text}");
        }
    }
}

#[test]
fn a_budget_with_the_closing_in_view_is_never_exceeded() {
    let compiler = compiler();
    let mut random = Random::new(11);
    let mut mask = TokenMask::default();
    for schema in schemas::table() {
        let grammar = compile(&compiler, &Constraint::JsonSchema(schema.clone()));
        let least = grammar.matcher().unwrap().closing(500).unwrap().unwrap().len();
        for budget in [least, least + 1, least + 2, least + 9, least + 40] {
            let mut matcher = grammar.matcher().unwrap();
            let mut reserve = Reserve::new(&grammar, budget).unwrap().unwrap();
            let mut ids = Vec::new();
            while !matcher.is_done() && ids.len() < budget {
                let mut next = matcher.forced();
                if next.is_empty() {
                    matcher.mask(&mut mask).unwrap();
                    let allowed: Vec<u32> =
                        mask.iter().filter(|id| !grammar.vocabulary().is_eos(*id)).collect();
                    next.push(allowed[random.below(allowed.len())]);
                }
                next.iter().for_each(|&id| matcher.accept(id).unwrap());
                if reserve.follow(&mut matcher, &next, budget.saturating_sub(ids.len() + next.len())).unwrap()
                {
                    ids.extend(next);
                } else {
                    reserve.closing().iter().for_each(|&id| matcher.accept(id).unwrap());
                    ids.extend(reserve.closing());
                    assert!(matcher.may_stop().unwrap());
                    break;
                }
            }
            assert!(ids.len() <= budget);
            let text = String::from_utf8(text(grammar.vocabulary(), &ids)).unwrap();
            let value =
                serde_json::from_str(&text).unwrap_or_else(|error| panic!("{budget} {text}: {error}"));
            assert!(schemas::holds(&schema, &schema, &value), "{schema}\n{text}");
        }
    }
}

#[test]
fn forced_tokens_are_what_the_masks_leave() {
    let compiler = compiler();
    let mut random = Random::new(3);
    let (mut mask, mut total) = (TokenMask::default(), 0);
    for schema in schemas::table() {
        let grammar = compile(&compiler, &Constraint::JsonSchema(schema.clone()));
        for _ in 0..10 {
            let mut matcher = grammar.matcher().unwrap();
            for _ in 0..40 {
                let forced = matcher.forced();
                total += forced.len();
                for &id in &forced {
                    matcher.mask(&mut mask).unwrap();
                    assert_eq!(mask.single(), Some(id), "{schema} {forced:?}");
                    matcher.accept(id).unwrap();
                }
                if matcher.is_done() {
                    break;
                }
                matcher.mask(&mut mask).unwrap();
                let allowed: Vec<u32> = mask.iter().collect();
                matcher.accept(allowed[random.below(allowed.len())]).unwrap();
            }
        }
    }
    assert!(total > 500, "only {total} tokens were forced");
}

#[test]
fn rollback_is_a_fresh_start_and_drafts_change_nothing() {
    let compiler = compiler();
    let mut random = Random::new(5);
    let (mut mask, mut other) = (TokenMask::default(), TokenMask::default());
    for schema in schemas::table() {
        let grammar = compile(&compiler, &Constraint::JsonSchema(schema.clone()));
        assert!(grammar.can_rollback());
        for _ in 0..20 {
            let mut matcher = grammar.matcher().unwrap();
            let mut ids = walk(&mut matcher, &mut random, 25);
            if let Some(&end) = grammar
                .vocabulary()
                .eos()
                .first()
                .filter(|_| !ids.iter().any(|id| grammar.vocabulary().is_eos(*id)))
            {
                matcher.accept(end).unwrap();
                ids.push(end);
            }
            assert!(matcher.is_done() && matcher.accept(ids[0]).is_err());
            let keep = random.below(ids.len());
            matcher.rollback(ids.len() - keep).unwrap();
            assert_eq!(matcher.len(), keep);
            let mut fresh = grammar.matcher().unwrap();
            ids[..keep].iter().for_each(|&id| fresh.accept(id).unwrap());
            // A draft: what was there, then a token that is wrong.
            let mut draft = ids[keep..].to_vec();
            assert_eq!(matcher.validate(&draft).unwrap(), draft.len(), "{schema} {ids:?} {keep}");
            let wrong = random.below(draft.len());
            draft[wrong] = u32::MAX;
            assert_eq!(matcher.validate(&draft).unwrap(), wrong);
            matcher.mask(&mut mask).unwrap();
            fresh.mask(&mut other).unwrap();
            assert_eq!(mask, other, "{schema} {ids:?} {keep}");
            assert_eq!(matcher.forced(), fresh.forced());
        }
    }
}

/// The answers of a grammar share an automaton that grows; what they are allowed must not show it.
#[test]
fn answers_beside_each_other_are_the_answers_alone() {
    let compiler = compiler();
    for schema in schemas::table() {
        let constraint = Constraint::JsonSchema(schema);
        let answers = |grammar: &tallow::constrain::Grammar| {
            let mut random = Random::new(17);
            (0..20).map(|n| walk(&mut grammar.matcher().unwrap(), &mut random, n)).collect::<Vec<_>>()
        };
        let shared = compile(&compiler, &constraint);
        let beside: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..4).map(|_| scope.spawn(|| answers(&shared))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        let alone = answers(&compile(&small::compiler(), &constraint));
        assert!(beside.iter().all(|answers| *answers == alone), "{constraint:?}");
    }
}

#[test]
fn control_tokens_stay_out_of_text_unless_a_grammar_names_them() {
    let compiler = compiler();
    let tokenizer = small::tokenizer();
    let (end, tool) = (tokenizer.id(small::END).unwrap(), tokenizer.id(small::TOOL).unwrap());
    let mut mask = TokenMask::default();
    for constraint in [
        Constraint::Regex("(?s:.*)".into()),
        Constraint::JsonSchema(json!({"type": "string"})),
        Constraint::Lark("start: /(.|\\n)*/".into()),
    ] {
        let mut matcher = compile(&compiler, &constraint).matcher().unwrap();
        for id in tokenizer.encode("\"<|tool|> <|", false).unwrap() {
            matcher.mask(&mut mask).unwrap();
            assert!(!mask.allows(tool) && matcher.validate(&[tool]).unwrap() == 0, "{constraint:?}");
            assert_eq!(mask.allows(end), matcher.may_stop().unwrap(), "{constraint:?}");
            assert!(mask.iter().all(|id| (id as usize) < tokenizer.vocab_size()), "{constraint:?}");
            matcher.accept(id).unwrap();
        }
    }
    let named = Constraint::Lark("start: <|tool|> /[ab]+/".into());
    let mut matcher = compile(&compiler, &named).matcher().unwrap();
    matcher.mask(&mut mask).unwrap();
    assert_eq!(mask.single(), Some(tool));
    matcher.accept(tool).unwrap();
    assert!(matcher.accept(tool).is_err());
}

/// Properties nested `depth` deep.
#[test]
fn tokens_that_are_words_are_held_to_no_grammar() {
    let file = json!({"version": "1.0", "added_tokens": [], "pre_tokenizer": {"type": "Whitespace"},
        "model": {"type": "WordLevel", "vocab": {"<unk>": 0, "e4": 1, "e5": 2}, "unk_token": "<unk>"}});
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("tokenizer.json"), file.to_string()).unwrap();
    let tokenizer = Arc::new(Tokenizer::from_hf(dir.path()).unwrap());
    let error = Vocabulary::new(tokenizer, &[0], 3).unwrap_err();
    assert!(error.kind() == ErrorKind::UnsupportedModel && error.message().contains("words"), "{error:?}");
}

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!({"type": "null"}), |inner, _| json!({"type": "object", "properties": {"a": inner}}))
}

fn chain(length: usize) -> Value {
    let next =
        |n: usize| json!({"type": "object", "properties": {"a": {"$ref": format!("#/$defs/d{}", n + 1)}}});
    let defs: serde_json::Map<String, Value> = (0..length)
        .map(|n| (format!("d{n}"), next(n)))
        .chain([(format!("d{length}"), json!({"type": "null"}))])
        .collect();
    json!({"$defs": defs, "$ref": "#/$defs/d0"})
}

/// Definitions that each intersect themselves with the next.
fn chain_of_parts(length: usize) -> Value {
    let part = |n: usize| json!({"allOf": [{"$ref": format!("#/$defs/d{}", n + 1)}, {"type": "object", "maxProperties": 100_000}]});
    let defs: serde_json::Map<String, Value> = (0..length)
        .map(|n| (format!("d{n}"), part(n)))
        .chain([(format!("d{length}"), json!({"type": "object"}))])
        .collect();
    json!({"$defs": defs, "$ref": "#/$defs/d0"})
}

fn product(factors: usize) -> Value {
    let pair = |n: usize| {
        json!({"anyOf": [{"properties": {format!("a{n}"): {"type": "string"}}, "required": [format!("a{n}")]},
                         {"properties": {format!("b{n}"): {"type": "number"}}, "required": [format!("b{n}")]}]})
    };
    json!({"type": "object", "allOf": (0..factors).map(pair).collect::<Vec<_>>()})
}

fn wide(properties: usize) -> Value {
    let each =
        |n: usize| (format!("property_{n}"), json!({"type": "string", "description": "x".repeat(150)}));
    json!({"type": "object", "properties": (0..properties).map(each).collect::<serde_json::Map<_, _>>()})
}

#[test]
fn hostile_constraints_end_in_an_error_in_time() {
    let compiler = compiler();
    let schema = |value: Value| Constraint::JsonSchema(value);
    let pattern = |text: &str| schema(json!({"type": "string", "pattern": text}));
    let regex = |text: &str| Constraint::Regex(text.into());
    let patterns: serde_json::Map<_, _> = (0..2000).map(|n| (format!("^(a|b)*{n}"), json!({}))).collect();
    let rows = [
        ("deep", schema(nested(100))),
        ("very deep", schema(nested(400))),
        ("10 MB", schema(wide(50_000))),
        ("false", schema(json!(false))),
        ("no schema", schema(json!(7))),
        ("unknown type", schema(json!({"type": "nothing"}))),
        ("contradiction", schema(json!({"type": "integer", "minimum": 5, "maximum": 4}))),
        ("a loop of references", schema(json!({"$defs": {"a": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}))),
        ("nowhere", schema(json!({"$ref": "#/$defs/missing"}))),
        ("elsewhere", schema(json!({"$ref": "https://example.com/schema.json"}))),
        ("a long chain", schema(chain(2_500))),
        ("a very long chain", schema(chain(6_000))),
        ("a product", schema(product(20))),
        ("many patterns", schema(json!({"type": "object", "patternProperties": patterns}))),
        ("pattern that cannot be", pattern("(?=a)b")),
        ("deep parentheses", regex(&format!("{}a{}", "(".repeat(50_000), ")".repeat(50_000)))),
        ("look-around", regex("(?!a)b")),
        ("back reference", regex(r"(a)\1")),
        ("half a regex", regex("(a")),
        ("lone backslash", regex("a\\")),
        ("nothing matches", regex(r"[^\s\S]")),
        ("no rule", Constraint::Lark("begin: \"a\"".into())),
        ("not Lark", Constraint::Lark("start: (((".into())),
        ("deep Lark", Constraint::Lark(format!("start: {}\"a\"{}", "(".repeat(50_000), ")".repeat(50_000)))),
        ("endless Lark", Constraint::Lark("start: start \"a\"".into())),
        ("no control token of this name", Constraint::Lark("start: <|nope|>".into())),
        ("no choice", Constraint::Choices(vec![])),
        ("empty choice", Constraint::Choices(vec!["a".into(), String::new()])),
        ("many choices", Constraint::Choices((0..20_000).map(|n| n.to_string()).collect())),
    ];
    let mut wrong = Vec::new();
    for (name, constraint) in rows {
        let begin = Instant::now();
        let result = compiler.compile(&constraint);
        let took = begin.elapsed();
        match result {
            Err(error) if error.kind() == ErrorKind::Constraint && took < Duration::from_secs(20) => {
                println!("{name:30} {took:9.1?}  {error}");
                if error.message().len() > 700 {
                    wrong.push(format!("{name}: a message of {} bytes", error.message().len()));
                }
            }
            other => wrong.push(format!("{name}: {took:?} {other:?}")),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn heavy_but_sound_constraints_compile() {
    let compiler = compiler();
    let schema = |value: Value| Constraint::JsonSchema(value);
    for (name, constraint) in [
        ("nested 20 deep", schema(nested(20))),
        ("a chain", schema(chain(500))),
        ("the longest chain", schema(chain(1_900))),
        ("200 properties", schema(wide(200))),
        ("5,000 choices", Constraint::Choices((0..5_000).map(|n| format!("label number {n}")).collect())),
        (
            "1,000 in an enum",
            schema(json!({"enum": (0..1000).map(|n| format!("label {n}")).collect::<Vec<_>>()})),
        ),
        ("a small product", schema(product(3))),
        ("exponential DFA", Constraint::Regex("[ab]*a[ab]{12}".into())),
        ("catastrophic for backtracking", Constraint::Regex("(a|a)*(a*)*b".into())),
    ] {
        let begin = Instant::now();
        let grammar = compile(&compiler, &constraint);
        println!("{name:30} {:9.1?}", begin.elapsed());
        let again = Instant::now();
        compile(&compiler, &constraint);
        println!("{:30} {:9.1?} cached", "", again.elapsed());
        let mut mask = TokenMask::default();
        grammar.matcher().unwrap().mask(&mut mask).unwrap();
        assert!(mask.count() > 0, "{name}");
    }
}

/// What derivatives compile at once, however large it is, must not cost more when it is walked through.
#[test]
fn heavy_grammars_stay_bounded_step_by_step() {
    let compiler = compiler();
    let mut random = Random::new(13);
    let endless = json!({"$defs": {"a": {"type": "object", "properties": {"a": {"$ref": "#/$defs/a"}},
        "required": ["a"]}}, "$ref": "#/$defs/a"});
    let regex = |text: &str| Constraint::Regex(text.into());
    for (name, constraint) in [
        ("an endless object", Constraint::JsonSchema(endless)),
        ("chained allOf", Constraint::JsonSchema(chain_of_parts(1_900))),
        (
            "huge pattern",
            Constraint::JsonSchema(json!({"type": "string", "pattern": "((a{1000}){1000}){1000}"})),
        ),
        ("huge regex", regex("((a{1000}){1000}){1000}")),
        ("huge union", regex(&format!("({})", vec!["[a-z]{1,1000}x"; 2000].join("|")))),
        (
            "union of counts",
            regex(&(1..400).map(|n| format!("([a-z]{{{n}}})*x")).collect::<Vec<_>>().join("|")),
        ),
        ("exponential DFA", regex("[ab]*a[ab]{100000}")),
        ("ambiguous Lark", Constraint::Lark("start: s+\ns: \"a\" | s s | \"b\" s \"c\" | /[ab]+/".into())),
        ("many choices alike", Constraint::Choices((0..9_999).map(|n| format!("{n:0100}")).collect())),
    ] {
        let begin = Instant::now();
        let grammar = match compiler.compile(&constraint) {
            Ok(grammar) => grammar,
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::Constraint, "{name}: {error:?}");
                println!("{name:25} compile {:9.1?} {error}", begin.elapsed());
                continue;
            }
        };
        let (compiled, mut slowest, mut end) = (begin.elapsed(), Duration::ZERO, String::new());
        let (mut matcher, mut mask) = (grammar.matcher().unwrap(), TokenMask::default());
        for _ in 0..100 {
            let begin = Instant::now();
            let step = matcher.mask(&mut mask).and_then(|()| {
                let allowed: Vec<u32> = mask.iter().collect();
                matcher.accept(allowed[random.below(allowed.len())])
            });
            slowest = slowest.max(begin.elapsed());
            if let Err(error) = step {
                assert_eq!(error.kind(), ErrorKind::Constraint, "{name}: {error:?}");
                end = error.to_string();
                break;
            }
            if matcher.is_done() {
                break;
            }
        }
        let begin = Instant::now();
        let closing = grammar.matcher().unwrap().closing(1000).map(|found| found.map(|found| found.len()));
        println!(
            "{name:25} compile {compiled:9.1?}, slowest step {slowest:9.1?}, {} tokens {end}; closing {closing:?} in {:9.1?}",
            matcher.len(),
            begin.elapsed()
        );
        assert!(slowest < Duration::from_secs(10) && compiled < Duration::from_secs(20), "{name}");
        assert!(closing.is_ok_and(|found| found.is_none()) || !name.starts_with("an endless"), "{name}");
        // Whatever became of the last answer, the next can begin. An automaton that is full is noticed by the
        // next answer at the latest, and the one after it has a new one.
        let mut next = || compiler.compile(&constraint)?.matcher()?.mask(&mut mask);
        let next = next().or_else(|error| {
            println!("  {name}: the next answer: {error}");
            next()
        });
        assert!(next.is_ok() || !end.is_empty(), "{name}: {next:?}");
    }
}

#[test]
fn one_constraint_is_one_grammar() {
    let compiler = compiler();
    let choices = |texts: &[&str]| Constraint::Choices(texts.iter().map(|text| text.to_string()).collect());
    let grammars: Vec<_> = std::thread::scope(|scope| {
        let threads: Vec<_> =
            (0..8).map(|_| scope.spawn(|| compile(&compiler, &choices(&["a", "b"])))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    let again = compile(&compiler, &choices(&["a", "b"]));
    assert!(grammars.contains(&again));
    for other in [choices(&["b", "a"]), choices(&["a2:b"]), Constraint::Regex("a|b".into())] {
        assert!(compile(&compiler, &other) != again, "{other:?}");
    }
    // 64 are kept.
    (0..64).for_each(|n| drop(compile(&compiler, &choices(&[&format!("x{n}")]))));
    assert!(compile(&compiler, &choices(&["a", "b"])) != again, "the oldest is forgotten");
}

#[test]
fn grammars_that_cannot_be_taken_back_say_so() {
    let compiler = compiler();
    for (lark, can) in [
        ("start: /[ab]+/", true),
        ("start: text \"x\"\ntext[stop=\"!\"]: /[a-z]+/", false),
        ("start: text \"!\"\ntext[max_tokens=3]: /[a-z]+/", false),
    ] {
        assert_eq!(compile(&compiler, &Constraint::Lark(lark.into())).can_rollback(), can, "{lark}");
    }
}

#[test]
fn the_order_of_properties_is_part_of_the_constraint() {
    let compiler = compiler();
    let forced = |first: &str, second: &str| {
        let schema = json!({"type": "object", "required": [first, second], "properties": {
            first: {"type": "null"}, second: {"type": "null"}}});
        let grammar = compile(&compiler, &Constraint::JsonSchema(schema));
        let ids = grammar.matcher().unwrap().forced();
        String::from_utf8(text(grammar.vocabulary(), &ids)).unwrap()
    };
    assert!(forced("a", "b").starts_with("{\"a\": null, \"b\": null"));
    assert!(forced("b", "a").starts_with("{\"b\": null, \"a\": null"));
}
