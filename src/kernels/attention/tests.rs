//! Against f64, against itself in every other way to compute the same, and over pages full of NaN.

use super::*;
use crate::cache::storage::{KvShape, KvType};

struct Random(u64);

impl Random {
    fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn float(&mut self) -> f32 {
        (self.bits() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }

    fn floats(&mut self, count: usize, factor: f32) -> Vec<f32> {
        (0..count).map(|_| self.float() * factor).collect()
    }

    fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            items.swap(i, (self.bits() % (i as u64 + 1)) as usize);
        }
    }
}

/// Sequences in one cache: `(positions before, rows)` each.
#[derive(Clone, Debug)]
struct Scene {
    a: Attention<'static>,
    sequences: Vec<(usize, usize)>,
    /// Pages that all of them begin with.
    common: usize,
}

/// One sequence: keys, values and queries of all positions.
struct Source([Vec<f32>; 3]);

/// How a scene is computed.
#[derive(Clone, Copy, Debug)]
struct Way {
    kind: KvType,
    isa: Isa,
    threads: usize,
    /// Rows of each sequence in a step.
    rows: usize,
    /// Which pages.
    deal: u64,
}

impl Scene {
    fn shape(&self) -> KvShape {
        KvShape { kv_heads: self.a.kv_heads, head_dim: self.a.head_dim }
    }

    fn source(&self, index: usize) -> Source {
        let mut random = Random(index as u64 + 100);
        let len = self.sequences[index].0 + self.sequences[index].1;
        let (width, queries) = (self.shape().width(), len * self.a.heads * self.a.head_dim);
        let mut common = Random(99);
        let mut floats = |factor| {
            let mut floats = common.floats(self.common * PAGE * width, factor);
            floats.extend(random.floats((len - self.common * PAGE) * width, factor));
            floats
        };
        let (keys, values) = (floats(3.0), floats(1.0));
        Source([keys, values, random.floats(queries, 3.0)])
    }

    /// The outputs of the last rows of the sequences `which`. What lies before them is written at once; pages
    /// are full of NaN where nothing is written.
    fn run(&self, way: Way, which: &[usize]) -> Vec<Vec<f32>> {
        let pages: Vec<usize> = self.sequences.iter().map(|(b, r)| (b + r).div_ceil(PAGE)).collect();
        let total = pages.iter().sum::<usize>() + 3;
        let mut free: Vec<u32> = (0..total as u32).collect();
        Random(way.deal).shuffle(&mut free);
        let mut table: Vec<Vec<u32>> = pages.iter().map(|&count| free.drain(..count).collect()).collect();
        for index in 1..table.len() {
            let (first, rest) = table.split_at_mut(index);
            rest[0][..self.common].copy_from_slice(&first[0][..self.common]);
        }
        let kv = NativeKv::new(self.shape(), total, way.kind).unwrap();
        poison(&kv, total);
        let pool = Pool::new(way.threads).unwrap();
        let sources: Vec<_> = which.iter().map(|&index| self.source(index)).collect();
        let mut done: Vec<usize> = which.iter().map(|&index| self.sequences[index].0).collect();
        let mut outputs = vec![Vec::new(); which.len()];
        let (width, dims) = (self.shape().width(), self.a.heads * self.a.head_dim);
        // What bidirectional rows see is there before any of them is computed.
        let whole = |index: usize| self.sequences[index].0 + self.sequences[index].1;
        for (slot, &index) in which.iter().enumerate() {
            let written = if self.a.causal { done[slot] } else { whole(index) };
            fill(&kv, &table[index], 0..written, width, &sources[slot]);
        }
        loop {
            let (mut step, mut q, mut lens) = (Step::default(), Vec::new(), Vec::new());
            for (slot, &index) in which.iter().enumerate() {
                let (before, rows) = self.sequences[index];
                let range = done[slot]..(done[slot] + way.rows).min(before + rows);
                lens.push(range.len());
                if !range.is_empty() {
                    if self.a.causal {
                        fill(&kv, &table[index], range.clone(), width, &sources[slot]);
                    }
                    q.extend_from_slice(&sources[slot].0[2][range.start * dims..range.end * dims]);
                    step.push(&vec![0; range.len()], range.start, table[index].clone());
                    if let Some(span) = step.spans.last_mut().filter(|_| !self.a.causal) {
                        span.len = whole(index);
                    }
                }
                done[slot] = range.end;
            }
            if q.is_empty() {
                return outputs;
            }
            let mut out = vec![f32::NAN; q.len()];
            let queries = Queries { q: &q, step: &step, group: 0 };
            attention(&pool, way.isa, queries, &kv, &self.a, &mut out).unwrap();
            let mut rest = out.as_slice();
            for (output, len) in outputs.iter_mut().zip(lens) {
                let (own, others) = rest.split_at(len * dims);
                output.extend_from_slice(own);
                rest = others;
            }
        }
    }

    /// The same in f64.
    fn exact(&self, index: usize) -> Vec<f64> {
        let (a, Source([keys, values, q])) = (&self.a, self.source(index));
        let (before, rows) = self.sequences[index];
        let (dim, width) = (a.head_dim, self.shape().width());
        let mut out = Vec::new();
        for position in before..before + rows {
            let from = a.window.map_or(0, |window| (position + 1).saturating_sub(window));
            let end = before + rows;
            let to = match (a.causal, a.window) {
                (true, _) => position + 1,
                (false, window) => window.map_or(end, |window| end.min(position + window)),
            };
            for head in 0..a.heads {
                let q = &q[(position * a.heads + head) * dim..][..dim];
                let at = head / (a.heads / a.kv_heads) * dim;
                let score = |p: usize| {
                    let key = &keys[p * width + at..][..dim];
                    let dot: f64 = q.iter().zip(key).map(|(&q, &k)| f64::from(q) * f64::from(k)).sum();
                    let score = dot * f64::from(a.scale);
                    a.soft_cap.map_or(score, |cap| f64::from(cap) * (score / f64::from(cap)).tanh())
                };
                let scores: Vec<f64> = (from..to).map(score).collect();
                let sink = a.sinks.map_or(f64::NEG_INFINITY, |sinks| f64::from(sinks[head]));
                let greatest = scores.iter().copied().fold(sink, f64::max);
                let weights: Vec<f64> = scores.iter().map(|s| (s - greatest).exp()).collect();
                let sum: f64 = weights.iter().sum::<f64>() + (sink - greatest).exp();
                let value = |p: usize, d: usize| f64::from(values[p * width + at + d]);
                let mixed = |d| weights.iter().zip(from..).map(|(w, p)| w * value(p, d)).sum::<f64>() / sum;
                out.extend((0..dim).map(mixed));
            }
        }
        out
    }
}

fn fill(kv: &NativeKv, pages: &[u32], positions: Range<usize>, width: usize, source: &Source) {
    let slot = |p: usize| pages[p / PAGE] * PAGE as u32 + (p % PAGE) as u32;
    let slots: Vec<u32> = positions.clone().map(slot).collect();
    let range = positions.start * width..positions.end * width;
    kv.write_rows(&slots, &source.0[0][range.clone()], &source.0[1][range]).unwrap();
}

/// NaN in every slot. (What fills heads up to whole vectors stays zero: nobody writes there.)
fn poison(kv: &NativeKv, pages: usize) {
    let slots: Vec<u32> = (0..(pages * PAGE) as u32).collect();
    let nan = vec![f32::NAN; slots.len() * kv.shape().width()];
    kv.write_rows(&slots, &nan, &nan).unwrap();
}

fn scene(
    (heads, kv_heads, head_dim): (usize, usize, usize),
    window: Option<usize>,
    soft_cap: Option<f32>,
    sequences: &[(usize, usize)],
) -> Scene {
    let scale = 1.0 / (head_dim as f32).sqrt();
    Scene {
        a: Attention { heads, kv_heads, head_dim, scale, causal: true, window, soft_cap, sinks: None },
        sequences: sequences.to_vec(),
        common: 0,
    }
}

/// The same, and every row sees the rows behind it as well.
fn bidirectional(
    heads: (usize, usize, usize),
    window: Option<usize>,
    soft_cap: Option<f32>,
    sequences: &[(usize, usize)],
) -> Scene {
    let mut scene = scene(heads, window, soft_cap, sequences);
    scene.a.causal = false;
    scene
}

/// Answers that begin with the same pages.
fn relatives(
    heads: (usize, usize, usize),
    window: Option<usize>,
    soft_cap: Option<f32>,
    common: usize,
    lengths: &[usize],
) -> Scene {
    let sequences: Vec<_> = lengths.iter().map(|&before| (before, 1)).collect();
    Scene { common, ..scene(heads, window, soft_cap, &sequences) }
}

/// The same with sinks: beside the scores, below and above them.
fn sunk(mut scene: Scene) -> Scene {
    const SINKS: [f32; 9] = [0.5, -3.0, 2.0, 30.0, 0.0, -60.0, 4.0, 1.0, 95.0];
    scene.a.sinks = Some(&SINKS[..scene.a.heads]);
    scene
}

fn scenes() -> Vec<Scene> {
    vec![
        sunk(scene((9, 3, 64), None, None, &[(0, 40), (17, 1), (600, 3), (15, 1)])),
        sunk(scene((8, 4, 80), Some(128), Some(5.0), &[(0, 180), (1299, 2)])),
        sunk(relatives((4, 1, 64), None, None, 16, &[257, 300, 256, 258, 271, 530, 272])),
        sunk(bidirectional((7, 1, 20), Some(40), None, &[(0, 300), (270, 1)])),
        scene((1, 1, 16), None, None, &[(0, 1)]),
        scene((2, 2, 20), None, None, &[(0, 5), (3, 1)]),
        scene((9, 3, 64), None, None, &[(0, 40), (17, 1), (100, 3), (15, 1)]),
        scene((4, 1, 256), Some(24), None, &[(0, 37), (64, 1), (30, 20)]),
        scene((8, 4, 80), Some(1), Some(5.0), &[(0, 18), (33, 2)]),
        scene((14, 2, 64), Some(16), Some(50.0), &[(47, 33), (0, 1)]),
        scene((3, 3, 36), Some(1000), Some(2.0), &[(5, 30), (0, 17), (16, 1)]),
        // KV blocks end at 256: contexts before, at, and after that; windows that begin in an earlier block.
        scene((3, 1, 64), None, None, &[(254, 1), (255, 1), (256, 1), (700, 2), (1299, 1)]),
        scene((8, 1, 16), None, None, &[(240, 40), (1290, 10)]),
        scene((7, 1, 20), Some(24), None, &[(250, 30), (700, 1), (511, 2)]),
        scene((1, 1, 80), Some(300), Some(30.0), &[(250, 20), (550, 12), (1299, 1)]),
        scene((2, 2, 16), Some(1), None, &[(255, 3), (600, 1)]),
        scene((3, 1, 36), Some(256), None, &[(500, 30), (0, 1)]),
        // Both sides: within a page, over pages and KV blocks; windows that end in other blocks; and the last
        // layer's queries, of which there may be one, in front or at the end.
        bidirectional((1, 1, 16), None, None, &[(0, 1), (0, 16), (0, 17)]),
        bidirectional((9, 3, 64), None, None, &[(0, 40), (39, 1), (0, 100), (15, 3)]),
        bidirectional((4, 1, 256), Some(24), None, &[(0, 37), (0, 64), (30, 20)]),
        bidirectional((8, 4, 80), Some(1), Some(5.0), &[(0, 18), (33, 2)]),
        bidirectional((3, 1, 36), Some(257), None, &[(0, 530), (0, 257), (511, 1)]),
        bidirectional((2, 2, 20), None, Some(20.0), &[(0, 520), (255, 2), (256, 1), (0, 300)]),
        bidirectional((7, 1, 20), Some(40), None, &[(0, 300), (250, 30), (270, 1)]),
        // Pages in common: up to the last one, none in the second KV block, ends in other blocks.
        relatives((9, 3, 64), None, None, 9, &[150, 144, 200, 161, 147, 260, 159, 151, 180, 144, 153]),
        relatives((4, 1, 64), None, None, 16, &[257, 300, 256, 258, 271, 530, 272]),
        relatives((3, 1, 36), None, Some(20.0), 20, &[321, 322, 330, 327, 400, 590, 325, 341]),
        relatives((8, 1, 16), Some(40), None, 18, &[290, 300, 310, 350, 600, 289, 299]),
        relatives((6, 2, 20), Some(300), None, 24, &[385, 390, 700, 388, 420, 560, 384, 386]),
        relatives((2, 2, 16), None, None, 8, &[128, 129, 128, 143, 144]),
    ]
}

/// Checks every scene, and tells of all that fail.
fn each(check: impl Fn(&Scene) -> Result<(), String>) {
    let failures: Vec<String> =
        scenes().iter().filter_map(|s| check(s).err().map(|e| format!("{s:?}: {e}"))).collect();
    assert!(failures.is_empty(), "{} scenes fail:\n{}", failures.len(), failures.join("\n"));
}

type Result<T, E> = std::result::Result<T, E>;

const KINDS: [(KvType, f64); 3] = [(KvType::F32, 3e-6), (KvType::BF16, 1.5e-2), (KvType::I8, 7e-2)];

fn best() -> Isa {
    Isa::available()[0]
}

#[test]
fn attention_is_what_f64_says() {
    each(|scene| {
        let all: Vec<usize> = (0..scene.sequences.len()).collect();
        for (kind, bound) in KINDS {
            let found = scene.run(Way { kind, isa: best(), threads: 2, rows: 1000, deal: 1 }, &all);
            for (index, found) in found.iter().enumerate() {
                let exact = scene.exact(index);
                let size = exact.iter().fold(0.0, |a: f64, b| a.max(b.abs()));
                let errors = exact.iter().zip(found).map(|(a, &b)| (a - f64::from(b)).abs());
                let worst = errors.fold(0.0, |a: f64, b| if b.is_nan() { b } else { a.max(b) }) / size;
                if !(worst <= bound && exact.len() == found.len()) {
                    return Err(format!("{kind:?}, sequence {index}: {worst:.1e} instead of {bound:.0e}"));
                }
            }
        }
        Ok(())
    });
}

#[test]
fn a_query_gets_the_same_bits_however_it_is_computed() {
    each(|scene| {
        let all: Vec<usize> = (0..scene.sequences.len()).collect();
        for (kind, _) in KINDS {
            let way = Way { kind, isa: best(), threads: 1, rows: 1000, deal: 1 };
            let wanted = scene.run(way, &all);
            let same = |way: Way, which: &[usize]| {
                let found = scene.run(way, which);
                match which.iter().zip(&found).find(|&(&index, found)| bits(found) != bits(&wanted[index])) {
                    Some((index, _)) => Err(format!("{way:?} of {which:?}: sequence {index} differs")),
                    None => Ok(()),
                }
            };
            for isa in Isa::available() {
                same(Way { isa, deal: 2, ..way }, &all)?;
            }
            for (threads, rows) in [(2, 1000), (3, 16), (1, 3), (8, 7)] {
                same(Way { threads, rows, deal: 3, ..way }, &all)?;
            }
            for &index in &all {
                same(Way { deal: 4, ..way }, &[index])?;
                same(Way { threads: 9, rows: 1, deal: 5, ..way }, &[index])?;
            }
        }
        Ok(())
    });
}

fn bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// A row whose value is infinite harms those that see it, and no other: not its neighbours in the same tile
/// either.
#[test]
fn what_is_not_seen_does_no_harm() {
    for (kind, _) in KINDS {
        let scene = scene((3, 1, 32), Some(20), None, &[(0, 50)]);
        let Source([keys, mut values, q]) = scene.source(0);
        values[25 * 32 + 7] = f32::INFINITY;
        let kv = NativeKv::new(scene.shape(), 4, kind).unwrap();
        poison(&kv, 4);
        let pages = [2, 0, 3, 1];
        fill(&kv, &pages, 0..50, 32, &Source([keys, values, q.clone()]));
        let mut step = Step::default();
        step.push(&[0; 50], 0, pages.to_vec());
        let mut out = vec![0.0; q.len()];
        let queries = Queries { q: &q, step: &step, group: 0 };
        attention(&Pool::new(1).unwrap(), best(), queries, &kv, &scene.a, &mut out).unwrap();
        let harmed: Vec<usize> =
            out.iter().enumerate().filter(|(_, x)| !x.is_finite()).map(|(at, _)| at / 96).collect();
        assert!(harmed.iter().all(|row| (25..45).contains(row)), "{kind:?}: {harmed:?}");
        assert!(harmed.contains(&25) && harmed.contains(&44), "{kind:?}: {harmed:?}");
    }
}

/// Not a test: prints what this machine does. `cargo test --release --lib attention::tests::speed --
/// --ignored --nocapture`; `ATTENTION='1 BF16 (9, 3, 64) 512'` for a part of it, `TALLOW_ISA` for another
/// tier. (In the profile `fast`, checks of pointers halve the speed.)
#[cfg(target_os = "linux")]
#[test]
#[ignore = "prints timings"]
fn speed() {
    for threads in [1, 2] {
        for kind in [KvType::I8, KvType::BF16, KvType::F32] {
            for heads in [(9, 3, 64), (4, 1, 256), (32, 8, 128), (1, 1, 64)] {
                for (before, rows) in [(0, 512), (1536, 512), (511, 1), (2047, 1), (8191, 1)] {
                    let name = format!("{threads} {kind:?} {heads:?} {rows}");
                    if std::env::var("ATTENTION").is_ok_and(|only| !name.contains(&only)) {
                        continue;
                    }
                    time(threads, kind, &scene(heads, None, None, &[(before, rows)]));
                }
            }
        }
    }
}

/// The time of one attention: that of this thread if there is one (other programs do not count), else the
/// clock's.
#[cfg(target_os = "linux")]
fn time(threads: usize, kind: KvType, scene: &Scene) {
    let now = || {
        let clock = if threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
        let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
        // SAFETY: `time` is ours to be written.
        unsafe { libc::clock_gettime(clock, &mut time) };
        time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
    };
    let isa = Isa::from_env().unwrap();
    let (pool, a, (before, rows)) = (Pool::new(threads).unwrap(), scene.a, scene.sequences[0]);
    let pages = (before + rows).div_ceil(PAGE);
    // Several layers, so that a decoded token does not find all of its keys in the caches.
    let layers: Vec<_> = (0..16).map(|_| NativeKv::new(scene.shape(), pages, kind).unwrap()).collect();
    let source = scene.source(0);
    let slots: Vec<u32> = (0..(before + rows) as u32).collect();
    let start = now();
    for kv in &layers {
        super::write(&pool, isa, kv, &slots, &source.0[0], &source.0[1]).unwrap();
    }
    let write = (now() - start) / (layers.len() * slots.len()) as f64;
    let mut step = Step::default();
    step.push(&vec![0; rows], before, (0..pages as u32).collect());
    let q = &source.0[2][before * a.heads * a.head_dim..];
    let mut out = vec![0.0; q.len()];
    let mut best = f64::INFINITY;
    for _ in 0..6 {
        let start = now();
        for kv in &layers {
            let queries = Queries { q, step: &step, group: 0 };
            attention(&pool, isa, queries, kv, &a, &mut out).unwrap();
        }
        best = best.min((now() - start) / layers.len() as f64);
    }
    let seen: usize = (0..rows).map(|row| before + row + 1).sum();
    let bytes = (before + rows) * KvType::position_bytes(kind, scene.shape()).unwrap();
    println!(
        "{threads} threads, {}, {}, {}/{}x{}, {rows} rows after {before}: {:.1} us, {:.1} GFLOP/s, \
         {:.1} GB/s; writing {:.0} ns a row",
        isa.name(),
        kind.name(),
        a.heads,
        a.kv_heads,
        a.head_dim,
        best * 1e6,
        (4 * a.heads * a.head_dim * seen) as f64 / best / 1e9,
        bytes as f64 / best / 1e9,
        write * 1e9
    );
}
