//! Text in, tokens out, and back: everything between a person's words and the model's integers.
//!
//! [`tokenizer`] turns text into token ids and ids into bytes, from `tokenizer.json` or from the tables
//! inside a GGUF file; [`stream`] turns the ids of one answer into text as they come, without ever splitting
//! a character and with stop strings cut off.

pub mod chat;
pub mod stream;
pub mod tokenizer;
