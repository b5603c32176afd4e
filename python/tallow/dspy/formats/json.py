"""JSONAdapter's and BAMLAdapter's layout: one JSON object with the fields in order; and plain JSON requests.

The adapter reads the object and hands each value to ``parse_value``. That takes the value as it is, except a
text for a field that is no ``str``: it is read once more, as JSON that may need repair. So such a text is
held to a shape that comes out of this as it went in.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Sequence
from typing import Any

from dspy.adapters.utils import parse_value  # type: ignore[import-untyped]

from ...schemas import lark
from ...schemas.bounded import Bounded, Unsupported, references
from .types import Field

#: A text that is no JSON, nor begins any, nor is a Python literal: DSPy leaves it alone.
_PLAIN = r"""^(?:[A-EGHJ-MO-SU-Za-eg-hj-mo-su-z][^\[\]{}"'\\]*|[FINTfint][^\[\]{}"'\\]{8,})$"""


def schema(fields: Sequence[Field], notes: list[str]) -> dict[str, Any]:
    """The object for these fields, in this order."""
    definitions: dict[str, Any] = {}
    properties = {}
    for field in fields:
        notes.extend(field.notes)
        cased = field.cases is not None
        properties[field.name] = {} if cased else joined(_value(field, notes), definitions)
    objects = [
        {
            "type": "object",
            "properties": {**properties, **case},
            "required": list(properties),
            "additionalProperties": False,
        }
        for case in _cases(fields, definitions, notes)
    ]
    written = objects[0] if len(objects) == 1 else {"anyOf": objects}
    return lark.styled({**written, "$defs": definitions} if definitions else written)


def _cases(fields: Sequence[Field], definitions: dict[str, Any], notes: list[str]) -> list[dict[str, Any]]:
    """What differs from case to case, if a field's value depends on the one before it."""
    for before, field in itertools.pairwise(fields):
        if field.cases is not None:
            return [
                {before.name: {"enum": list(value)}, field.name: joined(Bounded("", notes)(one), definitions)}
                for member, one in field.cases.items()
                if (value := before.constant_of(member)) is not None
            ]
    return [{}]


def given(wanted: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    """A schema that a user or an adapter put into the request."""
    return lark.styled(Bounded("", notes)(wanted))


def any_object() -> dict[str, Any]:
    return lark.styled(Bounded()({"type": "object", "additionalProperties": True}))


def _value(field: Field, notes: list[str]) -> dict[str, Any]:
    if field.members is not None:
        constants = field.constants()
        if not constants:
            raise Unsupported(f"no member of {field.name} can be written in JSON")
        return {"enum": constants}
    bounded = Bounded("", notes)
    if field.text and "anyOf" not in field.schema:
        return bounded({"minLength": 1, **field.schema})
    written = bounded(field.schema)
    if field.text or not field.schema:  # taken as it is; or any JSON, to which any reading comes
        return written
    return _top(written, field)


def _top(schema: dict[str, Any], field: Field) -> dict[str, Any]:
    """The value of a field, where a text is read twice."""
    definitions = schema.get("$defs", {})
    if "anyOf" in schema:
        options = []
        for option in schema["anyOf"]:
            options.extend(_options(option, definitions, field))
        return {**schema, "anyOf": options}
    (one,) = _options(
        {key: value for key, value in schema.items() if key != "$defs"}, definitions, field
    ) or [{}]
    return {**one, "$defs": definitions} if definitions else one


def _options(schema: dict[str, Any], definitions: dict[str, Any], field: Field) -> list[dict[str, Any]]:
    reference = schema.get("$ref")
    target = definitions[reference.rsplit("/", 1)[-1]] if reference else schema
    if "enum" in target:
        members = [found for member in target["enum"] for found in _twice(member, field.annotation)]
        return [{"enum": members}] if members else []
    if target.get("type") != "string":
        return [schema]
    if "pattern" in target:
        return [target]  # a date, a UUID: DSPy leaves it alone; of a user's pattern nothing more is known
    return [{**target, "pattern": _PLAIN}]


def _twice(member: Any, annotation: Any) -> list[Any]:
    """The member as JSON, spelled so that reading its text as JSON gives it back."""
    if not isinstance(member, str):
        return [member]
    for text in (member, json.dumps(member)):
        try:
            found = parse_value(text, annotation)
        except Exception:  # pydantic's, or a user's validator: this spelling is none
            continue
        if getattr(found, "value", found) == member:
            return [text]
    return []


def joined(schema: dict[str, Any], definitions: dict[str, Any]) -> dict[str, Any]:
    """A field's schema without its definitions, which move to the whole one's; names that clash change."""
    own = schema.get("$defs", {})
    names = {}
    for name, value in own.items():
        new, number = name, 1
        while new in definitions and not (definitions[new] == value and _closed(value, own, definitions)):
            number += 1
            new = f"{name}-{number}"
        names[name] = new
    for name, value in own.items():
        definitions[names[name]] = _renamed(value, names)
    return _renamed({key: value for key, value in schema.items() if key != "$defs"}, names)


def _closed(value: Any, own: dict[str, Any], definitions: dict[str, Any]) -> bool:
    """Whether all that a definition refers to is the same there."""
    seen: set[str] = set()
    waiting = list(references(value))
    while waiting:
        name = waiting.pop()
        if name in seen:
            continue
        seen.add(name)
        if definitions.get(name) != own.get(name):
            return False
        waiting.extend(references(own.get(name)))
    return True


def _renamed(schema: Any, names: dict[str, str]) -> Any:
    if isinstance(schema, list):
        return [_renamed(one, names) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        key: f"#/$defs/{names[value.rsplit('/', 1)[-1]]}"
        if key == "$ref" and isinstance(value, str)
        else _renamed(value, names)
        for key, value in schema.items()
    }
