"""DSPy's requests to the arguments of a Model, a Model's answers to DSPy's responses, and errors to errors.

A request that asks for something that is not done here is refused by the name of the field; a hint that means
nothing in one process (a service tier, a cache retention) is noted in the response's ``adaptations``. So
nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from dspy import lm15  # type: ignore[import-untyped]

from .. import arguments, errors, results

#: Sampler fields that DSPy has no name for. They travel in ``metadata``, which is part of its cache key.
METADATA_FIELDS = ("min_p", "typical_p", "repetition_penalty")
METADATA_KEYS = (*METADATA_FIELDS, "template_arguments", "prediction")

_CONFIG_FIELDS = (
    "max_tokens",
    "seed",
    "logprobs",
    "temperature",
    "top_p",
    "top_k",
    "frequency_penalty",
    "presence_penalty",
)
#: Hints that need nothing done.
_HINTS = ("cache", "service_tier", "user_id", "store")


# Requests


def messages(request: lm15.Request) -> list[dict[str, Any]]:
    """System, developer, user, assistant and tool turns as a chat template reads them."""
    turns: list[dict[str, Any]] = []
    if request.system:
        system = request.system if isinstance(request.system, str) else _text(request.system, "system")
        turns.append({"role": "system", "content": system})
    for at, message in enumerate(request.messages):
        turns.extend(_turns(message, f"messages[{at}]"))
    return turns


def _turns(message: lm15.Message, where: str) -> Iterator[dict[str, Any]]:
    if message.role == "tool":
        for at, part in enumerate(message.parts):
            here = f"{where}.parts[{at}]"
            if not isinstance(part, lm15.ToolResultPart):
                _unsupported(here, part)
            turn = {
                "role": "tool",
                "tool_call_id": part.id,
                "content": _text(part.content, f"{here}.content"),
            }
            yield turn if part.name is None else {**turn, "name": part.name}
        return
    calls = [part for part in message.parts if isinstance(part, lm15.ToolCallPart)]
    thoughts = [part.text for part in message.parts if isinstance(part, lm15.ThinkingPart)]
    rest = [part for part in message.parts if not isinstance(part, (lm15.ToolCallPart, lm15.ThinkingPart))]
    turn = {"role": message.role, "content": _text(rest, where)}
    if thoughts:
        turn["reasoning_content"] = "\n".join(thoughts)
    if calls:
        turn["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": dict(call.input)},
            }
            for call in calls
        ]
    yield turn


def _text(parts: Any, where: str) -> str:
    for at, part in enumerate(parts):
        if not isinstance(part, (lm15.TextPart, lm15.RefusalPart)):
            _unsupported(f"{where}.parts[{at}]", part)
    return "\n".join(part.text for part in parts)


def _unsupported(where: str, part: Any) -> NoReturn:
    kind = getattr(part, "type", type(part).__name__)
    raise lm15.UnsupportedFeatureError(f"{where} is of type {kind!r}; tallow reads text only", feature=where)


def options(config: lm15.Config) -> dict[str, Any]:
    """The arguments for ``Model.generate`` that a Config means."""
    _refuse(config)
    found = {name: getattr(config, name) for name in _CONFIG_FIELDS if getattr(config, name) is not None}
    if config.stop:
        found["stop"] = list(config.stop)
    extensions = dict(config.extensions or {})
    bias = extensions.pop("logit_bias", None)
    if bias is not None:
        found["logit_bias"] = _logit_bias(bias)
    extra = dict(extensions.pop("metadata", None) or {})
    for name, value in [*extensions.items(), *extra.items()]:
        if name not in METADATA_KEYS:
            arguments.unknown("metadata", name, METADATA_KEYS)
        found[name] = value
    if config.reasoning is not None:  # "off" was the only one let through
        found["template_arguments"] = {"enable_thinking": False, **found.get("template_arguments", {})}
    return found


def _refuse(config: lm15.Config) -> None:
    if config.response_format is not None:
        _no(
            "config.response_format", "answers are not constrained to a format yet; leave response_format out"
        )
    if config.tool_choice is not None:
        _no("config.tool_choice", "native tool calls are not supported yet; DSPy's adapters do without")
    if config.probabilities == "required":
        _no("config.probabilities", "not measured yet; use Model.score for the likelihood of given answers")
    if config.reasoning is not None and config.reasoning.effort != "off":
        _no("config.reasoning", 'thinking can only be switched off yet (reasoning_effort="none")')


def _no(feature: str, why: str) -> NoReturn:
    raise lm15.UnsupportedFeatureError(f"{feature}: {why}", feature=feature)


def refuse_tools(request: lm15.Request) -> None:
    if request.tools:
        _no("tools", "native tool calls are not supported yet; DSPy's adapters do without")


def _logit_bias(given: object) -> dict[int, Any]:
    """JSON has only text for keys, so "42" is token 42."""
    if not isinstance(given, Mapping):
        arguments.wrong_type("logit_bias", given, "a dict of token id -> bias")
    return {
        int(key) if isinstance(key, str) and key.isdecimal() else key: bias for key, bias in given.items()
    }


def adaptations(config: lm15.Config) -> tuple[lm15.Adaptation, ...]:
    """Hints that were asked for and mean nothing here."""
    asked = [(name, getattr(config, name)) for name in _HINTS]
    if config.probabilities is not None:
        asked.append(("probabilities", config.probabilities))
    return tuple(
        lm15.Adaptation(
            field=f"config.{name}",
            action="dropped",
            reason="the model runs in this process, where it has no meaning yet",
            asked=value if isinstance(value, (str, bool)) else str(value),
        )
        for name, value in asked
        if value is not None
    )


# Responses


def response(request: lm15.Request, completion: results.Completion) -> lm15.Response:
    return lm15.Response(
        id=None,
        model=request.model,
        message=lm15.Message.assistant((lm15.TextPart(completion.text),)),
        finish_reason=completion.finish_reason,
        usage=usage(completion.usage),
        logprobs=None if completion.logprobs is None else logprobs(completion.logprobs),
        provider_data=provider_data(completion.usage, completion.timings),
        adaptations=adaptations(request.config),
    )


def usage(found: results.Usage) -> lm15.Usage:
    return lm15.Usage(
        input_tokens=found.prompt_tokens,
        output_tokens=found.completion_tokens,
        cache_read_tokens=found.cached_tokens,
    )


def provider_data(found: results.Usage, timings: results.Timings) -> dict[str, Any]:
    """What DSPy keeps with the history: where the time went."""
    return {
        "timings": {"queue_s": timings.queue, "prefill_s": timings.prefill, "decode_s": timings.decode},
        "tokens_per_second": results.speed(found, timings),
    }


def logprobs(found: tuple[results.TokenLogprob, ...]) -> tuple[lm15.TokenLogprob, ...]:
    return tuple(
        lm15.TokenLogprob(**_named(entry), top=tuple(lm15.TopLogprob(**_named(other)) for other in entry.top))
        for entry in found
    )


def _named(entry: results.TokenLogprob) -> dict[str, Any]:
    return {"token": entry.token, "logprob": entry.logprob, "bytes": tuple(entry.bytes), "token_id": entry.id}


def delta(chunk: results.Chunk) -> lm15.StreamDeltaEvent:
    return lm15.StreamDeltaEvent(lm15.TextDelta(chunk.text, logprobs=logprobs(chunk.logprobs or ())))


def end(chunk: results.Chunk) -> lm15.StreamEndEvent:
    assert chunk.usage is not None and chunk.timings is not None, "the last chunk says what the answer cost"
    return lm15.StreamEndEvent(
        finish_reason=chunk.finish_reason,
        usage=usage(chunk.usage),
        provider_data=provider_data(chunk.usage, chunk.timings),
    )


# Errors


#: Ours to DSPy's, the specific before the general. DSPy repeats only a call that timed out (and only if
#: the LM
#: has num_retries), for nothing else gets better by itself in one process.
ERRORS: tuple[tuple[type[errors.Error], type[lm15.LM15Error]], ...] = (
    (errors.ContextLengthError, lm15.ContextLengthError),
    (errors.TemplateError, lm15.ConfigurationError),
    (errors.ModelFileError, lm15.ConfigurationError),
    (errors.HubError, lm15.ConfigurationError),
    (errors.UnsupportedModelError, lm15.UnsupportedModelError),
    (errors.ConstraintError, lm15.InvalidRequestError),
    (errors.InvalidRequestError, lm15.InvalidRequestError),
    (errors.Timeout, lm15.TimeoutError),
    (errors.Error, lm15.ProviderError),
)


@contextmanager
def as_lm15() -> Iterator[None]:
    """Our errors leave as DSPy's. Others, like that of a filter written in Python, leave as they are."""
    try:
        yield
    except errors.Error as error:
        target = next(theirs for ours, theirs in ERRORS if isinstance(error, ours))
        raise target(str(error)) from error
