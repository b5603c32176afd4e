//! A loaded model: the weights as a [`Decoder`], the [`Tokenizer`] and the [`ChatTemplate`].
//!
//! A [`Model`] is immutable and shared; it holds no conversation. Whoever wants text from it runs an engine
//! over it (`Lm`), which owns the key/value cache. The same files loaded twice with the same options are one
//! Model.

mod attention;
mod beside;
pub mod build;
mod causal_conv;
pub mod decoder;
mod delta_net;
pub mod embedding;
mod experts;
mod feed_forward;
mod file_hash;
mod fingerprint;
mod latent;
mod load;
mod mamba2;
mod mixer;
mod packed;
mod per_layer;
pub mod projection;
mod prompt;
mod short_conv;

use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use serde_json::Value;

pub use self::decoder::Decoder;
pub use self::embedding::Embedding;
use self::fingerprint::Identity;
pub use self::load::LoadOptions;
// For the tests with damaged files alone.
pub use self::packed::{KeptFile, Packed, finish as finish_packed, kept_files};
#[doc(hidden)]
pub use self::packed::{of_parts as packed_of, read_as_said as read_packed, sums_of as packed_sums};
pub use self::projection::ProjectionId;
pub use self::prompt::{Chat, ChatPrompt, Prompt};
use crate::config::Config;
use crate::config::generation::Generation;
use crate::device::Placement;
use crate::error::{Error, Result};
use crate::hub::Progress;
use crate::text::chat::{ChatTemplate, RenderRequest, Rendered};
use crate::text::tokenizer::Tokenizer;

/// A model in memory. Immutable; shared by all who loaded the same files with the same options.
pub struct Model {
    name: String,
    path: PathBuf,
    revision: Option<String>,
    identity: Identity,
    context_length: usize,
    placement: Placement,
    weight_bytes: u64,
    mapped_bytes: u64,
    weight_types: Vec<&'static str>,
    packed: packed::State,
    packed_again: Option<String>,
    notes: Vec<String>,
    tokenizer: Arc<Tokenizer>,
    template: Option<ChatTemplate>,
    decoder: Arc<Decoder>,
    generation: Generation,
    eos_ids: Arc<[u32]>,
    embedding: Result<Embedding>,
}

impl Model {
    /// How the model was asked for: "org/name", a file's name, or what the caller calls it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder or file that it was loaded from.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// That the files of the weights are still those that were loaded.
    ///
    /// # Errors
    /// `ModelFile` naming one that is not.
    pub fn check_files(&self) -> Result<()> {
        self.identity.check_files()
    }

    /// The commit of the hub, or what the caller says.
    pub fn revision(&self) -> Option<&str> {
        self.revision.as_deref()
    }

    /// Names the weights and how they are computed with: 16 hexadecimal digits over all small tensors and
    /// samples of each large one.
    pub fn fingerprint(&self) -> &str {
        self.identity.fingerprint()
    }

    /// The same over every byte: 32 hexadecimal digits, for what outlives this process. The first time it
    /// reads the files again, unless a process of this user has done so before.
    ///
    /// # Errors
    /// `ModelFile` if a file has changed or gone since it was loaded, `Cancelled` when the progress says so.
    pub fn content_hash(&self, progress: &dyn Progress) -> Result<&str> {
        self.identity.exact(progress)
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

    /// Bytes of the weights as stored, but for those that stay in the file.
    pub fn weight_bytes(&self) -> u64 {
        self.weight_bytes
    }

    /// Bytes of the weights that stay in the file, where they are read when they are needed: a table of
    /// per-layer embeddings.
    pub fn mapped_bytes(&self) -> u64 {
        self.mapped_bytes
    }

    /// The storage types of the weights, the largest share first.
    pub fn weight_types(&self) -> &[&'static str] {
        &self.weight_types
    }

    /// What became of its packed weights: whether they are in memory or mapped, and kept for later loads.
    pub fn packed(&self) -> Packed {
        self.packed.get()
    }

    /// Bytes of packed weights that lie in the map of a file, which the system counts as free memory.
    pub fn shared_bytes(&self) -> u64 {
        match self.packed() {
            Packed::Mapped => self.weight_bytes,
            _ => 0,
        }
    }

    /// Why a file of packed weights that was there was not used, if one was: it was cut off, altered, of
    /// other files or of another version. The weights were packed again, and it is replaced.
    pub fn packed_again(&self) -> Option<&str> {
        self.packed_again.as_deref()
    }

    /// What people should know of how the files were read: what was left alone, what was decided for them.
    pub fn notes(&self) -> &[String] {
        &self.notes
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

    /// The ids of a text that is to become a vector, with what is put before and around it. `prompt`: instead
    /// of the model's own.
    ///
    /// # Errors
    /// As [`Model::embedding`].
    pub fn embedding_ids(&self, text: &str, prompt: Option<&str>) -> Result<Vec<u32>> {
        let embedding = self.embedding()?;
        let prompt = prompt.unwrap_or(embedding.prompt());
        match embedding.messages(prompt, text) {
            Some(messages) => self.message_ids(messages),
            None => self.text_ids(&format!("{prompt}{text}")),
        }
    }

    /// Rows of the logits.
    pub fn vocab_size(&self) -> usize {
        self.config().vocab
    }

    pub fn template(&self) -> Option<&ChatTemplate> {
        self.template.as_ref()
    }

    /// A conversation as the chat template writes it; see [`ChatTemplate::render`].
    ///
    /// # Errors
    /// `Template` if the model has none, or if it refuses or drops messages; `InvalidRequest` for malformed
    /// messages, and for arguments that the template does not read.
    pub fn render(&self, chat: &Chat) -> Result<ChatPrompt> {
        let template = self.template.as_ref().ok_or_else(|| {
            Error::template(format!(
                "the model {} has no chat template; give it a plain text prompt, or load it with chat_template=…",
                self.name
            ))
        })?;
        let control: Vec<&str> = self.tokenizer.special_tokens().map(|(_, token)| token).collect();
        let mut arguments = chat.arguments.clone();
        let continues = continued(arguments.shift_remove("continue_final_message"))?;
        let documents = arguments.shift_remove("documents").filter(|documents| !documents.is_null());
        let add_generation_prompt = match arguments.shift_remove("add_generation_prompt") {
            None | Some(Value::Null) => continues.is_none(),
            Some(Value::Bool(add)) => add,
            Some(_) => return Err(Error::invalid("add_generation_prompt must be true or false")),
        };
        let rendered = template.render(&RenderRequest {
            messages: &chat.messages,
            tools: chat.tools.as_ref(),
            documents: documents.as_ref(),
            add_generation_prompt,
            continue_final_message: continues.as_deref(),
            arguments: &arguments,
            control_tokens: &control,
        })?;
        Ok(ChatPrompt { rendered, ids: OnceLock::new() })
    }

    /// The ids that the decoder is given for a prompt, with what the tokenizer puts before a text (BOS). What
    /// it puts after a complete text (EOS) is left out: a prompt is to be continued.
    pub fn prompt_ids(&self, prompt: &Prompt) -> Result<Vec<u32>> {
        let ids = match prompt {
            Prompt::Ids(ids) => return Ok(ids.to_vec()),
            Prompt::Text(text) => self.tokenizer.encode(text, false)?,
            Prompt::Chat(chat) => return self.prompt_ids(&Prompt::Rendered(&self.render(chat)?)),
            Prompt::Rendered(chat) => match chat.ids.get() {
                Some(ids) => return Ok(ids.clone()),
                None => {
                    let Rendered { text, literals, .. } = &chat.rendered;
                    let ids = self.with_prefix(self.tokenizer.encode_with_literals(text, literals)?);
                    return Ok(chat.ids.get_or_init(|| ids).clone());
                }
            },
        };
        Ok(self.with_prefix(ids))
    }

    /// The ids of a complete text, with what the tokenizer puts before it and after it.
    pub fn text_ids(&self, text: &str) -> Result<Vec<u32>> {
        let ids = self.tokenizer.encode(text, false)?;
        Ok([self.tokenizer.prefix(), &ids, self.tokenizer.suffix()].concat())
    }

    /// The ids of a complete conversation, as the chat template alone writes it.
    pub fn message_ids(&self, messages: Vec<Value>) -> Result<Vec<u32>> {
        let chat = Chat::from(messages).argument("add_generation_prompt", false);
        let prompt = self.render(&chat)?;
        self.tokenizer.encode_with_literals(&prompt.rendered.text, &prompt.rendered.literals)
    }

    /// The ids of each text where it continues a prompt: as they stand in the whole text if the prompt's own
    /// ids stay what they are, else those of the text alone, with no space put before it.
    pub fn continuation_ids(
        &self,
        prompt: &Prompt,
        prompt_ids: &[u32],
        texts: &[String],
    ) -> Result<Vec<Vec<u32>>> {
        let (before, literals): (&str, &[Range<usize>]) = match prompt {
            Prompt::Ids(_) => {
                return texts.iter().map(|text| self.tokenizer.encode_continuation(text)).collect();
            }
            Prompt::Text(before) => (before, &[]),
            Prompt::Chat(chat) => {
                let rendered = self.render(chat)?;
                return self.continuation_ids(&Prompt::Rendered(&rendered), prompt_ids, texts);
            }
            Prompt::Rendered(chat) => (&chat.rendered.text, &chat.rendered.literals),
        };
        // What is appended is the user's text: control tokens in it stay text.
        let special = !matches!(prompt, Prompt::Text(_));
        let whole = |text: &String| {
            let ids = self.with_prefix(self.encode_after(before, literals, text, special)?);
            match ids.strip_prefix(prompt_ids) {
                Some(rest) => Ok(rest.to_vec()),
                None => self.tokenizer.encode_continuation(text),
            }
        };
        let Some((first, others)) = texts.split_first() else { return Ok(Vec::new()) };
        let mut found = vec![whole(first)?];
        // The whole prompt is tokenized once more for the first text. For the others its last turn is enough,
        // if it gives the same for the first.
        let tail = if special { self.tail(before, literals, prompt_ids)? } else { None };
        let after = |(tail, literals, ids): &Tail, text: &String| -> Result<Option<Vec<u32>>> {
            let all = self.encode_after(tail, literals, text, true)?;
            Ok(all.strip_prefix(ids.as_slice()).map(<[u32]>::to_vec))
        };
        let tail = match tail {
            Some(tail) => (after(&tail, first)?.as_ref() == found.first()).then_some(tail),
            None => None,
        };
        for text in others {
            let short = tail.as_ref().map(|tail| after(tail, text)).transpose()?.flatten();
            found.push(match short {
                Some(ids) => ids,
                None => whole(text)?,
            });
        }
        Ok(found)
    }

    fn encode_after(
        &self,
        before: &str,
        literals: &[Range<usize>],
        text: &str,
        special: bool,
    ) -> Result<Vec<u32>> {
        let whole = format!("{before}{text}");
        if !special {
            return self.tokenizer.encode(&whole, false);
        }
        let literals: Vec<_> =
            literals.iter().cloned().chain(std::iter::once(before.len()..whole.len())).collect();
        self.tokenizer.encode_with_literals(&whole, &literals)
    }

    /// What stands behind the last control token of a prompt, for nothing merges across one; with its
    /// literals and its ids.
    fn tail(&self, text: &str, literals: &[Range<usize>], ids: &[u32]) -> Result<Option<Tail>> {
        let start = ids.iter().rposition(|id| self.tokenizer.is_special(*id)).map_or(0, |at| at + 1);
        let ids = ids.get(start..).unwrap_or_default();
        let tail = self.tokenizer.decode_continuation(ids, true);
        let Some(from) = text.len().checked_sub(tail.len()).filter(|_| text.ends_with(&tail)) else {
            return Ok(None);
        };
        let within = literals.iter().filter(|range| range.start >= from);
        let literals: Vec<_> = within.map(|range| range.start - from..range.end - from).collect();
        let same = self.tokenizer.encode_with_literals(&tail, &literals)? == ids;
        Ok(same.then(|| (tail, literals, ids.to_vec())))
    }

    /// Most templates write the BOS themselves: what goes before a text is added where it does not stand
    /// there.
    fn with_prefix(&self, ids: Vec<u32>) -> Vec<u32> {
        let prefix = self.tokenizer.prefix();
        if prefix.first().is_some_and(|bos| ids.first() == Some(bos)) { ids } else { [prefix, &ids].concat() }
    }
}

type Tail = (String, Vec<Range<usize>>, Vec<u32>);

/// The field of the last message that a prompt ends with: transformers' `continue_final_message`.
fn continued(argument: Option<Value>) -> Result<Option<String>> {
    match argument {
        None | Some(Value::Null | Value::Bool(false)) => Ok(None),
        Some(Value::Bool(true)) => Ok(Some("content".to_owned())),
        Some(Value::String(field)) => Ok(Some(field)),
        Some(_) => Err(Error::invalid(
            "continue_final_message must be true, false or the field of the last message that is to be \
             continued",
        )),
    }
}

impl std::fmt::Debug for Model {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Model").field("name", &self.name).field("fingerprint", &self.fingerprint()).finish()
    }
}
