"""A Model's answers as DSPy's responses and stream events.

A ``Reader`` takes the text of one answer apart as it comes: thoughts, text, tool calls. A whole response is
what a reader made of one piece, so that ``complete`` and ``stream`` cannot differ. The parts have fixed
places (thoughts 0, text 1, tool calls from 2 on); DSPy puts them together in that order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from dspy import lm15  # type: ignore[import-untyped]

from .. import answers, results
from .pieces import Pieces

_THOUGHTS, _TEXT, _CALLS = 0, 1, 2


@dataclass
class Reader(answers.Reader):
    """One answer, as it comes."""

    #: Cuts a stream's text; None until there is one.
    pieces: Pieces | None = None
    _has_text: bool = False

    def read(self, chunk: results.Chunk) -> list[lm15.Delta]:
        """What a piece of the answer holds; with the last one, what was held back."""
        events = list(self.events(chunk))
        deltas = [_delta(event) for event in events]
        self._has_text |= any(isinstance(event, str) for event in events)
        last = chunk.finish_reason is not None
        if last and not self.calls and not self._has_text:
            deltas.append(lm15.TextDelta("", _TEXT))  # a message has a part
        return _with_logprobs(deltas, logprobs(chunk.logprobs or ()))


def _delta(event: answers.Event) -> lm15.Delta:
    if isinstance(event, str):
        return lm15.TextDelta(event, _TEXT)
    if isinstance(event, answers.Thought):
        return lm15.ThinkingDelta(event.text, _THOUGHTS)
    return lm15.ToolCallDelta(event.arguments_json, _CALLS + event.index, id=event.id, name=event.name)


def _with_logprobs(deltas: list[lm15.Delta], found: tuple[lm15.TokenLogprob, ...]) -> list[lm15.Delta]:
    """Only text carries log probabilities in a stream; those of thoughts and calls travel on an empty one, so
    that none is lost."""
    if not found:
        return deltas
    for at, delta in enumerate(deltas):
        if isinstance(delta, lm15.TextDelta):
            deltas[at] = lm15.TextDelta(delta.text, _TEXT, logprobs=found)
            return deltas
    return [*deltas, lm15.TextDelta("", _TEXT, logprobs=found)]


@dataclass(frozen=True)
class Facts:
    """What is known of a request before it runs, and told with its answer."""

    model: str
    format: dict[str, Any]
    adaptations: tuple[lm15.Adaptation, ...] = ()
    #: What the chat template could not take as it was, and what was done instead.
    prompt_notes: tuple[str, ...] = ()

    def with_notes(self, more: tuple[lm15.Adaptation, ...]) -> Facts:
        return replace(self, adaptations=(*self.adaptations, *more)) if more else self

    def start(self) -> lm15.StreamStartEvent:
        return lm15.StreamStartEvent(model=self.model, adaptations=self.adaptations)

    def provider_data(self, found: results.Usage, timings: results.Timings) -> dict[str, Any]:
        """What DSPy keeps with the history: where the time went, what bound the answer, and what was done to
        the messages for the sake of the chat template, if anything."""
        return {
            **({"notes": list(self.prompt_notes)} if self.prompt_notes else {}),
            "timings": {"queue_s": timings.queue, "prefill_s": timings.prefill, "decode_s": timings.decode},
            "tokens_per_second": results.speed(found, timings),
            "format": self.format,
        }


def response(
    facts: Facts, reader: Reader, completion: results.Completion, token_bytes: results.TokenBytes
) -> lm15.Response:
    deltas = reader.read(results.whole(completion))
    return lm15.Response(
        id=None,
        model=facts.model,
        message=lm15.Message.assistant(_parts(deltas)),
        finish_reason=reader.finish_reason(completion.finish_reason),
        usage=usage(completion.usage, reader.thought_tokens(token_bytes)),
        logprobs=None if completion.logprobs is None else logprobs(completion.logprobs),
        provider_data=facts.provider_data(completion.usage, completion.timings),
        adaptations=facts.adaptations,
    )


def _parts(deltas: list[lm15.Delta]) -> tuple[lm15.Part, ...]:
    thoughts = "".join(delta.text for delta in deltas if isinstance(delta, lm15.ThinkingDelta))
    texts = [delta.text for delta in deltas if isinstance(delta, lm15.TextDelta)]
    calls = [delta for delta in deltas if isinstance(delta, lm15.ToolCallDelta)]
    parts: list[lm15.Part] = [lm15.ThinkingPart(thoughts)] if thoughts else []
    if texts:
        parts.append(lm15.TextPart("".join(texts)))
    parts.extend(
        lm15.ToolCallPart(id=call.id, name=call.name, input=json.loads(call.input)) for call in calls
    )
    return tuple(parts)


def events(
    facts: Facts, reader: Reader, chunk: results.Chunk, token_bytes: results.TokenBytes
) -> Iterator[lm15.StreamEvent]:
    """The events of one chunk; the last one brings the end."""
    if reader.pieces is None:
        reader.pieces = Pieces(facts.format["name"])
    for delta in _cut(reader.read(chunk), reader.pieces, last=chunk.finish_reason is not None):
        yield lm15.StreamDeltaEvent(delta)
    if chunk.finish_reason is not None:
        assert chunk.usage is not None and chunk.timings is not None, (
            "the last chunk says what the answer cost"
        )
        yield lm15.StreamEndEvent(
            finish_reason=reader.finish_reason(chunk.finish_reason),
            usage=usage(chunk.usage, reader.thought_tokens(token_bytes)),
            provider_data=facts.provider_data(chunk.usage, chunk.timings),
        )


def _cut(deltas: list[lm15.Delta], pieces: Pieces, *, last: bool) -> Iterator[lm15.Delta]:
    """The same, each text as its pieces. A text that is held back leaves its log probabilities behind."""
    texts = [at for at, delta in enumerate(deltas) if isinstance(delta, lm15.TextDelta)]
    for at, delta in enumerate(deltas):
        if not isinstance(delta, lm15.TextDelta):
            yield delta
            continue
        found = list(pieces.push(delta.text, last=last and at == texts[-1]))
        first, *rest = found or [""]
        if first or delta.logprobs or not delta.text:
            yield replace(delta, text=first)
        yield from (lm15.TextDelta(piece, _TEXT) for piece in rest)
    if last and not texts:
        yield from (lm15.TextDelta(piece, _TEXT) for piece in pieces.push("", last=True))


def usage(found: results.Usage, thought_tokens: int | None = None) -> lm15.Usage:
    return lm15.Usage(
        input_tokens=found.prompt_tokens,
        output_tokens=found.completion_tokens,
        cache_read_tokens=found.cached_tokens,
        reasoning_tokens=thought_tokens,
    )


def logprobs(found: tuple[results.TokenLogprob, ...]) -> tuple[lm15.TokenLogprob, ...]:
    return tuple(
        lm15.TokenLogprob(**_named(entry), top=tuple(lm15.TopLogprob(**_named(other)) for other in entry.top))
        for entry in found
    )


def _named(entry: results.TokenLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": entry.logprob, "bytes": tuple(entry.bytes), "token_id": entry.id}
