#!/usr/bin/env bash
# A JSON schema bounds a number by "exclusiveMinimum": the value itself is not allowed. pydantic writes it for Field(gt=0).
#
# Usual guess: text written under llguidance's mask keeps the bounds; it has an expression for ranges of numbers.
# Seen (llguidance 1.9.1): it does not where the minimum is a whole number and the upper bound is below the next one, as for a
#   share, a rate or a probability: "0" is allowed in (0, 0.5], and "2" in (2, 2.5), though "0.0" is not. Validation of
#   the answer then fails. Wider ranges are right.
#
# Output seen:
#   0 < x <= 0.5    0: allowed  0.0: refused
#   0 < x < 0.1     0: allowed  0.0: refused
#   0 < x < 1       0: refused  0.0: refused
#   2 < x < 2.5     2: allowed  2.0: refused
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "llguidance==1.9.1"
cat > "$work/run.py" <<'PY'
import json

from llguidance import LLMatcher, LLTokenizer

tokenizer = LLTokenizer("byte")


def allowed(schema, text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)), log_level=0)
    assert not matcher.get_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


RANGES = {
    "0 < x <= 0.5": (0, {"maximum": 0.5}),
    "0 < x < 0.1": (0, {"exclusiveMaximum": 0.1}),
    "0 < x < 1": (0, {"exclusiveMaximum": 1}),
    "2 < x < 2.5": (2, {"exclusiveMaximum": 2.5}),
}
seen = []
for name, (low, upper) in RANGES.items():
    schema = {"type": "number", "exclusiveMinimum": low, **upper}
    whole, point = (allowed(schema, text) for text in (f"{low}", f"{low}.0"))
    seen.append((whole, point))
    words = {True: "allowed", False: "refused"}
    print(f"{name:15} {low}: {words[whole]}  {low}.0: {words[point]}")
raise SystemExit(seen != [(True, False), (True, False), (False, False), (True, False)])
PY
"$work/venv/bin/python" "$work/run.py"
