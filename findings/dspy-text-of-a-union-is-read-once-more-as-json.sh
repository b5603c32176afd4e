#!/usr/bin/env bash
# An output field `int | str` of a DSPy Signature, with JSONAdapter: the answer is a JSON object, and the field's value a JSON text.
#
# Usual guess: the object is read once, and a text that the schema allows is the field's value.
# Seen (dspy 3.4.1): the text is read a second time, as JSON that is repaired first. So "see [4]" becomes a list and is refused, though it
#   keeps to the schema that DSPy itself sent; and "12" becomes the number 12. With `| None` in the union nothing of it
#   happens: the text is taken as it is.
#
# Output seen:
#   int | str          'see [4]' refused              'size {M}' refused              '12' 12                   'plain' 'plain'
#   int | str | None   'see [4]' 'see [4]'            'size {M}' 'size {M}'           '12' '12'                 'plain' 'plain'
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1" "pydantic==2.14.4"
cat > "$work/run.py" <<'PY'
import json
from typing import Union

import dspy
import pydantic
from dspy.utils.exceptions import AdapterParseError

TEXTS = ("see [4]", "size {M}", "12", "plain")


def read(annotation, text):
    fields = {"question": (str, dspy.InputField()), "value": (annotation, dspy.OutputField())}
    pydantic.TypeAdapter(annotation).validate_python(text)  # what the schema says of it
    try:
        return repr(dspy.JSONAdapter().parse(dspy.Signature(fields), json.dumps({"value": text}))["value"])
    except AdapterParseError:
        return "refused"


found = {}
for name, annotation in (("int | str", Union[int, str]), ("int | str | None", Union[int, str, None])):
    found[name] = [read(annotation, text) for text in TEXTS]
    print(f"{name:18}", *(f"{text!r} {value:20}" for text, value in zip(TEXTS, found[name])))
raw = [repr(text) for text in TEXTS]
assert found["int | str"] == ["refused", "refused", "12", "'plain'"], found
assert found["int | str | None"] == raw, found
PY
"$work/venv/bin/python" "$work/run.py"
