#!/usr/bin/env bash
# outlines-core turns a JSON schema into a regular expression for the JSON text, and a string's "pattern" into a part of it.
#
# Usual guess: the pattern is about the string's value. What a model writes under the expression can always be read as JSON.
# Seen (outlines-core 0.2.14): the pattern is put between the quotes as it stands. `.` and `[^,]` match a quote or a line break
#   too, so that "a"b" is allowed. Of `^yes|no$` each alternative gets one of the two quotes, and yes without its last or no
#   without its first is all that can be written. llguidance 1.9.1 escapes the value and takes the alternatives as a group.
#
# Output seen:
#   ^[^,]+$    "a"b"   outlines: True   llguidance: False  JSON: False
#   ^[^,]+$    "a"     outlines: True   llguidance: True   JSON: True
#   ^yes|no$   "yes"   outlines: False  llguidance: True   JSON: True
#   ^yes|no$   "yes    outlines: True   llguidance: False  JSON: False
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "outlines_core==0.2.14" "llguidance==1.9.1"
cat > "$work/run.py" <<'PY'
import json
import re

from llguidance import LLMatcher, LLTokenizer
from outlines_core.json_schema import build_regex_from_schema

tokenizer = LLTokenizer("byte")


def outlines(schema, text):
    return re.fullmatch(build_regex_from_schema(json.dumps(schema)), text) is not None


def llguidance(schema, text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)), log_level=0)
    assert not matcher.get_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def is_json(schema, text):
    try:
        json.loads(text)
        return True
    except ValueError:
        return False


CASES = (("^[^,]+$", '"a"b"'), ("^[^,]+$", '"a"'), ("^yes|no$", '"yes"'), ("^yes|no$", '"yes'))
seen = []
for pattern, text in CASES:
    schema = {"type": "string", "pattern": pattern}
    row = [check(schema, text) for check in (outlines, llguidance, is_json)]
    seen.append(row)
    print(f"{pattern:10} {text:7} outlines: {row[0]!s:6} llguidance: {row[1]!s:6} JSON: {row[2]}")
want = [[True, False, False], [True, True, True], [False, True, True], [True, False, False]]
raise SystemExit(seen != want)
PY
"$work/venv/bin/python" "$work/run.py"
