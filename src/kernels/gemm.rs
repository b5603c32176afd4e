//! `x * W^T` over packed weights.
//!
//! The lanes of a vector are sixteen columns of the product, so nothing is ever summed across lanes, and a
//! column's sum runs along `k` in one order, whatever the number of rows, the tile, the thread or the tier:
//!
//! * quantized weights: for each 32 (or 16) weights an exact dot product of bytes in i32, then
//!   `acc += (dot * scale_w) * scale_x` and `acc += offset_w * sum_x`, fused, in f32;
//! * floats: `acc += w * x` in f32, fused, the even `k` and the odd ones apart, added at the end.
//!
//! A task is a few panels of weights, times all rows in tiles of up to twelve: a panel is unpacked once a tile and
//! serves all its rows from registers. With one row this streams the weights once, which is all that decoding
//! can do. What happens to a finished tile ([`Then`]) is done while it is in the first cache. On
//! machines with AMX, [`amx`](super::amx) takes the rows of a prompt.

use std::ops::Range;

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::forms::{self, Form, GROUPS};
use super::isa::{Isa, Level, tiered};
use super::math;
use super::pack::{Packed, with_form};
use super::pool::{Pool, Shares};
use super::quantize::{META, Quantized};
use super::simd::scalar::Scalar;
use super::simd::{LANES, Simd};
#[cfg(target_arch = "x86_64")]
use super::simd::{avx2::Avx2, avx512::Avx512};
use super::{Activation, misuse};
use crate::error::Result;
use crate::weights::WeightType;

/// Rows `[rows, k]` that are multiplied, as floats and as bytes.
#[derive(Clone, Copy)]
pub(super) struct Input<'a> {
    pub(super) rows: usize,
    pub(super) k: usize,
    pub(super) floats: &'a [f32],
    /// Must be there where a weight is quantized.
    pub(super) bytes: Option<&'a Quantized>,
}

/// What becomes of a column's sum, with its bias.
#[derive(Clone, Copy)]
pub(super) enum Then {
    Set,
    /// Is added to what is there.
    Add,
    /// Is multiplied by the activation of what is there: the gate.
    Gate(Activation),
    /// Its activation.
    Activate(Activation),
}

/// A matrix, and where its product `[rows, n]` goes.
#[derive(Clone, Copy)]
pub(super) struct Product<'a> {
    pub(super) w: &'a Packed,
    pub(super) bias: Option<&'a [f32]>,
    pub(super) then: Then,
    pub(super) out: &'a Shares<'a, f32>,
}

/// Computes products of the same rows. Those of one list are computed one after the other over the same columns
/// (and have as many); lists are independent.
pub(super) fn products(
    pool: &Pool,
    isa: Isa,
    name: &'static str,
    x: Input<'_>,
    lists: &[&[Product<'_>]],
) -> Result<()> {
    let quantized = lists.iter().copied().flatten().any(|product| product.w.dtype.is_quantized());
    if quantized && x.bytes.is_none() {
        return Err(misuse("quantized weights are multiplied with bytes, and there are none"));
    }
    let panels: usize = lists.iter().filter_map(|list| list.first()).map(|p| p.w.panels()).sum();
    let bundle = bundle(panels, x.rows, pool.threads());
    let tasks = |list: &[Product<'_>]| list.first().map_or(0, |p| p.w.panels().div_ceil(bundle));
    let total = lists.iter().map(|list| tasks(list)).sum();
    pool.run(name, total, &|mut index| {
        for list in lists {
            if index >= tasks(list) {
                index -= tasks(list);
                continue;
            }
            for product in *list {
                let range = index * bundle..product.w.panels().min((index + 1) * bundle);
                multiply(isa, product, x, range);
            }
            return;
        }
    })
}

/// Panels of a task: few enough to share the work evenly. With one row, as much in one piece as that allows, since
/// memory is read faster so; with many, no more than stay in the cache while the rows pass.
fn bundle(panels: usize, rows: usize, threads: usize) -> usize {
    match rows {
        1..=4 => (panels / (4 * threads)).clamp(1, 64),
        _ => (panels / (16 * threads)).clamp(1, 4),
    }
}

/// Where the sums of a tile go: sixteen columns of each row, rows `stride` apart.
#[derive(Clone, Copy)]
struct Sums {
    first: *mut f32,
    stride: usize,
}

/// Rows of a tile, at most.
const TILE: usize = 12;

/// Bytes of weights that are asked for in advance: more than memory delivers while it is waited for.
const AHEAD: usize = 2048;

fn multiply(isa: Isa, product: &Product<'_>, x: Input<'_>, panels: Range<usize>) {
    assert!(x.floats.len() >= x.rows * x.k && product.w.k == x.k);
    assert!(product.bias.is_none_or(|bias| bias.len() == product.w.n));
    let w = product.w;
    with_form!(w.dtype, Q => {
        let Some(bytes) = x.bytes else { return }; // `products` made sure
        let blocks = x.k / forms::SUB;
        assert!(w.panel_bytes == x.k / Q::TYPE.block_len() * Q::UNIT && bytes.q.len() >= x.rows * x.k);
        assert!(bytes.meta.len() >= x.rows * blocks * META && bytes.sums.len() >= x.rows * blocks);
        let mut row = 0;
        #[cfg(target_arch = "x86_64")]
        if isa.level() == Level::Amx {
            row = amx::rows_in_tiles(x.rows);
            let put = |row, panel, sums: &[_]| finish(isa, product, row, panels.start + panel, sums);
            // SAFETY: an `Isa` of this level exists only where AMX is; the rest by the lines above.
            unsafe { amx::multiply::<Q>(w.bytes(panels.clone()), w.panel_bytes, bytes, x.k, row, put) }
        }
        tiles(isa, product, row..x.rows, panels, |panel, row, rows, sums| {
            // SAFETY: by the lines above the panel has `k` weights of sixteen columns; the rows are there.
            unsafe { quantized::<Q>(isa, rows, panel, bytes, x.k, row, sums) }
        });
    }, else {
        assert!(w.panel_bytes == x.k * LANES * w.dtype.block_bytes());
        tiles(isa, product, 0..x.rows, panels, |panel, row, rows, sums| {
            let x_rows = x.floats[row * x.k..(row + rows) * x.k].as_ptr();
            // SAFETY: the panel has `k` vectors of sixteen weights; the rows are there.
            unsafe { dense(isa, rows, w.dtype, panel, x_rows, x.k, sums) }
        });
    });
}

/// The rows times the panels, tile by tile: a tile of rows stays in the first cache while the panels pass.
fn tiles(
    isa: Isa,
    product: &Product<'_>,
    rows: Range<usize>,
    panels: Range<usize>,
    tile: impl Fn(*const u8, usize, usize, Sums),
) {
    let mut scratch = [[0.0; LANES]; TILE];
    let plain = matches!(product.then, Then::Set) && product.bias.is_none();
    let n = product.w.n;
    let mut row = rows.start;
    while row < rows.end {
        let size = tile_rows(isa, rows.end - row);
        let bytes = product.w.bytes(panels.clone()).chunks_exact(product.w.panel_bytes);
        for (panel, bytes) in panels.clone().zip(bytes) {
            if plain && (panel + 1) * LANES <= n {
                let first = row * n + panel * LANES;
                // Sixteen columns of each row are there, and no other task writes to them.
                let out = product.out.pointer(first..first + (size - 1) * n + LANES);
                tile(bytes.as_ptr(), row, size, Sums { first: out, stride: n });
            } else {
                let sums = Sums { first: scratch.as_mut_ptr().cast(), stride: LANES };
                tile(bytes.as_ptr(), row, size, sums);
                finish(isa, product, row, panel, &scratch[..size]);
            }
        }
        row += size;
    }
}

/// Rows of the next tile: as many as the tier has registers for.
fn tile_rows(isa: Isa, left: usize) -> usize {
    let sizes: &[usize] = match isa.level() {
        Level::Scalar => &[1],
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 | Level::AvxVnni => &[2, 1],
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 | Level::Avx512Bf16 | Level::Amx => &[TILE, 4, 1],
    };
    sizes.iter().copied().find(|&size| size <= left).unwrap_or(1)
}

/// Makes `$name(isa, rows, arguments)`: the body compiled for each tier and each size of tile that it has. Written
/// out, and not with `tiered!`, because every tile that is compiled costs: there are a dozen forms of weights.
macro_rules! tile {
    ($(#[$doc:meta])* fn $name:ident<$g:ident $(: $bound:path)?>($($arg:ident: $ty:ty),* $(,)?) = $body:ident;) => {
        $(#[$doc])*
        #[inline]
        unsafe fn $name<$g $(: $bound)?>(isa: Isa, rows: usize, $($arg: $ty),*) {
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx512f,avx512bw,avx512vl,avx512dq,avx512vnni,avx2,fma,f16c")]
            unsafe fn avx512<$g $(: $bound)?, const M: usize>($($arg: $ty),*) {
                unsafe { $body::<Avx512<false>, $g, M>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avxvnni,avx2,fma,f16c")]
            unsafe fn avxvnni<$g $(: $bound)?, const M: usize>($($arg: $ty),*) {
                unsafe { $body::<Avx2<true>, $g, M>($($arg),*) }
            }
            #[cfg(target_arch = "x86_64")]
            #[target_feature(enable = "avx2,fma,f16c")]
            unsafe fn avx2<$g $(: $bound)?, const M: usize>($($arg: $ty),*) {
                unsafe { $body::<Avx2<false>, $g, M>($($arg),*) }
            }
            // SAFETY: an `Isa` of a level exists only where the machine has its features; the rest is the caller's.
            unsafe {
                match (isa.level(), rows) {
                    (Level::Scalar, _) => $body::<Scalar, $g, 1>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx2, 2) => avx2::<$g, 2>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    (Level::Avx2, _) => avx2::<$g, 1>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    (Level::AvxVnni, 2) => avxvnni::<$g, 2>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    (Level::AvxVnni, _) => avxvnni::<$g, 1>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    (_, TILE) => avx512::<$g, TILE>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    (_, 4) => avx512::<$g, 4>($($arg),*),
                    #[cfg(target_arch = "x86_64")]
                    _ => avx512::<$g, 1>($($arg),*),
                }
            }
        }
    };
}

tile! {
    /// Sums of `rows` rows from `row` on for the sixteen columns of a panel.
    ///
    /// # Safety
    /// The panel has `k` weights for each column; `bytes` has the rows; `sums` may be written to.
    fn quantized<Q: Form>(w: *const u8, bytes: &Quantized, k: usize, row: usize, sums: Sums) = quantized_tile;
}
tile! {
    /// As [`quantized`], for floats.
    ///
    /// # Safety
    /// The panel has `k` vectors of sixteen floats of type `F`; `x` has `rows` rows of `k`; `sums` may be written to.
    fn floats<F: Float>(w: *const u8, x: *const f32, k: usize, sums: Sums) = float_tile;
}

/// # Safety
/// As [`floats`].
unsafe fn dense(isa: Isa, rows: usize, dtype: WeightType, w: *const u8, x: *const f32, k: usize, sums: Sums) {
    unsafe {
        match dtype {
            WeightType::F16 => floats::<F16>(isa, rows, w, x, k, sums),
            WeightType::BF16 => floats::<BF16>(isa, rows, w, x, k, sums),
            _ => floats::<F32>(isa, rows, w, x, k, sums),
        }
    }
}

/// # Safety
/// The tier's instructions, and as [`quantized`].
#[inline(always)]
unsafe fn quantized_tile<S: Simd, Q: Form, const M: usize>(
    w: *const u8,
    bytes: &Quantized,
    k: usize,
    row: usize,
    sums: Sums,
) {
    unsafe {
        let blocks = k / forms::SUB;
        let mut acc = [S::zero(); M];
        let (mut q, mut meta) = (bytes.q.as_ptr().add(row * k), bytes.meta.as_ptr().add(row * blocks * META));
        let mut totals = bytes.sums.as_ptr().add(row * blocks);
        let mut unit = w;
        for _ in 0..blocks / Q::SUBS {
            let head = forms::load_head::<S, Q>(unit);
            let mut sub = unit.add(Q::HEAD);
            for _ in 0..Q::SUBS {
                let codes = sub.add(Q::SCALE_BYTES);
                if M == 1 {
                    // One row waits for memory alone, and a task is too short for the machine to guess what comes.
                    let mut line = 0;
                    while line < Q::SUB_BYTES {
                        S::prefetch(sub.wrapping_add(AHEAD + line));
                        line += 64;
                    }
                }
                if Q::HALVES {
                    for half in 0..2 {
                        let dot = dots::<S, Q, M>(codes, q, k, half * 4);
                        let (scale, offset) = forms::load_scales::<S, Q>(head, sub, half);
                        for i in 0..M {
                            let meta = meta.add(i * blocks * META);
                            let value = S::mul(S::to_f(dot[i]), scale);
                            acc[i] = S::fma(value, S::splat(*meta), acc[i]);
                            acc[i] = S::fma(offset, S::splat(*meta.add(2 + half)), acc[i]);
                        }
                    }
                } else {
                    let low = dots::<S, Q, M>(codes, q, k, 0);
                    let dot = more_dots::<S, Q, M>(low, codes, q, k, 4);
                    let (scale, offset) = forms::load_scales::<S, Q>(head, sub, 0);
                    for i in 0..M {
                        let meta = meta.add(i * blocks * META);
                        let mut sum = dot[i];
                        if Q::WIDE && S::WIDE_IS_SIGNED {
                            sum = S::add_i(sum, S::splat_i(*totals.add(i * blocks) << 7));
                        }
                        let value = S::mul(S::to_f(sum), scale);
                        acc[i] = S::fma(value, S::splat(*meta), acc[i]);
                        acc[i] = S::fma(offset, S::splat(*meta.add(1)), acc[i]);
                    }
                }
                q = q.add(forms::SUB);
                meta = meta.add(META);
                totals = totals.add(1);
                sub = sub.add(Q::SUB_BYTES);
            }
            unit = unit.add(Q::UNIT);
        }
        for (i, acc) in acc.into_iter().enumerate() {
            S::store(sums.first.add(i * sums.stride), acc);
        }
    }
}

/// Byte products of four groups from `from` on.
///
/// # Safety
/// As [`quantized_tile`].
#[inline(always)]
unsafe fn dots<S: Simd, Q: Form, const M: usize>(
    codes: *const u8,
    q: *const i8,
    k: usize,
    from: usize,
) -> [S::I; M] {
    unsafe { more_dots::<S, Q, M>([S::zero_i(); M], codes, q, k, from) }
}

/// # Safety
/// As [`quantized_tile`].
#[inline(always)]
unsafe fn more_dots<S: Simd, Q: Form, const M: usize>(
    mut dot: [S::I; M],
    codes: *const u8,
    q: *const i8,
    k: usize,
    from: usize,
) -> [S::I; M] {
    const { assert!(GROUPS == 8) };
    macro_rules! group {
        ($g:expr) => {
            let w = forms::unpack::<S, Q>(codes, $g);
            for i in 0..M {
                let x = S::load_4(q.add(i * k + 4 * $g).cast());
                dot[i] = if Q::WIDE { S::dot_wide(dot[i], w, x) } else { S::dot(dot[i], w, x) };
            }
        };
    }
    // Written out, so that what depends on the group is a constant.
    unsafe {
        if from == 0 {
            group!(0);
            group!(1);
            group!(2);
            group!(3);
        } else {
            group!(4);
            group!(5);
            group!(6);
            group!(7);
        }
    }
    dot
}

/// A type of plain float weights.
trait Float {
    const BYTES: usize;
    /// # Safety
    /// As [`Simd`].
    unsafe fn load<S: Simd>(from: *const u8) -> S::F;
}

macro_rules! float {
    ($name:ident, $bytes:literal, $from:ident => $load:expr) => {
        struct $name;
        impl Float for $name {
            const BYTES: usize = $bytes;
            #[inline(always)]
            unsafe fn load<S: Simd>($from: *const u8) -> S::F {
                unsafe { $load }
            }
        }
    };
}

float!(F32, 4, from => S::load(from.cast()));
float!(F16, 2, from => S::load_f16(from));
float!(BF16, 2, from => S::load_bf16(from));

/// # Safety
/// The tier's instructions, and as [`floats`].
#[inline(always)]
unsafe fn float_tile<S: Simd, F: Float, const M: usize>(w: *const u8, x: *const f32, k: usize, sums: Sums) {
    unsafe {
        let size = LANES * F::BYTES;
        let (mut even, mut odd) = ([S::zero(); M], [S::zero(); M]);
        let mut at = 0;
        while at + 2 <= k {
            let (first, second) = (F::load::<S>(w.add(at * size)), F::load::<S>(w.add((at + 1) * size)));
            for i in 0..M {
                even[i] = S::fma(first, S::splat(*x.add(i * k + at)), even[i]);
                odd[i] = S::fma(second, S::splat(*x.add(i * k + at + 1)), odd[i]);
            }
            at += 2;
        }
        if at < k {
            let last = F::load::<S>(w.add(at * size));
            for (i, even) in even.iter_mut().enumerate() {
                *even = S::fma(last, S::splat(*x.add(i * k + at)), *even);
            }
        }
        for (i, (even, odd)) in even.into_iter().zip(odd).enumerate() {
            S::store(sums.first.add(i * sums.stride), S::add(even, odd));
        }
    }
}

tiered! {
    /// Puts the sums of rows from `row` on for the columns of `panel` where they go.
    fn finish(product: &Product<'_>, row: usize, panel: usize, sums: &[[f32; LANES]]) = finish_body;
}

/// # Safety
/// The tier's instructions; no other task writes to these columns.
#[inline(always)]
unsafe fn finish_body<S: Simd>(product: &Product<'_>, row: usize, panel: usize, sums: &[[f32; LANES]]) {
    let n = product.w.n;
    let (from, to) = (panel * LANES, n.min((panel + 1) * LANES));
    for (row, sums) in (row..).zip(sums) {
        // SAFETY: the caller's promise.
        unsafe {
            let out = product.out.part(row * n + from..row * n + to);
            let mut sum = S::load(sums.as_ptr());
            if let Some(bias) = product.bias {
                sum = S::add(sum, S::load_some(&bias[from..to]));
            }
            let value = match product.then {
                Then::Set => sum,
                Then::Add => S::add(S::load_some(out), sum),
                Then::Gate(act) => S::mul(math::activate::<S>(act, S::load_some(out)), sum),
                Then::Activate(act) => math::activate::<S>(act, sum),
            };
            S::store_some(out, value);
        }
    }
}

#[cfg(test)]
mod tests;
