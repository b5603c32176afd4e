//! Activations as bytes: blocks of 32 with a scale each, and the sums that offsets of weights are multiplied
//! by.
//!
//! `x ≈ scale * q`, where `scale` is a 127th of the block's largest magnitude (its amax). The rounding error
//! is in proportion to the amax, and a few numbers cause most of it: a channel that is always large, a neuron
//! that fired. A number above some multiple of its row's root mean square is an [`Outlier`]: it is a zero
//! among the bytes, and is multiplied as a float. Whether it is one depends on the row alone, so that a row's
//! bits are the same in any batch.
//!
//! Where that is not exact enough there are no outliers, but a second plane of bytes: `x ≈ scale * (q + rest
//! / 256)`. It looks like the first one, with other scales, and products add both.
//!
//! A block that holds infinity or NaN gets a NaN for a scale, so that it stays visible in all that is
//! computed from it.

use std::ops::{Deref, DerefMut, Range};

use super::disjoint::DisjointSlices;
use super::isa::{Isa, tiered};
use super::layouts::SUB;
use super::simd::{LANES, Simd};

/// Numbers kept for a block: its scale, and `scale * sum(q)` of all, the first and the last sixteen.
pub(super) const META: usize = 4;
/// Whole numbers kept for a block: `-sum(q)` of the same, and nothing.
pub(super) const SUMS: usize = 4;

/// Blocks of smaller numbers are zeros: a 127th of them has no inverse in f32.
const MIN_AMAX: f32 = 1e-36;

/// Rows behind the last one that may be read, and hold anything: tiles of products take them along.
pub(super) const SPARE_ROWS: usize = 3;

/// Bytes of a line of the cache.
const LINE: usize = 64;

/// How exactly activations are taken.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Precision {
    /// A byte each, but numbers above so many root mean squares of their row are outliers.
    Above(f32),
    /// Two bytes.
    Double,
}

/// Outliers that a row of `k` may have: no more than k / 16 numbers can be above four root mean squares.
fn max_outliers(k: usize) -> usize {
    k / 16
}

/// A number that is multiplied as a float.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Outlier {
    /// Its place in the row.
    pub(super) at: u32,
    pub(super) value: f32,
}

/// Bytes of which the first is the first of a cache line: 32 of them never lie on two. (AMX loads 32
/// from each of sixteen rows at once, and took 29 ns a dot instead of 25 where half of them did.)
#[derive(Debug, Default)]
struct Lines {
    store: Vec<i8>,
    /// What is before them, and how many they are.
    skip: usize,
    len: usize,
}

impl PartialEq for Lines {
    fn eq(&self, other: &Lines) -> bool {
        self[..] == other[..]
    }
}

impl Lines {
    /// Makes room for `len` bytes; what is in them is not defined.
    fn at_least(&mut self, len: usize) {
        if self.len < len {
            self.store = vec![0; len + LINE];
            self.skip = self.store.as_ptr().align_offset(LINE).min(LINE);
            self.len = len;
        }
    }
}

impl Deref for Lines {
    type Target = [i8];
    fn deref(&self) -> &[i8] {
        &self.store[self.skip..self.skip + self.len]
    }
}

impl DerefMut for Lines {
    fn deref_mut(&mut self) -> &mut [i8] {
        &mut self.store[self.skip..self.skip + self.len]
    }
}

/// A byte for each number.
#[derive(Default)]
struct Plane {
    /// `[rows, k]`
    q: Lines,
    /// `[rows, k / 32, META]`
    meta: Vec<f32>,
    /// `[rows, k / 32, SUMS]`
    sums: Vec<i32>,
}

/// Rows of activations in bytes; `k` is a multiple of 32.
#[derive(Default)]
pub(super) struct Quantized {
    pub(super) rows: usize,
    pub(super) k: usize,
    /// One or two that are in use.
    planes: Vec<Plane>,
    used: usize,
    /// The first few of each row, in order: `[rows, max_outliers]`.
    outliers: Vec<Outlier>,
    /// How many a row has.
    counts: Vec<u32>,
}

/// Where a plane of a row and those after it begins, from a block on.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) q: *const i8,
    pub(super) meta: *const f32,
    pub(super) sums: *const i32,
    /// From a row to the next, in bytes and blocks.
    pub(super) k: usize,
    pub(super) blocks: usize,
}

impl At {
    /// The same, some blocks on.
    #[inline(always)]
    pub(super) fn skip(self, blocks: usize) -> At {
        At {
            q: self.q.wrapping_add(blocks * SUB),
            meta: self.meta.wrapping_add(blocks * META),
            sums: self.sums.wrapping_add(blocks * SUMS),
            ..self
        }
    }
}

impl Quantized {
    /// Makes max_outliers for `rows` rows of `k`; what is in it is not defined. (It only grows: what grows
    /// again is filled with zeros, by one thread.)
    pub(super) fn resize(&mut self, rows: usize, k: usize, precision: Precision) {
        self.make_room(rows, k, if precision == Precision::Double { 2 } else { 1 });
    }

    fn make_room(&mut self, rows: usize, k: usize, planes: usize) {
        fn at_least<T: Clone + Default>(items: &mut Vec<T>, len: usize) {
            if items.len() < len {
                *items = vec![T::default(); len];
            }
        }
        (self.rows, self.k) = (rows, k);
        let rows = rows + SPARE_ROWS;
        let blocks = rows * (k / SUB);
        self.used = planes;
        self.planes.resize_with(self.used.max(self.planes.len()), Plane::default);
        for plane in &mut self.planes[..self.used] {
            plane.q.at_least(rows * k);
            at_least(&mut plane.meta, blocks * META);
            at_least(&mut plane.sums, blocks * SUMS);
        }
        at_least(&mut self.outliers, rows * max_outliers(k));
        at_least(&mut self.counts, rows);
    }

    /// Becomes rows `rows` of `from`, in this order.
    pub(super) fn gather(&mut self, from: &Quantized, rows: &[u32]) {
        fn copy<T: Copy>(from: &[T], to: &mut [T], rows: &[u32], len: usize) {
            for (at, &row) in rows.iter().enumerate() {
                to[at * len..][..len].copy_from_slice(&from[row as usize * len..][..len]);
            }
        }
        let k = from.k;
        let blocks = k / SUB;
        self.make_room(rows.len(), k, from.used);
        for (to, from) in self.planes.iter_mut().zip(&from.planes[..from.used]) {
            copy(&from.q, &mut to.q, rows, k);
            copy(&from.meta, &mut to.meta, rows, blocks * META);
            copy(&from.sums, &mut to.sums, rows, blocks * SUMS);
        }
        copy(&from.outliers, &mut self.outliers, rows, max_outliers(k));
        copy(&from.counts, &mut self.counts, rows, 1);
    }

    /// For several threads to write to.
    pub(super) fn slices<'a>(&'a mut self) -> Parts<'a> {
        let plane = |Plane { q, meta, sums }: &'a mut Plane| {
            (
                DisjointSlices::new(q),
                DisjointSlices::new(meta.as_mut_slice()),
                DisjointSlices::new(sums.as_mut_slice()),
            )
        };
        Parts {
            k: self.k,
            planes: self.planes[..self.used].iter_mut().map(plane).collect(),
            outliers: DisjointSlices::new(&mut self.outliers),
            counts: DisjointSlices::new(&mut self.counts),
        }
    }

    /// Bytes that a number has.
    pub(super) fn planes(&self) -> usize {
        self.used
    }

    /// Row `row` of a plane from block `block` on.
    pub(super) fn at(&self, plane: usize, row: usize, block: usize) -> At {
        let (k, blocks) = (self.k, self.k / SUB);
        let (from, block) = (row * k + block * SUB, row * blocks + block);
        let Plane { q, meta, sums } = &self.planes[plane];
        let (q, meta, sums) =
            (q[from..].as_ptr(), meta[block * META..].as_ptr(), sums[block * SUMS..].as_ptr());
        At { q, meta, sums, k, blocks }
    }

    /// The outliers of a row in a K-block, in order of their places.
    #[inline(always)]
    pub(super) fn outliers(&self, row: usize, k_block: Range<usize>) -> &[Outlier] {
        let all = &self.outliers[row * max_outliers(self.k)..][..self.counts[row] as usize];
        if k_block.len() == self.k {
            return all;
        }
        let before = |end: usize| all.iter().take_while(|outlier| (outlier.at as usize) < end).count();
        &all[before(k_block.start)..before(k_block.end)]
    }
}

/// All arrays, for several threads to write to.
pub(super) struct Parts<'a> {
    k: usize,
    planes: Vec<(DisjointSlices<'a, i8>, DisjointSlices<'a, f32>, DisjointSlices<'a, i32>)>,
    outliers: DisjointSlices<'a, Outlier>,
    counts: DisjointSlices<'a, u32>,
}

/// The arrays of one row, to be written.
struct Row<'a> {
    q: &'a mut [i8],
    meta: &'a mut [f32],
    sums: &'a mut [i32],
}

impl Parts<'_> {
    /// # Safety
    /// Nobody else has this row.
    unsafe fn row(&self, plane: usize, row: usize) -> Row<'_> {
        let (q, meta, sums) = &self.planes[plane];
        let range = |size: usize| row * size..(row + 1) * size;
        let blocks = self.k / SUB;
        // SAFETY: the caller's promise.
        unsafe {
            Row {
                q: q.slice_mut(range(self.k)),
                meta: meta.slice_mut(range(blocks * META)),
                sums: sums.slice_mut(range(blocks * SUMS)),
            }
        }
    }
}

/// Rows of floats that become rows `first` and following of `to`.
#[derive(Clone, Copy)]
pub(super) struct Job<'a> {
    pub(super) x: &'a [f32],
    pub(super) first: usize,
    pub(super) to: &'a Parts<'a>,
    pub(super) precision: Precision,
}

tiered! {
    /// Makes bytes, and outliers, of the rows.
    ///
    /// # Safety
    /// Nobody else writes to the job's rows of `to`.
    pub(super) fn quantize(job: Job<'_>) = [unsafe] quantize_body;
}

/// Rows `x` of `k` numbers as bytes, on this thread.
pub(super) fn quantized(isa: Isa, x: &[f32], k: usize, precision: Precision) -> Quantized {
    let mut made = Quantized::default();
    made.resize(x.len() / k, k, precision);
    // SAFETY: nobody else writes to these rows.
    unsafe { quantize(isa, Job { x, first: 0, to: &made.slices(), precision }) };
    made
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn quantize_body<S: Simd>(job: Job<'_>) {
    let Job { x, first, to, precision } = job;
    for (row, x) in (first..).zip(x.chunks_exact(to.k)) {
        // SAFETY: the caller's promise; the row is this job's own.
        unsafe {
            let bytes = to.row(0, row);
            let count = &mut to.counts.slice_mut(row..row + 1)[0];
            *count = 0;
            match precision {
                Precision::Above(above) => {
                    let limit = above * root_mean_square::<S>(x);
                    let outliers =
                        to.outliers.slice_mut(row * max_outliers(to.k)..(row + 1) * max_outliers(to.k));
                    for (block, x) in x.as_chunks::<SUB>().0.iter().enumerate() {
                        let amax = amax::<S>(x);
                        if amax > limit && amax >= MIN_AMAX {
                            let (rest, amax) = extract_outliers::<S>(x, limit, block * SUB, outliers, count);
                            bytes_of_block::<S>(&rest, amax, block, bytes.q, bytes.meta);
                        } else {
                            bytes_of_block::<S>(x, amax, block, bytes.q, bytes.meta);
                        }
                    }
                }
                Precision::Double => {
                    let rest = to.row(1, row);
                    for (block, x) in x.as_chunks::<SUB>().0.iter().enumerate() {
                        let amax = amax::<S>(x);
                        bytes_of_block::<S>(x, amax, block, bytes.q, bytes.meta);
                        second_bytes_of_block::<S>(x, amax, block, rest.q);
                        rest.meta[block * META] = bytes.meta[block * META] / 256.0;
                    }
                    sums::<S>(rest);
                }
            }
            sums::<S>(bytes);
        }
    }
}

/// Moves numbers above `limit` to the outliers, as long as there is max_outliers; what is left, and its amax.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn extract_outliers<S: Simd>(
    x: &[f32; SUB],
    limit: f32,
    start: usize,
    outliers: &mut [Outlier],
    count: &mut u32,
) -> ([f32; SUB], f32) {
    let mut rest = *x;
    // SAFETY: the caller has the tier's instructions; a block is two vectors.
    unsafe {
        let (limit, low, high) = (S::splat(limit), S::load(x.as_ptr()), S::load(x.as_ptr().add(LANES)));
        let mut above =
            u32::from(S::lt_mask(limit, S::abs(high))) << LANES | u32::from(S::lt_mask(limit, S::abs(low)));
        while above != 0 && (*count as usize) < outliers.len() {
            let at = above.trailing_zeros() as usize;
            above &= above - 1;
            outliers[*count as usize] = Outlier { at: (start + at) as u32, value: x[at] };
            *count += 1;
            rest[at] = 0.0;
        }
        (rest, amax::<S>(&rest))
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn root_mean_square<S: Simd>(x: &[f32]) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let mut factor = 1.0;
        let mut sum = squares::<S, false>(x, factor);
        if !(1e-25..1e35).contains(&sum) {
            // Squares may be more or less than f32 has.
            factor = if sum < 1.0 { EXTREME } else { 1.0 / EXTREME };
            sum = squares::<S, true>(x, factor);
        }
        (sum / x.len() as f32).sqrt() / factor
    }
}

/// A power of two between the extremes and 1.
const EXTREME: f32 = (1u128 << 80) as f32;

/// The sum of the squares, of `x * factor` if `SCALED`.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn squares<S: Simd, const SCALED: bool>(x: &[f32], factor: f32) -> f32 {
    // SAFETY: the caller has the tier's instructions; chunks are four vectors, and what is left of whole
    // blocks is two.
    unsafe {
        macro_rules! add {
            ($sum:ident, $x:ident, $at:expr) => {
                let x = S::load($x.as_ptr().add($at * LANES));
                let x = if SCALED { S::mul(x, S::splat(factor)) } else { x };
                $sum = S::fma(x, x, $sum);
            };
        }
        // Four sums: each would wait for the one before it.
        let (mut a, mut b, mut c, mut d) = (S::zero(), S::zero(), S::zero(), S::zero());
        let (pairs, last) = x.as_chunks::<{ 2 * SUB }>();
        for x in pairs {
            add!(a, x, 0);
            add!(b, x, 1);
            add!(c, x, 2);
            add!(d, x, 3);
        }
        if !last.is_empty() {
            add!(a, last, 0);
            add!(b, last, 1);
        }
        S::reduce_sum(S::add(S::add(a, b), S::add(c, d)))
    }
}

/// What the numbers of a block are multiplied by, so that the amax is 127.
fn inverse(amax: f32) -> f32 {
    if amax >= MIN_AMAX { 127.0 / amax } else { 0.0 }
}

/// A block's bytes, and its scale.
///
/// # Safety
/// The tier's instructions; the row has such a block.
#[inline(always)]
unsafe fn bytes_of_block<S: Simd>(x: &[f32; SUB], amax: f32, block: usize, q: &mut [i8], meta: &mut [f32]) {
    // SAFETY: the caller has the tier's instructions, and the row has 32 bytes for this block.
    unsafe {
        let inverse = S::splat(inverse(amax));
        let (a, b) = (S::load(x.as_ptr()), S::load(x.as_ptr().add(LANES)));
        let q = q.as_mut_ptr().add(block * SUB);
        S::store_i8_pair(q, S::round(S::mul(a, inverse)), S::round(S::mul(b, inverse)));
    }
    meta[block * META] = match amax {
        ..MIN_AMAX => 0.0,
        ..f32::INFINITY => amax / 127.0,
        _ => f32::NAN,
    };
}

/// What rounding to bytes left of a block, in 256ths; half a step is 127 of them.
///
/// # Safety
/// As [`bytes_of_block`].
#[inline(always)]
unsafe fn second_bytes_of_block<S: Simd>(x: &[f32; SUB], amax: f32, block: usize, q: &mut [i8]) {
    // SAFETY: as in `bytes_of_block`.
    unsafe {
        let inverse = S::splat(inverse(amax));
        for at in [0, LANES] {
            let x = S::mul(S::load(x.as_ptr().add(at)), inverse);
            let rest = S::mul(S::sub(x, S::to_f(S::round(x))), S::splat(256.0));
            let rest = S::round(S::min(S::splat(127.0), S::max(S::splat(-127.0), rest)));
            S::store_i8(q.as_mut_ptr().add(block * SUB + at), rest);
        }
    }
}

/// The largest magnitude; NaN counts as larger than infinity, as their bits are.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn amax<S: Simd>(x: &[f32; SUB]) -> f32 {
    // SAFETY: the caller has the tier's instructions; a block is two vectors.
    unsafe {
        let (a, b) = (S::load(x.as_ptr()), S::load(x.as_ptr().add(LANES)));
        f32::from_bits(S::reduce_max_i(S::max_i(S::bits(S::abs(a)), S::bits(S::abs(b)))) as u32)
    }
}

/// Puts the sums of blocks beside their scales.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn sums<S: Simd>(row: Row<'_>) {
    const { assert!(size_of::<S::I>() == 2 * SUB) };
    let Row { q, meta, sums } = row;
    let mut last = [0; 2 * SUB];
    for ((q, meta), sums) in q.chunks(2 * SUB).zip(meta.chunks_mut(2 * META)).zip(sums.chunks_mut(2 * SUMS)) {
        let q = match q.len() < last.len() {
            true => {
                last[..SUB].copy_from_slice(q);
                &last
            }
            false => q,
        };
        // SAFETY: the caller's promise; 64 bytes are there.
        let halves = unsafe {
            S::quad_sums(S::dot(S::zero_i(), S::splat_i(0x0101_0101), S::load_i(q.as_ptr().cast())))
        };
        let blocks = meta.chunks_exact_mut(META).zip(sums.chunks_exact_mut(SUMS));
        for ((meta, sums), half) in blocks.zip(halves.chunks_exact(2)) {
            let (scale, all) = (meta[0], half[0] + half[1]);
            meta[1..].copy_from_slice(&[scale * all as f32, scale * half[0] as f32, scale * half[1] as f32]);
            sums.copy_from_slice(&[-all, -half[0], -half[1], 0]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::Isa;

    /// A row without outliers: its bytes, scales, and the sums that are kept.
    fn run(isa: Isa, x: &[f32]) -> Plane {
        let mut out = quantized(isa, x, x.len(), Precision::Above(f32::INFINITY));
        assert!(out.outliers(0, 0..x.len()).is_empty() && out.planes() == 1);
        let mut plane = out.planes.remove(0);
        // Without the spare rows.
        plane.meta.truncate(x.len() / SUB * META);
        plane.sums.truncate(x.len() / SUB * SUMS);
        plane.q.len = x.len();
        plane
    }

    /// Numbers without a pattern, between -size and size.
    fn floats(count: usize, size: f32) -> Vec<f32> {
        let number = |at: usize| ((at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as f32;
        (0..count).map(|at| (number(at) / (1u64 << 23) as f32 - 1.0) * size).collect()
    }

    #[test]
    fn numbers_are_within_half_a_step_and_sums_are_theirs() {
        for (isa, size) in Isa::available()
            .into_iter()
            .flat_map(|isa| [2.0 * MIN_AMAX, 1e-30, 1e-3, 1.0, 700.0, 3e38].map(|size| (isa, size)))
        {
            let x = floats(40 * SUB, size);
            let Plane { q, meta, sums } = run(isa, &x);
            for (block, x) in x.chunks_exact(SUB).enumerate() {
                let (q, meta) = (&q[block * SUB..][..SUB], &meta[block * META..][..META]);
                let amax = x.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                assert_eq!(meta[0], amax / 127.0);
                assert_eq!(q.iter().map(|q| q.unsigned_abs()).max(), Some(127), "the amax is 127");
                let step = f64::from(meta[0]);
                for (&x, &q) in x.iter().zip(q) {
                    let off = (f64::from(x) - step * f64::from(q)).abs();
                    assert!(off <= step * 0.50001, "{} at {size:e}: {x} became {q}", isa.name());
                }
                let sum = |q: &[i8]| q.iter().map(|&q| i32::from(q)).sum::<i32>();
                let (low, high) = (sum(&q[..16]), sum(&q[16..]));
                assert_eq!(sums[block * SUMS..][..SUMS], [low + high, low, high, 0].map(|sum| -sum));
                assert_eq!(meta[1..], [low + high, low, high].map(|sum| meta[0] * sum as f32));
            }
        }
    }

    /// Two rows; channel `9 b` of the first is of size `b`.
    #[test]
    fn great_numbers_are_taken_out_and_the_others_are_as_without_them() {
        let (k, above) = (20 * SUB, 4.0);
        let mut x = floats(2 * k, 0.5);
        (0..70).for_each(|at| x[at * 9] = at as f32 / 10.0);
        for isa in Isa::available() {
            let found = quantized(isa, &x, k, Precision::Above(above));
            let mut kept = x.clone();
            for (row, x) in x.chunks_exact(k).enumerate() {
                let limit = above * (x.iter().map(|x| x * x).sum::<f32>() / k as f32).sqrt();
                let great: Vec<_> = (0..k).filter(|&at| x[at].abs() > limit).collect();
                assert_eq!(great.len(), [15, 0][row], "of {limit}");
                let wanted: Vec<_> =
                    great.iter().map(|&at| Outlier { at: at as u32, value: x[at] }).collect();
                assert_eq!(found.outliers(row, 0..k), wanted);
                for (from, to) in [(0, 32), (great.first().map_or(0, |at| at + 1), k), (k - 64, k - 32)] {
                    let some: Vec<_> =
                        wanted.iter().copied().filter(|o| (from..to).contains(&(o.at as usize))).collect();
                    assert_eq!(found.outliers(row, from..to), some, "{from}..{to}");
                }
                great.iter().for_each(|at| kept[row * k + at] = 0.0);
            }
            let plain = quantized(isa, &kept, k, Precision::Above(f32::INFINITY));
            assert!(found.planes[0].q == plain.planes[0].q && found.planes[0].meta == plain.planes[0].meta);
            assert!(found.planes[0].sums == plain.planes[0].sums);
        }
    }

    #[test]
    fn there_is_room_for_all_that_is_above_four_root_mean_squares_and_else_numbers_stay() {
        for isa in Isa::available() {
            // One in 17 is above four; one in two above one.
            for (every, above, wanted) in [(17, 4.0, 15), (2, 1.0, 16)] {
                let x: Vec<f32> =
                    (0..256).map(|at| if at % every == 5 % every { 9.0 } else { 0.001 }).collect();
                let found = quantized(isa, &x, 256, Precision::Above(above));
                assert_eq!(found.outliers(0, 0..256).len(), wanted, "{}", isa.name());
                let left = found.planes[0].q.iter().filter(|&&q| q == 127).count();
                assert!(wanted < 16 || left > 100, "{left} on {}", isa.name());
            }
        }
    }

    #[test]
    fn two_layers_are_exact_to_fifteen_bits() {
        let x = floats(7 * SUB, 3.0);
        for isa in Isa::available() {
            let found = quantized(isa, &x, x.len(), Precision::Double);
            assert!(found.planes() == 2 && found.outliers(0, 0..x.len()).is_empty());
            let (one, two) = (run(isa, &x).q, &found.planes[0].q);
            assert_eq!(two[..x.len()], one[..x.len()], "the second changes nothing of the first");
            for (at, &x) in x.iter().enumerate() {
                let number = |plane: &Plane| f64::from(plane.meta[at / SUB * META]) * f64::from(plane.q[at]);
                let off = (f64::from(x) - found.planes.iter().map(number).sum::<f64>()).abs();
                let step = f64::from(found.planes[0].meta[at / SUB * META]);
                assert!(off <= step / 256.0 * 1.001, "{}: {x} is off by {off}", isa.name());
            }
            for plane in &found.planes {
                let sum: i32 = plane.q[32..48].iter().map(|&q| i32::from(q)).sum();
                assert_eq!(
                    (plane.sums[SUMS + 1], plane.meta[META + 2]),
                    (-sum, plane.meta[META] * sum as f32)
                );
            }
        }
    }

    #[test]
    fn halves_go_to_even() {
        let mut x = [0.0; SUB];
        x[..8].copy_from_slice(&[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -126.5]);
        for isa in Isa::available() {
            assert_eq!(run(isa, &x).q[..8], [127, 0, 2, 2, 0, -2, -2, -126], "{}", isa.name());
        }
    }

    /// Zeros, and blocks that are too small for a scale with an inverse: all of it is zero.
    #[test]
    fn nothing_is_zero() {
        for isa in Isa::available() {
            for size in [0.0, -0.0, 1e-45, 1e-41, 1e-38, 1e-37, 0.99 * MIN_AMAX] {
                let Plane { q, meta, sums } = run(isa, &[size; SUB]);
                assert!(q.iter().all(|&q| q == 0), "{size:e} on {}: {q:?}", isa.name());
                assert!(meta.iter().all(|&x| x == 0.0) && sums == [0; SUMS], "{size:e} on {}", isa.name());
            }
        }
    }

    #[test]
    fn what_is_not_finite_spoils_its_own_block_and_only_that() {
        for isa in Isa::available() {
            for (at, bad) in
                (0..SUB).flat_map(|at| [f32::INFINITY, f32::NEG_INFINITY, f32::NAN].map(|bad| (at, bad)))
            {
                let clean = floats(3 * SUB, 1.0);
                let mut x = clean.clone();
                x[SUB + at] = bad;
                let (found, wanted) = (run(isa, &x), run(isa, &clean));
                assert!(
                    found.meta[META..2 * META].iter().all(|x| x.is_nan()),
                    "{bad} at {at} on {}",
                    isa.name()
                );
                for block in [0, 2] {
                    let (q, meta) = (block * SUB..(block + 1) * SUB, block * META..(block + 1) * META);
                    assert!(
                        found.q[q.clone()] == wanted.q[q] && found.meta[meta.clone()] == wanted.meta[meta]
                    );
                }
            }
        }
    }

    /// The largest numbers there are: their sum is infinite, but they are not.
    #[test]
    fn what_is_finite_has_a_finite_scale() {
        let mut x = [0.0; SUB];
        (x[3], x[4], x[19], x[20]) = (f32::MAX, -f32::MAX, f32::MAX, -f32::MAX);
        for isa in Isa::available() {
            let Plane { q, meta, .. } = run(isa, &x);
            assert_eq!((q[3], q[4], q[19], q[20]), (127, -127, 127, -127), "{}", isa.name());
            assert_eq!(meta, [f32::MAX / 127.0, 0.0, 0.0, 0.0], "{}", isa.name());
        }
    }
}
