"""The machine and its own limits: what no kernel can beat."""

from __future__ import annotations

import ctypes
import os
import platform
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

BUFFER = 512 << 20
SIDE, TRIES = 2048, 5
FLAGS = (
    "avx2",
    "avx512f",
    "avx512_vnni",
    "avx512_bf16",
    "avx_vnni",
    "amx_int8",
    "amx_bf16",
    "asimddp",
    "i8mm",
)


def threads() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def describe() -> dict[str, Any]:
    """What it is, as far as it says so."""
    cpu = Path("/proc/cpuinfo")
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    pairs = (line.partition(":") for line in lines)
    fields = {name.strip(): value.strip() for name, _, value in pairs}
    flags = fields.get("flags", fields.get("Features", "")).split()
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "cpu": fields.get("model name") or platform.processor() or platform.machine(),
        "flags": [flag for flag in FLAGS if flag in flags],
        "cores": threads(),
        "memory_gib": round(memory),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "load": round(os.getloadavg()[0], 2),
    }


def limits() -> dict[str, float]:
    """Memory read speed in GB/s with one thread and with all, and a matrix product's GFLOP/s.

    Memory: the C library's memchr looks for a byte that is not there, in 512 MiB; nothing reads a byte
    faster. With several threads each has a part of its own. The product is numpy's, of f32 matrices, with
    all threads: an orientation, for products of narrower numbers can be faster.
    """
    return {"memory_1": reading(1), "memory_all": reading(threads()), "gemm": product()}


def reading(count: int) -> float:
    library = ctypes.CDLL(None)
    library.memchr.restype = ctypes.c_void_p
    library.memchr.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_size_t]
    buffer = np.ones(BUFFER, np.uint8)
    part = BUFFER // count
    read = lambda at: library.memchr(buffer.ctypes.data + at * part, 0, part)
    return BUFFER / best(lambda: together(read, count)) / 1e9


def together(work: Callable[[int], object], count: int) -> None:
    others = [threading.Thread(target=work, args=(at,)) for at in range(1, count)]
    for other in others:
        other.start()
    work(0)
    for other in others:
        other.join()


def product() -> float:
    left, right = (np.ones((SIDE, SIDE), np.float32) for _ in range(2))
    return 2 * SIDE**3 / best(lambda: left @ right) / 1e9


def best(work: Callable[[], object]) -> float:
    """Seconds of the fastest of some runs."""
    seconds = []
    for _ in range(TRIES):
        began = time.perf_counter()
        work()
        seconds.append(time.perf_counter() - began)
    return min(seconds)
