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
//! | TDPBSSD, whatever the width | 16 |
//! | TILESTORED, a row a cycle | 16 |
//! | 16 x (convert, multiply, 1 or 2 fused steps), two a cycle | 24 or 32 |
//! | loads of those: 16 sums, 16 or 32 activation scales, some addresses | 20 to 28 |
//!
//! Measured on a core at 3 GHz or so, in a program of their own, they overlap less than that: the tiles of a
//! dot alone take 10 ns, the floats alone 9, both together 18. VNNI needs 8 + 4 instructions a row, some 40
//! ns a dot. Hence
//!
//! * codes whose zero is not 0 are made signed before, so that nothing is taken away from their dots;
//! * the tiles run [`LEAD`] dots ahead of the floats: loading, multiplying and storing a dot takes some 130
//!   cycles from end to end;
//! * sums stay in sixteen registers over a K-block, and in memory between K-blocks;
//! * codes are unpacked once for all rows of a task: 3 to 7 % of the time with 96.
//!
//! Outliers are added afterwards, by AVX-512.
//!
//! Rows of activations are read where they are. Where they lie a multiple of 4096 bytes apart they fall into
//! the same few sets of L1 and come from L2, 1 KiB a dot, which it delivers.

mod tiles;

use self::tiles::{A, B, C, Config, Tiles};
#[cfg(target_arch = "x86_64")]
pub(super) use self::tiles::{Amx, self_check};
use super::layouts::{Kind, Layout, SUB, with_kind};
use super::panels::{AMX_ROWS as ROWS, K_BLOCK, PANELS, PLACES, RING, Scratch, Work};
use super::quantize::{At, META};
use super::simd::{LANES, Simd};

/// Dots that the tiles are ahead of the floats.
const LEAD: usize = 3;
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

/// Adds a K-block to the sums of sixteen rows, or sets them at the start.
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

/// A statement for each of sixteen rows, written out: as a loop the sums were kept in memory, and a dot took
/// more than twice as long.
macro_rules! each_row {
    ($i:ident => $do:expr) => {
        each_row!($i => $do; 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    ($i:ident => $do:expr; $($row:literal)*) => {{
        const { assert!(ROWS == 16) };
        $({
            const $i: usize = $row;
            $do;
        })*
    }};
}

/// As [`multiply`].
///
/// # Safety
/// The tier's instructions, and tiles configured for such dots; panels, rows and activations are there.
#[inline(always)]
unsafe fn multiply_body<S: Simd, T: Tiles, K: Kind>(work: &Work<'_>, scratch: &mut Scratch, tiles: &mut T) {
    assert!(work.rows.len() == ROWS && work.rows.end <= work.x.rows && work.place + ROWS <= PLACES);
    assert!(work.panels <= PANELS && work.blocks * SUB <= K_BLOCK);
    let x = work.x.at(work.plane, work.rows.start, work.first);
    for panel in 0..work.panels {
        // SAFETY: the caller's promise.
        unsafe { multiply_panel::<S, T, K>(work, (x, panel), scratch, tiles) };
    }
}

/// All dots of the rows and a panel.
///
/// # Safety
/// As [`multiply_body`].
#[inline(always)]
unsafe fn multiply_panel<S: Simd, T: Tiles, K: Kind>(
    work: &Work<'_>,
    (x, panel): (At, usize),
    scratch: &mut Scratch,
    tiles: &mut T,
) {
    let (dots, width) = if K::HALVES { (2 * work.blocks, SUB / 2) } else { (work.blocks, SUB) };
    let sums = scratch.sums[panel].as_mut_ptr().wrapping_add(work.place).cast::<f32>();
    let scales = scratch.panels[panel].scales.as_ptr().cast::<f32>();
    let ring = scratch.ring.0.as_mut_ptr();
    let (a, k, next_row) = (x.q.cast::<u8>(), x.k, x.blocks * META);
    let b = match K::MIN && !K::WIDE {
        true => scratch.panels[panel].codes.as_ptr(),
        false => scratch.signed[panel].as_ptr().cast(),
    };
    // A dot, into the ring. The same registers for each: the processor renames them, and registers in turn
    // took as long.
    macro_rules! multiply_dot {
        ($dot:expr) => {{
            tiles.load::<A>(a.add($dot * width), k);
            tiles.load::<B>(b.add($dot * width * LANES), 4 * LANES);
            tiles.zero::<C>();
            tiles.dot::<C, A, B>();
            tiles.store::<C>(ring.add($dot % RING).cast(), 4 * LANES);
        }};
    }
    // SAFETY: the caller's promise: sixteen rows of activations and a panel of codes with so many dots are
    // there. The ring has the sums of a dot until `RING` dots later.
    unsafe {
        let mut acc = [S::zero(); ROWS];
        if work.add {
            each_row!(I => acc[I] = S::load(sums.add(I * LANES)));
        }
        for dot in 0..LEAD.min(dots) {
            multiply_dot!(dot);
        }
        for dot in 0..dots {
            if dot + LEAD < dots {
                multiply_dot!(dot + LEAD);
            }
            let total = ring.add(dot % RING).cast::<u8>();
            let scale = S::load(scales.add(dot * 2 * LANES));
            let mut offset = S::load(scales.add(dot * 2 * LANES + LANES));
            if K::MIN && K::WIDE {
                // As in `tile`: what was taken away from the codes.
                offset = S::fma(scale, S::splat(128.0), offset);
            }
            let (block, sum) = if K::HALVES { (dot / 2, 2 + dot % 2) } else { (dot, 1) };
            let mut meta = x.meta.add(block * META);
            each_row!(I => {
                let total = S::to_f(S::load_i(total.add(I * 4 * LANES)));
                acc[I] = S::fma(S::mul(total, scale), S::splat(*meta), acc[I]);
                if K::MIN {
                    acc[I] = S::fma(offset, S::splat(*meta.add(sum)), acc[I]);
                }
                meta = meta.wrapping_add(next_row);
            });
        }
        each_row!(I => S::store(sums.add(I * LANES), acc[I]));
    }
}

#[cfg(test)]
mod tests;
