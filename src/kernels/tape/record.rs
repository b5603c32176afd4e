//! What is kept of a step: its operations, and the values that their gradients need.

use std::collections::HashMap;
use std::sync::Arc;

use super::{Operation, Place, Value};

/// A product: which matrix, the factor of its weights, and what A made of the rows if it has factors.
pub(super) struct Projected {
    pub(super) place: Place,
    pub(super) scale: f32,
    pub(super) z: Option<Vec<f32>>,
}

/// An operation and what came out of it.
pub(super) struct Entry {
    pub(super) operation: Operation,
    pub(super) out: usize,
    /// Where the gradient needs it.
    pub(super) value: Option<Value>,
}

/// Operations in the order that they were computed in.
#[derive(Default)]
pub struct Tape {
    pub(super) entries: Vec<Entry>,
    pub(super) nodes: usize,
    /// What came out in the end: its number, and its shape.
    pub(super) last: Option<usize>,
    pub(super) dims: (usize, usize),
}

impl Tape {
    /// The entry that a node came out of.
    pub(super) fn made(&self, id: usize) -> Option<&Entry> {
        let at = self.entries.binary_search_by_key(&id, |entry| entry.out).ok()?;
        self.entries.get(at)
    }

    /// Whether the value of a node can be had again, in little time, from what the tape keeps anyway.
    pub(super) fn is_derived(&self, id: usize) -> bool {
        use Operation::{Activated, Gated, Norm};
        let made = self.made(id).map(|entry| &entry.operation);
        matches!(made, Some(Gated { .. } | Activated { .. } | Norm { added: false, .. }))
    }

    /// Values that the gradients of operations read; one may stand in several places.
    pub(super) fn values_mut(&mut self) -> impl Iterator<Item = &mut Value> {
        self.entries.iter_mut().flat_map(|entry| {
            let read = entry.operation.values_mut();
            entry.value.iter_mut().chain(read.into_iter().flatten())
        })
    }

    /// Bytes that it keeps.
    pub fn bytes(&mut self) -> usize {
        let values: HashMap<usize, usize> =
            self.values_mut().map(|value| (Arc::as_ptr(&value.0).addr(), value.bytes())).collect();
        let own = self.entries.iter().map(|entry| match &entry.operation {
            Operation::Linear { projected, .. } => projected.z.as_ref().map_or(0, Vec::len),
            Operation::Attention { lse, .. } => lse.len(),
            _ => 0,
        });
        own.sum::<usize>() * size_of::<f32>() + values.into_values().sum::<usize>()
    }
}
