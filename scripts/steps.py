"""A slow command with a line that says what it does now and how long it has been at it.

In a terminal the line is rewritten; in a pipe or a log it is repeated every half minute. Of what the command
prints only cargo's count is shown, the rest goes to a file, whose end is shown if the command fails.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path

#: `    Building [====>     ] 107/215: regex-automata, syn`, which cargo rewrites as it goes.
COUNT = re.compile(r"Building \[[=> ]*\] +(\d+)/(\d+)(?:: (.*))?")
#: Makes cargo count in a pipe, too, where it would only name what it begins.
COUNTING = {
    "CARGO_TERM_PROGRESS_WHEN": "always",
    "CARGO_TERM_PROGRESS_WIDTH": "100",
    "CARGO_TERM_COLOR": "never",
}
REPEAT = 30.0


def duration(seconds: float) -> str:
    """``7.4 s``, or ``3 min 07 s``."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02d} s"


def counted(line: str) -> str | None:
    """What cargo's count says in words, if that is what the line is."""
    found = COUNT.search(line)
    if not found:
        return None
    done, total, names = found.groups()
    return f"{done} of {total} compiled, now {(names or 'linking').strip()}"


class _Shown:
    """The line that is rewritten, or repeated where nothing can be rewritten."""

    def __init__(self, title: str, usual: str) -> None:
        self.title, self.began, self.told = title, time.monotonic(), time.monotonic()
        self.rewrites = sys.stdout.isatty()
        print(
            f"{title}{f' (usually {usual})' if usual else ''} ...",
            end="" if self.rewrites else "\n",
            flush=True,
        )

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def tell(self, note: str) -> None:
        text = f"{self.title}: {note or 'working'}, {duration(self.seconds())}"
        if self.rewrites:
            print(f"\r\x1b[K{text[: shutil.get_terminal_size().columns - 1]}", end="", flush=True)
        elif time.monotonic() - self.told >= REPEAT:
            self.told = time.monotonic()
            print(f"  {note or 'working'}, {duration(self.seconds())}", flush=True)

    def end(self, how: str) -> None:
        clear = "\r\x1b[K" if self.rewrites else ""
        print(f"{clear}{self.title}: {how} in {duration(self.seconds())}", flush=True)


def run(
    title: str, command: Sequence[str], *, log: Path, usual: str = "", env: Mapping[str, str] | None = None
) -> float:
    """Runs the command and returns the seconds it took; exits with the end of its output if it fails."""
    shown, last, note = _Shown(title, usual), deque[str](maxlen=30), ""
    log.parent.mkdir(parents=True, exist_ok=True)
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,  # which also makes lines of what cargo rewrites
        errors="replace",
        env={**os.environ, **COUNTING, **(env or {})},
    )

    def read() -> None:
        nonlocal note
        assert process.stdout
        with log.open("w", encoding="utf-8") as file:
            for line in process.stdout:
                count = counted(line)
                note = count or note
                if count is None and line.strip():
                    file.write(line)
                    last.append(line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        while reader.is_alive():
            reader.join(0.5)
            shown.tell(note)
    except KeyboardInterrupt:
        process.terminate()
        raise
    if process.wait() != 0:
        shown.end("failed")
        sys.exit(f"{''.join(last)}\n{command[0]} ended with {process.returncode}; all it said is in {log}")
    shown.end("done")
    return shown.seconds()
