"""tallow, through its Python API. Times that the engine does not count fall to the first token.

Single requests run without prefix cache and drafts. Requests at once have the cache, as by default, and
no drafts unless TALLOW_BENCH_DRAFTS is set.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
from collections.abc import Sequence
from typing import Any

import tallow

#: How long packed weights may take to be written, in seconds.
SETTLES = 120


class Peer:
    batches = keeps = True

    def __init__(self, path: str, threads: int, adapters: Sequence[str] = ()) -> None:
        options: dict[str, Any] = {"progress": False, "threads": threads}
        self.path = path
        drafts = bool(os.environ.get("TALLOW_BENCH_DRAFTS"))
        self.plain = tallow.Model(path, **options, prefix_cache=False, speculation=False)
        self.shared = tallow.Model(path, **options, speculation=drafts)
        # An engine that only `depth` fills, so that the bursts find nothing of it.
        self.deep = tallow.Model(path, **options, speculation=False, queue=64)
        for model in (self.plain, self.shared) if adapters else ():
            for number, folder in enumerate(adapters):
                model.load_adapter(folder, name=f"adapter-{number}")
        self.endless = dict.fromkeys(self.plain.eos_ids, -100.0)
        self.version = f"tallow {tallow.__version__} ({tallow.features().get('isa', '?')})"

    def settle(self) -> str:
        """Waits until packed weights are on disk, or it is known that they will not be."""
        until = time.monotonic() + SETTLES
        while self.plain.packed == "being kept" and time.monotonic() < until:
            time.sleep(0.1)
        return self.plain.packed

    def kept(self, ids: list[int]) -> float:
        """Bytes of keys and values after this prompt, as a multiple of those in bfloat16."""
        taken = []
        options = {"kv_memory": "1GiB", "progress": False, "speculation": False}  # an engine of its own
        for kv_type in ("auto", "bf16"):
            model = tallow.Model(self.path, kv_type=kv_type, **options)
            with contextlib.closing(model):
                self.ask(model, ids, 1)
                taken.append(model.stats()["touched_kv_bytes"])
        return taken[0] / taken[1]

    def held(self) -> float:
        engines = (self.plain, self.shared, self.deep)
        return (self.plain.weight_bytes + sum(it.stats()["touched_kv_bytes"] for it in engines)) / 2**20

    def ask(
        self, model: tallow.Model, ids: list[int], new: int, adapter: int | None = None
    ) -> tallow.Completion:
        named = {} if adapter is None else {"adapter": f"adapter-{adapter}"}
        answer = model.generate(ids, max_tokens=new, temperature=0, logit_bias=self.endless, **named)
        if len(answer.tokens) != new:
            raise RuntimeError(f"{len(answer.tokens)} tokens instead of {new}")
        return answer

    def timed(
        self, model: tallow.Model, ids: list[int], new: int, adapter: int | None = None
    ) -> dict[str, Any]:
        began = time.perf_counter()
        answer = self.ask(model, ids, new, adapter)
        seconds, rest = time.perf_counter() - began, answer.timings.decode
        return {"first": seconds - rest, "rest": rest, "tokens": list(answer.tokens)}

    def single(self, ids: list[int], text: str, new: int, adapter: int | None = None) -> dict[str, Any]:
        return self.timed(self.plain, ids, new, adapter)

    def depth(self, ids: list[int], text: str, new: int) -> dict[str, Any]:
        return self.timed(self.deep, ids, new)

    def prepare(self, count: int) -> None:
        self.ask(self.shared, [count], 1)  # the engine's thread stands

    def burst(
        self, prompts: list[list[int]], texts: list[str], new: int, adapters: list[int | None] | None = None
    ) -> None:
        done: list[int] = []
        one = lambda ids, adapter: done.append(len(self.ask(self.shared, ids, new, adapter).tokens))
        each = zip(prompts, adapters or [None] * len(prompts), strict=True)
        threads = [threading.Thread(target=one, args=pair) for pair in each]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if len(done) != len(prompts):
            raise RuntimeError(f"{len(prompts) - len(done)} of {len(prompts)} requests failed")
