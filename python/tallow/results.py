"""What a model answers: plain, frozen values.

``Completion`` is a whole answer, ``Chunk`` a piece of a streamed one; both carry the same parts: text,
tokens, log probabilities, and (a chunk only at the end) why it ended and what it cost. The native half hands
over dicts and tuples; the functions at the bottom give them names. Nothing here knows how an answer is made.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

FinishReason = Literal["stop", "length"]


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one request."""

    #: Tokens of the prompt, those that the tokenizer and the chat template put in among them.
    prompt_tokens: int
    #: Tokens of the answer, also those that a constraint appended without sampling.
    completion_tokens: int
    #: Tokens of the prompt that were found in the cache and not computed again.
    cached_tokens: int = 0

    @property
    def total_tokens(self) -> int:
        """Prompt and answer together."""
        return self.prompt_tokens + self.completion_tokens


@dataclass(frozen=True, slots=True)
class Timings:
    """Where the time of one request went, in seconds."""

    #: From the call until the engine began.
    queue: float
    #: From there until the prompt was computed and the first token known.
    prefill: float
    #: From there to the end.
    decode: float
    #: From the call until the first token was there.
    first_token: float = 0.0

    @property
    def total(self) -> float:
        """From the call to the end of the answer."""
        return self.queue + self.prefill + self.decode


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """The log probability of one token, and of the likeliest alternatives at its place. They are the model's
    own: before temperature, penalties, cuts and constraints."""

    #: Of the token, in the vocabulary.
    id: int
    #: The token's own text; bytes that are no whole character show as U+FFFD.
    token: str
    #: Natural logarithm of its probability, at most 0.
    logprob: float
    #: The token's own bytes in UTF-8, of which a character may be a part.
    bytes: bytes
    #: As many alternatives as ``logprobs=`` asked for, the likeliest first.
    top: tuple[TokenLogprob, ...] = ()


@dataclass(frozen=True, slots=True)
class Completion:
    """A whole answer. ``str(completion)`` is its text."""

    #: The answer, without stop texts and control tokens.
    text: str
    #: The ids that were generated.
    tokens: tuple[int, ...]
    #: "stop": the model ended it, or a stop text did; "length": ``max_tokens`` or the context did.
    finish_reason: FinishReason
    #: What it cost in tokens.
    usage: Usage
    #: What it cost in seconds.
    timings: Timings
    #: An entry a token, if ``logprobs=`` asked for them.
    logprobs: tuple[TokenLogprob, ...] | None = None
    #: What the chat template could not take as it was given, and what was done instead: a sentence each.
    notes: tuple[str, ...] = ()

    @property
    def tokens_per_second(self) -> float:
        """Speed of decoding: the first token comes with the prompt, so the others count. 0 for a single
        one."""
        return speed(self.usage, self.timings)

    def __str__(self) -> str:
        return self.text

    def _repr_html_(self) -> str:
        """How a notebook shows it: with log probabilities, each token coloured by its own."""
        from . import html  # nothing that `import tallow` should wait for, here and below

        return html.completion(self)

    def _ipython_display_(self) -> None:
        from . import html

        if not html.is_on_screen(self):
            raise NotImplementedError  # IPython goes on to the other ways


@dataclass(frozen=True, slots=True)
class Chunk:
    """A piece of a streamed answer; the pieces' texts joined are the text of the whole."""

    #: Whole characters; empty where a token is a part of one, or could begin a stop text.
    text: str
    #: The ids that are new with this piece.
    tokens: tuple[int, ...]
    #: An entry a token, if ``logprobs=`` asked for them.
    logprobs: tuple[TokenLogprob, ...] | None = None
    #: This and the following are set on the last chunk only, and are those of a ``Completion``.
    finish_reason: FinishReason | None = None
    #: On the last chunk: the cost in tokens.
    usage: Usage | None = None
    #: On the last chunk: the cost in seconds.
    timings: Timings | None = None

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Score:
    """How likely a model finds one candidate text after a prompt."""

    #: The candidate.
    text: str
    #: The sum of ``token_logprobs``: the natural logarithm of the likelihood of this very text.
    logprob: float
    #: Relative to the other candidates of the call; together they make 1.
    probability: float
    #: The ids of the candidate after this prompt.
    tokens: tuple[int, ...]
    #: The natural logarithm of each token's probability, in the order of ``tokens``.
    token_logprobs: tuple[float, ...]


class Scores(list[Score]):
    """A list of scores that a notebook shows as bars; so are its slices."""

    def __getitem__(self, at: Any) -> Any:
        found = super().__getitem__(at)
        return Scores(found) if isinstance(at, slice) else found

    def _repr_html_(self) -> str:
        from . import html

        return html.scores(self)


def speed(usage: Usage, timings: Timings) -> float:
    """Tokens a second of decoding, the first token not counted."""
    return (
        (usage.completion_tokens - 1) / timings.decode
        if timings.decode > 0 and usage.completion_tokens > 1
        else 0.0
    )


TokenBytes = Callable[[int], bytes]


def completion(raw: dict[str, Any], token_bytes: TokenBytes, notes: tuple[str, ...] = ()) -> Completion:
    """From what the engine hands over at the end of a request."""
    return Completion(
        text=raw["text"],
        tokens=tuple(raw["tokens"]),
        finish_reason=raw["finish_reason"],
        usage=Usage(*raw["usage"]),
        timings=Timings(*raw["timings"]),
        logprobs=_logprobs(raw["logprobs"], token_bytes),
        notes=notes,
    )


def chunk(raw: dict[str, Any], token_bytes: TokenBytes) -> Chunk:
    """From what the engine hands over for one step; the last one has the ending, too."""
    last = raw.get("finish_reason") is not None
    return Chunk(
        text=raw["text"],
        tokens=tuple(raw["tokens"]),
        logprobs=_logprobs(raw["logprobs"], token_bytes),
        finish_reason=raw["finish_reason"] if last else None,
        usage=Usage(*raw["usage"]) if last else None,
        timings=Timings(*raw["timings"]) if last else None,
    )


def whole(done: Completion) -> Chunk:
    """A whole answer as a stream of one piece."""
    return Chunk(done.text, done.tokens, done.logprobs, done.finish_reason, done.usage, done.timings)


def of_chunks(chunks: Sequence[Chunk], notes: tuple[str, ...] = ()) -> Completion:
    """The whole answer of a stream that was read to its end."""
    last = chunks[-1]
    assert last.finish_reason is not None and last.usage is not None and last.timings is not None
    return Completion(
        text="".join(chunk.text for chunk in chunks),
        tokens=tuple(token for chunk in chunks for token in chunk.tokens),
        finish_reason=last.finish_reason,
        usage=last.usage,
        timings=last.timings,
        logprobs=tuple(entry for chunk in chunks for entry in chunk.logprobs or ()) or None,
        notes=notes,
    )


def joined(pieces: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The raw whole of raw pieces, the last of which carries the ending."""
    raw = dict(pieces[-1])
    raw["text"] = "".join(piece["text"] for piece in pieces)
    raw["tokens"] = [token for piece in pieces for token in piece["tokens"]]
    raw["logprobs"] = [entry for piece in pieces for entry in piece["logprobs"] or ()]
    return raw


def scores(candidates: Sequence[str], raw: Sequence[tuple[Sequence[int], Sequence[float]]]) -> Scores:
    """Sums, and probabilities relative to each other."""
    sums = [math.fsum(logprobs) for _, logprobs in raw]
    return Scores(
        Score(text, value, probability, tuple(ids), tuple(logprobs))
        for text, value, probability, (ids, logprobs) in zip(
            candidates, sums, relative(sums), raw, strict=True
        )
    )


def relative(logprobs: Sequence[float]) -> list[float]:
    """Probabilities that make 1 together (shifted by the largest, so that none underflows to 0/0)."""
    largest = max(logprobs)
    weights = [math.exp(value - largest) if largest > -math.inf else 1.0 for value in logprobs]
    total = math.fsum(weights)
    return [weight / total for weight in weights]


def _logprobs(entries: Any, token_bytes: TokenBytes) -> tuple[TokenLogprob, ...] | None:
    if not entries:  # not asked for
        return None

    def named(id: int, logprob: float, top: Any = ()) -> TokenLogprob:
        data = token_bytes(id)
        return TokenLogprob(
            id, data.decode("utf-8", "replace"), logprob, data, tuple(named(*other) for other in top)
        )

    return tuple(named(*entry) for entry in entries)
