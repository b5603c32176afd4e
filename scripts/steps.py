"""A slow command with a line that says what it does now and how long it has been at it.

In a terminal the line is rewritten; in a pipe or a log it is repeated every half minute. It has cargo's count
and the command's own last line. All lines go to a file, whose end is shown if the command fails.
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

#: `    Building [====>     ] 107/215: syn`, which cargo rewrites as it goes.
COUNT = re.compile(r" Building \[[=> ]*\] +(\d+)/(\d+)")
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


class Progress:
    """What a command is doing, from the lines that it prints. Cargo's count alone would not do: it is not
    told anew while the last crate compiles, which takes longest.
    """

    def __init__(self) -> None:
        self.count, self.last = "", "working"

    def read(self, line: str) -> bool:
        """Takes note of a line; whether it is a count, and no line of its own."""
        if found := COUNT.search(line):
            self.count = f"{found[1]} of {found[2]} crates, "
        elif line.strip():
            self.last = line.partition(" (")[0].strip()[:50]
        return bool(found)

    def __str__(self) -> str:
        return self.count + self.last


class _Shown:
    """The line that is rewritten, or repeated where nothing can be rewritten."""

    def __init__(self, title: str, usual: str) -> None:
        self.title, self.began, self.told = title, time.monotonic(), time.monotonic()
        self.usual = f" (usually {usual})" if usual else ""
        self.rewrites = sys.stdout.isatty()
        if not self.rewrites:
            print(f"{title}{self.usual} ...", flush=True)

    def seconds(self) -> float:
        return time.monotonic() - self.began

    def tell(self, doing: object) -> None:
        if self.rewrites:
            width = shutil.get_terminal_size().columns - 1
            line = f"{self.title}: {duration(self.seconds())}{self.usual}, {doing}"
            print(f"\r\x1b[K{line[:width]}", end="", flush=True)
        elif time.monotonic() - self.told >= REPEAT:
            self.told = time.monotonic()
            print(f"  {duration(self.seconds())}, {doing}", flush=True)

    def end(self, how: str) -> None:
        clear = "\r\x1b[K" if self.rewrites else ""
        print(f"{clear}{self.title}: {how} in {duration(self.seconds())}", flush=True)


def run(
    title: str, command: Sequence[str], *, log: Path, usual: str = "", env: Mapping[str, str] | None = None
) -> float:
    """Runs the command and returns the seconds it took; exits with the end of its output if it fails."""
    shown, doing, last = _Shown(title, usual), Progress(), deque[str](maxlen=30)
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
        assert process.stdout
        with log.open("w", encoding="utf-8", buffering=1) as file:
            for line in process.stdout:
                if not doing.read(line) and line.strip():
                    file.write(line)
                    last.append(line)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        while reader.is_alive():
            reader.join(0.5)
            shown.tell(doing)
    except KeyboardInterrupt:
        process.terminate()
        raise
    if process.wait() != 0:
        shown.end("failed")
        sys.exit(f"{''.join(last)}\n{command[0]} ended with {process.returncode}; all it said is in {log}")
    shown.end("done")
    return shown.seconds()
