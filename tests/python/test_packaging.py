"""What is packed: the source distribution, the metadata, the scripts that build wheels, and the workflows.

A wheel takes minutes to build; `make wheels` and `make test-wheels` look at real ones (docs/packaging.md).
"""

from __future__ import annotations

import io
import random
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import tomllib
from trove_classifiers import classifiers

from conftest import ROOT

sys.path.insert(0, str(ROOT / "scripts"))
import steps
import test_wheel
import wheels

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
CARGO = tomllib.loads((ROOT / "Cargo.toml").read_text(encoding="utf-8"))["package"]
TOOLS = Path(sys.executable).parent


@pytest.fixture(scope="module")
def sdist(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("sdist")
    command = [TOOLS / "maturin", "sdist", "--manifest-path", ROOT / "Cargo.toml", "--out", folder]
    subprocess.run(command, check=True, capture_output=True)
    (archive,) = folder.glob("*.tar.gz")
    return archive


def test_the_sdist_holds_what_a_build_needs_and_no_more(sdist):
    assert wheels.problems(sdist) == []
    top = {name.partition("/")[0] for name in wheels.contents(sdist)}
    files = {"Cargo.toml", "Cargo.lock", "pyproject.toml", "PKG-INFO", "LICENSE", "README.md"}
    assert top == {*files, "ARCHITECTURE.md", "CHANGELOG.md", "src", "python", "benches", "examples"}


#: What is done to a good archive, and a word of the problem it must cause.
SPOILED = {
    "golden": ({"tests/golden/a.json": b"{}"}, "holds tests/golden/a.json"),
    "built module": ({"python/tallow/_core.abi3.so": b""}, "holds python/tallow/_core.abi3.so"),
    "no types": ({"python/tallow/py.typed": None}, "lacks python/tallow/py.typed"),
    "no lock": ({"Cargo.lock": None}, "lacks Cargo.lock"),
    "no address": ({"PKG-INFO": (b"Project-URL: Issues", b"X-Issues")}, "no address 'Issues'"),
    "license": ({"PKG-INFO": (b"Expression: Apache-2.0", b"Expression: MIT")}, "license MIT"),
    "size": ({"src/large.rs": random.Random(1).randbytes(2_500_000)}, "MB, more than"),
}


@pytest.mark.parametrize("spoiled", SPOILED)
def test_a_spoiled_archive_is_named(spoiled, sdist, tmp_path):
    change, problem = SPOILED[spoiled]
    files = wheels.contents(sdist)
    for name, content in change.items():
        if content is None:
            del files[name]
        elif isinstance(content, tuple):
            files[name] = files[name].replace(*content)
        else:
            files[name] = content
    archive = tmp_path / "tallow-0.tar.gz"
    with tarfile.open(archive, "w:gz", compresslevel=1) as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(f"tallow-0/{name}")
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    (found,) = wheels.problems(archive)
    assert problem in found


def test_metadata_agrees_with_itself():
    assert set(PROJECT["classifiers"]) <= classifiers
    assert all(url.startswith(CARGO["repository"]) for url in PROJECT["urls"].values())
    assert CARGO["license"] == PROJECT["license"]
    versions = [it.rpartition(" ")[2] for it in PROJECT["classifiers"] if "Python :: 3." in it]
    assert PROJECT["requires-python"] == f">={versions[0]}"
    assert set(versions) <= set(test_wheel.VERSIONS)
    assert (PROJECT["dependencies"], test_wheel.OLDEST) == (
        ["numpy>=1.23", "tqdm>=4.60"],
        ("numpy==1.23.*", "tqdm==4.60.*"),
    )


WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))
LINTS = {
    "schema": ["check-jsonschema", "--builtin-schema", "vendor.github-workflows"],
    "zizmor": ["zizmor", "--offline", "--quiet", "--no-progress"],
}


@pytest.mark.parametrize("lint", LINTS)
def test_workflows(lint):
    assert {file.name for file in WORKFLOWS} == {"ci.yml", "release.yml"}
    tool, *arguments = LINTS[lint]
    done = subprocess.run([TOOLS / tool, *arguments, *WORKFLOWS], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


#: Lines of cargo and pip one after another, and what a person reads after each.
LINES = {
    "   Compiling syn v2.0.119": "Compiling syn v2.0.119",
    "    Building [====>     ] 107/215: regex-automata, syn": "107 of 215 crates, Compiling syn v2.0.119",
    "    Building [========> ] 213/215: numpy": "213 of 215 crates, Compiling syn v2.0.119",
    "": "213 of 215 crates, Compiling syn v2.0.119",
    "   Compiling tallow v0.1.0 (/home/me/tallow)": "213 of 215 crates, Compiling tallow v0.1.0",
}


def test_progress_is_read():
    doing = steps.Progress()
    assert str(doing) == "working"
    assert {line: (doing.read(line), str(doing))[1] for line in LINES} == LINES
    assert [doing.read(line) for line in LINES] == [False, True, True, False, False]
    assert [steps.duration(it) for it in (0.04, 7.44, 187, 3600)] == [
        "0.0 s",
        "7.4 s",
        "3 min 07 s",
        "60 min 00 s",
    ]


def test_a_step_tells_how_long_it_took(capsys, tmp_path):
    steps.run("looking", [sys.executable, "-c", "print('seen')"], log=tmp_path / "log", usual="a second")
    told = capsys.readouterr().out
    assert told.startswith("looking (usually a second) ...\nlooking: done in "), told
    assert (tmp_path / "log").read_text() == "seen\n"
    with pytest.raises(SystemExit, match=r"(?s)why it broke.*ended with 3"):
        code = "import sys; print('why it broke'); sys.exit(3)"
        steps.run("breaking", [sys.executable, "-c", code], log=tmp_path / "log")


#: A README, whether DSPy is there, and the program that is chosen with its output.
READMES = {
    "with DSPy": ("```python\nimport dspy\n```\n```python\nx\n```\n", True, ("import dspy\n", None)),
    "without": (
        "```python\nimport dspy\n```\n\n```python\nx\n```\n\n```text\ny\n```\n",
        False,
        ("x\n", "y\n"),
    ),
    "words between": ("```python\nx\n```\nprints\n```text\ny\n```\n", False, ("x\n", None)),
}


@pytest.mark.parametrize("readme", READMES)
def test_the_first_program_is_found(readme):
    text, dspy, expected = READMES[readme]
    assert test_wheel.first_program(text, dspy) == expected


def test_the_readme_has_a_first_program():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    assert "tallow" in test_wheel.first_program(text, False)[0]


def test_a_manifest_knows_what_the_sources_were(tmp_path, monkeypatch):
    wheel = tmp_path / "tallow-0.1.0-cp310-abi3-any.whl"
    wheel.write_bytes(b"")
    (tmp_path / wheels.MANIFEST).write_text(
        f'{{"{wheel.name}": {{"sources": "{wheels.sources()}"}}, "gone.whl": {{}}}}'
    )
    assert wheels.same_sources(tmp_path) == [wheel]
    monkeypatch.setattr(wheels, "sources", lambda: "other")
    assert wheels.same_sources(tmp_path) == []
