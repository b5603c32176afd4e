"""How long loading takes and what it costs in memory, each model in fresh processes, in turns.

    python benches/load.py [MODEL ...]

Three kinds of starts: `packed here` packs the weights and keeps nothing, `first` packs them and has them
written to disk (some seconds later, and at its end), `later` maps what the first one kept. Prints, for
each, the seconds to import tallow, to load the model, from there to the first token of a short prompt, and
the process's peak memory above the interpreter's with numpy; beside them llama-cpp-python, if it is in
target/peers/llama.cpp (`make bench-peers`). Then the memory that two processes with the same model take
together (PSS: pages that are shared count as a half). The files must be in the cache already (`tallow pull
MODEL`); what is kept goes to a folder of its own.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import tallow
from tallow import wheels

ROOT = Path(__file__).resolve().parents[1]
PEER = ROOT / "target" / "peers" / "llama.cpp" / "bin" / "python"
PROMPT = "Once upon a time"

PROBE = """
import json, resource, sys, time
import numpy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
import tallow
imported = time.perf_counter()
model = tallow.Model(sys.argv[1], progress=False, packed_cache=sys.argv[2] != "packed here")
loaded = time.perf_counter()
model.generate(sys.argv[3], max_tokens=1, temperature=0)
first = time.perf_counter()
model.generate(sys.argv[3], max_tokens=64, temperature=0)
again = tallow.Model(sys.argv[1], progress=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({
    "import_s": imported - start, "load_s": loaded - imported, "first_token_s": first - loaded,
    "total_s": first - imported, "peak_mib": peak / 1024, "weights_mib": model._native.weight_bytes / 2**20,
    "shared": again == model, "packed": model.packed,
}), flush=True)
if sys.argv[4:]:
    sys.stdin.read()
"""

PEER_PROBE = """
import json, os, sys, time
start = time.perf_counter()
import llama_cpp
imported = time.perf_counter()
threads = len(os.sched_getaffinity(0))
model = llama_cpp.Llama(sys.argv[1], n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)
loaded = time.perf_counter()
model(sys.argv[3], max_tokens=1, temperature=0)
first = time.perf_counter()
print(json.dumps({
    "import_s": imported - start, "load_s": loaded - imported, "first_token_s": first - loaded,
    "total_s": first - imported,
}))
"""

#: Kind of start, whether it is a peer's, and what it must say of its packed weights.
STARTS = [("packed here", False, "not kept"), ("first", False, "being kept"), ("later", False, "mapped")]


def probe(model: str, start: str, peer: bool) -> dict:
    python, code = (str(PEER), PEER_PROBE) if peer else (sys.executable, PROBE)
    run = subprocess.run(
        [python, "-c", code, model, start, PROMPT], check=True, capture_output=True, text=True
    )
    return json.loads(run.stdout)


def median(runs: list[dict], key: str) -> float:
    return sorted(run[key] for run in runs)[len(runs) // 2]


def starts(model: str, runs: int) -> dict[str, list[dict]]:
    """Every kind of start, `runs` times in turns."""
    found: dict[str, list[dict]] = {}
    for _ in range(runs):
        for path, *_ in tallow._core.packed_files():
            path.unlink()
        for start, peer, packed in [*STARTS, *([("llama-cpp-python", True, "")] if PEER.exists() else [])]:
            told = probe(model, start, peer)
            if not told.get("packed", packed).startswith(packed):
                print(f"{model}, {start}: packed weights {told['packed']}", file=sys.stderr)
            assert told.get("shared", True), "loading twice must share the weights"
            found.setdefault(start, []).append(told)
    return found


def together(model: str, start: str, processes: int) -> float:
    """MiB that so many processes with the model take, what they share once."""
    running = [
        subprocess.Popen(
            [sys.executable, "-c", PROBE, model, start, PROMPT, "wait"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )
        for _ in range(processes)
    ]  # fmt: skip
    for process in running:
        process.stdout.readline()
    shares = [Path(f"/proc/{process.pid}/smaps_rollup").read_text() for process in running]
    for process in running:
        process.communicate()
    return (
        sum(int(line.split()[1]) for text in shares for line in text.splitlines() if line[:4] == "Pss:")
        / 1024
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma3-270m"])
    parser.add_argument("--runs", type=int, default=5, help="processes of each kind; medians are shown")
    args = parser.parse_args()
    paths = [str(wheels.locate(model, None, None)[0]) for model in args.models]
    with tempfile.TemporaryDirectory() as cache:
        os.environ |= {
            "TALLOW_CACHE": cache,
            "TALLOW_PACKED_CACHE_LEAST_MB": "0",
            "TALLOW_PACKED_CACHE_GB": "1000",
        }
        print("| model | start | import, s | load, s | to first token, s | both, s | peak / weights |")
        print("|---|---|---|---|---|---|---|")
        for name, path in zip(args.models, paths, strict=True):
            for start, runs in starts(path, args.runs).items():
                keys = ("import_s", "load_s", "first_token_s", "total_s")
                times = " | ".join(f"{median(runs, key):.3f}" for key in keys)
                of_weights = "peak_mib" in runs[0]
                peak = f"{median(runs, 'peak_mib') / median(runs, 'weights_mib'):.2f}" if of_weights else ""
                print(f"| {name} | {start} | {times} | {peak} |", flush=True)
            if sys.platform == "linux":
                for start in ("packed here", "later"):
                    one, two = (together(path, start, processes) for processes in (1, 2))
                    print(
                        f"| {name} | {start}: one process {one:.0f} MiB, two {two:.0f} MiB | | | | | |",
                        flush=True,
                    )


if __name__ == "__main__":
    main()
