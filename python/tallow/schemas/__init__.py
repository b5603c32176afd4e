"""What a Python type is as JSON: for ``Model.generate(json_schema=...)`` and for DSPy's adapters alike.

- ``of_type``: a class or annotation -> a JSON schema whose every value its reader (pydantic) reads.
- ``classes``: pydantic's JSON schema with what it leaves out; ``bounded``: schemas that a grammar can be made
  of; ``patterns``: texts that pydantic reads. Only ``classes`` needs pydantic; nothing here needs DSPy.
"""

from __future__ import annotations

import dataclasses
import enum
import typing
from typing import Any

from ..errors import InvalidRequestError
from .bounded import Bounded, Unsupported

__all__ = ["is_type", "of_type"]


def is_type(value: object) -> bool:
    """Whether a value is a class, or an annotation such as ``list[int]`` or ``str | None``."""
    return (
        isinstance(value, (type, enum.EnumMeta, typing.TypeVar, typing.NewType))
        or typing.get_origin(value) is not None
        or dataclasses.is_dataclass(value)
    )


def of_type(kind: Any, name: str) -> dict[str, Any]:
    """The JSON schema of a class or annotation that pydantic knows. ``name`` is how errors call it.

    Validators that are written in Python cannot be enforced; whatever else the type says is, or is refused.

    Raises InvalidRequestError for a type that has no JSON schema, or says what no grammar can enforce.
    """
    try:
        from .classes import VALIDATOR, Generator
    except ImportError:
        raise InvalidRequestError(
            f"{name} is a type, and pydantic reads those; install pydantic, or give a JSON schema as a dict"
        ) from None
    notes: list[str] = []
    try:
        generator = Generator.run(kind, by_alias=True)
        schema = Bounded("", notes, exact=True, whole=False)(generator.schema)
    except Unsupported as error:
        raise InvalidRequestError(f"{name}: {error}; give a JSON schema as a dict") from error
    for note in [*generator.notes, *notes]:
        if not note.endswith(VALIDATOR):
            raise InvalidRequestError(f"{name}: {note}; give a type without that, or a JSON schema as a dict")
    return schema
