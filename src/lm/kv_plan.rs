//! How many pages and slots fit into the memory for keys, values and recurrent state.

use crate::engine::{DecoderRunner, StepLimits};
use crate::error::{Error, Result};
use crate::model::Model;

/// Slots of recurrent state that are enough for one request at a time, candidates and snapshots included.
const MIN_SLOTS: u64 = 4;
/// Sequences of full length that the default cache holds at most: more would only be address space.
const MAX_DEFAULT_SEQUENCES: usize = 64;

/// Pages and slots for `budget` bytes; as many as that is if it was `asked` for.
///
/// # Errors
/// `OutOfMemory` that says which groups of state the model has, what they need, and what would help.
pub(super) fn plan_memory(model: &Model, budget: u64, asked: bool) -> Result<(usize, usize)> {
    let (decoder, limits) = (model.decoder(), StepLimits::default());
    let layout = DecoderRunner::groups(decoder);
    let longest = layout.pages_at_most(model.context_length(), limits.rows);
    let (page_bytes, slot_bytes) = (decoder.page_bytes() as u64, decoder.kv_layout().slot_bytes() as u64);
    // A slot for each answer in work, and as many for snapshots; less where they would take the pages' place.
    let slots = match (budget / 4).checked_div(slot_bytes) {
        None => 0,
        Some(affordable) => affordable.clamp(MIN_SLOTS, 2 * limits.sequences as u64),
    };
    let pages = budget.saturating_sub(slots * slot_bytes).checked_div(page_bytes).unwrap_or(u64::MAX);
    let pages = usize::try_from(pages).unwrap_or(usize::MAX);
    let pages = if asked { pages } else { pages.min(longest.saturating_mul(MAX_DEFAULT_SEQUENCES)) };
    if pages < layout.paged.len() {
        let states = match slot_bytes {
            0 => String::new(),
            _ => format!(", and {slots} slots of recurrent state of {slot_bytes} bytes each"),
        };
        return Err(Error::out_of_memory(format!(
            "the KV cache may take {budget} bytes, and this model needs at least {}: a page of {page_bytes} bytes for \
             each of its groups of layers ({layout}){states}; raise kv_memory",
            (page_bytes * layout.paged.len() as u64).saturating_add(slots * slot_bytes)
        )));
    }
    Ok((pages.min(u32::MAX as usize), slots as usize))
}
