//! Which files of a repository or folder make a model. Pure: names in, names out.
//!
//! A repository is written by strangers, so a name from it is used as a path only after [`is_safe_name`]
//! (a `weight_map` with `../` in it read files outside the model's folder in transformers), and nothing that
//! holds code or a pickle (`.bin`, `.pt`, `.py`) is ever asked for.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde_json::Value;

use crate::config::json;
use crate::error::{Error, Result, quoted, shortened};

pub const CONFIG: &str = "config.json";
pub const TOKENIZER: &str = "tokenizer.json";
pub const WEIGHTS: &str = "model.safetensors";
pub const INDEX: &str = "model.safetensors.index.json";

/// Taken where a repository has them. Small, so they come before the weights: weights that are there mean
/// that everything before them is there too.
pub const OPTIONAL: &[&str] = &[
    "generation_config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "quantize_config.json",
    "quant_config.json",
    "hf_quant_config.json",
    MODULES,
    "1_Pooling/config.json",
    "config_sentence_transformers.json",
    "sentence_bert_config.json",
];

/// Whether a file is a chat template by name; a repository that has some has them all there.
pub fn is_named_template(name: &str) -> bool {
    let named = name.strip_prefix("additional_chat_templates/").and_then(|name| name.strip_suffix(".jinja"));
    named.is_some_and(|name| !name.contains('/'))
}

/// The chain of an embedding model: more files that are taken where a repository has them ([`modules`]).
pub const MODULES: &str = "modules.json";

/// Shards of one model, at most. The largest published ones have fewer than 200.
const MAX_SHARDS: usize = 10_000;

/// Whether a name from a repository stays inside the folder it is joined to, on every system: relative, with
/// plain segments only.
pub fn is_safe_name(name: &str) -> bool {
    let segment = |part: &str| {
        let reserved = part.contains(['\\', ':', '*', '?', '"', '<', '>', '|']);
        !part.is_empty() && !part.starts_with('.') && !part.ends_with(['.', ' ']) && !reserved
    };
    name.len() <= 512 && !name.chars().any(char::is_control) && name.split('/').all(segment)
}

/// The shard names of an index (`model.safetensors.index.json`), each once, in order.
pub fn shards(index: &[u8], what: &str) -> Result<Vec<String>> {
    let bad = |why: &str| Error::model_file(format!("{what}: {why}"));
    let json: Value = serde_json::from_slice(index).map_err(|error| bad(&format!("is not JSON: {error}")))?;
    let map = json.get("weight_map").and_then(Value::as_object).filter(|map| !map.is_empty());
    let map = map.ok_or_else(|| bad("has no weight_map"))?;
    let mut names = BTreeSet::new();
    for (tensor, file) in map {
        let file =
            file.as_str().ok_or_else(|| bad(&format!("weight_map[{}] is not a text", quoted(tensor))))?;
        if !is_safe_name(file) || !file.ends_with(".safetensors") {
            return Err(bad(&format!(
                "weight_map[{}] is {}: not a .safetensors file of this repository",
                quoted(tensor),
                quoted(file)
            )));
        }
        names.insert(file.to_string());
    }
    if names.len() > MAX_SHARDS {
        return Err(bad(&format!("names {} files, more than {MAX_SHARDS}", names.len())));
    }
    Ok(names.into_iter().collect())
}

/// Whether a file's name says GGUF: `.gguf`, or `.GGUF` as some write it.
pub fn is_gguf(name: &str) -> bool {
    gguf_ending(name).is_some()
}

/// A GGUF file's name in two: what stands before its ending, and the ending as it is written.
fn gguf_ending(name: &str) -> Option<(&str, &str)> {
    let (stem, ending) = name.split_at_checked(name.len().checked_sub(".gguf".len())?)?;
    ending.eq_ignore_ascii_case(".gguf").then_some((stem, ending))
}

/// What the modules of an embedding model lie in, by its `modules.json`.
pub fn modules(json: &[u8]) -> Vec<String> {
    let mut names = crate::config::modules::files(json);
    names.retain(|name| is_safe_name(name) && !OPTIONAL.contains(&name.as_str()));
    names
}

/// The files of a split GGUF (`x-00001-of-00003.gguf`), first one first; a file that is not split is alone.
pub fn gguf_parts(name: &str) -> Vec<String> {
    match (split_number(name), gguf_ending(name)) {
        (Some((stem, _, count)), Some((_, ending))) => {
            (1..=count).map(|i| format!("{stem}-{i:05}-of-{count:05}{ending}")).collect()
        }
        _ => vec![name.to_string()],
    }
}

/// `x-00002-of-00003.gguf` is `("x", 2, 3)`.
fn split_number(name: &str) -> Option<(&str, u32, u32)> {
    let (rest, count) = gguf_ending(name)?.0.rsplit_once("-of-")?;
    let (stem, number) = rest.rsplit_once('-')?;
    let five = |text: &str| text.len() == 5 && text.bytes().all(|b| b.is_ascii_digit());
    if !five(number) || !five(count) {
        return None;
    }
    let (number, count) = (number.parse().ok()?, count.parse().ok()?);
    (1 <= number && number <= count).then_some((stem, number, count))
}

/// The GGUF models among these names: one name a model, whatever it is split into. A projector of an image
/// model (`mmproj-…`) is no model of its own.
pub fn gguf_models<'a>(names: impl Iterator<Item = &'a str>) -> Vec<&'a str> {
    let first = |name: &&str| split_number(name).is_none_or(|(_, number, _)| number == 1);
    let model =
        |name: &&str| !name.rsplit('/').next().unwrap_or(name).to_ascii_lowercase().starts_with("mmproj");
    let mut models: Vec<&str> = names.filter(|name| is_gguf(name)).filter(first).filter(model).collect();
    models.sort_unstable();
    models
}

/// What a repository or folder holds, seen from its list of files.
#[derive(Debug, PartialEq)]
pub enum Kind<'a> {
    /// `model.safetensors`, or the index of its shards.
    Safetensors { sharded: bool },
    /// This one file (the first, where it is split).
    Gguf(&'a str),
}

/// Which model a list of files holds. `what` names the repository or folder in errors; `how` says how to name
/// one file of it.
pub fn kind<'a>(names: &[&'a str], what: &str, how: &str) -> Result<Kind<'a>> {
    for (file, sharded) in [(WEIGHTS, false), (INDEX, true)] {
        if names.contains(&file) {
            return Ok(Kind::Safetensors { sharded });
        }
    }
    match gguf_models(names.iter().copied()).as_slice() {
        [one] => Ok(Kind::Gguf(one)),
        [] => Err(nothing_to_load(names, what)),
        many => Err(Error::hub(format!(
            "{what} holds {} GGUF models; name one ({how}): {}",
            many.len(),
            many.iter().take(40).copied().collect::<Vec<_>>().join(", ")
        ))),
    }
}

/// The files of an adapter, as peft and as mlx-lm write them.
pub const ADAPTERS: [[&str; 2]; 2] =
    [["adapter_config.json", "adapter_model.safetensors"], ["adapter_config.json", "adapters.safetensors"]];

/// Whether a file of this name belongs to an adapter (LoRA and its kin, as peft writes them): it changes a
/// model and is none.
fn is_adapter(name: &str) -> bool {
    matches!(name, "adapter_config.json" | "adapter_model.safetensors" | "adapter_model.bin")
}

fn nothing_to_load(names: &[&str], what: &str) -> Error {
    let pickled =
        names.iter().any(|name| [".bin", ".pt", ".pth", ".ckpt"].iter().any(|end| name.ends_with(end)));
    let hint = if names.iter().any(|name| is_adapter(name)) {
        "it is an adapter: load the base model it was made for, or a copy with the adapter merged into it"
    } else if pickled {
        "its weights are pickles, which run code when they are read; take a safetensors or GGUF copy of it"
    } else {
        "take a repository with safetensors or GGUF files"
    };
    Error::unsupported(format!("{what} holds neither {WEIGHTS} (or its index) nor a .gguf file; {hint}"))
}

/// A folder that a user named: itself, or the one GGUF file in it where there are no safetensors.
///
/// # Errors
/// `ModelFile` if there is nothing to load, `UnsupportedModel` if there is an adapter and no model.
pub fn resolve_folder(folder: &Path) -> Result<PathBuf> {
    let told = |error: std::io::Error| {
        Error::model_file(format!("{}: {error}", folder.display())).with_source(error)
    };
    // A name that is no text names none of the files that are looked for here.
    let mut names = Vec::new();
    for entry in std::fs::read_dir(folder).map_err(told)? {
        names.extend(entry.map_err(told)?.file_name().into_string());
    }
    let names: Vec<&str> = names.iter().map(String::as_str).collect();
    // A lone file of another name, or shards without their index, are the weight reader's to judge.
    let weights = |name: &&str| (name.ends_with(".safetensors") && !is_adapter(name)) || *name == INDEX;
    if names.iter().any(weights) {
        return Ok(folder.to_path_buf());
    }
    let what = format!("the folder {}", folder.display());
    match kind(&names, &what, "give its path") {
        Ok(Kind::Gguf(name)) => Ok(folder.join(name)),
        Ok(Kind::Safetensors { .. }) => Ok(folder.to_path_buf()),
        Err(_) if names.iter().any(|name| is_adapter(name)) => Err(adapter(folder, &what)),
        Err(error) => Err(Error::model_file(error.message())),
    }
}

/// Refuses a file of an adapter that a user named.
///
/// # Errors
/// `UnsupportedModel` that names the base model, if it is one.
pub fn check_file(path: &Path) -> Result<()> {
    match (path.file_name().and_then(|name| name.to_str()), path.parent()) {
        (Some(name), Some(folder)) if is_adapter(name) => Err(adapter(folder, &path.display().to_string())),
        _ => Ok(()),
    }
}

/// What to do with an adapter: its own configuration names the model that it belongs to.
fn adapter(folder: &Path, what: &str) -> Error {
    let config = json::read_object(&folder.join("adapter_config.json")).ok().flatten().unwrap_or_default();
    let text = |key: &str| config.get(key).and_then(Value::as_str).filter(|text| !text.is_empty());
    let kind = text("peft_type").map(|kind| format!(" ({})", shortened(kind.escape_debug(), 20)));
    let base = text("base_model_name_or_path").map_or("the base model it was made for".into(), quoted);
    Error::unsupported(format!(
        "{what} is an adapter{}, which changes a model and is none: load {base}, or a copy of that with the \
         adapter merged into it (peft's merge_and_unload)",
        kind.unwrap_or_default()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_folder_are_refused() {
        let good = ["a.gguf", "sub/a.gguf", "model-00001-of-00002.safetensors", "a b.gguf", "模型.gguf"];
        let bad = [
            "",
            "/a",
            "../a",
            "a/../b",
            "a//b",
            "a/",
            "./a",
            ".git/config",
            "a\\b",
            "C:a",
            "a\0",
            "a\nb",
            "a/.",
            "con.",
        ];
        let refused = good.iter().filter(|name| !is_safe_name(name));
        let taken = bad.iter().filter(|name| is_safe_name(name));
        let wrong: Vec<_> = refused.chain(taken).collect();
        assert!(wrong.is_empty(), "{wrong:?}");
    }

    #[test]
    fn shards_of_an_index() {
        let of = |text: &str| shards(text.as_bytes(), "i").map_err(|error| error.message().to_string());
        let good = r#"{"weight_map":{"a":"m-2.safetensors","b":"m-1.safetensors","c":"m-2.safetensors"}}"#;
        assert_eq!(of(good).unwrap(), ["m-1.safetensors", "m-2.safetensors"]);
        for (text, word) in [
            ("[", "not JSON"),
            ("{}", "no weight_map"),
            (r#"{"weight_map":{}}"#, "no weight_map"),
            (r#"{"weight_map":{"a":1}}"#, "not a text"),
            (r#"{"weight_map":{"a":"../x.safetensors"}}"#, "not a .safetensors file"),
            (r#"{"weight_map":{"a":"/x.safetensors"}}"#, "not a .safetensors file"),
            (r#"{"weight_map":{"a":"x.bin"}}"#, "not a .safetensors file"),
        ] {
            let message = of(text).unwrap_err();
            assert!(message.contains(word), "{text}: {message}");
        }
    }

    #[test]
    fn modules_of_an_embedding_model() {
        let json = br#"[{"path": ""}, {"path": "1_Pooling"}, {"path": "2_Dense"}, {"path": "../3_Dense"}]"#;
        let names = ["1_Pooling/config.json", "1_Pooling/model.safetensors", "2_Dense/config.json"];
        assert_eq!(modules(json), [&names[1..], &["2_Dense/model.safetensors"]].concat());
        assert!(OPTIONAL.contains(&names[0]));
    }

    #[test]
    fn kinds() {
        let of = |names: &[&str]| match kind(names, "it", "how") {
            Ok(Kind::Gguf(name)) => name.to_string(),
            Ok(Kind::Safetensors { sharded }) => format!("st {sharded}"),
            Err(error) => format!("{:?} {}", error.kind(), error.message()),
        };
        assert_eq!(of(&["x.gguf", "model.safetensors", INDEX]), "st false");
        assert_eq!(of(&[INDEX]), "st true");
        assert_eq!(of(&["a.gguf", "README.md", "mmproj-a.gguf"]), "a.gguf");
        assert_eq!(of(&["a-00002-of-00002.gguf", "a-00001-of-00002.gguf"]), "a-00001-of-00002.gguf");
        assert!(
            of(&["a.gguf", "b.gguf"])
                .starts_with("Hub it holds 2 GGUF models; name one (how): a.gguf, b.gguf")
        );
        assert!(of(&["pytorch_model.bin"]).contains("pickles"));
        assert!(of(&["adapter_config.json", "adapter_model.bin"]).contains("it is an adapter"));
        assert_eq!(of(&["MMPROJ-a.GGUF", "A.GGUF"]), "A.GGUF");
        assert_eq!(of(&["é.gguf", "gguf", ".ggufx"]), "é.gguf");
        assert_eq!(gguf_parts("A-00001-of-00002.GGUF"), ["A-00001-of-00002.GGUF", "A-00002-of-00002.GGUF"]);
        assert_eq!(
            gguf_parts("d/a-00001-of-00002.gguf"),
            ["d/a-00001-of-00002.gguf", "d/a-00002-of-00002.gguf"]
        );
        assert_eq!(gguf_parts("a-00003-of-00002.gguf").len(), 1);
    }

    #[test]
    fn folders_and_files_of_an_adapter_are_called_that() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(folder.path().join(name), text).unwrap();
        let told = |found: Result<()>| match found {
            Err(error) => format!("{:?} {}", error.kind(), error.message()),
            Ok(()) => "Ok".into(),
        };
        let resolve = || told(resolve_folder(folder.path()).map(drop));
        assert!(resolve().starts_with("ModelFile the folder"), "{}", resolve());
        write("adapter_model.safetensors", "");
        assert!(resolve().contains("load the base model it was made for"), "{}", resolve());
        write(
            "adapter_config.json",
            r#"{"peft_type": "LORA", "base_model_name_or_path": "org/base", "x": NaN}"#,
        );
        let words = "is an adapter (LORA), which changes a model and is none: load \"org/base\"";
        assert!(
            resolve().starts_with("UnsupportedModel the folder") && resolve().contains(words),
            "{}",
            resolve()
        );
        for name in ["adapter_model.safetensors", "adapter_config.json"] {
            let said = told(check_file(&folder.path().join(name)));
            assert!(said.starts_with("UnsupportedModel") && said.contains(words), "{said}");
        }
        // With a model beside it, the model is what was asked for.
        write("model.safetensors", "");
        assert_eq!((resolve(), told(check_file(&folder.path().join(WEIGHTS)))), ("Ok".into(), "Ok".into()));
    }
}
