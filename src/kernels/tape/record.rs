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

    /// Bytes that it keeps.
    pub fn bytes(&self) -> usize {
        let mut seen: HashMap<usize, usize> = HashMap::new();
        let mut own = 0;
        for entry in &self.entries {
            let mut count = |value: &Value| {
                seen.insert(Arc::as_ptr(&value.0).addr(), value.bytes());
            };
            entry.value.iter().for_each(&mut count);
            match &entry.operation {
                Operation::Linear { x, projected } => {
                    count(&x.value);
                    own += projected.z.as_ref().map_or(0, Vec::len) * size_of::<f32>();
                }
                Operation::Gated { gate, up, .. } => {
                    count(&gate.value);
                    count(&up.value);
                }
                Operation::Activated { x, .. } | Operation::Norm { x, .. } => count(&x.value),
                Operation::Heads { x, norm, .. } => norm.iter().for_each(|_| count(&x.value)),
                Operation::Attention { q, k, v, lse, .. } => {
                    [q, k, v].iter().for_each(|it| count(&it.value));
                    own += lse.len() * size_of::<f32>();
                }
                Operation::Add { .. } | Operation::ScaleRows { .. } | Operation::SelectRows { .. } => {}
            }
        }
        own + seen.values().sum::<usize>()
    }
}
