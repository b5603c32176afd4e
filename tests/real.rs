//! The two real models on files that llama.cpp and transformers took too (tests/golden/real): every greedy
//! choice that was clear and the text of whole answers against llama.cpp, the perplexity of a text against
//! transformers in float32.

mod common;

use std::sync::Arc;

use serde_json::Value;
use tallow::Model;
use tallow::engine::{DecoderRunner, Event, ModelRunner};
use tallow::lm::{GenerateOptions, Lm, LmOptions};
use tallow::model::LoadOptions;
use tallow::sample::{Sampler, log_softmax_at, sampler::argmax};
use tallow::step::{StateTable, Step, pages_for};

/// llama.cpp rounds activations to 8 bits and we do so only in part: below this margin (in logits) between
/// the two best tokens either may win. transformers in float32 differs from llama.cpp up to a margin of 0.55.
const CLEAR: f64 = 0.6;
/// Largest relative differences of the perplexity from transformers' in float32, of a text of 1,447 tokens
/// (which moves by some tenths of a percent with any change of rounding): as a model is loaded, and with
/// dtype="float32".
const PERPLEXITY: f64 = 0.004;
const EXACT_PERPLEXITY: f64 = 0.0002;

const MODELS: &[(&str, &str)] =
    &[("smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf"), ("gemma3-270m", "gemma-3-270m-q4_k_m.gguf")];

/// A model and its golden; `None` where the weights are not at hand and need not be.
fn open(index: usize, options: &LoadOptions) -> Option<(Arc<Model>, Value)> {
    let (name, file) = MODELS[index];
    let path = common::real_model(file)?;
    let text = std::fs::read_to_string(common::golden(&format!("real/{name}.json"))).unwrap();
    let model = Model::load(path.to_str().unwrap(), options).unwrap();
    Some((model, serde_json::from_str(&text).unwrap()))
}

fn ids(value: &Value) -> Vec<u32> {
    value.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect()
}

/// Groups of layers, at most.
const GROUPS: usize = 8;

/// Logits of every position, in steps of 128 rows.
fn logits(runner: &mut DecoderRunner, tokens: &[u32]) -> Vec<f32> {
    // Each group of layers has pages of its own.
    let (groups, pages) = (runner.layout().paged.len() as u32, pages_for(tokens.len()) as u32);
    let tables: Vec<Vec<u32>> =
        (0..groups).map(|group| (group * pages..(group + 1) * pages).collect()).collect();
    let mut logits = Vec::new();
    for (chunk, position) in tokens.chunks(128).zip((0..).step_by(128)) {
        let mut step = Step::default();
        let rows = step.push_span(chunk, position, tables.clone(), StateTable::default());
        step.logits = rows.map(|row| row as u32).collect();
        logits.extend(runner.forward(&step).unwrap().logits);
    }
    logits
}

fn greedy_choices(index: usize) {
    let Some((model, golden)) = open(index, &LoadOptions::default()) else { return };
    let vocab = model.vocab_size();
    let mut runner = DecoderRunner::new(model.decoder().clone(), 64 * GROUPS, 0).unwrap();
    let (mut clear, mut wrong) = (0, Vec::new());
    for prompt in golden["prompts"].as_array().unwrap() {
        let (mut tokens, answer) = (ids(&prompt["tokens"]), ids(&prompt["continuation"]));
        let first = tokens.len() - 1;
        tokens.extend(&answer);
        let rows = logits(&mut runner, &tokens);
        for (step, (want, margin)) in answer.iter().zip(prompt["margins"].as_array().unwrap()).enumerate() {
            if margin.as_f64().unwrap() < CLEAR {
                continue;
            }
            clear += 1;
            let row = &rows[(first + step) * vocab..(first + step + 1) * vocab];
            let got = argmax(row).unwrap();
            if got != *want {
                wrong.push(format!("{} step {step}: {got} for {want}, margin {margin}", prompt["name"]));
            }
        }
    }
    assert!(clear > 250, "only {clear} clear steps");
    assert!(wrong.is_empty(), "{} of {clear} clear steps differ:\n{}", wrong.len(), wrong.join("\n"));
}

#[test]
fn smollm2_chooses_as_llama_cpp() {
    greedy_choices(0);
}

#[test]
fn gemma3_chooses_as_llama_cpp() {
    greedy_choices(1);
}

/// All prompts at once through the engine: each answer is llama.cpp's up to its first unclear step.
fn answers(index: usize) {
    let Some((model, golden)) = open(index, &LoadOptions::default()) else { return };
    let lm = Lm::start(model.clone(), &LmOptions::default()).unwrap();
    let prompts = golden["prompts"].as_array().unwrap();
    let options = GenerateOptions {
        max_tokens: Some(64),
        sampler: Some(Sampler::greedy()),
        ..GenerateOptions::default()
    };
    let submit = |p: &Value| lm.generate(&ids(&p["tokens"]), &options).unwrap();
    let running: Vec<_> = prompts.iter().map(submit).collect();
    for (prompt, mut generation) in prompts.iter().zip(running) {
        let mut tokens = Vec::new();
        while let Some(event) = generation.wait() {
            match event {
                Event::Token(token) => tokens.push(token.id),
                Event::Error(error) => panic!("{}: {error}", prompt["name"]),
                _ => {}
            }
        }
        let margins = prompt["margins"].as_array().unwrap();
        let certain = margins.iter().take_while(|m| m.as_f64().unwrap() >= CLEAR).count();
        let mut want = ids(&prompt["continuation"]);
        // The end token ends an answer and is not part of it.
        want.retain(|id| !model.eos_ids().contains(id));
        let count = certain.min(want.len()).min(tokens.len());
        assert_eq!(tokens[..count], want[..count], "{}", prompt["name"]);
        assert!(count == certain.min(want.len()), "{}: the answer ended early", prompt["name"]);
    }
}

#[test]
fn smollm2_answers_as_llama_cpp() {
    answers(0);
}

#[test]
fn gemma3_answers_as_llama_cpp() {
    answers(1);
}

fn perplexity(index: usize, options: &LoadOptions, most: f64) {
    let Some((model, golden)) = open(index, options) else { return };
    let vocab = model.vocab_size();
    let mut runner = DecoderRunner::new(model.decoder().clone(), 64 * GROUPS, 0).unwrap();
    let (mut sum, mut count) = (0.0, 0);
    for window in golden["perplexity"]["windows"].as_array().unwrap() {
        let tokens = ids(window);
        let rows = logits(&mut runner, &tokens);
        for (row, next) in rows.chunks(vocab).zip(&tokens[1..]) {
            sum -= log_softmax_at(row, *next).unwrap() as f64;
            count += 1;
        }
    }
    let (ours, theirs) =
        (sum / count as f64, golden["perplexity"]["transformers"]["mean_nll"].as_f64().unwrap());
    let ratio = (ours - theirs).exp() - 1.0;
    println!("perplexity {:.4}, transformers {:.4}, {:+.4} %", ours.exp(), theirs.exp(), 100.0 * ratio);
    assert!(ratio.abs() < most, "perplexity {} against transformers' {}", ours.exp(), theirs.exp());
}

#[test]
fn smollm2_has_its_perplexity() {
    perplexity(0, &LoadOptions::default(), PERPLEXITY);
    perplexity(0, &exact(), EXACT_PERPLEXITY);
}

#[test]
fn gemma3_has_its_perplexity() {
    perplexity(1, &LoadOptions::default(), PERPLEXITY);
    perplexity(1, &exact(), EXACT_PERPLEXITY);
}

fn exact() -> LoadOptions {
    LoadOptions { dtype: "float32".into(), ..Default::default() }
}
