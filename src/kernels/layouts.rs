//! The packed layouts of quantized weights: sixteen rows of a matrix side by side, at the bits of the file.
//!
//! A panel is 16 rows of the matrix (columns of the product: lanes of a vector). It runs along `k` in *units*
//! of 32 to 256 weights, the block of the file's format; a unit is
//!
//! ```text
//!   head                  one or two half floats a row: 16 d, then 16 m (or dmin); of MXFP4 a byte a row, of
//!                         Q8_K and Q8_F32 a float, of FP4_F32 two, of Q4_ZERO a half float and a byte, of
//!                         NVFP4 nothing
//!   sub-block 0 … 7       32 weights of each row (one sub-block where the unit is 32):
//!     scales              a byte a row and scale, where the format has such; of grids, bytes of high bits
//!     codes               group g = 0..8: weights 4g..4g+4 of the 16 rows, 64 bytes once unpacked
//! ```
//!
//! A group is what one byte product takes (`Simd::dot`): lane `r` has four neighbouring weights of row `r`.
//! Packed, 4-bit codes of group `g` and `g + 4` share bytes, 2-bit codes of four groups, and single bits (the
//! fifth of Q5, the third of Q3_K) of all eight; so unpacking is a load, a shift and a mask, and never moves
//! a byte. Of the grids (IQ1, IQ2, IQ3; [`grid`]) indices, signs and scales are kept, and a group is looked
//! up.
//!
//! A weight is `scale * code + offset`, codes are unsigned, and `offset` is the format's minimum or
//! `-zero * scale`. The blocks in files: `ggml/src/ggml-common.h` of llama.cpp.

use super::simd::LANES;
use crate::weights::WeightType;
use crate::weights::blocks::f16_to_f32;
use crate::weights::blocks::grid as iq;
use crate::weights::blocks::large::{iq4_xs_scales, k_scales_mins, q3_k_scales, ternary_digit, tq1_0_place};
use crate::weights::blocks::small::{IQ4_LEVELS, MXFP4_LEVELS, half_of_e4m3, half_of_e8m0, nvfp4_scale};

pub(super) mod grid;

use self::grid::Grid;

/// Weights of a sub-block, and groups of four in it.
pub(super) const SUB: usize = 32;
pub(super) const GROUPS: usize = 8;

/// How far ahead packed weights are prefetched, in bytes: more than memory delivers within its latency.
pub(super) const AHEAD: usize = 2048;

/// The levels of a format as unsigned bytes: plus `zero`.
const fn shifted(levels: &[i8; 16], zero: i16) -> [u8; 16] {
    let mut shifted = [0; 16];
    let mut i = 0;
    while i < 16 {
        shifted[i] = (levels[i] as i16 + zero) as u8;
        i += 1;
    }
    shifted
}

const fn greatest(levels: &[u8; 16]) -> usize {
    let (mut greatest, mut i) = (0, 0);
    while i < levels.len() {
        greatest = if levels[i] > greatest { levels[i] } else { greatest };
        i += 1;
    }
    greatest as usize
}

static IQ4: [u8; 16] = shifted(&IQ4_LEVELS, 128);
static MXFP4: [u8; 16] = shifted(&MXFP4_LEVELS, 16);

/// How scales are kept.
#[derive(Clone, Copy, PartialEq)]
pub(super) enum Scales {
    /// A half float for all weights of the unit.
    D,
    /// A float for all weights of the unit.
    Float,
    /// A float of a byte for 16 weights (E4M3 without its sign).
    Small16,
    /// A power of two for 32 weights, as a byte (E8M0).
    Power,
    /// A half float and a minimum for 32 weights.
    DMin,
    /// Times a signed byte for 32 weights.
    Byte,
    /// Times a signed byte for 16 weights.
    Byte16,
    /// Times a byte for 32 weights, and a minimum of the same kind.
    ByteMin,
    /// Times a nibble for 16 weights, and a minimum of the same kind.
    NibbleMin16,
    /// A half float and a zero point, a byte, for 32 weights.
    DZero,
    /// A float for each 16 weights.
    Float16,
    /// Times an odd number for 32 weights: `2 s + 1` of a nibble `s`, and a factor of the format.
    Odd(f32),
    /// The same for 16 weights.
    Odd16(f32),
}

/// A packed layout: constants, from which packing, unpacking and the kernels are generated.
pub(super) trait Layout: 'static {
    const TYPE: WeightType;
    const BITS: usize;
    const SCALES: Scales;
    /// The code of weight zero, where there are no minima.
    const ZERO: u8;
    /// Codes are places in this table.
    const LEVELS: Option<&'static [u8; 16]> = None;
    /// Weights are points of this grid.
    const GRID: Option<Grid> = None;

    /// Few rows have kernels of their own. Those of a grid spend their time looking it up, wherever the codes
    /// go; and each of the rare formats spares the compiler forty kernels.
    const FEW: bool =
        Self::GRID.is_none() && !matches!(Self::TYPE, WeightType::Q8K | WeightType::Tq1_0 | WeightType::Q1_0);
    /// Sub-blocks of a unit.
    const SUBS: usize = Self::TYPE.block_len() / SUB;
    /// What is added to scaled codes is of each group: a minimum, or a zero point times the scale.
    const MIN: bool =
        matches!(Self::SCALES, Scales::DMin | Scales::ByteMin | Scales::NibbleMin16 | Scales::DZero);
    /// Scales serve 16 weights.
    const HALVES: bool = matches!(
        Self::SCALES,
        Scales::Byte16 | Scales::NibbleMin16 | Scales::Small16 | Scales::Odd16(_) | Scales::Float16
    );
    /// Codes may be above 127: products take them less 128, also where there are minima.
    const WIDE: bool = Self::ZERO == 128;
    /// The greatest code.
    const GREATEST: usize = match (Self::LEVELS, &Self::GRID) {
        (Some(levels), _) => greatest(levels),
        (_, Some(grid)) => grid.greatest(),
        // Of a single bit, see `put`.
        _ if Self::BITS == 1 => 2,
        _ => (1 << Self::BITS) - 1,
    };
    /// Groups that share a scale and whose products with bytes of activations, two to a sum, fit in 16-bit
    /// sums.
    const RUN: usize = {
        let (all, fit) = (if Self::HALVES { GROUPS / 2 } else { GROUPS }, 32767 / (2 * 127 * Self::GREATEST));
        match fit {
            0..2 => 1,
            2..4 => 2,
            4..8 => 4,
            _ => all,
        }
    };
    /// Bytes of `d` of a row, and of what the head has besides.
    const D_BYTES: usize = match Self::SCALES {
        Scales::Small16 => 0,
        Scales::Power => 1,
        Scales::Float | Scales::Float16 => 4,
        _ => 2,
    };
    const MORE_BYTES: usize = match Self::SCALES {
        Scales::DMin | Scales::ByteMin | Scales::NibbleMin16 => 2,
        Scales::DZero => 1,
        Scales::Float16 => 4,
        _ => 0,
    };
    /// Bytes of the parts, for sixteen rows.
    const HEAD: usize = LANES * (Self::D_BYTES + Self::MORE_BYTES);
    const SCALE_BYTES: usize = match Self::SCALES {
        Scales::D | Scales::Float | Scales::Float16 | Scales::Power | Scales::DMin | Scales::DZero => 0,
        Scales::Byte => LANES,
        Scales::Odd(_) | Scales::Odd16(_) => match &Self::GRID {
            Some(grid) => LANES * (1 + grid.high_bytes()),
            None => LANES,
        },
        _ => 2 * LANES,
    };
    const SUB_BYTES: usize = Self::SCALE_BYTES + LANES * SUB * Self::BITS / 8;
    const UNIT: usize = Self::HEAD + Self::SUBS * Self::SUB_BYTES;

    /// The block's `d` (`D_BYTES` of it), and its minimum (or `dmin`), zero point or second `d`
    /// (`MORE_BYTES`).
    fn head(block: &[u8]) -> [[u8; 4]; 2];
    /// The small scales (and minima) of sub-block `sub`, as stored: `SCALE_BYTES / 16` bytes.
    fn scales(block: &[u8], sub: usize) -> [u8; 3];
    /// The codes of sub-block `sub`.
    fn words(block: &[u8], sub: usize) -> Words;
}

fn word(bytes: &[u8], at: usize) -> u32 {
    match bytes[at..].first_chunk() {
        Some(word) => u32::from_le_bytes(*word),
        None => unreachable!("a word at {at} of a block of {}", bytes.len()),
    }
}

fn half(bytes: &[u8], at: usize) -> [u8; 2] {
    [bytes[at], bytes[at + 1]]
}

/// Nibbles: the low ones are weights 0 to 15, the high ones 16 to 31.
fn nibbles(bytes: &[u8], at: usize, g: usize) -> u32 {
    word(bytes, at + 4 * (g % 4)) >> (4 * (g / 4)) & 0x0f0f_0f0f
}

/// Four bits, one to a byte: the multiplication puts copies of the bits 7 places apart.
fn bit_per_byte(bits: u32) -> u32 {
    (bits & 15).wrapping_mul(0x0020_4081) & 0x0101_0101
}

/// The bits of 32 weights so that bit `g` of byte `j` is that of weight `4g + j`.
fn groups_of_bits(bits: u32) -> u32 {
    (0..GROUPS).fold(0, |all, g| all | bit_per_byte(bits >> (4 * g)) << g)
}

/// Nibbles of two sixteens: of each the low ones are weights 0 to 7, the high ones 8 to 15.
fn nibbles_16(bytes: &[u8], at: usize, g: usize) -> u32 {
    word(bytes, at + 8 * (g / 4) + 4 * (g % 2)) >> (4 * (g % 4 / 2)) & 0x0f0f_0f0f
}

/// Ternary digits of TQ1_0, as codes of two bits.
fn ternary(bytes: &[u8], sub: usize, g: usize) -> u32 {
    let digit = |j: usize| {
        let (byte, digit) = tq1_0_place(SUB * sub + 4 * g + j);
        ternary_digit(bytes[byte], digit)
    };
    u32::from_le_bytes(std::array::from_fn(digit))
}

/// Nibbles of a superblock: sub-blocks 2j and 2j + 1 share 32 bytes.
fn k_nibbles(bytes: &[u8], at: usize, sub: usize, g: usize) -> u32 {
    word(bytes, at + 32 * (sub / 2) + 4 * g) >> (4 * (sub % 2)) & 0x0f0f_0f0f
}

/// Two bits each: four sub-blocks share 32 bytes.
fn k_pairs(bytes: &[u8], at: usize, sub: usize, g: usize) -> u32 {
    word(bytes, at + 32 * (sub / 4) + 4 * g) >> (2 * (sub % 4)) & 0x0303_0303
}

/// One bit each: all eight sub-blocks share 32 bytes.
fn k_bits(bytes: &[u8], at: usize, sub: usize, g: usize) -> u32 {
    word(bytes, at + 4 * g) >> sub & 0x0101_0101
}

macro_rules! layout {
    ($name:ident, $bits:literal, $scales:ident, zero $zero:literal $(, levels $levels:ident)?;
     |$block:ident, $sub:ident, $g:ident| $head:expr, $small:expr, $codes:expr) => {
        pub(super) struct $name;
        #[allow(unused_variables)]
        impl Layout for $name {
            const TYPE: WeightType = WeightType::$name;
            const BITS: usize = $bits;
            const SCALES: Scales = Scales::$scales;
            const ZERO: u8 = $zero;
            $(const LEVELS: Option<&'static [u8; 16]> = Some(&$levels);)?
            #[inline(always)]
            fn head($block: &[u8]) -> [[u8; 4]; 2] {
                let (d, more) = $head;
                [first_bytes(&d), first_bytes(&more)]
            }
            #[inline(always)]
            fn scales($block: &[u8], $sub: usize) -> [u8; 3] {
                first_bytes(&$small)
            }
            #[inline(always)]
            fn words($block: &[u8], $sub: usize) -> Words {
                let mut words = Words::default();
                for $g in 0..GROUPS {
                    put::<Self>(&mut words, $g, $codes);
                }
                words
            }
        }
    };
}

/// As many bytes as there are, and zeros.
#[inline(always)]
fn first_bytes<const N: usize>(bytes: &[u8]) -> [u8; N] {
    let mut first = [0; N];
    first[..bytes.len()].copy_from_slice(bytes);
    first
}

layout!(Q4_0, 4, D, zero 8; |b, s, g| (half(b, 0), [0; 2]), [], nibbles(b, 2, g));
layout!(Q4_1, 4, DMin, zero 0; |b, s, g| (half(b, 0), half(b, 2)), [], nibbles(b, 4, g));
layout!(Q5_0, 5, D, zero 16; |b, s, g| (half(b, 0), [0; 2]), [],
    nibbles(b, 6, g) | bit_per_byte(word(b, 2) >> (4 * g)) << 4);
layout!(Q5_1, 5, DMin, zero 0; |b, s, g| (half(b, 0), half(b, 2)), [],
    nibbles(b, 8, g) | bit_per_byte(word(b, 4) >> (4 * g)) << 4);
layout!(Q8_0, 8, D, zero 128; |b, s, g| (half(b, 0), [0; 2]), [], word(b, 2 + 4 * g) ^ 0x8080_8080);
layout!(Iq4Nl, 4, D, zero 128, levels IQ4; |b, s, g| (half(b, 0), [0; 2]), [], nibbles(b, 2, g));
layout!(Mxfp4, 4, Power, zero 16, levels MXFP4; |b, s, g| ([b[0]], [0; 2]), [], nibbles(b, 1, g));
layout!(Q2K, 2, NibbleMin16, zero 0; |b, s, g| (half(b, 80), half(b, 82)), [b[2 * s], b[2 * s + 1]],
    k_pairs(b, 16, s, g));
layout!(Q3K, 3, Byte16, zero 4; |b, s, g| (half(b, 108), [0; 2]),
    {
        let scales = q3_k_scales(b[96..].first_chunk().unwrap_or(&[0; 12]));
        [scales[2 * s] as u8, scales[2 * s + 1] as u8]
    },
    k_pairs(b, 32, s, g) | k_bits(b, 0, s, g) << 2);
layout!(Q4K, 4, ByteMin, zero 0; |b, s, g| (half(b, 0), half(b, 2)),
    {
        let (scales, mins) = k_scales_mins(b[4..].first_chunk().unwrap_or(&[0; 12]));
        [scales[s], mins[s]]
    },
    k_nibbles(b, 16, s, g));
layout!(Q5K, 5, ByteMin, zero 0; |b, s, g| (half(b, 0), half(b, 2)),
    {
        let (scales, mins) = k_scales_mins(b[4..].first_chunk().unwrap_or(&[0; 12]));
        [scales[s], mins[s]]
    },
    k_nibbles(b, 48, s, g) | k_bits(b, 16, s, g) << 4);
layout!(Q6K, 6, Byte16, zero 32; |b, s, g| (half(b, 208), [0; 2]), [b[192 + 2 * s], b[193 + 2 * s]],
{
    let low = word(b, 64 * (s / 4) + 32 * (s % 2) + 4 * g) >> (4 * (s % 4 / 2)) & 0x0f0f_0f0f;
    low | k_pairs(b, 128, s, g) << 4
});
layout!(Iq4Xs, 4, Byte, zero 128, levels IQ4; |b, s, g| (half(b, 0), [0; 2]),
    {
        let (high, low) = (half(b, 2), b[4..].first_chunk().unwrap_or(&[0; 4]));
        [iq4_xs_scales(&high, low)[s] as u8]
    },
    nibbles(b, 8 + 16 * s, g));

layout!(Q8K, 8, Float, zero 128; |b, s, g| (word(b, 0).to_le_bytes(), [0; 2]), [],
    word(b, 4 + 32 * s + 4 * g) ^ 0x8080_8080);
layout!(Tq1_0, 2, D, zero 1; |b, s, g| (half(b, 52), [0; 2]), [], ternary(b, s, g));
layout!(Tq2_0, 2, D, zero 1; |b, s, g| (half(b, 64), [0; 2]), [], k_pairs(b, 0, s, g));
layout!(Nvfp4, 4, Small16, zero 16, levels MXFP4; |b, s, g| ([], [0; 2]),
    [nvfp4_scale(b[2 * s]), nvfp4_scale(b[2 * s + 1])],
    nibbles_16(b, 4 + 16 * s, g));
// A set bit is 2, less the zero 1.
layout!(Q1_0, 1, D, zero 1; |b, s, g| (half(b, 0), [0; 2]), [],
    bit_per_byte(word(b, 2 + 4 * s) >> (4 * g)) << 1);

macro_rules! grid_layout {
    ($name:ident, $bits:literal, $scales:expr, zero $zero:expr, $grid:expr; $d:expr, $sub_block:path) => {
        pub(super) struct $name;
        impl Layout for $name {
            const TYPE: WeightType = WeightType::$name;
            const BITS: usize = $bits;
            const SCALES: Scales = $scales;
            const ZERO: u8 = $zero;
            const GRID: Option<Grid> = Some($grid);
            fn head(block: &[u8]) -> [[u8; 4]; 2] {
                [first_bytes(&$d(block)), [0; 4]]
            }
            fn scales(block: &[u8], sub: usize) -> [u8; 3] {
                grid::small(&$grid, &$sub_block(block, sub))
            }
            fn words(block: &[u8], sub: usize) -> Words {
                grid::words(&$grid, &$sub_block(block, sub))
            }
        }
    };
}

fn first_half(block: &[u8]) -> [u8; 2] {
    half(block, 0)
}

grid_layout!(Iq2Xxs, 2, Scales::Odd(iq::IQ2_FACTOR), zero 128, Grid::eights(&iq::IQ2_XXS_POINTS, 0);
    first_half, iq::iq2_xxs_sub);
grid_layout!(Iq2Xs, 2, Scales::Odd16(iq::IQ2_FACTOR), zero 128, Grid::eights(&iq::IQ2_XS_POINTS, 2);
    first_half, iq::iq2_xs_sub);
grid_layout!(Iq2S, 2, Scales::Odd16(iq::IQ2_FACTOR), zero 128, Grid::eights(&iq::IQ2_S_POINTS, 2);
    first_half, iq::iq2_s_sub);
grid_layout!(Iq3Xxs, 3, Scales::Odd(iq::IQ3_XXS_FACTOR), zero 128, Grid::fours(&iq::IQ3_XXS_POINTS, 0);
    first_half, iq::iq3_xxs_sub);
grid_layout!(Iq3S, 3, Scales::Odd(iq::IQ3_S_FACTOR), zero 128, Grid::fours(&iq::IQ3_S_POINTS, 1);
    first_half, iq::iq3_s_sub);
grid_layout!(Iq1S, 1, Scales::Odd(iq::IQ1_FACTOR), zero iq::IQ1_ZERO, Grid::shifted(&iq::IQ1_POINTS);
    first_half, iq::iq1_s_sub);
grid_layout!(Iq1M, 1, Scales::Odd16(iq::IQ1_FACTOR), zero iq::IQ1_ZERO, Grid::shifted(&iq::IQ1_POINTS);
    iq::iq1_m_d, iq::iq1_m_sub);

// Of no file; what is multiplied less 128 has a minimum all the same.
layout!(Q8Min, 8, DMin, zero 128; |b, s, g| (half(b, 0), half(b, 2)), [], word(b, 4 + 4 * g));
layout!(Q4Zero, 4, DZero, zero 0; |b, s, g| (half(b, 0), [b[2]]), [], nibbles(b, 3, g));
layout!(Q8Wide, 8, Float, zero 128; |b, s, g| (word(b, 0).to_le_bytes(), []), [],
    word(b, 4 + 4 * g) ^ 0x8080_8080);
layout!(Fp4Wide, 4, Float16, zero 16, levels MXFP4; |b, s, g|
    (word(b, 0).to_le_bytes(), word(b, 4).to_le_bytes()), [], nibbles(b, 8, g));

/// The codes of one row in a sub-block, in as many words as its bits fill; those behind are zero.
pub(super) type Words = [u32; GROUPS];

/// Puts the codes of group `g` among those of their row, which begin as zeros.
#[inline(always)]
pub(super) fn put<Q: Layout>(words: &mut Words, g: usize, value: u32) {
    match Q::BITS {
        // A bit is worth 2.
        1 => words[0] |= (value >> 1 & 0x0101_0101) << g,
        2 | 3 => words[g / 4] |= (value & 0x0303_0303) << (2 * (g % 4)),
        8 => words[g] |= value,
        _ => words[g % 4] |= (value & 0x0f0f_0f0f) << (4 * (g / 4)),
    }
    match Q::BITS {
        3 => words[2] |= (value >> 2 & 0x0101_0101) << g,
        5 => words[4] |= (value >> 4 & 0x0101_0101) << g,
        6 => words[4 + g / 4] |= (value >> 4 & 0x0303_0303) << (2 * (g % 4)),
        _ => {}
    }
}

/// Writes the words of row `r` into the codes of a sub-block, where those of all rows lie side by side.
#[inline(always)]
pub(super) fn store(codes: &mut [u8], r: usize, words: &Words) {
    for (codes, word) in codes.chunks_exact_mut(4 * LANES).zip(words) {
        codes[4 * r..4 * r + 4].copy_from_slice(&word.to_le_bytes());
    }
}

/// The inverse of [`put`] and [`store`], of a whole sub-block: the codes of row `r` and group `g`, or their
/// places among the levels.
#[inline(always)]
pub(super) fn get<Q: Layout>(sub: &[u8], r: usize, g: usize) -> u32 {
    if let Some(grid) = &Q::GRID {
        return grid::codes(grid, sub, Q::SCALE_BYTES, r, g);
    }
    let at = |at: usize| word(sub, Q::SCALE_BYTES + at + 4 * r);
    let low = match Q::BITS {
        1 => (at(0) >> g & 0x0101_0101) << 1,
        2 | 3 => at(64 * (g / 4)) >> (2 * (g % 4)) & 0x0303_0303,
        8 => at(64 * g),
        _ => at(64 * (g % 4)) >> (4 * (g / 4)) & 0x0f0f_0f0f,
    };
    low | match Q::BITS {
        3 => (at(128) >> g & 0x0101_0101) << 2,
        5 => (at(256) >> g & 0x0101_0101) << 4,
        6 => (at(256 + 64 * (g / 4)) >> (2 * (g % 4)) & 0x0303_0303) << 4,
        _ => 0,
    }
}

/// The 32 weights of row `r` in a sub-block as floats, computed as [`blocks`](crate::weights::blocks)
/// computes them.
pub(super) fn row_of_sub<Q: Layout>(unit: &[u8], sub: usize, r: usize, out: &mut [f32; SUB]) {
    let sub = &unit[Q::HEAD + sub * Q::SUB_BYTES..][..Q::SUB_BYTES];
    let scales = &sub[..Q::SCALE_BYTES];
    let d = match Q::SCALES {
        Scales::Power => half_of_e8m0(unit[r]),
        Scales::Float | Scales::Float16 => f32::from_bits(word(unit, 4 * r)),
        Scales::Small16 => 0.0,
        _ => f16_to_f32(half(unit, 2 * r)),
    };
    let m = match Q::MORE_BYTES {
        2 => f16_to_f32(half(unit, 32 + 2 * r)),
        4 => f32::from_bits(word(unit, 4 * LANES + 4 * r)),
        _ => 0.0,
    };
    let zero = match Q::SCALES {
        Scales::DZero => unit[32 + r],
        _ if Q::MIN => 0,
        _ => Q::ZERO,
    };
    for g in 0..GROUPS {
        // Both nibbles of the odd scales are in one byte.
        let odd = matches!(Q::SCALES, Scales::Odd(_) | Scales::Odd16(_));
        let half = if Q::HALVES { g / 4 } else { 0 };
        let byte = scales.get(if odd { r } else { LANES * half + r }).copied().unwrap_or(0);
        let (scale, min) = match Q::SCALES {
            Scales::D | Scales::Float | Scales::Power | Scales::DMin | Scales::DZero => (d, m),
            Scales::Float16 => (if half == 0 { d } else { m }, 0.0),
            Scales::Small16 => (half_of_e4m3(byte), 0.0),
            Scales::Odd(factor) | Scales::Odd16(factor) => {
                (d * (2.0 * f32::from(byte >> (4 * half) & 15) + 1.0) * factor, 0.0)
            }
            Scales::Byte | Scales::Byte16 => (d * f32::from(byte as i8), 0.0),
            Scales::ByteMin => (d * f32::from(byte), -(m * f32::from(scales[LANES + r]))),
            Scales::NibbleMin16 => (d * f32::from(byte & 15), -(m * f32::from(byte >> 4))),
        };
        let codes = get::<Q>(sub, r, g).to_le_bytes();
        for (out, code) in out[4 * g..4 * g + 4].iter_mut().zip(codes) {
            let code = Q::LEVELS.map_or(code, |levels| levels[usize::from(code & 15)]);
            let value = scale * (i32::from(code) - i32::from(zero)) as f32;
            *out = if Q::MIN && Q::SCALES != Scales::DZero { value + min } else { value };
        }
    }
}

/// Runs the expression for the packed layout of a weight type; the other one for plain floats.
macro_rules! with_layout {
    ($dtype:expr, $q:ident => $call:expr, else $dense:expr) => {{
        use $crate::kernels::layouts;
        use $crate::weights::WeightType as Type;
        macro_rules! call {
            ($layout:ident) => {{
                type $q = layouts::$layout;
                $call
            }};
        }
        match $dtype {
            Type::F32 | Type::F16 | Type::BF16 | Type::Fp8 | Type::Nf4 | Type::BnbFp4 => $dense,
            Type::Q4_0 => call!(Q4_0),
            Type::Q4_1 => call!(Q4_1),
            Type::Q5_0 => call!(Q5_0),
            Type::Q5_1 => call!(Q5_1),
            Type::Q8_0 => call!(Q8_0),
            Type::Q2K => call!(Q2K),
            Type::Q3K => call!(Q3K),
            Type::Q4K => call!(Q4K),
            Type::Q5K => call!(Q5K),
            Type::Q6K => call!(Q6K),
            Type::Iq4Nl => call!(Iq4Nl),
            Type::Iq4Xs => call!(Iq4Xs),
            Type::Mxfp4 => call!(Mxfp4),
            Type::Q8K => call!(Q8K),
            Type::Iq2Xxs => call!(Iq2Xxs),
            Type::Iq2Xs => call!(Iq2Xs),
            Type::Iq2S => call!(Iq2S),
            Type::Iq3Xxs => call!(Iq3Xxs),
            Type::Iq3S => call!(Iq3S),
            Type::Iq1S => call!(Iq1S),
            Type::Iq1M => call!(Iq1M),
            Type::Tq1_0 => call!(Tq1_0),
            Type::Tq2_0 => call!(Tq2_0),
            Type::Nvfp4 => call!(Nvfp4),
            Type::Q1_0 => call!(Q1_0),
            Type::Q8Min => call!(Q8Min),
            Type::Q4Zero => call!(Q4Zero),
            Type::Q8Wide => call!(Q8Wide),
            Type::Fp4Wide => call!(Fp4Wide),
        }
    }};
}
pub(super) use with_layout;

/// What a kernel for unpacked codes has to know of a layout.
pub(super) trait Kind: 'static {
    const HALVES: bool;
    const MIN: bool;
    const WIDE: bool;
    const RUN: usize;
}

pub(super) struct Kinds<const HALVES: bool, const MIN: bool, const WIDE: bool, const RUN: usize>;

impl<const HALVES: bool, const MIN: bool, const WIDE: bool, const RUN: usize> Kind
    for Kinds<HALVES, MIN, WIDE, RUN>
{
    const HALVES: bool = HALVES;
    const MIN: bool = MIN;
    const WIDE: bool = WIDE;
    const RUN: usize = RUN;
}

/// Runs the expression for the kind of a layout: there are ten of them, which spares the compiler as many
/// copies and more.
macro_rules! with_kind {
    ($q:ident, $kind:ident => $call:expr) => {{
        macro_rules! call {
            ($halves:literal, $min:literal, $wide:literal, $run:literal) => {{
                type $kind = $crate::kernels::layouts::Kinds<$halves, $min, $wide, $run>;
                $call
            }};
        }
        match ($q::HALVES, $q::MIN, $q::RUN) {
            (false, false, 8) => call!(false, false, false, 8),
            (false, false, 4) => call!(false, false, false, 4),
            (false, false, _) => call!(false, false, true, 1),
            (false, true, 8) => call!(false, true, false, 8),
            (false, true, 4) => call!(false, true, false, 4),
            (false, true, _) => call!(false, true, true, 1),
            (true, false, 4) => call!(true, false, false, 4),
            (true, false, 1) => call!(true, false, true, 1),
            (true, false, _) => call!(true, false, false, 2),
            (true, true, _) => call!(true, true, false, 4),
        }
    }};
}
pub(super) use with_kind;

#[cfg(test)]
mod tests {
    use super::*;

    fn quantized() -> impl Iterator<Item = WeightType> {
        WeightType::ALL.into_iter().filter(|ty| ty.has_integer_codes())
    }

    /// Bytes without a pattern.
    fn noise(len: usize, seed: u32) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 11) as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    #[test]
    fn units_have_the_bits_of_the_file_and_little_more() {
        for ty in quantized() {
            let size: fn() -> (usize, usize) =
                with_layout!(ty, Q => || (Q::UNIT, Q::SUBS), else unreachable!());
            let (unit, subs) = size();
            let file = LANES * ty.block_bytes();
            assert_eq!(subs * SUB, ty.block_len(), "{ty}");
            // Signs that follow from others, and scales of half a byte, take what they need; sums of Q8_K go.
            let most = match ty {
                WeightType::Tq1_0 | WeightType::Iq1S => file / 4,
                _ => (file / 8).max(4 * LANES),
            };
            assert!(unit <= file + most, "{ty}: {unit} bytes for {file}");
            assert!(unit >= file || ty == WeightType::Q8K, "{ty}: {unit} bytes for {file}");
        }
    }

    #[test]
    fn codes_are_got_as_they_were_put_and_fill_their_place() {
        fn check<Q: Layout>() {
            if Q::GRID.is_some() {
                return;
            }
            let mask = if Q::BITS == 1 { 2 } else { (1u16 << Q::BITS.min(8)).wrapping_sub(1) as u8 };
            let mask = u32::from_le_bytes([mask; 4]);
            let words = noise(4 * LANES * GROUPS, 7);
            let value = |r: usize, g: usize| word(&words, 4 * (r * GROUPS + g)) & mask;
            let mut sub = vec![0; Q::SUB_BYTES];
            let codes = &mut sub[Q::SCALE_BYTES..];
            let all = || (0..LANES).flat_map(|r| (0..GROUPS).map(move |g| (r, g)));
            let fill = |codes: &mut [u8], value: &dyn Fn(usize, usize) -> u32| {
                for r in 0..LANES {
                    let mut words = Words::default();
                    (0..GROUPS).for_each(|g| put::<Q>(&mut words, g, value(r, g)));
                    store(codes, r, &words);
                }
            };
            fill(codes, &value);
            for (r, g) in all() {
                assert_eq!(get::<Q>(&sub, r, g), value(r, g), "{}: row {r}, group {g}", Q::TYPE);
            }
            // No bit is wasted: were one, the panel would be longer than it must be.
            let codes = &mut sub[Q::SCALE_BYTES..];
            fill(codes, &|_, _| mask);
            assert!(codes.iter().all(|&byte| byte == 0xff), "{}", Q::TYPE);
        }
        quantized().for_each(|ty| with_layout!(ty, Q => check::<Q>(), else unreachable!()));
    }
}
