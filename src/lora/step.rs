//! Adapters at work: which of them the spans of a step have, and what that changes.

use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, Weak};

use super::bind::{BoundAdapter, EmbeddingChange, HeadChange};
use crate::error::{Error, Result};
use crate::kernels::{Ops, Rows, Term};
use crate::model::projection::{Deltas, ProjectionId};
use crate::step::Step;

/// An adapter that a request uses: it stays in memory, under its number, as long as somebody holds this.
#[derive(Clone, Debug)]
pub struct AdapterLease(Arc<Held>);

struct Held {
    slot: u32,
    salt: u64,
    adapter: Arc<BoundAdapter>,
}

impl std::fmt::Debug for Held {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "adapter {:016x} in slot {}", self.salt, self.slot)
    }
}

impl AdapterLease {
    /// What a span of a step names it by.
    pub fn slot(&self) -> u32 {
        self.0.slot
    }

    /// What tells its prefixes from those of other adapters and of the base, which has 0.
    pub fn salt(&self) -> u64 {
        self.0.salt
    }
}

/// The adapters that requests hold, by number.
#[derive(Default)]
pub struct AdapterSlots(RwLock<Vec<Weak<Held>>>);

impl AdapterSlots {
    /// A number for the adapter: the one that it has, if others hold it already.
    pub fn lease(&self, adapter: &Arc<BoundAdapter>, salt: u64) -> AdapterLease {
        let mut slots = self.0.write().unwrap_or_else(PoisonError::into_inner);
        let mut live = slots.iter().filter_map(Weak::upgrade);
        if let Some(held) = live.find(|held| Arc::ptr_eq(&held.adapter, adapter) && held.salt == salt) {
            return AdapterLease(held);
        }
        let free = slots.iter().position(|slot| slot.strong_count() == 0);
        let slot = free.unwrap_or(slots.len());
        let held = Arc::new(Held { slot: slot as u32, salt, adapter: adapter.clone() });
        match slots.get_mut(slot) {
            Some(place) => *place = Arc::downgrade(&held),
            None => slots.push(Arc::downgrade(&held)),
        }
        AdapterLease(held)
    }

    /// The adapters of a step; `None` if no span has one.
    ///
    /// # Errors
    /// `Internal` for a number that nobody holds.
    pub fn of_step(&self, step: &Step) -> Result<Option<StepAdapters>> {
        if step.spans.iter().all(|span| span.adapter.is_none()) {
            return Ok(None);
        }
        let slots = self.0.read().unwrap_or_else(PoisonError::into_inner);
        let mut pieces: Vec<(Range<usize>, Arc<Held>)> = Vec::new();
        for span in &step.spans {
            let Some(slot) = span.adapter else { continue };
            let held = slots.get(slot as usize).and_then(Weak::upgrade);
            let held = held.ok_or_else(|| Error::internal("a step names an adapter that nobody holds"))?;
            match pieces.last_mut() {
                Some((rows, last)) if rows.end == span.rows.start && Arc::ptr_eq(last, &held) => {
                    rows.end = span.rows.end;
                }
                _ => pieces.push((span.rows.clone(), held)),
            }
        }
        Ok(Some(StepAdapters(pieces)))
    }
}

/// The rows of a step that have adapters, ascending.
pub struct StepAdapters(Vec<(Range<usize>, Arc<Held>)>);

impl StepAdapters {
    fn pieces(&self) -> impl Iterator<Item = (&Range<usize>, &BoundAdapter)> {
        self.0.iter().map(|(rows, held)| (rows, &*held.adapter))
    }
}

/// Which of some rows (ascending) lie in a range.
fn among(rows: &[u32], range: &Range<usize>) -> Range<usize> {
    let before = |end: usize| rows.partition_point(|row| (*row as usize) < end);
    before(range.start)..before(range.end)
}

impl Deltas for StepAdapters {
    fn terms(&self, id: ProjectionId, rows: Option<&[u32]>) -> Vec<Term<'_>> {
        let of = |(range, adapter): (&Range<usize>, _)| {
            let low_rank = BoundAdapter::low_rank(adapter, id)?;
            let rows = rows.map_or_else(|| range.clone(), |rows| among(rows, range));
            (!rows.is_empty()).then_some(Term { rows, low_rank })
        };
        self.0.iter().map(|(rows, held)| (rows, &*held.adapter)).filter_map(of).collect()
    }

    fn embedded(&self, ops: &Ops, tokens: &[u32], x: Rows, scale: f32) -> Result<Rows> {
        if self.pieces().all(|(_, adapter)| adapter.embedding.is_none()) {
            return Ok(x);
        }
        let dim = x.dims().1;
        let mut values = ops.into_vec(x)?;
        for (rows, adapter) in self.pieces() {
            let Some(change) = &adapter.embedding else { continue };
            let x = values[rows.start * dim..rows.end * dim].chunks_exact_mut(dim);
            x.zip(&tokens[rows.clone()]).for_each(|(x, token)| change.apply(*token, x, scale));
        }
        ops.rows(values, dim)
    }

    fn predicted(&self, ops: &Ops, rows: &[u32], hidden: &Rows, logits: Rows) -> Result<Rows> {
        if self.pieces().all(|(_, adapter)| adapter.head_change.is_none()) {
            return Ok(logits);
        }
        let vocab = logits.dims().1;
        let mut values = ops.into_vec(logits)?;
        for (range, adapter) in self.pieces() {
            let (Some(change), own) = (&adapter.head_change, among(rows, range)) else { continue };
            if !own.is_empty() {
                let places: Vec<u32> = own.clone().map(|at| at as u32).collect();
                let hidden = ops.select_rows(hidden, &places)?;
                change.apply(ops, hidden, &mut values[own.start * vocab..own.end * vocab], vocab)?;
            }
        }
        ops.rows(values, vocab)
    }
}

impl EmbeddingChange {
    /// `x`: the token's embedding of the base, times `scale`.
    pub(super) fn apply(&self, token: u32, x: &mut [f32], scale: f32) {
        let table = self.table.as_ref();
        let whole = table.and_then(|table| table.values.chunks_exact(table.columns).nth(token as usize));
        if let Some(own) = self.rows.get(&token).map(Vec::as_slice).or(whole) {
            x.iter_mut().zip(own).for_each(|(x, own)| *x = own * scale);
        }
        if let Some((a, b)) = &self.low_rank
            && let Some(z) = a.values.chunks_exact(a.columns.max(1)).nth(token as usize)
        {
            for (x, b) in x.iter_mut().zip(b.values.chunks_exact(b.columns.max(1))) {
                *x += scale * b.iter().zip(z).map(|(b, z)| b * z).sum::<f32>();
            }
        }
    }
}

impl HeadChange {
    /// `logits` `[rows, vocab]` of `hidden` `[rows, hidden]`.
    fn apply(&self, ops: &Ops, hidden: Rows, logits: &mut [f32], vocab: usize) -> Result<()> {
        if let Some(table) = &self.table {
            logits.copy_from_slice(&ops.into_vec(ops.linear(table, &hidden)?)?);
        }
        if self.rows.is_empty() {
            return Ok(());
        }
        let dim = hidden.dims().1;
        let hidden = ops.into_vec(hidden)?;
        for (logits, hidden) in logits.chunks_exact_mut(vocab).zip(hidden.chunks_exact(dim)) {
            for (token, row) in &self.rows {
                let bias = self.bias.as_ref().map_or(0.0, |bias| bias.values()[*token as usize]);
                logits[*token as usize] = row.iter().zip(hidden).map(|(w, x)| w * x).sum::<f32>() + bias;
            }
        }
        Ok(())
    }
}
