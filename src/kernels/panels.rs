//! What blocked products work on: unpacked panels, partial sums, and the scratch of a thread that holds both.
//!
//! `k` is cut into blocks, so that the unpacked panels of a block fit in the L1 data cache together with the
//! rows that pass by; partial sums wait in L2 for the next block.

use std::ops::Range;

use super::quantize::Quantized;
use super::simd::LANES;

/// Weights of a column in a K-block, at most: four panels of it, codes and scales, are 50 KiB at most. Half
/// of that would leave more of L1 to the rows, and is 5 % slower.
pub(super) const K_BLOCK: usize = 640;
/// Panels that are worked on together.
pub(super) const PANELS: usize = 4;
/// Rows of a task, at most.
pub(super) const ROWS: usize = 192;
/// Rows of a tile of AMX.
pub(super) const AMX_ROWS: usize = 16;
/// Places for sums: AMX computes some rows twice.
pub(super) const PLACES: usize = ROWS + AMX_ROWS;

/// The codes of a panel, `[k / 4][16][4]`, and scale and minimum of each dot.
#[repr(C, align(64))]
pub(super) struct Panel {
    pub(super) codes: [u8; K_BLOCK * LANES],
    pub(super) scales: [[[f32; LANES]; 2]; K_BLOCK / 16],
}

/// Columns of weights as floats, where some row has an outlier: other rows are likely to have one there, too.
#[repr(C, align(64))]
pub(super) struct Columns {
    pub(super) weights: [[[f32; LANES]; PANELS]; COLUMNS],
    /// Which column a place of the K-block has, or [`NO_COLUMN`].
    pub(super) of: [u8; K_BLOCK],
    pub(super) used: usize,
}

pub(super) const NO_COLUMN: u8 = u8::MAX;
/// The last one is for what finds no room.
pub(super) const COLUMNS: usize = 64;

impl Columns {
    const NEW: Columns =
        Columns { weights: [[[0.0; LANES]; PANELS]; COLUMNS], of: [NO_COLUMN; K_BLOCK], used: 0 };

    pub(super) fn clear(&mut self) {
        if self.used > 0 {
            (self.of, self.used) = ([NO_COLUMN; K_BLOCK], 0);
        }
    }
}

/// Dots whose sums the ring has room for.
pub(super) const RING: usize = 4;

/// Sums of bytes on their way from the tiles of AMX to the floats.
#[repr(C, align(64))]
pub(super) struct Ring(pub(super) [[[i32; LANES]; AMX_ROWS]; RING]);

#[repr(C, align(64))]
pub(super) struct Scratch {
    pub(super) columns: Columns,
    pub(super) panels: [Panel; PANELS],
    /// The panels' codes less their zero, which AMX multiplies.
    pub(super) signed: [[i8; K_BLOCK * LANES]; PANELS],
    pub(super) sums: [[[f32; LANES]; PLACES]; PANELS],
    pub(super) ring: Ring,
}

impl Scratch {
    pub(super) const NEW: Scratch = Scratch {
        columns: Columns::NEW,
        panels: [const { Panel { codes: [0; _], scales: [[[0.0; LANES]; 2]; _] } }; PANELS],
        signed: [[0; _]; PANELS],
        sums: [[[0.0; LANES]; PLACES]; PANELS],
        ring: Ring([[[0; LANES]; AMX_ROWS]; RING]),
    };

    /// The sums of a panel, and of the panel `further` on, which is that of the second matrix, if there are
    /// two.
    pub(super) fn sums_of(&self, panel: usize, further: usize, places: Range<usize>) -> [&[[f32; LANES]]; 2] {
        let second = if further > 0 { &self.sums[panel + further][places.clone()] } else { &[] };
        [&self.sums[panel][places], second]
    }
}

/// Some rows times the unpacked panels, over a K-block.
pub(super) struct Work<'a> {
    pub(super) x: &'a Quantized,
    /// Of the rows' bytes.
    pub(super) plane: usize,
    /// Whether there are sums of K-blocks or planes before this one, to be added to.
    pub(super) add: bool,
    pub(super) rows: Range<usize>,
    /// Where the sums of the first row are.
    pub(super) place: usize,
    /// Blocks of the rows, from `first` on.
    pub(super) first: usize,
    pub(super) blocks: usize,
    /// The codes' zero is 2 to this.
    pub(super) zero: i32,
    pub(super) panels: usize,
}

/// How long K-blocks are: all about the same, whole blocks of a file.
pub(super) fn k_block_len(k: usize, unit: usize) -> usize {
    let units = k / unit;
    units.div_ceil(units.div_ceil(K_BLOCK / unit)) * unit
}

pub(super) fn k_blocks(k: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    let len = k_block_len(k, unit);
    (0..k).step_by(len).map(move |start| start..k.min(start + len))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn k_blocks_are_whole_blocks_one_after_another_and_fit() {
        for (k, unit) in [(32, 32), (576, 32), (640, 32), (1536, 32), (12_320, 32), (256, 256), (2048, 256)] {
            let mut end = 0;
            for block in k_blocks(k, unit) {
                assert_eq!(block.start, end, "{k}");
                assert!(block.len() <= K_BLOCK && block.len().is_multiple_of(unit), "{k}: {block:?}");
                end = block.end;
            }
            assert_eq!(end, k);
        }
    }
}
