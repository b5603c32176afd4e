//! Superblocks of 256 weights that are points of a grid: IQ2 and IQ3, where a point has signs beside it, and
//! IQ1, where all of a point is shifted by an eighth.
//!
//! Each format finds its index, signs and scales elsewhere in the block; [`SubBlock`] is what they all come
//! to for 32 weights. Which points are in a grid was chosen by the authors of the formats, so they are data
//! (`grids.bin`, made by `scripts/grids.py` from the tables of the `gguf` package).

use super::{f16_to_f32, part};

static PACKED: [u8; 9216] = *include_bytes!("grids.bin");

/// Four weights, as magnitudes. A point of eight weights is two of these, one after the other.
pub type Points<const N: usize> = [[u8; 4]; N];

/// The points that begin `first` points behind the start of the file, each coordinate `bits` bits, which
/// choose from `levels`.
const fn points<const N: usize>(first: usize, bits: usize, levels: [u8; 8]) -> Points<N> {
    let (mut points, mut i) = ([[0; 4]; N], 0);
    let fours = if bits == 2 { 2 } else { 1 };
    while i < N {
        let at = 2 * (first + i / fours);
        let point = u16::from_le_bytes([PACKED[at], PACKED[at + 1]]) as usize >> (8 * (i % fours));
        let mut j = 0;
        while j < 4 {
            points[i][j] = levels[point >> (bits * j) & ((1 << bits) - 1)];
            j += 1;
        }
        i += 1;
    }
    points
}

const IQ2: [u8; 8] = [8, 25, 43, 0, 0, 0, 0, 0];
/// Eight times -1, 0 and 1, plus 16 and the eighth by which a point is shifted up; see [`IQ1_ZERO`].
const IQ1: [u8; 8] = [9, 17, 25, 0, 0, 0, 0, 0];
/// What zero is among the points of IQ1.
pub const IQ1_ZERO: u8 = 16;
/// What is taken from the points of IQ1 that are shifted down instead.
pub const IQ1_DOWN: u8 = 2;

pub static IQ2_XXS_POINTS: Points<512> = points(0, 2, IQ2);
pub static IQ2_XS_POINTS: Points<1024> = points(256, 2, IQ2);
pub static IQ2_S_POINTS: Points<2048> = points(768, 2, IQ2);
pub static IQ1_POINTS: Points<4096> = points(1792, 2, IQ1);
pub static IQ3_XXS_POINTS: Points<256> = points(3840, 3, [4, 12, 20, 28, 36, 44, 52, 62]);
pub static IQ3_S_POINTS: Points<512> = points(4096, 3, [1, 3, 5, 7, 9, 11, 13, 15]);

/// 32 weights. A weight is `d (2 s + 1) factor` times its point, with `s` of its half.
#[derive(Clone, Copy)]
pub struct SubBlock {
    /// Indices into the grid: of each eight weights (IQ2, IQ1; the last four are not there) or of each four.
    pub indices: [u16; 8],
    /// Bit `i`: weight `i` is negative (IQ2, IQ3).
    pub signs: u32,
    /// Bit `i`: eight weights from `8 i` on are shifted down (IQ1).
    pub down: u8,
    /// `s` of the first sixteen weights and of the others, below 16.
    pub scales: [u8; 2],
}

fn u16_at(block: &[u8], at: usize) -> u16 {
    u16::from_le_bytes(*part(block, at))
}

fn u32_at(block: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(*part(block, at))
}

/// Of eight signs seven are stored: an even number of them is set.
fn eight_signs(seven: u32) -> u32 {
    let seven = seven & 127;
    seven | (seven.count_ones() & 1) << 7
}

/// Four times seven signs, the first in the lowest bits.
fn signs_of_sevens(sevens: u32) -> u32 {
    (0..4).map(|i| eight_signs(sevens >> (7 * i)) << (8 * i)).fold(0, |all, eight| all | eight)
}

fn indices<const N: usize>(index: impl Fn(usize) -> u16) -> [u16; 8] {
    std::array::from_fn(|i| if i < N { index(i) } else { 0 })
}

fn nibbles(byte: u8) -> [u8; 2] {
    [byte & 15, byte >> 4]
}

/// `f16 d`, then for 32 weights `u8 index[4], u32`: four times seven signs and a scale.
pub fn iq2_xxs_sub(block: &[u8], sub: usize) -> SubBlock {
    let (at, high) = (2 + 8 * sub, u32_at(block, 6 + 8 * sub));
    SubBlock {
        indices: indices::<4>(|i| u16::from(block[at + i])),
        signs: signs_of_sevens(high),
        down: 0,
        scales: [(high >> 28) as u8; 2],
    }
}

/// `f16 d, u16[32]`: nine bits of index and seven signs; `u8 scales[8]`, a nibble for 16.
pub fn iq2_xs_sub(block: &[u8], sub: usize) -> SubBlock {
    let of = |i: usize| u16_at(block, 2 + 8 * sub + 2 * i);
    SubBlock {
        indices: indices::<4>(|i| of(i) & 511),
        signs: (0..4).fold(0, |all, i| all | eight_signs(u32::from(of(i) >> 9)) << (8 * i)),
        down: 0,
        scales: nibbles(block[66 + sub]),
    }
}

/// `f16 d, u8 index[32], u8 signs[32], u8 high bits[8], u8 scales[8]`: two high bits of each index, a nibble
/// of scale for 16.
pub fn iq2_s_sub(block: &[u8], sub: usize) -> SubBlock {
    let high = u16::from(block[66 + sub]);
    SubBlock {
        indices: indices::<4>(|i| u16::from(block[2 + 4 * sub + i]) | (high >> (2 * i) & 3) << 8),
        signs: u32_at(block, 34 + 4 * sub),
        down: 0,
        scales: nibbles(block[74 + sub]),
    }
}

/// `f16 d, u8 index[64], u32[8]`: four times seven signs and a scale.
pub fn iq3_xxs_sub(block: &[u8], sub: usize) -> SubBlock {
    let high = u32_at(block, 66 + 4 * sub);
    SubBlock {
        indices: indices::<8>(|i| u16::from(block[2 + 8 * sub + i])),
        signs: signs_of_sevens(high),
        down: 0,
        scales: [(high >> 28) as u8; 2],
    }
}

/// `f16 d, u8 index[64], u8 high bits[8], u8 signs[32], u8 scales[4]`: a high bit of each index, a nibble of
/// scale for 32.
pub fn iq3_s_sub(block: &[u8], sub: usize) -> SubBlock {
    let high = u16::from(block[66 + sub]);
    SubBlock {
        indices: indices::<8>(|i| u16::from(block[2 + 8 * sub + i]) | (high >> i & 1) << 8),
        signs: u32_at(block, 74 + 4 * sub),
        down: 0,
        scales: [nibbles(block[106 + sub / 2])[sub % 2]; 2],
    }
}

/// `f16 d, u8 index[32], u16[8]`: three high bits of each index, three bits of scale, and whether points are
/// shifted down.
pub fn iq1_s_sub(block: &[u8], sub: usize) -> SubBlock {
    let high = u16_at(block, 34 + 2 * sub);
    SubBlock {
        indices: indices::<4>(|i| u16::from(block[2 + 4 * sub + i]) | (high >> (3 * i) & 7) << 8),
        signs: 0,
        down: if high >> 15 == 1 { 15 } else { 0 },
        scales: [(high >> 12 & 7) as u8; 2],
    }
}

/// `u8 index[32], u8 high[16], u16 scales[4]`: three high bits of each index and whether its point is shifted
/// down; three bits of scale for 16, and on top of each u16 four bits of the superblock's scale.
pub fn iq1_m_sub(block: &[u8], sub: usize) -> SubBlock {
    let high = |i: usize| u16::from(block[32 + 2 * sub + i / 2]) >> (4 * (i % 2)) & 15;
    let scales = u16_at(block, 48 + 2 * (sub / 2)) >> (6 * (sub % 2));
    SubBlock {
        indices: indices::<4>(|i| u16::from(block[4 * sub + i]) | (high(i) & 7) << 8),
        signs: 0,
        down: (0..4).fold(0, |all, i| all | ((high(i) >> 3) as u8) << i),
        scales: [(scales & 7) as u8, (scales >> 3 & 7) as u8],
    }
}

/// The half float of an IQ1_M superblock.
pub fn iq1_m_d(block: &[u8]) -> [u8; 2] {
    let top = |i: usize| u16_at(block, 48 + 2 * i) >> 12;
    (top(0) | top(1) << 4 | top(2) << 8 | top(3) << 12).to_le_bytes()
}

/// What a point's coordinates are multiplied by, beside the scales: they are kept as whole numbers.
pub const IQ2_FACTOR: f32 = 0.125;
pub const IQ3_XXS_FACTOR: f32 = 0.25;
pub const IQ3_S_FACTOR: f32 = 1.0;
pub const IQ1_FACTOR: f32 = 0.125;

/// The weights of a superblock: `d`, what its parts are, and the grid, of points of `fours` times four.
fn weights(
    d: f32,
    factor: f32,
    sub_block: impl Fn(usize) -> SubBlock,
    (points, fours): (&[[u8; 4]], usize),
    zero: u8,
    out: &mut [f32; 256],
) {
    for (sub, out) in out.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let of = sub_block(sub);
        for (g, out) in out.as_chunks_mut::<4>().0.iter_mut().enumerate() {
            let scale = d * (2.0 * f32::from(of.scales[g / 4]) + 1.0) * factor;
            let point = points[usize::from(of.indices[g / fours]) * fours + g % fours];
            let down = if of.down >> (g / 2) & 1 == 1 { IQ1_DOWN } else { 0 };
            for (j, (out, level)) in out.iter_mut().zip(point).enumerate() {
                let level = (i32::from(level) - i32::from(zero) - i32::from(down)) as f32;
                *out = scale * if of.signs >> (4 * g + j) & 1 == 1 { -level } else { level };
            }
        }
    }
}

/// See [`iq2_xxs_sub`].
pub fn iq2_xxs(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = f16_to_f32(*part(block, 0));
    weights(d, IQ2_FACTOR, |sub| iq2_xxs_sub(block, sub), (&IQ2_XXS_POINTS, 2), 0, out);
}

/// See [`iq2_xs_sub`].
pub fn iq2_xs(block: &[u8; 74], out: &mut [f32; 256]) {
    let d = f16_to_f32(*part(block, 0));
    weights(d, IQ2_FACTOR, |sub| iq2_xs_sub(block, sub), (&IQ2_XS_POINTS, 2), 0, out);
}

/// See [`iq2_s_sub`].
pub fn iq2_s(block: &[u8; 82], out: &mut [f32; 256]) {
    let d = f16_to_f32(*part(block, 0));
    weights(d, IQ2_FACTOR, |sub| iq2_s_sub(block, sub), (&IQ2_S_POINTS, 2), 0, out);
}

/// See [`iq3_xxs_sub`].
pub fn iq3_xxs(block: &[u8; 98], out: &mut [f32; 256]) {
    let d = f16_to_f32(*part(block, 0));
    weights(d, IQ3_XXS_FACTOR, |sub| iq3_xxs_sub(block, sub), (&IQ3_XXS_POINTS, 1), 0, out);
}

/// See [`iq3_s_sub`].
pub fn iq3_s(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_to_f32(*part(block, 0));
    weights(d, IQ3_S_FACTOR, |sub| iq3_s_sub(block, sub), (&IQ3_S_POINTS, 1), 0, out);
}

/// See [`iq1_s_sub`].
pub fn iq1_s(block: &[u8; 50], out: &mut [f32; 256]) {
    let d = f16_to_f32(*part(block, 0));
    weights(d, IQ1_FACTOR, |sub| iq1_s_sub(block, sub), (&IQ1_POINTS, 2), IQ1_ZERO, out);
}

/// See [`iq1_m_sub`].
pub fn iq1_m(block: &[u8; 56], out: &mut [f32; 256]) {
    let d = f16_to_f32(iq1_m_d(block));
    weights(d, IQ1_FACTOR, |sub| iq1_m_sub(block, sub), (&IQ1_POINTS, 2), IQ1_ZERO, out);
}
