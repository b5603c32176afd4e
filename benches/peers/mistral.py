"""mistral.rs through its Python package.

It takes no token ids, so a prompt is text, and counts as what its own tokenizer makes of it. Its Runner
refuses a second thread: requests at once are served one after another. The time of the answer is its own
count.
"""

from __future__ import annotations

import importlib.metadata
import time
from pathlib import Path
from typing import Any

from mistralrs import CompletionRequest, Runner, Which


class Peer:
    batches = keeps = False

    def __init__(self, path: str, threads: int) -> None:
        which = Which.GGUF(str(Path(path).parent), Path(path).name)
        # Nothing may be kept from one round to the next.
        self.runner = Runner(which=which, prefix_cache_n=0)
        self.version = f"mistralrs {importlib.metadata.version('mistralrs')}"

    def single(self, ids: list[int], text: str, new: int) -> dict[str, Any]:
        request = CompletionRequest(
            prompt=text, model="default", max_tokens=new, temperature=0.0, top_k=1, ignore_eos=True
        )
        began = time.perf_counter()
        usage = self.runner.send_completion_request(request).usage
        seconds = time.perf_counter() - began
        if usage.completion_tokens != new:
            raise RuntimeError(f"{usage.completion_tokens} tokens instead of {new}")
        rest = usage.total_completion_time_sec if new > 1 else 0.0
        return {"first": seconds - rest, "rest": rest, "prompt": usage.prompt_tokens}

    depth = single

    def burst(self, prompts: list[list[int]], texts: list[str], new: int) -> None:
        for ids, text in zip(prompts, texts, strict=True):
            self.single(ids, text, new)
