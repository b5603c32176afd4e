"""Which adapter an LM answers with: how it is named in DSPy's model string, saved, and found again.

An adapter is known by its content: the string has its fingerprint, never its name or its folder. So DSPy's
cache cannot mix two of them, and a program that was saved notices when the files have changed.
"""

from __future__ import annotations

import os
import re
from typing import Any

from .. import arguments
from ..adapter import Adapter
from ..errors import InvalidRequestError, ModelFileError
from ..model import Model
from . import constraints

_STRING = re.compile(r"tallow/(?P<name>.+)@(?P<model>[0-9a-f]+)(?:\+lora:(?P<adapter>[0-9a-f]+))?\+f\d+")


def model_string(model: Model, adapter: Adapter | None, *, cached: Any, progress: Any = False) -> str:
    """DSPy's cache knows a model by this string alone, so it names every byte. Where nothing is ``cached``,
    the fingerprint does, and no file is read again."""
    name = model._exact_name(progress) if cached else model.fingerprint
    lora = "" if adapter is None else f"+lora:{adapter.fingerprint}"
    return f"tallow/{model.name}@{name}{lora}+f{constraints.VERSION}"


def named(model: Model, string: object) -> Adapter | None:
    """The adapter of this model that a model string names; None for the model alone."""
    read = _STRING.fullmatch(string) if isinstance(string, str) else None
    if read is None or read["name"] != model.name or read["model"] not in (model.fingerprint, _exact(model)):
        raise InvalidRequestError(
            f"model is {string!r}, which belongs to another model, and copies share theirs; beside its own "
            "string they take that of one of its adapters. Make another tallow.LM for another model"
        )
    wanted = read["adapter"]
    if wanted is None:
        return None
    for adapter in model.adapters():
        if adapter.fingerprint == wanted:
            return adapter
    raise InvalidRequestError(
        f"{string!r} names an adapter that {model.name} has not loaded; give the LM its folder: "
        "lm.copy(adapter=folder)"
    )


def _exact(model: Model) -> str | None:
    return model._shared.exact


def chosen(model: Model, given: Any) -> Adapter | None:
    """What ``adapter=`` means: an Adapter of the model, the name of one that is loaded, or what
    ``load_adapter`` loads. Whatever is unknown is an error, never the model alone."""
    if given is None:
        return None
    if isinstance(given, Adapter):
        given._for(model)  # an error where it is another's
        return given
    if not isinstance(given, (str, os.PathLike)):
        arguments.wrong_type("adapter", given, "an Adapter, the name of one, or a folder or file of one")
    known = {adapter.name: adapter for adapter in model.adapters()}
    if given in known:
        return known[str(given)]
    if not os.path.exists(given) and "/" not in os.fspath(given):
        there = f"loaded are {', '.join(map(repr, known))}" if known else "none is loaded"
        arguments.wrong_value("adapter", given, f"the name of one ({there}), or a folder or file of one")
    return model.load_adapter(given)


# Saved programs


def state(adapter: Adapter) -> dict[str, Any]:
    """Where an adapter is found again, as JSON."""
    if adapter.path is None:
        raise InvalidRequestError(
            f"adapter {adapter.name!r} is in memory alone, so a saved program would not find it; keep it "
            'first, with adapter.save("folder"), and use model.load_adapter("folder")'
        )
    return {
        "path": os.path.abspath(adapter.path),
        "fingerprint": adapter.fingerprint,
        "scale": adapter.scale,
    }


def from_state(model: Model, state: dict[str, Any]) -> Adapter:
    """The adapter that ``state`` describes. ModelFileError if it is not there any more, or is another one."""
    path = state["path"]
    again = 'put it back, or give the program its LM: program.set_lm(tallow.LM(model, adapter="folder"))'
    if not os.path.exists(path):
        raise ModelFileError(f"{path}: the adapter that the program was saved with is not there; {again}")
    before = model.adapters()
    adapter = model.load_adapter(path, scale=state["scale"])  # without a name, so nobody loses theirs
    if adapter.fingerprint != state["fingerprint"]:
        if adapter not in before:
            model.unload_adapter(adapter)
        raise ModelFileError(
            f"{path}: this is not the adapter that the program was saved with (its fingerprint is "
            f"{adapter.fingerprint}, and was {state['fingerprint']}); {again}"
        )
    return adapter
