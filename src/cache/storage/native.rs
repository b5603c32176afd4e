//! Keys and values of one layer as our CPU kernels read them: pages of bfloat16 (or f32), laid out for
//! vectors.
//!
//! A page holds, for each key head, first its keys and then its values. Both are made of *groups*: a group is
//! 16 lanes of a pair of numbers, what one step of a dot product takes in (64 bytes of bfloat16).
//!
//! ```text
//! keys    group p           = dimensions 2p and 2p + 1 of the 16 positions of the page (lane = position)
//! values  group p, vector v = positions 2p and 2p + 1, dimensions 16v .. 16v + 16      (lane = dimension)
//! ```
//!
//! So 16 keys are scored, and 16 dimensions are mixed, without summing across lanes. Heads are filled with
//! zeros to a multiple of 16 dimensions. In a bfloat16 group the pairs stand side by side, as the instruction
//! wants them; in an f32 group the 16 first ones stand before the 16 second ones.
//!
//! Memory comes zeroed from the operating system and costs nothing until it is touched. Groups begin at
//! multiples of 64 bytes: a vector that crosses a cache line is read twice.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{KvShape, probe};
use crate::error::{Error, Result};
use crate::step::PAGE;

/// Lanes of a group.
const LANES: usize = 16;
/// Numbers of a group.
const GROUP: usize = 2 * LANES;
/// What a group is aligned to.
const LINE: usize = 64;

// The lanes of a group of keys are the positions of a page.
const _: () = assert!(PAGE == LANES);

impl KvShape {
    /// Dimensions of a head with the zeros behind them; `None` beyond any address.
    pub fn padded_dim(self) -> Option<usize> {
        self.head_dim.checked_next_multiple_of(LANES)
    }
}

/// What the numbers are stored as.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum KvType {
    /// Exact; for comparisons.
    F32,
    /// Half the memory and twice the speed.
    #[default]
    BF16,
}

impl KvType {
    pub const fn bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::BF16 => 2,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::BF16 => "bf16",
        }
    }

    /// Bytes of one position of one layer; `None` if that is more than can be addressed.
    pub fn position_bytes(self, shape: KvShape) -> Option<usize> {
        shape.kv_heads.checked_mul(shape.padded_dim()?)?.checked_mul(2 * self.bytes())
    }
}

/// A number as it is stored: `f32`, or `u16` with the bits of a bfloat16.
pub trait Element: Copy + Default + Send + Sync + 'static {
    fn from_f32(x: f32) -> Self;
    fn to_f32(self) -> f32;
    /// Where the first (`second`: the second) number of a lane's pair lies in its group.
    fn place(lane: usize, second: usize) -> usize;
}

impl Element for f32 {
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        x
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        self
    }
    #[inline(always)]
    fn place(lane: usize, second: usize) -> usize {
        second * LANES + lane
    }
}

impl Element for u16 {
    /// To the nearest, ties to even; NaN stays NaN.
    #[inline(always)]
    fn from_f32(x: f32) -> Self {
        let bits = x.to_bits();
        let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
        if x.is_nan() { (bits >> 16) as u16 | 0x40 } else { rounded as u16 }
    }
    #[inline(always)]
    fn to_f32(self) -> f32 {
        f32::from_bits(u32::from(self) << 16)
    }
    #[inline(always)]
    fn place(lane: usize, second: usize) -> usize {
        2 * lane + second
    }
}

/// One layer. Written in place, from a shared reference: whoever reads holds the lock. A clone shares the
/// memory, and so do the layers that are parts of one column.
#[derive(Clone, Debug)]
pub struct NativeKv {
    view: PageView,
    numbers: Arc<RwLock<Numbers>>,
}

/// The memory of a column, of either type.
#[derive(Debug)]
pub enum Numbers {
    F32(Aligned<f32>),
    BF16(Aligned<u16>),
}

/// Calls the same for whichever type there is.
macro_rules! either {
    ($numbers:expr, $memory:ident => $call:expr) => {
        match $numbers {
            Numbers::F32($memory) => $call,
            Numbers::BF16($memory) => $call,
        }
    };
}

impl NativeKv {
    /// Room for `pages` pages, all zero; `None` when it cannot be had.
    pub fn new(shape: KvShape, pages: usize, kind: KvType) -> Option<Self> {
        let view = PageView { shape, padded: shape.padded_dim()?, places: 1, place: 0 };
        let len = view.page_len()?.checked_mul(pages)?;
        let numbers = match kind {
            KvType::F32 => Numbers::F32(Aligned::new(len)?),
            KvType::BF16 => Numbers::BF16(Aligned::new(len)?),
        };
        Some(NativeKv { view, numbers: Arc::new(RwLock::new(numbers)) })
    }

    /// The same memory as one of `places` smaller layers sees it that lie side by side in each page; `None`
    /// where so many do not make a page.
    pub fn part(&self, shape: KvShape, places: usize, place: usize) -> Option<Self> {
        let view = PageView { shape, padded: shape.padded_dim()?, places, place };
        let fits = place < places && view.page_len()?.checked_mul(places)? == self.view.page_len()?;
        fits.then(|| NativeKv { view, numbers: self.numbers.clone() })
    }

    pub fn shape(&self) -> KvShape {
        self.view.shape
    }

    /// Where its keys and values lie.
    pub fn view(&self) -> PageView {
        self.view
    }

    /// The numbers, to be read.
    pub fn read(&self) -> RwLockReadGuard<'_, Numbers> {
        self.numbers.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// The numbers, to be written.
    pub fn write(&self) -> RwLockWriteGuard<'_, Numbers> {
        self.numbers.write().unwrap_or_else(PoisonError::into_inner)
    }

    /// Puts the keys and values `[slots, kv_heads * head_dim]` of rows into slots (`page * PAGE + position %
    /// PAGE`).
    ///
    /// # Errors
    /// `Internal` when there are fewer rows than slots, or a slot is none of these pages.
    pub fn write_rows(&self, slots: &[u32], keys: &[f32], values: &[f32]) -> Result<()> {
        either!(&mut *self.write(), memory => self.view.write_rows(memory.numbers_mut(), slots, keys, values))
    }

    /// Appends a page to `out` as `[PAGE, kv_heads * head_dim]` little-endian f32: keys, then values.
    ///
    /// # Errors
    /// `Internal` when there is no such page.
    pub fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<()> {
        either!(&*self.read(), memory => self.view.read_page(memory.numbers(), page as usize, out))
    }

    /// Makes a page hold what [`read_page`](Self::read_page) gave.
    ///
    /// # Errors
    /// `Internal` when there is no such page, or another number of bytes.
    pub fn write_page(&self, page: u32, bytes: &[u8]) -> Result<()> {
        let read = |word: &[u8]| word.try_into().map_or(f32::NAN, f32::from_le_bytes);
        let numbers: Vec<f32> = bytes.chunks_exact(4).map(read).collect();
        let (keys, values) = numbers.split_at(numbers.len() / 2);
        let first = page.checked_mul(PAGE as u32).ok_or_else(|| missing(page as usize))?;
        let slots: Vec<u32> = (first..first + PAGE as u32).collect();
        self.write_rows(&slots, keys, values)
    }

    /// Copies page `from` over page `to`.
    ///
    /// # Errors
    /// `Internal` when one is missing.
    pub fn copy_page(&self, from: u32, to: u32) -> Result<()> {
        let (from, to) = (from as usize, to as usize);
        either!(&mut *self.write(), memory => self.view.copy_page(memory.numbers_mut(), from, to))
    }
}

/// Numbers that begin at a multiple of 64 bytes, zero at first.
#[derive(Debug)]
pub struct Aligned<T> {
    numbers: Vec<T>,
    /// The first aligned number.
    start: usize,
    len: usize,
}

impl<T: Element> Aligned<T> {
    fn new(len: usize) -> Option<Self> {
        let slack = LINE / size_of::<T>();
        probe(len.checked_add(slack)?.checked_mul(size_of::<T>())?)?;
        let numbers = vec![T::default(); len + slack];
        let start = numbers.as_ptr().align_offset(LINE).min(slack);
        Some(Aligned { numbers, start, len })
    }

    pub fn numbers(&self) -> &[T] {
        self.numbers.get(self.start..self.start + self.len).unwrap_or_default()
    }

    pub fn numbers_mut(&mut self) -> &mut [T] {
        self.numbers.get_mut(self.start..self.start + self.len).unwrap_or_default()
    }
}

/// Where the keys and values of a layer lie in the memory of its column.
#[derive(Clone, Copy, Debug)]
pub struct PageView {
    shape: KvShape,
    /// Dimensions of a head with the zeros behind them.
    padded: usize,
    /// Layers of this shape that lie side by side in a page, and which of them it is.
    places: usize,
    place: usize,
}

impl PageView {
    pub fn shape(&self) -> KvShape {
        self.shape
    }

    /// Dimensions of a head with the zeros behind them: a multiple of 16.
    pub fn padded(&self) -> usize {
        self.padded
    }

    /// Numbers of the keys (and of the values) of one head in one page.
    pub fn block(&self) -> usize {
        PAGE * self.padded
    }

    /// Where the keys of a head lie in a page; its values follow: `[pages, places, kv_heads, {keys, values},
    /// block]`.
    #[inline(always)]
    pub fn offset(&self, page: usize, head: usize) -> usize {
        ((page * self.places + self.place) * self.shape.kv_heads + head) * 2 * self.block()
    }

    /// Pages that so many numbers hold.
    pub fn pages(&self, numbers: usize) -> usize {
        numbers / (2 * self.block() * self.shape.kv_heads * self.places).max(1)
    }

    /// Numbers of the layer in a page.
    fn page_len(&self) -> Option<usize> {
        self.padded.checked_mul(2 * PAGE)?.checked_mul(self.shape.kv_heads)
    }

    /// The numbers of the layer in a page.
    fn page(&self, page: usize) -> std::ops::Range<usize> {
        let start = self.offset(page, 0);
        start..start + 2 * self.block() * self.shape.kv_heads
    }

    fn write_rows<T: Element>(
        &self,
        numbers: &mut [T],
        slots: &[u32],
        keys: &[f32],
        values: &[f32],
    ) -> Result<()> {
        let (dim, block, width) = (self.shape.head_dim, self.block(), self.shape.width());
        if [keys, values].iter().any(|rows| rows.len() != slots.len() * width) {
            return Err(Error::internal("keys or values are not as many as their slots need"));
        }
        let rows = slots.iter().zip(keys.chunks_exact(width).zip(values.chunks_exact(width)));
        for (&slot, (keys, values)) in rows {
            let (number, slot) = (slot as usize / PAGE, slot as usize % PAGE);
            let page = numbers.get_mut(self.page(number)).ok_or_else(|| missing(number))?;
            let heads = keys.chunks_exact(dim).zip(values.chunks_exact(dim));
            for ((key, value), blocks) in heads.zip(page.chunks_exact_mut(2 * block)) {
                let (key_block, value_block) = blocks.split_at_mut(block);
                put_key(key_block, slot, key);
                put_value(value_block, self.padded, slot, value);
            }
        }
        Ok(())
    }

    fn read_page<T: Element>(&self, numbers: &[T], page: usize, out: &mut Vec<u8>) -> Result<()> {
        let (dim, padded, block) = (self.shape.head_dim, self.padded, self.block());
        let numbers = numbers.get(self.page(page)).ok_or_else(|| missing(page))?;
        for values in [false, true] {
            for slot in 0..PAGE {
                for blocks in numbers.chunks_exact(2 * block) {
                    let (key_block, value_block) = blocks.split_at(block);
                    for d in 0..dim {
                        let number = match values {
                            false => key_block[key_at::<T>(slot, d)],
                            true => value_block[value_at::<T>(padded, slot, d)],
                        };
                        out.extend(number.to_f32().to_le_bytes());
                    }
                }
            }
        }
        Ok(())
    }

    fn copy_page<T: Element>(&self, numbers: &mut [T], from: usize, to: usize) -> Result<()> {
        let pages = self.pages(numbers.len());
        if let Some(page) = [from, to].into_iter().find(|&page| page >= pages) {
            return Err(missing(page));
        }
        numbers.copy_within(self.page(from), self.page(to).start);
        Ok(())
    }
}

/// Where dimension `d` of the key in `slot` lies in its block.
#[inline(always)]
fn key_at<T: Element>(slot: usize, d: usize) -> usize {
    d / 2 * GROUP + T::place(slot, d % 2)
}

/// Where dimension `d` of the value in `slot` lies in its block.
#[inline(always)]
fn value_at<T: Element>(padded: usize, slot: usize, d: usize) -> usize {
    (slot / 2 * (padded / LANES) + d / LANES) * GROUP + T::place(d % LANES, slot % 2)
}

/// Puts one key into its block, with the zeros behind it: a page may have held layers of another shape.
fn put_key<T: Element>(block: &mut [T], slot: usize, key: &[f32]) {
    for (at, group) in block.chunks_exact_mut(GROUP).enumerate() {
        for second in 0..2 {
            let number = key.get(2 * at + second).copied().unwrap_or(0.0);
            group[T::place(slot, second)] = T::from_f32(number);
        }
    }
}

/// Puts one value into its block, with the zeros behind it.
fn put_value<T: Element>(block: &mut [T], padded: usize, slot: usize, value: &[f32]) {
    let groups = &mut block[slot / 2 * 2 * padded..][..2 * padded];
    for (at, group) in groups.chunks_exact_mut(GROUP).enumerate() {
        for lane in 0..LANES {
            let number = value.get(at * LANES + lane).copied().unwrap_or(0.0);
            group[T::place(lane, slot % 2)] = T::from_f32(number);
        }
    }
}

fn missing(page: usize) -> Error {
    Error::internal(format!("the KV cache has no page {page}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::error::ErrorKind;

    /// A page of numbers that bfloat16 holds exactly.
    fn page(width: usize) -> Vec<u8> {
        (0..2 * PAGE * width).flat_map(|at| ((at % 251) as f32 - 100.0).to_le_bytes()).collect()
    }

    #[test]
    fn pages_go_in_and_out_at_any_width() {
        for kind in [KvType::F32, KvType::BF16] {
            for (kv_heads, head_dim) in [(1, 1), (3, 64), (2, 36), (1, 20), (1, 256)] {
                let shape = KvShape { kv_heads, head_dim };
                let kv = NativeKv::new(shape, 3, kind).unwrap();
                let (bytes, mut found) = (page(shape.width()), Vec::new());
                kv.write_page(1, &bytes).unwrap();
                kv.copy_page(1, 0).unwrap();
                kv.read_page(0, &mut found).unwrap();
                assert!(found == bytes, "{kind:?} {shape:?}");
                found.clear();
                kv.read_page(2, &mut found).unwrap();
                assert!(found.iter().all(|&byte| byte == 0), "{kind:?} {shape:?}");
            }
        }
    }

    #[test]
    fn groups_lie_as_the_kernels_expect() {
        let shape = KvShape { kv_heads: 2, head_dim: 18 };
        let kv = NativeKv::new(shape, 2, KvType::BF16).unwrap();
        let row: Vec<f32> = (0..36).map(|d| d as f32).collect();
        kv.write_rows(&[16 + 5], &row, &row).unwrap();
        let (numbers, view) = (kv.read(), kv.view());
        let Numbers::BF16(memory) = &*numbers else { panic!("another type") };
        assert_eq!((view.padded(), view.block()), (32, 512));
        assert_eq!(memory.numbers().as_ptr().align_offset(64), 0);
        let head = &memory.numbers()[view.offset(1, 1)..][..2 * view.block()];
        // Dimension 17 of head 1 is the number 35; slot 5 is the second of pair 2.
        assert_eq!(head[8 * 32 + 5 * 2 + 1].to_f32(), 35.0);
        assert_eq!(head[512 + (2 * 2 + 1) * 32 + 3].to_f32(), 35.0);
        assert_eq!(head.iter().filter(|&&bits| bits != 0).count(), 2 * 18);
    }

    #[test]
    fn layers_of_other_shapes_share_the_memory_of_a_page() {
        let wide = KvShape { kv_heads: 2, head_dim: 48 };
        let narrow = KvShape { kv_heads: 1, head_dim: 17 };
        for kind in [KvType::F32, KvType::BF16] {
            let column = NativeKv::new(wide, 3, kind).unwrap();
            let parts: Vec<_> = (0..3).map(|place| column.part(narrow, 3, place).unwrap()).collect();
            // What the page held before is gone, and does not show in the padding.
            column.write_page(1, &page(wide.width())).unwrap();
            let bytes = page(narrow.width());
            parts.iter().for_each(|part| part.write_page(1, &bytes).unwrap());
            for (place, part) in parts.iter().enumerate() {
                let mut found = Vec::new();
                part.read_page(1, &mut found).unwrap();
                assert!(found == bytes, "{kind:?} {place}");
                let Numbers::BF16(memory) = &*part.read() else { continue };
                let last = part.view().offset(1, 0) + key_at::<u16>(0, 31);
                assert_eq!(memory.numbers()[last], 0, "padding of part {place}");
            }
            assert!(column.part(narrow, 2, 0).is_none() && column.part(narrow, 3, 3).is_none());
        }
    }

    #[test]
    fn what_does_not_fit_is_an_error() {
        let shape = KvShape { kv_heads: 1, head_dim: 16 };
        let kv = NativeKv::new(shape, 2, KvType::BF16).unwrap();
        let row = [0.0; 16];
        let bytes = page(16);
        for error in [
            kv.write_rows(&[32], &row, &row).unwrap_err(),
            kv.write_rows(&[0, 1], &row, &row).unwrap_err(),
            kv.write_page(2, &bytes).unwrap_err(),
            kv.write_page(u32::MAX, &bytes).unwrap_err(),
            kv.write_page(0, &bytes[4..]).unwrap_err(),
            kv.read_page(2, &mut Vec::new()).unwrap_err(),
            kv.copy_page(0, 2).unwrap_err(),
        ] {
            assert_eq!(error.kind(), ErrorKind::Internal, "{error}");
        }
        assert!(NativeKv::new(shape, usize::MAX / 256, KvType::F32).is_none());
    }
}
