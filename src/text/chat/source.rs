//! Where templates lie: beside Hugging Face's tokenizer, or in a GGUF file's metadata.
//!
//! Hugging Face, the first that exists: `chat_template.jinja` (with `additional_chat_templates/*.jinja`),
//! `chat_template.json`, `tokenizer_config.json`. The value of `chat_template` is a template or a list of
//! `{"name", "template"}`, of which "default" and "tool_use" are used. GGUF: `tokenizer.chat_template` and
//! `tokenizer.chat_template.tool_use`.

use std::path::Path;

use serde_json::Value as Json;

use super::ChatTemplate;
use super::limits::SOURCE_BYTES;
use crate::config::json;
use crate::error::{Context, Error, Result};
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

/// The templates of a model, by use.
#[derive(Default)]
struct Found {
    default: Option<String>,
    tool_use: Option<String>,
}

impl Found {
    fn put(&mut self, name: &str, template: String) {
        match name {
            "default" => self.default = self.default.take().or(Some(template)),
            "tool_use" => self.tool_use = self.tool_use.take().or(Some(template)),
            _ => {}
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
    fn or_own(self, own: Option<&str>) -> Self {
        own.map_or(self, |text| Found { default: Some(text.to_owned()), tool_use: None })
    }

    fn compile(self, tokens: TemplateTokens, place: &str) -> Result<Option<ChatTemplate>> {
        // A model with only a template for tools answers everything with it.
        let Some(default) = self.default.as_ref().or(self.tool_use.as_ref()) else { return Ok(None) };
        let template = ChatTemplate::new(default, tokens).context(place)?;
        match &self.tool_use {
            Some(source) => template.with_tool_use(source).context(format!("{place}, tool_use")).map(Some),
            None => Ok(Some(template)),
        }
    }
}

impl ChatTemplate {
    /// The template of a model folder, or the user's `own` with the model's tokens; `None` if there is none.
    pub fn from_hf(dir: &Path, own: Option<&str>) -> Result<Option<Self>> {
        let (mut found, mut tokens) = (Found::default(), TemplateTokens::default());
        let jinja = dir.join("chat_template.jinja");
        if let Some(text) = read_text(&jinja, SOURCE_BYTES as u64)? {
            found.put("default", text);
        }
        let tools = dir.join("additional_chat_templates").join("tool_use.jinja");
        if let Some(text) = read_text(&tools, SOURCE_BYTES as u64)? {
            found.put("tool_use", text);
        }
        for name in ["chat_template.json", "tokenizer_config.json", "special_tokens_map.json"] {
            let file = dir.join(name);
            if let Some(json) = json::read(&file)? {
                // A template beside the configuration wins over the one in it, for all uses.
                if found.default.is_none() {
                    found.read(json.get("chat_template"), &file)?;
                }
                tokens.fill(&json);
            }
        }
        found.or_own(own).compile(tokens, &format!("the chat template of {}", dir.display()))
    }

    /// The template in a GGUF file, or the user's `own` with the model's tokens; `None` if there is none.
    pub fn from_gguf(meta: &Metadata, tokenizer: &Tokenizer, own: Option<&str>) -> Result<Option<Self>> {
        let mut found = Found::default();
        for (key, name) in
            [("tokenizer.chat_template", "default"), ("tokenizer.chat_template.tool_use", "tool_use")]
        {
            if let Some(text) = meta.str(key)? {
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
        found.or_own(own).compile(tokens, "the chat template of the GGUF file")
    }
}
