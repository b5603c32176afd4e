"""OpenVINO GenAI, which reads the GGUF itself: its pipeline for single requests, and the one with continuous
batching and prefix cache for requests at once. The first token's time is its own count.

Adapters are matched by the names of the graph's products, and what it makes of a GGUF has none: it is saved
once, named, and read again. One batch has one adapter, so that requests for several are groups, one after
another. What was built with adapters is another graph, so the base has pipelines of its own.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openvino as ov
import openvino_genai as genai

CACHE_GB = 2
#: In the order in which its reader of GGUF makes a layer's products.
PROJECTIONS = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj")
PROJECTIONS += ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
ALPHA_OVER_RANK = 2


class Peer:
    batches = keeps = True

    def __init__(self, path: str, threads: int, adapters: Sequence[str] = ()) -> None:
        self.options = {"INFERENCE_NUM_THREADS": threads}
        self.version = f"openvino-genai {genai.__version__}"
        self.adapters = [genai.Adapter(f"{folder}/adapter_model.safetensors") for folder in adapters]
        self.path = named(path, Path(adapters[0]).parent) if adapters else path
        #: With the graph of adapters or without -> the pipeline.
        self.one: dict[bool, Any] = {}
        self.many: dict[bool, Any] = {}
        self.pipeline(False)

    def adapted(self, adapter: int | None = None) -> Any:
        """The choice of one; of none in particular all that may be chosen."""
        chosen = self.adapters if adapter is None else [self.adapters[adapter]]
        return genai.AdapterConfig([(one, float(ALPHA_OVER_RANK)) for one in chosen])

    def pipeline(self, adapted: bool) -> Any:
        if adapted not in self.one:
            more = {"adapters": self.adapted()} if adapted else {}
            self.one[adapted] = genai.LLMPipeline(self.path, "CPU", **self.options, **more)
        return self.one[adapted]

    def batches_of(self, adapted: bool) -> Any:
        if adapted not in self.many:
            plan = genai.SchedulerConfig()
            plan.cache_size, plan.enable_prefix_caching = CACHE_GB, True
            plan.max_num_seqs = 256
            more = {"adapters": self.adapted()} if adapted else {}
            self.many[adapted] = genai.ContinuousBatchingPipeline(self.path, plan, "CPU", self.options | more)
            self.together([[5, 6, 7]], 2, 0 if adapted else None)
        return self.many[adapted]

    def single(self, ids: list[int], text: str, new: int, adapter: int | None = None) -> dict[str, Any]:
        pipeline = self.pipeline(adapter is not None)
        answer = pipeline.generate(tensor(ids), self.greedy(new, adapter))
        times = answer.perf_metrics.raw_metrics
        first = times.m_times_to_first_token[0] / 1e6
        total = times.generate_durations[0] / 1e6
        tokens = list(answer.tokens[0])
        if len(tokens) != new:
            raise RuntimeError(f"{len(tokens)} tokens instead of {new}")
        return {"first": first, "rest": total - first, "tokens": tokens}

    depth = single

    def prepare(self, count: int) -> None:
        self.batches_of(False)
        if self.adapters:
            self.batches_of(True)

    def burst(
        self, prompts: list[list[int]], texts: list[str], new: int, adapters: list[int | None] | None = None
    ) -> None:
        each = adapters or [None] * len(prompts)
        for chosen in dict.fromkeys(each):
            self.together([ids for ids, one in zip(prompts, each, strict=True) if one == chosen], new, chosen)

    def together(self, prompts: list[list[int]], new: int, adapter: int | None) -> None:
        plans = [self.greedy(new, adapter) for _ in prompts]
        answers = self.batches_of(adapter is not None).generate([tensor(ids) for ids in prompts], plans)
        if any(len(answer.m_generation_ids[0]) != new for answer in answers):
            raise RuntimeError("an answer ended early")

    def greedy(self, new: int, adapter: int | None) -> Any:
        config = genai.GenerationConfig()
        config.max_new_tokens = config.min_new_tokens = new
        config.ignore_eos = True
        config.do_sample = False
        if adapter is not None:
            config.adapters = self.adapted(adapter)
        return config


def tensor(ids: list[int]) -> ov.Tensor:
    return ov.Tensor(np.array([ids], dtype=np.int64))


def named(path: str, beside: Path) -> str:
    """A folder with the graph that it makes of a GGUF file, the layers' products named as in a checkpoint."""
    folder, given = beside / "openvino", beside / "openvino-graph"
    for made in (folder, given):
        made.mkdir(exist_ok=True)
    (given / "model.gguf").unlink(missing_ok=True)
    (given / "model.gguf").symlink_to(path)
    genai.LLMPipeline(str(given / "model.gguf"), "CPU", enable_save_ov_model=True)
    model = ov.Core().read_model(given / "openvino_model.xml")
    products = [op for op in model.get_ops() if op.get_type_name() == "MatMul"]
    products = [op for op in products if op.input_value(1).get_partial_shape().is_static]
    products.sort(key=lambda op: int(op.get_friendly_name().rpartition("_")[2]))
    # The last is the head.
    for number, op in enumerate(products[: len(products) // 7 * 7]):
        layer, part = divmod(number, 7)
        op.set_friendly_name(f"model.layers.{layer}.{PROJECTIONS[part]}")
    ov.save_model(model, folder / "openvino_model.xml", compress_to_fp16=False)
    for file in given.glob("openvino_*tokenizer*"):
        shutil.copy(file, folder)
    return str(folder)
