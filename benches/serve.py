"""What serving costs, and what it brings.

    python benches/serve.py [--model FILE.gguf] [--only stream,idle,memory,peers,load] [--quick]

Each part prints rows of one table; a server is a process of its own (`tallow serve`), and so is a peer's.

- stream: a stream through the server beside `Model.stream`, one and 32 at once, in turns. The wall time is a
  median of rounds; the CPU time an event is the event loop's thread's.
- idle: what 1,000 connections cost that have asked once and wait.
- memory: resident memory over `--requests` of them, after the first tenth and at the end.
- peers: 32 clients with a prompt of which about 400 tokens are common, beside the servers of llama-cpp-python
  and xllamacpp on the same file (`make bench-peers PEERS="xllamacpp llama.cpp-server"` installs them).
- load: 64 clients for `--minutes`, mixed (streams, whole answers, schemas, tools, an adapter), one of them
  broken; every answer is compared with what its seed gives alone (benches/serving/load.py).

A part fails where its target is missed, and the exit code tells.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import resource
import statistics
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from peers.engine import interpreter
from serving import http, load, server

import tallow

HERE = Path(__file__).parent
MODEL = HERE.parent / "target" / "test-models" / "SmolLM2-135M-Instruct.Q4_1.gguf"
COLUMNS = ("part", "measured", "target", "")
MIB = 2**20
SENTENCES = (
    "Read the review and answer with the sentiment of its writer, in one word. "
    "Review: the soup was cold, the bread was old, and nobody came when we called. Sentiment: negative. "
    "Review: a quiet room, a friendly house, and the best breakfast in town. Sentiment: positive. "
)


@dataclass
class Row:
    part: str
    measured: str
    target: str = ""
    is_met: bool = True

    def __str__(self) -> str:
        return f"| {self.part} | {self.measured} | {self.target} | {'' if self.is_met else 'MISSED'} |"


# A stream through the server beside one of the model

STREAMED = 128


def request(prompt: str, ending: dict[str, float]) -> dict:
    return {"prompt": prompt, "max_tokens": STREAMED, "temperature": 0, "logit_bias": ending}


def directly(model: tallow.Model, prompts: list[str], ending: dict[str, float]) -> float:
    """Seconds for all streams of the model, each on a thread."""
    bias = {int(key): value for key, value in ending.items()}

    def read(prompt: str) -> None:
        for _ in model.stream(prompt, max_tokens=STREAMED, temperature=0, logit_bias=bias):
            pass

    threads = [threading.Thread(target=read, args=(prompt,)) for prompt in prompts]
    began = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - began


async def served(port: int, prompts: list[str], ending: dict[str, float]) -> tuple[float, int]:
    """Seconds for the same over HTTP, and how many events came."""
    connections = [await http.Connection.to(port) for _ in prompts]

    async def read(connection: http.Connection, prompt: str) -> int:
        return sum([1 async for _ in connection.events("/v1/completions", request(prompt, ending))])

    began = time.perf_counter()
    counts = await asyncio.gather(*map(read, connections, prompts))
    seconds = time.perf_counter() - began
    for connection in connections:
        connection.close()
    return seconds, sum(counts)


def stream(args: argparse.Namespace) -> Iterator[Row]:
    model = tallow.Model(args.model)
    ending = {str(id): -100.0 for id in model.eos_ids}
    with server.ours(args.model) as ours:
        for size in (1, 32):
            prompts = [f"Chapter {n}. It was a quiet evening, and" for n in range(size)]
            directly(model, prompts, ending)
            asyncio.run(served(ours.port, prompts, ending))
            walls: list[tuple[float, float]] = []
            cpu, events = 0.0, 0
            for _ in range(2 if args.quick else args.rounds):
                alone = directly(model, prompts, ending)
                before = ours.loop_seconds()
                seconds, count = asyncio.run(served(ours.port, prompts, ending))
                cpu, events = cpu + ours.loop_seconds() - before, events + count
                walls.append((seconds, alone))
            ratio = statistics.median(here / there for here, there in walls)
            here, there = (statistics.median(column) for column in zip(*walls, strict=True))
            text = f"{here:.2f} s against {there:.2f} s: {ratio:.3f}"
            yield Row(f"streams of {STREAMED} tokens, {size} at once", text, "1.05", ratio <= 1.05)
            each = cpu / events * 1e3
            yield Row(f"CPU of an event, {size} at once", f"{each:.3f} ms", "0.3 ms", each < 0.3)
    model.close()


# Memory


async def opened(port: int, count: int) -> list[http.Connection]:
    """Connections that have asked once."""
    found = []
    for _ in range(count):
        found.append(connection := await http.Connection.to(port))
        answer = await connection.request("GET", "/v1/models")
        assert answer.status == 200, answer
    return found


def idle(args: argparse.Namespace) -> Iterator[Row]:
    count = 1000
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 4096), most))

    async def measure(ours: server.Server) -> int:
        for connection in await opened(ours.port, 10):
            connection.close()
        before = ours.resident()
        connections = await opened(ours.port, count)
        await asyncio.sleep(0.5)
        cost = ours.resident() - before
        for connection in connections:
            connection.close()
        return cost

    with server.ours(args.model) as ours:
        cost = asyncio.run(measure(ours))
    yield Row(f"{count:,} idle connections", f"{cost / MIB:.1f} MiB", "20 MB", cost < 20e6)


async def many(port: int, count: int, clients: int) -> None:
    """So many small requests, streamed and whole in turns."""
    numbers = iter(range(count))

    async def client() -> None:
        connection = await http.Connection.to(port)
        for number in numbers:
            # A long row of prompts that come again, so that the cache is not what grows.
            body = {"prompt": f"{number % 500}, {number % 500 + 1},", "max_tokens": 2, "seed": number % 500}
            if number % 2:
                assert [1 async for _ in connection.events("/v1/completions", body)]
            else:
                answer = await connection.request("POST", "/v1/completions", body)
                assert answer.status == 200, answer.body
        connection.close()

    await asyncio.gather(*(client() for _ in range(clients)))


def memory(args: argparse.Namespace) -> Iterator[Row]:
    count = 2_000 if args.quick else args.requests
    with server.ours(args.model) as ours:
        asyncio.run(many(ours.port, count // 10, 16))
        before = ours.resident()
        began = time.perf_counter()
        asyncio.run(many(ours.port, count - count // 10, 16))
        seconds = time.perf_counter() - began
        after = ours.resident()
    growth = after / before - 1
    text = f"{before / MIB:.0f} to {after / MIB:.0f} MiB: {growth:+.1%} ({count / seconds:.0f} a second)"
    yield Row(f"memory over {count:,} requests", text, "2 %", growth <= 0.02)


# Other servers

CLIENTS, ANSWER = 32, 48
COMMON = SENTENCES * 7


async def shared_prefix(port: int, requests: int, ending: dict[str, float], name: str) -> float:
    """Tokens a second of clients that each ask the next question when they have an answer."""
    numbers = iter(range(requests))
    tokens = 0

    async def client() -> None:
        nonlocal tokens
        connection = await http.Connection.to(port)
        for number in numbers:
            own = f"Review: we came late, and the guide told the story of the {number}th king. Sentiment:"
            body = {"model": name, "prompt": COMMON + own, "max_tokens": ANSWER, "temperature": 0}
            answer = await connection.request("POST", "/v1/completions", body | {"logit_bias": ending})
            assert answer.status == 200, answer.body
            tokens += answer.json()["usage"]["completion_tokens"]
        connection.close()

    began = time.perf_counter()
    await asyncio.gather(*(client() for _ in range(CLIENTS)))
    return tokens / (time.perf_counter() - began)


def peer(name: str, python: str, model: str):
    """The server of a peer, as its own documents start it, with all threads and room for all clients."""
    port, threads = server.free_port(), len(os.sched_getaffinity(0))
    if name == "llama.cpp-server":
        command = [python, "-m", "llama_cpp.server", "--model", model, "--port", str(port), "--n_ctx", "1024"]
        command += ["--n_threads", str(threads), "--n_threads_batch", str(threads), "--cache", "true"]
        return server.started(command, port, "/v1/models")
    command = [
        python,
        str(HERE / "serving" / "xllamacpp_server.py"),
        model,
        str(port),
        str(threads),
        str(CLIENTS),
    ]
    return server.started(command, port, "/health")


def peers(args: argparse.Namespace) -> Iterator[Row]:
    ending = {str(id): -100.0 for id in tallow.Model(args.model).eos_ids}
    requests = CLIENTS if args.quick else 4 * CLIENTS
    part = f"{CLIENTS} clients, {requests} answers of {ANSWER} tokens"
    with server.ours(args.model) as ours:
        us = asyncio.run(shared_prefix(ours.port, requests, ending, "m"))
    yield Row(part, f"tallow: {us:.0f} tokens a second")
    for name in ("llama.cpp-server", "xllamacpp"):
        python = interpreter(name, {})
        if python is None:
            yield Row(part, f"{name}: not installed")
            continue
        with peer(name, python, args.model) as other:
            # One that computes its clients one after another needs no more of them to tell.
            count = requests if name == "xllamacpp" else max(requests // 4, CLIENTS)
            them = asyncio.run(shared_prefix(other.port, count, ending, name))
        text = f"{name}: {them:.0f} tokens a second; tallow {us / them:.1f} times as many"
        yield Row(part, text, "3 times", us / them >= 3)


def loaded(args: argparse.Namespace) -> Iterator[Row]:
    told = asyncio.run(load.run(args.model, 60 * args.minutes, 64))
    text = (
        f"{told.answers:,} answers, {told.lost} lost, {told.mixed} mixed up, {told.broken:,} broken requests"
    )
    yield Row(f"64 clients, {args.minutes:g} minutes", text, "0 lost, 0 mixed up", not told.lost + told.mixed)
    yield Row("its waiting time", f"median {told.median:.2f} s, 99 % within {told.most:.2f} s")
    yield Row("its end", told.end, "idle, pages back", told.is_idle)
    yield Row("its memory", f"{told.before / MIB:.0f} to {told.after / MIB:.0f} MiB")
    for line in told.failures:
        print(f"  {line}", file=sys.stderr)


PARTS = {"stream": stream, "idle": idle, "memory": memory, "peers": peers, "load": loaded}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default=str(MODEL))
    parser.add_argument("--only", default=",".join(PARTS), help="parts, with commas between")
    parser.add_argument("--quick", action="store_true", help="fewer rounds and requests")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--requests", type=int, default=100_000)
    parser.add_argument("--minutes", type=float, default=10.0)
    args = parser.parse_args()
    chosen = args.only.split(",")
    for name in chosen:
        if name not in PARTS:
            parser.error(f"{name!r} is none of {', '.join(PARTS)}")
    print(
        f"tallow {tallow.__version__}, {Path(args.model).name}, {len(os.sched_getaffinity(0))} processors\n"
    )
    print(f"| {' | '.join(COLUMNS)} |\n|{'---|' * len(COLUMNS)}")
    missed = 0
    for name in chosen:
        for row in PARTS[name](args):
            print(row, flush=True)
            missed += not row.is_met
    sys.exit(1 if missed else 0)


if __name__ == "__main__":
    main()
