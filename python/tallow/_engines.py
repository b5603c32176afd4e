"""Which native engine serves a native model: at most one for each set of options, started when first needed,
shared by all who hold the model."""

from __future__ import annotations

import atexit
import os
import threading
import weakref
from typing import Any, NamedTuple

from . import _core

#: Requests that may wait. Each costs little more than its prompt, and whoever gathers thousands of
#: coroutines means them all to be answered.
_QUEUE = 2**20


class EngineOptions(NamedTuple):
    """How an engine runs. Nothing in here changes an answer."""

    kv_memory: int | None = None
    queue: int | None = None
    prefix_cache: bool = True
    speculation: bool = True
    draft: _core.Model | None = None
    adapter_memory: int | None = None

    def given(self) -> dict[str, Any]:
        """Those that are not the default."""
        return {name: value for name, value in self._asdict().items() if value != self._field_defaults[name]}


class Shared:
    """A native model and its engine. Models that are equal and have the same engine options hold the same
    one."""

    def __init__(self, native: _core.Model, options: EngineOptions) -> None:
        self.native = native
        self.options = options
        #: ``Model._exact_name``, once somebody has asked for it.
        self.exact: str | None = None
        self._lock = threading.RLock()
        self._engine: _core.Engine | None = None
        #: One that was closed: its adapters are those of the next.
        self._last: _core.Engine | None = None

    def engine(self) -> _core.Engine:
        engine = self._engine
        if engine is None or engine.closed:
            engine = self._start()
        return engine

    def _start(self) -> _core.Engine:
        with self._lock:
            engine = self._engine
            if engine is None or engine.closed:
                given = self.options._asdict() | {"queue": self.options.queue or _QUEUE}
                last = self._last or engine
                engine = self._engine = _core.Engine(self.native, **given, adapters_of=last)
                self._last = None
            return engine

    def running_stats(self) -> dict[str, Any] | None:
        """What the engine has done; None if it does not run, and it is not started for this."""
        engine = self._engine
        return None if engine is None or engine.closed else engine.stats()

    def close(self) -> None:
        """Ends the engine and frees its cache; requests in work fail with Cancelled. The next one starts
        another."""
        with self._lock:
            engine, self._engine = self._engine, None
            self._last = engine or self._last
        if engine is not None:
            engine.close()

    def after_fork(self) -> None:
        """In a forked child: the parent's engine thread does not exist here, and a thread of the parent may
        have held the lock. The handle is kept and never touched."""
        _left_by_parent.extend((self._engine, self._last))
        self._lock, self._engine, self._last = threading.RLock(), None, None

    def __del__(self) -> None:
        # The native engine waits for the step in work when it is dropped, and holds the GIL then; ``close``
        # waits without it.
        engine = getattr(self, "_engine", None)
        if engine is not None:
            engine.close()


#: Seconds that filters of the user's which run when the interpreter ends get to return.
_LAST_FILTERS = 5.0
atexit.register(_core.end_filters, _LAST_FILTERS)
#: And what packed weights that are on their way to disk get, at full speed then.
_LAST_PACKED = 10.0
atexit.register(_core.finish_packed, _LAST_PACKED)

_left_by_parent: list[_core.Engine | None] = []
_shared: weakref.WeakValueDictionary[tuple[_core.Model, EngineOptions], Shared] = (
    weakref.WeakValueDictionary()
)
# Reentrant, as the lock of each Shared: a collection of garbage can run anybody's ``__del__`` at any line.
_lock = threading.RLock()


def shared(native: _core.Model, options: EngineOptions) -> Shared:
    """The one ``Shared`` of this native model and these options. It lives as long as somebody holds it."""
    with _lock:
        found = _shared.get((native, options))
        if found is None:
            found = _shared[native, options] = Shared(native, options)
        return found


def _after_fork() -> None:
    """Here no second thread exists yet, so that no two can both find an engine of the parent."""
    global _lock
    _lock = threading.RLock()
    for reference in _shared.valuerefs():
        one = reference()
        if one is not None:
            one.after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
