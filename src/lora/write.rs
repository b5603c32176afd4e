//! Writes what was trained as a folder of peft, which peft, vLLM and llama.cpp's converter read.
//!
//! All numbers that they need are in the tensors and in `r` and `lora_alpha`, for not all of them look at
//! more than these: where a module's rank is another, its B takes the difference of the scales.

use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::Path;

use safetensors::Dtype;
use safetensors::tensor::TensorView;
use serde_json::{Map, Value, json};

use super::peft::{CONFIG, TENSORS};
use super::{Module, Pair};
use crate::config::{ModuleNames, module_names};
use crate::error::{Error, Result, quoted};
use crate::small_file::write_whole;
use crate::weights::names::{Part, module_name};

/// What is to be written.
pub struct WriteAdapter<'a> {
    /// `model_type` or `general.architecture` of the model: its modules get the names of transformers.
    pub family: &'a str,
    /// What the base is called, for people.
    pub base: Option<&'a str>,
    /// Each with one pair and nothing else.
    pub modules: &'a [Module],
}

/// Writes `adapter_config.json` and `adapter_model.safetensors` into a folder, which is made if it is not
/// there.
///
/// # Errors
/// `UnsupportedModel` naming a module that is more than one pair of factors; `ModelFile` if the files cannot
/// be written.
pub fn write_peft(folder: &Path, adapter: &WriteAdapter) -> Result<()> {
    let names = module_names(adapter.family).ok_or_else(|| {
        Error::internal(format!("there is no family {}, whose adapter is to be written", adapter.family))
    })?;
    let pairs = named(adapter.modules, names)?;
    let (rank, alpha) = common(&pairs)?;
    let tensors = tensors(&pairs, alpha)?;
    let config = config(adapter.base, &pairs, rank, alpha);
    let failed = |error: io::Error| {
        Error::model_file(format!("{}: the adapter cannot be written: {error}", folder.display()))
            .with_source(error)
    };
    std::fs::create_dir_all(folder).map_err(failed)?;
    // Without a configuration nobody reads tensors: never the old one beside the new ones.
    match std::fs::remove_file(folder.join(CONFIG)) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
        _ => {}
    }
    write_whole(&folder.join(TENSORS), &tensors).map_err(failed)?;
    write_whole(&folder.join(CONFIG), config.as_bytes()).map_err(failed)
}

/// The pairs by the paths of their modules; those of a matrix that transformers has in one, in one.
fn named(modules: &[Module], names: ModuleNames) -> Result<BTreeMap<String, Pair>> {
    let mut left: BTreeMap<(Option<usize>, String), &Module> = BTreeMap::new();
    for module in modules {
        check_plain(module)?;
        left.insert((module.layer, format!("{:?}", module.part)), module);
    }
    let fused: &[(bool, Part, &[Part])] = &[
        (names.fused_qkv, Part::Qkv, &[Part::Q, Part::K, Part::V]),
        (names.fused_gate_up, Part::GateUp, &[Part::Gate, Part::Up]),
    ];
    let mut named = BTreeMap::new();
    for module in modules {
        let whole = fused.iter().find(|(is, _, parts)| *is && parts.contains(&module.part));
        let Some((_, part, parts)) = whole else {
            named.insert(path(module.layer, module.part, names)?, module.pairs[0].clone());
            continue;
        };
        let path = path(module.layer, *part, names)?;
        if let Entry::Vacant(place) = named.entry(path) {
            let pieces = parts.iter().map(|part| left.get(&(module.layer, format!("{part:?}"))).copied());
            let pieces: Option<Vec<&Pair>> = pieces.map(|piece| piece?.pairs.first()).collect();
            let pieces = pieces.ok_or_else(|| {
                Error::unsupported(format!(
                    "{} is one matrix in this family, and only some of its parts ({parts:?}) were trained; train \
                     all of them, or none",
                    place.key()
                ))
            })?;
            place.insert(joined(&pieces));
        }
    }
    match named.is_empty() {
        true => Err(Error::invalid("an adapter without modules is not written")),
        false => Ok(named),
    }
}

fn check_plain(module: &Module) -> Result<()> {
    let Module { magnitude, lora_bias, bias, weight, rows, interleaved, .. } = module;
    let more =
        magnitude.is_some() || lora_bias.is_some() || bias.is_some() || weight.is_some() || rows.is_some();
    if more || *interleaved || module.pairs.len() != 1 {
        return Err(Error::unsupported(format!(
            "the module {} is more than a pair of factors, and only these are written; copy the adapter's own files",
            quoted(&module.name)
        )));
    }
    Ok(())
}

/// As peft has it, without `base_model.model.`.
fn path(layer: Option<usize>, part: Part, names: ModuleNames) -> Result<String> {
    let module = module_name(part, names.own)
        .ok_or_else(|| Error::internal(format!("the part {part:?} has no name in transformers")))?;
    // Nemotron-H alone calls its decoder otherwise; its embedding has a name of its own, too.
    let is_backbone = names.own.iter().any(|(part, _)| *part == Part::Embed);
    let prefix = if is_backbone { "backbone" } else { "model" };
    Ok(match (layer, part) {
        (Some(layer), _) => format!("{prefix}.layers.{layer}.{module}"),
        (None, Part::Head) => module,
        (None, _) => format!("{prefix}.{module}"),
    })
}

/// One pair for matrices one below the other. Where all have the same A it is theirs; else the new A has the
/// rows of all, and B is block diagonal.
fn joined(pieces: &[&Pair]) -> Pair {
    let outputs = pieces.iter().map(|piece| piece.outputs).sum();
    let first = pieces[0];
    if pieces.iter().all(|piece| piece.a == first.a && piece.scale == first.scale) {
        let b = pieces.iter().flat_map(|piece| piece.b.iter().copied()).collect();
        return Pair { outputs, b, ..first.clone() };
    }
    let rank: usize = pieces.iter().map(|piece| piece.rank).sum();
    let (mut a, mut b, mut before) = (Vec::new(), Vec::new(), 0);
    for piece in pieces {
        a.extend_from_slice(&piece.a);
        for row in piece.b.chunks_exact(piece.rank.max(1)) {
            let mut whole = vec![0.0; rank];
            for (to, value) in whole.iter_mut().skip(before).zip(row) {
                *to = value * (piece.scale / first.scale);
            }
            b.extend(whole);
        }
        before += piece.rank;
    }
    Pair { rank, inputs: first.inputs, outputs, scale: first.scale, a, b }
}

/// Rank and alpha of most modules.
fn common(pairs: &BTreeMap<String, Pair>) -> Result<(usize, f64)> {
    let mut counts: HashMap<(usize, u32), usize> = HashMap::new();
    for pair in pairs.values() {
        *counts.entry((pair.rank, pair.scale.to_bits())).or_default() += 1;
    }
    let most = counts.into_iter().max_by_key(|((rank, scale), count)| (*count, *rank, *scale));
    let Some(((rank, scale), _)) = most else { return Err(Error::invalid("there is nothing to write")) };
    Ok((rank, alpha(rank, f32::from_bits(scale))))
}

/// The number that is this scale when it is divided by the rank: the plainest there is.
fn alpha(rank: usize, scale: f32) -> f64 {
    let exact = f64::from(scale) * rank as f64;
    let is_it = |alpha: &f64| (alpha / rank as f64) as f32 == scale;
    [exact.round(), f64::from(exact as f32)].into_iter().find(is_it).unwrap_or(exact)
}

fn tensors(pairs: &BTreeMap<String, Pair>, alpha: f64) -> Result<Vec<u8>> {
    let bytes =
        |values: &mut dyn Iterator<Item = f32>| -> Vec<u8> { values.flat_map(f32::to_le_bytes).collect() };
    let mut all = Vec::new();
    for (path, pair) in pairs {
        let written = (alpha / pair.rank as f64) as f32;
        let factor = if written == pair.scale { 1.0 } else { pair.scale / written };
        if !factor.is_finite() {
            return Err(Error::unsupported(format!(
                "the scale of {path} cannot be written beside those of others"
            )));
        }
        let key = |which: char| format!("base_model.model.{path}.lora_{which}.weight");
        all.push((key('A'), [pair.rank, pair.inputs], bytes(&mut pair.a.iter().copied())));
        all.push((
            key('B'),
            [pair.outputs, pair.rank],
            bytes(&mut pair.b.iter().map(|value| value * factor)),
        ));
    }
    let failed = |error| Error::internal(format!("an adapter's tensors cannot be written: {error}"));
    let views = all.iter().map(|(key, shape, bytes)| {
        Ok((key.as_str(), TensorView::new(Dtype::F32, shape.to_vec(), bytes).map_err(failed)?))
    });
    let views = views.collect::<Result<Vec<_>>>()?;
    let format = HashMap::from([("format".to_owned(), "pt".to_owned())]);
    safetensors::serialize(views, Some(format)).map_err(failed)
}

fn config(base: Option<&str>, pairs: &BTreeMap<String, Pair>, rank: usize, alpha: f64) -> String {
    let others = pairs.iter().filter(|(_, pair)| pair.rank != rank);
    // Regular expressions: a dot is a dot.
    let ranks: Map<String, Value> =
        others.map(|(path, pair)| (path.replace('.', "\\."), json!(pair.rank))).collect();
    let alpha = if alpha.fract() == 0.0 && alpha.abs() < 1e15 { json!(alpha as i64) } else { json!(alpha) };
    let config = json!({
        "base_model_name_or_path": base,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "lora_alpha": alpha,
        "lora_dropout": 0.0,
        "peft_type": "LORA",
        "r": rank,
        "rank_pattern": ranks,
        "target_modules": targets(pairs),
        "task_type": "CAUSAL_LM",
        "use_dora": false,
        "use_rslora": false,
    });
    format!("{config:#}\n")
}

/// Last names where every layer has the same, else whole paths.
fn targets(pairs: &BTreeMap<String, Pair>) -> Vec<String> {
    let layer = |path: &str| {
        path.split_once(".layers.")
            .and_then(|(_, rest)| rest.split_once('.'))
            .map(|(layer, inner)| (layer.to_owned(), inner.to_owned()))
    };
    let mut layers = BTreeMap::<String, Vec<String>>::new();
    for path in pairs.keys() {
        match layer(path) {
            Some((layer, inner)) => layers.entry(layer).or_default().push(inner),
            None => return pairs.keys().cloned().collect(),
        }
    }
    // That no layer is left out in between shows by its number alone.
    let same = layers.values().collect::<std::collections::BTreeSet<_>>().len() == 1;
    match (same, layers.first_key_value()) {
        (true, Some((_, inner))) => {
            let mut names: Vec<_> =
                inner.iter().filter_map(|name| name.rsplit('.').next()).map(str::to_owned).collect();
            names.sort();
            names.dedup();
            names
        }
        _ => pairs.keys().cloned().collect(),
    }
}
