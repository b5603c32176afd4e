"""``tallow bench``: prompt and answer tokens a second, for some numbers of requests at once.

Prompts are random tokens, each its own, the prefix cache and speculation are off, the token that ends an
answer is never drawn, and decoding is greedy. What k requests do at once is timed twice, with one token of
answer each and with all: the first is the speed of prompts, the difference that of answers.
"""

from __future__ import annotations

import argparse
import json
import random
import statistics
import time
from typing import Any

from .. import _core
from ..errors import InvalidRequestError
from ..model import Model
from . import settings
from .output import table, tell

_NEVER = -1e9  # a logit that nothing outweighs


def bench(options: argparse.Namespace) -> None:
    options.no_prefix_cache = options.no_speculation = True
    model, seconds = settings.load(options)
    needed = options.prompt_tokens + options.max_tokens
    if needed > model.context_length:
        raise InvalidRequestError(
            f"{needed} tokens do not fit into the context of {model.context_length}; lower --prompt-tokens "
            "or --max-tokens"
        )
    runs = Runs(model, options.prompt_tokens, options.max_tokens)
    runs.warm_up()
    rows = []
    for count in options.at_once:
        rows.append(runs.measure(count, options.repeat))
        tell(f"{count} at once: done")
    told = _conditions(model, options, seconds)
    if options.json:
        print(json.dumps({**told, "results": rows}, ensure_ascii=False, indent=1))
        return
    print(
        f"{told['model']} ({told['weights']}) on {told['device']}, {told['threads']} threads, {told['isa']}, "
        f"tallow {told['version']}; loaded in {seconds:.2f} s"
    )
    print(
        f"{options.prompt_tokens} tokens of prompt and {options.max_tokens} of answer each, median of "
        f"{options.repeat}; random prompts, greedy, no prefix cache, no speculation\n"
    )
    head = ("at once", "prompt tokens/s", "answer tokens/s", "of each", "first token s", "all s")
    print(table(head, [_row(row) for row in rows], right=range(len(head))))


def _row(row: dict[str, Any]) -> tuple[str, ...]:
    answers = row["answer_tokens_per_second"]
    return (
        str(row["at_once"]),
        f"{row['prompt_tokens_per_second']:.0f}",
        "too short" if answers is None else f"{answers:.0f}",
        "" if answers is None else f"{answers / row['at_once']:.1f}",
        f"{row['first_token_s']:.2f}",
        f"{row['all_s']:.2f}",
    )


def _conditions(model: Model, options: argparse.Namespace, seconds: float) -> dict[str, Any]:
    features = _core.features()
    return {
        "model": model.name,
        "weights": "+".join(model.weight_types),
        "fingerprint": model.fingerprint,
        "device": model.device,
        "dtype": model.dtype,
        "threads": options.threads or features.get("threads"),
        "isa": features.get("isa"),
        "version": _core.__version__,
        "load_s": round(seconds, 3),
        "prompt_tokens": options.prompt_tokens,
        "max_tokens": options.max_tokens,
        "repeat": options.repeat,
    }


class Runs:
    def __init__(self, model: Model, prompt_tokens: int, max_tokens: int) -> None:
        self.model = model
        self.prompt_tokens = prompt_tokens
        self.max_tokens = max_tokens
        self.random = random.Random(0)
        never = set(model.eos_ids)
        self.tokens = [id for id in range(model.vocab_size) if id not in never and model.detokenize([id])]
        self.options: dict[str, Any] = {"temperature": 0, "logit_bias": dict.fromkeys(never, _NEVER)}

    def warm_up(self) -> None:
        """The first request starts the engine and touches memory."""
        self.seconds(1, 2)

    def measure(self, count: int, repeat: int) -> dict[str, Any]:
        """Medians. Answers that take no longer than the noise have no speed: None."""
        first = statistics.median(self.seconds(count, 1) for _ in range(repeat))
        whole = statistics.median(self.seconds(count, self.max_tokens) for _ in range(repeat))
        answers = count * (self.max_tokens - 1)
        return {
            "at_once": count,
            "prompt_tokens_per_second": round(count * self.prompt_tokens / first, 2),
            "answer_tokens_per_second": round(answers / (whole - first), 2) if whole > first else None,
            "first_token_s": round(first, 6),
            "all_s": round(whole, 6),
        }

    def seconds(self, count: int, max_tokens: int) -> float:
        """How long ``count`` requests at once take, from the first call to the last token."""
        prompts = [self.random.choices(self.tokens, k=self.prompt_tokens) for _ in range(count)]
        began = time.perf_counter()
        streams = [self.model.stream(prompt, max_tokens=max_tokens, **self.options) for prompt in prompts]
        for stream in streams:
            for _ in stream:
                pass
        return time.perf_counter() - began
