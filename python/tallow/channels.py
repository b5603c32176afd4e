"""Answers that are a row of messages, each with a header that says what it is: gpt-oss and Muse Glimmer.

Harmony (gpt-oss): ``<|channel|>analysis<|message|>...<|end|>`` is a thought, the channels "final" and
"commentary" are text, and ``to=functions.f`` in a header makes the message a call. After a message that does
not end the answer comes ``<|start|>assistant`` and the next header. Muse Glimmer's headers name a recipient
instead: ``to=self`` a thought, ``to=user`` text, any other a call.

The markers are control tokens; a text without them is the answer as it stands.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

Kind = Literal["thinking", "text"]

#: A header is shorter than this; what is longer is text.
_MAX_HEADER = 200
_START, _MESSAGE = "<|start|>", "<|message|>"


@dataclass(frozen=True, slots=True)
class Messages:
    """One way to write messages."""

    #: What a header may begin with.
    headers: tuple[str, ...]
    #: What ends a message.
    ends: tuple[str, ...]
    #: In the header of a thought.
    thought: re.Pattern[str]
    #: In the header of a call; the function's name is its first group.
    call: re.Pattern[str]
    #: What stands for the header of a call in the text, for whoever reads calls there; "" where the call
    #: names its function itself.
    called: str = ""


HARMONY = Messages(
    ("<|channel|>", _START, " to="),
    ("<|end|>", "<|call|>", "<|return|>", _START, "<|channel|>"),
    re.compile(r"<\|channel\|>analysis"),
    re.compile(r"to=functions\.([\w.\-]+)"),
    "<|channel|>commentary to=functions.{} <|constrain|>json<|message|>",
)
ATEM = Messages(
    (" to=", _START, _MESSAGE),
    ("<|eom|>", "<|eot|>", _START),
    re.compile(r"to=self\b"),
    re.compile(r"to=(?!self\b|user\b)([\w.\-]+)"),
)


class Splitter:
    """Takes an answer apart as it comes in. What might be part of a marker is held back until that is known.
    A call stays in the text, behind one spelling of its header."""

    def __init__(self, messages: Messages) -> None:
        self._messages = messages
        self._held = ""
        self._kind: Kind = "text"
        #: In the header of a message, or before it.
        self._in_header = True
        #: Of each kind, whether there was a message with something in it.
        self._begun: dict[Kind, bool] = {"thinking": False, "text": False}
        self._apart = False

    def push(self, text: str) -> list[tuple[Kind, str]]:
        self._held += text
        return self._drain(final=False)

    def finish(self) -> list[tuple[Kind, str]]:
        return self._drain(final=True)

    def _drain(self, final: bool) -> list[tuple[Kind, str]]:
        out: list[tuple[Kind, str]] = []
        while self._held and (self._header(out, final) if self._in_header else self._body(out, final)):
            pass
        return out

    def _header(self, out: list[tuple[Kind, str]], final: bool) -> bool:
        headers = self._messages.headers
        if not any(self._held.startswith(one) for one in headers):
            if not final and any(one.startswith(self._held) for one in headers):
                return False
            return self._begin("text", 0)
        found = self._held.find(_MESSAGE, 0, _MAX_HEADER + len(_MESSAGE))
        if found < 0:
            if not final and len(self._held) < _MAX_HEADER + len(_MESSAGE):
                return False
            self._begin("text", 0)  # no header, and what looks like its first marker is text
            self._say(out, self._held[:1])
            self._held = self._held[1:]
            return True
        header = self._held[:found]
        call = self._messages.call.search(header)
        kind: Kind = "thinking" if not call and self._messages.thought.search(header) else "text"
        self._begin(kind, found + len(_MESSAGE))
        if call and self._messages.called:
            self._say(out, self._messages.called.format(call[1]))
        return True

    def _begin(self, kind: Kind, at: int) -> bool:
        self._kind, self._in_header, self._held = kind, False, self._held[at:]
        self._apart = self._begun[kind]
        return True

    def _body(self, out: list[tuple[Kind, str]], final: bool) -> bool:
        ends = self._messages.ends
        found = [(at, end) for end in ends if (at := self._held.find(end)) >= 0]
        if found:
            at, end = min(found)
            self._say(out, self._held[:at])
            self._held = self._held[at if end in self._messages.headers else at + len(end) :]
            self._in_header = True
            return True
        safe = len(self._held) if final else _safe(self._held, ends)
        self._say(out, self._held[:safe])
        self._held = self._held[safe:]
        return False

    def _say(self, out: list[tuple[Kind, str]], text: str) -> None:
        if text:
            out.append((self._kind, "\n" * self._apart + text))
            self._begun[self._kind], self._apart = True, False


def _safe(text: str, marks: tuple[str, ...]) -> int:
    """How much of a text can be no part of a marker."""
    longest = max(map(len, marks))
    starts = range(max(0, len(text) - longest + 1), len(text))
    return next((at for at in starts if any(mark.startswith(text[at:]) for mark in marks)), len(text))
