"""``tallow serve``."""

from __future__ import annotations

import argparse
import ipaddress
import json
import logging
import os
import shlex
import sys
from typing import Any

from ..errors import Error, InvalidRequestError
from ..model import Model
from . import settings
from .output import tell
from .usage import UsageError

#: Where keys may stand, so that no process list shows them.
KEYS = "TALLOW_API_KEYS"


def serve(options: argparse.Namespace) -> None:
    from ..serve import app

    try:
        from ..serve import runner
    except ImportError as error:
        raise Error(f'serve needs more than is installed ({error}): pip install "tallow[serve]"') from error
    if options.log != "off":
        _log_to_stderr()
    given = settings.model_options(options) | {
        "queue": options.queue,
        "adapter_memory": options.adapter_memory,
    }
    keys = [*options.api_key, *(key for key in os.environ.get(KEYS, "").split(",") if key.strip())]
    bound = _bound(runner, options)
    with bound:
        model = Model(options.model, **given)
        made = app(
            {options.name or model.name: model},
            adapters=_adapters(options.adapter),
            api_keys=[key.strip() for key in keys],
            cors=options.cors,
            hosts=options.allow_host or None,
            max_body=options.max_body,
            timeout=options.timeout,
            allow_unknown=options.allow_unknown,
            load_adapters=options.load_adapters,
            dspy=options.dspy,
            open_metrics=options.open_metrics,
            log=None if options.log == "off" else options.log,
        )
        server = made.state.tallow
        server.load()
        try:
            runner.run(
                made,
                bound,
                grace=options.grace,
                started=lambda: _tell(bound.getsockname(), server, bool(keys)),
            )
        finally:
            model.close()


def _bound(runner: Any, options: argparse.Namespace) -> Any:
    try:
        return runner.listening(options.host, options.port)
    except (OSError, OverflowError) as error:
        why = getattr(error, "strerror", None) or str(error)
        raise InvalidRequestError(f"cannot listen at {options.host}:{options.port}: {why}") from None


def _adapters(given: list[tuple[str, str]]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, path in given:
        if name in found:
            raise UsageError(f"serve: there are two adapters {name!r}; give them different names")
        found[name] = path
    return found


def _log_to_stderr() -> None:
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("tallow")
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)


def _tell(address: Any, server: Any, has_keys: bool) -> None:
    """Where it is, what it serves, and how to ask."""
    host, port = address[0], address[1]
    shown = f"[{host}]" if ":" in host else host
    if ipaddress.ip_address(host).is_unspecified:
        shown = "localhost"
    url = f"http://{shown}:{port}/v1"
    name = server.names()[0]
    tell(f"serving {', '.join(server.names())} at {url}")
    if not has_keys and not ipaddress.ip_address(host).is_loopback:
        tell(f"anybody who reaches {host} may use it: give --api-key, or set {KEYS}")
    body = json.dumps({"model": name, "messages": [{"role": "user", "content": "Why is the sky blue?"}]})
    key = ' -H "authorization: Bearer $KEY"' if has_keys else ""
    tell(f"try: curl {url}/chat/completions -H 'content-type: application/json'{key} -d {shlex.quote(body)}")
