"""uvicorn, with an end that clients can live with.

At the first signal nothing new is accepted and what is running gets ``grace`` seconds; what is left then ends
with an error. A second signal ends at once. Either way the exit code is 0, for it was asked for.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any

import uvicorn
from starlette.applications import Starlette

from .. import _async
from . import errors
from .server import Server

#: Seconds that answers get to tell that they were ended.
_LAST_WORDS = 2.0
#: The same at a second signal.
_AT_ONCE = 0.3
#: Seconds after which the time in the answers' headers is set.
_TICK = 1.0
#: Seconds that a connection without a request is kept.
_KEEP_ALIVE = 75


class Runner(uvicorn.Server):
    """Serves an app until a signal comes. ``started`` is told when it listens."""

    def __init__(self, app: Starlette, *, grace: float, started: Callable[[], None] | None = None) -> None:
        super().__init__(
            uvicorn.Config(
                app,
                access_log=False,
                log_level=logging.WARNING,
                lifespan="on",
                ws="none",
                server_header=False,
                timeout_keep_alive=_KEEP_ALIVE,
                timeout_graceful_shutdown=grace + _LAST_WORDS,  # type: ignore[arg-type]
            )
        )
        self._served: Server = app.state.tallow
        self._grace = grace
        self._told = started
        self._loop: asyncio.AbstractEventLoop | None = None
        self._signalled = asyncio.Event()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        self._loop = asyncio.get_running_loop()
        _async.without_beat()
        await super().startup(sockets)
        if self.started and self._told is not None:
            self._told()

    async def main_loop(self) -> None:
        # uvicorn's own looks ten times a second whether it is to end.
        while not await self.on_tick(0):
            with contextlib.suppress(asyncio.TimeoutError):
                await asyncio.wait_for(self._signalled.wait(), _TICK)

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        # Not remembered, or uvicorn would raise it once more at the end, and the process would die of it.
        if self.should_exit:
            self.force_exit = True
            self._on_loop(self._end_now)
            return
        self.should_exit = True
        self._served.drain()
        self._on_loop(self._signalled.set)
        self._on_loop(self._end_later)

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Also when the terminal is closed, unless it was said that this is no reason (nohup)."""
        with super().capture_signals():
            hangup = getattr(signal, "SIGHUP", None)
            beside = threading.current_thread() is not threading.main_thread()
            if hangup is None or beside or signal.getsignal(hangup) is not signal.SIG_DFL:
                yield
                return
            signal.signal(hangup, self.handle_exit)
            try:
                yield
            finally:
                signal.signal(hangup, signal.SIG_DFL)

    def _on_loop(self, what: Callable[[], Any]) -> None:
        if self._loop is not None and not self._loop.is_closed():
            self._loop.call_soon_threadsafe(what)

    def _end_later(self) -> None:
        assert self._loop is not None
        self._loop.call_later(self._grace, self._end)

    def _end(self) -> None:
        self._served.end_all(errors.draining())

    def _end_now(self) -> None:
        assert self._loop is not None
        self._end()
        self._loop.call_later(_AT_ONCE, self._cut)

    def _cut(self) -> None:
        """Connections of those who do not read stay open as long as they like."""
        for connection in tuple(self.server_state.connections):
            if connection.transport is not None:
                connection.transport.abort()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves it out then, and its task says so in a traceback
            await self.lifespan.shutdown()


def listening(host: str, port: int) -> socket.socket:
    """A socket that is bound before anything is loaded: a port in use is known at once."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    # Said to be TCP, or asyncio leaves Nagle's algorithm on, and an answer waits 40 ms for its reader's word.
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        made.bind((host, port))
    except OSError:
        made.close()
        raise
    return made


def run(
    app: Starlette, bound: socket.socket, *, grace: float, started: Callable[[], None] | None = None
) -> None:
    """Serves until a signal comes."""
    Runner(app, grace=grace, started=started).run([bound])
