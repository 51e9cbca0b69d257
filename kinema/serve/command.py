"""``kinema serve``: a world as a service."""

import dataclasses
import os
import secrets
import socket
from pathlib import Path
from typing import Annotated, Any

import tyro
import uvicorn

from kinema.hardware.machine import leave_threads
from kinema.policies.cloned import find_clone
from kinema.serve.app import create_app
from kinema.serve.guard import LOOPBACK
from kinema.serve.limits import Limits
from kinema.serve.service import Service, find_recordings
from kinema.simulation.session import load

TOKEN_VARIABLE = "KINEMA_TOKEN"
MAX_CONNECTIONS = 512
MAX_MESSAGE = 2**20
"""Bytes of a WebSocket message from a client."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class ServeConfig:
    world: Annotated[str, tyro.conf.Positional] = "pusht"
    """A bundled world, a folder, or a Hub id."""
    data: Path | None = None
    """Recorded episodes that sessions may begin in; by default those that the world brings."""
    host: str = "127.0.0.1"
    """Address to listen at. Any but this machine's own needs a token: KINEMA_TOKEN in the environment, or one
    is made and printed."""
    port: int = 8000
    """Port to listen at; 0 for any that is free."""
    device: str = "auto"
    """Device to compute on: auto (CUDA, else MPS, else CPU), cpu, cuda, cuda:1 or mps."""
    limits: Limits = dataclasses.field(default_factory=Limits)
    """What clients may ask for."""

    def __post_init__(self) -> None:
        if not 0 <= self.port < 65536:
            raise ValueError(f"port={self.port}: it must be 0 to 65535")


def serve(config: ServeConfig) -> None:
    """Serve until Ctrl-C."""
    token = find_token(config.host)
    service = make_service(config)
    app = create_app(service, token=token, hosts=(*LOOPBACK, config.host))
    with bind(config.host, config.port) as listener:
        url = f"http://{config.host}:{listener.getsockname()[1]}"
        print(f"world '{service.world.name}' at {url}, documented at {url}/docs", flush=True)
        print(f"up to {service.sessions.capacity} sessions; Ctrl-C stops the server", flush=True)
        if token is not None:
            is_known = TOKEN_VARIABLE in os.environ
            print(f"token: {f'the one in {TOKEN_VARIABLE}' if is_known else token}", flush=True)
            print(f"to play in a browser: {url}/#token=TOKEN", flush=True)
        else:
            print(f"to play in a browser: {url}/", flush=True)
        make_server(app).run(sockets=[listener])


def make_service(config: ServeConfig) -> Service:
    """The world of a configuration, with its recordings. PyTorch's threads are the engine's from then on."""
    num_threads = leave_threads()
    world = load(config.world, device=config.device)
    recordings = find_recordings(config.world, config.data)
    clone = find_clone(world, config.world)
    return Service(world, recordings, config.limits, clone=clone, num_threads=num_threads)


def find_token(host: str) -> str | None:
    """That of the environment; else none where only this machine can connect, and else a new one."""
    return os.environ.get(TOKEN_VARIABLE) or (None if host in LOOPBACK else secrets.token_urlsafe(24))


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises ValueError where the port is taken or there is no such address."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        return socket.create_server((host, port), family=family)
    except OSError as error:
        raise ValueError(
            f"cannot listen at {host}:{port} ({error.strerror or error}); choose another --port (0 for any)"
        ) from error


def make_server(app: Any) -> uvicorn.Server:
    """The HTTP server of an ASGI application, to be run with a listening socket."""
    return uvicorn.Server(
        uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            proxy_headers=False,
            server_header=False,
            limit_concurrency=MAX_CONNECTIONS,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=3,
            ws_max_size=MAX_MESSAGE,
            ws_max_queue=4,
            # Deflating a picture takes longer than sending it, and one thread does it for every client.
            ws_per_message_deflate=False,
        )
    )
