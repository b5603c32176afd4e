"""What keys and values in bytes cost in exactness, beside bfloat16 and float32.

    python benches/kv_types.py [--model NAME_OR_FILE ...] [--quick]

For each model, with int8 and bf16:

- perplexity of English text (this project's own pages) in windows of 2,048 and of 8,000 tokens, of all
  tokens but the first 16 of a window;
- greedy answers of 64 tokens to 32 prompts: how many are those of f32 to the last token (computed exactly
  throughout, `dtype="float32"`), and how many tokens they have in common with these;
- a needle: which of ten numbers stood behind a name, at four depths of 8,000 tokens of text. Counted is how
  often the right one is the likeliest.

One model is loaded at a time. Writes a table of Markdown to standard output.
"""

from __future__ import annotations

import argparse
import math
import random
import statistics
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import tallow

ROOT = Path(__file__).parents[1]
TYPES = ("bf16", "int8")
FIRST, DEPTHS = 16, 4
SUBJECTS = ("rain", "a bridge", "bread", "the moon", "a violin", "coffee", "glaciers", "bees")
ASKS = ("Explain {} to a child.", "Write a short story about {}.", "List facts about {}.", "Why is there {}?")


def text() -> str:
    pages = [*sorted((ROOT / "docs").rglob("*.md")), ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]
    return "\n\n".join(page.read_text(encoding="utf-8") for page in pages)


def perplexity(model: tallow.Model, length: int, windows: int) -> float:
    ids, all_of_it, count = model.tokenize(text()), 0.0, 0
    for at in range(windows):
        window = ids[at * length : (at + 1) * length]
        begin, rest = (model.detokenize(part) for part in (window[:FIRST], window[FIRST:]))
        if len(window) < length:
            break
        score = model.score(begin, [rest])[0]
        all_of_it, count = all_of_it + score.logprob, count + len(score.tokens)
    return math.exp(-all_of_it / count)


def answers(model: tallow.Model) -> list[list[int]]:
    prompts = [[{"role": "user", "content": ask.format(subject)}] for ask in ASKS for subject in SUBJECTS]

    def answer(prompt: Any) -> list[int]:
        return list(model.generate(prompt, max_tokens=64, temperature=0).tokens)

    with ThreadPoolExecutor(8) as threads:
        return list(threads.map(answer, prompts))


def needles(model: tallow.Model, length: int) -> int:
    draw, found = random.Random(7), 0
    hay = model.tokenize(text())
    for depth in range(DEPTHS):
        numbers = [str(draw.randrange(1000, 9999)) for _ in range(10)]
        start = draw.randrange(0, max(1, len(hay) - length))
        before = model.detokenize(hay[start : start + length * depth // DEPTHS])
        behind = model.detokenize(hay[start + length * depth // DEPTHS : start + length - 200])
        prompt = (
            f"{before}\n\nThe number of the red house is {numbers[depth]}.\n\n{behind}\n\n"
            "The number of the red house is"
        )
        scores = [score.logprob for score in model.score(prompt, [" " + number for number in numbers])]
        found += scores.index(max(scores)) == depth
    return found


def load(source: str, **options: Any) -> tallow.Model:
    return tallow.Model(source, context_length=8192, progress=False, **options)


def measure(source: str, kind: str, quick: bool) -> dict[str, Any]:
    model = load(source, kv_type=kind)
    try:
        return {
            "2,048": perplexity(model, 2048, 2 if quick else 4),
            "8,000": perplexity(model, 8000, 1),
            "answers": answers(model),
            "needles": needles(model, 1500 if quick else 8000),
        }
    finally:
        model.close()


def agreement(found: list[list[int]], wanted: list[list[int]]) -> tuple[int, float]:
    def common(a: list[int], b: list[int]) -> int:
        return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))

    same = sum(a == b for a, b in zip(found, wanted, strict=True))
    return same, statistics.mean(common(a, b) for a, b in zip(found, wanted, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", nargs="+", default=["smollm2", "gemma3-270m"])
    parser.add_argument("--quick", action="store_true")
    given = parser.parse_args()
    print(
        "| model | keys and values | perplexity 2,048 | 8,000 | as f32, of 32 | tokens in common | needles |"
    )
    print("|---|---|---|---|---|---|---|")
    for source in given.model:
        exact = load(source, dtype="float32")
        wanted, before = answers(exact), None
        exact.close()
        for kind in TYPES:
            found = measure(source, kind, given.quick)
            before = before or found
            same, common = agreement(found["answers"], wanted)
            change = [f"{found[n]:.4f} ({found[n] / before[n] - 1:+.3%})" for n in ("2,048", "8,000")]
            needles = f"{found['needles']} of {DEPTHS}"
            cells = [Path(source).name, kind, *change, str(same), f"{common:.1f}", needles]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
