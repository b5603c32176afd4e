"""Thoughts: which tags a model's template puts around them, and splitting them off an answer.

==========================  ===============================  ===============================================
tags                        families                         switch
==========================  ===============================  ===============================================
``<think>``                 Qwen3 to 3.6, SmolLM3, GLM 4.7,  ``enable_thinking``; DeepSeek-R1's and LFM2.5
                            Laguna, Nemotron 3, EXAONE 4,    none, Granite 3 ``thinking``
                            LFM2.5, DeepSeek-R1's, Granite
                            3, Hunyuan
``<thinking>``              some fine-tunes                  rarely one
``[THINK]``                 Magistral, Ministral 3           none, or ``reasoning_effort``
``<|channel>thought``       Gemma 4                          ``enable_thinking``
``<seed:think>``            Seed-OSS                         ``thinking_budget``: 0 is off, -1 no limit
``<|START_THINKING|>``      Command R7B                      ``enable_thinking``, if any
``<|inner_prefix|>``        Apertus                          ``enable_thinking``
channel ``analysis``        gpt-oss (harmony)                ``reasoning_effort``, "low" at least
recipient ``self``          Muse Glimmer                     ``reasoning_strength``, "low" at least
==========================  ===============================  ===============================================

``detect(template)`` -> ``Tags``; ``split`` and ``splitter`` part an answer into thought and text. A thought
stands at the beginning of an answer or nowhere: a tag further on is text, since answers may be about tags. In
the last two an answer is a row of messages (``channels``), and each may be a thought.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Literal

from . import channels
from .tools.template import last_texts, variables

Kind = Literal["thinking", "text"]


@dataclass(frozen=True, slots=True)
class Tags:
    """What stands around a thought."""

    open: str
    close: str
    #: Whether the generation prompt ends with the opening tag, so that the answer begins inside of a thought.
    opened: bool = False
    #: The template's variable that switches thinking on and off, if it has one.
    switch: str | None = None
    #: What that variable is without thoughts, and with them; None: the effort that is asked for.
    off: Any = False
    on: Any = True
    #: What models write between a thought and the answer.
    between: str = "\n\n"
    #: What may stand around an answer that is no call.
    answer: tuple[str, str] = ("", "")
    #: How an answer is written as messages, if it is.
    messages: channels.Messages | None = None

    @property
    def literals(self) -> tuple[str, ...]:
        """All that is written in so many characters; there may be control tokens among it."""
        ends = self.messages.ends if self.messages else ()
        return tuple(
            text for text in (self.open, self.close, self.between.strip(), *self.answer, *ends) if text
        )

    def opened_by(self, prompt: str) -> bool:
        """Whether a rendered prompt ends inside of a thought: surer than ``opened``, which saw no prompt."""
        return self.messages is None and prompt.rstrip().endswith(self.open)


#: The words of a template that tell its tags, all of a row; the first row that fits counts.
_TAGS: tuple[tuple[tuple[str, ...], Tags], ...] = (
    (
        ("<|channel|>", "analysis", "<|message|>"),
        Tags(
            "<|channel|>analysis<|message|>",
            "<|end|>",
            off="low",
            on=None,
            between="<|start|>assistant",
            answer=("<|channel|>final<|message|>", ""),
            messages=channels.HARMONY,
        ),
    ),
    (
        ("to=self<|message|>",),
        Tags(
            " to=self<|message|>",
            "<|eom|>",
            off="low",
            on=None,
            between="<|start|>assistant",
            answer=(" to=user<|message|>", ""),
            messages=channels.ATEM,
        ),
    ),
    (("<|channel>thought", "<channel|>"), Tags("<|channel>thought", "<channel|>", between="")),
    (
        ("<|START_THINKING|>", "<|END_THINKING|>"),
        Tags(
            "<|START_THINKING|>",
            "<|END_THINKING|>",
            between="",
            answer=("<|START_RESPONSE|>", "<|END_RESPONSE|>"),
        ),
    ),
    (("</seed:think>",), Tags("<seed:think>", "</seed:think>", off=0, on=-1)),
    (("<|inner_prefix|>", "<|inner_suffix|>"), Tags("<|inner_prefix|>", "<|inner_suffix|>", between="")),
    (("</think>", "<response>"), Tags("<think>", "</think>", answer=("<response>", "</response>"))),
    (("</think>", "<answer>"), Tags("<think>", "</think>", answer=("<answer>\n", "\n</answer>"))),
    (("</think>",), Tags("<think>", "</think>")),
    (("</thinking>",), Tags("<thinking>", "</thinking>")),
    (("[/THINK]",), Tags("[THINK]", "[/THINK]", between="")),
)
_SWITCHES = ("enable_thinking", "thinking", "reasoning_effort", "thinking_budget", "reasoning_strength")


def detect(template: str | None) -> Tags | None:
    """The tags of a chat template; None if it knows no thoughts."""
    text = template or ""
    tags = next((tags for words, tags in _TAGS if all(word in text for word in words)), None)
    if tags is None:
        return None
    names = variables(text)
    switch = next((name for name in _SWITCHES if name in names), None)
    opened = any(last.rstrip().endswith(tags.open) for last in last_texts(text))
    if switch == "reasoning_effort" and tags.messages is None:
        tags = replace(tags, off="none", on=None)
    return replace(tags, opened=opened and tags.messages is None, switch=switch)


def splitter(tags: Tags, opened: bool = False) -> Splitter | channels.Splitter:
    """A reader of one answer. ``opened``: the prompt ended with the opening tag."""
    return channels.Splitter(tags.messages) if tags.messages else Splitter(tags, opened)


def split(text: str, tags: Tags, opened: bool = False) -> tuple[str, str]:
    """Thought and text of a whole answer. ``opened``: the prompt ended with the opening tag."""
    reader = splitter(tags, opened)
    pieces = [*reader.push(text), *reader.finish()]
    thinking = "".join(piece for kind, piece in pieces if kind == "thinking")
    return thinking, "".join(piece for kind, piece in pieces if kind == "text")


class Splitter:
    """Takes an answer apart as it comes in. What might be part of a tag is held back until that is known."""

    def __init__(self, tags: Tags, opened: bool = False) -> None:
        self._tags = tags
        self._held = ""
        #: "start": it may begin with a tag. "lead": white space after that. "thinking". "gap": line breaks
        #: after the closing tag. "frame": what may stand before the answer. "text": all that follows.
        self._state = "lead" if opened else "start"
        self._opened = opened
        #: What ends the answer, once something began it.
        self._close = ""

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
            self._state = "thinking" if self._state == "lead" else "frame"
        if self._state == "thinking":
            return self._thinking(out, final)
        if self._state == "frame" and not self._framed(final):
            return False
        self._text(out, final)
        return False

    def _start(self, final: bool) -> bool:
        bare = self._held.lstrip()
        if bare.startswith(self._tags.open):
            self._held, self._state = bare[len(self._tags.open) :], "lead"
            return True
        if self._tags.open.startswith(bare) and not final:
            return False
        self._state = "frame"
        return True

    def _framed(self, final: bool) -> bool:
        """Takes what may stand before the answer; False while that is open."""
        before = self._tags.answer[0]
        bare = self._held.lstrip()
        if before and bare.startswith(before):
            self._held, self._close = bare[len(before) :], self._tags.answer[1]
        elif before.startswith(bare) and bare != before and not final:
            return False
        self._state = "text"
        return True

    def _text(self, out: list[tuple[Kind, str]], final: bool) -> None:
        before, found, after = self._held.partition(self._close) if self._close else (self._held, "", "")
        if found:  # what ends the answer; there is no second
            self._close = ""
            keep = before + after
            self._held = ""
        else:
            safe = len(self._held) if final or not self._close else _safe(self._held, self._close)
            keep, self._held = self._held[:safe], self._held[safe:]
        if keep:
            out.append(("text", keep))

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
