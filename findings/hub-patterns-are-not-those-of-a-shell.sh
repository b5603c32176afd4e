#!/usr/bin/env bash
# snapshot_download(repo, allow_patterns="*.safetensors") chooses files by patterns.
#
# Usual guess: they are those of a shell, of git or of pathlib: `*` stays within a folder, and `**/` is any depth, the top too.
# Seen (huggingface_hub 2.4.0): it is the other way round. `*` takes slashes, so that "*.safetensors" also downloads the copies
#   that many repositories keep in folders (original/, fp32/), twice the bytes; "**/*.json" leaves out the files at the
#   top, such as config.json. "./config.json" takes nothing. Nothing is said of a pattern that takes nothing.
#
# Output seen:
#   *.safetensors   ['model.safetensors', 'original/model.safetensors']
#   **/*.json       ['original/params.json']
#   ./config.json   []
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "huggingface_hub==2.4.0"
cat > "$work/run.py" <<'PY'
# The filter that snapshot_download applies to the names in a repository.
from huggingface_hub.utils import filter_repo_objects

FILES = ["config.json", "model.safetensors", "original/model.safetensors", "original/params.json"]
seen = {}
for pattern in ("*.safetensors", "**/*.json", "./config.json"):
    seen[pattern] = list(filter_repo_objects(FILES, allow_patterns=pattern))
    print(f"{pattern:15} {seen[pattern]}")
want = [["model.safetensors", "original/model.safetensors"], ["original/params.json"], []]
raise SystemExit(list(seen.values()) != want)
PY
"$work/venv/bin/python" "$work/run.py"
