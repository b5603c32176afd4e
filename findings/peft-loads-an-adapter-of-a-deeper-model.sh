#!/usr/bin/env bash
# PeftModel.from_pretrained(base, folder) reads an adapter's configuration and its tensors and puts them on the base.
#
# Usual guess: an adapter that was trained on another model is refused, or its tensors that have no place are at least named, as the
#   missing ones are.
# Seen (peft 0.21.2): missing ones are named in a warning. What the file has and the model has not is dropped without a word: the
#   adapter of a model with four layers loads onto one with two, and half of it acts.
#
# Output seen:
#   adapter of 2 layers on 4: warnings: Found missing adapter keys
#   adapter of 4 layers on 2: warnings: none; tensors in the file: 16, in the model: 8
#   and it changes the logits: True
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
  "torch==2.15.0" "peft==0.21.2" "transformers==5.24.0"
cat > "$work/run.py" <<'PY'
import sys
import tempfile
import warnings

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file


transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore", FutureWarning)


def tiny(layers=2):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.2}
    heads = {"num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()


def adapter(layers):
    folder = tempfile.mkdtemp(dir=sys.argv[1])
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(tiny(layers), config).save_pretrained(folder)
    return folder


def load(folder, layers):
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        model = PeftModel.from_pretrained(tiny(layers), folder).eval()
    told = [str(one.message).partition(" while")[0] for one in said if one.category is not FutureWarning]
    return model, ", ".join(told) or "none"


_, missing = load(adapter(2), 4)
deep = adapter(4)
model, dropped = load(deep, 2)
stored = len(load_file(f"{deep}/adapter_model.safetensors"))
placed = sum("lora_" in name for name, _ in model.named_parameters())
ids = torch.tensor([[1, 2, 3]])
changes = not torch.allclose(model(ids).logits, tiny(2)(ids).logits, atol=1e-3)
print("adapter of 2 layers on 4: warnings:", missing)
print(f"adapter of 4 layers on 2: warnings: {dropped}; tensors in the file: {stored}, in the model: {placed}")
print("and it changes the logits:", changes)
raise SystemExit((missing, dropped, stored, placed, changes) != ("Found missing adapter keys", "none", 16, 8, True))
PY
"$work/venv/bin/python" "$work/run.py" "$work"
