"""What a burst costs: N requests with the same beginning at once, and the same requests one after another.

    python benches/burst.py [--model MODEL] [--sizes 1,2,4,8,16,32] [--csv FILE]

Each request has about 400 tokens in common with the others (instructions and demonstrations, as a DSPy
program sends them), about 80 of its own, and an answer of 48 tokens, greedy. "At once" is one thread a
request on an engine as it is by default; "one by one" is a single thread, with the prefix cache and
speculation off. Every cell begins with a fresh engine. "Computed" is how many prompt tokens went through the
model, and "ideal" is the common ones once and everybody's own; a page of the cache (16 tokens) is the finest
that can be shared.
"""

import argparse
import csv
import os
import threading
import time

import tallow

COMMON, OWN, NEW = 400, 80, 48
COLUMNS = (
    *("requests", "at once, s", "one by one, s", "ratio", "tokens/s"),
    *("computed", "ideal", "mean batch"),
)
SENTENCES = (
    "Read the review and answer with the sentiment of its writer, in one word. ",
    "Review: the soup was cold, the bread was old, and nobody came when we called. Sentiment: negative. ",
    "Review: a quiet room, a friendly house, and the best breakfast in town. Sentiment: positive. ",
)


def prompts(model: tallow.Model, count: int) -> list[list[int]]:
    """Token ids, so that what is common is exact."""
    common = cut(model, "".join(SENTENCES) * 20, COMMON)
    own = "Review number {}: we came late, it rained, and the guide told the story of the {}th king. "
    return [common + cut(model, own.format(n, n) * 10, OWN) for n in range(100, 100 + count)]


def cut(model: tallow.Model, text: str, length: int) -> list[int]:
    ids = model.tokenize(text)
    assert len(ids) >= length
    return ids[:length]


def run(model: tallow.Model, requests: list[list[int]], *, at_once: bool) -> tuple[float, dict[str, float]]:
    """Seconds for all requests, and what the engine counted meanwhile."""
    model.generate("warm", max_tokens=1)  # the engine starts here, and its weights are in memory
    before = model.stats()
    assert before["requests"] == 1, "each cell begins with a fresh engine"
    endless = dict.fromkeys(model.eos_ids, -100.0)
    answer = lambda ids: model.generate(ids, max_tokens=NEW, temperature=0, logit_bias=endless)
    start = time.perf_counter()
    if at_once:
        threads = [threading.Thread(target=answer, args=(ids,)) for ids in requests]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    else:
        for ids in requests:
            answer(ids)
    seconds = time.perf_counter() - start
    after = model.stats()
    assert after["completion_tokens"] - before["completion_tokens"] == NEW * len(requests)
    for stats in (before, after):
        stats["batched"] = stats["mean_batch"] * stats["steps"]
    return seconds, {name: after[name] - before[name] for name in after}


def row(model_name: str, count: int) -> list[float]:
    plain = tallow.Model(model_name, prefix_cache=False, speculation=False)
    requests = prompts(plain, count)
    alone, _ = run(plain, requests, at_once=False)
    together, counted = run(tallow.Model(model_name), requests, at_once=True)
    computed, ideal = counted["prompt_tokens"] - counted["cached_tokens"], COMMON + OWN * count
    batch = counted["batched"] / counted["steps"]
    return [count, together, alone, together / alone, NEW * count / together, computed, ideal, batch]


def shown(values: list[float]) -> str:
    count, together, alone, ratio, speed, computed, ideal, batch = values
    return (
        f"| {count} | {together:.2f} | {alone:.2f} | {ratio:.2f} | {speed:.0f} | {computed} | {ideal} "
        f"| {batch:.1f} |"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--sizes", default="1,2,4,8,16,32", help="requests at once, with commas between")
    parser.add_argument("--csv", metavar="FILE", help="write the table here, too")
    args = parser.parse_args()
    # The weights stay loaded. With an option that no cell has: an equal Model would share this one's engine,
    # and find in its cache what the cell before has computed.
    keep = tallow.Model(args.model, queue=1)
    print(f"{keep!r}, {os.cpu_count()} processors, tallow {tallow.__version__}\n")
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    rows = []
    for size in args.sizes.split(","):
        rows.append(row(args.model, int(size)))
        print(shown(rows[-1]), flush=True)
    if args.csv:
        with open(args.csv, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, *rows])


if __name__ == "__main__":
    main()
