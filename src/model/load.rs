//! A source becomes a [`Model`]: find the files, read the blueprint, check it against the tensors, and share
//! what is already in memory.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::SystemTime;

use super::fingerprint::Identity;
use super::packed::Packing;
use super::{Decoder, Embedding, Model};
use crate::config::generation::{self, Generation};
use crate::config::{self, Config, Presence, json, quantization};
use crate::device::{Placement, default_threads};
use crate::error::{Context, Error, Result, quoted};
use crate::hub::{self, Bar, HubOptions, Located, NoProgress, Progress};
use crate::small_file::{TEXT_LIMIT, read_text};
use crate::text::chat::{ChatTemplate, Own};
use crate::text::tokenizer::Tokenizer;
use crate::weights::names::{Names, Part};
use crate::weights::{Format, Gguf, WeightType, Weights, detect};

/// Files beside safetensors that decide about answers too.
const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.json",
    "chat_template.jinja",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
];

/// And those in it, with any name.
const COMPANION_FOLDER: &str = "additional_chat_templates";

/// How a model is loaded.
#[derive(Clone)]
pub struct LoadOptions {
    /// A branch, tag or commit of a hub repository.
    pub revision: Option<String>,
    /// Never use the network; `None`: as `HF_HUB_OFFLINE` says.
    pub offline: Option<bool>,
    /// "auto", "cpu", "cuda:0", "metal".
    pub device: String,
    /// "auto", "float32", "float16", "bfloat16".
    pub dtype: String,
    /// What the CPU keeps keys and values in: "auto", "int8", "bf16", "f32".
    pub kv_type: String,
    /// Quantize the weights while loading: "q8_0", "q4_k", …
    pub quantize: Option<String>,
    /// Positions of one sequence; `None`: what the model was made for.
    pub context_length: Option<usize>,
    /// Workers on the CPU; `None`: one a core.
    pub threads: Option<usize>,
    /// A chat template, a file that holds one, or the name of one of the model's, instead of its default.
    pub chat_template: Option<String>,
    /// Keep packed weights on disk, and map them at later loads: processes share them then. Only of large
    /// models; `TALLOW_PACKED_CACHE_GB` bounds them, and 0 is none.
    pub packed_cache: bool,
    /// How the model is called, and its revision, where the caller has found its file by another name.
    pub called: Option<(String, Option<String>)>,
    pub progress: Arc<dyn Progress>,
}

impl Default for LoadOptions {
    fn default() -> Self {
        LoadOptions {
            revision: None,
            offline: None,
            device: "auto".into(),
            dtype: "auto".into(),
            kv_type: "auto".into(),
            quantize: None,
            context_length: None,
            threads: None,
            chat_template: None,
            packed_cache: true,
            called: None,
            progress: Arc::new(NoProgress),
        }
    }
}

/// What makes two loads the same model.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    path: PathBuf,
    stamps: Vec<(u64, Option<SystemTime>)>,
    placement: Placement,
    quantize: Option<WeightType>,
    context_length: Option<usize>,
    threads: usize,
    chat_template: Option<Own>,
}

/// One lock a model: two threads that load the same one wait for each other, others do not.
type Slot = Arc<Mutex<Weak<Model>>>;

type Loaded = Mutex<HashMap<Key, Slot>>;

/// What this process has loaded. A forked child has a list of its own: the locks of its parent's may be held
/// by threads that it does not have. None for a child of so many generations that there is no list left.
fn loaded() -> Option<&'static Loaded> {
    static LOADED: [OnceLock<(u32, Loaded)>; 16] = [const { OnceLock::new() }; 16];
    let process = std::process::id();
    let lists = LOADED.iter().map(|list| list.get_or_init(|| (process, Loaded::default())));
    lists.filter(|(owner, _)| *owner == process).map(|(_, list)| list).next()
}

impl Model {
    /// Loads `source`: a folder, a `.gguf` or `.safetensors` file, or "org/name" on the hub. What is already
    /// loaded with the same options is shared.
    ///
    /// # Errors
    /// `InvalidRequest` for a wrong argument, `Hub` if files cannot be had, `ModelFile` if they are broken,
    /// `UnsupportedModel` if they hold something that is not run, `Device` if the device cannot be opened.
    pub fn load(source: impl AsRef<OsStr>, options: &LoadOptions) -> Result<Arc<Model>> {
        // Arguments first: a typo must not cost a download.
        let request = Request::check(options)?;
        let mut located = hub::locate(
            source,
            &HubOptions {
                revision: options.revision.clone(),
                offline: options.offline,
                progress: options.progress.clone(),
            },
        )?;
        if let Some((name, revision)) = &options.called {
            (located.name, located.revision) = (name.clone(), revision.clone());
        }
        let key = request.key(&located.path)?;
        let Some(list) = loaded() else { return request.load(&located, options).map(Arc::new) };
        let slot = {
            let mut map = list.lock().unwrap_or_else(PoisonError::into_inner);
            map.retain(|k, slot| *k == key || Arc::strong_count(slot) > 1 || is_alive(slot));
            map.entry(key).or_default().clone()
        };
        let mut slot = slot.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(model) = slot.upgrade() {
            return Ok(model);
        }
        let model = Arc::new(request.load(&located, options)?);
        *slot = Arc::downgrade(&model);
        Ok(model)
    }
}

impl LoadOptions {
    /// Checks the options alone, before files are fetched for them; [`Model::load`] does it by itself.
    ///
    /// # Errors
    /// `InvalidRequest` for a wrong one.
    pub fn check(&self) -> Result<()> {
        Request::check(self).map(drop)
    }
}

fn is_alive(slot: &Slot) -> bool {
    slot.try_lock().is_ok_and(|model| model.strong_count() > 0)
}

/// The options, read and checked.
struct Request {
    placement: Placement,
    quantize: Option<WeightType>,
    context_length: Option<usize>,
    threads: usize,
    chat_template: Option<Own>,
}

impl Request {
    fn check(options: &LoadOptions) -> Result<Self> {
        let threads = options.threads.unwrap_or_else(default_threads);
        if threads == 0 || threads > 1024 {
            return Err(Error::invalid(format!("threads is {threads}; it must be in 1..=1024")));
        }
        if options.context_length == Some(0) {
            return Err(Error::invalid("context_length is 0; it must be at least 1"));
        }
        Ok(Request {
            placement: Placement::parse(&options.device, &options.dtype, &options.kv_type)?,
            quantize: options.quantize.as_deref().map(WeightType::parse).transpose().context("quantize")?,
            context_length: options.context_length,
            threads,
            chat_template: options.chat_template.as_deref().map(own_template).transpose()?,
        })
    }

    fn key(&self, path: &Path) -> Result<Key> {
        let path = path.canonicalize().map_err(|e| unreadable(path, e))?;
        let mut files = vec![path.clone()];
        if path.is_file() {
            files.extend(COMPANIONS.iter().map(|name| folder_of(&path).join(name)));
        } else {
            let entries = path.read_dir().map_err(|e| unreadable(&path, e))?;
            files.extend(entries.filter_map(|entry| Some(entry.ok()?.path())));
            files.extend(folder_files(&path.join(COMPANION_FOLDER)));
            files.sort();
        }
        let stamp = |file: &PathBuf| {
            let data = file.metadata().ok();
            (data.as_ref().map_or(0, |d| d.len()), data.and_then(|d| d.modified().ok()))
        };
        Ok(Key {
            stamps: files.iter().map(stamp).collect(),
            path,
            placement: self.placement.clone(),
            quantize: self.quantize,
            context_length: self.context_length,
            threads: self.threads,
            chat_template: self.chat_template.clone(),
        })
    }

    fn load(&self, located: &Located, options: &LoadOptions) -> Result<Model> {
        let files = Files::open(&located.path, self.chat_template.as_ref())?;
        let context_length = self.context_length(&files.config)?;
        let embeds = files.embedding.as_ref().is_ok_and(Embedding::is_described);
        let placement = self.placement.clone().for_model(&files.config, has_plain_keys(&files), embeds);
        let ops = placement.open(self.threads)?;
        let eos_ids = files.eos_ids();
        check_tokenizer(&files)?;
        let share = files.weights.total_bytes() / files.config.layers.len() as u64;
        let progress = &*options.progress;
        let bar = self.quantize.map(|to| {
            Bar::start(progress, &format!("quantizing to {to}"), Some(files.weights.total_bytes()))
        });
        let mut advance = || {
            if let Some(bar) = &bar {
                bar.advance(share);
            }
            match progress.cancelled() {
                true => Err(Error::cancelled("loading was cancelled")),
                false => Ok(()),
            }
        };
        let identity = self.identity(&files, &placement, context_length)?;
        let (weights, quantize) = (&*files.weights, self.quantize);
        let packing = Packing::new(options.packed_cache, weights, &files.config, quantize, &ops)?;
        let decoder = Decoder::build_from(
            &packing.matrices,
            files.config,
            weights,
            ops.clone(),
            context_length,
            quantize,
            &mut advance,
        )?;
        let (weight_bytes, weight_types) = stored(&decoder);
        let mut notes = notes(&decoder, context_length);
        notes.extend(notes_of_quantized(weights, self.quantize.filter(|_| decoder.quantized() > 0)));
        if let Some(to) = self.quantize.filter(|_| decoder.quantized() == 0) {
            notes.push(format!(
                "quantize changed nothing: the weights are quantized already, or too narrow for {to}"
            ));
        }
        let packed_again = packing.refused.clone();
        Ok(Model {
            packed: packing.end(&ops),
            packed_again,
            name: located.name.clone(),
            path: located.path.clone(),
            revision: located.revision.clone(),
            identity,
            context_length,
            placement,
            weight_bytes,
            mapped_bytes: decoder.mapped_bytes() as u64,
            weight_types,
            notes,
            tokenizer: files.tokenizer,
            template: files.template,
            decoder: Arc::new(decoder),
            generation: files.generation,
            eos_ids,
            embedding: files.embedding,
        })
    }

    /// All that decides about an answer: weights, how they are computed with, tokenizer and template.
    fn identity(&self, files: &Files, placement: &Placement, context_length: usize) -> Result<Identity> {
        let Request { quantize, chat_template, threads, .. } = self;
        let options = format!("{placement:?} {quantize:?} {context_length} {chat_template:?}");
        let of_modules = files.embedding.iter().flat_map(Embedding::files);
        let named = of_modules.map(|path| (path.to_string_lossy().into_owned(), path.clone()));
        let companions: Vec<_> = files.companions.iter().cloned().chain(named).collect();
        Identity::new(files.weights.clone(), &companions, &options, *threads)
    }

    fn context_length(&self, config: &Config) -> Result<usize> {
        match self.context_length {
            Some(asked) if asked > config.longest => Err(Error::invalid(format!(
                "context_length is {asked}, and this model was made for at most {} positions",
                config.longest
            ))),
            asked => Ok(asked.unwrap_or(config.context)),
        }
    }
}

/// Whether no layer's keys have a bias or a norm.
fn has_plain_keys(files: &Files) -> bool {
    let (config, weights) = (&files.config, &files.weights);
    let names = Names::of(weights, config.post_norms(), config.names);
    let has = |presence, part, at, kind| match presence {
        Presence::Never => false,
        Presence::Always => true,
        Presence::IfStored => weights.contains(&names.name(weights, part, Some(at), kind)),
    };
    config.layers.iter().enumerate().all(|(at, layer)| {
        layer.attention().is_none_or(|attention| {
            let bias = [Part::K, Part::Qkv].map(|part| has(attention.qkv_bias, part, at, "bias"));
            let norm = attention.plain_qk_norm || has(attention.qk_norm, Part::KNorm, at, "weight");
            !bias[0] && !bias[1] && !norm
        })
    })
}

fn folder_of(path: &Path) -> &Path {
    if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) }
}

/// A model's files, read but not yet built.
struct Files {
    config: Config,
    weights: Arc<Weights>,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    generation: Generation,
    /// End ids that `config.json` names.
    config_eos: Vec<u32>,
    embedding: Result<Embedding>,
    /// Files beside the weights that decide about answers too.
    companions: Vec<(String, PathBuf)>,
}

impl Files {
    /// `template`: the user's own.
    fn open(path: &Path, template: Option<&Own>) -> Result<Self> {
        match detect(path)? {
            Format::Gguf => Files::gguf(path, template),
            Format::Safetensors => Files::transformers(path, template),
        }
    }

    fn gguf(path: &Path, template: Option<&Own>) -> Result<Self> {
        let Gguf { metadata, weights } = Gguf::open(path)?;
        let config = config::gguf::parse(&metadata, &weights).context(path.display())?;
        let tokenizer = Tokenizer::from_gguf_or_beside(&metadata, folder_of(path)).context(path.display())?;
        let template = ChatTemplate::from_gguf(&metadata, &tokenizer, template).context(path.display())?;
        // Of the files beside it, only a tokenizer that stands in for its own counts.
        let companions = match tokenizer.source() {
            "GGUF" => vec![],
            _ => companions(folder_of(path)),
        };
        Ok(Files {
            embedding: Embedding::from_gguf(&metadata, &weights, &config).context(path.display()),
            config,
            weights: Arc::new(weights),
            tokenizer: Arc::new(tokenizer),
            template,
            generation: Generation::default(),
            config_eos: vec![],
            companions,
        })
    }

    /// A folder, or a `.safetensors` file (or index) with its companions beside it.
    fn transformers(path: &Path, template: Option<&Own>) -> Result<Self> {
        let folder = folder_of(path);
        let config_path = folder.join("config.json");
        let root = json::read_object(&config_path)?.ok_or_else(|| {
            Error::model_file(format!(
                "{}: there is no config.json beside the weights; it says what model they are",
                folder.display()
            ))
        })?;
        // Before the weights are opened: what is not run is refused by its name.
        let quantization = quantization::read(&root).context(config_path.display())?;
        let config = config::hf::parse_object(&root).context(config_path.display())?;
        let generation_path = folder.join("generation_config.json");
        let generation = match read_text(&generation_path, TEXT_LIMIT)? {
            Some(text) => Generation::parse(&text).context(generation_path.display())?,
            None => Generation::default(),
        };
        let weights = quantization::open_weights(path, quantization)?;
        Ok(Files {
            embedding: Embedding::from_folder(folder, &config),
            config,
            weights: Arc::new(weights),
            tokenizer: Arc::new(Tokenizer::from_hf(folder)?),
            template: ChatTemplate::from_hf(folder, template)?,
            generation,
            config_eos: generation::eos_ids(&root),
            companions: companions(folder),
        })
    }

    /// The union of all that is said, ascending.
    fn eos_ids(&self) -> Arc<[u32]> {
        let mut ids = self.tokenizer.eos_ids().to_vec();
        ids.extend(&self.config_eos);
        ids.extend(&self.generation.eos_ids);
        ids.retain(|id| (*id as usize) < self.config.vocab);
        ids.sort_unstable();
        ids.dedup();
        ids.into()
    }
}

/// The files of a folder that decide about answers beside its weights, by their names in it.
fn companions(folder: &Path) -> Vec<(String, PathBuf)> {
    let named = COMPANIONS.iter().map(|name| folder.join(name));
    let all = named.chain(folder_files(&folder.join(COMPANION_FOLDER))).filter(|path| path.is_file());
    let name = |path: &Path| path.strip_prefix(folder).unwrap_or(path).to_string_lossy().into_owned();
    all.map(|path| (name(&path), path)).collect()
}

/// A tokenizer that belongs to another model would index beyond the embedding. Control tokens may lie there
/// (Gemma 3 1B has one for images, and no row for it): no text becomes one unless a template writes it, and
/// then the engine refuses the prompt.
fn check_tokenizer(files: &Files) -> Result<()> {
    let (tokens, rows) = (files.tokenizer.vocab_size(), files.config.vocab);
    let beyond = (rows..tokens)
        .filter_map(|id| u32::try_from(id).ok())
        .find(|id| !files.tokenizer.is_special(*id) && !files.tokenizer.token_bytes(*id).is_empty());
    let Some(id) = beyond else { return Ok(()) };
    let token = quoted(&String::from_utf8_lossy(files.tokenizer.token_bytes(id)));
    Err(Error::model_file(format!(
        "{}: the tokenizer has {tokens} tokens and the embedding {rows} rows, so that token {id} ({token}) has \
         none; they do not belong together",
        files.weights.source().display()
    )))
}

/// Bytes of the projections, and how they are stored, the largest share first.
fn stored(decoder: &Decoder) -> (u64, Vec<&'static str>) {
    let mut bytes: HashMap<&'static str, u64> = HashMap::new();
    for (name, size) in decoder.matrices().map(|matrix| matrix.stored()) {
        *bytes.entry(name).or_default() += size as u64;
    }
    let total = bytes.values().sum();
    let mut types: Vec<_> = bytes.into_iter().collect();
    types.sort_by_key(|(name, bytes)| (std::cmp::Reverse(*bytes), *name));
    (total, types.into_iter().map(|(name, _)| name).collect())
}

/// What people should know of how the files were read.
fn notes(decoder: &Decoder, context_length: usize) -> Vec<String> {
    let config = decoder.config();
    let mut notes = Vec::new();
    if let Some(wrapper) = config.wrapper {
        notes.push(format!("the language model of a {wrapper} model; it takes text alone"));
    }
    if decoder.mapped_bytes() > 0 {
        notes.push(format!(
            "{:.1} MiB of per-layer embeddings stay in the file, which is read as tokens need them",
            decoder.mapped_bytes() as f64 / f64::from(1 << 20)
        ));
    }
    if !decoder.left_alone().is_empty() {
        notes.push(format!("left alone: {}", decoder.left_alone().join(", ")));
    }
    if !decoder.has_head() {
        notes.push("a base model without a head: it makes vectors and no text".into());
    }
    notes.extend(config.ropes.first().and_then(|rope| rope.note(context_length)));
    notes
}

/// How a quantized checkpoint was read; `to`: what was quantized while loading.
fn notes_of_quantized(weights: &Weights, to: Option<WeightType>) -> Vec<String> {
    let Some(kept) = weights.kept_as() else { return vec![] };
    let mut notes = vec![format!("the checkpoint is quantized with {kept}")];
    if let (Some((count, from, into)), None) = (weights.widened(), to) {
        let mib = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        notes.push(format!(
            "{count} quantized matrices have no smaller exact form here than floats, and take {:.1} MiB of memory \
             instead of {:.1}",
            mib(into),
            mib(from)
        ));
    }
    if let Some(to) = to {
        notes.push(format!(
            "the weights were rounded twice: by who quantized the checkpoint, and to {to} while loading; the \
             original model rounded once is nearer to it"
        ));
    }
    notes
}

/// The argument `chat_template`: the text of a template (it has a `{`), a file that holds one, or the name of
/// one of the model's own.
fn own_template(argument: &str) -> Result<Own> {
    if argument.contains('{') {
        return Ok(Own::Text(argument.to_string()));
    }
    let file = Path::new(argument);
    let text = if file.is_file() { read_text(file, TEXT_LIMIT)? } else { None };
    Ok(text.map_or_else(|| Own::Name(argument.to_string()), Own::Text))
}

/// The files of a folder, sorted; none if it is not there.
fn folder_files(folder: &Path) -> Vec<PathBuf> {
    let entries = folder.read_dir().into_iter().flatten().flatten();
    let mut files: Vec<PathBuf> = entries.map(|entry| entry.path()).collect();
    files.sort();
    files
}

fn unreadable(path: &Path, error: std::io::Error) -> Error {
    Error::model_file(format!("cannot read {}: {error}", path.display())).with_source(error)
}
