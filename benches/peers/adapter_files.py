"""LoRA adapters of random numbers for a benchmark, in the forms that engines read: a PEFT folder and
llama.cpp's GGUF. Both hold the same numbers.

The shapes are those of a plain transformer as `Model.config` tells them, all seven projections. Factors are
small, so that an adapted model still writes text, but another one.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ALPHA_OVER_RANK = 2
#: How large an adapter's part is beside its input, in a projection.
STRENGTH = 0.1
#: Of the families here llama.cpp turns the rows of these two for the old RoPE alone.
TURNED = {"llama": ("q_proj", "k_proj")}
GGUF_NAMES = {
    "q_proj": "attn_q",
    "k_proj": "attn_k",
    "v_proj": "attn_v",
    "o_proj": "attn_output",
    "gate_proj": "ffn_gate",
    "up_proj": "ffn_up",
    "down_proj": "ffn_down",
}
ALIGNED = 32
STRING, FLOAT32 = 8, 6  # GGUF's types of values

Pair = tuple[np.ndarray, np.ndarray]


def projections(config: dict[str, Any]) -> dict[str, tuple[int, int]]:
    """Name -> (outputs, inputs)."""
    hidden, inner = config["hidden_size"], config["intermediate_size"]
    queries, keys = (config[name] * config["head_dim"] for name in ("num_heads", "num_kv_heads"))
    return {
        "q_proj": (queries, hidden),
        "k_proj": (keys, hidden),
        "v_proj": (keys, hidden),
        "o_proj": (hidden, queries),
        "gate_proj": (inner, hidden),
        "up_proj": (inner, hidden),
        "down_proj": (hidden, inner),
    }


def pairs(config: dict[str, Any], rank: int, seed: int) -> Iterator[tuple[int, str, Pair]]:
    """Layer, projection, and its A [rank, inputs] and B [outputs, rank]."""
    draw = np.random.default_rng(seed)
    for layer in range(config["num_layers"]):
        for name, (outputs, inputs) in projections(config).items():
            a = draw.normal(0, inputs**-0.5, (rank, inputs)).astype(np.float32)
            b = draw.normal(0, STRENGTH * rank**-0.5, (outputs, rank)).astype(np.float32)
            yield layer, name, (a, b)


def write(folder: Path, config: dict[str, Any], rank: int, seed: int) -> tuple[str, str]:
    """Writes an adapter twice: the PEFT folder, and the GGUF file."""
    folder.mkdir(parents=True, exist_ok=True)
    every = list(pairs(config, rank, seed))
    write_peft(folder, every, rank)
    write_gguf(folder / "adapter.gguf", every, config, rank)
    return str(folder), str(folder / "adapter.gguf")


def write_peft(folder: Path, every: list[tuple[int, str, Pair]], rank: int) -> None:
    tensors = {}
    for layer, name, (a, b) in every:
        block = "self_attn" if name in ("q_proj", "k_proj", "v_proj", "o_proj") else "mlp"
        path = f"base_model.model.model.layers.{layer}.{block}.{name}"
        tensors |= {f"{path}.lora_A.weight": a, f"{path}.lora_B.weight": b}
    header, at = {}, 0
    for name, tensor in tensors.items():
        header[name] = {"dtype": "F32", "shape": tensor.shape, "data_offsets": [at, at + tensor.nbytes]}
        at += tensor.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "adapter_model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for tensor in tensors.values():
            file.write(tensor.tobytes())
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": None,
        "r": rank,
        "lora_alpha": ALPHA_OVER_RANK * rank,
        "target_modules": list(GGUF_NAMES),
    }
    (folder / "adapter_config.json").write_text(json.dumps(config, indent=1), encoding="utf-8")


def write_gguf(path: Path, every: list[tuple[int, str, Pair]], config: dict[str, Any], rank: int) -> None:
    family, tensors = config["family"], {}
    for layer, name, (a, b) in every:
        if name in TURNED.get(family, ()):
            b = b.reshape(-1, 2, config["head_dim"] // 2, rank).swapaxes(1, 2).reshape(b.shape)
        key = f"blk.{layer}.{GGUF_NAMES[name]}.weight"
        tensors |= {f"{key}.lora_a": a, f"{key}.lora_b": np.ascontiguousarray(b)}
    facts = {"general.type": "adapter", "general.architecture": family, "adapter.type": "lora"}
    values = [string(key) + struct.pack("<I", STRING) + string(value) for key, value in facts.items()]
    alpha = struct.pack("<If", FLOAT32, ALPHA_OVER_RANK * rank)
    values.append(string("adapter.lora.alpha") + alpha)
    head = [b"GGUF", struct.pack("<IQQ", 3, len(tensors), len(values)), *values]
    at = 0
    for name, tensor in tensors.items():
        # Dimensions from the innermost; type 0 is f32.
        head.append(string(name) + struct.pack("<IQQIQ", 2, *reversed(tensor.shape), 0, at))
        at += tensor.nbytes + -tensor.nbytes % ALIGNED
    whole = b"".join(head)
    with open(path, "wb") as file:
        file.write(whole + bytes(-len(whole) % ALIGNED))
        for tensor in tensors.values():
            file.write(tensor.tobytes() + bytes(-tensor.nbytes % ALIGNED))


def string(text: str) -> bytes:
    return struct.pack("<Q", len(text.encode())) + text.encode()
