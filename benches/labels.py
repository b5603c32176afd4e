"""What an adapter learns: five made-up labels for five themes, from chance to nearly all, on other wordings.

    python benches/labels.py [--model smollm2] [--seeds 3] [--epochs 3] [--peft FILE]

240 rows of ``Ticket: ... / Queue: K`` and one digit, whose meaning no model can know. They are trained with
the defaults (rank 8, alpha 16, 8 rows a step), once a seed, and tried on 40 tickets in other wordings and on
20 with other words of the themes: greedy, the digit must be right. ``exact`` is the same adapter served by
the same model in float32. ``--peft`` writes the rows and the tickets as JSON for another trainer.
"""

from __future__ import annotations

import argparse
import json
import random
import tempfile
import time

import tallow

#: Of each theme the words of the rows, and others.
THEMES = {
    "1": (["invoice", "refund", "charge", "payment", "receipt"], ["bill", "fee"]),
    "2": (["password", "login", "account", "username", "sign-in"], ["passcode", "profile"]),
    "3": (["parcel", "delivery", "courier", "package", "shipment"], ["postman", "box"]),
    "4": (["screen", "battery", "charger", "keyboard", "cable"], ["monitor", "mouse"]),
    "5": (["meeting", "interview", "appointment", "calendar", "schedule"], ["conference", "visit"]),
}
WORDINGS = [
    "I have a question about my {}.",
    "There is a problem with the {}.",
    "The {} is not what I expected.",
    "Can somebody look at my {}?",
    "My {} was fine yesterday.",
    "Please help me with this {}.",
    "Nobody answers me about the {}.",
    "I wrote about the {} last week.",
]
OTHER_WORDINGS = [
    "What happened to the {} of my sister?",
    "We are all waiting for news of that {}.",
    "It is about a {} again, sorry.",
    "Who takes care of the {} here?",
]


def prompt(text: str) -> str:
    return f"Ticket: {text}\nQueue: K"


def tickets(seed: int) -> tuple[list[tuple[str, str]], list[tuple[str, str]], list[tuple[str, str]]]:
    """(ticket, label) of the rows, of other wordings, and of other words."""
    draw = random.Random(seed)

    def some(wordings: list[str], kind: int, count: int) -> list[tuple[str, str]]:
        all_ = [
            (wording.format(word), label)
            for label, words in THEMES.items()
            for word in words[kind]
            for wording in wordings
        ]
        return draw.sample(all_, count) if count <= len(all_) else draw.choices(all_, k=count)

    return some(WORDINGS, 0, 200) + some(WORDINGS, 0, 40), some(OTHER_WORDINGS, 0, 40), some(WORDINGS, 1, 20)


def right(model: tallow.Model, tried: list[tuple[str, str]], adapter: tallow.Adapter | None) -> float:
    """The share of tickets whose digit comes first."""
    answers = [
        model.generate(prompt(text), max_tokens=1, temperature=0, adapter=adapter).text for text, _ in tried
    ]
    return sum(answer == label for answer, (_, label) in zip(answers, tried, strict=True)) / len(tried)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--precision", default="bfloat16", choices=["bfloat16", "float32"])
    parser.add_argument("--peft", metavar="FILE", help="write rows and tickets there, and train nothing")
    given = parser.parse_args()
    if given.peft:
        with open(given.peft, "w") as file:
            json.dump([tickets(seed) for seed in range(given.first, given.first + given.seeds)], file)
        return
    model = tallow.Model(given.model)
    exact = tallow.Model(given.model, dtype="float32")
    print(
        "| seed | wordings before | after | exact | words before | after | exact | loss | seconds | rows/s |"
    )
    print("|---|---|---|---|---|---|---|---|---|---|")
    for seed in range(given.first, given.first + given.seeds):
        rows, wordings, words = tickets(seed)
        before = [right(model, tried, None) for tried in (wordings, words)]
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            job = model.train(
                [{"prompt": prompt(text), "completion": label} for text, label in rows],
                epochs=given.epochs,
                seed=seed,
                eval=0,
                output=folder,
                precision=given.precision,
                progress=False,
            )
            adapter = job.result()
            seconds = time.perf_counter() - began
            twin = exact.load_adapter(folder)
            after = [(right(model, tried, adapter), right(exact, tried, twin)) for tried in (wordings, words)]
        last = job.history[-1]
        cells = [f"{seed}"]
        for start, (served, in_f32) in zip(before, after, strict=True):
            cells += [f"{start:.3f}", f"{served:.3f}", f"{in_f32:.3f}"]
        cells += [f"{last.loss:.4f}", f"{seconds:.0f}", f"{last.rows_per_second:.1f}"]
        print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
