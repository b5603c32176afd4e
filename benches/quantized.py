"""Quantized checkpoints of a real model: that they answer as their own packages have them, and what they cost.

    python benches/quantized.py make FOLDER [NAME ...]     a BF16 folder at FOLDER/plain becomes FOLDER/NAME by each package
    python benches/quantized.py agree FOLDER [NAME ...]    perplexity and first tokens, against the package's own weights
    python benches/quantized.py cost FOLDER [NAME ...]     seconds and memory of loading, tokens a second

`FOLDER/plain` is `FOLDER/plain.gguf` in BF16, if it is not there (a checkpoint of Llama's family).

`make` also writes FOLDER/NAME-f32: the weights as the package dequantizes them, with scales in float32. `agree`
loads both here, and holds the perplexity of this repository's texts and the first tokens that are drawn greedily
against each other and against transformers over the dequantized weights. `cost` compares with transformers and the
package's own CPU kernels. The packages are those of `scripts/golden/quantized.py`, which dequantizes; all in one
environment with tallow.
"""

import argparse
import importlib.util
import json
import math
import os
import re
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
PROMPTS = [
    "The capital of France is",
    "Write a short poem about the sea.",
    "def fibonacci(n):",
    "Once upon a time there was a little",
    "To boil an egg, first",
]
NEW, WINDOW, WINDOWS = 24, 512, 4
#: What is quantized how, by which package.
NAMES = [
    "gptq-int4",
    "awq-int4",
    "ct-int4",
    "ct-fp8",
    "mlx-4",
    "bnb-nf4",
    "bnb-int8",
    "auto-round-int4",
]


def golden():
    spec = importlib.util.spec_from_file_location("golden", ROOT / "scripts/golden/quantized.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# -- Making -------------------------------------------------------------------------------------------------


def plain(folder):
    """FOLDER/plain.gguf as a BF16 folder."""
    import torch
    import transformers

    gguf = dict(gguf_file="plain.gguf")
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, **gguf, dtype=torch.float32)
    config = model.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):
        config.pop(key, None)
    # Of the config as it was read it would say that it cannot be saved.
    saved = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).to(torch.bfloat16)
    saved.load_state_dict({name: weight.to(torch.bfloat16) for name, weight in model.state_dict().items()})
    saved.tie_weights()
    saved.save_pretrained(folder / "plain")
    transformers.AutoTokenizer.from_pretrained(folder, **gguf).save_pretrained(folder / "plain")


def texts():
    """Paragraphs of this repository's pages: for calibration, and others to be measured by."""
    pages = sorted((ROOT / "docs").glob("*.md"))
    whole = "\n\n".join(page.read_text() for page in pages)
    prose = [p for p in re.split(r"\n\n+", whole) if len(p) > 200 and not p.startswith(("|", "```", "    "))]
    return prose[::2], prose[1::2]


def calibration(folder):
    import transformers

    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    ids = tokenizer("\n\n".join(texts()[0]))["input_ids"]
    return [dict(input_ids=ids[at : at + 256], attention_mask=[1] * 256) for at in range(0, 16 * 256, 256)]


def of_gptqmodel(folder, out, **how):
    """As gptqmodel saves it, and its modules' own dequantization."""
    from gptqmodel import BACKEND, GPTQModel, QuantizeConfig
    from safetensors.torch import load_file

    model = GPTQModel.load(str(folder), QuantizeConfig(**how), device="cpu")
    backend = {} if how.get("method") == "awq" else dict(backend=BACKEND.TORCH)
    model.quantize(calibration(folder), **backend)
    model.save(str(out))
    return golden().unpacked(out, load_file(out / "model.safetensors"))


def of_auto_round(folder, out):
    """By rounding alone (no iterations), in GPTQ's layout; its own modules dequantize."""
    from auto_round import AutoRound
    from safetensors.torch import load_file

    AutoRound(str(folder), scheme="W4A16", iters=0, group_size=64, device_map="cpu").quantize_and_save(
        str(out), format="auto_round"
    )
    return golden().of_words(json.loads((out / "config.json").read_text()), load_file(out / "model.safetensors"))


def by_hand(function):
    """A row of the golden checkpoints' script, of all the model's weights: (config, tensors, dequantized)."""

    def make(folder, out):
        from safetensors.torch import load_file, save_file

        said, tensors, back = function(load_file(folder / "model.safetensors"))
        shutil.copytree(folder, out, ignore=shutil.ignore_patterns("*.safetensors"), dirs_exist_ok=True)
        root = json.loads((out / "config.json").read_text())
        if "mlx" in said:
            root |= dict(quantization=said["mlx"], quantization_config=said["mlx"])
        else:
            root["quantization_config"] = said
        (out / "config.json").write_text(json.dumps(root, indent=1))
        save_file({n: t.contiguous() for n, t in tensors.items()}, out / "model.safetensors", {"format": "pt"})
        return back

    return make


def of_mlx(folder, out):
    """As mlx-lm converts it."""
    import mlx.core as mx
    import mlx_lm
    import torch

    mlx_lm.convert(str(folder), mlx_path=str(out), quantize=True, q_group_size=64, q_bits=4)
    parts = mx.load(str(out / "model.safetensors"))
    back = {}
    for name, part in parts.items():
        module = name.removesuffix(".weight")
        if name.endswith((".scales", ".biases")):
            continue
        if f"{module}.scales" in parts:
            wide = [parts[f"{module}.{own}"].astype(mx.float32) for own in ("scales", "biases")]
            part = mx.dequantize(part, *wide, group_size=64, bits=4)
        back[name] = torch.from_numpy(np.array(part.astype(mx.float32)))
    return back


def maker(name):
    rows = golden()
    return {
        "gptq-int4": lambda *at: of_gptqmodel(*at, bits=4, group_size=64),
        "awq-int4": lambda *at: of_gptqmodel(*at, bits=4, group_size=64, method="awq", format="gemm"),
        "ct-int4": by_hand(rows.compressed_row(rows.PACKED, rows.int_args(4, group=64))),
        "ct-fp8": by_hand(rows.compressed_row("float-quantized", rows.float_args(8, "channel"))),
        "mlx-4": of_mlx,
        "bnb-nf4": by_hand(rows.four_bits("nf4", True)),
        "bnb-int8": by_hand(rows.eight_bits),
        "auto-round-int4": of_auto_round,
    }[name]


def make(folder, name):
    """Writes FOLDER/name, and FOLDER/name-f32 with the weights as the package has them."""
    from safetensors.torch import save_file

    out, wide = folder / name, folder / f"{name}-f32"
    for old in (out, wide):
        shutil.rmtree(old, ignore_errors=True)
    start = time.perf_counter()
    back = maker(name)(folder / "plain", out)
    for file in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(folder / "plain" / file, out)
    shutil.copytree(folder / "plain", wide, ignore=shutil.ignore_patterns("*.safetensors"))
    save_file({n: t.float().contiguous() for n, t in back.items()}, wide / "model.safetensors", {"format": "pt"})
    print(f"{name}: made in {time.perf_counter() - start:.0f} s", flush=True)


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["make", "agree", "cost"])
    parser.add_argument("folder", type=Path)
    parser.add_argument("names", nargs="*", metavar="NAME")
    args = parser.parse_args()
    if not (args.folder / "plain").exists():
        plain(args.folder)
    for name in args.names or NAMES:
        {"make": make}[args.what](args.folder, name)


if __name__ == "__main__":
    main()
