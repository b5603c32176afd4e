"""A question with finitely many answers, and how likely a model finds each of them.

- ``Question``: how it is put to a model, and the exact texts that would answer it.
- ``measure``: their likelihoods after one prefill, relative to each other.
- ``together``, ``atogether``: several at once, so that they meet in one batch and share what their prompts
  have in common.

An answer is a JSON object with one key, ``{"urgent": true}``. It says what it answers, and it ends with its
own brace, so no answer is the beginning of another ("Yes", "Yes, but") and no end token has to be scored to
tell them apart. It is also the form that small models judge best in. Of 20 reviews, SmolLM2-135M ranks the
positive ones before the negative ones with an AUC of 0.97 to 1.0 as ``{"sentiment": "positive"}`` or
``{"good": true}``; with bare labels it is 0.53 to 0.86, with a bare Yes or No 0.33 to 0.49, and with the
letters A and B 0.49 to 0.65.
"""

from __future__ import annotations

import asyncio
import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from .. import _async, arguments, prompts, results, thinking
from ..adapter import Adapter
from ..model import Model

T = TypeVar("T")
Turns = list[dict[str, Any]]


@dataclass(frozen=True)
class Option:
    """One of the answers: the JSON value, and the name that its probability gets."""

    value: Any
    key: str
    description: Any = None

    @classmethod
    def of(cls, value: Any, description: Any = None) -> Option:
        return cls(value, value if isinstance(value, str) else written(value), description)


@dataclass(frozen=True)
class Question:
    """``name`` is the key of the answer, ``instructions`` what is asked (a text, or any JSON)."""

    name: str
    instructions: Any
    options: tuple[Option, ...]

    def text(self) -> str:
        """How it is put to the model. It stands last in a prompt, after all that questions share."""
        asked = self.name if self.instructions in (None, "") else shown(self.instructions)
        if any(option.description not in (None, "") for option in self.options):
            options = "".join(f"\n- {_described(option)}" for option in self.options)
        else:
            options = " " + ", ".join(written(option.value) for option in self.options)
        return (
            f"Question: {asked}\nOptions:{options}\n"
            f"Respond with a JSON object that has the one key {written(self.name)}."
        )

    def answer(self, option: Option) -> str:
        return written({self.name: option.value})

    def answers(self) -> list[str]:
        return [self.answer(option) for option in self.options]


def written(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def shown(value: Any) -> str:
    """A text as it is, everything else as JSON."""
    return value if isinstance(value, str) else written(value)


def _described(option: Option) -> str:
    if option.description in (None, ""):
        return written(option.value)
    return f"{written(option.value)}: {shown(option.description)}"


def asked(turns: Turns, text: str) -> Turns:
    """The turns with a text of the user's last. It joins a user's turn, for many templates want the roles to
    take turns."""
    if turns and turns[-1]["role"] == "user" and isinstance(turns[-1]["content"], str):
        return [*turns[:-1], {**turns[-1], "content": f"{turns[-1]['content']}\n\n{text}"}]
    return [*turns, {"role": "user", "content": text}]


@dataclass(frozen=True)
class Measured:
    """The log likelihood of every answer to one question, in the order of its options."""

    logprobs: tuple[float, ...]
    #: Tokens of the prompt, and of all answers together.
    prompt_tokens: int
    answer_tokens: int
    #: What the chat template could not take as it was, and what was done instead.
    notes: tuple[str, ...] = ()

    @property
    def coverage(self) -> float:
        """The share of all texts that the model might have written which these answers are. If it is tiny, it
        would rather have said something else, and the probabilities say little."""
        return min(math.fsum(map(math.exp, self.logprobs)), 1.0)

    def probabilities(self, prior: Measured | None = None, temperature: float = 1.0) -> list[float]:
        """Relative to each other; together they make 1. A ``prior`` is what the model finds likely before it
        has read anything, and is divided out."""
        before = (0.0,) * len(self.logprobs) if prior is None else prior.logprobs
        shifted = [
            (own - its) / temperature if own > -math.inf else own
            for own, its in zip(self.logprobs, before, strict=True)
        ]
        return results.relative(shifted)


def measure(
    model: Model,
    turns: Turns,
    answers: Sequence[str],
    template_arguments: dict[str, Any] | None = None,
    adapter: Adapter | None = None,
) -> Measured:
    """The exact likelihood of each answer after the prompt, which is computed once."""
    given, tags = dict(template_arguments or {}), thinking.detect(model.chat_template)
    if given.get(_SWITCH) is False and _SWITCH not in (model._native.template_variables or ()):
        del given[_SWITCH]  # ``without_thoughts`` says so to every template
        if tags is not None and tags.switch is not None:
            given.setdefault(tags.switch, tags.off)
    if (
        tags is not None and tags.messages is not None
    ):  # an answer has a header, which the prompt must end with
        turns = [*turns, {"role": "assistant", "content": ""}]
        given["continue_final_message"] = True
    prompt = prompts.rendered(model._native, turns, template_arguments=given)
    scores = model.score(prompt, answers, adapter=adapter)
    return Measured(
        tuple(score.logprob for score in scores),
        prompt_tokens=len(prompt),
        answer_tokens=sum(len(score.tokens) for score in scores),
        notes=tuple(prompt.notes),
    )


_SWITCH = "enable_thinking"


def without_thoughts(given: object) -> dict[str, Any]:
    """A thinking model would think before its answer; its template leaves the place for thoughts empty if
    told so. Other templates do not know the argument."""
    own = {} if given is None else arguments.template_arguments("template_arguments", given)
    return {_SWITCH: False, **own}


# Several at once. The native call waits with the GIL released, so a thread a question costs little.

_THREADS = 32


@functools.lru_cache(maxsize=1)  # the last only: after a fork the threads of the parent do not exist
def _pool(pid: int) -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_THREADS, thread_name_prefix="tallow-judge")


def together(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Runs them all at once, the last one in this thread. The first error is raised, and none is lost for it:
    what waits is taken back."""
    if len(tasks) == 1:
        return [tasks[0]()]
    running: list[Future[T]] = [_pool(os.getpid()).submit(task) for task in tasks[:-1]]
    try:
        last = tasks[-1]()
        return [*(future.result() for future in running), last]
    finally:
        for future in running:
            future.cancel()


async def atogether(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """``together`` on an event loop, which goes on meanwhile."""
    loop, pool = asyncio.get_running_loop(), _pool(os.getpid())
    with _async.awake():
        return list(await asyncio.gather(*(loop.run_in_executor(pool, task) for task in tasks)))
