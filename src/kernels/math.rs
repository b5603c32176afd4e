//! Elementary functions on sixteen lanes: no branches, no tables, no calls.
//!
//! The errors below were measured against f64 over their whole range and are held by the tests. `exp` is
//! the exact power series on `|r| <= ln(2)/2` (its eighth term is below half a unit in the last place), the
//! polynomial of `tanh` an interpolation in Chebyshev nodes.

use super::Activation;
use super::simd::Simd;
use crate::config::Xielu;

/// `a b + c` with constants.
#[inline(always)]
unsafe fn step<S: Simd>(x: S::F, p: S::F, c: f32) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe { S::fma(x, p, S::splat(c)) }
}

/// `e^x` to a relative error of 2e-7; 0 below -87 (also for minus infinity), infinity above 88.7.
#[inline(always)]
pub(super) unsafe fn exp<S: Simd>(x: S::F) -> S::F {
    const LN2_HIGH: f32 = 0.693_145_75;
    const LN2_LOW: f32 = 1.428_606_8e-6;
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe {
        // A NaN stays: it is the second operand.
        let x = S::max(S::splat(-87.5), S::min(S::splat(89.0), x));
        // Below, the power is of `n - 1`, and the factor 2 makes up for it: it overflows to infinity where it
        // should, and the smallest power, 2^-127, has the bits of zero.
        let n = S::round(S::mul(x, S::splat(std::f32::consts::LOG2_E)));
        let whole = S::to_f(n);
        let r = S::fma(whole, S::splat(-LN2_LOW), S::fma(whole, S::splat(-LN2_HIGH), x));
        let mut p = S::splat(1.0 / 5040.0);
        p = step::<S>(r, p, 1.0 / 720.0);
        p = step::<S>(r, p, 1.0 / 120.0);
        p = step::<S>(r, p, 1.0 / 24.0);
        p = step::<S>(r, p, 1.0 / 6.0);
        p = step::<S>(r, p, 0.5);
        p = step::<S>(r, p, 1.0);
        p = step::<S>(r, p, 1.0);
        let power = S::exp2(S::add_i(n, S::splat_i(-1)));
        S::mul(S::mul(p, power), S::splat(2.0))
    }
}

/// `tanh(x)` to a relative error of 4e-7.
#[inline(always)]
pub(super) unsafe fn tanh<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe {
        let (size, t) = (S::abs(x), S::mul(x, x));
        let mut p = S::splat(-0.006_269_12);
        p = step::<S>(t, p, 0.021_110_96);
        p = step::<S>(t, p, -0.053_873_95);
        p = step::<S>(t, p, 0.133_329_15);
        p = step::<S>(t, p, -0.333_333_3);
        let near = S::fma(S::mul(t, p), x, x);
        let (one, two) = (S::splat(1.0), S::splat(2.0));
        let far = S::sub(one, S::div(two, S::add(exp::<S>(S::mul(two, size)), one)));
        S::select_lt(size, S::splat(0.6), near, S::copysign(far, x))
    }
}

/// `erf(x)` to an absolute error of 5e-7: Abramowitz and Stegun, Handbook of Mathematical Functions, 7.1.26.
#[inline(always)]
pub(super) unsafe fn erf<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe {
        let (size, one) = (S::abs(x), S::splat(1.0));
        let t = S::div(one, S::fma(size, S::splat(0.327_591_1), one));
        let mut p = S::splat(1.061_405_4);
        p = step::<S>(t, p, -1.453_152);
        p = step::<S>(t, p, 1.421_413_8);
        p = step::<S>(t, p, -0.284_496_74);
        p = step::<S>(t, p, 0.254_829_6);
        let square = S::mul(S::mul(size, size), S::splat(-1.0));
        let tail = S::mul(S::mul(p, t), exp::<S>(square));
        S::copysign(S::sub(one, tail), x)
    }
}

/// `x / (1 + e^-x)`.
#[inline(always)]
pub(super) unsafe fn silu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe { S::div(x, S::add(S::splat(1.0), exp::<S>(S::mul(x, S::splat(-1.0))))) }
}

/// `1 / (1 + e^-x)`.
#[inline(always)]
pub(super) unsafe fn sigmoid<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe { S::div(S::splat(1.0), S::add(S::splat(1.0), exp::<S>(S::mul(x, S::splat(-1.0))))) }
}

/// `ln(1 + e^x)` to a relative error of 1e-6 above -80: `max(x, 0) + ln(1 + e^-|x|)`, where with `t = e^-|x|`
/// and `u = t / (2 + t)` the logarithm is `2 atanh(u)`, u at most a third.
#[inline(always)]
pub(super) unsafe fn softplus<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe {
        let t = exp::<S>(S::mul(S::abs(x), S::splat(-1.0)));
        let u = S::div(t, S::add(S::splat(2.0), t));
        let square = S::mul(u, u);
        let mut p = S::splat(1.0 / 15.0);
        p = step::<S>(square, p, 1.0 / 13.0);
        p = step::<S>(square, p, 1.0 / 11.0);
        p = step::<S>(square, p, 1.0 / 9.0);
        p = step::<S>(square, p, 1.0 / 7.0);
        p = step::<S>(square, p, 1.0 / 5.0);
        p = step::<S>(square, p, 1.0 / 3.0);
        p = step::<S>(square, p, 1.0);
        // A NaN stays: it is the second operand.
        S::fma(S::mul(S::splat(2.0), u), p, S::max(S::zero(), x))
    }
}

/// `x * Phi(x)`.
#[inline(always)]
pub(super) unsafe fn gelu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe {
        let twice = S::add(S::splat(1.0), erf::<S>(S::mul(x, S::splat(std::f32::consts::FRAC_1_SQRT_2))));
        S::mul(S::mul(S::splat(0.5), x), twice)
    }
}

/// `x/2 * (1 + tanh(u))` with `u = sqrt(2/pi) (x + 0.044715 x^3)`, written as `x * sigmoid(2u)`, which loses
/// nothing where the tanh is near -1.
#[inline(always)]
pub(super) unsafe fn gelu_tanh<S: Simd>(x: S::F) -> S::F {
    const TWICE: f32 = 1.595_769_2; // 2 * sqrt(2 / pi)
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe {
        let u = S::mul(x, S::fma(S::mul(x, x), S::splat(0.044_715), S::splat(1.0)));
        S::div(x, S::add(S::splat(1.0), exp::<S>(S::mul(u, S::splat(-TWICE)))))
    }
}

/// `x` or 0; a NaN stays visible.
#[inline(always)]
pub(super) unsafe fn relu<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe { S::select_lt(x, S::zero(), S::zero(), x) }
}

/// `max(x, 0)^2`; a NaN stays visible.
#[inline(always)]
pub(super) unsafe fn relu2<S: Simd>(x: S::F) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe {
        let x = relu::<S>(x);
        S::mul(x, x)
    }
}

/// See [`Xielu`]. The difference `e^x - 1` is one of rounded numbers: it is off by 1e-7 at most, and the sum
/// has no factor that would enlarge it.
#[inline(always)]
unsafe fn xielu<S: Simd>(Xielu { p, n, beta, eps }: Xielu, x: S::F) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe {
        let linear = S::mul(x, S::splat(beta));
        let above = S::fma(S::mul(x, x), S::splat(p), linear);
        // A NaN stays: it is the second operand.
        let power = S::sub(exp::<S>(S::min(S::splat(eps), x)), S::splat(1.0));
        let below = S::fma(S::sub(power, x), S::splat(n), linear);
        S::select_lt(S::zero(), x, above, below)
    }
}

#[inline(always)]
pub(super) unsafe fn activate<S: Simd>(act: Activation, x: S::F) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe {
        match act {
            Activation::Silu => silu::<S>(x),
            Activation::Gelu => gelu::<S>(x),
            Activation::GeluTanh => gelu_tanh::<S>(x),
            Activation::Relu => relu::<S>(x),
            Activation::ClampedSwiglu => {
                let x = S::min(S::splat(CLAMP), x);
                S::div(x, S::add(S::splat(1.0), exp::<S>(S::mul(x, S::splat(-1.702)))))
            }
            Activation::Relu2 => relu2::<S>(x),
            Activation::Xielu(xielu) => self::xielu::<S>(xielu, x),
        }
    }
}

/// The limit of [`Activation::ClampedSwiglu`].
const CLAMP: f32 = 7.0;

/// `act(gate) * up`, of what such a gate makes of `up`.
#[inline(always)]
pub(super) unsafe fn gated<S: Simd>(act: Activation, gate: S::F, up: S::F) -> S::F {
    // SAFETY: the caller has the tier's instructions; nothing but registers is touched.
    unsafe {
        let up = match act {
            Activation::ClampedSwiglu => {
                S::add(S::max(S::splat(-CLAMP), S::min(S::splat(CLAMP), up)), S::splat(1.0))
            }
            _ => up,
        };
        S::mul(activate::<S>(act, gate), up)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::simd::scalar::Scalar;

    /// One lane of the oracle; that all tiers agree is tested with the operations that use these.
    macro_rules! lane {
        ($f:ident) => {
            // SAFETY: the scalar tier needs nothing.
            |x: f32| unsafe { $f::<Scalar>([x; 16])[3] }
        };
    }

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
        // Of Apertus's first layers; the square is what limits it.
        const XIELU: Xielu = Xielu { p: 0.8, n: 0.9, beta: 0.5, eps: -1e-6 };
        // SAFETY: the scalar tier needs nothing.
        let xielu32: fn(f32) -> f32 = |x| unsafe { xielu::<Scalar>(XIELU, [x; 16])[3] };
        let xielu64: fn(f64) -> f64 = |x| {
            let [p, n, beta, eps] = [XIELU.p, XIELU.n, XIELU.beta, XIELU.eps].map(f64::from);
            if x > 0.0 { p * x * x + beta * x } else { n * (x.min(eps).exp_m1() - x) + beta * x }
        };
        for (name, (error, at), bound) in [
            ("xielu", worst(xielu32, xielu64, 100.0, 1.0), 4e-7),
            ("relu2", worst(lane!(relu2), |x| x.max(0.0) * x.max(0.0), 100.0, 1e-30), 1e-7),
            ("exp", worst(lane!(exp), f64::exp, 86.9, 0.0), 2e-7),
            ("tanh", worst(lane!(tanh), f64::tanh, 20.0, 1e-30), 4e-7),
            ("erf", worst(lane!(erf), erf64, 10.0, 1.0), 5e-7),
            ("silu", worst(lane!(silu), |x| x / (1.0 + (-x).exp()), 80.0, 1e-30), 1e-6),
            ("gelu", worst(lane!(gelu), gelu64, 10.0, 1.0), 3e-7),
            ("sigmoid", worst(lane!(sigmoid), |x| 1.0 / (1.0 + (-x).exp()), 80.0, 0.0), 1e-6),
            ("softplus", worst(lane!(softplus), |x| x.exp().ln_1p(), 80.0, 0.0), 1e-6),
            ("gelu_tanh", worst(lane!(gelu_tanh), gelu_tanh64, 10.0, 1.0), 3e-7),
        ] {
            println!("{name}: {error:.2e} at {at}");
            assert!(error <= bound, "{name}: {error:.2e} at {at}, above {bound:.1e}");
        }
    }

    #[test]
    fn the_ends_of_the_range() {
        let (exp, tanh, silu) = (lane!(exp), lane!(tanh), lane!(silu));
        let (gelu_tanh, relu) = (lane!(gelu_tanh), lane!(relu));
        assert_eq!((exp(0.0), exp(-0.0)), (1.0, 1.0));
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!((exp(-88.0), exp(-1e30)), (0.0, 0.0));
        assert_eq!((exp(89.0), exp(f32::INFINITY)), (f32::INFINITY, f32::INFINITY));
        assert!(exp(88.7).is_finite() && exp(f32::NAN).is_nan() && tanh(f32::NAN).is_nan());
        assert_eq!((tanh(1e30), tanh(-1e30), tanh(0.0)), (1.0, -1.0, 0.0));
        assert_eq!((silu(-1e4), silu(1e4), gelu_tanh(-1e4)), (-0.0, 1e4, -0.0));
        let (sigmoid, softplus) = (lane!(sigmoid), lane!(softplus));
        assert_eq!((sigmoid(-1e4), sigmoid(1e4), sigmoid(0.0)), (0.0, 1.0, 0.5));
        assert_eq!((softplus(-1e4), softplus(1e4)), (0.0, 1e4));
        assert!([relu, sigmoid, softplus].iter().all(|f| f(f32::NAN).is_nan()), "a NaN stays visible");
    }
}
