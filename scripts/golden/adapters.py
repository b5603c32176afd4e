#!/usr/bin/env python3
"""Make the goldens of adapters: what peft says of tiny adapters on the tiny checkpoints of families.py.

Each row of ROWS becomes a folder `tests/golden/adapters/<name>/`:

    adapter_config.json, adapter_model.safetensors    as peft saves them, with random numbers of real size in all
    reference.safetensors                             tokens (I64 [n]), logits (F32 [n, vocab])

and a line of `tests/golden/adapters/manifest.json`:

    name       of the row
    base       a folder of tests/golden/families
    adapter    what to load, beside the manifest: a folder or a file
    reference  the file with tokens and logits, beside the manifest; null where the adapter is refused
    refused    null, or {"kind": "model_file" | "unsupported", "words": [..]}: the error's kind, and what it says
    bite       how far the adapter moves the logits: a reader that ignores it cannot pass
    what       what it tests

The logits are float32, eager attention, one forward over the whole prompt, of the adapter read back from its folder.

Made with Python 3.11, torch 2.15.0, transformers 5.24.0, peft 0.21.2, gguf 0.19.0, safetensors 0.8.0.
"""

import argparse
import json
import shutil
import sys
import warnings
import zlib
from pathlib import Path

import peft
import torch
import transformers
from safetensors.torch import save_file

ROOT = Path(__file__).resolve().parents[2]
FAMILIES = ROOT / "tests/golden/families"
TOKENS = 13
# Files that peft writes and nobody reads.
UNREAD = ("README.md",)
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ALL = [*ATTENTION, "gate_proj", "up_proj", "down_proj"]


def row(name, base, what, **config):
    """One adapter that is made and run by peft; `config`: of `LoraConfig`."""
    return dict(name=name, base=base, what=what, config=config)


ROWS = [
    row("lora", "llama-mha", "all seven projections", r=4, lora_alpha=8, target_modules=ALL),
]


def seeded(name):
    torch.manual_seed(zlib.crc32(name.encode()))


def base_model(base):
    load = transformers.AutoModelForCausalLM.from_pretrained
    return load(FAMILIES / base, attn_implementation="eager", dtype=torch.float32).eval()


@torch.no_grad()
def logits(model, tokens):
    return model(input_ids=tokens[None], use_cache=False).logits[0].float().contiguous()


@torch.no_grad()
def fill(model):
    """Random numbers of real size where peft begins with none: an adapter that changes nothing tests nothing."""
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        noise = torch.randn(parameter.shape)
        if "lora_A" in name:
            parameter.copy_(noise / parameter.shape[-1] ** 0.5)
        elif "lora_" in name and "magnitude" not in name:
            parameter.copy_(0.3 * noise)
        else:
            parameter.add_(0.3 * noise * parameter.abs().mean().clamp(min=0.3))


def make(row, out):
    """The folder of a row, and its line of the manifest."""
    folder = out / row["name"]
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    seeded(row["name"])
    model = peft.get_peft_model(base_model(row["base"]), peft.LoraConfig(task_type="CAUSAL_LM", **row["config"]))
    fill(model)
    model.save_pretrained(folder)
    for name in UNREAD:
        (folder / name).unlink(missing_ok=True)
    respell(folder, row["base"])
    plain = base_model(row["base"])
    tokens = torch.randint(3, plain.config.vocab_size, (TOKENS,))
    before = logits(plain, tokens)
    back = peft.PeftModel.from_pretrained(plain, folder).eval()
    right = logits(back, tokens)
    assert torch.equal(right, logits(model.eval(), tokens)), f"{row['name']}: read back it differs"
    save_file(dict(tokens=tokens, logits=right), folder / "reference.safetensors")
    bite = (right - before).abs().max().item()
    assert bite > 0.05, f"{row['name']}: the logits move by {bite} only"
    return dict(name=row["name"], base=row["base"], adapter=row["name"],
                reference=f"{row['name']}/reference.safetensors", refused=None, bite=round(bite, 4),
                what=row["what"])  # fmt: skip


def respell(folder, base):
    """No path of the machine that made it; lists in one order."""
    path = folder / "adapter_config.json"
    config = json.loads(path.read_text())
    config["base_model_name_or_path"] = f"tiny/{base}"
    for key in ("target_modules", "modules_to_save", "target_parameters"):
        if isinstance(config.get(key), list):
            config[key].sort()
    path.write_text(json.dumps(config, indent=2, sort_keys=False) + "\n")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "tests/golden/adapters")
    args = parser.parse_args()
    torch.set_num_threads(1)
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    lines = [make(row, args.out) for row in ROWS]
    (args.out / "manifest.json").write_text(json.dumps(lines, indent=1) + "\n")
    for line in lines:
        print(f"{line['name']:24} on {line['base']:16} moves the logits by {line['bite']:.2f}")


if __name__ == "__main__":
    sys.exit(main())
