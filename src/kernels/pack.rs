//! Weights packed once, at load, into panels of sixteen rows ([`layouts`]), and single rows of them
//! read back for embeddings.
//!
//! Packing runs on the worker pool, straight from the memory map; the map's pages are given back afterwards,
//! so that nothing is in memory twice. The panels lie in an [`Arena`]: anonymous maps of some megabytes each,
//! which the operating system may back with large pages. Or they come from a file that keeps what was packed
//! before ([`Panels`]), and lie in its map.

use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use super::disjoint::DisjointSlices;
use super::floats;
use super::layouts::{self, Layout, SUB, with_layout};
use super::pool::Pool;
use super::simd::LANES;
use crate::error::{Error, Result};
use crate::weights::{Bytes, WeightTensor, WeightType, blocks};

/// Bytes of a map of the arena, unless a matrix needs more.
const MAP_BYTES: usize = 32 << 20;

/// Bytes of packed weights after which the pages that they came from are given back.
const SLICE: usize = 4 << 20;

/// Counts the layouts of panels: what is kept on disk is of one of them. It goes up whenever other bytes come
/// out of [`pack`] for the same weights, which a test below notices. All tiers of instructions read the same
/// panels.
pub(super) const LAYOUT: u32 = 2;

/// A matrix `[n, k]` in panels.
#[derive(Clone)]
pub(super) struct Packed {
    pub(super) dtype: WeightType,
    pub(super) n: usize,
    pub(super) k: usize,
    pub(super) panel_bytes: usize,
    data: Region,
}

impl Packed {
    pub(super) fn panels(&self) -> usize {
        self.n.div_ceil(LANES)
    }

    /// Panels `range`, one after another.
    pub(super) fn bytes(&self, range: Range<usize>) -> &[u8] {
        &self.data.bytes()[range.start * self.panel_bytes..range.end * self.panel_bytes]
    }

    /// Row `row` as floats; bit for bit what [`blocks::dequantize_row`] makes of it.
    pub(super) fn row(&self, row: usize, out: &mut [f32]) {
        with_layout!(self.dtype, Q => row_of::<Q>(self, row, out), else dense_row(self, row, out));
    }
}

/// The panels of a matrix, to be kept on disk: a share of the memory that they lie in.
pub struct Panels(Packed);

impl Panels {
    pub(super) fn of(packed: &Packed) -> Panels {
        Panels(packed.clone())
    }

    pub fn dtype(&self) -> WeightType {
        self.0.dtype
    }
}

impl std::ops::Deref for Panels {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.0.bytes(0..self.0.panels())
    }
}

/// The matrix `[n, k]` of `dtype` whose panels are `bytes`.
///
/// # Errors
/// `ModelFile` when they are not as long as that matrix's.
pub(super) fn from_panels(dtype: WeightType, n: usize, k: usize, bytes: Bytes) -> Result<Packed> {
    let panel_bytes = dtype.row_bytes(k).map(|_| panel_bytes(dtype, k));
    let size = panel_bytes.and_then(|panel| panel.checked_mul(n.div_ceil(LANES)));
    match (panel_bytes, size == Some(bytes.len())) {
        (Some(panel_bytes), true) => Ok(Packed { dtype, n, k, panel_bytes, data: Region::Kept(bytes) }),
        _ => Err(Error::model_file(format!("{} bytes are no panels of [{n}, {k}] {dtype}", bytes.len()))),
    }
}

/// Packs the matrix `w` `[n, k]`, whose rows have `row_bytes`.
///
/// # Errors
/// `OutOfMemory` when there is no room; `Internal` when a worker panicked.
pub(super) fn pack(
    pool: &Pool,
    arena: &Arena,
    w: &WeightTensor,
    n: usize,
    k: usize,
    row_bytes: usize,
) -> Result<Packed> {
    let panel_bytes = panel_bytes(w.dtype, k);
    let panels = n.div_ceil(LANES);
    let size = panel_bytes.checked_mul(panels).ok_or_else(|| too_large(usize::MAX))?;
    let mut part = arena.part(size)?;
    let shares = DisjointSlices::new(part.bytes_mut());
    // In slices, after each of which the map's pages go back: all of a large matrix is never in memory twice.
    let slice = (SLICE / panel_bytes).max(1);
    for first in (0..panels).step_by(slice) {
        let slice = first..panels.min(first + slice);
        let rows = slice.start * LANES * row_bytes..n.min(slice.end * LANES) * row_bytes;
        pack_slice(pool, w, slice, panel_bytes, row_bytes, n, &shares)?;
        w.data.slice(rows)?.release();
    }
    Ok(Packed { dtype: w.dtype, n, k, panel_bytes, data: Region::Own(part) })
}

fn pack_slice(
    pool: &Pool,
    w: &WeightTensor,
    slice: Range<usize>,
    panel_bytes: usize,
    row_bytes: usize,
    n: usize,
    out: &DisjointSlices<'_, u8>,
) -> Result<()> {
    let task_panels = ((1 << 16) / panel_bytes).max(1);
    pool.run("pack", slice.len().div_ceil(task_panels), &|index| {
        let first = slice.start + index * task_panels;
        for panel in first..slice.end.min(first + task_panels) {
            // SAFETY: panels do not overlap.
            let out = unsafe { out.slice_mut(panel * panel_bytes..(panel + 1) * panel_bytes) };
            let rows = panel * LANES..n.min((panel + 1) * LANES);
            let rows = &w.data[rows.start * row_bytes..rows.end * row_bytes];
            with_layout!(w.dtype,
                Q => pack_panel::<Q>(rows, row_bytes, out),
                else pack_dense(w.dtype, rows, row_bytes, out));
        }
    })
}

fn panel_bytes(dtype: WeightType, k: usize) -> usize {
    with_layout!(dtype, Q => k / Q::TYPE.block_len() * Q::UNIT, else {
        k / dtype.block_len() * LANES * dtype.block_bytes()
    })
}

/// `out` is zeros, and rows that are not there stay zeros.
fn pack_panel<Q: Layout>(rows: &[u8], row_bytes: usize, out: &mut [u8]) {
    let block_bytes = Q::TYPE.block_bytes();
    for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
        for (block, unit) in row.chunks_exact(block_bytes).zip(out.chunks_exact_mut(Q::UNIT)) {
            let [d, more] = Q::head(block);
            unit[Q::D_BYTES * r..][..Q::D_BYTES].copy_from_slice(&d[..Q::D_BYTES]);
            let at = LANES * Q::D_BYTES + Q::MORE_BYTES * r;
            unit[at..at + Q::MORE_BYTES].copy_from_slice(&more[..Q::MORE_BYTES]);
            for (sub, part) in unit[Q::HEAD..].chunks_exact_mut(Q::SUB_BYTES).enumerate() {
                let (scales, codes) = part.split_at_mut(Q::SCALE_BYTES);
                let small = Q::scales(block, sub);
                for (scales, small) in scales.chunks_exact_mut(LANES).zip(small) {
                    scales[r] = small;
                }
                layouts::store(codes, r, &Q::words(block, sub));
            }
        }
    }
}

fn row_of<Q: Layout>(w: &Packed, row: usize, out: &mut [f32]) {
    let panel = w.bytes(row / LANES..row / LANES + 1);
    let subs = out.as_chunks_mut::<SUB>().0;
    for (unit, out) in panel.chunks_exact(Q::UNIT).zip(subs.chunks_exact_mut(Q::SUBS)) {
        for (sub, out) in out.iter_mut().enumerate() {
            layouts::row_of_sub::<Q>(unit, sub, row % LANES, out);
        }
    }
}

/// Floats: sixteen of one `k` side by side. Of blocks first the scales of sixteen rows, then the codes, each
/// at its [`place`](floats::place).
fn pack_dense(dtype: WeightType, rows: &[u8], row_bytes: usize, out: &mut [u8]) {
    let size = dtype.block_bytes();
    for (r, row) in rows.chunks_exact(row_bytes).enumerate() {
        if dtype.is_block_float() {
            for (block, unit) in row.chunks_exact(size).zip(out.chunks_exact_mut(LANES * size)) {
                let (scale, codes) = block.split_at(4);
                unit[4 * r..4 * r + 4].copy_from_slice(scale);
                for at in 0..SUB {
                    let (byte, bit) = floats::place(dtype, at, r);
                    // The low bits of a byte come first, and clear it.
                    unit[byte] = if bit == 0 { 0 } else { unit[byte] } | code(dtype, codes, at) << bit;
                }
            }
            continue;
        }
        for (value, out) in row.chunks_exact(size).zip(out.chunks_exact_mut(LANES * size)) {
            out[r * size..(r + 1) * size].copy_from_slice(value);
        }
    }
}

/// The code of weight `at` of a block: a byte, or the nibble of 16 low ones and 16 high ones.
fn code(dtype: WeightType, codes: &[u8], at: usize) -> u8 {
    match dtype {
        WeightType::Fp8 => codes[at],
        _ => codes[at % 16] >> (4 * (at / 16)) & 15,
    }
}

/// The block of row `r` in a unit of [`pack_dense`].
fn block_of(dtype: WeightType, unit: &[u8], r: usize, block: &mut [u8]) {
    let (scale, codes) = block.split_at_mut(4);
    scale.copy_from_slice(&unit[4 * r..4 * r + 4]);
    let code = |at: usize| {
        let (byte, bit) = floats::place(dtype, at, r);
        unit[byte] >> bit
    };
    for (at, out) in codes.iter_mut().enumerate() {
        *out = match dtype {
            WeightType::Fp8 => code(at),
            _ => code(at) & 15 | code(at + 16) << 4,
        };
    }
}

fn dense_row(w: &Packed, row: usize, out: &mut [f32]) {
    let size = w.dtype.block_bytes();
    let panel = w.bytes(row / LANES..row / LANES + 1);
    let r = row % LANES;
    if w.dtype.is_block_float() {
        let mut block = [0; 36];
        let block = &mut block[..size];
        for (unit, out) in panel.chunks_exact(LANES * size).zip(out.as_chunks_mut::<SUB>().0) {
            block_of(w.dtype, unit, r, block);
            blocks::dequantize_row(w.dtype, block, out);
        }
        return;
    }
    for (out, lanes) in out.iter_mut().zip(panel.chunks_exact(LANES * size)) {
        blocks::dequantize_row(w.dtype, &lanes[r * size..(r + 1) * size], std::slice::from_mut(out));
    }
}

/// Where packed weights lie. One a model: small matrices share maps.
#[derive(Default)]
pub(super) struct Arena {
    last: Mutex<Option<Part>>,
}

/// Where the panels of a matrix lie.
#[derive(Clone)]
enum Region {
    Own(Part),
    /// In the map of a file that keeps them.
    Kept(Bytes),
}

impl Region {
    fn bytes(&self) -> &[u8] {
        match self {
            Region::Own(part) => part.bytes(),
            Region::Kept(bytes) => bytes,
        }
    }
}

/// A part of a map. Whoever made it may write to it until it is cloned.
#[derive(Clone)]
struct Part {
    map: Arc<Map>,
    range: Range<usize>,
}

/// An anonymous map; regions of it do not overlap.
struct Map {
    start: *mut u8,
    /// Keeps the memory, and gives it back.
    _map: memmap2::MmapMut,
}

// SAFETY: the memory behind `start` lives as long as `_map`; it is written only through a `Part` that
// nobody else has, and afterwards only read.
unsafe impl Send for Map {}
// SAFETY: as above.
unsafe impl Sync for Map {}

impl Arena {
    /// `size` bytes of zeros, aligned to a cache line.
    fn part(&self, size: usize) -> Result<Part> {
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        let size = size.next_multiple_of(64);
        if last.as_ref().is_none_or(|rest| rest.range.len() < size) {
            let map = memmap2::MmapOptions::new().len(size.max(MAP_BYTES)).map_anon();
            let mut map = map.map_err(|error| too_large(size).with_source(error))?;
            // Large pages save a third of the address translations of a decoded token; without them all works
            // too.
            #[cfg(target_os = "linux")]
            let _ = map.advise(memmap2::Advice::HugePage);
            let range = 0..map.len();
            *last = Some(Part { map: Arc::new(Map { start: map.as_mut_ptr(), _map: map }), range });
        }
        let rest = last.as_mut().ok_or_else(|| Error::internal("the arena has no map"))?;
        let range = rest.range.start..rest.range.start + size;
        rest.range.start = range.end;
        Ok(Part { map: rest.map.clone(), range })
    }
}

impl Part {
    fn bytes(&self) -> &[u8] {
        // SAFETY: the range is inside the map, and nobody writes to it any more (see `Map`).
        unsafe { std::slice::from_raw_parts(self.map.start.add(self.range.start), self.range.len()) }
    }

    fn bytes_mut(&mut self) -> &mut [u8] {
        // SAFETY: the range is inside the map, and this part is the only one over it: it has not been
        // cloned yet.
        unsafe { std::slice::from_raw_parts_mut(self.map.start.add(self.range.start), self.range.len()) }
    }
}

impl std::fmt::Debug for Packed {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Packed([{}, {}], {})", self.n, self.k, self.dtype)
    }
}

fn too_large(bytes: usize) -> Error {
    Error::out_of_memory(format!(
        "{:.1} GiB for packed weights cannot be had; use a smaller model or a smaller quantization",
        bytes as f64 / (1u64 << 30) as f64
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    const SHAPES: [(usize, usize); 7] =
        [(1, 256), (15, 32), (16, 512), (17, 256), (33, 96), (50, 768), (20, 17)];

    /// Any bits: scales that are infinite or NaN among them.
    fn tensor(dtype: WeightType, n: usize, k: usize) -> Option<(WeightTensor, usize)> {
        let row_bytes = dtype.row_bytes(k)?;
        let byte = |at: usize| ((at as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 37) as u8;
        let data = Bytes::from_vec((0..n * row_bytes).map(byte).collect());
        Some((WeightTensor { name: "w".into(), dtype, shape: vec![n, k], data }, row_bytes))
    }

    fn packed(threads: usize, w: &WeightTensor, row_bytes: usize) -> Packed {
        let pool = Pool::new(threads).unwrap();
        pack(&pool, &Arena::default(), w, w.shape[0], w.shape[1], row_bytes).unwrap()
    }

    #[test]
    fn rows_come_back_bit_for_bit() {
        let mut count = 0;
        for (dtype, (n, k)) in WeightType::ALL.into_iter().flat_map(|ty| SHAPES.map(|shape| (ty, shape))) {
            let Some((w, row_bytes)) = tensor(dtype, n, k) else { continue };
            let packed = packed(3, &w, row_bytes);
            assert_eq!((packed.n, packed.k, packed.panels()), (n, k, n.div_ceil(LANES)));
            for (row, bytes) in w.data.chunks_exact(row_bytes).enumerate() {
                let (mut wanted, mut found) = (vec![0.0; k], vec![1.0; k]);
                blocks::dequantize_row(dtype, bytes, &mut wanted);
                packed.row(row, &mut found);
                let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
                assert!(bits(&found) == bits(&wanted), "{dtype} [{n}, {k}], row {row}");
                count += 1;
            }
            // What is there beside the last row is zero: products compute it, too.
            for row in n..packed.panels() * LANES {
                let mut found = vec![1.0; k];
                packed.row(row, &mut found);
                assert!(found.iter().all(|&x| x == 0.0), "{dtype} [{n}, {k}], after the last row");
            }
        }
        assert!(count > 1000, "{count} rows");
    }

    #[test]
    fn threads_make_the_same_panels() {
        for dtype in [WeightType::Q4K, WeightType::Q3K, WeightType::Q8_0, WeightType::F16] {
            // Enough for several tasks.
            let (w, row_bytes) = tensor(dtype, 700, 1024).unwrap();
            let (one, four) = (packed(1, &w, row_bytes), packed(4, &w, row_bytes));
            assert!(one.bytes(0..one.panels()) == four.bytes(0..four.panels()), "{dtype}");
        }
    }

    #[test]
    fn panels_that_were_kept_are_the_matrix_or_refused() {
        for dtype in [WeightType::Q4K, WeightType::Q8_0, WeightType::BF16] {
            let (w, row_bytes) = tensor(dtype, 33, 256).unwrap();
            let made = packed(2, &w, row_bytes);
            let bytes = Bytes::from_vec(Panels::of(&made).to_vec());
            let kept = from_panels(dtype, 33, 256, bytes.clone()).unwrap();
            assert!(kept.bytes(0..kept.panels()) == made.bytes(0..made.panels()), "{dtype}");
            for (n, k) in [(32, 256), (49, 256), (33, 255), (33, 0), (33, usize::MAX / 256 * 256)] {
                assert!(from_panels(dtype, n, k, bytes.clone()).is_err(), "{dtype} [{n}, {k}]");
            }
            assert!(from_panels(dtype, 33, 256, bytes.slice(1..bytes.len()).unwrap()).is_err());
        }
    }

    /// What is kept on disk under this number must stay what it is.
    #[test]
    fn another_layout_has_another_number() {
        let mut sum = 0xcbf2_9ce4_8422_2325u64;
        let mut sums = Vec::new();
        for dtype in WeightType::ALL {
            let (w, row_bytes) = tensor(dtype, 33, 512).unwrap();
            for byte in Panels::of(&packed(1, &w, row_bytes)).iter() {
                sum = (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3);
            }
            sums.push(sum);
        }
        // Up to MXFP4, of all types of GGUF, and of all: a type that is added changes none before it.
        assert_eq!(
            (LAYOUT, sums[15], sums[27], sum),
            (2, 0x7b15_d45c_b164_697f, 18_422_282_108_255_162_594, 16_926_693_062_107_416_392),
            "raise LAYOUT if panels have changed, then write the sum here"
        );
    }

    #[test]
    fn a_matrix_without_rows_has_no_panels() {
        let (w, row_bytes) = tensor(WeightType::Q4K, 0, 256).unwrap();
        let packed = packed(2, &w, row_bytes);
        assert_eq!((packed.panels(), packed.bytes(0..0)), (0, [].as_slice()));
    }

    #[test]
    fn regions_are_zero_aligned_and_apart() {
        let arena = Arena::default();
        let sizes = [1, 64, 100, 1 << 20, MAP_BYTES - 64, MAP_BYTES + 1, 7, 3 << 20];
        let mut regions: Vec<Part> = sizes.iter().map(|&size| arena.part(size).unwrap()).collect();
        for ((region, size), mark) in regions.iter_mut().zip(sizes).zip(1..) {
            let bytes = region.bytes_mut();
            assert!(bytes.len() >= size && bytes.as_ptr().addr().is_multiple_of(64), "{size}");
            assert!(bytes.iter().all(|&byte| byte == 0), "{size}");
            bytes.fill(mark);
        }
        for (region, mark) in regions.iter().zip(1..) {
            assert!(region.bytes().iter().all(|&byte| byte == mark), "region {mark}");
        }
        assert!(Arc::ptr_eq(&regions[0].map, &regions[3].map), "small ones share a map");
        // What is too large to be had is an error and leaves the arena as it was.
        let error = arena.part(1 << 62).map(drop).unwrap_err();
        assert_eq!(error.kind(), crate::error::ErrorKind::OutOfMemory);
        assert!(arena.part(64).is_ok());
    }
}
