#!/usr/bin/env bash
# LoraConfig(init_lora_weights="pissa") starts from the largest singular values of a weight: they go into A and B, the rest stays.
#
# Usual guess: `with model.disable_adapter()` and model.unload() give the base model, as for every other LoRA; with two adapters loaded,
#   set_adapter chooses which of them acts.
# Seen (peft 0.21.2): disable_adapter and unload() give the rest: the base without its largest singular values. Nothing is said.
#   Loading the folder a second time under another name takes them out once more, and neither is what was saved; here a warning asks
#   for a conversion. A folder that was saved with path_initial_model_for_weight_conversion has none of this.
#
# Output seen:
#   largest difference of the logits
#   loaded, against what was saved     0.0
#   loaded under two names             3.6
#   switched off, against the base     4.6
#   unloaded, against the base         4.6
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
import warnings

import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model


transformers.logging.set_verbosity_error()
warnings.simplefilter("ignore", FutureWarning)


def tiny(layers=2):
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.2}
    heads = {"num_hidden_layers": layers, "num_attention_heads": 4, "num_key_value_heads": 2}
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).eval()


def logits(model):
    with torch.no_grad():
        return model.eval()(torch.tensor([[1, 2, 3, 4, 5]])).logits


warnings.simplefilter("ignore")
folder, base = sys.argv[1], logits(tiny())
config = LoraConfig(r=8, init_lora_weights="pissa", target_modules=["q_proj", "v_proj", "down_proj"])
trained = get_peft_model(tiny(), config)
trained.save_pretrained(folder)
saved = logits(trained)
loaded = PeftModel.from_pretrained(tiny(), folder)
seen = {"loaded, against what was saved": logits(loaded) - saved}
twice = PeftModel.from_pretrained(tiny(), folder)
twice.load_adapter(folder, "again")
seen["loaded under two names"] = logits(twice) - saved
with loaded.disable_adapter():
    seen["switched off, against the base"] = logits(loaded) - base
seen["unloaded, against the base"] = logits(loaded.unload()) - base
print("largest difference of the logits")
found = [float(difference.abs().max()) for difference in seen.values()]
for name, value in zip(seen, found, strict=True):
    print(f"{name:34} {value:.1f}")
raise SystemExit(not (found[0] < 1e-4 and min(found[1:]) > 0.5))
PY
"$work/venv/bin/python" "$work/run.py" "$work"
