"""The table of routes. Each is reached with and without "/v1" before it."""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import (
    chat,
    completions,
    embeddings,
    errors,
    metrics,
    models,
    openapi,
    rerank,
    responses,
    shapes,
    tokens,
    wire,
)
from .call import Call
from .server import Server

Handler = Callable[[Call], Awaitable[Response]]


class Endpoint(NamedTuple):
    method: str
    path: str
    handler: Handler
    #: What its body must be.
    shape: type[msgspec.Struct] | None
    #: What it answers: an object of this form, or text of this media type.
    answer: type[msgspec.Struct] | str


async def openapi_document(call: Call) -> Response:
    """This document."""
    # The first time it takes a while, and the loop has others to serve.
    written = await asyncio.to_thread(_written, bool(call.server.settings.api_keys))
    return Response(written, media_type="application/json")


@functools.cache
def _written(with_keys: bool) -> bytes:
    return wire.to_json(openapi.document(ROUTES, with_keys=with_keys))


ROUTES: list[Endpoint] = [
    Endpoint("GET", "/health", models.health, None, shapes.Health),
    Endpoint("GET", "/ready", models.ready, None, shapes.Ready),
    Endpoint("GET", "/metrics", metrics.metrics, None, "text/plain"),
    Endpoint("GET", "/openapi.json", openapi_document, None, shapes.OpenApi),
    Endpoint("GET", "/models", models.models, None, shapes.ModelList),
    Endpoint("GET", "/models/{name:path}", models.model, None, shapes.ServedModel),
    Endpoint("POST", "/chat/completions", chat.chat, chat.ChatRequest, shapes.ChatCompletion),
    Endpoint(
        "POST", "/completions", completions.completions, completions.CompletionRequest, shapes.Completion
    ),
    Endpoint("POST", "/responses", responses.responses, responses.ResponsesRequest, shapes.ResponseObject),
    Endpoint("POST", "/embeddings", embeddings.embeddings, embeddings.EmbeddingRequest, shapes.EmbeddingList),
    Endpoint("POST", "/rerank", rerank.rerank, rerank.RerankRequest, shapes.RerankList),
    Endpoint("POST", "/score", rerank.score, rerank.ScoreRequest, shapes.ScoreList),
    Endpoint("POST", "/tokenize", tokens.tokenize, tokens.TokenizeRequest, shapes.TokenList),
    Endpoint("POST", "/detokenize", tokens.detokenize, tokens.DetokenizeRequest, shapes.Detokenized),
    Endpoint("POST", "/load_lora_adapter", models.load_adapter, models.LoadAdapter, shapes.AdapterStatus),
    Endpoint(
        "POST", "/unload_lora_adapter", models.unload_adapter, models.UnloadAdapter, shapes.AdapterStatus
    ),
]


def routes(server: Server) -> list[Route]:
    return [
        Route(prefix + one.path, _endpoint(server, one), methods=[one.method])
        for one in ROUTES
        for prefix in ("/v1", "")
    ]


def _endpoint(server: Server, endpoint: Endpoint) -> Callable[[Request], Awaitable[Any]]:
    async def handle(request: Request) -> Response:
        outcome = request.scope["tallow.outcome"]
        outcome.endpoint = endpoint.path
        call = Call(server, request.scope, request.receive, outcome)
        try:
            return await endpoint.handler(call)
        except Exception as error:
            raise errors.of(
                error, fields=call.fields, names=call.names, retry_after=server.retry_after()
            ) from error

    return handle
