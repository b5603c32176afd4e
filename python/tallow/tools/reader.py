"""The calls in an answer: ``Splitter`` takes it apart piece by piece, ``parse`` does so with the whole text.

Text comes out as soon as it can be no part of a call; what might begin one is held back, with the white space
before it. A call comes out when it is complete. What looks like a call and cannot be read as one stays text,
character for character. Every decision rests on the text so far and never on how it was cut into pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, NoReturn

from .formats import ToolFormat

_ARGUMENT_KEYS = ("arguments", "parameters")
#: An answer that begins with an object whose first key is one of these may be a call without its marker.
CALL_KEYS = ("name", "type", "function", *_ARGUMENT_KEYS)
_BARE = re.compile(r'(?:\[\s*)?(?:\{\s*(?:"(\w*)("?))?)?')
_HEAD = re.compile(r"\s*([\w.\-]+)(?:\[CALL_ID\]\w*)?(?:\[ARGS\])?\s*")
_HEAD_CHARS = re.compile(r"[\w.\-\[\]\s]{0,200}")
_SPACE = re.compile(r"\s*")
_BETWEEN = re.compile(r"[\s;,]*")


@dataclass(frozen=True, slots=True)
class Call:
    """One call that the model wrote."""

    id: str
    name: str
    arguments: dict[str, Any]
    #: Its place among the calls of this answer.
    index: int = 0

    @property
    def arguments_json(self) -> str:
        return json.dumps(self.arguments, ensure_ascii=False)


#: A piece of text that is safe to show, or a whole call.
Event = str | Call


def parse(
    form: ToolFormat, text: str, names: Collection[str] | None = None, first: int = 0
) -> tuple[str, list[Call]]:
    """An answer's text without its calls, and the calls. ``names``, ``first``: as in ``Splitter``."""
    splitter = Splitter(form, names, first)
    events = [*splitter.push(text), *splitter.finish()]
    texts = "".join(event for event in events if isinstance(event, str))
    return texts, [event for event in events if isinstance(event, Call)]


@dataclass
class Splitter:
    """Reads a streamed answer.

    ``names``: only calls of these count where a call has no marker; None takes every name.
    ``first``: the number of the first call's id, so that ids in a conversation differ."""

    form: ToolFormat
    names: Collection[str] | None = None
    first: int = 0
    _held: str = ""
    #: White space before a marker, which goes if a call follows and is text otherwise.
    _gap: str = ""
    #: "start" and "after" (a call): a call without a marker may follow. "text": only a marked one.
    _mode: str = "start"
    #: The marker that ``_held`` begins with, "" for a call without one; None outside of a call.
    _marker: str | None = None
    _scanner: _Scanner | None = None
    _count: int = 0
    _out: list[Event] = field(default_factory=list)

    def push(self, text: str) -> list[Event]:
        self._held += text
        return self._drain(final=False)

    def finish(self) -> list[Event]:
        return self._drain(final=True)

    def _drain(self, final: bool) -> list[Event]:
        while self._held and (self._call(final) if self._marker is not None else self._text(final)):
            pass
        if final and self._marker is None:
            self._show(self._held)
            self._held = ""
        out, self._out = self._out, []
        return _joined(out)

    # Outside of a call. Each step says whether there may be another.

    def _text(self, final: bool) -> bool:
        if self.form.bare and self._mode != "text":
            skip = _BETWEEN if self._mode == "after" else _SPACE
            at = _end(skip.match(self._held))
            may = _may_be_call(self._held[at:])
            if may is None and not final:
                return False
            if may:
                self._begin(at, "")
                return True
        found = [(at, -len(mark), mark) for mark in self.form.marks if (at := self._held.find(mark)) >= 0]
        if found:
            at, _, mark = min(found)
            self._begin(at, mark)
            return True
        keep = self._unsafe()
        if self._mode == "start" and self.form.bare and not self._held[:keep].strip():
            return False
        self._show(self._held[:keep])
        self._held = self._held[keep:]
        return False

    def _unsafe(self) -> int:
        """Where the end begins that may be part of a marker, with the white space before it."""
        longest = max((len(mark) for mark in self.form.marks), default=1) - 1
        tail = self._held[max(0, len(self._held) - longest) :]
        starts = (
            at for at in range(len(tail)) if any(mark.startswith(tail[at:]) for mark in self.form.marks)
        )
        at = len(self._held) - len(tail) + next(starts, len(tail))
        return len(self._held[:at].rstrip())

    def _begin(self, at: int, mark: str) -> None:
        """A call may begin at ``at``: what stands before it is text, but for the white space at its end."""
        before, self._held = self._held[:at], self._held[at:]
        text = before.rstrip() if mark else ""  # without a marker only white space and separators come before
        self._gap = before[len(text) :]
        self._marker, self._scanner = mark, None
        self._show(text)

    def _show(self, text: str) -> None:
        if self._mode == "after":
            text = text.lstrip()
        if text:
            self._out.append(text)
            if text.strip() or self._mode == "after":
                self._mode = "text"

    # Inside of a call.

    def _call(self, final: bool) -> bool:
        assert self._marker is not None
        try:
            read = self._read(final)
        except _NoCall:
            gap, mark = self._gap, self._marker
            self._gap, self._marker = "", None
            self._show(gap + mark)
            self._held = self._held[len(mark) :]
            self._mode = "text"
            return True
        if read is None:
            return False
        end, calls = read
        for name, arguments in calls:
            number = self.first + self._count
            self._out.append(Call(self.form.call_id(number), name, arguments, self._count))
            self._count += 1
        self._gap, self._marker, self._mode = "", None, "after"
        self._held = self._held[end:]
        return True

    def _read(self, final: bool) -> tuple[int, list[tuple[str, dict[str, Any]]]] | None:
        """Where the call ends, and what it calls; None while it is not complete."""
        mark = self._marker or ""
        at = _end(_SPACE.match(self._held, len(mark)))
        head = None
        if mark and self.form.heads and self._held[at : at + 1] not in ("{", "["):
            head = self._head(at)
            if head is None:
                _wait(final)
                return None
            at, name = head
        if at == len(self._held):
            _wait(final)
            return None
        if self._held[at] not in "{[":
            raise _NoCall
        self._scanner = self._scanner or _Scanner(at)
        end = self._scanner.end(self._held)
        if end is None:
            _wait(final)
            return None
        value = _loads(self._held[at:end])
        calls = [(name, _arguments(value))] if head else self._calls(value, bare=not mark)
        close = self.form.close if mark else ""
        closed = _closed(self._held, end, close, final)
        return None if closed is None else (closed, calls)

    def _head(self, at: int) -> tuple[int, str] | None:
        """``name[ARGS]`` before an object; where the object begins."""
        brace = self._held.find("{", at)
        head = self._held[at:] if brace < 0 else self._held[at:brace]
        if not _HEAD_CHARS.fullmatch(head):
            raise _NoCall
        if brace < 0:
            return None
        match = _HEAD.fullmatch(head)
        if match is None:
            raise _NoCall
        return brace, match[1]

    def _calls(self, value: Any, bare: bool) -> list[tuple[str, dict[str, Any]]]:
        items = value if isinstance(value, list) else [value]
        calls = [_one(item, needs_arguments=bare) for item in items]
        if not calls:
            raise _NoCall
        if bare and self.names is not None and not all(name in self.names for name, _ in calls):
            raise _NoCall
        return calls


class _NoCall(Exception):
    """What looked like a call is text."""


@dataclass
class _Scanner:
    """Finds where a JSON value ends. It goes on where it stopped, so small pieces cost no more."""

    at: int
    depth: int = 0
    in_string: bool = False
    found: int | None = None

    _OUTSIDE = re.compile(r'["{}\[\]]')
    _INSIDE = re.compile(r'["\\]')

    def end(self, text: str) -> int | None:
        while self.found is None:
            match = (self._INSIDE if self.in_string else self._OUTSIDE).search(text, self.at)
            if match is None:
                self.at = len(text)
                return None
            char = match[0]
            if char == "\\" and match.end() == len(text):
                self.at = match.start()  # what it escapes has not come yet
                return None
            self.at = match.end() + (char == "\\")
            if char == '"':
                self.in_string = not self.in_string
            elif char in "{[":
                self.depth += 1
            elif char in "}]":
                self.depth -= 1
                if self.depth == 0:
                    self.found = self.at
        return self.found


def _wait(final: bool) -> None:
    """The call is not complete: fine, unless the answer is over."""
    if final:
        raise _NoCall


def _end(match: re.Match[str] | None) -> int:
    assert match is not None, "the pattern matches nothing, too"
    return match.end()


def _may_be_call(text: str) -> bool | None:
    """Whether a text begins as a call without a marker does; None while that is open."""
    match = _BARE.match(text)
    assert match is not None
    key, quote = match[1], match[2]
    if quote:
        return key in CALL_KEYS
    if match.end() < len(text):
        return False
    return None if key is None or any(known.startswith(key) for known in CALL_KEYS) else False


def _closed(text: str, end: int, close: str, final: bool) -> int | None:
    """Where the closing marker ends. One that was forgotten is none the worse: the call is complete."""
    if not close:
        return end
    at = _end(_SPACE.match(text, end))
    if text.startswith(close, at):
        return at + len(close)
    if close.startswith(text[at:]):  # it may still come; at the end of the answer, half of it did
        return len(text) if final else None
    return end


def _loads(text: str) -> Any:
    try:
        # Models write real line breaks into strings; nothing is gained by refusing them.
        return json.loads(text, strict=False, parse_constant=_refuse)
    except (ValueError, RecursionError):
        raise _NoCall from None


def _refuse(_: str) -> NoReturn:
    raise _NoCall


def _one(item: Any, needs_arguments: bool) -> tuple[str, dict[str, Any]]:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]
    if not isinstance(item, dict):
        raise _NoCall
    name = item.get("name", item.get("function"))
    if not isinstance(name, str) or not name:
        raise _NoCall
    given = [item[key] for key in _ARGUMENT_KEYS if key in item]
    if not given and needs_arguments:
        raise _NoCall
    return name, _arguments(given[0] if given else {})


def _arguments(value: Any) -> dict[str, Any]:
    if isinstance(value, str):  # OpenAI's way: JSON within JSON
        value = _loads(value)
    if value is None:
        return {}
    if not isinstance(value, dict):
        raise _NoCall
    return value


def _joined(events: list[Event]) -> list[Event]:
    result: list[Event] = []
    for event in events:
        if isinstance(event, str) and result and isinstance(result[-1], str):
            result[-1] += event
        else:
            result.append(event)
    return result
