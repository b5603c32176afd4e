"""``tallow.Judge``: DSPy's decision client over a model in this process.

DSPy 3.4 hands outputs of type ``bool``, ``Literal``, ``Noul``, ``Choice`` and ``Score`` to such a client as
questions about a state (instructions, inputs, demos), and takes probabilities back. An ordinary LM would
write them down as JSON; a Judge measures them: the exact likelihood of every answer, after one prefill, with
nothing sampled and nothing to parse.

The prompt is a conversation. Instructions come first, then each demo as turns (its inputs with the questions,
answered one after the other), then the inputs, and the question last: so all questions about one state, and
all states of one program, share what is in front of them, and the engine computes it once. The questions of
a call are answered each by itself and all in one batch.
"""

from __future__ import annotations

import copy
import datetime
import functools
import json
import uuid
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from typing import Any

import dspy  # type: ignore[import-untyped]
from dspy.clients.errors import error_boundary  # type: ignore[import-untyped]
from dspy.dsp.utils.settings import settings  # type: ignore[import-untyped]
from dspy.experimental import Choice, Noul, Score  # type: ignore[import-untyped]
from dspy.utils.callback import with_callbacks  # type: ignore[import-untyped]

from .. import arguments, html
from ..adapter import Adapter
from ..errors import ArgumentTypeError
from ..model import LOAD_OPTIONS, Model
from . import adapted, convert, decisions
from .decisions import Decision
from .lm import _model
from .questions import Measured, Turns, atogether, measure, together, without_thoughts

#: What stands for every input when a prior is measured.
_BLANK = "N/A"


@dataclass(frozen=True)
class _Case:
    """One question in its conversation, and the same with nothing in the inputs if a prior is wanted."""

    question: Decision
    turns: Turns
    blank: Turns | None


@dataclass(frozen=True)
class _Call:
    cases: list[_Case]
    #: What DSPy's cache knows the response by, and the response if it is there.
    request: dict[str, Any]
    cached: dict[str, Any] | None


class Answers(dict[str, Any]):
    """What a Judge answers, by the names of the questions; a notebook shows it as bars."""

    def _repr_html_(self) -> str:
        return html.answers(self)


class Judge(dspy.BaseLM):
    """A decision client for DSPy: ``dspy.configure(lm=tallow.Judge("smollm2"))``, or for one predictor
    ``predict.set_lm(judge)``.

    ``model`` is a ``tallow.Model`` or what one is made from; the arguments of ``Model`` may follow.

    - ``calibrate``: divides the likelihood of each label of a choice by that of the same label where all
      inputs are "N/A" (contextual calibration). A small model has favourite words, and this takes their
      favour away; it costs a second, mostly cached, measurement. Yes-or-no questions and scores stay as they
      are, because to nothing at all "no" and "the lowest" are true answers.
    - ``temperature``: divides the log likelihoods (temperature scaling): above 1 makes the probabilities less
      sure, below 1 surer. Nothing is sampled, so it changes no winner.
    - ``template_arguments``: for the chat template, as for ``tallow.LM``. Thinking is switched off.
    - ``adapter``: a LoRA adapter to measure with, as for ``tallow.LM``; ``judge.adapter`` is the one in use.
    - ``cache``, ``callbacks``: DSPy's own. ``progress``: that of Model, with the ``load`` options.

    Every output needs a finite answer; a ``str`` output, as that of ``ChainOfThought``, is refused by DSPy.
    A demo without any of the outputs teaches a judge nothing, and is left out. ``confidence`` of a Choice or
    Score is the probability of its likeliest option. The history's ``response`` has the ``coverage``: how
    much of all that the model might have said the given answers are. A notebook shows the values of those
    three types as bars.
    """

    supports_decision_requests = True

    def __init__(
        self,
        model: str | Model,
        *,
        temperature: float = 1.0,
        calibrate: bool = False,
        template_arguments: dict[str, Any] | None = None,
        adapter: Any = None,
        cache: bool = True,
        callbacks: list[Any] | None = None,
        progress: Any = True,
        **load: Any,
    ) -> None:
        for name in load:
            if name not in LOAD_OPTIONS:
                known = [*_SETTINGS, "adapter", "callbacks", "progress", *LOAD_OPTIONS]
                arguments.unknown("Judge()", name, known)
        given = {"temperature": temperature, "calibrate": calibrate, "cache": cache}
        self._set({**given, "template_arguments": template_arguments})
        self.language_model: Model = _model(model, load, progress)
        self.adapter: Adapter | None = adapted.chosen(self.language_model, adapter)
        name = adapted.model_string(self.language_model, self.adapter, cached=cache, progress=progress)
        super().__init__(name, cache=cache, callbacks=callbacks, num_retries=0)
        html.show_decisions(Noul, Choice, Score)

    def _set(self, given: dict[str, Any]) -> None:
        for name, value in given.items():
            setattr(self, name, _SETTINGS[name](name, value))

    @with_callbacks
    def __call__(self, prompt: Any = None, *, state: Any = None, questions: Any = None, **others: Any) -> Any:
        """The probabilities of every answer to each of ``questions`` (name -> question) about ``state``, as
        DSPy's decision protocol has them: ``{"noul": p}`` or ``{"probabilities": {...}, "confidence": c}``,
        by the names of the questions. ``state`` is what DSPy makes of a call, or a text. A ``prompt``, and
        whatever ``others`` there are, is refused."""
        with self._errors():
            call = self._begin(prompt, state, questions, others)
            response = call.cached or self._response(call, together(self._tasks(call)))
            return self._finish(call, response)

    @with_callbacks
    async def acall(
        self, prompt: Any = None, *, state: Any = None, questions: Any = None, **others: Any
    ) -> Any:
        """As a call, to await: ``state`` and ``questions``; ``prompt`` and ``others`` are refused."""
        with self._errors():
            call = self._begin(prompt, state, questions, others)
            response = call.cached or self._response(call, await atogether(self._tasks(call)))
            return self._finish(call, response)

    # One call

    def _errors(self) -> AbstractContextManager[Any]:
        """Ours become DSPy's, as those of ``tallow.LM``."""
        stack = ExitStack()
        stack.enter_context(error_boundary(self.model, provider="tallow"))
        stack.enter_context(convert.as_lm15())
        return stack

    def _begin(self, prompt: Any, state: Any, asked: Any, others: dict[str, Any]) -> _Call:
        if prompt is not None or "messages" in others or state is None or asked is None:
            raise ArgumentTypeError(
                "a Judge answers questions about a state (state=..., questions=...) and writes no text; "
                "use tallow.LM for prompts"
            )
        for name in others:
            arguments.unknown("Judge()", name, ["state", "questions"])
        if not isinstance(asked, Mapping) or not asked:
            arguments.wrong_type("questions", asked, "a dict of name -> question, with at least one")
        if self.cache:  # which a copy may have where the original had none
            self.model = adapted.model_string(self.language_model, self.adapter, cached=True)
        cases = self._cases(decisions.state(state), [decisions.decision(*item) for item in asked.items()])
        request = self._request(cases)
        return _Call(cases, request, dspy.cache.get(request) if self.cache else None)

    def _cases(self, state: decisions.State, every: list[Decision]) -> list[_Case]:
        blank = state.blanked(_BLANK)
        return [
            _Case(
                one,
                decisions.conversation(state, every, one),
                decisions.conversation(blank, every, one)
                if self.calibrate and one.kind == "choice"
                else None,
            )
            for one in every
        ]

    def _request(self, cases: list[_Case]) -> dict[str, Any]:
        """Everything that the answers depend on."""
        return {
            "client": "tallow.Judge",
            "model": self.model,
            "temperature": self.temperature,
            "calibrate": self.calibrate,
            "template_arguments": self.template_arguments,
            "cases": [[case.question.name, case.turns, case.question.answers()] for case in cases],
        }

    def _tasks(self, call: _Call) -> list[Callable[[], Measured]]:
        """The measurements: those of the cases, then those of the priors."""
        wanted = [(case.turns, case) for case in call.cases]
        wanted += [(case.blank, case) for case in call.cases if case.blank is not None]
        return [
            functools.partial(
                measure,
                self.language_model,
                turns,
                case.question.answers(),
                self.template_arguments,
                self.adapter,
            )
            for turns, case in wanted
        ]

    def _response(self, call: _Call, measured: list[Measured]) -> dict[str, Any]:
        priors = iter(measured[len(call.cases) :])
        answers, coverage = {}, {}
        for case, own in zip(call.cases, measured, strict=False):
            prior = None if case.blank is None else next(priors)
            found = own.probabilities(prior, self.temperature)
            answers[case.question.name] = case.question.evidence(found)
            coverage[case.question.name] = own.coverage
        prompt = sum(one.prompt_tokens for one in measured)
        answer = sum(one.answer_tokens for one in measured)
        usage = {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}
        notes = {"notes": list(measured[0].notes)} if measured[0].notes else {}
        return {"model": self.model, "usage": usage, "answers": answers, "coverage": coverage, **notes}

    def _finish(self, call: _Call, response: dict[str, Any]) -> dict[str, Any]:
        """Cache, usage and history, which DSPy leaves to a decision client."""
        if self.cache and call.cached is None:
            dspy.cache.put(call.request, response)
        usage = {} if call.cached is not None else response["usage"]
        if settings.usage_tracker and usage:
            settings.usage_tracker.add_usage(self.model, usage)
        if not settings.disable_history:
            self.update_history(self._entry(call, response, usage))
        return Answers(copy.deepcopy(response["answers"]))

    def _entry(self, call: _Call, response: dict[str, Any], usage: dict[str, int]) -> dict[str, Any]:
        """For ``inspect_history``: the conversation, with the last turn of each question in a row."""
        first, *_ = call.cases
        return {
            "prompt": None,
            "messages": [*first.turns[:-1], *(case.turns[-1] for case in call.cases)],
            "kwargs": {},
            "request": call.request,
            "response": copy.deepcopy(response),  # the cache holds the very object
            "outputs": [json.dumps(response["answers"])],
            "usage": usage,
            "cache_hit": call.cached is not None,
            "cost": None,
            "timestamp": datetime.datetime.now().isoformat(),
            "uuid": str(uuid.uuid4()),
            "model": self.model,
            "response_model": self.model,
            "model_type": self.model_type,
        }

    # As a value

    def copy(self, **given: Any) -> Judge:
        """The same model with other settings (``given``; ``adapter=None`` is the model alone) and a history
        of its own. A ``rollout_id`` asks for another sample; a measurement has only one, so it is ignored,
        and with it the temperature that DSPy's modules sample rollouts at."""
        if "rollout_id" in given:
            given = {name: given[name] for name in given if name not in ("rollout_id", "temperature")}
        callbacks = given.pop("callbacks", self.callbacks)
        adapter = adapted.chosen(self.language_model, given.pop("adapter", self.adapter))
        for name in given:
            if name not in _SETTINGS:
                arguments.unknown("Judge.copy()", name, [*_SETTINGS, "adapter", "callbacks"])
        new = super().copy()
        new._set(given)
        if adapter != self.adapter:
            new.adapter = adapter
            new.model = adapted.model_string(self.language_model, adapter, cached=new.cache)
        new.callbacks = list(callbacks or [])
        return new

    def dump_state(self) -> dict[str, Any]:
        """As JSON: where the model came from, and the settings. For DSPy, which saves programs."""
        state = super().dump_state()
        return {
            "_dspy_lm_class": state["_dspy_lm_class"],
            "model": self.language_model.to_state(),
            **{name: getattr(self, name) for name in _SETTINGS},
            **({} if self.adapter is None else {"adapter": adapted.state(self.adapter)}),
        }

    @classmethod
    def load_state(cls, state: dict[str, Any], *, allow_custom_lm_class: bool = False) -> Judge:
        """The judge that ``state``, made by ``dump_state``, describes. DSPy's safeguard
        ``allow_custom_lm_class`` changes nothing here."""
        given = {name: value for name, value in state.items() if name != "_dspy_lm_class"}
        model, adapter = Model.from_state(given.pop("model")), given.pop("adapter", None)
        return cls(model, adapter=None if adapter is None else adapted.from_state(model, adapter), **given)

    def stats(self) -> dict[str, Any]:
        """What the engine has done so far; see ``Model.stats``."""
        return self.language_model.stats()

    def close(self) -> None:
        """Ends the native engine of the model, as ``Model.close``."""
        self.language_model.close()

    def __repr__(self) -> str:
        own = "".join(f" {name}={getattr(self, name)!r}" for name in ("temperature", "calibrate"))
        own += "" if self.adapter is None else f" adapter={self.adapter.name!r}"
        return f"<tallow.Judge {self.model!r}{own}>"


def _positive(name: str, value: object) -> float:
    result = arguments.number(name, value)
    if result <= 0:
        arguments.wrong_value(name, value, "more than 0")
    return result


_SETTINGS: dict[str, Callable[[str, Any], Any]] = {
    "temperature": _positive,
    "calibrate": arguments.boolean,
    "template_arguments": lambda name, value: without_thoughts(value),
    "cache": arguments.boolean,
}
