"""One stream, no cache: tallow beside llama-cpp-python (if it is installed) on the same file, in turns.

    python benches/single.py FILE.gguf [FILE.gguf ...]

Prints the median of five rounds: tokens a second of a 512-token prompt, and of 64 tokens after it.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

import tallow

PROMPT, ANSWER, ROUNDS = 512, 64, 5
TEXT = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8") * 3


def ours(path: str):
    model = tallow.Model(path, progress=False, prefix_cache=False, speculation=False)
    ids = model.tokenize(TEXT)[:PROMPT]
    never = dict.fromkeys(model.eos_ids, -100.0)

    def round_() -> tuple[float, float]:
        timings = model.generate(ids, max_tokens=ANSWER + 1, temperature=0, logit_bias=never).timings
        return PROMPT / timings.prefill, ANSWER / timings.decode

    return ids, round_


def llama_cpp(path: str, ids: list[int]):
    try:
        from llama_cpp import Llama
    except ImportError:
        return None
    threads = tallow.features()["threads"]
    model = Llama(path, n_ctx=PROMPT * 2, n_threads=threads, n_threads_batch=threads, verbose=False)

    def round_() -> tuple[float, float]:
        model.reset()
        began = time.perf_counter()
        model.eval(ids)
        prefilled = time.perf_counter()
        for _ in range(ANSWER):
            model.eval(ids[-1:])
        return PROMPT / (prefilled - began), ANSWER / (time.perf_counter() - prefilled)

    return round_


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+")
    print("| file | what | prompt, tokens/s | answer, tokens/s |\n|---|---|---|---|")
    for path in parser.parse_args().files:
        ids, round_ = ours(path)
        rounds = {"tallow": round_}
        other = llama_cpp(path, ids)
        if other:
            rounds["llama.cpp"] = other
        found: dict[str, list[tuple[float, float]]] = {name: [] for name in rounds}
        for _ in range(ROUNDS):
            for name, one in rounds.items():
                found[name].append(one())
        medians = {
            name: [statistics.median(x) for x in zip(*rows, strict=True)] for name, rows in found.items()
        }
        for name, (prompt, answer) in medians.items():
            print(f"| {Path(path).name} | {name} | {prompt:.0f} | {answer:.1f} |")
        if other:
            ratios = [a / b for a, b in zip(medians["tallow"], medians["llama.cpp"], strict=True)]
            print(f"| | tallow / llama.cpp | {ratios[0]:.2f} | {ratios[1]:.2f} |", flush=True)


if __name__ == "__main__":
    main()
