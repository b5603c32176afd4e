"""The ``tallow`` command as a shell runs it, but in this process, with streams of its own."""

from __future__ import annotations

import io
import os
import sys
import tempfile
from typing import Any, NamedTuple

import pytest

from tallow import Chunk, answers, cli


class Done(NamedTuple):
    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object, stdin: str | bytes | None = None) -> Done:
    """``stdin`` comes from a file, as ``< file`` gives it; None is an empty device."""
    streams = sys.stdin, sys.stdout, sys.stderr
    out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8", newline="") for _ in range(2))
    with tempfile.TemporaryFile() if stdin is not None else open(os.devnull, "rb") as file:
        if stdin is not None:
            file.write(stdin.encode() if isinstance(stdin, str) else stdin)
            file.seek(0)
        sys.stdin, sys.stdout, sys.stderr = io.TextIOWrapper(file, "utf-8"), out, err
        try:
            code = cli.main([str(argument) for argument in arguments])
        finally:
            sys.stdin, sys.stdout, sys.stderr = streams
    for stream in (out, err):
        stream.flush()
    return Done(code, *(stream.buffer.getvalue().decode() for stream in (out, err)))


EVENTS = answers.Reader.events


def in_pieces(monkeypatch: pytest.MonkeyPatch, *texts: Any) -> None:
    """Lets answers come in these pieces, one a step; KeyboardInterrupt is Ctrl-C instead of one."""
    pieces = iter(texts)

    def events(self, chunk):
        text = next(pieces, "")
        if text is KeyboardInterrupt:
            raise KeyboardInterrupt
        ended = ("stop", chunk.usage, chunk.timings) if chunk.finish_reason else (None, None, None)
        yield from EVENTS(self, Chunk(text, chunk.tokens, None, *ended))

    monkeypatch.setattr(answers.Reader, "events", events)
