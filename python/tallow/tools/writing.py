"""Calls as text, in a family's own words: for turns that a template drops, and for examples."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from .formats import Tagged, ToolFormat

Pair = tuple[str, dict[str, Any]]


def written(form: ToolFormat, calls: Sequence[Pair]) -> str:
    """The calls of one answer, with their markers."""
    texts = [_one(form, at, *call) for at, call in enumerate(calls)]
    if not form.listed:
        return (form.between or "\n").join(_marked(form, text) for text in texts)
    before, after = form.brackets
    return _marked(form, before + form.separator.join(texts) + after)


def _marked(form: ToolFormat, text: str) -> str:
    return f"{form.open}{form.before}{text}{form.after}{form.close}"


def _one(form: ToolFormat, number: int, name: str, arguments: dict[str, Any]) -> str:
    if form.tags is not None:
        return _tagged(form.tags, name, arguments)
    if form.body == "python":
        return f"{name}({', '.join(f'{key}={_python(value)}' for key, value in arguments.items())})"
    if form.body == "braces":
        return f"call:{name}{_braces(arguments, form.quote)}"
    if form.head_end:
        return f"{name}{form.head_end}{_dumps(arguments)}"
    if form.named:
        return _dumps({name: arguments})
    first = {form.id_key: str(number)} if form.id_key else {}
    return _dumps({**first, form.name_key: name, form.arguments: arguments})


def _tagged(tags: Tagged, name: str, arguments: dict[str, Any]) -> str:
    line = "\n" * tags.lines
    parts = [f"{tags.name[0]}{name}{tags.name[1]}{line}"]
    for key, value in arguments.items():
        text = value if isinstance(value, str) else _dumps(value)
        parts.append(f"{tags.key[0]}{key}{tags.key[1]}{line}{tags.value[0]}{text}{line}{tags.value[1]}{line}")
    return "".join([*parts, tags.end])


def _python(value: Any) -> str:
    return repr(value) if value is None or isinstance(value, bool) else _dumps(value)


def _braces(value: Any, quote: str) -> str:
    if isinstance(value, str):
        return f"{quote}{value}{quote}"
    if isinstance(value, dict):
        return "{" + ",".join(f"{key}:{_braces(value[key], quote)}" for key in sorted(value)) + "}"
    if isinstance(value, (list, tuple)):
        return "[" + ",".join(_braces(item, quote) for item in value) + "]"
    return _dumps(value)


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
