"""Serving LoRA adapters: what they cost beside the base, in tallow and in other engines.

    python benches/adapters.py [--quick] [--only tallow,llama.cpp] [--model FILE.gguf] [--rounds N]

Eight adapters of rank 8 on all seven projections, of random numbers, are made by the script in each engine's
form. Asked are 1, 8 and 32 requests at once, in three ways: the base, one adapter for all, and, with 32
requests, eight adapters in turns. Every question has new prompts and 48 new tokens an answer.

- "own": 80 tokens, none in common.
- "common": 400 in common and 80 of their own. What an adapter made of the common ones is of no use to
  another, so eight adapters compute them eight times, and the base once.

Each engine is a process of its own, asked in turns as in compare.py, and who is not asked is stopped. Shares
are medians of the rounds' shares of the base, both taken in the same round. tallow serves adapters in one
batch; llama.cpp and OpenVINO have one adapter a batch, so that eight are eight batches there. That all
compute the same is to be seen by the tokens of an answer.

A full run writes its part of benches/RESULTS.md, and benches/adapters.json; `--quick`, `--only` and `--model`
print only, unless `--into FOLDER` says where to write.
"""

from __future__ import annotations

import argparse
import datetime
import json
import statistics
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import compare
from compare import FIRST, OWN, US, number, progress, table
from peers import adapter_files, machine
from peers.engine import Engine, Failed, interpreter

import tallow

HERE = Path(__file__).parent
ENGINES = ("tallow", "llama.cpp", "openvino-genai")
RANK, ADAPTERS, ANSWER = 8, 8, 48
WORKLOADS = {"own": 0, "common": compare.COMMON}
BASE, ONE, SEVERAL = "base", "one adapter", f"{ADAPTERS} adapters"


@dataclass(frozen=True)
class Ask:
    """So many requests at once, each with so many tokens in common with the others, in one of three ways."""

    workload: str
    size: int
    way: str

    def adapters(self) -> list[int | None]:
        which = {BASE: lambda n: None, ONE: lambda n: 0, SEVERAL: lambda n: n % ADAPTERS}
        return [which[self.way](n) for n in range(self.size)]

    def base(self) -> Ask:
        return Ask(self.workload, self.size, BASE)


def asks(sizes: tuple[int, ...]) -> list[Ask]:
    found = []
    for workload in WORKLOADS:
        for size in sizes:
            found += [Ask(workload, size, way) for way in (BASE, ONE)]
        if max(sizes) >= ADAPTERS:
            found.append(Ask(workload, max(sizes), SEVERAL))
    return found


@dataclass
class Found:
    """New tokens a second: engine -> ask -> one a round."""

    speeds: dict[str, dict[Ask, list[float]]] = field(default_factory=dict)
    #: How an adapted answer begins, beside ours and beside the engine's own base.
    same: dict[str, str] = field(default_factory=dict)
    changed: dict[str, str] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)

    def speed(self, engine: str, ask: Ask) -> float | None:
        values = self.speeds.get(engine, {}).get(ask)
        return statistics.median(values) if values else None

    def share(self, engine: str, ask: Ask) -> float | None:
        """Of the base's speed in the same round."""
        found = self.speeds.get(engine, {})
        pairs = zip(found.get(ask, []), found.get(ask.base(), []), strict=False)
        shares = [ours / base for ours, base in pairs]
        return statistics.median(shares) if shares else None


class Run:
    def __init__(self, args: argparse.Namespace, pythons: dict[str, str], folder: Path) -> None:
        self.args, self.pythons = args, pythons
        self.path = str(args.model.resolve())
        self.prompts = compare.Prompts(tallow.Model(args.model, progress=False))
        config = self.prompts.model.config
        made = [
            adapter_files.write(folder / f"adapter-{seed}", config, RANK, seed) for seed in range(ADAPTERS)
        ]
        self.files = {name: [pair[name == "llama.cpp"] for pair in made] for name in pythons}
        self.found, self.engines = Found(), {}

    def all(self) -> Found:
        try:
            for name in self.pythons:
                progress(f"start of {name}")
                self.start(name)
            self.compare_answers()
            for turn in range(self.args.rounds):
                self.round(turn)
        finally:
            for engine in self.engines.values():
                engine.end()
        return self.found

    def start(self, name: str) -> None:
        engine = Engine(name, self.pythons[name])
        ids = self.prompts.ids("first", FIRST)
        options = {"path": self.path, "threads": machine.threads(), "adapters": self.files[name]}
        try:
            text = self.prompts.model.detokenize(ids)
            loaded = engine.ask("load", self.args.timeout, **options, first=[ids, text])
        except Failed as error:
            self.fail(name, error)
            engine.end()
            return
        self.engines[name] = engine
        self.found.versions[name] = loaded["version"]

    def fail(self, name: str, error: Failed) -> None:
        said = " ".join(str(error).split()).replace(self.path, Path(self.path).name)
        self.found.notes.setdefault(name, said)

    def round(self, turn: int) -> None:
        for at, ask in enumerate(asks(self.args.sizes)):
            prompts = self.burst(ask, turn)
            for name in compare.turned(self.engines, turn + at):
                progress(
                    f"round {turn + 1} of {self.args.rounds}: {ask.size} {ask.workload}, {ask.way}, {name}"
                )
                seconds = self.seconds(name, ask, prompts)
                if seconds:
                    speed = ask.size * ANSWER / seconds
                    self.found.speeds.setdefault(name, {}).setdefault(ask, []).append(speed)

    def burst(self, ask: Ask, turn: int) -> dict[str, Any]:
        """Texts of the same lengths, which nobody has read before."""
        title = f"{ask.workload} {ask.size} {ask.way} {turn}"
        shared = self.prompts.ids(title, WORKLOADS[ask.workload])
        prompts = [shared + self.prompts.ids(f"{title}, {n}", OWN) for n in range(ask.size)]
        texts = [self.prompts.model.detokenize(ids) for ids in prompts]
        return {"prompts": prompts, "texts": texts, "new": ANSWER, "adapters": ask.adapters()}

    def seconds(self, name: str, ask: Ask, prompts: dict[str, Any]) -> float | None:
        try:
            return self.engines[name].ask("burst", self.args.timeout, **prompts)["seconds"]
        except Failed as error:
            self.fail(name, error)
            if not self.engines[name].alive:
                self.engines.pop(name).end()
            return None

    def compare_answers(self) -> None:
        """An answer with the first adapter: as ours, and other than without it."""
        ids = self.prompts.ids("compared", OWN)
        question = {"ids": ids, "text": self.prompts.model.detokenize(ids), "new": ANSWER}
        ours: list[int] = []
        for name, engine in list(self.engines.items()):
            try:
                adapted, plain = (
                    engine.ask("single", self.args.timeout, **question, **more)["tokens"]
                    for more in ({"adapter": 0}, {})
                )
            except Failed as error:
                self.fail(name, error)
                if not engine.alive:
                    self.engines.pop(name).end()
                continue
            ours = ours or adapted
            self.found.same[name] = f"{alike(ours, adapted)} of {ANSWER}"
            self.found.changed[name] = f"{alike(plain, adapted)} of {ANSWER}"


def alike(one: list[int], other: list[int]) -> int:
    """How many tokens both begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((at for at, pair in pairs if pair[0] != pair[1]), min(len(one), len(other)))


# Telling


def report(found: Found, sizes: tuple[int, ...]) -> str:
    names = [name for name in ENGINES if name in found.versions]
    head = ["requests", "prompts", "", *(cell for name in names for cell in (f"{name}, tokens/s", "of base"))]
    rows = []
    for ask in asks(sizes):
        row = [str(ask.size), ask.workload, ask.way]
        for name in names:
            share = found.share(name, ask) if ask.way != BASE else None
            row += [number(found.speed(name, ask)), number(share, 2)]
        rows.append(row)
    for title, values in (
        ("tokens of an adapted answer as ours", found.same),
        ("as the engine's own base", found.changed),
    ):
        rows.append([title, "", "", *(cell for name in names for cell in (values.get(name, ""), ""))])
    notes = [f"- {name}: {note}" for name, note in found.notes.items()]
    told = "\nNot measured, or not to the end:\n\n" + "\n".join(notes) + "\n" if notes else ""
    return table(head, rows) + told


def section(result: dict[str, Any], text: str) -> str:
    return "\n".join(
        [
            f"## Serving adapters: `{result['command']}`\n",
            f"{result['date']}. {compare.described(result['machine'], result['limits'])}\n",
            f"{result['model']}, adapters of rank {RANK} on all seven projections; medians of",
            f"{result['rounds']} rounds in turns; {', '.join(result['versions'].values())}.",
            f"New tokens a second of a whole burst, reading included, {ANSWER} an answer. Prompts of {OWN}",
            f"tokens of their own, after {WORKLOADS['common']} in common or none.\n",
            text,
        ]
    )


# Command line


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of 1 and 8 requests")
    parser.add_argument("--only", metavar="NAMES", default=",".join(ENGINES), help=f"of {','.join(ENGINES)}")
    parser.add_argument("--model", metavar="FILE", type=Path, help="a GGUF file (SmolLM2 of `make models`)")
    parser.add_argument("--sizes", type=compare.counts, metavar="N,...", help="requests at once (1,8,32)")
    parser.add_argument("--rounds", type=int, metavar="N", help="5, or 1 with --quick")
    parser.add_argument(
        "--python", metavar="NAME=PATH", action="append", default=[], help="the Python of a peer"
    )
    parser.add_argument("--timeout", type=float, metavar="S", default=600.0, help="of one question (600)")
    parser.add_argument("--into", metavar="FOLDER", type=Path, help="where the results are written")
    args = parser.parse_args()
    args.only = args.only.split(",")
    args.whole = not (args.quick or args.model or args.sizes) and args.only == list(ENGINES)
    args.rounds = args.rounds or (1 if args.quick else 5)
    args.sizes = args.sizes or ((1, 8) if args.quick else (1, 8, 32))
    args.python = dict(pair.partition("=")[::2] for pair in args.python)
    for name in (*args.only, *args.python):
        if name not in ENGINES:
            parser.error(f"{name!r} is none of {', '.join(ENGINES)}")
    args.model = args.model or next(iter(compare.models(Path("smollm2"))), None)
    if not args.model or not args.model.exists():
        parser.error("no model file: run `make models`, or give --model")
    return args


def rounds(found: Found) -> Iterator[dict[str, Any]]:
    for name, speeds in found.speeds.items():
        for ask, values in speeds.items():
            yield {"engine": name, **vars(ask), "tokens_per_second": values}


def main() -> None:
    args = arguments()
    here, limits = machine.describe(), machine.limits()
    print(compare.described(here, limits))
    pythons = {name: path for name in args.only if (path := interpreter(name, args.python))}
    absent = [name for name in args.only if name not in pythons]
    if absent:
        print(f"Not installed: {', '.join(absent)} (`make bench-peers`).")
    if US not in pythons:
        print("Without tallow there is nothing to compare answers with.")
    with tempfile.TemporaryDirectory(prefix="adapters-") as folder:
        found = Run(args, pythons, Path(folder)).all()
    progress("")
    text = report(found, args.sizes)
    print(f"\n{text}", flush=True)
    result = {
        "command": "python benches/adapters.py",
        "date": datetime.date.today().isoformat(),
        "machine": here,
        "limits": limits,
        "model": args.model.name,
        "rounds": args.rounds,
        "versions": found.versions,
        "speeds": list(rounds(found)),
        "same_tokens": found.same,
        "notes": found.notes,
    }
    into = args.into or (HERE if args.whole else None)
    if into:
        into.mkdir(parents=True, exist_ok=True)
        (into / "adapters.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
        compare.put(into / "RESULTS.md", section(result, text), "adapters")


if __name__ == "__main__":
    main()
