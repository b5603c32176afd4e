"""The table of targets: tallow / best peer, figure by figure, of the newest run and of the last that landed.

    python benches/targets.py [NEW.json [LANDED.json]]

`compare.py` writes the ratios of a run beside its results as targets.json; the committed one is what landed
last. `make bench-check` takes the figures anew (into target/bench) and compares: a ratio more than 5 % below
the landed one is told, and the exit status is 1. A ratio that was taken beside a slow tile probe is marked,
and no reason to believe in a loss or a gain: run again.
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
LANDED, NEW = HERE / "targets.json", HERE.parent / "target" / "bench" / "targets.json"
#: What a ratio may fall below the landed one.
TOLERANCE = 0.05
#: What a tile probe may be below the best of the run before the figure beside it is doubted.
QUIET = 0.9
US = "tallow"


@dataclass(frozen=True)
class Target:
    """A row of the table: a figure of a model, and the ratios wanted of it."""

    title: str
    #: Part of the file's name.
    model: str
    figure: str
    must: float
    aim: float
    more_is_better: bool = True
    #: What the peers' figure is called, where they have no such thing.
    peers: str | None = None


#: Parts of the files' names.
MODELS = SMALL, LARGE = "SmolLM2-135M", "smollm2-1.7b"
TARGETS = (
    Target("135M: prompt of 512", SMALL, "prompt 512", 1.5, 2.0),
    Target("135M: prompt of 2,048", SMALL, "prompt 2048", 1.8, 2.2),
    Target("135M: one stream", SMALL, "stream", 3.2, 4.0),
    Target("135M: one stream in a context of 8,000", SMALL, "depth 8000", 4.0, 5.0),
    Target("135M: 32 at once, common prefix", SMALL, "burst 32", 5.0, 6.0, more_is_better=False),
    Target("1.7B: prompt of 512", LARGE, "prompt 512", 1.4, 1.8),
    Target("1.7B: one stream", LARGE, "stream", 1.9, 2.0),
    Target("1.7B: one stream, drafts of acceptance 0.7", LARGE, "drafted", 2.6, 3.0, peers="stream"),
    Target("1.7B: 8 at once", LARGE, "burst 8", 3.0, 4.0, more_is_better=False),
    Target("1.7B: load to first token, first start", LARGE, "start", 1.1, 1.5, more_is_better=False),
    Target("1.7B: load to first token, later starts", LARGE, "start later", 3.0, 6.0, False, peers="start"),
)
#: Bytes of keys and values beside those in bfloat16: less is better, and no peer is asked.
KEPT = ("135M: keys and values at 8,000 tokens / bfloat16", SMALL, "kept", 0.53)


def median_probe(model: dict[str, Any], figure: str, engine: str) -> float | None:
    found = sorted(model.get("probes", {}).get(figure, {}).get(engine, []))
    return found[len(found) // 2] if found else None


def ratios(result: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Title -> the ratio, its best peer, and whether all of it was taken in quiet moments."""
    found = {}
    best_probe = result.get("best_probe")
    for target in TARGETS:
        for model in result["models"]:
            if target.model.lower() not in model["facts"]["file"].lower():
                continue
            ours = model["median"].get(target.figure, {}).get(US)
            name = target.peers or target.figure
            theirs = {peer: value for peer, value in model["median"].get(name, {}).items() if peer != US}
            if not ours or not theirs:
                continue
            best = (max if target.more_is_better else min)(theirs, key=lambda peer: theirs[peer])
            ratio = ours / theirs[best] if target.more_is_better else theirs[best] / ours
            probes = [median_probe(model, target.figure, US), median_probe(model, name, best)]
            quiet = all(not best_probe or probe is None or probe >= QUIET * best_probe for probe in probes)
            found[target.title] = {"ratio": round(ratio, 3), "peer": best, "quiet": quiet}
    title, part, figure, _ = KEPT
    for model in result["models"]:
        kept = model["median"].get(figure, {}).get(US)
        if part.lower() in model["facts"]["file"].lower() and kept:
            found[title] = {"ratio": round(kept, 3), "peer": "", "quiet": True}
    return found


def verdict(ratio: float, must: float, aim: float) -> str:
    return "aim" if ratio >= aim else "must" if ratio >= must else f"{ratio / must:.0%} of must"


def table(found: dict[str, dict[str, Any]], landed: dict[str, dict[str, Any]] | None = None) -> str:
    """Markdown."""
    head = ["tallow / best peer", "ratio", "best peer", "must", "aim", "reached"] + ["landed"] * bool(landed)
    lines = [head, ["---"] * len(head)]
    for target in TARGETS:
        if row := found.get(target.title):
            lines.append(
                [
                    target.title,
                    f"{row['ratio']:.2f}" + ("" if row["quiet"] else " ~"),
                    row["peer"],
                    f"{target.must:g}",
                    f"{target.aim:g}",
                    verdict(row["ratio"], target.must, target.aim),
                ]
            )
    title, _, _, most = KEPT
    if row := found.get(title):
        reached = "aim" if row["ratio"] <= most else "not yet"
        lines.append([title, f"{row['ratio']:.2f}", "", f"{most:g}", f"{most:g}", reached])
    if landed:
        for line in lines[2:]:
            line.append(f"{landed[line[0]]['ratio']:.2f}" if line[0] in landed else "")
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def losses(found: dict[str, dict[str, Any]], landed: dict[str, dict[str, Any]]) -> list[str]:
    """What is more than the tolerance worse than what landed."""
    told = []
    for title, row in found.items():
        if title not in landed:
            continue
        change = row["ratio"] / landed[title]["ratio"]
        worse = 1 / change if title == KEPT[0] else change
        if worse < 1 - TOLERANCE:
            doubt = (
                "" if row["quiet"] and landed[title]["quiet"] else " (beside a slow tile probe: run again)"
            )
            told.append(f"{title}: {row['ratio']:.2f}, landed {landed[title]['ratio']:.2f}{doubt}")
    return told


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("new", nargs="?", type=Path, default=NEW)
    parser.add_argument("landed", nargs="?", type=Path, default=LANDED)
    args = parser.parse_args()
    if not args.new.exists():
        parser.error(f"there is no {args.new}: run `make bench-check`, which takes the figures first")
    found = json.loads(args.new.read_text(encoding="utf-8"))["ratios"]
    landed = json.loads(args.landed.read_text(encoding="utf-8")) if args.landed.exists() else {"ratios": {}}
    print(table(found, landed["ratios"]))
    if landed.get("machine") and landed["machine"] != json.loads(args.new.read_text())["machine"]:
        print(f"Landed on another machine: {landed['machine']}. Ratios differ between machines.")
    worse = losses(found, landed["ratios"])
    for line in worse:
        print(f"more than {TOLERANCE:.0%} worse: {line}")
    sys.exit(1 if worse else 0)


if __name__ == "__main__":
    main()
