"""Which constraint bounds an answer: the caller's own, else the format that a DSPy adapter asked for.

One request has at most one. The caller gives it as an argument of the LM (``choices=[...]``), which travels
in ``metadata``; otherwise ``formats`` reads the prompt and the signature of the calling module, unless
``constrain=False``. What was decided is told in the response's ``provider_data["format"]``.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dspy import lm15  # type: ignore[import-untyped]

from .. import _log, arguments
from ..errors import ConstraintError, InvalidRequestError
from ..model import Model
from . import formats
from .formats import Format

#: Part of the model string, for DSPy's cache knows a model by that alone: whoever changes how a format is
#: enforced, changes the answers, and counts this up.
VERSION = 4

#: The constraints that a caller may give, as ``Model.generate`` names them.
OWN = tuple(arguments.CONSTRAINTS)
SWITCH = "constrain"
SWITCHED_OFF = "constrain=False"


def check(given: Mapping[str, Any]) -> None:
    """The switch has one of its two values, and there is one constraint at most."""
    switch = given.get(SWITCH)
    if switch is not None and switch is not False and switch != "auto":
        arguments.wrong_value(SWITCH, switch, '"auto" or False')
    own = [name for name in OWN if given.get(name) is not None]
    if len(own) > 1:
        raise InvalidRequestError(f"{' and '.join(own)} are given together; an answer has one constraint")


def choose(request: lm15.Request, given: dict[str, Any]) -> Format:
    """Takes the switch and the caller's constraint out of ``given``, and says what bounds the answer. Call it
    in the caller's thread or task, for it reads which module is calling."""
    check(given)
    switch = given.pop(SWITCH, None)
    own = {name: value for name in OWN if (value := given.pop(name, None)) is not None}
    if own:
        if request.config.response_format is not None:
            raise InvalidRequestError(
                f"{next(iter(own))} and response_format are given together; leave one out"
            )
        return Format(name=next(iter(own)), constraint=own, why=None)
    if switch is False:
        return Format(name="none", constraint={}, why=SWITCHED_OFF)
    # Tools are another matter (``prepare``): an answer in text has its format, whatever calls there may be.
    if request.tools:
        request = replace(request, tools=(), config=replace(request.config, tool_choice=None))
    return formats.find(request, formats.caller_signature())


def possible(model: Model, chosen: Format) -> Format:
    """The format, if a grammar can be made of it. A Signature may contradict itself (a range with no number
    in it); then the answer is free, as it is with any other language model, and ``why`` tells."""
    if chosen.name in OWN or not chosen.constraint:
        return chosen
    constraint = arguments.constraint(chosen.constraint)
    try:
        model._shared.engine().compile(constraint)  # type: ignore[arg-type]
    except ConstraintError as error:
        return replace(chosen, constraint={}, why=f"no grammar can be made of the format: {error}")
    return chosen


def told(chosen: Format, bound: bool) -> dict[str, Any]:
    """For ``provider_data``; a format that was asked for and could not be enforced is logged as well."""
    if chosen.name != "none" and not bound and chosen.why != formats.CALL_ALONE:
        _log.once("warning", "the format %s is not enforced: %s", chosen.name, chosen.why)
    for note in getattr(chosen, "notes", None) or ():
        _log.once("info", "the format %s: %s", chosen.name, note)
    found = {"name": chosen.name, "constrained": bound, "why": chosen.why}
    notes = tuple(getattr(chosen, "notes", None) or ())
    return {**found, "notes": list(notes)} if notes else found


def dropped(request: lm15.Request, chosen: Format) -> tuple[lm15.Adaptation, ...]:
    """A response_format that was asked for and is not enforced."""
    asked = request.config.response_format
    if asked is None or chosen.constraint:
        return ()
    return (
        lm15.Adaptation(
            field="config.response_format",
            action="dropped",
            reason=chosen.why or "no grammar was made for it",
            asked=asked.get("type"),
        ),
    )
