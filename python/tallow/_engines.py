"""Which native engine serves a native model: at most one, started when first needed, shared by all who hold
the model."""

from __future__ import annotations

import os
import threading
import weakref

from . import _core

#: Requests that may wait. Each costs little more than its prompt, and whoever gathers thousands of
#: coroutines means them all to be answered.
_QUEUE = 2**20


class Shared:
    """A native model and its engine. Models that are equal hold the same one."""

    def __init__(self, native: _core.Model) -> None:
        self.native = native
        self._lock = threading.Lock()
        self._engine: _core.Engine | None = None
        self._pid = os.getpid()

    def engine(self) -> _core.Engine:
        engine = self._engine
        if engine is None or self._pid != os.getpid() or engine.closed:
            engine = self._start()
        return engine

    def _start(self) -> _core.Engine:
        if self._pid != os.getpid():
            self._after_fork()
        with self._lock:
            if self._engine is None or self._engine.closed:
                self._engine = _core.Engine(self.native, queue=_QUEUE)
            return self._engine

    def _after_fork(self) -> None:
        """The parent's engine thread does not exist here. Its handle is kept and never touched: to drop it
        could wait for that thread for ever. The lock may have been held by a thread of the parent, so it is
        new, too."""
        _left_by_parent.append(self._engine)
        self._lock, self._engine, self._pid = threading.Lock(), None, os.getpid()

    def close(self) -> None:
        """Ends the engine and frees its cache; requests in work fail with Cancelled. The next one starts
        another."""
        with self._lock:
            engine, self._engine = self._engine, None
        if engine is not None:
            engine.close()

    def __del__(self) -> None:
        # The native engine waits for the step in work when it is dropped, and holds the GIL then; ``close``
        # waits without it.
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close()


_left_by_parent: list[_core.Engine | None] = []
_shared: weakref.WeakValueDictionary[_core.Model, Shared] = weakref.WeakValueDictionary()
_lock = threading.Lock()


def _new_lock() -> None:
    global _lock
    _lock = threading.Lock()


if hasattr(os, "register_at_fork"):  # a thread of the parent may hold it
    os.register_at_fork(after_in_child=_new_lock)


def shared(native: _core.Model) -> Shared:
    """The one ``Shared`` of this native model. It lives as long as somebody holds it."""
    with _lock:
        found = _shared.get(native)
        if found is None:
            found = _shared[native] = Shared(native)
        return found
