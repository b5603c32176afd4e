//! Rows of logits to work in, as many as threads draw at once.

use std::sync::{Mutex, PoisonError};

use crate::sample::Logits;

/// Rows that are kept: each has a few times the vocabulary in buffers.
const KEPT: usize = 16;

/// A row keeps its buffers from draw to draw: a fresh megabyte a token costs more than most filters.
#[derive(Default)]
pub(super) struct Scratch(Mutex<Vec<Logits>>);

impl Scratch {
    /// Lends a row for `work`.
    pub fn lend<T>(&self, work: impl FnOnce(&mut Logits) -> T) -> T {
        let mut row = self.rows().pop().unwrap_or_default();
        let outcome = work(&mut row);
        let mut rows = self.rows();
        if rows.len() < KEPT {
            rows.push(row);
        }
        outcome
    }

    fn rows(&self) -> std::sync::MutexGuard<'_, Vec<Logits>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
