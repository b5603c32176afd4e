//! Puts keys and values into the pages, on their side and in pairs as `cache::storage` lays them out.
//!
//! A task is the keys or the values of one head: no two tasks share a number, whatever the slots are.

#![expect(clippy::needless_range_loop, reason = "iterators with closures stay calls in code for a tier")]

use std::cell::RefCell;

use super::bytes;
use super::number::Number;
use crate::cache::storage::int8::{self, KEY_OFFSET};
use crate::cache::storage::{KvShape, NativeKv, Numbers, PageView};
use crate::error::{Error, Result};
use crate::kernels::isa::{Isa, tiered};
use crate::kernels::pool::Pool;
use crate::kernels::simd::{LANES, Simd};
use crate::step::PAGE;

/// Numbers of a group: pairs in 16 lanes.
const GROUP: usize = 2 * LANES;
/// From so many rows on, threads share the work.
const MANY: usize = 4;

/// Puts the rows `keys` and `values`, `[slots, kv_heads * head_dim]`, into slots (`page * PAGE + position %
/// PAGE`). The same as [`NativeKv::write_rows`], ten times as fast.
///
/// # Errors
/// `Internal` when there are fewer rows than slots, or a slot is not in the cache.
pub(in crate::kernels) fn write(
    pool: &Pool,
    isa: Isa,
    kv: &NativeKv,
    slots: &[u32],
    keys: &[f32],
    values: &[f32],
) -> Result<()> {
    let view = kv.view();
    match &mut *kv.write() {
        Numbers::F32(memory) => run(pool, isa, view, memory.numbers_mut(), slots, [keys, values]),
        Numbers::BF16(memory) => run(pool, isa, view, memory.numbers_mut(), slots, [keys, values]),
        Numbers::I8(memory) => run(pool, isa, view, memory.numbers_mut(), slots, [keys, values]),
    }
}

/// What all tasks share.
struct Job<'a, N> {
    /// The memory of all pages.
    start: *mut N,
    slots: &'a [u32],
    /// Keys and values.
    rows: [&'a [f32]; 2],
    view: PageView,
}

// SAFETY: tasks write disjoint parts, see `rows_body`.
unsafe impl<N: Sync> Sync for Job<'_, N> {}

fn run<N: Put>(
    pool: &Pool,
    isa: Isa,
    view: PageView,
    numbers: &mut [N],
    slots: &[u32],
    rows: [&[f32]; 2],
) -> Result<()> {
    let shape = view.shape();
    let room = view.pages(numbers.len()) * PAGE;
    let fits = rows.iter().all(|rows| rows.len() == slots.len() * shape.width());
    if !fits || slots.iter().any(|&slot| slot as usize >= room) {
        return Err(Error::internal(
            "keys and values are not as many as their slots, or have no place in the cache",
        ));
    }
    let job = Job { start: numbers.as_mut_ptr(), slots, rows, view };
    let tasks = 2 * shape.kv_heads;
    // SAFETY: the slots lie in the pages, by the check above, and each task runs once.
    let put = |task| ROW.with_borrow_mut(|room| unsafe { put(isa, &job, task, room) });
    if slots.len() < MANY {
        (0..tasks).for_each(put);
        return Ok(());
    }
    pool.run("write kv", tasks, &put)
}

tiered! {
    /// # Safety
    /// All slots lie in the pages that `job.start` points to, and no other thread does the same task.
    fn put<N: Put>(job: &Job<'_, N>, task: usize, room: &mut Vec<f32>) = [unsafe] put_body;
}

/// # Safety
/// As [`put`], and the tier's instructions.
#[inline(always)]
unsafe fn put_body<S: Simd, N: Put>(job: &Job<'_, N>, task: usize, room: &mut Vec<f32>) {
    let (head, values) = (task / 2, task % 2);
    let (view, KvShape { kv_heads, head_dim }) = (job.view, job.view.shape());
    let (width, padded) = (kv_heads * head_dim, view.padded());
    let mut i = 0;
    while i < job.slots.len() {
        let (page, slot) = (job.slots[i] as usize / PAGE, job.slots[i] as usize % PAGE);
        let row = |i: usize| &job.rows[values][i * width + head * head_dim..][..head_dim];
        // SAFETY: the caller has the tier's instructions. Slots lie in the pages (`run`), and the keys or the
        // values of a head are one task's own.
        unsafe {
            let own = job.start.add(view.offset(page, head));
            if values == 0 {
                N::key::<S>(own, padded, slot, row(i), room);
                i += 1;
                continue;
            }
            let follow = |at: &usize| job.slots.get(i + at) == Some(&(job.slots[i] + *at as u32));
            let together = slot % N::TOGETHER == 0 && (1..N::TOGETHER).all(|at| follow(&at));
            if together {
                let rows = [0, 1, 2, 3].map(|at| row(i + at.min(N::TOGETHER - 1)));
                N::values::<S>(own, padded, slot, rows, room);
                i += N::TOGETHER;
            } else {
                N::value::<S>(own, padded, slot, row(i), room);
                i += 1;
            }
        }
    }
}

/// How rows are put into the numbers of their head in a page.
///
/// # Safety
/// Methods ask for the tier's instructions, and for a slot below 16; the page's numbers of the head begin at
/// `own`, of `padded` dimensions.
trait Put: Copy + Sync + 'static {
    /// Positions whose values lie in one group.
    const TOGETHER: usize;
    unsafe fn key<S: Simd>(own: *mut Self, padded: usize, slot: usize, row: &[f32], room: &mut Vec<f32>);
    /// The value of one position; the others of its group stay.
    unsafe fn value<S: Simd>(own: *mut Self, padded: usize, slot: usize, row: &[f32], room: &mut Vec<f32>);
    /// The values of the positions of a group, the first in `slot`.
    unsafe fn values<S: Simd>(
        own: *mut Self,
        padded: usize,
        slot: usize,
        rows: [&[f32]; 4],
        room: &mut Vec<f32>,
    );
}

impl<N: Number> Put for N {
    const TOGETHER: usize = 2;

    #[inline(always)]
    unsafe fn key<S: Simd>(own: *mut N, _: usize, slot: usize, row: &[f32], _: &mut Vec<f32>) {
        // SAFETY: keys come first.
        unsafe { put_key::<S, N>(own, slot, row) }
    }
    #[inline(always)]
    unsafe fn value<S: Simd>(own: *mut N, padded: usize, slot: usize, row: &[f32], _: &mut Vec<f32>) {
        // SAFETY: values follow 16 keys; a pair of them is `2 * padded` numbers.
        unsafe { put_value::<S, N>(own.add(PAGE * padded + slot / 2 * 2 * padded), slot % 2, row) }
    }
    #[inline(always)]
    unsafe fn values<S: Simd>(
        own: *mut N,
        padded: usize,
        slot: usize,
        [first, second, ..]: [&[f32]; 4],
        _: &mut Vec<f32>,
    ) {
        // SAFETY: as in `value`.
        unsafe { put_values::<S, N>(own.add((PAGE + slot) * padded), first, second) }
    }
}

thread_local! {
    /// A row with the zeros behind it.
    static ROW: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Bytes, as `cache::storage::int8` makes them.
impl Put for u8 {
    const TOGETHER: usize = 4;

    #[inline(always)]
    unsafe fn key<S: Simd>(own: *mut u8, padded: usize, slot: usize, row: &[f32], room: &mut Vec<f32>) {
        // SAFETY: the caller has the tier's instructions. A group is 64 bytes, four of them of this key;
        // scales follow keys and values.
        unsafe {
            let row = padded_row(room, padded, row);
            bytes::rotate::<S>(row, padded);
            let (scale, inverse) = int8::scale(bytes::largest::<S>(row, padded));
            let mut d = 0;
            while d < padded {
                let mut lanes = [0i8; LANES];
                let x = bytes::byte_lanes::<S>(S::load(row.add(d)), S::splat(inverse));
                S::store_i8(lanes.as_mut_ptr(), x);
                for group in 0..LANES / 4 {
                    let key = [0, 1, 2, 3].map(|at| lanes[4 * group + at] as u8 ^ KEY_OFFSET);
                    own.add(d * LANES + group * 4 * LANES + slot * 4).cast::<[u8; 4]>().write(key);
                }
                d += LANES;
            }
            own.add(2 * (PAGE * padded + slot)).cast::<[u8; 2]>().write(scale.to_le_bytes());
        }
    }

    #[inline(always)]
    unsafe fn value<S: Simd>(own: *mut u8, padded: usize, slot: usize, row: &[f32], room: &mut Vec<f32>) {
        // SAFETY: as in `key`; the byte of this position is replaced in each lane of its groups.
        unsafe {
            let row = padded_row(room, padded, row);
            let inverse = put_value_scale::<S>(own, padded, slot, row);
            let (shift, mut d) = (slot as i32 % 4 * 8, 0);
            let groups = own.add(PAGE * padded + slot / 4 * 4 * padded);
            while d < padded {
                let x = bytes::byte_lanes::<S>(S::load(row.add(d)), inverse);
                let x = S::shl_32(S::and(x, S::splat_i(0xff)), shift);
                let others = S::and(S::load_i(groups.add(4 * d)), S::splat_i(!(0xff << shift)));
                groups.add(4 * d).cast::<S::I>().write_unaligned(S::or(x, others));
                d += LANES;
            }
        }
    }

    #[inline(always)]
    unsafe fn values<S: Simd>(
        own: *mut u8,
        padded: usize,
        slot: usize,
        rows: [&[f32]; 4],
        room: &mut Vec<f32>,
    ) {
        // SAFETY: as in `value`, for all bytes of the lanes.
        unsafe {
            let groups = own.add((PAGE + slot) * padded);
            for at in 0..4 {
                let row = padded_row(room, padded, rows[at]);
                let inverse = put_value_scale::<S>(own, padded, slot + at, row);
                let mut d = 0;
                while d < padded {
                    let x = bytes::byte_lanes::<S>(S::load(row.add(d)), inverse);
                    let mut x = S::shl_32(S::and(x, S::splat_i(0xff)), 8 * at as i32);
                    if at > 0 {
                        x = S::or(x, S::load_i(groups.add(4 * d)));
                    }
                    groups.add(4 * d).cast::<S::I>().write_unaligned(x);
                    d += LANES;
                }
            }
        }
    }
}

/// Stores the scale of a value, and returns its reciprocal.
///
/// # Safety
/// As [`Put::value`]; `row` is good for `padded` floats.
#[inline(always)]
unsafe fn put_value_scale<S: Simd>(own: *mut u8, padded: usize, slot: usize, row: *const f32) -> S::F {
    const { assert!(size_of::<S::I>() == 4 * LANES) };
    // SAFETY: by the caller; the scales of values stand behind those of keys.
    unsafe {
        let (scale, inverse) = int8::scale(bytes::largest::<S>(row, padded));
        own.add(2 * (PAGE * padded + PAGE + slot)).cast::<[u8; 2]>().write(scale.to_le_bytes());
        S::splat(inverse)
    }
}

/// A row with zeros up to `padded` floats.
fn padded_row(room: &mut Vec<f32>, padded: usize, row: &[f32]) -> *mut f32 {
    room.clear();
    room.extend_from_slice(row);
    room.resize(padded, 0.0);
    room.as_mut_ptr()
}

/// 16 numbers from `d` on, zeros after the last.
#[inline(always)]
unsafe fn lanes<S: Simd, N: Number>(row: &[f32], d: usize) -> [N; LANES] {
    let mut lanes = [N::from_f32(0.0); LANES];
    // SAFETY: the caller has the tier's instructions; there is room for 16.
    unsafe { N::store::<S>(lanes.as_mut_ptr(), S::load_some(&row[d..])) };
    lanes
}

/// A key: its pairs of dimensions go to one lane of their groups.
#[inline(always)]
unsafe fn put_key<S: Simd, N: Number>(block: *mut N, slot: usize, row: &[f32]) {
    let mut d = 0;
    while d < row.len() {
        // SAFETY: a block has a group for each pair of dimensions, up to a multiple of 16.
        unsafe {
            let (lanes, groups) = (lanes::<S, N>(row, d), block.add(d * LANES));
            for l in 0..LANES / 2 {
                *groups.add(l * GROUP + N::place(slot, 0)) = lanes[2 * l];
                *groups.add(l * GROUP + N::place(slot, 1)) = lanes[2 * l + 1];
            }
        }
        d += LANES;
    }
}

/// The values of two positions that make a pair.
#[inline(always)]
unsafe fn put_values<S: Simd, N: Number>(groups: *mut N, first: &[f32], second: &[f32]) {
    let mut d = 0;
    while d < first.len() {
        // SAFETY: there is a group for 16 dimensions of the pair.
        unsafe {
            let (first, second) = (lanes::<S, N>(first, d), lanes::<S, N>(second, d));
            let mut group = [first[0]; GROUP];
            for l in 0..LANES {
                group[N::place(l, 0)] = first[l];
                group[N::place(l, 1)] = second[l];
            }
            groups.add(2 * d).cast::<[N; GROUP]>().write(group);
        }
        d += LANES;
    }
}

/// The value of one position; the other of its pair stays.
#[inline(always)]
unsafe fn put_value<S: Simd, N: Number>(groups: *mut N, second: usize, row: &[f32]) {
    let mut d = 0;
    while d < row.len() {
        // SAFETY: as in `put_values`.
        unsafe {
            let lanes = lanes::<S, N>(row, d);
            for l in 0..LANES {
                *groups.add(2 * d + N::place(l, second)) = lanes[l];
            }
        }
        d += LANES;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::storage::KvType;

    fn bits(kv: &NativeKv) -> Vec<u32> {
        match &*kv.read() {
            Numbers::F32(memory) => memory.numbers().iter().map(|x| x.to_bits()).collect(),
            Numbers::BF16(memory) => memory.numbers().iter().map(|&x| u32::from(x)).collect(),
            Numbers::I8(memory) => memory.numbers().iter().map(|&x| u32::from(x)).collect(),
        }
    }

    #[test]
    fn rows_lie_where_the_slow_way_puts_them() {
        // Alone, from the second of a pair on, across pages, out of order, and enough for several threads.
        let runs: [Vec<u32>; 5] =
            [vec![5], (17..22).collect(), (30..34).collect(), vec![3, 2, 8, 9], (1..60).collect()];
        for kind in [KvType::F32, KvType::BF16, KvType::I8] {
            for (kv_heads, head_dim) in [(1, 16), (3, 64), (2, 20), (1, 37), (1, 112)] {
                for (slots, isa) in
                    runs.iter().flat_map(|s| Isa::available().into_iter().map(move |isa| (s, isa)))
                {
                    let shape = KvShape { kv_heads, head_dim };
                    let number = |at: usize| (at * 7919 % 1009) as f32 / 37.0 - 11.0;
                    let keys: Vec<f32> = (0..slots.len() * shape.width()).map(number).collect();
                    let values: Vec<f32> = keys.iter().map(|x| x * 0.37).collect();
                    let [fast, slow] = [(); 2].map(|()| NativeKv::new(shape, 4, kind).unwrap());
                    write(&Pool::new(2).unwrap(), isa, &fast, slots, &keys, &values).unwrap();
                    slow.write_rows(slots, &keys, &values).unwrap();
                    assert!(bits(&fast) == bits(&slow), "{kind:?} {shape:?} {slots:?} {}", isa.name());
                }
            }
        }
    }

    #[test]
    fn a_slot_outside_is_an_error() {
        let kv = NativeKv::new(KvShape { kv_heads: 1, head_dim: 16 }, 2, KvType::BF16).unwrap();
        let (pool, isa) = (Pool::new(1).unwrap(), Isa::available()[0]);
        let row = [0.0; 16];
        assert!(write(&pool, isa, &kv, &[31], &row, &row).is_ok());
        assert!(write(&pool, isa, &kv, &[32], &row, &row).is_err());
        assert!(write(&pool, isa, &kv, &[0], &row, &row[1..]).is_err());
    }
}
