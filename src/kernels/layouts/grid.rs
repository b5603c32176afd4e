//! Panels of grid formats (IQ1, IQ2, IQ3): indices, signs and scales, and the codes that are looked up.
//!
//! A sub-block's bytes a row are, each of all sixteen rows side by side,
//!
//! ```text
//!   1         scales of its halves, a nibble each
//!   0, 1, 2   high bits of the indices, from the lowest: as many bits of each
//!   4, 8      indices, a byte of each eight (or four) weights
//!   4, 0      signs: bit g of byte j is that of weight 4g + j
//! ```

use super::{LANES, Words, word};
use crate::weights::blocks::grid::{IQ1_DOWN, SubBlock};

/// A grid, and how its indices are kept.
pub(in crate::kernels) struct Grid {
    pub(in crate::kernels) points: &'static [[u8; 4]],
    /// Fours of weights that share an index.
    pub(in crate::kernels) fours: usize,
    /// High bits of an index, beside its byte: 0, 1, 2, or 4, of which the last one says that the point is
    /// shifted down.
    pub(in crate::kernels) high: usize,
    /// Points are magnitudes, and their signs are kept; else codes as they are.
    pub(in crate::kernels) signs: bool,
}

impl Grid {
    pub(super) const fn eights(points: &'static [[u8; 4]], high: usize) -> Grid {
        Grid { points, fours: 2, high, signs: true }
    }

    pub(super) const fn fours(points: &'static [[u8; 4]], high: usize) -> Grid {
        Grid { points, fours: 1, high, signs: true }
    }

    pub(super) const fn shifted(points: &'static [[u8; 4]]) -> Grid {
        Grid { points, fours: 2, high: 4, signs: false }
    }

    /// Bytes of high bits of a row.
    pub(super) const fn high_bytes(&self) -> usize {
        self.high * (8 / self.fours) / 8
    }

    /// Words of indices of a row.
    pub(in crate::kernels) const fn index_words(&self) -> usize {
        2 / self.fours
    }

    /// The greatest code: with signs, 128 and the greatest magnitude.
    pub(super) const fn greatest(&self) -> usize {
        let (mut greatest, mut i) = (0, 0);
        while i < 4 * self.points.len() {
            let level = self.points[i / 4][i % 4];
            greatest = if level > greatest { level } else { greatest };
            i += 1;
        }
        greatest as usize + if self.signs { 128 } else { 0 }
    }
}

/// The bytes before the indices.
pub(super) fn small(grid: &Grid, of: &SubBlock) -> [u8; 3] {
    let high = |i: usize| match grid.high {
        4 => of.indices[i] >> 8 | u16::from(of.down >> i & 1) << 3,
        _ => of.indices[i] >> 8,
    };
    let count = if grid.high > 0 { 8 / grid.fours } else { 0 };
    let bits = (0..count).fold(0, |bits, i| bits | high(i) << (grid.high * i));
    let [low, high] = bits.to_le_bytes();
    [of.scales[0] | of.scales[1] << 4, low, high]
}

/// Indices and signs.
pub(super) fn words(grid: &Grid, of: &SubBlock) -> Words {
    let mut words = Words::default();
    for (i, index) in of.indices.iter().enumerate().take(8 / grid.fours) {
        words[i / 4] |= u32::from(index & 0xff) << (8 * (i % 4));
    }
    if grid.signs {
        words[grid.index_words()] = super::groups_of_bits(of.signs);
    }
    words
}

/// The codes of row `r` and group `g`. All tiers look them up the same way (`unpack`).
pub(super) fn codes(grid: &Grid, sub: &[u8], scale_bytes: usize, r: usize, g: usize) -> u32 {
    let at = g / grid.fours;
    let low = word(sub, scale_bytes + 64 * (at / 4) + 4 * r) >> (8 * (at % 4)) & 0xff;
    let high = match grid.high {
        0 => 0,
        bits => u32::from(sub[LANES * (1 + at * bits / 8) + r]) >> (at * bits % 8) & ((1 << bits) - 1),
    };
    let place = (low | (high & 7) << 8) as usize * grid.fours + g % grid.fours;
    let point = grid.points[place & (grid.points.len() - 1)];
    if grid.signs {
        let signs = word(sub, scale_bytes + 64 * grid.index_words() + 4 * r) >> g & 0x0101_0101;
        let code = |(level, minus): (u8, u8)| if minus == 1 { 128 - level } else { 128 + level };
        let signs = signs.to_le_bytes();
        return u32::from_le_bytes(std::array::from_fn(|j| code((point[j], signs[j]))));
    }
    let down = if high & 8 == 0 { 0 } else { IQ1_DOWN };
    u32::from_le_bytes(point.map(|code| code - down))
}
