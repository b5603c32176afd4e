"""transformers on torch's CPU kernels in bf16, from the same GGUF dequantized. What requests have in common
is computed once, and its cache repeated for each.
"""

from __future__ import annotations

import time
import warnings
from pathlib import Path
from typing import Any

import torch
import transformers
from transformers import AutoModelForCausalLM, DynamicCache


class Peer:
    batches, keeps = True, False

    def __init__(self, path: str, threads: int) -> None:
        warnings.simplefilter("ignore")
        transformers.logging.set_verbosity_error()
        torch.set_num_threads(threads)
        folder, name = str(Path(path).parent), Path(path).name
        self.model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16).eval()
        self.version = f"transformers {transformers.__version__}, torch {torch.__version__} bf16"

    @torch.inference_mode()
    def step(self, ids: torch.Tensor, cache: DynamicCache) -> torch.Tensor:
        """The likeliest token after each row of ids."""
        logits = self.model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits
        return logits[:, -1].argmax(-1, keepdim=True)

    def cache(self) -> DynamicCache:
        return DynamicCache(config=self.model.config)

    def single(self, ids: list[int], text: str, new: int) -> dict[str, Any]:
        cache, began = self.cache(), time.perf_counter()
        token = self.step(torch.tensor([ids]), cache)
        tokens, first = [int(token)], time.perf_counter()
        for _ in range(new - 1):
            token = self.step(token, cache)
            tokens.append(int(token))
        return {"first": first - began, "rest": time.perf_counter() - first, "tokens": tokens}

    depth = single

    def burst(self, prompts: list[list[int]], texts: list[str], new: int) -> None:
        cache, ids = self.cache(), torch.tensor(prompts)
        same = int((ids == ids[0]).all(0).int().cumprod(0).sum()) if len(prompts) > 1 else 0
        if same:
            self.step(ids[:1, :same], cache)
            cache.batch_repeat_interleave(len(prompts))
        token = self.step(ids[:, same:], cache)
        for _ in range(new - 1):
            token = self.step(token, cache)
        token.tolist()
