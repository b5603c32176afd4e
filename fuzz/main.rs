//! libFuzzer over the target of `tests/fuzz` that `TALLOW_FUZZ` names; without it, all names are told.
//! `TALLOW_FUZZ_SEEDS` names a folder to write the target's seeds into, instead. See `scripts/fuzz.py`.

#![no_main]

#[path = "../tests/fuzz/mod.rs"]
mod targets;

use std::sync::LazyLock;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use libfuzzer_sys::{fuzz_mutator, fuzz_target, fuzzer_mutate};

use targets::random::Random;
use targets::{TARGETS, Target, mutate, rules};

static TARGET: LazyLock<&Target> = LazyLock::new(|| {
    let name = std::env::var("TALLOW_FUZZ").expect("TALLOW_FUZZ names a target");
    targets::target(&name)
});

static SEEDS: LazyLock<Vec<Vec<u8>>> = LazyLock::new(|| (TARGET.seeds)());

/// Inputs, those that were taken, and the most that one took, in microseconds and bytes.
static COUNTS: [AtomicU64; 4] = [const { AtomicU64::new(0) }; 4];

fuzz_target!(init: begin(), |input: &[u8]| {
    match rules::check(&TARGET, input) {
        Ok((taken, cost)) => {
            COUNTS[0].fetch_add(1, Relaxed);
            COUNTS[1].fetch_add(taken.into(), Relaxed);
            COUNTS[2].fetch_max(cost.time.as_micros() as u64, Relaxed);
            COUNTS[3].fetch_max(cost.memory as u64, Relaxed);
        }
        Err(problem) => {
            eprintln!("{} broke a rule: {problem}", TARGET.name);
            // libFuzzer keeps the input.
            std::process::abort();
        }
    }
});

fuzz_mutator!(|data: &mut [u8], size: usize, most: usize, seed: u32| {
    let mut random = Random::new(seed.into());
    if random.below(2) == 0 {
        return fuzzer_mutate(data, size, most);
    }
    let other = &SEEDS[random.below(SEEDS.len())];
    let input = match random.below(8) {
        0 => mutate::mutated_seed(&TARGET, &SEEDS, &mut random),
        _ => mutate::mutated(&TARGET, &data[..size], other, &mut random),
    };
    let size = input.len().min(most);
    data[..size].copy_from_slice(&input[..size]);
    size
});

/// A panic is an error where a library's are caught, and else `rules` tells of it: libFuzzer's hook, which
/// ends the process, must not see it.
fn begin() {
    rules::quiet();
    if std::env::var_os("TALLOW_FUZZ").is_none() {
        TARGETS.iter().for_each(|target| println!("{}", target.name));
        std::process::exit(0);
    }
    if let Some(folder) = std::env::var_os("TALLOW_FUZZ_SEEDS") {
        let folder = std::path::PathBuf::from(folder);
        let found = targets::found(&TARGET).into_iter().map(|(_, input)| input);
        for (at, input) in SEEDS.iter().cloned().chain(found).enumerate() {
            std::fs::write(folder.join(format!("seed-{at:03}")), input).unwrap();
        }
        std::process::exit(0);
    }
    extern "C" fn told() {
        let [inputs, taken, time, memory] = [0, 1, 2, 3].map(|at| COUNTS[at].load(Relaxed));
        eprintln!("fuzz {} {inputs} {taken} {time} {memory}", TARGET.name);
    }
    // SAFETY: the function takes nothing and does not unwind.
    unsafe { libc::atexit(told) };
}
