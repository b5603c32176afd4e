"""What is served, whether it is ready, and adapters that come and go."""

from __future__ import annotations

from typing import Any

import msgspec
from starlette.responses import Response

from ..errors import HubError, ModelFileError
from . import errors
from .call import Call
from .server import Served


async def health(call: Call) -> Response:
    """The process lives."""
    return call.json({"status": "ok"})


async def ready(call: Call) -> Response:
    """Requests are taken."""
    server = call.server
    if server.is_ready:
        return call.json({"status": "ready", "models": server.names()})
    if server.draining:
        raise errors.draining()
    raise errors.Refused(
        503, "the model is being loaded", "server_error", "loading", headers={"retry-after": "2"}
    )


async def models(call: Call) -> Response:
    """What is served: models, then adapters."""
    await call.server.loaded()
    return call.json({"object": "list", "data": [_shown(one) for one in call.server.served()]})


async def model(call: Call) -> Response:
    """One of the models that are served."""
    return call.json(_shown(await call.served(call.path["name"])))


def _shown(one: Served) -> dict[str, Any]:
    return {
        "id": one.name,
        "object": "model",
        "created": one.created,
        "owned_by": "tallow",
        "root": one.parent or one.name,
        "parent": one.parent,
        "context_length": one.model.context_length,
        "max_model_len": one.model.context_length,
        "fingerprint": one.fingerprint,
    }


class LoadAdapter(msgspec.Struct, kw_only=True):
    """The body of ``/load_lora_adapter``."""

    lora_name: str
    lora_path: str
    #: The base that it changes, where several are served.
    base_model_name: str | None = None


class UnloadAdapter(msgspec.Struct, kw_only=True):
    """The body of ``/unload_lora_adapter``."""

    lora_name: str


async def load_adapter(call: Call) -> Response:
    """Serves one more adapter from a path of the server's machine."""
    _allowed(call)
    given = await call.read(LoadAdapter)
    await call.server.loaded()
    server = call.server
    try:
        await call.beside(
            10**9, lambda: server.add_adapter(given.lora_name, given.lora_path, given.base_model_name)
        )
    except (ModelFileError, HubError) as error:  # what the request names is not there, or no adapter
        raise errors.invalid(str(error), "lora_path", "invalid_adapter") from None
    return call.json({"status": "loaded", "name": given.lora_name})


async def unload_adapter(call: Call) -> Response:
    """Serves an adapter no longer."""
    _allowed(call)
    given = await call.read(UnloadAdapter)
    await call.server.loaded()
    call.server.remove_adapter(given.lora_name)
    return call.json({"status": "unloaded", "name": given.lora_name})


def _allowed(call: Call) -> None:
    if not call.server.settings.load_adapters:
        raise errors.Refused(
            403,
            "adapters are not loaded on request here; start the server with load_adapters (--load-adapters)",
            "permission_error",
            "not_allowed",
        )
