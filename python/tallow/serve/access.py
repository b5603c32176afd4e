"""A line in the log for each request: what it was and what it cost, never what was asked or answered."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from .. import _log
from . import wire
from .call import Outcome


def logger(form: str) -> Callable[[Outcome], None]:
    """Tells the log of requests, as text or as JSON."""
    shown = _as_json if form == "json" else _as_text

    def tell(outcome: Outcome) -> None:
        if _log.wants_info():
            _log.info("%s", shown(outcome))

    return tell


def _as_text(outcome: Outcome) -> str:
    parts = [outcome.method, outcome.endpoint or "?", str(outcome.status), outcome.outcome]
    if outcome.model is not None:
        parts.append(outcome.model)
    if outcome.prompt_tokens:
        cached = f" ({outcome.cached_tokens} cached)" if outcome.cached_tokens else ""
        parts.append(f"{outcome.prompt_tokens}{cached} + {outcome.completion_tokens} tokens")
    if outcome.first_token is not None:
        parts.append(f"first after {outcome.first_token:.3f} s")
    return f"{' '.join(parts)} {outcome.seconds:.3f} s {outcome.request_id}"


def _as_json(outcome: Outcome) -> str:
    found: dict[str, Any] = dataclasses.asdict(outcome)
    del found["began"]
    rounded = {key: round(one, 6) if isinstance(one, float) else one for key, one in found.items()}
    return wire.to_json({"event": "request", **rounded}).decode()
