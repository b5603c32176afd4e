"""The grammar that an answer must follow so that DSPy's own adapter parses it.

``find`` looks at a request and at the Signature of the module that calls, recognises which stock adapter
wrote the prompt, and returns a constraint for ``Model.generate``. The layout comes from the prompt
(``prompt``), types and constraints from the Signature (``types``, ``schema``, ``patterns``), and each
adapter's answer is written by ``chat``, ``json`` or ``xml``. Calls of tools that an answer holds as text name
the tools that the prompt offers (``calls``). Whatever is not recognised runs free, and the
Format says why: a prompt is never refused here.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any

import dspy  # type: ignore[import-untyped]
from dspy import lm15

from ...schemas.bounded import Unsupported
from . import calls, chat, json, prompt, xml
from .types import Field

__all__ = ["NONE", "Format", "caller_signature", "find"]


@dataclass(frozen=True)
class Format:
    """How an answer is laid out."""

    #: "chat", "json", "baml", "xml", "json_schema", "json_object" or "none".
    name: str
    #: The argument for ``Model.generate``; empty where the answer runs free.
    constraint: dict[str, Any] = field(default_factory=dict)
    #: Why it runs free.
    why: str | None = None
    #: What the Signature declares and the constraint cannot enforce.
    notes: tuple[str, ...] = ()


#: Nothing is missing then: the call has a grammar of its own.
CALL_ALONE = "the answer is a tool call alone"
NONE = Format("none", why="no adapter's format in the prompt")


def find(request: lm15.Request, signature: type[dspy.Signature] | None = None) -> Format:
    """The format of the answer to a request, where it is no tool call; ``signature`` is the caller's
    (``caller_signature()``)."""
    seen = prompt.recognised(request)
    if seen is None:
        return _asked(request.config.response_format)
    system = seen.system if seen.kind == "xml" else None
    wanted = calls.asked(seen)
    key = (seen.kind, seen.reminder, _identity(signature), system, wanted)
    found = _CACHE.get(key, lambda: _written(seen, lambda: prompt.from_caller(seen, signature), wanted))
    if found is None:  # the Signature is not this prompt's
        key = ("notes", seen.kind, seen.reminder, seen.system, wanted)
        found = _CACHE.get(key, lambda: _written(seen, lambda: prompt.from_notes(seen), wanted))
    asked = request.config.response_format
    if found.why is not None and seen.layout == "json" and asked is not None:
        return _asked(asked)
    return found


def caller_signature() -> type[dspy.Signature] | None:
    """The Signature of the module that is calling the language model, if it is one with a Signature."""
    callers = dspy.settings.caller_modules or ()
    signature = getattr(callers[-1], "signature", None) if callers else None
    return signature if isinstance(signature, type) and issubclass(signature, dspy.Signature) else None


def _written(
    seen: prompt.Prompt, read: Callable[[], list[Field] | None], wanted: calls.Calls | None
) -> Format | None:
    notes: list[str] = []
    try:
        fields = read()
        if fields is None:
            return None
        if wanted is not None:
            fields = calls.applied(fields, wanted, notes)
        if not fields:
            return Format(seen.kind, why=CALL_ALONE)
        if seen.layout == "json":
            constraint: dict[str, Any] = {"json_schema": json.schema(fields, notes)}
        else:
            write = chat.grammar if seen.layout == "chat" else xml.grammar
            constraint = {"grammar": write(fields, notes)}
    except Exception as error:  # a user's types can raise anything; the answer is then not constrained
        return Format(seen.kind, why=_said(error))
    return Format(seen.kind, constraint, notes=tuple(dict.fromkeys(notes)))


def _said(error: Exception) -> str:
    return str(error) if isinstance(error, Unsupported) else f"{type(error).__name__}: {error}"


def _asked(wanted: Any) -> Format:
    """A request's own response_format."""
    if wanted is None:
        return NONE
    if wanted["type"] == "json_object":
        return _CACHE.get("json_object", lambda: Format("json_object", {"json_schema": json.any_object()}))
    schema = wanted["schema"]
    return _CACHE.get(("json_schema", repr(schema)), lambda: _given(schema))


def _given(schema: dict[str, Any]) -> Format:
    notes: list[str] = []
    try:
        return Format("json_schema", {"json_schema": json.given(schema, notes)}, notes=tuple(notes))
    except Exception as error:  # whatever a schema may hold
        return Format("json_schema", why=_said(error), notes=tuple(notes))


def _identity(signature: type[dspy.Signature] | None) -> Hashable:
    """What of a Signature decides the grammar. Programs make many Signatures with the same fields."""
    if signature is None:
        return None
    fields = signature.output_fields.items()
    key = tuple((name, info.annotation, repr(info.metadata)) for name, info in fields)
    try:
        hash(key)
    except TypeError:  # an Annotated type with something unhashable in it
        return repr(key)
    return key


class _Cache:
    """The last few results, for any number of threads."""

    def __init__(self, size: int) -> None:
        self._size, self._lock = size, threading.Lock()
        self._found: OrderedDict[Hashable, Any] = OrderedDict()

    def get(self, key: Hashable, make: Callable[[], Any]) -> Any:
        with self._lock:
            if key in self._found:
                self._found.move_to_end(key)
                return self._found[key]
        made = make()  # outside the lock: two threads may both make it, and it comes out the same
        with self._lock:
            self._found[key] = made
            while len(self._found) > self._size:
                self._found.popitem(last=False)
        return made


_CACHE = _Cache(512)
