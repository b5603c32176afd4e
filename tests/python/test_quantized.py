"""Quantized checkpoints of safetensors: each format as its own package writes it (``tests/golden/quantized``, made by
``scripts/golden/quantized.py``) against transformers over the weights that the package dequantizes, and damaged ones.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tallow
from conftest import ROOT, write_tokenizer

FOLDER = ROOT / "tests" / "golden" / "quantized"
LOGITS = np.load(FOLDER / "logits.npz")
NAMES = sorted(path.name for path in FOLDER.iterdir() if path.is_dir())
VOCAB, TOKENS = 64, 24
#: Of logits up to 15. Float products add up in another order; products of blocks take activations of 15 bits.
EXACT, FINE = 2e-4, 4e-3
#: And of 8 bits by default.
COARSE = 0.6

#: What each row is kept as, besides the BF16 of what is plain.
KEPT = {}


def prompt() -> list[int]:
    tokens: list[int] = np.random.RandomState(TOKENS).randint(3, VOCAB, size=TOKENS).tolist()
    return tokens


def load(folder: Path, **options: Any) -> tallow.Model:
    write_tokenizer(folder, VOCAB)
    return tallow.Model(folder, threads=1, progress=False, **options)


@pytest.mark.parametrize("name", NAMES)
def test_a_format_agrees_with_its_own_package(tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(FOLDER / name, tmp_path / name)
    model = load(folder, dtype="float32")
    apart = np.abs(model.logits(prompt()) - LOGITS[name]).max()
    coarse = np.abs(load(folder).logits(prompt()) - LOGITS[name]).max()
    print(f"{name:28} {apart:.1e} {coarse:.2f} {model.weight_types} {model.notes}")
    assert apart <= FINE
    assert coarse <= COARSE
