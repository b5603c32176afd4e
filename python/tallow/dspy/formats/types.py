"""Output fields: a Signature's types and constraints, or what a prompt says of them, as JSON schemas.

- ``Field``: one output field as the formats need it, from a Signature (``from_signature``) or from the notes
  of a prompt (``from_note``).
- ``Field.texts``: the spellings of a Literal's or Enum's members that DSPy reads back as those members. They
  are found by asking DSPy's own ``parse_value``, so they stay right when its rules change.

DSPy drops the constraints of a Signature's own fields (``OutputField(le=9)``); here they join the schema.
"""

from __future__ import annotations

import ast
import enum
import json
import re
import types
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

import pydantic
from dspy.adapters.types.code import Code  # type: ignore[import-untyped]
from dspy.adapters.types.reasoning import Reasoning  # type: ignore[import-untyped]
from dspy.adapters.utils import parse_value  # type: ignore[import-untyped]

from ...schemas.bounded import KEYS, Unsupported
from ...schemas.classes import Generator, constrained


@dataclass(frozen=True)
class Field:
    """An output field."""

    name: str
    #: Its Python type; Any where only a schema is known.
    annotation: Any
    #: As pydantic gives it, with the field's own constraints.
    schema: dict[str, Any]
    #: The same with field names for aliases (XML).
    by_name: dict[str, Any] = field(default_factory=dict)
    #: The adapters take its text as it is: no JSON.
    text: bool = False
    members: tuple[Any, ...] | None = None
    #: Every model in it reads numbers from text and names from fields (XML's elements hold text only).
    lax: bool = True
    #: Its schema for each member of the field before it, where that decides it (a tool's arguments).
    cases: dict[str, dict[str, Any]] | None = None
    notes: tuple[str, ...] = ()

    def texts(self, clean: Callable[[str], str | None]) -> list[str]:
        """A spelling for each member; ``clean`` is what the adapter does to a text before it reads it."""
        spelled = [_spelling(member, self.annotation, clean) for member in self.members or ()]
        found = [text for text in spelled if text is not None]
        if not found:
            raise Unsupported(f"no member of {self.name} has a spelling that DSPy reads back")
        return list(dict.fromkeys(found))

    def text_of(self, member: Any, clean: Callable[[str], str | None]) -> str | None:
        """One member's spelling, or None if it has none that DSPy reads back."""
        return _spelling(member, self.annotation, clean)

    def constant_of(self, member: Any) -> tuple[Any] | None:
        """One member as a JSON value, or None if there is none that DSPy reads back."""
        return _constant(member, self.annotation)

    def constants(self) -> list[Any]:
        """A JSON value for each member, for an adapter that hands ``parse_value`` what JSON holds."""
        found = [_constant(member, self.annotation) for member in self.members or ()]
        return [one for (one,) in filter(None, found)]


def is_cased(fields: Sequence[Field], at: int) -> bool:
    """Whether the next field's value depends on this one's, so that a grammar writes both together."""
    return at + 1 < len(fields) and fields[at + 1].cases is not None


def spelled(
    before: Field, cases: dict[str, dict[str, Any]], clean: Callable[[str], str | None], notes: list[str]
) -> list[tuple[str, dict[str, Any]]]:
    """The cases of a field, by the spelling of the member of the field before that goes with each."""
    found = []
    for member, schema in cases.items():
        text = before.text_of(member, clean)
        if text is None:
            notes.append(f"{member!r} of {before.name} has no spelling that DSPy reads back; it is left out")
        else:
            found.append((text, schema))
    if not found:
        raise Unsupported(f"no member of {before.name} has a spelling that DSPy reads back")
    return found


def from_signature(name: str, info: Any) -> Field:
    """A field of a Signature (pydantic's FieldInfo)."""
    annotation, notes = info.annotation, list[str]()
    members = _members(annotation)
    if annotation is str or _is_text(annotation):
        schema = constrained({"type": "string"}, info.metadata, notes)
        return Field(name, annotation, schema, schema, text=True, notes=tuple(notes))
    if members is not None:
        return Field(name, annotation, {"enum": []}, members=members)
    with_aliases = Generator.run(annotation, by_alias=True)
    names = Generator.run(annotation, by_alias=False)
    notes.extend(with_aliases.notes)
    schema = constrained(with_aliases.schema, info.metadata, notes)
    by_name = constrained(names.schema, info.metadata, [])
    return Field(
        name,
        annotation,
        schema,
        by_name,
        text=_raw_union(annotation),
        lax=with_aliases.lax,
        notes=tuple(dict.fromkeys(notes)),
    )


def from_note(name: str, kind: str | None, note: str) -> Field:
    """A field as a prompt describes it: its type's name in the reminder, its note in the system message."""
    simple = {None: str, "str": str, "int": int, "float": float, "bool": bool}
    if kind in simple and (kind is not None or not note):
        return from_signature(name, pydantic.fields.FieldInfo(annotation=simple[kind]))
    if kind is not None and kind.startswith("Literal["):
        annotation = _literal(kind)
        return Field(name, annotation, {"enum": []}, members=get_args(annotation))
    schema = re.search(r"must adhere to the JSON schema: (\{.*\})\s*$", note, re.DOTALL)
    if schema is not None:
        arguments = _arguments(kind or "")
        text = (kind or "").startswith("Union[") and {"str", "NoneType"} <= set(arguments)
        return Field(name, Any, _keyed(_numbers(json.loads(schema[1])), kind or ""), text=text)
    one_of = re.search(r"must be one of: (.*)$", note, re.DOTALL)
    if one_of is not None:
        values = one_of[1].split("; ")
        if any(re.fullmatch(r"-?[0-9.]+|True|False|None|\(.*\)", value) for value in values):
            raise Unsupported(f"{name} is an Enum whose members' names the prompt does not give")
        return Field(name, Literal[tuple(values)], {"enum": []}, members=tuple(values))
    raise Unsupported(f"the prompt does not say what {name} may be")


def from_type(name: str, kind: str) -> Field:
    """A field of which a prompt gives nothing but its type's name: of types that everybody knows."""
    try:
        annotation = _known(ast.parse(kind, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        annotation = None
    if annotation is None:
        raise Unsupported(f"the prompt is not the calling Signature's, and does not say what {name} may be")
    return from_signature(name, pydantic.fields.FieldInfo(annotation=annotation))


# Python types


_KNOWN: dict[str, Any] = {
    **{"str": str, "int": int, "float": float, "bool": bool, "NoneType": type(None)},
    **{"list": list, "dict": dict, "Union": Union},
}


def _known(node: ast.expr) -> Any:
    """The type that an expression names, such as ``list[str]``; None where a name is somebody's own."""
    if isinstance(node, ast.Name):
        return _KNOWN.get(node.id)
    if not isinstance(node, ast.Subscript):
        return None
    if isinstance(node.value, ast.Name) and node.value.id == "Literal":
        values = ast.literal_eval(node.slice)
        return Literal[values]
    of = _known(node.value)
    inner = node.slice.elts if isinstance(node.slice, ast.Tuple) else [node.slice]
    found = tuple(_known(one) for one in inner)
    return None if of is None or None in found else of[found]


def _members(annotation: Any) -> tuple[Any, ...] | None:
    if isinstance(annotation, enum.EnumMeta):
        return tuple(annotation)
    if get_origin(annotation) is Literal:
        return get_args(annotation)
    return (True, False) if annotation is bool else None


def _is_text(annotation: Any) -> bool:
    return isinstance(annotation, type) and issubclass(annotation, (Reasoning, Code))


def _raw_union(annotation: Any) -> bool:
    """DSPy takes the text of ``str | None`` as it stands."""
    members = get_args(annotation)
    is_union = get_origin(annotation) in (Union, types.UnionType)
    return is_union and str in members and type(None) in members


def _literal(kind: str) -> Any:
    """``Literal['a', 2]`` as the reminder spells it: with quotes escaped and nothing else."""
    inner = kind[len("Literal[") : -1].replace("\\", "\\\\").replace("\\\\'", "\\'").replace("\n", "\\n")
    try:
        members = ast.literal_eval(f"({inner},)")
    except (SyntaxError, ValueError) as error:
        raise Unsupported(f"the type {kind} of the prompt cannot be read") from error
    return Literal[members]


def _numbers(schema: Any) -> Any:
    """A Decimal is shown as a number or a text; a number is right for it, and for ``float | str`` too."""
    if isinstance(schema, list):
        return [_numbers(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    if [one.get("type") for one in schema.get("anyOf", ())][:2] == ["number", "string"]:
        schema = {**schema, "anyOf": [one for one in schema["anyOf"] if one.get("type") != "string"]}
    return {key: _numbers(value) for key, value in schema.items()}


def _keyed(schema: dict[str, Any], kind: str) -> dict[str, Any]:
    """The schema with the keys of ``dict[int, X]``, which only the type's name tells."""
    found = re.fullmatch(r"(dict|list)\[(?:(int|float|bool|str), )?(.*)\]", kind, re.DOTALL)
    if found is None:
        return schema
    inside = "items" if found[1] == "list" else "additionalProperties"
    if isinstance(schema.get(inside), dict):
        schema = {**schema, inside: _keyed(schema[inside], found[3])}
    keys = {"int": "integer", "float": "number", "bool": "boolean"}.get(found[2] or "")
    return {**schema, KEYS: {"type": keys}} if keys and schema.get("type") == "object" else schema


def _arguments(kind: str) -> list[str]:
    """``X`` and ``Y[Z]`` of ``Union[X, Y[Z]]``."""
    inner, before = kind[kind.find("[") + 1 : -1], ""
    while inner != before:
        before, inner = inner, re.sub(r"\[[^\[\]]*\]", "", inner)
    return [one.strip() for one in inner.split(",")]


def _parses(value: Any, annotation: Any, member: Any) -> bool:
    try:
        found = parse_value(value, annotation)
    except Exception:  # whatever a user's __missing__ or validator raises, this spelling is none
        return False
    return type(found) is type(member) and bool(found == member)


def _spelling(member: Any, annotation: Any, clean: Callable[[str], str | None]) -> str | None:
    value = member.value if isinstance(member, enum.Enum) else member
    quoted = json.dumps(value, ensure_ascii=False) if isinstance(value, str) else str(value)
    name = [member.name] if isinstance(member, enum.Enum) else []
    for text in (str(value), *name, quoted, f"'{quoted}'", f'"{quoted}"'):
        read = clean(text)
        if text and read is not None and _parses(read, annotation, member):
            return text
    return None


def _constant(member: Any, annotation: Any) -> tuple[Any] | None:
    value = member.value if isinstance(member, enum.Enum) else member
    name = [member.name] if isinstance(member, enum.Enum) else []
    for one in (value, *name, str(value), json.dumps(value) if isinstance(value, str) else ""):
        plain = one is None or type(one) in (str, int, float, bool)
        if plain and _parses(one, annotation, member):
            return (one,)
    return None
