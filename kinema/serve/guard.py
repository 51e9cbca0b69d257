"""What stands before every request: who asks, from where, how often, and how much they send."""

import asyncio
import contextlib
import json
import secrets
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import parse_qs, urlsplit

from kinema.serve.limits import Limits, RateLimiter, Refusal
from kinema.serve.metrics import Metrics

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")
"""What needs no token: nothing of a session can be seen there."""
OPEN_FOLDER = "/page/"
POLICY_VIOLATION = 1008
DRAINED_BODIES = 4
"""Of a request that is too large, so many times what is allowed is read before the connection is closed."""


class Guard:
    """ASGI middleware.

    Without a token only this machine is served, and only under its own names: a page of another origin that
    a browser here has open (DNS rebinding, a foreign form or WebSocket) is refused. With a token every
    request has to bring it.
    """

    def __init__(
        self,
        app: Any,
        *,
        limits: Limits,
        metrics: Metrics,
        token: str | None,
        hosts: tuple[str, ...] = LOOPBACK,
    ):
        self._app, self._limits, self._metrics, self._token = app, limits, metrics, token
        self._hosts = hosts
        self._rates = RateLimiter(limits.requests_per_second)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        headers = {key.decode("latin-1").lower(): value.decode("latin-1") for key, value in scope["headers"]}
        try:
            self._check_origin(headers)
            self._check_token(scope, headers)
            self._rates.take(client_of(scope))
            length = headers.get("content-length", "0")
            self._check_size(int(length) if length.isdigit() else 0)
        except Refusal as refusal:
            self._metrics.refusals.labels(refusal.reason).inc()
            if scope["type"] == "http":
                await self._drain(receive)
            await _refuse(scope, send, refusal)
            return
        if scope["type"] == "websocket":
            await self._app(scope, receive, send)
        else:
            await self._serve_http(scope, receive, send)

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        deadline = asyncio.get_running_loop().time() + self._limits.body_seconds
        size, has_body = 0, False
        refusal: Refusal | None = None

        async def bounded_receive() -> Message:
            nonlocal size, has_body, refusal
            if has_body:  # Only whether the client is still there.
                return await receive()
            try:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
                size += len(message.get("body", b""))
                self._check_size(size)
            except TimeoutError:
                seconds = self._limits.body_seconds
                refusal = Refusal(408, f"the request took more than {seconds:g} s", reason="slow")
                raise refusal from None
            except Refusal as too_large:
                refusal = too_large
                raise
            has_body = not message.get("more_body", False)
            return message

        async def counting_send(message: Message) -> None:
            # What the application makes of a body that was cut off is not the answer.
            if refusal is None:
                if message["type"] == "http.response.start":
                    self._metrics.requests.labels(str(message["status"])).inc()
                await send(message)

        with contextlib.suppress(Refusal):
            await self._app(scope, bounded_receive, counting_send)
        if refusal is not None:
            self._metrics.refusals.labels(refusal.reason).inc()
            if refusal.status == 413:
                await self._drain(receive)
            await _refuse(scope, send, refusal)

    async def _drain(self, receive: Receive) -> None:
        """Read away what a refused client still sends, within bounds: it reads no answer before it has sent
        all, and a connection closed on it would look like a breakdown."""
        most, size = DRAINED_BODIES * self._limits.max_body_mb * 1e6, 0
        message: Message = {"more_body": True}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.body_seconds):
                while message.get("more_body", False) and size < most:
                    message = await receive()
                    size += len(message.get("body", b""))

    def _check_origin(self, headers: dict[str, str]) -> None:
        host = headers.get("host", "")
        if self._token is None and _hostname(host) not in self._hosts:
            raise Refusal(
                403,
                f"this server answers on this machine only, not under the name {host[:100]!r}; use "
                "http://127.0.0.1, or start it with a token and --host",
                reason="host",
            )
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc.lower() != host.lower():
            raise Refusal(403, "requests from pages of another origin are not served", reason="origin")

    def _check_token(self, scope: Scope, headers: dict[str, str]) -> None:
        path = scope["path"]
        if self._token is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return
        scheme, _, given = headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" and scope["type"] == "websocket":
            # A browser cannot give a WebSocket a header.
            given = parse_qs(scope["query_string"].decode("latin-1")).get("token", [""])[0]
        if not secrets.compare_digest(given.strip().encode(), self._token.encode()):
            raise Refusal(401, "a token is needed: the header 'Authorization: Bearer TOKEN'", reason="token")

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_body_mb * 1e6:
            raise Refusal(
                413,
                f"the request is larger than {self._limits.max_body_mb:g} MB; send less at once",
                reason="size",
            )


def client_of(scope: Scope) -> str:
    """The address that a request came from."""
    client = scope.get("client")
    return client[0] if client else "unknown"


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""


async def _refuse(scope: Scope, send: Send, refusal: Refusal) -> None:
    if scope["type"] == "websocket":
        # Before it was accepted: the client sees HTTP 403.
        await send({"type": "websocket.close", "code": POLICY_VIOLATION, "reason": refusal.message[:100]})
        return
    body = json.dumps({"detail": refusal.message}).encode()
    headers = {"content-type": "application/json", "content-length": str(len(body)), **refusal.headers}
    if refusal.status == 401:
        headers["www-authenticate"] = "Bearer"
    if refusal.status in (408, 413):
        headers["connection"] = "close"
    raw = [(key.lower().encode(), value.encode()) for key, value in headers.items()]
    await send({"type": "http.response.start", "status": refusal.status, "headers": raw})
    await send({"type": "http.response.body", "body": body})
