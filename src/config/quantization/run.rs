//! Methods of quantization that are run, as plain data for [`Weights::join`](crate::weights::Weights::join).
//!
//! Every key of a configuration is used, known to change nothing of the weights, or refused by name: what
//! its tensors mean may hang on any of them. Activations stay exact whatever a file says of quantizing them.

mod auto_round;

use regex::{Regex, RegexBuilder};
use serde_json::Value;

use super::{Object, at, is_true, text};
use crate::config::json::shown;
use crate::error::{Error, PARAGRAPH, Result, quoted, shortened};
use crate::weights::quantized::{Group, Modules, Outer, Rule, Scheme};

/// What a method does with modules, and whether all that it names must be quantized. `None`: it is not run.
pub(super) type Run = Option<(Vec<Rule>, bool)>;

/// Bytes that a compiled pattern of module names may take.
const PATTERN_LIMIT: usize = 1 << 20;

/// The rules of a configuration, by its method (in lower case, `_` as `-`).
///
/// # Errors
/// `UnsupportedModel` naming a key or value that is not understood; `ModelFile` where one is malformed.
pub(super) fn rules(method: &str, config: &Object) -> Result<Run> {
    let all = |scheme| Ok(Some((vec![Rule { modules: Modules::All, scheme: Some(scheme) }], false)));
    match method {
        "gptq" => Ok(Some((gptq(config)?, false))),
        "awq" => Ok(Some((awq(config)?, false))),
        "compressed-tensors" => compressed_tensors(config),
        "mlx" => Ok(Some((mlx(config)?, false))),
        "bitsandbytes" => all(bitsandbytes(config)?),
        "fp8" => all(fp8(config)?),
        "fbgemm-fp8" => {
            known(config, &["quant_method", "modules_to_not_convert", "activation_scale_ub"])?;
            all(Scheme::Fp8 { scales: &["weight_scale"], groups: vec![Group::Row] })
        }
        "auto-round" | "intel/auto-round" | "autoround" | "inc" => {
            Ok(auto_round::rules(config)?.map(|rules| (rules, false)))
        }
        "torchao" => {
            // What each tensor is stands in the header of the file.
            let keys = [
                "quant_method",
                "quant_type",
                "quant_type_kwargs",
                "modules_to_not_convert",
                "include_input_output_embeddings",
                "untie_embedding_weights",
            ];
            known(config, &keys)?;
            all(Scheme::Torchao)
        }
        "modelopt" | "modelopt-fp4" => Ok(modelopt(config)?.map(|rules| (rules, false))),
        _ => Ok(None),
    }
}

/// Refuses a key that is not among these.
fn known(config: &Object, keys: &[&str]) -> Result<()> {
    let unknown = config.iter().find(|(key, value)| !keys.contains(&key.as_str()) && !value.is_null());
    unknown.map_or(Ok(()), |(key, value)| {
        Err(Error::unsupported(format!(
            "the configuration of the quantization has {}: {}, which is not understood",
            quoted(key),
            shown(value)
        )))
    })
}

/// A value that is not read, where others are.
fn unread(key: &str, value: &Value, read: &str) -> Error {
    Error::unsupported(format!(
        "the configuration of the quantization says {key}: {}; {read} is read, so use the original model or a \
         GGUF file of it",
        shown(value)
    ))
}

/// Refuses a value that is none of these; one that is absent or `null` is the first.
fn one_of<'a>(config: &Object, key: &str, read: &[&'a str]) -> Result<&'a str> {
    let Some(value) = config.get(key).filter(|value| !value.is_null()) else { return Ok(read[0]) };
    let found = value.as_str().and_then(|value| read.iter().find(|read| read.eq_ignore_ascii_case(value)));
    found.copied().ok_or_else(|| unread(key, value, &read.join(" or ")))
}

/// Refuses a key that says anything but this or nothing.
fn must_be(config: &Object, key: &str, wanted: &Value) -> Result<()> {
    match config.get(key) {
        None | Some(Value::Null) => Ok(()),
        Some(value) if value == wanted => Ok(()),
        Some(value) => Err(unread(key, value, &format!("{} alone", shown(wanted)))),
    }
}

fn bits_of(config: &Object, keys: &[&str], read: &[u64]) -> Result<u32> {
    let (key, value) = first(config, keys).ok_or_else(|| missing(keys[0]))?;
    match value.as_u64().filter(|bits| read.contains(bits)) {
        Some(bits) => Ok(bits as u32),
        None => Err(unread(key, value, &format!("one of {read:?}"))),
    }
}

fn first<'a>(config: &'a Object, keys: &[&'a str]) -> Option<(&'a str, &'a Value)> {
    keys.iter().find_map(|key| Some((*key, config.get(*key).filter(|value| !value.is_null())?)))
}

fn missing(key: &str) -> Error {
    Error::model_file(format!("the configuration of the quantization does not say {key}"))
}

/// A group of a row's neighbours; -1 is the whole row.
fn group_of(config: &Object, keys: &[&str], absent: Group) -> Result<Group> {
    let Some((key, value)) = first(config, keys) else { return Ok(absent) };
    match (value.as_i64(), value.as_u64().and_then(|size| usize::try_from(size).ok())) {
        (Some(-1), _) => Ok(Group::Row),
        (_, Some(size)) if size > 0 => Ok(Group::Of(size)),
        _ => Err(Error::model_file(format!(
            "the configuration of the quantization says {key}: {}, which is no size of a group",
            shown(value)
        ))),
    }
}

fn pattern(text: &str) -> Result<Regex> {
    RegexBuilder::new(text).size_limit(PATTERN_LIMIT).dfa_size_limit(PATTERN_LIMIT).build().map_err(|error| {
        Error::unsupported(format!(
            "the configuration of the quantization names modules by {}, a regular expression that is not read: {}",
            quoted(text),
            shortened(error, PARAGRAPH)
        ))
    })
}

/// Keys of GPTQ that say how the weights were found, or what other programs should run them with.
const GPTQ_KEYS: &[&str] = &[
    "quant_method",
    "method",
    "format",
    "checkpoint_format",
    "bits",
    "group_size",
    "desc_act",
    "sym",
    "lm_head",
    "dynamic",
    "pack_dtype",
    "meta",
    "act_group_aware",
    "adapter",
    "backend",
    "batch_size",
    "block_name_to_quantize",
    "cache_block_outputs",
    "cache_examples_on_gpu",
    "damp_auto_increment",
    "damp_percent",
    "dataset",
    "device",
    "disable_exllama",
    "exllama_config",
    "failsafe",
    "fallback",
    "hessian",
    "is_marlin_format",
    "max_input_length",
    "model_file_base_name",
    "model_name_or_path",
    "model_seqlen",
    "module_name_preceding_first_block",
    "modules_in_block_to_quantize",
    "mse",
    "offload_to_disk",
    "offload_to_disk_path",
    "pad_token_id",
    "parallel_packing",
    "quantizer",
    "rotation",
    "static_groups",
    "tokenizer",
    "true_sequential",
    "use_cuda_fp16",
    "use_exllama",
    "v2",
    "v2_alpha",
    "v2_memory_device",
    "moe",
    "smooth",
    "preprocessors",
];

/// GPTQ of AutoGPTQ and gptqmodel.
fn gptq(config: &Object) -> Result<Vec<Rule>> {
    known(config, &[GPTQ_KEYS, auto_round::TUNING_KEYS].concat())?;
    must_be(config, "pack_dtype", &"int32".into())?;
    must_be(config, "is_marlin_format", &false.into())?;
    must_be(config, "rotation", &"".into())?;
    let said = if config.contains_key("checkpoint_format") { "checkpoint_format" } else { "format" };
    let minus_one = one_of(config, said, &["gptq", "gptq_v2"])? == "gptq";
    let scheme = |own: &Object| {
        Ok::<_, Error>(Scheme::Gptq {
            bits: bits_of(own, &["bits"], &[2, 3, 4, 8])?,
            group: group_of(own, &["group_size"], Group::Of(128))?,
            minus_one,
            any_order: is_true(own, "desc_act"),
            bits_by_shape: false,
        })
    };
    let mut rules = Vec::new();
    for (name, own) in config.get("dynamic").and_then(Value::as_object).into_iter().flatten() {
        let modules = Modules::Matching(pattern(name.trim_start_matches("-:").trim_start_matches("+:"))?);
        let scheme = match (name.starts_with("-:"), own) {
            (true, _) => None,
            (false, Value::Object(own)) => {
                known(own, GPTQ_KEYS)?;
                let mut whole = config.clone();
                whole.extend(own.clone());
                Some(scheme(&whole)?)
            }
            (false, other) => return Err(unread("dynamic", other, "an object for each name")),
        };
        rules.push(Rule { modules, scheme });
    }
    let usual = scheme(config)?;
    if is_true(config, "lm_head") {
        // gptqmodel 7 stores the head in 8 bits, whatever `bits` is.
        let Scheme::Gptq { bits, group, minus_one, any_order, .. } = usual else { return Ok(rules) };
        let scheme = Scheme::Gptq { bits, group, minus_one, any_order, bits_by_shape: true };
        rules.push(Rule { modules: Modules::Matching(pattern(r"(?:.*\.)?lm_head$")?), scheme: Some(scheme) });
    }
    rules.push(Rule { modules: Modules::All, scheme: Some(usual) });
    Ok(rules)
}

/// AWQ of AutoAWQ and gptqmodel, in the layout of its matrix-matrix kernel.
fn awq(config: &Object) -> Result<Vec<Rule>> {
    let own = ["w_bit", "q_group_size", "version", "zero_point", "modules_to_not_convert"];
    let fused = ["do_fuse", "fuse_max_seq_len", "modules_to_fuse"];
    known(config, &[GPTQ_KEYS, auto_round::TUNING_KEYS, &own, &fused].concat())?;
    for key in ["version", "format", "checkpoint_format"] {
        one_of(config, key, &["gemm"])?;
    }
    must_be(config, "desc_act", &false.into())?;
    must_be(config, "pack_dtype", &"int32".into())?;
    must_be(config, "dynamic", &Value::Object(Object::new()))?;
    bits_of(config, &["bits", "w_bit"], &[4])?;
    let group = group_of(config, &["group_size", "q_group_size"], Group::Of(128))?;
    Ok(vec![Rule { modules: Modules::All, scheme: Some(Scheme::Awq { group }) }])
}

/// MLX: settings for all modules, and of some by name.
fn mlx(config: &Object) -> Result<Vec<Rule>> {
    let mut rules = Vec::new();
    for (key, value) in config {
        let scheme = match value {
            _ if ["bits", "group_size", "mode", "quant_method"].contains(&key.as_str()) => continue,
            Value::Bool(false) => None,
            Value::Bool(true) => Some(mlx_scheme(config)?),
            Value::Object(own) => {
                known(own, &["bits", "group_size", "mode"])?;
                Some(mlx_scheme(own)?)
            }
            other => return Err(unread(key, other, "a module's settings, true or false")),
        };
        rules.push(Rule { modules: Modules::Named(key.clone()), scheme });
    }
    rules.push(Rule { modules: Modules::All, scheme: Some(mlx_scheme(config)?) });
    Ok(rules)
}

/// Defaults are those of `mlx.nn.quantize`.
fn mlx_scheme(own: &Object) -> Result<Scheme> {
    let fp4 = |group, powers| Scheme::Fp4 { weight: "weight", scale: "scales", group, outer: None, powers };
    Ok(match one_of(own, "mode", &["affine", "mxfp4", "nvfp4", "mxfp8"])? {
        "mxfp8" => {
            must_be(own, "group_size", &32.into())?;
            must_be(own, "bits", &8.into())?;
            Scheme::Fp8 { scales: &["scales"], groups: vec![Group::Of(32)] }
        }
        "mxfp4" => {
            must_be(own, "group_size", &32.into())?;
            must_be(own, "bits", &4.into())?;
            fp4(32, true)
        }
        "nvfp4" => {
            must_be(own, "group_size", &16.into())?;
            must_be(own, "bits", &4.into())?;
            fp4(16, false)
        }
        _ => {
            let bits = match first(own, &["bits"]) {
                None => 4,
                Some(_) => bits_of(own, &["bits"], &[2, 3, 4, 5, 6, 8])?,
            };
            match group_of(own, &["group_size"], Group::Of(64))? {
                Group::Of(group) => Scheme::Affine { bits, group },
                _ => return Err(unread("group_size", &own["group_size"], "a positive number")),
            }
        }
    })
}

fn bitsandbytes(config: &Object) -> Result<Scheme> {
    let own = |key: &String| key.starts_with("bnb_4bit_") || key.starts_with("llm_int8_");
    let rest: Object =
        config.iter().filter(|(key, _)| !own(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
    known(&rest, &["quant_method", "load_in_4bit", "load_in_8bit", "_load_in_4bit", "_load_in_8bit"])?;
    Ok(if is_true(config, "load_in_4bit") { Scheme::Table4 } else { Scheme::Rows8 })
}

/// FP8 with a scale for each block or tensor.
fn fp8(config: &Object) -> Result<Scheme> {
    let keys = [
        "quant_method",
        "activation_scheme",
        "weight_block_size",
        "modules_to_not_convert",
        "ignored_layers",
        "scale_fmt",
        "fmt",
        "expert_dtype",
        "dequantize",
        "kv_cache_scheme",
    ];
    known(config, &keys)?;
    one_of(config, "fmt", &["e4m3", "float8_e4m3fn"])?;
    one_of(config, "expert_dtype", &["fp8"])?;
    one_of(config, "scale_fmt", &["float", "ue8m0"])?;
    let groups = match config.get("weight_block_size") {
        // transformers assumes blocks, and files of before it knew them have a scale a tensor.
        None => vec![Group::Block(128, 128), Group::Tensor],
        Some(Value::Null) => vec![Group::Tensor],
        Some(size) => vec![block(size)?],
    };
    Ok(Scheme::Fp8 { scales: &["weight_scale_inv", "weight_scale"], groups })
}

fn block(size: &Value) -> Result<Group> {
    let side =
        |side: &Value| side.as_u64().and_then(|side| usize::try_from(side).ok()).filter(|side| *side > 0);
    let sides: Vec<_> = size.as_array().into_iter().flatten().map(side).collect();
    match sides[..] {
        [Some(rows), Some(columns)] => Ok(Group::Block(rows, columns)),
        _ => Err(Error::model_file(format!(
            "the size of a block is {}, where two numbers must be",
            shown(size)
        ))),
    }
}

fn modelopt(config: &Object) -> Result<Option<Vec<Rule>>> {
    let keys = [
        "quant_method",
        "quant_algo",
        "producer",
        "quantization",
        "ignore",
        "exclude_modules",
        "kv_cache_quant_algo",
        "kv_cache_scheme",
        "config_groups",
        "group_size",
        "has_zero_point",
        "pre_quant_scale",
    ];
    known(config, &keys)?;
    let inner = config.get("quantization").and_then(Value::as_object);
    if let Some(inner) = inner {
        known(inner, &keys)?;
    }
    let own = inner.unwrap_or(config);
    for key in ["has_zero_point", "pre_quant_scale"] {
        must_be(own, key, &false.into())?;
    }
    let scheme = match text(own, "quant_algo").map(str::to_ascii_uppercase).as_deref() {
        Some("FP8") => Scheme::Fp8 { scales: &["weight_scale"], groups: vec![Group::Tensor] },
        Some("NVFP4") => {
            must_be(own, "group_size", &16.into())?;
            let outer = Some(Outer { name: "weight_scale_2", divides: false });
            Scheme::Fp4 { weight: "weight", scale: "weight_scale", group: 16, outer, powers: false }
        }
        _ => return Ok(None),
    };
    Ok(Some(vec![Rule { modules: Modules::All, scheme: Some(scheme) }]))
}

fn compressed_tensors(config: &Object) -> Result<Run> {
    // The oldest keep what they say of numbers one level deeper.
    let Some(groups) = config.get("config_groups").and_then(Value::as_object) else { return Ok(None) };
    let keys = [
        "quant_method",
        "format",
        "config_groups",
        "ignore",
        "kv_cache_scheme",
        "quantization_status",
        "global_compression_ratio",
        "sparsity_config",
        "transform_config",
        "version",
    ];
    known(config, &keys)?;
    let sparse = at(config, "sparsity_config/format").and_then(Value::as_str).filter(|f| *f != "dense");
    let status = text(config, "quantization_status").unwrap_or("compressed");
    if sparse.is_some() || super::transform(config).is_some() || status != "compressed" {
        return Ok(None);
    }
    let mut rules = Vec::new();
    for name in config.get("ignore").and_then(Value::as_array).into_iter().flatten() {
        rules.push(Rule { modules: target(name)?, scheme: None });
    }
    let ignored = rules.len();
    for group in groups.values() {
        let Some(group) = group.as_object() else { return Ok(None) };
        known(group, &["targets", "weights", "input_activations", "output_activations", "format"])?;
        let Some(weights) = group.get("weights").and_then(Value::as_object) else { return Ok(None) };
        let format = text(group, "format").or(text(config, "format")).unwrap_or_default();
        let Some(scheme) = compressed_scheme(format, weights)? else { return Ok(None) };
        for name in group.get("targets").and_then(Value::as_array).into_iter().flatten() {
            rules.push(Rule { modules: target(name)?, scheme: Some(scheme.clone()) });
        }
    }
    // Names go before patterns, and those before classes.
    let rank = |rule: &Rule| match rule.modules {
        Modules::Named(_) => 0,
        Modules::Matching(_) => 1,
        _ => 2,
    };
    rules[ignored..].sort_by_key(rank);
    Ok(Some((rules, true)))
}

/// A module's name, a pattern, or the class of modules.
fn target(name: &Value) -> Result<Modules> {
    let name = name.as_str().ok_or_else(|| {
        Error::model_file(format!("a target of the quantization is {}, where a name must be", shown(name)))
    })?;
    Ok(match (name, name.strip_prefix("re:")) {
        ("Linear", _) => Modules::Linear,
        ("Embedding", _) => Modules::Embeddings,
        (_, Some(text)) => Modules::Matching(pattern(text)?),
        (name, None) => Modules::Named(name.to_owned()),
    })
}

fn compressed_scheme(format: &str, weights: &Object) -> Result<Option<Scheme>> {
    let keys = [
        "num_bits",
        "type",
        "symmetric",
        "group_size",
        "strategy",
        "block_structure",
        "dynamic",
        "actorder",
        "scale_dtype",
        "zp_dtype",
        "observer",
        "observer_kwargs",
    ];
    known(weights, &keys)?;
    must_be(weights, "dynamic", &false.into())?;
    match weights.get("actorder") {
        None | Some(Value::Null | Value::Bool(false)) => {}
        Some(Value::String(order)) if ["weight", "static"].contains(&order.as_str()) => {}
        Some(order) => return Err(unread("actorder", order, "\"weight\"")),
    }
    let symmetric = weights.get("symmetric").is_none_or(|value| value != &Value::Bool(false));
    let kind = one_of(weights, "type", &["int", "float"])?;
    let Some(group) = strategy(weights)? else { return Ok(None) };
    let powers = format.starts_with("mx");
    Ok(match (format, kind) {
        ("pack-quantized", "int") => {
            let bits = bits_of(weights, &["num_bits"], &[2, 3, 4, 5, 6, 7, 8])?;
            Some(Scheme::Packed { bits, group, symmetric })
        }
        ("int-quantized" | "naive-quantized", "int") => Some(Scheme::Int8 { group, symmetric }),
        ("float-quantized" | "naive-quantized" | "mxfp8-quantized", "float") => {
            bits_of(weights, &["num_bits"], &[8])?;
            must_be(weights, "symmetric", &true.into())?;
            Some(Scheme::Fp8 { scales: &["weight_scale"], groups: vec![group] })
        }
        ("nvfp4-pack-quantized" | "mxfp4-pack-quantized", "float") => {
            bits_of(weights, &["num_bits"], &[4])?;
            must_be(weights, "symmetric", &true.into())?;
            let wanted = if powers { 32 } else { 16 };
            if group != Group::Of(wanted) {
                return Ok(None);
            }
            let outer = (!powers).then_some(Outer { name: "weight_global_scale", divides: true });
            let (weight, scale) = ("weight_packed", "weight_scale");
            Some(Scheme::Fp4 { weight, scale, group: wanted, outer, powers })
        }
        _ => None,
    })
}

/// The groups of a strategy; where none is said, the group tells.
fn strategy(weights: &Object) -> Result<Option<Group>> {
    let group = group_of(weights, &["group_size"], Group::Tensor)?;
    Ok(match text(weights, "strategy") {
        None => Some(group),
        Some("tensor") => Some(Group::Tensor),
        Some("channel") => Some(Group::Row),
        Some("group" | "tensor_group") => match group {
            Group::Tensor => return Err(missing("group_size")),
            group => Some(group),
        },
        Some("block") => {
            Some(block(weights.get("block_structure").ok_or_else(|| missing("block_structure"))?)?)
        }
        Some(_) => None,
    })
}
