//! Times single kernels on one thread: `make bench-kernels`, or `cargo bench -- "product Q4_K"` for some of
//! them. criterion says what has changed since the last time. What they reach of the machine's limits is
//! printed by `cargo test --release --test kernels speed -- --ignored --nocapture`.

#[allow(dead_code)] // The tests use all of it.
#[path = "../tests/kernels/support.rs"]
mod support;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use support::{Random, linear, vector, weights};
use tallow::config::NormKind;
use tallow::kernels::{
    Activation, Attention, CausalConv, ConvForm, KvLayout, KvShape, KvType, Norm, Ops, Scan, ScanRows,
    ScanRule,
};
use tallow::step::{PAGE, StateTable, StateWrite, Step};
use tallow::weights::WeightType;

/// Rows of a step: an answer, a batch of them, a prompt.
const ROWS: [usize; 3] = [1, 32, 512];

fn ops() -> Ops {
    Ops::cpu(1, KvType::BF16).unwrap()
}

/// Of rows that are bytes already. Operations: a product and its sum are two.
fn products(c: &mut Criterion) {
    let (ops, mut random, n, k) = (ops(), Random(1), 1536, 768);
    for ty in WeightType::ALL {
        let mut group = c.benchmark_group(format!("product {}", ty.name()));
        let linear = linear(&ops, &weights(ty, n, k, &mut random), None);
        for rows in ROWS {
            let x = random.table(rows, k).on(&ops);
            group.throughput(Throughput::Elements(2 * (rows * n * k) as u64));
            let product = |b: &mut criterion::Bencher<'_>| b.iter(|| ops.linear(&linear, &x).unwrap());
            group.bench_function(BenchmarkId::from_parameter(rows), product);
        }
    }
}

/// Gate and up together, and rows that become bytes first.
fn gated(c: &mut Criterion) {
    let (ops, mut random, n, k) = (ops(), Random(2), 1536, 768);
    let mut group = c.benchmark_group("quantize, gate and up Q4_K");
    let [gate, up] = [(); 2].map(|()| linear(&ops, &weights(WeightType::Q4K, n, k, &mut random), None));
    for rows in ROWS {
        let x = random.table(rows, k);
        group.throughput(Throughput::Elements(4 * (rows * n * k) as u64));
        group.bench_function(BenchmarkId::from_parameter(rows), |b| {
            let fresh = || x.on(&ops);
            let gated = |x| ops.gated(&gate, &up, &x, Activation::Silu).unwrap();
            b.iter_batched(fresh, gated, criterion::BatchSize::LargeInput);
        });
    }
}

/// Rows after 1024 positions, nine heads of 64 that share three keys. Operations as above.
fn attention(c: &mut Criterion) {
    let (ops, mut random, before) = (ops(), Random(3), 1024);
    let shape = KvShape { kv_heads: 3, head_dim: 64 };
    let a = Attention {
        heads: 9,
        kv_heads: 3,
        head_dim: 64,
        scale: 0.125,
        causal: true,
        window: None,
        soft_cap: None,
        sinks: None,
    };
    let mut group = c.benchmark_group("attention after 1024");
    for rows in ROWS {
        let len = before + rows;
        let pages: Vec<u32> = (0..len.div_ceil(PAGE) as u32).collect();
        let cache = ops.kv_cache(&KvLayout::single(&[shape]), pages.len()).unwrap();
        let (mut history, mut step) = (Step::default(), Step::default());
        history.push(&vec![0; len], 0, pages.clone());
        step.push(&vec![0; rows], before, pages);
        let [keys, values] = [(); 2].map(|()| random.table(len, shape.width()).on(&ops));
        ops.kv_write(&cache, 0, &keys, &values, &ops.checked_step(&history, &cache).unwrap()).unwrap();
        let q = random.table(rows, a.heads * a.head_dim).on(&ops);
        let pairs: usize = (before + 1..=len).sum();
        group.throughput(Throughput::Elements(4 * (pairs * a.heads * a.head_dim) as u64));
        let attend = |b: &mut criterion::Bencher<'_>| {
            let step = ops.checked_step(&step, &cache).unwrap();
            b.iter(|| ops.attention(&q, &cache, 0, &step, &a).unwrap());
        };
        group.bench_function(BenchmarkId::from_parameter(rows), attend);
    }
}

/// A norm and a rotation of 512 rows. Elements are numbers.
fn rows(c: &mut Criterion) {
    let (ops, mut random, rows, dim) = (ops(), Random(4), 512, 576);
    let mut group = c.benchmark_group("512 rows of 576");
    group.throughput(Throughput::Elements((rows * dim) as u64));
    let x = random.table(rows, dim);
    let on_machine = x.on(&ops);
    let weight = vector(&ops, &random.floats(dim));
    let norm = Norm { kind: NormKind::Rms, eps: 1e-5, weight, bias: None };
    group.bench_function("norm", |b| b.iter(|| ops.norm(&norm, &on_machine).unwrap()));
    let frequencies: Vec<f32> = (0..32).map(|i| 1e4f32.powf(i as f32 / -32.0)).collect();
    let positions: Vec<u32> = (0..rows as u32).collect();
    let table = ops.rope_table(&frequencies, 1.0, &positions).unwrap();
    group.bench_function("rope", |b| {
        let turn = |x| ops.heads(x, 64, None, Some(&table)).unwrap();
        b.iter_batched(|| x.on(&ops), turn, criterion::BatchSize::LargeInput);
    });
}

/// The recurrent scans of a layer beside its projections, which a prompt's scan must not outlast: Gated
/// DeltaNet of Qwen3.5-0.8B and Mamba-2 of Granite-4-h-350M. Elements are numbers of the state and row.
fn scans(c: &mut Criterion) {
    let (ops, mut random) = (ops(), Random(5));
    // Width of the model, groups, heads, lengths of keys and values.
    let layers = [("delta net", 1024, 16, 16, 128, 128), ("mamba 2", 768, 1, 48, 128, 32)];
    for (name, hidden, groups, heads, key_dim, value_dim) in layers {
        let delta = name == "delta net";
        let [a, dt_bias, skip] =
            [(); 3].map(|()| vector(&ops, &random.table(1, heads).map(|x| x - 1.5).values));
        let rule = match delta {
            true => ScanRule::Delta,
            false => ScanRule::Mamba2 { dt_limits: [0.0, f32::INFINITY], skip },
        };
        let scan = Scan { rule, groups, heads, tiled: false, key_dim, value_dim, a, dt_bias };
        let (dim, width) = (2 * groups * key_dim + heads * value_dim, heads * value_dim);
        let taps = vector(&ops, &random.floats(4 * dim));
        let conv = CausalConv { form: ConvForm::Silu, kernel: 4, taps, bias: None };
        let layout = KvLayout::new(&[]).with_states(vec![conv.state_len() + scan.state_len()]);
        let cache = ops.kv_cache(&layout, 1).unwrap().with_slots(2, ops.device()).unwrap();
        let weights = |n, k, random: &mut Random| linear(&ops, &weights(WeightType::Q4K, n, k, random), None);
        let into = weights(dim + width, hidden, &mut random);
        let out = weights(hidden, width, &mut random);
        let mut group = c.benchmark_group(name);
        for rows in ROWS {
            let mut step = Step::default();
            let writes = vec![StateWrite { rows, slot: 0 }];
            step.push_span(&vec![0; rows], 8, vec![], StateTable { read: Some(0), writes });
            let step = ops.checked_step(&step, &cache).unwrap();
            let x = random.table(rows, dim);
            let [dt, beta] = [(); 2].map(|()| random.table(rows, heads).on(&ops));
            let fresh = || x.on(&ops);
            let (from, inner) = (random.table(rows, hidden).on(&ops), random.table(rows, width).on(&ops));
            group.throughput(Throughput::Elements((rows * scan.state_len()) as u64));
            group.bench_function(BenchmarkId::new("scan", rows), |b| {
                let walk = |x| {
                    let rows = ScanRows { x, dt: &dt, beta: delta.then_some(&beta) };
                    ops.scan(rows, &scan, &cache, 0, &step).unwrap()
                };
                b.iter_batched(fresh, walk, criterion::BatchSize::LargeInput);
            });
            group.bench_function(BenchmarkId::new("conv", rows), |b| {
                let x = fresh();
                b.iter(|| ops.causal_conv(&x, &conv, &cache, 0, &step).unwrap());
            });
            group.bench_function(BenchmarkId::new("projections", rows), |b| {
                b.iter(|| (ops.linear(&into, &from).unwrap(), ops.linear(&out, &inner).unwrap()));
            });
        }
    }
}

criterion_group!(benches, products, gated, attention, rows, scans);
criterion_main!(benches);
