//! Quantized products of many rows by the tiles of AMX, the same to the last bit as [`gemm`](super::gemm)
//! computes them.
//!
//! The unit of work is a *dot*: 16 rows times the 16 columns of a panel over the 32 (or 16) weights that
//! share a scale. A tile computes its 256 sums of bytes exactly; then they are scaled and added up as
//! everywhere, row by row in registers. In cycles of a Sapphire Rapids core, for a dot of 32 (Intel's
//! optimization manual, chapter 20):
//!
//! | | |
//! |---|---|
//! | loads of A (16 rows) and B (8 rows), two lines a cycle | 12 |
//! | TDPBSUD, whatever the width | 16 |
//! | TILESTORED, a row a cycle | 16 |
//! | 16 x (convert, multiply, 2 fused steps), two a cycle | **32** |
//! | loads of those: 16 sums, 32 activation scales, some addresses | 20 to 28 |
//!
//! They share few ports, so that the floats decide if all else hides behind them: 32 cycles at best, and 40
//! when loads are the limit, where VNNI needs 8 + 4 instructions a row, 96 cycles and the unpacking (dots of
//! 16: 64 to 80 instead of 128 for 32 weights). The floats alone, without tiles, take 11 ns on a core of
//! another make where the VNNI tier takes 25 to 31; nothing here was timed on a machine with AMX yet. Hence
//!
//! * the tiles run [`LEAD`] dots ahead of the floats, over the borders of rows and panels: loading,
//!   multiplying and storing a dot takes some 130 cycles from end to end;
//! * sums stay in sixteen registers over a K-block, and in memory between K-blocks;
//! * codes are unpacked once for all rows of a task: 3 to 7 % of the time with 96.
//!
//! Outliers are added afterwards, by AVX-512.
//!
//! Rows of activations are read where they are. Where they lie a multiple of 4096 bytes apart they fall into
//! the same few sets of L1 and come from L2, 1 KiB a dot, which it delivers.

mod tiles;

use self::tiles::{A, B, Config, Tiles};
#[cfg(target_arch = "x86_64")]
pub(super) use self::tiles::{Amx, self_check};
use super::layouts::{Kind, Layout, SUB, with_kind};
use super::panels::{AMX_ROWS as ROWS, Panel, RING, Scratch, Work};
use super::quantize::{At, META, SUMS};
use super::simd::{LANES, Simd};

/// Dots that the tiles are ahead of the floats.
const LEAD: usize = 4;
const _: () = assert!(LEAD < RING);
/// Rows beyond whole tiles from which on another tile pays: one costs AVX-512 about 13 cycles a dot.
const REST: usize = 3;

/// How many of `rows` rows are worth tiles: the first ones.
pub(super) fn rows_in_tiles(rows: usize) -> usize {
    match rows % ROWS {
        _ if rows < ROWS => 0,
        rest if rest < REST => rows - rest,
        _ => rows,
    }
}

/// The row that the tile at `row` begins with. The last one takes rows of the one before it along rather than
/// be smaller: nothing is read beyond the rows, and nobody configures anew.
pub(super) fn first_row(row: usize, rows: usize) -> usize {
    row.min(rows - ROWS)
}

/// Tiles for products of layout `Q`. Another library may use tiles on this thread before and after, so that
/// they are given back when this is dropped.
///
/// # Safety
/// AMX as `Isa` has it at its level.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn configure<Q: Layout>() -> Amx {
    // SAFETY: the caller's promise.
    unsafe { Amx::configure(&config::<Q>()) }
}

fn config<Q: Layout>() -> Config {
    Config::of(if Q::HALVES { SUB / 2 } else { SUB })
}

/// Adds a K-block to the sums, or sets them at the start. The rows are worth tiles by [`rows_in_tiles`].
///
/// # Safety
/// AMX and AVX-512 as `Isa` has them at its level, and tiles configured for the layout.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn multiply<Q: Layout>(work: &Work<'_>, scratch: &mut Scratch, tiles: &mut Amx) {
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
    unsafe fn compiled<K: Kind>(work: &Work<'_>, scratch: &mut Scratch, tiles: &mut Amx) {
        // SAFETY: the caller's promise is that of `multiply_body`, and this function has the AVX-512
        // instructions.
        unsafe { multiply_body::<super::simd::avx512::Avx512<true>, Amx, K>(work, scratch, tiles) }
    }
    // SAFETY: the caller's promise.
    with_kind!(Q, K => unsafe { compiled::<K>(work, scratch, tiles) });
}

/// A tile of rows and a panel.
#[derive(Clone, Copy)]
struct Item {
    /// Where the rows begin.
    x: At,
    panel: usize,
    /// Of the first row's sums.
    place: usize,
}

impl Item {
    /// Tiles of rows one after the other, all panels for each.
    #[inline(always)]
    fn of(work: &Work<'_>, index: usize) -> Item {
        let (tile, panel) = (index / work.panels * ROWS, index % work.panels);
        let row = work.rows.start + first_row(tile, work.rows.len());
        let x = work.x.at(work.plane, row, work.first);
        Item { x, panel, place: work.place + tile }
    }
}

/// Where the tiles are: they go through all dots of a tile of rows and a panel, then to the next panel, then
/// to the next tile.
struct Ahead {
    /// The next dot's activations and codes.
    a: *const u8,
    b: *const u8,
    /// Dots left of this item, the `item`th of `items`.
    left: usize,
    item: usize,
    items: usize,
    /// Dots done.
    done: usize,
}

impl Ahead {
    /// Goes to the item `self.item`, if there is one.
    #[inline(always)]
    fn enter(&mut self, work: &Work<'_>, scratch: &Scratch, dots: usize) {
        if self.item < self.items {
            let item = Item::of(work, self.item);
            self.a = item.x.q.cast();
            self.b = scratch.panels[item.panel].codes.as_ptr();
            self.left = dots;
        }
    }

    /// The next dot, into the ring.
    ///
    /// # Safety
    /// As [`multiply_body`].
    #[inline(always)]
    unsafe fn step<T: Tiles, K: Kind>(
        &mut self,
        work: &Work<'_>,
        scratch: &mut Scratch,
        tiles: &mut T,
        dots: usize,
    ) {
        if self.left == 0 {
            return;
        }
        let width = if K::HALVES { SUB / 2 } else { SUB };
        // SAFETY: sixteen rows of activations of `width` from here on, and `width / 4` groups of codes, are
        // there.
        unsafe {
            let to = scratch.ring.0.as_mut_ptr().add(self.done % RING).cast::<u8>();
            macro_rules! product {
                ($c:literal, $ab:literal) => {{
                    tiles.load::<{ A + $ab }>(self.a, work.x.k);
                    tiles.load::<{ B + $ab }>(self.b, 4 * LANES);
                    tiles.zero::<$c>();
                    tiles.dot::<$c, { A + $ab }, { B + $ab }>();
                    tiles.store::<$c>(to, 4 * LANES);
                }};
            }
            // Registers in turn: one dot need not wait for the one before it.
            match self.done % 4 {
                0 => product!(0, 0),
                1 => product!(1, 1),
                2 => product!(2, 0),
                _ => product!(3, 1),
            }
        }
        self.a = self.a.wrapping_add(width);
        self.b = self.b.wrapping_add(width * LANES);
        self.done += 1;
        self.left -= 1;
        if self.left == 0 {
            self.item += 1;
            self.enter(work, scratch, dots);
        }
    }
}

/// As [`multiply`].
///
/// # Safety
/// The tier's instructions, and tiles configured for such dots; panels, rows and activations are there.
#[inline(always)]
unsafe fn multiply_body<S: Simd, T: Tiles, K: Kind>(work: &Work<'_>, scratch: &mut Scratch, tiles: &mut T) {
    assert!(rows_in_tiles(work.rows.len()) == work.rows.len() && work.rows.end <= work.x.rows);
    let dots = work.blocks * if K::HALVES { 2 } else { 1 };
    let items = work.rows.len().div_ceil(ROWS) * work.panels;
    let nowhere = std::ptr::null();
    let mut ahead = Ahead { a: nowhere, b: nowhere, left: 0, item: 0, items, done: 0 };
    ahead.enter(work, scratch, dots);
    let mut done = 0;
    // SAFETY: the caller's promise. The ring has the sums of a dot from its step until `RING` dots later.
    unsafe {
        for _ in 0..LEAD {
            ahead.step::<T, K>(work, scratch, tiles, dots);
        }
        for index in 0..items {
            let Item { x, panel, place } = Item::of(work, index);
            let panel: *const Panel = scratch.panels.as_ptr().add(panel);
            let sums = scratch.sums[index % work.panels].as_mut_ptr().add(place).cast::<f32>();
            let mut acc = [S::zero(); ROWS];
            if work.add {
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = S::load(sums.add(i * LANES));
                }
            }
            for dot in 0..dots {
                ahead.step::<T, K>(work, scratch, tiles, dots);
                let ring = (&raw const scratch.ring.0[done % RING]).cast::<u8>();
                let scales = (&raw const (*panel).scales).cast::<f32>().add(dot * 2 * LANES);
                let (scale, offset) = (S::load(scales), S::load(scales.add(LANES)));
                let (block, sum) = if K::HALVES { (dot / 2, 2 + dot % 2) } else { (dot, 1) };
                for (i, acc) in acc.iter_mut().enumerate() {
                    let meta = x.meta.add((i * x.blocks + block) * META);
                    let mut total = S::load_i(ring.add(i * 4 * LANES));
                    if !K::MIN {
                        let minus = S::splat_i(*x.sums.add((i * x.blocks + block) * SUMS + sum - 1));
                        total = S::add_i(total, S::shl_32(minus, work.zero));
                    }
                    *acc = S::fma(S::mul(S::to_f(total), scale), S::splat(*meta), *acc);
                    if K::MIN {
                        *acc = S::fma(offset, S::splat(*meta.add(sum)), *acc);
                    }
                }
                done += 1;
            }
            for (i, &acc) in acc.iter().enumerate() {
                S::store(sums.add(i * LANES), acc);
            }
        }
    }
}

#[cfg(test)]
mod tests;
