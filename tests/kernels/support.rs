//! What all these tests share: numbers, weights, machines, and how results are compared.

use candle_core::{DType, Device};
use tallow::kernels::{Isa, KvType, Linear, Ops, Rows, Vector};
use tallow::weights::{Bytes, WeightTensor, WeightType};

/// A small generator (splitmix64): the same numbers everywhere.
pub struct Random(pub u64);

impl Random {
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1.
    pub fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    pub fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    pub fn table(&mut self, rows: usize, dim: usize) -> Table {
        Table { dim, values: self.floats(rows * dim) }
    }

    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.bits() % (i as u64 + 1)) as usize);
        }
    }
}

/// Rows of `dim` numbers, outside of any machine.
#[derive(Clone, Debug)]
pub struct Table {
    pub dim: usize,
    pub values: Vec<f32>,
}

impl Table {
    pub fn rows(&self) -> usize {
        self.values.len() / self.dim
    }

    /// `len` rows from `from` on.
    pub fn part(&self, from: usize, len: usize) -> Table {
        Table { dim: self.dim, values: self.values[from * self.dim..(from + len) * self.dim].to_vec() }
    }

    pub fn map(&self, f: impl Fn(f32) -> f32) -> Table {
        Table { dim: self.dim, values: self.values.iter().map(|&x| f(x)).collect() }
    }

    /// The rows of all parts, one after another.
    pub fn cat(parts: &[Table]) -> Table {
        Table { dim: parts[0].dim, values: parts.iter().flat_map(|part| part.values.clone()).collect() }
    }

    /// On a machine.
    pub fn on(&self, ops: &Ops) -> Rows {
        ops.rows(self.values.clone(), self.dim).unwrap()
    }
}

/// What a machine computed.
pub fn table(ops: &Ops, rows: Rows) -> Table {
    let (count, dim) = rows.dims();
    let values = ops.into_vec(rows).unwrap();
    assert_eq!(values.len(), count * dim);
    Table { dim, values }
}

/// Where a block keeps its f16 scales.
fn scale_offsets(ty: WeightType) -> &'static [usize] {
    match ty {
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => &[],
        WeightType::Mxfp4 | WeightType::Nvfp4 | WeightType::Q8K | WeightType::Iq1M => &[],
        WeightType::Q8Wide | WeightType::Fp4Wide => &[],
        WeightType::Fp8 | WeightType::Nf4 | WeightType::BnbFp4 => &[],
        WeightType::Tq1_0 => &[52],
        WeightType::Tq2_0 => &[64],
        WeightType::Q8Min | WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => {
            &[0, 2]
        }
        WeightType::Q2K => &[80, 82],
        WeightType::Q3K => &[108],
        WeightType::Q6K => &[208],
        _ => &[0],
    }
}

/// Random bits in every field but the scales, which are small.
pub fn weights(ty: WeightType, n: usize, k: usize, random: &mut Random) -> WeightTensor {
    let half = |random: &mut Random| half::f16::from_f32(random.float() * 0.02);
    let bytes: Vec<u8> = match ty {
        WeightType::F32 => random.floats(n * k).iter().flat_map(|x| x.to_le_bytes()).collect(),
        WeightType::F16 => (0..n * k).flat_map(|_| half(random).to_le_bytes()).collect(),
        WeightType::BF16 => {
            random.floats(n * k).iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect()
        }
        _ => {
            let mut w = any_bits(ty, n, k, random).data.to_vec();
            for block in w.chunks_exact_mut(ty.block_bytes()) {
                match ty {
                    // 2^-14 to 2^-7.
                    WeightType::Mxfp4 => block[0] = 114 + block[0] % 8,
                    // 2^-10 to 2^-6, subnormal ones among them.
                    WeightType::Nvfp4 => block[..4].iter_mut().for_each(|scale| *scale %= 32),
                    WeightType::Q8K => block[..4].copy_from_slice(&(random.float() * 0.02).to_le_bytes()),
                    WeightType::Iq1M => {
                        let [low, high] = half(random).to_le_bytes();
                        for (at, top) in [(49, low << 4), (51, low), (53, high << 4), (55, high)] {
                            block[at] = block[at] & 15 | top & 0xf0;
                        }
                    }
                    _ => {}
                }
                if ty.is_block_float() || matches!(ty, WeightType::Q8Wide | WeightType::Fp4Wide) {
                    let scale = (random.float() * 0.02).to_le_bytes();
                    block[..4].copy_from_slice(&scale);
                }
                if ty == WeightType::Fp4Wide {
                    let scale = (random.float() * 0.02).to_le_bytes();
                    block[4..8].copy_from_slice(&scale);
                }
                for &at in scale_offsets(ty) {
                    block[at..at + 2].copy_from_slice(&half(random).to_le_bytes());
                }
            }
            w
        }
    };
    tensor(ty, vec![n, k], bytes)
}

/// Random bits everywhere: scales of any size, infinite ones and NaN among them.
pub fn any_bits(ty: WeightType, n: usize, k: usize, random: &mut Random) -> WeightTensor {
    tensor(ty, vec![n, k], (0..n * ty.row_bytes(k).unwrap()).map(|_| random.bits() as u8).collect())
}

fn tensor(dtype: WeightType, shape: Vec<usize>, bytes: Vec<u8>) -> WeightTensor {
    WeightTensor { name: format!("{} {shape:?}", dtype.name()), dtype, shape, data: Bytes::from_vec(bytes) }
}

pub fn vector(ops: &Ops, values: &[f32]) -> Vector {
    let bytes = values.iter().flat_map(|x| x.to_le_bytes()).collect();
    ops.vector(&tensor(WeightType::F32, vec![values.len()], bytes), 0.0).unwrap()
}

/// See `Linear::outlier`.
pub const OUTLIER: f32 = 8.0;

pub fn linear(ops: &Ops, w: &WeightTensor, bias: Option<&[f32]>) -> Linear {
    let bias = bias.map(|bias| vector(ops, bias));
    Linear { weight: ops.matrix(w).unwrap(), scale: 1.0, bias, outlier: OUTLIER }
}

pub fn cpu(threads: usize) -> Ops {
    Ops::cpu(threads, KvType::F32).unwrap()
}

pub fn candle() -> Ops {
    Ops::candle(Device::Cpu, DType::F32)
}

/// The machines that must agree to the last bit: the best tier first, all others, and several numbers of
/// threads. What they reuse of memory begins as NaN.
pub fn machines(kv: KvType) -> Vec<Ops> {
    let tiers = Isa::available().into_iter().map(|isa| Ops::cpu_with(1, kv, isa).unwrap());
    let machines: Vec<Ops> = tiers.chain([2, 3, 5].map(|n| Ops::cpu(n, kv).unwrap())).collect();
    for ops in &machines {
        let dirt = [(); 8].map(|()| ops.rows(vec![f32::NAN; 1 << 17], 1).unwrap());
        drop(dirt);
    }
    machines
}

/// `f` has the same bits on all machines.
pub fn same_on_all(machines: &[Ops], f: impl Fn(&Ops) -> Table) -> Result<Table, String> {
    let first = f(&machines[0]);
    machines[1..].iter().try_for_each(|ops| same(&ops.describe(), &f(ops), &first))?;
    Ok(first)
}

/// The same bits; of NaN there is only one.
pub fn same(what: &str, a: &Table, b: &Table) -> Result<(), String> {
    let bits = |x: f32| if x.is_nan() { f32::NAN.to_bits() } else { x.to_bits() };
    let differ = a.values.iter().zip(&b.values).position(|(&a, &b)| bits(a) != bits(b));
    match (differ, a.dim == b.dim && a.values.len() == b.values.len()) {
        (None, true) => Ok(()),
        (_, false) => Err(format!("{what}: {} rows of {}, not {} of {}", a.rows(), a.dim, b.rows(), b.dim)),
        (Some(at), _) => Err(format!("{what}: {} at {at} and not {}", a.values[at], b.values[at])),
    }
}

/// At most `bound` apart, in units of the greatest value. A NaN does not pass as no difference.
pub fn close(what: &str, a: &Table, b: &Table, bound: f32) -> Result<(), String> {
    let size = b.values.iter().fold(1e-6f32, |size, x| size.max(x.abs()));
    let far = |(&a, &b): (&f32, &f32)| match a.is_finite() && b.is_finite() {
        true => (a - b).abs() / size,
        false => f32::INFINITY,
    };
    let found = a.values.iter().zip(&b.values).map(far).fold(0.0, f32::max);
    match (a.dim, a.values.len()) == (b.dim, b.values.len()) && found <= bound {
        true => Ok(()),
        false => Err(format!("{what}: differs by {found:.2e}, above {bound:.0e}")),
    }
}

/// Runs a check on every case and tells all that failed.
pub fn each<C: std::fmt::Debug>(
    cases: impl IntoIterator<Item = C>,
    check: impl Fn(&C) -> Result<(), String>,
) {
    let mut failed = Vec::new();
    let mut count = 0;
    for case in cases {
        count += 1;
        if let Err(why) = check(&case) {
            failed.push(format!("{case:?}: {why}"));
        }
    }
    assert!(count > 0, "no cases");
    assert!(failed.is_empty(), "{} of {count} failed:\n{}", failed.len(), failed.join("\n"));
}
