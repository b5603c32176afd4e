"""A conversation with tools, as a family's chat template can show it.

A template that knows tools gets them as OpenAI's dicts. One that does not would drop or refuse turns with
calls and results; these are written out as text then, in the same words that the model is asked to use.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from .formats import ToolFormat
from .functions import Function, functions
from .writing import written

Message = dict[str, Any]


def instructions(form: ToolFormat, tools: Sequence[Function]) -> str:
    """What the system message says about tools that the template does not show."""
    listed = "\n".join(_dumps(tool.openai()["function"]) for tool in tools)
    example = written(form, [("function-name", {"argument-name": "value"})])
    return (
        "You can call functions. These exist, one a line, each with a JSON schema of its arguments:\n"
        f"<tools>\n{listed}\n</tools>\n"
        f"To call one, write nothing but this, with its name and arguments filled in:\n{example}\n"
        "The result comes in the next message. If no call is needed, answer in plain text."
    )


def prepare(
    form: ToolFormat,
    messages: Sequence[Mapping[str, Any]],
    offered: Iterable[object],
    *,
    shown: bool | None = None,
) -> tuple[list[Message], dict[str, Any]]:
    """The conversation, and the template's arguments, that show the tools and the calls so far.

    ``shown``: whether the template was seen to show calls and results; None goes by what it reads. Those
    that it does not show are written out as text. One that shows calls although it reads no tools gets
    them as they are, unless there are tools, which are called in our words then."""
    tools = functions(offered)
    turns = [dict(message) for message in messages]
    if form.renders:
        if shown is False:  # SmolLM3's shows tools, and of calls nothing
            turns = _plain(form, turns)
        elif not form.many:
            turns = _one_call_each(turns)
        turns = _short_ids(form, turns)
        return turns, {form.variable: [tool.shown() for tool in tools]} if tools else {}
    if not tools:
        return turns if shown else _plain(form, turns), {}
    turns = _plain(form, turns)
    if form.system_field:
        system = _system(turns)
        system[form.system_field] = _dumps([tool.openai()["function"] for tool in tools])
    else:
        system = _system(turns)
        own, text = _text(system.get("content")), instructions(form, tools)
        system["content"] = f"{own}\n\n{text}" if own else text
    return turns, {}


def _system(turns: list[Message]) -> Message:
    if not turns or turns[0].get("role") not in ("system", "developer"):
        turns.insert(0, {"role": "system", "content": ""})
    return turns[0]


def _one_call_each(turns: list[Message]) -> list[Message]:
    """Llama's template takes one call a turn: each call becomes a turn, with its result behind it."""
    result: list[Message] = []
    at = 0
    while at < len(turns):
        turn = turns[at]
        at += 1
        calls = turn.get("tool_calls") or []
        if len(calls) < 2:
            result.append(turn)
            continue
        answers = []
        while at < len(turns) and turns[at].get("role") == "tool":
            answers.append(turns[at])
            at += 1
        for call in calls:
            result.append({**turn, "tool_calls": [call]})
            mine = [answer for answer in answers if answer.get("tool_call_id") == call.get("id")]
            result.extend(mine)
            answers = [answer for answer in answers if answer not in mine]
        result.extend(answers)
    return result


def _short_ids(form: ToolFormat, turns: list[Message]) -> list[Message]:
    """Mistral's templates refuse ids that are not nine letters and digits; other people's get new ones."""
    if form.id_style != "short":
        return turns
    short: dict[str, str] = {}

    def renamed(name: Any) -> Any:
        if not isinstance(name, str) or (len(name) == 9 and name.isalnum()):
            return name
        return short.setdefault(name, f"id{len(short):07d}")

    result = []
    for turn in turns:
        if turn.get("tool_calls"):
            calls = [{**call, "id": renamed(call.get("id"))} for call in turn["tool_calls"]]
            turn = {**turn, "tool_calls": calls}
        if "tool_call_id" in turn:
            turn = {**turn, "tool_call_id": renamed(turn["tool_call_id"])}
        result.append(turn)
    return result


def _plain(form: ToolFormat, turns: list[Message]) -> list[Message]:
    """Calls and results as the text of assistant and user turns; results in a row share one turn."""
    result: list[Message] = []
    results_open = False
    for turn in turns:
        if turn.get("role") == "tool" and not form.shows_results:
            text = f"<tool_response>\n{_text(turn.get('content'))}\n</tool_response>"
            if results_open:
                result[-1] = {**result[-1], "content": f"{result[-1]['content']}\n{text}"}
            else:
                result.append({"role": "user", "content": text})
            results_open = True
            continue
        results_open = False
        result.append(_with_calls(form, turn) if turn.get("tool_calls") else turn)
    return result


def _with_calls(form: ToolFormat, turn: Message) -> Message:
    calls = [call.get("function", call) for call in turn["tool_calls"]]
    text = written(form, [(call["name"], call.get("arguments") or {}) for call in calls])
    content = _text(turn.get("content"))
    kept = {key: value for key, value in turn.items() if key != "tool_calls"}
    return {**kept, "content": f"{content}\n{text}" if content else text}


def _text(content: Any) -> str:
    """The text of a message's content, which may be a list of parts."""
    return "\n".join(part["text"] for part in content) if isinstance(content, list) else content or ""


def _dumps(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
