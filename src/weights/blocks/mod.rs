//! What the bytes of a block mean: dequantization, one function a format.
//!
//! These are plain scalar loops: the oracle that the packed forms of the CPU kernels are tested against, what
//! reads norms and biases, and what quantization at load begins with. Products never call them.
//!
//! Arithmetic is f32, without fused multiply-add, in the order of `gguf-py/gguf/quants.py` of llama.cpp; the
//! golden tests hold them to be equal bit for bit. The layouts are those of `ggml/src/ggml-common.h`.
//!
//! [`dequantize_row`] picks the format once a row. [`small`] has the blocks of 32 to 128 weights, [`large`]
//! and [`grid`] the superblocks of 256.

pub mod grid;
pub mod large;
pub mod small;

use super::dtype::WeightType;

/// Applies a format's function to each block.
///
/// A macro, since the blocks of each format have another size, known when it is compiled.
macro_rules! each_block {
    ($src:expr, $dst:expr, $block:path) => {
        for (src, dst) in $src.as_chunks().0.iter().zip($dst.as_chunks_mut().0) {
            $block(src, dst);
        }
    };
}

/// Turns the bytes of whole blocks into weights.
///
/// `dst.len()` is a multiple of [`WeightType::block_len`], and `src` holds exactly that many blocks
/// ([`WeightType::row_bytes`] of `dst.len()`); it may as well be several rows that lie one after another.
/// If they do not fit together, the blocks that both have are written and the rest of `dst` is left alone.
#[inline(always)]
pub fn dequantize_row(ty: WeightType, src: &[u8], dst: &mut [f32]) {
    debug_assert_eq!(ty.row_bytes(dst.len()), Some(src.len()), "{ty}: {} weights", dst.len());
    match ty {
        WeightType::F32 => f32_row(src, dst),
        WeightType::F16 => f16_row(src, dst),
        WeightType::BF16 => bf16_row(src, dst),
        WeightType::Q4_0 => each_block!(src, dst, small::q4_0),
        WeightType::Q4_1 => each_block!(src, dst, small::q4_1),
        WeightType::Q5_0 => each_block!(src, dst, small::q5_0),
        WeightType::Q5_1 => each_block!(src, dst, small::q5_1),
        WeightType::Q8_0 => each_block!(src, dst, small::q8_0),
        WeightType::Iq4Nl => each_block!(src, dst, small::iq4_nl),
        WeightType::Mxfp4 => each_block!(src, dst, small::mxfp4),
        WeightType::Nvfp4 => each_block!(src, dst, small::nvfp4),
        WeightType::Q1_0 => each_block!(src, dst, small::q1_0),
        WeightType::Q8Min => each_block!(src, dst, small::q8_min),
        WeightType::Q4Zero => each_block!(src, dst, small::q4_zero),
        WeightType::Q8Wide => each_block!(src, dst, small::q8_wide),
        WeightType::Fp4Wide => each_block!(src, dst, small::fp4_wide),
        WeightType::Fp8 => each_block!(src, dst, small::fp8),
        WeightType::Nf4 => each_block!(src, dst, small::nf4),
        WeightType::BnbFp4 => each_block!(src, dst, small::bnb_fp4),
        WeightType::Q2K => each_block!(src, dst, large::q2_k),
        WeightType::Q3K => each_block!(src, dst, large::q3_k),
        WeightType::Q4K => each_block!(src, dst, large::q4_k),
        WeightType::Q5K => each_block!(src, dst, large::q5_k),
        WeightType::Q6K => each_block!(src, dst, large::q6_k),
        WeightType::Iq4Xs => each_block!(src, dst, large::iq4_xs),
        WeightType::Q8K => each_block!(src, dst, large::q8_k),
        WeightType::Tq1_0 => each_block!(src, dst, large::tq1_0),
        WeightType::Tq2_0 => each_block!(src, dst, large::tq2_0),
        WeightType::Iq2Xxs => each_block!(src, dst, grid::iq2_xxs),
        WeightType::Iq2Xs => each_block!(src, dst, grid::iq2_xs),
        WeightType::Iq2S => each_block!(src, dst, grid::iq2_s),
        WeightType::Iq3Xxs => each_block!(src, dst, grid::iq3_xxs),
        WeightType::Iq3S => each_block!(src, dst, grid::iq3_s),
        WeightType::Iq1S => each_block!(src, dst, grid::iq1_s),
        WeightType::Iq1M => each_block!(src, dst, grid::iq1_m),
    }
}

/// Little-endian f32, as it is.
#[inline(always)]
pub fn f32_row(src: &[u8], dst: &mut [f32]) {
    for (dst, src) in dst.iter_mut().zip(src.as_chunks().0) {
        *dst = f32::from_le_bytes(*src);
    }
}

/// Little-endian IEEE half floats.
#[inline(always)]
pub fn f16_row(src: &[u8], dst: &mut [f32]) {
    for (dst, src) in dst.iter_mut().zip(src.as_chunks().0) {
        *dst = f16_to_f32(*src);
    }
}

/// Little-endian bfloat16: the upper half of an f32.
#[inline(always)]
pub fn bf16_row(src: &[u8], dst: &mut [f32]) {
    for (dst, src) in dst.iter_mut().zip(src.as_chunks().0) {
        *dst = f32::from_bits(u32::from(u16::from_le_bytes(*src)) << 16);
    }
}

/// An IEEE half float, exactly, in integer arithmetic and selects that become vector code.
///
/// `half` would look up the processor's features for each number. And one shift with one multiplication by
/// 2^112 would do it shorter, but for subnormal halves its operand is a subnormal f32, which costs a hundred
/// cycles and reads as zero under flush-to-zero; the scales of K-quants often are subnormal.
#[inline(always)]
pub fn f16_to_f32(bytes: [u8; 2]) -> f32 {
    const REBIAS: u32 = (127 - 15) << 23;
    let half = u32::from(u16::from_le_bytes(bytes));
    let magnitude = half & 0x7fff;
    let normal = (magnitude << 13) + REBIAS;
    // Infinity and NaN: the exponent 31 goes to 255, not to 143.
    let normal = normal + if magnitude >= 0x7c00 { REBIAS } else { 0 };
    // Subnormal: a count of 2^-24.
    let subnormal = (magnitude as i32 as f32 * f32::from_bits((127 - 24) << 23)).to_bits();
    let bits = if magnitude < 0x0400 { subnormal } else { normal };
    f32::from_bits(bits | (half & 0x8000) << 16)
}

/// Takes from each byte the bits of `mask`, after a shift to the right by `shift`.
///
/// Eight bytes at once in a u64: vectors of bytes cannot be shifted, and loops that tried came out scalar.
/// What a byte's upper neighbour shifts in is masked away as long as the mask has no more than `8 - shift`
/// bits.
#[inline(always)]
fn bits<const N: usize>(bytes: &[u8; N], shift: usize, mask: u8) -> [u8; N] {
    let mask = u64::from_le_bytes([mask; 8]);
    let mut out = [0; N];
    for (out, bytes) in out.as_chunks_mut().0.iter_mut().zip(bytes.as_chunks().0) {
        *out = (u64::from_le_bytes(*bytes) >> shift & mask).to_le_bytes();
    }
    out
}

/// `N` bytes of a block from `at` on. Both are constants where it is called, so the check folds away.
#[inline(always)]
fn part<const N: usize>(block: &[u8], at: usize) -> &[u8; N] {
    match block[at..].first_chunk() {
        Some(part) => part,
        None => unreachable!("a field of {N} bytes at {at} of a block of {}", block.len()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_half_float_is_exact() {
        for bits in 0..=u16::MAX {
            let wanted = half::f16::from_bits(bits);
            let found = f16_to_f32(bits.to_le_bytes());
            if wanted.is_nan() {
                assert!(found.is_nan(), "{bits:#x}");
            } else {
                assert_eq!(found.to_bits(), wanted.to_f32().to_bits(), "{bits:#x}");
            }
        }
    }

    #[test]
    fn a_row_is_its_blocks_and_nothing_else_is_touched() {
        for ty in WeightType::ALL {
            let (len, bytes) = (ty.block_len(), ty.block_bytes());
            let src: Vec<u8> = (0..2 * bytes).map(|i| (i * 37 % 50) as u8).collect();
            let mut row = vec![f32::NAN; 2 * len];
            dequantize_row(ty, &src, &mut row);
            let mut block = vec![f32::NAN; len];
            dequantize_row(ty, &src[bytes..], &mut block);
            let bits = |row: &[f32]| row.iter().map(|value| value.to_bits()).collect::<Vec<_>>();
            assert_eq!(bits(&row[len..]), bits(&block), "{ty}");
            assert!(row.iter().all(|value| value.is_finite()), "{ty}: every weight is written");
        }
    }
}
