"""XMLAdapter's layout: ``<name>`` value ``</name>`` for each field.

Models and lists are elements in elements, as the adapter's prompt shows them, where everything in them has a
text that reads back; otherwise (dicts, unions, sets, tuples) their text is JSON, which it reads as well. All
of it is well-formed XML: ``<`` and ``&`` are entities, and ``]]>`` cannot be.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from dspy.adapters.xml_adapter import XMLAdapter  # type: ignore[import-untyped]

from ...schemas import lark
from ...schemas.bounded import Bounded
from .types import Field, is_cased, spelled

_CONTROLS = r"\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\ufffe\uffff"
_BLANKS = r" \t\xa0\u1680\u2000-\u200a\u202f\u205f\u3000"
_ENTITY = "&(?:amp|lt|gt|quot|apos);"


def _line(first: str) -> str:
    """The rest of a line from a character on that is none of ``first``; ``>`` never follows ``]``."""
    plain = rf"[^\n<&\]{_CONTROLS}]"
    rest = rf"(?:{plain}|\]+(?:[^\n<&\]>{_CONTROLS}]|{_ENTITY})|{_ENTITY})*\]*"
    begins = rf"[^\n<&\]{_CONTROLS}{first}]|{_ENTITY}"
    after = rf"[^\n<&\]>{_CONTROLS}]|{_ENTITY}"
    return rf"(?:(?:{begins}){rest}|\]+(?:(?:{after}){rest})?)"


TEXT = rf"{_line(_BLANKS)}(?:\n{{1,3}}[{_BLANKS}]*{_line(_BLANKS)})*\n{{0,3}}"
#: Without entities, which count as one character each, and without the newline at the end.
PLAIN = rf"[^<>&{_CONTROLS}{_BLANKS}\n](?:[^<>&{_CONTROLS}])*"
#: JSON's strings have no way to write these but raw.
_AVOID = r"<>&\x7f-\x9f\u2028\u2029\ufffe\uffff"


def grammar(fields: Sequence[Field], notes: list[str]) -> str:
    """The answer for these fields, in this order."""
    rules = _Rules(notes)
    parts: list[str] = []
    for at, field in enumerate(fields):
        if is_cased(fields, at):
            continue  # written with the next
        notes.extend(field.notes)
        if field.cases is not None:
            parts.append(rules.cases(f"field-{at}", fields[at - 1], field, first=at == 1))
            continue
        before = "" if at == 0 else "\n\n"
        inner, inline = rules.field(f"field-{at}", field)
        gap = "" if inline else "\n"
        parts.append(
            f"{lark.literal(f'{before}<{field.name}>{gap}')} {inner} {lark.literal(f'</{field.name}>')}"
        )
    return "\n".join([f"start: {' '.join(parts)}", *rules.written()]) + "\n"


class _Rules:
    """Collects the rules of one grammar."""

    def __init__(self, notes: list[str]) -> None:
        self.notes = notes
        self.lines: dict[str, str] = {}
        self._names: dict[str, str] = {}
        self._definitions: dict[str, Any] = {}

    def written(self) -> list[str]:
        lines = [f"{name}: {body}" for name, body in self.lines.items()]
        if any(re.search(r"\bTEXT\b", line) for line in lines):
            lines.append(f"TEXT: {lark.regex(TEXT)}")
        if any(re.search(r"\bPLAIN\b", line) for line in lines):
            lines.append(f"PLAIN: {lark.regex(PLAIN)}")
        return lines

    def field(self, name: str, field: Field) -> tuple[str, bool]:
        """The rule of a field's value, and whether it stands on the line of its tags."""
        if field.members is not None:
            texts = " | ".join(lark.literal(_entities(text)) for text in field.texts(_read))
            return self.rule(name, f'({texts}) "\\n"'), False
        if field.text:
            options = field.schema.get("anyOf", [field.schema])
            schema: dict[str, Any] = next((one for one in options if one.get("type") == "string"), {})
            return self.rule(name, self.text(name, schema)), False
        if XMLAdapter._uses_nested_xml(field.annotation) and field.lax:
            bounded = Bounded("", self.notes)(field.by_name)
            self._definitions = bounded.get("$defs", {})
            if _nests(bounded, self._definitions, set(), root=True):
                self._names = {}
                return self.element(name, bounded), True
        schema = Bounded(_AVOID, self.notes, _entities)(field.schema)
        return self.rule(name, f'{self.rule(f"{name}-json", lark.document(schema))} "\\n"'), False

    def cases(self, name: str, before: Field, field: Field, *, first: bool) -> str:
        """The rule of a member and the value that goes with it, with their tags."""
        options = []
        for at, (text, one) in enumerate(spelled(before, field.cases or {}, _read, self.notes)):
            schema = Bounded(_AVOID, self.notes, _entities)(one)
            tags = f"<{before.name}>\n{_entities(text)}\n</{before.name}>\n\n<{field.name}>\n"
            value = self.rule(f"{name}-json-{at}", lark.document(schema))
            options.append(f"{lark.literal(tags if first else chr(10) * 2 + tags)} {value}")
        return self.rule(name, f"({' | '.join(options)}) {lark.literal(f'{chr(10)}</{field.name}>')}")

    def rule(self, name: str, body: str) -> str:
        self.lines[name] = body
        return name

    def text(self, name: str, schema: dict[str, Any]) -> str:
        """A text; it takes the newline after it along."""
        if not lark.is_tight(schema):
            return "TEXT"
        terminal = name.upper().replace("-", "_")
        self.lines[terminal] = f"({lark.tight(schema, 'PLAIN', self.notes)}) /\\n?/"
        return terminal

    def element(self, name: str, schema: dict[str, Any]) -> str:
        """A rule for what stands between an element's tags."""
        if "$ref" in schema:
            target = schema["$ref"].rsplit("/", 1)[-1]
            if target not in self._names:
                self._names[target] = f"{name}-of"
                self.element(self._names[target], self._definitions[target])
            return self._names[target]
        if "anyOf" in schema:
            inner = [one for one in schema["anyOf"] if one != {"type": "null"}]
            return self.rule(name, f'{self.element(f"{name}-some", inner[0])} | ""')
        if "enum" in schema:
            return self.rule(name, " | ".join(lark.literal(_entities(one)) for one in schema["enum"]))
        if schema["type"] == "string":
            return self.rule(name, self.text(name, schema))
        if schema["type"] == "array":
            return self.rule(name, self._items(name, schema))
        if schema["type"] == "object":
            parts = [
                f"{lark.literal(f'<{key}>')} {self.element(f'{name}-{at}', one)} {lark.literal(f'</{key}>')}"
                for at, (key, one) in enumerate(schema["properties"].items())
            ]
            return self.rule(name, " ".join(parts))
        return self.rule(name, lark.document(schema))

    def _items(self, name: str, schema: dict[str, Any]) -> str:
        item = self.rule(
            f"{name}-item", f'"<item>" {self.element(f"{name}-each", schema["items"])} "</item>"'
        )
        least, most = schema.get("minItems", 0), schema.get("maxItems", "")
        return f"{item}{{{least},{most}}}"


def _nests(
    schema: dict[str, Any],
    definitions: dict[str, Any],
    seen: set[str],
    *,
    root: bool = False,
    bare: bool = False,
) -> bool:
    """Whether everything in it reads back from elements that hold only text. ``bare`` is what an Optional
    that refers to a model holds: the adapter loses its schema there, so it knows no lists and no null."""
    if "$ref" in schema:
        name = schema["$ref"].rsplit("/", 1)[-1]
        if name in seen:
            return not bare
        return _nests(definitions[name], definitions, seen | {name}, bare=bare)
    kind = schema.get("type")
    if "anyOf" in schema:
        inner = [one for one in schema["anyOf"] if one != {"type": "null"}]
        if bare or len(inner) != 1 or len(schema["anyOf"]) != 2:
            return False
        lost = "$ref" in inner[0] and not root
        return _nests(inner[0], definitions, set() if lost else seen, bare=lost)
    if "enum" in schema:
        return all(isinstance(one, str) and one and one == _read(one) for one in schema["enum"])
    if kind == "object":
        properties = schema.get("properties", {})
        named = all(re.fullmatch(r"[A-Za-z_]\w*", name, re.ASCII) for name in properties)
        whole = list(properties) == schema.get("required", [])
        inner = properties.values()
        return (
            bool(inner)
            and named
            and whole
            and all(_nests(one, definitions, seen, bare=bare) for one in inner)
        )
    if kind == "array":
        fixed = "prefixItems" in schema or not isinstance(schema.get("items"), dict)
        return not (bare or fixed) and _nests(schema["items"], definitions, seen)
    return kind in ("string", "integer", "number", "boolean") and "allOf" not in schema


def _entities(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")


def _read(text: str) -> str | None:
    """What the adapter makes of a text; None if XML cannot hold it."""
    if re.search(f"[{_CONTROLS}]", text):
        return None
    return text.strip()
