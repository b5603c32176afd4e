"""Packed weights on disk: written by one process, mapped by the next, and never believed."""

from __future__ import annotations

import gc
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import tallow
from command import run
from conftest import FAMILIES, copy_family

#: What a process says of a model: what became of its packed weights, its log, and the bits that it computes.
PROBE = """
import hashlib, json, logging, sys
lines = []
logging.basicConfig(handlers=[logging.NullHandler()])
logger = logging.getLogger("tallow")
logger.setLevel("INFO")
handler = logging.Handler()
handler.emit = lambda record: lines.append(record.getMessage())
logger.addHandler(handler)
import tallow
model = tallow.Model(sys.argv[1], progress=False, **json.loads(sys.argv[2]))
logits = model.logits(model.tokenize("The sky is blue, and"))
answer = model.generate("The sky", max_tokens=8, temperature=0).text
print(json.dumps({
    "packed": model.packed, "again": model._native.packed_again, "repr": repr(model), "lines": lines,
    "bits": hashlib.sha256(logits.tobytes() + answer.encode()).hexdigest(),
}))
"""
PROGRAM = [sys.executable, "-c", PROBE]


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    """A cache that keeps models of any size; where the packed weights are."""
    monkeypatch.setenv("TALLOW_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setenv("TALLOW_PACKED_CACHE_LEAST_MB", "0")
    monkeypatch.delenv("TALLOW_PACKED_CACHE_GB", raising=False)
    return tmp_path / "cache" / "packed"


def model_of(tmp_path: Path, family: str = "llama-gqa-tied") -> Path:
    """A tiny model whose files are old enough to be known by their times."""
    folder = copy_family(family, tmp_path / family)
    for path in folder.rglob("*"):
        os.utime(path, (1e9, 1e9))
    return folder


def load(source: Path, **options: Any) -> dict[str, Any]:
    done = subprocess.run(
        [*PROGRAM, str(source), json.dumps(options)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return json.loads(done.stdout)


def kept(cache: Path) -> list[Path]:
    return sorted(cache.glob("*.panels"))


def bits(model: tallow.Model) -> bytes:
    return model.logits([1, 2, 3, 7, 11, 5]).tobytes()


@pytest.mark.parametrize("quantize", [None, "q8_0"])
def test_a_later_load_maps_the_same_bits(tmp_path, cache, quantize):
    """Every family: heads that go back to halves, experts one by one, in stacks and as columns, tables."""
    configs = {path.parent.name: path.read_text() for path in sorted(FAMILIES.glob("*/config.json"))}
    families = [
        name
        for name, text in configs.items()
        if "vocab_size" in json.loads(text) and (FAMILIES / name / "model.safetensors").exists()
    ]
    for family in families:
        source = model_of(tmp_path, family)
        first = tallow.Model(source, quantize=quantize, progress=False)
        wanted = bits(first), first.notes, first.weight_bytes, first.weight_types
        tallow._core.finish_packed(10)
        assert first.packed == "kept", family
        first.close()
        del first
        gc.collect()
        second = tallow.Model(source, quantize=quantize, progress=False)
        assert second.packed == "mapped", family
        assert (bits(second), second.notes, second.weight_bytes, second.weight_types) == wanted, family
        second.close()
    assert len(kept(cache)) == len(families) > 50


def test_a_later_start_maps_what_the_first_one_kept(tmp_path, cache):
    source = model_of(tmp_path)
    first, second = load(source), load(source)
    assert first["packed"] == "being kept" and len(kept(cache)) == 1
    assert second["packed"] == "mapped" and second["again"] is None
    assert any("packed weights: mapped" in line for line in second["lines"])
    plain = load(source, packed_cache=False)
    assert plain["packed"] == "not kept: packed_cache is off"
    assert first["bits"] == second["bits"] == plain["bits"]
    assert {path.name for path in cache.iterdir()} == {kept(cache)[0].name, "lock"}


def test_what_is_quantized_at_load_has_a_file_of_its_own(tmp_path, cache):
    source = model_of(tmp_path)
    as_it_is, smaller = load(source), load(source, quantize="q8_0")
    assert len(kept(cache)) == 2
    assert load(source)["bits"] == as_it_is["bits"]
    assert load(source, quantize="q8_0")["bits"] == smaller["bits"] != as_it_is["bits"]


def cut(path: Path) -> None:
    os.truncate(path, path.stat().st_size - 100)


def empty(path: Path) -> None:
    os.truncate(path, 0)


def alter(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(4096 + 77)
        byte = file.read(1)
        file.seek(-1, os.SEEK_CUR)
        file.write(bytes([byte[0] ^ 1]))


def other_version(path: Path) -> None:
    with open(path, "r+b") as file:
        file.seek(8)
        file.write(b"\x63")


def other_file(path: Path) -> None:
    path.write_text("something else " * 1000)


DAMAGE = [
    (cut, "was cut off"),
    (empty, "was cut off"),
    (alter, "weights were altered"),
    (other_version, "is of another version"),
    (other_file, "holds no packed weights"),
]


@pytest.mark.parametrize(("damage", "words"), DAMAGE)
def test_a_file_that_is_not_sound_is_replaced(tmp_path, cache, damage, words):
    source = model_of(tmp_path)
    first = load(source)
    damage(kept(cache)[0])
    again = load(source)
    assert again["packed"] == "being kept" and again["bits"] == first["bits"]
    said = [line for line in again["lines"] if "not used" in line]
    assert len(said) == 1 and words in said[0] and str(kept(cache)[0]) in said[0]
    last = load(source)
    assert (last["packed"], last["again"], last["bits"]) == ("mapped", None, first["bits"])


def test_a_model_that_changes_is_packed_again(tmp_path, cache):
    source = model_of(tmp_path)
    first = load(source)
    weights = source / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-2:] = b"\x00\x3f"
    weights.write_bytes(content)
    os.utime(weights, (1e9, 1e9))  # as a tool that keeps times does
    changed = load(source)
    assert changed["bits"] != first["bits"] and "other files" in changed["again"]
    assert load(source)["bits"] == changed["bits"] and len(kept(cache)) == 1


def test_weights_that_were_just_written_are_not_kept(tmp_path, cache):
    """Their times would not show that they are written once more."""
    source = copy_family("llama-gqa-tied", tmp_path / "new")
    assert load(source)["packed"] == "being kept" and not kept(cache)


def test_two_processes_that_pack_at_once(tmp_path, cache):
    source = model_of(tmp_path)
    both = [
        subprocess.Popen([*PROGRAM, str(source), "{}"], stdout=subprocess.PIPE, text=True) for _ in range(3)
    ]
    told = [json.loads(process.communicate()[0]) for process in both]
    assert {one["packed"] for one in told} <= {"being kept", "mapped"}
    assert len({one["bits"] for one in told}) == 1 and len(kept(cache)) == 1
    last = load(source)
    assert (last["packed"], last["bits"]) == ("mapped", told[0]["bits"])
    assert not list(cache.glob("*.tmp"))


def test_where_nothing_can_be_written_all_goes_on(tmp_path, cache):
    source = model_of(tmp_path)
    cache.parent.mkdir()
    cache.write_text("a file is in the way")  # as a read-only disk, which root does not feel
    told = load(source)
    assert told["packed"].startswith(f"not kept: {cache}: ")
    assert sum("not kept" in line for line in told["lines"]) == 1


def test_limits(tmp_path, cache, monkeypatch):
    source = model_of(tmp_path)
    for name, value, said, files in (
        ("TALLOW_PACKED_CACHE_GB", "0", "not kept: TALLOW_PACKED_CACHE_GB is 0", 0),
        ("TALLOW_PACKED_CACHE_LEAST_MB", "1", "not kept: so few weights are packed in no time", 0),
        ("TALLOW_PACKED_CACHE_GB", "0.000001", "being kept", 0),  # and there is no room for it
        ("TALLOW_PACKED_CACHE_GB", "1", "being kept", 1),
    ):
        with monkeypatch.context() as patched:
            patched.setenv(name, value)
            assert (load(source)["packed"], len(kept(cache))) == (said, files), (name, value)
    monkeypatch.setenv("TALLOW_PACKED_CACHE_GB", "much")
    with pytest.raises(tallow.InvalidRequestError, match='TALLOW_PACKED_CACHE_GB is "much"'):
        tallow.Model(source, progress=False)


def test_a_process_that_goes_on_says_when_they_are_kept(tmp_path, cache):
    """The thread begins two seconds after the load; the end of a process hurries it."""
    source = model_of(tmp_path)
    model = tallow.Model(source, progress=False)
    assert model.packed == "being kept"
    tallow._core.finish_packed(10)
    assert model.packed == "kept" and len(kept(cache)) == 1
    with pytest.raises(TypeError, match="packed_cache"):
        tallow.Model(source, packed_cache=1)  # type: ignore[arg-type]


def test_list_and_rm(tmp_path, cache, monkeypatch):
    monkeypatch.setattr("sys.argv", ["tallow"])
    own = model_of(tmp_path)
    commit = "0" * 40
    cached = tmp_path / "hub" / "models--org--name" / "snapshots" / commit
    cached.parent.mkdir(parents=True)
    model_of(tmp_path, "qwen3moe-mixed").rename(cached)
    load(own), load(cached), load(cached, quantize="q8_0")
    sizes = {one[3]: 0 for one in tallow._core.packed_files()}
    for _, size, _, source, _ in tallow._core.packed_files():
        sizes[source] += size
    assert sizes.keys() == {str(own.resolve()), str(cached.resolve())}
    told = {one["name"]: one for one in json.loads(run("list", "--json").stdout)}
    assert told["org/name"]["packed_bytes"] == sizes[str(cached.resolve())]
    assert told[str(own.resolve())]["packed_bytes"] == sizes[str(own.resolve())]
    shown = run("list").stdout
    assert "packed weights: " in shown and "packed weights of a file that is in no cache" in shown
    assert run("rm", "--packed", "org/name", "--yes").stdout.startswith(
        "removed packed weights of org/name: "
    )
    assert cached.is_dir() and len(kept(cache)) == 1
    load(cached)
    assert len(kept(cache)) == 2
    assert run("rm", "org/name", "--yes").returncode == 0
    assert not cached.exists() and len(kept(cache)) == 1
    assert run("rm", "--packed", str(own), "--yes").returncode == 0
    assert own.is_dir() and not kept(cache)
    assert run("rm", "--packed", "--yes").stdout == "no packed weights\n"
    assert run("rm").returncode == 2


#: A short training, and the bits that the model has with what it learned.
TRAINING = """
import hashlib, sys
import tallow
model = tallow.Model(sys.argv[1], progress=False)
job = model.train([{"prompt": "Queue: ", "completion": "K1"}], epochs=3, progress=False, seed=1)
logits = model.logits([1, 2, 3], adapter=job.result())
print(model.packed, job.history[-1].loss, hashlib.sha256(logits.tobytes()).hexdigest())
"""


def test_training_passes_mapped_panels(tmp_path, cache, wide_folder):
    source = tmp_path / "wide"
    shutil.copytree(wide_folder, source)
    for path in source.rglob("*"):
        os.utime(path, (1e9, 1e9))
    told = [
        subprocess.check_output([sys.executable, "-c", TRAINING, str(source)], text=True) for _ in range(2)
    ]
    assert told[0].startswith("being kept ") and told[1].startswith("mapped ")
    assert told[0].split()[-2:] == told[1].split()[-2:]
