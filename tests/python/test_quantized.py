"""Quantized checkpoints of safetensors: each format as its own package writes it (``tests/golden/quantized``,
made by ``scripts/golden/quantized.py``) against transformers over the weights that the package dequantizes,
and damaged ones.
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
KEPT: dict[str, list[str]] = {
    "auto-round-awq": ["F32", "Q4_ZERO"],
    "auto-round-gptq": ["F32", "Q4_0"],
    "auto-round-int2-zero-points": ["F32", "Q4_0"],
    "auto-round-int4": ["Q4_0", "Q8_0"],
    "auto-round-int5-zero-points": ["Q8_0", "F32"],
    "auto-round-mxfp4": ["MXFP4"],
    "awq-int4": ["Q4_ZERO"],
    "awq-int4-symmetric": ["Q4_0"],
    "bnb-fp4": ["BNB_FP4"],
    "bnb-int8": ["Q8_F32"],
    "bnb-nf4": ["NF4"],
    "bnb-nf4-nested": ["NF4"],
    "ct-fp8-block": ["FP8"],
    "ct-fp8-channel": ["FP8"],
    "ct-fp8-tensor": ["FP8"],
    "ct-int2": ["Q4_0"],
    "ct-int3-words": ["Q4_0"],
    "ct-int3-zero-points": ["Q4_0"],
    "ct-int4": ["Q4_0"],
    "ct-int4-channel": ["Q4_0"],
    "ct-int4-f16-scales": ["Q4_0"],
    "ct-int4-group-16": ["F32"],
    "ct-int4-zero-points": ["Q4_ZERO"],
    "ct-int5": ["Q5_0"],
    "ct-int6-zero-points": ["Q8_0"],
    "ct-int7": ["Q8_0"],
    "ct-int8": ["Q8_0"],
    "ct-int8-packed": ["Q8_0"],
    "ct-int8-packed-zero-points": ["F32"],
    "ct-int8-tensor-naive": ["Q8_0"],
    "ct-int8-zero-points": ["F32"],
    "ct-mixed": ["FP8", "Q4_0", "Q8_0"],
    "ct-mxfp4": ["MXFP4"],
    "ct-mxfp8": ["FP8"],
    "ct-nvfp4": ["FP4_F32"],
    "fbgemm-fp8": ["FP8"],
    "fp8-block": ["FP8"],
    "fp8-block-powers": ["FP8"],
    "fp8-tensor": ["FP8"],
    "fp8-tensor-old": ["FP8"],
    "gptq-dynamic": ["Q4_0", "Q8_0"],
    "gptq-int2": ["Q4_0"],
    "gptq-int3": ["Q4_0"],
    "gptq-int4": ["Q4_0"],
    "gptq-int4-any-order": ["F32"],
    "gptq-int4-head": ["Q4_0", "Q8_0"],
    "gptq-int4-row": ["Q4_0"],
    "gptq-int4-v2-zero-points": ["Q4_ZERO"],
    "gptq-int8": ["Q8_0"],
    "gptq-old": ["Q4_0"],
    "mlx-2": ["Q4_1"],
    "mlx-3": ["Q4_1"],
    "mlx-4": ["Q4_1"],
    "mlx-5": ["Q5_1"],
    "mlx-6": ["Q8_MIN"],
    "mlx-8": ["Q8_MIN"],
    "mlx-experts": ["Q4_1", "Q8_MIN"],
    "mlx-experts-mxfp4": ["MXFP4", "Q8_MIN"],
    "mlx-mixed": ["Q4_1", "Q8_MIN"],
    "mlx-mxfp4": ["MXFP4"],
    "mlx-mxfp8": ["FP8"],
    "mlx-nvfp4": ["FP4_F32"],
    "modelopt-fp8": ["FP8"],
    "modelopt-nvfp4": ["FP4_F32"],
    "torchao-float8": ["FP8"],
    "torchao-int3": ["Q4_0"],
    "torchao-int4": ["Q4_ZERO"],
    "torchao-int8": ["Q8_0"],
}


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
    want = LOGITS[name]
    apart = np.abs(model.logits(prompt())[-len(want) :] - want).max()
    coarse = np.abs(load(folder).logits(prompt())[-len(want) :] - want).max()
    kept = [kind for kind in model.weight_types if kind != "BF16"]
    print(f"{name:28} {apart:.1e} {coarse:.2f} {kept}")
    assert apart <= (FINE if set(kept) - {"F32", "F16"} else EXACT)
    assert coarse <= COARSE
    assert kept == KEPT[name], "the form in memory has changed"
    assert any("the checkpoint is quantized with" in note for note in model.notes)


# -- Damaged files ------------------------------------------------------------------------------------------

Q = "model.layers.0.self_attn.q_proj."
Tensors = dict[str, tuple[str, list[int], bytes]]
#: What the header says of a tensor, as if it were one, is under its name behind this.
SAID = "said of "


def read(path: Path) -> Tensors:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + size])
    said = header.pop("__metadata__", {})
    at = {name: info["data_offsets"] for name, info in header.items()}
    tensors: Tensors = {
        name: (info["dtype"], info["shape"], data[8 + size + at[name][0] : 8 + size + at[name][1]])
        for name, info in header.items()
    }
    return tensors | {SAID + name: ("", [], text.encode()) for name, text in said.items()}


def write(path: Path, tensors: Tensors) -> None:
    said = {n.removeprefix(SAID): data.decode() for n, (_, _, data) in tensors.items() if n.startswith(SAID)}
    header: dict[str, Any] = {"__metadata__": said}
    stored = {name: tensor for name, tensor in tensors.items() if not name.startswith(SAID)}
    at = 0
    for name, (dtype, shape, data) in stored.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    path.write_bytes(
        len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in stored.values())
    )


def put(tensors: Tensors, name: str, at: int, data: bytes) -> None:
    dtype, shape, old = tensors[Q + name]
    tensors[Q + name] = (dtype, shape, old[:at] + data + old[at + len(data) :])


def cut(tensors: Tensors, name: str, shape: list[int]) -> None:
    """Of another shape, and as many bytes of it."""
    dtype, old, data = tensors[Q + name]
    tensors[Q + name] = (dtype, shape, data[: len(data) * int(np.prod(shape)) // int(np.prod(old))])


def retyped(tensors: Tensors, name: str, dtype: str) -> None:
    tensors[Q + name] = (dtype, *tensors[Q + name][1:])


def said(tensors: Tensors, old: str, new: str) -> None:
    """Of the module's weight, in the file's header."""
    text = tensors[SAID + Q + "weight"][2].decode()
    assert old in text
    tensors[SAID + Q + "weight"] = ("", [], text.replace(old, new).encode())


F16_NAN, BF16_INFINITY, F32_NAN = b"\x00\x7e", b"\x80\x7f", b"\x00\x00\xc0\x7f"
KIB = "quantization_config."
GROUP = KIB + "config_groups.group_0.weights."
#: A row, what is done to its tensors, what to its config (by path), and what the error says.
BAD: list[tuple[str, Any, dict[str, Any], str]] = [
    ("ct-int4", lambda t: t.pop(Q + "weight_scale"), {}, 'module "model.layers.0.self_attn.q_proj"'),
    ("ct-int4", lambda t: t.pop(Q + "weight_scale"), {}, "there is no weight_scale beside its tensors"),
    ("ct-int4", lambda t: t.pop(Q + "weight_shape"), {}, "there is no weight_shape"),
    ("ct-int4", lambda t: put(t, "weight_shape", 8, b"\xff" * 7), {}, "weight_packed has the shape [64, 8]"),
    ("ct-int4", lambda t: put(t, "weight_shape", 8, b"\xff" * 8), {}, "where two sizes must be"),
    ("ct-int4", lambda t: put(t, "weight_scale", 6, BF16_INFINITY), {}, "scale 3 is inf"),
    ("ct-int4", lambda t: cut(t, "weight_scale", [32, 2]), {}, "weight_scale has the shape [32, 2]"),
    ("ct-int4", lambda t: retyped(t, "weight_packed", "F32"), {}, "weight_packed is stored as F32"),
    ("ct-int4", None, {GROUP + "num_bits": 8}, "8 bits of a matrix [64, 128] has [64, 32]"),
    ("ct-int4", None, {GROUP + "group_size": 64}, "weight_scale has the shape [64, 4]"),
    ("ct-int4", None, {GROUP + "symmetric": False}, "there is no weight_zero_point"),
    ("ct-int4", None, {GROUP + "actorder": "group"}, 'actorder: "group"'),
    ("ct-int4", None, {KIB + "ignore": ["re:.*q_proj"]}, "leaves it as plain weights"),
    ("ct-int4-zero-points", None, {GROUP + "symmetric": True}, "nothing uses the tensor"),
    ("ct-mixed", None, {KIB + "ignore": []}, "is quantized (compressed-tensors, mixed-precision"),
    (
        "ct-fp8-channel",
        lambda t: put(t, "weight", 70, b"\x7f"),
        {},
        "row 1 holds the byte 0x7f, which is no number",
    ),
    ("ct-fp8-channel", lambda t: retyped(t, "weight", "I8"), {}, "weight is stored as I8"),
    ("ct-fp8-tensor", None, {GROUP + "strategy": "channel"}, "weight_scale has the shape [1]"),
    ("ct-mxfp4", lambda t: put(t, "weight_scale", 2, b"\xff"), {}, "scale 2 is NaN"),
    ("ct-nvfp4", lambda t: put(t, "weight_global_scale", 0, bytes(4)), {}, "weight_global_scale is 0"),
    (
        "gptq-int4",
        lambda t: put(t, "g_idx", 8, b"\x02"),
        {},
        "column 2 is of group 2, and there are 2 groups",
    ),
    ("gptq-int4", lambda t: put(t, "g_idx", 8, b"\xff" * 4), {}, "column 2 is of group -1"),
    ("gptq-int4", lambda t: put(t, "scales", 0, F16_NAN), {}, "scale 0 is NaN"),
    ("gptq-int4", lambda t: put(t, "qzeros", 0, b"\x7f"), {}, "a zero point is stored as 15"),
    ("gptq-int4", None, {KIB + "bits": 8}, "where|has the shape"),
    ("gptq-int4", None, {KIB + "group_size": 64}, "scales has the shape [4, 64]"),
    ("gptq-int4", lambda t: cut(t, "qweight", [7, 64]), {}, "has the shape"),
    ("gptq-int4", None, {KIB + "checkpoint_format": "marlin"}, "marlin"),
    ("gptq-old", None, {}, ""),
    ("awq-int4", lambda t: t.pop(Q + "qzeros"), {}, "there is no qzeros"),
    ("awq-int4", None, {KIB + "group_size": 16}, "scales has the shape [4, 64]"),
    ("awq-int4", None, {KIB + "version": "gemv"}, "gemv"),
    (
        "auto-round-int4",
        None,
        {KIB + "packing_format": "auto_round:other"},
        'packing_format: "auto_round:other"',
    ),
    (
        "auto-round-int4",
        None,
        {KIB + "packing_format": "auto_round:auto_gptq:other"},
        'packing_format: "auto_round:auto_gptq:other"',
    ),
    ("auto-round-int4", None, {KIB + "packing_format": "auto_roundgptq"}, "auto_roundgptq"),
    ("auto-round-int4", None, {KIB + "extra_config": {}}, "o_proj|has the shape"),
    ("auto-round-int4", None, {KIB + "act_bits": 8}, "is not run yet"),
    ("auto-round-int4", None, {KIB + "rotation_config": {"size": 32}}, "is not run yet"),
    ("auto-round-int4", None, {KIB + "super_bits": 6}, "super_bits: 6"),
    ("auto-round-int4", lambda t: t.pop(Q + "qzeros"), {}, "there is no qzeros"),
    ("auto-round-awq", None, {KIB + "bits": 2}, "bits: 2"),
    ("auto-round-mxfp4", None, {KIB + "group_size": 16}, "is not run yet"),
    (
        "auto-round-mxfp4",
        lambda t: put(t, "weight_scale", 2, b"\xff"),
        {},
        "scale 2 is NaN",
    ),
    ("torchao-int8", lambda t: t.pop(SAID + Q + "weight"), {}, "does not say which class"),
    ("torchao-int8", lambda t: said(t, "Int8Tensor", "Int4Tensor"), {}, 'torchao\'s "Int4Tensor"'),
    ("torchao-int8", lambda t: said(t, "reduce_range", "wings"), {}, '"wings": false of it'),
    ("torchao-int8", lambda t: said(t, '"scale"', '"pre_scale"'), {}, 'keeps "pre_scale" of it'),
    ("torchao-int8", lambda t: said(t, "[1, 64]", "[1]"), {}, "block_size must be two"),
    ("torchao-int8", lambda t: said(t, '"_type"', '"_type'), {}, "is malformed"),
    ("torchao-int8", lambda t: t.pop(Q + "_weight_scale"), {}, "there is no _weight_scale"),
    (
        "torchao-int4",
        lambda t: put(t, "_weight_qdata", 65, b"\x08"),
        {},
        "the number 8, which has more than 4",
    ),
    ("torchao-int4", lambda t: said(t, "int4", "uint4"), {}, "target_dtype"),
    (
        "torchao-int4",
        lambda t: t.pop(Q + "_weight_zero_point"),
        {},
        "names a zero point, and the file has none",
    ),
    ("torchao-int4", lambda t: cut(t, "_weight_zero_point", [64, 1]), {}, "a zero point for each group"),
    ("torchao-float8", lambda t: put(t, "_weight_qdata", 3, b"\x7f"), {}, "row 0 holds the byte 0x7f"),
    ("mlx-mxfp8", lambda t: put(t, "scales", 1, b"\xff"), {}, "scale 1 is NaN"),
    ("mlx-mxfp8", lambda t: put(t, "weight", 66, b"\x7f"), {}, "row 1 holds the byte 0x7f"),
    ("mlx-4", lambda t: t.pop(Q + "biases"), {}, "there is no biases"),
    ("mlx-4", None, {"quantization.bits": 8, "quantization_config.bits": 8}, "scales has the shape"),
    ("mlx-4", None, {"quantization.bits": 8}, "only one is run at a time"),
    ("bnb-nf4", lambda t: t.pop(Q + "weight.quant_map"), {}, "there is no weight.quant_map"),
    ("bnb-nf4", lambda t: put(t, "weight.absmax", 0, F32_NAN), {}, "scale 0 is NaN"),
    ("bnb-nf4", lambda t: put(t, "weight.quant_map", 4, F32_NAN), {}, "is no finite number"),
    (
        "bnb-nf4",
        lambda t: put(t, "weight.quant_state.bitsandbytes__nf4", 0, b"["),
        {},
        "weight.quant_state: is malformed",
    ),
    ("bnb-nf4", lambda t: cut(t, "weight", [1024, 1]), {}, "weight holds 1024 bytes, and a matrix [64, 64]"),
    ("bnb-int8", lambda t: put(t, "weight_format", 0, b"\x01"), {}, "weight_format is not 0"),
    ("fp8-block", lambda t: cut(t, "weight_scale_inv", [0, 1]), {}, "weight_scale_inv has the shape [0, 1]"),
    ("fp8-block", lambda t: put(t, "weight", 0, b"\xff"), {}, "row 0 holds the byte 0xff"),
    ("fp8-block", lambda t: t.pop(Q + "weight"), {}, "there is no weight beside its tensors"),
    ("modelopt-nvfp4", lambda t: put(t, "weight_scale", 1, b"\x7f"), {}, "scale 1 is NaN"),
    ("modelopt-nvfp4", lambda t: t.pop(Q + "weight_scale_2"), {}, "there is no weight_scale_2"),
]


@pytest.mark.parametrize(("name", "edit", "config", "words"), BAD, ids=[f"{row[0]}: {row[3]}" for row in BAD])
def test_a_damaged_one_is_refused_by_its_module(
    tmp_path: Path, name: str, edit: Any, config: dict[str, Any], words: str
) -> None:
    folder = shutil.copytree(FOLDER / name, tmp_path / name)
    if edit is not None:
        tensors = read(folder / "model.safetensors")
        edit(tensors)
        write(folder / "model.safetensors", tensors)
    root = json.loads((folder / "config.json").read_text())
    for path, value in config.items():
        *outer, key = path.split(".")
        inside = root
        for part in outer:
            inside = inside[part]
        inside[key] = value
    (folder / "config.json").write_text(json.dumps(root))
    if name == "gptq-old":
        (folder / "quantize_config.json").unlink()
    with pytest.raises((tallow.ModelFileError, tallow.UnsupportedModelError)) as caught:
        load(folder)
    assert any(word in str(caught.value) for word in words.split("|")), str(caught.value)


def test_what_claims_to_be_quantized_and_is_not_is_refused(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER / "gptq-int4", tmp_path / "plain")
    tensors = read(folder / "model.safetensors")
    plain = {name: tensor for name, tensor in tensors.items() if "_proj." not in name}
    write(folder / "model.safetensors", plain)
    with pytest.raises(tallow.ModelFileError, match="and no tensor of it is"):
        load(folder)


def test_stacks_of_experts_are_held_against_each_other(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER / "mlx-experts", tmp_path / "stacks")
    tensors = read(folder / "model.safetensors")
    name = "model.layers.0.mlp.switch_mlp.up_proj."
    for part, shape, words in [
        ("scales", [3, 32, 2], "a stack of as many experts as its weight"),
        ("scales", [4, 31, 2], "scales has the shape"),
        ("weight", [4, 32, 7], "has shape [4, 32, 56]"),
        ("weight", [0, 32, 8], "stack of as many experts"),
    ]:
        dtype, old, data = tensors[name + part]
        cut_data = data[: len(data) * int(np.prod(shape)) // int(np.prod(old))]
        write(folder / "model.safetensors", tensors | {name + part: (dtype, shape, cut_data)})
        with pytest.raises(tallow.ModelFileError) as caught:
            load(folder)
        assert words in str(caught.value) and "up_proj" in str(caught.value), str(caught.value)
    other = name.replace("switch_mlp", "other_mlp")
    moved = {n.replace(name, other): tensor for n, tensor in tensors.items()}
    write(folder / "model.safetensors", moved)
    with pytest.raises(tallow.UnsupportedModelError, match="only experts of MLX"):
        load(folder)


def test_plain_stacks_of_mlx_load(tmp_path: Path) -> None:
    """mlx-lm stacks experts also where it quantizes nothing."""
    folder = shutil.copytree(FOLDER / "mlx-experts", tmp_path / "plain")
    root = json.loads((folder / "config.json").read_text())
    own = root.pop("quantization")
    root.pop("quantization_config")
    (folder / "config.json").write_text(json.dumps(root))
    tensors = read(folder / "model.safetensors")
    for name in [name.removesuffix("scales") for name in tensors if name.endswith(".scales")]:
        bits = (own.get(name[:-1]) or own)["bits"]
        codes, scales, biases = (tensors.pop(name + part) for part in ("weight", "scales", "biases"))
        words = np.frombuffer(codes[2], "<u4").reshape(codes[1])
        q = (words[..., None] >> np.arange(0, 32, bits, dtype=np.uint32) & (1 << bits) - 1).reshape(
            *scales[1], -1
        )
        scale, bias = (
            (np.frombuffer(part[2], "<u2").astype("<u4") << 16).view("<f4").reshape(*part[1], 1)
            for part in (scales, biases)
        )
        weight = (q * scale + bias).reshape(*scales[1][:-1], -1).astype("<f4")
        tensors[name + "weight"] = ("F32", list(weight.shape), weight.tobytes())
    write(folder / "model.safetensors", tensors)
    got = load(folder, dtype="float32").logits(prompt())[-len(LOGITS["mlx-experts"]) :]
    assert np.abs(got - LOGITS["mlx-experts"]).max() <= EXACT


def test_a_second_rounding_is_told(tmp_path: Path) -> None:
    folder = shutil.copytree(FOLDER / "fp8-block", tmp_path / "row")
    model = load(folder, quantize="q8_0")
    assert "Q8_0" in model.weight_types
    assert any("rounded twice" in note and "Q8_0" in note for note in model.notes)
