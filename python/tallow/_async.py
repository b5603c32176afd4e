"""asyncio over the native engine: one daemon thread waits for news of all generations and tells their loops.

The native side has one ``Waker`` for the process. A generation made with it announces itself by its key; the
thread calls ``loop.call_soon_threadsafe`` for the task that waits. So there is no thread a request, and any
number of event loops in any number of threads may wait at once. The thread starts with the first waiter and
ends a moment after the last, so a program that is done has nothing running; after a fork it starts anew.
"""

from __future__ import annotations

import asyncio
import atexit
import itertools
import os
import threading
from collections.abc import Callable
from types import EllipsisType
from typing import Any

from ._core import Cancelled, Generation, Waker

_WAIT = 0.1  # seconds between two looks at whether anybody still waits
_LINGER = 20  # looks without a waiter after which the thread ends


class _Dispatcher:
    def __init__(self) -> None:
        self.waker = Waker()
        self.pid = os.getpid()
        self._keys = itertools.count(1)
        self._waiting: dict[int, Callable[[], object]] = {}
        # For what starts and ends the thread. ``remove`` does without: a collection of garbage calls it at
        # any line, and in a forked child a thread of the parent may hold the lock for ever.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False
        atexit.register(self.stop)

    def add(self, wake: Callable[[], object]) -> int:
        key = next(self._keys)
        self._waiting[key] = wake
        try:
            with self._lock:
                if self._stopped:
                    raise Cancelled("the interpreter is exiting; nothing can be awaited any more")
                if self._thread is None:
                    thread = threading.Thread(target=self._run, name="tallow-asyncio", daemon=True)
                    thread.start()  # refused when the interpreter exits; the next caller must not rely on it
                    self._thread = thread
        except BaseException:
            self.remove(key)
            raise
        return key

    def remove(self, key: int) -> None:
        self._waiting.pop(key, None)

    def stop(self) -> None:
        self._stopped = True
        thread = self._thread
        if thread is not None and self.pid == os.getpid():
            thread.join(1.0)

    def _run(self) -> None:
        idle = 0
        while not self._stopped:
            for key in self.waker.wait(_WAIT):
                wake = self._waiting.get(key)
                if wake is not None:
                    try:
                        wake()
                    except RuntimeError:  # the loop was closed under its task; nobody is left to tell
                        self.remove(key)
            with self._lock:
                idle = 0 if self._waiting else idle + 1
                if idle > _LINGER:
                    self._thread = None  # under the lock: who comes next starts another
                    return


_dispatcher: _Dispatcher | None = None
_create = threading.Lock()


def _new_lock() -> None:
    global _create
    _create = threading.Lock()


if hasattr(os, "register_at_fork"):  # a thread of the parent may hold it
    os.register_at_fork(after_in_child=_new_lock)


def _current() -> _Dispatcher:
    global _dispatcher
    with _create:
        if _dispatcher is None or _dispatcher.pid != os.getpid():
            _dispatcher = _Dispatcher()
        return _dispatcher


class AsyncGeneration:
    """A generation whose pieces are awaited. Made on the loop that awaits it."""

    _closed = False

    def __init__(self, start: Callable[..., Generation], *, every_token: bool) -> None:
        loop = asyncio.get_running_loop()
        self._event = event = asyncio.Event()
        self._dispatcher = _current()
        # Without ``self`` in it: who drops this generation ends it, and the dispatcher must not hold it.
        self._key = self._dispatcher.add(lambda: loop.call_soon_threadsafe(event.set))
        try:
            self._generation = start(waker=self._dispatcher.waker, key=self._key, every_token=every_token)
        except BaseException:
            self._dispatcher.remove(self._key)
            raise

    async def next(self) -> dict[str, Any] | None:
        """The next raw piece; None after the last, or when another task closes it. A cancelled task cancels
        its generation at once."""
        try:
            while True:
                self._event.clear()  # before looking, so that news that come after the look are not lost
                if self._closed:
                    return None
                piece = self._generation.poll()
                if not isinstance(piece, EllipsisType):
                    if piece is None:
                        self.close()
                    return piece
                await self._event.wait()
        except BaseException:
            self.close()
            raise

    async def collect(self) -> list[dict[str, Any]]:
        """All pieces to the end."""
        pieces = []
        while (piece := await self.next()) is not None:
            pieces.append(piece)
        return pieces

    def close(self) -> None:
        self._closed = True
        self._event.set()
        self._dispatcher.remove(self._key)
        self._generation.cancel()

    cancel = close  # as a native Generation calls it

    def __del__(self) -> None:
        if hasattr(self, "_generation"):
            self.close()
