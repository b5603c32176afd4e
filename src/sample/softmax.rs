//! Exponentials and sums over a vocabulary, in one order on every machine.
//!
//! Sampling a token of 262 144 evaluates as many exponentials. The C library's takes over a millisecond for
//! them and differs between systems in the last bit. [`exp`] here is a polynomial without branches, so the
//! compiler turns the loop into vector code, and it uses only additions and multiplications that IEEE 754
//! pins down: the same bits on x86 and ARM. Sums are in f64 over [`LANES`] interleaved partial sums, an
//! order that depends on nothing but the length.

/// Partial sums of one reduction.
pub const LANES: usize = 8;

/// Below this, [`exp`] is zero (the true value is under the smallest normal f32).
const UNDERFLOW: f32 = -87.0;

/// e^x for `x <= 0` (and `-inf`), within 2 units in the last place.
///
/// x = n ln 2 + r with |r| <= ln 2 / 2; a polynomial gives e^r, and n goes into the exponent's bits. The
/// coefficients are 1/k!: the remainder after the seventh power is under 1e-8 on this range.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    // Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits; no rounding instruction needed.
    const SHIFT: f32 = 12_582_912.0;
    // ln 2 in two parts: n * HIGH is exact.
    const HIGH: f32 = 0.693_359_4;
    const LOW: f32 = -2.121_944_4e-4;
    let clamped = if x > UNDERFLOW { x } else { UNDERFLOW };
    let shifted = clamped * std::f32::consts::LOG2_E + SHIFT;
    let n = shifted - SHIFT;
    let r = (clamped - n * HIGH) - n * LOW;
    let mut p = 1.0 / 5040.0;
    for coefficient in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + coefficient;
    }
    let exponent = (shifted.to_bits().wrapping_sub(SHIFT.to_bits())).wrapping_add(127) << 23;
    if x > UNDERFLOW { p * f32::from_bits(exponent) } else { 0.0 }
}

/// A logit that means something: a number or `-inf`.
#[inline(always)]
pub fn is_sound(value: f32) -> bool {
    value < f32::INFINITY
}

/// The largest value (`-inf` of nothing), and whether all are sound. One pass.
pub fn max_and_sound(values: &[f32]) -> (f32, bool) {
    let mut lanes = [f32::NEG_INFINITY; 16];
    let mut unsound = [0u32; 16];
    let (blocks, rest) = values.as_chunks::<16>();
    for block in blocks {
        for lane in 0..16 {
            lanes[lane] = if block[lane] > lanes[lane] { block[lane] } else { lanes[lane] };
            unsound[lane] |= u32::from(!is_sound(block[lane]));
        }
    }
    let mut max = lanes.iter().fold(f32::NEG_INFINITY, |max, &value| if value > max { value } else { max });
    let mut sound = unsound.iter().all(|&count| count == 0);
    for &value in rest {
        max = if value > max { value } else { max };
        sound &= is_sound(value);
    }
    (max, sound)
}

/// The sum of `values` in f64, in this module's one order.
pub fn sum(values: &[f32]) -> f64 {
    let mut lanes = [0.0f64; LANES];
    let (blocks, rest) = values.as_chunks::<LANES>();
    for block in blocks {
        for lane in 0..LANES {
            lanes[lane] += f64::from(block[lane]);
        }
    }
    rest.iter().fold(lanes.iter().sum(), |total, &value| total + f64::from(value))
}

/// Fills `weights` with `e^(value - max)` and returns their sum. `max` is the largest value, finite.
pub fn weights(values: &[f32], max: f32, weights: &mut Vec<f32>) -> f64 {
    weights.clear();
    weights.extend(values.iter().map(|&value| exp(value - max)));
    sum(weights)
}

/// The natural logarithm of the sum of `e^value`, given the largest value.
pub fn log_sum_exp(values: &[f32], max: f32) -> f64 {
    // By blocks that stay in the cache: fused into one loop, the exponentials are no longer vectorized.
    let mut block = [0.0f32; 256];
    let mut total = 0.0;
    for chunk in values.chunks(block.len()) {
        for (weight, &value) in block.iter_mut().zip(chunk) {
            *weight = exp(value - max);
        }
        total += sum(&block[..chunk.len()]);
    }
    f64::from(max) + total.ln()
}

/// The sum of the weights whose key is at least `bound`, and how many they are. One order.
pub fn sum_over(keys: &[f32], weights: &[f32], bound: f32) -> (f64, usize) {
    const BLOCK: usize = 256;
    let (mut total, mut count) = (0.0, 0);
    let mut kept = [0.0f32; BLOCK];
    for (keys, weights) in keys.chunks(BLOCK).zip(weights.chunks(BLOCK)) {
        let mut inside = 0u32;
        for ((kept, &key), &weight) in kept.iter_mut().zip(keys).zip(weights) {
            // A mask of bits: as an `if` it became a branch, mispredicted every other time.
            let mask = 0u32.wrapping_sub(u32::from(key >= bound));
            inside += mask & 1;
            *kept = f32::from_bits(weight.to_bits() & mask);
        }
        total += sum(&kept[..keys.len()]);
        count += inside as usize;
    }
    (total, count)
}

/// The index of the largest value; among equals, the first.
pub fn argmax(values: &[f32], max: f32) -> Option<usize> {
    const BLOCK: usize = 64;
    let any = |block: &[f32]| block.iter().fold(false, |any, &value| any | (value == max));
    let start = values.chunks(BLOCK).position(any)? * BLOCK;
    Some(start + values.get(start..)?.iter().position(|&value| value == max)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_two_units_in_the_last_place() {
        let mut worst = 0.0f64;
        for step in 0..2_000_000 {
            let x = -86.9 * step as f32 / 2_000_000.0;
            let truth = f64::from(x).exp();
            worst = worst.max((f64::from(exp(x)) - truth).abs() / truth);
        }
        assert!(worst < 2.0 * f64::from(f32::EPSILON), "{worst:e}");
        for (x, want) in [(0.0, 1.0), (-0.0, 1.0), (-87.5, 0.0), (-1e30, 0.0), (f32::NEG_INFINITY, 0.0)] {
            assert_eq!(exp(x), want, "exp({x})");
        }
    }

    #[test]
    fn reductions_of_every_length() {
        for len in 0..70usize {
            let values: Vec<f32> = (0..len).map(|i| ((i * 37) % 64) as f32 - 70.0).collect();
            let max = values.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            assert_eq!(max_and_sound(&values), (max, true), "{len}");
            assert_eq!(argmax(&values, max), values.iter().position(|&v| v == max), "{len}");
            assert_eq!(sum(&values), values.iter().map(|&v| f64::from(v)).sum::<f64>(), "{len}");
            for bad in [f32::NAN, f32::INFINITY] {
                for at in 0..len {
                    let mut values = values.clone();
                    values[at] = bad;
                    assert!(!max_and_sound(&values).1, "{bad} at {at} of {len}");
                }
            }
        }
    }
}
