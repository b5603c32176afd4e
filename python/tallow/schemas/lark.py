"""Pieces of a grammar in llguidance's dialect of Lark.

A text that a delimiter ends is one lazy lexeme, text and delimiter together: the shortest that fits. So the
first delimiter ends it, and the text itself may hold anything that is not a delimiter. (Two lexemes would not
do: the first, being greedy, would swallow the beginning of the second.)
"""

from __future__ import annotations

import json
from typing import Any

from . import patterns
from .bounded import STYLE


def literal(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)


def regex(pattern: str) -> str:
    """``/pattern/``, with what would end it or not fit in a line escaped."""
    out, escaped = [], False
    for character in pattern:
        if character == "/" and not escaped:
            out.append("\\/")
        elif character == "\n":
            out.append("n" if escaped else "\\n")
        else:
            out.append(character)
        escaped = character == "\\" and not escaped
    return f"/{''.join(out)}/"


def document(schema: dict[str, Any]) -> str:
    """A JSON document."""
    return f"%json {json.dumps(styled(schema), ensure_ascii=False)}"


def styled(schema: dict[str, Any]) -> dict[str, Any]:
    return {**schema, "x-guidance": STYLE}


def escaped(text: str) -> str:
    """A text as a regex."""
    return "".join(f"\\{one}" if one in r"\.+*?()|[]{}^$/#&-~" else one for one in text)


def tight(schema: dict[str, Any], body: str, notes: list[str]) -> str:
    """The text ``body`` (the name of a terminal) with a string schema's length and pattern; it neither begins
    nor ends with a blank, since adapters strip."""
    parts = [body, regex(r"(?s:.*)\S")]
    if "minLength" in schema or "maxLength" in schema:
        least, most = max(schema.get("minLength", 1), 1), schema.get("maxLength", "")
        parts.append(regex(f"(?s:.{{{least},{most}}})"))
    if "pattern" in schema:
        try:
            parts.append(regex(patterns.whole(schema["pattern"])))
        except ValueError as error:
            notes.append(f"the pattern {schema['pattern']!r} is not enforced: {error}")
    return " & ".join(parts)


def is_tight(schema: dict[str, Any]) -> bool:
    return any(keyword in schema for keyword in ("minLength", "maxLength", "pattern"))
