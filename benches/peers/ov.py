"""OpenVINO GenAI, which reads the GGUF itself: its pipeline for single requests, and the one with continuous
batching and prefix cache for requests at once. The first token's time is its own count.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

CACHE_GB = 2


class Peer:
    batches = keeps = True

    def __init__(self, path: str, threads: int) -> None:
        self.path, self.options = path, {"INFERENCE_NUM_THREADS": threads}
        self.pipeline = genai.LLMPipeline(path, "CPU", self.options)
        self.many: Any = None
        self.version = f"openvino-genai {genai.__version__}"

    def single(self, ids: list[int], text: str, new: int) -> dict[str, Any]:
        answer = self.pipeline.generate(tensor(ids), greedy(new))
        times = answer.perf_metrics.raw_metrics
        first = times.m_times_to_first_token[0] / 1e6
        total = times.generate_durations[0] / 1e6
        tokens = list(answer.tokens[0])
        if len(tokens) != new:
            raise RuntimeError(f"{len(tokens)} tokens instead of {new}")
        return {"first": first, "rest": total - first, "tokens": tokens}

    depth = single

    def prepare(self, count: int) -> None:
        if self.many:
            return
        plan = genai.SchedulerConfig()
        plan.cache_size, plan.enable_prefix_caching = CACHE_GB, True
        plan.max_num_seqs = 256
        self.many = genai.ContinuousBatchingPipeline(self.path, plan, "CPU", self.options)
        self.many.generate([tensor([5, 6, 7])], [greedy(2)])

    def burst(self, prompts: list[list[int]], texts: list[str], new: int) -> None:
        answers = self.many.generate([tensor(ids) for ids in prompts], [greedy(new) for _ in prompts])
        if any(len(answer.m_generation_ids[0]) != new for answer in answers):
            raise RuntimeError("an answer ended early")


def tensor(ids: list[int]) -> ov.Tensor:
    return ov.Tensor(np.array([ids], dtype=np.int64))


def greedy(new: int) -> Any:
    config = genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = new
    config.ignore_eos = True
    config.do_sample = False
    return config
