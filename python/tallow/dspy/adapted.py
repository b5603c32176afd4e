"""Which adapter an LM answers with: how it is named in DSPy's model string, saved, and found again.

An adapter is known by its content: the string has its hash, and its scale where that is not 1, never its
name or its folder. So DSPy's cache cannot mix two of them, and a program that was saved notices when the
files have changed.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..errors import InvalidRequestError, ModelFileError
from ..model import Model
from . import constraints

if TYPE_CHECKING:
    from ..adapter import Adapter

_STRING = re.compile(
    r"tallow/(?P<name>.+)@(?P<model>[0-9a-z]+)(?:\+lora:(?P<hash>[0-9a-f]+)(?:\*(?P<scale>[^+]+))?)?\+f\d+"
)


def model_string(model: Model, adapter: Adapter | None, *, cached: Any, progress: Any = False) -> str:
    """DSPy's cache knows a model by this string alone, so it names every byte. Where nothing is ``cached``,
    the fingerprint does, and no file is read again."""
    name = model._exact_name(progress) if cached else model.fingerprint
    return f"tallow/{model.name}@{name}{_suffix(adapter)}+f{constraints.VERSION}"


def _suffix(adapter: Adapter | None) -> str:
    if adapter is None:
        return ""
    return f"+lora:{adapter.fingerprint}" + ("" if adapter.scale == 1 else f"*{adapter.scale!r}")


def named(model: Model, string: object) -> Adapter | None:
    """The adapter of this model that a model string names; None for the model alone."""
    read = _STRING.fullmatch(string) if isinstance(string, str) else None
    own = (model.fingerprint, model._shared.exact)
    if read is None or read["name"] != model.name or read["model"] not in own:
        raise InvalidRequestError(
            f"model is {string!r}, and copies share the model: beside its own string they take that of one "
            "of its adapters; make another tallow.LM for another model"
        )
    if read["hash"] is None:
        return None
    for adapter in model.adapters():
        if _suffix(adapter) == _suffix_read(read):
            return adapter
    raise InvalidRequestError(
        f"{string!r} names an adapter that {model.name} has not loaded; load it with load_adapter(folder)"
    )


def _suffix_read(read: re.Match[str]) -> str:
    return f"+lora:{read['hash']}" + (f"*{read['scale']}" if read["scale"] else "")


def chosen(model: Model, given: Any) -> Adapter | None:
    """What ``adapter=`` means: a name that is loaded, an Adapter of the model, or what ``load_adapter``
    loads. Whatever is unknown is an error, never the model alone."""
    if given is None:
        return None
    if not isinstance(given, (str, os.PathLike)):
        if not hasattr(given, "fingerprint"):
            arguments.wrong_type("adapter", given, "an Adapter, the name of one, or a folder or file of one")
        for adapter in model.adapters():
            if _suffix(adapter) == _suffix(given):
                return adapter
        raise InvalidRequestError(
            f"adapter {given.name!r} is none of {model.name}; load its folder there, with load_adapter"
        )
    known = model.adapters()
    for adapter in known:
        if adapter.name == given:
            return adapter
    if not os.path.exists(given) and not ("/" in os.fspath(given) or os.sep in os.fspath(given)):
        names = ", ".join(repr(adapter.name) for adapter in known) or "none"
        arguments.wrong_value("adapter", given, f"loaded (there are {names}), or a folder or file")
    return model.load_adapter(given)


# Saved programs


def state(adapter: Adapter) -> dict[str, Any]:
    """Where an adapter is found again, as JSON."""
    if adapter.path is None:
        raise InvalidRequestError(
            f"adapter {adapter.name!r} is in memory alone, so a saved program would not find it; keep it "
            'first, with adapter.save("folder")'
        )
    return {
        "folder": os.path.abspath(adapter.path),
        "hash": adapter.fingerprint,
        "name": adapter.name,
        "scale": adapter.scale,
    }


def from_state(model: Model, state: dict[str, Any]) -> Adapter:
    """The adapter that ``state`` describes: the one that is loaded, else from its folder. ModelFileError if
    that is not there any more, or holds another one."""
    folder, wanted = state["folder"], state["hash"]
    for adapter in model.adapters():
        if (adapter.fingerprint, adapter.scale) == (wanted, state["scale"]):
            return adapter
    again = 'save it there, or give the program its LM: program.set_lm(tallow.LM(model, adapter="folder"))'
    if not os.path.exists(folder):
        raise ModelFileError(f"{folder}: the adapter that the program was saved with is not there; {again}")
    adapter = model.load_adapter(folder, name=_free(model, state["name"], wanted), scale=state["scale"])
    if adapter.fingerprint != wanted:
        model.unload_adapter(adapter)
        raise ModelFileError(
            f"{folder}: this is not the adapter that the program was saved with (its hash is "
            f"{adapter.fingerprint}, and was {wanted}); {again}"
        )
    return adapter


def _free(model: Model, name: str, wanted: str) -> str:
    """The saved name, unless another adapter has it here: loading under that name would take its place."""
    taken = {adapter.name for adapter in model.adapters()}
    return name if name not in taken else f"{name}-{wanted[:8]}"
