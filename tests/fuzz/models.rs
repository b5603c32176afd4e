//! The small files of a model: configurations, tokenizers, adapters.

use std::collections::BTreeMap;

use ::safetensors::SafeTensors;
use serde_json::Value;
use tallow::config::{self, generation, json, modules, quantization};
use tallow::error::{ErrorKind, Result};
use tallow::lora;
use tallow::text::tokenizer::Tokenizer;

use super::parts::{Part, join, split};
use super::rules::{OF_FILES, taken};
use super::writer::{GgufFile, array_value, str_value, tensor, u32_value, value};
use super::{Outcome, Target, folder, golden, tables, tests, writer};

pub const CONFIG: Target =
    Target { name: "config", parts: &[Part::Json], seeds: config_seeds, run: configuration };

/// Parts: `tokenizer_config.json`, `tokenizer.json`.
pub const TOKENIZER: Target =
    Target { name: "tokenizer", parts: &[Part::Json, Part::Json], seeds: tokenizer_seeds, run: tokenizer };

/// Parts: `adapter_config.json` of peft or mlx-lm, and the tensors; or a GGUF file behind no configuration.
pub const ADAPTER: Target =
    Target { name: "adapter", parts: &[Part::Json, Part::Safetensors], seeds: adapter_seeds, run: adapter };

/// Every reader of a configuration, whichever file it is.
fn configuration(input: &[u8]) -> Outcome {
    let text = String::from_utf8_lossy(input);
    fn one<T>(result: Result<T>) -> Outcome {
        taken(&result, OF_FILES)
    }
    let mut is_taken = false;
    if let Ok(root) = json::object(&text) {
        generation::eos_ids(&root);
        one(quantization::read(&root))?;
        is_taken = one(config::hf::parse_object(&root))?;
    }
    let others = [
        one(generation::Generation::parse(&text)),
        one(modules::modules(&text)),
        one(modules::pooling(&text)),
        one(modules::dense(&text)),
        one(modules::normalize(&text)),
        one(modules::layer_norm(&text)),
        one(modules::sentence(&text)),
        one(modules::text(&text)),
        one(modules::tokenizer_longest(&text)),
    ];
    modules::files(input);
    others.into_iter().collect::<std::result::Result<Vec<_>, _>>()?;
    Ok(is_taken)
}

fn tokenizer(input: &[u8]) -> Outcome {
    let parts = split(input, 2);
    let tokenizer = Tokenizer::from_hf(&folder::with(&[
        ("tokenizer_config.json", parts[0]),
        ("tokenizer.json", parts[1]),
    ]));
    let is_taken = taken(&tokenizer, OF_FILES)?;
    tokenizer.as_ref().map_or(Ok(()), writes_texts)?;
    Ok(is_taken)
}

/// A tokenizer that was taken writes texts as tokens that it has, or says why not.
pub fn writes_texts(tokenizer: &Tokenizer) -> std::result::Result<(), String> {
    for text in ["", " ab c  dé\n<s>12", "zzz<|im_end|>\u{1F980}"] {
        for special in [false, true] {
            let ids = tokenizer.encode(text, special);
            taken(&ids, &[ErrorKind::ModelFile, ErrorKind::InvalidRequest])?;
            let ids = ids.unwrap_or_default();
            if ids.iter().any(|id| *id as usize >= tokenizer.vocab_size()) {
                return Err(format!("{text:?} becomes {ids:?}"));
            }
            tokenizer.decode(&ids, special);
        }
    }
    tokenizer.decode(&[0, 7, u32::MAX], true);
    Ok(())
}

fn adapter(input: &[u8]) -> Outcome {
    let parts = split(input, 2);
    let opened = match parts[0] {
        [] => {
            folder::with(&[("adapter.gguf", parts[1])]);
            lora::open(&folder::path("adapter.gguf"))
        }
        config => lora::open(&folder::with(&[
            ("adapter_config.json", config),
            ("adapter_model.safetensors", parts[1]),
        ])),
    };
    taken(&opened, OF_FILES)
}

/// The configuration of every family that has goldens, and files of other kinds.
fn config_seeds() -> Vec<Vec<u8>> {
    let entries = tests("golden/families").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<_> = entries.map(|folder| folder.join("config.json")).collect();
    paths.sort();
    let mut seeds: Vec<_> = paths.iter().filter_map(|path| std::fs::read(path).ok()).collect();
    seeds.push(tables::generation_config().to_string().into_bytes());
    let modules = r#"[{"idx":0,"name":"0","path":"","type":"sentence_transformers.models.Transformer"},
        {"idx":1,"name":"1","path":"1_Pooling","type":"sentence_transformers.models.Pooling"}]"#;
    let pooling = r#"{"word_embedding_dimension":64,"pooling_mode_mean_tokens":true,"include_prompt":true}"#;
    let dense = r#"{"in_features":64,"out_features":32,"bias":true,
        "activation_function":"torch.nn.modules.activation.Tanh"}"#;
    seeds.extend([modules, pooling, dense].map(|text| text.as_bytes().to_vec()));
    seeds
}

fn tokenizer_seeds() -> Vec<Vec<u8>> {
    let text = |json: serde_json::Value| json.to_string().into_bytes();
    let mut seeds = vec![
        join(&[text(tables::tokenizer_config()), text(tables::tokenizer())]),
        join(&[text(tables::tokenizer_config()), text(tables::unigram())]),
    ];
    for name in ["hf-bytelevel", "hf-gemma", "hf-llama", "hf-metaspace"] {
        let read = |file: &str| golden(&format!("text/{name}/{file}"));
        seeds.push(join(&[read("tokenizer_config.json"), read("tokenizer.json")]));
    }
    for (part, other) in OTHERS {
        let mut root = tables::tokenizer();
        let vocab = root["model"]["vocab"].take();
        let other: Value = serde_json::from_str(other).unwrap();
        match *part {
            "model" => root["model"] = other,
            part => root[part] = other,
        }
        root["model"]["vocab"] = vocab;
        seeds.push(join(&[text(tables::tokenizer_config()), text(root)]));
    }
    seeds
}

/// What else a part of a tokenizer may be.
const OTHERS: &[(&str, &str)] = &[
    (
        "normalizer",
        r#"{"type":"Sequence","normalizers":[{"type":"BertNormalizer","clean_text":true,
        "handle_chinese_chars":true,"strip_accents":null,"lowercase":true},{"type":"Strip","strip_left":true,
        "strip_right":true},{"type":"Prepend","prepend":"a"},{"type":"NFKD"},{"type":"StripAccents"}]}"#,
    ),
    (
        "normalizer",
        r#"{"type":"Sequence","normalizers":[{"type":"Nmt"},{"type":"Lowercase"},{"type":"ByteLevel"},
        {"type":"Replace","pattern":{"String":"a"},"content":"bb"},{"type":"Replace",
        "pattern":{"Regex":"(?<=b)a|(c)\\1"},"content":""}]}"#,
    ),
    ("normalizer", r#"{"type":"Precompiled","precompiled_charsmap":"BAAAAAIAAAABAAAAAAAAAGEA"}"#),
    (
        "pre_tokenizer",
        r#"{"type":"Sequence","pretokenizers":[{"type":"Whitespace"},{"type":"Punctuation",
        "behavior":"MergedWithPrevious"},{"type":"Digits","individual_digits":true},{"type":"UnicodeScripts"},
        {"type":"CharDelimiterSplit","delimiter":"-"},{"type":"FixedLength","length":5}]}"#,
    ),
    (
        "pre_tokenizer",
        r#"{"type":"Sequence","pretokenizers":[{"type":"BertPreTokenizer"},{"type":"WhitespaceSplit"},
        {"type":"Split","pattern":{"Regex":"(?i:'s|'t)|\\s+(?!\\S)|"},"behavior":"Contiguous","invert":true}]}"#,
    ),
    ("post_processor", r#"{"type":"BertProcessing","sep":["</s>",2],"cls":["<s>",1]}"#),
    (
        "post_processor",
        r#"{"type":"Sequence","processors":[{"type":"ByteLevel","add_prefix_space":true,"trim_offsets":false},
        {"type":"RobertaProcessing","sep":["</s>",2],"cls":["<s>",1],"trim_offsets":true,"add_prefix_space":true}]}"#,
    ),
    ("decoder", r###"{"type":"WordPiece","prefix":"##","cleanup":true}"###),
    ("decoder", r#"{"type":"BPEDecoder","suffix":"</w>"}"#),
    (
        "decoder",
        r#"{"type":"Sequence","decoders":[{"type":"Replace","pattern":{"String":"_"},"content":" "},
        {"type":"ByteFallback"},{"type":"Fuse"},{"type":"Strip","content":" ","start":1,"stop":0}]}"#,
    ),
    ("decoder", r#"{"type":"CTC","pad_token":"<unk>","word_delimiter_token":"|","cleanup":true}"#),
    (
        "model",
        r###"{"type":"WordPiece","unk_token":"<unk>","continuing_subword_prefix":"##",
        "max_input_chars_per_word":100}"###,
    ),
    ("model", r#"{"type":"WordLevel","unk_token":"<unk>"}"#),
    (
        "model",
        r#"{"type":"BPE","unk_token":"<unk>","continuing_subword_prefix":"_","end_of_word_suffix":"|",
        "fuse_unk":true,"byte_fallback":true,"dropout":0.5,"ignore_merges":true,"merges":["a b"]}"#,
    ),
];

fn adapter_seeds() -> Vec<Vec<u8>> {
    let peft =
        ["lora-bias", "one-layer", "dora", "experts", "patterns", "tokens-both", "head", "unit", "gemma3"];
    let of = |name: &str, tensors: &str| {
        let read = |file: &str| golden(&format!("adapters/{name}/{file}"));
        join(&[read("adapter_config.json"), read(tensors)])
    };
    let mut seeds: Vec<_> = peft.iter().map(|name| of(name, "adapter_model.safetensors")).collect();
    seeds.extend(["mlx-dora", "mlx-experts"].map(|name| of(name, "adapters.safetensors")));
    for name in ["gguf-half", "gguf-embedding", "gguf-experts"] {
        seeds.push(join(&[vec![], golden(&format!("adapters/{name}/adapter.gguf"))]));
    }
    seeds
}

/// A safetensors file with those tensors of another whose names are wanted.
pub fn only(bytes: &[u8], wanted: impl Fn(&str) -> bool) -> Vec<u8> {
    let file = SafeTensors::deserialize(bytes).unwrap();
    let tensors: BTreeMap<_, _> = file.tensors().into_iter().filter(|(name, _)| wanted(name)).collect();
    ::safetensors::serialize(tensors, None).unwrap()
}

/// Whole models as GGUF of some hundred bytes: a tokenizer of each kind, a template, a layer.
pub fn gguf_seeds() -> Vec<Vec<u8>> {
    let texts = |texts: &[&str]| {
        let bytes: Vec<u8> = texts.iter().flat_map(|text| writer::text(text.as_bytes())).collect();
        array_value(8, texts.len() as u64, &bytes)
    };
    let i32s = |numbers: &[i32]| {
        array_value(
            5,
            numbers.len() as u64,
            &numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>(),
        )
    };
    let f32s = |numbers: &[f32]| {
        array_value(
            6,
            numbers.len() as u64,
            &numbers.iter().flat_map(|n| n.to_le_bytes()).collect::<Vec<_>>(),
        )
    };
    let model = |family: &str| {
        let key = |name: &str| format!("{family}.{name}");
        let number = |file: GgufFile, (name, n): (&str, u32)| file.pair(&key(name), u32_value(n));
        let numbers = [
            ("embedding_length", 8),
            ("feed_forward_length", 16),
            ("block_count", 1),
            ("attention.head_count", 2),
            ("attention.head_count_kv", 1),
            ("context_length", 64),
            ("attention.sliding_window", 32),
            ("pooling_type", 1),
        ];
        let file = GgufFile::new().pair("general.architecture", str_value(family));
        let file = numbers.into_iter().fold(file, number);
        file.pair(&key("attention.layer_norm_rms_epsilon"), value(6, &1e-6f32.to_le_bytes()))
            .pair(&key("rope.freq_base"), value(6, &1e4f32.to_le_bytes()))
            .pair("tokenizer.chat_template", str_value("{% for m in messages %}{{ m.content }}{% endfor %}"))
            .tensor(tensor("token_embd.weight", &[8, 8], 0, 0))
            .tensor(tensor("blk.0.attn_q.weight", &[8, 8], 0, 256))
            .data(512)
    };
    let spm = |family: &str| {
        model(family)
            .pair("tokenizer.ggml.model", str_value("llama"))
            .pair("tokenizer.ggml.tokens", texts(&["<unk>", "<s>", "</s>", "<0x0A>", "▁", "a", "b", "ab"]))
            .pair("tokenizer.ggml.scores", f32s(&[0.0, 0.0, 0.0, 0.0, -1.0, -2.0, -3.0, -1.5]))
            .pair("tokenizer.ggml.token_type", i32s(&[2, 3, 3, 6, 1, 1, 1, 1]))
            .pair("tokenizer.ggml.bos_token_id", u32_value(1))
            .pair("tokenizer.ggml.eos_token_id", u32_value(2))
            .pair("tokenizer.ggml.add_bos_token", value(7, &[1]))
    };
    let bpe = |family: &str| {
        model(family)
            .pair("tokenizer.ggml.model", str_value("gpt2"))
            .pair("tokenizer.ggml.pre", str_value("smollm"))
            .pair("tokenizer.ggml.tokens", texts(&["<s>", "</s>", "a", "b", "Ġ", "ab", "Ġa", "1"]))
            .pair("tokenizer.ggml.merges", texts(&["a b", "Ġ a"]))
            .pair("tokenizer.ggml.token_type", i32s(&[3, 3, 1, 1, 1, 1, 1, 1]))
            .pair("tokenizer.ggml.eos_token_id", u32_value(1))
    };
    let families = ["llama", "gemma3", "qwen2", "phi3"];
    families.iter().flat_map(|family| [spm(family).bytes(), bpe(family).bytes()]).collect()
}
