"""Rows of a training set as token ids, and which of them are trained: the answer, and what ends it.

A conversation is written twice by the model's own chat template: with its last answer, and without it but
with what begins an answer. The first must begin with the second, in ids; the rest is trained. So what is
trained is what ``generate`` would have to write after the prompt that it would make of the same messages.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from . import arguments, prompts
from .errors import ArgumentTypeError, ContextLengthError, Error, InvalidRequestError, TemplateError

if TYPE_CHECKING:
    from collections.abc import Callable

    from . import _core

#: What a row may hold; the second name of a template's variables is TRL's.
_CONVERSATION = ("messages", "tools", "template_arguments", "chat_template_kwargs")
_PAIR = ("prompt", "completion", "tools", "template_arguments", "chat_template_kwargs")
_FORMS = '{"messages": [...]}, whose last message is the answer, or {"prompt": ..., "completion": ...}'

Example = tuple[list[int], list[tuple[int, int]]]


class Prepared(NamedTuple):
    """What is trained on. ``skipped``: rows that were too long; ``notes``: what is worth knowing."""

    examples: list[Example]
    skipped: int
    notes: tuple[str, ...]


def prepared(
    model: _core.Model, rows: object, *, too_long: str = "error", tell: Callable[[int], object] | None = None
) -> Prepared:
    """All rows, checked and in ids. Nothing is cut: a row that is longer than the context is an error, or
    with ``too_long="skip"`` left out. ``tell`` gets how many are done."""
    examples: list[Example] = []
    notes: dict[str, int] = {}
    count = skipped = 0
    for name, row in _each(rows):
        count += 1
        ids, target, told = _example(model, name, row)
        for note in told:
            notes[note] = notes.get(note, 0) + 1
        if len(ids) > model.context_length:
            if too_long == "error":
                _too_long(model, name, len(ids))
            skipped += 1
        else:
            examples.append((ids, [(target, len(ids))]))
        if tell is not None:
            tell(count)
    if count == 0:
        raise InvalidRequestError(f"rows is empty; give at least one row, {_FORMS}")
    if not examples:
        raise InvalidRequestError(
            f"rows: all {count} are longer than the context of {model.context_length} tokens, so none is "
            "left to train on; load the model with a larger context_length, or shorten them"
        )
    told = [f"{note} ({times} of {count} rows)" for note, times in notes.items()]
    if skipped:
        told.append(f"left out: {skipped} of {count} rows, which are longer than the context")
    return Prepared(examples, skipped, tuple(told))


def _too_long(model: _core.Model, name: str, needed: int) -> None:
    limit = model.context_length
    error = ContextLengthError(
        f"{name} has {needed} tokens and the context of this model holds {limit}; shorten it, leave such "
        'rows out with too_long="skip", or load the model with a larger context_length if it was made for one'
    )
    error.prompt_tokens, error.limit = needed, limit  # type: ignore[attr-defined]
    raise error


# Where rows come from


def _each(rows: object) -> Iterator[tuple[str, object]]:
    """Each row with the name that errors call it by."""
    if isinstance(rows, (str, os.PathLike)):
        yield from _lines(os.fspath(rows))
        return
    if isinstance(rows, Mapping):
        arguments.wrong_type("rows", rows, "a list of rows: put the dict into a list")
    # A data set may be known by its items alone.
    has_items = isinstance(rows, Iterable) or hasattr(rows, "__getitem__")
    if isinstance(rows, (bytes, bytearray)) or not has_items:
        arguments.wrong_type("rows", rows, "a list of dicts, a data set, or the path of a .jsonl file")
    items: Iterable[object] = rows  # type: ignore[assignment]
    for at, row in enumerate(items):
        yield f"rows[{at}]", row


def _lines(path: str | bytes) -> Iterator[tuple[str, object]]:
    path = arguments.path_text("rows", path if isinstance(path, str) else os.fsdecode(path))
    if not path.endswith(".jsonl"):
        arguments.wrong_value(
            "rows", path, "a list of dicts, or the path of a .jsonl file (a JSON object a line)"
        )
    shown = os.path.basename(path)
    try:
        with open(path, encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield f"{shown}, line {number}", _line(f"{shown}, line {number}", line)
    except OSError as error:
        raise InvalidRequestError(f"rows: {path} cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise InvalidRequestError(f"rows: {path} is not UTF-8 text ({error.reason})") from error


def _line(name: str, line: str) -> object:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as error:
        raise InvalidRequestError(f"{name} is no JSON: {error}") from error


# One row


def _example(model: _core.Model, name: str, row: object) -> tuple[list[int], int, list[str]]:
    """Its ids, where the trained ones begin, and notes."""
    row = arguments.plain(row)
    if not isinstance(row, Mapping):
        more = " (of a DataFrame: frame.to_dict('records'))" if isinstance(row, str) else ""
        raise ArgumentTypeError(
            f"{name} is {arguments.shown(row)} of type {type(row).__name__}; it must be a dict, "
            f"{_FORMS}{more}"
        )
    given = {key: value for key, value in row.items() if value is not None}
    known = _CONVERSATION if "messages" in given else _PAIR
    for key in given:
        if key not in known:
            raise InvalidRequestError(
                f"{name} has {key!r}, which is not used; a row is {_FORMS}, with tools and "
                "template_arguments beside it: take out what is not for training"
            )
    if "messages" in given:
        turns = _turns(model, f'{name}["messages"]', given["messages"])
        if turns[-1].get("role") != "assistant":
            raise InvalidRequestError(
                f'{name}["messages"] ends with a message of role {turns[-1].get("role")!r}; its last '
                "message must be the answer, of role 'assistant'"
            )
        return _conversation(model, f'{name}["messages"]', turns, given)
    for key in ("prompt", "completion"):
        if key not in given:
            raise InvalidRequestError(f"{name} has no {key!r}; a row is {_FORMS}")
    return _pair(model, name, given)


def _turns(model: _core.Model, name: str, value: object) -> list[dict[str, Any]]:
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__getitem__"):
        arguments.wrong_type(name, value, "a list of messages")
    return arguments.messages(name, list(value), model.chat_template)  # type: ignore[call-overload]


def _pair(model: _core.Model, name: str, row: Mapping[str, Any]) -> tuple[list[int], int, list[str]]:
    prompt, completion = row["prompt"], row["completion"]
    if not isinstance(prompt, str):
        turns = _turns(model, f'{name}["prompt"]', prompt)
        if isinstance(completion, str):
            answer = [{"role": "assistant", "content": arguments.text(f'{name}["completion"]', completion)}]
        else:
            given = [completion] if isinstance(completion, Mapping) else completion
            answer = _turns(model, f'{name}["completion"]', given)
        if [turn.get("role") for turn in answer] != ["assistant"]:
            raise InvalidRequestError(
                f'{name}["completion"] must be a text, or one message of role "assistant"'
            )
        return _conversation(model, f'{name}["completion"]', turns + answer, row)
    if not isinstance(completion, str):
        arguments.wrong_type(f'{name}["completion"]', completion, "a str, as the prompt is one")
    for key in ("tools", "template_arguments", "chat_template_kwargs"):
        if key in row:
            raise InvalidRequestError(f"{name}[{key!r}] is for messages; this prompt is plain text")
    text = arguments.text(f'{name}["completion"]', completion).rstrip()
    if not text:
        _no_answer(f'{name}["completion"]')
    if not arguments.text(f'{name}["prompt"]', prompt):
        raise InvalidRequestError(f'{name}["prompt"] is empty; give at least one character')
    before = model.prompt_ids(prompt)
    end = _end_token(model, name)
    if not before:
        raise InvalidRequestError(f'{name}["prompt"] has no tokens; give at least one')
    return [*before, *model.continuation_ids(prompt, text), end], len(before), []


def _no_answer(name: str) -> None:
    raise InvalidRequestError(f"{name} has an empty answer; give its text, or take the row out")


def _end_token(model: _core.Model, name: str) -> int:
    if not model.eos_ids:
        raise InvalidRequestError(
            f"{name}: this model has no token that ends an answer, so none can be trained"
        )
    return model.eos_ids[0]


def _conversation(
    model: _core.Model, name: str, turns: list[dict[str, Any]], row: Mapping[str, Any]
) -> tuple[list[int], int, list[str]]:
    if len(turns) < 2:
        raise InvalidRequestError(f"{name} is an answer without a question; give the messages before it")
    turns = [*turns[:-1], _stripped(name, turns[-1])]
    own = dict(row.get("template_arguments") or row.get("chat_template_kwargs") or {})
    tools = row.get("tools")

    def written(messages: list[dict[str, Any]], **more: Any) -> _core.Prompt:
        try:
            return prompts.rendered(
                model, messages, tools=tools, template_arguments={**own, **more}, name=name
            )
        except Error as error:
            if name in str(error):
                raise
            raise type(error)(f"{name}: {error}") from error

    whole = written(turns, add_generation_prompt=False)
    asked = written(turns[:-1])
    notes = list(prompts.notes(whole))
    ids, before = model.prompt_ids(whole), model.prompt_ids(asked)
    begin = _common(ids, before)
    if begin < len(before):
        history = written(turns[:-1], add_generation_prompt=False).text
        if not whole.text.startswith(history):
            at = _common(whole.text, history)
            raise TemplateError(
                f"{name}: the chat template writes the conversation otherwise once its answer is there "
                f"(after {arguments.shown(history[max(0, at - 30) : at])}), so what is before the answer "
                'would not be the prompt that generate makes; give {"prompt": ..., "completion": ...} as '
                "texts instead"
            )
        notes.append(
            f"the chat template ends a prompt with {arguments.shown(asked.text[len(history) :])}, which the "
            "finished conversation does not repeat; what is trained begins where the two part"
        )
    return *_ended(model, name, ids, begin, notes), notes


def _ended(
    model: _core.Model, name: str, ids: list[int], begin: int, notes: list[str]
) -> tuple[list[int], int]:
    """Ends behind the last token that ends an answer: what a template writes after it is never generated."""
    end_ids = set(model.eos_ids)
    end = next((at + 1 for at in reversed(range(begin, len(ids))) if ids[at] in end_ids), None)
    if end is not None:
        return ids[:end], begin
    notes.append("the chat template does not end the last answer; the model's end token was put behind it")
    return [*ids, _end_token(model, name)], begin


def _common(a: Any, b: Any) -> int:
    """How many items two sequences begin with alike."""
    return next((at for at, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _stripped(name: str, turn: dict[str, Any]) -> dict[str, Any]:
    """The answer without the white space at its end (DSPy's end with a line break)."""
    content = turn.get("content")
    if isinstance(content, str):
        turn = {**turn, "content": content.rstrip()}
    elif isinstance(content, list) and content and isinstance(content[-1], Mapping):
        last = dict(content[-1])
        if isinstance(last.get("text"), str):
            last["text"] = last["text"].rstrip()
        turn = {**turn, "content": [*content[:-1], last]}
    if not (turn.get("content") or turn.get("tool_calls") or turn.get("function_call")):
        _no_answer(name)
    return turn
