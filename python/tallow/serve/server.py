"""What is served, and what all requests of one app have in common."""

from __future__ import annotations

import asyncio
import collections
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..adapter import Adapter
from ..answers import Template
from ..errors import InvalidRequestError
from ..model import Model
from .errors import Refused, invalid
from .metrics import Metrics

if TYPE_CHECKING:
    from .call import Call, Outcome

#: Requests that may wait, where nobody says: what is further behind would only run into its time-out.
QUEUE = 1024


@dataclass(frozen=True)
class Settings:
    """How an app serves. None of it changes an answer."""

    api_keys: tuple[str, ...] = ()
    #: Names by which clients may call the server, beside those of this machine; None: any, unless it is
    #: reached at a loopback address without a key.
    hosts: tuple[str, ...] | None = None
    max_body: int = 8 * 2**20
    timeout: float = 600.0
    max_n: int = 16
    allow_unknown: bool = False
    #: Whether clients may load and unload adapters, which reads paths of this machine.
    load_adapters: bool = False
    #: Whether the formats of DSPy's adapters are enforced where a request does not say.
    dspy: bool = False
    #: Whether /metrics is answered without a key, too.
    open_metrics: bool = False
    #: Seconds of silence after which a stream says that it lives.
    ping: float = 15.0


@dataclass(frozen=True)
class Served:
    """What a request means by ``model``."""

    #: As it is listed.
    name: str
    model: Model
    adapter: Adapter | None
    template: Template
    #: Of the base, where this is an adapter.
    parent: str | None = None
    created: int = field(default_factory=lambda: int(time.time()))

    @property
    def fingerprint(self) -> str:
        return self.model.fingerprint if self.adapter is None else self.adapter.fingerprint


class Server:
    """The models of an app, its settings, and the requests in work."""

    def __init__(
        self,
        models: Any,
        adapters: Mapping[str, Any],
        settings: Settings,
        load: Mapping[str, Any],
    ) -> None:
        self.settings = settings
        #: Whether the server is to end: nothing new is begun.
        self.draining = False
        #: Those that can be ended from here.
        self.in_work: set[Call] = set()
        self.metrics = Metrics(self)
        #: Told of each request at its end: metrics, the log.
        self.observers: list[Callable[[Outcome], None]] = [self.metrics.observe]
        self.started = time.time()
        self._sources = _sources(models)
        self._adapters = dict(adapters)
        self._load_options = {"queue": QUEUE, **load}
        self._bases: dict[str, Served] = {}
        self._aliases: dict[str, str] = {}
        self._with_adapters: dict[str, Served] = {}
        #: Models that are ours to close.
        self._own: list[Model] = []
        self._loading: asyncio.Task[None] | None = None
        self._finishes: collections.deque[float] = collections.deque(maxlen=64)
        if all(isinstance(source, Model) for source in self._sources.values()) and not adapters:
            self.load()

    # What is served

    @property
    def is_loaded(self) -> bool:
        return bool(self._bases)

    @property
    def is_ready(self) -> bool:
        return self.is_loaded and not self.draining

    def load(self) -> None:
        """Loads what is to be served. It takes its time; where it fails, nothing is served."""
        if self._bases:
            return
        bases: dict[str, Served] = {}
        for name, source in self._sources.items():
            model = source
            if not isinstance(model, Model):
                model = Model(source, **self._load_options)
                self._own.append(model)
            name = name or model.name
            bases[name] = Served(name, model, None, Template.of(model))
            for alias in (model.name, source if isinstance(source, str) else None):
                if alias is not None and alias not in self._sources:
                    self._aliases.setdefault(alias, name)
        for name, source in self._adapters.items():
            base, _, own = name.rpartition(":")
            parent = _base(bases, base, name)
            self._check_adapter("adapters", own, parent, bases)
            self._add(parent, parent.model.load_adapter(source, name=own))
        self._bases = bases

    async def loaded(self) -> None:
        """Waits for the models. An app within another has no start of its own: then the first request loads
        them."""
        if self._bases:
            return
        if self._loading is None or self._loading.done():
            self._loading = asyncio.ensure_future(asyncio.to_thread(self.load))
        await asyncio.shield(self._loading)

    def served(self) -> list[Served]:
        """All that is served, bases first."""
        return [*self._bases.values(), *self._with_adapters.values()]

    def names(self) -> list[str]:
        return [one.name for one in self.served()]

    def resolve(self, name: str | None) -> Served:
        """What is meant by ``model`` of a request: a name that is listed, another name of a base, an
        adapter's name, or "base:adapter"."""
        if name is None:
            if len(self._bases) > 1:
                raise invalid(f"model is missing; there are {', '.join(self.names())}", "model", "missing")
            return next(iter(self._bases.values()))
        found = self._bases.get(self._aliases.get(name, name)) or self._with_adapters.get(name)
        if found is None and ":" in name:
            base, _, adapter = name.rpartition(":")
            one = self._with_adapters.get(adapter)
            if one is not None and one.parent == self._aliases.get(base, base):
                found = one
        if found is None:
            raise Refused(
                404,
                f"the model {arguments.shown(name)} is not served here; there are {', '.join(self.names())}",
                code="model_not_found",
                param="model",
            )
        return found

    def add_adapter(self, name: str, path: str, base: str | None) -> None:
        """Serves one more adapter, from now on."""
        parent = self.resolve(base)
        self._check_adapter("lora_name", name, parent, self._bases)
        self._add(parent, parent.model.load_adapter(path, name=name))

    def remove_adapter(self, name: str) -> None:
        one = self.resolve(name)
        if one.adapter is None:
            raise invalid(f"lora_name is {name!r}, which is no adapter", "lora_name")
        del self._with_adapters[one.name]
        one.model.unload_adapter(one.adapter)

    def _check_adapter(self, where: str, name: str, parent: Served, bases: Mapping[str, Served]) -> None:
        """A request's ``model`` must mean one thing."""
        if not name:
            raise InvalidRequestError(f"{where} has an empty name; requests could not ask for it")
        if name in bases or name in self._aliases:
            raise InvalidRequestError(f"{where}: {name!r} is the name of a model; choose another")
        other = self._with_adapters.get(name)
        if other is not None and other.parent != parent.name:
            raise InvalidRequestError(
                f"{where}: {name!r} is an adapter of {other.parent!r}; choose another name"
            )

    def _add(self, parent: Served, adapter: Adapter) -> None:
        name = adapter.name
        self._with_adapters[name] = Served(name, parent.model, adapter, parent.template, parent.name)

    # The end

    def drain(self) -> None:
        """Begins nothing new."""
        self.draining = True

    def end_all(self, why: Refused) -> None:
        """Ends all requests in work, each with an error."""
        for call in tuple(self.in_work):
            call.end(why)

    def close(self) -> None:
        """Ends the engines of the models that were loaded here."""
        self.draining = True
        for model in self._own:
            model.close()

    # Telling

    def observe(self, outcome: Outcome) -> None:
        """The one place where the end of a request is told."""
        self._finishes.append(time.monotonic())
        for observer in self.observers:
            observer(outcome)

    def retry_after(self) -> int:
        """Seconds until a place in the queue should be free: those who wait, by how fast requests end."""
        waiting = sum(
            (one.model._shared.running_stats() or {}).get("waiting", 0) for one in self._bases.values()
        )
        if len(self._finishes) < 2:
            return 5
        rate = len(self._finishes) / max(time.monotonic() - self._finishes[0], 0.001)
        return min(max(math.ceil(waiting / rate), 1), 60)


def _sources(models: Any) -> dict[str, Any]:
    """Name -> what is to be served. The name of a single one is its own."""
    if isinstance(models, Mapping):
        if not models:
            raise InvalidRequestError("models is empty; give at least one")
        return {arguments.text("a name of models", name): source for name, source in models.items()}
    if not isinstance(models, Model):
        arguments.path_text("models", models)
    return {"": models}


def _base(bases: Mapping[str, Served], base: str, name: str) -> Served:
    if base:
        if base not in bases:
            raise InvalidRequestError(f"adapters: {name!r} is for {base!r}, and there are {', '.join(bases)}")
        return bases[base]
    if len(bases) > 1:
        raise InvalidRequestError(f'adapters: write "MODEL:{name}", for there are {", ".join(bases)}')
    return next(iter(bases.values()))
