//! The seam between the engine and the tensors: one forward pass over a ragged batch.

use std::time::Duration;

use crate::cache::layout::StateLayout;
use crate::error::Result;
use crate::step::Step;

/// What computes a [`Step`]. The engine thread owns it, so it need not be `Sync`.
///
/// Pages and slots are numbers below those of the [`layout`](ModelRunner::layout). What is written into one
/// stays there until it is written again: the engine alone decides who owns it.
pub trait ModelRunner: Send {
    /// Tokens that the logits distinguish.
    fn vocab_size(&self) -> usize;

    /// Width of a hidden state.
    fn hidden_size(&self) -> usize;

    /// The groups of state that a sequence has, and how many pages and slots there are.
    fn layout(&self) -> &StateLayout;

    /// Computes all rows of `step` and writes their keys, values and states.
    ///
    /// # Errors
    /// The rows of this step are then lost, and the requests that they belong to; pages of other requests
    /// must be as they were.
    fn forward(&mut self, step: &Step) -> Result<StepOutput>;

    /// How long the last [`forward`](ModelRunner::forward) took, if the runner has a clock of its own. The
    /// scheduler weighs drafts by it; without one it looks at the wall clock, which a busy machine stretches.
    fn step_time(&self) -> Option<Duration> {
        None
    }

    /// Takes back what [`forward`](ModelRunner::forward) gave, so that its memory serves the next step.
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

    /// Makes page `to` hold what page `from` holds.
    fn copy_page(&mut self, from: u32, to: u32) -> Result<()>;

    /// Bytes of a page of a group as it is saved.
    fn page_bytes(&self, group: usize) -> usize;

    /// Appends what `page` holds of a group to `out`, [`page_bytes`](ModelRunner::page_bytes) of them.
    fn read_page(&self, group: usize, page: u32, out: &mut Vec<u8>) -> Result<()>;

    /// Makes `page` hold what [`read_page`](ModelRunner::read_page) gave for another one.
    fn write_page(&mut self, group: usize, page: u32, bytes: &[u8]) -> Result<()>;

    /// Bytes of a slot as it is saved; 0 where there is no recurrent state.
    fn state_bytes(&self) -> usize {
        0
    }

    /// Appends the state in `slot` to `out`, [`state_bytes`](ModelRunner::state_bytes) of them.
    fn read_state(&self, _slot: u32, _out: &mut Vec<u8>) -> Result<()> {
        Ok(())
    }

    /// Makes `slot` hold what [`read_state`](ModelRunner::read_state) gave for another one.
    fn write_state(&mut self, _slot: u32, _bytes: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// What was wanted of a [`Step`].
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StepOutput {
    /// `[step.logits.len(), vocab]`, row-major, in the order of `step.logits`.
    pub logits: Vec<f32>,
    /// `[step.hidden.len(), hidden]`, row-major, in the order of `step.hidden`.
    pub hidden: Vec<f32>,
}
