"""The exceptions. Each is also the built-in that it refines, so ``except ValueError`` works as well.

All but one come from the native half, where they are a table over the kinds of failure.
"""

from __future__ import annotations

from . import _core
from ._core import (
    Cancelled,
    ConstraintError,
    ContextLengthError,
    DeviceError,
    Error,
    HubError,
    InvalidRequestError,
    ModelFileError,
    OutOfMemoryError,
    TemplateError,
    Timeout,
    UnsupportedModelError,
)


class ArgumentTypeError(_core.InvalidRequestError, TypeError):
    """An argument has a type that it cannot have, or there is no such argument: a TypeError as well."""


__all__ = [
    "ArgumentTypeError",
    "Cancelled",
    "ConstraintError",
    "ContextLengthError",
    "DeviceError",
    "Error",
    "HubError",
    "InvalidRequestError",
    "ModelFileError",
    "OutOfMemoryError",
    "TemplateError",
    "Timeout",
    "UnsupportedModelError",
]

# Tracebacks name a class where users find it.
ArgumentTypeError.__module__ = "tallow"
