//! AVX-512 with VNNI: a vector is a register. `BF16`: with the instruction for pairs of bfloat16, too.

use std::arch::x86_64::*;

use super::{LevelTable, Simd};

pub(in crate::kernels) struct Avx512<const BF16: bool>;

/// Its instructions are avx512f, bw, vl, dq and vnni, and bf16 where `BF16`.
impl<const BF16: bool> Simd for Avx512<BF16> {
    type F = __m512;
    type I = __m512i;

    const QUERIES: usize = 4;
    const TILE: (usize, usize) = (6, 2);
    const WIDE_IS_SIGNED: bool = false;
    const PAIRS: bool = false;

    on_registers! {
        fn zero() -> __m512 = _mm512_setzero_ps();
        fn splat(x: f32) -> __m512 = _mm512_set1_ps(x);
        fn add(a: __m512, b: __m512) -> __m512 = _mm512_add_ps(a, b);
        fn sub(a: __m512, b: __m512) -> __m512 = _mm512_sub_ps(a, b);
        fn mul(a: __m512, b: __m512) -> __m512 = _mm512_mul_ps(a, b);
        fn div(a: __m512, b: __m512) -> __m512 = _mm512_div_ps(a, b);
        fn fma(a: __m512, b: __m512, c: __m512) -> __m512 = _mm512_fmadd_ps(a, b, c);
        fn max(a: __m512, b: __m512) -> __m512 = _mm512_max_ps(a, b);
        fn min(a: __m512, b: __m512) -> __m512 = _mm512_min_ps(a, b);
        fn abs(x: __m512) -> __m512 = _mm512_abs_ps(x);
        fn copysign(size: __m512, sign: __m512) -> __m512 = {
            let mask = _mm512_set1_ps(-0.0);
            _mm512_or_ps(_mm512_andnot_ps(mask, size), _mm512_and_ps(mask, sign))
        };
        fn select_lt(a: __m512, b: __m512, then: __m512, otherwise: __m512) -> __m512 =
            _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b), otherwise, then);
        fn lt_mask(a: __m512, b: __m512) -> u16 = _mm512_cmp_ps_mask::<_CMP_LT_OQ>(a, b);
        fn round(x: __m512) -> __m512i =
            _mm512_cvt_roundps_epi32::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x);
        fn exp2(n: __m512i) -> __m512 =
            _mm512_castsi512_ps(_mm512_slli_epi32::<23>(_mm512_add_epi32(n, _mm512_set1_epi32(127))));
        fn zero_i() -> __m512i = _mm512_setzero_si512();
        fn bits(x: __m512) -> __m512i = _mm512_castps_si512(x);
        fn max_i(a: __m512i, b: __m512i) -> __m512i = _mm512_max_epi32(a, b);
        fn reduce_max_i(x: __m512i) -> i32 = _mm512_reduce_max_epi32(x);
        fn splat_i(x: i32) -> __m512i = _mm512_set1_epi32(x);
        fn add_i(a: __m512i, b: __m512i) -> __m512i = _mm512_add_epi32(a, b);
        fn sub_bytes(a: __m512i, b: __m512i) -> __m512i = _mm512_sub_epi8(a, b);
        fn quad_sums(x: __m512i) -> [i32; 4] = {
            let x = _mm512_add_epi32(x, _mm512_shuffle_epi32::<0b10_11_00_01>(x));
            let x = _mm512_add_epi32(x, _mm512_shuffle_epi32::<0b01_00_11_10>(x));
            let mut sums = [0; 4];
            _mm_storeu_si128(
                sums.as_mut_ptr().cast(),
                _mm512_castsi512_si128(_mm512_maskz_compress_epi32(0x1111, x)),
            );
            sums
        };
        fn shr_32(x: __m512i, by: i32) -> __m512i = _mm512_srl_epi32(x, _mm_cvtsi32_si128(by));
        fn shl_32(x: __m512i, by: i32) -> __m512i = _mm512_sll_epi32(x, _mm_cvtsi32_si128(by));
        fn and(a: __m512i, b: __m512i) -> __m512i = _mm512_and_si512(a, b);
        fn or(a: __m512i, b: __m512i) -> __m512i = _mm512_or_si512(a, b);
        fn shr(x: __m512i, by: i32) -> __m512i = _mm512_srl_epi16(x, _mm_cvtsi32_si128(by));
        fn shl(x: __m512i, by: i32) -> __m512i = _mm512_sll_epi16(x, _mm_cvtsi32_si128(by));
        fn to_f(x: __m512i) -> __m512 = _mm512_cvtepi32_ps(x);
        fn dot(acc: __m512i, w: __m512i, x: __m512i) -> __m512i = _mm512_dpbusd_epi32(acc, w, x);
        fn dot_wide(acc: __m512i, w: __m512i, x: __m512i) -> __m512i = _mm512_dpbusd_epi32(acc, w, x);
        fn dot_bf16(acc: __m512, a: __m512i, b: __m512i) -> __m512 = {
            if BF16 {
                // The same 64 bytes under the type that the intrinsic takes.
                let a = std::mem::transmute::<__m512i, __m512bh>(a);
                let b = std::mem::transmute::<__m512i, __m512bh>(b);
                return _mm512_dpbf16_ps(acc, a, b);
            }
            let high = _mm512_set1_epi32(0xffff_0000_u32 as i32);
            let odd = (_mm512_and_si512(a, high), _mm512_and_si512(b, high));
            let even = (_mm512_slli_epi32::<16>(a), _mm512_slli_epi32::<16>(b));
            let acc = _mm512_fmadd_ps(_mm512_castsi512_ps(odd.0), _mm512_castsi512_ps(odd.1), acc);
            _mm512_fmadd_ps(_mm512_castsi512_ps(even.0), _mm512_castsi512_ps(even.1), acc)
        };
        fn reduce_sum(x: __m512) -> f32 =
            super::avx2::sum_8(_mm256_add_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)));
        fn reduce_max(x: __m512) -> f32 =
            super::avx2::max_8(_mm256_max_ps(_mm512_castps512_ps256(x), _mm512_extractf32x8_ps::<1>(x)));
    }

    on_memory! {
        fn load(from: *const f32) -> __m512 = _mm512_loadu_ps(from);
        fn store(to: *mut f32, x: __m512) = _mm512_storeu_ps(to, x);
        fn load_f16(from: *const u8) -> __m512 = _mm512_cvtph_ps(_mm256_loadu_si256(from.cast()));
        fn load_bf16(from: *const u8) -> __m512 = {
            let wide = _mm512_cvtepu16_epi32(_mm256_loadu_si256(from.cast()));
            _mm512_castsi512_ps(_mm512_slli_epi32::<16>(wide))
        };
        fn load_u8(from: *const u8) -> __m512 =
            _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(_mm_loadu_si128(from.cast())));
        fn load_i8(from: *const u8) -> __m512 =
            _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(from.cast())));
        fn prefetch_l1(at: *const u8) = _mm_prefetch::<_MM_HINT_T0>(at.cast());
        fn prefetch_l2(at: *const u8) = _mm_prefetch::<_MM_HINT_T1>(at.cast());
        fn load_i(from: *const u8) -> __m512i = _mm512_loadu_si512(from.cast());
        fn load_4(from: *const u8) -> __m512i = _mm512_set1_epi32(from.cast::<i32>().read_unaligned());
        fn lookup16(table: *const u8, x: __m512i) -> __m512i =
            _mm512_shuffle_epi8(_mm512_broadcast_i32x4(_mm_loadu_si128(table.cast())), x);
        fn gather(table: *const u8, x: __m512i) -> __m512i = _mm512_i32gather_epi32::<4>(x, table.cast());
        fn store_i8(to: *mut i8, x: __m512i) = _mm_storeu_si128(to.cast(), _mm512_cvtepi32_epi8(x));
        fn store_bf16(to: *mut u16, x: __m512) = {
            if BF16 {
                let halves = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                return _mm256_storeu_si256(to.cast(), halves);
            }
            let bits = _mm512_castps_si512(x);
            let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
            let rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
            let quiet = _mm512_or_si512(bits, _mm512_set1_epi32(0x40_0000));
            let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(x, x);
            let chosen = _mm512_mask_blend_epi32(nan, rounded, quiet);
            _mm256_storeu_si256(to.cast(), _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(chosen)));
        };
    }

    #[inline(always)]
    unsafe fn e4m3_pair(from: *const u8) -> [__m512; 2] {
        // SAFETY: the caller has the tier's instructions, AVX2 among them, and promises 32 bytes.
        unsafe {
            // As with AVX2.
            let (x, mask) = (_mm256_loadu_si256(from.cast()), _mm256_set1_epi16(0xbf80_u16 as i16));
            let even = _mm256_maddubs_epi16(_mm256_set1_epi16(0x80), x);
            let odd = _mm256_srai_epi16::<1>(x);
            [_mm512_cvtph_ps(_mm256_and_si256(even, mask)), _mm512_cvtph_ps(_mm256_and_si256(odd, mask))]
        }
    }

    #[inline(always)]
    unsafe fn levels4<const HIGH: bool>(table: &LevelTable, from: *const u8) -> [__m512; 4] {
        // SAFETY: the caller has the tier's instructions and promises 64 bytes.
        unsafe {
            // The permutation takes the lowest four bits of a lane.
            let codes = _mm512_loadu_si512(from.cast());
            let table = _mm512_load_ps(table.levels.as_ptr());
            if HIGH {
                return [
                    _mm512_permutexvar_ps(_mm512_srli_epi32::<4>(codes), table),
                    _mm512_permutexvar_ps(_mm512_srli_epi32::<12>(codes), table),
                    _mm512_permutexvar_ps(_mm512_srli_epi32::<20>(codes), table),
                    _mm512_permutexvar_ps(_mm512_srli_epi32::<28>(codes), table),
                ];
            }
            [
                _mm512_permutexvar_ps(codes, table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<8>(codes), table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<16>(codes), table),
                _mm512_permutexvar_ps(_mm512_srli_epi32::<24>(codes), table),
            ]
        }
    }

    #[inline(always)]
    unsafe fn swapped<const BY: usize>(x: __m512) -> __m512 {
        // SAFETY: the caller has the tier's instructions; registers only.
        unsafe {
            match BY {
                1 => _mm512_permute_ps::<0b10_11_00_01>(x),
                2 => _mm512_permute_ps::<0b01_00_11_10>(x),
                4 => _mm512_shuffle_f32x4::<0b10_11_00_01>(x, x),
                _ => _mm512_shuffle_f32x4::<0b01_00_11_10>(x, x),
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_at<const WIDE: bool, const AT: usize>(acc: __m512i, w: __m512i, x: *const i8) -> __m512i {
        // SAFETY: the caller has the tier's instructions; four bytes `AT` bytes behind `x` are there.
        unsafe { dot_at::<AT>(acc, w, x) }
    }
}

/// Written as the instruction: the compiler loads `x` into a register first, long before, and has none to
/// spare where many rows are multiplied at once. What it did instead, to memory and back, took up to three
/// times as long.
///
/// # Safety
/// There are four bytes `AT` bytes behind `x`.
#[inline]
#[target_feature(enable = "avx512f,avx512vnni")]
unsafe fn dot_at<const AT: usize>(mut acc: __m512i, w: __m512i, x: *const i8) -> __m512i {
    // SAFETY: it reads these four bytes, and nothing else happens.
    unsafe {
        std::arch::asm!(
            "vpdpbusd {acc}, {w}, dword ptr [{x} + {at}]{{1to16}}",
            acc = inout(zmm_reg) acc,
            w = in(zmm_reg) w,
            x = in(reg) x,
            at = const AT,
            options(pure, readonly, nostack, preserves_flags),
        );
    }
    acc
}
