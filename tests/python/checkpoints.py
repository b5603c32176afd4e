"""Tiny checkpoints out of a table: seeded weights, edits of them, and the writers of safetensors and GGUF.

``scripts/golden/variants.py`` writes a row's folder with this module for transformers to read, and
``test_variants.py`` writes the same bytes for tallow. Weights are named, not stored: each is drawn by its
name with ``RandomState``, whose stream numpy promises to keep, and is a number that float16 holds exactly.
"""

from __future__ import annotations

import fnmatch
import functools
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

Tensors = dict[str, np.ndarray]

#: What a row may do to the tensors: ``[verb, *arguments]``, in order. Patterns are fnmatch's.
VERBS: dict[str, Callable[..., None]] = {}


def verb(function: Callable[..., None]) -> Callable[..., None]:
    VERBS[function.__name__] = function
    return function


def matching(tensors: Tensors, pattern: str) -> list[str]:
    names = [name for name in tensors if fnmatch.fnmatchcase(name, pattern)]
    assert names, f"no tensor is called {pattern}"
    return names


@verb
def drop(tensors: Tensors, pattern: str) -> None:
    for name in matching(tensors, pattern):
        del tensors[name]


@verb
def make(tensors: Tensors, name: str, shape: list[int]) -> None:
    """A new tensor, or one of another shape."""
    tensors[name] = weight(name, shape)


@verb
def copy(tensors: Tensors, name: str, new: str) -> None:
    tensors[new] = tensors[name]


@verb
def rename(tensors: Tensors, prefix: str, new: str) -> None:
    for name in [name for name in tensors if name.startswith(prefix)]:
        tensors[new + name.removeprefix(prefix)] = tensors.pop(name)


@verb
def cast(tensors: Tensors, pattern: str, kind: str) -> None:
    for name in matching(tensors, pattern):
        tensors[name] = bf16(tensors[name]) if kind == "BF16" else tensors[name].astype(kind)


@verb
def scale(tensors: Tensors, pattern: str, factor: float) -> None:
    for name in matching(tensors, pattern):
        tensors[name] = tensors[name] * np.float32(factor)


@verb
def fill(tensors: Tensors, name: str, values: list[float]) -> None:
    tensors[name] = np.array(values, np.float32)


@verb
def stack(tensors: Tensors, name: str, parts: list[str]) -> None:
    """The rows of ``parts`` below one another."""
    tensors[name] = np.concatenate([tensors[part] for part in parts])


@verb
def pile(tensors: Tensors, name: str, parts: list[list[str]]) -> None:
    """One tensor of several matrices, each made of the rows of some; these are gone."""
    tensors[name] = np.stack([np.concatenate([tensors[part] for part in some]) for some in parts])
    for part in [part for some in parts for part in some]:
        del tensors[part]


@verb
def unpile(tensors: Tensors, name: str, pattern: str) -> None:
    """The other way: ``pattern`` with a number for each matrix."""
    for number, matrix in enumerate(tensors.pop(name)):
        tensors[pattern.format(number)] = matrix


class BFloat16(np.ndarray):
    """The upper halves of float32 numbers, as uint16."""


def bf16(array: np.ndarray) -> np.ndarray:
    """Rounded to nearest, ties to even."""
    bits = array.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).view(BFloat16)


def weight(name: str, shape: list[int], shift: float = 1.0) -> np.ndarray:
    """The float32 weight of this name. Large enough that a mistake anywhere moves the logits; norms lie about
    ``shift``. Not to be written to."""
    return _weight(name, tuple(shape), shift)


@functools.cache
def _weight(name: str, shape: tuple[int, ...], shift: float) -> np.ndarray:
    stream = np.random.RandomState(zlib.crc32(name.encode()))
    noise = stream.randint(-1024, 1025, size=shape).astype(np.float32) / 1024
    if "norm" in name and name.endswith("weight"):
        return np.round(noise * 64) / 256 + np.float32(shift)
    return noise if "embed" in name or "lm_head" in name else noise / 2


def base_tensors(base: dict[str, Any]) -> Tensors:
    return {name: weight(name, shape, base["norm_shift"]) for name, shape in base["tensors"].items()}


def edited(tensors: Tensors, edits: list[list[Any]]) -> Tensors:
    for name, *arguments in edits:
        VERBS[name](tensors, *arguments)
    return tensors


def configured(config: dict[str, Any], changes: dict[str, Any], without: list[str]) -> dict[str, Any]:
    """``changes`` and ``without`` name nested fields with dots (``text_config.rope_theta``)."""
    config = json.loads(json.dumps(config))

    def place(path: str) -> tuple[dict[str, Any], str]:
        *outer, key = path.split(".")
        inside = config
        for name in outer:
            inside = inside.setdefault(name, {})
        return inside, key

    for path in without:
        inside, key = place(path)
        del inside[key]
    for path, value in changes.items():
        inside, key = place(path)
        inside[key] = value
    return config


def write(folder: Path, row: dict[str, Any], bases: dict[str, Any]) -> Path:
    """Writes the row's checkpoint; returns what to load: the folder, or the GGUF file in it."""
    folder.mkdir(parents=True, exist_ok=True)
    base = bases[row["base"]]
    tensors = edited(base_tensors(base), row.get("tensors", []))
    if "gguf" not in row:
        config = configured(base["config"], row.get("config", {}), row.get("without", []))
        (folder / "config.json").write_text(json.dumps(config))
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    meta = {key: value for key, value in {**base["gguf"], **row["gguf"]}.items() if value is not None}
    tensors = gguf_tensors(tensors, meta["general.architecture"], base["config"], meta)
    path = folder / "model.gguf"
    write_gguf(path, meta, edited(tensors, row.get("gguf_tensors", [])))
    return path


KINDS = {"float16": "F16", "float32": "F32", "float64": "F64", "uint8": "U8", "int8": "I8", "int32": "I32"}


def write_safetensors(path: Path, tensors: Tensors) -> None:
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, array in tensors.items():
        kind = "BF16" if isinstance(array, BFloat16) else KINDS[array.dtype.name]
        header[name] = {"dtype": kind, "shape": array.shape, "data_offsets": [at, at + array.nbytes]}
        at += array.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(array.tobytes() for array in tensors.values())
    path.write_bytes(struct.pack("<Q", len(text)) + text + body)


# -- GGUF ---------------------------------------------------------------------------------------------------

#: Module of transformers -> llama.cpp's name.
GGUF_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "model.final_layernorm": "output_norm",
    "lm_head": "output",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ffn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.qkv_proj": "attn_qkv",
    "self_attn.o_proj": "attn_output",
    "self_attn.dense": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.gate_up_proj": "ffn_up",
    "mlp.up_proj": "ffn_up",
    "mlp.fc1": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "mlp.fc2": "ffn_down",
    "mlp.gate": "ffn_gate_inp",
    "mlp.experts.gate_proj": "ffn_gate_exps",
    "mlp.experts.up_proj": "ffn_up_exps",
    "mlp.experts.down_proj": "ffn_down_exps",
}
#: Mixtral's names of the same.
EXPERTS = {"block_sparse_moe": "mlp", "w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}
FOUR_NORMS = {
    "post_attention_layernorm": "post_attention_norm",
    "pre_feedforward_layernorm": "ffn_norm",
    "post_feedforward_layernorm": "post_ffw_norm",
}
#: Gemma 2 and 3 have a norm after attention as well; Seed-OSS calls that before the MLP so.
OTHER_NAMES = {
    "gemma2": FOUR_NORMS,
    "gemma3": FOUR_NORMS,
    "seed_oss": {"post_attention_layernorm": "post_attention_norm"},
}
#: The architectures whose rows of q and k are interleaved for rotation of neighbouring pairs.
PERMUTED = ("llama", "smollm3")


def gguf_tensors(tensors: Tensors, arch: str, config: dict[str, Any], meta: dict[str, Any]) -> Tensors:
    """The weights under llama.cpp's names: permuted and shifted as it wants them."""
    names = GGUF_NAMES | OTHER_NAMES.get(arch, {})
    heads = {"q_proj": config["num_attention_heads"], "k_proj": config["num_key_value_heads"]}
    if f"{arch}.attention.head_count_kv" not in meta:
        heads["k_proj"] = heads["q_proj"]
    made = {}
    for name, array in stacked(tensors).items():
        module, _, kind = name.rpartition(".")
        if arch in PERMUTED and module.rpartition(".")[2] in heads:
            array = interleaved(array, heads[module.rpartition(".")[2]])
        if arch.startswith("gemma") and name.endswith("norm.weight"):
            array = array + np.float32(1)
        if module.startswith("model.layers."):
            _, _, layer, part = module.split(".", 3)
            made[f"blk.{layer}.{names[part]}.{kind}"] = array
        else:
            made[f"{names[module]}.{kind}"] = array
    return made


def stacked(tensors: Tensors) -> Tensors:
    """One tensor for all experts of a layer."""
    stacks: dict[str, list[np.ndarray]] = {}
    made = {}
    for name, array in tensors.items():
        parts = [EXPERTS.get(part, part) for part in name.split(".")]
        if "experts" in parts:
            # Names come in the order of their experts: there are fewer than ten.
            number = parts.pop(parts.index("experts") + 1)
            stack = stacks.setdefault(".".join(parts), [])
            assert len(stack) == int(number)
            stack.append(array)
        else:
            made[".".join(parts)] = array
    return made | {name: np.stack(stack) for name, stack in stacks.items()}


def interleaved(array: np.ndarray, heads: int) -> np.ndarray:
    """Rows of each head from halves (0..h/2, h/2..h) to neighbouring pairs."""
    halves = array.reshape(heads, 2, array.shape[0] // heads // 2, *array.shape[1:])
    return np.ascontiguousarray(halves.swapaxes(1, 2).reshape(array.shape))


GGUF_KINDS = {"float32": 0, "float16": 1, "int8": 24, "float64": 28}


def write_gguf(path: Path, meta: dict[str, Any], tensors: Tensors) -> None:
    infos, body, at = b"", b"", 0
    for name, array in tensors.items():
        kind = 30 if isinstance(array, BFloat16) else GGUF_KINDS[array.dtype.name]
        shape = array.shape[::-1]
        infos += _text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, at)
        data = array.tobytes()
        body += data + b"\0" * (-len(data) % 32)
        at = len(body)
    head = b"GGUF" + struct.pack("<IQQ", 3, len(tensors), len(meta))
    head += b"".join(_text(key) + _value(value) for key, value in meta.items()) + infos
    path.write_bytes(head + b"\0" * (-len(head) % 32) + body)


def _text(value: str) -> bytes:
    data = value.encode()
    return struct.pack("<Q", len(data)) + data


def _plain(value: Any) -> tuple[int, bytes]:
    """Type number and bytes: bool, str, u32 (i32 if negative), f32."""
    if isinstance(value, bool):
        return 7, struct.pack("<?", value)
    if isinstance(value, str):
        return 8, _text(value)
    if isinstance(value, int):
        return (5, struct.pack("<i", value)) if value < 0 else (4, struct.pack("<I", value))
    return 6, struct.pack("<f", value)


def _value(value: Any) -> bytes:
    if not isinstance(value, list):
        kind, data = _plain(value)
        return struct.pack("<I", kind) + data
    kind = _plain(value[0])[0] if value else 8
    return struct.pack("<IIQ", 9, kind, len(value)) + b"".join(_plain(one)[1] for one in value)
