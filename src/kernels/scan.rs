//! Recurrent scans with a matrix as their state on the CPU: Gated DeltaNet and Mamba-2 ([`Scan`]).
//!
//! A head's state is S `[key_dim, value_dim]`, and a row does, with its decay `a`, strength `b`, key k, query
//! q and value v:
//!
//! ```text
//! S = a S + k d^T,   o = S^T q,   d = b v                      (Mamba-2: k, q, v, b are B, C, x and dt)
//!                                 d = b (v - (a S)^T k)        (Gated DeltaNet)
//! ```
//!
//! Columns of S never meet: a task takes up to 64 of one head (a *panel*, `[key_dim, 64]`, 32 KB for keys of
//! 128), keeps them in L1 and walks all rows of a span. Of S a row needs two sums over the keys, of S before
//! it: `S^T k` and `S^T q` (`o = a S^T q + (q.k) d`), so one pass over the panel does the update of a row and
//! the sums of the next. Those go from the first key to the last in one chain a column, whatever the rows
//! around it: how a prompt is cut into steps changes no bit, and a chunk has no borders.
//!
//! Why no chunked scan (WY form, as GPUs have it): for 64 rows a chunk it takes more products a row than
//! this (3 dk dv + 2 * 64 (dk + dv) + ... for heads of 128: 86,000 against the 66,000 of four operations for
//! each number of S), which pays where products are nearly free, in bfloat16 on matrix units; in f32 on
//! vectors it does not. `make bench-kernels` times a layer's scan beside its projections.

use std::ops::Range;

use super::disjoint::DisjointSlices;
use super::isa::tiered;
use super::simd::{LANES, Simd};
use super::types::{Scan, ScanRule};
use super::{CheckedStep, math, norm};
use crate::step::StateWrite;

/// Columns of a panel, at most: four vectors, so that there are enough sums at a time for the latency of an
/// addition, and keys and queries are spread over lanes for all four at once.
const PANEL: usize = 4 * LANES;

/// The same for a span of one row, whose state is read and written once, from and to memory: whole rows of S
/// lie there one after the other.
const PANEL_OF_ONE: usize = 8 * LANES;

/// Rows of a prompt that are asked for ahead: they lie too far apart for the processor to foresee.
const ROWS_AHEAD: usize = 3;

/// Columns of a panel of a span with so many rows.
pub(super) fn panel_columns(rows: usize) -> usize {
    if rows == 1 { PANEL_OF_ONE } else { PANEL }
}

/// What is added to the squares of a key or query before the root (`l2norm` of Gated DeltaNet).
const EPS: f32 = 1e-6;

/// Numbers of each head that a row brings: decay, strength, and the product of its query and key.
pub(super) const FACTORS: usize = 3;

/// Rows of one call to [`prepare`].
pub(super) struct Inputs<'a> {
    /// `[rows, row_dim]`; keys and queries of Gated DeltaNet are normed in place.
    pub(super) x: &'a mut [f32],
    /// `[rows, heads]`
    pub(super) dt: &'a [f32],
    /// `[rows, heads]`; the strength where there is one.
    pub(super) beta: Option<&'a [f32]>,
    /// `[rows, 3, heads]`: decays, strengths, and (of each group) `q.k`.
    pub(super) factors: &'a mut [f32],
}

tiered! {
    /// What is needed of rows before they are scanned.
    pub(super) fn prepare(scan: &Scan, inputs: Inputs<'_>) = prepare_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn prepare_body<S: Simd>(scan: &Scan, inputs: Inputs<'_>) {
    let (heads, dk, [q, k, _]) = (scan.heads, scan.key_dim, scan.offsets());
    let rows = inputs.x.chunks_exact_mut(scan.row_dim()).zip(inputs.dt.chunks_exact(heads));
    for (row, ((x, dt), factors)) in rows.zip(inputs.factors.chunks_exact_mut(FACTORS * heads)).enumerate() {
        let beta = inputs.beta.map(|beta| &beta[row * heads..(row + 1) * heads]);
        let (rates, products) = factors.split_at_mut(2 * heads);
        // SAFETY: the caller's promise.
        unsafe {
            rates_of::<S>(scan, dt, beta, rates);
            for (group, product) in products.iter_mut().enumerate().take(scan.groups) {
                let (q, k) = (q + group * dk..q + (group + 1) * dk, k + group * dk..k + (group + 1) * dk);
                if matches!(scan.rule, ScanRule::Delta) {
                    l2_norm::<S>(1.0 / (dk as f32).sqrt(), &mut x[q.clone()]);
                    l2_norm::<S>(1.0, &mut x[k.clone()]);
                }
                *product = dot::<S>(&x[q], &x[k]);
            }
        }
    }
}

/// Decays `exp(t A)` and strengths (`sigmoid(beta)`, or t itself) of a row, where `t = softplus(dt + bias)`.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn rates_of<S: Simd>(scan: &Scan, dt: &[f32], beta: Option<&[f32]>, rates: &mut [f32]) {
    let (decays, strengths) = rates.split_at_mut(scan.heads);
    let mut at = 0;
    while at < scan.heads {
        let end = scan.heads.min(at + LANES);
        // SAFETY: the caller's promise.
        unsafe {
            let bias = S::load_some(&scan.dt_bias.values[at..end]);
            let mut t = math::softplus::<S>(S::add(S::load_some(&dt[at..end]), bias));
            if let ScanRule::Mamba2 { dt_limits: [least, most], .. } = &scan.rule {
                t = S::min(S::splat(*most), S::max(S::splat(*least), t));
            }
            let decay = math::exp::<S>(S::mul(t, S::load_some(&scan.a.values[at..end])));
            S::store_some(&mut decays[at..end], decay);
            let strength = match beta {
                Some(beta) => math::sigmoid::<S>(S::load_some(&beta[at..end])),
                None => t,
            };
            S::store_some(&mut strengths[at..end], strength);
        }
        at = end;
    }
}

/// `x = factor * x / sqrt(sum(x^2) + eps)`
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn l2_norm<S: Simd>(factor: f32, x: &mut [f32]) {
    // SAFETY: the caller's promise.
    unsafe {
        let squares = S::reduce_sum(norm::squares::<S>(x, 0.0));
        let scale = S::splat(factor / (squares + EPS).sqrt());
        for x in x.chunks_mut(LANES) {
            S::store_some(x, S::mul(S::load_some(x), scale));
        }
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn dot<S: Simd>(a: &[f32], b: &[f32]) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut sum = S::zero();
        for (a, b) in a.chunks(LANES).zip(b.chunks(LANES)) {
            sum = S::fma(S::load_some(a), S::load_some(b), sum);
        }
        S::reduce_sum(sum)
    }
}

/// The state before a span.
pub(super) enum Before {
    Zeros,
    /// In this slot.
    Slot(u32),
    /// Read beforehand, because another span of the step writes to where it lay: `[heads, dk, dv]`.
    Copy(Vec<f32>),
}

/// Where each span of a step begins. `states`: `[slots, state_len]`; the scan's part of each is the last.
pub(super) fn before(scan: &Scan, step: &CheckedStep<'_>, states: &[f32], state_len: usize) -> Vec<Before> {
    let foreign = |number: usize, slot: u32| {
        let others = step.spans.iter().enumerate().filter(|(other, _)| *other != number);
        others.flat_map(|(_, span)| &span.state.writes).any(|write| write.slot == slot)
    };
    let of = |(number, span): (usize, &crate::step::Span)| match span.state.read {
        None => Before::Zeros,
        Some(slot) if foreign(number, slot) => {
            let end = (slot as usize + 1) * state_len;
            Before::Copy(states[end - scan.state_len()..end].to_vec())
        }
        Some(slot) => Before::Slot(slot),
    };
    step.spans.iter().enumerate().map(of).collect()
}

/// One task: some columns of one head, over the rows of a span.
#[derive(Clone)]
pub(super) struct Panel<'a> {
    pub(super) scan: &'a Scan,
    /// `[rows, row_dim]` and `[rows, 3, heads]`, of all rows of the step, as [`prepare`] leaves them.
    pub(super) x: &'a [f32],
    pub(super) factors: &'a [f32],
    /// The rows of the span.
    pub(super) rows: Range<usize>,
    pub(super) head: usize,
    /// At most [`panel_columns`], of the head's values.
    pub(super) columns: Range<usize>,
    pub(super) before: &'a Before,
    pub(super) writes: &'a [StateWrite],
    /// `[slots, state_len]`; the scan's part of each is the last.
    pub(super) states: &'a DisjointSlices<'a, f32>,
    pub(super) state_len: usize,
    /// `[rows, heads * value_dim]`
    pub(super) out: &'a DisjointSlices<'a, f32>,
}

tiered! {
    /// Walks the rows of a span.
    ///
    /// # Safety
    /// No two panels have columns of a head in common, or write to one slot for two spans; what one reads of
    /// a slot no other writes.
    pub(super) fn walk(panel: Panel<'_>) = [unsafe] walk_body;
}

/// A row of a panel of `V` vectors: the columns at one key, on whole lines of the cache.
#[derive(Clone, Copy)]
#[repr(align(64))]
struct Lanes<const V: usize>([[f32; LANES]; V]);

/// Sums over the keys, for each column.
#[derive(Clone, Copy)]
struct Sums<S: Simd, const V: usize> {
    keys: [S::F; V],
    queries: [S::F; V],
}

/// A row as a task sees it.
struct Row<'a> {
    q: &'a [f32],
    k: &'a [f32],
    /// The columns of the panel.
    v: &'a [f32],
    decay: f32,
    strength: f32,
    /// `q.k`
    product: f32,
}

impl<'a> Panel<'a> {
    fn row(&self, row: usize) -> Row<'a> {
        let (scan, [q, k, v]) = (self.scan, self.scan.offsets());
        let x = &self.x[row * scan.row_dim()..(row + 1) * scan.row_dim()];
        let group = scan.group_of(self.head) * scan.key_dim;
        let v = v + self.head * scan.value_dim;
        let factors = &self.factors[row * FACTORS * scan.heads..][..FACTORS * scan.heads];
        Row {
            q: &x[q + group..][..scan.key_dim],
            k: &x[k + group..][..scan.key_dim],
            v: &x[v + self.columns.start..v + self.columns.end],
            decay: factors[self.head],
            strength: factors[scan.heads + self.head],
            product: factors[2 * scan.heads + scan.group_of(self.head)],
        }
    }

    /// Asks for what a row reads, and where its outputs go.
    ///
    /// # Safety
    /// The tier's instructions.
    #[inline(always)]
    unsafe fn prefetch<S: Simd>(&self, row: usize) {
        let Row { q, k, v, .. } = self.row(row);
        let start = row * self.scan.width() + self.head * self.scan.value_dim + self.columns.start;
        let out = self.out.pointer(start..start + self.columns.len()).cast_const();
        for (from, len) in
            [(q.as_ptr(), q.len()), (k.as_ptr(), k.len()), (v.as_ptr(), v.len()), (out, v.len())]
        {
            for line in (0..len).step_by(LANES) {
                // SAFETY: the caller's promise; a prefetch reads nothing.
                unsafe { S::prefetch_l1(from.wrapping_add(line).cast()) };
            }
        }
    }

    /// Where the columns of one key lie in a state `[heads, key_dim, value_dim]`.
    fn place(&self, key: usize) -> Range<usize> {
        let start = (self.head * self.scan.key_dim + key) * self.scan.value_dim;
        start + self.columns.start..start + self.columns.end
    }

    /// The same in a slot.
    fn in_slot(&self, slot: u32, key: usize) -> Range<usize> {
        let start = (slot as usize + 1) * self.state_len - self.scan.state_len();
        let Range { start: first, end } = self.place(key);
        start + first..start + end
    }

    /// # Safety
    /// As [`walk`].
    unsafe fn read<const V: usize>(&self) -> Vec<Lanes<V>> {
        let mut state = vec![Lanes([[0.0; LANES]; V]); self.scan.key_dim];
        for (key, lanes) in state.iter_mut().enumerate() {
            let lanes = &mut lanes.0.as_flattened_mut()[..self.columns.len()];
            match self.before {
                Before::Zeros => break,
                Before::Copy(state) => lanes.copy_from_slice(&state[self.place(key)]),
                Before::Slot(slot) => {
                    let from = self.states.pointer(self.in_slot(*slot, key));
                    // SAFETY: as many floats are there; nobody writes to them meanwhile, by the caller's
                    // promise.
                    unsafe { std::ptr::copy_nonoverlapping(from, lanes.as_mut_ptr(), lanes.len()) };
                }
            }
        }
        state
    }

    /// # Safety
    /// As [`walk`].
    unsafe fn write<const V: usize>(&self, state: &[Lanes<V>], slot: u32) {
        for (key, lanes) in state.iter().enumerate() {
            // SAFETY: nobody else writes to this place, by the caller's promise.
            let to = unsafe { self.states.slice_mut(self.in_slot(slot, key)) };
            to.copy_from_slice(&lanes.0.as_flattened()[..to.len()]);
        }
    }
}

/// # Safety
/// The tier's instructions; as [`walk`].
#[inline(always)]
unsafe fn walk_body<S: Simd>(panel: Panel<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match panel.scan.rule {
            ScanRule::Delta => walk_columns::<S, true>(panel),
            ScanRule::Mamba2 { .. } => walk_columns::<S, false>(panel),
        }
    }
}

/// # Safety
/// As [`walk_body`].
#[inline(always)]
unsafe fn walk_columns<S: Simd, const DELTA: bool>(panel: Panel<'_>) {
    // SAFETY: the caller's promise.
    unsafe {
        match panel.columns.len().div_ceil(LANES) {
            1 => walk_rule::<S, 1, DELTA>(panel),
            2 => walk_rule::<S, 2, DELTA>(panel),
            3 | 4 => walk_rule::<S, 4, DELTA>(panel),
            _ => walk_rule::<S, 8, DELTA>(panel),
        }
    }
}

/// # Safety
/// As [`walk_body`].
#[inline(always)]
unsafe fn walk_rule<S: Simd, const V: usize, const DELTA: bool>(panel: Panel<'_>) {
    let Range { start, end } = panel.rows;
    // SAFETY: the caller's promise.
    if end - start == 1 && unsafe { walk_one::<S, V, DELTA>(&panel) } {
        return;
    }
    let mut writes = panel.writes;
    let mut row = panel.row(start);
    // SAFETY: the caller's promise.
    unsafe {
        let mut state = panel.read::<V>();
        let none = [S::zero(); V];
        let mut sums = pass::<S, V, false, true, DELTA>(&mut state, (1.0, row.k, none), (row.q, row.k));
        for at in start..end {
            let change = finish::<S, V, DELTA>(&panel, at, &row, &sums);
            let update = (row.decay, row.k, change);
            if at + ROWS_AHEAD < end {
                panel.prefetch::<S>(at + ROWS_AHEAD);
            }
            if at + 1 < end {
                let next = panel.row(at + 1);
                sums = pass::<S, V, true, true, DELTA>(&mut state, update, (next.q, next.k));
                row = next;
            } else if !writes.is_empty() {
                pass::<S, V, true, false, DELTA>(&mut state, update, (row.q, row.k));
            }
            while let Some((write, others)) =
                writes.split_first().filter(|(write, _)| write.rows <= at + 1 - start)
            {
                panel.write(&state, write.slot);
                writes = others;
            }
        }
    }
}

/// The same of a single row whose state is read from a slot and written to one: there, without a copy.
/// `false` where it is not so, or the columns are no whole vectors.
///
/// # Safety
/// As [`walk_body`].
#[inline(always)]
unsafe fn walk_one<S: Simd, const V: usize, const DELTA: bool>(panel: &Panel<'_>) -> bool {
    let (&Before::Slot(slot), [write]) = (panel.before, panel.writes) else { return false };
    if panel.columns.len() != V * LANES || write.rows != 1 {
        return false;
    }
    let (keys, stride) = (panel.scan.key_dim, panel.scan.value_dim);
    let place = |slot| {
        let (first, last) = (panel.in_slot(slot, 0), panel.in_slot(slot, keys - 1));
        panel.states.pointer(first.start..last.end)
    };
    let (from, to, at) = (place(slot), place(write.slot), panel.rows.start);
    let row = panel.row(at);
    // SAFETY: `keys` rows of `V` vectors, `stride` apart, are at both places; nobody else writes to them, by
    // the caller's promise.
    unsafe {
        let mut sums = Sums { keys: [S::zero(); V], queries: [S::zero(); V] };
        for key in 0..keys {
            let s = load::<S, V>(from.add(key * stride));
            add_products::<S, V, DELTA>(&s, S::splat(row.q[key]), S::splat(row.k[key]), &mut sums);
        }
        let change = finish::<S, V, DELTA>(panel, at, &row, &sums);
        let decay = S::splat(row.decay);
        for key in 0..keys {
            let (s, k) = (load::<S, V>(from.add(key * stride)), S::splat(row.k[key]));
            for (vector, s) in s.into_iter().enumerate() {
                let s = S::fma(k, change[vector], S::mul(decay, s));
                S::store(to.add(key * stride + vector * LANES), s);
            }
        }
    }
    true
}

/// # Safety
/// The tier's instructions; `V` vectors are there.
#[inline(always)]
unsafe fn load<S: Simd, const V: usize>(from: *const f32) -> [S::F; V] {
    // SAFETY: the caller's promise.
    unsafe {
        let mut out = [S::zero(); V];
        for (vector, out) in out.iter_mut().enumerate() {
            *out = S::load(from.add(vector * LANES));
        }
        out
    }
}

/// Adds what a row of S gives to the sums over the keys.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn add_products<S: Simd, const V: usize, const DELTA: bool>(
    s: &[S::F; V],
    q: S::F,
    k: S::F,
    sums: &mut Sums<S, V>,
) {
    for (vector, &s) in s.iter().enumerate() {
        // SAFETY: the caller's promise.
        unsafe {
            sums.queries[vector] = S::fma(q, s, sums.queries[vector]);
            if DELTA {
                sums.keys[vector] = S::fma(k, s, sums.keys[vector]);
            }
        }
    }
}

/// Stores the outputs of a row, and gives what it changes: d.
///
/// # Safety
/// As [`walk_body`].
#[inline(always)]
unsafe fn finish<S: Simd, const V: usize, const DELTA: bool>(
    panel: &Panel<'_>,
    at: usize,
    row: &Row<'_>,
    sums: &Sums<S, V>,
) -> [S::F; V] {
    let (dim, head) = (panel.scan.width(), panel.head * panel.scan.value_dim);
    let start = at * dim + head + panel.columns.start;
    // SAFETY: the caller's promise; no other task has these columns of the row.
    unsafe {
        let mut changes = [S::zero(); V];
        let out = panel.out.slice_mut(start..start + panel.columns.len());
        let (decay, strength) = (S::splat(row.decay), S::splat(row.strength));
        let parts = row.v.chunks(LANES).zip(out.chunks_mut(LANES)).enumerate();
        for (vector, (v, out)) in parts {
            let v = S::load_some(v);
            let change = match DELTA {
                true => S::mul(strength, S::sub(v, S::mul(decay, sums.keys[vector]))),
                false => S::mul(strength, v),
            };
            let mut y = S::fma(S::splat(row.product), change, S::mul(decay, sums.queries[vector]));
            if let ScanRule::Mamba2 { skip, .. } = &panel.scan.rule {
                y = S::fma(S::splat(skip.values[panel.head]), v, y);
            }
            S::store_some(out, y);
            changes[vector] = change;
        }
        changes
    }
}

/// One pass over a panel: `S = decay S + key change^T` of a row if `UPDATE`, and then if `SUM` the sums with
/// query and key of the next.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn pass<S: Simd, const V: usize, const UPDATE: bool, const SUM: bool, const DELTA: bool>(
    state: &mut [Lanes<V>],
    (decay, key, change): (f32, &[f32], [S::F; V]),
    (next_q, next_k): (&[f32], &[f32]),
) -> Sums<S, V> {
    let (len, at) = (state.len(), state.as_mut_ptr().cast::<f32>());
    assert!(key.len() == len && next_q.len() == len && next_k.len() == len);
    let (key, next_q, next_k) = (key.as_ptr(), next_q.as_ptr(), next_k.as_ptr());
    // SAFETY: the caller's promise; each row of a panel is `V` vectors. (Pointers: of zipped iterators some
    // compilations made calls.)
    unsafe {
        let decay = S::splat(decay);
        let mut sums = Sums { keys: [S::zero(); V], queries: [S::zero(); V] };
        for row in 0..len {
            let (k, q, next) =
                (S::splat(*key.add(row)), S::splat(*next_q.add(row)), S::splat(*next_k.add(row)));
            let at = at.add(row * V * LANES);
            let mut s = load::<S, V>(at);
            if UPDATE {
                for (vector, s) in s.iter_mut().enumerate() {
                    *s = S::fma(k, change[vector], S::mul(decay, *s));
                    S::store(at.add(vector * LANES), *s);
                }
            }
            if SUM {
                add_products::<S, V, DELTA>(&s, q, next, &mut sums);
            }
        }
        sums
    }
}
