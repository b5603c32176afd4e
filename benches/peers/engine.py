"""A worker process and what is known of it: started, asked, stopped while others work, ended."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
INSTALLED = HERE.parents[1] / "target" / "peers"
#: Each engine's adapter. The first is us.
ADAPTERS = {
    "tallow": "ours.py",
    "llama.cpp": "llamacpp.py",
    "openvino-genai": "ov.py",
    "transformers": "hf.py",
    "mistralrs": "mistral.py",
}


class Failed(Exception):
    """The engine gave an error, died or was too slow."""


def interpreter(name: str, given: dict[str, str]) -> str | None:
    """The Python that has this engine, or None if it is not installed."""
    if name in given:
        return given[name]
    if name == "tallow":
        return sys.executable
    path = INSTALLED / name / "bin" / "python"
    return str(path) if path.exists() else None


class Engine:
    """The worker of one engine. Between two questions it does not run at all."""

    def __init__(self, name: str, python: str, environment: dict[str, str] | None = None) -> None:
        self.name = name
        self.log = tempfile.TemporaryFile()  # noqa: SIM115
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), str(HERE / ADAPTERS[name])],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.log,
            env=os.environ | {"TOKENIZERS_PARALLELISM": "false"} | (environment or {}),
        )
        self.loaded: dict[str, Any] = {}
        #: Tokens a second, as last seen: what a question would take is known before it is asked.
        self.prefill = self.decode = 0.0  # 0 is not known

    @property
    def alive(self) -> bool:
        return self.process.poll() is None

    def ask(self, do: str, limit: float, **arguments: Any) -> Any:
        """The worker's answer, or Failed. One that needs more than `limit` seconds is ended."""
        self.process.send_signal(signal.SIGCONT)
        try:
            answer = self.exchange(json.dumps({"do": do, **arguments}), limit)
        finally:
            if self.alive:
                self.process.send_signal(signal.SIGSTOP)
        if "error" in answer:
            raise Failed(answer["error"])
        return answer["ok"]

    def exchange(self, line: str, limit: float) -> dict[str, Any]:
        assert self.process.stdin and self.process.stdout
        try:
            self.process.stdin.write(line.encode() + b"\n")
            self.process.stdin.flush()
        except BrokenPipeError:
            raise Failed(self.death()) from None
        until, found = time.monotonic() + limit, b""
        while not found.endswith(b"\n"):
            left = until - time.monotonic()
            if left <= 0 or not select.select([self.process.stdout], [], [], left)[0]:
                self.end()
                raise Failed(f"no answer within {limit:.0f} s")
            part = os.read(self.process.stdout.fileno(), 1 << 20)
            if not part:
                raise Failed(self.death())
            found += part
        return json.loads(found)

    def death(self) -> str:
        code = self.process.wait()
        self.log.seek(0)
        lines = self.log.read().decode(errors="replace").strip().splitlines()
        why = signal.Signals(-code).name if code < 0 else f"status {code}"
        return f"died with {why}" + (f": {lines[-1][:200]}" if lines and code > 0 else "")

    def end(self) -> None:
        if self.alive:
            self.process.kill()
        self.process.wait()
        for pipe in (self.process.stdin, self.process.stdout):
            if pipe:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()
        self.log.close()

    def seconds(self, read: int, write: int) -> float:
        """What a question would take at the speed seen so far."""
        return read / self.prefill + (write / self.decode if self.decode else 0.0)
