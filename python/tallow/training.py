"""``Training``: a run that makes an adapter of rows, as its caller sees it.

The run has a thread of its own in the native half, and goes on whether it is watched or not; here its events
are read, kept and shown. It ends with the interpreter, and with ``Model.close``.
"""

from __future__ import annotations

import atexit
import os
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from . import _core, _log, arguments
from . import progress as bars
from . import rows as rows_
from .adapter import Adapter
from .errors import Cancelled, InvalidRequestError, Timeout

if TYPE_CHECKING:
    from .model import Model

PRECISIONS = ("bfloat16", "float32")
SCHEDULES = ("linear", "constant")
TOO_LONG = ("error", "skip")

#: Seconds that runs get to end when the interpreter does; what is not finished then is no checkpoint.
_LAST = 5.0
#: Seconds of one look at what a run tells: another thread that reads it waits no longer.
_LOOK = 0.2


class TrainingStep(NamedTuple):
    """What one step told.

    - ``loss``: the mean over the trained tokens of its rows, in nats.
    - ``free_loss``: the same over those that are free: not what every other answer that began the same way
      goes on with. In a classifier's answers that is the label; the form around it is soon learned, and a
      small ``loss`` proves little. None if all tokens are free, or none of these rows has one.
    - ``eval_loss``: over the rows that are held out, after a step that was followed by a look at them.
    - ``tokens_per_second`` counts the tokens of the rows, also those that rows share and that were computed
      once; ``eta``: seconds to the end at this speed.
    """

    step: int
    steps: int
    epoch: float
    loss: float
    free_loss: float | None
    eval_loss: float | None
    learning_rate: float
    grad_norm: float
    tokens_per_second: float
    rows_per_second: float
    eta: float


Progress = Callable[[TrainingStep], object]


class Training:
    """A run of ``Model.train``. It works by itself; to iterate it gives a ``TrainingStep`` for each step as
    they come (from the first, as often as it is iterated), and ``result()`` waits for the adapter.

    - ``history``: the steps so far.
    - ``skipped``: rows that were left out because they are longer than the context.
    - ``notes``: what is worth knowing of the rows, and at the end of how it went.

    ``native``, ``model``, ``prepared``, ``name`` and ``show`` are what ``Model.train`` makes it of; nobody
    makes one by hand.
    """

    def __init__(
        self,
        native: _core.Training,
        model: Model,
        prepared: rows_.Prepared,
        name: str | None,
        show: bool | Progress,
    ) -> None:
        self.skipped = prepared.skipped
        self.notes = prepared.notes
        self.history: list[TrainingStep] = []
        self._native, self._model, self._name, self._show = native, model, name, show
        self._rows = len(prepared.examples)
        self._lock = threading.Lock()
        self._process = os.getpid()
        self._stopped = False
        self._end: dict[str, Any] | None = None
        self._adapter: Adapter | None = None
        self._error: BaseException | None = None

    def __iter__(self) -> Iterator[TrainingStep]:
        at = 0
        while True:
            while at < len(self.history):
                yield self.history[at]
                at += 1
            if not self._more(None) and at >= len(self.history):
                break
        if not (self._stopped and isinstance(self._error, Cancelled)):
            self.result()

    def result(self, timeout: float | None = None) -> Adapter:
        """The adapter, which serves at once. Waits for the end of the run, or raises Timeout after
        ``timeout`` seconds, and the run goes on. A run that failed raises what ended it; Ctrl-C cancels
        it."""
        deadline = None if timeout is None else time.monotonic() + arguments.seconds("timeout", timeout)
        with _bar(self) as tell:
            told = 0
            while self._more(deadline):
                for step in self.history[told:]:
                    tell(step)
                told = len(self.history)
                if deadline is not None and time.monotonic() >= deadline and self._end is None:
                    raise Timeout(f"the training has not ended within {timeout} seconds; it goes on")
            for step in self.history[told:]:
                tell(step)
        if self._error is not None:
            raise self._error
        assert self._adapter is not None
        return self._adapter

    def done(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self._end is not None or (os.getpid() == self._process and self._native.finished)

    def cancel(self) -> None:
        """Ends the run within a second; ``result()`` raises Cancelled then. A checkpoint that was written
        stays. One that has ended stays as it is."""
        self._stopped = True
        if os.getpid() == self._process:
            self._native.cancel()

    def _more(self, deadline: float | None) -> bool:
        """Reads what has come, and waits for something if nothing has; False after the end. Ctrl-C ends the
        run."""
        if os.getpid() != self._process:
            raise InvalidRequestError(
                "this training belongs to the process that was forked; train again in this one"
            )
        try:
            with self._lock:
                if self._end is not None:
                    return False
                left = _LOOK if deadline is None else min(_LOOK, max(deadline - time.monotonic(), 0.0))
                event = self._native.poll(left)
                while event is not None and not event.get("finished"):
                    self.history.append(TrainingStep(**event))
                    event = self._native.poll(0.0)
                if event is not None:
                    self._finish(event)
                return self._end is None
        except KeyboardInterrupt:
            self.cancel()
            raise

    def _finish(self, event: dict[str, Any]) -> None:
        self.notes = (*self.notes, *event.get("notes", ()))
        self._error = event.get("error")
        if self._error is None:
            try:
                self._adapter = Adapter(self._model, event["adapter"])
            except BaseException as error:
                self._error = error
        self._end = event
        if _log.wants_info():
            _log.info("%r", self)

    def _look(self) -> None:
        """Reads what has come without waiting; for those who show it."""
        if os.getpid() == self._process and self._end is None:
            self._more(time.monotonic())

    @property
    def state(self) -> str:
        """ "beginning", "running", "finished", "cancelled" or "failed"."""
        if self._end is None:
            return "running" if self.history else "beginning"
        if self._error is None:
            return "finished"
        return "cancelled" if isinstance(self._error, Cancelled) else "failed"

    def __repr__(self) -> str:
        self._look()
        facts = [f"{self._rows} rows"]
        if self.history:
            last = self.history[-1]
            facts = [f"step {last.step} of {last.steps}", f"loss {last.loss:.3f}"]
            facts += [] if last.free_loss is None else [f"free {last.free_loss:.3f}"]
            looked = [step.eval_loss for step in self.history if step.eval_loss is not None]
            facts += [f"held-out {looked[-1]:.3f}"] if looked else []
            facts.append(f"{last.rows_per_second:.1f} rows/s")
            if self._end is None:
                facts.append(f"{last.eta:.0f} s left")
        if self._error is not None and self.state == "failed":
            facts.append(str(self._error))
        notes = "".join(f"; {note}" for note in self.notes)
        return f"<tallow.Training {self.state}: {', '.join(facts)}{notes}>"

    def _repr_html_(self) -> str:
        from . import html  # nothing that `import tallow` should wait for

        self._look()
        return html.training(self)


class _bar:
    """While somebody waits for a run: a bar where somebody watches, or the caller's own function."""

    def __init__(self, training: Training) -> None:
        self._training = training
        self._show = training._show
        self._bar: Any = None
        self._began = time.monotonic()

    def __enter__(self) -> Progress:
        return self._tell

    def _tell(self, step: TrainingStep) -> None:
        if callable(self._show):
            self._show(step)
        elif self._show and bars.somebody_watches():
            if self._bar is None and time.monotonic() - self._began >= bars.PATIENCE:
                self._bar = bars.bar_of("training", step.steps, unit="step")
            if self._bar is not None:
                self._bar.set_postfix_str(f"loss {step.loss:.3f}", refresh=False)
                self._bar.update(step.step - self._bar.n)

    def __exit__(self, *exception: object) -> None:
        if self._bar is not None:
            self._bar.close()


# To start and to end runs


def start(model: Model, rows: object, **given: Any) -> Training:
    """See ``Model.train``."""
    options = _options(given)
    too_long = arguments.choice("too_long", given["too_long"], TOO_LONG)
    show = given["progress"]
    if not isinstance(show, bool) and not callable(show):
        arguments.wrong_type("progress", show, "True, False or a callable (step)")
    name = given["name"]
    if name is not None:
        arguments.text("name", name)
    prepared = rows_.prepared(model._native, rows, too_long=too_long)
    native = model._shared.engine().train(prepared.examples, {**options, "name": name})
    _remember(native, model)
    return Training(native, model, prepared, name, show)


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """The options of a run, checked: those that are None are left out."""

    def count(name: str, low: int = 1, high: int = arguments.MAX_COUNT) -> int:
        return arguments.integer(name, given[name], low, high)

    def number(name: str) -> float:
        return arguments.number(name, given[name])

    def share(name: str) -> float:
        value = 0.0 if given[name] is False else arguments.number(name, given[name])
        if not 0 <= value < 1:
            arguments.wrong_value(name, given[name], "a share from 0 to below 1")
        return value

    def above(name: str) -> float:
        value = number(name)
        if value <= 0:
            arguments.wrong_value(name, given[name], "more than 0")
        return value

    checks: dict[str, Callable[[], Any]] = {
        "rank": lambda: count("rank"),
        "alpha": lambda: above("alpha"),
        "targets": lambda: _targets(given["targets"]),
        "epochs": lambda: count("epochs"),
        "learning_rate": lambda: above("learning_rate"),
        "batch": lambda: count("batch"),
        "eval": lambda: share("eval"),
        "seed": lambda: count("seed", 0, arguments.MAX_SEED),
        "output": lambda: arguments.path_text("output", given["output"]),
        "precision": lambda: arguments.choice("precision", given["precision"], PRECISIONS),
        "train_memory": lambda: arguments.memory("train_memory", given["train_memory"]),
        "max_steps": lambda: count("max_steps"),
        "warmup": lambda: share("warmup"),
        "schedule": lambda: arguments.choice("schedule", given["schedule"], SCHEDULES),
        "weight_decay": lambda: number("weight_decay"),
        "max_grad_norm": lambda: above("max_grad_norm"),
        "resume": lambda: arguments.path_text("resume", given["resume"]),
        "threads": lambda: count("threads"),
    }
    may_be_none = ("learning_rate", "output", "train_memory", "max_steps", "resume", "threads")
    return {
        name: check() for name, check in checks.items() if not (given[name] is None and name in may_be_none)
    }


def _targets(value: object) -> list[str]:
    """Names of projections; none: all."""
    if value in ("all", "all-linear"):
        return []
    if isinstance(value, str):
        arguments.wrong_type("targets", value, 'a list of names such as ["q_proj", "v_proj"], or "all"')
    return arguments.texts("targets", value, "names")


#: Runs that may still go on, and the engines that they share with requests.
_running: list[tuple[_core.Training, weakref.ref[Any]]] = []
_lock = threading.Lock()


def _remember(native: _core.Training, model: Model) -> None:
    with _lock:
        _running[:] = [entry for entry in _running if not entry[0].finished]
        _running.append((native, weakref.ref(model._shared)))


def end(shared: Any = None, seconds: float = _LAST) -> None:
    """Cancels the runs of an engine, or all, and waits until they have ended."""
    with _lock:
        found = [native for native, owner in _running if shared is None or owner() is shared]
    for native in found:
        native.cancel()
    deadline = time.monotonic() + seconds
    for native in found:
        native.wait(max(deadline - time.monotonic(), 0.0))


def _after_fork() -> None:
    global _lock
    _lock = threading.Lock()
    _running.clear()


atexit.register(end)
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
