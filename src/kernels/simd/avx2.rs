//! AVX2 with FMA and F16C: a vector is two registers. `VNNI`: with the 256-bit byte products of AVX-VNNI,
//! too.

use std::arch::x86_64::*;

use super::{LevelTable, Simd};

mod at;

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

/// Its instructions are avx2, fma and f16c, and avxvnni where `VNNI`.
impl<const VNNI: bool> Simd for Avx2<VNNI> {
    type F = F;
    type I = I;

    const QUERIES: usize = 2;
    const TILE: (usize, usize) = (if VNNI { 2 } else { 3 }, 1);
    const WIDE_IS_SIGNED: bool = !VNNI;
    const PAIRS: bool = !VNNI;

    on_registers! {
        fn zero() -> F = [_mm256_setzero_ps(); 2];
        fn splat(x: f32) -> F = [_mm256_set1_ps(x); 2];
        fn add(a: F, b: F) -> F = both!(a, b => _mm256_add_ps(a, b));
        fn sub(a: F, b: F) -> F = both!(a, b => _mm256_sub_ps(a, b));
        fn mul(a: F, b: F) -> F = both!(a, b => _mm256_mul_ps(a, b));
        fn div(a: F, b: F) -> F = both!(a, b => _mm256_div_ps(a, b));
        fn fma(a: F, b: F, c: F) -> F = both!(a, b, c => _mm256_fmadd_ps(a, b, c));
        fn max(a: F, b: F) -> F = both!(a, b => _mm256_max_ps(a, b));
        fn min(a: F, b: F) -> F = both!(a, b => _mm256_min_ps(a, b));
        fn abs(x: F) -> F = both!(x => _mm256_andnot_ps(_mm256_set1_ps(-0.0), x));
        fn copysign(size: F, sign: F) -> F = {
            let mask = _mm256_set1_ps(-0.0);
            both!(size, sign => _mm256_or_ps(_mm256_andnot_ps(mask, size), _mm256_and_ps(mask, sign)))
        };
        fn select_lt(a: F, b: F, then: F, otherwise: F) -> F =
            both!(a, b, then, otherwise => {
                _mm256_blendv_ps(otherwise, then, _mm256_cmp_ps::<_CMP_LT_OQ>(a, b))
            });
        fn lt_mask(a: F, b: F) -> u16 = {
            let mask = both!(a, b => _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(a, b)));
            (mask[1] << 8 | mask[0]) as u16
        };
        fn round(x: F) -> I = {
            both!(x => _mm256_cvttps_epi32(
                _mm256_round_ps::<{ _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC }>(x)
            ))
        };
        fn exp2(n: I) -> F =
            both!(n => {
                _mm256_castsi256_ps(_mm256_slli_epi32::<23>(_mm256_add_epi32(n, _mm256_set1_epi32(127))))
            });
        fn zero_i() -> I = [_mm256_setzero_si256(); 2];
        fn bits(x: F) -> I = both!(x => _mm256_castps_si256(x));
        fn max_i(a: I, b: I) -> I = both!(a, b => _mm256_max_epi32(a, b));
        fn splat_i(x: i32) -> I = [_mm256_set1_epi32(x); 2];
        fn add_i(a: I, b: I) -> I = both!(a, b => _mm256_add_epi32(a, b));
        fn sub_bytes(a: I, b: I) -> I = both!(a, b => _mm256_sub_epi8(a, b));
        fn shr_32(x: I, by: i32) -> I = both!(x => _mm256_srl_epi32(x, _mm_cvtsi32_si128(by)));
        fn shl_32(x: I, by: i32) -> I = both!(x => _mm256_sll_epi32(x, _mm_cvtsi32_si128(by)));
        fn and(a: I, b: I) -> I = both!(a, b => _mm256_and_si256(a, b));
        fn or(a: I, b: I) -> I = both!(a, b => _mm256_or_si256(a, b));
        fn shr(x: I, by: i32) -> I = both!(x => _mm256_srl_epi16(x, _mm_cvtsi32_si128(by)));
        fn shl(x: I, by: i32) -> I = both!(x => _mm256_sll_epi16(x, _mm_cvtsi32_si128(by)));
        fn to_f(x: I) -> F = both!(x => _mm256_cvtepi32_ps(x));
        fn dot(acc: I, w: I, x: I) -> I = {
            if VNNI {
                return both!(acc, w, x => _mm256_dpbusd_avx_epi32(acc, w, x));
            }
            // Two products of at most 127 * 127 fit in 16 bits.
            let ones = _mm256_set1_epi16(1);
            both!(acc, w, x => _mm256_add_epi32(acc, _mm256_madd_epi16(_mm256_maddubs_epi16(w, x), ones)))
        };
        fn dot_pairs(acc: I, w: I, x: I) -> I =
            both!(acc, w, x => _mm256_add_epi16(acc, _mm256_maddubs_epi16(w, x)));
        fn add_pairs(acc: I, pairs: I) -> I = {
            let ones = _mm256_set1_epi16(1);
            both!(acc, pairs => _mm256_add_epi32(acc, _mm256_madd_epi16(pairs, ones)))
        };
        fn dot_wide(acc: I, w: I, x: I) -> I = {
            if VNNI {
                return both!(acc, w, x => _mm256_dpbusd_avx_epi32(acc, w, x));
            }
            // Products of 255 would saturate; of `w - 128`, as a size and a sign that goes to `x`, they do
            // not.
            let (ones, middle) = (_mm256_set1_epi16(1), _mm256_set1_epi8(-128));
            both!(acc, w, x => {
                let w = _mm256_xor_si256(w, middle);
                let products = _mm256_maddubs_epi16(_mm256_abs_epi8(w), _mm256_sign_epi8(x, w));
                _mm256_add_epi32(acc, _mm256_madd_epi16(products, ones))
            })
        };
        fn dot_bf16(acc: F, a: I, b: I) -> F = {
            let high = _mm256_set1_epi32(0xffff_0000_u32 as i32);
            both!(acc, a, b => {
                let odd = (_mm256_and_si256(a, high), _mm256_and_si256(b, high));
                let even = (_mm256_slli_epi32::<16>(a), _mm256_slli_epi32::<16>(b));
                let acc = _mm256_fmadd_ps(_mm256_castsi256_ps(odd.0), _mm256_castsi256_ps(odd.1), acc);
                _mm256_fmadd_ps(_mm256_castsi256_ps(even.0), _mm256_castsi256_ps(even.1), acc)
            })
        };
        fn reduce_sum(x: F) -> f32 = sum_8(_mm256_add_ps(x[0], x[1]));
        fn reduce_max(x: F) -> f32 = max_8(_mm256_max_ps(x[0], x[1]));
        fn reduce_max_i(x: I) -> i32 = {
            let eight = _mm256_max_epi32(x[0], x[1]);
            let four = _mm_max_epi32(_mm256_castsi256_si128(eight), _mm256_extracti128_si256::<1>(eight));
            let two = _mm_max_epi32(four, _mm_shuffle_epi32::<0b01_00_11_10>(four));
            _mm_cvtsi128_si32(_mm_max_epi32(two, _mm_shuffle_epi32::<1>(two)))
        };
        fn quad_sums(x: I) -> [i32; 4] = {
            // Pairs within each half of a register, then pairs of these.
            let pairs = _mm256_hadd_epi32(x[0], x[1]);
            let quads = _mm256_hadd_epi32(pairs, pairs);
            let (low, high) = (_mm256_castsi256_si128(quads), _mm256_extracti128_si256::<1>(quads));
            let (first, second) = (_mm_cvtsi128_si64(low), _mm_cvtsi128_si64(high));
            [first as i32, second as i32, (first >> 32) as i32, (second >> 32) as i32]
        };
    }

    #[inline(always)]
    unsafe fn dot_at<const WIDE: bool, const AT: usize>(acc: I, w: I, x: *const i8) -> I {
        // SAFETY: the caller has the tier's instructions; four bytes `AT` bytes behind `x` are there.
        unsafe {
            match (VNNI, WIDE) {
                (true, _) => Self::dot(acc, w, Self::load_4(x.add(AT).cast())),
                (false, false) => at::dot::<AT>(acc, w, x),
                (false, true) => {
                    let w = both!(w => _mm256_xor_si256(w, _mm256_set1_epi8(-128)));
                    at::dot_signed::<AT>(acc, w, both!(w => _mm256_abs_epi8(w)), x)
                }
            }
        }
    }

    #[inline(always)]
    unsafe fn dot_pairs_at<const AT: usize>(acc: I, w: I, x: *const i8) -> I {
        // SAFETY: the caller has the tier's instructions; four bytes `AT` bytes behind `x` are there.
        unsafe { at::dot_pairs::<AT>(acc, w, x) }
    }

    #[inline(always)]
    unsafe fn e4m3_pair(from: *const u8) -> [F; 2] {
        // SAFETY: the caller has the tier's instructions and promises 32 bytes.
        unsafe {
            // `seee emmm` becomes the half float `s0ee eemm m000 0000`: as a signed number times 128 it has a
            // bit of its sign too many. Registers of 16 bytes, so that none has to be split to be widened.
            let x = [_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast())];
            let mask = _mm_set1_epi16(0xbf80_u16 as i16);
            let even = both!(x => {
                let halves = _mm_maddubs_epi16(_mm_set1_epi16(0x80), x);
                _mm256_cvtph_ps(_mm_and_si128(halves, mask))
            });
            let odd = both!(x => _mm256_cvtph_ps(_mm_and_si128(_mm_srai_epi16::<1>(x), mask)));
            [even, odd]
        }
    }

    #[inline(always)]
    unsafe fn levels4<const HIGH: bool>(table: &LevelTable, from: *const u8) -> [F; 4] {
        // SAFETY: the caller has the tier's instructions and promises 64 bytes.
        unsafe {
            let [a, b, c, d] = eight_rows::<HIGH>(table, from);
            let [e, f, g, h] = eight_rows::<HIGH>(table, from.add(32));
            [[a, e], [b, f], [c, g], [d, h]]
        }
    }

    #[inline(always)]
    unsafe fn swapped<const BY: usize>(x: F) -> F {
        // SAFETY: the caller has the tier's instructions; registers only.
        unsafe {
            match BY {
                1 => both!(x => _mm256_permute_ps::<0b10_11_00_01>(x)),
                2 => both!(x => _mm256_permute_ps::<0b01_00_11_10>(x)),
                4 => both!(x => _mm256_permute2f128_ps::<1>(x, x)),
                _ => [x[1], x[0]],
            }
        }
    }

    on_memory! {
        fn load(from: *const f32) -> F = [_mm256_loadu_ps(from), _mm256_loadu_ps(from.add(8))];
        fn store(to: *mut f32, x: F) = {
            _mm256_storeu_ps(to, x[0]);
            _mm256_storeu_ps(to.add(8), x[1]);
        };
        fn load_f16(from: *const u8) -> F = {
            [
                _mm256_cvtph_ps(_mm_loadu_si128(from.cast())),
                _mm256_cvtph_ps(_mm_loadu_si128(from.add(16).cast())),
            ]
        };
        fn load_bf16(from: *const u8) -> F = {
            let x = [_mm_loadu_si128(from.cast()), _mm_loadu_si128(from.add(16).cast())];
            both!(x => _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_cvtepu16_epi32(x))))
        };
        fn load_u8(from: *const u8) -> F = {
            let x = [_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(8).cast())];
            both!(x => _mm256_cvtepi32_ps(_mm256_cvtepu8_epi32(x)))
        };
        fn load_i8(from: *const u8) -> F = {
            let x = [_mm_loadl_epi64(from.cast()), _mm_loadl_epi64(from.add(8).cast())];
            both!(x => _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(x)))
        };
        fn prefetch_l1(at: *const u8) = _mm_prefetch::<_MM_HINT_T0>(at.cast());
        fn prefetch_l2(at: *const u8) = _mm_prefetch::<_MM_HINT_T1>(at.cast());
        fn load_i(from: *const u8) -> I =
            [_mm256_loadu_si256(from.cast()), _mm256_loadu_si256(from.add(32).cast())];
        fn load_4(from: *const u8) -> I = [_mm256_set1_epi32(from.cast::<i32>().read_unaligned()); 2];
        fn lookup16(table: *const u8, x: I) -> I = {
            let table = _mm256_broadcastsi128_si256(_mm_loadu_si128(table.cast()));
            both!(x => _mm256_shuffle_epi8(table, x))
        };
        fn gather(table: *const u8, x: I) -> I =
            both!(x => _mm256_i32gather_epi32::<4>(table.cast(), x));
        fn store_i8(to: *mut i8, x: I) = {
            let words = _mm256_permute4x64_epi64::<0b11_01_10_00>(_mm256_packs_epi32(x[0], x[1]));
            let bytes = _mm256_packs_epi16(words, words);
            let bytes = _mm256_permute4x64_epi64::<0b00_00_10_00>(bytes);
            _mm_storeu_si128(to.cast(), _mm256_castsi256_si128(bytes));
        };
        fn store_i8_pair(to: *mut i8, a: I, b: I) = {
            // Fours of each register in turn: 0, 2, 4, 6 of the low halves, and 1, 3, 5, 7 of the high ones.
            let words = [_mm256_packs_epi32(a[0], a[1]), _mm256_packs_epi32(b[0], b[1])];
            let bytes = _mm256_packs_epi16(words[0], words[1]);
            let order = _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7);
            _mm256_storeu_si256(to.cast(), _mm256_permutevar8x32_epi32(bytes, order));
        };
        fn store_bf16(to: *mut u16, x: F) = {
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
        };
    }
}

/// Half of the lanes of [`Simd::levels4`]. Each byte of the floats is looked up by itself, 32 at once, and
/// the four are put together: half the work of permuting floats, which looks eight up of a table of eight.
///
/// # Safety
/// The machine has AVX2; there are 32 bytes.
#[inline(always)]
unsafe fn eight_rows<const HIGH: bool>(table: &LevelTable, from: *const u8) -> [__m256; 4] {
    // SAFETY: the caller has AVX2 and promises the bytes; the table has four planes of sixteen.
    unsafe {
        // The bytes of four rows, which lie side by side, go where they make whole registers of a column.
        let turn = _mm_setr_epi8(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
        let codes = _mm256_loadu_si256(from.cast());
        let codes = _mm256_shuffle_epi8(codes, _mm256_broadcastsi128_si256(turn));
        let codes = if HIGH { _mm256_srli_epi16::<4>(codes) } else { codes };
        let codes = _mm256_and_si256(codes, _mm256_set1_epi8(15));
        let mut bytes = [_mm256_setzero_si256(); 4];
        for (bytes, plane) in bytes.iter_mut().zip(&table.planes) {
            let plane = _mm256_broadcastsi128_si256(_mm_load_si128(plane.as_ptr().cast()));
            *bytes = _mm256_shuffle_epi8(plane, codes);
        }
        let low = (_mm256_unpacklo_epi8(bytes[0], bytes[1]), _mm256_unpacklo_epi8(bytes[2], bytes[3]));
        let high = (_mm256_unpackhi_epi8(bytes[0], bytes[1]), _mm256_unpackhi_epi8(bytes[2], bytes[3]));
        [
            _mm256_castsi256_ps(_mm256_unpacklo_epi16(low.0, low.1)),
            _mm256_castsi256_ps(_mm256_unpackhi_epi16(low.0, low.1)),
            _mm256_castsi256_ps(_mm256_unpacklo_epi16(high.0, high.1)),
            _mm256_castsi256_ps(_mm256_unpackhi_epi16(high.0, high.1)),
        ]
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
    // SAFETY: the caller has AVX2; registers only.
    unsafe { fold!(x, _mm_add_ps, _mm_add_ss) }
}

/// # Safety
/// The machine has AVX2.
#[inline(always)]
pub(super) unsafe fn max_8(x: __m256) -> f32 {
    // SAFETY: the caller has AVX2; registers only.
    unsafe { fold!(x, _mm_max_ps, _mm_max_ss) }
}
