//! Products of matrices of f32 that are no weights: of activations with each other, and with the factors of
//! adapters that are trained.
//!
//! Lanes are columns of the product; each of its numbers is one chain of fused steps along the inner
//! dimension, in order, so that its bits depend neither on the tile nor on how the work was cut.

use super::disjoint::DisjointSlices;
use super::isa::{Isa, tiered};
use super::pool::Pool;
use super::simd::{LANES, Simd};
use crate::error::Result;

/// `c = scale * a b`, or `c += scale * a b`: `[m, k] x [k, n]`.
#[derive(Clone, Copy)]
pub(super) struct Matmul<'a> {
    pub(super) m: usize,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) a: &'a [f32],
    /// From a row of the product to the next, and from a term to the next: a transposed `a` is one whose
    /// steps are exchanged.
    pub(super) a_steps: (usize, usize),
    pub(super) b: &'a [f32],
    /// From a term to the next.
    pub(super) b_step: usize,
    pub(super) scale: f32,
    pub(super) add: bool,
}

/// Where a product goes: its first number, and from a row to the next.
#[derive(Clone, Copy)]
pub(super) struct Target<'a> {
    pub(super) to: &'a DisjointSlices<'a, f32>,
    pub(super) start: usize,
    pub(super) step: usize,
}

/// Multiplications of a task, about.
const TASK: usize = 1 << 18;

impl Matmul<'_> {
    /// Some rows and columns of the product.
    fn part(&self, rows: std::ops::Range<usize>, columns: std::ops::Range<usize>) -> Self {
        let (m, n) = (rows.len(), columns.len());
        Matmul { m, n, a: &self.a[rows.start * self.a_steps.0..], b: &self.b[columns.start..], ..*self }
    }

    fn last(len: usize, step: usize) -> usize {
        len.saturating_sub(1) * step
    }
}

/// The product on all threads, `[m, n]` into rows of `n`.
pub(super) fn parallel(
    pool: &Pool,
    isa: Isa,
    name: &'static str,
    product: Matmul<'_>,
    c: &mut [f32],
) -> Result<()> {
    let Matmul { m, n, k, .. } = product;
    if m == 0 || n == 0 {
        return Ok(());
    }
    let to = DisjointSlices::new(c);
    // Rows are cut first; a few rows of many columns are cut across.
    let rows = (TASK / (n * k).max(1)).max(1).next_multiple_of(12);
    let wide = m <= rows && n > 4 * LANES;
    let columns = match wide {
        true => (TASK / (m * k).max(1)).max(1).next_multiple_of(4 * LANES),
        false => n,
    };
    let across = n.div_ceil(columns);
    pool.run(name, m.div_ceil(rows) * across, &|index| {
        let (i, j) = (index / across * rows, index % across * columns);
        let part = product.part(i..m.min(i + rows), j..n.min(j + columns));
        // SAFETY: tasks have no number of the product in common.
        unsafe { matmul(isa, part, Target { to: &to, start: i * n + j, step: n }) };
    })
}

/// The product, by one thread.
///
/// # Safety
/// Nobody else has these numbers of the target.
pub(super) unsafe fn matmul(isa: Isa, product: Matmul<'_>, c: Target<'_>) {
    let Matmul { m, n, k, a, a_steps, b, b_step, .. } = product;
    if m == 0 || n == 0 {
        return;
    }
    if k > 0 {
        assert!(Matmul::last(m, a_steps.0) + Matmul::last(k, a_steps.1) < a.len());
        assert!(Matmul::last(k, b_step) + n <= b.len());
    }
    let last = c.start + Matmul::last(m, c.step) + n;
    let c = Place { first: c.to.pointer(c.start..last), step: c.step };
    // SAFETY: all that is read was asserted to be there; what is written lies in the range above, and is the
    // caller's.
    unsafe { tiles(isa, product, c) };
}

#[derive(Clone, Copy)]
struct Place {
    first: *mut f32,
    step: usize,
}

tiered! {
    /// # Safety
    /// Both matrices are as large as the product says, and `c` may be written to.
    fn tiles(product: Matmul<'_>, c: Place) = [unsafe] tiles_body;
}

/// # Safety
/// The tier's instructions, and as [`tiles`].
#[inline(always)]
unsafe fn tiles_body<S: Simd>(product: Matmul<'_>, c: Place) {
    // As many sums as there are registers for.
    // SAFETY: the caller's promise.
    unsafe {
        match const { S::TILE.1 > 1 } {
            true => all_tiles::<S, 2>(product, c),
            false => all_tiles::<S, 1>(product, c),
        }
    }
}

/// Numbers of b that lie in the first cache beside some rows of a.
const CACHED: usize = 8192;

/// The product in tiles of `N` vectors.
///
/// # Safety
/// The tier's instructions, and as [`tiles`].
#[inline(always)]
unsafe fn all_tiles<S: Simd, const N: usize>(product: Matmul<'_>, c: Place) {
    let width = N * LANES;
    let full = product.n / width * width;
    // What is small stays in cache while the other passes: all of b, or else a few columns of it.
    let pass = if product.n * product.k <= CACHED { full } else { width };
    for from in (0..full).step_by(pass.max(1)) {
        let mut i = 0;
        while i < product.m {
            let mut rows = 0;
            for j in (from..from + pass).step_by(width) {
                // SAFETY: the caller's promise; the tile lies in the product.
                rows = unsafe { some_rows::<S, N, false>(&product, c, i, j) };
            }
            i += rows;
        }
    }
    for j in (full..product.n).step_by(LANES) {
        let mut i = 0;
        while i < product.m {
            // SAFETY: as above.
            i += unsafe {
                match product.n - j >= LANES {
                    true => some_rows::<S, 1, false>(&product, c, i, j),
                    false => some_rows::<S, 1, true>(&product, c, i, j),
                }
            };
        }
    }
}

/// As many rows as there are registers for, or are left: how many.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn some_rows<S: Simd, const N: usize, const PARTIAL: bool>(
    product: &Matmul<'_>,
    c: Place,
    i: usize,
    j: usize,
) -> usize {
    // SAFETY: the caller's promise.
    unsafe {
        match (N, product.m - i) {
            (2, 8..) => tile::<S, 8, N, PARTIAL>(product, c, i, j),
            (1, 6..) => tile::<S, 6, N, PARTIAL>(product, c, i, j),
            (_, 4..) => tile::<S, 4, N, PARTIAL>(product, c, i, j),
            (_, 2..) => tile::<S, 2, N, PARTIAL>(product, c, i, j),
            _ => tile::<S, 1, N, PARTIAL>(product, c, i, j),
        }
    }
}

/// `M` rows and `N` vectors of columns, of which the last may be `PARTIAL`; returns `M`.
///
/// # Safety
/// The tier's instructions, and as [`tiles`]; the rows are there, and columns of one vector at least.
#[inline(always)]
unsafe fn tile<S: Simd, const M: usize, const N: usize, const PARTIAL: bool>(
    product: &Matmul<'_>,
    c: Place,
    i: usize,
    j: usize,
) -> usize {
    let Matmul { n, k, a, a_steps, b, b_step, scale, add, .. } = *product;
    let some = if PARTIAL { n - j } else { N * LANES };
    // SAFETY: the caller's promise. Pointers are read where the product has numbers alone.
    unsafe {
        // A pointer for each row and one place for all: what else would be computed anew for each term.
        let mut rows = [a.as_ptr(); M];
        for (r, row) in rows.iter_mut().enumerate() {
            *row = row.wrapping_add((i + r) * a_steps.0);
        }
        let (mut at, mut b) = (0, b.as_ptr().wrapping_add(j));
        let mut sums = [[S::zero(); N]; M];
        let mut tail = [0.0; LANES];
        for _ in 0..k {
            let mut vectors = [S::zero(); N];
            if PARTIAL {
                std::ptr::copy_nonoverlapping(b, tail.as_mut_ptr(), some);
                vectors[0] = S::load(tail.as_ptr());
            } else {
                for (v, vector) in vectors.iter_mut().enumerate() {
                    *vector = S::load(b.add(v * LANES));
                }
            }
            for (row, sums) in rows.iter().zip(&mut sums) {
                let factor = S::splat(*row.add(at));
                for (sum, vector) in sums.iter_mut().zip(vectors) {
                    *sum = S::fma(factor, vector, *sum);
                }
            }
            at += a_steps.1;
            b = b.wrapping_add(b_step);
        }
        let factor = S::splat(scale);
        for (r, sums) in sums.iter().enumerate() {
            for (v, sum) in sums.iter().enumerate() {
                let out = c.first.add((i + r) * c.step + j + v * LANES);
                let value = S::mul(*sum, factor);
                if PARTIAL {
                    let out = std::slice::from_raw_parts_mut(out, some);
                    S::store_some(out, if add { S::add(S::load_some(out), value) } else { value });
                } else {
                    S::store(out, if add { S::add(S::load(out), value) } else { value });
                }
            }
        }
    }
    M
}

#[cfg(test)]
mod tests {
    use super::*;

    fn noise(len: usize, seed: usize) -> Vec<f32> {
        let bits =
            |at: usize| ((at + 1) as u64 * (2 * seed as u64 + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
        (0..len).map(|at| bits(at) as f32 / (1 << 23) as f32 - 1.0).collect()
    }

    /// In f64, against every tier, transposed and not, added to and not, on one thread and on three.
    #[test]
    fn products_are_those_of_f64() {
        let sizes = [(1, 1, 1), (3, 5, 7), (8, 16, 4), (13, 33, 20), (50, 48, 9), (8, 300, 40), (100, 8, 30)];
        for isa in Isa::available() {
            for ((m, n, k), transposed) in sizes.into_iter().flat_map(|size| [(size, false), (size, true)]) {
                let (a, b, start) = (noise(m * k, 1), noise(k * n, 2), noise(m * n, 3));
                let a_steps = if transposed { (1, m) } else { (k, 1) };
                for add in [false, true] {
                    let product = Matmul { m, n, k, a: &a, a_steps, b: &b, b_step: n, scale: 0.5, add };
                    let [one, three] = [1, 3].map(|threads| {
                        let mut c = start.clone();
                        parallel(&Pool::new(threads).unwrap(), isa, "test", product, &mut c).unwrap();
                        c
                    });
                    assert!(one == three, "threads change bits");
                    for (i, j) in (0..m).flat_map(|i| (0..n).map(move |j| (i, j))) {
                        let term =
                            |t: usize| f64::from(a[i * a_steps.0 + t * a_steps.1]) * f64::from(b[t * n + j]);
                        let sum: f64 = (0..k).map(term).sum();
                        let wanted = 0.5 * sum + if add { f64::from(start[i * n + j]) } else { 0.0 };
                        let off = (f64::from(one[i * n + j]) - wanted).abs();
                        assert!(
                            off < 1e-6 * (k as f64),
                            "{}: [{m}, {n}, {k}] at {i}, {j}: {off}",
                            isa.name()
                        );
                    }
                }
            }
        }
    }
}
