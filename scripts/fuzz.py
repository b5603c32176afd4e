"""Fuzz the readers of files with libFuzzer: `make fuzz ARGS="gguf safetensors 100000"`.

Names choose targets (all of them without), a number says how many inputs each gets (a million without). No
nightly compiler is needed: the instrumentation is a pass of LLVM, which the stable one has, too. What is
needed beyond the tests is a C++ compiler. An input that breaks a rule is kept in target/fuzz/found, and the
run of its target ends there.
"""

import argparse
import os
import re
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLACE = ROOT / "target" / "fuzz"
# Counters at edges, and the operands of comparisons.
FLAGS = (
    "-Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4"
    " -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table"
    " -Cllvm-args=-sanitizer-coverage-trace-compares"
)
LARGEST = 65536  # bytes of an input


def host() -> str:
    said = subprocess.run(["rustc", "-vV"], check=True, capture_output=True, text=True).stdout
    return re.search(r"^host: (.*)$", said, re.M).group(1)


def build() -> Path:
    """The program; with a target named, so that the flags do not reach build scripts and macros."""
    target = host()
    environment = os.environ | {"RUSTFLAGS": FLAGS, "CARGO_TARGET_DIR": str(PLACE)}
    command = ["cargo", "build", "--release", "--locked", "--manifest-path", str(ROOT / "fuzz/Cargo.toml")]
    subprocess.run([*command, "--target", target], check=True, env=environment)
    return PLACE / target / "release" / "tallow-fuzz"


def targets(program: Path) -> list[str]:
    environment = {name: value for name, value in os.environ.items() if name != "TALLOW_FUZZ"}
    return subprocess.run(
        [program], check=True, capture_output=True, text=True, env=environment
    ).stdout.split()


def fuzz(program: Path, name: str, runs: int, seconds: int) -> bool:
    """Runs one target; libFuzzer tells how far it is. What it learned stays for the next time."""
    corpus, seeds, found = (PLACE / kind / name for kind in ("corpus", "seeds", "found"))
    for folder in (corpus, seeds, found):
        folder.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {"TALLOW_FUZZ": name}
    subprocess.run([program], check=True, env=environment | {"TALLOW_FUZZ_SEEDS": str(seeds)})
    # The rules measure time and memory; libFuzzer's own limit of time, 20 minutes, is for what never returns.
    options = [f"-runs={runs}", f"-max_total_time={seconds}", f"-max_len={LARGEST}", "-rss_limit_mb=4096"]
    options += [f"-artifact_prefix={found}/"]
    start = time.monotonic()
    process = subprocess.Popen(
        [program, *options, corpus, seeds],
        env=environment,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
    )
    said, edges = "", "?"
    for line in process.stderr:
        print(f"{name}: {line}", end="", flush=True)
        if match := re.search(r"cov: (\d+)", line):
            edges = match.group(1)
        if line.startswith("fuzz "):
            said = line
    process.wait()
    if said:
        _, _, inputs, taken, micros, held = said.split()
        minutes = (time.monotonic() - start) / 60
        print(
            f"| {name} | {int(inputs):,} | {int(taken) * 100 // max(1, int(inputs))} % | {edges} "
            f"| {int(micros) / 1000:.0f} ms | {int(held) / 1e6:.1f} MB | {minutes:.1f} min |",
            flush=True,
        )
    return process.returncode == 0


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("arguments", nargs="*", metavar="TARGET|RUNS", help="targets, and a number of inputs")
    parser.add_argument("--seconds", type=int, default=0, help="the most that a target takes; 0: no limit")
    options = parser.parse_args()
    numbers = [int(argument) for argument in options.arguments if argument.isdigit()]
    names = [argument for argument in options.arguments if not argument.isdigit()]
    if len(numbers) > 1:
        parser.error("give one number, of the inputs of each target")
    program = build()
    known = targets(program)
    if unknown := set(names) - set(known):
        parser.error(f"there is no target {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    runs = numbers[0] if numbers else 1_000_000
    failed = [name for name in names or known if not fuzz(program, name, runs, options.seconds)]
    if failed:
        print(f"{', '.join(failed)} broke a rule; the inputs lie in {PLACE / 'found'}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
