//! Packed weights unpacked in registers: the codes of a group, the scales and offsets of sixteen rows.

use super::layouts::grid::Grid;
use super::layouts::{Layout, Scales};
use super::simd::{LANES, Simd};
use crate::weights::blocks::grid::IQ1_DOWN;

/// Group `g` of a sub-block, unpacked. (No closures here: they would be compiled apart, without the tier's
/// instructions.)
///
/// # Safety
/// As [`Simd`]; the sub-block is readable.
#[inline(always)]
pub(super) unsafe fn unpack<S: Simd, Q: Layout>(sub: *const u8, g: usize) -> S::I {
    // SAFETY: the caller has the tier's instructions; the planes of a sub-block lie where `layouts::put`
    // writes them.
    unsafe {
        let codes = sub.add(Q::SCALE_BYTES);
        if let Some(grid) = const { &Q::GRID } {
            return looked_up::<S>(grid, sub, codes, g);
        }
        match Q::BITS {
            1 => moved::<S>(codes, g, 1, 1),
            2 => pairs::<S>(codes, g),
            3 => S::or(pairs::<S>(codes, g), moved::<S>(codes.add(128), g, 2, 1)),
            4 => match Q::LEVELS {
                Some(levels) => S::lookup16(levels.as_ptr(), low::<S>(codes, g)),
                None => low::<S>(codes, g),
            },
            5 => S::or(low::<S>(codes, g), moved::<S>(codes.add(256), g, 4, 1)),
            6 => S::or(low::<S>(codes, g), moved::<S>(codes.add(256 + 64 * (g / 4)), 2 * (g % 4), 4, 3)),
            _ => S::load_i(codes.add(64 * g)),
        }
    }
}

/// As [`layouts::grid`](super::layouts::grid) has it.
#[inline(always)]
unsafe fn looked_up<S: Simd>(grid: &Grid, sub: *const u8, codes: *const u8, g: usize) -> S::I {
    // SAFETY: the caller has the tier's instructions; indices, high bits and signs are there, and a place is
    // held within the points, whose number is a power of two.
    unsafe {
        let at = g / grid.fours;
        let words = S::load_i(codes.add(64 * (at / 4)));
        let mut index = S::and(S::shr_32(words, 8 * (at as i32 % 4)), S::splat_i(0xff));
        let mut high = S::zero_i();
        if grid.high > 0 {
            let bytes = S::round(S::load_u8(sub.add(LANES * (1 + at * grid.high / 8))));
            high = S::shr_32(bytes, (at * grid.high % 8) as i32);
            index = S::or(index, S::shl_32(S::and(high, S::splat_i((1 << grid.high.min(3)) - 1)), 8));
        }
        let place = S::and(index, S::splat_i((grid.points.len() / grid.fours) as i32 - 1));
        let place = S::shl_32(place, grid.fours as i32 - 1);
        let points = S::gather(grid.points.as_ptr().cast::<u8>().add(4 * (g % grid.fours)), place);
        if grid.signs {
            // 128 and the magnitude, less twice the magnitude where there is a sign.
            let signs = S::shr_32(S::load_i(codes.add(64 * grid.index_words())), g as i32);
            let minus = S::sub_bytes(S::zero_i(), S::and(signs, S::splat_i(0x0101_0101)));
            let code = S::or(points, S::splat_i(i32::from_ne_bytes([128; 4])));
            return S::sub_bytes(code, S::and(minus, S::shl_32(points, 1)));
        }
        // Its bit, 8, into all four bytes, as 2.
        const { assert!(IQ1_DOWN == 2) };
        let down = S::shr_32(S::and(high, S::splat_i(8)), 2);
        let down = S::or(down, S::shl_32(down, 8));
        S::sub_bytes(points, S::or(down, S::shl_32(down, 16)))
    }
}

#[inline(always)]
unsafe fn low<S: Simd>(codes: *const u8, g: usize) -> S::I {
    // SAFETY: the caller has the tier's instructions; four vectors of nibbles are there.
    unsafe {
        let both = S::load_i(codes.add(64 * (g % 4)));
        S::and(if g < 4 { both } else { S::shr(both, 4) }, S::splat_i(0x0f0f_0f0f))
    }
}

#[inline(always)]
unsafe fn pairs<S: Simd>(codes: *const u8, g: usize) -> S::I {
    // SAFETY: the caller has the tier's instructions; two vectors of bit pairs are there.
    unsafe {
        let all = S::load_i(codes.add(64 * (g / 4)));
        S::and(S::shr(all, 2 * (g as i32 % 4)), S::splat_i(0x0303_0303))
    }
}

/// The bits `bits` of each byte of a plane that begin at bit `from` go to bit `to`.
#[inline(always)]
unsafe fn moved<S: Simd>(plane: *const u8, from: usize, to: usize, bits: u8) -> S::I {
    // SAFETY: the caller has the tier's instructions; a plane of single bits or pairs is a vector.
    unsafe {
        let plane = S::load_i(plane);
        let moved = match from <= to {
            true => S::shl(plane, (to - from) as i32),
            false => S::shr(plane, (from - to) as i32),
        };
        S::and(moved, S::splat_i(i32::from_le_bytes([bits << to; 4])))
    }
}

/// What the head of a unit says, for sixteen rows: `d` (times the factor of a grid), and the minimum,
/// `-dmin`, what the zero point is times `-d`, or the second `d`.
///
/// # Safety
/// As [`Simd`]; the head is readable.
#[inline(always)]
pub(super) unsafe fn load_head<S: Simd, Q: Layout>(unit: *const u8) -> (S::F, S::F) {
    // SAFETY: the caller has the tier's instructions; a head is 16 half floats (or bytes, or floats), and 16
    // more of what the format has besides.
    unsafe {
        match Q::SCALES {
            Scales::Power => return (half_of_e8m0::<S>(S::load_u8(unit)), S::zero()),
            Scales::Float => return (S::load(unit.cast()), S::zero()),
            Scales::Float16 => return (S::load(unit.cast()), S::load(unit.add(4 * LANES).cast())),
            Scales::Small16 => return (S::zero(), S::zero()),
            _ => {}
        }
        let d = S::load_f16(unit);
        match Q::SCALES {
            Scales::DZero => (d, S::mul(S::mul(d, S::load_u8(unit.add(32))), S::splat(-1.0))),
            Scales::Odd(factor) | Scales::Odd16(factor) => (S::mul(d, S::splat(factor)), S::zero()),
            Scales::DMin => (d, S::load_f16(unit.add(32))),
            Scales::ByteMin | Scales::NibbleMin16 => (d, S::mul(S::load_f16(unit.add(32)), S::splat(-1.0))),
            _ => (d, S::zero()),
        }
    }
}

/// `2^(e - 128)` for bytes `e`: as [`blocks::small::half_of_e8m0`](crate::weights::blocks::small), but that
/// the least, 2^-128, counts as zero, and the greatest, which should be NaN, as infinity.
#[inline(always)]
unsafe fn half_of_e8m0<S: Simd>(e: S::F) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe { S::mul(S::exp2(S::add_i(S::round(e), S::splat_i(-127))), S::splat(0.5)) }
}

/// [`half_of_e4m3`](crate::weights::blocks::small::half_of_e4m3) of bytes.
#[inline(always)]
unsafe fn half_of_e4m3<S: Simd>(bytes: S::F) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe {
        // 8 e + m: rounding (8 e + m) / 8 - 7/16 gives e for each m below 8.
        let exponent = S::round(S::fma(bytes, S::splat(1.0 / 8.0), S::splat(-7.0 / 16.0)));
        let mantissa = S::fma(S::to_f(exponent), S::splat(-8.0), bytes);
        let leading = S::mul(S::min(S::to_f(exponent), S::splat(1.0)), S::splat(8.0));
        let power = S::exp2(S::add_i(S::max_i(exponent, S::splat_i(1)), S::splat_i(-11)));
        S::mul(S::add(mantissa, leading), power)
    }
}

/// Scale and offset of half `half` (0 where scales serve all 32) of a sub-block.
///
/// # Safety
/// As [`Simd`]; the sub-block is readable.
#[inline(always)]
pub(super) unsafe fn load_scales<S: Simd, Q: Layout>(
    (d, min): (S::F, S::F),
    sub: *const u8,
    half: usize,
) -> (S::F, S::F) {
    // SAFETY: the caller has the tier's instructions; scales are 16 bytes, or 32 where there are halves (but
    // of grids) or minima.
    unsafe {
        match Q::SCALES {
            Scales::D | Scales::Float | Scales::Power => (d, S::mul(d, S::splat(-f32::from(Q::ZERO)))),
            Scales::Small16 => {
                let scale = half_of_e4m3::<S>(S::load_u8(sub.add(LANES * half)));
                (scale, S::mul(scale, S::splat(-f32::from(Q::ZERO))))
            }
            Scales::Odd(_) | Scales::Odd16(_) => {
                let nibbles = S::shr_32(S::round(S::load_u8(sub)), 4 * half as i32);
                let nibble = S::to_f(S::and(nibbles, S::splat_i(15)));
                let scale = S::mul(d, S::fma(nibble, S::splat(2.0), S::splat(1.0)));
                (scale, S::mul(scale, S::splat(-f32::from(Q::ZERO))))
            }
            Scales::Float16 => {
                let scale = if half == 0 { d } else { min };
                (scale, S::mul(scale, S::splat(-f32::from(Q::ZERO))))
            }
            Scales::DMin | Scales::DZero => (d, min),
            Scales::Byte | Scales::Byte16 => {
                let scale = S::mul(d, S::load_i8(sub.add(LANES * half)));
                (scale, S::mul(scale, S::splat(-f32::from(Q::ZERO))))
            }
            Scales::ByteMin => (S::mul(d, S::load_u8(sub)), S::mul(min, S::load_u8(sub.add(LANES)))),
            Scales::NibbleMin16 => {
                let both = S::load_u8(sub.add(LANES * half));
                // 16 h + l: rounding (16 h + l) / 16 - 15/32 gives h for each l below 16.
                let high = S::to_f(S::round(S::fma(both, S::splat(1.0 / 16.0), S::splat(-15.0 / 32.0))));
                let low = S::fma(high, S::splat(-16.0), both);
                (S::mul(d, low), S::mul(min, high))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::isa::{Isa, tiered};
    use crate::kernels::layouts::{SUB, get, row_of_sub, with_layout};
    use crate::weights::WeightType;
    use crate::weights::blocks::small::nvfp4_scale;

    /// Bytes without a pattern.
    fn noise(len: usize, seed: u32) -> Vec<u8> {
        let mut state = seed.wrapping_mul(2_654_435_761) | 1;
        let next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            (state >> 11) as u8
        };
        std::iter::repeat_with(next).take(len).collect()
    }

    /// A unit of any codes and small scales, and small heads.
    fn unit<Q: Layout>() -> Vec<u8> {
        let mut unit = noise(Q::UNIT, 1 + Q::BITS as u32);
        if Q::SCALES == Scales::Power {
            // From 2^-127 to numbers that are still finite.
            (0..LANES).for_each(|r| unit[r] = (1 + 16 * r) as u8);
            return unit;
        }
        if Q::SCALES == Scales::Small16 {
            // Scales as they are packed: without signs, and no NaN.
            for sub in unit.chunks_exact_mut(Q::SUB_BYTES) {
                sub[..Q::SCALE_BYTES].iter_mut().for_each(|scale| *scale = nvfp4_scale(*scale));
            }
            return unit;
        }
        if matches!(Q::SCALES, Scales::Float | Scales::Float16) {
            for (r, float) in unit[..Q::HEAD].chunks_exact_mut(4).enumerate() {
                float.copy_from_slice(&((r as f32 - 11.3) / 64.0).to_le_bytes());
            }
            return unit;
        }
        for (r, half) in unit[..Q::HEAD].chunks_exact_mut(2).enumerate() {
            let number = half::f16::from_f32((r as f32 - 11.3) / 64.0);
            half.copy_from_slice(&number.to_le_bytes());
        }
        unit
    }

    tiered! {
        /// The weights of a sub-block as products see them, `[32, 16]`: codes out of byte products, scales,
        /// offsets.
        fn seen<Q: Layout>(
            unit: &[u8],
            sub: usize,
            codes: &mut [[f32; LANES]; SUB],
            weights: &mut [[f32; LANES]; SUB],
        ) = seen_body;
    }

    /// # Safety
    /// The tier's instructions.
    #[inline(always)]
    unsafe fn seen_body<S: Simd, Q: Layout>(
        unit: &[u8],
        sub: usize,
        codes: &mut [[f32; LANES]; SUB],
        weights: &mut [[f32; LANES]; SUB],
    ) {
        assert_eq!(unit.len(), Q::UNIT);
        // SAFETY: the caller's promise, and a whole unit.
        unsafe {
            let head = load_head::<S, Q>(unit.as_ptr());
            let sub = unit.as_ptr().add(Q::HEAD + sub * Q::SUB_BYTES);
            for at in 0..SUB {
                let w = unpack::<S, Q>(sub, at / 4);
                // One of the four bytes times 1.
                let one = S::splat_i(1 << (8 * (at % 4)));
                let (dot, less) = match Q::WIDE {
                    true => (S::dot_wide(S::zero_i(), w, one), S::WIDE_IS_SIGNED),
                    false => (S::dot(S::zero_i(), w, one), false),
                };
                let code = S::add(S::to_f(dot), S::splat(if less { 128.0 } else { 0.0 }));
                let half = if Q::HALVES { at / 16 } else { 0 };
                let (scale, offset) = load_scales::<S, Q>(head, sub, half);
                S::store(codes[at].as_mut_ptr(), code);
                S::store(weights[at].as_mut_ptr(), S::fma(scale, code, offset));
            }
        }
    }

    #[test]
    fn every_tier_unpacks_the_weights_that_embeddings_read() {
        fn check<Q: Layout>(isa: Isa) {
            let unit = unit::<Q>();
            for sub in 0..Q::SUBS {
                let (mut codes, mut weights) = ([[0.0; LANES]; SUB], [[0.0; LANES]; SUB]);
                seen::<Q>(isa, &unit, sub, &mut codes, &mut weights);
                let packed = &unit[Q::HEAD + sub * Q::SUB_BYTES..][..Q::SUB_BYTES];
                for r in 0..LANES {
                    let mut row = [0.0; SUB];
                    row_of_sub::<Q>(&unit, sub, r, &mut row);
                    let greatest = row.iter().fold(0.0f32, |a, b| a.max(b.abs()));
                    for (at, row) in row.iter().enumerate() {
                        let code = get::<Q>(packed, r, at / 4).to_le_bytes()[at % 4];
                        let code = Q::LEVELS.map_or(code, |levels| levels[usize::from(code)]);
                        let place = || format!("{} on {}: weight {at} of row {r}", Q::TYPE, isa.name());
                        assert_eq!(codes[at][r], f32::from(code), "{}", place());
                        let off = (weights[at][r] - row).abs();
                        assert!(off <= 2e-6 * greatest, "{}: {} instead of {row}", place(), weights[at][r]);
                    }
                }
            }
        }
        let quantized = || WeightType::ALL.into_iter().filter(|ty| ty.has_integer_codes());
        for isa in Isa::available() {
            quantized().for_each(|ty| with_layout!(ty, Q => check::<Q>(isa), else unreachable!()));
        }
    }
}
