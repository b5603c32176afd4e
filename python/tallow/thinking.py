"""Thoughts: which tags a model's template puts around them, and splitting them off an answer.

====================  ===============================  =====================================================
tags                  families                         switch
====================  ===============================  =====================================================
``<think>``           Qwen3, SmolLM3, DeepSeek-R1's    ``enable_thinking`` (Qwen3, SmolLM3); R1 always thinks
``<thinking>``        some fine-tunes                  rarely one
``[THINK]``           Magistral, Ministral 3           none, or ``reasoning_effort``
====================  ===============================  =====================================================

``detect(template)`` -> ``Tags``; ``split`` and ``Splitter`` part an answer into thought and text. A thought
stands at the beginning of an answer or nowhere: a tag further on is text, since answers may be about tags.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from .tools.template import last_texts, variables

Kind = Literal["thinking", "text"]

_TAGS = (("<think>", "</think>"), ("<thinking>", "</thinking>"), ("[THINK]", "[/THINK]"))
_SWITCHES = ("enable_thinking", "thinking", "reasoning_effort")


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands around a thought."""

    open: str
    close: str
    #: Whether the generation prompt ends with the opening tag, so that the answer begins inside of a thought.
    opened: bool = False
    #: The template's variable that switches thinking on and off, if it has one.
    switch: str | None = None

    def opened_by(self, prompt: str) -> bool:
        """Whether a rendered prompt ends inside of a thought: surer than ``opened``, which saw no prompt."""
        return prompt.rstrip().endswith(self.open)


def detect(template: str | None) -> Tags | None:
    """The tags of a chat template; None if it knows no thoughts."""
    if not template:
        return None
    for start, end in _TAGS:
        if end in template:
            opened = any(text.rstrip().endswith(start) for text in last_texts(template))
            names = variables(template)
            switch = next((name for name in _SWITCHES if name in names), None)
            return Tags(start, end, opened, switch)
    return None


def split(text: str, tags: Tags, opened: bool = False) -> tuple[str, str]:
    """Thought and text of a whole answer. ``opened``: the prompt ended with the opening tag."""
    splitter = Splitter(tags, opened)
    pieces = [*splitter.push(text), *splitter.finish()]
    thinking = "".join(piece for kind, piece in pieces if kind == "thinking")
    return thinking, "".join(piece for kind, piece in pieces if kind == "text")


class Splitter:
    """Takes an answer apart as it comes in. What might be part of a tag is held back until that is known."""

    def __init__(self, tags: Tags, opened: bool = False) -> None:
        self._tags = tags
        self._held = ""
        #: "start": it may begin with a tag. "lead": white space after that. "thinking". "gap": line breaks
        #: after the closing tag. "text": all that follows.
        self._state = "lead" if opened else "start"
        self._opened = opened

    def push(self, text: str) -> list[tuple[Kind, str]]:
        self._held += text
        return self._drain(final=False)

    def finish(self) -> list[tuple[Kind, str]]:
        return self._drain(final=True)

    def _drain(self, final: bool) -> list[tuple[Kind, str]]:
        out: list[tuple[Kind, str]] = []
        while self._step(out, final):
            pass
        return out

    def _step(self, out: list[tuple[Kind, str]], final: bool) -> bool:
        """One change of state; False when nothing more can be said of the text so far."""
        if self._state == "start":
            return self._start(final)
        if self._state in ("lead", "gap"):
            self._held = self._held.lstrip("\n")
            if self._state == "lead" and self._opened and self._again(final) is None:
                return False
            if not self._held:
                return False
            self._state = "thinking" if self._state == "lead" else "text"
        if self._state == "thinking":
            return self._thinking(out, final)
        if self._held:
            out.append(("text", self._held))
        self._held = ""
        return False

    def _start(self, final: bool) -> bool:
        bare = self._held.lstrip()
        if bare.startswith(self._tags.open):
            self._held, self._state = bare[len(self._tags.open) :], "lead"
            return True
        if self._tags.open.startswith(bare) and not final:
            return False
        self._state = "text"
        return True

    def _again(self, final: bool) -> bool | None:
        """Some models write the opening tag again, after a prompt that ended with it."""
        bare = self._held.lstrip()
        if bare.startswith(self._tags.open):
            self._held, self._opened = bare[len(self._tags.open) :].lstrip("\n"), False
            return True
        return None if self._tags.open.startswith(bare) and not final else False

    def _thinking(self, out: list[tuple[Kind, str]], final: bool) -> bool:
        thought, found, rest = self._held.partition(self._tags.close)
        if found:
            if thought.rstrip("\n"):
                out.append(("thinking", thought.rstrip("\n")))
            self._held, self._state = rest, "gap"
            return True
        keep = len(self._held) if final else _safe(self._held, self._tags.close)
        if self._held[:keep]:
            out.append(("thinking", self._held[:keep]))
        self._held = self._held[keep:]
        return False


def _safe(text: str, mark: str) -> int:
    """How much of a text can be no part of a marker, nor of the line breaks before it."""
    starts = range(max(0, len(text) - len(mark) + 1), len(text))
    at = next((at for at in starts if mark.startswith(text[at:])), len(text))
    return len(text[:at].rstrip("\n"))
