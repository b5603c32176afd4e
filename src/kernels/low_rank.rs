//! Terms of low rank: what adapters add to a projection, row by row of a step.
//!
//! A row of an adapter has `gain * (W x + B (A x)) + bias + shift` where one without has `W x + bias`. The
//! packed W is never touched, and all rows pass through it together. `A x` is computed from the exact rows,
//! before they become bytes; `B` enters where a column's sum is finished, in registers ([`epilogue`]
//! (super::epilogue)), so that nothing as wide as the output is written for it. A row's sums have one order,
//! whoever else is in the step, and a row without adapter has the same bits as without this module.

use std::borrow::Cow;
use std::ops::Range;

use half::bf16;

use super::isa::{Isa, tiered};
use super::misuse;
use super::simd::{LANES, Simd};
use crate::error::Result;

/// Factors in memory. A decoded token reads all of them, beside all weights: in 32 bits those of rank 8 are a
/// tenth of what SmolLM2 reads in 4 bits.
#[derive(Debug)]
enum Numbers {
    F32(Box<[f32]>),
    /// Little-endian.
    BF16(Box<[u8]>),
}

impl Numbers {
    fn new(values: Vec<f32>, exact: bool) -> Numbers {
        match exact {
            true => Numbers::F32(values.into()),
            false => {
                Numbers::BF16(values.iter().flat_map(|value| bf16::from_f32(*value).to_le_bytes()).collect())
            }
        }
    }

    fn bytes(&self) -> usize {
        match self {
            Numbers::F32(values) => size_of_val(&**values),
            Numbers::BF16(bytes) => bytes.len(),
        }
    }

    fn to_f32(&self) -> Cow<'_, [f32]> {
        match self {
            Numbers::F32(values) => Cow::Borrowed(values),
            Numbers::BF16(bytes) => {
                bytes.as_chunks::<2>().0.iter().map(|pair| bf16::from_le_bytes(*pair).to_f32()).collect()
            }
        }
    }
}

/// A type of factors.
trait Factor: Copy {
    /// # Safety
    /// The tier's instructions, and sixteen numbers from `from` on.
    unsafe fn load<S: Simd>(from: *const Self) -> S::F;
    /// Fewer than sixteen, the rest zero.
    ///
    /// # Safety
    /// The tier's instructions.
    unsafe fn load_some<S: Simd>(from: &[Self]) -> S::F;
}

impl Factor for f32 {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::load(from) }
    }

    #[inline(always)]
    unsafe fn load_some<S: Simd>(from: &[f32]) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::load_some(from) }
    }
}

/// The bytes of a little-endian bfloat16.
type Half = [u8; 2];

impl Factor for Half {
    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const Half) -> S::F {
        // SAFETY: the caller's promise.
        unsafe { S::load_bf16(from.cast()) }
    }

    #[inline(always)]
    unsafe fn load_some<S: Simd>(from: &[Half]) -> S::F {
        let mut all = [[0; 2]; LANES];
        all[..from.len()].copy_from_slice(from);
        // SAFETY: the caller's promise; sixteen numbers.
        unsafe { S::load_bf16(all.as_ptr().cast()) }
    }
}

/// What an adapter does to one projection.
#[derive(Debug)]
pub struct LowRank {
    rank: usize,
    n: usize,
    k: usize,
    /// `[rank, k]`
    a: Numbers,
    /// Panels of sixteen outputs, each `[rank, 16]`; zeros beyond `n`.
    b: Numbers,
    gain: Option<Box<[f32]>>,
    shift: Option<Box<[f32]>>,
}

impl LowRank {
    /// `a` `[rank, k]` and `b` `[n, rank]`, which the scale is part of; `gain` and `shift` are `[n]`. A rank
    /// of 0 leaves those two. Factors are kept in f32 if `exact`, else in bfloat16.
    ///
    /// # Errors
    /// `Internal` where the numbers are not as many as the sizes say.
    pub fn new(
        [n, k]: [usize; 2],
        a: Vec<f32>,
        b: &[f32],
        gain: Option<Vec<f32>>,
        shift: Option<Vec<f32>>,
        exact: bool,
    ) -> Result<LowRank> {
        let rank = a.len().checked_div(k).unwrap_or(0);
        let fits = |vector: &Option<Vec<f32>>| vector.as_ref().is_none_or(|vector| vector.len() == n);
        if a.len() != rank * k || b.len() != n * rank || !fits(&gain) || !fits(&shift) {
            return Err(misuse(format!(
                "a term of low rank [{n}, {k}] of {} and {} numbers",
                a.len(),
                b.len()
            )));
        }
        let mut panels = vec![0.0; n.div_ceil(LANES) * LANES * rank];
        for (row, weights) in b.chunks_exact(rank.max(1)).enumerate() {
            let panel = &mut panels[row / LANES * LANES * rank..];
            for (at, weight) in weights.iter().enumerate() {
                panel[at * LANES + row % LANES] = *weight;
            }
        }
        let boxed = |vector: Option<Vec<f32>>| vector.map(Vec::into_boxed_slice);
        let (a, b) = (Numbers::new(a, exact), Numbers::new(panels, exact));
        Ok(LowRank { rank, n, k, a, b, gain: boxed(gain), shift: boxed(shift) })
    }

    /// Outputs and inputs of the projection.
    pub fn dims(&self) -> (usize, usize) {
        (self.n, self.k)
    }

    pub fn rank(&self) -> usize {
        self.rank
    }

    /// Bytes of memory.
    pub fn bytes(&self) -> usize {
        let vectors = [&self.gain, &self.shift].map(|vector| vector.as_ref().map_or(0, |v| v.len()));
        self.a.bytes() + self.b.bytes() + vectors.iter().sum::<usize>() * size_of::<f32>()
    }

    /// A, `[rank, k]`.
    pub(crate) fn a(&self) -> Cow<'_, [f32]> {
        self.a.to_f32()
    }

    /// B, `[n, rank]`.
    pub(crate) fn b(&self) -> Vec<f32> {
        let b = self.b.to_f32();
        let of_row = |row: usize| {
            let panel = &b[row / LANES * LANES * self.rank..];
            (0..self.rank).map(|at| panel[at * LANES + row % LANES]).collect::<Vec<_>>()
        };
        (0..self.n).flat_map(of_row).collect()
    }

    pub(crate) fn gain(&self) -> Option<&[f32]> {
        self.gain.as_deref()
    }

    pub(crate) fn shift(&self) -> Option<&[f32]> {
        self.shift.as_deref()
    }
}

/// Some neighbouring rows of those that a projection is given, and what is added to them.
#[derive(Clone, Debug)]
pub struct Term<'a> {
    pub rows: Range<usize>,
    pub low_rank: &'a LowRank,
}

/// The term of one row in a product: `z` is `A x`.
#[derive(Clone, Copy)]
pub(super) struct RowTerm<'a> {
    pub(super) low_rank: &'a LowRank,
    pub(super) z: &'a [f32],
}

impl RowTerm<'_> {
    /// `B z` of the sixteen outputs of a panel.
    ///
    /// # Safety
    /// The tier's instructions.
    #[inline(always)]
    pub(super) unsafe fn sums<S: Simd>(&self, panel: usize) -> S::F {
        let LowRank { rank, b, .. } = self.low_rank;
        let (part, z) = (panel * rank * LANES..(panel + 1) * rank * LANES, &self.z[..*rank]);
        // SAFETY: the caller's promise.
        unsafe {
            match b {
                Numbers::F32(b) => sums_of::<S, f32>(&b[part], z),
                Numbers::BF16(b) => sums_of::<S, Half>(&b.as_chunks::<2>().0[part], z),
            }
        }
    }
}

/// `b` `[rank, 16]` times `z`: the even ranks and the odd ones apart, added at the end.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn sums_of<S: Simd, F: Factor>(b: &[F], z: &[f32]) -> S::F {
    assert!(b.len() == z.len() * LANES);
    // SAFETY: the caller has the tier's instructions; sixteen numbers of B lie there for each of z.
    unsafe {
        let (mut even, mut odd) = (S::zero(), S::zero());
        let mut at = 0;
        while at + 2 <= z.len() {
            even = S::fma(F::load::<S>(b.as_ptr().add(at * LANES)), S::splat(z[at]), even);
            odd = S::fma(F::load::<S>(b.as_ptr().add((at + 1) * LANES)), S::splat(z[at + 1]), odd);
            at += 2;
        }
        if at < z.len() {
            even = S::fma(F::load::<S>(b.as_ptr().add(at * LANES)), S::splat(z[at]), even);
        }
        S::add(even, odd)
    }
}

tiered! {
    /// `z = x A^T`: rows `x` `[rows, k]` and `a` `[rank, k]` make `[rows, rank]`.
    fn dots<F: Factor>(a: &[F], x: &[f32], k: usize, z: &mut [f32]) = dots_body;
}

/// Rows of A and of x whose sums are in registers together.
const TILE: (usize, usize) = (4, 2);

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn dots_body<S: Simd, F: Factor>(a: &[F], x: &[f32], k: usize, z: &mut [f32]) {
    if k == 0 {
        return z.fill(0.0);
    }
    let (rank, rows) = (a.len() / k, x.len() / k);
    assert!(z.len() == rank * rows);
    let mut row = 0;
    while row < rows {
        let many = rows - row >= TILE.1;
        let mut at = 0;
        while at < rank {
            let (a, x, z) = (&a[at * k..], &x[row * k..], &mut z[row * rank + at..]);
            // SAFETY: the caller's promise.
            unsafe {
                at += match (rank - at >= TILE.0, many) {
                    (true, true) => dots_of::<S, F, { TILE.0 }, { TILE.1 }>(a, x, k, rank, z),
                    (true, false) => dots_of::<S, F, { TILE.0 }, 1>(a, x, k, rank, z),
                    (false, true) => dots_of::<S, F, 1, { TILE.1 }>(a, x, k, rank, z),
                    (false, false) => dots_of::<S, F, 1, 1>(a, x, k, rank, z),
                };
            }
        }
        row += if many { TILE.1 } else { 1 };
    }
}

/// The dots of `R` rows of A with `M` rows of x; returns `R`. The lanes of a dot are folded at its end, so
/// that the order of its sums does not depend on `R` and `M`.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn dots_of<S: Simd, F: Factor, const R: usize, const M: usize>(
    a: &[F],
    x: &[f32],
    k: usize,
    rank: usize,
    z: &mut [f32],
) -> usize {
    let (a, x) = (&a[..R * k], &x[..M * k]);
    // SAFETY: the caller has the tier's instructions; rows of `k` are there, and whole vectors of them.
    unsafe {
        let mut sums = [[S::zero(); M]; R];
        let whole = k / LANES * LANES;
        for at in (0..whole).step_by(LANES) {
            let mut xs = [S::zero(); M];
            for (m, x_m) in xs.iter_mut().enumerate() {
                *x_m = S::load(x.as_ptr().add(m * k + at));
            }
            for (r, sums) in sums.iter_mut().enumerate() {
                let a_r = F::load::<S>(a.as_ptr().add(r * k + at));
                for (m, sum) in sums.iter_mut().enumerate() {
                    *sum = S::fma(a_r, xs[m], *sum);
                }
            }
        }
        for (r, sums) in sums.iter_mut().enumerate() {
            for (m, sum) in sums.iter_mut().enumerate() {
                if whole < k {
                    let (a, x) = (&a[r * k + whole..(r + 1) * k], &x[m * k + whole..(m + 1) * k]);
                    *sum = S::fma(F::load_some::<S>(a), S::load_some(x), *sum);
                }
                z[m * rank + r] = S::reduce_sum(*sum);
            }
        }
    }
    R
}

/// One job of [`dots`]: some rows of x, and where their z goes.
pub(super) struct Dots<'a> {
    pub(super) low_rank: &'a LowRank,
    pub(super) rows: Range<usize>,
    pub(super) z: Range<usize>,
}

impl Dots<'_> {
    pub(super) fn run(&self, isa: Isa, x: &[f32], z: &mut [f32]) {
        let k = self.low_rank.k;
        let x = &x[self.rows.start * k..self.rows.end * k];
        match &self.low_rank.a {
            Numbers::F32(a) => dots::<f32>(isa, a, x, k, z),
            Numbers::BF16(a) => dots::<Half>(isa, a.as_chunks::<2>().0, x, k, z),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn numbers(count: usize, seed: usize) -> Vec<f32> {
        let number = |at: usize| ((at * 37 + seed * 101) % 211) as f32 / 100.0 - 1.0;
        (0..count).map(number).collect()
    }

    #[test]
    fn a_row_has_the_same_dots_alone_and_among_others_on_every_tier() {
        for (rank, k, rows) in [(8, 576, 7), (3, 21, 4), (1, 16, 1), (5, 7, 3), (16, 100, 2)] {
            let (a, x) = (numbers(rank * k, 1), numbers(rows * k, 2));
            let mut oracle = vec![0.0; rank * rows];
            dots(Isa::named("scalar").unwrap(), &a, &x, k, &mut oracle);
            for (at, got) in oracle.iter().enumerate() {
                let (row, r) = (at / rank, at % rank);
                let exact: f64 = (0..k).map(|i| f64::from(a[r * k + i]) * f64::from(x[row * k + i])).sum();
                assert!((f64::from(*got) - exact).abs() < 1e-4, "{got} instead of {exact}");
            }
            for isa in Isa::available() {
                let mut all = vec![0.0; rank * rows];
                dots(isa, &a, &x, k, &mut all);
                assert_eq!(all, oracle, "{} of {k}", isa.name());
                for (x, z) in x.chunks_exact(k).zip(oracle.chunks_exact(rank)) {
                    let mut alone = vec![0.0; rank];
                    dots(isa, &a, x, k, &mut alone);
                    assert_eq!(alone, z);
                }
            }
        }
    }

    #[test]
    fn factors_in_bfloat16_are_those_numbers_on_every_tier() {
        let (rank, k, rows) = (5, 37, 3);
        let rounded = |values: Vec<f32>| -> Vec<f32> {
            values.into_iter().map(|value| bf16::from_f32(value).to_f32()).collect()
        };
        let (a, x) = (rounded(numbers(rank * k, 1)), numbers(rows * k, 2));
        let halves: Vec<Half> = a.iter().map(|value| bf16::from_f32(*value).to_le_bytes()).collect();
        for isa in Isa::available() {
            let (mut exact, mut half) = (vec![0.0; rank * rows], vec![0.0; rank * rows]);
            dots::<f32>(isa, &a, &x, k, &mut exact);
            dots::<Half>(isa, &halves, &x, k, &mut half);
            assert_eq!(exact, half, "{}", isa.name());
        }
        let b = rounded(numbers(20 * rank, 3));
        let low_rank = LowRank::new([20, k], a.clone(), &b, None, None, false).unwrap();
        assert_eq!((&*low_rank.a(), low_rank.b()), (&*a, b));
    }

    #[test]
    fn b_comes_back_from_its_panels() {
        for (n, rank) in [(16, 1), (5, 3), (40, 8), (33, 2)] {
            let (a, b) = (numbers(rank * 4, 1), numbers(n * rank, 2));
            let low_rank = LowRank::new([n, 4], a, &b, None, None, true).unwrap();
            assert_eq!(low_rank.b(), b);
        }
        assert!(LowRank::new([3, 4], vec![0.0; 5], &[0.0; 3], None, None, true).is_err());
        assert!(LowRank::new([3, 4], vec![0.0; 4], &[0.0; 3], Some(vec![1.0; 2]), None, true).is_err());
    }
}
