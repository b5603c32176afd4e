"""JSON schemas and Python types: what an answer may be is what jsonschema and pydantic take."""

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import ipaddress
import json
import pathlib
import re
import uuid
from typing import Annotated, Any, Literal, NamedTuple
from urllib.parse import urlsplit

import jsonschema
import pydantic
import pytest
from typing_extensions import TypedDict

import tallow

WIDE = 1234567890123456789
MOST = 2**64 - 1


def answers(model, schema, seeds=4, max_tokens=300):
    """Texts that a model of random weights writes; it would write anything else as well."""
    return [
        model.generate("x", json_schema=schema, max_tokens=max_tokens, temperature=1.0, seed=seed).text
        for seed in range(seeds)
    ]


def validated(schema, text):
    value = json.loads(text)
    jsonschema.Draft202012Validator(schema).validate(value)
    return value


# Integers

CONSTANTS = (2**53, 2**53 + 1, -(2**53) - 1, WIDE, 2**63, MOST, -(2**63))
NUMBERS: list[dict[str, Any]] = [
    *({"const": value} for value in CONSTANTS),
    {"enum": list(CONSTANTS)},
    {"type": "integer", "enum": [WIDE, "text", 3]},
    {"const": {"id": WIDE, "of": [2**53 + 1, "x"]}},
    {"enum": [WIDE, "a", None, 1.5, {"x": WIDE}]},
    {"type": "integer", "minimum": WIDE, "maximum": WIDE + 1},
    {"type": "integer", "exclusiveMinimum": 2**53, "exclusiveMaximum": 2**53 + 2},
    {"type": "integer", "minimum": 2**60, "maximum": 2**60 + 40, "multipleOf": 7},
    {"type": "integer", "minimum": -(2**63), "maximum": -(2**63) + 1},
    {"type": "number", "minimum": WIDE, "maximum": WIDE + 3},
    {"type": ["integer", "null"], "minimum": 2**60, "maximum": 2**60 + 5},
    {"minimum": 2**60, "maximum": 2**60 + 5, "type": ["string", "integer"], "maxLength": 3},
    {"type": "integer", "minimum": 0.5, "maximum": 2.5},
    {"type": "integer", "exclusiveMinimum": 3, "minimum": 2, "maximum": 5},
    {"type": "integer", "minimum": 1e3, "maximum": 1e3},
    {"type": "integer", "minimum": 1e20, "maximum": 2e20},
    {
        "type": "object",
        "properties": {"id": {"const": WIDE}, "n": {"type": "integer", "minimum": 2**60, "maximum": MOST}},
        "required": ["id", "n"],
        "additionalProperties": False,
    },
    {"type": "array", "items": {"anyOf": [{"const": WIDE}, {"type": "boolean"}]}, "maxItems": 4},
    {"$ref": "#/$defs/a", "$defs": {"a": {"enum": [WIDE, WIDE + 1]}}},
]


@pytest.mark.parametrize("schema", NUMBERS, ids=str)
def test_integers_are_exact(wide, schema):
    for text in answers(wide, schema):
        validated(schema, text)


def test_every_wide_integer_of_a_range_can_be_written(wide):
    schema = {"type": "integer", "minimum": WIDE, "maximum": WIDE + 3}
    assert {int(text) for text in answers(wide, schema, seeds=60)} == {WIDE + more for more in range(4)}


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"allOf": [{"const": WIDE}, {"type": "integer"}]}, "2^53"),
        ({"const": WIDE, "minimum": 0}, "minimum"),
        ({"type": "integer", "minimum": 2**60, "multipleOf": 0.5}, "multipleOf"),
        ({"type": "integer", "minimum": 2**60, "maximum": 2**60 - 1}, "no integer"),
        ({"const": 2**64}, "too large"),
    ],
)
def test_numbers_that_cannot_be_exact_are_refused_by_name(wide, schema, named):
    with pytest.raises((tallow.ConstraintError, tallow.InvalidRequestError), match=re.escape(named)):
        wide.generate("x", json_schema=schema, max_tokens=80)


# Patterns beside lengths

LENGTHS = [60, 254, 2083, 10**6]
PATTERNS = ["foo", r"^\S+@\S+$", r"^[^@]+@[^@]+\.[^@]+$", r"^.*\.(jpg|png)$", r"\d$", r"^[a-z]+(-[a-z]+)*$"]


@pytest.mark.parametrize("most", LENGTHS)
@pytest.mark.parametrize("pattern", PATTERNS)
def test_a_pattern_with_a_length_ends_in_any_budget(wide, pattern, most):
    schema = {"type": "string", "pattern": pattern, "maxLength": most}
    for budget in (16, 60):
        first = answers(wide, schema, seeds=3, max_tokens=budget)
        for text in first:
            assert re.search(pattern, validated(schema, text))
        assert answers(wide, schema, seeds=3, max_tokens=budget) == first


@pytest.mark.parametrize("name", ["uri", "email", "hostname"])
def test_a_format_with_a_length_ends_in_any_budget(wide, name):
    for text in answers(wide, {"type": "string", "format": name, "maxLength": 2083}, max_tokens=40):
        assert len(json.loads(text)) < 40


def test_what_ran_before_changes_nothing(wide_folder):
    """In one engine in another order, and in a fresh one: each request gives what it gives alone."""
    schemas = [{"type": "string", "pattern": pattern, "maxLength": 254} for pattern in PATTERNS[:3]]
    schemas += [{"type": "array", "items": schema, "minItems": 3, "maxItems": 6} for schema in schemas]

    def run(model, order):
        return {at: answers(model, schemas[at], seeds=3, max_tokens=100) for at in order}

    numbers = list(range(len(schemas)))
    one, other = tallow.Model(wide_folder), tallow.Model(wide_folder)
    first = run(one, numbers)
    assert run(one, reversed(numbers)) == first
    assert run(other, [*numbers[3:], *numbers[:3]]) == first


# References

DIGIT = {"type": "integer", "minimum": 0, "maximum": 9}
REFERENCES: dict[str, dict[str, Any]] = {
    "plain": {"$ref": "#/$defs/a", "$defs": {"a": DIGIT}},
    "percent": {"$ref": "#/definitions/Box%3Cstring%3E", "definitions": {"Box<string>": DIGIT}},
    "space": {"$ref": "#/$defs/my%20type", "$defs": {"my type": DIGIT}},
    "dollar": {"$ref": "#/%24defs/a", "$defs": {"a": DIGIT}},
    "slash": {"$ref": "#/$defs/a~1b", "$defs": {"a/b": DIGIT}},
    "tilde": {"$ref": "#/$defs/a~0b~01", "$defs": {"a~b~1": DIGIT}},
    "bare": {"$ref": "#/definitions/Box<string>", "definitions": {"Box<string>": DIGIT}},
    "umlaut": {"$ref": "#/$defs/Gr%C3%B6%C3%9Fe", "$defs": {"Größe": DIGIT}},
    "list": {
        "type": "array",
        "prefixItems": [DIGIT, {"$ref": "#/prefixItems/0"}],
        "items": False,
        "minItems": 2,
    },
    "anchor": {"$ref": "#digit", "$defs": {"a": {"$anchor": "digit", **DIGIT}}},
    "identifier": {
        "$id": "https://example.com/root",
        "$ref": "digit",
        "$defs": {"a": {"$id": "https://example.com/digit", **DIGIT}},
    },
    "own root": {
        "$id": "https://example.com/root",
        "$ref": "inner",
        "$defs": {"i": {"$id": "inner", "$ref": "#/$defs/d", "$defs": {"d": DIGIT}}, "d": {"type": "null"}},
    },
    "siblings": {"$ref": "#/$defs/a", "minimum": 3, "$defs": {"a": DIGIT}},
    "chain": {"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/b"}, "b": DIGIT}},
    "recursive": {
        "type": "object",
        "properties": {"n": DIGIT, "next": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}},
        "required": ["n", "next"],
        "additionalProperties": False,
    },
    "into a property": {
        "type": "object",
        "properties": {"a": DIGIT, "b": {"$ref": "#/properties/a"}},
        "required": ["a", "b"],
        "additionalProperties": False,
    },
}


@pytest.mark.parametrize("name", REFERENCES)
def test_references_lead_where_jsonschema_goes(wide, name):
    for text in answers(wide, REFERENCES[name], max_tokens=60):
        validated(REFERENCES[name], text)


def test_drafts_before_2019_read_nothing_beside_a_reference(wide):
    schema = {
        "$schema": "http://json-schema.org/draft-07/schema#",
        "$ref": "#/definitions/a",
        "type": "string",
        "definitions": {"a": DIGIT},
    }
    for text in answers(wide, schema, max_tokens=20):
        jsonschema.Draft7Validator(schema).validate(json.loads(text))


@pytest.mark.parametrize(
    ("reference", "said"),
    [
        ("https://example.com/other.json", "another document"),
        ("other.json#/a", "another document"),
        ("#/$defs/b", "leads nowhere"),
        ("#/$defs/a/items/01", "leads nowhere"),
        ("#nothing", "leads nowhere"),
    ],
)
def test_references_that_lead_nowhere_are_named(wide, reference, said):
    schema = {"$ref": reference, "$defs": {"a": {"items": [DIGIT, DIGIT]}}}
    with pytest.raises(tallow.ConstraintError, match=said) as raised:
        wide.generate("x", json_schema=schema, max_tokens=20)
    assert reference in str(raised.value)


# Keywords

OBJECT = {"type": "object", "properties": {"a": DIGIT}, "required": ["a"], "additionalProperties": False}
ASSERTING: list[tuple[str, dict[str, Any]]] = [
    ("not", {"not": {"const": 3}}),
    ("if", {"if": {"const": 3}, "then": {"const": 4}}),
    ("contains", {"type": "array", "contains": DIGIT}),
    ("propertyNames", {"type": "object", "propertyNames": {"minLength": 2}}),
    ("uniqueItems", {"type": "array", "items": DIGIT, "uniqueItems": True}),
    ("unevaluatedProperties", {**OBJECT, "unevaluatedProperties": False}),
    ("unevaluatedItems", {"type": "array", "unevaluatedItems": False}),
    ("dependentRequired", {**OBJECT, "dependentRequired": {"a": ["b"]}}),
    ("dependentSchemas", {**OBJECT, "dependentSchemas": {"a": OBJECT}}),
    ("dependencies", {**OBJECT, "dependencies": {"a": ["b"]}}),
    ("$dynamicRef", {"$dynamicRef": "#a", "$dynamicAnchor": "a"}),
]
SILENT: list[dict[str, Any]] = [
    {"type": "array", "items": DIGIT, "uniqueItems": False, "maxItems": 3},
    {
        **OBJECT,
        "unevaluatedProperties": True,
        "dependentRequired": {},
        "discriminator": {"propertyName": "a"},
    },
    {**DIGIT, "not": False, "if": True, "title": "t", "deprecated": True, "examples": [3], "x-mine": 1},
    {"type": "array", "items": DIGIT, "contains": DIGIT, "minContains": 0, "maxItems": 2},
    {
        "type": "object",
        "propertyNames": {"type": "string"},
        "additionalProperties": DIGIT,
        "maxProperties": 2,
    },
]


@pytest.mark.parametrize(("keyword", "schema"), ASSERTING)
@pytest.mark.parametrize("inside", [False, True])
def test_a_keyword_that_cannot_be_enforced_is_refused_by_name(wide, keyword, schema, inside):
    if inside:
        schema = {"type": "array", "items": {"anyOf": [schema, {"type": "null"}]}}
    with pytest.raises(tallow.ConstraintError, match=re.escape(f'"{keyword}"')):
        wide.generate("x", json_schema=schema, max_tokens=20)


@pytest.mark.parametrize("schema", SILENT, ids=str)
def test_a_keyword_that_says_nothing_is_taken(wide, schema):
    for text in answers(wide, schema, max_tokens=60):
        validated(schema, text)


def test_older_drafts_spellings(wide):
    four = "http://json-schema.org/draft-04/schema#"
    for schema in (
        {"$schema": four, "type": "integer", "minimum": 3, "exclusiveMinimum": True, "maximum": 4},
        {
            "$schema": four,
            "type": "array",
            "items": [DIGIT, {"type": "null"}],
            "additionalItems": False,
            "minItems": 2,
        },
    ):
        for text in answers(wide, schema, max_tokens=40):
            jsonschema.Draft4Validator(schema).validate(json.loads(text))
    assert {json.loads(text) for text in answers(wide, {"enum": [1], "nullable": True}, seeds=8)} == {1}
    nullable = {"type": "boolean", "nullable": True}
    assert {json.loads(text) for text in answers(wide, nullable, seeds=30)} == {True, False, None}


# Formats

READERS = {
    "date": datetime.date,
    "time": datetime.time,
    "date-time": datetime.datetime,
    "duration": datetime.timedelta,
    "uuid": uuid.UUID,
    "ipv4": ipaddress.IPv4Address,
    "ipv6": ipaddress.IPv6Address,
    "uri": pydantic.AnyUrl,
}


@pytest.mark.parametrize("name", [*READERS, "email", "hostname"])
def test_what_a_format_admits_is_read(wide, name):
    checker = jsonschema.FormatChecker()
    for text in answers(wide, {"type": "string", "format": name}, seeds=40, max_tokens=60):
        value = json.loads(text)
        if name != "time":  # its check of that is draft 3's, which knows no offset
            checker.check(value, name)
        if name in READERS:
            pydantic.TypeAdapter(READERS[name]).validate_json(text)
        if name == "uri":
            assert urlsplit(value).scheme and (urlsplit(value).port or 1) > 0


@pytest.mark.parametrize("pattern", ["^2023-02-.*$", "^0000.*$", "^1900-02-29$", "^[0-9]*-04-31$"])
def test_days_that_no_calendar_has(wide, pattern):
    schema = {"type": "string", "format": "date", "pattern": pattern}
    try:
        texts = answers(wide, schema, seeds=10, max_tokens=30)
    except tallow.ConstraintError:
        return  # nothing satisfies it
    assert all(datetime.date.fromisoformat(json.loads(text)) for text in texts)


def test_formats_with_a_pattern_beside_them_are_both_kept(wide):
    schema = {"type": "string", "format": "date", "pattern": "-02-29$"}
    for text in answers(wide, schema, seeds=10, max_tokens=30):
        assert datetime.date.fromisoformat(json.loads(text)).day == 29


# Types


class Color(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Id(enum.IntEnum):
    A = WIDE
    B = 2**53 + 1


class Cat(pydantic.BaseModel):
    kind: Literal["cat"]
    lives: int = pydantic.Field(ge=0, le=9)


class Dog(pydantic.BaseModel):
    kind: Literal["dog"]
    name: str = pydantic.Field(max_length=4, alias="Name")


class Tree(pydantic.BaseModel):
    leaf: bool
    child: Tree | None = None


@dataclasses.dataclass
class Point:
    x: int
    y: float = 0.5


class Pair(NamedTuple):
    a: int
    b: str


class Movie(TypedDict):
    name: Annotated[str, pydantic.Field(max_length=5)]
    year: int


TYPES: list[Any] = [
    *(list[int], dict[str, int], tuple[int, str], int | None, int | str, bool, float, str, None),
    *(set[int], frozenset[str], set[Literal["a", "b"]], pydantic.conset(int, max_length=2)),
    *(dict[Literal["a", "b"], int], dict[int, bool], dict[Color, int], Literal[WIDE], Id, Color),
    *(pathlib.Path, bytes, pydantic.SecretStr, pydantic.SecretBytes, re.Pattern, decimal.Decimal),
    *(pydantic.condecimal(max_digits=5, decimal_places=2), pydantic.conint(ge=2**60, multiple_of=3)),
    *(uuid.UUID, pydantic.UUID1, pydantic.UUID3, pydantic.UUID4, pydantic.UUID5, pydantic.UUID7),
    *(ipaddress.IPv4Address, ipaddress.IPv4Network, ipaddress.IPv4Interface),
    *(ipaddress.IPv6Address, ipaddress.IPv6Network, ipaddress.IPv6Interface),
    *(pydantic.IPvAnyAddress, pydantic.IPvAnyNetwork, pydantic.IPvAnyInterface),
    *(pydantic.HttpUrl, pydantic.AnyUrl, pydantic.AnyHttpUrl, pydantic.FileUrl, pydantic.WebsocketUrl),
    *(pydantic.FtpUrl, pydantic.PostgresDsn, pydantic.RedisDsn, pydantic.MongoDsn),
    *(datetime.date, datetime.time, datetime.datetime, datetime.timedelta),
    *(pydantic.AwareDatetime, pydantic.NaiveDatetime, pydantic.PastDate, pydantic.FutureDatetime),
    *(
        Point,
        Pair,
        Movie,
        Tree,
        list[Point],
        Annotated[Cat | Dog, pydantic.Field(discriminator="kind")],
    ),
    *(
        pydantic.constr(pattern="^[a-c]+$", max_length=300),
        pydantic.constr(strip_whitespace=True, min_length=1),
    ),
    *(pydantic.NonNegativeInt, pydantic.StrictInt, pydantic.FiniteFloat, Any),
]


@pytest.mark.parametrize("kind", TYPES, ids=str)
def test_pydantic_reads_what_is_written_for_its_type(wide, kind):
    made = pydantic.create_model("Made", x=(kind, ...))
    for text in answers(wide, made, seeds=3, max_tokens=400):
        made.model_validate_json(text)
    if isinstance(kind, type) or kind is not None:
        for text in answers(wide, kind, seeds=2, max_tokens=400) if kind is not Any else []:
            pydantic.TypeAdapter(kind).validate_json(text)


def test_a_property_with_a_default_may_be_left_out(wide):
    class Made(pydantic.BaseModel):
        a: bool
        b: bool = True

    keys = {tuple(json.loads(text)) for text in answers(wide, Made, seeds=40, max_tokens=60)}
    assert keys == {("a",), ("a", "b")}


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (complex, "complex"),
        (type[int], "a type"),
        (pydantic.Json[int], "JSON in a text"),
        (pydantic.conset(int, min_length=2), "differ"),
        (Annotated[datetime.date, pydantic.Field(ge=datetime.date(2020, 1, 1))], "bounds of a date"),
        (pydantic.constr(pattern=r"a(?!b)"), "(?!"),
        (pydantic.Base64Bytes, "base64"),
        (pydantic.FilePath, "file-path"),
        (Annotated[int, pydantic.Field(ge=10**20)], "beyond 64 bits"),
        (Annotated[int, pydantic.Field(le=-(10**20))], "beyond 64 bits"),
    ],
    ids=str,
)
def test_a_type_that_cannot_be_enforced_is_refused_by_name(wide, kind, said):
    with pytest.raises(tallow.InvalidRequestError, match=re.escape(said)):
        wide.generate("x", json_schema=kind, max_tokens=60)


@pytest.mark.parametrize("value", ["a text", 3, [1], object()])
def test_what_is_no_schema_and_no_type(wide, value):
    with pytest.raises(TypeError, match="json_schema"):
        wide.generate("x", json_schema=value)


CAT = {"type": "object", "properties": {"kind": {"const": "cat"}, "n": {"type": "integer"}}}
DOG = {"type": "object", "properties": {"kind": {"const": "dog"}, "s": {"type": "boolean"}}}
CAT, DOG = ({**one, "required": list(one["properties"]), "additionalProperties": False} for one in (CAT, DOG))


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"$ref": "#/$defs/c"}, {"$ref": "#/$defs/d"}], "$defs": {"c": CAT, "d": DOG}},
        {"oneOf": [{"$ref": "#/$defs/a"}, {"type": "boolean"}], "$defs": {"a": {"type": "integer"}}},
        {"oneOf": [{"$ref": "#/$defs/a"}, {"const": "c"}], "$defs": {"a": {"enum": ["a", "b"]}}},
    ],
    ids=["property", "type", "values"],
)
def test_one_of_references_that_exclude_each_other(wide, schema):
    for text in answers(wide, schema):
        jsonschema.validate(json.loads(text), schema)


def test_one_of_branches_that_overlap_is_refused(wide):
    branches = [{"$ref": "#/$defs/a"}, {"type": "number"}]
    with pytest.raises(tallow.ConstraintError, match="oneOf"):
        wide.generate(
            "x", json_schema={"oneOf": branches, "$defs": {"a": {"type": "integer"}}}, max_tokens=20
        )


def test_openais_wrapper_is_taken_off(wide):
    wrapped = {"name": "x", "strict": True, "schema": {"type": "boolean"}}
    assert wide.generate("x", json_schema=wrapped, max_tokens=20).text in ("true", "false")


# What is forced


def test_a_forced_run_is_one_chunk(wide):
    text = '{"a rather long name of a property": '
    schema = {
        "type": "object",
        "properties": {"a rather long name of a property": {"type": "boolean"}},
        "required": ["a rather long name of a property"],
        "additionalProperties": False,
    }
    for logprobs in (None, 0):
        options = {
            "json_schema": schema,
            "max_tokens": 80,
            "temperature": 1.0,
            "seed": 1,
            "logprobs": logprobs,
        }
        chunks = list(wide.stream("x", **options))
        whole = wide.generate("x", **options)
        assert "".join(chunk.text for chunk in chunks) == whole.text
        assert tuple(token for chunk in chunks for token in chunk.tokens) == whole.tokens
        if logprobs is None:
            assert chunks[0].text == text and len(chunks[0].tokens) > 20
