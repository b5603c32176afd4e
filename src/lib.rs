//! tallow: a language model inside your process.
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
