//! Skinny GEMM: quantized products of few rows. Panels are unpacked in registers, for up to twelve rows at
//! once.
//!
//! Memory delivers a panel about as fast as it can be unpacked and multiplied with four rows, so that
//! unpacking is free. With many rows, or scales that serve only 16 weights, unpacking again for every twelve
//! rows costs more than it saves, and [`blocked`](super::blocked) products take over.

use std::cell::RefCell;
use std::ops::Range;

use super::isa::{Isa, Level, Tiles, next_tile, tiled};
use super::layouts::{Layout, SUB, with_layout};
use super::panels::{AMX_ROWS, k_block_len};
use super::quantize::{self, Quantized, SPARE_ROWS};
use super::simd::{LANES, Simd};
use super::tile::{self, Packed};
use crate::weights::WeightType;

/// Rows that are multiplied at once.
const TILES: Tiles = Tiles { avx512: &[12, 8, 6, 4, 2, 1], avx2: &[4, 3, 2, 1] };

/// Sums of some panels, of all rows of a tile.
const SUMS: usize = 64;

/// Rows up to which this is faster than a blocked product of the type: measured.
pub(super) fn max_rows(isa: Isa, dtype: WeightType) -> usize {
    let (most, wide) = with_layout!(dtype, Q => match (Q::FEW, Q::HALVES) {
        (false, _) => (0, Q::WIDE),
        (_, true) => (16, Q::WIDE),
        _ => (24, Q::WIDE),
    }, else { (NARROW, false) });
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => most.min(if wide { 8 } else { 4 }),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 => most,
        // From there on its tiles are faster.
        #[cfg(target_arch = "x86_64")]
        Level::Amx => most.min(AMX_ROWS - 1),
        _ => most.min(NARROW),
    }
}

/// The same without AVX-512, whose registers the tiles need, and without the 16-bit sums of AVX2.
const NARROW: usize = 3;

/// An outlier of one of the rows of a tile.
#[derive(Clone, Copy)]
struct Outlier {
    /// The first row of the tile.
    tile: usize,
    at: usize,
    row: usize,
    value: f32,
}

thread_local! {
    static OUTLIERS: RefCell<Vec<Outlier>> = const { RefCell::new(Vec::new()) };
}

/// Some rows, and their outliers, in the order of their places: the rows of a batch have most of them in the
/// same channels, so that a column of weights is made into floats once.
struct Rows<'a> {
    x: &'a Quantized,
    first: usize,
    outliers: &'a [Outlier],
}

/// Multiplies rows with panels, and gives away the sums: the first row of some, which panel, and a vector a
/// row.
///
/// # Panics
/// When the panels do not have `k` weights of each column in layout `Q`, or there are no such rows.
pub(super) fn multiply<Q: Layout>(
    isa: Isa,
    panels: &[u8],
    panel_bytes: usize,
    x: &Quantized,
    rows: Range<usize>,
    mut each: impl FnMut(usize, usize, &[[f32; LANES]]),
) {
    assert!(x.k > 0 && panel_bytes == x.k / Q::TYPE.block_len() * Q::UNIT && rows.end <= x.rows);
    assert!(panels.len().is_multiple_of(panel_bytes));
    let mut sums = [[0.0; LANES]; SUMS];
    let tiles = |mut first| {
        std::iter::from_fn(move || {
            let tile = first..rows.end.min(first + next_tile(isa, &TILES, rows.end - first));
            first = tile.end;
            Some(tile).filter(|tile| !tile.is_empty())
        })
    };
    let some = SUMS / next_tile(isa, &TILES, rows.len());
    OUTLIERS.with_borrow_mut(|outliers| {
        outliers.clear();
        tiles(rows.start).for_each(|tile| gather(x, tile, outliers));
        for (chunk, panels) in panels.chunks(some * panel_bytes).enumerate() {
            let mut outliers = outliers.as_slice();
            for tile in tiles(rows.start) {
                let own = outliers.partition_point(|outlier| outlier.tile <= tile.start);
                let rows = Rows { x, first: tile.start, outliers: &outliers[..own] };
                outliers = &outliers[own..];
                // A tile may have more rows than there are: it takes spare ones along, whose sums nobody
                // gets.
                let size = next_tile(isa, &TILES, tile.len());
                let sums = &mut sums[..panels.len() / panel_bytes * size];
                const { assert!(spare_rows(TILES.avx512) <= SPARE_ROWS) };
                const { assert!(spare_rows(TILES.avx2) <= SPARE_ROWS) };
                // SAFETY: asserted above; there are so many sums.
                unsafe { some_rows::<Q>(isa, size, panels, &rows, sums) };
                for (panel, sums) in sums.chunks_exact(size).enumerate() {
                    each(tile.start, chunk * some + panel, &sums[..tile.len()]);
                }
            }
        }
    });
}

/// How many rows too many a tile of these sizes has, at most.
const fn spare_rows(sizes: &[usize]) -> usize {
    let (mut most, mut i) = (0, 1);
    while i < sizes.len() {
        let spare = sizes[i - 1] - sizes[i] - 1;
        most = if spare > most { spare } else { most };
        i += 1;
    }
    most
}

/// Appends the outliers of a tile.
fn gather(x: &Quantized, tile: Range<usize>, outliers: &mut Vec<Outlier>) {
    let begin = outliers.len();
    for row in tile.clone() {
        let own = x.outliers(row, 0..x.k).iter();
        let tell = |it: &quantize::Outlier| Outlier {
            tile: tile.start,
            at: it.at as usize,
            row: row - tile.start,
            value: it.value,
        };
        outliers.extend(own.map(tell));
    }
    if tile.len() > 1 {
        outliers[begin..].sort_unstable_by_key(|outlier| (outlier.at, outlier.row));
    }
}

tiled! {
    [12, 8, 6, 4, 2, 1] [4, 3, 2, 1]
    /// The sums of some rows for some panels, `[panels, rows]`.
    ///
    /// # Safety
    /// The panels have `k` weights of each column; there are such rows, or spare ones, and as many sums.
    fn some_rows<Q: Layout>(panels: &[u8], rows: &Rows<'_>, sums: &mut [[f32; LANES]]) = some_rows_body;
}

/// # Safety
/// The tier's instructions, and as [`some_rows`].
#[inline(always)]
unsafe fn some_rows_body<S: Simd, Q: Layout, const M: usize>(
    panels: &[u8],
    rows: &Rows<'_>,
    sums: &mut [[f32; LANES]],
) {
    let Rows { x, first, outliers } = rows;
    let unit = Q::TYPE.block_len();
    // The same order as in blocked products: all planes of a K-block, then its outliers.
    let k_block = k_block_len(x.k, unit);
    let planes = [x.at(0, *first, 0), x.at(x.planes() - 1, *first, 0)];
    let planes = &planes[..x.planes()];
    for (panel, sums) in panels.chunks_exact(x.k / unit * Q::UNIT).zip(sums.chunks_exact_mut(M)) {
        // SAFETY: the caller's promise.
        unsafe {
            let mut acc = [[S::zero(); M]];
            let (mut start, mut outliers) = (0, *outliers);
            while start < x.k {
                let end = x.k.min(start + k_block);
                let codes = panel.as_ptr().add(start / unit * Q::UNIT);
                for x in planes {
                    let codes = Packed::<S, Q>::new(codes, (end - start) / unit);
                    tile::tile::<S, _, M, 1>(codes, x.skip(start / SUB), (end - start) / SUB, &mut acc);
                }
                if outliers.first().is_some_and(|outlier| outlier.at < end) {
                    for (sum, acc) in sums.iter_mut().zip(&acc[0]) {
                        S::store(sum.as_mut_ptr(), *acc);
                    }
                    while let Some(&Outlier { at, .. }) = outliers.first()
                        && at < end
                    {
                        let [weights] = tile::column::<S, _, 1>(&Packed::<S, Q>::new(codes, 1), at - start);
                        while let [Outlier { at: same, row, value, .. }, rest @ ..] = outliers
                            && *same == at
                        {
                            let sum = sums[*row].as_mut_ptr();
                            S::store(sum, S::fma(S::splat(*value), weights, S::load(sum)));
                            outliers = rest;
                        }
                    }
                    for (sum, acc) in sums.iter().zip(&mut acc[0]) {
                        *acc = S::load(sum.as_ptr());
                    }
                }
                start = end;
            }
            for (sum, acc) in sums.iter_mut().zip(&acc[0]) {
                S::store(sum.as_mut_ptr(), *acc);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::layouts::Q4_1;
    use crate::kernels::quantize::{Precision, quantized};
    use crate::kernels::simd::scalar::Scalar;

    /// Rows in bytes, with an outlier here and there.
    fn bytes(rows: usize, k: usize) -> Quantized {
        let number = |at: usize| (at * 7919 % 1013) as f32 - 506.0;
        let x: Vec<f32> =
            (0..rows * k).map(|at| number(at) * if at % 97 == 5 { 20.0 } else { 1.0 }).collect();
        quantized(Isa::named("scalar").unwrap(), &x, k, Precision::Above(4.0))
    }

    /// The sums of a tile of `M` rows, of which `x` need not have all.
    fn tile<const M: usize>(panel: &[u8], x: &Quantized, first: usize) -> [[f32; LANES]; M] {
        let mut outliers = Vec::new();
        gather(x, first..x.rows.min(first + M), &mut outliers);
        let mut sums = [[0.0; LANES]; M];
        let rows = Rows { x, first, outliers: &outliers };
        // SAFETY: every machine has the scalar tier; rows beyond the last one are spare.
        unsafe { some_rows_body::<Scalar, Q4_1, M>(panel, &rows, &mut sums) };
        sums
    }

    #[test]
    fn rows_of_a_tile_that_is_too_large_are_what_they_are_alone() {
        let k = 96;
        let mut panel: Vec<u8> = (0..k / SUB * Q4_1::UNIT).map(|at| (at * 131 % 251) as u8).collect();
        for unit in panel.chunks_exact_mut(Q4_1::UNIT) {
            unit[..Q4_1::HEAD].chunks_exact_mut(2).for_each(|half| half.copy_from_slice(&[0x12, 0x2c]));
        }
        for rows in 1..=12 {
            let x = bytes(rows, k);
            let alone: Vec<_> = (0..rows).map(|row| tile::<1>(&panel, &x, row)[0]).collect();
            let sums = match rows {
                1 => tile::<1>(&panel, &x, 0).to_vec(),
                2 => tile::<2>(&panel, &x, 0).to_vec(),
                3 | 4 => tile::<4>(&panel, &x, 0).to_vec(),
                5 | 6 => tile::<6>(&panel, &x, 0).to_vec(),
                7 | 8 => tile::<8>(&panel, &x, 0).to_vec(),
                _ => tile::<12>(&panel, &x, 0).to_vec(),
            };
            assert_eq!(sums[..rows], alone[..], "{rows} rows");
            assert!(alone.iter().flatten().all(|sum| sum.is_finite() && *sum != 0.0));
        }
    }
}
