//! The tier of every machine, and the oracle of the others: arrays of sixteen. On aarch64 the compiler makes
//! NEON of them.

use super::{LANES, LevelTable, Simd};
use crate::cache::storage::Element;
use crate::weights::blocks::f16_to_f32;
use crate::weights::blocks::small::e4m3_as_half;

pub(in crate::kernels) struct Scalar;

type F = [f32; LANES];
type I = [i32; LANES];

#[inline(always)]
fn map(f: impl Fn(usize) -> f32) -> F {
    let mut out = [0.0; LANES];
    for (l, out) in out.iter_mut().enumerate() {
        *out = f(l);
    }
    out
}

#[inline(always)]
fn map_i(f: impl Fn(usize) -> i32) -> I {
    let mut out = [0; LANES];
    for (l, out) in out.iter_mut().enumerate() {
        *out = f(l);
    }
    out
}

/// Shifts the two halves of each lane.
#[inline(always)]
fn halves(x: I, f: impl Fn(u16) -> u16) -> I {
    map_i(|l| {
        let (low, high) = (f(x[l] as u16), f((x[l] >> 16) as u16));
        i32::from(low) | (i32::from(high) << 16)
    })
}

/// It needs no instructions.
impl Simd for Scalar {
    type F = F;
    type I = I;

    const QUERIES: usize = 2;
    const TILE: (usize, usize) = (1, 1);
    const WIDE_IS_SIGNED: bool = false;
    const PAIRS: bool = false;

    on_registers! {
        fn dot_wide(acc: I, w: I, x: I) -> I = Self::dot(acc, w, x);
    }

    on_memory! {
        fn load(from: *const f32) -> F = from.cast::<F>().read_unaligned();
        fn store(to: *mut f32, x: F) = to.cast::<F>().write_unaligned(x);
        fn load_f16(from: *const u8) -> F = {
            let bytes = from.cast::<[[u8; 2]; LANES]>().read_unaligned();
            map(|l| f16_to_f32(bytes[l]))
        };
        fn load_bf16(from: *const u8) -> F = {
            let bytes = from.cast::<[[u8; 2]; LANES]>().read_unaligned();
            map(|l| u16::from_le_bytes(bytes[l]).to_f32())
        };
        fn load_u8(from: *const u8) -> F = {
            let bytes = from.cast::<[u8; LANES]>().read_unaligned();
            map(|l| f32::from(bytes[l]))
        };
        fn load_i8(from: *const u8) -> F = {
            let bytes = from.cast::<[i8; LANES]>().read_unaligned();
            map(|l| f32::from(bytes[l]))
        };
        fn load_i(from: *const u8) -> I = {
            let bytes = from.cast::<[[u8; 4]; LANES]>().read_unaligned();
            map_i(|l| i32::from_le_bytes(bytes[l]))
        };
        fn load_4(from: *const u8) -> I = {
            let bytes = from.cast::<[u8; 4]>().read_unaligned();
            [i32::from_le_bytes(bytes); LANES]
        };
        fn lookup16(table: *const u8, x: I) -> I = {
            let table = table.cast::<[u8; 16]>().read_unaligned();
            map_i(|l| i32::from_le_bytes(x[l].to_le_bytes().map(|at| table[usize::from(at & 15)])))
        };
        fn gather(table: *const u8, x: I) -> I = {
            let mut found = [0; LANES];
            for (found, x) in found.iter_mut().zip(x) {
                *found = i32::from_le_bytes(table.add(4 * x as usize).cast::<[u8; 4]>().read_unaligned());
            }
            found
        };
        fn store_i8(to: *mut i8, x: I) = to.cast::<[i8; LANES]>().write_unaligned(x.map(|x| x as i8));
        fn store_bf16(to: *mut u16, x: F) = to.cast::<[u16; LANES]>().write_unaligned(x.map(u16::from_f32));
    }

    #[inline(always)]
    unsafe fn e4m3_pair(from: *const u8) -> [F; 2] {
        // SAFETY: the caller promises 32 bytes.
        let bytes = unsafe { from.cast::<[[u8; 2]; LANES]>().read_unaligned() };
        let of = |odd: usize| map(|l| f16_to_f32(e4m3_as_half(bytes[l][odd]).to_le_bytes()));
        [of(0), of(1)]
    }

    #[inline(always)]
    unsafe fn levels4<const HIGH: bool>(table: &LevelTable, from: *const u8) -> [F; 4] {
        // SAFETY: the caller promises 64 bytes.
        let bytes = unsafe { from.cast::<[u8; 4 * LANES]>().read_unaligned() };
        let code = |at: usize| if HIGH { bytes[at] >> 4 } else { bytes[at] & 15 };
        let of = |v: usize| map(|l| table.levels[usize::from(code(4 * l + v))]);
        [of(0), of(1), of(2), of(3)]
    }

    #[inline(always)]
    unsafe fn zero() -> F {
        [0.0; LANES]
    }

    #[inline(always)]
    unsafe fn swapped<const BY: usize>(x: F) -> F {
        map(|l| x[l ^ BY])
    }

    #[inline(always)]
    unsafe fn splat(x: f32) -> F {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        map(|l| a[l] + b[l])
    }

    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        map(|l| a[l] - b[l])
    }

    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        map(|l| a[l] * b[l])
    }

    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        map(|l| a[l] / b[l])
    }

    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        map(|l| a[l].mul_add(b[l], c[l]))
    }

    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        map(|l| if a[l] > b[l] { a[l] } else { b[l] })
    }

    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        map(|l| if a[l] < b[l] { a[l] } else { b[l] })
    }

    #[inline(always)]
    unsafe fn abs(x: F) -> F {
        map(|l| x[l].abs())
    }

    #[inline(always)]
    unsafe fn copysign(size: F, sign: F) -> F {
        map(|l| size[l].copysign(sign[l]))
    }

    #[inline(always)]
    unsafe fn select_lt(a: F, b: F, then: F, otherwise: F) -> F {
        map(|l| if a[l] < b[l] { then[l] } else { otherwise[l] })
    }

    #[inline(always)]
    unsafe fn lt_mask(a: F, b: F) -> u16 {
        (0..LANES).fold(0, |mask, l| mask | u16::from(a[l] < b[l]) << l)
    }

    #[inline(always)]
    unsafe fn round(x: F) -> I {
        map_i(|l| x[l].round_ties_even() as i32)
    }

    #[inline(always)]
    unsafe fn exp2(n: I) -> F {
        map(|l| f32::from_bits(((n[l] + 127) as u32) << 23))
    }

    #[inline(always)]
    unsafe fn zero_i() -> I {
        [0; LANES]
    }

    #[inline(always)]
    unsafe fn bits(x: F) -> I {
        map_i(|l| x[l].to_bits() as i32)
    }

    #[inline(always)]
    unsafe fn max_i(a: I, b: I) -> I {
        map_i(|l| a[l].max(b[l]))
    }

    #[inline(always)]
    unsafe fn splat_i(x: i32) -> I {
        [x; LANES]
    }

    #[inline(always)]
    unsafe fn prefetch_l1(_: *const u8) {}

    #[inline(always)]
    unsafe fn prefetch_l2(_: *const u8) {}

    #[inline(always)]
    unsafe fn add_i(a: I, b: I) -> I {
        map_i(|l| a[l].wrapping_add(b[l]))
    }

    #[inline(always)]
    unsafe fn sub_bytes(a: I, b: I) -> I {
        let bytes = |l: usize| a[l].to_ne_bytes().into_iter().zip(b[l].to_ne_bytes());
        map_i(|l| {
            let mut out = [0; 4];
            out.iter_mut().zip(bytes(l)).for_each(|(out, (a, b))| *out = u8::wrapping_sub(a, b));
            i32::from_ne_bytes(out)
        })
    }

    #[inline(always)]
    unsafe fn shr_32(x: I, by: i32) -> I {
        map_i(|l| (x[l] as u32 >> by) as i32)
    }

    #[inline(always)]
    unsafe fn shl_32(x: I, by: i32) -> I {
        map_i(|l| x[l] << by)
    }

    #[inline(always)]
    unsafe fn and(a: I, b: I) -> I {
        map_i(|l| a[l] & b[l])
    }

    #[inline(always)]
    unsafe fn or(a: I, b: I) -> I {
        map_i(|l| a[l] | b[l])
    }

    #[inline(always)]
    unsafe fn shr(x: I, by: i32) -> I {
        halves(x, |half| half >> by)
    }

    #[inline(always)]
    unsafe fn shl(x: I, by: i32) -> I {
        halves(x, |half| half << by)
    }

    #[inline(always)]
    unsafe fn to_f(x: I) -> F {
        map(|l| x[l] as f32)
    }

    #[inline(always)]
    unsafe fn dot(acc: I, w: I, x: I) -> I {
        map_i(|l| {
            let (w, x) = (w[l].to_le_bytes(), x[l].to_le_bytes());
            let mut sum = acc[l];
            for t in 0..4 {
                sum = sum.wrapping_add(i32::from(w[t]) * i32::from(x[t] as i8));
            }
            sum
        })
    }

    #[inline(always)]
    unsafe fn dot_bf16(acc: F, a: I, b: I) -> F {
        // A product of two bfloat16 has at most 16 bits, so that it is exact and the sum rounds once.
        let odd = |x: i32| ((x >> 16) as u16).to_f32();
        let even = |x: i32| (x as u16).to_f32();
        map(|l| acc[l] + odd(a[l]) * odd(b[l]) + even(a[l]) * even(b[l]))
    }
}
