#!/usr/bin/env bash
# An OLMo 3 config.json says its RoPE base once, at the top: "rope_theta". Its layers with a window turn without the
# scaling of the full ones, by the same base.
#
# Usual guess: the base at the top counts for all layers, so whoever trains a small OLMo 3 with another base writes it there.
# Seen (transformers 5.24.0): it counts for the full layers alone. Those with a window keep the class's 500000, without a
#   word; the key is taken out of the file's when the first kind of layer is filled in. Published files say 500000 and
#   hide it.
#
# Output seen:
#   full_attention 1000.0
#   sliding_attention 500000.0
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
config = transformers.Olmo3Config.from_dict({"rope_theta": 1000.0, "num_hidden_layers": 4})
seen = {kind: rope["rope_theta"] for kind, rope in sorted(config.rope_parameters.items())}
for kind, base in seen.items():
    print(kind, base)
sys.exit(seen != {"full_attention": 1000.0, "sliding_attention": 500000.0})
PY
"$work/venv/bin/python" "$work/run.py" 2>/dev/null
