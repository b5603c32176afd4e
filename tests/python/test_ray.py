"""On Ray: rows in batches, and replicas behind Ray Serve. What needs no cluster is tested without one; the
rest is marked ``ray`` and runs by ``make ray``, in an environment that has Ray."""

from __future__ import annotations

import asyncio
import json
import os
import socket
import time
import urllib.error
import urllib.request

import numpy as np
import pytest

import tallow
import tallow.ray
from conftest import ROOT, needed, python

needed("starlette")
from tallow.serve import ray as on_ray  # noqa: E402

ASK = [{"role": "system", "content": "be brief"}, {"role": "user", "content": "why?"}]
SEEDED = {"temperature": 1.0, "seed": 5, "max_tokens": 12}


def ran(actor, batch):
    async def all_of_it():
        return [out async for out in actor(batch)]

    (found,) = asyncio.run(all_of_it())
    return found


# Rows, without a cluster


def test_rows_are_answered_as_the_model_answers(wide):
    batch = {"prompt": np.array(["ab", "why?"]), "id": np.array([7, 8])}
    found = ran(tallow.ray.Generate(wide, **SEEDED), batch)
    assert found["answer"] == [wide.generate(text, **SEEDED).text for text in ("ab", "why?")]
    assert list(found["id"]) == [7, 8] and "error" not in found
    asked = np.empty(1, dtype=object)
    asked[0] = ASK
    chat = ran(tallow.ray.Generate(wide, prompt="ask", answer="told", **SEEDED), {"ask": asked})
    assert chat["told"] == [wide.generate(ASK, **SEEDED).text]


def test_a_row_that_fails_ends_the_run_or_is_told(wide):
    batch = {"prompt": ["ab", "a" * 5000]}
    with pytest.raises(tallow.ContextLengthError):
        ran(tallow.ray.Generate(wide, **SEEDED), batch)
    found = ran(tallow.ray.Generate(wide, on_error="keep", **SEEDED), batch)
    assert found["answer"][0] == wide.generate("ab", **SEEDED).text and found["answer"][1] is None
    assert found["error"][0] is None and found["error"][1].startswith("ContextLengthError: ")


class Halves:
    """A program as DSPy's are called."""

    async def acall(self, number, by):
        return type("Prediction", (), {"half": number / by})


def test_a_program_runs_on_rows():
    actor = tallow.ray.Program(Halves(), inputs=["number", "by"], outputs=["half"], on_error="keep")
    found = ran(actor, {"number": np.array([6, 8]), "by": np.array([2, 0])})
    assert found["half"] == [3.0, None] and found["error"][1].startswith("ZeroDivisionError")


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda model: tallow.ray.Generate(model, on_error="skip"), "on_error"),
        (lambda model: ran(tallow.ray.Generate(model), {"text": ["a"]}), "there is no column 'prompt'"),
        (lambda model: ran(tallow.ray.Generate(model), ["a"]), "batch_format"),
    ],
)
def test_what_is_wrong_is_said(wide, make, says):
    with pytest.raises(tallow.InvalidRequestError, match=says):
        make(wide)


def test_rays_own_module_is_not_hidden():
    done = python("import tallow.ray, sys; assert 'ray' not in sys.modules; print(tallow.ray.Generate)")
    assert done.returncode == 0, done.stderr


# Sessions

CHAT = {"model": "m", "messages": ASK}
SAME = [
    (CHAT, {**CHAT, "messages": [*ASK[:1], {"role": "user", "content": "how?"}], "seed": 7, "stream": True}),
    ({"messages": ASK[1:]}, {"messages": [*ASK[1:], {"role": "assistant", "content": "so"}, ASK[1]]}),
    ({"prompt": "a" * 600 + "b"}, {"prompt": "a" * 600 + "c"}),
    ({"prompt": [1] * 600}, {"prompt": [[1] * 700, [2]]}),
    ({"instructions": "be brief", "input": "a"}, {"instructions": "be brief", "input": "b"}),
]
APART = [
    (CHAT, {**CHAT, "model": "other"}),
    (CHAT, {**CHAT, "tools": [{"type": "function", "function": {"name": "f"}}]}),
    (CHAT, {**CHAT, "messages": [{"role": "system", "content": "be long"}, ASK[1]]}),
    ({"messages": ASK[1:]}, {"messages": [{"role": "user", "content": "how?"}]}),
    ({"prompt": "a"}, {"prompt": "b"}),
]
NONE = [b"", b"{", b"[1]", b'{"model": "m"}', b'{"messages": 5}', b'{"messages": []}', b"\xff", b"[" * 10_000]


def session(body):
    return on_ray.session(json.dumps(body).encode())


def test_what_begins_alike_is_one_session():
    for one, other in SAME:
        assert session(one) == session(other) and len(session(one)) == 32, (one, other)
    for one, other in APART:
        assert session(one) and session(other) and session(one) != session(other), (one, other)
    for body in NONE:
        assert on_ray.session(body) is None, body


@pytest.mark.parametrize("given", [None, b"mine"])
def test_a_request_gets_its_session_and_keeps_its_body(given):
    body = json.dumps(CHAT).encode()
    parts = [body[:10], body[10:]]
    coming = [{"type": "http.request", "body": part, "more_body": part is parts[0]} for part in parts]
    coming.append({"type": "http.disconnect"})
    seen = {}

    async def receive():
        return coming.pop(0)

    async def inner(scope, receive, send):
        seen["headers"] = dict(scope["headers"])
        seen["messages"] = [await receive() for _ in range(3)]

    headers = [(b"x-session-id", given)] if given else []
    scope = {"type": "http", "method": "POST", "headers": headers}
    asyncio.run(on_ray.Sessions(inner)(scope, receive, None))
    assert seen["headers"][b"x-session-id"] == given or session(CHAT).encode()
    assert b"".join(one.get("body", b"") for one in seen["messages"]) == body
    assert seen["messages"][-1]["type"] == "http.disconnect"


# With Ray


@pytest.fixture(scope="session")
def ray():
    # Ray's workers stand back for everything else, and time out where a machine is busy.
    os.environ.update(on_ray.PROXY, RAY_worker_niceness="0", RAY_SERVE_PROXY_READY_CHECK_TIMEOUT_S="30")
    ray = needed("ray")
    options = {"num_cpus": 3, "include_dashboard": False, "object_store_memory": 200_000_000}
    try:
        ray.init("local", log_to_driver=False, **options)
    except Exception:  # it gives its own processes 30 seconds, which a busy machine does not
        ray.shutdown()
        ray.init("local", log_to_driver=False, **options)
    yield ray
    ray.shutdown()


@pytest.fixture(scope="session")
def url(ray, wide_folder):
    """Two replicas of a thread each."""
    from ray import serve

    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    serve.run(on_ray.deployment({"wide": str(wide_folder)}, threads=1, replicas=2, batch=8, log=None))
    yield f"http://127.0.0.1:{port}"
    serve.shutdown()


def post(url, body, path="/v1/chat/completions"):
    request = urllib.request.Request(
        url + path, json.dumps(body).encode(), {"content-type": "application/json"}
    )
    return urllib.request.urlopen(request, timeout=60)


@pytest.mark.ray
def test_rows_of_a_dataset(ray, wide, wide_folder):
    numbers = ray.data.from_items([{"prompt": f"say {n}"} for n in range(12)])
    answered = numbers.map_batches(
        tallow.ray.Generate,
        fn_constructor_args=(str(wide_folder),),
        fn_constructor_kwargs={"load": {"threads": 1}, **SEEDED},
        compute=ray.data.ActorPoolStrategy(size=1),
        num_cpus=1,
        batch_size=4,
    )
    found = {row["prompt"]: row["answer"] for row in answered.take_all()}
    assert found == {text: wide.generate(text, **SEEDED).text for text in found} and len(found) == 12


@pytest.mark.ray
def test_the_same_answer_behind_ray_serve(url, wide):
    expected = wide.generate(ASK, **SEEDED).text
    whole = json.load(post(url, {"messages": ASK, **SEEDED}))
    assert whole["choices"][0]["message"]["content"] == expected
    with post(url, {"messages": ASK, "stream": True, **SEEDED}) as answer:
        assert answer.headers["x-request-id"]
        lines = [line[6:] for line in answer.read().decode().splitlines() if line.startswith("data: {")]
    choices = [json.loads(line)["choices"][0] for line in lines]
    assert "".join(choice["delta"].get("content", "") for choice in choices) == expected
    with pytest.raises(urllib.error.HTTPError) as refused:
        post(url, {"messages": 5})
    assert refused.value.code == 400 and json.load(refused.value)["error"]["param"] == "messages"


@pytest.mark.ray
def test_what_begins_alike_reaches_the_same_replica(url):
    """With two replicas a second request would find nothing in every other case."""
    for n in range(8):
        instructions = {"role": "system", "content": f"{n} you are a cook " * 8}
        for question in ("why?", "how?"):
            ask = [instructions, {"role": "user", "content": question}]
            usage = json.load(post(url, {"messages": ask, "max_tokens": 1}))["usage"]
        assert usage["prompt_tokens_details"]["cached_tokens"] > 100, n


@pytest.mark.ray
def test_who_leaves_ends_the_request(url):
    answer = post(url, {"messages": ASK, "max_tokens": 3500, "logit_bias": {"2": -100}, "stream": True})
    assert answer.readline().startswith(b"data: ")
    answer.close()
    until = time.monotonic() + 20
    while True:  # whichever replica answers
        found = [urllib.request.urlopen(url + "/metrics", timeout=20).read().decode() for _ in range(4)]
        running = [line for text in found for line in text.splitlines() if "requests_running{" in line]
        if all(line.endswith(" 0.0") for line in running) and any('outcome="cancelled"' in t for t in found):
            return
        assert time.monotonic() < until, running


@pytest.mark.ray
@pytest.mark.parametrize("name", ["ray_batches", "ray_serve"])
def test_example(name, smollm2, tmp_path):
    file = str(ROOT / "examples" / f"{name}.py")
    done = python(f"import runpy; runpy.run_path({file!r}, run_name='__main__')", cwd=tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    shown = done.stdout.splitlines()
    assert len(shown) == {"ray_batches": 3, "ray_serve": 9}[name], done.stdout
    if name == "ray_serve":  # the second and third question of each trade
        assert all(" 0 of" not in line for at, line in enumerate(shown) if at % 3), done.stdout
