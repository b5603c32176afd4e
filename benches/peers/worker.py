"""One engine in its own process: reads a command a line from stdin, answers a line of JSON.

    PYTHON benches/peers/worker.py ADAPTER.py

`compare.py` starts one for each engine, with the interpreter that has the engine, and asks one at a time.
An adapter is a module with a class `Peer`:

- `Peer(path, threads)` loads a GGUF file. `version` says what it is, `batches` whether it serves requests
  together, `keeps` whether `depth` finds again what the call before computed.
- `single(ids, text, new)`: one request from nothing, greedy, over the end token. It gives the seconds
  until the first token is known (`first`), those of the `new - 1` after it (`rest`), and, where it can,
  the `tokens`. `prompt` is given where the engine read another number of tokens than `ids` has.
- `burst(prompts, texts, new)`: all requests at once, returns when the last is done.
- Where it serves adapters, `Peer(path, threads, adapters)` takes their files, `single` the number of one, and
  `burst` a list with a number, or None, for each request.
- `held()`, where it can say: MiB of weights, keys, values and states in memory.
- Ours alone: `settle()` waits until packed weights are kept on disk, `kept(ids)` says what keys and values
  take, as a multiple of those in bfloat16.
- `depth(ids, text, new)`: as `single`; what is left from the call before may be used again.

`text` is what `ids` say, for engines that take no ids. Times of `single` and `depth` are the adapter's
own, those of `load` and `burst` are taken here. The engine's own prints go to stderr.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

with contextlib.suppress(ImportError):  # every engine needs it, so its memory belongs to none
    import numpy  # noqa: F401


def peak_mib() -> float:
    """The most memory that this process has had. Linux counts in `ru_maxrss` what its parent had, too."""
    status = Path("/proc/self/status")
    if status.exists():
        found = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
        return int(found[0].split()[1]) / 1024
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale


class Worker:
    def __init__(self, adapter: str) -> None:
        self.adapter = adapter
        self.peer: Any = None
        self.before = peak_mib()

    def load(self, **arguments: Any) -> dict[str, Any]:
        """Import and load apart. `first` is a prompt that is answered at once, the end of a cold start, and
        once more, to know how fast the engine is.
        """
        first = arguments.pop("first")
        began = time.perf_counter()
        spec = importlib.util.spec_from_file_location("peer", self.adapter)
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        imported = time.perf_counter()
        self.peer = module.Peer(**arguments)
        loaded = time.perf_counter()
        self.peer.single(*first, 1)
        started = time.perf_counter()
        peak = self.peak()["peak"]
        self.peer.single(*first, 1)
        return {
            "import": imported - began,
            "load": loaded - imported,
            "start": started - imported,
            "again": time.perf_counter() - started,
            "version": self.peer.version,
            "batches": self.peer.batches,
            "keeps": self.peer.keeps,
            "peak": peak,
        }

    def single(self, **arguments: Any) -> dict[str, Any]:
        return self.peer.single(**arguments)

    def depth(self, **arguments: Any) -> dict[str, Any]:
        return self.peer.depth(**arguments)

    def burst(self, **arguments: Any) -> dict[str, Any]:
        prepare = getattr(self.peer, "prepare", None)
        if prepare:
            prepare(len(arguments["prompts"]))
        began = time.perf_counter()
        self.peer.burst(**arguments)
        return {"seconds": time.perf_counter() - began}

    def settle(self) -> str:
        """Waits for what the peer does after a start, and says what became of it."""
        return self.peer.settle()

    def kept(self, **arguments: Any) -> float:
        return self.peer.kept(**arguments)

    def peak(self) -> dict[str, float]:
        """MiB: the most memory there was, and what of it the peer knows to be weights, keys and states."""
        held = getattr(self.peer, "held", None)
        return {"peak": peak_mib() - self.before} | ({"held": held()} if held else {})


def answer(worker: Worker, line: str) -> dict[str, Any]:
    try:
        command = json.loads(line)
        return {"ok": getattr(worker, command.pop("do"))(**command)}
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"[:400]}


def end_with_parent() -> None:
    """A stopped process would stay for ever. Linux alone can be asked for this."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main() -> None:
    end_with_parent()
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    sys.path.pop(0)  # this folder is no place to import from
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(answer(worker, line)), file=answers, flush=True)


if __name__ == "__main__":
    main()
