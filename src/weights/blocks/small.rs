//! Blocks of 32 weights: a scale (and a minimum), then 4, 5 or 8 bits a weight. And two of 64 and 128.
//!
//! Where two weights share a byte, the low nibbles are weights 0 to 15 and the high nibbles 16 to 31. The
//! fifth bit of Q5 formats is bit `i` of one u32 for weight `i`.

use super::{bits, f16_to_f32, part};

/// The sixteen levels of IQ4_NL and IQ4_XS, closer together near zero.
pub const IQ4_LEVELS: [i8; 16] = [-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113];

/// The sixteen values of a 4-bit float (E2M1: sign, two bits of exponent, one of mantissa), doubled, so that
/// they are whole numbers. Its -0 is 0.
pub const MXFP4_LEVELS: [i8; 16] = [0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12];

/// Half of the power of two that a byte means (E8M0: the exponent of an f32 and nothing else): `2^(e - 128)`.
/// The OCP specification of microscaling formats calls 255 NaN; ggml reads it as an ordinary exponent.
#[inline(always)]
pub fn half_of_e8m0(e: u8) -> f32 {
    // The two smallest are subnormal.
    f32::from_bits(if e < 2 { 0x0020_0000 << e } else { (u32::from(e) - 1) << 23 })
}

/// The sixteen levels of NF4, in f32: quantiles of the normal distribution (QLoRA, Dettmers et al. 2023,
/// appendix E), as bitsandbytes writes them beside its weights.
pub const NF4_LEVELS: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// Those of bitsandbytes' FP4, which is not E2M1.
pub const BNB_FP4_LEVELS: [f32; 16] = [
    0.0,
    0.005_208_333_3,
    0.666_666_7,
    1.0,
    0.333_333_34,
    0.5,
    0.166_666_67,
    0.25,
    -0.0,
    -0.005_208_333_3,
    -0.666_666_7,
    -1.0,
    -0.333_333_34,
    -0.5,
    -0.166_666_67,
    -0.25,
];

/// An E4M3 byte as an f16 that is smaller by 2^8: the exponents have biases that are 8 apart. NaN would be
/// read as 480; no file with one is.
#[inline(always)]
pub const fn e4m3_as_half(byte: u8) -> u16 {
    (byte as u16 & 0x80) << 8 | (byte as u16 & 0x7f) << 7
}

/// The number of an E4M3 byte; as in [`e4m3_as_half`], NaN would be 480.
#[inline(always)]
pub fn e4m3(byte: u8) -> f32 {
    256.0 * f16_to_f32(e4m3_as_half(byte).to_le_bytes())
}

/// Splits sixteen bytes into 32 nibbles, the low ones first.
#[inline(always)]
fn nibbles(bytes: &[u8; 16]) -> [u8; 32] {
    let mut nibbles = [0; 32];
    nibbles[..16].copy_from_slice(&bits(bytes, 0, 0x0f));
    nibbles[16..].copy_from_slice(&bits(bytes, 4, 0x0f));
    nibbles
}

/// Adds bit `i` of `fifth` to weight `i` as its fifth bit. Eight weights at once in a u64, as in [`bits`].
#[inline(always)]
fn with_fifth_bit(mut quants: [u8; 32], fifth: &[u8; 4]) -> [u8; 32] {
    /// Byte `i` keeps bit `i`.
    const ONE_EACH: u64 = 0x8040_2010_0804_0201;
    for (quants, byte) in quants.as_chunks_mut::<8>().0.iter_mut().zip(fifth) {
        let bits = u64::from_le_bytes([*byte; 8]) & ONE_EACH;
        // Adding 127 carries any bit of a byte into its highest, which then moves to where 16 is.
        let bits = (bits + u64::from_le_bytes([0x7f; 8])) >> 3 & u64::from_le_bytes([0x10; 8]);
        *quants = (u64::from_le_bytes(*quants) | bits).to_le_bytes();
    }
    quants
}

/// Weights `scale * (q - zero)`.
#[inline(always)]
fn centered(scale: f32, quants: [u8; 32], zero: i32, out: &mut [f32; 32]) {
    for (out, quant) in out.iter_mut().zip(&quants) {
        *out = scale * (i32::from(*quant) - zero) as f32;
    }
}

/// Weights `scale * q + min`.
#[inline(always)]
fn affine(scale: f32, min: f32, quants: [u8; 32], out: &mut [f32; 32]) {
    for (out, quant) in out.iter_mut().zip(&quants) {
        *out = scale * f32::from(*quant) + min;
    }
}

/// `f16 d, nibbles[16]`: d (q - 8).
#[inline(always)]
pub fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    centered(f16_to_f32(*part(block, 0)), nibbles(part(block, 2)), 8, out);
}

/// `f16 d, f16 m, nibbles[16]`: d q + m.
#[inline(always)]
pub fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    affine(f16_to_f32(*part(block, 0)), f16_to_f32(*part(block, 2)), nibbles(part(block, 4)), out);
}

/// `f16 d, u32 fifth bits, nibbles[16]`: d (q - 16).
#[inline(always)]
pub fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let quants = with_fifth_bit(nibbles(part(block, 6)), part(block, 2));
    centered(f16_to_f32(*part(block, 0)), quants, 16, out);
}

/// `f16 d, f16 m, u32 fifth bits, nibbles[16]`: d q + m.
#[inline(always)]
pub fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let quants = with_fifth_bit(nibbles(part(block, 8)), part(block, 4));
    affine(f16_to_f32(*part(block, 0)), f16_to_f32(*part(block, 2)), quants, out);
}

/// `f16 d, i8[32]`: d q.
#[inline(always)]
pub fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let scale = f16_to_f32(*part(block, 0));
    for (out, quant) in out.iter_mut().zip(part::<32>(block, 2)) {
        *out = scale * f32::from(*quant as i8);
    }
}

/// `f16 d, nibbles[16]`: d level(q).
#[inline(always)]
pub fn iq4_nl(block: &[u8; 18], out: &mut [f32; 32]) {
    levels(&IQ4_LEVELS, f16_to_f32(*part(block, 0)), part(block, 2), out);
}

/// `E8M0 scale, nibbles[16]`: (scale / 2) level(q), OCP Microscaling Formats (MX) v1.0 in ggml's order.
#[inline(always)]
pub fn mxfp4(block: &[u8; 17], out: &mut [f32; 32]) {
    levels(&MXFP4_LEVELS, half_of_e8m0(block[0]), part(block, 1), out);
}

/// `f16 d, f16 m, bytes[32]`: d q + m.
#[inline(always)]
pub fn q8_min(block: &[u8; 36], out: &mut [f32; 32]) {
    affine(f16_to_f32(*part(block, 0)), f16_to_f32(*part(block, 2)), *part(block, 4), out);
}

/// `f16 d, u8 z, nibbles[16]`: d (q - z).
#[inline(always)]
pub fn q4_zero(block: &[u8; 19], out: &mut [f32; 32]) {
    centered(f16_to_f32(*part(block, 0)), nibbles(part(block, 3)), i32::from(block[2]), out);
}

/// `f32 d, i8 quants[32]`: d q.
#[inline(always)]
pub fn q8_wide(block: &[u8; 36], out: &mut [f32; 32]) {
    let scale = f32::from_le_bytes(*part(block, 0));
    for (out, quant) in out.iter_mut().zip(part::<32>(block, 4)) {
        *out = scale * f32::from(*quant as i8);
    }
}

/// `f32 d[2], nibbles[16]`: E2M1, doubled, times d of the first 16 weights or of the others.
#[inline(always)]
pub fn fp4_wide(block: &[u8; 24], out: &mut [f32; 32]) {
    levels(&MXFP4_LEVELS, 1.0, part(block, 8), out);
    let (first, second) = out.split_at_mut(16);
    for (half, at) in [(first, 0), (second, 4)] {
        let scale = f32::from_le_bytes(*part(block, at));
        half.iter_mut().for_each(|weight| *weight *= scale);
    }
}

/// `f32 d, E4M3 quants[32]`: d q.
#[inline(always)]
pub fn fp8(block: &[u8; 36], out: &mut [f32; 32]) {
    let scale = f32::from_le_bytes(*part(block, 0));
    for (out, quant) in out.iter_mut().zip(part::<32>(block, 4)) {
        *out = scale * e4m3(*quant);
    }
}

/// `f32 d, nibbles[16]`: d level(q).
#[inline(always)]
pub fn nf4(block: &[u8; 20], out: &mut [f32; 32]) {
    float_levels(&NF4_LEVELS, block, out);
}

/// `f32 d, nibbles[16]`: d level(q).
#[inline(always)]
pub fn bnb_fp4(block: &[u8; 20], out: &mut [f32; 32]) {
    float_levels(&BNB_FP4_LEVELS, block, out);
}

#[inline(always)]
fn float_levels(table: &[f32; 16], block: &[u8; 20], out: &mut [f32; 32]) {
    let scale = f32::from_le_bytes(*part(block, 0));
    for (out, quant) in out.iter_mut().zip(nibbles(part(block, 4))) {
        *out = scale * table[usize::from(quant & 15)];
    }
}

/// Half of the number that a byte means as NVFP4's scale, an E4M3 without a sign. (Its 127 is NaN, see
/// [`nvfp4_scale`].)
#[inline(always)]
pub fn half_of_e4m3(byte: u8) -> f32 {
    e4m3(byte) / 2.0
}

/// A scale of NVFP4 for [`half_of_e4m3`]: as ggml reads it, its sign is ignored and 127 is zero.
#[inline(always)]
pub fn nvfp4_scale(byte: u8) -> u8 {
    if byte == 0x7f { 0 } else { byte & 0x7f }
}

/// `E4M3 scales[4], nibbles[32]`: (scale / 2) level(q). Sixteen weights have a scale and eight bytes, the low
/// nibbles first.
#[inline(always)]
pub fn nvfp4(block: &[u8; 36], out: &mut [f32; 64]) {
    for (s, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let scale = half_of_e4m3(nvfp4_scale(block[s]));
        for (i, byte) in part::<8>(block, 4 + 8 * s).iter().enumerate() {
            out[i] = scale * f32::from(MXFP4_LEVELS[usize::from(byte & 0x0f)]);
            out[8 + i] = scale * f32::from(MXFP4_LEVELS[usize::from(byte >> 4)]);
        }
    }
}

/// `f16 d, bits[16]`: d where a weight's bit is set, else -d; the first weight is the lowest bit. (The `gguf`
/// package knows no more of it than its size; this is `block_q1_0` of llama.cpp's `ggml-common.h`.)
#[inline(always)]
pub fn q1_0(block: &[u8; 18], out: &mut [f32; 128]) {
    let d = f16_to_f32(*part(block, 0));
    for (out, byte) in out.as_chunks_mut::<8>().0.iter_mut().zip(part::<16>(block, 2)) {
        for (i, out) in out.iter_mut().enumerate() {
            *out = d * (2 * i32::from(byte >> i & 1) - 1) as f32;
        }
    }
}

/// Weights `scale * table[q]`.
#[inline(always)]
pub(super) fn levels(table: &[i8; 16], scale: f32, bytes: &[u8; 16], out: &mut [f32; 32]) {
    let (low, high) = out.split_at_mut(16);
    // The masks repeat what a nibble is, so that the look-up needs no check.
    for (out, byte) in low.iter_mut().zip(bytes) {
        *out = scale * f32::from(table[usize::from(byte & 0x0f)]);
    }
    for (out, byte) in high.iter_mut().zip(bytes) {
        *out = scale * f32::from(table[usize::from(byte >> 4)]);
    }
}
