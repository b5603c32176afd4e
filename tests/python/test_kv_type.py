"""What keys and values are kept in: chosen by the model, told, and part of what a prefix belongs to."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import tallow
from conftest import copy_family

# Biases and norms of keys and a latent keep bfloat16.
KINDS = [
    ("llama-gqa-tied", {}, "int8"),
    ("qwen2-tied", {}, "bf16"),
    ("qwen3-yarn", {}, "bf16"),
    ("gemma3-classic", {}, "bf16"),
    ("glm4lite-latent", {}, "bf16"),
    ("gemma3-classic", {"kv_type": "int8"}, "int8"),
    ("glm4lite-latent", {"kv_type": "int8"}, "int8"),
    ("gemma4-ple", {"kv_type": "int8"}, "int8"),
    ("qwen2-tied", {"kv_type": "int8"}, "int8"),
    ("llama-gqa-tied", {"kv_type": "bf16"}, "bf16"),
    ("llama-gqa-tied", {"kv_type": "bfloat16"}, "bf16"),
    ("llama-gqa-tied", {"dtype": "float32"}, "f32"),
    ("llama-gqa-tied", {"kv_type": "f32"}, "f32"),
    ("llama-gqa-tied", {"dtype": "float32", "kv_type": "int8"}, "int8"),
]


@pytest.mark.parametrize(("family", "options", "kind"), KINDS)
def test_the_model_says_what_it_keeps(family: str, options: dict, kind: str, tmp_path: Path) -> None:
    model = tallow.Model(copy_family(family, tmp_path / "model"), **options)
    assert model.kv_type == kind
    assert model.generate("a b c", max_tokens=4).tokens


def test_bytes_take_half(tiny_folder: Path) -> None:
    def bytes_of_a_page(kind: str) -> float:
        model = tallow.Model(tiny_folder, kv_type=kind, kv_memory="1MiB")
        model.generate("a", max_tokens=1)
        return model.stats()["kv_bytes"] / model.stats()["pages"]

    bf16, f32, int8 = (bytes_of_a_page(kind) for kind in ("bf16", "f32", "int8"))
    assert f32 == 2 * bf16
    # Heads of 16: a byte a number and two for the scale of a row.
    assert int8 / bf16 == (16 + 2) / (2 * 16)


def test_another_type_is_another_computation(tiny_folder: Path, tmp_path: Path) -> None:
    ours, other = (tallow.Model(tiny_folder, kv_type=kind) for kind in ("int8", "bf16"))
    assert ours.fingerprint != other.fingerprint
    text = "a b c d e f g h " * 4
    ours.save_prefix(tmp_path / "prefix", text)
    assert tallow.Model(tiny_folder, kv_type="int8", kv_memory="2MiB").load_prefix(tmp_path / "prefix") > 0
    with pytest.raises(tallow.ModelFileError, match="prefix"):
        other.load_prefix(tmp_path / "prefix")


@pytest.mark.parametrize(("source", "bound"), [("smollm2", 4e-3)])
def test_bytes_are_close_to_bfloat16(source: str, bound: float) -> None:
    """Mean Kullback-Leibler divergence of the next token over 400 tokens of English: rounding alone."""
    page = Path(__file__).parents[2] / "CONTRIBUTING.md"
    ids = tallow.Model(source).tokenize(page.read_text(encoding="utf-8"))[:400]

    def log_probabilities(kind: str) -> np.ndarray:
        logits = tallow.Model(source, kv_type=kind).logits(ids).astype(np.float64)
        logits -= logits.max(-1, keepdims=True)
        return logits - np.log(np.exp(logits).sum(-1, keepdims=True))

    bf16, int8 = log_probabilities("bf16"), log_probabilities("int8")
    divergence = (np.exp(bf16) * (bf16 - int8)).sum(-1).mean()
    assert 0 < divergence < bound, divergence


@pytest.mark.parametrize("kind", ["int4", "q8_0", "INT8"])
def test_what_is_not_known_is_refused_with_what_is(kind: str, tiny_folder: Path) -> None:
    with pytest.raises(tallow.InvalidRequestError, match=r"kv_type.*int8.*bf16.*f32"):
        tallow.Model(tiny_folder, kv_type=kind)
