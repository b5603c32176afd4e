//! What a draft model of a given quality brings: the draft model computes what it computes, and then its
//! logits are replaced, so that its likeliest token is the right one as often as is asked.
//!
//!     cargo bench --bench drafts -- MODEL.gguf DRAFT.gguf [share of right tokens, 0.7] [answers at once, 1]
//!
//! So a pair of models with random weights shows what a trained pair of these sizes would. Greedy answers of
//! 160 tokens with and without the draft model, in turns; they must be the same.

use std::env::args;
use std::sync::Arc;
use std::time::Duration;

use tallow::cache::layout::StateLayout;
use tallow::engine::{
    DecoderRunner, DraftRunner, EngineHandle, EngineOptions, Event, Generate, ModelRunner, Request,
    StepOutput, Task,
};
use tallow::error::{Error, Result};
use tallow::model::{LoadOptions, Model};
use tallow::sample::Sampler;
use tallow::step::Step;
use tallow::text::stream::TextStream;

const TOKENS: usize = 160;
const ROUNDS: usize = 5;
const PAGES: usize = 1024;
const PROMPT: &str = "Once upon a time, in a small village by the sea, there lived a clockmaker who";

/// A draft model whose likeliest token is right in so many of 1,000 places.
struct Oracle {
    inner: DecoderRunner,
    /// The prompt and its answer.
    truth: Vec<u32>,
    right: u64,
}

impl ModelRunner for Oracle {
    fn vocab_size(&self) -> usize {
        self.inner.vocab_size()
    }

    fn hidden_size(&self) -> usize {
        self.inner.hidden_size()
    }

    fn layout(&self) -> &StateLayout {
        self.inner.layout()
    }

    fn forward(&mut self, step: &Step) -> Result<StepOutput> {
        let mut output = self.inner.forward(step)?;
        let vocab = self.vocab_size();
        for (row, &of) in output.logits.chunks_exact_mut(vocab).zip(&step.logits) {
            let place = step.positions[of as usize] as usize + 1;
            let truth = self.truth.get(place).copied().unwrap_or(0);
            let dice = (place as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
            let said = if dice % 1000 < self.right { truth } else { (truth + 1) % vocab as u32 };
            row[said as usize] = 1e6;
        }
        Ok(output)
    }

    fn recycle(&mut self, output: StepOutput) {
        self.inner.recycle(output);
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<()> {
        self.inner.copy_page(from, to)
    }

    fn page_bytes(&self, group: usize) -> usize {
        self.inner.page_bytes(group)
    }

    fn read_page(&self, group: usize, page: u32, out: &mut Vec<u8>) -> Result<()> {
        self.inner.read_page(group, page, out)
    }

    fn write_page(&mut self, group: usize, page: u32, bytes: &[u8]) -> Result<()> {
        self.inner.write_page(group, page, bytes)
    }
}

/// The tokens of `count` answers, one after the other, and the seconds that a token took.
fn answers(engine: &EngineHandle, model: &Model, prompt: &[u32], count: usize) -> Result<(Vec<u32>, f64)> {
    let ask = |number: usize| {
        // Another seed makes it another request, which is not answered together with the first.
        let text = TextStream::new(model.tokenizer().clone(), vec![]);
        let task = Task::Generate(Box::new(Generate {
            sampler: Sampler::greedy(),
            seed: 0,
            max_tokens: TOKENS + number,
            stop_ids: Arc::new([]),
            text,
            logprobs: None,
            prediction: Vec::new(),
            guide: None,
        }));
        engine.submit(Request::new(prompt.to_vec(), task))
    };
    let (mut tokens, mut took) = (Vec::new(), Duration::ZERO);
    for mut running in (0..count).map(ask).collect::<Result<Vec<_>>>()? {
        while let Some(event) = running.wait() {
            match event {
                Event::Token(token) => tokens.push(token.id),
                Event::Run(run) => tokens.extend(run.iter().map(|token| token.id)),
                Event::Done(done) => took = took.max(done.timings.decode),
                Event::Error(error) => return Err(error),
                _ => {}
            }
        }
    }
    let seconds = took.as_secs_f64() / tokens.len() as f64;
    Ok((tokens, seconds))
}

/// Argument `at`, a number; `unless` it is not given.
fn number(given: &[String], at: usize, unless: f64) -> Result<f64> {
    let Some(text) = given.get(at) else { return Ok(unless) };
    text.parse().map_err(|_| Error::invalid(format!("drafts: {text:?} is no number")))
}

fn main() -> Result<()> {
    let given: Vec<String> = args().skip(1).filter(|it| it != "--bench").collect();
    let [model, draft, rest @ ..] = &given[..] else {
        // As all benches are run, without arguments.
        println!("drafts: needs MODEL.gguf DRAFT.gguf");
        return Ok(());
    };
    let (right, count) = (number(rest, 0, 0.7)?, number(rest, 1, 1.0)? as usize);
    let load = |path| Model::load(path, &LoadOptions::default());
    let (model, draft) = (load(model)?, load(draft)?);
    let prompt = model.text_ids(PROMPT)?;
    let runner = |model: &Model| DecoderRunner::new(model.decoder().clone(), PAGES, 64);
    let options = || EngineOptions::new(1024);
    let plain = EngineOptions { speculation: false, ..options() };
    let plain = EngineHandle::start(Box::new(runner(&model)?), plain)?;
    let (truth, _) = answers(&plain, &model, &prompt, 1)?;
    let truth = [&prompt[..], &truth].concat();
    let oracle = Oracle { inner: runner(&draft)?, truth, right: (right * 1000.0) as u64 };
    let oracle = DraftRunner {
        known: model.vocab_size().min(draft.vocab_size()),
        runner: Box::new(oracle),
        context_length: 1024,
    };
    let drafted = EngineHandle::start_with(Box::new(runner(&model)?), Some(oracle), options())?;
    let (mut without, mut with) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        let (one, seconds) = answers(&plain, &model, &prompt, count)?;
        without.push(seconds);
        let (other, seconds) = answers(&drafted, &model, &prompt, count)?;
        with.push(seconds);
        assert_eq!(one, other, "a draft changed an answer");
    }
    let [without, with] = [&mut without, &mut with].map(|seconds| {
        seconds.sort_by(f64::total_cmp);
        seconds[ROUNDS / 2]
    });
    let stats = drafted.stats();
    println!(
        "{count} at once, {:.1} and {:.1} tokens/s: x{:.2}; {} of {} drafted tokens right, {} steps for {} tokens, \
         {:.0} % of the time in the draft model",
        1.0 / without,
        1.0 / with,
        without / with,
        stats.model_accepted,
        stats.model_drafted,
        stats.steps,
        stats.completion_tokens,
        100.0 * stats.drafting.as_secs_f64() / stats.busy.as_secs_f64()
    );
    Ok(())
}
