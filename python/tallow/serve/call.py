"""One request to the server: what it is, how it came out, and that it ends when nobody wants it any more."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope

from .. import results
from . import errors, wire
from .server import Served, Server

Shape = TypeVar("Shape", bound=msgspec.Struct)
_Work = TypeVar("_Work")
#: Bodies from here on are read beside the event loop, for the others' sake.
LARGE = 32 * 2**10


@dataclass
class Outcome:
    """What became of a request, for the log and for metrics. Never what was asked or answered."""

    request_id: str
    method: str
    #: The route, without "/v1": "/chat/completions"; "" for what there is not.
    endpoint: str
    began: float = field(default_factory=time.monotonic)
    #: As it is listed; None if the request named none that is served.
    model: str | None = None
    stream: bool = False
    status: int = 0
    #: "stop", "length", "tool_calls", "cancelled", "error", or "ok" for what generates nothing.
    outcome: str = "ok"
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0
    #: Seconds in the engine's queue, until the first token, and in all.
    queue: float | None = None
    first_token: float | None = None
    seconds: float = 0.0
    #: Seconds a token, after the first.
    per_token: float | None = None

    def count(
        self, usage: results.Usage, timings: results.Timings, reason: str, *, with_prompt: bool
    ) -> None:
        """Adds one answer of the request."""
        if with_prompt:
            self.prompt_tokens += usage.prompt_tokens
            self.cached_tokens += usage.cached_tokens
        self.completion_tokens += usage.completion_tokens
        self.queue = timings.queue
        self.first_token = min(timings.first_token, self.first_token or math.inf)
        if usage.completion_tokens > 1:
            self.per_token = timings.decode / (usage.completion_tokens - 1)
        self.outcome = reason


class Call:
    """A request, as its handler sees it."""

    def __init__(self, server: Server, scope: Scope, receive: Receive, outcome: Outcome) -> None:
        self.server = server
        self.outcome = outcome
        self.path: dict[str, Any] = scope.get("path_params", {})
        self.headers: dict[bytes, bytes] = dict(scope.get("headers", ()))
        self._receive = receive
        self._task: asyncio.Task[Any] | None = None
        self._ended: errors.Refused | None = None
        #: Fields of the request, to tell which one an error is about.
        self.fields: frozenset[str] = frozenset()
        #: Arguments of ours -> the fields that they came from, where these are called otherwise.
        self.names: dict[str, str] = {}

    async def body(self) -> bytes:
        limit = self.server.settings.timeout
        try:
            return await asyncio.wait_for(self._body(), limit)
        except asyncio.TimeoutError:
            raise errors.Refused(
                408,
                f"the body did not come within {limit:g} s",
                "timeout_error",
                "timeout",
                headers={"connection": "close"},
            ) from None

    async def _body(self) -> bytes:
        parts = []
        while True:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise errors.left()
            parts.append(message.get("body", b""))
            if not message.get("more_body", False):
                return b"".join(parts)

    async def read(self, shape: type[Shape]) -> Shape:
        """The body, checked."""
        self.fields = wire.fields(shape)
        body = await self.body()
        allow = self.server.settings.allow_unknown
        return await self.beside(len(body), lambda: wire.read(body, shape, allow_unknown=allow))

    @staticmethod
    async def beside(size: int, work: Any) -> Any:
        """What ``work()`` gives; on another thread where the request is large."""
        return work() if size < LARGE else await asyncio.to_thread(work)

    async def served(self, name: str | None) -> Served:
        """What the request means by ``model``."""
        await self.server.loaded()
        found = self.server.resolve(name)
        self.outcome.model = found.name
        return found

    @staticmethod
    def json(value: Any, status: int = 200) -> Response:
        return Response(wire.to_json(value), status, media_type="application/json")

    @contextlib.asynccontextmanager
    async def attended(self) -> AsyncIterator[None]:
        """Ends what is awaited within as soon as the client leaves, or the server must end.

        uvicorn tells nobody that a client has gone but those who wait for it; Ray Serve cancels the handler
        instead, which comes out as the cancellation that it is."""
        self._task = asyncio.current_task()
        watcher = asyncio.ensure_future(self._watch())
        self.server.in_work.add(self)
        try:
            yield
        except asyncio.CancelledError:
            if self._ended is None:
                raise
            raise self._ended from None
        finally:
            self.server.in_work.discard(self)
            watcher.cancel()

    async def _watch(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.end(errors.left())

    def end(self, why: errors.Refused) -> None:
        """Ends the request with an error, at once."""
        if self._ended is None and self._task is not None:
            self._ended = why
            self._task.cancel()
