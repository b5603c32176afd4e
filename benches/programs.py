"""What DSPy's programs and optimizers do on a small model: failures to parse, calls and seconds.

    python benches/programs.py [parse] [time] [optimizers] [--model MODEL] [--threads 8] [--failures FILE]

``parse``: six signatures of rising difficulty with each stock adapter, as the model likes
(``constrain=False``) and with the format enforced. ``time``: the same prompts free and enforced, in turns,
each turn on a fresh engine. A free answer that does not parse costs a second call, so there is an arm with
DSPy's fallback and one without. ``optimizers``: modules and optimizers to their end, with tiny settings, on
twelve examples; MIPROv2 needs ``pip install optuna``.

"Calls" are calls of the language model, "second calls" those that repeat a ``Predict`` (the fallback to JSON
of DSPy's adapters), "free" answers those that had no format to follow. "Fail at first" are first answers that
an adapter refused, "parse failures" all of them, and "errors" are exceptions that left a module.
``--failures`` writes each answer that was refused, with its prompt, as a line of JSON.
"""

import argparse
import enum
import io
import json
import logging
import os
import sys
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from typing import Any, Literal

# Before DSPy is imported: nothing here reads the user's own cache or leaves anything there, and there is one
# line of progress, not a bar for each evaluation.
os.environ["DSPY_CACHEDIR"] = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"tallow-programs-{os.getpid()}")
os.environ["TQDM_DISABLE"] = "1"

import dspy
import pydantic
from dspy.adapters.baml_adapter import BAMLAdapter
from dspy.utils.callback import BaseCallback

import tallow
from tallow.dspy import Engine

PARSE_TOKENS, TIME_TOKENS, OPTIMIZER_TOKENS = 200, 120, 120
ROUNDS = 4


# Counting


@dataclass
class Counts:
    calls: int = 0
    tokens: int = 0
    parse_failures: int = 0
    at_first: int = 0
    second: int = 0
    errors: int = 0
    free: int = 0
    seconds: float = 0.0

    def __iadd__(self, other: "Counts") -> "Counts":
        for name, value in vars(other).items():
            setattr(self, name, getattr(self, name) + value)
        return self


class Counter(BaseCallback):
    """Counts calls and failures, in whichever threads they happen."""

    def __init__(self, failures: str | None) -> None:
        self._lock, self._thread = threading.Lock(), threading.local()
        self._file, self._what = failures, ""
        self.counts = Counts()

    @contextmanager
    def counting(self, *what: str) -> Iterator[Counts]:
        self.counts, self._what = Counts(), " ".join(what)
        began = time.perf_counter()
        try:
            yield self.counts
        finally:
            self.counts.seconds = time.perf_counter() - began

    def add(self, **more: int) -> None:
        with self._lock:
            for name, value in more.items():
                setattr(self.counts, name, getattr(self.counts, name) + value)

    def answered(self, request: Any, response: Any) -> None:
        """What only the engine sees."""
        bound = (response.provider_data or {}).get("format", {})
        self._thread.last = request, bound
        # A second candidate of the same call says the same once more; that is an answer, too.
        self.add(tokens=response.usage.output_tokens or 0, free=not bound.get("constrained"))

    def _inside(self) -> list[int | None]:
        """For each module that this thread is in: how many calls it made, if it is a Predict."""
        if not hasattr(self._thread, "inside"):
            self._thread.inside = []
        return self._thread.inside

    def on_module_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        self._inside().append(0 if isinstance(instance, dspy.Predict) else None)

    def on_module_end(self, call_id: str, outputs: Any, exception: BaseException | None = None) -> None:
        calls = self._inside().pop()
        new = exception is not None and exception is not getattr(self._thread, "error", None)
        self._thread.error = exception  # it passes through the modules around this one, too
        self.add(second=max(0, (calls or 1) - 1), errors=new)

    def on_lm_start(self, call_id: str, instance: Any, inputs: dict[str, Any]) -> None:
        inside = self._inside()
        if inside and inside[-1] is not None:
            inside[-1] += 1
        self.add(calls=1)

    def on_adapter_parse_end(
        self, call_id: str, outputs: Any, exception: BaseException | None = None
    ) -> None:
        if exception is None:
            return
        inside = self._inside()
        self.add(parse_failures=1, at_first=inside == [] or inside[-1] in (None, 1))
        if self._file:
            self._note(exception)

    def _note(self, exception: BaseException) -> None:
        request, bound = self._thread.last
        turns = [
            {"role": turn.role, "text": "".join(getattr(part, "text", "") for part in turn.parts)}
            for turn in request.messages
        ]
        found = {
            "what": self._what,
            "format": bound,
            "error": str(exception),
            "answer": getattr(exception, "lm_response", None),
            "system": request.system,
            "turns": turns,
        }
        with self._lock, open(self._file or os.devnull, "a", encoding="utf-8") as file:
            file.write(json.dumps(found) + "\n")


class Watched(Engine):
    """Tells the counter of each response."""

    counter: Counter

    def complete(self, request: Any) -> Any:
        response = super().complete(request)
        self.counter.answered(request, response)
        return response


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def row(*cells: Any) -> None:
    progress("")
    shown = (f"{cell:.1f}" if isinstance(cell, float) else str(cell) for cell in cells)
    print("|", " | ".join(shown), "|", flush=True)


def head(*names: str) -> None:
    row(*names)
    print("|" + "---|" * len(names))


# Signatures of rising difficulty


class Mood(pydantic.BaseModel):
    label: Literal["good", "bad", "mixed"]
    reasons: list[str] = pydantic.Field(max_length=3)


class Guest(pydantic.BaseModel):
    name: str
    nights: int
    mood: Mood


class Team(enum.Enum):
    KITCHEN = "kitchen"
    ROOMS = "rooms"
    DESK = "front desk"


class Summary(dspy.Signature):
    """Sum the review up in one sentence."""

    review: str = dspy.InputField()
    summary: str = dspy.OutputField()


class Sentiment(dspy.Signature):
    """Judge the review."""

    review: str = dspy.InputField()
    sentiment: Literal["positive", "negative", "mixed"] = dspy.OutputField()
    would_return: bool = dspy.OutputField()


class Rating(dspy.Signature):
    """Rate the review from 1 to 5, and list what it speaks of."""

    review: str = dspy.InputField()
    stars: int = dspy.OutputField(ge=1, le=5)
    topics: list[str] = dspy.OutputField()


class Extraction(dspy.Signature):
    """Who wrote the review, and what did they feel?"""

    review: str = dspy.InputField()
    guest: Guest = dspy.OutputField()


class Ticket(dspy.Signature):
    """Hand a complaint to a team. A refund only if the guest asks for one."""

    review: str = dspy.InputField()
    reasoning: str = dspy.OutputField()
    team: Team = dspy.OutputField()
    refund: float | None = dspy.OutputField()


class Step(dspy.Signature):
    """Choose the next tool: `search(query, limit)`, `mail(to, text)` or `finish()`."""

    review: str = dspy.InputField()
    next_thought: str = dspy.OutputField()
    next_tool_name: Literal["search", "mail", "finish"] = dspy.OutputField()
    next_tool_args: dict[str, Any] = dspy.OutputField()


SIGNATURES = (Summary, Sentiment, Rating, Extraction, Ticket, Step)
REVIEWS = (
    "Anna Berg stayed two nights. The soup was cold, the bread was old, and nobody came when we called.",
    "A quiet room, a friendly house, and the best breakfast in town! We will be back. (Tom, 5 nights)",
    'The shower said "out of order" {again}. I want my 40 euros back; the view was lovely, though.\n\n- Mei',
    "Came at 3 am & the desk was <closed>. The bar, however, was open: [[ great ]] cocktails until six.",
)
ADAPTERS: dict[str, Callable[[], Any]] = {
    "Chat": dspy.ChatAdapter,
    "JSON": dspy.JSONAdapter,
    "XML": dspy.XMLAdapter,
    "BAML": BAMLAdapter,
}


def ask(lm: Any, adapter: Any, jobs: list[tuple[Any, str]], threads: int) -> None:
    """Runs each signature on its review; the counter sees what fails."""

    def one(job: tuple[Any, str]) -> None:
        signature, review = job
        with dspy.context(lm=lm, adapter=adapter):
            try:
                dspy.Predict(signature)(review=review)
            except Exception as error:
                logging.getLogger("dspy").warning("%s: %s", type(error).__name__, error)

    with ThreadPoolExecutor(threads) as pool:
        list(pool.map(one, jobs))


def parse(lm: Any, counter: Counter, args: argparse.Namespace) -> None:
    print(f"\n## Answers that do not parse: {len(REVIEWS)} reviews a line\n")
    head("adapter", "signature", "answers", "fail at first", "second calls", "errors", "free", "tokens", "s")
    for name, adapter in ADAPTERS.items():
        for constrain in (False, "auto"):
            said, total = "enforced" if constrain else "free", Counts()
            for signature in SIGNATURES:
                progress(f"{name}, {signature.__name__}, {said}")
                one = lm.copy(constrain=constrain, temperature=0.0, max_tokens=PARSE_TOKENS)
                with counter.counting("parse", name, signature.__name__, said) as counts:
                    ask(one, adapter(), [(signature, review) for review in REVIEWS], args.threads)
                row(name, signature.__name__, said, *numbers(counts))
                total += counts
            row(f"**{name}**", "all", said, *numbers(total))


def numbers(counts: Counts) -> tuple[Any, ...]:
    return counts.at_first, counts.second, counts.errors, counts.free, counts.tokens, counts.seconds


# Time


def time_(lm: Any, counter: Counter, args: argparse.Namespace) -> None:
    jobs = [
        (SIGNATURES[at % len(SIGNATURES)], f"{REVIEWS[at % len(REVIEWS)]} Visit number {at}.")
        for at in range(args.calls)
    ]
    arms = {
        "enforced": ("auto", dspy.ChatAdapter()),
        "free, with fallback": (False, dspy.ChatAdapter()),
        "free, without fallback": (False, dspy.ChatAdapter(use_json_adapter_fallback=False)),
    }
    totals, order = {name: Counts() for name in arms}, list(arms)
    for at in range(ROUNDS):
        for name in order[at % 3 :] + order[: at % 3]:
            progress(f"round {at + 1} of {ROUNDS}: {name}")
            constrain, adapter = arms[name]
            lm.close()  # the next call finds a fresh engine: nothing computed, no grammar compiled
            lm("warm", max_tokens=1)
            one = lm.copy(constrain=constrain, temperature=0.0, max_tokens=TIME_TOKENS)
            with counter.counting("time", name) as counts:
                ask(one, adapter, jobs[at::ROUNDS], args.threads)
            totals[name] += counts
    print(f"\n## Time: {args.calls} calls an arm, {ROUNDS} rounds in turns, ChatAdapter\n")
    head("arm", "fail at first", "second calls", "errors", "tokens", "s", "enforced / this")
    for name, counts in totals.items():
        ratio = f"{totals['enforced'].seconds / counts.seconds:.2f}"
        row(name, counts.at_first, counts.second, counts.errors, counts.tokens, counts.seconds, ratio)


# Modules and optimizers


class Triage(dspy.Signature):
    """Which team does the guest's message go to, and is it urgent?"""

    message: str = dspy.InputField()
    team: Literal["kitchen", "rooms", "desk"] = dspy.OutputField()
    urgent: bool = dspy.OutputField()


EXAMPLES = [
    dspy.Example(message=message, team=team, urgent=urgent).with_inputs("message")
    for message, team, urgent in (
        ("Water is coming through the ceiling of my room!", "rooms", True),
        ("Could you send the bill to my office next week?", "desk", False),
        ("My son ate nuts and his face swells; what was in the cake?", "kitchen", True),
        ("The pillows are a little hard.", "rooms", False),
        ("Do you have oat milk for breakfast tomorrow?", "kitchen", False),
        ("A man is shouting and breaking things in the lobby.", "desk", True),
        ("The heating is off and my baby is blue with cold.", "rooms", True),
        ("May I have a late checkout on Sunday?", "desk", False),
        ("The soup could do with more salt.", "kitchen", False),
        ("There is smoke coming out of the fryer!", "kitchen", True),
        ("My passport was stolen and my flight leaves in an hour.", "desk", True),
        ("One of the lamps flickers now and then.", "rooms", False),
    )
]


def metric(example: Any, prediction: Any, trace: Any = None, *_: Any) -> Any:
    score = ((prediction.team == example.team) + (prediction.urgent == example.urgent)) / 2
    return score if trace is None else score == 1


def feedback(example: Any, prediction: Any, trace: Any = None, *_: Any) -> Any:
    said = f"The team is {example.team}, and urgent is {example.urgent}."
    return dspy.Prediction(score=metric(example, prediction), feedback=said)


def reward(arguments: dict[str, Any], prediction: Any) -> float:
    return 1.0 if prediction.urgent and prediction.team == "desk" else 0.0


def search(query: str) -> str:
    """Looks a word up in the hotel's handbook."""
    return f"The handbook on {query[:40]}: urgent matters go to the desk."


def open_rooms(floor: int) -> int:
    """The number of free rooms on a floor."""
    return (floor * 7) % 5


class Runs:
    """Each method runs one module or optimizer, and returns the program whose score is shown after it."""

    def __init__(self, lm: Any, threads: int) -> None:
        self.lm, self.threads = lm, threads
        self.student = dspy.ChainOfThought(Triage)

    def evaluate(self, program: Any) -> float:
        judge = dspy.Evaluate(devset=EXAMPLES, metric=metric, num_threads=self.threads, max_errors=1000)
        return judge(program).score

    def Evaluate(self) -> Any:
        return self.student

    def Parallel(self) -> Any:
        jobs = [(self.student, example) for example in EXAMPLES]
        dspy.Parallel(num_threads=self.threads, disable_progress_bar=True, max_errors=1000)(jobs)

    def BestOfN(self) -> Any:
        return dspy.BestOfN(module=self.student, N=3, reward_fn=reward, threshold=1.0)

    def Refine(self) -> Any:
        return dspy.Refine(module=self.student, N=3, reward_fn=reward, threshold=1.0)

    def ReAct(self) -> Any:
        return dspy.ReAct(Triage, tools=[search, open_rooms], max_iters=3)

    def ReActV2(self) -> Any:
        return dspy.ReActV2(Triage, tools=[search, open_rooms], max_iters=3)

    def ReActV2_native(self) -> Any:
        program = dspy.ReActV2(Triage, tools=[search, open_rooms], max_iters=3)
        return WithAdapter(program, dspy.ChatAdapter(use_native_function_calling=True))

    def BootstrapFewShot(self) -> Any:
        tuned = dspy.BootstrapFewShot(
            metric=metric, max_bootstrapped_demos=2, max_labeled_demos=2, max_rounds=2
        )
        return tuned.compile(self.student, trainset=EXAMPLES)

    def RandomSearch(self) -> Any:
        tuned = dspy.BootstrapFewShotWithRandomSearch(
            metric=metric,
            max_bootstrapped_demos=2,
            max_labeled_demos=2,
            num_candidate_programs=2,
            num_threads=self.threads,
        )
        return tuned.compile(self.student, trainset=EXAMPLES)

    def MIPROv2(self) -> Any:
        tuned = dspy.MIPROv2(metric=metric, auto=None, num_candidates=2, num_threads=self.threads)
        options = {"num_trials": 2, "minibatch": False, "max_bootstrapped_demos": 1, "max_labeled_demos": 1}
        return tuned.compile(self.student, trainset=EXAMPLES[:6], valset=EXAMPLES[6:], **options)

    def SIMBA(self) -> Any:
        sizes = {"bsize": 4, "num_candidates": 2, "max_steps": 2, "max_demos": 2}
        tuned = dspy.SIMBA(metric=metric, num_threads=self.threads, **sizes)
        return tuned.compile(self.student, trainset=EXAMPLES)

    def GEPA(self) -> Any:
        tuned = dspy.GEPA(
            metric=feedback, max_metric_calls=48, reflection_lm=self.lm, num_threads=self.threads
        )
        return tuned.compile(self.student, trainset=EXAMPLES[:6], valset=EXAMPLES[6:])

    def COPRO(self) -> Any:
        tuned = dspy.COPRO(metric=metric, breadth=3, depth=2)
        options = {"num_threads": self.threads, "display_progress": False, "display_table": 0}
        return tuned.compile(self.student.deepcopy(), trainset=EXAMPLES, eval_kwargs=options)


class WithAdapter(dspy.Module):
    def __init__(self, program: Any, adapter: Any) -> None:
        super().__init__()
        self.program, self.adapter = program, adapter

    def forward(self, **inputs: Any) -> Any:
        with dspy.context(adapter=self.adapter):
            return self.program(**inputs)


def optimizers(lm: Any, counter: Counter, args: argparse.Namespace) -> None:
    one = lm.copy(max_tokens=OPTIMIZER_TOKENS)
    runs = Runs(one, args.threads)
    names = [name for name in vars(Runs) if name[0].isupper()]
    print(f"\n## Modules and optimizers: {len(EXAMPLES)} examples, {args.threads} threads\n")
    head(
        *("program", "calls", "parse failures", "second calls", "errors", "free", "tokens", "s"),
        *("score before", "after", "ended"),
    )
    with dspy.context(lm=one):
        before = runs.evaluate(runs.student)
        for name in names:
            if args.only and name not in args.only.split(","):
                continue
            progress(name)
            after, ended = "", "yes"
            with counter.counting("optimizers", name) as counts:
                try:
                    with redirect_stdout(io.StringIO()):  # some optimizers talk
                        program = getattr(runs, name)()
                    after = "" if program is None else runs.evaluate(program)
                except Exception as error:
                    ended = f"{type(error).__name__}: {error}"[:100].replace("\n", " ")
            row(
                *(name, counts.calls, counts.parse_failures, counts.second, counts.errors, counts.free),
                *(counts.tokens, counts.seconds, before, after, ended),
            )


# Command line


class Kept(logging.Handler):
    """The warnings of DSPy, once each: many a failure is swallowed and only logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: dict[str, int] = {}

    def emit(self, record: logging.LogRecord) -> None:
        text = record.getMessage().split("\n")[0][:160]
        self.messages[text] = self.messages.get(text, 0) + 1


def quiet() -> Kept:
    kept, logger = Kept(), logging.getLogger("dspy")
    logger.handlers[:], logger.propagate = [kept], False
    warnings.simplefilter("ignore")
    return kept


PARTS = {"parse": parse, "time": time_, "optimizers": optimizers}


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)} (all, if none is named)"
    )
    parser.add_argument("--model", default="smollm2", metavar="MODEL")
    parser.add_argument("--threads", type=int, default=8)
    parser.add_argument("--calls", type=int, default=100, help="of each arm of `time`")
    parser.add_argument("--only", metavar="NAMES", help="these of `optimizers`, with commas between")
    parser.add_argument("--failures", metavar="FILE", help="append each answer that did not parse")
    args = parser.parse_args()
    for part in args.parts:
        if part not in PARTS:
            parser.error(f"{part!r} is none of {', '.join(PARTS)}")
    counter, kept = Counter(args.failures), quiet()
    engine = Watched(tallow.Model(args.model))
    engine.counter = counter
    lm = tallow.LM(args.model, engine=engine, cache=False)
    dspy.configure(lm=lm, callbacks=[counter])
    print(f"{lm!r}, {os.cpu_count()} processors, tallow {tallow.__version__}, DSPy {dspy.__version__}")
    for name in args.parts or PARTS:
        PARTS[name](lm, counter, args)
    if kept.messages:
        print("\nDSPy's warnings:\n")
        for text, count in sorted(kept.messages.items(), key=lambda found: -found[1]):
            print(f"- {count} x {text}")


if __name__ == "__main__":
    main()
