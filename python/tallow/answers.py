"""Asking a model in a conversation, and taking its answer apart: thoughts, text, calls of tools.

What the DSPy engine, the command line and the plugin for ``llm`` have in common. ``Template`` is what a chat
template knows of thoughts and tools, ``bound`` makes one grammar of a format, calls and a thought before
them, ``Reader`` reads an answer as it comes. ``prepare`` puts them together for whoever has no protocol of
its own.

Thinking is off where a form bounds the answer, which then begins with the form; a model that answers freely
does as its template says; ``think`` decides both ways.
"""

from __future__ import annotations

import functools
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from . import _core, arguments, channels, prompts, results, thinking, tools
from .adapter import Adapter, chosen
from .errors import InvalidRequestError
from .model import AsyncStream, Model, Stream, derived_seed
from .results import Chunk
from .schemas import lark
from .tools import Call
from .tools.grammar import token

if TYPE_CHECKING:
    from typing import TypeGuard

#: How much thought may be asked for, where a template asks for an effort.
EFFORTS = ("low", "medium", "high")


@dataclass(frozen=True)
class Template:
    """What a model's chat template knows of thoughts and tools."""

    tags: thinking.Tags | None
    form: tools.ToolFormat
    #: Those of their markers that are control tokens, and their ids.
    markers: dict[str, int]

    @classmethod
    def of(cls, model: Model) -> Template:
        form, tags = tools.detect(model.chat_template), thinking.detect(model.chat_template)
        texts = (*form.literals, *(tags.literals if tags else ()))
        return cls(tags, form, {name: id for text in texts for name, id in _control_tokens(model, text)})

    def splits(self, thinks: bool | None, opened: bool) -> thinking.Tags | None:
        """The tags to look for in an answer: none where no thought can be, unless there may be others."""
        tags = self.tags
        return tags if tags and (thinks is not False or opened or tags.answer[0]) else None

    def shown(self, splits: thinking.Tags | None, *, calls: bool) -> list[int]:
        """The control tokens that an answer's readers look for."""
        texts = (*(self.form.literals if calls else ()), *(splits.literals if splits else ()))
        return sorted({id for name, id in self.markers.items() if any(name in text for text in texts)})

    @property
    def quiet(self) -> dict[str, Any]:
        """The template's arguments for an answer without a thought, where it has a switch for that."""
        tags = self.tags
        return {tags.switch: tags.off} if tags is not None and tags.switch else {}

    @property
    def can_think(self) -> bool:
        """Whether asking for a thought makes a difference, or there is one anyway."""
        return self.tags is not None and (self.tags.switch is not None or self.tags.opened)


def _control_tokens(model: Model, text: str) -> Iterator[tuple[str, int]]:
    """The control tokens that a marker is made of."""
    for id in model.tokenize(text, special=True):
        written = model.detokenize([id], special=True)
        if written and not model.detokenize([id]):
            yield written, id


# The one constraint of an answer


def bound(
    template: Template,
    constraint: Mapping[str, Any],
    offered: Sequence[Any] = (),
    *,
    choice: str = "auto",
    parallel: bool = True,
    allowed: Sequence[str] = (),
    thought: bool | None,
    opened: bool,
) -> dict[str, Any]:
    """The form of an answer, or calls, after the thought. ``thought``: whether there is one; None: the model
    may begin with one. ``opened``: the prompt ends inside of it."""
    held, tags = dict(constraint), template.tags
    around = tags.answer if tags else ("", "")
    if offered:
        text = as_grammar(held) if held else None
        held = tools.call_grammar(
            template.form,
            offered,
            choice,
            parallel,
            text,
            around=around,
            allowed=allowed,
            specials=template.markers,
        )
    elif held and around[0]:
        text = as_grammar(held)
        held = tools.call_grammar(
            template.form, (), text_format=text, around=around, specials=template.markers
        )
    if not held or tags is None:
        return held
    # In characters a thought is a text as any other; a control token is none.
    may = thought is None and any(name in tags.open for name in template.markers)
    if not thought and not may:
        return held
    return after_thought(held, tags, opened, template.markers, may=may)


def as_grammar(constraint: Mapping[str, Any]) -> str:
    """The same constraint in Lark, to be part of a larger grammar."""
    ((kind, value),) = constraint.items()
    if kind == "grammar":
        return str(value)
    if kind == "choices":
        return "start: " + " | ".join(map(lark.literal, value))
    return f"start: {lark.regex(value) if kind == 'regex' else lark.document(value)}"


def after_thought(
    constraint: Mapping[str, Any],
    tags: thinking.Tags,
    opened: bool,
    specials: Mapping[str, int] | None = None,
    *,
    may: bool = False,
) -> dict[str, Any]:
    """The constraint for what comes after a thought. The thought ends with the first closing tag. Where that
    is written in characters, both are one lexeme that cannot go on after it, for with two the lexer, which is
    greedy, would run over the tag. ``may``: there may be a thought or none."""
    open_, close = (token(mark, specials or {}) for mark in (tags.open, tags.close))
    if close.startswith("<"):  # a control token is none of a text's characters
        thought, end = lark.regex("(?s:.+)"), f"? {close}"
    else:
        mark = lark.escaped(tags.close)
        thought = f"{lark.regex(f'(?s:.*){mark}')} & ~{lark.regex(f'(?s:.*){mark}(?s:.+)')}"
        end = ""
    parts = ("" if opened else open_, f"THOUGHT{end}", token(tags.between, specials or {}))
    whole = " ".join(part for part in parts if part)
    return {
        "grammar": f"start: {f'( {whole} )?' if may else whole} answer\n"
        f"THOUGHT: {thought}\n"
        f"answer: %lark {{\n{as_grammar(constraint)}\n}}\n"
    }


# Reading


@dataclass(frozen=True, slots=True)
class Thought:
    """A piece of a thought."""

    text: str


#: A piece of a thought, a piece of the answer's text, or a whole call.
Event = Thought | str | Call


@dataclass
class Reader:
    """Takes one answer apart as it comes."""

    thinking: thinking.Splitter | channels.Splitter | None = None
    tools: tools.Splitter | None = None
    #: How many calls there were so far.
    calls: int = 0
    _bytes: int = 0
    _answer_bytes: int = 0
    _tokens: list[int] = field(default_factory=list)

    def events(self, chunk: Chunk) -> Iterator[Event]:
        """What a piece of the answer holds; with the last one, what was held back."""
        self._tokens.extend(chunk.tokens)
        self._bytes += len(chunk.text.encode())
        yield from self._push(chunk.text)
        if chunk.finish_reason is not None:
            yield from self._finish()

    def _push(self, text: str) -> Iterator[Event]:
        if self.thinking is None:
            yield from self._answer(text)
        else:
            yield from self._parted(self.thinking.push(text))

    def _finish(self) -> Iterator[Event]:
        if self.thinking is not None:
            yield from self._parted(self.thinking.finish())
        if self.tools is not None:
            yield from self._counted(self.tools.finish())

    def _parted(self, pieces: Iterable[tuple[str, str]]) -> Iterator[Event]:
        for kind, text in pieces:
            if kind == "thinking":
                yield Thought(text)
            else:
                yield from self._answer(text)

    def _answer(self, text: str) -> Iterator[Event]:
        self._answer_bytes += len(text.encode())
        if self.tools is not None:
            yield from self._counted(self.tools.push(text))
        elif text:
            yield text

    def _counted(self, events: Iterable[str | Call]) -> Iterator[Event]:
        for event in events:
            self.calls += isinstance(event, Call)
            yield event

    def finish_reason(self, found: str) -> str:
        """An answer that ends with whole calls waits for their results."""
        return "tool_call" if self.calls and found == "stop" else found

    def thought_tokens(self, token_bytes: results.TokenBytes) -> int | None:
        """How many tokens went into thoughts, or None for an answer that cannot have any."""
        if self.thinking is None:
            return None
        thoughts, seen, count = self._bytes - self._answer_bytes, 0, 0
        for id in self._tokens:
            if seen >= thoughts:
                break
            seen, count = seen + len(token_bytes(id)), count + 1
        return count


# A conversation, for whoever has no protocol of its own


@dataclass(frozen=True)
class Asked:
    """A question that was checked and is ready to run, once or often."""

    model: Model
    prompt: prompts.Prompt
    reader: Callable[[], Reader]
    #: Submits answer number ``index``.
    _start: Callable[..., _core.Generation]

    @property
    def notes(self) -> tuple[str, ...]:
        """What the chat template could not take as it was given, and what was done instead."""
        return prompts.notes(self.prompt)

    def stream(self) -> Reply:
        return Reply(Stream(self._start(0), self.model._shared, self.notes), self.reader())

    def astream(self, index: int = 0, *, every_token: bool = True) -> AsyncReply:
        """Answer number ``index``, which has a seed of its own. ``every_token``: the loop wakes for each
        step; else when there is a good deal of the answer, or all of it."""
        from ._async import AsyncGeneration

        generation = AsyncGeneration(functools.partial(self._start, index), every_token=every_token)
        return AsyncReply(AsyncStream(generation, self.model._shared, self.notes), self.reader())


def prepare(
    model: Model,
    prompt: Any,
    *,
    template: Template | None = None,
    offered: Sequence[Any] = (),
    choice: str = "auto",
    parallel: bool = True,
    allowed: Sequence[str] = (),
    think: bool | str | None = None,
    template_arguments: Mapping[str, Any] | None = None,
    continue_final_message: bool | str = False,
    adapter: Adapter | str | None = None,
    name: str = "prompt",
    **options: Any,
) -> Asked:
    """Checks a prompt (a text, token ids, or messages) with the options of ``Model.generate``, and makes it
    ready.

    ``offered``: tools that the answer may call; ``choice``, ``parallel`` and ``allowed`` are those of
    ``bound``. ``think``: True, False, one of ``EFFORTS`` where the template asks for an effort, None as the
    template likes. A text is continued as it is: none of these is for one. ``name``: what errors call the
    prompt.
    """
    fields = {name: options.pop(name) for name in list(options) if name in arguments.SAMPLER_FIELDS}
    constraint = arguments.constraint(options)
    held = {constraint[0]: constraint[1]} if constraint else {}
    checked = arguments.prompt(prompt, name, model.chat_template)
    if not _is_conversation(checked):
        ready, shown = prompts.ready(model._native, checked), []
        reader: Callable[[], Reader] = Reader
    else:
        template, turns = template or Template.of(model), checked
        offered = tools.functions(offered)
        own = dict(template_arguments or {})
        thinks, switch = _thinks(template.tags, think, bool(held), own)
        ready = prompts.rendered(
            model._native,
            turns,
            tools=offered or None,
            template_arguments={**switch, **own},
            continue_final_message=continue_final_message,
            name=name,
        )
        opened = template.tags is not None and template.tags.opened_by(ready.text)
        held = bound(
            template,
            held,
            offered,
            choice=choice,
            parallel=parallel,
            allowed=allowed,
            thought=True if opened else thinks,
            opened=opened,
        )
        splits = template.splits(thinks, opened)
        shown = template.shown(splits, calls=bool(offered))
        reader = _reading(template, splits, opened, turns, offered)
    options = {name: value for name, value in options.items() if name not in arguments.CONSTRAINTS}
    _, native = arguments.generation(ready, {**options, **held}, fields)
    native["adapter"] = chosen(model, adapter)
    seed = native.pop("seed", None)
    engine = model._shared.engine()

    def start(index: int, **waker: Any) -> _core.Generation:
        return engine.generate(ready, **native, seed=derived_seed(seed, index), shown_tokens=shown, **waker)

    return Asked(model, ready, reader, start)


def _is_conversation(prompt: arguments.Prompt) -> TypeGuard[list[dict[str, Any]]]:
    return isinstance(prompt, list) and isinstance(prompt[0], dict)


def _reading(
    template: Template,
    splits: thinking.Tags | None,
    opened: bool,
    turns: Sequence[Mapping[str, Any]],
    offered: Sequence[tools.Function],
) -> Callable[[], Reader]:
    schemas = {tool.name: tool.parameters for tool in offered}
    before = sum(len(turn.get("tool_calls") or ()) for turn in turns)
    return lambda: Reader(
        thinking.splitter(splits, opened) if splits is not None else None,
        tools.Splitter(template.form, schemas, before) if schemas else None,
    )


def _thinks(
    tags: thinking.Tags | None, think: bool | str | None, bounded: bool, own: Mapping[str, Any] | None = None
) -> tuple[bool | None, dict[str, Any]]:
    """Whether the model is to think (None: as it likes), and the template's switch for that. ``own``: what
    the caller tells the template, who may turn the switch himself."""
    if tags is not None and tags.switch and own and tags.switch in own:
        if think is not None:
            raise InvalidRequestError(
                f"think and the template's {tags.switch!r} are both given; leave one out"
            )
        return own[tags.switch] not in (False, "none"), {}
    if tags is None:
        if think is None or think is False:
            return False, {}
        raise InvalidRequestError("this model's chat template knows no thoughts; leave think out")
    if think is None:
        return (False, {tags.switch: tags.off} if tags.switch else {}) if bounded else (None, {})
    if tags.switch is None:
        if think is True and tags.opened:
            return True, {}
        raise InvalidRequestError("this model's chat template has no switch for thoughts; leave think out")
    if think is False:
        return False, {tags.switch: tags.off}
    if isinstance(think, str):
        arguments.choice("think", think, EFFORTS)
        if tags.on is not None:
            raise InvalidRequestError(f"think is {think!r}, and this model's thoughts are only on or off")
        return True, {tags.switch: think}
    return True, {tags.switch: "medium" if tags.on is None else tags.on}


class _Told:
    """What an answer came to, once it is read to its end."""

    def __init__(self, reader: Reader, notes: tuple[str, ...], token_bytes: results.TokenBytes) -> None:
        self.notes = notes
        self.finish_reason: str | None = None
        self.usage: results.Usage | None = None
        self.timings: results.Timings | None = None
        self.thought_tokens: int | None = None
        self._reader = reader
        self._token_bytes = token_bytes

    def _read(self, chunk: Chunk) -> Iterator[Event]:
        yield from self._reader.events(chunk)
        if chunk.finish_reason is not None:
            self.finish_reason = self._reader.finish_reason(chunk.finish_reason)
            self.usage, self.timings = chunk.usage, chunk.timings
            self.thought_tokens = self._reader.thought_tokens(self._token_bytes)


class Reply(_Told):
    """The events of one answer as they come. Leaving the ``with`` block ends the request."""

    def __init__(self, chunks: Stream, reader: Reader) -> None:
        super().__init__(reader, chunks.notes, chunks._token_bytes)
        self._chunks = chunks

    def __iter__(self) -> Iterator[Event]:
        for chunk in self._chunks:
            yield from self._read(chunk)

    def __enter__(self) -> Reply:
        return self

    def __exit__(self, *exception: object) -> None:
        self._chunks.close()


class AsyncReply(_Told):
    """The same on an event loop."""

    def __init__(self, chunks: AsyncStream, reader: Reader) -> None:
        super().__init__(reader, chunks.notes, chunks._token_bytes)
        self._chunks = chunks

    async def __aiter__(self) -> AsyncIterator[Event]:
        async for _, events in self.pieces():
            for event in events:
                yield event

    async def pieces(self) -> AsyncIterator[tuple[Chunk, list[Event]]]:
        """Each piece as it came, and what it holds, which may be nothing yet."""
        async for chunk in self._chunks:
            yield chunk, list(self._read(chunk))

    async def __aenter__(self) -> AsyncReply:
        return self

    async def __aexit__(self, *exception: object) -> None:
        await self.aclose()

    async def aclose(self) -> None:
        """Ends the request, if it still runs."""
        await self._chunks.aclose()
