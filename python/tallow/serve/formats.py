"""The formats of DSPy's adapters, enforced over HTTP: ``"format": "auto"`` of a request.

An adapter writes into its prompt how the answer must be laid out, and no client sends more than that prompt.
``tallow.dspy`` reads it there, as it does in process where no Signature is at hand, and the answer gets a
grammar. What cannot be read runs free. The response says which it was.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import arguments
from .call import Call
from .errors import invalid
from .for_dspy import FORMATS, HEADER
from .server import Served

#: A prompt with more characters for each token of the context has no room for an answer, and is not read.
_CHARACTERS = 16


def wanted(call: Call, given: str | None) -> bool:
    """Whether the format is to be read: as the request says, its header, or else the server's setting."""
    said = given or call.headers.get(HEADER.encode(), b"").decode("latin-1")
    if said and said not in FORMATS:
        where = "format" if given else f"the header {HEADER}"
        raise invalid(f"{where} is {arguments.shown(said)}; it must be 'auto' or 'none'", "format")
    return said == "auto" if said else call.server.settings.dspy


def found(
    served: Served, messages: Sequence[Mapping[str, Any]], own: Mapping[str, Any], *, any_object: bool
) -> tuple[dict[str, Any], dict[str, Any]]:
    """The constraint that the messages ask for, and what the response tells of it. ``own``: the constraint
    that the request gives itself, which counts more, unless it is just some JSON object (``any_object``)."""
    if own and not any_object:
        return {}, _told(next(iter(own)), True)
    try:
        from ..dspy import remote  # takes seconds, and is there where DSPy is
    except ImportError:
        return {}, _told("none", False, 'the server has no DSPy to read it with: pip install "tallow[dspy]"')
    user = [message for message in messages if message.get("role") == "user"]
    system = "\n".join(
        _text(message) for message in messages if message.get("role") in ("system", "developer")
    )
    last = _text(user[-1]) if user else ""
    if len(last) + len(system) > _CHARACTERS * served.model.context_length:
        return {}, _told("none", False, "the prompt is longer than the model's context")
    chosen = remote.format_of(served.model, system, last)
    return dict(chosen.constraint), _told(chosen.name, bool(chosen.constraint), chosen.why, chosen.notes)


def _told(name: str, constrained: bool, why: str | None = None, notes: Sequence[str] = ()) -> dict[str, Any]:
    told = {"name": name, "constrained": constrained, "why": why}
    return {**told, "notes": list(notes)} if notes else told


def _text(message: Mapping[str, Any]) -> str:
    """The text of a message, which may be in parts."""
    content = message.get("content")
    if isinstance(content, str):
        return content
    parts = content if isinstance(content, list) else []
    texts = (part.get("text") for part in parts if isinstance(part, Mapping))
    return "\n".join(text for text in texts if isinstance(text, str))
