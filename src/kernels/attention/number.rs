//! What keys, values, queries and weights are stored as, as the kernels see it: pairs of numbers in 16 lanes.
//!
//! A step of a dot product takes in a pair a lane: the second product is added first, then the first one,
//! each sum rounded. That is what the bfloat16 instruction does, and f32 does it in the same order.

use crate::cache::storage::Element;
use crate::kernels::math;
use crate::kernels::simd::{LANES, Simd};

/// # Safety
/// Methods ask what those of [`Simd`] ask. Pointers are good for a group of 32 numbers (`load`), for two
/// (`splat`, `splat_lane`: to the first of a lane's pair in a group) or for 16 (`store`).
pub(super) trait Number: Element {
    /// Pairs of numbers in 16 lanes.
    type Pair<S: Simd>: Copy;

    unsafe fn load<S: Simd>(from: *const Self) -> Self::Pair<S>;
    /// Two neighbours in all lanes.
    unsafe fn splat<S: Simd>(from: *const Self) -> Self::Pair<S>;
    /// One lane's pair of a group in all lanes.
    unsafe fn splat_lane<S: Simd>(from: *const Self) -> Self::Pair<S>;
    /// `(acc + a1 b1) + a0 b0`.
    unsafe fn dot<S: Simd>(acc: S::F, a: Self::Pair<S>, b: Self::Pair<S>) -> S::F;
    /// The pairs with zeros for the first, the second or both.
    unsafe fn keep<S: Simd>(x: Self::Pair<S>, first: bool, second: bool) -> Self::Pair<S>;
    /// `e^x` for `x` up to 0, as exact as the type; 0 below -88.
    unsafe fn exp<S: Simd>(x: S::F) -> S::F;
    /// Stores 16 numbers side by side, and returns what they were rounded to.
    unsafe fn store<S: Simd>(to: *mut Self, x: S::F) -> S::F;
}

/// The bits of a bfloat16.
impl Number for u16 {
    type Pair<S: Simd> = S::I;

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const u16) -> S::I {
        // SAFETY: the caller has the tier's instructions, and a group is 32 numbers of two bytes.
        unsafe { S::load_i(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat<S: Simd>(from: *const u16) -> S::I {
        // SAFETY: the caller has the tier's instructions, and two numbers are four bytes.
        unsafe { S::load_4(from.cast()) }
    }
    #[inline(always)]
    unsafe fn splat_lane<S: Simd>(from: *const u16) -> S::I {
        // SAFETY: as `splat`: a lane's pair lies side by side.
        unsafe { S::load_4(from.cast()) }
    }
    #[inline(always)]
    unsafe fn dot<S: Simd>(acc: S::F, a: S::I, b: S::I) -> S::F {
        // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
        unsafe { S::dot_bf16(acc, a, b) }
    }
    #[inline(always)]
    unsafe fn keep<S: Simd>(x: S::I, first: bool, second: bool) -> S::I {
        let mask = if first { 0xffff } else { 0 } | if second { !0xffff } else { 0 };
        // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
        unsafe { S::and(x, S::splat_i(mask)) }
    }
    /// To a relative error of 6e-5, a thirtieth of what rounding to bfloat16 does.
    #[inline(always)]
    unsafe fn exp<S: Simd>(x: S::F) -> S::F {
        // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
        unsafe {
            // A NaN stays: it is the second operand. The least power is 2^-127, whose bits are those of zero.
            let x = S::max(S::splat(-88.0), x);
            let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
            let r = S::fma(S::to_f(n), S::splat(-std::f32::consts::LN_2), x);
            let mut p = S::splat(1.0 / 24.0);
            for c in [1.0 / 6.0, 0.5, 1.0, 1.0] {
                p = S::fma(r, p, S::splat(c));
            }
            S::mul(p, S::exp2(n))
        }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut u16, x: S::F) -> S::F {
        // SAFETY: the caller has the tier's instructions; 16 numbers may be written, and are then read back.
        unsafe {
            S::store_bf16(to, x);
            S::load_bf16(to.cast())
        }
    }
}

impl Number for f32 {
    type Pair<S: Simd> = [S::F; 2];

    #[inline(always)]
    unsafe fn load<S: Simd>(from: *const f32) -> [S::F; 2] {
        // SAFETY: the caller has the tier's instructions; a group is 16 first numbers and 16 second ones.
        unsafe { [S::load(from), S::load(from.add(LANES))] }
    }
    #[inline(always)]
    unsafe fn splat<S: Simd>(from: *const f32) -> [S::F; 2] {
        // SAFETY: the caller has the tier's instructions, and there are two numbers.
        unsafe { [S::splat(*from), S::splat(*from.add(1))] }
    }
    #[inline(always)]
    unsafe fn splat_lane<S: Simd>(from: *const f32) -> [S::F; 2] {
        // SAFETY: as `splat`: the second number of a lane lies 16 behind the first.
        unsafe { [S::splat(*from), S::splat(*from.add(LANES))] }
    }
    #[inline(always)]
    unsafe fn dot<S: Simd>(acc: S::F, a: [S::F; 2], b: [S::F; 2]) -> S::F {
        // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
        unsafe { S::fma(a[0], b[0], S::fma(a[1], b[1], acc)) }
    }
    #[inline(always)]
    unsafe fn keep<S: Simd>(x: [S::F; 2], first: bool, second: bool) -> [S::F; 2] {
        // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
        unsafe { [if first { x[0] } else { S::zero() }, if second { x[1] } else { S::zero() }] }
    }
    #[inline(always)]
    unsafe fn exp<S: Simd>(x: S::F) -> S::F {
        // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
        unsafe { math::exp::<S>(x) }
    }
    #[inline(always)]
    unsafe fn store<S: Simd>(to: *mut f32, x: S::F) -> S::F {
        // SAFETY: the caller has the tier's instructions, and 16 numbers may be written.
        unsafe { S::store(to, x) };
        x
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::{Isa, tiered};
    use crate::kernels::simd::scalar::Scalar;

    tiered! {
        fn dots(pairs: &[[[u32; LANES]; 2]], out: &mut Vec<u32>) = dots_body;
    }

    /// Sums dot products of pairs into 16 lanes, and tells every sum on the way.
    unsafe fn dots_body<S: Simd>(pairs: &[[[u32; LANES]; 2]], out: &mut Vec<u32>) {
        // SAFETY: the caller has the tier's instructions; every array is 64 bytes.
        unsafe {
            let mut acc = S::zero();
            for [a, b] in pairs {
                acc = <u16 as Number>::dot::<S>(
                    acc,
                    u16::load::<S>(a.as_ptr().cast()),
                    u16::load::<S>(b.as_ptr().cast()),
                );
                let mut lanes = [0.0f32; LANES];
                S::store(lanes.as_mut_ptr(), acc);
                out.extend(lanes.map(f32::to_bits));
            }
        }
    }

    /// A bfloat16 with an exponent of up to `range` powers of two from 1.
    fn bf16(random: &mut u64, range: u32) -> u32 {
        *random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let bits = (*random >> 33) as u32;
        let exponent = 127 - range + bits % (2 * range + 1);
        (bits >> 8 & 0x807f) | exponent << 7
    }

    /// The instruction of AVX512-BF16 and its stand-ins: every step of the sum has the same bits.
    #[test]
    fn all_tiers_sum_products_of_bfloat16_alike() {
        let random = &mut 7;
        for range in [0, 1, 4, 12, 40] {
            let mut pair =
                || [(); 2].map(|()| [(); LANES].map(|()| bf16(random, range) | bf16(random, range) << 16));
            let pairs: Vec<_> = (0..2000).map(|_| pair()).collect();
            let sums = |isa: Isa| {
                let mut out = Vec::new();
                dots(isa, &pairs, &mut out);
                out
            };
            let tiers = Isa::available();
            let wanted = sums(tiers[tiers.len() - 1]);
            for isa in tiers {
                let found = sums(isa);
                let differ = found.iter().zip(&wanted).filter(|(a, b)| a != b).count();
                assert_eq!(differ, 0, "{} differs for exponents up to {range}", isa.name());
            }
        }
    }

    #[test]
    fn the_short_exponential_is_as_exact_as_it_says() {
        // SAFETY: the scalar tier needs nothing.
        let exp = |x: f32| unsafe { <u16 as Number>::exp::<Scalar>([x; LANES])[5] };
        let error = |x: f32| (f64::from(exp(x)) / f64::from(x).exp() - 1.0).abs();
        let worst = (0..86_000).map(|i| error(i as f32 * -1e-3)).fold(0.0, f64::max);
        assert!(worst <= 6e-5, "{worst:.1e}");
        assert_eq!((exp(0.0), exp(-88.0), exp(-1e30), exp(f32::NEG_INFINITY)), (1.0, 0.0, 0.0, 0.0));
        assert!(exp(f32::NAN).is_nan());
    }
}
