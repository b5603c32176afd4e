"""The app, put together."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import Request
from starlette.responses import Response

from .. import arguments
from . import access, errors
from .guards import Guard
from .routes import routes
from .server import Server, Settings


def build(
    models: Any,
    *,
    adapters: Mapping[str, Any],
    cors: Sequence[str],
    log: str | None,
    load: Mapping[str, Any],
    **settings: Any,
) -> Starlette:
    server = Server(models, adapters, Settings(**settings), load)
    if log is not None:
        server.observers.append(access.logger(log))

    @contextlib.asynccontextmanager
    async def lifespan(_: Starlette) -> AsyncIterator[None]:
        server.draining = False
        await server.loaded()
        try:
            yield
        finally:
            await asyncio.to_thread(server.close)

    # The guard answers in our form; a browser must be able to read that, so CORS stands before it.
    middleware = [Middleware(Guard, server=server)]
    if cors:
        middleware.insert(0, _cors(cors))
    made = Starlette(
        routes=routes(server),
        middleware=middleware,
        exception_handlers={HTTPException: _to_guard},
        lifespan=lifespan,
    )
    made.router.redirect_slashes = False
    made.state.tallow = server
    return made


def _to_guard(request: Request, error: Exception) -> Response:
    """Starlette would answer these in plain text."""
    assert isinstance(error, HTTPException)
    refused = errors.of(error)
    path = request.scope["path"]
    if refused.status == 404:
        refused.message, refused.code = f"there is no route {arguments.shown(path)}", "unknown_route"
    elif refused.status == 405:
        refused.message, refused.code = f"{path} does not take {request.method}", "method_not_allowed"
    return refused.response()


def _cors(origins: Sequence[str]) -> Middleware:
    return Middleware(
        CORSMiddleware,
        allow_origins=list(origins),
        allow_methods=["GET", "POST"],
        allow_headers=["authorization", "content-type", "x-request-id"],
        expose_headers=["x-request-id", "retry-after"],
    )
