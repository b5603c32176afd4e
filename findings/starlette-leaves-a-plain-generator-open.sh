#!/usr/bin/env bash
# StreamingResponse takes a generator or an async generator. A generator that streams a model's tokens gives the model's place
# back in its `finally`.
#
# Usual guess: when the client goes away, the generator is closed and `finally` runs, as it does for an async generator.
# Seen (starlette 1.10.0, uvicorn 0.54.0): a plain generator is neither asked for more nor closed. It is left in a cycle of
#   references, so `finally` runs when Python next collects cycles: seconds or hours later, as busy as the process is. Until
#   then the place is taken. An async generator is told at once.
#
# Output seen (a second after the client left):
#   async generator  finally has run: True
#   plain generator  finally has run: False
#   plain generator  finally has run: True, after gc.collect()
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "starlette==1.10.0" "uvicorn==0.54.0"
cat > "$work/run.py" <<'PY'
import asyncio
import gc
import socket
import threading
import time

import uvicorn
from starlette.applications import Starlette
from starlette.responses import StreamingResponse
from starlette.routing import Route

ended = []


def plain():
    try:
        for number in range(200):
            time.sleep(0.05)
            yield f"data: {number}\n\n"
    finally:
        ended.append("plain")


async def with_async():
    try:
        for number in range(200):
            await asyncio.sleep(0.05)
            yield f"data: {number}\n\n"
    finally:
        ended.append("async")


def leave_early(path):
    """Reads a little of a stream, closes the connection, and waits for a second."""
    with socket.create_connection(listener.getsockname()) as connection:
        connection.sendall(f"GET {path} HTTP/1.1\r\nhost: local\r\n\r\n".encode())
        connection.recv(200)
        time.sleep(0.3)
    time.sleep(1)


routes = [
    Route("/plain", lambda request: StreamingResponse(plain())),
    Route("/async", lambda request: StreamingResponse(with_async())),
]
listener = socket.create_server(("127.0.0.1", 0))
server = uvicorn.Server(uvicorn.Config(Starlette(routes=routes), log_level="error"))
threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True).start()
while not server.started:
    time.sleep(0.05)
# So that the answer does not depend on when the collector happens to run.
gc.disable()
leave_early("/async")
leave_early("/plain")
seen = ["async" in ended, "plain" in ended]
gc.collect()
time.sleep(0.2)
seen.append("plain" in ended)
print("async generator  finally has run:", seen[0])
print("plain generator  finally has run:", seen[1])
print(f"plain generator  finally has run: {seen[2]}, after gc.collect()")
server.should_exit = True
raise SystemExit(seen != [True, False, True])
PY
"$work/venv/bin/python" "$work/run.py"
