//! Activations as bytes: blocks of 32 with a scale each, and the sums that offsets of weights are multiplied by.
//!
//! `x ≈ scale * q`, `scale` a 127th of the block's greatest size. What that leaves is noise in proportion to the
//! block's greatest number, and a few blocks have most of it: those with a channel that is always large, or a neuron that
//! fired. A block whose greatest number is above `fine` times the root mean square of its row gets a second byte a
//! number, `x ≈ scale * (q + rest / 256)`, and products a second pass over it. Whether it does depends on the row alone, so
//! that a row's bits are the same in any batch.
//!
//! A block that holds infinity or NaN gets a NaN for a scale, so that it stays visible in all that is computed from it.

use std::ops::Range;

use super::forms::SUB;
use super::isa::tiered;
use super::pool::Shares;
use super::simd::{LANES, Simd};

/// Numbers kept for a block: its scale, and `scale * sum(q + rest / 256)` of all, the first and the last sixteen.
pub(super) const META: usize = 4;
/// Whole numbers kept for a block: `-sum(q)` of the same, and nothing.
pub(super) const SUMS: usize = 4;
/// Blocks whose second bytes a word tells of.
pub(super) const WORD: usize = 64;

/// Blocks of smaller numbers are zeros: a 127th of them has no inverse in f32.
const LEAST: f32 = 1e-36;

/// Rows of activations in bytes; `k` is a multiple of 32.
#[derive(Default)]
pub(super) struct Quantized {
    pub(super) rows: usize,
    pub(super) k: usize,
    /// `[rows, k]`
    q: Vec<i8>,
    /// The second bytes, of the blocks that have some. `[rows, k]`
    rest: Vec<i8>,
    /// `[rows, k / 32, META]`
    meta: Vec<f32>,
    /// `[rows, k / 32, SUMS]`
    sums: Vec<i32>,
    /// A bit for each block that has second bytes: `[rows, words]`, words of [`WORD`] blocks.
    fine: Vec<u64>,
}

/// Where the bytes of a row and those after it begin, from a block on.
#[derive(Clone, Copy)]
pub(super) struct At {
    pub(super) q: *const i8,
    pub(super) rest: *const i8,
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
            rest: self.rest.wrapping_add(blocks * SUB),
            meta: self.meta.wrapping_add(blocks * META),
            sums: self.sums.wrapping_add(blocks * SUMS),
            ..self
        }
    }
}

/// Parts of all arrays for some rows, to be written.
pub(super) struct Part<'a> {
    pub(super) q: &'a mut [i8],
    pub(super) rest: &'a mut [i8],
    pub(super) meta: &'a mut [f32],
    pub(super) sums: &'a mut [i32],
    pub(super) fine: &'a mut [u64],
}

impl Quantized {
    /// Makes room for `rows` rows of `k`; what is in it is not defined. (It only grows: what grows again is filled with zeros, by one
    /// thread.)
    pub(super) fn resize(&mut self, rows: usize, k: usize) {
        fn at_least<T: Clone + Default>(items: &mut Vec<T>, len: usize) {
            if items.len() < len {
                *items = vec![T::default(); len];
            }
        }
        let blocks = rows * (k / SUB);
        (self.rows, self.k) = (rows, k);
        at_least(&mut self.q, rows * k);
        at_least(&mut self.rest, rows * k);
        at_least(&mut self.meta, blocks * META);
        at_least(&mut self.sums, blocks * SUMS);
        at_least(&mut self.fine, rows * words(k));
    }

    /// For several threads to write to.
    pub(super) fn shares(&mut self) -> Parts<'_> {
        let Quantized { q, rest, meta, sums, fine, k, .. } = self;
        let (q, rest, meta) = (Shares::new(q), Shares::new(rest), Shares::new(meta));
        Parts { k: *k, q, rest, meta, sums: Shares::new(sums), fine: Shares::new(fine) }
    }

    /// Row `row` from block `block` on.
    pub(super) fn at(&self, row: usize, block: usize) -> At {
        let (k, blocks) = (self.k, self.k / SUB);
        let (from, block) = (row * k + block * SUB, row * blocks + block);
        At {
            q: self.q[from..].as_ptr(),
            rest: self.rest[from..].as_ptr(),
            meta: self.meta[block * META..].as_ptr(),
            sums: self.sums[block * SUMS..].as_ptr(),
            k,
            blocks,
        }
    }

    /// Which of `blocks` blocks of a row, from `first` on, have second bytes: a bit each, at most [`WORD`].
    pub(super) fn fine(&self, row: usize, first: usize, blocks: usize) -> u64 {
        assert!((1..=WORD).contains(&blocks) && first + blocks <= self.k / SUB);
        let words = &self.fine[row * words(self.k)..(row + 1) * words(self.k)];
        let (word, bit) = (first / WORD, first % WORD);
        let next = words.get(word + 1).copied().unwrap_or(0);
        let bits = (u128::from(next) << WORD | u128::from(words[word])) >> bit;
        bits as u64 & u64::MAX >> (WORD - blocks)
    }
}

/// Words of a row that tell which blocks have second bytes.
fn words(k: usize) -> usize {
    (k / SUB).div_ceil(WORD)
}

/// All arrays, for several threads to write to.
pub(super) struct Parts<'a> {
    k: usize,
    q: Shares<'a, i8>,
    rest: Shares<'a, i8>,
    meta: Shares<'a, f32>,
    sums: Shares<'a, i32>,
    fine: Shares<'a, u64>,
}

impl Parts<'_> {
    /// The parts of some rows.
    ///
    /// # Safety
    /// Nobody else has a part of these rows.
    pub(super) unsafe fn rows(&self, rows: Range<usize>) -> Part<'_> {
        let range = |size: usize| rows.start * size..rows.end * size;
        let (k, blocks) = (self.k, self.k / SUB);
        // SAFETY: the caller's promise.
        unsafe {
            Part {
                q: self.q.part(range(k)),
                rest: self.rest.part(range(k)),
                meta: self.meta.part(range(blocks * META)),
                sums: self.sums.part(range(blocks * SUMS)),
                fine: self.fine.part(range(words(k))),
            }
        }
    }
}

tiered! {
    /// Quantizes rows of `k`. Blocks with a number above `fine` times the root mean square of their row get second bytes.
    pub(super) fn quantize(x: &[f32], k: usize, fine: f32, to: &mut Part<'_>) = quantize_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn quantize_body<S: Simd>(x: &[f32], k: usize, fine: f32, to: &mut Part<'_>) {
    let (blocks, words) = (k / SUB, words(k));
    for (row, x) in x.chunks_exact(k).enumerate() {
        let (q, rest) = (&mut to.q[row * k..(row + 1) * k], &mut to.rest[row * k..(row + 1) * k]);
        let meta = &mut to.meta[row * blocks * META..(row + 1) * blocks * META];
        let sums = &mut to.sums[row * blocks * SUMS..(row + 1) * blocks * SUMS];
        let found = &mut to.fine[row * words..(row + 1) * words];
        // SAFETY: the caller's promise; the arrays have what belongs to the blocks.
        unsafe {
            let limit = fine * root_mean_square::<S>(x);
            found.fill(0);
            for (block, x) in x.as_chunks::<SUB>().0.iter().enumerate() {
                let greatest = greatest::<S>(x);
                let (q, rest) = (q.as_mut_ptr().add(block * SUB), rest.as_mut_ptr().add(block * SUB));
                meta[block * META] = bytes_of_block::<S>(x, greatest, q);
                if greatest > limit && greatest >= LEAST {
                    found[block / WORD] |= 1 << (block % WORD);
                    second_bytes::<S>(x, greatest, rest);
                }
            }
            for block in (0..blocks).step_by(2) {
                let fine = found[block / WORD] >> (block % WORD);
                let here = (blocks - block).min(2);
                let range = block * SUB..(block + here) * SUB;
                let whole = halves::<S>(&q[range.clone()]);
                let mut rests = [0; 4];
                if fine & 3 != 0 {
                    rests = halves::<S>(&rest[range]);
                }
                for i in 0..here {
                    let (low, high) = (whole[2 * i], whole[2 * i + 1]);
                    let at = block + i;
                    sums[at * SUMS..(at + 1) * SUMS].copy_from_slice(&[-low - high, -low, -high, 0]);
                    let (low, high) = match fine >> i & 1 {
                        0 => (low as f32, high as f32),
                        _ => (
                            (256 * low + rests[2 * i]) as f32 / 256.0,
                            (256 * high + rests[2 * i + 1]) as f32 / 256.0,
                        ),
                    };
                    let meta = &mut meta[at * META..(at + 1) * META];
                    let scale = meta[0];
                    meta[1..].copy_from_slice(&[scale * (low + high), scale * low, scale * high]);
                }
            }
        }
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn root_mean_square<S: Simd>(x: &[f32]) -> f32 {
    // SAFETY: the caller's promise.
    unsafe {
        let (mut factor, mut sum) = (1.0, squares::<S>(x, 1.0));
        if !(1e-25..1e35).contains(&sum) {
            // Squares may be more or less than f32 has.
            factor = if sum < 1.0 { EXTREME } else { 1.0 / EXTREME };
            sum = squares::<S>(x, factor);
        }
        (sum / x.len() as f32).sqrt() / factor
    }
}

/// A power of two between the extremes and 1.
const EXTREME: f32 = (1u128 << 80) as f32;

/// The sum of the squares of `x * factor`.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn squares<S: Simd>(x: &[f32], factor: f32) -> f32 {
    unsafe {
        // Four sums: each would wait for the one before it.
        let mut sums = [S::zero(); 4];
        for x in x.as_chunks::<SUB>().0.chunks(2) {
            for (x, sums) in x.iter().zip(sums.chunks_exact_mut(2)) {
                for (at, sum) in sums.iter_mut().enumerate() {
                    let x = S::mul(S::load(x.as_ptr().add(at * LANES)), S::splat(factor));
                    *sum = S::fma(x, x, *sum);
                }
            }
        }
        S::sum(S::add(S::add(sums[0], sums[1]), S::add(sums[2], sums[3])))
    }
}

/// What the numbers of a block are multiplied by, so that the greatest is 127.
fn inverse(greatest: f32) -> f32 {
    if greatest >= LEAST { 127.0 / greatest } else { 0.0 }
}

/// A block's bytes; its scale.
///
/// # Safety
/// The tier's instructions; `q` has room for a block.
#[inline(always)]
unsafe fn bytes_of_block<S: Simd>(x: &[f32; SUB], greatest: f32, q: *mut i8) -> f32 {
    unsafe {
        let inverse = S::splat(inverse(greatest));
        let (a, b) = (S::load(x.as_ptr()), S::load(x.as_ptr().add(LANES)));
        S::store_i8(q, S::round(S::mul(a, inverse)));
        S::store_i8(q.add(LANES), S::round(S::mul(b, inverse)));
    }
    match greatest {
        ..LEAST => 0.0,
        ..f32::INFINITY => greatest / 127.0,
        _ => f32::NAN,
    }
}

/// The second bytes of a block.
///
/// # Safety
/// The tier's instructions; `rest` has room for a block.
#[inline(always)]
unsafe fn second_bytes<S: Simd>(x: &[f32; SUB], greatest: f32, rest: *mut i8) {
    unsafe {
        let inverse = S::splat(inverse(greatest));
        for at in [0, LANES] {
            let x = S::mul(S::load(x.as_ptr().add(at)), inverse);
            S::store_i8(rest.add(at), left::<S>(x, S::round(x)));
        }
    }
}

/// The greatest size; NaN is greater than infinity, as their bits are.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn greatest<S: Simd>(x: &[f32; SUB]) -> f32 {
    unsafe {
        let (a, b) = (S::load(x.as_ptr()), S::load(x.as_ptr().add(LANES)));
        f32::from_bits(S::greatest_i(S::max_i(S::bits(S::abs(a)), S::bits(S::abs(b)))) as u32)
    }
}

/// The sums of the halves of one or two blocks of bytes.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn halves<S: Simd>(bytes: &[i8]) -> [i32; 4] {
    const { assert!(size_of::<S::I>() == 64) };
    let mut two = [0; 2 * SUB];
    let from = match bytes.len() {
        64.. => bytes,
        _ => {
            two[..SUB].copy_from_slice(&bytes[..SUB]);
            &two
        }
    };
    let mut lanes = [0; LANES];
    // SAFETY: the caller's promise; 64 bytes are there.
    unsafe {
        let sums = S::dot(S::zero_i(), S::splat_i(0x0101_0101), S::load_i(from.as_ptr().cast()));
        lanes.as_mut_ptr().cast::<S::I>().write_unaligned(sums);
    }
    let mut halves = [0; 4];
    for (half, lanes) in halves.iter_mut().zip(lanes.as_chunks::<4>().0) {
        *half = lanes[0] + lanes[1] + lanes[2] + lanes[3];
    }
    halves
}

/// What rounding `x` to `whole` left, in 256ths; half a step is 127 of them.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn left<S: Simd>(x: S::F, whole: S::I) -> S::I {
    unsafe {
        let rest = S::mul(S::sub(x, S::to_f(whole)), S::splat(256.0));
        S::round(S::min(S::splat(127.0), S::max(S::splat(-127.0), rest)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::Isa;

    /// Scales, whole numbers, and the sums that are kept, of whole blocks.
    fn run(isa: Isa, x: &[f32]) -> Quantized {
        run_fine(isa, x, x.len(), f32::INFINITY)
    }

    fn run_fine(isa: Isa, x: &[f32], k: usize, fine: f32) -> Quantized {
        let mut out = Quantized::default();
        out.resize(x.len() / k, k);
        let parts = out.shares();
        // SAFETY: nobody else has a part.
        quantize(isa, x, k, fine, &mut unsafe { parts.rows(0..x.len() / k) });
        out
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
            .flat_map(|isa| [2.0 * LEAST, 1e-30, 1e-3, 1.0, 700.0, 3e38].map(|size| (isa, size)))
        {
            let x = floats(40 * SUB, size);
            let Quantized { q, rest, meta, sums, fine, .. } = run(isa, &x);
            assert!(rest.iter().all(|&rest| rest == 0) && fine == [0], "nothing is above infinity");
            for (block, x) in x.chunks_exact(SUB).enumerate() {
                let (q, meta) = (&q[block * SUB..][..SUB], &meta[block * META..][..META]);
                let greatest = x.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                assert_eq!(meta[0], greatest / 127.0);
                assert_eq!(q.iter().map(|q| q.unsigned_abs()).max(), Some(127), "the greatest is 127");
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

    /// Two rows of 70 blocks, so that a row has more than a word; block `b` of the first has a number of size `b`.
    #[test]
    fn blocks_with_great_numbers_get_second_bytes_and_the_others_zeros() {
        let (k, limit) = (70 * SUB, 1.5);
        let mut x = floats(2 * k, 0.5);
        (0..70).for_each(|block| x[block * SUB + block % SUB] = block as f32);
        for isa in Isa::available() {
            let found = run_fine(isa, &x, k, limit);
            let plain = run(isa, &x);
            for (row, x) in x.chunks_exact(k).enumerate() {
                let mean = (x.iter().map(|x| x * x).sum::<f32>() / k as f32).sqrt();
                for (block, x) in x.chunks_exact(SUB).enumerate() {
                    let at = row * 70 + block;
                    let greatest = x.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                    let fine = found.fine[row * 2 + block / 64] >> (block % 64) & 1 == 1;
                    assert_eq!(fine, greatest > limit * mean, "{}: {row}/{block}", isa.name());
                    assert_eq!(found.fine(row, block, 1), u64::from(fine));
                    let (q, rest) = (&found.q[at * SUB..][..SUB], &found.rest[at * SUB..][..SUB]);
                    assert_eq!(q, &plain.q[at * SUB..][..SUB], "second bytes change no first ones");
                    assert!(fine || rest.iter().all(|&rest| rest == 0));
                    let whole =
                        |range: std::ops::Range<usize>| -q[range].iter().map(|&q| i32::from(q)).sum::<i32>();
                    assert_eq!(found.sums[at * SUMS..][..3], [whole(0..32), whole(0..16), whole(16..32)]);
                    let all = |range: std::ops::Range<usize>| {
                        range.map(|i| 256 * i32::from(q[i]) + i32::from(rest[i])).sum::<i32>()
                    };
                    let sums = [all(0..32), all(0..16), all(16..32)];
                    let scale = found.meta[at * META];
                    assert_eq!(
                        found.meta[at * META + 1..][..3],
                        sums.map(|sum| scale * (sum as f32 / 256.0))
                    );
                    let step = f64::from(scale) / if fine { 128.0 } else { 1.0 };
                    for i in 0..SUB {
                        let value = f64::from(q[i]) + f64::from(rest[i]) / 256.0;
                        let off = (f64::from(x[i]) - f64::from(scale) * value).abs();
                        assert!(off <= step * 0.50001, "{}: {} became {value} of {scale}", isa.name(), x[i]);
                    }
                }
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
            for size in [0.0, -0.0, 1e-45, 1e-41, 1e-38, 1e-37, 0.99 * LEAST] {
                let Quantized { q, meta, sums, .. } = run(isa, &[size; SUB]);
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
            let Quantized { q, meta, .. } = run(isa, &x);
            assert_eq!((q[3], q[4], q[19], q[20]), (127, -127, 127, -127), "{}", isa.name());
            assert_eq!(meta, [f32::MAX / 127.0, 0.0, 0.0, 0.0], "{}", isa.name());
        }
    }
}
