"""``tallow.serve``: models behind HTTP, as OpenAI's API has it (``pip install "tallow[serve]"``).

    from tallow.serve import app
    application = app("smollm2")        # an ASGI app: for uvicorn, Ray Serve, or within another app

``tallow serve smollm2`` runs it from the command line. ``server`` knows what is served, ``routes`` is the
table of routes with a module for each group, ``generation`` what they share, ``guards`` what every request
passes, ``errors`` how failures are told. Starlette is loaded when ``app`` is called.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from .. import arguments
from ..model import LOAD_OPTIONS

if TYPE_CHECKING:
    from starlette.applications import Starlette

__all__ = ["app", "dspy_provider"]


def app(
    models: Any,
    *,
    adapters: Mapping[str, Any] | None = None,
    api_keys: Sequence[str] = (),
    cors: Sequence[str] = (),
    hosts: Sequence[str] | None = None,
    max_body: int | str = "8MiB",
    timeout: float = 600.0,
    max_n: int = 16,
    allow_unknown: bool = False,
    load_adapters: bool = False,
    dspy: bool = False,
    open_metrics: bool = False,
    ping: float = 15.0,
    log: str | None = "text",
    **load: Any,
) -> Starlette:
    """An ASGI app that serves ``models``: a source as ``Model`` takes it, a Model, or a dict of name to one
    of them.

    Its lifespan loads what is named by a source, and closes it at the end; a Model that is given stays the
    caller's.

    - ``adapters``: name -> where it is, as ``Model.load_adapter`` takes it; where several models are served,
      "MODEL:NAME". Requests name it as their model.
    - ``api_keys``: what clients must send one of (``Authorization: Bearer KEY``); none: anybody may ask.
    - ``cors``: origins whose pages may ask from a browser; "*" for all.
    - ``hosts``: names that clients may call the server by, beside those of this machine; "*" for all. None:
      any, unless it is reached at a loopback address without keys, for then a page on the web may reach it.
    - ``max_body``: bytes of a request, or a text such as "8MiB"; ``max_n``: answers of one request.
    - ``timeout``: seconds that an answer may take; requests may ask for less.
    - ``allow_unknown``: leave out fields that are not known instead of refusing them.
    - ``load_adapters``: let clients load adapters, which reads paths of this machine.
    - ``dspy``: enforce the formats that DSPy's adapters ask for in their prompts, also for requests that do
      not say ``"format": "auto"``.
    - ``open_metrics``: whether /metrics is answered without a key, too.
    - ``ping``: seconds of silence after which a stream says that it lives.
    - ``log``: the line that the logger "tallow" gets of each request: "text", "json", or None.
    - ``load``: options of ``Model``, for sources. ``queue`` is 1024 unless told otherwise: who would wait
      behind as many is told to come again.
    """
    try:
        from .application import build
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("starlette", "msgspec", "prometheus_client"):
            raise ImportError(f'tallow.serve needs {error.name}: pip install "tallow[serve]"') from error
        raise
    known = [*LOAD_OPTIONS, "progress"]
    for name in load:
        if name not in known:
            arguments.unknown("app()", name, [*inspect.signature(app).parameters, *known])
    arguments.boolean("allow_unknown", allow_unknown)
    arguments.boolean("load_adapters", load_adapters)
    if arguments.boolean("dspy", dspy):
        importlib.import_module("tallow.dspy")  # an error now if DSPy is not there, and no wait for it later
    arguments.boolean("open_metrics", open_metrics)
    return build(
        models,
        adapters=arguments.json_object("adapters", adapters or {}),
        cors=_names("cors", cors),
        log=None if log is None else arguments.choice("log", log, ("text", "json")),
        load=load,
        api_keys=tuple(_names("api_keys", api_keys)),
        hosts=None if hosts is None else tuple(name.lower() for name in _names("hosts", hosts)),
        max_body=arguments.memory("max_body", max_body),
        timeout=arguments.seconds("timeout", timeout),
        max_n=arguments.integer("max_n", max_n, 1, arguments.MAX_CANDIDATES),
        allow_unknown=allow_unknown,
        load_adapters=load_adapters,
        dspy=dspy,
        open_metrics=open_metrics,
        ping=arguments.seconds("ping", ping),
    )


def _names(name: str, given: Sequence[str]) -> list[str]:
    return arguments.texts(name, given) if given or isinstance(given, str) else []


def dspy_provider(
    url: str | None = None, *, name: str = "tallow", format: str = "auto", reasoning: bool = False
) -> Any:
    """Tells DSPy of a server, so that ``dspy.LM("tallow/smollm2")`` asks it, with JSON schemas and for
    measured probabilities. Returns what DSPy has registered; LMs made from now on know it.

    - ``url``: where the server is. None: ``TALLOW_BASE_URL``, or else this machine's port 8000, which is what
      ``import tallow`` has registered already. An LM's own ``api_base`` counts more. Its key is the LM's
      ``api_key``, or ``TALLOW_API_KEY``.
    - ``name``: what the LM's string begins with; another one for each further server.
    - ``format``: "auto" has the server enforce the formats of DSPy's adapters; "none" lets the model write as
      it likes.
    - ``reasoning``: whether its models think, so that ``dspy.Reasoning`` is their own thought.
    """
    from . import for_dspy

    return for_dspy.register(url, name=name, format=format, reasoning=reasoning)
