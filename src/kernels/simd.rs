//! Sixteen lanes: what the kernels are written in, once, and what each tier of instructions makes of it.
//!
//! A [`Simd`] type is a tier: one AVX-512 register, two of AVX2, or an array. Kernels are `inline(always)`
//! functions generic over it, and [`tiered!`](super::isa::tiered) compiles them inside a function that has
//! the tier's instructions. Everything below is one instruction or a few; nothing loops over memory.
//!
//! Each method does exactly the same arithmetic in every tier, so results agree to the last bit: products of
//! bytes are summed exactly in i32, floats use fused multiply-add where `fma` is written and separate steps
//! where it is not, and a sum over lanes is folded in halves (16, 8, 4, 2, 1). Kernels whose lanes are
//! columns or positions never sum over lanes at all. (One exception: bfloat16 products below 1e-38 are
//! flushed to zero by the instruction and not by its stand-in.)

/// Methods of a tier that work on registers alone.
macro_rules! on_registers {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) -> $out:ty = $body:expr;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        unsafe fn $name($($arg: $ty),*) -> $out {
            // SAFETY: the caller has the tier's instructions (see `Simd`), which is all that these ask for:
            // they touch no memory but their own variables.
            unsafe { $body }
        }
    )*};
}

/// Methods of a tier that read or write memory.
macro_rules! on_memory {
    ($($(#[$doc:meta])* fn $name:ident($($arg:ident: $ty:ty),*) $(-> $out:ty)? = $body:expr;)*) => {$(
        $(#[$doc])*
        #[inline(always)]
        unsafe fn $name($($arg: $ty),*) $(-> $out)? {
            // SAFETY: the caller has the tier's instructions, and its pointer is good for as much as the
            // method's name says (see `Simd`): that much is read or written, unaligned; by a prefetch,
            // nothing.
            unsafe { $body }
        }
    )*};
}

#[cfg(target_arch = "x86_64")]
pub(super) mod avx2;
#[cfg(target_arch = "x86_64")]
pub(super) mod avx512;
pub(super) mod scalar;

/// Lanes of a vector of 32-bit numbers.
pub(super) const LANES: usize = 16;

/// Sixteen floats that nibbles stand for, and their bytes apart: first all lowest ones.
#[repr(C, align(64))]
pub(super) struct LevelTable {
    pub(super) levels: [f32; 16],
    pub(super) planes: [[u8; 16]; 4],
}

impl LevelTable {
    pub(super) const fn new(levels: [f32; 16]) -> LevelTable {
        let mut planes = [[0; 16]; 4];
        let mut i = 0;
        while i < 64 {
            planes[i % 4][i / 4] = levels[i / 4].to_bits().to_le_bytes()[i % 4];
            i += 1;
        }
        LevelTable { levels, planes }
    }
}

/// A tier of instructions.
///
/// # Safety
/// Methods may be called only where the machine has the tier's instructions, from a function compiled with
/// them. Pointers need no alignment, and are good for what the method's name says: 16 floats, 64 bytes, 16
/// half floats, 16 bytes, or 4.
pub(super) trait Simd: 'static {
    /// 16 f32.
    type F: Copy;
    /// 16 i32, or 64 bytes.
    type I: Copy;

    /// Queries and vectors of a register tile of attention.
    const QUERIES: usize;
    /// Rows and panels of a register tile of products.
    const TILE: (usize, usize);
    /// [`Simd::dot_wide`] multiplies `code - 128` instead of `code`, see there.
    const WIDE_IS_SIGNED: bool;
    /// Byte products leave 16-bit sums of pairs ([`Simd::dot_pairs`]), and widening each costs as much as the
    /// product.
    const PAIRS: bool;

    unsafe fn zero() -> Self::F;
    unsafe fn splat(x: f32) -> Self::F;
    unsafe fn load(from: *const f32) -> Self::F;
    unsafe fn store(to: *mut f32, x: Self::F);
    unsafe fn add(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn sub(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn mul(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn div(a: Self::F, b: Self::F) -> Self::F;
    /// `a * b + c`, rounded once.
    unsafe fn fma(a: Self::F, b: Self::F, c: Self::F) -> Self::F;
    /// The larger; `b` where one is NaN.
    unsafe fn max(a: Self::F, b: Self::F) -> Self::F;
    /// The smaller; `b` where one is NaN.
    unsafe fn min(a: Self::F, b: Self::F) -> Self::F;
    unsafe fn abs(x: Self::F) -> Self::F;
    /// The size of `size` with the sign of `sign`.
    unsafe fn copysign(size: Self::F, sign: Self::F) -> Self::F;
    /// `then` in lanes where `a < b`, else `otherwise`.
    unsafe fn select_lt(a: Self::F, b: Self::F, then: Self::F, otherwise: Self::F) -> Self::F;
    /// The lanes `l ^ BY`, for `BY` 1, 2, 4 or 8.
    unsafe fn swapped<const BY: usize>(x: Self::F) -> Self::F;
    /// A bit for each lane where `a < b`.
    unsafe fn lt_mask(a: Self::F, b: Self::F) -> u16;
    /// To the nearest whole number, halves to even; `x` is within ±2^31.
    unsafe fn round(x: Self::F) -> Self::I;
    /// `2^n` for whole `n` in -127..=127, where 2^-127 is 0.
    unsafe fn exp2(n: Self::I) -> Self::F;

    /// 16 little-endian half floats.
    unsafe fn load_f16(from: *const u8) -> Self::F;
    /// 16 little-endian bfloat16.
    unsafe fn load_bf16(from: *const u8) -> Self::F;
    /// 16 unsigned bytes as numbers.
    unsafe fn load_u8(from: *const u8) -> Self::F;
    /// 16 signed bytes as numbers.
    unsafe fn load_i8(from: *const u8) -> Self::F;
    /// 32 numbers of E4M3, none of them NaN, divided by 256: those of even bytes, and of odd ones.
    unsafe fn e4m3_pair(from: *const u8) -> [Self::F; 2];
    /// The levels of nibbles in 64 bytes, the low ones or the `HIGH` ones: lane `l` of vector `v` is in byte
    /// `4 l + v`.
    unsafe fn levels4<const HIGH: bool>(table: &LevelTable, from: *const u8) -> [Self::F; 4];

    unsafe fn zero_i() -> Self::I;
    /// The bits of floats.
    unsafe fn bits(x: Self::F) -> Self::I;
    /// The larger of 32-bit lanes.
    unsafe fn max_i(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn splat_i(x: i32) -> Self::I;
    /// Prefetches the cache line at an address, which need not be valid, into L1.
    unsafe fn prefetch_l1(at: *const u8);
    /// The same, into L2.
    unsafe fn prefetch_l2(at: *const u8);
    /// 64 bytes.
    unsafe fn load_i(from: *const u8) -> Self::I;
    /// The same four bytes in all lanes.
    unsafe fn load_4(from: *const u8) -> Self::I;
    unsafe fn add_i(a: Self::I, b: Self::I) -> Self::I;
    /// Of 64 bytes, wrapping.
    unsafe fn sub_bytes(a: Self::I, b: Self::I) -> Self::I;
    /// Shifts 32-bit lanes; zeros come in.
    unsafe fn shr_32(x: Self::I, by: i32) -> Self::I;
    unsafe fn shl_32(x: Self::I, by: i32) -> Self::I;
    unsafe fn and(a: Self::I, b: Self::I) -> Self::I;
    unsafe fn or(a: Self::I, b: Self::I) -> Self::I;
    /// Shifts 16-bit lanes; what crosses a byte is for the caller to mask away.
    unsafe fn shr(x: Self::I, by: i32) -> Self::I;
    unsafe fn shl(x: Self::I, by: i32) -> Self::I;
    /// `table[x]` for bytes `x` below 16; `table` points to 16 bytes.
    unsafe fn lookup16(table: *const u8, x: Self::I) -> Self::I;
    /// Four bytes from `4 x` on behind `table`, for lanes `x` that are not negative; they are readable.
    unsafe fn gather(table: *const u8, x: Self::I) -> Self::I;
    /// i32 lanes to floats.
    unsafe fn to_f(x: Self::I) -> Self::F;
    /// `acc + w0 x0 + w1 x1 + w2 x2 + w3 x3` in each lane, for unsigned bytes `w` up to 127 and signed `x`.
    unsafe fn dot(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;
    /// [`Simd::dot`] of the four bytes `AT` bytes behind `x`, in all lanes; [`Simd::dot_wide`] if `WIDE`.
    #[inline(always)]
    unsafe fn dot_at<const WIDE: bool, const AT: usize>(acc: Self::I, w: Self::I, x: *const i8) -> Self::I {
        // SAFETY: the caller has the tier's instructions; four bytes `AT` bytes behind `x` are there.
        unsafe {
            let x = Self::load_4(x.add(AT).cast());
            if WIDE { Self::dot_wide(acc, w, x) } else { Self::dot(acc, w, x) }
        }
    }
    /// Where `PAIRS`: as [`Simd::dot`], but sums of 16 bits, `acc + w0 x0 + w1 x1` and `acc + w2 x2 + w3 x3`,
    /// which must not overflow.
    #[inline(always)]
    unsafe fn dot_pairs(acc: Self::I, w: Self::I, x: Self::I) -> Self::I {
        // SAFETY: the caller's promise. (Elsewhere whole sums take their place.)
        unsafe { Self::dot(acc, w, x) }
    }
    /// [`Simd::dot_pairs`] of the four bytes `AT` bytes behind `x`, in all lanes.
    #[inline(always)]
    unsafe fn dot_pairs_at<const AT: usize>(acc: Self::I, w: Self::I, x: *const i8) -> Self::I {
        // SAFETY: the caller has the tier's instructions; four bytes `AT` bytes behind `x` are there.
        unsafe { Self::dot_pairs(acc, w, Self::load_4(x.add(AT).cast())) }
    }
    /// `acc` and both of the 16-bit sums in each lane.
    #[inline(always)]
    unsafe fn add_pairs(acc: Self::I, pairs: Self::I) -> Self::I {
        // SAFETY: the caller's promise.
        unsafe { Self::add_i(acc, pairs) }
    }
    /// As [`Simd::dot`] for any unsigned bytes `w`; where `WIDE_IS_SIGNED`, of `w - 128` instead of `w`.
    unsafe fn dot_wide(acc: Self::I, w: Self::I, x: Self::I) -> Self::I;
    /// Stores 16 i32 lanes in -128..=127 as bytes.
    unsafe fn store_i8(to: *mut i8, x: Self::I);
    /// The same of two vectors, one behind the other.
    #[inline(always)]
    unsafe fn store_i8_pair(to: *mut i8, a: Self::I, b: Self::I) {
        // SAFETY: the caller's promise: there is room for both.
        unsafe {
            Self::store_i8(to, a);
            Self::store_i8(to.add(LANES), b);
        }
    }

    /// `(acc + a1 b1) + a0 b0` in each lane of pairs of bfloat16, each step rounded (VDPBF16PS, Intel SDM
    /// volume 2).
    unsafe fn dot_bf16(acc: Self::F, a: Self::I, b: Self::I) -> Self::F;
    /// Stores 16 floats as bfloat16, to nearest even.
    unsafe fn store_bf16(to: *mut u16, x: Self::F);

    /// The lanes folded in halves with `add`.
    #[inline(always)]
    unsafe fn reduce_sum(x: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        // SAFETY: the caller's promise; the array has sixteen floats.
        unsafe { Self::store(lanes.as_mut_ptr(), x) };
        let mut width = LANES / 2;
        while width > 0 {
            for l in 0..width {
                lanes[l] += lanes[l + width];
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The largest lane.
    #[inline(always)]
    unsafe fn reduce_max(x: Self::F) -> f32 {
        let mut lanes = [0.0; LANES];
        // SAFETY: as in `sum`.
        unsafe { Self::store(lanes.as_mut_ptr(), x) };
        let mut width = LANES / 2;
        while width > 0 {
            for l in 0..width {
                lanes[l] = if lanes[l] > lanes[l + width] { lanes[l] } else { lanes[l + width] };
            }
            width /= 2;
        }
        lanes[0]
    }

    /// The largest 32-bit lane.
    #[inline(always)]
    unsafe fn reduce_max_i(x: Self::I) -> i32 {
        const { assert!(size_of::<Self::I>() == 4 * LANES) };
        let mut lanes = [0; LANES];
        // SAFETY: as in `sum`.
        unsafe { lanes.as_mut_ptr().cast::<Self::I>().write_unaligned(x) };
        lanes.into_iter().fold(i32::MIN, i32::max)
    }

    /// The sums of lanes 0 to 3, 4 to 7, and so on.
    #[inline(always)]
    unsafe fn quad_sums(x: Self::I) -> [i32; 4] {
        const { assert!(size_of::<Self::I>() == 4 * LANES) };
        let (mut lanes, mut sums) = ([0; LANES], [0; 4]);
        // SAFETY: as in `sum`.
        unsafe { lanes.as_mut_ptr().cast::<Self::I>().write_unaligned(x) };
        for l in 0..LANES {
            sums[l / 4] += lanes[l];
        }
        sums
    }

    /// Up to sixteen floats, the rest zero.
    #[inline(always)]
    unsafe fn load_some(from: &[f32]) -> Self::F {
        if let Some(full) = from.first_chunk::<LANES>() {
            // SAFETY: sixteen floats.
            return unsafe { Self::load(full.as_ptr()) };
        }
        let mut lanes = [0.0; LANES];
        lanes[..from.len()].copy_from_slice(from);
        // SAFETY: as in `sum`.
        unsafe { Self::load(lanes.as_ptr()) }
    }

    /// As many of the lanes as there is room for.
    #[inline(always)]
    unsafe fn store_some(to: &mut [f32], x: Self::F) {
        if let Some(full) = to.first_chunk_mut::<LANES>() {
            // SAFETY: sixteen floats.
            return unsafe { Self::store(full.as_mut_ptr(), x) };
        }
        let mut lanes = [0.0; LANES];
        // SAFETY: as in `sum`.
        unsafe { Self::store(lanes.as_mut_ptr(), x) };
        to.copy_from_slice(&lanes[..to.len()]);
    }
}
