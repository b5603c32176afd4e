//! Damaged inputs of every reader of what strangers wrote: [`ROUNDS`] a target, the same ones each time. Each
//! target runs in a process of its own, so that what ends a process (a stack that is full, memory that is
//! not there) is told by its input, too.
//!
//! `TALLOW_FUZZ=gguf` runs one target alone, `TALLOW_FUZZ=gguf:17` its round 17, and `TALLOW_FUZZ_ROUNDS`
//! says another number of rounds.

#[path = "fuzz/mod.rs"]
mod fuzz;

use std::fs::File;
use std::io::{Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::Mutex;
use std::time::Instant;

use fuzz::random::Random;
use fuzz::rules::{self, Cost};
use fuzz::{TARGETS, Target, mutate};

/// Inputs of a target, found ones not counted.
const ROUNDS: u64 = 20_000;
/// Of targets whose inputs take one to twenty milliseconds: all together a minute on two processors.
const SLOW: [(&str, u64); 4] = [("tokenizer", 10_000), ("schema", 5_000), ("regex", 1_000), ("lark", 1_000)];
/// Names the target that this process runs.
const CHOICE: &str = "TALLOW_FUZZ";

/// Each target in a process, as many at once as there are processors.
#[test]
fn damaged_inputs_break_no_rule() {
    if let Ok(choice) = std::env::var(CHOICE) {
        return run(&choice);
    }
    let next = Mutex::new(TARGETS.iter());
    let failed = Mutex::new(Vec::new());
    let work = || {
        while let Some(target) = { next.lock().unwrap().next() } {
            if let Err(problem) = in_a_process(target) {
                failed.lock().unwrap().push(problem);
            }
        }
    };
    std::thread::scope(|scope| {
        let threads = std::thread::available_parallelism().map_or(1, usize::from);
        (0..threads).for_each(|_| drop(scope.spawn(work)));
    });
    let failed = failed.into_inner().unwrap();
    assert!(failed.is_empty(), "\n{}", failed.join("\n"));
}

fn in_a_process(target: &Target) -> Result<(), String> {
    let program = std::env::current_exe().unwrap();
    let arguments = ["--exact", "damaged_inputs_break_no_rule", "--nocapture"];
    let output = Command::new(program).args(arguments).env(CHOICE, target.name).output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout);
    said.lines().filter(|line| line.starts_with("fuzz ")).for_each(|line| println!("{line}"));
    if output.status.success() { Ok(()) } else { Err(told(target, output.status, &output.stderr)) }
}

/// What a process that failed has said, and in which round it was if it was ended.
fn told(target: &Target, status: ExitStatus, stderr: &[u8]) -> String {
    let round = std::fs::read(progress(target)).ok().and_then(|bytes| bytes.try_into().ok());
    let round = round.map_or(0, u64::from_le_bytes);
    let stderr = String::from_utf8_lossy(stderr);
    let said = stderr.split_once("broke a rule").map_or(&*stderr, |(_, said)| said);
    let said: String = said.chars().take(4000).collect();
    format!("{}: {status} in round {round} (TALLOW_FUZZ={}:{round}){said}", target.name, target.name)
}

/// Where a process says in which round it is.
fn progress(target: &Target) -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("fuzz-{}", target.name))
}

/// Runs the target, or the round of it, that `choice` names.
fn run(choice: &str) {
    let (name, round) = choice.split_once(':').unwrap_or((choice, ""));
    let target = fuzz::target(name);
    let seeds = (target.seeds)();
    if let Ok(round) = round.parse() {
        let input = input(target, &seeds, round);
        println!("{}\n{:?}", String::from_utf8_lossy(&input), rules::check(target, &input));
        return;
    }
    rules::quiet();
    let rounds = std::env::var("TALLOW_FUZZ_ROUNDS").ok().and_then(|rounds| rounds.parse().ok());
    let slow = SLOW.iter().find(|(slow, _)| *slow == name).map(|(_, rounds)| *rounds);
    all_rounds(target, &seeds, rounds.or(slow).unwrap_or(ROUNDS));
}

fn all_rounds(target: &Target, seeds: &[Vec<u8>], rounds: u64) {
    let (start, mut place) = (Instant::now(), File::create(progress(target)).unwrap());
    let (mut failed, mut taken, mut most) = (Vec::new(), 0, Cost::default());
    let mut check = |what: String, input: &[u8]| match rules::check(target, input) {
        Ok((is_taken, cost)) => {
            taken += u64::from(is_taken);
            most.time = most.time.max(cost.time);
            most.memory = most.memory.max(cost.memory);
        }
        Err(problem) => failed.push(format!("{what}: {problem}")),
    };
    fuzz::found(target).iter().for_each(|(path, input)| check(path.display().to_string(), input));
    seeds.iter().enumerate().for_each(|(at, seed)| check(format!("seed {at}"), seed));
    for round in 0..rounds {
        place.rewind().and_then(|()| place.write_all(&round.to_le_bytes())).unwrap();
        check(format!("round {round}"), &input(target, seeds, round));
    }
    let Cost { time, memory } = most;
    println!(
        "fuzz {:12} {rounds} inputs, {taken} taken, at most {:.0} ms and {:.1} MB, in {:.1} s",
        target.name,
        time.as_secs_f64() * 1e3,
        memory as f64 / 1e6,
        start.elapsed().as_secs_f64()
    );
    let shown = failed[..failed.len().min(20)].join("\n");
    assert!(failed.is_empty(), "broke a rule in {} of {rounds}:\n{shown}", failed.len());
    // Otherwise the damage is so crude that nothing behind the first check is ever tried, or so fine that
    // nothing is damaged.
    assert!(
        (rounds / 200..=rounds * 49 / 50).contains(&taken),
        "broke a rule: {taken} of {rounds} were taken"
    );
}

/// The input of a round: it depends on nothing else.
fn input(target: &Target, seeds: &[Vec<u8>], round: u64) -> Vec<u8> {
    mutate::mutated_seed(target, seeds, &mut Random::new(round))
}

/// The rules see what they are for.
#[test]
fn rules_are_broken_by_what_breaks_them() {
    type Run = fn(&[u8]) -> fuzz::Outcome;
    fn target(run: Run) -> Target {
        Target { name: "rules", parts: &[], seeds: Vec::new, run }
    }
    let long = |_: &[u8]| {
        let error = tallow::Error::model_file("x".repeat(3000));
        rules::taken::<()>(&Err(error), rules::OF_FILES)
    };
    let held = |_: &[u8]| Ok(std::hint::black_box(vec![1u8; rules::MOST_MEMORY + 4096]).len() > 1);
    let works = |_: &[u8]| {
        let end = rules::processor_time() + 2 * rules::MOST_TIME;
        while rules::processor_time() < end {}
        Ok(true)
    };
    let of_another_kind = |_: &[u8]| rules::taken::<()>(&Err(tallow::Error::internal("oh")), rules::OF_FILES);
    let rows: [(Run, &str); 5] = [
        (|_| panic!("at the disco"), "a panic: at the disco"),
        (held, "bytes of memory"),
        (works, "of work"),
        (long, "a long message"),
        (of_another_kind, "Internal"),
    ];
    for (run, words) in rows {
        let problem = rules::check(&target(run), b"1").expect_err(words);
        assert!(problem.contains(words), "{problem}");
    }
    let sound = rules::check(&target(|input| Ok(input.len() == 1)), b"1");
    assert!(matches!(sound, Ok((true, _))), "{sound:?}");
}
