"""Checkpoints as people bring them: every family with a key absent, null, in its old and its new spelling,
with stray keys and tensors, tied and not, inside a wrapper, and as GGUF.

Each row of ``tests/golden/variants/variants.json`` (made by ``scripts/golden/variants.py``) either has the
logits that transformers computes for it, or is refused with an error that names what is wrong. None may
differ in silence.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import checkpoints
import tallow
from conftest import ROOT, write_tokenizer

FOLDER = ROOT / "tests" / "golden" / "variants"
TABLE: dict[str, Any] = json.loads((FOLDER / "variants.json").read_text())
LOGITS = np.load(FOLDER / "logits.npz")
TOLERANCE = 1e-4


def prompt(length: int) -> np.ndarray:
    low, high = TABLE["ids"]
    return np.random.RandomState(length).randint(low, high, size=length)


def load(folder: Path, row: dict[str, Any]) -> tallow.Model:
    source = checkpoints.write(folder, row, TABLE["bases"])
    if source.is_dir():
        write_tokenizer(source, TABLE["vocab_size"])
    options = {"context_length": row["context_length"]} if "context_length" in row else {}
    return tallow.Model(source, dtype="float32", threads=1, progress=False, **options)


@pytest.fixture
def folder() -> Iterator[Path]:
    """Gone after the test: pytest keeps its own, and there are a thousand rows."""
    with tempfile.TemporaryDirectory() as made:
        yield Path(made)


def rows(kind: str) -> list[Any]:
    found = [row for row in TABLE["rows"] if kind in row]
    return [pytest.param(row, id=row["name"]) for row in found]


@pytest.mark.parametrize("row", rows("logits"))
def test_a_variant_agrees_with_transformers(folder: Path, row: dict[str, Any]) -> None:
    model = load(folder, row)
    want = LOGITS[row["logits"]]
    got = model.logits(prompt(row.get("tokens", TABLE["tokens"])).tolist())[-len(want) :]
    np.testing.assert_allclose(got, want, rtol=0, atol=TOLERANCE, err_msg=row.get("why", ""))
    if "context" in row:
        assert model.context_length == row["context"]


@pytest.mark.parametrize("row", rows("refused"))
def test_a_variant_is_refused_by_name(folder: Path, row: dict[str, Any]) -> None:
    with pytest.raises(tallow.Error) as caught:
        load(folder, row)
    said = str(caught.value)
    for words in row["refused"]:
        named = any(word.lower() in said.lower() for word in words.split("|"))
        assert named, f"{words} is not named in: {said}"


def test_the_table_is_whole() -> None:
    names = [row["name"] for row in TABLE["rows"]]
    assert len(names) >= 200
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("part", ["gate", "up", "down"])
def test_scales_beside_experts_multiply_their_products(folder: Path, part: str) -> None:
    """As NVFP4 files have them, whatever the type; powers of two, so that no digit is lost."""
    base = TABLE["bases"]["qwen3_moe"]
    meta = {key: value for key, value in base["gguf"].items() if value is not None}
    arch = meta["general.architecture"]
    tensors = checkpoints.gguf_tensors(checkpoints.base_tensors(base), arch, base["config"], meta)
    name = next(name for name in sorted(tensors) if name.endswith(f"ffn_{part}_exps.weight"))
    factors = np.exp2(np.arange(len(tensors[name])) % 4 - 2).astype(np.float32)
    multiplied = {**tensors, name: tensors[name] * factors[:, None, None]}
    beside = {**tensors, name.replace(".weight", ".scale"): factors}
    plain, scaled, by_file = (
        _logits(folder / f"{at}.gguf", meta, each) for at, each in enumerate((tensors, multiplied, beside))
    )
    assert np.abs(plain - scaled).max() > 1e-3
    np.testing.assert_allclose(by_file, scaled, rtol=0, atol=1e-5)
    wrong = {**beside, name.replace(".weight", ".scale"): factors[1:]}
    with pytest.raises(tallow.ModelFileError, match=r"exps\.scale has shape"):
        _logits(folder / "wrong.gguf", meta, wrong)


def _logits(path: Path, meta: dict[str, Any], tensors: checkpoints.Tensors) -> np.ndarray:
    checkpoints.write_gguf(path, meta, tensors)
    model = tallow.Model(path, dtype="float32", threads=1, progress=False)
    return model.logits(prompt(TABLE["tokens"]).tolist())
