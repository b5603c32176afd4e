"""Python types -> JSON schemas that say what the type's own reader (pydantic) reads.

One place for what pydantic's own JSON schemas leave out: the keys of dicts, decimals, kinds of dates and
addresses, a field's own constraints. ``bounded`` then makes of these what a grammar can be made of.
"""

from __future__ import annotations

import functools
import warnings
from collections.abc import Iterable
from typing import Any

import pydantic
from pydantic.json_schema import GenerateJsonSchema

from . import patterns
from .bounded import KEYS, LARGEST, Unsupported

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
#: The end of a note on what is the caller's own business.
VALIDATOR = "a validator written in Python, is not enforced"
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


@functools.lru_cache(256)
def schema_of(annotation: Any) -> dict[str, Any]:
    """The JSON schema of a type."""
    return Generator.run(annotation, by_alias=True).schema


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
    return pushed(schema, rules, notes) if rules else schema


def pushed(schema: dict[str, Any], rules: dict[str, Any], notes: list[str]) -> dict[str, Any]:
    for keyword in ("anyOf", "oneOf"):
        if keyword in schema:
            return {**schema, keyword: [pushed(option, rules, notes) for option in schema[keyword]]}
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


class Generator(GenerateJsonSchema):
    """pydantic's JSON schema with what it leaves out: keys of dicts, decimals, kinds of dates; and notes on
    what no schema can say."""

    notes: list[str]
    lax: bool
    schema: dict[str, Any]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.notes, self.lax, self.schema = [], True, {}

    @classmethod
    def run(cls, annotation: Any, *, by_alias: bool) -> Generator:
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
        return pushed(
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
            self.notes.append(f"{name}, {VALIDATOR}")

    def url_schema(self, schema: Any) -> dict[str, Any]:
        schemes = schema.get("allowed_schemes") or ["https"]
        if {"http", "https"} & set(schemes):
            return super().url_schema(schema)
        return {"type": "string", "pattern": patterns.address(schemes)}

    def multi_host_url_schema(self, schema: Any) -> dict[str, Any]:
        return {"type": "string", "pattern": patterns.address(schema.get("allowed_schemes") or ["https"])}
