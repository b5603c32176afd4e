//! Quantized products of more than a few rows: panels are unpacked once, a stretch of `k` at a time, and serve all
//! rows of a task from the first cache; the sums of the rows wait in the second for the next stretch.
//!
//! What multiplies is a register [`tile`](super::tile), or on machines with AMX its tiles.

use std::cell::RefCell;
use std::marker::PhantomData;
use std::ops::Range;

use super::amx;
use super::forms::{self, Form, GROUPS, SUB};
use super::isa::{Isa, tiered};
use super::quantize::Quantized;
use super::simd::{LANES, Simd};
use super::tile::{self, Kind, Unpacked, with_kind};

/// Weights of a stretch, of each column, at most: four panels of it, codes and scales, are 50 KiB at most. Half of that would
/// leave more of the first cache to the rows, and is 5 % slower.
pub(super) const STRETCH: usize = 640;
/// Panels that are worked on together.
pub(super) const PANELS: usize = 4;
/// Rows of a task, at most.
pub(super) const ROWS: usize = 192;
/// Rows that are finished together, while they are in the first cache: a multiple of all tiles' rows but AMX's.
const FINISHED: usize = 12;
/// Places for sums: AMX takes some rows twice.
pub(super) const PLACES: usize = ROWS + amx::ROWS;

/// The codes of a panel, `[k / 4][16][4]`, and scale and minimum of each dot.
#[repr(C, align(64))]
pub(super) struct Panel {
    pub(super) codes: [u8; STRETCH * LANES],
    pub(super) scales: [[[f32; LANES]; 2]; STRETCH / 16],
}

/// Columns of weights as floats, of places where some row has an outlier: others are likely to have one there, too.
#[repr(C, align(64))]
pub(super) struct Columns {
    weights: [[[f32; LANES]; PANELS]; COLUMNS],
    /// Which column a place of the stretch has, or [`NONE`].
    of: [u8; STRETCH],
    used: usize,
}

const NONE: u8 = u8::MAX;
/// The last one is for what finds no room.
const COLUMNS: usize = 64;

impl Columns {
    const NEW: Columns = Columns { weights: [[[0.0; LANES]; PANELS]; COLUMNS], of: [NONE; STRETCH], used: 0 };

    fn clear(&mut self) {
        if self.used > 0 {
            (self.of, self.used) = ([NONE; STRETCH], 0);
        }
    }
}

#[repr(C, align(64))]
pub(super) struct Scratch {
    columns: Columns,
    pub(super) panels: [Panel; PANELS],
    pub(super) sums: [[[f32; LANES]; PLACES]; PANELS],
    pub(super) ring: amx::Ring,
}

impl Scratch {
    /// The sums of a panel, and of that of the second matrix, which is so much further on, if there are two.
    fn sums_of(&self, panel: usize, further: usize, places: Range<usize>) -> [&[[f32; LANES]]; 2] {
        let second = if further > 0 { &self.sums[panel + further][places.clone()] } else { &[] };
        [&self.sums[panel][places], second]
    }
}

thread_local! {
    static SCRATCH: RefCell<Box<Scratch>> = RefCell::new(Box::new(Scratch {
        columns: Columns::NEW,
        panels: [const { Panel { codes: [0; _], scales: [[[0.0; LANES]; 2]; _] } }; PANELS],
        sums: [[[0.0; LANES]; PLACES]; PANELS],
        ring: amx::Ring::NEW,
    }));
}

/// Some rows times the unpacked panels, over a stretch.
pub(super) struct Work<'a> {
    pub(super) x: &'a Quantized,
    /// Of the rows' bytes; and whether there are sums of others already.
    pub(super) layer: usize,
    pub(super) add: bool,
    /// The rows, and where the sums of the first of them are.
    pub(super) rows: Range<usize>,
    pub(super) place: usize,
    /// Blocks of the rows.
    pub(super) first: usize,
    pub(super) blocks: usize,
    /// The codes' zero is 2 to this.
    pub(super) zero: i32,
    pub(super) panels: usize,
}

/// The same panels of one matrix or two.
#[derive(Clone, Copy)]
pub(super) struct Panels<'a> {
    pub(super) matrices: &'a [&'a [u8]],
    pub(super) panel_bytes: usize,
    /// Weights that are likely to be wanted next: memory delivers them while this computes.
    pub(super) ahead: &'a [&'a [u8]],
}

tiered! {
    fn unpack<Q: Form>(units: &[u8], to: &mut Panel) = unpack_body;
}
tiered! {
    /// Asks for weights that will be unpacked, into the second cache.
    fn ask(bytes: &[u8]) = ask_body;
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
unsafe fn ask_body<S: Simd>(bytes: &[u8]) {
    for line in bytes.chunks(64) {
        // SAFETY: the caller's promise.
        unsafe { S::prefetch_far(line.as_ptr()) };
    }
}

tiered! {
    fn multiply_rows<K: Kind>(work: &Work<'_>, scratch: &mut Scratch) = multiply_rows_body;
}
tiered! {
    /// Adds the products of outliers to the sums.
    fn outliers<K: Kind>(work: &Work<'_>, scratch: &mut Scratch) = outliers_body;
}

/// Multiplies rows with panels, and gives away the sums: the first row of some, which panel, and for each matrix a vector a row.
/// Each row and panel comes once; `soon` hears of some rows and panels some time before.
///
/// # Panics
/// When the panels do not have `k` weights of each column in form `Q`, or rows are too many.
pub(super) fn multiply<Q: Form>(
    isa: Isa,
    w: Panels<'_>,
    x: &Quantized,
    rows: Range<usize>,
    soon: impl Fn(Range<usize>, Range<usize>),
    each: impl FnMut(usize, usize, [&[[f32; LANES]]; 2]),
) {
    let kernels = Kernels {
        ask: |units: &[u8]| ask(isa, units),
        unpack: |units: &[u8], to: &mut Panel| unpack::<Q>(isa, units, to),
        rows: |work: &Work<'_>, scratch: &mut Scratch| {
            with_kind!(Q, K => multiply_rows::<K>(isa, work, scratch));
        },
        outliers: |work: &Work<'_>, scratch: &mut Scratch| {
            with_kind!(Q, K => outliers::<K>(isa, work, scratch));
        },
    };
    #[cfg(target_arch = "x86_64")]
    let in_tiles = amx::rows_in_tiles(rows.len());
    #[cfg(target_arch = "x86_64")]
    if isa.level() == super::isa::Level::Amx && in_tiles > 0 {
        // SAFETY: an `Isa` of this level exists only where AMX is.
        let mut tiles = unsafe { amx::configure::<Q>() };
        let by_tiles =
            |work: &Work<'_>, scratch: &mut Scratch| unsafe { amx::multiply::<Q>(work, scratch, &mut tiles) };
        return multiply_with::<Q>(kernels, in_tiles, by_tiles, w, x, rows, soon, each);
    }
    multiply_with::<Q>(kernels, 0, |_, _| (), w, x, rows, soon, each);
}

/// The parts that are compiled with instructions of their own.
pub(super) struct Kernels<A, U, R, O> {
    pub(super) ask: A,
    pub(super) unpack: U,
    pub(super) rows: R,
    pub(super) outliers: O,
}

/// As [`multiply`]; the first `in_tiles` rows by `by_tiles`.
#[allow(clippy::too_many_arguments)] // They would be a struct that is taken apart at once.
pub(super) fn multiply_with<Q: Form>(
    kernels: Kernels<
        impl Fn(&[u8]),
        impl Fn(&[u8], &mut Panel),
        impl Fn(&Work<'_>, &mut Scratch),
        impl Fn(&Work<'_>, &mut Scratch),
    >,
    in_tiles: usize,
    mut by_tiles: impl FnMut(&Work<'_>, &mut Scratch),
    w: Panels<'_>,
    x: &Quantized,
    rows: Range<usize>,
    soon: impl Fn(Range<usize>, Range<usize>),
    mut each: impl FnMut(usize, usize, [&[[f32; LANES]]; 2]),
) {
    let Panels { matrices, panel_bytes, ahead } = w;
    let unit = Q::TYPE.block_len();
    assert!(x.k > 0 && panel_bytes == x.k / unit * Q::UNIT && (1..=2).contains(&matrices.len()));
    let bytes = matrices[0].len();
    assert!(matrices.iter().all(|w| w.len() == bytes) && bytes.is_multiple_of(panel_bytes));
    assert!(rows.end <= x.rows && rows.len() <= ROWS && in_tiles <= rows.len());
    let zero = Q::ZERO.trailing_zeros() as i32;
    let rest = rows.start + in_tiles..rows.end;
    // Behind those of the tiles, which may be a tile more than there are rows.
    let rest_place = in_tiles.next_multiple_of(amx::ROWS);
    let all = bytes / panel_bytes;
    let of_each = PANELS / matrices.len();
    SCRATCH.with_borrow_mut(|scratch| {
        for group in (0..all).step_by(of_each).map(|first| first..all.min(first + of_each)) {
            let panels = matrices.len() * group.len();
            let range = group.start * panel_bytes..group.end * panel_bytes;
            let packed = || matrices.iter().flat_map(|w| w[range.clone()].chunks_exact(panel_bytes));
            for stretch in stretches(x.k, unit) {
                let units = stretch.start / unit * Q::UNIT..stretch.end / unit * Q::UNIT;
                for panel in packed() {
                    (kernels.ask)(&panel[units.start..units.end.min(units.start + tile::AHEAD)]);
                }
                for (panel, to) in packed().zip(&mut scratch.panels) {
                    (kernels.unpack)(&panel[units.clone()], to);
                }
                scratch.columns.clear();
                let (first, blocks) = (stretch.start / SUB, stretch.len() / SUB);
                let work = |rows, place, layer| {
                    let add = stretch.start > 0 || layer > 0;
                    Work { x, layer, add, rows, place, first, blocks, zero, panels }
                };
                if in_tiles > 0 {
                    for layer in 0..x.layers() {
                        by_tiles(&work(rows.start..rest.start, 0, layer), scratch);
                    }
                    for tile in (0..in_tiles).step_by(amx::ROWS) {
                        let again = tile - amx::first_row(tile, in_tiles);
                        let end = in_tiles.min(tile + amx::ROWS);
                        let rows = rows.start + tile..rows.start + end;
                        (kernels.outliers)(&work(rows, tile + again, 0), scratch);
                    }
                }
                let last = stretch.end == x.k;
                for from in rest.clone().step_by(if last { FINISHED } else { ROWS }) {
                    let some = from..rest.end.min(from + if last { FINISHED } else { ROWS });
                    let place = rest_place + from - rest.start;
                    if last {
                        soon(some.clone(), group.clone());
                        for ahead in ahead {
                            let share = |row: usize| ahead.len() * (row - rest.start) / rest.len();
                            (kernels.ask)(&ahead[share(from)..share(some.end)]);
                        }
                    }
                    for layer in 0..x.layers() {
                        (kernels.rows)(&work(some.clone(), place, layer), scratch);
                    }
                    (kernels.outliers)(&work(some.clone(), place, 0), scratch);
                    for (at, panel) in group.clone().enumerate().filter(|_| last) {
                        each(
                            from,
                            panel,
                            scratch.sums_of(at, panels - group.len(), place..place + some.len()),
                        );
                    }
                }
            }
            for tile in (0..in_tiles).step_by(amx::ROWS) {
                let again = tile - amx::first_row(tile, in_tiles);
                for (at, panel) in group.clone().enumerate() {
                    let places = tile + again..tile + amx::ROWS;
                    each(rows.start + tile, panel, scratch.sums_of(at, panels - group.len(), places));
                }
            }
        }
    });
}

/// How long stretches are: all about the same, whole blocks of a file.
pub(super) fn stretch_len(k: usize, unit: usize) -> usize {
    let units = k / unit;
    units.div_ceil(units.div_ceil(STRETCH / unit)) * unit
}

fn stretches(k: usize, unit: usize) -> impl Iterator<Item = Range<usize>> {
    let len = stretch_len(k, unit);
    (0..k).step_by(len).map(move |start| start..k.min(start + len))
}

/// # Safety
/// The tier's instructions.
#[inline(always)]
pub(super) unsafe fn unpack_body<S: Simd, Q: Form>(units: &[u8], to: &mut Panel) {
    const { assert!(size_of::<S::I>() == 64 && GROUPS == 8 && Q::TYPE.block_len() <= STRETCH) };
    assert!(units.len() <= STRETCH / Q::TYPE.block_len() * Q::UNIT);
    let dots = if Q::HALVES { 2 } else { 1 };
    let mut codes = to.codes.as_mut_ptr();
    let mut scales = to.scales.as_mut_ptr().cast::<f32>();
    for unit in units.chunks_exact(Q::UNIT) {
        // SAFETY: a sub-block writes 512 bytes of codes and two vectors for each dot, and a stretch has room for its own.
        unsafe {
            let head = forms::load_head::<S, Q>(unit.as_ptr());
            let mut sub = unit.as_ptr().add(Q::HEAD);
            for _ in 0..Q::SUBS {
                tile::prefetch::<S, Q>(sub);
                macro_rules! groups {
                    ($($g:literal)*) => {$(
                        let group = forms::unpack::<S, Q>(sub.add(Q::SCALE_BYTES), $g);
                        codes.add(64 * $g).cast::<S::I>().write_unaligned(group);
                    )*};
                }
                // Written out, so that what depends on the group is a constant.
                groups!(0 1 2 3 4 5 6 7);
                for dot in 0..dots {
                    let (scale, offset) = forms::load_scales::<S, Q>(head, sub, dot);
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

/// # Safety
/// The tier's instructions.
#[inline(always)]
pub(super) unsafe fn multiply_rows_body<S: Simd, K: Kind>(work: &Work<'_>, scratch: &mut Scratch) {
    assert!(work.rows.end <= work.x.rows && work.place + work.rows.len() <= PLACES);
    assert!(work.first + work.blocks <= work.x.k / SUB && work.blocks * SUB <= STRETCH);
    let mut row = 0;
    while row < work.rows.len() {
        // SAFETY: the caller's promise, and the lines above.
        unsafe {
            row += match (S::TILE, work.rows.len() - row) {
                ((6, 2), 6..) => some_rows::<S, K, 6, 2>(work, scratch, row),
                ((6, 2), 3..) => some_rows::<S, K, 3, 2>(work, scratch, row),
                ((6, 2), 2) => some_rows::<S, K, 2, 2>(work, scratch, row),
                ((6, 2), _) => some_rows::<S, K, 1, 2>(work, scratch, row),
                ((2, _), 2..) => some_rows::<S, K, 2, 1>(work, scratch, row),
                _ => some_rows::<S, K, 1, 1>(work, scratch, row),
            };
        }
    }
}

/// `M` rows from the `row`th on, `P` panels at a time; beyond the last panel is what was there before, and nobody
/// asks for it.
///
/// # Safety
/// The tier's instructions; there are such rows.
#[inline(always)]
unsafe fn some_rows<S: Simd, K: Kind, const M: usize, const P: usize>(
    work: &Work<'_>,
    scratch: &mut Scratch,
    row: usize,
) -> usize {
    let x = work.x.at(work.layer, work.rows.start + row, work.first);
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
    assert!(work.blocks * SUB <= STRETCH && work.place + work.rows.len() <= PLACES);
    let stretch = work.first * SUB..(work.first + work.blocks) * SUB;
    for (place, row) in (work.place..).zip(work.rows.clone()) {
        let outliers = work.x.outliers(row, stretch.clone());
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
                let at = outlier.at as usize - stretch.start;
                let (mut column, columns) = (scratch.columns.of[at], &mut scratch.columns);
                if column == NONE {
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

    #[test]
    fn stretches_are_whole_blocks_one_after_another_and_fit() {
        for (k, unit) in [(32, 32), (576, 32), (640, 32), (1536, 32), (12_320, 32), (256, 256), (2048, 256)] {
            let mut end = 0;
            for stretch in stretches(k, unit) {
                assert_eq!(stretch.start, end, "{k}");
                assert!(stretch.len() <= STRETCH && stretch.len().is_multiple_of(unit), "{k}: {stretch:?}");
                end = stretch.end;
            }
            assert_eq!(end, k);
        }
    }
}
