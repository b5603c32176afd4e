//! Adapters of mlx-lm: `adapter_config.json` beside `adapters.safetensors`, with A and B the other way round
//! than peft has them, and a scale that is no alpha.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value};

use super::check::{self, of_outputs};
use super::gguf::tables;
use super::place::{self, Place};
use super::{AdapterFile, AdapterFormat, Module, Pair, Table};
use crate::config::fields::Fields;
use crate::config::json::{self, shown};
use crate::error::{Context, Error, Result, quoted};
use crate::weights::names::Part;
use crate::weights::{Weights, safetensors};

pub(super) const TENSORS: &str = "adapters.safetensors";
/// What mlx-lm calls the experts of a layer in one tensor.
const EXPERTS: (&str, &str) = ("mlp.switch_mlp.", "mlp.experts.");

/// The names of the tensors of one module.
#[derive(Default)]
struct Found {
    a: Option<String>,
    b: Option<String>,
    magnitude: Option<String>,
}

struct MlxConfig {
    scale: f32,
    rank: Option<usize>,
    dora: bool,
    base: Option<String>,
}

/// Whether this is the configuration of mlx-lm, and not of peft.
pub(super) fn is_config(root: &Map<String, Value>) -> bool {
    root.contains_key("lora_parameters") || root.contains_key("fine_tune_type")
}

/// # Errors
/// As [`super::open`].
pub(super) fn open(config: &Path, tensors: &Path, source: &Path) -> Result<AdapterFile> {
    let root = json::read_object(config)?.ok_or_else(|| {
        Error::model_file(format!(
            "there is no {} beside the tensors; it has the scale that they enter with",
            config.display()
        ))
    })?;
    let config = parse(&root).context(config.display())?;
    let weights = safetensors::open(tensors)?;
    read(&config, &weights, source).context(tensors.display())
}

fn parse(root: &Map<String, Value>) -> Result<MlxConfig> {
    let fields = Fields(root);
    let dora = match fields.str("fine_tune_type")? {
        None | Some("lora") => false,
        Some("dora") => true,
        Some(kind) => {
            return Err(Error::unsupported(format!(
                "fine_tune_type is {}: this is no adapter, but a model of its own; fuse it with mlx_lm.fuse and load \
                 the result",
                quoted(kind)
            )));
        }
    };
    let parameters = fields.object("lora_parameters")?.ok_or_else(|| {
        Error::model_file("there is no lora_parameters, which has the scale that A and B enter with")
    })?;
    // `keys` and `num_layers` say what was trained; the tensors show it.
    for (key, value) in parameters {
        if !["rank", "scale", "dropout", "keys"].contains(&key.as_str()) {
            return Err(Error::unsupported(format!(
                "lora_parameters has {} = {}, and it is not known what that does to the numbers",
                quoted(key),
                shown(value)
            )));
        }
    }
    let parameters = Fields(parameters);
    let scale = parameters
        .f64("scale")?
        .ok_or_else(|| Error::model_file("lora_parameters has no scale, which A and B are multiplied by"))?;
    Ok(MlxConfig {
        scale: scale as f32,
        rank: parameters.usize("rank")?,
        dora,
        base: fields.str("model")?.map(str::to_owned),
    })
}

fn read(config: &MlxConfig, weights: &Weights, source: &Path) -> Result<AdapterFile> {
    let mut modules = Vec::new();
    let mut left = BTreeMap::<&str, usize>::new();
    for (name, found) in collect(weights)? {
        match place::of_transformers(&name.replacen(EXPERTS.0, EXPERTS.1, 1))? {
            Place::Beside(what) => *left.entry(what).or_default() += 1,
            Place::Layer(layer, part) => {
                modules.push(module(config, weights, &name, Some(layer), part, found)?)
            }
            Place::Outside(part) => modules.push(module(config, weights, &name, None, part, found)?),
        }
    }
    let notes = left.iter().map(|(what, count)| format!("left alone: {what} ({count} modules)")).collect();
    check::finished(source, AdapterFormat::Mlx, config.base.clone(), modules, notes)
}

fn collect(weights: &Weights) -> Result<BTreeMap<String, Found>> {
    let mut modules = BTreeMap::<String, Found>::new();
    for key in weights.names() {
        let (name, role) = key.rsplit_once('.').unwrap_or(("", key));
        let found = modules.entry(name.to_owned()).or_default();
        let place = match role {
            "lora_a" => &mut found.a,
            "lora_b" => &mut found.b,
            "m" => &mut found.magnitude,
            _ => {
                return Err(Error::unsupported(format!(
                    "the tensor {}: no LoRA adapter of mlx-lm has such a tensor",
                    quoted(key)
                )));
            }
        };
        *place = Some(key.to_owned());
    }
    Ok(modules)
}

fn module(
    config: &MlxConfig,
    weights: &Weights,
    name: &str,
    layer: Option<usize>,
    part: Part,
    found: Found,
) -> Result<Module> {
    let Found { a: Some(a), b: Some(b), magnitude } = found else {
        return Err(Error::model_file(format!("the module {} needs one A and one B", quoted(name))));
    };
    let mut module = Module::new(name.to_owned(), layer, part);
    module.pairs = pairs(config, weights, name, (&a, &b))?;
    if magnitude.is_some() != config.dora {
        let there = if config.dora { "has no magnitude (m)" } else { "has a magnitude (m)" };
        let kind = if config.dora { "dora" } else { "lora" };
        return Err(Error::model_file(format!("fine_tune_type is {kind}, and {} {there}", quoted(name))));
    }
    if let Some(key) = magnitude {
        if part == Part::Embed {
            return Err(Error::unsupported(format!("DoRA of an embedding ({}) is not run", quoted(name))));
        }
        let outputs = module.pairs.first().map_or(0, |pair| pair.outputs);
        module.magnitude = Some(of_outputs(name, "its magnitude", check::vector(weights, &key)?, outputs)?);
    }
    Ok(module)
}

/// `[in, rank]` and `[rank, out]`; of experts `[experts, rank, in]` and `[experts, out, rank]`.
fn pairs(config: &MlxConfig, weights: &Weights, name: &str, (a, b): (&str, &str)) -> Result<Vec<Pair>> {
    let has_experts = weights.shape(a).is_some_and(|shape| shape.len() == 3);
    let (a, b) = (tables(weights, a)?, tables(weights, b)?);
    if a.len() != b.len() {
        return Err(Error::model_file(format!(
            "the module {}: A is of {} experts and B of {}",
            quoted(name),
            a.len(),
            b.len()
        )));
    }
    let turned = |table: Table| if has_experts { table } else { table.transposed() };
    let pair = |(a, b): (Table, Table)| {
        let pair = check::pair(name, turned(a), turned(b), config.scale)?;
        match config.rank {
            Some(rank) if rank != pair.rank => Err(Error::model_file(format!(
                "the module {} has rank {}, and lora_parameters says {rank}",
                quoted(name),
                pair.rank
            ))),
            _ => Ok(pair),
        }
    };
    a.into_iter().zip(b).map(pair).collect()
}
