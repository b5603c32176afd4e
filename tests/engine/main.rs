//! The engine over a network that is nothing but its memory: see `fake`.
//!
//! Each answer is compared with one that is computed from the tokens alone, with no engine, no pages and no
//! batch. So "equal to its solo run" is the weakest thing that these tests say.

mod counters;
mod crowds;
mod drafting;
mod fake;
mod guided;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::time::{Duration, Instant};

use fake::{HIDDEN, VOCAB, character, engine, engine_of, hidden_after, logits_after, tokenizer};
use tallow::cache::layout::{PagedGroup, StateLayout};
use tallow::cache::prefix_file::Prefix;
use tallow::engine::*;
use tallow::error::{Error, ErrorKind, Result};
use tallow::sample::{
    Filter, History, Logits, Sampler, SamplerFields, TokenLogprob, log_softmax_at, token_logprobs,
};
use tallow::text::stream::TextStream;
use tallow::weights::bytes::Bytes;

// --- A request in plain data, its answer, and what the answer must be ------------------------------------

#[derive(Clone)]
struct Spec {
    prompt: Vec<u32>,
    kind: Kind,
}

#[derive(Clone)]
enum Kind {
    Generate {
        sampler: Sampler,
        max_tokens: usize,
        stop_ids: Vec<u32>,
        stops: Vec<String>,
        logprobs: Option<usize>,
    },
    Logits,
    Embed(Embed),
    Score(Vec<Vec<u32>>),
}

#[derive(Debug, Default, PartialEq)]
struct Answer {
    tokens: Vec<u32>,
    text: String,
    logprobs: Vec<Option<TokenLogprob>>,
    rows: Vec<f32>,
    scores: Vec<Vec<f32>>,
    reason: Option<FinishReason>,
    completion: usize,
}

const SEED: u64 = 11;
const CONTEXT: usize = 200;

fn request(spec: &Spec) -> Request {
    let task = match spec.kind.clone() {
        Kind::Generate { sampler, max_tokens, stop_ids, stops, logprobs } => {
            let text = TextStream::new(tokenizer(), stops);
            let stop_ids = stop_ids.into();
            Task::Generate(Box::new(Generate {
                sampler,
                seed: SEED,
                max_tokens,
                stop_ids,
                text,
                logprobs,
                prediction: Vec::new(),
                guide: None,
            }))
        }
        Kind::Logits => Task::Logits,
        Kind::Embed(embed) => Task::Embed(embed),
        Kind::Score(candidates) => return Request::score(spec.prompt.clone(), candidates),
    };
    Request::new(spec.prompt.clone(), task)
}

impl Answer {
    fn append(&mut self, token: TokenEvent) {
        self.tokens.push(token.id);
        self.text += &token.text;
        self.logprobs.push(token.logprob);
    }

    /// Takes in an event that is no error; true if it was the last.
    fn absorb(&mut self, event: Event) -> bool {
        match event {
            Event::Token(token) => self.append(token),
            Event::Run(tokens) => tokens.into_iter().for_each(|token| self.append(token)),
            Event::Rows(rows) => self.rows.extend(rows),
            Event::Scores(scores) => self.scores = scores,
            Event::Done(finish) => {
                self.text += &finish.text;
                self.reason = Some(finish.reason);
                self.completion = finish.usage.completion_tokens;
                return true;
            }
            Event::Pages(_) | Event::Error(_) => panic!("{event:?}"),
        }
        false
    }
}

/// Reads to the end.
fn read(mut generation: Generation) -> Result<Answer> {
    let mut answer = Answer::default();
    while let Some(event) = generation.wait() {
        match event {
            Event::Error(error) => return Err(error),
            event => drop(answer.absorb(event)),
        }
    }
    Ok(answer)
}

fn ask(engine: &EngineHandle, spec: &Spec) -> Result<Answer> {
    read(engine.submit(request(spec))?)
}

/// The answer, from the tokens alone.
fn expected(spec: &Spec) -> Answer {
    let prompt = &spec.prompt;
    let mut answer = Answer { reason: Some(FinishReason::Stop), ..Answer::default() };
    match &spec.kind {
        Kind::Generate { .. } => return continued(spec),
        Kind::Logits => {
            answer.rows = (1..=prompt.len()).flat_map(|end| logits_after(&prompt[..end])).collect()
        }
        Kind::Embed(embed) => answer.rows = embedding(prompt, embed),
        Kind::Score(candidates) => {
            let score = |ids: &Vec<u32>| -> Vec<f32> {
                let after = |at: usize| logits_after(&[prompt, &ids[..at]].concat());
                (0..ids.len()).map(|at| log_softmax_at(&after(at), ids[at]).unwrap()).collect()
            };
            answer.scores = candidates.iter().map(score).collect();
            answer.completion = candidates.iter().map(Vec::len).sum();
        }
    }
    answer
}

fn embedding(prompt: &[u32], embed: &Embed) -> Vec<f32> {
    let ends = match *embed.pooling {
        [Pooling::Last] => prompt.len()..prompt.len() + 1,
        [Pooling::First] => 1..2,
        _ => 1..prompt.len() + 1,
    };
    let mut sum = [0.0f64; HIDDEN];
    for state in ends.clone().map(|end| hidden_after(&prompt[..end])) {
        sum.iter_mut().zip(state).for_each(|(sum, value)| *sum += f64::from(value));
    }
    let mut scale = 1.0 / ends.len() as f64;
    sum.iter_mut().for_each(|value| *value *= scale);
    let length = sum.iter().map(|value| value * value).sum::<f64>().sqrt();
    scale = if embed.normalize { 1.0 / length } else { 1.0 };
    sum.iter().map(|value| (value * scale) as f32).collect()
}

fn continued(spec: &Spec) -> Answer {
    let Kind::Generate { sampler, max_tokens, stop_ids, stops, logprobs } = &spec.kind else {
        unreachable!()
    };
    let (mut tokens, prompt_len) = (spec.prompt.clone(), spec.prompt.len());
    let mut answer = Answer::default();
    loop {
        let raw = logits_after(&tokens);
        let history = History { tokens: &tokens, prompt_len };
        let id = sampler.sample(&mut Logits::new(&raw), &history, SEED, tokens.len() as u64).unwrap();
        answer.completion += 1;
        if stop_ids.contains(&id) {
            answer.reason = Some(FinishReason::Stop);
            return answer;
        }
        tokens.push(id);
        answer.tokens.push(id);
        answer.text += &character(id);
        answer.logprobs.push(logprobs.map(|top| token_logprobs(&raw, id, top).unwrap()));
        if let Some(at) = stops.iter().filter_map(|stop| answer.text.find(stop)).min() {
            answer.text.truncate(at);
            answer.reason = Some(FinishReason::Stop);
            return answer;
        }
        if answer.completion == *max_tokens || tokens.len() == CONTEXT {
            answer.reason = Some(FinishReason::Length);
            return answer;
        }
    }
}

// --- Small helpers ---------------------------------------------------------------------------------------

fn prompt(seed: u32, len: usize) -> Vec<u32> {
    (0..len as u32)
        .map(|at| (seed.wrapping_mul(2654435761) ^ at.wrapping_mul(40503) ^ at >> 3) % VOCAB as u32)
        .collect()
}

fn generate(prompt: Vec<u32>, max_tokens: usize) -> Spec {
    let sampler = Sampler::greedy();
    let kind = Kind::Generate { sampler, max_tokens, stop_ids: vec![], stops: vec![], logprobs: None };
    Spec { prompt, kind }
}

fn sampled(prompt: Vec<u32>, max_tokens: usize, fields: SamplerFields) -> Spec {
    let sampler = Sampler::new(fields).unwrap();
    let kind = Kind::Generate { sampler, max_tokens, stop_ids: vec![], stops: vec![], logprobs: Some(3) };
    Spec { prompt, kind }
}

fn filtered(filter: impl Filter + 'static, max_tokens: usize) -> Spec {
    let filters: Vec<Arc<dyn Filter>> = vec![Arc::new(filter)];
    sampled(prompt(5, 9), max_tokens, SamplerFields { filters: Some(filters), ..Default::default() })
}

/// One of many kinds of request, all different.
fn mixed(number: usize) -> Spec {
    let prompt = prompt(number as u32 + 1, 1 + number * 7 % 70);
    let embed = |pooling: Pooling| {
        Kind::Embed(Embed { pooling: [pooling].into(), normalize: number.is_multiple_of(2) })
    };
    let kind = match number % 9 {
        0 => Kind::Logits,
        1 => embed(Pooling::Mean),
        2 => embed(Pooling::Last),
        3 => embed(Pooling::First),
        // Some begin alike, with fewer tokens or more than are computed with the prompt.
        4 => {
            let begin = self::prompt(9, number % 3 * 18);
            let candidate = |it: usize| [&begin[..], &self::prompt(it as u32, it * 5)].concat();
            Kind::Score((0..number % 7 + 1).map(candidate).collect())
        }
        5 => {
            let penalty =
                SamplerFields { repetition_penalty: Some(1.4), top_k: Some(9), ..Default::default() };
            return sampled(prompt, 1 + number % 30, penalty);
        }
        6 => {
            let spread = SamplerFields { temperature: Some(0.7), top_p: Some(0.9), ..Default::default() };
            return sampled(prompt, 1 + number % 30, spread);
        }
        7 => return Spec { prompt, ..filtered(Even, 1 + number % 12) },
        _ => return generate(prompt, 1 + number % 40),
    };
    Spec { prompt, kind }
}

/// Waits until `done`, and fails if it takes absurdly long.
fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_micros(200));
    }
}

/// When all is done, all pages are back.
fn assert_idle(engine: &EngineHandle) {
    let idle = |it: Stats| it.running == 0 && it.waiting == 0 && it.requests == it.ended();
    until("idle", || idle(engine.stats()));
    let stats = engine.stats();
    assert_eq!(stats.free_pages + stats.cached_pages, stats.pages, "{stats:?}");
    assert!(!engine.is_closed());
}

/// Forbids odd tokens, on the thread of the caller.
struct Even;

impl Filter for Even {
    fn filter(&self, logits: &mut Logits, _: &History) -> Result<()> {
        assert_ne!(
            std::thread::current().name(),
            Some("tallow-engine"),
            "a user's filter on the engine's thread"
        );
        logits.dense_mut().iter_mut().skip(1).step_by(2).for_each(|value| *value = f32::NEG_INFINITY);
        Ok(())
    }

    fn name(&self) -> &str {
        "even"
    }
}

/// Fails, or panics, at the third token.
struct Broken {
    panics: bool,
}

impl Filter for Broken {
    fn filter(&self, _: &mut Logits, history: &History) -> Result<()> {
        match history.generated().len() {
            2 if self.panics => panic!("a filter of the tests panics"),
            2 => Err(Error::invalid("a filter of the tests fails").with_source(std::fmt::Error)),
            _ => Ok(()),
        }
    }

    fn name(&self) -> &str {
        "broken"
    }
}

// --- The tests -------------------------------------------------------------------------------------------

#[test]
fn every_answer_is_its_own_whoever_is_in_the_batch() {
    // 60 pages are far fewer than all these need together, and 24 rows cut most prompts.
    let (engine, _) = engine(60, |_| {});
    let wrong: Vec<String> = std::thread::scope(|scope| {
        let ask_some = |thread: usize| {
            let engine = engine.clone();
            move || {
                let numbers = (0..16).map(|turn| thread * 16 + turn);
                let check = |number| {
                    let spec = mixed(number);
                    let (found, expected) = (ask(&engine, &spec), expected(&spec));
                    (found.as_ref().ok() != Some(&expected))
                        .then(|| format!("{number}: {found:?}\n  not {expected:?}"))
                };
                numbers.filter_map(check).collect::<Vec<_>>()
            }
        };
        let threads: Vec<_> = (0..16).map(|thread| scope.spawn(ask_some(thread))).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert!(wrong.is_empty(), "{} wrong\n{}", wrong.len(), wrong.join("\n"));
    assert_idle(&engine);
    let stats = engine.stats();
    assert_eq!((stats.requests, stats.completed), (256, 256));
    assert!(stats.largest_batch > 3, "nothing was batched: {stats:?}");
}

#[test]
fn the_limits_of_a_step_change_nothing() {
    for limits in [(1, 1, 1), (3, 2, 2), (16, 4, 16), (17, 4, 5), (512, 64, 64)] {
        let (rows, sequences, logits) = limits;
        let (engine, _) = engine(100, |it| it.limits = StepLimits { rows, sequences, logits });
        let specs: Vec<Spec> = (0..18)
            .map(mixed)
            .filter(|spec| !matches!(&spec.kind, Kind::Generate { sampler, .. } if sampler.needs_caller()))
            .collect();
        let answers: Vec<_> = specs.iter().map(|spec| engine.submit(request(spec)).unwrap()).collect();
        for (number, (spec, answer)) in specs.iter().zip(answers).enumerate() {
            assert_eq!(read(answer).unwrap(), expected(spec), "{number} under {limits:?}");
        }
        assert_idle(&engine);
    }
}

#[test]
fn answers_end_where_they_must() {
    let (engine, _) = engine(60, |_| {});
    let long = expected(&generate(prompt(3, 10), 30));
    let stop = |stop_ids: Vec<u32>, stops: &[&str]| {
        let stops = stops.iter().map(|it| it.to_string()).collect();
        let kind =
            Kind::Generate { sampler: Sampler::greedy(), max_tokens: 30, stop_ids, stops, logprobs: None };
        Spec { prompt: prompt(3, 10), kind }
    };
    let (fifth, two) = (long.tokens[5], &long.text[6..8]);
    let first = long.tokens.iter().position(|&id| id == fifth).unwrap();
    // A stop string that may have begun with the last token: its text is held back to the end.
    let open = format!("{}~", &long.text[28..]);
    // (spec, tokens shown, tokens counted, text, reason)
    let table = [
        ("length", stop(vec![], &[]), 30, 30, &long.text[..], FinishReason::Length),
        ("end token", stop(vec![fifth], &[]), first, first + 1, &long.text[..first], FinishReason::Stop),
        (
            "end token, text held",
            stop(vec![fifth], &[&format!("{}~", &long.text[..first])]),
            first,
            first + 1,
            &long.text[..first],
            FinishReason::Stop,
        ),
        ("stop string", stop(vec![], &[two]), 8, 8, &long.text[..6], FinishReason::Stop),
        ("held to the end", stop(vec![], &[&open]), 30, 30, &long.text[..], FinishReason::Length),
        ("one token", generate(prompt(3, 10), 1), 1, 1, &long.text[..1], FinishReason::Length),
        ("one place left", generate(prompt(4, CONTEXT - 1), 30), 1, 1, "*", FinishReason::Length),
        ("full context", generate(prompt(4, CONTEXT - 7), usize::MAX), 7, 7, "*", FinishReason::Length),
    ];
    for (name, spec, shown, counted, text, reason) in table {
        let found = ask(&engine, &spec).unwrap();
        assert_eq!(
            (found.tokens.len(), found.completion, found.reason),
            (shown, counted, Some(reason)),
            "{name}"
        );
        assert!(text == "*" || found.text == text, "{name}: {:?}, not {text:?}", found.text);
        assert_eq!(found, expected(&spec), "{name}");
    }
    assert_idle(&engine);
}

#[test]
fn bad_requests_are_refused_before_any_work() {
    let (engine, control) = engine(11, |_| {});
    let score = |candidates: Vec<Vec<u32>>| Spec { prompt: prompt(1, 5), kind: Kind::Score(candidates) };
    let logits = |prompt| Spec { prompt, kind: Kind::Logits };
    let bias = SamplerFields { logit_bias: Some([(VOCAB as u32, 1.0)].into()), ..Default::default() };
    let mut many = sampled(prompt(1, 5), 5, SamplerFields::default());
    if let Kind::Generate { logprobs, .. } = &mut many.kind {
        *logprobs = Some(21);
    }
    use ErrorKind::*;
    let table = [
        (generate(vec![], 5), InvalidRequest, "the prompt has no tokens"),
        (generate(vec![1, 2, VOCAB as u32], 5), InvalidRequest, "token 40 at place 2 of the prompt"),
        (generate(prompt(1, 5), 0), InvalidRequest, "max_tokens is 0"),
        (generate(prompt(1, CONTEXT), 5), ContextLength, "the prompt has 200 tokens"),
        (
            generate(prompt(1, CONTEXT + 50), 5),
            ContextLength,
            "has 250 tokens and the context of this model holds 200",
        ),
        (logits(prompt(1, CONTEXT + 1)), ContextLength, "201"),
        (score(vec![vec![1; CONTEXT - 4]]), ContextLength, "with its longest candidate"),
        (score(vec![]), InvalidRequest, "candidates is empty"),
        (score(vec![vec![1], vec![2, 99]]), InvalidRequest, "token 99 at place 1 of the candidate 1"),
        (generate(prompt(1, 100), 90), OutOfMemory, "12 pages"),
        (many, InvalidRequest, "logprobs is 21"),
        (sampled(prompt(1, 5), 5, bias), InvalidRequest, "40"),
    ];
    for (number, (spec, kind, part)) in table.iter().enumerate() {
        let error = engine.submit(request(spec)).err().unwrap_or_else(|| panic!("row {number} was let in"));
        assert_eq!(error.kind(), *kind, "row {number}: {error}");
        assert!(error.message().contains(part), "row {number}: {error}");
    }
    let error = engine.submit(request(&generate(prompt(1, 250), 5))).err().unwrap();
    assert_eq!(error.counts(), Some((250, CONTEXT)));
    assert_eq!(control.steps.load(Relaxed), 0);
    assert_eq!(engine.stats().requests, 0);
    // At the limits they are let in.
    for spec in [generate(prompt(1, 100), 77), logits(prompt(1, 176)), score(vec![vec![]])] {
        assert_eq!(ask(&engine, &spec).unwrap(), expected(&spec));
    }
}

#[test]
fn options_of_zero_are_refused() {
    let control = Default::default();
    for (name, context, queue, rows, pages) in
        [("context", 0, 1, 1, 1), ("queue", 1, 0, 1, 1), ("rows", 1, 1, 0, 1), ("pages", 1, 1, 1, 0)]
    {
        let limits = StepLimits { rows, ..Default::default() };
        let options = EngineOptions { queue, limits, ..EngineOptions::new(context) };
        let started = EngineHandle::start(Box::new(fake::Fake::new(pages, VOCAB, &control)), options);
        assert_eq!(started.err().map(|it| it.kind()), Some(ErrorKind::InvalidRequest), "{name}");
    }
}

#[test]
fn whoever_goes_gives_the_pages_back_and_nobody_else_notices() {
    let (engine, control) = engine(60, |_| {});
    // Slow enough that nothing ends by itself before it is told to.
    control.pace_us.store(20_000, Relaxed);
    let stays = generate(prompt(8, 40), 60);
    let other = engine.submit(request(&stays)).unwrap();

    // In the middle of an answer, and of a prompt; by `cancel`, by dropping, by its deadline.
    let mut cancelled = engine.submit(request(&generate(prompt(1, 3), 190))).unwrap();
    assert!(matches!(cancelled.wait(), Some(Event::Token(_))));
    cancelled.cancel();
    let rest: Vec<Event> = std::iter::from_fn(|| cancelled.wait()).collect();
    let Some(Event::Error(error)) = rest.last() else { panic!("{rest:?}") };
    assert_eq!(error.kind(), ErrorKind::Cancelled);
    assert!(matches!(cancelled.next(Duration::ZERO), Poll::Ended));

    let mut dropped = engine.submit(request(&generate(prompt(2, 3), 190))).unwrap();
    assert!(matches!(dropped.wait(), Some(Event::Token(_))));
    drop(dropped);
    drop(engine.submit(request(&Spec { prompt: prompt(2, 190), kind: Kind::Logits })));
    assert!(engine.stats().completed == 0);
    control.pace_us.store(0, Relaxed);

    let mut late = request(&generate(prompt(3, 150), 40));
    late.deadline = Some(Instant::now());
    let error = read(engine.submit(late).unwrap()).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::Timeout);

    assert_eq!(read(other).unwrap(), expected(&stays));
    assert_idle(&engine);
}

#[test]
fn a_deadline_ends_what_waits_for_others() {
    // Nobody reads `parked`, so its filter never runs; the engine has nothing to do, and wakes for its
    // deadline.
    let (engine, control) = engine(4, |_| {});
    let late = |spec: &Spec, milliseconds| {
        let mut request = request(spec);
        request.deadline = Some(Instant::now() + Duration::from_millis(milliseconds));
        engine.submit(request).unwrap()
    };
    let mut parked = late(&filtered(Even, 50), 60);
    until("the parked request is late", || engine.stats().failed == 1);
    let Some(Event::Error(error)) = parked.wait() else { panic!("no error") };
    assert_eq!(error.kind(), ErrorKind::Timeout);

    // In the queue, behind one that takes all pages.
    control.pace_us.store(20_000, Relaxed);
    let first = generate(prompt(1, 20), 40);
    let first_answer = engine.submit(request(&first)).unwrap();
    let queued = late(&generate(prompt(2, 40), 20), 30);
    assert_eq!(read(queued).unwrap_err().kind(), ErrorKind::Timeout);
    control.pace_us.store(0, Relaxed);
    assert_eq!(read(first_answer).unwrap(), expected(&first));
    assert_idle(&engine);
}

#[test]
fn a_full_queue_refuses_and_a_full_cache_waits() {
    // Each begins with 4 of 9 pages: two run, one waits for pages, and then the queue of two is full at four.
    let (engine, control) = engine(9, |it| it.queue = 2);
    let spec = |number| generate(prompt(number, 60), 4);
    let stand_still = control.gate.lock().unwrap();
    let mut answers = Vec::new();
    for number in 0..2 {
        answers.push(engine.submit(request(&spec(number))).unwrap());
    }
    until("the first step", || engine.stats().waiting < 2);
    let mut refused = 0;
    for number in 2..9 {
        match engine.submit(request(&spec(number))) {
            Ok(answer) => answers.push(answer),
            Err(error) => {
                assert_eq!(error.kind(), ErrorKind::OutOfMemory);
                assert!(error.message().contains("the queue is full: 2 requests"), "{error}");
                refused += 1;
            }
        }
    }
    assert!(refused >= 5, "{refused} refused");
    drop(stand_still);
    let let_in = answers.len();
    for (number, answer) in answers.into_iter().enumerate() {
        assert_eq!(read(answer).unwrap(), expected(&spec(number as u32)), "{number}");
    }
    assert_idle(&engine);
    assert_eq!(engine.stats().completed as usize, let_in);
    assert!(engine.stats().largest_batch <= 2);
}

#[test]
fn the_head_of_the_queue_is_not_passed() {
    let (engine, control) = engine(10, |_| {});
    let stand_still = control.gate.lock().unwrap();
    control.pace_us.store(500, Relaxed);
    // `small` would fit beside `first`, `large` does not: still it does not begin before `large`.
    let specs = [generate(prompt(1, 40), 50), generate(prompt(2, 100), 40), generate(prompt(3, 20), 10)];
    let answers = specs.map(|spec| engine.submit(request(&spec)).unwrap());
    drop(stand_still);
    let [first, large, small] = answers.map(|mut answer| {
        loop {
            if let Event::Done(finish) = answer.wait().unwrap() {
                break finish.timings;
            }
        }
    });
    // The clocks of the three begin at slightly different times.
    let in_work = (first.prefill + first.decode) * 2 / 3;
    assert!(large.queue >= in_work && small.queue >= in_work, "{first:?} {large:?} {small:?}");
    assert_idle(&engine);
}

#[test]
fn a_prompt_is_computed_once_for_all_candidates() {
    for (prompt_len, pages) in [(1, 30), (15, 30), (16, 30), (17, 30), (40, 6), (48, 5)] {
        let (engine, control) = engine(pages, |_| {});
        let candidates: Vec<Vec<u32>> =
            (0..12).map(|it| prompt(it, [0, 1, 2, 9, 17][it as usize % 5])).collect();
        let fed: usize = candidates.iter().map(|ids| ids.len().saturating_sub(1)).sum();
        let spec = Spec { prompt: prompt(77, prompt_len), kind: Kind::Score(candidates) };
        assert_eq!(ask(&engine, &spec).unwrap(), expected(&spec), "prompt of {prompt_len}");
        assert_eq!(control.rows.load(Relaxed), prompt_len + fed, "rows for a prompt of {prompt_len}");
        assert_idle(&engine);
    }
}

#[test]
fn filters_run_on_the_callers_thread_and_fail_alone() {
    let (engine, _) = engine(60, |_| {});
    // While nobody reads `parked`, it waits, and others go on.
    let spec = filtered(Even, 10);
    let parked = engine.submit(request(&spec)).unwrap();
    let other = generate(prompt(1, 30), 30);
    assert_eq!(ask(&engine, &other).unwrap(), expected(&other));
    let answer = read(parked).unwrap();
    assert_eq!(answer, expected(&spec));
    assert!(answer.tokens.iter().all(|id| id % 2 == 0));

    let failing = engine.submit(request(&filtered(Broken { panics: false }, 10))).unwrap();
    let panicking = engine.submit(request(&filtered(Broken { panics: true }, 10))).unwrap();
    let beside = engine.submit(request(&other)).unwrap();
    let error = read(failing).unwrap_err();
    assert!(error.message().contains("a filter of the tests fails"), "{error}");
    assert!(error.source_ref().is_some_and(|it| it.is::<std::fmt::Error>()), "its source is lost");
    let error = read(panicking).unwrap_err();
    assert!(error.message().contains("a filter of the tests panics"), "{error}");
    assert_eq!(read(beside).unwrap(), expected(&other));
    assert_idle(&engine);
}

#[test]
fn a_failing_step_ends_the_requests_in_it_alone() {
    let (engine, control) = engine(60, |it| it.limits.sequences = 1);
    for garble in [false, true] {
        let stand_still = control.gate.lock().unwrap();
        // One sequence a step: the second request is in the queue while the first one fails.
        let bad = engine.submit(request(&generate(vec![1, 39, 1], 5))).unwrap();
        let good = Spec { prompt: vec![1, 2, 1], kind: Kind::Logits };
        let beside = engine.submit(request(&good)).unwrap();
        (if garble { &control.garble_on } else { &control.fail_on }).store(39, Relaxed);
        drop(stand_still);
        let error = read(bad).unwrap_err();
        assert_eq!(
            error.kind(),
            if garble { ErrorKind::Internal } else { ErrorKind::OutOfMemory },
            "{error}"
        );
        assert_eq!(read(beside).unwrap(), expected(&good));
        control.fail_on.store(0, Relaxed);
    }
    assert_idle(&engine);
}

#[test]
fn a_panic_ends_all_requests_and_never_hangs() {
    let (engine, control) = engine(11, |_| {});
    let stand_still = control.gate.lock().unwrap();
    let specs = [generate(vec![1, 39, 1], 40), generate(prompt(1, 100), 40), generate(prompt(2, 100), 40)];
    let answers = specs.map(|spec| engine.submit(request(&spec)).unwrap());
    control.panic_on.store(39, Relaxed);
    drop(stand_still);
    for answer in answers {
        let error = read(answer).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal);
        assert!(error.message().contains("the token that it panics on"), "{error}");
    }
    let error = engine.submit(request(&generate(vec![1], 1))).err().unwrap();
    assert!(error.message().contains("the engine stopped"), "{error}");
    assert!(engine.is_closed());
    engine.close();
}

#[test]
fn closing_ends_everything_that_is_there() {
    for drop_it in [false, true] {
        let (engine, control) = engine(11, |_| {});
        let stand_still = control.gate.lock().unwrap();
        // Slow enough that none of the 60 steps' answers is complete before the close that follows the gate.
        control.pace_us.store(50_000, Relaxed);
        let submit = |number| engine.submit(request(&generate(prompt(number, 100), 60))).unwrap();
        let answers = [submit(0), submit(1), submit(2)];
        let closing = std::thread::spawn({
            let engine = engine.clone();
            move || if drop_it { drop(engine) } else { engine.close() }
        });
        if drop_it {
            closing.join().unwrap();
            drop(stand_still);
            drop(engine);
        } else {
            until("closed", || engine.is_closed());
            let error = engine.submit(request(&generate(vec![1], 1))).err().unwrap();
            assert_eq!(error.kind(), ErrorKind::Cancelled);
            drop(stand_still);
            closing.join().unwrap();
            assert_eq!(engine.stats().free_pages + engine.stats().cached_pages, engine.stats().pages);
            engine.close();
        }
        for answer in answers {
            assert_eq!(read(answer).unwrap_err().kind(), ErrorKind::Cancelled);
        }
    }
}

#[test]
fn answers_run_ahead_of_a_slow_reader_and_notifiers_are_called() {
    let (engine, _) = engine(60, |_| {});
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let notify: Notify = Arc::new(move |_| {
        count.fetch_add(1, Relaxed);
        panic!("a notifier of the tests panics");
    });
    let spec = generate(prompt(1, 20), 50);
    let quiet = engine.submit_with(request(&spec), Some(notify)).unwrap();
    let mut slow = engine.submit(request(&spec)).unwrap();
    // Nobody reads, and yet both come to their end.
    until("both have ended", || engine.stats().completed == 2);
    assert_idle(&engine);
    assert_eq!(calls.load(Relaxed), 1, "a notifier that panicked is not called again");
    let begin = Instant::now();
    assert!(matches!(slow.next(Duration::ZERO), Poll::Event(Event::Token(_))));
    assert!(begin.elapsed() < Duration::from_secs(2));
    assert_eq!(read(quiet).unwrap(), expected(&spec));
    let mut pending = engine.submit(request(&filtered(Even, 2))).unwrap();
    until("it ends", || {
        !matches!(pending.next(Duration::from_millis(1)), Poll::Pending | Poll::Event(Event::Token(_)))
    });
    assert!(matches!(pending.next(Duration::ZERO), Poll::Ended));
}

/// A text that is not cut sees all of itself; one that could be continued would change under what it has
/// said.
#[test]
fn texts_of_a_bidirectional_model_are_computed_whole_and_leave_nothing_behind() {
    let (engine, control) = engine(60, |options| options.causal = false);
    let stand_still = control.gate.lock().unwrap();
    let specs: Vec<Spec> = (0..40)
        .map(|number| {
            // Most begin alike, some are longer than a step; the last ones are short.
            let (common, own) = if number < 30 { (number % 4 * 16, 1 + number * 37 % 90) } else { (0, 3) };
            let pooling = [Pooling::Mean, Pooling::Last, Pooling::First][number % 3];
            let embed = Kind::Embed(Embed { pooling: [pooling].into(), normalize: true });
            let kind = if number % 5 == 4 { Kind::Logits } else { embed };
            Spec { prompt: [prompt(3, common), prompt(number as u32, own)].concat(), kind }
        })
        .collect();
    let answers: Vec<_> = specs.iter().map(|spec| engine.submit(request(spec)).unwrap()).collect();
    drop(stand_still);
    for (number, (answer, spec)) in answers.into_iter().zip(&specs).enumerate() {
        assert_eq!(read(answer).unwrap(), expected(spec), "{number}");
    }
    assert_idle(&engine);
    assert_eq!(control.cut.load(Relaxed), 0, "a text was cut");
    assert_eq!(engine.stats().cached_pages, 0);
    let steps = control.steps.load(Relaxed);
    assert!(steps < specs.len(), "short texts share a step: {steps} steps");
    let score = Spec { prompt: vec![1], kind: Kind::Score(vec![vec![2, 3]]) };
    for spec in [generate(vec![1, 2], 3), score] {
        let error = engine.submit(request(&spec)).err().unwrap();
        assert_eq!(error.kind(), ErrorKind::InvalidRequest);
        assert!(error.message().contains("embed"), "{error}");
    }
}

// --- What is computed once -------------------------------------------------------------------------------

/// Prompts of `common` equal tokens and `own` different ones, and answers of `max_tokens`.
fn family(count: u32, common: usize, own: usize, max_tokens: usize) -> Vec<Spec> {
    let common = prompt(77, common);
    (0..count).map(|it| generate([common.clone(), prompt(it * 3 + 1, own)].concat(), max_tokens)).collect()
}

/// Submits all while the network stands still, then reads and compares them.
fn burst(engine: &EngineHandle, control: &fake::Control, specs: &[Spec]) -> Stats {
    let before = engine.stats();
    let stand_still = control.gate.lock().unwrap();
    let answers: Vec<_> = specs.iter().map(|spec| engine.submit(request(spec)).unwrap()).collect();
    drop(stand_still);
    for (number, (answer, spec)) in answers.into_iter().zip(specs).enumerate() {
        assert_eq!(read(answer).unwrap(), expected(spec), "{number}");
    }
    assert_idle(engine);
    let mut stats = engine.stats();
    stats.computed_tokens -= before.computed_tokens;
    stats.cached_tokens -= before.cached_tokens;
    stats.completion_tokens -= before.completion_tokens;
    stats
}

#[test]
fn a_cold_burst_computes_what_is_common_once() {
    // requests, common tokens, own tokens, rows a step
    for (count, common, own, rows) in
        [(32, 100, 9, 24), (32, 100, 9, 512), (2, 16, 1, 7), (5, 31, 3, 24), (16, 0, 40, 24), (3, 64, 1, 3)]
    {
        let (engine, control) = engine(600, |it| {
            it.limits.rows = rows;
            it.limits.sequences = 40;
            it.speculation = false;
        });
        let specs = family(count, common, own, 3);
        let stats = burst(&engine, &control, &specs);
        // The last of the three tokens is never fed back.
        let answers = 2 * count as usize;
        let ideal = common + own * count as usize + answers;
        let page = tallow::step::PAGE * count as usize;
        let computed = stats.computed_tokens as usize;
        assert!(
            (ideal..=ideal + page).contains(&computed),
            "{count} {common} {own}: {computed}, ideal {ideal}"
        );
        assert_eq!(computed + stats.cached_tokens as usize, (common + own) * count as usize + answers);

        // Once more, warm: nothing common is computed, whoever asks and in whatever order.
        let warm = burst(&engine, &control, &specs.into_iter().rev().collect::<Vec<_>>());
        assert!(warm.computed_tokens as usize <= page + answers, "{count} {common} {own}: {warm:?}");
    }
}

#[test]
fn without_the_prefix_cache_everything_is_computed() {
    let (engine, control) = engine(600, |it| (it.prefix_cache, it.speculation) = (false, false));
    let specs = family(8, 64, 5, 3);
    for _ in 0..2 {
        let stats = burst(&engine, &control, &specs);
        assert_eq!((stats.computed_tokens, stats.cached_tokens, stats.cached_pages), (8 * 71, 0, 0));
    }
}

#[test]
fn who_waits_for_another_goes_on_when_that_one_goes() {
    let (engine, control) = engine(100, |_| {});
    let specs = family(4, 120, 3, 5);
    for gone in 0..3 {
        let stand_still = control.gate.lock().unwrap();
        control.pace_us.store(2000, Relaxed);
        let mut answers: Vec<_> =
            specs.iter().map(|spec| Some(engine.submit(request(spec)).unwrap())).collect();
        drop(stand_still);
        // The first ones leave in the middle of the prompt that the others wait for.
        let steps = control.steps.load(Relaxed) + 2;
        until("two steps", || control.steps.load(Relaxed) >= steps);
        answers[..gone].iter_mut().for_each(|answer| drop(answer.take()));
        for (answer, spec) in answers.into_iter().zip(&specs).skip(gone) {
            assert_eq!(read(answer.unwrap()).unwrap(), expected(spec), "{gone}");
        }
        assert_idle(&engine);
    }
}

#[test]
fn when_pages_run_out_the_youngest_begins_again_and_nobody_can_tell() {
    // Six answers that will each need 9 pages, 19 pages in all.
    for prefix_cache in [true, false] {
        let (engine, control) = engine(19, |it| it.prefix_cache = prefix_cache);
        let spread = SamplerFields { temperature: Some(0.9), ..Default::default() };
        let penalty = SamplerFields { repetition_penalty: Some(1.3), ..Default::default() };
        let mut specs: Vec<Spec> = (0..4).map(|it| sampled(prompt(it, 20), 115, spread.clone())).collect();
        specs.push(generate(prompt(8, 20), 115));
        specs.push(sampled(prompt(9, 20), 115, penalty));
        let stats = burst(&engine, &control, &specs);
        assert!(stats.preempted > 0, "{stats:?}");
        let usage = specs.iter().map(|spec| spec.prompt.len() as u64).sum::<u64>();
        assert_eq!(stats.prompt_tokens, usage);
        assert!(stats.cached_tokens <= usage, "what is computed again is no cached prompt: {stats:?}");
    }
}

#[test]
fn a_parked_request_gives_its_pages_to_others_and_takes_up_where_it_was() {
    let (engine, _) = engine(8, |_| {});
    let mut spec = filtered(Even, 60);
    spec.prompt = prompt(2, 40);
    // `first` is older, so that `parked` is preempted while nobody reads it.
    let first = generate(prompt(1, 20), 100);
    let first_answer = engine.submit(request(&first)).unwrap();
    let parked = engine.submit(request(&spec)).unwrap();
    until("the first has ended", || engine.stats().completed == 1);
    assert_eq!(read(first_answer).unwrap(), expected(&first));
    assert_eq!(read(parked).unwrap(), expected(&spec));
    assert_idle(&engine);
}

#[test]
fn equal_requests_are_computed_once() {
    let (engine, control) = engine(60, |it| it.speculation = false);
    let spread = SamplerFields { temperature: Some(0.9), ..Default::default() };
    // Greedy, and sampled with one seed; the prompts differ, or the second would be found in the cache.
    let specs = [generate(prompt(4, 50), 30), sampled(prompt(5, 50), 30, spread)];
    for (number, spec) in specs.iter().enumerate() {
        let stats = burst(&engine, &control, &vec![spec.clone(); 12]);
        assert_eq!((stats.computed_tokens, stats.completion_tokens), (79, 30), "{number}");
        assert_eq!(stats.shared as usize, 11 * (number + 1));
    }
}

#[test]
fn who_joins_late_hears_it_all_and_who_leaves_takes_nobody_along() {
    let (engine, control) = engine(60, |_| {});
    control.pace_us.store(3000, Relaxed);
    let spec = generate(prompt(4, 10), 60);
    let mut first = engine.submit(request(&spec)).unwrap();
    for _ in 0..5 {
        assert!(matches!(first.wait(), Some(Event::Token(_))));
    }
    let second = engine.submit(request(&spec)).unwrap();
    let mut late = request(&spec);
    late.deadline = Some(Instant::now() + Duration::from_millis(10));
    let late = engine.submit(late).unwrap();
    // Other questions are other answers.
    let longer = generate(prompt(4, 10), 61);
    let other = engine.submit(request(&longer)).unwrap();
    drop(first);
    assert_eq!(read(late).unwrap_err().kind(), ErrorKind::Timeout);
    control.pace_us.store(0, Relaxed);
    assert_eq!(read(second).unwrap(), expected(&spec));
    assert_eq!(read(other).unwrap(), expected(&longer));
    assert_idle(&engine);
    assert_eq!(engine.stats().shared, 2);
}

#[test]
fn a_prefix_goes_to_another_engine() {
    let prefix = || prompt(77, 64);
    let ask = |engine: &EngineHandle, own| {
        let spec = generate([prefix(), prompt(own, 5)].concat(), 4);
        assert_eq!(ask(engine, &spec).unwrap(), expected(&spec));
        engine.stats().cached_tokens
    };
    let saved = |engine: &EngineHandle| {
        let mut saving = engine.submit(Request::new(prefix(), Task::Pages)).unwrap();
        let Some(Event::Pages(pages)) = saving.wait() else { panic!("no pages") };
        pages
    };
    let (first, _) = engine(20, |_| {});
    // Computed for it, and found.
    let pages = saved(&first);
    ask(&first, 1);
    assert_eq!(saved(&first), pages);
    let import = |engine: &EngineHandle| {
        engine.import(Prefix { tokens: prefix(), bytes: Bytes::from_vec(pages.clone()) }, None)
    };
    let (second, _) = engine(20, |_| {});
    // Twice is the same as once.
    import(&second).unwrap();
    import(&second).unwrap();
    assert_eq!(second.stats().cached_pages, 4);
    assert_eq!(ask(&second, 2), 64);
    assert_eq!(saved(&second), pages);
    assert_idle(&second);

    let (small, _) = engine(3, |_| {});
    assert_eq!(import(&small).unwrap_err().kind(), ErrorKind::OutOfMemory);
    assert_idle(&small);
    let spec = generate(prompt(1, 30), 8);
    assert_eq!(read(small.submit(request(&spec)).unwrap()).unwrap(), expected(&spec));
    small.close();
    assert_eq!(import(&small).unwrap_err().kind(), ErrorKind::Cancelled);
}

// --- Drafts ----------------------------------------------------------------------------------------------

/// Answers out of two tokens, so that every pair has been there before and half of the guesses are right.
fn repetitive(prompt: Vec<u32>, max_tokens: usize, fields: SamplerFields) -> Spec {
    let logit_bias = Some(vec![(3, 90.0), (4, 90.0)].into_iter().collect());
    sampled(prompt, max_tokens, SamplerFields { logit_bias, ..fields })
}

#[test]
fn drafts_change_nothing_but_the_number_of_steps() {
    let greedy = SamplerFields { temperature: Some(0.0), ..Default::default() };
    let spread = SamplerFields { temperature: Some(0.9), ..Default::default() };
    let mut specs: Vec<Spec> = [1, 15, 16, 17, 40]
        .iter()
        .flat_map(|&len| [(len, greedy.clone()), (len, spread.clone())])
        .map(|(len, fields)| repetitive(prompt(len as u32, len), 90, fields))
        .collect();
    // A stop string, an end token and the context end an answer in the middle of a draft as well.
    for (number, spec) in specs.iter_mut().enumerate() {
        let Kind::Generate { stops, stop_ids, max_tokens, .. } = &mut spec.kind else { continue };
        match number % 4 {
            1 => *stops = vec!["$$%%$".into()],
            2 => *max_tokens = 1000,
            3 => *stop_ids = vec![4],
            _ => {}
        }
    }
    // The last two: a window that gives pages back, and recurrent state that goes back to the last right
    // token.
    let of = |window, pages, slots| {
        let paged = [None].into_iter().chain(window).map(|window| PagedGroup { window }).collect();
        StateLayout { paged, pages, slots }
    };
    for (alone, layout, rows) in [
        (true, StateLayout::plain(200), 512),
        (false, StateLayout::plain(200), 512),
        (false, StateLayout::plain(30), 24),
        (true, StateLayout::plain(14), 3),
        (false, of(Some(Some(20)), 400, 0), 512),
        (true, of(None, 200, 200), 512),
        (false, of(Some(Some(9)), 400, 60), 512),
    ] {
        for speculation in [true, false] {
            let (engine, control) = engine_of(layout.clone(), |it| {
                it.speculation = speculation;
                it.limits.rows = rows;
            });
            control.pace_us.store(300, Relaxed);
            let bursts: Vec<&[Spec]> = if alone { specs.chunks(1).collect() } else { vec![&specs] };
            for specs in bursts {
                burst(&engine, &control, specs);
            }
            let stats = engine.stats();
            if speculation && rows > 3 {
                assert!(stats.accepted > 60 && stats.drafted < 8 * stats.accepted, "{stats:?}");
                assert!(stats.steps + stats.accepted / 16 < stats.completion_tokens, "{stats:?}");
            } else if !speculation {
                assert_eq!(stats.drafted, 0);
            }
        }
    }
}

#[test]
fn a_prediction_that_comes_true_saves_steps_and_another_changes_nothing() {
    let spec = generate(prompt(4, 30), 60);
    let truth = expected(&spec);
    for (prediction, saves) in [(truth.tokens.clone(), true), (prompt(99, 200), false)] {
        let (engine, control) = engine(200, |it| it.limits.rows = 512);
        control.pace_us.store(500, Relaxed);
        // The engine must have seen what a step costs.
        read(engine.submit(request(&generate(prompt(1, 30), 20))).unwrap()).unwrap();
        let steps = engine.stats().steps;
        let mut request = request(&spec);
        let Task::Generate(task) = &mut request.task else { unreachable!() };
        task.prediction = prediction;
        assert_eq!(read(engine.submit(request).unwrap()).unwrap(), truth);
        let steps = engine.stats().steps - steps;
        assert!(if saves { steps < 40 } else { steps > 40 }, "{steps} steps, saves: {saves}");
    }
}

/// What the engine itself costs: `cargo test --profile fast --test engine -- --ignored --nocapture overhead`.
#[test]
#[ignore = "prints figures"]
fn overhead() {
    for batch in [1usize, 8, 32] {
        let (engine, control) = engine(2000, |it| {
            it.context_length = 4096;
            it.limits = StepLimits::default();
        });
        let begin = Instant::now();
        let answers: Vec<_> = (0..batch as u32)
            .map(|number| engine.submit(request(&generate(prompt(number, 4), 800))).unwrap())
            .collect();
        answers.into_iter().for_each(|answer| drop(read(answer)));
        let (stats, wall) = (engine.stats(), begin.elapsed().as_secs_f64() * 1e6);
        let a_step = |us: f64| us / stats.steps as f64;
        let network = control.spent_ns.load(Relaxed) as f64 / 1e3;
        let busy = stats.busy.as_secs_f64() * 1e6;
        println!(
            "batch {batch}: {:.1} us a step in the network, {:.1} beside it in the step, {:.1} in all by the clock",
            a_step(network),
            a_step(busy - network),
            a_step(wall)
        );
    }
}
