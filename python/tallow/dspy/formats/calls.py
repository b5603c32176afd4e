"""The tools that a prompt offers, so that a ``dspy.ToolCalls`` in the answer names one of them.

ToolCalls' own schema allows any name with any arguments; a small model makes up both. A Signature does not
hold its tools' values, but an adapter shows them in the last user message, one text for each. A tool with
that very text in a module that is calling (ReActV2 keeps them in ``tools``) gives its exact parameters; else
they are read from the text.

- ``asked``: the tools of a request, as a key for the cache; ``applied``: the fields with their schemas.
"""

from __future__ import annotations

import ast
import contextlib
import inspect
import json
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import dspy  # type: ignore[import-untyped]

from ...schemas.bounded import ENTRIES, Bounded, Unsupported
from ...schemas.classes import constrained, schema_of
from .json import joined
from .prompt import Prompt
from .types import Field

_OUTPUTS = re.compile(r"^\d+\. `(\w+)` \(ToolCalls\)", re.MULTILINE)
_INPUTS = re.compile(r"^\d+\. `(\w+)` \([^`\n]*\bTool\b[^`\n]*\)", re.MULTILINE)
_TEXT = re.compile(
    r"(.+?)(?:, whose description is <desc>.*</desc>)?\. It takes arguments (\{.*\})\.", re.DOTALL
)
_SUBMIT = "submit"
_NAME, _ARGS = "next_tool_name", "next_tool_args"


@dataclass(frozen=True)
class Calls:
    """What the calls of an answer may be."""

    #: The output fields that hold calls.
    fields: tuple[str, ...]
    #: JSON: each tool's name and parameters, in the prompt's order. Empty if they cannot be read.
    tools: str
    #: The answer is one call of ``submit``.
    last: bool = False
    #: ReAct's two fields: a tool's name and, in the next one, its arguments.
    apart: bool = False


def asked(prompt: Prompt) -> Calls | None:
    """The calls that a prompt asks for; None if it asks for none."""
    inputs, _, outputs = prompt.system.partition("\nYour output fields are:\n")
    fields = tuple(_OUTPUTS.findall(outputs))
    if not fields:
        return _of_react(prompt)
    try:
        found = _tools(prompt, _INPUTS.findall(inputs))
        last = _SUBMIT in found and _is_last_turn()
        kept = {_SUBMIT: found[_SUBMIT]} if last else found
        return Calls(fields, json.dumps(list(kept.items()), default=str) if kept else "", last)
    except Exception:  # a tool's own __str__, a text that only looks like a tool's: any name is allowed then
        return Calls(fields, "")


def _of_react(prompt: Prompt) -> Calls | None:
    """The tools of the ``dspy.ReAct`` that is calling. An optimizer may have rewritten the instructions that
    list them, and they are still those that it calls."""
    if _NAME not in prompt.reminder or _ARGS not in prompt.reminder:
        return None
    try:
        callers = reversed(dspy.settings.caller_modules or ())
        react = next((one for one in callers if isinstance(one, dspy.ReAct)), None)
        if react is None:
            return None
        tools = {name: _arguments(tool, react) for name, tool in react.tools.items()}
        return Calls((_ARGS,), json.dumps(list(tools.items()), default=str), apart=True)
    except Exception:  # as above
        return None


def applied(fields: list[Field], calls: Calls, notes: list[str]) -> list[Field]:
    """The fields, those with calls held to the tools."""
    if not calls.tools:
        notes.append("the prompt's tools cannot be read, so names and arguments of calls are not enforced")
        return fields
    if calls.apart:
        return _apart(fields, dict(json.loads(calls.tools)), notes)
    schema = _schema(json.loads(calls.tools), 1 if calls.last else ENTRIES, notes)
    return [
        replace(one, schema=schema, by_name=schema) if one.name in calls.fields else one for one in fields
    ]


def _apart(fields: list[Field], tools: dict[str, Any], notes: list[str]) -> list[Field]:
    """The field of the arguments, with the parameters of each tool that the field before it may name."""
    names = [one.name for one in fields]
    at = names.index(_ARGS) if _ARGS in names else 0
    if names[max(at - 1, 0)] != _NAME or set(fields[at - 1].members or ()) != set(tools):
        return fields
    cases = {name: _parameters(name, args, notes) for name, args in tools.items()}
    return [*fields[:at], replace(fields[at], cases=cases), *fields[at + 1 :]]


def _schema(tools: list[Any], most: int, notes: list[str]) -> dict[str, Any]:
    definitions: dict[str, Any] = {}
    options = [
        {
            "type": "object",
            "properties": {
                "name": {"const": name},
                "args": joined(_parameters(name, args, notes), definitions),
            },
            "required": ["name", "args"],
        }
        for name, args in tools
    ]
    items = {"type": "array", "items": {"anyOf": options}, "minItems": 1, "maxItems": most}
    written = {"type": "object", "properties": {"tool_calls": items}, "required": ["tool_calls"]}
    return {**written, "$defs": definitions} if definitions else written


def _parameters(name: str, args: dict[str, Any] | None, notes: list[str]) -> dict[str, Any]:
    """The object of a tool's arguments: all of them, in the tool's order."""
    if args is None:
        notes.append(f"the arguments of {name} cannot be read, so they are not enforced")
        return {"type": "object"}
    own: dict[str, Any] = {}
    properties = {key: joined(one, own) if isinstance(one, dict) else one for key, one in args.items()}
    written: dict[str, Any] = {"type": "object", "properties": properties, "required": list(args)}
    if not args:
        written = {"type": "object", "additionalProperties": False}
    written = {**written, "$defs": own} if own else written
    try:
        Bounded(exact=True)(written)
    except Unsupported as error:  # as one of several, the tool would be left out
        notes.append(f"the arguments of {name} are not enforced: {error}")
        return {"type": "object"}
    return written


# The tools


def _tools(prompt: Prompt, inputs: Sequence[str]) -> dict[str, dict[str, Any] | None]:
    """Name and parameters of each tool in the prompt."""
    real = dict(_shown())
    found: dict[str, dict[str, Any] | None] = {}
    for field in inputs:
        for text in _texts(prompt, field):
            if text in real:
                tool, module = real[text]
                found[tool.name] = _arguments(tool, module)
            else:
                name, args = _read(text)
                found[name] = args
    return found


def _shown() -> Iterator[tuple[str, tuple[dspy.Tool, Any]]]:
    """The tools of the modules that are calling, by the text that a prompt shows of them."""
    for tool, module in _of_callers():
        with contextlib.suppress(Exception):  # a tool's own __str__; then its text decides
            yield str(tool), (tool, module)


def _of_callers() -> Iterator[tuple[dspy.Tool, Any]]:
    """The tools of the modules that are calling, each with its module; the nearest module's come last."""
    for module in dspy.settings.caller_modules or ():
        held = getattr(module, "tools", None) or ()
        held = held.values() if isinstance(held, dict) else held if isinstance(held, (list, tuple)) else ()
        yield from ((tool, module) for tool in held if isinstance(tool, dspy.Tool))


def _arguments(tool: dspy.Tool, module: Any) -> dict[str, Any]:
    """A tool's arguments, without its ``*args`` and ``**kwargs``, which have no names to be given by. Those
    of ``submit`` are output fields, whose constraints DSPy drops."""
    taken = inspect.signature(tool.func).parameters
    starred = {name for name, one in taken.items() if one.kind in (one.VAR_POSITIONAL, one.VAR_KEYWORD)}
    args = {name: one for name, one in (tool.args or {}).items() if one or name not in starred}
    if isinstance(module, dspy.ReActV2) and tool.name == _SUBMIT:
        for name, info in module.signature.output_fields.items():
            args[name] = _output(info, args[name])
    return args


def _output(info: Any, given: dict[str, Any]) -> dict[str, Any]:
    """The schema of an output field. Ours says more than the one given: a dict's keys, a date's kind."""
    with contextlib.suppress(Unsupported, TypeError):  # a type without a schema, or without a hash
        given = schema_of(info.annotation)
    text = {"minLength": 1} if info.annotation is str else {}
    return constrained({**text, **given}, info.metadata, [])


def _texts(prompt: Prompt, field: str) -> list[str]:
    """The texts of the tools in an input field of the last user message."""
    header = f"<{field}>\n" if prompt.kind == "xml" else f"[[ ## {field} ## ]]\n"
    _, seen, rest = f"\n{prompt.inputs}".rpartition(f"\n{header}")
    if not seen:
        raise Unsupported(f"the prompt does not show {field}")
    if not rest.startswith("["):
        return [rest.split("\n", 1)[0]]
    found, _ = json.JSONDecoder().raw_decode(rest)
    return list(found)


def _read(text: str) -> tuple[str, dict[str, Any] | None]:
    """Name and parameters as ``str(tool)`` shows them; None for parameters that cannot be read."""
    found = _TEXT.fullmatch(text)
    with contextlib.suppress(SyntaxError, ValueError):  # a schema with a value of a tool's own in it
        args = ast.literal_eval(found[2]) if found else None
        if found is not None and isinstance(args, dict):
            return found[1], args
    name = re.match(r"(.+?)(?:, whose description is <desc>|\. It takes arguments )", text, re.DOTALL)
    if name is None:
        raise Unsupported(f"{text!r} is no tool")
    return name[1], None


def _is_last_turn() -> bool:
    """Whether ReActV2 makes its last attempt, in which every call but ``submit`` is thrown away. It says so
    in a ``tool_choice``, but an adapter without native calls drops that: only the call stack still knows."""
    methods = (getattr(dspy.ReActV2, name, None) for name in ("_forced_submit", "_aforced_submit"))
    codes = {getattr(method, "__code__", None) for method in methods} - {None}
    frame = sys._getframe()
    while frame is not None and frame.f_code not in codes:
        frame = frame.f_back  # type: ignore[assignment]
    return frame is not None
