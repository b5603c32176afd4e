//! What is done to rows without a matrix: norms, rotations of heads, caps, selections.

use tallow::config::NormKind;
use tallow::kernels::{KvType, Norm, Ops};
use tallow::weights::WeightType;

use crate::support::*;

fn norm(ops: &Ops, kind: NormKind, eps: f64, weight: &[f32], bias: Option<&[f32]>) -> Norm {
    Norm { kind, eps, weight: vector(ops, weight), bias: bias.map(|bias| vector(ops, bias)) }
}

#[test]
fn norms_agree_with_candle() {
    let machines = machines(KvType::F32);
    // Rows, groups a row, length of a group.
    let shapes = [(1, 1, 1), (1, 1, 17), (2, 3, 20), (3, 1, 576), (40, 4, 64), (5, 2, 256), (300, 1, 100)];
    let kinds = [(NormKind::Rms, 1e-6, 2e-6), (NormKind::Layer, 1e-5, 4e-6)];
    let cases = shapes.into_iter().flat_map(|shape| kinds.map(|kind| (shape, kind)));
    let cases = cases.flat_map(|(shape, kind)| [(shape, kind, false), (shape, kind, true)]);
    each(cases, |&((rows, groups, len), (kind, eps, bound), biased)| {
        let mut random = Random(len as u64);
        // Away from zero, so that a mean that is not taken away is seen.
        let x = random.table(rows, groups * len).map(|x| 4.0 * x + 1.0);
        let (to, w, b) = (random.table(rows, groups * len), random.floats(len), random.floats(len));
        let norm = |ops: &Ops| norm(ops, kind, eps, &w, biased.then_some(&b));
        let alone = |ops: &Ops| table(ops, ops.norm(&norm(ops), &x.on(ops)).unwrap());
        let added = |ops: &Ops| table(ops, ops.norm_add(&norm(ops), &x.on(ops), to.on(ops)).unwrap());
        let y = same_on_all(&machines, alone)?;
        close("norm", &y, &alone(&candle()), bound)?;
        let sums = to.values.iter().zip(&y.values).map(|(a, b)| a + b).collect();
        same("norm_add", &same_on_all(&machines, added)?, &Table { dim: x.dim, values: sums })?;
        close("candle norm_add", &added(&candle()), &added(&machines[0]), bound)
    });
}

#[test]
fn products_of_rows_take_the_columns_that_they_are_told() {
    let machines = machines(KvType::F32);
    each([(1, 1, 1, 0), (3, 20, 64, 44), (300, 37, 100, 5)], |&(rows, dim, width, start)| {
        let mut random = Random(width as u64);
        let (x, by) = (random.table(rows, dim), random.table(rows, width));
        let product = |ops: &Ops| table(ops, ops.mul(x.on(ops), &by.on(ops), start).unwrap());
        let pairs = x.values.chunks(dim).zip(by.values.chunks(width));
        let values = pairs.flat_map(|(x, by)| x.iter().zip(&by[start..]).map(|(x, y)| x * y));
        let wanted = Table { dim, values: values.collect() };
        same("mul", &same_on_all(&machines, product)?, &wanted)?;
        same("candle mul", &product(&candle()), &wanted)
    });
}

#[test]
fn rows_of_a_matrix_that_is_not_in_memory() {
    for dtype in [WeightType::F32, WeightType::BF16, WeightType::Q8_0, WeightType::Q6K] {
        let w = weights(dtype, 9, 256, &mut Random(5));
        for ops in [cpu(3), candle()] {
            let matrix = ops.mapped_matrix(&w).unwrap();
            let ids = [8, 0, 3, 3];
            let rows = ids.iter().flat_map(|&id| w.to_f32()[id as usize * 256..][..256].to_vec());
            let wanted: Vec<f32> = rows.map(|x| 2.0 * x).collect();
            assert_eq!(ops.into_vec(ops.mapped_rows(&matrix, &ids, 2.0).unwrap()).unwrap(), wanted);
            let error = ops.mapped_rows(&matrix, &[9], 2.0).err().unwrap();
            assert!(error.message().contains("token id 9"), "{error}");
            assert_eq!(ops.mapped_rows(&matrix, &[], 2.0).unwrap().dims(), (0, 256));
        }
    }
}

/// The variance is that of what is left without the mean: `E[x^2] - E[x]^2` has no digits left here.
#[test]
fn layer_norm_of_a_large_mean_keeps_its_digits() {
    let x = Random(4).table(5, 512).map(|x| x + 1000.0);
    let exact = |row: &[f32]| {
        let moment =
            |f: &dyn Fn(f64) -> f64| row.iter().map(|&x| f(x.into())).sum::<f64>() / row.len() as f64;
        let mean = moment(&|x| x);
        let scale = (moment(&|x| (x - mean).powi(2)) + 1e-5).sqrt();
        row.iter().map(|&x| ((f64::from(x) - mean) / scale) as f32).collect::<Vec<_>>()
    };
    let wanted = Table { dim: x.dim, values: x.values.chunks(x.dim).flat_map(exact).collect() };
    for ops in [cpu(2), candle()] {
        let norm = norm(&ops, NormKind::Layer, 1e-5, &[1.0; 512], None);
        let found = table(&ops, ops.norm(&norm, &x.on(&ops)).unwrap());
        close(&ops.describe(), &found, &wanted, 0.01).unwrap();
    }
}

/// Rows, heads, head_dim, rotated dimensions.
const HEADS: [(usize, usize, usize, usize); 8] = [
    (1, 1, 2, 2),
    (3, 2, 20, 20),
    (5, 9, 64, 64),
    (4, 3, 80, 32),
    (2, 3, 100, 38),
    (33, 4, 256, 256),
    (2, 2, 64, 0),
    (129, 1, 64, 16),
];

#[test]
fn heads_are_normed_and_turned_as_candle_does() {
    let machines = machines(KvType::F32);
    let cases = HEADS.into_iter().flat_map(|shape| [(shape, false), (shape, true)]);
    each(cases, |&((rows, heads, head_dim, rotated), normed)| {
        let mut random = Random(9);
        let (x, w) = (random.table(rows, heads * head_dim), random.floats(head_dim));
        let frequencies: Vec<f32> =
            (0..rotated / 2).map(|i| 1e4f32.powf(-2.0 * i as f32 / rotated as f32)).collect();
        let positions: Vec<u32> = (0..rows as u32).map(|i| i * 997).collect();
        let turned = |ops: &Ops| {
            let angles = ops.rope_table(&frequencies, 1.25, &positions).unwrap();
            assert_eq!(angles.rotated(), rotated);
            let norm = normed.then(|| norm(ops, NormKind::Rms, 1e-6, &w, None));
            table(ops, ops.heads(x.on(ops), head_dim, norm.as_ref(), Some(&angles)).unwrap())
        };
        let y = same_on_all(&machines, turned)?;
        close("candle", &y, &turned(&candle()), if normed { 3e-6 } else { 1e-6 })?;
        // The norm is that of `norm`; position 0 is turned by nothing and scaled by the factor; what is not
        // rotated is not scaled.
        let norm = norm(&machines[0], NormKind::Rms, 1e-6, &w, None);
        let only = |norm| {
            let x = machines[0].heads(x.on(&machines[0]), head_dim, norm, None).unwrap();
            table(&machines[0], x)
        };
        let before = if normed { only(Some(&norm)) } else { only(None) };
        if normed {
            let wanted = machines[0].norm(&norm, &x.on(&machines[0])).unwrap();
            same("norm of heads", &before, &table(&machines[0], wanted))?;
        }
        let factor = |d: usize| if d % head_dim < rotated { 1.25 } else { 1.0 };
        let first = before.part(0, 1);
        let wanted = first.values.iter().enumerate().map(|(d, x)| x * factor(d)).collect();
        same("position 0", &y.part(0, 1), &Table { dim: first.dim, values: wanted })
    });
}

/// Weights of all heads in one vector are those of each head's own norm.
#[test]
fn heads_have_norms_of_their_own() {
    let machines = machines(KvType::F32);
    each(HEADS, |&(rows, heads, head_dim, _)| {
        let mut random = Random(10);
        let (x, w) = (random.table(rows, heads * head_dim), random.floats(heads * head_dim));
        let found = |ops: &Ops| {
            let norm = norm(ops, NormKind::Layer, 1e-5, &w, None);
            table(ops, ops.heads(x.on(ops), head_dim, Some(&norm), None).unwrap())
        };
        let y = same_on_all(&machines, found)?;
        close("candle", &y, &found(&candle()), 3e-6)?;
        let ops = &machines[0];
        let of_head = |(x, w): (&[f32], &[f32])| {
            let alone = Table { dim: head_dim, values: x.to_vec() };
            let norm = norm(ops, NormKind::Layer, 1e-5, w, None);
            table(ops, ops.norm(&norm, &alone.on(ops)).unwrap()).values
        };
        let weights = w.chunks_exact(head_dim).cycle();
        let values = x.values.chunks_exact(head_dim).zip(weights).flat_map(of_head).collect();
        same("norms of each head", &y, &Table { dim: x.dim, values })
    });
}

#[test]
fn caps_and_selections_agree_with_candle() {
    let machines = machines(KvType::F32);
    // The last is logits: rows as long as the pieces that threads share, and longer.
    each([(1, 1), (7, 33), (300, 100), (2, 16384), (3, 16385)], |&(rows, dim)| {
        let x = Random(dim as u64).table(rows, dim).map(|x| 40.0 * x);
        let capped = |ops: &Ops| table(ops, ops.soft_cap(x.on(ops), 12.5).unwrap());
        close("soft_cap", &same_on_all(&machines, capped)?, &capped(&candle()), 1e-6)?;
        let some: Vec<u32> = (0..rows as u32).rev().step_by(2).chain([0]).collect();
        let selected = |ops: &Ops| table(ops, ops.select_rows(&x.on(ops), &some).unwrap());
        let wanted: Vec<Table> = some.iter().map(|&row| x.part(row as usize, 1)).collect();
        same("select_rows", &same_on_all(&machines, selected)?, &Table::cat(&wanted))?;
        same("candle select_rows", &selected(&candle()), &Table::cat(&wanted))
    });
}

#[test]
fn vectors_are_f32_with_what_is_added() {
    let mut w = weights(WeightType::BF16, 1, 33, &mut Random(5));
    for shape in [vec![1, 33], vec![33]] {
        w.shape = shape;
        for ops in [cpu(1), candle()] {
            // Seen through a norm of zeros, which is its bias.
            let (one, bias) = (vector(&ops, &[1.0; 33]), ops.vector(&w, 1.0).unwrap());
            assert_eq!((bias.len(), bias.is_empty()), (33, false));
            let norm = Norm { kind: NormKind::Layer, eps: 1e-5, weight: one, bias: Some(bias) };
            let zeros = Table { dim: 33, values: vec![0.0; 33] };
            let found = table(&ops, ops.norm(&norm, &zeros.on(&ops)).unwrap());
            let wanted: Vec<f32> = w.to_f32().iter().map(|x| x + 1.0).collect();
            assert_eq!(found.values, wanted, "{ops:?}");
        }
    }
}
