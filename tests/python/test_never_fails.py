"""Random Signatures on a model with random weights: every answer parses at the first call, and every type and
constraint that the Signature declares holds. Nothing here depends on the model being any good.

``TALLOW_SIGNATURES=2000`` tries so many Signatures with each adapter.
"""

from __future__ import annotations

import json
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

import tallow
from conftest import SPECIALS, copy_family, needed

dspy = needed("dspy")
from dspy.adapters.baml_adapter import BAMLAdapter  # noqa: E402

import signatures  # noqa: E402

COUNT = int(os.environ.get("TALLOW_SIGNATURES", "24"))
ADAPTERS = {
    "chat": dspy.ChatAdapter(),
    "json": dspy.JSONAdapter(),
    "xml": dspy.XMLAdapter(),
    "baml": BAMLAdapter(),
}
#: Tokens of several characters, so that a text that is picked at random ends now and then.
LONG = (
    "ĊĊ[[Ġ##",
    "ĊĊ[[Ġ##Ġ",
    "Ġ##Ġ]]Ċ",
    '":Ġ',
    '":Ġ"',
    '",Ġ"',
    '"}',
    '"]',
    "</",
    ">ĊĊ<",
    "Ċ</",
    "Ġthe",
    "1.5",
    "true",
)


def byte_alphabet() -> list[str]:
    """The 256 characters that stand for bytes in a byte-level tokenizer."""
    shown = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [byte for byte in range(256) if byte not in shown]
    names = {byte: chr(byte) for byte in shown} | {byte: chr(256 + at) for at, byte in enumerate(hidden)}
    return [names[byte] for byte in range(256)]


def widen(folder: Path) -> None:
    """Gives a tiny checkpoint a token for each byte and room for DSPy's prompts."""
    tokens = [*SPECIALS, *byte_alphabet(), *LONG]
    path = folder / "tokenizer.json"
    tokenizer = json.loads(path.read_text())
    tokenizer["model"]["vocab"] = {token: id for id, token in enumerate(tokens)}
    path.write_text(json.dumps(tokenizer))
    path = folder / "config.json"
    config = json.loads(path.read_text()) | {"vocab_size": len(tokens), "max_position_embeddings": 32768}
    path.write_text(json.dumps(config))
    embed(
        folder / "model.safetensors",
        np.random.default_rng(0).normal(size=(len(tokens), config["hidden_size"])),
    )


def embed(path: Path, rows: np.ndarray) -> None:
    """Replaces the embedding of a safetensors file."""
    raw = path.read_bytes()
    (size,) = struct.unpack_from("<Q", raw)
    header, data = json.loads(raw[8 : 8 + size]), raw[8 + size :]
    header.pop("__metadata__", None)
    tensors = {name: data[slice(*entry["data_offsets"])] for name, entry in header.items()}
    name = "model.embed_tokens.weight"
    header[name] |= {"dtype": "F32", "shape": list(rows.shape)}
    tensors[name] = rows.astype("<f4").tobytes()
    at = 0
    for name, entry in header.items():
        entry["data_offsets"] = [at, at + len(tensors[name])]
        at += len(tensors[name])
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(tensors[name] for name in header))


@pytest.fixture(scope="module")
def lm(tmp_path_factory):
    folder = copy_family("llama-gqa-tied", tmp_path_factory.mktemp("models") / "wide")
    widen(folder)
    return tallow.LM(tallow.Model(folder), temperature=1.0, max_tokens=1500, cache=False)


def failure(lm, adapter, seed: int) -> str | None:
    """What went wrong with the Signature of this seed; None if nothing did."""
    signature = signatures.make(seed)
    try:
        adapter.format(signature, [], {"question": "?"})
    except Exception:  # BAMLAdapter refuses recursive models, whatever the language model
        return None
    own = lm.copy(seed=seed)
    try:
        with dspy.context(lm=own, adapter=adapter):
            prediction = dspy.Predict(signature)(question="?")
    except Exception as error:
        return f"seed {seed}: {type(error).__name__}: {error}"
    if len(own.history) != 1:
        return f"seed {seed}: took {len(own.history)} calls"
    broken = signatures.broken(signature, prediction)
    return f"seed {seed}: {broken[0]}" if broken else None


@pytest.mark.parametrize("name", ADAPTERS)
def test_every_answer_parses_at_the_first_call(lm, name):
    with ThreadPoolExecutor(8) as pool:
        found = list(pool.map(lambda seed: failure(lm, ADAPTERS[name], seed), range(COUNT)))
    assert not [one for one in found if one is not None]
