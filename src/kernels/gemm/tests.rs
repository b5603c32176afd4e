//! How the work is shared, and what is asked before memory is touched. Whether products are right is tested
//! with the operations that use them.

use super::*;
use crate::error::ErrorKind;
use crate::kernels::disjoint::DisjointSlices;
use crate::kernels::pack::{Arena, Packed, pack};
use crate::weights::{Bytes, WeightTensor, WeightType};

const K: usize = 24;

/// Whole numbers, so that sums are exact in any order and can be written down.
fn weight(row: usize, at: usize) -> f32 {
    ((row * 7 + at * 3) % 11) as f32 - 5.0
}

fn matrix(n: usize) -> Packed {
    let values = (0..n * K).flat_map(|at| weight(at / K, at % K).to_le_bytes()).collect();
    let data = Bytes::from_vec(values);
    let w = WeightTensor { name: "w".into(), dtype: WeightType::F32, shape: vec![n, K], data };
    pack(&Pool::new(1).unwrap(), &Arena::default(), &w, n, K, 4 * K).unwrap()
}

fn product<'a>(w: &'a Packed, epilogue: Epilogue, out: &'a DisjointSlices<'a, f32>) -> Product<'a> {
    Product { w, scale: 1.0, bias: None, terms: None, epilogue, out }
}

#[test]
fn every_element_is_computed_once_however_the_work_is_shared() {
    // Lists of one or two matrices of a width; the second adds to what the first has set.
    let lists = [(1, 1), (16, 1), (40, 2), (530, 1), (333, 2)];
    let matrices = lists.map(|(n, _)| matrix(n));
    for (threads, rows) in [(1, 1), (2, 1), (3, 2), (2, 13), (4, 31)] {
        for isa in Isa::available() {
            let x: Vec<f32> = (0..rows * K).map(|at| (at % 5) as f32 - 1.0).collect();
            let mut outs = lists.map(|(n, _)| vec![f32::NAN; rows * n]);
            let shares = outs.each_mut().map(|out| DisjointSlices::new(out));
            let products: Vec<Vec<_>> = (0..lists.len())
                .map(|i| {
                    let one =
                        |step| product(&matrices[i], [Epilogue::Store, Epilogue::Add][step], &shares[i]);
                    (0..lists[i].1).map(one).collect()
                })
                .collect();
            let all: Vec<&[Product<'_>]> = products.iter().map(|list| list.as_slice()).collect();
            let input = Input { rows, k: K, floats: &x, bytes: None };
            products_of(threads, isa, input, &all).unwrap();
            for ((n, times), out) in lists.iter().zip(&outs) {
                for (at, &found) in out.iter().enumerate() {
                    let (row, column) = (at / n, at % n);
                    let dot: f32 = (0..K).map(|i| x[row * K + i] * weight(column, i)).sum();
                    let place = format!("{threads} threads, {rows} rows, {n} columns, {row}/{column}");
                    assert_eq!(found, *times as f32 * dot, "{place} on {}", isa.name());
                }
            }
        }
    }
}

fn products_of(threads: usize, isa: Isa, x: Input<'_>, lists: &[&[Product<'_>]]) -> Result<()> {
    products(&Pool::new(threads).unwrap(), isa, "test", x, lists)
}

#[test]
fn tiles_cover_all_rows_and_bundles_all_panels() {
    for isa in Isa::available() {
        let [plain, blocks] = [WeightType::F32, WeightType::Fp8].map(floats::tile_sizes);
        let tiles = [&levels::TILES, plain, blocks];
        for (rows, tiles) in (1..60).flat_map(|rows| tiles.map(|tiles| (rows, tiles))) {
            let mut left = rows;
            while left > 0 {
                let size = tile_rows(isa, tiles, left);
                assert!((1..=left.min(floats::MOST)).contains(&size), "{left} rows on {}", isa.name());
                left -= size;
            }
        }
    }
    for (panels, rows, threads) in
        [(0, 1, 1), (1, 1, 8), (36, 1, 2), (10_000, 1, 1), (10_000, 9, 64), (9, 32, 2), (9, 512, 2)]
    {
        let split = Split::of(panels, rows, threads, 3);
        let tasks = panels.div_ceil(split.panels) * rows.div_ceil(split.rows);
        // Enough tasks for every thread, where there are enough panels or rows.
        let enough = tasks >= 4 * threads || split.panels == 1 || (split.panels == 4 && split.rows <= 18);
        assert!(
            split.panels > 0 && split.rows > 0 && enough,
            "{panels} panels, {rows} rows, {threads} threads: {split:?}"
        );
    }
}

/// These are asked before any pointer is followed.
#[test]
fn wrong_lengths_are_errors_before_memory_is_touched() {
    let (w, isa) = (matrix(20), Isa::available()[0]);
    let (x, bias) = ([1.0; 2 * K], [0.0; 19]);
    let mut out = [0.0; 40];
    let out = DisjointSlices::new(&mut out);
    let good = product(&w, Epilogue::Store, &out);
    let input = Input { rows: 2, k: K, floats: &x, bytes: None };
    products_of(1, isa, input, &[&[good]]).unwrap();
    let cases = [
        ("rows", Input { rows: 3, ..input }, good),
        ("k", Input { k: K - 1, ..input }, good),
        ("bias", input, Product { bias: Some(&bias), ..good }),
    ];
    for (what, input, product) in cases {
        let error = products_of(1, isa, input, &[&[product]]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Internal, "{what}");
    }
}
