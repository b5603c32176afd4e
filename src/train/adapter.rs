//! What was trained, as an adapter that is served and written like one that was read.

use std::path::{Path, PathBuf};

use super::options::name;
use super::params::{LoraModule, LoraParams};
use crate::config::Config;
use crate::error::Result;
use crate::lora::{self, AdapterFile, AdapterFormat, Module, Pair, WriteAdapter};
use crate::model::ProjectionId;
use crate::model::build::head_rows;
use crate::weights::names::Part;

/// The adapter of these factors. `source` is what it is called after; `base`: the model that it was trained
/// on.
pub fn file(params: &LoraParams, config: &Config, source: PathBuf, base: &str) -> AdapterFile {
    let modules: Vec<Module> = params.modules.iter().map(|trained| module(trained, config)).collect();
    AdapterFile {
        source,
        format: AdapterFormat::Trained,
        hash: lora::hash(&modules),
        base: Some(base.to_string()),
        modules,
        notes: vec![],
    }
}

fn module(trained: &LoraModule, config: &Config) -> Module {
    let LoraModule { id, inputs, outputs, rank, scale, a, b } = trained;
    let b = match heads_in_pairs(*id, config) {
        Some(heads) => in_pairs(b, *rank, &head_rows(config, *outputs, heads)),
        None => b.clone(),
    };
    let mut module = Module::new(format!("layers.{}.{}", id.layer, name(id.part)), Some(id.layer), id.part);
    module.pairs.push(Pair {
        rank: *rank,
        inputs: *inputs,
        outputs: *outputs,
        scale: *scale,
        a: a.clone(),
        b,
    });
    module
}

/// The heads of a projection whose rows transformers has in pairs (Cohere, GLM), and memory in halves.
fn heads_in_pairs(id: ProjectionId, config: &Config) -> Option<usize> {
    let mixer = config.layers.get(id.layer)?.mixer.as_ref()?;
    let attention = mixer.attention().filter(|_| config.interleaved_in_transformers)?;
    match id.part {
        Part::Q => Some(attention.heads),
        Part::K => Some(attention.kv_heads),
        _ => None,
    }
}

/// The rows of B back where the files have them; `rows`: where that is, of each row in memory.
fn in_pairs(b: &[f32], rank: usize, rows: &[usize]) -> Vec<f32> {
    let mut there = vec![0.0; b.len()];
    for (row, own) in rows.iter().zip(b.chunks_exact(rank.max(1))) {
        there[row * rank..(row + 1) * rank].copy_from_slice(own);
    }
    there
}

/// Writes the adapter into a folder, as peft has it.
///
/// # Errors
/// `ModelFile` if it cannot be written.
pub fn write(folder: &Path, params: &LoraParams, config: &Config, base: &str) -> Result<()> {
    let modules: Vec<Module> = params.modules.iter().map(|trained| module(trained, config)).collect();
    lora::write_peft(folder, &WriteAdapter { family: &config.family, base: Some(base), modules: &modules })
}
