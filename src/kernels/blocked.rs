//! Quantized products of more than a few rows, blocked as in BLIS: `k` is blocked so that an unpacked panel
//! stays in L1 and serves all rows of a task; partial sums stay in L2 between K-blocks.
//!
//! What multiplies is a register [`tile`](super::tile), or on machines with AMX its tiles
//! ([`amx`](super::amx)).

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use super::amx;
use super::isa::{Isa, tiered};
use super::layouts::{AHEAD, GROUPS, Kind, Layout, SUB, with_kind};
use super::panels::{
    AMX_ROWS, COLUMNS, K_BLOCK, NO_COLUMN, PANELS, PLACES, Panel, ROWS, Scratch, Work, k_blocks,
};
use super::quantize::Quantized;
use super::simd::{LANES, Simd};
use super::tile::{self, Unpacked};
use super::unpack;

/// Rows that are finished together, while their sums are in L1: a multiple of all tiles' rows but AMX's.
const FINISHED: usize = 12;

thread_local! {
    static SCRATCH: RefCell<Box<Scratch>> = RefCell::new(Box::new(Scratch::NEW));
}

/// The same panels of one matrix or two.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub(super) matrices: &'a [&'a [u8]],
    pub(super) panel_bytes: usize,
    /// Weights that are likely to be wanted next: memory delivers them while this computes.
    pub(super) ahead: &'a [&'a [u8]],
}

/// The parts of a product that are compiled for a tier. The tests of AMX put an emulator's in.
pub(super) trait Parts {
    /// Asks for weights that will be unpacked, into L2.
    fn prefetch(&self, weights: &[u8]);
    fn unpack(&self, units: &[u8], to: &mut Panel);
    /// Adds the products of the rows to the sums, or sets them.
    fn rows(&self, work: &Work<'_>, scratch: &mut Scratch);
    /// Makes the signed codes that AMX tiles take, of the unpacked panels of a K-block.
    fn make_signed(&self, block: &Work<'_>, scratch: &mut Scratch);
    /// As `rows`, for the sixteen rows of an AMX tile.
    fn tiles(&mut self, work: &Work<'_>, scratch: &mut Scratch);
    /// Adds the products of the rows' outliers to the sums.
    fn outliers(&self, work: &Work<'_>, scratch: &mut Scratch);
}

/// Where the sums go.
pub(super) trait Sink {
    /// Sums of these rows and panels will come soon.
    fn expect(&self, rows: Range<usize>, panels: Range<usize>);
    /// The sums of some rows from `row` on for `panel`: of each matrix a vector a row. Each row and panel
    /// comes once.
    fn take(&mut self, row: usize, panel: usize, sums: [&[[f32; LANES]]; 2]);
}

tiered! {
    fn unpack_panel<Q: Layout>(units: &[u8], to: &mut Panel) = unpack_body;
}
tiered! {
    fn prefetch(bytes: &[u8]) = prefetch_body;
}
tiered! {
    fn multiply_rows<K: Kind>(work: &Work<'_>, scratch: &mut Scratch) = multiply_rows_body;
}
tiered! {
    fn make_signed(block: &Work<'_>, scratch: &mut Scratch) = make_signed_body;
}
tiered! {
    fn outliers<K: Kind>(work: &Work<'_>, scratch: &mut Scratch) = outliers_body;
}

/// The parts of a tier, and the tiles of AMX if it has them.
struct Tiered<Q> {
    isa: Isa,
    #[cfg(target_arch = "x86_64")]
    tiles: Option<amx::Amx>,
    layout: PhantomData<Q>,
}

impl<Q: Layout> Parts for Tiered<Q> {
    fn prefetch(&self, weights: &[u8]) {
        prefetch(self.isa, weights);
    }

    fn unpack(&self, units: &[u8], to: &mut Panel) {
        unpack_panel::<Q>(self.isa, units, to);
    }

    fn rows(&self, work: &Work<'_>, scratch: &mut Scratch) {
        with_kind!(Q, K => multiply_rows::<K>(self.isa, work, scratch));
    }

    fn make_signed(&self, block: &Work<'_>, scratch: &mut Scratch) {
        if !Q::MIN || Q::WIDE {
            make_signed(self.isa, block, scratch);
        }
    }

    fn tiles(&mut self, _work: &Work<'_>, _scratch: &mut Scratch) {
        #[cfg(target_arch = "x86_64")]
        if let Some(tiles) = &mut self.tiles {
            // SAFETY: tiles are configured for this layout, which happens only where the machine has AMX
            // (`multiply`).
            unsafe { amx::multiply::<Q>(_work, _scratch, tiles) };
        }
    }

    fn outliers(&self, work: &Work<'_>, scratch: &mut Scratch) {
        with_kind!(Q, K => outliers::<K>(self.isa, work, scratch));
    }
}

/// Multiplies rows with panels, and gives the sums away.
///
/// # Panics
/// When the panels do not have `k` weights of each column in layout `Q`, or rows are too many.
pub(super) fn multiply<Q: Layout>(
    isa: Isa,
    w: Panels<'_>,
    x: &Quantized,
    rows: Range<usize>,
    sink: &mut impl Sink,
) {
    let tiled = if isa.has_amx() { amx::rows_in_tiles(rows.len()) } else { 0 };
    let mut parts = Tiered::<Q> {
        isa,
        // SAFETY: an `Isa` with AMX exists only where the machine and the system have it.
        #[cfg(target_arch = "x86_64")]
        tiles: (tiled > 0).then(|| unsafe { amx::configure::<Q>() }),
        layout: PhantomData,
    };
    multiply_with::<Q>(&mut parts, tiled, w, x, rows, sink);
}

/// As [`multiply`], by these parts; the first `tiled` rows by AMX tiles.
pub(super) fn multiply_with<Q: Layout>(
    parts: &mut impl Parts,
    tiled: usize,
    w: Panels<'_>,
    x: &Quantized,
    rows: Range<usize>,
    sink: &mut impl Sink,
) {
    let Panels { matrices, panel_bytes, .. } = w;
    assert!(x.k > 0 && panel_bytes == x.k / Q::TYPE.block_len() * Q::UNIT);
    assert!((1..=2).contains(&matrices.len()) && tiled <= rows.len() && rows.len() <= ROWS);
    let bytes = matrices[0].len();
    assert!(matrices.iter().all(|w| w.len() == bytes) && bytes.is_multiple_of(panel_bytes));
    assert!(rows.end <= x.rows);
    let (all, of_each) = (bytes / panel_bytes, PANELS / matrices.len());
    SCRATCH.with_borrow_mut(|scratch| {
        let mut product = BlockedProduct { parts, w, x, rows, tiled, scratch, sink };
        for group in (0..all).step_by(of_each).map(|first| first..all.min(first + of_each)) {
            product.multiply_group::<Q>(group);
        }
    });
}

/// A call of [`multiply_with`].
struct BlockedProduct<'a, P, S> {
    parts: &'a mut P,
    w: Panels<'a>,
    x: &'a Quantized,
    rows: Range<usize>,
    tiled: usize,
    scratch: &'a mut Scratch,
    sink: &'a mut S,
}

/// A K-block of some panels: its place in `k`, and the panels of each matrix.
struct Block {
    k: Range<usize>,
    group: Range<usize>,
    zero: i32,
}

impl<'a, P: Parts, S: Sink> BlockedProduct<'a, P, S> {
    /// Panels that stay unpacked together: `group` of each matrix.
    fn multiply_group<Q: Layout>(&mut self, group: Range<usize>) {
        let zero = Q::ZERO.trailing_zeros() as i32;
        for k in k_blocks(self.x.k, Q::TYPE.block_len()) {
            let block = Block { k, group: group.clone(), zero };
            self.unpack::<Q>(&block);
            self.tile_rows(&block);
            self.other_rows(&block);
        }
    }

    fn unpack<Q: Layout>(&mut self, block: &Block) {
        let (unit, size) = (Q::TYPE.block_len(), self.w.panel_bytes);
        let units = block.k.start / unit * Q::UNIT..block.k.end / unit * Q::UNIT;
        let bytes = block.group.start * size..block.group.end * size;
        let packed = || self.w.matrices.iter().flat_map(|w| w[bytes.clone()].chunks_exact(size));
        for panel in packed() {
            self.parts.prefetch(&panel[units.start..units.end.min(units.start + AHEAD)]);
        }
        for (panel, to) in packed().zip(&mut self.scratch.panels) {
            self.parts.unpack(&panel[units.clone()], to);
        }
        self.scratch.columns.clear();
    }

    fn work(&self, block: &Block, rows: Range<usize>, place: usize, plane: usize) -> Work<'a> {
        let add = block.k.start > 0 || plane > 0;
        let (first, blocks) = (block.k.start / SUB, block.k.len() / SUB);
        let panels = self.w.matrices.len() * block.group.len();
        Work { x: self.x, plane, add, rows, place, first, blocks, zero: block.zero, panels }
    }

    /// The rows that are worth AMX tiles, a tile after the other. After the last K-block they are finished.
    fn tile_rows(&mut self, block: &Block) {
        if self.tiled == 0 {
            return;
        }
        let (start, last) = (self.rows.start, block.k.end == self.x.k);
        let rows_of = |tile: usize, tiled: usize| start + tile..start + tiled.min(tile + AMX_ROWS);
        self.parts.make_signed(&self.work(block, start..start, 0, 0), self.scratch);
        if last {
            self.sink.expect(rows_of(0, self.tiled), block.group.clone());
        }
        for tile in (0..self.tiled).step_by(AMX_ROWS) {
            let rows = rows_of(tile, self.tiled);
            if last {
                self.sink.expect(rows.end..rows_of(tile + AMX_ROWS, self.tiled).end, block.group.clone());
                self.prefetch_ahead(tile..tile + AMX_ROWS, self.tiled);
            }
            // The last tile takes rows of the one before it along.
            let first = start + amx::first_row(tile, self.tiled);
            let again = rows.start - first;
            for plane in 0..self.x.planes() {
                let work = self.work(block, first..first + AMX_ROWS, tile, plane);
                self.parts.tiles(&work, self.scratch);
            }
            self.parts.outliers(&self.work(block, rows.clone(), tile + again, 0), self.scratch);
            if last {
                self.give(rows.start, &block.group, tile + again..tile + AMX_ROWS);
            }
        }
    }

    /// Asks for a share of the weights that are wanted next: that of some rows of `all`.
    fn prefetch_ahead(&self, rows: Range<usize>, all: usize) {
        for ahead in self.w.ahead {
            let share = |row: usize| ahead.len() * row.min(all) / all;
            self.parts.prefetch(&ahead[share(rows.start)..share(rows.end)]);
        }
    }

    /// The rows beyond those. After the last K-block they are finished, some at a time.
    fn other_rows(&mut self, block: &Block) {
        let last = block.k.end == self.x.k;
        let (size, rest) = (if last { FINISHED } else { ROWS }, self.rows.start + self.tiled..self.rows.end);
        // Behind the places of the tiles, which may be a tile more than there are rows.
        let first_place = self.tiled.next_multiple_of(AMX_ROWS);
        for from in rest.clone().step_by(size) {
            let rows = from..rest.end.min(from + size);
            let place = first_place + from - rest.start;
            if last {
                self.sink.expect(rows.clone(), block.group.clone());
                if self.tiled == 0 {
                    self.prefetch_ahead(rows.start - rest.start..rows.end - rest.start, rest.len());
                }
            }
            for plane in 0..self.x.planes() {
                self.parts.rows(&self.work(block, rows.clone(), place, plane), self.scratch);
            }
            self.parts.outliers(&self.work(block, rows.clone(), place, 0), self.scratch);
            if last {
                self.give(from, &block.group, place..place + rows.len());
            }
        }
    }

    /// Gives away what lies at `places`: the sums of the rows from `row` on, of all panels.
    fn give(&mut self, row: usize, group: &Range<usize>, places: Range<usize>) {
        let further = (self.w.matrices.len() - 1) * group.len();
        for (at, panel) in group.clone().enumerate() {
            self.sink.take(row, panel, self.scratch.sums_of(at, further, places.clone()));
        }
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn prefetch_body<S: Simd>(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        // SAFETY: the caller has the tier's instructions; a prefetch reads nothing.
        unsafe { S::prefetch_l2(line.as_ptr()) };
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
pub(super) unsafe fn unpack_body<S: Simd, Q: Layout>(units: &[u8], to: &mut Panel) {
    const { assert!(size_of::<S::I>() == 64 && GROUPS == 8 && Q::TYPE.block_len() <= K_BLOCK) };
    assert!(units.len() <= K_BLOCK / Q::TYPE.block_len() * Q::UNIT);
    let dots = if Q::HALVES { 2 } else { 1 };
    let mut codes = to.codes.as_mut_ptr();
    let mut scales = to.scales.as_mut_ptr().cast::<f32>();
    for unit in units.chunks_exact(Q::UNIT) {
        // SAFETY: a sub-block writes 512 bytes of codes and two vectors for each dot, and a k_block has room
        // for its own.
        unsafe {
            let head = unpack::load_head::<S, Q>(unit.as_ptr());
            let mut sub = unit.as_ptr().add(Q::HEAD);
            for _ in 0..Q::SUBS {
                tile::prefetch::<S, Q>(sub);
                macro_rules! groups {
                    ($($g:literal)*) => {$(
                        let group = unpack::unpack::<S, Q>(sub, $g);
                        codes.add(64 * $g).cast::<S::I>().write_unaligned(group);
                    )*};
                }
                // Written out, so that what depends on the group is a constant.
                groups!(0 1 2 3 4 5 6 7);
                for dot in 0..dots {
                    let (scale, offset) = unpack::load_scales::<S, Q>(head, sub, dot);
                    S::store(scales, scale);
                    S::store(scales.add(LANES), offset);
                    scales = scales.add(2 * LANES);
                }
                codes = codes.add(LANES * SUB);
                sub = sub.add(Q::SUB_BYTES);
            }
        }
    }
}

/// The codes of all panels less their zero: signed bytes, as AMX takes them, so that nothing need be taken
/// away from their dots.
///
/// # Safety
/// The tier's instructions.
#[inline(always)]
pub(super) unsafe fn make_signed_body<S: Simd>(block: &Work<'_>, scratch: &mut Scratch) {
    assert!(block.blocks * SUB <= K_BLOCK);
    // SAFETY: the caller's promise; whole vectors of codes, as many as a panel has room for.
    unsafe {
        let zero = S::splat_i(i32::from_ne_bytes([1 << block.zero; 4]));
        for (panel, signed) in scratch.panels.iter().zip(&mut scratch.signed).take(block.panels) {
            let (from, to) = (panel.codes.as_ptr(), signed.as_mut_ptr().cast::<u8>());
            for at in (0..block.blocks * SUB * LANES).step_by(64) {
                let codes = S::sub_bytes(S::load_i(from.add(at)), zero);
                to.add(at).cast::<S::I>().write_unaligned(codes);
            }
        }
    }
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
pub(super) unsafe fn multiply_rows_body<S: Simd, K: Kind>(work: &Work<'_>, scratch: &mut Scratch) {
    assert!(work.rows.end <= work.x.rows && work.place + work.rows.len() <= PLACES);
    assert!(work.first + work.blocks <= work.x.k / SUB && work.blocks * SUB <= K_BLOCK);
    let mut row = 0;
    while row < work.rows.len() {
        // SAFETY: the caller's promise, and the lines above.
        unsafe {
            row += match (S::TILE, work.rows.len() - row) {
                ((6, 2), 6..) => some_rows::<S, K, 6, 2>(work, scratch, row),
                ((6, 2), 3..) => some_rows::<S, K, 3, 2>(work, scratch, row),
                ((6, 2), 2) => some_rows::<S, K, 2, 2>(work, scratch, row),
                ((6, 2), _) => some_rows::<S, K, 1, 2>(work, scratch, row),
                // With two scales a block the sums of four rows no longer fit.
                ((3, _), 4..) if !K::HALVES => some_rows::<S, K, 4, 1>(work, scratch, row),
                ((3, _), 3..) => some_rows::<S, K, 3, 1>(work, scratch, row),
                ((2..=3, _), 2..) => some_rows::<S, K, 2, 1>(work, scratch, row),
                _ => some_rows::<S, K, 1, 1>(work, scratch, row),
            };
        }
    }
}

/// `M` rows from the `row`th on, `P` panels at a time; beyond the last panel is what was there before, and
/// nobody asks for it.
///
/// # Safety
/// The tier's instructions; there are such rows.
#[inline(always)]
unsafe fn some_rows<S: Simd, K: Kind, const M: usize, const P: usize>(
    work: &Work<'_>,
    scratch: &mut Scratch,
    row: usize,
) -> usize {
    let x = work.x.at(work.plane, work.rows.start + row, work.first);
    for panel in (0..work.panels).step_by(P) {
        // SAFETY: the caller's promise; `PANELS` is a multiple of `P`.
        unsafe {
            const { assert!(PANELS.is_multiple_of(P)) };
            let panels = scratch.panels.as_ptr().add(panel);
            let sums = scratch.sums.as_mut_ptr().add(panel).cast::<f32>();
            let sums = sums.add((work.place + row) * LANES);
            let mut acc = [[S::zero(); M]; P];
            if work.add {
                for (p, acc) in acc.iter_mut().enumerate() {
                    for (i, acc) in acc.iter_mut().enumerate() {
                        *acc = S::load(sums.add((p * PLACES + i) * LANES));
                    }
                }
            }
            tile::tile::<S, _, M, P>(codes::<K>(panels, work.zero), x, work.blocks, &mut acc);
            for (p, acc) in acc.into_iter().enumerate() {
                for (i, acc) in acc.into_iter().enumerate() {
                    S::store(sums.add((p * PLACES + i) * LANES), acc);
                }
            }
        }
    }
    M
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
pub(super) unsafe fn outliers_body<S: Simd, K: Kind>(work: &Work<'_>, scratch: &mut Scratch) {
    assert!(work.blocks * SUB <= K_BLOCK && work.place + work.rows.len() <= PLACES);
    let k_block = work.first * SUB..(work.first + work.blocks) * SUB;
    for (place, row) in (work.place..).zip(work.rows.clone()) {
        let outliers = work.x.outliers(row, k_block.clone());
        if outliers.is_empty() {
            continue;
        }
        // All panels: beyond the last one is what was there before, as in `some_rows`.
        // SAFETY: the caller's promise; there is a place for each row.
        unsafe {
            let sums = scratch.sums.as_mut_ptr().cast::<f32>().add(place * LANES);
            let mut acc = [S::zero(); PANELS];
            for (p, acc) in acc.iter_mut().enumerate() {
                *acc = S::load(sums.add(p * PLACES * LANES));
            }
            for outlier in outliers {
                let at = outlier.at as usize - k_block.start;
                let (mut column, columns) = (scratch.columns.of[at], &mut scratch.columns);
                if column == NO_COLUMN {
                    column = columns.used as u8;
                    if columns.used + 1 < COLUMNS {
                        columns.of[at] = column;
                        columns.used += 1;
                    }
                    let codes = codes::<K>(scratch.panels.as_ptr(), work.zero);
                    let weights = tile::column::<S, _, PANELS>(&codes, at);
                    for (to, weights) in columns.weights[usize::from(column)].iter_mut().zip(weights) {
                        S::store(to.as_mut_ptr(), weights);
                    }
                }
                let x = S::splat(outlier.value);
                for (weights, acc) in columns.weights[usize::from(column)].iter().zip(&mut acc) {
                    *acc = S::fma(x, S::load(weights.as_ptr()), *acc);
                }
            }
            for (p, acc) in acc.into_iter().enumerate() {
                S::store(sums.add(p * PLACES * LANES), acc);
            }
        }
    }
}

/// The codes of some panels.
///
/// # Safety
/// The first one is there.
#[inline(always)]
unsafe fn codes<K: Kind>(panels: *const Panel, zero: i32) -> Unpacked<K> {
    Unpacked {
        // SAFETY: the caller's promise.
        codes: unsafe { (&raw const (*panels).codes).cast() },
        // SAFETY: as above.
        scales: unsafe { (&raw const (*panels).scales).cast() },
        codes_apart: size_of::<Panel>(),
        scales_apart: size_of::<Panel>() / size_of::<f32>(),
        zero,
        kind: PhantomData,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::layouts::{Scales, with_layout};
    use crate::kernels::quantize::{Precision, quantized};
    use crate::kernels::skinny;
    use crate::weights::WeightType;

    const K: usize = 256;

    /// Where the sums of one panel go.
    struct Sums([[f32; LANES]; 7]);

    impl Sink for Sums {
        fn expect(&self, _: Range<usize>, _: Range<usize>) {}
        fn take(&mut self, row: usize, _: usize, [sums, _]: [&[[f32; LANES]]; 2]) {
            self.0[row..row + sums.len()].copy_from_slice(sums);
        }
    }

    /// Sixteen columns of the greatest codes.
    fn panel<Q: Layout>() -> Vec<u8> {
        let mut panel = vec![0xff; K / Q::TYPE.block_len() * Q::UNIT];
        for unit in panel.chunks_exact_mut(Q::UNIT) {
            match Q::SCALES {
                Scales::Power => unit[..Q::HEAD].fill(127),
                _ => unit[..Q::HEAD].chunks_exact_mut(2).for_each(|one| one.copy_from_slice(&[0, 0x3c])),
            }
        }
        panel
    }

    /// Rows of the greatest bytes, of one sign or of both.
    fn rows(count: usize) -> Quantized {
        let signs = [1.0, -1.0];
        let x: Vec<f32> =
            (0..count * K).map(|at| if at / K < 2 { signs[at / K] } else { signs[at % 2] }).collect();
        quantized(Isa::named("scalar").unwrap(), &x, K, Precision::Above(f32::INFINITY))
    }

    fn sums<Q: Layout>(isa: Isa, panel: &[u8], x: &Quantized, few: bool) -> [[f32; LANES]; 7] {
        let mut found = Sums([[0.0; LANES]; 7]);
        if Q::FEW && few {
            let each = |row: usize, at: usize, sums: &[[f32; LANES]]| found.take(row, at, [sums, &[]]);
            skinny::multiply::<Q>(isa, panel, panel.len(), x, 0..x.rows, each);
        } else {
            let w = Panels { matrices: &[panel], panel_bytes: panel.len(), ahead: &[] };
            multiply::<Q>(isa, w, x, 0..x.rows, &mut found);
        }
        found.0
    }

    #[test]
    fn the_greatest_codes_times_the_greatest_bytes_fit() {
        fn check<Q: Layout>(isa: Isa) {
            let panel = panel::<Q>();
            for (count, few) in (1..=7).flat_map(|count| [(count, true), (count, false)]) {
                let x = rows(count);
                let oracle = sums::<Q>(Isa::named("scalar").unwrap(), &panel, &x, few);
                let found = sums::<Q>(isa, &panel, &x, few);
                assert_eq!(found, oracle, "{} on {}: {count} rows", Q::TYPE, isa.name());
            }
        }
        for isa in Isa::available() {
            let quantized = WeightType::ALL.into_iter().filter(|ty| ty.has_integer_codes());
            quantized.for_each(|ty| with_layout!(ty, Q => check::<Q>(isa), else unreachable!()));
        }
    }
}
