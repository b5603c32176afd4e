"""GGUF files in the shapes of models that people run, with random weights: speed does not care what they say.

    python benches/shapes.py NAME OUT.gguf [--tokenizer FILE.gguf]
    python benches/shapes.py --list

Matrices are Q8_0, the experts of gpt-oss MXFP4, those of the shapes that `quantize.py` brings to Q4_K_M
float16; vectors and convolutions are float32. Two shapes are cut to a few layers, since all of them would
take tens of gigabytes. The vocabulary is a stand-in of the real size, or that of another file.
Metadata and tensors are those that llama.cpp's converter writes for the architecture, and both tallow and
llama.cpp read the files.

Needs the packages gguf (0.19 or newer) and numpy.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np

Q8_0, MXFP4 = gguf.GGMLQuantizationType.Q8_0, gguf.GGMLQuantizationType.MXFP4
F16 = gguf.GGMLQuantizationType.F16
#: Bytes of a block of 32 weights.
BLOCK = {Q8_0: 34, MXFP4: 17}
#: Name and shape of a tensor, rows first; vectors are float32, the rest is of the type named, or Q8_0.
Tensor = tuple[Any, ...]


def attention(
    at: str, hidden: int, heads: int, kv_heads: int, head: int, q_rows: int = 1
) -> Iterator[Tensor]:
    yield f"{at}.attn_q", heads * head * q_rows, hidden
    yield f"{at}.attn_k", kv_heads * head, hidden
    yield f"{at}.attn_v", kv_heads * head, hidden
    yield f"{at}.attn_output", hidden, heads * head


def feed_forward(at: str, hidden: int, width: int) -> Iterator[Tensor]:
    yield f"{at}.ffn_gate", width, hidden
    yield f"{at}.ffn_up", width, hidden
    yield f"{at}.ffn_down", hidden, width


def qwen35() -> tuple[str, dict[str, Any], list[Tensor]]:
    """Qwen3.5-0.8B: three gated delta nets and an attention layer, six times."""
    hidden, layers, width, vocab = 1024, 24, 3584, 248_320
    heads, kv_heads, head = 8, 2, 256
    groups, state, inner = 16, 128, 2048
    keys = {
        "context_length": 32_768, "embedding_length": hidden, "block_count": layers,
        "feed_forward_length": width,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads, "attention.key_length": head,
        "attention.value_length": head, "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e7,
        "rope.dimension_count": 64, "rope.dimension_sections": [11, 11, 10, 0], "full_attention_interval": 4,
        "ssm.conv_kernel": 4, "ssm.state_size": state, "ssm.group_count": groups,
        "ssm.time_step_rank": groups,
        "ssm.inner_size": inner,
    }  # fmt: skip
    tensors: list[Tensor] = [("token_embd", vocab, hidden), ("output_norm", hidden)]
    for i in range(layers):
        at = f"blk.{i}"
        tensors += [(f"{at}.attn_norm", hidden), (f"{at}.post_attention_norm", hidden)]
        tensors += feed_forward(at, hidden, width)
        if (i + 1) % 4 == 0:
            tensors += [*attention(at, hidden, heads, kv_heads, head, 2), (f"{at}.attn_q_norm", head)]
            tensors += [(f"{at}.attn_k_norm", head)]
            continue
        channels = inner + 2 * groups * state
        tensors += [(f"{at}.attn_qkv", channels, hidden), (f"{at}.attn_gate", inner, hidden)]
        tensors += [(f"{at}.ssm_conv1d", channels, 4, "float"), (f"{at}.ssm_dt.bias", groups)]
        tensors += [(f"{at}.ssm_a.", groups), (f"{at}.ssm_beta", groups, hidden)]
        tensors += [(f"{at}.ssm_alpha", groups, hidden), (f"{at}.ssm_norm", state)]
        tensors += [(f"{at}.ssm_out", hidden, inner)]
    return "qwen35", keys, tensors


def lfm2() -> tuple[str, dict[str, Any], list[Tensor]]:
    """LFM2-350M: ten short convolutions, six attention layers."""
    hidden, layers, width, vocab = 1024, 16, 4608, 65_536
    full = (2, 5, 8, 10, 12, 14)
    keys = {
        "context_length": 32_768, "embedding_length": hidden, "block_count": layers,
        "feed_forward_length": width,
        "attention.head_count": 16, "attention.head_count_kv": [8 * (i in full) for i in range(layers)],
        "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 1e6, "shortconv.l_cache": 3,
        "vocab_size": vocab,
    }  # fmt: skip
    tensors: list[Tensor] = [("token_embd", vocab, hidden), ("token_embd_norm", hidden)]
    for i in range(layers):
        at = f"blk.{i}"
        tensors += [(f"{at}.attn_norm", hidden), (f"{at}.ffn_norm", hidden), *feed_forward(at, hidden, width)]
        if i in full:
            tensors += [
                *attention(at, hidden, 16, 8, 64),
                (f"{at}.attn_q_norm", 64),
                (f"{at}.attn_k_norm", 64),
            ]
            continue
        tensors += [
            (f"{at}.shortconv.conv", hidden, 3, "float"),
            (f"{at}.shortconv.in_proj", 3 * hidden, hidden),
        ]
        tensors += [(f"{at}.shortconv.out_proj", hidden, hidden)]
    return "lfm2", keys, tensors


def granite_h() -> tuple[str, dict[str, Any], list[Tensor]]:
    """Granite-4.0-h-350M: 28 Mamba-2 layers, four attention layers."""
    hidden, layers, width, vocab = 768, 32, 2048, 100_352
    full, heads, state, inner = (10, 13, 17, 27), 48, 128, 1536
    keys = {
        "context_length": 32_768, "embedding_length": hidden, "block_count": layers,
        "feed_forward_length": width,
        "attention.head_count": 12, "attention.head_count_kv": [4 * (i in full) for i in range(layers)],
        "attention.layer_norm_rms_epsilon": 1e-5, "attention.scale": 0.015625, "embedding_scale": 12.0,
        "residual_scale": 0.246, "logit_scale": 3.0, "rope.dimension_count": 64, "rope.freq_base": 1e4,
        "rope.scaling.finetuned": False, "vocab_size": vocab, "ssm.conv_kernel": 4, "ssm.state_size": state,
        "ssm.group_count": 1, "ssm.inner_size": inner, "ssm.time_step_rank": heads,
    }  # fmt: skip
    tensors: list[Tensor] = [("token_embd", vocab, hidden), ("output_norm", hidden)]
    for i in range(layers):
        at = f"blk.{i}"
        tensors += [(f"{at}.attn_norm", hidden), (f"{at}.ffn_norm", hidden), *feed_forward(at, hidden, width)]
        if i in full:
            tensors += attention(at, hidden, 12, 4, 64)
            continue
        channels = inner + 2 * state
        tensors += [
            (f"{at}.ssm_in", inner + channels + heads, hidden),
            (f"{at}.ssm_conv1d", channels, 4, "float"),
        ]
        tensors += [
            (f"{at}.ssm_conv1d.bias", channels),
            (f"{at}.ssm_dt.bias", heads),
            (f"{at}.ssm_a.", heads, 1, "float"),
        ]
        tensors += [(f"{at}.ssm_d.", heads, 1, "float"), (f"{at}.ssm_norm", 1, inner, "float")]
        tensors += [(f"{at}.ssm_out", hidden, inner)]
    return "granitehybrid", keys, tensors


def olmoe() -> tuple[str, dict[str, Any], list[Tensor]]:
    """OLMoE-1B-7B, cut to four of its sixteen layers: eight of 64 experts a token."""
    hidden, layers, width, vocab, experts = 2048, 4, 1024, 50_304, 64
    keys = {
        "context_length": 4096, "embedding_length": hidden, "block_count": layers,
        "feed_forward_length": width,
        "attention.head_count": 16, "attention.head_count_kv": 16, "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.freq_base": 1e4, "expert_count": experts, "expert_used_count": 8,
    }  # fmt: skip
    tensors: list[Tensor] = [
        ("token_embd", vocab, hidden),
        ("output_norm", hidden),
        ("output", vocab, hidden),
    ]
    for i in range(layers):
        at = f"blk.{i}"
        tensors += [
            (f"{at}.attn_norm", hidden),
            (f"{at}.ffn_norm", hidden),
            *attention(at, hidden, 16, 16, 128),
        ]
        tensors += [(f"{at}.attn_q_norm", hidden), (f"{at}.attn_k_norm", hidden)]
        tensors += [
            (f"{at}.ffn_gate_inp", experts, hidden, "float"),
            (f"{at}.ffn_gate_exps", experts, width, hidden),
        ]
        tensors += [
            (f"{at}.ffn_up_exps", experts, width, hidden),
            (f"{at}.ffn_down_exps", experts, hidden, width),
        ]
    return "olmoe", keys, tensors


def gpt_oss() -> tuple[str, dict[str, Any], list[Tensor]]:
    """gpt-oss-20b, cut to two of its 24 layers: four of 32 experts a token."""
    hidden, layers, vocab, experts = 2880, 2, 201_088, 32
    keys = {
        "context_length": 32_768, "embedding_length": hidden, "block_count": layers,
        "feed_forward_length": hidden,
        "attention.head_count": 64, "attention.head_count_kv": 8, "attention.key_length": 64,
        "attention.value_length": 64, "attention.layer_norm_rms_epsilon": 1e-5,
        "attention.sliding_window": 128,
        "rope.freq_base": 150_000.0, "rope.scaling.type": "yarn", "rope.scaling.factor": 32.0,
        "rope.scaling.original_context_length": 4096, "expert_count": experts, "expert_used_count": 4,
        "expert_feed_forward_length": hidden,
    }  # fmt: skip
    tensors: list[Tensor] = [
        ("token_embd", vocab, hidden),
        ("output_norm", hidden),
        ("output", vocab, hidden),
    ]
    for i in range(layers):
        at = f"blk.{i}"
        tensors += [(f"{at}.attn_norm", hidden), (f"{at}.post_attention_norm", hidden)]
        tensors += [*attention(at, hidden, 64, 8, 64), (f"{at}.attn_sinks", 64)]
        tensors += [(f"{at}.attn_q.bias", 4096), (f"{at}.attn_k.bias", 512), (f"{at}.attn_v.bias", 512)]
        tensors += [(f"{at}.attn_output.bias", hidden), (f"{at}.ffn_gate_inp", experts, hidden, "float")]
        tensors += [(f"{at}.ffn_gate_inp.bias", experts)]
        for part in ("gate", "up", "down"):
            tensors += [(f"{at}.ffn_{part}_exps", experts, hidden, hidden, MXFP4)]
            tensors += [(f"{at}.ffn_{part}_exps.bias", experts, hidden, "float")]
    return "gpt-oss", keys, tensors


def smollm2() -> tuple[str, dict[str, Any], list[Tensor]]:
    """SmolLM2-1.7B, for Q4_K_M: the large model of `make bench`."""
    keys = dense_keys(2048, 24, 8192, 32, 32, 64) | {
        "context_length": 8192, "attention.layer_norm_rms_epsilon": 1e-5, "rope.freq_base": 130_000.0,
    }  # fmt: skip
    return "llama", keys, dense(2048, 24, 8192, 49_152, (32, 32, 64), head_norms=False)


def qwen3() -> tuple[str, dict[str, Any], list[Tensor]]:
    """Qwen3-0.6B, for Q4_K_M."""
    keys = dense_keys(1024, 28, 3072, 16, 8, 128) | {
        "context_length": 40_960, "attention.layer_norm_rms_epsilon": 1e-6, "rope.freq_base": 1e6,
    }  # fmt: skip
    return "qwen3", keys, dense(1024, 28, 3072, 151_936, (16, 8, 128), head_norms=True)


def dense_keys(hidden: int, layers: int, width: int, heads: int, kv_heads: int, head: int) -> dict[str, Any]:
    return {
        "embedding_length": hidden, "block_count": layers, "feed_forward_length": width,
        "attention.head_count": heads, "attention.head_count_kv": kv_heads, "attention.key_length": head,
        "attention.value_length": head, "rope.dimension_count": head,
    }  # fmt: skip


def dense(
    hidden: int, layers: int, width: int, vocab: int, heads: tuple[int, int, int], head_norms: bool
) -> list[Tensor]:
    """A plain transformer whose head is its embedding, in float16."""
    tensors: list[Tensor] = [("token_embd", vocab, hidden, F16), ("output_norm", hidden)]
    for i in range(layers):
        at = f"blk.{i}"
        tensors += [(f"{at}.attn_norm", hidden), (f"{at}.ffn_norm", hidden)]
        matrices = [*attention(at, hidden, *heads), *feed_forward(at, hidden, width)]
        tensors += [(*matrix, F16) for matrix in matrices]
        if head_norms:
            tensors += [(f"{at}.attn_q_norm", heads[2]), (f"{at}.attn_k_norm", heads[2])]
    return tensors


SHAPES: dict[str, Callable[[], tuple[str, dict[str, Any], list[Tensor]]]] = {
    "qwen3.5-0.8b": qwen35,
    "lfm2-350m": lfm2,
    "granite-4-h-350m": granite_h,
    "olmoe-1b-7b-4-layers": olmoe,
    "gpt-oss-20b-2-layers": gpt_oss,
    "smollm2-1.7b": smollm2,
    "qwen3-0.6b": qwen3,
}


def add_key(writer: gguf.GGUFWriter, key: str, value: Any) -> None:
    if isinstance(value, bool):
        writer.add_bool(key, value)
    elif isinstance(value, int):
        writer.add_uint32(key, value)
    elif isinstance(value, float):
        writer.add_float32(key, value)
    elif isinstance(value, str):
        writer.add_string(key, value)
    else:
        writer.add_array(key, value)


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """Single characters, and words that nothing makes."""
    letters = [chr(c) for c in range(ord("!"), ord("~") + 1)]
    tokens = ["<unk>", "<s>", "</s>", "\u0120", "\u010a", "in", *letters]
    tokens += [f"word{i}" for i in range(size - len(tokens))]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([gguf.TokenType.CONTROL] * 3 + [gguf.TokenType.NORMAL] * (size - 3))
    writer.add_token_merges(["i n"])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_add_bos_token(False)


def copy_tokenizer(writer: gguf.GGUFWriter, path: Path) -> None:
    """The tokenizer and the chat template of another file."""
    for key, field in gguf.GGUFReader(path).fields.items():
        if not key.startswith("tokenizer."):
            continue
        value = field.contents()
        if field.types[0] == gguf.GGUFValueType.ARRAY:
            writer.add_array(key, value)
        else:
            writer.add_key_value(key, value, field.types[0])


def floats(name: str, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """Norms are 1, decays negative, the rest is small."""
    if "norm" in name or name.endswith((".ssm_d.", ".ssm_dt.bias")):
        return np.ones(shape, np.float32)
    if name.endswith(".ssm_a."):
        return -np.ones(shape, np.float32)
    return draw.normal(0, 0.05, shape).astype(np.float32)


def blocks(kind: Any, shape: tuple[int, ...], draw: np.random.Generator) -> np.ndarray:
    """Random weights of about 0.02: bytes behind a scale."""
    if kind == F16:
        return (draw.standard_normal(shape, np.float32) * 0.02).astype(np.float16)
    width = shape[-1] // 32 * BLOCK[kind]
    pool = draw.integers(0, 256, (min(shape[-2], 256), width // BLOCK[kind], BLOCK[kind]), dtype=np.uint8)
    if kind == Q8_0:
        pool[..., :2] = np.frombuffer(np.float16(2.7e-4).tobytes(), np.uint8)
    else:
        pool[..., 0] = 120  # 2^-8 of values up to 12 halves
    rows = np.resize(pool.reshape(len(pool), width), (int(np.prod(shape[:-1])), width))
    return rows.reshape(*shape[:-1], width)


def write(name: str, path: Path, tokenizer: Path | None) -> None:
    architecture, keys, tensors = SHAPES[name]()
    writer, draw = gguf.GGUFWriter(path, architecture), np.random.default_rng(0)
    writer.add_type(gguf.GGUFType.MODEL)
    writer.add_name(f"random {name}")
    halves = tensors[0][-1] == F16
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if halves else gguf.LlamaFileType.MOSTLY_Q8_0)
    for key, value in keys.items():
        add_key(writer, f"{architecture}.{key}", value)
    if tokenizer:
        copy_tokenizer(writer, tokenizer)
    else:
        add_vocabulary(writer, tensors[0][1])
    for tensor, *rest in tensors:
        # Types are whole numbers, too.
        kind = rest.pop() if type(rest[-1]) is not int else Q8_0
        shape = tuple(rest)
        named = tensor.rstrip(".") if tensor.endswith((".", ".bias")) else f"{tensor}.weight"
        if len(shape) == 1 or kind == "float":
            writer.add_tensor(named, floats(tensor, shape, draw))
        else:
            writer.add_tensor(named, blocks(kind, shape, draw), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", nargs="?", choices=SHAPES, metavar="NAME")
    parser.add_argument("out", nargs="?", type=Path, metavar="OUT.gguf")
    parser.add_argument("--tokenizer", type=Path, metavar="FILE.gguf", help="whose tokenizer it gets")
    parser.add_argument("--list", action="store_true", help="say which shapes there are")
    args = parser.parse_args()
    if args.list or not args.out:
        for name, shape in SHAPES.items():
            print(f"{name:22}{(shape.__doc__ or '').strip()}")
        return
    write(args.name, args.out, args.tokenizer)
    print(f"{args.out}: {args.out.stat().st_size / 2**30:.2f} GiB")


if __name__ == "__main__":
    main()
