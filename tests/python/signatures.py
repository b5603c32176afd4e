"""Random Signatures for DSPy, the same for the same seed: every type nested three deep, and constraints.

``make(seed)`` gives a Signature with one to six output fields; ``broken(signature, prediction)`` says which
declared types and constraints a prediction does not keep.
"""

# Both spellings of a union are types of their own.
# ruff: noqa: UP007, UP045

from __future__ import annotations

import dataclasses
import datetime
import decimal
import enum
import random
import re
import uuid
from collections.abc import Callable
from typing import Annotated, Any, Literal, Optional, Union

import dspy
import pydantic
from typing_extensions import TypedDict

DEPTH = 3
WORDS = (
    "answer",
    "name",
    "count",
    "label",
    "score",
    "items",
    "note",
    "unit",
    "when",
    "kind",
    "owner",
    "path",
)
MEMBERS = (
    *("yes", "no", "very good", "C++", "a/b", "it's", 'say "hi"', "[x]", "a; b", "naïve", "日本", "a\nb"),
    *(" padded ", "None", "true", "12", "<b>", "R&D", "]]>", "[[ ## answer ## ]]", "back\\slash", "{}"),
)
PATTERNS = ("^[a-z]+$", r"^\d{3}-\d{2}$", "cat|dog", r"^[A-Z]{2,4}\d*$", "^(yes|no)$", r"^\w+ \w+$", "x")


class Color(enum.Enum):
    RED = "red"
    GREEN = "light green"
    ODD = "<&>"


class Level(enum.Enum):
    LOW = 1
    HIGH = 2


class Rank(enum.IntEnum):
    FIRST = 1
    SECOND = 2


class Mode(str, enum.Enum):
    ON = "on"
    OFF = "off"


class Automatic(enum.Enum):
    ONE = enum.auto()
    TWO = enum.auto()


class Node(pydantic.BaseModel):
    """Recursive."""

    name: str
    children: list[Node] = []
    next: Optional[Node] = None


class Typed(TypedDict):
    title: str
    year: int


@dataclasses.dataclass
class Point:
    x: float
    y: float
    tag: Optional[str] = None


Make = Callable[[random.Random, int], Any]


def _bounds(rng: random.Random) -> dict[str, Any]:
    low = rng.randint(-50, 50)
    high = low + rng.randint(10, 200)
    return {rng.choice(("ge", "gt")): low} | ({rng.choice(("le", "lt")): high} if rng.random() < 0.7 else {})


def _number_rules(rng: random.Random) -> dict[str, Any]:
    return _bounds(rng) | ({"multiple_of": rng.choice((2, 5))} if rng.random() < 0.2 else {})


def _text_rules(rng: random.Random) -> dict[str, Any]:
    if rng.random() < 0.3:
        return {"pattern": rng.choice(PATTERNS)}
    least = rng.randint(0, 5)
    return {"min_length": least, "max_length": least + rng.randint(1, 20)}


def _length_rules(rng: random.Random) -> dict[str, Any]:
    least = rng.randint(0, 2)
    return {"min_length": least, "max_length": least + rng.randint(0, 3)}


def _annotated(annotation: Any, rules: dict[str, Any]) -> Any:
    return Annotated[annotation, pydantic.Field(**rules)]


def _literal(rng: random.Random, depth: int) -> Any:
    strings: list[Any] = rng.sample(MEMBERS, rng.randint(1, 4))
    numbers: list[Any] = rng.sample(range(-3, 12), rng.randint(0, 2))
    return Literal[tuple(strings + (numbers if rng.random() < 0.3 else []))]


def _model(rng: random.Random, depth: int) -> Any:
    fields: dict[str, Any] = {}
    for name in rng.sample(WORDS, rng.randint(1, 4)):
        annotation = kind(rng, depth - 1)
        rules: dict[str, Any] = {}
        if rng.random() < 0.15:
            rules["alias"] = f"{name}Alias"
        if annotation is str and rng.random() < 0.4:
            rules |= _text_rules(rng)
        elif annotation in (int, float) and rng.random() < 0.4:
            rules |= _bounds(rng)
        if rng.random() < 0.15:
            annotation, rules["default"] = Optional[annotation], None
        fields[name] = (annotation, pydantic.Field(**rules))
    return pydantic.create_model(rng.choice(("Item", "Record", "Entry")), **fields)


LEAVES: tuple[Make, ...] = (
    *(lambda rng, depth, one=one: one for one in (str, str, int, int, float, bool, Color, Level, Rank, Mode)),
    *(
        lambda rng, depth, one=one: one
        for one in (Automatic, datetime.date, datetime.datetime, datetime.time)
    ),
    *(lambda rng, depth, one=one: one for one in (datetime.timedelta, uuid.UUID, decimal.Decimal, Any)),
    _literal,
    _literal,
    lambda rng, depth: _annotated(str, _text_rules(rng)),
    lambda rng, depth: _annotated(int, _number_rules(rng)),
    lambda rng, depth: _annotated(float, _bounds(rng)),
)
HASHABLE: tuple[Any, ...] = (str, int, Mode, datetime.date)
KEYS: tuple[Any, ...] = (str, str, int, Mode, Literal["left", "right"])
NESTED: tuple[Make, ...] = (
    lambda rng, depth: Optional[kind(rng, depth - 1)],
    lambda rng, depth: Union[kind(rng, depth - 1), kind(rng, depth - 1)],
    lambda rng, depth: Union[int, str],
    lambda rng, depth: Optional[str],
    lambda rng, depth: list[kind(rng, depth - 1)],
    lambda rng, depth: _annotated(list[kind(rng, depth - 1)], _length_rules(rng)),
    lambda rng, depth: tuple[kind(rng, depth - 1), kind(rng, depth - 1)],
    lambda rng, depth: tuple[kind(rng, depth - 1), ...],
    lambda rng, depth: set[rng.choice(HASHABLE)],
    lambda rng, depth: frozenset[rng.choice(HASHABLE)],
    lambda rng, depth: dict[rng.choice(KEYS), kind(rng, depth - 1)],
    lambda rng, depth: dict[str, Any],
    _model,
    _model,
    _model,
    lambda rng, depth: Node,
    lambda rng, depth: Typed,
    lambda rng, depth: Point,
    lambda rng, depth: dict,
    lambda rng, depth: list,
)


def kind(rng: random.Random, depth: int = DEPTH) -> Any:
    """A random type."""
    nested = depth > 0 and rng.random() < 0.5
    return rng.choice(NESTED if nested else LEAVES)(rng, depth)


def _rules(rng: random.Random, annotation: Any) -> dict[str, Any]:
    """Constraints of the Signature's own field."""
    if rng.random() < 0.5:
        return {}
    if annotation in (str, Optional[str]):
        return _text_rules(rng)
    if annotation in (int, float, decimal.Decimal, Optional[int]):
        return _bounds(rng) if annotation is decimal.Decimal else _number_rules(rng)
    if getattr(annotation, "__origin__", None) is list:
        return _length_rules(rng)
    return {}


def make(seed: int) -> type[dspy.Signature]:
    """The Signature of this seed."""
    rng = random.Random(seed)
    fields: dict[str, Any] = {"question": (str, dspy.InputField())}
    for name in rng.sample(WORDS, rng.randint(1, 6)):
        annotation = rng.choice((dspy.Reasoning, dspy.Code)) if rng.random() < 0.05 else kind(rng)
        fields[name] = (annotation, dspy.OutputField(**_rules(rng, annotation)))
    return dspy.Signature(fields, "Answer the question.")


def broken(signature: type[dspy.Signature], prediction: Any) -> list[str]:
    """What of the Signature's types and constraints the values do not keep."""
    found = []
    for name, info in signature.output_fields.items():
        value = prediction[name]
        rules = [] if value is None else info.metadata
        annotation = Annotated[(info.annotation, *rules)] if rules else info.annotation
        try:
            pydantic.TypeAdapter(annotation).validate_python(value, strict=True)
        except pydantic.ValidationError as error:
            said = re.sub(r"\s+", " ", str(error))
            found.append(f"{name} = {value!r}: {said}")
    return found
