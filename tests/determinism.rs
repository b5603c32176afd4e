//! The same bits: the answer to a request, its log probabilities included, does not depend on who else is in
//! the batch, on the order, on what is cached and how it came there, on the number of threads, on the sizes
//! of chunks, nor on drafts. Checked on both real models and a small mixture of experts against answers that
//! were computed alone, with one thread, with no cache and no drafts.

mod common;

use std::path::Path;
use std::sync::Arc;

use tallow::Model;
use tallow::cache::prefix_file::Prefix;
use tallow::constrain::{Constraint, Grammar, GrammarCompiler, Limits, Vocabulary};
use tallow::engine::guide::Guide;
use tallow::engine::{
    DecoderRunner, DraftRunner, EngineHandle, EngineOptions, Event, Generate, Generation, Request,
    StepLimits, Task, TokenEvent,
};
use tallow::model::LoadOptions;
use tallow::sample::{Sampler, SamplerFields};
use tallow::step::PAGE;
use tallow::text::stream::TextStream;
use tallow::weights::bytes::Bytes;

/// Tokens with the bits of their log probabilities and of the alternatives'.
type Bits = Vec<(u32, Vec<(u32, u32)>)>;

/// A row of the matrix; what is not said is as in `base`.
#[derive(Clone)]
struct Setting {
    name: &'static str,
    threads: usize,
    /// Requests in flight at once.
    batch: usize,
    reversed: bool,
    /// Rows of a step.
    rows: usize,
    /// Pages of the cache, for each group of layers; few of them make requests be preempted and prefixes be
    /// evicted.
    pages: usize,
    /// Slots of recurrent state, where there is some.
    slots: usize,
    prefix_cache: bool,
    speculation: bool,
    /// The model drafts for itself; where it has recurrent state, nobody does.
    draft: bool,
    logprobs: bool,
    /// The first so many requests alone; those before `LONG` have long answers.
    count: usize,
    /// Rounds on the same engine; all but the first find their prompts in the cache.
    rounds: usize,
    /// The common prefix comes from another engine.
    imported: bool,
}

fn base() -> Setting {
    Setting {
        name: "",
        threads: 2,
        batch: 8,
        reversed: false,
        rows: 512,
        pages: 600,
        slots: 64,
        prefix_cache: true,
        speculation: true,
        draft: false,
        logprobs: true,
        count: usize::MAX,
        rounds: 1,
        imported: false,
    }
}

fn settings() -> Vec<Setting> {
    vec![
        Setting { name: "one after another, warm, drafts", batch: 1, ..base() },
        Setting { name: "two at once", batch: 2, ..base() },
        Setting { name: "three, reversed, no logprobs", batch: 3, reversed: true, logprobs: false, ..base() },
        Setting { name: "seven, one thread, small chunks", batch: 7, threads: 1, rows: 24, ..base() },
        Setting { name: "eight, no cache, odd chunks", prefix_cache: false, rows: 37, ..base() },
        Setting { name: "sixteen, twice", batch: 16, rounds: 2, ..base() },
        Setting {
            name: "all at once, reversed, no drafts",
            batch: 32,
            reversed: true,
            speculation: false,
            ..base()
        },
        Setting {
            name: "all at once, one thread, no cache",
            batch: 32,
            threads: 1,
            prefix_cache: false,
            ..base()
        },
        Setting { name: "pages run out", batch: 32, pages: 12, count: LONG, rounds: 2, ..base() },
        Setting { name: "pages run out, no cache", pages: 14, count: LONG, prefix_cache: false, ..base() },
        Setting { name: "from disk", batch: 7, imported: true, ..base() },
        Setting { name: "one after another, a draft model", batch: 1, draft: true, ..base() },
        Setting { name: "three, a draft model, pages run out", batch: 3, pages: 14, draft: true, ..base() },
    ]
}

/// What a model is asked.
struct Script {
    /// What most prompts begin with.
    common: &'static str,
    own: [&'static str; 4],
    /// Makes prompts longer.
    more: &'static str,
    before: &'static str,
    after: &'static str,
    /// The regular expression that some answers are held to: what is forced, a choice, a text, and the end in
    /// what is left.
    form: &'static str,
}

const LABELS: Script = Script {
    common: "You label short messages. Read the message, then write the label and a short reason.\n\
             Message: The parcel came two days late and the box was open.\nLabel: complaint\nReason: late and damaged\n",
    own: ["Great service!", "Where is my refund? I asked twice", "ok", "The tea is cold and so is the soup"],
    more: "!",
    before: "Message: ",
    after: "\nLabel:",
    form: r" (complaint|question|praise|nothing at all, just words)\nReason: [a-z ]+\.",
};

/// For a vocabulary of letters.
const LETTERS: Script = Script {
    common: "Label the note\nNote late parcel\nLabel bad late\n",
    own: ["great service", "where is my refund", "ok", "the tea is cold"],
    more: "z",
    before: "Note ",
    after: "\nLabel",
    form: r" (yes|no|nothing) [a-z]{2,30}",
};

struct Bench {
    /// With one thread and with two.
    models: [Arc<Model>; 2],
    requests: Vec<(Vec<u32>, Sampler)>,
    max_tokens: usize,
    form: Grammar,
}

/// Tokens of an answer that is held to a form.
const FORM_TOKENS: usize = 20;

/// Requests with answers of `LONG_TOKENS`, which grow over several pages.
const LONG: usize = 4;
const LONG_TOKENS: usize = 40;

impl Bench {
    fn open(path: &Path, load: &LoadOptions, script: &Script, count: usize, max_tokens: usize) -> Bench {
        let load = |threads| {
            let options = LoadOptions { threads: Some(threads), ..load.clone() };
            Model::load(path, &options).unwrap()
        };
        let models = [load(1), load(2)];
        let spread = SamplerFields { temperature: Some(0.8), top_p: Some(0.95), ..Default::default() };
        let penalty =
            SamplerFields { repetition_penalty: Some(1.2), min_p: Some(0.05), ..Default::default() };
        let samplers = [Sampler::greedy(), Sampler::new(spread).unwrap(), Sampler::new(penalty).unwrap()];
        let request = |number: usize| {
            let Script { common, own, more, before, after, .. } = script;
            let text = format!("{common}{before}{}{}{after}", own[number % 4], more.repeat(number / 4));
            let mut ids = models[0].tokenizer().encode(&text, false).unwrap();
            // Some share nothing, and are short.
            if number % 5 == 4 {
                ids = ids.split_off(ids.len() - 1 - number);
            }
            (ids, samplers[number % 3].clone())
        };
        let requests = (0..count).map(request).collect();
        let (tokenizer, eos) = (models[0].tokenizer().clone(), models[0].eos_ids());
        let vocabulary = Vocabulary::new(tokenizer, eos, models[0].vocab_size()).unwrap();
        let compiler = GrammarCompiler::new(vocabulary, Limits::default()).unwrap();
        let form = compiler.compile(&Constraint::Regex(script.form.into())).unwrap();
        Bench { models, requests, max_tokens, form }
    }

    fn has_tiny_window(&self) -> bool {
        let layout = self.models[0].decoder().kv_layout();
        layout.windows().iter().flatten().any(|&window| window < PAGE)
    }

    fn engine(&self, setting: &Setting) -> EngineHandle {
        let model = &self.models[setting.threads - 1];
        let mut options = EngineOptions::new(512);
        options.limits = StepLimits { rows: setting.rows, ..StepLimits::default() };
        (options.prefix_cache, options.speculation) = (setting.prefix_cache, setting.speculation);
        let groups = model.decoder().kv_layout().windows().len();
        let runner =
            DecoderRunner::new(model.decoder().clone(), groups * setting.pages, setting.slots).unwrap();
        EngineHandle::start_with(Box::new(runner), self.draft(setting), options).unwrap()
    }

    fn draft(&self, setting: &Setting) -> Option<DraftRunner> {
        let model = &self.models[setting.threads - 1];
        if !setting.draft || model.decoder().kv_layout().has_state() {
            return None;
        }
        let groups = model.decoder().kv_layout().windows().len();
        let runner = DecoderRunner::new(model.decoder().clone(), groups * 200, 0).unwrap();
        Some(DraftRunner { runner: Box::new(runner), known: model.vocab_size(), context_length: 512 })
    }

    fn max_tokens(&self, number: usize) -> usize {
        match self.form(number) {
            Some(_) => FORM_TOKENS,
            None if number < LONG => LONG_TOKENS,
            None => self.max_tokens,
        }
    }

    /// The grammar of some of the requests, of which each sampler has one.
    fn form(&self, number: usize) -> Option<&Grammar> {
        (5..8).contains(&number).then_some(&self.form)
    }

    fn submit(&self, engine: &EngineHandle, number: usize, logprobs: bool) -> Generation {
        let (prompt, sampler) = self.requests[number].clone();
        let task = Task::Generate(Box::new(Generate {
            sampler,
            seed: number as u64,
            max_tokens: self.max_tokens(number),
            stop_ids: match self.form(number) {
                Some(_) => self.models[0].eos_ids().clone(),
                None => Arc::new([]),
            },
            text: TextStream::new(self.models[0].tokenizer().clone(), vec![]),
            logprobs: logprobs.then_some(2),
            prediction: Vec::new(),
            guide: self.form(number).map(|grammar| Guide::new(grammar, self.max_tokens(number)).unwrap()),
        }));
        engine.submit(Request::new(prompt, task)).unwrap()
    }

    /// All requests under a setting, in the order of their numbers.
    /// With how often one was preempted.
    fn run(&self, setting: &Setting) -> (Vec<Bits>, u64) {
        let engine = self.engine(setting);
        if setting.imported {
            engine.import(self.prefix(), None).unwrap();
        }
        let mut order: Vec<usize> = (0..self.requests.len().min(setting.count)).collect();
        if setting.reversed {
            order.reverse();
        }
        let mut answers = vec![Bits::new(); order.len()];
        for _ in 0..setting.rounds {
            for batch in order.chunks(setting.batch) {
                let running: Vec<_> =
                    batch.iter().map(|&it| (it, self.submit(&engine, it, setting.logprobs))).collect();
                for (number, generation) in running {
                    answers[number] = read(generation);
                }
            }
        }
        let stats = engine.stats();
        println!("{:<40} {:?}", setting.name, stats);
        assert_eq!(stats.cached_tokens > 0, setting.prefix_cache, "{}", setting.name);
        (answers, stats.preempted)
    }

    /// The common prefix, by way of a file.
    fn prefix(&self) -> Prefix {
        let engine = self.engine(&base());
        let mut tokens = self.requests[0].0.clone();
        let generation = self.submit(&engine, 0, false);
        read(generation);
        tokens.truncate((tokens.len() - 1) / PAGE * PAGE);
        let mut saved = engine.submit(Request::new(tokens.clone(), Task::Pages)).unwrap();
        let Some(Event::Pages(pages)) = saved.wait() else { panic!("no pages") };
        let file = tempfile::tempdir().unwrap();
        let path = file.path().join("prefix.safetensors");
        Prefix { tokens, bytes: Bytes::from_vec(pages) }.write(&path, "test").unwrap();
        Prefix::read(&path, "test").unwrap()
    }
}

fn read(mut generation: Generation) -> Bits {
    let mut bits = Bits::new();
    let of_token = |token: TokenEvent| {
        let all = token.logprob.iter().flat_map(|it| {
            let top = it.top.iter().map(|(id, logprob)| (*id, logprob.to_bits()));
            std::iter::once((token.id, it.logprob.to_bits())).chain(top)
        });
        (token.id, all.collect())
    };
    while let Some(event) = generation.wait() {
        match event {
            Event::Token(token) => bits.push(of_token(token)),
            Event::Run(tokens) => bits.extend(tokens.into_iter().map(of_token)),
            Event::Error(error) => panic!("{error}"),
            _ => {}
        }
    }
    bits
}

fn real(file: &str, count: usize, max_tokens: usize) {
    if let Some(path) = common::real_model(file) {
        matrix(&Bench::open(&path, &LoadOptions::default(), &LABELS, count, max_tokens));
    }
}

fn matrix(bench: &Bench) {
    let alone =
        Setting { name: "alone", threads: 1, batch: 1, prefix_cache: false, speculation: false, ..base() };
    let (expected, _) = bench.run(&alone);
    for (number, answer) in expected.iter().enumerate() {
        let (found, most) = (answer.len(), bench.max_tokens(number));
        let held = bench.form(number).is_some();
        assert!(found == most || held && (5..most).contains(&found), "{number}: {found} tokens of {most}");
    }
    let (mut failed, mut preempted) = (Vec::new(), 0);
    for setting in settings() {
        let (answers, times) = bench.run(&setting);
        preempted += times;
        for (number, (found, expected)) in answers.iter().zip(&expected).enumerate() {
            let same = match setting.logprobs {
                true => found == expected,
                false => found.iter().map(|it| it.0).eq(expected.iter().map(|it| it.0)),
            };
            if !same {
                let at = found.iter().zip(expected).position(|(found, expected)| found != expected);
                failed.push(format!("{}: request {number} differs from token {at:?} on", setting.name));
            }
        }
    }
    assert!(failed.is_empty(), "{}", failed.join("\n"));
    // A tiny window leaves so many pages free that nobody need be.
    assert!(preempted > 0 || bench.has_tiny_window(), "nobody was preempted");
}

#[test]
fn smollm2_gives_the_same_bits() {
    real("SmolLM2-135M-Instruct.Q4_1.gguf", 32, 6);
}

#[test]
fn gemma3_gives_the_same_bits() {
    real("gemma-3-270m-q4_k_m.gguf", 9, 4);
}

/// A tiny model of a family, in 8 bits, so that its rows pass the quantized products.
fn tiny(variant: &str) {
    tiny_with(variant, "auto");
}

fn tiny_with(variant: &str, kv_type: &str) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families");
    let load =
        LoadOptions { quantize: Some("q8_0".into()), kv_type: kv_type.into(), ..LoadOptions::default() };
    matrix(&Bench::open(&root.join(variant).join("model.gguf"), &load, &LETTERS, 32, 6));
}

/// Windows, sinks, heads side by side in a page, a latent.
#[test]
fn bytes_of_keys_and_values_give_the_same_bits() {
    for variant in ["gemma3-classic", "gptoss-mxfp4", "gemma4-ple", "glm4lite-latent", "qwen2-tied"] {
        tiny_with(variant, "int8");
    }
}

#[test]
fn a_mixture_of_experts_gives_the_same_bits() {
    tiny("mixtral-top2");
}

#[test]
fn sinks_and_experts_in_mxfp4_give_the_same_bits() {
    tiny("gptoss-mxfp4");
}

#[test]
fn recurrent_state_gives_the_same_bits() {
    tiny("lfm2-classic");
}

#[test]
fn a_delta_net_gives_the_same_bits() {
    tiny("qwen3_5-dense");
}

#[test]
fn mamba_beside_attention_gives_the_same_bits() {
    tiny("falconh1-multipliers");
}

#[test]
fn shared_keys_and_per_layer_embeddings_give_the_same_bits() {
    tiny("gemma4-ple");
}

#[test]
fn latent_attention_gives_the_same_bits() {
    tiny("glm4lite-latent");
}

#[test]
fn windows_that_give_pages_back_give_the_same_bits() {
    tiny("gemma3-classic");
}
