"""Checks of what callers hand over: a wrong argument is named, and the message says what would be right.

One small function a kind of value, each ``check(name, value) -> clean value``; ``generation`` puts together
what all ways to generate have in common. Values that only a model can judge (an id beyond the vocabulary, a
template's own arguments) are judged by the native half, before any work is done.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import numbers
import operator
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, NoReturn

from . import _core
from .errors import ArgumentTypeError, InvalidRequestError

Prompt = str | list[dict[str, Any]] | list[int]

MAX_CANDIDATES = 128
MAX_COUNT = 2**31 - 1
MAX_SEED = 2**64 - 1

_ROLES = ("system", "developer", "user", "assistant", "tool")
#: What a turn may hold instead of a ``content``.
_INSTEAD = ("tool_calls", "function_call", "refusal", "reasoning_content", "reasoning", "thinking")
#: Objects in objects; the native half refuses what is deeper.
_MAX_DEPTH = 64


def wrong_type(name: str, value: object, wanted: str) -> NoReturn:
    raise ArgumentTypeError(f"{name} is {shown(value)} of type {type(value).__name__}; it must be {wanted}")


def wrong_value(name: str, value: object, wanted: str) -> NoReturn:
    raise InvalidRequestError(f"{name} is {shown(value)}; it must be {wanted}")


def shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def unknown(function: str, name: str, known: Iterable[str], also: Iterable[str] = ()) -> NoReturn:
    """There is no such argument: says which there are, and which one was probably meant, which may be one of
    ``also``."""
    known = list(known)
    close = difflib.get_close_matches(name, [*known, *also], n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ArgumentTypeError(f"{function} has no argument {name!r}{hint} It takes {', '.join(known)}")


def integer(name: str, value: object, low: int, high: int, more: str = "") -> int:
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        wrong_type(name, value, f"an integer from {low} to {high}{more}")
    number = operator.index(value)
    if not low <= number <= high:
        wrong_value(name, number, f"from {low} to {high}{more}")
    return number


def number(name: str, value: object) -> float:
    """A finite number; its range is the sampler's business."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        wrong_type(name, value, "a number")
    try:
        result = float(value)
    except OverflowError:
        result = math.inf
    if not math.isfinite(result):
        wrong_value(name, value, "a finite number")
    return result


def seconds(name: str, value: object) -> float:
    result = number(name, value)
    if result <= 0:
        wrong_value(name, value, "more than 0 seconds")
    return result


def boolean(name: str, value: object) -> bool:
    if not isinstance(value, bool):
        wrong_type(name, value, "True or False")
    return value


_BYTES = {
    "B": 1,
    **{f"{letter}B": 1000**power for power, letter in enumerate("KMGT", 1)},
    **{f"{letter}IB": 1024**power for power, letter in enumerate("KMGT", 1)},
}
_MAX_BYTES = 2**63 - 1


def memory(name: str, value: object) -> int:
    """Bytes, or a text with a unit: "512MiB" is 512 * 2**20, "2GB" is 2 * 10**9. A number without a unit in a
    text, or "2G", could mean either, so it is refused."""
    wanted = 'a number of bytes, or a text like "512MiB" or "2GB"'
    if isinstance(value, str):
        read = re.fullmatch(r"([0-9]{1,18}(?:\.[0-9]{1,9})?) ?([A-Za-z]+)", value.strip())
        unit = _BYTES.get(read[2].upper()) if read else None
        if value.strip().isdigit():
            wrong_value(name, value, f'a number with a unit in a text, such as "{value.strip()}MiB"')
        if read is None or unit is None:
            wrong_value(name, value, f"{wanted} (units: B, KB, MB, GB, TB, KiB, MiB, GiB, TiB)")
        import fractions  # with decimal, a tenth of the time that `import tallow` takes

        value = int(fractions.Fraction(read[1]) * unit)
    elif isinstance(value, bool) or not hasattr(value, "__index__"):
        wrong_type(name, value, wanted)
    count = operator.index(value)
    if not 1 <= count <= _MAX_BYTES:
        wrong_value(name, count, f"at least 1 byte and at most {_MAX_BYTES}")
    return count


def text(name: str, value: object) -> str:
    if not isinstance(value, str):
        wrong_type(name, value, "a str")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{name} holds a lone surrogate at index {error.start}, which no tokenizer can read; "
            "repair it with text.encode('utf-8', 'replace').decode()"
        ) from None
    return value


def texts(name: str, value: object, what: str = "texts") -> list[str]:
    """A non-empty list of str. A single str is refused: its characters are rarely what was meant."""
    if isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
        wrong_type(name, value, f"a list of {what}")
    result = [text(f"{name}[{i}]", item) for i, item in enumerate(value)]
    if not result:
        raise InvalidRequestError(f"{name} is empty; give at least one of the {what}")
    return result


def path_text(name: str, value: object) -> str:
    """A name or a path. Bytes of a path that are no UTF-8 are lone surrogates in a str (PEP 383)."""
    if not isinstance(value, (str, os.PathLike)):
        wrong_type(name, value, "a name or a path")
    result = os.fsdecode(value)
    if not result.strip():
        raise InvalidRequestError(
            f'{name} is empty; give a name like "smollm2", a hub id "org/name", or a path'
        )
    try:
        os.fsencode(result)
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{name} holds a lone surrogate at index {error.start}, which no name of a file can hold"
        ) from None
    return result


def choice(name: str, value: object, allowed: Sequence[str]) -> str:
    if not isinstance(value, str):
        wrong_type(name, value, f"one of {', '.join(map(repr, allowed))}")
    if value not in allowed:
        close = difflib.get_close_matches(value, allowed, n=1)
        wrong_value(
            name, value, f"one of {', '.join(map(repr, allowed))}" + (f" ({close[0]!r}?)" if close else "")
        )
    return value


def token_ids(name: str, value: object) -> list[int]:
    """Lists, tuples, numpy arrays: whatever holds integers."""
    if hasattr(value, "tolist") and not isinstance(value, (list, tuple)):
        value = value.tolist()
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        wrong_type(name, value, "a list of token ids")
    for at, item in enumerate(value):
        if isinstance(item, bool) or not hasattr(item, "__index__"):
            wrong_type(f"{name}[{at}]", item, "a token id (an integer)")
    ids = [operator.index(item) for item in value]
    for at, item in enumerate(ids):
        if not 0 <= item < 2**32:
            wrong_value(f"{name}[{at}]", item, "a token id, 0 or more")
    return ids


def plain(value: Any, depth: int = _MAX_DEPTH) -> Any:
    """Objects of OpenAI's client, other pydantic models and dataclasses as the dicts that they stand for."""
    if depth == 0:
        return value
    if callable(getattr(value, "model_dump", None)) and not isinstance(value, type):
        value = value.model_dump()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        value = {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: plain(item, depth - 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item, depth - 1) for item in value]
    return value


def _is_message(value: object) -> bool:
    return isinstance(value, Mapping) or hasattr(value, "role")


def messages(name: str, value: Sequence[object], roles: str | None = None) -> list[dict[str, Any]]:
    """Turns of a conversation, as plain dicts. ``roles``: a chat template, whose own roles are allowed."""
    if not value:
        raise InvalidRequestError(f"{name} is empty; give at least one message")
    return [_message(f"{name}[{at}]", item, roles or "") for at, item in enumerate(value)]


def _message(name: str, value: object, roles: str) -> dict[str, Any]:
    if not _is_message(value):
        wrong_type(name, value, 'a dict like {"role": "user", "content": "Hello"}')
    result = {text(f"a key of {name}", key): item for key, item in plain(value).items()}
    role = result.get("role")
    if role is None:
        raise InvalidRequestError(f'{name} has no "role"; it must be one of {", ".join(_ROLES)}')
    # Granite has a role "documents", Llama "ipython"; "function" is OpenAI's old name of "tool".
    if role != "function" and not (isinstance(role, str) and (f"'{role}'" in roles or f'"{role}"' in roles)):
        choice(f'{name}["role"]', role, _ROLES)
    content = result.get("content")
    if isinstance(content, str):
        text(f'{name}["content"]', content)
    elif content is None and not any(result.get(field) for field in _INSTEAD):
        raise InvalidRequestError(f'{name} has no "content"; give its text')
    elif content is not None and not isinstance(content, list):
        wrong_type(f'{name}["content"]', content, "a str or a list of parts")
    return result


def prompt(value: object, name: str = "prompt", roles: str | None = None) -> Prompt:
    """Plain text (str), a conversation (dicts, or objects with a role), or token ids (integers)."""
    if isinstance(value, str):
        if not value:
            raise InvalidRequestError(f"{name} is empty; give at least one character")
        return text(name, value)
    if isinstance(value, (list, tuple)) and value and _is_message(value[0]):
        return messages(name, value, roles)
    if isinstance(value, Mapping):
        wrong_type(name, value, "a list of messages: put the dict into a list")
    if isinstance(value, (list, tuple)) and value and isinstance(value[0], str):
        wrong_type(name, value, "a str, a list of messages, or token ids: one prompt a call")
    is_bytes = isinstance(value, (bytes, bytearray, memoryview))  # would be read as ids, and text was meant
    if is_bytes or (not isinstance(value, Sequence) and not hasattr(value, "tolist")):
        wrong_type(name, value, "a str, a list of messages, or token ids")
    ids = token_ids(name, value)
    if not ids:
        raise InvalidRequestError(f"{name} is empty; give at least one token or message")
    return ids


def stops(name: str, value: object) -> list[str]:
    if isinstance(value, str):
        value = [value]
    if isinstance(value, (list, tuple)) and not value:
        return []
    result = texts(name, value, "stop texts")
    if len(result) > _core.MAX_STOPS:
        raise InvalidRequestError(f"{name} has {len(result)} texts; at most {_core.MAX_STOPS} are allowed")
    for at, item in enumerate(result):
        if not 1 <= len(item) <= _core.MAX_STOP_CHARS:
            raise InvalidRequestError(
                f"{name}[{at}] has {len(item)} characters; it must have 1 to {_core.MAX_STOP_CHARS}"
            )
    return result


def json_list(name: str, value: object) -> list[Any]:
    if not isinstance(value, (list, tuple)):
        wrong_type(name, value, "a list of tools, each a JSON schema of a function")
    return list(value)


def json_object(name: str, value: object) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        wrong_type(name, value, "a dict")
    return {text(f"a key of {name}", key): item for key, item in value.items()}


_WRAPPER = {"name", "description", "strict", "schema"}


def json_schema(name: str, value: object) -> dict[str, Any]:
    """A JSON schema, or a type that pydantic knows: a model, a dataclass, ``list[int]``."""
    if isinstance(value, Mapping):
        # OpenAI's ``response_format`` wraps it; taken as a schema, the wrapper would ask for nothing.
        wrapped = isinstance(value.get("schema"), Mapping) and set(value) <= _WRAPPER
        return dict(value["schema"] if wrapped else value)
    from . import schemas  # slow to import, and most programs have no schema

    if not schemas.is_type(value):
        wrong_type(name, value, "a JSON schema as a dict, or a type that pydantic knows")
    return schemas.of_type(value, name)


def choices(name: str, value: object) -> list[str]:
    return texts(name, value, "texts, one of which is the answer")


#: What a chat template gets from elsewhere; given as an argument it would be overwritten in silence.
_TEMPLATE_OWN = ("messages", "tools")


def template_arguments(name: str, value: object) -> dict[str, Any]:
    result = json_object(name, value)
    for own in _TEMPLATE_OWN:
        if own in result:
            raise InvalidRequestError(
                f"{name} holds {own!r}, which has an argument of its own; give it there"
            )
    return result


def continued(name: str, value: object) -> bool | str:
    """True, or the field of the last message that the answer continues."""
    if not isinstance(value, (bool, str)):
        wrong_type(name, value, "True, False or a field of the last message")
    return text(name, value) if isinstance(value, str) else value


def logit_bias(name: str, value: object) -> dict[int, float]:
    if not isinstance(value, Mapping):
        wrong_type(name, value, "a dict of token id -> bias")
    return {
        integer(f"a token of {name}", key, 0, 2**32 - 1): number(f"{name}[{key}]", bias)
        for key, bias in value.items()
    }


def filters(name: str, value: object) -> list[Callable[..., None]]:
    if not isinstance(value, (list, tuple)):
        wrong_type(name, value, "a list of callables (logits, tokens) -> None")
    for at, item in enumerate(value):
        if not callable(item):
            wrong_type(f"{name}[{at}]", item, "a callable (logits, tokens) -> None")
    return list(value)


def _positive(name: str, value: object) -> int:
    return integer(name, value, 1, MAX_COUNT)


_KINDS: dict[str, Callable[[str, object], Any]] = {
    "number": number,
    "count": _positive,
    "bias": logit_bias,
    "filters": filters,
}
#: The fields of a Sampler, and how each is read. Which there are stands in a table of the native half, where
#: their ranges are checked, too.
SAMPLER_FIELDS = {name: _KINDS[kind] for name, kind in _core.SAMPLER_FIELDS}


def sampler_fields(given: Mapping[str, object]) -> dict[str, Any]:
    """Those that are set: None is the model's own default, as if not given."""
    return {name: SAMPLER_FIELDS[name](name, value) for name, value in given.items() if value is not None}


#: What every way to generate takes, and how each argument is read.
_OPTIONS: dict[str, Callable[[str, object], Any]] = {
    "max_tokens": _positive,
    "stop": stops,
    "seed": lambda name, value: integer(name, value, 0, MAX_SEED),
    "logprobs": lambda name, value: integer(
        name,
        value,
        0,
        _core.MAX_TOP_LOGPROBS,
        ", the number of alternatives a token (0: the chosen tokens only)",
    ),
    "timeout": seconds,
    "prediction": text,
}

#: What an answer may be held to: at most one of these.
CONSTRAINTS: dict[str, Callable[[str, object], Any]] = {
    "json_schema": json_schema,
    "regex": text,
    "grammar": text,
    "choices": choices,
}


def constraint(given: Mapping[str, object]) -> tuple[str, Any] | None:
    """The one that is given, with its name."""
    found = [name for name in CONSTRAINTS if given.get(name) is not None]
    if len(found) > 1:
        raise InvalidRequestError(f"{found[0]} and {found[1]} exclude each other; give one of them")
    return (found[0], CONSTRAINTS[found[0]](found[0], given[found[0]])) if found else None


def no_others(function: str, fields: Mapping[str, object], options: Iterable[str]) -> None:
    """Refuses what is neither an option of the function nor a field of the sampler."""
    for name in fields:
        if name not in SAMPLER_FIELDS:
            unknown(function, name, [*options, *SAMPLER_FIELDS])


def generation(
    prompt_: Any, options: Mapping[str, Any], fields: Mapping[str, object]
) -> tuple[Any, dict[str, Any]]:
    """Checks a request whose prompt is ready (see ``prompts``), and returns it with the arguments for the
    native ``Engine.generate``."""
    sampler = options.get("sampler")
    if sampler is not None and not isinstance(sampler, _core.Sampler):
        wrong_type("sampler", sampler, "a tallow.Sampler")
    native: dict[str, Any] = {"sampler": sampler, "fields": sampler_fields(fields)}
    for name, check in _OPTIONS.items():
        value = options.get(name)
        if value is not None:
            native[name] = check(name, value)
    held = constraint(options)
    if held is not None:
        native["constraint"] = held
    return prompt_, native
