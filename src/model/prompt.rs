//! What a model continues: a text, a conversation, ids.

use std::sync::OnceLock;

use serde_json::{Map, Value, json};

use crate::text::chat::Rendered;

/// What a model continues. All of them become one by `into()`: `"text"`, `&[1, 2, 3][..]`, `&chat`.
#[derive(Clone, Copy)]
pub enum Prompt<'a> {
    /// Plain text. Control tokens written in it are text.
    Text(&'a str),
    /// A conversation, which the model is to render.
    Chat(&'a Chat),
    /// A conversation that this model has rendered.
    Rendered(&'a ChatPrompt),
    /// Token ids, taken as they are.
    Ids(&'a [u32]),
}

/// A conversation as OpenAI's API writes it, and what the template is given with it.
///
/// ```
/// use tallow::Chat;
///
/// let mut chat = Chat::new().system("Answer in one word.").user("What is the capital of Peru?");
/// chat = chat.assistant("Lima").user("And of France?");
/// assert_eq!(chat.messages[3]["content"], "And of France?");
/// ```
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chat {
    /// Objects with `role` and `content`, and what else OpenAI's API has in them.
    pub messages: Vec<Value>,
    /// Tools that the model may call, for the template to show.
    pub tools: Option<Value>,
    /// Variables for the template (`enable_thinking`, `date_string`, …), and what else transformers takes
    /// beside the messages: `documents`; `add_generation_prompt`, which ends the prompt where the answer
    /// begins (so it is unless told otherwise); `continue_final_message`, which ends it with the last
    /// message's own text instead (true, or the field of the message that is to be continued).
    pub arguments: Map<String, Value>,
}

impl Chat {
    /// A conversation that has not begun.
    pub fn new() -> Self {
        Chat::default()
    }

    /// With what the model is told before the conversation.
    pub fn system(self, text: impl Into<String>) -> Self {
        self.message("system", text)
    }

    /// With what the user says.
    pub fn user(self, text: impl Into<String>) -> Self {
        self.message("user", text)
    }

    /// With what the model has said.
    pub fn assistant(self, text: impl Into<String>) -> Self {
        self.message("assistant", text)
    }

    fn message(mut self, role: &str, text: impl Into<String>) -> Self {
        self.messages.push(json!({"role": role, "content": text.into()}));
        self
    }

    /// With a variable for the template.
    pub fn argument(mut self, name: impl Into<String>, value: impl Into<Value>) -> Self {
        self.arguments.insert(name.into(), value.into());
        self
    }
}

/// A conversation as the chat template wrote it. Its ids are made once, when they are first needed.
#[derive(Debug)]
pub struct ChatPrompt {
    pub(super) rendered: Rendered,
    pub(super) ids: OnceLock<Vec<u32>>,
}

impl ChatPrompt {
    pub fn text(&self) -> &str {
        &self.rendered.text
    }

    /// What the template could not take as it was, and what was done instead.
    pub fn notes(&self) -> &[String] {
        &self.rendered.notes
    }
}

impl From<Vec<Value>> for Chat {
    /// A conversation of messages that are there already.
    fn from(messages: Vec<Value>) -> Self {
        Chat { messages, ..Chat::default() }
    }
}

impl<'a> From<&'a str> for Prompt<'a> {
    fn from(text: &'a str) -> Self {
        Prompt::Text(text)
    }
}

impl<'a> From<&'a String> for Prompt<'a> {
    fn from(text: &'a String) -> Self {
        Prompt::Text(text)
    }
}

impl<'a> From<&'a Chat> for Prompt<'a> {
    fn from(chat: &'a Chat) -> Self {
        Prompt::Chat(chat)
    }
}

impl<'a> From<&'a ChatPrompt> for Prompt<'a> {
    fn from(rendered: &'a ChatPrompt) -> Self {
        Prompt::Rendered(rendered)
    }
}

impl<'a> From<&'a [u32]> for Prompt<'a> {
    fn from(ids: &'a [u32]) -> Self {
        Prompt::Ids(ids)
    }
}

impl<'a> From<&'a Vec<u32>> for Prompt<'a> {
    fn from(ids: &'a Vec<u32>) -> Self {
        Prompt::Ids(ids)
    }
}
