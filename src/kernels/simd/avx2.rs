//! AVX2 with FMA and F16C: a vector is two registers. `VNNI`: with the 256-bit byte products of AVX-VNNI, too.

use std::arch::x86_64::*;

use super::Simd;

pub(in crate::kernels) struct Avx2<const VNNI: bool>;

type F = [__m256; 2];
type I = [__m256i; 2];

/// Applies an expression to both registers.
macro_rules! both {
    ($($x:ident),+ => $e:expr) => {{
        let low = { $(let $x = $x[0];)+ $e };
        let high = { $(let $x = $x[1];)+ $e };
        [low, high]
    }};
}

// SAFETY of all methods: the caller promises the instructions (avx2, fma, f16c; avxvnni where `VNNI`) and the
// pointers.
impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F = F;
    type I = I;

    const QUERIES: usize = 2;
    const TILE: (usize, usize) = (2, 1);
    const WIDE_IS_SIGNED: bool = !VNNI;

    #[inline(always)]
    unsafe fn zero() -> F {
        unsafe { [_mm256_setzero_ps(); 2] }
    }
    #[inline(always)]
    unsafe fn splat(x: f32) -> F {
        unsafe { [_mm256_set1_ps(x); 2] }
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> F {
        unsafe { [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))] }
    }
    #[inline(always)]
    unsafe fn store(to: *mut f32, x: F) {
        unsafe {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        }
    }
    #[inline(always)]
    unsafe fn add(a: F, b: F) -> F {
        unsafe { both!(a, b => _mm256_add_ps(a, b)) }
    }
    #[inline(always)]
    unsafe fn sub(a: F, b: F) -> F {
        unsafe { both!(a, b => _mm256_sub_ps(a, b)) }
    }
    #[inline(always)]
    unsafe fn mul(a: F, b: F) -> F {
        unsafe { both!(a, b => _mm256_mul_ps(a, b)) }
    }
    #[inline(always)]
    unsafe fn div(a: F, b: F) -> F {
        unsafe { both!(a, b => _mm256_div_ps(a, b)) }
    }
    #[inline(always)]
    unsafe fn fma(a: F, b: F, c: F) -> F {
        unsafe { both!(a, b, c => _mm256_fmadd_ps(a, b, c)) }
    }
    #[inline(always)]
    unsafe fn max(a: F, b: F) -> F {
        unsafe { both!(a, b => _mm256_max_ps(a, b)) }
    }
    #[inline(always)]
    unsafe fn min(a: F, b: F) -> F {
        unsafe { both!(a, b => _mm256_min_ps(a, b)) }
    }
    #[inline(always)]
    unsafe fn abs(x: F) -> F {
        unsafe { both!(x => _mm256_andnot_ps(_mm256_set1_ps(-0.0), x)) }
    }
    #[inline(always)]
    unsafe fn copysign(size: F, sign: F) -> F {
        unsafe {
            let mask = _mm256_set1_ps(-0.0);
            both!(size, sign => _mm256_or_ps(_mm256_andnot_ps(mask, size), _mm256_and_ps(mask, sign)))
        }
    }
    #[inline(always)]
    unsafe fn select_lt(a: F, b: F, then: F, otherwise: F) -> F {
        unsafe {
            both!(a, b, then, otherwise => _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b)))
        }
    }
    #[inline(always)]
    unsafe fn lt_mask(a: F, b: F) -> u16 {
        unsafe {
            let mask = both!(a, b => _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b)));
            (mask[1] << 8 | mask[0]) as u16
        }
    }
    #[inline(always)]
    unsafe fn round(x: F) -> I {
        unsafe {
            both!(x => _mm256_cvttps_epi32(
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
            ))
        }
    }
    #[inline(always)]
    unsafe fn exp2(n: I) -> F {
        unsafe {
            both!(n => _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127)))))
        }
    }
    #[inline(always)]
    unsafe fn load_f16(from: *const u8) -> F {
        unsafe {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
            ]
        }
    }
    #[inline(always)]
    unsafe fn load_bf16(from: *const u8) -> F {
        unsafe {
            let x = [_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast())];
            both!(x => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))))
        }
    }
    #[inline(always)]
    unsafe fn load_u8(from: *const u8) -> F {
        unsafe {
            let x = [_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(8).cast())];
            both!(x => _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)))
        }
    }
    #[inline(always)]
    unsafe fn load_i8(from: *const u8) -> F {
        unsafe {
            let x = [_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(8).cast())];
            both!(x => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)))
        }
    }
    #[inline(always)]
    unsafe fn zero_i() -> I {
        unsafe { [_mm256_setzero_si256(); 2] }
    }
    #[inline(always)]
    unsafe fn bits(x: F) -> I {
        unsafe { both!(x => _mm256_castps_si256(x)) }
    }
    #[inline(always)]
    unsafe fn max_i(a: I, b: I) -> I {
        unsafe { both!(a, b => _mm256_max_epi32(a, b)) }
    }
    #[inline(always)]
    unsafe fn splat_i(x: i32) -> I {
        unsafe { [_mm256_set1_epi32(x); 2] }
    }
    #[inline(always)]
    unsafe fn prefetch_l1(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T0>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn prefetch_l2(at: *const u8) {
        unsafe { _mm_prefetch::<_MM_HINT_T1>(at.cast()) }
    }
    #[inline(always)]
    unsafe fn load_i(from: *const u8) -> I {
        unsafe { [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())] }
    }
    #[inline(always)]
    unsafe fn load_4(from: *const u8) -> I {
        unsafe { [_mm256_set1_epi32(from.cast::<i32>().read_unaligned()); 2] }
    }
    #[inline(always)]
    unsafe fn add_i(a: I, b: I) -> I {
        unsafe { both!(a, b => _mm256_add_epi32(a, b)) }
    }
    #[inline(always)]
    unsafe fn shr_32(x: I, by: i32) -> I {
        unsafe { both!(x => _mm256_srl_epi32(x, _mm_cvtsi32_si128(by))) }
    }
    #[inline(always)]
    unsafe fn shl_32(x: I, by: i32) -> I {
        unsafe { both!(x => _mm256_sll_epi32(x, _mm_cvtsi32_si128(by))) }
    }
    #[inline(always)]
    unsafe fn and(a: I, b: I) -> I {
        unsafe { both!(a, b => _mm256_and_si256(a, b)) }
    }
    #[inline(always)]
    unsafe fn or(a: I, b: I) -> I {
        unsafe { both!(a, b => _mm256_or_si256(a, b)) }
    }
    #[inline(always)]
    unsafe fn shr(x: I, by: i32) -> I {
        unsafe { both!(x => _mm256_srl_epi16(x, _mm_cvtsi32_si128(by))) }
    }
    #[inline(always)]
    unsafe fn shl(x: I, by: i32) -> I {
        unsafe { both!(x => _mm256_sll_epi16(x, _mm_cvtsi32_si128(by))) }
    }
    #[inline(always)]
    unsafe fn lookup16(table: *const u8, x: I) -> I {
        unsafe {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.cast()));
            both!(x => _mm256_shuffle_epi8(table, x))
        }
    }
    #[inline(always)]
    unsafe fn to_f(x: I) -> F {
        unsafe { both!(x => _mm256_cvtepi32_ps(x)) }
    }
    #[inline(always)]
    unsafe fn dot(acc: I, w: I, x: I) -> I {
        unsafe {
            if VNNI {
                return both!(acc, w, x => _mm256_dpbusd_avx_epi32(acc, w, x));
            }
            // Two products of at most 127 * 127 fit in 16 bits.
            let ones = _mm256_set1_epi16(1);
            both!(acc, w, x => _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones)))
        }
    }
    #[inline(always)]
    unsafe fn dot_wide(acc: I, w: I, x: I) -> I {
        unsafe {
            if VNNI {
                return both!(acc, w, x => _mm256_dpbusd_avx_epi32(acc, w, x));
            }
            // Products of 255 would saturate; of `w - 128`, as a size and a sign that goes to `x`, they do not.
            let (ones, middle) = (_mm256_set1_epi16(1), _mm256_set1_epi8(-128));
            both!(acc, w, x => {
                let w = _mm256_xor_si256(w, middle);
                let products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                _mm256_add_epi32(acc, _mm256_madd_epi16(products, ones))
            })
        }
    }
    #[inline(always)]
    unsafe fn store_i8(to: *mut i8, x: I) {
        unsafe {
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(x[0], x[1]));
            let bytes = _mm256_packs_epi16(words, words);
            let bytes = _mm256_permute4x64_epi64::<0b00_00_10_00>(bytes);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes));
        }
    }
    #[inline(always)]
    unsafe fn dot_bf16(acc: F, a: I, b: I) -> F {
        unsafe {
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            both!(acc, a, b => {
                let odd = (_mm256_and_si256(a, high), _mm256_and_si256(b, high));
                let even = (_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b));
                let acc = _mm256_fmadd_ps(_mm256_castsi256_ps(odd.0), _mm256_castsi256_ps(odd.1), acc);
                _mm256_fmadd_ps(_mm256_castsi256_ps(even.0), _mm256_castsi256_ps(even.1), acc)
            })
        }
    }
    #[inline(always)]
    unsafe fn store_bf16(to: *mut u16, x: F) {
        unsafe {
            let halves = both!(x => {
                let bits = _mm256_castps_si256(x);
                let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
                let rounded = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
                let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x40_0000));
                let nan = _mm256_castps_si256(_mm256_cmp_ps::<_CMP_UNORD_Q>(x, x));
                _mm256_srli_epi32::<16>(_mm256_blendv_epi8(rounded, quiet, nan))
            });
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packus_epi32(halves[0], halves[1]));
            _mm256_storeu_si256(to.cast(), words);
        }
    }
    #[inline(always)]
    unsafe fn reduce_sum(x: F) -> f32 {
        unsafe { sum_8(_mm256_add_ps(x[0], x[1])) }
    }
    #[inline(always)]
    unsafe fn reduce_max(x: F) -> f32 {
        unsafe { max_8(_mm256_max_ps(x[0], x[1])) }
    }
}

/// Folds a register of eight in halves.
macro_rules! fold {
    ($x:expr, $four:ident, $one:ident) => {{
        let four = $four(_mm256_castps256_ps128($x), _mm256_extractf128_ps::<1>($x));
        let two = $four(four, _mm_movehl_ps(four, four));
        _mm_cvtss_f32($one(two, _mm_shuffle_ps::<1>(two, two)))
    }};
}

/// # Safety
/// The machine has AVX2.
#[inline(always)]
pub(super) unsafe fn sum_8(x: __m256) -> f32 {
    unsafe { fold!(x, _mm_add_ps, _mm_add_ss) }
}

/// # Safety
/// The machine has AVX2.
#[inline(always)]
pub(super) unsafe fn max_8(x: __m256) -> f32 {
    unsafe { fold!(x, _mm_max_ps, _mm_max_ss) }
}
