"""What a notebook shows: a model as a table, an answer with its tokens coloured, probabilities as bars, an
answer while it is written, and the loss of a training.

Plain HTML with inline styles and no JavaScript, for what a notebook stores is shown by many programs. Nothing
sets a colour for text, and all fills are translucent or of a middle lightness, so that it reads on white as
on black. Whatever comes from a model, a file or a user goes through ``html.escape``.
"""

from __future__ import annotations

import codecs
import math
import re
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from ._log import size
from .progress import in_notebook

if TYPE_CHECKING:
    from .model import Model
    from .results import Completion, Score, TokenLogprob
    from .training import Training

_MOST_TOKENS = 2000  # that are coloured; a notebook keeps what it shows
_MOST_COLUMNS = 80  # of the curve of a training
_INTERVAL = 0.1  # seconds between two updates of what a cell shows
_FAINT = "opacity:.65;font-size:85%"
_CELL = "text-align:left;padding:.15em .8em .15em 0;border:0;background:none;vertical-align:middle"
_TEXT = "white-space:pre-wrap;overflow-wrap:anywhere"
_BLUE, _ORANGE = "70,130,230", "240,120,20"


def _tag(name: str, style: str, content: str, title: str = "") -> str:
    """``content`` is HTML; ``title`` is text."""
    told = f' title="{escape(title)}"' if title else ""
    return f'<{name} style="{style}"{told}>{content}</{name}>'


def _table(rows: Iterable[Sequence[str]]) -> str:
    """Of cells that are HTML."""
    body = "".join(f"<tr>{''.join(_tag('td', _CELL, cell) for cell in row)}</tr>" for row in rows)
    return f'<table style="border-collapse:collapse;border:0;margin:.3em 0">{body}</table>'


def percent(probability: float) -> str:
    if math.isnan(probability):
        return "?"
    return "<0.1%" if 0 < probability < 0.0005 else f"{probability:.1%}"


# Models


def model(model: Model) -> str:
    """The facts that a person asks for first. Starts no engine."""
    config = model.config
    shape = f"{config['num_layers']} layers of width {config['hidden_size']}"
    shape += f", a vocabulary of {model.vocab_size:,} tokens"
    if config.get("num_experts"):
        shape += f", {config['num_experts']} experts ({config['num_experts_per_tok']} a token)"
    rows = {
        "family": str(config.get("family", "?")),
        "size": shape,
        "quantization": f"{' + '.join(model.weight_types)}, computed in {model.dtype}",
        "context": f"{model.context_length:,} tokens",
        "memory": _memory(model),
        "chat template": "yes" if model.has_template else "none: it takes plain prompts, and no messages",
        "sampling": ", ".join(f"{name} {value:g}" for name, value in model.defaults.items()) or "greedy",
        "device": model.device,
        **({"notes": "; ".join(model.notes)} if model.notes else {}),
    }
    name = escape(model.name) + (f" {_tag('span', _FAINT, escape(model.revision))}" if model.revision else "")
    facts = [(_tag("span", _FAINT, escape(key)), escape(value)) for key, value in rows.items()]
    return f"<div><b>{name}</b>{_table(facts)}</div>"


def _memory(model: Model) -> str:
    weights = f"{size(model.weight_bytes)} of weights"
    stats = model._shared.running_stats()
    if stats is not None:
        kept, limit = size(stats["touched_kv_bytes"]), size(stats["kv_bytes"])
        return f"{weights}, {kept} of keys and values (at most {limit})"
    given = model._shared.options.kv_memory
    return weights if given is None else f"{weights}, at most {size(given)} of keys and values"


# Probabilities


def bars(rows: Iterable[tuple[str, float, str]]) -> str:
    """A bar for each (text, probability, what to tell beside it); the likeliest text is bold."""
    rows = list(rows)
    best = max((p for _, p, _ in rows if p == p), default=1.0)
    return _table(
        (_label(text, p == best), _bar(p), percent(p), _tag("span", _FAINT, escape(beside)))
        for text, p, beside in rows
    )


def _label(text: str, best: bool) -> str:
    weight = "bold" if best else "normal"
    return _tag("div", f"{_TEXT};min-width:5em;max-width:30em;font-weight:{weight}", escape(text))


def _bar(probability: float) -> str:
    width = 100 * min(max(probability, 0.0), 1.0) if probability == probability else 0.0
    fill = _tag("div", f"width:{width:.1f}%;height:100%;background:rgb({_BLUE});border-radius:3px", "")
    return _tag(
        "div",
        "width:12em;height:.8em;margin:.25em 0;background:rgba(128,128,128,.2);border-radius:3px",
        fill,
    )


def scores(scores: Sequence[Score]) -> str:
    return bars((one.text, one.probability, f"log likelihood {one.logprob:.2f}") for one in scores)


def answers(answers: Mapping[str, Mapping[str, Any]]) -> str:
    """What a Judge answers: each question with its options."""
    return "".join(
        f"<div>{_tag('span', _FAINT, escape(str(name)))}{decision(evidence)}</div>"
        for name, evidence in answers.items()
    )


def decision(evidence: Mapping[str, Any]) -> str:
    if "noul" in evidence:
        yes = evidence["noul"]
        return bars([("true", yes, ""), ("false", 1 - yes, "")])
    return bars((str(key), p, "") for key, p in evidence["probabilities"].items())


# Answers


def completion(done: Completion) -> str:
    facts = [
        f"{done.usage.prompt_tokens} + {done.usage.completion_tokens} tokens",
        f"{done.timings.total:.2f} s",
        f"{done.tokens_per_second:.1f} tokens/s",
        escape(done.finish_reason),
    ]
    told = [" &middot; ".join(facts), *map(escape, done.notes)]
    body = _text(done.text)
    if done.logprobs is not None:
        body = tokens(done.logprobs, done.text)
        told.append(_LEGEND)
    return f"<div>{body}{''.join(_tag('div', _FAINT, line) for line in told)}</div>"


def _text(text: str) -> str:
    return _tag("div", _TEXT, _shown(text))


#: Control characters (but line breaks and tabs), and those that turn the order of what follows round.
_UNSEEN = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")


def _shown(text: str) -> str:
    """As HTML, with what cannot be seen written out."""
    return escape(_UNSEEN.sub(lambda found: repr(found[0])[1:-1], text))


@dataclass
class _Group:
    """Tokens that make whole characters together; nearly always one token."""

    entries: list[TokenLogprob]
    text: str


def _groups(entries: Iterable[TokenLogprob]) -> Iterator[_Group]:
    """A token may be a piece of a character (three of them an emoji's): no text of its own can be shown."""
    decoder, group = codecs.getincrementaldecoder("utf-8")("replace"), _Group([], "")
    for entry in entries:
        group.entries.append(entry)
        group.text += decoder.decode(entry.bytes)
        if not decoder.getstate()[0]:  # no bytes wait for the rest of their character
            yield group
            group = _Group([], "")
    if group.entries:
        group.text += decoder.decode(b"", final=True)
        yield group


def tokens(entries: Iterable[TokenLogprob], text: str) -> str:
    """The tokens, coloured by their probability, with the alternatives on hover. What comes after the end of
    ``text`` (the stop text, as a rule) is struck through."""
    groups = list(_groups(entries))
    coloured, rest = groups[:_MOST_TOKENS], groups[_MOST_TOKENS:]
    end = len(text) if "".join(group.text for group in groups).startswith(text) else sys.maxsize
    spans, at = [], 0
    for group in coloured:
        spans.append(_span(group, after_end=at >= end))
        at += len(group.text)
    spans.append(_shown("".join(group.text for group in rest)))
    return _tag("div", _TEXT, "".join(spans))


def _span(group: _Group, after_end: bool) -> str:
    probability = math.exp(math.fsum(map(_log, group.entries)))
    style = f"background:rgba({_ORANGE},{_strength(probability):.2f})"
    if after_end:
        style += ";opacity:.6;text-decoration:line-through"
    # A line break would hide its colour, and a token without text itself.
    shown = _shown(group.text).replace("\n", "&#8629;\n") or "&#183;"
    return _tag("span", style, shown, "\n".join(line for entry in group.entries for line in _told(entry)))


def _strength(probability: float) -> float:
    """Of the fill: none for what is certain. What has no probability is not coloured either."""
    return 0.7 * (1 - min(probability, 1.0)) if probability == probability else 0.0


def _log(entry: TokenLogprob) -> float:
    # A rounding above 0 is no probability above 1.
    return min(entry.logprob, 0.0) if entry.logprob == entry.logprob else math.nan


def _told(entry: TokenLogprob) -> list[str]:
    others = [other for other in entry.top if other.id != entry.id]
    return [_alternative(entry), *(f"   {_alternative(other)}" for other in others)]


def _alternative(entry: TokenLogprob) -> str:
    return f"{percent(math.exp(_log(entry)))}  {_written(entry.bytes)}"


def _written(data: bytes) -> str:
    try:
        return repr(data.decode("utf-8"))
    except UnicodeDecodeError:
        return f"bytes {data.hex(' ')}"


_LEGEND = "probability " + " ".join(
    _tag("span", f"background:rgba({_ORANGE},{_strength(p):.2f});padding:0 .4em", f"{p:.0%}")
    for p in (1.0, 0.5, 0.0)
)


# Trainings


def training(training: Training) -> str:
    """How far a run is, and its loss over the steps as columns."""
    steps = training.history
    rows = {"state": training.state}
    if steps:
        last = steps[-1]
        looked = [step.eval_loss for step in steps if step.eval_loss is not None]
        rows["step"] = f"{last.step:,} of {last.steps:,} (epoch {last.epoch:.2f})"
        rows["loss"] = f"{last.loss:.4f}" + (f", on held-out rows {looked[-1]:.4f}" if looked else "")
        rows["speed"] = f"{last.rows_per_second:.1f} rows/s, {last.tokens_per_second:,.0f} tokens/s"
        if not training.done():
            rows["left"] = f"{last.eta:.0f} s"
    if training.notes:
        rows["notes"] = "; ".join(training.notes)
    facts = [(_tag("span", _FAINT, escape(key)), escape(value)) for key, value in rows.items()]
    curve = _columns([step.loss for step in steps]) if len(steps) > 1 else ""
    return f"<div><b>training</b>{_table(facts)}{curve}</div>"


def _columns(values: Sequence[float]) -> str:
    """A column for each value, or for the mean of neighbours where there are many."""
    width = math.ceil(len(values) / _MOST_COLUMNS)
    groups = [values[at : at + width] for at in range(0, len(values), width)]
    means = [math.fsum(group) / len(group) for group in groups]
    top = max((mean for mean in means if math.isfinite(mean)), default=0.0) or 1.0
    columns = "".join(_column(mean, top, at * width + 1) for at, mean in enumerate(means))
    line = "border-bottom:1px solid rgba(128,128,128,.5)"
    return _tag("div", f"display:flex;align-items:flex-end;height:5em;max-width:40em;{line}", columns)


def _column(value: float, top: float, step: int) -> str:
    height = 100 * min(max(value / top, 0.0), 1.0) if math.isfinite(value) else 0.0
    style = f"flex:1;height:{height:.1f}%;background:rgb({_BLUE});margin-right:1px"
    return _tag("div", style, "", f"step {step}: loss {value:.4f}")


# While it is written


class Live:
    """An answer as it comes: in a notebook one output that grows, at most ten times a second, and anywhere
    else printed."""

    def __init__(self) -> None:
        self._text, self._told = "", 0.0
        self._handle: Any = None
        if in_notebook():
            from IPython.display import display  # type: ignore[import-not-found]

            self._handle = display(_bundle("", ""), raw=True, display_id=True)

    def add(self, text: str) -> None:
        self._text += text
        if self._handle is None:
            print(text, end="", flush=True)
        elif text and time.monotonic() - self._told >= _INTERVAL:
            self._update(_text(self._text))

    def end(self, done: Completion | None) -> None:
        """``done`` is None if the answer was not written to its end."""
        if self._handle is None:
            print(flush=True)
        else:
            self._update(_text(self._text) if done is None else completion(done))
        if done is not None:
            _remember(done)

    def _update(self, html: str) -> None:
        self._handle.update(_bundle(self._text, html), raw=True)
        self._told = time.monotonic()


def _bundle(text: str, html: str) -> dict[str, str]:
    return {"text/plain": text, "text/html": html}


#: The last answer that was shown while it was written, and the number of the cell that did it: a cell that
#: ends with ``.show()`` has its value on the screen already.
_last: tuple[Completion, int] | None = None


def _cell() -> int | None:
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return None if shell is None else shell.execution_count


def _remember(done: Completion) -> None:
    global _last
    cell = _cell()
    _last = None if cell is None else (done, cell)


def is_on_screen(done: Completion) -> bool:
    """Whether the running cell has shown this very answer."""
    return _last is not None and _last[0] is done and _last[1] == _cell()


# DSPy's values


def show_decisions(*types: type) -> None:
    """Has a notebook show values of DSPy's decision types as bars, where they have probabilities and nobody
    else has said how to show them."""
    if not in_notebook():
        return
    from IPython import get_ipython  # type: ignore[import-not-found]

    formatter = get_ipython().display_formatter.formatters["text/html"]
    for type_ in types:
        if type_ not in formatter.type_printers:
            formatter.for_type(type_, _decided)


def _decided(value: Any) -> str | None:
    if getattr(value, "probability", None) is not None:
        return decision({"noul": value.probability})
    if getattr(value, "probabilities", None):
        return decision({"probabilities": value.probabilities})
    return None
