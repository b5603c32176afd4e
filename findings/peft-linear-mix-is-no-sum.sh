#!/usr/bin/env bash
# model.add_weighted_adapter([one, two], [1.0, 1.0], name, combination_type="linear") makes one adapter of two.
#
# Usual guess: "linear" adds what the two adapters add to the weights: B1 A1 + B2 A2.
# Seen (peft 0.21.2): it adds the factors, (B1 + B2)(A1 + A2), so that B1 A2 and B2 A1 come with it. These are as large as the sum that
#   was meant. "cat" gives the sum exactly, with the ranks added up. "svd" keeps the larger rank of the two unless svd_rank is given,
#   and half of the sum is lost.
#
# Output seen:
#   error, as a share of the sum that was meant
#   linear          1.00
#   cat             0.00
#   svd             0.47
#   svd, svd_rank=8 0.00
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
  "torch==2.15.0" "peft==0.21.2" "transformers==5.24.0"
cat > "$work/run.py" <<'PY'
import warnings

import torch
import transformers
from peft import LoraConfig, get_peft_model


transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore", FutureWarning)


def tiny(layers=2):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.2}
    heads = {"num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()


config = LoraConfig(r=4, lora_alpha=4, target_modules=["q_proj"], init_lora_weights=False)
model = get_peft_model(tiny(), config, adapter_name="one")
model.add_adapter("two", config)
layer = model.base_model.model.model.layers[0].self_attn.q_proj
meant = layer.get_delta_weight("one") + layer.get_delta_weight("two")


def error(kind, **options):
    name = f"mix of {kind} {options}"
    model.add_weighted_adapter(["one", "two"], [1.0, 1.0], name, combination_type=kind, **options)
    return float(((layer.get_delta_weight(name) - meant).norm() / meant.norm()).detach())


kinds = {"linear": error("linear"), "cat": error("cat"), "svd": error("svd")}
kinds["svd, svd_rank=8"] = error("svd", svd_rank=8)
print("error, as a share of the sum that was meant")
for name, value in kinds.items():
    print(f"{name:15} {value:.2f}")
linear, cat, svd, full = kinds.values()
raise SystemExit(not (linear > 0.5 and cat < 1e-5 and svd > 0.3 and full < 1e-5))
PY
"$work/venv/bin/python" "$work/run.py"
