"""``tallow.serve`` on Ray Serve (``pip install "tallow[ray]"``): the same app, as replicas that grow with
their queue, and a way for prompts that begin alike to reach the same replica.

    serve run tallow.serve.ray:build model=smollm2 threads=4 replicas=1-8

or ``serve.run(tallow.serve.ray.deployment("smollm2", threads=4, replicas=(1, 8)))``.

Ray's ``ConsistentHashRouter`` sends requests of one session to one replica, and to the next ones on its ring
while that one is full. ``proxy`` makes a session of a request's instructions. Ray's proxies load it where
their environment says ``PROXY``; without it requests are spread evenly, and every replica computes the
instructions once for itself.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping
from typing import Any

import msgspec
from starlette.datastructures import MutableHeaders
from starlette.middleware import Middleware
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from .. import arguments
from ..errors import InvalidRequestError

__all__ = ["PROXY", "build", "deployment", "proxy"]

#: What the environment of Ray's proxies must have for requests to go by their instructions.
PROXY = {"RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH": "tallow.serve.ray:proxy"}
#: Sequences that a replica computes together, where nobody says.
BATCH = 32
_MOST = 10_000
_SESSION = "x-session-id"
_ROUTER = "ray.serve.experimental.consistent_hash_router.ConsistentHashRouter"


def deployment(
    models: Any,
    *,
    threads: int | None = None,
    replicas: int | tuple[int, int] = 1,
    batch: int = BATCH,
    name: str = "tallow",
    **options: Any,
) -> Any:
    """An application for ``serve.run``.

    - ``models`` and ``options``: those of ``tallow.serve.app``, which every replica makes for itself. A Model
      is loaded again there, from its source.
    - ``threads`` of a replica, and as many CPUs of Ray's: it counts them, and fences nobody in. None: all of
      this machine, for one replica a node with all its threads shares its weights, cache and batch.
    - ``replicas``: their number, or the least and the most; then there are as many as it takes for each to
      have about ``batch`` requests, those in the queue included.
    - ``batch``: requests that a replica computes together; what is more waits in Ray's queue.
    - ``name``: of the deployment, as Ray lists it.
    """
    from ray import serve  # type: ignore[import-not-found]
    from ray.serve.config import RequestRouterConfig  # type: ignore[import-not-found]

    from . import app

    threads = arguments.integer("threads", threads or len(os.sched_getaffinity(0)), 1, _MOST)
    batch = arguments.integer("batch", batch, 1, _MOST)
    least, most = _range(replicas)

    def made() -> Any:
        # In the replica: nothing of a model passes between processes.
        return app(models, threads=threads, **options)

    scaling: dict[str, Any] = {"num_replicas": least}
    if most > least:
        config = {"min_replicas": least, "max_replicas": most, "target_ongoing_requests": batch}
        scaling = {"autoscaling_config": config}
    return serve.deployment(
        serve.ingress(made)(),
        name=name,
        ray_actor_options={"num_cpus": threads},
        max_ongoing_requests=batch,
        request_router_config=RequestRouterConfig(
            request_router_class=_ROUTER,
            # All the others, in the ring's order: a full replica must not keep requests from an idle one.
            request_router_kwargs={"num_fallback_replicas": most - 1},
        ),
        **scaling,
    ).bind()


class _Arguments(msgspec.Struct, forbid_unknown_fields=True):
    """What ``serve run`` and a configuration file may say."""

    model: str
    name: str | None = None
    threads: int | None = None
    replicas: str | int = 1
    batch: int = BATCH
    adapters: dict[str, str] = {}
    api_keys: list[str] = []
    context_length: int | None = None
    quantize: str | None = None
    kv_memory: str | None = None
    draft: str | None = None
    timeout: float = 600.0
    allow_unknown: bool = False


def build(args: Mapping[str, Any]) -> Any:
    """A builder for ``serve run tallow.serve.ray:build model=smollm2 threads=4 replicas=1-8`` and for
    ``args:`` of a configuration file."""
    for name in args:
        if name not in _Arguments.__struct_fields__:
            arguments.unknown("build()", name, _Arguments.__struct_fields__)
    try:
        given = msgspec.convert(dict(args), _Arguments, strict=False)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"build(): {error}") from None
    options = {key: getattr(given, key) for key in _Arguments.__struct_fields__}
    source, name, replicas = options.pop("model"), options.pop("name"), str(options.pop("replicas"))
    least, _, most = replicas.partition("-")
    try:
        numbers = int(least), int(most or least)
    except ValueError:
        raise InvalidRequestError(f'replicas is {replicas!r}; write a number, or two as "1-8"') from None
    left_out = {key: value for key, value in options.items() if value not in (None, {}, [])}
    return deployment({name: source} if name else source, replicas=numbers, **left_out)


def _range(replicas: Any) -> tuple[int, int]:
    if isinstance(replicas, (tuple, list)) and len(replicas) == 2:
        least, most = (arguments.integer("replicas", one, 1, _MOST) for one in replicas)
        if least > most:
            raise InvalidRequestError(f"replicas is ({least}, {most}); give the least first")
        return least, most
    number = arguments.integer("replicas", replicas, 1, _MOST)
    return number, number


# The session of a request


def proxy() -> list[Middleware]:
    """What Ray's proxies put before all routes, where their environment names it (``PROXY``)."""
    return [Middleware(Sessions)]


class Sessions:
    """Gives a request without a session one that is made of its beginning, by which Ray's router chooses the
    replica."""

    #: Bytes of a body that are looked at; what is larger goes to any replica.
    most = 8 * 2**20

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] == "POST":
            headers = MutableHeaders(scope=scope)
            if _SESSION not in headers:
                messages = await self._read(receive)
                found = session(b"".join(message.get("body", b"") for message in messages))
                if found is not None:
                    headers.append(_SESSION, found)
                receive = _again(messages, receive)
        await self._app(scope, receive, send)

    async def _read(self, receive: Receive) -> list[Message]:
        messages, size = [], 0
        while True:
            messages.append(message := await receive())
            size += len(message.get("body", b""))
            if not message.get("more_body", False) or size > self.most:
                return messages


def _again(messages: list[Message], receive: Receive) -> Receive:
    """What was read already, and then what comes."""
    held = iter(messages)

    async def next_message() -> Message:
        return next(held, None) or await receive()

    return next_message


class _Beginning(msgspec.Struct):
    """What stands at the beginning of a prompt, in the requests that have one."""

    model: Any = None
    tools: Any = None
    messages: Any = None
    instructions: Any = None
    input: Any = None
    prompt: Any = None


#: Characters or tokens of a prompt without instructions that count as its beginning.
_HEAD = 512


def session(body: bytes) -> str | None:
    """The session of a request: the same for all that begin with the same instructions, and none where there
    is nothing to go by."""
    try:
        given = msgspec.json.decode(body, type=_Beginning)
    except (msgspec.DecodeError, RecursionError):
        return None  # the replica says what is wrong with it
    head = _instructions(given.messages) or given.instructions or _head(given.input) or _head(given.prompt)
    if not head:
        return None
    text = msgspec.json.encode([given.model, given.tools, head], order="deterministic")
    return hashlib.blake2b(text, digest_size=16).hexdigest()


def _instructions(messages: Any) -> Any:
    """The system's messages at the beginning, or the first one, which later turns of it begin with, too."""
    if not isinstance(messages, list):
        return None
    count = 0
    while count < len(messages) and _role(messages[count]) in ("system", "developer"):
        count += 1
    return messages[: count or 1]


def _role(message: Any) -> Any:
    return message.get("role") if isinstance(message, dict) else None


def _head(prompt: Any) -> Any:
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], (str, list)):
        prompt = prompt[0]
    return prompt[:_HEAD] if isinstance(prompt, (str, list)) else prompt
