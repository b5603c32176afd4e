//! What was trained, as an adapter that is served and written like one that was read.

use std::path::{Path, PathBuf};

use super::options::name;
use super::params::{LoraModule, LoraParams};
use crate::error::Result;
use crate::lora::{self, AdapterFile, AdapterFormat, Module, Pair, WriteAdapter};

/// The adapter of these factors. `source` is what it is called after; `base`: the model that it was trained on.
pub fn file(params: &LoraParams, source: PathBuf, base: &str) -> AdapterFile {
    let modules: Vec<Module> = params.modules.iter().map(module).collect();
    AdapterFile {
        source,
        format: AdapterFormat::Trained,
        hash: lora::hash(&modules),
        base: Some(base.to_string()),
        modules,
        notes: vec![],
    }
}

fn module(trained: &LoraModule) -> Module {
    let LoraModule { id, inputs, outputs, rank, scale, a, b } = trained;
    let mut module = Module::new(format!("layers.{}.{}", id.layer, name(id.part)), Some(id.layer), id.part);
    module.pairs.push(Pair {
        rank: *rank,
        inputs: *inputs,
        outputs: *outputs,
        scale: *scale,
        a: a.clone(),
        b: b.clone(),
    });
    module
}

/// Writes the adapter into a folder, as peft has it. `family` says how its modules are called.
///
/// # Errors
/// `ModelFile` if it cannot be written.
pub fn write(folder: &Path, params: &LoraParams, family: &str, base: &str) -> Result<()> {
    let modules: Vec<Module> = params.modules.iter().map(module).collect();
    lora::write_peft(folder, &WriteAdapter { family, base: Some(base), modules: &modules })
}
