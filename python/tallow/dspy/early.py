"""What ``BootstrapFinetune`` would fail for after the teacher has run, said before.

It trains the LM that each predictor has of its own, so ``dspy.configure(lm=...)`` is not enough. DSPy 3.4
asks at once whether all predictors have one, drops the answer, runs the teacher over the whole trainset, and
then raises. It has no hook before that, so its question is replaced by one that raises, for programs that
answer with a ``tallow.LM`` and no others; it looks at the optimizer's settings at the same time. This is the
only place that changes DSPy; where the question has gone, nothing is done.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any

import dspy  # type: ignore[import-untyped]
from dspy.teleprompt import bootstrap_finetune  # type: ignore[import-untyped]

from ..errors import InvalidRequestError
from . import train_kwargs
from .provider import Provider

_QUESTION = "all_predictors_have_lms"


def say(ours: type) -> None:
    """From now on, for programs whose LM is one of ``ours``."""
    asked = getattr(bootstrap_finetune, _QUESTION, None)
    if asked is None or hasattr(asked, "says"):
        return

    def all_predictors_have_lms(program: Any) -> bool:
        named = program.named_predictors()
        lms = [predictor.lm for _, predictor in named]
        if any(isinstance(lm, ours) for lm in (dspy.settings.lm, *lms)):
            _check_set([name for name, predictor in named if predictor.lm is None])
            _check_settings(sys._getframe(1).f_locals.get("self"), lms)
        return bool(asked(program))

    all_predictors_have_lms.says = True  # type: ignore[attr-defined]
    setattr(bootstrap_finetune, _QUESTION, all_predictors_have_lms)


def _check_set(missing: list[str]) -> None:
    if missing:
        raise InvalidRequestError(
            f"{', '.join(map(repr, missing))} of the student has no LM of its own, which is what "
            "BootstrapFinetune trains; dspy.configure(lm=...) alone is not enough. Call "
            "student.set_lm(lm) first"
        )


def _check_settings(optimizer: Any, lms: Iterable[Any]) -> None:
    if not isinstance(optimizer, bootstrap_finetune.BootstrapFinetune):
        return
    for lm in lms:
        if isinstance(lm.provider, Provider) and lm in _Keys(optimizer.train_kwargs):
            train_kwargs.read(optimizer.train_kwargs[lm] or lm.train_kwargs)
        adapter = optimizer.adapter[lm] if lm in _Keys(optimizer.adapter) else None
        _check_adapter(adapter or dspy.settings.adapter)


class _Keys:
    """What DSPy's dicts have: one that stands for all LMs has every key."""

    def __init__(self, of: Any) -> None:
        self._of = of

    def __contains__(self, lm: Any) -> bool:
        return lm in self._of or hasattr(self._of, "default_factory")


def _check_adapter(adapter: Any) -> None:
    written = getattr(type(adapter), "format_finetune_data", None)
    if written is dspy.JSONAdapter.format_finetune_data:
        raise InvalidRequestError(
            f"DSPy cannot write rows to train on with its {type(adapter).__name__}; give BootstrapFinetune "
            "adapter=tallow.dspy.JSONAdapter(), which can, and asks the same way"
        )
    known = getattr(bootstrap_finetune, "infer_data_format", None)
    if adapter is None or known is None:
        return
    try:
        known(adapter)
    except ValueError as error:
        raise InvalidRequestError(
            f"BootstrapFinetune takes no {type(adapter).__name__}, but adapters that derive from "
            "dspy.ChatAdapter; derive it from that, or train without the optimizer: "
            "lm.finetune(tallow.dspy.finetune_rows(program, examples, adapter=adapter))"
        ) from error
