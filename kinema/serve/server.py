"""Sockets and the HTTP server: no delay of small answers, no connection that only waits, an end at once."""

import socket
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Sequence
from typing import Any

import h11
import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

MAX_CONNECTIONS = 512
MAX_MESSAGE = 2**20
"""Bytes of a WebSocket message from a client."""
HEAD_SECONDS = 10.0
"""Time in which the head of a request has to arrive."""
LOCAL_PROXIES = ("127.0.0.1", "::1")
TOO_SLOW = b"HTTP/1.1 408 Request Timeout\r\nConnection: close\r\nContent-Length: 0\r\n\r\n"


class BoundedHttp(H11Protocol):
    """HTTP/1.1 that closes a connection where the head of a request does not arrive in time."""

    head_seconds = HEAD_SECONDS
    _head_timer: TimerHandle | None = None

    def connection_made(self, transport: Transport) -> None:
        super().connection_made(transport)
        self._head_timer = self.loop.call_later(self.head_seconds, self._give_up)

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop_timer()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        if self.conn.their_state is not h11.IDLE:
            self._stop_timer()
        elif self._head_timer is None:
            # A part of a head. The timer is not restarted by each byte: one now and then is slow as well.
            self._head_timer = self.loop.call_later(self.head_seconds, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            if self.conn.trailing_data[0]:
                self.transport.write(TOO_SLOW)
            self.transport.close()


class Server(uvicorn.Server):
    """A server that ends the work of its requests before it waits for them."""

    def __init__(self, config: uvicorn.Config, on_exit: Callable[[], None] | None):
        super().__init__(config)
        self._on_exit = on_exit

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        if self._on_exit is not None:
            self._on_exit()
        await super().shutdown(sockets)


def bind(host: str, port: int) -> socket.socket:
    """Open a listening socket. Raises ValueError where the port is taken or there is no such address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        listener = socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f"cannot listen at {host}:{port} ({error.strerror or error}); choose another --port (0 for any)"
        ) from error
    # Accepted sockets inherit it. Without, the second packet of an answer waits 40 ms for the client to
    # acknowledge the first; asyncio sets it only on sockets whose protocol number is given.
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return listener


def make_server(
    app: Any, on_exit: Callable[[], None] | None = None, *, proxies: Sequence[str] = ()
) -> uvicorn.Server:
    """Make the HTTP server of an ASGI application, to be run with a listening socket.

    Args:
        app: the application.
        on_exit: ends the work of open requests, so that they can be answered before the server stops.
        proxies: addresses and networks, beside this machine's own, whose X-Forwarded-For names the client.
    """
    config = uvicorn.Config(
        app,
        http=BoundedHttp,
        log_level="warning",
        access_log=False,
        forwarded_allow_ips=[*LOCAL_PROXIES, *proxies],
        server_header=False,
        limit_concurrency=MAX_CONNECTIONS,
        timeout_keep_alive=30,
        timeout_graceful_shutdown=3,
        ws_max_size=MAX_MESSAGE,
        ws_max_queue=4,
        # Deflating a frame takes longer than sending it, and one thread does it for every client.
        ws_per_message_deflate=False,
    )
    return Server(config, on_exit)
