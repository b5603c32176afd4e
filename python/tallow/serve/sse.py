"""Answers as server-sent events.

Nothing is sent before the first piece is there, so that what is wrong with a request is a status of its own.
A prompt that takes long is told by comments, or proxies cut the line. What goes wrong later is an event with
an error: an end without one looks like a whole answer to some clients.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from . import errors, wire
from .call import Call

HEADERS = [
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),
]
_PING = b": ping\n\n"


class Writer:
    """Where a handler puts its events. Those of one ``flush`` go out together."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._held = bytearray()
        self.started = False
        #: When something was sent last, and since when the reader takes nothing, if he does not.
        self.last = asyncio.get_running_loop().time()
        self.stuck: float | None = None

    def put(self, value: Any, event: str | None = None) -> None:
        """One event; ``event`` is its name, where it has one."""
        if event is not None:
            self._held += b"event: %s\n" % event.encode()
        self._held += b"data: %s\n\n" % wire.to_json(value)

    def put_done(self) -> None:
        self._held += b"data: [DONE]\n\n"

    async def flush(self) -> None:
        if not self._held:
            return
        data, self._held = bytes(self._held), bytearray()
        await self.send(data)

    async def send(self, data: bytes, *, last: bool = False) -> None:
        if not self.started:
            self.started = True
            await self._send({"type": "http.response.start", "status": 200, "headers": HEADERS})
        self.last = self.stuck = asyncio.get_running_loop().time()
        await self._send({"type": "http.response.body", "body": data, "more_body": not last})
        self.stuck = None


class EventStream(Response):
    """A response that is written while ``produce`` runs. ``failed`` puts the event that tells of an error."""

    def __init__(
        self,
        call: Call,
        produce: Callable[[Writer], Awaitable[None]],
        failed: Callable[[Writer, errors.Refused], None] | None = None,
    ) -> None:
        self.status_code = 200
        self.background = None
        self._call = call
        self._produce = produce
        self._failed = failed or _failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        out = Writer(send)
        watch = _Watch(out, self._call)
        try:
            async with self._call.attended():
                await self._produce(out)
                await out.flush()
        except Exception as error:
            if not out.started:
                raise
            refused = errors.of(error)
            self._call.outcome.outcome = "cancelled" if refused.status == 499 else "error"
            if out.stuck is not None:  # nor would he read this
                return
            self._failed(out, refused)
            await out.flush()
        finally:
            watch.stop()
        await out.send(b"", last=True)


def _failed(out: Writer, refused: errors.Refused) -> None:
    out.put(refused.body())


class _Watch:
    """Looks at a stream now and then: says that it lives when it has been silent for some time, and ends it
    when its reader takes nothing for as long as an answer may take."""

    def __init__(self, out: Writer, call: Call) -> None:
        self._out, self._call = out, call
        self._every, self._patience = call.server.settings.ping, call.server.settings.timeout
        self._loop = asyncio.get_running_loop()
        self._handle = self._loop.call_later(self._every, self._look)
        self._ping: asyncio.Task[None] | None = None

    def _look(self) -> None:
        now, out = self._loop.time(), self._out
        if out.stuck is not None:
            if now - out.stuck >= self._patience:
                self._call.end(errors.Refused(408, "the client does not read", "timeout_error", "timeout"))
                return
        elif now - out.last >= self._every:
            self._ping = asyncio.ensure_future(out.send(_PING))
        since = out.last if out.stuck is None else now
        self._handle = self._loop.call_later(max(since + self._every - now, 0.001), self._look)

    def stop(self) -> None:
        self._handle.cancel()
