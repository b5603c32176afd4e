"""DSPy's decision protocol, read and written: states become conversations, questions become ``Question``,
probabilities become the evidence that DSPy decodes. Plain functions; nothing here runs a model.

A state is ``{"instructions", "input_fields", "inputs", "demos"}``; a question ``{"type", "instructions",
"criteria"}``, with type ``noul`` (yes or no), ``choice`` (criteria: label -> description) or ``score``
(criteria: descriptions of the levels 0, 1, ...).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn

from dspy import lm15  # type: ignore[import-untyped]

from .. import arguments
from ..errors import InvalidRequestError
from .questions import Option, Question, Turns, asked, shown

_STATE_KEYS = ("instructions", "input_fields", "inputs", "demos")
_QUESTION_KEYS = ("type", "instructions", "criteria")
_KINDS = ("noul", "choice", "score")
#: How DSPy marks an image, a file or a sound inside a text.
_MEDIA = "<<CUSTOM-TYPE-START-IDENTIFIER>>"


# Questions


@dataclass(frozen=True)
class Decision(Question):
    """A question as DSPy asks it."""

    kind: str = "choice"

    def evidence(self, probabilities: Sequence[float]) -> dict[str, Any]:
        """What DSPy decodes. A choice or score is as confident as its likeliest option is probable."""
        by_key = dict(zip((option.key for option in self.options), probabilities, strict=True))
        if self.kind == "noul":
            return {"noul": by_key["true"]}
        confidence = max(probabilities)
        if self.kind == "score":
            return {"probabilities": {int(key): p for key, p in by_key.items()}, "confidence": confidence}
        return {"probabilities": by_key, "confidence": confidence}

    def option(self, given: Any, where: str) -> Option:
        """The option that a demo chose: the value itself, or evidence for it, as a bootstrapped demo has."""
        key = self._key(given)
        for option in self.options:
            if option.key == key:
                return option
        names = ", ".join(option.key for option in self.options)
        arguments.wrong_value(where, given, f"one of {names}, or evidence for one of them")

    def _key(self, given: Any) -> str | None:
        if isinstance(given, Mapping):
            if self.kind == "score" and given.get("level") is not None:
                return str(given["level"])
            if "value" in given:
                return self._key(given["value"])
            if self.kind == "noul" and "noul" in given:
                return self._key(given["noul"] >= 0.5)
            chances = given.get("probabilities")
            return str(max(chances, key=chances.get)) if chances else None
        if self.kind == "noul":
            key = str(given).strip().lower()
            return {"yes": "true", "no": "false"}.get(key, key)
        if self.kind == "score" and isinstance(given, float):
            return str(round(given))
        return str(given)


def decision(name: Any, given: Any) -> Decision:
    """Checks a question, and gives it its options."""
    where = f"questions[{name!r}]"
    if not isinstance(name, str) or not name:
        arguments.wrong_type("a key of questions", name, "a str with at least one character")
    if not isinstance(given, Mapping):
        arguments.wrong_type(where, given, 'a dict like {"type": "noul", "instructions": "Is it urgent?"}')
    for key in given:
        if key not in _QUESTION_KEYS:
            arguments.unknown(where, key, _QUESTION_KEYS)
    kind = arguments.choice(f'{where}["type"]', given.get("type"), _KINDS)
    options = _options(f'{where}["criteria"]', kind, given.get("criteria"))
    return Decision(name, given.get("instructions"), options, kind)


def _options(where: str, kind: str, criteria: Any) -> tuple[Option, ...]:
    if kind == "noul":
        if criteria is not None and not (
            isinstance(criteria, Mapping) and criteria.keys() <= {"true", "false"}
        ):
            arguments.wrong_value(where, criteria, 'a dict with "true" and "false", or None')
        told = criteria or {}
        return Option.of(True, told.get("true")), Option.of(False, told.get("false"))
    if kind == "score":
        if isinstance(criteria, str) or not isinstance(criteria, Sequence) or len(criteria) < 2:
            arguments.wrong_value(
                where, criteria, "a list of at least two descriptions, the lowest level first"
            )
        return tuple(Option.of(level, description) for level, description in enumerate(criteria))
    if not isinstance(criteria, Mapping) or not criteria:
        arguments.wrong_value(where, criteria, "a dict of label -> description (or None)")
    return tuple(
        Option.of(arguments.text(f"a key of {where}", label), description)
        for label, description in criteria.items()
    )


# States


@dataclass(frozen=True)
class State:
    instructions: str
    inputs: Mapping[str, Any]
    demos: tuple[Mapping[str, Any], ...] = ()
    input_fields: str = ""

    def blanked(self, text: str) -> State:
        """The same with nothing in its inputs."""
        return replace(self, inputs=dict.fromkeys(self.inputs, text))


def state(given: Any) -> State:
    """Checks a state. A plain text is an input without instructions."""
    if isinstance(given, str):
        return State("", {"text": arguments.text("state", given)})
    if not isinstance(given, Mapping):
        arguments.wrong_type("state", given, f"a text, or a dict with {', '.join(_STATE_KEYS)}")
    for key in given:
        if key not in _STATE_KEYS:
            arguments.unknown("state", key, _STATE_KEYS)
    inputs = given.get("inputs")
    if not isinstance(inputs, Mapping):
        arguments.wrong_type('state["inputs"]', inputs, "a dict of name -> value")
    demos = given.get("demos") or ()
    for at, demo in enumerate(demos):
        if not isinstance(demo, Mapping):
            arguments.wrong_type(f'state["demos"][{at}]', demo, "a dict of name -> value")
    instructions = given.get("instructions")
    return State(
        "" if instructions is None else shown(instructions),
        inputs,
        tuple(demos),
        arguments.text('state["input_fields"]', given.get("input_fields") or ""),
    )


def conversation(state: State, every: Sequence[Decision], one: Decision) -> Turns:
    """The prompt of one question; all but its end is the same for ``every`` question of the state."""
    turns = _opening(state)
    for at, demo in enumerate(state.demos):
        turns.extend(_demo(demo, every, f'state["demos"][{at}]'))
    return asked([*turns, _user(_inputs(state.inputs, 'state["inputs"]'))], one.text())


def _opening(state: State) -> Turns:
    fields = f"The input fields are:\n{state.input_fields}" if state.input_fields else ""
    text = "\n\n".join(part for part in (state.instructions, fields) if part)
    return [{"role": "system", "content": text}] if text else []


def _demo(demo: Mapping[str, Any], every: Sequence[Decision], where: str) -> Turns:
    """Its inputs once, and its answers one after the other. Without an answer it has nothing to show."""
    names = {one.name for one in every}
    answered = [one for one in every if demo.get(one.name) is not None]
    if not answered:
        return []
    turns = [_user(_inputs({key: value for key, value in demo.items() if key not in names}, where))]
    for one in answered:
        option = one.option(demo[one.name], f"{where}[{one.name!r}]")
        turns = asked(turns, one.text())
        turns.append({"role": "assistant", "content": one.answer(option)})
    return turns


def _user(text: str) -> dict[str, Any]:
    return {"role": "user", "content": text}


def _inputs(inputs: Mapping[str, Any], where: str) -> str:
    return "\n".join(f"{name}: {_input(value, f'{where}[{name!r}]')}" for name, value in inputs.items())


def _input(value: Any, where: str) -> str:
    try:
        text = arguments.text(where, shown(value))
    except (TypeError, ValueError) as error:
        if isinstance(error, InvalidRequestError):
            raise
        arguments.wrong_type(where, value, "a text, or what can be written as JSON")
    if _MEDIA in text:
        _no_media(where)
    return text


def _no_media(where: str) -> NoReturn:
    raise lm15.UnsupportedFeatureError(
        f"{where} holds an image, a file or a sound; tallow reads text only", feature=where
    )
