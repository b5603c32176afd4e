#!/usr/bin/env bash
# A config.json that transformers 5 saved keeps RoPE's base in "rope_parameters". Model cards (Qwen2.5, Qwen3) say: for long
# texts, add "rope_scaling" with type "yarn" to config.json.
#
# Usual guess: the addition stretches the model; its base (1000000 here) stays.
# Seen (transformers 5.24.0): "rope_scaling" replaces "rope_parameters" whole, and the base that only stood there falls back
#   to the class's default, 10000, without a warning. In a file of before transformers 5 (base in "rope_theta") the same
#   addition keeps the base. Gemma 3 merges the two instead, into the full-attention layers.
#
# Output seen:
#   saved by 5, untouched         1000000.0 default
#   saved by 5, yarn added        10000.0 yarn
#   of before 5, yarn added       1000000.0 yarn
#   gemma 3 saved by 5, added     1000000.0 linear
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "transformers==5.24.0"
cat > "$work/run.py" <<'PY'
import copy

import transformers

transformers.logging.set_verbosity_error()
YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}
SAVED = {"rope_parameters": {"rope_type": "default", "rope_theta": 1000000.0}}
GEMMA = {
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 1000000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
    }
}


def read(kind, **keys):
    # A copy: from_dict writes the defaults that it finds into the nested objects it is given.
    found = getattr(transformers, kind).from_dict(copy.deepcopy(keys)).rope_parameters
    found = found.get("full_attention", found)
    return float(found["rope_theta"]), found["rope_type"]


seen = {
    "saved by 5, untouched": read("Qwen3Config", **SAVED),
    "saved by 5, yarn added": read("Qwen3Config", **SAVED, rope_scaling=YARN),
    "of before 5, yarn added": read("Qwen3Config", rope_theta=1000000.0, rope_scaling=YARN),
    "gemma 3 saved by 5, added": read("Gemma3TextConfig", **GEMMA, rope_scaling={"rope_type": "linear", "factor": 8.0}),
}
for name, (base, kind) in seen.items():
    print(f"{name:29} {base} {kind}")
want = [(1e6, "default"), (1e4, "yarn"), (1e6, "yarn"), (1e6, "linear")]
raise SystemExit(list(seen.values()) != want)
PY
"$work/venv/bin/python" "$work/run.py"
