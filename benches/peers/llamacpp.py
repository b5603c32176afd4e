"""llama.cpp through the C functions of llama-cpp-python, whose own classes serve one request at a time.

Requests at once are driven as its batched examples do, and told what the prompts have in common: that is
computed in sequence 0, copied to the others, and every further step has a row for each. The two layouts
of its cache (one buffer for all sequences, or one each) are both tried with as many requests, and the
faster stays. `plain` leaves the weights as the file has them instead of repacking them for AMX and the like:
slower, but there are models of which a step with several sequences ends the process otherwise.

An adapter belongs to a context, not to a sequence: requests for several are groups, one after another, each
with what its prompts have in common computed anew.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import llama_cpp as lib
import numpy as np

OWN, BATCH = 768, 2048
INSTRUCTIONS = ("AVX2", "AVX512_VNNI", "AVX512_BF16", "AMX_INT8", "NEON", "DOTPROD")


@lib.llama_log_callback
def silent(level: int, text: bytes, data: ctypes.c_void_p) -> None:
    pass


class Context:
    """A cache for `streams` sequences of up to `length` tokens."""

    def __init__(self, peer: Peer, length: int, streams: int, unified: bool) -> None:
        options = lib.llama_context_default_params()
        options.n_ctx = length * streams
        options.n_batch = BATCH
        options.n_seq_max = streams
        options.n_threads = options.n_threads_batch = peer.threads
        options.kv_unified = unified
        if hasattr(options, "n_outputs_max"):
            options.n_outputs_max = max(streams, options.n_outputs_max)
        self.vocabulary, self.length = peer.vocabulary, length
        self.handle = lib.llama_init_from_model(peer.model, options)
        if not self.handle:
            raise MemoryError(f"no context for {streams} x {length} tokens")
        self.memory = lib.llama_get_memory(self.handle)
        self.batch = lib.llama_batch_init(BATCH, 0, 1)

    def free(self) -> None:
        lib.llama_batch_free(self.batch)
        lib.llama_free(self.handle)

    def clear(self) -> None:
        lib.llama_memory_clear(self.memory, False)

    def adapt(self, adapter: Any) -> None:
        """Takes one adapter, or none."""
        given = [adapter] if adapter else []
        adapters = (lib.llama_adapter_lora_p_ctypes * 1)(*given)
        scales = (ctypes.c_float * 1)(1.0)
        if lib.llama_set_adapters_lora(self.handle, adapters, len(given), scales):
            raise RuntimeError("the adapter was not set")

    def run(self, rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Computes rows of (token, position, sequence, wanted); the likeliest token after each wanted one."""
        found = []
        for start in range(0, len(rows), BATCH):
            part = rows[start : start + BATCH]
            self.batch.n_tokens = len(part)
            for at, (token, position, sequence, wanted) in enumerate(part):
                self.batch.token[at] = token
                self.batch.pos[at] = position
                self.batch.n_seq_id[at] = 1
                self.batch.seq_id[at][0] = sequence
                self.batch.logits[at] = wanted
            status = lib.llama_decode(self.handle, self.batch)
            if status:
                raise RuntimeError(f"llama_decode returned {status}")
            found += [self.likeliest(at) for at, row in enumerate(part) if row[3]]
        return found

    def likeliest(self, at: int) -> int:
        logits = lib.llama_get_logits_ith(self.handle, at)
        return int(np.ctypeslib.as_array(logits, (self.vocabulary,)).argmax())


class Peer:
    batches = keeps = True

    def __init__(self, path: str, threads: int, plain: bool = False, adapters: Sequence[str] = ()) -> None:
        lib.llama_log_set(silent, None)
        lib.llama_backend_init()
        self.threads = threads
        options = lib.llama_model_default_params()
        options.use_extra_bufts = not plain
        self.model = lib.llama_model_load_from_file(path.encode(), options)
        if not self.model:
            raise OSError("llama.cpp did not load the file")
        # All before the first context, which makes room for them.
        self.adapters = [lib.llama_adapter_lora_init(self.model, file.encode()) for file in adapters]
        if not all(self.adapters):
            raise OSError("llama.cpp did not load an adapter")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.one: Context | None = None
        self.many: dict[int, Context] = {}
        self.deep: dict[int, Context] = {}
        self.version = f"llama-cpp-python {lib.__version__} ({build()})"

    def chosen(self, adapter: int | None) -> Any:
        return None if adapter is None else self.adapters[adapter]

    def single(self, ids: list[int], text: str, new: int, adapter: int | None = None) -> dict[str, Any]:
        if not self.one or self.one.length < len(ids) + new:
            if self.one:
                self.one.free()
            self.one = Context(self, len(ids) + new, 1, unified=False)
        self.one.clear()
        self.one.adapt(self.chosen(adapter))
        return go_on(self.one, ids, 0, new)

    def depth(self, ids: list[int], text: str, new: int) -> dict[str, Any]:
        """A context for each length keeps its prompt, which is always the same."""
        computed = len(ids) - 1 if len(ids) in self.deep else 0
        if not computed:
            self.deep[len(ids)] = Context(self, len(ids) + new, 1, unified=False)
        context = self.deep[len(ids)]
        lib.llama_memory_seq_rm(context.memory, 0, computed, -1)
        return go_on(context, ids, computed, new)

    def prepare(self, count: int) -> None:
        """The better layout for so many requests, found with prompts of the usual form."""
        if count in self.many:
            return
        prompts = [[*range(100, 500), *range(600 + n, 680 + n)] for n in range(count)]
        found = []
        for unified in (True, False) if count > 1 else (True,):
            self.many[count] = Context(self, OWN, count, unified)
            began = time.perf_counter()
            self.burst(prompts, [], 8)
            found.append((time.perf_counter() - began, self.many[count]))
        found.sort(key=lambda pair: pair[0])
        self.many[count] = found[0][1]
        for _, slower in found[1:]:
            slower.free()

    def burst(
        self, prompts: list[list[int]], texts: list[str], new: int, adapters: list[int | None] | None = None
    ) -> None:
        context, each = self.many[len(prompts)], adapters or [None] * len(prompts)
        for adapter in dict.fromkeys(each):
            context.adapt(self.chosen(adapter))
            together(context, [ids for ids, one in zip(prompts, each, strict=True) if one == adapter], new)


def together(context: Context, prompts: list[list[int]], new: int) -> None:
    same = common(prompts) if len(prompts) > 1 else 0
    context.clear()
    if same:
        context.run([(id, at, 0, False) for at, id in enumerate(prompts[0][:same])])
    for other in range(1, len(prompts)):
        lib.llama_memory_seq_cp(context.memory, 0, other, -1, -1)
    rows = []
    for sequence, ids in enumerate(prompts):
        last = len(ids) - 1
        rows += [(ids[at], at, sequence, at == last) for at in range(same, len(ids))]
    tokens = context.run(rows)
    for step in range(new - 1):
        tokens = context.run([(id, len(prompts[s]) + step, s, True) for s, id in enumerate(tokens)])


def go_on(context: Context, ids: list[int], computed: int, new: int) -> dict[str, Any]:
    began, last = time.perf_counter(), len(ids) - 1
    tokens = context.run([(ids[at], at, 0, at == last) for at in range(computed, len(ids))])
    first = time.perf_counter()
    for at in range(len(ids), len(ids) + new - 1):
        tokens += context.run([(tokens[-1], at, 0, True)])
    return {"first": first - began, "rest": time.perf_counter() - first, "tokens": tokens}


def common(lists: list[list[int]]) -> int:
    """How many tokens all begin with; never all of the shortest."""
    shortest = min(map(len, lists))
    same = (at for at in range(shortest) if len({ids[at] for ids in lists}) > 1)
    return min(next(same, shortest), max(shortest - 1, 0))


def build() -> str:
    """The instructions that the library was built for, as far as they matter here."""
    info = lib.llama_print_system_info().decode()
    found = [name for name in INSTRUCTIONS if f"{name} = 1" in info]
    machine = Path("/proc/cpuinfo")
    if machine.exists() and "amx_int8" in machine.read_text() and "AMX_INT8" not in found:
        found.append("AMX off")
    return ", ".join(found) or "no vector instructions"
