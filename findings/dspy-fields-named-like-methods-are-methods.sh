#!/usr/bin/env bash
# A DSPy signature names its fields freely: "text -> items: list[str]". The prediction gives them as attributes.
#
# Usual guess: `prediction.items` is the list that the model wrote.
# Seen (dspy 3.4.1): Prediction and Example have methods `items`, `keys`, `values`, `get`, `copy`, `inputs`, `labels`, `without`,
#   and the method wins, without a word when the signature is made or called. A metric that compares `gold.items` with
#   `prediction.items` compares two methods: always unequal, so that each example fails. `prediction["items"]` is the list.
#
# Output seen:
#   prediction["items"]  ['milk', 'bread']
#   prediction.items     method
#   the metric           False
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile "dspy==3.4.1"
cat > "$work/run.py" <<'PY'
import dspy
from dspy.utils import DummyLM

gold = dspy.Example(text="Buy milk and bread.", items=["milk", "bread"]).with_inputs("text")
with dspy.context(lm=DummyLM([{"items": '["milk", "bread"]'}])):
    prediction = dspy.Predict("text -> items: list[str]")(text=gold.text)
kind = type(prediction.items).__name__
equal = gold.items == prediction.items
print('prediction["items"] ', prediction["items"])
print("prediction.items    ", kind)
print("the metric          ", equal)
raise SystemExit((prediction["items"], kind, equal) != (["milk", "bread"], "method", False))
PY
DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"
