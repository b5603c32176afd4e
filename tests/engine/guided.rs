//! Answers that are held to a grammar, against a loop that masks and samples token by token.

use std::sync::OnceLock;

use tallow::constrain::{Constraint, Grammar, GrammarCompiler, Limits, TokenMask, Vocabulary};
use tallow::engine::guide::Guide;

use super::fake::engine_with;
use super::*;

/// The token that ends answers: `H`.
const END: u32 = VOCAB as u32 - 1;
/// All forms of the tests; `lark:` begins a grammar.
const FORMS: &[&str] = &[
    // A choice, something long, something forced, a free end.
    r"A[0-9]{2,9}(-B|=C+)\.DEF[!-/]*",
    // Wholly forced.
    "DEFGCBAABCDEFGABCDEFG",
    // Forced first, so that it is computed with the prompt; longer than a page.
    "ABCDEFGABCDEFGABCDEFG[0-9]{3,5}(!|GFEDCBA[0-9]*)",
    "(ABC|ABD|AB)[0-9]*",
    "[0-9]{40}",
    "lark:start: \"AB\" (item \",\")+ \"CD\"\nitem: /[0-9]{1,3}/ | \"(\" item \")\"",
];

fn grammar(form: &str) -> Grammar {
    static COMPILER: OnceLock<GrammarCompiler> = OnceLock::new();
    let compiler = COMPILER.get_or_init(|| {
        let vocabulary = Vocabulary::new(tokenizer(), &[END], VOCAB).unwrap();
        GrammarCompiler::new(vocabulary, Limits::default()).unwrap()
    });
    let constraint = match form.strip_prefix("lark:") {
        Some(lark) => Constraint::Lark(lark.into()),
        None => Constraint::Regex(form.into()),
    };
    compiler.compile(&constraint).unwrap()
}

fn held(spec: &Spec, form: &str) -> Result<Request> {
    let Kind::Generate { max_tokens, .. } = spec.kind else { unreachable!() };
    let mut request = request(spec);
    let Task::Generate(task) = &mut request.task else { unreachable!() };
    let room = CONTEXT - spec.prompt.len();
    task.guide = Some(Guide::new(&grammar(form), max_tokens.min(room))?);
    Ok(request)
}

/// The answer when the budget is no matter.
fn at_leisure(spec: &Spec, form: &str) -> Answer {
    let Kind::Generate { sampler, logprobs, .. } = &spec.kind else { unreachable!() };
    let (mut tokens, prompt_len) = (spec.prompt.clone(), spec.prompt.len());
    let mut matcher = grammar(form).matcher().unwrap();
    let (mut mask, mut answer) = (TokenMask::default(), Answer::default());
    while !matcher.is_done() && tokens.len() < CONTEXT {
        matcher.mask(&mut mask).unwrap();
        let raw = logits_after(&tokens);
        let allowed = |id: usize| if mask.allows(id as u32) { raw[id] } else { f32::NEG_INFINITY };
        let masked: Vec<f32> = (0..VOCAB).map(allowed).collect();
        let history = History { tokens: &tokens, prompt_len };
        let id = sampler.sample(&mut Logits::new(&masked), &history, SEED, tokens.len() as u64).unwrap();
        answer.completion += 1;
        if id == END {
            break;
        }
        matcher.accept(id).unwrap();
        tokens.push(id);
        answer.tokens.push(id);
        answer.text += &character(id);
        answer.logprobs.push(logprobs.map(|top| token_logprobs(&raw, id, top).unwrap()));
    }
    answer.reason = Some(FinishReason::Stop);
    answer
}

/// A prompt, a sampler and a form for each number.
fn spec(number: usize, max_tokens: usize) -> (Spec, &'static str) {
    let prompt = prompt(number as u32 % 5 + 1, 1 + number * 7 % 50);
    let mut spec = match number % 4 {
        0 => generate(prompt, max_tokens),
        1 => sampled(prompt, max_tokens, SamplerFields { temperature: Some(0.9), ..Default::default() }),
        2 => {
            let fields = SamplerFields {
                repetition_penalty: Some(1.3),
                logit_bias: Some([(3, 4.0), (20, -2.0)].into()),
                top_k: Some(6),
                ..Default::default()
            };
            sampled(prompt, max_tokens, fields)
        }
        _ => Spec { prompt, ..filtered(Even, max_tokens) },
    };
    let Kind::Generate { stop_ids, logprobs, .. } = &mut spec.kind else { unreachable!() };
    *stop_ids = vec![END];
    if number.is_multiple_of(3) {
        *logprobs = None;
    }
    // The filter that leaves even tokens only can fill few forms.
    let form = if number % 4 == 3 { "[!-G]{3}[!-G]*" } else { FORMS[number % FORMS.len()] };
    (spec, form)
}

#[test]
fn held_answers_are_those_of_a_loop_that_masks() {
    for (setting, pages) in [200, 60, 30, 200, 30].into_iter().enumerate() {
        let draft = (setting > 2).then(|| super::drafting::draft(StateLayout::plain(pages), 5).0);
        let (engine, _) = engine_with(StateLayout::plain(pages), draft, |it| {
            it.prefix_cache = setting != 1;
            it.speculation = setting != 1;
            it.limits = [StepLimits::default(), StepLimits { rows: 5, sequences: 3, logits: 3 }][setting % 2];
        });
        // Twice, so that the second time everything is found; free answers among them.
        for _ in 0..2 {
            let running: Vec<_> = (0..48)
                .map(|number| {
                    let (spec, form) = spec(number, 400);
                    let free = mixed(number);
                    let free = engine.submit(request(&free)).map(|it| (it, free));
                    (engine.submit(held(&spec, form).unwrap()).unwrap(), spec, form, free.ok())
                })
                .collect();
            for (number, (held, spec, form, free)) in running.into_iter().enumerate() {
                let mut expected = at_leisure(&spec, form);
                let found = read(held).unwrap();
                // Brought to its end in the context's last place; how far both go together is checked below.
                if found.reason == Some(FinishReason::Length) {
                    assert!(spec.prompt.len() + found.tokens.len() <= CONTEXT);
                    continue;
                }
                // The end token is not drawn where nothing else may come.
                expected.completion = found.completion;
                assert_eq!(found, expected, "{number}: {form}, {pages} pages");
                if let Some((free, spec)) = free {
                    assert_eq!(read(free).unwrap(), super::expected(&spec), "free {number}");
                }
            }
        }
        assert_idle(&engine);
    }
}

#[test]
fn a_held_answer_is_whole_in_any_budget() {
    let (engine, _) = engine(200, |_| {});
    let mut refused = 0;
    for number in 0..FORMS.len() * 4 {
        let (spec, form) = spec(number * 5, 400);
        let (form, whole) = (form, grammar(form));
        let leisure = at_leisure(&spec, form);
        for max_tokens in 1..45 {
            let mut spec = spec.clone();
            if let Kind::Generate { max_tokens: most, .. } = &mut spec.kind {
                *most = max_tokens;
            }
            let request = match held(&spec, form) {
                Ok(request) => request,
                Err(error) => {
                    assert_eq!(error.kind(), ErrorKind::Constraint);
                    assert!(error.message().contains(&format!("room for {max_tokens};")), "{error}");
                    refused += 1;
                    continue;
                }
            };
            let found = read(engine.submit(request).unwrap()).unwrap();
            let place = format!("{number}: {form} in {max_tokens}: {:?}", found.text);
            let mut matcher = whole.matcher().unwrap();
            for &id in &found.tokens {
                matcher.accept(id).unwrap();
            }
            assert!(matcher.may_stop().unwrap(), "{place}");
            assert!(found.completion <= max_tokens && found.tokens.len() <= found.completion, "{place}");
            if found.reason == Some(FinishReason::Stop) {
                assert_eq!(found.tokens, leisure.tokens, "{place}");
            }
        }
    }
    assert!(refused > 50, "the smallest budgets fit nothing");
    assert_idle(&engine);
}

#[test]
fn forced_tokens_cost_no_steps_of_their_own() {
    let (engine, control) = engine(100, |it| it.speculation = false);
    let steps = |form| {
        let before = control.steps.load(Relaxed);
        let mut spec = generate(prompt(2, 3), 100);
        if let Kind::Generate { stop_ids, .. } = &mut spec.kind {
            *stop_ids = vec![END];
        }
        let found = read(engine.submit(held(&spec, form).unwrap()).unwrap()).unwrap();
        (control.steps.load(Relaxed) - before, found.tokens.len())
    };
    // Nothing to decide: nothing is computed. One decision: the prompt with what comes before it.
    assert_eq!(steps("ABCDEFGABC"), (0, 10));
    assert_eq!(steps("ABCDEFG[0-9]GFEDCBA"), (1, 15));
    assert_eq!(steps("ABCDEFG[0-9]GFEDCBA[0-9]G"), (2, 17));
}

#[test]
fn what_filters_and_bias_leave_nothing_of_ends_alone() {
    let (engine, _) = engine(100, |_| {});
    let bias = (0..VOCAB as u32).filter(|id| id % 2 == 1).map(|id| (id, f64::NEG_INFINITY)).collect();
    let forbids = SamplerFields { logit_bias: Some(bias), ..Default::default() };
    // `B` is odd.
    for spec in [sampled(prompt(1, 9), 9, forbids), filtered(Even, 9)] {
        let bystander = engine.submit(request(&generate(prompt(3, 9), 20))).unwrap();
        // What is forced is not sampled, so no filter sees it: of `D` and `E` the even one is left.
        let found = read(engine.submit(held(&spec, "(AB|CB)[DE]").unwrap()).unwrap()).unwrap();
        assert!(["ABE", "CBE"].contains(&&found.text[..]), "{found:?}");
        let error = read(engine.submit(held(&spec, "[BDF]{3}").unwrap()).unwrap()).unwrap_err();
        assert!(error.to_string().contains("grammar"), "{error}");
        assert_eq!(read(bystander).unwrap(), expected(&generate(prompt(3, 9), 20)));
    }
}

#[test]
fn equal_held_requests_share_one_answer_and_unequal_ones_do_not() {
    let (engine, control) = engine(200, |_| {});
    let gate = control.gate.lock().unwrap();
    let mut spec = generate(prompt(2, 30), 60);
    if let Kind::Generate { stop_ids, .. } = &mut spec.kind {
        *stop_ids = vec![END];
    }
    let running: Vec<_> = [FORMS[0], FORMS[0], FORMS[3], FORMS[0]]
        .iter()
        .map(|form| engine.submit(held(&spec, form).unwrap()).unwrap())
        .chain([engine.submit(request(&spec)).unwrap()])
        .collect();
    drop(gate);
    let texts: Vec<_> = running.into_iter().map(|it| read(it).unwrap().text).collect();
    assert!(texts[0] == texts[1] && texts[0] == texts[3], "{texts:?}");
    assert!(texts[2] != texts[0] && texts[4] != texts[0], "{texts:?}");
    assert_eq!(engine.stats().shared, 2);
}
