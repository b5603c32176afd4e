//! The kernels against three judges: candle's own operations, f64 arithmetic, and themselves (alone or in a
//! batch, on other threads, tiers, pages and chunks the bits must be the same).

use candle_core::{DType, Device, Tensor};
use tallow::error::ErrorKind;
use tallow::kernels::{Activation, Attention, Isa, KvCache, KvShape, Ops};
use tallow::step::{PAGE, Step};
use tallow::weights::{Bytes, WeightTensor, WeightType};

/// A small generator (splitmix64): the same numbers everywhere.
struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Between -1 and 1.
    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1 << 23) as f32 - 1.0
    }

    fn floats(&mut self, count: usize) -> Vec<f32> {
        (0..count).map(|_| self.float()).collect()
    }

    fn tensor(&mut self, rows: usize, dim: usize) -> Tensor {
        Tensor::from_vec(self.floats(rows * dim), (rows, dim), &Device::Cpu).unwrap()
    }

    fn vector(&mut self, len: usize) -> Tensor {
        Tensor::from_vec(self.floats(len), len, &Device::Cpu).unwrap()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.bits() % (i as u64 + 1)) as usize);
        }
    }
}

/// Where a block keeps its f16 scales.
fn scale_offsets(ty: WeightType) -> &'static [usize] {
    match ty {
        WeightType::F32 | WeightType::F16 | WeightType::BF16 => &[],
        WeightType::Q4_1 | WeightType::Q5_1 | WeightType::Q4K | WeightType::Q5K => &[0, 2],
        WeightType::Q2K => &[80, 82],
        WeightType::Q3K => &[108],
        WeightType::Q6K => &[208],
        _ => &[0],
    }
}

/// Random bits in every field but the scales, which are small.
fn weights(ty: WeightType, n: usize, k: usize, random: &mut Random) -> WeightTensor {
    let half = |random: &mut Random| half::f16::from_f32(random.float() * 0.02);
    let bytes: Vec<u8> = match ty {
        WeightType::F32 => random.floats(n * k).iter().flat_map(|x| x.to_le_bytes()).collect(),
        WeightType::F16 => (0..n * k).flat_map(|_| half(random).to_le_bytes()).collect(),
        WeightType::BF16 => {
            random.floats(n * k).iter().flat_map(|x| half::bf16::from_f32(*x).to_le_bytes()).collect()
        }
        _ => {
            let mut bytes: Vec<u8> = (0..n * ty.row_bytes(k).unwrap()).map(|_| random.bits() as u8).collect();
            for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                for &at in scale_offsets(ty) {
                    block[at..at + 2].copy_from_slice(&half(random).to_le_bytes());
                }
            }
            bytes
        }
    };
    WeightTensor {
        name: format!("{}.{n}x{k}", ty.name()),
        dtype: ty,
        shape: vec![n, k],
        data: Bytes::from_vec(bytes),
    }
}

fn native(threads: usize) -> Ops {
    Ops::native(threads).unwrap()
}

fn plain() -> Ops {
    Ops::plain(Device::Cpu, DType::F32)
}

/// The machines that must agree to the last bit: every tier, and several numbers of threads.
fn machines() -> Vec<Ops> {
    let tiers = Isa::available().into_iter().map(|isa| Ops::native_with(1, isa).unwrap());
    tiers.chain([2, 3, 5].map(native)).collect()
}

fn values(x: &Tensor) -> Vec<f32> {
    x.flatten_all().unwrap().to_vec1().unwrap()
}

fn bits(x: &Tensor) -> Vec<u32> {
    values(x).into_iter().map(f32::to_bits).collect()
}

/// The greatest difference, in units of the greatest value.
fn distance(a: &Tensor, b: &Tensor) -> f32 {
    assert_eq!(a.dims(), b.dims());
    let (a, b) = (values(a), values(b));
    let size = b.iter().fold(1e-6f32, |size, x| size.max(x.abs()));
    // A NaN must not pass as no difference.
    let far =
        |(a, b): (&f32, &f32)| if a.is_finite() && b.is_finite() { (a - b).abs() } else { f32::INFINITY };
    a.iter().zip(&b).map(far).fold(0.0, f32::max) / size
}

/// Runs a check on every case and tells all that failed.
fn each<C: std::fmt::Debug>(cases: impl IntoIterator<Item = C>, check: impl Fn(&C) -> Result<(), String>) {
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

fn close(what: &str, a: &Tensor, b: &Tensor, bound: f32) -> Result<(), String> {
    match distance(a, b) {
        found if found <= bound => Ok(()),
        found => Err(format!("{what}: differs by {found:.2e}, above {bound:.0e}")),
    }
}

fn same(what: &str, a: &Tensor, b: &Tensor) -> Result<(), String> {
    let (a, b) = (bits(a), bits(b));
    match a.iter().zip(&b).position(|(a, b)| a != b) {
        None if a.len() == b.len() => Ok(()),
        at => Err(format!("{what}: other bits, first at {at:?} of {}", a.len())),
    }
}

/// Every machine does `f` with the same bits.
fn same_on_all(f: impl Fn(&Ops) -> Tensor) -> Result<(), String> {
    let first = f(&native(1));
    machines().iter().try_for_each(|ops| same(&ops.describe(), &f(ops), &first))
}

const MATRICES: [(usize, usize, usize); 9] = [
    (1, 1, 32),
    (1, 7, 64),
    (3, 5, 96),
    (2, 33, 256),
    (4, 64, 576),
    (13, 70, 512),
    (40, 17, 256),
    (8, 130, 768),
    (5, 9, 1536),
];

/// `x * w^T` in f64, and for each element the sum of the sizes, which is what rounding is relative to.
fn product(w: &WeightTensor, x: &Tensor) -> Vec<(f64, f64)> {
    let k = w.shape[1];
    let (w, x) = (w.to_f32(), values(x));
    let dot = |x: &[f32], w: &[f32]| {
        let terms = x.iter().zip(w).map(|(x, w)| f64::from(*x) * f64::from(*w));
        terms.fold((0.0, 0.0), |(sum, size), term| (sum + term, size + term.abs()))
    };
    x.chunks_exact(k).flat_map(|x| w.chunks_exact(k).map(move |w| dot(x, w))).collect()
}

#[test]
fn every_weight_type_multiplies_as_f64_does() {
    let cases = WeightType::ALL.into_iter().flat_map(|ty| MATRICES.map(|shape| (ty, shape)));
    each(cases.filter(|(ty, (_, _, k))| k % ty.block_len() == 0), |&(ty, (rows, n, k))| {
        let mut random = Random(ty.ggml_id() as u64 * 1000 + k as u64);
        let (w, x, bias) = (weights(ty, n, k, &mut random), random.tensor(rows, k), random.vector(n));
        let (ops, other) = (native(2), plain());
        let y = ops.linear(&ops.matrix(&w).unwrap(), &x, None).unwrap();
        for (found, (exact, size)) in values(&y).into_iter().zip(product(&w, &x)) {
            let error = (f64::from(found) - exact).abs() / size.max(1e-9);
            if error.is_nan() || error >= 3e-7 {
                return Err(format!("an element is off by {error:.1e} of its terms"));
            }
        }
        let biased = ops.linear(&ops.matrix(&w).unwrap(), &x, Some(&bias)).unwrap();
        same("bias", &biased, &y.broadcast_add(&bias).unwrap())?;
        // candle quantizes the activations to 8 bits, so it can be close only to a percent.
        let candle = other.linear(&other.matrix(&w).unwrap(), &x, Some(&bias)).unwrap();
        close("plain", &candle, &biased, if ty.block_len() == 1 { 1e-5 } else { 0.03 })
    });
}

#[test]
fn floats_of_any_length_multiply() {
    let cases = [(1, 1, 1), (3, 3, 15), (2, 9, 17), (5, 8, 100)];
    let types = [WeightType::F32, WeightType::F16, WeightType::BF16];
    each(types.into_iter().flat_map(|ty| cases.map(|c| (ty, c))), |&(ty, (rows, n, k))| {
        let mut random = Random(k as u64);
        let (w, x) = (weights(ty, n, k, &mut random), random.tensor(rows, k));
        let (ops, other) = (native(1), plain());
        let y = ops.linear(&ops.matrix(&w).unwrap(), &x, None).unwrap();
        close("plain", &other.linear(&other.matrix(&w).unwrap(), &x, None).unwrap(), &y, 1e-5)?;
        same_on_all(|ops| ops.linear(&ops.matrix(&w).unwrap(), &x, None).unwrap())
    });
}

#[test]
fn a_row_is_multiplied_the_same_alone_and_in_any_batch() {
    let cases = WeightType::ALL.into_iter().flat_map(|ty| [(ty, 70, 512), (ty, 33, 256)]);
    each(cases, |&(ty, n, k)| {
        let mut random = Random(k as u64 + 7);
        let (w, x) = (weights(ty, n, k, &mut random), random.tensor(21, k));
        same_on_all(|ops| ops.linear(&ops.matrix(&w).unwrap(), &x, None).unwrap())?;
        let ops = native(3);
        let m = ops.matrix(&w).unwrap();
        let whole = ops.linear(&m, &x, None).unwrap();
        for (from, len) in [(0, 1), (20, 1), (3, 2), (5, 7), (1, 20)] {
            let some = ops.linear(&m, &x.narrow(0, from, len).unwrap(), None).unwrap();
            same(&format!("rows {from}+{len}"), &some, &whole.narrow(0, from, len).unwrap())?;
        }
        Ok(())
    });
}

#[test]
fn embeddings_are_rows_of_the_matrix() {
    each(WeightType::ALL, |&ty| {
        let mut random = Random(3);
        let w = weights(ty, 20, 256, &mut random);
        let dense = Tensor::from_vec(w.to_f32(), (20, 256), &Device::Cpu).unwrap();
        let ids = [3, 19, 0, 3];
        let wanted = dense.index_select(&Tensor::new(&ids, &Device::Cpu).unwrap(), 0).unwrap();
        same_on_all(|ops| ops.embed(&ops.matrix(&w).unwrap(), &ids).unwrap())?;
        same("native", &native(2).embed(&native(2).matrix(&w).unwrap(), &ids).unwrap(), &wanted)?;
        close("plain", &plain().embed(&plain().matrix(&w).unwrap(), &ids).unwrap(), &wanted, 1e-6)
    });
}

#[test]
fn norms_and_elementwise_operations_agree_with_candle() {
    // Rows, groups a row, length of a group.
    let cases = [(1, 1, 1), (1, 1, 17), (2, 3, 20), (3, 1, 576), (40, 4, 64), (5, 2, 256), (300, 1, 100)];
    each(cases, |&(rows, groups, len)| {
        let mut random = Random(len as u64);
        let (x, y) = (random.tensor(rows, groups * len), random.tensor(rows, groups * len));
        let x = (x * 4.0).unwrap();
        let (w, b) = (random.vector(len), random.vector(len));
        let both = |what: &str, bound: f32, f: &dyn Fn(&Ops) -> Tensor| {
            same_on_all(f).map_err(|why| format!("{what}: {why}"))?;
            close(what, &f(&native(2)), &f(&plain()), bound)
        };
        both("rms_norm", 2e-6, &|ops| ops.rms_norm(&x, &w, 1e-6).unwrap())?;
        both("layer_norm", 4e-6, &|ops| ops.layer_norm(&x, &w, Some(&b), 1e-5).unwrap())?;
        both("layer_norm without bias", 4e-6, &|ops| ops.layer_norm(&x, &w, None, 1e-5).unwrap())?;
        both("add", 0.0, &|ops| ops.add(&x, &y).unwrap())?;
        both("scale", 0.0, &|ops| ops.scale(&x, 1.7).unwrap())?;
        both("soft_cap", 1e-6, &|ops| ops.soft_cap(&x, 2.5).unwrap())?;
        for act in [Activation::Silu, Activation::Gelu, Activation::GeluTanh, Activation::Relu] {
            both(&format!("{act:?}"), 1e-6, &|ops| ops.activate(&x, act).unwrap())?;
            both(&format!("gated {act:?}"), 1e-6, &|ops| ops.gated(&x, &y, act).unwrap())?;
        }
        let some: Vec<u32> = (0..rows as u32).rev().step_by(2).collect();
        both("select_rows", 0.0, &|ops| ops.select_rows(&x, &some).unwrap())
    });
}

#[test]
fn ropes_agree_with_candle() {
    // Rows, heads, head_dim, rotated dimensions.
    let cases =
        [(1, 1, 2, 2), (3, 2, 20, 20), (5, 9, 64, 64), (4, 3, 80, 32), (33, 4, 256, 256), (2, 2, 64, 0)];
    each(cases, |&(rows, heads, head_dim, rotated)| {
        let x = Random(9).tensor(rows, heads * head_dim);
        let inv_freq: Vec<f32> =
            (0..rotated / 2).map(|i| 1e4f32.powf(-2.0 * i as f32 / rotated as f32)).collect();
        let positions: Vec<u32> = (0..rows as u32).map(|i| i * 997).collect();
        let rope = |ops: &Ops| {
            let table = ops.rope_table(&inv_freq, 1.25, &positions).unwrap();
            assert_eq!(table.rotated(), rotated);
            ops.rope(&x, head_dim, &table).unwrap()
        };
        same_on_all(rope)?;
        if rotated > 0 {
            close("plain", &rope(&native(2)), &rope(&plain()), 1e-6)?;
        }
        // Position 0 is turned by nothing and scaled by the factor; what is not rotated is not scaled.
        let first = rope(&native(1)).narrow(0, 0, 1).unwrap();
        let factor = |d: usize| if d % head_dim < rotated { 1.25 } else { 1.0 };
        let wanted: Vec<_> =
            values(&x)[..heads * head_dim].iter().enumerate().map(|(d, x)| x * factor(d)).collect();
        same("position 0", &first, &Tensor::from_vec(wanted, (1, heads * head_dim), &Device::Cpu).unwrap())
    });
}

/// Sequences in one cache: `(positions before this step, rows of this step)` each.
#[derive(Clone, Debug)]
struct Scene {
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    soft_cap: Option<f32>,
    sequences: Vec<(usize, usize)>,
}

impl Scene {
    fn attention(&self) -> Attention {
        Attention {
            heads: self.heads,
            kv_heads: self.kv_heads,
            head_dim: self.head_dim,
            scale: 1.0 / (self.head_dim as f32).sqrt(),
            window: self.window,
            soft_cap: self.soft_cap,
        }
    }

    fn shape(&self) -> KvShape {
        KvShape { kv_heads: self.kv_heads, head_dim: self.head_dim }
    }

    /// Keys, values and queries of sequence `index` at all its positions.
    fn rows(&self, index: usize) -> [Tensor; 3] {
        let mut random = Random(index as u64 + 100);
        let len = self.sequences[index].0 + self.sequences[index].1;
        let width = self.kv_heads * self.head_dim;
        let mut scaled = |width, factor: f64| (random.tensor(len, width) * factor).unwrap();
        [scaled(width, 3.0), scaled(width, 1.0), scaled(self.heads * self.head_dim, 3.0)]
    }

    /// Runs the sequences `which` in steps of `chunk` rows a sequence (all before the last step are history)
    /// and returns the outputs of the last `rows` of each. Pages are dealt in an order that depends on `deal`.
    fn run(&self, ops: &Ops, which: &[usize], chunk: usize, deal: u64) -> Vec<Tensor> {
        let pages: Vec<usize> =
            self.sequences.iter().map(|(before, rows)| (before + rows).div_ceil(PAGE)).collect();
        let total = pages.iter().sum::<usize>() + 3;
        let mut free: Vec<u32> = (0..total as u32).collect();
        Random(deal).shuffle(&mut free);
        let cache = ops.kv_cache(&[self.shape(), self.shape()], total).unwrap();
        poison(ops, &cache, total, self.shape().width());
        let table: Vec<Vec<u32>> = pages.iter().map(|&count| free.drain(..count).collect()).collect();
        let sources: Vec<_> = which.iter().map(|&index| self.rows(index)).collect();
        let mut outputs: Vec<Vec<Tensor>> = vec![Vec::new(); which.len()];
        for (from, to, wanted) in self.cuts(which, chunk) {
            let mut step = Step::default();
            for (slot, &index) in which.iter().enumerate() {
                if from[slot] < to[slot] {
                    step.push(&vec![0; to[slot] - from[slot]], from[slot], table[index].clone());
                }
            }
            let gather = |part: usize| {
                let rows = (0..which.len()).filter(|&slot| from[slot] < to[slot]);
                let rows: Vec<_> =
                    rows.map(|s| sources[s][part].narrow(0, from[s], to[s] - from[s]).unwrap()).collect();
                Tensor::cat(&rows, 0).unwrap()
            };
            ops.kv_write(&cache, 1, &gather(0), &gather(1), &step).unwrap();
            let out = ops.attention(&gather(2), &cache, 1, &step, &self.attention()).unwrap();
            let mut row = 0;
            for slot in 0..which.len() {
                let len = to[slot] - from[slot];
                if wanted && len > 0 {
                    outputs[slot].push(out.narrow(0, row, len).unwrap());
                }
                row += len;
            }
        }
        outputs.iter().map(|parts| Tensor::cat(parts, 0).unwrap()).collect()
    }

    /// Steps as `(from, to, wanted)`, positions for each sequence: history in one step, the rest in chunks.
    fn cuts(&self, which: &[usize], chunk: usize) -> Vec<(Vec<usize>, Vec<usize>, bool)> {
        let before: Vec<usize> = which.iter().map(|&i| self.sequences[i].0).collect();
        let end: Vec<usize> = which.iter().map(|&i| self.sequences[i].0 + self.sequences[i].1).collect();
        let mut cuts = Vec::new();
        if before.iter().any(|&b| b > 0) {
            cuts.push((vec![0; which.len()], before.clone(), false));
        }
        let mut from = before;
        while from != end {
            let to: Vec<usize> = from.iter().zip(&end).map(|(f, e)| *e.min(&(f + chunk))).collect();
            cuts.push((from, to.clone(), true));
            from = to;
        }
        cuts
    }
}

/// Fills every page with NaN: what was not written in this test must not be read.
fn poison(ops: &Ops, cache: &KvCache, pages: usize, width: usize) {
    let mut step = Step::default();
    step.push(&vec![0; pages * PAGE], 0, (0..pages as u32).collect());
    let nan = Tensor::full(f32::NAN, (pages * PAGE, width), &Device::Cpu).unwrap();
    ops.kv_write(cache, 1, &nan, &nan, &step).unwrap();
}

fn scenes() -> Vec<Scene> {
    let scene = |heads, kv_heads, head_dim, window, soft_cap, sequences: &[(usize, usize)]| Scene {
        heads,
        kv_heads,
        head_dim,
        window,
        soft_cap,
        sequences: sequences.to_vec(),
    };
    vec![
        scene(1, 1, 16, None, None, &[(0, 1)]),
        scene(2, 2, 20, None, None, &[(0, 5), (3, 1)]),
        scene(9, 3, 64, None, None, &[(0, 40), (17, 1), (100, 3), (15, 1)]),
        scene(4, 1, 256, Some(24), None, &[(0, 37), (64, 1), (30, 20)]),
        scene(8, 4, 80, Some(1), Some(5.0), &[(0, 18), (33, 2)]),
        scene(14, 2, 64, Some(16), Some(50.0), &[(47, 33), (0, 1)]),
        scene(3, 3, 36, Some(1000), Some(2.0), &[(5, 30), (0, 17), (16, 1)]),
    ]
}

#[test]
fn attention_agrees_with_candle() {
    each(scenes(), |scene| {
        let all: Vec<usize> = (0..scene.sequences.len()).collect();
        let (ours, theirs) = (scene.run(&native(2), &all, 1000, 1), scene.run(&plain(), &all, 1000, 2));
        ours.iter().zip(&theirs).try_for_each(|(a, b)| close("plain", a, b, 3e-6))
    });
}

#[test]
fn attention_is_the_same_alone_batched_chunked_and_on_any_pages() {
    each(scenes(), |scene| {
        let all: Vec<usize> = (0..scene.sequences.len()).collect();
        let whole = scene.run(&native(1), &all, 1000, 1);
        let same_as_whole = |what: String, outputs: &[Tensor], which: &[usize]| {
            outputs.iter().zip(which).try_for_each(|(out, &index)| same(&what, out, &whole[index]))
        };
        for ops in machines() {
            same_as_whole(ops.describe(), &scene.run(&ops, &all, 1000, 2), &all)?;
        }
        for chunk in [1, 3, 16] {
            same_as_whole(format!("chunks of {chunk}"), &scene.run(&native(2), &all, chunk, 3), &all)?;
        }
        for &index in &all {
            same_as_whole(format!("{index} alone"), &scene.run(&native(3), &[index], 1000, 4), &[index])?;
        }
        Ok(())
    });
}

#[test]
fn a_copied_page_is_the_same_page() {
    for ops in [native(2), plain()] {
        let scene = Scene { sequences: vec![(16, 1)], ..scenes()[2].clone() };
        let cache = ops.kv_cache(&[scene.shape(), scene.shape()], 4).unwrap();
        let [k, v, q] = scene.rows(0);
        let mut step = Step::default();
        step.push(&[0; 17], 0, vec![2, 0]);
        ops.kv_write(&cache, 1, &k, &v, &step).unwrap();
        let out = |step: &Step| ops.attention(&q, &cache, 1, step, &scene.attention()).unwrap();
        let before = out(&step);
        ops.copy_page(&cache, 2, 3).unwrap();
        ops.copy_page(&cache, 0, 0).unwrap();
        step.spans[0].pages = vec![3, 0];
        same("copy", &out(&step), &before).unwrap();
        assert_eq!(ops.copy_page(&cache, 0, 4).unwrap_err().kind(), ErrorKind::Internal);
    }
}

#[test]
fn what_is_wrong_is_an_error_on_both_sides() {
    let mut random = Random(1);
    let w = weights(WeightType::Q8_0, 8, 64, &mut random);
    let (x, odd) = (random.tensor(3, 64), random.tensor(3, 65));
    for (ops, other) in [(native(2), plain()), (plain(), native(1))] {
        let m = ops.matrix(&w).unwrap();
        let foreign = other.matrix(&w).unwrap();
        let cache = ops.kv_cache(&[KvShape { kv_heads: 1, head_dim: 64 }], 2).unwrap();
        let step = |pages: Vec<u32>, rows: usize| {
            let mut step = Step::default();
            step.push(&vec![0; rows], 0, pages);
            step
        };
        let attend = |q: &Tensor, layer, step: &Step, heads| {
            let a = Attention { heads, kv_heads: 1, head_dim: 64, scale: 1.0, window: None, soft_cap: None };
            ops.attention(q, &cache, layer, step, &a).map(drop)
        };
        let wrong_shape = WeightTensor { shape: vec![8, 65], ..w.clone() };
        let too_short = WeightTensor { shape: vec![9, 64], ..w.clone() };
        let flat = WeightTensor { shape: vec![512], ..w.clone() };
        let gap = Step { positions: vec![0, 2, 3], ..step(vec![0], 3) };
        let cases = [
            ("an id", ops.embed(&m, &[1, 8]).map(drop), ErrorKind::InvalidRequest),
            ("k", ops.linear(&m, &odd, None).map(drop), ErrorKind::Internal),
            ("bias", ops.linear(&m, &x, Some(&random.vector(9))).map(drop), ErrorKind::Internal),
            ("foreign matrix", ops.linear(&foreign, &x, None).map(drop), ErrorKind::Internal),
            ("blocks", ops.matrix(&wrong_shape).map(drop), ErrorKind::ModelFile),
            ("bytes", ops.matrix(&too_short).map(drop), ErrorKind::ModelFile),
            ("flat matrix", ops.matrix(&flat).map(drop), ErrorKind::ModelFile),
            ("square vector", ops.vector(&w, 0.0).map(drop), ErrorKind::ModelFile),
            ("norm", ops.rms_norm(&x, &random.vector(60), 1e-6).map(drop), ErrorKind::Internal),
            ("add", ops.add(&x, &odd).map(drop), ErrorKind::Internal),
            ("rows", ops.select_rows(&x, &[3]).map(drop), ErrorKind::Internal),
            ("page", ops.kv_write(&cache, 0, &x, &x, &step(vec![2], 3)), ErrorKind::Internal),
            ("layer", ops.kv_write(&cache, 1, &x, &x, &step(vec![0], 3)), ErrorKind::Internal),
            ("width", ops.kv_write(&cache, 0, &x, &odd, &step(vec![0], 3)), ErrorKind::Internal),
            ("too few pages", attend(&x, 0, &step(vec![], 3), 1), ErrorKind::Internal),
            ("rows of a step", attend(&x, 0, &step(vec![0], 2), 1), ErrorKind::Internal),
            ("positions", attend(&x, 0, &gap, 1), ErrorKind::Internal),
            ("heads", attend(&x, 0, &step(vec![0], 3), 2), ErrorKind::Internal),
            (
                "cache",
                ops.kv_cache(&[KvShape { kv_heads: 1, head_dim: 64 }], 1 << 55).map(drop),
                ErrorKind::OutOfMemory,
            ),
        ];
        for (what, result, kind) in cases {
            assert_eq!(result.map_err(|error| error.kind()), Err(kind), "{what} on {ops:?}");
        }
        assert_eq!(Ops::native(0).map(drop).map_err(|e| e.kind()), Err(ErrorKind::InvalidRequest));
    }
    let halves = x.to_dtype(DType::F16).unwrap();
    assert_eq!(native(1).scale(&halves, 2.0).unwrap_err().kind(), ErrorKind::Internal);
}

#[test]
fn nothing_to_compute_is_nothing_computed() {
    let mut random = Random(1);
    let w = weights(WeightType::Q4_1, 8, 64, &mut random);
    for ops in [native(2), plain()] {
        let m = ops.matrix(&w).unwrap();
        let none = ops.embed(&m, &[]).unwrap();
        assert_eq!(none.dims(), [0, 64]);
        assert_eq!(ops.linear(&m, &none, None).unwrap().dims(), [0, 8]);
        assert_eq!(ops.select_rows(&random.tensor(2, 64), &[]).unwrap().dims(), [0, 64]);
        assert_eq!(ops.to_vec(&none).unwrap(), Vec::<f32>::new());
    }
}

#[test]
fn vectors_are_f32_with_what_is_added() {
    let w = weights(WeightType::BF16, 1, 33, &mut Random(5));
    for ops in [native(1), plain()] {
        let wanted: Vec<f32> = w.to_f32().iter().map(|x| x + 1.0).collect();
        assert_eq!(values(&ops.vector(&w, 1.0).unwrap()), wanted);
    }
}

/// After `fork` the child has no workers: it must compute alone, and must not wait for them, nor when it drops.
#[cfg(unix)]
#[test]
fn a_forked_child_computes_alone_and_does_not_hang() {
    let mut random = Random(1);
    let w = weights(WeightType::Q8_0, 640, 256, &mut random);
    let x = random.tensor(4, 256);
    let ops = native(4);
    let m = ops.matrix(&w).unwrap();
    let wanted = bits(&ops.linear(&m, &x, None).unwrap());
    // SAFETY: the child computes, and leaves without running anything of the parent's.
    let child = unsafe { libc::fork() };
    if child == 0 {
        let right = bits(&ops.linear(&m, &x, None).unwrap()) == wanted;
        drop(ops);
        // SAFETY: ends the child at once.
        unsafe { libc::_exit(if right { 0 } else { 1 }) };
    }
    assert!(child > 0);
    let start = std::time::Instant::now();
    let mut status = 0;
    // SAFETY: `status` is ours, `child` is our child.
    while unsafe { libc::waitpid(child, &mut status, libc::WNOHANG) } == 0 {
        if start.elapsed().as_secs() > 20 {
            // SAFETY: as above.
            unsafe { libc::kill(child, libc::SIGKILL) };
            panic!("the child hangs");
        }
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(status, 0, "the child's exit status");
    assert_eq!(bits(&ops.linear(&m, &x, None).unwrap()), wanted, "the parent goes on");
}

/// Not a test: prints what this machine does. `cargo test --release --test kernels speed -- --ignored --nocapture`
#[cfg(target_os = "linux")]
#[test]
#[ignore = "prints timings"]
fn speed() {
    // One thread: its time on a core, so that other programs do not count. Several: the clock on the wall.
    let now = |threads: usize| {
        let clock = if threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is ours to be written.
        unsafe { libc::clock_gettime(clock, &mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    };
    let best = |threads: usize, f: &dyn Fn()| {
        let time = |_| {
            let start = now(threads);
            f();
            now(threads) - start
        };
        (0..15).map(time).fold(f64::INFINITY, f64::min)
    };
    for threads in [1, 2] {
        let ops = native(threads);
        println!("{ops:?}");
        for ty in [WeightType::Q4_1, WeightType::Q4K, WeightType::Q8_0, WeightType::F32] {
            for (n, k) in [(1536usize, 576usize), (576, 1536)] {
                let k = k.next_multiple_of(ty.block_len());
                let m = ops.matrix(&weights(ty, n, k, &mut Random(1))).unwrap();
                let rates: Vec<_> = [1, 4, 32, 512]
                    .map(|rows| {
                        let x = Random(2).tensor(rows, k);
                        let repeat = 1 + 64 / rows;
                        let once = best(threads, &|| {
                            (0..repeat).for_each(|_| drop(ops.linear(&m, &x, None).unwrap()))
                        });
                        format!("m={rows}: {:.1}", (2 * rows * n * k * repeat) as f64 / once / 1e9)
                    })
                    .into();
                println!("  {} {n}x{k} GFLOP/s  {}", ty.name(), rates.join("  "));
            }
        }
        for (heads, kv_heads, head_dim) in [(9, 3, 64), (4, 1, 256)] {
            for (before, rows) in [(511, 1), (2047, 1), (0, 512), (1536, 512)] {
                let scene = Scene {
                    heads,
                    kv_heads,
                    head_dim,
                    window: None,
                    soft_cap: None,
                    sequences: vec![(before, rows)],
                };
                let pages = (before + rows).div_ceil(PAGE);
                let cache = ops.kv_cache(&[scene.shape()], pages).unwrap();
                let [k, v, q] = scene.rows(0);
                let mut step = Step::default();
                step.push(&vec![0; before + rows], 0, (0..pages as u32).collect());
                let write = best(threads, &|| ops.kv_write(&cache, 0, &k, &v, &step).unwrap());
                let mut step = Step::default();
                step.push(&vec![0; rows], before, (0..pages as u32).collect());
                let q = q.narrow(0, before, rows).unwrap();
                let once =
                    best(threads, &|| drop(ops.attention(&q, &cache, 0, &step, &scene.attention()).unwrap()));
                let flops = (4 * heads * head_dim * (0..rows).map(|r| before + r + 1).sum::<usize>()) as f64;
                println!(
                    "  attention {heads}/{kv_heads}x{head_dim} {rows} rows after {before}: {:.1} us, {:.1} GFLOP/s; writing all {:.1} us",
                    once * 1e6,
                    flops / once / 1e9,
                    write * 1e6
                );
            }
        }
    }
}
