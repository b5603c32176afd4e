"""ChatAdapter's layout: ``[[ ## name ## ]]``, the value on the next line, and ``[[ ## completed ## ]]``.

The adapter reads a header wherever a line begins with one, so a text may not hold a line that begins with
``[[ ##``; written there, it is the next header and nothing else. Python's ``splitlines`` breaks lines at a
dozen characters; but for the newline they are kept out of all values.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from ...schemas import lark
from ...schemas.bounded import Bounded
from .types import Field, is_cased, spelled

_BLANKS = r" \t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"
#: Characters at which ``splitlines`` breaks, and other control characters but tab and newline.
_BREAKS = r"\x85\u2028\u2029"
_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f" + _BREAKS
_HEADER = re.compile(r"\[\[ ## (\w+) ## \]\]")


def _rest(but: str = "") -> str:
    """One character that is none of these and then the rest of the line."""
    return rf"[^\n{_CONTROLS}{but}][^\n{_CONTROLS}]*"


def _line() -> str:
    """A line without the blanks before it: it holds something and does not begin with ``[[ ##``."""
    tail = ""
    for but in ("#", "#", " ", r"\["):  # from the last character of the marker to its second
        tail = rf"(?:{_rest(but)}|{but}{tail})?" if tail else rf"(?:{_rest(but)})?"
    return rf"(?:{_rest(_BLANKS + chr(92) + '[')}|\[{tail})"


#: Lines, at most two empty ones in a row, and nothing that stripping would take.
TEXT = rf"{_line()}(?:\n{{1,3}}[{_BLANKS}]*{_line()})*"


def grammar(fields: Sequence[Field], notes: list[str]) -> str:
    """The answer for these fields, in this order."""
    names = [*(field.name for field in fields[1:]), "completed"]
    ends = [f"[[ ## {name} ## ]]" + ("\n" if at + 1 < len(names) else "") for at, name in enumerate(names)]
    rules = [f"field-{at}" for at, field in enumerate(fields) if not is_cased(fields, at)]
    start = " ".join(rules)
    lines = [f"start: {lark.literal(header(fields[0].name))} {start}"]
    for at, (field, end) in enumerate(zip(fields, ends, strict=True)):
        if field.cases is not None:
            lines.extend(_cases(f"field-{at}", fields[at - 1], field.cases, ends[at - 1], end, notes))
        elif not is_cased(fields, at):
            lines.extend(_value(f"field-{at}", field, end, notes))
    if any("TEXT" in line for line in lines):
        lines.append(f"TEXT: {lark.regex(TEXT)}")
    return "\n".join(lines) + "\n"


def header(name: str) -> str:
    return f"[[ ## {name} ## ]]\n"


def _value(rule: str, field: Field, end: str, notes: list[str]) -> list[str]:
    """Rules for a value and what follows it."""
    notes.extend(field.notes)
    if field.members is not None:
        texts = " | ".join(lark.literal(text) for text in field.texts(read))
        return [f"{rule}: ({texts}) {lark.literal(chr(10) * 2 + end)}"]
    if field.text:
        return _text(rule, field.schema, end, notes)
    schema = Bounded(_BREAKS, notes)(field.schema)
    return [f"{rule}: {rule}-json {lark.literal(chr(10) * 2 + end)}", f"{rule}-json: {lark.document(schema)}"]


def _cases(
    rule: str, before: Field, cases: dict[str, Any], middle: str, end: str, notes: list[str]
) -> list[str]:
    """Rules for a member of the field before and the value that goes with it."""
    options, lines = [], []
    for at, (text, schema) in enumerate(spelled(before, cases, read, notes)):
        written = Bounded(_BREAKS, notes)(schema)
        options.append(f"{lark.literal(f'{text}{chr(10) * 2}{middle}')} {rule}-json-{at}")
        lines.append(f"{rule}-json-{at}: {lark.document(written)}")
    return [f"{rule}: ({' | '.join(options)}) {lark.literal(chr(10) * 2 + end)}", *lines]


def _text(rule: str, schema: dict[str, Any], end: str, notes: list[str]) -> list[str]:
    name = rule.upper().replace("-", "_")
    schema = next((one for one in schema.get("anyOf", [schema]) if one.get("type") == "string"), {})
    delimiter = lark.regex(r"\n{1,3}" + lark.escaped(end))
    body = f"({lark.tight(schema, 'TEXT', notes)})" if lark.is_tight(schema) else "TEXT"
    return [f"{rule}[lazy]: {name}", f"{name}: {body} {delimiter}"]


def read(text: str) -> str | None:
    """What the adapter makes of a value's text; None if it would take a line of it for a header."""
    lines = text.splitlines()
    if any(_HEADER.match(line.strip()) for line in lines):
        return None
    return "\n".join(lines).strip()
