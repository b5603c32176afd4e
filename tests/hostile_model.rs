//! Whole models with lies in them: every field of every file of a tiny sound model is replaced by what it
//! must never be, one at a time. Whatever comes, `Model::load` gives an error of the right kind that names
//! the file, or a model that answers; nothing panics, and nothing is allocated because a file says so.

#[path = "weights/allocations.rs"]
mod allocations;
#[path = "hostile_model/tables.rs"]
mod tables;
// The tests of the readers use the rest of it.
#[allow(dead_code)]
#[path = "weights/writer.rs"]
mod writer;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use tallow::config::Pooling;
use tallow::engine::{Event, Generation, Poll};
use tallow::error::{Error, ErrorKind};
use tallow::lm::{GenerateOptions, Lm, LmOptions};
use tallow::model::{Chat, LoadOptions, Model, Prompt};
use tallow::sample::SamplerFields;

use tables::*;

/// The largest piece of memory that loading may ask for at once; the files have 100 to 200 KiB.
const MOST_BYTES: usize = 8 << 20;
/// The longest message, in characters, with a list of all that is known: it must not repeat what a file holds
/// in megabytes.
const LONGEST_MESSAGE: usize = 2000;
/// Only a hang takes this long: an answer of three tokens takes a millisecond.
const PATIENCE: Duration = Duration::from_secs(20);

/// A folder with a sound model that cases change file by file.
struct Bench {
    folder: tempfile::TempDir,
    /// What is loaded: the folder, or a file in it.
    source: PathBuf,
    files: Vec<(&'static str, Vec<u8>)>,
    failures: Vec<String>,
    tried: usize,
    loaded: usize,
}

impl Bench {
    fn new(files: Vec<(&'static str, Vec<u8>)>, source: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let source = folder.path().join(source);
        let mut bench = Bench { folder, source, files, failures: Vec::new(), tried: 0, loaded: 0 };
        for (name, bytes) in &bench.files {
            std::fs::write(bench.folder.path().join(name), bytes).unwrap();
        }
        let sound = bench.attempt();
        assert!(matches!(sound, Ok(true)), "the sound model: {sound:?}");
        bench.tried = 1;
        bench
    }

    fn family(name: &str) -> Self {
        let read = |file: &str| std::fs::read(golden(name).join(file)).unwrap();
        let files = vec![
            ("config.json", read("config.json")),
            ("model.safetensors", read("model.safetensors")),
            ("tokenizer.json", tokenizer().to_string().into_bytes()),
            ("tokenizer_config.json", tokenizer_config().to_string().into_bytes()),
            ("generation_config.json", generation_config().to_string().into_bytes()),
        ];
        Bench::new(files, "")
    }

    fn json(&self, file: &str) -> Value {
        serde_json::from_slice(&self.files.iter().find(|(name, _)| *name == file).unwrap().1).unwrap()
    }

    /// Loads and asks with one file replaced, and puts the sound one back.
    fn try_with(&mut self, what: &str, file: &'static str, bytes: &[u8]) {
        let path = self.folder.path().join(file);
        std::fs::write(&path, bytes).unwrap();
        self.tried += 1;
        match self.attempt() {
            Ok(loaded) => self.loaded += usize::from(loaded),
            Err(problem) => self.failures.push(format!("{file} with {what}: {problem}")),
        }
        match self.files.iter().find(|(name, _)| *name == file) {
            Some((_, sound)) => std::fs::write(&path, sound).unwrap(),
            None => std::fs::remove_file(&path).unwrap(),
        }
    }

    /// Every place in a JSON file becomes every bad value in turn, and is left out.
    /// `seen`: places that need not be tried again; those that are tried are added.
    fn every_field(&mut self, file: &'static str, add: &[&str], seen: &mut HashSet<String>) {
        let sound = self.json(file);
        let mut places = Vec::new();
        collect_places(&sound, String::new(), &mut places);
        // What RoPE's numbers mean depends on the family.
        places.retain(|place| seen.insert(place.clone()) || place.starts_with("/rope_"));
        places.extend(add.iter().map(|name| format!("/{name}")));
        for place in &places {
            for value in bad_values().into_iter().map(Some).chain([None]) {
                let mut root = sound.clone();
                put(&mut root, place, value.clone());
                let shown: String =
                    value.map_or("nothing".into(), |v| v.to_string()).chars().take(40).collect();
                self.try_with(&format!("{place} = {shown}"), file, root.to_string().as_bytes());
            }
        }
    }

    /// Ok(true): it loaded and answered, or said why not in a proper error. Ok(false): a proper error at
    /// load.
    fn attempt(&self) -> Result<bool, String> {
        let load = || catch_unwind(AssertUnwindSafe(|| self.load()));
        let (loaded, largest) = allocations::largest(load);
        if largest > MOST_BYTES {
            return Err(format!("loading asked for {largest} bytes at once"));
        }
        let error = match loaded.map_err(|_| "loading panicked")? {
            Ok(model) => {
                let answered = catch_unwind(AssertUnwindSafe(|| answers(model)));
                return answered.map_err(|_| "answering panicked")?.map(|()| true);
            }
            Err(error) => error,
        };
        use ErrorKind::*;
        if !matches!(error.kind(), ModelFile | UnsupportedModel | Template | OutOfMemory) {
            return Err(format!("at load: {error:?}"));
        }
        if !error.message().contains(&*self.folder.path().to_string_lossy()) {
            return Err(format!("the message does not name the file: {error:?}"));
        }
        short(&error).map(|()| false)
    }

    fn load(&self) -> tallow::error::Result<Arc<Model>> {
        let options = LoadOptions {
            offline: Some(true),
            device: "cpu".into(),
            threads: Some(1),
            ..LoadOptions::default()
        };
        Model::load(&self.source, &options)
    }
}

/// Fails the test with all rows that failed, or if damage did nothing.
fn done(benches: impl IntoIterator<Item = Bench>) {
    let (mut tried, mut loaded, mut failures) = (0, 0, Vec::new());
    for bench in benches {
        tried += bench.tried;
        loaded += bench.loaded;
        failures.extend(bench.failures);
    }
    let shown = failures.iter().take(60).cloned().collect::<Vec<_>>().join("\n");
    assert!(failures.is_empty(), "{} of {tried} failed:\n{shown}", failures.len());
    assert!(loaded < tried, "{loaded} of {tried} loaded: the damage does nothing");
    println!("{tried} models tried, {loaded} of them loaded");
}

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families").join(family)
}

/// Text, ids and messages, all at once, each give three tokens or a proper error.
fn answers(model: Arc<Model>) -> Result<(), String> {
    let options = LmOptions { kv_memory: Some(4 << 20), ..LmOptions::default() };
    let lm = Lm::start(model, &options).map_err(|error| format!("no engine: {error:?}"))?;
    lm.sampler(SamplerFields::default()).map_err(|e| format!("the defaults: {e:?}"))?;
    let options = GenerateOptions {
        max_tokens: Some(3),
        seed: Some(1),
        logprobs: Some(2),
        ..GenerateOptions::default()
    };
    let chat = Chat::new().user("ab <|im_end|>");
    let rendered = match lm.model().template().map(|_| lm.model().render(&chat)).transpose() {
        Ok(rendered) => rendered,
        Err(error) => {
            proper(error, &Prompt::Text("ab c")).map_err(|problem| format!("template: {problem}"))?;
            None
        }
    };
    let mut prompts = vec![Prompt::Text("ab c"), Prompt::Ids(&[1, 2, 3])];
    prompts.extend(rendered.as_ref().map(Prompt::Rendered));
    let started: Vec<_> = prompts.iter().map(|prompt| lm.generate(*prompt, &options)).collect();
    for (index, (prompt, generation)) in prompts.iter().zip(started).enumerate() {
        if let Err(error) = generation.and_then(end) {
            proper(error, prompt).map_err(|problem| format!("prompt {index}: {problem}"))?;
        }
    }
    // Damaged weights give an embedding of numbers, or an error that says so.
    if let Err(error) = lm.embed("ab c", Some(Pooling::Mean), None, None).and_then(end) {
        proper(error, &Prompt::Text("ab c")).map_err(|problem| format!("embedding: {problem}"))?;
    }
    if lm.is_closed() { Err("a request ended the engine".into()) } else { Ok(()) }
}

fn end(mut generation: Generation) -> tallow::error::Result<()> {
    loop {
        match generation.next(PATIENCE) {
            Poll::Event(Event::Done(_)) => return Ok(()),
            Poll::Event(Event::Error(error)) => return Err(error),
            Poll::Event(Event::Rows(rows)) if !rows.iter().all(|value| value.is_finite()) => {
                return Err(Error::internal("rows that are no numbers"));
            }
            Poll::Event(_) => {}
            Poll::Pending => return Err(Error::internal("no answer")),
            Poll::Ended => return Err(Error::internal("no end")),
        }
    }
}

/// The requests are sound, so an error must blame the files; but a template may write an empty prompt, or
/// what its tokenizer has no token for.
fn proper(error: Error, prompt: &Prompt) -> Result<(), String> {
    use ErrorKind::*;
    short(&error)?;
    match error.kind() {
        ModelFile | UnsupportedModel | Template | ContextLength | OutOfMemory => Ok(()),
        InvalidRequest if matches!(prompt, Prompt::Rendered(_)) => Ok(()),
        _ => Err(format!("at the request: {error:?}")),
    }
}

fn short(error: &Error) -> Result<(), String> {
    let message = error.message();
    let beginning: String = message.chars().take(LONGEST_MESSAGE).collect();
    if beginning.len() < message.len() { Err(format!("a long message: {beginning}")) } else { Ok(()) }
}

/// JSON pointers of all members; of a long list or vocabulary the first few.
fn collect_places(value: &Value, path: String, places: &mut Vec<String>) {
    let escape = |key: &str| key.replace('~', "~0").replace('/', "~1");
    let children: Vec<(String, &Value)> = match value {
        Value::Object(map) => map.iter().take(40).map(|(k, v)| (escape(k), v)).collect(),
        Value::Array(list) => list.iter().enumerate().take(2).map(|(i, v)| (i.to_string(), v)).collect(),
        _ => return,
    };
    let few = if children.len() == 40 { 3 } else { 40 };
    for (key, child) in children.into_iter().take(few) {
        let path = format!("{path}/{key}");
        places.push(path.clone());
        collect_places(child, path, places);
    }
}

/// Sets or removes (`None`) what a pointer names; a new member of an object is added.
fn put(root: &mut Value, place: &str, value: Option<Value>) {
    let (parent, key) = place.rsplit_once('/').unwrap();
    let key = key.replace("~1", "/").replace("~0", "~");
    match (root.pointer_mut(parent).unwrap(), value) {
        (Value::Object(map), Some(value)) => _ = map.insert(key, value),
        (Value::Object(map), None) => _ = map.remove(&key),
        (Value::Array(list), Some(value)) => list[key.parse::<usize>().unwrap()] = value,
        (Value::Array(list), None) => _ = list.remove(key.parse().unwrap()),
        _ => unreachable!(),
    }
}

#[test]
fn every_field_of_config_json() {
    let families: [(&str, &[&str]); 8] = [
        ("llama-gqa-tied", &["rope_parameters", "layer_types", "sliding_window", "partial_rotary_factor"]),
        ("llama-llama3", &["head_dim", "quantization_config", "quantization"]),
        ("gemma2-caps", &["head_dim", "layer_types", "sliding_window_pattern"]),
        ("gemma3-nested", &["model_type", "text_config"]),
        ("phi3-longrope-short", &["original_max_position_embeddings"]),
        ("phi-parallel", &["head_dim", "num_key_value_heads", "hidden_act"]),
        ("qwen2-yarn", &["max_window_layers", "use_sliding_window"]),
        ("smollm3-nope4", &["no_rope_layers", "no_rope_layer_interval"]),
    ];
    let mut seen = HashSet::new();
    done(families.map(|(family, add)| {
        let mut bench = Bench::family(family);
        bench.every_field("config.json", add, &mut seen);
        bench
    }));
}

#[test]
fn contradictions_in_config_json() {
    let rope = |inner: Value| json!({"rope_scaling": inner});
    let cases = [
        json!({"num_attention_heads": 3}),
        json!({"num_attention_heads": 1, "num_key_value_heads": 4}),
        json!({"head_dim": 7}),
        json!({"head_dim": 1, "num_attention_heads": 32}),
        json!({"vocab_size": 63}),
        json!({"vocab_size": 65}),
        json!({"hidden_size": 1 << 20, "num_attention_heads": 1 << 20, "head_dim": 4096}),
        json!({"max_position_embeddings": 1 << 27}),
        json!({"max_position_embeddings": (1 << 27) + 1}),
        json!({"num_hidden_layers": 1024}),
        json!({"num_hidden_layers": 1}),
        json!({"layer_types": ["sliding_attention", 5], "sliding_window": 8}),
        json!({"eos_token_id": [64, 1e30, -1, "x", 4_294_967_295u32]}),
        rope(json!({"rope_type": "linear", "factor": 1e-300})),
        rope(json!({"rope_type": "linear", "factor": 1e300})),
        rope(json!({"rope_type": "dynamic", "factor": 1e30})),
        rope(json!({"rope_type": "llama3", "factor": 1e-60, "low_freq_factor": 4, "high_freq_factor": 4,
                    "original_max_position_embeddings": 1})),
        rope(json!({"rope_type": "yarn", "factor": 1e-60, "beta_fast": 1e300, "beta_slow": 1e-300})),
        rope(json!({"rope_type": "yarn", "factor": 4, "attention_factor": 1e300})),
        rope(json!({"rope_type": "yarn", "factor": 4, "mscale": 1e300, "mscale_all_dim": 1e-300})),
        rope(json!({"rope_type": "longrope", "short_factor": [1], "long_factor": [1, 1, 1, 1]})),
        rope(
            json!({"rope_type": "longrope", "short_factor": [1e-45, 1e38, 1, 1], "long_factor": [1, 1, 1, 1],
                    "original_max_position_embeddings": 1}),
        ),
        json!({"rope_theta": 1e308}),
        json!({"rope_theta": 1.0000000001}),
    ];
    let mut bench = Bench::family("llama-gqa-tied");
    let sound = bench.json("config.json");
    for case in cases {
        let mut root = sound.clone();
        root.as_object_mut().unwrap().extend(case.as_object().unwrap().clone());
        bench.try_with(&case.to_string(), "config.json", root.to_string().as_bytes());
    }
    for (what, bytes) in [
        ("nothing in it", &b""[..]),
        ("no object", b"[1]"),
        ("NaN", b"{\"model_type\": NaN}"),
        ("no UTF-8", b"\xff\xfe\x00"),
        ("a number beyond all", b"{\"model_type\":\"llama\",\"hidden_size\":1e999}"),
        ("a key twice", b"{\"model_type\":\"llama\",\"model_type\":\"gemma\"}"),
        ("deep nesting", "[".repeat(100_000).as_bytes()),
    ] {
        bench.try_with(what, "config.json", bytes);
        bench.try_with(what, "generation_config.json", bytes);
        bench.try_with(what, "tokenizer.json", bytes);
        bench.try_with(what, "tokenizer_config.json", bytes);
        bench.try_with(what, "special_tokens_map.json", bytes);
        bench.try_with(what, "added_tokens.json", bytes);
        bench.try_with(what, "model.safetensors", bytes);
    }
    done([bench]);
}

#[test]
fn every_field_of_the_companions() {
    let mut bench = Bench::family("llama-gqa-tied");
    bench.every_field("generation_config.json", &["frequency_penalty"], &mut HashSet::new());
    let lists = ["added_tokens_decoder", "extra_special_tokens", "additional_special_tokens", "image_token"];
    bench.every_field("tokenizer_config.json", &lists, &mut HashSet::new());
    let templates = [
        "{% for i in range(1000000000) %}{{ i }}{% endfor %}",
        "{% macro f(x) %}{{ f(x) }}{{ f(x) }}{% endmacro %}{{ f(1) }}",
        "{{ 'a' * 1000000000 }}",
        "{{ 10 ** 1000000 }}",
        "{% set ns = namespace(x='a') %}{% for i in range(64) %}{% set ns.x = ns.x + ns.x %}{% endfor %}{{ ns.x }}",
        "{{ 1 // 0 }}",
        "{{ raise_exception('no') }}",
        "{% if %}",
        "{{ messages[9].content }}",
        "{{ '%999999999d' | format(1) }}",
        "{{ 'a' | center(1000000000) }}",
    ];
    let nested = format!("{{{{ {}1{} }}}}", "(".repeat(20_000), ")".repeat(20_000));
    for template in templates.iter().copied().chain([nested.as_str(), &"{% if x %}".repeat(5000)]) {
        let mut root = tokenizer_config();
        root["chat_template"] = json!(template);
        let shown: String = template.chars().take(60).collect();
        bench.try_with(&shown, "tokenizer_config.json", root.to_string().as_bytes());
    }
    done([bench]);
}

#[test]
fn every_field_of_tokenizer_json() {
    done([tokenizer(), unigram()].map(|tokenizer| {
        let mut bench = Bench::family("llama-gqa-tied");
        let text = tokenizer.to_string().into_bytes();
        std::fs::write(bench.folder.path().join("tokenizer.json"), &text).unwrap();
        bench.files.iter_mut().find(|(name, _)| *name == "tokenizer.json").unwrap().1 = text;
        bench.every_field("tokenizer.json", &[], &mut HashSet::new());
        for id in [63u64, 64, 1 << 16, 1 << 20, (1 << 24) - 1, 1 << 24, 4_000_000_000, u32::MAX as u64] {
            let mut root = bench.json("tokenizer.json");
            if root["model"]["vocab"].is_object() {
                root["model"]["vocab"]["new"] = json!(id);
                bench.try_with(&format!("a token {id}"), "tokenizer.json", root.to_string().as_bytes());
            }
            let mut root = bench.json("tokenizer.json");
            let new = json!({"id": id, "content": "<new>", "special": false, "single_word": false,
                             "lstrip": true, "rstrip": true, "normalized": true});
            root["added_tokens"].as_array_mut().unwrap().push(new);
            bench.try_with(&format!("an added token {id}"), "tokenizer.json", root.to_string().as_bytes());
        }
        bench
    }));
}

#[test]
fn a_tokenizer_json_beside_a_gguf_file() {
    let bytes = std::fs::read(golden("llama-gqa-tied").join("model.gguf")).unwrap();
    let mut file = read_gguf(&bytes);
    let mut original = tokenizer();
    let vocab = original["model"]["vocab"].as_object().unwrap();
    let tokens: Vec<u8> = vocab.keys().flat_map(|token| writer::text(token.as_bytes())).collect();
    for (key, value) in &mut file.pairs {
        match key.as_slice() {
            b"tokenizer.ggml.pre" => *value = writer::str_value("brandnew"),
            b"tokenizer.ggml.tokens" => *value = writer::array_value(8, vocab.len() as u64, &tokens),
            _ => {}
        }
    }
    let bench = Bench::new(vec![("model.gguf", bytes)], "model.gguf");
    std::fs::write(bench.folder.path().join("model.gguf"), file.bytes()).unwrap();
    let error = bench.load().unwrap_err();
    assert!(error.message().contains("tokenizer.json"), "{error:?}");
    // the advice can be followed, and what stood there before is not what is used
    let beside = bench.folder.path().join("tokenizer.json");
    std::fs::write(&beside, original.to_string()).unwrap();
    let first = bench.load().unwrap();
    assert_eq!(first.tokenizer().source(), "tokenizer.json");
    original["post_processor"] = Value::Null;
    std::fs::write(&beside, original.to_string()).unwrap();
    let second = bench.load().unwrap();
    let ids = [&first, &second].map(|model| model.prompt_ids(&Prompt::Text("ab")).unwrap());
    assert!(ids[0].len() == ids[1].len() + 1 && first.fingerprint() != second.fingerprint(), "{ids:?}");

    // a prompt is to be continued: what ends a text does not end it
    let ends = |text: &str| json!({"SpecialToken": {"id": text, "type_id": 0}});
    let whole = json!([ends("<s>"), {"Sequence": {"id": "A", "type_id": 0}}, ends("</s>")]);
    original["post_processor"] = tokenizer()["post_processor"].clone();
    original["post_processor"]["single"] = whole;
    original["post_processor"]["special_tokens"]["</s>"] =
        json!({"id": "</s>", "ids": [2], "tokens": ["</s>"]});
    std::fs::write(&beside, original.to_string()).unwrap();
    let third = bench.load().unwrap();
    assert_eq!((third.tokenizer().prefix(), third.tokenizer().suffix()), (&[1][..], &[2][..]));
    assert_eq!(third.prompt_ids(&Prompt::Text("ab")).unwrap(), ids[0]);

    original["model"]["vocab"]["a"] = json!(63);
    std::fs::write(&beside, original.to_string()).unwrap();
    let error = bench.load().unwrap_err();
    assert!(error.message().contains("not this model's tokenizer"), "{error:?}");
}

/// Gemma 3 1B's tokenizer has one control token more than its embedding has rows (an image's place).
#[test]
fn a_control_token_beyond_the_embedding_is_no_reason_to_refuse() {
    let bench = Bench::family("llama-gqa-tied");
    let load = |special: bool| {
        let mut root = tokenizer();
        let new = json!({"id": 64, "content": "<image>", "special": special, "single_word": false,
                         "lstrip": false, "rstrip": false, "normalized": false});
        root["added_tokens"].as_array_mut().unwrap().push(new);
        std::fs::write(bench.folder.path().join("tokenizer.json"), root.to_string()).unwrap();
        bench.load()
    };
    let error = load(false).unwrap_err();
    assert!(error.message().contains("<image>") && error.kind() == ErrorKind::ModelFile, "{error:?}");
    let model = load(true).unwrap();
    let ids = model.prompt_ids(&Prompt::Text("ab <image>")).unwrap();
    assert!(!ids.is_empty() && ids.iter().all(|id| *id < 64), "{ids:?}");
}

#[test]
fn every_key_of_a_gguf_file() {
    let families = ["llama-gqa-tied", "gemma3-linear", "phi3-longrope-short", "qwen2-yarn", "smollm3-nope4"];
    done(families.map(|family| {
        let bytes = std::fs::read(golden(family).join("model.gguf")).unwrap();
        let sound = read_gguf(&bytes);
        let mut bench = Bench::new(vec![("model.gguf", sound.bytes())], "model.gguf");
        let architecture = sound.pairs.iter().find(|(key, _)| key == b"general.architecture").unwrap();
        let architecture = String::from_utf8_lossy(&architecture.1[12..]).into_owned();
        let more = [
            "attention.sliding_window_pattern",
            "rope.scaling.factor",
            "rope.dimension_count",
            "pooling_type",
        ];
        let more: Vec<Vec<u8>> =
            more.iter().map(|key| format!("{architecture}.{key}").into_bytes()).collect();
        // One family stands for all in what they share.
        let shared = |key: &[u8]| key.starts_with(b"tokenizer.") || key.starts_with(b"general.");
        let own = sound.pairs.iter().filter(|(key, _)| family == families[0] || !shared(key));
        let keys: Vec<Vec<u8>> = own.map(|(key, _)| key.clone()).chain(more).collect();
        for key in keys {
            let mut absent = sound.clone();
            absent.pairs.retain(|(other, _)| *other != key);
            let name = String::from_utf8_lossy(&key).into_owned();
            bench.try_with(&format!("no {name}"), "model.gguf", &absent.bytes());
            for (shown, value) in bad_gguf_values() {
                let mut file = absent.clone();
                file.pairs.push((key.clone(), value));
                bench.try_with(&format!("{name} = {shown}"), "model.gguf", &file.bytes());
            }
        }
        bench
    }));
}

#[test]
fn every_tensor_of_a_gguf_file() {
    done(["llama-bias", "gemma3-linear", "phi3-longrope-short", "qwen3-tied"].map(|family| {
        let sound = read_gguf(&std::fs::read(golden(family).join("model.gguf")).unwrap());
        let mut bench = Bench::new(vec![("model.gguf", sound.bytes())], "model.gguf");
        for at in 0..sound.tensors.len() {
            let name = String::from_utf8_lossy(&sound.tensors[at].name).into_owned();
            if name.starts_with("blk.1.") {
                continue; // as blk.0.
            }
            let mut change = |what: &str, change: &dyn Fn(&mut writer::TensorEntry)| {
                let mut file = sound.clone();
                change(&mut file.tensors[at]);
                bench.try_with(&format!("{name}: {what}"), "model.gguf", &file.bytes());
            };
            change("renamed", &|t| t.name.push(b'x'));
            change("turned", &|t| t.dims.reverse());
            change("flat", &|t| t.dims = vec![t.dims.iter().product()]);
            change("one more dimension", &|t| t.dims.push(1));
            change("no dimension", &|t| t.dims.clear());
            change("empty", &|t| t.dims[0] = 0);
            change("shorter", &|t| t.dims[0] -= 1);
            change("one row less", &|t| *t.dims.last_mut().unwrap() -= 1);
            change("huge", &|t| t.dims[0] = 1 << 62);
            for ty in [0, 1, 2, 8, 12, 14, 16, 24, 30, 99, u32::MAX] {
                change(&format!("type {ty}"), &move |t| t.ty = ty);
            }
        }
        for (what, pattern) in [
            ("NaN", f32::NAN.to_le_bytes()),
            ("infinity", f32::INFINITY.to_le_bytes()),
            ("zero", [0; 4]),
            ("the largest number", f32::MAX.to_le_bytes()),
        ] {
            let mut file = sound.clone();
            file.data = pattern.into_iter().cycle().take(file.data.len()).collect();
            bench.try_with(&format!("weights of {what}"), "model.gguf", &file.bytes());
        }
        bench
    }));
}

#[test]
fn every_tensor_of_a_safetensors_file() {
    done(["llama-bias", "phi3-longrope-short", "gemma2-caps"].map(|family| {
        let mut bench = Bench::family(family);
        let bytes = std::fs::read(golden(family).join("model.safetensors")).unwrap();
        let len = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
        let header: Map<String, Value> = serde_json::from_slice(&bytes[8..8 + len]).unwrap();
        let data = &bytes[8 + len..];
        let names: Vec<String> = header.keys().filter(|key| *key != "__metadata__").cloned().collect();
        for name in names {
            let mut change = |what: &str, change: &dyn Fn(&mut Map<String, Value>)| {
                let mut header = header.clone();
                change(&mut header);
                let file = writer::safetensors(&Value::Object(header).to_string(), data);
                bench.try_with(&format!("{name}: {what}"), "model.safetensors", &file);
            };
            change("renamed", &|h| {
                let tensor = h.remove(&name).unwrap();
                h.insert(format!("{name}x"), tensor);
            });
            change("turned", &|h| h[&name]["shape"].as_array_mut().unwrap().reverse());
            change("one more dimension", &|h| h[&name]["shape"].as_array_mut().unwrap().push(json!(1)));
            change("half as wide", &|h| h[&name]["dtype"] = json!("BF16"));
            change("integers", &|h| h[&name]["dtype"] = json!("I32"));
            change("huge", &|h| h[&name]["shape"][0] = json!(1u64 << 62));
        }
        for pattern in [f32::NAN.to_le_bytes(), f32::INFINITY.to_le_bytes(), [0; 4], f32::MAX.to_le_bytes()] {
            let data: Vec<u8> = pattern.into_iter().cycle().take(data.len()).collect();
            let file = writer::safetensors(&Value::Object(header.clone()).to_string(), &data);
            bench.try_with(&format!("weights of {pattern:?}"), "model.safetensors", &file);
        }
        bench
    }));
}
