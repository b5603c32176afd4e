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
