"""What every request passes before its route, and on its way out: its id, path, host, key and size, the form
of errors, and the line in the log. Plain ASGI, so that streams pass as they are."""

from __future__ import annotations

import asyncio
import hmac
import ipaddress
import re
import time
import uuid
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from . import errors
from .call import Outcome
from .server import Server

#: Answered without a key: who asks whether the process lives has none.
OPEN = ("/health", "/ready")
_LOCAL = ("localhost", "127.0.0.1", "::1")
#: Of a body that is too large, how much is read before the answer: this many times what is allowed, and for
#: this many seconds.
_DROPPED, _PATIENCE = 8, 5.0
_ID = re.compile(r"[\x21-\x7e]{1,128}")


class Guard:
    """The outermost part of the app."""

    def __init__(self, app: ASGIApp, server: Server) -> None:
        self._app = app
        self._server = server
        self._keys = [key.encode() for key in server.settings.api_keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name: value for name, value in reversed(scope["headers"])}
        given = headers.get(b"x-request-id", b"").decode("latin-1")
        name = given if _ID.fullmatch(given) else uuid.uuid4().hex
        outcome = Outcome(name, scope["method"], "")
        scope = _collapsed(scope)
        scope["tallow.outcome"] = outcome
        answer, body = _Answer(send, outcome), _Body(receive, self._server.settings.max_body)
        try:
            self._check(scope, headers)
            await self._app(scope, body.receive, answer.send)
        except asyncio.CancelledError:
            outcome.outcome = "cancelled"
            raise
        except Exception as error:
            refused = errors.of(
                error, fields=scope.get("tallow.fields", frozenset()), retry_after=self._server.retry_after()
            )
            outcome.outcome = "cancelled" if refused.status == 499 else "error"
            if answer.started:
                raise
            if scope["method"] == "POST" and refused.status != 408:  # it was waited for long enough
                await body.drop()
            await refused.response()(scope, receive, answer.send)
        finally:
            # Starlette's own refusals (no such route, another method) are no exceptions here.
            if outcome.status >= 400 and outcome.outcome == "ok":
                outcome.outcome = "error"
            outcome.seconds = time.monotonic() - outcome.began
            self._server.observe(outcome)

    def _check(self, scope: Scope, headers: dict[bytes, bytes]) -> None:
        host = headers.get(b"host", b"").decode("latin-1")
        if not _known_host(host, scope.get("server"), self._server):
            raise errors.Refused(
                403,
                f"this server does not go by the name {host!r}; add it to hosts (--allow-host)",
                "permission_error",
                "unknown_host",
            )
        path = scope["path"].removeprefix(scope.get("root_path", "")).removeprefix("/v1")
        if path in OPEN or (path == "/metrics" and self._server.settings.open_metrics):
            return
        if self._keys and not self._has_key(headers.get(b"authorization", b"")):
            raise errors.Refused(
                401,
                "no valid API key; send the header Authorization: Bearer KEY",
                "authentication_error",
                "invalid_api_key",
                headers={"www-authenticate": "Bearer"},
            )
        if scope["method"] == "POST":
            if self._server.draining:
                raise errors.draining()
            kind = headers.get(b"content-type", b"").partition(b";")[0].strip().lower()
            if kind != b"application/json":
                # A page in a browser may send other types to any server without asking it first.
                raise errors.Refused(
                    415,
                    "send JSON, with the header content-type: application/json",
                    code="unsupported_media_type",
                )
            coding = headers.get(b"content-encoding", b"identity").strip().lower()
            if coding not in (b"", b"identity"):
                raise errors.Refused(
                    415, "send the body as it is, without content-encoding", code="unsupported_media_type"
                )

    def _has_key(self, given: bytes) -> bool:
        scheme, _, key = given.partition(b" ")
        if scheme.lower() != b"bearer":
            return False
        # All of them, so that the time tells nothing of which one is near.
        return any([hmac.compare_digest(key.strip(), known) for known in self._keys])


class _Answer:
    """Notes the status of an answer, and puts the request's id on it."""

    def __init__(self, send: Send, outcome: Outcome) -> None:
        self._send = send
        self._outcome = outcome
        self.started = False

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            self._outcome.status = message["status"]
            name = (b"x-request-id", self._outcome.request_id.encode())
            message = {**message, "headers": [*message.get("headers", ()), name]}
        await self._send(message)


def _collapsed(scope: Scope) -> Scope:
    """With one slash where clients put two: a base URL ends with one, and a path begins with one."""
    path = scope["path"]
    if "//" not in path:
        return scope
    path = re.sub("/{2,}", "/", path)
    return {**scope, "path": path, "raw_path": path.encode()}


class _Body:
    """Counts a request's body while it is read: what its header says is the client's word."""

    def __init__(self, receive: Receive, most: int) -> None:
        self._receive, self._most = receive, most
        self._count = 0
        self._is_read = False

    async def receive(self) -> Message:
        message = await self._receive()
        self._count += len(message.get("body", b""))
        self._is_read = not message.get("more_body", False)
        if self._count > self._most:
            raise errors.Refused(
                413,
                f"the body has more than {self._most} bytes",
                code="request_too_large",
                headers={"connection": "close"},
            )
        return message

    async def drop(self) -> None:
        """Reads what is left of it, within limits: a client that is still sending when the connection is
        closed gets no answer to see."""
        most, until = _DROPPED * self._most, time.monotonic() + _PATIENCE
        while not self._is_read and self._count < most and time.monotonic() < until:
            try:
                message = await asyncio.wait_for(self._receive(), _PATIENCE)
            except asyncio.TimeoutError:
                return
            self._count += len(message.get("body", b""))
            self._is_read = not message.get("more_body", False)


def _known_host(host: str, address: Any, server: Server) -> bool:
    """Whether the client means this server. A page that got its own name to point at this machine (DNS
    rebinding) speaks to it as to itself; what it cannot change is the name that it calls."""
    name = _without_port(host)
    allowed = server.settings.hosts
    if allowed is None:
        return bool(server.settings.api_keys) or not _is_loopback(address) or name in _LOCAL
    return "*" in allowed or name in _LOCAL or name in allowed


def _without_port(host: str) -> str:
    found = re.fullmatch(r"\[([^\]]*)\](?::\d+)?|([^:]*)(?::\d+)?", host)
    return (found[1] or found[2] or "").lower() if found else ""


def _is_loopback(address: Any) -> bool:
    try:
        return address is not None and ipaddress.ip_address(address[0]).is_loopback
    except ValueError:
        return False
