"""What belongs to one call of the LM: how many candidates it wants, and its rollout.

DSPy asks an engine for ``n`` candidates by calling it ``n`` times, one after the other, and keeps
``rollout_id`` to itself. The LM notes both in a ContextVar (it reaches the engine in the same thread or
task), so that the first of the ``n`` calls can submit all candidates together and the others only collect
them.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any

from ..model import derived_seed


@dataclass
class Plan:
    """One call of ``LM``."""

    model: str
    n: int = 1
    rollout_id: Any = None
    #: Candidates that were submitted and not yet handed out.
    waiting: deque[Any] = field(default_factory=deque)
    submitted: int = 0
    _prepared: tuple[Any, Any] | None = None

    def once(self, request: Any, prepare: Callable[[], Any]) -> Any:
        """What ``prepare`` makes of the request: once for all candidates, for DSPy hands the very same
        request over for each."""
        if self._prepared is None or self._prepared[0] is not request:
            self._prepared = request, prepare()
        return self._prepared[1]

    def take(self, submit: Callable[[int], Any]) -> Any:
        """The next candidate. The first call submits all of them; one that is asked for again (DSPy's retry)
        is a further one, with a number of its own."""
        if not self.waiting:
            for _ in range(max(self.n - self.submitted, 1)):
                self.waiting.append(submit(self.submitted))
                self.submitted += 1
        return self.waiting.popleft()

    def close(self) -> None:
        """Ends what nobody collected."""
        for running in self.waiting:
            running.cancel()
        self.waiting.clear()


_current: ContextVar[Plan | None] = ContextVar("tallow_plan", default=None)


@contextmanager
def planned(plan: Plan) -> Iterator[Plan]:
    token = _current.set(plan)
    try:
        yield plan
    finally:
        _current.reset(token)
        plan.close()


def running(model: str) -> Plan | None:
    """The plan of the running call of this model's LM, if there is one."""
    plan = _current.get()
    return plan if plan is not None and plan.model == model else None


def current(model: str) -> Plan:
    """The plan of the running call; one of its own for an engine that is called without an LM of ours."""
    return running(model) or Plan(model)


def seed(given: int | None, messages: list[dict[str, Any]], rollout_id: Any, index: int) -> int | None:
    """The seed of a candidate. A rollout's depends on prompt, rollout and number, so it is different for
    each and the same in the next run; without rollout or seed every candidate draws a fresh one."""
    if rollout_id is None:
        return derived_seed(given, index)
    key = json.dumps([given, rollout_id, index, messages], sort_keys=True, default=str)
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "little")
