//! Sampling against three witnesses: transformers' processors (golden file), a naive implementation that
//! sorts everything in f64 (below), and statistics of many draws.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use serde_json::Value;
use tallow::error::{Error, ErrorKind, Result};
use tallow::sample::sampler::argmax;
use tallow::sample::{Filter, History, Logits, Sampler, SamplerFields, log_softmax_at, rng, token_logprobs};

const OUT: f32 = f32::NEG_INFINITY;

/// Random numbers for the tests: the generator under test, on a seed of its own.
struct Random(u64);

impl Random {
    fn uniform(&mut self) -> f64 {
        self.0 += 1;
        rng::uniform(0x7e57, self.0)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.uniform() * n as f64) as usize
    }

    fn normal(&mut self) -> f64 {
        (-2.0 * (1.0 - self.uniform()).ln()).sqrt() * (std::f64::consts::TAU * self.uniform()).cos()
    }

    fn row(&mut self, vocab: usize, spread: f64) -> Vec<f32> {
        (0..vocab).map(|_| (self.normal() * spread) as f32).collect()
    }
}

fn sampler(fields: SamplerFields) -> Sampler {
    Sampler::new(fields).unwrap()
}

/// The distribution that a sampler draws from: `(id, probability)`, in order of id.
fn distribution(sampler: &Sampler, row: &[f32], history: &History) -> Result<Vec<(u32, f64)>> {
    let mut logits = Logits::new(row);
    sampler.prepare(&mut logits, history, None)?;
    sampler.run_filters(&mut logits, history)?;
    sampler.narrow(&mut logits)?;
    Ok(softmax(&logits.iter().collect::<Vec<_>>()))
}

// === The naive implementation ===

fn softmax(logits: &[(u32, f32)]) -> Vec<(u32, f64)> {
    let max = logits.iter().fold(OUT, |max, &(_, value)| max.max(value));
    let weight = |value: f32| (f64::from(value) - f64::from(max)).exp();
    let total: f64 = logits.iter().map(|&(_, value)| weight(value)).sum();
    logits.iter().map(|&(id, value)| (id, weight(value) / total)).collect()
}

/// Keeps the smallest set, in ascending order of `badness` then id, that reaches `mass`.
fn smallest(p: Vec<(u32, f64)>, mass: f64, badness: impl Fn(f64) -> f64) -> Vec<u32> {
    let mut order = p;
    order.sort_by(|a, b| badness(a.1).total_cmp(&badness(b.1)).then(a.0.cmp(&b.0)));
    let mut sum = 0.0;
    let mut kept = Vec::new();
    for (id, p) in order {
        if p > 0.0 && (kept.is_empty() || sum < mass) {
            kept.push(id);
            sum += p;
        }
    }
    kept
}

/// The module's table, line by line.
fn naive(fields: &SamplerFields, row: &[f32], history: &History) -> Vec<(u32, f64)> {
    let mut row = row.to_vec();
    for (&id, &bias) in fields.logit_bias.iter().flatten() {
        row[id as usize] += bias as f32;
    }
    for (id, value) in row.iter_mut().enumerate() {
        let count = |tokens: &[u32]| tokens.iter().filter(|&&token| token == id as u32).count() as f64;
        let penalty = fields.repetition_penalty.unwrap_or(1.0) as f32;
        if count(history.tokens) > 0.0 {
            *value = if *value > 0.0 { *value / penalty } else { *value * penalty };
        }
        let n = count(history.generated());
        let presence = if n > 0.0 { fields.presence_penalty.unwrap_or(0.0) } else { 0.0 };
        *value -= (fields.frequency_penalty.unwrap_or(0.0) * n + presence) as f32;
    }
    let t = fields.temperature.unwrap_or(1.0);
    let mut left: Vec<(u32, f32)> =
        row.iter().enumerate().map(|(id, &value)| (id as u32, (f64::from(value) / t) as f32)).collect();
    left.retain(|&(_, value)| value > OUT);
    let keep = |left: &mut Vec<(u32, f32)>, kept: Vec<u32>| left.retain(|(id, _)| kept.contains(id));
    if let Some(k) = fields.top_k {
        let mut order = left.clone();
        order.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
        keep(&mut left, order.iter().take(k).map(|&(id, _)| id).collect());
    }
    if let Some(mass) = fields.top_p {
        let kept = smallest(softmax(&left), mass, |p| -p);
        keep(&mut left, kept);
    }
    if let Some(min) = fields.min_p {
        let p = softmax(&left);
        let best = p.iter().fold(0.0, |best: f64, &(_, p)| best.max(p));
        keep(
            &mut left,
            p.iter().filter(|(_, p)| *p >= min * best * (1.0 - 1e-12)).map(|&(id, _)| id).collect(),
        );
    }
    if let Some(mass) = fields.typical_p {
        let p = softmax(&left);
        let entropy: f64 = p.iter().filter(|(_, p)| *p > 0.0).map(|(_, p)| -p * p.ln()).sum();
        keep(&mut left, smallest(p, mass, |p| (-p.ln() - entropy).abs()));
    }
    softmax(&left)
}

/// Whether two distributions hold the same tokens with the same probabilities.
fn same(a: &[(u32, f64)], b: &[(u32, f64)]) -> bool {
    let a: Vec<_> = a.iter().filter(|(_, p)| *p > 0.0).collect();
    a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.0 == b.0 && (a.1 - b.1).abs() < 2e-6)
}

// === Distributions ===

#[test]
fn agrees_with_transformers() {
    let golden: Value = serde_json::from_str(include_str!("golden/sample/transformers.json")).unwrap();
    let cases = golden["cases"].as_array().unwrap();
    assert_eq!(cases.len(), 80);
    let mut failed = Vec::new();
    for case in cases {
        let row = &golden["rows"][case["row"].as_u64().unwrap() as usize];
        let logits: Vec<f32> = floats(&row["logits"]).iter().map(|&value| value as f32).collect();
        let history: Vec<u32> = floats(&row["history"]).iter().map(|&value| value as u32).collect();
        let history = History { tokens: &history, prompt_len: 20 };
        let ours = distribution(&sampler(fields_of(&case["arguments"])), &logits, &history).unwrap();
        let ids: Vec<f64> = ours.iter().map(|&(id, _)| f64::from(id)).collect();
        let off = ours
            .iter()
            .zip(floats(&case["logprobs"]))
            .map(|(o, g)| (o.1.ln() - g).abs() / g.abs().max(1.0))
            .fold(0.0, f64::max);
        if ids != floats(&case["kept"]) || off > 1e-5 {
            failed.push(format!("row {} {}: off by {off:e}, kept {ids:?}", case["row"], case["arguments"]));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

fn floats(value: &Value) -> Vec<f64> {
    value.as_array().unwrap().iter().map(|number| number.as_f64().unwrap()).collect()
}

fn fields_of(arguments: &Value) -> SamplerFields {
    let number = |name: &str| arguments[name].as_f64();
    let bias = arguments["logit_bias"].as_object();
    SamplerFields {
        temperature: number("temperature"),
        top_k: number("top_k").map(|k| k as usize),
        top_p: number("top_p"),
        min_p: number("min_p"),
        typical_p: number("typical_p"),
        repetition_penalty: number("repetition_penalty"),
        logit_bias: bias
            .map(|map| map.iter().map(|(id, b)| (id.parse().unwrap(), b.as_f64().unwrap())).collect()),
        ..Default::default()
    }
}

#[test]
fn agrees_with_the_naive_implementation() {
    let mut random = Random(0);
    let mut failed = Vec::new();
    for round in 0..4000 {
        let vocab = 1 + random.below(if round % 10 == 0 { 3000 } else { 90 });
        let spread = [0.01, 1.0, 4.0, 20.0][random.below(4)];
        let mut row = random.row(vocab, spread);
        if random.below(2) == 0 {
            // Multiples of a half: ties everywhere, also of the best.
            row.iter_mut().for_each(|value| *value = (*value * 2.0).round() / 2.0);
        }
        for _ in 0..random.below(3) * vocab / 4 {
            row[random.below(vocab)] = OUT;
        }
        row[random.below(vocab)] = 0.25;
        let tokens: Vec<u32> = (0..random.below(40)).map(|_| random.below(vocab) as u32).collect();
        let history = History { tokens: &tokens, prompt_len: random.below(tokens.len() + 1) };
        let fields = random_fields(&mut random, vocab);
        let ours = distribution(&sampler(fields.clone()), &row, &history).unwrap();
        if !same(&ours, &naive(&fields, &row, &history)) {
            failed.push(format!("round {round}: vocab {vocab}, spread {spread}, {fields}"));
        }
    }
    assert!(failed.is_empty(), "{} differ:\n{}", failed.len(), failed.join("\n"));
}

/// Each field with even odds, but for typical_p: two tokens on either side of the entropy can be equally far
/// from it but for rounding, so that one has a test of its own, on rows without ties.
fn random_fields(random: &mut Random, vocab: usize) -> SamplerFields {
    let mut maybe = |value: &mut dyn FnMut(&mut Random) -> f64| (random.below(2) == 0).then(|| value(random));
    let mut share = |random: &mut Random| 0.001 + 0.998 * random.uniform();
    let mut wide = |random: &mut Random| 4.0 * random.uniform() - 2.0;
    SamplerFields {
        temperature: maybe(&mut |random| [0.3, 1.0, 2.0, 7.0][random.below(4)]),
        top_k: maybe(&mut |random| 1.0 + random.below(vocab + 5) as f64).map(|k| k as usize),
        top_p: maybe(&mut share),
        min_p: maybe(&mut |random| 0.3 * random.uniform()),
        repetition_penalty: maybe(&mut |random| 0.5 + random.uniform()),
        frequency_penalty: maybe(&mut wide),
        presence_penalty: maybe(&mut wide),
        logit_bias: maybe(&mut wide).map(|bias| BTreeMap::from([(0, bias), (vocab as u32 - 1, 1.5)])),
        ..Default::default()
    }
}

#[test]
fn typical_agrees_with_the_naive_implementation() {
    let mut random = Random(1 << 32);
    let mut failed = Vec::new();
    for round in 0..1000 {
        let vocab = 1 + random.below(if round % 10 == 0 { 3000 } else { 90 });
        let spread = [0.5, 2.0, 6.0][random.below(3)];
        let row = random.row(vocab, spread);
        let p = 0.01 + 0.98 * random.uniform();
        let fields = SamplerFields { typical_p: Some(p), ..Default::default() };
        let ours = distribution(&sampler(fields.clone()), &row, &History::default()).unwrap();
        if !same(&ours, &naive(&fields, &row, &History::default())) {
            failed.push(format!("round {round}: vocab {vocab}, typical_p {p}"));
        }
    }
    assert!(failed.is_empty(), "{} differ:\n{}", failed.len(), failed.join("\n"));
}

/// The shapes that selection could trip over, at the size of a large vocabulary.
#[test]
fn selection_over_a_large_vocabulary() {
    const VOCAB: usize = 262_144;
    let mut random = Random(2 << 32);
    let rows: [(&str, Vec<f32>); 5] = [
        ("normal", random.row(VOCAB, 3.0)),
        ("ascending", (0..VOCAB).map(|id| id as f32 / 20_000.0).collect()),
        ("all equal", vec![1.0; VOCAB]),
        ("nearly equal", (0..VOCAB).map(|id| (id * 7919 % VOCAB) as f32 * 1e-8).collect()),
        ("few steps", (0..VOCAB).map(|id| (id % 3) as f32).collect()),
    ];
    for (name, row) in &rows {
        let all: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
        let mut order = softmax(&all);
        order.sort_by(|a, b| row[b.0 as usize].total_cmp(&row[a.0 as usize]).then(a.0.cmp(&b.0)));
        for k in [1, 40, 5000, VOCAB - 1, VOCAB] {
            let fields = SamplerFields { top_k: Some(k), ..Default::default() };
            let kept = distribution(&sampler(fields), row, &History::default()).unwrap();
            let mut want: Vec<u32> = order.iter().take(k).map(|&(id, _)| id).collect();
            want.sort_unstable();
            assert!(kept.iter().map(|&(id, _)| id).eq(want), "{name}, top_k {k}");
        }
        for p in [0.1, 0.9, 0.999] {
            let mut sum = 0.0;
            let want = 1 + order
                .iter()
                .take_while(|(_, weight)| {
                    sum += weight;
                    sum < p
                })
                .count();
            for (what, fields) in [
                ("top_p", SamplerFields { top_p: Some(p), ..Default::default() }),
                ("typical_p", SamplerFields { typical_p: Some(p), ..Default::default() }),
            ] {
                let kept = distribution(&sampler(fields), row, &History::default()).unwrap();
                let mass: f64 = kept.iter().map(|(id, _)| f64::from(row[*id as usize]).exp()).sum::<f64>()
                    / row.iter().map(|&value| f64::from(value).exp()).sum::<f64>();
                assert!(mass > p - 1e-6, "{name}, {what} {p}: mass {mass}");
                let tokens = kept.len() as f64 / want as f64;
                assert!(
                    what == "typical_p" || (tokens - 1.0).abs() < 1e-3,
                    "{name}, {what} {p}: {} of {want}",
                    kept.len()
                );
            }
        }
    }
}

// === Statistics ===

#[test]
fn draws_follow_the_distribution() {
    let row = [1.2, -0.3, 0.9, 2.4, -5.0, 2.4, 0.0, 1.7, OUT, -1.1];
    let fields = SamplerFields::default;
    let rows = [
        ("plain", fields()),
        ("cold", SamplerFields { temperature: Some(0.4), ..fields() }),
        ("hot", SamplerFields { temperature: Some(3.0), ..fields() }),
        ("top_k", SamplerFields { top_k: Some(4), ..fields() }),
        ("top_p", SamplerFields { top_p: Some(0.8), ..fields() }),
        ("min_p", SamplerFields { min_p: Some(0.2), ..fields() }),
        ("typical_p", SamplerFields { typical_p: Some(0.6), ..fields() }),
        (
            "bias",
            SamplerFields {
                logit_bias: Some(BTreeMap::from([(3, f64::NEG_INFINITY), (4, 7.0)])),
                ..fields()
            },
        ),
        (
            "penalty",
            SamplerFields { frequency_penalty: Some(0.9), repetition_penalty: Some(1.5), ..fields() },
        ),
        (
            "all",
            SamplerFields {
                temperature: Some(1.5),
                top_k: Some(8),
                top_p: Some(0.97),
                min_p: Some(0.06),
                ..fields()
            },
        ),
    ];
    let history = History { tokens: &[1, 3, 5, 5], prompt_len: 2 };
    let mut failed = Vec::new();
    for (index, (name, fields)) in rows.into_iter().enumerate() {
        let want = naive(&fields, &row, &history);
        let chi = chi_square(&sampler(fields), &row, &history, index as u64, &want);
        // 99.99 % of right samplers stay under this with up to eight degrees of freedom.
        if chi.is_none_or(|chi| chi > 32.0) {
            failed.push(format!("{name}: chi-square {chi:?} over {} tokens", want.len()));
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// Pearson's statistic of 50 000 draws; `None` if a token came that cannot.
fn chi_square(
    sampler: &Sampler,
    row: &[f32],
    history: &History,
    seed: u64,
    want: &[(u32, f64)],
) -> Option<f64> {
    const DRAWS: u64 = 50_000;
    let mut counts: HashMap<u32, f64> = want.iter().map(|&(id, _)| (id, 0.0)).collect();
    let mut logits = Logits::default();
    for position in 0..DRAWS {
        logits.load(row);
        *counts.get_mut(&sampler.sample(&mut logits, history, seed, position).unwrap())? += 1.0;
    }
    Some(want.iter().map(|(id, p)| (counts[id] - p * DRAWS as f64).powi(2) / (p * DRAWS as f64)).sum())
}

/// Over many blocks of the draw: mass by region of a large vocabulary.
#[test]
fn draws_reach_every_part_of_a_large_vocabulary() {
    let vocab = 5_003;
    let row: Vec<f32> = (0..vocab).map(|id| ((id * 31) % 17) as f32 / 8.0).collect();
    let p = softmax(&(0..).zip(row.iter().copied()).collect::<Vec<_>>());
    let (mut expected, mut seen) = ([0.0; 20], [0.0; 20]);
    p.iter().for_each(|(id, p)| expected[*id as usize * 20 / vocab] += p * 20_000.0);
    let mut logits = Logits::default();
    for position in 0..20_000 {
        logits.load(&row);
        let id = Sampler::default().sample(&mut logits, &History::default(), 3, position).unwrap();
        seen[id as usize * 20 / vocab] += 1.0;
    }
    let chi: f64 = seen.iter().zip(expected).map(|(s, e)| (s - e) * (s - e) / e).sum();
    assert!(chi < 52.0, "chi-square {chi} with 19 degrees of freedom");
}

// === Determinism ===

#[test]
fn a_draw_depends_on_its_arguments_alone() {
    let mut random = Random(3 << 32);
    let rows: Vec<Vec<f32>> = (0..40).map(|_| random.row(700, 2.0)).collect();
    let fields = SamplerFields {
        temperature: Some(1.3),
        top_k: Some(200),
        top_p: Some(0.95),
        frequency_penalty: Some(0.5),
        repetition_penalty: Some(1.2),
        ..Default::default()
    };
    let sampler = sampler(fields);
    let tokens: Vec<u32> = (0..40).map(|i| i * 13 % 700).collect();
    let pick = |logits: &mut Logits, i: usize| {
        logits.load(&rows[i]);
        sampler.sample(logits, &History { tokens: &tokens[..i], prompt_len: i / 2 }, 99, i as u64).unwrap()
    };
    let fresh: Vec<u32> = (0..40).map(|i| pick(&mut Logits::default(), i)).collect();
    let mut shared = Logits::default();
    let mut backwards: Vec<u32> = (0..40).rev().map(|i| pick(&mut shared, i)).collect();
    backwards.reverse();
    assert_eq!(fresh, backwards);
    let threads: Vec<u32> = std::thread::scope(|scope| {
        let pick = &pick;
        let spawned: Vec<_> = (0..40).map(|i| scope.spawn(move || pick(&mut Logits::default(), i))).collect();
        spawned.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(fresh, threads);
    let other_seed = (0..40).filter(|&i| {
        let mut logits = Logits::new(&rows[i]);
        let history = History { tokens: &tokens[..i], prompt_len: i / 2 };
        sampler.sample(&mut logits, &history, 100, i as u64).unwrap() != fresh[i]
    });
    assert!(other_seed.count() > 20, "the seed hardly matters");
}

#[test]
fn greedy_takes_the_lowest_of_the_best() {
    let greedy = |fields| sampler(SamplerFields { temperature: Some(0.0), ..fields });
    let bias = |id, by| Some(BTreeMap::from([(id, by)]));
    let rows: [(&[f32], SamplerFields, u32); 6] = [
        (&[1.0, 3.0, 3.0, 2.0], SamplerFields::default(), 1),
        (&[OUT, -5.0], SamplerFields::default(), 1),
        (&[1.0, 3.0, 3.0, 2.0], SamplerFields { logit_bias: bias(1, -0.5), ..Default::default() }, 2),
        (&[1.0, 3.0, 2.9, 2.0], SamplerFields { repetition_penalty: Some(1.5), ..Default::default() }, 2),
        (&[1.0, 3.0, 2.9, 2.0], SamplerFields { presence_penalty: Some(1.5), ..Default::default() }, 2),
        (
            &[1.0, 3.0, 3.0, 2.0],
            SamplerFields { typical_p: Some(0.1), top_k: Some(1), ..Default::default() },
            1,
        ),
    ];
    for (row, fields, want) in rows {
        let sampler = greedy(fields);
        let history = History { tokens: &[0, 1, 77], prompt_len: 1 };
        let got = sampler.sample(&mut Logits::new(row), &history, 5, 6).unwrap();
        assert_eq!(got, want, "{sampler} on {row:?}");
        if sampler.is_argmax() {
            assert_eq!(argmax(row).unwrap(), want, "{row:?}");
        }
    }
    assert!(Sampler::greedy().is_argmax() && !Sampler::default().is_argmax());
}

/// A temperature towards zero is greedy, and one towards infinity is uniform: neither overflows.
#[test]
fn extreme_temperatures() {
    let row = [1.0, 80.0, 79.9, OUT];
    for (temperature, want) in [
        (1e-300, vec![(1, 1.0)]),
        (f64::MIN_POSITIVE, vec![(1, 1.0)]),
        (1e300, vec![(0, 1.0 / 3.0), (1, 1.0 / 3.0), (2, 1.0 / 3.0)]),
    ] {
        let sampler = sampler(SamplerFields { temperature: Some(temperature), ..Default::default() });
        let got = distribution(&sampler, &row, &History::default()).unwrap();
        assert!(same(&got, &want), "{temperature:e}: {got:?}");
    }
}

// === The user's filters ===

struct Edit<F>(&'static str, F);

impl<F: Fn(&mut [f32], &[u32]) -> Result<()> + Send + Sync> Filter for Edit<F> {
    fn filter(&self, logits: &mut Logits, history: &History) -> Result<()> {
        (self.1)(logits.dense_mut(), history.tokens)
    }

    fn name(&self) -> &str {
        self.0
    }
}

#[test]
fn filters_run_after_penalties_and_before_narrowing() {
    let seen = |row: &mut [f32], tokens: &[u32]| {
        assert_eq!((&row[..], tokens), (&[1.0, 5.0, 2.0, 0.5][..], &[2, 3][..]));
        row[0] = 9.0;
        Ok(())
    };
    let second = |row: &mut [f32], _: &[u32]| {
        assert_eq!(row, [9.0, 5.0, 2.0, 0.5]);
        row[0] = OUT;
        Ok(())
    };
    let fields = SamplerFields {
        top_k: Some(1),
        presence_penalty: Some(0.5),
        logit_bias: Some(BTreeMap::from([(1, 1.0)])),
        filters: Some(vec![Arc::new(Edit("seen", seen)), Arc::new(Edit("second", second))]),
        ..Default::default()
    };
    let sampler = sampler(fields);
    assert!(sampler.needs_caller() && sampler.user_filters().len() == 2 && !sampler.is_argmax());
    let history = History { tokens: &[2, 3], prompt_len: 1 };
    let row = [1.0, 4.0, 2.0, 1.0];
    let whole = sampler.sample(&mut Logits::new(&row), &history, 1, 2).unwrap();
    let mut logits = Logits::new(&row);
    sampler.prepare(&mut logits, &history, None).unwrap();
    for filter in sampler.user_filters() {
        filter.filter(&mut logits, &history).unwrap();
    }
    assert_eq!((whole, sampler.finish(&mut logits, 1, 2).unwrap()), (1, 1));
}

#[test]
fn a_filter_that_fails_keeps_its_cause() {
    let fail = |_: &mut [f32], _: &[u32]| {
        Err(Error::invalid("no luck").with_source(std::io::Error::other("the traceback")))
    };
    let filters = Some(vec![Arc::new(Edit("unlucky", fail)) as Arc<dyn Filter>]);
    let sampler = sampler(SamplerFields { filters, ..Default::default() });
    let error = sampler.sample(&mut Logits::new(&[1.0]), &History::default(), 0, 0).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::InvalidRequest);
    assert_eq!(error.message(), "in the filter `unlucky`: no luck");
    assert_eq!(error.source_ref().unwrap().to_string(), "the traceback");
}

// === Bad input ===

#[test]
fn bad_fields_are_named() {
    let base = SamplerFields::default;
    let mut rows: Vec<(&str, &str, SamplerFields)> =
        vec![("top_k is 0", "at least 1", SamplerFields { top_k: Some(0), ..base() })];
    for value in [-0.1, f64::NAN, f64::INFINITY] {
        rows.push(("temperature is", "at least 0", SamplerFields { temperature: Some(value), ..base() }));
    }
    for value in [0.0, -0.5, 1.01, f64::NAN] {
        rows.push(("top_p is", "over 0 and at most 1", SamplerFields { top_p: Some(value), ..base() }));
        rows.push((
            "typical_p is",
            "over 0 and at most 1",
            SamplerFields { typical_p: Some(value), ..base() },
        ));
    }
    for value in [-0.1, 1.5, f64::NAN] {
        rows.push(("min_p is", "from 0 to 1", SamplerFields { min_p: Some(value), ..base() }));
    }
    for value in [0.0, -1.0, 1e-60, 1e60, f64::INFINITY, f64::NAN] {
        let fields = SamplerFields { repetition_penalty: Some(value), ..base() };
        rows.push(("repetition_penalty is", "finite number over 0", fields));
    }
    for value in [-2.1, 2.1, f64::NAN] {
        rows.push((
            "frequency_penalty is",
            "-2 to 2",
            SamplerFields { frequency_penalty: Some(value), ..base() },
        ));
        rows.push((
            "presence_penalty is",
            "-2 to 2",
            SamplerFields { presence_penalty: Some(value), ..base() },
        ));
    }
    for value in [f64::NAN, f64::INFINITY, 1e300] {
        let fields = SamplerFields { logit_bias: Some(BTreeMap::from([(1, 0.0), (7, value)])), ..base() };
        rows.push(("logit_bias of token 7 is", "finite", fields));
    }
    let mut failed = Vec::new();
    for (names, range, fields) in rows {
        let shown = format!("{fields:?}");
        match Sampler::new(fields) {
            Err(e)
                if e.kind() == ErrorKind::InvalidRequest
                    && e.message().starts_with(names)
                    && e.message().contains(range) => {}
            other => failed.push(format!("{shown}: {other:?}")),
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

#[test]
fn bad_logits_are_typed_errors() {
    let all = SamplerFields {
        temperature: Some(0.5),
        top_k: Some(2),
        top_p: Some(0.9),
        min_p: Some(0.1),
        typical_p: Some(0.9),
        ..Default::default()
    };
    let set = |value: f32| -> Option<Vec<Arc<dyn Filter>>> {
        let edit = move |row: &mut [f32], _: &[u32]| {
            row.iter_mut().skip(1).for_each(|slot| *slot = value);
            row[0] = OUT;
            Ok(())
        };
        Some(vec![Arc::new(Edit("set", edit))])
    };
    let forbid =
        |ids: &[u32]| Some(ids.iter().map(|&id| (id, f64::NEG_INFINITY)).collect::<BTreeMap<_, _>>());
    let fine = [1.0, 2.0, 3.0];
    let rows: [(&[f32], SamplerFields, ErrorKind, &str); 8] = [
        (&[1.0, f32::NAN, 0.0], all.clone(), ErrorKind::ModelFile, "token 1 is NaN"),
        (&[1.0, 0.0, f32::INFINITY], all.clone(), ErrorKind::ModelFile, "token 2 is inf"),
        (&[OUT, OUT], all.clone(), ErrorKind::ModelFile, "no token is left"),
        (&[], all.clone(), ErrorKind::ModelFile, "no token is left"),
        (
            &fine,
            SamplerFields { filters: set(f32::NAN), ..all.clone() },
            ErrorKind::InvalidRequest,
            "token 1 is NaN",
        ),
        (
            &fine,
            SamplerFields { filters: set(OUT), ..all.clone() },
            ErrorKind::InvalidRequest,
            "no token is left",
        ),
        (
            &fine,
            SamplerFields { logit_bias: forbid(&[0, 1, 2]), ..all.clone() },
            ErrorKind::InvalidRequest,
            "no token",
        ),
        (
            &fine,
            SamplerFields { logit_bias: forbid(&[3]), ..all },
            ErrorKind::InvalidRequest,
            "names token 3",
        ),
    ];
    let mut failed = Vec::new();
    for (row, fields, kind, words) in rows {
        for temperature in [0.0, 0.5] {
            let sampler = sampler(SamplerFields { temperature: Some(temperature), ..fields.clone() });
            match sampler.sample(&mut Logits::new(row), &History::default(), 0, 0) {
                Err(error) if error.kind() == kind && error.message().contains(words) => {}
                other => failed.push(format!("{sampler} on {row:?}: {other:?}")),
            }
        }
        if kind == ErrorKind::ModelFile {
            for (what, error) in [
                ("argmax", argmax(row).err()),
                ("token_logprobs", token_logprobs(row, 0, 2).err()),
                ("log_softmax_at", log_softmax_at(row, 0).err()),
            ] {
                if error.as_ref().map(Error::kind) != Some(kind) {
                    failed.push(format!("{what} of {row:?}: {error:?}"));
                }
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    let named = SamplerFields { logit_bias: forbid(&[3]), ..Default::default() };
    assert!(sampler(named.clone()).check_vocab(3).is_err() && sampler(named).check_vocab(4).is_ok());
}

/// One token forbidden for certain, however the dice fall.
#[test]
fn what_is_forbidden_never_comes() {
    let fields = SamplerFields {
        logit_bias: Some(BTreeMap::from([(0, f64::NEG_INFINITY), (3, f64::NEG_INFINITY)])),
        temperature: Some(50.0),
        ..Default::default()
    };
    let sampler = sampler(fields);
    for position in 0..20_000 {
        let id = sampler
            .sample(&mut Logits::new(&[9.0, 0.0, 0.0, 9.0]), &History::default(), 1, position)
            .unwrap();
        assert!(id == 1 || id == 2, "{id} at {position}");
    }
}

// === Log probabilities ===

#[test]
fn logprobs_are_the_log_softmax_of_the_raw_row() {
    let mut random = Random(4 << 32);
    for (vocab, spread) in [(1, 1.0), (7, 3.0), (1000, 0.1), (50_000, 4.0), (3000, 30.0)] {
        let mut row = random.row(vocab, spread);
        row[vocab / 2] = OUT;
        row[0] = 1.0;
        let pairs: Vec<(u32, f32)> = (0..).zip(row.iter().copied()).collect();
        let mut want: Vec<(u32, f64)> = softmax(&pairs).into_iter().map(|(id, p)| (id, p.ln())).collect();
        let got = token_logprobs(&row, 0, 5).unwrap();
        assert!(
            (f64::from(got.logprob) - want[0].1).abs() < 1e-5 * want[0].1.abs().max(1.0),
            "{vocab}: {got:?}"
        );
        assert_eq!(log_softmax_at(&row, 0).unwrap(), got.logprob);
        want.retain(|(_, p)| *p > f64::NEG_INFINITY);
        want.sort_by(|a, b| b.1.partial_cmp(&a.1).unwrap().then(a.0.cmp(&b.0)));
        want.truncate(5);
        assert_eq!(got.top.len(), want.len());
        for (got, want) in got.top.iter().zip(&want) {
            assert!(got.0 == want.0 && (f64::from(got.1) - want.1).abs() < 1e-5, "{vocab}: {got:?} {want:?}");
        }
    }
    let ties = token_logprobs(&[0.0, 1.0, 1.0, 0.0, 1.0], 3, 4).unwrap();
    assert_eq!(ties.top.iter().map(|&(id, _)| id).collect::<Vec<_>>(), [1, 2, 4, 0]);
    assert_eq!(ties.logprob, ties.top[3].1);
    assert_eq!(token_logprobs(&[0.0, OUT], 1, 9).unwrap().logprob, OUT);
    assert_eq!(token_logprobs(&[0.0, 1.0], 2, 0).unwrap_err().kind(), ErrorKind::Internal);
}

// === The value ===

#[test]
fn prints_and_compares_by_what_has_an_effect() {
    let filter: Arc<dyn Filter> = Arc::new(Edit("mine", |_: &mut [f32], _: &[u32]| Ok(())));
    let base = SamplerFields::default;
    let rows = [
        (base(), "Sampler()"),
        (
            SamplerFields { temperature: Some(1.0), top_p: Some(1.0), filters: Some(vec![]), ..base() },
            "Sampler()",
        ),
        (SamplerFields { temperature: Some(0.0), ..base() }, "Sampler(temperature=0.0)"),
        (SamplerFields { top_k: Some(5), min_p: Some(0.05), ..base() }, "Sampler(top_k=5, min_p=0.05)"),
        (
            SamplerFields {
                temperature: Some(0.7),
                top_k: Some(40),
                top_p: Some(0.9),
                logit_bias: Some(BTreeMap::from([(3, -100.0), (5, f64::NEG_INFINITY)])),
                filters: Some(vec![filter]),
                ..base()
            },
            "Sampler(temperature=0.7, top_k=40, top_p=0.9, logit_bias={3: -100.0, 5: -inf}, filters=[mine])",
        ),
    ];
    for (i, (fields, shown)) in rows.iter().enumerate() {
        let this = sampler(fields.clone());
        assert_eq!(this.to_string(), *shown);
        for (j, (other, other_shown)) in rows.iter().enumerate() {
            assert_eq!(this == sampler(other.clone()), shown == other_shown, "rows {i} and {j}");
        }
    }
    let warm = sampler(SamplerFields { temperature: Some(0.7), top_k: Some(9), ..base() });
    let replaced = warm.with(SamplerFields { top_k: Some(3), min_p: Some(0.1), ..base() }).unwrap();
    assert_eq!(replaced.to_string(), "Sampler(temperature=0.7, top_k=3, min_p=0.1)");
    assert_eq!(warm.to_string(), "Sampler(temperature=0.7, top_k=9)");
    assert!(warm.with(SamplerFields { top_p: Some(2.0), ..base() }).is_err());
}

/// `cargo test --profile fast --test sample -- --ignored --nocapture timings`
#[test]
#[ignore = "prints microseconds, checks nothing"]
fn timings() {
    let base = SamplerFields::default;
    let samplers = [
        ("greedy", SamplerFields { temperature: Some(0.0), ..base() }),
        ("temperature 0.8", SamplerFields { temperature: Some(0.8), ..base() }),
        ("top_k 40", SamplerFields { top_k: Some(40), ..base() }),
        ("top_p 0.9", SamplerFields { top_p: Some(0.9), ..base() }),
        ("min_p 0.05", SamplerFields { min_p: Some(0.05), ..base() }),
        ("typical_p 0.9", SamplerFields { typical_p: Some(0.9), ..base() }),
        ("all but top_k", all_fields(None)),
        ("all", all_fields(Some(40))),
    ];
    let mut random = Random(5 << 32);
    let tokens: Vec<u32> = (0..2000).map(|_| random.below(49_152) as u32).collect();
    let history = History { tokens: &tokens, prompt_len: 1500 };
    for vocab in [49_152, 262_144] {
        let flat = random.row(vocab, 1.0);
        // A best token, a few hundred rivals, a bulk far below: the shape of a language model's row.
        let peaked: Vec<f32> = (0..vocab)
            .map(|id| (random.normal() * 2.5 - 12.0) as f32 + if id % 997 == 0 { 9.0 } else { 0.0 })
            .collect();
        for (shape, row) in [("peaked", &peaked), ("flat", &flat), ("equal", &vec![0.5; vocab])] {
            for (name, fields) in &samplers {
                let sampler = sampler(fields.clone());
                let mut logits = Logits::default();
                let mut pick = |position| {
                    logits.load(row);
                    sampler.sample(&mut logits, &history, 1, position).unwrap()
                };
                println!("{vocab:>7} {shape:<7} {name:<16} {:>7.1} us", best_of(&mut pick));
            }
            let mut logprobs = |_| token_logprobs(row, 5, 20).unwrap().top[0].0;
            println!("{vocab:>7} {shape:<7} {:<16} {:>7.1} us", "logprobs top 20", best_of(&mut logprobs));
        }
    }
}

fn all_fields(top_k: Option<usize>) -> SamplerFields {
    SamplerFields {
        temperature: Some(0.8),
        top_k,
        top_p: Some(0.95),
        min_p: Some(0.02),
        typical_p: Some(0.95),
        repetition_penalty: Some(1.1),
        frequency_penalty: Some(0.2),
        presence_penalty: Some(0.1),
        ..Default::default()
    }
}

/// Microseconds of the fastest of 60 calls: the machine is shared.
fn best_of(call: &mut dyn FnMut(u64) -> u32) -> f64 {
    let time = |position| {
        let start = std::time::Instant::now();
        std::hint::black_box(call(position));
        start.elapsed().as_secs_f64() * 1e6
    };
    (0..60).map(time).fold(f64::INFINITY, f64::min)
}
