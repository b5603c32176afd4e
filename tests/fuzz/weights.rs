//! Tensor files: GGUF with all that is read of its metadata, safetensors, the index of shards, and what
//! quantized checkpoints say of their tensors.

use std::path::Path;

use tallow::config::{self, json, quantization};
use tallow::error::{ErrorKind, Result};
use tallow::model::Embedding;
use tallow::text::chat::ChatTemplate;
use tallow::text::tokenizer::Tokenizer;
use tallow::weights::{Bytes, Gguf, Weights, safetensors};

use super::parts::{Part, join, split};
use super::rules::{OF_FILES, taken};
use super::{Outcome, Target, folder, golden, models, tests, writer};

pub const GGUF: Target =
    Target { name: "gguf", parts: &[Part::Gguf], seeds: gguf_seeds, run: |input| gguf(input) };

pub const SAFETENSORS: Target = Target {
    name: "safetensors",
    parts: &[Part::Safetensors],
    seeds: safetensors_seeds,
    run: |input| sound(safetensors::from_bytes(vec(input), Path::new("model.safetensors"))),
};

pub const INDEX: Target =
    Target { name: "index", parts: &[Part::Json], seeds: || vec![INDEX_SEED.into()], run: index };

/// Parts: `config.json`, `quantize_config.json` beside it, the tensors.
pub const QUANTIZED: Target = Target {
    name: "quantized",
    parts: &[Part::Json, Part::Json, Part::Safetensors],
    seeds: quantized_seeds,
    run: quantized,
};

fn vec(input: &[u8]) -> Bytes {
    Bytes::from_vec(input.to_vec())
}

/// What a file that was taken promises: every tensor is there in its size, or is of a type that is not read.
fn sound(weights: Result<Weights>) -> Outcome {
    let is_taken = taken(&weights, OF_FILES)?;
    let Ok(weights) = weights else { return Ok(is_taken) };
    for name in weights.names() {
        match weights.get(name) {
            Ok(tensor) => {
                tensor.data.ready().map_or_else(|error| taken::<()>(&Err(error), OF_FILES), |()| Ok(true))?;
                let k = tensor.shape.last().copied().unwrap_or(1);
                let rows = tensor.shape.iter().rev().skip(1).product::<usize>();
                let size = tensor.dtype.row_bytes(k).map(|row| row * rows);
                if size != Some(tensor.data.len()) || tensor.to_f32().len() != tensor.elements() {
                    return Err(format!("{name:?}: {tensor:?}"));
                }
            }
            Err(error) if error.kind() == ErrorKind::UnsupportedModel => {}
            // An f64 becomes an f32 when it is asked for.
            Err(error) if error.message().contains("beyond what is computed with") => {}
            Err(error) => return Err(format!("{error:?}")),
        }
    }
    Ok(true)
}

fn gguf(input: &[u8]) -> Outcome {
    let file = Gguf::from_bytes(vec(input), Path::new("model-00001-of-00003.gguf"));
    let is_taken = taken(&file, OF_FILES)?;
    let Ok(Gguf { metadata, weights }) = file else { return Ok(is_taken) };
    tallow::weights::gguf::encoded_pairs(input).map_err(|error| format!("read, and not again: {error:?}"))?;
    // Most files hold no model, and that is no fault of the reader.
    let config = config::gguf::parse(&metadata, &weights);
    taken(&config, OF_FILES)?;
    if let Ok(config) = &config {
        taken(&Embedding::from_gguf(&metadata, &weights, config), OF_FILES)?;
    }
    let tokenizer = Tokenizer::from_gguf(&metadata);
    taken(&tokenizer, OF_FILES)?;
    if let Ok(tokenizer) = &tokenizer {
        models::writes_texts(tokenizer)?;
        let template = ChatTemplate::from_gguf(&metadata, tokenizer, None);
        taken(&template, &[ErrorKind::ModelFile, ErrorKind::Template])?;
    }
    sound(Ok(weights))
}

fn index(input: &[u8]) -> Outcome {
    let shard = |name: &str, at: usize| {
        let header = format!(r#"{{"{name}":{{"dtype":"F32","shape":[4],"data_offsets":[0,16]}}}}"#);
        (format!("{at}.safetensors"), writer::safetensors(&header, &[1; 16]))
    };
    let path = folder::path("model.safetensors.index.json");
    for (name, bytes) in [shard("a", 1), shard("b", 2)] {
        if !folder::path(&name).exists() {
            std::fs::write(folder::path(&name), bytes).unwrap();
        }
    }
    sound(safetensors::from_bytes(vec(input), &path))
}

const INDEX_SEED: &str =
    r#"{"metadata":{"total_size":32},"weight_map":{"a":"1.safetensors","b":"2.safetensors"}}"#;

fn quantized(input: &[u8]) -> Outcome {
    let parts = split(input, 3);
    let text = String::from_utf8_lossy(parts[0]);
    let said = json::object(&text).and_then(|root| quantization::read(&root));
    if !taken(&said, OF_FILES)? {
        return Ok(false);
    }
    let folder = folder::with(&[("quantize_config.json", parts[1]), ("model.safetensors", parts[2])]);
    let weights = quantization::open_weights(&folder.join("model.safetensors"), said.unwrap());
    let is_taken = taken(&weights, OF_FILES)?;
    let Ok(weights) = weights else { return Ok(is_taken) };
    for name in weights.names() {
        // Scales and codes that are no numbers show here.
        taken(&weights.get(name).and_then(|tensor| tensor.data.ready()), OF_FILES)?;
    }
    Ok(true)
}

fn gguf_seeds() -> Vec<Vec<u8>> {
    let split = writer::sound().pair("split.count", writer::u16_value(3)).bytes();
    let adapter = golden("adapters/gguf-half/adapter.gguf");
    let mut seeds = vec![writer::sound().bytes(), writer::every_type().bytes(), split, adapter];
    seeds.extend(models::gguf_seeds());
    seeds
}

fn safetensors_seeds() -> Vec<Vec<u8>> {
    let header = r#"{"__metadata__":{"format":"pt"},
        "a":{"dtype":"F32","shape":[2,3],"data_offsets":[0,24]},
        "b":{"dtype":"BF16","shape":[4],"data_offsets":[24,32]},
        "c":{"dtype":"I64","shape":[],"data_offsets":[32,40]},
        "d":{"dtype":"F16","shape":[0,5],"data_offsets":[40,40]},
        "e":{"dtype":"F8_E4M3","shape":[2,2],"data_offsets":[40,44]},
        "f":{"dtype":"F4","shape":[4],"data_offsets":[44,46]}}"#;
    vec![writer::safetensors(header, &[1; 46]), golden("adapters/one-layer/adapter_model.safetensors")]
}

/// Each checkpoint of a method, with two matrices of those that it has.
fn quantized_seeds() -> Vec<Vec<u8>> {
    let entries = tests("golden/quantized").read_dir().unwrap().map(|entry| entry.unwrap().path());
    let mut folders: Vec<_> = entries.filter(|path| path.is_dir()).collect();
    folders.sort();
    let seed = |folder: &std::path::PathBuf| {
        let read = |name: &str| std::fs::read(folder.join(name)).unwrap_or_default();
        let few = |name: &str| name.contains("layers.0.self_attn.k_proj") || name.starts_with("lm_head");
        let tensors = models::only(&read("model.safetensors"), few);
        join(&[read("config.json"), read("quantize_config.json"), tensors])
    };
    folders.iter().map(seed).collect()
}
