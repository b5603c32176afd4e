"""The documentation holds: every block of code in docs/ and the README runs and prints what stands below it,
and every public name, with its arguments, is in the reference and says what it is. (That links lead somewhere
is for Sphinx to see: ``make docs``.)

A page is one process, and its blocks run in order, so that a page reads as one session. ``text`` right below
a block is what it prints, word for word; ``python tests/python/test_docs.py [PAGE ...]`` writes it down anew.
What cannot run here has ``<!-- not run: why -->`` above it.
"""

from __future__ import annotations

import ast
import dataclasses
import inspect
import json
import os
import re
import runpy
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from sphinx.pycode import ModuleAnalyzer

import tallow
import tallow.ray
import tallow.serve.ray
from conftest import ROOT

DOCS = ROOT / "docs"
#: Not the notebooks, which have a test of their own.
PAGES = sorted(
    [
        "../README.md",
        *(
            page.relative_to(DOCS).as_posix()
            for page in DOCS.glob("**/*.md")
            if "notebooks" not in page.parts
        ),
    ]
)
_FENCE = re.compile(r"(<!-- not run: [^\n]+ -->\n)?^```([^\n]*)\n(.*?)^```$\n?", re.DOTALL | re.MULTILINE)
#: Languages that run, and those that are only shown.
RUN, SHOWN = ("python", "sh"), ("text", "json", "rust", "toml")

#: Runs the blocks of a page, [[language, code], ...] on stdin, and prints what each of them printed.
RUNNER = """
import contextlib, io, json, subprocess, sys
page, said = sys.argv[1], []
for number, (language, code) in enumerate(json.load(sys.stdin), 1):
    if language == "sh":
        done = subprocess.run(["bash", "-euo", "pipefail", "-c", code], capture_output=True, text=True)
        if done.returncode:
            sys.exit(f"{page}, block {number} ended with {done.returncode}: {done.stdout}{done.stderr}")
        said.append(done.stdout)
        continue
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(compile(code, f"{page}, block {number}", "exec"), globals())
    said.append(out.getvalue())
print(json.dumps(said))
"""


class Block(NamedTuple):
    language: str
    code: str
    #: What is shown below it, and where that stands in the page; None if nothing is.
    shown: str | None
    span: tuple[int, int]


def blocks(text: str) -> list[Block]:
    """The blocks that run."""
    fences = list(_FENCE.finditer(text))
    found = []
    for at, fence in enumerate(fences):
        skipped, language, code = fence.groups()
        after = fences[at + 1] if at + 1 < len(fences) else None
        if not language.startswith("{"):
            assert language in (*RUN, *SHOWN), f"a block of {language or 'no language'}"
        if language in RUN and not skipped:
            below = after is not None and after[2] == "text" and not text[fence.end() : after.start()].strip()
            span = after.span(3) if after is not None and below else (0, 0)
            found.append(Block(language, code, text[slice(*span)] if below else None, span))
    return found


def printed(page: str, every: list[Block], folder: str) -> list[str]:
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "DSPY_CACHEDIR": os.path.join(folder, "dspy-cache")}
    done = subprocess.run(
        [sys.executable, "-c", RUNNER, page],
        input=json.dumps([block[:2] for block in every]),
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
        cwd=folder,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    return [plain(said) for said in json.loads(done.stdout)]


def plain(said: str) -> str:
    """Without progress bars, which DSPy draws on stdout, and spaces that no editor keeps."""
    lines = [line.rstrip() for line in said.strip("\n").split("\n") if "\r" not in line]
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("page", PAGES)
def test_a_page_does_what_it_says(page, smollm2, tmp_path):
    every = blocks((DOCS / page).read_text(encoding="utf-8"))
    for block, said in zip(every, printed(page, every, str(tmp_path)) if every else [], strict=True):
        assert block.shown is None or said == block.shown, block.code


def test_tests_that_a_page_names_are_there():
    """A page may say which test holds what it promises: `file::name`, in tests/ or in tests/python."""
    named = [
        found
        for page in DOCS.glob("*.md")
        for found in re.findall(r"`([\w/]+\.(?:py|rs))::(\w+)`", page.read_text(encoding="utf-8"))
    ]
    assert len(named) >= 15
    for file, name in named:
        path = ROOT / (file if "/" in file else f"tests/python/{file}")
        assert re.search(rf"^(def|fn) {name}\(", path.read_text(encoding="utf-8"), re.MULTILINE), (file, name)


# The reference

CONF = runpy.run_path(str(DOCS / "conf.py"))
#: What exceptions get from Python.
_PYTHONS = ("with_traceback", "add_note")


def public() -> dict[str, Any]:
    """What ``tallow`` offers, and the members of its classes."""
    found: dict[str, Any] = {}
    for name in (*tallow.__all__, "LM", "Embed", "Judge", "Provider"):
        found[name] = thing = getattr(tallow, name)
        members = vars(thing) if isinstance(thing, type) else {}
        own = [key for key in members if key == "__call__" or (key[0] != "_" and key not in _PYTHONS)]
        found.update({f"{name}.{key}": getattr(thing, key) for key in own})
    ours = {"serve.app": tallow.serve.app, "serve.ray.deployment": tallow.serve.ray.deployment}
    return {**found, **ours, "ray.Generate": tallow.ray.Generate, "ray.Program": tallow.ray.Program}


PUBLIC = public()


def documentation(name: str, thing: Any) -> str:
    """What the reference says of it: its own docstring, of the native half that of its stub, and of a field
    of a dataclass the comment above it."""
    stub = CONF["STUBS"].get(f"tallow.{name}")
    if stub is not None:
        return ast.get_docstring(stub) or ""
    if not inspect.ismemberdescriptor(thing):
        return thing.__doc__ or ""
    owner, _, field = name.rpartition(".")
    comments = ModuleAnalyzer.for_module(getattr(tallow, owner).__module__).find_attr_docs()
    return "\n".join(comments.get((owner, field), ()))


def arguments(name: str, thing: Any) -> list[str]:
    """The arguments that a caller may give. ``**unknown`` is there to be refused."""
    function = thing.__init__ if isinstance(thing, type) else thing
    made = dataclasses.is_dataclass(thing) or name in CONF["MADE_BY_US"]
    if not inspect.isroutine(function) or not hasattr(function, "__code__") or made:
        return []
    return [one for one in inspect.signature(function).parameters if one not in ("self", "unknown")]


@pytest.mark.parametrize("name", sorted(PUBLIC))
def test_the_reference_is_complete(name):
    pages = "\n".join(page.read_text(encoding="utf-8") for page in (DOCS / "reference").glob("*.md"))
    if "." not in name:
        assert re.search(rf"^\.\. auto\w+:: tallow\.{name}$", pages, re.MULTILINE), "no page shows it"
    text = documentation(name, PUBLIC[name])
    assert text, "it has no documentation of its own"
    for argument in arguments(name, PUBLIC[name]):
        assert re.search(rf"``{argument}\b", text), f"its argument {argument} is not documented"


def test_the_sampler_has_all_fields_of_its_stub():
    page = (DOCS / "reference" / "sampling.md").read_text(encoding="utf-8")
    fields = [name for name, _ in tallow._core.SAMPLER_FIELDS]
    documented = [name.rpartition(".")[2] for name in CONF["STUBS"] if name.startswith("tallow.Sampler.")]
    assert [name for name in documented if name[0] != "_"] == [*fields, "replace"]
    assert re.findall(r"autoattribute:: tallow\.Sampler\.(\w+)", page) == fields


if __name__ == "__main__":
    for name in sys.argv[1:] or PAGES:
        text = (DOCS / name).read_text(encoding="utf-8")
        every = blocks(text)
        with tempfile.TemporaryDirectory() as folder:
            said = printed(name, every, folder) if every else []
        for block, now in reversed(list(zip(every, said, strict=True))):
            if block.shown is not None:
                text = text[: block.span[0]] + now + text[block.span[1] :]
        (DOCS / name).write_text(text, encoding="utf-8")
