"""The calls in an answer: ``Splitter`` takes it apart piece by piece, ``parse`` does so with the whole text.

Text comes out as soon as it can be no part of a call; what might begin one is held back, with the white space
before it. A call comes out when it is complete. What looks like a call and cannot be read as one stays text,
character for character. Every decision rests on the text so far and never on how it was cut into pieces.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from . import bodies
from .formats import ToolFormat

#: An answer that begins with an object whose first key is one of these may be a call without its marker.
CALL_KEYS = ("name", "type", "function", "arguments", "parameters")
_BARE = re.compile(r'(?:\[\s*)?(?:\{\s*(?:"(\w*)("?))?)?')
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

    ``names``: the tools, best with the schemas of their arguments, which tell a text from a number where a
    format writes both alike. Only calls of these count where a call has no marker; None takes every name.
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
    _cursor: bodies.Cursor | None = None
    _reading: bodies.Reading[bodies.Pairs] | None = None
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
        self._marker, self._cursor = mark, bodies.Cursor(len(mark))
        schemas = self.names if isinstance(self.names, Mapping) else {}
        self._reading = bodies.read(self._cursor, self.form, bool(mark), schemas)
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
            calls = self._read(final)
        except bodies.NoCall:
            gap, mark = self._gap, self._marker
            self._gap, self._marker = "", None
            self._show(gap + mark)
            self._held = self._held[len(mark) :]
            self._mode = "text"
            return True
        if calls is None:
            return False
        for name, arguments in calls:
            number = self.first + self._count
            self._out.append(Call(self.form.call_id(number), name, arguments, self._count))
            self._count += 1
        assert self._cursor is not None
        self._gap, self._marker, self._mode = "", None, "after"
        self._held = self._held[self._cursor.at :]
        return True

    def _read(self, final: bool) -> bodies.Pairs | None:
        """The calls; None while they are not complete."""
        assert self._cursor is not None and self._reading is not None
        self._cursor.text, self._cursor.final = self._held, final
        try:
            next(self._reading)
            return None
        except StopIteration as done:
            calls: bodies.Pairs = done.value
        if not self._marker and self.names is not None and not all(name in self.names for name, _ in calls):
            raise bodies.NoCall
        return calls


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


def _joined(events: list[Event]) -> list[Event]:
    result: list[Event] = []
    for event in events:
        if isinstance(event, str) and result and isinstance(result[-1], str):
            result[-1] += event
        else:
            result.append(event)
    return result
