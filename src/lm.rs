//! A running engine over a [`Model`]: prompts and options in, token events out.
//!
//! [`Lm`] turns what users say (text, messages, "at most 100 tokens", a sampler) into what the engine
//! computes (ids, pages, rows). It is `Send + Sync`, clones share the engine, and any number of threads may
//! call it.

mod draft;
mod kv_plan;

use std::ffi::OsStr;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use self::draft::Draft;
use self::kv_plan::plan_memory;
use crate::cache::prefix_file::Prefix;
use crate::config::Pooling;
use crate::constrain::{Constraint, Grammar, GrammarCompiler, Limits, Vocabulary};
use crate::engine::guide::Guide;
use crate::engine::request::not_causal;
use crate::engine::{
    Completion, DecoderRunner, Embed, EngineHandle, EngineOptions, Event, Generate, Generation, ModelRunner,
    Notify, Poll, Request, Stats, StepLimits, Task,
};
use crate::error::{Error, Result};
use crate::hub::{NoProgress, Progress};
use crate::lora::{
    self, Adapter, AdapterLease, AdapterRegistry, BoundAdapter, MergeOptions, MergeReport, WriteAdapter, hex,
    save_merged,
};
use crate::memory;
use crate::model::{LoadOptions, Model, Prompt};
use crate::preparer::Preparer;
use crate::sample::{Sampler, SamplerFields};
use crate::step::PAGE;
use crate::text::stream::TextStream;
use crate::train::{self, Compute, Example, Job, StepOptions, TrainOptions, Trained, Trainer, Training};
use crate::weights::bytes::Bytes;

/// Stop strings a request.
pub const MAX_STOPS: usize = 32;
/// Characters of a stop string.
pub const MAX_STOP_CHARS: usize = 256;
/// Share of the free memory that the KV cache may grow to, unless told.
const KV_SHARE: f64 = 0.25;
/// One part in so many of the free memory that adapters may take, unless told.
const ADAPTER_SHARE: u64 = 8;
/// How long a caller that may be cancelled waits between two looks at whether it is.
const LOOK: Duration = Duration::from_millis(20);

/// How an engine is set up.
#[derive(Clone, Debug)]
pub struct LmOptions {
    /// Bytes that keys and values may take; `None`: a quarter of what is free.
    pub kv_memory: Option<u64>,
    /// Requests that may wait; `None`: the engine's default.
    pub queue: Option<usize>,
    /// Keep the pages of what was computed, and take them again for the same tokens.
    pub prefix_cache: bool,
    /// Guess tokens from the prompt and check several in one step.
    pub speculation: bool,
    /// A smaller model with the same tokens, whose guesses are checked as well. Answers come faster and stay
    /// the same, bit for bit.
    pub draft: Option<Arc<Model>>,
    /// Bytes that adapters in memory may take; `None`: an eighth of what is free.
    pub adapter_memory: Option<u64>,
    /// The adapters of an engine of the same model that was closed; `None`: none.
    pub adapters: Option<AdapterRegistry>,
}

impl Default for LmOptions {
    fn default() -> Self {
        LmOptions {
            kv_memory: None,
            queue: None,
            prefix_cache: true,
            speculation: true,
            draft: None,
            adapter_memory: None,
            adapters: None,
        }
    }
}

/// How a prompt is continued. All of it has a default:
///
/// ```
/// use tallow::{Constraint, GenerateOptions};
///
/// let options = GenerateOptions {
///     max_tokens: Some(60),
///     constraint: Some(Constraint::choices(["yes", "no"])),
///     ..GenerateOptions::default()
/// };
/// ```
#[derive(Clone, Debug, Default)]
pub struct GenerateOptions {
    /// `None`: until the model ends its answer or the context is full.
    pub max_tokens: Option<usize>,
    /// `None`: as [`Lm::sampler`] without fields, which is what the model's makers advise.
    pub sampler: Option<Sampler>,
    /// Texts that end the answer; not part of it.
    pub stop: Vec<String>,
    /// `None`: a fresh one each time.
    pub seed: Option<u64>,
    /// `Some(k)`: log probabilities, with the `k` likeliest alternatives.
    pub logprobs: Option<usize>,
    pub timeout: Option<Duration>,
    /// A text that the answer may well resemble; it changes how fast the answer comes, never the answer.
    pub prediction: Option<String>,
    /// What the answer must be.
    pub constraint: Option<Constraint>,
    /// Control tokens that the text shows as they are written; others give no text.
    pub shown_tokens: Vec<u32>,
    /// `None`: the model as it is.
    pub adapter: Option<Adapter>,
}

/// An engine that runs. Dropping the last clone ends it.
#[derive(Clone)]
pub struct Lm {
    model: Arc<Model>,
    engine: EngineHandle,
    prefix_cache: bool,
    /// Made for the first constraint.
    grammars: Arc<Mutex<Option<GrammarCompiler>>>,
    preparer: Arc<Preparer>,
    adapters: AdapterRegistry,
    draft: Option<Draft>,
}

/// A prompt that somebody owns, so that another thread can make a request of it: a `String`, a [`Chat`], ids.
pub trait AsPrompt: Send + 'static {
    fn prompt(&self) -> Prompt<'_>;
}

impl<T: Send + 'static> AsPrompt for T
where
    for<'a> &'a T: Into<Prompt<'a>>,
{
    fn prompt(&self) -> Prompt<'_> {
        self.into()
    }
}

impl Lm {
    /// A model with an engine, both as they come; [`Model::load`] and [`Lm::start`] take options.
    ///
    /// # Errors
    /// As those two.
    pub fn load(source: impl AsRef<OsStr>) -> Result<Lm> {
        Lm::start(Model::load(source, &LoadOptions::default())?, &LmOptions::default())
    }

    /// Starts an engine with a cache of its own.
    ///
    /// # Errors
    /// `OutOfMemory` if not even one sequence of full length fits into `kv_memory`; `InvalidRequest` for a
    /// draft model that cannot draft for this one.
    pub fn start(model: Arc<Model>, options: &LmOptions) -> Result<Lm> {
        // Mapped weights count as free, and must stay in memory all the same.
        let mapped = model.shared_bytes() + options.draft.as_ref().map_or(0, |draft| draft.shared_bytes());
        let free = || memory::available().saturating_sub(mapped);
        let mut budget = options.kv_memory.unwrap_or_else(|| (free() as f64 * KV_SHARE) as u64);
        let draft = options.draft.as_ref().map(|draft| Draft::of(&model, draft, options, &mut budget));
        let draft = draft.transpose()?;
        let (pages, slots) = plan_memory(&model, budget, options.kv_memory.is_some())?;
        let adapters = options.adapters.clone().unwrap_or_else(|| {
            let limit = options.adapter_memory.unwrap_or_else(|| memory::available() / ADAPTER_SHARE);
            AdapterRegistry::new(model.decoder().clone(), limit)
        });
        let runner = DecoderRunner::new(model.decoder().clone(), pages, slots)?.with(adapters.slots());
        let rows = StepLimits::default().rows;
        let mut engine = EngineOptions::new(runner.layout().longest(model.context_length(), rows));
        engine.queue = options.queue.unwrap_or(engine.queue);
        engine.prefix_cache = options.prefix_cache;
        engine.speculation = options.speculation;
        engine.causal = model.config().causal;
        let drafting = draft.as_ref().map(Draft::runner).transpose()?;
        let engine = EngineHandle::start_with(Box::new(runner), drafting, engine)?;
        let (grammars, preparer) = Default::default();
        let prefix_cache = options.prefix_cache;
        Ok(Lm { model, engine, prefix_cache, grammars, preparer, adapters, draft })
    }

    /// Whether `draft` can draft for `model`: it writes text, in the same vocabulary, and keeps no recurrent
    /// state. [`Lm::start`] does it by itself.
    ///
    /// # Errors
    /// `InvalidRequest` naming both, and the first token that differs.
    pub fn check_draft(model: &Model, draft: &Model) -> Result<()> {
        draft::known_to_both(model, draft).map(drop)
    }

    pub fn model(&self) -> &Arc<Model> {
        &self.model
    }

    pub fn stats(&self) -> Stats {
        self.engine.stats()
    }

    /// Bytes of keys, values and recurrent state that the engine may fill, a draft model's among them.
    pub fn kv_bytes(&self) -> usize {
        let layout = self.engine.bounds().layout;
        self.bytes_of(layout.pages, layout.slots, self.draft.as_ref().map_or(0, Draft::pages))
    }

    /// Of these: bytes that it has filled at some time, and that it therefore holds.
    pub fn touched_kv_bytes(&self) -> usize {
        let stats = self.stats();
        self.bytes_of(stats.touched_pages, stats.touched_slots, stats.touched_draft_pages)
    }

    fn bytes_of(&self, pages: usize, slots: usize, draft_pages: usize) -> usize {
        let decoder = self.model.decoder();
        let slots = slots.saturating_mul(decoder.kv_layout().slot_bytes());
        let of_draft = self.draft.as_ref().map_or(0, |draft| draft.page_bytes().saturating_mul(draft_pages));
        pages.saturating_mul(decoder.page_bytes()).saturating_add(slots).saturating_add(of_draft)
    }

    /// The adapters of this engine.
    pub fn adapters(&self) -> &AdapterRegistry {
        &self.adapters
    }

    /// Takes an adapter in: a folder of peft or mlx-lm, or a GGUF file. See [`AdapterRegistry::add`].
    ///
    /// # Errors
    /// What reading and binding it says: nothing is left out in silence.
    pub fn load_adapter(&self, path: &Path, name: Option<&str>, scale: f32) -> Result<Adapter> {
        self.adapters.add(lora::open(path)?, name, scale)
    }

    /// Starts to train an adapter, on a thread of its own; requests go first.
    ///
    /// # Errors
    /// `InvalidRequest` naming an option or a row.
    pub fn train(&self, examples: Vec<Example>, options: TrainOptions) -> Result<Training> {
        self.check_writes()?;
        let model = &self.model;
        let decoder = model.decoder().clone();
        Trainer::check(&decoder)?;
        let trainable = Trainer::trainable(&decoder);
        let of_projections = trainable.iter().map(|(_, inputs, outputs)| inputs * outputs).sum::<usize>();
        let step = StepOptions {
            threads: options.threads.unwrap_or_else(|| decoder.ops().threads()),
            precision: options.precision,
            train_memory: options.train_memory,
        };
        let (for_config, base) = (decoder.clone(), model.name().to_string());
        let job = Job {
            examples,
            options,
            model: model.fingerprint().to_string(),
            parameters: of_projections + model.vocab_size().saturating_mul(model.config().hidden),
            trainable,
            vocabulary: model.vocab_size(),
            key: Arc::as_ptr(&decoder) as usize,
            write_adapter: Box::new(move |folder, params| {
                train::adapter::write(folder, params, for_config.config(), &base)
            }),
        };
        let make = move || Ok(Box::new(Trainer::new(decoder, &step)?) as Box<dyn Compute>);
        let lm = self.clone();
        let busy = move || {
            let stats = lm.stats();
            stats.running + stats.waiting > 0
        };
        Training::start(job, Box::new(make), Box::new(busy))
    }

    /// Takes in what a run has trained. See [`AdapterRegistry::add`].
    ///
    /// # Errors
    /// `ModelFile` if its folder has changed since; as [`AdapterRegistry::add`].
    pub fn take_trained(&self, trained: &Trained, name: Option<&str>) -> Result<Adapter> {
        let file = match &trained.output {
            Some(folder) => lora::open(folder)?,
            None => train::adapter::file(
                &trained.params,
                self.model.config(),
                "trained".into(),
                self.model.name(),
            ),
        };
        self.adapters.add(file, name, 1.0)
    }

    /// Writes an adapter into a folder, as peft has it, its scale included.
    ///
    /// # Errors
    /// `UnsupportedModel` for what is more than factors of projections; `ModelFile` if the folder cannot be
    /// written, or its own file has changed.
    pub fn save_adapter(&self, adapter: &Adapter, folder: &Path) -> Result<()> {
        let mut modules = adapter.read()?.modules;
        for pair in modules.iter_mut().flat_map(|module| &mut module.pairs) {
            pair.scale *= adapter.scale();
        }
        let (family, base) = (&self.model.config().family, Some(self.model.name()));
        lora::write_peft(folder, &WriteAdapter { family, base, modules: &modules })?;
        // What was trained in memory has a file from now on, if it is the same adapter there: a scale becomes
        // part of the numbers, and families with fused projections have several pairs in one.
        if adapter.path().is_none() && adapter.scale() == 1.0 {
            let (written, own) = (lora::open(folder)?.hash, lora::hash(&modules));
            if let (true, Ok(folder)) = (written == own, std::path::absolute(folder)) {
                adapter.saved_at(&folder);
            }
        }
        Ok(())
    }

    /// Writes the model with an adapter merged into it; see [`save_merged`].
    ///
    /// # Errors
    /// What that says; `ModelFile` if the model's files have changed since it was loaded.
    pub fn save_merged(
        &self,
        adapter: &Adapter,
        path: &Path,
        options: &MergeOptions,
        progress: &dyn Progress,
    ) -> Result<MergeReport> {
        self.model.check_files()?;
        self.adapters.bound(adapter)?; // it is this engine's, and its file is as it was
        let bound = BoundAdapter::bind_exactly(&adapter.read()?, self.model.decoder(), adapter.scale())?;
        save_merged(self.model.decoder(), self.model.path(), &bound, path, options, progress)
    }

    fn lease(&self, adapter: Option<&Adapter>) -> Result<Option<AdapterLease>> {
        adapter.map(|adapter| self.adapters.lease(adapter)).transpose()
    }

    pub fn is_closed(&self) -> bool {
        self.engine.is_closed()
    }

    /// Ends the engine; requests in work get a `Cancelled` error.
    pub fn close(&self) {
        self.engine.close();
    }

    /// The sampler that `fields` mean for this model: what is not given is the model's own default, and
    /// greedy decoding if its makers advise nothing.
    pub fn sampler(&self, fields: SamplerFields) -> Result<Sampler> {
        let mut own = SamplerFields::from(self.model.generation());
        own.temperature = own.temperature.or(Some(0.0));
        Sampler::new(fields.or(&own))
    }

    /// Continues a prompt and waits for the whole answer. Nothing is ever cut: a prompt that does not fit is
    /// an error with both numbers.
    ///
    /// ```no_run
    /// use tallow::{Chat, GenerateOptions, Lm};
    ///
    /// let lm = Lm::load("HuggingFaceTB/SmolLM2-135M-Instruct")?;
    /// let chat = Chat::new().user("Why is the sky blue?");
    /// let answer = lm.complete(&chat, &GenerateOptions { max_tokens: Some(60), ..Default::default() })?;
    /// println!("{} ({} tokens)", answer.text, answer.usage.completion_tokens);
    /// # Ok::<(), tallow::Error>(())
    /// ```
    ///
    /// # Errors
    /// What is wrong with the prompt or an option, by name; what the request failed with.
    pub fn complete<'p>(
        &self,
        prompt: impl Into<Prompt<'p>>,
        options: &GenerateOptions,
    ) -> Result<Completion> {
        self.generate(prompt, options)?.completion()
    }

    /// Continues a prompt; the answer is read as it comes, as chunks of text:
    ///
    /// ```no_run
    /// # fn example(lm: tallow::Lm) -> tallow::Result<()> {
    /// for chunk in lm.generate("The capital of Peru is", &Default::default())? {
    ///     print!("{}", chunk?.text);
    /// }
    /// # Ok(())
    /// # }
    /// ```
    /// or event by event: [`Generation::wait`].
    ///
    /// # Errors
    /// What is wrong with the prompt or an option, by name.
    pub fn generate<'p>(
        &self,
        prompt: impl Into<Prompt<'p>>,
        options: &GenerateOptions,
    ) -> Result<Generation> {
        let request = self.request(&prompt.into(), options, Instant::now())?;
        self.engine.submit(request)
    }

    /// As [`generate`](Self::generate), and returns at once: the request is made on a thread of this engine,
    /// after those that were asked for before. What is wrong with it is told by the generation.
    ///
    /// # Errors
    /// As [`EngineHandle::reserve`].
    pub fn generate_later(
        &self,
        prompt: impl AsPrompt,
        options: GenerateOptions,
        notify: Notify,
    ) -> Result<Generation> {
        let (reservation, generation) = self.engine.reserve(Some(notify))?;
        let (lm, asked) = (self.clone(), Instant::now());
        self.preparer.give(Box::new(move || {
            if reservation.is_cancelled() {
                return reservation.refuse(Error::cancelled("the request was cancelled"));
            }
            match lm.request(&prompt.prompt(), &options, asked) {
                Ok(request) => reservation.submit(request),
                Err(error) => reservation.refuse(error),
            }
        }))?;
        Ok(generation)
    }

    /// The request for the continuation of a prompt. Its time runs since `asked`.
    fn request(&self, prompt: &Prompt, options: &GenerateOptions, asked: Instant) -> Result<Request> {
        self.check_writes()?;
        check_stops(&options.stop)?;
        let sampler = match &options.sampler {
            Some(sampler) => sampler.clone(),
            None => self.sampler(SamplerFields::default())?,
        };
        sampler.check_vocab(self.model.vocab_size())?;
        let ids = self.model.prompt_ids(prompt)?;
        let limit = self.engine.bounds().context_length;
        if ids.len() + 1 > limit {
            return Err(self.too_long(ids.len()));
        }
        let room = limit - ids.len();
        let max_tokens = options.max_tokens.unwrap_or(room);
        let guide = match &options.constraint {
            Some(constraint) => Some(Guide::new(&self.grammar(constraint)?, max_tokens.min(room))?),
            None => None,
        };
        let task = Task::Generate(Box::new(Generate {
            sampler,
            seed: options.seed.map_or_else(fresh_seed, Ok)?,
            max_tokens,
            stop_ids: self.model.eos_ids().clone(),
            text: TextStream::new(self.model.tokenizer().clone(), options.stop.clone())
                .showing(options.shown_tokens.clone()),
            logprobs: options.logprobs,
            prediction: match &options.prediction {
                Some(text) => self.model.tokenizer().encode(text, false)?,
                None => Vec::new(),
            },
            guide,
        }));
        let deadline = options.timeout.and_then(|timeout| asked.checked_add(timeout));
        let adapter = self.lease(options.adapter.as_ref())?;
        Ok(Request { prompt: ids, task, deadline, adapter })
    }

    /// The grammar of a constraint. The last ones are kept, so what is asked for again costs next to nothing.
    ///
    /// # Errors
    /// `Constraint` that says what is wrong with it; `ModelFile` for a vocabulary that no grammar can be held
    /// to.
    pub fn grammar(&self, constraint: &Constraint) -> Result<Grammar> {
        let compiler = {
            let mut grammars = self.grammars.lock().unwrap_or_else(PoisonError::into_inner);
            match &mut *grammars {
                Some(compiler) => compiler.clone(),
                none => {
                    let (tokenizer, eos) = (self.model.tokenizer().clone(), self.model.eos_ids());
                    let vocabulary = Vocabulary::new(tokenizer, eos, self.model.vocab_size())?;
                    none.insert(GrammarCompiler::new(vocabulary, Limits::default())?).clone()
                }
            }
        };
        compiler.compile(constraint)
    }

    /// Saves what was computed of a prompt, whole pages of it, and returns how many tokens that are. It is
    /// computed if it is not cached. It ends soon after `cancelled` says so.
    ///
    /// # Errors
    /// `InvalidRequest` for a prompt shorter than a page, or without a prefix cache; as [`Lm::generate`] for
    /// the prompt; `ModelFile` if the file cannot be written; `Cancelled`.
    pub fn save_prefix<'p>(
        &self,
        prompt: impl Into<Prompt<'p>>,
        path: &Path,
        adapter: Option<&Adapter>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<usize> {
        self.check_prefix_cache()?;
        let mut ids = self.model.prompt_ids(&prompt.into())?;
        if ids.len() > self.engine.bounds().context_length {
            return Err(self.too_long(ids.len()));
        }
        let tokens = ids.len() / PAGE * PAGE;
        if tokens == 0 {
            return Err(Error::invalid(format!(
                "the prompt has {} tokens, and a prefix is saved in pages of {PAGE}; it is too short to be worth it",
                ids.len()
            )));
        }
        ids.truncate(tokens);
        let bytes = Bytes::from_vec(self.pages(ids.clone(), adapter, cancelled)?);
        Prefix { tokens: ids, bytes }.write_unless(path, &self.computation(adapter)?, cancelled)?;
        Ok(tokens)
    }

    /// What lies in the pages of a prompt, computed if need be.
    fn pages(
        &self,
        ids: Vec<u32>,
        adapter: Option<&Adapter>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<Vec<u8>> {
        let request = Request::new(ids, Task::Pages).with(self.lease(adapter)?);
        let mut computed = self.engine.submit(request)?;
        loop {
            match computed.next(LOOK) {
                Poll::Event(Event::Pages(pages)) => return Ok(pages),
                Poll::Event(Event::Error(error)) => return Err(error),
                Poll::Event(_) | Poll::Ended => return Err(Error::internal("no pages came of a prefix")),
                Poll::Pending if cancelled() => {
                    return Err(Error::cancelled("saving the prefix was cancelled"));
                }
                Poll::Pending => {}
            }
        }
    }

    /// Takes up a prefix that [`Lm::save_prefix`] wrote; returns its tokens. Prompts that begin with them are
    /// computed from there on, as long as the pages are not needed for something else. Nothing is taken up
    /// once
    /// `cancelled` says so.
    ///
    /// # Errors
    /// `ModelFile` if the file is missing, damaged, or belongs to another model or kind of machine;
    /// `OutOfMemory` if it does not fit; `Cancelled`.
    pub fn load_prefix(
        &self,
        path: &Path,
        adapter: Option<&Adapter>,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<usize> {
        self.check_prefix_cache()?;
        let prefix = Prefix::read(path, &self.computation(adapter)?)?;
        if prefix.tokens.iter().any(|&id| id as usize >= self.model.vocab_size()) {
            return Err(Error::model_file(format!("{}: a token is not in the vocabulary", path.display())));
        }
        let tokens = prefix.tokens.len();
        if cancelled() {
            return Err(Error::cancelled("loading the prefix was cancelled"));
        }
        self.engine.import(prefix, self.lease(adapter)?)?;
        Ok(tokens)
    }

    /// The limit may be the model's, or that of a small cache.
    fn too_long(&self, tokens: usize) -> Error {
        let limit = self.engine.bounds().context_length;
        let error = Error::context_length(tokens, limit);
        match limit < self.model.context_length() {
            true => error.context("kv_memory has room for less than the model's context, raise it"),
            false => error,
        }
    }

    /// What is to become text or probabilities needs a head, and text attention that looks back alone.
    /// Checked before anything else is found wrong with a request that can never be right.
    fn check_writes(&self) -> Result<()> {
        self.check_head()?;
        self.check_causal()
    }

    /// What is to become text or probabilities needs a head.
    fn check_head(&self) -> Result<()> {
        match self.model.decoder().has_head() {
            true => Ok(()),
            false => Err(Error::unsupported(format!(
                "{} is a base model, saved without the head that makes tokens of hidden states \
                 (tie_word_embeddings is false, and there is no lm_head.weight): it embeds, and writes nothing",
                self.model.name()
            ))),
        }
    }

    /// Before anything else is found wrong with a request that can never be right.
    fn check_causal(&self) -> Result<()> {
        if self.engine.bounds().causal { Ok(()) } else { Err(not_causal()) }
    }

    fn check_prefix_cache(&self) -> Result<()> {
        self.check_causal()?;
        match self.prefix_cache {
            true => Ok(()),
            false => {
                Err(Error::invalid("this engine was started without a prefix cache; leave prefix_cache on"))
            }
        }
    }

    /// All that the numbers in the cache depend on, but for the tokens: to the last byte, for a file of them
    /// must not be taken for that of another model.
    fn computation(&self, adapter: Option<&Adapter>) -> Result<String> {
        let machine = self.model.decoder().ops().describe();
        let machine = machine.split(',').next().unwrap_or_default();
        let adapter = adapter.map_or(String::new(), |adapter| format!(" + adapter {}", hex(adapter.hash())));
        Ok(format!("{}{adapter} on {machine}", self.model.content_hash(&NoProgress)?))
    }

    /// The logits of every position of `ids`.
    pub fn logits(&self, ids: Vec<u32>, adapter: Option<&Adapter>) -> Result<Generation> {
        self.check_head()?;
        self.engine.submit(Request::new(ids, Task::Logits).with(self.lease(adapter)?))
    }

    /// The pooled hidden states of a text, of which [`Embedding::finish`](crate::model::Embedding::finish)
    /// makes the vector. `pooling`, `prompt`: instead of the model's own.
    ///
    /// # Errors
    /// `ContextLength` for a text that is longer than the model reads, or than its makers allow: none is ever
    /// cut; `UnsupportedModel` if the model's files make vectors in a way that is not supported.
    pub fn embed(
        &self,
        text: &str,
        pooling: Option<Pooling>,
        prompt: Option<&str>,
        adapter: Option<&Adapter>,
    ) -> Result<Generation> {
        let embedding = self.model.embedding()?;
        embedding.width(pooling, self.model.config().hidden)?;
        let ids = self.model.embedding_ids(text, prompt)?;
        if let Some(longest) = embedding.longest().filter(|longest| ids.len() > *longest) {
            let why =
                "max_seq_length in sentence_bert_config.json (or model_max_length in tokenizer_config.json)";
            return Err(Error::text_length(ids.len(), longest, why));
        }
        let pooling = pooling.map_or_else(|| embedding.pooling().clone(), |one| [one].into());
        let embed = Embed { pooling, normalize: embedding.is_plain() };
        self.engine.submit(Request::new(ids, Task::Embed(embed)).with(self.lease(adapter)?))
    }

    /// The log probability of every token of every candidate after the prompt, which is computed once; with
    /// the ids of the candidates.
    pub fn score<'p>(
        &self,
        prompt: impl Into<Prompt<'p>>,
        candidates: &[String],
        adapter: Option<&Adapter>,
    ) -> Result<(Vec<Vec<u32>>, Generation)> {
        self.check_writes()?;
        let prompt = prompt.into();
        let ids = self.model.prompt_ids(&prompt)?;
        let candidates = self.model.continuation_ids(&prompt, &ids, candidates)?;
        let request = Request::score(ids, candidates.clone()).with(self.lease(adapter)?);
        Ok((candidates, self.engine.submit(request)?))
    }
}

fn check_stops(stops: &[String]) -> Result<()> {
    if stops.len() > MAX_STOPS {
        return Err(Error::invalid(format!(
            "stop has {} texts; at most {MAX_STOPS} are allowed",
            stops.len()
        )));
    }
    for stop in stops {
        let length = stop.chars().count();
        if length == 0 || length > MAX_STOP_CHARS {
            return Err(Error::invalid(format!(
                "a stop text has {length} characters; it must have 1 to {MAX_STOP_CHARS}"
            )));
        }
    }
    Ok(())
}

/// From the system each time, with no state in this process: whatever it held, a forked child would hold as
/// well, and draw the same answers.
fn fresh_seed() -> Result<u64> {
    getrandom::u64().map_err(|error| Error::internal(format!("the system gives no random numbers: {error}")))
}
