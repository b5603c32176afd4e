"""asyncio over the native engine: one daemon thread waits for news of all generations and tells their loops.

The native side has one ``Waker`` for the process. A generation made with it announces itself by its key; the
thread calls ``loop.call_soon_threadsafe`` for the tasks that wait. So there is no thread a request, and any
number of event loops in any number of threads may wait at once, one after the other for the same answer as
well. The thread starts with the first generation and ends a moment after the last, so a program that is done
has nothing running; after a fork it starts anew.

No event loop waits in here: prompts are prepared on a native thread, and filters run on one of asyncio's.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import itertools
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from types import EllipsisType
from typing import Any

from ._core import Cancelled, Generation, Waker

_WAIT = 0.1  # seconds between two looks at whether anybody still waits
_LINGER = 20  # looks without a waiter after which the thread ends
_LOOK = 0.5  # seconds between two looks at which loops run
_BEAT = 0.05  # seconds between two wakings of the main thread's loop


class _Beat:
    """Wakes the event loop of the main thread again and again while a task waits in it. Signals are handled
    in that thread, and what a handler asks of the loop (Jupyter's stop button cancels the cell's task) is not
    seen as long as the loop sleeps: the cancellation came with the answer."""

    def __init__(self, wanted: bool = True) -> None:
        self._waiting = 0
        self._running = False
        self._wanted = wanted

    def join(self, loop: asyncio.AbstractEventLoop) -> None:
        self._waiting += 1
        if self._wanted and not self._running and threading.current_thread() is threading.main_thread():
            self._beat(loop)

    def leave(self) -> None:
        self._waiting -= 1

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        self._running = self._waiting > 0
        if self._running:
            loop.call_later(_BEAT, self._beat, loop)


_beats: weakref.WeakKeyDictionary[asyncio.AbstractEventLoop, _Beat] = weakref.WeakKeyDictionary()


def without_beat() -> None:
    """Lets the running loop sleep, for its handlers of signals wake it themselves. For a server, whose
    streams cost little more than their wake-ups."""
    _beats[asyncio.get_running_loop()] = _Beat(wanted=False)


@contextlib.contextmanager
def awake() -> Iterator[None]:
    """Has the running loop see signals while a task waits."""
    loop = asyncio.get_running_loop()
    beat = _beats.get(loop)
    if beat is None:
        beat = _beats[loop] = _Beat()
    beat.join(loop)
    try:
        yield
    finally:
        beat.leave()


class _Waiter:
    """A future that a task awaits. It is held only while its loop runs: a task that is pending on a loop that
    stands still, or is closed, lives as long as somebody wants it, and is else collected, which ends its
    request. (Ctrl-C out of ``run_until_complete``, as in a notebook's cell, leaves such a task behind.)"""

    __slots__ = ("_future", "_held", "_loop")

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self._held: asyncio.Future[None] | None = self._loop.create_future()
        self._future = weakref.ref(self._held)

    def look(self) -> None:
        self._held = self._future() if self._loop.is_running() else None

    def future(self) -> asyncio.Future[None]:
        assert self._held is not None
        return self._held


def _wake(waiters: Iterable[_Waiter]) -> None:
    """Tells each loop once, however many of its tasks wait: a step has news for all streams of a server, and
    each wake-up of a loop costs more than all that is done in it."""
    loops: dict[asyncio.AbstractEventLoop, list[_Waiter]] = {}
    for waiter in waiters:
        loops.setdefault(waiter._loop, []).append(waiter)
    for loop, waiting in loops.items():
        futures = [future for waiter in waiting if (future := waiter._future()) is not None]
        try:
            loop.call_soon_threadsafe(_resolve, futures)
        except RuntimeError:  # the loop was closed under its tasks; nobody is left to tell
            for waiter in waiting:
                waiter._held = None


def _resolve(futures: list[asyncio.Future[None]]) -> None:
    for future in futures:
        if not future.done():
            future.set_result(None)


class _Waiters:
    """All who wait for news of one generation. Without the generation in it: who drops that one ends it, and
    the dispatcher must not hold it."""

    def __init__(self) -> None:
        self._waiters: set[_Waiter] = set()

    def join(self) -> _Waiter:
        waiter = _Waiter()
        self._waiters.add(waiter)
        return waiter

    def leave(self, waiter: _Waiter) -> None:
        self._waiters.discard(waiter)

    def all(self) -> tuple[_Waiter, ...]:
        """A copy, made at once: other threads join and leave."""
        return tuple(self._waiters)

    def wake(self) -> None:
        _wake(self.all())

    def look(self) -> None:
        for waiter in self.all():
            waiter.look()


class _Dispatcher:
    def __init__(self) -> None:
        self.waker = Waker()
        self.pid = os.getpid()
        self._keys = itertools.count(1)
        self._waiting: dict[int, _Waiters] = {}
        # For what starts and ends the thread. ``remove`` does without: a collection of garbage calls it at
        # any line, and in a forked child a thread of the parent may hold the lock for ever.
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._stopped = False
        atexit.register(self.stop)

    def add(self, waiters: _Waiters) -> int:
        key = next(self._keys)
        self._waiting[key] = waiters
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
        idle, looked = 0, time.monotonic()
        while not self._stopped:
            self._tell(self.waker.wait(_WAIT))
            if time.monotonic() - looked > _LOOK:
                self._look()
                looked = time.monotonic()
            with self._lock:
                idle = 0 if self._waiting else idle + 1
                if idle > _LINGER:
                    self._thread = None  # under the lock: who comes next starts another
                    return

    def _tell(self, keys: list[int]) -> None:
        # In a frame of its own, or that of the thread would hold the last one's task.
        found = [waiters for key in keys if (waiters := self._waiting.get(key)) is not None]
        if found:
            _wake([waiter for waiters in found for waiter in waiters.all()])

    def _look(self) -> None:
        for waiters in tuple(self._waiting.values()):
            waiters.look()


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
    """A generation whose pieces are awaited, in any event loop, by one task or by several."""

    _closed = False

    def __init__(self, start: Callable[..., Generation], *, every_token: bool) -> None:
        self._waiters = _Waiters()
        self._dispatcher = _current()
        self._key = self._dispatcher.add(self._waiters)
        try:
            self._generation = start(waker=self._dispatcher.waker, key=self._key, every_token=every_token)
        except BaseException:
            self._dispatcher.remove(self._key)
            raise

    async def next(self) -> dict[str, Any] | None:
        """The next raw piece; None after the last, or when another task closes it. A cancelled task cancels
        its generation at once."""
        try:
            with awake():
                while True:
                    waiter = (
                        self._waiters.join()
                    )  # before looking, so that no news is lost that comes after it
                    try:
                        if self._closed:
                            return None
                        piece = await self._poll()
                        if not isinstance(piece, EllipsisType):
                            if piece is None:
                                self.close()
                            return piece
                        await waiter.future()
                    finally:
                        self._waiters.leave(waiter)
        except Cancelled:
            if self._closed:  # by a filter of its own, which ran while it was looked for a piece
                return None
            raise
        except BaseException:
            self.close()
            raise

    async def _poll(self) -> dict[str, Any] | EllipsisType | None:
        if self._generation.has_filters:  # the user's own code, and a slow one would stop the loop
            return await asyncio.to_thread(self._generation.poll)
        return self._generation.poll()

    async def collect(self) -> list[dict[str, Any]]:
        """All pieces to the end."""
        pieces = []
        while (piece := await self.next()) is not None:
            pieces.append(piece)
        return pieces

    def close(self) -> None:
        self._closed = True
        self._dispatcher.remove(self._key)
        self._generation.cancel()
        self._waiters.wake()

    cancel = close  # as a native Generation calls it

    def __del__(self) -> None:
        if hasattr(self, "_generation"):
            self.close()
