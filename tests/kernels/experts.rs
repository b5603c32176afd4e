//! A mixture of experts in one step against the same experts one row at a time.

use tallow::config::{Routing, Score};
use tallow::kernels::{Activation, Expert, KvType, Ops};
use tallow::weights::{WeightTensor, WeightType};

use crate::support::*;

const HIDDEN: usize = 256;
/// No whole number of panels, but whole blocks.
const INNER: [(WeightType, usize); 6] = [
    (WeightType::F32, 37),
    (WeightType::BF16, 20),
    (WeightType::Q8_0, 96),
    (WeightType::Q4_0, 32),
    (WeightType::Q4K, 256),
    (WeightType::Q6K, 256),
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

/// The matrices of each expert, rows, and the router's logits for them.
struct Case {
    experts: Vec<[WeightTensor; 3]>,
    x: Table,
    logits: Table,
    routing: Routing,
}

impl Case {
    fn new(dtype: WeightType, inner: usize, shape: Shape) -> Case {
        let mut random = Random(shape.rows as u64);
        let expert = |_| {
            [
                weights(dtype, inner, HIDDEN, &mut random),
                weights(dtype, inner, HIDDEN, &mut random),
                weights(dtype, HIDDEN, inner, &mut random),
            ]
        };
        let experts = (0..shape.experts).map(expert).collect();
        let routing = Routing { top_k: shape.top_k, score: Score::Softmax, normalize: true, scale: 1.0 };
        let mut logits = random.table(shape.rows, shape.experts).map(|x| 3.0 * x);
        // Some experts get no row, one gets many.
        for row in logits.values.chunks_exact_mut(shape.experts).skip(1).step_by(2) {
            row[0] = 9.0;
        }
        Case { experts, x: random.table(shape.rows, HIDDEN).map(|x| 2.0 * x), logits, routing }
    }

    fn experts(&self, ops: &Ops) -> Vec<Expert> {
        let expert = |[gate, up, down]: &[WeightTensor; 3]| Expert {
            gate: linear(ops, gate, None),
            up: linear(ops, up, None),
            down: linear(ops, down, None),
        };
        self.experts.iter().map(expert).collect()
    }

    fn run(&self, ops: &Ops, rows: std::ops::Range<usize>) -> Table {
        let (x, logits) = [&self.x, &self.logits].map(|it| it.part(rows.start, rows.len()).on(ops)).into();
        let assignments = ops.route(logits, &self.routing).unwrap();
        table(ops, ops.experts(&self.experts(ops), Activation::Silu, &x, &assignments).unwrap())
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
                let inner = ops.gated(gate, up, &x, Activation::Silu).unwrap();
                let out = table(ops, ops.linear(down, &inner).unwrap());
                sum.iter_mut().zip(&out.values).for_each(|(sum, out)| *sum += weight * out);
            }
            sums.extend(sum);
        }
        Table { dim: HIDDEN, values: sums }
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
        let cases = INNER.into_iter().flat_map(|inner| SHAPES.map(|shape| (inner, shape)));
        each(cases, |&((dtype, inner), shape)| {
            let case = Case::new(dtype, inner, shape);
            let all = 0..shape.rows;
            let found = same_on_all(&machines, |ops| case.run(ops, all.clone()))?;
            same("one by one", &found, &case.one_by_one(&machines[0]))?;
            // Alone, and in pieces.
            let pieces = [0..1, 1..shape.rows.min(8), shape.rows.min(8)..shape.rows];
            let pieces: Vec<_> = pieces.into_iter().filter(|rows| !rows.is_empty()).collect();
            let apart: Vec<Table> = pieces.into_iter().map(|rows| case.run(&machines[0], rows)).collect();
            same("in pieces", &found, &Table::cat(&apart))?;
            // candle multiplies quantized weights by bytes in its own way.
            let bound = if dtype.is_quantized() { 0.1 } else { 1e-4 };
            close("candle", &case.run(&candle(), all), &found, bound)
        });
    }
}

#[test]
fn no_rows_have_no_experts() {
    let case = Case::new(WeightType::Q8_0, 32, SHAPES[0]);
    for ops in [cpu(2), candle()] {
        assert!(case.run(&ops, 0..0).values.is_empty());
    }
}
