//! The kernels over emulated tiles give what the scalar tier gives, bit for bit.

use std::marker::PhantomData;
use std::ops::Range;

use super::tiles::Emulated;
use super::*;
use crate::kernels::blocked;
use crate::kernels::disjoint::DisjointSlices;
use crate::kernels::epilogue::{Epilogue, Product};
use crate::kernels::gemm::{self, Input};
use crate::kernels::isa::Isa;
use crate::kernels::layouts::with_layout;
use crate::kernels::pack::{self, Arena, Packed};
use crate::kernels::panels::Panel;
use crate::kernels::pool::Pool;
use crate::kernels::quantize::{Precision, Quantized, quantized};
use crate::kernels::simd::scalar::Scalar;
use crate::weights::{Bytes, WeightTensor, WeightType};

struct Random(u64);

impl Random {
    fn bits(&mut self) -> u32 {
        self.0 = self.0.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (self.0 >> 33) as u32
    }
}

/// Where a block keeps half floats.
fn halves(ty: WeightType) -> &'static [usize] {
    match ty {
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => &[0, 2],
        WeightType::Q2K => &[80, 82],
        WeightType::Q3K => &[108],
        WeightType::Q6K => &[208],
        _ => &[0],
    }
}

/// Random bits, and scales between 1/32 and 1/64 of either sign.
fn weights(ty: WeightType, n: usize, k: usize, random: &mut Random) -> WeightTensor {
    let mut bytes: Vec<u8> = (0..n * ty.row_bytes(k).unwrap()).map(|_| random.bits() as u8).collect();
    for block in bytes.chunks_exact_mut(ty.block_bytes()) {
        for &at in halves(ty) {
            block[at + 1] = block[at + 1] & 0x83 | 0x24;
        }
    }
    WeightTensor { name: "w".into(), dtype: ty, shape: vec![n, k], data: Bytes::from_vec(bytes) }
}

/// Random rows, a few of them with single great values: sums of bytes of all sizes.
fn floats(rows: usize, k: usize, random: &mut Random) -> Vec<f32> {
    let spike = |i: usize| if i % 97 == 5 { 100.0 } else { 1.0 };
    let mut float = |i: usize| (random.bits() % 2001) as f32 / 1000.0 - if i % 64 < 32 { 1.0 } else { 0.1 };
    (0..rows * k).map(|i| float(i) * spike(i)).collect()
}

/// The parts of the scalar tier, and emulated tiles.
struct EmulatedParts<Q>(Emulated, PhantomData<Q>);

impl<Q: Layout> blocked::Parts for EmulatedParts<Q> {
    fn prefetch(&self, _: &[u8]) {}

    fn unpack(&self, units: &[u8], to: &mut Panel) {
        // SAFETY: the scalar tier needs nothing of the machine.
        unsafe { blocked::unpack_body::<Scalar, Q>(units, to) }
    }

    fn rows(&self, _: &Work<'_>, _: &mut Scratch) {}

    fn make_signed(&self, block: &Work<'_>, scratch: &mut Scratch) {
        if !Q::MIN || Q::WIDE {
            // SAFETY: the scalar tier needs nothing of the machine.
            unsafe { blocked::make_signed_body::<Scalar>(block, scratch) }
        }
    }

    fn tiles(&mut self, work: &Work<'_>, scratch: &mut Scratch) {
        // SAFETY: neither the emulator nor the scalar tier needs anything of the machine; the tiles are
        // configured for `Q`.
        with_kind!(Q, K => unsafe { multiply_body::<Scalar, Emulated, K>(work, scratch, &mut self.0) });
    }

    fn outliers(&self, work: &Work<'_>, scratch: &mut Scratch) {
        // SAFETY: the scalar tier needs nothing of the machine.
        with_kind!(Q, K => unsafe { blocked::outliers_body::<Scalar, K>(work, scratch) });
    }
}

/// Sums `[rows, n]`, and how often each row and panel came.
struct Output {
    n: usize,
    panels: usize,
    sums: Vec<f32>,
    times: Vec<usize>,
}

impl blocked::Sink for Output {
    fn expect(&self, _: Range<usize>, _: Range<usize>) {}

    fn take(&mut self, row: usize, panel: usize, [sums, none]: [&[[f32; LANES]]; 2]) {
        assert!(none.is_empty());
        for (row, sums) in (row..).zip(sums) {
            let columns = panel * LANES..self.n.min((panel + 1) * LANES);
            self.times[row * self.panels + panel] += 1;
            self.sums[row * self.n..][columns.clone()].copy_from_slice(&sums[..columns.len()]);
        }
    }
}

/// `[rows, n]` by emulated tiles; rows that are left to others stay NaN.
fn emulated(w: &Packed, x: &Quantized, rows: usize) -> Vec<f32> {
    let (n, panels) = (w.n, w.panels());
    let mut out = Output { n, panels, sums: vec![f32::NAN; rows * n], times: vec![0; rows * panels] };
    let worth = rows_in_tiles(rows);
    with_layout!(w.dtype, Q => {
        // SAFETY: the emulator needs nothing of the machine.
        let mut parts = EmulatedParts::<Q>(unsafe { Emulated::configure(&config::<Q>()) }, PhantomData);
        let w = blocked::Panels { matrices: &[w.bytes(0..panels)], panel_bytes: w.panel_bytes, ahead: &[] };
        blocked::multiply_with::<Q>(&mut parts, worth, w, x, 0..worth, &mut out);
    }, else unreachable!());
    let (done, rest) = out.times.split_at(worth * panels);
    assert!(done.iter().all(|&t| t == 1) && rest.iter().all(|&t| t == 0), "each comes once");
    out.sums
}

/// The rows that differ for the first `rows` rows of a product, for each of `counts`.
fn differences(
    ty: WeightType,
    n: usize,
    k: usize,
    precision: Precision,
    counts: impl Iterator<Item = usize> + Clone,
) -> Vec<String> {
    let (pool, arena, isa) = (Pool::new(1).unwrap(), Arena::default(), Isa::named("scalar").unwrap());
    let mut random = Random((n * k) as u64 + ty.block_bytes() as u64);
    let tensor = weights(ty, n, k, &mut random);
    let w = pack::pack(&pool, &arena, &tensor, n, k, ty.row_bytes(k).unwrap()).unwrap();
    let rows = counts.clone().max().unwrap();
    let floats = floats(rows, k, &mut random);
    let bytes = quantized(isa, &floats, k, precision);
    let mut want = vec![0.0; rows * n];
    let out = DisjointSlices::new(&mut want);
    let input = Input { rows, k, floats: &floats, bytes: Some(&bytes) };
    gemm::products(
        &pool,
        isa,
        "test",
        input,
        &[&[Product { w: &w, scale: 1.0, bias: None, terms: None, epilogue: Epilogue::Store, out: &out }]],
    )
    .unwrap();
    let mut wrong = Vec::new();
    for count in counts {
        let x = quantized(isa, &floats[..count * k], k, precision);
        let have = emulated(&w, &x, count);
        for row in 0..rows_in_tiles(count) {
            let bits =
                |out: &[f32]| out[row * n..(row + 1) * n].iter().map(|x| x.to_bits()).collect::<Vec<_>>();
            if bits(&have) != bits(&want) {
                wrong.push(format!("{} [{n}, {k}]: row {row} of {count}", ty.name()));
            }
        }
    }
    wrong
}

#[test]
fn every_form_multiplies_as_the_scalar_tier_does() {
    let (mut wrong, some) = (Vec::new(), Precision::Above(4.0));
    for ty in WeightType::ALL.into_iter().filter(|ty| ty.has_integer_codes()) {
        let unit = ty.block_len();
        // One unit; several; k_blocks with and without a rest. Columns: less than a panel, some, more than a
        // group.
        let shapes = match unit {
            32 => [(19, 32), (7, 96), (16, 256), (75, 352)],
            _ => [(19, 256), (7, 512), (16, 768), (75, 256)],
        };
        for (at, (n, k)) in shapes.into_iter().enumerate() {
            match at {
                0 => wrong.extend(differences(ty, n, k, some, 1..=70)),
                _ => wrong.extend(differences(ty, n, k, some, [16, 17, 33, 48, 63].into_iter())),
            }
        }
    }
    // As many rows as a task has.
    wrong.extend(differences(WeightType::Q4K, 40, 512, some, [80, 93, 96].into_iter()));
    wrong.extend(differences(WeightType::Q8_0, 70, 288, some, [81, 95].into_iter()));
    // Two planes of bytes.
    for (ty, k) in [(WeightType::Q4K, 768), (WeightType::Q6K, 256), (WeightType::Q4_0, 1312)] {
        wrong.extend(differences(ty, 19, k, Precision::Double, [33, 48].into_iter()));
    }
    assert!(wrong.is_empty(), "{} rows differ: {:#?}", wrong.len(), &wrong[..wrong.len().min(20)]);
}

#[test]
fn rows_that_are_not_worth_a_tile_are_left() {
    let cases =
        [(0, 0), (1, 0), (15, 0), (16, 16), (17, 16), (18, 16), (19, 19), (31, 31), (32, 32), (34, 32)];
    let wrong: Vec<_> = cases.iter().filter(|&&(rows, want)| rows_in_tiles(rows) != want).collect();
    assert!(wrong.is_empty(), "{wrong:?}");
}
