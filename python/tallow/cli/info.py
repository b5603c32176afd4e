"""``tallow info``: what a model is, what it needs and what one can ask of it, in groups."""

from __future__ import annotations

import argparse
import json
from typing import Any

from .. import answers
from .._log import size
from ..errors import Error
from ..model import Model
from . import settings
from .output import without_none

_PAGE = 16  # positions of a page of keys and values


def info(options: argparse.Namespace) -> None:
    model, seconds = settings.load(options)
    groups = _groups(model, seconds)
    if options.json:
        del groups["shape"]  # which is the blueprint, shortened
        groups["config"] = model.config
        told = {name: without_none(group) for name, group in groups.items()}
        print(json.dumps(told, ensure_ascii=False, indent=1))
        return
    for name, group in groups.items():
        rows = {key: _shown(key, value) for key, value in group.items() if value not in (None, [], {})}
        if rows:
            print(f"{name.replace('_', ' ')}:")
            for key, text in rows.items():
                print(f"  {_label(key):18} {text}")


def _groups(model: Model, seconds: float) -> dict[str, dict[str, Any]]:
    return {
        "model": {
            "name": model.name,
            "revision": model.revision,
            "family": model.config.get("family"),
            "fingerprint": model.fingerprint,
            "notes": model.notes,
        },
        "shape": _shape(model.config),
        "text": {
            "context_tokens": model.context_length,
            "trained_context_tokens": _other(model.config.get("max_context_length"), model.context_length),
            "vocabulary_tokens": model.vocab_size,
            "tokenizer": model.tokenizer_source,
            "ends_with": [model.detokenize([id], special=True) for id in model.eos_ids],
        },
        "chat": _chat(model),
        "sampling": model.defaults or {"advised": "nothing: the likeliest token is taken (greedy)"},
        "memory": _memory(model),
        "runs": {
            "device": model.device,
            "computes_in": model.dtype,
            "loaded_in_s": round(seconds, 3),
        },
    }


def _other(value: Any, known: Any) -> Any:
    return None if value == known else value


def _shape(config: dict[str, Any]) -> dict[str, Any]:
    """The blueprint without what stands elsewhere; windows of layers as what they amount to."""
    elsewhere = ("family", "vocab_size", "max_context_length", "sliding_windows")
    shape = {key: value for key, value in without_none(config).items() if key not in elsewhere}
    windows = [window for window in config.get("sliding_windows") or () if window is not None]
    if windows:
        lengths = "/".join(map(str, sorted(set(windows))))
        shape["sliding_window"] = (
            f"{lengths} tokens in {len(windows)} of {len(config['sliding_windows'])} layers"
        )
    return shape


def _chat(model: Model) -> dict[str, Any]:
    """What the chat template can do; that it shows a thing is seen by having it render one."""
    if not model.has_template:
        return {"template": "none: it continues plain text"}
    template = answers.Template.of(model)
    form, tags = template.form, template.tags
    tools = "explained in the system message"
    if form.renders or form.system_field:
        tools = f"shown by the template, calls in the {form.name} format"
    thoughts = "no"
    if tags is not None:
        switch = (
            f"switched by {tags.switch} (--think)" if tags.switch else "always" if tags.opened else "free"
        )
        thoughts = f"yes, between {tags.open} and {tags.close}; {switch}"
    return {
        "template": "yes",
        "system_message": _system(model),
        "tools": tools,
        "thoughts": thoughts,
    }


def _system(model: Model) -> str:
    turns = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello."}]
    try:
        notes = answers.prepare(model, turns).notes
    except Error as error:
        return f"no: {error}"
    return f"in part: {notes[0]}" if notes else "yes"


def _memory(model: Model) -> dict[str, Any]:
    stats = model.stats()
    page = stats["kv_bytes"] / max(stats["pages"], 1)
    windows: list[int | None] = model.config.get("sliding_windows") or [None]
    groups = _groups_of_layers(model) if any(windows) else 1
    full = round(groups * windows.count(None) / len(windows))
    window = max(window or 0 for window in windows) + _PAGE
    pages = full * _pages(model.context_length) + (groups - full) * _pages(min(window, model.context_length))
    return {
        "weights_bytes": model.weight_bytes,
        "weight_types": model.weight_types,
        "kv_bytes_a_token": round(groups * page / _PAGE),
        "kv_bytes_full_context": round(pages * page),
        "cache_may_take_bytes": stats["kv_bytes"],
        "needs_about_bytes": model.weight_bytes + round(pages * page),
    }


def _pages(tokens: int) -> int:
    return -(-tokens // _PAGE)


def _groups_of_layers(model: Model) -> int:
    """How many pages a token lies in: layers with a window and without are kept apart, in groups of equally
    many. Counted, by a prompt that fills one page of each."""
    before = model.stats()["cached_pages"]
    model.generate([id % model.vocab_size for id in range(_PAGE + 1)], max_tokens=1)
    return max(int(model.stats()["cached_pages"] - before), 1)


_LABELS = {"needs_about_bytes": "needs about", "cache_may_take_bytes": "cache limit"}
_EXPLAINED = {
    "kv_bytes_a_token": "keys and values of a token",
    "kv_bytes_full_context": "those of one full context",
    "cache_may_take_bytes": "for keys and values of all conversations (--kv-memory)",
    "needs_about_bytes": "for one conversation as long as the context",
}


def _label(key: str) -> str:
    return _LABELS.get(
        key, key.removesuffix("_s").replace("_bytes", "").replace("_tokens", "").replace("_", " ")
    )


def _shown(key: str, value: Any) -> str:
    if "bytes" in key:
        text = size(value)
        return f"{text}  {_EXPLAINED[key]}" if key in _EXPLAINED else text
    if key.endswith("_tokens"):
        return f"{value} tokens"
    if key.endswith("_s"):
        return f"{value:.2f} s"
    if isinstance(value, float):
        return f"{value:g}"
    return ", ".join(map(str, value)) if isinstance(value, list) else str(value)
