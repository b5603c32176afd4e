"""The load test: many clients with mixed requests, one of them broken, for some minutes.

What a request's seed gives is asked for once, alone, before the load; under load each answer must be the
same, character for character. The texts of all requests differ, so an answer that went to another client is
seen as well. An answer is lost if a sound client does not get it whole.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from peers import adapter_files

import tallow

from . import http, server

CHAT, TEXT = "/v1/chat/completions", "/v1/completions"
CASES = 12
SCHEMA = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 12}, "age": {"type": "integer"}},
    "required": ["name", "age"],
    "additionalProperties": False,
}
TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "maxLength": 12}},
            "required": ["city"],
        },
    },
}


@dataclass
class Told:
    """What came of it."""

    answers: int = 0
    lost: int = 0
    mixed: int = 0
    #: Requests of the broken client.
    broken: int = 0
    seconds: list[float] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    before: int = 0
    after: int = 0
    end: str = ""
    is_idle: bool = False

    @property
    def median(self) -> float:
        return sorted(self.seconds)[len(self.seconds) // 2]

    @property
    def most(self) -> float:
        return sorted(self.seconds)[int(len(self.seconds) * 0.99)]

    def fail(self, text: str) -> None:
        if len(self.failures) < 20:
            self.failures.append(text)


# What is asked

Case = tuple[str, dict[str, Any]]


def cases() -> list[Case]:
    """Path and body of every request, no two with the same prompt."""
    found: list[Case] = []
    for n in range(CASES):
        ask = [{"role": "user", "content": f"Tell me of city number {n}, and who lives there."}]
        common = {"messages": ask, "seed": n, "temperature": 1.0, "max_tokens": 48}
        schema = {"type": "json_schema", "json_schema": {"name": "person", "schema": SCHEMA}}
        found += [
            (CHAT, {**common, "max_tokens": 24}),
            (CHAT, {**common, "seed": 1000 + n, "stream": True}),
            (CHAT, {**common, "seed": 2000 + n, "response_format": schema}),
            (CHAT, {**common, "seed": 3000 + n, "tools": [TOOL], "tool_choice": "required"}),
            (CHAT, {**common, "seed": 4000 + n, "model": "fine", "max_tokens": 16}),
            (CHAT, {**common, "seed": 5000 + n, "n": 3, "max_tokens": 8, "stream": n % 2 == 0}),
            (
                TEXT,
                {
                    "prompt": f"{n}, {n + 1}, {n + 2},",
                    "temperature": 0,
                    "max_tokens": 32,
                    "stream": n % 2 == 1,
                },
            ),
        ]
    return found


async def answered(connection: http.Connection, case: Case) -> Any:
    """What comes of a request, whichever way it was sent: a row for each choice."""
    path, body = case
    if not body.get("stream"):
        answer = await connection.request("POST", path, body)
        if answer.status != 200:
            raise http.Broken(f"status {answer.status}: {answer.body[:300]!r}")
        return [whole(choice) for choice in answer.json()["choices"]]
    rows: dict[int, list[Any]] = {}
    async for event in connection.events(path, body):
        if "error" in event:
            raise http.Broken(str(event))
        for choice in event["choices"]:
            row = rows.setdefault(choice["index"], ["", None])
            row[0] += choice.get("text") or choice.get("delta", {}).get("content") or ""
            row[1] = choice["finish_reason"] or row[1]
    if not all(reason for _, reason in rows.values()):
        raise http.Broken("a stream without finish_reason")
    return [rows[index] for index in sorted(rows)]


def whole(choice: dict[str, Any]) -> list[Any]:
    message = choice.get("message", {})
    calls = [call["function"] for call in message.get("tool_calls") or ()]
    text = choice.get("text") or message.get("content") or ""
    return [text + json.dumps(calls) if calls else text, choice["finish_reason"]]


# The clients


async def sound(port: int, expected: list[tuple[Case, Any]], until: float, seed: int, told: Told) -> None:
    """Asks this and that, and compares."""
    draw = random.Random(seed)
    connection = await http.Connection.to(port)
    while time.monotonic() < until:
        case, right = draw.choice(expected)
        began = time.monotonic()
        try:
            found = await answered(connection, case)
        except Exception as error:
            told.lost += 1
            told.fail(f"lost: {case[1]}: {error!r}")
            connection.close()
            connection = await http.Connection.to(port)
            continue
        told.seconds.append(time.monotonic() - began)
        told.answers += 1
        if found != right:
            told.mixed += 1
            told.fail(f"not the same: {case[1]}: {found} and not {right}")
    connection.close()


async def broken(port: int, until: float, told: Told) -> None:
    """Does all that a client should not do."""
    draw = random.Random(0)
    while time.monotonic() < until:
        connection = await http.Connection.to(port)
        with contextlib.suppress(ConnectionError, asyncio.IncompleteReadError):
            await draw.choice(WAYS)(connection, draw)
        connection.close()
        told.broken += 1
        await asyncio.sleep(0.02)


LONG = {"messages": [{"role": "user", "content": "Tell me a story."}], "max_tokens": 1000, "temperature": 1.0}


async def garbage(connection: http.Connection, draw: random.Random) -> None:
    connection.writer.write(draw.randbytes(200) + b"\r\n\r\n")
    await asyncio.wait_for(connection.reader.read(1000), 5)


async def half(connection: http.Connection, draw: random.Random) -> None:
    """Promises a body, sends a part of it, and goes."""
    connection.writer.write(
        b"POST /v1/chat/completions HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        b'content-length: 5000\r\n\r\n{"messages": ['
    )
    await asyncio.sleep(0.1)


async def leaves(connection: http.Connection, draw: random.Random) -> None:
    """Asks for a whole answer and goes before it is there."""
    await connection.send("POST", CHAT, LONG)
    await asyncio.sleep(draw.random() / 2)


async def leaves_a_stream(connection: http.Connection, draw: random.Random) -> None:
    async for _ in connection.events(CHAT, LONG):
        if draw.random() < 0.2:
            return


async def slow(connection: http.Connection, draw: random.Random) -> None:
    """Begins a stream and does not read it."""
    await connection.send("POST", CHAT, {**LONG, "stream": True, "n": 4})
    await asyncio.sleep(2)


async def wrong(connection: http.Connection, draw: random.Random) -> None:
    """Requests that must be refused, by name, on one connection."""
    for body in (
        {"messages": 5},
        {"messages": []},
        {**LONG, "max_tokens": -1},
        {**LONG, "temperature": "hot"},
        {**LONG, "model": "nobody"},
        {**LONG, "response_format": {"type": "json_schema", "json_schema": {"schema": {"type": "strnig"}}}},
        {**LONG, "tools": [{"type": "function"}]},
        {**LONG, "no_such_field": 1},
        [1],
    ):
        answer = await connection.request("POST", CHAT, body)
        if not 400 <= answer.status < 500 or "error" not in answer.json():
            raise AssertionError(f"{body} gave {answer.status}: {answer.body[:300]!r}")


async def large(connection: http.Connection, draw: random.Random) -> None:
    await connection.send("POST", CHAT, {"messages": [{"role": "user", "content": "a" * 9 * 2**20}]})
    await asyncio.wait_for(connection.reader.read(1000), 10)


WAYS = (garbage, half, leaves, leaves_a_stream, slow, wrong, large)


# The run


async def run(model: str, seconds: float, clients: int) -> Told:
    """The load test on a server of its own; ``clients`` with the broken one."""
    with tempfile.TemporaryDirectory() as folder:
        config = tallow.Model(model).config
        adapter_files.write(Path(folder), config, rank=4, seed=1)
        with server.ours(model, "--adapter", f"fine={folder}") as ours:
            return await under_load(ours, seconds, clients)


async def under_load(ours: server.Server, seconds: float, clients: int) -> Told:
    told = Told()
    connection = await http.Connection.to(ours.port)
    expected = [(case, await answered(connection, case)) for case in cases()]
    connection.close()
    told.before = ours.resident()
    until = time.monotonic() + seconds
    work = [sound(ours.port, expected, until, seed, told) for seed in range(clients - 1)]
    await asyncio.gather(*work, broken(ours.port, until, told))
    told.end, told.is_idle = await idle(ours.port)
    told.after = ours.resident()
    return told


async def idle(port: int) -> tuple[str, bool]:
    """Whether nothing is in work any more and all pages are back, a moment after the last request."""
    for _ in range(50):
        found = {name: value async for name, value in metrics(port)}
        pages = {name: value for name, value in found.items() if name.startswith("tallow_kv_pages")}
        leased = sum(value for name, value in pages.items() if '"leased"' in name)
        running = sum(value for name, value in found.items() if name.startswith("tallow_requests_running"))
        if not leased + running:
            break
        await asyncio.sleep(0.1)
    errors = {name: int(value) for name, value in found.items() if name.startswith("tallow_errors_total")}
    defects = sum(value for name, value in errors.items() if '"500"' in name)
    text = f"{running:.0f} running, {leased:.0f} pages leased, {defects} defects (status 500)"
    return text, not running + leased + defects


async def metrics(port: int) -> AsyncIterator[tuple[str, float]]:
    answer = await http.once(port, "GET", "/metrics")
    for line in answer.body.decode().splitlines():
        if not line.startswith("#"):
            name, _, value = line.rpartition(" ")
            yield name, float(value)
