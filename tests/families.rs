//! Every family's decoder against transformers in float32, on tiny random checkpoints (tests/golden/families):
//! from safetensors and from GGUF, the whole prompt at once, in chunks, and token by token.

use std::path::{Path, PathBuf};

use tallow::cache::storage::KvCache;
use tallow::config::{self, Config};
use tallow::error::Result;
use tallow::kernels::{KvType, Ops};
use tallow::model::decoder::Decoder;
use tallow::step::{StateTable, StateWrite, Step, pages_for};
use tallow::weights::{Gguf, Weights, safetensors};

/// Largest difference of a logit that is allowed.
const TOLERANCE: f32 = 1e-4;

/// llama.cpp's files of the llama architecture have no key for a window, so that only the positions within one
/// can agree.
const WINDOW_NOT_IN_GGUF: (&str, usize) = ("mistral-window", 8);

/// How a prompt is cut into steps.
const CUTS: &[(&str, usize)] = &[("whole", usize::MAX), ("chunks of 7", 7), ("token by token", 1)];

struct Reference {
    tokens: Vec<u32>,
    logits: Vec<f32>,
}

#[test]
fn every_family_agrees_with_transformers() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/families");
    let mut names: Vec<PathBuf> =
        root.read_dir().unwrap().map(|entry| entry.unwrap().path()).filter(|path| path.is_dir()).collect();
    names.sort();
    assert!(names.len() >= 30, "only {} variants found", names.len());
    let mut failures = Vec::new();
    let mut checked = 0;
    for folder in &names {
        let forms = [("safetensors", true), ("gguf", folder.join("model.gguf").exists())];
        for (form, _) in forms.iter().filter(|(_, exists)| *exists) {
            for (ops_name, ops) in [("cpu", Ops::cpu(2, KvType::F32).unwrap()), ("candle", candle())] {
                checked += 1;
                let name = format!("{} {form} {ops_name}", folder.file_name().unwrap().to_string_lossy());
                match check(folder, form, ops) {
                    Ok(worst) if worst <= TOLERANCE => {}
                    Ok(worst) => failures.push(format!("{name}: differs by {worst:.2e}")),
                    Err(error) => failures.push(format!("{name}: {error:?}")),
                }
            }
        }
    }
    assert!(failures.is_empty(), "{} of {checked} failed:\n{}", failures.len(), failures.join("\n"));
}

/// The same graph over candle's own operations: the path that other devices take.
fn candle() -> Ops {
    Ops::candle(candle_core::Device::Cpu, candle_core::DType::F32)
}

/// The largest difference over all prompts and cuts.
fn check(folder: &Path, form: &str, ops: Ops) -> Result<f32> {
    let (config, weights) = open(folder, form)?;
    let meta: serde_json::Value =
        serde_json::from_str(&std::fs::read_to_string(folder.join("meta.json")).unwrap()).unwrap();
    let context = meta["context_length"].as_u64().map_or(config.context, |n| n as usize);
    let vocab = config.vocab;
    let decoder = Decoder::build(config, &weights, ops, context, None, &mut || Ok(()))?;
    let windowless = form == "gguf" && folder.ends_with(WINDOW_NOT_IN_GGUF.0);
    let compared = if windowless { WINDOW_NOT_IN_GGUF.1 * vocab } else { usize::MAX };
    let mut worst = 0f32;
    for reference in references(folder) {
        for (_, cut) in CUTS {
            let logits = run(&decoder, &reference.tokens, *cut)?;
            assert_eq!(logits.len(), reference.tokens.len() * vocab);
            for (got, want) in logits.iter().zip(&reference.logits).take(compared) {
                let difference = (got - want).abs();
                worst = if difference.is_nan() { f32::INFINITY } else { worst.max(difference) };
            }
        }
    }
    Ok(worst)
}

fn open(folder: &Path, form: &str) -> Result<(Config, Weights)> {
    if form == "gguf" {
        let gguf = Gguf::open(&folder.join("model.gguf"))?;
        return Ok((config::gguf::parse(&gguf.metadata, &gguf.weights)?, gguf.weights));
    }
    let text = std::fs::read_to_string(folder.join("config.json")).unwrap();
    Ok((config::hf::parse(&text)?, safetensors::open(folder)?))
}

fn run(decoder: &Decoder, tokens: &[u32], cut: usize) -> Result<Vec<f32>> {
    let pages = pages_for(tokens.len());
    let groups = decoder.kv_layout().windows().len();
    let cache: KvCache = decoder.new_cache(groups * pages + 3, 2)?;
    // Pages backwards and not from zero: nothing may rely on their order.
    let all: Vec<u32> = (0..(groups * pages) as u32).rev().map(|page| page + 3).collect();
    let tables: Vec<Vec<u32>> = all.chunks(pages).map(<[u32]>::to_vec).collect();
    let mut logits = Vec::new();
    let mut position = 0;
    for chunk in tokens.chunks(cut.min(tokens.len())) {
        let mut step = Step::default();
        let rows = step.push_span(chunk, position, tables.clone(), state(decoder, position, chunk.len()));
        let rows: Vec<u32> = rows.map(|row| row as u32).collect();
        let hidden = decoder.forward(&step, &cache, &rows)?;
        logits.extend(decoder.ops().into_vec(decoder.head(&hidden)?)?);
        position += chunk.len();
    }
    Ok(logits)
}

/// Where recurrent state is, if the decoder has some: from one slot into another, and back.
fn state(decoder: &Decoder, position: usize, rows: usize) -> StateTable {
    if !decoder.kv_layout().has_state() {
        return StateTable::default();
    }
    let read = (position > 0).then_some(0);
    let write = |slot| StateWrite { rows, slot };
    StateTable { read, writes: vec![write(1), write(0)] }
}

fn references(folder: &Path) -> Vec<Reference> {
    let bytes = std::fs::read(folder.join("reference.safetensors")).unwrap();
    let file = ::safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let suffixes = ["", "_1"].into_iter().filter(|suffix| file.tensor(&format!("tokens{suffix}")).is_ok());
    suffixes
        .map(|suffix| {
            let tokens = file.tensor(&format!("tokens{suffix}")).unwrap();
            let logits = file.tensor(&format!("logits{suffix}")).unwrap();
            let wide =
                tokens.data().chunks_exact(8).map(|b| i64::from_le_bytes(b.try_into().unwrap()) as u32);
            let floats = logits.data().chunks_exact(4).map(|b| f32::from_le_bytes(b.try_into().unwrap()));
            Reference { tokens: wide.collect(), logits: floats.collect() }
        })
        .collect()
}
