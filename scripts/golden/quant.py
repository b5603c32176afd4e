#!/usr/bin/env python3
"""Make the block quantization goldens: raw blocks and the float32 values gguf's own dequantizer reads from them.

`tests/golden/quant/<type>.safetensors`, one file a GGML type, each with

    random_blocks   U8  [2, row bytes]   random bytes, the float16 scales replaced by finite ones, all ranges occur
    random_values   F32 [2, 512]
    real_blocks     U8  [2, row bytes]   normal data with outliers and a block of zeros, quantized
    real_values     F32 [2, 512]

Types that gguf reads but cannot write (the K-quants, all IQ, NVFP4) are quantized by the ggml library inside
llama-cpp-python, and that library's dequantizer must agree with gguf's to the last bit or nearly so (ggml may fuse a
multiply and add). MXFP4's scale is a byte, the exponent of a power of two. Of Q8_K and Q1_0 gguf knows the size alone:
their values are those of ggml's dequantizer.

Made with Python 3.11, gguf 0.19.0, numpy 2.4.6, safetensors 0.8.0, llama-cpp-python 0.3.36 (MXFP4 without the latter).
"""

import argparse
import ctypes
import functools
import importlib.util
import sys
from pathlib import Path

import gguf
import numpy as np
from gguf.quants import dequantize, quantize
from safetensors.numpy import save_file

ROOT = Path(__file__).resolve().parents[2]
ROWS, WIDTH = 2, 512
# Where the float16 scales of a block lie, in bytes.
SCALES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "F16": None, "BF16": None,
    "MXFP4": (), "Q8_K": (), "IQ2_XXS": (0,), "IQ2_XS": (0,), "IQ2_S": (0,), "IQ3_XXS": (0,), "IQ3_S": (0,),
    "IQ1_S": (0,), "IQ1_M": (), "TQ1_0": (52,), "TQ2_0": (64,), "NVFP4": (), "Q1_0": (0,),
}  # fmt: skip
# Those that the gguf package does not read.
BY_GGML = ("Q8_K", "Q1_0")


def random_blocks(name, kind, rng):
    """Random bytes with sane scales."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    if SCALES[name] is None:
        return random_floats(name, rng)
    blocks = rng.integers(0, 256, (ROWS * WIDTH // values, size), dtype=np.uint8)
    for at in SCALES[name]:
        scales = rng.normal(0, 0.05, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    if name == "MXFP4":
        # All exponents with which the greatest number, 6, is finite; the two subnormal scales among them.
        blocks[:, 0] = np.linspace(0, 251, len(blocks)).astype(np.uint8)
        blocks[1, 0] = 1
    if name == "Q8_K":
        blocks[:, :4] = rng.normal(0, 0.05, len(blocks)).astype(np.float32).view(np.uint8).reshape(-1, 4)
    if name == "IQ1_M":
        # The float16 lies on top of four scale words, its lowest bits in the first.
        scales = rng.normal(0, 0.05, len(blocks)).astype(np.float16).view(np.uint16)
        for word in range(4):
            top = (scales >> (4 * word) & 15).astype(np.uint8) << 4
            blocks[:, 49 + 2 * word] = blocks[:, 49 + 2 * word] & 15 | top
    return blocks.reshape(ROWS, -1)


def random_floats(name, rng):
    """Any finite 16-bit pattern, subnormals and signed zeros included."""
    bits = rng.integers(0, 1 << 16, (ROWS, WIDTH), dtype=np.uint16)
    bits[0, :4] = (0, 0x8000, 1, 0x8001)
    mask = 0x7C00 if name == "F16" else 0x7F80
    bits[(bits & mask) == mask] &= 0x3FFF
    return bits.view(np.uint8)


def real_data(rng):
    """Rows as weights look: normal, a few outliers, one block of zeros."""
    data = rng.normal(0, 0.05, (ROWS, WIDTH)).astype(np.float32)
    data[rng.random(data.shape) < 0.01] *= 12
    data[1, 64:96] = 0
    return data


def quantized(kind, rng):
    """Blocks of real data."""
    data = real_data(rng)
    try:
        return quantize(data, kind)
    except NotImplementedError:
        return quantized_by_ggml(data, kind)


def quantized_by_ggml(data, kind):
    """The same through ggml's own quantizer, for the types the gguf package only reads."""
    values, size = gguf.GGML_QUANT_SIZES[kind]
    blocks = np.zeros((ROWS, WIDTH // values * size), dtype=np.uint8)
    if kind == gguf.GGMLQuantizationType.Q8_K:
        ggml().quantize_row_q8_K_ref(pointer(data), pointer(blocks), ctypes.c_int64(data.size))
        return blocks
    # The smallest formats want to know how much each column matters: all the same.
    weights = np.ones(WIDTH, dtype=np.float32)
    needed = ctypes.c_bool(ggml().ggml_quantize_requires_imatrix(ctypes.c_int(kind))).value
    ggml().ggml_quantize_chunk(
        ctypes.c_int(kind), pointer(data), pointer(blocks), ctypes.c_int64(0), ctypes.c_int64(ROWS),
        ctypes.c_int64(WIDTH), pointer(weights) if needed else None,
    )  # fmt: skip
    return blocks


def dequantized_by_ggml(name, blocks):
    """ggml's own reading of the blocks."""
    values = np.zeros((ROWS, WIDTH), dtype=np.float32)
    row = name.replace("Q", "q") if name.startswith("Q") else name.lower()
    getattr(ggml(), f"dequantize_row_{row}")(pointer(blocks), pointer(values), ctypes.c_int64(values.size))
    return values


@functools.cache
def ggml():
    """The ggml library inside llama-cpp-python."""
    spec = importlib.util.find_spec("llama_cpp")
    return ctypes.CDLL(str(next(Path(spec.origin).parent.glob("lib/*ggml-base.*"))))


def pointer(array):
    return array.ctypes.data_as(ctypes.c_void_p)


def make(name, out):
    """One file; returns its line for the report."""
    kind = gguf.GGMLQuantizationType[name]
    rng = np.random.default_rng(list(name.encode()))
    blocks = {"random": random_blocks(name, kind, rng), "real": quantized(kind, rng)}
    tensors, apart = {}, 0.0
    for source, raw in blocks.items():
        raw = np.ascontiguousarray(raw.view(np.uint8))
        if name in BY_GGML:
            values = dequantized_by_ggml(name, raw)
        else:
            values = dequantize(raw, kind).astype(np.float32).reshape(ROWS, WIDTH)
        assert np.isfinite(values).all(), name
        if SCALES[name] or name in ("IQ1_M", "NVFP4"):
            apart = max(apart, np.abs(dequantized_by_ggml(name, raw) - values).max().item())
        tensors |= {f"{source}_blocks": raw, f"{source}_values": values}
    assert apart < 1e-5, f"{name}: ggml reads the blocks otherwise, by {apart}"
    save_file(tensors, out / f"{name.lower()}.safetensors")
    return (
        f"{name:7} greatest value {np.abs(tensors['random_values']).max():.4g}, ggml differs by {apart:.2g}"
    )


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/quant")
    parser.add_argument("--only", nargs="*", help="names of types (default: all)")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name in args.only or SCALES:
        print(make(name, args.out))


if __name__ == "__main__":
    sys.exit(main())
