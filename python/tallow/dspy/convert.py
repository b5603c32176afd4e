"""DSPy's requests to the arguments of a Model, and our errors to DSPy's.

A request that asks for something that is not done here is refused by the name of the field; a hint that means
nothing in one process (a service tier, a cache retention) is noted in the response's ``adaptations``. So
nothing is dropped in silence.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NoReturn

from dspy import lm15  # type: ignore[import-untyped]

from .. import _core, arguments, errors
from . import constraints

#: What DSPy has a field for in its Config.
_CONFIG_FIELDS = (
    *("max_tokens", "seed", "logprobs"),
    *("temperature", "top_p", "top_k", "frequency_penalty", "presence_penalty"),
)
#: The other numbers of a Sampler. They travel in ``metadata``, which is part of DSPy's cache key.
METADATA_FIELDS = tuple(
    name for name, kind in _core.SAMPLER_FIELDS if kind in ("number", "count") and name not in _CONFIG_FIELDS
)
METADATA_KEYS = (
    *(*METADATA_FIELDS, "template_arguments", "prediction"),
    *(*constraints.OWN, constraints.SWITCH),
)
#: Hints that need nothing done.
_HINTS = ("service_tier", "user_id", "store")


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
    # OpenAI's API has null beside calls alone; what a template needs instead, the native half finds out.
    turn = {"role": message.role, "content": _text(rest, where) if rest or not calls else None}
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
    """What a Config asks for, by our names: arguments of ``Model.generate``, and what ``constraints``
    reads."""
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
    if "prediction" in found:
        found["prediction"] = _prediction(found["prediction"])
    return found


def _prediction(given: object) -> Any:
    """OpenAI's shape, which DSPy's modules pass on, or the text itself."""
    if isinstance(given, Mapping) and given.get("type") == "content":
        content = given.get("content")
        if isinstance(content, (list, tuple)) and all(isinstance(part, Mapping) for part in content):
            return "".join(str(part.get("text", "")) for part in content)
        return content
    return given


def no(feature: str, why: str) -> NoReturn:
    raise lm15.UnsupportedFeatureError(f"{feature}: {why}", feature=feature)


def _logit_bias(given: object) -> dict[int, Any]:
    """JSON has only text for keys, so "42" is token 42."""
    if not isinstance(given, Mapping):
        arguments.wrong_type("logit_bias", given, "a dict of token id -> bias")
    return {
        int(key) if isinstance(key, str) and key.isdecimal() else key: bias for key, bias in given.items()
    }


def hints(config: lm15.Config) -> tuple[lm15.Adaptation, ...]:
    """What was asked for and means nothing here, or happens anyway."""
    found = [
        lm15.Adaptation(
            field=f"config.{name}",
            action="dropped",
            reason="the model runs in this process, where it has no meaning",
            asked=getattr(config, name),
        )
        for name in _HINTS
        if getattr(config, name) is not None
    ]
    if config.cache is not None:
        found.append(_prompt_cache(config.cache))
    return tuple(found)


def refuse(request: lm15.Request) -> None:
    """What no model can do here."""
    for tool in request.tools:
        if not isinstance(tool, lm15.FunctionTool):
            no("tools", f"{tool.name!r} is a tool of a provider; give functions of your own")


def _prompt_cache(cache: lm15.CacheConfig) -> lm15.Adaptation:
    """Whatever prompts have in common is computed once, marks or not; it is kept while there is room."""
    beyond = [name for name in ("retention", "key", "resource") if getattr(cache, name) is not None]
    if cache.mode == "off":
        beyond.append("mode")
    reason = "prompts that begin the same share what was computed, without being asked"
    return lm15.Adaptation(
        field="config.cache",
        action="dropped" if beyond else "satisfied",
        reason=f"{reason}; {', '.join(beyond)} has no meaning here" if beyond else reason,
        asked=", ".join(beyond) if beyond else cache.prefix or cache.mode,
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
