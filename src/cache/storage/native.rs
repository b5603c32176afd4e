//! Keys and values of one layer as our CPU kernels read them: pages of bytes (or bfloat16, or f32), laid out
//! for vectors.
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
//! Bytes come in fours instead of pairs (groups are of 64 bytes again), and behind the keys and values of a
//! head stand their scales, see [`int8`](super::int8):
//!
//! ```text
//! keys    group p           = dimensions 4p .. 4p + 4 of the 16 positions of the page (lane = position)
//! values  group p, vector v = positions 4p .. 4p + 4, dimensions 16v .. 16v + 16      (lane = dimension)
//! scales  of 16 keys, then of 16 values
//! ```
//!
//! Memory comes zeroed from the operating system and costs nothing until it is touched. Groups begin at
//! multiples of 64 bytes: a vector that crosses a cache line is read twice.

use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::int8::{self, KEY_OFFSET, SCALE_BYTES};
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
    /// Half of that again: bytes with a scale a row, keys rotated.
    I8,
}

impl KvType {
    const fn bytes(self) -> usize {
        match self {
            KvType::F32 => 4,
            KvType::BF16 => 2,
            KvType::I8 => 1,
        }
    }

    pub const fn name(self) -> &'static str {
        match self {
            KvType::F32 => "f32",
            KvType::BF16 => "bf16",
            KvType::I8 => "int8",
        }
    }

    /// Bytes of one position of one layer; `None` if that is more than can be addressed.
    pub fn position_bytes(self, shape: KvShape) -> Option<usize> {
        self.head_len(shape)?.checked_mul(self.bytes())?.checked_mul(shape.kv_heads).map(|bytes| bytes / PAGE)
    }

    /// Numbers of one head in one page, with the scales of bytes.
    fn head_len(self, shape: KvShape) -> Option<usize> {
        let scales = if self == KvType::I8 { SCALE_BYTES } else { 0 };
        shape.padded_dim()?.checked_mul(2 * PAGE)?.checked_add(scales)
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

/// The memory of a column.
#[derive(Debug)]
pub enum Numbers {
    F32(Aligned<f32>),
    BF16(Aligned<u16>),
    I8(Aligned<u8>),
}

/// Calls the same for whichever type there is, or something else for bytes.
macro_rules! either {
    ($numbers:expr, $memory:ident => $call:expr) => {
        either!($numbers, $memory => $call, $call)
    };
    ($numbers:expr, $memory:ident => $call:expr, $bytes:expr) => {
        match $numbers {
            Numbers::F32($memory) => $call,
            Numbers::BF16($memory) => $call,
            Numbers::I8($memory) => $bytes,
        }
    };
}

impl NativeKv {
    /// Room for `pages` pages, all zero; `None` when it cannot be had.
    pub fn new(shape: KvShape, pages: usize, kind: KvType) -> Option<Self> {
        Self::column(shape, pages, kind, None)
    }

    /// The same for smaller layers too that lie side by side ([`part`](Self::part)): `page_bytes` is what
    /// those take that take the most.
    pub fn column(shape: KvShape, pages: usize, kind: KvType, page_bytes: Option<usize>) -> Option<Self> {
        let head_len = kind.head_len(shape)?;
        let own = head_len.checked_mul(shape.kv_heads)?;
        let page_len = page_bytes.map_or(own, |bytes| own.max(bytes / kind.bytes()));
        let (page_stride, head_stride) = match page_bytes {
            Some(_) => (page_len, head_len),
            None => (head_len, head_len.checked_mul(pages)?),
        };
        let padded = shape.padded_dim()?;
        let view = PageView { shape, padded, head_len, page_len, page_stride, head_stride, place: 0, kind };
        let len = page_len.checked_mul(pages)?;
        let numbers = match kind {
            KvType::F32 => Numbers::F32(Aligned::new(len)?),
            KvType::BF16 => Numbers::BF16(Aligned::new(len)?),
            KvType::I8 => Numbers::I8(Aligned::new(len)?),
        };
        Some(NativeKv { view, numbers: Arc::new(RwLock::new(numbers)) })
    }

    /// The same memory as one of `places` smaller layers sees it that lie side by side in each page; `None`
    /// where so many do not make a page.
    pub fn part(&self, shape: KvShape, places: usize, place: usize) -> Option<Self> {
        let column = self.view;
        if shape == column.shape && (places, place) == (1, 0) {
            return Some(self.clone());
        }
        let (padded, head_len) = (shape.padded_dim()?, column.kind.head_len(shape)?);
        let view = PageView { shape, padded, head_len, head_stride: head_len, place, ..column };
        let width = |view: &PageView| view.padded.checked_mul(view.shape.kv_heads);
        let fits = place < places
            && column.page_stride == column.page_len
            && width(&view)?.checked_mul(places)? == width(&column)?
            && view.layer_len()?.checked_mul(places)? <= column.page_len;
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
        either!(&mut *self.write(),
            memory => self.view.write_rows(memory.numbers_mut(), slots, keys, values, put_row),
            self.view.write_rows(memory.numbers_mut(), slots, keys, values, put_bytes))
    }

    /// Bytes that [`read_page`](Self::read_page) gives.
    pub fn page_bytes(&self) -> usize {
        match self.view.kind {
            KvType::F32 | KvType::BF16 => 2 * size_of::<f32>() * PAGE * self.view.shape.width(),
            KvType::I8 => self.view.layer_len().unwrap_or(usize::MAX),
        }
    }

    /// Appends a page to `out`: numbers as `[PAGE, kv_heads * head_dim]` little-endian f32, keys, then
    /// values; bytes with their scales as they lie there, for quantizing them again would change them.
    ///
    /// # Errors
    /// `Internal` when there is no such page.
    pub fn read_page(&self, page: u32, out: &mut Vec<u8>) -> Result<()> {
        let page = page as usize;
        either!(&*self.read(), memory => self.view.read_page(memory.numbers(), page, out), {
            for head in 0..self.view.shape.kv_heads {
                out.extend_from_slice(self.view.own(memory.numbers(), page, head)?);
            }
            Ok(())
        })
    }

    /// Makes a page hold what [`read_page`](Self::read_page) gave.
    ///
    /// # Errors
    /// `Internal` when there is no such page, or another number of bytes.
    pub fn write_page(&self, page: u32, bytes: &[u8]) -> Result<()> {
        if bytes.len() != self.page_bytes() {
            return Err(Error::internal(format!(
                "a page of {} bytes, not {}",
                self.page_bytes(),
                bytes.len()
            )));
        }
        if let Numbers::I8(memory) = &mut *self.write() {
            for (head, bytes) in bytes.chunks_exact(self.view.head_len).enumerate() {
                self.view.own_mut(memory.numbers_mut(), page as usize, head)?.copy_from_slice(bytes);
            }
            return Ok(());
        }
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

impl<T: Copy + Default> Aligned<T> {
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
    kind: KvType,
    /// Dimensions of a head with the zeros behind them.
    padded: usize,
    /// Numbers of a head in a page: its keys, its values, and the scales of bytes.
    head_len: usize,
    /// Numbers of a page of the column.
    page_len: usize,
    /// From one page of a head to the next, and from one head of a page to the next. The pages of a head
    /// follow each other, so that long contexts are read from memory in its order; where layers of other
    /// shapes use the same pages, all of a page lies in one place.
    page_stride: usize,
    head_stride: usize,
    /// Which of the layers it is that lie side by side in a page.
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

    /// Where the keys of a head lie in a page; its values follow, and the scales of bytes: `[kv_heads, pages,
    /// {keys, values, scales}]`, or `[pages, places, kv_heads, {keys, values, scales}]`.
    #[inline(always)]
    pub fn offset(&self, page: usize, head: usize) -> usize {
        page * self.page_stride + (self.place * self.shape.kv_heads + head) * self.head_stride
    }

    /// The numbers of a head in a page.
    #[inline(always)]
    pub fn head(&self, page: usize, head: usize) -> std::ops::Range<usize> {
        let start = self.offset(page, head);
        start..start + self.head_len
    }

    /// Pages that so many numbers hold.
    pub fn pages(&self, numbers: usize) -> usize {
        numbers / self.page_len.max(1)
    }

    /// Numbers of the layer in a page.
    fn layer_len(&self) -> Option<usize> {
        self.head_len.checked_mul(self.shape.kv_heads)
    }

    fn own<'a, T>(&self, numbers: &'a [T], page: usize, head: usize) -> Result<&'a [T]> {
        let found = (page < self.pages(numbers.len())).then(|| numbers.get(self.head(page, head))).flatten();
        found.ok_or_else(|| missing(page))
    }

    fn own_mut<'a, T>(&self, numbers: &'a mut [T], page: usize, head: usize) -> Result<&'a mut [T]> {
        if page >= self.pages(numbers.len()) {
            return Err(missing(page));
        }
        numbers.get_mut(self.head(page, head)).ok_or_else(|| missing(page))
    }

    /// `put` puts a key and a value of some slot into the block of a head.
    fn write_rows<T>(
        &self,
        numbers: &mut [T],
        slots: &[u32],
        keys: &[f32],
        values: &[f32],
        put: impl Fn(&mut [T], usize, usize, [&[f32]; 2]),
    ) -> Result<()> {
        let (dim, width) = (self.shape.head_dim, self.shape.width());
        if [keys, values].iter().any(|rows| rows.len() != slots.len() * width) {
            return Err(Error::internal("keys or values are not as many as their slots need"));
        }
        let rows = slots.iter().zip(keys.chunks_exact(width).zip(values.chunks_exact(width)));
        for (&slot, (keys, values)) in rows {
            let (number, slot) = (slot as usize / PAGE, slot as usize % PAGE);
            let heads = keys.chunks_exact(dim).zip(values.chunks_exact(dim));
            for (head, (key, value)) in heads.enumerate() {
                put(self.own_mut(numbers, number, head)?, self.padded, slot, [key, value]);
            }
        }
        Ok(())
    }

    fn read_page<T: Element>(&self, numbers: &[T], page: usize, out: &mut Vec<u8>) -> Result<()> {
        let (dim, padded, block) = (self.shape.head_dim, self.padded, self.block());
        for values in [false, true] {
            for slot in 0..PAGE {
                for head in 0..self.shape.kv_heads {
                    let (key_block, value_block) = self.own(numbers, page, head)?.split_at(block);
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

    fn copy_page<T: Copy>(&self, numbers: &mut [T], from: usize, to: usize) -> Result<()> {
        let pages = self.pages(numbers.len());
        if let Some(page) = [from, to].into_iter().find(|&page| page >= pages) {
            return Err(missing(page));
        }
        if self.page_stride == self.page_len {
            numbers.copy_within(from * self.page_len..(from + 1) * self.page_len, to * self.page_len);
            return Ok(());
        }
        for head in 0..self.shape.kv_heads {
            numbers.copy_within(self.head(from, head), self.offset(to, head));
        }
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

/// Puts a key and a value into the numbers of their head.
fn put_row<T: Element>(own: &mut [T], padded: usize, slot: usize, [key, value]: [&[f32]; 2]) {
    let (keys, values) = own.split_at_mut(PAGE * padded);
    put_key(keys, slot, key);
    put_value(values, padded, slot, value);
}

/// The same as bytes.
fn put_bytes(own: &mut [u8], padded: usize, slot: usize, rows: [&[f32]; 2]) {
    let [mut key, value] = rows.map(|row| {
        let mut whole = row.to_vec();
        whole.resize(padded, 0.0);
        whole
    });
    int8::rotate(&mut key);
    let (keys, rest) = own.split_at_mut(PAGE * padded);
    let (values, scales) = rest.split_at_mut(PAGE * padded);
    for (number, row) in [key, value].iter().enumerate() {
        let (bytes, scale) = int8::quantize(row);
        scales[2 * (number * PAGE + slot)..][..2].copy_from_slice(&scale.to_le_bytes());
        for (d, byte) in bytes.into_iter().enumerate() {
            match number {
                0 => keys[(d / 4 * LANES + slot) * 4 + d % 4] = byte as u8 ^ KEY_OFFSET,
                _ => values[(slot / 4 * padded + d) * 4 + slot % 4] = byte as u8,
            }
        }
    }
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
    fn bytes_lie_as_the_kernels_expect() {
        let shape = KvShape { kv_heads: 2, head_dim: 18 };
        let kv = NativeKv::new(shape, 2, KvType::I8).unwrap();
        let row: Vec<f32> = (0..36).map(|d| d as f32).collect();
        kv.write_rows(&[16 + 5], &row, &row).unwrap();
        let (numbers, view) = (kv.read(), kv.view());
        let Numbers::I8(memory) = &*numbers else { panic!("another type") };
        assert_eq!((view.padded(), view.block(), view.head(1, 1).len()), (32, 512, 2 * 512 + 64));
        assert_eq!(memory.numbers().as_ptr().align_offset(64), 0);
        let head = &memory.numbers()[view.head(1, 1)];
        // Dimension 17 of head 1 is the largest number; slot 5 is the second of its group of four.
        assert!(head[512 + (32 + 17) * 4 + 1] >= 126, "a scale is at most a bit of bfloat16 too large");
        let scale = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]).to_f32();
        assert!((35.0 / 127.0..35.3 / 127.0).contains(&scale(2 * 512 + 32 + 5 * 2)));
        // The key is rotated, with the zeros behind it.
        let (mut key, scale) = ([0.0; 32], scale(2 * 512 + 5 * 2));
        key[..18].copy_from_slice(&row[18..]);
        int8::rotate(&mut key);
        for (d, wanted) in key.into_iter().enumerate() {
            let byte = i32::from(head[d / 4 * 64 + 5 * 4 + d % 4]) - i32::from(KEY_OFFSET);
            assert!((byte as f32 * scale - wanted).abs() <= 0.501 * scale, "{d}: {byte} of {wanted}");
        }
        assert_eq!(head[..512].iter().filter(|&&byte| byte != 0).count(), 32);
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
            let column = NativeKv::column(wide, 3, kind, Some(0)).unwrap();
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
