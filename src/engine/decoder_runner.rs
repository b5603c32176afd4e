//! The decoder as the engine sees it: steps in, logits out, pages of one cache.

use std::sync::Arc;

use super::model_runner::{ModelRunner, StepOutput};
use crate::cache::layout::{PagedGroup, StateLayout};
use crate::cache::storage::KvCache;
use crate::error::Result;
use crate::lora::AdapterSlots;
use crate::model::Decoder;
use crate::model::projection::Deltas;
use crate::step::Step;
use crate::trace;

/// A decoder with a cache of its own.
pub struct DecoderRunner {
    decoder: Arc<Decoder>,
    cache: KvCache,
    layout: StateLayout,
    adapters: Arc<AdapterSlots>,
}

impl DecoderRunner {
    /// `slots`: for recurrent state, if the decoder has some.
    ///
    /// # Errors
    /// `OutOfMemory` when there is no memory for so many pages and slots.
    pub fn new(decoder: Arc<Decoder>, pages: usize, slots: usize) -> Result<Self> {
        let cache = decoder.new_cache(pages, slots)?;
        let layout = StateLayout { pages, slots: cache.slots(), ..Self::groups(&decoder) };
        Ok(DecoderRunner { decoder, cache, layout, adapters: Arc::default() })
    }

    /// The same, whose steps may name these adapters.
    pub fn with(self, adapters: &Arc<AdapterSlots>) -> Self {
        DecoderRunner { adapters: adapters.clone(), ..self }
    }

    /// The groups of a decoder's state, with no memory for them.
    pub fn groups(decoder: &Decoder) -> StateLayout {
        let layout = decoder.kv_layout();
        let paged = layout.windows().iter().map(|&window| PagedGroup { window }).collect();
        StateLayout { paged, pages: 0, slots: 0 }
    }
}

impl ModelRunner for DecoderRunner {
    fn vocab_size(&self) -> usize {
        self.decoder.config().vocab
    }

    fn hidden_size(&self) -> usize {
        self.decoder.config().hidden
    }

    fn layout(&self) -> &StateLayout {
        &self.layout
    }

    fn forward(&mut self, step: &Step) -> Result<StepOutput> {
        let ops = self.decoder.ops();
        // One pass for both: hidden states first, then those whose logits are wanted.
        let rows = merged(&step.hidden, &step.logits);
        let adapters = self.adapters.of_step(step)?;
        let deltas = adapters.as_ref().map(|adapters| adapters as &dyn Deltas);
        let states = self.decoder.forward_with(step, &self.cache, &rows, deltas)?;
        let pick = |wanted: &[u32]| {
            let places: Vec<u32> =
                wanted.iter().filter_map(|row| rows.binary_search(row).ok()).map(|at| at as u32).collect();
            ops.select_rows(&states, &places)
        };
        let _span = trace::span("head");
        let logits = match step.logits.as_slice() {
            [] => vec![],
            all if all == rows => {
                ops.into_vec(self.decoder.head_with(&states, deltas.map(|it| (it, all)))?)?
            }
            some => ops.into_vec(self.decoder.head_with(&pick(some)?, deltas.map(|it| (it, some)))?)?,
        };
        let hidden = if step.hidden.is_empty() { vec![] } else { ops.into_vec(pick(&step.hidden)?)? };
        Ok(StepOutput { logits, hidden })
    }

    fn recycle(&mut self, output: StepOutput) {
        self.decoder.ops().recycle(output.logits);
        self.decoder.ops().recycle(output.hidden);
    }

    fn idle(&mut self) {
        self.decoder.ops().trim();
    }

    fn parallel_for(&self, tasks: usize, task: &(dyn Fn(usize) + Sync)) -> Result<()> {
        self.decoder.ops().parallel_for("draw", tasks, task)
    }

    fn copy_page(&mut self, from: u32, to: u32) -> Result<()> {
        self.decoder.ops().copy_page(&self.cache, from, to)
    }

    fn page_bytes(&self, group: usize) -> usize {
        self.cache.page_bytes(group)
    }

    fn read_page(&self, group: usize, page: u32, out: &mut Vec<u8>) -> Result<()> {
        self.cache.read_page(group, page, out)
    }

    fn write_page(&mut self, group: usize, page: u32, bytes: &[u8]) -> Result<()> {
        self.cache.write_page(group, page, bytes)
    }

    fn state_bytes(&self) -> usize {
        self.cache.layout().slot_bytes()
    }

    fn read_state(&self, slot: u32, out: &mut Vec<u8>) -> Result<()> {
        self.cache.read_state(slot, out)
    }

    fn write_state(&mut self, slot: u32, bytes: &[u8]) -> Result<()> {
        self.cache.write_state(slot, bytes)
    }
}

/// The union of two ascending lists.
fn merged(a: &[u32], b: &[u32]) -> Vec<u32> {
    let mut rows: Vec<u32> = a.iter().chain(b).copied().collect();
    rows.sort_unstable();
    rows.dedup();
    rows
}
