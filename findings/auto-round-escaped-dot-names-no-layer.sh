#!/usr/bin/env bash
# AutoRound's layer_config gives layers settings of their own; its keys are "layer names or regex patterns".
#
# Usual guess: the pattern `.*self_attn\.o_proj` is the one to write, since a bare dot matches any character; it gives o_proj 8 bits, and
#   config.json says what the tensors are.
# Seen (auto-round 0.16.1): dots are escaped once more, so that a pattern with an escaped dot looks for a backslash and matches no layer.
#   Nothing is said, o_proj has 4 bits like the others, and config.json has the pattern with 8 bits all the same: a reader that follows
#   it takes 4-bit words for 8-bit ones. With the bare dot, or without a dot, the same pattern works.
#
# Output seen:
#   pattern                    bits of o_proj   in config.json
#   .*self_attn\.o_proj                     4   8
#   .*self_attn.o_proj                      8   8
#   .*o_proj                                8   8
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile \
  "torch==2.15.0" "auto-round==0.16.1" "transformers==5.24.0"
cat > "$work/run.py" <<'PY'
import json
import sys
from pathlib import Path

import torch
import transformers
from auto_round import AutoRound
from safetensors import safe_open
from tokenizers import Tokenizer, models


def main():
    work = Path(sys.argv[1])
    torch.manual_seed(0)
    sizes = {"vocab_size": 64, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 1}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**sizes, **heads)).to(torch.bfloat16)
    model.save_pretrained(work / "plain")
    words = Tokenizer(models.WordLevel({str(word): word for word in range(64)}, unk_token="0"))
    transformers.PreTrainedTokenizerFast(tokenizer_object=words, unk_token="0").save_pretrained(work / "plain")

    seen = []
    for number, pattern in enumerate([r".*self_attn\.o_proj", ".*self_attn.o_proj", ".*o_proj"]):
        own = {pattern: {"bits": 8, "group_size": 64}}
        rounding = AutoRound(
            str(work / "plain"), scheme="W4A16", group_size=32, iters=0, disable_opt_rtn=True, layer_config=own,
            device_map="cpu",
        )
        rounding.quantize_and_save(str(work / f"out{number}"), format="auto_round")
        file = next((work / f"out{number}").glob("**/config.json"))
        config = json.loads(file.read_text())["quantization_config"]
        said = next(own["bits"] for name, own in config["extra_config"].items() if "o_proj" in name)
        with safe_open(next(file.parent.glob("*.safetensors")), "pt") as tensors:
            rows = tensors.get_slice("model.layers.0.self_attn.o_proj.qweight").get_shape()[0]
        # 64 inputs in words of 32 bits.
        seen.append((pattern, rows * 32 // 64, said))
    print(f"{'pattern':26} bits of o_proj   in config.json")
    for pattern, bits, said in seen:
        print(f"{pattern:26} {bits:14}   {said}")
    raise SystemExit([row[1:] for row in seen] != [(4, 8), (8, 8), (8, 8)])


# It starts processes of its own, which read this file again.
if __name__ == "__main__":
    main()
PY
"$work/venv/bin/python" "$work/run.py" "$work" 2> "$work/log" | grep -E "^(pattern|\.\*)" || { tail -5 "$work/log"; exit 1; }
