#!/usr/bin/env bash
# A JSON schema's "pattern" is found anywhere in the string unless it has ^ and $; pydantic's Field(pattern=...) is too. "[0-9]"
# means: has a digit, as in "room 12".
#
# Usual guess: constrained decoding by the schema lets a model write all that is valid by it, or refuses the keyword.
# Seen (outlines-core 0.2.14, lm-format-enforcer 0.11.3): both take the pattern for the whole string. Under "[0-9]" a model can
#   write one digit and no more, under "^[A-Z]" one letter. The answer is valid, so nothing tells. (outlines-core gives
#   a pattern that has only one of ^ and $ an expression that nothing can match.) llguidance 1.9.1 follows the standard.
#
# Output seen:
#   pattern   text         valid  outlines  lmfe   llguidance
#   [0-9]     "room 12"    True   False     False  True
#   [0-9]     "1"          True   True      True   True
#   ^[A-Z]    "Room"       True   False     False  True
#   ^[A-Z]    "R"          True   False     True   True
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "outlines_core==0.2.14" "lm-format-enforcer==0.11.3" "llguidance==1.9.1" "jsonschema==4.26.0"
cat > "$work/run.py" <<'PY'
import json
import re

import jsonschema
from llguidance import LLMatcher, LLTokenizer
from lmformatenforcer import JsonSchemaParser
from outlines_core.json_schema import build_regex_from_schema

tokenizer = LLTokenizer("byte")


def valid(schema, text):
    return jsonschema.Draft202012Validator(schema).is_valid(json.loads(text))


def outlines(schema, text):
    return re.fullmatch(build_regex_from_schema(json.dumps(schema)), text) is not None


def lmfe(schema, text):
    parser = JsonSchemaParser(schema)
    for character in text:
        if character not in parser.get_allowed_characters():
            return False
        parser = parser.add_character(character)
    return parser.can_end()


def llguidance(schema, text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(schema)), log_level=0)
    assert not matcher.get_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


seen = []
print("pattern   text         valid  outlines  lmfe   llguidance")
for pattern, text in (("[0-9]", '"room 12"'), ("[0-9]", '"1"'), ("^[A-Z]", '"Room"'), ("^[A-Z]", '"R"')):
    schema = {"type": "string", "pattern": pattern}
    row = [check(schema, text) for check in (valid, outlines, lmfe, llguidance)]
    seen.append(row)
    print(f"{pattern:9} {text:12} {row[0]!s:6} {row[1]!s:9} {row[2]!s:6} {row[3]}")
want = [[True, False, False, True], [True] * 4, [True, False, False, True], [True, False, True, True]]
raise SystemExit(seen != want)
PY
"$work/venv/bin/python" "$work/run.py"
