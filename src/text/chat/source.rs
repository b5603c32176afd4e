//! Where templates lie: beside Hugging Face's tokenizer, or in a GGUF file's metadata.
//!
//! Hugging Face, the first that exists: `chat_template.jinja` (with `additional_chat_templates/NAME.jinja`),
//! `chat_template.json`, `tokenizer_config.json`. The value of `chat_template` is a template or a list of
//! `{"name", "template"}`. GGUF: `tokenizer.chat_template` and `tokenizer.chat_template.NAME`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use serde_json::Value as Json;

use super::ChatTemplate;
use super::limits::SOURCE_BYTES;
use crate::config::json;
use crate::error::{Context, Error, Result, quoted};
use crate::small_file::read_text;
use crate::text::tokenizer::Tokenizer;
use crate::weights::gguf::Metadata;

/// The written form of a model's special tokens; an absent one is undefined in the template.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TemplateTokens {
    pub bos: Option<String>,
    pub eos: Option<String>,
    pub unk: Option<String>,
    pub pad: Option<String>,
}

impl TemplateTokens {
    /// The tokens there are, by their names in templates.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, &str)> {
        let all = [
            ("bos_token", &self.bos),
            ("eos_token", &self.eos),
            ("unk_token", &self.unk),
            ("pad_token", &self.pad),
        ];
        all.into_iter().filter_map(|(name, token)| Some((name, token.as_deref()?)))
    }

    /// From `tokenizer_config.json` or `special_tokens_map.json`: a text, or an object with `content`.
    fn fill(&mut self, config: &Json) {
        let token = |name: &str| {
            let token = config.get(name)?;
            Some(token.as_str().or_else(|| token.get("content")?.as_str())?.to_owned())
        };
        let slots = [
            ("bos_token", &mut self.bos),
            ("eos_token", &mut self.eos),
            ("unk_token", &mut self.unk),
            ("pad_token", &mut self.pad),
        ];
        for (name, slot) in slots {
            *slot = slot.take().or_else(|| token(name));
        }
    }
}

/// A template that the user chose instead of the model's default.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Own {
    Text(String),
    /// One of the model's own, by its name.
    Name(String),
}

/// The templates of a model, by name.
#[derive(Default)]
struct Found(BTreeMap<String, String>);

/// Templates of one model, at most.
const MAX_TEMPLATES: usize = 64;

impl Found {
    /// The first of a name counts. A text of nothing but space is no template.
    fn put(&mut self, name: &str, template: String) {
        if self.0.len() < MAX_TEMPLATES && !template.trim().is_empty() {
            self.0.entry(name.to_owned()).or_insert(template);
        }
    }

    /// A text, or a list of named ones.
    fn read(&mut self, value: Option<&Json>, file: &Path) -> Result<()> {
        let wrong = || {
            Error::model_file(format!(
                "{}: chat_template is neither a text nor a list of templates",
                file.display()
            ))
        };
        match value {
            None | Some(Json::Null) => {}
            Some(Json::String(text)) => self.put("default", text.clone()),
            Some(Json::Array(list)) => {
                for entry in list {
                    let field = |name: &str| entry.get(name).and_then(Json::as_str).ok_or_else(wrong);
                    self.put(field("name")?, field("template")?.to_owned());
                }
            }
            Some(_) => return Err(wrong()),
        }
        Ok(())
    }

    /// The user's own template instead of all others.
    fn or_own(mut self, own: Option<&Own>) -> Result<Self> {
        let text = match own {
            None => return Ok(self),
            Some(Own::Text(text)) => text.clone(),
            Some(Own::Name(name)) => match self.0.remove(name) {
                Some(text) => text,
                None => return Err(no_such(name, self.0.keys())),
            },
        };
        Ok(Found(BTreeMap::from([("default".to_owned(), text)])))
    }

    /// A model with only a template for tools, or with one of any name, answers everything with it.
    fn take_default(&mut self) -> Option<String> {
        let only = (self.0.len() == 1).then(|| self.0.values().next().cloned()).flatten();
        self.0.remove("default").or_else(|| self.0.get("tool_use").cloned()).or(only)
    }

    fn compile(self, own: Option<&Own>, tokens: TemplateTokens, place: &str) -> Result<Option<ChatTemplate>> {
        let place = if own.is_some() { "chat_template" } else { place };
        let mut found = self.or_own(own)?;
        let Some(default) = found.take_default() else { return Ok(None) };
        let mut template = ChatTemplate::new(&default, tokens.clone()).context(place)?;
        if own.is_some() && !template.reads_messages() {
            return Err(Error::template(
                "chat_template reads no messages, so every conversation would become the same prompt; give a \
                 Jinja template over `messages`",
            ));
        }
        for (name, source) in &found.0 {
            template = template.with_named(name, source, tokens.clone()).context(place)?;
        }
        Ok(Some(template))
    }
}

fn no_such<'a>(name: &str, known: impl Iterator<Item = &'a String>) -> Error {
    let known: Vec<_> = known.map(|name| quoted(name)).collect();
    let has = if known.is_empty() {
        "has none with a name".to_owned()
    } else {
        format!("has {}", known.join(", "))
    };
    Error::invalid(format!(
        "chat_template: {} is neither a Jinja template, nor an existing file, nor the name of one of this \
         model's templates (it {has})",
        quoted(name)
    ))
}

impl ChatTemplate {
    /// The templates of a model folder, or the user's `own` with the model's tokens; `None` if there are
    /// none.
    ///
    /// # Errors
    /// `ModelFile` for a file that is no text, `Template` for a template that does not compile and for one of
    /// the user's that reads no messages, `InvalidRequest` for a name that the model does not have.
    pub fn from_hf(dir: &Path, own: Option<&Own>) -> Result<Option<Self>> {
        let (mut found, mut tokens) = (Found::default(), TemplateTokens::default());
        let jinja = dir.join("chat_template.jinja");
        if let Some(text) = read_text(&jinja, SOURCE_BYTES as u64)? {
            found.put("default", text);
        }
        for (name, file) in additional(dir)? {
            if let Some(text) = read_text(&file, SOURCE_BYTES as u64)? {
                found.put(&name, text);
            }
        }
        for name in ["chat_template.json", "tokenizer_config.json", "special_tokens_map.json"] {
            let file = dir.join(name);
            if let Some(json) = json::read(&file)? {
                // A template beside the configuration wins over the one in it, for all uses.
                if !found.0.contains_key("default") {
                    found.read(json.get("chat_template"), &file)?;
                }
                tokens.fill(&json);
            }
        }
        found.compile(own, tokens, &format!("the chat template of {}", dir.display()))
    }

    /// The templates in a GGUF file, or the user's `own` with the model's tokens; `None` if there are none.
    ///
    /// # Errors
    /// As [`ChatTemplate::from_hf`].
    pub fn from_gguf(meta: &Metadata, tokenizer: &Tokenizer, own: Option<&Own>) -> Result<Option<Self>> {
        const KEY: &str = "tokenizer.chat_template";
        let mut found = Found::default();
        if let Some(text) = meta.str(KEY)? {
            found.put("default", text.to_owned());
        }
        for (key, _) in meta.iter() {
            if let Some(name) = key.strip_prefix(KEY).and_then(|rest| rest.strip_prefix('.'))
                && let Some(text) = meta.str(key)?
            {
                found.put(name, text.to_owned());
            }
        }
        let token = |name: &str| -> Result<Option<String>> {
            let id =
                meta.u64(&format!("tokenizer.ggml.{name}_token_id"))?.and_then(|id| u32::try_from(id).ok());
            let bytes = id.map(|id| tokenizer.token_bytes(id)).filter(|bytes| !bytes.is_empty());
            Ok(bytes.map(|bytes| String::from_utf8_lossy(bytes).into_owned()))
        };
        let tokens = TemplateTokens {
            bos: token("bos")?,
            eos: token("eos")?,
            unk: token("unknown")?,
            pad: token("padding")?,
        };
        found.compile(own, tokens, "the chat template of the GGUF file")
    }
}

/// `additional_chat_templates/NAME.jinja`, by name.
fn additional(dir: &Path) -> Result<BTreeMap<String, PathBuf>> {
    let folder = dir.join("additional_chat_templates");
    let entries = match folder.read_dir() {
        Ok(entries) => entries,
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(BTreeMap::new());
        }
        Err(e) => return Err(Error::model_file(format!("{} cannot be read: {e}", folder.display()))),
    };
    let named = |path: PathBuf| {
        let name = path.file_name()?.to_str()?.strip_suffix(".jinja")?.to_owned();
        Some((name, path))
    };
    Ok(entries.flatten().filter_map(|entry| named(entry.path())).collect())
}
