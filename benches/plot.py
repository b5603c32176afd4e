"""Draws benches/results.json as benches/results.svg: a row of four panels for each model.

    python benches/plot.py [results.json [results.svg]]

`compare.py` calls it. An SVG is text, so none of the plotting libraries is needed.
"""

from __future__ import annotations

import argparse
import json
import math
from html import escape
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COLOURS = {
    "tallow": "#c2571a",
    "llama.cpp": "#2f6db3",
    "openvino-genai": "#5b8c3e",
    "transformers": "#8a62b0",
    "mistralrs": "#8b8b8b",
}
WIDTH, HEIGHT = 250, 180  # of a panel, with what stands around its axes
LEFT, TOP, RIGHT, BOTTOM = 44, 34, 10, 30
INNER, TALL = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM
HEAD, LEGEND = 20, 30

Series = dict[str, dict[int, float]]  # engine -> size -> value


def series(model: dict[str, Any], prefix: str) -> Series:
    """The figures whose names are `prefix` and a size; one without a size has size 0."""
    found: Series = {}
    for figure, row in model["median"].items():
        name, _, size = figure.rpartition(" ")
        if (name or figure) == prefix:
            for engine, value in row.items():
                found.setdefault(engine, {})[int(size) if name else 0] = value
    return {engine: dict(sorted(found[engine].items())) for engine in COLOURS if engine in found}


def text(
    x: float, y: float, words: str, anchor: str = "middle", size: int = 10, weight: str = "normal"
) -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" font-weight="{weight}">'
        f"{escape(words)}</text>"
    )


def short(value: float) -> str:
    return f"{value / 1000:g}k" if value >= 1000 else f"{value:g}"


def step(top: float) -> float:
    """A round distance of grid lines, at most five of them."""
    least = top / 5
    unit = 10 ** math.floor(math.log10(least))
    return next(unit * times for times in (1, 2, 5, 10) if unit * times >= least)


class Panel:
    """Axes with a title at a place in the drawing; values grow upwards from 0."""

    def __init__(self, x: float, y: float, title: str, data: Series) -> None:
        self.x, self.y, self.data = x + LEFT, y + TOP, data
        self.parts = [text(self.x - 30, y + 20, title, "start", 11, "bold")]
        values = [value for row in data.values() for value in row.values()]
        self.distance = step(max(values, default=1.0))
        self.top = math.ceil(max(values, default=1.0) / self.distance) * self.distance
        self.sizes = sorted({size for row in data.values() for size in row})
        for line in range(round(self.top / self.distance) + 1):
            self.grid(line * self.distance)

    def grid(self, value: float) -> None:
        at = self.height(value)
        self.parts.append(f'<path d="M{self.x} {at:.1f}h{INNER}" stroke="#ddd"/>')
        self.parts.append(text(self.x - 5, at + 3, short(value), "end", 9))

    def height(self, value: float) -> float:
        return self.y + TALL * (1 - value / self.top)

    def below(self, at: float, words: str) -> None:
        self.parts.append(text(at, self.y + TALL + 14, words, size=9))

    def bars(self) -> str:
        """A group of bars for each size."""
        group = INNER / max(len(self.sizes), 1)
        bar = group * 0.8 / max(len(self.data), 1)
        for place, size in enumerate(self.sizes):
            start = self.x + group * (place + 0.1)
            self.below(start + group * 0.4, f"{size:,} tokens" if size else "")
            for at, (engine, row) in enumerate(self.data.items()):
                if size in row:
                    self.bar(start + bar * at, bar, engine, row[size])
        return "".join(self.parts)

    def bar(self, x: float, width: float, engine: str, value: float) -> None:
        top = self.height(value)
        box = f'x="{x:.1f}" y="{top:.1f}" width="{width * 0.92:.1f}" height="{self.y + TALL - top:.1f}"'
        label = f"<title>{escape(engine)}: {value:,.1f}</title>"
        self.parts.append(f'<rect {box} fill="{COLOURS[engine]}">{label}</rect>')
        self.parts.append(text(x + width * 0.46, top - 2, f"{value:.0f}", size=7))

    def lines(self) -> str:
        """A line for each engine over the sizes, each as far from the next as it is doubled."""
        logs = [math.log2(size) for size in self.sizes] or [0.0]
        wide = max(logs[-1] - logs[0], 1e-9)
        place = {
            s: self.x + 8 + (INNER - 16) * (g - logs[0]) / wide
            for s, g in zip(self.sizes, logs, strict=False)
        }
        for size, at in place.items():
            self.below(at, f"{size:,}")
        for engine, row in self.data.items():
            points = [(place[size], self.height(value)) for size, value in row.items()]
            path = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
            colour = COLOURS[engine]
            self.parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
            self.parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="2.5" fill="{colour}"/>' for x, y in points]
        return "".join(self.parts)


def panels(model: dict[str, Any], y: float) -> str:
    kinds = (
        ("Prompt, tokens/s", "prompt", Panel.bars),
        ("One stream, tokens/s", "stream", Panel.bars),
        ("New tokens/s by requests at once", "at once", Panel.lines),
        ("Stream by context, tokens/s", "depth", Panel.lines),
    )
    drawn = [
        kind(Panel(WIDTH * at, y + HEAD, title, series(model, name)))
        for at, (title, name, kind) in enumerate(kinds)
    ]
    return text(14, y + HEAD, model["facts"]["file"], "start", 13, "bold") + "".join(drawn)


def legend(engines: list[str], y: float) -> str:
    parts = []
    for at, engine in enumerate(engines):
        x = 14 + 130 * at
        parts.append(f'<rect x="{x}" y="{y}" width="12" height="12" fill="{COLOURS[engine]}"/>')
        parts.append(text(x + 18, y + 10, engine, "start", 11))
    return "".join(parts)


def drawing(result: dict[str, Any]) -> str:
    models, wide = result["models"], WIDTH * 4
    tall = (HEIGHT + HEAD) * len(models) + LEGEND
    engines = [name for name in COLOURS if any(name in model["versions"] for model in models)]
    body = "\n".join(panels(model, (HEIGHT + HEAD) * at) for at, model in enumerate(models))
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {wide} {tall}" width="{wide}" height="{tall}" '
        f'font-family="system-ui, sans-serif" fill="#222"><rect width="100%" height="100%" fill="#fff"/>\n'
        f"{body}\n{legend(engines, tall - LEGEND + 8)}\n</svg>\n"
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("results", nargs="?", type=Path, default=HERE / "results.json")
    parser.add_argument("drawing", nargs="?", type=Path)
    args = parser.parse_args()
    result = json.loads(args.results.read_text(encoding="utf-8"))
    (args.drawing or args.results.with_suffix(".svg")).write_text(drawing(result), encoding="utf-8")


if __name__ == "__main__":
    main()
