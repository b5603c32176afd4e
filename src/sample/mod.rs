//! How the next token is picked from the logits of the last position.
//!
//! A [`Sampler`] is a fold of one-method [`Filter`]s over [`Logits`], then one draw. The order is fixed:
//!
//! | step | filter | what it does |
//! |---|---|---|
//! | 1 | [`LogitBias`] | adds a number to the logits of named tokens; `-inf` forbids one |
//! | 2 | [`RepetitionPenalty`] | weakens every token of prompt and answer (transformers) |
//! | 3 | [`CountPenalty`] | frequency and presence penalty over the answer alone (OpenAI) |
//! | 4 | the user's filters | anything, on the dense row of the whole vocabulary |
//! | - | temperature 0 | stops here: the largest logit wins, ties to the lowest id |
//! | 5 | [`TopK`] | the `k` largest logits |
//! | 6 | [`Temperature`] | divides the logits |
//! | 7 | [`TopP`] | the smallest set of the likeliest tokens that holds mass `p` |
//! | 8 | [`MinP`] | tokens at least `min_p` times as likely as the likeliest |
//! | 9 | [`Typical`] | the smallest set of mass `typical_p` whose surprise is nearest to the entropy |
//!
//! Why this order: it is the one of transformers (bias, penalties, the caller's own processors, then the
//! warpers from temperature to typical), and checkpoints ship a `generation_config.json` that was tuned with
//! it. llama.cpp applies the temperature last, so that truncation judges the unscaled distribution; the same
//! numbers then mean something else, and the numbers that users copy come with the former. The one
//! departure changes no result: top-k runs before the temperature, because dividing by a positive number
//! keeps the order, and so all the rest costs `k` instead of the vocabulary.
//!
//! Bias, penalties and the user's filters are edits of the whole row ([`Sampler::prepare`],
//! [`Sampler::run_filters`]). The rest narrows and draws ([`Sampler::finish`]). They are separate so that an
//! engine can run user code on the thread of its caller. What a grammar forbids is masked before all of them,
//! and once more after that code.
//!
//! The draw is a pure function of (logits, seed, position): see [`rng`]. Every sum has one order, and the
//! exponential is our own ([`softmax`]), so that machines agree bit for bit as well.

pub mod chain;
pub mod fields;
pub mod filter;
pub mod logits;
pub mod logprobs;
pub mod penalties;
pub mod rng;
pub mod sampler;
mod select;
pub mod softmax;

pub use chain::{Chain, Filter, History};
pub use fields::{FIELDS, SamplerFields};
pub use filter::{MinP, Temperature, TopK, TopP, Typical};
pub use logits::Logits;
pub use logprobs::{TokenLogprob, log_softmax_at, token_logprobs};
pub use penalties::{CountPenalty, LogitBias, RepetitionPenalty};
pub use sampler::Sampler;
