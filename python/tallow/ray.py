"""Batches on Ray Data (``pip install "tallow[ray]"``): classes for ``Dataset.map_batches``.

    answers = dataset.map_batches(
        tallow.ray.Generate,
        fn_constructor_args=("smollm2",),
        fn_constructor_kwargs={"load": {"threads": 4}, "max_tokens": 32},
        compute=ray.data.ActorPoolStrategy(size=2),
        num_cpus=4,
        batch_size=64,
    )

Each actor loads its model once, and computes the rows of a batch together. Ray counts CPUs and fences nobody
in: ``threads`` and ``num_cpus`` are the same number. One actor a node with all its threads beats several, for
weights, cache and batch are shared in it.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Mapping, Sequence
from typing import Any

from . import arguments
from .errors import InvalidRequestError
from .model import Model

__all__ = ["Generate", "Program"]

Batch = dict[str, Any]
#: Where the text of an error goes, with ``on_error="keep"``.
ERROR = "error"


class Generate:
    """Answers prompts: a column of texts, or of lists of messages.

    - ``source``: what ``Model`` takes, or a Model (which travels as its source).
    - ``prompt``: the column that is read; ``answer``: the column that is written.
    - ``load``: options of ``Model``; ``options``: those of ``Model.generate``, the same for all rows.
    - ``on_error``: "raise" ends the run at a row that cannot be answered; "keep" leaves its answer empty and
      says why in the column "error".
    """

    def __init__(
        self,
        source: Any,
        *,
        prompt: str = "prompt",
        answer: str = "answer",
        load: Mapping[str, Any] | None = None,
        on_error: str = "raise",
        **options: Any,
    ) -> None:
        self._prompt = arguments.text("prompt", prompt)
        self._answer = arguments.text("answer", answer)
        self._keep = _keeps(on_error)
        self._options = options
        self._model = source if isinstance(source, Model) else Model(source, **(load or {}))

    async def __call__(self, batch: Batch) -> AsyncIterator[Batch]:
        prompts = _column(batch, self._prompt)
        found = await _all([self._one(prompt) for prompt in prompts], self._keep)
        texts = [answer and answer.text for answer, _ in found]
        yield {**batch, self._answer: texts, **_errors(found, self._keep)}

    def _one(self, prompt: Any) -> Awaitable[Any]:
        return self._model.agenerate(prompt, **self._options)


class Program:
    """Runs a DSPy program on rows whose columns are its inputs, and adds its outputs as columns.

    - ``program``: any module; a language model that was set in it (``set_lm``) travels with it.
    - ``inputs``: columns that it takes; ``outputs``: fields of its predictions that are kept.
    - ``lm``: the language model of those of its parts that have none; ``on_error`` as in ``Generate``.
    """

    def __init__(
        self,
        program: Any,
        *,
        inputs: Sequence[str],
        outputs: Sequence[str],
        lm: Any = None,
        on_error: str = "raise",
    ) -> None:
        self._program = program
        self._inputs = arguments.texts("inputs", inputs)
        self._outputs = arguments.texts("outputs", outputs)
        self._lm = lm
        self._keep = _keeps(on_error)

    async def __call__(self, batch: Batch) -> AsyncIterator[Batch]:
        columns = [_column(batch, name) for name in self._inputs]
        rows = [dict(zip(self._inputs, row, strict=True)) for row in zip(*columns, strict=True)]
        found = await _all([self._one(row) for row in rows], self._keep)
        added = {
            name: [None if made is None else getattr(made, name) for made, _ in found]
            for name in self._outputs
        }
        yield {**batch, **added, **_errors(found, self._keep)}

    async def _one(self, row: dict[str, Any]) -> Any:
        import dspy  # type: ignore[import-untyped]

        if self._lm is None:
            return await self._program.acall(**row)
        with dspy.context(lm=self._lm):
            return await self._program.acall(**row)


def _keeps(on_error: str) -> bool:
    return arguments.choice("on_error", on_error, ("raise", "keep")) == "keep"


def _column(batch: Any, name: str) -> list[Any]:
    if not isinstance(batch, Mapping):
        kind = type(batch).__name__
        raise InvalidRequestError(f'a batch is a {kind}; leave batch_format out, or give "numpy"')
    if name not in batch:
        raise InvalidRequestError(f"there is no column {name!r}; there are {', '.join(batch)}")
    values = batch[name]
    return values.tolist() if hasattr(values, "tolist") else list(values)


async def _all(work: Sequence[Awaitable[Any]], keep: bool) -> list[tuple[Any, str | None]]:
    """What came of each, and why nothing did."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        found = await asyncio.gather(*tasks, return_exceptions=keep)
    finally:
        for task in tasks:
            task.cancel()
    for one in found:
        if isinstance(one, BaseException) and not isinstance(one, Exception):
            raise one  # cancelled
    return [
        (None, f"{type(one).__name__}: {one}") if isinstance(one, Exception) else (one, None) for one in found
    ]


def _errors(found: Sequence[tuple[Any, str | None]], keep: bool) -> Batch:
    return {ERROR: [why for _, why in found]} if keep else {}
