#!/usr/bin/env bash
# dspy.OutputField takes pydantic's bounds: `score: float = dspy.OutputField(ge=0, le=1)`; so does a type,
# `Annotated[float, Field(ge=0, le=1)]`.
#
# Usual guess: an answer outside of them is refused, as pydantic would, and a server that is given the JSON schema is told them.
# Seen (dspy 3.4.1): OutputField's bounds become a sentence in the prompt, and no more; 7 is taken. Those of `Annotated` at the
#   top of a field are not even in the prompt: they are nowhere. One level down, list[Annotated[...]], they are checked and in
#   the schema.
#
# Output seen:
#   OutputField(ge, le)    in the prompt: True   in the schema: False  an answer of 7: taken
#   Annotated              in the prompt: False  in the schema: False  an answer of 7: taken
#   list[Annotated]        in the prompt: True   in the schema: True   an answer of 7: refused
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1" "pydantic==2.14.4"
cat > "$work/run.py" <<'PY'
import json
from typing import Annotated

import dspy
from dspy.adapters.json_adapter import _get_structured_outputs_response_format as response_format
from dspy.utils import DummyLM
from dspy.utils.exceptions import AdapterParseError
from pydantic import Field

Share = Annotated[float, Field(ge=0, le=0.125)]


class Bounded(dspy.Signature):
    text: str = dspy.InputField()
    score: float = dspy.OutputField(ge=0, le=0.125)


class Typed(dspy.Signature):
    text: str = dspy.InputField()
    score: Share = dspy.OutputField()


class Inside(dspy.Signature):
    text: str = dspy.InputField()
    score: list[Share] = dspy.OutputField()


def look(signature, answer):
    prompt = str(dspy.ChatAdapter().format(signature, [], {"text": "x"}))
    schema = json.dumps(response_format(signature).model_json_schema())
    adapter = dspy.ChatAdapter(use_json_adapter_fallback=False)
    try:
        with dspy.context(lm=DummyLM([{"score": answer}]), adapter=adapter):
            dspy.Predict(signature)(text="x")
        fate = "taken"
    except AdapterParseError:
        fate = "refused"
    return "0.125" in prompt, "0.125" in schema, fate


seen = {
    "OutputField(ge, le)": look(Bounded, "7"),
    "Annotated": look(Typed, "7"),
    "list[Annotated]": look(Inside, "[7]"),
}
for name, (prompt, schema, fate) in seen.items():
    print(f"{name:22} in the prompt: {prompt!s:6} in the schema: {schema!s:6} an answer of 7: {fate}")
want = [(True, False, "taken"), (False, False, "taken"), (True, True, "refused")]
raise SystemExit(list(seen.values()) != want)
PY
DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"
