#!/usr/bin/env bash
# Lark's grammars import common.ESCAPED_STRING for strings in double quotes, as Lark's JSON tutorial does; llguidance reads
# Lark's notation and has the common terminals.
#
# Usual guess: the terminal of that name is the same, and what a model writes under a JSON grammar can be read as JSON.
# Seen (llguidance 1.9.1, lark 1.3.1): llguidance's ESCAPED_STRING takes a raw line break and a raw tab. Lark's takes the tab
#   alone. Both let through strings that json.loads refuses; with llguidance it is the line break, which models do write.
#
# Output seen:
#   line break  lark: False  llguidance: True   json.loads: False
#   tab         lark: True   llguidance: True   json.loads: False
#   escaped \n  lark: True   llguidance: True   json.loads: True
#
# Exits with 0 if it is still so, with 1 if not.
set -euo pipefail
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
python3 -m venv "$work/venv"
"$work/venv/bin/python" -m pip install --quiet --disable-pip-version-check "llguidance==1.9.1" "lark==1.3.1"
cat > "$work/run.py" <<'PY'
import json

import lark
from llguidance import LLMatcher, LLTokenizer

GRAMMAR = "%import common.ESCAPED_STRING\nstart: ESCAPED_STRING"
tokenizer = LLTokenizer("byte")


def by_lark(text):
    try:
        lark.Lark(GRAMMAR).parse(text)
        return True
    except lark.exceptions.UnexpectedInput:
        return False


def by_llguidance(text):
    matcher = LLMatcher(tokenizer, LLMatcher.grammar_from_lark(GRAMMAR), log_level=0)
    assert not matcher.get_error(), matcher.get_error()
    tokens = tokenizer.tokenize_str(text)
    return matcher.try_consume_tokens(tokens) == len(tokens) and matcher.is_accepting()


def by_json(text):
    try:
        json.loads(text)
        return True
    except ValueError:
        return False


seen = []
for name, text in {"line break": '"a\nb"', "tab": '"a\tb"', "escaped \\n": '"a\\nb"'}.items():
    found = (by_lark(text), by_llguidance(text), by_json(text))
    seen.append(found)
    print(f"{name:11} lark: {found[0]!s:6} llguidance: {found[1]!s:6} json.loads: {found[2]}")
raise SystemExit(seen != [(False, True, False), (True, True, False), (True, True, True)])
PY
"$work/venv/bin/python" "$work/run.py"
