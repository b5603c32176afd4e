//! An answer as a [`Stream`], for any executor: the engine's thread wakes the task that reads it.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use futures_core::Stream;

use crate::engine::{Canceller, Chunk, Completion, Generation, Notify, Poll as Found};
use crate::error::Result;
use crate::lm::{AsPrompt, GenerateOptions, Lm};

/// The chunks of an answer as they come. Dropping it ends the request at the next step.
///
/// Filters of the user's own run in the task that reads.
pub struct ChunkStream {
    generation: Generation,
    /// Tokens that have no text yet.
    chunk: Chunk,
    /// Who waits for the next event.
    reader: Arc<Mutex<Option<Waker>>>,
}

impl Lm {
    /// Continues a prompt and returns at once: a thread of the engine renders, tokenizes and compiles. What
    /// is wrong with the request is the stream's first and only item.
    ///
    /// ```no_run
    /// # async fn example(lm: tallow::Lm) -> tallow::Result<()> {
    /// use tallow::{Chat, GenerateOptions};
    ///
    /// let chat = Chat::new().user("Why is the sky blue?");
    /// let answer = lm.stream(chat, GenerateOptions::default())?.completion().await?;
    /// println!("{}", answer.text);
    /// # Ok(())
    /// # }
    /// ```
    ///
    /// # Errors
    /// As [`EngineHandle::reserve`](crate::engine::EngineHandle::reserve).
    pub fn stream(&self, prompt: impl AsPrompt, options: GenerateOptions) -> Result<ChunkStream> {
        let reader = Arc::<Mutex<Option<Waker>>>::default();
        let its_own = reader.clone();
        let notify: Notify = Arc::new(move |_| {
            // Woken with the lock open: a waker may run its task here and now.
            let waiting = its_own.lock().unwrap_or_else(PoisonError::into_inner).take();
            if let Some(waker) = waiting {
                waker.wake();
            }
        });
        let generation = self.generate_later(prompt, options, notify)?;
        Ok(ChunkStream { generation, chunk: Chunk::default(), reader })
    }
}

impl ChunkStream {
    /// Waits for the end.
    ///
    /// # Errors
    /// What the request failed with; `InvalidRequest` if the end was read before.
    pub async fn completion(mut self) -> Result<Completion> {
        let mut whole = Chunk::default();
        while let Some(chunk) = poll_fn(|context| Pin::new(&mut self).poll_next(context)).await {
            whole.append(chunk?);
        }
        Completion::from_chunk(whole)
    }

    /// What ends the request from another task.
    pub fn canceller(&self) -> Canceller {
        self.generation.canceller()
    }
}

impl Stream for ChunkStream {
    type Item = Result<Chunk>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Result<Chunk>>> {
        // Before the look, or what comes between the two would wake nobody.
        *self.reader.lock().unwrap_or_else(PoisonError::into_inner) = Some(context.waker().clone());
        loop {
            let Self { generation, chunk, .. } = &mut *self;
            match generation.next(Duration::ZERO) {
                Found::Event(event) => match chunk.absorb(event) {
                    Ok(false) => {}
                    Ok(true) => return Poll::Ready(Some(Ok(std::mem::take(chunk)))),
                    Err(error) => return Poll::Ready(Some(Err(error))),
                },
                Found::Pending => return Poll::Pending,
                Found::Ended => return Poll::Ready(None),
            }
        }
    }
}
