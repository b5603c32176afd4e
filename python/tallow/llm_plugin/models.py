"""Models of ``llm``, sync, async and for embeddings, over a ``tallow.Model``."""

from __future__ import annotations

import asyncio
import functools
import json
from collections.abc import AsyncGenerator, Iterable, Iterator, Sequence
from typing import Any

import llm
from llm.parts import Message, ReasoningPart, StreamEvent, TextPart, ToolCallPart, ToolResultPart
from pydantic import Field, create_model, field_validator

from .. import _core, answers
from ..cli.commands import FIELDS
from ..errors import InvalidRequestError
from ..model import Model
from ..tools.functions import bounded

#: What the names of all our models begin with.
PREFIX = "tallow/"


class _Options(llm.Options):
    max_tokens: int | None = Field(default=None, description="End the answer after so many tokens", ge=1)
    seed: int | None = Field(default=None, description="The same seed gives the same answer", ge=0)
    stop: str | list[str] | None = Field(
        default=None, description="Text that ends the answer; a JSON list of several"
    )
    timeout: float | None = Field(default=None, description="Seconds after which to give up", gt=0)
    think: bool | str | None = Field(default=None, description="true, false, or how much: low, medium, high")
    regex: str | None = Field(default=None, description="What the whole answer must match")
    grammar: str | None = Field(default=None, description="A Lark grammar of the whole answer")

    @field_validator("stop", mode="before")
    @classmethod
    def _several(cls, value: Any) -> Any:
        """On a command line a list is JSON."""
        return json.loads(value) if isinstance(value, str) and value.startswith("[") else value

    @field_validator("think", mode="before")
    @classmethod
    def _switch(cls, value: Any) -> Any:
        words = {"true": True, "on": True, "false": False, "off": False}
        return words.get(value.lower(), value) if isinstance(value, str) else value


def _options() -> type[llm.Options]:
    """Those, and the fields of a Sampler, whose ranges the engine judges."""
    kinds = {"number": float, "count": int}
    fields: dict[str, Any] = {
        name: (kinds[kind] | None, Field(default=None, description=FIELDS[name][1]))
        for name, kind in _core.SAMPLER_FIELDS
        if kind in kinds
    }
    return create_model("Options", __base__=_Options, **fields)


_Fields = _options()


class _Common:
    can_stream = True
    supports_schema = True
    supports_tools = True

    def __init__(self, name: str, source: str, options: dict[str, Any]) -> None:
        self.model_id = PREFIX + name
        self._source = source
        self._load_options = options

    def __str__(self) -> str:
        return f"tallow: {self.model_id}"

    def _asked(self, prompt: llm.Prompt) -> answers.Asked:
        """Loads the model, where it is not yet, and checks the request."""
        model = _model(self._source, json.dumps(self._load_options, sort_keys=True))
        given = {name: value for name, value in prompt.options.model_dump().items() if value is not None}
        if prompt.schema:
            # ``name, age int`` means these two, and a number has an end; both are left open by its schema.
            given["json_schema"] = bounded(prompt.schema)
        offered = [
            {"name": tool.name, "description": tool.description, "parameters": tool.input_schema or None}
            for tool in prompt.tools
        ]
        return answers.prepare(model, _turns(model, prompt), offered=offered, **given)

    @staticmethod
    def _event(event: answers.Event, response: Any) -> Iterator[StreamEvent]:
        if isinstance(event, str):
            yield StreamEvent("text", event)
        elif isinstance(event, answers.Thought):
            yield StreamEvent("reasoning", event.text)
        else:
            response.add_tool_call(llm.ToolCall(event.name, event.arguments, event.id))
            yield StreamEvent("tool_call_name", event.name, tool_call_id=event.id)
            yield StreamEvent("tool_call_args", event.arguments_json, tool_call_id=event.id)

    @staticmethod
    def _end(reply: answers.Reply | answers.AsyncReply, response: Any) -> None:
        usage, timings = reply.usage, reply.timings
        assert usage is not None and timings is not None, "it was read to its end"
        details = {"cached_tokens": usage.cached_tokens, "reasoning_tokens": reply.thought_tokens}
        response.set_usage(
            input=usage.prompt_tokens,
            output=usage.completion_tokens,
            details={name: count for name, count in details.items() if count} or None,
        )
        response.response_json = {
            "finish_reason": reply.finish_reason,
            "notes": list(reply.notes),
            "timings": {"queue_s": timings.queue, "prefill_s": timings.prefill, "decode_s": timings.decode},
        }


class Tallow(_Common, llm.Model):
    Options = _Fields  # type: ignore[assignment,misc]

    def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.Response, conversation: Any
    ) -> Iterator[StreamEvent]:
        with self._asked(prompt).stream() as reply:
            for event in reply:
                yield from self._event(event, response)
        self._end(reply, response)


class AsyncTallow(_Common, llm.AsyncModel):
    Options = _Fields  # type: ignore[assignment,misc]

    async def execute(
        self, prompt: llm.Prompt, stream: bool, response: llm.AsyncResponse, conversation: Any
    ) -> AsyncGenerator[StreamEvent, None]:
        asked = await asyncio.to_thread(self._asked, prompt)
        async with asked.astream() as reply:
            async for event in reply:
                for one in self._event(event, response):
                    yield one
        self._end(reply, response)


class Embedding(llm.EmbeddingModel):
    batch_size = 64

    def __init__(self, name: str, source: str, options: dict[str, Any]) -> None:
        self.model_id = PREFIX + name
        self._model = functools.partial(_model, source, json.dumps(options, sort_keys=True))

    def embed_batch(self, items: Iterable[str | bytes], *, key: str | None = None) -> Iterator[list[float]]:
        texts: list[Any] = list(items)  # texts all: llm refuses bytes where ``supports_binary`` is not set
        yield from self._model().embed(texts).tolist()


@functools.cache
def _model(source: str, options: str) -> Model:
    return Model(source, **json.loads(options))


# llm's messages as OpenAI's


def _turns(model: Model, prompt: llm.Prompt) -> str | list[dict[str, Any]]:
    turns = [turn for message in prompt.messages for turn in _turn(message)]
    if model.has_template or prompt.tools:
        return turns
    # A base model continues text, and there is nothing else that one message could mean.
    if len(turns) == 1 and turns[0]["role"] == "user":
        return str(turns[0]["content"])
    raise InvalidRequestError(
        f"{model.name} has no chat template: it continues one text, and knows neither system messages nor "
        "earlier turns"
    )


def _turn(message: Message) -> Iterator[dict[str, Any]]:
    parts: Sequence[Any] = message.parts
    if message.role == "tool":
        for part in parts:
            if isinstance(part, ToolResultPart):
                content = part.output if part.exception is None else f"Error: {part.exception}"
                yield {
                    "role": "tool",
                    "name": part.name,
                    "tool_call_id": part.tool_call_id,
                    "content": content,
                }
        return
    turn: dict[str, Any] = {"role": message.role}
    turn["content"] = "\n".join(part.text for part in parts if isinstance(part, TextPart))
    thought = "".join(part.text for part in parts if isinstance(part, ReasoningPart))
    calls = [part for part in parts if isinstance(part, ToolCallPart)]
    if thought:
        turn["reasoning_content"] = thought
    if calls:
        turn["tool_calls"] = [
            {
                "id": call.tool_call_id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in calls
        ]
    yield turn
