"""tallow beside other engines: the same weights, the same prompts, in turns, on one machine.

    python benches/compare.py [--quick | --targets] [--only tallow,llama.cpp] [--model FILE.gguf ...]
        [--rounds N]

Measured are whichever peers are installed (`make bench-peers`, or `--python NAME=PATH`): llama.cpp,
openvino-genai, transformers, mistralrs. Each engine is a process of its own (benches/peers), asked in
turns: a round asks every engine the same question before the next, in an order that moves by one each
time, and who is not asked is stopped. Figures are medians over the rounds, and ratios say how many times
as fast tallow is.

- Prompt: a request from nothing to its first token, 512 and 2,048 tokens. Every round has new prompts.
- One stream: the 64 tokens after those 512. No drafts.
- Requests at once: 400 tokens in common and 80 of their own, 48 new ones each, nothing warmed: 1 to 32 of
  them.
- One stream after 256, 2,048 and 8,000 tokens, for engines that need not compute these anew in every
  round.
- Start: a fresh process, from loading the file to the first token of a 16-token prompt (importing apart),
  and its peak memory above an interpreter with numpy; for tallow, also what of it are weights, keys,
  values and states. Each of its three engines (single requests, bursts, the stream after a prompt that it
  keeps) has a cache of its own. tallow starts twice where it keeps packed weights on disk: with an empty
  cache, and with what the first start has left there.
- Keys and values: what tallow's take after 8,000 tokens, beside those in bfloat16.

Beside every figure stands a probe of this moment: what the inner loop of products does on all threads for
30 ms before the question and 30 after. A figure whose probe is below 0.9 of the run's best is marked with ~.

Models of 300 MB and more (`make bench-models` makes two, with random weights in the shapes of SmolLM2-1.7B
and Qwen3-0.6B) get a part of the questions: prompts of 512, the stream after it, 1 and 8 requests at once.
`--targets` asks only what the table of targets (targets.py) needs, of the models and peers that it is about:
a quarter of an hour on two cores of a quiet machine, three minutes a round.

Everything is greedy and writes over the end token. All engines get token ids that tallow's tokenizer made
of a text generated here; one that takes no ids gets the text. Of tallow and llama.cpp everything is asked,
of the others nothing that would take more than `--limit` seconds at the speed seen before. The machine's
limits are taken first; what a phase reaches of them stands below the figures. Several models have their
ratios to llama.cpp in one table at the end.

A full run writes benches/RESULTS.md (its part between two marks), results.json and results.svg;
`--quick`, `--only`, `--targets` and `--model` print only, unless `--into FOLDER` says where to write.
"""

from __future__ import annotations

import argparse
import datetime
import json
import random
import statistics
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import plot
import targets
from peers import machine
from peers.engine import ADAPTERS, Engine, Failed, interpreter

import tallow

HERE = Path(__file__).parent
MODELS = HERE.parent / "target" / "test-models"
#: Where `make bench-models` puts the large ones.
SHAPES = HERE.parent / "target" / "shapes"
LARGE = ("smollm2-1.7b-q4_k_m.gguf", "qwen3-0.6b-q4_k_m.gguf")
LARGE_BYTES = 300 << 20
US, THEM = "tallow", "llama.cpp"
COMMON, OWN, ANSWER, FIRST = 400, 80, 48, 16
TIMEOUT = 600.0  # of one question that was expected to be quick

NAMES = ("river", "garden", "teacher", "window", "bridge", "winter", "market", "letter", "harbour", "violin")
DEEDS = ("watched", "remembered", "painted", "described", "followed", "repaired", "measured", "carried")
WAYS = ("old", "quiet", "narrow", "bright", "distant", "wooden", "careful", "northern", "hollow", "patient")


# What is asked


@dataclass(frozen=True)
class Plan:
    """The sizes of a run."""

    rounds: int
    prompts: tuple[int, ...] = (512, 2048)
    stream: int = 64
    sizes: tuple[int, ...] = (1, 2, 4, 8, 16, 32)
    answer: int = ANSWER
    depths: tuple[int, ...] = (256, 2048, 8000)
    deep: int = 32
    limit: float = 60.0

    def of(self, path: Path) -> Plan:
        """What is asked of this model: of a large one a part, for each question takes ten times as long."""
        if path.stat().st_size < LARGE_BYTES:
            return self
        sizes = tuple(size for size in self.sizes if size in (1, 8)) or (8,)
        return replace(self, prompts=self.prompts[:1], stream=min(self.stream, 32), sizes=sizes, depths=())


QUICK = Plan(1, (256,), 16, (1, 8), 16, (256, 1024), 16, 10.0)
#: What the table of targets asks of a small model, and of a large one.
TARGETS = Plan(5, sizes=(32,), depths=(8000,))
#: Of whom.
TARGET_PEERS = (US, THEM, "openvino-genai")
PROBE_SECONDS = 0.03


@dataclass
class Question:
    """One call of a worker: what it costs in tokens, and which figures its answer gives."""

    do: str
    arguments: dict[str, Any]
    read: int
    write: int
    size: int

    def figures(self, answer: dict[str, Any]) -> Iterator[tuple[str, float]]:
        if self.do == "burst":
            yield f"at once {self.size}", self.write / answer["seconds"]
            yield f"burst {self.size}", answer["seconds"]
        if self.do == "single":
            yield f"prompt {self.size}", answer.get("prompt", self.size) / answer["first"]
        if self.do != "burst" and self.write > 1:
            name = "stream" if self.do == "single" else f"depth {self.size}"
            yield name, (self.write - 1) / answer["rest"]


class Prompts:
    """Texts that mean nothing in particular, as ids of one model's tokenizer; the same for the same name."""

    def __init__(self, model: tallow.Model) -> None:
        self.model = model

    def ids(self, name: str, length: int) -> list[int]:
        draw, found, text = random.Random(name), [], ""
        while len(found) < length:
            text += " ".join(sentence(draw) for _ in range(length // 12 + 2)) + " "
            found = self.model.tokenize(text)
        return found[:length]

    def one(self, do: str, name: str, length: int, new: int) -> Question:
        ids = self.ids(name, length)
        arguments = {"ids": ids, "text": self.model.detokenize(ids), "new": new}
        return Question(do, arguments, length, new, length)

    def many(self, name: str, count: int, new: int) -> Question:
        shared = self.ids(name, COMMON)
        prompts = [shared + self.ids(f"{name} {n}", OWN) for n in range(count)]
        texts = [self.model.detokenize(ids) for ids in prompts]
        arguments = {"prompts": prompts, "texts": texts, "new": new}
        return Question("burst", arguments, COMMON + OWN * count, new * count, count)

    def round(self, plan: Plan, number: int) -> Iterator[Question]:
        for length in plan.prompts:
            new = plan.stream + 1 if length == plan.prompts[0] else 1
            yield self.one("single", f"{length} tokens, round {number}", length, new)
        for count in plan.sizes:
            yield self.many(f"{count} requests, round {number}", count, plan.answer)
        for depth in plan.depths:  # one text, so that a cache helps
            if depth + plan.deep < self.model.context_length:
                yield self.one("depth", "depth", depth, plan.deep + 1)


def sentence(draw: random.Random) -> str:
    thing = lambda: f"the {draw.choice(WAYS)} {draw.choice(NAMES)}"
    place = f"number {draw.randrange(10, 1000)}"
    return f"{thing().capitalize()} {draw.choice(DEEDS)} {thing()} near {thing()} {place}."


# Asking


@dataclass
class Found:
    """What a model's run has found: figure -> engine -> a value a round, and what went wrong."""

    facts: dict[str, Any]
    path: Path
    versions: dict[str, str] = field(default_factory=dict)
    values: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    #: What the tile probe said beside each of the values.
    probes: dict[str, dict[str, list[float]]] = field(default_factory=dict)
    same: dict[str, str] = field(default_factory=dict)
    notes: dict[str, str] = field(default_factory=dict)
    slow: list[tuple[str, str]] = field(default_factory=list)

    def add(self, figure: str, engine: str, value: float, probe: float | None = None) -> None:
        self.values.setdefault(figure, {}).setdefault(engine, []).append(value)
        if probe is not None:
            self.probes.setdefault(figure, {}).setdefault(engine, []).append(probe)

    def median(self, figure: str, engine: str) -> float | None:
        values = self.values.get(figure, {}).get(engine)
        return statistics.median(values) if values else None


class Probe:
    """The machine at this moment: byte operations a second in the inner loop of products, all threads."""

    best = 0.0

    @classmethod
    def take(cls) -> float:
        rate = tallow._core._tile_probe(machine.threads(), PROBE_SECONDS)
        cls.best = max(cls.best, rate)
        return rate


class Run:
    """All that is asked about one model."""

    def __init__(self, path: Path, pythons: dict[str, str], plan: Plan) -> None:
        self.path, self.pythons, self.plan = str(path.resolve()), pythons, plan.of(path)
        model = tallow.Model(path, progress=False)
        self.prompts = Prompts(model)
        self.found = Found(facts(model, path), path)
        self.engines: dict[str, Engine] = {}
        self.broken: set[tuple[str, str, int]] = set()
        self.plain = False  # llama.cpp, after a burst has ended it

    def start(self, name: str) -> None:
        """A cold start, of tallow a second one after it. The process stays, unless another round will start
        one.
        """
        if name != US:
            return self.start_once(name, "start")
        # What is mapped stays, also when the folder is gone.
        with tempfile.TemporaryDirectory(prefix="tallow-bench-") as folder:
            self.start_once(US, "start", folder)
            if US in self.engines and self.engines[US].ask("settle", TIMEOUT) == "kept":
                self.engines.pop(US).end()
                self.start_once(US, "start later", folder)

    def start_once(self, name: str, figure: str, cache: str | None = None) -> None:
        before = Probe.take()
        engine = Engine(name, self.pythons[name], {"TALLOW_CACHE": cache} if cache else {})
        self.engines[name] = engine
        first = self.prompts.one("single", "first", FIRST, 1).arguments
        options: dict[str, Any] = {"path": self.path, "threads": machine.threads()}
        if name == THEM and self.plain:
            options["plain"] = True
        try:
            loaded = engine.ask("load", TIMEOUT, **options, first=[first["ids"], first["text"]])
        except Failed as error:
            self.fail(name, error)
            return
        probe = min(before, Probe.take())
        # One that runs again in another way is no further round of the start.
        if "plain" not in options:
            self.found.add(figure, name, loaded["start"], probe)
        for other in ("import", "peak") if figure == "start" and "plain" not in options else ():
            self.found.add(other, name, loaded[other])
        self.found.versions[name] = loaded["version"]
        engine.loaded, engine.prefill = loaded, FIRST / loaded["again"]

    def fail(self, name: str, error: Failed, while_: str = "") -> None:
        """Told with the results. Only an engine that is gone is not asked again."""
        said = " ".join(str(error).split())
        note = f"{while_}{said.replace(self.path, Path(self.path).name)}"
        self.found.notes.setdefault(name, note)
        if not while_ or not self.engines[name].alive:
            self.engines.pop(name).end()

    def all(self) -> Found:
        try:
            for number in range(self.plan.rounds):
                self.end()
                for name in turned(self.pythons, number):
                    if name not in self.found.notes:
                        progress(f"round {number + 1} of {self.plan.rounds}: start of {name}")
                        self.start(name)
            self.engines = {name: self.engines[name] for name in self.pythons if name in self.engines}
            self.ask_all()
        finally:
            self.end()
        return self.found

    def end(self) -> None:
        while self.engines:
            self.engines.popitem()[1].end()

    def ask_all(self) -> None:
        turn = 0
        for number in range(self.plan.rounds):
            for question in self.prompts.round(self.plan, number):
                answers = {}
                for name in turned(self.engines, turn):
                    progress(
                        f"round {number + 1} of {self.plan.rounds}: {question.do} {question.size}, {name}"
                    )
                    answers[name] = self.ask(self.engines[name], question)
                turn += 1
                self.compare(question, answers)
        if US in self.engines and 8000 in self.plan.depths and self.prompts.model.context_length > 8000:
            self.ask_kept(self.engines[US])
        for name, engine in list(self.engines.items()):
            try:
                for figure, value in engine.ask("peak", TIMEOUT).items():
                    self.found.add(f"{figure} at the end", name, value)
            except Failed as error:
                self.fail(name, error)

    def ask_kept(self, engine: Engine) -> None:
        progress("keys and values at 8,000 tokens")
        ids = self.prompts.one("kept", "depth", 8000, 1).arguments["ids"]
        try:
            self.found.add("kept", US, engine.ask("kept", TIMEOUT, ids=ids))
        except Failed as error:
            self.fail(US, error, "kept: ")  # what the rounds have found is not lost with it

    def ask(self, engine: Engine, question: Question) -> dict[str, Any] | None:
        kind = (engine.name, question.do, question.size)
        if kind in self.broken or not answers(engine, question, self.plan):
            return None
        if engine.name not in (US, THEM) and expected(engine, question) > self.plan.limit:
            for figure, _ in question.figures({"seconds": 1, "first": 1, "rest": 1}):
                self.found.slow.append((figure, engine.name))
            return None
        before = Probe.take()
        try:
            answer = engine.ask(question.do, TIMEOUT, **question.arguments)
        except Failed as error:
            if self.goes_on_plainly(engine, question, error):
                return self.ask(self.engines[THEM], question)
            self.broken.add(kind)
            self.fail(engine.name, error, f"{question.do} {question.size}: ")
            return None
        probe = min(before, Probe.take())
        for figure, value in question.figures(answer):
            self.found.add(figure, engine.name, value, probe)
        if question.do == "single":
            engine.prefill = question.read / answer["first"]
            if question.write > 1:
                engine.decode = (question.write - 1) / answer["rest"]
        return answer

    def goes_on_plainly(self, engine: Engine, question: Question, error: Failed) -> bool:
        """Whether llama.cpp, which a burst ended, runs again: with weights that it does not repack."""
        if engine.name != THEM or question.do != "burst" or engine.alive or self.plain:
            return False
        self.plain = True
        self.fail(THEM, error, f"burst {question.size}, from there on without repacked weights (AMX): ")
        self.start(THEM)
        return THEM in self.engines

    def compare(self, question: Question, answers: dict[str, dict[str, Any] | None]) -> None:
        """How many tokens of the first answer are ours: that all compute the same model is to be seen."""
        ours = (answers.get(US) or {}).get("tokens")
        if question.do != "single" or question.write == 1 or not ours:
            return
        for name, answer in answers.items():
            theirs = (answer or {}).get("tokens")
            if theirs and name not in self.found.same:
                equal = (at for at, pair in enumerate(zip(ours, theirs, strict=True)) if pair[0] != pair[1])
                self.found.same[name] = f"{next(equal, len(ours))} of {len(ours)}"


def answers(engine: Engine, question: Question, plan: Plan) -> bool:
    """Whether the engine takes part: in the sweeps only who batches, and who keeps what it has computed."""
    if question.do == "depth":
        return engine.loaded["keeps"]
    return question.do != "burst" or engine.loaded["batches"] or question.size == max(plan.sizes)


def expected(engine: Engine, question: Question) -> float:
    """Seconds, roughly: a row more in a batch is taken for an eighth of one alone."""
    read, write = question.read, question.write
    if question.do == "depth":
        return 0.0  # only the first time
    if question.do == "burst" and engine.loaded["batches"]:
        write = round(write / question.size * (1 + question.size / 8))
    elif question.do == "burst":
        read = (COMMON + OWN) * question.size
    return engine.seconds(read, write)


def turned(names: Any, by: int) -> list[str]:
    order = list(names)
    by %= max(len(order), 1)
    return order[by:] + order[:by]


def facts(model: tallow.Model, path: Path) -> dict[str, Any]:
    """Sizes that the limits are computed from."""
    config = model.config
    sizes = [config[name] for name in ("num_heads", "num_kv_heads", "head_dim", "intermediate_size")]
    layer = 2 * (sizes[0] + sizes[1]) * sizes[2] + 3 * sizes[3] if all(sizes) else 0
    return {
        "file": path.name,
        "file_bytes": path.stat().st_size,
        # What a token reads; of experts it reads some.
        "weight_bytes": 0 if config["num_experts"] else model.weight_bytes,
        # Of a transformer whose layers are all alike; of others this would say nothing.
        "layer_weights": config["num_layers"] * config["hidden_size"] * layer,
        "context": model.context_length,
    }


def progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\x1b[K{text}", end="", file=sys.stderr, flush=True)


# Telling

MARKED = "~: the tile probe beside it was below 0.9 of the run's best."


def number(value: float | None, digits: int = 3) -> str:
    """With as many digits as a noisy figure deserves."""
    if value is None:
        return ""
    if value >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:.{digits}g}"


def table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def summary(plan: Plan, rows: list[list[str]]) -> str:
    """The table of several models, of their `Report.summary`."""
    head = ["model", *(f"prompt of {length:,}" for length in plan.prompts), "one stream"]
    head += [f"{size} at once" for size in plan.sizes]
    return table([*head, "peak memory", "peak / weights, keys, states"], rows)


class Report:
    """The Markdown of one model."""

    def __init__(self, found: Found, names: list[str], plan: Plan, limits: dict[str, float]) -> None:
        self.found, self.plan, self.limits = found, plan.of(found.path), limits
        self.names = [name for name in names if name in found.versions]

    def ratio(self, figure: str, others: list[str], more_is_better: bool) -> str:
        """How many times as fast as the best of the others."""
        ours = self.found.median(figure, US)
        theirs = [v for name in others if name != US and (v := self.found.median(figure, name))]
        if not ours or not theirs:
            return ""
        return f"{ours / max(theirs) if more_is_better else min(theirs) / ours:.2f}"

    def row(self, title: str, figure: str, more_is_better: bool = True) -> list[str]:
        cells = []
        for name in self.names:
            value = self.found.median(figure, name)
            slow = value is None and (figure, name) in self.found.slow
            cells.append(f"over {self.plan.limit:.0f} s" if slow else number(value) + self.mark(figure, name))
        ratios = [self.ratio(figure, names, more_is_better) for names in (self.names, [THEM])]
        return [title, *cells, *ratios]

    def mark(self, figure: str, name: str) -> str:
        """Whether the figure was taken beside a slow probe."""
        probes = self.found.probes.get(figure, {}).get(name)
        return " ~" if probes and statistics.median(probes) < targets.QUIET * Probe.best else ""

    def rows(self) -> Iterator[list[str]]:
        plan, most = self.plan, max(self.plan.sizes)
        for length in plan.prompts:
            yield self.row(f"prompt of {length:,}, tokens/s", f"prompt {length}")
        yield self.row(f"one stream after {plan.prompts[0]:,}, tokens/s", "stream")
        yield self.row(f"**{most} requests at once, s**", f"burst {most}", False)
        for size in plan.sizes:
            yield self.row(f"{size} at once, new tokens/s", f"at once {size}")
        for depth in plan.depths:
            yield self.row(f"one stream in a context of {depth:,}, tokens/s", f"depth {depth}")
        yield self.row("load to first token, s", "start", False)
        if "start later" in self.found.values:
            yield self.row("the same with what the first start kept, s", "start later", False)
        yield self.row("import before it, s", "import", False)
        yield self.row("peak memory after the first token, MiB", "peak", False)
        yield self.row("peak memory after everything, MiB", "peak at the end", False)
        yield ["first answer's tokens as ours", *(self.found.same.get(n, "") for n in self.names), "", ""]

    def reached(self) -> Iterator[list[str]]:
        """Our phases beside the machine's limits."""
        memory = max(self.limits["memory_1"], self.limits["memory_all"])
        weights, layers = self.found.facts["weight_bytes"], self.found.facts["layer_weights"]
        for figure in ("stream", *(f"depth {depth}" for depth in self.plan.depths)):
            speed = self.found.median(figure, US)
            if speed and weights:
                read = weights * speed / 1e9
                title = figure.replace("depth", "in a context of").replace("stream", "one stream")
                yield [title, f"{read:.1f} GB/s of weights", f"{read / memory:.0%} of memory speed"]
        for length in self.plan.prompts:
            speed = self.found.median(f"prompt {length}", US)
            if speed and layers:
                done = 2 * layers * speed / 1e9
                times = f"{done / self.limits['gemm']:.2f} x the f32 product"
                yield [f"prompt of {length:,}", f"{done:,.0f} GFLOP/s in the layers", times]
        peak = self.found.median("peak", US)
        if peak:
            share = peak * 2**20 / self.found.facts["file_bytes"]
            size = self.found.facts["file_bytes"] / 2**20
            yield [
                "memory after the first token",
                f"{peak:.0f} MiB, the file has {size:.0f}",
                f"{share:.2f} x the file",
            ]
        if share := self.memory():
            held = self.found.median("held at the end", US)
            yield [
                "memory after everything",
                f"{held:.0f} MiB of weights, keys, values and states",
                f"{share:.2f} x these",
            ]

    def memory(self) -> float | None:
        """Our peak as a multiple of the weights, keys, values and states in it."""
        peak, held = (self.found.median(f"{figure} at the end", US) for figure in ("peak", "held"))
        return peak / held if peak and held else None

    def summary(self) -> list[str]:
        """Ratios to llama.cpp, for a table of several models."""
        plan, both = self.plan, [US, THEM]
        figures = [f"prompt {length}" for length in plan.prompts] + ["stream"]
        ratios = [self.ratio(figure, both, True) for figure in figures]
        ratios += [self.ratio(f"burst {size}", both, False) for size in plan.sizes]
        memory = self.ratio("peak at the end", both, False)
        share = self.memory()
        return [self.found.facts["file"], *ratios, memory, f"{share:.2f}" if share else ""]

    def text(self) -> str:
        head = [self.found.facts["file"], *self.names, "tallow / best peer", "tallow / llama.cpp"]
        parts = [table(head, list(self.rows()))]
        notes = [f"- {name}: {note}" for name, note in self.found.notes.items()]
        if notes:
            parts.append("Not measured, or not to the end:\n\n" + "\n".join(notes) + "\n")
        parts.append(table(["what tallow reaches", "", ""], list(self.reached())))
        return "\n".join(parts)


def described(here: dict[str, Any], limits: dict[str, float]) -> str:
    return (
        f"{here['cpu']} ({', '.join(here['flags'])}), {here['cores']} cores, {here['memory_gib']} GiB, "
        f"{here['system']}, Python {here['python']}, load before the start {here['load']}.\n"
        f"Memory reads at {limits['memory_1']:.1f} GB/s with one thread and {limits['memory_all']:.1f} with "
        f"{here['cores']} (memchr over 512 MiB);\na product of f32 matrices runs at {limits['gemm']:,.0f} "
        "GFLOP/s (numpy)."
    )


def section(result: dict[str, Any], reports: list[str]) -> str:
    versions = dict(sorted(result["versions"].items(), key=lambda pair: list(ADAPTERS).index(pair[0])))
    return "\n".join(
        [
            f"## Beside other engines: `{result['command']}`\n",
            f"{result['date']}. {described(result['machine'], result['limits'])}\n",
            f"Medians of {result['rounds']} rounds in turns; {', '.join(versions.values())}.\n",
            "Ratios say how many times as fast tallow is (for memory: how many times as small). Requests at",
            f"once have {COMMON} tokens in common and {OWN} of their own, {result['answer']} new ones each,",
            "nothing warmed; llama.cpp and transformers are told what is in common.",
            f"{MARKED} The best was {result['best_probe'] / 1e9:,.0f} GOP/s.\n",
            *([targets.table(reached)] if (reached := targets.ratios(result)) else []),
            "![The figures as a plot](results.svg)\n",
            *reports,
        ]
    )


def put(path: Path, text: str, mark: str = "compare") -> None:
    """Between the marks; a file without them gets them at its end."""
    begin, end = f"<!-- {mark}: begin -->", f"<!-- {mark}: end -->"
    old = path.read_text(encoding="utf-8") if path.exists() else "# Results\n"
    if begin not in old or end not in old:
        old += f"\n{begin}\n{end}\n"
    before, rest = old.split(begin, 1)
    after = rest.split(end, 1)[1]
    path.write_text(f"{before}{begin}\n{text}\n{end}{after}", encoding="utf-8")


def write(folder: Path, result: dict[str, Any], text: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    told = {name: result[name] for name in ("command", "date", "machine", "best_probe", "versions")}
    told["machine"] = result["machine"]["cpu"]
    told["ratios"] = targets.ratios(result)
    (folder / "targets.json").write_text(json.dumps(told, indent=1) + "\n", encoding="utf-8")
    (folder / "results.json").write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    (folder / "results.svg").write_text(plot.drawing(result), encoding="utf-8")
    put(folder / "RESULTS.md", text)


# Command line


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one round of small sizes")
    parser.add_argument("--targets", action="store_true", help="only what the table of targets needs")
    parser.add_argument("--only", metavar="NAMES", help=f"of {','.join(ADAPTERS)}, with commas between")
    parser.add_argument(
        "--model",
        metavar="FILE",
        type=Path,
        action="append",
        default=[],
        help="instead of both (a path, or part of a name); may be given several times",
    )
    parser.add_argument("--sizes", type=counts, metavar="N,...", help="requests at once (1,2,4,8,16,32)")
    parser.add_argument("--depths", type=counts, metavar="N,...", help="contexts of one stream, or none")
    parser.add_argument(
        "--draft-gain",
        metavar="TIMES",
        type=float,
        help="what drafts of acceptance 0.7 bring a stream of the 1.7B shape (cargo bench --bench drafts)",
    )
    parser.add_argument("--rounds", type=int, metavar="N", help="5, or 1 with --quick")
    parser.add_argument(
        "--limit", type=float, metavar="S", help="no question longer than this (60; quick: 10)"
    )
    parser.add_argument(
        "--python", metavar="NAME=PATH", action="append", default=[], help="the Python of a peer"
    )
    parser.add_argument("--into", metavar="FOLDER", type=Path, help="where the results are written")
    args = parser.parse_args()
    everybody = list(TARGET_PEERS) if args.targets else list(ADAPTERS)
    args.only = args.only.split(",") if args.only else everybody
    args.python = dict(pair.partition("=")[::2] for pair in args.python)
    for name in (*args.only, *args.python):
        if name not in ADAPTERS:
            parser.error(f"{name!r} is none of {', '.join(ADAPTERS)}")
    for name, path in args.python.items():
        if not Path(path).exists():
            parser.error(f"--python {name}: there is no {path!r}")
    wanted = args.model or (list(map(Path, targets.MODELS)) if args.targets else [None])
    args.files = [file for one in wanted for file in models(one)]
    if not args.files:
        parser.error("no model file: run `make models`, or give --model")
    return args


def models(wanted: Path | None) -> list[Path]:
    """Ours, the small ones first."""
    if wanted and wanted.exists():
        return [wanted]
    files = [*MODELS.glob("*.gguf"), *(SHAPES / name for name in LARGE)]
    files = sorted((path for path in files if path.exists()), key=lambda path: path.stat().st_size)
    return [path for path in files if not wanted or str(wanted).lower() in path.name.lower()]


def counts(text: str) -> tuple[int, ...]:
    """`1,8,32`, or `none`."""
    return () if text == "none" else tuple(int(part) for part in text.split(","))


CHANGES = ("rounds", "limit", "sizes", "depths")
SAID = (*CHANGES, "draft_gain")


def planned(args: argparse.Namespace) -> Plan:
    plan = QUICK if args.quick else TARGETS if args.targets else Plan(5)
    changes = {name: value for name in CHANGES if (value := getattr(args, name)) is not None}
    return Plan(**(vars(plan) | changes))


def command(args: argparse.Namespace) -> str:
    """As it was called, without the paths of this machine."""
    parts = ["python benches/compare.py"] + ["--quick"] * args.quick + ["--targets"] * args.targets
    if len(args.only) < len(ADAPTERS) and (not args.targets or set(args.only) != set(TARGET_PEERS)):
        parts.append(f"--only {','.join(args.only)}")
    parts += [f"--model {model.name}" for model in args.model]
    for name in SAID:
        value = getattr(args, name)
        if value is not None:
            text = ",".join(map(str, value)) or "none" if isinstance(value, tuple) else f"{value:g}"
            parts.append(f"--{name.replace('_', '-')} {text}")
    return " ".join(parts)


def saved(found: Found) -> dict[str, Any]:
    medians = {
        figure: {name: found.median(figure, name) for name in row} for figure, row in found.values.items()
    }
    rest = {"versions": found.versions, "same_tokens": found.same, "notes": found.notes}
    return {"facts": found.facts, "median": medians, "rounds": found.values, "probes": found.probes, **rest}


def main() -> None:
    args = arguments()
    plan, here = planned(args), machine.describe()
    progress("the machine's limits")
    limits = machine.limits()
    pythons = {
        name: path for name in ADAPTERS if name in args.only and (path := interpreter(name, args.python))
    }
    progress("")
    print(described(here, limits))
    absent = [name for name in args.only if name not in pythons]
    if absent:
        print(f"Not installed: {', '.join(absent)} (`make bench-peers`).")
    reports, founds, rows = [], [], []
    for path in args.files:
        founds.append(Run(path, pythons, plan).all())
        if args.draft_gain and targets.LARGE in path.name and (stream := founds[-1].median("stream", US)):
            founds[-1].add("drafted", US, stream * args.draft_gain)
        report = Report(founds[-1], list(pythons), plan, limits)
        reports.append(report.text())
        rows.append(report.summary())
        progress("")
        print(f"\n{reports[-1]}", flush=True)
    if len(rows) > 1 and THEM in pythons:
        print(f"Times as fast as llama.cpp (memory: as small):\n\n{summary(plan, rows)}")
    result = {
        "command": command(args),
        "date": datetime.date.today().isoformat(),
        "machine": here,
        "limits": limits,
        "best_probe": Probe.best,
        "rounds": plan.rounds,
        "answer": plan.answer,
        "versions": {name: text for found in founds for name, text in found.versions.items()},
        "models": [saved(found) for found in founds],
    }
    reached = targets.ratios(result)
    if reached:
        print(f"\n{targets.table(reached)}\n{MARKED}")
    whole = not (args.quick or args.targets or args.model or len(args.only) < len(ADAPTERS))
    folder = args.into or (HERE if whole else None)
    if folder:
        write(folder, result, section(result, reports))
        print(f"Written to {folder}.")


if __name__ == "__main__":
    main()
