#!/usr/bin/env bash
# uvicorn serves an address (host and port), or sockets that its caller made, as for a port that is known before it starts.
#
# Usual guess: both are the same server; asyncio switches Nagle's algorithm off (TCP_NODELAY) for the connections of either.
# Seen (uvicorn 0.54.0, Python 3.11): asyncio does so only where the protocol number of the socket is that of TCP, and
#   a socket of `socket.create_server` has 0, which its connections inherit. They keep Nagle's algorithm: an answer of a head and a body,
#   written apart, may wait for the other side's delayed acknowledgement, some 40 ms. `socket.socket(..., proto=socket.IPPROTO_TCP)` has not.
#
# Output seen:
#   given an address: no delay 1
#   given socket.create_server(): no delay 0
#   given a socket with the protocol TCP: no delay 1
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "uvicorn==0.54.0"
cat > "$work/run.py" <<'PY'
import asyncio
import socket
import sys

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

found = []


class Watched(H11Protocol):
    def connection_made(self, transport):
        connection = transport.get_extra_info("socket")
        found.append(int(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) != 0))
        super().connection_made(transport)


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


async def ask(name, sockets):
    config = uvicorn.Config(app, port=0, http=Watched, loop="asyncio", lifespan="off", log_level="error")
    server = uvicorn.Server(config)
    running = asyncio.ensure_future(server.serve(sockets=sockets))
    while not server.started:
        await asyncio.sleep(0.01)
    listening = sockets[0] if sockets else server.servers[0].sockets[0]
    reader, writer = await asyncio.open_connection("127.0.0.1", listening.getsockname()[1])
    writer.write(b"GET / HTTP/1.1\r\nHost: here\r\nConnection: close\r\n\r\n")
    await reader.read()
    writer.close()
    server.should_exit = True
    await running
    print(f"given {name}: no delay {found[-1]}")


def with_protocol():
    made = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    made.bind(("127.0.0.1", 0))
    return made


async def main():
    await ask("an address", None)
    await ask("socket.create_server()", [socket.create_server(("127.0.0.1", 0))])
    await ask("a socket with the protocol TCP", [with_protocol()])


asyncio.run(main())
sys.exit(found != [1, 0, 1])
PY
"$work/venv/bin/python" "$work/run.py"
