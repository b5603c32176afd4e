#!/usr/bin/env bash
# dspy.Predict(signature, n=3) asks for three answers.
#
# Usual guess: they are drawn at the temperature that the language model or the call was given, 0 too: three equal answers.
# Seen (dspy 3.4.1): a temperature of at most 0.15 is replaced by 0.7 as soon as n is above 1, also one that the call says
#   itself, without a warning. A run that was meant to be greedy, and repeatable, is neither.
#
# Output seen:
#   LM(temperature=0), n=1              0.0
#   LM(temperature=0), n=3              0.7
#   Predict(..., temperature=0.1, n=3)  0.7
#   Predict(..., temperature=0.2, n=3)  0.2
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


def sent(**config):
    """The temperature of the request that a model of temperature 0 gets."""
    lm = DummyLM([{"answer": "yes"}] * 9)
    lm.kwargs["temperature"] = 0.0
    with dspy.context(lm=lm):
        dspy.Predict("question -> answer", **config)(question="x")
    return {**lm.kwargs, **lm.history[-1]["kwargs"]}["temperature"]


seen = {
    "LM(temperature=0), n=1": sent(n=1),
    "LM(temperature=0), n=3": sent(n=3),
    "Predict(..., temperature=0.1, n=3)": sent(n=3, temperature=0.1),
    "Predict(..., temperature=0.2, n=3)": sent(n=3, temperature=0.2),
}
for name, temperature in seen.items():
    print(f"{name:35} {temperature}")
raise SystemExit(list(seen.values()) != [0.0, 0.7, 0.7, 0.2])
PY
DSPY_CACHEDIR="$work/cache" "$work/venv/bin/python" "$work/run.py"
