"""The format of an answer that was asked for over HTTP, where the prompt alone can say it."""

from __future__ import annotations

from dspy import lm15  # type: ignore[import-untyped]

from ..model import Model
from . import constraints, formats


def format_of(model: Model, system: str, user: str) -> formats.Format:
    """The format that an adapter's prompt asks for: its ``system`` message and its last ``user`` message."""
    if not user:
        return formats.NONE
    asked = lm15.Request(model="tallow", system=system or None, messages=(lm15.Message.user(user),))
    return constraints.possible(model, formats.find(asked))
