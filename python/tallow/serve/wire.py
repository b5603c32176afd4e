"""JSON in and out: what a request may hold, checked while it is read.

A field is used, known to change nothing, or refused by name. ``null`` is as if the field were not there, and
so is a value that asks for nothing (``"tools": []``, ``"store": false``), for clients send these always.
"""

from __future__ import annotations

import difflib
import functools
import re
from collections.abc import Collection, Mapping
from typing import Any, TypeVar

import msgspec

from .. import arguments
from .errors import Refused, invalid

#: A request's class -> what it takes that is not a field of it.
Shape = TypeVar("Shape", bound=msgspec.Struct)

to_json = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder()

#: Fields of OpenAI's that cannot change an answer of ours.
NOTHING = frozenset(
    (
        *("user", "metadata", "service_tier", "prompt_cache_key", "prompt_cache_retention"),
        *("safety_identifier", "request_id", "priority", "cache_salt", "cache_prompt", "id_slot"),
        *("guided_decoding_backend", "keep_alive"),
    )
)
#: Fields that are not honoured: the values that ask for nothing, and what to do instead.
REFUSED: dict[str, tuple[tuple[Any, ...], str]] = {
    "store": ((False,), "nothing is kept here; leave it out"),
    "previous_response_id": ((), "nothing is kept here; send the whole conversation as input"),
    "conversation": ((), "nothing is kept here; send the whole conversation as input"),
    "background": ((False,), "an answer goes to who waits for it; leave it out"),
    "truncation": (("disabled",), "nothing is cut in silence; send less"),
    "truncate_prompt_tokens": ((), "nothing is cut in silence; send less"),
    "max_tokens_per_doc": ((), "nothing is cut in silence; send shorter documents"),
    "max_chunks_per_doc": ((), "nothing is cut in silence; send shorter documents"),
    "suffix": (("",), "text is only continued, not filled in"),
    "best_of": ((1,), "ask for n answers and choose among them"),
    "audio": ((), "answers are text"),
    "modalities": ((["text"],), 'answers are text; leave it out, or give ["text"]'),
    "verbosity": (("medium",), "say in the prompt how long the answer should be"),
    "web_search_options": ((), "nothing is searched here; give the text in a message"),
    "functions": (([],), "give the functions as tools"),
    "function_call": (("none", "auto"), "it is called tool_choice now"),
    "ignore_eos": ((False,), "an answer ends where the model ends it"),
    "min_tokens": ((0,), "an answer ends where the model ends it"),
    "stop_token_ids": (([],), "give the text of these tokens as stop"),
    "bad_words": (([],), "forbid tokens with logit_bias"),
    "use_beam_search": ((False,), "answers are sampled; ask for n of them"),
    "length_penalty": ((1.0,), "it is for beam search, and answers are sampled"),
    "include_stop_str_in_output": ((False,), "a stop text is no part of an answer"),
    "skip_special_tokens": ((True,), "control tokens are never shown"),
    "spaces_between_special_tokens": ((True, False), "control tokens are never shown"),
    "prompt_logprobs": ((0,), "ask /completions with logprob_token_ids for tokens behind a prompt"),
    "echo": ((False,), "send the text to /completions, which has it"),
    "return_token_ids": ((False,), "ask /tokenize for the ids of a text"),
    "allowed_token_ids": (([],), "say with choices, regex or grammar what an answer may be"),
    "include_reasoning": ((True,), "a thought stands apart, in reasoning_content; do not read it"),
    "separate_reasoning": ((True,), "a thought stands apart, in reasoning_content"),
    "add_special_tokens": ((False,), "the chat template writes what stands around messages"),
    "documents": (([],), "put their text into a message"),
    "timings_per_token": ((False,), "ask /metrics, or read usage"),
    "return_progress": ((False,), "a stream says that it lives by comments"),
    "post_sampling_probs": ((False,), "logprobs are the model's own"),
    "mirostat": ((0,), "there are temperature, top_k, top_p, min_p and typical_p"),
    "dry_multiplier": ((0, 0.0), "there are repetition_penalty, frequency_penalty and presence_penalty"),
    "xtc_probability": ((0, 0.0), "there are temperature, top_k, top_p, min_p and typical_p"),
    "dynatemp_range": ((0, 0.0), "give one temperature"),
    "top_a": ((0, 0.0), "there are top_k, top_p, min_p and typical_p"),
    "tfs": ((1, 1.0), "there are top_k, top_p, min_p and typical_p"),
    "tfs_z": ((1, 1.0), "there are top_k, top_p, min_p and typical_p"),
    "min_keep": ((0, 1), "filters always leave a token"),
    "n_keep": ((0,), "nothing of a prompt is dropped"),
    "n_probs": ((0,), "ask for logprobs"),
}


def read(body: bytes, shape: type[Shape], *, allow_unknown: bool = False) -> Shape:
    """The request that a body holds."""
    given = {name: value for name, value in document(body).items() if value is not None}
    known = fields(shape)
    for name in [name for name in given if name not in known]:
        if not changes_nothing(name, given[name]) and not allow_unknown:
            _unknown(name, known)
        del given[name]
    try:
        return msgspec.convert(given, shape)
    except msgspec.ValidationError as error:
        raise _wrong(str(error)) from None


def document(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is."""
    try:
        given = _decoder.decode(body)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise invalid(f"the body is not JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise invalid("the body is JSON of too many levels", code="invalid_json") from None
    if not isinstance(given, dict):
        raise invalid(f"the body is a JSON {_KINDS[type(given)]}; it must be an object")
    return given


_KINDS = {list: "list", str: "string", int: "number", float: "number", bool: "boolean", type(None): "null"}


@functools.cache
def fields(shape: type[msgspec.Struct]) -> frozenset[str]:
    return frozenset(shape.__struct_encode_fields__)


def changes_nothing(name: str, value: Any) -> bool:
    """Whether a field that no request has may be left out. Raises what to do where it asks for something that
    is not done here."""
    if name in NOTHING:
        return True
    if name not in REFUSED:
        return False
    harmless, instead = REFUSED[name]
    if any(value == one and type(value) is type(one) for one in harmless):
        return True
    raise invalid(f"{name} is not supported: {instead}", name, "unsupported_parameter")


def _unknown(name: str, known: Collection[str]) -> None:
    shown = name if len(name) <= 60 else name[:57] + "..."
    raise invalid(f"there is no field {shown!r}; {_hint(name, known)}", shown, "unknown_parameter")


def check_keys(where: str, given: Mapping[str, Any], known: Collection[str]) -> None:
    """Refuses what an object within a request holds and nobody reads."""
    for key, value in given.items():
        if key not in known and value is not None:
            field = re.match(r"\w+", where)
            raise invalid(
                f"{where} has no {arguments.shown(key)}; {_hint(key, known)}",
                field[0] if field else None,
                "unknown_parameter",
            )


def _hint(name: str, known: Collection[str]) -> str:
    """Which of the names was meant. Another server's name of a field counts as near."""
    meant = _ELSEWHERE.get(name)
    close = [meant] if meant in known else difflib.get_close_matches(name, known, n=1)
    return f"did you mean {close[0]!r}?" if close else f"there are {', '.join(sorted(known))}"


#: What other servers and routes call a field of ours.
_ELSEWHERE = {
    **{"n_predict": "max_tokens", "num_predict": "max_tokens", "max_new_tokens": "max_tokens"},
    **{"max_output_tokens": "max_tokens", "repeat_penalty": "repetition_penalty", "typ_p": "typical_p"},
    **{"prompt": "messages", "input": "messages", "messages": "prompt", "texts": "documents"},
    **{"guided_decoding": "structured_outputs", "think": "reasoning_effort", "thinking": "reasoning_effort"},
    **{"enable_thinking": "chat_template_kwargs", "stop_sequences": "stop"},
}


def _wrong(message: str) -> Refused:
    """msgspec's complaint, with the field in front of it."""
    missing = re.search(r"missing required field `(\w+)`$", message)
    if missing:
        return invalid(f"{missing[1]} is missing", missing[1], "missing")
    what, _, path = message.partition(" - at `$")
    path = path.rstrip("`").removeprefix(".")
    what = what.replace("`", "").replace(" | null", "")
    root = re.match(r"\w*", path)
    text = f"{path}: {what[:1].lower()}{what[1:]}" if path else what
    return invalid(text, root[0] if root and root[0] else None, "invalid_type")


# What the routes that generate have in common


class StreamOptions(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What all streams take: nothing that is done."""

    #: Events padded to one length (OpenAI), and usage in each of them (vLLM).
    include_obfuscation: bool | None = None
    continuous_usage_stats: bool | None = None

    def __post_init__(self) -> None:
        for name in ("include_obfuscation", "continuous_usage_stats"):
            if getattr(self, name):
                raise ValueError(f"{name} is not supported; leave it out, or give false")


class UsageStreamOptions(StreamOptions, kw_only=True, forbid_unknown_fields=True):
    include_usage: bool | None = None


class StructuredOutputs(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    """What an answer must be, in vLLM's words."""

    json: Any = None
    json_object: bool | None = None
    regex: str | None = None
    choice: list[str] | None = None
    grammar: str | None = None


class Sampled(msgspec.Struct, kw_only=True):
    """Fields that every route which generates text takes."""

    model: str | None = None
    stream: bool | None = None
    stop: str | list[str] | None = None
    seed: int | None = None
    timeout: float | None = None
    # How a token is picked: the fields of a Sampler.
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    min_p: float | None = None
    typical_p: float | None = None
    repetition_penalty: float | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    # What the answer must be: at most one.
    regex: str | None = None
    grammar: str | None = None
    choices: list[str] | None = None


class Generating(Sampled, kw_only=True):
    """The same, with what chats and texts have in common."""

    stream_options: UsageStreamOptions | None = None
    n: int | None = None
    max_tokens: int | None = None
    prediction: Any = None
    response_format: dict[str, Any] | None = None
    json_schema: dict[str, Any] | None = None
    structured_outputs: StructuredOutputs | None = None
    guided_json: Any = None
    guided_regex: str | None = None
    guided_grammar: str | None = None
    guided_choice: list[str] | None = None
