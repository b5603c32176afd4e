//! What becomes of the finished sums of a product, while they are in L1: a bias, a sum, an activation, a
//! gate.

use std::ops::Range;

use super::Activation;
use super::disjoint::DisjointSlices;
use super::isa::tiered;
use super::low_rank::RowTerm;
use super::math;
use super::pack::Packed;
use super::simd::{LANES, Simd};

/// What becomes of a column's sum, with its bias.
#[derive(Clone, Copy)]
pub(super) enum Epilogue {
    /// The sum itself.
    Store,
    /// Is added to what is there.
    Add,
    /// Is multiplied by the activation of what is there: the gate.
    Gate(Activation),
    /// Its activation.
    Activate(Activation),
}

/// A matrix, and where its product `[rows, n]` goes.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) w: &'a Packed,
    /// The sums are multiplied by it before anything is added.
    pub(super) scale: f32,
    pub(super) bias: Option<&'a [f32]>,
    /// What adapters add, a place for each row; `None` where no row has an adapter.
    pub(super) terms: Option<&'a [Option<RowTerm<'a>>]>,
    pub(super) epilogue: Epilogue,
    pub(super) out: &'a DisjointSlices<'a, f32>,
}

tiered! {
    /// Asks for the cache lines where the sums of some rows will go.
    pub(super) fn prefetch_output(product: &Product<'_>, rows: Range<usize>, panels: Range<usize>)
        = prefetch_output_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn prefetch_output_body<S: Simd>(product: &Product<'_>, rows: Range<usize>, panels: Range<usize>) {
    let n = product.w.n;
    for row in rows {
        let at = row * n + panels.start * LANES..row * n + n.min(panels.end * LANES);
        let line = product.out.pointer(at.clone());
        for ahead in (0..at.len()).step_by(LANES) {
            // SAFETY: the caller's promise.
            unsafe { S::prefetch_l1(line.wrapping_add(ahead).cast()) };
        }
    }
}

tiered! {
    /// Puts the sums of rows from `row` on for the columns of `panel` where they go.
    ///
    /// # Safety
    /// No other task writes to these columns of these rows.
    pub(super) fn finish(product: &Product<'_>, row: usize, panel: usize, sums: &[[f32; LANES]])
        = [unsafe] finish_body;
}
tiered! {
    /// As [`finish`], of a gate and what it lets through.
    ///
    /// # Safety
    /// As [`finish`].
    pub(super) fn finish_pair(
        products: (&Product<'_>, &Product<'_>),
        row: usize,
        panel: usize,
        sums: (&[[f32; LANES]], &[[f32; LANES]]),
    ) = [unsafe] finish_pair_body;
}
/// # Safety
/// The tier's instructions; no other task writes to these columns.
#[inline(always)]
unsafe fn finish_body<S: Simd>(product: &Product<'_>, row: usize, panel: usize, sums: &[[f32; LANES]]) {
    for (row, sums) in (row..).zip(sums) {
        // SAFETY: the caller's promise.
        unsafe { put::<S>(product, row, panel, sums) };
    }
}

/// # Safety
/// As [`finish_body`].
#[inline(always)]
unsafe fn finish_pair_body<S: Simd>(
    (gate, up): (&Product<'_>, &Product<'_>),
    row: usize,
    panel: usize,
    (first, second): (&[[f32; LANES]], &[[f32; LANES]]),
) {
    let (n, Epilogue::Gate(act)) = (up.w.n, up.epilogue) else { return }; // `is_pair` made sure
    let (from, to) = (panel * LANES, n.min((panel + 1) * LANES));
    for (row, (first, second)) in (row..).zip(first.iter().zip(second)) {
        // SAFETY: the caller's promise.
        unsafe {
            let first = biased::<S>(gate, first, row, from, to);
            let second = biased::<S>(up, second, row, from, to);
            let out = up.out.slice_mut(row * n + from..row * n + to);
            S::store_some(out, math::gated::<S>(act, first, second));
        }
    }
}

/// # Safety
/// As [`finish_body`].
#[inline(always)]
unsafe fn put<S: Simd>(product: &Product<'_>, row: usize, panel: usize, sums: &[f32; LANES]) {
    let n = product.w.n;
    let (from, to) = (panel * LANES, n.min((panel + 1) * LANES));
    // SAFETY: the caller's promise.
    unsafe {
        let out = product.out.slice_mut(row * n + from..row * n + to);
        let sum = biased::<S>(product, sums, row, from, to);
        let value = match product.epilogue {
            Epilogue::Store => sum,
            Epilogue::Add => S::add(S::load_some(out), sum),
            Epilogue::Gate(act) => math::gated::<S>(act, S::load_some(out), sum),
            Epilogue::Activate(act) => math::activate::<S>(act, sum),
        };
        S::store_some(out, value);
    }
}

/// Sums of a row, scaled, with what an adapter makes of them, and the biases of their columns.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn biased<S: Simd>(
    product: &Product<'_>,
    sums: &[f32; LANES],
    row: usize,
    from: usize,
    to: usize,
) -> S::F {
    // SAFETY: the caller has the tier's instructions; sixteen sums are there.
    unsafe {
        // Most have none, and an epilogue is some 8 % of a prompt's products.
        let scaled = |x| if product.scale == 1.0 { x } else { S::mul(x, S::splat(product.scale)) };
        let mut sum = scaled(S::load(sums.as_ptr()));
        let term = product.terms.and_then(|terms| terms[row]);
        if let Some(term) = term {
            sum = S::add(sum, scaled(term.sums::<S>(from / LANES)));
            if let Some(gain) = term.low_rank.gain() {
                sum = S::mul(sum, S::load_some(&gain[from..to]));
            }
        }
        if let Some(bias) = product.bias {
            sum = S::add(sum, S::load_some(&bias[from..to]));
        }
        if let Some(shift) = term.and_then(|term| term.low_rank.shift()) {
            sum = S::add(sum, S::load_some(&shift[from..to]));
        }
        sum
    }
}
