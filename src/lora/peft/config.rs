//! `adapter_config.json` of peft. Each key is used, known to change nothing, or refused by name.

use std::path::Path;

use regex::{Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use serde_json::{Map, Value};

use crate::config::fields::Fields;
use crate::config::json::{self, shown};
use crate::error::{Context, Error, PARAGRAPH, Result, quoted, shortened};

/// The most memory that all patterns of a key take, in bytes. Some files name each module of a large model.
const PATTERN_LIMIT: usize = 32 << 20;

/// What the configuration says of an adapter.
pub(super) struct PeftConfig {
    pub base: Option<String>,
    rank: usize,
    alpha: f64,
    rslora: bool,
    ranks: Patterns<usize>,
    alphas: Patterns<f64>,
    pub dora: bool,
    pub lora_bias: bool,
    targets: Targets,
    /// Parameters that are adapted by their names, as those that hold all experts.
    parameters: Vec<String>,
    /// What is tied to a target is one, too.
    pub tying: bool,
    /// Modules that are stored whole.
    pub saved: Vec<String>,
    /// Modules of which some rows are stored, and which.
    pub tokens: Vec<(String, Vec<u32>)>,
}

/// Values by regular expressions of paths, in the order of the file.
struct Patterns<T> {
    set: RegexSet,
    values: Vec<T>,
}

impl<T: Copy> Patterns<T> {
    /// The value of the first that matches.
    fn of(&self, path: &str) -> Option<T> {
        self.set.matches(path).iter().next().and_then(|at| self.values.get(at)).copied()
    }
}

/// Which modules peft gives an A and a B when it loads the file.
enum Targets {
    Names(Vec<String>),
    Pattern(Regex),
    /// It does not say, or in a way that is not read.
    Any,
}

/// What a key means for the numbers.
#[derive(Clone, Copy, PartialEq)]
enum Key {
    /// Read below.
    Used,
    /// How it was trained or written.
    Free,
    /// Another kind of LoRA: anything but nothing is refused.
    Refused,
}

const KEYS: &[(&str, Key)] = &[
    ("peft_type", Key::Used),
    ("task_type", Key::Used),
    ("base_model_name_or_path", Key::Used),
    ("r", Key::Used),
    ("lora_alpha", Key::Used),
    ("use_rslora", Key::Used),
    ("rank_pattern", Key::Used),
    ("alpha_pattern", Key::Used),
    ("use_dora", Key::Used),
    ("lora_bias", Key::Used),
    ("target_modules", Key::Used),
    ("target_parameters", Key::Used),
    ("modules_to_save", Key::Used),
    ("trainable_token_indices", Key::Used),
    ("init_lora_weights", Key::Used),
    // The tensors tell which biases there are.
    ("bias", Key::Free),
    // Of layers that store their weight transposed; A and B are as in others.
    ("fan_in_fan_out", Key::Free),
    ("ensure_weight_tying", Key::Used),
    ("target_modules_to_tie", Key::Free),
    ("exclude_modules", Key::Free),
    ("layers_to_transform", Key::Free),
    ("layers_pattern", Key::Free),
    ("lora_dropout", Key::Free),
    ("inference_mode", Key::Free),
    ("auto_mapping", Key::Free),
    ("peft_version", Key::Free),
    ("revision", Key::Free),
    ("megatron_config", Key::Free),
    ("megatron_core", Key::Free),
    ("runtime_config", Key::Free),
    // Of an initialization, which has a key of its own.
    ("loftq_config", Key::Free),
    ("eva_config", Key::Free),
    ("corda_config", Key::Free),
    // Counts beside `use_qalora` alone.
    ("qalora_group_size", Key::Free),
    ("use_qalora", Key::Refused),
    ("alora_invocation_tokens", Key::Refused),
    ("layer_replication", Key::Refused),
    ("use_bdlora", Key::Refused),
    ("arrow_config", Key::Refused),
    ("kasa_config", Key::Refused),
    ("velora_config", Key::Refused),
    ("monteclora_config", Key::Refused),
    ("lora_ga_config", Key::Refused),
];

/// Initializations that leave the base as it is. The others took something out of it.
const PLAIN_INITS: &[&str] = &["gaussian", "eva", "orthogonal"];
const ALTERING_INITS: &[&str] = &["pissa", "olora", "corda", "loftq", "lora_ga"];

const MERGE: &str = "merge it into its base with merge_and_unload() of peft, and load that model";

impl PeftConfig {
    /// # Errors
    /// `ModelFile` when it is missing or malformed; `UnsupportedModel` for other kinds of adapters than LoRA,
    /// and for keys that change numbers in a way that is not run.
    pub fn read(path: &Path) -> Result<PeftConfig> {
        let root = json::read_object(path)?.ok_or_else(|| {
            Error::model_file(format!(
                "there is no {} beside the tensors; it has the scale that they enter with",
                path.display()
            ))
        })?;
        PeftConfig::parse(&root).context(path.display())
    }

    fn parse(root: &Map<String, Value>) -> Result<PeftConfig> {
        let fields = Fields(root);
        check_kind(&fields)?;
        root.iter().try_for_each(|(key, value)| check_key(key, value))?;
        check_init(root.get("init_lora_weights"))?;
        let flag = |key| -> Result<bool> { Ok(fields.bool(key)?.unwrap_or(false)) };
        Ok(PeftConfig {
            base: fields.str("base_model_name_or_path")?.map(str::to_owned),
            // The defaults of peft's class.
            rank: fields.usize("r")?.unwrap_or(8),
            alpha: fields.f64("lora_alpha")?.unwrap_or(8.0),
            rslora: flag("use_rslora")?,
            ranks: patterns(&fields, "rank_pattern", |value| {
                value.as_u64().and_then(|rank| usize::try_from(rank).ok())
            })?,
            alphas: patterns(&fields, "alpha_pattern", Value::as_f64)?,
            dora: flag("use_dora")?,
            lora_bias: flag("lora_bias")?,
            targets: targets(root.get("target_modules"))?,
            tying: flag("ensure_weight_tying")?,
            parameters: strings(&fields, "target_parameters")?,
            saved: strings(&fields, "modules_to_save")?,
            tokens: tokens(root.get("trainable_token_indices"))?,
        })
    }

    /// Rank and scale of the module (or parameter) with this path: the first pattern that matches counts.
    ///
    /// # Errors
    /// `ModelFile` if the rank is 0.
    pub fn scale(&self, path: &str) -> Result<(usize, f32)> {
        let rank = self.ranks.of(path).unwrap_or(self.rank);
        let alpha = self.alphas.of(path).unwrap_or(self.alpha);
        if rank == 0 {
            return Err(Error::model_file(format!("the rank of {} is 0 in {}", quoted(path), super::CONFIG)));
        }
        let divisor = if self.rslora { (rank as f64).sqrt() } else { rank as f64 };
        Ok((rank, (alpha / divisor) as f32))
    }

    /// Whether scales depend on more than one alpha and the rank.
    pub fn is_lost_in_gguf(&self) -> bool {
        self.rslora || !self.alphas.values.is_empty()
    }

    /// Whether this parameter is named as one that is adapted.
    pub fn has_parameter(&self, path: &str) -> bool {
        self.parameters.iter().any(|name| ends_with(path, name))
    }

    /// Whether peft would give this module an A and a B.
    pub fn targets(&self, path: &str) -> bool {
        match &self.targets {
            Targets::Any => true,
            Targets::Names(names) => names.iter().any(|name| ends_with(path, name)),
            Targets::Pattern(pattern) => pattern.is_match(path),
        }
    }
}

/// Whether a path is this name, or ends in it behind a dot.
pub(super) fn ends_with(path: &str, name: &str) -> bool {
    path.strip_suffix(name).is_some_and(|before| before.is_empty() || before.ends_with('.'))
}

fn check_kind(fields: &Fields) -> Result<()> {
    match fields.str("peft_type")? {
        Some("LORA") => {}
        Some(kind) => {
            return Err(Error::unsupported(format!(
                "this is an adapter of the kind {}, and only LORA is run; {MERGE}",
                quoted(kind)
            )));
        }
        None => return Err(Error::model_file("there is no peft_type: this is not the file of an adapter")),
    }
    match fields.str("task_type")? {
        None | Some("CAUSAL_LM" | "FEATURE_EXTRACTION") => Ok(()),
        Some(task) => Err(Error::unsupported(format!(
            "the adapter is for the task {}; those of language models are run (CAUSAL_LM, and FEATURE_EXTRACTION \
             for vectors)",
            quoted(task)
        ))),
    }
}

fn check_key(key: &str, value: &Value) -> Result<()> {
    let known = KEYS.iter().find(|(name, _)| *name == key).map(|(_, kind)| *kind);
    if matches!(known, Some(Key::Used | Key::Free)) || is_nothing(value) {
        return Ok(());
    }
    let said = format!("{} is {}", quoted(key), shown(value));
    Err(Error::unsupported(match (key, known) {
        ("alora_invocation_tokens", _) => format!(
            "{said}: an activated LoRA, which counts from these tokens of a prompt on; that is not run"
        ),
        (_, Some(_)) => format!("{said}: this kind of LoRA is not run; {MERGE}"),
        (_, None) => format!(
            "{said}, and it is not known what this key does to the numbers; take it out of the file if it \
             changes nothing, else {MERGE}"
        ),
    }))
}

fn is_nothing(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(items) => items.is_empty(),
        Value::Bool(true) | Value::Number(_) => false,
    }
}

fn check_init(value: Option<&Value>) -> Result<()> {
    match value {
        None | Some(Value::Null | Value::Bool(_)) => Ok(()),
        Some(Value::String(name)) if PLAIN_INITS.contains(&name.as_str()) => Ok(()),
        Some(Value::String(name)) if ALTERING_INITS.iter().any(|init| name.starts_with(init)) => {
            Err(Error::unsupported(format!(
                "init_lora_weights is {}: that changed the base model, and the adapter fits the changed one alone; \
                 convert it with path_initial_model_for_weight_conversion of peft's save_pretrained",
                quoted(name)
            )))
        }
        Some(value) => Err(Error::unsupported(format!(
            "init_lora_weights is {}, and it is not known whether that changed the base model; {MERGE}",
            shown(value)
        ))),
    }
}

/// A list of strings, or one.
fn strings(fields: &Fields, key: &str) -> Result<Vec<String>> {
    if let Some(Value::String(one)) = fields.0.get(key) {
        return Ok(vec![one.clone()]);
    }
    fields.array(key)?.map_or(Ok(vec![]), |items| all_strings(key, items))
}

fn all_strings(key: &str, items: &[Value]) -> Result<Vec<String>> {
    let all = items.iter().map(|item| item.as_str().map(str::to_owned)).collect();
    let all: Option<Vec<String>> = all;
    all.filter(|all| all.iter().all(|name| !name.is_empty()))
        .ok_or_else(|| Error::model_file(format!("the field {key:?} must be a list of names")))
}

fn targets(value: Option<&Value>) -> Result<Targets> {
    match value {
        None | Some(Value::Null) => Ok(Targets::Any),
        Some(Value::String(text)) if text == "all-linear" => Ok(Targets::Any),
        // A pattern that is not read here decides about nothing but what peft would leave out.
        Some(Value::String(text)) => {
            Ok(compiled(&format!("^(?:{text})$")).map_or(Targets::Any, Targets::Pattern))
        }
        Some(Value::Array(items)) => all_strings("target_modules", items).map(Targets::Names),
        Some(value) => Err(Error::model_file(format!(
            "the field \"target_modules\" must be a list, not {}",
            shown(value)
        ))),
    }
}

fn patterns<T>(fields: &Fields, key: &str, read: impl Fn(&Value) -> Option<T>) -> Result<Patterns<T>> {
    let (mut texts, mut values) = (Vec::new(), Vec::new());
    for (pattern, value) in fields.object(key)?.into_iter().flatten() {
        values.push(read(value).ok_or_else(|| {
            let (name, value) = (quoted(pattern), shown(value));
            Error::model_file(format!("{key}: the value of {name} must be a number, not {value}"))
        })?);
        texts.push(format!(r"^(?:.*\.)?(?:{pattern})$"));
    }
    let set = RegexSetBuilder::new(texts).size_limit(PATTERN_LIMIT).dfa_size_limit(PATTERN_LIMIT).build();
    let set = set.map_err(|error| {
        let error = shortened(error, PARAGRAPH);
        Error::unsupported(format!("{key} has regular expressions that are not read: {error}"))
    })?;
    Ok(Patterns { set, values })
}

fn compiled(pattern: &str) -> Result<Regex, regex::Error> {
    RegexBuilder::new(pattern).size_limit(PATTERN_LIMIT).dfa_size_limit(PATTERN_LIMIT).build()
}

/// A list is of the embedding; an object names modules.
fn tokens(value: Option<&Value>) -> Result<Vec<(String, Vec<u32>)>> {
    let malformed = || Error::model_file("trainable_token_indices must be lists of token ids");
    let ids = |value: &Value| -> Result<Vec<u32>> {
        let items = value.as_array().ok_or_else(malformed)?;
        let id = |item: &Value| item.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(malformed);
        items.iter().map(id).collect()
    };
    match value {
        None | Some(Value::Null) => Ok(vec![]),
        Some(Value::Object(modules)) => {
            modules.iter().map(|(name, list)| Ok((name.clone(), ids(list)?))).collect()
        }
        Some(list) => Ok(vec![("embed_tokens".into(), ids(list)?)]),
    }
}
