//! How an engine is set up.

use super::schedule::StepLimits;

/// How an engine runs.
#[derive(Clone, Debug)]
pub struct EngineOptions {
    /// Positions of one sequence, prompt and answer together.
    pub context_length: usize,
    /// What one step may hold.
    pub limits: StepLimits,
    /// Requests that may wait for their turn; one more is refused.
    pub queue: usize,
    /// Keep the pages of what was computed, and take them again for the same tokens.
    pub prefix_cache: bool,
    /// Guess tokens from the prompt and check several in one step.
    pub speculation: bool,
    /// A position sees only those before it. If not, a text is computed in one step whatever its length, and
    /// nothing of it goes into the prefix tree: its first keys depend on its last tokens.
    pub causal: bool,
}

impl EngineOptions {
    /// The defaults for a model with this context.
    pub fn new(context_length: usize) -> Self {
        EngineOptions {
            context_length,
            limits: StepLimits::default(),
            queue: 1024,
            prefix_cache: true,
            speculation: true,
            causal: true,
        }
    }
}
