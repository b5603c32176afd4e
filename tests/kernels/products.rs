//! Single products: against f64, and against themselves.
//!
//! Quantized weights are multiplied by activations that were rounded to bytes. That rounding is made here
//! once more, so that what is left between the two is f32 arithmetic alone; and then the rounding itself is
//! held to its bound.

use tallow::kernels::{KvType, Linear, Ops};
use tallow::weights::{WeightTensor, WeightType};

use crate::support::*;

/// Rows, n and k. Few rows are met as tiles of 12, 8, 4, 2 and 1, the 40 as tiles of 6, 3, 2 and 1 (floats:
/// 12, 4, 2, 1); n in panels of 16 that are full and not.
const SHAPES: [(usize, usize, usize); 10] = [
    (1, 1, 32),
    (1, 7, 64),
    (3, 5, 96),
    (2, 33, 256),
    (4, 64, 576),
    (17, 16, 512),
    (13, 70, 512),
    (40, 17, 256),
    (8, 130, 768),
    (5, 9, 1536),
];

fn typed<C: Copy>(cases: &[C], k: impl Fn(C) -> usize) -> Vec<(WeightType, C)> {
    let all = WeightType::ALL.into_iter().flat_map(|ty| cases.iter().map(move |&case| (ty, case)));
    all.filter(|&(ty, case)| k(case).is_multiple_of(ty.block_len())).collect()
}

fn multiply(ops: &Ops, w: &WeightTensor, x: &Table) -> Table {
    table(ops, ops.linear(&linear(ops, w, None), &x.on(ops)).unwrap())
}

/// Numbers in f64, as products take them: rounded to bytes in blocks of 32 where the weights take bytes.
fn taken(ty: WeightType, x: &Table) -> Vec<f64> {
    if !ty.takes_bytes() {
        return x.values.iter().map(|&x| f64::from(x)).collect();
    }
    let block = |x: &[f32], limit: f32| {
        let greatest = greatest(x, limit);
        // Smaller numbers are taken for zeros: their scale has no inverse in f32.
        let some = greatest >= 1e-36;
        let (scale, inverse) = if some { (greatest / 127.0, 127.0 / greatest) } else { (0.0, 0.0) };
        let number = |&x: &f32| match x.abs() > limit {
            true => f64::from(x),
            false => f64::from(scale) * f64::from((x * inverse).round_ties_even()),
        };
        x.iter().map(number).collect::<Vec<_>>()
    };
    let row = |x: &[f32]| {
        let limit = limit(x);
        x.chunks_exact(32).flat_map(|x| block(x, limit)).collect::<Vec<_>>()
    };
    x.values.chunks_exact(x.dim).flat_map(row).collect()
}

/// The greatest size up to `limit`.
fn greatest(x: &[f32], limit: f32) -> f32 {
    x.iter().map(|x| x.abs()).filter(|&x| x <= limit).fold(0.0, f32::max)
}

/// Greater numbers are multiplied as floats. (None is near it here: it need not be summed as the kernels do.)
fn limit(row: &[f32]) -> f32 {
    OUTLIER * (row.iter().map(|x| x * x).sum::<f32>() / row.len() as f32).sqrt()
}

/// Rows with a great number here and there, not in the same blocks.
fn uneven(random: &mut Random, rows: usize, k: usize) -> Table {
    let x = random.table(rows, k);
    let great = |at: usize| (at / k + at % k / 32).is_multiple_of(5) && at % 32 == at / k % 32;
    Table {
        dim: k,
        values: x.values.iter().enumerate().map(|(at, x)| if great(at) { 100.0 + x } else { *x }).collect(),
    }
}

/// What an element of a product should be.
struct Element {
    /// With the activations as they are taken.
    value: f64,
    /// The sum of the sizes of the terms, which is what f32 rounds in proportion to.
    size: f64,
    /// With the activations as they are.
    exact: f64,
    /// How far these two may be apart: an activation is off by half a step, its block's greatest / 254.
    apart: f64,
}

fn elements(w: &WeightTensor, x: &Table) -> Vec<Element> {
    let (k, rows) = (w.shape[1], w.to_f32());
    let taken = taken(w.dtype, x);
    let quantized = w.dtype.takes_bytes();
    let of_row = |(x, taken)| {
        let columns = rows.chunks_exact(k).map(|w| element(quantized, x, taken, w));
        columns.collect::<Vec<_>>()
    };
    x.values.chunks_exact(k).zip(taken.chunks_exact(k)).flat_map(of_row).collect()
}

/// A row `x`, as it is and as it is taken, times a row of the matrix.
fn element(quantized: bool, x: &[f32], taken: &[f64], w: &[f32]) -> Element {
    let terms: Vec<f64> = taken.iter().zip(w).map(|(x, &w)| x * f64::from(w)).collect();
    let exact = x.iter().zip(w).map(|(&x, &w)| f64::from(x) * f64::from(w)).sum();
    let (mut size, mut apart) = (terms.iter().map(|term| term.abs()).sum(), 0.0);
    if quantized {
        size = taken.chunks(16).zip(w.chunks(16)).map(|(x, w)| group_size(x, w)).sum();
        let limit = limit(x);
        for (x, w) in x.chunks(32).zip(w.chunks(32)) {
            let step = f64::from(greatest(x, limit)) / 254.0;
            apart += step * w.iter().map(|w| f64::from(w.abs())).sum::<f64>();
        }
    }
    Element { value: terms.iter().sum(), size, exact, apart }
}

/// Terms of codes and of the offset, for weights with one scale: `scale * code` is at most about as large as
/// weights of the group are apart, or twice as large as the greatest of them; the offset at most the sum of
/// both.
fn group_size(x: &[f64], w: &[f32]) -> f64 {
    let fold = |f: fn(f32, f32) -> f32| f64::from(w.iter().copied().reduce(f).unwrap_or(0.0));
    let (least, most) = (fold(f32::min), fold(f32::max));
    let greatest = least.abs().max(most.abs());
    (2.0 * (most - least) + 2.0 * greatest) * x.iter().map(|x| x.abs()).sum::<f64>()
}

/// A number for a type that stays its own when others are added.
fn seed(ty: WeightType) -> u64 {
    ty.ggml_id().unwrap_or(1000 + ty.name().bytes().map(u32::from).sum::<u32>()).into()
}

#[test]
fn every_weight_type_multiplies_as_f64_does() {
    let (ops, other) = (Ops::cpu(2, KvType::BF16).unwrap(), candle());
    each(typed(&SHAPES, |(_, _, k)| k), |&(ty, (rows, n, k))| {
        let mut random = Random(seed(ty) * 1000 + k as u64);
        let (w, bias) = (weights(ty, n, k, &mut random), random.floats(n));
        let x = if ty.takes_bytes() { uneven(&mut random, rows, k) } else { random.table(rows, k) };
        let y = multiply(&ops, &w, &x);
        let bound = match ty {
            // Its levels are whole 8005ths, and four such terms are a term's size at least.
            WeightType::Nf4 => 1e-5,
            _ if ty.takes_bytes() => 1e-6,
            _ => 3e-7,
        };
        for (&found, wanted) in y.values.iter().zip(elements(&w, &x)) {
            let error = (f64::from(found) - wanted.value).abs() / wanted.size.max(1e-12);
            let off = (f64::from(found) - wanted.exact).abs();
            if error.is_nan() || error > bound {
                return Err(format!("an element is off by {error:.1e} of its terms"));
            }
            if off > wanted.apart + bound * wanted.size {
                return Err(format!("an element is off by {off:.1e}, not {:.1e}", wanted.apart));
            }
        }
        let biased = |ops: &Ops| table(ops, ops.linear(&linear(ops, &w, Some(&bias)), &x.on(ops)).unwrap());
        let sums = y.values.iter().zip(bias.iter().cycle()).map(|(y, b)| y + b).collect();
        same("bias", &biased(&ops), &Table { dim: n, values: sums })?;
        let scaled = |ops: &Ops| {
            let linear = Linear { scale: 0.25, ..linear(ops, &w, Some(&bias)) };
            table(ops, ops.linear(&linear, &x.on(ops)).unwrap())
        };
        let sums = y.values.iter().zip(bias.iter().cycle()).map(|(y, b)| 0.25 * y + b).collect();
        same("scale", &scaled(&ops), &Table { dim: n, values: sums })?;
        // candle rounds activations to bytes too, in blocks of its own: of 256, where a great number takes
        // more with it.
        let bound = if ty.takes_bytes() { 0.05 } else { 1e-5 };
        if ty.takes_bytes() && rows * n == 1 {
            // A single number may be small by chance, beside which nothing is close.
            return Ok(());
        }
        close("candle, scaled", &scaled(&other), &scaled(&ops), bound)?;
        close("candle", &biased(&other), &biased(&ops), bound)
    });
}

#[test]
fn floats_of_any_length_multiply() {
    let machines = machines(KvType::BF16);
    let cases = [(1, 1, 1), (3, 3, 15), (2, 9, 17), (5, 8, 100), (14, 50, 33), (40, 16, 2)];
    let types = [WeightType::F32, WeightType::F16, WeightType::BF16];
    each(types.into_iter().flat_map(|ty| cases.map(|c| (ty, c))), |&(ty, (rows, n, k))| {
        let mut random = Random(k as u64);
        let (w, x) = (weights(ty, n, k, &mut random), random.table(rows, k));
        let y = same_on_all(&machines, |ops| multiply(ops, &w, &x))?;
        let other = candle();
        close("candle", &multiply(&other, &w, &x), &y, 1e-5)?;
        let off = |(&y, e): (&f32, &Element)| (f64::from(y) - e.value).abs() / e.size.max(1e-12);
        match y.values.iter().zip(&elements(&w, &x)).map(off).fold(0.0, f64::max) {
            worst if worst <= 3e-7 => Ok(()),
            worst => Err(format!("off by {worst:.1e} of the terms")),
        }
    });
}

#[test]
fn a_row_is_multiplied_the_same_alone_and_in_any_batch() {
    let machines = machines(KvType::BF16);
    each(typed(&[(70, 512), (33, 256), (16, 96), (18, 1536)], |(_, k)| k), |&(ty, (n, k))| {
        let mut random = Random(k as u64 + 7);
        let (w, x) = (weights(ty, n, k, &mut random), uneven(&mut random, 40, k));
        let whole = same_on_all(&machines, |ops| multiply(ops, &w, &x))?;
        let some = |ops: &Ops, from: usize, len: usize| {
            let y = ops.linear(&linear(ops, &w, None), &x.part(from, len).on(ops)).unwrap();
            same(&format!("{ops:?}, rows {from}+{len}"), &table(ops, y), &whole.part(from, len))
        };
        for ops in &machines {
            for (from, len) in [(0, 1), (39, 1), (3, 2), (5, 7), (7, 13), (1, 29)] {
                some(ops, from, len)?;
            }
        }
        if n == 33 {
            (1..=40).try_for_each(|len| some(&machines[0], (40 - len).min(len % 5), len))?;
        }
        Ok(())
    });
}

/// A checkpoint may hold anything: scales that are infinite, NaN, or below the smallest normal number.
#[test]
fn weights_of_any_bits_are_the_same_on_all_machines() {
    let machines = machines(KvType::BF16);
    each(typed(&[(19, 256), (16, 1024)], |(_, k)| k), |&(ty, (n, k))| {
        let mut random = Random(seed(ty) + 77);
        let (w, x) = (any_bits(ty, n, k, &mut random), uneven(&mut random, 6, k));
        same_on_all(&machines, |ops| multiply(ops, &w, &x)).map(drop)
    });
}

#[test]
fn embeddings_are_rows_of_the_matrix() {
    let machines = machines(KvType::BF16);
    let shapes = [(1, 32), (15, 64), (16, 96), (20, 256), (33, 1280)];
    let cases = typed(&shapes, |(_, k)| k)
        .into_iter()
        .chain([(WeightType::F16, (18, 17)), (WeightType::BF16, (3, 1))]);
    let cases = cases.flat_map(|(ty, shape)| [(ty, shape, true), (ty, shape, false)]);
    each(cases, |&(ty, (n, k), tame)| {
        let mut random = Random(k as u64);
        let make = if tame { weights } else { any_bits };
        let w = make(ty, n, k, &mut random);
        // Every row, from the last to the first, and one twice.
        let ids: Vec<u32> = (0..n as u32).rev().chain([n as u32 / 2]).collect();
        let row = |id: &u32| w.to_f32()[*id as usize * k..][..k].to_vec();
        let wanted = Table { dim: k, values: ids.iter().flat_map(row).collect() };
        let embed = |scale| {
            let w = &w;
            let ids = &ids;
            move |ops: &Ops| table(ops, ops.embed(&ops.matrix(w).unwrap(), ids, scale).unwrap())
        };
        same("rows", &same_on_all(&machines, embed(None))?, &wanted)?;
        same("scaled", &same_on_all(&machines, embed(Some(25.3)))?, &wanted.map(|x| x * 25.3))?;
        match tame {
            true => close("candle", &embed(Some(25.3))(&candle()), &wanted.map(|x| x * 25.3), 1e-6),
            false => Ok(()),
        }
    });
}

#[test]
fn what_is_not_finite_stays_visible_in_its_row_alone() {
    let machines = machines(KvType::BF16);
    let places = [(0, 0), (13, 47), (39, 255)];
    let cases =
        places.into_iter().flat_map(|at| [f32::INFINITY, f32::NEG_INFINITY, f32::NAN].map(|bad| (at, bad)));
    each(typed(&cases.collect::<Vec<_>>(), |_| 256), |&(ty, ((row, at), bad))| {
        let mut random = Random(11);
        let (w, x) = (weights(ty, 35, 256, &mut random), random.table(40, 256));
        let wanted = multiply(&machines[0], &w, &x);
        let mut spoilt = x.clone();
        spoilt.values[row * 256 + at] = bad;
        let found = same_on_all(&machines, |ops| multiply(ops, &w, &spoilt))?;
        if let Some(column) = found.part(row, 1).values.iter().position(|y| y.is_finite()) {
            return Err(format!("column {column} hides it"));
        }
        same("rows before", &found.part(0, row), &wanted.part(0, row))?;
        same("rows after", &found.part(row + 1, 39 - row), &wanted.part(row + 1, 39 - row))
    });
}

#[test]
fn zeros_give_zero_and_add_nothing() {
    let machines = machines(KvType::BF16);
    each(WeightType::ALL, |&ty| {
        let mut random = Random(12);
        let w = weights(ty, 21, 512, &mut random);
        let none = Table { dim: 512, values: vec![0.0; 5 * 512] };
        let y = same_on_all(&machines, |ops| multiply(ops, &w, &none))?;
        if let Some(y) = y.values.iter().find(|&&y| y != 0.0) {
            return Err(format!("zeros became {y}"));
        }
        // One block of 32 that is not zero: nothing but its own terms.
        let mut one = none.clone();
        one.values[512 + 96..512 + 128].copy_from_slice(&random.floats(32));
        let y = same_on_all(&machines, |ops| multiply(ops, &w, &one))?;
        let off = |(&y, e): (&f32, &Element)| (f64::from(y) - e.value).abs() / e.size.max(1e-12);
        match y.values.iter().zip(&elements(&w, &one)).map(off).fold(0.0, f64::max) {
            // Levels of NF4 are whole 8005ths.
            worst if worst <= if ty == WeightType::Nf4 { 1e-5 } else { 3e-7 } => Ok(()),
            worst => Err(format!("off by {worst:.1e} of the terms")),
        }
    });
}

/// A power of two changes no digit, unless something overflows on the way that need not.
#[test]
fn the_size_of_activations_changes_no_digit() {
    let machines = machines(KvType::BF16);
    let cases: Vec<i32> = vec![-90, -60, -20, -1, 1, 20, 60, 110];
    each(typed(&cases, |_| 256), |&(ty, power)| {
        let mut random = Random(13);
        let (w, x) = (weights(ty, 18, 256, &mut random), random.table(3, 256));
        let factor = 2f32.powi(power);
        let found = same_on_all(&machines, |ops| multiply(ops, &w, &x.map(|x| x * factor)))?;
        same("scaled", &found, &multiply(&machines[0], &w, &x).map(|y| y * factor))
    });
}

/// At the ends of the range digits are lost, but never the size; and all machines lose the same.
#[test]
fn the_smallest_and_the_largest_activations() {
    let machines = machines(KvType::BF16);
    let cases = [1e-45, 1e-42, 1e-38, 1e-37, 3e-37, 1e-36, 1e-35, 1e36, 1e37, 1e38, 3e38];
    each(typed(&cases, |_| 256), |&(ty, size)| {
        let w = weights(ty, 18, 256, &mut Random(14));
        // Sums of neighbours are zero in the end, but pass through infinity when they are taken carelessly.
        let mut x = Table { dim: 256, values: vec![0.0; 512] };
        for (at, sign) in [(3, 1.0), (4, -1.0), (19, 1.0), (20, -1.0), (256 + 40, 1.0)] {
            x.values[at] = sign * size;
        }
        let found = same_on_all(&machines, |ops| multiply(ops, &w, &x))?;
        for (&y, e) in found.values.iter().zip(elements(&w, &x)) {
            let overflows = e.size > f64::from(f32::MAX);
            let off = (f64::from(y) - e.exact).abs();
            // A NaN must not pass as no difference.
            let off = if off.is_nan() { f64::INFINITY } else { off };
            // What is taken for zero, 1e-36 at most, times the sum of a few weights.
            if !overflows && off > e.apart + 1e-6 * e.size + 1e-33 {
                return Err(format!("{y:e} instead of {:e}", e.exact));
            }
        }
        Ok(())
    });
}
