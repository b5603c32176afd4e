//! Quantized checkpoints, by what their configuration says of them: made rules of, or named and refused,
//! never misread.
//!
//! | where it stands | who writes it |
//! |---|---|
//! | `quantization_config` in `config.json`, or in a wrapper's `text_config` | transformers and most others |
//! | `quantization` (and a copy as `quantization_config`) | MLX |
//! | `compression_config` | llm-compressor's predecessors |
//! | `quantize_config.json`, `quant_config.json`, `hf_quant_config.json` | AutoGPTQ, AutoAWQ, ModelOpt |
//!
//! The names of the methods are transformers' (`QuantizationMethod` of 5.24) and those of the packages
//! themselves.
//!
//! # What says that nothing is quantized
//!
//! These load as the plain weights that they are, as in transformers 5.24 unless noted:
//!
//! - `null`, `false` or `{}` (transformers refuses `{}`; it says nothing, and the tensors are held to their
//!   types anyway);
//! - bitsandbytes with neither `load_in_4bit` nor `load_in_8bit`;
//! - compressed-tensors without `config_groups`, whatever its status: a `kv_cache_scheme` alone scales the
//!   cache for 8-bit keys and values, which are kept more exactly here; sparse weights that are stored dense
//!   (`sparsity_config` "dense") are plain weights; transforms that are in the weights already
//!   (`weight_input`, `weight_output`);
//! - ModelOpt with no `quant_algo` (its `kv_cache_quant_algo` is the same as above).
//!
//! # What is run
//!
//! MXFP4 in a family whose experts have tensors for it (gpt-oss); and what [`run`] makes rules of, by which
//! [`Weights::join`](crate::weights::Weights::join) takes the tensors of each module together.
//!
//! A file beside the weights counts only where the tensors show that they are packed: transformers never
//! reads those, and some lie beside plain weights.

mod run;

use std::path::Path;

use serde_json::{Map, Value};

use super::family::Family;
use super::json::{read_object, shown};
use crate::error::{Context, Error, PARAGRAPH, Result, quoted, shortened};
use crate::weights::quantized::Quantization;
use crate::weights::{Weights, safetensors};

type Object = Map<String, Value>;

/// Where wrappers of several models keep the language model's own configuration.
const INNER: [&str; 3] = ["text_config", "llm_config", "language_config"];
const KEYS: [&str; 3] = ["quantization_config", "quantization", "compression_config"];

/// Files beside the weights, and the method that they mean where they name none.
const FILES: [(&str, &str); 3] =
    [("quantize_config.json", "gptq"), ("quant_config.json", "awq"), ("hf_quant_config.json", "modelopt")];

/// How a `config.json` says that its weights are quantized; `None` if they are not, or as its family has them
/// anyway.
///
/// # Errors
/// `UnsupportedModel` that names a method that is not run, with its numbers, or a key of one that is.
pub fn read(root: &Object) -> Result<Option<Quantization>> {
    let inner = INNER.iter().filter_map(|key| root.get(*key)?.as_object());
    let mut said: Vec<(&Value, String)> = Vec::new();
    for object in std::iter::once(root).chain(inner) {
        let stated = KEYS.iter().filter_map(|key| object.get(*key));
        for value in stated.filter(|value| !is_run(value, object)) {
            if let Some(words) = describe(value, None) {
                said.push((value, words));
            }
        }
    }
    let Some((value, words)) = said.first() else { return Ok(None) };
    // MLX writes a copy for transformers.
    if let Some((_, other)) = said.iter().find(|(other, _)| other != value) {
        return Err(Error::unsupported(format!(
            "the checkpoint is quantized with {words}, and with {other} too; only one is run at a time"
        )));
    }
    quantization(value, words, None).map(Some)
}

/// What a method that is run says of modules.
fn quantization(value: &Value, title: &str, method: Option<&str>) -> Result<Quantization> {
    let config = value.as_object().ok_or_else(|| refusal(title))?;
    let rules = run::rules(&plain_name(config, method).unwrap_or_default(), config);
    let said = format!("the checkpoint is quantized with {title}");
    let (rules, complete) = rules.context(said)?.ok_or_else(|| refusal(title))?;
    Ok(Quantization { title: title.to_owned(), rules, complete })
}

/// Whether the family of `object` reads weights that are quantized as `value` says.
fn is_run(value: &Value, object: &Object) -> bool {
    let method = value.as_object().and_then(named);
    let family = object.get("model_type").and_then(Value::as_str);
    let family = family.and_then(|name| Family::of_model_type(name).ok());
    method.is_some_and(|method| method.eq_ignore_ascii_case("mxfp4")) && family.is_some_and(Family::has_mxfp4)
}

/// As [`read`], of a folder whose weights are packed, where a file beside them says how.
///
/// # Errors
/// As [`read`], with the file's name; `ModelFile` if the file cannot be read.
pub fn read_files(folder: &Path) -> Result<Option<Quantization>> {
    for (name, method) in FILES {
        let path = folder.join(name);
        if let Some(object) = read_object(&path)? {
            let value = Value::Object(object);
            if let Some(words) = describe(&value, Some(method)) {
                return quantization(&value, &words, Some(method)).map(Some).context(path.display());
            }
        }
    }
    Ok(None)
}

/// Opens the weights of a folder, quantized modules as matrices; `said`: what its `config.json` says of them
/// ([`read`]).
///
/// # Errors
/// As [`read_files`], [`safetensors::open`] and [`Weights::join`].
pub fn open_weights(path: &Path, said: Option<Quantization>) -> Result<Weights> {
    let folder = if path.is_dir() { path } else { path.parent().unwrap_or(Path::new(".")) };
    let mut weights = safetensors::open(path)?;
    let how = match said {
        None if weights.packed().is_some() => read_files(folder)?,
        said => said,
    };
    if let Some(how) = &how {
        weights.join(how)?;
    }
    weights.name_stacks()?;
    Ok(weights)
}

/// The one sentence about weights in a format that is not run.
pub fn refusal(words: &str) -> Error {
    Error::unsupported(format!(
        "the checkpoint is quantized with {words}, which is not run yet: use the original model or a GGUF \
         file of it"
    ))
}

/// A method with its numbers; `None` if nothing is quantized. `method`: what it is if it does not say.
fn describe(value: &Value, method: Option<&str>) -> Option<String> {
    let config = match value {
        Value::Null | Value::Bool(false) => return None,
        Value::Object(config) if config.is_empty() => return None,
        Value::Object(config) => config,
        other => return Some(format!("a method that is given as {}", shown(other))),
    };
    let Some(name) = name_of(config, method) else {
        let keys: Vec<_> = config.keys().map(String::as_str).collect();
        return Some(format!(
            "a method that it does not name (it gives {})",
            shortened(keys.join(", "), 100)
        ));
    };
    let plain = plain_name(config, method).unwrap_or_default();
    match METHODS.iter().find(|method| method.names.contains(&plain.as_str())) {
        None => Some(format!("the method {}", quoted(&name))),
        Some(method) => {
            let words = match method.words {
                Words::Numbers(numbers) => listed(method.title, numbers.iter().map(|n| n.of(config))),
                Words::Own(words) => listed(method.title, words(config)?.into_iter().map(Some)),
            };
            Some(shortened(words, PARAGRAPH))
        }
    }
}

/// The method: what the configuration says, what a file of its name is, or what its keys tell.
fn name_of(config: &Object, method: Option<&str>) -> Option<String> {
    let name = named(config).or(method.map(str::to_string));
    name.or_else(|| recognized(config).map(str::to_string))
}

/// The same in lower case, `_` as `-`.
fn plain_name(config: &Object, method: Option<&str>) -> Option<String> {
    Some(name_of(config, method)?.to_ascii_lowercase().replace('_', "-"))
}

fn listed(title: &str, words: impl Iterator<Item = Option<String>>) -> String {
    std::iter::once(title.to_string()).chain(words.flatten()).collect::<Vec<_>>().join(", ")
}

fn named(config: &Object) -> Option<String> {
    // As in transformers, these go before the name.
    if ["load_in_4bit", "load_in_8bit"].iter().any(|key| is_true(config, key)) {
        return Some("bitsandbytes".into());
    }
    config.get("quant_method").and_then(Value::as_str).map(str::to_string)
}

/// The method of a configuration that has no `quant_method`, by keys that only it has.
fn recognized(config: &Object) -> Option<&'static str> {
    let marks: [(&[&str], &str); 7] = [
        (&["load_in_4bit", "load_in_8bit"], "bitsandbytes"),
        (&["quant_algo", "producer"], "modelopt"),
        (&["config_groups", "sparsity_config", "kv_cache_scheme", "transform_config"], "compressed-tensors"),
        (&["desc_act", "damp_percent"], "gptq"),
        (&["w_bit", "zero_point"], "awq"),
        (&["quant_type"], "torchao"),
        (&["bits", "group_size", "mode"], "mlx"),
    ];
    let has = |keys: &[&str]| keys.iter().any(|key| config.contains_key(*key));
    marks.iter().find(|(keys, _)| has(keys)).map(|(_, method)| *method)
}

struct Method {
    /// `quant_method` in lower case, `_` as `-`.
    names: &'static [&'static str],
    title: &'static str,
    words: Words,
}

enum Words {
    /// What is worth telling of the configuration, in this order.
    Numbers(&'static [Number]),
    /// `None`: nothing is quantized.
    Own(fn(&Object) -> Option<Vec<String>>),
}

/// A value of the configuration: where it may stand (`/` between objects), and how it is told.
struct Number {
    paths: &'static [&'static str],
    told: &'static str,
}

const fn number(paths: &'static [&'static str], told: &'static str) -> Number {
    Number { paths, told }
}

const BITS: Number = number(&["bits", "nbits", "num_bits", "w_bit", "weight_bits"], "{} bits");
const GROUP: Number = number(&["group_size", "q_group_size"], "group {}");
const WEIGHTS: Number = number(&["weights"], "{}");

const fn method(names: &'static [&'static str], title: &'static str, numbers: &'static [Number]) -> Method {
    Method { names, title, words: Words::Numbers(numbers) }
}

const fn own(
    names: &'static [&'static str],
    title: &'static str,
    words: fn(&Object) -> Option<Vec<String>>,
) -> Method {
    Method { names, title, words: Words::Own(words) }
}

const METHODS: &[Method] = &[
    method(
        &["gptq", "gptq-marlin", "marlin"],
        "GPTQ",
        &[BITS, GROUP, number(&["checkpoint_format"], "format {}")],
    ),
    method(&["awq", "awq-marlin"], "AWQ", &[BITS, GROUP, number(&["version"], "version {}")]),
    own(&["compressed-tensors", "sparseml"], "compressed-tensors", compressed_tensors),
    own(&["fp8"], "FP8", fp8),
    method(&["fbgemm-fp8"], "FBGEMM FP8", &[]),
    method(&["mxfp4"], "MXFP4", &[]),
    method(&["mxfp8"], "MXFP8", &[]),
    method(&["nvfp4"], "NVFP4", &[]),
    own(&["modelopt", "modelopt-fp4", "modelopt-mixed"], "ModelOpt", modelopt),
    own(&["bitsandbytes"], "bitsandbytes", bitsandbytes),
    method(&["mlx", "metal"], "MLX", &[BITS, GROUP, number(&["mode"], "mode {}")]),
    method(&["torchao"], "torchao", &[number(&["quant_type/default/_type", "quant_type"], "{}")]),
    method(&["gemma"], "Gemma's own method", &[BITS]),
    method(
        &["bitnet"],
        "BitNet",
        &[number(&["linear_class"], "linear class {}"), number(&["quantization_mode"], "mode {}")],
    ),
    method(&["quark"], "Quark", &[number(&["global_quant_config/weight/dtype", "quant_mode"], "{}"), GROUP]),
    method(
        &["hqq"],
        "HQQ",
        &[
            number(&["quant_config/weight_quant_params/nbits", "nbits"], "{} bits"),
            number(&["quant_config/weight_quant_params/group_size", "group_size"], "group {}"),
        ],
    ),
    method(
        &["aqlm"],
        "AQLM",
        &[
            number(&["num_codebooks"], "{} codebooks"),
            number(&["nbits_per_codebook"], "{} bits each"),
            number(&["in_group_size"], "group {}"),
        ],
    ),
    method(&["vptq"], "VPTQ", &[]),
    method(&["spqr"], "SpQR", &[BITS]),
    method(&["higgs"], "HIGGS", &[BITS, GROUP]),
    method(&["eetq"], "EETQ", &[WEIGHTS]),
    method(&["quanto"], "Quanto", &[WEIGHTS]),
    method(&["auto-round", "intel/auto-round", "autoround", "inc"], "AutoRound", &[BITS, GROUP]),
    method(&["fp-quant"], "FP-Quant", &[number(&["forward_dtype"], "{}")]),
    method(&["fouroversix"], "Four Over Six", &[number(&["weight_dtype", "dtype"], "{}")]),
    method(&["sinq"], "SINQ", &[BITS, GROUP]),
    method(&["exl2", "exl3"], "ExLlama", &[number(&["bits"], "{} bits")]),
];

impl Number {
    fn of(&self, config: &Object) -> Option<String> {
        let value = self.paths.iter().find_map(|path| at(config, path))?;
        let text = match value {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => return None,
        };
        // A group of -1 is the whole row.
        match (self.told, text.as_str()) {
            ("group {}", "-1") => Some("one group a row".into()),
            _ => Some(self.told.replace("{}", &shortened(text.escape_debug(), 40))),
        }
    }
}

/// What stands at a path; `null` is nothing.
fn at<'a>(config: &'a Object, path: &str) -> Option<&'a Value> {
    let (first, rest) = path.split_once('/').unwrap_or((path, ""));
    match (config.get(first)?, rest) {
        (Value::Null, _) => None,
        (value, "") => Some(value),
        (value, rest) => at(value.as_object()?, rest),
    }
}

fn is_true(config: &Object, key: &str) -> bool {
    config.get(key) == Some(&Value::Bool(true))
}

fn text<'a>(config: &'a Object, path: &str) -> Option<&'a str> {
    at(config, path)?.as_str()
}

fn bitsandbytes(config: &Object) -> Option<Vec<String>> {
    match (is_true(config, "load_in_4bit"), is_true(config, "load_in_8bit")) {
        (true, _) => Some(vec!["4 bits".into(), text(config, "bnb_4bit_quant_type").unwrap_or("fp4").into()]),
        (_, true) => Some(vec!["8 bits".into()]),
        _ => None,
    }
}

fn fp8(config: &Object) -> Option<Vec<String>> {
    // The default of transformers, where the key is absent, is [128, 128].
    let blocks = match config.get("weight_block_size") {
        None => Some("blocks of 128 x 128".to_string()),
        Some(Value::Array(size)) => {
            Some(format!("blocks of {}", size.iter().map(shown).collect::<Vec<_>>().join(" x ")))
        }
        Some(_) => Some("one scale a tensor".to_string()),
    };
    let experts = text(config, "expert_dtype").filter(|dtype| *dtype != "fp8");
    Some(blocks.into_iter().chain(experts.map(|dtype| format!("experts in {dtype}"))).collect())
}

fn modelopt(config: &Object) -> Option<Vec<String>> {
    let algorithm = text(config, "quant_algo").or(text(config, "quantization/quant_algo"));
    match algorithm {
        Some(algorithm) => Some(vec![shortened(algorithm, 40)]),
        None => groups(config).map(|groups| groups.into_iter().collect()),
    }
}

fn compressed_tensors(config: &Object) -> Option<Vec<String>> {
    let format =
        |config: &Object| text(config, "format").filter(|format| *format != "dense").map(str::to_string);
    // The oldest keep what they say of numbers one level deeper.
    let inner = config.get("quantization_config").and_then(Value::as_object);
    if let Some(groups) = [Some(config), inner].into_iter().flatten().find_map(groups) {
        let formats = [Some(config), inner].into_iter().flatten().find_map(format);
        return Some(formats.into_iter().chain(groups).collect());
    }
    let sparse = config.get("sparsity_config").and_then(Value::as_object).and_then(format);
    sparse.or_else(|| transform(config)).map(|words| vec![words])
}

/// What the groups of compressed-tensors say of their weights, each once; `None` if there are none.
fn groups(config: &Object) -> Option<Vec<String>> {
    let groups = config.get("config_groups")?.as_object().filter(|groups| !groups.is_empty())?;
    let mut told: Vec<String> = Vec::new();
    for (name, group) in groups {
        let words = match group {
            // A preset's name with its targets.
            Value::Array(_) => shortened(name, 40),
            group => group_words(group),
        };
        if !told.contains(&words) {
            told.push(words);
        }
    }
    told.truncate(4);
    Some(told)
}

fn group_words(group: &Value) -> String {
    let Some(weights) = group.get("weights").and_then(Value::as_object) else {
        return "activations alone".into();
    };
    let scales = match text(weights, "strategy") {
        Some("group" | "tensor_group") | None => None,
        Some("block") => Some("by blocks".to_string()),
        Some(other) => Some(format!("by {}", shortened(other.escape_debug(), 20))),
    };
    let parts = [BITS.of(weights), number(&["type"], "{}").of(weights), GROUP.of(weights), scales];
    match parts.into_iter().flatten().collect::<Vec<_>>() {
        parts if parts.is_empty() => "weights of an unknown kind".into(),
        parts => parts.join(" "),
    }
}

/// A product that must be computed at run time around plain weights.
fn transform(config: &Object) -> Option<String> {
    let transforms = config.get("transform_config")?.get("config_groups")?.as_object()?;
    let applied = transforms.values().filter_map(|scheme| scheme.get("apply")?.as_array()).flatten();
    let places: Vec<_> = applied.filter_map(|apply| apply.get("location")?.as_str()).collect();
    let run = places.iter().find(|place| !matches!(**place, "weight_input" | "weight_output"))?;
    Some(format!("a transform of {}", quoted(run)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::json::object;
    use crate::error::ErrorKind;

    /// What is said of a `config.json` with this text as one of its members.
    fn said(member: &str) -> Result<Option<Quantization>> {
        read(&object(&format!("{{\"model_type\": \"llama\", {member}}}")).unwrap())
    }

    /// How it is called where it is run. What is not is refused by that name.
    fn called(member: &str) -> String {
        match said(member) {
            Ok(how) => format!("with {}", how.expect(member).title),
            Err(error) => {
                let told = error.message();
                let refused = matches!(error.kind(), ErrorKind::UnsupportedModel | ErrorKind::ModelFile);
                assert!(refused && told.len() < 400, "{member}: {error}");
                told.to_string()
            }
        }
    }

    #[test]
    fn each_method_is_named_with_its_numbers() {
        let cases = [
            (
                r#""quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": false"#,
                "with GPTQ, 4 bits, group 128,",
            ),
            (r#""quant_method": "gptq", "bits": 8, "group_size": -1"#, "GPTQ, 8 bits, one group a row,"),
            (
                r#""quant_method": "gptq", "bits": 3, "group_size": 32, "checkpoint_format": "gptq_v2""#,
                "GPTQ, 3 bits, group 32, format gptq_v2,",
            ),
            (
                r#""bits": 4, "group_size": 128, "desc_act": true, "damp_percent": 0.01"#,
                "GPTQ, 4 bits, group 128,",
            ),
            (
                r#""quant_method": "awq", "bits": 4, "group_size": 128, "version": "gemm""#,
                "AWQ, 4 bits, group 128, version gemm,",
            ),
            (
                r#""zero_point": true, "q_group_size": 64, "w_bit": 4, "version": "GEMV""#,
                "AWQ, 4 bits, group 64, version GEMV,",
            ),
            (r#""quant_method": "fp8", "weight_block_size": [128, 128]"#, "FP8, blocks of 128 x 128,"),
            (r#""quant_method": "fp8", "activation_scheme": "dynamic""#, "FP8, blocks of 128 x 128,"),
            (r#""quant_method": "fp8", "weight_block_size": null"#, "FP8, one scale a tensor,"),
            (
                r#""quant_method": "fp8", "weight_block_size": [1, 32], "expert_dtype": "fp4""#,
                "FP8, blocks of 1 x 32, experts in fp4,",
            ),
            (r#""quant_method": "fbgemm_fp8", "activation_scale_ub": 1200.0"#, "FBGEMM FP8,"),
            (r#""quant_method": "mxfp4", "modules_to_not_convert": []"#, "with MXFP4,"),
            (
                r#""quant_method": "modelopt", "quant_algo": "NVFP4", "producer": {"name": "modelopt"}"#,
                "ModelOpt, NVFP4,",
            ),
            (r#""producer": {"name": "modelopt"}, "quant_algo": "FP8""#, "ModelOpt, FP8,"),
            (
                r#""quant_method": "modelopt", "config_groups": {"a": {"weights": {"num_bits": 4}}}"#,
                "ModelOpt, 4 bits,",
            ),
            (
                r#""quant_method": "bitsandbytes", "load_in_4bit": true, "bnb_4bit_quant_type": "nf4""#,
                "bitsandbytes, 4 bits, nf4,",
            ),
            (r#""load_in_4bit": true"#, "bitsandbytes, 4 bits, fp4,"),
            (r#""quant_method": "bitsandbytes", "load_in_8bit": true"#, "bitsandbytes, 8 bits,"),
            (r#""bits": 4, "group_size": 64"#, "MLX, 4 bits, group 64,"),
            (
                r#""group_size": 32, "bits": 4, "mode": "mxfp4", "lm_head": {"group_size": 64, "bits": 8}"#,
                "MLX, 4 bits, group 32, mode mxfp4,",
            ),
            (
                r#""quant_method": "torchao", "quant_type": {"default": {"_type": "Int4WeightOnlyConfig"}}"#,
                "torchao, Int4WeightOnlyConfig,",
            ),
            (r#""quant_method": "torchao", "quant_type": "int8_weight_only""#, "torchao, int8_weight_only,"),
            (r#""quant_method": "gemma", "num_bits": 4"#, "Gemma's own method, 4 bits,"),
            (r#""quant_method": "bitnet", "modules_to_not_convert": null"#, "BitNet,"),
            (
                r#""quant_method": "bitnet", "linear_class": "autobitlinear", "quantization_mode": "online""#,
                "BitNet, linear class autobitlinear, mode online,",
            ),
            (
                r#""quant_method": "quark", "global_quant_config": {"weight": {"dtype": "fp8_e4m3"}}"#,
                "Quark, fp8_e4m3,",
            ),
            (
                r#""quant_method": "hqq", "quant_config": {"weight_quant_params": {"nbits": 3}}"#,
                "HQQ, 3 bits,",
            ),
            (
                r#""quant_method": "aqlm", "num_codebooks": 1, "nbits_per_codebook": 16, "in_group_size": 8"#,
                "AQLM, 1 codebooks, 16 bits each, group 8,",
            ),
            (r#""quant_method": "vptq", "config_for_layers": {}"#, "with VPTQ,"),
            (r#""quant_method": "spqr", "bits": 3"#, "SpQR, 3 bits,"),
            (r#""quant_method": "higgs", "bits": 4, "group_size": 256"#, "HIGGS, 4 bits, group 256,"),
            (r#""quant_method": "eetq", "weights": "int8""#, "EETQ, int8,"),
            (r#""quant_method": "quanto", "weights": "int4""#, "Quanto, int4,"),
            (r#""quant_method": "auto-round", "bits": 2, "group_size": 32"#, "AutoRound, 2 bits, group 32,"),
            (r#""quant_method": "intel/auto-round", "bits": 4"#, "AutoRound, 4 bits,"),
            (r#""quant_method": "fp_quant", "forward_dtype": "mxfp4""#, "FP-Quant, mxfp4,"),
            (r#""quant_method": "sinq", "nbits": 4, "group_size": 64"#, "SINQ, 4 bits, group 64,"),
            (r#""quant_method": "exl2", "bits": 4.25"#, "ExLlama, 4.25 bits,"),
            (r#""quant_method": "zip\u0007", "bits": 4"#, r#"the method "zip\u{7}","#),
            (r#""level": 9, "ratio": 2"#, "does not name (it gives level, ratio),"),
        ];
        for (config, words) in cases {
            let told = called(&format!("\"quantization_config\": {{{config}}}"));
            assert!(told.contains(words.trim_end_matches(',')), "{config}: {told}");
        }
    }

    #[test]
    fn compressed_tensors_by_formats_and_groups() {
        let int4 = r#"{"weights": {"num_bits": 4, "type": "int", "strategy": "group", "group_size": 128}}"#;
        let fp8 = r#"{"weights": {"num_bits": 8, "type": "float", "strategy": "channel"}}"#;
        let int8 = r#"{"weights": {"num_bits": 8, "type": "int", "strategy": "block"}}"#;
        let rotated = r#"{"location": "weight_output"}, {"location": "input"}"#;
        let with =
            |format: &str, group: &str| format!(r#""format": "{format}", "config_groups": {{"a": {group}}}"#);
        let cases = [
            (
                format!(r#""format": "pack-quantized", "config_groups": {{"a": {int4}, "b": {int4}}}"#),
                "compressed-tensors, pack-quantized, 4 bits int group 128,",
            ),
            (
                format!(r#""format": "mixed-precision", "config_groups": {{"a": {int4}, "b": {fp8}}}"#),
                "mixed-precision, 4 bits int group 128, 8 bits float by channel,",
            ),
            (with("float-quantized", fp8), "float-quantized, 8 bits float by channel,"),
            (with("naive-quantized", fp8), "naive-quantized,"),
            (with("int-quantized", int8), "int-quantized, 8 bits int by blocks,"),
            (with("nvfp4-pack-quantized", int4), "nvfp4-pack-quantized,"),
            (with("mxfp4-pack-quantized", int4), "mxfp4-pack-quantized,"),
            (with("mxfp8-quantized", fp8), "mxfp8-quantized,"),
            (r#""config_groups": {"W4A16": ["Linear"]}"#.into(), "compressed-tensors, W4A16,"),
            // Fake-quantized weights are not what the model computes with, dense as they are.
            (with("dense", fp8) + r#", "quantization_status": "frozen""#, "compressed-tensors, 8 bits float"),
            (with("dense", r#"{"weights": null, "input_activations": {}}"#), "activations alone"),
            (r#""sparsity_config": {"format": "sparse-24-bitmask"}"#.into(), "tensors, sparse-24-bitmask,"),
            (r#""config_groups": null, "sparsity_config": {"format": "marlin-24"}"#.into(), "marlin-24,"),
            (
                format!(r#""quantization_config": {{{}}}"#, with("pack-quantized", int4)),
                "pack-quantized, 4 bits",
            ),
            (
                format!(r#""transform_config": {{"config_groups": {{"u": {{"apply": [{rotated}]}}}}}}"#),
                "compressed-tensors, a transform of \"input\",",
            ),
        ];
        for (config, words) in cases {
            for key in KEYS {
                let told = called(&format!(r#""{key}": {{"quant_method": "compressed-tensors", {config}}}"#));
                assert!(told.contains(words.trim_end_matches(',')), "{config}: {told}");
            }
        }
    }

    /// What of a method that is run is not: named, whether it is a value or a key.
    #[test]
    fn what_is_not_read_of_a_method_that_is_run_is_named() {
        let int4 = r#""num_bits": 4, "type": "int", "strategy": "group", "group_size": 32"#;
        let compressed = |weights: &str, more: &str| {
            let group = format!(r#"{{"targets": ["Linear"], "weights": {{{weights}}}}}"#);
            let method = r#""quant_method": "compressed-tensors", "format": "pack-quantized""#;
            format!(r#"{method}, "config_groups": {{"a": {group}}}{more}"#)
        };
        let cases = [
            (compressed(int4, ""), None),
            (compressed(int4, r#", "shuffle": 3"#), Some(r#""shuffle": 3, which is not understood"#)),
            (compressed(&format!(r#"{int4}, "actorder": "group""#), ""), Some(r#"actorder: "group""#)),
            (compressed(&format!(r#"{int4}, "dynamic": true"#), ""), Some("dynamic: true")),
            (compressed(&int4.replace("32", "0"), ""), Some("group_size: 0, which is no size")),
            (compressed(&int4.replace("4,", "9,"), ""), Some("num_bits: 9")),
            (compressed(int4, r#", "ignore": ["re:(?=a)"]"#), Some("a regular expression that is not read")),
            (compressed(int4, r#", "ignore": [7]"#), Some("a target of the quantization is 7")),
            (compressed(int4, r#", "quantization_status": "frozen""#), Some("is not run yet")),
            (r#""quant_method": "gptq", "bits": 5"#.into(), Some("bits: 5; one of [2, 3, 4, 8]")),
            (r#""quant_method": "gptq", "group_size": 32"#.into(), Some("does not say bits")),
            (
                r#""quant_method": "gptq", "bits": 4, "checkpoint_format": "marlin""#.into(),
                Some("\"marlin\""),
            ),
            (r#""quant_method": "gptq", "bits": 4, "pack_dtype": "int16""#.into(), Some("pack_dtype")),
            (r#""quant_method": "gptq", "bits": 4, "wings": 2"#.into(), Some("\"wings\": 2")),
            (r#""quant_method": "awq", "bits": 4, "version": "gemv_fast""#.into(), Some("\"gemv_fast\"")),
            (r#""quant_method": "awq", "bits": 8"#.into(), Some("bits: 8")),
            (r#""bits": 8, "group_size": 64, "mode": "mxfp8""#.into(), Some("group_size: 64; 32 alone")),
            (r#""bits": 4, "group_size": 64, "mode": "mxfp6""#.into(), Some("mode: \"mxfp6\"")),
            (r#""bits": 4, "group_size": 64, "lm_head": 5"#.into(), Some("lm_head: 5")),
            (r#""bits": 7, "group_size": 64"#.into(), Some("bits: 7")),
            (r#""load_in_4bit": true, "extra": 1"#.into(), Some("\"extra\": 1")),
            (r#""quant_method": "fp8", "expert_dtype": "fp4""#.into(), Some("expert_dtype: \"fp4\"")),
            (
                r#""quant_method": "fp8", "weight_block_size": [128]"#.into(),
                Some("the size of a block is [128]"),
            ),
            (r#""quant_method": "modelopt", "quant_algo": "W4A8_AWQ""#.into(), Some("is not run yet")),
            (
                r#""quant_method": "modelopt", "quant_algo": "NVFP4", "group_size": 32"#.into(),
                Some("group_size: 32"),
            ),
        ];
        for (config, words) in cases {
            let told = said(&format!("\"quantization_config\": {{{config}}}"));
            match words {
                None => assert!(told.unwrap().is_some(), "{config}"),
                Some(words) => {
                    let error = told.expect_err(&config);
                    assert!(error.message().contains(words), "{config}: {error}");
                }
            }
        }
        let two =
            r#""quantization": {"bits": 4}, "quantization_config": {"quant_method": "gptq", "bits": 4}"#;
        assert!(said(two).unwrap_err().message().contains("GPTQ, 4 bits, and with MLX, 4 bits too"));
    }

    #[test]
    fn what_says_that_nothing_is_quantized_loads() {
        let transform = r#"{"config_groups": {"u": {"apply": [{"location": "weight_input"}]}}}"#;
        let frozen = r#""quant_method": "compressed-tensors", "quantization_status": "frozen""#;
        for value in [
            "null".to_string(),
            "false".into(),
            "{}".into(),
            r#"{"load_in_4bit": false, "load_in_8bit": false, "bnb_4bit_quant_type": "nf4"}"#.into(),
            r#"{"quant_method": "bitsandbytes", "load_in_4bit": false, "load_in_8bit": false}"#.into(),
            format!("{{{frozen}}}"),
            format!(r#"{{{frozen}, "config_groups": {{}}, "kv_cache_scheme": {{"num_bits": 8}}}}"#),
            format!(r#"{{{frozen}, "config_groups": null, "sparsity_config": {{"format": "dense"}}}}"#),
            format!(r#"{{{frozen}, "transform_config": {transform}}}"#),
            r#"{"quant_method": "modelopt", "quant_algo": null, "kv_cache_quant_algo": "FP8"}"#.into(),
        ] {
            for key in KEYS {
                let how = said(&format!("\"{key}\": {value}"));
                assert!(how.unwrap_or_else(|error| panic!("{value}: {error}")).is_none(), "{value}");
            }
        }
    }

    #[test]
    fn mxfp4_is_run_where_experts_have_tensors_for_it() {
        for (family, method, runs) in [
            ("gpt_oss", "mxfp4", true),
            ("gpt_oss", "fp8", false),
            ("llama", "mxfp4", false),
            ("other", "mxfp4", false),
        ] {
            let member =
                format!(r#""model_type": "{family}", "quantization_config": {{"quant_method": "{method}"}}"#);
            assert_eq!(matches!(said(&member), Ok(None)), runs, "{member}");
        }
    }

    #[test]
    fn wherever_it_stands_it_is_found() {
        for member in [
            r#""quantization": {"bits": 8, "group_size": 64}"#,
            r#""text_config": {"quantization_config": {"bits": 8, "group_size": 64}}"#,
            r#""quantization_config": null, "llm_config": {"quantization": {"bits": 8}}"#,
            r#""quantization_config": "MLX""#,
            r#""compression_config": [4]"#,
        ] {
            let found = said(member);
            assert!(!matches!(found, Ok(None)), "{member}");
        }
        // Another part of a wrapper is not run, and may be as it likes.
        let other = said(r#""vision_config": {"quantization_config": {"quant_method": "gptq"}}"#);
        assert!(other.unwrap().is_none());
    }

    #[test]
    fn files_beside_the_weights() {
        let folder = tempfile::tempdir().unwrap();
        assert!(read_files(folder.path()).unwrap().is_none());
        for (name, text, words) in [
            (
                "quantize_config.json",
                r#"{"bits": 4, "group_size": 128, "sym": true}"#,
                Some("GPTQ, 4 bits, group 128"),
            ),
            ("quantize_config.json", r#"{"quant_method": "awq", "bits": 4}"#, Some("AWQ, 4 bits")),
            ("quantize_config.json", "{", Some("not valid JSON")),
            ("quantize_config.json", r#"{"bits": 4, "level": 9}"#, Some("has \"level\": 9, which is not")),
            ("quant_config.json", r#"{"w_bit": 4, "q_group_size": 128}"#, Some("AWQ, 4 bits, group 128")),
            (
                "hf_quant_config.json",
                r#"{"producer": {"name": "modelopt"}, "quantization": {"quant_algo": "NVFP4"}}"#,
                Some("ModelOpt, NVFP4"),
            ),
            ("hf_quant_config.json", r#"{"producer": {}, "quantization": {"quant_algo": null}}"#, None),
        ] {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            let told = match read_files(folder.path()) {
                Ok(how) => how.map(|how| how.title),
                Err(error) => {
                    assert!(error.message().contains(name), "{error}");
                    Some(error.message().to_string())
                }
            };
            let right = match (&told, words) {
                (Some(told), Some(words)) => told.contains(words),
                (told, words) => told.is_none() && words.is_none(),
            };
            assert!(right, "{name} {text}: {told:?}");
            std::fs::remove_file(&path).unwrap();
        }
    }
}
