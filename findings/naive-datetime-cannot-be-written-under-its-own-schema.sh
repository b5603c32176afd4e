#!/usr/bin/env bash
# pydantic.NaiveDatetime is a time without a zone. A model that must answer with one is held to the type's JSON schema by
# constrained decoding, and the answer is validated by the same type.
#
# Usual guess: what obeys the schema of a type is valid for the type, at least in its form.
# Seen (pydantic 2.14.4, llguidance 1.9.1): the schema says "date-time" as for any datetime. llguidance follows the standard that
#   defines it, in which a zone is required: each answer that the mask lets through is refused by the type, and the one
#   form that the type takes is masked. A plain `datetime` gets a zone that nobody asked for, and comparing it with
#   datetime.now() raises TypeError.
#
# Output seen:
#   "2026-11-30T12:00:00"   under the mask: False  as NaiveDatetime: True
#   "2026-11-30T12:00:00Z"  under the mask: True   as NaiveDatetime: False
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "pydantic==2.14.4" "llguidance==1.9.1"
cat > "$work/run.py" <<'PY'
import json

import pydantic
from llguidance import LLMatcher, LLTokenizer

kind = pydantic.TypeAdapter(pydantic.NaiveDatetime)
tokenizer = LLTokenizer("byte")


def masked_in(text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_json_schema(json.dumps(kind.json_schema())), log_level=0)
    assert not matcher.get_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def valid(text):
    try:
        kind.validate_json(text)
        return True
    except pydantic.ValidationError:
        return False


seen = []
for text in ('"2026-11-30T12:00:00"', '"2026-11-30T12:00:00Z"'):
    mask, type_ = masked_in(text), valid(text)
    seen.append((mask, type_))
    print(f"{text:23} under the mask: {mask!s:6} as NaiveDatetime: {type_}")
raise SystemExit(seen != [(False, True), (True, False)])
PY
"$work/venv/bin/python" "$work/run.py"
