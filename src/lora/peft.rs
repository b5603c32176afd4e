//! Adapters of the peft library: `adapter_config.json` beside `adapter_model.safetensors`.
//!
//! A key of a tensor is a module's name and what the tensor is of it ([`ROLES`]). What belongs to one module
//! is collected first, then each module is checked by itself.

mod config;

use std::collections::BTreeMap;
use std::path::Path;

use self::config::{PeftConfig, ends_with};
use super::check::{self, MAX_RANK, of_outputs};
use super::place::{self, Place};
use super::{AdapterFile, AdapterFormat, Module, Pair, Table};
use crate::error::{Context, Error, Result, quoted};
use crate::weights::names::Part;
use crate::weights::{Weights, safetensors};

pub(super) const CONFIG: &str = "adapter_config.json";
pub(super) const TENSORS: &str = "adapter_model.safetensors";

/// What a tensor is of its module.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Role {
    A,
    B,
    LoraBias,
    Magnitude,
    EmbeddingA,
    EmbeddingB,
    Rows,
    Weight,
    Bias,
}

/// By the ends of keys; the first that fits counts.
const ROLES: &[(&str, Role)] = &[
    (".lora_A.weight", Role::A),
    (".lora_B.weight", Role::B),
    (".lora_B.bias", Role::LoraBias),
    (".lora_magnitude_vector", Role::Magnitude),
    // As older versions wrote it.
    (".lora_magnitude_vector.weight", Role::Magnitude),
    (".lora_embedding_A", Role::EmbeddingA),
    (".lora_embedding_B", Role::EmbeddingB),
    (".token_adapter.trainable_tokens_delta", Role::Rows),
    (".base_layer.weight", Role::Weight),
    (".base_layer.bias", Role::Bias),
    (".weight", Role::Weight),
    (".bias", Role::Bias),
];

/// The tensors of one module by what they are.
type Found = BTreeMap<Role, String>;

/// An adapter by its two files.
///
/// # Errors
/// `ModelFile` when a file is missing, damaged, or they do not belong together; `UnsupportedModel` for what
/// is not run.
pub(super) fn open(config: &Path, tensors: &Path, source: &Path) -> Result<AdapterFile> {
    let config = PeftConfig::read(config)?;
    let weights = safetensors::open(tensors)?;
    read(&config, &weights, source).context(tensors.display())
}

/// Whether this configuration has what llama.cpp's converter does not take over.
pub(super) fn is_lost_in_gguf(config: &Path) -> bool {
    config.is_file() && PeftConfig::read(config).is_ok_and(|config| config.is_lost_in_gguf())
}

fn read(config: &PeftConfig, weights: &Weights, source: &Path) -> Result<AdapterFile> {
    let mut modules = Vec::new();
    let mut left = BTreeMap::<&str, usize>::new();
    let found = collect(weights)?;
    check_saved(config, &found)?;
    for (name, found) in &found {
        match locate(config, name, found)? {
            Place::Beside(what) => *left.entry(what).or_default() += found.len(),
            Place::Layer(layer, part) => {
                modules.push(module(config, weights, name, Some(layer), part, found)?)
            }
            Place::Outside(part) => modules.push(module(config, weights, name, None, part, found)?),
        }
    }
    let notes = left.iter().map(|(what, count)| format!("left alone: {what} ({count} tensors)")).collect();
    check::finished(source, AdapterFormat::Peft, config.base.clone(), modules, notes)
}

/// All tensors, by module and role.
fn collect(weights: &Weights) -> Result<BTreeMap<String, Found>> {
    let mut modules = BTreeMap::<String, Found>::new();
    for key in weights.names() {
        let name = place::unwrapped(key);
        let role = ROLES.iter().find_map(|(end, role)| Some((name.strip_suffix(end)?, *role)));
        let known = role.filter(|(module, _)| !module.contains(".lora_"));
        let (module, role) = known.ok_or_else(|| stray(key))?;
        if let Some(other) = modules.entry(module.to_owned()).or_default().insert(role, key.to_owned()) {
            return Err(Error::model_file(format!(
                "the tensors {} and {} are the same thing",
                quoted(&other),
                quoted(key)
            )));
        }
    }
    Ok(modules)
}

fn stray(key: &str) -> Error {
    let why = match key.contains(".lora_") {
        true => {
            "it is not as peft's save_pretrained writes it (a state that was saved in another way has the \
             adapter's name in it)"
        }
        false => "no LoRA adapter has such a tensor",
    };
    Error::unsupported(format!("the tensor {}: {why}", quoted(key)))
}

/// What `modules_to_save` and `trainable_token_indices` name must be there.
fn check_saved(config: &PeftConfig, found: &BTreeMap<String, Found>) -> Result<()> {
    let has = |name: &str, role: Role| {
        found.iter().any(|(module, roles)| ends_with(module, name) && roles.contains_key(&role))
    };
    let missing = |key: &str, name: &str| {
        Err(Error::model_file(format!("{CONFIG} has {} under {key}, and no tensor is of it", quoted(name))))
    };
    if let Some(name) = config.saved.iter().find(|name| !has(name, Role::Weight)) {
        return missing("modules_to_save", name);
    }
    match config.tokens.iter().find(|(name, _)| !has(name, Role::Rows)) {
        Some((name, _)) => missing("trainable_token_indices", name),
        None => Ok(()),
    }
}

/// The place of a module; of a parameter that holds experts, where its key does not say which it is.
fn locate(config: &PeftConfig, name: &str, found: &Found) -> Result<Place> {
    match parameter(config, name, found)? {
        Some(parameter) => place::of_transformers(&parameter),
        None => place::of_transformers(name),
    }
}

/// The name of the parameter that a module's A and B are of, where it is not the module's weight. Of two in
/// one module the first stands behind `base_layer`.
fn parameter(config: &PeftConfig, name: &str, found: &Found) -> Result<Option<String>> {
    if !found.contains_key(&Role::A) {
        return Ok(None);
    }
    let module = name.strip_suffix(".base_layer").unwrap_or(name);
    // In the order that models have them in.
    let order = ["gate_up_proj", "gate_proj", "up_proj", "down_proj"];
    let path = |parameter: &&str| format!("{module}.{parameter}");
    let of_experts = |path: &String| match place::of_transformers(path) {
        Ok(Place::Layer(_, part)) => is_experts(part) && config.has_parameter(path),
        _ => false,
    };
    let paths: Vec<String> = order.iter().map(path).filter(of_experts).collect();
    let inner = module.len() < name.len();
    match &paths[..] {
        [] if inner || module.ends_with(".experts") => Err(Error::unsupported(format!(
            "the A and B of {} are of a parameter with all experts in it, and target_parameters in {CONFIG} does \
             not say of which",
            quoted(name)
        ))),
        [] => Ok(None),
        [only] if !inner => Ok(Some(only.clone())),
        [first, _] if inner => Ok(Some(first.clone())),
        [_, second] => Ok(Some(second.clone())),
        _ => Err(Error::unsupported(format!(
            "{}: {} parameters of one module are adapted in a way that is not read",
            quoted(name),
            paths.len()
        ))),
    }
}

fn is_experts(part: Part) -> bool {
    matches!(part, Part::GateExperts | Part::UpExperts | Part::GateUpExperts | Part::DownExperts)
}

fn module(
    config: &PeftConfig,
    weights: &Weights,
    name: &str,
    layer: Option<usize>,
    part: Part,
    found: &Found,
) -> Result<Module> {
    let mut module = Module::new(name.to_owned(), layer, part);
    let key = |role: Role| found.get(&role).map(String::as_str);
    module.pairs = match (key(Role::A), key(Role::B), key(Role::EmbeddingA), key(Role::EmbeddingB)) {
        (None, None, None, None) => vec![],
        (Some(a), Some(b), None, None) if part != Part::Embed => {
            let (a, b) = (check::table(weights, a)?, check::table(weights, b)?);
            let path = parameter(config, name, found)?;
            check_target(config, name, path.is_some())?;
            pairs(config, name, path.as_deref(), part, a, b)?
        }
        (None, None, Some(a), Some(b)) if part == Part::Embed || part == Part::PerLayerEmbed => {
            let (a, b) = (check::table(weights, a)?, check::table(weights, b)?);
            check_target(config, name, false)?;
            pairs(config, name, None, part, a, b)?
        }
        (a, b, ea, eb) => {
            let names: Vec<_> = [a, b, ea, eb].into_iter().flatten().map(quoted).collect();
            return Err(Error::model_file(format!(
                "the module {} needs one A and one B; it has {}",
                quoted(name),
                names.join(" and ")
            )));
        }
    };
    vectors(config, weights, found, &mut module)?;
    module.weight = key(Role::Weight).map(|key| check::table(weights, key)).transpose()?;
    module.rows = key(Role::Rows).map(|key| rows(config, weights, name, part, key)).transpose()?;
    Ok(module)
}

/// That peft would use this module's A and B: it takes no notice of those that its configuration does not
/// name.
fn check_target(config: &PeftConfig, name: &str, is_parameter: bool) -> Result<()> {
    // What is tied to a target has the same A and B, turned.
    let is_tied = config.tying && (ends_with(name, "lm_head") || ends_with(name, "embed_tokens"));
    if is_parameter || is_tied || config.targets(name) || config.has_parameter(&format!("{name}.weight")) {
        return Ok(());
    }
    Err(Error::model_file(format!(
        "there are an A and a B for {}, and target_modules in {CONFIG} does not name it: peft would ignore them",
        quoted(name)
    )))
}

/// One pair, or one for each expert. `path`: of the parameter, where the module's name is not all of it.
fn pairs(
    config: &PeftConfig,
    name: &str,
    path: Option<&str>,
    part: Part,
    a: Table,
    b: Table,
) -> Result<Vec<Pair>> {
    let weight = format!("{name}.weight");
    // A weight that is named as a parameter is known by that name.
    let is_parameter = config.has_parameter(&weight) && !config.targets(name);
    let (rank, scale) = config.scale(path.unwrap_or(if is_parameter { &weight } else { name }))?;
    if is_experts(part) {
        return experts(name, rank, scale, &a, &b);
    }
    if a.rows != rank {
        return Err(Error::model_file(format!(
            "the A of {} has rank {}, and {CONFIG} says {rank}",
            quoted(name),
            a.rows
        )));
    }
    Ok(vec![check::pair(name, a, b, scale)?])
}

/// A has the experts one after another, `[experts * rank, in]`; B has them innermost,
/// `[out, rank * experts]`.
fn experts(name: &str, rank: usize, scale: f32, a: &Table, b: &Table) -> Result<Vec<Pair>> {
    if a.rows != b.columns || !a.rows.is_multiple_of(rank) || rank > MAX_RANK {
        return Err(Error::model_file(format!(
            "the A {:?} and B {:?} of {} are not those of experts of rank {rank} each, which {CONFIG} says",
            [a.rows, a.columns],
            [b.rows, b.columns],
            quoted(name)
        )));
    }
    let count = a.rows / rank;
    let of_expert = |expert: usize| {
        let rows = a.values.chunks_exact(a.columns).skip(expert * rank).take(rank);
        let row_of_b = |row: &[f32]| row.iter().skip(expert).step_by(count).copied().collect::<Vec<f32>>();
        let own_a = Table { rows: rank, columns: a.columns, values: rows.flatten().copied().collect() };
        let own_b = b.values.chunks_exact(b.columns).flat_map(row_of_b).collect();
        check::pair(name, own_a, Table { rows: b.rows, columns: rank, values: own_b }, scale)
    };
    (0..count).map(of_expert).collect()
}

/// Magnitudes and biases.
fn vectors(config: &PeftConfig, weights: &Weights, found: &Found, module: &mut Module) -> Result<()> {
    let vector = |role: Role| found.get(&role).map(|key| check::vector(weights, key)).transpose();
    module.magnitude = vector(Role::Magnitude)?;
    module.lora_bias = vector(Role::LoraBias)?;
    module.bias = vector(Role::Bias)?;
    let name = quoted(&module.name);
    for (key, said, what, is_there) in [
        ("use_dora", config.dora, "magnitude (lora_magnitude_vector)", module.magnitude.is_some()),
        ("lora_bias", config.lora_bias, "bias beside its B", module.lora_bias.is_some()),
    ] {
        // Neither exists of an embedding's bias, nor beside experts in one parameter.
        let has_pair = module.pairs.len() == 1 && !is_experts(module.part);
        let optional = key == "lora_bias" && module.part == Part::Embed;
        if is_there && !has_pair {
            return Err(Error::model_file(format!("the module {name} has a {what} without A and B")));
        }
        if has_pair && said != is_there && !optional {
            let is_there = if is_there { "has one" } else { "has none" };
            return Err(Error::model_file(format!(
                "{key} is {said} in {CONFIG}, and of a {what} {name} {is_there}"
            )));
        }
    }
    if module.magnitude.is_some() && module.part == Part::Embed {
        return Err(Error::unsupported(format!("DoRA of an embedding ({name}) is not run")));
    }
    if let Some(pair) = module.pairs.first() {
        let outputs = pair.outputs;
        for (what, vector) in [
            ("its magnitude", &mut module.magnitude),
            ("the bias of its B", &mut module.lora_bias),
            ("its bias", &mut module.bias),
        ] {
            *vector = vector.take().map(|v| of_outputs(&module.name, what, v, outputs)).transpose()?;
        }
    }
    Ok(())
}

/// Rows of the embedding, or of the head, that are stored whole; which, the configuration says.
fn rows(
    config: &PeftConfig,
    weights: &Weights,
    name: &str,
    part: Part,
    key: &str,
) -> Result<(Vec<u32>, Table)> {
    let table = check::table(weights, key)?;
    let ids = config.tokens.iter().find(|(module, _)| ends_with(name, module)).map(|(_, ids)| ids.clone());
    let ids = ids.ok_or_else(|| {
        Error::model_file(format!("{}: trainable_token_indices in {CONFIG} does not say which", quoted(key)))
    })?;
    if !matches!(part, Part::Embed | Part::Head) {
        return Err(Error::unsupported(format!("{}: rows of this module are not replaced", quoted(key))));
    }
    if ids.len() != table.rows {
        return Err(Error::model_file(format!(
            "{} has {} rows, and trainable_token_indices in {CONFIG} names {}",
            quoted(key),
            table.rows,
            ids.len()
        )));
    }
    let mut sorted = ids.clone();
    sorted.sort_unstable();
    sorted.dedup();
    match sorted.len() == ids.len() {
        true => Ok((ids, table)),
        false => Err(Error::model_file(format!("trainable_token_indices in {CONFIG} names a token twice"))),
    }
}
