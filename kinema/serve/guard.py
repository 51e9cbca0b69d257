"""ASGI middleware before every request: who asks, from where, how often, and how much they send."""

import asyncio
import contextlib
import secrets
from collections.abc import Sequence
from typing import Any
from urllib.parse import urlsplit

from starlette.requests import HTTPConnection
from starlette.types import Message, Receive, Scope, Send

from kinema.serve.limits import Limits, RateLimiter, Refusal, closing
from kinema.serve.metrics import Metrics

LOOPBACK = ("127.0.0.1", "localhost", "::1")
OPEN_PATHS = ("/", "/health", "/docs", "/openapi.json")
"""Paths that need no token: nothing of a session can be seen there."""
OPEN_FOLDER = "/page/"
DRAINED_BODIES = 4
"""A refused request is read up to so many times the allowed size before its connection is closed."""


class Guard:
    """Admit or refuse requests.

    With a token every request has to bring it. Without one, this machine alone is served, and only under its
    own names and that of ``public_url``: a page of another origin in a browser of this machine (DNS
    rebinding, a foreign form or WebSocket) is refused.
    """

    def __init__(
        self,
        app: Any,
        *,
        limits: Limits,
        metrics: Metrics,
        token: str | None,
        hosts: Sequence[str] = LOOPBACK,
        public_url: str | None = None,
    ):
        self._app, self._limits, self._metrics, self._token = app, limits, metrics, token
        public = urlsplit(public_url or "")
        self._public = public.netloc.lower()
        self._hosts = {*hosts, public.hostname or hosts[0]}
        self._rates = RateLimiter(limits.requests_per_second)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        connection = HTTPConnection(scope)
        try:
            self._check_origin(connection)
            self._check_token(connection)
            self._rates.take(client_of(connection))
            length = connection.headers.get("content-length", "0")
            self._check_size(int(length) if length.isdigit() else 0)
        except Refusal as refusal:
            if scope["type"] == "http":
                await self._drain(receive)
            await self._refuse(refusal, scope, receive, send)
            return
        if scope["type"] == "http":
            await self._serve_http(scope, receive, send)
        else:
            # A server that stops ends its streams.
            with contextlib.suppress(asyncio.CancelledError):
                await self._app(scope, receive, send)

    async def _serve_http(self, scope: Scope, receive: Receive, send: Send) -> None:
        deadline = asyncio.get_running_loop().time() + self._limits.body_seconds
        size, has_body, has_begun = 0, False, False
        refusal: Refusal | None = None

        async def bounded_receive() -> Message:
            nonlocal size, has_body, refusal
            if has_body:  # Only asks whether the client is still there.
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
            nonlocal has_begun
            # The application's answer to a body that was cut off is not sent.
            if refusal is None:
                has_begun = True
                if message["type"] == "http.response.start":
                    self._metrics.requests.labels(str(message["status"])).inc()
                await send(message)

        try:
            await self._app(scope, bounded_receive, counting_send)
        except asyncio.CancelledError:
            refusal = closing()
        except Refusal:
            assert refusal is not None
        if refusal is not None and not has_begun:
            if refusal.status == 413:
                await self._drain(receive)
            await self._refuse(refusal, scope, receive, send)

    async def _refuse(self, refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
        self._metrics.refusals.labels(refusal.reason).inc()
        await refusal.response()(scope, receive, send)

    async def _drain(self, receive: Receive) -> None:
        """Read and discard, within bounds, the rest of a refused request: its client reads no answer before
        all is sent, and would take a closed connection for a breakdown."""
        most, size = DRAINED_BODIES * self._limits.max_body_mb * 1e6, 0
        message: Message = {"more_body": True}
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self._limits.body_seconds):
                while message.get("more_body", False) and size < most:
                    message = await receive()
                    size += len(message.get("body", b""))

    def _check_origin(self, connection: HTTPConnection) -> None:
        # A foreign page does not know the token, so it can do nothing where there is one.
        if self._token is not None:
            return
        host = connection.headers.get("host", "").lower()
        if _hostname(host) not in self._hosts:
            raise Refusal(
                403,
                f"this server answers on this machine only, not under the name {host[:100]!r}; use "
                "http://127.0.0.1, or set a token in KINEMA_TOKEN; behind a proxy that asks for a password, "
                "give the proxy's address with --public-url",
                reason="host",
            )
        origin = connection.headers.get("origin")
        if origin is not None and origin.lower().partition("//")[2] not in (host, self._public or host):
            raise Refusal(
                403,
                f"requests from pages of another origin ({origin[:100]!r}) are not served; behind a proxy, "
                "set a token in KINEMA_TOKEN, or give the proxy's address with --public-url",
                reason="origin",
            )

    def _check_token(self, connection: HTTPConnection) -> None:
        path = connection.scope["path"]
        if self._token is None or path in OPEN_PATHS or path.startswith(OPEN_FOLDER):
            return
        scheme, _, given = connection.headers.get("authorization", "").partition(" ")
        if scheme.lower() != "bearer" and connection.scope["type"] == "websocket":
            # A browser cannot give a WebSocket a header.
            given = connection.query_params.get("token", "")
        if not secrets.compare_digest(given.strip().encode(), self._token.encode()):
            wrong = "wrong token; " if given else ""
            needed = "a token is needed: the header 'Authorization: Bearer TOKEN'"
            raise Refusal(401, wrong + needed, reason="token")

    def _check_size(self, size: int) -> None:
        if size > self._limits.max_body_mb * 1e6:
            raise Refusal(
                413,
                f"the request is larger than {self._limits.max_body_mb:g} MB; send less at once",
                reason="size",
            )


def client_of(connection: HTTPConnection) -> str:
    """Return the address that a request came from."""
    return connection.client.host if connection.client else "unknown"


def _hostname(host: str) -> str:
    try:
        return (urlsplit(f"//{host}").hostname or "").lower()
    except ValueError:
        return ""
