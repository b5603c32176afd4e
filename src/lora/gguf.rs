//! Adapters in GGUF, as llama.cpp's converter writes them: `blk.0.attn_q.weight.lora_a` and `.lora_b`.

use std::collections::BTreeMap;
use std::path::Path;

use super::check::{self, Numbers, wrong_shape};
use super::place::{self, Place};
use super::{AdapterFile, AdapterFormat, Module, Pair, Table};
use crate::config::{AdapterRows, adapter_rows};
use crate::error::{Context, Error, Result, quoted};
use crate::weights::names::Part;
use crate::weights::{Gguf, Metadata, Weights};

const TYPE: &str = "general.type";
const KIND: &str = "adapter.type";
const ALPHA: &str = "adapter.lora.alpha";
const INVOCATION: &str = "adapter.alora.invocation_tokens";
const LOST: &str =
    "made from a file whose use_rslora or alpha_pattern the converter drops, it would be of another strength";

/// The names of A and B of one tensor.
type Found = (Option<String>, Option<String>);

/// # Errors
/// As [`super::open`].
pub(super) fn open(path: &Path) -> Result<AdapterFile> {
    let Gguf { metadata, weights } = Gguf::open(path)?;
    read(&metadata, &weights, path).context(path.display())
}

fn read(metadata: &Metadata, weights: &Weights, path: &Path) -> Result<AdapterFile> {
    check_kind(metadata)?;
    let architecture = metadata.str("general.architecture")?.ok_or_else(|| {
        Error::model_file("there is no general.architecture, which says how the rows of B are ordered")
    })?;
    let rows = adapter_rows(architecture)?;
    if rows == AdapterRows::Changed {
        return Err(Error::unsupported(format!(
            "in GGUF files of the architecture {architecture} weights are multiplied or their rows moved, and an \
             adapter's with them; load the adapter from the folder that it was converted from"
        )));
    }
    let alpha = metadata.f32(ALPHA)?.unwrap_or(0.0);
    let modules = collect(weights)?
        .into_iter()
        .map(|(name, found)| module(weights, &name, found, alpha, rows))
        .collect::<Result<Vec<_>>>()?;
    let base = metadata.str("general.base_model.0.name")?.map(str::to_owned);
    check::finished(path, AdapterFormat::Gguf, base, modules, notes(path))
}

fn check_kind(metadata: &Metadata) -> Result<()> {
    match metadata.str(TYPE)? {
        Some("adapter") => {}
        other => {
            return Err(Error::model_file(format!(
                "{TYPE} is {}, and that of an adapter is \"adapter\": this file is a model, or part of one",
                quoted(other.unwrap_or("absent"))
            )));
        }
    }
    match metadata.str(KIND)? {
        Some("lora") => {}
        other => {
            let other = quoted(other.unwrap_or("absent"));
            return Err(Error::unsupported(format!("{KIND} is {other}, and only lora is run")));
        }
    }
    match metadata.get(INVOCATION) {
        None => Ok(()),
        Some(_) => Err(Error::unsupported(format!(
            "{INVOCATION}: an activated LoRA, which counts from these tokens of a prompt on; that is not run"
        ))),
    }
}

fn collect(weights: &Weights) -> Result<BTreeMap<String, Found>> {
    let mut modules = BTreeMap::<String, Found>::new();
    for key in weights.names() {
        if let Some(name) = key.strip_suffix(".weight.lora_a") {
            modules.entry(name.to_owned()).or_default().0 = Some(key.to_owned());
        } else if let Some(name) = key.strip_suffix(".weight.lora_b") {
            modules.entry(name.to_owned()).or_default().1 = Some(key.to_owned());
        } else {
            let why = match key.contains("_norm") {
                true => "it is a norm of the maker's model, which llama.cpp leaves out without a word",
                false => "no LoRA adapter has such a tensor",
            };
            return Err(Error::unsupported(format!("the tensor {}: {why}", quoted(key))));
        }
    }
    Ok(modules)
}

fn module(weights: &Weights, name: &str, found: Found, alpha: f32, rows: AdapterRows) -> Result<Module> {
    let (Some(a), Some(b)) = found else {
        return Err(Error::model_file(format!("the module {} needs one A and one B", quoted(name))));
    };
    let (layer, part) = match place::of_gguf(name)? {
        Place::Layer(layer, part) => (Some(layer), part),
        Place::Outside(part) => (None, part),
        Place::Beside(what) => return Err(Error::unsupported(format!("{}: {what}", quoted(name)))),
    };
    let mut module = Module::new(name.to_owned(), layer, part);
    module.interleaved = rows == AdapterRows::Interleaved && matches!(part, Part::Q | Part::K);
    module.pairs = pairs(weights, name, part, (&a, &b), alpha)?;
    Ok(module)
}

/// One pair, or one for each expert: `[experts, rank, in]` and `[experts, out, rank]`.
fn pairs(weights: &Weights, name: &str, part: Part, (a, b): (&str, &str), alpha: f32) -> Result<Vec<Pair>> {
    let (a_tables, b_tables) = (tables(weights, a)?, tables(weights, b)?);
    if a_tables.len() != b_tables.len() {
        return Err(Error::model_file(format!(
            "the module {}: A is of {} experts and B of {}",
            quoted(name),
            a_tables.len(),
            b_tables.len()
        )));
    }
    let pair = |(a, b): (Table, Table)| {
        // The embedding's A is stored a row a token.
        let a = if part == Part::Embed { a.transposed() } else { a };
        let scale = if alpha == 0.0 { 1.0 } else { alpha / b.columns as f32 };
        check::pair(name, a, b, scale)
    };
    a_tables.into_iter().zip(b_tables).map(pair).collect()
}

/// A matrix, or the matrices of a tensor with three dimensions.
pub(super) fn tables(weights: &Weights, key: &str) -> Result<Vec<Table>> {
    let Numbers { shape, values } = check::numbers(weights, key)?;
    match shape[..] {
        [rows, columns] => Ok(vec![Table { rows, columns, values }]),
        [_, rows, columns] => {
            let each = values.chunks_exact(rows * columns);
            Ok(each.map(|values| Table { rows, columns, values: values.to_vec() }).collect())
        }
        _ => Err(wrong_shape(key, &shape, "two dimensions, or three with experts")),
    }
}

/// What the converter loses can be seen where the folder that it read is at hand.
fn notes(path: &Path) -> Vec<String> {
    let beside = path.with_file_name(super::peft::CONFIG);
    let drops = super::peft::is_lost_in_gguf(&beside);
    drops.then(|| format!("{}: {LOST}; load the folder", beside.display())).into_iter().collect()
}
