"""A pytest plugin for DSPy's own tests: ``dspy.LM("tallow/...")`` makes a ``tallow.LM``, and the engine
``Echo`` of their contract for engines is one of ours; nothing else changes.

``scripts/dspy_tests.py`` gets the tests and runs them with it. ``TALLOW_LM`` names the model (smollm2), and
``LM_FOR_TEST``, where DSPy's tests look, is set to the very name that the LM gives itself, since they look it
up in usage. What is written after "tallow/" elsewhere is a source of a model. ``TALLOW_LM_OPTIONS`` are
further arguments of the LM, as JSON, where a test gives none of its own.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
from typing import Any

with contextlib.suppress(ImportError):
    import openai  # noqa: F401  (DSPy 3.4.0 puts a lazy module in its place, which LiteLLM then trips over)

import dspy
import pytest

import tallow
from tallow.dspy import AsyncEngine, Engine

PREFIX = "tallow/"


class PluginLM(tallow.LM):
    """A tallow.LM by DSPy's kind of name."""

    def __init__(self, model: str = "", **given: Any) -> None:
        source = model if "engine" in given else _source(model)
        super().__init__(source, **{**json.loads(os.environ.get("TALLOW_LM_OPTIONS", "{}")), **given})


def _source(model: str) -> str:
    chosen = os.environ.get("TALLOW_LM", "smollm2")
    return chosen if model == os.environ.get("LM_FOR_TEST") else model.removeprefix(PREFIX)


def _new(cls: type, model: object = None, *_: Any, **given: Any) -> Any:
    """What ``dspy.LM(...)`` makes an object of; Python then calls the ``__init__`` of what came out."""
    named = given.get("model", model)
    ours = cls is dspy.LM and isinstance(named, str) and named.startswith(PREFIX)
    return object.__new__(PluginLM if ours else cls)


class _Tagged:
    """Our engine as far as a test can see: it answers, and the answer is replaced by the one expected."""

    def __init__(self, tag: str = "t") -> None:
        super().__init__(_model())  # type: ignore[call-arg]
        self.tag = tag

    def dump_state(self) -> dict[str, Any]:
        return {"tag": self.tag}

    @classmethod
    def load_state(cls, state: dict[str, Any]) -> Any:
        return cls(**state)


class Echo(_Tagged, Engine):  # type: ignore[misc]
    def complete(self, request: Any) -> Any:
        return _echoed(super().complete(_short(request)), self.tag)


class AsyncEcho(_Tagged, AsyncEngine):  # type: ignore[misc]
    async def complete(self, request: Any) -> Any:
        return _echoed(await super().complete(_short(request)), self.tag)


def _short(request: Any) -> Any:
    return dataclasses.replace(request, config=dataclasses.replace(request.config, max_tokens=1))


def _echoed(response: Any, tag: str) -> Any:
    assert response.usage.output_tokens == 1
    return dataclasses.replace(response, message=dspy.lm15.Message.assistant(f"echo:{tag}"))


@functools.cache
def _model() -> tallow.Model:
    return tallow.Model(os.environ.get("TALLOW_LM", "smollm2"), progress=False)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """In the one file whose ``Echo`` stands for anybody's engine, it is ours, under the name it had."""
    for module in {item.module for item in items if isinstance(item, pytest.Function)}:
        if module.__name__.endswith("test_custom_engine_contract"):
            for ours in (Echo, AsyncEcho):
                ours.__module__ = module.__name__
                setattr(module, ours.__name__, ours)


def pytest_configure(config: pytest.Config) -> None:
    dspy.LM.__new__ = _new
    if "LM_FOR_TEST" not in os.environ:
        os.environ["LM_FOR_TEST"] = tallow.LM(_model()).model
