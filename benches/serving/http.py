"""A client that costs nearly nothing, so that on few cores it takes no time from the server it measures:
plain sockets on an event loop, a connection a request unless one is kept."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

LINE = 2**20


class Broken(Exception):
    """The server did not answer as HTTP and its own API have it."""


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    def json(self) -> Any:
        return json.loads(self.body)


class Connection:
    """One connection, kept between requests."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def to(cls, port: int) -> Connection:
        return cls(*await asyncio.open_connection("127.0.0.1", port, limit=LINE))

    def close(self) -> None:
        self.writer.close()

    async def send(self, method: str, path: str, body: Any = None) -> None:
        data = b"" if body is None else json.dumps(body).encode()
        head = f"{method} {path} HTTP/1.1\r\nhost: localhost\r\ncontent-length: {len(data)}\r\n"
        if data:
            head += "content-type: application/json\r\n"
        self.writer.write(head.encode() + b"\r\n" + data)
        await self.writer.drain()

    async def head(self) -> tuple[int, dict[str, str]]:
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        pairs = (line.partition(":") for line in lines if line)
        return int(first.split()[1]), {name.lower(): value.strip() for name, _, value in pairs}

    async def parts(self, headers: dict[str, str]) -> AsyncIterator[bytes]:
        """The body as it comes."""
        if headers.get("transfer-encoding", "").lower() != "chunked":
            yield await self.reader.readexactly(int(headers.get("content-length", 0)))
            return
        while size := int(await self.reader.readuntil(b"\r\n"), 16):
            yield (await self.reader.readexactly(size + 2))[:-2]
        await self.reader.readuntil(b"\r\n")

    async def request(self, method: str, path: str, body: Any = None) -> Answer:
        await self.send(method, path, body)
        status, headers = await self.head()
        return Answer(status, headers, b"".join([part async for part in self.parts(headers)]))

    async def events(self, path: str, body: Any) -> AsyncIterator[Any]:
        """The data of a stream that must come to its end."""
        await self.send("POST", path, {**body, "stream": True})
        status, headers = await self.head()
        rest, done = b"", False
        async for part in self.parts(headers):
            *blocks, rest = (rest + part).split(b"\n\n")
            for block in blocks:
                if done:
                    raise Broken(f"more than [DONE]: {block[:200]!r}")
                if block == b"data: [DONE]":
                    done = True
                elif not block.startswith(b":"):
                    yield json.loads(block.removeprefix(b"data: "))
        if status != 200 or not done:
            raise Broken(f"status {status}, or an end without [DONE]: {rest[:200]!r}")


async def once(port: int, method: str, path: str, body: Any = None) -> Answer:
    connection = await Connection.to(port)
    try:
        return await connection.request(method, path, body)
    finally:
        connection.close()
