#!/usr/bin/env bash
# A config.json of a mixture of experts may say "num_experts" and "num_local_experts": tools that edit such files know one of
# the names and leave the other.
#
# Usual guess: each class reads the name of its own published files ("num_experts" for Qwen3-MoE and OLMoE,
#   "num_local_experts" for Mixtral), and the other name changes nothing.
# Seen (transformers 5.24.0): with both, it is the other way round. Qwen3-MoE and OLMoE take "num_local_experts", Mixtral
#   takes "num_experts", without a word.
#
# Output seen:
#   Qwen3MoeConfig 8
#   OlmoeConfig 8
#   MixtralConfig 4
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "transformers==5.24.0"
cat > "$work/run.py" <<'PY'
import sys

import transformers

transformers.logging.set_verbosity_error()
seen = []
for name in ("Qwen3MoeConfig", "OlmoeConfig", "MixtralConfig"):
    config = getattr(transformers, name).from_dict({"num_experts": 4, "num_local_experts": 8})
    seen.append(config.num_local_experts)
    print(name, config.num_local_experts)
sys.exit(seen != [8, 8, 4])
PY
"$work/venv/bin/python" "$work/run.py" 2>/dev/null
