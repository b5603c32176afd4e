"""From a request that was read to answers: what all routes that generate text have in common.

``options`` makes arguments of ``answers.prepare`` of the fields, ``prepared`` checks them with a prompt,
``complete`` waits for whole answers and ``pieces`` gives them as they come. A request without a seed gets a
fresh one for each answer, so that equal requests differ; with one, its answers are those of ``Model``.
"""

from __future__ import annotations

import asyncio
import functools
import json
import re
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .. import _core, answers, arguments, results
from ..schemas import lark
from ..schemas.bounded import Bounded
from ..tools import Call as ToolCall
from .call import LARGE, Call
from .errors import invalid
from .server import Served
from .wire import Generating, check_keys

#: How finish reasons are called on the wire.
REASONS = {"stop": "stop", "length": "length", "tool_call": "tool_calls"}
_FIELDS = tuple(name for name in arguments.SAMPLER_FIELDS if name not in ("filters", "logit_bias", "top_k"))


@dataclass
class Answer:
    """One whole answer."""

    text: str
    thought: str
    calls: list[ToolCall]
    finish_reason: str
    usage: results.Usage
    thought_tokens: int | None
    logprobs: tuple[results.TokenLogprob, ...]
    tokens: tuple[int, ...] = ()


@dataclass
class Asked:
    """A request that was checked, ready to run ``n`` times."""

    call: Call
    served: Served
    asked: answers.Asked
    n: int = 1
    #: Whether the log was told of the prompt, which counts once.
    _is_counted: bool = False

    @property
    def notes(self) -> tuple[str, ...]:
        """What was done to the messages for the sake of the chat template."""
        return self.asked.notes

    def ended(self, reply: answers.AsyncReply) -> str:
        """Why an answer that was read to its end did end, as it is called on the wire; the log is told what
        it cost."""
        assert reply.finish_reason is not None and reply.usage is not None and reply.timings is not None
        reason = REASONS[reply.finish_reason]
        self.call.outcome.count(reply.usage, reply.timings, reason, with_prompt=not self._is_counted)
        self._is_counted = True
        return reason


# Reading


def options(given: Generating, timeout: float) -> dict[str, Any]:
    """The fields of a request as arguments of ``answers.prepare``; what must be looked at with a prompt is
    the caller's."""
    fields: dict[str, Any] = {name: getattr(given, name) for name in _FIELDS}
    if given.top_k is not None:
        # Others switch it off with 0 or -1, and leaving it out would mean the model's own.
        fields["top_k"] = given.top_k if given.top_k > 0 else arguments.MAX_COUNT
        if given.top_k < -1:
            raise invalid(f"top_k is {given.top_k}; it must be at least 1 (0 or -1: off)", "top_k")
    if given.logit_bias:
        fields["logit_bias"] = {_id(key): bias for key, bias in given.logit_bias.items()}
    seconds = timeout if given.timeout is None else min(arguments.seconds("timeout", given.timeout), timeout)
    return {
        **fields,
        **constraint(given),
        "max_tokens": given.max_tokens,
        "stop": given.stop or (),
        "seed": given.seed,
        "prediction": _prediction(given.prediction),
        "timeout": seconds,
    }


def _id(key: str) -> int:
    if not re.fullmatch("0|[1-9][0-9]{0,9}", key):
        raise invalid(f"logit_bias has the key {arguments.shown(key)}; keys are token ids", "logit_bias")
    return int(key)


def _prediction(given: Any) -> str | None:
    """A text, or OpenAI's object around one."""
    if given is None or isinstance(given, str):
        return given
    content = given.get("content") if isinstance(given, Mapping) else None
    if isinstance(content, list) and all(isinstance(part, Mapping) for part in content):
        texts = [part.get("text") for part in content if part.get("type", "text") == "text"]
        content = "".join(texts) if len(texts) == len(content) and all_texts(texts) else None
    if not isinstance(content, str):
        raise invalid('prediction must be a text, or {"type": "content", "content": TEXT}', "prediction")
    return content


def all_texts(given: Sequence[Any]) -> bool:
    return all(isinstance(one, str) for one in given)


def count(given: Generating, most: int) -> int:
    n = 1 if given.n is None else given.n
    if not 1 <= n <= most:
        raise invalid(f"n is {n}; it must be from 1 to {most}", "n")
    return n


def constraint(given: Generating) -> dict[str, Any]:
    """The one form that is asked for, under its name in ``Model.generate``."""
    return next(iter(_forms(given).values()), {})


def names(given: Generating) -> dict[str, str]:
    """The argument that a form is -> the field that asks for it."""
    return {name: field for field, form in _forms(given).items() for name in form}


def _forms(given: Generating) -> dict[str, dict[str, Any]]:
    """The field that asks for a form -> the form; at most one."""
    held = given.structured_outputs
    found = {
        "response_format": _response_format(given.response_format),
        "json_schema": _named("json_schema", given.json_schema),
        "regex": _named("regex", given.regex),
        "grammar": _named("grammar", given.grammar),
        "choices": _named("choices", given.choices or None),
        "guided_json": _named("json_schema", _schema("guided_json", given.guided_json)),
        "guided_regex": _named("regex", given.guided_regex),
        "guided_grammar": _named("grammar", given.guided_grammar),
        "guided_choice": _named("choices", given.guided_choice or None),
    }
    if held is not None:
        found["structured_outputs.json"] = _named("json_schema", _schema("structured_outputs", held.json))
        found["structured_outputs.regex"] = _named("regex", held.regex)
        found["structured_outputs.choice"] = _named("choices", held.choice or None)
        found["structured_outputs.grammar"] = _named("grammar", held.grammar)
        if held.json_object:
            found["structured_outputs.json_object"] = {"json_schema": any_object()}
    asked = {name: value for name, value in found.items() if value}
    if len(asked) > 1:
        first, second, *_ = asked
        raise invalid(f"{first} and {second} exclude each other; give one of them", first)
    return asked


def _named(name: str, value: Any) -> dict[str, Any]:
    return {} if value is None else {name: value}


def _schema(name: str, given: Any) -> Any:
    """A schema, which vLLM also takes as a text."""
    if isinstance(given, str):
        try:
            given = json.loads(given)
        except (ValueError, RecursionError):
            raise invalid(f"{name} is a text that is no JSON; give a JSON schema", name) from None
    return given


@functools.cache
def any_object() -> dict[str, Any]:
    """A JSON object of any content, with an end."""
    return lark.styled(Bounded()({"type": "object", "additionalProperties": True}))


#: What a form may hold: a wrapper, or what OpenAI's has within it.
_FORM = ("type", "json_schema", "name", "description", "schema", "strict")


def _response_format(given: Mapping[str, Any] | None) -> dict[str, Any]:
    name = "response_format"
    if given is None:
        return {}
    kind = given.get("type")
    check_keys(name, given, ("type",) if kind == "text" else _FORM)
    if kind == "text":
        return {}
    if kind not in ("json_object", "json_schema"):
        raise invalid(
            f"{name} has the type {arguments.shown(kind)}; it must be 'text', 'json_object' or 'json_schema'",
            name,
        )
    # Beside the wrapper of OpenAI's there are servers that take the schema as it is.
    wrapped = given.get("json_schema", given)
    if wrapped is not given and isinstance(wrapped, Mapping):
        check_keys(f"{name}.json_schema", wrapped, _FORM[2:])
    schema = wrapped.get("schema") if isinstance(wrapped, Mapping) else None
    if schema is None and kind == "json_object":
        return {"json_schema": any_object()}
    if not isinstance(schema, Mapping):
        raise invalid(
            f'{name} has no schema; give {{"type": "json_schema", "json_schema": {{"schema": ...}}}}', name
        )
    return {"json_schema": dict(schema)}


# Running

#: What is compiled to a grammar. Some take seconds, and nobody else should wait for them.
_COMPILED = ("json_schema", "regex", "grammar", "choices", "offered")


async def prepared(
    call: Call, served: Served, n: int, prompt: Any, size: int, options: Mapping[str, Any]
) -> Asked:
    """Checks a prompt with its options. ``size``: about how many characters there are."""

    def prepare() -> answers.Asked:
        return answers.prepare(
            served.model, prompt, template=served.template, adapter=served.adapter, **options
        )

    if any(options.get(name) for name in _COMPILED):
        size = LARGE
    return Asked(call, served, await call.beside(size, prepare), n)


async def complete(asked: Sequence[Asked]) -> list[list[Answer]]:
    """All answers of some requests, which run together; they end when the client leaves."""
    if not asked:
        return []
    running = []
    try:
        async with asked[0].call.attended():
            for one in asked:
                running.append([one.asked.astream(index, every_token=False) for index in range(one.n)])
            return [
                [await _whole(one, reply) for reply in replies]
                for one, replies in zip(asked, running, strict=True)
            ]
    finally:
        for replies in running:
            for reply in replies:
                await reply.aclose()


async def _whole(asked: Asked, reply: answers.AsyncReply) -> Answer:
    text, thought, calls = [], [], []
    logprobs: list[results.TokenLogprob] = []
    tokens: list[int] = []
    async for chunk, events in reply.pieces():
        logprobs.extend(chunk.logprobs or ())
        tokens.extend(chunk.tokens)
        for event in events:
            if isinstance(event, str):
                text.append(event)
            elif isinstance(event, ToolCall):
                calls.append(event)
            else:
                thought.append(event.text)
    reason = asked.ended(reply)
    assert reply.usage is not None
    return Answer(
        "".join(text),
        "".join(thought),
        calls,
        reason,
        reply.usage,
        reply.thought_tokens,
        tuple(logprobs),
        tuple(tokens),
    )


#: Takes a piece of an answer: which request and which answer of it, the reply, the piece, what it holds.
Take = Callable[[int, int, answers.AsyncReply, results.Chunk, list[answers.Event]], Awaitable[None]]


async def pieces(asked: Sequence[Asked], take: Take) -> list[list[answers.AsyncReply]]:
    """Gives every piece of every answer to ``take`` as it comes. The replies then know how they ended."""
    running: list[list[answers.AsyncReply]] = []

    async def read(at: int, index: int, reply: answers.AsyncReply) -> None:
        async for chunk, events in reply.pieces():
            await take(at, index, reply, chunk, events)

    try:
        for one in asked:
            running.append([one.asked.astream(index) for index in range(one.n)])
        work = [
            read(at, index, reply)
            for at, replies in enumerate(running)
            for index, reply in enumerate(replies)
        ]
        if len(work) == 1:
            await work[0]
        else:
            await _together(work)
    finally:
        for replies in running:
            for reply in replies:
                await reply.aclose()
    return running


async def _together(work: list[Coroutine[Any, Any, None]]) -> None:
    """All at once; the first error ends the others."""
    tasks = [asyncio.ensure_future(one) for one in work]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


# Telling


def usage(found: Sequence[Sequence[Answer | answers.AsyncReply]]) -> dict[str, Any]:
    """What some requests cost, each with its answers: a prompt counts once, whatever the number of answers to
    it."""
    costs = [[one.usage for one in replies if one.usage is not None] for replies in found]
    prompt = sum(replies[0].prompt_tokens for replies in costs if replies)
    cached = sum(replies[0].cached_tokens for replies in costs if replies)
    completion = sum(one.completion_tokens for replies in costs for one in replies)
    thoughts = sum(one.thought_tokens or 0 for replies in found for one in replies)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
        "completion_tokens_details": {"reasoning_tokens": thoughts},
    }


def finite(logprob: float) -> float:
    """JSON has no infinity; what cannot be is that unlikely."""
    return max(logprob, -9999.0)


def fingerprint(served: Served) -> str:
    return f"{served.fingerprint}-{_core.__version__}"
