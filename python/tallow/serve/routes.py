"""The table of routes. Each is reached with and without "/v1" before it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, NamedTuple

import msgspec
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from . import chat, completions, embeddings, errors, models, rerank, responses, tokens
from .call import Call
from .server import Server

Handler = Callable[[Call], Awaitable[Response]]


class Endpoint(NamedTuple):
    method: str
    path: str
    handler: Handler
    #: What its body must be.
    shape: type[msgspec.Struct] | None = None


ROUTES: list[Endpoint] = [
    Endpoint("GET", "/health", models.health),
    Endpoint("GET", "/ready", models.ready),
    Endpoint("GET", "/models", models.models),
    Endpoint("GET", "/models/{name:path}", models.model),
    Endpoint("POST", "/chat/completions", chat.chat, chat.ChatRequest),
    Endpoint("POST", "/completions", completions.completions, completions.CompletionRequest),
    Endpoint("POST", "/responses", responses.responses, responses.ResponsesRequest),
    Endpoint("POST", "/embeddings", embeddings.embeddings, embeddings.EmbeddingRequest),
    Endpoint("POST", "/rerank", rerank.rerank, rerank.RerankRequest),
    Endpoint("POST", "/score", rerank.score, rerank.ScoreRequest),
    Endpoint("POST", "/tokenize", tokens.tokenize, tokens.TokenizeRequest),
    Endpoint("POST", "/detokenize", tokens.detokenize, tokens.DetokenizeRequest),
    Endpoint("POST", "/load_lora_adapter", models.load_adapter, models.LoadAdapter),
    Endpoint("POST", "/unload_lora_adapter", models.unload_adapter, models.UnloadAdapter),
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
            raise errors.of(error, fields=call.fields, retry_after=server.retry_after()) from error

    return handle
