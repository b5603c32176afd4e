"""Over a real uvicorn: clients that leave, do not read, come in crowds, or send what is no request; and the
end of the server under load."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

import tallow
from conftest import assert_idle, needed
from tallow.serve import app

needed("starlette")
needed("uvicorn")

from tallow.serve import runner  # noqa: E402

ENDLESS = {"prompt": "once", "max_tokens": 4000, "temperature": 1.0, "logit_bias": {"2": -100}}


@contextlib.contextmanager
def running(model, *, grace=5.0, **options):
    """The port of a server for ``model``, and what runs it."""
    bound = runner.listening("127.0.0.1", 0)
    listens = threading.Event()
    made = runner.Runner(app(model, log=None, **options), grace=grace, started=listens.set)
    thread = threading.Thread(target=made.run, args=([bound],))
    thread.start()
    assert listens.wait(30)
    try:
        yield bound.getsockname()[1], made
    finally:
        made.handle_exit(signal.SIGTERM, None)
        made.handle_exit(signal.SIGTERM, None)
        thread.join(30)
        bound.close()
        assert not thread.is_alive()


@pytest.fixture(scope="module")
def port(wide):
    with running(wide) as (found, _):
        yield found


class Connection:
    """A client that can do what no library does."""

    def __init__(self, port, *, buffer=None):
        self.socket = socket.socket()
        if buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        self.socket.settimeout(30)
        self.socket.connect(("127.0.0.1", port))

    def post(self, path, body, **headers):
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        given = {
            "host": "localhost",
            "content-type": "application/json",
            "content-length": len(data),
            **{name.replace("_", "-"): value for name, value in headers.items()},
        }
        lines = "".join(f"{name}: {value}\r\n" for name, value in given.items())
        self.socket.sendall(f"POST {path} HTTP/1.1\r\n{lines}\r\n".encode() + data)
        return self

    def read_until(self, mark):
        data = b""
        while mark not in data:
            piece = self.socket.recv(65536)
            if not piece:
                break
            data += piece
        return data

    def answer(self):
        """Status, headers and body of an answer that ends with the connection."""
        head, _, body = self.read_until(b"no such text").partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        return int(first.split()[1]), headers, body

    def close(self):
        self.socket.close()

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()


def ask(port, path, body, **headers):
    with Connection(port) as connection:
        return connection.post(path, body, connection="close", **headers).answer()


# Who leaves


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("path", ["/v1/completions", "/v1/chat/completions"])
def test_who_leaves_ends_the_request(smollm2, path, stream):
    body = {**ENDLESS, "max_tokens": 3000, "stream": stream}
    if "chat" in path:
        body["messages"] = [{"role": "user", "content": body.pop("prompt")}]
    with running(smollm2) as (port, _):
        before = smollm2.stats()
        with Connection(port) as connection:
            connection.post(path, body)
            until(lambda: smollm2.stats()["running"] == 1)
            if stream:
                connection.read_until(b"data: ")
            steps = smollm2.stats()["steps"]
        until(lambda: smollm2.stats()["running"] == 0)
        after = smollm2.stats()
        # The step in work when he left, the next at most, and what passed until the server heard of it.
        assert after["steps"] - steps < 12
        assert after["cancelled"] == before["cancelled"] + 1
        assert_idle(smollm2)


def test_who_does_not_read_holds_up_nobody(wide, port):
    """What is written for him waits in the engine, at most his whole answer; others go on."""
    body = {**ENDLESS, "stream": True, "logprobs": 20, "n": 4}
    with Connection(port, buffer=4096) as stuck:
        stuck.post("/v1/completions", body)
        stuck.read_until(b"data: ")
        status, _, answer = ask(port, "/v1/completions", {"prompt": "a dog", "max_tokens": 5})
        assert status == 200 and json.loads(answer)["usage"]["completion_tokens"]
        until(lambda: wide.stats()["running"] == 0)  # computed to its end, and nobody waits for it
        assert ask(port, "/v1/completions", {"prompt": "a dog", "max_tokens": 5})[0] == 200
    assert_idle(wide)


def test_who_never_reads_is_left(wide):
    body = {**ENDLESS, "stream": True, "logprobs": 20, "n": 8}
    with running(wide, timeout=0.5, ping=0.1) as (port, made), Connection(port, buffer=4096) as stuck:
        stuck.post("/v1/completions", body)
        until(lambda: made._served.in_work)
        until(lambda: not made._served.in_work)
    assert_idle(wide)


def test_a_long_silence_is_broken_by_pings(wide, monkeypatch):
    from tallow import answers

    real = answers.AsyncReply.pieces

    async def late(self):
        import asyncio

        await asyncio.sleep(0.5)
        async for piece in real(self):
            yield piece

    monkeypatch.setattr(answers.AsyncReply, "pieces", late)
    with running(wide, ping=0.1) as (port, _):
        status, headers, body = ask(port, "/v1/completions", {"prompt": "a", "max_tokens": 2, "stream": True})
    assert status == 200 and 2 <= body.count(b": ping\n\n") <= 6 and b"[DONE]" in body
    assert headers["content-type"].startswith("text/event-stream")


# Crowds


@pytest.mark.parametrize("stream", [True, False])
def test_a_full_queue_is_said_before_the_answer_begins(smollm2, stream):
    model = tallow.Model(smollm2.to_state()["source"], queue=1, kv_memory="4MiB", progress=False)
    body = {**ENDLESS, "max_tokens": 120, "stream": stream}
    with running(model) as (port, _), ThreadPoolExecutor(8) as pool:
        # One that takes all of the cache, one that waits, and others.
        asked = [
            pool.submit(ask, port, "/v1/completions", {**body, "prompt": f"{at} once"}) for at in range(8)
        ]
        until(lambda: any(one.done() for one in asked))
        refused = [one.result() for one in asked if one.done()]
        for status, headers, found in refused:
            if status != 200:
                assert status == 429 and 1 <= int(headers["retry-after"]) <= 60
                assert json.loads(found)["error"]["code"] == "rate_limit_exceeded"
        assert any(status == 429 for status, _, _ in refused)
        model.close()


def test_many_at_once_get_their_own(wide, port):
    """Streamed and whole, one of them broken again and again: each answer is that of its own prompt."""
    prompts = [f"number {at}" for at in range(24)]
    options = {"max_tokens": 30, "seed": 1, "temperature": 1.0}
    expected = [wide.generate(prompt, **options).text for prompt in prompts]

    def one(at):
        body = {"prompt": prompts[at], **options, "stream": at % 2 == 0}
        if at % 6 == 5:
            with Connection(port) as connection:
                connection.post("/v1/completions", ENDLESS)
        status, _, found = ask(port, "/v1/completions", body)
        assert status == 200
        if not body["stream"]:
            return json.loads(found)["choices"][0]["text"]
        return "".join(
            json.loads(data)["choices"][0]["text"] for data in re.findall(rb"data: (\{.*\})", found)
        )

    with ThreadPoolExecutor(12) as pool:
        assert list(pool.map(one, range(len(prompts)))) == expected
    assert_idle(wide)


# What is no request


@pytest.mark.parametrize(
    ("body", "status"),
    [
        (b'{"prompt": "' + b"a" * (9 << 20) + b'"}', 413),
        (b"[" * 10_000 + b"]" * 10_000, 400),
        (b'{"prompt": "\xff\xfe"}', 400),
        (b'{"prompt": "\\ud800"}', 400),
        (b'{"prompt": "a", "temperature": NaN}', 400),
        (b'{"prompt": "a", "temperature": 1e999}', 400),
        (b"[]", 400),
        (b"", 400),
    ],
    ids=range(8),
)
def test_what_is_no_request(port, body, status):
    with Connection(port) as connection:
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):  # it need not read all of it
            connection.post("/v1/completions", body, connection="close")
        found, _, answer = connection.answer()
    assert found == status and json.loads(answer)["error"]["message"]


def test_a_body_that_comes_too_late(wide):
    with running(wide, timeout=0.3) as (port, _), Connection(port) as connection:
        status, headers, told = connection.post("/v1/completions", b"{", content_length=100).answer()
        assert status == 408 and headers["connection"] == "close" and b"did not come" in told


def test_a_body_that_is_packed(port):
    assert ask(port, "/v1/completions", {"prompt": "a"}, content_encoding="gzip")[0] == 415


def test_a_form_that_takes_long_holds_up_nobody(wide):
    """It is compiled on a thread of its own."""
    with running(wide) as (port, _), ThreadPoolExecutor(1) as pool:
        slow = pool.submit(ask, port, "/v1/completions", {"prompt": "a", "regex": "(a{1000}){1000}"})
        waits = []
        while not slow.done():
            began = time.monotonic()
            with Connection(port) as connection:
                connection.socket.sendall(
                    b"GET /health HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n"
                )
                assert connection.answer()[0] == 200
            waits.append(time.monotonic() - began)
        assert slow.result()[0] == 400 and len(waits) > 2, waits


def test_a_body_that_never_ends(port):
    with Connection(port) as connection:
        connection.post("/v1/completions", b"{", content_length=100)
    assert ask(port, "/v1/completions", {"prompt": "a", "max_tokens": 1})[0] == 200


# The end


@contextlib.contextmanager
def command(source, *options):
    """``tallow serve``, and where it listens."""
    given = [sys.executable, "-m", "tallow", "serve", str(source), "--port", "0", *options]
    environment = {**os.environ, "TALLOW_API_KEYS": ""}
    process = subprocess.Popen(given, stderr=subprocess.PIPE, text=True, env=environment)
    try:
        said = ""
        for line in process.stderr:
            said += line
            if line.startswith("try: curl"):
                break
        yield process, int(re.search(r"127\.0\.0\.1:(\d+)", said)[1]), said
    finally:
        process.kill()
        process.wait()
        process.stderr.close()


def test_a_closed_terminal_lets_answers_end(smollm2):
    with command(smollm2.to_state()["source"], "--grace", "0.1") as (process, port, _):
        with Connection(port) as connection:
            connection.post("/v1/completions", {**ENDLESS, "stream": True}, connection="close")
            connection.read_until(b"data: ")
            process.send_signal(signal.SIGHUP)
            assert b'"code":"shutting_down"' in connection.read_until(b"no such text")
        assert process.wait(60) == 0


def test_the_end_lets_answers_end(smollm2):
    """The first signal gives them time; what is left then is told so."""
    path, close = "/v1/completions", {"connection": "close"}
    source = smollm2.to_state()["source"]
    with contextlib.ExitStack() as stack:
        process, port, said = stack.enter_context(command(source, "--name", "m", "--grace", "4"))
        assert "serving m at http://127.0.0.1" in said and "anybody" not in said
        whole, endless, brief = (stack.enter_context(Connection(port)) for _ in range(3))
        whole.post(path, ENDLESS, **close)
        endless.post(path, {**ENDLESS, "stream": True}, **close)
        brief.post(path, {**ENDLESS, "stream": True, "max_tokens": 6}, **close)
        begun = [one.read_until(b"data: ") for one in (endless, brief)]
        assert all(one.startswith(b"HTTP/1.1 200") for one in begun)
        process.send_signal(signal.SIGTERM)
        assert brief.read_until(b"no such text").endswith(b"data: [DONE]\n\n\r\n0\r\n\r\n")
        told = endless.read_until(b"no such text")
        assert b'"code":"shutting_down"' in told and b"[DONE]" not in told
        status, headers, told = whole.answer()
        assert status == 503 and headers["retry-after"] and b'"code":"shutting_down"' in told
        assert process.wait(60) == 0
        assert "Traceback" not in process.stderr.read()


def test_a_second_signal_ends_at_once(smollm2):
    with command(smollm2.to_state()["source"], "--grace", "300") as (process, port, _):
        with Connection(port) as connection:
            connection.post("/v1/completions", {**ENDLESS, "stream": True}).read_until(b"data: ")
            process.send_signal(signal.SIGINT)
            time.sleep(0.3)
            with pytest.raises(OSError):
                Connection(port)
            assert process.poll() is None
            process.send_signal(signal.SIGINT)
            began = time.monotonic()
            assert process.wait(60) == 0 and time.monotonic() - began < 30
        assert "Traceback" not in process.stderr.read()


def test_a_port_in_use_is_said_before_anything_is_loaded(tiny_folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = str(taken.getsockname()[1])
        given = [sys.executable, "-m", "tallow", "serve", str(tiny_folder), "--port", port]
        done = subprocess.run(given, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1 and f"cannot listen at 127.0.0.1:{port}" in done.stderr
