//! Quantized products of many rows by the tiles of AMX, the same to the last bit as [`gemm`](super::gemm) computes them.
//!
//! The unit of work is a *dot*: 16 rows times the 16 columns of a panel over the 32 (or 16) weights that share a
//! scale. A tile computes its 256 sums of bytes exactly; then they are scaled and added up as everywhere, row by row in
//! registers. In cycles of a Sapphire Rapids core, for a dot of 32 (Intel's optimization manual, chapter 20):
//!
//! | | |
//! |---|---|
//! | loads of A (16 rows) and B (8 rows), two lines a cycle | 12 |
//! | TDPBSUD, whatever the width | 16 |
//! | TILESTORED, a row a cycle | 16 |
//! | 16 x (convert, multiply, 2 fused steps), two a cycle | **32** |
//! | loads of those: 16 sums, 32 activation scales, some addresses | 20 to 28 |
//!
//! They share few ports, so that the floats decide if all else hides behind them: 32 cycles at best, and 40 when loads
//! are the limit, where VNNI needs 8 + 4 instructions a row, 96 cycles and the unpacking (dots of 16: 64 to 80 instead
//! of 128 for 32 weights). The floats alone, without tiles, take 11 ns on a core of another make where the VNNI tier
//! takes 25 to 31; nothing here was timed on a machine with AMX yet. Hence
//!
//! * the tiles run [`LEAD`] dots ahead of the floats, over the borders of rows and panels: loading, multiplying and
//!   storing a dot takes some 130 cycles from end to end;
//! * sums stay in sixteen registers over a *stretch* of 256 weights, whose unpacked codes and scales for four panels,
//!   with sixteen rows of activations, fit the first cache (34 KiB); between stretches they are in memory;
//! * codes are unpacked once for 128 rows: 2 to 5 % of the time.
//!
//! Rows of activations are read where they are. Where they lie 4096 bytes apart they share too few places in
//! the first cache, and come from the second, 1 KiB a dot, which it delivers.

mod tiles;

use std::cell::RefCell;
use std::ops::Range;

use self::tiles::{A, B, Config, ROWS, Tiles};
use super::forms::{self, Form, GROUPS, SUB};
use super::quantize::{META, Quantized};
use super::simd::{LANES, Simd};

#[cfg(target_arch = "x86_64")]
pub(super) use self::tiles::available;

/// Weights of a stretch, of each column.
const STRETCH: usize = 256;
/// Panels that are worked on together, and tiles of rows.
const PANELS: usize = 4;
const TILES: usize = 8;
/// Dots that the tiles are ahead, and room for their sums.
const LEAD: usize = 4;
const RING: usize = 8;
/// Rows beyond whole tiles from which on another tile pays: one costs AVX-512 about 13 cycles a dot.
const REST: usize = 3;

/// The codes of a panel as tiles take them, `[k / 4][16][4]`, and scale and offset of each dot.
#[repr(C, align(64))]
struct Panel {
    codes: [u8; STRETCH * LANES],
    scales: [[[f32; LANES]; 2]; STRETCH / 16],
}

type Sums = [[f32; LANES]; ROWS];

#[repr(C, align(64))]
struct Scratch {
    panels: [Panel; PANELS],
    ring: [[[i32; LANES]; ROWS]; RING],
    /// Of tile `t` and panel `p`: `t * panels + p`.
    sums: [Sums; TILES * PANELS],
}

thread_local! {
    static SCRATCH: RefCell<Box<Scratch>> = RefCell::new(Box::new(Scratch {
        panels: [const { Panel { codes: [0; _], scales: [[[0.0; LANES]; 2]; _] } }; PANELS],
        ring: [[[0; LANES]; ROWS]; RING],
        sums: [[[0.0; LANES]; ROWS]; TILES * PANELS],
    }));
}

/// How many of `rows` rows are worth tiles: the first ones.
pub(super) fn rows_in_tiles(rows: usize) -> usize {
    match rows % ROWS {
        _ if rows < ROWS => 0,
        rest if rest < REST => rows - rest,
        _ => rows,
    }
}

/// Multiplies the first `rows` rows with panels of `panel_bytes`, and gives away the sums: the first row of some,
/// which panel of `w`, a vector a row. Each row and panel comes once.
///
/// # Safety
/// AMX and AVX-512 as `Isa` has them at its level; `rows` by [`rows_in_tiles`]; the panels have `k` weights of each
/// column in form `Q`.
#[cfg(target_arch = "x86_64")]
pub(super) unsafe fn multiply<Q: Form>(
    w: &[u8],
    panel_bytes: usize,
    x: &Quantized,
    k: usize,
    rows: usize,
    each: impl FnMut(usize, usize, &[[f32; LANES]]),
) {
    use super::simd::avx512::Avx512;
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
    unsafe fn unpack<Q: Form>(units: &[u8], to: &mut Panel) {
        unsafe { unpack_body::<Avx512<true>, Q>(units, to) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
    unsafe fn narrow(work: &mut Work<'_>, tiles: &mut tiles::Amx) {
        unsafe { work_body::<Avx512<true>, tiles::Amx, true>(work, tiles) }
    }
    #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx512bf16,avx2,fma,f16c")]
    unsafe fn wide(work: &mut Work<'_>, tiles: &mut tiles::Amx) {
        unsafe { work_body::<Avx512<true>, tiles::Amx, false>(work, tiles) }
    }
    let kernels = Kernels { unpack: unpack::<Q>, work: if Q::HALVES { narrow } else { wide } };
    // SAFETY: the caller's promise.
    unsafe { multiply_with::<tiles::Amx, Q>(kernels, w, panel_bytes, x, k, rows, each) }
}

/// The two parts that are compiled with instructions of their own.
struct Kernels<T> {
    unpack: unsafe fn(&[u8], &mut Panel),
    work: unsafe fn(&mut Work<'_>, &mut T),
}

/// # Safety
/// As [`multiply`], with the instructions of `kernels` and `T`.
unsafe fn multiply_with<T: Tiles, Q: Form>(
    kernels: Kernels<T>,
    w: &[u8],
    panel_bytes: usize,
    x: &Quantized,
    k: usize,
    rows: usize,
    mut each: impl FnMut(usize, usize, &[[f32; LANES]]),
) {
    assert!(k > 0 && panel_bytes == k / Q::TYPE.block_len() * Q::UNIT && rows == rows_in_tiles(rows));
    assert!(x.q.len() >= rows * k && x.meta.len() >= rows * (k / SUB) * META);
    if rows == 0 {
        return;
    }
    let stretch_bytes = STRETCH / Q::TYPE.block_len() * Q::UNIT;
    // Another library may use tiles on this thread before and after, so that none of this outlasts the task.
    // SAFETY: the caller's promise.
    let mut tiles = unsafe { T::configure(&Config::of(if Q::HALVES { SUB / 2 } else { SUB })) };
    SCRATCH.with_borrow_mut(|scratch| {
        for (block, group) in blocks(w.len() / panel_bytes, rows) {
            let columns = w[group.start * panel_bytes..group.end * panel_bytes].chunks_exact(panel_bytes);
            for start in (0..k).step_by(STRETCH) {
                let from = start / STRETCH * stretch_bytes;
                for (panel, to) in columns.clone().zip(&mut scratch.panels) {
                    let units = &panel[from..panel_bytes.min(from + stretch_bytes)];
                    // SAFETY: whole units of at most a stretch.
                    unsafe { (kernels.unpack)(units, to) };
                }
                let len = STRETCH.min(k - start);
                let mut work =
                    Work { x, k, rows, block: block.clone(), panels: group.len(), start, len, scratch };
                // SAFETY: the panels are there for the stretch, and the rows by the lines above.
                unsafe { (kernels.work)(&mut work, &mut tiles) };
            }
            for (index, sums) in scratch.sums.iter().take(block.len() * group.len()).enumerate() {
                let (tile, panel) = (block.start + index / group.len(), group.start + index % group.len());
                let first = first_row(tile, rows);
                each(tile * ROWS, panel, &sums[tile * ROWS - first..]);
            }
        }
    });
}

/// Tiles of rows and panels that are worked on together.
fn blocks(panels: usize, rows: usize) -> impl Iterator<Item = (Range<usize>, Range<usize>)> {
    let tiles = rows.div_ceil(ROWS);
    (0..panels).step_by(PANELS).flat_map(move |panel| {
        let group = panel..panels.min(panel + PANELS);
        (0..tiles).step_by(TILES).map(move |tile| (tile..tiles.min(tile + TILES), group.clone()))
    })
}

/// Where a tile of rows begins. The last one takes rows of the one before it along rather than be smaller: nothing is
/// read beyond the rows, and nobody configures anew.
fn first_row(tile: usize, rows: usize) -> usize {
    (tile * ROWS).min(rows - ROWS)
}

/// # Safety
/// The tier's instructions; `units` are whole ones of at most a stretch.
#[inline(always)]
unsafe fn unpack_body<S: Simd, Q: Form>(units: &[u8], to: &mut Panel) {
    const { assert!(size_of::<S::I>() == 64 && GROUPS == 8 && STRETCH.is_multiple_of(SUB * Q::SUBS)) };
    let dots = if Q::HALVES { 2 } else { 1 };
    let mut codes = to.codes.as_mut_ptr();
    let mut scales = to.scales.as_mut_ptr().cast::<f32>();
    for unit in units.chunks_exact(Q::UNIT) {
        // SAFETY: a sub-block writes 512 bytes of codes and two vectors for each dot, and a stretch has room for eight.
        unsafe {
            let head = forms::load_head::<S, Q>(unit.as_ptr());
            let mut sub = unit.as_ptr().add(Q::HEAD);
            for _ in 0..Q::SUBS {
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

/// A stretch of `len` weights from `start` on: the tiles `block` of the `rows` rows, times unpacked panels.
struct Work<'a> {
    x: &'a Quantized,
    k: usize,
    rows: usize,
    block: Range<usize>,
    panels: usize,
    start: usize,
    len: usize,
    scratch: &'a mut Scratch,
}

/// Where the tiles are: they go through all dots of a tile of rows and a panel, then to the next panel, then to the
/// next tile.
struct Ahead {
    /// The next dot's activations and codes.
    a: *const u8,
    b: *const u8,
    /// Dots left of this tile and panel, which is the `item`th pair of `items`.
    left: usize,
    item: usize,
    items: usize,
    /// Dots done.
    done: usize,
}

impl Ahead {
    /// Goes to the pair `item`, if there is one.
    #[inline(always)]
    fn enter(&mut self, work: &Work<'_>, width: usize) {
        if self.item < self.items {
            let row = first_row(work.block.start + self.item / work.panels, work.rows);
            self.a = work.x.q[row * work.k + work.start..].as_ptr().cast();
            self.b = work.scratch.panels[self.item % work.panels].codes.as_ptr();
            self.left = work.len / width;
        }
    }

    /// The next dot, into the ring.
    ///
    /// # Safety
    /// As [`work_body`].
    #[inline(always)]
    unsafe fn step<T: Tiles>(&mut self, work: &mut Work<'_>, tiles: &mut T, width: usize) {
        if self.left == 0 {
            return;
        }
        // SAFETY: sixteen rows of activations of `width` from here on, and `width / 4` groups of codes, are there.
        unsafe {
            let to = work.scratch.ring.as_mut_ptr().add(self.done % RING).cast::<u8>();
            macro_rules! product {
                ($c:literal, $ab:literal) => {{
                    tiles.load::<{ A + $ab }>(self.a, work.k);
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
            self.enter(work, width);
        }
    }
}

/// Adds the stretch to the sums (or sets them, at the start). `HALVES`: scales serve 16 weights.
///
/// # Safety
/// The tier's instructions, and tiles configured for such dots; panels, rows and activations are there.
#[inline(always)]
unsafe fn work_body<S: Simd, T: Tiles, const HALVES: bool>(work: &mut Work<'_>, tiles: &mut T) {
    let width = if HALVES { SUB / 2 } else { SUB };
    let (dots, stride) = (work.len / width, work.k / SUB * META);
    let items = work.block.len() * work.panels;
    let nowhere = std::ptr::null();
    let mut ahead = Ahead { a: nowhere, b: nowhere, left: 0, item: 0, items, done: 0 };
    ahead.enter(work, width);
    let mut done = 0;
    // SAFETY: the caller's promise. The ring has the sums of a dot from its step until `RING` dots later.
    unsafe {
        for _ in 0..LEAD {
            ahead.step(work, tiles, width);
        }
        for item in 0..items {
            let row = first_row(work.block.start + item / work.panels, work.rows);
            let meta = work.x.meta.as_ptr().add(row * stride + work.start / SUB * META);
            let panel: *const Panel = work.scratch.panels.as_ptr().add(item % work.panels);
            let sums = work.scratch.sums.as_mut_ptr().add(item).cast::<f32>();
            let mut acc = [S::zero(); ROWS];
            if work.start > 0 {
                for (i, acc) in acc.iter_mut().enumerate() {
                    *acc = S::load(sums.add(i * LANES));
                }
            }
            for dot in 0..dots {
                ahead.step(work, tiles, width);
                let ring = work.scratch.ring.as_ptr().add(done % RING).cast::<u8>();
                let scales = (&raw const (*panel).scales).cast::<f32>().add(dot * 2 * LANES);
                let (scale, offset) = (S::load(scales), S::load(scales.add(LANES)));
                let (meta, total) =
                    if HALVES { (meta.add(dot / 2 * META), 2 + dot % 2) } else { (meta.add(dot * META), 1) };
                for (i, acc) in acc.iter_mut().enumerate() {
                    let meta = meta.add(i * stride);
                    let value = S::mul(S::to_f(S::load_i(ring.add(i * 4 * LANES))), scale);
                    *acc = S::fma(value, S::splat(*meta), *acc);
                    *acc = S::fma(offset, S::splat(*meta.add(total)), *acc);
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
