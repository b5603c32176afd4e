#!/usr/bin/env bash
# Constrained decoding promises an answer that is valid by a JSON schema. The keywords below say bounds, multiples, sets, tuples
# and dates, as pydantic writes them, and a bound beside a reference.
#
# Usual guess: a keyword is enforced, or the schema is refused.
# Seen (outlines-core 0.2.14, lm-format-enforcer 0.11.3): many are dropped in silence, and lm-format-enforcer drops the types
#   of a tuple and all dates. Whoever relies on the promise skips the validation. llguidance 1.9.1 enforces or refuses.
#
# Output seen:
#   keyword       an invalid value  outlines-core  lm-format-enforcer  llguidance
#   minimum       2                 dropped        dropped             enforced
#   multipleOf    7                 dropped        dropped             enforced
#   uniqueItems   [1, 1]            dropped        dropped             refused
#   prefixItems   ["a", 1]          enforced       dropped             enforced
#   format: date  "tomorrow"        enforced       dropped             enforced
#   beside $ref   2                 dropped        dropped             enforced
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    "outlines_core==0.2.14" "lm-format-enforcer==0.11.3" "llguidance==1.9.1"
cat > "$work/run.py" <<'PY'
import json
import re

from llguidance import LLMatcher, LLTokenizer
from lmformatenforcer import JsonSchemaParser
from outlines_core.json_schema import build_regex_from_schema

tokenizer = LLTokenizer("byte")
PAIR = [{"type": "integer"}, {"type": "string"}]
CASES = {
    "minimum": ({"type": "integer", "minimum": 3}, "4", "2"),
    "multipleOf": ({"type": "integer", "multipleOf": 5}, "10", "7"),
    "uniqueItems": ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, "[1, 2]", "[1, 1]"),
    "prefixItems": ({"type": "array", "prefixItems": PAIR, "minItems": 2, "maxItems": 2}, '[1, "a"]', '["a", 1]'),
    "format: date": ({"type": "string", "format": "date"}, '"2026-11-30"', '"tomorrow"'),
    "beside $ref": ({"$defs": {"n": {"type": "integer"}}, "$ref": "#/$defs/n", "minimum": 3}, "4", "2"),
}


def outlines(schema):
    expression = re.compile(build_regex_from_schema(json.dumps(schema)))
    return lambda text: expression.fullmatch(text) is not None


def lmfe(schema):
    def allows(text):
        parser = JsonSchemaParser(schema)
        for character in text:
            if character not in parser.get_allowed_characters():
                return False
            parser = parser.add_character(character)
        return parser.can_end()

    return allows


def llguidance(schema):
    grammar = LLMatcher.grammar_from_json_schema(json.dumps(schema))
    if (error := LLMatcher(tokenizer, grammar, log_level=0).get_error()):
        raise ValueError(error)

    def allows(text):
        matcher, tokens = LLMatcher(tokenizer, grammar), tokenizer.tokenize_str(text)
        return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()

    return allows


def fate(compile_, schema, good, bad):
    try:
        allows = compile_(schema)
    except ValueError:
        return "refused"
    assert allows(good), (schema, good)
    return "dropped" if allows(bad) else "enforced"


seen = {}
print("keyword       an invalid value  outlines-core  lm-format-enforcer  llguidance")
for name, (schema, good, bad) in CASES.items():
    row = [fate(compile_, schema, good, bad) for compile_ in (outlines, lmfe, llguidance)]
    seen[name] = row
    print(f"{name:13} {bad:17} {row[0]:14} {row[1]:19} {row[2]}")
dropped, enforced = ["dropped", "dropped", "enforced"], ["enforced", "dropped", "enforced"]
want = [dropped, dropped, ["dropped", "dropped", "refused"], enforced, enforced, dropped]
raise SystemExit(list(seen.values()) != want)
PY
"$work/venv/bin/python" "$work/run.py"
