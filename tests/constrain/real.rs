//! Real vocabularies: an answer as DSPy asks for it, token by token; and what it costs (shown with
//! `--nocapture`; only gross failures fail).

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tallow::constrain::{Constraint, Grammar, GrammarCompiler, Limits, Mask, Reserve, TokenMask, Vocabulary};
use tallow::sample::Logits;
use tallow::text::tokenizer::Tokenizer;
use tallow::weights::gguf::Gguf;

use super::common;

/// What DSPy's JSONAdapter sends for a signature with six fields.
fn schema() -> Value {
    json!({
        "$defs": {"Entity": {"type": "object", "title": "Entity", "additionalProperties": false,
            "properties": {"name": {"type": "string", "title": "Name"},
                           "kind": {"type": "string", "enum": ["person", "place", "organisation"], "title": "Kind"}},
            "required": ["name", "kind"]}},
        "type": "object", "title": "DSPyProgramOutputs", "additionalProperties": false,
        "properties": {
            "reasoning": {"type": "string", "title": "Reasoning"},
            "answer": {"type": "string", "enum": ["yes", "no", "unknown"], "title": "Answer"},
            "confidence": {"type": "number", "minimum": 0, "maximum": 1, "title": "Confidence"},
            "entities": {"type": "array", "items": {"$ref": "#/$defs/Entity"}, "title": "Entities"},
            "year": {"type": "integer", "minimum": 1000, "maximum": 2100, "title": "Year"},
            "note": {"anyOf": [{"type": "string"}, {"type": "null"}], "title": "Note"},
        },
        "required": ["reasoning", "answer", "confidence", "entities", "year", "note"],
    })
}

const REASONING: &str = "The question asks whether the treaty was signed in the capital. The text says that the \
    delegates met in Münster and in Osnabrück, and that the documents were signed in October 1648, so neither \
    city was a capital at that time; the answer is therefore clear. ";

fn answer() -> Value {
    json!({"reasoning": REASONING.trim_end().repeat(2), "answer": "no", "confidence": 0.875,
           "entities": [{"name": "Münster", "kind": "place"}, {"name": "Osnabrück", "kind": "place"},
                        {"name": "Holy Roman Empire", "kind": "organisation"}],
           "year": 1648, "note": null})
}

/// `json.dumps` of Python for what the answer holds.
fn dumps(value: &Value) -> String {
    match value {
        Value::Object(members) => {
            let each = |(name, member): (&String, &Value)| format!("{}: {}", json!(name), dumps(member));
            format!("{{{}}}", members.iter().map(each).collect::<Vec<_>>().join(", "))
        }
        Value::Array(items) => format!("[{}]", items.iter().map(dumps).collect::<Vec<_>>().join(", ")),
        other => other.to_string(),
    }
}

fn resident_kib() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).unwrap_or(0) * 4
}

#[derive(Default)]
struct Times(Vec<Duration>);

impl Times {
    fn of<T>(&mut self, work: impl FnOnce() -> T) -> T {
        let begin = Instant::now();
        let result = work();
        self.0.push(begin.elapsed());
        result
    }

    fn show(&mut self, what: &str) {
        self.0.sort();
        let mean = self.0.iter().sum::<Duration>() / self.0.len().max(1) as u32;
        let at = |share: usize| self.0[(self.0.len() * share / 100).min(self.0.len() - 1)];
        println!(
            "  {what:34} mean {mean:8.1?}  p50 {:8.1?}  p99 {:8.1?}  max {:8.1?}",
            at(50),
            at(99),
            at(100)
        );
    }
}

/// Writes `answer` under the grammar: forced tokens as they come, the rest as the tokenizer cuts the text
/// that is left. Returns how many tokens were forced, and how many not.
fn write(grammar: &Grammar, tokenizer: &Tokenizer, answer: &str, label: &str) -> (usize, usize) {
    let (mut masks, mut accepts, mut forcing) = (Times::default(), Times::default(), Times::default());
    let (mut closings, mut reserves) = (Times::default(), Times::default());
    let mut matcher = grammar.matcher().unwrap();
    let mut mask = TokenMask::default();
    let (mut rest, mut counts) = (answer, (0, 0));
    let mut reserve = Reserve::new(grammar, 1000).unwrap().expect("a closing");
    while !matcher.is_done() {
        let forced = forcing.of(|| matcher.forced());
        let chosen = if forced.is_empty() {
            masks.of(|| matcher.mask(&mut mask)).unwrap();
            let id = tokenizer.encode_continuation(rest).unwrap()[0];
            assert!(mask.allows(id), "{label}: {:?} of {rest:?}", tokenizer.token_bytes(id));
            counts.1 += 1;
            vec![id]
        } else {
            counts.0 += forced.len();
            forced
        };
        for &id in &chosen {
            accepts.of(|| matcher.accept(id)).unwrap();
            let bytes = grammar.vocabulary().bytes(id);
            assert!(rest.as_bytes().starts_with(bytes), "{label}: {id} before {rest:?}");
            rest = std::str::from_utf8(&rest.as_bytes()[bytes.len()..]).unwrap_or(rest);
        }
        closings.of(|| matcher.closing(1000)).unwrap().expect("a closing");
        assert!(reserves.of(|| reserve.follow(&mut matcher, &chosen, 1000)).unwrap());
    }
    assert_eq!(rest, "");
    println!(" {label}: {} tokens forced, {} chosen", counts.0, counts.1);
    masks.show("mask");
    accepts.show("accept");
    forcing.show("forced");
    closings.show("closing, searched anew");
    reserves.show("reserve");
    counts
}

#[test]
fn dspy_answers_on_real_vocabularies() {
    for (file, size) in [("SmolLM2-135M-Instruct.Q4_1.gguf", 49_152), ("gemma-3-270m-q4_k_m.gguf", 262_144)] {
        let Some(path) = common::real_model(file) else { return };
        let tokenizer = Arc::new(Tokenizer::from_gguf(&Gguf::open(&path).unwrap().metadata).unwrap());
        let (before, begin) = (resident_kib(), Instant::now());
        let vocabulary = Vocabulary::new(tokenizer.clone(), tokenizer.eos_ids(), size).unwrap();
        let (built, between) = (begin.elapsed(), resident_kib());
        let begin = Instant::now();
        let compiler = GrammarCompiler::new(vocabulary, Limits::default()).unwrap();
        println!(
            "{file}: {size} tokens, trie {built:.1?} and {} MiB, compiler {:.1?} and {} MiB (resident {} MiB)",
            (between.saturating_sub(before)) / 1024,
            begin.elapsed(),
            (resident_kib().saturating_sub(between)) / 1024,
            resident_kib() / 1024
        );
        let constraint = Constraint::JsonSchema(schema());
        let mut times = Times::default();
        let grammar = times.of(|| compiler.compile(&constraint)).unwrap();
        times.show("compile, cold");
        let mut times = Times::default();
        (0..20).for_each(|_| drop(times.of(|| compiler.compile(&constraint)).unwrap()));
        times.show("compile, cached");
        let mut times = Times::default();
        (0..20).for_each(|_| drop(times.of(|| grammar.matcher()).unwrap()));
        times.show("matcher");
        let text = dumps(&answer());
        let first = write(&grammar, &tokenizer, &text, "first answer");
        assert_eq!(write(&grammar, &tokenizer, &text, "second answer"), first);
        assert!(first.0 > 20, "keys and separators are forced");
        let row: Vec<f32> = (0..size).map(|id| (id % 1000) as f32).collect();
        let mut mask = TokenMask::default();
        let mut matcher = grammar.matcher().unwrap();
        for (what, begin) in [
            ("apply a mask in a text", "{\"reasoning\": \"The"),
            ("apply a mask of a choice", "{\"reasoning\": \"The\", \"answer\": \""),
        ] {
            matcher.rollback(matcher.len()).unwrap();
            tokenizer
                .encode_continuation(begin)
                .unwrap()
                .into_iter()
                .for_each(|id| matcher.accept(id).unwrap());
            matcher.mask(&mut mask).unwrap();
            let (mut times, mut logits) = (Times::default(), Logits::default());
            for _ in 0..20 {
                logits.load(&row);
                times.of(|| Mask(&mask).apply(&mut logits)).unwrap();
            }
            times.show(&format!("{what} ({})", mask.count()));
        }
        println!(" resident after it all {} MiB", resident_kib() / 1024);
    }
}
