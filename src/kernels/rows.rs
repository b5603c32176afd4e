//! Activations `[rows, dim]` as the graph passes them on, and the recycling of their memory on the CPU.

use std::any::Any;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::misuse;
use super::opaque::Opaque;
use super::quantize::Quantized;
use crate::error::{Error, Result};
use crate::memory;

/// One row a token of the step. Made and used by the same `Ops`.
pub struct Rows(Data);

enum Data {
    /// In the host's memory. Not opaque: an allocation for each result of our fastest backend would be felt.
    Host(Block),
    /// Wherever a backend put them.
    Device { rows: usize, dim: usize, data: Opaque },
}

impl Rows {
    /// Rows in a backend's own type.
    pub(super) fn device(rows: usize, dim: usize, data: impl Any + Send + Sync) -> Rows {
        Rows(Data::Device { rows, dim, data: Opaque::new(data) })
    }

    /// `(rows, dim)`
    pub fn dims(&self) -> (usize, usize) {
        match &self.0 {
            Data::Host(block) => (block.rows, block.dim),
            Data::Device { rows, dim, .. } => (*rows, *dim),
        }
    }

    pub(super) fn block(&self) -> Result<&Block> {
        match &self.0 {
            Data::Host(block) => Ok(block),
            Data::Device { .. } => Err(foreign()),
        }
    }

    pub(super) fn block_mut(&mut self) -> Result<&mut Block> {
        match &mut self.0 {
            Data::Host(block) => Ok(block),
            Data::Device { .. } => Err(foreign()),
        }
    }

    pub(super) fn into_block(self) -> Result<Block> {
        match self.0 {
            Data::Host(block) => Ok(block),
            Data::Device { .. } => Err(foreign()),
        }
    }

    /// What [`device`](Rows::device) was given.
    pub(super) fn get<T: Any>(&self) -> Result<&T> {
        match &self.0 {
            Data::Device { data, .. } => data.get("a row of activations"),
            Data::Host(_) => Err(foreign()),
        }
    }
}

impl From<Block> for Rows {
    fn from(block: Block) -> Rows {
        Rows(Data::Host(block))
    }
}

fn foreign() -> Error {
    misuse("activations were made by other Ops than those that use them")
}

/// Rows of f32 on the CPU, and the same as bytes once a product has asked for them.
pub(super) struct Block {
    pub(super) rows: usize,
    pub(super) dim: usize,
    floats: Vec<f32>,
    pub(super) bytes: OnceLock<Quantized>,
    home: Arc<Recycler>,
}

impl Block {
    pub(super) fn floats(&self) -> &[f32] {
        &self.floats[..self.rows * self.dim]
    }

    /// The floats, to be changed: what was computed from them is forgotten.
    pub(super) fn floats_mut(&mut self) -> &mut [f32] {
        if let Some(bytes) = self.bytes.take() {
            self.home.give_bytes(bytes);
        }
        &mut self.floats[..self.rows * self.dim]
    }

    /// The floats as a vector of their own.
    pub(super) fn into_vec(mut self) -> Vec<f32> {
        let mut floats = std::mem::take(&mut self.floats);
        floats.truncate(self.rows * self.dim);
        floats
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        if let Some(bytes) = self.bytes.take() {
            self.home.give_bytes(bytes);
        }
        self.home.give_floats(std::mem::take(&mut self.floats));
    }
}

/// Memory that was used in a step and will be in the next: a large allocation comes as pages that have to be
/// mapped and zeroed again, which cost as much as an operation on them.
pub(super) struct Recycler {
    floats: Mutex<Vec<Vec<f32>>>,
    bytes: Mutex<Vec<Quantized>>,
    /// Floats that may be kept, all pieces together.
    limit: usize,
}

/// Pieces that are kept, more than a step has at one time.
const KEPT: usize = 16;

/// Floats of the largest piece that is kept: the logits of 64 sequences, 262,144 each. What is larger is rare
/// (the scores of long texts beside them), and would be held for good.
const LARGEST: usize = 64 << 18;

/// One part in so many of the memory that is free may be kept between steps, within these bounds (in bytes).
const SHARE: u64 = 64;
const BOUNDS: (u64, u64) = (16 << 20, 256 << 20);

/// Floats that are kept while nothing is in work: what the next tokens of a few answers need.
const IDLE: usize = 4 << 20;

impl Default for Recycler {
    fn default() -> Self {
        let bytes = (memory::available() / SHARE).clamp(BOUNDS.0, BOUNDS.1);
        Recycler::new(bytes as usize / size_of::<f32>())
    }
}

impl Recycler {
    fn new(limit: usize) -> Self {
        Recycler { floats: Mutex::default(), bytes: Mutex::default(), limit }
    }

    /// `[rows, dim]` of undefined numbers.
    pub(super) fn block(self: &Arc<Self>, rows: usize, dim: usize) -> Block {
        let len = rows * dim;
        let mut kept = self.floats.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = |floats: &Vec<f32>| floats.len() >= len;
        // The smallest that is large enough; else the largest grows.
        let best = (0..kept.len()).min_by_key(|&at| match fits(&kept[at]) {
            true => (0, kept[at].len()),
            false => (1, usize::MAX - kept[at].len()),
        });
        let mut floats = best.map(|at| kept.swap_remove(at)).unwrap_or_default();
        drop(kept);
        if floats.len() < len {
            // Not `resize`: what was there need not be copied.
            floats = vec![0.0; len];
        }
        Block { rows, dim, floats, bytes: OnceLock::new(), home: self.clone() }
    }

    /// Rows that hold `values`.
    pub(super) fn filled(self: &Arc<Self>, values: Vec<f32>, dim: usize) -> Block {
        let rows = values.len().checked_div(dim).unwrap_or(0);
        Block { rows, dim, floats: values, bytes: OnceLock::new(), home: self.clone() }
    }

    pub(super) fn bytes(&self) -> Quantized {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).pop().unwrap_or_default()
    }

    fn give_bytes(&self, bytes: Quantized) {
        let mut kept = self.bytes.lock().unwrap_or_else(PoisonError::into_inner);
        if kept.len() < KEPT {
            kept.push(bytes);
        }
    }

    pub(super) fn give_floats(&self, floats: Vec<f32>) {
        let mut kept = self.floats.lock().unwrap_or_else(PoisonError::into_inner);
        let fits = held(&kept) + floats.len() <= self.limit;
        if fits && kept.len() < KEPT && (1..=LARGEST).contains(&floats.len()) {
            kept.push(floats);
        }
    }

    /// Gives back what is not worth keeping while nothing is computed, the largest pieces first.
    pub(super) fn trim(&self) {
        self.bytes.lock().unwrap_or_else(PoisonError::into_inner).clear();
        let mut kept = self.floats.lock().unwrap_or_else(PoisonError::into_inner);
        kept.sort_by_key(|floats| std::cmp::Reverse(floats.len()));
        let large = (0..kept.len()).find(|&at| held(&kept[at..]) <= IDLE).unwrap_or(kept.len());
        kept.drain(..large);
    }
}

fn held(kept: &[Vec<f32>]) -> usize {
    kept.iter().map(Vec::len).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_kept_is_bounded_and_goes_when_nothing_is_in_work() {
        let recycler = Arc::new(Recycler::new(3 * IDLE));
        let held = || held(&recycler.floats.lock().unwrap());
        let step = |pieces: &[usize]| {
            let blocks: Vec<Block> = pieces.iter().map(|&len| recycler.block(1, len)).collect();
            drop(blocks);
        };
        step(&[IDLE; 16]);
        assert_eq!(held(), 3 * IDLE, "sixteen pieces of a large step");
        step(&[100, 200, IDLE / 2]);
        assert!(held() <= 3 * IDLE);
        recycler.trim();
        assert!(held() <= IDLE, "{} floats are held for nobody", held());
        step(&[100, 200]);
        recycler.trim();
        assert!((200..=IDLE).contains(&held()), "what the next token needs stays");
    }
}
