//! Against central differences in f64 of what is differentiated.

use super::*;
use crate::kernels::isa::Isa;

/// Of the length of a gradient: what f32 leaves of one whose formula is right.
const TOLERANCE: f64 = 3e-6;

fn noise(len: usize, seed: u64) -> Vec<f32> {
    let bits = |at: usize| ((at as u64 + 1) * (2 * seed + 1)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40;
    (0..len).map(|at| bits(at) as f32 / (1 << 22) as f32 - 2.0).collect()
}

/// The gradient of `f` at `x`.
fn differences(x: &[f32], f: impl Fn(&[f64]) -> f64) -> Vec<f64> {
    const H: f64 = 1e-5;
    let wide: Vec<f64> = x.iter().map(|&x| f64::from(x)).collect();
    let at = |index: usize, by: f64| {
        let mut moved = wide.clone();
        moved[index] += by;
        f(&moved)
    };
    (0..x.len()).map(|index| (at(index, H) - at(index, -H)) / (2.0 * H)).collect()
}

fn close(what: &str, found: &[f32], wanted: &[f64]) {
    let square = |x: f64| x * x;
    let off: f64 = found.iter().zip(wanted).map(|(a, b)| square(f64::from(*a) - b)).sum();
    let all: f64 = wanted.iter().map(|b| square(*b)).sum();
    let distance = (off / all).sqrt();
    assert!(distance < TOLERANCE, "{what}: {distance:.1e}");
}

fn dot(a: &[f64], b: &[f32]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * f64::from(*b)).sum()
}

#[test]
fn norms() {
    let eps = 1e-3f32;
    let normed = |rms: bool, weight: &[f32], group: usize, x: &[f64]| -> Vec<f64> {
        let weights = weight.chunks(group).cycle();
        let groups = x.chunks(group).zip(weights).flat_map(|(x, weight)| {
            let len = x.len() as f64;
            let mean = if rms { 0.0 } else { x.iter().sum::<f64>() / len };
            let variance = x.iter().map(|x| (x - mean) * (x - mean)).sum::<f64>() / len;
            let r = 1.0 / (variance + f64::from(eps)).sqrt();
            let one = move |(x, weight): (&f64, &f32)| (x - mean) * r * f64::from(*weight);
            x.iter().zip(weight).map(one).collect::<Vec<_>>()
        });
        groups.collect()
    };
    for isa in Isa::available() {
        // One group a row, several with the same weights, and several with their own.
        for (dim, group, weights) in [(40, 40, 40), (48, 16, 16), (60, 20, 60), (7, 7, 7)] {
            for rms in [true, false] {
                let (x, weight, dy) = (noise(3 * dim, 1), noise(weights, 2), noise(3 * dim, 3));
                let wanted = differences(&x, |x| dot(&normed(rms, &weight, group, x), &dy));
                let rows = NormRows { rms, eps, weight: &weight, group, x: &x, dy: &dy, add: false };
                let mut dx = vec![7.0; x.len()];
                norm(isa, rows, &mut dx);
                close(&format!("{} norm of {group} of {dim}, rms {rms}", isa.name()), &dx, &wanted);
                let mut twice = dx.clone();
                norm(isa, NormRows { add: true, ..rows }, &mut twice);
                assert!(twice.iter().zip(&dx).all(|(twice, once)| *twice == 2.0 * once));
            }
        }
    }
}

/// In f64, without our approximations.
fn activation(act: Activation, x: f64) -> f64 {
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    match act {
        Activation::Silu => x * sigmoid(x),
        Activation::Gelu => 0.5 * x * (1.0 + erf(x / std::f64::consts::SQRT_2)),
        Activation::GeluTanh => {
            let u = (2.0 / std::f64::consts::PI).sqrt() * (x + 0.044_715 * x * x * x);
            0.5 * x * (1.0 + u.tanh())
        }
        Activation::Relu => x.max(0.0),
        Activation::Relu2 => x.max(0.0) * x.max(0.0),
        Activation::Xielu(Xielu { p, n, beta, eps }) => {
            let [p, n, beta, eps] = [p, n, beta, eps].map(f64::from);
            let below = n * (x.min(eps).exp() - 1.0 - x) + beta * x;
            if x > 0.0 { p * x * x + beta * x } else { below }
        }
        Activation::ClampedSwiglu => f64::NAN,
    }
}

/// By its series, which is exact enough where we look.
fn erf(x: f64) -> f64 {
    let mut term = x;
    let mut sum = x;
    for n in 1..80 {
        term *= -x * x / f64::from(n);
        sum += term / f64::from(2 * n + 1);
    }
    sum * 2.0 / std::f64::consts::PI.sqrt()
}

#[test]
fn activations_and_gates() {
    let xielu = Activation::Xielu(Xielu::of_stored(0.3, 0.2, 0.5, -1e-6));
    use Activation::{Gelu, GeluTanh, Relu, Relu2, Silu};
    for (isa, act) in Isa::available()
        .into_iter()
        .flat_map(|isa| [Silu, Gelu, GeluTanh, Relu, Relu2, xielu].map(|act| (isa, act)))
    {
        let what = format!("{} {act:?}", isa.name());
        let (x, up, dy) = (noise(50, 1), noise(50, 2), noise(50, 3));
        let plain = |x: &[f64]| dot(&x.iter().map(|x| activation(act, *x)).collect::<Vec<_>>(), &dy);
        let mut dx = x.clone();
        activated(isa, act, &dy, &mut dx);
        close(&what, &dx, &differences(&x, plain));
        let gated_sum = |gate: &[f64], up: &[f64]| {
            let product = |(gate, up): (&f64, &f64)| activation(act, *gate) * up;
            dot(&gate.iter().zip(up).map(product).collect::<Vec<_>>(), &dy)
        };
        let wide = |x: &[f32]| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>();
        let (mut dgate, mut dup) = (x.clone(), up.clone());
        gated(isa, act, &dy, &mut dgate, &mut dup);
        close(&what, &dgate, &differences(&x, |gate| gated_sum(gate, &wide(&up))));
        close(&what, &dup, &differences(&up, |up| gated_sum(&wide(&x), up)));
    }
}

#[test]
fn cross_entropy_with_and_without_a_cap() {
    for (isa, cap) in Isa::available().into_iter().flat_map(|isa| [None, Some(1.5f32)].map(|cap| (isa, cap)))
    {
        // Logits before the cap; 13 is predicted twice as often as 40.
        let x: Vec<f32> = noise(70, 1).iter().map(|x| 3.0 * x).collect();
        let capped = |x: f64| cap.map_or(x, |cap| f64::from(cap) * (x / f64::from(cap)).tanh());
        let loss = |x: &[f64]| {
            let y: Vec<f64> = x.iter().map(|x| capped(*x)).collect();
            let sum: f64 = y.iter().map(|y| y.exp()).sum();
            3.0 * sum.ln() - 2.0 * y[13] - y[40]
        };
        let wanted = differences(&x, loss);
        let mut logits: Vec<f32> = x.iter().map(|x| capped(f64::from(*x)) as f32).collect();
        let mut stats = (0.0, 0.0);
        softmax_stats(isa, &logits, &mut stats);
        let all: f64 = logits.iter().map(|y| f64::from(*y - stats.0).exp()).sum();
        assert!((stats.1 - all).abs() < 1e-6 * all);
        let slopes: Vec<f32> =
            logits.iter().map(|y| 1.0 - cap.map_or(0.0, |cap| y / cap * (y / cap))).collect();
        softmax_gradient(
            isa,
            SoftmaxRow { greatest: stats.0, factor: (3.0 / stats.1) as f32, cap },
            &mut logits,
        );
        logits[13] -= 2.0 * slopes[13];
        logits[40] -= slopes[40];
        close(&format!("{} cap {cap:?}", isa.name()), &logits, &wanted);
    }
}
