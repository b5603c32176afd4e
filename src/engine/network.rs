//! The seam between the engine and the tensors: one forward pass over a ragged batch.

use crate::error::Result;
use crate::step::Step;

/// What computes a [`Step`]. The engine thread owns it, so it need not be `Sync`.
///
/// Pages are numbers below [`pages`](Network::pages). What is written into a page stays there until it is
/// written again: the engine alone decides who owns it.
pub trait Network: Send {
    /// Tokens that the logits distinguish.
    fn vocab_size(&self) -> usize;

    /// Width of a hidden state.
    fn hidden_size(&self) -> usize;

    /// Pages of the KV cache.
    fn pages(&self) -> usize;

    /// Computes all rows of `step` and writes their keys and values.
    ///
    /// # Errors
    /// The rows of this step are then lost, and the requests that they belong to; pages of other requests
    /// must be as they were.
    fn forward(&mut self, step: &Step) -> Result<StepOutput>;

    /// Takes back what [`forward`](Network::forward) gave, so that its memory serves the next step.
    fn recycle(&mut self, _output: StepOutput) {}

    /// Nothing is in work: memory that is only kept for the next step may go.
    fn idle(&mut self) {}

    /// Calls `task` with each of `0..tasks`, on the threads that compute, and returns when all are done.
    ///
    /// # Errors
    /// `Internal` when a task panicked.
    fn parallel_for(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        (0..tasks).for_each(task);
        Ok(())
    }

    /// Makes page `to` hold what page `from` holds, in every layer.
    fn copy_page(&mut self, from: u32, to: u32) -> Result<()>;

    /// Bytes of a page as it is saved.
    fn page_bytes(&self) -> usize;

    /// Appends what `page` holds to `out`, [`page_bytes`](Network::page_bytes) of them.
    fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<()>;

    /// Makes `page` hold what [`read_page`](Network::read_page) gave for another one.
    fn write_page(&mut self, page: u32, bytes: &[u8]) -> Result<()>;
}

/// What was wanted of a [`Step`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// `[step.logits.len(), vocab]`, row-major, in the order of `step.logits`.
    pub logits: Vec<f32>,
    /// `[step.hidden.len(), hidden]`, row-major, in the order of `step.hidden`.
    pub hidden: Vec<f32>,
}
