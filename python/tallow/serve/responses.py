"""``/responses``: OpenAI's newer API, as far as nothing is kept between requests.

A request is read as a chat (``items``), and the answer told as items: a thought, a message, calls of tools.
Whole or streamed they are made by one hand, ``_Items``, which the events of an answer go through.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterator, Sequence
from typing import Annotated, Any

import msgspec
from starlette.responses import Response

from .. import answers, results
from ..answers import Thought
from ..tools import Call as ToolCall
from . import chat, errors, generation, items, wire
from .call import Call
from .generation import Asked
from .sse import EventStream, Writer

#: Fields that a chat has under the same name.
_SAME = (
    *wire.Sampled.__struct_fields__,
    *("tool_choice", "parallel_tool_calls", "chat_template_kwargs", "format"),
)


_INPUT = msgspec.Meta(
    extra_json_schema={
        "anyOf": [{"type": "string"}, {"type": "array", "items": {"type": "object"}, "minItems": 1}]
    }
)


class ResponsesRequest(wire.Sampled, kw_only=True):
    """The body of ``/responses``."""

    #: A text, or a list of items.
    input: Annotated[Any, _INPUT]
    instructions: str | None = None
    stream_options: wire.StreamOptions | None = None
    max_output_tokens: int | None = None
    #: The form of the answer: {"format": {"type": "json_schema", "schema": ...}}.
    text: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    reasoning: dict[str, Any] | None = None
    include: list[str] | None = None
    top_logprobs: int | None = None
    metadata: dict[str, str] | None = None
    # Our own, as for a chat.
    chat_template_kwargs: dict[str, Any] | None = None
    format: str | None = None


async def responses(call: Call) -> Response:
    """Answers items, as far as nothing is kept between requests."""
    given = await call.read(ResponsesRequest)
    served = await call.served(given.model)
    same = _as_chat(given)
    call.names = {"max_tokens": "max_output_tokens", "response_format": "text"}
    if same.response_format:
        call.names["json_schema"] = "text"
    asked, form = await chat.prepared(call, served, same, 1)
    shape = _Shape(given, asked, form)
    made = _Items(bool(same.logprobs))
    if given.stream:
        call.outcome.stream = True
        return EventStream(call, lambda out: _stream(shape, asked, made, out), shape.failed)
    ((answer,),) = await generation.complete([asked])
    for event in (*([Thought(answer.thought)] if answer.thought else ()), answer.text, *answer.calls):
        if event:
            for _ in made.add(event, answer.logprobs if isinstance(event, str) else ()):
                pass
    for _ in made.end(answer.finish_reason):
        pass
    return call.json(shape.whole(made.done, answer.finish_reason, generation.usage([[answer]])))


def _as_chat(given: ResponsesRequest) -> chat.ChatRequest:
    with_logprobs = items.with_logprobs(given.include) or bool(given.top_logprobs)
    return chat.ChatRequest(
        messages=items.messages(given.input, given.instructions),
        max_completion_tokens=given.max_output_tokens,
        response_format=items.response_format(given.text),
        tools=items.tools(given.tools),
        reasoning_effort=items.effort(given.reasoning, chat.EFFORTS),
        logprobs=with_logprobs or None,
        top_logprobs=given.top_logprobs,
        **{name: getattr(given, name) for name in _SAME},
    )


# Answering


class _Shape:
    """The objects of one response."""

    def __init__(self, given: ResponsesRequest, asked: Asked, form: dict[str, Any] | None) -> None:
        self._number = 0
        self._head = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": given.model or asked.served.name,
            "instructions": given.instructions,
            "max_output_tokens": given.max_output_tokens,
            "metadata": given.metadata or {},
            "parallel_tool_calls": given.parallel_tool_calls is not False,
            "previous_response_id": None,
            "reasoning": {"effort": (given.reasoning or {}).get("effort"), "summary": None},
            "store": False,
            "temperature": given.temperature,
            "text": {"format": (given.text or {}).get("format") or {"type": "text"}},
            "tool_choice": given.tool_choice or "auto",
            "tools": given.tools or [],
            "top_p": given.top_p,
            "truncation": "disabled",
            "system_fingerprint": generation.fingerprint(asked.served),
            **({"notes": list(asked.notes)} if asked.notes else {}),
            **({"format": form} if form is not None else {}),
        }

    def whole(
        self, output: Sequence[dict[str, Any]], reason: str | None, usage: dict[str, Any] | None
    ) -> dict[str, Any]:
        """The response; ``reason`` is None while it is in work."""
        cut = reason == "length"
        return {
            **self._head,
            "status": "incomplete" if cut else "completed" if reason else "in_progress",
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "output": list(output),
            "usage": None if usage is None else _usage(usage),
        }

    def event(self, kind: str, **fields: Any) -> dict[str, Any]:
        number, self._number = self._number, self._number + 1
        return {"type": kind, "sequence_number": number, **fields}

    def failed(self, out: Writer, refused: errors.Refused) -> None:
        shown = refused.body()["error"]
        told = {name: shown[name] for name in ("code", "message", "param")}
        # What clients look for in any stream stands beside it.
        out.put(self.event("error", **told, error=shown), "error")


def _usage(found: dict[str, Any]) -> dict[str, Any]:
    """A chat's, in the words of this route."""
    return {
        "input_tokens": found["prompt_tokens"],
        "input_tokens_details": {**found["prompt_tokens_details"], "cache_write_tokens": 0},
        "output_tokens": found["completion_tokens"],
        "output_tokens_details": found["completion_tokens_details"],
        "total_tokens": found["total_tokens"],
    }


#: An event of the stream: its name and its fields.
_Told = tuple[str, dict[str, Any]]


class _Items:
    """Makes items of the events of an answer, and says what a stream tells of it."""

    def __init__(self, with_logprobs: bool) -> None:
        self.done: list[dict[str, Any]] = []
        self._with_logprobs = with_logprobs
        self._open: dict[str, Any] | None = None
        self._text: list[str] = []
        self._logprobs: list[dict[str, Any]] = []
        #: Of tokens that are no text yet.
        self._held: list[dict[str, Any]] = []

    def add(self, event: answers.Event, logprobs: Sequence[results.TokenLogprob]) -> Iterator[_Told]:
        if isinstance(event, ToolCall):
            yield from self._close("completed")
            yield from self._call(event)
            return
        is_text = isinstance(event, str)
        text = event if isinstance(event, str) else event.text
        if self._open is None or (self._open["type"] == "message") != is_text:
            yield from self._close("completed")
            yield from self._begin(is_text)
        self._text.append(text)
        if not is_text:
            yield self._of("response.reasoning_text.delta", content_index=0, delta=text)
            return
        found = self.hold(logprobs)
        self._held = []
        self._logprobs.extend(found)
        yield self._of("response.output_text.delta", content_index=0, delta=text, logprobs=found)

    def hold(self, logprobs: Sequence[results.TokenLogprob]) -> list[dict[str, Any]]:
        """Keeps them for the next text; a token may be no whole character."""
        if self._with_logprobs and logprobs:
            self._held += chat.logprobs(logprobs)["content"]
        return self._held

    def end(self, reason: str) -> Iterator[_Told]:
        if not self.done and self._open is None:
            yield from self._begin(True)
        yield from self._close("incomplete" if reason == "length" else "completed")

    def _begin(self, is_text: bool) -> Iterator[_Told]:
        name = uuid.uuid4().hex
        if is_text:
            self._open = {"id": f"msg_{name}", "type": "message", "role": "assistant", "content": []}
        else:
            self._open = {"id": f"rs_{name}", "type": "reasoning", "summary": [], "content": []}
        self._text, self._logprobs = [], []
        yield "response.output_item.added", self._at(item={**self._open, "status": "in_progress"})
        yield self._of("response.content_part.added", content_index=0, part=self._part())

    def _close(self, status: str) -> Iterator[_Told]:
        if self._open is None:
            return
        part = self._part()
        if self._open["type"] == "message":
            told = {"text": part["text"], "logprobs": part["logprobs"]}
            yield self._of("response.output_text.done", content_index=0, **told)
        else:
            yield self._of("response.reasoning_text.done", content_index=0, text=part["text"])
        yield self._of("response.content_part.done", content_index=0, part=part)
        item = {**self._open, "content": [part], "status": status}
        yield "response.output_item.done", self._at(item=item)
        self.done.append(item)
        self._open = None

    def _part(self) -> dict[str, Any]:
        assert self._open is not None
        text = "".join(self._text)
        if self._open["type"] == "reasoning":
            return {"type": "reasoning_text", "text": text}
        return {"type": "output_text", "text": text, "annotations": [], "logprobs": list(self._logprobs)}

    def _call(self, found: ToolCall) -> Iterator[_Told]:
        """A call comes whole: half of one is of no use."""
        item = {
            "id": f"fc_{uuid.uuid4().hex}",
            "type": "function_call",
            "call_id": found.id,
            "name": found.name,
        }
        self._open = item
        arguments = found.arguments_json
        yield "response.output_item.added", self._at(item={**item, "arguments": "", "status": "in_progress"})
        yield self._of("response.function_call_arguments.delta", delta=arguments)
        yield self._of("response.function_call_arguments.done", arguments=arguments, name=found.name)
        self._open = None
        item = {**item, "arguments": arguments, "status": "completed"}
        yield "response.output_item.done", self._at(item=item)
        self.done.append(item)

    def _of(self, kind: str, **fields: Any) -> _Told:
        """An event about the open item."""
        assert self._open is not None
        return kind, self._at(item_id=self._open["id"], **fields)

    def _at(self, **fields: Any) -> dict[str, Any]:
        return {"output_index": len(self.done), **fields}


async def _stream(shape: _Shape, asked: Asked, made: _Items, out: Writer) -> None:
    def tell(kind: str, **fields: Any) -> None:
        out.put(shape.event(kind, **fields), kind)

    begun = False

    async def take(
        _: int, __: int, reply: answers.AsyncReply, chunk: results.Chunk, events: list[answers.Event]
    ) -> None:
        nonlocal begun
        if not begun:
            begun = True
            for kind in ("response.created", "response.in_progress"):
                tell(kind, response=shape.whole([], None, None))
        made.hold(chunk.logprobs or ())
        for event in events:
            for kind, fields in made.add(event, ()):
                tell(kind, **fields)
        if chunk.finish_reason is not None:
            reason = asked.ended(reply)
            for kind, fields in made.end(reason):
                tell(kind, **fields)
            whole = shape.whole(made.done, reason, generation.usage([[reply]]))
            tell(f"response.{whole['status']}", response=whole)
        await out.flush()

    await generation.pieces([asked], take)
