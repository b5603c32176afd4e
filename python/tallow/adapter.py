"""``Adapter``: what changes a model without touching its weights."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from . import _core, arguments
from .errors import InvalidRequestError, ModelFileError

if TYPE_CHECKING:
    from .model import Model


class Adapter:
    """An adapter of a Model, made by ``Model.load_adapter`` or by training. It holds no conversation, and any
    number of threads may use it at once: ``model.generate(ask, adapter=adapter)``.

    Two adapters are equal if they change the same model in the same way. What is pickled is where it came
    from, never its numbers.
    """

    __slots__ = ("__weakref__", "_model", "_native", "_process")

    def __init__(self, model: Model, native: _core.Adapter) -> None:
        self._model, self._native, self._process = model, native, os.getpid()

    @property
    def model(self) -> Model:
        """The model that it changes."""
        return self._model

    @property
    def name(self) -> str:
        """What ``adapter=`` may call it by."""
        return self._native.name

    @property
    def fingerprint(self) -> str:
        """16 hexadecimal digits for all that it changes, the scale included: the same in every folder and
        format."""
        return self._native.fingerprint

    @property
    def scale(self) -> float:
        """What everything that it adds is multiplied by, beside its own scale."""
        return self._native.scale

    @property
    def rank(self) -> int:
        """The largest rank of its matrices."""
        return self._native.rank

    @property
    def targets(self) -> list[str]:
        """The modules that it changes, as its file calls them, without their layers."""
        return self._native.targets

    @property
    def bytes(self) -> int:
        """Bytes of memory that it takes while it is in use."""
        return self._native.bytes

    @property
    def base(self) -> str | None:
        """The base model that its file names, if it does. It is only told, never fetched."""
        return self._native.base

    @property
    def format(self) -> str:
        """ "PEFT", "GGUF", "MLX" or "trained"."""
        return self._native.format

    @property
    def path(self) -> str | None:
        """The folder or file that holds it; None if it is in memory alone."""
        path = self._native.path
        return None if path is None else os.fspath(path)

    @property
    def notes(self) -> list[str]:
        """What is worth knowing of how its files were read."""
        return self._native.notes

    @property
    def loaded(self) -> bool:
        """Whether it is in memory; one that nobody uses may have been dropped (``adapter_memory``), and
        comes back when it is asked for."""
        return self._native.loaded

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Writes it into ``folder`` as the peft library has it, with its ``scale`` as part of its numbers:
        ``load_adapter``, peft, vLLM and llama.cpp's converter read it. What is more than factors of
        projections (whole matrices, DoRA's magnitudes) is refused by name; such an adapter stays where its
        files are."""
        native = self._for(self._model)
        self._model._shared.engine().save_adapter(native, arguments.path_text("folder", folder))

    def _for(self, model: Model) -> _core.Adapter:
        """The native adapter for a request of ``model``. A forked child has none of its parent's, and loads
        it anew."""
        if model != self._model:
            raise InvalidRequestError(
                f"adapter {self.name!r} changes {self._model.name}, and this is {model.name}; load it there, "
                "with load_adapter"
            )
        if self._process != os.getpid():
            self._native = _reloaded(model, self)
            self._process = os.getpid()
        return self._native

    # As a value

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Adapter):
            return NotImplemented
        return (self.fingerprint, self._model) == (other.fingerprint, other._model)

    def __hash__(self) -> int:
        return hash(self.fingerprint)

    def __copy__(self) -> Adapter:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Adapter:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        if self.path is None:
            raise InvalidRequestError(
                f"adapter {self.name!r} is in memory alone, and its numbers are not pickled; save it first, "
                'with adapter.save("folder")'
            )
        return _load, (self._model, os.path.abspath(self.path), self.name, self.scale, self.fingerprint)

    def __repr__(self) -> str:
        scale = "" if self.scale == 1 else f", scale {self.scale:g}"
        facts = f"rank {self.rank}{scale}, {', '.join(self.targets)}, {self.bytes / 2**20:.1f} MiB"
        notes = "".join(f"; {note}" for note in self.notes)
        return f"<tallow.Adapter {self.name!r} of {self._model.name!r}: {facts}{notes}>"


def _reloaded(model: Model, adapter: Adapter) -> _core.Adapter:
    if adapter.path is None:
        raise InvalidRequestError(
            f"adapter {adapter.name!r} is in the memory of the parent process alone; save it there, and load "
            "it here"
        )
    return _load(model, adapter.path, adapter.name, adapter.scale, adapter.fingerprint)._native


def _load(model: Model, path: str, name: str, scale: float, fingerprint: str) -> Adapter:
    adapter = model.load_adapter(path, name=name, scale=scale)
    if adapter.fingerprint != fingerprint:
        model.unload_adapter(adapter)
        raise ModelFileError(
            f"{path}: this is not the adapter that was pickled (its fingerprint is {adapter.fingerprint}, "
            f"and was {fingerprint}): its files have changed"
        )
    return adapter


def chosen(model: Model, given: object) -> _core.Adapter | None:
    """What ``adapter=`` of a request means: an Adapter of the model, or the name of one. An unknown one is an
    error, never the model alone."""
    if given is None:
        return None
    if isinstance(given, Adapter):
        return given._for(model)
    if isinstance(given, str):
        return model._shared.engine().adapter(given)
    arguments.wrong_type("adapter", given, "an Adapter, or the name of one")
