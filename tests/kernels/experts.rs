//! A mixture of experts in one step against the same experts one row at a time.

use tallow::config::{Denominator, GateFunction, Routing};
use tallow::error::ErrorKind;
use tallow::kernels::{Activation, Expert, ExpertTerms, KvType, Linear, Ops, Rows};
use tallow::weights::{WeightTensor, WeightType};

use crate::support::*;

const HIDDEN: usize = 256;
/// No whole number of panels, but whole blocks.
const INNER: [(WeightType, usize); 7] = [
    (WeightType::F32, 37),
    (WeightType::BF16, 20),
    (WeightType::Q8_0, 96),
    (WeightType::Q4_0, 32),
    (WeightType::Q4K, 256),
    (WeightType::Q6K, 256),
    (WeightType::Mxfp4, 96),
];

#[derive(Clone, Copy, Debug)]
struct Shape {
    experts: usize,
    top_k: usize,
    rows: usize,
}

const SHAPES: [Shape; 6] = [
    Shape { experts: 8, top_k: 2, rows: 1 },
    Shape { experts: 8, top_k: 2, rows: 5 },
    Shape { experts: 2, top_k: 2, rows: 31 },
    Shape { experts: 4, top_k: 3, rows: 70 },
    Shape { experts: 16, top_k: 1, rows: 40 },
    Shape { experts: 64, top_k: 8, rows: 9 },
];

/// How experts are built.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Build {
    Gated,
    /// With biases, and gpt-oss's activation.
    Biased,
    Ungated,
}

impl Build {
    const ALL: [Build; 3] = [Build::Gated, Build::Biased, Build::Ungated];

    fn activation(self) -> Activation {
        match self {
            Build::Gated => Activation::Silu,
            Build::Biased => Activation::ClampedSwiglu,
            Build::Ungated => Activation::Relu,
        }
    }
}

/// The matrices of each expert with their biases, rows, and the router's logits for them.
struct Case {
    build: Build,
    experts: Vec<[(WeightTensor, Vec<f32>); 3]>,
    x: Table,
    logits: Table,
    routing: Routing,
}

impl Case {
    fn new(build: Build, dtype: WeightType, inner: usize, shape: Shape) -> Case {
        let mut random = Random(shape.rows as u64);
        let mut matrix = |n, k| (weights(dtype, n, k, &mut random), random.floats(n));
        let expert = |_| [matrix(inner, HIDDEN), matrix(inner, HIDDEN), matrix(HIDDEN, inner)];
        let experts = (0..shape.experts).map(expert).collect();
        let routing = Routing { normalize: Some(Denominator::SUM), ..Routing::plain(shape.top_k) };
        let mut logits = random.table(shape.rows, shape.experts).map(|x| 3.0 * x);
        // Some experts get no row, one gets many.
        for row in logits.values.chunks_exact_mut(shape.experts).skip(1).step_by(2) {
            row[0] = 9.0;
        }
        Case { build, experts, x: random.table(shape.rows, HIDDEN).map(|x| 2.0 * x), logits, routing }
    }

    fn experts(&self, ops: &Ops) -> Vec<Expert> {
        let linear = |(w, bias): &(WeightTensor, Vec<f32>)| {
            linear(ops, w, (self.build == Build::Biased).then_some(bias.as_slice()))
        };
        let expert = |[gate, up, down]: &[(WeightTensor, Vec<f32>); 3]| Expert {
            gate: (self.build != Build::Ungated).then(|| linear(gate)),
            up: linear(up),
            down: linear(down),
        };
        self.experts.iter().map(expert).collect()
    }

    fn run(&self, ops: &Ops, rows: std::ops::Range<usize>) -> Table {
        let (x, logits) = [&self.x, &self.logits].map(|it| it.part(rows.start, rows.len()).on(ops)).into();
        let assignments = ops.route(logits, &self.routing, None).unwrap();
        let act = self.build.activation();
        table(ops, ops.experts(&self.experts(ops), act, &x, &assignments, &ExpertTerms::default()).unwrap())
    }

    /// Row by row and expert by expert, with the operations that dense feed-forwards have.
    fn one_by_one(&self, ops: &Ops) -> Table {
        let experts = self.experts(ops);
        let mut sums = Vec::new();
        for row in 0..self.x.rows() {
            let x = self.x.part(row, 1).on(ops);
            let mut sum = vec![0.0; HIDDEN];
            for (at, weight) in self.chosen(row) {
                let Expert { gate, up, down } = &experts[at];
                let inner = self.inner(ops, gate.as_ref(), up, &x);
                let out = table(ops, ops.linear(down, &inner).unwrap());
                sum.iter_mut().zip(&out.values).for_each(|(sum, out)| *sum += weight * out);
            }
            sums.extend(sum);
        }
        Table { dim: HIDDEN, values: sums }
    }

    fn inner(&self, ops: &Ops, gate: Option<&Linear>, up: &Linear, x: &Rows) -> Rows {
        let act = self.build.activation();
        match gate {
            Some(gate) => ops.gated(gate, up, x, act).unwrap(),
            None => ops.activated(up, x, act).unwrap(),
        }
    }

    /// The experts of a row, ascending, and their weights.
    fn chosen(&self, row: usize) -> Vec<(usize, f32)> {
        let logits = self.logits.part(row, 1).values;
        let max = logits.iter().copied().fold(f32::MIN, f32::max);
        let exp: Vec<f32> = logits.iter().map(|x| (x - max).exp()).collect();
        let all: f32 = exp.iter().sum();
        let scores: Vec<f32> = exp.iter().map(|e| e / all).collect();
        let mut order: Vec<usize> = (0..scores.len()).collect();
        order.sort_by(|a, b| scores[*b].total_cmp(&scores[*a]).then(a.cmp(b)));
        order.truncate(self.routing.top_k);
        let sum: f32 = order.iter().map(|&at| scores[at]).sum();
        order.sort_unstable();
        order.into_iter().map(|at| (at, scores[at] / sum)).collect()
    }
}

#[test]
fn experts_are_the_single_products_added_in_the_order_of_their_numbers() {
    for kv in [KvType::F32, KvType::BF16] {
        let machines = machines(kv);
        let shaped = INNER.into_iter().flat_map(|inner| SHAPES.map(|shape| (inner, shape)));
        // One way to build them a shape, another a type.
        let built = |(at, (inner, shape))| (Build::ALL[(at + at / SHAPES.len()) % 3], inner, shape);
        each(shaped.enumerate().map(built), |&(build, (dtype, inner), shape)| {
            let case = Case::new(build, dtype, inner, shape);
            let all = 0..shape.rows;
            let found = same_on_all(&machines, |ops| case.run(ops, all.clone()))?;
            same("one by one", &found, &case.one_by_one(&machines[0]))?;
            // Alone, and in pieces.
            let pieces = [0..1, 1..shape.rows.min(8), shape.rows.min(8)..shape.rows];
            let pieces: Vec<_> = pieces.into_iter().filter(|rows| !rows.is_empty()).collect();
            let apart: Vec<Table> = pieces.into_iter().map(|rows| case.run(&machines[0], rows)).collect();
            same("in pieces", &found, &Table::cat(&apart))?;
            // candle multiplies quantized weights by bytes in its own way.
            let bound = if dtype.takes_bytes() { 0.1 } else { 1e-4 };
            close("candle", &case.run(&candle(), all), &found, bound)
        });
    }
}

#[test]
fn no_rows_have_no_experts() {
    let case = Case::new(Build::Gated, WeightType::Q8_0, 32, SHAPES[0]);
    for ops in [cpu(2), candle()] {
        assert!(case.run(&ops, 0..0).values.is_empty());
    }
}

#[test]
fn a_gate_serves_a_head_or_an_element() {
    let machines = machines(KvType::F32);
    let cases = [(5, 24, 24), (3, 40, 4), (1, 7, 1), (70, 96, 3)];
    let functions = [GateFunction::Sigmoid, GateFunction::Silu, GateFunction::Softplus];
    each(
        cases.into_iter().flat_map(|case| functions.map(|f| (case, f))),
        |&((rows, dim, width), function)| {
            let mut random = Random(dim as u64);
            let (x, gate) = (random.table(rows, dim), random.table(rows, width).map(|x| 20.0 * x));
            let run = |ops: &Ops| table(ops, ops.output_gate(x.on(ops), gate.on(ops), function).unwrap());
            let found = same_on_all(&machines, run)?;
            let exact = |(at, x): (usize, &f32)| {
                let gate = f64::from(gate.values[at / dim * width + at % dim / (dim / width)]);
                let gate = match function {
                    GateFunction::Sigmoid => 1.0 / (1.0 + (-gate).exp()),
                    GateFunction::Silu => gate / (1.0 + (-gate).exp()),
                    GateFunction::Softplus => gate.exp().ln_1p(),
                };
                (f64::from(*x) * gate) as f32
            };
            let wanted = Table { dim, values: x.values.iter().enumerate().map(exact).collect() };
            close("exact", &found, &wanted, 1e-6)?;
            close("candle", &run(&candle()), &wanted, 1e-6)
        },
    );
    for ops in [cpu(2), candle()] {
        let rows = |count, dim| Table { dim, values: vec![1.0; count * dim] }.on(&ops);
        for (x, gate) in [((2, 12), (3, 4)), ((2, 12), (2, 5))] {
            let error = ops.output_gate(rows(x.0, x.1), rows(gate.0, gate.1), GateFunction::Sigmoid);
            assert_eq!(error.map(drop).unwrap_err().kind(), ErrorKind::Internal);
        }
    }
}
