"""Vectors and scores: many small requests to the engine, which has no door for event loops here, so a thread
waits for them. They go in batches, between which a client that has left is noticed."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from .. import errors
from .call import Call
from .errors import QUEUE_IS_FULL as FULL
from .server import QUEUE, Served

_Item = TypeVar("_Item")
_Found = TypeVar("_Found")

#: Batches at once. Those of all of them fit into the engine's queue.
_THREADS = 16
_BATCH = 32
#: Requests that have batches left, which is how many threads are wanted.
_running = 0


def of(served: Served, items: Sequence[_Item]) -> Iterator[Sequence[_Item]]:
    """Items in batches that the engine's queue has room for, whoever else is at work."""
    queue = served.model._shared.options.queue or QUEUE
    size = min(max(queue // _THREADS, 1), _BATCH)
    return (items[at : at + size] for at in range(0, len(items), size))


async def run(call: Call, work: Iterable[Callable[[], _Found]]) -> list[_Found]:
    """What each batch gives, one after the other; ends when the client leaves, or its time is up."""
    global _running
    if _running >= _THREADS + QUEUE:
        raise errors.OutOfMemoryError(f"{FULL}: {QUEUE} requests wait for vectors or scores; ask again later")
    found: list[_Found] = []

    async def each() -> None:
        for one in work:
            found.append(await _beside(one))

    limit = call.server.settings.timeout
    _running += 1
    try:
        async with call.attended():
            await asyncio.wait_for(each(), limit)
    except asyncio.TimeoutError:
        raise errors.Timeout(f"the time-out of {limit:g} s was reached") from None
    finally:
        _running -= 1
    return found


@functools.cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, "tallow-serve")


async def _beside(work: Callable[[], _Found]) -> Any:
    return await asyncio.get_running_loop().run_in_executor(_pool(), work)
