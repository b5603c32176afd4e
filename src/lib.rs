//! tallow: a language model inside your process.
//!
//! No server, no Python, no torch: weights in GGUF or safetensors as people publish them, on CPU kernels
//! that give the same bits whoever is in the batch. Calls of any number of threads and tasks become one
//! batch, what their prompts have in common is computed once, and a grammar holds an answer to its form while
//! the model writes.
//!
//! ```no_run
//! use serde_json::json;
//! use tallow::{Chat, Constraint, GenerateOptions, Lm};
//!
//! # fn main() -> tallow::Result<()> {
//! let lm = Lm::load("HuggingFaceTB/SmolLM2-135M-Instruct")?; // a file, a folder, a name of the hub
//! let mut chat = Chat::new().system("You are brief.").user("What is the capital of Peru?");
//! let answer = lm.complete(&chat, &GenerateOptions::default())?;
//! println!("{}", answer.text);
//!
//! chat = chat.assistant(answer.text).user("How many people live there?");
//! let schema = json!({"type": "object", "properties": {"people": {"type": "integer", "minimum": 0}}});
//! let options = GenerateOptions { constraint: Some(Constraint::json_schema(schema)), ..Default::default() };
//! for chunk in lm.generate(&chat, &options)? {
//!     print!("{}", chunk?.text);
//! }
//! # Ok(())
//! # }
//! ```
//!
//! With the feature `stream` an answer is a `Stream` for any executor (`Lm::stream`); without `hub`, which is
//! on, nothing is ever downloaded. `examples/` has a program for each: simple, chat, stream, typed, adapters.
//!
//! Three types carry it: a [`Model`] (weights, tokenizer, chat template: immutable, shared), a [`Sampler`]
//! (how a token is picked) and an [`Lm`] (a running engine over a Model: queue, scheduler, key/value cache;
//! any number of threads may call it).
//!
//! The modules, in reading order; none uses one that stands after its own line:
//!
//! | | |
//! |---|---|
//! | [`error`], [`step`], [`memory`] | the one error type; the ragged batch that everything computes; what memory there is |
//! | [`small_file`] | texts up to a limit; files that appear whole |
//! | [`hub`], [`weights`], [`config`], [`text`] | a name -> files -> tensors, blueprint, tokenizer, template |
//! | [`kernels`], [`cache`], [`device`], [`model`] | what a device computes, where keys and values lie, the decoder |
//! | [`lora`] | adapters: their files, and what they add to a decoder's projections |
//! | [`sample`], [`constrain`] | logits -> token; the form that an answer must have |
//! | [`train`] | training of adapters, through the weights as they are packed |
//! | [`engine`], [`lm`] | requests -> batches; prompts -> requests |
//! | `python` | the extension module, with the feature `python` |

/// The README's program compiles.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

pub mod error;
pub mod memory;
pub mod small_file;
pub mod step;
pub mod trace;

pub mod config;
pub mod hub;
pub mod text;
pub mod weights;

pub mod cache;
pub mod device;
pub mod kernels;
pub mod model;

pub mod convert;
pub mod lora;

pub mod constrain;
pub mod engine;
pub mod lm;
mod preparer;
pub mod sample;
#[cfg(feature = "stream")]
pub mod stream;
pub mod train;

#[cfg(feature = "python")]
mod python;

pub use constrain::Constraint;
pub use engine::{Chunk, Completion, Event, Finish, FinishReason, Generation, Stats, Timings, Usage};
pub use error::{Error, ErrorKind, Result};
pub use lm::{GenerateOptions, Lm, LmOptions};
pub use lora::Adapter;
pub use model::{Chat, LoadOptions, Model, Prompt};
pub use sample::{Sampler, SamplerFields};
#[cfg(feature = "stream")]
pub use stream::ChunkStream;
