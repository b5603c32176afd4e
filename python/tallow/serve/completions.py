"""``/completions``: texts or token ids are continued as they are.

``logprob_token_ids`` measures: what is told of these ids is the model's own log probability at each place of
the answer, before any sampler, whether they are likely or not. DSPy's judgments ask for it.
"""

from __future__ import annotations

import time
import uuid
from collections.abc import Iterable, Sequence
from typing import Any

from starlette.responses import Response

from .. import answers, arguments, results
from . import generation
from .call import Call
from .errors import invalid
from .generation import Answer, Asked
from .server import Served
from .sse import EventStream, Writer
from .wire import Generating

#: Prompts of one request.
MAX_PROMPTS = 1024


class CompletionRequest(Generating, kw_only=True):
    """The body of ``/completions``."""

    #: A text, token ids, or a list of either.
    prompt: Any = None
    echo: bool | None = None
    logprobs: int | None = None
    #: Tokens whose log probabilities are told, whatever is generated.
    logprob_token_ids: list[int] | None = None
    #: Whether tokens are shown as "token_id:5" instead of their text.
    return_tokens_as_token_ids: bool | None = None


async def completions(call: Call) -> Response:
    """Continues texts or token ids."""
    given = await call.read(CompletionRequest)
    served = await call.served(given.model)
    n = generation.count(given, call.server.settings.max_n)
    prompts = _prompts(given.prompt)
    _check(given, n)
    asked, measured = [], []
    for prompt in prompts:
        measure = _Measure(given.logprob_token_ids, served)
        measured.append(measure)
        options = {**_options(given, call.server.settings.timeout), **measure.options()}
        asked.append(await generation.prepared(call, served, n, prompt, len(prompt), options))
    shape = _Shape(given, served, prompts, measured)
    if given.stream:
        call.outcome.stream = True
        return EventStream(call, lambda out: _stream(shape, asked, given, out))
    return call.json(shape.whole(await generation.complete(asked)))


# Reading


def _prompts(given: Any) -> list[str | list[int]]:
    if given is None:
        raise invalid("prompt is missing; give a text, token ids, or a list of either", "prompt", "missing")
    if isinstance(given, str) or (
        isinstance(given, list) and given and not isinstance(given[0], (str, list))
    ):
        given = [given]
    if not isinstance(given, list) or not given:
        raise invalid("prompt must be a text, token ids, or a list of either", "prompt")
    if len(given) > MAX_PROMPTS:
        raise invalid(f"prompt has {len(given)} prompts; at most {MAX_PROMPTS} are allowed", "prompt")
    for one in given:
        if not isinstance(one, (str, list)) or (isinstance(one, list) and not _are_ids(one)):
            raise invalid("prompt must be a text, token ids, or a list of either", "prompt")
    return given


def _are_ids(given: list[Any]) -> bool:
    return all(type(one) is int for one in given)


def _check(given: CompletionRequest, n: int) -> None:
    if given.echo and given.logprobs is not None:
        raise invalid(
            "echo with logprobs is not supported: log probabilities are told of answers alone",
            "echo",
        )
    if given.logprob_token_ids is None:
        return
    if not given.logprob_token_ids:
        raise invalid("logprob_token_ids is empty; give at least one token id", "logprob_token_ids")
    if n > 1 or given.stream:
        raise invalid("logprob_token_ids is for one answer a prompt, not streamed", "logprob_token_ids")
    changes = ("logit_bias", "repetition_penalty", "frequency_penalty", "presence_penalty")
    for name in changes:
        if getattr(given, name):
            raise invalid(f"logprob_token_ids measures the model alone; leave {name} out", name)
    if generation.constraint(given):
        raise invalid("logprob_token_ids measures the model alone; leave the form out", "logprob_token_ids")


def _options(given: CompletionRequest, timeout: float) -> dict[str, Any]:
    # OpenAI's API ends an answer after 16 tokens where nobody says; ours goes on to its end, as in chat.
    return {**generation.options(given, timeout), "logprobs": given.logprobs}


class _Measure:
    """Looks at the logits of each place of one answer for the ids that are asked about."""

    def __init__(self, ids: Sequence[int] | None, served: Served) -> None:
        self._ids = None if ids is None else arguments.token_ids("logprob_token_ids", ids)
        for id in self._ids or ():
            if id >= served.model.vocab_size:
                raise invalid(f"logprob_token_ids has {id}, which is no token", "logprob_token_ids")
        #: A place -> the log probability of each id.
        self.found: list[dict[int, float]] = []

    def options(self) -> dict[str, Any]:
        if self._ids is None:
            return {}
        # A filter sees what penalties have left, and makers may advise one.
        return {"filters": [self._look], "repetition_penalty": 1.0}

    def _look(self, logits: Any, tokens: Any) -> None:
        import numpy as np

        row = logits.astype(np.float64)
        top = row.max()
        total = top + np.log(np.exp(row - top).sum())
        self.found.append({id: min(generation.finite(float(row[id] - total)), 0.0) for id in self._ids or ()})


# Answering


class _Shape:
    """The objects of one response."""

    def __init__(
        self,
        given: CompletionRequest,
        served: Served,
        prompts: Sequence[str | list[int]],
        measured: Sequence[_Measure],
    ) -> None:
        self._head = {
            "id": f"cmpl-{uuid.uuid4().hex}",
            "object": "text_completion",
            "created": int(time.time()),
            "model": given.model or served.name,
            "system_fingerprint": generation.fingerprint(served),
        }
        self._given, self._served = given, served
        self._measured = measured
        self._echoed = [_text(prompt, served) if given.echo else "" for prompt in prompts]
        self._with_usage = bool(given.stream_options and given.stream_options.include_usage)

    def whole(self, found: Sequence[Sequence[Answer]]) -> dict[str, Any]:
        choices = [
            self._choice(at, index, answer)
            for at, replies in enumerate(found)
            for index, answer in enumerate(replies)
        ]
        return {
            **self._head,
            "choices": [{**one, "index": number} for number, one in enumerate(choices)],
            "usage": generation.usage(found),
        }

    def _choice(self, at: int, index: int, answer: Answer) -> dict[str, Any]:
        return {
            "index": index,
            "text": self._echoed[at] + answer.text,
            "logprobs": self._logprobs(answer.logprobs, answer.tokens, 0, self._measured[at].found),
            "finish_reason": answer.finish_reason,
        }

    def begin(self, at: int) -> str:
        """What a stream begins with."""
        return self._echoed[at]

    def chunk(
        self, number: int, text: str, chunk: results.Chunk, offset: int, reason: str | None
    ) -> dict[str, Any]:
        choice = {
            "index": number,
            "text": text,
            "logprobs": self._logprobs(chunk.logprobs or (), chunk.tokens, offset, ())
            if chunk.tokens
            else None,
            "finish_reason": reason,
        }
        event = {**self._head, "choices": [choice]}
        if self._with_usage:
            event["usage"] = None
        return event

    def usage(self, found: Sequence[Sequence[answers.AsyncReply]]) -> dict[str, Any]:
        return {**self._head, "choices": [], "usage": generation.usage(found)}

    def _logprobs(
        self,
        found: Sequence[results.TokenLogprob],
        tokens: Sequence[int],
        offset: int,
        measured: Sequence[dict[int, float]],
    ) -> dict[str, Any] | None:
        if self._given.logprobs is None and self._given.logprob_token_ids is None:
            return None
        offsets = []
        for entry in found:
            offsets.append(offset)
            offset += self._length(entry)
        tops = [self._top(entry) for entry in found] or [{} for _ in measured]
        for top, more in zip(
            tops, measured, strict=False
        ):  # what ends an answer is measured, and is no token
            top.update({f"token_id:{id}": logprob for id, logprob in more.items()})
        return {
            "tokens": [self._shown(entry) for entry in found] or [f"token_id:{id}" for id in tokens],
            "token_logprobs": [generation.finite(entry.logprob) for entry in found],
            "top_logprobs": tops,
            "text_offset": offsets,
        }

    def _length(self, entry: results.TokenLogprob) -> int:
        """Characters of the text that begin with this token: none where it is a control token, which is not
        shown, and one for the first token of those that make one."""
        if entry.bytes.isascii() and not self._served.model.detokenize([entry.id]):
            return 0
        return sum(byte & 0xC0 != 0x80 for byte in entry.bytes)

    def _top(self, entry: results.TokenLogprob) -> dict[str, float]:
        """The likeliest at a place, and the one that was taken."""
        every: Iterable[results.TokenLogprob] = (*entry.top, entry)
        return {self._shown(one): generation.finite(one.logprob) for one in every}

    def _shown(self, entry: results.TokenLogprob) -> str:
        return f"token_id:{entry.id}" if self._given.return_tokens_as_token_ids else entry.token


def _text(prompt: str | list[int], served: Served) -> str:
    return prompt if isinstance(prompt, str) else served.model.detokenize(prompt, special=True)


async def _stream(shape: _Shape, asked: Sequence[Asked], given: CompletionRequest, out: Writer) -> None:
    offsets: dict[int, int] = {}

    async def take(
        at: int, index: int, reply: answers.AsyncReply, chunk: results.Chunk, events: list[answers.Event]
    ) -> None:
        number = at * asked[at].n + index
        text = "".join(event for event in events if isinstance(event, str))
        begin = shape.begin(at) if number not in offsets else ""
        offset = offsets.get(number, len(begin))
        offsets[number] = offset + len(text)
        last = chunk.finish_reason is not None
        if begin or text or chunk.logprobs or last:
            reason = asked[at].ended(reply) if last else None
            out.put(shape.chunk(number, begin + text, chunk, offset, reason))
        await out.flush()

    replies = await generation.pieces(asked, take)
    if given.stream_options and given.stream_options.include_usage:
        out.put(shape.usage(replies))
    out.put_done()
