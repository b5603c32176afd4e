//! Elementary functions that the compiler can turn into vector code: no branches, no tables, no calls.
//!
//! The errors below were measured against f64 over their whole range and are held by the tests. `exp` is
//! the exact power series on `|r| <= ln(2)/2` (its eighth term is below half a unit in the last place), the
//! polynomial of `tanh` an interpolation in Chebyshev nodes.

/// `e^x` to a relative error of 2e-7; 0 below -87 (also for minus infinity), infinity above 88.7.
#[inline(always)]
pub(super) fn exp(x: f32) -> f32 {
    /// Adding and taking away 1.5 * 2^23 rounds to a whole number, which then stands in the low bits.
    const ROUND: f32 = 12_582_912.0;
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    let x = if x > 89.0 { 89.0 } else { x };
    let x = if x < -88.0 { -88.0 } else { x };
    let rounded = x.mul_add(std::f32::consts::LOG2_E, ROUND);
    let n = rounded - ROUND;
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = 1.0 / 5040.0;
    p = r.mul_add(p, 1.0 / 720.0);
    p = r.mul_add(p, 1.0 / 120.0);
    p = r.mul_add(p, 1.0 / 24.0);
    p = r.mul_add(p, 1.0 / 6.0);
    p = r.mul_add(p, 0.5);
    p = r.mul_add(p, 1.0);
    p = r.mul_add(p, 1.0);
    // 2^(n-1), whose exponent field is 0 (the number zero) for the smallest n; the factor 2 makes up for it,
    // and overflows to infinity where it should.
    let power = (rounded.to_bits().wrapping_sub(ROUND.to_bits()) as i32).wrapping_add(126);
    let power = if power < 0 { 0 } else { power };
    p * f32::from_bits((power as u32) << 23) * 2.0
}

/// `tanh(x)` to a relative error of 4e-7.
#[inline(always)]
pub(super) fn tanh(x: f32) -> f32 {
    let size = x.abs();
    let t = x * x;
    let mut p = -0.006_269_12_f32;
    p = t.mul_add(p, 0.021_110_96);
    p = t.mul_add(p, -0.053_873_95);
    p = t.mul_add(p, 0.133_329_15);
    p = t.mul_add(p, -0.333_333_3);
    let near = (t * p).mul_add(x, x);
    let far = (1.0 - 2.0 / (exp(2.0 * size) + 1.0)).copysign(x);
    if size < 0.6 { near } else { far }
}

/// `erf(x)` to an absolute error of 5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
#[inline(always)]
pub(super) fn erf(x: f32) -> f32 {
    let size = x.abs();
    let t = 1.0 / size.mul_add(0.327_591_1, 1.0);
    let mut p = 1.061_405_4_f32;
    p = t.mul_add(p, -1.453_152);
    p = t.mul_add(p, 1.421_413_8);
    p = t.mul_add(p, -0.284_496_74);
    p = t.mul_add(p, 0.254_829_6);
    (1.0 - p * t * exp(-size * size)).copysign(x)
}

#[inline(always)]
pub(super) fn silu(x: f32) -> f32 {
    x / (1.0 + exp(-x))
}

/// `x * Phi(x)`.
#[inline(always)]
pub(super) fn gelu(x: f32) -> f32 {
    0.5 * x * (1.0 + erf(x * std::f32::consts::FRAC_1_SQRT_2))
}

/// `x/2 * (1 + tanh(u))` with `u = sqrt(2/pi) (x + 0.044715 x^3)`, written as `x * sigmoid(2u)`, which loses
/// nothing where the tanh is near -1.
#[inline(always)]
pub(super) fn gelu_tanh(x: f32) -> f32 {
    const TWICE: f32 = 1.595_769_2; // 2 * sqrt(2 / pi)
    let u = x * (x * x).mul_add(0.044_715, 1.0);
    x / (1.0 + exp(-TWICE * u))
}

#[inline(always)]
pub(super) fn relu(x: f32) -> f32 {
    if x < 0.0 { 0.0 } else { x }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every 1000th float of either sign up to `limit`.
    fn floats(limit: f32) -> impl Iterator<Item = f32> {
        (0..limit.to_bits()).step_by(1000).map(f32::from_bits).flat_map(|x| [x, -x])
    }

    #[test]
    fn errors_are_as_documented() {
        let worst = |f: fn(f32) -> f32, exact: fn(f64) -> f64, limit: f32, floor: f64| {
            let error = |x: f32| {
                let exact = exact(f64::from(x));
                (f64::from(f(x)) - exact).abs() / exact.abs().max(floor)
            };
            floats(limit).map(|x| (error(x), x)).fold((0.0, 0.0), |a, b| if b.0 > a.0 { b } else { a })
        };
        let erf64 = candle_core::cpu::erf::erf_f64;
        let gelu64 =
            |x: f64| 0.5 * x * (1.0 + candle_core::cpu::erf::erf_f64(x * std::f64::consts::FRAC_1_SQRT_2));
        let gelu_tanh64 = |x: f64| {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        };
        for (name, (error, at), bound) in [
            ("exp", worst(exp, f64::exp, 86.9, 0.0), 2e-7),
            ("tanh", worst(tanh, f64::tanh, 20.0, 1e-30), 4e-7),
            ("erf", worst(erf, erf64, 10.0, 1.0), 5e-7),
            ("silu", worst(silu, |x| x / (1.0 + (-x).exp()), 80.0, 1e-30), 1e-6),
            ("gelu", worst(gelu, gelu64, 10.0, 1.0), 3e-7),
            ("gelu_tanh", worst(gelu_tanh, gelu_tanh64, 10.0, 1.0), 3e-7),
        ] {
            println!("{name}: {error:.2e} at {at}");
            assert!(error <= bound, "{name}: {error:.2e} at {at}, above {bound:.1e}");
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!((exp(-88.0), exp(-1e30)), (0.0, 0.0));
        assert_eq!((exp(89.0), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert!(exp(88.7).is_finite() && exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        assert_eq!((tanh(1e30), tanh(-1e30), tanh(0.0)), (1.0, -1.0, 0.0));
        assert_eq!((silu(-1e4), silu(1e4), gelu_tanh(-1e4)), (-0.0, 1e4, -0.0));
        assert!(relu(f32::NAN).is_nan(), "a NaN stays visible");
    }
}
