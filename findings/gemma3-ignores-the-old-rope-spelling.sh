#!/usr/bin/env bash
# Before transformers 4.45 a stretched RoPE was spelled {"type": "linear", "factor": 8.0}; since then the key is "rope_type".
# transformers 5 still reads files of both.
#
# Usual guess: both spellings mean the same in every class.
# Seen (transformers 5.24.0): a Llama reads the old one as linear. Gemma 3's class writes "rope_type": "default" into its rotation
#   first and merges what the file says into that, so that "type" is kept beside it and never read: no stretch, no warning.
#
# Output seen:
#   llama, old spelling     linear
#   gemma 3, old spelling   default
#   gemma 3, new spelling   linear
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


def kind(name, spelling):
    scaling = {spelling: "linear", "factor": 8.0}
    found = getattr(transformers, name).from_dict({"rope_scaling": scaling}).rope_parameters
    return found.get("full_attention", found)["rope_type"]


seen = {
    "llama, old spelling": kind("LlamaConfig", "type"),
    "gemma 3, old spelling": kind("Gemma3TextConfig", "type"),
    "gemma 3, new spelling": kind("Gemma3TextConfig", "rope_type"),
}
for name, value in seen.items():
    print(f"{name:23} {value}")
raise SystemExit(list(seen.values()) != ["linear", "default", "linear"])
PY
"$work/venv/bin/python" "$work/run.py"
