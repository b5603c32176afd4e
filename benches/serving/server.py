"""A server in a process of its own, and what the system says of it."""

from __future__ import annotations

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Server:
    port: int
    process: subprocess.Popen[bytes]

    def resident(self) -> int:
        """Bytes of memory."""
        pages = Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]
        return int(pages) * os.sysconf("SC_PAGE_SIZE")

    def loop_seconds(self) -> float:
        """CPU time of the first thread, where the event loop is; the engine has threads of its own."""
        pid = self.process.pid
        return int(Path(f"/proc/{pid}/task/{pid}/schedstat").read_text().split()[0]) / 1e9


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


@contextlib.contextmanager
def started(command: Sequence[str], port: int, ready: str, seconds: float = 300) -> Iterator[Server]:
    """A server from when it answers ``ready``; what it wrote is shown where it does not."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, stdin=subprocess.DEVNULL)
        try:
            until = time.monotonic() + seconds
            while True:
                with contextlib.suppress(OSError):
                    urllib.request.urlopen(f"http://127.0.0.1:{port}{ready}", timeout=5).close()
                    break
                if process.poll() is not None or time.monotonic() > until:
                    log.seek(0)
                    raise SystemExit(
                        f"{command[0]} did not start: {log.read()[-3000:].decode(errors='replace')}"
                    )
                time.sleep(0.1)
            yield Server(port, process)
        finally:
            process.terminate()
            try:
                process.wait(60)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def ours(model: str, *options: str) -> contextlib.AbstractContextManager[Server]:
    port = free_port()
    command = [
        sys.executable,
        "-m",
        "tallow",
        "serve",
        model,
        "--name",
        "m",
        "--port",
        str(port),
        "--log",
        "off",
    ]
    return started([*command, *options], port, "/ready")
