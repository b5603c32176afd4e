"""Training an adapter: tallow beside peft + torch, on the same rows, with the same threads.

    python benches/training.py [--quick] [--model FILE.gguf] [--rounds N] [--steps N] [--threads N]

Both train r=8, alpha 16 on all seven projections of the same base (peft of its dequantized floats), eight
rows a step, and never at the same time: each run is a process of its own, in turns, and its peak memory is
the system's count. Three ways: tallow in float32, as peft; tallow as by default; peft in float32.

- Rows as DSPy makes them: a signature's instructions and format stand before each (some 168 of 270 tokens).
- Rows of the same length that have nothing in common but the first control tokens.

Speed is counted from the end of the first step to the end of the last, so that loading and warming up are
nobody's. Tokens are those that torch computes, padding included: what tallow saves on common prefixes is
speed. The last losses are there to see that both learn the same; the order of rows differs.

peft is taken from target/peers/peft (`python benches/peers/install.py peft`), or `--python PATH`. A full run
writes its part of benches/RESULTS.md, and benches/training.json; `--quick` prints only, unless `--into
FOLDER` says where to write.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import random
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import compare
from compare import number, progress, table
from peers import machine
from peers.engine import INSTALLED

import tallow

HERE = Path(__file__).parent
RANK, ALPHA, RATE = 8, 16, 5e-4
#: Which way -> the worker and what it is told.
WAYS = {
    "tallow, float32": ("train_ours.py", {"precision": "float32"}),
    "tallow": ("train_ours.py", {"precision": "bfloat16"}),
    "peft": ("train_peft.py", {}),
}
THEM = "peft"
KINDS = {"shared": "DSPy rows", "apart": "rows apart"}
QUEUES = ("billing", "delivery", "returns", "account", "technical")
THINGS = ("parcel", "invoice", "password", "kettle", "lamp", "refund", "order", "receipt", "cable", "voucher")
WOES = ("is late", "is broken", "was charged twice", "does not work", "never came", "looks wrong to me")


# Rows


def dspy_rows(count: int) -> list[dict[str, Any]]:
    """What `BootstrapFinetune` makes of a signature's calls."""
    import dspy

    class Sort(dspy.Signature):
        """Sort the customer's message into the queue of the team that can help. What was paid for belongs to
        billing, also when it is late; what a customer cannot use belongs to technical."""

        message: str = dspy.InputField(desc="what the customer wrote")
        queue: str = dspy.OutputField(desc=f"one of {', '.join(QUEUES)}")

    draw, adapter = random.Random(0), dspy.ChatAdapter()
    found = []
    for _ in range(count):
        values = {"inputs": {"message": message(draw)}, "outputs": {"queue": draw.choice(QUEUES)}}
        found.append(adapter.format_finetune_data(signature=Sort, demos=[], **values))
    return found


def message(draw: random.Random) -> str:
    woe = lambda: f"my {draw.choice(THINGS)} number {draw.randrange(100, 1000)} {draw.choice(WOES)}"
    return f"Hello, {woe()} and {woe()}. Also {woe()}. Please tell me what to do."


def rows_apart(count: int) -> list[dict[str, Any]]:
    """Each begins with words of its own; as long, and as long an answer."""
    draw = random.Random(1)
    found = []
    for number_ in range(count):
        story = " ".join(compare.sentence(draw) for _ in range(11))
        turns = [("system", f"{number_ * 37 + 11} {story}"), ("user", message(draw))]
        turns.append(("assistant", f"The queue is {draw.choice(QUEUES)}, I think, so it goes there."))
        found.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    return found


def examples(model: tallow.Model, rows: list[dict[str, Any]]) -> list[tuple[list[int], int, int]]:
    """Ids, and where the trained ones begin and end: the answer with the end token behind it."""
    found = []
    for row in rows:
        *before, last = row["messages"]
        start = model.render(before, add_generation_prompt=True)
        # Without the line break that the template puts behind the end token.
        whole = model.render(
            [*before, last | {"content": last["content"].strip()}], add_generation_prompt=False
        )
        whole = whole.rstrip("\n")
        assert whole.startswith(start), "the history changes when an answer is added"
        ids, first = (model.tokenize(text, special=True) for text in (whole, start))
        assert ids[: len(first)] == first
        found.append((ids, len(first), len(ids)))
    return found


@dataclass
class Work:
    """Rows in both forms, and what they cost torch."""

    rows: list[dict[str, Any]]
    examples: list[tuple[list[int], int, int]]
    batch: int

    def tokens(self) -> float:
        """Of a row, as torch computes it: padded to the longest of its step."""
        steps = range(0, len(self.examples), self.batch)
        longest = [max(len(ids) for ids, _, _ in self.examples[at : at + self.batch]) for at in steps]
        return statistics.mean(longest)

    def common(self) -> int:
        lists = [ids for ids, _, _ in self.examples]
        same = [at for at in range(min(map(len, lists))) if len({ids[at] for ids in lists}) > 1]
        return same[0] if same else 0

    def trained(self) -> float:
        return statistics.mean(end - start for _, start, end in self.examples)


# Running


def run(python: str, worker: str, job: dict[str, Any], timeout: float) -> dict[str, Any]:
    """One training in a process of its own."""
    done = subprocess.run(
        [python, str(HERE / "peers" / worker)],
        input=json.dumps(job),
        capture_output=True,
        text=True,
        timeout=timeout,
        env=os.environ | {"TOKENIZERS_PARALLELISM": "false", "OMP_NUM_THREADS": str(job["threads"])},
    )
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        raise RuntimeError(lines[-1][:400])
    return json.loads(done.stdout)


def measure(found: dict[str, Any], work: Work) -> dict[str, float]:
    steps, times = found["steps"], found["times"]
    if len(times) < 2:
        raise RuntimeError("too few steps to time")
    rows = (steps[-1] - steps[0]) * work.batch / (times[-1] - times[0])
    return {
        "rows": rows,
        "tokens": rows * work.tokens(),
        "first": times[0] - found["began"],
        "peak": found["peak"],
        "loaded": found["loaded"],
        "loss": statistics.mean(found["losses"][-3:]),
    }


class Runs:
    """All values of one kind of rows: way -> figure -> one a round."""

    def __init__(self) -> None:
        self.values: dict[str, dict[str, list[float]]] = {}
        self.notes: dict[str, str] = {}

    def add(self, way: str, figures: dict[str, float]) -> None:
        for name, value in figures.items():
            self.values.setdefault(way, {}).setdefault(name, []).append(value)

    def median(self, way: str, figure: str) -> float | None:
        values = self.values.get(way, {}).get(figure)
        return statistics.median(values) if values else None

    def ratio(self, way: str, figure: str) -> float | None:
        """Of rounds in turns: the median of each round's ratio, more where it is better."""
        ours, theirs = (self.values.get(name, {}).get(figure, []) for name in (way, THEM))
        ratios = [a / b if figure == "rows" else b / a for a, b in zip(ours, theirs, strict=False)]
        return statistics.median(ratios) if ratios else None


def everything(args: argparse.Namespace, works: dict[str, Work]) -> tuple[dict[str, Runs], dict[str, str]]:
    found: dict[str, Runs] = {kind: Runs() for kind in works}
    versions: dict[str, str] = {}
    for turn in range(args.rounds):
        for kind, work in works.items():
            for way in compare.turned(args.ways, turn):
                if way in found[kind].notes:
                    continue
                progress(f"round {turn + 1} of {args.rounds}: {KINDS[kind]}, {way}")
                worker, told = WAYS[way]
                python = args.python if way == THEM else sys.executable
                job = {"path": str(args.model.resolve()), "threads": args.threads, "batch": args.batch}
                job |= {"rank": RANK, "alpha": ALPHA, "learning_rate": RATE, "micro": args.micro}
                rows = {"examples": work.examples} if way == THEM else {"rows": work.rows}
                try:
                    answer = run(python, worker, job | told | rows, args.timeout)
                    found[kind].add(way, measure(answer, work))
                    versions[way.split(",")[0]] = answer["version"]
                except subprocess.TimeoutExpired:
                    found[kind].notes[way] = f"no end within {args.timeout:g} s"
                except RuntimeError as error:
                    found[kind].notes[way] = str(error).replace(str(args.model.resolve()), args.model.name)
    progress("")
    return found, versions


# Telling


def report(works: dict[str, Work], found: dict[str, Runs], ways: list[str]) -> str:
    head = ["", *ways, *(f"{way} / {THEM}" for way in ways if way != THEM)]
    rows = []
    for kind, work in works.items():
        title = f"**{KINDS[kind]}**: {work.tokens():.0f} tokens, {work.common()} in common, "
        rows.append([f"{title}{work.trained():.0f} trained", *[""] * (len(head) - 1)])
        for name, figure, compared in (
            ("rows/s", "rows", True),
            ("tokens/s, as torch counts", "tokens", False),
            ("start to the end of the first step, s", "first", False),
            ("peak memory, MiB (ratio: times as small)", "peak", True),
            ("of it before training, MiB", "loaded", False),
            ("loss of the last three steps", "loss", False),
        ):
            runs = found[kind]
            cells = [number(runs.median(way, figure)) for way in ways]
            ratios = [number(runs.ratio(way, figure)) if compared else "" for way in ways if way != THEM]
            rows.append([name, *cells, *ratios])
    notes = [f"- {KINDS[kind]}, {way}: {why}" for kind in found for way, why in found[kind].notes.items()]
    told = "\nNot measured:\n\n" + "\n".join(notes) + "\n" if notes else ""
    return table(head, rows) + told


def section(result: dict[str, Any], text: str) -> str:
    return "\n".join(
        [
            f"## Training an adapter: `{result['command']}`\n",
            f"{result['date']}. {compare.described(result['machine'], result['limits'])}\n",
            f"{result['model']}; {', '.join(result['versions'].values())}. {result['threads']} threads each,",
            f"{result['batch']} rows a step ({result['micro']} at a time in peft), {result['steps']} steps,",
            f"medians of {result['rounds']} rounds in turns, ratios of the two in one round.\n",
            text,
        ]
    )


# Command line


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    installed = INSTALLED / "peft" / "bin" / "python"
    parser.add_argument("--quick", action="store_true", help="one round of three steps")
    parser.add_argument("--model", metavar="FILE", type=Path, help="a GGUF file (SmolLM2 of `make models`)")
    parser.add_argument("--rounds", type=int, metavar="N", help="3, or 1 with --quick")
    parser.add_argument("--steps", type=int, metavar="N", help="12, or 3 with --quick")
    parser.add_argument("--batch", type=int, metavar="N", default=8, help="rows a step (8)")
    parser.add_argument("--micro", type=int, metavar="N", default=4, help="of them at a time, in peft (4)")
    parser.add_argument("--threads", type=int, metavar="N", default=machine.threads())
    parser.add_argument("--rows", metavar="KINDS", default=",".join(KINDS), help="shared,apart")
    parser.add_argument("--only", metavar="WAYS", default=";".join(WAYS), help=f"of {';'.join(WAYS)}")
    parser.add_argument("--python", metavar="PATH", default=str(installed), help="the Python that has peft")
    parser.add_argument("--timeout", type=float, metavar="S", default=1800.0, help="of one run (1800)")
    parser.add_argument("--into", metavar="FOLDER", type=Path, help="where the results are written")
    args = parser.parse_args()
    args.whole = not (args.quick or args.model)
    args.rounds = args.rounds or (1 if args.quick else 3)
    args.steps = args.steps or (3 if args.quick else 12)
    args.ways, args.rows = args.only.split(";"), args.rows.split(",")
    for name in (*args.ways, *args.rows):
        if name not in (*WAYS, *KINDS):
            parser.error(f"{name!r} is none of {', '.join((*WAYS, *KINDS))}")
    if THEM in args.ways and not Path(args.python).exists():
        parser.error("peft is not installed: python benches/peers/install.py peft, or --python PATH")
    args.model = args.model or next(iter(compare.models(Path("smollm2"))), None)
    if not args.model or not args.model.exists():
        parser.error("no model file: run `make models`, or give --model")
    args.whole = args.whole and args.ways == list(WAYS) and args.rows == list(KINDS)
    return args


def main() -> None:
    args = arguments()
    here, limits = machine.describe(), machine.limits()
    print(compare.described(here, limits))
    model, count = tallow.Model(args.model, progress=False), args.batch * args.steps
    made = {"shared": dspy_rows, "apart": rows_apart}
    works = {
        kind: Work(rows := made[kind](count), examples(model, rows), args.batch)
        for kind in KINDS
        if kind in args.rows
    }
    model.close()
    found, versions = everything(args, works)
    text = report(works, found, args.ways)
    print(f"\n{text}", flush=True)
    result = {
        "command": "python benches/training.py",
        "date": datetime.date.today().isoformat(),
        "machine": here,
        "limits": limits,
        "model": args.model.name,
        "versions": versions,
        **{name: getattr(args, name) for name in ("rounds", "steps", "batch", "micro", "threads")},
        "values": {kind: runs.values for kind, runs in found.items()},
    }
    folder = args.into or (HERE if args.whole else None)
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "training.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        compare.put(folder / "RESULTS.md", section(result, text), "training")


if __name__ == "__main__":
    main()
