#!/usr/bin/env bash
# With dspy.JSONAdapter a model answers with a JSON object of the output fields; a model that does not know writes null.
#
# Usual guess: null in a field of type str is refused, as it is in one of type int or list[str], or becomes None.
# Seen (dspy 3.4.1): it becomes the text "None", a true value of four letters that the next module reads as an answer. An object
#   or a list becomes its Python spelling, with single quotes and True, which is no longer JSON.
#
# Output seen:
#   {"answer": null} -> 'None'
#   {"answer": {"found": true}} -> "{'found': True}"
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1"
cat > "$work/run.py" <<'PY'
import dspy

signature = dspy.Signature("question -> answer")
seen = []
for reply in ('{"answer": null}', '{"answer": {"found": true}}'):
    answer = dspy.JSONAdapter().parse(signature, reply)["answer"]
    seen.append(answer)
    print(reply, "->", repr(answer))
raise SystemExit(seen != ["None", "{'found': True}"])
PY
DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"
