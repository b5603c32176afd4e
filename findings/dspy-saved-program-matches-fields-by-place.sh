#!/usr/bin/env bash
# program.save("program.json") writes what an optimizer found: instructions, the descriptions of the fields, demonstrations.
# program.load reads it into the program that the code builds today.
#
# Usual guess: what was saved of a field belongs to the field of that name, and a file of other fields is refused.
# Seen (dspy 3.4.1): the file holds no names, and the fields are matched by their place. After two inputs changed places in the
#   code, or one was put in front, each gets its neighbour's description, in the prompt too, and nothing is said.
#
# Output seen:
#   in the code:  context = passages to read, question = what is asked
#   after load:   context = what is asked, question = passages to read
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


class Before(dspy.Signature):
    question: str = dspy.InputField(desc="what is asked")
    context: str = dspy.InputField(desc="passages to read")
    answer: str = dspy.OutputField(desc="a few words")


class Today(dspy.Signature):
    context: str = dspy.InputField(desc="passages to read")
    question: str = dspy.InputField(desc="what is asked")
    answer: str = dspy.OutputField(desc="a few words")


def descriptions(program):
    fields = program.signature.input_fields.items()
    return ", ".join(f"{name} = {field.json_schema_extra['desc']}" for name, field in fields)


path = str(pathlib.Path(tempfile.mkdtemp()) / "program.json")
dspy.Predict(Before).save(path)
program = dspy.Predict(Today)
written = descriptions(program)
program.load(path)
loaded = descriptions(program)
print("in the code: ", written)
print("after load:  ", loaded)
raise SystemExit(loaded != "context = what is asked, question = passages to read")
PY
DSPY_CACHEDIR="$work/cache" TMPDIR="$work" "$work/venv/bin/python" "$work/run.py"
