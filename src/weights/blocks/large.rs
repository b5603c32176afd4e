//! Superblocks of 256 weights: groups of 16 or 32 with small integer scales, which an f16 scales once more.
//!
//! Weights that share a byte are 32 (or 64) apart, so that one shift serves a whole group. Group `g` of the
//! functions below is always weights `g * 32` and on, also where a scale serves only 16: loops of 32 are what
//! the compiler vectorizes, shorter ones it unrolls first.

use super::small::{IQ4_LEVELS, levels};
use super::{bits, f16_to_f32, part};

/// The eight groups of a superblock.
#[inline(always)]
fn groups(out: &mut [f32; 256]) -> &mut [[f32; 32]] {
    out.as_chunks_mut().0
}

/// One factor a weight, where the first sixteen of a group have one and the second another.
#[inline(always)]
fn halves(first: f32, second: f32) -> [f32; 32] {
    let mut factors = [first; 32];
    factors[16..].fill(second);
    factors
}

/// `u8 scale and min nibbles[16], u8 quants[64], f16 d, f16 dmin`: (d scale) q - (dmin min).
#[inline(always)]
pub fn q2_k(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_to_f32(*part(block, 80)), f16_to_f32(*part(block, 82)));
    let quants = part::<64>(block, 16);
    let scales = part::<16>(block, 0);
    for (g, out) in groups(out).iter_mut().enumerate() {
        let quants = bits(part::<32>(quants, g / 4 * 32), g % 4 * 2, 3);
        let [first, second] = [scales[g * 2], scales[g * 2 + 1]];
        let scale = halves(d * f32::from(first & 0x0f), d * f32::from(second & 0x0f));
        let min = halves(dmin * f32::from(first >> 4), dmin * f32::from(second >> 4));
        for (((out, quant), scale), min) in out.iter_mut().zip(&quants).zip(&scale).zip(&min) {
            *out = scale * i32::from(*quant) as f32 - min;
        }
    }
}

/// The sixteen 6-bit scales of Q3_K: low nibbles in eight bytes, two high bits each in four more.
#[inline(always)]
pub fn q3_k_scales(packed: &[u8; 12]) -> [i8; 16] {
    std::array::from_fn(|g| {
        let low = packed[g % 8] >> (g / 8 * 4) & 0x0f;
        let high = packed[8 + g % 4] >> (g / 4 * 2) & 3;
        (low | high << 4) as i8 - 32
    })
}

/// `u8 high bits[32], u8 quants[64], u8 scales[12], f16 d`: (d scale) (q - 4), where a *set* high bit adds 4.
#[inline(always)]
pub fn q3_k(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = f16_to_f32(*part(block, 108));
    let (high, quants) = (part::<32>(block, 0), part::<64>(block, 32));
    let scales = q3_k_scales(part(block, 96));
    for (g, out) in groups(out).iter_mut().enumerate() {
        let low = bits(part::<32>(quants, g / 4 * 32), g % 4 * 2, 3);
        let high = bits(high, g, 1);
        let scale = halves(d * f32::from(scales[g * 2]), d * f32::from(scales[g * 2 + 1]));
        for (((out, low), high), scale) in out.iter_mut().zip(&low).zip(&high).zip(&scale) {
            *out = scale * (i32::from(low + 4 * high) - 4) as f32;
        }
    }
}

/// The eight 6-bit scales and the eight 6-bit minima of Q4_K and Q5_K.
///
/// The first four of each are the low six bits of bytes 0 to 3 and 4 to 7; the others have their low nibbles
/// in bytes 8 to 11 (scale low, minimum high) and their two high bits on top of bytes 0 to 7.
#[inline(always)]
pub fn k_scales_mins(packed: &[u8; 12]) -> ([u8; 8], [u8; 8]) {
    let (mut scales, mut mins) = ([0; 8], [0; 8]);
    for j in 0..4 {
        scales[j] = packed[j] & 63;
        mins[j] = packed[j + 4] & 63;
        scales[j + 4] = packed[j + 8] & 0x0f | packed[j] >> 6 << 4;
        mins[j + 4] = packed[j + 8] >> 4 | packed[j + 4] >> 6 << 4;
    }
    (scales, mins)
}

/// `f16 d, f16 dmin, u8 scales[12], nibbles[128]`: (d scale) q - (dmin min).
#[inline(always)]
pub fn q4_k(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_to_f32(*part(block, 0)), f16_to_f32(*part(block, 2)));
    let (scales, mins) = k_scales_mins(part(block, 4));
    for (g, out) in groups(out).iter_mut().enumerate() {
        let (scale, min) = (d * f32::from(scales[g]), dmin * f32::from(mins[g]));
        let shift = g % 2 * 4;
        for (out, byte) in out.iter_mut().zip(part::<32>(block, 16 + g / 2 * 32)) {
            *out = scale * f32::from(byte >> shift & 0x0f) - min;
        }
    }
}

/// `f16 d, f16 dmin, u8 scales[12], u8 fifth bits[32], nibbles[128]`: (d scale) q - (dmin min).
#[inline(always)]
pub fn q5_k(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (f16_to_f32(*part(block, 0)), f16_to_f32(*part(block, 2)));
    let (scales, mins) = k_scales_mins(part(block, 4));
    let fifth = part::<32>(block, 16);
    for (g, out) in groups(out).iter_mut().enumerate() {
        let (scale, min) = (d * f32::from(scales[g]), dmin * f32::from(mins[g]));
        let shift = g % 2 * 4;
        for ((out, byte), fifth) in out.iter_mut().zip(part::<32>(block, 48 + g / 2 * 32)).zip(fifth) {
            let quant = byte >> shift & 0x0f | (fifth >> g & 1) << 4;
            *out = scale * f32::from(quant) - min;
        }
    }
}

/// `nibbles[128], u8 high bits[64], i8 scales[16], f16 d`: (d scale) (q - 32), a scale for 16 weights.
///
/// Each half of 128 weights has 64 bytes of nibbles (weights 64 apart share one) and 32 bytes of two high
/// bits each (weights 32 apart share one).
#[inline(always)]
pub fn q6_k(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = f16_to_f32(*part(block, 208));
    let scales = part::<16>(block, 192);
    for (g, out) in groups(out).iter_mut().enumerate() {
        let low = bits(part::<32>(block, g / 4 * 64 + g % 2 * 32), g % 4 / 2 * 4, 0x0f);
        let high = bits(part::<32>(block, 128 + g / 4 * 32), g % 4 * 2, 3);
        let [first, second] = [scales[g * 2] as i8, scales[g * 2 + 1] as i8];
        let scale = halves(d * f32::from(first), d * f32::from(second));
        for (((out, low), high), scale) in out.iter_mut().zip(&low).zip(&high).zip(&scale) {
            *out = scale * (i32::from(low + 16 * high) - 32) as f32;
        }
    }
}

/// The eight 6-bit scales of IQ4_XS: two high bits each in a u16, low nibbles in four bytes.
#[inline(always)]
pub fn iq4_xs_scales(high: &[u8; 2], low: &[u8; 4]) -> [i8; 8] {
    let high = u16::from_le_bytes(*high);
    std::array::from_fn(|g| {
        let low = low[g / 2] >> (g % 2 * 4) & 0x0f;
        let high = (high >> (2 * g) & 3) as u8;
        (low | high << 4) as i8 - 32
    })
}

/// `f16 d, u16 high scale bits, u8 low scale nibbles[4], nibbles[128]`: (d scale) level(q).
#[inline(always)]
pub fn iq4_xs(block: &[u8; 136], out: &mut [f32; 256]) {
    let d = f16_to_f32(*part(block, 0));
    let scales = iq4_xs_scales(part(block, 2), part(block, 4));
    for (g, out) in groups(out).iter_mut().enumerate() {
        levels(&IQ4_LEVELS, d * f32::from(scales[g]), part(block, 8 + g * 16), out);
    }
}

/// `f32 d, i8[256]`, and sums that only products of ggml's need: d q.
#[inline(always)]
pub fn q8_k(block: &[u8; 292], out: &mut [f32; 256]) {
    let d = f32::from_le_bytes(*part(block, 0));
    for (out, quant) in out.iter_mut().zip(part::<256>(block, 4)) {
        *out = d * f32::from(*quant as i8);
    }
}

/// Ternary digit `n` of a byte that holds five (or four): 0, 1 or 2. The byte is the digits' number in base
/// 3, the first digit foremost, as a fraction of 243 in 256ths, so that a product with 3 carries a digit out.
#[inline(always)]
pub fn ternary_digit(byte: u8, n: usize) -> u8 {
    const POWERS: [u8; 5] = [1, 3, 9, 27, 81];
    ((u16::from(byte.wrapping_mul(POWERS[n])) * 3) >> 8) as u8
}

/// The byte and the digit of weight `at` of TQ1_0: 32 bytes and 16 bytes of five digits, 4 of four.
#[inline(always)]
pub fn tq1_0_place(at: usize) -> (usize, usize) {
    match at {
        0..160 => (at % 32, at / 32),
        160..240 => (32 + at % 16, (at - 160) / 16),
        _ => (48 + at % 4, (at - 240) / 4),
    }
}

/// `u8 digits[52], f16 d`: d (q - 1).
#[inline(always)]
pub fn tq1_0(block: &[u8; 54], out: &mut [f32; 256]) {
    let d = f16_to_f32(*part(block, 52));
    for (at, out) in out.iter_mut().enumerate() {
        let (byte, digit) = tq1_0_place(at);
        *out = d * (i32::from(ternary_digit(block[byte], digit)) - 1) as f32;
    }
}

/// `u8 quants[64], f16 d`: d (q - 1), two bits each.
#[inline(always)]
pub fn tq2_0(block: &[u8; 66], out: &mut [f32; 256]) {
    let d = f16_to_f32(*part(block, 64));
    for (g, out) in groups(out).iter_mut().enumerate() {
        let quants = bits(part::<32>(block, g / 4 * 32), g % 4 * 2, 3);
        for (out, quant) in out.iter_mut().zip(quants) {
            *out = d * (i32::from(quant) - 1) as f32;
        }
    }
}
