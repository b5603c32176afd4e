"""What a client is told when a request fails: one table from our errors to status, type and code, and one
form for all of them, ``{"error": {"message", "type", "param", "code"}}``.

What is no error of ours is a defect: status 500 with an id, by which the log has the traceback.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import msgspec
from starlette.exceptions import HTTPException
from starlette.responses import Response

from .. import _log, errors

#: What the engine says when as many requests wait as may (``queue=``); its class is that of any want of room.
QUEUE_IS_FULL = "the queue is full"
#: Seconds after which it is worth to ask again where nothing better is known.
RETRY_AFTER = 5


@dataclass
class Refused(Exception):
    """A request that is answered with an error."""

    status: int
    message: str
    type: str = "invalid_request_error"
    code: str | None = None
    #: The field that is wrong, if one is.
    param: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def __str__(self) -> str:
        return self.message

    def body(self) -> dict[str, Any]:
        """As OpenAI's clients read it, in an answer of its own as in a stream."""
        shown = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return {"error": shown}

    def response(self) -> Response:
        return Response(
            msgspec.json.encode(self.body()),
            self.status,
            headers=dict(self.headers),
            media_type="application/json",
        )


#: The first row that fits counts.
_TABLE: tuple[tuple[type[BaseException], int, str, str | None], ...] = (
    (errors.ContextLengthError, 400, "invalid_request_error", "context_length_exceeded"),
    (errors.ConstraintError, 400, "invalid_request_error", "invalid_constraint"),
    (errors.TemplateError, 400, "invalid_request_error", "invalid_messages"),
    (errors.InvalidRequestError, 400, "invalid_request_error", "invalid_value"),
    (errors.UnsupportedModelError, 400, "invalid_request_error", "unsupported"),
    (errors.Timeout, 408, "timeout_error", "timeout"),
    (errors.OutOfMemoryError, 503, "server_error", "out_of_memory"),
    (errors.Cancelled, 503, "server_error", "closed"),
)


def invalid(message: str, param: str | None = None, code: str | None = "invalid_value") -> Refused:
    """A request that cannot be honoured as it is."""
    return Refused(400, message, param=param, code=code)


def left() -> Refused:
    """Nobody reads this: who asked has gone."""
    return Refused(499, "the client closed the connection", "cancelled", "cancelled")


def draining() -> Refused:
    return Refused(
        503,
        "the server is shutting down; ask again in a moment",
        "server_error",
        "shutting_down",
        headers={"retry-after": str(RETRY_AFTER), "connection": "close"},
    )


def of(
    error: BaseException,
    *,
    fields: frozenset[str] = frozenset(),
    names: Mapping[str, str] | None = None,
    retry_after: int = RETRY_AFTER,
) -> Refused:
    """What a client is told of ``error``. ``fields``: those of the request, to find ``param`` among;
    ``names``: arguments of ours -> what the request calls them."""
    if isinstance(error, Refused):
        return error
    if isinstance(error, HTTPException):
        return Refused(error.status_code, str(error.detail), headers=dict(error.headers or {}))
    message = _in_words_of(str(error), names or {})
    if isinstance(error, errors.OutOfMemoryError) and message.startswith(QUEUE_IS_FULL):
        return Refused(
            429,
            message,
            "rate_limit_error",
            "rate_limit_exceeded",
            headers={"retry-after": str(retry_after)},
        )
    for kind, status, type_, code in _TABLE:
        if isinstance(error, kind):
            headers = {"retry-after": str(retry_after)} if status == 503 else {}
            return Refused(status, message, type_, code, _param(message, fields), headers)
    if isinstance(error, RecursionError):  # what goes by the depth of a request is nowhere deep by itself
        return invalid("something in the request has too many levels; make it flatter", code="too_deep")
    return _defect(error)


def _in_words_of(message: str, names: Mapping[str, str]) -> str:
    """The message with the name that it begins with as the client wrote it."""
    found = re.match(r"[a-z_]+", message)
    if found is None or found[0] not in names:
        return message
    return names[found[0]] + message[found.end() :]


def _param(message: str, fields: frozenset[str]) -> str | None:
    """The field that a message begins with, for ours name the argument that is wrong."""
    found = re.match(r"[a-z_]+", message)
    return found[0] if found and found[0] in fields else None


def _defect(error: BaseException) -> Refused:
    number = uuid.uuid4().hex[:12]
    _log.error("error %s", number, error=error)
    return Refused(500, f"an internal error; the server's log has it as {number}", "server_error", "internal")
