//! An answer for those who want no events: piece by piece, or whole.

use super::handle::Generation;
use super::request::{Event, Finish, FinishReason, Timings, TokenEvent, Usage};
use crate::error::{Error, Result};
use crate::sample::TokenLogprob;

/// Tokens that became text together; the last one also says how the answer ended.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Chunk {
    pub text: String,
    /// Their ids.
    pub tokens: Vec<u32>,
    /// One a token, if the request asked for log probabilities.
    pub logprobs: Vec<TokenLogprob>,
    /// How it ended, in the last chunk.
    pub finish: Option<Finish>,
}

/// A whole answer.
#[derive(Clone, Debug, PartialEq)]
pub struct Completion {
    /// The answer, without stop texts and control tokens.
    pub text: String,
    /// The ids that were generated.
    pub tokens: Vec<u32>,
    /// One a token, if the request asked for log probabilities.
    pub logprobs: Vec<TokenLogprob>,
    /// Why it ended.
    pub reason: FinishReason,
    /// What it cost in tokens.
    pub usage: Usage,
    /// What it cost in time.
    pub timings: Timings,
}

impl Chunk {
    fn token(&mut self, event: TokenEvent) {
        self.text.push_str(&event.text);
        self.tokens.push(event.id);
        self.logprobs.extend(event.logprob);
    }

    /// Takes an event in; true when there is something to show.
    ///
    /// # Errors
    /// What the request failed with; `Internal` for what is no part of a text.
    pub fn absorb(&mut self, event: Event) -> Result<bool> {
        match event {
            Event::Token(token) => self.token(token),
            Event::Run(tokens) => tokens.into_iter().for_each(|token| self.token(token)),
            Event::Done(finish) => {
                self.text.push_str(&finish.text);
                self.finish = Some(finish);
            }
            Event::Error(error) => return Err(error),
            Event::Rows(_) | Event::Scores(_) | Event::Pages(_) => {
                return Err(Error::internal("a generation got another task's answer"));
            }
        }
        Ok(!self.text.is_empty() || self.finish.is_some())
    }

    /// Puts the next chunk behind this one.
    pub fn append(&mut self, next: Chunk) {
        self.text.push_str(&next.text);
        self.tokens.extend(next.tokens);
        self.logprobs.extend(next.logprobs);
        self.finish = next.finish;
    }
}

impl Completion {
    /// From all chunks together.
    ///
    /// # Errors
    /// `InvalidRequest` if the last one is not among them.
    pub fn from_chunk(whole: Chunk) -> Result<Completion> {
        let Chunk { text, tokens, logprobs, finish } = whole;
        let Finish { reason, usage, timings, .. } =
            finish.ok_or_else(|| Error::invalid("this generation was already read to its end"))?;
        Ok(Completion { text, tokens, logprobs, reason, usage, timings })
    }
}

/// The chunks of a text, each waited for. After an error there is nothing more.
pub struct Chunks(Generation);

impl IntoIterator for Generation {
    type Item = Result<Chunk>;
    type IntoIter = Chunks;

    fn into_iter(self) -> Chunks {
        Chunks(self)
    }
}

impl Iterator for Chunks {
    type Item = Result<Chunk>;

    fn next(&mut self) -> Option<Result<Chunk>> {
        let mut chunk = Chunk::default();
        loop {
            match chunk.absorb(self.0.wait()?) {
                Ok(false) => {}
                Ok(true) => return Some(Ok(chunk)),
                Err(error) => return Some(Err(error)),
            }
        }
    }
}

impl Generation {
    /// Waits for the end of a text.
    ///
    /// # Errors
    /// What the request failed with; `InvalidRequest` if the end was read before.
    pub fn completion(self) -> Result<Completion> {
        let mut whole = Chunk::default();
        for chunk in self {
            whole.append(chunk?);
        }
        Completion::from_chunk(whole)
    }
}
