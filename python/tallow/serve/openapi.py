"""The server as an OpenAPI 3.1 document, made from the table of routes and from the classes that requests are
read with. Tests that make requests of it hold the server to it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from .. import _core
from . import shapes, wire
from .guards import OPEN

if TYPE_CHECKING:
    from .routes import Endpoint

#: What may go wrong, whoever asks for what.
_STATUSES = {
    400: "The request cannot be honoured as it is",
    401: "No valid API key",
    403: "Not allowed here: the name of the host, or loading adapters",
    404: "There is no such model or route",
    408: "The time-out was reached",
    413: "The body is too large",
    415: "The body is not declared as JSON",
    429: "As many requests wait as may; ask again after the time in the header Retry-After",
    500: "A defect; the message has the id by which the log has it",
    503: "The server is loading, full or shutting down; ask again after the time in Retry-After",
}
#: Those that concern a body.
_OF_BODIES = (400, 408, 413, 415, 429)
#: Where they stand without "/v1", as probes and other clients look for them there.
_BARE = ("/health", "/ready", "/metrics", "/openapi.json", "/tokenize", "/detokenize")
_REFS = "#/components/schemas/{name}"


def document(endpoints: Iterable[Endpoint], *, with_keys: bool) -> dict[str, Any]:
    """``with_keys``: whether requests need an API key."""
    endpoints = list(endpoints)
    bodies = [one.shape for one in endpoints if one.shape is not None]
    answers = [one.answer for one in endpoints if not isinstance(one.answer, str)]
    every = list(dict.fromkeys([shapes.Error, *bodies, *answers]))
    refs, schemas = msgspec.json.schema_components(every, ref_template=_REFS)
    ref_of = dict(zip(every, refs, strict=True))
    for body in bodies:
        _close(schemas[body.__name__])
    paths: dict[str, Any] = {}
    for one in endpoints:
        paths.setdefault(shown_path(one.path), {})[one.method.lower()] = _operation(one, ref_of)
    key = {"type": "http", "scheme": "bearer"}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "tallow",
            "version": _core.__version__,
            "description": 'Language models behind OpenAI\'s API. Each path is there with and without "/v1".',
        },
        "paths": paths,
        "components": {
            "schemas": schemas,
            **({"securitySchemes": {"key": key}} if with_keys else {}),
        },
        **({"security": [{"key": []}]} if with_keys else {}),
    }


def shown_path(path: str) -> str:
    """A route's path as the document has it."""
    path = re.sub(r"\{(\w+):path\}", r"{\1}", path)
    return path if path in _BARE else f"/v1{path}"


def _close(schema: dict[str, Any]) -> None:
    """Declares what ``wire.read`` does about other fields: some change nothing, all others are refused."""
    for name in wire.NOTHING:
        schema["properties"].setdefault(name, {"description": "Changes nothing."})
    for name, (harmless, instead) in wire.REFUSED.items():
        allowed = {"enum": [None, *harmless], "description": f"Not supported: {instead}."}
        schema["properties"].setdefault(name, allowed)
    schema["additionalProperties"] = False


def _operation(one: Endpoint, ref_of: dict[Any, Any]) -> dict[str, Any]:
    said = (one.handler.__doc__ or "").strip()
    found: dict[str, Any] = {
        "operationId": f"{one.method.lower()}{re.sub('[^a-z]+', '_', one.path)}".rstrip("_"),
        "summary": said.partition("\n")[0],
        "responses": _responses(one, ref_of),
    }
    names = re.findall(r"\{(\w+)", one.path)
    if names:
        found["parameters"] = [
            {"name": name, "in": "path", "required": True, "schema": {"type": "string"}} for name in names
        ]
    if one.shape is not None:
        content = {"application/json": {"schema": ref_of[one.shape]}}
        found["requestBody"] = {"required": True, "content": content}
    if one.path in OPEN:
        found["security"] = []
    return found


def _responses(one: Endpoint, ref_of: dict[Any, Any]) -> dict[str, Any]:
    if isinstance(one.answer, str):
        content: dict[str, Any] = {one.answer: {"schema": {"type": "string"}}}
    else:
        content = {"application/json": {"schema": ref_of[one.answer]}}
    if one.shape is not None and "stream" in wire.fields(one.shape):
        # Without a schema: in OpenAPI 3.1 it would be the text's, and tools read it as that of each event.
        content["text/event-stream"] = {}
    error = {"application/json": {"schema": ref_of[shapes.Error]}}
    found: dict[str, Any] = {"200": {"description": "The answer", "content": content}}
    for status, what in _STATUSES.items():
        if one.shape is not None or status not in _OF_BODIES:
            found[str(status)] = {"description": what, "content": error}
    return found
