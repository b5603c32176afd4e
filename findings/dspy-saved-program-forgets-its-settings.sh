#!/usr/bin/env bash
# dspy.Predict(signature, temperature=0.9, n=3) keeps settings for its calls. program.save("program.json") writes the program's
# state, program.load reads it.
#
# Usual guess: the settings are part of the state, as the instructions, the demonstrations and the language model are.
# Seen (dspy 3.4.1): they are not in the file, and the loaded program asks once, at the default temperature. Nothing is said
#   on either side. A program that a pipeline builds without them and reads from the file is another one than was measured.
#   (`save(folder, save_program=True)`, which pickles the whole program, keeps them.)
#
# Output seen:
#   saved   {'temperature': 0.9, 'n': 3}
#   loaded  {}
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1"
cat > "$work/run.py" <<'PY'
import pathlib
import tempfile

import dspy

path = str(pathlib.Path(tempfile.mkdtemp()) / "program.json")
saved = dspy.Predict("question -> answer", temperature=0.9, n=3)
saved.save(path)
loaded = dspy.Predict("question -> answer")
loaded.load(path)
print("saved  ", saved.get_config())
print("loaded ", loaded.get_config())
raise SystemExit(loaded.get_config() != {} or "0.9" in pathlib.Path(path).read_text())
PY
DSPY_CACHEDIR="$work/cache" TMPDIR="$work" "$work/venv/bin/python" "$work/run.py"
