"""What DSPy's weight optimizers make of a small model: the share of held-out mails that are sorted right.

    python benches/finetune.py [labels] [bootstrap] [together] [--model MODEL] [--mails 90] [--chat]

The mails are those of ``examples/finetune.py``; what is asked are wordings that nobody has learned.
``labels``: half of the mails are learned by their labels. ``bootstrap``: that LM is the teacher of a fresh
student, ``dspy.BootstrapFinetune`` with 8 threads over the other half. ``together``: ``dspy.BetterTogether``,
demos and then weights, with the same teacher. All in this process; one model serves base, teacher and
students.

A prompt is the mail and one word. ``--chat`` takes DSPy's ChatAdapter, whose prompts explain the fields: five
times the tokens, and a model of this size learns little in them from so few rows.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Before DSPy is imported: nothing here reads the user's own cache or leaves anything there, adapters either.
os.environ["DSPY_CACHEDIR"] = os.path.join(os.environ.get("TMPDIR", "/tmp"), f"tallow-finetune-{os.getpid()}")
os.environ["DSPY_FINETUNEDIR"] = os.environ["DSPY_CACHEDIR"]
os.environ["TQDM_DISABLE"] = "1"

import dspy

import tallow
import tallow.dspy

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "examples"))

import finetune as task

THREADS = 8
ARMS = ("labels", "bootstrap", "together")


class Short(dspy.ChatAdapter):
    """The mail and one word; demos are turns before it."""

    def format(self, signature: Any, demos: list[dict[str, Any]], inputs: dict[str, Any]) -> list[Any]:
        turns = [turn for demo in demos for turn in self._turns(demo)]
        return [*turns, self._turns({**inputs, "desk": ""})[0]]

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        return {"desk": completion}

    def format_finetune_data(self, signature: Any, demos: Any, inputs: Any, outputs: Any) -> dict[str, Any]:
        answer = {"role": "assistant", "content": outputs["desk"]}
        return {"messages": [*self.format(signature, demos, inputs), answer]}

    def _turns(self, values: dict[str, Any]) -> list[dict[str, Any]]:
        asked = {"role": "user", "content": f"{values['mail']}\nDesk:"}
        return [asked, {"role": "assistant", "content": values["desk"]}]


def student(lm: tallow.LM) -> dspy.Predict:
    program = dspy.Predict(task.Sort)
    program.set_lm(lm)
    return program


def by_labels(lm: tallow.LM, mails: list[dspy.Example], settings: dict[str, Any]) -> dspy.Predict:
    program = student(lm)
    program.set_lm(lm.finetune(tallow.dspy.finetune_rows(program, mails), "chat", settings).result())
    return program


def bootstrapped(
    lm: tallow.LM, mails: list[dspy.Example], settings: dict[str, Any], teacher: dspy.Predict
) -> dspy.Predict:
    optimizer = dspy.BootstrapFinetune(metric=task.right, num_threads=THREADS, train_kwargs=settings)
    return optimizer.compile(student(lm), trainset=mails, teacher=teacher)


def together(
    lm: tallow.LM, mails: list[dspy.Example], settings: dict[str, Any], teacher: dspy.Predict
) -> dspy.Predict:
    optimizer = dspy.BetterTogether(
        metric=task.right,
        p=dspy.BootstrapFewShot(metric=task.right, max_bootstrapped_demos=0, max_labeled_demos=2),
        w=dspy.BootstrapFinetune(metric=task.right, num_threads=THREADS, train_kwargs=settings),
    )
    best = optimizer.compile(
        student(lm),
        trainset=mails,
        valset=mails[: len(mails) // 4],
        strategy="p -> w",
        num_threads=THREADS,
        optimizer_compile_args={"w": {"teacher": teacher}},
    )
    if best.flag_compilation_error_occurred:
        raise SystemExit("a step of BetterTogether failed; dspy's log says why")
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("arms", nargs="*", metavar="ARM", help=f"of {', '.join(ARMS)}; default: all")
    parser.add_argument("--model", default="smollm2")
    # Half of them an arm: too few to hold some out, so that all are learned from.
    parser.add_argument("--mails", type=int, default=90)
    parser.add_argument("--asked", type=int, default=60)
    parser.add_argument("--epochs", type=int, default=2)
    # Twice the usual rate, for a dozen steps in which little can go wrong.
    parser.add_argument("--learning-rate", type=float, default=2e-3)
    parser.add_argument("--max-tokens", type=int, default=30)
    parser.add_argument("--chat", action="store_true", help="with dspy.ChatAdapter")
    options = parser.parse_args()
    arms = options.arms or ARMS
    for arm in arms:
        if arm not in ARMS:
            parser.error(f"there is no arm {arm!r}; there are {', '.join(ARMS)}")

    dspy.disable_logging()
    form = {} if options.chat else {"choices": list(task.WORDINGS)}
    dspy.configure(adapter=dspy.ChatAdapter() if options.chat else Short())
    lm = tallow.LM(options.model, temperature=0.0, max_tokens=options.max_tokens, cache=False, **form)
    learned = task.mails(options.mails, seed=1, asked=False)
    half = len(learned) // 2
    settings = {"epochs": options.epochs, "learning_rate": options.learning_rate}
    asked = task.mails(options.asked, seed=2, asked=True)
    evaluate = dspy.Evaluate(devset=asked, metric=task.right, num_threads=THREADS, display_progress=False)
    print("| what | held-out mails that are right | seconds of training |\n|---|---|---|", flush=True)

    def row(name: str, make: Callable[[], dspy.Module]) -> dspy.Module:
        began = time.monotonic()
        program = make()
        seconds = time.monotonic() - began
        print(f"| {name} | {evaluate(program).score:.0f} % | {seconds:.0f} |", flush=True)
        return program

    row("the model as it is", lambda: student(lm))
    teacher = row("labels", lambda: by_labels(lm, learned[:half], settings))
    if "bootstrap" in arms:
        row("BootstrapFinetune", lambda: bootstrapped(lm, learned[half:], settings, teacher))
    if "together" in arms:
        row("BetterTogether", lambda: together(lm, learned[half:], settings, teacher))


if __name__ == "__main__":
    main()
