//! Weights that are multiplied as floats: plain ones, and blocks of 32 that share a scale (FP8, NF4).
//!
//! The lanes are sixteen columns, and each has one order of its own, as everywhere:
//!
//! * plain floats: `acc += w * x`, fused, the even `k` and the odd ones apart, added at the end;
//! * blocks: the same over the 32 weights without their scale, from zero, and then `acc += scale * sum`,
//!   fused. A scale is multiplied once a block, and the chains of two blocks do not wait for each other.
//!
//! One row multiplies what it decodes in registers. More rows share a block that was decoded into L1.

use super::isa::{Isa, Tiles, tiled};
use super::layouts::{AHEAD, SUB};
use super::simd::{LANES, LevelTable, Simd};
use crate::weights::WeightType;
use crate::weights::blocks::small::{BNB_FP4_LEVELS, NF4_LEVELS};

/// Where the sums of a tile go: sixteen columns of each row, rows `stride` apart.
#[derive(Clone, Copy)]
pub(super) struct Sums {
    pub(super) first: *mut f32,
    pub(super) stride: usize,
}

/// Rows of a tile. One of blocks is as many as share what was decoded, and not those that registers hold.
const PLAIN: Tiles = Tiles { avx512: &[12, 4, 1], avx2: &[2, 1] };
const BLOCKS: Tiles = Tiles { avx512: &[MOST, 4, 2, 1], avx2: &[MOST, 4, 2, 1] };
pub(super) const MOST: usize = 12;

tiled! {
    [12, 4, 1] [2, 1]
    /// Sums of `rows` rows from `x` on for the sixteen columns of a panel of plain floats.
    ///
    /// # Safety
    /// The panel has sixteen rows of `k` floats of type `F`; `x` has `rows` rows of `k`; `sums` may be
    /// written to.
    fn plain<F: Float>(w: *const u8, x: *const f32, k: usize, sums: Sums) = plain_tile;
}

tiled! {
    [12, 4, 2, 1] [12, 4, 2, 1]
    /// The same of blocks, of which `k` is a multiple.
    ///
    /// # Safety
    /// As [`plain`].
    fn blocks<B: Block>(w: *const u8, x: *const f32, k: usize, sums: Sums) = blocks_tile;
}

/// Rows that tiles of such weights have.
pub(super) fn tile_sizes(dtype: WeightType) -> &'static Tiles {
    if dtype.is_block_float() { &BLOCKS } else { &PLAIN }
}

/// # Safety
/// As [`plain`]; `k` is a multiple of the block.
pub(super) unsafe fn multiply(
    isa: Isa,
    rows: usize,
    dtype: WeightType,
    w: *const u8,
    x: *const f32,
    k: usize,
    sums: Sums,
) {
    // SAFETY: the caller's promise; the type of floats is that of the panel.
    unsafe {
        match dtype {
            WeightType::F16 => plain::<F16>(isa, rows, w, x, k, sums),
            WeightType::BF16 => plain::<BF16>(isa, rows, w, x, k, sums),
            WeightType::Fp8 => blocks::<Fp8>(isa, rows, w, x, k, sums),
            WeightType::Nf4 => blocks::<Nf4>(isa, rows, w, x, k, sums),
            WeightType::BnbFp4 => blocks::<BnbFp4>(isa, rows, w, x, k, sums),
            _ => plain::<F32>(isa, rows, w, x, k, sums),
        }
    }
}

/// A type of weights that are multiplied as floats. Panels are units of so many columns and bytes: sixteen
/// plain floats, or a [`Block`].
pub(super) trait Float {
    const LEN: usize;
    const UNIT: usize;
    /// The sixteen weights of column `at` of a panel.
    ///
    /// # Safety
    /// As [`Simd`]; the panel has this column.
    unsafe fn load<S: Simd>(panel: *const u8, at: usize) -> S::F;
}

/// Runs the expression for the type of floats; F32 for all that are no floats.
macro_rules! with_float {
    ($dtype:expr, $f:ident => $call:expr) => {{
        use $crate::kernels::floats;
        use $crate::weights::WeightType as Type;
        macro_rules! call {
            ($float:ident) => {{
                type $f = floats::$float;
                $call
            }};
        }
        match $dtype {
            Type::F16 => call!(F16),
            Type::BF16 => call!(BF16),
            Type::Fp8 => call!(Fp8),
            Type::Nf4 => call!(Nf4),
            Type::BnbFp4 => call!(BnbFp4),
            _ => call!(F32),
        }
    }};
}
pub(super) use with_float;

macro_rules! float {
    ($name:ident, $bytes:literal, $from:ident => $load:expr) => {
        pub(super) struct $name;
        impl Float for $name {
            const LEN: usize = 1;
            const UNIT: usize = LANES * $bytes;
            #[inline(always)]
            unsafe fn load<S: Simd>(panel: *const u8, at: usize) -> S::F {
                // SAFETY: the caller has the tier's instructions; sixteen floats of this type are there.
                unsafe {
                    let $from = panel.add(at * Self::UNIT);
                    $load
                }
            }
        }
    };
}

float!(F32, 4, from => S::load(from.cast()));
float!(F16, 2, from => S::load_f16(from));
float!(BF16, 2, from => S::load_bf16(from));

/// 32 columns in a panel: the sixteen scales, then codes, at places that suit the decoders
/// ([`Simd::e4m3_pair`], [`Simd::levels4`]).
pub(super) trait Block: 'static {
    const BITS: usize;
    const UNIT: usize = SCALES + SUB * LANES * Self::BITS / 8;

    /// Where a unit has the code of column `at` and row `r`: the byte, and from which bit on.
    fn place(at: usize, r: usize) -> (usize, usize);
    /// Columns `4 of` to `4 of + 3`, that are still to be multiplied by [`Block::scale`].
    ///
    /// # Safety
    /// As [`Simd`]; the unit is there, and `of` is below 8.
    unsafe fn four<S: Simd>(unit: *const u8, of: usize) -> [S::F; 4];
    /// # Safety
    /// As [`Block::four`].
    unsafe fn scale<S: Simd>(unit: *const u8) -> S::F;
}

/// [`Block::place`] of a type that has such.
pub(super) fn place(dtype: WeightType, at: usize, r: usize) -> (usize, usize) {
    match dtype {
        WeightType::Fp8 => Fp8::place(at, r),
        _ => Nf4::place(at, r),
    }
}

impl<B: Block> Float for B {
    const LEN: usize = SUB;
    const UNIT: usize = B::UNIT;
    #[inline(always)]
    unsafe fn load<S: Simd>(panel: *const u8, at: usize) -> S::F {
        // SAFETY: the caller has the tier's instructions; the unit of the column is there.
        unsafe {
            let unit = panel.add(at / SUB * B::UNIT);
            S::mul(B::scale::<S>(unit), B::four::<S>(unit, at % SUB / 4)[at % 4])
        }
    }
}

/// Bytes of sixteen scales.
const SCALES: usize = 4 * LANES;

/// E4M3.
pub(super) struct Fp8;

impl Block for Fp8 {
    const BITS: usize = 8;

    fn place(at: usize, r: usize) -> (usize, usize) {
        (SCALES + at / 2 * 2 * LANES + 2 * r + at % 2, 0)
    }
    #[inline(always)]
    unsafe fn four<S: Simd>(unit: *const u8, of: usize) -> [S::F; 4] {
        // SAFETY: the caller has the tier's instructions; the unit has 32 bytes for every two columns.
        unsafe {
            let codes = unit.add(SCALES + 4 * LANES * of);
            let ([a, b], [c, d]) = (S::e4m3_pair(codes), S::e4m3_pair(codes.add(2 * LANES)));
            [a, b, c, d]
        }
    }
    #[inline(always)]
    unsafe fn scale<S: Simd>(unit: *const u8) -> S::F {
        // SAFETY: the caller has the tier's instructions; the unit begins with its scales.
        unsafe { S::mul(S::load(unit.cast()), S::splat(256.0)) }
    }
}

/// Nibbles that stand for the levels of a table.
macro_rules! levels {
    ($name:ident, $levels:expr) => {
        pub(super) struct $name;
        impl Block for $name {
            const BITS: usize = 4;

            fn place(at: usize, r: usize) -> (usize, usize) {
                (SCALES + at / 8 * 4 * LANES + 4 * r + at % 4, at / 4 % 2 * 4)
            }
            #[inline(always)]
            unsafe fn four<S: Simd>(unit: *const u8, of: usize) -> [S::F; 4] {
                static TABLE: LevelTable = LevelTable::new($levels);
                // SAFETY: the caller has the tier's instructions; the unit has 64 bytes for eight columns.
                unsafe {
                    let codes = unit.add(SCALES + of / 2 * 4 * LANES);
                    match of % 2 {
                        0 => S::levels4::<false>(&TABLE, codes),
                        _ => S::levels4::<true>(&TABLE, codes),
                    }
                }
            }
            #[inline(always)]
            unsafe fn scale<S: Simd>(unit: *const u8) -> S::F {
                // SAFETY: the caller has the tier's instructions; the unit begins with its scales.
                unsafe { S::load(unit.cast()) }
            }
        }
    };
}

levels!(Nf4, NF4_LEVELS);
levels!(BnbFp4, BNB_FP4_LEVELS);

/// # Safety
/// The tier's instructions, and as [`plain`].
#[inline(always)]
unsafe fn plain_tile<S: Simd, F: Float, const M: usize>(w: *const u8, x: *const f32, k: usize, sums: Sums) {
    // SAFETY: the caller has the tier's instructions, and promises `k` vectors of weights, `M` rows of `k`,
    // and room for sixteen sums of each row.
    unsafe {
        let (mut even, mut odd) = ([S::zero(); M], [S::zero(); M]);
        let mut at = 0;
        while at + 2 <= k {
            let (first, second) = (F::load::<S>(w, at), F::load::<S>(w, at + 1));
            for i in 0..M {
                even[i] = S::fma(first, S::splat(*x.add(i * k + at)), even[i]);
                odd[i] = S::fma(second, S::splat(*x.add(i * k + at + 1)), odd[i]);
            }
            at += 2;
        }
        if at < k {
            let last = F::load::<S>(w, at);
            for (i, even) in even.iter_mut().enumerate() {
                *even = S::fma(last, S::splat(*x.add(i * k + at)), *even);
            }
        }
        for (i, (even, odd)) in even.into_iter().zip(odd).enumerate() {
            S::store(sums.first.add(i * sums.stride), S::add(even, odd));
        }
    }
}

/// # Safety
/// The tier's instructions, and as [`blocks`].
#[inline(always)]
unsafe fn blocks_tile<S: Simd, B: Block, const M: usize>(w: *const u8, x: *const f32, k: usize, sums: Sums) {
    // SAFETY: the caller has the tier's instructions, and promises units for `k` columns, `M` rows of `k`,
    // and room for sixteen sums of each row. A prefetch reads nothing.
    unsafe {
        let mut acc = [S::zero(); M];
        for block in 0..k / SUB {
            let (unit, x) = (w.add(block * B::UNIT), x.add(block * SUB));
            let mut line = 0;
            while line < B::UNIT {
                S::prefetch_l1(unit.wrapping_add(AHEAD + line));
                line += 64;
            }
            let scale = B::scale::<S>(unit);
            if M == 1 {
                let mut sums = [S::zero(); 2];
                // Written out: what depends on the place is a constant then.
                macro_rules! fours {
                    ($($of:literal)*) => {$(
                        let [a, b, c, d] = B::four::<S>(unit, $of);
                        sums[0] = S::fma(a, S::splat(*x.add(4 * $of)), sums[0]);
                        sums[1] = S::fma(b, S::splat(*x.add(4 * $of + 1)), sums[1]);
                        sums[0] = S::fma(c, S::splat(*x.add(4 * $of + 2)), sums[0]);
                        sums[1] = S::fma(d, S::splat(*x.add(4 * $of + 3)), sums[1]);
                    )*};
                }
                fours!(0 1 2 3 4 5 6 7);
                acc[0] = S::fma(scale, S::add(sums[0], sums[1]), acc[0]);
                continue;
            }
            let mut weights = [S::zero(); SUB];
            macro_rules! fours {
                ($($of:literal)*) => {$(
                    let four = B::four::<S>(unit, $of);
                    weights[4 * $of] = four[0];
                    weights[4 * $of + 1] = four[1];
                    weights[4 * $of + 2] = four[2];
                    weights[4 * $of + 3] = four[3];
                )*};
            }
            fours!(0 1 2 3 4 5 6 7);
            let mut i = 0;
            while i < M {
                // Two rows have enough chains to keep the multipliers busy, and share what is loaded.
                let (first, second) = (x.add(i * k), x.add((i + 1) * k));
                let (mut even, mut odd) = ([S::zero(); 2], [S::zero(); 2]);
                let mut at = 0;
                while at < SUB {
                    let (a, b) = (weights[at], weights[at + 1]);
                    even[0] = S::fma(a, S::splat(*first.add(at)), even[0]);
                    even[1] = S::fma(a, S::splat(*second.add(at)), even[1]);
                    odd[0] = S::fma(b, S::splat(*first.add(at + 1)), odd[0]);
                    odd[1] = S::fma(b, S::splat(*second.add(at + 1)), odd[1]);
                    at += 2;
                }
                acc[i] = S::fma(scale, S::add(even[0], odd[0]), acc[i]);
                acc[i + 1] = S::fma(scale, S::add(even[1], odd[1]), acc[i + 1]);
                i += 2;
            }
        }
        for (i, acc) in acc.into_iter().enumerate() {
            S::store(sums.first.add(i * sums.stride), acc);
        }
    }
}
