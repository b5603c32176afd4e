//! The engine: requests of many threads in, one ragged batch after the other through the model, events out.
//!
//! | file | what it is |
//! |---|---|
//! | [`handle`] | what callers hold: [`EngineHandle`] to submit to, [`Generation`] to read from |
//! | [`answer`] | a text as chunks, or whole, for those who want no events |
//! | [`request`] | what is asked and answered, and what is wrong with a request before any work |
//! | [`model_runner`] | the seam to the tensors: [`ModelRunner`] computes a step |
//! | [`schedule`] | who gets how many rows of a step: pure integers |
//! | `sequence` | a request in work: its branches, its subscriber, its clock |
//! | `branch` | a row of positions with its pages: what is computed, and how far it lags behind |
//! | `decode`, `score` | what a sequence does with logits: an answer, or likelihoods of candidates |
//! | `pooling` | what it does with hidden states: one vector |
//! | [`guide`] | a grammar at work on one answer: what may come, what must, and the end within its budget |
//! | `draft` | tokens guessed and checked several in a step: what that costs and brings |
//! | `ngram`, [`draft_model`] | where guesses come from: the text that is there, a smaller model |
//! | `channel` | both ends of the wire: commands, messages, who listens to an answer |
//! | `options` | how an engine is set up |
//! | `index` | who is found without walking the queue: equal requests, callers, deadlines |
//! | `step_loop` | the thread: listen, reap, admit, step, sweep |
//! | `prefix_io` | a computed prefix as bytes, and back |
//! | [`stats`] | what was done so far |
//!
//! There are no phases. A branch knows `len` tokens and has computed some of them, and every step spends its
//! budget of rows so that the rest gets smaller: a prompt, a chunk of one, the next token and a forked
//! candidate differ only in how far they lag behind. What a request gets depends on nothing but itself: the
//! network promises that a row's result does not depend on its neighbours, and the randomness is keyed by
//! (seed, position).
//!
//! Pages are leased for what is known, and one more whenever an answer grows into it; what was computed stays
//! in the prefix tree ([`crate::cache::prefix`]) until its pages are needed. When none is left the youngest
//! answer is preempted and begins again later, to the same end.
//!
//! ```no_run
//! # use std::time::Duration;
//! # use tallow::engine::*;
//! # fn example(network: Box<dyn ModelRunner>, prompt: Vec<u32>) -> tallow::error::Result<()> {
//! let engine = EngineHandle::start(network, EngineOptions::new(4096))?;
//! let embed = Embed { pooling: [Pooling::Mean].into(), normalize: true };
//! let mut answer = engine.submit(Request::new(prompt, Task::Embed(embed)))?;
//! while let Some(event) = answer.wait() {
//!     println!("{event:?}");
//! }
//! # Ok(())
//! # }
//! ```

pub mod answer;
mod decoder_runner;
pub mod draft_model;
pub mod guide;
pub mod handle;
pub mod model_runner;
mod options;
pub mod request;
pub mod schedule;
mod scratch;
pub mod stats;

mod branch;
mod channel;
mod decode;
mod draft;
mod index;
mod ngram;
mod pooling;
mod prefix_io;
mod score;
mod sequence;
mod step_loop;

pub use answer::{Chunk, Chunks, Completion};
pub use channel::Notify;
pub use decoder_runner::DecoderRunner;
pub use draft_model::DraftRunner;
pub use handle::{Canceller, EngineHandle, Generation, Poll, Reservation};
pub use model_runner::{ModelRunner, StepOutput};
pub use options::EngineOptions;
pub use request::{
    Bounds, Embed, Event, Finish, FinishReason, Generate, Pooling, Request, Task, Timings, TokenEvent, Usage,
};
pub use schedule::StepLimits;
pub use stats::{Histogram, Stats};
