//! The inner loop of products with quantized weights: a tile of `M` rows and `P` panels, in registers, over a
//! run of blocks.
//!
//! The lanes of a vector are sixteen columns of the product, so nothing is ever summed across lanes, and a
//! column's sum runs along `k` in one order, whatever the number of rows, the tile, the thread or the tier.
//! For each 32 (or 16) weights that share a scale:
//!
//! ```text
//! dot  = sum of code * byte             exact, in i32; without a minimum, and of codes above 127: of
//!                                       (code - zero) * byte
//! acc += (dot * scale_w) * scale_x      fused, in f32
//! acc += minimum_w * sum_x              fused, where the format has minima (plus 128 scale_w for codes above
//!                                       127)
//! ```
//!
//! Outliers come after a K-block, row by row: `acc += x * weight`, fused, of the weight in f32 ([`column`]).
//!
//! With AVX-512 a tile is six rows times two panels: 24 of 32 registers are sums, and a byte of activations
//! that was loaded serves two products. (Twelve rows times one panel loads for each product, which takes as
//! long as the product.)

use std::marker::PhantomData;

use super::layouts::{AHEAD, Kind, Layout, SUB};
use super::quantize::{At, META, SUMS};
use super::simd::{LANES, Simd};
use super::unpack;

/// Where codes and scales of sixteen columns come from, block by block.
pub(super) trait Codes<S: Simd> {
    /// Scales serve 16 weights.
    const HALVES: bool;
    /// The format has minima; else codes have a zero.
    const MIN: bool;
    /// Codes may be above 127.
    const WIDE: bool;
    /// Groups whose products fit in 16-bit sums, see [`Layout::RUN`].
    const RUN: usize;

    /// Group `g` of the block, of panel `p`.
    ///
    /// # Safety
    /// As [`Simd`]; there is such a block.
    unsafe fn group(&self, p: usize, g: usize) -> S::I;
    /// Scale and minimum of half `half` of panel `p`.
    ///
    /// # Safety
    /// As [`Codes::group`].
    unsafe fn scales(&self, p: usize, half: usize) -> (S::F, S::F);
    /// The zero is 2 to this.
    fn zero(&self) -> i32;
    /// Goes to the next block, if there is one.
    ///
    /// # Safety
    /// As [`Simd`].
    unsafe fn next(&mut self);
    /// The codes `blocks` blocks on, for one block; this is the first block of a unit.
    ///
    /// # Safety
    /// As [`Simd`]; there is such a block.
    unsafe fn skip(&self, blocks: usize) -> Self;
}

/// A panel in its packed layout, unpacked on the way.
pub(super) struct Packed<S: Simd, Q: Layout> {
    sub: *const u8,
    /// Sub-blocks left of the unit, and units, this one among them.
    left: usize,
    units: usize,
    head: (S::F, S::F),
    layout: PhantomData<Q>,
}

impl<S: Simd, Q: Layout> Packed<S, Q> {
    /// # Safety
    /// As [`Simd`]; `panel` has `units` units, at least one.
    #[inline(always)]
    pub(super) unsafe fn new(panel: *const u8, units: usize) -> Self {
        // SAFETY: the caller has the tier's instructions; there is a unit, and its head.
        let head = unsafe { unpack::load_head::<S, Q>(panel) };
        // SAFETY: a prefetch reads nothing.
        unsafe { prefetch::<S, Q>(panel) };
        Packed { sub: panel.wrapping_add(Q::HEAD), left: Q::SUBS, units, head, layout: PhantomData }
    }
}

/// Prefetches what will be read after the sub-block `sub`: a task is too short for the hardware prefetcher.
///
/// # Safety
/// As [`Simd`].
#[inline(always)]
pub(super) unsafe fn prefetch<S: Simd, Q: Layout>(sub: *const u8) {
    let mut line = 0;
    while line < Q::SUB_BYTES {
        // SAFETY: as above: the caller has the tier's instructions, and a prefetch reads nothing.
        unsafe { S::prefetch_l1(sub.wrapping_add(AHEAD + line)) };
        line += 64;
    }
}

impl<S: Simd, Q: Layout> Codes<S> for Packed<S, Q> {
    const HALVES: bool = Q::HALVES;
    const MIN: bool = Q::MIN;
    const WIDE: bool = Q::WIDE;
    const RUN: usize = Q::RUN;

    #[inline(always)]
    unsafe fn group(&self, _: usize, g: usize) -> S::I {
        // SAFETY: there is such a block, so that its codes are there behind the scales.
        unsafe { unpack::unpack::<S, Q>(self.sub, g) }
    }
    #[inline(always)]
    unsafe fn scales(&self, _: usize, half: usize) -> (S::F, S::F) {
        // SAFETY: there is such a block, and `head` is that of its unit.
        unsafe { unpack::load_scales::<S, Q>(self.head, self.sub, half) }
    }
    #[inline(always)]
    fn zero(&self) -> i32 {
        const { Q::ZERO.trailing_zeros() as i32 }
    }
    #[inline(always)]
    unsafe fn next(&mut self) {
        self.sub = self.sub.wrapping_add(Q::SUB_BYTES);
        self.left -= 1;
        // SAFETY: the caller has the tier's instructions, which is all that a prefetch asks for.
        unsafe { prefetch::<S, Q>(self.sub) };
        if self.left == 0 && self.units > 1 {
            (self.left, self.units) = (Q::SUBS, self.units - 1);
            // SAFETY: there is another unit, and `sub` has come to its beginning.
            self.head = unsafe { unpack::load_head::<S, Q>(self.sub) };
            self.sub = self.sub.wrapping_add(Q::HEAD);
        }
    }
    #[inline(always)]
    unsafe fn skip(&self, blocks: usize) -> Self {
        // SAFETY: this is the first block of a unit, so that the unit begins `HEAD` bytes before it; the
        // block that is meant is there, by the caller's promise, and so is the head of its unit.
        unsafe {
            let unit = self.sub.sub(Q::HEAD).add(blocks / Q::SUBS * Q::UNIT);
            let sub = unit.add(Q::HEAD + blocks % Q::SUBS * Q::SUB_BYTES);
            Packed { sub, left: 1, units: 1, head: unpack::load_head::<S, Q>(unit), layout: PhantomData }
        }
    }
}

/// Panels that were unpacked: codes `[k / 4][16][4]`, and scale and minimum of each dot.
pub(super) struct Unpacked<K> {
    pub(super) codes: *const u8,
    pub(super) scales: *const f32,
    /// From a panel to the next, in bytes and floats.
    pub(super) codes_apart: usize,
    pub(super) scales_apart: usize,
    pub(super) zero: i32,
    pub(super) kind: PhantomData<K>,
}

impl<S: Simd, K: Kind> Codes<S> for Unpacked<K> {
    const HALVES: bool = K::HALVES;
    const MIN: bool = K::MIN;
    const WIDE: bool = K::WIDE;
    const RUN: usize = K::RUN;

    #[inline(always)]
    unsafe fn group(&self, p: usize, g: usize) -> S::I {
        // SAFETY: there is such a block: 64 bytes for each group of each panel.
        unsafe { S::load_i(self.codes.add(p * self.codes_apart + 4 * LANES * g)) }
    }
    #[inline(always)]
    unsafe fn scales(&self, p: usize, half: usize) -> (S::F, S::F) {
        // SAFETY: there is such a block: two vectors for each half of each panel.
        unsafe {
            let scales = self.scales.add(p * self.scales_apart + 2 * LANES * half);
            (S::load(scales), if K::MIN { S::load(scales.add(LANES)) } else { S::zero() })
        }
    }
    #[inline(always)]
    fn zero(&self) -> i32 {
        self.zero
    }
    #[inline(always)]
    unsafe fn next(&mut self) {
        // SAFETY: `skip` of unpacked panels only moves pointers, and does not follow them.
        unsafe { *self = Codes::<S>::skip(self, 1) };
    }
    #[inline(always)]
    unsafe fn skip(&self, blocks: usize) -> Self {
        let scales = blocks * if K::HALVES { 4 * LANES } else { 2 * LANES };
        Unpacked {
            codes: self.codes.wrapping_add(blocks * LANES * SUB),
            scales: self.scales.wrapping_add(scales),
            ..*self
        }
    }
}

/// Adds `blocks` blocks to the sums of a tile.
///
/// # Safety
/// The tier's instructions; there are such blocks of `M` rows at `x`, and of `P` panels.
#[inline(always)]
pub(super) unsafe fn tile<S: Simd, C: Codes<S>, const M: usize, const P: usize>(
    mut codes: C,
    mut x: At,
    blocks: usize,
    acc: &mut [[S::F; M]; P],
) {
    // SAFETY: there are so many blocks, of which each is gone to before it is read; `next` beyond the last
    // one reads nothing.
    unsafe {
        for _ in 0..blocks {
            if C::HALVES {
                half::<S, C, M, P, 0, 4>(&codes, x, 0, 2, acc);
                half::<S, C, M, P, 4, 8>(&codes, x, 1, 3, acc);
            } else {
                half::<S, C, M, P, 0, 8>(&codes, x, 0, 1, acc);
            }
            x = x.skip(1);
            codes.next();
        }
    }
}

/// The groups `FROM..TO` of a block, which share scale `half` of the weights and sum `sum` of the
/// activations.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn half<S: Simd, C: Codes<S>, const M: usize, const P: usize, const FROM: usize, const TO: usize>(
    codes: &C,
    x: At,
    half: usize,
    sum: usize,
    acc: &mut [[S::F; M]; P],
) {
    // SAFETY: rows are `blocks` blocks apart in `meta` and `sums`, and there are `M` of them.
    unsafe {
        let mut dot = [[S::zero_i(); M]; P];
        // A zero that is still in the codes when they are multiplied.
        if !(C::MIN && !C::WIDE || C::WIDE && S::WIDE_IS_SIGNED) {
            for i in 0..M {
                let minus = S::splat_i(*x.sums.add(i * x.blocks * SUMS + sum - 1));
                let minus = S::shl_32(minus, codes.zero());
                for dot in &mut dot {
                    dot[i] = minus;
                }
            }
        }
        dots::<S, C, M, P, FROM, TO>(codes, x.q, x.k, &mut dot);
        for p in 0..P {
            let (scale, mut offset) = codes.scales(p, half);
            if C::MIN && C::WIDE {
                // What was taken away from the codes.
                offset = S::fma(scale, S::splat(128.0), offset);
            }
            for i in 0..M {
                let meta = x.meta.add(i * x.blocks * META);
                let value = S::mul(S::to_f(dot[p][i]), scale);
                acc[p][i] = S::fma(value, S::splat(*meta), acc[p][i]);
                if C::MIN {
                    acc[p][i] = S::fma(offset, S::splat(*meta.add(sum)), acc[p][i]);
                }
            }
        }
    }
}

/// The weights of one place in the row, as floats. `codes` begin `at` places before it.
///
/// # Safety
/// The tier's instructions; there is such a weight, of `P` panels.
#[inline(always)]
pub(super) unsafe fn column<S: Simd, C: Codes<S>, const P: usize>(codes: &C, at: usize) -> [S::F; P] {
    // SAFETY: there is such a weight, so that its block is there.
    unsafe {
        let zero = S::splat(if C::MIN { 0.0 } else { (1 << codes.zero()) as f32 });
        let codes = codes.skip(at / SUB);
        let (group, byte) = (at % SUB / 4, at % 4);
        let half = if C::HALVES { at % SUB / (SUB / 2) } else { 0 };
        let mut weights = [S::zero(); P];
        for (p, weight) in weights.iter_mut().enumerate() {
            let code = S::shr_32(codes.group(p, group), 8 * byte as i32);
            let code = S::to_f(S::and(code, S::splat_i(255)));
            let (scale, offset) = codes.scales(p, half);
            *weight = match C::MIN {
                true => S::fma(code, scale, offset),
                false => S::mul(S::sub(code, zero), scale),
            };
        }
        weights
    }
}

/// Adds the byte products of the groups.
///
/// # Safety
/// As [`tile`].
#[inline(always)]
unsafe fn dots<S: Simd, C: Codes<S>, const M: usize, const P: usize, const FROM: usize, const TO: usize>(
    codes: &C,
    x: *const i8,
    k: usize,
    dot: &mut [[S::I; M]; P],
) {
    // In 16 bits, for as long as they suffice, sums take half the multiplications.
    let in_pairs = S::PAIRS && C::RUN > 1;
    // SAFETY: the caller has the tier's instructions.
    let mut pairs = [[unsafe { S::zero_i() }; M]; P];
    macro_rules! group {
        ($($g:literal)*) => {$(
            if FROM <= $g && $g < TO {
                let mut w = [S::zero_i(); P];
                for p in 0..P {
                    w[p] = codes.group(p, $g);
                }
                for i in 0..M {
                    if P == 1 {
                        let (dot, pairs, x) = (&mut dot[0][i], &mut pairs[0][i], x.add(i * k));
                        match (in_pairs, C::WIDE) {
                            (true, _) => *pairs = S::dot_pairs_at::<{ 4 * $g }>(*pairs, w[0], x),
                            (false, true) => *dot = S::dot_at::<true, { 4 * $g }>(*dot, w[0], x),
                            (false, false) => *dot = S::dot_at::<false, { 4 * $g }>(*dot, w[0], x),
                        }
                        continue;
                    }
                    let x = S::load_4(x.add(i * k + 4 * $g).cast());
                    for p in 0..P {
                        match (in_pairs, C::WIDE) {
                            (true, _) => pairs[p][i] = S::dot_pairs(pairs[p][i], w[p], x),
                            (false, true) => dot[p][i] = S::dot_wide(dot[p][i], w[p], x),
                            (false, false) => dot[p][i] = S::dot(dot[p][i], w[p], x),
                        }
                    }
                }
                if in_pairs && ($g + 1 == TO || ($g + 1 - FROM) % C::RUN == 0) {
                    for p in 0..P {
                        for i in 0..M {
                            dot[p][i] = S::add_pairs(dot[p][i], pairs[p][i]);
                            pairs[p][i] = S::zero_i();
                        }
                    }
                }
            }
        )*};
    }
    // Written out, so that what depends on the group is a constant.
    // SAFETY: the caller promises the groups, and four bytes for each in all `M` rows, which are `k` apart.
    unsafe {
        group!(0 1 2 3 4 5 6 7);
    }
}
