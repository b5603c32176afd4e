#!/usr/bin/env bash
# LongRoPE has two sets of factors; "original_max_position_embeddings" says up to which length the short set is meant.
# Most classes of transformers keep it inside "rope_parameters", where transformers 5 moves all that concerns RoPE.
#
# Usual guess: what stands in "rope_parameters" is what the model uses.
# Seen (transformers 5.24.0): Phi-3's class has a field of that name at the top, with 4096 as its default, and the field
#   counts more: a file that has 2048 inside and nothing at the top is read as 4096, in silence. In a Llama the value inside
#   counts when the configuration is read, but one at the top takes over as soon as the rotation is computed (it standardizes
#   the configuration once more).
#
# Output seen:
#   phi3, inside alone            4096
#   phi3, inside and at the top   2048
#   llama, both, as read          8192
#   llama, both, once more        2048
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "transformers==5.24.0"
cat > "$work/run.py" <<'PY'
import transformers

transformers.logging.set_verbosity_error()
KEY = "original_max_position_embeddings"


def longrope():
    return {"rope_type": "longrope", "short_factor": [1.0] * 8, "long_factor": [2.0] * 8, KEY: 2048}


sizes = {"hidden_size": 64, "num_attention_heads": 4, "max_position_embeddings": 8192}
inside = transformers.Phi3Config.from_dict({**sizes, "rope_parameters": longrope()})
both = transformers.Phi3Config.from_dict({**sizes, "rope_parameters": longrope(), KEY: 2048})
yarn = {"rope_type": "yarn", "factor": 4.0, KEY: 8192}
llama = transformers.LlamaConfig.from_dict({**sizes, "rope_parameters": yarn, KEY: 2048})
seen = {
    "phi3, inside alone": inside.rope_parameters[KEY],
    "phi3, inside and at the top": both.rope_parameters[KEY],
    "llama, both, as read": llama.rope_parameters[KEY],
}
llama.standardize_rope_params()
seen["llama, both, once more"] = llama.rope_parameters[KEY]
for name, value in seen.items():
    print(f"{name:29} {value}")
raise SystemExit(list(seen.values()) != [4096, 2048, 8192, 2048])
PY
"$work/venv/bin/python" "$work/run.py"
