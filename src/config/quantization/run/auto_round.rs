//! AutoRound, which packs as others do: GPTQ's words with zero points as they are or less by one, AWQ's, or
//! the floats of compressed-tensors. `packing_format` says which (read in auto-round 0.16).

use serde_json::Value;

use super::{
    Object, Result, bits_of, first, group_of, is_true, known, must_be, one_of, pattern, text, unread,
};
use crate::weights::quantized::{Group, Modules, Outer, Rule, Scheme};

/// Keys that say how the weights were found, of which others quantize the activations: those stay exact.
/// Files in the formats of GPTQ and AWQ have them, too.
pub(super) const TUNING_KEYS: &[&str] = &[
    "act_bits",
    "act_data_type",
    "act_dynamic",
    "act_group_size",
    "act_sym",
    "amp",
    "autoround_version",
    "batch_size",
    "block_name_to_quantize",
    "data_type",
    "dataset",
    "enable_minmax_tuning",
    "enable_norm_bias_tuning",
    "enable_quanted_input",
    "gradient_accumulate_steps",
    "iters",
    "low_gpu_mem_usage",
    "lr",
    "minmax_lr",
    "model_free",
    "not_use_best_mse",
    "nsamples",
    "provider",
    "quant_block_list",
    "scale_dtype",
    "seqlen",
    "static_attention_dtype",
    "static_attention_granularity",
    "static_kv_dtype",
    "static_kv_granularity",
    "supported_types",
    "to_quant_block_names",
];

const OWN_KEYS: &[&str] = &[
    "backend",
    "bits",
    "extra_config",
    "group_size",
    "modules_in_block_to_quantize",
    "packing_format",
    "quant_method",
    "rotation_config",
    "rotation_configs",
    "super_bits",
    "super_group_size",
    "sym",
];

/// How the words of all modules are laid out.
#[derive(Clone, Copy)]
enum Packing {
    Gptq { minus_one: bool },
    Awq,
    Floats,
}

/// `None`: it is not run.
pub(super) fn rules(config: &Object) -> Result<Option<Vec<Rule>>> {
    known(config, &[TUNING_KEYS, OWN_KEYS].concat())?;
    for key in ["rotation_config", "rotation_configs"] {
        let empty = [None, Some(&Value::Null), Some(&Value::Array(Vec::new())), Some(&Object::new().into())];
        if !empty.contains(&config.get(key)) {
            return Ok(None);
        }
    }
    let Some(packing) = packing(config)? else { return Ok(None) };
    let Some(usual) = scheme(config, packing)? else { return Ok(None) };
    let (mut names, mut patterns) = (Vec::new(), Vec::new());
    for (name, own) in config.get("extra_config").and_then(Value::as_object).into_iter().flatten() {
        let Value::Object(own) = own else {
            return Err(unread("extra_config", own, "an object for each name"));
        };
        known(own, &[TUNING_KEYS, OWN_KEYS].concat())?;
        let mut whole = config.clone();
        whole.extend(own.clone());
        let plain =
            first(&whole, &["bits"]).and_then(|(_, bits)| bits.as_u64()).is_some_and(|bits| bits >= 16);
        let scheme = match plain {
            true => None,
            false => match scheme(&whole, packing)? {
                None => return Ok(None),
                scheme => scheme,
            },
        };
        names.push(Rule { modules: Modules::Named(name.clone()), scheme: scheme.clone() });
        // A name that is no module is a pattern, which is searched for anywhere.
        patterns.push(Rule { modules: Modules::Matching(pattern(&format!(".*?(?:{name})"))?), scheme });
    }
    let all = Rule { modules: Modules::All, scheme: Some(usual) };
    Ok(Some(names.into_iter().chain(patterns).chain([all]).collect()))
}

/// What `packing_format` means; of older files `backend`, which they begin with the same word.
fn packing(config: &Object) -> Result<Option<Packing>> {
    let older = text(config, "backend").filter(|backend| backend.starts_with("auto_round"));
    // Where nothing is said transformers assumes this.
    let said = text(config, "packing_format").or(older).unwrap_or("auto_round:auto_gptq");
    let rest = said.strip_prefix("auto_round");
    let part = rest.and_then(|rest| if rest.is_empty() { Some("") } else { rest.strip_prefix(':') });
    Ok(match part {
        // Without zero points that are less by one: only files with `sym` false have it by default.
        Some("" | "gptqmodel") => Some(Packing::Gptq { minus_one: false }),
        Some("auto_gptq" | "gptq" | "gptq:exllamav2") => Some(Packing::Gptq { minus_one: true }),
        Some("auto_awq" | "awq") => Some(Packing::Awq),
        Some("llm_compressor") => Some(Packing::Floats),
        _ => {
            let read = "auto_round, auto_round:gptqmodel, auto_round:auto_gptq, auto_round:auto_awq or \
                        auto_round:llm_compressor";
            return Err(unread("packing_format", &said.into(), read));
        }
    })
}

/// Of all modules, or of one with its own settings laid over the others.
fn scheme(config: &Object, packing: Packing) -> Result<Option<Scheme>> {
    for key in ["super_bits", "super_group_size"] {
        must_be(config, key, &Value::Null)?;
    }
    let group = group_of(config, &["group_size"], Group::Of(128))?;
    let kind = text(config, "data_type").unwrap_or("int");
    let scheme = match packing {
        Packing::Floats => return floats(config, kind, group),
        Packing::Gptq { minus_one } => {
            let bits = bits_of(config, &["bits"], &[2, 3, 4, 5, 6, 7, 8])?;
            Scheme::Gptq { bits, group, minus_one, any_order: false, bits_by_shape: false }
        }
        Packing::Awq => {
            bits_of(config, &["bits"], &[4])?;
            Scheme::Awq { group }
        }
    };
    one_of(config, "data_type", &["int", "int_sym", "int_asym"])?;
    // Integers for quantized activations are packed in another way.
    let act_bits = config.get("act_bits").and_then(Value::as_u64).unwrap_or(16);
    Ok((act_bits >= 16).then_some(scheme))
}

/// As compressed-tensors has them.
fn floats(config: &Object, kind: &str, group: Group) -> Result<Option<Scheme>> {
    let bits = bits_of(config, &["bits"], &[4, 8])?;
    let fp4 = |group, outer, powers| {
        let (weight, scale) = ("weight_packed", "weight_scale");
        Scheme::Fp4 { weight, scale, group, outer, powers }
    };
    let symmetric = config.get("sym").is_none() || is_true(config, "sym");
    Ok(match (kind, bits, group) {
        _ if !symmetric => None,
        (kind, 4, Group::Of(32)) if kind.starts_with("mx_fp") => Some(fp4(32, None, true)),
        (kind, 8, Group::Of(32)) if kind.starts_with("mx_fp") => {
            Some(Scheme::Fp8 { scales: &["weight_scale"], groups: vec![group] })
        }
        (kind, 4, Group::Of(16)) if kind.starts_with("nv_fp") => {
            let outer = Outer { name: "weight_global_scale", divides: true };
            Some(fp4(16, Some(outer), false))
        }
        _ => None,
    })
}
