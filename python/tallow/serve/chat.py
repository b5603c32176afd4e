"""``/chat/completions``: messages in, an answer with its thoughts and calls out, whole or as it comes."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from starlette.responses import Response

from .. import _core, answers, arguments, results
from ..tools import Call as ToolCall
from . import formats, generation
from .call import Call
from .errors import invalid
from .generation import Answer, Asked
from .server import Served
from .sse import EventStream, Writer
from .wire import Generating, check_keys

#: How much to think, in OpenAI's words.
EFFORTS = ("none", "minimal", *answers.EFFORTS, "xhigh")


class ChatRequest(Generating, kw_only=True):
    """The body of ``/chat/completions``."""

    messages: list[dict[str, Any]]
    max_completion_tokens: int | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    reasoning_effort: str | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | str | None = None
    format: str | None = None


async def chat(call: Call) -> Response:
    """Answers messages."""
    given = await call.read(ChatRequest)
    served = await call.served(given.model)
    n = generation.count(given, call.server.settings.max_n)
    asked, form = await prepared(call, served, given, n)
    shape = _Shape(given, asked, form)
    if given.stream:
        call.outcome.stream = True
        return EventStream(call, lambda out: _stream(shape, asked, given, out))
    (found,) = await generation.complete([asked])
    return call.json(shape.whole(found))


async def prepared(
    call: Call, served: Served, given: ChatRequest, n: int
) -> tuple[Asked, dict[str, Any] | None]:
    """The request, checked; and what was read of a DSPy adapter's format, where that is to be read."""
    call.names = {**_names(given), **call.names}
    options = _options(given, served, call.server.settings.timeout)
    _check_messages(given.messages, served)
    form = await _format(call, served, given, options)
    return await generation.prepared(call, served, n, given.messages, _size(given), options), form


# Reading

#: What a message may hold; a template may know more.
_MESSAGE = (
    *("role", "content", "name", "tool_calls", "tool_call_id", "reasoning_content", "reasoning", "thinking"),
    # What an answer of this API has, and what marks a place to cache: they say nothing to a model.
    *("refusal", "annotations", "audio", "function_call", "provider_specific_fields", "cache_control", "id"),
)


def _check_messages(given: Sequence[Mapping[str, Any]], served: Served) -> None:
    text = served.model.chat_template or ""
    for at, message in enumerate(given):
        own = {key: value for key, value in message.items() if key not in text}
        check_keys(f"messages[{at}]", own, _MESSAGE)


def _names(given: ChatRequest) -> dict[str, str]:
    """What our arguments are called in this request."""
    found = {"template_arguments": "chat_template_kwargs", "name": "messages"}
    if given.tools:
        found["grammar"] = "tools"
    if given.max_completion_tokens is not None:
        found["max_tokens"] = "max_completion_tokens"
    return {**found, **generation.names(given)}


def _size(given: ChatRequest) -> int:
    """About how much there is to prepare; a grammar of tools or of a schema costs more than text."""
    forms = len(given.tools or ()) + (given.response_format is not None)
    return 4096 * (len(given.messages) + forms) + sum(
        len(text) for message in given.messages if isinstance(text := message.get("content"), str)
    )


def _options(given: ChatRequest, served: Any, timeout: float) -> dict[str, Any]:
    options = generation.options(given, timeout)
    options["max_tokens"] = _max_tokens(given)
    options["logprobs"] = _logprobs(given)
    check_tools(given.tools or ())
    choice, allowed = _tool_choice(given)
    own = dict(given.chat_template_kwargs or {})
    if given.add_generation_prompt is not None:
        own["add_generation_prompt"] = given.add_generation_prompt
    return {
        **options,
        "name": "messages",
        "offered": given.tools or () if choice != "none" else (),
        "choice": choice,
        "allowed": allowed,
        "parallel": given.parallel_tool_calls is not False,
        "think": _think(given.reasoning_effort, served.template),
        "template_arguments": own,
        "continue_final_message": given.continue_final_message or False,
    }


def check_tools(given: Sequence[Any]) -> None:
    """Refuses what the server would have to run."""
    for at, tool in enumerate(given):
        kind = tool.get("type", "function") if isinstance(tool, Mapping) else None
        if kind != "function":
            raise invalid(
                f"tools[{at}] has the type {arguments.shown(kind)}; it must be 'function', for a server "
                "without tools of its own",
                "tools",
            )


def _max_tokens(given: ChatRequest) -> int | None:
    old, new = given.max_tokens, given.max_completion_tokens
    if old is not None and new is not None and old != new:
        raise invalid(f"max_tokens is {old} and max_completion_tokens {new}; give one of them", "max_tokens")
    return new if old is None else old


def _logprobs(given: ChatRequest) -> int | None:
    if given.top_logprobs and not given.logprobs:
        raise invalid("top_logprobs needs logprobs: true", "top_logprobs")
    if not given.logprobs:
        return None
    return arguments.integer("top_logprobs", given.top_logprobs or 0, 0, _core.MAX_TOP_LOGPROBS)


def _tool_choice(given: ChatRequest) -> tuple[str, list[str]]:
    """The mode, and the names to which the choice is narrowed."""
    name, choice = "tool_choice", given.tool_choice
    names: list[Any] = []
    if isinstance(choice, dict):
        kind = choice.get("type")
        if kind == "function":
            mode, names = "required", [_function_name(choice)]
        elif kind == "allowed_tools":
            inner = choice.get("allowed_tools", choice)
            tools = inner.get("tools") if isinstance(inner, Mapping) else None
            if not isinstance(tools, list) or not tools:
                raise invalid(f"{name} allows no tools", name)
            mode, names = inner.get("mode", "auto"), [_function_name(tool) for tool in tools]
        else:
            raise invalid(
                f"{name} has the type {arguments.shown(kind)}; it must be 'function' or 'allowed_tools'", name
            )
    else:
        mode = "required" if choice == "any" else choice or "auto"
    arguments.choice(name, mode, ("none", "auto", "required"))
    if mode == "required" and not given.tools:
        raise invalid(f"{name} wants a call, and there are no tools", name)
    return mode, names if given.tools else []


def _function_name(given: Any) -> str:
    inner = given.get("function", given) if isinstance(given, Mapping) else None
    found = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(found, str):
        raise invalid(
            'tool_choice names no function; give {"type": "function", "function": {"name": NAME}}',
            "tool_choice",
        )
    return found


def _think(effort: str | None, template: answers.Template) -> bool | str | None:
    """OpenAI's word for how much to think, as the model can take it."""
    if effort is None:
        return None
    arguments.choice("reasoning_effort", effort, EFFORTS)
    if effort == "none":
        return False
    tags = template.tags
    if tags is None:
        raise invalid(
            "reasoning_effort is for models that think, and this one's chat template knows no thoughts; "
            "leave it out",
            "reasoning_effort",
        )
    if tags.switch is None or tags.on is not None:
        return True
    return {"minimal": "low", "xhigh": "high"}.get(effort, effort)


async def _format(
    call: Call, served: Served, given: ChatRequest, options: dict[str, Any]
) -> dict[str, Any] | None:
    """Puts the format that the messages ask for into the options, if it is to be read; what is told of it."""
    if not formats.wanted(call, given.format):
        return None
    own = generation.constraint(given)
    some = own == {"json_schema": generation.any_object()}
    # On another thread: it may import DSPy, and compiles a grammar.
    constraint, told = await asyncio.to_thread(formats.found, served, given.messages, own, any_object=some)
    options.update(dict.fromkeys(own) if constraint else {}, **constraint)
    return told


# Answering


class _Shape:
    """The objects of one response."""

    def __init__(self, given: ChatRequest, asked: Asked, form: dict[str, Any] | None) -> None:
        self._head = {
            "id": f"chatcmpl-{uuid.uuid4().hex}",
            "created": int(time.time()),
            "model": given.model or asked.served.name,
            "system_fingerprint": generation.fingerprint(asked.served),
        }
        self._told: dict[str, Any] = {"format": form} if form is not None else {}
        if asked.notes:
            self._told["notes"] = list(asked.notes)
        self._logprobs = bool(given.logprobs)
        self._with_usage = bool(given.stream_options and given.stream_options.include_usage)

    def whole(self, found: Sequence[Answer]) -> dict[str, Any]:
        return {
            **self._head,
            "object": "chat.completion",
            "choices": [self._choice(index, answer) for index, answer in enumerate(found)],
            "usage": generation.usage([found]),
            **self._told,
        }

    def _choice(self, index: int, answer: Answer) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.thought:
            message["reasoning_content"] = answer.thought
        if answer.calls:
            message["tool_calls"] = [_call(one) for one in answer.calls]
            message["content"] = answer.text or None
        return {
            "index": index,
            "message": message,
            "logprobs": logprobs(answer.logprobs) if self._logprobs else None,
            "finish_reason": answer.finish_reason,
        }

    def chunk(
        self,
        index: int,
        delta: dict[str, Any],
        found: tuple[results.TokenLogprob, ...] | None = None,
        reason: str | None = None,
    ) -> dict[str, Any]:
        choice = {
            "index": index,
            "delta": delta,
            "logprobs": logprobs(found) if found and self._logprobs else None,
            "finish_reason": reason,
        }
        event = {**self._head, "object": "chat.completion.chunk", "choices": [choice]}
        if self._with_usage:
            event["usage"] = None
        # What was done to the request is told once, with the first piece.
        event.update(self._told)
        self._told = {}
        return event

    def usage(self, found: Sequence[Sequence[answers.AsyncReply]]) -> dict[str, Any]:
        cost = generation.usage(found)
        return {**self._head, "object": "chat.completion.chunk", "choices": [], "usage": cost}


async def _stream(shape: _Shape, asked: Asked, given: ChatRequest, out: Writer) -> None:
    begun: set[int] = set()

    async def take(
        _: int, index: int, reply: answers.AsyncReply, chunk: results.Chunk, events: list[answers.Event]
    ) -> None:
        if index not in begun:
            begun.add(index)
            out.put(shape.chunk(index, {"role": "assistant", "content": ""}))
        deltas = [_delta(event) for event in events]
        if chunk.logprobs and not deltas:
            deltas = [{"content": ""}]  # or they would be lost: a token may be no whole character
        for at, delta in enumerate(deltas):
            out.put(shape.chunk(index, delta, chunk.logprobs if at == 0 else None))
        if chunk.finish_reason is not None:
            out.put(shape.chunk(index, {}, reason=asked.ended(reply)))
        await out.flush()

    replies = await generation.pieces([asked], take)
    if given.stream_options and given.stream_options.include_usage:
        out.put(shape.usage(replies))
    out.put_done()


def _delta(event: answers.Event) -> dict[str, Any]:
    if isinstance(event, str):
        return {"content": event}
    if isinstance(event, ToolCall):
        return {"tool_calls": [{"index": event.index, **_call(event)}]}
    return {"reasoning_content": event.text}


def _call(found: ToolCall) -> dict[str, Any]:
    function = {"name": found.name, "arguments": found.arguments_json}
    return {"id": found.id, "type": "function", "function": function}


def logprobs(found: Sequence[results.TokenLogprob]) -> dict[str, Any]:
    return {
        "content": [
            {**_named(entry), "top_logprobs": [_named(other) for other in entry.top]} for entry in found
        ],
        "refusal": None,
    }


def _named(entry: results.TokenLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": generation.finite(entry.logprob), "bytes": list(entry.bytes)}
