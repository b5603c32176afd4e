"""``/metrics``: what Prometheus reads.

What the engine counts is read from ``stats()`` when somebody asks, so nothing is counted twice and no step
waits for a metric. What only the server sees (outcomes, and how long requests took) is told by ``observe`` at
each request's end. Labels come from what is served and from the table of routes, never from a request, or a
client could fill the memory of whoever collects them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from starlette.responses import Response

from .. import _core

if TYPE_CHECKING:
    from .call import Call, Outcome
    from .server import Served, Server

#: Name, key of ``stats()``, and what it is.
_COUNTERS = (
    ("tallow_prompt_tokens", "prompt_tokens", "Tokens of prompts that were begun"),
    ("tallow_cached_prompt_tokens", "cached_tokens", "Of these: found in the cache and not computed"),
    ("tallow_generated_tokens", "completion_tokens", "Tokens of answers"),
    ("tallow_forced_tokens", "forced", "Of these: decided by a grammar and never sampled"),
    ("tallow_drafted_tokens", "drafted", "Tokens that were guessed"),
    ("tallow_accepted_tokens", "accepted", "Of these: right"),
    ("tallow_model_drafted_tokens", "model_drafted", "Tokens that a draft model guessed"),
    ("tallow_model_accepted_tokens", "model_accepted", "Of these: right"),
    ("tallow_put_off", "preempted", "Times that a request gave its pages back and was computed again"),
    ("tallow_joined_requests", "shared", "Requests that were answered by an equal one in work"),
    ("tallow_steps", "steps", "Forward passes"),
    ("tallow_busy_seconds", "busy_seconds", "Seconds in forward passes and between them, with work to do"),
)
_GAUGES = (
    ("tallow_requests_running", "running", "Requests in work"),
    ("tallow_requests_waiting", "waiting", "Requests in the engine's queue"),
    ("tallow_kv_bytes", "kv_bytes", "Bytes that keys, values and recurrent states may fill"),
    ("tallow_kv_touched_bytes", "touched_kv_bytes", "Of these: what was filled at some time, and is held"),
)
#: Upper ends, in seconds.
_SECONDS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 25.0, 50.0, 100.0),
)


class Metrics:
    """The metrics of one app, in a registry of their own."""

    def __init__(self, server: Server) -> None:
        self._server = server
        self._requests = Counter(
            "tallow_requests",
            "Requests that have ended",
            ("model", "endpoint", "outcome"),
            registry=None,
        )
        self._errors = Counter(
            "tallow_errors",
            "Requests that failed, by the status of their answer (200: it was being streamed)",
            ("status",),
            registry=None,
        )
        self._first_token = _seconds("tallow_time_to_first_token_seconds", "From arrival to the first token")
        self._per_token = _seconds("tallow_time_per_output_token_seconds", "A token, after the first")
        self._queue = _seconds("tallow_queue_seconds", "In the engine's queue")
        self._whole = _seconds("tallow_request_seconds", "From arrival to the end", "endpoint")
        self._registry = CollectorRegistry()
        self._registry.register(self)
        ProcessCollector(registry=self._registry)

    def exposed(self) -> bytes:
        """Prometheus's text format."""
        return generate_latest(self._registry)

    def observe(self, outcome: Outcome) -> None:
        """Counts a request that has ended."""
        model = outcome.model or ""
        self._requests.labels(model, outcome.endpoint, outcome.outcome).inc()
        if outcome.outcome == "error":
            self._errors.labels(str(outcome.status)).inc()
        if outcome.model is None:
            return
        self._whole.labels(model, outcome.endpoint).observe(outcome.seconds)
        for histogram, seconds in (
            (self._queue, outcome.queue),
            (self._first_token, outcome.first_token),
            (self._per_token, outcome.per_token),
        ):
            if seconds is not None:
                histogram.labels(model).observe(seconds)

    # For the registry

    def collect(self) -> Iterator[Metric]:
        engines = [(one.name, one.model._shared.running_stats() or {}) for one in self._engines()]
        yield _info(self._server.served())
        for name, key, text in _COUNTERS:
            yield _numbers(CounterMetricFamily(name, text, labels=("model",)), key, engines)
        for name, key, text in _GAUGES:
            yield _numbers(GaugeMetricFamily(name, text, labels=("model",)), key, engines)
        yield _pages(engines)
        yield _batches(engines)
        for counted in (self._requests, self._errors):
            yield from _plain(counted.collect())
        for timed in (self._first_token, self._per_token, self._queue, self._whole):
            yield from _plain(timed.collect())

    def _engines(self) -> Iterable[Served]:
        """One name for each engine: models that are equal have the same one, which would count twice."""
        bases = [one for one in self._server.served() if one.adapter is None]
        return {id(one.model._shared): one for one in reversed(bases)}.values()


async def metrics(call: Call) -> Response:
    """What Prometheus reads."""
    headers = {"content-type": CONTENT_TYPE_PLAIN_0_0_4}
    return Response(call.server.metrics.exposed(), headers=headers)


def _seconds(name: str, text: str, *labels: str) -> Histogram:
    return Histogram(name, f"{text}, in seconds", ("model", *labels), registry=None, buckets=_SECONDS)


def _info(served: Iterable[Served]) -> Metric:
    family = InfoMetricFamily("tallow", "What is served", labels=("model",))
    same = {"version": _core.__version__, "isa": str(_core.features()["isa"])}
    for one in served:
        family.add_metric([one.name], {**same, "fingerprint": one.fingerprint, "base": one.parent or ""})
    return family


Engines = list[tuple[str, dict[str, Any]]]


def _numbers(family: Any, key: str, engines: Engines) -> Metric:
    for model, stats in engines:
        family.add_metric([model], stats.get(key, 0))
    return family


def _pages(engines: Engines) -> Metric:
    family = GaugeMetricFamily("tallow_kv_pages", "Pages of 16 positions", labels=("model", "state"))
    for model, stats in engines:
        for state in ("free", "cached", "leased"):
            family.add_metric([model, state], stats.get(f"{state}_pages", 0))
    return family


def _batches(engines: Engines) -> Metric:
    family = HistogramMetricFamily("tallow_batch_size", "Sequences in a step", labels=("model",))
    for model, stats in engines:
        steps: dict[int, int] = stats.get("sequences_per_step", {})
        # The last range holds all that is larger, too.
        ends = [*map(float, list(steps)[:-1]), "+Inf"]
        counts = accumulate(steps.values()) if steps else [0]
        buckets = [(str(end), count) for end, count in zip(ends, counts, strict=True)]
        family.add_metric([model], buckets, sum_value=stats.get("batched", 0))
    return family


def _plain(families: Iterable[Metric]) -> Iterator[Metric]:
    """Without the times at which series were made: a line more for each, which Prometheus has no use for."""
    for family in families:
        family.samples = [one for one in family.samples if not one.name.endswith("_created")]
        yield family
