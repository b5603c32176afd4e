"""DSPy's modules and optimizers to their end on a model with random weights, in eight threads: no answer
fails to parse, none is asked for a second time, and nothing is raised inside.

The tiny model writes nonsense, so many a text runs into ``max_tokens`` and has to be closed there. More of
them, on a real model: ``benches/programs.py optimizers``.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from typing import Any, Literal

import pytest

import tallow
from conftest import copy_family, needed

dspy = needed("dspy")
from dspy.utils.callback import BaseCallback  # noqa: E402

from test_never_fails import widen  # noqa: E402

THREADS, TOKENS = 8, 300


class Triage(dspy.Signature):
    """Which team does the message go to, and is it urgent?"""

    message: str = dspy.InputField()
    team: Literal["kitchen", "rooms", "desk"] = dspy.OutputField()
    urgent: bool = dspy.OutputField()
    stars: int = dspy.OutputField(ge=1, le=5)


EXAMPLES = [
    dspy.Example(message=f"Message {at}", team="desk", urgent=at % 2 == 0, stars=3).with_inputs("message")
    for at in range(4)
]


def metric(example: Any, prediction: Any, trace: Any = None, *_: Any) -> float:
    """Something that varies, and that some predictions reach: optimizers have little to do otherwise."""
    return float(prediction.urgent == example.urgent) / (1 if trace is None else 2)


def reward(arguments: dict[str, Any], prediction: Any) -> float:
    return 0.0  # never enough: all tries are made, and Refine asks for advice


def look_up(word: str) -> str:
    """Looks a word up."""
    return "nothing"


def add(a: int, b: int = 1) -> int:
    """Adds two numbers."""
    return a + b


class Seen(BaseCallback):
    """Counts, in whichever threads: calls of the model, answers that an adapter refused, and Predicts that
    asked more than once or ended in an exception."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.errors: list[str] = []
        self._lock, self._local = threading.Lock(), threading.local()

    def _note(self, what: str, error: BaseException | None = None) -> None:
        with self._lock:
            self.counts[what] += 1
            self.errors += [f"{what}: {error}"] if error else []

    def on_module_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self._local.inside = [
            *getattr(self._local, "inside", []),
            0 if type(instance) is dspy.Predict else None,
        ]

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        calls = self._local.inside.pop()
        if calls is not None and calls > 1:
            self._note("second call")
        if calls is not None and exception is not None:
            self._note("error", exception)

    def on_lm_start(self, call_id: str, instance: Any, inputs: Any) -> None:
        self._note("call")
        inside = getattr(self._local, "inside", [])
        if inside and inside[-1] is not None:
            inside[-1] += 1

    def on_adapter_parse_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        if exception is not None:
            self._note("parse failure", exception)


@pytest.fixture(scope="module")
def lm(tmp_path_factory: pytest.TempPathFactory) -> tallow.LM:
    folder = copy_family("llama-gqa-tied", tmp_path_factory.mktemp("models") / "wide")
    widen(folder)
    return tallow.LM(tallow.Model(folder), temperature=1.0, max_tokens=TOKENS, cache=False, seed=1)


def evaluated(program: Any) -> None:
    judge = dspy.Evaluate(devset=EXAMPLES, metric=metric, num_threads=THREADS, max_errors=1)
    assert len(judge(program).results) == len(EXAMPLES)


def student() -> Any:
    return dspy.ChainOfThought(Triage)


def parallel() -> None:
    found = dspy.Parallel(num_threads=THREADS, disable_progress_bar=True, max_errors=1)(
        [(student(), example) for example in EXAMPLES * 4]
    )
    assert all(1 <= one.stars <= 5 for one in found)


def best_of_n() -> None:
    evaluated(dspy.BestOfN(module=student(), N=3, reward_fn=reward, threshold=1.0))


def refine() -> None:
    evaluated(dspy.Refine(module=student(), N=2, reward_fn=reward, threshold=1.0))


def react() -> None:
    evaluated(dspy.ReAct(Triage, tools=[look_up, add], max_iters=2))


def bootstrap() -> None:
    tuned = dspy.BootstrapFewShot(metric=metric, max_bootstrapped_demos=2, max_labeled_demos=1, max_rounds=2)
    evaluated(tuned.compile(student(), trainset=EXAMPLES))


def simba() -> None:
    sizes = {"bsize": 4, "num_candidates": 2, "max_steps": 1, "max_demos": 1}
    tuned = dspy.SIMBA(metric=metric, num_threads=THREADS, **sizes)
    evaluated(tuned.compile(student(), trainset=EXAMPLES))


def copro() -> None:
    tuned = dspy.COPRO(metric=metric, breadth=3, depth=1)
    options = {"num_threads": THREADS, "display_progress": False, "display_table": 0}
    evaluated(tuned.compile(student(), trainset=EXAMPLES, eval_kwargs=options))


CHAT, JSON = dspy.ChatAdapter, dspy.JSONAdapter
#: What runs, with which adapter, and the calls of the model that it makes at least.
RUNS: list[tuple[Callable[[], None], Any, int]] = [
    (parallel, CHAT, 16),
    (best_of_n, CHAT, 12),
    (refine, CHAT, 12),
    (refine, JSON, 12),
    (react, CHAT, 8),
    (react, JSON, 8),
    (bootstrap, CHAT, 6),
    (simba, CHAT, 8),
    (simba, JSON, 8),
    (copro, CHAT, 8),
]


@pytest.mark.parametrize(
    ("run", "adapter", "calls"), RUNS, ids=[f"{run.__name__}-{one.__name__}" for run, one, _ in RUNS]
)
def test_it_ends_and_every_answer_parses_at_the_first_call(lm, run, adapter, calls):
    seen = Seen()
    with dspy.context(lm=lm, adapter=adapter(), callbacks=[seen]):
        run()
    assert not seen.errors, seen.errors[:3]
    assert seen.counts.keys() == {"call"} and seen.counts["call"] >= calls
