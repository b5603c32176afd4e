//! What keeps a state instead of keys and values: convolutions and scans against f64 arithmetic, and
//! themselves: whatever steps a text is cut into, and whatever lies beside it, the bits must be the same.

use tallow::config::NormKind;
use tallow::kernels::{
    CausalConv, ConvForm, GatedNorm, KvCache, KvLayout, KvType, Norm, Ops, Scan, ScanRows, ScanRule,
};
use tallow::step::{StateTable, StateWrite, Step};

use crate::support::*;

/// What is computed, in sizes.
#[derive(Clone, Copy, Debug)]
enum Layer {
    Conv { form: ConvForm, width: usize, kernel: usize, bias: bool },
    Scan { delta: bool, tiled: bool, groups: usize, heads: usize, key_dim: usize, value_dim: usize },
}

use Layer::{Conv, Scan as Scanned};

const LAYERS: &[Layer] = &[
    Conv { form: ConvForm::Gated, width: 20, kernel: 3, bias: true },
    Conv { form: ConvForm::Gated, width: 16, kernel: 1, bias: false },
    Conv { form: ConvForm::Silu, width: 37, kernel: 4, bias: false },
    Conv { form: ConvForm::Silu, width: 64, kernel: 7, bias: true },
    Scanned { delta: true, tiled: false, groups: 2, heads: 4, key_dim: 8, value_dim: 8 },
    Scanned { delta: true, tiled: true, groups: 2, heads: 6, key_dim: 8, value_dim: 24 },
    Scanned { delta: true, tiled: false, groups: 1, heads: 3, key_dim: 16, value_dim: 40 },
    Scanned { delta: true, tiled: false, groups: 1, heads: 1, key_dim: 128, value_dim: 128 },
    Scanned { delta: false, tiled: false, groups: 1, heads: 3, key_dim: 16, value_dim: 12 },
    Scanned { delta: false, tiled: false, groups: 2, heads: 6, key_dim: 20, value_dim: 64 },
];

/// Numbers of a state beside those of the layer: others have their part of it.
const OTHERS: usize = 5;

/// A layer's weights, and the inputs of two texts.
struct Case {
    layer: Layer,
    weights: Vec<Vec<f32>>,
    texts: [Vec<Table>; 2],
}

/// Rows of the texts.
const LENGTHS: [usize; 2] = [23, 9];

impl Case {
    fn new(layer: Layer) -> Self {
        let mut random = Random(7);
        let (weights, dims) = match layer {
            Conv { form, width, kernel, .. } => {
                let parts = if form == ConvForm::Gated { 3 } else { 1 };
                (vec![random.floats(width * kernel), random.floats(width)], vec![parts * width])
            }
            Scanned { delta, groups, heads, key_dim, value_dim, .. } => {
                let a = random.floats(heads).iter().map(|x| -2.0f32.powf(x * 2.0)).collect();
                let dims = vec![2 * groups * key_dim + heads * value_dim, heads, heads];
                let dims = if delta { dims } else { dims[..2].to_vec() };
                (vec![a, random.floats(heads), random.floats(heads)], dims)
            }
        };
        let texts =
            LENGTHS.map(|len| dims.iter().map(|&dim| random.table(len, dim).map(|x| 2.0 * x)).collect());
        Case { layer, weights, texts }
    }

    fn conv(&self, ops: &Ops) -> CausalConv {
        let Conv { form, kernel, bias, .. } = self.layer else { panic!("{:?}", self.layer) };
        let bias = bias.then(|| vector(ops, &self.weights[1]));
        CausalConv { form, kernel, taps: vector(ops, &self.weights[0]), bias }
    }

    fn scan(&self, ops: &Ops) -> Scan {
        let Scanned { delta, tiled, groups, heads, key_dim, value_dim } = self.layer else {
            panic!("{:?}", self.layer)
        };
        let [a, dt_bias, skip] = [0, 1, 2].map(|at| vector(ops, &self.weights[at]));
        let rule = match delta {
            true => ScanRule::Delta,
            false => ScanRule::Mamba2 { dt_limits: LIMITS, skip },
        };
        Scan { rule, groups, heads, tiled, key_dim, value_dim, a, dt_bias }
    }

    fn state_len(&self, ops: &Ops) -> usize {
        match self.layer {
            Conv { .. } => self.conv(ops).state_len(),
            Scanned { .. } => self.scan(ops).state_len(),
        }
    }

    fn cache(&self, ops: &Ops, slots: usize) -> KvCache {
        let layout = KvLayout::new(&[]).with_states(vec![self.state_len(ops) + OTHERS]);
        ops.kv_cache(&layout, 1).unwrap().with_slots(slots, ops.device()).unwrap()
    }

    /// One step over parts of texts.
    fn step(&self, ops: &Ops, cache: &KvCache, spans: &[SpanOf]) -> Table {
        let mut step = Step::default();
        for span in spans {
            let state = StateTable { read: span.read, writes: span.writes.clone() };
            step.push_span(&vec![0; span.rows], span.from, vec![], state);
        }
        let inputs: Vec<Table> = (0..self.texts[0].len())
            .map(|input| {
                let parts = spans.iter().map(|span| self.texts[span.text][input].part(span.from, span.rows));
                Table::cat(&parts.collect::<Vec<_>>())
            })
            .collect();
        let step = ops.checked_step(&step, cache).unwrap();
        let x = inputs[0].on(ops);
        let y = match self.layer {
            Conv { .. } => ops.causal_conv(&x, &self.conv(ops), cache, 0, &step),
            Scanned { .. } => {
                let (dt, beta) = (inputs[1].on(ops), inputs.get(2).map(|beta| beta.on(ops)));
                let rows = ScanRows { x, dt: &dt, beta: beta.as_ref() };
                ops.scan(rows, &self.scan(ops), cache, 0, &step)
            }
        };
        table(ops, y.unwrap())
    }

    /// A whole text in one step.
    fn whole(&self, ops: &Ops, text: usize) -> Table {
        let rows = LENGTHS[text];
        self.step(ops, &self.cache(ops, 1), &[SpanOf { text, from: 0, rows, read: None, writes: vec![] }])
    }

    fn exact(&self, text: usize) -> Table {
        match self.layer {
            Conv { form, width, kernel, bias } => self.exact_conv(text, (form, width, kernel, bias)),
            Scanned { .. } => self.exact_scan(text),
        }
    }

    fn exact_conv(&self, text: usize, (form, width, kernel, bias): (ConvForm, usize, usize, bool)) -> Table {
        let x = &self.texts[text][0];
        let number = |row: usize, at: usize| f64::from(x.values[row * x.dim + at]);
        let input = |row: usize, channel: usize| match form {
            ConvForm::Gated => number(row, channel) * number(row, 2 * width + channel),
            ConvForm::Silu => number(row, channel),
        };
        let mut values = Vec::new();
        for row in 0..x.rows() {
            for channel in 0..width {
                let mut sum = if bias { f64::from(self.weights[1][channel]) } else { 0.0 };
                for tap in (0..kernel).filter(|tap| row + tap + 1 >= kernel) {
                    let weight = f64::from(self.weights[0][tap * width + channel]);
                    sum += weight * input(row + tap + 1 - kernel, channel);
                }
                values.push(match form {
                    ConvForm::Gated => sum * number(row, width + channel),
                    ConvForm::Silu => sum / (1.0 + (-sum).exp()),
                } as f32);
            }
        }
        Table { dim: width, values }
    }

    fn exact_scan(&self, text: usize) -> Table {
        let Scanned { delta, tiled, groups, heads, key_dim, value_dim } = self.layer else { unreachable!() };
        let (keys, inner) = (groups * key_dim, heads * value_dim);
        let [q_at, k_at, v_at] = if delta { [0, keys, 2 * keys] } else { [inner + keys, inner, 0] };
        let inputs = &self.texts[text];
        let row_of = |input: usize, row: usize| -> Vec<f64> {
            let table = &inputs[input];
            table.values[row * table.dim..(row + 1) * table.dim].iter().map(|&x| x.into()).collect()
        };
        let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
        let mut values = vec![];
        let mut states = vec![vec![vec![0.0; value_dim]; key_dim]; heads];
        for row in 0..inputs[0].rows() {
            let (x, dt) = (row_of(0, row), row_of(1, row));
            for (head, state) in states.iter_mut().enumerate() {
                let group = if tiled { head % groups } else { head / (heads / groups) } * key_dim;
                let unit = |at: usize| -> Vec<f64> {
                    let x = &x[at + group..at + group + key_dim];
                    let length = (x.iter().map(|x| x * x).sum::<f64>() + 1e-6).sqrt();
                    x.iter().map(|x| if delta { x / length } else { *x }).collect()
                };
                let (q, k) = (unit(q_at), unit(k_at));
                let v = &x[v_at + head * value_dim..][..value_dim];
                let weight = |at: usize| f64::from(self.weights[at][head]);
                let mut t = (dt[head] + weight(1)).exp().ln_1p();
                if !delta {
                    t = t.clamp(LIMITS[0].into(), LIMITS[1].into());
                }
                let decay = (t * weight(0)).exp();
                for column in 0..value_dim {
                    let old: f64 = (0..key_dim).map(|i| decay * state[i][column] * k[i]).sum();
                    let change = match delta {
                        true => sigmoid(row_of(2, row)[head]) * (v[column] - old),
                        false => t * v[column],
                    };
                    for i in 0..key_dim {
                        state[i][column] = decay * state[i][column] + k[i] * change;
                    }
                    let y: f64 = (0..key_dim).map(|i| state[i][column] * q[i]).sum();
                    values.push(match delta {
                        true => y / (key_dim as f64).sqrt(),
                        false => y + weight(2) * v[column],
                    } as f32);
                }
            }
        }
        Table { dim: inner, values }
    }
}

/// Such that some steps of Mamba-2 are held at either end.
const LIMITS: [f32; 2] = [0.2, 1.5];

/// Rows of one text in a step.
struct SpanOf {
    text: usize,
    from: usize,
    rows: usize,
    read: Option<u32>,
    writes: Vec<StateWrite>,
}

fn write(rows: usize, slot: u32) -> Vec<StateWrite> {
    vec![StateWrite { rows, slot }]
}

#[test]
fn layers_agree_with_f64_and_with_candle() {
    let machines = machines(KvType::F32);
    each(LAYERS.iter().copied(), |&layer| {
        let case = Case::new(layer);
        for text in [0, 1] {
            let y = same_on_all(&machines, |ops| case.whole(ops, text))?;
            close("f64", &y, &case.exact(text), 2e-6)?;
            close("candle", &case.whole(&candle(), text), &case.exact(text), 2e-6)?;
        }
        Ok(())
    });
}

/// Both texts side by side in steps of other lengths, with drafts that are thrown away, states that change
/// places, and snapshots.
#[test]
fn no_cut_changes_a_bit() {
    let machines = machines(KvType::F32);
    each(LAYERS.iter().copied(), |&layer| {
        let case = Case::new(layer);
        for ops in machines.iter().chain([&candle()]) {
            let (mut parts, cache) = ([vec![], vec![]], case.cache(ops, 6));
            let mut run = |spans: &[SpanOf], kept: &[usize]| {
                let y = case.step(ops, &cache, spans);
                let mut from = 0;
                for (span, kept) in spans.iter().zip(kept) {
                    parts[span.text].push(y.part(from, *kept));
                    from += span.rows;
                }
            };
            // The first text begins, and leaves a snapshot in slot 2 on the way.
            let writes = [write(2, 2), write(4, 0)].concat();
            run(&[SpanOf { text: 0, from: 0, rows: 4, read: None, writes }], &[4]);
            // Both: slot 0 is read by the first and written by the second.
            let first = SpanOf { text: 0, from: 4, rows: 1, read: Some(0), writes: write(1, 1) };
            let second = SpanOf { text: 1, from: 0, rows: 3, read: None, writes: write(3, 0) };
            run(&[second, first], &[3, 1]);
            // They change places.
            let first = SpanOf { text: 0, from: 5, rows: 7, read: Some(1), writes: write(7, 0) };
            let second = SpanOf { text: 1, from: 3, rows: 1, read: Some(0), writes: write(1, 1) };
            run(&[first, second], &[7, 1]);
            // Drafts: a state after each row, one of them where the first was read; two rows are right.
            let writes = [write(1, 3), write(2, 0), write(4, 4)].concat();
            let first = SpanOf { text: 0, from: 12, rows: 4, read: Some(0), writes };
            run(&[first], &[2]);
            let first = SpanOf { text: 0, from: 14, rows: 9, read: Some(0), writes: vec![] };
            let second = SpanOf { text: 1, from: 4, rows: 5, read: Some(1), writes: vec![] };
            run(&[first, second], &[9, 5]);
            // Two go on from the snapshot at the same time.
            let again = || SpanOf { text: 0, from: 2, rows: 21, read: Some(2), writes: vec![] };
            let y = case.step(ops, &cache, &[again(), again()]);
            let what = ops.describe();
            for (text, parts) in parts.iter().enumerate() {
                let whole = case.whole(ops, text);
                same(&format!("{what}, text {text}"), &Table::cat(parts), &whole)?;
            }
            let whole = case.whole(ops, 0).part(2, 21);
            same(&format!("{what}, snapshot"), &y, &Table::cat(&[whole.clone(), whole]))?;
        }
        Ok(())
    });
}

/// Each layer writes its own part of a state.
#[test]
fn the_rest_of_a_state_stays() {
    each(LAYERS.iter().copied(), |&layer| {
        let case = Case::new(layer);
        for ops in [cpu(2), candle()] {
            let cache = case.cache(&ops, 2);
            let len = case.state_len(&ops);
            let ones = 1f32.to_le_bytes().repeat(len + OTHERS);
            cache.write_state(1, &ones).unwrap();
            case.step(&ops, &cache, &[SpanOf { text: 0, from: 0, rows: 3, read: None, writes: write(3, 1) }]);
            let mut bytes = Vec::new();
            cache.read_state(1, &mut bytes).unwrap();
            let others = match layer {
                Conv { .. } => &bytes[4 * len..],
                Scanned { .. } => &bytes[..4 * OTHERS],
            };
            let own = bytes.len() - others.len();
            if others != &ones[..4 * OTHERS] || own != 4 * len || (len > 0 && bytes == ones) {
                return Err(format!("{}: {bytes:?}", ops.describe()));
            }
        }
        Ok(())
    });
}

#[test]
fn gated_norms_agree_with_f64() {
    let machines = machines(KvType::F32);
    let sigmoid = |x: f64| 1.0 / (1.0 + (-x).exp());
    let shapes = [(1, 1, 1), (3, 4, 20), (40, 8, 64), (2, 37, 1)];
    each(shapes, |&(rows, heads, dim)| {
        let mut random = Random(dim as u64);
        let [x, gate] = [(); 2].map(|()| random.table(rows, heads * dim).map(|x| 6.0 * x));
        for (shared, gate_first) in [(true, false), (false, true), (false, false)] {
            let weight = random.floats(if shared { dim } else { heads * dim });
            let run = |ops: &Ops| {
                let weight = vector(ops, &weight);
                let norm = Norm { kind: NormKind::Rms, eps: 1e-5, weight, bias: None };
                let gated = GatedNorm { norm, groups: heads, gate_first };
                table(ops, ops.gated_norm(x.on(ops), &gate.on(ops), &gated).unwrap())
            };
            let mut values = Vec::new();
            for (number, (x, gate)) in x.values.chunks(dim).zip(gate.values.chunks(dim)).enumerate() {
                let gates: Vec<f64> = gate.iter().map(|&z| f64::from(z) * sigmoid(z.into())).collect();
                let inner = |at: usize| f64::from(x[at]) * if gate_first { gates[at] } else { 1.0 };
                let mean = (0..dim).map(|at| inner(at).powi(2)).sum::<f64>() / dim as f64;
                values.extend((0..dim).map(|at| {
                    let weight = weight[(number % heads * dim + at) % weight.len()];
                    let y = inner(at) / (mean + f64::from(1e-5f32)).sqrt() * f64::from(weight);
                    (y * if gate_first { 1.0 } else { gates[at] }) as f32
                }));
            }
            let exact = Table { dim: heads * dim, values };
            let what = format!("norm, weights shared: {shared}, gate first: {gate_first}");
            close(&what, &same_on_all(&machines, run)?, &exact, 2e-6)?;
            close(&format!("candle {what}"), &run(&candle()), &exact, 2e-6)?;
        }
        Ok(())
    });
}
