"""Broken files: a typed error that names the file and the field, and nothing half-loaded."""

from __future__ import annotations

import base64
import json
import struct
from pathlib import Path

import pytest

import tallow


def _config(**changes):
    def change(folder: Path) -> None:
        file = folder / "config.json"
        config = json.loads(file.read_text()) | changes
        file.write_text(json.dumps({key: value for key, value in config.items() if value is not ...}))

    return change


def _cut(name: str, size: float):
    """Keeps the first bytes: so many, or that share of them."""

    def change(folder: Path) -> None:
        data = (folder / name).read_bytes()
        (folder / name).write_bytes(data[: int(len(data) * size) if size < 1 else int(size)])

    return change


def _header(edit):
    """Edits the JSON header of the safetensors file."""

    def change(folder: Path) -> None:
        data = (folder / "model.safetensors").read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        header = json.loads(data[8 : 8 + length])
        edit(header)
        text = json.dumps(header).encode()
        (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text + data[8 + length :])

    return change


def _wrong_shape(header) -> None:
    entry = header["model.norm.weight"]
    entry["shape"] = [2, *(size // 2 for size in entry["shape"])]


def _too_far(header) -> None:
    entry = next(entry for name, entry in header.items() if name != "__metadata__")
    entry["shape"], entry["data_offsets"] = [2**40, 2**20], [0, 2**62]


def _lies_about_its_header(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + data[8:])


def _charsmap_cut_short(folder: Path) -> None:
    file = folder / "tokenizer.json"
    # It says that 64 bytes of a trie follow, and 8 do.
    charsmap = base64.b64encode(struct.pack("<I", 64) + bytes(range(1, 9))).decode()
    normalizer = {"type": "Precompiled", "precompiled_charsmap": charsmap}
    file.write_text(json.dumps(json.loads(file.read_text()) | {"normalizer": normalizer}))


def _remove(name: str):
    return lambda folder: (folder / name).unlink()


def _gguf(data: bytes):
    def change(folder: Path) -> None:
        for file in folder.iterdir():
            file.unlink()
        (folder / "model.gguf").write_bytes(data)

    return change


CASES = [
    ("no config", _remove("config.json"), tallow.ModelFileError, ["config.json"]),
    ("no weights", _remove("model.safetensors"), tallow.ModelFileError, ["broken"]),
    ("config no JSON", _cut("config.json", 0.5), tallow.ModelFileError, ["config.json"]),
    ("truncated weights", _cut("model.safetensors", 0.5), tallow.ModelFileError, ["model.safetensors"]),
    ("truncated header", _cut("model.safetensors", 20), tallow.ModelFileError, ["model.safetensors"]),
    ("empty weights", _cut("model.safetensors", 0.0), tallow.ModelFileError, ["model.safetensors"]),
    ("header too long", _lies_about_its_header, tallow.ModelFileError, ["model.safetensors"]),
    ("offsets beyond", _header(_too_far), tallow.ModelFileError, ["model.safetensors"]),
    ("wrong shape", _header(_wrong_shape), tallow.ModelFileError, ["model.norm.weight"]),
    (
        "tensor missing",
        _header(lambda header: header.update(other=header.pop("model.norm.weight"))),
        tallow.ModelFileError,
        ["model.norm.weight"],
    ),
    ("family unknown", _config(model_type="mamba"), tallow.UnsupportedModelError, ["mamba"]),
    ("config too wide", _config(hidden_size=48), tallow.ModelFileError, []),
    ("more layers", _config(num_hidden_layers=9), tallow.ModelFileError, ["layers"]),
    ("many layers", _config(num_hidden_layers=2**40), tallow.ModelFileError, []),
    ("heads do not fit", _config(num_key_value_heads=3), tallow.ModelFileError, []),
    ("negative size", _config(hidden_size=-1), tallow.ModelFileError, ["hidden_size"]),
    ("no size", _config(hidden_size=None), tallow.ModelFileError, ["hidden_size"]),
    ("size of the class", _config(hidden_size=...), tallow.ModelFileError, ["4096", "belong together"]),
    ("size a text", _config(vocab_size="many"), tallow.ModelFileError, ["vocab_size"]),
    ("scaling unknown", _config(rope_scaling={"rope_type": "warp"}), tallow.UnsupportedModelError, ["warp"]),
    ("tokenizer no JSON", _cut("tokenizer.json", 0.5), tallow.ModelFileError, ["tokenizer.json"]),
    ("charsmap cut short", _charsmap_cut_short, tallow.ModelFileError, ["precompiled_charsmap is cut short"]),
    ("no tokenizer", _remove("tokenizer.json"), tallow.ModelFileError, ["tokenizer"]),
    ("GGUF cut", _gguf(b"GGUF\x03\x00\x00\x00"), tallow.ModelFileError, ["model.gguf"]),
    ("GGUF counts", _gguf(b"GGUF\x03\0\0\0" + b"\xff" * 16), tallow.ModelFileError, ["model.gguf"]),
    ("GGUF version", _gguf(b"GGUF\x63\0\0\0" + b"\0" * 16), tallow.Error, ["model.gguf", "version"]),
]


@pytest.mark.parametrize(("change", "error", "parts"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_broken_models_are_refused(broken, change, error, parts):
    folder = broken(change)
    with pytest.raises(error) as caught:
        tallow.Model(folder)
    message = str(caught.value)
    assert not [part for part in parts if part not in message], message
    assert isinstance(caught.value, (OSError, ValueError))


@pytest.mark.parametrize("path", ["/no/such/file.gguf", "/no/such/folder", "./nowhere/model.safetensors"])
def test_missing_files_are_named(path):
    with pytest.raises(tallow.Error) as caught:
        tallow.Model(path)
    assert path.rsplit("/", 1)[1] in str(caught.value)
    assert isinstance(caught.value, OSError)


def test_the_format_is_seen_from_the_bytes(tmp_path):
    file = tmp_path / "model.gguf"
    file.write_bytes(b"this is no model at all, whatever its name says")
    with pytest.raises(tallow.ModelFileError, match=r"model\.gguf"):
        tallow.Model(file)


def test_a_template_must_be_a_template(tiny_folder):
    with pytest.raises(tallow.TemplateError):
        tallow.Model(tiny_folder, chat_template="{% for").render([{"role": "user", "content": "x"}])


def test_a_model_without_template_says_what_to_do(tmp_path):
    from conftest import copy_family

    model = tallow.Model(copy_family("llama-gqa-tied", tmp_path / "plain", template=None))
    assert not model.has_template
    with pytest.raises(tallow.TemplateError, match="chat_template"):
        model.generate([{"role": "user", "content": "x"}])
    assert model.generate("plain text works", max_tokens=3).usage.completion_tokens >= 1
