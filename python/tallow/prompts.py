"""What a prompt may be, and what the engine takes for it: one preparation for ``Model`` and ``tallow.LM``.

A conversation goes through three hands. ``arguments.messages`` makes plain dicts of whatever holds a turn;
the family's ``ToolFormat`` shows tools, calls and their results as the chat template can take them; the
native half knows what OpenAI's fields mean, finds out whether the template shows every turn, and renders.
What it had to do for that stands in the ``notes`` of the prompt.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from . import _core, arguments
from .errors import InvalidRequestError

Prompt = str | list[int] | _core.Prompt


def ready(
    model: _core.Model,
    value: object,
    *,
    tools: Sequence[Any] | None = None,
    template_arguments: Mapping[str, Any] | None = None,
    continue_final_message: bool | str = False,
) -> Prompt:
    """A prompt as the engine takes it: a text, token ids, or messages that the chat template has written."""
    if isinstance(value, _core.Prompt):
        return value
    given: dict[str, Any] = {"tools": tools, "template_arguments": template_arguments}
    given["continue_final_message"] = continue_final_message or None
    checked = arguments.prompt(value, roles=model.chat_template)
    if isinstance(checked, list) and isinstance(checked[0], dict):
        return rendered(model, checked, name="prompt", **given)
    for name, argument in given.items():
        if argument is not None:  # nothing is silently ignored
            raise InvalidRequestError(
                f"{name} is for a list of messages; this prompt is plain text or token ids"
            )
    return checked  # type: ignore[return-value]


def rendered(
    model: _core.Model,
    messages: Sequence[Mapping[str, Any]],
    *,
    tools: Iterable[Any] | None = None,
    template_arguments: Mapping[str, Any] | None = None,
    continue_final_message: bool | str | None = None,
    name: str = "messages",
) -> _core.Prompt:
    """The prompt that the chat template makes of messages that are plain dicts."""
    own = arguments.template_arguments("template_arguments", template_arguments or {})
    if continue_final_message:
        own["continue_final_message"] = arguments.continued("continue_final_message", continue_final_message)
    offered = arguments.json_list("tools", tools) if tools is not None else []
    turns, shown = _with_tools(model, messages, offered, name)
    return model.render(turns, shown.pop("tools", None), {**shown, **own}, name)


def notes(prompt: Prompt) -> tuple[str, ...]:
    """What the chat template could not take as it was given, and what was done instead."""
    return tuple(prompt.notes) if isinstance(prompt, _core.Prompt) else ()


def _with_tools(
    model: _core.Model, messages: Sequence[Mapping[str, Any]], offered: list[Any], name: str
) -> tuple[list[dict[str, Any]], dict[str, Any]]:
    turns = [dict(turn) for turn in messages]
    if not offered and not any(_is_about_tools(turn) for turn in turns):
        return turns, {}
    from . import tools  # not before it is needed: `import tallow` is quick

    form = tools.detect(model.chat_template)
    return tools.prepare(form, _core.plain_messages(turns, name), offered, shown=model.shows_calls)


def _is_about_tools(turn: Mapping[str, Any]) -> bool:
    called = turn.get("tool_calls") or turn.get("function_call")
    return bool(called) or turn.get("role") in ("tool", "function")
