//! Keys and values as signed bytes, row by row: the plain way, which the kernels are held to bit for bit.
//!
//! A row is one head of one position. It gets one scale, so that a single large dimension would cost all
//! others their precision; keys have such dimensions, and are therefore rotated first. Queries are rotated
//! in the same way, which leaves their products with the keys as they are (QuaRot, arXiv 2404.00456). Values
//! are stored as they come.

use super::native::Element;
use crate::step::PAGE;

/// Lanes of a vector; heads are filled with zeros to a multiple of it.
const LANES: usize = 16;
/// The largest byte: -128 is not used, so that the sign of a byte can be moved.
pub const LARGEST: f32 = 127.0;
/// What keys are stored above zero: the byte products want one unsigned side.
pub const KEY_OFFSET: u8 = 128;
/// Bytes of the scales of one head in one page, behind its keys and values: a bfloat16 for each key, then
/// one for each value.
pub const SCALE_BYTES: usize = 2 * 2 * PAGE;
/// Rows of less are taken as zero: the reciprocal of their scale would be infinite.
const LEAST: f32 = 1e-30;

/// The row in the basis of Walsh and Hadamard: in blocks of the largest powers of two that its length is made
/// of, each an orthogonal transform of its own.
pub fn rotate(row: &mut [f32]) {
    debug_assert!(row.len().is_multiple_of(LANES));
    let mut rest = row;
    while !rest.is_empty() {
        let (block, behind) = rest.split_at_mut(1 << rest.len().ilog2());
        let mut stride = 1;
        while stride < block.len() {
            for pair in block.chunks_exact_mut(2 * stride) {
                let (low, high) = pair.split_at_mut(stride);
                for (a, b) in low.iter_mut().zip(high) {
                    (*a, *b) = (*a + *b, *a - *b);
                }
            }
            stride *= 2;
        }
        let norm = norm(block.len());
        block.iter_mut().for_each(|x| *x *= norm);
        rest = behind;
    }
}

/// What makes the transform of a block orthogonal.
#[inline(always)]
pub fn norm(block: usize) -> f32 {
    1.0 / (block as f32).sqrt()
}

/// The scale of a row whose largest size is `largest` (NaN where it is not finite), as the bits of a bfloat16
/// that is not below it, and its reciprocal.
#[inline(always)]
pub fn scale(largest: f32) -> (u16, f32) {
    if largest.is_nan() {
        return (u16::from_f32(f32::NAN), 0.0);
    }
    if largest < LEAST {
        return (0, 0.0);
    }
    let bits = ((largest / LARGEST).to_bits() + 0xffff) & 0xffff_0000;
    ((bits >> 16) as u16, 1.0 / f32::from_bits(bits))
}

/// The bytes of a row, and its scale.
pub fn quantize(row: &[f32]) -> (Vec<i8>, u16) {
    let finite = row.iter().all(|x| x.is_finite());
    let largest = row.iter().fold(0.0f32, |largest, x| largest.max(x.abs()));
    let (scale, inverse) = scale(if finite { largest } else { f32::NAN });
    // A NaN becomes the largest byte; the scale says that the row is none.
    let byte = |x: &f32| {
        let x = x * inverse;
        let x = if x < LARGEST { x } else { LARGEST };
        x.max(-LARGEST).round_ties_even() as i8
    };
    (row.iter().map(byte).collect(), scale)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(len: usize) -> Vec<f32> {
        (0..len).map(|at| ((at * 7919 + 13) % 1009) as f32 / 37.0 - 11.0).collect()
    }

    #[test]
    fn a_rotation_leaves_products_as_they_are() {
        for len in [16, 32, 48, 64, 80, 96, 128, 192, 256, 576] {
            let (mut a, mut b) = (row(len), row(2 * len)[len..].to_vec());
            let dot = |a: &[f32], b: &[f32]| {
                a.iter().zip(b).map(|(&a, &b)| f64::from(a) * f64::from(b)).sum::<f64>()
            };
            let (wanted, size) = (dot(&a, &b), dot(&a, &a));
            rotate(&mut a);
            rotate(&mut b);
            assert!((dot(&a, &b) - wanted).abs() < 1e-5 * size, "{len}");
            assert!((dot(&a, &a) - size).abs() < 1e-5 * size, "{len}");
        }
    }

    #[test]
    fn one_large_dimension_is_spread_over_its_block() {
        let mut x = vec![0.0; 80];
        (x[3], x[70]) = (64.0, 8.0);
        rotate(&mut x);
        assert!(x[..64].iter().all(|x| x.abs() == 8.0) && x[64..].iter().all(|x| x.abs() == 2.0));
    }

    #[test]
    fn bytes_are_within_half_a_step() {
        for factor in [1e-20, 1e-3, 1.0, 1e20] {
            let x: Vec<f32> = row(64).iter().map(|x| x * factor).collect();
            let (bytes, scale) = quantize(&x);
            let scale = scale.to_f32();
            for (x, &byte) in x.iter().zip(&bytes) {
                assert!((x - f32::from(byte) * scale).abs() <= 0.501 * scale, "{x} {byte} {scale}");
            }
            assert!(bytes.iter().any(|byte| byte.unsigned_abs() >= 126));
        }
        assert_eq!(quantize(&[0.0; 16]), (vec![0; 16], 0));
        assert_eq!(quantize(&[1e-40; 16]), (vec![0; 16], 0));
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = row(16);
            x[5] = odd;
            assert!(quantize(&x).1.to_f32().is_nan(), "{odd}");
        }
    }
}
