"""From options of a command line to arguments of ``Model`` and of ``generate``, checked before a model is
loaded wherever that needs none."""

from __future__ import annotations

import argparse
import re
import time
from typing import Any

from .. import _core, arguments
from ..adapter import Adapter
from ..errors import Error
from ..model import LOAD_OPTIONS, Model
from .usage import UsageError

#: Options of a Model that no command has: one that asks a single thing needs no bounded queue, nor room for
#: several adapters.
NOT_HERE = ("queue", "adapter_memory")
_SWITCHES = ("packed_cache", "prefix_cache", "speculation")


def load(options: argparse.Namespace) -> tuple[Model, float]:
    """The model, and the seconds that it took to load."""
    given = model_options(options)
    began = time.perf_counter()
    return Model(options.model, **given), time.perf_counter() - began


def adapter(model: Model, options: argparse.Namespace) -> Adapter | None:
    """What ``--adapter`` names, loaded."""
    return None if options.adapter is None else model.load_adapter(options.adapter)


def model_options(options: argparse.Namespace) -> dict[str, Any]:
    given: dict[str, Any] = {}
    for name in LOAD_OPTIONS:
        if name in _SWITCHES:
            given[name] = not getattr(options, f"no_{name}")
        elif name not in NOT_HERE:
            given[name] = getattr(options, name)
    engine = ("kv_memory", "draft", *_SWITCHES)
    if given["draft"] is not None and not given["speculation"]:
        raise UsageError(f"{options.command.name}: --draft does nothing without speculation; leave it out")
    try:
        _core.Model.check_options(**{name: value for name, value in given.items() if name not in engine})
    except Error as error:
        raise UsageError(f"{options.command.name}: {error}") from None
    return given


def answer_options(options: argparse.Namespace) -> dict[str, Any]:
    """What ``answers.prepare`` takes."""
    given: dict[str, Any] = {
        name: getattr(options, name) for name in ("max_tokens", "stop", "seed", "timeout")
    }
    given |= {name: getattr(options, name) for name in ("json_schema", "regex", "grammar")}
    given["choices"] = options.choice
    given["think"] = {"on": True, "off": False, None: None}.get(options.think, options.think)
    fields = {name: getattr(options, name) for name in arguments.SAMPLER_FIELDS if name != "filters"}
    fields["logit_bias"] = dict(options.logit_bias) if options.logit_bias else None
    try:
        arguments.constraint(given)
        arguments.stops("--stop", given["stop"])
        # The ranges of fields are judged by the native half.
        _core.Sampler(**{name: value for name, value in fields.items() if value is not None})
    except Error as error:
        raise UsageError(f"{options.command.name}: {_as_option(str(error))}") from None
    return {**given, **fields}


def opening(options: argparse.Namespace) -> list[dict[str, str]]:
    return [{"role": "system", "content": options.system}] if options.system else []


def _as_option(message: str) -> str:
    """A complaint about arguments, in the words of the command line."""
    names = "|".join([*arguments.SAMPLER_FIELDS, *arguments.CONSTRAINTS])
    return re.sub(
        rf"\b({names})\b", lambda name: f"--{name[1].replace('choices', 'choice').replace('_', '-')}", message
    )
