"""``tallow embed`` and ``tallow score``: numbers instead of text."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import InvalidRequestError, TemplateError
from . import settings
from .answer import read_stdin
from .output import bar, is_terminal, write
from .usage import UsageError

#: Texts of one call: enough for full batches, and few enough to see the bar move.
_BATCH = 64


def embed(options: argparse.Namespace) -> None:
    path = _output(options.output)
    texts = options.text or _lines()
    model, _ = settings.load(options)
    rows = _embedded(model, texts, options, settings.adapter(model, options))
    if path is not None and path.suffix == ".npy":
        import numpy as np

        vectors = np.concatenate(list(rows))  # all of them first: a file that is there is whole
        with open(path, "wb") as file:
            np.save(file, vectors)
        return
    with contextlib.ExitStack() as stack:
        out = stack.enter_context(open(path, "w", encoding="utf-8")) if path else sys.stdout
        at = 0
        for batch in rows:
            for vector in batch:
                row = {"text": texts[at], "embedding": [float(str(value)) for value in vector]}
                print(json.dumps(row, ensure_ascii=False), file=out)
                at += 1


def _output(name: str | None) -> Path | None:
    if name is None:
        return None
    path = Path(name).expanduser()
    if path.suffix not in (".npy", ".jsonl"):
        raise UsageError(
            f"embed: --output is {name!r}; its name must end in .npy (an array) or .jsonl (JSON lines)"
        )
    if not path.parent.is_dir():
        raise UsageError(f"embed: --output is {name!r}, and there is no folder {path.parent}")
    return path


def _lines() -> list[str]:
    texts = read_stdin().splitlines()
    if not texts:
        raise UsageError("embed: there are no texts; write them behind the model, or one a line into stdin")
    for number, text in enumerate(texts, 1):
        if not text:  # left out, it would shift all that follow
            raise InvalidRequestError(f"line {number} of stdin is empty; a text has at least one character")
    return texts


def _embedded(model: Any, texts: list[str], options: argparse.Namespace, adapter: Any) -> Iterator[Any]:
    from tqdm.auto import tqdm  # type: ignore[import-untyped]

    with tqdm(
        total=len(texts), delay=1, leave=False, unit="text", disable=not is_terminal(sys.stderr)
    ) as done:
        for at in range(0, len(texts), _BATCH):
            batch = texts[at : at + _BATCH]
            yield model.embed(batch, options.pooling, prompt=options.prefix, adapter=adapter)
            done.update(len(batch))


def score(options: argparse.Namespace) -> None:
    if options.raw and options.system:
        raise UsageError("score: --system needs the chat template, and --raw leaves it out")
    text = read_stdin() if options.prompt == "-" else options.prompt
    if not text:
        raise UsageError("score: the prompt is empty; give at least one character")
    model, _ = settings.load(options)
    prompt: Any = text
    if model.has_template and not options.raw:
        prompt = [*settings.opening(options), {"role": "user", "content": text}]
    elif options.system:
        raise TemplateError(f"{model.name} has no chat template, so it takes no --system; leave it out")
    scores = model.score(prompt, options.candidate, adapter=settings.adapter(model, options))
    if options.json:
        print(json.dumps([_as_json(one) for one in scores], ensure_ascii=False))
        return
    width = min(max(len(repr(one.text)) for one in scores), 40)
    for one in sorted(scores, key=lambda one: -one.probability):
        name = repr(one.text)
        name = name if len(name) <= width else f"{name[: width - 1]}…"
        write(f"{name:{width}}  {bar(one.probability)}  {one.probability:6.1%}  logprob {one.logprob:.2f}\n")


def _as_json(one: Any) -> dict[str, Any]:
    return {
        "text": one.text,
        "probability": one.probability,
        "logprob": one.logprob,
        "tokens": list(one.tokens),
        "token_logprobs": list(one.token_logprobs),
    }
