"""Explicit requests for probabilities: ``lm15.Config(response_format=..., probabilities="required")``.

The JSON schema says what is asked: every property with finitely many values (a boolean, an ``enum``, a
``const``, ``anyOf`` of such, also behind a ``$ref``, as pydantic writes an Enum) is a question. Each is put
to the model after the request's own messages, by itself, and its answers are measured; nothing is generated.
The response carries a ``DataPart`` with the likeliest values and the distributions.

What cannot be measured, because a property has no finite set of values or because the request wants tools,
is an error if probabilities are ``required``. If they are wanted only ``if_available``, ``measures`` is
False, the request is to be answered like any other, and ``unmeasured`` notes it.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Mapping
from typing import Any

from dspy import lm15  # type: ignore[import-untyped]

from .. import arguments
from ..adapter import Adapter
from ..model import Model
from . import convert
from .questions import Measured, Option, Question, asked, atogether, measure, together, without_thoughts

#: A schema nested deeper than this asks for no single value.
_DEEPEST = 8
#: What steers how an answer is drawn, which a measurement does not do.
_SAMPLING = (
    *("max_tokens", "temperature", "top_p", "top_k", "seed", "frequency_penalty", "presence_penalty"),
    *("stop", "logprobs"),
)


# What is asked


def measures(request: lm15.Request, *, stream: bool = False) -> bool:
    """Whether the request is for ``answer``. Raises UnsupportedFeatureError where probabilities are required
    and cannot be had."""
    policy = request.config.probabilities
    if policy in (None, "off"):
        return False
    why = _hindrance(request, stream)
    if why is not None and policy == "required":
        field, reason = why
        raise lm15.UnsupportedFeatureError(
            f'{field}: {reason}; with probabilities="if_available" it is answered without', feature=field
        )
    return why is None


def unmeasured(request: lm15.Request, *, stream: bool = False) -> tuple[lm15.Adaptation, ...]:
    """The note for a request that ``measures`` left to be answered without probabilities."""
    why = None if request.config.probabilities in (None, "off") else _hindrance(request, stream)
    if why is None:
        return ()
    asked_for = request.config.probabilities
    return (lm15.Adaptation("config.probabilities", "dropped", f"{why[0]}: {why[1]}", asked=asked_for),)


def _hindrance(request: lm15.Request, stream: bool) -> tuple[str, str] | None:
    """The field that stands in the way, and why."""
    config = request.config
    if stream:
        return "config.probabilities", "probabilities come whole, not as a stream"
    if request.tools or config.tool_choice is not None:
        return "tools", "an answer is measured only where no tool can be called"
    if config.reasoning is not None and config.reasoning.effort != "off":
        return "config.reasoning", "an answer is measured without thoughts before it"
    shape = config.response_format
    if not isinstance(shape, Mapping) or shape.get("type") != "json_schema":
        return "config.response_format", "probabilities need a json_schema whose values are finite"
    found = questions(shape.get("schema"))
    if isinstance(found, str):
        return "config.response_format", found
    return None


def questions(schema: object) -> list[Question] | str:
    """A question for every property of a JSON schema, or why it cannot be."""
    properties = schema.get("properties") if isinstance(schema, Mapping) else None
    if not isinstance(schema, Mapping) or not isinstance(properties, Mapping) or not properties:
        return "the schema declares no properties"
    asked_for = []
    for name, found in properties.items():
        options = _finite(found, schema, _DEEPEST)
        keys = [option.key for option in options or ()]
        if not keys or "" in keys:
            return f"property {name!r} has no finite set of values to compare"
        if len(set(keys)) < len(keys):
            return f"property {name!r} has two values that are written alike"
        asked_for.append(Question(name, found.get("description"), tuple(options or ())))
    return asked_for


def _finite(schema: object, root: Mapping[str, Any], depth: int) -> list[Option] | None:
    """All values that a schema allows; None if they cannot be counted."""
    if not isinstance(schema, Mapping) or depth == 0:
        return None
    if "const" in schema:
        return [Option.of(schema["const"], _description(schema))]
    if "enum" in schema:
        return [Option.of(value) for value in schema["enum"]]
    if schema.get("type") in ("boolean", "null"):
        return [Option.of(value) for value in ((True, False) if schema["type"] == "boolean" else (None,))]
    if "$ref" in schema:
        return _finite(_resolved(schema["$ref"], root), root, depth - 1)
    branches = schema.get("anyOf") or schema.get("oneOf") or schema.get("allOf")
    if not isinstance(branches, list) or ("allOf" in schema and len(branches) > 1):
        return None
    options: list[Option] = []
    for branch in branches:
        found = _finite(branch, root, depth - 1)
        if found is None:
            return None
        options.extend(found)
    return options


def _description(schema: Mapping[str, Any]) -> str | None:
    parts = [schema[key] for key in ("title", "description") if isinstance(schema.get(key), str)]
    return ": ".join(parts) or None


def _resolved(ref: object, root: Mapping[str, Any]) -> object:
    """A schema in the same document: ``#/$defs/Color``."""
    if not isinstance(ref, str) or not ref.startswith("#/"):
        return None
    found: object = root
    for step in ref[2:].split("/"):
        name = step.replace("~1", "/").replace("~0", "~")
        found = found.get(name) if isinstance(found, Mapping) else None
    return found


# The answer


def answer(model: Model, request: lm15.Request, adapter: Adapter | None = None) -> lm15.Response:
    """Measures a request that ``measures``: its response, with a distribution for every property."""
    with convert.as_lm15():
        found, tasks = _prepared(model, request, adapter)
        return _response(request, found, together(tasks))


async def aanswer(model: Model, request: lm15.Request, adapter: Adapter | None = None) -> lm15.Response:
    """``answer``, to await."""
    with convert.as_lm15():
        found, tasks = _prepared(model, request, adapter)
        return _response(request, found, await atogether(tasks))


def _prepared(
    model: Model, request: lm15.Request, adapter: Adapter | None
) -> tuple[list[Question], list[Callable[[], Measured]]]:
    found = questions(request.config.response_format["schema"])
    assert not isinstance(found, str), "measures() has looked at it"
    turns = convert.messages(request)
    given = without_thoughts(_metadata(request).get("template_arguments"))
    return found, [
        functools.partial(measure, model, asked(turns, one.text()), one.answers(), given, adapter)
        for one in found
    ]


def _metadata(request: lm15.Request) -> dict[str, Any]:
    extensions = dict(request.config.extensions or {})
    metadata = extensions.pop("metadata", None) or {}
    if not isinstance(metadata, Mapping):
        arguments.wrong_type("metadata", metadata, "a dict")
    for name in (*extensions, *metadata):
        if name not in (*convert.METADATA_KEYS, "logit_bias"):
            arguments.unknown("metadata", name, convert.METADATA_KEYS)
    return dict(metadata)


def _response(request: lm15.Request, found: list[Question], measured: list[Measured]) -> lm15.Response:
    distributions = [one.probabilities() for one in measured]
    best = [chances.index(max(chances)) for chances in distributions]
    part = lm15.DataPart(
        value={one.name: one.options[at].value for one, at in zip(found, best, strict=True)},
        probabilities={
            one.name: dict(zip((option.key for option in one.options), chances, strict=True))
            for one, chances in zip(found, distributions, strict=True)
        },
        method="candidate_sequence_likelihood",
    )
    return lm15.Response(
        id=None,
        model=request.model,
        message=lm15.Message.assistant((part,)),
        finish_reason="stop",
        usage=lm15.Usage(
            input_tokens=sum(one.prompt_tokens for one in measured),
            output_tokens=sum(one.answer_tokens for one in measured),
        ),
        provider_data={
            "coverage": {one.name: its.coverage for one, its in zip(found, measured, strict=True)},
            **({"notes": list(measured[0].notes)} if measured[0].notes else {}),
        },
        adaptations=_without_effect(request),
    )


def _without_effect(request: lm15.Request) -> tuple[lm15.Adaptation, ...]:
    """Settings that were given and change nothing, because nothing is sampled."""
    config = request.config
    given = {f"config.{name}": getattr(config, name) for name in _SAMPLING}
    given |= {
        f"config.{name}": getattr(config, name) for name in ("cache", "service_tier", "user_id", "store")
    }
    given |= {f"config.extensions.{name}": value for name, value in (config.extensions or {}).items()}
    given |= {f"metadata.{name}": value for name, value in _metadata(request).items()}
    for name in ("config.extensions.metadata", "metadata.template_arguments"):
        given.pop(name, None)
    return tuple(
        lm15.Adaptation(name, "dropped", "the answer is measured, not sampled", asked=_plain(value))
        for name, value in given.items()
        if value not in (None, ())
    )


def _plain(value: Any) -> Any:
    try:
        return json.loads(json.dumps(value))
    except (TypeError, ValueError):
        return str(value)
