"""Progress of downloads and loading: a bar where somebody watches, nothing where nobody does.

The native side reports ``(what, total, done)``, with ``done == -1`` when that item is finished. ``Bars``
draws them with tqdm on a terminal or in a notebook, and only what takes longer than a second.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

from . import _log

Report = Callable[[str, "int | None", int], object]

PATIENCE = 1.0  # seconds before a bar appears
TICK = 0.05  # seconds between two looks at what is waited for


def reporter(progress: bool | Report) -> Report | None:
    """What to hand to the native side for the argument ``progress``."""
    shown = progress if callable(progress) else Bars() if progress and somebody_watches() else None
    return Logged(shown) if _log.wants_info() else shown


@contextlib.contextmanager
def item(report: Report | None, what: str, total: int | None) -> Iterator[Callable[[int], object]]:
    """Work done in Python: reports its begin and its end, and gives the function that tells how far it is."""
    tell = report or (lambda what, total, done: None)
    tell(what, total, 0)
    try:
        yield lambda done: tell(what, total, done)
    finally:
        tell(what, total, -1)


def somebody_watches() -> bool:
    if in_notebook():
        return True
    try:
        return sys.stderr is not None and sys.stderr.isatty()
    except ValueError:  # closed
        return False


def in_notebook() -> bool:
    """Whether this runs in a cell."""
    ipython = sys.modules.get("IPython")  # if it was never imported, this is no notebook
    shell = ipython.get_ipython() if ipython is not None else None
    return shell is not None and "IPKernelApp" in getattr(shell, "config", {})


class Logged:
    """Writes a log line for each item that is finished, and passes everything on."""

    def __init__(self, shown: Report | None) -> None:
        self._shown = shown
        self._items: dict[str, tuple[float, int]] = {}

    def __call__(self, what: str, total: int | None, done: int) -> None:
        now = time.monotonic()
        began, bytes_ = self._items.get(what, (now, 0))
        self._items[what] = began, max(done, bytes_)
        if done < 0:
            del self._items[what]
            _log.info("%s: %s in %.1f s", what, _log.size(bytes_), now - began)
        if self._shown is not None:
            self._shown(what, total, done)


class Bars:
    """One bar for each item that takes long enough."""

    def __init__(self, patience: float = PATIENCE) -> None:
        self._patience = patience
        self._began: dict[str, float] = {}
        self._bars: dict[str, Any] = {}

    def __call__(self, what: str, total: int | None, done: int) -> None:
        if done < 0:
            self._began.pop(what, None)
            bar = self._bars.pop(what, None)
            if bar is not None:
                bar.update((bar.total or bar.n) - bar.n)  # a notebook's bar that is not full would stay, red
                bar.close()
            return
        began = self._began.setdefault(what, time.monotonic())
        bar = self._bars.get(what)
        if bar is None and time.monotonic() - began >= self._patience:
            bar = self._bars[what] = bar_of(what, total)
        if bar is not None:
            bar.update(done - bar.n)


def bar_of(what: str, total: int | None, unit: str = "B") -> Any:
    """A bar of tqdm. Bytes are shortened, other units are counted."""
    # Slow to import, so only when a bar is really shown.
    import importlib.util

    from tqdm.std import tqdm  # type: ignore[import-untyped]

    more: dict[str, Any] = {}
    if in_notebook():
        if importlib.util.find_spec("ipywidgets"):
            from tqdm.notebook import tqdm  # type: ignore[import-untyped]
        else:  # tqdm.auto would warn; and what goes to stderr stands on red
            more = {"file": sys.stdout}
    if unit == "B":
        more |= {"unit_scale": True, "unit_divisor": 1024}
    return tqdm(desc=what, total=total, unit=unit, leave=False, **more)
