//! Not a test: prints what this machine does, and what share that is of what it could.
//! `cargo test --release --test kernels speed -- --ignored --nocapture` (`THREADS=1,2`, `ONLY=Q4_K` choose).
//! `cargo test --release --test kernels formats -- --ignored --nocapture` holds one row of each format
//! against Q4_0 and Q8_0.

use std::hint::black_box;

use tallow::kernels::{KvLayout, KvType, Linear, Ops, Rows};
use tallow::step::{PAGE, Step};
use tallow::weights::WeightType;

use crate::attention::Scene;
use crate::support::*;

/// What the machine could do with some threads: measured, with loops that do nothing else.
struct Limits {
    /// Bytes a second out of memory.
    read: f64,
    /// Byte operations a second (a product and its sum are two).
    bytes: f64,
    /// Float operations a second.
    floats: f64,
}

/// The time of one thread is its time on a core, so that other programs do not count; that of several is the
/// clock's.
fn now(threads: usize) -> f64 {
    let clock = if threads == 1 { libc::CLOCK_THREAD_CPUTIME_ID } else { libc::CLOCK_MONOTONIC };
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `time` is ours to be written.
    unsafe { libc::clock_gettime(clock, &mut time) };
    time.tv_sec as f64 + time.tv_nsec as f64 * 1e-9
}

/// The shortest of several times, in seconds.
fn best(threads: usize, f: &dyn Fn()) -> f64 {
    let time = |_| {
        let start = now(threads);
        f();
        now(threads) - start
    };
    (0..7).map(time).fold(f64::INFINITY, f64::min)
}

/// `f` on each of the threads at once, with its number.
fn on_all(threads: usize, f: &(dyn Fn(usize) + Sync)) {
    std::thread::scope(|scope| {
        (1..threads).for_each(|index| drop(scope.spawn(move || f(index))));
        f(0);
    });
}

impl Limits {
    fn measure(threads: usize) -> Limits {
        let memory = vec![1u64; 24 << 20];
        let share = memory.len() / threads;
        let read = best(threads, &|| {
            on_all(threads, &|index| {
                black_box(read(&memory[index * share..(index + 1) * share]));
            })
        });
        const ROUNDS: usize = 2_000_000;
        let rate = |f: fn(usize) -> f64| {
            let operations = f(1);
            let time = best(threads, &|| on_all(threads, &|_| assert!(black_box(f(ROUNDS)) > 0.0)));
            operations * (threads * ROUNDS) as f64 / time
        };
        Limits { read: (8 * share * threads) as f64 / read, bytes: rate(byte_products), floats: rate(fused) }
    }
}

/// Reads all of it, in four streams.
fn read(words: &[u64]) -> [u64; 8] {
    #[inline(always)]
    fn streams(words: &[u64]) -> [u64; 8] {
        let lines = words.as_chunks::<8>().0;
        let quarter = lines.len() / 4;
        let mut sums = [[0u64; 8]; 4];
        for at in 0..quarter {
            for (stream, sums) in sums.iter_mut().enumerate() {
                let line = &lines[stream * quarter + at];
                (0..8).for_each(|word| sums[word] ^= line[word]);
            }
        }
        std::array::from_fn(|word| sums.iter().fold(0, |sum, sums| sum ^ sums[word]))
    }
    #[cfg(target_arch = "x86_64")]
    {
        #[target_feature(enable = "avx2")]
        fn wide(words: &[u64]) -> [u64; 8] {
            streams(words)
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: the machine has the instructions.
            return unsafe { wide(words) };
        }
    }
    streams(words)
}

/// Chains of instructions that do not wait for each other.
const CHAINS: usize = 16;

/// Does so many rounds of byte products in registers; returns the operations of one round.
fn byte_products(rounds: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        #[target_feature(enable = "avx512f,avx512vnni")]
        fn wide(rounds: usize) {
            let (a, b) = (_mm512_set1_epi8(black_box(3)), _mm512_set1_epi8(black_box(5)));
            let mut sums = [_mm512_setzero_si512(); CHAINS];
            for _ in 0..rounds {
                sums.iter_mut().for_each(|sum| *sum = _mm512_dpbusd_epi32(*sum, a, b));
            }
            black_box(sums);
        }
        #[target_feature(enable = "avx2")]
        fn narrow(rounds: usize) {
            let (a, b, ones) =
                (_mm256_set1_epi8(black_box(3)), _mm256_set1_epi8(black_box(5)), _mm256_set1_epi16(1));
            let mut sums = [_mm256_setzero_si256(); 8];
            for _ in 0..rounds {
                for sum in &mut sums {
                    let a = _mm256_xor_si256(a, *sum);
                    *sum = _mm256_add_epi32(*sum, _mm256_madd_epi16(_mm256_maddubs_epi16(a, b), ones));
                }
            }
            black_box(sums);
        }
        if is_x86_feature_detected!("avx512f") && is_x86_feature_detected!("avx512vnni") {
            // SAFETY: the machine has the instructions.
            unsafe { wide(rounds) };
            return (2 * 64 * CHAINS) as f64;
        }
        if is_x86_feature_detected!("avx2") {
            // SAFETY: as above.
            unsafe { narrow(rounds) };
            return (2 * 32 * 8) as f64;
        }
    }
    let mut sums = [1i32; CHAINS];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = sum.wrapping_mul(3) + 5);
    }
    black_box(sums);
    (2 * CHAINS) as f64
}

/// The same for fused multiply-add of f32.
fn fused(rounds: usize) -> f64 {
    #[cfg(target_arch = "x86_64")]
    {
        use std::arch::x86_64::*;
        #[target_feature(enable = "avx512f")]
        fn wide(rounds: usize) {
            let (a, b) = (_mm512_set1_ps(black_box(0.5)), _mm512_set1_ps(black_box(0.25)));
            let mut sums = [_mm512_setzero_ps(); CHAINS];
            for _ in 0..rounds {
                sums.iter_mut().for_each(|sum| *sum = _mm512_fmadd_ps(*sum, a, b));
            }
            black_box(sums);
        }
        #[target_feature(enable = "avx2,fma")]
        fn narrow(rounds: usize) {
            let (a, b) = (_mm256_set1_ps(black_box(0.5)), _mm256_set1_ps(black_box(0.25)));
            let mut sums = [_mm256_setzero_ps(); 12];
            for _ in 0..rounds {
                sums.iter_mut().for_each(|sum| *sum = _mm256_fmadd_ps(*sum, a, b));
            }
            black_box(sums);
        }
        if is_x86_feature_detected!("avx512f") {
            // SAFETY: the machine has the instructions.
            unsafe { wide(rounds) };
            return (2 * 16 * CHAINS) as f64;
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma") {
            // SAFETY: as above.
            unsafe { narrow(rounds) };
            return (2 * 8 * 12) as f64;
        }
    }
    let mut sums = [1.0f32; CHAINS];
    for _ in 0..rounds {
        sums.iter_mut().for_each(|sum| *sum = *sum * 0.5 + 0.25);
    }
    black_box(sums);
    (2 * CHAINS) as f64
}

/// So many seconds for work that needs at least `reading` or `computing` seconds.
fn report(seconds: f64, flops: f64, reading: f64, computing: f64) -> String {
    let (limit, which) = if reading > computing { (reading, "read") } else { (computing, "compute") };
    let (micros, rate) = (seconds * 1e6, flops / seconds / 1e9);
    format!("{micros:9.1} us {rate:7.1} GFLOP/s, {:3.0} % of {which}", 100.0 * limit / seconds)
}

/// The numbers of rows: `ROWS=1,4`, or some of each kind.
fn row_counts() -> Vec<usize> {
    let rows = std::env::var("ROWS").unwrap_or("1,4,8,32,512".into());
    rows.split(',').map(|count| count.parse().expect("ROWS=1,4")).collect()
}

fn chosen(what: &str) -> bool {
    std::env::var("ONLY").map_or(true, |only| what.contains(&only))
}

/// Matrices are taken in turn, more of them than the caches hold, as a model does.
fn products(ops: &Ops, limits: &Limits) {
    use WeightType::{BF16, F32, Q4_1, Q4K, Q6K, Q8_0};
    const MANY: usize = 96 << 20;
    for ty in [Q4_1, Q4K, Q8_0, Q6K, F32, BF16].into_iter().filter(|ty| chosen(ty.name())) {
        for (n, k) in [(1536usize, 576usize), (576, 1536), (16384, 640)] {
            let k = k.next_multiple_of(ty.block_len());
            let w = weights(ty, n, k, &mut Random(1));
            let copies: Vec<_> = (0..(MANY / w.data.len()).max(2)).map(|_| linear(ops, &w, None)).collect();
            for rows in row_counts() {
                let x = Random(2).table(rows, k).on(ops);
                let turns = copies.len().min(1 + 256 / rows);
                let next = std::cell::Cell::new(0);
                let time = best(ops.threads(), &|| {
                    for _ in 0..turns {
                        drop(black_box(ops.linear(&copies[next.get() % copies.len()], &x).unwrap()));
                        next.set(next.get() + 1);
                    }
                });
                let flops = (2 * rows * n * k) as f64;
                let most = if ty.takes_bytes() { limits.bytes } else { limits.floats };
                let line =
                    report(time / turns as f64, flops, w.data.len() as f64 / limits.read, flops / most);
                println!("  {:5} {n:5}x{k:<4} rows {rows:3}: {line}", ty.name());
            }
        }
    }
}

/// The keys and values of several layers, more than the caches hold.
fn attention(ops: &Ops, kv: KvType, limits: &Limits) {
    for (heads, kv_heads, head_dim) in [(9, 3, 64), (4, 1, 256)] {
        for (before, rows) in [(511, 1), (2047, 1), (0, 512), (1536, 512)] {
            let sequences = vec![(before, rows)];
            let scene = Scene {
                heads,
                kv_heads,
                head_dim,
                causal: true,
                window: None,
                soft_cap: None,
                sinks: None,
                sequences,
            };
            let pages = (before + rows).div_ceil(PAGE);
            let bytes = (before + rows) * kv.position_bytes(scene.shape()).unwrap();
            let layers = ((96 << 20) / bytes).clamp(1, 64);
            let cache = ops.kv_cache(&KvLayout::single(&vec![scene.shape(); layers]), pages).unwrap();
            let [k, v, q] = scene.rows(0);
            let (k, v, q) = (k.on(ops), v.on(ops), q.part(before, rows).on(ops));
            let ids: Vec<u32> = (0..pages as u32).collect();
            let (mut all, mut step) = (Step::default(), Step::default());
            all.push(&vec![0; before + rows], 0, ids.clone());
            step.push(&vec![0; rows], before, ids);
            let (all, step) =
                (ops.checked_step(&all, &cache).unwrap(), ops.checked_step(&step, &cache).unwrap());
            let write = best(ops.threads(), &|| {
                (0..layers).for_each(|layer| ops.kv_write(&cache, layer, &k, &v, &all).unwrap());
            });
            let time = best(ops.threads(), &|| {
                for layer in 0..layers {
                    drop(black_box(ops.attention(&q, &cache, layer, &step, &scene.attention()).unwrap()));
                }
            });
            let seen: usize = (0..rows).map(|row| before + row + 1).sum();
            let flops = (4 * heads * head_dim * seen) as f64;
            let line = report(time / layers as f64, flops, bytes as f64 / limits.read, flops / limits.floats);
            let write = write / (layers * (before + rows)) as f64 * 1e9;
            let what = format!("{} {heads}/{kv_heads}x{head_dim} {rows} rows after {before}", kv.name());
            println!("  attention {what}: {line}; writing {write:.0} ns a row");
        }
    }
}

#[test]
#[ignore = "prints timings"]
fn speed() {
    let threads = std::env::var("THREADS").unwrap_or("1,2".into());
    for threads in threads.split(',').map(|count| count.parse().expect("THREADS=1,2")) {
        let limits = Limits::measure(threads);
        let giga = |rate: f64| rate / 1e9;
        println!(
            "{threads} threads could read {:.1} GB/s and do {:.0} GOP/s of bytes, {:.0} GFLOP/s",
            giga(limits.read),
            giga(limits.bytes),
            giga(limits.floats)
        );
        let machines = [KvType::BF16, KvType::F32].map(|kv| (kv, Ops::cpu(threads, kv).unwrap()));
        println!("{:?}", machines[0].1);
        products(&machines[0].1, &limits);
        for (kv, ops) in machines.iter().filter(|_| chosen("attention")) {
            attention(ops, *kv, &limits);
        }
    }
}

/// A format's matrices, as many as the caches do not hold, and one row that passes them in turn.
struct Stream {
    copies: Vec<Linear>,
    x: Rows,
    best: f64,
}

impl Stream {
    fn new(ops: &Ops, ty: WeightType, (n, k): (usize, usize)) -> Stream {
        const MANY: usize = 64 << 20;
        let w = weights(ty, n, k, &mut Random(1));
        let copies = (0..(MANY / w.data.len()).max(2)).map(|_| linear(ops, &w, None)).collect();
        Stream { copies, x: Random(2).table(1, k).on(ops), best: f64::INFINITY }
    }

    /// Seconds that a matrix takes, at best until now.
    fn turn(&mut self, ops: &Ops) -> f64 {
        let start = now(ops.threads());
        for linear in &self.copies {
            drop(black_box(ops.linear(linear, &self.x).unwrap()));
        }
        self.best = self.best.min((now(ops.threads()) - start) / self.copies.len() as f64);
        self.best
    }
}

/// How fast one row is, as a share of Q4_0's and Q8_0's speed on the same shape, in turns with them: the
/// layers of SmolLM2-135M and of the one with 1.7B.
#[test]
#[ignore = "prints speeds"]
fn formats() {
    const SHAPES: [(usize, usize); 4] = [(1536, 576), (576, 1536), (8192, 2048), (2048, 8192)];
    let threads = std::env::var("THREADS").unwrap_or("1,2".into());
    for threads in threads.split(',') {
        let ops = Ops::cpu(threads.parse().expect("THREADS=1,2"), KvType::BF16).unwrap();
        println!("{ops:?}; of Q4_0, of Q8_0: {SHAPES:?}");
        for ty in WeightType::ALL.into_iter().filter(|ty| chosen(ty.name())) {
            let shares = SHAPES.map(|(n, k)| {
                let shape = (n, k.next_multiple_of(ty.block_len()));
                let mut streams =
                    [ty, WeightType::Q4_0, WeightType::Q8_0].map(|ty| Stream::new(&ops, ty, shape));
                let mut times = [0.0; 3];
                for _ in 0..9 {
                    times = streams.each_mut().map(|stream| stream.turn(&ops));
                }
                format!("{:4.2} {:4.2}", times[1] / times[0], times[2] / times[0])
            });
            println!("{:8} {}", ty.name(), shares.join(" | "));
        }
    }
}
