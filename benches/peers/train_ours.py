"""Trains with tallow: reads one JSON object from stdin, writes one to the stdout it began with."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

from worker import peak_mib


def train(job: dict[str, Any]) -> dict[str, Any]:
    import tallow

    model = tallow.Model(job["path"], progress=False, threads=job["threads"])
    loaded, times, losses, done = peak_mib(), [], [], []
    training = model.train(
        job["rows"],
        rank=job["rank"],
        alpha=job["alpha"],
        epochs=1,
        learning_rate=job["learning_rate"],
        batch=job["batch"],
        precision=job["precision"],
        eval=0,
        threads=job["threads"],
        progress=False,
    )
    for event in training:
        times.append(time.perf_counter())
        losses.append(event.loss)
        done.append(event.step)
    training.result()
    version = f"tallow {tallow.__version__} ({tallow.features().get('isa', '?')})"
    return {"version": version, "loaded": loaded, "times": times, "losses": losses, "steps": done}


def answer(train: Callable[[dict[str, Any]], dict[str, Any]], job: dict[str, Any]) -> None:
    """Whatever else is printed goes to stderr."""
    out = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    began = time.perf_counter()
    found = train(job)
    found["steps"] = found.get("steps") or list(range(1, len(found["times"]) + 1))
    print(json.dumps(found | {"began": began, "peak": peak_mib()}), file=out, flush=True)


if __name__ == "__main__":
    answer(train, json.load(sys.stdin))
