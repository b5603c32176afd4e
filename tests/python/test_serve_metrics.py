"""Metrics as Prometheus reads them, and a dashboard that asks for nothing that is not there."""

from __future__ import annotations

import asyncio
import json
import re

import pytest

import tallow
from conftest import ROOT, needed
from tallow._engines import Shared
from tallow.serve import app

testclient = needed("starlette.testclient")
parser = needed("prometheus_client.parser")

DASHBOARD = ROOT / "docs" / "serving" / "grafana.json"
SECRET = "xyzzy"
CHAT = {"messages": [{"role": "user", "content": SECRET}], "temperature": 0, "max_tokens": 4}
TO_THE_END = {"regex": "ok", "max_tokens": 8}
#: What an engine counts, each number a different one.
STATS = {
    "prompt_tokens": 101,
    "cached_tokens": 102,
    "completion_tokens": 103,
    "forced": 104,
    "drafted": 105,
    "accepted": 106,
    "preempted": 107,
    "shared": 108,
    "steps": 15,
    "busy_seconds": 1.5,
    "running": 2,
    "waiting": 3,
    "kv_bytes": 4096,
    "touched_kv_bytes": 2048,
    "free_pages": 11,
    "cached_pages": 12,
    "leased_pages": 13,
    "batched": 40,
    "sequences_per_step": {1: 4, 2: 0, 4: 10, 8: 1},
}


def scraped(client, **options):
    """Every sample: (name, labels) -> value."""
    answer = client.get("/metrics", **options)
    assert answer.status_code == 200 and answer.headers["content-type"].startswith(
        "text/plain; version=0.0.4"
    )
    families = list(parser.text_string_to_metric_families(answer.text))
    assert len({family.name for family in families}) == len(families)
    samples = [sample for family in families for sample in family.samples]
    return {(one.name, *sorted(one.labels.items())): one.value for one in samples}


def of(found, name, **labels):
    return found.get((name, *sorted(labels.items())))


def total(found, name):
    return sum(value for (one, *_), value in found.items() if one == name)


def test_requests_are_counted_as_they_ended(wide):
    before = wide.stats()
    with testclient.TestClient(app({"wide": wide})) as client:
        for body in (CHAT, CHAT, {**CHAT, **TO_THE_END}):
            assert client.post("/v1/chat/completions", json=body).status_code == 200
        assert (
            "[DONE]" in client.post("/completions", json={"prompt": "ab", "stream": True, **TO_THE_END}).text
        )
        assert client.post("/v1/chat/completions", json={**CHAT, "max_tokens": -1}).status_code == 400
        found = scraped(client)
    after = wide.stats()
    count = lambda **labels: of(found, "tallow_requests_total", model="wide", **labels)
    assert count(endpoint="/chat/completions", outcome="length") == 2
    assert count(endpoint="/chat/completions", outcome="stop") == 1
    assert count(endpoint="/chat/completions", outcome="error") == 1
    assert count(endpoint="/completions", outcome="stop") == 1
    assert of(found, "tallow_errors_total", status="400") == 1
    for name in ("tallow_time_to_first_token_seconds", "tallow_queue_seconds"):
        assert of(found, f"{name}_count", model="wide") == 4
    assert of(found, "tallow_request_seconds_count", model="wide", endpoint="/chat/completions") == 4
    assert (
        0
        < of(found, "tallow_time_per_output_token_seconds_sum", model="wide")
        < total(found, "tallow_request_seconds_sum")
    )
    for name, key in (("prompt", "prompt_tokens"), ("generated", "completion_tokens")):
        assert of(found, f"tallow_{name}_tokens_total", model="wide") == after[key] > before[key]
    told = {"base": "", "fingerprint": wide.fingerprint, "version": tallow.__version__}
    assert of(found, "tallow_info", model="wide", isa=str(tallow._core.features()["isa"]), **told) == 1


def test_labels_are_never_a_clients(wide):
    with testclient.TestClient(app({"wide": wide})) as client:
        for name in (SECRET, "wide:" + SECRET, SECRET * 100):
            assert client.post("/v1/chat/completions", json={**CHAT, "model": name}).status_code == 404
            assert client.get(f"/v1/models/{name}").status_code == 404
            assert client.get(f"/{name}").status_code == 404
            assert client.request(SECRET.upper(), "/health").status_code == 405
        found = scraped(client)
    assert SECRET not in str(found).lower()
    assert total(found, "tallow_errors_total") == 12
    assert not any(name.startswith("tallow_request_seconds") for name, *_ in found)


def test_what_the_engine_counts(wide, monkeypatch):
    monkeypatch.setattr(Shared, "running_stats", lambda self: STATS)
    with testclient.TestClient(app({"wide": wide})) as client:
        found = {name: value for name, value in scraped(client).items() if ("model", "wide") in name}
    value = lambda name, **labels: of(found, f"tallow_{name}", model="wide", **labels)
    tokens = ("prompt", "cached_prompt", "generated", "forced", "drafted", "accepted")
    assert [value(f"{name}_tokens_total") for name in tokens] == [101, 102, 103, 104, 105, 106]
    assert (value("put_off_total"), value("joined_requests_total"), value("steps_total")) == (107, 108, 15)
    assert (value("requests_running"), value("requests_waiting"), value("busy_seconds_total")) == (2, 3, 1.5)
    assert (value("kv_bytes"), value("kv_touched_bytes")) == (4096, 2048)
    assert [value("kv_pages", state=state) for state in ("free", "cached", "leased")] == [11, 12, 13]
    ends = ("1.0", "2.0", "4.0", "+Inf")
    assert [value("batch_size_bucket", le=end) for end in ends] == [4, 4, 14, 15]
    assert (value("batch_size_count"), value("batch_size_sum")) == (15, 40)


def test_the_engine_counts_all_of_these(wide):
    """The names are those of ``Model.stats()``."""
    assert set(STATS) <= set(wide.stats())


def test_equal_models_have_one_engine_and_count_once(wide, monkeypatch):
    monkeypatch.setattr(Shared, "running_stats", lambda self: STATS)
    again = tallow.Model(wide.to_state()["source"])
    with testclient.TestClient(app({"wide": wide, "again": again})) as client:
        found = scraped(client)
    assert total(found, "tallow_prompt_tokens_total") == 101
    assert total(found, "tallow_info") == 2


def test_who_leaves_is_counted_as_gone(wide):
    application = app({"wide": wide})
    body = json.dumps({"prompt": "ab", "max_tokens": 4000, "logit_bias": {"2": -100}}).encode()
    messages = iter([{"type": "http.request", "body": body}, {"type": "http.disconnect"}])

    async def receive():
        await asyncio.sleep(0.005)  # 4,000 tokens of this model take little longer than 0.05
        return next(messages)

    async def send(message):
        pass

    headers = [(b"content-type", b"application/json"), (b"host", b"localhost")]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers}
    scope |= {"query_string": b"", "server": ("localhost", 80)}
    asyncio.run(application(scope, receive, send))
    found = scraped(testclient.TestClient(application))
    count = of(found, "tallow_requests_total", model="wide", endpoint="/completions", outcome="cancelled")
    assert count == 1 and total(found, "tallow_errors_total") == 0


@pytest.mark.parametrize("is_open", [False, True])
def test_metrics_need_a_key_unless_told_otherwise(wide, is_open):
    client = testclient.TestClient(app({"wide": wide}, api_keys=["k"], open_metrics=is_open))
    assert client.get("/metrics").status_code == (200 if is_open else 401)
    assert total(scraped(client, headers={"authorization": "Bearer k"}), "tallow_info") == 1


# The dashboard


def expressions():
    dashboard = json.loads(DASHBOARD.read_text())
    panels = [
        (panel["title"], target["expr"]) for panel in dashboard["panels"] for target in panel["targets"]
    ]
    assert len(panels) > 10
    return dashboard, panels


def test_the_dashboard_asks_only_for_what_there_is(wide):
    with testclient.TestClient(app({"wide": wide})) as client:
        client.post("/v1/chat/completions", json=CHAT)
        client.post("/v1/chat/completions", json={**CHAT, "max_tokens": -1})
        labels = {}
        for name, *pairs in scraped(client):
            labels.setdefault(name, set()).update(key for key, _ in pairs)
    dashboard, panels = expressions()
    variables = {one["name"] for one in dashboard["templating"]["list"]}
    for title, expr in panels:
        names = re.findall(r"\b(?:tallow|process)_\w+", expr)
        assert names and set(names) <= set(labels), title
        for name, chosen in re.findall(r"\b((?:tallow|process)_\w+)\{([^}]*)\}", expr):
            assert set(re.findall(r"(\w+)\s*[=!]", chosen)) <= labels[name] | {"job", "instance"}, title
        assert set(re.findall(r"\$(\w+)", expr)) <= variables | {"__rate_interval"}, title


def test_the_panels_do_not_lie_on_each_other():
    dashboard, _ = expressions()
    taken = set()
    for panel in dashboard["panels"]:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert at["x"] + at["w"] <= 24 and not cells & taken, panel["title"]
        taken |= cells
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])
