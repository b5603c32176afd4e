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
import functools
import json
import re
import types
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Union, get_args, get_origin

import pydantic
from dspy.adapters.types.code import Code  # type: ignore[import-untyped]
from dspy.adapters.types.reasoning import Reasoning  # type: ignore[import-untyped]
from dspy.adapters.utils import parse_value  # type: ignore[import-untyped]
from pydantic.json_schema import GenerateJsonSchema

from .schema import KEYS, LARGEST, Unsupported

#: A constraint's name in Python, and in a JSON schema of a number, a text, a list, an object.
_KEYWORDS: dict[str, dict[str, str]] = {
    "ge": {"number": "minimum"},
    "gt": {"number": "exclusiveMinimum"},
    "le": {"number": "maximum"},
    "lt": {"number": "exclusiveMaximum"},
    "multiple_of": {"number": "multipleOf"},
    "min_length": {"string": "minLength", "array": "minItems", "object": "minProperties"},
    "max_length": {"string": "maxLength", "array": "maxItems", "object": "maxProperties"},
    "pattern": {"string": "pattern"},
    "decimal_places": {},
    "max_digits": {},
}
_LOWER = ("minimum", "exclusiveMinimum", "minLength", "minItems", "minProperties")
#: A text that stripping leaves alone.
_STRIPPED = r"^\S(?:.*\S)?$"
_HARMLESS = (
    "strip_whitespace",
    "strict",
    "allow_inf_nan",
    "discriminator",
    "union_mode",
    "coerce_numbers_to_str",
    "fail_fast",
)


@dataclass(frozen=True)
class Field:
    """An output field."""

    name: str
    #: Its Python type, or None where only a schema is known.
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

    def constants(self) -> list[Any]:
        """A JSON value for each member, for an adapter that hands ``parse_value`` what JSON holds."""
        found = [_constant(member, self.annotation) for member in self.members or ()]
        return [one for (one,) in filter(None, found)]


def is_cased(fields: Sequence[Field], at: int) -> bool:
    """Whether the next field's value depends on this one's, so that a grammar writes both together."""
    return at + 1 < len(fields) and fields[at + 1].cases is not None


def from_signature(name: str, info: Any) -> Field:
    """A field of a Signature (pydantic's FieldInfo)."""
    annotation, notes = info.annotation, list[str]()
    members = _members(annotation)
    if annotation is str or _is_text(annotation):
        schema = constrained({"type": "string"}, info.metadata, notes)
        return Field(name, annotation, schema, schema, text=True, notes=tuple(notes))
    if members is not None:
        return Field(name, annotation, {"enum": []}, members=members)
    with_aliases = _Generator.run(annotation, by_alias=True)
    names = _Generator.run(annotation, by_alias=False)
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
        return Field(name, Any, _numbers(json.loads(schema[1])), text=text)
    one_of = re.search(r"must be one of: (.*)$", note, re.DOTALL)
    if one_of is not None:
        values = one_of[1].split("; ")
        if any(re.fullmatch(r"-?[0-9.]+|True|False|None|\(.*\)", value) for value in values):
            raise Unsupported(f"{name} is an Enum whose members' names the prompt does not give")
        return Field(name, Literal[tuple(values)], {"enum": []}, members=tuple(values))
    raise Unsupported(f"the prompt does not say what {name} may be")


@functools.lru_cache(256)
def schema_of(annotation: Any) -> dict[str, Any]:
    """The JSON schema of a type."""
    return _Generator.run(annotation, by_alias=True).schema


def constrained(schema: dict[str, Any], metadata: Iterable[Any], notes: list[str]) -> dict[str, Any]:
    """The schema with the constraints of a Signature's field, on each alternative that they fit."""
    rules: dict[str, Any] = {}
    for item in metadata:
        if getattr(item, "strip_whitespace", None) and schema.get("type") == "string":
            schema = {"pattern": _STRIPPED, **schema}
        if getattr(item, "uuid_version", None) and schema.get("format") == "uuid":
            schema = {**schema, "format": f"uuid{item.uuid_version}"}
            continue
        found = {name: getattr(item, name) for name in _KEYWORDS if getattr(item, name, None) is not None}
        rules.update({name: value for name, value in found.items() if not callable(value)})
        if item is not None and not found and not any(hasattr(item, name) for name in _HARMLESS):
            notes.append(f"{type(item).__name__} is not enforced")
    return _pushed(schema, rules, notes) if rules else schema


def _pushed(schema: dict[str, Any], rules: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return {**schema, keyword: [_pushed(option, rules, notes) for option in schema[keyword]]}
    kind = "number" if schema.get("type") == "integer" else schema.get("type", "")
    if kind in ("", "null", "boolean"):
        return schema
    if kind == "number":
        schema = {**schema, **_decimal(rules)}
    if kind == "string" and "format" in schema:
        notes.append(f"constraints of a {schema['format']} are not enforced")
        return schema
    written = dict(schema)
    for name, value in rules.items():
        target = _KEYWORDS[name].get(kind)
        if target is not None:
            written[target] = _tighter(target, written.get(target), _plain(value))
    return written


def _tighter(keyword: str, old: Any, new: Any) -> Any:
    if old is None or keyword in ("pattern", "multipleOf"):
        return new
    return max(old, new) if keyword in _LOWER else min(old, new)


def _plain(value: Any) -> Any:
    """A bound as JSON has it (a Decimal becomes a float)."""
    return value if isinstance(value, (int, float, str)) else getattr(value, "pattern", None) or float(value)


def _decimal(rules: dict[str, Any]) -> dict[str, Any]:
    """Bounds and step of a number with so many digits and decimals."""
    digits, places = rules.get("max_digits"), rules.get("decimal_places")
    written: dict[str, Any] = {}
    if digits is not None:
        most = 10 ** (digits - (places or 0)) - 1
        written = {"minimum": -min(most, LARGEST), "maximum": min(most, LARGEST)}
    if digits is not None or places is not None:
        written["multipleOf"] = 10.0 ** -(places or 0) if places else 1
    return written


# Python types


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


# pydantic


class _Generator(GenerateJsonSchema):
    """pydantic's JSON schema with what it leaves out: keys of dicts, decimals, kinds of dates; and notes on
    what no schema can say."""

    notes: list[str]
    lax: bool
    schema: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.notes, self.lax, self.schema = [], True, {}

    @classmethod
    def run(cls, annotation: Any, *, by_alias: bool) -> _Generator:
        try:
            adapter = pydantic.TypeAdapter(annotation)
            generator = cls(by_alias=by_alias)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                generator.schema = generator.generate(adapter.core_schema, mode="validation")
        except Exception as error:  # pydantic's own classes, and whatever a user's hook raises
            raise Unsupported(f"pydantic has no JSON schema for {annotation!r}: {error}") from error
        return generator

    def emit_warning(self, kind: Any, detail: str) -> None:
        pass

    def dict_schema(self, schema: Any) -> dict[str, Any]:
        written = super().dict_schema(schema)
        if "keys_schema" in schema:
            written[KEYS] = self.generate_inner(schema["keys_schema"])
        return written

    def decimal_schema(self, schema: Any) -> dict[str, Any]:
        return _pushed(
            {"type": "number"}, {key: schema[key] for key in _KEYWORDS if key in schema}, self.notes
        )

    def date_schema(self, schema: Any) -> dict[str, Any]:
        return {"type": "string", "format": self._moment("date", schema)}

    def datetime_schema(self, schema: Any) -> dict[str, Any]:
        return {"type": "string", "format": self._moment("date-time", schema)}

    def time_schema(self, schema: Any) -> dict[str, Any]:
        return {"type": "string", "format": self._moment("time", schema)}

    def timedelta_schema(self, schema: Any) -> dict[str, Any]:
        return {"type": "string", "format": self._moment("duration", schema)}

    def _moment(self, name: str, schema: Any) -> str:
        if any(schema.get(key) is not None for key in ("ge", "gt", "le", "lt")):
            self.notes.append(f"bounds of a {name} are not enforced")
        suffix = schema.get("now_op") or schema.get("tz_constraint")
        return f"{name}-{suffix}" if suffix in ("past", "future", "aware", "naive") else name

    def model_schema(self, schema: Any) -> dict[str, Any]:
        if schema.get("config", {}).get("strict") or schema.get("strict"):
            self.lax = False
        return super().model_schema(schema)

    def model_field_schema(self, schema: Any) -> dict[str, Any]:
        if "validation_alias" in schema and schema["schema"]["type"] == "default":
            self.lax = False  # by field name it would be passed over, and its default taken
        return super().model_field_schema(schema)

    def str_schema(self, schema: Any) -> dict[str, Any]:
        written = super().str_schema(schema)
        return {"pattern": _STRIPPED, **written} if schema.get("strip_whitespace") else written

    def complex_schema(self, schema: Any) -> dict[str, Any]:
        raise Unsupported("a complex number")

    def is_subclass_schema(self, schema: Any) -> dict[str, Any]:
        raise Unsupported("a type")

    def json_schema(self, schema: Any) -> dict[str, Any]:
        raise Unsupported("JSON in a text")

    def function_after_schema(self, schema: Any) -> dict[str, Any]:
        self._note_on(schema)
        return super().function_after_schema(schema)

    def function_plain_schema(self, schema: Any) -> dict[str, Any]:
        self._note_on(schema)
        return super().function_plain_schema(schema)

    def function_wrap_schema(self, schema: Any) -> dict[str, Any]:
        self._note_on(schema)
        return super().function_wrap_schema(schema)

    def _note_on(self, schema: Any) -> None:
        function = schema["function"]["function"]
        module = getattr(function, "__module__", None) or ""
        if not module.startswith("pydantic"):
            name = getattr(function, "__name__", "a validator")
            self.notes.append(f"{name}, a validator written in Python, is not enforced")
