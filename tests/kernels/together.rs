//! Products with what follows them, against the single steps; and that nothing is remembered too long.

use candle_core::cpu::erf::erf_f64;
use tallow::config::NormKind;
use tallow::kernels::{Activation, KvType, Norm, Ops};
use tallow::weights::{WeightTensor, WeightType};

use crate::support::*;

const ACTIVATIONS: [Activation; 5] =
    [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu, Activation::ClampedSwiglu];

/// Two matrices of one width, seldom of one type, and the rows that are multiplied.
const PAIRS: [(WeightType, WeightType, usize); 8] = [
    (WeightType::Q4K, WeightType::Q6K, 1),
    (WeightType::Q4_1, WeightType::Q4_1, 13),
    (WeightType::F32, WeightType::Q8_0, 5),
    (WeightType::Iq4Xs, WeightType::BF16, 29),
    (WeightType::F16, WeightType::F16, 3),
    (WeightType::Q2K, WeightType::Q5_0, 2),
    (WeightType::Q3K, WeightType::Iq4Nl, 12),
    (WeightType::Mxfp4, WeightType::Mxfp4, 26),
];

fn exact(act: Activation, x: f64) -> f64 {
    match act {
        Activation::Silu => x / (1.0 + (-x).exp()),
        Activation::Gelu => 0.5 * x * (1.0 + erf_f64(x * std::f64::consts::FRAC_1_SQRT_2)),
        Activation::GeluTanh => {
            0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x * x * x)).tanh())
        }
        Activation::ClampedSwiglu => x.min(7.0) / (1.0 + (-1.702 * x.min(7.0)).exp()),
        _ => x.max(0.0),
    }
}

/// What a gate lets through.
fn factor(act: Activation, x: f32) -> f64 {
    match act {
        Activation::ClampedSwiglu => f64::from(x.clamp(-7.0, 7.0)) + 1.0,
        _ => f64::from(x),
    }
}

/// Matrices, biases and rows of a case; `n` is no whole number of panels.
struct Case {
    gate: WeightTensor,
    up: WeightTensor,
    biases: [Vec<f32>; 2],
    x: Table,
    to: Table,
}

const N: usize = 37;

impl Case {
    fn new(&(gate, up, rows): &(WeightType, WeightType, usize)) -> Case {
        let mut random = Random(rows as u64);
        Case {
            gate: weights(gate, N, 256, &mut random),
            up: weights(up, N, 256, &mut random),
            biases: [random.floats(N), random.floats(N)],
            x: random.table(rows, 256).map(|x| 2.0 * x),
            to: random.table(rows, N),
        }
    }

    fn linears(&self, ops: &Ops, biased: bool) -> [tallow::kernels::Linear; 2] {
        let bias = |index: usize| biased.then(|| self.biases[index].as_slice());
        [linear(ops, &self.gate, bias(0)), linear(ops, &self.up, bias(1))]
    }

    /// Both products, alone.
    fn products(&self, ops: &Ops, biased: bool) -> [Table; 2] {
        self.linears(ops, biased).map(|linear| table(ops, ops.linear(&linear, &self.x.on(ops)).unwrap()))
    }
}

#[test]
fn activations_are_those_of_the_products() {
    let machines = machines(KvType::F32);
    let cases = PAIRS.into_iter().flat_map(|pair| ACTIVATIONS.map(|act| (pair, act)));
    each(cases.flat_map(|(pair, act)| [(pair, act, false), (pair, act, true)]), |&(pair, act, biased)| {
        let case = Case::new(&pair);
        let gated = |ops: &Ops| {
            let [gate, up] = case.linears(ops, biased);
            table(ops, ops.gated(&gate, &up, &case.x.on(ops), act).unwrap())
        };
        let activated = |ops: &Ops| {
            let [_, up] = case.linears(ops, biased);
            table(ops, ops.activated(&up, &case.x.on(ops), act).unwrap())
        };
        let [gate, up] = case.products(&machines[0], biased);
        let ones = up.map(|_| if act == Activation::ClampedSwiglu { 0.0 } else { 1.0 });
        let quantized = pair.0.takes_bytes() || pair.1.takes_bytes();
        let check = |what: &str, f: &dyn Fn(&Ops) -> Table, inner: &Table, factor: &Table| {
            let found = same_on_all(&machines, f).map_err(|why| format!("{what}: {why}"))?;
            for ((&y, &x), &factor) in found.values.iter().zip(&inner.values).zip(&factor.values) {
                let (wanted, factor) = (exact(act, f64::from(x)), self::factor(act, factor));
                let error = (f64::from(y) - wanted * factor).abs();
                if error.is_nan() || error > 1e-6 * wanted.abs().max(1.0) * factor.abs() {
                    return Err(format!("{what}: {y} of {x} times {factor} is off by {error:.1e}"));
                }
            }
            // Where large sums are cut off, what is off of the others is more.
            let rough = if act == Activation::ClampedSwiglu { 0.12 } else { 0.05 };
            close(what, &f(&candle()), &found, if quantized { rough } else { 1e-5 })
        };
        check("gated", &gated, &gate, &up)?;
        check("activated", &activated, &up, &ones)
    });
}

#[test]
fn sums_and_several_products_are_the_single_ones() {
    let machines = machines(KvType::F32);
    let cases = PAIRS.into_iter().flat_map(|pair| [(pair, false), (pair, true)]);
    each(cases, |&(pair, biased)| {
        let case = Case::new(&pair);
        let [gate, up] = case.products(&machines[0], biased);
        let added = same_on_all(&machines, |ops| {
            let [gate, _] = case.linears(ops, biased);
            table(ops, ops.linear_add(&gate, &case.x.on(ops), case.to.on(ops)).unwrap())
        })?;
        let sums = case.to.values.iter().zip(&gate.values).map(|(a, b)| a + b).collect();
        same("linear_add", &added, &Table { dim: N, values: sums })?;
        // Another width among them, and one of them twice.
        let other = weights(WeightType::Q5K, 130, 256, &mut Random(6));
        let third = table(
            &machines[0],
            machines[0].linear(&linear(&machines[0], &other, None), &case.x.on(&machines[0])).unwrap(),
        );
        for ops in machines.iter().chain([&candle()]) {
            let [first, second] = &case.linears(ops, biased);
            let other = linear(ops, &other, None);
            let all = ops.linears([first, &other, second, first], &case.x.on(ops)).unwrap();
            for (y, wanted) in all.map(|y| table(ops, y)).iter().zip([&gate, &third, &up, &gate]) {
                match ops.describe().starts_with("cpu") && !ops.describe().contains("f32") {
                    true => same(&ops.describe(), y, wanted)?,
                    false => close("candle", y, wanted, 0.05)?,
                }
            }
        }
        Ok(())
    });
}

/// Rows are kept as bytes, once a product has asked for them. What changes the rows must forget the bytes.
#[test]
fn the_bytes_of_rows_do_not_outlive_their_floats() {
    let ops = cpu(2);
    let mut random = Random(8);
    let (w, x, y) =
        (weights(WeightType::Q4K, 256, 256, &mut random), random.table(6, 256), random.table(6, 256));
    let (linear, weight) = (linear(&ops, &w, None), vector(&ops, &random.floats(64)));
    let norm = Norm { kind: NormKind::Rms, eps: 1e-6, weight, bias: None };
    let changes: [(&str, &dyn Fn(tallow::kernels::Rows) -> tallow::kernels::Rows); 4] = [
        ("linear_add", &|x| ops.linear_add(&linear, &y.on(&ops), x).unwrap()),
        ("norm_add", &|x| ops.norm_add(&norm, &y.on(&ops), x).unwrap()),
        ("heads", &|x| ops.heads(x, 64, Some(&norm), None).unwrap()),
        ("soft_cap", &|x| ops.soft_cap(x, 0.3).unwrap()),
    ];
    each(changes.map(|(name, _)| name), |name| {
        let (_, change) = changes.iter().find(|(other, _)| other == name).unwrap();
        let rows = x.on(&ops);
        drop(ops.linear(&linear, &rows).unwrap());
        let changed = change(rows);
        let found = table(&ops, ops.linear(&linear, &changed).unwrap());
        let fresh = table(&ops, changed);
        same(name, &found, &table(&ops, ops.linear(&linear, &fresh.on(&ops)).unwrap()))
    });
}
