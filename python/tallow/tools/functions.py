"""Tools as callers give them -> checked ``Function``s, and their schemas with the open ends bounded.

Two spellings are read: an object or dict with ``name``, ``description`` and ``parameters``, and OpenAI's
``{"type": "function", "function": {...}}``. A small model that may write a number of any length, or a dict of
any size, sometimes never stops; so ``bounded`` puts a limit where the schema has none.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from ..errors import InvalidRequestError

MAX_NAME_CHARS = 128
#: Fifteen digits: what a float holds exactly.
MAX_NUMBER = 10**15 - 1
#: Finer steps than this are never written; without a step the digits after the point would have no end.
NUMBER_STEP = 1e-9
MAX_OPEN_ITEMS = 16


@dataclass(frozen=True, slots=True)
class Function:
    """One tool that the model may call."""

    name: str
    description: str | None
    parameters: dict[str, Any]
    #: OpenAI's dict, if it was given as one: it may say more than is read here ("strict", "return").
    given: Mapping[str, Any] | None = field(default=None, compare=False, repr=False)

    def shown(self) -> dict[str, Any]:
        """For a chat template that shows tools itself: what was given, if it is a dict of OpenAI's."""
        return self.openai() if self.given is None else dict(self.given)

    def openai(self) -> dict[str, Any]:
        """As chat templates read it."""
        function: dict[str, Any] = {"name": self.name}
        if self.description is not None:
            function["description"] = self.description
        return {"type": "function", "function": {**function, "parameters": self.parameters}}


def functions(tools: Iterable[object], name: str = "tools") -> tuple[Function, ...]:
    """The tools, checked. Reading them twice does no harm: a ``Function`` is one of the spellings."""
    if isinstance(tools, (str, bytes, Mapping)) or not isinstance(tools, Iterable):
        _bad(name, "must be a list of tools")
    found: dict[str, int] = {}
    result = []
    for at, tool in enumerate(tools):
        function = _function(tool, f"{name}[{at}]")
        if function.name in found:
            _bad(
                f"{name}[{at}]",
                f"is named {function.name!r} as {name}[{found[function.name]}] is; names must differ",
            )
        found[function.name] = at
        result.append(function)
    return tuple(result)


def _function(tool: object, where: str) -> Function:
    if isinstance(tool, Mapping):
        inner = tool.get("function", tool)
        if not isinstance(inner, Mapping):
            _bad(f"{where}['function']", "must be a dict with a name and parameters")
        fields = {key: inner.get(key) for key in ("name", "description", "parameters")}
    else:
        fields = {key: getattr(tool, key, None) for key in ("name", "description", "parameters")}
    name, description = fields["name"], fields["description"]
    if not isinstance(name, str) or not name:
        _bad(where, "has no name; give it one")
    if len(name) > MAX_NAME_CHARS or not all(char.isalnum() or char in "_-." for char in name):
        _bad(
            where,
            f"is named {name[:60]!r}; a name is at most {MAX_NAME_CHARS} letters, digits, '_', '-' and '.'",
        )
    if description is not None and not isinstance(description, str):
        _bad(f"{where} ({name})", "has a description that is no text")
    given = tool if isinstance(tool, Mapping) and "function" in tool else getattr(tool, "given", None)
    return Function(name, description, _parameters(fields["parameters"], f"{where} ({name})"), given)


def _parameters(schema: object, where: str) -> dict[str, Any]:
    if schema is None:
        return {"type": "object", "properties": {}}
    if not isinstance(schema, Mapping):
        _bad(
            where,
            "has parameters that are no JSON schema; give a dict like {'type': 'object', 'properties': {…}}",
        )
    if schema.get("type", "object") != "object":
        _bad(where, f"has parameters of type {schema['type']!r}; arguments are always an 'object'")
    properties = schema.get("properties", {})
    if not isinstance(properties, Mapping) or not all(
        isinstance(item, (Mapping, bool)) for item in properties.values()
    ):
        _bad(where, "has parameters['properties'] that are no JSON schemas; give a dict of name -> schema")
    return {"type": "object", **schema}


def _bad(where: str, why: str) -> NoReturn:
    raise InvalidRequestError(f"{where} {why}")


# Bounds

_NUMBER = {"type": "number", "minimum": -MAX_NUMBER, "maximum": MAX_NUMBER, "multipleOf": NUMBER_STEP}
_SCALARS = [{"type": "string"}, _NUMBER, {"type": "boolean"}, {"type": "null"}]
#: A value about which the schema says nothing: one level of list or dict, no deeper.
_ANYTHING: dict[str, Any] = {
    "anyOf": [
        *_SCALARS,
        {"type": "array", "items": {"anyOf": _SCALARS}, "maxItems": MAX_OPEN_ITEMS},
        {"type": "object", "additionalProperties": {"anyOf": _SCALARS}, "maxProperties": MAX_OPEN_ITEMS},
    ]
}
_LISTS = ("anyOf", "oneOf", "prefixItems")
_NAMED = ("properties", "$defs", "definitions", "patternProperties")
#: One of these and the schema says something about its value.
_SAYS = ("type", "enum", "const", "$ref", "allOf", *_LISTS, *_NAMED, "items", "additionalProperties")


def bounded(schema: Any) -> Any:
    """The same schema, with limits to numbers and dicts that had none. Declared limits stay as they are."""
    if schema is True:
        return _ANYTHING
    if not isinstance(schema, Mapping):
        return schema
    result = dict(schema)
    if not any(key in result for key in _SAYS):
        return _ANYTHING
    for key in _LISTS:
        if isinstance(result.get(key), (list, tuple)):
            result[key] = [bounded(item) for item in result[key]]
    for key in _NAMED:
        if isinstance(result.get(key), Mapping):
            result[key] = {name: bounded(item) for name, item in result[key].items()}
    for key in ("items", "additionalProperties"):
        if key in result:
            result[key] = bounded(result[key])
    _bound_types(result)
    return result


def _bound_types(schema: dict[str, Any]) -> None:
    kinds = schema.get("type", "object" if "properties" in schema else ())
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if {"integer", "number"} & set(kinds) and "enum" not in schema:
        if "minimum" not in schema and "exclusiveMinimum" not in schema:
            schema["minimum"] = min(-MAX_NUMBER, schema.get("maximum", 0))
        if "maximum" not in schema and "exclusiveMaximum" not in schema:
            schema["maximum"] = max(MAX_NUMBER, schema.get("minimum", 0))
        if "number" in kinds:
            schema.setdefault("multipleOf", NUMBER_STEP)
    if "array" in kinds and "items" not in schema and "prefixItems" not in schema:
        schema["items"] = {"anyOf": _SCALARS}
        schema.setdefault("maxItems", MAX_OPEN_ITEMS)
    if "object" in kinds and "allOf" not in schema and "patternProperties" not in schema:
        _bound_object(schema)


def _bound_object(schema: dict[str, Any]) -> None:
    if "properties" in schema:
        # Nothing that was not declared: a function fails with an argument that it does not know.
        schema.setdefault("additionalProperties", False)
        return
    if schema.get("additionalProperties", True) is True:
        schema["additionalProperties"] = {"anyOf": _SCALARS}
    if schema["additionalProperties"] is not False:
        schema.setdefault("maxProperties", MAX_OPEN_ITEMS)
