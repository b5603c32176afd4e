"""What ``/responses`` is sent, as the fields of a chat: items become messages, and its names ours.

An item is a message, a thought, a call or the result of one. A chat has the first three in one message of
the assistant's, so what an answer was made of is put together again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from .. import arguments
from .chat import check_tools
from .errors import invalid
from .wire import check_keys

_TEXTS = ("input_text", "output_text", "text", "refusal")
#: Kinds of items that there are elsewhere -> what to do instead.
_ELSEWHERE = {
    "item_reference": "nothing is kept here; send the item itself",
    "compaction": "nothing is compacted here; send the conversation itself",
}
#: What ``include`` may ask for, and there is anyway.
_INCLUDED = ("reasoning.encrypted_content", "message.output_text.logprobs")


def messages(given: Any, instructions: str | None) -> list[dict[str, Any]]:
    """The conversation that ``input`` is, after ``instructions``."""
    turns = _Turns()
    if instructions:
        turns.add({"role": "system", "content": instructions})
    if isinstance(given, str):
        given = [{"role": "user", "content": given}]
    if not isinstance(given, list) or not given:
        raise invalid("input must be a text or a list of items", "input")
    for at, item in enumerate(given):
        turns.read(f"input[{at}]", item)
    turns.flush()
    return turns.found


class _Turns:
    """The messages so far, and the assistant's that is being put together."""

    def __init__(self) -> None:
        self.found: list[dict[str, Any]] = []
        self._open: dict[str, Any] = {}

    def add(self, message: dict[str, Any]) -> None:
        self.flush()
        self.found.append(message)

    def flush(self) -> None:
        if self._open:
            self.found.append({"role": "assistant", "content": None, **self._open})
            self._open = {}

    def read(self, where: str, item: Any) -> None:
        if not isinstance(item, Mapping):
            raise invalid(f"{where} must be an object", "input")
        kind = item.get("type", "message" if "role" in item else None)
        if kind == "message":
            self._message(where, item)
        elif kind == "reasoning":
            self._begin("reasoning_content", "content", "tool_calls")
            self._open["reasoning_content"] = _thought(where, item)
        elif kind == "function_call":
            self._open.setdefault("tool_calls", []).append(_call(where, item))
        elif kind == "function_call_output":
            content = _content(f"{where}.output", item.get("output"))
            name = _string(where, item, "call_id")
            self.add({"role": "tool", "tool_call_id": name, "content": content})
        else:
            instead = _ELSEWHERE.get(kind) if isinstance(kind, str) else None
            known = "it must be 'message', 'reasoning', 'function_call' or 'function_call_output'"
            raise invalid(f"{where} has the type {arguments.shown(kind)}; {instead or known}", "input")

    def _message(self, where: str, item: Mapping[str, Any]) -> None:
        role = _string(where, item, "role")
        content = _content(f"{where}.content", item.get("content"))
        if role != "assistant":
            self.add({"role": role, "content": content})
            return
        self._begin("content", "tool_calls")
        self._open["content"] = content

    def _begin(self, *behind: str) -> None:
        """Ends the open message where it already has what can only come later."""
        if any(name in self._open for name in behind):
            self.flush()


def _content(where: str, given: Any) -> str:
    if isinstance(given, str):
        return given
    if not isinstance(given, list):
        raise invalid(f"{where} must be a text or a list of parts", "input")
    return "".join(_part(f"{where}[{at}]", part) for at, part in enumerate(given))


def _part(where: str, part: Any) -> str:
    kind = part.get("type") if isinstance(part, Mapping) else None
    if kind not in _TEXTS:
        raise invalid(
            f"{where} has the type {arguments.shown(kind)}; there is only text here ('input_text', "
            "'output_text')",
            "input",
        )
    return _string(where, part, "refusal" if kind == "refusal" else "text")


def _thought(where: str, item: Mapping[str, Any]) -> str:
    parts = item.get("content") or item.get("summary") or []
    if not isinstance(parts, list):
        raise invalid(f"{where}.content must be a list of parts", "input")
    if not parts and item.get("encrypted_content"):
        raise invalid(f"{where} is an encrypted thought of another server's; leave it out", "input")
    return "".join(_string(where, part, "text") for part in parts)


def _call(where: str, item: Mapping[str, Any]) -> dict[str, Any]:
    function = {name: _string(where, item, name) for name in ("name", "arguments")}
    return {"id": _string(where, item, "call_id"), "type": "function", "function": function}


def _string(where: str, item: Any, name: str) -> str:
    value = item.get(name) if isinstance(item, Mapping) else None
    if not isinstance(value, str):
        raise invalid(f"{where} has no {name}; give a text", "input")
    return value


# The other fields


def tools(given: list[Any] | None) -> list[Any] | None:
    """Tools as a chat has them: only functions."""
    check_tools(given or ())
    names = ("name", "description", "parameters", "strict")
    for at, tool in enumerate(given or ()):
        if "function" not in tool:
            check_keys(f"tools[{at}]", tool, ("type", *names))
    return [
        {"type": "function", "function": {name: tool[name] for name in names if tool.get(name) is not None}}
        if "function" not in tool
        else tool
        for tool in given or ()
    ]


def response_format(given: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """``text``: the form of the answer."""
    known = ("format", "verbosity")
    for name in given or {}:
        if name not in known:
            raise invalid(f"text has {arguments.shown(name)}; there are {', '.join(known)}", "text")
    if (given or {}).get("verbosity") not in (None, "medium"):
        raise invalid("text.verbosity is not supported: say in the instructions how long to answer", "text")
    form = (given or {}).get("format")
    if form is None:
        return None
    kinds = ("text", "json_object", "json_schema")
    kind = form.get("type") if isinstance(form, Mapping) else form
    if not isinstance(form, Mapping) or kind not in kinds:
        raise invalid(f"text.format has the type {arguments.shown(kind)}; it must be one of {kinds}", "text")
    held = () if kind == "text" else ("name", "description", "schema", "strict")
    check_keys("text.format", form, ("type", *held))
    if kind == "json_schema" and not isinstance(form.get("schema"), Mapping):
        raise invalid('text.format has no schema; give {"type": "json_schema", "schema": ...}', "text")
    return dict(form)


def effort(given: Mapping[str, Any] | None, words: Sequence[str]) -> str | None:
    """``reasoning``: how much to think. Thoughts are told whole, so a summary of any kind is no less."""
    known = ("effort", "summary", "generate_summary")
    for name in given or {}:
        if name not in known:
            raise invalid(f"reasoning has {arguments.shown(name)}; there are {', '.join(known)}", "reasoning")
    found = (given or {}).get("effort")
    if found is not None and found not in words:
        raise invalid(
            f"reasoning.effort is {arguments.shown(found)}; it must be one of {', '.join(words)}", "reasoning"
        )
    return found


def with_logprobs(include: list[str] | None) -> bool:
    for name in include or ():
        if name not in _INCLUDED:
            raise invalid(
                f"include has {arguments.shown(name)}, which there is not here; there are "
                f"{', '.join(_INCLUDED)}",
                "include",
            )
    return "message.output_text.logprobs" in (include or ())
