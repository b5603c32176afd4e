"""An LM whose answers are written beforehand: the engines as they are, but for the native generation. So any
text can be "generated", and what DSPy makes of it be seen."""

from __future__ import annotations

import asyncio
import re

import dspy
import pytest

import tallow
from tallow.dspy import AsyncEngine, Engine, constraints

lm15 = dspy.lm15
both = pytest.mark.parametrize("is_async", [False, True], ids=["sync", "async"])


def request(lm, text="hello", **config):
    return lm15.Request(model=lm.model, messages=(lm15.Message.user(text),), config=lm15.Config(**config))


def call(lm, is_async, *given, **options):
    return asyncio.run(lm.acall(*given, **options)) if is_async else lm(*given, **options)


class Script:
    """A generation that "writes" a given text, about as models do: a word or a few signs a piece."""

    def __init__(self, text):
        cut = re.findall(r" ?\w+|[^\w\s]+|\s+", text) or [""]
        self.pieces = [{"text": part, "tokens": [0], "logprobs": None, "finish_reason": None} for part in cut]
        ending = {"finish_reason": "stop", "usage": (7, len(cut), 2), "timings": (0.0, 0.1, 0.2)}
        self.pieces[-1].update(ending)
        self.whole = {"text": text, "tokens": [0] * len(cut), "logprobs": None, **ending}
        self.cancelled = False

    def collect(self):
        return self.whole

    def next(self):
        return self.pieces.pop(0) if self.pieces else None

    def cancel(self):
        self.cancelled = True


class AsyncScript(Script):
    async def collect(self):
        return [self.whole]

    async def next(self):
        await asyncio.sleep(0)
        return super().next()

    def close(self):
        self.cancel()


def scripted(model, *texts):
    """An LM that gives these answers, the last one again and again."""

    made = tallow.LM(model, max_tokens=3, cache=False)
    made.scripts = []

    class Says:
        def _taken(self, request, submit, **given):
            return super()._taken(request, lambda start: self._written, **given)

        def _written(self, index):
            text = texts[min(len(made.scripts), len(texts) - 1)]
            script = (AsyncScript if isinstance(self, AsyncEngine) else Script)(text)
            made.scripts.append(script)
            return script

    made._engine_spec = type("SaysNow", (Says, Engine), {})(model)
    made._async_engine_spec = type("SaysLater", (Says, AsyncEngine), {})(model)
    return made


def streamed(lm, asked, is_async):
    """The response that DSPy puts together of the events."""

    async def later():
        return [event async for event in lm._async_engine_spec.stream(asked)]

    events = asyncio.run(later()) if is_async else list(lm.engine.stream(asked))
    return lm15.materialize_response(iter(events), asked), events


def told(lm):
    return lm.history[-1]["response"].provider_data["format"]


def bound(given):
    return {name: given[name] for name in constraints.OWN if name in given}
