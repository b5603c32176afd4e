"""How long loading takes and what it costs in memory, each model in a fresh process.

    python benches/load.py [MODEL ...]

Prints, for each model: seconds to import tallow, to load the model, from there to the first token of a short
prompt, the process's peak memory above the interpreter's with numpy, and that as a share of the weights. The
files must be in the cache already (`tallow pull MODEL`).
"""

import argparse
import json
import subprocess
import sys

PROBE = """
import json, resource, sys, time
import numpy
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
import tallow
imported = time.perf_counter()
model = tallow.Model(sys.argv[1], progress=False)
loaded = time.perf_counter()
model.generate("Once upon a time", max_tokens=1)
first = time.perf_counter()
model.generate("Once upon a time", max_tokens=64)
again = tallow.Model(sys.argv[1], progress=False)
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
print(json.dumps({
    "import_s": imported - start, "load_s": loaded - imported, "first_token_s": first - loaded,
    "peak_mib": peak / 1024, "weights_mib": model._native.weight_bytes / 2**20, "shared": again == model,
}))
"""


def probe(model: str) -> dict:
    run = subprocess.run([sys.executable, "-c", PROBE, model], check=True, capture_output=True, text=True)
    return json.loads(run.stdout)


def median(runs: list[dict], key: str) -> float:
    return sorted(run[key] for run in runs)[len(runs) // 2]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="*", default=["smollm2", "gemma3-270m"])
    parser.add_argument("--runs", type=int, default=5, help="processes a model; medians are shown")
    args = parser.parse_args()
    print("| model | import, s | load, s | to first token, s | weights, MiB | peak, MiB | peak / weights |")
    print("|---|---|---|---|---|---|---|")
    for model in args.models:
        runs = [probe(model) for _ in range(args.runs)]
        assert all(run["shared"] for run in runs), "loading twice must share the weights"
        times = " | ".join(f"{median(runs, key):.3f}" for key in ("import_s", "load_s", "first_token_s"))
        weights, peak = median(runs, "weights_mib"), median(runs, "peak_mib")
        print(f"| {model} | {times} | {weights:.0f} | {peak:.0f} | {peak / weights:.2f} |")


if __name__ == "__main__":
    main()
