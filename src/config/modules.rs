//! What sentence-transformers writes beside an embedding model: `modules.json` and the small files that it
//! leads to.
//!
//! Text in, plain data out; keys, spellings and defaults are those of sentence-transformers 5 and 6.

use serde_json::{Map, Value};

use super::Pooling;
use super::fields::{Fields, missing, object};
use crate::error::{Error, LINE, Result, quoted, shortened};

/// One link of the chain that a text passes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Module {
    pub kind: Kind,
    /// Where its files are, below the model's folder; empty: in the folder itself.
    pub folder: String,
}

/// What is known of the modules that there are. Any other is refused by its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Transformer,
    Pooling,
    Dense,
    LayerNorm,
    Normalize,
    /// Does nothing but in training.
    Dropout,
}

impl Kind {
    const NAMES: &[(&str, Kind)] = &[
        ("Transformer", Kind::Transformer),
        ("Pooling", Kind::Pooling),
        ("Dense", Kind::Dense),
        ("LayerNorm", Kind::LayerNorm),
        ("Normalize", Kind::Normalize),
        ("Dropout", Kind::Dropout),
    ];

    fn parse(name: &str) -> Result<Kind> {
        // Where a class lies differs from release to release; one that lies elsewhere is the model's own
        // code.
        let class = name.strip_prefix("sentence_transformers.").and_then(|rest| rest.rsplit('.').next());
        Kind::NAMES.iter().find(|(known, _)| Some(*known) == class).map(|(_, kind)| *kind).ok_or_else(|| {
            let known: Vec<_> = Kind::NAMES.iter().map(|(name, _)| *name).collect();
            Error::unsupported(format!(
                "the module {} is not supported; those of sentence-transformers that are: {}",
                quoted(name),
                known.join(", ")
            ))
        })
    }
}

/// Reads `modules.json`.
pub fn modules(text: &str) -> Result<Vec<Module>> {
    let list: Value =
        serde_json::from_str(text).map_err(|error| Error::model_file(format!("not valid JSON: {error}")))?;
    let list = list.as_array().ok_or_else(|| Error::model_file("the top level must be a list"))?;
    let module = |entry: &Value| {
        let entry = entry.as_object().ok_or_else(|| Error::model_file("each module must be an object"))?;
        let fields = Fields(entry);
        let kind = fields.str("type")?.ok_or_else(|| missing("type"))?;
        let folder = fields.str("path")?.unwrap_or("").trim_end_matches('/');
        Ok(Module { kind: Kind::parse(kind)?, folder: folder.to_string() })
    };
    list.iter().map(module).collect()
}

/// The files that a `modules.json` leads to, where it can be read: names below the model's folder.
pub fn files(text: &[u8]) -> Vec<String> {
    let list = serde_json::from_slice::<Value>(text).unwrap_or_default();
    let folders = list.as_array().into_iter().flatten().filter_map(|entry| entry["path"].as_str());
    let folders = folders.filter(|folder| !folder.is_empty()).map(|folder| folder.trim_end_matches('/'));
    folders
        .flat_map(|folder| ["config.json", "model.safetensors"].map(|file| format!("{folder}/{file}")))
        .collect()
}

/// The module Pooling.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PoolingConfig {
    /// The vectors of these, one after the other.
    pub modes: Vec<Pooling>,
    /// Whether the rows of the prompt count.
    pub include_prompt: bool,
    /// Width of a row, where it is said.
    pub width: Option<usize>,
}

/// The modes by the flag of sentence-transformers 5 and the name of 6, in the order in which flags
/// concatenate.
const MODES: &[(&str, &str, Pooling)] = &[
    ("pooling_mode_cls_token", "cls", Pooling::First),
    ("pooling_mode_max_tokens", "max", Pooling::Max),
    ("pooling_mode_mean_tokens", "mean", Pooling::Mean),
    ("pooling_mode_mean_sqrt_len_tokens", "mean_sqrt_len_tokens", Pooling::MeanSqrt),
    ("pooling_mode_weightedmean_tokens", "weightedmean", Pooling::WeightedMean),
    ("pooling_mode_lasttoken", "lasttoken", Pooling::Last),
];

/// Reads the `config.json` of a Pooling module.
pub fn pooling(text: &str) -> Result<PoolingConfig> {
    let root = object(text)?;
    only(&root, &["embedding_dimension", "word_embedding_dimension", "pooling_mode", "include_prompt"])?;
    let fields = Fields(&root);
    let width = match fields.usize("embedding_dimension")? {
        Some(width) => Some(width),
        None => fields.usize("word_embedding_dimension")?,
    };
    let named = |value: &Value| {
        let found = MODES.iter().find(|(_, name, _)| value.as_str() == Some(*name));
        found.map(|(.., mode)| *mode).ok_or_else(|| {
            Error::unsupported(format!("pooling_mode {} is not supported", shortened(value, LINE)))
        })
    };
    let modes = match root.get("pooling_mode") {
        Some(Value::Array(list)) if !list.is_empty() => list.iter().map(named).collect::<Result<_>>()?,
        Some(value) if !value.is_null() => vec![named(value)?],
        _ => flagged(&fields)?,
    };
    Ok(PoolingConfig { modes, include_prompt: fields.bool("include_prompt")?.unwrap_or(true), width })
}

/// The modes whose flags are set; the mean if none is.
fn flagged(fields: &Fields) -> Result<Vec<Pooling>> {
    let mut modes = Vec::new();
    for (flag, _, mode) in MODES {
        if fields.bool(flag)? == Some(true) {
            modes.push(*mode);
        }
    }
    Ok(if modes.is_empty() { vec![Pooling::Mean] } else { modes })
}

/// The module Dense: `activation(W x + b)`, plus `x` (or a projection of it) if `residual`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DenseConfig {
    pub inputs: usize,
    pub outputs: usize,
    pub bias: bool,
    pub activation: DenseActivation,
    pub residual: bool,
}

/// What a Dense module applies, by the class that torch has for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DenseActivation {
    Identity,
    Tanh,
    Relu,
    /// By the error function.
    Gelu,
    Silu,
    Sigmoid,
}

impl DenseActivation {
    const NAMES: &[(&str, DenseActivation)] = &[
        ("Identity", DenseActivation::Identity),
        ("Tanh", DenseActivation::Tanh),
        ("ReLU", DenseActivation::Relu),
        ("GELU", DenseActivation::Gelu),
        ("SiLU", DenseActivation::Silu),
        ("Sigmoid", DenseActivation::Sigmoid),
    ];

    fn parse(name: &str) -> Result<Self> {
        let class = name.strip_prefix("torch.nn.").and_then(|rest| rest.rsplit('.').next());
        let known = DenseActivation::NAMES.iter().find(|(known, _)| Some(*known) == class);
        known.map(|(_, activation)| *activation).ok_or_else(|| {
            Error::unsupported(format!("the activation_function {} is not supported", quoted(name)))
        })
    }
}

/// Reads the `config.json` of a Dense module.
pub fn dense(text: &str) -> Result<DenseConfig> {
    let root = object(text)?;
    only(&root, &["in_features", "out_features", "bias", "activation_function", "use_residual"])?;
    let fields = Fields(&root);
    let size = |key| match fields.usize(key)? {
        Some(0) => Err(Error::model_file(format!("{key} is 0; it must be at least 1"))),
        size => size.ok_or_else(|| missing(key)),
    };
    Ok(DenseConfig {
        inputs: size("in_features")?,
        outputs: size("out_features")?,
        bias: fields.bool("bias")?.unwrap_or(true),
        activation: fields
            .str("activation_function")?
            .map_or(Ok(DenseActivation::Tanh), DenseActivation::parse)?,
        residual: fields.bool("use_residual")?.unwrap_or(false),
    })
}

/// Reads the `config.json` of a Normalize module, of which older releases write none.
pub fn normalize(text: &str) -> Result<()> {
    only(&object(text)?, &[])
}

/// Reads the `config.json` of a LayerNorm module: its width.
pub fn layer_norm(text: &str) -> Result<usize> {
    let root = object(text)?;
    only(&root, &["dimension"])?;
    Fields(&root).usize("dimension")?.ok_or_else(|| missing("dimension"))
}

/// A module has the `known` keys, and works on the pooled vector. (Others work on the rows before, as late
/// interaction needs it.)
fn only(root: &Map<String, Value>, known: &[&str]) -> Result<()> {
    let pooled = |key: &str| key == "module_input_name" || key == "module_output_name";
    let is_known = |(key, value): &(&String, &Value)| {
        known.contains(&key.as_str())
            || MODES.iter().any(|(flag, ..)| key == flag)
            || pooled(key) && (value.is_null() || *value == "sentence_embedding")
    };
    match root.iter().find(|entry| !is_known(entry)) {
        None => Ok(()),
        Some((key, value)) => Err(unsupported(key, value)),
    }
}

fn unsupported(key: &str, value: &Value) -> Error {
    Error::unsupported(format!("{}: {} is not supported", quoted(key), shortened(value, LINE)))
}

/// What `config_sentence_transformers.json` says of vectors.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SentenceConfig {
    /// What is put before each text.
    pub prompt: String,
    /// Vectors are compared by a measure to which their lengths matter.
    pub keeps_length: bool,
    /// Only so many dimensions are kept.
    pub truncate: Option<usize>,
}

/// Reads `config_sentence_transformers.json`.
pub fn sentence(text: &str) -> Result<SentenceConfig> {
    let root = object(text)?;
    let fields = Fields(&root);
    if let Some(kind) = fields.str("model_type")?
        && kind != "SentenceTransformer"
    {
        return Err(Error::unsupported(format!(
            "the model_type {} is not supported; SentenceTransformer is, one vector for each text",
            quoted(kind)
        )));
    }
    let prompt = match (fields.str("default_prompt_name")?, fields.object("prompts")?) {
        (None, _) => "",
        (Some(name), prompts) => {
            let prompt = prompts.map(Fields).map(|prompts| prompts.str(name)).transpose()?.flatten();
            prompt.ok_or_else(|| {
                Error::model_file(format!("there is no prompt of the default_prompt_name {}", quoted(name)))
            })?
        }
    };
    let keeps_length = match fields.str("similarity_fn_name")? {
        None | Some("cosine" | "cos_sim") => false,
        Some("dot" | "dot_score" | "euclidean" | "manhattan") => true,
        Some(other) => {
            return Err(Error::unsupported(format!("similarity_fn_name {} is not supported", quoted(other))));
        }
    };
    let truncate = fields.usize("truncate_dim")?;
    if truncate == Some(0) {
        return Err(Error::model_file("truncate_dim is 0; it must be at least 1"));
    }
    Ok(SentenceConfig { prompt: prompt.to_string(), keeps_length, truncate })
}

/// What `sentence_bert_config.json` says of texts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TextConfig {
    /// The most tokens of a text.
    pub longest: Option<usize>,
    /// The chat template makes a conversation of one message of a text.
    pub chat: Option<MessageFormat>,
}

/// How a message holds its text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MessageFormat {
    /// `"content": "text"`
    Flat,
    /// `"content": [{"type": "text", "text": "text"}]`
    Structured,
}

/// Reads `sentence_bert_config.json`.
pub fn text(text: &str) -> Result<TextConfig> {
    let root = object(text)?;
    let fields = Fields(&root);
    if fields.bool("do_lower_case")? == Some(true) {
        return Err(Error::unsupported(
            "do_lower_case is not supported; lowercase belongs into tokenizer.json",
        ));
    }
    if let Some(task) = fields.str("transformer_task")?
        && task != "feature-extraction"
    {
        return Err(Error::unsupported(format!("the transformer_task {} is not supported", quoted(task))));
    }
    if let Some((key, value)) = root.iter().find(|(key, value)| !is_harmless(key, value)) {
        return Err(unsupported(key, value));
    }
    let chat = match fields.object("modality_config")? {
        Some(modalities) => chat(modalities)?,
        None => None,
    };
    Ok(TextConfig { longest: fields.usize("max_seq_length")?, chat })
}

/// Release 6 puts texts into the chat template wherever there was one when the model was made, and notes that
/// as the modality "message".
fn chat(modalities: &Map<String, Value>) -> Result<Option<MessageFormat>> {
    for kind in ["text", "message"] {
        let Some(value) = modalities.get(kind) else { continue };
        if value["method"] != "forward" || value["method_output_name"] != "last_hidden_state" {
            return Err(unsupported("modality_config", value));
        }
    }
    match modalities.get("message") {
        None if modalities.contains_key("text") => Ok(None),
        None => Err(Error::unsupported("modality_config has no text, which is not supported")),
        Some(message) if message["format"] == "flat" => Ok(Some(MessageFormat::Flat)),
        Some(message) if message["format"] == "structured" => Ok(Some(MessageFormat::Structured)),
        Some(message) => Err(unsupported("modality_config", message)),
    }
}

/// What `sentence_bert_config.json` may say: what is read above, and what changes no vector.
const HARMLESS: &[&str] = &[
    "max_seq_length",
    "do_lower_case",
    "transformer_task",
    "modality_config",
    "module_output_name",
    "unpad_inputs",
];

/// Arguments for the loaders of torch that change no vector here.
const ARGUMENTS: &[&str] = &[
    "torch_dtype",
    "dtype",
    "attn_implementation",
    "add_pooling_layer",
    "padding_side",
    "use_fast",
    "device_map",
];

fn is_harmless(key: &str, value: &Value) -> bool {
    let unread = |(key, value): (&String, &Value)| value.is_null() || ARGUMENTS.contains(&key.as_str());
    HARMLESS.contains(&key) || value.is_null() || value.as_object().is_some_and(|it| it.iter().all(unread))
}

/// Reads `tokenizer_config.json`: the most tokens of a text; a huge number means that nobody has set one.
pub fn tokenizer_longest(text: &str) -> Result<Option<usize>> {
    let longest = Fields(&object(text)?).f64("model_max_length")?;
    Ok(longest.filter(|longest| (1.0..1e9).contains(longest)).map(|longest| longest as usize))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    #[test]
    fn every_spelling_of_modules() {
        let entry = |kind: &str, path: &str| {
            format!(r#"{{"idx": 0, "name": "0", "path": "{path}", "type": "{kind}"}}"#)
        };
        for (kind, wanted) in [
            ("sentence_transformers.models.Transformer", Some(Kind::Transformer)),
            ("sentence_transformers.base.modules.transformer.Transformer", Some(Kind::Transformer)),
            ("sentence_transformers.sentence_transformer.modules.pooling.Pooling", Some(Kind::Pooling)),
            ("sentence_transformers.models.Dense", Some(Kind::Dense)),
            ("sentence_transformers.models.Normalize", Some(Kind::Normalize)),
            ("sentence_transformers.models.Dropout", Some(Kind::Dropout)),
            ("sentence_transformers.models.WeightedLayerPooling", None),
            ("sentence_transformers.models.CNN", None),
            ("sentence_transformers.base.modules.router.Router", None),
            ("custom_st.Transformer", None),
            ("Pooling", None),
        ] {
            let found = modules(&format!("[{}]", entry(kind, "1_X")));
            match (found, wanted) {
                (Ok(found), Some(wanted)) => {
                    assert_eq!(found, [Module { kind: wanted, folder: "1_X".into() }], "{kind}")
                }
                (Err(error), None) => {
                    assert_eq!(error.kind(), ErrorKind::UnsupportedModel);
                    assert!(error.message().contains(kind), "{error}");
                }
                (found, _) => panic!("{kind}: {found:?}"),
            }
        }
        let list = format!("[{}, {}]", entry("x.Anything", ""), entry("x.Anything", "2_Dense/"));
        assert_eq!(files(list.as_bytes()), ["2_Dense/config.json", "2_Dense/model.safetensors"]);
        assert!(files(b"{").is_empty() && files(b"{}").is_empty());
    }

    #[test]
    fn every_spelling_of_pooling() {
        use Pooling::*;
        let cases: &[(&str, &[Pooling])] = &[
            (r#"{"word_embedding_dimension": 8}"#, &[Mean]),
            (r#"{"pooling_mode_mean_tokens": false}"#, &[Mean]),
            (r#"{"pooling_mode_cls_token": true}"#, &[First]),
            (r#"{"pooling_mode_max_tokens": true}"#, &[Max]),
            (r#"{"pooling_mode_mean_sqrt_len_tokens": true}"#, &[MeanSqrt]),
            (r#"{"pooling_mode_weightedmean_tokens": true}"#, &[WeightedMean]),
            (r#"{"pooling_mode_lasttoken": true, "pooling_mode_mean_tokens": false}"#, &[Last]),
            (r#"{"pooling_mode_mean_tokens": true, "pooling_mode_cls_token": true}"#, &[First, Mean]),
            (r#"{"pooling_mode": "lasttoken", "pooling_mode_mean_tokens": true}"#, &[Last]),
            (r#"{"pooling_mode": "cls"}"#, &[First]),
            (r#"{"pooling_mode": ["weightedmean", "max"]}"#, &[WeightedMean, Max]),
            (r#"{"pooling_mode": "mean_sqrt_len_tokens"}"#, &[MeanSqrt]),
        ];
        for (text, wanted) in cases {
            assert_eq!(pooling(text).unwrap().modes, *wanted, "{text}");
        }
        for (text, part) in [
            (r#"{"pooling_mode": "attention"}"#, "attention"),
            (r#"{"pooling_mode": []}"#, "[]"),
            (r#"{"pooling_mode_attention": true}"#, "pooling_mode_attention"),
        ] {
            let error = pooling(text).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::UnsupportedModel, "{text}");
            assert!(error.message().contains(part), "{text}: {error}");
        }
        assert_eq!(pooling(r#"{"pooling_mode_cls_token": 1}"#).unwrap_err().kind(), ErrorKind::ModelFile);
    }

    #[test]
    fn what_changes_a_vector_is_read_or_refused() {
        let read = sentence(
            r#"{"prompts": {"query": "q: ", "document": ""}, "default_prompt_name": "query",
                "truncate_dim": 4, "similarity_fn_name": "dot"}"#,
        );
        let wanted = SentenceConfig { prompt: "q: ".into(), keeps_length: true, truncate: Some(4) };
        assert_eq!(read.unwrap(), wanted);
        let plain = r#"{"prompts": {}, "default_prompt_name": null, "similarity_fn_name": "cosine"}"#;
        assert_eq!(sentence(plain).unwrap(), SentenceConfig::default());
        for (text, wanted) in
            [(r#"{"model_max_length": 512}"#, Some(512)), (r#"{"model_max_length": 1e30}"#, None)]
        {
            assert_eq!(tokenizer_longest(text).unwrap(), wanted, "{text}");
        }
        let gelu = "torch.nn.modules.activation.GELU";
        let of = |text: &str| dense(&format!(r#"{{"in_features": 8, "out_features": 4, {text}}}"#));
        let read = of(&format!(r#""bias": false, "activation_function": "{gelu}""#)).unwrap();
        assert_eq!((read.bias, read.activation), (false, DenseActivation::Gelu));
        assert_eq!(of(r#""bias": true"#).unwrap().activation, DenseActivation::Tanh);
        let refused = [
            sentence(r#"{"default_prompt_name": "x", "prompts": {"y": ""}}"#).err(),
            sentence(r#"{"model_type": "CrossEncoder"}"#).err(),
            sentence(r#"{"truncate_dim": 0}"#).err(),
            sentence(r#"{"similarity_fn_name": "maxsim"}"#).err(),
            pooling(r#"{"pooling_mode": "mean", "temperature": 2}"#).err(),
            of(r#""activation_function": "custom.Tanh""#).err(),
            of(r#""activation_function": "torch.nn.modules.activation.Hardtanh""#).err(),
            of(r#""module_input_name": "token_embeddings""#).err(),
            of(r#""bias": false, "scale": 2"#).err(),
            dense(r#"{"in_features": 0, "out_features": 4}"#).err(),
            layer_norm(r#"{"dimension": 4, "eps": 1}"#).err(),
            normalize(r#"{"module_input_name": "token_embeddings"}"#).err(),
        ];
        let accepted: Vec<_> = refused.iter().enumerate().filter(|(_, error)| error.is_none()).collect();
        assert!(accepted.is_empty(), "{accepted:?}");
    }

    #[test]
    fn what_becomes_of_a_text() {
        let way = r#"{"method": "forward", "method_output_name": "last_hidden_state""#;
        let modalities = |text: &str| format!(r#"{{"modality_config": {{"text": {way}}}{text}}}}}"#);
        let message = |format: &str| modalities(&format!(r#", "message": {way}, "format": "{format}"}}"#));
        let plain = TextConfig::default();
        let cases = [
            (r#"{"transformer_task": "feature-extraction"}"#.into(), plain),
            (
                r#"{"max_seq_length": 32, "do_lower_case": false}"#.into(),
                TextConfig { longest: Some(32), ..plain },
            ),
            (r#"{"model_args": {"torch_dtype": "bfloat16"}, "query_length": null}"#.into(), plain),
            (modalities(""), plain),
            (message("flat"), TextConfig { chat: Some(MessageFormat::Flat), ..plain }),
            (message("structured"), TextConfig { chat: Some(MessageFormat::Structured), ..plain }),
        ];
        for (json, wanted) in cases {
            assert_eq!(text(&json).unwrap(), wanted, "{json}");
        }
        let refused: [(String, &str); 7] = [
            (r#"{"do_lower_case": true}"#.into(), "do_lower_case"),
            (r#"{"transformer_task": "fill-mask"}"#.into(), "fill-mask"),
            (r#"{"config_args": {"is_causal": false}}"#.into(), "config_args"),
            (r#"{"processing_kwargs": {"text": {"add_special_tokens": false}}}"#.into(), "processing_kwargs"),
            (r#"{"modality_config": {"text": {"method": "encode"}}}"#.into(), "encode"),
            (r#"{"modality_config": {}}"#.into(), "modality_config"),
            (message("auto"), "auto"),
        ];
        for (json, part) in refused {
            let error = text(&json).expect_err(&json);
            assert_eq!(error.kind(), ErrorKind::UnsupportedModel, "{json}");
            assert!(error.message().contains(part), "{json}: {error}");
        }
    }
}
