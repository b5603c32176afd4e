#!/usr/bin/env bash
# huggingface_hub keeps files of a repository under its commit. snapshot_download(..., local_files_only=True) gives the folder
# of a repository without the network.
#
# Usual guess: it gives the folder if the repository was downloaded, and raises LocalEntryNotFoundError if files are missing:
#   hf_hub_download of a missing file does.
# Seen (huggingface_hub 2.4.0): one file is enough. After something read the configuration alone, the folder is given as the
#   snapshot, also where allow_patterns asks for weights and there are none. The error comes later, from what opens the folder.
#
# Output seen:
#   in the cache: config.json
#   hf_hub_download("model.safetensors")                   LocalEntryNotFoundError
#   snapshot_download()                                    a folder with ['config.json']
#   snapshot_download(allow_patterns=["*.safetensors"])    a folder with ['config.json']
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "huggingface_hub==2.4.0"
cat > "$work/run.py" <<'PY'
import os
import pathlib
import sys

from huggingface_hub import hf_hub_download, snapshot_download

# The cache as hf_hub_download("owner/model", "config.json") leaves it.
cache = pathlib.Path(sys.argv[1])
repository, commit = cache / "models--owner--model", "0123456789abcdef0123456789abcdef01234567"
(repository / "refs").mkdir(parents=True)
(repository / "refs" / "main").write_text(commit)
(repository / "snapshots" / commit).mkdir(parents=True)
(repository / "snapshots" / commit / "config.json").write_text("{}")


def outcome(download, *args, **kwargs):
    try:
        found = download("owner/model", *args, cache_dir=cache, local_files_only=True, **kwargs)
    except Exception as error:
        return type(error).__name__
    return f"a folder with {os.listdir(found)}"


seen = {
    'hf_hub_download("model.safetensors")': outcome(hf_hub_download, "model.safetensors"),
    "snapshot_download()": outcome(snapshot_download),
    'snapshot_download(allow_patterns=["*.safetensors"])': outcome(
        snapshot_download, allow_patterns=["*.safetensors"]
    ),
}
print("in the cache: config.json")
for name, value in seen.items():
    print(f"{name:54} {value}")
partial = "a folder with ['config.json']"
raise SystemExit(list(seen.values()) != ["LocalEntryNotFoundError", partial, partial])
PY
"$work/venv/bin/python" "$work/run.py" "$work/cache"
